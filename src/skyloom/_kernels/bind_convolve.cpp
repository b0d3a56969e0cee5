#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_convolve(nb::module_& m) { (void)m; }
