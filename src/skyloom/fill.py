"""Values for unusable pixels, so that filters meet no holes: what the other image predicts, or the neighbours.

The result is not measured there, and is flagged; filling keeps holes from ringing in what is around them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

Array = npt.NDArray[Any]

SMALLEST = 1e-3
"""Wiener constant, relative to the power at frequency 0: bounds how far noise grows when the source is sharpened."""


def fill_from_neighbours(data: Array, usable: npt.NDArray[np.bool_], width: float) -> Array:
    """Return `data` with unusable pixels replaced by the mean of usable ones, weighted with a Gaussian.

    Parameters
    ----------
    data : ndarray, shape (ny, nx)
    usable : ndarray of bool, shape (ny, nx)
    width : float
        Sigma of the Gaussian, pixels. Where it meets no usable pixel the value is 0: that of the background.
    """
    weight = ndimage.gaussian_filter(usable.astype(data.dtype), width, mode="constant", truncate=3)
    mean = ndimage.gaussian_filter(np.where(usable, data, 0), width, mode="constant", truncate=3)
    return np.where(usable, data, mean / np.maximum(weight, 1e-3))


def predict(source: Array, p_from: Array, p_to: Array) -> Array:
    """Return what an image predicts for another one, by a Wiener filter from one point spread function to the other.

    Parameters
    ----------
    source : ndarray of complex, shape (ny, nx // 2 + 1)
        Transform of the image.
    p_from, p_to : ndarray of complex, same shape
        Transforms of the point spread functions.

    Returns
    -------
    ndarray of complex
        Transform of the prediction.
    """
    return source * p_to * p_from.conj() / (p_from.real**2 + p_from.imag**2 + SMALLEST)


def fill_from_each_other(
    images: tuple[Array, Array],
    usable: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]],
    transfers: tuple[Array, Array],
    width: float,
    shape: tuple[int, int],
) -> tuple[Array, Array]:
    """Return science image and template without holes.

    Pixels that only one of the two lacks are predicted by the other; what both lack comes from the neighbours.

    Parameters
    ----------
    images, usable : pairs of ndarray, shape (ny, nx)
        Science image and template, in one flux unit.
    transfers : pair of ndarray of complex
        Their point spread functions on the FFT grid.
    width : float
        Sigma for `fill_from_neighbours`, pixels.
    shape : (int, int)
        The FFT grid.
    """
    ny, nx = images[0].shape
    first = [fill_from_neighbours(data, good, width) for data, good in zip(images, usable, strict=True)]
    result = []
    for k in (0, 1):
        lacking = ~usable[k] & usable[1 - k]
        if lacking.any():
            other = fft.rfft2(first[1 - k], shape)
            seen = fft.irfft2(predict(other, transfers[1 - k], transfers[k]), shape)[:ny, :nx]
            result.append(np.where(lacking, seen, first[k]).astype(images[k].dtype))
        else:
            result.append(first[k])
    return result[0], result[1]
