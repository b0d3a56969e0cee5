"""Noise of the pixels of an image that came without: background and sources."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import sep
from scipy import ndimage

from skyloom.errors import NoUsableDataError
from skyloom.exposure import BoolArray

Float64Array = npt.NDArray[np.float64]

_SMOOTH = np.array([0.25, 0.5, 0.25])
_SMOOTHED_NOISE = float(np.sum(_SMOOTH**2))  # deviation of smoothed white noise of deviation 1
_SOURCE = 2.0


def noise_map(image: Float64Array, bad: BoolArray, gain: float | None) -> tuple[Float64Array, Float64Array]:
    """Return the deviation of each pixel, that of the background and photon noise of sources, and the background.

    sigma^2 = rms^2 + F/gain, where F is the image above its background, smoothed over 3 x 3 pixels, and 0 where that is
    within two deviations. (A variance from the pixel's own value would be small where the pixel happens to be low,
    give it a large weight, and pull every weighted mean down.)

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        Finite where not bad.
    bad : ndarray of bool, shape (ny, nx)
    gain : float or None
        e-/ADU; None: the noise of the background only.

    Raises
    ------
    NoUsableDataError
        All pixels are bad.
    """
    if bad.all():
        raise NoUsableDataError("No pixel can be used for a noise map: all are masked or NaN.")
    # the level is taken off first: sep's sums of squares lose digits to a high sky
    level = float(np.median(image[~bad]))
    data = np.where(bad, 0.0, image - level)
    background = sep.Background(data, mask=bad)
    rms, plane = background.rms(dtype=np.float64), background.back(dtype=np.float64)
    if gain is None:
        return rms, plane + level
    excess = np.where(bad, 0.0, data - plane)
    for axis in (0, 1):
        excess = ndimage.convolve1d(excess, _SMOOTH, axis=axis, mode="nearest")
    source = np.where(excess > _SOURCE * _SMOOTHED_NOISE * rms, excess, 0.0)
    return np.sqrt(rms**2 + source / gain), plane + level
