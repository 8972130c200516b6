// How the library was built and what it uses here.
#pragma once

namespace morlfast {

/// Names of the SIMD levels that were built, lowest first, separated by spaces.
const char* simd_levels();

/// The level in use: the best that this processor runs, or a lower one that the environment names in MORLFAST_SIMD.
const char* simd_level();

}  // namespace morlfast
