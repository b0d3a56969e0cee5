"""A smooth surface for what a polynomial leaves over: penalised cubic B-splines on a coarse grid (P-splines).

Eilers & Marx (1996): least squares plus lambda times the squared second differences of the coefficients along each
axis; lambda is chosen by generalised cross-validation, GCV = n RSS / (n - tr H)^2 (Craven & Wahba 1979).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import BSpline

Float = npt.NDArray[np.float64]

_DEGREE = 3
_LAMBDAS = 10.0 ** np.arange(-4, 5)


@dataclass(frozen=True, eq=False)
class Spline:
    """A vector-valued tensor-product cubic spline on a rectangle; constant along the normal outside of it.

    Parameters
    ----------
    coefficients : ndarray, shape (n, n, 2)
        B-spline coefficients, first axis along y.
    low, high : ndarray, shape (2,)
        Corners (x, y) of the rectangle.
    """

    coefficients: Float
    low: Float
    high: Float

    def __call__(self, xy: Float) -> Float:
        """Return the surface at positions (N, 2), shape (N, 2)."""
        bx, by = self._bases(xy, 0)
        return np.einsum("ni,nj,ijk->nk", by, bx, self.coefficients, optimize=True)

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


def fit_spline(xy: Float, residual: Float, sigma: Float, cells: int) -> Spline:
    """Fit a penalised spline to residuals.

    Parameters
    ----------
    xy : ndarray, shape (N, 2)
        Positions; the spline lives on their bounding box.
    residual : ndarray, shape (N, 2)
        What to fit.
    sigma : ndarray, shape (N,)
        Standard errors.
    cells : int
        Cells of the grid along each axis.
    """
    low, high = xy.min(axis=0), xy.max(axis=0)
    high = np.maximum(high, low + 1e-9)
    t = (xy - low) / (high - low)
    count = cells + _DEGREE
    design = (_basis(t[:, 1], count)[:, :, None] * _basis(t[:, 0], count)[:, None, :]).reshape(len(xy), -1)
    difference = np.diff(np.eye(count), 2, axis=0)
    roughness = difference.T @ difference
    penalty = np.kron(roughness, np.eye(count)) + np.kron(np.eye(count), roughness)
    weighted = design / sigma[:, None]
    gram, right = weighted.T @ weighted, weighted.T @ (residual / sigma[:, None])
    # a ridge far below the data keeps empty corners solvable: there the surface tends to 0
    ridge = 1e-6 * np.trace(gram) / len(gram)
    best: tuple[float, Float] | None = None
    for strength in _LAMBDAS * np.trace(gram) / len(gram):
        system = gram + strength * penalty + ridge * np.eye(len(gram))
        solution = np.linalg.solve(system, np.column_stack([right, gram]))
        coefficients, hat = solution[:, :2], solution[:, 2:]
        rss = float((((residual - design @ coefficients) / sigma[:, None]) ** 2).sum())
        left = len(xy) - float(np.trace(hat))
        gcv = np.inf if left <= 0 else rss / left**2
        if best is None or gcv < best[0]:
            best = (gcv, coefficients)
    assert best is not None
    return Spline(best[1].reshape(count, count, 2), low, high)
