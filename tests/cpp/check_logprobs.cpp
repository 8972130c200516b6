#include "driver.hpp"

namespace driver {

void check_token_logprobs(Random&) {}

}  // namespace driver
