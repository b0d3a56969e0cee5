#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_interpolate(nb::module_& m) { (void)m; }
