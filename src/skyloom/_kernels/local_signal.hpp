// The expected value of each pixel by local statistics (Lee 1980, IEEE Trans. PAMI 2, 165), from coarse to fine.
#pragma once

#include <cstddef>
#include <cstdint>

namespace skyloom {

// Variance of a pixel of expected value s: max(sky + (s - level) * per_photon, floor).
struct PhotonNoise {
  double level, sky, per_photon, floor;
};

template <class T>
struct SignalPlanes {
  const T* data;               // (ny, nx), finite
  const std::uint32_t* mask;   // (ny, nx)
  std::uint32_t unusable;      // any of these bits: the pixel weighs nothing
  std::ptrdiff_t ny, nx;
  T* signal;                   // (ny, nx)
};

// Fills rows [row_start, row_stop) of the signal. The means over 15 x 15 pixels are the first estimate; means over 5 x 5
// pixels, then the pixels themselves, take its place to the extent to which they scatter about it more than twice what
// their noise explains: estimate += max(1 - 2 noise / scatter, 0) * (finer - estimate).
void local_signal_f32(const SignalPlanes<float>& planes, const PhotonNoise& noise, std::ptrdiff_t row_start,
                      std::ptrdiff_t row_stop);
void local_signal_f64(const SignalPlanes<double>& planes, const PhotonNoise& noise, std::ptrdiff_t row_start,
                      std::ptrdiff_t row_stop);

}  // namespace skyloom
