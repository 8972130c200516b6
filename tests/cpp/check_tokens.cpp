// select_tokens against a stable sort.
#include <algorithm>
#include <map>

#include "driver.hpp"
#include "morlfast/tokens.hpp"

namespace driver {
namespace {

using morlfast::Dtype;
using morlfast::Groups;

struct Token {
  double score;
  int64_t flat;
};

}  // namespace

void check_select_tokens(Random& random) {
  const Dtype floats[] = {Dtype::float32, Dtype::float64, Dtype::bfloat16, Dtype::float16};
  const bool large = random.chance(0.03);  // beyond the keys that are kept, in several pieces a row
  const int64_t size = random.integer(1, 4);
  const int64_t rows = (large ? random.integer(1, 3) : random.integer(0, 5)) * size;
  const int64_t columns = large ? random.integer(4000, 9000) : random.integer(0, random.pick<int64_t>({1, 40, 300}));
  const bool one_a_row = random.chance(0.5);
  Array advantages(random, floats[random.integer(0, 3)],
                   one_a_row ? std::vector<int64_t>{rows} : std::vector{rows, columns});
  Array entropies(random, floats[random.integer(0, 3)], {rows, columns});
  Array mask(random, static_cast<Dtype>(random.integer(0, 9)), {rows, columns});
  advantages.fill(random, Numbers::any(random, true, true));
  entropies.fill(random, Numbers::any(random, true, true));
  mask.fill(random, Numbers{random.pick<int64_t>({1, 3}), random.pick({0.0, 0.3}), false, false});
  const double ratio = random.pick({0.0, 1.0, 0.1, 0.2, 1.0 / 3, 1e-9, 1 - 1e-16, random.uniform()});

  const bool wide = advantages.dtype() == Dtype::float64 || entropies.dtype() == Dtype::float64;
  const int scope = static_cast<int>(random.integer(0, 3));  // batch, groups of one size, groups by id, sequences
  Array ids(random, Dtype::int64, {rows});
  for (int64_t i = 0; i < rows; ++i) ids.set(i, {}, static_cast<double>(random.integer(-2, 2)));
  std::map<int64_t, std::vector<Token>> scopes;
  std::map<int64_t, int64_t> seen;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t own = scope == 0 ? 0 : scope == 1 ? i / size : scope == 2 ? static_cast<int64_t>(ids.at(i, {})) : i;
    for (int64_t j = 0; j < columns; ++j) {
      const double a = std::fabs(one_a_row ? advantages.at(i, {}) : advantages.at(i, {j})), h = entropies.at(i, {j});
      const double score = wide ? a * h : static_cast<double>(static_cast<float>(a) * static_cast<float>(h));
      if (mask.at(i, {j}) != 0 && !std::isnan(score)) scopes[own].push_back({score, i * columns + j});
    }
  }
  std::vector<char> expected(rows * columns);
  for (auto& [own, tokens] : scopes) {
    std::stable_sort(tokens.begin(), tokens.end(), [](const Token& x, const Token& y) { return x.score > y.score; });
    const auto valid = static_cast<double>(tokens.size());
    const double kept = std::min(valid, std::ceil(ratio * valid * (1 - std::ldexp(1.0, -50))));
    for (int64_t t = 0; t < static_cast<int64_t>(kept); ++t) expected[tokens[t].flat] = 1;
  }

  const std::unique_ptr<bool[]> keep(new bool[rows * columns]);
  const Groups groups = scope == 0 || rows == 0 ? Groups::contiguous(rows, std::max<int64_t>(rows, 1))
                        : scope == 1            ? Groups::contiguous(rows, size)
                        : scope == 2            ? Groups::by_id(ids.as<int64_t>(), ids.stride(0), rows)
                                                : Groups::contiguous(rows, 1);
  morlfast::select_tokens(advantages.matrix(), entropies.matrix(), mask.matrix(), columns, {ratio}, groups, keep.get());
  for (int64_t t = 0; t < rows * columns; ++t)
    expect(keep[t] == (expected[t] != 0), "token " + std::to_string(t) + (expected[t] ? " is not kept" : " is kept"));
}

void check_token_histogram(Random&) {}

}  // namespace driver
