// best_points and farthest_query against every pair of a query and a point.
#include <algorithm>

#include "driver.hpp"
#include "morlfast/indicators.hpp"

namespace driver {
namespace {

using morlfast::Best;

/// NaN where a term is.
double value_of(Best best, int64_t m, const auto& q, const auto& p) {
  double value = 0;
  for (int64_t k = 0; k < m; ++k) {
    double term = 0;
    switch (best) {
      case Best::dot_product:
      case Best::chebyshev:
        term = q(k) * p(k);
        break;
      case Best::squared_distance:
        term = (q(k) - p(k)) * (q(k) - p(k));
        break;
      case Best::squared_excess:
        term = p(k) - q(k) <= 0 ? 0 : (p(k) - q(k)) * (p(k) - q(k));
        break;
      case Best::largest_difference:
        term = p(k) - q(k);
        break;
      case Best::largest_quotient:
        term = p(k) / q(k);
        break;
    }
    const bool sum = best == Best::dot_product || best == Best::squared_distance || best == Best::squared_excess;
    if (std::isnan(term) || std::isnan(value)) return kNan;
    value = k == 0 ? term : sum ? value + term : std::max(value, term);
  }
  return value;
}

template <class T>
void check(Random& random) {
  const int64_t m = random.integer(1, random.chance(0.2) ? 20 : 9);
  const int64_t n = random.integer(0, random.pick<int64_t>({1, 9, 70, 3000 / m}));
  const int64_t count = random.integer(0, random.pick<int64_t>({1, 9, 40, random.chance(0.02) ? 5000 : 70}));
  std::vector<int64_t> shape = n * count > 20000 ? std::vector<int64_t>{} : batch_shape(random);
  const int64_t batch = product(shape);
  const auto dtype = sizeof(T) == 4 ? morlfast::Dtype::float32 : morlfast::Dtype::float64;
  const auto rows = [&](int64_t size) {
    std::vector<int64_t> sizes = shape;
    sizes.push_back(size);
    sizes.push_back(m);
    Array array(random, dtype, sizes);
    array.fill(random, Numbers::any(random, random.chance(0.3), random.chance(0.3)));
    return array;
  };
  const Array queries = rows(count), points = rows(n);
  const auto view = [&](const Array& array, int64_t size) {
    return morlfast::PointsView<T>{array.as<T>(), array.layout(2), batch, size, m, array.stride(-2), array.stride(-1)};
  };
  const auto best = static_cast<Best>(random.integer(0, 5));
  const bool with_lengths = random.chance(0.4), with_rows = random.chance(0.5);
  std::vector<int64_t> lengths(batch), query_lengths(batch), row(batch * count);
  for (int64_t& length : lengths) length = random.integer(0, n);
  for (int64_t& length : query_lengths) length = random.integer(0, count);
  const std::unique_ptr<T[]> values(new T[batch * count]), farthest(new T[batch]);
  const int64_t* length_of = with_lengths ? lengths.data() : nullptr;
  morlfast::best_points(view(queries, count), view(points, n), best, length_of, values.get(),
                        with_rows ? row.data() : nullptr);
  const bool has_farthest = best != Best::dot_product;
  if (has_farthest)
    morlfast::farthest_query(view(queries, count), view(points, n), best, length_of,
                             with_lengths ? query_lengths.data() : nullptr, farthest.get());
  const double sign = best == Best::dot_product ? -1 : 1;
  for (int64_t b = 0; b < batch; ++b) {
    double largest = -kInf;
    for (int64_t i = 0; i < count; ++i) {
      const auto q = [&](int64_t k) { return queries.at(b, {i, k}) + 0.0; };
      double least = kInf;
      int64_t at = -1;
      bool nan = false;
      for (int64_t k = 0; k < m; ++k) nan |= std::isnan(q(k));
      for (int64_t j = 0; j < (with_lengths ? lengths[b] : n); ++j) {
        const double value = sign * value_of(best, m, q, [&](int64_t k) { return points.at(b, {j, k}); });
        if (value < least || (value == least && at < 0)) {
          least = value;
          at = j;
        }
      }
      const T want = static_cast<T>(nan ? kNan : sign * least);
      expect(values[b * count + i] == want || (nan && std::isnan(values[b * count + i])),
             "value of query " + std::to_string(i) + ": " + std::to_string(values[b * count + i]) + ", expected " +
                 std::to_string(want));
      if (with_rows)
        expect(row[b * count + i] == (nan ? -1 : at), "row of query " + std::to_string(i) + ": " +
                                                          std::to_string(row[b * count + i]) + ", expected " +
                                                          std::to_string(at));
      if (i < (with_lengths ? query_lengths[b] : count))
        largest = nan || std::isnan(largest) ? kNan : std::max(largest, least);
    }
    if (has_farthest)
      expect(farthest[b] == static_cast<T>(largest) || (std::isnan(largest) && std::isnan(farthest[b])),
             "farthest query: " + std::to_string(farthest[b]) + ", expected " + std::to_string(largest));
  }
}

}  // namespace

void check_best_points(Random& random) { random.chance(0.5) ? check<float>(random) : check<double>(random); }

void check_best_points_arguments() {
  const double point = 1;
  const morlfast::PointsView<double> one{&point, {}, 1, 1, 1}, none{nullptr, {}, 1, 0, 0};
  double value = 0;
  for (const int64_t length : {int64_t{-1}, int64_t{2}}) {
    expect_refused([&] { morlfast::best_points(one, one, Best::chebyshev, &length, &value, nullptr); }, "lengths");
    expect_refused([&] { morlfast::farthest_query(one, one, Best::chebyshev, nullptr, &length, &value); }, "lengths");
  }
  expect_refused([&] { morlfast::best_points(none, none, Best::chebyshev, nullptr, &value, nullptr); }, "objective");
  expect_refused([&] { morlfast::farthest_query(none, none, Best::chebyshev, nullptr, nullptr, &value); }, "objective");
  expect_refused([&] { morlfast::farthest_query(one, one, Best::dot_product, nullptr, nullptr, &value); }, "kind");
}

}  // namespace driver
