"""The names of `stcal.resample.utils`."""

from skyloom.resampling.pipeline_utils import (
    _get_boundary_points,  # noqa: F401  not public there either
    _get_inverse_variance,  # noqa: F401  tests import it
    build_driz_weight,
    build_mask,
    calc_pixmap,
    compute_mean_pixel_area,
    get_tmeasure,
    is_flux_density,
    is_imaging_wcs,
    resample_range,
)

__all__ = [
    "build_driz_weight",
    "build_mask",
    "calc_pixmap",
    "compute_mean_pixel_area",
    "get_tmeasure",
    "is_flux_density",
    "is_imaging_wcs",
    "resample_range",
]
