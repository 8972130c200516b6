// What the checks share: random choices, and arrays whose views end exactly where their heap block does, so that the
// address sanitizer sees every read and write beyond them.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <random>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "morlfast/elements.hpp"
#include "morlfast/points.hpp"

namespace driver {

inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// Throws where the check stands unless `holds`.
inline void expect(bool holds, const std::string& what,
                   const std::source_location where = std::source_location::current()) {
  if (!holds) throw std::logic_error(std::string(where.file_name()) + ":" + std::to_string(where.line()) + ": " + what);
}

/// Expects std::invalid_argument with `part` in its message.
template <class F>
void expect_refused(const F& f, const std::string& part,
                    const std::source_location where = std::source_location::current()) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    expect(std::string(error.what()).find(part) != std::string::npos, error.what(), where);
    return;
  }
  expect(false, "not refused: " + part, where);
}

/// Equal, both NaN, or within `tolerance` of the larger, or of `size` where that is what cancels.
inline bool close(double got, double want, double tolerance, double size = 1) {
  if (std::isnan(got) || std::isnan(want)) return std::isnan(got) && std::isnan(want);
  if (got == want) return true;
  return std::fabs(got - want) <= tolerance * std::max({size, std::fabs(got), std::fabs(want)});
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed * 0x9e3779b97f4a7c15u + 1) {}

  int64_t integer(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }
  double uniform() { return std::uniform_real_distribution<double>()(engine_); }
  bool chance(double probability) { return uniform() < probability; }
  template <class T>
  T pick(std::initializer_list<T> choices) {
    return choices.begin()[integer(0, static_cast<int64_t>(choices.size()) - 1)];
  }
  uint64_t bits() { return engine_(); }

 private:
  std::mt19937_64 engine_;
};

/// How one array's numbers are drawn: the same for a whole array, so that ties and special values meet.
struct Numbers {
  int64_t grid = 0;      ///< integers 0..grid; 0: uniform in [-1, 1)
  double special = 0.0;  ///< share of NaN (if allowed), infinities, -0.0 and extremes
  bool nan = false, infinite = false;
  double scale = 1;

  static Numbers any(Random& random, bool nan, bool infinite) {
    Numbers numbers;
    numbers.grid = random.pick<int64_t>({0, 1, 2, 4, 13});
    numbers.special = random.pick({0.0, 0.0, 0.05, 0.5});
    numbers.nan = nan;
    numbers.infinite = infinite;
    return numbers;
  }

  double draw(Random& random) const {
    if (special > 0 && random.chance(special)) {
      if (nan && random.chance(0.4)) return kNan;
      if (infinite && random.chance(0.6)) return random.chance(0.5) ? kInf : -kInf;
      return -0.0;
    }
    return scale * (grid ? static_cast<double>(random.integer(0, grid)) : 2 * random.uniform() - 1);
  }
};

inline std::size_t size_of(morlfast::Dtype dtype) {
  return morlfast::with_dtype(dtype, [](auto zero) { return sizeof(zero); });
}

inline double read(morlfast::Dtype dtype, const void* address) {
  return morlfast::with_dtype(dtype, [&](auto value) {
    std::memcpy(&value, address, sizeof(value));
    return static_cast<double>(value);
  });
}

inline void write(morlfast::Dtype dtype, void* address, double value) {
  morlfast::with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    T element;
    if constexpr (std::is_integral_v<T>)
      element = std::isfinite(value) ? static_cast<T>(static_cast<int64_t>(value)) : T{1};
    else if constexpr (std::is_same_v<T, double>)
      element = value;
    else
      element = static_cast<T>(static_cast<float>(value));
    std::memcpy(address, &element, sizeof(element));
  });
}

/// An array of any shape with random strides (gaps, transposed, reversed, repeated) on a heap block that starts at its
/// first element and ends with its last.
class Array {
 public:
  Array(Random& random, morlfast::Dtype dtype, std::vector<int64_t> sizes, bool contiguous = false)
      : dtype_(dtype), sizes_(std::move(sizes)), strides_(sizes_.size()) {
    std::vector<std::size_t> order(sizes_.size());
    for (std::size_t d = 0; d < order.size(); ++d) order[d] = d;
    if (!contiguous && random.chance(0.3)) std::shuffle(order.begin(), order.end(), std::mt19937_64(random.bits()));
    int64_t stride = 1, first = 0, last = 0;
    for (std::size_t place = order.size(); place-- > 0;) {
      const std::size_t d = order[place];
      const bool repeated = !contiguous && random.chance(0.1);
      const bool reversed = !contiguous && random.chance(0.1);
      if (!contiguous && random.chance(0.2)) stride += random.integer(1, 3);
      strides_[d] = repeated ? 0 : reversed ? -stride : stride;
      if (sizes_[d] > 0) (reversed ? first : last) += strides_[d] * (sizes_[d] - 1);
      stride *= std::max<int64_t>(1, sizes_[d]);
    }
    const bool empty = std::find(sizes_.begin(), sizes_.end(), 0) != sizes_.end();
    elements_ = empty ? 0 : last - first + 1;
    bytes_.reset(new std::byte[elements_ * size_of(dtype)]);
    data_ = elements_ ? bytes_.get() - first * static_cast<int64_t>(size_of(dtype)) : nullptr;
  }

  void fill(Random& random, const Numbers& numbers) {
    for (int64_t i = 0; i < elements_; ++i) write(dtype_, bytes_.get() + i * size_of(dtype_), numbers.draw(random));
  }

  const void* data() const { return data_; }
  void* data() { return data_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  morlfast::Dtype dtype() const { return dtype_; }
  const std::vector<int64_t>& sizes() const { return sizes_; }
  const std::vector<int64_t>& strides() const { return strides_; }
  int64_t size(int64_t d) const { return sizes_[d < 0 ? d + sizes_.size() : d]; }
  int64_t stride(int64_t d) const { return strides_[d < 0 ? d + strides_.size() : d]; }

  /// Element at (flat index over the leading dimensions, then the given trailing indices).
  double at(int64_t leading, std::initializer_list<int64_t> trailing) const {
    return read(dtype_, data_ + offset(leading, trailing));
  }
  void set(int64_t leading, std::initializer_list<int64_t> trailing, double value) {
    write(dtype_, data_ + offset(leading, trailing), value);
  }

  morlfast::BatchLayout layout(int trailing) const {
    return {static_cast<int>(sizes_.size()) - trailing, sizes_.data(), strides_.data()};
  }
  morlfast::MatrixView matrix() const { return {data_, dtype_, strides_[0], sizes_.size() == 2 ? strides_[1] : 0}; }

 private:
  int64_t offset(int64_t leading, std::initializer_list<int64_t> trailing) const {
    const auto dims = static_cast<int64_t>(sizes_.size() - trailing.size());
    int64_t result = 0;
    for (int64_t d = dims - 1; d >= 0; --d) {
      result += leading % sizes_[d] * strides_[d];
      leading /= sizes_[d];
    }
    for (std::size_t k = 0; k < trailing.size(); ++k) result += trailing.begin()[k] * strides_[dims + k];
    return result * static_cast<int64_t>(size_of(dtype_));
  }

  morlfast::Dtype dtype_;
  std::vector<int64_t> sizes_, strides_;
  int64_t elements_ = 0;
  std::unique_ptr<std::byte[]> bytes_;
  std::byte* data_ = nullptr;
};

/// Product of sizes.
inline int64_t product(const std::vector<int64_t>& sizes) {
  int64_t result = 1;
  for (int64_t size : sizes) result *= size;
  return result;
}

/// 0 to 3 batch dimensions with few fronts, sometimes none.
inline std::vector<int64_t> batch_shape(Random& random) {
  std::vector<int64_t> sizes(random.integer(0, 3));
  for (int64_t& size : sizes) size = random.chance(0.05) ? 0 : random.integer(1, 3);
  return sizes;
}

void check_elements();
void check_hypervolume(Random& random);
void check_hypervolume_arguments();
void check_hypervolume_contributions(Random& random);
void check_hypervolume_improvement(Random& random);
void check_hypervolume_subset(Random& random);
void check_box_decomposition(Random& random);
void check_many_objectives(Random& random);
void check_row_types(Random& random);
void check_row_types();
void check_best_points(Random& random);
void check_best_points_arguments();
void check_non_dominated_sort(Random& random);
void check_is_non_dominated(Random& random);
void check_dominance_counts(Random& random);
void check_is_dominated_by(Random& random);
void check_pareto_arguments();
void check_group_advantages(Random& random);
void check_group_rows(Random& random);
void check_advantage_arguments();
void check_groups();
void check_linear_scan(Random& random);
void check_gae(Random& random);
void check_whiten(Random& random);
void check_select_rollouts(Random& random);
void check_select_tokens(Random& random);
void check_token_histogram(Random& random);
void check_token_logprobs(Random& random);

}  // namespace driver
