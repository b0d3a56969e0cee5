"""Is a fitted kernel one that images can have? The last look before a difference is handed out."""

from __future__ import annotations

import numpy as np

from skyloom.errors import SubtractionError
from skyloom.exposure import UNUSABLE
from skyloom.subtraction.kernel import SpatialKernel
from skyloom.subtraction.result import Subtraction

_MOST_RINGING = 10.0
"""Largest sum |K| / |sum K|: matching kernels have 1 to 3, some that deconvolve reach 5; a runaway fit has hundreds."""

_GRID = 5
"""Places along each axis at which a kernel is looked at."""


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
    polynomial = kernel.polynomial
    for y in np.linspace(y0, y1, _GRID):
        for x in np.linspace(x0, x1, _GRID):
            image = polynomial.image_at(x, y)
            total, absolute = float(image.sum()), float(np.abs(image).sum())
            if np.isfinite(absolute) and total > 0 and absolute <= _MOST_RINGING * total:
                continue
            raise SubtractionError(
                f"The fitted kernel is not sane: at x={x:.0f}, y={y:.0f} its sum is {total:.3g} and the sum of its "
                f"absolute values {absolute:.3g}; a positive sum, and at most {_MOST_RINGING:g} times as much, are "
                "needed. Check that both images show the same stars, give a lower spatial order, or convolve the "
                "other image.",
                sum=total,
                absolute_sum=absolute,
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
            "lower spatial order, or scale the images so that their values lie nearer to 1.",
            found=bad,
        )
