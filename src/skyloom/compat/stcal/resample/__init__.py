"""What `stcal.resample` 1.20 offers: the class that the pipelines of JWST and Roman derive theirs from."""

from skyloom.compat.stcal.resample.resample import Resample, UnsupportedWCSError, compute_mean_pixel_area

__all__ = ["Resample", "UnsupportedWCSError", "compute_mean_pixel_area"]
