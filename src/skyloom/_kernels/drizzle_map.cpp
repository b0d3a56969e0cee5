#include "drizzle_map.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "vectors.hpp"

namespace skyloom::drizzle {
namespace {

struct Point {
  double x, y;
};

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

SKYLOOM_INLINE double defined(double v) { return std::fabs(v) < kFarAway ? v : kNaN; }

Point value(const PixelMap& map, int64_t j, int64_t i) {
  if (j < 0 || j >= map.ny || i < 0 || i >= map.nx) return {kNaN, kNaN};
  double own[2 + MapGrid::kPadding];
  const double* p = own;
  if (map.grid != nullptr) {
    expand_piece(*map.grid, j, i, 1, own);
  } else {
    p = map.xy + j * map.row + i * map.col;
  }
  const Point v{defined(p[0]), defined(p[map.axis])};
  return std::isnan(v.x) || std::isnan(v.y) ? Point{kNaN, kNaN} : v;
}

bool finite(Point p) { return !std::isnan(p.x); }

// Columns i0-1 ... i0+n of one row of the map, of which p is column i0; beyond the image it is continued linearly.
SKYLOOM_INLINE void read_row_body(const PixelMap& map, const double* p, int64_t j, int64_t i0, int n,
                                  double* __restrict x, double* __restrict y) {
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

SKYLOOM_DISPATCH(void, read_row,
                 (const PixelMap& map, const double* p, int64_t j, int64_t i0, int n, double* x, double* y),
                 (map, p, j, i0, n, x, y))

struct RawRow {
  alignas(64) double x[kBatch + 8], y[kBatch + 8];
};

// The same as reading and interpolating a row, straight from an ordinary map for a full batch inside the image. p: the
// row's first pixel of the batch. False if a value is not finite, or too far away.
SKYLOOM_INLINE bool interpolate_inside_body(const double* __restrict p, double h, MapRow& __restrict row) {
  const double own = 1 - h;
  int32_t gaps = 0;
#pragma GCC ivdep
  for (int k = 0; k < kBatch; ++k) {
    const double x = own * p[2 * k], y = own * p[2 * k + 1];
    row.left_x[k] = x + h * p[2 * k - 2];
    row.left_y[k] = y + h * p[2 * k - 1];
    row.right_x[k] = x + h * p[2 * k + 2];
    row.right_y[k] = y + h * p[2 * k + 3];
  }
  for (int k = 0; k < kBatch; ++k) {
    const double size = std::fabs(row.left_x[k]) + std::fabs(row.left_y[k]) + std::fabs(row.right_x[k]) +
                        std::fabs(row.right_y[k]);
    gaps += !(size < kFarAway);
  }
  row.finite = true;
  return gaps == 0;
}

SKYLOOM_DISPATCH(bool, interpolate_inside, (const double* p, double h, MapRow& row), (p, h, row))

// Half the corners between two rows, from an ordinary map for a full batch inside the image. p: the row's first pixel of
// the batch.
SKYLOOM_INLINE void halve_body(const double* __restrict p, HalfRow& __restrict row) {
#pragma GCC ivdep
  for (int k = 0; k <= kBatch; ++k) {
    row.x[k] = 0.25 * (p[2 * k - 2] + p[2 * k]) + 0.25;
    row.y[k] = 0.25 * (p[2 * k - 1] + p[2 * k + 1]) + 0.25;
  }
  int32_t gaps = 0;
  for (int k = -2; k < 2 * kBatch + 2; ++k) gaps += !(std::fabs(p[k]) < kFarAway);
  row.finite = gaps == 0;
}

SKYLOOM_DISPATCH(void, halve, (const double* p, HalfRow& row), (p, row))

SKYLOOM_INLINE void add_halves_body(const HalfRow& __restrict low, const HalfRow& __restrict high,
                                    HalfRow& __restrict between) {
#pragma GCC ivdep
  for (int k = 0; k < kBatch + 8; ++k) {
    between.x[k] = low.x[k] + high.x[k];
    between.y[k] = low.y[k] + high.y[k];
  }
  between.finite = low.finite && high.finite;
}

SKYLOOM_DISPATCH(void, add_halves, (const HalfRow& low, const HalfRow& high, HalfRow& between), (low, high, between))

// The extent of the n pixels at p, an even number, whose positions are interleaved. False as above.
SKYLOOM_INLINE bool find_extent_inside_body(const double* __restrict p, int n, double* extent) {
  Octet low = load_vector<Octet>(p), high = low, sum = low - low;
  const int last = 2 * n - 8;
  for (int i = 0; i < 2 * n; i += 8) {
    __builtin_prefetch(p + i + 512);  // in the next page, where the processor does not look; beyond the map it does no harm
    const Octet v = load_vector<Octet>(p + (i < last ? i : last));
    low = v < low ? v : low;
    high = v > high ? v : high;
    sum += v;
  }
  double total = 0;
  extent[0] = low[0], extent[1] = high[0], extent[2] = low[1], extent[3] = high[1];
  for (int k = 0; k < 8; ++k) {
    double* e = extent + 2 * (k % 2);
    e[0] = low[k] < e[0] ? low[k] : e[0];
    e[1] = high[k] > e[1] ? high[k] : e[1];
    total += sum[k];
  }
  return total == total && extent[0] > -kFarAway && extent[1] < kFarAway && extent[2] > -kFarAway &&
         extent[3] < kFarAway;
}

SKYLOOM_DISPATCH(bool, find_extent_inside, (const double* p, int n, double* extent), (p, n, extent))

// Interpolate the values half a drop to either side.
SKYLOOM_INLINE void interpolate_sides_body(const RawRow& raw, double h, MapRow& row) {
  const double own = 1 - h;
#pragma GCC ivdep
  for (int k = 0; k < kBatch; ++k) {
    row.left_x[k] = own * raw.x[k + 1] + h * raw.x[k];
    row.left_y[k] = own * raw.y[k + 1] + h * raw.y[k];
    row.right_x[k] = own * raw.x[k + 1] + h * raw.x[k + 2];
    row.right_y[k] = own * raw.y[k + 1] + h * raw.y[k + 2];
  }
  int32_t gaps = 0;  // a value that is not finite shows on its left or right side
  for (int k = 0; k < kBatch; ++k) {
    const double sum = (row.left_x[k] + row.left_y[k]) + (row.right_x[k] + row.right_y[k]);
    gaps += sum != sum;
  }
  row.finite = gaps == 0;
}

SKYLOOM_DISPATCH(void, interpolate_sides, (const RawRow& raw, double h, MapRow& row), (raw, h, row))

SKYLOOM_INLINE void widen(const double* v, int n, double& low, double& high, double& sum) {
  double lows[8], highs[8], sums[8];
  for (int k = 0; k < 8; ++k) {
    lows[k] = highs[k] = v[0];
    sums[k] = 0;
  }
  for (int i = 0; i < n; i += 8)
    for (int k = 0; k < 8; ++k) {
      lows[k] = v[i + k] < lows[k] ? v[i + k] : lows[k];
      highs[k] = v[i + k] > highs[k] ? v[i + k] : highs[k];
      sums[k] += v[i + k];
    }
  low = lows[0];
  high = highs[0];
  for (int k = 0; k < 8; ++k) {
    low = lows[k] < low ? lows[k] : low;
    high = highs[k] > high ? highs[k] : high;
    sum += sums[k];
  }
}

// The extent {x_min, x_max, y_min, y_max} of the first n values of a row, n a multiple of 8. False if any is not finite.
SKYLOOM_INLINE bool find_extent_body(const RawRow& raw, int n, double* extent) {
  double sum = 0;
  widen(raw.x, n, extent[0], extent[1], sum);
  widen(raw.y, n, extent[2], extent[3], sum);
  return sum == sum;
}

SKYLOOM_DISPATCH(bool, find_extent, (const RawRow& raw, int n, double* extent), (raw, n, extent))

SKYLOOM_INLINE void interpolate_corners_body(const MapRow& low, const MapRow& mid, const MapRow& high, double h,
                                             Corners& c) {
  const double own = 1 - h;
#pragma GCC ivdep
  for (int k = 0; k < kBatch; ++k) {
    const double left_x = own * mid.left_x[k] + 0.5, left_y = own * mid.left_y[k] + 0.5;
    const double right_x = own * mid.right_x[k] + 0.5, right_y = own * mid.right_y[k] + 0.5;
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
  if (i0 == i0_ && n == n_) return;
  i0_ = i0;
  n_ = n;
  held_[0] = held_[1] = held_[2] = -9;
  held_half_[0] = held_half_[1] = held_half_[2] = -9;
  held_between_[0] = held_between_[1] = -9;
}

// The rows are far apart in memory: the processor does not guess the next one.
void prefetch_row(const PixelMap& map, int64_t j, int64_t i0, int n) {
  if (j >= map.ny || map.grid != nullptr) return;
  const double* p = map.xy + j * map.row + i0 * map.col;
  for (int64_t k = 0; k < n * map.col; k += 8) __builtin_prefetch(p + k);
}

// Columns i0-1 ... i0+n of row j; rows beyond the image continue it linearly.
void read_any_row(const PixelMap& map, int64_t j, int64_t i0, int n, RawRow& raw) {
  RowPiece piece;
  const auto read = [&](int64_t row, RawRow& to) { read_row(map, piece.read(map, row, i0, n), row, i0, n, to.x, to.y); };
  if (j >= 0 && j < map.ny) {
    read(j, raw);
  } else if (map.ny == 1) {
    std::fill_n(raw.x, n + 2, kNaN);
    std::fill_n(raw.y, n + 2, kNaN);
  } else {
    RawRow next;
    read(j < 0 ? 0 : map.ny - 1, raw);
    read(j < 0 ? 1 : map.ny - 2, next);
    for (int k = 0; k < n + 2; ++k) {
      raw.x[k] = 2 * raw.x[k] - next.x[k];
      raw.y[k] = 2 * raw.y[k] - next.y[k];
    }
  }
  // idle lanes repeat the last drop, so that they do not show in an extent
  for (int k = n + 2; k < kBatch + 8; ++k) {
    raw.x[k] = raw.x[n + k % 2];
    raw.y[k] = raw.y[n + k % 2];
  }
}

const MapRow& RowWindow::row(int64_t j) {
  const int slot = int((j + 3) % 3);
  if (held_[slot] == j) return rows_[slot];
  held_[slot] = j;
  prefetch_row(map_, j + 2, i0_, n_);
  if (inside(j) && interpolate_inside(piece_.read(map_, j, i0_, n_), half_, rows_[slot])) return rows_[slot];
  RawRow raw;
  read_any_row(map_, j, i0_, n_, raw);
  interpolate_sides(raw, half_, rows_[slot]);
  return rows_[slot];
}

bool row_extent(const PixelMap& map, int64_t j, int64_t i0, int n, Extent& e) {
  const bool ordinary = map.col == 2 && map.axis == 1;
  const bool inside = n == kBatch && i0 > 0 && i0 + n < map.nx && j >= 0 && j < map.ny;
  RowPiece piece;
  bool known = ordinary && inside && find_extent_inside(piece.read(map, j, i0, n) - 2, n + 2, &e.x0);
  if (!known) {
    RawRow raw;
    read_any_row(map, j, i0, n, raw);
    known = find_extent(raw, kBatch + 8, &e.x0);
  }
  e = {e.x0 + 0.5, e.x1 + 0.5, e.y0 + 0.5, e.y1 + 0.5};
  return known;
}

const HalfRow& RowWindow::half_row(int64_t j) {
  const int slot = int((j + 3) % 3);
  if (held_half_[slot] == j) return halves_[slot];
  held_half_[slot] = j;
  prefetch_row(map_, j + 2, i0_, n_);
  halve(piece_.read(map_, j, i0_, n_), halves_[slot]);
  return halves_[slot];
}

const HalfRow& RowWindow::between(int64_t j) {
  const int slot = int(j % 2);
  if (held_between_[slot] == j) return between_[slot];
  held_between_[slot] = j;
  add_halves(half_row(j - 1), half_row(j), between_[slot]);
  return between_[slot];
}

// False if the drops of the row do not share their corners with those of the next.
bool RowWindow::shared_corners(int64_t j, Drops& d) {
  if (half_ != 0.5 || !inside(j - 1) || !inside(j + 1)) return false;
  const HalfRow &low = between(j), &high = between(j + 1);
  d = {{high.x, high.x + 1, low.x + 1, low.x}, {high.y, high.y + 1, low.y + 1, low.y}};
  return low.finite && high.finite;
}

bool RowWindow::drops(int64_t j, Drops& d, uint8_t* lost) {
  if (shared_corners(j, d)) return true;
  Corners& c = corners_;
  for (int v = 0; v < 4; ++v) d.x[v] = c.x[v], d.y[v] = c.y[v];
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
      c.x[v][k] = lost[k] ? 0 : x[v] + 0.5;
      c.y[v][k] = lost[k] ? 0 : y[v] + 0.5;
    }
  }
  return false;
}

bool RowWindow::extent(int64_t j, Extent& e) {
  Drops d;
  uint8_t lost[kBatch] = {0};
  drops(j, d, lost);
  e = {kFarAway * 8, -kFarAway * 8, kFarAway * 8, -kFarAway * 8};
  bool any = false;
  for (int k = 0; k < n_; ++k) {
    if (lost[k]) continue;
    any = true;
    for (int v = 0; v < 4; ++v) e.take({d.x[v][k], d.x[v][k], d.y[v][k], d.y[v][k]});
  }
  return any;
}

}  // namespace skyloom::drizzle
