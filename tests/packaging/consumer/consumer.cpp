// A trainer's own extension that calls morlfast's C++ library.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <morlfast/advantages.hpp>
#include <morlfast/hypervolume.hpp>
#include <morlfast/indicators.hpp>
#include <morlfast/pareto.hpp>
#include <morlfast/returns.hpp>
#include <morlfast/rollouts.hpp>
#include <numeric>
#include <utility>
#include <vector>

namespace {

double hypervolume(const std::vector<std::vector<double>>& front, const std::vector<double>& ref_point) {
  std::vector<double> points;
  for (const auto& point : front) points.insert(points.end(), point.begin(), point.end());
  return morlfast::hypervolume(points.data(), static_cast<int64_t>(front.size()),
                               static_cast<int64_t>(ref_point.size()), ref_point.data(), /*maximize=*/false);
}

/// Sum of the volumes of many fronts of one point at (0.5) below (1).
double batch(int64_t fronts) {
  const std::vector<double> points(fronts, 0.5), ref_points(fronts, 1.0);
  std::vector<double> values(fronts);
  const int64_t stride = 1;
  const morlfast::BatchLayout layout{1, &fronts, &stride};
  const morlfast::Fronts<double, double> all{
      .points = {points.data(), layout, fronts, 1, 1, 1, 1},
      .ref_point = {ref_points.data(), layout, 1},
  };
  morlfast::hypervolume(all, {}, values.data(), static_cast<double*>(nullptr));
  return std::accumulate(values.begin(), values.end(), 0.0);
}

using Points = std::vector<std::vector<double>>;

morlfast::PointsView<double> view(const Points& points, std::vector<double>& values) {
  for (const auto& point : points) values.insert(values.end(), point.begin(), point.end());
  const auto n = static_cast<int64_t>(points.size()), m = static_cast<int64_t>(points[0].size());
  return {values.data(), {}, 1, n, m, m, 1};
}

std::vector<int32_t> non_dominated_sort(const Points& points, const std::vector<double>& violations,
                                        int64_t stop_after) {
  std::vector<double> values;
  std::vector<int32_t> ranks(points.size());
  const morlfast::PointSets<double> sets{.points = view(points, values)};
  morlfast::non_dominated_sort(sets, violations.empty() ? nullptr : violations.data(), stop_after, ranks.data());
  return ranks;
}

std::vector<int32_t> dominance_counts(const Points& points) {
  std::vector<double> values;
  std::vector<int32_t> counts(points.size());
  morlfast::dominance_counts(morlfast::PointSets<double>{.points = view(points, values)}, counts.data());
  return counts;
}

/// How many points of a set nothing in it dominates, and how many a copy of the set dominates weakly.
std::pair<int64_t, int64_t> masks(const Points& points) {
  std::vector<double> values;
  const morlfast::PointSets<double> sets{.points = view(points, values)};
  const std::unique_ptr<bool[]> first(new bool[points.size()]), dominated(new bool[points.size()]);
  morlfast::is_non_dominated(sets, /*deduplicate=*/true, first.get());
  morlfast::is_dominated_by(sets.points, sets, /*weakly=*/true, dominated.get());
  return {std::count(first.get(), first.get() + points.size(), true),
          std::count(dominated.get(), dominated.get() + points.size(), true)};
}

std::vector<int64_t> best_points(const Points& weights, const Points& points) {
  std::vector<double> weight_values, point_values, values(weights.size());
  std::vector<int64_t> rows(weights.size());
  morlfast::best_points(view(weights, weight_values), view(points, point_values), morlfast::Best::dot_product, nullptr,
                        values.data(), rows.data());
  return rows;
}

morlfast::MatrixView matrix(const std::vector<double>& values, int64_t columns) {
  return {values.data(), morlfast::Dtype::float64, columns, 1};
}

/// GRPO of groups of one size, at the tokens of a mask (n, tokens).
std::vector<double> group_advantages(const std::vector<double>& rewards, int64_t group_size,
                                     const std::vector<double>& mask) {
  const auto n = static_cast<int64_t>(rewards.size()), tokens = static_cast<int64_t>(mask.size()) / n;
  std::vector<double> advantages(mask.size());
  morlfast::group_advantages(matrix(rewards, 1), {}, 1, morlfast::Groups::contiguous(n, group_size), {}, nullptr,
                             matrix(mask, tokens), tokens, advantages.data());
  return advantages;
}

/// Sums from each value to the last.
std::vector<double> reward_to_go(const std::vector<double>& rewards) {
  const auto tokens = static_cast<int64_t>(rewards.size());
  const double one = 1;
  std::vector<double> returns(rewards.size());
  morlfast::linear_scan(matrix(rewards, tokens), {&one, morlfast::Dtype::float64, 0, 0}, {}, {}, 1, tokens,
                        /*reverse=*/true, /*carry=*/false, returns.data());
  return returns;
}

/// k of each group of rewards with the largest variance.
std::vector<int> select_rollouts(const std::vector<double>& rewards, int64_t group_size, int64_t k) {
  const auto n = static_cast<int64_t>(rewards.size());
  const std::unique_ptr<bool[]> selected(new bool[rewards.size()]);
  morlfast::select_rollouts(matrix(rewards, 1), k, morlfast::Selection::max_variance, nullptr,
                            morlfast::Groups::contiguous(n, group_size), selected.get());
  return {selected.get(), selected.get() + n};
}

}  // namespace

PYBIND11_MODULE(consumer, module) {
  module.def("hypervolume", &hypervolume);
  module.def("batch", &batch);
  module.def("non_dominated_sort", &non_dominated_sort);
  module.def("dominance_counts", &dominance_counts);
  module.def("masks", &masks);
  module.def("best_points", &best_points);
  module.def("group_advantages", &group_advantages);
  module.def("reward_to_go", &reward_to_go);
  module.def("select_rollouts", &select_rollouts);
}
