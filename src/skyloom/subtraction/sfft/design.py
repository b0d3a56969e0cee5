r"""The linear model of a delta-function kernel that varies over the field, and its sums over weighted pixels.

The science image is modelled from the template R, each pixel of the kernel being an unknown of its own (Miller,
Pennypacker & White 2008, PASP 120, 449; Bramich 2008, MNRAS 386, L77; Hu et al. 2022, ApJ 936, 157, eq. 1 to 5):

    M(p) = sum_a sum_ij c_aij X^i Y^j R(p - a) + sum_kl b_kl X^k Y^l,      i + j <= kernel order, k + l <= background
    order.

Weighted least squares asks for c and b with A^T W A (c, b) = A^T W S, where A is the (pixels, unknowns) matrix of this
model and W holds the weights of the pixels. For 7 x 7 taps of order 2 there are 300 unknowns, so that the matrix costs
9e4 additions a pixel, while M = A (c, b), and A^T u for an image u, cost 300 each: they are kept in double precision,
and exact; the matrix serves to steer (see `skyloom.subtraction.sfft.solve`) and need not be. It is summed, in single
precision, as

    H_(a ij)(a' i'j') = sum_cells X_c^(i + i') Y_c^(j + j') G_c(a, a'),    G_c(a, a') = sum_(p in cell c) w(p) R(p - a)
    R(p - a'),

one symmetric 49 x 49 matrix for each cell of some 16 x 16 pixels, with the polynomials taken at the middle of the cell
(X_c, Y_c): 1225 additions a pixel for all products of polynomials together. Each pixel's part of H differs from that
of A^T W A by the change of the polynomials over half a cell, about 1 %, in whatever direction of the kernel, also in
those that the data hardly constrain: so a step with H leaves about 1 % of an error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skyloom import _kernels
from skyloom._threads import map_bands, row_bands
from skyloom.convolution import exponents

Float64Array = npt.NDArray[np.float64]

_BANDS = 16  # of rows, each of which has a matrix of its own until they are added up
_CELLS = 64  # along the longer side of an image


@dataclass(frozen=True)
class DeltaModel:
    """Which unknowns there are.

    Parameters
    ----------
    kernel_shape : (int, int)
        (ky, kx), odd.
    kernel_order, background_order : int
        Orders of the polynomials in X and Y.
    """

    kernel_shape: tuple[int, int]
    kernel_order: int
    background_order: int

    @property
    def taps(self) -> int:
        """Number of pixels of the kernel."""
        return self.kernel_shape[0] * self.kernel_shape[1]

    @property
    def n_kernel(self) -> int:
        """Number of unknowns of the kernel; they come first, term by term, each with all taps."""
        return len(exponents(self.kernel_order)) * self.taps

    @property
    def size(self) -> int:
        """Number of all unknowns."""
        return self.n_kernel + len(exponents(self.background_order))

    def kernel(self, unknowns: Float64Array) -> Float64Array:
        """Return the part of the kernel, shape (terms, ky, kx), as `skyloom.convolution.PolynomialKernel` has it."""
        planes = unknowns[: self.n_kernel].reshape(-1, *self.kernel_shape)
        return planes[:, ::-1, ::-1]  # the loops correlate

    def background(self, unknowns: Float64Array) -> Float64Array:
        """Return the coefficients of the background's monomials, in the order of `exponents`."""
        return unknowns[self.n_kernel :]


class Design:
    """A of the module's docstring, for one template.

    Parameters
    ----------
    template : ndarray, shape (ny, nx)
        R, its sky subtracted; 0 where unusable.
    model : DeltaModel
    """

    def __init__(self, template: npt.NDArray[np.floating], model: DeltaModel) -> None:
        self.model = model
        self.shape = template.shape
        ny, nx = template.shape
        self.centre = (nx - 1) / 2, (ny - 1) / 2
        self.scale = max(nx - 1, 1) / 2, max(ny - 1, 1) / 2  # X and Y run from -1 to 1
        self._padded = self._pad(template)
        self._X = (np.arange(nx) - self.centre[0]) / self.scale[0]
        self._Y = (np.arange(ny) - self.centre[1]) / self.scale[1]

    def _pad(self, plane: npt.NDArray[np.floating]) -> Float64Array:
        ky, kx = self.model.kernel_shape
        return np.pad(plane.astype(np.float64), ((ky // 2,) * 2, (kx // 2,) * 2))

    def apply(self, unknowns: Float64Array) -> Float64Array:
        """Return A x, the model image."""
        model = self.model
        image = self._convolve(self._padded, unknowns[: model.n_kernel].reshape(-1, model.taps), model.kernel_order)
        image += self.background(unknowns)
        return image

    def background(self, unknowns: Float64Array) -> Float64Array:
        """Return the background of the model image."""
        order = self.model.background_order
        square = np.zeros((order + 1, order + 1))
        for (i, j), value in zip(exponents(order), self.model.background(unknowns), strict=True):
            square[j, i] = value
        return self._powers(self._Y, order).T @ square @ self._powers(self._X, order)

    def project(self, image: Float64Array) -> Float64Array:
        """Return A^T u, the sums of an image with each unknown's pattern."""
        model = self.model
        kernel = self._moments(self._padded, image, model.kernel_order)
        return np.concatenate([kernel.ravel(), self._image_moments(image, model.background_order)])

    def matrix(self, weight: npt.NDArray[np.float32]) -> Float64Array:
        """Return A^T W A, nearly: see the module's docstring. The parts of the background are exact."""
        model = self.model
        n, nk, order = model.taps, model.n_kernel, model.kernel_order
        gram = self._gram(weight)
        terms = {term: k for k, term in enumerate(exponents(2 * order))}
        full = np.empty((model.size, model.size))
        for s, (i, j) in enumerate(exponents(order)):
            for t, (k, m) in enumerate(exponents(order)):
                full[s * n : (s + 1) * n, t * n : (t + 1) * n] = gram[terms[i + k, j + m]]
        double = weight.astype(np.float64)
        highest = order + model.background_order
        cross = self._moments(self._padded, double, highest)
        cross_terms = {term: k for k, term in enumerate(exponents(highest))}
        flat = self._image_moments(double, 2 * model.background_order)
        flat_terms = {term: k for k, term in enumerate(exponents(2 * model.background_order))}
        for t, (k, m) in enumerate(exponents(model.background_order)):
            for s, (i, j) in enumerate(exponents(order)):
                full[s * n : (s + 1) * n, nk + t] = cross[cross_terms[i + k, j + m]]
            for s, (i, j) in enumerate(exponents(model.background_order)):
                full[nk + s, nk + t] = flat[flat_terms[i + k, j + m]]
        full[nk:, :nk] = full[:nk, nk:].T
        return full

    def convolved_variance(self, unknowns: Float64Array, variance: npt.NDArray[np.floating]) -> Float64Array:
        """Return sum_a K(a; p)^2 V(p - a) for the variance V of the template's pixels."""
        model = self.model
        coefficients = unknowns[: model.n_kernel].reshape(-1, model.taps)
        terms = {term: k for k, term in enumerate(exponents(2 * model.kernel_order))}
        squared = np.zeros((len(terms), model.taps))
        for s, (i, j) in enumerate(exponents(model.kernel_order)):
            for t, (k, m) in enumerate(exponents(model.kernel_order)):
                squared[terms[i + k, j + m]] += coefficients[s] * coefficients[t]
        return self._convolve(self._pad(variance), squared, 2 * model.kernel_order)

    def noise_product(
        self, unknowns: Float64Array, weight: npt.NDArray[np.float32], variance: npt.NDArray[np.floating]
    ) -> Float64Array:
        """Return N x, where N is what the template's noise adds to the expectation of A^T W A.

        N_(a ij)(a' i'j') = delta_aa' sum_p w(p) X^(i+i') Y^(j+j') V(p - a), for independent pixels of variance V.
        """
        model = self.model
        moments = self._moments(self._pad(variance), weight.astype(np.float64), 2 * model.kernel_order)
        terms = {term: k for k, term in enumerate(exponents(2 * model.kernel_order))}
        coefficients = unknowns[: model.n_kernel].reshape(-1, model.taps)
        product = np.zeros(model.size)
        rows = product[: model.n_kernel].reshape(-1, model.taps)
        for s, (i, j) in enumerate(exponents(model.kernel_order)):
            for t, (k, m) in enumerate(exponents(model.kernel_order)):
                rows[s] += moments[terms[i + k, j + m]] * coefficients[t]
        return product

    @staticmethod
    def _powers(axis: Float64Array, order: int) -> Float64Array:
        return axis ** np.arange(order + 1)[:, None]

    def _image_moments(self, image: Float64Array, order: int) -> Float64Array:
        """Return sum_p u(p) X^i Y^j, in the order of `exponents`."""
        square = self._powers(self._Y, order) @ image @ self._powers(self._X, order).T
        return np.array([square[j, i] for i, j in exponents(order)])

    def _convolve(self, padded: Float64Array, coefficients: Float64Array, order: int) -> Float64Array:
        out = np.empty(self.shape)
        shape, centre, scale = self.model.kernel_shape, self.centre, self.scale
        coefficients = np.ascontiguousarray(coefficients)
        map_bands(
            lambda rows: _kernels.delta_apply(padded, coefficients, shape, order, centre, scale, rows, out),
            row_bands(self.shape[0]),
        )
        return out

    def _moments(self, padded: Float64Array, image: Float64Array, order: int) -> Float64Array:
        """Return sum_p u(p) X^i Y^j R(p - a), shape (terms, taps)."""
        shape, centre, scale = self.model.kernel_shape, self.centre, self.scale
        image = np.ascontiguousarray(image)

        def band(rows: tuple[int, int]) -> Float64Array:
            out = np.zeros((len(exponents(order)), self.model.taps))
            _kernels.delta_project(padded, image, shape, order, centre, scale, rows, out)
            return out

        return _sum(map_bands(band, row_bands(self.shape[0])))

    def _gram(self, weight: npt.NDArray[np.float32]) -> Float64Array:
        model = self.model
        n, order = model.taps, 2 * model.kernel_order
        cell = max(4, -(-max(self.shape) // _CELLS))
        rows_of_band = cell * max(1, -(-self.shape[0] // (_BANDS * cell)))
        single = self._padded.astype(np.float32)

        def band(rows: tuple[int, int]) -> Float64Array:
            out = np.zeros((len(exponents(order)), n, n))
            _kernels.delta_gram(single, weight, model.kernel_shape, order, self.centre, self.scale, cell, rows, out)
            return out

        total = _sum(map_bands(band, row_bands(self.shape[0], rows_of_band)))
        lower = np.tril(total)
        return lower + np.tril(total, -1).transpose(0, 2, 1)


def _sum(parts: list[Float64Array]) -> Float64Array:
    """Add arrays up in their order, into the first."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total
