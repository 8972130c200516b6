// Contributions, improvements, greedy subsets and boxes against the cells of the grid through all coordinates.
#include <algorithm>
#include <bit>
#include <numeric>
#include <tuple>

#include "driver.hpp"
#include "fronts.hpp"
#include "grid.hpp"
#include "morlfast/hypervolume.hpp"

namespace driver {
namespace {

using morlfast::Boxes;

template <template <class, class> class Check>
void check_any_dtypes(Random& random) {
  random.pick<void (*)(Random&)>({Check<float, float>::run, Check<float, double>::run, Check<double, float>::run,
                                  Check<double, double>::run})(random);
}

/// The front without the points that another one dominates.
Front without_dominated(const Front& front) {
  Front kept = front;
  for (std::size_t i = 0; i < front.points.size(); ++i)
    for (const Point& other : front.points) {
      bool no_worse = true;
      for (std::size_t k = 0; k < other.size(); ++k) no_worse &= other[k] <= front.points[i][k];
      if (no_worse && other != front.points[i]) kept.points[i].assign(front.ref.size(), kInf);
    }
  return kept;
}

template <class T, class R>
struct Contributions {
  static void run(Random& random) {
    const RandomFronts<T, R> fronts(random, 0);
    const int64_t n = fronts.n;
    const bool ignore_dominated = random.chance(0.5);
    const std::unique_ptr<T[]> contributions(new T[fronts.batch * n]);
    if (!fronts.succeeds(
            [&] { morlfast::hypervolume_contributions(fronts.view(), ignore_dominated, contributions.get()); }))
      return;
    for (int64_t b = 0; b < fronts.batch; ++b) {
      const Front front = ignore_dominated ? without_dominated(fronts.fronts[b]) : fronts.fronts[b];
      std::vector<double> want(n);
      if (front.ref_is_nan)
        std::fill_n(want.begin(), fronts.length(b), kNan);
      else
        Grid(front, all_axes(fronts.m)).each([&](uint64_t covering, double measure, int64_t) {
          if (std::has_single_bit(covering)) want[std::countr_zero(covering)] += measure;
        });
      for (int64_t i = 0; i < n; ++i)
        fronts.expect_close(contributions[b * n + i], want[i], "contribution of row " + std::to_string(i));
    }
  }
};

template <class T, class R>
struct Improvement {
  static void run(Random& random) {
    const int64_t sets = random.pick<int64_t>({0, 1, 3, 7, 8, 9, 20}), size = random.integer(0, sets < 5 ? 4 : 1);
    RandomFronts<T, R> fronts(random, sets * size);
    const auto [m, n, batch] = std::tuple(fronts.m, fronts.n, fronts.batch);
    Array candidates(random, fronts.points.dtype(), appended(fronts.shape, {sets, size, m}));
    candidates.fill(random, fronts.numbers);
    std::vector<Front> extended = fronts.fronts;  // its candidates behind each front
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < sets * size; ++i)
        fronts.add(extended[b], [&](int64_t k) { return candidates.at(b, {i / size, i % size, k}); });
    const std::unique_ptr<T[]> improvement(new T[batch * sets]);
    if (!fronts.succeeds([&] {
          morlfast::hypervolume_improvement({candidates.as<T>(), candidates.layout(3), sets, size,
                                             candidates.stride(-3), candidates.stride(-2), candidates.stride(-1)},
                                            fronts.view(), improvement.get());
        }))
      return;
    for (int64_t b = 0; b < batch; ++b) {
      std::vector<double> want(sets, extended[b].ref_is_nan ? kNan : 0);
      const int64_t length = fronts.length(b);
      if (!extended[b].ref_is_nan)
        Grid(extended[b], all_axes(m)).each([&](uint64_t covering, double measure, int64_t) {
          if (std::countr_zero(covering) < length) return;
          for (int64_t s = 0; s < sets; ++s)
            if (covering >> length >> s * size & ((uint64_t{1} << size) - 1)) want[s] += measure;
        });
      for (int64_t s = 0; s < sets; ++s)
        fronts.expect_close(improvement[b * sets + s], want[s], "improvement of set " + std::to_string(s));
    }
  }
};

template <class T, class R>
struct Subset {
  static void run(Random& random) {
    const RandomFronts<T, R> fronts(random, 0);
    const int64_t k = random.integer(0, fronts.n);
    const std::unique_ptr<int64_t[]> picks(new int64_t[fronts.batch * k]);
    if (!fronts.succeeds([&] { morlfast::hypervolume_subset(fronts.view(), k, picks.get()); })) return;
    for (int64_t b = 0; b < fronts.batch; ++b) expect_greedy(fronts, b, picks.get() + b * k, k);
  }

  static void expect_greedy(const RandomFronts<T, R>& fronts, int64_t b, const int64_t* picks, int64_t k) {
    const Front& front = fronts.fronts[b];
    std::vector<std::pair<uint64_t, double>> cells;
    if (!front.ref_is_nan)
      Grid(front, all_axes(fronts.m)).each([&](uint64_t covering, double measure, int64_t) {
        cells.emplace_back(covering, measure);
      });
    std::vector<char> taken(fronts.length(b), 0);
    for (int64_t pick = 0; pick < k; ++pick) {
      const int64_t row = picks[pick];
      if (pick >= fronts.length(b)) {
        expect(row == -1, "a short front is padded");
        continue;
      }
      expect(row >= 0 && row < fronts.length(b) && !taken[row], "pick " + std::to_string(pick) + " is a new row");
      std::vector<double> gains(fronts.length(b));
      for (const auto& [covering, measure] : cells)
        for (uint64_t left = covering; left; left &= left - 1) gains[std::countr_zero(left)] += measure;
      const double best = *std::max_element(gains.begin(), gains.end());
      if (best == 0 || fronts.exact) {  // of equal gains the lowest row
        for (int64_t i = 0; i < row; ++i)
          expect(taken[i] || gains[i] < best, "pick " + std::to_string(pick) + " is not the lowest row");
        expect(gains[row] == best, "pick " + std::to_string(pick) + " improves less");
      } else {
        fronts.expect_close(static_cast<T>(gains[row]), best, "improvement of pick " + std::to_string(pick));
      }
      taken[row] = 1;
      std::erase_if(cells, [&](const auto& cell) { return cell.first >> row & 1; });
    }
  }
};

template <class T, class R>
struct Decomposition {
  static void run(Random& random) {
    const RandomFronts<T, R> fronts(random, 0);
    const int64_t m = fronts.m;
    const bool dominated = random.chance(0.5);
    std::vector<Boxes> all;
    try {
      if (!fronts.succeeds([&] { all = morlfast::box_decomposition(fronts.view(), dominated); })) return;
    } catch (const morlfast::MemoryLimitExceeded& error) {
      expect(std::string(error.what()).find("max_memory") != std::string::npos, error.what());
      expect(fronts.max_memory < morlfast::kDefaultMaxMemory, "the boxes take less than a gigabyte");
      return;
    }
    std::size_t numbers = 0;
    expect(static_cast<int64_t>(all.size()) == fronts.batch, "one list of boxes for each front");
    for (int64_t b = 0; b < fronts.batch; ++b) {
      numbers += all[b].lower.size() + all[b].upper.size();
      expect_tiles(fronts.fronts[b], all[b], m, fronts.maximize, dominated);
    }
    expect(static_cast<int64_t>(numbers * sizeof(double)) <= std::max<int64_t>(fronts.max_memory, 0),
           "more boxes than max_memory holds");
  }

  static void expect_tiles(const Front& front, const Boxes& boxes, int64_t m, bool maximize, bool dominated) {
    expect(boxes.lower.size() == boxes.upper.size() && boxes.lower.size() % m == 0, "boxes are (count, m)");
    if (front.ref_is_nan) {
      expect(static_cast<int64_t>(boxes.lower.size()) == m && any_nan(boxes.lower) && any_nan(boxes.upper),
             "NaN in ref_point gives one box of NaN");
      return;
    }
    const Grid grid(front, all_axes(m), true);
    std::vector<char> taken(grid.cells());
    for (std::size_t first = 0; first < boxes.lower.size(); first += m) {
      Point low(m), high(m);
      for (int64_t k = 0; k < m; ++k) {
        low[k] = maximize ? 0.0 - boxes.upper[first + k] : boxes.lower[first + k];
        high[k] = maximize ? 0.0 - boxes.lower[first + k] : boxes.upper[first + k];
      }
      grid.each_in(low.data(), high.data(), [&](int64_t cell) {
        expect(!taken[cell], "two boxes overlap");
        taken[cell] = 1;
      });
    }
    grid.each([&](uint64_t covering, double, int64_t cell) {
      expect((taken[cell] != 0) == ((covering != 0) == dominated), taken[cell] ? "a box too much" : "a box too few");
    });
  }
};

}  // namespace

void check_hypervolume_contributions(Random& random) { check_any_dtypes<Contributions>(random); }
void check_hypervolume_improvement(Random& random) { check_any_dtypes<Improvement>(random); }
void check_hypervolume_subset(Random& random) { check_any_dtypes<Subset>(random); }
void check_box_decomposition(Random& random) { check_any_dtypes<Decomposition>(random); }

}  // namespace driver
