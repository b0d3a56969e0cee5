#include "drizzle_planes.hpp"

#include <algorithm>
#include <cmath>

#include "isa.hpp"

namespace skyloom::drizzle {
namespace {

template <class T>
SKYLOOM_INLINE void read_as_double(const Plane& plane, int64_t j, int64_t i0, int n, double* __restrict out) {
  const T* p = static_cast<const T*>(plane.data) + j * plane.row + i0 * plane.col;
  if (plane.col == 1) {
    for (int k = 0; k < n; ++k) out[k] = double(p[k]);
  } else {
    for (int k = 0; k < n; ++k) out[k] = double(p[k * plane.col]);
  }
}

SKYLOOM_INLINE void read_row_body(const Plane& plane, int64_t j, int64_t i0, int n, double* out) {
  if (plane.is_double) {
    read_as_double<double>(plane, j, i0, n, out);
  } else {
    read_as_double<float>(plane, j, i0, n, out);
  }
}

SKYLOOM_INLINE void load_values_body(const Input& input, int64_t j, int64_t i0, int n, int per_cell,
                                     double* __restrict values, int32_t* __restrict usable) {
  alignas(64) double d[kBatch], w[kBatch];
  std::fill_n(d, kBatch, 0.0);
  std::fill_n(w, kBatch, 0.0);
  read_row_body(input.data, j, i0, n, d);
  if (input.weight.data != nullptr) {
    read_row_body(input.weight, j, i0, n, w);
  } else {
    std::fill_n(w, n, 1.0);
  }
  constexpr double huge = 1.7976931348623157e308;
  for (int k = 0; k < kBatch; ++k) {
    w[k] *= input.weight_scale;
    d[k] *= input.data_scale;
    const bool good = std::fabs(d[k]) <= huge && w[k] > 0 && w[k] <= huge;
    w[k] = good ? w[k] : 0.0;
    d[k] = good ? d[k] : 0.0;
  }
  if (per_cell == 2) {
    for (int k = 0; k < kBatch; ++k) {
      values[2 * k] = w[k] * d[k];
      values[2 * k + 1] = w[k];
      usable[k] = w[k] > 0;
    }
    return;
  }
  const int n_squares = int(input.squares.size());
  alignas(64) double v[kBatch];
  std::fill_n(v, kBatch, 0.0);
  for (int s = 0; s < n_squares; ++s) {
    if (input.squares[size_t(s)].data != nullptr) {
      read_row_body(input.squares[size_t(s)], j, i0, n, v);
    } else {
      std::fill_n(v, kBatch, 0.0);
    }
    for (int k = 0; k < kBatch; ++k) {
      v[k] *= input.square_scale;
      w[k] = std::fabs(v[k]) <= huge ? w[k] : 0.0;
      v[k] = std::fabs(v[k]) <= huge ? v[k] : 0.0;
      values[per_cell * k + 2 + s] = v[k];
    }
  }
  if (n_squares % 2 == 1)
    for (int k = 0; k < kBatch; ++k) values[per_cell * k + 2 + n_squares] = 0;
  for (int k = 0; k < kBatch; ++k) {
    values[per_cell * k] = w[k] * d[k];
    values[per_cell * k + 1] = w[k];
    usable[k] = w[k] > 0;
    for (int s = 2; s < per_cell; ++s) values[per_cell * k + s] *= w[k] * w[k];
  }
}

SKYLOOM_DISPATCH(void, load_values,
                 (const Input& input, int64_t j, int64_t i0, int n, int per_cell, double* values, int32_t* usable),
                 (input, j, i0, n, per_cell, values, usable))

// mean = (mean W + sum wd) / (W + sum w); square = (square W^2 + sum w^2 v) / (W + sum w)^2. With W = 0 the old mean is
// no number that means anything, and is not looked at.
template <class T, bool kContiguous>
SKYLOOM_INLINE void merge_means(const Tile& tile, int64_t y, const Output& out) {
  const double* __restrict sums = tile.sums + y * tile.stride * tile.per_cell;
  const int64_t step = tile.per_cell, j = tile.y0 + y;
  const int64_t mc = kContiguous ? 1 : out.mean.col, wc = kContiguous ? 1 : out.weight.col;
  T* __restrict mean = static_cast<T*>(out.mean.data) + j * out.mean.row + tile.x0 * mc;
  T* __restrict weight = static_cast<T*>(out.weight.data) + j * out.weight.row + tile.x0 * wc;
  const T fill = T(out.fill_value);
  const bool fills = out.fill;
  for (int64_t x = 0; x < tile.nx; ++x) {
    const double wd = sums[x * step], w = sums[x * step + 1];
    const double before = double(weight[x * wc]), total = before + w;
    const T old = mean[x * mc];
    const double kept = before == 0.0 ? 0.0 : double(old) * before;
    const T fresh = T((kept + wd) / (total == 0.0 ? 1.0 : total));
    mean[x * mc] = w != 0.0 && total != 0.0 ? fresh : (fills && total == 0.0 ? fill : old);
    weight[x * wc] = T(total);
  }
}

template <class T>
SKYLOOM_INLINE void merge_squares(const Tile& tile, int64_t y, const Output& out, int s) {
  const double* __restrict sums = tile.sums + y * tile.stride * tile.per_cell;
  const int64_t step = tile.per_cell, j = tile.y0 + y;
  const Plane& plane = out.squares[size_t(s)];
  T* __restrict mean = static_cast<T*>(plane.data) + j * plane.row + tile.x0 * plane.col;
  const T* __restrict weight = static_cast<const T*>(out.weight.data) + j * out.weight.row + tile.x0 * out.weight.col;
  const T fill = T(out.fill_square_value);
  const bool fills = out.fill_squares;
  for (int64_t x = 0; x < tile.nx; ++x) {
    const double wwv = sums[x * step + 2 + s], w = sums[x * step + 1];
    const double before = double(weight[x * out.weight.col]), total = before + w;
    const T old = mean[x * plane.col];
    const double kept = before == 0.0 ? 0.0 : double(old) * before * before;
    const T fresh = T((kept + wwv) / (total == 0.0 ? 1.0 : total * total));
    mean[x * plane.col] = w != 0.0 && total != 0.0 ? fresh : (fills && total == 0.0 ? fill : old);
  }
}

template <class T>
SKYLOOM_INLINE void merge_row(const Tile& tile, int64_t y, const Output& out) {
  for (int s = 0; s < int(out.squares.size()); ++s) merge_squares<T>(tile, y, out, s);
  if (out.mean.col == 1 && out.weight.col == 1) {
    merge_means<T, true>(tile, y, out);
  } else {
    merge_means<T, false>(tile, y, out);
  }
}

SKYLOOM_INLINE void merge_tile_body(const Tile& tile, const Output& out) {
  for (int64_t y = 0; y < tile.ny; ++y) {
    const double* sums = tile.sums + y * tile.stride * tile.per_cell;
    const int64_t step = tile.per_cell, j = tile.y0 + y;
    if (out.context.data != nullptr) {
      int32_t* __restrict context = out.context.data + j * out.context.row + tile.x0 * out.context.col;
      const int64_t cc = out.context.col;
      if (cc == 1) {
        for (int64_t x = 0; x < tile.nx; ++x) context[x] |= sums[x * step + 1] > 0 ? out.context_bit : 0;
      } else {
        for (int64_t x = 0; x < tile.nx; ++x) context[x * cc] |= sums[x * step + 1] > 0 ? out.context_bit : 0;
      }
    }
    if (tile.dq != nullptr) {
      const uint32_t* bits = tile.dq + y * tile.stride;
      uint32_t* dq = out.dq.data + j * out.dq.row + tile.x0 * out.dq.col;
      for (int64_t x = 0; x < tile.nx; ++x) {
        if (sums[x * step + 1] == 0) continue;
        const int64_t at = j * out.weight.row + (tile.x0 + x) * out.weight.col;
        const double before = out.weight.is_double ? static_cast<const double*>(out.weight.data)[at]
                                                   : static_cast<const float*>(out.weight.data)[at];
        dq[x * out.dq.col] = (before == 0 ? 0 : dq[x * out.dq.col]) | bits[x];
      }
    }
    if (out.mean.is_double) {
      merge_row<double>(tile, y, out);
    } else {
      merge_row<float>(tile, y, out);
    }
  }
}

}  // namespace

SKYLOOM_DISPATCH(void, merge_tile, (const Tile& tile, const Output& out), (tile, out))

TileMemory::TileMemory(int64_t edge, int per_cell, bool with_dq) {
  const size_t cells = size_t(edge + 2 * kMargin) * size_t(edge + 2 * kMargin);
  sums_.resize(cells * size_t(per_cell) + 8);
  if (with_dq) dq_.resize(cells);
  tile_ = {0, 0, 0, 0, 0, per_cell, nullptr, nullptr};
}

Tile& TileMemory::reset(int64_t x0, int64_t y0, int64_t nx, int64_t ny) {
  // 16-byte pairs must not straddle: the vector's storage is at least 16-byte aligned
  tile_.x0 = x0;
  tile_.y0 = y0;
  tile_.nx = nx;
  tile_.ny = ny;
  tile_.stride = nx + 2 * kMargin;
  const int64_t cells = tile_.stride * (ny + 2 * kMargin), first = kMargin * tile_.stride + kMargin;
  std::fill_n(sums_.data(), cells * tile_.per_cell, 0.0);
  tile_.sums = sums_.data() + first * tile_.per_cell;
  if (!dq_.empty()) {
    std::fill_n(dq_.data(), cells, 0u);
    tile_.dq = dq_.data() + first;
  }
  return tile_;
}

void load_batch(const Input& input, int64_t j, int64_t i0, int n, int per_cell, double* values, int32_t* usable,
                uint32_t* dq) {
  load_values(input, j, i0, n, per_cell, values, usable);
  if (input.dq.data == nullptr) return;
  const uint32_t* p = input.dq.data + j * input.dq.row + i0 * input.dq.col;
  for (int k = 0; k < n; ++k) dq[k] = p[k * input.dq.col];
  std::fill(dq + n, dq + kBatch, 0u);
}

}  // namespace skyloom::drizzle
