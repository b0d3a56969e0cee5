#include "drizzle_overlap.hpp"

#include <cmath>
#include <initializer_list>

#include "drizzle_numbers.hpp"
#include "isa.hpp"

namespace skyloom::drizzle {
namespace {

// Added to a step along an edge so that it can be divided by. A step as small as this changes areas by less than their
// rounding, whatever becomes of it.
constexpr double kTiny = 1e-17;

SKYLOOM_INLINE int32_t floor_int(double v) {
  const int32_t t = int32_t(v);
  return t - (double(t) > v);
}

SKYLOOM_INLINE void place_body(const Drops& d, Corners& c, Placement& p) {
  const double *px0 = d.x[0], *px1 = d.x[1], *px2 = d.x[2], *px3 = d.x[3];
  const double *py0 = d.y[0], *py1 = d.y[1], *py2 = d.y[2], *py3 = d.y[3];
#pragma GCC ivdep
  for (int k = 0; k < kBatch; ++k) {
    const double x0 = without_noise(px0[k]), x1 = without_noise(px1[k]);
    const double x2 = without_noise(px2[k]), x3 = without_noise(px3[k]);
    const double y0 = without_noise(py0[k]), y1 = without_noise(py1[k]);
    const double y2 = without_noise(py2[k]), y3 = without_noise(py3[k]);
    const int32_t ox = floor_int(smaller(smaller(x0, x1), smaller(x2, x3)));
    const int32_t oy = floor_int(smaller(smaller(y0, y1), smaller(y2, y3)));
    const double fx = double(ox), fy = double(oy);
    const double far_x = larger(larger(x0, x1), larger(x2, x3)) - fx;
    const double far_y = larger(larger(y0, y1), larger(y2, y3)) - fy;
    p.x[k] = ox;
    p.y[k] = oy;
    p.width[k] = -floor_int(-far_x);
    p.height[k] = -floor_int(-far_y);
    const double ax = x0 - fx, bx = x1 - fx, cx = x2 - fx, dx = x3 - fx;
    const double ay = y0 - fy, by = y1 - fy, cy = y2 - fy, dy = y3 - fy;
    c.x[0][k] = ax;
    c.x[1][k] = bx;
    c.x[2][k] = cx;
    c.x[3][k] = dx;
    c.y[0][k] = ay;
    c.y[1][k] = by;
    c.y[2][k] = cy;
    c.y[3][k] = dy;
    // the two triangles on either side of each diagonal: if they differ in sign for both diagonals, two edges cross and
    // there is no inside
    const double abc = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay);
    const double acd = (cx - ax) * (dy - ay) - (dx - ax) * (cy - ay);
    const double abd = (bx - ax) * (dy - ay) - (dx - ax) * (by - ay);
    const double bcd = (cx - bx) * (dy - by) - (dx - bx) * (cy - by);
    const bool simple = abc * acd >= 0.0 || abd * bcd >= 0.0;
    const double area = 0.5 * (abc + acd);
    p.area[k] = simple && std::fabs(area) > kAreaNoise ? area : 0.0;
  }
  for (int k = 0; k < kBatch; ++k) {
    const double x = larger(larger(std::fabs(px0[k]), std::fabs(px1[k])), larger(std::fabs(px2[k]), std::fabs(px3[k])));
    const double y = larger(larger(std::fabs(py0[k]), std::fabs(py1[k])), larger(std::fabs(py2[k]), std::fabs(py3[k])));
    p.area[k] = larger(x, y) < kFarCorner ? p.area[k] : 0.0;
  }
  for (int k = 0; k < kBatch; ++k) p.valid[k] = p.area[k] != 0.0;
}

// How far each of the drops is from the cells [x0, x1) x [y0, y1), or less if it reaches them; the least of each register.
SKYLOOM_INLINE void find_gaps_body(const Drops& d, double x0, double x1, double y0, double y1, double* __restrict gaps) {
  const double *px0 = d.x[0], *px1 = d.x[1], *px2 = d.x[2], *px3 = d.x[3];
  const double *py0 = d.y[0], *py1 = d.y[1], *py2 = d.y[2], *py3 = d.y[3];
  for (int g = 0; g < kBatch; g += Lanes::kWidth) {
    double least = kFarCorner;
    for (int k = g; k < g + Lanes::kWidth; ++k) {
      const double low_x = smaller(smaller(px0[k], px1[k]), smaller(px2[k], px3[k]));
      const double low_y = smaller(smaller(py0[k], py1[k]), smaller(py2[k], py3[k]));
      const double high_x = larger(larger(px0[k], px1[k]), larger(px2[k], px3[k]));
      const double high_y = larger(larger(py0[k], py1[k]), larger(py2[k], py3[k]));
      least = smaller(least, larger(larger(low_x - x1, x0 - high_x), larger(low_y - y1, y0 - high_y)));
    }
    gaps[g / Lanes::kWidth] = least;
  }
}

// Steps along the edges of drops in turned order (in rx, ry), their areas and cells. worst: the least so far, in each lane, of
// what is negative for an improper drop.
SKYLOOM_INLINE void step_turned(const Drops& d, int first, TurnedDrops& t, double* __restrict areas,
                                double* __restrict worst) {
  const double *px0 = d.x[0], *px1 = d.x[1], *px2 = d.x[2], *px3 = d.x[3];
  const double *py0 = d.y[0], *py1 = d.y[1], *py2 = d.y[2], *py3 = d.y[3];
#pragma GCC ivdep
  for (int k = first; k < first + Lanes::kWidth; ++k) {
    const double x0 = px0[k], x1 = px1[k], x2 = px2[k], x3 = px3[k];
    const double y0 = py0[k], y1 = py1[k], y2 = py2[k], y3 = py3[k];
    const double fx = std::floor(without_noise(x3)), fy = std::floor(without_noise(y0));
    const double dx0 = x1 - x0, dx1 = x1 - x2, dx2 = x2 - x3, dx3 = x0 - x3;
    const double dy0 = y1 - y0, dy1 = y2 - y1, dy2 = y2 - y3, dy3 = y3 - y0;
    const double area = 0.5 * ((x2 - x0) * (y3 - y1) - (x3 - x1) * (y2 - y0));
    const double least_x = smaller(smaller(dx0, dx1), smaller(dx2, dx3));
    const double least_y = smaller(smaller(dy0, dy1), smaller(dy2, dy3));
    const double room = smaller(smaller(x3, y0) + kFarCorner, kFarCorner - larger(x1, y2));
    const double least = smaller(smaller(least_x, least_y), smaller(area - kAreaNoise, room));
    worst[k - first] = smaller(worst[k - first], least);
    t.rx[0][k] = dy0 + kTiny;
    t.ry[0][k] = dx0 + kTiny;
    t.rx[1][k] = dy1 + kTiny;
    t.ry[1][k] = dx1 + kTiny;
    t.rx[2][k] = dy2 + kTiny;
    t.ry[2][k] = dx2 + kTiny;
    t.rx[3][k] = dy3 + kTiny;
    t.ry[3][k] = dx3 + kTiny;
    const double width = std::ceil(x1) - fx, height = std::ceil(y2) - fy;
    t.width[k] = width;
    t.height[k] = height;
    t.span[k] = larger(width, height);
    t.line_x[k] = fx + 1;
    t.line_y[k] = fy + 1;
    areas[k] = area;
  }
}

// Divide by the steps along the four edges, and by the area, with one division.
SKYLOOM_INLINE void invert_steps(int first, const double* __restrict areas, TurnedDrops& __restrict t) {
#pragma GCC ivdep
  for (int k = first; k < first + Lanes::kWidth; ++k) {
    const double gy0 = t.rx[0][k], gy1 = t.rx[1][k], gy2 = t.rx[2][k], gy3 = t.rx[3][k];
    const double gx0 = t.ry[0][k], gx1 = t.ry[1][k], gx2 = t.ry[2][k], gx3 = t.ry[3][k];
    const double p0 = gx0 * gy0, p1 = gx1 * gy1, p2 = gx2 * gy2, p3 = gx3 * gy3;
    const double low = p0 * p1, high = p2 * p3, both = low * high, area = areas[k];
    const double inverse = 1.0 / (both * area), with_area = inverse * area;
    t.inverse_area[k] = inverse * both;
    const double inverse_low = with_area * high, inverse_high = with_area * low;
    const double i0 = inverse_low * p1, i1 = inverse_low * p0, i2 = inverse_high * p3, i3 = inverse_high * p2;
    t.rx[0][k] = i0 * gy0;
    t.ry[0][k] = i0 * gx0;
    t.rx[1][k] = i1 * gy1;
    t.ry[1][k] = i1 * gx1;
    t.rx[2][k] = i2 * gy2;
    t.ry[2][k] = i2 * gx2;
    t.rx[3][k] = i3 * gy3;
    t.ry[3][k] = i3 * gx3;
  }
}

SKYLOOM_INLINE bool place_turned_body(const Drops& d, Lanes lanes, TurnedDrops& t, double* areas) {
  alignas(64) double worst[Lanes::kWidth] = {};
  for (int k = lanes.begin; k < lanes.end; k += Lanes::kWidth) step_turned(d, k, t, areas, worst);
  for (const double v : worst)
    if (v < 0) return false;
  for (int k = lanes.begin; k < lanes.end; k += Lanes::kWidth) invert_steps(k, areas, t);
  return true;
}

SKYLOOM_INLINE void count_cells_body(Lanes lanes, const Cells& cells, Placement& p) {
  for (int k = 0; k < kBatch; ++k) p.valid[k] = 0;
#pragma GCC ivdep
  for (int k = lanes.begin; k < lanes.end; ++k) {
    p.x[k] = int32_t(cells.line_x[k]) - 1;
    p.y[k] = int32_t(cells.line_y[k]) - 1;
    p.width[k] = int32_t(cells.width[k]);
    p.height[k] = int32_t(cells.height[k]);
    p.valid[k] = 1;
  }
}

SKYLOOM_INLINE void number_cells_body(const Cells& cells, double x0, double y0, double stride, int32_t* __restrict cell) {
  const double start = (y0 + 1) * stride + (x0 + 1);
  for (int k = 0; k < kBatch; ++k) cell[k] = int32_t(cells.line_y[k] * stride + cells.line_x[k] - start);
}

SKYLOOM_INLINE uint64_t spans_up_to_body(int n, Lanes lanes, const Cells& cells) {
  uint32_t half[2] = {0, 0};
  for (int h = 0; h < 2; ++h)
    for (int k = 0; k < 32; ++k) half[h] |= cells.span[32 * h + k] <= n ? uint32_t(1) << k : 0;
  const int others = kBatch - (lanes.end - lanes.begin);
  const uint64_t all = others == kBatch ? 0 : ~uint64_t(0) >> others << lanes.begin;
  return (half[0] | uint64_t(half[1]) << 32) & all;
}

// The parts of an edge that goes up, to the right or to the left, by |dx| and dy. Its lower end lies u left of the line
// x = 1 and v below y = 1, from the corner of the drop's first cell. Integrals of (Y - y) |dx| below Y = j + 1, of
// (X - x) dy left of X = i + 1, and of (X - x) dy below and left of both.
template <int M>
struct EdgeParts {
  double below[M], left[M], both[M * M];
};

template <int M, bool kRight>
SKYLOOM_INLINE EdgeParts<M> edge_parts(double u, double v, double dx, double dy, double rx, double ry) {
  const double half_dx = 0.5 * dx, half_dy = 0.5 * dy;
  EdgeParts<M> e;
  double ty[M], up_to[M];
#pragma GCC unroll 4
  for (int j = 0; j < M; ++j) {
    const double above = v + j;
    ty[j] = clamp01(above * ry);
    e.below[j] = dx * ty[j] * (above - half_dy * ty[j]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < M; ++i) {
    const double beside = u + i;
    if (kRight) {  // left of the line up to tx
      const double tx = clamp01(beside * rx);
      e.left[i] = dy * tx * (beside - half_dx * tx);
#pragma GCC unroll 4
      for (int j = 0; j < M; ++j) {
        const double t = smaller(tx, ty[j]);
        e.both[j * M + i] = dy * t * (beside - half_dx * t);
      }
    } else {  // left of the line from tx on
      const double tx = clamp01(-beside * rx);
      e.left[i] = dy * (beside + half_dx - tx * (beside + half_dx * tx));
#pragma GCC unroll 4
      for (int j = 0; j < M; ++j) {
        const double t = smaller(tx, ty[j]);
        up_to[j] = ty[j] * (beside + half_dx * ty[j]);
        e.both[j * M + i] = dy * (up_to[j] - t * (beside + half_dx * t));
      }
    }
  }
  return e;
}

template <int N>
SKYLOOM_INLINE void share_turned_in(const Drops& d, int first, const TurnedDrops& t, double (*__restrict share)[kBatch]) {
  constexpr int M = N - 1;
  const double *px0 = d.x[0], *px1 = d.x[1], *px2 = d.x[2], *px3 = d.x[3];
  const double *py0 = d.y[0], *py1 = d.y[1], *py2 = d.y[2], *py3 = d.y[3];
#pragma GCC ivdep
  for (int k = first; k < first + Lanes::kWidth; ++k) {
    const double gx = t.line_x[k], gy = t.line_y[k];
    const double u0 = gx - px0[k], u1 = gx - px1[k], u2 = gx - px2[k], u3 = gx - px3[k];
    const double v0 = gy - py0[k], v1 = gy - py1[k], v2 = gy - py2[k], v3 = gy - py3[k];
    double in_x[M], in_y[M], in_xy[M * M];
    const auto a = edge_parts<M, true>(u0, v0, u0 - u1, v0 - v1, t.rx[0][k], t.ry[0][k]);   // 0 to 1, on the right side
    const auto c = edge_parts<M, true>(u3, v3, u3 - u2, v3 - v2, t.rx[2][k], t.ry[2][k]);   // 3 to 2, on the left side
    const auto b = edge_parts<M, false>(u1, v1, u2 - u1, v1 - v2, t.rx[1][k], t.ry[1][k]);  // 1 to 2, on the right side
    const auto e = edge_parts<M, false>(u0, v0, u3 - u0, v0 - v3, t.rx[3][k], t.ry[3][k]);  // 0 to 3, on the left side
#pragma GCC unroll 4
    for (int j = 0; j < M; ++j) in_y[j] = (a.below[j] - b.below[j]) + (e.below[j] - c.below[j]);
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) in_x[i] = (c.left[i] - a.left[i]) + (e.left[i] - b.left[i]);
#pragma GCC unroll 16
    for (int i = 0; i < M * M; ++i) in_xy[i] = (c.both[i] - a.both[i]) + (e.both[i] - b.both[i]);
    const double area = 0.5 * ((u0 - u2) * (v1 - v3) - (u1 - u3) * (v0 - v2));
    const double scale = t.span[k] <= N ? t.inverse_area[k] : 0.0, noise = scale * kAreaNoise;
    store_shares<N>(in_x, in_y, in_xy, area, scale, noise, k, share);
  }
}

template <int N>
SKYLOOM_INLINE void share_lanes(const Drops& d, Lanes lanes, const TurnedDrops& t, double (*share)[kBatch]) {
  for (int k = lanes.begin; k < lanes.end; k += Lanes::kWidth) share_turned_in<N>(d, k, t, share);
}

SKYLOOM_INLINE void share_turned_body(int n, const Drops& d, Lanes lanes, const TurnedDrops& t, double (*share)[kBatch]) {
  switch (n) {
    case 2: share_lanes<2>(d, lanes, t, share); break;
    case 3: share_lanes<3>(d, lanes, t, share); break;
    case 4: share_lanes<4>(d, lanes, t, share); break;
    default: share_lanes<5>(d, lanes, t, share); break;
  }
}

template <int N>
SKYLOOM_INLINE void shares(const Corners& c, const double* __restrict area, double (*__restrict share)[kBatch]) {
  constexpr int M = N - 1;
  for (int k = 0; k < kBatch; ++k) {
    double in_x[M], in_y[M], in_xy[M * M];
    for (int i = 0; i < M; ++i) in_x[i] = in_y[i] = 0;
    for (int i = 0; i < M * M; ++i) in_xy[i] = 0;
    // 1 / (dx dy) of all edges from one division
    double gxs[4], gys[4], product[4];
#pragma GCC unroll 4
    for (int e = 0; e < 4; ++e) {
      gxs[e] = c.x[(e + 1) % 4][k] - c.x[e][k] + kTiny;
      gys[e] = c.y[(e + 1) % 4][k] - c.y[e][k] + kTiny;
      product[e] = gxs[e] * gys[e];
    }
    const double low = product[0] * product[1], high = product[2] * product[3];
    const double inverse = 1.0 / (low * high), inverse_low = inverse * high, inverse_high = inverse * low;
    const double inverses[4] = {inverse_low * product[1], inverse_low * product[0], inverse_high * product[3],
                                inverse_high * product[2]};
#pragma GCC unroll 4
    for (int e = 0; e < 4; ++e) {
      const double xa = c.x[e][k], ya = c.y[e][k];
      const double dx = c.x[(e + 1) % 4][k] - xa, dy = c.y[(e + 1) % 4][k] - ya;
      const double rx = inverses[e] * gys[e], ry = inverses[e] * gxs[e];
      const bool right = gxs[e] > 0, up = gys[e] > 0;
      const double half_dx = 0.5 * dx, half_dy = 0.5 * dy;
      double from_y[M], to_y[M];
#pragma GCC unroll 4
      for (int j = 0; j < M; ++j) {
        const double u = (j + 1) - ya, t = clamp01(u * ry);
        from_y[j] = up ? 0.0 : t;
        to_y[j] = up ? t : 1.0;
        in_y[j] += dx * (to_y[j] - from_y[j]) * (u - half_dy * (from_y[j] + to_y[j]));
      }
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) {
        const double u = (i + 1) - xa, t = clamp01(u * rx);
        const double from = right ? 0.0 : t, to = right ? t : 1.0;
        in_x[i] -= dy * (to - from) * (u - half_dx * (from + to));
#pragma GCC unroll 4
        for (int j = 0; j < M; ++j) {
          const double t0 = larger(from, from_y[j]), t1 = smaller(to, to_y[j]);
          in_xy[j * M + i] -= dy * larger(t1 - t0, 0.0) * (u - half_dx * (t0 + t1));
        }
      }
    }
    const double a = area[k], scale = a == 0.0 ? 0.0 : 1.0 / a;
    const double noise = std::fabs(scale) * kAreaNoise;
    store_shares<N>(in_x, in_y, in_xy, a, scale, noise, k, share);
  }
}

SKYLOOM_INLINE void overlap_shares_body(int n, const Corners& c, const double* area, double share[][kBatch]) {
  switch (n) {
    case 2: shares<2>(c, area, share); break;
    case 3: shares<3>(c, area, share); break;
    case 4: shares<4>(c, area, share); break;
    default: shares<5>(c, area, share); break;
  }
}

SKYLOOM_INLINE void areas_in_row_body(const double cx[4], const double cy[4], double y, int n, double* below) {
  for (int i = 0; i <= n; ++i) below[i] = 0;
  for (int e = 0; e < 4; ++e) {
    const double xa = cx[e], ya = cy[e];
    const double dx = cx[(e + 1) % 4] - xa, dy = cy[(e + 1) % 4] - ya;
    const double rx = 1.0 / (dx + kTiny), ry = 1.0 / (dy + kTiny), half_dx = 0.5 * dx;
    const double at_low = clamp01((y - ya) * ry), at_high = clamp01((y + 1.0 - ya) * ry);
    const double from_y = smaller(at_low, at_high), to_y = larger(at_low, at_high);
    for (int i = 0; i <= n; ++i) {
      const double u = i - xa, t = clamp01(u * rx);
      const double t0 = larger(rx > 0 ? 0.0 : t, from_y), t1 = smaller(rx > 0 ? t : 1.0, to_y);
      below[i] -= dy * larger(t1 - t0, 0.0) * (u - half_dx * (t0 + t1));
    }
  }
}

SKYLOOM_DISPATCH(void, find_gaps, (const Drops& d, double x0, double x1, double y0, double y1, double* gaps),
                 (d, x0, x1, y0, y1, gaps))

}  // namespace

Lanes lanes_near(const Drops& d, double x0, double x1, double y0, double y1) {
  constexpr double kSlack = 1e-6;  // more than the noise of corners that are taken to be on a line
  constexpr int kRegisters = kBatch / Lanes::kWidth;
  double gaps[kRegisters];
  find_gaps(d, x0, x1, y0, y1, gaps);
  int first = 0, stop = kRegisters;
  while (first < stop && gaps[first] > kSlack) ++first;
  while (stop > first && gaps[stop - 1] > kSlack) --stop;
  return {first * Lanes::kWidth, stop * Lanes::kWidth};
}

void put_in_turned_order(Drops& d) {
  double x[4], y[4];
  for (int v = 0; v < 4; ++v) x[v] = d.x[v][0], y[v] = d.y[v][0];
  for (int first = 0; first < 4; ++first)
    for (int step : {1, 3}) {
      const int second = (first + step) % 4, third = (first + 2) % 4, last = (first + 3 * step) % 4;
      if (x[second] < x[first] || y[second] < y[first] || x[third] > x[second] || y[third] < y[second]) continue;
      const double *const px[4] = {d.x[first], d.x[second], d.x[third], d.x[last]};
      const double *const py[4] = {d.y[first], d.y[second], d.y[third], d.y[last]};
      for (int v = 0; v < 4; ++v) d.x[v] = px[v], d.y[v] = py[v];
      return;
    }
}

SKYLOOM_DISPATCH(void, place, (const Drops& d, Corners& c, Placement& p), (d, c, p))
SKYLOOM_DISPATCH(void, count_cells, (Lanes lanes, const Cells& cells, Placement& p), (lanes, cells, p))
SKYLOOM_DISPATCH(void, number_cells, (const Cells& cells, double x0, double y0, double stride, int32_t* cell),
                 (cells, x0, y0, stride, cell))
SKYLOOM_DISPATCH(uint64_t, spans_up_to, (int n, Lanes lanes, const Cells& cells), (n, lanes, cells))
SKYLOOM_DISPATCH(bool, place_turned, (const Drops& d, Lanes lanes, TurnedDrops& t, double* areas), (d, lanes, t, areas))
SKYLOOM_DISPATCH(void, share_turned,
                 (int n, const Drops& d, Lanes lanes, const TurnedDrops& t, double (*share)[kBatch]),
                 (n, d, lanes, t, share))
SKYLOOM_DISPATCH(void, overlap_shares,
                 (int n, const Corners& c, const double* area, double share[][kBatch]), (n, c, area, share))
SKYLOOM_DISPATCH(void, areas_in_row, (const double cx[4], const double cy[4], double y, int n, double* below),
                 (cx, cy, y, n, below))

}  // namespace skyloom::drizzle
