"""Cosmic rays and other outliers among exposures of one field: median, blot, compare.

The scheme is that of the HST drizzle pipelines (Fruchter & Hook 2002, section 5; Gonzaga et al. 2012, The DrizzlePac
Handbook): the exposures are brought onto the output grid one by one, their median is carried back ("blotted") into the
frame of each exposure, and pixels that differ from it by more than noise and gradient explain are outliers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from skyloom._kernels import interpolate
from skyloom._threads import map_bands, row_bands
from skyloom.errors import InputError
from skyloom.exposure import UNUSABLE, BoolArray, FloatArray, MaskBit
from skyloom.resampling.frames import Frame
from skyloom.resampling.kernels import polynomial_table
from skyloom.resampling.maps import SampledMap, XYArray
from skyloom.resampling.resample import clean_plane

_log = logging.getLogger("skyloom.resampling")

_ROWS = 32  # of the output that are held in memory for all exposures at a time
_MEDIAN_VARIANCE = np.pi / 2  # of a median of normal deviates, in units of the variance of their mean


@dataclass(frozen=True)
class RejectionOptions:
    """How outliers are told from noise.

    A pixel is an outlier if abs(d - b) > s G + f P + n sigma, where b is the blotted median, G the largest difference
    between b and its four neighbours, P the largest abs(b - sky) within `reach` pixels, and sigma the noise of d - b;
    and so is a neighbour of an outlier, with the second values of n and s.

    Parameters
    ----------
    sigma : (float, float)
        n.
    gradient : (float, float)
        s: allows for errors of the registration and for undersampling.
    fraction : float
        f: allows for different seeing, which changes the peak of a star (Gruen, Seitz & Bernstein 2014, PASP 126, 158,
        eq. 11, at the pixel itself).
    reach : int
        Half width, in pixels, of the box of P: how far a wider or trailed image carries light from a star's peak.
    """

    sigma: tuple[float, float] = (4.0, 3.0)
    gradient: tuple[float, float] = (1.2, 0.7)
    fraction: float = 0.3
    reach: int = 4

    def __post_init__(self) -> None:
        values = (*self.sigma, *self.gradient, self.fraction, self.reach)
        if not all(np.isfinite(value) and value >= 0 for value in values):
            raise InputError(f"The thresholds of the rejection are {values}; none of them may be below 0.")


@dataclass(frozen=True, eq=False)
class MedianImage:
    """Median of the frames on the output grid, in bands.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        0 where fewer than two frames are usable.
    variance : ndarray of float32, shape (ny, nx)
        Of the median.
    mask : ndarray of uint32, shape (ny, nx)
        `MaskBit.NO_DATA` where fewer than two frames are usable: nothing can be compared there.
    """

    data: npt.NDArray[np.float32]
    variance: npt.NDArray[np.float32]
    mask: npt.NDArray[np.uint32]


def find_outliers(frames: Sequence[Frame], shape: tuple[int, int], options: RejectionOptions) -> list[BoolArray]:
    """Return the outlying pixels of each frame.

    Parameters
    ----------
    frames : sequence of Frame
        At least two; with fewer nothing is found.
    shape : (int, int)
        Shape (ny, nx) of the output grid.
    options : RejectionOptions
        Thresholds.

    Returns
    -------
    list of ndarray of bool
        For each frame, of its own shape.
    """
    if len(frames) < 2:
        return [np.zeros(frame.data.shape, bool) for frame in frames]
    median = median_image(frames, shape)
    found = [_outliers_of(frame, median, options) for frame in frames]
    for frame, outliers in zip(frames, found, strict=True):
        _log.info("%s: %d outlying pixels", frame.name, outliers.sum())
    return found


def median_image(frames: Sequence[Frame], shape: tuple[int, int]) -> MedianImage:
    """Return the median of the frames, each interpolated bilinearly: linear interpolation does not ring about a ray.

    Where only two frames are usable and differ by more than 4 sigma, the lower one is taken (as no median tells which
    is right, and rays are positive).
    """
    ny, nx = shape
    maps = [SampledMap(frame.from_grid, shape) for frame in frames]
    planes = [clean_plane(np.where(frame.usable, np.uint32(0), np.uint32(MaskBit.BAD)), 2) for frame in frames]
    data, variance = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    mask = np.zeros(shape, np.uint32)

    def fill(band: tuple[int, int]) -> None:
        n = (band[1] - band[0]) * nx
        values, noise = np.empty((len(frames), n), np.float32), np.empty((len(frames), n), np.float32)
        good = np.empty((len(frames), n), bool)
        for k, frame in enumerate(frames):
            xy = maps[k].rows(*band).reshape(-1, 2)
            values[k], noise[k], bits = _interpolated(frame.data, frame.variance, planes[k], xy, "bilinear")
            good[k] = (bits & np.uint32(UNUSABLE)) == 0
        result = _masked_median(values, noise, good)
        for plane, part in zip((data, variance, mask), result, strict=True):
            plane[slice(*band)] = part.reshape(-1, nx)

    map_bands(fill, row_bands(ny, _ROWS))
    return MedianImage(data, variance, mask)


def _masked_median(
    values: npt.NDArray[np.float32], noise: npt.NDArray[np.float32], good: BoolArray
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.uint32]]:
    """Return the median over the first axis of good values, its variance, and its mask."""
    count = good.sum(axis=0)
    ordered = np.sort(np.where(good, values, np.float32(np.inf)), axis=0)
    at = np.maximum(count, 1)
    low = np.take_along_axis(ordered, ((at - 1) // 2)[None], axis=0)[0]
    high = np.take_along_axis(ordered, (at // 2)[None], axis=0)[0]
    mean_noise = np.where(good, noise, 0).sum(axis=0) / at
    with np.errstate(invalid="ignore"):
        median = np.where((count == 2) & (high - low > 4 * np.sqrt(2 * mean_noise)), low, 0.5 * (low + high))
    enough = count >= 2
    median = np.where(enough, median, 0).astype(np.float32)
    return median, _MEDIAN_VARIANCE * mean_noise / at, np.where(enough, np.uint32(0), np.uint32(MaskBit.NO_DATA))


def _interpolated(
    data: FloatArray,
    variance: FloatArray | None,
    planes: tuple[npt.NDArray[np.uint32] | None, npt.NDArray[np.uint8] | None],
    xy: XYArray,
    method: str,
) -> tuple[FloatArray, FloatArray | None, npt.NDArray[np.uint32]]:
    """Interpolate at some positions; no weight may be lost."""
    value, bits = np.empty(len(xy), data.dtype), np.empty(len(xy), np.uint32)
    noise = None if variance is None else np.empty(len(xy), data.dtype)
    interpolate(
        data,
        variance,
        *planes,
        xy,
        polynomial_table(method, data.dtype),
        int(UNUSABLE),
        int(MaskBit.NO_DATA),
        int(MaskBit.EDGE),
        int(MaskBit.SPREAD),
        0.0,
        value,
        noise,
        bits,
    )
    return value, noise, bits


def _outliers_of(frame: Frame, median: MedianImage, options: RejectionOptions) -> BoolArray:
    """Compare one frame with the median, in its own pixels."""
    shape = frame.data.shape
    blot, noise = np.empty(shape, np.float32), np.empty(shape, np.float32)
    bits = np.empty(shape, np.uint32)
    planes = clean_plane(median.mask, 4)

    def fill(band: tuple[int, int]) -> None:
        xy = frame.to_grid.rows(*band).reshape(-1, 2)
        parts = _interpolated(median.data, median.variance, planes, xy, "cubic")
        for plane, part in zip((blot, noise, bits), parts, strict=True):
            assert part is not None
            plane[slice(*band)] = part.reshape(-1, shape[1])

    map_bands(fill, row_bands(shape[0]))
    known = (bits & np.uint32(UNUSABLE)) == 0
    compared = known & frame.usable
    if not compared.any():
        return compared
    difference = np.abs(frame.data - blot)
    # the median of the frames that hold this pixel too: their noise is partly shared, which is left out
    sigma = np.sqrt(frame.variance + np.maximum(noise, 0))
    gradient = _largest_step(blot, known)
    light = np.where(known, np.abs(blot - np.median(blot[known])), np.float32(0))
    allowed = options.fraction * ndimage.maximum_filter(light, 2 * options.reach + 1)
    first, second = (
        difference > s * gradient + allowed + n * sigma for n, s in zip(options.sigma, options.gradient, strict=True)
    )
    near = ndimage.binary_dilation(first & compared, np.ones((3, 3), bool))
    return compared & (first | (second & near))


def _largest_step(image: npt.NDArray[np.float32], known: BoolArray) -> npt.NDArray[np.float32]:
    """Return the largest difference between each pixel and those of its four neighbours that are known."""
    largest = np.zeros_like(image)
    for axis in (0, 1):
        step = np.abs(np.diff(image, axis=axis))
        both = np.logical_and(*(np.take(known, range(a, known.shape[axis] + b), axis) for a, b in ((1, 0), (0, -1))))
        step[~both] = 0
        for end in ((1, 0), (0, 1)):  # the step belongs to the pixels on both of its sides
            pad = [(0, 0), (0, 0)]
            pad[axis] = end
            np.maximum(largest, np.pad(step, pad), out=largest)
    return largest
