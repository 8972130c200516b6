// Runs CUDA kernels on the CPU: a fiber for each CUDA thread, one block after the other. For tests, not for speed.
//
//   g++ -std=c++20 -fdata-sections -Wl,-T,shared_memory.ld -I. [-fsanitize=thread] driver.cpp
//
// where driver.cpp includes the .cu files, whose kernels are in an anonymous namespace (shared_memory.ld finds
// their shared memory by that). ThreadSanitizer takes fibers for threads that only __syncthreads() and
// __syncwarp() order, and so sees a missing one as a data race. Stricter than a device: shared memory holds
// garbage when a block starts, all threads of a block must meet the same number of barriers, and the lanes of
// a warp the same shuffles and votes. Laxer: blocks never overlap, so races between blocks go unseen.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

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
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

extern char cuda_shared_begin[], cuda_shared_end[];  // shared_memory.ld

namespace cuda_on_cpu {

constexpr int kLanes = 32;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

// What the machine itself reads and writes is no part of the program that ThreadSanitizer judges.
struct Unseen {
#ifdef __SANITIZE_THREAD__
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  ~Unseen() {}
#endif
};

#ifdef __SANITIZE_THREAD__
inline void release(void* at) { __tsan_release(at); }
inline void acquire(void* at) { __tsan_acquire(at); }
#else
inline void release(void*) {}
inline void acquire(void*) {}
#endif

// Opens when all that are expected have arrived.
struct Gate {
  int expected, arrived = 0, round = 0;
  char order[2] = {};  // what ThreadSanitizer knows this gate by, in odd and even rounds

  void arrive() {
    if (++arrived < expected) return;
    arrived = 0;
    ++round;
  }
  void leave() {
    --expected;
    if (arrived == expected && expected > 0) {
      arrived = 0;
      ++round;
    }
  }
};

// A place to go on. swapcontext() asks the kernel for the signal mask each time, so later visits take longjmp(), which
// only the sanitizers do not follow from stack to stack.
struct Context {
  ucontext_t first;
  jmp_buf again;
  bool visited = false;
};

__attribute__((noinline)) inline void switch_context(Context& from, Context& to) {
#if defined __SANITIZE_THREAD__ || defined __SANITIZE_ADDRESS__
  swapcontext(&from.first, &to.first);
#else
  from.visited = true;
  if (_setjmp(from.again) != 0) return;
  if (to.visited) _longjmp(to.again, 1);
  setcontext(&to.first);
#endif
}

class Fiber {
 public:
  Context context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  const Gate* gate = nullptr;  // where it waits, and in which round it came
  int round = 0;
  bool running = false;
  int barriers = 0, warp_barriers = 0;  // met so far
#ifdef __SANITIZE_THREAD__
  void* tsan = __tsan_create_fiber(0);
  ~Fiber() { __tsan_destroy_fiber(tsan); }
#endif

  static constexpr std::size_t kStack = 256 << 10;
};

struct Warp {
  explicit Warp(int lanes) : gate{lanes} {}
  Gate gate;
  const char* what = nullptr;  // that its lanes do together
  alignas(8) char slots[2][kLanes][8] = {};
};

// With NaN, or -1. Not checked by AddressSanitizer: its red zones lie between the variables.
__attribute__((no_sanitize("address", "thread"))) inline void fill_shared_memory() {
  for (volatile char* byte = cuda_shared_begin; byte < cuda_shared_end; ++byte) *byte = -1;
}

struct Block {
  explicit Block(int threads) : gate{threads}, votes(threads) {
    for (int first = 0; first < threads; first += kLanes) warps.emplace_back(std::min(kLanes, threads - first));
    fill_shared_memory();
  }
  Gate gate;
  std::vector<Warp> warps;
  std::vector<int> votes;
};

// In each block of one launch, one barrier of the block or of its warps does nothing: what it would be to forget it.
struct Skipped {
  int launch = -1, barrier = -1;
};
inline Skipped skipped, skipped_in_warp;
inline int launches = 0;
inline std::optional<Block> block;
inline std::vector<Fiber>* fibers = nullptr;
inline int thread = 0;  // that runs
inline Context scheduler;
#ifdef __SANITIZE_THREAD__
inline void* scheduler_tsan = nullptr;
#endif
#ifdef __SANITIZE_ADDRESS__
inline const void* scheduler_stack = nullptr;
inline std::size_t scheduler_stack_size = 0;
#endif
inline void (*entry)(void*) = nullptr;
inline void* entry_data = nullptr;
inline char launch_order;

inline void to_scheduler(Fiber& fiber, bool last) {
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(scheduler_tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(last ? nullptr : &fake, scheduler_stack, scheduler_stack_size);
#endif
  switch_context(fiber.context, scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_stack_size);
#endif
  static_cast<void>(last);
}

inline void start_fiber() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  acquire(&launch_order);
  entry(entry_data);
  release(&launch_order);
  Fiber* fiber;
  {
    const Unseen unseen;
    fiber = &(*fibers)[thread];
    fiber->running = false;
    block->warps[thread / kLanes].gate.leave();
    block->gate.leave();
  }
  to_scheduler(*fiber, true);
}

// On its own because getcontext(), which could return twice, keeps variables out of registers.
__attribute__((noinline)) inline void restart(Fiber& fiber) {
  ucontext_t& context = fiber.context.first;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = Fiber::kStack;
  context.uc_link = nullptr;
  makecontext(&context, start_fiber, 0);
  fiber.context.visited = false;
  fiber.gate = nullptr;
  fiber.running = true;
  fiber.barriers = fiber.warp_barriers = 0;
}

inline void run_fiber(int number) {
  Fiber& fiber = (*fibers)[number];
  thread = number;
  threadIdx = dim3(number % blockDim.x, number / blockDim.x % blockDim.y, number / (blockDim.x * blockDim.y));
#ifdef __SANITIZE_THREAD__
  scheduler_tsan = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), Fiber::kStack);
#endif
  switch_context(scheduler, fiber.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void wait_at(Gate& gate) {
  Fiber& fiber = (*fibers)[thread];
  fiber.round = gate.round;
  gate.arrive();
  if (gate.round == fiber.round) {
    fiber.gate = &gate;
    to_scheduler(fiber, false);
  }
  fiber.gate = nullptr;
}

// A gate that orders memory; false when it is the one to be forgotten.
inline bool barrier(Gate& gate, int& met, const Skipped& skip) {
  char* order;
  {
    const Unseen unseen;
    if (met++ == skip.barrier && launches == skip.launch) return false;
    order = &gate.order[gate.round % 2];
  }
  release(order);
  {
    const Unseen unseen;
    wait_at(gate);
  }
  acquire(order);
  return true;
}

inline bool block_barrier() { return barrier(block->gate, (*fibers)[thread].barriers, skipped); }

// What every lane of the warp has published. Orders no memory, as on a device.
template <class T>
std::array<T, kLanes> share(const char* what, T value) {
  static_assert(sizeof(T) <= 8);
  const Unseen unseen;
  Warp& warp = block->warps[thread / kLanes];
  if (warp.gate.arrived > 0 && warp.what != what) fail("lanes of one warp meet different shuffles or votes");
  warp.what = what;
  auto& slots = warp.slots[warp.gate.round % 2];
  std::memcpy(slots[thread % kLanes], &value, sizeof(T));
  wait_at(warp.gate);
  std::array<T, kLanes> all;
  for (int lane = 0; lane < kLanes; ++lane) std::memcpy(&all[lane], slots[lane], sizeof(T));
  return all;
}

template <class... Parameters>
void run(void (*kernel)(Parameters...), dim3 grid, dim3 shape, Parameters... arguments) {
  const int threads = shape.x * shape.y * shape.z;
  auto body = [&] { kernel(arguments...); };
  release(&launch_order);
  {
    const Unseen unseen;
    gridDim = grid, blockDim = shape;
    entry = [](void* data) { (*static_cast<decltype(body)*>(data))(); };
    entry_data = &body;
    std::vector<Fiber> own(threads);
    fibers = &own;
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
          block.emplace(threads);
          blockIdx = dim3(x, y, z);
          for (Fiber& fiber : own) restart(fiber);
          for (int left = threads; left > 0;) {
            bool stuck = true;
            left = 0;
            for (int number = 0; number < threads; ++number) {
              Fiber& fiber = own[number];
              if (fiber.running && (fiber.gate == nullptr || fiber.gate->round != fiber.round)) {
                run_fiber(number);
                stuck = false;
              }
              left += fiber.running;
            }
            if (left > 0 && stuck) fail("threads wait at a barrier that others never meet");
          }
          for (int number = 0; number < threads && skipped.launch < 0 && skipped_in_warp.launch < 0; ++number) {
            const Fiber& first = own[number / kLanes * kLanes];
            if (own[number].barriers != own[0].barriers || own[number].warp_barriers != first.warp_barriers)
              fail("threads met different numbers of barriers");
          }
        }
    fibers = nullptr;
  }
  acquire(&launch_order);
  ++launches;
}

}  // namespace cuda_on_cpu

// ---- device functions

#define __forceinline__ inline

inline void __syncthreads() { cuda_on_cpu::block_barrier(); }

inline int __syncthreads_or(int vote) {
  using namespace cuda_on_cpu;
  {
    const Unseen unseen;
    block->votes[thread] = vote;
  }
  if (!block_barrier()) return vote;
  const Unseen unseen;
  int any = 0;
  for (const int each : block->votes) any |= each;
  wait_at(block->gate);  // keeps the next round's votes out of this one
  return any;
}

inline void __syncwarp() {
  using namespace cuda_on_cpu;
  barrier(block->warps[thread / kLanes].gate, (*fibers)[thread].warp_barriers, skipped_in_warp);
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return cuda_on_cpu::share("shfl", value)[lane];
}

template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
  const int lane = cuda_on_cpu::thread % cuda_on_cpu::kLanes;
  const auto all = cuda_on_cpu::share("shfl_up", value);
  return lane < distance ? value : all[lane - distance];
}

template <class T>
T __shfl_down_sync(unsigned, T value, int distance) {
  const int lane = cuda_on_cpu::thread % cuda_on_cpu::kLanes;
  const auto all = cuda_on_cpu::share("shfl_down", value);
  return lane + distance < cuda_on_cpu::kLanes ? all[lane + distance] : value;
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const int lane = cuda_on_cpu::thread % cuda_on_cpu::kLanes;
  return cuda_on_cpu::share("shfl_xor", value)[lane ^ mask];
}

inline unsigned __ballot_sync(unsigned, int vote) {
  const auto all = cuda_on_cpu::share("ballot", vote);
  unsigned votes = 0;
  for (int lane = 0; lane < cuda_on_cpu::kLanes; ++lane) votes |= (all[lane] != 0 ? 1u : 0u) << lane;
  return votes;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

template <class T>
T atomicAdd(T* at, T term) {
  return __atomic_fetch_add(at, term, __ATOMIC_RELAXED);
}

// ---- host functions

typedef struct CUstream_st* cudaStream_t;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline cudaError_t cudaMemsetAsync(void* at, int value, std::size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}
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
