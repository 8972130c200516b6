#include "morlfast/returns.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "parallel.hpp"
#include "read_row.hpp"
#include "workspace.hpp"

namespace morlfast {
namespace {

// One row is one chain of a product, a sum and a selection, 7 cycles a token; eight rows side by side hide it. Pieces
// are long, because a new page costs more than the buffers of eight rows (200 KB, in the second-level cache). At 2048 x
// 1024 half of the time is arithmetic, half waits for memory: 16 bytes a token and the mask, or 34 MB.
constexpr int kLanes = 8;
constexpr int64_t kPiece = 1024;
constexpr int64_t kPitch = kPiece + 8;  // rows of a power of two would share cache sets

template <class F>
void with_floating(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::float64:
      return f(double{});
    case Dtype::bfloat16:
      return f(bfloat16{});
    case Dtype::float16:
      return f(float16{});
    default:
      return f(float{});
  }
}

template <class T>
T narrowed(double value) {
  if constexpr (std::is_same_v<T, double> || std::is_same_v<T, float>) return static_cast<T>(value);
  return T(static_cast<float>(value));
}

bool is_set(const MatrixView& flags, int64_t row, int64_t column) {
  uint8_t buffer;
  return *read_mask(flags, row, column, 1, &buffer) != 0;
}

double value_at(const MatrixView& values, int64_t row, int64_t column) {
  double buffer;
  return *read_row(values, row, column, 1, &buffer);
}

/// Terms and factors of the tokens of a piece, lane by lane, and each lane's state.
struct Chain {
  double x[kLanes][kPitch], a[kLanes][kPitch], y[kLanes];

  /// y = x + a y through `count` tokens of every lane; x becomes y.
  template <bool kReverse>
  void run(int64_t count) {
    double state[kLanes];
    std::copy(y, y + kLanes, state);
    for (int64_t step = 0; step < count; ++step) {
      const int64_t t = kReverse ? count - 1 - step : step;
      for (int lane = 0; lane < kLanes; ++lane) {
        const double factor = a[lane][t], product = factor * state[lane];
        state[lane] = x[lane][t] + (factor != 0 ? product : 0.0);
        x[lane][t] = state[lane];
      }
    }
    std::copy(state, state + kLanes, y);
  }

  /// Tokens that leave a lane's state as it is.
  void pass(int lane, int64_t first, int64_t last) {
    std::fill(x[lane] + first, x[lane] + last, 0.0);
    std::fill(a[lane] + first, a[lane] + last, 1.0);
  }
};

bool none_set(const uint8_t* flags, size_t count) {
  return flags[0] == 0 && std::memcmp(flags, flags + 1, count - 1) == 0;
}

/// The mask of a piece, in runs of tokens: masks are long stretches of one value, and those need no selection.
struct PieceMask {
  enum Run : uint8_t { kNone, kSome, kAll };
  static constexpr int64_t kRun = 64;

  uint8_t buffer[kPiece];
  const uint8_t* valid = nullptr;  // nullptr without a mask
  Run runs[kPiece / kRun];

  void read(const std::optional<MatrixView>& mask, int64_t row, int64_t column, int64_t count) {
    valid = mask ? read_mask(*mask, row, column, count, buffer) : nullptr;
    if (!valid) return;
    for (int64_t first = 0; first < count; first += kRun) {
      const auto length = static_cast<size_t>(std::min(kRun, count - first));
      runs[first / kRun] = none_set(valid + first, length)                    ? kNone
                           : std::memchr(valid + first, 0, length) == nullptr ? kAll
                                                                              : kSome;
    }
  }

  /// Calls visit(first, last, run) for each run, from the last to the first.
  template <class Visit>
  void each_run(int64_t count, const Visit& visit) const {
    if (!valid) return visit(int64_t{0}, count, kAll);
    for (int64_t first = (count - 1) / kRun * kRun; first >= 0; first -= kRun)
      visit(first, std::min(first + kRun, count), runs[first / kRun]);
  }

  /// What is not valid becomes `value`.
  void erase(double* values, double value, int64_t count) const {
    if (!valid) return;
    each_run(count, [&](int64_t first, int64_t last, Run run) {
      if (run == kNone) std::fill(values + first, values + last, value);
      if (run == kSome)
        for (int64_t j = first; j < last; ++j) values[j] = valid[j] ? values[j] : value;
    });
  }
};

/// The first token of the mask in [begin, end), or `end`.
int64_t first_token(const std::optional<MatrixView>& mask, int64_t row, int64_t begin, int64_t end) {
  uint8_t buffer[PieceMask::kRun];
  for (int64_t column = begin; mask && column < end; column += PieceMask::kRun) {
    const int64_t count = std::min(PieceMask::kRun, end - column);
    const uint8_t* valid = read_mask(*mask, row, column, count, buffer);
    if (none_set(valid, static_cast<size_t>(count))) continue;
    return column + (std::find_if(valid, valid + count, [](uint8_t flag) { return flag != 0; }) - valid);
  }
  return mask ? end : begin;
}

/// The last token of the mask in [0, end), or -1.
int64_t last_token(const std::optional<MatrixView>& mask, int64_t row, int64_t end) {
  uint8_t buffer[PieceMask::kRun];
  for (int64_t behind = end; mask && behind > 0; behind -= PieceMask::kRun) {
    const int64_t column = std::max<int64_t>(0, behind - PieceMask::kRun);
    const uint8_t* valid = read_mask(*mask, row, column, behind - column, buffer);
    if (none_set(valid, static_cast<size_t>(behind - column))) continue;
    int64_t last = behind - 1;
    while (valid[last - column] == 0) --last;
    return last;
  }
  return mask ? -1 : end - 1;
}

/// Part of a row.
struct Segment {
  int64_t row, begin, end;
};

/// Rows of one shape, each cut into as many segments as keep every lane and thread busy.
struct Cut {
  int64_t rows, columns, parts, length;

  Cut(int64_t n, int64_t t) : rows(n), columns(t) {
    constexpr int64_t kLeast = 4096;  // tokens of a row that are worth a second scan
    const int64_t wanted = n >= int64_t{2} * kLanes ? 1 : (int64_t{4} * kLanes + n - 1) / n;
    parts = std::max<int64_t>(1, std::min(wanted, t / kLeast));
    length = t;
    if (parts == 1) return;
    length = ((t + parts - 1) / parts + kPiece - 1) / kPiece * kPiece;
    parts = (t + length - 1) / length;
  }
  int64_t segments() const { return rows * parts; }
  Segment segment(int64_t s) const {
    const int64_t begin = s % parts * length;
    return {s / parts, begin, std::min(begin + length, columns)};
  }
};

/// What the rows of a lane keep of a piece from reading to writing it.
struct Scratch {
  double values[kPiece + 1];  // and that of the token behind
  PieceMask mask;
  double next_value;  // of the token behind the piece
};

/// A third of a megabyte, too much for a thread's stack.
struct Buffers {
  Scratch scratch[kLanes];
  Chain chains[2];
};

struct BufferPointer {
  std::unique_ptr<Buffers> buffers = std::make_unique<Buffers>();
};

/// end = local + factor * start of a chain of a segment; with a factor of 0 among its tokens end = local.
struct Summary {
  double local, factor;
  bool cut;

  /// Whether these numbers give the end: products of many factors overflow and vanish where the state itself does not,
  /// and 0 * inf or 0 * NaN is not what the state went through.
  bool suffices(double start) const {
    constexpr double kLeast = std::numeric_limits<double>::min(), kLarge = 1e16;
    if (cut || std::isnan(start)) return true;
    return std::isfinite(local) && std::isfinite(factor) && std::isfinite(start) &&
           (std::fabs(factor) >= kLeast || std::fabs(start) <= kLarge);
  }
  double end(double start) const { return cut ? local : local + factor * start; }
};

/// Scans up to kLanes segments from `first` on. A family of rows says what the terms and factors are (prepare), and
/// what to do with the states (write).
template <class Rows>
class Block {
 public:
  Block(const Rows& rows, const Cut& cut, int64_t first, int64_t count)
      : rows_(rows), lanes_(static_cast<int>(count)), length_(cut.length) {
    for (int lane = 0; lane < lanes_; ++lane) {
      segments_[lane] = cut.segment(first + lane);
      rows_.enter(scratch_[lane], first + lane);
    }
    for (int c = 0; c < Rows::kChains; ++c)
      for (int lane = lanes_; lane < kLanes; ++lane) chains_[c].pass(lane, 0, std::min(kPiece, length_));
  }

  /// `start[c][lane]` are the states of chain c.
  void scan_and_write(const double (&start)[Rows::kChains][kLanes]) {
    for (int c = 0; c < Rows::kChains; ++c) std::copy(start[c], start[c] + kLanes, chains_[c].y);
    each_piece([&](int64_t piece, int64_t count) {
      run(count);
      for (int lane = 0; lane < lanes_; ++lane) {
        const auto [column, tokens] = place(lane, piece);
        const double* states[Rows::kChains];
        for (int c = 0; c < Rows::kChains; ++c) states[c] = chains_[c].x[lane];
        if (tokens > 0) rows_.write(scratch_[lane], segments_[lane].row, column, tokens, states);
      }
    });
  }

  void summarize(Summary (&summaries)[Rows::kChains][kLanes]) {
    double factor[Rows::kChains][kLanes], cut[Rows::kChains][kLanes] = {};
    for (int c = 0; c < Rows::kChains; ++c) {
      std::fill(chains_[c].y, chains_[c].y + kLanes, 0.0);
      std::fill(factor[c], factor[c] + kLanes, 1.0);
    }
    each_piece([&](int64_t, int64_t count) {
      run(count);
      for (int c = 0; c < Rows::kChains; ++c)
        for (int64_t t = 0; t < count; ++t)
          for (int lane = 0; lane < kLanes; ++lane) {
            const double a = chains_[c].a[lane][t];
            factor[c][lane] *= a;
            cut[c][lane] = a == 0 ? 1.0 : cut[c][lane];
          }
    });
    for (int c = 0; c < Rows::kChains; ++c)
      for (int lane = 0; lane < kLanes; ++lane)
        summaries[c][lane] = {chains_[c].y[lane], factor[c][lane], cut[c][lane] != 0};
  }

  /// The state of chain c at the end of the first segment.
  double end(int c, double start) {
    chains_[c].y[0] = start;
    each_piece([&](int64_t, int64_t count) { run(count); });
    return chains_[c].y[0];
  }

 private:
  void run(int64_t count) {
    for (int c = 0; c < Rows::kChains; ++c) chains_[c].template run<Rows::kReverse>(count);
  }

  /// First column and number of tokens of a lane's piece.
  std::pair<int64_t, int64_t> place(int lane, int64_t piece) const {
    const int64_t column = segments_[lane].begin + piece * kPiece;
    return {column, std::clamp<int64_t>(segments_[lane].end - column, 0, kPiece)};
  }

  template <class Visit>
  void each_piece(const Visit& visit) {
    const int64_t pieces = (length_ + kPiece - 1) / kPiece;
    for (int64_t step = 0; step < pieces; ++step) {
      const int64_t piece = Rows::kReverse ? pieces - 1 - step : step;
      int64_t count = 0;
      for (int lane = 0; lane < lanes_; ++lane) count = std::max(count, place(lane, piece).second);
      for (int lane = 0; lane < lanes_; ++lane) {
        const auto [column, tokens] = place(lane, piece);
        if (lane + 1 < lanes_) {
          const auto [ahead, more] = place(lane + 1, piece);
          rows_.prefetch(segments_[lane + 1].row, ahead, more);
        }
        if (tokens > 0) rows_.prepare(scratch_[lane], segments_[lane].row, column, tokens, chains_, lane);
        for (int c = 0; c < Rows::kChains; ++c) chains_[c].pass(lane, tokens, count);
      }
      visit(piece, count);
    }
  }

  const Rows& rows_;
  int lanes_;
  int64_t length_;
  Segment segments_[kLanes];
  const Workspace<BufferPointer> workspace_{true};
  Scratch* const scratch_ = workspace_->buffers->scratch;
  Chain* const chains_ = workspace_->buffers->chains;
};

/// States that every segment starts with, (segments, chains).
template <class Rows>
std::vector<double> states_before(const Rows& rows, const Cut& cut, bool parallel) {
  const int64_t segments = cut.segments(), blocks = (segments + kLanes - 1) / kLanes;
  std::vector<Summary> summaries(segments * Rows::kChains);
  parallel_for(blocks, parallel, [&](int64_t block) {
    Summary of_lanes[Rows::kChains][kLanes];
    const int64_t first = block * kLanes, count = std::min<int64_t>(kLanes, segments - first);
    Block<Rows>(rows, cut, first, count).summarize(of_lanes);
    for (int64_t lane = 0; lane < count; ++lane)
      for (int c = 0; c < Rows::kChains; ++c) summaries[(first + lane) * Rows::kChains + c] = of_lanes[c][lane];
  });
  std::vector<double> states(segments * Rows::kChains);
  parallel_for(cut.rows, parallel, [&](int64_t row) {
    for (int c = 0; c < Rows::kChains; ++c) {
      double state = rows.start(row);
      for (int64_t step = 0; step < cut.parts; ++step) {
        const int64_t s = row * cut.parts + (Rows::kReverse ? cut.parts - 1 - step : step);
        states[s * Rows::kChains + c] = state;
        const Summary& summary = summaries[s * Rows::kChains + c];
        state = summary.suffices(state) ? summary.end(state) : Block<Rows>(rows, cut, s, 1).end(c, state);
      }
    }
  });
  return states;
}

template <class Rows>
void scan(const Rows& rows, const Cut& cut) {
  const bool parallel = cut.rows * cut.columns >= 16384;
  const std::vector<double> states = cut.parts > 1 ? states_before(rows, cut, parallel) : std::vector<double>();
  const int64_t segments = cut.segments();
  parallel_for((segments + kLanes - 1) / kLanes, parallel, [&](int64_t block) {
    double start[Rows::kChains][kLanes] = {};
    const int64_t first = block * kLanes, count = std::min<int64_t>(kLanes, segments - first);
    for (int64_t lane = 0; lane < count; ++lane)
      for (int c = 0; c < Rows::kChains; ++c)
        start[c][lane] = cut.parts > 1 ? states[(first + lane) * Rows::kChains + c] : rows.start(first + lane);
    Block<Rows>(rows, cut, first, count).scan_and_write(start);
  });
}

template <class T, bool reverse>
struct LinearRows {
  static constexpr bool kReverse = reverse;
  static constexpr int kChains = 1;
  const MatrixView &x, &a;
  const std::optional<MatrixView>&initial, &mask;
  int64_t columns;
  bool carry;
  T* y;

  void prefetch(int64_t row, int64_t column, int64_t count) const { prefetch_row(x, row, column, count); }

  double start(int64_t row) const { return initial ? value_at(*initial, row, 0) : 0.0; }

  void enter(Scratch&, int64_t) const {}

  void prepare(Scratch& scratch, int64_t row, int64_t column, int64_t count, Chain* chain, int lane) const {
    double buffer[kPiece], *terms = chain->x[lane], *factors = chain->a[lane];
    const double* source = read_row(x, row, column, count, buffer);
    std::copy(source, source + count, terms);
    source = read_row(a, row, column, count, buffer);
    std::copy(source, source + count, factors);
    scratch.mask.read(mask, row, column, count);
    scratch.mask.erase(terms, 0.0, count);
    scratch.mask.erase(factors, 1.0, count);
  }

  void write(const Scratch& scratch, int64_t row, int64_t column, int64_t count, const double* const* states) const {
    T* target = y + row * columns + column;
    scratch.mask.each_run(count, [&](int64_t first, int64_t last, PieceMask::Run run) {
      if (run == PieceMask::kAll || carry)
        for (int64_t j = first; j < last; ++j) target[j] = narrowed<T>(states[0][j]);
      else if (run == PieceMask::kNone)
        std::fill(target + first, target + last, T{});
      else
        for (int64_t j = first; j < last; ++j) target[j] = narrowed<T>(scratch.mask.valid[j] ? states[0][j] : 0.0);
    });
  }
};

/// The value that the last token of each segment has behind it; nothing where `next_values` say so.
std::vector<double> values_behind(const GaeInputs& in, const Cut& cut) {
  if (in.next_values) return {};
  std::vector<double> values(cut.segments());
  const auto behind_row = [&](int64_t row) {
    if (in.finished && is_set(*in.finished, row, 0)) return 0.0;
    if (in.bootstrap) return value_at(*in.bootstrap, row, 0);
    const int64_t last = in.repeat_last ? last_token(in.mask, row, cut.columns) : -1;
    return last < 0 ? 0.0 : value_at(in.values, row, last);
  };
  parallel_for(cut.rows, cut.rows * cut.columns >= 16384, [&](int64_t row) {
    double value = behind_row(row);
    for (int64_t s = (row + 1) * cut.parts - 1; s >= row * cut.parts; --s) {
      values[s] = value;
      if (s == row * cut.parts) break;
      const auto [_, begin, end] = cut.segment(s);
      const int64_t first = first_token(in.mask, row, begin, end);
      if (first < end) value = value_at(in.values, row, first);
    }
  });
  return values;
}

template <class T, bool decoupled>
struct GaeRows {
  static constexpr bool kReverse = true;
  static constexpr int kChains = decoupled ? 2 : 1;

  const GaeInputs& in;
  const MatrixView& returns_lam;
  const std::vector<double>& behind;  // of each segment
  int64_t columns;
  T *advantages, *returns;

  void prefetch(int64_t row, int64_t column, int64_t count) const {
    prefetch_row(in.rewards, row, column, count);
    prefetch_row(in.values, row, column, count);
    if (in.mask) prefetch_row(*in.mask, row, column, count);
  }

  double start(int64_t) const { return 0.0; }

  void enter(Scratch& scratch, int64_t segment) const { scratch.next_value = behind.empty() ? 0.0 : behind[segment]; }

  void prepare(Scratch& scratch, int64_t row, int64_t column, int64_t count, Chain* chains, int lane) const {
    double buffer[kPiece], other_buffer[kPiece], *x = chains[0].x[lane], *a = chains[0].a[lane], *v = scratch.values;
    uint8_t flags[kPiece];
    const double* read = read_row(in.values, row, column, count, v);
    if (read != v) std::copy(read, read + count, v);
    const PieceMask& mask = scratch.mask;
    scratch.mask.read(in.mask, row, column, count);

    const double* next = v + 1;
    if (in.next_values) {
      next = read_row(*in.next_values, row, column, count, other_buffer);
    } else if (mask.valid) {
      mask.each_run(count, [&](int64_t first, int64_t last, PieceMask::Run run) {
        double value = scratch.next_value;
        if (run == PieceMask::kAll) {
          for (int64_t j = first; j < last; ++j) other_buffer[j] = v[j + 1];
          other_buffer[last - 1] = std::exchange(value, v[first]);
        } else if (run == PieceMask::kNone) {
          std::fill(other_buffer + first, other_buffer + last, value);
        } else {
          for (int64_t j = last - 1; j >= first; --j) {
            other_buffer[j] = value;
            value = mask.valid[j] ? v[j] : value;
          }
        }
        scratch.next_value = value;
      });
      next = other_buffer;
    } else {
      v[count] = std::exchange(scratch.next_value, v[0]);
    }

    // x = r + gamma V' - V
    if (in.gamma.column_stride == 0) {
      const double gamma = value_at(in.gamma, row, 0);
      for (int64_t j = 0; j < count; ++j) x[j] = gamma * next[j];
    } else {
      const double* gamma = read_row(in.gamma, row, column, count, buffer);
      for (int64_t j = 0; j < count; ++j) x[j] = gamma[j] * next[j];
    }
    if (in.terminated) {
      const uint8_t* terminated = read_mask(*in.terminated, row, column, count, flags);
      for (int64_t j = 0; j < count; ++j) x[j] = terminated[j] ? 0.0 : x[j];
    }
    const double* r = read_row(in.rewards, row, column, count, buffer);
    for (int64_t j = 0; j < count; ++j) x[j] = r[j] + x[j] - v[j];
    mask.erase(x, 0.0, count);

    const uint8_t* done = in.done ? read_mask(*in.done, row, column, count, flags) : nullptr;
    discount(in.lam, row, column, count, mask, done, a);
    if constexpr (decoupled) {
      std::copy(x, x + count, chains[1].x[lane]);
      discount(returns_lam, row, column, count, mask, done, chains[1].a[lane]);
    }
  }

  /// a = gamma lambda, 0 where done, 1 outside the mask
  void discount(const MatrixView& lam, int64_t row, int64_t column, int64_t count, const PieceMask& mask,
                const uint8_t* done, double* a) const {
    if (in.gamma.column_stride == 0 && lam.column_stride == 0) {
      std::fill(a, a + count, value_at(in.gamma, row, 0) * value_at(lam, row, 0));
    } else {
      double gamma_buffer[kPiece], lam_buffer[kPiece];
      const double* gamma = read_row(in.gamma, row, column, count, gamma_buffer);
      const double* lambda = read_row(lam, row, column, count, lam_buffer);
      for (int64_t j = 0; j < count; ++j) a[j] = gamma[j] * lambda[j];
    }
    if (done)
      for (int64_t j = 0; j < count; ++j) a[j] = done[j] ? 0.0 : a[j];
    mask.erase(a, 1.0, count);
  }

  void write(const Scratch& scratch, int64_t row, int64_t column, int64_t count, const double* const* states) const {
    T *advantage = advantages + row * columns + column, *result = returns + row * columns + column;
    const double *own = states[0], *other = states[kChains - 1], *v = scratch.values;
    scratch.mask.each_run(count, [&](int64_t first, int64_t last, PieceMask::Run run) {
      if (run == PieceMask::kAll || in.carry) {
        for (int64_t j = first; j < last; ++j) advantage[j] = narrowed<T>(own[j]);
        for (int64_t j = first; j < last; ++j) result[j] = narrowed<T>(other[j] + v[j]);
      } else if (run == PieceMask::kNone) {
        std::fill(advantage + first, advantage + last, T{});
        std::fill(result + first, result + last, T{});
      } else {
        for (int64_t j = first; j < last; ++j) {
          advantage[j] = narrowed<T>(scratch.mask.valid[j] ? own[j] : 0.0);
          result[j] = narrowed<T>(scratch.mask.valid[j] ? other[j] + v[j] : 0.0);
        }
      }
    });
  }
};

/// Tokens of a mask, and sums of their distances from a pivot.
struct Moments {
  double sum = 0, squares = 0;
  int64_t count = 0;
};

/// Calls visit(values, mask, count, column) for the pieces of a part of a row.
template <class Visit>
void each_piece_of(const MatrixView& values, const std::optional<MatrixView>& mask, const Segment& part,
                   const Visit& visit) {
  double buffer[kPiece];
  PieceMask piece;
  for (int64_t column = part.begin; column < part.end; column += kPiece) {
    const int64_t count = std::min(kPiece, part.end - column);
    piece.read(mask, part.row, column, count);
    visit(read_row(values, part.row, column, count, buffer), piece, count, column);
  }
}

Moments moments_of(const MatrixView& values, const std::optional<MatrixView>& mask, const Segment& part, double pivot) {
  constexpr int kSums = 8;  // an addition waits for the one before it in its own sum only
  double sum[kSums] = {}, squares[kSums] = {};
  Moments moments;
  const auto add = [&](int s, double distance) {
    sum[s] += distance;
    squares[s] += distance * distance;
  };
  each_piece_of(values, mask, part, [&](const double* v, const PieceMask& piece, int64_t count, int64_t) {
    piece.each_run(count, [&](int64_t first, int64_t last, PieceMask::Run run) {
      if (run == PieceMask::kSome) {
        for (int64_t j = first; j < last; ++j) {
          add(static_cast<int>(j % kSums), piece.valid[j] ? v[j] - pivot : 0.0);
          moments.count += piece.valid[j] != 0;
        }
      } else if (run == PieceMask::kAll) {
        double one[kSums], two[kSums];  // registers: what is captured by reference stays in memory
        std::copy(sum, sum + kSums, one);
        std::copy(squares, squares + kSums, two);
        int64_t j = first;
        for (; j + kSums <= last; j += kSums)
          for (int s = 0; s < kSums; ++s) {
            const double distance = v[j + s] - pivot;
            one[s] += distance;
            two[s] += distance * distance;
          }
        std::copy(one, one + kSums, sum);
        std::copy(two, two + kSums, squares);
        for (int s = 0; j < last; ++j, ++s) add(s, v[j] - pivot);
        moments.count += last - first;
      }
    });
  });
  for (int s = 0; s < kSums; ++s) {
    moments.sum += sum[s];
    moments.squares += squares[s];
  }
  return moments;
}

struct Whitening {
  double pivot, mean, factor, shift;
};

template <class T>
void whiten_piece(const double* v, const PieceMask& mask, int64_t count, const Whitening w, T* result) {
  mask.each_run(count, [=, &mask](int64_t first, int64_t last, PieceMask::Run run) {
    if (run == PieceMask::kNone) return std::fill(result + first, result + last, T{});
    for (int64_t j = first; j < last; ++j) result[j] = narrowed<T>((v[j] - w.pivot - w.mean) * w.factor + w.shift);
    if (run == PieceMask::kSome)
      for (int64_t j = first; j < last; ++j) result[j] = mask.valid[j] ? result[j] : T{};
  });
}

/// The first value of the mask, or 0: any value of the sample loses at most log2(n) bits of the variance.
double first_valid(const MatrixView& values, const std::optional<MatrixView>& mask, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t column = first_token(mask, row, 0, columns);
    if (column < columns) return value_at(values, row, column);
  }
  return 0.0;
}

double divisor(const Moments& moments, double eps, EpsTo eps_to, int64_t ddof) {
  const auto n = static_cast<double>(moments.count);
  const double squares = moments.squares - moments.sum * moments.sum / n;
  const double variance = moments.count > ddof ? std::max(squares, 0.0) / static_cast<double>(moments.count - ddof)
                                               : squares * 0.0;  // 0, but NaN stays NaN
  switch (eps_to) {
    case EpsTo::std:
      return std::sqrt(variance) + eps;
    case EpsTo::variance:
      return std::sqrt(variance + eps);
    case EpsTo::floor:
      break;
  }
  const double deviation = std::sqrt(variance);
  return deviation < eps ? eps : deviation;
}

}  // namespace

void linear_scan(const MatrixView& x, const MatrixView& a, const std::optional<MatrixView>& initial,
                 const std::optional<MatrixView>& mask, int64_t rows, int64_t columns, bool reverse, bool carry,
                 void* y) {
  if (rows == 0 || columns == 0) return;
  with_floating(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (reverse)
      scan(LinearRows<T, true>{x, a, initial, mask, columns, carry, static_cast<T*>(y)}, Cut(rows, columns));
    else
      scan(LinearRows<T, false>{x, a, initial, mask, columns, carry, static_cast<T*>(y)}, Cut(rows, columns));
  });
}

void gae(const GaeInputs& inputs, int64_t rows, int64_t columns, Dtype result, void* advantages, void* returns) {
  if (rows == 0 || columns == 0) return;
  const Cut cut(rows, columns);
  const std::vector<double> behind = values_behind(inputs, cut);
  with_floating(result, [&](auto zero) {
    using T = decltype(zero);
    auto *advantage = static_cast<T*>(advantages), *both = static_cast<T*>(returns);
    if (inputs.returns_lam)
      scan(GaeRows<T, true>{inputs, *inputs.returns_lam, behind, columns, advantage, both}, cut);
    else
      scan(GaeRows<T, false>{inputs, inputs.lam, behind, columns, advantage, both}, cut);
  });
}

void whiten(const MatrixView& values, const std::optional<MatrixView>& mask, int64_t rows, int64_t columns, double eps,
            EpsTo eps_to, int64_t ddof, bool shift_mean, bool outside, void* result) {
  if (rows == 0 || columns == 0) return;
  const bool parallel = rows * columns >= 16384;
  const double pivot = first_valid(values, mask, rows, columns);
  // Parts of a fixed size, added in order: the sums do not depend on the number of threads.
  constexpr int64_t kPart = 16 * kPiece;
  const int64_t parts = (columns + kPart - 1) / kPart;
  const auto part = [&](int64_t p) {
    const int64_t begin = p % parts * kPart;
    return Segment{p / parts, begin, std::min(begin + kPart, columns)};
  };
  std::vector<Moments> moments(rows * parts);
  parallel_for(rows * parts, parallel, [&](int64_t p) { moments[p] = moments_of(values, mask, part(p), pivot); });
  Moments all;
  for (const Moments& one : moments) {
    all.sum += one.sum;
    all.squares += one.squares;
    all.count += one.count;
  }
  const double mean = all.count > 0 ? all.sum / static_cast<double>(all.count) : 0.0;
  const double scale = all.count > 0 ? divisor(all, eps, eps_to, ddof) : 0.0;
  const double factor = scale == 0 ? 0.0 : 1 / scale, shift = shift_mean ? 0.0 : pivot + mean;
  with_floating(values.dtype, [&](auto zero) {
    using T = decltype(zero);
    const std::optional<MatrixView> none;
    parallel_for(rows * parts, parallel, [&](int64_t p) {
      const Segment here = part(p);
      each_piece_of(values, outside ? none : mask, here,
                    [&](const double* v, const PieceMask& piece, int64_t count, int64_t column) {
                      whiten_piece(v, piece, count, {pivot, mean, factor, shift},
                                   static_cast<T*>(result) + here.row * columns + column);
                    });
    });
  });
}

}  // namespace morlfast
