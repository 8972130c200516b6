// The one way this library launches a kernel. A function call rather than <<<>>>, so that any C++ compiler
// can read it.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <type_traits>

namespace morlfast::cuda {

// Asynchronous on `stream`, which belongs to the current device. Throws std::runtime_error if the launch is
// refused.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream,
            std::type_identity_t<Parameters>... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (status != cudaSuccess) {
    cudaGetLastError();  // reported here once, not again by whoever asks next
    throw std::runtime_error(std::string("morlfast: CUDA kernel launch failed: ") + cudaGetErrorString(status));
  }
}

}  // namespace morlfast::cuda
