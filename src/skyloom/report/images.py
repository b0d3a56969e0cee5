"""Pictures for the page: stretches to a few grey levels, PNG encoding, binned frames and sprite sheets.

The page gets *levels*, not colours: an 8-bit greyscale PNG whose grey value is 0 where a pixel cannot be used and
1 ... n elsewhere. The page paints them with a colour table of its own and, with the numbers of the `Stretch`, turns a
level back into a pixel value for the read-out. A few dozen levels are as many as an eye tells apart, and they compress
to about half a byte a pixel even for pure noise.
"""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skyloom.exposure import BoolArray

Plane = npt.NDArray[np.float32]
Levels = npt.NDArray[np.uint8]
Number = float | npt.NDArray[np.float64]

UNUSABLE_LEVEL = 0
GAUSSIAN_MAD = 1.4826022185056018
"""Standard deviation of a Gaussian in units of its median absolute deviation."""


@dataclass(frozen=True)
class Stretch:
    """An inverse hyperbolic sine stretch to grey levels (Lupton, Gunn & Szalay 1999).

    Level 1 + (n - 1) u of the value v, with

    - u = asinh(z / softening) / asinh(1 / softening), z = (v - low) / (high - low), or
    - symmetric about zero: u = (1 + asinh(z / softening) / asinh(1 / softening)) / 2, z = v / high.

    Parameters
    ----------
    low, high : float, or array of shape (n, 1, 1)
        Values of the first and the last level; arrays to stretch each of n pictures in its own way.
    softening : float or array
        Where the stretch turns from linear to logarithmic, as a part of the range.
    symmetric : bool
        True for differences: the middle level is zero, and ``low == -high``.
    levels : int
        Number n of levels.
    """

    low: Number
    high: Number
    softening: Number
    symmetric: bool = False
    levels: int = 128

    def apply(self, values: npt.NDArray[np.floating], usable: BoolArray) -> Levels:
        """Return the levels of `values`; `UNUSABLE_LEVEL` where `usable` is False or the value is not finite."""
        usable = usable & np.isfinite(values)
        scale = np.arcsinh(1 / self.softening)
        values = np.where(usable, values, 0)
        if self.symmetric:
            u = (1 + np.arcsinh(np.clip(values / self.high, -1, 1) / self.softening) / scale) / 2
        else:
            u = np.arcsinh(np.clip((values - self.low) / (self.high - self.low), 0, 1) / self.softening) / scale
        level = 1 + np.rint(u * (self.levels - 1)).astype(np.uint8)
        return np.where(usable, level, np.uint8(UNUSABLE_LEVEL))

    def as_dict(self) -> dict[str, float | bool | int]:
        """Return what the page needs to turn a level back into a value; only for a stretch of scalars."""
        return {
            "low": float(self.low),
            "high": float(self.high),
            "softening": float(self.softening),
            "symmetric": self.symmetric,
            "levels": self.levels,
        }


def quantiles(values: npt.NDArray[np.floating], *parts: float) -> list[npt.NDArray[np.float64]]:
    """Return quantiles (nearest rank) of the finite values along the last axis; 0 where there are none."""
    ordered = np.sort(np.where(np.isfinite(values), values, np.nan), axis=-1)  # NaN comes last
    count = np.isfinite(ordered).sum(axis=-1)
    if ordered.shape[-1] == 0:
        return [np.zeros(count.shape) for _ in parts]
    found = []
    for part in parts:
        rank = np.rint(part * np.maximum(count - 1, 0)).astype(np.intp)
        picked = np.take_along_axis(ordered, rank[..., None], axis=-1)[..., 0]
        found.append(np.where(count > 0, picked, 0.0).astype(np.float64))
    return found


def robust_location(values: npt.NDArray[np.floating]) -> tuple[Number, Number]:
    """Return median and standard deviation (from the median absolute deviation) of the finite values, last axis."""
    (middle,) = quantiles(values, 0.5)
    (deviation,) = quantiles(np.abs(values - middle[..., None]), 0.5)
    return middle, GAUSSIAN_MAD * deviation


def sky_stretch(values: npt.NDArray[np.floating], *, levels: int = 128, reach: float = 0.997) -> Stretch:
    """Return a stretch from just below the sky to the brightest sources, with the noise in its linear part.

    Parameters
    ----------
    values : array, shape (m,) or (n, m)
        Pixel values, of one or more images that are to be shown alike; NaN where unusable. From two dimensions comes a
        stretch of arrays (n, 1, 1), for n pictures.
    levels : int
        Number of grey levels.
    reach : float
        Quantile of `values` that becomes white, unless 10 times the noise is higher.
    """
    sky, noise = robust_location(values)
    bottom, top, bright = quantiles(values, 0, 1, reach)
    # a picture without noise still needs a range
    noise = np.where(noise > 0, noise, np.where(top > bottom, (top - bottom) / 10, 1.0))
    low = sky - 2.5 * noise
    high = np.maximum(bright, sky + 10 * noise)
    softening = np.clip(4 * noise / (high - low), 0.01, 1)
    return Stretch(_outer(low), _outer(high), _outer(softening), levels=levels)


def symmetric_stretch(noise: Number, *, reach: Number = 5.0, levels: int = 128) -> Stretch:
    """Return a stretch symmetric about zero, to `reach` times the noise (at least 5), with the noise resolved."""
    noise = np.where(np.isfinite(noise) & (np.asarray(noise) > 0), noise, 1.0)
    high = np.maximum(reach, 5.0) * noise
    softening = np.clip(4 * noise / high, 0.02, 1)
    return Stretch(_outer(-high), _outer(high), _outer(softening), symmetric=True, levels=levels)


def _outer(values: Number) -> Number:
    """Give n values two more axes, so that they apply to n pictures; leave a single value alone."""
    values = np.asarray(values, dtype=np.float64)
    return values[..., None, None] if values.ndim else float(values)


def bin_plane(values: Plane, usable: BoolArray, factor: int, *, extreme: bool = False) -> tuple[Plane, BoolArray]:
    """Bin by `factor`: the mean of the usable pixels of each block, or their value farthest from zero.

    A block is usable when at least half of its pixels are. Blocks at the upper and right border may be cut short.

    Returns
    -------
    binned, usable : array, shape (ceil(ny / factor), ceil(nx / factor))
    """
    if factor == 1:
        return values, usable
    ny, nx = values.shape
    pad = ((0, -ny % factor), (0, -nx % factor))
    shape = ((ny + pad[0][1]) // factor, factor, (nx + pad[1][1]) // factor, factor)
    inside = np.pad(np.ones((ny, nx), bool), pad).reshape(shape).sum(axis=(1, 3))
    good = np.pad(usable, pad).reshape(shape)
    blocks = np.where(good, np.pad(values, pad).reshape(shape), np.float32(0))
    count = good.sum(axis=(1, 3))
    if extreme:
        top, bottom = blocks.max(axis=(1, 3)), blocks.min(axis=(1, 3))
        binned = np.where(top >= -bottom, top, bottom)
    else:
        binned = blocks.sum(axis=(1, 3), dtype=np.float64) / np.maximum(count, 1)
    return binned.astype(np.float32), 2 * count >= inside


def cut(plane: npt.NDArray, xy: npt.NDArray[np.float64], size: int, fill: float | bool) -> npt.NDArray:
    """Cut squares of odd `size` centred on the pixels of positions `xy` (n, 2); outside of the plane they are `fill`.

    Returns
    -------
    array, shape (n, size, size)
    """
    ny, nx = plane.shape
    steps = np.arange(size) - size // 2
    # a position that is not known is outside
    corner = np.rint(np.where(np.isfinite(xy), xy, -2.0 * size)).astype(np.intp)
    column, row = (corner[:, k, None] + steps for k in (0, 1))
    inside = ((row >= 0) & (row < ny))[:, :, None] & ((column >= 0) & (column < nx))[:, None, :]
    values = plane[np.clip(row, 0, ny - 1)[:, :, None], np.clip(column, 0, nx - 1)[:, None, :]]
    return np.where(inside, values, np.asarray(fill, dtype=plane.dtype))


def png_uri(levels: Levels) -> str:
    """Encode a greyscale picture as a PNG data URI, row 0 of the array at the bottom.

    Portable Network Graphics, 2nd edition (ISO/IEC 15948:2003): colour type 0, 8 bits, no filter (filters do not help
    noise), no ancillary chunks, so that a browser does not change the grey values.
    """
    ny, nx = levels.shape
    rows = np.zeros((ny, nx + 1), np.uint8)
    rows[:, 1:] = levels[::-1]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", nx, ny, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6))
        + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
