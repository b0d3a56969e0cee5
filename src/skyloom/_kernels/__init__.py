"""Numerical loops, compiled from C++: pure functions on array views, which release the GIL and hold no state."""

from skyloom._kernels._ext import simd_level

__all__ = ["simd_level"]
