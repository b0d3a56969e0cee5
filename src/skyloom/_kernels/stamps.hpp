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

// gram[i][j] = sum_p roots[p]^2 planes[i][p] planes[j][p], in single precision, for n planes of `size` pixels.
void weighted_gram(const float* planes, const float* roots, int n, std::int64_t size, double* gram);

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
