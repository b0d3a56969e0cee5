"""Point spread functions as arrays: constant (`ArrayPsf`) and varying over the field (`PsfModel`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d, zoom

from skyloom.errors import InputError, ShapeError
from skyloom.psf.shift import shift_matrices, shift_stamp

Stamp = npt.NDArray[np.float64]

FINER = 16
"""Samples per pixel on which widths are measured."""


@runtime_checkable
class Psf(Protocol):
    """What every stage asks of a point spread function."""

    @property
    def half(self) -> int:
        """Half size of the stamps: they have 2 half + 1 pixels on a side."""

    def stamp(self, x: float, y: float) -> Stamp:
        """Return the PSF at (x, y), centred on the middle pixel, with unit sum."""


def stamp_fwhm(stamp: Stamp) -> float:
    """Full width at half maximum of a stamp: the diameter of the circle with the area of {stamp > maximum / 2}.

    The stamp is interpolated 16-fold by cubic splines, so that the result does not step with the pixels. It contains
    the blurring by the pixel: a Gaussian of FWHM F, integrated over pixels, has about ``sqrt(F**2 + 0.46)``.
    """
    half_y, half_x = (n // 2 for n in stamp.shape)
    row, column = np.nonzero(stamp > stamp.max() / 5)  # the rest cannot reach half of the maximum
    reach = int(max(np.abs(row - half_y).max(), np.abs(column - half_x).max())) + 2
    width = min(half_y, half_x, reach)
    core = stamp[half_y - width : half_y + width + 1, half_x - width : half_x + width + 1]
    finer = _finer(len(core))
    fine = finer @ core @ finer.T
    return float(2 * np.sqrt(np.count_nonzero(fine > fine.max() / 2) / np.pi) / FINER)


@lru_cache(maxsize=16)
def _finer(n: int) -> Stamp:
    """Return the matrix that interpolates n samples `FINER`-fold, shape ((n - 1) FINER + 1, n)."""
    size = (n - 1) * FINER + 1
    return np.asarray(zoom(np.eye(n), (size / n, 1), order=3, grid_mode=False))


def is_whole(value: object) -> bool:
    """Tell whether a value is an integer, of Python or NumPy; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def stamps_of(psf: Psf, x: Stamp, y: Stamp) -> Stamp:
    """Return the PSF at many positions, shape (N, 2 half + 1, 2 half + 1)."""
    if isinstance(psf, PsfModel):
        return psf.stamps(x, y)
    return np.array([psf.stamp(float(one), float(other)) for one, other in zip(x, y, strict=True)])


def stamp_at(psf: Psf, x: float, y: float, dx: float, dy: float) -> Stamp:
    """Return a PSF at (x, y), centred (dx, dy) pixels from the middle pixel, from its finest samples."""
    evaluate = getattr(psf, "stamp_at", None)
    return shift_stamp(psf.stamp(x, y), dx, dy) if evaluate is None else np.asarray(evaluate(x, y, dx, dy))


def slopes(images: Stamp) -> Stamp:
    """Return the derivatives of images along x and y per sample, of fourth order, shape (2, ..., n, n)."""
    stencil = np.array([1.0, -8.0, 0.0, 8.0, -1.0]) / 12
    return np.stack([correlate1d(images, stencil, axis, mode="constant") for axis in (-1, -2)])


def polynomial_terms(x: npt.ArrayLike, y: npt.ArrayLike, order: int, shape: tuple[int, int]) -> Stamp:
    """Monomials ``X**i Y**j``, i + j <= order, of positions scaled to -1...1 over an image of `shape`.

    Returns
    -------
    terms : ndarray, shape (..., (order + 1) (order + 2) / 2), float64
        1, X, Y, X**2, X Y, Y**2, ...
    """
    ny, nx = shape
    X = (np.asarray(x, float) - (nx - 1) / 2) / max((nx - 1) / 2, 1)
    Y = (np.asarray(y, float) - (ny - 1) / 2) / max((ny - 1) / 2, 1)
    return np.stack([X ** (total - j) * Y**j for total in range(order + 1) for j in range(total + 1)], axis=-1)


@dataclass(frozen=True, eq=False)
class PsfModel:
    """A point spread function whose samples are polynomials of the position in the image.

    ``P(u; x, y) = sum_k p_k(x, y) Phi_k(u)`` with the monomials p_k of `polynomial_terms`. P is the *effective* PSF
    (Anderson & King 2000, PASP 112, 1360): it holds the blurring by the pixels of the detector, so that P(u) is what
    a pixel at u from the star's centre receives, and nothing is integrated. Stars narrower than some three pixels
    are not known from one value a pixel; their P is sampled `oversampling` times a pixel along each side, the middle
    sample being the centre, and interpolated between samples (`shift_matrices`). A stamp takes every `oversampling`-th
    sample. Over the pixels of a centred stamp Phi_0 has the sum 1 and the other basis images 0: stamps have unit sum.

    Parameters
    ----------
    basis : ndarray, shape (n_terms, n, n), n = 2 half oversampling + 1, float64
        Phi_k.
    order : int
        Degree of the polynomials.
    shape : tuple of int
        Shape (ny, nx) of the image, which scales the positions.
    n_stars : int
        Number of stars that the model rests on.
    statistics : mapping
        How well the model describes its stars; see `estimate_psf`.
    oversampling : int
        Samples per pixel along each side.

    Raises
    ------
    InputError
        The oversampling is no whole number of at least 1.
    ShapeError
        The sides of the basis do not fit the oversampling.
    """

    basis: Stamp
    order: int
    shape: tuple[int, int]
    n_stars: int = 0
    statistics: Mapping[str, float] = field(default_factory=dict)
    oversampling: int = 1

    def __post_init__(self) -> None:
        if not is_whole(self.oversampling) or self.oversampling < 1:
            raise InputError(
                f"oversampling is {self.oversampling!r}; a whole number of at least 1 sample per pixel is needed.",
                oversampling=self.oversampling,
            )
        object.__setattr__(self, "oversampling", int(self.oversampling))
        basis = np.array(self.basis, dtype=float)
        if basis.ndim != 3 or basis.shape[1] != basis.shape[2] or (basis.shape[1] - 1) % (2 * self.oversampling):
            raise ShapeError(
                f"The basis has the shape {basis.shape}; (terms, n, n) is needed, n - 1 being a multiple of twice the "
                f"oversampling, {self.oversampling}.",
                found=basis.shape,
            )
        basis.flags.writeable = False
        object.__setattr__(self, "basis", basis)

    @property
    def half(self) -> int:
        """Half size of the stamps, pixels."""
        return int(self.basis.shape[-1] // 2) // self.oversampling

    def stamp(self, x: float, y: float) -> Stamp:
        """Return the PSF at (x, y), centred on the middle pixel, with unit sum; outside, that of the border."""
        return np.asarray(self.stamps(np.array([x], float), np.array([y], float))[0])

    def stamp_at(self, x: float, y: float, dx: float, dy: float) -> Stamp:
        """Return the PSF at (x, y), centred (dx, dy) pixels from the middle pixel."""
        return np.asarray(self.stamps_at(*(np.array([value], float) for value in (x, y, dx, dy)))[0])

    def stamps(self, x: Stamp, y: Stamp) -> Stamp:
        """Return `stamp` for many positions, shape (N, 2 half + 1, 2 half + 1)."""
        pixels = self.basis[:, :: self.oversampling, :: self.oversampling]
        return np.asarray(np.tensordot(self.terms(x, y), pixels, 1))

    def stamps_at(self, x: Stamp, y: Stamp, dx: Stamp, dy: Stamp) -> Stamp:
        """Return `stamp_at` for many positions, shape (N, 2 half + 1, 2 half + 1)."""
        return self.evaluate(x, y, self.pixel_matrices(dx), self.pixel_matrices(dy))

    def pixel_matrices(self, offset: Stamp) -> Stamp:
        """Return what takes the samples of an axis to pixels, for stars so many pixels from the middle one."""
        return shift_matrices(self.basis.shape[-1], np.asarray(offset) * self.oversampling, self.oversampling)

    def evaluate(self, x: Stamp, y: Stamp, to_x: Stamp, to_y: Stamp) -> Stamp:
        """Return the PSF at some positions in the image, taken to pixels by given `pixel_matrices`."""
        return np.asarray(to_y @ np.tensordot(self.terms(x, y), self.basis, 1) @ to_x.transpose(0, 2, 1))

    def terms(self, x: Stamp, y: Stamp) -> Stamp:
        """Return the polynomial terms at some positions, shape (N, n_terms); outside, those of the border."""
        ny, nx = self.shape
        return polynomial_terms(np.clip(x, 0, nx - 1.0), np.clip(y, 0, ny - 1.0), self.order, self.shape)

    def fwhm(self, x: float | None = None, y: float | None = None) -> float:
        """Full width at half maximum in pixels (see `stamp_fwhm`) at (x, y), by default the image centre."""
        ny, nx = self.shape
        at = [np.array([(n - 1) / 2 if one is None else float(one)]) for n, one in ((nx, x), (ny, y))]
        return stamp_fwhm(np.tensordot(self.terms(*at), self.basis, 1)[0]) / self.oversampling

    def __repr__(self) -> str:
        size = f"half {self.half}, oversampling {self.oversampling}, FWHM {self.fwhm():.2f} px"
        return f"<PsfModel order {self.order}, {size}, {self.n_stars} stars>"


class ArrayPsf:
    """A point spread function that is the same everywhere.

    Parameters
    ----------
    array : array_like, shape (n, m), n and m odd
        The PSF, centred on the middle pixel; it is divided by its sum.

    Raises
    ------
    ShapeError
        The array is not two-dimensional with odd sides.
    InputError
        A value is not finite, or the sum is not above 0.
    """

    def __init__(self, array: npt.ArrayLike) -> None:
        stamp = np.array(array, dtype=float)
        if stamp.ndim != 2 or stamp.shape[0] % 2 == 0 or stamp.shape[1] % 2 == 0:
            raise ShapeError(
                f"The PSF array has the shape {stamp.shape}; two odd sides are needed, so that there is a "
                "middle pixel. Pad it with a row and a column of zeros.",
                shape=stamp.shape,
            )
        total = float(stamp.sum())
        if not np.isfinite(stamp).all() or not total > 0:
            raise InputError(
                f"The PSF array has the sum {total}; finite values with a sum above 0 are needed.", sum=total
            )
        side = max(stamp.shape)
        pad = [((side - n) // 2, (side - n) // 2) for n in stamp.shape]
        self._stamp = np.pad(stamp / total, pad)
        self._stamp.flags.writeable = False

    @property
    def half(self) -> int:
        """Half size of the stamps, pixels."""
        return int(self._stamp.shape[0] // 2)

    def stamp(self, x: float, y: float) -> Stamp:  # noqa: ARG002  (the same everywhere)
        """Return the PSF, shape (2 half + 1, 2 half + 1), unit sum, read-only."""
        return self._stamp

    def stamp_at(self, x: float, y: float, dx: float, dy: float) -> Stamp:  # noqa: ARG002
        """Return the PSF, centred (dx, dy) pixels from the middle pixel."""
        return shift_stamp(self._stamp, dx, dy)

    def fwhm(self, x: float | None = None, y: float | None = None) -> float:  # noqa: ARG002
        """Full width at half maximum in pixels, see `stamp_fwhm`."""
        return stamp_fwhm(self._stamp)

    def __repr__(self) -> str:
        return f"<ArrayPsf half {self.half}, FWHM {self.fwhm():.2f} px>"
