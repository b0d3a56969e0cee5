"""Bring pixels onto another grid, once, with every plane."""

from skyloom.resampling.blot import blot_image
from skyloom.resampling.context import decode_context
from skyloom.resampling.correlation import CovarianceMap, aperture_error, circle_weights, noise_ratio
from skyloom.resampling.covariance import CovarianceSums, Spreading
from skyloom.resampling.drizzle import Drizzle
from skyloom.resampling.maps import SampledMap, compose, invert_map, pixel_area_ratio, sample_map
from skyloom.resampling.output_wcs import grid_of, output_wcs_from
from skyloom.resampling.pixmap import calc_pixmap, estimate_pixel_scale_ratio
from skyloom.resampling.resample import resample
from skyloom.resampling.resample_models import Resample
from skyloom.resampling.wcs_maps import wcs_map

__all__ = [
    "CovarianceMap",
    "CovarianceSums",
    "Drizzle",
    "Resample",
    "SampledMap",
    "Spreading",
    "aperture_error",
    "blot_image",
    "calc_pixmap",
    "circle_weights",
    "compose",
    "decode_context",
    "estimate_pixel_scale_ratio",
    "grid_of",
    "invert_map",
    "noise_ratio",
    "output_wcs_from",
    "pixel_area_ratio",
    "resample",
    "sample_map",
    "wcs_map",
]
