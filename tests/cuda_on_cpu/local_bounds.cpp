// Runs the CUDA local bounds on the CPU: cases on stdin, results on stdout, both as words.
//
//   in   what near m fronts n tasks first_own cuts part parts max_memory  points (fronts, n, m)  ref (fronts, m)
//        counts (fronts, n)  low (fronts, tasks, m)
//          what: volume, gradient, exclusive, boxes-dominated, boxes-rest, dominated-rows, orders
//          near: words of a list in shared memory; 0: these, and the cuts, are the library's
//          first_own: the corners `low` are rows from there on and `low` is not read; -1: they are no rows
//   out  volume    value (fronts,)
//        gradient  value (fronts,)  gradient (fronts, n, m)
//        exclusive volume (fronts, tasks)
//        boxes-*   counts (fronts,) twice  lower (fronts, K, m)  upper (fronts, K, m)  where K is the largest count
//        dominated-rows  (fronts, n)
//        orders    (m, fronts, n)
//        one line a case
//
// --skip-syncwarp L K turns the K-th __syncwarp() of every warp of the L-th launch into nothing.
#include "../../csrc/cuda/hypervolume.cu"
//
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "../../csrc/cuda/local_bounds.cu"

namespace {

using namespace morlfast::cuda;

double next_number() {
  std::string word;
  std::cin >> word;
  return std::strtod(word.c_str(), nullptr);
}

std::vector<double> next_numbers(std::int64_t count) {
  std::vector<double> numbers(count);
  for (double& number : numbers) number = next_number();
  return numbers;
}

template <class T>
void print(const std::vector<T>& numbers) {
  for (const T number : numbers) std::printf("%a ", static_cast<double>(number));
}

void run_case(const std::string& what) {
  const int near = static_cast<int>(next_number()), m = static_cast<int>(next_number());
  const auto fronts = static_cast<std::int64_t>(next_number()), n = static_cast<std::int64_t>(next_number());
  const auto tasks = static_cast<std::int64_t>(next_number());
  const int first_own = static_cast<int>(next_number()), cuts = static_cast<int>(next_number());
  const Part part{static_cast<int>(next_number()), static_cast<int>(next_number())};
  const auto max_memory = static_cast<std::int64_t>(next_number());
  const std::vector<double> points = next_numbers(fronts * n * m), ref = next_numbers(fronts * m);
  std::vector<std::uint8_t> counts;
  for (const double each : next_numbers(fronts * n)) counts.push_back(each != 0);
  std::vector<double> low = next_numbers(first_own < 0 ? fronts * tasks * m : 0);

  std::vector<std::int32_t> order(m * fronts * n, kNone), rank(m * fronts * n, kNone);
  lexicographic_orders(points.data(), fronts, n, m, m, order.data(), rank.data(), nullptr);
  const Fronts given{fronts, n, m, points.data(), ref.data(), order.data(), rank.data(), counts.data()};

  std::vector<std::int32_t> low_rank(m * fronts * tasks, 0);
  low.resize(fronts * tasks * m);
  for (std::int64_t front = 0; front < fronts; ++front)
    for (std::int64_t j = 0; j < tasks; ++j)
      for (int k = 0; k < m; ++k) {
        double& z = low[(front * tasks + j) * m + k];
        std::int32_t& least = low_rank[(k * fronts + front) * tasks + j];
        if (first_own < 0) {
          for (std::int64_t row = 0; row < n; ++row) least += points[(front * n + row) * m + k] <= z;
        } else {
          z = points[(front * n + first_own + j) * m + k];
          least = rank[(k * fronts + front) * n + first_own + j] + 1;
        }
      }

  std::vector<double> value(fronts, NAN), gradient(what == "gradient" ? fronts * n * m : 0, NAN);
  double* gradient_data = what == "gradient" ? gradient.data() : nullptr;
  // Garbage in all scratch.
  const auto scratch = [](std::int64_t bytes) { return std::vector<char>(bytes, -1); };
  if (what == "volume" || what == "gradient") {
    if (near == 0) {
      auto bytes = scratch(dominated_volume_scratch(given, gradient_data != nullptr, max_memory, part));
      dominated_volume(given, max_memory, part, value.data(), gradient_data, bytes.data(), nullptr);
    } else {
      const Plan plan = plan_for(given, 1, cuts, gradient_data != nullptr, max_memory, part, near);
      auto bytes = scratch(plan.bytes);
      dominated_volume_in(given, plan, part, value.data(), gradient_data, bytes.data(), nullptr);
    }
    print(value);
    print(gradient);
  } else if (what == "exclusive") {
    std::vector<double> volume(fronts * tasks, NAN);
    if (near == 0) {
      auto bytes = scratch(exclusive_volume_scratch(given, tasks, max_memory));
      exclusive_volume(given, low.data(), low_rank.data(), tasks, first_own, max_memory, volume.data(), bytes.data(),
                       nullptr);
    } else {
      const Plan plan = plan_for(given, tasks, cuts, false, max_memory, Part{}, near);
      auto bytes = scratch(plan.bytes);
      exclusive_volume_in(given, plan, low.data(), low_rank.data(), tasks, first_own, volume.data(), bytes.data(),
                          nullptr);
    }
    print(volume);
  } else if (what == "boxes-dominated" || what == "boxes-rest") {
    const bool dominated = what == "boxes-dominated";
    std::vector<std::int64_t> found(fronts, -1), again(fronts, -1);
    const Plan plan = plan_for(given, 1, 0, false, max_memory, Part{}, near == 0 ? kNearWords : near);
    auto bytes = scratch(plan.bytes);
    const auto decompose = [&](std::int64_t most, std::int64_t* counted, double* lower, double* upper) {
      if (near == 0)
        boxes(given, dominated, max_memory, most, counted, lower, upper, bytes.data(), nullptr);
      else
        boxes_in(given, plan, dominated, most, counted, lower, upper, bytes.data(), nullptr);
    };
    decompose(0, found.data(), nullptr, nullptr);
    const std::int64_t most = *std::max_element(found.begin(), found.end());
    std::vector<double> lower(fronts * most * m, NAN), upper(fronts * most * m, NAN);
    decompose(most, again.data(), lower.data(), upper.data());
    print(found);
    print(again);
    print(lower);
    print(upper);
  } else if (what == "dominated-rows") {
    std::unique_ptr<bool[]> dominated(new bool[fronts * n]);
    dominated_rows(points.data(), fronts, n, m, dominated.get(), nullptr);
    print(std::vector<int>(dominated.get(), dominated.get() + fronts * n));
  } else if (what == "orders") {
    print(order);
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == "--skip-syncwarp")
    cuda_on_cpu::skipped_in_warp = {std::atoi(argv[2]), std::atoi(argv[3])};
  for (std::string what; std::cin >> what;) run_case(what);
}
