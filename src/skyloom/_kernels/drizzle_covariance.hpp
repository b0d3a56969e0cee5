// Covariances between the pixels of a drizzled image. The share a_io of input pixel i in output pixel o makes
//
//   sum_i a_io a_io' w_i^2 v_i = W_o W_o' Cov(o, o')
//
// with weights w, variances v and the sums W_o = sum_i a_io w_i of the drizzle. These products are summed
// for the pixels o of a lattice and all o' = o + (dx, dy) with |dx| <= reach_x, 0 <= dy <= reach_y.
#pragma once

#include <cstdint>
#include <optional>

#include "drizzle_footprint.hpp"
#include "drizzle_planes.hpp"
#include "drizzle_shares.hpp"

namespace skyloom::drizzle {

// One image and how its pixels are spread over the output.
struct SpreadImage {
  PixelMap map;
  Window window;
  double half;                  // square kernel: half of a drop's size, in input pixels
  std::optional<Kernel> kernel; // any other kernel
  Plane data, weight, variance; // data: only to know where they are not finite. Each may be missing
  double weight_scale;
};

// Rows of the output that the drops of each batch reach: [row - window.y0][batch], low and high inclusive; low > high
// where there is none. Input rows [first, stop). spans[axis][n] counts the drops n + 1 cells wide (high), the last those that
// are wider.
constexpr int kSpans = 64;
void find_rows(const SpreadImage& image, int64_t first, int64_t stop, int32_t* low, int32_t* high, int64_t* spans);

// The sums of products of the pixels of a lattice: in row y those with x = (step y) mod every + k every. The sums of one
// pixel: [dy][dx + reach_x]; the half dy = 0, dx < 0 stays 0. All pixels if every is 1.
struct Products {
  int64_t nx, ny;               // of the output
  int64_t first, stop;          // rows to work on
  int32_t every, step;
  int reach_x, reach_y;
  double* sums;                 // [y][k][dy][dx + reach_x]
};
void add_products(const SpreadImage& image, const int32_t* low, const int32_t* high, const Products& out);

}  // namespace skyloom::drizzle
