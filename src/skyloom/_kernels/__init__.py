"""Numerical loops, compiled from C++: pure functions on array views, which release the GIL and hold no state."""

from skyloom._kernels._ext import (
    clean_windows,
    convolve_varying,
    expand_grid,
    interpolate,
    pixel_area_ratio,
    simd_level,
)

__all__ = [
    "clean_windows",
    "convolve_varying",
    "expand_grid",
    "interpolate",
    "pixel_area_ratio",
    "simd_level",
]
