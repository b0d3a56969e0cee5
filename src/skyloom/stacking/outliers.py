"""Cosmic rays and other outliers among exposures of one field: median, blot, compare.

The scheme is that of the HST drizzle pipelines (Fruchter & Hook 2002, section 5; Gonzaga et al. 2012, The DrizzlePac
Handbook): the exposures are brought onto the output grid one by one, their median is carried back ("blotted") into the
frame of each exposure, and pixels that differ from it by more than noise and gradient explain are outliers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, special

from skyloom._kernels import interpolate
from skyloom._threads import map_bands, num_threads, row_bands
from skyloom.background import MAD_TO_SIGMA
from skyloom.exposure import UNUSABLE, BoolArray, MaskBit
from skyloom.resampling.kernels import polynomial_table
from skyloom.resampling.maps import SampledMap, XYArray
from skyloom.resampling.resample import clean_plane
from skyloom.stacking.frames import Frame, PlacedExposure
from skyloom.stacking.memory import Plane, Scratch, Window, window_shape
from skyloom.stacking.options import RejectionOptions

FloatArray = npt.NDArray[Any]

_BLOCK = 32, 1024  # rows and columns of the output that are held in memory for all exposures at a time, at most
_MEDIAN_BYTES = 45  # for each value whose median is taken: the values, their variances and powers of these, sorted
_BAND = 256  # rows of an exposure that are compared at a time
_BRIGHT, _FEWEST = 5.0, 5  # standard deviations, and number of the peaks from which the seeing is judged
_TRUSTED = 2  # exposures at a place of a finished co-add that make it the reference there


@dataclass(frozen=True, eq=False)
class Single:
    """One exposure, interpolated onto its part of the output grid.

    Parameters
    ----------
    window : Window
        That part.
    data, variance : Plane
        Values, NaN where the exposure is not usable; and their variance.
    counts : Plane, optional
        Of a finished co-add: how many exposures it holds at each pixel.
    """

    window: Window
    data: Plane
    variance: Plane
    counts: Plane | None = None


@dataclass(frozen=True, eq=False)
class MedianImage:
    """Median of the exposures on the output grid.

    Parameters
    ----------
    data, variance : Plane of float32, shape (ny, nx)
        The median and its variance; 0 where it is not known.
    count : Plane of int16, shape (ny, nx)
        Exposures that are usable at a pixel. With fewer than two nothing can be compared.
    """

    data: Plane
    variance: Plane
    count: Plane


def interpolate_single(placed: PlacedExposure, frame: Frame, scratch: Scratch, *, on_disk: bool) -> Single:
    """Interpolate one exposure onto the grid, bilinearly: linear interpolation does not ring about a ray."""
    window = placed.window()
    assert window is not None  # it overlaps
    shape = window_shape(window)
    corner = np.array([window[1].start, window[0].start], np.float64)
    back = placed.from_grid()
    sampled = SampledMap(lambda xy: back(xy + corner), shape)
    planes = clean_plane(np.where(frame.usable, np.uint32(0), np.uint32(MaskBit.BAD)), 2)
    data, variance = (scratch.plane(shape, np.float32, on_disk=on_disk) for _ in range(2))

    def fill(band: tuple[int, int]) -> None:
        xy = sampled.rows(*band).reshape(-1, 2)
        values, noise, bits = _interpolated(frame.data, frame.variance, planes, xy, "bilinear")
        assert noise is not None
        values[(bits & np.uint32(UNUSABLE)) != 0] = np.nan
        rows = slice(*band), slice(0, shape[1])
        data.write(rows, values.reshape(-1, shape[1]))
        variance.write(rows, noise.reshape(-1, shape[1]))

    map_bands(fill, row_bands(shape[0], 128))
    return Single(window, data, variance)


def median_image(
    singles: Sequence[Single], shape: tuple[int, int], scratch: Scratch, *, on_disk: bool, memory: int
) -> MedianImage:
    """Return the median of the singles, its planes in memory or on disk; some `memory` (bytes) is used meanwhile.

    Where only two are usable and differ by more than 4 sigma, the lower one is taken (as no median tells which is
    right, and rays are positive). A finished co-add counts as one of them where it holds one exposure, and alone where
    it holds more.
    """
    ny, nx = shape
    result = MedianImage(
        scratch.plane(shape, np.float32, on_disk=on_disk),
        scratch.plane(shape, np.float32, on_disk=on_disk),
        scratch.plane(shape, np.int16, on_disk=on_disk),
    )

    def fill(rows: tuple[int, int]) -> None:
        reaching = [one for one in singles if one.window[0].start < rows[1] and one.window[0].stop > rows[0]]
        for block in _blocks(rows, nx, memory // (num_threads() * _MEDIAN_BYTES * max(len(reaching), 1))):
            values, noise, prior = _stack(reaching, block)
            if len(values):
                median, variance, count = masked_median(values, noise)
                if prior is not None:
                    count = np.where(prior[2] >= _TRUSTED, prior[2], count)
                    median = np.where(prior[2] >= _TRUSTED, prior[0], median)
                    variance = np.where(prior[2] >= _TRUSTED, prior[1], variance)
                result.data.write(block, median)
                result.variance.write(block, variance)
                result.count.write(block, count)

    map_bands(fill, row_bands(ny, _BLOCK[0]))
    return result


def _blocks(rows: tuple[int, int], nx: int, cells: int) -> Iterator[Window]:
    """Cut some rows of the output into blocks of so many cells at most: long rows, few of them if need be."""
    width = min(max(cells, 1), _BLOCK[1], nx)
    height = max(1, cells // width)
    for y in range(*rows, height):
        for x in range(0, nx, width):
            yield slice(y, min(y + height, rows[1])), slice(x, min(x + width, nx))


def _stack(singles: Sequence[Single], block: Window) -> tuple[FloatArray, FloatArray, tuple[FloatArray, ...] | None]:
    """Return values and variances of the singles that reach a block, NaN where they are not usable; and a co-add's."""
    shape = window_shape(block)
    cuts = [
        [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(single.window, block, strict=True)]
        for single in singles
    ]
    reaching = [k for k, cut in enumerate(cuts) if all(part.start < part.stop for part in cut)]
    values, noises = np.full((len(reaching), *shape), np.nan, np.float32), np.zeros((len(reaching), *shape), np.float32)
    prior = None
    for value, noise, k in zip(values, noises, reaching, strict=True):
        single, cut = singles[k], cuts[k]
        inside = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(cut, block, strict=True))
        there = tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(cut, single.window, strict=True))
        value[inside], noise[inside] = single.data.read(there), single.variance.read(there)  # type: ignore[arg-type]
        if single.counts is not None:
            count = np.zeros(shape, np.int16)
            count[inside] = single.counts.read(there)  # type: ignore[arg-type]
            prior = value, noise, count
    return values, noises, prior


def masked_median(
    values: npt.NDArray[np.float32], noise: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int16]]:
    """Return the median over the first axis of the values that are not NaN, its variance, and their number."""
    good = np.isfinite(values)
    count = good.sum(axis=0)
    ordered = np.sort(values, axis=0)  # NaN last
    at = np.maximum(count, 1)
    low = np.take_along_axis(ordered, ((at - 1) // 2)[None], axis=0)[0]
    high = np.take_along_axis(ordered, (at // 2)[None], axis=0)[0]
    mean_noise = np.where(good, noise, 0).sum(axis=0) / at
    with np.errstate(invalid="ignore"):
        lower = (count == 2) & (high - low > 4 * np.sqrt(2 * mean_noise))
    median = np.where(count > 0, np.where(lower, low, 0.5 * (low + high)), 0).astype(np.float32)
    most = int(count.max(initial=1))
    exponent = median_exponent(most)[count]
    power = np.power(np.where(good & (noise > 0), noise, 1), 0.5 * exponent)
    typical = np.power(np.where(count > 0, np.where(good, power, 0).sum(axis=0) / at, 1), 2 / exponent)
    variance = np.where(count > 0, np.where(lower, mean_noise, median_variance(most)[count] * typical), 0)
    return median, variance.astype(np.float32), count.astype(np.int16)


def median_exponent(most: int) -> npt.NDArray[np.float64]:
    """Return p of 0, 1, ... `most` values: their median has `median_variance` times (mean sigma^p)^(2/p).

    Two have the mean of their variances (p = 2), very many the harmonic mean of their deviations (p = -1: the density
    of all at the median counts). Between, the integrals over the order statistics of deviates that differ slightly are
    met to 0.03 in p by -1 + 1.7 / n, for even n + 5.2 / n^2; deviations spread over a factor of 2.5 leave 2 %
    in the variance, 4 % of three values.
    """
    n = np.maximum(np.arange(most + 1.0), 1.0)
    exponent = -1 + 1.7 / n + np.where(n % 2 == 0, 5.2 / n**2, 0.0)
    exponent[:3] = (1.0, 1.0, 2.0)[: most + 1]
    return exponent


@cache
def median_variance(most: int) -> npt.NDArray[np.float64]:
    """Return the variance of the median of 0, 1, ... `most` standard normal deviates, shape (most + 1,).

    For odd n the integral of x^2 over the density of the middle one; for even n that of the mean of the two middle ones
    over their joint density (David & Nagaraja 2003, Order Statistics, sections 2.1 and 2.2).
    """
    x = np.linspace(-9, 9, 2001)
    below = special.ndtr(x)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)

    def odd(n: int) -> float:
        weight = density * np.exp((n - 1) // 2 * np.log(np.maximum(4 * below * (1 - below), 1e-300)))
        return float((x**2 * weight).sum() / weight.sum())

    return np.array(
        [0.0, *(odd(n) if n % 2 else _even_median_variance(n, x, below, density) for n in range(1, most + 1))]
    )


def _even_median_variance(
    n: int, x: npt.NDArray[np.float64], below: npt.NDArray[np.float64], density: npt.NDArray[np.float64]
) -> float:
    """Variance of the mean of the two middle ones of n = 2 m deviates, from their joint density."""
    x, below, density = x[::8], below[::8], density[::8]  # smooth: 250 points are enough
    m = n // 2 - 1
    power = m * np.log(np.maximum(below, 1e-300)), m * np.log(np.maximum(1 - below, 1e-300))
    joint = np.exp(power[0][:, None] + power[1][None, :] + 2 * m * np.log(2)) * density[:, None] * density[None, :]
    joint *= np.triu(np.ones((len(x), len(x)))) - 0.5 * np.eye(len(x))  # the lower one first
    middle = 0.5 * (x[:, None] + x[None, :])
    return float((middle**2 * joint).sum() / joint.sum())


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


def outliers_of(placed: PlacedExposure, frame: Frame, median: MedianImage, options: RejectionOptions) -> BoolArray:
    """Compare one exposure with the median, in its own pixels.

    Returns
    -------
    ndarray of bool
        Outlying pixels; none where fewer than two exposures are usable.
    """
    blot, noise, known = _blot(placed, median, frame.data.shape)
    compared = known & frame.usable
    if not compared.any():
        return compared
    sky = np.float32(np.median(blot[known]))
    bright = np.where(compared, blot - sky, np.float32(0))
    fraction = options.fraction + _peak_contrast(frame, bright, np.maximum(noise, 0), sky, 2 * options.reach + 1)
    del bright
    halo = options.reach + 3
    ny = len(blot)
    result = np.empty_like(compared)

    def compare(band: tuple[int, int]) -> None:
        # the median of the exposures that hold this pixel too: their noise is partly shared, which is left out
        low, high = max(band[0] - halo, 0), min(band[1] + halo, ny)
        rows = slice(low, high)
        difference = np.abs(frame.data[rows] - blot[rows])
        sigma = np.sqrt(frame.variance[rows] + np.maximum(noise[rows], 0))
        gradient = _largest_step(blot[rows], known[rows])
        light = np.where(known[rows], np.abs(blot[rows] - sky), np.float32(0))
        allowed = fraction * ndimage.maximum_filter(light, 2 * options.reach + 1)
        first, second = (
            difference > s * gradient + allowed + n * sigma
            for n, s in zip(options.sigma, options.gradient, strict=True)
        )
        near = ndimage.binary_dilation(first & compared[rows], np.ones((3, 3), bool))
        found = compared[rows] & (first | (second & near))
        result[slice(*band)] = found[band[0] - low : band[1] - low]

    map_bands(compare, row_bands(ny, _BAND))
    return result


def _peak_contrast(frame: Frame, light: FloatArray, noise: FloatArray, sky: np.float32, box: int) -> float:
    """Return by how much the peaks of stars differ from those of the median, in units of these: the seeing of it.

    The median over stars, at the peaks that the median of the exposures has, where cosmic rays are rare; less what its
    own uncertainty may pretend. `light` is the blotted median above the sky, 0 where nothing can be compared.
    """
    peak = (light > _BRIGHT * np.sqrt(noise)) & (light > 0) & (light == ndimage.maximum_filter(light, box))
    ratio = (frame.data[peak] - sky) / light[peak] - 1
    if len(ratio) < _FEWEST:
        return 0.0
    contrast = float(np.median(ratio))
    error = 1.25 * MAD_TO_SIGMA * float(np.median(np.abs(ratio - contrast))) / np.sqrt(len(ratio))
    return max(0.0, abs(contrast) - 2 * error)


def _blot(
    placed: PlacedExposure, median: MedianImage, shape: tuple[int, ...]
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Return the median, its variance, and where it is known, in the pixels of an exposure."""
    window = placed.window()
    assert window is not None
    data, variance = (np.ascontiguousarray(plane.read(window)) for plane in (median.data, median.variance))
    unknown = np.where(median.count.read(window) >= 2, np.uint32(0), np.uint32(MaskBit.NO_DATA))
    corner = np.array([window[1].start, window[0].start], np.float64)
    planes = clean_plane(unknown, 4)
    blot, noise = np.empty(shape, np.float32), np.empty(shape, np.float32)
    known = np.empty(shape, bool)

    def fill(band: tuple[int, int]) -> None:
        xy = placed.to_grid.rows(*band).reshape(-1, 2) - corner
        value, own, bits = _interpolated(data, variance, planes, xy, "cubic")
        assert own is not None
        rows = slice(*band)
        blot[rows], noise[rows] = value.reshape(-1, shape[1]), own.reshape(-1, shape[1])
        known[rows] = ((bits & np.uint32(UNUSABLE)) == 0).reshape(-1, shape[1])

    map_bands(fill, row_bands(shape[0]))
    return blot, noise, known


def _largest_step(image: FloatArray, known: BoolArray) -> FloatArray:
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
