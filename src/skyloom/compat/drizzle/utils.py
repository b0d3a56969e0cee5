"""The names of `drizzle.utils`."""

from skyloom.resampling.context import decode_context
from skyloom.resampling.pixmap import calc_pixmap, estimate_pixel_scale_ratio
from skyloom.resampling.pixmap import estimate_pixel_scale as _estimate_pixel_scale  # noqa: F401  tests import it

__all__ = ["calc_pixmap", "decode_context", "estimate_pixel_scale_ratio"]
