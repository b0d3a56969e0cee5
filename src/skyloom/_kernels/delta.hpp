// Least squares with a delta-function kernel that varies over the field (Miller, Pennypacker & White 2008, PASP 120, 449;
// Bramich 2008, MNRAS 386, L77): the model of the pixel p is
//
//   M(p) = sum_a c_a(p) R(p - a),  c_a(p) = sum over i + j <= order of c_aij X^i Y^j.
//
// R is padded by half the kernel on each side, and the taps run over the window of ky x kx pixels of the padded R whose first pixel
// is p: tap (v, u) is the shift a = (ky / 2 - v, kx / 2 - u). Terms (i, j) in the order (0,0) (0,1) .. (1,0) .. .
#pragma once

#include <cstdint>

namespace skyloom {

struct DeltaGrid {
  std::int64_t ny, nx;  // of the image
  int ky, kx;           // odd
  int order;
  double x_centre, x_scale, y_centre, y_scale;

  std::int64_t stride() const { return nx + kx - 1; }  // of the padded image
  int taps() const { return ky * kx; }
  int terms() const { return (order + 1) * (order + 2) / 2; }
};

// out[ij][a][a'] += sum_p weight(p) X^i Y^j R(p - a) R(p - a') over the rows [start, stop), for a' <= a (what is in the
// other triangle is left undefined). X^i Y^j are taken at the middles of cells of cell x cell pixels, the first of which begins at
// (0, start): the matrix is that of a kernel that varies in small steps. Sums run in float32 within a cell, then in
// float64. Pixels of weight 0 cost nothing.
void delta_gram(const DeltaGrid& grid, const float* padded, const float* weight, int cell, std::int64_t start,
                std::int64_t stop, double* out);

// The two products come in single precision (float) and in double. Sums over the pixels of a call run in T, in as many parts as
// a register holds, whose sum is taken in float64: few rows at a time lose least.

// out[ij][a] += sum_p weight(p) image(p) X^i Y^j R(p - a), and flat[kl] += sum_p weight(p) image(p) X^k Y^l for k + l <=
// flat_order, over the rows [start, stop). Returns sum_p weight(p) image(p)^2.
template <class T>
double delta_project(const DeltaGrid& grid, const T* padded, const T* image, const float* weight, std::int64_t start,
                     std::int64_t stop, int flat_order, double* out, double* flat);

// out(p) = M(p) + sum_kl flat[kl] X^k Y^l on the rows [start, stop), with c_aij = coefficients[ij][a].
template <class T>
void delta_apply(const DeltaGrid& grid, const T* padded, const double* coefficients, int flat_order, const double* flat,
                 std::int64_t start, std::int64_t stop, T* out);

}  // namespace skyloom
