#include "drizzle_square.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>

#include "drizzle_overlap.hpp"
#include "isa.hpp"

namespace skyloom::drizzle {
namespace {

typedef double Pair __attribute__((vector_size(16)));
typedef double Quad __attribute__((vector_size(32)));

template <class Vector>
SKYLOOM_INLINE void add_to(double* sum, const Vector& part) {
  Vector total;
  std::memcpy(&total, sum, sizeof total);
  total += part;
  std::memcpy(sum, &total, sizeof total);
}

// Drops of one class of width, waiting until there are enough of them for the vectorised areas.
struct Batch {
  Corners corners;                    // relative to the drop's first cell
  alignas(64) double area[kBatch];
  alignas(64) int32_t cell[kBatch];   // of the tile
  alignas(64) int32_t usable[kBatch]; // 1 if the pixel has a weight
  uint32_t dq[kBatch];
  double* values;                     // pairs as in a tile, kBatch after kBatch
  int count = 0;
  bool turned = true;
};

// Add drops, one for each bit that is set, to the tile, N x N cells each. kPower: of the shares.
template <int N, int kPower>
SKYLOOM_INLINE void scatter_pairs(const double (*__restrict share)[kBatch], const int32_t* __restrict cells,
                                  const double* __restrict values, uint64_t drops, double* sums, int64_t row) {
  for (; drops != 0; drops &= drops - 1) {
    const int k = std::countr_zero(drops);
    double* cell = sums + int64_t(cells[k]) * 2;
    Pair value;
    std::memcpy(&value, values + 2 * k, sizeof value);
    const Quad twice = {value[0], value[1], value[0], value[1]};
    for (int j = 0; j < N; ++j, cell += row) {
      int i = 0;
      for (; i + 1 < N; i += 2) {  // two cells side by side are four numbers
        double s = share[j * N + i][k], t = share[j * N + i + 1][k];
        if (kPower == 2) s *= s, t *= t;
        add_to(cell + 2 * i, twice * Quad{s, s, t, t});
      }
      for (; i < N; ++i) {
        double s = share[j * N + i][k];
        if (kPower == 2) s *= s;
        add_to(cell + 2 * i, value * Pair{s, s});
      }
    }
  }
}

template <int N>
SKYLOOM_INLINE void scatter_planes(const double (*share)[kBatch], const Batch& b, uint64_t drops, Tile& tile) {
  scatter_pairs<N, 1>(share, b.cell, b.values, drops, tile.sums, 2 * tile.stride);
  for (int p = 1; p < tile.pairs; ++p)
    scatter_pairs<N, 2>(share, b.cell, b.values + p * 2 * kBatch, drops, tile.sums + p * tile.plane, 2 * tile.stride);
}

SKYLOOM_INLINE void scatter_sums_body(int n, const double (*share)[kBatch], const Batch& b, uint64_t drops, Tile& tile) {
  switch (n) {
    case 2: return scatter_planes<2>(share, b, drops, tile);
    case 3: return scatter_planes<3>(share, b, drops, tile);
    case 4: return scatter_planes<4>(share, b, drops, tile);
    default: return scatter_planes<5>(share, b, drops, tile);
  }
}

SKYLOOM_DISPATCH(void, scatter_sums,
                 (int n, const double (*share)[kBatch], const Batch& b, uint64_t drops, Tile& tile),
                 (n, share, b, drops, tile))

void scatter(int n, const double (*share)[kBatch], const Batch& b, uint64_t drops, Tile& tile) {
  // Neighbours write to the same cells, and a load has to wait if it meets parts of a fresh store: first every other
  // drop, then those between them.
  constexpr uint64_t kEven = 0x5555555555555555;
  scatter_sums(n, share, b, drops & kEven, tile);
  scatter_sums(n, share, b, drops & ~kEven, tile);
  if (tile.dq == nullptr) return;
  for (; drops != 0; drops &= drops - 1) {
    const int k = std::countr_zero(drops);
    if (b.dq[k] == 0) continue;
    for (int j = 0; j < n; ++j)
      for (int i = 0; i < n; ++i)
        if (share[j * n + i][k] > 0) tile.dq[b.cell[k] + j * tile.stride + i] |= b.dq[k];
  }
}

// One drop of any size, a row of cells at a time, cut to the tile.
void scatter_wide(const Corners& c, const Placement& p, int k, const Batch& b, Tile& tile, std::vector<double>& below) {
  const int64_t x0 = std::max<int64_t>(p.x[k], tile.x0), x1 = std::min(int64_t(p.x[k]) + p.width[k], tile.x0 + tile.nx);
  const int64_t y0 = std::max<int64_t>(p.y[k], tile.y0), y1 = std::min(int64_t(p.y[k]) + p.height[k], tile.y0 + tile.ny);
  const int n = int(x1 - x0);
  double cx[4], cy[4];
  for (int v = 0; v < 4; ++v) {
    cx[v] = c.x[v][k] - double(x0 - p.x[k]);
    cy[v] = c.y[v][k];
  }
  const double scale = 1.0 / p.area[k];
  const double noise = 1e-15 * std::max(p.width[k], p.height[k]) * std::fabs(scale) * p.height[k];
  below.resize(size_t(n) + 1);
  for (int64_t y = y0; y < y1; ++y) {
    areas_in_row(cx, cy, double(y - p.y[k]), n, below.data());
    for (int i = 0; i < n; ++i) {
      const double s = (below[size_t(i) + 1] - below[size_t(i)]) * scale;
      if (!(s > noise)) continue;
      const int64_t cell = (y - tile.y0) * tile.stride + (x0 - tile.x0) + i;
      for (int pair = 0; pair < tile.pairs; ++pair) {
        double* sum = tile.sums + pair * tile.plane + 2 * cell;
        const double* value = b.values + 2 * (pair * kBatch + k);
        const double factor = pair == 0 ? s : s * s;
        sum[0] += value[0] * factor;
        sum[1] += value[1] * factor;
      }
      if (tile.dq != nullptr) tile.dq[cell] |= b.dq[k];
    }
  }
}

// Does the drop share any area with the frame?
bool reaches_frame(const Corners& c, const Placement& p, int k, int64_t ny, int64_t nx) {
  const int64_t x0 = std::max<int64_t>(p.x[k], 0), x1 = std::min(int64_t(p.x[k]) + p.width[k], nx);
  const int64_t y0 = std::max<int64_t>(p.y[k], 0), y1 = std::min(int64_t(p.y[k]) + p.height[k], ny);
  double cx[4], cy[4];
  for (int v = 0; v < 4; ++v) {
    cx[v] = c.x[v][k] - double(x0 - p.x[k]);
    cy[v] = c.y[v][k];
  }
  std::vector<double> below(size_t(x1 - x0) + 1);
  for (int64_t y = y0; y < y1; ++y) {
    areas_in_row(cx, cy, double(y - p.y[k]), int(x1 - x0), below.data());
    if (std::fabs(below.back() - below.front()) > kAreaNoise) return true;
  }
  return false;
}

struct Rectangle {
  int64_t x0, x1, y0, y1;
};

struct Size {
  int64_t nx, ny;
};

// How the drops of a batch lie in a tile: bit k stands for drop k.
struct Sorting {
  uint64_t within[kMaxSpan + 2];  // reaches the tile and spans at most so many cells; the last: any number
  uint64_t at_border;             // owned by the tile, but it sticks out of the frame
  int32_t hits;                   // owned by the tile, and inside of the frame
};

SKYLOOM_INLINE uint64_t spans_up_to(const int32_t* __restrict span, int32_t limit) {
  uint32_t half[2] = {0, 0};
  for (int h = 0; h < 2; ++h)
    for (int k = 0; k < 32; ++k) half[h] |= (span[32 * h + k] & 255) <= limit ? uint32_t(1) << k : 0;
  return half[0] | uint64_t(half[1]) << 32;
}

SKYLOOM_INLINE void sort_batch_body(const Placement& p, const int32_t* __restrict usable, Rectangle tile, Size frame,
                                    int64_t stride, int32_t* __restrict cell, int32_t* __restrict span, Sorting& out) {
  const int32_t x0 = int32_t(tile.x0), x1 = int32_t(tile.x1), y0 = int32_t(tile.y0), y1 = int32_t(tile.y1);
  const int32_t nx = int32_t(frame.nx), ny = int32_t(frame.ny), step = int32_t(stride);
  int32_t hits = 0, borders = 0;
  for (int k = 0; k < kBatch; ++k) {
    const int32_t x = p.x[k], y = p.y[k], end_x = x + p.width[k], end_y = y + p.height[k];
    const int32_t size = p.width[k] > p.height[k] ? p.width[k] : p.height[k];
    const int32_t reaches = (x < x1) & (y < y1) & (end_x > x0) & (end_y > y0) & p.valid[k] & usable[k];
    const int32_t own_x = x > 0 ? x : 0, own_y = y > 0 ? y : 0;
    const int32_t owned = reaches & (own_x >= x0) & (own_x < x1) & (own_y >= y0) & (own_y < y1);
    const int32_t inside = (x >= 0) & (y >= 0) & (end_x <= nx) & (end_y <= ny);
    const int32_t unsure = owned & (inside ^ 1);
    cell[k] = (y - y0) * step + (x - x0);
    span[k] = reaches ? (size < kMaxSpan ? size : (size > kMaxSpan ? kMaxSpan + 1 : kMaxSpan)) | (unsure << 8) : 255;
    hits += owned & inside;
    borders += unsure;
  }
  uint64_t within[kMaxSpan + 2] = {0, 0, spans_up_to(span, 2), spans_up_to(span, 3), 0, 0, spans_up_to(span, 6)};
  within[4] = within[5] = within[3];
  if (within[3] != within[6]) {
    within[4] = spans_up_to(span, 4);
    within[5] = spans_up_to(span, 5);
  }
  uint64_t at_border = 0;
  if (borders > 0)
    for (int k = 0; k < kBatch; ++k) at_border |= span[k] > 255 ? uint64_t(1) << k : 0;
  out = {{0, 0, within[2], within[3], within[4], within[5], within[6]}, at_border, hits};
}

SKYLOOM_DISPATCH(void, sort_batch,
                 (const Placement& p, const int32_t* usable, Rectangle tile, Size frame, int64_t stride, int32_t* cell,
                  int32_t* span, Sorting& out),
                 (p, usable, tile, frame, stride, cell, span, out))

// Works through the tiles of one thread.
class SquareWorker {
 public:
  SquareWorker(const Footprint& footprint, const Input& input, const Output& output, TileSize size,
               int32_t* row_hits);
  void drizzle_tile(int64_t index);

 private:
  void drizzle_batch(int64_t j, int64_t i0, int n);
  Sorting sort_drops(int64_t j);
  void enqueue(int span, int k);
  void flush(int span);

  const Footprint& footprint_;
  const Input& input_;
  const Output& output_;
  const TileSize size_;
  int32_t* const row_hits_;
  const int pairs_;
  TileMemory memory_;
  Tile* tile_ = nullptr;
  RowWindow window_;
  std::unique_ptr<Batch> now_;                       // the batch at hand
  std::unique_ptr<Batch> waiting_[kMaxSpan + 1];     // by span
  std::vector<double> values_, below_;
  Placement place_;
  alignas(64) double share_[kMaxSpan * kMaxSpan][kBatch];
  uint8_t lost_[kBatch];
  alignas(64) int32_t span_[kBatch];                 // of the drops that reach the tile
};

SquareWorker::SquareWorker(const Footprint& footprint, const Input& input, const Output& output, TileSize size,
                           int32_t* row_hits)
    : footprint_(footprint), input_(input), output_(output), size_(size), row_hits_(row_hits),
      pairs_(pair_planes(input.squares.size())), memory_(size.nx, size.ny, pairs_, input.dq.data != nullptr),
      window_(footprint.map, footprint.half), now_(std::make_unique<Batch>()),
      values_(size_t(2 * kBatch * pairs_) * kMaxSpan) {
  now_->values = values_.data();
  std::fill_n(now_->dq, kBatch, 0u);
  for (int n = 2; n <= kMaxSpan; ++n) {
    waiting_[n] = std::make_unique<Batch>();
    waiting_[n]->corners = Corners{};
    std::fill_n(waiting_[n]->area, kBatch, 0.0);
    waiting_[n]->values = values_.data() + size_t(n - 1) * size_t(2 * kBatch * pairs_);
  }
}

// Look up which drops reach the tile, and how wide they are. Hits are counted by the one tile that owns the first cell
// of a drop's part within the frame.
Sorting SquareWorker::sort_drops(int64_t j) {
  const Tile& t = *tile_;
  Sorting s;
  sort_batch(place_, now_->usable, {t.x0, t.x0 + t.nx, t.y0, t.y0 + t.ny}, {output_.nx, output_.ny}, t.stride,
             now_->cell, span_, s);
  int hits = s.hits;
  for (uint64_t rest = s.at_border; rest != 0; rest &= rest - 1)
    hits += reaches_frame(now_->corners, place_, std::countr_zero(rest), output_.ny, output_.nx);
  if (hits > 0)
    std::atomic_ref<int32_t>(row_hits_[j - footprint_.window.y0]).fetch_add(hits, std::memory_order_relaxed);
  return s;
}

void SquareWorker::enqueue(int span, int k) {
  Batch& to = *waiting_[span];
  const int m = to.count++;
  to.turned = to.turned && place_.turned;
  for (int v = 0; v < 4; ++v) {
    to.corners.x[v][m] = now_->corners.x[v][k];
    to.corners.y[v][m] = now_->corners.y[v][k];
  }
  to.area[m] = place_.area[k];
  to.cell[m] = now_->cell[k];
  to.dq[m] = now_->dq[k];
  for (int p = 0; p < pairs_; ++p)
    std::memcpy(to.values + 2 * (p * kBatch + m), now_->values + 2 * (p * kBatch + k), 2 * sizeof(double));
  if (to.count == kBatch) flush(span);
}

void SquareWorker::flush(int span) {
  Batch& b = *waiting_[span];
  if (b.count == 0) return;
  overlap_shares(span, b.turned, b.corners, b.area, share_);
  scatter(span, share_, b, b.count == kBatch ? ~uint64_t(0) : (uint64_t(1) << b.count) - 1, *tile_);
  b.count = 0;
  b.turned = true;
}

void SquareWorker::drizzle_batch(int64_t j, int64_t i0, int n) {
  const bool regular = window_.corners(j, now_->corners, lost_);
  place(now_->corners, place_);
  load_batch(input_, j, i0, n, now_->values, now_->usable, now_->dq);
  if (!regular)
    for (int k = 0; k < n; ++k)
      if (lost_[k]) place_.valid[k] = 0;
  const Sorting sorted = sort_drops(j);
  const uint64_t all = sorted.within[kMaxSpan + 1];
  if (all == 0) return;
  // The smallest span that serves most drops is worked on in place, the other drops wait for their like.
  const int total = std::popcount(all);
  int dense = 2;
  while (dense <= kMaxSpan && 4 * std::popcount(sorted.within[dense]) < 3 * total) ++dense;
  uint64_t rest = all;
  if (dense <= kMaxSpan && total >= kBatch * 5 / 8) {
    overlap_shares(dense, place_.turned, now_->corners, place_.area, share_);
    scatter(dense, share_, *now_, sorted.within[dense], *tile_);
    rest &= ~sorted.within[dense];
  }
  for (; rest != 0; rest &= rest - 1) {
    const int k = std::countr_zero(rest), span = std::max(span_[k] & 255, 2);
    if (span <= kMaxSpan) {
      enqueue(span, k);
    } else {
      scatter_wide(now_->corners, place_, k, *now_, *tile_, below_);
    }
  }
}

void SquareWorker::drizzle_tile(int64_t index) {
  const int64_t tiles_across = (output_.nx + size_.nx - 1) / size_.nx, batches = footprint_.across();
  const int64_t x0 = index % tiles_across * size_.nx, y0 = index / tiles_across * size_.ny;
  tile_ = &memory_.reset(x0, y0, std::min(size_.nx, output_.nx - x0), std::min(size_.ny, output_.ny - y0));
  const auto meets = [&](const Reach& r) {
    return r.x0 < x0 + tile_->nx && r.x1 > x0 && r.y0 < y0 + tile_->ny && r.y1 > y0;
  };
  for (int64_t block = 0; block < footprint_.block_rows(); ++block)
    for (int64_t batch = 0; batch < batches; ++batch) {
      if (!meets(footprint_.blocks[size_t(block * batches + batch)])) continue;
      int64_t i0;
      const int n = footprint_.batch_start(batch, i0);
      window_.start(i0, n);
      const int64_t stop = std::min(footprint_.rows(), (block + 1) * kBlockRows);
      for (int64_t r = block * kBlockRows; r < stop; ++r)
        if (meets(footprint_.batches[size_t(r * batches + batch)])) drizzle_batch(footprint_.window.y0 + r, i0, n);
    }
  for (int span = 2; span <= kMaxSpan; ++span) flush(span);
  merge_tile(*tile_, output_);
}

}  // namespace

void drizzle_square(const Footprint& footprint, const Input& input, const Output& output, int64_t tile_edge,
                    int32_t* row_hits, std::atomic_ref<int64_t> next_tile) {
  const TileSize size = footprint.tile_size(tile_edge);
  const int64_t tiles = ((output.nx + size.nx - 1) / size.nx) * ((output.ny + size.ny - 1) / size.ny);
  SquareWorker worker(footprint, input, output, size, row_hits);
  for (int64_t t = next_tile.fetch_add(1); t < tiles; t = next_tile.fetch_add(1)) worker.drizzle_tile(t);
}

}  // namespace skyloom::drizzle
