// Convolution with a kernel that varies over the field as a polynomial (Alard 2000, A&AS 144, 363, eq. 4).
#pragma once

#include <cstdint>

namespace skyloom {

// Output columns are worked on in chunks of this many; planes are padded to a multiple of it.
inline constexpr int kConvolveChunk = 16;
inline constexpr int kConvolveMaxOrder = 4;

// K(u, v; X, Y) = sum over i + j <= order of X^i Y^j planes[ij](u, v), terms in the order (0,0) (0,1) .. (1,0) ..,
// i the power of X = (x - x_centre) / x_scale and j that of Y.
struct VaryingKernel {
  const double* planes;  // [term][ky][kx], flipped in both axes: the loops correlate
  int ky, kx;            // odd
  int order;
  double x_centre, x_scale, y_centre, y_scale;
  bool linear = false;          // within a block, K is taken to be linear in x: what is left out is spread evenly
  bool constant_square = false; // within a block, K^2 is taken to be constant
  int square_margin = 0;        // K^2 is taken to be 0 in so many rows and columns along each side
};

// Input planes are padded by half the kernel on each side, `stride` floats a row, 0 where unusable. Output planes have
// `width` floats a row, a multiple of kConvolveChunk. Optional planes are null when not wanted.
struct ConvolvePlanes {
  const float* data;
  const float* variance;  // optional
  const float* usable;    // optional: 1 or 0
  std::int64_t stride;
  float* out;
  float* out_variance;  // with variance
  float* out_lost;      // with usable: share of sum |K| that fell on unusable pixels
  float* out_kept;      // with usable: share of sum K that fell on usable pixels
  std::int64_t width;
  std::int64_t columns;  // of these so many belong to the image
};

// Fills the output rows [row_start, row_stop).
void convolve_varying(const VaryingKernel& kernel, const ConvolvePlanes& planes, std::int64_t row_start,
                      std::int64_t row_stop);

}  // namespace skyloom
