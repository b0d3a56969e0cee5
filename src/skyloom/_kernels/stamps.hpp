// Stars for the fit of a kernel: where they are, and the sums over their pixels.
#pragma once

#include <cstdint>

namespace skyloom {

// Where sub-stamps are looked for, and what makes one.
struct StampImage {
  const float* data;           // (ny, nx), finite
  const bool* good;            // (ny, nx)
  std::int64_t nx;
};

struct StampRule {
  std::int64_t x0, x1, y0, y1;                  // the cell, inclusive: peaks are looked for here
  std::int64_t left, right, bottom, top;        // sub-stamps have their middles here, inclusive
  std::int64_t half, core;                      // half sides of a sub-stamp and of its core, which must be good
  double sky, floor, upper;                     // bright pixels are above `floor`; sub-stamps have none from `upper` on
  double least_good;                            // share of the pixels of a sub-stamp
};

struct FoundStamp {
  double x, y, signal;
};

// Adds sub-stamps to the first `count` of `found`, until there are `most`, and returns how many there are then. Tried are
// the `n` given pixels (x, y) in their order or, without any (null), the peaks of the cell: good pixels above `floor` and below
// `upper` that none of their eight neighbours in the cell exceeds, brightest first. One is taken if its pixel lies in no
// sub-stamp before it, its core is good and below `upper`, enough of its pixels are good, and these have a positive signal:
// the sum of those above `floor`, less the sky.
int find_substamps(const StampImage& image, const StampRule& rule, const std::int64_t* given, std::int64_t n,
                   FoundStamp* found, int count, int most);

// Mode and standard deviation of the sky of pixels in rising order. After clipping at `clip` standard deviations about the
// median: the middle of the shortest interval that holds a tenth of them, and the distance of the quartiles divided by 1.35.
struct Sky {
  double mode, sigma;
};
Sky sky_statistics(const float* first, const float* last, double clip);

// The pixels of one stamp, as many of each as `size`, and the variance of its residual: that of the target, that of the
// convolved source, and (eps * signal)^2.
struct StampPixels {
  const float* planes;  // (n + 1, size): the n functions of the fit, and the target
  const float *target_variance, *convolved_variance;
  const bool* good;
  float *signal, *residual;
  int n;
  std::int64_t size;
  float eps;
};

// With weights w = 1 / variance on every `step`-th pixel that is good, and f the functions: gram (n, n) = sum w f f^T,
// moments (n) = sum w f target, in single precision. Returns the sum of w times the convolved source's variance.
double stamp_sums(const StampPixels& stamp, int step, double* gram, double* moments);

// signal = sum of local[k] times the first `n_signal` functions, residual = target - signal - those of the others.
void stamp_residuals(const StampPixels& stamp, const float* local, int n_signal);

// The mean of residual^2 / variance, at most `most` each, over good pixels; NaN without any.
double stamp_merit(const StampPixels& stamp, float most);

// Separable filters: each of those along y goes with one of the n_x along x, for which it has the numbers first[k] to
// first[k + 1]. All have `width` taps, an odd number, in the order of correlations.
template <class T>
struct FilterBank {
  const T* along_x;
  const T* along_y;
  const std::int64_t* first;
  int n_x, width;
};

// out (m, sy - width + 1, sx - width + 1) = a stamp of sy rows and sx columns, correlated with each of the m filters.
template <class T>
void filter_stamp(const FilterBank<T>& bank, const T* stamp, std::int64_t sy, std::int64_t sx, T* out);

}  // namespace skyloom
