// Runs CUDA kernels on std::thread: one thread a CUDA thread, one block after the other. For tests, not for
// speed.
//
//   g++ -std=c++20 -fdata-sections -Wl,-T,shared_memory.ld -I. [-fsanitize=thread] driver.cpp -pthread
//
// where driver.cpp includes the .cu file, whose kernels are in an anonymous namespace (shared_memory.ld finds
// their shared memory by that). ThreadSanitizer sees a missing __syncthreads() as a data race. Stricter than
// a device: shared memory holds garbage when a block starts, and all threads of a block must meet the same
// number of barriers. Laxer: a shuffle also orders the memory accesses of its warp, so a missing __syncwarp()
// goes unseen; blocks never overlap, so races between blocks go unseen too.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct int2 {
  int x, y;
};
struct double2 {
  double x, y;
};
inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

extern char cuda_shared_begin[], cuda_shared_end[];  // shared_memory.ld

namespace cuda_on_cpu {

constexpr int kLanes = 32;

// std::barrier would do, but for the waiting rooms that libstdc++ shares between unrelated barriers: they
// order memory accesses that nothing orders, and ThreadSanitizer misses races.
class Gate {
 public:
  explicit Gate(int threads) : expected_(threads), missing_(threads) {}

  void arrive_and_wait() {
    std::unique_lock lock(mutex_);
    const int round = round_;
    arrive();
    opened_.wait(lock, [&] { return round_ != round; });
  }

  void arrive_and_drop() {
    const std::lock_guard lock(mutex_);
    --expected_;
    arrive();
  }

 private:
  void arrive() {
    if (--missing_ > 0) return;
    missing_ = expected_;
    ++round_;
    opened_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable opened_;
  int expected_, missing_, round_ = 0;
};

struct Warp {
  explicit Warp(int lanes) : gate(lanes) {}
  Gate gate;
  alignas(8) char slots[kLanes][8] = {};
};

// With NaN, or -1. Not checked by AddressSanitizer: its red zones lie between the variables.
__attribute__((no_sanitize("address"))) inline void fill_shared_memory() {
  for (volatile char* byte = cuda_shared_begin; byte < cuda_shared_end; ++byte) *byte = -1;
}

struct Block {
  explicit Block(int threads) : gate(threads), votes(threads), barriers(threads) {
    for (int first = 0; first < threads; first += kLanes) warps.emplace_back(std::min(kLanes, threads - first));
    fill_shared_memory();
  }
  Gate gate;
  std::deque<Warp> warps;
  std::vector<int> votes;
  std::vector<int> barriers;  // met so far by each thread
};

// In each block of one launch, one barrier does nothing: what it would be to forget it.
struct Skipped {
  int launch = -1, barrier = -1;
};
inline Skipped skipped;
inline int launches = 0;
inline std::unique_ptr<Block> block;
inline thread_local int thread;

inline bool barrier() {
  if (block->barriers[thread]++ == skipped.barrier && launches == skipped.launch) return false;
  block->gate.arrive_and_wait();
  return true;
}

// What every lane of the warp has published.
template <class T>
std::array<T, kLanes> share(T value) {
  static_assert(sizeof(T) <= 8);
  Warp& warp = block->warps[thread / kLanes];
  std::memcpy(warp.slots[thread % kLanes], &value, sizeof(T));
  warp.gate.arrive_and_wait();
  std::array<T, kLanes> all;
  for (int lane = 0; lane < kLanes; ++lane) std::memcpy(&all[lane], warp.slots[lane], sizeof(T));
  warp.gate.arrive_and_wait();
  return all;
}

template <class... Parameters>
void run(void (*kernel)(Parameters...), dim3 grid, dim3 shape, Parameters... arguments) {
  gridDim = grid, blockDim = shape;
  const int threads = shape.x * shape.y * shape.z;
  Gate between_blocks(threads);
  const auto run_thread = [&](int number) {
    thread = number;
    threadIdx = dim3(number % shape.x, number / shape.x % shape.y, number / (shape.x * shape.y));
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
          if (number == 0) block = std::make_unique<Block>(threads);
          between_blocks.arrive_and_wait();
          blockIdx = dim3(x, y, z);
          kernel(arguments...);
          block->warps[number / kLanes].gate.arrive_and_drop();
          block->gate.arrive_and_drop();
          between_blocks.arrive_and_wait();
          if (block->barriers[number] != block->barriers[0] && skipped.launch < 0) {
            std::fprintf(stderr, "thread %d met %d barriers, thread 0 met %d\n", number, block->barriers[number],
                         block->barriers[0]);
            std::abort();
          }
          between_blocks.arrive_and_wait();
        }
  };
  {
    std::vector<std::jthread> running;
    for (int number = 0; number < threads; ++number) running.emplace_back(run_thread, number);
  }
  ++launches;
}

}  // namespace cuda_on_cpu

// ---- device functions

inline void __syncthreads() { cuda_on_cpu::barrier(); }

inline int __syncthreads_or(int vote) {
  using namespace cuda_on_cpu;
  block->votes[thread] = vote;
  if (!barrier()) return vote;
  int any = 0;
  for (const int each : block->votes) any |= each;
  block->gate.arrive_and_wait();  // keeps the next round's votes out of this one
  return any;
}

template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
  const int lane = cuda_on_cpu::thread % cuda_on_cpu::kLanes;
  const auto all = cuda_on_cpu::share(value);
  return lane < distance ? value : all[lane - distance];
}

template <class T>
T __shfl_down_sync(unsigned, T value, int distance) {
  const int lane = cuda_on_cpu::thread % cuda_on_cpu::kLanes;
  const auto all = cuda_on_cpu::share(value);
  return lane + distance < cuda_on_cpu::kLanes ? all[lane + distance] : value;
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return cuda_on_cpu::share(value)[cuda_on_cpu::thread % cuda_on_cpu::kLanes ^ mask];
}

// ---- host functions

typedef struct CUstream_st* cudaStream_t;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid configuration argument"; }

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const dim3 grid = config->gridDim, shape = config->blockDim;
  const unsigned threads = shape.x * shape.y * shape.z;
  const bool fits = grid.x > 0 && grid.x < 1u << 31 && grid.y > 0 && grid.y < 1u << 16 && grid.z > 0 &&
                    grid.z < 1u << 16 && threads > 0 && threads <= 1024;
  if (!fits) return cudaErrorInvalidConfiguration;
  cuda_on_cpu::run<Parameters...>(kernel, grid, shape, arguments...);
  return cudaSuccess;
}
