"""Sky background, its noise, and the white noise of the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, NoUsableDataError
from skyloom.exposure import BoolArray, Exposure

NORM = 6.0
"""Square root of the sum of the squared coefficients of Immerkær's filter."""
MAD_TO_SIGMA = 1.482602218505602
"""Standard deviation of a Gaussian in units of its median absolute deviation."""
LOWER_HALF_MEAN = 0.3246481
"""Mean of the smaller half of the absolute values of a standard Gaussian, 4 (phi(0) - phi(0.6745))."""


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
        Size of the boxes, in pixels. By default 1/8 of the shorter side, but 32 to 128 pixels (or the whole of a smaller
        image): small enough for gradients, larger than stars.

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
    size = int(box) if box is not None else int(np.clip(min(ny, nx) // 8, 32, 128))
    size = min(size, max(ny, nx))
    data = np.ascontiguousarray(exposure.data)
    filled = np.where(usable, data, data.dtype.type(np.median(data[usable])))
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
    middle = float(np.median(smooth[usable]))
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


def faint_noise(exposure: Exposure) -> tuple[float, float]:
    """Return the white noise of the faint pixels, and their mean level.

    Parameters
    ----------
    exposure : Exposure
        The image; only its usable pixels count.

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
    Understanding 64, 300, eq. 2), (1 -2 1; -2 4 -2; 1 -2 1): the second difference along x of that along y, so that it
    is blind to any f(x) + g(y), gradients among them, and nearly blind to stars that are well sampled. Its response to white noise of deviation sigma has the deviation 6 sigma. Instead of the mean absolute response of
    that paper the mean of the smaller half of the absolute responses is taken (as robust as the median, and not
    quantised where the data are whole numbers), over the faint half of the pixels. Faint is judged by the mean over the same 3x3
    pixels, which for white noise is uncorrelated with the response (the filter's coefficients sum to 0): the selection
    does not bias the noise. Resampled images have correlated noise, for which this is less than the deviation of a pixel.
    """
    usable = exposure.usable
    if not usable.any():
        raise NoUsableDataError(f"No pixel of {exposure.name} is usable; there is no noise to be measured.")
    response, mean = noise_samples(exposure)
    if response.size < 8:
        values = exposure.data[usable].astype(np.float64)
        return _deviation(values), float(np.mean(values))
    faint = mean <= np.median(mean)
    return response_noise(response[faint]), float(np.mean(mean[faint]))


def noise_samples(exposure: Exposure) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the filter's response and the mean of all 3x3 squares of usable pixels, each of shape (N,)."""
    if min(exposure.shape) < 3:
        return np.empty(0), np.empty(0)
    usable = exposure.usable
    data = np.where(usable, exposure.data.astype(np.float64), 0.0)
    whole = _box_sum(usable.astype(np.float64)) > 8.5
    return _laplacian_difference(data)[whole], _box_sum(data)[whole] / 9


def response_noise(response: npt.NDArray[np.float64]) -> float:
    """Return the standard deviation of a pixel from filter responses of which less than half see anything but noise."""
    half = np.sort(np.abs(response))[: (response.size + 1) // 2]
    return float(np.mean(half)) / (NORM * LOWER_HALF_MEAN)


def _laplacian_difference(data: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the filtered image without its border, shape (ny - 2, nx - 2): second differences along y, then x."""
    rows = data[:-2] - 2 * data[1:-1] + data[2:]
    return rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]


def _box_sum(data: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return sums over 3x3 pixels without the border, shape (ny - 2, nx - 2)."""
    rows = data[:-2] + data[1:-1] + data[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]


def _deviation(values: npt.NDArray[Any]) -> float:
    """Return a robust standard deviation: from the median absolute deviation, else the plain one."""
    mad = MAD_TO_SIGMA * float(np.median(np.abs(values - np.median(values))))
    return mad if mad > 0 else float(np.std(values))
