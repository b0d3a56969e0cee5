"""Bring pixels onto another grid, once, with every plane."""

from skyloom.resampling.maps import (
    SampledMap,
    compose,
    invert_map,
    pixel_area_ratio,
    sample_map,
    wcs_map,
)
from skyloom.resampling.output_wcs import output_wcs_from
from skyloom.resampling.resample import resample

__all__ = [
    "SampledMap",
    "compose",
    "invert_map",
    "output_wcs_from",
    "pixel_area_ratio",
    "resample",
    "sample_map",
    "wcs_map",
]
