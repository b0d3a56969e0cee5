"""Normal equations of the kernel fit, assembled from per-stamp sums (Alard 2000, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from skyloom.convolution import exponents
from skyloom.subtraction.basis import Float64Array

_SMALLEST_RCOND = 1e-13  # below, the Cholesky solution has no correct digits left and directions are cut off
_CUT_RCOND = 1e-11
_SOUND = 1e-6
"""Of each unknown this share is not told by those before it: no condition number need be looked at."""


@dataclass(frozen=True)
class Model:
    """Which unknowns there are.

    The kernel's n_basis functions have coefficients that are polynomials of `spatial_order` (B_0 a constant one
    unless `vary_sum`, and so have the last `n_constant`); the background is a polynomial of `background_order`, out of
    the terms of `max_background_order` for which the stamps hold sums.
    """

    n_basis: int
    spatial_order: int
    background_order: int
    max_background_order: int
    vary_sum: bool
    n_constant: int = 0

    @cached_property
    def background_index(self) -> list[int]:
        """Rows of the stamps' sums that belong to the background."""
        return [
            self.n_basis + k
            for k, (i, j) in enumerate(exponents(self.max_background_order))
            if i + j <= self.background_order
        ]

    def blocks(self, terms: Float64Array) -> list[tuple[list[int], Float64Array]]:
        """Return groups of unknowns: rows of a stamp's sums, and the monomials (n_stamps, n) that multiply them.

        `terms` are the monomials of `spatial_order` at each stamp.
        """
        ones = np.ones((len(terms), 1))
        return [
            ([0], terms if self.vary_sum else ones),
            (list(range(1, self.n_basis - self.n_constant)), terms),
            (list(range(self.n_basis - self.n_constant, self.n_basis)) + self.background_index, ones),
        ]

    def varying(self, n_terms: int) -> Float64Array:
        """Return 1 for the unknowns that make a zero-sum function vary over the field, 0 for the others."""
        rest = np.ones((self.n_basis - 1 - self.n_constant, n_terms))
        rest[:, 0] = 0
        first = np.zeros(n_terms if self.vary_sum else 1)
        return np.concatenate([first, rest.ravel(), np.zeros(self.n_constant + len(self.background_index))])

    def unpack(self, solution: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return coefficients (n_basis, n_terms) of the kernel, and those of all the background's monomials."""
        n_terms = len(exponents(self.spatial_order))
        n_first = n_terms if self.vary_sum else 1
        coefficients = np.zeros((self.n_basis, n_terms))
        coefficients[0, :n_first] = solution[:n_first]
        varying, constant = self.n_basis - self.n_constant, n_first + (self.n_basis - self.n_constant - 1) * n_terms
        coefficients[1:varying] = solution[n_first:constant].reshape(-1, n_terms)
        coefficients[varying:, 0] = solution[constant : constant + self.n_constant]
        background = np.zeros(len(exponents(self.max_background_order)))
        background[np.array(self.background_index) - self.n_basis] = solution[constant + self.n_constant :]
        return coefficients, background


@dataclass(frozen=True, eq=False)
class StampSums:
    """What the normal equations need of the stamps.

    With the design f of a stamp (basis images convolved with the source, then background monomials), the target I and
    the weights w, sums run over the stamp's pixels.

    Parameters
    ----------
    grams : ndarray, shape (n_stamps, m, m)
        sum w f f^T.
    moments : ndarray, shape (n_stamps, m)
        sum w f I.
    squares : ndarray, shape (n_stamps,)
        sum w I^2.
    noise : ndarray, shape (n_stamps,)
        sum w v, v the variance of a pixel of the source.
    noise_gram : ndarray, shape (m, m)
        Products of the basis images as the source's noise sees them: the noise adds noise * noise_gram to a gram.
    penalty : ndarray, shape (m, m), optional
        Added to each gram for the solution: local^T penalty local is what the coefficients at a stamp cost.
    """

    grams: Float64Array
    moments: Float64Array
    squares: Float64Array
    noise: Float64Array
    noise_gram: Float64Array
    penalty: Float64Array | None = None

    def __getitem__(self, which: npt.NDArray[np.bool_]) -> StampSums:
        return replace(
            self,
            grams=self.grams[which],
            moments=self.moments[which],
            squares=self.squares[which],
            noise=self.noise[which],
        )


def normal_matrix(model: Model, terms: Float64Array, grams: Float64Array) -> Float64Array:
    """Sum the stamps' matrices.

    The design row of stamp s is f times the monomials phi_s of its position, so that the blocks are
    sum_s (phi_s phi_s^T) (x) G_s: the polynomials are taken at the stamp's star, which carries its signal.

    Parameters
    ----------
    terms : ndarray, shape (n_stamps, n_terms)
        Monomials of `model.spatial_order` at each stamp.
    grams : ndarray, shape (n_stamps, m, m)
    """
    return placed(model, terms.shape[1], gram_sums(model, terms, grams))


def gram_sums(model: Model, terms: Float64Array, grams: Float64Array) -> Float64Array:
    """Return the sums over stamps of each product of two monomials times the matrices, shape (n_products, m, m)."""
    n = terms.shape[1]
    first, _ = _places(model, n, grams.shape[1])
    return np.tensordot((terms[:, first // n] * terms[:, first % n]).T, grams, axes=1)


def placed(model: Model, n_terms: int, sums: Float64Array) -> Float64Array:
    """Return the normal matrix that has the elements of `gram_sums`."""
    _, place = _places(model, n_terms, sums.shape[1])
    return sums.ravel()[place]


@lru_cache(maxsize=32)
def _places(model: Model, n: int, m: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return which products n i + j of two of the n monomials differ, and where the elements of a normal matrix are.

    They are elements (product, row, column) of the sums over stamps of those products times matrices (m, m).
    """
    powers = np.array(exponents(model.spatial_order))
    pairs = (powers[:, None] + powers[None, :]).reshape(-1, 2)
    # most products of two monomials come twice or more: X Y = X * Y = Y * X = 1 * XY
    _, first, product = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    kept = [(k, power) for index, phi in model.blocks(np.ones((1, n))) for k in index for power in range(phi.shape[1])]
    row, power = np.array(kept).T
    product = product.reshape(n, n)[power[:, None], power[None, :]]
    return first, (product * m + row[:, None]) * m + row[None, :]


def normal_vector(model: Model, terms: Float64Array, moments: Float64Array) -> Float64Array:
    """Sum the stamps' right-hand sides, in the order of `normal_matrix`."""
    return np.concatenate([(moments[:, index].T @ phi).ravel() for index, phi in model.blocks(terms)])


class Factored:
    """A symmetric matrix, ready to solve with: by Cholesky, without the directions that the data do not constrain.

    The matrix is first scaled to a unit diagonal. When it is singular to working precision, its eigenvectors of the
    smallest eigenvalues are left out of solutions.
    """

    def __init__(self, matrix: Float64Array) -> None:
        scale = np.sqrt(np.diagonal(matrix))
        self._scale = np.where(scale > 0, scale, 1.0)
        scaled = matrix * np.outer(1 / self._scale, 1 / self._scale)
        self._cholesky: Any = None
        # the transpose of a symmetric matrix is the same in the order of LAPACK
        factor, failed = scipy.linalg.lapack.dpotrf(scaled.T, lower=1, clean=0)
        if not failed and (np.diagonal(factor).min() ** 2 > _SOUND or _condition(scaled, factor) > _SMALLEST_RCOND):
            self._cholesky = factor
        if self._cholesky is None:
            values, vectors = np.linalg.eigh(scaled)
            kept = values > _CUT_RCOND * values[-1]
            self._half_inverse = vectors[:, kept] / np.sqrt(values[kept])

    def solve(self, vector: Float64Array) -> Float64Array:
        """Return the solution for one right-hand side."""
        scaled = vector / self._scale
        if self._cholesky is not None:
            # for one right-hand side BLAS is faster than LAPACK, which packs the factor for many
            half = scipy.linalg.blas.dtrsv(self._cholesky, scaled, lower=1)
            return scipy.linalg.blas.dtrsv(self._cholesky, half, lower=1, trans=1) / self._scale
        return (self._half_inverse @ (self._half_inverse.T @ scaled)) / self._scale


def _condition(matrix: Float64Array, factor: Float64Array) -> float:
    """Return the reciprocal of the condition number of a symmetric matrix with this Cholesky factor, an estimate."""
    return float(scipy.linalg.lapack.dpocon(factor, np.abs(matrix).sum(axis=0).max(), uplo="L")[0])


def solve(
    model: Model, terms: Float64Array, sums: StampSums, stiffness: float = 0.0, *,
    normal: Float64Array | None = None, debiasing: int = 1,
) -> Float64Array:  # fmt: skip
    """Solve the normal equations without the bias that noise in the convolved image brings.

    The design holds the source with its noise, whose power N = noise * noise_gram adds to the matrix, A = S + N:
    plain least squares would find a kernel that is too weak and too smooth, the more so where the source is the
    noisier image. (A - N) c = b is solved by iterating A c' = b + N c, only a little way, `debiasing` times: well
    measured directions come close to the unbiased solution, while those without signal (S << N), in which A - N would
    be singular, stay damped. n iterations lower the bias from N / (S + N) to its power of n + 1.

    `stiffness` is added to the diagonal for each coefficient that makes a zero-sum function vary over the field: it
    is the inverse variance of a Gaussian prior about 0. The variation that few stars do not measure is then left out,
    not made up from noise. `normal` is the `normal_matrix` of the sums, penalty included, if it is known.
    """
    grams = sums.grams if sums.penalty is None else sums.grams + sums.penalty
    normal = normal_matrix(model, terms, grams) if normal is None else normal
    matrix = Factored(normal + np.diag(stiffness * model.varying(terms.shape[1])) if stiffness else normal)
    solution = matrix.solve(normal_vector(model, terms, sums.moments))
    for _ in range(debiasing if sums.noise.any() else 0):
        local = local_coefficients(model, solution, terms)
        moments = sums.moments + sums.noise[:, None] * (local @ sums.noise_gram)
        solution = matrix.solve(normal_vector(model, terms, moments))
    return solution


def chi_squares(model: Model, solution: Float64Array, terms: Float64Array, sums: StampSums) -> Float64Array:
    """Return chi2 of each stamp, sum w (I - model)^2, less what the source's noise adds to it: from the sums alone."""
    local = local_coefficients(model, solution, terms)
    grams = sums.grams - sums.noise[:, None, None] * sums.noise_gram
    return (
        sums.squares
        - 2 * np.einsum("sm,sm->s", local, sums.moments)
        + np.einsum("sm,smn,sn->s", local, grams, local, optimize=True)
    )


def local_coefficients(model: Model, solution: Float64Array, terms: Float64Array) -> Float64Array:
    """Return the coefficients of basis images and background monomials at each stamp, shape (n_stamps, m)."""
    coefficients, background = model.unpack(solution)
    return np.hstack([terms @ coefficients.T, np.broadcast_to(background, (len(terms), len(background)))])
