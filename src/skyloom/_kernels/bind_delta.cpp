#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <tuple>

#include "bind_checks.hpp"
#include "delta.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T>
using Plane = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using OutPlane = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Sums = nb::ndarray<double, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Flat = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Pair = std::tuple<double, double>;
using Kernel = std::tuple<int, int>;
using Rows = std::tuple<std::int64_t, std::int64_t>;

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

int order_of(const Flat& flat) {
  int order = 0;
  while ((order + 1) * (order + 2) / 2 < static_cast<int>(flat.shape(0))) ++order;
  need((order + 1) * (order + 2) / 2 == static_cast<int>(flat.shape(0)), "flat needs (order+1)(order+2)/2 numbers");
  return order;
}

template <class T>
double project(Plane<T> padded, Plane<T> image, Plane<float> weight, Kernel kernel, int order, Pair centre, Pair scale,
               Rows rows, OutPlane<double> out, Flat flat) {
  const auto grid = grid_of(padded, image, kernel, order, centre, scale, rows);
  need(weight.shape(0) == image.shape(0) && weight.shape(1) == image.shape(1), "weight must have the image's shape");
  need(static_cast<int>(out.shape(0)) == grid.terms() && static_cast<int>(out.shape(1)) == grid.taps(),
       "out must have the shape (terms, taps)");
  const int flat_order = order_of(flat);
  nb::gil_scoped_release release;
  return skyloom::delta_project(grid, padded.data(), image.data(), weight.data(), std::get<0>(rows), std::get<1>(rows),
                                flat_order, out.data(), flat.data());
}

template <class T>
void apply(Plane<T> padded, Plane<double> coefficients, Flat flat, Kernel kernel, int order, Pair centre, Pair scale,
           Rows rows, OutPlane<T> out) {
  const auto grid = grid_of(padded, out, kernel, order, centre, scale, rows);
  need(static_cast<int>(coefficients.shape(0)) == grid.terms() && static_cast<int>(coefficients.shape(1)) == grid.taps(),
       "coefficients must have the shape (terms, taps)");
  const int flat_order = order_of(flat);
  nb::gil_scoped_release release;
  skyloom::delta_apply(grid, padded.data(), coefficients.data(), flat_order, flat.data(), std::get<0>(rows),
                       std::get<1>(rows), out.data());
}

template <class T>
void bind_products(nb::module_& m) {
  m.def("delta_project", &project<T>, "padded"_a, "image"_a, "weight"_a, "kernel"_a, "order"_a, "centre"_a, "scale"_a,
        "rows"_a, "out"_a, "flat"_a,
        "Add sums of weight image X^i Y^j R(p - a), and of weight image X^k Y^l, over some rows; return that of weight image^2.");
  m.def("delta_apply", &apply<T>, "padded"_a, "coefficients"_a, "flat"_a, "kernel"_a, "order"_a, "centre"_a, "scale"_a,
        "rows"_a, "out"_a,
        "Fill some rows with the image convolved with a delta-function kernel that varies over the field, plus a polynomial.");
}

}  // namespace

void bind_delta(nb::module_& m) {
  m.def("delta_gram", &gram, "padded"_a, "weight"_a, "kernel"_a, "order"_a, "centre"_a, "scale"_a, "cell"_a, "rows"_a,
        "out"_a, "Add sums of weight X^i Y^j R(p - a) R(p - a') over some rows; the lower triangles.");
  bind_products<float>(m);
  bind_products<double>(m);
}
