"""Sources that changed, in the stamps of a fit: their pixels must not pull the kernel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from skyloom.exposure import BoolArray
from skyloom.subtraction.basis import Float64Array

THRESHOLD = 5.0
"""Standard deviations of a smoothed residual that is a source of its own."""
SPARED = 0.02
"""Share of the light that was subtracted; less is no change but a misfit, of which the stamp's chi2 tells."""
SPIKE = 6.0
"""Standard deviations to which single pixels are cut before: one of them alone is no source."""


def changed_pixels(
    residuals: Float64Array, signals: Float64Array, variances: Float64Array, usable: BoolArray, *, width: float
) -> BoolArray:
    """Return the pixels of and around sources that only one image has, or that are brighter in one.

    With a Gaussian G of the seeing and w = 1/V, the residual r is filtered like a star, G o w r, and compared with the
    deviation of that, sqrt(G^2 o w), and with the part `SPARED` of what the subtracted light m gives, G o w abs(m):
    more than the sum of `THRESHOLD` deviations and that part is a transient or a variable star, found far below the
    noise of single pixels. Returned is a box of pixels around it, as wide as the seeing.

    Parameters
    ----------
    residuals, signals, variances : ndarray, shape (n, side, side)
        r, m and V of each stamp.
    usable : ndarray of bool, shape (n, side, side)
    width : float
        FWHM of the stars, pixels.
    """
    side = residuals.shape[-1]
    distance = np.subtract.outer(np.arange(side), np.arange(side))
    gauss = np.exp(-4 * np.log(2) * (distance / width) ** 2)  # the filter along one axis, as a matrix

    def filtered(planes: Float64Array, along: Float64Array) -> Float64Array:
        return along @ planes @ along

    residuals, signals = (np.where(usable, plane, 0.0) for plane in (residuals, signals))
    variances = np.where(usable, variances, 1.0)
    weights, sigma = usable / variances, np.sqrt(variances)
    seen = filtered(weights * np.clip(residuals, -SPIKE * sigma, SPIKE * sigma), gauss)
    noise = np.sqrt(filtered(weights, gauss**2))
    light = filtered(weights * np.abs(signals), gauss)
    found: npt.NDArray[np.bool_] = np.abs(seen) > THRESHOLD * noise + SPARED * light
    if not found.any():
        return found
    reach = 2 * max(1, round(width / 2)) + 1
    grown: BoolArray = ndimage.maximum_filter(found, size=(1, reach, reach), mode="constant", cval=0)
    return grown
