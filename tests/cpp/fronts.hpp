// Random arguments of the hypervolume family, and the same fronts as the brute force reads them.
#pragma once
#include <cmath>
#include <string>
#include <vector>

#include "driver.hpp"
#include "grid.hpp"
#include "morlfast/hypervolume.hpp"

namespace driver {

inline std::vector<int64_t> appended(std::vector<int64_t> sizes, std::initializer_list<int64_t> trailing) {
  sizes.insert(sizes.end(), trailing);
  return sizes;
}

inline bool any_nan(const Point& point) {
  return std::any_of(point.begin(), point.end(), [](double x) { return std::isnan(x); });
}

/// Few enough points for `Grid`, in any number type, layout, batch shape and with any options.
template <class T, class R>
struct RandomFronts {
  /// `others`: points that the grid takes in besides, for each front.
  RandomFronts(Random& random, int64_t others)
      : m(random.integer(1, 7)),
        numbers(any_numbers(random)),
        n(any_n(random, others)),
        shape(batch_shape(random)),
        batch(product(shape)),
        points(random, dtype<T>(), appended(shape, {n, m})),
        ref(random, dtype<R>(), appended(shape, {m})),
        maximize(random.chance(0.5)),
        with_lengths(random.chance(0.5)),
        nan(random.chance(0.3) ? morlfast::NanPolicy::raise : morlfast::NanPolicy::worst),
        max_memory(random.pick<int64_t>({morlfast::kDefaultMaxMemory, 20000, 2000, 1, 0, -1})),
        exact(numbers.grid > 0 && numbers.scale == 1),
        fronts(batch) {
    points.fill(random, numbers);
    Numbers fewer = numbers;
    fewer.special /= 4;
    ref.fill(random, fewer);
    for (int64_t b = 0; b < batch; ++b) {
      lengths.push_back(random.integer(0, n));
      fronts[b].ref = minimized([&](int64_t k) { return ref.at(b, {k}); });
      fronts[b].ref_is_nan = any_nan(fronts[b].ref);
      has_nan |= fronts[b].ref_is_nan;
      for (int64_t i = 0; i < length(b); ++i) add(fronts[b], [&](int64_t k) { return points.at(b, {i, k}); });
    }
    lengths.shrink_to_fit();
  }

  int64_t length(int64_t b) const { return with_lengths ? lengths[b] : n; }

  morlfast::Fronts<T, R> view() const {
    return {{points.template as<T>(), points.layout(2), batch, n, m, points.stride(-2), points.stride(-1)},
            {ref.template as<R>(), ref.layout(1), ref.stride(-1)},
            with_lengths ? lengths.data() : nullptr,
            maximize,
            nan,
            max_memory};
  }

  /// Adds the point of the coordinates at(0), at(1), ...
  template <class At>
  void add(Front& front, const At& at) {
    front.points.push_back(minimized(at));
    if (!any_nan(front.points.back())) return;
    has_nan = true;
    front.points.back().assign(m, kInf);
  }

  /// `call`s, unless a NaN has to be refused; returns whether there is a result.
  template <class F>
  bool succeeds(const F& call) const {
    if (nan == morlfast::NanPolicy::raise && has_nan) {
      expect_refused(call, "NaN");
      return false;
    }
    call();
    return true;
  }

  /// Sums of integers are exact; others are compared with what may cancel in them, `size`.
  void expect_close(double got, double want, const std::string& what, double size = 1,
                    const std::source_location where = std::source_location::current()) const {
    const double tolerance = exact ? 0 : sizeof(T) == 4 ? 1e-6 : 1e-12;
    expect(close(got, static_cast<T>(want), tolerance, size),
           what + ": " + std::to_string(got) + ", expected " + std::to_string(want), where);
  }

  int64_t m;
  Numbers numbers;
  int64_t n;
  std::vector<int64_t> shape;
  int64_t batch;
  Array points, ref;
  bool maximize, with_lengths;
  morlfast::NanPolicy nan;
  int64_t max_memory;
  bool exact, has_nan = false;
  std::vector<int64_t> lengths;
  std::vector<Front> fronts;

 private:
  template <class At>
  Point minimized(const At& at) const {
    Point point;
    for (int64_t k = 0; k < m; ++k) point.push_back((maximize ? -1 : 1) * at(k) + 0.0);
    return point;
  }

  template <class Float>
  static morlfast::Dtype dtype() {
    return sizeof(Float) == 4 ? morlfast::Dtype::float32 : morlfast::Dtype::float64;
  }

  static Numbers any_numbers(Random& random) {
    Numbers numbers = Numbers::any(random, random.chance(0.3), random.chance(0.3));
    // From four objectives on volumes overflow.
    if (random.chance(0.1)) numbers.scale = sizeof(T) == 4 || sizeof(R) == 4 ? 1e30 : 1e100;
    return numbers;
  }

  int64_t any_n(Random& random, int64_t others) const {
    if (random.chance(0.1)) return random.integer(0, 1);
    const auto edges = static_cast<int64_t>(std::pow(20000.0, 1.0 / static_cast<double>(m)));
    const bool fits = numbers.grid > 0 && numbers.grid + 4 <= edges;
    return random.integer(0, std::max<int64_t>(1, std::min<int64_t>(40, fits ? 40 : edges - 1) - others));
  }
};

}  // namespace driver
