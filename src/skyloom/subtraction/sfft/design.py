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
those that the data hardly constrain: so a step with H leaves about 1 % of an error. For large kernels cells are four
times as wide, which takes half as many steps again.

The wings of a kernel, beyond its pixels, may be one more unknown w: an image h * R, of a function h of sum 1, that adds
w h * R to the model, the same all over the field. H leaves its products with the other unknowns out: exact ones beside
those of cells might make it indefinite, and conjugate gradients need a step or two to find them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom import _kernels
from skyloom._threads import map_bands, row_bands
from skyloom.convolution import exponents
from skyloom.filters import convolve_full

Float64Array = npt.NDArray[np.float64]

# along the longer side of an image; for kernels of more taps than 100
_CELLS, _LARGE, _CELLS_OF_LARGE = 64, 100, 16
_BANDS, _BANDS_OF_LARGE = 16, 4  # of rows, each of which has a matrix of its own until they are added up


@dataclass(frozen=True)
class DeltaModel:
    """Which unknowns there are.

    Parameters
    ----------
    kernel_shape : (int, int)
        (ky, kx), odd.
    kernel_order, background_order : int
        Orders of the polynomials in X and Y.
    wings : bool
        Whether the kernel has wings.
    """

    kernel_shape: tuple[int, int]
    kernel_order: int
    background_order: int
    wings: bool = False

    @property
    def taps(self) -> int:
        """Number of pixels of the kernel."""
        return self.kernel_shape[0] * self.kernel_shape[1]

    @property
    def n_kernel(self) -> int:
        """Number of unknowns of the kernel's pixels; they come first, term by term, each with all taps."""
        return len(exponents(self.kernel_order)) * self.taps

    @property
    def n_matching(self) -> int:
        """Number of unknowns before those of the background: the light of the wings comes last of them."""
        return self.n_kernel + self.wings

    @property
    def size(self) -> int:
        """Number of all unknowns."""
        return self.n_matching + len(exponents(self.background_order))

    def kernel(self, unknowns: Float64Array) -> Float64Array:
        """Return the part of the kernel, shape (terms, ky, kx), as `skyloom.convolution.PolynomialKernel` has it."""
        planes = unknowns[: self.n_kernel].reshape(-1, *self.kernel_shape)
        return planes[:, ::-1, ::-1]  # the loops correlate

    def background(self, unknowns: Float64Array) -> Float64Array:
        """Return the coefficients of the background's monomials, in the order of `exponents`."""
        return unknowns[self.n_matching :]


class Design:
    """A of the module's docstring, for one template.

    Parameters
    ----------
    template : ndarray, shape (ny, nx)
        R, its sky subtracted; 0 where unusable.
    model : DeltaModel
    wings : ndarray, shape (ny, nx), optional
        h * R, if the model has wings.
    """

    def __init__(
        self,
        template: npt.NDArray[np.floating],
        model: DeltaModel,
        wings: npt.NDArray[np.floating] | None = None,
    ) -> None:
        assert model.wings == (wings is not None)
        self.model = model
        self._wings: dict[type, Any] = {}
        if wings is not None:
            self._wings = {kind: wings.astype(kind) for kind in (np.float32, np.float64)}
        self.shape = template.shape
        ny, nx = template.shape
        self.centre = (nx - 1) / 2, (ny - 1) / 2
        self.scale = max(nx - 1, 1) / 2, max(ny - 1, 1) / 2  # X and Y run from -1 to 1
        self._template = template

    @cached_property
    def _single(self) -> Any:
        return self._pad(self._template, np.float32)

    @cached_property
    def _double(self) -> Any:
        return self._pad(self._template, np.float64)

    def _of(self, dtype: type) -> Any:
        return self._single if dtype == np.float32 else self._double

    def _pad(self, plane: npt.NDArray[np.floating], dtype: type) -> Any:
        ky, kx = self.model.kernel_shape
        padded = np.zeros((plane.shape[0] + ky - 1, plane.shape[1] + kx - 1), dtype)
        padded[ky // 2 : ky // 2 + plane.shape[0], kx // 2 : kx // 2 + plane.shape[1]] = plane
        return padded

    def apply(self, unknowns: Float64Array, dtype: type = np.float64) -> Any:
        """Return A x, the model image, computed in float32 or float64."""
        model = self.model
        kernel = unknowns[: model.n_kernel].reshape(-1, model.taps)
        image = self._convolve(self._of(dtype), kernel, model.kernel_order, model.background(unknowns))
        if model.wings:
            image += dtype(unknowns[model.n_kernel]) * self._wings[dtype]
        return image

    def background(self, unknowns: Float64Array) -> Any:
        """Return the background of the model image, in float32."""
        (ny, nx), order = self.shape, self.model.background_order
        X, Y = ((np.arange(n) - c) / s for n, c, s in zip((nx, ny), self.centre, self.scale, strict=True))
        in_y = np.zeros((order + 1, ny))  # sum_l b_kl Y^l
        for (k, power), b in zip(exponents(order), self.model.background(unknowns), strict=True):
            in_y[k] += b * Y**power
        return in_y.T.astype(np.float32) @ (X ** np.arange(order + 1)[:, None]).astype(np.float32)

    def project(self, image: npt.NDArray[Any], weight: npt.NDArray[np.float32]) -> tuple[Float64Array, float]:
        """Return A^T W u, the weighted sums of an image u with each unknown's pattern, and u^T W u.

        Computed in the precision of the image, and sums over bands of rows are added in float64.
        """
        model = self.model
        padded = self._of(image.dtype.type)
        kernel, flat, squares = self._moments(padded, image, weight, model.kernel_order, model.background_order)
        wings = [self._sum_over_wings(image, weight)] if model.wings else []
        return np.concatenate([kernel.ravel(), wings, flat]), squares

    def _sum_over_wings(self, image: npt.NDArray[Any], weight: npt.NDArray[np.float32]) -> float:
        """Return sum_p w (h * R) u."""
        rows = [np.s_[first:last] for first, last in row_bands(self.shape[0])]
        plane = self._wings[image.dtype.type]
        return sum(float(np.vdot(plane[band], weight[band] * image[band])) for band in rows)

    def matrix(self, weight: npt.NDArray[np.float32]) -> Float64Array:
        """Return A^T W A, nearly: see the module's docstring. The parts of the background are exact."""
        model = self.model
        n, nk, order = model.taps, model.n_matching, model.kernel_order
        gram = self._gram(weight)
        terms = {term: k for k, term in enumerate(exponents(2 * order))}
        full = np.empty((model.size, model.size))
        for s, (i, j) in enumerate(exponents(order)):
            for t, (k, m) in enumerate(exponents(order)):
                full[s * n : (s + 1) * n, t * n : (t + 1) * n] = gram[terms[i + k, j + m]]
        highest = order + model.background_order
        cross, flat, _ = self._moments(
            self._single, np.ones(self.shape, np.float32), weight, highest, 2 * model.background_order
        )
        cross_terms = {term: k for k, term in enumerate(exponents(highest))}
        flat_terms = {term: k for k, term in enumerate(exponents(2 * model.background_order))}
        for t, (k, m) in enumerate(exponents(model.background_order)):
            for s, (i, j) in enumerate(exponents(order)):
                full[s * n : (s + 1) * n, nk + t] = cross[cross_terms[i + k, j + m]]
            for s, (i, j) in enumerate(exponents(model.background_order)):
                full[nk + s, nk + t] = flat[flat_terms[i + k, j + m]]
        full[nk:, : model.n_kernel] = full[: model.n_kernel, nk:].T
        if model.wings:
            full[nk - 1] = full[:, nk - 1] = 0
            full[nk - 1, nk - 1] = self._sum_over_wings(self._wings[np.float32], weight)
        return full

    def convolved_variance(self, unknowns: Float64Array, variance: npt.NDArray[np.floating]) -> Any:
        """Return sum_a K(a; p)^2 V(p - a), wings left out, for the variance V of the template's pixels, in float32."""
        model = self.model
        coefficients = unknowns[: model.n_kernel].reshape(-1, model.taps)
        terms = {term: k for k, term in enumerate(exponents(2 * model.kernel_order))}
        squared = np.zeros((len(terms), model.taps))
        for s, (i, j) in enumerate(exponents(model.kernel_order)):
            for t, (k, m) in enumerate(exponents(model.kernel_order)):
                squared[terms[i + k, j + m]] += coefficients[s] * coefficients[t]
        return self._convolve(self._pad(variance, np.float32), squared, 2 * model.kernel_order)

    def noise_moments(
        self, weight: npt.NDArray[np.float32], variance: npt.NDArray[np.floating]
    ) -> dict[tuple[int, int], Float64Array]:
        """Return sum_p w(p) X^i Y^j V(p - a) for each (i, j), for all taps: see `noise_product`."""
        order = 2 * self.model.kernel_order
        ones = np.ones(self.shape, np.float32)
        moments, _, _ = self._moments(self._pad(variance, np.float32), ones, weight, order, 0)
        return dict(zip(exponents(order), moments, strict=True))

    def noise_product(
        self,
        unknowns: Float64Array,
        moments: dict[tuple[int, int], Float64Array],
        correlation: Float64Array | None = None,
    ) -> Float64Array:
        """Return N x, where N is what the template's noise adds to the expectation of A^T W A.

        N_(a ij)(a' i'j') = rho(a' - a) sum_p w(p) X^(i+i') Y^(j+j') V(p - a), for pixels of variance V whose noise has
        the correlation rho: a stamp with its middle at lag 0, delta if not given. (If V is that of white noise which
        resampling has smoothed by s, rho is s correlated with s, sum s^2 at lag 0.) Wings hold next to no noise.
        """
        model = self.model
        coefficients = unknowns[: model.n_kernel].reshape(-1, model.taps)
        if correlation is not None:
            planes = coefficients.reshape(-1, *model.kernel_shape)
            border = correlation.shape[0] // 2
            inner = np.s_[border : border + planes.shape[1], border : border + planes.shape[2]]
            coefficients = np.stack([convolve_full(plane, correlation)[inner].ravel() for plane in planes])
        product = np.zeros(model.size)
        rows = product[: model.n_kernel].reshape(-1, model.taps)
        for s, (i, j) in enumerate(exponents(model.kernel_order)):
            for t, (k, m) in enumerate(exponents(model.kernel_order)):
                rows[s] += moments[i + k, j + m] * coefficients[t]
        return product

    def _convolve(
        self, padded: npt.NDArray[Any], coefficients: Float64Array, order: int, flat: Float64Array | None = None
    ) -> Any:
        out = np.empty(self.shape, padded.dtype)
        shape, centre, scale = self.model.kernel_shape, self.centre, self.scale
        coefficients = np.ascontiguousarray(coefficients)
        flat = np.zeros(1) if flat is None else flat
        map_bands(
            lambda rows: _kernels.delta_apply(padded, coefficients, flat, shape, order, centre, scale, rows, out),
            row_bands(self.shape[0]),
        )
        return out

    def _moments(
        self,
        padded: npt.NDArray[Any],
        image: npt.NDArray[Any],
        weight: npt.NDArray[np.float32],
        order: int,
        flat_order: int,
    ) -> tuple[Float64Array, Float64Array, float]:
        """Return sum_p w u X^i Y^j R(p - a), shape (terms, taps); sum_p w u X^k Y^l; sum_p w u^2."""
        shape, centre, scale = self.model.kernel_shape, self.centre, self.scale

        def band(rows: tuple[int, int]) -> tuple[Float64Array, Float64Array, float]:
            out, flat = np.zeros((len(exponents(order)), self.model.taps)), np.zeros(len(exponents(flat_order)))
            squares = _kernels.delta_project(padded, image, weight, shape, order, centre, scale, rows, out, flat)
            return out, flat, squares

        parts = map_bands(band, row_bands(self.shape[0]))
        return _sum([p[0] for p in parts]), _sum([p[1] for p in parts]), sum(p[2] for p in parts)

    def _gram(self, weight: npt.NDArray[np.float32]) -> Float64Array:
        model = self.model
        n, order = model.taps, 2 * model.kernel_order
        # each cell costs a pass over all polynomials' matrices, which for large kernels is more than its pixels do
        cell = max(4, -(-max(self.shape) // (_CELLS if n <= _LARGE else _CELLS_OF_LARGE)))
        bands = _BANDS if n <= _LARGE else _BANDS_OF_LARGE
        rows_of_band = cell * max(1, -(-self.shape[0] // (bands * cell)))

        def band(rows: tuple[int, int]) -> Float64Array:
            out = np.zeros((len(exponents(order)), n, n))
            _kernels.delta_gram(
                self._single, weight, model.kernel_shape, order, self.centre, self.scale, cell, rows, out
            )
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
