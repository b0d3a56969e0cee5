#include "drizzle_covariance.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "drizzle_overlap.hpp"
#include "drizzle_walk.hpp"
#include "isa.hpp"

namespace skyloom::drizzle {
namespace {

int64_t rounded(double v) { return int64_t(std::floor(v + 0.5)); }

// Shares of a batch of drops that span few cells: share[j * n + i][k], as overlap_shares makes them.
struct BatchShares {
  int n = 0;
  alignas(64) double share[kMaxSpan * kMaxSpan][kBatch];
};

// The shares of one drop: ny rows of nx cells from cell (x0, y0), the part of it that matters to the rows in work.
struct Drop {
  int64_t x0 = 0, y0 = 0, nx = 0, ny = 0;
  int64_t row_step = 0, step = 1;        // between rows, and between cells of a row
  const double* first = nullptr;
  std::vector<double> memory, line;

  const double* row(int64_t y) const { return first + (y - y0) * row_step; }

  void of_batch(const BatchShares& batch, const Placement& p, int k, const Products& out) {
    cut(p.x[k], p.width[k], p.y[k], p.height[k], out);
    step = kBatch;
    row_step = batch.n * kBatch;
    first = &batch.share[(y0 - p.y[k]) * batch.n + x0 - p.x[k]][k];
  }

  // A quadrilateral of any size.
  void wide(const Corners& c, const Placement& p, int k, const Products& out) {
    cut(p.x[k], p.width[k], p.y[k], p.height[k], out);
    double cx[4], cy[4];
    for (int v = 0; v < 4; ++v) {
      cx[v] = c.x[v][k] - double(x0 - p.x[k]);
      cy[v] = c.y[v][k] - double(y0 - p.y[k]);
    }
    const double scale = 1.0 / p.area[k];
    const double noise = 1e-15 * std::max(p.width[k], p.height[k]) * std::fabs(scale) * p.height[k];
    use_memory();
    line.resize(size_t(nx) + 1);
    for (int64_t y = 0; y < ny; ++y) {
      areas_in_row(cx, cy, double(y), int(nx), line.data());
      for (int64_t x = 0; x < nx; ++x) {
        const double s = (line[size_t(x) + 1] - line[size_t(x)]) * scale;
        memory[size_t(y * nx + x)] = s > noise ? s : 0;
      }
    }
  }

  // The product of the factors along both axes, given the first cells.
  void product(const std::vector<double>& along_x, const std::vector<double>& along_y, int64_t x, int64_t y,
               const Products& out) {
    cut(x, int64_t(along_x.size()), y, int64_t(along_y.size()), out);
    use_memory();
    const double* factor = along_x.data() + (x0 - x);
    for (int64_t j = 0; j < ny; ++j)
      for (int64_t i = 0; i < nx; ++i) memory[size_t(j * nx + i)] = along_y[size_t(j + y0 - y)] * factor[i];
  }

 private:
  void cut(int64_t x, int64_t width, int64_t y, int64_t height, const Products& out) {
    x0 = std::max<int64_t>(x, 0);
    nx = std::max<int64_t>(std::min(x + width, out.nx) - x0, 0);
    y0 = std::max(y, out.first);
    ny = std::max<int64_t>(std::min({y + height, out.ny, out.stop + out.reach_y}) - y0, 0);
  }
  void use_memory() {
    memory.resize(size_t(nx * ny));
    first = memory.data();
    step = 1;
    row_step = nx;
  }
};

double value(const Plane& plane, int64_t j, int64_t i, double missing) {
  if (plane.data == nullptr) return missing;
  const int64_t at = j * plane.row + i * plane.col;
  return plane.is_double ? static_cast<const double*>(plane.data)[at] : double(static_cast<const float*>(plane.data)[at]);
}

// w^2 v of a pixel; 0 where it counts for nothing.
double noise_of(const SpreadImage& image, int64_t j, int64_t i) {
  const double w = value(image.weight, j, i, 1.0) * image.weight_scale, v = value(image.variance, j, i, 1.0);
  const bool usable = w > 0 && std::isfinite(w) && std::isfinite(v) && std::isfinite(value(image.data, j, i, 0.0));
  return usable ? w * w * v : 0;
}

int64_t batches_of(const Window& w) { return (w.x1 - w.x0 + kBatch - 1) / kBatch; }

// The lattice of chosen pixels.
class Lattice {
 public:
  explicit Lattice(const Products& out) : out_(out), per_row_((out.nx + out.every - 1) / out.every) {
    for (int64_t y = out.first; y < out.stop; ++y) offset_.push_back(int32_t(y * out.step % out.every));
  }
  // The first chosen pixel of row y from x = `from` on, `from` mod every being known.
  int64_t next(int64_t y, int64_t from, int32_t residue) const {
    const int32_t gap = offset_[size_t(y - out_.first)] - residue;
    return from + (gap < 0 ? gap + out_.every : gap);
  }
  double* sums(int64_t x, int64_t y) const {
    return out_.sums + (y * per_row_ + x / out_.every) * (out_.reach_y + 1) * (2 * out_.reach_x + 1);
  }
  bool meets(int64_t x0, int64_t x1, int64_t y0, int64_t y1) const {
    const int32_t residue = int32_t(x0 % out_.every);
    for (int64_t y = std::max(y0, out_.first); y < std::min(y1, out_.stop); ++y)
      if (next(y, x0, residue) < x1) return true;
    return false;
  }

 private:
  const Products& out_;
  int64_t per_row_;
  std::vector<int32_t> offset_;
};

// Add one row of products; kContiguous: step is 1.
template <bool kContiguous>
SKYLOOM_INLINE void add_scaled(double* __restrict to, const double* __restrict from, int64_t step, int64_t n, double scale) {
  for (int64_t k = 0; k < n; ++k) to[k] += scale * from[kContiguous ? k : k * step];
}

template <bool kContiguous>
SKYLOOM_INLINE void add_drop_body(const Drop& drop, double noise, const Lattice& lattice, const Products& out) {
  const int64_t per_dy = 2 * out.reach_x + 1, x1 = drop.x0 + drop.nx, last = std::min(drop.y0 + drop.ny, out.ny);
  const int32_t residue = int32_t(drop.x0 % out.every);
  for (int64_t y = std::max(drop.y0, out.first); y < std::min(last, out.stop); ++y) {
    const double* own = drop.row(y);
    const int64_t rows = std::min<int64_t>(last - 1 - y, out.reach_y);
    for (int64_t x = lattice.next(y, drop.x0, residue); x < x1; x += out.every) {
      const int64_t i = x - drop.x0;
      const double scaled = own[i * drop.step] * noise;
      if (scaled == 0) continue;
      const int64_t stop = std::min(drop.nx, i + out.reach_x + 1), start = std::max<int64_t>(0, i - out.reach_x);
      double* sums = lattice.sums(x, y) + out.reach_x;
      add_scaled<kContiguous>(sums, own + i * drop.step, drop.step, stop - i, scaled);
      for (int64_t dy = 1; dy <= rows; ++dy)
        add_scaled<kContiguous>(sums + dy * per_dy + (start - i), drop.row(y + dy) + start * drop.step, drop.step,
                                stop - start, scaled);
    }
  }
}

SKYLOOM_INLINE void add_narrow_body(const Drop& drop, double noise, const Lattice& lattice, const Products& out) {
  add_drop_body<false>(drop, noise, lattice, out);
}

SKYLOOM_INLINE void add_wide_body(const Drop& drop, double noise, const Lattice& lattice, const Products& out) {
  add_drop_body<true>(drop, noise, lattice, out);
}

SKYLOOM_DISPATCH(void, add_narrow, (const Drop& drop, double noise, const Lattice& lattice, const Products& out),
                 (drop, noise, lattice, out))
SKYLOOM_DISPATCH(void, add_wide, (const Drop& drop, double noise, const Lattice& lattice, const Products& out),
                 (drop, noise, lattice, out))

void add_drop(const Drop& drop, double noise, const Lattice& lattice, const Products& out) {
  if (drop.step == 1) {
    add_wide(drop, noise, lattice, out);
  } else {
    add_narrow(drop, noise, lattice, out);
  }
}

// The corners or centres of the drops of a batch, one input row after the other.
class BatchReader {
 public:
  BatchReader(const SpreadImage& image, int64_t batch)
      : image_(image), i0_(image.window.x0 + batch * kBatch),
        n_(int(std::min<int64_t>(kBatch, image.window.x1 - i0_))), window_(image.map, image.half) {
    window_.start(i0_, n_);
  }
  int64_t i0() const { return i0_; }
  int size() const { return n_; }
  bool has(int k) const { return !lost_[k]; }
  void read(int64_t j) {
    if (image_.kernel) {
      read_centres(image_.map, j, i0_, n_, centres);
      first_cells(*image_.kernel, centres.x, first_x);
      first_cells(*image_.kernel, centres.y, first_y);
      for (int k = 0; k < n_; ++k) lost_[k] = !centres.known[k];
    } else {
      std::fill_n(lost_, kBatch, uint8_t(0));
      window_.drops(j, corners, lost_);
    }
  }
  // The cells that a drop spans, both ends included.
  void cells_of(int k, int64_t& x0, int64_t& x1, int64_t& y0, int64_t& y1) const {
    if (image_.kernel) {
      x0 = int64_t(first_x[k]), x1 = x0 + image_.kernel->taps - 1;
      y0 = int64_t(first_y[k]), y1 = y0 + image_.kernel->taps - 1;
    } else {
      const Drops& c = corners;  // half a pixel up
      x0 = rounded(std::min(std::min(c.x[0][k], c.x[1][k]), std::min(c.x[2][k], c.x[3][k])) - 0.5);
      x1 = rounded(std::max(std::max(c.x[0][k], c.x[1][k]), std::max(c.x[2][k], c.x[3][k])) - 0.5);
      y0 = rounded(std::min(std::min(c.y[0][k], c.y[1][k]), std::min(c.y[2][k], c.y[3][k])) - 0.5);
      y1 = rounded(std::max(std::max(c.y[0][k], c.y[1][k]), std::max(c.y[2][k], c.y[3][k])) - 0.5);
    }
  }

  Drops corners{};
  Centres centres{};
  alignas(64) double first_x[kBatch], first_y[kBatch];  // first cells of a kernel

 private:
  const SpreadImage& image_;
  int64_t i0_;
  int n_;
  RowWindow window_;
  uint8_t lost_[kBatch];
};

// Works through the batches of an image.
class ProductSummer {
 public:
  ProductSummer(const SpreadImage& image, const Products& out) : image_(image), out_(out), lattice_(out) {}

  void add_row(int64_t j, BatchReader& drops) {
    drops.read(j);
    if (image_.kernel) {
      add_products_of(*image_.kernel, j, drops);
    } else {
      add_quadrilaterals(j, drops);
    }
  }

 private:
  void add_products_of(const Kernel& kernel, int64_t j, BatchReader& drops) {
    const Centres& centres = drops.centres;
    const bool together = kernel.taps <= kMaxTaps;
    if (together) {
      std::copy_n(drops.first_x, kBatch, along_x_.first);
      std::copy_n(drops.first_y, kBatch, along_y_.first);
      find_shares(kernel, centres.x, along_x_);
      find_shares(kernel, centres.y, along_y_);
    }
    line_x_.resize(size_t(kernel.taps));
    line_y_.resize(size_t(kernel.taps));
    for (int k = 0; k < drops.size(); ++k) {
      const int64_t x = int64_t(drops.first_x[k]), y = int64_t(drops.first_y[k]);
      if (!drops.has(k) || !wanted(x, kernel.taps, y, kernel.taps)) continue;
      const double noise = noise_of(image_, j, drops.i0() + k);
      if (noise == 0) continue;
      if (together) {
        for (int64_t i = 0; i < kernel.taps; ++i) {
          line_x_[size_t(i)] = along_x_.share[i][k];
          line_y_[size_t(i)] = along_y_.share[i][k];
        }
      } else {
        find_wide_shares(kernel, centres.x[k], drops.first_x[k], line_x_.data());
        find_wide_shares(kernel, centres.y[k], drops.first_y[k], line_y_.data());
      }
      drop_.product(line_x_, line_y_, x, y, out_);
      add_drop(drop_, noise, lattice_, out_);
    }
  }

  void add_quadrilaterals(int64_t j, BatchReader& drops) {
    place(drops.corners, relative_, place_);
    int32_t widest = 2;
    for (int k = 0; k < drops.size(); ++k)
      if (place_.valid[k] && fits(k)) widest = std::max(widest, std::max(place_.width[k], place_.height[k]));
    shares_.n = widest;
    overlap_shares(widest, relative_, place_.area, shares_.share);
    for (int k = 0; k < drops.size(); ++k) {
      if (!drops.has(k) || !place_.valid[k]) continue;
      if (!wanted(place_.x[k], place_.width[k], place_.y[k], place_.height[k])) continue;
      const double noise = noise_of(image_, j, drops.i0() + k);
      if (noise == 0) continue;
      if (fits(k)) {
        drop_.of_batch(shares_, place_, k, out_);
      } else {
        drop_.wide(relative_, place_, k, out_);
      }
      add_drop(drop_, noise, lattice_, out_);
    }
  }

  bool fits(int k) const { return place_.width[k] <= kMaxSpan && place_.height[k] <= kMaxSpan; }
  bool wanted(int64_t x, int64_t width, int64_t y, int64_t height) const {
    const int64_t x0 = std::max<int64_t>(x, 0), x1 = std::min(x + width, out_.nx);
    return x0 < x1 && lattice_.meets(x0, x1, y, y + height);
  }

  const SpreadImage& image_;
  const Products& out_;
  Lattice lattice_;
  Corners relative_;  // to the first cells
  Placement place_;
  BatchShares shares_;
  drizzle::Shares along_x_, along_y_;
  std::vector<double> line_x_, line_y_;
  Drop drop_;
};

}  // namespace

void find_rows(const SpreadImage& image, int64_t first, int64_t stop, int32_t* low, int32_t* high, int64_t* spans) {
  const Window& w = image.window;
  const int64_t batches = batches_of(w);
  for (int64_t batch = 0; batch < batches; ++batch) {
    BatchReader drops(image, batch);
    for (int64_t j = first; j < stop; ++j) {
      drops.read(j);
      const int64_t at = (j - w.y0) * batches + batch;
      low[at] = int32_t(kFarAway);
      high[at] = -int32_t(kFarAway);
      for (int k = 0; k < drops.size(); ++k) {
        if (!drops.has(k)) continue;
        int64_t x0, x1, y0, y1;
        drops.cells_of(k, x0, x1, y0, y1);
        low[at] = std::min<int32_t>(low[at], int32_t(y0));
        high[at] = std::max<int32_t>(high[at], int32_t(y1));
        spans[std::min<int64_t>(x1 - x0, kSpans - 1)] += 1;
        spans[kSpans + std::min<int64_t>(y1 - y0, kSpans - 1)] += 1;
      }
    }
  }
}

void add_products(const SpreadImage& image, const int32_t* low, const int32_t* high, const Products& out) {
  const Window& w = image.window;
  const int64_t batches = batches_of(w);
  ProductSummer summer(image, out);
  for (int64_t batch = 0; batch < batches; ++batch) {
    BatchReader drops(image, batch);
    for (int64_t j = w.y0; j < w.y1; ++j) {
      const int64_t at = (j - w.y0) * batches + batch;
      if (low[at] < out.stop && high[at] >= out.first) summer.add_row(j, drops);
    }
  }
}

}  // namespace skyloom::drizzle
