#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "local_signal.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T>
using In = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T, auto Kernel>
void local_signal(In<T> data, In<std::uint32_t> mask, std::uint32_t unusable, double level, double sky,
                  double per_photon, double floor, std::ptrdiff_t row_start, std::ptrdiff_t row_stop, Out<T> signal) {
  const auto ny = data.shape(0), nx = data.shape(1);
  if (mask.shape(0) != ny || mask.shape(1) != nx || signal.shape(0) != ny || signal.shape(1) != nx)
    throw nb::value_error("data, mask and signal must have the same shape");
  if (row_start < 0 || row_start > row_stop || std::size_t(row_stop) > ny) throw nb::value_error("rows out of range");
  nb::gil_scoped_release release;
  Kernel({data.data(), mask.data(), unusable, std::ptrdiff_t(ny), std::ptrdiff_t(nx), signal.data()},
         {level, sky, per_photon, floor}, row_start, row_stop);
}

template <class T, auto Kernel>
void define(nb::module_& m) {
  m.def("local_signal", &local_signal<T, Kernel>, "data"_a.noconvert(), "mask"_a.noconvert(), "unusable"_a, "level"_a,
        "sky"_a, "per_photon"_a, "floor"_a, "row_start"_a, "row_stop"_a, "signal"_a.noconvert(),
        "Estimate the expected value of each pixel by local statistics, from coarse to fine.");
}

}  // namespace

void bind_noise(nb::module_& m) {
  define<float, &skyloom::local_signal_f32>(m);
  define<double, &skyloom::local_signal_f64>(m);
}
