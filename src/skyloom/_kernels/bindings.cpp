// The extension module skyloom._kernels._ext. Each family of kernels binds itself in its own bind_*.cpp.
#include <nanobind/nanobind.h>

#include "isa.hpp"

namespace nb = nanobind;

void bind_drizzle(nb::module_& m);
void bind_convolve(nb::module_& m);
void bind_interpolate(nb::module_& m);
void bind_correlate(nb::module_& m);
void bind_covariance(nb::module_& m);
void bind_delta(nb::module_& m);
void bind_noise(nb::module_& m);
void bind_stamps(nb::module_& m);

NB_MODULE(_ext, m) {
  m.doc() = "Numerical loops of skyloom. Pure functions on array views; the GIL is released inside.";
  m.def("simd_level", [] { return skyloom::isa_name(skyloom::current_isa()); },
        "The vector instruction set in use: 'avx512', 'avx2' or 'baseline'.");
  bind_drizzle(m);
  bind_convolve(m);
  bind_interpolate(m);
  bind_correlate(m);
  bind_covariance(m);
  bind_delta(m);
  bind_noise(m);
  bind_stamps(m);
}
