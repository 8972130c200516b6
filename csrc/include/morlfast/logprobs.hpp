// Log-probabilities of tokens and entropies of their distributions.
#pragma once
#include <cstdint>

namespace morlfast {}
