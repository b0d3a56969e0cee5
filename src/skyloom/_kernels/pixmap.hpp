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

// out[r, x] = sum_jk wy[r][j] wx[x][k] nodes[first_y[r] + j, first_x[x] + k], both coordinates at once.
// nodes: (my, mx, 2); out: (rows, nx, 2).
void expand_grid(const double* nodes, std::ptrdiff_t mx, GridAxis x_axis, GridAxis y_axis, std::ptrdiff_t rows,
                 std::ptrdiff_t nx, double* out);

// |det d(pixmap)/d(x, y)| by central differences, second-order one-sided ones at the borders of the array.
// pixmap: (ny, nx, 2); fills rows [row_start, row_stop) of it into area[0 ...].
void pixel_area_ratio(const double* pixmap, std::ptrdiff_t ny, std::ptrdiff_t nx, std::ptrdiff_t row_start,
                      std::ptrdiff_t row_stop, double* area);

}  // namespace skyloom
