"""Resampling by area overlap: each input pixel is shared among the output pixels that it covers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skyloom.exposure import UNUSABLE, Exposure, MaskBit
from skyloom.resampling.drizzle import Drizzle
from skyloom.resampling.maps import SampledMap, XYArray, invert_map, pixel_area_ratio, sample_map

_ROUNDING = 1e-3  # part of an output pixel's area that the curvature of a map can make appear lost


def resample_by_area(
    exposure: Exposure, sampled: SampledMap, *, conserve: str, max_lost: float, tolerance: float
) -> Exposure:
    """Resample by area overlap; see `skyloom.resampling.resample`, which calls this for ``method='area'``.

    An output pixel is the mean of the usable input pixels weighted by their overlap with it: square drizzle with
    pixfrac 1 (Fruchter & Hook 2002, section 2), all planes in one pass. The lost part of a pixel is 1 minus the overlap
    with usable pixels over the area of the output pixel. Where all of it is lost, outside of the image or to masked
    pixels, nothing is known: `MaskBit.NO_DATA`, beside the bits of these pixels.

    Parameters
    ----------
    exposure : Exposure
        The image.
    sampled : SampledMap
        From output pixels to pixels of the image.
    conserve : {'flux', 'surface brightness'}
        Whether to multiply by the area of the output pixel, in input pixels. Where nothing of it is lost this is the
        sum of its overlaps with them, so that all of the flux of the image is somewhere in the output.
    max_lost : float
        Largest lost part of an output pixel that is still used.
    tolerance : float
        Largest error of the coordinates, in input pixels.

    Returns
    -------
    Exposure
        On the output grid, without WCS; all pixels unusable if there is no overlap.
    """
    ny, nx = sampled.shape
    pixmap_out = sampled.rows(0, ny)
    area = pixel_area_ratio(pixmap_out)
    empty = exposure.replace(
        data=np.zeros((ny, nx), exposure.data.dtype),
        variance=None if exposure.variance is None else np.ones((ny, nx), exposure.data.dtype),
        mask=np.full((ny, nx), MaskBit.NO_DATA, np.uint32),
        coverage=np.zeros((ny, nx), np.float32),
        psf=None,
        saturation=None,
    )
    window = _window(pixmap_out, exposure.shape)
    if window is None:
        return empty
    rows, columns = window
    corner = np.array([columns.start, rows.start], np.float64)
    inverse = invert_map(sampled.map, sampled.shape)
    part = exposure.data[window]
    side = float(np.sqrt(np.nanmedian(area))) if np.isfinite(area).any() else 1.0  # of an output pixel, in input pixels
    pixmap = sample_map(lambda xy: inverse(xy + corner), part.shape, tolerance=tolerance / max(side, 1.0))
    usable = exposure.usable[window]
    if not reaches(pixmap, (ny, nx))[usable].any():
        return empty
    data, weight, *squares = (np.zeros((ny, nx), part.dtype) for _ in range(4))
    bits = np.zeros((ny, nx), np.uint32)
    drizzle = Drizzle(fillval=0.0, out_img=data, out_wht=weight, out_img2=squares, out_dq=bits, disable_ctx=True)
    ones = np.ones(part.shape, np.float32)
    variance = ones if exposure.variance is None else exposure.variance[window]
    drizzle.add_image(
        part,
        exptime=1.0,
        pixmap=pixmap,
        weight_map=usable.astype(np.float32),
        data2=[variance, ones],
        dq=np.where(usable, exposure.mask[window], np.uint32(0)),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = np.where(area > 0, 1 - weight / area, 1.0)  # area is NaN where the map is not known
    nothing = ~(lost < 1 - _ROUNDING)
    used = ~nothing & (lost <= max_lost)
    mask = np.where(used, bits, spread_bits(exposure.mask[window], pixmap, (ny, nx)))
    mask[used & (lost > _ROUNDING)] |= np.uint32(MaskBit.SPREAD)
    mask[nothing] |= np.uint32(MaskBit.NO_DATA)
    mask[~used & (mask & np.uint32(UNUSABLE) == 0)] |= np.uint32(MaskBit.EDGE)
    scale = np.where(used, np.where(lost <= _ROUNDING, weight, area) if conserve == "flux" else 1.0, 0.0)
    # sum_i a_i^2 / W^2 for equal variances, against 1 / W of independent shares
    gain = (squares[1] * weight)[used & (lost <= _ROUNDING)]
    return empty.replace(
        data=(scale * data).astype(part.dtype),
        variance=None if exposure.variance is None else (scale**2 * squares[0]).astype(part.dtype),
        mask=mask,
        coverage=np.where(nothing, 0.0, np.where(lost <= _ROUNDING, 1.0, 1 - lost)),
        correlation=exposure.correlation / (min(gain.mean(dtype=float), 1.0) if len(gain) else 1.0),
    )


def _window(pixmap: XYArray, shape: tuple[int, int]) -> tuple[slice, slice] | None:
    """Return the part of an image that a pixmap into it can reach, with a margin; None if there is none."""
    xy = pixmap[np.isfinite(pixmap).all(axis=2)]
    if not len(xy):
        return None
    steps = [np.fmax.reduce(np.abs(np.diff(pixmap, axis=axis)), axis=None, initial=0.0) for axis in (0, 1)]
    margin = 2 + float(max(steps))
    low = np.maximum(np.floor(xy.min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(xy.max(axis=0) + margin) + 1, shape[::-1]).astype(int)
    if (low >= high).any():
        return None
    return slice(low[1], high[1]), slice(low[0], high[0])


def reaches(pixmap: XYArray, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return which pixels of a pixmap fall into an image of some shape, to within one pixel."""
    x, y = pixmap[..., 0], pixmap[..., 1]
    return (x > -1.5) & (x < shape[1] + 0.5) & (y > -1.5) & (y < shape[0] + 0.5)


def spread_bits(mask: npt.NDArray[np.uint32], pixmap: XYArray, shape: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Carry the bits of unusable pixels to the output pixels around them.

    Parameters
    ----------
    mask : ndarray of uint32, shape (ny, nx)
        Bits of an image.
    pixmap : ndarray of float64, shape (ny, nx, 2)
        Its pixels' positions on the output grid.
    shape : (int, int)
        Shape of the output.

    Returns
    -------
    ndarray of uint32, of shape `shape`
        The bits of every unusable pixel, on the 2 x 2 pixels around its position.
    """
    bits = np.zeros(shape, np.uint32)
    y, x = np.nonzero(mask & np.uint32(UNUSABLE))
    xy = pixmap[y, x]
    near = reaches(xy, shape)
    corner = np.floor(xy[near]).astype(int)
    values = mask[y, x][near]
    for dy in (0, 1):
        for dx in (0, 1):
            i, j = corner[:, 0] + dx, corner[:, 1] + dy
            inside = (i >= 0) & (i < shape[1]) & (j >= 0) & (j < shape[0])
            np.bitwise_or.at(bits, (j[inside], i[inside]), values[inside])
    return bits
