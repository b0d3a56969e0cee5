#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>

#include <array>
#include <optional>

#include "bind_planes.hpp"
#include "drizzle_covariance.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace skyloom::drizzle;

namespace {

using Bounds = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<int64_t, nb::shape<2, kSpans>, nb::c_contig, nb::device::cpu>;
using Sums = nb::ndarray<double, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

// The arrays stay alive as long as this object: Python hands it to every thread.
struct BoundImage : SpreadImage {
  Map pixmap;
  std::optional<ReadPlane> planes[3];
};

Plane plane_if(const std::optional<ReadPlane>& a, size_t ny, size_t nx) {
  return a ? plane_of(*a, ny, nx) : Plane{};
}

void make_image(BoundImage* self, Map pixmap, std::array<int64_t, 4> window, std::optional<ReadPlane> data,
                std::optional<ReadPlane> weight, std::optional<ReadPlane> variance, int kernel, double pixfrac,
                double ratio, bool normalised, double weight_scale) {
  need(pixmap.shape(2) == 2, "a pixel map has the shape (ny, nx, 2)");
  need(kernel >= 0 && kernel <= 1 + int(Shape::lanczos3), "no such kernel");
  const size_t ny = pixmap.shape(0), nx = pixmap.shape(1);
  const Window w{window[0], window[1], window[2], window[3]};
  need(w.x0 >= 0 && w.x0 < w.x1 && w.x1 <= int64_t(nx) && w.y0 >= 0 && w.y0 < w.y1 && w.y1 <= int64_t(ny),
       "the window leaves the image");
  new (self) BoundImage();
  self->map = {pixmap.data(), int64_t(ny), int64_t(nx), pixmap.stride(0), pixmap.stride(1), pixmap.stride(2), 1 / ratio};
  self->window = w;
  self->half = pixfrac / 2;
  if (kernel > 0) self->kernel = Kernel(Shape(kernel - 1), pixfrac, ratio, normalised);
  self->data = plane_if(data, ny, nx);
  self->weight = plane_if(weight, ny, nx);
  self->variance = plane_if(variance, ny, nx);
  self->weight_scale = weight_scale;
  self->pixmap = std::move(pixmap);
  self->planes[0] = std::move(data);
  self->planes[1] = std::move(weight);
  self->planes[2] = std::move(variance);
}

void need_bounds(const BoundImage& image, const Bounds& low, const Bounds& high) {
  const Window& w = image.window;
  const size_t rows = size_t(w.y1 - w.y0), batches = size_t((w.x1 - w.x0 + kBatch - 1) / kBatch);
  need(low.shape(0) == rows && high.shape(0) == rows && low.shape(1) == batches && high.shape(1) == batches,
       "the bounds have the wrong shape");
}

void rows_reached(const BoundImage& image, Bounds low, Bounds high, Counts spans, int64_t first, int64_t stop) {
  need_bounds(image, low, high);
  need(first >= image.window.y0 && first < stop && stop <= image.window.y1, "rows outside of the window");
  nb::gil_scoped_release release;
  find_rows(image, first, stop, low.data(), high.data(), spans.data());
}

void sum_products(const BoundImage& image, Bounds low, Bounds high, std::array<int64_t, 2> frame, int every, int step,
                  std::array<int64_t, 2> rows, Sums sums) {
  need_bounds(image, low, high);
  const auto [ny, nx] = frame;
  need(every >= 1 && step >= 0 && int64_t(sums.shape(0)) == ny && int64_t(sums.shape(1)) == (nx + every - 1) / every &&
           sums.shape(3) % 2 == 1,
       "the sums have the wrong shape");
  need(rows[0] >= 0 && rows[0] <= rows[1] && rows[1] <= ny, "rows outside of the frame");
  const Products out{nx, ny, rows[0], rows[1], every, step, int(sums.shape(3) / 2), int(sums.shape(2)) - 1, sums.data()};
  nb::gil_scoped_release release;
  add_products(image, low.data(), high.data(), out);
}

}  // namespace

void bind_covariance(nb::module_& m) {
  nb::class_<BoundImage>(m, "SpreadImage", "One image and how its pixels are spread over the output.")
      .def("__init__", &make_image, "pixmap"_a, "window"_a, "data"_a.none(), "weight"_a.none(), "variance"_a.none(),
           nb::kw_only(), "kernel"_a, "pixfrac"_a, "ratio"_a, "normalised"_a, "weight_scale"_a)
      .def("rows_reached", &rows_reached, "low"_a, "high"_a, "spans"_a, "first"_a, "stop"_a,
           "Find the output rows that the batches of some input rows reach, and count the drops by their size.")
      .def("sum_products", &sum_products, "low"_a, "high"_a, "frame"_a, "every"_a, "step"_a, "rows"_a,
           "sums"_a, "Add the products of shares for the chosen pixels in some rows of the output.");
  m.attr("SPREAD_SPANS") = kSpans;
  m.attr("SPREAD_BATCH") = kBatch;
}
