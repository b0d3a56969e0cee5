#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <stdexcept>
#include <tuple>

#include "delta.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T>
using Plane = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutPlane = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Sums = nb::ndarray<double, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Pair = std::tuple<double, double>;
using Kernel = std::tuple<int, int>;
using Rows = std::tuple<std::int64_t, std::int64_t>;

void need(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

template <class A, class B>
skyloom::DeltaGrid grid_of(const A& padded, const B& image, Kernel kernel, int order, Pair centre, Pair scale,
                           Rows rows) {
  const auto [ky, kx] = kernel;
  const auto [start, stop] = rows;
  const auto ny = static_cast<std::int64_t>(image.shape(0)), nx = static_cast<std::int64_t>(image.shape(1));
  need(ky > 0 && kx > 0 && ky % 2 == 1 && kx % 2 == 1, "the kernel must have odd sides");
  need(order >= 0, "order must not be negative");
  need(static_cast<std::int64_t>(padded.shape(0)) == ny + ky - 1 && static_cast<std::int64_t>(padded.shape(1)) == nx + kx - 1,
       "padded must be the image's shape padded by half the kernel on each side");
  need(0 <= start && start <= stop && stop <= ny, "rows outside of the image");
  return {ny, nx, ky, kx, order, std::get<0>(centre), std::get<0>(scale), std::get<1>(centre), std::get<1>(scale)};
}

void gram(Plane<float> padded, Plane<float> weight, Kernel kernel, int order, Pair centre, Pair scale, int cell,
          Rows rows, Sums out) {
  const auto grid = grid_of(padded, weight, kernel, order, centre, scale, rows);
  need(static_cast<int>(out.shape(0)) == grid.terms() && static_cast<int>(out.shape(1)) == grid.taps() &&
           static_cast<int>(out.shape(2)) == grid.taps(),
       "out must have the shape (terms, taps, taps)");
  need(cell > 0, "a cell needs a pixel");
  nb::gil_scoped_release release;
  skyloom::delta_gram(grid, padded.data(), weight.data(), cell, std::get<0>(rows), std::get<1>(rows), out.data());
}

void project(Plane<double> padded, Plane<double> image, Kernel kernel, int order, Pair centre, Pair scale, Rows rows,
             OutPlane out) {
  const auto grid = grid_of(padded, image, kernel, order, centre, scale, rows);
  need(static_cast<int>(out.shape(0)) == grid.terms() && static_cast<int>(out.shape(1)) == grid.taps(),
       "out must have the shape (terms, taps)");
  nb::gil_scoped_release release;
  skyloom::delta_project(grid, padded.data(), image.data(), std::get<0>(rows), std::get<1>(rows), out.data());
}

void apply(Plane<double> padded, Plane<double> coefficients, Kernel kernel, int order, Pair centre, Pair scale,
           Rows rows, OutPlane out) {
  const auto grid = grid_of(padded, out, kernel, order, centre, scale, rows);
  need(static_cast<int>(coefficients.shape(0)) == grid.terms() && static_cast<int>(coefficients.shape(1)) == grid.taps(),
       "coefficients must have the shape (terms, taps)");
  nb::gil_scoped_release release;
  skyloom::delta_apply(grid, padded.data(), coefficients.data(), std::get<0>(rows), std::get<1>(rows), out.data());
}

}  // namespace

void bind_delta(nb::module_& m) {
  m.def("delta_gram", &gram, "padded"_a, "weight"_a, "kernel"_a, "order"_a, "centre"_a, "scale"_a, "cell"_a, "rows"_a,
        "out"_a, "Add sums of weight X^i Y^j R(p - a) R(p - a') over some rows; the lower triangles.");
  m.def("delta_project", &project, "padded"_a, "image"_a, "kernel"_a, "order"_a, "centre"_a, "scale"_a, "rows"_a,
        "out"_a, "Add sums of image X^i Y^j R(p - a) over some rows.");
  m.def("delta_apply", &apply, "padded"_a, "coefficients"_a, "kernel"_a, "order"_a, "centre"_a, "scale"_a, "rows"_a,
        "out"_a, "Fill some rows with the image convolved with a delta-function kernel that varies over the field.");
}
