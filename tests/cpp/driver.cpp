// Calls every function of the C++ core with random and adversarial input and compares it with brute force; built with
// sanitizers (CMakeLists.txt).
//
//   driver                            the fixed checks and 1500 random cases
//   driver --fuzz SECONDS --seed N    random cases, N, N + 1, ..., until the time is over
//   driver --cases 1 --seed N         case N again
#include "driver.hpp"

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string_view>

extern "C" const char* __asan_default_options() { return "abort_on_error=1"; }
extern "C" const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }

namespace driver {
namespace {

uint64_t current_case = 0;
const char* current_check = "";

void name_case() {
  std::fprintf(stderr, "in %s; again with: driver --cases 1 --seed %llu\n", current_check,
               static_cast<unsigned long long>(current_case));
}

void run_case(uint64_t seed) {
  current_case = seed;
  Random random(seed);
  const auto check = [&](const char* name, void (*function)(Random&)) {
    current_check = name;
    function(random);
  };
  check("hypervolume", check_hypervolume);
  check("hypervolume_contributions", check_hypervolume_contributions);
  check("hypervolume_improvement", check_hypervolume_improvement);
  check("hypervolume_subset", check_hypervolume_subset);
  check("box_decomposition", check_box_decomposition);
  check("hypervolume of many objectives", check_many_objectives);
  check("hypervolume of every row type", check_row_types);
  check("best_points", check_best_points);
  check("non_dominated_sort", check_non_dominated_sort);
  check("is_non_dominated", check_is_non_dominated);
  check("dominance_counts", check_dominance_counts);
  check("is_dominated_by", check_is_dominated_by);
  check("group_advantages", check_group_advantages);
  check("group_rows", check_group_rows);
  check("linear_scan", check_linear_scan);
  check("gae", check_gae);
  check("whiten", check_whiten);
  check("select_rollouts", check_select_rollouts);
  check("select_tokens", check_select_tokens);
  check("token_histogram", check_token_histogram);
  check("token_logprobs", check_token_logprobs);
}

void run_fixed() {
  const auto check = [](const char* name, void (*function)()) {
    current_check = name;
    function();
  };
  check("elements", check_elements);
  check("groups", check_groups);
  check("arguments of hypervolume", check_hypervolume_arguments);
  check("hypervolume of every row type", check_row_types);
  check("arguments of best_points", check_best_points_arguments);
  check("arguments of the Pareto family", check_pareto_arguments);
  check("arguments of group_advantages", check_advantage_arguments);
}

int run(int argc, char** argv) {
  double seconds = 0;
  uint64_t seed = 0, cases = 1500;
  bool fixed = argc == 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view option = argv[i];
    if (option == "--fuzz")
      seconds = std::atof(argv[i + 1]);
    else if (option == "--seed")
      seed = std::strtoull(argv[i + 1], nullptr, 10);
    else if (option == "--cases")
      cases = std::strtoull(argv[i + 1], nullptr, 10);
    else
      throw std::invalid_argument("driver: --fuzz SECONDS, --seed N, --cases N");
  }
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  if (fixed) run_fixed();
  uint64_t done = 0;
  while (seconds > 0 ? Clock::now() < end : done < cases) run_case(seed + done++);
  std::printf("%llu cases from seed %llu on: nothing found\n", static_cast<unsigned long long>(done),
              static_cast<unsigned long long>(seed));
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace driver

int main(int argc, char** argv) {
  std::signal(SIGABRT, [](int) { driver::name_case(); });  // how a sanitizer ends
  try {
    return driver::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    driver::name_case();
    return EXIT_FAILURE;
  }
}
