// Linear scans, generalized advantages and whitening against loops over the tokens.
#include <optional>

#include "driver.hpp"
#include "morlfast/returns.hpp"

namespace driver {
namespace {

using morlfast::Dtype;
using morlfast::MatrixView;

constexpr Dtype kFloats[] = {Dtype::float32, Dtype::float64, Dtype::bfloat16, Dtype::float16};

/// An argument that is there or not.
struct Maybe {
  std::optional<Array> array;

  Maybe(Random& random, Dtype dtype, const std::vector<int64_t>& sizes, const Numbers& numbers) {
    if (random.chance(0.4)) return;
    array.emplace(random, dtype, sizes);
    array->fill(random, numbers);
  }
  explicit operator bool() const { return array.has_value(); }
  std::optional<MatrixView> view() const { return array ? std::optional(array->matrix()) : std::nullopt; }
  /// Whether a flag is set, or `otherwise` without flags.
  bool flag(int64_t i, int64_t j, bool otherwise) const { return array ? array->at(i, {j}) != 0 : otherwise; }
};

struct Rows {
  int64_t n, t;

  explicit Rows(Random& random) {
    const bool cut = random.chance(0.02);  // few rows, so long that they are cut into pieces
    n = cut ? random.integer(1, 3) : random.integer(0, random.pick<int64_t>({3, 20}));
    t = cut ? random.integer(8000, 14000) : random.integer(0, random.pick<int64_t>({3, 40, 1100}));
  }
  std::vector<int64_t> sizes() const { return {n, t}; }
};

Numbers flags(Random& random) { return {random.pick<int64_t>({1, 3}), 0.0, false, false}; }

/// Values of size one; sometimes NaN and infinities, in a long row also fewer than its pieces.
Numbers values(Random& random) { return {0, random.pick({0.0, 0.0, 0.01, 0.0001}), true, true}; }

/// The result's rounding, and that of a sum in another order.
double tolerance(Dtype dtype) {
  return dtype == Dtype::float64    ? 1e-9
         : dtype == Dtype::float32  ? 1e-6
         : dtype == Dtype::bfloat16 ? 1.0 / 128
                                    : 1.0 / 1024;
}

void expect_close(Dtype dtype, const void* results, int64_t place, double want, const std::string& what) {
  const double got = read(dtype, static_cast<const std::byte*>(results) + place * size_of(dtype));
  if (dtype == Dtype::float16 && std::fabs(want) > 65000) return;  // about to overflow
  expect(close(got, want, tolerance(dtype)),
         what + " " + std::to_string(place) + ": " + std::to_string(got) + " instead of " + std::to_string(want));
}

Array factors(Random& random, const Rows& rows) {
  Array a(random, kFloats[random.integer(0, 3)],
          random.chance(0.5) ? std::vector<int64_t>{rows.n} : std::vector<int64_t>{rows.n, rows.t});
  // In long rows products of factors below 1 vanish; NaN, infinities and the cuts among the factors do not.
  a.fill(random, random.chance(0.2) ? Numbers{1, 0.0, false, false}
                                    : Numbers{0, random.pick({0.0, 0.0, 0.01, 0.0003}), true, true});
  return a;
}

double factor(const Array& a, int64_t i, int64_t j) { return a.sizes().size() == 1 ? a.at(i, {}) : a.at(i, {j}); }

}  // namespace

void check_linear_scan(Random& random) {
  const Rows rows(random);
  Array x(random, kFloats[random.integer(0, 3)], rows.sizes());
  x.fill(random, values(random));
  const Array a = factors(random, rows);
  const Maybe initial(random, kFloats[random.integer(0, 3)], {rows.n}, values(random));
  const Maybe mask(random, static_cast<Dtype>(random.integer(0, 9)), rows.sizes(), flags(random));
  const bool reverse = random.chance(0.5), carry = random.chance(0.5);
  const std::unique_ptr<std::byte[]> y(new std::byte[rows.n * rows.t * size_of(x.dtype())]);
  morlfast::linear_scan(x.matrix(), a.matrix(), initial.view(), mask.view(), rows.n, rows.t, reverse, carry, y.get());
  for (int64_t i = 0; i < rows.n; ++i) {
    double state = initial ? initial.array->at(i, {}) : 0.0;
    for (int64_t step = 0; step < rows.t; ++step) {
      const int64_t j = reverse ? rows.t - 1 - step : step;
      const bool on = mask.flag(i, j, true);
      const double weight = factor(a, i, j);
      if (on) state = x.at(i, {j}) + (weight == 0 ? 0.0 : weight * state);
      expect_close(x.dtype(), y.get(), i * rows.t + j, on || carry ? state : 0.0, "y");
    }
  }
}

void check_gae(Random& random) {
  const Rows rows(random);
  Array rewards(random, kFloats[random.integer(0, 3)], rows.sizes()),
      critic(random, kFloats[random.integer(0, 3)], rows.sizes());
  rewards.fill(random, values(random));
  critic.fill(random, values(random));
  const Array gamma = factors(random, rows), lam = factors(random, rows), other = factors(random, rows);
  const auto any = [&] { return static_cast<Dtype>(random.integer(0, 9)); };
  const Maybe mask(random, any(), rows.sizes(), flags(random)), terminated(random, any(), rows.sizes(), flags(random)),
      done(random, any(), rows.sizes(), flags(random)), finished(random, any(), {rows.n}, flags(random)),
      next_values(random, Dtype::float32, rows.sizes(), values(random)),
      bootstrap(random, Dtype::bfloat16, {rows.n}, values(random));
  morlfast::GaeInputs inputs;
  inputs.rewards = rewards.matrix();
  inputs.values = critic.matrix();
  inputs.gamma = gamma.matrix();
  inputs.lam = lam.matrix();
  const bool decoupled = random.chance(0.5);
  if (decoupled) inputs.returns_lam = other.matrix();
  inputs.mask = mask.view();
  inputs.terminated = terminated.view();
  inputs.done = done.view();
  inputs.next_values = next_values.view();
  inputs.bootstrap = bootstrap.view();
  inputs.finished = finished.view();
  inputs.repeat_last = random.chance(0.5);
  inputs.carry = random.chance(0.5);
  const Dtype result = kFloats[random.integer(0, 3)];
  const std::size_t bytes = rows.n * rows.t * size_of(result);
  const std::unique_ptr<std::byte[]> advantages(new std::byte[bytes]), returns(new std::byte[bytes]);
  morlfast::gae(inputs, rows.n, rows.t, result, advantages.get(), returns.get());
  for (int64_t i = 0; i < rows.n; ++i) {
    double following = 0;
    if (inputs.repeat_last)
      for (int64_t j = 0; j < rows.t; ++j) following = mask.flag(i, j, true) ? critic.at(i, {j}) : following;
    if (bootstrap) following = bootstrap.array->at(i, {});
    if (finished && finished.array->at(i, {}) != 0) following = 0;
    double advantage = 0, trace = 0;
    for (int64_t j = rows.t - 1; j >= 0; --j) {
      const bool on = mask.flag(i, j, true);
      const double value = critic.at(i, {j}), g = factor(gamma, i, j);
      if (on) {
        const double next = next_values ? next_values.array->at(i, {j}) : following;
        const double delta = rewards.at(i, {j}) + (terminated.flag(i, j, false) ? 0.0 : g * next) - value;
        const auto discounted = [&](const Array& lambda, double state) {
          const double weight = done.flag(i, j, false) ? 0.0 : g * factor(lambda, i, j);
          return delta + (weight == 0 ? 0.0 : weight * state);
        };
        advantage = discounted(lam, advantage);
        trace = discounted(decoupled ? other : lam, trace);
        following = value;
      }
      const int64_t place = i * rows.t + j;
      expect_close(result, advantages.get(), place, on || inputs.carry ? advantage : 0.0, "advantage");
      expect_close(result, returns.get(), place, on || inputs.carry ? trace + value : 0.0, "return");
    }
  }
}

void check_whiten(Random& random) {
  const Rows rows(random);
  Array x(random, kFloats[random.integer(0, 3)], rows.sizes());
  x.fill(random, Numbers::any(random, true, false));
  const Maybe mask(random, static_cast<Dtype>(random.integer(0, 9)), rows.sizes(), flags(random));
  const auto eps_to = static_cast<morlfast::EpsTo>(random.integer(0, 2));
  const double eps = random.pick({0.0, 1e-4, 0.5});
  const int64_t ddof = random.integer(0, 2);
  const bool shift_mean = random.chance(0.5), outside = random.chance(0.5);
  const std::unique_ptr<std::byte[]> results(new std::byte[rows.n * rows.t * size_of(x.dtype())]);
  morlfast::whiten(x.matrix(), mask.view(), rows.n, rows.t, eps, eps_to, ddof, shift_mean, outside, results.get());
  std::vector<double> chosen;
  for (int64_t i = 0; i < rows.n; ++i)
    for (int64_t j = 0; j < rows.t; ++j)
      if (mask.flag(i, j, true)) chosen.push_back(x.at(i, {j}));
  const auto n = static_cast<int64_t>(chosen.size());
  double mean = 0, squares = 0;
  for (double value : chosen) mean += value / static_cast<double>(n);
  const bool constant =
      std::all_of(chosen.begin(), chosen.end(), [&](double value) { return value == chosen.front(); });
  for (double value : chosen) squares += (value - mean) * (value - mean);
  const double variance = n > ddof && !constant ? squares / static_cast<double>(n - ddof) : squares * 0;
  const double scale = eps_to == morlfast::EpsTo::std        ? std::sqrt(variance) + eps
                       : eps_to == morlfast::EpsTo::variance ? std::sqrt(variance + eps)
                                                             : std::max(std::sqrt(variance), eps);
  for (int64_t i = 0; i < rows.n; ++i)
    for (int64_t j = 0; j < rows.t; ++j) {
      const bool on = mask.flag(i, j, true);
      double want = 0;
      if (on || outside) {
        if (std::isnan(mean)) {
          want = kNan;
        } else if (n == 0) {
          continue;  // outside of nothing
        } else {
          if (constant && on) mean = x.at(i, {j});
          want = (x.at(i, {j}) - mean) * (scale == 0 ? 0.0 : 1 / scale) + (shift_mean ? 0.0 : mean);
        }
      }
      const double got = read(x.dtype(), results.get() + (i * rows.t + j) * static_cast<int64_t>(size_of(x.dtype())));
      expect(close(got, want, std::max(tolerance(x.dtype()), 1e-6)),
             "whitened " + std::to_string(got) + " instead of " + std::to_string(want));
    }
}

}  // namespace driver
