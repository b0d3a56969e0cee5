#include "drizzle_footprint.hpp"

#include <algorithm>
#include <cmath>

#include "drizzle_walk.hpp"

namespace skyloom::drizzle {

Footprint::Footprint(const PixelMap& map_, const Window& window_, double half_, double margin_, int64_t frame_ny_,
                     int64_t frame_nx_)
    : map(map_), window(window_), half(half_), margin(margin_), frame_ny(frame_ny_), frame_nx(frame_nx_),
      batches(size_t(rows() * across())), blocks(size_t(block_rows() * across())) {}

int Footprint::batch_start(int64_t batch, int64_t& i0) const {
  i0 = window.x0 + batch * kBatch;
  return int(std::min<int64_t>(kBatch, window.x1 - i0));
}

// Cells that an extent touches, within the frame.
Reach Footprint::reach_of(const Extent& e) const {
  const double slack = margin + 1e-6;  // interpolation may round to just outside of the extent
  const auto cut = [](double v, int64_t size) { return std::clamp(v, 0.0, double(size)); };
  // truncation rounds down what is not negative
  return {int32_t(cut(e.x0 - slack, frame_nx)), int32_t(cut(e.x1 + 1 + slack, frame_nx)),
          int32_t(cut(e.y0 - slack, frame_ny)), int32_t(cut(e.y1 + 1 + slack, frame_ny))};
}

void Footprint::find(int64_t block) {
  if (half == 0) return find_centres(block);
  const int64_t first = window.y0 + block * kBlockRows, stop = std::min(window.y1, first + kBlockRows);
  const int64_t n_batches = across();
  std::vector<Extent> extents(size_t(3 * n_batches));  // of the centres of three rows, row j in slot j % 3
  std::vector<uint8_t> finite(size_t(3 * n_batches));
  const auto slot = [&](int64_t j, int64_t batch) { return size_t((j + 3) % 3 * n_batches + batch); };
  const auto read = [&](int64_t j) {
    int64_t i0;
    for (int64_t batch = 0; batch < n_batches; ++batch) {
      const int n = batch_start(batch, i0);
      finite[slot(j, batch)] = row_extent(map, j, i0, n, extents[slot(j, batch)]);
    }
  };
  read(first - 1);
  read(first);
  RowWindow rows_at(map, half);
  for (int64_t j = first; j < stop; ++j) {
    read(j + 1);
    for (int64_t batch = 0; batch < n_batches; ++batch) {
      Extent e = extents[slot(j, batch)];
      bool any = true;
      if (half <= 1 && finite[slot(j - 1, batch)] && finite[slot(j, batch)] && finite[slot(j + 1, batch)]) {
        e.take(extents[slot(j - 1, batch)]);  // corners lie between the centres around them
        e.take(extents[slot(j + 1, batch)]);
      } else {
        int64_t i0;
        const int n = batch_start(batch, i0);
        rows_at.start(i0, n);
        any = rows_at.extent(j, e);
      }
      store(block, j - window.y0, batch, any ? reach_of(e) : Reach{0, 0, 0, 0});
    }
  }
}

// The same for drops that are placed by their centres alone, which no neighbour moves.
void Footprint::find_centres(int64_t block) {
  const int64_t stop = std::min(rows(), (block + 1) * kBlockRows);
  for (int64_t row = block * kBlockRows; row < stop; ++row)
    for (int64_t batch = 0; batch < across(); ++batch) {
      int64_t i0;
      const int n = batch_start(batch, i0);
      Extent e;
      const bool any = row_extent(map, window.y0 + row, i0, n, e) || known_extent(map, window.y0 + row, i0, n, e);
      store(block, row, batch, any ? reach_of(e) : Reach{0, 0, 0, 0});
    }
}

void Footprint::store(int64_t block, int64_t row, int64_t batch, const Reach& reach) {
  batches[batch_index(row, batch)] = reach;
  if (reach.empty()) return;
  Reach& all = blocks[size_t(block * across() + batch)];
  all = all.empty() ? reach
                    : Reach{std::min(all.x0, reach.x0), std::max(all.x1, reach.x1), std::min(all.y0, reach.y0),
                            std::max(all.y1, reach.y1)};
}

TileSize Footprint::tile_size(int64_t edge) const {
  double width = 1, height = 1;
  for (const Reach& reach : batches) {
    if (reach.empty()) continue;
    width += reach.x1 - reach.x0;
    height += reach.y1 - reach.y0;
  }
  const double stretch = std::clamp(std::sqrt(width / height), 0.25, 4.0);
  const double cells = double(edge) * double(edge), across = double(edge) * stretch;
  const int64_t unit = across < kBatch ? 16 : kBatch;
  int64_t nx = std::max<int64_t>(1, std::llround(across / double(unit))) * unit;
  if (nx % 256 == 0) nx += unit;  // cells one above the other would lie 4096 bytes apart: the processor takes them for the same
  return {nx, std::max<int64_t>(16, int64_t(cells / double(nx)))};
}

Reach Footprint::whole() const {
  Reach all{int32_t(frame_nx), 0, int32_t(frame_ny), 0};
  for (const Reach& r : blocks) {
    if (r.empty()) continue;
    all = {std::min(all.x0, r.x0), std::max(all.x1, r.x1), std::min(all.y0, r.y0), std::max(all.y1, r.y1)};
  }
  return all;
}

}  // namespace skyloom::drizzle
