#include "drizzle_runs.hpp"

#include <bit>
#include <cstring>

#include "isa.hpp"
#include "vectors.hpp"

namespace skyloom::drizzle {
namespace {

// Left to itself the compiler reads memory again for each use, and most of these reads cross a cache line.
template <class Vector>
SKYLOOM_INLINE Vector load_once(const double* p) {
  typedef Vector Loose __attribute__((aligned(8), may_alias));
  return *reinterpret_cast<const volatile Loose*>(p);
}

// The registers of each instruction set: pairs of {a, b} are parted, or put together from a's and b's.
SKYLOOM_INLINE void part(const Pair& u, const Pair& v, Pair& a, Pair& b) {
  a = shuffle<0, 2>(u, v);
  b = shuffle<1, 3>(u, v);
}
SKYLOOM_INLINE void part(const Quad& u, const Quad& v, Quad& a, Quad& b) {
  a = shuffle<0, 2, 4, 6>(u, v);
  b = shuffle<1, 3, 5, 7>(u, v);
}
SKYLOOM_INLINE void part(const Octet& u, const Octet& v, Octet& a, Octet& b) {
  a = shuffle<0, 2, 4, 6, 8, 10, 12, 14>(u, v);
  b = shuffle<1, 3, 5, 7, 9, 11, 13, 15>(u, v);
}
SKYLOOM_INLINE void join(const Pair& a, const Pair& b, Pair& u, Pair& v) { part(a, b, u, v); }
SKYLOOM_INLINE void join(const Quad& a, const Quad& b, Quad& u, Quad& v) {
  u = shuffle<0, 4, 1, 5>(a, b);
  v = shuffle<2, 6, 3, 7>(a, b);
}
SKYLOOM_INLINE void join(const Octet& a, const Octet& b, Octet& u, Octet& v) {
  u = shuffle<0, 8, 1, 9, 2, 10, 3, 11>(a, b);
  v = shuffle<4, 12, 5, 13, 6, 14, 7, 15>(a, b);
}

template <int kPower, class Vector>
SKYLOOM_INLINE Vector power(const Vector& share) {
  return kPower == 2 ? share * share : share;
}

// The values of a batch; what lies around them is readable, too.
struct RunValues {
  alignas(64) double before[8], wd[kBatch], w[kBatch], after[16];
};

// 0 before a run, 1 within it, 0 behind it.
struct Inside {
  static constexpr int kStart = 8, kEnd = kStart + kBatch + 16;
  double steps[kEnd + 16];
  constexpr Inside() : steps{} {
    for (int i = kStart; i < kEnd; ++i) steps[i] = 1;
  }
};
constexpr Inside kInside;

// One run: n drops from drop k on, the first of which begins at `sums`. Cell m of row j takes from drop m - i its share i
// along x times its share j along y, for i = 0 ... kTaps - 1.
template <class Vector, int kTaps, int kPower>
SKYLOOM_INLINE void add_run(const double* share_x, const double* share_y, const RunValues& values, int k, int n,
                            double* sums, int64_t row) {
  constexpr int kLanes = sizeof(Vector) / sizeof(double);
  for (int m = 0; m < n + kTaps - 1; m += kLanes, sums += 2 * kLanes) {
    Vector wd[kTaps], w[kTaps];
    for (int i = 0; i < kTaps; ++i) {
      const int drop = k + m - i;
      const Vector begun = load_vector<Vector>(kInside.steps + kInside.kStart + m - i);
      const Vector ended = load_vector<Vector>(kInside.steps + kInside.kEnd - n + m - i);
      const Vector share = power<kPower>(load_vector<Vector>(share_x + i * kBatch + drop)) * begun * ended;
      wd[i] = share * load_vector<Vector>(values.wd + drop);
      w[i] = share * load_vector<Vector>(values.w + drop);
    }
    double* cell = sums;
    const double* along_y = share_y + k + m;
    for (int i = 0; i < 2 * kLanes; i += 8) __builtin_prefetch(sums + kTaps * row + i);  // for the next rows, as most maps go
    for (int j = 0; j < kTaps; ++j, cell += row, along_y += kBatch) {
      Vector share = power<kPower>(load_once<Vector>(along_y)), sum_wd = wd[0] * share, sum_w = w[0] * share;
      for (int i = 1; i < kTaps; ++i) {
        share = power<kPower>(load_once<Vector>(along_y - i));
        sum_wd += wd[i] * share;
        sum_w += w[i] * share;
      }
      Vector low, high;
      join(sum_wd, sum_w, low, high);
      add_to(cell, low);
      add_to(cell + kLanes, high);
    }
  }
}

template <class Vector, int kTaps, int kPower>
SKYLOOM_INLINE void add_runs(const Shares& x, const Shares& y, const int32_t* cell, const double* pairs, uint64_t drops,
                             uint64_t goes_on, double* sums, int64_t row) {
  constexpr int kLanes = sizeof(Vector) / sizeof(double);
  RunValues values;
  std::memset(values.before, 0, sizeof values.before);
  std::memset(values.after, 0, sizeof values.after);
  for (int k = 0; k < kBatch; k += kLanes) {
    Vector wd, w;
    part(load_vector<Vector>(pairs + 2 * k), load_vector<Vector>(pairs + 2 * k + kLanes), wd, w);
    std::memcpy(values.wd + k, &wd, sizeof wd);
    std::memcpy(values.w + k, &w, sizeof w);
  }
  for (uint64_t starts = drops & ~goes_on; starts != 0; starts &= starts - 1) {
    const int k = std::countr_zero(starts), n = 1 + std::countr_one(k < kBatch - 1 ? goes_on >> (k + 1) : 0);
    add_run<Vector, kTaps, kPower>(x.share[0], y.share[0], values, k, n, sums + 2 * int64_t(cell[k]), row);
  }
}

template <class Vector, int kTaps>
SKYLOOM_INLINE void add_planes(const Shares& x, const Shares& y, const int32_t* cell, const double* values,
                               uint64_t drops, uint64_t goes_on, const Tile& tile) {
  const int64_t row = 2 * tile.stride;
  for (int p = 0; p < tile.linear; ++p)
    add_runs<Vector, kTaps, 1>(x, y, cell, values + p * 2 * kBatch, drops, goes_on, tile.sums + p * tile.plane, row);
  for (int p = tile.linear; p < tile.pairs; ++p)
    add_runs<Vector, kTaps, 2>(x, y, cell, values + p * 2 * kBatch, drops, goes_on, tile.sums + p * tile.plane, row);
}

template <int kFloats>
SKYLOOM_INLINE void scatter_runs_body(int taps, const Shares& x, const Shares& y, const int32_t* cell, const double* values,
                                      uint64_t drops, uint64_t goes_on, const Tile& tile) {
  typedef VectorOf<kFloats> Vector;
  switch (taps) {
    case 1: return add_planes<Vector, 1>(x, y, cell, values, drops, goes_on, tile);
    case 2: return add_planes<Vector, 2>(x, y, cell, values, drops, goes_on, tile);
    case 3: return add_planes<Vector, 3>(x, y, cell, values, drops, goes_on, tile);
    case 4: return add_planes<Vector, 4>(x, y, cell, values, drops, goes_on, tile);
    case 5: return add_planes<Vector, 5>(x, y, cell, values, drops, goes_on, tile);
    case 6: return add_planes<Vector, 6>(x, y, cell, values, drops, goes_on, tile);
    case 7: return add_planes<Vector, 7>(x, y, cell, values, drops, goes_on, tile);
    default: return add_planes<Vector, kMaxRunTaps>(x, y, cell, values, drops, goes_on, tile);
  }
}

}  // namespace

SKYLOOM_DISPATCH_LANES(void, scatter_runs,
                       (int taps, const Shares& x, const Shares& y, const int32_t* cell, const double* values, uint64_t drops,
                        uint64_t goes_on, const Tile& tile),
                       (taps, x, y, cell, values, drops, goes_on, tile))

}  // namespace skyloom::drizzle
