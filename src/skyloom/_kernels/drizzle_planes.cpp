#include "drizzle_planes.hpp"

#include <algorithm>
#include <cmath>

#include "isa.hpp"

namespace skyloom::drizzle {
namespace {

template <class T>
SKYLOOM_INLINE void read_as_double(const Plane& plane, int64_t j, int64_t i0, int n, double* __restrict out) {
  const T* p = static_cast<const T*>(plane.data) + j * plane.row + i0 * plane.col;
  // the next row of the batch is far away in memory; a prefetch beyond the plane does no harm
  for (int k = 0; k < n; k += int(64 / sizeof(T))) __builtin_prefetch(p + plane.row + k * plane.col);
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

constexpr double huge = 1.7976931348623157e308;

SKYLOOM_INLINE void read_weights(const Input& input, int64_t j, int64_t i0, int n, double* __restrict w) {
  if (input.weight.data != nullptr) {
    read_row_body(input.weight, j, i0, n, w);
  } else {
    std::fill_n(w, n, 1.0);
  }
  if (input.inverse_weight) {
    for (int k = 0; k < n; ++k) {
      const float inverse = 1.0f / float(w[k]);
      w[k] = std::fabs(inverse) <= 0x1.fffffep127f ? double(inverse) : 0.0;
    }
  }
  if (input.mask.data != nullptr) {
    const uint32_t* __restrict bits = input.mask.data + j * input.mask.row + i0 * input.mask.col;
    if (input.mask.col == 1) {
      for (int k = 0; k < n; ++k) w[k] = (bits[k] & input.rejected) != 0 ? 0.0 : w[k];
    } else {
      for (int k = 0; k < n; ++k) w[k] = (bits[k * input.mask.col] & input.rejected) != 0 ? 0.0 : w[k];
    }
  }
}

// Square roots, of negative numbers `huge`; those of float32 as float32, which takes a third of the time.
SKYLOOM_INLINE void take_roots(bool is_double, double* __restrict e) {
  if (is_double) {
    for (int k = 0; k < kBatch; ++k) e[k] = e[k] < 0 ? huge : std::sqrt(std::fabs(e[k]));
  } else {
    for (int k = 0; k < kBatch; ++k) e[k] = e[k] < 0 ? huge : double(std::sqrt(std::fabs(float(e[k]))));
  }
}

// w e of each plane of errors. What is not known there leaves the weights of the data as they are.
SKYLOOM_INLINE void load_errors(const Input& input, int64_t j, int64_t i0, int n, const double* __restrict w,
                                double* __restrict values) {
  const int n_errors = int(input.errors.size()), n_linears = input.linears();
  for (int s = 0; s < n_linears; ++s) {
    double* __restrict e = values + (2 + s) * kBatch;
    std::fill_n(e, kBatch, 0.0);
    const bool root = s >= n_errors;
    const Plane& plane = root ? input.roots[size_t(s - n_errors)] : input.errors[size_t(s)];
    if (plane.data == nullptr) continue;
    read_row_body(plane, j, i0, n, e);
    if (root) take_roots(plane.is_double, e);
    const double scale = root ? input.root_scale : input.error_scale;
    for (int k = 0; k < kBatch; ++k) {
      const double part = e[k] * scale * w[k];
      const double known = std::fabs(part) <= kKnown ? part : kUnknown;
      e[k] = w[k] > 0 ? known : 0.0;
    }
  }
}

// w^2 v of each square plane. A bad value in one plane takes the weight of all.
SKYLOOM_INLINE void load_squares(const Input& input, int64_t j, int64_t i0, int n, double* __restrict w,
                                 double* __restrict values) {
  for (const Plane& square : input.squares) {
    double* __restrict v = values;
    values += kBatch;
    std::fill_n(v, kBatch, 0.0);
    if (square.data == nullptr) continue;
    read_row_body(square, j, i0, n, v);
    for (int k = 0; k < kBatch; ++k) {
      v[k] *= input.square_scale * w[k] * w[k];
      w[k] = std::fabs(v[k]) <= huge ? w[k] : 0.0;
    }
  }
}

SKYLOOM_INLINE void load_values_body(const Input& input, int64_t j, int64_t i0, int n, double* __restrict values,
                                     int32_t* __restrict usable) {
  double *__restrict d = values, *__restrict w = values + kBatch, *squares = values + SumPlanes(input).linear * kBatch;
  if (n < kBatch) {
    std::fill_n(d, kBatch, 0.0);
    std::fill_n(w, kBatch, 0.0);
  }
  read_row_body(input.data, j, i0, n, d);
  read_weights(input, j, i0, n, w);
  for (int k = 0; k < kBatch; ++k) {
    const double weight = w[k] * input.weight_scale;
    const double part = (d[k] - input.data_offset) * input.data_scale * weight;
    const bool good = std::fabs(part) <= huge && weight > 0 && weight <= huge;
    w[k] = good ? weight : 0.0;
    d[k] = good ? part : 0.0;
  }
  load_squares(input, j, i0, n, w, squares);
  int32_t unusable = 0;
  for (int k = 0; k < kBatch; ++k) {
    const bool good = w[k] > 0;
    d[k] = good ? d[k] : 0.0;
    usable[k] = good;
    unusable += !good;
  }
  load_errors(input, j, i0, n, w, values);
  if (unusable == 0) return;
  for (size_t s = 0; s < input.squares.size(); ++s, squares += kBatch)
    for (int k = 0; k < kBatch; ++k) squares[k] = w[k] > 0 ? squares[k] : 0.0;
}

SKYLOOM_DISPATCH(void, load_values,
                 (const Input& input, int64_t j, int64_t i0, int n, double* values, int32_t* usable),
                 (input, j, i0, n, values, usable))

template <class T>
SKYLOOM_INLINE void write_from_double(const Plane& plane, int64_t j, int64_t i0, int n, const double* __restrict in) {
  T* __restrict p = static_cast<T*>(plane.data) + j * plane.row + i0 * plane.col;
  if (plane.col == 1) {
    for (int k = 0; k < n; ++k) p[k] = T(in[k]);
  } else {
    for (int k = 0; k < n; ++k) p[k * plane.col] = T(in[k]);
  }
}

SKYLOOM_INLINE void write_row_body(const Plane& plane, int64_t j, int64_t i0, int n, const double* in) {
  if (plane.is_double) {
    write_from_double<double>(plane, j, i0, n, in);
  } else {
    write_from_double<float>(plane, j, i0, n, in);
  }
}

// A piece of a row of a tile.
struct Piece {
  alignas(64) double sum[kBatch], weight[kBatch], before[kBatch], total[kBatch], inverse[kBatch], mean[kBatch];
};

SKYLOOM_INLINE void add_weights(Piece& p, double most) {
  for (int k = 0; k < kBatch; ++k) {
    const double total = p.before[k] + p.weight[k];
    p.inverse[k] = 1.0 / total;
    p.total[k] = total > most ? most : total;
  }
}

// mean = (mean W + sum wd) / (W + sum w), or (mean W^2 + sum w^2 v) / (W + sum w)^2 for kPower = 2. With W = 0 the old
// mean is no number that means anything, and is not looked at.
template <int kPower, bool kFresh>
SKYLOOM_INLINE void merge_means(Piece& p, bool fills, double fill) {
  if constexpr (kFresh) {  // the same, with W = 0
#pragma GCC ivdep
    for (int k = 0; k < kBatch; ++k) {
      const double once = p.sum[k] * p.inverse[k], mean = kPower == 2 ? once * p.inverse[k] : once;
      p.mean[k] = p.weight[k] == 0.0 ? fill : mean;
    }
    return;
  }
#pragma GCC ivdep
  for (int k = 0; k < kBatch; ++k) {
    const double before = kPower == 2 ? p.before[k] * p.before[k] : p.before[k];
    const double old = p.mean[k] * before, kept = before == 0.0 ? 0.0 : old;
    const double once = (kept + p.sum[k]) * p.inverse[k];  // the square of 1 / W may be beyond the largest number
    const double fresh = kPower == 2 ? once * p.inverse[k] : once;
    const double mean = p.mean[k], merged = p.total[k] == 0.0 ? mean : fresh;
    p.mean[k] = p.weight[k] == 0.0 ? mean : merged;
  }
  if (fills)
    for (int k = 0; k < kBatch; ++k) p.mean[k] = p.total[k] == 0.0 ? fill : p.mean[k];
}

template <int kPower, bool kFresh>
SKYLOOM_INLINE void merge_plane(const Plane& plane, int64_t j, int64_t i0, int n, Piece& p, bool fills, double fill) {
  if (!kFresh) read_row_body(plane, j, i0, n, p.mean);
  merge_means<kPower, kFresh>(p, fills, fill);
  write_row_body(plane, j, i0, n, p.mean);
}

// A plane that has its own sum of weights.
SKYLOOM_INLINE void merge_own_weight(const Plane& plane, const Plane& weight, int64_t j, int64_t i0, int n,
                                     const Piece& common, const Output& out) {
  Piece p = common;
  read_row_body(weight, j, i0, n, p.before);
  add_weights(p, out.most_weight());
  merge_plane<2, false>(plane, j, i0, n, p, out.fill_squares, out.fill_square_value);
  write_row_body(weight, j, i0, n, p.total);
}

// The squares of the means of roots in a tile; -1 where it is not known. per_weight: 1 / sum of weights of the image.
SKYLOOM_INLINE void read_variances(const double* __restrict sums, int n, const double* __restrict per_weight,
                                   double* __restrict variance) {
  for (int k = 0; k < n; ++k) {
    const double mean = sums[k] * per_weight[k], square = mean * mean;
    variance[k] = std::fabs(sums[k]) <= kKnownSum && square <= huge ? square : -1.0;
  }
  for (int k = n; k < kBatch; ++k) variance[k] = -1.0;
}

template <bool kFresh>
SKYLOOM_INLINE void merge_roots(const Tile& tile, const Output& out, const double* sums, int64_t j, int64_t i0, int n,
                                const Piece& data) {
  Piece common, own;
  alignas(64) double variance[kBatch], referred[kBatch], per_weight[kBatch];
  const auto plane_sums = [&](int which) { return sums + (2 + int(out.errors.size()) + which) * tile.plane; };
  for (int k = 0; k < kBatch; ++k) per_weight[k] = 1.0 / data.weight[k];
  if (out.reference >= 0) read_variances(plane_sums(out.reference), n, per_weight, referred);
  for (int k = 0; k < kBatch; ++k) {  // u, 0 where there is none
    const double u = out.reference < 0 ? out.own_weight : 1.0 / referred[k];
    common.weight[k] = data.weight[k] != 0.0 && u > 0 && u <= huge ? u : 0.0;
  }
  if (out.root_weight.data != nullptr) {
    std::fill_n(common.before, kBatch, 0.0);
    if (!kFresh) read_row_body(out.root_weight, j, i0, n, common.before);
    add_weights(common, out.most_weight());
    write_row_body(out.root_weight, j, i0, n, common.total);
  }
  for (int s = 0; s < int(out.roots.size()); ++s) {
    const Mean& to = out.roots[size_t(s)];
    if (to.mean.data == nullptr) continue;
    const bool alone = to.weight.data != nullptr;
    if (s != out.reference) read_variances(plane_sums(s), n, per_weight, variance);
    const double* __restrict v = s == out.reference ? referred : variance;
    if (alone) {
      std::fill_n(own.before, kBatch, 0.0);
      if (!kFresh) read_row_body(to.weight, j, i0, n, own.before);
      for (int k = 0; k < kBatch; ++k) own.weight[k] = v[k] >= 0 ? common.weight[k] : 0.0;
      add_weights(own, out.most_weight());
      write_row_body(to.weight, j, i0, n, own.total);
    }
    Piece& p = alone ? own : common;
    for (int k = 0; k < kBatch; ++k) {
      const double sum = v[k] * out.variance_scale * p.weight[k] * p.weight[k];
      p.sum[k] = p.weight[k] == 0.0 ? 0.0 : sum;
    }
    merge_plane<2, kFresh>(to.mean, j, i0, n, p, true, std::nan(""));
  }
}

template <bool kFresh>
SKYLOOM_INLINE void merge_errors(const Tile& tile, const Output& out, const double* sums, int64_t j, int64_t i0, int n,
                                 const Piece& data) {
  for (int s = 0; s < int(out.errors.size()); ++s) {
    const Mean& to = out.errors[size_t(s)];
    if (to.mean.data == nullptr) continue;
    Piece p = data;
    std::copy_n(sums + (2 + s) * tile.plane, n, p.sum);
    if (to.weight.data != nullptr) {
      std::fill_n(p.before, kBatch, 0.0);
      if (!kFresh) read_row_body(to.weight, j, i0, n, p.before);
      for (int k = 0; k < kBatch; ++k) p.weight[k] = std::fabs(p.sum[k]) <= kKnownSum ? p.weight[k] : 0.0;
      add_weights(p, out.most_weight());
      write_row_body(to.weight, j, i0, n, p.total);
    }
    merge_plane<1, kFresh>(to.mean, j, i0, n, p, out.fill, out.fill_value);
  }
}

template <bool kFresh>
SKYLOOM_INLINE void merge_bits(const Tile& tile, const Output& out, int64_t y, int64_t x, int n, const Piece& p) {
  const int64_t j = tile.y0 + y, i0 = tile.x0 + x;
  if (out.context.data != nullptr) {
    int32_t* __restrict context = out.context.data + j * out.context.row + i0 * out.context.col;
    const int64_t col = out.context.col;
    const int32_t bit = out.context_bit;
    if (tile.positive != nullptr) {  // a sum may be negative though some of its parts are not
      const uint8_t* __restrict positive = tile.positive + y * tile.stride + x;
      for (int k = 0; k < n; ++k) {
        const bool given = (p.weight[k] > 0) | ((p.weight[k] < 0) & (positive[k] != 0));
        context[k * col] = (kFresh ? 0 : context[k * col]) | (given ? bit : 0);
      }
    } else if (col == 1) {
      for (int k = 0; k < n; ++k) context[k] = (kFresh ? 0 : context[k]) | (p.weight[k] > 0 ? bit : 0);
    } else {
      for (int k = 0; k < n; ++k) context[k * col] = (kFresh ? 0 : context[k * col]) | (p.weight[k] > 0 ? bit : 0);
    }
  }
  if (tile.dq != nullptr) {  // bits of a cell without earlier weight are replaced
    const uint32_t* __restrict bits = tile.dq + y * tile.stride + x;
    uint32_t* __restrict dq = out.dq.data + j * out.dq.row + i0 * out.dq.col;
    const int64_t col = out.dq.col;
    for (int k = 0; k < n; ++k) {
      const bool replaced = kFresh || ((p.before[k] == 0) & (p.weight[k] != 0));
      dq[k * col] = (replaced ? 0 : dq[k * col]) | (p.weight[k] != 0 ? bits[k] : 0);
    }
  }
}

// Make a row of a tile ready for the next one, with the margins beside it, while it is in the cache.
SKYLOOM_INLINE void clear_row(const Tile& tile, int64_t y) {
  const int64_t margin = (tile.stride - tile.nx) / 2, first = y * tile.stride - margin;
  for (int p = 0; p < tile.planes.all; ++p) std::fill_n(tile.sums + p * tile.plane + first, tile.stride, 0.0);
  if (tile.dq != nullptr) std::fill_n(tile.dq + first, tile.stride, 0u);
  if (tile.positive != nullptr) std::fill_n(tile.positive + first, tile.stride, uint8_t(0));
}

template <bool kFresh>
SKYLOOM_INLINE void merge_planes(const Tile& tile, const Output& out) {
  const double least = out.least_weight(), most = out.most_weight();
  const int64_t margin = (tile.stride - tile.nx) / 2;
  for (int64_t y = 1; y <= margin; ++y) clear_row(tile, -y), clear_row(tile, tile.ny - 1 + y);
  Piece p{};
  for (int64_t y = 0; y < tile.ny; ++y) {
    for (int64_t x = 0; x < tile.nx; x += kBatch) {
      const int n = int(tile.nx - x < kBatch ? tile.nx - x : kBatch);
      const int64_t j = tile.y0 + y, i0 = tile.x0 + x;
      const double *__restrict sums = tile.sums + y * tile.stride + x, *__restrict weights = sums + tile.plane;
      if (!kFresh) read_row_body(out.weight, j, i0, n, p.before);
      for (int k = 0; k < n; ++k) {
        p.sum[k] = sums[k];
        p.weight[k] = std::fabs(weights[k]) > least ? weights[k] : 0.0;
      }
      add_weights(p, most);
      merge_bits<kFresh>(tile, out, y, x, n, p);
      write_row_body(out.weight, j, i0, n, p.total);
      merge_plane<1, kFresh>(out.mean, j, i0, n, p, out.fill, out.fill_value);
      if (!out.errors.empty()) merge_errors<kFresh>(tile, out, sums, j, i0, n, p);
      if (!out.roots.empty()) merge_roots<kFresh>(tile, out, sums, j, i0, n, p);
      for (int s = 0; s < int(out.squares.size()); ++s) {
        const Plane &square = out.squares[size_t(s)], &weight = out.square_weights[size_t(s)];
        if (square.data == nullptr) continue;
        std::copy_n(sums + (tile.planes.linear + s) * tile.plane, n, p.sum);
        if (weight.data == nullptr) {
          merge_plane<2, kFresh>(square, j, i0, n, p, out.fill_squares, out.fill_square_value);
        } else {
          merge_own_weight(square, weight, j, i0, n, p, out);
        }
      }
    }
    clear_row(tile, y);
  }
}

SKYLOOM_INLINE void merge_tile_body(const Tile& tile, bool reached, const Output& out) {
  if (!reached && out.filled && !out.fresh) return;
  if (out.fresh) {
    merge_planes<true>(tile, out);
  } else {
    merge_planes<false>(tile, out);
  }
}

}  // namespace

SKYLOOM_DISPATCH(void, merge_tile, (const Tile& tile, bool reached, const Output& out), (tile, reached, out))

TileMemory::TileMemory(int64_t nx, int64_t ny, SumPlanes planes, bool with_dq, int margin, bool with_positive)
    : margin_((margin + 3) / 4 * 4), tile_{0, 0, 0, 0, 0, planes, 0, nullptr, nullptr, nullptr} {
  const size_t cells = size_t(nx + 2 * margin_) * size_t(ny + 2 * margin_);
  sums_.resize(cells * size_t(planes.all) + 24);  // to align them, and for what lies beyond the margin
  if (with_dq) dq_.resize(cells);
  if (with_positive) positive_.resize(cells + 16);
}

Tile& TileMemory::reset(int64_t x0, int64_t y0, int64_t nx, int64_t ny) {
  tile_.x0 = x0;
  tile_.y0 = y0;
  tile_.nx = nx;
  tile_.ny = ny;
  tile_.stride = nx + 2 * margin_;
  const int64_t cells = tile_.stride * (ny + 2 * margin_), first = margin_ * tile_.stride + margin_;
  tile_.plane = cells;
  const size_t place = reinterpret_cast<uintptr_t>(sums_.data()) / sizeof(double) + size_t(first);
  tile_.sums = sums_.data() + (8 - place % 8) % 8 + first;
  if (!dq_.empty()) tile_.dq = dq_.data() + first;
  if (!positive_.empty()) tile_.positive = positive_.data() + first;
  return tile_;
}

void load_batch(const Input& input, int64_t j, int64_t i0, int n, double* values, int32_t* usable, uint32_t* dq) {
  load_values(input, j, i0, n, values, usable);
  if (input.dq.data == nullptr) return;
  const uint32_t* p = input.dq.data + j * input.dq.row + i0 * input.dq.col;
  if (input.dq.col == 1) {
    for (int k = 0; k < n; k += 16) __builtin_prefetch(p + input.dq.row + k);  // as in read_as_double
    std::copy_n(p, n, dq);
  } else {
    for (int k = 0; k < n; ++k) dq[k] = p[k * input.dq.col];
  }
  std::fill(dq + n, dq + kBatch, 0u);
}

}  // namespace skyloom::drizzle
