"""Bring pixels onto another grid, once, with every plane."""

from skyloom.resampling.blot import blot_image
from skyloom.resampling.coadd import Coadd, CoaddOptions, coadd
from skyloom.resampling.context import decode_context
from skyloom.resampling.correlation import CovarianceMap, aperture_error, circle_weights, noise_ratio
from skyloom.resampling.covariance import CovarianceSums, Spreading
from skyloom.resampling.drizzle import Drizzle
from skyloom.resampling.maps import SampledMap, compose, invert_map, pixel_area_ratio, sample_map, wcs_map
from skyloom.resampling.outliers import RejectionOptions
from skyloom.resampling.output_wcs import output_wcs_from
from skyloom.resampling.pixmap import calc_pixmap, estimate_pixel_scale_ratio
from skyloom.resampling.resample import resample
from skyloom.resampling.resample_models import Resample

__all__ = [
    "Coadd",
    "CoaddOptions",
    "CovarianceMap",
    "CovarianceSums",
    "Drizzle",
    "RejectionOptions",
    "Resample",
    "SampledMap",
    "Spreading",
    "aperture_error",
    "blot_image",
    "calc_pixmap",
    "circle_weights",
    "coadd",
    "compose",
    "decode_context",
    "estimate_pixel_scale_ratio",
    "invert_map",
    "noise_ratio",
    "output_wcs_from",
    "pixel_area_ratio",
    "resample",
    "sample_map",
    "wcs_map",
]
