#include "drizzle_separable.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "drizzle_runs.hpp"
#include "drizzle_walk.hpp"
#include "vectors.hpp"

namespace skyloom::drizzle {
namespace {

// The drops of one batch.
struct Batch {
  Centres centres;
  Shares x, y;
  alignas(64) int32_t cell[kBatch];    // first cell in the tile
  alignas(64) int32_t usable[kBatch];  // 1 if the pixel has a weight
  alignas(64) int32_t flags[kBatch];   // bits: see Sorting
  uint32_t dq[kBatch];
  Values values;
  explicit Batch(SumPlanes planes) : values(planes) {}
};

// The registers that hold the shares of a drop along x.
template <int kWide>
struct Row {
  static constexpr int kOctets = kWide / 8, kRest = kWide % 8;
  typedef std::conditional_t<kRest == 4, Quad, Pair> Rest;
  Octet octets[kOctets + 1];
  Rest rest;

  SKYLOOM_INLINE Row(const Batch& b, int k) {
#pragma GCC unroll 2
    for (int o = 0; o < kOctets; ++o) octets[o] = make_vector<Octet>([&](int i) { return b.x.share[8 * o + i][k]; });
    if (kRest > 0) rest = make_vector<Rest>([&](int i) { return i < kRest ? b.x.share[8 * kOctets + i][k] : 0.0; });
  }
  SKYLOOM_INLINE void square() {
#pragma GCC unroll 2
    for (int o = 0; o < kOctets; ++o) octets[o] *= octets[o];
    if (kRest > 0) rest *= rest;
  }
  SKYLOOM_INLINE void add(double* cell, double factor) const {
#pragma GCC unroll 2
    for (int o = 0; o < kOctets; ++o) add_to(cell + 8 * o, octets[o] * factor);
    if constexpr (kRest == 1) {
      *(cell + 8 * kOctets) += rest[0] * factor;
    } else if constexpr (kRest > 0) {
      add_to(cell + 8 * kOctets, rest * factor);
    }
  }
};

// Neighbours write to the same cells, and a load has to wait if it meets parts of a fresh store: first every eighth
// drop, then those next to them.
constexpr int kApart = 8;
constexpr uint64_t kEveryEighth = 0x0101010101010101;

template <int kWide>
SKYLOOM_INLINE void scatter_drops(const Batch& b, uint64_t drops, int taps, const Tile& tile) {
  for (int first = 0; first < kApart; ++first)
    for (uint64_t rest = drops & (kEveryEighth << first); rest != 0; rest &= rest - 1) {
      const int k = std::countr_zero(rest);
      const double* value = b.values.data() + k;
      double* plane = tile.sums + b.cell[k];
      Row<kWide> row(b, k);
      for (int p = 0; p < tile.planes.all; ++p, plane += tile.plane, value += kBatch) {
        if (p == tile.planes.linear) row.square();
        double* cell = plane;
        for (int j = 0; j < taps; ++j, cell += tile.stride) {
          const double y = b.y.share[j][k];
          row.add(cell, *value * (p < tile.planes.linear ? y : y * y));
        }
      }
    }
}

SKYLOOM_INLINE void scatter_sums_body(const Batch& b, uint64_t drops, int taps, const Tile& tile) {
  switch ((taps + 1) / 2) {
    case 1: return taps == 1 ? scatter_drops<1>(b, drops, taps, tile) : scatter_drops<2>(b, drops, taps, tile);
    case 2: return scatter_drops<4>(b, drops, taps, tile);
    case 3:
    case 4: return scatter_drops<8>(b, drops, taps, tile);
    case 5:
    case 6: return scatter_drops<12>(b, drops, taps, tile);
    default: return scatter_drops<kMaxTaps>(b, drops, taps, tile);
  }
}

SKYLOOM_DISPATCH(void, scatter_sums, (const Batch& b, uint64_t drops, int taps, const Tile& tile), (b, drops, taps, tile))

// least: weights up to this are none.
void scatter_bits(const Batch& b, uint64_t drops, int taps, double least, const Tile& tile) {
  for (; drops != 0; drops &= drops - 1) {
    const int k = std::countr_zero(drops);
    if (b.dq[k] == 0) continue;
    const double weight = b.values.data()[kBatch + k];
    for (int j = 0; j < taps; ++j)
      for (int i = 0; i < taps; ++i)
        if (std::fabs(b.x.share[i][k] * b.y.share[j][k] * weight) > least)
          tile.dq[b.cell[k] + j * tile.stride + i] |= b.dq[k];
  }
}

// Signs of the shares along one axis: one byte, 1 or 0, for each of eight cells, along x; all bits or none along y.
struct Signs {
  alignas(64) uint64_t above_x[kMaxTaps / 8][kBatch], below_x[kMaxTaps / 8][kBatch];
  alignas(64) uint64_t above_y[kMaxTaps][kBatch], below_y[kMaxTaps][kBatch];
};

SKYLOOM_INLINE void find_signs(const Batch& b, int taps, Signs& __restrict signs) {
  for (int word = 0; 8 * word < taps; ++word) {
    uint64_t *__restrict above = signs.above_x[word], *__restrict below = signs.below_x[word];
    for (int k = 0; k < kBatch; ++k) above[k] = below[k] = 0;
    for (int i = 0; i < 8 && 8 * word + i < taps; ++i) {
      const double* __restrict share = b.x.share[8 * word + i];
      const uint64_t byte = uint64_t(1) << 8 * i;
      for (int k = 0; k < kBatch; ++k) {
        above[k] |= share[k] > 0 ? byte : 0;
        below[k] |= share[k] < 0 ? byte : 0;
      }
    }
  }
  for (int j = 0; j < taps; ++j) {
    const double* __restrict share = b.y.share[j];
    uint64_t *__restrict above = signs.above_y[j], *__restrict below = signs.below_y[j];
    for (int k = 0; k < kBatch; ++k) {
      above[k] = share[k] > 0 ? ~uint64_t(0) : 0;
      below[k] = share[k] < 0 ? ~uint64_t(0) : 0;
    }
  }
}

// Mark the cells that get a share above 0: one byte for each cell, eight of them at a time.
template <int kWords>
SKYLOOM_INLINE void mark_cells(const Batch& b, const Signs& signs, uint64_t drops, int taps, const Tile& tile) {
  for (int first = 0; first < kApart; ++first)
    for (uint64_t rest = drops & (kEveryEighth << first); rest != 0; rest &= rest - 1) {
      const int k = std::countr_zero(rest);
      uint8_t* cell = tile.positive + b.cell[k];
      for (int j = 0; j < taps; ++j, cell += tile.stride) {
        const uint64_t above = signs.above_y[j][k], below = signs.below_y[j][k];
        for (int word = 0; word < kWords; ++word) {
          uint64_t marks;
          std::memcpy(&marks, cell + 8 * word, sizeof marks);
          marks |= (signs.above_x[word][k] & above) | (signs.below_x[word][k] & below);
          std::memcpy(cell + 8 * word, &marks, sizeof marks);
        }
      }
    }
}

SKYLOOM_INLINE void mark_positive_body(const Batch& b, uint64_t drops, int taps, const Tile& tile) {
  Signs signs;
  find_signs(b, taps, signs);
  if (taps <= 8) {
    mark_cells<1>(b, signs, drops, taps, tile);
  } else {
    mark_cells<2>(b, signs, drops, taps, tile);
  }
}

SKYLOOM_DISPATCH(void, mark_positive, (const Batch& b, uint64_t drops, int taps, const Tile& tile), (b, drops, taps, tile))

constexpr int kFewRuns = 16;  // in a batch: with more of them it is faster to add the drops one by one

struct Frame {
  int64_t nx, ny;
};

// How the drops of a batch lie in a tile: bit k stands for drop k.
struct Sorting {
  uint64_t valid;    // has a position and a weight
  uint64_t beside;   // and begins one cell behind the drop before it, which is valid, too
  uint64_t live;     // is valid and reaches the tile
  uint64_t unsure;   // owned by the tile, but its box sticks out of the frame, or its shares may vanish
  int32_t hits;      // owned by the tile, and certainly in the frame
};

SKYLOOM_INLINE uint64_t bits_of(const int32_t* __restrict flags, int32_t bit) {
  uint32_t half[2] = {0, 0};
  for (int h = 0; h < 2; ++h)
    for (int k = 0; k < 32; ++k) half[h] |= (flags[32 * h + k] & bit) != 0 ? uint32_t(1) << k : 0;
  return half[0] | uint64_t(half[1]) << 32;
}

// The same for a batch that is known to lie within the tile, and whose shares do not vanish.
SKYLOOM_INLINE void sort_inside(Batch& __restrict b, const Tile& tile, Sorting& out) {
  const int32_t x0 = int32_t(tile.x0), y0 = int32_t(tile.y0), stride = int32_t(tile.stride);
  alignas(64) int32_t padded[16 + kBatch];  // what is before the first drop does not matter
  int32_t* const cell = padded + 16;
  cell[-1] = 0;
  for (int k = 0; k < kBatch; ++k) b.cell[k] = cell[k] = (int32_t(b.y.first[k]) - y0) * stride + int32_t(b.x.first[k]) - x0;
  for (int k = 0; k < kBatch; ++k)
    b.flags[k] = (b.usable[k] & b.centres.known[k]) | (int32_t(cell[k] == cell[k - 1] + 1) << 1);
  const uint64_t valid = bits_of(b.flags, 1);
  out = {valid, bits_of(b.flags, 2) & valid & valid << 1, valid, 0, std::popcount(valid)};
}

// Look up which drops reach the tile. A drop is owned by the one tile that holds the first cell of its part within the
// frame. inside: all of them are known to lie within the tile.
SKYLOOM_INLINE void sort_drops_body(Batch& __restrict b, int32_t size, bool vanishing, bool inside, const Tile& tile,
                                    Frame frame, Sorting& out) {
  if (inside && !vanishing) return sort_inside(b, tile, out);
  const int32_t x0 = int32_t(tile.x0), x1 = int32_t(tile.x0 + tile.nx), nx = int32_t(frame.nx);
  const int32_t y0 = int32_t(tile.y0), y1 = int32_t(tile.y0 + tile.ny), ny = int32_t(frame.ny);
  const int32_t stride = int32_t(tile.stride);
  int32_t hits = 0, unsure = 0;
  alignas(64) int32_t padded[2][16 + kBatch];  // what is before the first drop does not matter
  int32_t *const first_x = padded[0] + 16, *const first_y = padded[1] + 16;
  first_x[-1] = first_y[-1] = 0;
  for (int k = 0; k < kBatch; ++k) {
    first_x[k] = int32_t(b.x.first[k]);
    first_y[k] = int32_t(b.y.first[k]);
  }
  for (int k = 0; k < kBatch; ++k) {
    const int32_t x = first_x[k], y = first_y[k], end_x = x + size, end_y = y + size;
    const int32_t valid = b.usable[k] & b.centres.known[k];
    const int32_t live = (x < x1) & (y < y1) & (end_x > x0) & (end_y > y0) & valid;
    const int32_t own_x = x > 0 ? x : 0, own_y = y > 0 ? y : 0;
    const int32_t owned = live & (own_x >= x0) & (own_x < x1) & (own_y >= y0) & (own_y < y1);
    const int32_t sure = (x >= 0) & (y >= 0) & (end_x <= nx) & (end_y <= ny) & !vanishing;
    b.cell[k] = (y - y0) * stride + (x - x0);
    const int32_t beside = (x == first_x[k - 1] + 1) & (y == first_y[k - 1]);
    b.flags[k] = live | ((owned & (sure ^ 1)) << 1) | (valid << 2) | (beside << 3);
    hits += owned & sure;
    unsure |= owned & (sure ^ 1);
  }
  const uint64_t valid = bits_of(b.flags, 4);
  out = {valid, bits_of(b.flags, 8) & valid & valid << 1, bits_of(b.flags, 1), unsure != 0 ? bits_of(b.flags, 2) : 0, hits};
}

SKYLOOM_DISPATCH(void, sort_drops,
                 (Batch& b, int32_t size, bool vanishing, bool inside, const Tile& tile, Frame frame, Sorting& out),
                 (b, size, vanishing, inside, tile, frame, out))

// The largest share, without its sign, of the cells 0 ... size - 1.
double largest_share(const double* share, int64_t step, int64_t first, int64_t taps, int64_t size) {
  double largest = 0;
  const int64_t from = std::max<int64_t>(0, -first), to = std::min(taps, size - first);
  for (int64_t i = from; i < to; ++i) largest = std::max(largest, std::fabs(share[i * step]));
  return largest;
}

// The smallest weight of n cells of a row, or 0 if none is below.
SKYLOOM_INLINE void least_of_row_body(const double* __restrict weights, int64_t n, double& out) {
  double least = 0;
  for (int64_t i = 0; i < n; ++i) least = weights[i] < least ? weights[i] : least;
  out = least;
}

SKYLOOM_DISPATCH(void, least_of_row, (const double* weights, int64_t n, double& out), (weights, n, out))

// The cells of a tile where more is taken than given: in each of its rows those in [first, last] or some of them.
struct Negative {
  std::vector<int32_t> first, last;

  bool find(const Tile& t) {
    first.assign(size_t(t.ny), int32_t(t.nx));
    last.assign(size_t(t.ny), -1);
    bool any = false;
    for (int64_t y = 0; y < t.ny; ++y) {
      const double* weight = t.sums + t.plane + y * t.stride;
      double least;
      least_of_row(weight, t.nx, least);
      if (!(least < 0)) continue;
      any = true;
      int32_t from = 0, to = int32_t(t.nx) - 1;
      while (!(weight[from] < 0)) ++from;
      while (!(weight[to] < 0)) --to;
      first[size_t(y)] = from;
      last[size_t(y)] = to;
    }
    return any;
  }

  bool meets(const Reach& r, const Tile& t) const {
    const int64_t y0 = std::max<int64_t>(r.y0 - t.y0, 0), y1 = std::min<int64_t>(r.y1 - t.y0, t.ny);
    for (int64_t y = y0; y < y1; ++y)
      if (first[size_t(y)] < r.x1 - t.x0 && last[size_t(y)] >= r.x0 - t.x0) return true;
    return false;
  }
};

// Works through the tiles of one thread.
class SeparableWorker {
 public:
  SeparableWorker(const Kernel& kernel, const Footprint& footprint, const Input& input, const Output& output,
                  TileSize size, int32_t* row_hits)
      : kernel_(kernel), footprint_(footprint), input_(input), output_(output), size_(size), row_hits_(row_hits),
        wide_(kernel.taps > kMaxTaps), signed_(kernel.shape == Shape::lanczos2 || kernel.shape == Shape::lanczos3),
        memory_(size.nx, size.ny, SumPlanes(input), input.dq.data != nullptr,
                wide_ ? 0 : int(kernel.taps), signed_ && output.context.data != nullptr),
        batch_(std::make_unique<Batch>(SumPlanes(input))), least_(output.least_weight()) {
    std::memset(&batch_->x, 0, sizeof(Shares));
    std::memset(&batch_->y, 0, sizeof(Shares));
    if (wide_) wide_x_.resize(size_t(kernel.taps)), wide_y_.resize(size_t(kernel.taps));
    if (kernel.shape == Shape::point)
      for (Shares* s : {&batch_->x, &batch_->y}) std::fill_n(s->share[0], kBatch, 1.0);
  }

  void drizzle_tile(int64_t index) {
    const int64_t across = (output_.nx + size_.nx - 1) / size_.nx;
    const int64_t x0 = index % across * size_.nx, y0 = index / across * size_.ny;
    tile_ = &memory_.reset(x0, y0, std::min(size_.nx, output_.nx - x0), std::min(size_.ny, output_.ny - y0));
    bool reached = false;
    walk_tile(footprint_, *tile_, [&](int64_t j, int64_t i0, int n, const Reach& reach, int) {
      reached = true;
      drizzle_batch(j, i0, n, lies_within(reach, *tile_));
    });
    // The context tells which cells have been given anything. Where the sum is above 0 it is known; the other cells, most
    // of them beyond the image's edge, take a second look. Wide drops have marked theirs on the way.
    if (tile_->positive != nullptr && !wide_ && negative_.find(*tile_))
      walk_tile(footprint_, *tile_, [&](int64_t j, int64_t i0, int n, const Reach& reach, int) {
        if (negative_.meets(reach, *tile_)) mark_batch(j, i0, n, lies_within(reach, *tile_));
      });
    merge_tile(*tile_, reached, output_);
  }

 private:
  Sorting read_batch(int64_t j, int64_t i0, int n, bool inside) {
    Batch& b = *batch_;
    read_centres(footprint_.map, j, i0, n, b.centres);
    first_cells(kernel_, b.centres.x, b.x.first);
    first_cells(kernel_, b.centres.y, b.y.first);
    load_batch(input_, j, i0, n, b.values.data(), b.usable, b.dq);
    Sorting s;
    sort_drops(b, int32_t(kernel_.taps), kernel_.vanishing(), inside, *tile_, {output_.nx, output_.ny}, s);
    if (s.live != 0 && !wide_ && kernel_.shape != Shape::point) {
      find_shares(kernel_, b.centres.x, b.x);
      find_shares(kernel_, b.centres.y, b.y);
    }
    return s;
  }

  // inside: all drops are known to lie within the tile.
  void drizzle_batch(int64_t j, int64_t i0, int n, bool inside) {
    Batch& b = *batch_;
    const Sorting s = read_batch(j, i0, n, inside);
    if (s.live == 0) return;
    int hits = s.hits;
    if (wide_) {
      for (uint64_t rest = s.live; rest != 0; rest &= rest - 1) {
        const int k = std::countr_zero(rest);
        const bool hit = drizzle_wide(k);
        hits += hit && (s.unsure >> k & 1) != 0;
      }
    } else {
      for (uint64_t rest = s.unsure; rest != 0; rest &= rest - 1) {
        const int k = std::countr_zero(rest);
        hits += hits_frame(&b.x.share[0][k], &b.y.share[0][k], kBatch, k);
      }
      scatter(s);
    }
    if (hits > 0)
      std::atomic_ref<int32_t>(row_hits_[j - footprint_.window.y0]).fetch_add(hits, std::memory_order_relaxed);
  }

  // Has the drop a share of any cell of the frame?
  bool hits_frame(const double* share_x, const double* share_y, int64_t step, int k) const {
    const double x = largest_share(share_x, step, int64_t(batch_->x.first[k]), kernel_.taps, output_.nx);
    const double y = largest_share(share_y, step, int64_t(batch_->y.first[k]), kernel_.taps, output_.ny);
    return x * y * batch_->values.data()[kBatch + k] > least_;
  }

  void scatter(const Sorting& s) {
    const Batch& b = *batch_;
    const int taps = int(kernel_.taps);
    const uint64_t drops = s.live;
    // what is told by the whole batch is the same in all tiles, and so are the bits of a cell's sums
    if (taps <= kMaxRunTaps && std::popcount(s.valid & ~s.beside) <= kFewRuns) {
      scatter_runs(taps, b.x, b.y, b.cell, b.values.data(), drops, s.beside & drops & drops << 1, *tile_);
    } else {
      scatter_sums(b, drops, taps, *tile_);
    }
    if (tile_->dq != nullptr) scatter_bits(b, drops, taps, least_, *tile_);
  }

  void mark_batch(int64_t j, int64_t i0, int n, bool inside) {
    const Sorting s = read_batch(j, i0, n, inside);
    if (s.live != 0) mark_positive(*batch_, s.live, int(kernel_.taps), *tile_);
  }

  // One drop of any size, cut to the tile. True if it has a share of any cell of the frame.
  bool drizzle_wide(int k) {
    const Batch& b = *batch_;
    Tile& t = *tile_;
    const int64_t first_x = int64_t(b.x.first[k]), first_y = int64_t(b.y.first[k]);
    find_wide_shares(kernel_, b.centres.x[k], b.x.first[k], wide_x_.data());
    find_wide_shares(kernel_, b.centres.y[k], b.y.first[k], wide_y_.data());
    const int64_t x0 = std::max(first_x, t.x0), x1 = std::min(first_x + kernel_.taps, t.x0 + t.nx);
    const int64_t y0 = std::max(first_y, t.y0), y1 = std::min(first_y + kernel_.taps, t.y0 + t.ny);
    const double* value = b.values.data() + k;
    for (int64_t y = y0; y < y1; ++y)
      for (int64_t x = x0; x < x1; ++x) {
        const double s = wide_x_[size_t(x - first_x)] * wide_y_[size_t(y - first_y)];
        const int64_t cell = (y - t.y0) * t.stride + (x - t.x0);
        for (int p = 0; p < t.planes.all; ++p)
          t.sums[p * t.plane + cell] += value[p * kBatch] * (p < t.planes.linear ? s : s * s);
        if (t.dq != nullptr && std::fabs(s * value[kBatch]) > least_) t.dq[cell] |= b.dq[k];
        if (t.positive != nullptr && s > 0) t.positive[cell] = 1;
      }
    return hits_frame(wide_x_.data(), wide_y_.data(), 1, k);
  }

  const Kernel& kernel_;
  const Footprint& footprint_;
  const Input& input_;
  const Output& output_;
  const TileSize size_;
  int32_t* const row_hits_;
  const bool wide_, signed_;
  TileMemory memory_;
  Tile* tile_ = nullptr;
  std::unique_ptr<Batch> batch_;
  const double least_;
  std::vector<double> wide_x_, wide_y_;
  Negative negative_;
};

}  // namespace

void drizzle_separable(const Kernel& kernel, const Footprint& footprint, const Input& input, const Output& output,
                       int64_t tile_edge, int32_t* row_hits, const TileQueue& queue) {
  const TileSize size = footprint.tile_size(tile_edge);
  const int64_t tiles = ((output.nx + size.nx - 1) / size.nx) * ((output.ny + size.ny - 1) / size.ny);
  SeparableWorker worker(kernel, footprint, input, output, size, row_hits);
  queue.for_each(tiles, [&](int64_t tile) { worker.drizzle_tile(tile); });
}

}  // namespace skyloom::drizzle
