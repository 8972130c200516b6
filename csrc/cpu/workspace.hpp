// Buffers that outlive a call, so that a tiny call allocates nothing, and do not when they grew large.
#pragma once
#include <cstdint>

namespace morlfast {

/// This thread's T. With `keep` false, or when T says so itself, it is emptied afterwards.
template <class T>
class Workspace {
 public:
  explicit Workspace(bool keep) : keep_(keep), buffers_(of_thread()) {}
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    bool keep = keep_;
    if constexpr (requires { buffers_.worth_keeping(); }) keep &= buffers_.worth_keeping();
    if (!keep) buffers_ = T{};
  }

  T* operator->() const { return &buffers_; }
  T& operator*() const { return buffers_; }

 private:
  static T& of_thread() {
    static thread_local T buffers;
    return buffers;
  }

  bool keep_;
  T& buffers_;
};

/// Largest number of points or rollouts whose buffers are worth keeping, a few megabytes.
inline constexpr int64_t kKeptRows = 1 << 15;

}  // namespace morlfast
