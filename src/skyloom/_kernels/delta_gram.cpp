#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "delta.hpp"
#include "isa.hpp"

namespace skyloom {
namespace {

constexpr int kSegment = 128;  // pixels whose windows lie side by side in the first caches

// A register of LANES floats, LANES being what the instruction set holds.
template <int LANES>
struct Lanes {
  typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
};

// out[r][c] += sum over pixels of left[pixel][r] right[pixel][c], for ROWS values of r and VECS * LANES of c.
template <int LANES, int ROWS, int VECS>
SKYLOOM_INLINE void outer_products(const float* left, const float* right, int width, int pixels, double* out,
                                   std::int64_t out_stride) {
  using Vec = typename Lanes<LANES>::Vec;
  Vec sums[ROWS][VECS] = {};
  for (int pixel = 0; pixel < pixels; ++pixel, left += width, right += width) {
    Vec columns[VECS];
    for (int v = 0; v < VECS; ++v) std::memcpy(&columns[v], right + v * LANES, sizeof columns[v]);
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < VECS; ++v) sums[r][v] += left[r] * columns[v];
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECS; ++v) {
      const Vec sum = sums[r][v];  // a copy, so that `sums` need not lie in memory
      float values[LANES];
      std::memcpy(values, &sum, sizeof sum);
      double* to = out + r * out_stride + v * LANES;
      for (int lane = 0; lane < LANES; ++lane) to[lane] += values[lane];
    }
}

template <int LANES, int ROWS>
SKYLOOM_INLINE void outer_rows(const float* left, const float* right, int width, int pixels, int row, double* out) {
  double* to = out + static_cast<std::int64_t>(row) * width;
  const int vectors = (row + ROWS - 1) / LANES + 1;  // up to the diagonal
  int v = 0;
  for (; v + 3 <= vectors; v += 3)
    outer_products<LANES, ROWS, 3>(left + row, right + v * LANES, width, pixels, to + v * LANES, width);
  if (vectors - v == 2)
    outer_products<LANES, ROWS, 2>(left + row, right + v * LANES, width, pixels, to + v * LANES, width);
  else if (vectors - v == 1)
    outer_products<LANES, ROWS, 1>(left + row, right + v * LANES, width, pixels, to + v * LANES, width);
}

// The lower triangle of out[width][width] += left^T right. An odd kernel has 8 m + 1 taps: rows in eights, and one.
template <int LANES>
SKYLOOM_INLINE void lower_triangle(const float* left, const float* right, int width, int taps, int pixels, double* out) {
  constexpr int kRows = LANES == 16 ? 8 : 4;  // accumulators for the 32 (or 16) registers that there are
  int row = 0;
  for (; row + kRows <= taps; row += kRows) outer_rows<LANES, kRows>(left, right, width, pixels, row, out);
  for (; row < taps; ++row) outer_rows<LANES, 1>(left, right, width, pixels, row, out);
}

// Memory that begins at a cache line, so that no register is loaded from two of them.
struct Aligned {
  static constexpr std::size_t kLine = 64;
  std::vector<float> memory;
  float* data;

  explicit Aligned(std::size_t count) : memory(count + kLine / sizeof(float)) {
    void* start = memory.data();
    std::size_t room = memory.size() * sizeof(float);
    data = static_cast<float*>(std::align(kLine, count * sizeof(float), start, room));
  }
};

// The windows of some pixels, one after the other, each of `width` floats.
struct Windows {
  int width;
  int pixels = 0;
  Aligned plain, weighted;  // [pixel][width]

  explicit Windows(int n) : width(n), plain(kSegment * n), weighted(kSegment * n) {}
};

SKYLOOM_INLINE void add_window(const DeltaGrid& grid, const float* corner, float weight, Windows& windows) {
  float* plain = windows.plain.data + windows.pixels * windows.width;
  float* weighted = windows.weighted.data + windows.pixels * windows.width;
  for (int v = 0; v < grid.ky; ++v)
    std::memcpy(plain + v * grid.kx, corner + v * grid.stride(), grid.kx * sizeof(float));
  for (int tap = 0; tap < windows.width; ++tap) weighted[tap] = weight * plain[tap];
  ++windows.pixels;
}

template <int LANES>
SKYLOOM_INLINE void empty(const DeltaGrid& grid, Windows& windows, double* cell_sums) {
  lower_triangle<LANES>(windows.weighted.data, windows.plain.data, windows.width, grid.taps(), windows.pixels, cell_sums);
  windows.pixels = 0;
}

// out[ij] += X^i Y^j cell_sums, and cell_sums = 0
SKYLOOM_INLINE void add_cell(const DeltaGrid& grid, double X, double Y, int width, double* cell_sums, double* out) {
  const std::int64_t n = grid.taps();
  double x_power = 1.0;
  for (int i = 0; i <= grid.order; ++i, x_power *= X) {
    double power = x_power;
    for (int j = 0; j <= grid.order - i; ++j, power *= Y, out += n * n)
      for (std::int64_t r = 0; r < n; ++r)
        for (std::int64_t c = 0; c <= r; ++c) out[r * n + c] += power * cell_sums[r * width + c];
  }
  std::fill(cell_sums, cell_sums + n * width, 0.0);
}

template <int LANES>
SKYLOOM_INLINE void gram_rows_body(const DeltaGrid& grid, const float* padded, const float* weight, int cell,
                                   std::int64_t start, std::int64_t stop, double* out) {
  const int width = (grid.taps() + 15) / 16 * 16;
  Windows windows(width);
  std::vector<double> cell_sums(static_cast<std::int64_t>(grid.taps()) * width);
  for (std::int64_t top = start; top < stop; top += cell)
    for (std::int64_t left = 0; left < grid.nx; left += cell) {
      const std::int64_t bottom = std::min(top + cell, stop), right = std::min(left + cell, grid.nx);
      bool any = false;
      for (std::int64_t y = top; y < bottom; ++y)
        for (std::int64_t x = left; x < right; ++x) {
          const float w = weight[y * grid.nx + x];
          if (w == 0.0f) continue;
          any = true;
          add_window(grid, padded + y * grid.stride() + x, w, windows);
          if (windows.pixels == kSegment) empty<LANES>(grid, windows, cell_sums.data());
        }
      if (!any) continue;
      if (windows.pixels > 0) empty<LANES>(grid, windows, cell_sums.data());
      const double x = 0.5 * (left + right - 1), y = 0.5 * (top + bottom - 1);
      add_cell(grid, (x - grid.x_centre) / grid.x_scale, (y - grid.y_centre) / grid.y_scale, width, cell_sums.data(),
               out);
    }
}

SKYLOOM_DISPATCH_LANES(void, gram_rows,
                       (const DeltaGrid& grid, const float* padded, const float* weight, int cell, std::int64_t start,
                        std::int64_t stop, double* out),
                       (grid, padded, weight, cell, start, stop, out))

}  // namespace

void delta_gram(const DeltaGrid& grid, const float* padded, const float* weight, int cell, std::int64_t start,
                std::int64_t stop, double* out) {
  gram_rows(grid, padded, weight, cell, start, stop, out);
}

}  // namespace skyloom
