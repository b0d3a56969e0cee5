#include "drizzle_scatter.hpp"

#include <bit>
#include <cstring>

#include "vectors.hpp"

namespace skyloom::drizzle {
namespace {

// A register for the n shares of a row of cells.
template <int N>
using Row = std::conditional_t<N == 2, Pair, std::conditional_t<N <= 4, Quad, Octet>>;

// Drops here and there, N x N cells each.
template <int N>
SKYLOOM_INLINE void scatter_drops(const double (*__restrict share)[kBatch], const Load& load, uint64_t drops, const Tile& tile) {
  const int64_t step = tile.stride, next = tile.plane;
  const SumPlanes planes = tile.planes;
  for (; drops != 0; drops &= drops - 1) {
    const int k = std::countr_zero(drops);
    Row<N> rows[N];
#pragma GCC unroll 5
    for (int j = 0; j < N; ++j)
      rows[j] = make_vector<Row<N>>([&](int i) { return i < N ? share[j * N + i][k] : 0.0; });
    double* plane = tile.sums + load.cell[k];
    const double* value = load.values + k;
    const auto add = [&] {
      double* cell = plane;
#pragma GCC unroll 5
      for (int j = 0; j < N; ++j, cell += step) add_to(cell, rows[j] * *value);
      for (int j = 0; j < 2; ++j, cell += step) __builtin_prefetch(cell);  // for the next rows, as most maps go
      plane += next;
      value += kBatch;
    };
    for (int p = 0; p < planes.linear; ++p) add();
#pragma GCC unroll 5
    for (int j = 0; j < N; ++j) rows[j] *= rows[j];
    for (int p = planes.linear; p < planes.all; ++p) add();
  }
}

// No bits before a run, all within it, none behind it.
struct Inside {
  static constexpr int kStart = 8, kEnd = kStart + kBatch + 16;
  int64_t bits[kEnd + 16];
  constexpr Inside() : bits{} {
    for (int i = kStart; i < kEnd; ++i) bits[i] = -1;
  }
};
constexpr Inside kInside;

// Numbers where bits are set, and 0 elsewhere.
template <class Vector, class Bits>
SKYLOOM_INLINE Vector masked(const double* numbers, const Bits& bits) {
  const Vector all = load_vector<Vector>(numbers);
  return (Vector)((Bits)all & bits);
}

// A run of n drops side by side, from drop k on, 2 x 2 cells each: each cell takes from the drop that begins in it and from
// the one before.
template <class Vector>
SKYLOOM_INLINE void add_run(const double (*__restrict share)[kBatch], const double* __restrict values, int k, int n,
                            double* sums, int64_t row, int64_t plane, SumPlanes planes) {
  typedef decltype(Vector{} < Vector{}) Bits;
  constexpr int kLanes = sizeof(Vector) / sizeof(double);
  const int64_t *starts = kInside.bits + kInside.kStart, *ends = kInside.bits + kInside.kEnd - n;
  for (int m = 0; m <= n; m += kLanes, k += kLanes, sums += kLanes) {
    Bits begins, started, follows;
    std::memcpy(&begins, ends + m, sizeof begins);
    std::memcpy(&started, starts + m - 1, sizeof started);
    std::memcpy(&follows, ends + m - 1, sizeof follows);
    follows &= started;
    Vector near = masked<Vector>(share[0] + k, begins), far = masked<Vector>(share[1] + k - 1, follows);
    Vector near_above = masked<Vector>(share[2] + k, begins), far_above = masked<Vector>(share[3] + k - 1, follows);
    double* cell = sums;
    const double* value = values + k;
    const auto add = [&] {
      __builtin_prefetch(cell + 2 * row);  // for the next rows, as most maps go
      const Vector own = load_vector<Vector>(value), before = load_vector<Vector>(value - 1);
      add_to(cell, own * near + before * far);
      add_to(cell + row, own * near_above + before * far_above);
      cell += plane;
      value += kBatch;
    };
    for (int p = 0; p < planes.linear; ++p) add();
    near *= near;
    far *= far;
    near_above *= near_above;
    far_above *= far_above;
    for (int p = planes.linear; p < planes.all; ++p) add();
  }
}

template <class Vector>
SKYLOOM_INLINE void scatter_runs(const double (*share)[kBatch], const Load& load, uint64_t drops, uint64_t goes_on,
                                 const Tile& tile) {
  const int64_t row = tile.stride, plane = tile.plane;
  const SumPlanes planes = tile.planes;
  for (uint64_t starts = drops & ~goes_on; starts != 0; starts &= starts - 1) {
    const int k = std::countr_zero(starts), n = 1 + std::countr_one(k < kBatch - 1 ? goes_on >> (k + 1) : 0);
    add_run<Vector>(share, load.values, k, n, tile.sums + load.cell[k], row, plane, planes);
  }
}

// Bit k: the first cell of drop k is next to that of drop k - 1.
SKYLOOM_INLINE uint64_t beside_previous(const int32_t* __restrict cells) {
  uint32_t half[2] = {0, 0};
  for (int k = 1; k < 32; ++k) half[0] |= uint32_t(cells[k] == cells[k - 1] + 1) << k;
  for (int k = 0; k < 32; ++k) half[1] |= uint32_t(cells[k + 32] == cells[k + 31] + 1) << k;
  return half[0] | uint64_t(half[1]) << 32;
}

template <int kFloats>
SKYLOOM_INLINE void scatter_sums_body(int n, const double (*share)[kBatch], const Load& load, uint64_t drops, Tile& tile) {
  constexpr int kFewRuns = 16;
  // Neighbours write to the same cells, and a read has to wait if it meets parts of fresh writes: every other drop first,
  // then those between them. Runs of neighbours are added up before they are written.
  constexpr uint64_t kEven = 0x5555555555555555;
  if (n == 2) {
    const uint64_t goes_on = drops & (drops << 1) & beside_previous(load.cell);
    if (std::popcount(drops & ~goes_on) <= kFewRuns)
      return scatter_runs<VectorOf<kFloats>>(share, load, drops, goes_on, tile);
  }
  for (const uint64_t half : {drops & kEven, drops & ~kEven}) switch (n) {
      case 2: scatter_drops<2>(share, load, half, tile); break;
      case 3: scatter_drops<3>(share, load, half, tile); break;
      case 4: scatter_drops<4>(share, load, half, tile); break;
      default: scatter_drops<5>(share, load, half, tile); break;
    }
}

SKYLOOM_INLINE uint64_t flagged_body(const uint32_t* __restrict dq) {
  uint32_t half[2] = {0, 0};
  for (int h = 0; h < 2; ++h)
    for (int k = 0; k < 32; ++k) half[h] |= dq[32 * h + k] != 0 ? uint32_t(1) << k : 0;
  return half[0] | uint64_t(half[1]) << 32;
}

SKYLOOM_DISPATCH(uint64_t, flagged, (const uint32_t* dq), (dq))
SKYLOOM_DISPATCH_LANES(void, scatter_sums,
                       (int n, const double (*share)[kBatch], const Load& load, uint64_t drops, Tile& tile),
                       (n, share, load, drops, tile))

}  // namespace

void scatter(int n, const double (*share)[kBatch], const Load& load, uint64_t drops, Tile& tile) {
  scatter_sums(n, share, load, drops, tile);
  if (tile.dq == nullptr) return;
  for (drops &= flagged(load.dq); drops != 0; drops &= drops - 1) {
    const int k = std::countr_zero(drops);
    for (int j = 0; j < n; ++j)
      for (int i = 0; i < n; ++i)
        if (share[j * n + i][k] > 0) tile.dq[load.cell[k] + j * tile.stride + i] |= load.dq[k];
  }
}

}  // namespace skyloom::drizzle
