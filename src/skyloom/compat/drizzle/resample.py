"""The names of `drizzle.resample`."""

from skyloom.resampling.blot import blot_image
from skyloom.resampling.context import CTX_PLANE_BITS
from skyloom.resampling.drizzle import SUPPORTED_DRIZZLE_KERNELS, Drizzle

__all__ = ["CTX_PLANE_BITS", "SUPPORTED_DRIZZLE_KERNELS", "Drizzle", "blot_image"]
