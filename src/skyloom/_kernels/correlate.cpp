#include "correlate.hpp"

#include <algorithm>
#include <cstring>

#include "fourier.hpp"

namespace skyloom {
namespace {

constexpr int kTerms = 4;  // that are summed side by side, in registers

template <class T>
SKYLOOM_INLINE Register<T> load(const T* from) {
  Register<T> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class T>
SKYLOOM_INLINE void store(const Register<T>& value, T* to) {
  std::memcpy(to, &value, sizeof value);
}

// Two lines of each length for the transforms, with room for the last block.
template <class T>
struct Lines {
  FourierPlan<T> along_y, along_x;
  std::vector<Complex<T>> a, b;
  int blocks;
  std::int64_t block;  // numbers in one block of a spectrum

  Lines(int ny, int nx)
      : along_y(ny),
        along_x(nx),
        a(std::max(ny, nx) + kLanes<T>),
        b(std::max(ny, nx) + kLanes<T>),
        blocks((nx / 2 + kLanes<T>) / kLanes<T>),
        block(std::int64_t(ny) * 2 * kLanes<T>) {}
};

// Transforms 2 N rows of real numbers along x, as the real and imaginary parts of N complex ones.
template <class T>
SKYLOOM_INLINE void transform_rows(const TileSpectrum<T>& tile, int top, Lines<T>& lines, std::vector<T>& padded) {
  constexpr int N = kLanes<T>;
  const int width = static_cast<int>(padded.size()) / (2 * N), count = std::min(2 * N, tile.rows - top);
  std::fill(padded.begin(), padded.end(), T(0));
  for (int y = 0; y < count; ++y)
    std::copy_n(tile.plane + std::int64_t(top + y) * tile.columns, tile.columns, padded.data() + y * width);
  Register<T> re[N], im[N];
  for (int x = 0; x < tile.nx; x += N) {
    for (int k = 0; k < N; ++k) {
      re[k] = load(padded.data() + k * width + x);
      im[k] = load(padded.data() + (N + k) * width + x);
    }
    transpose<T>(re);
    transpose<T>(im);
    for (int k = 0; k < N; ++k) lines.a[x + k] = {re[k], im[k]};
  }
  const Complex<T>* z = fourier(lines.along_x, lines.a.data(), lines.b.data());
  Register<T> re2[N], im2[N];
  for (int b = 0; b < lines.blocks; ++b) {
    for (int k = 0; k < N; ++k) {
      const int kx = b * N + k;
      if (kx > tile.nx / 2) {
        re[k] = im[k] = re2[k] = im2[k] = Register<T>{};
        continue;
      }
      // the parts of the transform that are that of a real line, and of i times one
      const Complex<T> plus_k = z[kx], minus_k = z[kx ? tile.nx - kx : 0];
      re[k] = T(0.5) * (plus_k.re + minus_k.re);
      im[k] = T(0.5) * (plus_k.im - minus_k.im);
      re2[k] = T(0.5) * (plus_k.im + minus_k.im);
      im2[k] = T(0.5) * (minus_k.re - plus_k.re);
    }
    transpose<T>(re);
    transpose<T>(im);
    transpose<T>(re2);
    transpose<T>(im2);
    T* out = tile.spectrum + b * lines.block + std::int64_t(top) * 2 * N;
    for (int k = 0; k < std::min(N, count); ++k) {
      store(re[k], out + 2 * N * k);
      store(im[k], out + 2 * N * k + N);
    }
    for (int k = 0; k < count - N; ++k) {
      store(re2[k], out + 2 * N * (N + k));
      store(im2[k], out + 2 * N * (N + k) + N);
    }
  }
}

template <class T>
SKYLOOM_INLINE void tile_spectrum_body(const TileSpectrum<T>& tile) {
  constexpr int N = kLanes<T>;
  Lines<T> lines(tile.ny, tile.nx);
  std::vector<T> padded(std::size_t(2 * N) * ((tile.nx + N - 1) / N * N));
  for (int top = 0; top < tile.rows; top += 2 * N) transform_rows(tile, top, lines, padded);
  for (int b = 0; b < lines.blocks; ++b) {
    T* column = tile.spectrum + b * lines.block;
    for (int y = 0; y < tile.ny; ++y)
      lines.a[y] = y < tile.rows ? Complex<T>{load(column + 2 * N * y), load(column + 2 * N * y + N)} : Complex<T>{};
    const Complex<T>* z = fourier(lines.along_y, lines.a.data(), lines.b.data());
    for (int y = 0; y < tile.ny; ++y) {
      store(z[y].re, column + 2 * N * y);
      store(z[y].im, column + 2 * N * y + N);
    }
  }
}

// One block of the spectra of COUNT terms, with real and imaginary parts exchanged; columns[term][ny].
template <int COUNT, class T>
SKYLOOM_INLINE void mix_block(const TileFilter<T>& tile, const Lines<T>& lines, int b, const T* mixture,
                              Complex<T>* columns) {
  constexpr int N = kLanes<T>;
  const std::int64_t size = lines.blocks * lines.block, number = static_cast<std::int64_t>(tile.planes.size());
  for (int y = 0; y < tile.ny; ++y) {
    const std::int64_t at = b * lines.block + std::int64_t(2 * N) * y;
    Complex<T> sum[COUNT] = {};
    for (int r = 0; r < tile.rank; ++r) {
      Register<T> re{}, im{};
      for (std::int64_t p = 0; p < number; ++p) {
        const T *f = tile.filters + (r * number + p) * size + at, *a = tile.planes[p] + at;
        const Register<T> f_re = load(f), f_im = load(f + N), a_re = load(a), a_im = load(a + N);
        re += f_re * a_re - f_im * a_im;
        im += f_re * a_im + f_im * a_re;
      }
      for (int t = 0; t < COUNT; ++t) {
        const T m = mixture[t * tile.rank + r];
        sum[t].re += m * im;
        sum[t].im += m * re;
      }
    }
    for (int t = 0; t < COUNT; ++t) columns[std::int64_t(t) * tile.ny + y] = sum[t];
  }
}

// The lines of 2 N rows along x back from their spectra, the first N as real parts; see transform_rows. `half` holds rows
// after the inverse transform along y: [block][rows].
template <class T>
SKYLOOM_INLINE const Complex<T>* rows_back(const TileFilter<T>& tile, int top, const Complex<T>* half,
                                           Lines<T>& lines) {
  constexpr int N = kLanes<T>;
  Register<T> re[N], im[N], re2[N], im2[N];
  for (int b = 0; b < lines.blocks; ++b) {
    const Complex<T>* block = half + std::int64_t(b) * tile.rows;
    for (int k = 0; k < N; ++k) {
      const Complex<T>&first = block[std::min(top + k, tile.rows - 1)], &second = block[std::min(top + N + k, tile.rows - 1)];
      re[k] = first.im;  // they come exchanged
      im[k] = first.re;
      re2[k] = second.im;
      im2[k] = second.re;
    }
    transpose<T>(re);
    transpose<T>(im);
    transpose<T>(re2);
    transpose<T>(im2);
    for (int k = 0; k < N; ++k) {
      const int kx = b * N + k;
      if (kx > tile.nx / 2) break;
      if (kx == 0 || 2 * kx == tile.nx) {  // real in the transform of a real line
        lines.a[kx] = {re2[k], re[k]};
        continue;
      }
      lines.a[kx] = {im[k] + re2[k], re[k] - im2[k]};
      lines.a[tile.nx - kx] = {re2[k] - im[k], re[k] + im2[k]};
    }
  }
  return fourier(lines.along_x, lines.a.data(), lines.b.data());
}

// Adds the weighted pixels of one term; `rows` is a buffer of 2 N rows.
template <class T>
SKYLOOM_INLINE void add_rows(const TileFilter<T>& tile, int top, const T* weights, bool add, const Complex<T>* z,
                             std::vector<T>& rows) {
  constexpr int N = kLanes<T>;
  const int width = static_cast<int>(rows.size()) / (2 * N);
  Register<T> even[N], odd[N];
  for (int x = 0; x < tile.columns; x += N) {
    for (int k = 0; k < N; ++k) {
      even[k] = z[tile.first + x + k].im;
      odd[k] = z[tile.first + x + k].re;
    }
    transpose<T>(even);
    transpose<T>(odd);
    for (int k = 0; k < N; ++k) {
      store(even[k], rows.data() + k * width + x);
      store(odd[k], rows.data() + (N + k) * width + x);
    }
  }
  for (int k = 0; k < std::min(2 * N, tile.rows - top); ++k) {
    const T* __restrict value = rows.data() + k * width;
    const T* __restrict weight = weights + std::int64_t(top + k) * tile.columns;
    T* __restrict out = tile.out + (top + k) * tile.stride;
    if (add)
      for (int x = 0; x < tile.columns; ++x) out[x] += weight[x] * value[x];
    else
      for (int x = 0; x < tile.columns; ++x) out[x] = weight[x] * value[x];
  }
}

template <class T>
SKYLOOM_INLINE void filter_tile_body(const TileFilter<T>& tile) {
  constexpr int N = kLanes<T>;
  Lines<T> lines(tile.ny, tile.nx);
  std::vector<Complex<T>> columns(std::size_t(std::min(kTerms, tile.terms)) * tile.ny);
  const std::int64_t plane = std::int64_t(lines.blocks) * tile.rows;  // of one term
  std::vector<Complex<T>> half(std::min(kTerms, tile.terms) * plane);
  std::vector<T> rows(std::size_t(2 * N) * ((tile.columns + N - 1) / N * N));
  for (int begin = 0; begin < tile.terms; begin += kTerms) {
    const int count = std::min(kTerms, tile.terms - begin);
    const T* mixture = tile.mixture + std::int64_t(begin) * tile.rank;
    for (int b = 0; b < lines.blocks; ++b) {
      switch (count) {
        case 1: mix_block<1>(tile, lines, b, mixture, columns.data()); break;
        case 2: mix_block<2>(tile, lines, b, mixture, columns.data()); break;
        case 3: mix_block<3>(tile, lines, b, mixture, columns.data()); break;
        default: mix_block<kTerms>(tile, lines, b, mixture, columns.data());
      }
      for (int t = 0; t < count; ++t) {
        const Complex<T>* z = fourier(lines.along_y, columns.data() + std::int64_t(t) * tile.ny, lines.b.data());
        std::copy_n(z + tile.first, tile.rows, half.data() + t * plane + std::int64_t(b) * tile.rows);
      }
    }
    for (int top = 0; top < tile.rows; top += 2 * N)
      for (int t = 0; t < count; ++t) {
        const Complex<T>* z = rows_back(tile, top, half.data() + t * plane, lines);
        const T* weights = tile.weights + std::int64_t(begin + t) * tile.rows * tile.columns;
        add_rows(tile, top, weights, begin + t > 0, z, rows);
      }
  }
}

SKYLOOM_INLINE void spectrum_f32_body(const TileSpectrum<float>& tile) { tile_spectrum_body(tile); }
SKYLOOM_INLINE void spectrum_f64_body(const TileSpectrum<double>& tile) { tile_spectrum_body(tile); }
SKYLOOM_INLINE void filter_f32_body(const TileFilter<float>& tile) { filter_tile_body(tile); }
SKYLOOM_INLINE void filter_f64_body(const TileFilter<double>& tile) { filter_tile_body(tile); }

SKYLOOM_DISPATCH(void, spectrum_f32, (const TileSpectrum<float>& tile), (tile))
SKYLOOM_DISPATCH(void, spectrum_f64, (const TileSpectrum<double>& tile), (tile))
SKYLOOM_DISPATCH(void, filter_f32, (const TileFilter<float>& tile), (tile))
SKYLOOM_DISPATCH(void, filter_f64, (const TileFilter<double>& tile), (tile))

}  // namespace

void tile_spectrum_f32(const TileSpectrum<float>& tile) { spectrum_f32(tile); }
void tile_spectrum_f64(const TileSpectrum<double>& tile) { spectrum_f64(tile); }
void filter_tile_f32(const TileFilter<float>& tile) { filter_f32(tile); }
void filter_tile_f64(const TileFilter<double>& tile) { filter_f64(tile); }

}  // namespace skyloom
