#include "drizzle_covariance.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "drizzle_overlap.hpp"
#include "isa.hpp"

namespace skyloom::drizzle {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kFwhm = 2.3548;  // of a Gaussian, in standard deviations; as rounded in the original drizzle

int64_t rounded(double v) { return int64_t(std::floor(v + 0.5)); }

double lanczos(double u, int n) {
  if (std::fabs(u) < 1e-9) return 1;
  if (std::fabs(u) >= n) return 0;
  const double a = kPi * u;
  return std::sin(a) * std::sin(a / n) * n / (a * a);
}

// Shares of one drop along one axis, for the kernels that are products of two such factors.
struct Factor {
  int64_t first = 0;
  std::vector<double> share;

  void spread(const SpreadImage& image, double position) {
    const double s = image.ratio, p = image.pixfrac;
    switch (image.kernel) {
      case Spread::turbo: {
        const double half = 0.5 * p / s;
        cells(rounded(position - half), rounded(position + half));
        for (size_t k = 0; k < share.size(); ++k) {
          const double centre = double(first + int64_t(k));
          const double overlap = std::min(position + half, centre + 0.5) - std::max(position - half, centre - 0.5);
          share[k] = std::max(overlap, 0.0) / (2 * half);
        }
        break;
      }
      case Spread::gaussian: {
        const double reach = std::max(2.5 * p / kFwhm, 1.2) / s, e = kFwhm * kFwhm * s * s / (2 * p * p);
        cells(rounded(position - reach), rounded(position + reach));
        for (size_t k = 0; k < share.size(); ++k) {
          const double r = double(first + int64_t(k)) - position;
          share[k] = std::sqrt(e / kPi) * std::exp(-e * r * r);
        }
        break;
      }
      case Spread::lanczos2:
      case Spread::lanczos3: {
        const int n = image.kernel == Spread::lanczos2 ? 2 : 3;
        cells(int64_t(std::floor(position - n / s)) + 1, int64_t(std::floor(position + n / s)));
        for (size_t k = 0; k < share.size(); ++k) share[k] = lanczos((double(first + int64_t(k)) - position) * s, n);
        break;
      }
      default:
        cells(rounded(position), rounded(position));
        share[0] = 1;
    }
    if (!image.unit_sum) return;
    double sum = 0;
    for (double v : share) sum += v;
    if (sum != 0)
      for (double& v : share) v /= sum;
  }

 private:
  void cells(int64_t from, int64_t to) {
    first = from;
    share.assign(size_t(std::max<int64_t>(to - from + 1, 1)), 0.0);
  }
};

// Shares of a batch of drops that span few cells: share[j * n + i][k], as overlap_shares makes them.
struct BatchShares {
  int n = 0;
  alignas(64) double share[kMaxSpan * kMaxSpan][kBatch];
};

// The shares of one drop: ny rows of nx cells from cell (x0, y0), all of it within the columns of the output.
struct Shares {
  int64_t x0 = 0, y0 = 0, nx = 0, ny = 0;
  int64_t row_step = 0, step = 1;        // between rows, and between cells of a row
  const double* first = nullptr;
  std::vector<double> memory, below;
  Factor along_x, along_y;

  const double* row(int64_t y) const { return first + (y - y0) * row_step; }

  void of_batch(const BatchShares& batch, const Placement& p, int k, int64_t frame_nx) {
    cut(p.x[k], p.width[k], frame_nx);
    y0 = p.y[k];
    ny = p.height[k];
    step = kBatch;
    row_step = batch.n * kBatch;
    first = &batch.share[x0 - p.x[k]][k];
  }

  // A quadrilateral of any size.
  void wide(const Corners& c, const Placement& p, int k, int64_t frame_nx) {
    cut(p.x[k], p.width[k], frame_nx);
    y0 = p.y[k];
    ny = p.height[k];
    double cx[4], cy[4];
    for (int v = 0; v < 4; ++v) {
      cx[v] = c.x[v][k] - double(x0 - p.x[k]);
      cy[v] = c.y[v][k];
    }
    const double scale = 1.0 / p.area[k];
    const double noise = 1e-15 * std::max(p.width[k], p.height[k]) * std::fabs(scale) * p.height[k];
    use_memory();
    below.resize(size_t(nx) + 1);
    for (int64_t y = 0; y < ny; ++y) {
      areas_in_row(cx, cy, double(y), int(nx), below.data());
      for (int64_t x = 0; x < nx; ++x) {
        const double s = (below[size_t(x) + 1] - below[size_t(x)]) * scale;
        memory[size_t(y * nx + x)] = s > noise ? s : 0;
      }
    }
  }

  void product(const SpreadImage& image, double x, double y, int64_t frame_nx) {
    along_x.spread(image, x);
    along_y.spread(image, y);
    cut(along_x.first, int64_t(along_x.share.size()), frame_nx);
    y0 = along_y.first;
    ny = int64_t(along_y.share.size());
    use_memory();
    const double* factor = along_x.share.data() + (x0 - along_x.first);
    for (int64_t j = 0; j < ny; ++j)
      for (int64_t i = 0; i < nx; ++i) memory[size_t(j * nx + i)] = along_y.share[size_t(j)] * factor[i];
  }

 private:
  void cut(int64_t x, int64_t width, int64_t frame_nx) {
    x0 = std::max<int64_t>(x, 0);
    nx = std::max<int64_t>(std::min(x + width, frame_nx) - x0, 0);
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

double half_of(const SpreadImage& image) { return image.kernel == Spread::square ? 0.5 * image.pixfrac : 0; }

// What a kernel reaches on either side of the drop's corners, in output pixels.
double margin_of(const SpreadImage& image) {
  switch (image.kernel) {
    case Spread::turbo: return 0.5 * image.pixfrac / image.ratio;
    case Spread::gaussian: return std::max(2.5 * image.pixfrac / kFwhm, 1.2) / image.ratio;
    case Spread::lanczos2: return 2 / image.ratio;
    case Spread::lanczos3: return 3 / image.ratio;
    default: return 0;
  }
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

void add_drop(const Shares& drop, double noise, const Lattice& lattice, const Products& out) {
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
      for (int64_t k = i; k < stop; ++k) sums[k - i] += scaled * own[k * drop.step];
      for (int64_t dy = 1; dy <= rows; ++dy) {
        const double* other = drop.row(y + dy);
        double* to = sums + dy * per_dy;
        for (int64_t k = start; k < stop; ++k) to[k - i] += scaled * other[k * drop.step];
      }
    }
  }
}

}  // namespace

void find_rows(const SpreadImage& image, int64_t first, int64_t stop, int32_t* low, int32_t* high, int64_t* spans) {
  const Window& w = image.window;
  const int64_t batches = batches_of(w);
  const double margin = margin_of(image);
  RowWindow window(image.map, half_of(image));
  Corners c{};
  uint8_t lost[kBatch];
  for (int64_t batch = 0; batch < batches; ++batch) {
    const int64_t i0 = w.x0 + batch * kBatch;
    const int n = int(std::min<int64_t>(kBatch, w.x1 - i0));
    window.start(i0, n);
    for (int64_t j = first; j < stop; ++j) {
      std::fill_n(lost, kBatch, uint8_t(0));
      window.corners(j, c, lost);
      double bottom = kFarAway, top = -kFarAway;
      for (int k = 0; k < n; ++k) {
        if (lost[k]) continue;
        const double y0 = std::min(std::min(c.y[0][k], c.y[1][k]), std::min(c.y[2][k], c.y[3][k])) - margin;
        const double y1 = std::max(std::max(c.y[0][k], c.y[1][k]), std::max(c.y[2][k], c.y[3][k])) + margin;
        bottom = std::min(bottom, y0);
        top = std::max(top, y1);
        const double x0 = std::min(std::min(c.x[0][k], c.x[1][k]), std::min(c.x[2][k], c.x[3][k])) - margin;
        const double x1 = std::max(std::max(c.x[0][k], c.x[1][k]), std::max(c.x[2][k], c.x[3][k])) + margin;
        spans[std::min<int64_t>(rounded(x1) - rounded(x0), kSpans - 1)] += 1;
        spans[kSpans + std::min<int64_t>(rounded(y1) - rounded(y0), kSpans - 1)] += 1;
      }
      const int64_t at = (j - w.y0) * batches + batch;
      low[at] = bottom <= top ? int32_t(rounded(bottom)) : 1;
      high[at] = bottom <= top ? int32_t(rounded(top)) : 0;
    }
  }
}

void add_products(const SpreadImage& image, const int32_t* low, const int32_t* high, const Products& out) {
  const Window& w = image.window;
  const int64_t batches = batches_of(w);
  const Lattice lattice(out);
  RowWindow window(image.map, half_of(image));
  Corners c{};
  Placement p;
  BatchShares batch_shares;
  Shares drop;
  uint8_t lost[kBatch];
  const bool square = image.kernel == Spread::square;
  for (int64_t batch = 0; batch < batches; ++batch) {
    const int64_t i0 = w.x0 + batch * kBatch;
    const int n = int(std::min<int64_t>(kBatch, w.x1 - i0));
    window.start(i0, n);
    for (int64_t j = w.y0; j < w.y1; ++j) {
      const int64_t at = (j - w.y0) * batches + batch;
      if (low[at] > high[at] || low[at] >= out.stop || high[at] < out.first) continue;
      std::fill_n(lost, kBatch, uint8_t(0));
      window.corners(j, c, lost);
      if (square) {
        place(c, p);
        int32_t widest = 2;
        for (int k = 0; k < n; ++k)
          if (p.valid[k] && p.width[k] <= kMaxSpan && p.height[k] <= kMaxSpan)
            widest = std::max(widest, std::max(p.width[k], p.height[k]));
        batch_shares.n = widest;
        overlap_shares(widest, p.turned, c, p.area, batch_shares.share);
      }
      for (int k = 0; k < n; ++k) {
        if (lost[k] || (square && !p.valid[k])) continue;
        if (square) {
          const int64_t x0 = std::max(p.x[k], 0), x1 = std::min(int64_t(p.x[k]) + p.width[k], out.nx);
          if (x0 >= x1 || !lattice.meets(x0, x1, p.y[k], int64_t(p.y[k]) + p.height[k])) continue;
        }
        const double noise = noise_of(image, j, i0 + k);
        if (noise == 0) continue;
        if (!square) {
          drop.product(image, c.x[0][k], c.y[0][k], out.nx);
        } else if (p.width[k] <= kMaxSpan && p.height[k] <= kMaxSpan) {
          drop.of_batch(batch_shares, p, k, out.nx);
        } else {
          drop.wide(c, p, k, out.nx);
        }
        if (drop.nx > 0) add_drop(drop, noise, lattice, out);
      }
    }
  }
}

}  // namespace skyloom::drizzle
