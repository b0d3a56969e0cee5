"""Sky background, its noise, and the white noise of the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, NoUsableDataError
from skyloom.exposure import UNUSABLE, BoolArray, Exposure

NORM = 6.0
"""Square root of the sum of the squared coefficients of Immerkær's filter."""
MAD_TO_SIGMA = 1.482602218505602
"""Standard deviation of a Gaussian in units of its median absolute deviation."""
LOWER_HALF_MEAN = 0.3246628
"""Mean of the smaller half of the absolute values of a standard Gaussian, 4 (phi(0) - phi(0.6745))."""
CLIP = 2.5
CLIPPED_DEVIATION = 0.9545975
"""Deviation of a standard Gaussian within +-2.5: the square root of 1 - 5 phi(2.5) / (2 Phi(2.5) - 1)."""
SMALLEST = 8
"""Images with a side of fewer pixels get one level: there is nothing to be interpolated."""
MOST_SAMPLES = 500_000
"""Of the noise: enough for 0.5 %, whatever part of them is faint."""
SAMPLED_ROWS = 24
"""Rows of the bands that are sampled of large images."""


@dataclass(frozen=True, eq=False)
class Background:
    """A smooth sky background.

    Parameters
    ----------
    level, rms : ndarray of float32, shape (ny, nx)
        Background and standard deviation of the pixels about it, in the unit of the data.
    global_level, global_rms : float
        One number for each.
    """

    level: npt.NDArray[np.float32]
    rms: npt.NDArray[np.float32]
    global_level: float
    global_rms: float


def estimate_background(exposure: Exposure, *, box: int | None = None) -> Background:
    """Estimate the background by clipped modes in boxes, twice: sources found above the first are masked in the second.

    Parameters
    ----------
    exposure : Exposure
        The image; only its usable pixels count.
    box : int, optional
        Size of the boxes, in pixels. By default 1/8 of the shorter side, but 32 to 128 pixels (or the whole of a
        smaller image): small enough for gradients, larger than stars.

    Returns
    -------
    Background

    Raises
    ------
    NoUsableDataError
        No usable pixel.
    InputError
        `box` is not a positive whole number.

    Notes
    -----
    The statistics of each box (mode = 2.5 median - 1.5 mean of the clipped pixels, unless the field is crowded) and the
    interpolation between them are those of Bertin & Arnouts (1996, section 3), as implemented in ``sep``. In a field so
    crowded that less than a third of the pixels is left by the second pass, the first is the answer.
    """
    import sep

    if box is not None and (not isinstance(box, int | np.integer) or box < 1):
        raise InputError(f"box is {box!r}; it must be a whole number of at least 1 pixel.", box=box)
    ny, nx = exposure.shape
    usable = exposure.usable
    if not usable.any():
        raise NoUsableDataError(f"No pixel of {exposure.name} is usable; there is no background to be estimated.")
    if min(ny, nx) < SMALLEST:
        values = exposure.data[usable].astype(np.float64)
        level, rms = float(np.median(values)), _deviation(values)
        return Background(np.full((ny, nx), level, np.float32), np.full((ny, nx), rms, np.float32), level, rms)
    size = int(box) if box is not None else int(np.clip(min(ny, nx) // 8, 32, 128))
    size = min(size, max(ny, nx))
    data = np.ascontiguousarray(exposure.data)
    filled = np.where(usable, data, np.asarray(data[usable], dtype=np.float64).mean()).astype(data.dtype)
    first = sep.Background(filled, mask=~usable, bw=size, bh=size, fw=3, fh=3)
    sources = _sources(filled - first.back(), white_noise(exposure), usable)
    second = first
    if (usable & ~sources).sum() > usable.sum() / 3:
        second = sep.Background(filled, mask=~usable | sources, bw=size, bh=size, fw=3, fh=3)
    return Background(
        second.back().astype(np.float32),
        second.rms().astype(np.float32),
        float(second.globalback),
        float(second.globalrms),
    )


def _sources(residual: npt.NDArray[Any], noise: float, usable: BoolArray) -> BoolArray:
    """Return the pixels of sources: 2 sigma above the background after smoothing over 5x5 pixels, grown by 4 pixels."""
    from scipy import ndimage

    smooth = ndimage.uniform_filter(np.where(usable, residual, 0).astype(np.float32), 5, mode="nearest")
    middle = median(smooth[usable])
    above = smooth > middle + 2 * max(noise / 5, _deviation(smooth[usable]))
    # single noise peaks stay: what is left after an opening is connected
    return ndimage.binary_dilation(ndimage.binary_opening(above, iterations=1), iterations=4)


def white_noise(exposure: Exposure) -> float:
    """Return the standard deviation of the noise that is independent from pixel to pixel, at the faint pixels.

    Parameters
    ----------
    exposure : Exposure
        The image; only its usable pixels count.

    Returns
    -------
    float
        In the unit of the data. See `faint_noise`, whose first value it is.
    """
    return faint_noise(exposure)[0]


def faint_noise(exposure: Exposure, *, spacing: int = 1) -> tuple[float, float]:
    """Return the noise of the faint pixels that is independent between pixels `spacing` apart, and their mean level.

    Parameters
    ----------
    exposure : Exposure
        The image; only its usable pixels count.
    spacing : int
        The filter takes every so-manieth pixel. Beyond the length over which the noise is correlated (by resampling),
        the result is the deviation of a pixel.

    Returns
    -------
    noise, level : float
        Standard deviation, and the mean of the same pixels.

    Raises
    ------
    NoUsableDataError
        No usable pixel.

    Notes
    -----
    The image is filtered with the difference of two Laplacians of Immerkær (1996, Computer Vision and Image
    Understanding 64, 300, eq. 2), (1 -2 1; -2 4 -2; 1 -2 1): the second difference along x of that along y. It is blind
    to any f(x) + g(y), gradients among them, and nearly blind to stars that are well sampled. Its response to white
    noise of deviation sigma has the deviation 6 sigma. Instead of the mean absolute response over the image of that
    paper, a clipped deviation of the faint pixels is taken (the faintest quarter; up to half of a small image).

    Faint is judged by the mean of the 16 pixels around the 3x3 of the filter: their noise is independent, so that the
    selection biases neither the noise nor the level (the mean of the 3x3), whatever the noise is; selected by their own
    mean, Poisson noise comes out up to 5 % too low. Pixels of similar brightness are clipped together, so that a
    gradient of the noise (a vignetted sky) does not count as outliers.
    """
    response, mean, around = noise_samples(exposure, spacing=spacing)
    if response.size < 8:
        values = exposure.data[exposure.usable].astype(np.float64)
        if not values.size:
            raise NoUsableDataError(f"No pixel of {exposure.name} is usable; there is no noise to be measured.")
        return _deviation(values), float(np.mean(values))
    count = max(response.size // 4, min(response.size // 2, 20_000))
    faint = np.flatnonzero(around <= np.partition(around, count - 1)[count - 1])
    faint = faint[np.argsort(around[faint], kind="stable")[:count]]
    slices = np.array_split(faint, int(np.clip(count // 2000, 1, 8)))
    variance = sum(part.size * response_noise(response[part]) ** 2 for part in slices) / count
    return float(np.sqrt(variance)), float(np.mean(mean[faint]))


Samples = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]


def noise_samples(exposure: Exposure, *, spacing: int = 1) -> Samples:
    """Return the filter's response, the mean, and the mean of the 16 pixels around, for 3x3 squares of usable pixels.

    Each is of shape (N,). With a `spacing`, squares are those of every so-manieth pixel along x and y, of all the
    images that can be made so. Of large images, evenly spaced bands of rows are taken: about `MOST_SAMPLES` squares.
    """
    ny, nx = exposure.shape
    every = -(-ny * nx // MOST_SAMPLES)
    rows = ny if every == 1 else SAMPLED_ROWS * spacing
    parts = [
        _lattice_samples(
            exposure.data[band][y::spacing, x::spacing],
            (exposure.mask[band][y::spacing, x::spacing] & np.uint32(UNUSABLE)) == 0,
        )
        for band in (slice(start, start + rows) for start in range(0, ny, rows * every))
        for y in range(spacing)
        for x in range(spacing)
    ]
    response, mean, around = (np.concatenate(column) for column in zip(*parts, strict=True))
    return response, mean, around


def _lattice_samples(plane: npt.NDArray[Any], usable: BoolArray) -> Samples:
    """Return `noise_samples` of one lattice of pixels."""
    if min(plane.shape) < 3:
        return np.empty(0), np.empty(0), np.empty(0)
    data = np.where(usable, plane, 0).astype(np.float64)
    one = usable.astype(np.float64)
    sum9, count9 = _box_sum(data, 3), _box_sum(one, 3)
    sum16, count16 = _box_sum(np.pad(data, 1), 5) - sum9, _box_sum(np.pad(one, 1), 5) - count9
    whole = (count9 > 8.5) & (count16 > 0.5)
    return _laplacian_difference(data)[whole], sum9[whole] / 9, sum16[whole] / count16[whole]


def response_noise(response: npt.NDArray[np.float64]) -> float:
    """Return the standard deviation of a pixel from filter responses of which less than half see anything but noise.

    Starts from the mean of the smaller half of the absolute values (as robust as the median, and not quantised where
    the data are whole numbers), then iterates the deviation of what lies within `CLIP` deviations.
    """
    size = np.abs(response)
    sigma = float(np.mean(np.sort(size)[: (size.size + 1) // 2])) / LOWER_HALF_MEAN
    for _ in range(20):
        inside = size[size < CLIP * sigma]
        previous, sigma = sigma, float(np.sqrt(np.mean(inside * inside))) / CLIPPED_DEVIATION if inside.size else 0.0
        if abs(sigma - previous) <= 1e-4 * previous:
            break
    return sigma / NORM


def _laplacian_difference(data: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the filtered image without its border, shape (ny - 2, nx - 2): second differences along y, then x."""
    rows = data[:-2] - 2 * data[1:-1] + data[2:]
    return rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]


def _box_sum(data: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Return sums over size x size pixels, without the border that has none."""
    ny, nx = data.shape[0] - size + 1, data.shape[1] - size + 1
    rows = data[:ny].copy()
    for k in range(1, size):
        rows += data[k : k + ny]
    total = rows[:, :nx].copy()
    for k in range(1, size):
        total += rows[:, k : k + nx]
    return total


def median(values: npt.NDArray[Any]) -> float:
    """Return the median of finite values as `numpy.median` does, NaN of none, in a third to a fifth of its time.

    NumPy selects one order statistic with vector instructions, but not the two and the NaN that its median asks for.
    """
    if values.size == 0:
        return np.nan
    half = values.size // 2
    parted = np.partition(values, half, axis=None)
    # halved before they are added: the sum may be beyond the type
    return float(parted[half]) if values.size % 2 else float(parted[:half].max()) / 2 + float(parted[half]) / 2


def _deviation(values: npt.NDArray[Any]) -> float:
    """Return a robust standard deviation: from the median absolute deviation, else the plain one."""
    mad = MAD_TO_SIGMA * median(np.abs(values - values.dtype.type(median(values))))
    return mad if mad > 0 else float(np.std(values))
