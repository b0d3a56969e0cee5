"""The mask of a difference: what the kernel spread from unusable pixels."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from skyloom.convolution import convolve
from skyloom.exposure import UNUSABLE, Exposure, FloatArray, MaskBit
from skyloom.subtraction.kernel import SpatialKernel
from skyloom.subtraction.stamps import Planes, dilate

Mask = npt.NDArray[np.uint32]

# Of the noise, that light lost from a pixel may reach. Neighbouring pixels lose light together, and a PSF adds up some
# ten of them: what is a standard deviation in each is three in the flux.
_MOST_LOSS = 0.3
_TOUCHED = 1e-3  # a pixel that lost less than this share of the kernel's weight counts as untouched


def spread_mask(
    planes: Planes, exposure: Exposure, kernel: SpatialKernel, lost: FloatArray, *, sigma: FloatArray, max_lost: float
) -> Mask:
    """Return the mask of an exposure after the convolution.

    A pixel that lost some of the kernel's weight to unusable pixels, or outside of the image, was renormalised as if
    they held the mean of the others. It stays usable (`MaskBit.SPREAD`) if the share is at most `max_lost` and if
    what they may have held, sum |K| max |data nearby|, is below 0.3 of the difference's noise: so a bad column on
    empty sky costs little, and the surroundings of a saturated star are given up.

    Parameters
    ----------
    planes, exposure : Planes, Exposure
        The image that was convolved: without its pedestal, and as it came.
    kernel : SpatialKernel
    lost : ndarray, shape (ny, nx)
        Share of the kernel's weight that was lost.
    sigma : ndarray, shape (ny, nx)
        Noise of the convolved image minus the other.
    max_lost : float
    """
    touched = lost > _TOUCHED
    # a saturated core is worth more than the share of the kernel that falls on it
    given_up = (lost > max_lost) & touched | (_possible_loss(planes, exposure, kernel) > _MOST_LOSS * sigma)
    bits = np.zeros_like(exposure.mask)
    for bit in MaskBit:
        has = (exposure.mask & np.uint32(bit)) != 0
        if not has.any():
            continue
        # an unusable pixel that the kernel bridges is usable again; all other bits stay where they were
        bits[given_up & dilate(has, kernel.half) if bit & UNUSABLE else has] |= np.uint32(bit)
    bits[given_up & ((bits & np.uint32(UNUSABLE)) == 0)] |= np.uint32(MaskBit.EDGE)
    bits[touched & ~given_up] |= np.uint32(MaskBit.SPREAD)
    return bits


def _possible_loss(planes: Planes, exposure: Exposure, kernel: SpatialKernel) -> FloatArray:
    """Return sum |K| a over the unusable pixels in the kernel's reach, a being the brightest data around each of them.

    Saturated pixels count with the value that they have.
    """
    half = kernel.half
    ny, nx = planes.shape
    level = np.median(exposure.data[planes.usable]) if planes.usable.any() else 0
    saturated = (exposure.mask & np.uint32(MaskBit.SATURATED)) != 0
    brightness = np.abs(np.where(saturated, exposure.data - level, planes.data)).astype(np.float32)
    around = ndimage.maximum_filter(np.pad(brightness, half, mode="edge"), size=2 * ((half + 1) // 2) + 1)
    unusable = np.pad(~planes.usable, half, constant_values=True)
    loss = convolve(around, np.abs(kernel.image_at((nx - 1) / 2, (ny - 1) / 2)), unusable)
    return loss[half : half + ny, half : half + nx]


def combine_masks(spread: Mask, still: Mask, convolved: Literal["template", "science"]) -> Mask:
    """Join the mask of the convolved image with that of the other; the template's reasons get `MaskBit.TEMPLATE`.

    The border that the kernel cannot reach belongs to the method, whatever image was convolved.
    """
    of_template = spread if convolved == "template" else still
    reasons = of_template & ~np.uint32(MaskBit.EDGE | MaskBit.SPREAD)
    return spread | still | np.where(reasons != 0, np.uint32(MaskBit.TEMPLATE), np.uint32(0))
