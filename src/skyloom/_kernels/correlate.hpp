// Correlation of one tile of an image with filters that vary over the field, by Fourier transforms.
//
// The spectrum of a tile of ny x nx pixels is kept as blocks of neighbouring frequencies along x, each block a column of
// all frequencies along y: [block][ny][re, im][kLanes]. It has the first nx / 2 + 1 frequencies along x, and zeros up to
// a multiple of kLanes.
#pragma once

#include <cstdint>
#include <vector>

namespace skyloom {

template <class T>
struct TileSpectrum {
  const T* plane;  // [rows][columns], at the origin of the tile; the rest is 0
  int rows, columns;
  int ny, nx;  // products of 2, 3 and 5
  T* spectrum;
};

// out(y, x) = sum over terms of weights[term](y, x) sum over r of mixture[term][r] sum over p of (S_rp * A_p)(y, x), for
// the pixels from (first, first) on, where S_rp * A_p is the inverse transform of the product of spectra.
template <class T>
struct TileFilter {
  int ny, nx;
  const T* filters;  // [rank][planes][spectrum]
  int rank;
  std::vector<const T*> planes;  // spectra
  const T* mixture;              // [terms][rank]
  const T* weights;              // [terms][rows][columns]
  int terms;
  int first;
  T* out;  // [rows][columns], `stride` apart
  int rows, columns;
  std::int64_t stride;
};

void tile_spectrum_f32(const TileSpectrum<float>& tile);
void tile_spectrum_f64(const TileSpectrum<double>& tile);
void filter_tile_f32(const TileFilter<float>& tile);
void filter_tile_f64(const TileFilter<double>& tile);

}  // namespace skyloom
