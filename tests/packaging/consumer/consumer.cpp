// A trainer's own extension that calls morlfast's C++ library.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <morlfast/hypervolume.hpp>
#include <numeric>
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

}  // namespace

PYBIND11_MODULE(consumer, module) {
  module.def("hypervolume", &hypervolume);
  module.def("batch", &batch);
}
