"""Solve the weighted least squares of a `Design`, with penalties on the kernel, to any accuracy.

What is minimised is

    (S - A x)^T W (S - A x) + x^T P x - 2 x^T d,

P being diagonal ridge terms and the penalty on the variation of the kernel's sum, d a correction (see `fit`).
Conjugate gradients use the residual S - A x, exactly, and the approximate matrix of `Design.matrix` as preconditioner
(Hestenes & Stiefel 1952; Golub & Van Loan, Matrix Computations, algorithm 11.5.1): what is approximate in the matrix
delays the solution and does not change it. The matrix may also be that of somewhat different weights, as when pixels
were clipped.

The steps are computed in single precision, from a gradient in double precision; where they have brought it down by
10^4, the gradient is taken anew (iterative refinement: Wilkinson 1963; Golub & Van Loan, section 3.5.3). Steps become
small, and so does what single precision loses of them: x ends up as in double precision throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.convolution import exponents
from skyloom.errors import SubtractionError
from skyloom.subtraction.normal import Factored
from skyloom.subtraction.sfft.design import DeltaModel, Design, Float64Array

_MOST_STEPS = 200
_MANY_STEPS = 8  # after so many, a new matrix is cheaper
_ROUNDING = 1e-26  # of the first gradient's square: all that double precision leaves
_SINGLE = 1e-8  # of the square of a start's gradient: so far steps in single precision are trusted
_MOST_STARTS = 8


@dataclass(frozen=True)
class Penalties:
    """What the kernel is asked for besides the data, in units of the median diagonal h of the kernel's normal matrix.

    Parameters
    ----------
    flux_order : int
        The kernel's sum is asked to vary as a polynomial of this order: for each term of a higher degree,
        flux * h * (sum over the taps)^2 is added to what is minimised.
    flux : float
    ridge : float
        ridge * h * (sum of the squares of the kernel's coefficients) is added. The background is left alone: its scale
        is another one, and it must not depend on the level of the sky.
    precision : ndarray, optional
        Inverse variances of a Gaussian prior about 0 of the coefficients of kernel and wings, in units of those of the
        data with weight 1.
    """

    flux_order: int
    flux: float
    ridge: float
    precision: Float64Array | None = None

    def of(self, model: DeltaModel, normal: Float64Array) -> Penalty:
        """Return P for the normal matrix A^T W A."""
        n = model.n_kernel
        unit = float(np.median(np.diagonal(normal)[:n]))
        if not unit > 0:
            raise SubtractionError(
                "The template has no structure where it may be used (all its pixels are alike), so that no kernel can "
                "be fitted. Check the template and the masks."
            )
        diagonal = np.zeros(model.size)
        diagonal[:n] = self.ridge * unit
        if self.precision is not None:
            diagonal[: model.n_matching] += self.precision
        terms = [t for t, (i, j) in enumerate(exponents(model.kernel_order)) if i + j > self.flux_order]
        return Penalty(diagonal, self.flux * unit, [slice(t * model.taps, (t + 1) * model.taps) for t in terms])


@dataclass(frozen=True, eq=False)
class Penalty:
    """The matrix P: a diagonal, and `flux` everywhere in some diagonal blocks."""

    diagonal: Float64Array
    flux: float
    blocks: list[slice]

    def __matmul__(self, x: Float64Array) -> Float64Array:
        """Return P x."""
        product = self.diagonal * x
        for block in self.blocks:
            product[block] += self.flux * x[block].sum()
        return product

    def added_to(self, matrix: Float64Array) -> Float64Array:
        """Return the matrix, P added in place."""
        matrix[np.diag_indices_from(matrix)] += self.diagonal
        for block in self.blocks:
            matrix[block, block] += self.flux
        return matrix


class Solver:
    """Conjugate gradients for one design, target and set of penalties, from weights to weights.

    Parameters
    ----------
    design : Design
    target : ndarray, shape (ny, nx)
        S; finite everywhere.
    penalties : Penalties
    expected : ndarray, optional
        The unknowns that cost nothing, in place of 0.

    Attributes
    ----------
    x : ndarray
        The unknowns.
    residual : ndarray, shape (ny, nx)
        S - A x, in single precision until `refine` ends.
    """

    def __init__(
        self, design: Design, target: Float64Array, penalties: Penalties, expected: Float64Array | None = None
    ) -> None:
        self._design, self._penalties = design, penalties
        self._expected = np.zeros(design.model.size) if expected is None else expected
        self.x = np.zeros(design.model.size)
        self._target = target
        self.residual: npt.NDArray[Any] = target.astype(np.float32)
        self._steps = 0
        self.correction = np.zeros(design.model.size)
        """d: added to the right-hand side."""

    def start(self, weight: npt.NDArray[np.float32]) -> None:
        """Take weights, their matrix and the unit of the penalties that belongs to it."""
        matrix = self._design.matrix(weight)
        self._penalty = self._penalties.of(self._design.model, matrix)
        self._set(weight, matrix)

    def go_on(self, weight: npt.NDArray[np.float32], *, rebuild: bool = False) -> None:
        """Take weights that differ a little: the unit stays, and the matrix unless it has become a bad guide."""
        anew = rebuild or self._steps > _MANY_STEPS
        self._set(weight, self._design.matrix(weight) if anew else None)

    def scale_prior(self, factor: float) -> None:
        """Take the variance of a pixel of weight 1, the unit of `Penalties.precision`, to have grown by a factor."""
        precision = self._penalties.precision
        if precision is not None:
            diagonal = self._penalty.diagonal.copy()
            diagonal[: precision.size] += (factor - 1) * precision
            self._penalty = replace(self._penalty, diagonal=diagonal)

    def variance(self, row: Float64Array) -> float:
        """Return the variance of row @ x, nearly, in units of that of a pixel of weight 1."""
        return float(row @ self._preconditioner.solve(row))

    def distance(self, change: Float64Array) -> float:
        """Return how far a change of the right-hand side takes x, in units of the errors for pixels of variance 1."""
        return float(np.sqrt(change @ self._preconditioner.solve(change)))

    def refine(self, tolerance: float) -> None:
        """Bring x to the minimum as `solve` does, in double precision."""
        for _ in range(_MOST_STARTS):
            self.residual = self._target - self._design.apply(self.x)
            reached = self._descend(tolerance, _SINGLE)
            if self._steps == 0:
                return
            if reached:
                break
        self.residual = self._target - self._design.apply(self.x)

    def _set(self, weight: npt.NDArray[np.float32], matrix: Float64Array | None) -> None:
        self._weight = weight
        self._used = max(int(np.count_nonzero(weight)), 1)
        if matrix is not None:
            self._preconditioner = Factored(self._penalty.added_to(matrix))
            self._largest = 0.0

    def solve(self, tolerance: float) -> None:
        """Bring x to the minimum, to within `tolerance` of the statistical error of any direction of x.

        The distance to the minimum in units of the errors is sqrt(r^T M^-1 r) over the deviation of a pixel of weight
        1, where r is the gradient and M the preconditioner.
        """
        self._descend(tolerance)

    def _descend(self, tolerance: float, part: float = 0.0) -> bool:
        """Step on to the minimum; return False where only `part` of the first r^T M^-1 r is left before.

        In single precision the residual is kept up to date.
        """
        # A^T W (S - A x), and (S - A x)^T W (S - A x)
        products, energy = self._design.project(self.residual, self._weight)
        r = products - self._penalty @ (self.x - self._expected) + self.correction
        z = self._preconditioner.solve(r)
        direction, left = z, float(r @ z)
        first = left
        for self._steps in range(_MOST_STEPS):
            self._largest = max(self._largest, left)
            if left <= max(tolerance**2 * energy / self._used, _ROUNDING * self._largest):
                return True
            if left <= part * first:
                return False
            change = self._design.apply(direction, np.float32)
            curving, _ = self._design.project(change, self._weight)
            bent = self._penalty @ direction
            step = left / float(direction @ (curving + bent))
            self.x += step * direction
            energy -= step * float(direction @ (2 * products - step * curving))
            products -= step * curving
            r -= step * (curving + bent)
            if self.residual.dtype == np.float32:
                change *= np.float32(step)
                self.residual -= change
            z = self._preconditioner.solve(r)
            previous, left = left, float(r @ z)
            direction = z + (left / previous) * direction
        raise SubtractionError(
            f"The fit of the kernel has not converged after {_MOST_STEPS} steps. Give a smaller kernel, lower orders "
            "or a larger ridge.",
            steps=_MOST_STEPS,
        )
