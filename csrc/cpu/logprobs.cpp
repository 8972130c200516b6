#include "morlfast/logprobs.hpp"
