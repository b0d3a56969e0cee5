#include "pixmap.hpp"

#include <cmath>
#include <vector>

#include "isa.hpp"

namespace skyloom {
namespace {

SKYLOOM_INLINE void expand_grid_rows_body(const double* nodes, std::ptrdiff_t mx, GridAxis x_axis, GridAxis y_axis,
                                     std::ptrdiff_t rows, std::ptrdiff_t nx, double* out, double* line) {
  for (std::ptrdiff_t r = 0; r < rows; ++r) {
    const double* row = nodes + std::ptrdiff_t(y_axis.first[r]) * mx * 2;
    const double* w = y_axis.weight + 4 * r;
    for (std::ptrdiff_t m = 0; m < 2 * mx; ++m)
      line[m] = (w[0] * row[m] + w[1] * row[m + 2 * mx]) + (w[2] * row[m + 4 * mx] + w[3] * row[m + 6 * mx]);
    double* o = out + r * nx * 2;
    std::ptrdiff_t x = 0;
    while (x < nx) {  // all pixels that share a stencil
      std::ptrdiff_t stop = x + 1;
      while (stop < nx && x_axis.first[stop] == x_axis.first[x]) ++stop;
      const double* p = line + 2 * std::ptrdiff_t(x_axis.first[x]);
      const double x0 = p[0], y0 = p[1], x1 = p[2], y1 = p[3], x2 = p[4], y2 = p[5], x3 = p[6], y3 = p[7];
      for (std::ptrdiff_t i = x; i < stop; ++i) {
        const double* v = x_axis.weight + 4 * i;
        o[2 * i] = (v[0] * x0 + v[1] * x1) + (v[2] * x2 + v[3] * x3);
        o[2 * i + 1] = (v[0] * y0 + v[1] * y1) + (v[2] * y2 + v[3] * y3);
      }
      x = stop;
    }
  }
}

SKYLOOM_DISPATCH(void, expand_grid_rows,
                 (const double* nodes, std::ptrdiff_t mx, GridAxis x_axis, GridAxis y_axis, std::ptrdiff_t rows,
                  std::ptrdiff_t nx, double* out, double* line),
                 (nodes, mx, x_axis, y_axis, rows, nx, out, line))

// Derivative of one coordinate of a (…, 2) array along an axis of the given stride, at index i of n.
SKYLOOM_INLINE double derivative(const double* p, std::ptrdiff_t i, std::ptrdiff_t n, std::ptrdiff_t stride) {
  if (n == 1) return std::nan("");
  if (n == 2) return i == 0 ? p[stride] - p[0] : p[0] - p[-stride];
  if (i == 0) return 0.5 * (4 * p[stride] - 3 * p[0] - p[2 * stride]);
  if (i == n - 1) return 0.5 * (3 * p[0] - 4 * p[-stride] + p[-2 * stride]);
  return 0.5 * (p[stride] - p[-stride]);
}

SKYLOOM_INLINE void pixel_area_ratio_body(const double* pixmap, std::ptrdiff_t ny, std::ptrdiff_t nx,
                                          std::ptrdiff_t row_start, std::ptrdiff_t row_stop, double* area) {
  for (std::ptrdiff_t y = row_start; y < row_stop; ++y) {
    const double* row = pixmap + 2 * y * nx;
    double* result = area + (y - row_start) * nx;
    const auto general = [&](std::ptrdiff_t x) {
      const double* p = row + 2 * x;
      result[x] = std::abs(derivative(p, x, nx, 2) * derivative(p + 1, y, ny, 2 * nx) -
                           derivative(p, y, ny, 2 * nx) * derivative(p + 1, x, nx, 2));
    };
    if (y == 0 || y == ny - 1 || nx < 3) {
      for (std::ptrdiff_t x = 0; x < nx; ++x) general(x);
      continue;
    }
    const double* up = row + 2 * nx;
    const double* down = row - 2 * nx;
    general(0);
    for (std::ptrdiff_t x = 1; x < nx - 1; ++x) {
      const double xx = row[2 * x + 2] - row[2 * x - 2], yx = row[2 * x + 3] - row[2 * x - 1];
      const double xy = up[2 * x] - down[2 * x], yy = up[2 * x + 1] - down[2 * x + 1];
      result[x] = 0.25 * std::abs(xx * yy - xy * yx);
    }
    general(nx - 1);
  }
}

}  // namespace

SKYLOOM_DISPATCH(void, pixel_area_ratio,
                 (const double* pixmap, std::ptrdiff_t ny, std::ptrdiff_t nx, std::ptrdiff_t row_start,
                  std::ptrdiff_t row_stop, double* area),
                 (pixmap, ny, nx, row_start, row_stop, area))

void expand_grid(const double* nodes, std::ptrdiff_t mx, GridAxis x_axis, GridAxis y_axis, std::ptrdiff_t rows,
                 std::ptrdiff_t nx, double* out) {
  std::vector<double> line(std::size_t(2 * mx));
  expand_grid_rows(nodes, mx, x_axis, y_axis, rows, nx, out, line.data());
}

}  // namespace skyloom
