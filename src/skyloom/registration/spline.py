"""A smooth surface for what a polynomial leaves over: penalised cubic B-splines on a coarse grid (P-splines).

Eilers & Marx (1996): least squares plus lambda times the squared second differences of the coefficients along each
axis; lambda is chosen by generalised cross-validation, GCV = n RSS / (n - tr H)^2 (Craven & Wahba 1979). Errors of the
surface are those of the posterior distribution, with the penalty as prior (Wahba 1983): where there are no data they
grow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import BSpline
from scipy.linalg import solve_triangular

Float = npt.NDArray[np.float64]

_DEGREE = 3
_LAMBDAS = 10.0 ** np.arange(-6, 5)

_MARGIN = 0.05
"""Part of the extent of the data by which the surface reaches beyond them on each side, as straight as it can."""


@dataclass(frozen=True, eq=False)
class Spline:
    """A vector-valued tensor-product cubic spline on a rectangle; constant along the normal outside of it.

    Parameters
    ----------
    coefficients : ndarray, shape (n, n, 2)
        B-spline coefficients, first axis along y.
    low, high : ndarray, shape (2,)
        Corners (x, y) of the rectangle.
    root : ndarray, shape (n * n, n * n)
        R, where R R^T is the covariance of the coefficients of either axis.
    """

    coefficients: Float
    low: Float
    high: Float
    root: Float

    def __call__(self, xy: Float) -> Float:
        """Return the surface at positions (N, 2), shape (N, 2)."""
        bx, by = self._bases(xy, 0)
        return np.einsum("ni,nj,ijk->nk", by, bx, self.coefficients, optimize=True)

    def variance(self, xy: Float) -> Float:
        """Return the variance of the surface at positions (N, 2), the same for both axes, shape (N,)."""
        bx, by = self._bases(xy, 0)
        design = (by[:, :, None] * bx[:, None, :]).reshape(len(xy), -1)
        return np.square(design @ self.root).sum(axis=1)

    def jacobian(self, xy: Float) -> Float:
        """Return the derivatives at positions (N, 2), shape (N, 2, 2): [axis of the value, axis of the position]."""
        bx, by = self._bases(xy, 0)
        dx, dy = self._bases(xy, 1)
        along = [np.einsum("ni,nj,ijk->nk", b, a, self.coefficients, optimize=True) for b, a in ((by, dx), (dy, bx))]
        return np.stack(along, axis=2)

    def _bases(self, xy: Float, derivative: int) -> tuple[Float, Float]:
        t = (xy - self.low) / (self.high - self.low)
        bases = []
        for axis in range(2):
            inside = np.clip(t[:, axis], 0.0, 1.0)
            inside = np.where(np.isfinite(inside), inside, 0.0)
            value = _basis(inside, self.coefficients.shape[1 - axis], derivative)
            if derivative:
                value *= ((t[:, axis] >= 0) & (t[:, axis] <= 1))[:, None] / (self.high - self.low)[axis]
            bases.append(value)
        return bases[0], bases[1]


def _basis(t: Float, count: int, derivative: int = 0) -> Float:
    """Return `count` cubic B-splines on [0, 1] with uniform knots, or their derivatives, shape (N, count)."""
    cells = count - _DEGREE
    knots = np.arange(-_DEGREE, cells + _DEGREE + 1) / cells
    if not derivative:
        return BSpline.design_matrix(t, knots, _DEGREE).toarray()
    lower = BSpline.design_matrix(t, knots[1:-1], _DEGREE - 1).toarray()
    # b'_{i,3} = (b_{i,2} - b_{i+1,2}) / h for uniform knots of spacing h
    padded = np.pad(lower, ((0, 0), (1, 1)))
    return (padded[:, :-1] - padded[:, 1:]) * cells


def fit_spline(xy: Float, residual: Float, sigma: Float, cells: int) -> tuple[Spline, Float]:
    """Fit a penalised spline to residuals.

    Parameters
    ----------
    xy : ndarray, shape (N, 2)
        Positions; the spline lives on a little more than their bounding box.
    residual : ndarray, shape (N, 2)
        What to fit.
    sigma : ndarray, shape (N,)
        Standard errors.
    cells : int
        Cells of the grid along each axis.

    Returns
    -------
    Spline
        The surface.
    ndarray, shape (N,)
        Leverage h of each point: without it, the surface would miss it by its residual / (1 - h) (Allen 1974).
    """
    low, high = xy.min(axis=0), xy.max(axis=0)
    margin = np.maximum(_MARGIN * (high - low), 1e-9)
    low, high = low - margin, high + margin
    t = (xy - low) / (high - low)
    count = cells + _DEGREE
    design = (_basis(t[:, 1], count)[:, :, None] * _basis(t[:, 0], count)[:, None, :]).reshape(len(xy), -1)
    difference = np.diff(np.eye(count), 2, axis=0)
    roughness = difference.T @ difference
    penalty = np.kron(roughness, np.eye(count)) + np.kron(np.eye(count), roughness)
    weighted = design / sigma[:, None]
    gram = weighted.T @ weighted
    size = np.trace(gram) / len(gram)
    # a ridge far below the data keeps empty corners solvable: there the surface tends to 0
    lower = np.linalg.cholesky(gram + 1e-6 * size * np.eye(len(gram)))
    # in the basis where Gram matrix and penalty are both diagonal all strengths cost next to nothing
    inverse = solve_triangular(lower, np.eye(len(gram)), lower=True)
    rough, vectors = np.linalg.eigh(size * (inverse @ penalty @ inverse.T))
    basis = inverse.T @ vectors
    rotated = weighted @ basis
    right = rotated.T @ (residual / sigma[:, None])
    squares = np.square(rotated)
    best = (np.inf, 0.0)
    for strength in _LAMBDAS.tolist():
        shrink = 1 / (1 + strength * np.maximum(rough, 0.0))
        rss = float(np.square(residual / sigma[:, None] - rotated @ (shrink[:, None] * right)).sum())
        left = len(xy) - float((squares @ shrink).sum())
        if left > 0:
            best = min(best, (rss / left**2, strength))
    shrink = 1 / (1 + best[1] * np.maximum(rough, 0.0))
    coefficients = basis @ (shrink[:, None] * right)
    return Spline(coefficients.reshape(count, count, 2), low, high, basis * np.sqrt(shrink)), squares @ shrink
