"""Which pixels a model does not describe: clipping by the scatter that pixels of the same brightness have."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skyloom.background import MAD_TO_SIGMA
from skyloom.exposure import BoolArray, FloatArray

_FEWEST = 50
"""Pixels that a class of brightness has at least; a brighter one of fewer is joined to the one below."""

_SAMPLE = 65536

_SKY = 3.0
"""Pixels whose signal is less than so many deviations of a pixel count as sky."""


def outliers(
    residual: FloatArray, sigma: npt.ArrayLike, signal: FloatArray, usable: BoolArray, threshold: float
) -> BoolArray:
    """Return True for usable pixels whose residual is beyond `threshold` times the scatter for their brightness.

    The residuals in units of the noise, z, scatter more under bright stars than on the sky: by photon noise, if sigma
    does not know it, and because no model of a point spread function is perfect. Clipped with one threshold, the cores
    of stars would leave the fit, and the kernel's sum would come out too small. The scatter is therefore measured, by
    the median absolute deviation, in classes of brightness that double from one to the next, and never falls with
    brightness.

    Parameters
    ----------
    residual, sigma, signal : ndarray, shape (ny, nx)
        Image minus model, the expected noise of it (one number, if it is the same for all), and the model without its
        background.
    usable : ndarray of bool, shape (ny, nx)
    threshold : float
    """
    sigma = np.asarray(sigma, np.float32)
    z = np.abs(residual / sigma).astype(np.float32, copy=False)
    # where the classes begin need not be exact: a part of the pixels tells
    overall = _scatter(z[usable][:: max(1, z.size // _SAMPLE)])
    if overall == 0:
        return usable & (z > 0)
    bright = usable & (signal > np.float32(_SKY * overall) * sigma)
    sky = usable & ~bright
    largest = _scatter(z[sky]) if sky.any() else overall
    clipped = sky & (z > threshold * largest)
    places = np.flatnonzero(bright)
    z_bright = z.ravel()[places]
    level = np.log2(signal.ravel()[places] / (_SKY * overall * np.broadcast_to(sigma, z.shape).ravel()[places]))
    level = np.maximum(level.astype(int), 0)
    for k in range(int(level.max(initial=-1)) + 1):
        of_class = np.flatnonzero(level == k)
        if of_class.size >= _FEWEST:
            largest = max(largest, _scatter(z_bright[of_class]))
        clipped.ravel()[places[of_class]] = z_bright[of_class] > threshold * largest
    return clipped


def _scatter(size: npt.NDArray[np.float32]) -> float:
    """Return the deviation about 0 of Gaussian values of these absolute values, not misled by outliers."""
    return MAD_TO_SIGMA * float(np.median(size))
