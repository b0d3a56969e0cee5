#include "drizzle_map.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "isa.hpp"

namespace skyloom::drizzle {
namespace {

struct Point {
  double x, y;
};

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

SKYLOOM_INLINE double defined(double v) { return std::fabs(v) < kFarAway ? v : kNaN; }

Point value(const PixelMap& map, int64_t j, int64_t i) {
  if (j < 0 || j >= map.ny || i < 0 || i >= map.nx) return {kNaN, kNaN};
  const double* p = map.xy + j * map.row + i * map.col;
  const Point v{defined(p[0]), defined(p[map.axis])};
  return std::isnan(v.x) || std::isnan(v.y) ? Point{kNaN, kNaN} : v;
}

bool finite(Point p) { return !std::isnan(p.x); }

// Columns i0-1 ... i0+n of one row of the map; beyond the image it is continued linearly.
SKYLOOM_INLINE void read_row_body(const PixelMap& map, int64_t j, int64_t i0, int n, double* __restrict x,
                                  double* __restrict y) {
  const double* p = map.xy + j * map.row + i0 * map.col;
  if (map.col == 2 && map.axis == 1) {
#pragma GCC ivdep
    for (int k = 0; k < n; ++k) {
      x[k + 1] = defined(p[2 * k]);
      y[k + 1] = defined(p[2 * k + 1]);
    }
  } else {
    for (int k = 0; k < n; ++k) {
      x[k + 1] = defined(p[k * map.col]);
      y[k + 1] = defined(p[k * map.col + map.axis]);
    }
  }
  if (i0 > 0) {
    x[0] = defined(p[-map.col]);
    y[0] = defined(p[-map.col + map.axis]);
  } else {
    const Point next = value(map, j, 1);
    x[0] = 2 * x[1] - next.x;
    y[0] = 2 * y[1] - next.y;
  }
  if (i0 + n < map.nx) {
    x[n + 1] = defined(p[n * map.col]);
    y[n + 1] = defined(p[n * map.col + map.axis]);
  } else {
    const Point before = value(map, j, map.nx - 2);
    x[n + 1] = 2 * x[n] - before.x;
    y[n + 1] = 2 * y[n] - before.y;
  }
}

SKYLOOM_DISPATCH(void, read_row, (const PixelMap& map, int64_t j, int64_t i0, int n, double* x, double* y),
                 (map, j, i0, n, x, y))

struct RawRow {
  alignas(64) double x[kBatch + 8], y[kBatch + 8];
};

// Interpolate to the sides, and find the extent {x_min, x_max, y_min, y_max} of what was interpolated.
SKYLOOM_INLINE void interpolate_sides_body(const RawRow& raw, double h, MapRow& row, double* extent) {
  const double own = 1 - h;
#pragma GCC ivdep
  for (int k = 0; k < kBatch; ++k) {
    row.left_x[k] = own * raw.x[k + 1] + h * raw.x[k];
    row.left_y[k] = own * raw.y[k + 1] + h * raw.y[k];
    row.right_x[k] = own * raw.x[k + 1] + h * raw.x[k + 2];
    row.right_y[k] = own * raw.y[k + 1] + h * raw.y[k + 2];
  }
  double low_x[8], high_x[8], low_y[8], high_y[8], check[8];
  for (int v = 0; v < 8; ++v) {
    low_x[v] = low_y[v] = kFarAway * 4;
    high_x[v] = high_y[v] = -kFarAway * 4;
    check[v] = 0;
  }
  for (int k = 0; k < kBatch; k += 8)
    for (int v = 0; v < 8; ++v) {
      const double lx = row.left_x[k + v], rx = row.right_x[k + v], ly = row.left_y[k + v], ry = row.right_y[k + v];
      low_x[v] = lx < low_x[v] ? lx : low_x[v];
      low_x[v] = rx < low_x[v] ? rx : low_x[v];
      high_x[v] = lx > high_x[v] ? lx : high_x[v];
      high_x[v] = rx > high_x[v] ? rx : high_x[v];
      low_y[v] = ly < low_y[v] ? ly : low_y[v];
      low_y[v] = ry < low_y[v] ? ry : low_y[v];
      high_y[v] = ly > high_y[v] ? ly : high_y[v];
      high_y[v] = ry > high_y[v] ? ry : high_y[v];
      check[v] += (lx + rx) + (ly + ry);
    }
  double sum = 0;
  extent[0] = extent[2] = kFarAway * 4;
  extent[1] = extent[3] = -kFarAway * 4;
  for (int v = 0; v < 8; ++v) {
    extent[0] = std::min(extent[0], low_x[v]);
    extent[1] = std::max(extent[1], high_x[v]);
    extent[2] = std::min(extent[2], low_y[v]);
    extent[3] = std::max(extent[3], high_y[v]);
    sum += check[v];
  }
  row.finite = !std::isnan(sum);
}

SKYLOOM_DISPATCH(void, interpolate_sides, (const RawRow& raw, double h, MapRow& row, double* extent),
                 (raw, h, row, extent))

SKYLOOM_INLINE void interpolate_corners_body(const MapRow& low, const MapRow& mid, const MapRow& high, double h,
                                             Corners& c) {
  const double own = 1 - h;
#pragma GCC ivdep
  for (int k = 0; k < kBatch; ++k) {
    const double left_x = own * mid.left_x[k], left_y = own * mid.left_y[k];
    const double right_x = own * mid.right_x[k], right_y = own * mid.right_y[k];
    c.x[0][k] = left_x + h * high.left_x[k];
    c.y[0][k] = left_y + h * high.left_y[k];
    c.x[1][k] = right_x + h * high.right_x[k];
    c.y[1][k] = right_y + h * high.right_y[k];
    c.x[2][k] = right_x + h * low.right_x[k];
    c.y[2][k] = right_y + h * low.right_y[k];
    c.x[3][k] = left_x + h * low.left_x[k];
    c.y[3][k] = left_y + h * low.left_y[k];
  }
}

SKYLOOM_DISPATCH(void, interpolate_corners,
                 (const MapRow& low, const MapRow& mid, const MapRow& high, double h, Corners& c),
                 (low, mid, high, h, c))

// Gradient of the map at (j, i) from finite pixels in a growing window: affine if they span a plane, else the
// similarity that fits them, else a square of `unit`.
void gradient_around(const PixelMap& map, int64_t j, int64_t i, Point m, Point& along_x, Point& along_y) {
  double re = 0, im = 0, norm = 0;
  for (int64_t r = 1; r <= 64; r *= 2) {
    double xx = 0, xy = 0, yy = 0;
    Point bx{0, 0}, by{0, 0};
    for (int64_t jj = std::max<int64_t>(j - r, 0); jj <= std::min(j + r, map.ny - 1); ++jj)
      for (int64_t ii = std::max<int64_t>(i - r, 0); ii <= std::min(i + r, map.nx - 1); ++ii) {
        const Point v = value(map, jj, ii);
        if (!finite(v)) continue;
        const double dx = double(ii - i), dy = double(jj - j);
        xx += dx * dx;
        xy += dx * dy;
        yy += dy * dy;
        bx.x += dx * (v.x - m.x);
        bx.y += dx * (v.y - m.y);
        by.x += dy * (v.x - m.x);
        by.y += dy * (v.y - m.y);
      }
    const double det = xx * yy - xy * xy;  // an integer: 0 exactly if all lie on one line through (i, j)
    if (det > 0.5) {
      along_x = {(yy * bx.x - xy * by.x) / det, (yy * bx.y - xy * by.y) / det};
      along_y = {(xx * by.x - xy * bx.x) / det, (xx * by.y - xy * bx.y) / det};
      return;
    }
    if (norm == 0) {
      re = bx.x + by.y;
      im = bx.y - by.x;
      norm = xx + yy;
    }
  }
  if (norm == 0) re = map.unit, norm = 1;
  along_x = {re / norm, im / norm};
  along_y = {-im / norm, re / norm};
}

}  // namespace

bool corners_near_gaps(const PixelMap& map, double half, int64_t j, int64_t i, double x[4], double y[4]) {
  const Point m = value(map, j, i);
  if (!finite(m)) return false;
  Point slope[2][2];  // [axis][side]
  bool known[2];
  for (int axis = 0; axis < 2; ++axis) {
    const Point before = axis == 0 ? value(map, j, i - 1) : value(map, j - 1, i);
    const Point after = axis == 0 ? value(map, j, i + 1) : value(map, j + 1, i);
    const Point down{m.x - before.x, m.y - before.y}, up{after.x - m.x, after.y - m.y};
    known[axis] = finite(down) || finite(up);
    slope[axis][0] = finite(down) ? down : up;
    slope[axis][1] = finite(up) ? up : down;
  }
  if (!known[0] || !known[1]) {
    Point fit[2];
    gradient_around(map, j, i, m, fit[0], fit[1]);
    for (int axis = 0; axis < 2; ++axis)
      if (!known[axis]) slope[axis][0] = slope[axis][1] = fit[axis];
  }
  const int side_x[4] = {-1, 1, 1, -1}, side_y[4] = {1, 1, -1, -1};
  for (int c = 0; c < 4; ++c) {
    const Point a = value(map, j, i + side_x[c]), b = value(map, j + side_y[c], i);
    const Point d = value(map, j + side_y[c], i + side_x[c]);
    if (finite(a) && finite(b) && finite(d)) {
      const double own = 1 - half;
      x[c] = own * (own * m.x + half * a.x) + half * (own * b.x + half * d.x);
      y[c] = own * (own * m.y + half * a.y) + half * (own * b.y + half * d.y);
    } else {
      const Point gx = slope[0][side_x[c] > 0], gy = slope[1][side_y[c] > 0];
      x[c] = m.x + half * (side_x[c] * gx.x + side_y[c] * gy.x);
      y[c] = m.y + half * (side_x[c] * gx.y + side_y[c] * gy.y);
    }
  }
  return true;
}

void RowWindow::start(int64_t i0, int n) {
  i0_ = i0;
  n_ = n;
  held_[0] = held_[1] = held_[2] = -9;
}

const MapRow& RowWindow::row(int64_t j) {
  const int slot = int((j + 3) % 3);
  if (held_[slot] == j) return rows_[slot];
  held_[slot] = j;
  RawRow raw;
  if (j >= 0 && j < map_.ny) {
    read_row(map_, j, i0_, n_, raw.x, raw.y);
  } else if (map_.ny == 1) {
    std::fill_n(raw.x, n_ + 2, kNaN);
    std::fill_n(raw.y, n_ + 2, kNaN);
  } else {  // one row beyond the image: continue linearly
    RawRow next;
    const int64_t inner = j < 0 ? 0 : map_.ny - 1;
    read_row(map_, inner, i0_, n_, raw.x, raw.y);
    read_row(map_, j < 0 ? 1 : map_.ny - 2, i0_, n_, next.x, next.y);
    for (int k = 0; k < n_ + 2; ++k) {
      raw.x[k] = 2 * raw.x[k] - next.x[k];
      raw.y[k] = 2 * raw.y[k] - next.y[k];
    }
  }
  // idle lanes repeat the last drop, so that they do not show in the extent
  for (int k = n_; k < kBatch; ++k) {
    raw.x[k + 2] = raw.x[n_ + (k - n_) % 2];
    raw.y[k + 2] = raw.y[n_ + (k - n_) % 2];
  }
  interpolate_sides(raw, half_, rows_[slot], extent_[slot]);
  return rows_[slot];
}

bool RowWindow::corners(int64_t j, Corners& c, uint8_t* lost) {
  const MapRow &low = row(j - 1), &mid = row(j), &high = row(j + 1);
  interpolate_corners(low, mid, high, half_, c);
  if (low.finite && mid.finite && high.finite) return true;
  for (int k = 0; k < kBatch; ++k) {
    lost[k] = k >= n_;
    double sum = 0;
    for (int v = 0; v < 4; ++v) sum += c.x[v][k] + c.y[v][k];
    if (!std::isnan(sum) && !lost[k]) continue;
    double x[4] = {0, 0, 0, 0}, y[4] = {0, 0, 0, 0};
    if (!lost[k]) lost[k] = !corners_near_gaps(map_, half_, j, i0_ + k, x, y);
    for (int v = 0; v < 4; ++v) {
      c.x[v][k] = lost[k] ? 0 : x[v];
      c.y[v][k] = lost[k] ? 0 : y[v];
    }
  }
  return false;
}

bool RowWindow::bounds(int64_t j, double box[4]) {
  const bool regular = row(j - 1).finite && row(j).finite && row(j + 1).finite && half_ <= 1;
  box[0] = box[2] = kFarAway * 8;
  box[1] = box[3] = -kFarAway * 8;
  if (regular) {  // corners lie between the values that they are interpolated from
    for (int slot = 0; slot < 3; ++slot) {
      box[0] = std::min(box[0], extent_[slot][0]);
      box[1] = std::max(box[1], extent_[slot][1]);
      box[2] = std::min(box[2], extent_[slot][2]);
      box[3] = std::max(box[3], extent_[slot][3]);
    }
    return true;
  }
  Corners c;
  uint8_t lost[kBatch] = {0};
  corners(j, c, lost);
  bool any = false;
  for (int k = 0; k < n_; ++k) {
    if (lost[k]) continue;
    any = true;
    for (int v = 0; v < 4; ++v) {
      box[0] = std::min(box[0], c.x[v][k]);
      box[1] = std::max(box[1], c.x[v][k]);
      box[2] = std::min(box[2], c.y[v][k]);
      box[3] = std::max(box[3], c.y[v][k]);
    }
  }
  return any;
}

}  // namespace skyloom::drizzle
