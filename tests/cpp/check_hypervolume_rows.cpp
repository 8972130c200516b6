// The sweep of local upper bounds keeps rows of 8, 16 or 32 bits in 4 to 64 lanes, by the numbers of points and of
// objectives. All of them against the sweep of three objectives, which has no such rows.
#include <algorithm>
#include <numeric>
#include <tuple>

#include "driver.hpp"
#include "morlfast/hypervolume.hpp"

namespace driver {
namespace {

using morlfast::Boxes;
using morlfast::Fronts;
using morlfast::Part;

/// `n` points that do not dominate one another, in three objectives, and the same with columns of zeros between them:
/// volumes are `factor` times as large. All numbers are integers, and so are the results.
class Padded {
 public:
  Padded(Random& random, int64_t n, int64_t m) : n_(n), m_(m), three_(n * 3), ref_(m, 1) {
    std::vector<int64_t> places(n);
    std::iota(places.begin(), places.end(), 0);
    std::shuffle(places.begin(), places.end(), std::mt19937_64(random.bits()));
    const int64_t heights = random.pick<int64_t>({0, 1, 20});
    for (int64_t i = 0; i < n; ++i) {
      three_[i * 3] = static_cast<double>(places[i]);
      three_[i * 3 + 1] = static_cast<double>(random.integer(0, heights));
      three_[i * 3 + 2] = static_cast<double>(n - places[i]);
    }
    three_ref_[0] = three_ref_[2] = static_cast<double>(n) + 1;
    three_ref_[1] = static_cast<double>(heights) + 1;
    std::vector<int64_t> columns(m);
    std::iota(columns.begin(), columns.end(), 0);
    std::sample(columns.begin(), columns.end(), columns_, 3, std::mt19937_64(random.bits()));
    if (n > kManyPoints) columns_[2] = m - 1;  // swept so, each point leaves few bounds of those before it
    for (int k = 0; k < 3; ++k) ref_[columns_[k]] = three_ref_[k];
    for (int64_t k = 0; k < m; ++k)
      if (std::find(columns_, columns_ + 3, k) == columns_ + 3 && factor_ < 4) factor_ *= ref_[k] = 2;
    points_ = padded(three_);
    if (n > kManyPoints) batch_ = 8;
    lengths_.resize(batch_);
    lengths_[0] = n;
    if (m <= 5 && n <= 400 && random.chance(0.3)) max_memory_ = 20000;
  }

  void check(Random& random) const {
    check_value(random);
    check_improvement(random);
    check_boxes();
    if (n_ > kManyPoints) return;  // one sweep or more for each point
    check_contributions(random);
    check_subset();
  }

 private:
  static constexpr int64_t kManyPoints = 1000, kSame = 0;

  std::vector<double> padded(const std::vector<double>& three) const {
    const auto rows = static_cast<int64_t>(three.size()) / 3;
    std::vector<double> points(rows * m_);
    for (int64_t i = 0; i < rows; ++i)
      for (int k = 0; k < 3; ++k) points[i * m_ + columns_[k]] = three[i * 3 + k];
    return points;
  }

  /// Large fronts come with empty ones: so many are not cut into regions.
  Fronts<double, double> fronts() const {
    const morlfast::BatchLayout layout{1, &batch_, &kSame};
    Fronts<double, double> fronts{{points_.data(), layout, batch_, n_, m_, m_, 1}, {ref_.data(), layout, 1}};
    fronts.lengths = lengths_.data();
    fronts.max_memory = max_memory_;
    return fronts;
  }
  Fronts<double, double> three() const { return {{three_.data(), {}, 1, n_, 3, 3, 1}, {three_ref_, {}, 1}}; }

  void expect_equal(double got, double want, const std::string& what,
                    const std::source_location where = std::source_location::current()) const {
    expect(got == want,
           what + " of " + std::to_string(n_) + " points of " + std::to_string(m_) +
               " objectives: " + std::to_string(got) + ", expected " + std::to_string(want),
           where);
  }

  void check_value(Random& random) const {
    double want = 0, sum = 0;
    std::vector<double> values(batch_), three_gradient(n_ * 3), gradient(batch_ * n_ * m_);
    morlfast::hypervolume(three(), {}, &want, three_gradient.data());
    want *= factor_;
    morlfast::hypervolume(fronts(), {}, values.data(), gradient.data());
    expect_equal(values[0], want, "value with its gradient");
    for (int64_t i = 0; i < n_; ++i)
      for (int k = 0; k < 3; ++k)
        expect_equal(gradient[i * m_ + columns_[k]], factor_ * three_gradient[i * 3 + k], "gradient");
    for (int64_t k = 0; k < m_; ++k) {
      double slopes = 0;
      for (int64_t i = 0; i < n_; ++i) slopes -= gradient[i * m_ + k] * (ref_[k] - points_[i * m_ + k]);
      expect_equal(slopes, want, "slopes along " + std::to_string(k));
    }
    const int64_t parts = random.integer(1, 4);
    for (int64_t part = 0; part < parts; ++part) {
      morlfast::hypervolume(fronts(), Part{part, parts}, values.data(), static_cast<double*>(nullptr));
      sum += values[0];
    }
    expect_equal(sum, want, "sum of " + std::to_string(parts) + " parts");
  }

  void check_improvement(Random& random) const {
    const int64_t sets = random.pick<int64_t>({2, 9}), size = random.pick<int64_t>({1, sets == 2 ? 2 : 1});
    std::vector<double> candidates(sets * size * 3), improvement(batch_ * sets);
    for (double& z : candidates) z = static_cast<double>(random.integer(-3, random.pick<int64_t>({2, n_})));
    const std::vector<double> rows = padded(candidates);
    morlfast::hypervolume_improvement({rows.data(), {1, &batch_, &kSame}, sets, size, size * m_, m_, 1}, fronts(),
                                      improvement.data());
    for (int64_t s = 0; s < sets; ++s) {
      std::vector<double> both = three_;
      both.insert(both.end(), candidates.begin() + s * size * 3, candidates.begin() + (s + 1) * size * 3);
      const double want = morlfast::hypervolume(both.data(), n_ + size, 3, three_ref_, false) -
                          morlfast::hypervolume(three_.data(), n_, 3, three_ref_, false);
      expect_equal(improvement[s], factor_ * want, "improvement " + std::to_string(s));
    }
  }

  void check_boxes() const {
    Fronts<double, double> all = fronts();
    all.max_memory = morlfast::kDefaultMaxMemory;
    double want = morlfast::hypervolume(three_.data(), n_, 3, three_ref_, false) * factor_;
    for (const bool dominated : {true, false}) {
      const std::vector<Boxes> boxes = morlfast::box_decomposition(all, dominated);
      double sum = 0, whole = 1;
      for (std::size_t first = 0; first < boxes[0].lower.size(); first += m_) {
        double volume = 1;
        for (int64_t k = 0; k < m_; ++k)
          volume *= std::max(0.0, boxes[0].upper[first + k] - std::max(boxes[0].lower[first + k], 0.0));
        sum += volume;
      }
      for (const double side : ref_) whole *= side;
      expect_equal(sum, dominated ? want : whole - want, dominated ? "dominated boxes" : "other boxes");
    }
  }

  void check_contributions(Random& random) const {
    const bool ignore_dominated = random.chance(0.5);
    std::vector<double> want(n_), contributions(n_);
    morlfast::hypervolume_contributions(three(), ignore_dominated, want.data());
    morlfast::hypervolume_contributions(fronts(), ignore_dominated, contributions.data());
    for (int64_t i = 0; i < n_; ++i)
      expect_equal(contributions[i], factor_ * want[i], "contribution of row " + std::to_string(i));
  }

  void check_subset() const {
    const int64_t k = std::min<int64_t>(n_, 3);
    std::vector<int64_t> want(k), picks(k);
    morlfast::hypervolume_subset(three(), k, want.data());
    morlfast::hypervolume_subset(fronts(), k, picks.data());
    expect(picks == want, "picks of " + std::to_string(n_) + " points of " + std::to_string(m_) + " objectives");
  }

  int64_t n_, m_;
  std::vector<double> three_;  // (n, 3)
  double three_ref_[3];
  int64_t columns_[3] = {};
  std::vector<double> points_, ref_;  // (n, m), (m)
  double factor_ = 1;
  int64_t batch_ = 1;
  std::vector<int64_t> lengths_;  // of the other fronts 0
  int64_t max_memory_ = morlfast::kDefaultMaxMemory;
};

/// Slice by slice along the last objective down to three objectives: O(n^(m - 2) log n).
double sliced(std::vector<std::vector<double>> points, const std::vector<double>& ref) {
  const int64_t m = static_cast<int64_t>(ref.size());
  if (m == 3) {
    std::vector<double> rows;
    for (const auto& point : points) rows.insert(rows.end(), point.begin(), point.end());
    return morlfast::hypervolume(rows.data(), static_cast<int64_t>(points.size()), 3, ref.data(), false);
  }
  std::sort(points.begin(), points.end(), [](const auto& p, const auto& q) { return p.back() < q.back(); });
  double volume = 0;
  std::vector<std::vector<double>> before;
  for (std::size_t i = 0; i < points.size(); ++i) {
    const double thickness = std::min(i + 1 < points.size() ? points[i + 1].back() : ref.back(), ref.back()) -
                             std::min(points[i].back(), ref.back());
    before.emplace_back(points[i].begin(), points[i].end() - 1);
    if (thickness > 0) volume += thickness * sliced(before, {ref.begin(), ref.end() - 1});
  }
  return volume;
}

/// Integers without structure, whose lists of bounds are long.
void check_cloud(Random& random, int64_t n, int64_t m) {
  const int64_t grid = random.pick<int64_t>({5, 50});
  const bool antichain = random.chance(0.5);
  std::vector<std::vector<double>> points;
  std::vector<double> rows;
  const std::vector<double> ref(m, static_cast<double>(grid));
  for (int64_t i = 0; i < n; ++i) {
    std::vector<double> point(m);
    double sum = 0;
    for (int64_t k = 0; k < m; ++k) sum += point[k] = static_cast<double>(random.integer(0, grid));
    if (antichain) point[0] += static_cast<double>(grid * m) / 2 - sum;
    points.push_back(point);
    rows.insert(rows.end(), point.begin(), point.end());
  }
  Fronts<double, double> fronts{{rows.data(), {}, 1, n, m, m, 1}, {ref.data(), {}, 1}};
  const double want = sliced(points, ref);
  for (const int64_t max_memory : {morlfast::kDefaultMaxMemory, int64_t{20000}}) {
    fronts.max_memory = max_memory;
    double value = 0;
    std::vector<double> gradient(n * m);
    morlfast::hypervolume(fronts, {}, &value, static_cast<double*>(nullptr));
    expect(value == want, "value of a cloud: " + std::to_string(value) + ", expected " + std::to_string(want));
    morlfast::hypervolume(fronts, {}, &value, gradient.data());
    expect(value == want, "value of a cloud with its gradient: " + std::to_string(value));
    for (int64_t k = 0; k < m; ++k) {
      double slopes = 0;
      for (int64_t i = 0; i < n; ++i) {
        expect(gradient[i * m + k] <= 0, "slopes are negative");
        slopes -= gradient[i * m + k] * (ref[k] - points[i][k]);
      }
      expect(slopes == want, "slopes of a cloud along " + std::to_string(k));
    }
  }
}

}  // namespace

void check_row_types(Random& random) {
  if (random.chance(0.98)) return;
  const int64_t m = random.integer(4, random.chance(0.8) ? 18 : morlfast::kMaxHypervolumeObjectives);
  if (random.chance(0.8))
    Padded(random, random.chance(0.5) ? random.integer(250, 257) - m : random.integer(0, 400), m).check(random);
  else
    check_cloud(random, m % 2 ? random.integer(0, 300) : random.integer(0, 40), m % 2 ? 4 : 5);
}

void check_row_types() {
  Random random(0);
  // (n, m) on both sides of where rows grow wider.
  const std::vector<std::pair<int64_t, int64_t>> shapes{
      {251, 4},  {252, 4},  {300, 4},   {250, 5},   {251, 5},   {300, 5},   {246, 9},   {247, 9},
      {300, 9},  {245, 10}, {246, 10},  {300, 10},  {238, 17},  {239, 17},  {300, 17},  {100, 18},
      {237, 18}, {100, 64}, {65531, 4}, {65532, 4}, {65526, 9}, {65527, 9}, {65526, 10}};
  for (const auto& [n, m] : shapes) Padded(random, n, m).check(random);
  for (const int64_t n : {250, 300}) check_cloud(random, n, 4);
  check_cloud(random, 40, 5);
}

}  // namespace driver
