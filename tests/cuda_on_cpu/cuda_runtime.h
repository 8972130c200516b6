// Stands in for the CUDA toolkit's header when tests compile a kernel with g++.
#include "cuda_on_cpu.hpp"
