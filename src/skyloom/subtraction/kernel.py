"""The fitted kernel: basis functions times polynomials of position."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from skyloom.convolution import Convolved, PolynomialKernel, convolve_varying
from skyloom.exposure import BoolArray, FloatArray
from skyloom.subtraction.basis import DeltaBasis, Float64Array, KernelBasis, ZeroSumDeltaBasis


@dataclass(frozen=True, eq=False)
class SpatialKernel:
    """K(u, v; x, y) = sum_n a_n(x, y) B_n(u, v), a_n = sum_ij c_nij X^i Y^j (Alard 2000, eq. 4).

    Parameters
    ----------
    basis : KernelBasis, DeltaBasis or ZeroSumDeltaBasis
        B_n.
    coefficients : ndarray, shape (n_basis, n_terms)
        c_nij, the terms in the order of `skyloom.convolution.exponents`.
    centre, scale : (float, float)
        X = (x - centre[0]) / scale[0], and Y alike.
    """

    basis: KernelBasis | DeltaBasis | ZeroSumDeltaBasis
    coefficients: Float64Array
    centre: tuple[float, float]
    scale: tuple[float, float]

    @property
    def half(self) -> int:
        """Pixels from the kernel's centre to its edge."""
        return self.basis.half

    @cached_property
    def polynomial(self) -> PolynomialKernel:
        """The same kernel, one image for each power of position."""
        return PolynomialKernel(np.tensordot(self.coefficients.T, self.basis.images, axes=1), self.centre, self.scale)

    @property
    def order(self) -> int:
        """Order of the polynomials of position."""
        return self.polynomial.order

    def image_at(self, x: float, y: float) -> Float64Array:
        """Return the kernel at pixel (x, y), shape (2 half + 1, 2 half + 1)."""
        return self.polynomial.image_at(x, y)

    def sum_at(self, x: Any, y: Any) -> Any:
        """Return the kernel's sum at (x, y), numbers or arrays that broadcast."""
        return self.polynomial.sum_at(x, y)

    def convolve(
        self, data: FloatArray, variance: FloatArray | None = None, usable: BoolArray | None = None
    ) -> Convolved:
        """Convolve an image, see `skyloom.convolution.convolve_varying`."""
        return convolve_varying(data, self.polynomial, variance, usable)
