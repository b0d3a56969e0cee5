// All numbers in this file are finite: it is compiled with -ffinite-math-only -fno-signed-zeros, so that clamps are
// single instructions.
#include "drizzle_overlap.hpp"

#include <cmath>
#include <initializer_list>

#include "isa.hpp"

namespace skyloom::drizzle {
namespace {

SKYLOOM_INLINE double smaller(double a, double b) { return a < b ? a : b; }
SKYLOOM_INLINE double larger(double a, double b) { return a > b ? a : b; }
SKYLOOM_INLINE double clamp01(double t) { return smaller(larger(t, 0.0), 1.0); }

// Added to a step along an edge so that it can be divided by. A step as small as this changes areas by less than their
// rounding, whatever becomes of it.
constexpr double kTiny = 1e-17;

SKYLOOM_INLINE int32_t floor_int(double v) {
  const int32_t t = int32_t(v);
  return t - (double(t) > v);
}

// In which order to take a drop's corners so that the first edge goes right and up and the second left and up.
void turned_order(const Corners& c, int k, int order[4]) {
  for (int first = 0; first < 4; ++first)
    for (int step : {1, 3}) {
      const int b = (first + step) % 4, d = (first + 2) % 4;
      if (c.x[b][k] < c.x[first][k] || c.y[b][k] < c.y[first][k]) continue;
      if (c.x[d][k] > c.x[b][k] || c.y[d][k] < c.y[b][k]) continue;
      for (int v = 0; v < 4; ++v) order[v] = (first + step * v) % 4;
      return;
    }
}

SKYLOOM_INLINE void place_ordered_body(Corners& c, Placement& p, int a0, int a1, int a2, int a3) {
  const double *px0 = c.x[a0], *px1 = c.x[a1], *px2 = c.x[a2], *px3 = c.x[a3];
  const double *py0 = c.y[a0], *py1 = c.y[a1], *py2 = c.y[a2], *py3 = c.y[a3];
#pragma GCC ivdep
  for (int k = 0; k < kBatch; ++k) {
    const double x0 = px0[k] + 0.5, x1 = px1[k] + 0.5, x2 = px2[k] + 0.5, x3 = px3[k] + 0.5;
    const double y0 = py0[k] + 0.5, y1 = py1[k] + 0.5, y2 = py2[k] + 0.5, y3 = py3[k] + 0.5;
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
  int32_t other = 0;
  for (int k = 0; k < kBatch; ++k) {
    p.valid[k] = p.area[k] != 0.0;
    const double x0 = c.x[0][k], x1 = c.x[1][k], x2 = c.x[2][k], x3 = c.x[3][k];
    const double y0 = c.y[0][k], y1 = c.y[1][k], y2 = c.y[2][k], y3 = c.y[3][k];
    const bool turned = (x1 >= x0) & (y1 >= y0) & (x2 <= x1) & (y2 >= y1) & (x3 <= x2) & (y3 <= y2) & (x0 >= x3) & (y0 <= y3);
    other += !turned;
  }
  p.turned = other == 0;
}

// kTurned: the edges are known to go right and up, left and up, left and down, right and down.
template <int N, bool kTurned>
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
      const bool goes_right = e == 0 || e == 3, goes_up = e < 2;
      const double dx = c.x[(e + 1) % 4][k] - c.x[e][k], dy = c.y[(e + 1) % 4][k] - c.y[e][k];
      gxs[e] = kTurned && !goes_right ? dx - kTiny : dx + kTiny;
      gys[e] = kTurned && !goes_up ? dy - kTiny : dy + kTiny;
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
      const bool right = kTurned ? e == 0 || e == 3 : gxs[e] > 0, up = kTurned ? e < 2 : gys[e] > 0;
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
    // second differences of area{x < i + 1, y < j + 1}; beyond the last line everything is inside
#pragma GCC unroll 5
    for (int j = 0; j < N; ++j) {
      double before = 0;
#pragma GCC unroll 5
      for (int i = 0; i < N; ++i) {
        const double high = j < M ? (i < M ? in_xy[j * M + i] : in_y[j]) : (i < M ? in_x[i] : a);
        const double low = j == 0 ? 0.0 : (i < M ? in_xy[(j - 1) * M + i] : in_y[j - 1]);
        const double strip = high - low;
        const double s = (strip - before) * scale;
        before = strip;
        share[j * N + i][k] = s > noise ? s : 0.0;
      }
    }
  }
}

template <bool kTurned>
SKYLOOM_INLINE void shares_of(int n, const Corners& c, const double* area, double share[][kBatch]) {
  switch (n) {
    case 2: shares<2, kTurned>(c, area, share); break;
    case 3: shares<3, kTurned>(c, area, share); break;
    case 4: shares<4, kTurned>(c, area, share); break;
    default: shares<5, kTurned>(c, area, share); break;
  }
}

SKYLOOM_INLINE void overlap_shares_body(int n, bool turned, const Corners& c, const double* area,
                                        double share[][kBatch]) {
  if (turned) {
    shares_of<true>(n, c, area, share);
  } else {
    shares_of<false>(n, c, area, share);
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

}  // namespace

SKYLOOM_DISPATCH(void, place_ordered, (Corners & c, Placement& p, int a0, int a1, int a2, int a3),
                 (c, p, a0, a1, a2, a3))

void place(Corners& c, Placement& p) {
  int order[4] = {0, 1, 2, 3};
  turned_order(c, 0, order);
  place_ordered(c, p, order[0], order[1], order[2], order[3]);
}

SKYLOOM_DISPATCH(void, overlap_shares,
                 (int n, bool turned, const Corners& c, const double* area, double share[][kBatch]),
                 (n, turned, c, area, share))
SKYLOOM_DISPATCH(void, areas_in_row, (const double cx[4], const double cy[4], double y, int n, double* below),
                 (cx, cy, y, n, below))

}  // namespace skyloom::drizzle
