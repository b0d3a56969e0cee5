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

template <int kPower, class Vector>
SKYLOOM_INLINE Vector power(const Vector& share) {
  return kPower == 2 ? share * share : share;
}

// 0 before a run, 1 within it, 0 behind it.
struct Inside {
  static constexpr int kStart = 8, kEnd = kStart + kBatch + 16;
  double steps[kEnd + 16];
  constexpr Inside() : steps{} {
    for (int i = kStart; i < kEnd; ++i) steps[i] = 1;
  }
};
constexpr Inside kInside;

// One run: n drops from drop k on, the first of which begins at `sums`, in kPlanes planes. Cell m of row j takes from drop
// m - i its share i along x times its share j along y, for i = 0 ... kTaps - 1.
template <class Vector, int kTaps, int kPower, int kPlanes>
SKYLOOM_INLINE void add_run(const double* share_x, const double* share_y, const double* values, int k, int n, double* sums,
                            const Tile& tile) {
  constexpr int kLanes = sizeof(Vector) / sizeof(double);
  for (int m = 0; m < n + kTaps - 1; m += kLanes, sums += kLanes) {
    Vector part[kPlanes][kTaps];
    for (int i = 0; i < kTaps; ++i) {
      const int drop = k + m - i;
      const Vector begun = load_vector<Vector>(kInside.steps + kInside.kStart + m - i);
      const Vector ended = load_vector<Vector>(kInside.steps + kInside.kEnd - n + m - i);
      const Vector share = power<kPower>(load_vector<Vector>(share_x + i * kBatch + drop)) * begun * ended;
      for (int p = 0; p < kPlanes; ++p) part[p][i] = share * load_vector<Vector>(values + p * kBatch + drop);
    }
    double* cell = sums;
    const double* along_y = share_y + k + m;
    for (int p = 0; p < kPlanes; ++p) __builtin_prefetch(sums + p * tile.plane + kTaps * tile.stride);  // as most maps go
    for (int j = 0; j < kTaps; ++j, cell += tile.stride, along_y += kBatch) {
      Vector share = power<kPower>(load_once<Vector>(along_y)), sum[kPlanes];
      for (int p = 0; p < kPlanes; ++p) sum[p] = part[p][0] * share;
      for (int i = 1; i < kTaps; ++i) {
        share = power<kPower>(load_once<Vector>(along_y - i));
        for (int p = 0; p < kPlanes; ++p) sum[p] += part[p][i] * share;
      }
      for (int p = 0; p < kPlanes; ++p) add_to(cell + p * tile.plane, sum[p]);
    }
  }
}

template <class Vector, int kTaps, int kPower, int kPlanes>
SKYLOOM_INLINE void add_runs(const Shares& x, const Shares& y, const int32_t* cell, const double* values, uint64_t drops,
                             uint64_t goes_on, int plane, const Tile& tile) {
  for (uint64_t starts = drops & ~goes_on; starts != 0; starts &= starts - 1) {
    const int k = std::countr_zero(starts), n = 1 + std::countr_one(k < kBatch - 1 ? goes_on >> (k + 1) : 0);
    add_run<Vector, kTaps, kPower, kPlanes>(x.share[0], y.share[0], values + plane * kBatch, k, n,
                                            tile.sums + plane * tile.plane + cell[k], tile);
  }
}

// Two planes at a time, as far as there are two.
template <class Vector, int kTaps>
SKYLOOM_INLINE void add_planes(const Shares& x, const Shares& y, const int32_t* cell, const double* values,
                               uint64_t drops, uint64_t goes_on, const Tile& tile) {
  const int linear = tile.planes.linear, all = tile.planes.all;
  int p = 0;
  for (; p + 1 < linear; p += 2) add_runs<Vector, kTaps, 1, 2>(x, y, cell, values, drops, goes_on, p, tile);
  if (p < linear) add_runs<Vector, kTaps, 1, 1>(x, y, cell, values, drops, goes_on, p, tile);
  for (p = linear; p + 1 < all; p += 2) add_runs<Vector, kTaps, 2, 2>(x, y, cell, values, drops, goes_on, p, tile);
  if (p < all) add_runs<Vector, kTaps, 2, 1>(x, y, cell, values, drops, goes_on, p, tile);
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
