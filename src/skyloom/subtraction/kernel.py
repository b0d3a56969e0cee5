"""The fitted kernel: basis functions times polynomials of position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.signal import oaconvolve

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
    wings : ndarray, shape (n, n), optional
        Added to the kernel everywhere: faint light beyond the basis, 0 within, of which noise and masks need not know.
    """

    basis: KernelBasis | DeltaBasis | ZeroSumDeltaBasis
    coefficients: Float64Array
    centre: tuple[float, float]
    scale: tuple[float, float]
    wings: Float64Array | None = None

    @property
    def half(self) -> int:
        """Pixels from the kernel's centre to its edge."""
        return self.basis.half if self.wings is None else len(self.wings) // 2

    @cached_property
    def core(self) -> SpatialKernel:
        """The kernel without its wings."""
        return self if self.wings is None else replace(self, wings=None)

    @cached_property
    def polynomial(self) -> PolynomialKernel:
        """The same kernel, one image for each power of position."""
        half = self.basis.half
        if isinstance(self.basis, DeltaBasis):
            planes = self.coefficients.T.reshape(-1, 2 * half + 1, 2 * half + 1)
        else:
            planes = np.tensordot(self.coefficients.T, self.basis.images, axes=1)
        if self.wings is not None:
            planes = np.pad(planes, [(0, 0)] + 2 * [(self.half - half,) * 2])
            planes[0] += self.wings
        return PolynomialKernel(planes, self.centre, self.scale)

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
        """Convolve an image, see `skyloom.convolution.convolve_varying`; unusable pixels add nothing to the wings."""
        convolved = convolve_varying(data, self.core.polynomial, variance, usable)
        if self.wings is None:
            return convolved
        seen = data if usable is None else np.where(usable, data, data.dtype.type(0))
        far = oaconvolve(seen, self.wings.astype(data.dtype), mode="same")
        return replace(convolved, data=convolved.data + far.astype(convolved.data.dtype))
