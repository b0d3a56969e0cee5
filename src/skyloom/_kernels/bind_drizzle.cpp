#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_drizzle(nb::module_& m) { (void)m; }
