#include "local_signal.hpp"

#include <algorithm>
#include <vector>

#include "isa.hpp"

namespace skyloom {
namespace {

constexpr int kCoarse = 15, kMiddle = 5;  // pixels a side of the windows
// Pixels that a value depends on in each direction: the means over the coarse window, of details there; their scatter in
// the coarse window, about which there is the scatter in the middle window.
constexpr int kHalo = 2 * (kCoarse / 2) + kMiddle / 2;
constexpr int kTileColumns = 256, kTileRows = 64;

// Rows of one tile with its halo. All rows lie `stride` apart.
struct Tile {
  int rows, columns, stride;
};

// sum[x] = v[x - w/2] + ... + v[x + w/2] for x in [w/2, n - w/2), in a fixed order; the rest is not touched.
template <int W, class T>
SKYLOOM_INLINE void sum_along_row(const T* __restrict v, T* __restrict sum, int n) {
  constexpr int Half = W / 2;
  for (int x = Half; x < n - Half; ++x) {
    T s = v[x - Half];
    for (int k = 1; k < W; ++k) s += v[x - Half + k];
    sum[x] = s;
  }
}

// Sums over W x W pixels, for the pixels that have all of them in the tile.
template <int W, class T>
SKYLOOM_INLINE void box_sum(const Tile& tile, const T* __restrict v, T* __restrict rows, T* __restrict sum) {
  constexpr int Half = W / 2;
  for (int y = 0; y < tile.rows; ++y) sum_along_row<W>(v + y * tile.stride, rows + y * tile.stride, tile.columns);
  for (int y = Half; y < tile.rows - Half; ++y) {
    const T* __restrict first = rows + (y - Half) * tile.stride;
    T* __restrict out = sum + y * tile.stride;
    for (int x = Half; x < tile.columns - Half; ++x) {
      T s = first[x];
      for (int k = 1; k < W; ++k) s += first[k * tile.stride + x];
      out[x] = s;
    }
  }
}

template <class T>
struct Buffers {
  std::vector<T> weight, data, estimate, finer, detail, rows, counts, means;
  explicit Buffers(std::size_t n)
      : weight(n), data(n), estimate(n), finer(n), detail(n), rows(n), counts(n), means(n) {}
};

// The tile's part of the planes; what is outside of the image, or unusable, has weight 0. True if nothing is.
template <class T>
SKYLOOM_INLINE bool cut(const SignalPlanes<T>& planes, const Tile& tile, std::ptrdiff_t top, std::ptrdiff_t left,
                        double level, Buffers<T>& b) {
  int bad = 0;
  for (int y = 0; y < tile.rows; ++y) {
    T* __restrict weight = b.weight.data() + y * tile.stride;
    T* __restrict data = b.data.data() + y * tile.stride;
    std::fill_n(weight, tile.columns, T(0));
    std::fill_n(data, tile.columns, T(0));
    if (top + y < 0 || top + y >= planes.ny) {
      bad += tile.columns;
      continue;
    }
    const int from = int(std::max(-left, std::ptrdiff_t(0)));
    const int to = int(std::min(std::ptrdiff_t(tile.columns), planes.nx - left));
    bad += tile.columns - (to - from);
    const T* in = planes.data + (top + y) * planes.nx + left;
    const std::uint32_t* mask = planes.mask + (top + y) * planes.nx + left;
    for (int x = from; x < to; ++x) {
      const bool good = (mask[x] & planes.unusable) == 0;
      weight[x] = good ? T(1) : T(0);
      data[x] = good ? T(double(in[x]) - level) : T(0);
      bad += good ? 0 : 1;
    }
  }
  return bad == 0;
}

// How many pixels of each W x W have weight.
template <int W, class T>
SKYLOOM_INLINE void count_pixels(const Tile& tile, bool all, Buffers<T>& b, T* count) {
  if (all)
    std::fill_n(count, tile.rows * tile.stride, T(W * W));
  else
    box_sum<W>(tile, b.weight.data(), b.rows.data(), count);
}

// Sums become means, and 0 where the count is 0, `margin` pixels from the border of the tile.
template <class T>
SKYLOOM_INLINE void divide(const Tile& tile, int margin, const T* __restrict count, T* __restrict sum) {
  for (int y = margin; y < tile.rows - margin; ++y)
    for (int x = margin; x < tile.columns - margin; ++x) {
      const int o = y * tile.stride + x;
      sum[o] /= std::max(count[o], T(1));
    }
}

// One step from coarse to fine: `finer` are the means over the finer window, `count` the pixels in the coarser one.
template <int Coarse, class T>
SKYLOOM_INLINE void refine(const Tile& tile, int margin, const PhotonNoise& model, double pixels, const T* finer,
                           const T* count, Buffers<T>& b) {
  const T* __restrict weight = b.weight.data();
  T* __restrict detail = b.detail.data();
  T* __restrict estimate = b.estimate.data();
  T* __restrict square = b.means.data();
  for (int y = margin; y < tile.rows - margin; ++y)
    for (int x = margin; x < tile.columns - margin; ++x) {
      const int o = y * tile.stride + x;
      detail[o] = (finer[o] - estimate[o]) * weight[o];
      square[o] = detail[o] * detail[o];
    }
  const Tile inner{tile.rows - 2 * margin, tile.columns - 2 * margin, tile.stride};
  const int corner = margin * (tile.stride + 1);
  T* __restrict scatters = b.finer.data();  // the finer means are in the details now
  box_sum<Coarse>(inner, square + corner, b.rows.data() + corner, scatters + corner);
  const T sky = T(model.sky / pixels), per_photon = T(model.per_photon / pixels), floor = T(model.floor / pixels);
  margin += Coarse / 2;
  for (int y = margin; y < tile.rows - margin; ++y)
    for (int x = margin; x < tile.columns - margin; ++x) {
      const int o = y * tile.stride + x;
      const T noise = std::max(sky + estimate[o] * per_photon, floor);
      const T scatter = std::max(scatters[o] / std::max(count[o], T(1)), noise);
      // below twice the noise nothing else is seen: a scatter of 9 to 25 independent values has an error of 0.3 to 0.5
      estimate[o] += std::max(T(1) - T(2) * noise / scatter, T(0)) * detail[o];
    }
}

template <class T>
SKYLOOM_INLINE void signal_of_tile(const SignalPlanes<T>& planes, const PhotonNoise& noise, std::ptrdiff_t row_start,
                                   std::ptrdiff_t row_stop, std::ptrdiff_t first, Buffers<T>& b) {
  const std::ptrdiff_t last = std::min(first + kTileColumns, planes.nx);
  const Tile tile{int(row_stop - row_start) + 2 * kHalo, int(last - first) + 2 * kHalo, kTileColumns + 2 * kHalo};
  const bool all = cut(planes, tile, row_start - kHalo, first - kHalo, noise.level, b);
  T *data = b.data.data(), *finer = b.finer.data(), *estimate = b.estimate.data(), *rows = b.rows.data();
  T *count = b.counts.data(), *middle_count = b.means.data();
  count_pixels<kCoarse>(tile, all, b, count);
  box_sum<kCoarse>(tile, data, rows, estimate);
  divide(tile, kCoarse / 2, count, estimate);
  count_pixels<kMiddle>(tile, all, b, middle_count);
  box_sum<kMiddle>(tile, data, rows, finer);
  divide(tile, kCoarse / 2, middle_count, finer);
  refine<kCoarse>(tile, kCoarse / 2, noise, kMiddle * kMiddle, finer, count, b);
  count_pixels<kMiddle>(tile, all, b, count);
  refine<kMiddle>(tile, 2 * (kCoarse / 2), noise, 1, data, count, b);
  for (std::ptrdiff_t y = row_start; y < row_stop; ++y) {
    const T* row = estimate + (y - row_start + kHalo) * tile.stride + kHalo;
    T* signal = planes.signal + y * planes.nx + first;
    for (std::ptrdiff_t x = 0; x < last - first; ++x) signal[x] = T(double(row[x]) + noise.level);
  }
}

template <class T>
SKYLOOM_INLINE void local_signal_body(const SignalPlanes<T>& planes, const PhotonNoise& noise, std::ptrdiff_t row_start,
                                      std::ptrdiff_t row_stop, Buffers<T>& buffers) {
  for (std::ptrdiff_t top = row_start; top < row_stop; top += kTileRows)
    for (std::ptrdiff_t first = 0; first < planes.nx; first += kTileColumns)
      signal_of_tile(planes, noise, top, std::min(top + kTileRows, row_stop), first, buffers);
}

SKYLOOM_INLINE void rows_f32_body(const SignalPlanes<float>& planes, const PhotonNoise& noise, std::ptrdiff_t row_start,
                                  std::ptrdiff_t row_stop, Buffers<float>& buffers) {
  local_signal_body(planes, noise, row_start, row_stop, buffers);
}
SKYLOOM_INLINE void rows_f64_body(const SignalPlanes<double>& planes, const PhotonNoise& noise,
                                  std::ptrdiff_t row_start, std::ptrdiff_t row_stop, Buffers<double>& buffers) {
  local_signal_body(planes, noise, row_start, row_stop, buffers);
}
SKYLOOM_DISPATCH(void, rows_f32,
                 (const SignalPlanes<float>& planes, const PhotonNoise& noise, std::ptrdiff_t row_start,
                  std::ptrdiff_t row_stop, Buffers<float>& buffers),
                 (planes, noise, row_start, row_stop, buffers))
SKYLOOM_DISPATCH(void, rows_f64,
                 (const SignalPlanes<double>& planes, const PhotonNoise& noise, std::ptrdiff_t row_start,
                  std::ptrdiff_t row_stop, Buffers<double>& buffers),
                 (planes, noise, row_start, row_stop, buffers))

constexpr std::size_t kBufferSize = std::size_t(kTileRows + 2 * kHalo) * (kTileColumns + 2 * kHalo);

}  // namespace

void local_signal_f32(const SignalPlanes<float>& planes, const PhotonNoise& noise, std::ptrdiff_t row_start,
                      std::ptrdiff_t row_stop) {
  Buffers<float> buffers(kBufferSize);
  rows_f32(planes, noise, row_start, row_stop, buffers);
}

void local_signal_f64(const SignalPlanes<double>& planes, const PhotonNoise& noise, std::ptrdiff_t row_start,
                      std::ptrdiff_t row_stop) {
  Buffers<double> buffers(kBufferSize);
  rows_f64(planes, noise, row_start, row_stop, buffers);
}

}  // namespace skyloom
