// Runs the CUDA hypervolume on the CPU: cases on stdin, results on stdout, both as words.
//
//   in   threads m fronts n gradient  points (fronts, n, m)  ref (fronts, m)       threads 0: what the
//   library would take out  value (fronts,)  [gradient (fronts, n, m)]  order (K, fronts, n)          one
//   line a case
//
// --skip-barrier L K turns barrier K of every block of the L-th launch into nothing.
#include "../../csrc/cuda/hypervolume.cu"

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

namespace {

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

void print(const std::vector<double>& numbers) {
  for (const double number : numbers) std::printf("%a ", number);
}

void run_case(int threads) {
  using namespace morlfast::cuda;
  const int m = static_cast<int>(next_number());
  const auto fronts = static_cast<std::int64_t>(next_number());
  const auto n = static_cast<std::int64_t>(next_number());
  const bool with_gradient = next_number() != 0;
  const std::vector<double> points = next_numbers(fronts * n * m), ref = next_numbers(fronts * m);

  const std::int64_t permutations = hypervolume_orders(m) * fronts * n;
  std::vector<std::int32_t> order(permutations, kNone), rank(permutations, kNone);
  std::vector<double> value(fronts, NAN), gradient(with_gradient ? fronts * n * m : 0, NAN);
  double* gradient_data = with_gradient ? gradient.data() : nullptr;
  if (threads == 0) {
    std::vector<double> scratch(fronts * hypervolume_scratch(n, m), NAN);
    lexicographic_orders(points.data(), fronts, n, m, hypervolume_orders(m), order.data(), rank.data(), nullptr);
    hypervolume(points.data(), ref.data(), order.data(), rank.data(), fronts, n, m, value.data(), gradient_data,
                scratch.data(), nullptr);
  } else {
    const auto sort = threads == 32 ? lexicographic_orders_in<32> : lexicographic_orders_in<64>;
    const auto measure = threads == 32 ? hypervolume_in<32> : hypervolume_in<64>;
    std::vector<double> scratch(fronts * tiles_of(n, threads), NAN);
    if (m > 1 && n > 0) sort(points.data(), fronts, n, m, hypervolume_orders(m), order.data(), rank.data(), nullptr);
    measure(points.data(), ref.data(), order.data(), rank.data(), fronts, n, m, value.data(), gradient_data,
            scratch.data(), nullptr);
  }
  print(value);
  print(gradient);
  for (const std::int32_t row : order) std::printf("%d ", row);
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == "--skip-barrier")
    cuda_on_cpu::skipped = {std::atoi(argv[2]), std::atoi(argv[3])};
  for (int threads; std::cin >> threads;) run_case(threads);
}
