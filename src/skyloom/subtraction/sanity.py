"""Are images and kernels such as can be? A look before the fit, and the last before a difference is handed out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, SubtractionError
from skyloom.exposure import LARGEST, UNUSABLE, Exposure
from skyloom.subtraction.kernel import SpatialKernel
from skyloom.subtraction.result import Subtraction

_MOST_RINGING = 10.0
"""Largest sum |K| / |sum K|: matching kernels have 1 to 3, some that deconvolve reach 5; a runaway fit has hundreds."""

_GRID = 5
"""Places along each axis at which a kernel is looked at."""


_RANGE = 1e-16, 1e15
"""Of what pixels hold as a rule, so that squares of noise and of bright stars are numbers in single precision."""

_ORDINARY = 1e-9, 1e9
"""Values that need no other unit."""

_SAMPLE = 64
"""Pixels along each axis, at most, of which the values are looked at."""


def typical_value(data: npt.NDArray[Any]) -> float:
    """Return the median of the absolute values of a sample of an image's pixels; 1 if there are none.

    Pixels that are 0, not finite or beyond `LARGEST` do not count.
    """
    sample = np.abs(data[tuple(slice(None, None, -(-n // _SAMPLE)) for n in data.shape)].astype(np.float64))
    sample = sample[(sample > 0) & (sample <= LARGEST)]
    return float(np.median(sample)) if sample.size else 1.0


def natural_unit(exposure: Exposure) -> float:
    """Return the power of 2 in whose units an image is to be subtracted: 1 where its values are not extreme."""
    typical = typical_value(exposure.data)
    return 1.0 if _ORDINARY[0] <= typical <= _ORDINARY[1] else 2.0 ** round(np.log2(typical))


def in_unit(exposure: Exposure, unit: float) -> Exposure:
    """Return an exposure whose values are those in another unit, a power of 2."""
    return exposure.replace(
        data=exposure.data.astype(np.float64) / unit,
        variance=None if exposure.variance is None else exposure.variance.astype(np.float64) / unit**2,
        gain=None if exposure.gain is None else exposure.gain * unit,
        saturation=None if exposure.saturation is None else exposure.saturation / unit,
    )


def check_range(name: str, data: npt.NDArray[Any]) -> None:
    """Raise if an image's values are so large or small that their squares are none in single precision.

    Parameters
    ----------
    name : str
        For the message.
    data : ndarray, shape (ny, nx)

    Raises
    ------
    InputError
        The typical value is out of range.
    """
    typical = typical_value(data)
    if not _RANGE[0] <= typical <= _RANGE[1]:
        raise InputError(
            f"The values of {name} are of the order of {typical:.1g}; they must lie between {_RANGE[0]:g} and "
            f"{_RANGE[1]:g}, so that single precision holds their squares. Multiply the image by a constant, its "
            "errors by the same, and its variance by its square.",
            found=typical,
        )


def check_kernel(kernel: SpatialKernel, box: tuple[int, int, int, int]) -> None:
    """Raise if the kernel is not finite, not positive, or rings, somewhere in the part of the image that it is for.

    Parameters
    ----------
    kernel : SpatialKernel
        The fitted kernel.
    box : (int, int, int, int)
        That part, x0, x1, y0, y1: pixels, inclusive.

    Raises
    ------
    SubtractionError
        The kernel cannot be right.
    """
    x0, x1, y0, y1 = box
    y, x = (axis.ravel() for axis in np.meshgrid(np.linspace(y0, y1, _GRID), np.linspace(x0, x1, _GRID), indexing="ij"))
    images = np.tensordot(kernel.polynomial.terms_at(x, y).T, kernel.polynomial.planes, axes=1)
    totals, absolutes = images.sum(axis=(1, 2)), np.abs(images).sum(axis=(1, 2))
    sane = np.isfinite(absolutes) & (totals > 0) & (absolutes <= _MOST_RINGING * totals)
    if not sane.all():
        k = int(np.argmin(sane))
        raise SubtractionError(
            f"The fitted kernel is not sane: at x={x[k]:.0f}, y={y[k]:.0f} its sum is {totals[k]:.3g} and the sum of "
            f"its absolute values {absolutes[k]:.3g}; a positive sum, and at most {_MOST_RINGING:g} times as much, are "
            "needed. Check that both images show the same stars, give a lower spatial order "
            "(--spatial-order), or convolve the other image (--convolve).",
            sum=float(totals[k]),
            absolute_sum=float(absolutes[k]),
        )


def check_variance(result: Subtraction) -> None:
    """Raise if a usable pixel's value is not finite, or its variance not positive and finite.

    Raises
    ------
    SubtractionError
        Numbers are beyond what floating point can hold, or the kernel's variation ran away.
    """
    usable = (result.mask & np.uint32(UNUSABLE)) == 0
    good = np.isfinite(result.image) & np.isfinite(result.variance) & (result.variance > 0)
    for part in (result.variance_science, result.variance_template):
        good &= part >= 0
    if bad := int(np.count_nonzero(usable & ~good)):
        raise SubtractionError(
            f"The difference has {bad} usable pixels without a finite value and a positive finite variance. Give a "
            "lower spatial order (--spatial-order), or scale the images so that their values lie nearer to 1.",
            found=bad,
        )
