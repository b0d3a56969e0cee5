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

UNUSABLE_LEVEL = 0
GAUSSIAN_MAD = 1.4826022185056018
"""Standard deviation of a Gaussian in units of its median absolute deviation."""


@dataclass(frozen=True)
class Stretch:
    """An inverse hyperbolic sine stretch to grey levels (Lupton, Gunn & Szalay 1999).

    Level 1 + (n - 1) u of the value v, with

    - u = asinh(z / softening) / asinh(1 / softening), z = (v - low) / (high - low), or
    - symmetric about the middle of [low, high]: u = (1 + asinh(z / softening) / asinh(1 / softening)) / 2,
      z = (v - middle) / (high - middle).

    Parameters
    ----------
    low, high : float
        Values of the first and the last level.
    softening : float
        Where the stretch turns from linear to logarithmic, as a part of the range.
    symmetric : bool
        True for differences: the middle level is the middle value.
    levels : int
        Number n of levels.
    """

    low: float
    high: float
    softening: float
    symmetric: bool = False
    levels: int = 128

    def apply(self, values: npt.NDArray[np.floating], usable: BoolArray) -> Levels:
        """Return the levels of `values`; `UNUSABLE_LEVEL` where `usable` is False or the value is not finite."""
        usable = usable & np.isfinite(values)
        scale = np.arcsinh(1 / self.softening)
        if self.symmetric:
            middle = (self.low + self.high) / 2
            z = np.clip((np.where(usable, values, middle) - middle) / (self.high - middle), -1, 1)
            u = (1 + np.arcsinh(z / self.softening) / scale) / 2
        else:
            z = np.clip((np.where(usable, values, self.low) - self.low) / (self.high - self.low), 0, 1)
            u = np.arcsinh(z / self.softening) / scale
        level = 1 + np.rint(u * (self.levels - 1)).astype(np.uint8)
        return np.where(usable, level, np.uint8(UNUSABLE_LEVEL))

    def as_dict(self) -> dict[str, float | bool | int]:
        """Return what the page needs to turn a level back into a value."""
        return {
            "low": self.low,
            "high": self.high,
            "softening": self.softening,
            "symmetric": self.symmetric,
            "levels": self.levels,
        }


def robust_location(values: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Return the median and the standard deviation from the median absolute deviation; (0, 0) of nothing."""
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 0.0
    middle = float(np.median(values))
    return middle, GAUSSIAN_MAD * float(np.median(np.abs(values - middle)))


def sky_stretch(values: npt.NDArray[np.floating], *, levels: int = 128, reach: float = 99.7) -> Stretch:
    """Return a stretch from just below the sky to the brightest sources, with the noise in its linear part.

    Parameters
    ----------
    values : array
        Usable pixel values, of one or more images that are to be shown alike.
    levels : int
        Number of grey levels.
    reach : float
        Percentile of `values` that becomes white, unless 10 times the noise is higher.
    """
    values = values[np.isfinite(values)]
    sky, noise = robust_location(values)
    if noise <= 0:
        noise = float(np.ptp(values)) / 10 if values.size and np.ptp(values) > 0 else 1.0
    low = sky - 2.5 * noise
    high = max(float(np.percentile(values, reach)) if values.size else 0.0, sky + 10 * noise)
    return Stretch(low, high, softening=float(np.clip(4 * noise / (high - low), 0.01, 1)), levels=levels)


def symmetric_stretch(noise: float, *, reach: float = 5.0, levels: int = 128) -> Stretch:
    """Return a stretch symmetric about zero, to `reach` times the noise (at least 5), with the noise resolved."""
    noise = noise if np.isfinite(noise) and noise > 0 else 1.0
    high = max(reach, 5.0) * noise
    return Stretch(-high, high, softening=float(np.clip(4 * noise / high, 0.02, 1)), symmetric=True, levels=levels)


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


def cut(plane: npt.NDArray, x: float, y: float, size: int, fill: float | bool) -> npt.NDArray:
    """Cut a square of odd `size` centred on the pixel of (x, y); outside of the plane it is `fill`."""
    out = np.full((size, size), fill, plane.dtype)
    if not (np.isfinite(x) and np.isfinite(y)):
        return out
    half, (ny, nx) = size // 2, plane.shape
    x0, y0 = round(x) - half, round(y) - half
    xa, xb, ya, yb = max(x0, 0), min(x0 + size, nx), max(y0, 0), min(y0 + size, ny)
    if xa < xb and ya < yb:
        out[ya - y0 : yb - y0, xa - x0 : xb - x0] = plane[ya:yb, xa:xb]
    return out


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
