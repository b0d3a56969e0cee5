#include "pixmap.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "isa.hpp"

namespace skyloom {
namespace {

// Interpolate along y at the nodes m ... stop - 1 of one row, whose stencil has its first node at (0, r).
SKYLOOM_INLINE void blend_nodes(const double* r, std::ptrdiff_t mx, const double* w, std::ptrdiff_t m, std::ptrdiff_t stop,
                                double* line) {
  for (std::ptrdiff_t i = 2 * m; i < 2 * stop; ++i, ++line)
    *line = (w[0] * r[i] + w[1] * r[i + 2 * mx]) + (w[2] * r[i + 4 * mx] + w[3] * r[i + 6 * mx]);
}

// Interpolate along x at the pixels x ... end - 1. line: the blended nodes, from node m on.
SKYLOOM_INLINE void blend_pixels(const double* line, std::ptrdiff_t m, GridAxis x_axis, std::ptrdiff_t x,
                                 std::ptrdiff_t end, double* o) {
  while (x < end) {  // all pixels that share a stencil
    std::ptrdiff_t stop = x + 1;
    while (stop < end && x_axis.first[stop] == x_axis.first[x]) ++stop;
    const double* p = line + 2 * (std::ptrdiff_t(x_axis.first[x]) - m);
    const double x0 = p[0], y0 = p[1], x1 = p[2], y1 = p[3], x2 = p[4], y2 = p[5], x3 = p[6], y3 = p[7];
    for (; x < stop; ++x, o += 2) {
      const double* v = x_axis.weight + 4 * x;
      o[0] = (v[0] * x0 + v[1] * x1) + (v[2] * x2 + v[3] * x3);
      o[1] = (v[0] * y0 + v[1] * y1) + (v[2] * y2 + v[3] * y3);
    }
  }
}

SKYLOOM_INLINE void expand_grid_rows_body(const double* nodes, std::ptrdiff_t mx, GridAxis x_axis, GridAxis y_axis,
                                          std::ptrdiff_t rows, std::ptrdiff_t nx, double* out, double* line) {
  for (std::ptrdiff_t r = 0; r < rows; ++r) {
    blend_nodes(nodes + std::ptrdiff_t(y_axis.first[r]) * mx * 2, mx, y_axis.weight + 4 * r, 0, mx, line);
    blend_pixels(line, 0, x_axis, 0, nx, out + r * nx * 2);
  }
}

SKYLOOM_DISPATCH(void, expand_grid_rows,
                 (const double* nodes, std::ptrdiff_t mx, GridAxis x_axis, GridAxis y_axis, std::ptrdiff_t rows,
                  std::ptrdiff_t nx, double* out, double* line),
                 (nodes, mx, x_axis, y_axis, rows, nx, out, line))

constexpr std::ptrdiff_t kLineNodes = 64;

typedef double Octet __attribute__((vector_size(64)));

// The same as blend_pixels, four pixels at a time; what is too much of one stencil is overwritten by the next.
SKYLOOM_INLINE void blend_padded(const double* line, std::ptrdiff_t m, const MapGrid& grid, std::ptrdiff_t x,
                                 std::ptrdiff_t end, double* o) {
  while (x < end) {
    const std::ptrdiff_t stop = grid.run_end[x] < end ? grid.run_end[x] : end;
    const double* p = line + 2 * (std::ptrdiff_t(grid.x.first[x]) - m);
    Octet node[4], w[4];
    for (int k = 0; k < 4; ++k)
      node[k] = Octet{p[2 * k], p[2 * k + 1], p[2 * k], p[2 * k + 1], p[2 * k], p[2 * k + 1], p[2 * k], p[2 * k + 1]};
    double* to = o;
    for (std::ptrdiff_t i = 2 * x; i < 2 * stop; i += 8, to += 8) {
      for (int k = 0; k < 4; ++k) std::memcpy(&w[k], grid.pair_weight[k] + i, sizeof w[k]);
      const Octet position = (w[0] * node[0] + w[1] * node[1]) + (w[2] * node[2] + w[3] * node[3]);
      std::memcpy(to, &position, sizeof position);
    }
    o += 2 * (stop - x);
    x = stop;
  }
}

SKYLOOM_INLINE void interpolate_piece_body(const MapGrid& grid, std::ptrdiff_t y, std::ptrdiff_t x, std::ptrdiff_t n,
                                           double* out) {
  double line[2 * kLineNodes];
  const double* row = grid.nodes + std::ptrdiff_t(grid.y.first[y]) * grid.mx * 2;
  const std::ptrdiff_t end = x + n;
  while (x < end) {  // once, but where nodes are as dense as pixels
    const std::ptrdiff_t m = grid.x.first[x];
    std::ptrdiff_t stop = end;
    while (grid.x.first[stop - 1] + 4 - m > kLineNodes) --stop;
    blend_nodes(row, grid.mx, grid.y.weight + 4 * y, m, grid.x.first[stop - 1] + 4, line);
    blend_padded(line, m, grid, x, stop, out);
    out += 2 * (stop - x);
    x = stop;
  }
}

SKYLOOM_DISPATCH(void, interpolate_piece,
                 (const MapGrid& grid, std::ptrdiff_t y, std::ptrdiff_t x, std::ptrdiff_t n, double* out),
                 (grid, y, x, n, out))

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

void expand_piece(const MapGrid& grid, std::ptrdiff_t y, std::ptrdiff_t x, std::ptrdiff_t n, double* out) {
  interpolate_piece(grid, y, x, n, out);
  if (grid.exact_count == 0) return;
  const std::int64_t first = std::int64_t(y) * grid.nx + x;
  const std::int64_t* const end = grid.exact_index + grid.exact_count;
  for (const std::int64_t* e = std::lower_bound(grid.exact_index, end, first); e != end && *e < first + n; ++e)
    std::copy_n(grid.exact_xy + 2 * (e - grid.exact_index), 2, out + 2 * (*e - first));
}

}  // namespace skyloom
