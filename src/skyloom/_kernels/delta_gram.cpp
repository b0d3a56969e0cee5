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

// Pixels are taken in segments, whose windows are stored in panels: blocks of rows (weighted) and of columns of the outer
// product, pixel by pixel, so that what is read lies side by side.
template <int LANES>
struct Shape {
  static constexpr int kRows = LANES == 16 ? 8 : 4;  // accumulators for the 32 (or 16) registers that there are
  static constexpr int kColumns = 3 * LANES;
};

// out[r][c] += sum over pixels of left[pixel][r] right[pixel][c], for ROWS values of r and VECS * LANES of c.
template <int LANES, int ROWS, int VECS>
SKYLOOM_INLINE void outer_products(const float* left, const float* right, int pixels, float* out, int out_stride) {
  using Vec = typename Lanes<LANES>::Vec;
  Vec sums[ROWS][VECS] = {};
  for (int pixel = 0; pixel < pixels; ++pixel, left += Shape<LANES>::kRows, right += Shape<LANES>::kColumns) {
    Vec columns[VECS];
    for (int v = 0; v < VECS; ++v) std::memcpy(&columns[v], right + v * LANES, sizeof columns[v]);
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < VECS; ++v) sums[r][v] += left[r] * columns[v];
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECS; ++v) {
      Vec total;
      std::memcpy(&total, out + r * out_stride + v * LANES, sizeof total);
      total += sums[r][v];
      std::memcpy(out + r * out_stride + v * LANES, &total, sizeof total);
    }
}

// The same for as many vectors as there are up to the diagonal, three at most.
template <int LANES, int ROWS>
SKYLOOM_INLINE void outer_panel(const float* left, const float* right, int pixels, int vectors, float* out,
                                int out_stride) {
  if (vectors >= 3)
    outer_products<LANES, ROWS, 3>(left, right, pixels, out, out_stride);
  else if (vectors == 2)
    outer_products<LANES, ROWS, 2>(left, right, pixels, out, out_stride);
  else
    outer_products<LANES, ROWS, 1>(left, right, pixels, out, out_stride);
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

template <int LANES>
struct Windows {
  static constexpr int kRows = Shape<LANES>::kRows, kColumns = Shape<LANES>::kColumns;
  int taps, row_panels, column_panels;
  int pixels = 0;
  Aligned window, left, right;  // [tap], [panel][pixel][row], [panel][pixel][column]

  explicit Windows(int n)
      : taps(n),
        row_panels((n + kRows - 1) / kRows),
        column_panels((n + kColumns - 1) / kColumns),
        window(std::max(column_panels * kColumns, row_panels * kRows) + LANES),
        left(row_panels * kSegment * kRows),
        right(column_panels * kSegment * kColumns) {}

  int stride() const { return column_panels * kColumns; }  // of a row of the outer product
};

template <int LANES>
SKYLOOM_INLINE void add_window(const DeltaGrid& grid, const float* corner, std::int64_t stride, float weight,
                               Windows<LANES>& windows) {
  constexpr int kRows = Shape<LANES>::kRows, kColumns = Shape<LANES>::kColumns;
  float* window = windows.window.data;
  for (int v = 0; v < grid.ky; ++v)  // in whole registers: the next row comes over what is too much
    for (int u = 0; u < grid.kx; u += LANES)
      std::memcpy(window + v * grid.kx + u, corner + v * stride + u, LANES * sizeof(float));
  float* right = windows.right.data + windows.pixels * kColumns;
  for (int panel = 0; panel < windows.column_panels; ++panel, right += kSegment * kColumns)
    std::memcpy(right, window + panel * kColumns, kColumns * sizeof(float));
  float* left = windows.left.data + windows.pixels * kRows;
  for (int panel = 0; panel < windows.row_panels; ++panel, left += kSegment * kRows)
    for (int r = 0; r < kRows; ++r) left[r] = weight * window[panel * kRows + r];
  ++windows.pixels;
}

// The lower triangle of out += left^T right. An odd square kernel has 8 m + 1 taps: rows in eights, and one.
template <int LANES>
SKYLOOM_INLINE void empty(Windows<LANES>& windows, float* out) {
  constexpr int kRows = Shape<LANES>::kRows, kColumns = Shape<LANES>::kColumns;
  const int stride = windows.stride();
  for (int first = 0; first < windows.taps; first += kColumns) {
    const float* right = windows.right.data + first * kSegment;
    int row = first / kRows * kRows;
    for (; row + kRows <= windows.taps; row += kRows)
      outer_panel<LANES, kRows>(windows.left.data + row * kSegment, right, windows.pixels,
                                (row + kRows - 1 - first) / LANES + 1, out + row * stride + first, stride);
    for (int r = 0; row + r < windows.taps; ++r)
      outer_panel<LANES, 1>(windows.left.data + row * kSegment + r, right, windows.pixels,
                            (row + r - first) / LANES + 1, out + (row + r) * stride + first, stride);
  }
  windows.pixels = 0;
}

// out[ij] += sum over cells of X^i Y^j sums[cell], for a row of cells
SKYLOOM_INLINE void add_cells(const DeltaGrid& grid, const std::vector<double>& X, double Y, int stride,
                              const float* sums, double* out) {
  const std::int64_t n = grid.taps(), count = X.size();
  std::vector<double> total(n), power(count);
  for (std::int64_t r = 0; r < n; ++r) {
    std::fill(power.begin(), power.end(), 1.0);
    double* to = out + r * n;
    for (int i = 0; i <= grid.order; ++i) {
      std::fill(total.begin(), total.begin() + r + 1, 0.0);
      for (std::int64_t cell = 0; cell < count; ++cell) {
        const float* from = sums + (cell * n + r) * stride;
        for (std::int64_t c = 0; c <= r; ++c) total[c] += power[cell] * from[c];
        power[cell] *= X[cell];
      }
      double y_power = 1.0;
      for (int j = 0; j <= grid.order - i; ++j, y_power *= Y, to += n * n)
        for (std::int64_t c = 0; c <= r; ++c) to[c] += y_power * total[c];
    }
  }
}

template <int LANES>
SKYLOOM_INLINE void gram_rows_body(const DeltaGrid& grid, const float* padded, const float* weight, int cell,
                                   std::int64_t start, std::int64_t stop, double* out) {
  Windows<LANES> windows(grid.taps());
  const std::int64_t size = static_cast<std::int64_t>(grid.taps()) * windows.stride();
  Aligned sums(((grid.nx + cell - 1) / cell) * size);  // [cell of the row][tap][stride]
  std::vector<double> X;
  const std::int64_t room = cell + grid.kx - 1 + LANES;  // a row of the pixels that a cell needs, and a register
  std::vector<float> pixels((cell + grid.ky - 1) * room);
  for (std::int64_t top = start; top < stop; top += cell) {
    const std::int64_t bottom = std::min(top + cell, stop);
    X.clear();
    for (std::int64_t left = 0; left < grid.nx; left += cell) {
      const std::int64_t right = std::min(left + cell, grid.nx);
      float* cell_sums = sums.data + static_cast<std::int64_t>(X.size()) * size;
      for (std::int64_t y = top; y < bottom + grid.ky - 1; ++y)
        std::memcpy(pixels.data() + (y - top) * room, padded + y * grid.stride() + left,
                    (right - left + grid.kx - 1) * sizeof(float));
      bool any = false;
      for (std::int64_t y = top; y < bottom; ++y)
        for (std::int64_t x = left; x < right; ++x) {
          const float w = weight[y * grid.nx + x];
          if (w == 0.0f) continue;
          if (!any) std::fill(cell_sums, cell_sums + size, 0.0f);
          any = true;
          add_window(grid, pixels.data() + (y - top) * room + x - left, room, w, windows);
          if (windows.pixels == kSegment) empty(windows, cell_sums);
        }
      if (!any) continue;
      if (windows.pixels > 0) empty(windows, cell_sums);
      X.push_back((0.5 * (left + right - 1) - grid.x_centre) / grid.x_scale);
    }
    const double Y = (0.5 * (top + bottom - 1) - grid.y_centre) / grid.y_scale;
    if (!X.empty()) add_cells(grid, X, Y, windows.stride(), sums.data, out);
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
