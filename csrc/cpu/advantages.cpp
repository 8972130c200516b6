#include "morlfast/advantages.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "parallel.hpp"
#include "read_row.hpp"
#include "simd.hpp"
#include "workspace.hpp"

namespace morlfast {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kChunk = 4096;

// Inside this file NaN is a value that is not scored, and an infinite one makes everything NaN in the end that
// depends on it.

/// Whether a sum of squares lost nothing that matters to overflow or underflow. 0 is in doubt: squares may have
/// vanished.
bool in_range(double squares) { return squares > 0x1p-900 && squares < 0x1p1000; }

/// The power of two that brings `largest` near 1, where its square is in range.
double scale_of(double largest) { return std::ldexp(1.0, -std::clamp(std::ilogb(largest), -1000, 1000)); }

/// Mean and deviation of weighted values, in two passes about the first value, so that equal values give exactly 0.
struct Moments {
  double pivot = 0, sum = 0, squares = 0, count = 0;
  double centre = 0;  // mean minus pivot: subtracted after the pivot, the mean itself is never rounded
  double scale = 1;   // of what was squared

  double centred(double value) const { return (value - pivot) - centre; }
  double deviation(int64_t ddof) const {
    const double freedom = count - static_cast<double>(ddof);
    return freedom > 0 ? std::sqrt(squares / freedom) / scale : 0;
  }
  bool finite() const { return std::isfinite(pivot) && std::isfinite(sum); }
};

/// Moments of value(i) counted weight(i) times, for i in 0..n-1, in chunks of a fixed size so that threads do not
/// change the sum.
template <class Weight, class Value>
Moments batch_moments(int64_t n, bool parallel, const Weight& weight, const Value& value) {
  Moments all;
  for (int64_t i = 0; i < n; ++i) {
    if (weight(i) > 0) {
      all.pivot = value(i);
      break;
    }
  }
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  std::vector<Moments> parts(chunks);
  const auto each_value = [&](int64_t c, const auto& visit) {
    for (int64_t i = c * kChunk; i < std::min(n, (c + 1) * kChunk); ++i)
      if (const double w = weight(i); w > 0) visit(w, value(i));
  };
  parallel_for(chunks, parallel, [&](int64_t c) {
    each_value(c, [&](double w, double x) { parts[c].sum += w * (x - all.pivot), parts[c].count += w; });
  });
  for (const Moments& part : parts) all.sum += part.sum, all.count += part.count;
  all.centre = all.count > 0 ? all.sum / all.count : 0;
  const auto add_squares = [&] {
    all.squares = 0;
    parallel_for(chunks, parallel, [&](int64_t c) {
      parts[c].squares = 0;
      each_value(c, [&](double w, double x) {
        const double scaled = all.centred(x) * all.scale;
        parts[c].squares += w * scaled * scaled;
      });
    });
    for (const Moments& part : parts) all.squares += part.squares;
  };
  add_squares();
  if (all.finite() && !in_range(all.squares)) {
    double largest = 0;
    for (int64_t c = 0; c < chunks; ++c)
      each_value(c, [&](double, double x) { largest = std::max(largest, std::fabs(all.centred(x))); });
    if (largest > 0) {
      all.scale = scale_of(largest);
      add_squares();
    }
  }
  return all;
}

double divisor(double deviation, double eps, EpsTo eps_to) {
  switch (eps_to) {
    case EpsTo::std:
      return deviation + eps;
    case EpsTo::variance:
      return std::sqrt(deviation * deviation + eps);
    case EpsTo::floor:
      break;
  }
  return std::max(deviation, eps);
}

struct Problem {
  int64_t n, m;
  const Groups& groups;
  const AdvantageRules& rules;
  const int64_t* lengths;
  bool parallel;
};

/// Every eighth term of a sum, so that an addition need not wait for the last.
struct Lanes {
  static constexpr int64_t kCount = 8;
  double sums[kCount] = {};

  double total() {
    for (int64_t width = kCount / 2; width > 0; width /= 2)
      for (int64_t lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
    return sums[0];
  }
};

/// (n, m) rewards or weights.
template <class T>
struct Matrix {
  const T* data;
  int64_t row_stride, column_stride;

  double operator()(int64_t i, int64_t k) const {
    return static_cast<double>(data[i * row_stride + k * column_stride]);
  }
  void read(int64_t i, int64_t m, double* out) const {
    const T* row = data + i * row_stride;
    if (column_stride == 1)
      for (int64_t k = 0; k < m; ++k) out[k] = static_cast<double>(row[k]);
    else
      for (int64_t k = 0; k < m; ++k) out[k] = static_cast<double>(row[k * column_stride]);
  }
};

/// The rewards, with what a NaN among them stands for.
template <class T>
class Rewards {
 public:
  Rewards(const Matrix<T>& matrix, NanRewards nan) : matrix_(matrix) {
    if (nan == NanRewards::propagate) unscored_ = kInfinity;
    if (nan == NanRewards::zero) unscored_ = 0;
  }

  double operator()(int64_t i, int64_t k) const { return scored(matrix_(i, k)); }
  void read(int64_t i, int64_t m, double* out) const {
    matrix_.read(i, m, out);
    if (unscored_ == unscored_)
      for (int64_t k = 0; k < m; ++k) out[k] = scored(out[k]);
  }
  /// Sum of a row without NaN, else NaN; in the order of weighted_sum.
  double plain_sum(int64_t i, int64_t m) const {
    if (matrix_.column_stride != 1) return kNan;
    const T* row = matrix_.data + i * matrix_.row_stride;
    Lanes lanes;
    if constexpr (std::is_same_v<T, float>)
      simd().add_to_lanes(row, m, lanes.sums);
    else
      for (int64_t k = 0; k < m; ++k) lanes.sums[k % Lanes::kCount] += static_cast<double>(row[k]);
    return m > 0 ? lanes.total() : kNan;
  }

 private:
  double scored(double value) const { return value == value ? value : unscored_; }

  Matrix<T> matrix_;
  double unscored_ = kNan;
};

/// The weights of each rollout as doubles.
template <class T>
class Weights {
 public:
  Weights(const Matrix<T>& matrix, int64_t m) : matrix_(matrix), shared_(m, 1) {
    if (matrix.data && matrix.row_stride == 0 && m > 0) matrix.read(0, m, shared_.data());
  }

  bool ones() const { return !matrix_.data; }
  /// Those of rollout i, in `buffer` unless all have the same.
  const double* row(int64_t i, double* buffer) const {
    if (!matrix_.data || matrix_.row_stride == 0) return shared_.data();
    matrix_.read(i, static_cast<int64_t>(shared_.size()), buffer);
    return buffer;
  }

 private:
  Matrix<T> matrix_;
  std::vector<double> shared_;
};

/// Subtracts the baseline and divides by the deviation, group by group, each of `m` columns by itself.
class GroupNormalizer {
 public:
  /// `batch`: the moments of each column, where the rules ask for them.
  GroupNormalizer(const AdvantageRules& rules, int64_t m, const Moments* batch)
      : rules_(rules), m_(m), batch_(batch), pivot_(m), centre_(m), count_(m), squares_(m), columns_(m) {}

  int64_t first_row = 0;  ///< of the group, for errors

  /// values (rows, m), NaN where not scored, become (value - baseline) / divisor; `lengths` (rows) or nullptr.
  void normalize(double* values, int64_t rows, const double* lengths) {
    for (int64_t k = 0; k < m_; ++k) {
      int64_t i = 0;
      while (i < rows && std::isnan(values[i * m_ + k])) ++i;
      pivot_[k] = i < rows ? values[i * m_ + k] : 0;
    }
    std::fill(centre_.begin(), centre_.end(), 0);
    std::fill(count_.begin(), count_.end(), 0);
    simd().sum_scored(values, rows, m_, pivot_.data(), centre_.data(), count_.data());
    for (int64_t k = 0; k < m_; ++k) centre_[k] = count_[k] > 0 ? centre_[k] / count_[k] : 0;
    if (rules_.scale == Scale::group) {
      std::fill(squares_.begin(), squares_.end(), 0);
      simd().sum_squares(values, rows, m_, pivot_.data(), centre_.data(), squares_.data());
    }
    for (int64_t k = 0; k < m_; ++k) settle(values + k, rows, k, lengths);
    simd().standardize(values, rows, m_, columns_.pivot.data(), columns_.centre.data(), columns_.divisor.data());
  }

 private:
  /// What each column's values become: ((value - pivot) - centre) / divisor.
  struct Columns {
    explicit Columns(int64_t m) : pivot(m), centre(m), divisor(m) {}
    void set(int64_t k, double p, double c, double d) { pivot[k] = p, centre[k] = c, divisor[k] = d; }
    std::vector<double> pivot, centre, divisor;
  };

  bool of_group() const {
    return (rules_.baseline != Baseline::none && rules_.baseline != Baseline::batch) || rules_.scale == Scale::group ||
           rules_.scale == Scale::leave_one_out;
  }
  bool of_batch() const { return rules_.baseline == Baseline::batch || rules_.scale == Scale::batch; }

  /// `values`: the column, m_ apart.
  void settle(double* values, int64_t rows, int64_t k, const double* lengths) {
    const double count = count_[k];
    columns_.set(k, 0, 0, 1);
    if (count == 0) return;
    const bool finite = std::isfinite(pivot_[k]) && std::isfinite(centre_[k]);
    if ((of_group() && !finite) || (of_batch() && !batch_[k].finite())) return fill(values, rows, kInfinity);
    const bool alone = count == 1 && of_group();
    if (alone && rules_.singleton == Singleton::raise)
      throw std::invalid_argument(
          "singleton: expected at least two scored rollouts a group, got one in the group of row " +
          std::to_string(first_row));
    if (alone && rules_.singleton == Singleton::nan) return fill(values, rows, kInfinity);
    if (alone && rules_.singleton == Singleton::zero) return fill(values, rows, 0);

    const bool of_others = rules_.scale == Scale::leave_one_out && !alone;
    double deviation = 1;
    if (of_others)
      deviations_of_others(values, rows);
    else if (rules_.scale == Scale::batch)
      deviation = batch_[k].deviation(rules_.ddof);
    else if (rules_.scale == Scale::group && !alone)
      deviation = deviation_of_group(values, rows, k);

    double pivot = pivot_[k], centre = centre_[k], stretch = 1;
    if (rules_.baseline == Baseline::none || (alone && rules_.baseline != Baseline::batch)) {
      pivot = centre = 0;
    } else if (rules_.baseline == Baseline::batch) {
      pivot = batch_[k].pivot, centre = batch_[k].centre;
    } else if (rules_.baseline == Baseline::leave_one_out) {
      stretch = count / (count - 1);
    } else if (rules_.baseline == Baseline::length_weighted) {
      centre = length_weighted_centre(values, rows, k, lengths);
    } else if (rules_.baseline == Baseline::runner_up) {
      keep_the_largest(values, rows);
      pivot = centre = 0;
    }
    if (of_others) {
      for (int64_t i = 0; i < rows; ++i) {
        double& value = values[i * m_];
        if (!std::isnan(value)) value = scaled(((value - pivot) - centre) * stretch, deviations_[i]);
      }
      return;
    }
    if (rules_.scale == Scale::none) return columns_.set(k, pivot, centre, 1 / stretch);
    if (deviation > rules_.least_std)
      return columns_.set(k, pivot, centre, divisor(deviation, rules_.eps, rules_.eps_to) / stretch);
    if (rules_.zero_variance == ZeroVariance::unscaled) return columns_.set(k, pivot, centre, 1 / stretch);
    fill(values, rows, rules_.zero_variance == ZeroVariance::zero ? 0 : kInfinity);
  }

  double deviation_of_group(const double* values, int64_t rows, int64_t k) const {
    const double freedom = count_[k] - static_cast<double>(rules_.ddof);
    if (freedom <= 0) return 0;
    if (in_range(squares_[k])) return std::sqrt(squares_[k] / freedom);
    const auto centred = [&](int64_t i) {
      return std::isnan(values[i * m_]) ? 0 : (values[i * m_] - pivot_[k]) - centre_[k];
    };
    double largest = 0, squares = 0;
    for (int64_t i = 0; i < rows; ++i) largest = std::max(largest, std::fabs(centred(i)));
    if (largest == 0) return 0;
    const double scale = scale_of(largest);
    for (int64_t i = 0; i < rows; ++i) squares += (centred(i) * scale) * (centred(i) * scale);
    return std::sqrt(squares / freedom) / scale;
  }

  double scaled(double centred, double deviation) const {
    if (deviation > rules_.least_std) return centred / divisor(deviation, rules_.eps, rules_.eps_to);
    if (rules_.zero_variance == ZeroVariance::unscaled) return centred;
    return rules_.zero_variance == ZeroVariance::zero ? 0 : kInfinity;
  }

  void fill(double* values, int64_t rows, double value) const {
    for (int64_t i = 0; i < rows; ++i)
      if (!std::isnan(values[i * m_])) values[i * m_] = value;
  }

  /// Mean of the tokens' rewards minus the pivot; without tokens, of the rollouts'.
  double length_weighted_centre(const double* values, int64_t rows, int64_t k, const double* lengths) const {
    double sum = 0, tokens = 0;
    for (int64_t i = 0; i < rows; ++i) {
      if (std::isnan(values[i * m_])) continue;
      sum += lengths[i] * (values[i * m_] - pivot_[k]);
      tokens += lengths[i];
    }
    return tokens > 0 ? sum / tokens : centre_[k];
  }

  /// The largest value, of equal ones the first, becomes its distance to the second largest, all others 0.
  void keep_the_largest(double* values, int64_t rows) const {
    double largest = -kInfinity, second = -kInfinity;
    int64_t at = 0;
    for (int64_t i = 0; i < rows; ++i) {
      const double value = values[i * m_];
      if (value > largest) {
        second = largest, largest = value, at = i;
      } else if (value > second) {
        second = value;
      }
    }
    fill(values, rows, 0);
    values[at * m_] = largest - second;
  }

  /// deviations_[i] = deviation of the scored values but the i-th, from the moments before and after it, merged as by
  /// Chan, Golub and LeVeque (1983): equal others give exactly 0.
  void deviations_of_others(const double* values, int64_t rows) {
    struct Running {
      double count = 0, mean = 0, squares = 0;
      void add(double x) {
        const double delta = x - mean;
        mean += delta / ++count;
        squares += delta * (x - mean);
      }
    };
    // Not the one outlier, whose distance to the others would cost their digits: the median of three.
    double few[3] = {};
    int64_t found = 0;
    for (int64_t i = 0; i < rows && found < 3; ++i)
      if (!std::isnan(values[i * m_])) few[found++] = values[i * m_];
    std::sort(few, few + found);
    const double pivot = few[found / 2];
    double largest = 0;
    for (int64_t i = 0; i < rows; ++i)
      if (!std::isnan(values[i * m_])) largest = std::max(largest, std::fabs(values[i * m_] - pivot));
    const double scale = in_range(largest * largest) ? 1 : scale_of(largest);
    const auto shifted = [&](int64_t i) { return (values[i * m_] - pivot) * scale; };
    deviations_.resize(rows);
    means_.resize(rows);
    Running before;
    for (int64_t i = 0; i < rows; ++i) {
      deviations_[i] = before.squares, means_[i] = before.mean;
      if (!std::isnan(values[i * m_])) before.add(shifted(i));
    }
    const double others = before.count - 1, freedom = others - static_cast<double>(rules_.ddof);
    Running after;
    for (int64_t i = rows - 1; i >= 0; --i) {
      if (std::isnan(values[i * m_])) continue;
      const double left = others - after.count;
      const double delta = left > 0 && after.count > 0 ? after.mean - means_[i] : 0;
      const double squares = deviations_[i] + after.squares + delta * delta * (left * after.count / others);
      deviations_[i] = freedom > 0 ? std::sqrt(squares / freedom) / scale : 0;
      after.add(shifted(i));
    }
  }

  const AdvantageRules& rules_;
  int64_t m_;
  const Moments* batch_;
  std::vector<double> pivot_, centre_, count_, squares_;  // of the group; centre: mean minus pivot
  Columns columns_;
  std::vector<double> deviations_, means_;
};

/// Moments of each column of all rollouts, if the rules ask for them.
template <class Value>
std::vector<Moments> moments_of_batch(const Problem& p, int64_t columns, const Value& value) {
  std::vector<Moments> moments;
  if (p.rules.baseline != Baseline::batch && p.rules.scale != Scale::batch) return moments;
  for (int64_t k = 0; k < columns; ++k)
    moments.push_back(batch_moments(
        p.n, p.parallel, [&](int64_t i) { return std::isnan(value(i, k)) ? 0.0 : 1.0; },
        [&](int64_t i) { return value(i, k); }));
  return moments;
}

/// What a thread needs for a group: room for its columns, its token counts, the weights of one rollout.
struct Scratch {
  std::vector<double> values, lengths, weights;
};

/// Calls body(normalizer, scratch, first place, rows) for every group.
template <class Body>
void each_group(const Problem& p, int64_t columns, const std::vector<Moments>& batch, const Body& body) {
  constexpr int64_t kGroupsAtOnce = 64;
  const int64_t runs = (p.groups.count() + kGroupsAtOnce - 1) / kGroupsAtOnce;
  parallel_for(runs, p.parallel, [&](int64_t run) {
    GroupNormalizer normalizer(p.rules, columns, batch.data());
    Scratch scratch;
    scratch.weights.resize(p.m);
    for (int64_t g = run * kGroupsAtOnce; g < std::min(p.groups.count(), (run + 1) * kGroupsAtOnce); ++g) {
      const int64_t begin = p.groups.begin(g), rows = p.groups.end(g) - begin;
      scratch.values.resize(rows * columns);
      if (p.rules.baseline == Baseline::length_weighted) {
        scratch.lengths.resize(rows);
        for (int64_t place = 0; place < rows; ++place)
          scratch.lengths[place] = static_cast<double>(p.lengths[p.groups.row(begin + place)]);
      }
      normalizer.first_row = rows > 0 ? p.groups.row(begin) : 0;
      body(normalizer, scratch, begin, rows);
    }
  });
}

/// s_i = sum over the scored objectives of w_k values[k], NaN without any.
double weighted_sum(const Problem& p, const double* weights, const double* values) {
  Lanes lanes;
  uint64_t any = p.rules.nan == NanRewards::skip_reward;
  const auto add = [&](int64_t lane, int64_t k) {
    const bool scored = values[k] == values[k];
    lanes.sums[lane] += scored ? weights[k] * values[k] : 0;
    any |= scored;
  };
  int64_t k = 0;
  for (; k + Lanes::kCount <= p.m; k += Lanes::kCount)
    for (int64_t lane = 0; lane < Lanes::kCount; ++lane) add(lane, k + lane);
  for (int64_t lane = 0; k + lane < p.m; ++lane) add(lane, k + lane);
  if (any == 0) return kNan;
  const double sum = p.m == 1 ? lanes.sums[0] : lanes.total();
  return std::isnan(sum) ? kInfinity : sum;
}

/// scores[i]: the weighted sum of the rewards, then normalized.
template <class R, class W>
void sum_then_normalize(const Problem& p, const Rewards<R>& rewards, const Weights<W>& weights, double* scores) {
  parallel_for((p.n + kChunk - 1) / kChunk, p.parallel, [&](int64_t c) {
    std::vector<double> row(p.m), weight(p.m);
    for (int64_t i = c * kChunk; i < std::min(p.n, (c + 1) * kChunk); ++i) {
      scores[i] = weights.ones() ? rewards.plain_sum(i, p.m) : kNan;
      if (!std::isnan(scores[i])) continue;
      rewards.read(i, p.m, row.data());
      scores[i] = weighted_sum(p, weights.row(i, weight.data()), row.data());
    }
  });
  const std::vector<Moments> batch = moments_of_batch(p, 1, [&](int64_t i, int64_t) { return scores[i]; });
  each_group(p, 1, batch, [&](GroupNormalizer& normalizer, Scratch& scratch, int64_t begin, int64_t rows) {
    if (p.groups.contiguous()) return normalizer.normalize(scores + begin, rows, scratch.lengths.data());
    std::vector<double>& values = scratch.values;
    for (int64_t place = 0; place < rows; ++place) values[place] = scores[p.groups.row(begin + place)];
    normalizer.normalize(values.data(), rows, scratch.lengths.data());
    for (int64_t place = 0; place < rows; ++place) scores[p.groups.row(begin + place)] = values[place];
  });
}

/// scores[i]: the weighted sum of the normalized rewards.
template <class R, class W>
void normalize_then_sum(const Problem& p, const Rewards<R>& rewards, const Weights<W>& weights, double* scores) {
  const std::vector<Moments> batch = moments_of_batch(p, p.m, rewards);
  each_group(p, p.m, batch, [&](GroupNormalizer& normalizer, Scratch& scratch, int64_t begin, int64_t rows) {
    double* values = scratch.values.data();
    for (int64_t place = 0; place < rows; ++place) rewards.read(p.groups.row(begin + place), p.m, values + place * p.m);
    normalizer.normalize(values, rows, scratch.lengths.data());
    for (int64_t place = 0; place < rows; ++place) {
      const int64_t i = p.groups.row(begin + place);
      scores[i] = weighted_sum(p, weights.row(i, scratch.weights.data()), values + place * p.m);
    }
  });
}

/// (s - mean) / divisor over the scored rollouts of the batch; an infinity among them makes all of them infinite.
void whiten_batch(const Problem& p, double* scores) {
  const bool by_token = p.rules.whiten == Whiten::tokens;
  const Moments moments = batch_moments(
      p.n, p.parallel,
      [&](int64_t i) {
        if (std::isnan(scores[i])) return 0.0;
        return by_token ? static_cast<double>(p.lengths[i]) : 1.0;
      },
      [&](int64_t i) { return scores[i]; });
  const double deviation = moments.deviation(p.rules.whiten_ddof);
  if (!moments.finite() || deviation == 0) {
    for (int64_t i = 0; i < p.n; ++i)
      if (!std::isnan(scores[i])) scores[i] = moments.finite() ? 0 : kInfinity;
    return;
  }
  // As many columns as a vector has lanes, all with the same moments.
  constexpr int64_t kColumns = 8;
  double pivot[kColumns], centre[kColumns], by[kColumns];
  std::fill(pivot, pivot + kColumns, moments.pivot);
  std::fill(centre, centre + kColumns, moments.centre);
  std::fill(by, by + kColumns, divisor(deviation, p.rules.whiten_eps, p.rules.whiten_eps_to));
  const int64_t rows = p.n / kColumns;
  simd().standardize(scores, rows, kColumns, pivot, centre, by);
  simd().standardize(scores + rows * kColumns, 1, p.n - rows * kColumns, pivot, centre, by);
}

/// The result of a score: 0 without one, NaN for what was poisoned; 0.0 has no sign.
template <class T>
T advantage_of(double score) {
  const double advantage = std::isnan(score) ? 0 : std::isfinite(score) ? score + 0.0 : kNan;
  if constexpr (std::is_same_v<T, double>)
    return advantage;
  else
    return static_cast<T>(static_cast<float>(advantage));
}

constexpr int64_t kTokensAtOnce = 2048;

/// Calls visit(first token, flags, count) for the tokens of a row, a piece at a time; flags are bytes, nonzero where
/// set.
template <class Visit>
void each_piece(const MatrixView& mask, int64_t row, int64_t tokens, const Visit& visit) {
  uint8_t buffer[kTokensAtOnce];
  for (int64_t first = 0; first < tokens; first += kTokensAtOnce) {
    const int64_t count = std::min(kTokensAtOnce, tokens - first);
    visit(first, read_mask(mask, row, first, count, buffer), count);
  }
}

/// The tokens of each row of the mask.
void count_tokens(const MatrixView& mask, int64_t rows, int64_t tokens, int64_t* counts) {
  parallel_for(rows, rows * tokens >= 65536, [&](int64_t i) {
    counts[i] = 0;
    each_piece(mask, i, tokens,
               [&](int64_t, const uint8_t* flags, int64_t count) { counts[i] += simd().count_flags(flags, count); });
  });
}

/// advantages (n, tokens): the rollout's where the mask is set, 0 elsewhere.
template <class T>
void spread(const double* scores, const MatrixView& mask, int64_t n, int64_t tokens, T* advantages) {
  parallel_for(n, n * tokens >= 65536, [&](int64_t i) {
    const T own = advantage_of<T>(scores[i]);
    each_piece(mask, i, tokens, [&](int64_t first, const uint8_t* flags, int64_t count) {
      T* out = advantages + i * tokens + first;
      if constexpr (sizeof(T) == 2)
        simd().select_16(std::bit_cast<uint16_t>(own), flags, count, reinterpret_cast<uint16_t*>(out));
      else if constexpr (sizeof(T) == 4)
        simd().select_32(std::bit_cast<uint32_t>(own), flags, count, reinterpret_cast<uint32_t*>(out));
      else
        simd().select_64(std::bit_cast<uint64_t>(own), flags, count, reinterpret_cast<uint64_t*>(out));
    });
  });
}

template <class R>
void require_scored(const Problem& p, const Rewards<R>& rewards) {
  for (int64_t i = 0; i < p.n; ++i)
    for (int64_t k = 0; k < p.m; ++k)
      if (std::isnan(rewards(i, k)))
        throw std::invalid_argument("rewards: expected no NaN, got NaN in row " + std::to_string(i));
}

struct Buffers {
  std::vector<double> scores;
  std::vector<int64_t> lengths;
};

template <class F>
void with_float(Dtype dtype, const char* argument, const F& f) {
  with_dtype(dtype, [&](auto zero) {
    if constexpr (std::is_integral_v<decltype(zero)>)
      throw std::invalid_argument(std::string(argument) + ": expected a floating-point element type");
    else
      f(zero);
  });
}

}  // namespace

void group_advantages(const MatrixView& rewards, const MatrixView& weights, int64_t m, const Groups& groups,
                      const AdvantageRules& rules, const int64_t* lengths, const std::optional<MatrixView>& mask,
                      int64_t tokens, void* advantages) {
  const int64_t n = groups.rows();
  const Workspace<Buffers> buffers(n <= kKeptRows);
  buffers->scores.resize(n);
  double* scores = buffers->scores.data();
  if (!lengths && n > 0 && (rules.baseline == Baseline::length_weighted || rules.whiten == Whiten::tokens)) {
    if (!mask) throw std::invalid_argument("lengths: expected the tokens of each rollout, or a mask");
    buffers->lengths.resize(n);
    count_tokens(*mask, n, tokens, buffers->lengths.data());
    lengths = buffers->lengths.data();
  }
  const Problem p{n, m, groups, rules, lengths, n * m >= 32768};
  with_float(rewards.dtype, "rewards", [&](auto r) {
    using R = decltype(r);
    const Rewards<R> reward({static_cast<const R*>(rewards.data), rewards.row_stride, rewards.column_stride},
                            rules.nan);
    with_float(weights.dtype, "weights", [&](auto w) {
      using W = decltype(w);
      const Weights<W> weight({static_cast<const W*>(weights.data), weights.row_stride, weights.column_stride}, m);
      if (rules.nan == NanRewards::raise) require_scored(p, reward);
      if (rules.aggregate == Aggregate::normalize_then_sum)
        normalize_then_sum(p, reward, weight, scores);
      else
        sum_then_normalize(p, reward, weight, scores);
    });
    if (rules.whiten != Whiten::none) whiten_batch(p, scores);
    R* result = static_cast<R*>(advantages);
    if (mask)
      spread(scores, *mask, n, tokens, result);
    else
      std::transform(scores, scores + n, result, advantage_of<R>);
  });
}

}  // namespace morlfast
