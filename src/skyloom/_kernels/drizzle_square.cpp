#include "drizzle_square.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>

#include "drizzle_overlap.hpp"
#include "drizzle_scatter.hpp"
#include "drizzle_upright.hpp"
#include "drizzle_walk.hpp"
#include "isa.hpp"

namespace skyloom::drizzle {
namespace {

// Drops of one class of width, waiting until there are enough of them for the vectorised areas.
struct Queue : Load {
  Corners corners;                    // relative to the drop's first cell
  int count = 0;
};

// Drop k of a batch, relative to its first cell.
struct Drop {
  double x[4], y[4];
  Drop(const Drops& d, const Placement& p, int k) {
    for (int v = 0; v < 4; ++v) {
      x[v] = d.x[v][k] - p.x[k];
      y[v] = d.y[v][k] - p.y[k];
    }
  }
  void shift(double dx) {
    for (double& v : x) v += dx;
  }
};

Drops pointers(const Corners& c) {
  return {{c.x[0], c.x[1], c.x[2], c.x[3]}, {c.y[0], c.y[1], c.y[2], c.y[3]}};
}

// One drop of any size, a row of cells at a time, cut to the tile.
void scatter_wide(const Drops& d, const Placement& p, int k, const Load& b, Tile& tile, std::vector<double>& below) {
  const int64_t x0 = std::max<int64_t>(p.x[k], tile.x0), x1 = std::min(int64_t(p.x[k]) + p.width[k], tile.x0 + tile.nx);
  const int64_t y0 = std::max<int64_t>(p.y[k], tile.y0), y1 = std::min(int64_t(p.y[k]) + p.height[k], tile.y0 + tile.ny);
  const int n = int(x1 - x0);
  Drop drop(d, p, k);
  drop.shift(double(p.x[k] - x0));
  const double scale = 1.0 / p.area[k];
  const double noise = 1e-15 * std::max(p.width[k], p.height[k]) * std::fabs(scale) * p.height[k];
  below.resize(size_t(n) + 1);
  for (int64_t y = y0; y < y1; ++y) {
    areas_in_row(drop.x, drop.y, double(y - p.y[k]), n, below.data());
    for (int i = 0; i < n; ++i) {
      const double s = (below[size_t(i) + 1] - below[size_t(i)]) * scale;
      if (!(s > noise)) continue;
      const int64_t cell = (y - tile.y0) * tile.stride + (x0 - tile.x0) + i;
      for (int plane = 0; plane < tile.planes.all; ++plane)
        tile.sums[plane * tile.plane + cell] += b.values[plane * kBatch + k] * (plane < tile.planes.linear ? s : s * s);
      if (tile.dq != nullptr) tile.dq[cell] |= b.dq[k];
    }
  }
}

// Does the drop share any area with the frame?
bool reaches_frame(const Drops& d, const Placement& p, int k, int64_t ny, int64_t nx) {
  const int64_t x0 = std::max<int64_t>(p.x[k], 0), x1 = std::min(int64_t(p.x[k]) + p.width[k], nx);
  const int64_t y0 = std::max<int64_t>(p.y[k], 0), y1 = std::min(int64_t(p.y[k]) + p.height[k], ny);
  Drop drop(d, p, k);
  drop.shift(double(p.x[k] - x0));
  std::vector<double> below(size_t(x1 - x0) + 1);
  for (int64_t y = y0; y < y1; ++y) {
    areas_in_row(drop.x, drop.y, double(y - p.y[k]), int(x1 - x0), below.data());
    if (std::fabs(below.back() - below.front()) > kAreaNoise) return true;
  }
  return false;
}

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

// kInside: the whole batch is known to lie within the tile.
template <bool kInside>
SKYLOOM_INLINE void sort_batch_in(const Placement& p, const int32_t* __restrict usable, const Tile& tile, Size frame,
                                  int32_t* __restrict cell, int32_t* __restrict span, Sorting& out) {
  const int32_t x0 = int32_t(tile.x0), x1 = x0 + int32_t(tile.nx), y0 = int32_t(tile.y0), y1 = y0 + int32_t(tile.ny);
  const int32_t nx = int32_t(frame.nx), ny = int32_t(frame.ny), step = int32_t(tile.stride);
  int32_t hits = 0, borders = 0;
  for (int k = 0; k < kBatch; ++k) {
    const int32_t x = p.x[k], y = p.y[k], width = p.width[k], height = p.height[k];
    const int32_t size = width > height ? width : height, good = p.valid[k] & usable[k];
    cell[k] = (y - y0) * step + (x - x0);
    if (kInside) {
      span[k] = good ? (size <= kMaxSpan ? size : kMaxSpan + 1) : 255;
      hits += good;
    } else {
      const int32_t end_x = x + width, end_y = y + height;
      const int32_t reaches = (x < x1) & (y < y1) & (end_x > x0) & (end_y > y0) & good;
      const int32_t own_x = x > 0 ? x : 0, own_y = y > 0 ? y : 0;
      const int32_t owned = reaches & (own_x >= x0) & (own_x < x1) & (own_y >= y0) & (own_y < y1);
      const int32_t inside = (x >= 0) & (y >= 0) & (end_x <= nx) & (end_y <= ny);
      const int32_t unsure = owned & (inside ^ 1);
      span[k] = reaches ? (size <= kMaxSpan ? size : kMaxSpan + 1) | (unsure << 8) : 255;
      hits += owned & inside;
      borders += unsure;
    }
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

SKYLOOM_INLINE void sort_batch_body(const Placement& p, const int32_t* usable, bool inside, const Tile& tile, Size frame,
                                    int32_t* cell, int32_t* span, Sorting& out) {
  if (inside) {
    sort_batch_in<true>(p, usable, tile, frame, cell, span, out);
  } else {
    sort_batch_in<false>(p, usable, tile, frame, cell, span, out);
  }
}

SKYLOOM_INLINE uint64_t find_usable_body(const int32_t* __restrict usable) {
  uint32_t half[2] = {0, 0};
  for (int h = 0; h < 2; ++h)
    for (int k = 0; k < 32; ++k) half[h] |= uint32_t(usable[32 * h + k]) << k;
  return half[0] | uint64_t(half[1]) << 32;
}

SKYLOOM_DISPATCH(uint64_t, find_usable, (const int32_t* usable), (usable))
SKYLOOM_DISPATCH(void, sort_batch,
                 (const Placement& p, const int32_t* usable, bool inside, const Tile& tile, Size frame, int32_t* cell,
                  int32_t* span, Sorting& out),
                 (p, usable, inside, tile, frame, cell, span, out))

// What is known of the drops of a batch.
enum class Shape { upright, turned, any };

// Works through the tiles of one thread.
class SquareWorker {
 public:
  SquareWorker(const Footprint& footprint, const Input& input, const Output& output, TileSize size);
  void drizzle_tile(int64_t index);
  void report_hits(int32_t* row_hits) const;

 private:
  void drizzle_batch(RowWindow& window, int64_t j, int64_t i0, int n, bool inside);
  Sorting sort_drops(int64_t j, const Drops& d, bool inside);
  Shape place_drops(bool regular, Drops& drops, Drops& upright, Lanes& lanes);
  Sorting sort_inside(int64_t j, const Cells& cells);
  void count_cells_of(int k, const Cells& cells);
  void enqueue(int span, const Drops& d, int k);
  void flush(int span);

  const Footprint& footprint_;
  const Input& input_;
  const Output& output_;
  const TileSize size_;
  std::vector<int32_t> row_hits_;
  TileMemory memory_;
  Tile* tile_ = nullptr;
  std::vector<RowWindow> windows_;                  // one for each slot of walk_tile
  std::vector<Values> values_;                      // of the batch at hand, and of those that wait
  std::vector<double> below_;
  Load now_;                                        // the batch at hand
  std::unique_ptr<Queue> waiting_[kMaxSpan + 1];    // by span
  Corners relative_;
  UprightDrops upright_;
  TurnedDrops turned_, queued_turned_;
  Placement place_{}, queued_place_{};              // of the batch at hand, and of a queue that is worked on
  alignas(64) double share_[kMaxSpan * kMaxSpan][kBatch];
  uint8_t lost_[kBatch];
  alignas(64) int32_t usable_[kBatch];              // 1 if the pixel has a weight
  alignas(64) int32_t span_[kBatch];  // cells, kMaxSpan + 1 if more; 255: does not reach the tile. Bit 8: at_border
};

SquareWorker::SquareWorker(const Footprint& footprint, const Input& input, const Output& output, TileSize size)
    : footprint_(footprint), input_(input), output_(output), size_(size), row_hits_(size_t(footprint.rows())),
      memory_(size.nx, size.ny, SumPlanes(input), input.dq.data != nullptr),
      windows_(kGroup, RowWindow(footprint.map, footprint.half)), values_(kMaxSpan, Values(SumPlanes(input))) {
  now_.values = values_[0].data();
  std::fill_n(now_.dq, kBatch, 0u);
  for (int n = 2; n <= kMaxSpan; ++n) {
    waiting_[n] = std::make_unique<Queue>();
    waiting_[n]->values = values_[size_t(n - 1)].data();
    const double x[4] = {0, 1, 1, 0}, y[4] = {0, 0, 1, 1};  // an empty place in a queue is a drop like others
    for (int v = 0; v < 4; ++v) {
      std::fill_n(waiting_[n]->corners.x[v], kBatch, x[v]);
      std::fill_n(waiting_[n]->corners.y[v], kBatch, y[v]);
    }
  }
}

// Look up which drops reach the tile, and how wide they are. Hits are counted by the one tile that owns the first cell
// of a drop's part within the frame.
Sorting SquareWorker::sort_drops(int64_t j, const Drops& d, bool inside) {
  Sorting s;
  sort_batch(place_, usable_, inside, *tile_, {output_.nx, output_.ny}, now_.cell, span_, s);
  int32_t& hits = row_hits_[size_t(j - footprint_.window.y0)];
  hits += s.hits;
  for (uint64_t rest = s.at_border; rest != 0; rest &= rest - 1)
    hits += reaches_frame(d, place_, std::countr_zero(rest), output_.ny, output_.nx);
  return s;
}

// The same for drops that all lie within the tile; how wide they are is not looked up.
Sorting SquareWorker::sort_inside(int64_t j, const Cells& cells) {
  number_cells(cells, double(tile_->x0), double(tile_->y0), double(tile_->stride), now_.cell);
  const uint64_t all = find_usable(usable_);
  const int32_t hits = std::popcount(all);
  row_hits_[size_t(j - footprint_.window.y0)] += hits;
  return {{all, all, all, all, all, all, all}, 0, hits};
}

// What `sort_inside` has left out, for drop k.
void SquareWorker::count_cells_of(int k, const Cells& cells) {
  place_.x[k] = int32_t(cells.line_x[k]) - 1;
  place_.y[k] = int32_t(cells.line_y[k]) - 1;
  place_.width[k] = int32_t(cells.width[k]);
  place_.height[k] = int32_t(cells.height[k]);
  span_[k] = std::min(std::max(place_.width[k], place_.height[k]), kMaxSpan + 1);
}

void SquareWorker::enqueue(int span, const Drops& d, int k) {
  Queue& to = *waiting_[span];
  const int m = to.count++;
  const Drop drop(d, place_, k);
  for (int v = 0; v < 4; ++v) {
    to.corners.x[v][m] = drop.x[v];
    to.corners.y[v][m] = drop.y[v];
  }
  to.cell[m] = now_.cell[k];
  to.dq[m] = now_.dq[k];
  for (int p = 0; p < tile_->planes.all; ++p) to.values[p * kBatch + m] = now_.values[p * kBatch + k];
  if (to.count == kBatch) flush(span);
}

void SquareWorker::flush(int span) {
  Queue& q = *waiting_[span];
  if (q.count == 0) return;
  const Drops drops = pointers(q.corners);
  if (place_turned(drops, Lanes{}, queued_turned_, queued_place_.area)) {
    share_turned(span, drops, Lanes{}, queued_turned_, share_);
  } else {
    place(drops, relative_, queued_place_);
    overlap_shares(span, relative_, queued_place_.area, share_);
  }
  scatter(span, share_, q, q.count == kBatch ? ~uint64_t(0) : (uint64_t(1) << q.count) - 1, *tile_);
  q.count = 0;
}

// Find cells and areas of the drops of a batch in the fastest way that their shapes allow. They are put in turned order;
// `upright` is in upright order if that is what they are.
Shape SquareWorker::place_drops(bool regular, Drops& drops, Drops& upright, Lanes& lanes) {
  upright = drops;
  put_in_turned_order(drops);
  if (regular && put_in_upright_order(upright) && place_upright(upright, lanes, upright_, place_.area)) return Shape::upright;
  if (regular && place_turned(drops, lanes, turned_, place_.area)) return Shape::turned;
  place(drops, relative_, place_);
  lanes = {};
  return Shape::any;
}

// inside: all drops are known to lie within the tile.
void SquareWorker::drizzle_batch(RowWindow& window, int64_t j, int64_t i0, int n, bool inside) {
  Drops drops, upright;
  const bool regular = window.drops(j, drops, lost_);
  Lanes lanes;
  if (regular && !inside) {
    const double x0 = double(tile_->x0), y0 = double(tile_->y0);
    lanes = lanes_near(drops, x0, x0 + double(tile_->nx), y0, y0 + double(tile_->ny));
    if (lanes.begin == lanes.end) return;
  }
  load_batch(input_, j, i0, n, now_.values, usable_, now_.dq);
  const Shape shape = place_drops(regular, drops, upright, lanes);
  if (!regular)
    for (int k = 0; k < n; ++k)
      if (lost_[k]) place_.valid[k] = 0;
  const Cells& cells = shape == Shape::upright ? static_cast<const Cells&>(upright_) : turned_;
  const bool known_inside = inside && shape != Shape::any;  // there is no need to look where each of them lies
  if (!known_inside && shape != Shape::any) count_cells(lanes, cells, place_);
  const Sorting sorted = known_inside ? sort_inside(j, cells) : sort_drops(j, drops, inside);
  const uint64_t all = sorted.within[kMaxSpan + 1];
  if (all == 0) return;
  // The smallest span that serves most drops is worked on in place, the other drops wait for their like.
  const int total = std::popcount(all);
  const auto served_by = [&](int n) {
    return shape == Shape::any ? sorted.within[n] : all & spans_up_to(n, lanes, cells);
  };
  int dense = 2;
  uint64_t served = served_by(2);
  while (4 * std::popcount(served) < 3 * total && ++dense <= kMaxSpan) served = served_by(dense);
  uint64_t rest = all;
  if (dense <= kMaxSpan && total >= (lanes.end - lanes.begin) * 5 / 8) {
    if (shape == Shape::upright) {
      share_upright(dense, upright, lanes, upright_, place_.area, share_);
    } else if (shape == Shape::turned) {
      share_turned(dense, drops, lanes, turned_, share_);
    } else {
      overlap_shares(dense, relative_, place_.area, share_);
    }
    // shares of the other drops are 0: they do not break the runs of those that are served
    scatter(dense, share_, now_, dense == 2 && shape != Shape::any ? sorted.within[kMaxSpan] : served, *tile_);
    rest &= ~served;
  }
  for (; rest != 0; rest &= rest - 1) {
    const int k = std::countr_zero(rest);
    if (known_inside) count_cells_of(k, cells);
    const int span = std::max(span_[k] & 255, 2);
    if (span <= kMaxSpan) {
      enqueue(span, drops, k);
    } else {
      scatter_wide(drops, place_, k, now_, *tile_, below_);
    }
  }
}

void SquareWorker::report_hits(int32_t* row_hits) const {
  for (size_t j = 0; j < row_hits_.size(); ++j)
    std::atomic_ref<int32_t>(row_hits[j]).fetch_add(row_hits_[j], std::memory_order_relaxed);
}

void SquareWorker::drizzle_tile(int64_t index) {
  const int64_t tiles_across = (output_.nx + size_.nx - 1) / size_.nx;
  const int64_t x0 = index % tiles_across * size_.nx, y0 = index / tiles_across * size_.ny;
  tile_ = &memory_.reset(x0, y0, std::min(size_.nx, output_.nx - x0), std::min(size_.ny, output_.ny - y0));
  bool reached = false;
  walk_tile(footprint_, *tile_, [&](int64_t j, int64_t i0, int n, const Reach& reach, int slot) {
    windows_[size_t(slot)].start(i0, n);
    reached = true;
    drizzle_batch(windows_[size_t(slot)], j, i0, n, lies_within(reach, *tile_));
  });
  for (int span = 2; span <= kMaxSpan; ++span) flush(span);
  merge_tile(*tile_, reached, output_);
}

}  // namespace

void drizzle_square(const Footprint& footprint, const Input& input, const Output& output, int64_t tile_edge,
                    int32_t* row_hits, const TileQueue& queue) {
  const TileSize size = footprint.tile_size(tile_edge);
  const int64_t tiles = ((output.nx + size.nx - 1) / size.nx) * ((output.ny + size.ny - 1) / size.ny);
  SquareWorker worker(footprint, input, output, size);
  queue.for_each(tiles, [&](int64_t tile) { worker.drizzle_tile(tile); });
  worker.report_hits(row_hits);
}

}  // namespace skyloom::drizzle
