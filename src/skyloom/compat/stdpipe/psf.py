"""``stdpipe.psf``: what skyloom serves of it."""

from skyloom.psf.functions import (
    bilinear_interpolate,
    create_psf_model,
    enclosed_psf_fraction,
    get_psf_stamp,
    get_supersampled_psf_stamp,
    load_psf,
    place_psf_stamp,
    run_psfex,
    select_psf_seeds,
)

__all__ = [
    "bilinear_interpolate",
    "create_psf_model",
    "enclosed_psf_fraction",
    "get_psf_stamp",
    "get_supersampled_psf_stamp",
    "load_psf",
    "place_psf_stamp",
    "run_psfex",
    "select_psf_seeds",
]
