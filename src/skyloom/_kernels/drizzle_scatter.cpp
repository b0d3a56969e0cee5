#include "drizzle_scatter.hpp"

#include <bit>

#include "vectors.hpp"

namespace skyloom::drizzle {
namespace {

template <int kPower, class Vector>
SKYLOOM_INLINE Vector power(const Vector& share) {
  return kPower == 2 ? share * share : share;
}

SKYLOOM_INLINE Octet twice_each(const Quad& v) {
  return shuffle<0, 0, 1, 1, 2, 2, 3, 3>(v, v);
}

// Drops here and there, N x N cells each.
template <int N, int kPower>
SKYLOOM_INLINE void scatter_pairs(const double (*__restrict share)[kBatch], const int32_t* __restrict cells,
                                  const double* __restrict values, uint64_t drops, double* sums, int64_t row) {
  for (; drops != 0; drops &= drops - 1) {
    const int k = std::countr_zero(drops);
    double* cell = sums + int64_t(cells[k]) * 2;
    for (int j = N; j < N + 2; ++j) __builtin_prefetch(cell + j * row + N);  // for the next rows, as most maps go
    const Pair value = load_vector<Pair>(values + 2 * k);
    const Quad twice = {value[0], value[1], value[0], value[1]};
    for (int j = 0; j < N; ++j, cell += row) {
      int i = 0;
      for (; i + 1 < N; i += 2) {  // two cells side by side are four numbers
        const double s = power<kPower>(share[j * N + i][k]), t = power<kPower>(share[j * N + i + 1][k]);
        add_to(cell + 2 * i, twice * Quad{s, s, t, t});
      }
      for (; i < N; ++i) {
        const double s = power<kPower>(share[j * N + i][k]);
        add_to(cell + 2 * i, value * Pair{s, s});
      }
    }
  }
}

// One row of the 2 x 2 cells of drops side by side: each cell takes from the drop that begins in it and from the one before.
// ahead: what is fetched for the next rows of drops, as most maps go.
template <int kPower>
SKYLOOM_INLINE void add_run(const double* __restrict near, const double* __restrict far,
                            const double* __restrict values, int n, double* sums, int64_t ahead) {
  const auto alone = [&](const double* share, int k) {
    const double s = power<kPower>(share[k]);
    return load_vector<Pair>(values + 2 * k) * Pair{s, s};
  };
  add_to(sums, alone(near, 0));
  int k = 1;
  for (; k + 4 <= n; k += 4) {
    __builtin_prefetch(sums + ahead + 2 * k);
    add_to(sums + 2 * k, twice_each(power<kPower>(load_vector<Quad>(near + k))) * load_vector<Octet>(values + 2 * k) +
                             twice_each(power<kPower>(load_vector<Quad>(far + k - 1))) * load_vector<Octet>(values + 2 * k - 2));
  }
  __builtin_prefetch(sums + ahead + 2 * n);
  for (; k < n; ++k) add_to(sums + 2 * k, alone(near, k) + alone(far, k - 1));
  add_to(sums + 2 * n, alone(far, n - 1));
}

template <int kPower>
SKYLOOM_INLINE void scatter_runs(const double (*__restrict share)[kBatch], const int32_t* __restrict cells,
                                 const double* __restrict values, uint64_t drops, uint64_t goes_on, double* sums,
                                 int64_t row) {
  for (uint64_t starts = drops & ~goes_on; starts != 0; starts &= starts - 1) {
    const int k = std::countr_zero(starts), n = 1 + std::countr_one(k < kBatch - 1 ? goes_on >> (k + 1) : 0);
    double* cell = sums + int64_t(cells[k]) * 2;
    add_run<kPower>(share[0] + k, share[1] + k, values + 2 * k, n, cell, 2 * row);
    add_run<kPower>(share[2] + k, share[3] + k, values + 2 * k, n, cell + row, 2 * row);
  }
}

// Bit k: the first cell of drop k is next to that of drop k - 1.
SKYLOOM_INLINE uint64_t beside_previous(const int32_t* __restrict cells) {
  uint32_t half[2] = {0, 0};
  for (int k = 1; k < 32; ++k) half[0] |= uint32_t(cells[k] == cells[k - 1] + 1) << k;
  for (int k = 0; k < 32; ++k) half[1] |= uint32_t(cells[k + 32] == cells[k + 31] + 1) << k;
  return half[0] | uint64_t(half[1]) << 32;
}

template <int N>
SKYLOOM_INLINE void scatter_planes(const double (*share)[kBatch], const Load& load, uint64_t drops, Tile& tile) {
  const int64_t row = 2 * tile.stride;
  scatter_pairs<N, 1>(share, load.cell, load.values, drops, tile.sums, row);
  for (int p = 1; p < tile.linear; ++p)
    scatter_pairs<N, 1>(share, load.cell, load.values + p * 2 * kBatch, drops, tile.sums + p * tile.plane, row);
  for (int p = tile.linear; p < tile.pairs; ++p)
    scatter_pairs<N, 2>(share, load.cell, load.values + p * 2 * kBatch, drops, tile.sums + p * tile.plane, row);
}

SKYLOOM_INLINE void scatter_sums_body(int n, const double (*share)[kBatch], const Load& load, uint64_t drops, Tile& tile) {
  constexpr int kFewRuns = 16;
  // Neighbours write to the same cells, and a read has to wait if it meets parts of fresh writes: every other drop first,
  // then those between them. Runs of neighbours are added up before they are written.
  constexpr uint64_t kEven = 0x5555555555555555;
  if (n == 2) {
    const int64_t row = 2 * tile.stride;
    const uint64_t goes_on = drops & (drops << 1) & beside_previous(load.cell);
    if (std::popcount(drops & ~goes_on) <= kFewRuns) {
      scatter_runs<1>(share, load.cell, load.values, drops, goes_on, tile.sums, row);
      for (int p = 1; p < tile.linear; ++p)
        scatter_runs<1>(share, load.cell, load.values + p * 2 * kBatch, drops, goes_on, tile.sums + p * tile.plane, row);
      for (int p = tile.linear; p < tile.pairs; ++p)
        scatter_runs<2>(share, load.cell, load.values + p * 2 * kBatch, drops, goes_on, tile.sums + p * tile.plane, row);
      return;
    }
  }
  for (const uint64_t half : {drops & kEven, drops & ~kEven}) switch (n) {
      case 2: scatter_planes<2>(share, load, half, tile); break;
      case 3: scatter_planes<3>(share, load, half, tile); break;
      case 4: scatter_planes<4>(share, load, half, tile); break;
      default: scatter_planes<5>(share, load, half, tile); break;
    }
}

SKYLOOM_INLINE uint64_t flagged_body(const uint32_t* __restrict dq) {
  uint32_t half[2] = {0, 0};
  for (int h = 0; h < 2; ++h)
    for (int k = 0; k < 32; ++k) half[h] |= dq[32 * h + k] != 0 ? uint32_t(1) << k : 0;
  return half[0] | uint64_t(half[1]) << 32;
}

SKYLOOM_DISPATCH(uint64_t, flagged, (const uint32_t* dq), (dq))
SKYLOOM_DISPATCH(void, scatter_sums,
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
