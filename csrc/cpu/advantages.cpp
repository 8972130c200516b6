#include "morlfast/advantages.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "parallel.hpp"
#include "simd.hpp"
#include "workspace.hpp"

namespace morlfast {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Mean and deviation of scored (not NaN) values: add() each, settle(), then add_square() each again. Both passes are
/// about the first value, so equal values give exactly 0.
struct Moments {
  double pivot = 0, sum = 0, squares = 0;
  double centre = 0;  // mean minus pivot: subtracted after the pivot, the mean itself is never rounded
  int64_t count = 0;

  void add(double value) {
    if (count++ == 0) pivot = value;
    sum += value - pivot;
  }
  void settle() { centre = count > 0 ? sum / static_cast<double>(count) : 0; }
  double centred(double value) const { return (value - pivot) - centre; }
  void add_square(double value) { squares += centred(value) * centred(value); }
  double deviation(int64_t ddof) const {
    if (!finite()) return kNan;
    return count > ddof ? std::sqrt(squares / static_cast<double>(count - ddof)) : 0;
  }
  bool finite() const { return std::isfinite(pivot) && std::isfinite(sum); }
};

double divide(double centred, double divisor) { return divisor == 0 ? 0 : centred / divisor; }

constexpr int64_t kChunk = 4096;

/// Moments of value(i) over the i in 0..n-1 with is_scored(i), in chunks of a fixed size so that threads do not change
/// the sum.
template <class IsScored, class Value>
Moments batch_moments(int64_t n, bool parallel, const IsScored& is_scored, const Value& value) {
  Moments all;
  for (int64_t i = 0; i < n; ++i) {
    if (is_scored(i)) {
      all.pivot = value(i);
      break;
    }
  }
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  std::vector<Moments> parts(chunks);
  const auto each_value = [&](int64_t c, const auto& visit) {
    for (int64_t i = c * kChunk; i < std::min(n, (c + 1) * kChunk); ++i)
      if (is_scored(i)) visit(value(i));
  };
  parallel_for(chunks, parallel,
               [&](int64_t c) { each_value(c, [&](double x) { parts[c].sum += x - all.pivot, ++parts[c].count; }); });
  for (const Moments& part : parts) all.sum += part.sum, all.count += part.count;
  all.settle();
  parallel_for(chunks, parallel, [&](int64_t c) {
    each_value(c, [&](double x) {
      const double d = all.centred(x);
      parts[c].squares += d * d;
    });
  });
  for (const Moments& part : parts) all.squares += part.squares;
  return all;
}

struct Problem {
  int64_t n, m;
  const Groups& groups;
  AdvantageMethod method;
  AdvantageScale scale;
  double eps;
  int64_t ddof;
  bool parallel;
};

/// (n, m) rewards or weights as doubles.
template <class T>
struct Matrix {
  const T* data;
  int64_t row_stride, column_stride;

  double operator()(int64_t i, int64_t k) const {
    return data ? static_cast<double>(data[i * row_stride + k * column_stride]) : 1.0;
  }

  void read(int64_t i, int64_t m, double* out) const {
    if (data && column_stride == 1)
      for (int64_t k = 0; k < m; ++k) out[k] = static_cast<double>(data[i * row_stride + k]);
    else
      for (int64_t k = 0; k < m; ++k) out[k] = (*this)(i, k);
  }
};

/// scores[i] = sum_k w_ik r_ik over the scored objectives; scored[i]: there is one.
template <class R, class W>
void weighted_sums(const Problem& p, const Matrix<R>& rewards, const Matrix<W>& weights, double* scores, char* scored) {
  parallel_for((p.n + kChunk - 1) / kChunk, p.parallel, [&](int64_t c) {
    for (int64_t i = c * kChunk; i < std::min(p.n, (c + 1) * kChunk); ++i) {
      scores[i] = 0;
      for (int64_t k = 0; k < p.m; ++k) {
        const double r = rewards(i, k);
        if (std::isnan(r)) continue;
        scores[i] += weights(i, k) * r;
        scored[i] = 1;
      }
    }
  });
}

/// GRPO, Dr. GRPO and RLOO: centres each group of scores and divides; in place.
void centre_groups(const Problem& p, double* scores, const char* scored) {
  double batch_divisor = 1;
  if (p.scale == AdvantageScale::batch)
    batch_divisor =
        batch_moments(
            p.n, p.parallel, [&](int64_t i) { return scored[i] != 0; }, [&](int64_t i) { return scores[i]; })
            .deviation(p.ddof) +
        p.eps;
  parallel_for(p.groups.count(), p.parallel, [&](int64_t g) {
    const int64_t begin = p.groups.begin(g), end = p.groups.end(g);
    const auto each_score = [&](const auto& visit) {
      for (int64_t place = begin; place < end; ++place)
        if (const int64_t i = p.groups.row(place); scored[i]) visit(scores[i]);
    };
    Moments moments;
    each_score([&](double score) { moments.add(score); });
    moments.settle();
    double divisor = batch_divisor;
    if (p.scale == AdvantageScale::group) {
      each_score([&](double score) { moments.add_square(score); });
      divisor = moments.deviation(p.ddof) + p.eps;
    }
    const double n = static_cast<double>(moments.count);
    const double leave_one_out = p.method == AdvantageMethod::rloo && n > 1 ? n / (n - 1) : 1;
    each_score([&](double& score) {
      score = moments.finite() ? divide(leave_one_out * moments.centred(score), divisor) : kNan;
    });
  });
}

/// Standardizes each objective of one group; arrays over the objectives, so that loops over them are vectors.
class GroupStandardizer {
 public:
  explicit GroupStandardizer(int64_t m) : m_(m), pivot_(m), centre_(m), count_(m), squares_(m), divisor_(m) {}

  /// values (rows, m) become (value - mean) / divisor. NaN, which is not scored, stays; the other values of an
  /// objective without a finite mean become infinite. The divisor is the group's own deviation plus eps, or
  /// `batch_divisors`.
  void standardize(double* values, int64_t rows, const double* batch_divisors, int64_t ddof, double eps) {
    for (int64_t k = 0; k < m_; ++k) {
      int64_t i = 0;
      while (i < rows && std::isnan(values[i * m_ + k])) ++i;
      pivot_[k] = i < rows ? values[i * m_ + k] : 0;
    }
    std::fill(centre_.begin(), centre_.end(), 0);
    std::fill(count_.begin(), count_.end(), 0);
    simd().sum_scored(values, rows, m_, pivot_.data(), centre_.data(), count_.data());
    for (int64_t k = 0; k < m_; ++k) centre_[k] = count_[k] > 0 ? centre_[k] / count_[k] : 0;
    if (!batch_divisors) {
      std::fill(squares_.begin(), squares_.end(), 0);
      simd().sum_squares(values, rows, m_, pivot_.data(), centre_.data(), squares_.data());
    }
    for (int64_t k = 0; k < m_; ++k) {
      const double freedom = count_[k] - static_cast<double>(ddof);
      const double divisor =
          batch_divisors ? batch_divisors[k] : (freedom > 0 ? std::sqrt(squares_[k] / freedom) : 0) + eps;
      divisor_[k] = divisor == 0 ? kInfinity : divisor;  // over nothing is nothing
      if (!std::isfinite(pivot_[k]) || !std::isfinite(centre_[k])) poison(values, rows, k);
    }
    simd().standardize(values, rows, m_, pivot_.data(), centre_.data(), divisor_.data());
  }

 private:
  void poison(double* values, int64_t rows, int64_t k) {
    pivot_[k] = centre_[k] = 0;
    divisor_[k] = 1;
    for (int64_t i = 0; i < rows; ++i)
      if (!std::isnan(values[i * m_ + k])) values[i * m_ + k] = kInfinity;
  }

  int64_t m_;
  std::vector<double> pivot_, centre_, count_, squares_, divisor_;  // centre: mean minus pivot
};

/// GDPO before its whitening: scores[i] = sum_k w_ik (r_ik - mean_g r_k) / (sigma_k + eps).
template <class R, class W>
void decoupled_scores(const Problem& p, const Matrix<R>& rewards, const Matrix<W>& weights, double* scores,
                      char* scored) {
  std::vector<double> batch_divisors;
  if (p.scale == AdvantageScale::none) batch_divisors.assign(p.m, 1);
  for (int64_t k = 0; p.scale == AdvantageScale::batch && k < p.m; ++k)
    batch_divisors.push_back(batch_moments(
                                 p.n, p.parallel, [&](int64_t i) { return !std::isnan(rewards(i, k)); },
                                 [&](int64_t i) { return rewards(i, k); })
                                 .deviation(p.ddof) +
                             p.eps);
  constexpr int64_t kGroupsAtOnce = 64;
  const int64_t runs = (p.groups.count() + kGroupsAtOnce - 1) / kGroupsAtOnce;
  parallel_for(runs, p.parallel, [&](int64_t run) {
    GroupStandardizer standardizer(p.m);
    std::vector<double> values, weight(p.m);
    weights.read(0, p.m, weight.data());
    for (int64_t g = run * kGroupsAtOnce; g < std::min(p.groups.count(), (run + 1) * kGroupsAtOnce); ++g) {
      const int64_t begin = p.groups.begin(g), rows = p.groups.end(g) - begin;
      values.resize(rows * p.m);
      for (int64_t place = 0; place < rows; ++place) {
        const int64_t i = p.groups.row(begin + place);
        double* row = &values[place * p.m];
        rewards.read(i, p.m, row);
        scored[i] = std::any_of(row, row + p.m, [](double r) { return !std::isnan(r); });
      }
      standardizer.standardize(values.data(), rows, batch_divisors.empty() ? nullptr : batch_divisors.data(), p.ddof,
                               p.eps);
      for (int64_t place = 0; place < rows; ++place) {
        const int64_t i = p.groups.row(begin + place);
        const double* row = &values[place * p.m];
        if (weights.row_stride != 0) weights.read(i, p.m, weight.data());
        double sum = 0;
        for (int64_t k = 0; k < p.m; ++k) sum += std::isnan(row[k]) ? 0 : weight[k] * row[k];
        scores[i] = sum;
      }
    }
  });
}

/// (s - mean) / (std + eps) over the scored rollouts of the batch; NaN or infinity among them makes all of them NaN.
void whiten_batch(const Problem& p, double* scores, const char* scored) {
  const Moments moments =
      batch_moments(p.n, p.parallel, [&](int64_t i) { return scored[i] != 0; }, [&](int64_t i) { return scores[i]; });
  const double divisor = moments.deviation(p.ddof) + p.eps;
  const bool finite = moments.finite();
  for (int64_t i = 0; i < p.n; ++i)
    if (scored[i]) scores[i] = finite ? divide(moments.centred(scores[i]), divisor) : kNan;
}

struct Buffers {
  std::vector<double> scores;
  std::vector<char> scored;
};

template <class R, class W>
void run(const Problem& p, const Matrix<R>& rewards, const Matrix<W>& weights, R* advantages) {
  const Workspace<Buffers> buffers(p.n <= kKeptRows);
  auto& [scores, scored] = *buffers;
  scores.resize(p.n);
  scored.assign(p.n, 0);
  if (p.method == AdvantageMethod::gdpo) {
    decoupled_scores(p, rewards, weights, scores.data(), scored.data());
    whiten_batch(p, scores.data(), scored.data());
  } else {
    weighted_sums(p, rewards, weights, scores.data(), scored.data());
    centre_groups(p, scores.data(), scored.data());
  }
  for (int64_t i = 0; i < p.n; ++i) {
    const double advantage = scored[i] ? scores[i] : 0;
    if constexpr (std::is_same_v<R, double>)
      advantages[i] = advantage;
    else
      advantages[i] = static_cast<R>(static_cast<float>(advantage));
  }
}

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
                      AdvantageMethod method, AdvantageScale scale, double eps, int64_t ddof, void* advantages) {
  const Problem p{groups.rows(), m, groups, method, scale, eps, ddof, groups.rows() * m >= 32768};
  with_float(rewards.dtype, "rewards", [&](auto r) {
    using R = decltype(r);
    const Matrix<R> reward{static_cast<const R*>(rewards.data), rewards.row_stride, rewards.column_stride};
    with_float(weights.dtype, "weights", [&](auto w) {
      using W = decltype(w);
      run(p, reward, Matrix<W>{static_cast<const W*>(weights.data), weights.row_stride, weights.column_stride},
          static_cast<R*>(advantages));
    });
  });
}

}  // namespace morlfast
