"""Noise of the pixels of an image that came without: background and sources."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import sep

from skyloom._threads import row_bands
from skyloom.errors import NoUsableDataError
from skyloom.exposure import BoolArray

Float64Array = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]

_SMOOTH = np.array([0.25, 0.5, 0.25])
_SMOOTHED_NOISE = float(np.sum(_SMOOTH**2))  # deviation of smoothed white noise of deviation 1
_SOURCE = 2.0
_SAMPLE = 65536


def noise_map(image: Float64Array, bad: BoolArray, gain: float | None) -> tuple[Float64Array, Float64Array]:
    """Return the deviation of each pixel, that of the background and photon noise of sources, and the background.

    See `sky_and_noise`, which this is in the unit of the image.
    """
    found = sky_and_noise(image, bad, gain)
    noise = np.sqrt(found.variance, dtype=np.float64)
    noise *= found.unit
    return noise, found.sky


@dataclass(frozen=True, eq=False)
class SkyNoise:
    """An image without its background, and its noise, in a unit in which single precision holds both.

    Parameters
    ----------
    image, variance, plane : ndarray of float32, shape (ny, nx)
        What is above the background, 0 where bad, the variance of each pixel, and the background above `level`, all in
        terms of `unit`.
    unit : float
        A power of 2, in the unit of the data.
    level : float
        In the unit of the data.
    """

    image: Float32Array
    variance: Float32Array
    plane: Float32Array
    unit: float
    level: float

    @property
    def sky(self) -> Float64Array:
        """The background, in the unit of the data."""
        sky = np.multiply(self.plane, self.unit, dtype=np.float64)
        sky += self.level
        return sky


def sky_and_noise(image: Float64Array, bad: BoolArray, gain: float | None) -> SkyNoise:
    """Return an image without its background, and the variance of background and photon noise of sources.

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
    holes = bool(bad.any())
    # the level is taken off first: single precision, and sums of squares, lose digits to a high sky
    level = rough_level(image, ~bad)
    unit = power_of_two(image, ~bad, level)
    data = np.empty(image.shape, np.float32)
    bands = [slice(*band) for band in row_bands(len(image))]  # pieces that the processor's cache holds
    for band in bands:
        data[band] = np.where(bad[band], 0, image[band] - level) / unit if holes else (image[band] - level) / unit
    background = sep.Background(data, mask=bad if holes else None)
    variance, plane = background.rms(dtype=np.float32), background.back(dtype=np.float32)
    for band in bands:
        data[band] -= plane[band]
        if holes:
            data[band][bad[band]] = 0
        variance[band] *= variance[band]
    if gain is not None:
        for start, stop in row_bands(len(image)):
            first, last = max(start - 1, 0), min(stop + 1, len(image))
            source = _smoothed(_smoothed(data[first:last], 0)[start - first : stop - first], 1)
            sky = variance[start:stop]
            source *= source > np.float32(_SOURCE * _SMOOTHED_NOISE) * np.sqrt(sky)
            source /= np.float32(gain * unit)
            sky += source
    return SkyNoise(data, variance, plane, unit, level)


def _smoothed(plane: Float32Array, axis: int) -> Float32Array:
    """Return the plane, each pixel averaged with those beside it along an axis; at the border they are like it."""
    side, middle = np.float32(_SMOOTH[0]), np.float32(_SMOOTH[1])
    out, quarter = plane * middle, plane * side
    if axis:
        out, quarter = out.T, quarter.T
    out[1:] += quarter[:-1]
    out[0] += quarter[0]
    out[:-1] += quarter[1:]
    out[-1] += quarter[-1]
    return out.T if axis else out


def _sample(image: Float64Array, good: BoolArray) -> Float64Array:
    """Return some good pixels, evenly spread."""
    values = image.ravel() if good.all() else image[good]
    return values[:: max(1, values.size // _SAMPLE)]


def rough_level(image: Float64Array, good: BoolArray) -> float:
    """Return the median of some good pixels: near the sky, to be taken off, and exact to shifts."""
    values = _sample(image, good)
    return float(np.median(values)) if values.size else 0.0


def power_of_two(image: Float64Array, good: BoolArray, level: float = 0.0) -> float:
    """Return a power of 2 near the distances of the good pixels from a level: single precision holds squares in it.

    To divide by it is exact.
    """
    values = _sample(image, good)
    typical = float(np.median(np.abs(values - level))) if values.size else 0.0
    typical = typical or float(np.abs(image[good] - level).max(initial=0.0))
    return float(np.ldexp(1.0, int(np.frexp(typical)[1])))
