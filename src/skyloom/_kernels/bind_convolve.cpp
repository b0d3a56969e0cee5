#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "bind_checks.hpp"
#include "convolve.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Plane = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutPlane = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Planes = nb::ndarray<const double, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

template <class A, class B>
void need_same(const A& a, const B& b, const char* message) {
  need(a.shape(0) == b.shape(0) && a.shape(1) == b.shape(1), message);
}

void convolve_varying(Plane data, std::optional<Plane> variance, std::optional<Plane> usable, Planes kernel, int order,
                      std::tuple<double, double> centre, std::tuple<double, double> scale, OutPlane out,
                      std::optional<OutPlane> out_variance, std::optional<OutPlane> out_lost,
                      std::optional<OutPlane> out_kept, std::int64_t columns,
                      std::tuple<std::int64_t, std::int64_t> rows, bool linear, bool constant_square,
                      int square_margin) {
  const auto [row_start, row_stop] = rows;
  const auto ky = static_cast<std::int64_t>(kernel.shape(1)), kx = static_cast<std::int64_t>(kernel.shape(2));
  const auto height = static_cast<std::int64_t>(out.shape(0)), width = static_cast<std::int64_t>(out.shape(1));
  need(order >= 0 && order <= skyloom::kConvolveMaxOrder, "order must be 0 to 4");
  need(static_cast<int>(kernel.shape(0)) == (order + 1) * (order + 2) / 2, "kernel needs (order+1)(order+2)/2 planes");
  need(ky % 2 == 1 && kx % 2 == 1, "kernel planes must have odd sides");
  need(width % skyloom::kConvolveChunk == 0, "the output's width must be a multiple of 16");
  need(static_cast<std::int64_t>(data.shape(0)) == height + ky - 1 &&
           static_cast<std::int64_t>(data.shape(1)) == width + kx - 1,
       "data must be the output's shape padded by half the kernel on each side");
  need(0 <= square_margin && 2 * square_margin < std::min(ky, kx), "square_margin must leave a pixel");
  need(0 < columns && columns <= width, "columns outside of the output");
  need(0 <= row_start && row_start <= row_stop && row_stop <= height, "rows outside of the output");
  need(variance.has_value() == out_variance.has_value(), "variance and out_variance go together");
  need(usable.has_value() == out_lost.has_value() && usable.has_value() == out_kept.has_value(),
       "usable, out_lost and out_kept go together");
  if (variance) need_same(*variance, data, "variance must have the shape of data");
  if (usable) need_same(*usable, data, "usable must have the shape of data");
  if (out_variance) need_same(*out_variance, out, "out_variance must have the shape of out");
  if (out_lost) need_same(*out_lost, out, "out_lost must have the shape of out");
  if (out_kept) need_same(*out_kept, out, "out_kept must have the shape of out");
  const skyloom::VaryingKernel varying{kernel.data(),       static_cast<int>(ky), static_cast<int>(kx),
                                       order,               std::get<0>(centre),  std::get<0>(scale),
                                       std::get<1>(centre), std::get<1>(scale),
                                       linear,              constant_square,     square_margin};
  const skyloom::ConvolvePlanes planes{data.data(),
                                       variance ? variance->data() : nullptr,
                                       usable ? usable->data() : nullptr,
                                       static_cast<std::int64_t>(data.shape(1)),
                                       out.data(),
                                       out_variance ? out_variance->data() : nullptr,
                                       out_lost ? out_lost->data() : nullptr,
                                       out_kept ? out_kept->data() : nullptr,
                                       width,
                                       columns};
  nb::gil_scoped_release release;
  skyloom::convolve_varying(varying, planes, row_start, row_stop);
}

}  // namespace

void bind_convolve(nb::module_& m) {
  m.def("convolve_varying", &convolve_varying, "data"_a, "variance"_a.none(), "usable"_a.none(), "kernel"_a, "order"_a,
        "centre"_a, "scale"_a, "out"_a, "out_variance"_a.none(), "out_lost"_a.none(), "out_kept"_a.none(), "columns"_a, "rows"_a,
        "linear"_a = false, "constant_square"_a = false, "square_margin"_a = 0,
        "Convolve some rows with a kernel that is a polynomial of position; see skyloom.convolution.");
}
