"""Which pixels a model does not describe: clipping by the scatter that pixels of the same brightness have."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skyloom.background import MAD_TO_SIGMA
from skyloom.subtraction.sfft.design import Float64Array

_FEWEST = 50
"""Pixels that a class of brightness has at least; a brighter one of fewer is joined to the one below."""

_SKY = 3.0
"""Pixels whose signal is less than so many deviations of a pixel count as sky."""


def outliers(
    residual: Float64Array, sigma: Float64Array, signal: Float64Array, usable: npt.NDArray[np.bool_], threshold: float
) -> npt.NDArray[np.bool_]:
    """Return True for usable pixels whose residual is beyond `threshold` times the scatter for their brightness.

    The residuals in units of the noise, z, scatter more under bright stars than on the sky: by photon noise, if sigma
    does not know it, and because no model of a point spread function is perfect. Clipped with one threshold, the cores
    of stars would leave the fit, and the kernel's sum would come out too small. The scatter is therefore measured, by
    the median absolute deviation, in classes of brightness that double from one to the next, and never falls with
    brightness.

    Parameters
    ----------
    residual, sigma, signal : ndarray, shape (ny, nx)
        Image minus model, the expected noise of it, and the model without its background.
    usable : ndarray of bool, shape (ny, nx)
    threshold : float
    """
    z = residual[usable] / sigma[usable]
    bright = signal[usable] / sigma[usable]
    sky = _scatter(z)
    level = np.zeros(z.size, np.int8)
    above = np.flatnonzero(bright > _SKY * sky)
    level[above] = 1 + np.log2(bright[above] / (_SKY * sky)).astype(np.int8) if sky > 0 else 0
    scale = np.full(z.size, sky)
    largest = _scatter(z[level == 0]) if (level == 0).any() else sky
    scale[level == 0] = largest
    for k in range(1, int(level.max()) + 1):
        of_class = np.flatnonzero(level == k)
        if of_class.size >= _FEWEST:
            largest = max(largest, _scatter(z[of_class]))
        scale[of_class] = largest
    clipped = np.zeros(usable.shape, bool)
    clipped[usable] = np.abs(z) > threshold * scale
    return clipped


def _scatter(z: Float64Array) -> float:
    """Return the deviation about 0 of Gaussian values, not misled by outliers."""
    return MAD_TO_SIGMA * float(np.median(np.abs(z)))
