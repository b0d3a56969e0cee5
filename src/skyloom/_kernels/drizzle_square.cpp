#include "drizzle_square.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "drizzle_overlap.hpp"
#include "isa.hpp"

namespace skyloom::drizzle {
namespace {

typedef double Pair __attribute__((vector_size(16)));

// Drops of one class of width, waiting until there are enough of them for the vectorised areas.
struct Batch {
  Corners corners;                    // relative to the drop's first cell
  alignas(64) double area[kBatch];
  alignas(64) int32_t cell[kBatch];   // of the tile
  alignas(64) int32_t usable[kBatch]; // 1 if the pixel has a weight
  uint32_t dq[kBatch];
  double* values;                     // per_cell numbers for each drop
  int count = 0;
};

using Shares = double (*)[kBatch];

// Add the drops `list` to the tile, `n` x `n` cells each. kPairs: pairs of square planes, -1 for any number.
template <int N, int kPairs>
SKYLOOM_INLINE void scatter_cells(const Shares share, const Batch& b, const uint8_t* list, int count, Tile& tile) {
  const int per_cell = kPairs < 0 ? tile.per_cell : 2 + 2 * kPairs;
  const int64_t row = tile.stride * per_cell;
  for (int q = 0; q < count; ++q) {
    const int k = list[q];
    double* cell = tile.sums + int64_t(b.cell[k]) * per_cell;
    const double* value = b.values + k * per_cell;
    Pair weighted;
    std::memcpy(&weighted, value, sizeof weighted);
    for (int j = 0; j < N; ++j)
      for (int i = 0; i < N; ++i) {
        const double s = share[j * N + i][k];
        double* sum = cell + j * row + i * per_cell;
        Pair total;
        std::memcpy(&total, sum, sizeof total);
        total += weighted * s;
        std::memcpy(sum, &total, sizeof total);
        for (int v = 2; v < per_cell; v += 2) {
          Pair square, part;
          std::memcpy(&square, sum + v, sizeof square);
          std::memcpy(&part, value + v, sizeof part);
          square += part * (s * s);
          std::memcpy(sum + v, &square, sizeof square);
        }
      }
    if (tile.dq != nullptr && b.dq[k] != 0) {
      uint32_t* dq = tile.dq + b.cell[k];
      for (int j = 0; j < N; ++j)
        for (int i = 0; i < N; ++i)
          if (share[j * N + i][k] > 0) dq[j * tile.stride + i] |= b.dq[k];
    }
  }
}

template <int N>
void scatter_planes(const Shares share, const Batch& b, const uint8_t* list, int count, Tile& tile) {
  switch (tile.per_cell) {
    case 2: return scatter_cells<N, 0>(share, b, list, count, tile);
    case 4: return scatter_cells<N, 1>(share, b, list, count, tile);
    case 6: return scatter_cells<N, 2>(share, b, list, count, tile);
    default: return scatter_cells<N, -1>(share, b, list, count, tile);
  }
}

void scatter(int n, const Shares share, const Batch& b, const uint8_t* list, int count, Tile& tile) {
  switch (n) {
    case 2: return scatter_planes<2>(share, b, list, count, tile);
    case 3: return scatter_planes<3>(share, b, list, count, tile);
    case 4: return scatter_planes<4>(share, b, list, count, tile);
    default: return scatter_planes<5>(share, b, list, count, tile);
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
      double* sum = tile.sums + cell * tile.per_cell;
      const double* value = b.values + k * tile.per_cell;
      sum[0] += value[0] * s;
      sum[1] += value[1] * s;
      for (int v = 2; v < tile.per_cell; ++v) sum[v] += value[v] * (s * s);
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

// How the drops of a batch lie in a tile.
struct Sorting {
  int32_t total, hits, at_border;     // at_border: owned drops that stick out of the frame, their span is made negative
  int32_t count[kMaxSpan + 2];        // drops by span, kMaxSpan + 1 stands for all wider ones
};

SKYLOOM_INLINE void sort_batch_body(const Placement& p, const int32_t* __restrict usable, Rectangle tile, Size frame,
                                    int64_t stride, int32_t* __restrict cell, int32_t* __restrict span, Sorting& out) {
  const int32_t x0 = int32_t(tile.x0), x1 = int32_t(tile.x1), y0 = int32_t(tile.y0), y1 = int32_t(tile.y1);
  const int32_t nx = int32_t(frame.nx), ny = int32_t(frame.ny), step = int32_t(stride);
  int32_t hits = 0, border = 0, total = 0, c2 = 0, c3 = 0, c4 = 0, c5 = 0;
  for (int k = 0; k < kBatch; ++k) {
    const int32_t x = p.x[k], y = p.y[k], end_x = x + p.width[k], end_y = y + p.height[k];
    const int32_t widest = p.width[k] > p.height[k] ? p.width[k] : p.height[k];
    const int32_t size = widest < 2 ? 2 : (widest > kMaxSpan ? kMaxSpan + 1 : widest);
    const int32_t reaches = (x < x1) & (y < y1) & (end_x > x0) & (end_y > y0) & p.valid[k] & usable[k];
    const int32_t own_x = x > 0 ? x : 0, own_y = y > 0 ? y : 0;
    const int32_t owned = reaches & (own_x >= x0) & (own_x < x1) & (own_y >= y0) & (own_y < y1);
    const int32_t inside = (x >= 0) & (y >= 0) & (end_x <= nx) & (end_y <= ny);
    const int32_t unsure = owned & (inside ^ 1);
    cell[k] = (y - y0) * step + (x - x0);
    span[k] = reaches ? (unsure ? -size : size) : 0;
    total += reaches;
    hits += owned & inside;
    border += unsure;
    c2 += reaches & (size == 2);
    c3 += reaches & (size == 3);
    c4 += reaches & (size == 4);
    c5 += reaches & (size == 5);
  }
  out = {total, hits, border, {0, 0, c2, c3, c4, c5, total - c2 - c3 - c4 - c5}};
}

SKYLOOM_DISPATCH(void, sort_batch,
                 (const Placement& p, const int32_t* usable, Rectangle tile, Size frame, int64_t stride, int32_t* cell,
                  int32_t* span, Sorting& out),
                 (p, usable, tile, frame, stride, cell, span, out))

// Works through the tiles of one thread.
class SquareWorker {
 public:
  SquareWorker(const Footprint& footprint, const Input& input, const Output& output, int64_t tile_edge,
               int32_t* row_hits);
  void drizzle_tile(int64_t index);

 private:
  void drizzle_batch(int64_t j, int64_t i0, int n);
  int sort_drops(int64_t j);
  int list_spans(int low, int high);
  void enqueue(int span, int k);
  void flush(int span);

  const Footprint& footprint_;
  const Input& input_;
  const Output& output_;
  const int64_t edge_;
  int32_t* const row_hits_;
  const int per_cell_;
  TileMemory memory_;
  Tile* tile_ = nullptr;
  RowWindow window_;
  std::unique_ptr<Batch> now_;                       // the batch at hand
  std::unique_ptr<Batch> waiting_[kMaxSpan + 1];     // by span
  std::vector<double> values_, below_;
  Placement place_;
  alignas(64) double share_[kMaxSpan * kMaxSpan][kBatch];
  uint8_t lost_[kBatch];
  alignas(64) int32_t span_[kBatch];                 // of the drops that reach the tile, else 0
  int32_t count_[kMaxSpan + 2];                      // drops by span
  uint8_t list_[kBatch + 1], all_[kBatch];
};

SquareWorker::SquareWorker(const Footprint& footprint, const Input& input, const Output& output, int64_t tile_edge,
                           int32_t* row_hits)
    : footprint_(footprint), input_(input), output_(output), edge_(tile_edge), row_hits_(row_hits),
      per_cell_(numbers_per_cell(input.squares.size())), memory_(tile_edge, per_cell_, input.dq.data != nullptr),
      window_(footprint.map, footprint.half), now_(std::make_unique<Batch>()),
      values_(size_t(kBatch) * size_t(per_cell_) * kMaxSpan) {
  now_->values = values_.data();
  std::fill_n(now_->dq, kBatch, 0u);
  for (int n = 2; n <= kMaxSpan; ++n) {
    waiting_[n] = std::make_unique<Batch>();
    waiting_[n]->corners = Corners{};
    std::fill_n(waiting_[n]->area, kBatch, 0.0);
    waiting_[n]->values = values_.data() + size_t(n - 1) * kBatch * size_t(per_cell_);
  }
  for (int k = 0; k < kBatch; ++k) all_[k] = uint8_t(k);
}

// Look up which drops reach the tile, and how wide they are. Returns how many do; the hits among them are counted by
// the one tile that owns the first cell of a drop's part within the frame.
int SquareWorker::sort_drops(int64_t j) {
  const Tile& t = *tile_;
  Sorting s;
  sort_batch(place_, now_->usable, {t.x0, t.x0 + t.nx, t.y0, t.y0 + t.ny}, {output_.nx, output_.ny}, t.stride,
             now_->cell, span_, s);
  int hits = s.hits;
  if (s.at_border > 0)
    for (int k = 0; k < kBatch; ++k)
      if (span_[k] < 0) {
        span_[k] = -span_[k];
        hits += reaches_frame(now_->corners, place_, k, output_.ny, output_.nx);
      }
  if (hits > 0)
    std::atomic_ref<int32_t>(row_hits_[j - footprint_.window.y0]).fetch_add(hits, std::memory_order_relaxed);
  std::copy_n(s.count, kMaxSpan + 2, count_);
  return s.total;
}

// Collect the drops with low <= span <= high.
int SquareWorker::list_spans(int low, int high) {
  int count = 0;
  for (int k = 0; k < kBatch; ++k) {
    list_[count] = uint8_t(k);
    count += span_[k] >= low && span_[k] <= high;
  }
  return count;
}

void SquareWorker::enqueue(int span, int k) {
  Batch& to = *waiting_[span];
  const int m = to.count++;
  for (int v = 0; v < 4; ++v) {
    to.corners.x[v][m] = now_->corners.x[v][k];
    to.corners.y[v][m] = now_->corners.y[v][k];
  }
  to.area[m] = place_.area[k];
  to.cell[m] = now_->cell[k];
  to.dq[m] = now_->dq[k];
  std::memcpy(to.values + m * per_cell_, now_->values + k * per_cell_, sizeof(double) * size_t(per_cell_));
  if (to.count == kBatch) flush(span);
}

void SquareWorker::flush(int span) {
  Batch& b = *waiting_[span];
  if (b.count == 0) return;
  overlap_shares(span, b.corners, b.area, share_);
  scatter(span, share_, b, all_, b.count, *tile_);
  b.count = 0;
}

void SquareWorker::drizzle_batch(int64_t j, int64_t i0, int n) {
  const bool regular = window_.corners(j, now_->corners, lost_);
  place(now_->corners, place_);
  load_batch(input_, j, i0, n, per_cell_, now_->values, now_->usable, now_->dq);
  if (!regular)
    for (int k = 0; k < n; ++k)
      if (lost_[k]) place_.valid[k] = 0;
  const int total = sort_drops(j);
  if (total == 0) return;
  // The smallest span that serves most drops is worked on in place, the other drops wait for their like.
  int dense = 1;
  for (int span = 2, sum = 0; span <= kMaxSpan && total >= kBatch / 3; ++span) {
    sum += count_[span];
    if (4 * sum < 3 * total) continue;
    dense = span;
    break;
  }
  int done = 0;
  if (dense > 1) {
    overlap_shares(dense, now_->corners, place_.area, share_);
    done = list_spans(2, dense);
    scatter(dense, share_, *now_, list_, done, *tile_);
  }
  if (done == total) return;
  const int rest = list_spans(dense + 1, kMaxSpan + 1);
  for (int q = 0; q < rest; ++q) {
    const int k = list_[q];
    if (span_[k] <= kMaxSpan) {
      enqueue(span_[k], k);
    } else {
      scatter_wide(now_->corners, place_, k, *now_, *tile_, below_);
    }
  }
}

void SquareWorker::drizzle_tile(int64_t index) {
  const int64_t tiles_across = (output_.nx + edge_ - 1) / edge_, batches = footprint_.across();
  const int64_t x0 = index % tiles_across * edge_, y0 = index / tiles_across * edge_;
  tile_ = &memory_.reset(x0, y0, std::min(edge_, output_.nx - x0), std::min(edge_, output_.ny - y0));
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
  const int64_t tiles = ((output.nx + tile_edge - 1) / tile_edge) * ((output.ny + tile_edge - 1) / tile_edge);
  SquareWorker worker(footprint, input, output, tile_edge, row_hits);
  for (int64_t t = next_tile.fetch_add(1); t < tiles; t = next_tile.fetch_add(1)) worker.drizzle_tile(t);
}

}  // namespace skyloom::drizzle
