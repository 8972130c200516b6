// token_logprobs and its gradient against their formulas in long double.
#include <algorithm>
#include <optional>

#include "driver.hpp"
#include "morlfast/logprobs.hpp"

namespace driver {
namespace {

using morlfast::Dtype;
using morlfast::TokenLogits;

double rounding_of(Dtype dtype) { return dtype == Dtype::float64 ? 0x1p-52 : 0x1p-23; }

TokenLogits view_of(const Array& logits, const Array& tokens) {
  TokenLogits rows;
  rows.logits = logits.data();
  rows.dtype = logits.dtype();
  rows.batch = logits.size(0), rows.length = logits.size(1), rows.vocabulary = logits.size(2);
  std::copy(logits.strides().begin(), logits.strides().end(), rows.strides);
  rows.tokens = tokens.as<int64_t>();
  std::copy(tokens.strides().begin(), tokens.strides().end(), rows.token_strides);
  return rows;
}

/// Results (rows), as token_logprobs has them for these logits.
struct Results {
  Array log_probs, entropies, log_sums;

  Results(Random& random, Dtype dtype, const std::vector<int64_t>& sizes)
      : log_probs(random, dtype, sizes, true),
        entropies(random, dtype, sizes, true),
        log_sums(random, Dtype::float64, sizes, true) {}
  void compute(const TokenLogits& rows, bool partial, bool entropy) {
    morlfast::token_logprobs(rows, partial, log_probs.data(), entropy ? entropies.data() : nullptr,
                             log_sums.as<double>());
  }
};

bool is_read(const TokenLogits& rows, const Array& tokens, int64_t r) {
  return tokens.at(r, {}) != static_cast<double>(rows.ignore_index);
}

/// The place of row r's token among the logits, or -1.
int64_t place_of(const TokenLogits& rows, const Array& tokens, int64_t r) {
  const auto token = static_cast<int64_t>(tokens.at(r, {}));
  return token >= rows.first_token && token < rows.first_token + rows.vocabulary ? token - rows.first_token : -1;
}

void compare_row(const TokenLogits& rows, const Array& logits, const Array& tokens, bool partial, bool entropy,
                 const Results& got, int64_t r) {
  const double log_prob = got.log_probs.at(r, {}), log_sum = got.log_sums.at(r, {});
  const double found = entropy ? got.entropies.at(r, {}) : 0;
  if (!is_read(rows, tokens, r)) {
    expect(log_prob == 0 && log_sum == 0 && found == 0, "an ignored row");
    return;
  }
  const int64_t place = place_of(rows, tokens, r);
  long double largest = -kInf;
  bool nan = false;
  for (int64_t v = 0; v < rows.vocabulary; ++v) {
    const double x = logits.at(r, {v});
    nan |= std::isnan(x) || x == kInf;
    largest = std::max<long double>(largest, x);
  }
  if (nan || largest == -kInf) {
    const bool empty = partial && !nan;
    expect(close(log_sum, empty ? -kInf : kNan, 0), "log_sum");
    expect(!entropy || close(found, empty ? 0 : kNan, 0), "entropy");
    expect(close(log_prob, empty || place < 0 ? -kInf : kNan, 0), "log_prob");
    return;
  }
  // The first of the largest aside. How far a sum may be off: exp(d) by as many roundings as d has.
  long double rest = 0, moment = 0, allowance = 0;
  bool first = true;
  for (int64_t v = 0; v < rows.vocabulary; ++v) {
    const long double x = logits.at(r, {v}), d = (x - largest) / static_cast<long double>(rows.temperature);
    if (x == largest && first) {
      first = false;
      continue;
    }
    const long double e = std::exp(d);
    if (!(e > 0)) continue;
    rest += e, moment += e * d, allowance += e * (1 - d) * (1 - d);
  }
  const double eps = rounding_of(logits.dtype());
  const auto sum = static_cast<double>(std::log1p(rest));
  const double total = static_cast<double>(largest / static_cast<long double>(rows.temperature)) + sum;
  const double largest_x = static_cast<double>(largest) / rows.temperature;
  expect(std::fabs(log_sum - total) <= eps * (1 + sum) + 0x1p-51 * std::fabs(largest_x), "log_sum");
  if (place < 0) {
    expect(log_prob == -kInf, "log_prob outside");
  } else {
    const double own = (logits.at(r, {place}) - static_cast<double>(largest)) / rows.temperature - sum;
    expect(close(log_prob, own, 4 * eps), "log_prob");
  }
  if (!entropy) return;
  const auto want = static_cast<double>(std::log1p(rest) - moment / (1 + rest));
  const double off = 4 * eps * static_cast<double>(allowance / (1 + rest)) + eps * want + 1e-30;
  expect(std::fabs(found - want) <= off, "entropy " + std::to_string(found) + ", not " + std::to_string(want));
}

/// The numbers of `from`, with strides of its own (a repeated element has the last of them).
Array strided(Random& random, const Array& from) {
  Array result(random, from.dtype(), from.sizes());
  for (int64_t r = 0; r < product(from.sizes()); ++r) result.set(r, {}, from.at(r, {}));
  return result;
}

/// Gradients of results, such that those of the logits are about 1: float16 goes up to 65504.
Array one_a_row(Random& random, const TokenLogits& rows, Dtype dtype) {
  Array result(random, dtype, {rows.batch, rows.length});
  Numbers numbers = Numbers::any(random, false, false);
  numbers.scale = rows.temperature;
  result.fill(random, numbers);
  return result;
}

void compare_gradient(Random& random, const TokenLogits& rows, const Array& logits, const Array& tokens,
                      const Results& results) {
  const Dtype dtype = results.log_probs.dtype();
  const Array log_sums = strided(random, results.log_sums), entropies = strided(random, results.entropies);
  const Array g = one_a_row(random, rows, dtype), h = one_a_row(random, rows, dtype);
  const int given = static_cast<int>(random.integer(0, 3));
  Array grad(random, logits.dtype(), logits.sizes(), true);
  const auto if_given = [](const Array& array, bool is) { return is ? std::optional(array.matrix()) : std::nullopt; };
  morlfast::token_logprobs_gradient(rows, log_sums.matrix(), entropies.matrix(), if_given(g, given & 1),
                                    if_given(h, given & 2), grad.data());
  const double eps = rounding_of(logits.dtype());
  const bool half = logits.dtype() == Dtype::bfloat16 || logits.dtype() == Dtype::float16;
  const double last = logits.dtype() == Dtype::bfloat16 ? 0x1p-8 : half ? 0x1p-11 : 0, least = half ? 0x1p-24 : 1e-30;
  for (int64_t r = 0; r < rows.rows(); ++r) {
    const int64_t place = place_of(rows, tokens, r);
    const double of_log_prob = given & 1 ? g.at(r, {}) : 0, of_entropy = given & 2 ? h.at(r, {}) : 0;
    const double log_sum = log_sums.at(r, {}), entropy = given & 2 ? entropies.at(r, {}) : 0;
    if (std::isnan(entropy) && !std::isnan(log_sum)) continue;  // another row's, by a repeated element
    for (int64_t v = 0; v < rows.vocabulary; ++v) {
      const double found = grad.at(r, {v});
      if (!is_read(rows, tokens, r)) {
        expect(found == 0, "gradient of an ignored row");
        continue;
      }
      const double x = logits.at(r, {v}) / rows.temperature, log_p = x - log_sum, p = std::exp(log_p);
      const double slope = p == 0 ? 0 : p * (log_p + entropy);
      const double want = (of_log_prob * ((v == place) - p) - of_entropy * slope) / rows.temperature;
      if (std::isnan(want)) {
        expect(std::isnan(found), "gradient of NaN");
        continue;
      }
      const double size = std::isinf(x) ? 0 : 1 + std::fabs(x) + std::fabs(log_sum);
      const double parts = std::fabs(of_log_prob) + std::fabs(of_entropy) * (1 + std::fabs(entropy) + size);
      const double off = 4 * eps * (p * size * parts + std::fabs(of_log_prob)) / rows.temperature;
      // Another row's log sum, by a repeated element, may take it beyond float16.
      const bool beyond = logits.dtype() == Dtype::float16 && std::isinf(found) && found * want > 0;
      expect(beyond ? std::fabs(want) + off >= 65504 : std::fabs(found - want) <= off + last * std::fabs(want) + least,
             "gradient " + std::to_string(found) + ", not " + std::to_string(want));
    }
  }
}

}  // namespace

void check_token_logprobs(Random& random) {
  const bool long_rows = random.chance(0.02);  // of several segments
  const Dtype dtype = random.pick({Dtype::float32, Dtype::float64, Dtype::bfloat16, Dtype::float16});
  const int64_t batch = random.integer(long_rows ? 1 : 0, 2), length = random.integer(long_rows ? 1 : 0, 3);
  const int64_t vocabulary = long_rows           ? random.integer(33000, 60000)
                             : random.chance(.1) ? random.integer(1900, 4300)
                                                 : random.integer(0, random.pick<int64_t>({2, 40, 300}));
  Array logits(random, dtype, {batch, length, vocabulary}), tokens(random, Dtype::int64, {batch, length});
  Numbers numbers = Numbers::any(random, random.chance(.5), random.chance(.5));
  numbers.scale = random.pick({1.0, 5.0, 40.0, 1e-5});  // the last: subnormal in float16
  logits.fill(random, numbers);
  if (random.chance(.1)) logits.fill(random, {.special = 1, .infinite = true});
  if (random.chance(.3)) {  // each piece has a maximum of its own
    for (int64_t r = 0; r < product({batch, length}); ++r)
      for (int64_t v = 0; v < vocabulary; ++v)
        logits.set(r, {v}, logits.at(r, {v}) + numbers.scale * static_cast<double>(v) / 1000);
  }

  TokenLogits rows = view_of(logits, tokens);
  const bool partial = vocabulary == 0 || random.chance(.3);
  rows.temperature = numbers.scale * random.pick({1.0, 1.0, 0.3, 7.0});
  rows.first_token = random.chance(.5) ? 0 : random.integer(0, 100000);
  rows.ignore_index = random.chance(.8) ? -100 : rows.first_token;
  for (int64_t r = 0; r < rows.rows(); ++r) {
    const int64_t outside = partial && random.chance(.3) ? random.integer(-200, vocabulary + 200) : -1;
    const int64_t place = vocabulary == 0 || outside >= 0 ? outside : random.integer(0, vocabulary - 1);
    const int64_t token = random.chance(.1) ? rows.ignore_index : rows.first_token + place;
    tokens.set(r, {}, static_cast<double>(token));
  }

  const Dtype computed = dtype == Dtype::float64 ? dtype : Dtype::float32;
  Results results(random, computed, {batch, length});
  const bool entropy = random.chance(.8);
  results.compute(rows, partial, entropy);
  for (int64_t r = 0; r < rows.rows(); ++r) compare_row(rows, logits, tokens, partial, entropy, results, r);
  if (long_rows) {  // one row alone is not cut
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t t = 0; t < length; ++t) {
        TokenLogits alone = rows;
        alone.batch = alone.length = 1;
        const auto size = static_cast<int64_t>(size_of(dtype));
        alone.logits = static_cast<const std::byte*>(rows.logits) + (b * rows.strides[0] + t * rows.strides[1]) * size;
        alone.tokens += b * rows.token_strides[0] + t * rows.token_strides[1];
        Results own(random, computed, {1, 1});
        own.compute(alone, partial, entropy);
        expect(close(own.log_sums.at(0, {}), results.log_sums.at(b * length + t, {}), 0), "log_sum of a row alone");
        expect(!entropy || close(own.entropies.at(0, {}), results.entropies.at(b * length + t, {}), 0),
               "entropy of a row alone");
      }
    }
  }
  if (!entropy) results.compute(rows, partial, true);
  compare_gradient(random, rows, logits, tokens, results);

  if (rows.rows() == 0 || partial) return;
  const int64_t r = random.integer(0, rows.rows() - 1);
  tokens.set(r, {}, static_cast<double>(rows.first_token + random.pick<int64_t>({-200, -1, vocabulary, 1 << 20})));
  if (is_read(rows, tokens, r)) expect_refused([&] { results.compute(rows, false, true); }, "tokens");
}

}  // namespace driver
