// Coordinate maps on a grid of nodes: local cubic interpolation to every pixel, and the area that a pixel covers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace skyloom {

// One axis of the grid: pixel p lies in the stencil of nodes first[p] ... first[p] + 3, with the Lagrange weights
// weight[4 p] ... weight[4 p + 3].
struct GridAxis {
  const std::int32_t* first;
  const double* weight;
};

// A map of nx pixels a row, on a grid of nodes. The pixels of exact_index, which rise, have the positions of exact_xy.
struct MapGrid {
  const double* nodes;              // (my, mx, 2)
  std::ptrdiff_t mx;
  GridAxis x, y;
  const std::int32_t* run_end;      // first pixel behind x with another stencil
  const double* pair_weight[4];     // weights of x, each of them twice: for both coordinates; kPadding more are readable
  std::ptrdiff_t nx;
  const std::int64_t* exact_index;  // y nx + x
  const double* exact_xy;           // (exact_count, 2)
  std::ptrdiff_t exact_count;
  static constexpr std::ptrdiff_t kPadding = 6;
};

// Positions of the pixels (x, y) ... (x + n - 1, y): out[2 k], out[2 k + 1]. They have the bits that expand_grid gives.
// kPadding more numbers of out are overwritten.
void expand_piece(const MapGrid& grid, std::ptrdiff_t y, std::ptrdiff_t x, std::ptrdiff_t n, double* out);

// out[r, x] = sum_jk wy[r][j] wx[x][k] nodes[first_y[r] + j, first_x[x] + k], both coordinates at once.
// nodes: (my, mx, 2); out: (rows, nx, 2).
void expand_grid(const double* nodes, std::ptrdiff_t mx, GridAxis x_axis, GridAxis y_axis, std::ptrdiff_t rows,
                 std::ptrdiff_t nx, double* out);

// |det d(pixmap)/d(x, y)| by central differences, second-order one-sided ones at the borders of the array.
// pixmap: (ny, nx, 2); fills rows [row_start, row_stop) of it into area[0 ...].
void pixel_area_ratio(const double* pixmap, std::ptrdiff_t ny, std::ptrdiff_t nx, std::ptrdiff_t row_start,
                      std::ptrdiff_t row_stop, double* area);

}  // namespace skyloom
