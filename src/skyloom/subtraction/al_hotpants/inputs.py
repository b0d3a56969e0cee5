"""The images of `run_hotpants` as the fit and the convolution see them: pedestal off, bad pixels known, variances."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom._threads import map_bands, row_bands
from skyloom.background import MAD_TO_SIGMA, median
from skyloom.errors import NoUsableDataError
from skyloom.exposure import LARGEST
from skyloom.subtraction.al_hotpants.options import HotpantsOptions
from skyloom.subtraction.dropin_arguments import real_plane, usable_errors
from skyloom.subtraction.sanity import check_range

_SAMPLE = 256  # pixels along each axis, at most, from which levels are found
_BAND = 1 << 18  # pixels that are worked on together
_LEAST_VARIANCE = 1e-6  # in units of the sky's: only keeps divisions finite


class HotpantsBit(IntFlag):
    """Bits of the masks of HOTPANTS 5.1.11."""

    BAD_PIXVAL = 0x01
    """Equal to the fill value."""
    SAT_PIXEL = 0x02
    """At or above the upper limit."""
    LOW_PIXEL = 0x04
    """At or below the lower limit."""
    ISNAN = 0x08
    """NaN or infinite, the pixel or its noise."""
    BAD_CONV = 0x10
    """Too much of the kernel lies on bad pixels."""
    INPUT_MASK = 0x20
    """Masked by the user."""
    OK_CONV = 0x40
    """Touched by bad pixels, and usable."""
    INPUT_ISBAD = 0x80
    """Bad in an input: with every bit above but BAD_CONV and OK_CONV."""
    OUTPUT_ISBAD = 0x8000
    """Bad in the output."""


@dataclass(frozen=True, eq=False)
class Plane:
    """One image.

    Parameters
    ----------
    raw : ndarray, shape (ny, nx)
        As given.
    data : ndarray of float32
        Less `pedestal`; 0 where bad.
    bits : ndarray of uint16
        `HotpantsBit`.
    pedestal : float
        What was subtracted: the user's pedestal and the median.
    level : float
        The median, without the user's pedestal: the noise of a pixel follows from data + level.
    noise : ndarray or None
        Standard deviation of each pixel.
    gain, read_noise : float
        e-/ADU and e-, for the variance where there is no `noise`.
    sky_variance : float
        Measured.
    """

    raw: npt.NDArray[Any]
    data: npt.NDArray[np.float32]
    bits: npt.NDArray[np.uint16]
    pedestal: float
    level: float
    noise: npt.NDArray[Any] | None
    gain: float
    read_noise: float
    sky_variance: float
    name: str = field(default="image")

    def bad(self, where: Where | list[Where]) -> npt.NDArray[np.bool_]:
        """Return where a part is bad, or parts of one shape are."""
        return (_pixels(self.bits, where) & np.uint16(HotpantsBit.INPUT_ISBAD)) != 0

    def variance(self, where: Where | list[Where]) -> npt.NDArray[np.float32]:
        """Return the variance of a part, or of parts of one shape.

        It is noise^2, or |data| / gain + (read noise / gain)^2 as in HOTPANTS.
        """
        if self.noise is not None:
            variance = _pixels(self.noise, where).astype(np.float32)
            with np.errstate(over="ignore"):  # an infinite variance is what such errors mean
                np.square(variance, out=variance)
        else:
            variance = _pixels(self.data, where) + np.float32(self.level)
            np.abs(variance, out=variance)
            variance /= np.float32(self.gain)
            variance += np.float32((self.read_noise / self.gain) ** 2)
        # `fmax`: also where it is NaN; those pixels are bad
        return np.fmax(variance, np.float32(_LEAST_VARIANCE * self.sky_variance), out=variance)

    def finite_variance(self, where: Where | list[Where]) -> npt.NDArray[np.float32]:
        """Return the variance of parts for sums over pixels, in which 0 times infinity would be NaN.

        Where pixels are bad, and may have any error, it is that of the sky.
        """
        variance = np.minimum(self.variance(where), np.float32(LARGEST))
        variance[self.bad(where)] = self.sky_variance
        return variance


Where = tuple[slice, slice]
"""Rows and columns of a part."""


def _pixels(plane: npt.NDArray[Any], where: Where | list[Where]) -> npt.NDArray[Any]:
    """Return a part of a plane, or a stack of parts."""
    return np.stack([plane[part] for part in where]) if isinstance(where, list) else plane[where]


def prepare(name: str, raw: Any, mask: Any, noise: Any, options: HotpantsOptions) -> Plane:
    """Find the bad pixels of an image and take off its pedestal.

    Parameters
    ----------
    name : {'image', 'template'}
        Which options count: those that begin with i, or with t.
    raw : array_like, shape (ny, nx)
    mask : array_like, shape (ny, nx), optional
        Every pixel that is not 0 is bad: HOTPANTS wants the bit 0x80 for it, or it has next to no effect there.
    noise : array_like, shape (ny, nx), optional
        Standard deviation; pixels where it is not a positive finite number are bad.

    Raises
    ------
    ShapeError, InputError, NoUsableDataError
        Not a plane of real numbers; masks or noise of another shape; no pixel is good.
    """
    raw = real_plane(raw, f"the {name}")
    check_range(f"the {name}", raw)
    planes = {}
    for what, plane in (("mask", mask), ("noise", noise)):
        planes[what] = None if plane is None else real_plane(plane, f"the {what} of the {name}", raw.shape)
    prefix = name[0]
    upper, lower, pedestal = (getattr(options, prefix + suffix) for suffix in ("u", "l", "p"))
    bits = np.zeros(raw.shape, np.uint16)
    data = np.empty(raw.shape, np.float32)

    def find_bad(rows: tuple[int, int]) -> None:
        part = slice(*rows)
        bits[part] = _bad_bits(raw[part], *(None if p is None else p[part] for p in planes.values()),
                               upper=upper, lower=lower, fill=options.fi)  # fmt: skip

    bands = row_bands(raw.shape[0], max(1, _BAND // raw.shape[1]))
    map_bands(find_bad, bands)
    level, deviation = sampled_level(raw, bits)
    if not np.isfinite(level):
        raise NoUsableDataError(
            f"No pixel of the {name} is good: all are masked, NaN, or outside of {prefix}l={lower:g} and "
            f"{prefix}u={upper:g}. Check the mask and these limits (extra=)."
        )

    def take_off(rows: tuple[int, int]) -> None:
        part = slice(*rows)
        with np.errstate(invalid="ignore", over="ignore"):
            data[part] = raw[part] - level
        if (bad := bits[part] != 0).any():
            data[part][bad] = 0

    map_bands(take_off, bands)
    return Plane(
        raw, data, bits, level, level - pedestal, planes["noise"],
        getattr(options, prefix + "g"), getattr(options, prefix + "r"), deviation**2, name,
    )  # fmt: skip


def _bad_bits(
    raw: npt.NDArray[Any], mask: npt.NDArray[Any] | None, noise: npt.NDArray[Any] | None, *,
    upper: float, lower: float, fill: float,
) -> npt.NDArray[np.uint16]:  # fmt: skip
    bits = np.zeros(raw.shape, np.uint16)
    bad = HotpantsBit.INPUT_ISBAD
    low, high = raw.min(), raw.max()  # NaN if there is any: then no comparison tells that all pixels are good
    if not high < upper:
        bits[raw >= upper] |= np.uint16(HotpantsBit.SAT_PIXEL | bad)
    if not low > lower:
        bits[raw <= lower] |= np.uint16(HotpantsBit.LOW_PIXEL | bad)
    if raw.dtype.kind == "f":
        filled = raw.dtype.type(fill)
        if not (filled < low or filled > high):
            bits[raw == filled] |= np.uint16(HotpantsBit.BAD_PIXVAL | bad)
        if not (low >= -LARGEST and high <= LARGEST):
            bits[~(np.abs(raw) <= LARGEST)] |= np.uint16(HotpantsBit.ISNAN | bad)
    if noise is not None:
        bits[~usable_errors(noise)] |= np.uint16(HotpantsBit.ISNAN | bad)
    if mask is not None:
        masked = mask if mask.dtype == bool else mask != 0
        if masked.any():
            bits[masked] |= np.uint16(HotpantsBit.INPUT_MASK | bad)
            if mask.dtype.kind in "iu":  # bits of the user travel along, but for those that the output sets
                own = mask[masked].astype(np.int64) & 0x7F2F
                bits[masked] |= own.astype(np.uint16)
    return bits


def sampled_level(raw: npt.NDArray[Any], bad: npt.NDArray[Any]) -> tuple[float, float]:
    """Return median and normalised median deviation of good pixels, on a lattice of them; NaN if there are none.

    `bad` is 0 where pixels are good.
    """
    step = tuple(-(-n // _SAMPLE) for n in raw.shape)
    lattice = slice(None, None, step[0]), slice(None, None, step[1])
    values = raw[lattice][bad[lattice] == 0]
    if len(values) < min(1000, raw.size // 2):
        values = raw[bad == 0]
    if not len(values):
        return np.nan, np.nan
    values = values.astype(np.float64)
    level = median(values)
    return level, MAD_TO_SIGMA * median(np.abs(values - level))
