"""`Exposure`: one image with all that belongs to it, and the names of its mask bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, ShapeError

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class MaskBit(IntFlag):
    """Named bits of an exposure's mask. Any bit of `UNUSABLE` gives a pixel weight 0."""

    NO_DATA = 1
    """No value: NaN or infinite in the file, or no usable input pixel where it was resampled from."""
    BAD = 2
    """Marked bad by the input's own mask or data-quality plane, or without a valid variance."""
    SATURATED = 4
    """At or above the saturation level, or bleeding from such a pixel."""
    COSMIC_RAY = 8
    """Hit by a cosmic ray."""
    EDGE = 16
    """So near to the border of the data that the kernel reaches outside."""
    SPREAD = 32
    """Touched by an unusable pixel through a kernel, with so little of its weight that it can still be used."""
    TEMPLATE = 64
    """In a difference: the reason (the other bits) comes from the template, not from the science image."""


UNUSABLE = MaskBit.NO_DATA | MaskBit.BAD | MaskBit.SATURATED | MaskBit.COSMIC_RAY | MaskBit.EDGE


LARGEST = float(np.float32(1e30))
"""No image reaches this value in any unit; what some programs write where they have no data does (-3.4e38)."""

_SINGLE = 1e-9, 1e9
"""Images whose largest value lies between these stay float32: the square of a variance is in its range."""


@dataclass(frozen=True, eq=False)
class Exposure:
    """One image: data, variance, mask and what is known of the detector and the sky.

    Data and variance are finite everywhere: a pixel that is NaN, infinite or beyond +-`LARGEST` becomes 0 with the mask
    bit `MaskBit.NO_DATA`, a variance that is not a positive finite number becomes 0, with `MaskBit.BAD` if the mask
    held no reason yet. Arrays are native-endian, contiguous and read-only; the caller's arrays are never changed.

    Parameters
    ----------
    data : array_like, shape (ny, nx)
        Pixel values, in `unit`. float64, whole numbers beyond 2^24, and images of so large or small values that
        float32 could not hold their squared variances, become float64; all else float32.
    variance : array_like, shape (ny, nx), optional
        Variance of each pixel, in `unit` squared, of the data's type.
    mask : array_like of int or bool, shape (ny, nx), optional
        Bits of `MaskBit`. A boolean mask means `MaskBit.BAD` where True.
    wcs : APE-14 WCS, optional
        Pixel to sky, 0-based pixel coordinates.
    psf : object, optional
        A point spread function, see `skyloom.psf`.
    gain : float, optional
        Electrons per unit of data.
    read_noise : float, optional
        Electrons.
    saturation : float, optional
        Data at or above this value get `MaskBit.SATURATED`.
    exptime : float, optional
        Seconds.
    zeropoint : float, optional
        Magnitude of a source of 1 unit of data.
    correlation : float
        Variance of the mean of many neighbouring pixels, in units of what independent pixels of this `variance` would
        have: 1 for raw pixels, > 1 after resampling (the square of R of Fruchter & Hook 2002, eq. 10).
    coverage : array_like, shape (ny, nx), optional
        Of a resampled image: the part of each pixel's kernel that fell on usable pixels, 0 to 1, float32.
    unit : str
        Unit of data, in FITS spelling.
    header : mapping, optional
        The header that came with the image (a copy is kept by the reader; it is not changed here).
    name : str
        What messages call this image: usually the file name.

    Raises
    ------
    ShapeError
        Data are not two-dimensional, or a plane has another shape.
    InputError
        Data are not real numbers, or a scalar makes no sense (negative gain, ...).
    """

    data: FloatArray
    variance: FloatArray | None = None
    mask: npt.NDArray[np.uint32] = None  # type: ignore[assignment]  # never None once constructed
    wcs: Any = None
    psf: Any = None
    gain: float | None = None
    read_noise: float | None = None
    saturation: float | None = None
    exptime: float | None = None
    zeropoint: float | None = None
    correlation: float = 1.0
    coverage: npt.NDArray[np.float32] | None = None
    unit: str = "adu"
    header: Mapping[str, Any] = field(default_factory=dict)
    name: str = "image"

    def __post_init__(self) -> None:
        data = _real_plane(self.data, None, f"data of {self.name}")
        self._check_scalars()
        mask = _mask_plane(self.mask, data.shape, f"mask of {self.name}")
        # masked arrays carry their own mask
        if isinstance(self.data, np.ma.MaskedArray):
            mask[np.ma.getmaskarray(self.data)] |= np.uint32(MaskBit.BAD)
        if not (data.min() >= -LARGEST and data.max() <= LARGEST):  # false for NaN, too
            bad = ~(np.abs(data) <= LARGEST)
            mask[bad] |= np.uint32(MaskBit.NO_DATA)
            data = np.where(bad, data.dtype.type(0), data)
        if self.saturation is not None:
            mask[data >= self.saturation] |= np.uint32(MaskBit.SATURATED)
        variance = None
        if self.variance is not None:
            with np.errstate(over="ignore"):  # what overflows is infinite, and so bad
                variance = _real_plane(self.variance, data.shape, f"variance of {self.name}")
                variance = variance.astype(data.dtype, copy=False)
            if not (variance.min() > 0 and variance.max() < np.inf):
                bad = np.flatnonzero(~((variance > 0) & (variance < np.inf)))  # true for NaN, too
                bits = mask.reshape(-1)
                bits[bad[(bits[bad] & np.uint32(UNUSABLE)) == 0]] |= np.uint32(MaskBit.BAD)
                if variance.reshape(-1)[bad].any():  # zeros are as they should be
                    variance = variance.copy()
                    variance.reshape(-1)[bad] = 0
        coverage = None
        if self.coverage is not None:
            coverage = np.ascontiguousarray(self.coverage, np.float32)
            if coverage.shape != data.shape:
                raise ShapeError(
                    f"The coverage of {self.name} has the shape {coverage.shape}, but the data {data.shape}."
                )
        for what, plane in (("data", data), ("variance", variance), ("mask", mask), ("coverage", coverage)):
            object.__setattr__(self, what, None if plane is None else _read_only(plane))

    def _check_scalars(self) -> None:
        for what, needed in (
            ("gain", "above 0"),
            ("exptime", "above 0"),
            ("correlation", "above 0"),
            ("read_noise", "of at least 0"),
            ("saturation", ""),
            ("zeropoint", ""),
        ):
            value = getattr(self, what)
            if value is None:
                continue
            try:
                good = bool(np.isfinite(value)) and (not needed or value > 0 or (value == 0 and what == "read_noise"))
            except (TypeError, ValueError):
                good = False
            if not good:
                raise InputError(
                    f"{what} of {self.name} is {value!r}; it must be a finite number {needed}".rstrip()
                    + f". Give the right one with {what}=.",
                    **{what: value},
                )

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the image, (ny, nx)."""
        ny, nx = self.data.shape
        return ny, nx

    @property
    def usable(self) -> BoolArray:
        """True where a pixel may be used, shape (ny, nx)."""
        return (self.mask & np.uint32(UNUSABLE)) == 0

    def replace(self, **changes: Any) -> Exposure:
        """Return a copy with some fields changed, checked like a new exposure."""
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        ny, nx = self.shape
        planes = "data" + ("+variance" if self.variance is not None else "")
        return (
            f"<Exposure {self.name!r} {nx}x{ny} {self.data.dtype} {planes} "
            f"usable={self.usable.mean():.1%} wcs={'yes' if self.wcs is not None else 'no'}>"
        )


def _real_plane(array: Any, shape: tuple[int, ...] | None, what: str) -> Any:
    """Return `array` as a contiguous native float plane, or say what is wrong with it."""
    array = np.asarray(np.ma.getdata(array) if isinstance(array, np.ma.MaskedArray) else array)
    if array.dtype.kind not in "fiub":
        raise InputError(f"The {what} are of type {array.dtype}; they must be real numbers.", dtype=str(array.dtype))
    if array.ndim != 2 or 0 in array.shape:
        raise ShapeError(
            f"The {what} have the shape {array.shape}; a two-dimensional image with at least one pixel is "
            "needed. Pick one plane of a cube, or the right extension.",
            shape=array.shape,
        )
    if shape is not None and array.shape != shape:
        raise ShapeError(
            f"The {what} has the shape {array.shape}, but the data have {shape}; they must be the same.",
            found=array.shape,
            needed=shape,
        )
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite, hence masked
        return np.ascontiguousarray(array, dtype=np.float64 if _needs_double(array) else np.float32)


def _needs_double(array: npt.NDArray[Any]) -> bool:
    """Whether float32 would lose what the array holds: double precision, or whole numbers of more than 24 bits."""
    if array.dtype.kind == "f":
        return array.dtype.itemsize > 4 or (array.dtype.itemsize == 4 and _beyond_single(array))
    return array.dtype.itemsize >= 4 and max(abs(int(array.min())), abs(int(array.max()))) > 2**24


def _beyond_single(array: npt.NDArray[Any]) -> bool:
    """Whether squares of the variances of float32 data, or of errors as small as 1e-6 of it, could be out of range."""
    with np.errstate(invalid="ignore"):
        top = max(abs(float(np.fmax.reduce(array, axis=None))), abs(float(np.fmin.reduce(array, axis=None))))
        if top > LARGEST:  # fill values tell nothing
            size = np.abs(array)
            top = float(np.max(size, initial=0, where=size <= LARGEST))
    return bool(top > 0) and not _SINGLE[0] <= top <= _SINGLE[1]


def _mask_plane(mask: Any, shape: tuple[int, ...], what: str) -> npt.NDArray[np.uint32]:
    """Return a new uint32 plane of mask bits."""
    if mask is None:
        return np.zeros(shape, np.uint32)
    mask = np.asarray(mask)
    if mask.shape != shape:
        raise ShapeError(
            f"The {what} has the shape {mask.shape}, but the data have {shape}; they must be the same.",
            found=mask.shape,
            needed=shape,
        )
    if mask.dtype.kind == "b":
        return np.where(mask, np.uint32(MaskBit.BAD), np.uint32(0))
    if mask.dtype.kind not in "iu":
        raise InputError(f"The {what} is of type {mask.dtype}; booleans or integers are needed.", dtype=str(mask.dtype))
    return np.array(mask, dtype=np.uint32, order="C")


def _read_only(array: Any) -> Any:
    view = array.view()
    view.flags.writeable = False
    return view
