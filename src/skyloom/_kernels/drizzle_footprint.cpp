#include "drizzle_footprint.hpp"

#include <algorithm>
#include <cmath>

namespace skyloom::drizzle {

Footprint::Footprint(const PixelMap& map_, const Window& window_, double half_, double margin_, int64_t frame_ny_,
                     int64_t frame_nx_)
    : map(map_), window(window_), half(half_), margin(margin_), frame_ny(frame_ny_), frame_nx(frame_nx_),
      batches(size_t(rows() * across())), blocks(size_t(block_rows() * across())) {}

int Footprint::batch_start(int64_t batch, int64_t& i0) const {
  i0 = window.x0 + batch * kBatch;
  return int(std::min<int64_t>(kBatch, window.x1 - i0));
}

void Footprint::find(int64_t block) {
  const int64_t stop = std::min(rows(), (block + 1) * kBlockRows), n_batches = across();
  const double slack = margin + 1e-6;  // interpolation may round to just outside of the bounds
  RowWindow rows_at(map, half);
  for (int64_t batch = 0; batch < n_batches; ++batch) {
    Reach all{0, 0, 0, 0};
    int64_t i0;
    const int n = batch_start(batch, i0);
    rows_at.start(i0, n);
    for (int64_t r = block * kBlockRows; r < stop; ++r) {
      double box[4];
      Reach reach{0, 0, 0, 0};
      if (rows_at.bounds(window.y0 + r, box)) {
        reach.x0 = int32_t(std::clamp(std::floor(box[0] + 0.5 - slack), 0.0, double(frame_nx)));
        reach.x1 = int32_t(std::clamp(std::ceil(box[1] + 0.5 + slack), 0.0, double(frame_nx)));
        reach.y0 = int32_t(std::clamp(std::floor(box[2] + 0.5 - slack), 0.0, double(frame_ny)));
        reach.y1 = int32_t(std::clamp(std::ceil(box[3] + 0.5 + slack), 0.0, double(frame_ny)));
      }
      batches[size_t(r * n_batches + batch)] = reach;
      if (reach.empty()) continue;
      all = all.empty() ? reach
                        : Reach{std::min(all.x0, reach.x0), std::max(all.x1, reach.x1), std::min(all.y0, reach.y0),
                                std::max(all.y1, reach.y1)};
    }
    blocks[size_t(block * n_batches + batch)] = all;
  }
}

}  // namespace skyloom::drizzle
