"""Numerical loops, compiled from C++: pure functions on array views, which release the GIL and hold no state."""

from skyloom._kernels._ext import (
    SPREAD_BATCH,
    SPREAD_SPANS,
    DrizzleFootprint,
    DrizzleInput,
    DrizzleKernel,
    DrizzleOutput,
    SpreadImage,
    blot,
    clean_windows,
    convolve_varying,
    drizzle_separable,
    drizzle_square,
    expand_grid,
    interpolate,
    pixel_area_ratio,
    simd_level,
)

__all__ = [
    "SPREAD_BATCH",
    "SPREAD_SPANS",
    "DrizzleFootprint",
    "DrizzleInput",
    "DrizzleKernel",
    "DrizzleOutput",
    "SpreadImage",
    "blot",
    "clean_windows",
    "convolve_varying",
    "drizzle_separable",
    "drizzle_square",
    "expand_grid",
    "interpolate",
    "pixel_area_ratio",
    "simd_level",
]
