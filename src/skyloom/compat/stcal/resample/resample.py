"""The names of `stcal.resample.resample`."""

from skyloom.resampling.pixel_area import UnsupportedWCSError, compute_mean_pixel_area
from skyloom.resampling.resample_models import Resample

__all__ = ["Resample", "UnsupportedWCSError", "compute_mean_pixel_area"]
