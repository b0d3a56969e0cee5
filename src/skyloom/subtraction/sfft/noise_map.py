"""Noise of the pixels of an image that came without: background and sources."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import sep

from skyloom.errors import NoUsableDataError
from skyloom.exposure import BoolArray

Float64Array = npt.NDArray[np.float64]

_SMOOTH = np.array([0.25, 0.5, 0.25])
_SMOOTHED_NOISE = float(np.sum(_SMOOTH**2))  # deviation of smoothed white noise of deviation 1
_SOURCE = 2.0
_SAMPLE = 65536


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
    # the level is taken off first: single precision, and sums of squares, lose digits to a high sky
    level = rough_level(image, ~bad)
    deviation = image - level
    deviation[bad] = 0
    unit = power_of_two(deviation, ~bad)
    deviation *= 1 / unit
    data = deviation.astype(np.float32)
    background = sep.Background(data, mask=bad)
    rms, plane = background.rms(dtype=np.float32), background.back(dtype=np.float32)
    sky = np.multiply(plane, unit, dtype=np.float64)
    sky += level
    if gain is None:
        return rms * np.float64(unit), sky
    data -= plane
    data[bad] = 0
    data = _smoothed(_smoothed(data).T).T
    data *= data > np.float32(_SOURCE * _SMOOTHED_NOISE) * rms
    data /= np.float32(gain * unit)
    data += rms * rms
    noise = np.sqrt(data, dtype=np.float64)
    noise *= unit
    return noise, sky


def _smoothed(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the plane, each pixel averaged with those above and below it; at the border they are like it."""
    side, middle = _SMOOTH[0], _SMOOTH[1]
    out = plane * np.float32(middle)
    quarter = plane * np.float32(side)
    out[1:] += quarter[:-1]
    out[0] += quarter[0]
    out[:-1] += quarter[1:]
    out[-1] += quarter[-1]
    return out


def _sample(image: Float64Array, good: BoolArray) -> Float64Array:
    """Return some good pixels, evenly spread."""
    values = image.ravel() if good.all() else image[good]
    return values[:: max(1, values.size // _SAMPLE)]


def rough_level(image: Float64Array, good: BoolArray) -> float:
    """Return the median of some good pixels: near the sky, to be taken off, and exact to shifts."""
    values = _sample(image, good)
    return float(np.median(values)) if values.size else 0.0


def power_of_two(image: Float64Array, good: BoolArray) -> float:
    """Return a power of 2 near the absolute values of the good pixels: a unit in which single precision holds squares.

    To divide by it is exact.
    """
    values = _sample(image, good)
    typical = float(np.median(np.abs(values))) if values.size else 0.0
    typical = typical or float(np.abs(image[good]).max(initial=0.0))
    return float(np.ldexp(1.0, int(np.frexp(typical)[1])))
