"""The images of a kernel fit, and the stamps that are cut from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skyloom.convolution import Float32Array, monomials
from skyloom.exposure import BoolArray
from skyloom.subtraction.basis import Float64Array, KernelBasis, ZeroSumDeltaBasis
from skyloom.subtraction.stamps import Candidate, Planes, cut


@dataclass(frozen=True, eq=False)
class FitInput:
    """The two images of a fit, and its geometry.

    Parameters
    ----------
    target : Planes
        The image to be matched.
    source : Planes
        The image to be convolved; `usable` is False wherever the middle half of the kernel would touch an
        unusable pixel.
    basis : KernelBasis or ZeroSumDeltaBasis
        Of the kernel.
    half, core : int
        Half widths in pixels of a stamp, and radius of the part of it on which it is judged.
    fwhm : float
        Of the wider stars, pixels.
    border : int
        Both planes are padded by so many pixels, at least `half` and half of the kernel.
    correlation : float
        `Exposure.correlation` of the source.
    """

    target: Planes
    source: Planes
    basis: KernelBasis | ZeroSumDeltaBasis
    half: int
    core: int
    fwhm: float
    border: int
    correlation: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the field without its border, (ny, nx)."""
        ny, nx = self.target.shape
        return ny - 2 * self.border, nx - 2 * self.border

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the field, in its own pixels: where X = Y = 0."""
        ny, nx = self.shape
        return (nx - 1) / 2, (ny - 1) / 2

    @property
    def scale(self) -> tuple[float, float]:
        """Half the field: X and Y run from -1 to 1."""
        ny, nx = self.shape
        return nx / 2, ny / 2

    def monomials(self, x: npt.ArrayLike, y: npt.ArrayLike, order: int) -> Float64Array:
        """Return X^i Y^j at pixels of the padded planes."""
        return monomials(np.asarray(x) - self.border, np.asarray(y) - self.border, order, self.centre, self.scale)


@dataclass(frozen=True, eq=False)
class Stamp:
    """The pixels of one stamp, flattened.

    Parameters
    ----------
    star : Candidate
    design : ndarray, shape (m, n_pixels)
        The source convolved with each basis function, then the background's monomials.
    target, target_variance : ndarray, shape (n_pixels,)
    source_variance : ndarray, shape (n + 2 half, n + 2 half)
        Of the source around the stamp, still to be convolved.
    usable, core : ndarray of bool, shape (n_pixels,)
    """

    star: Candidate
    design: Float64Array
    target: Float64Array
    target_variance: Float64Array
    source_variance: Float32Array
    usable: BoolArray
    core: BoolArray


def load_stamp(images: FitInput, star: Candidate, background_order: int) -> Stamp:
    """Cut one stamp and convolve it with all basis functions."""
    x, y, half, reach = star.x, star.y, images.half, images.half + images.basis.half
    convolved = images.basis.convolve(cut(images.source.data, x, y, reach).astype(np.float64))
    axis = np.arange(-half, half + 1)
    columns, rows = np.broadcast_arrays(x + axis[None, :], y + axis[:, None])
    background = images.monomials(columns, rows, background_order)
    usable = cut(images.source.usable, x, y, half) & cut(images.target.usable, x, y, half)
    return Stamp(
        star=star,
        design=np.concatenate([convolved, background]).reshape(len(convolved) + len(background), -1),
        target=cut(images.target.data, x, y, half).astype(np.float64).ravel(),
        target_variance=cut(images.target.variance, x, y, half).astype(np.float64).ravel(),
        source_variance=cut(images.source.variance, x, y, reach).astype(np.float32),
        usable=usable.ravel(),
        core=(axis[None, :] ** 2 + axis[:, None] ** 2 <= images.core**2).ravel(),
    )
