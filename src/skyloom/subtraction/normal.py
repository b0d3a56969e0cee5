"""Normal equations of the kernel fit, assembled from per-stamp sums (Alard 2000, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from skyloom.convolution import exponents
from skyloom.subtraction.basis import Float64Array

_SMALLEST_RCOND = 1e-13  # below, the Cholesky solution has no correct digits left and directions are cut off
_CUT_RCOND = 1e-11


@dataclass(frozen=True)
class Model:
    """Which unknowns there are.

    The kernel's n_basis functions have coefficients that are polynomials of `spatial_order` (B_0 a constant one unless
    `vary_sum`); the background is a polynomial of `background_order`, out of `n_background` terms of `max_background_order`
    for which the stamps hold sums.
    """

    n_basis: int
    spatial_order: int
    background_order: int
    max_background_order: int
    vary_sum: bool

    @property
    def background_index(self) -> list[int]:
        """Rows of the stamps' sums that belong to the background."""
        return [self.n_basis + k for k, (i, j) in enumerate(exponents(self.max_background_order))
                if i + j <= self.background_order]

    def blocks(self, terms: Float64Array) -> list[tuple[list[int], Float64Array]]:
        """Return groups of unknowns: rows of a stamp's sums, and the monomials (n_stamps, n) that multiply them.

        `terms` are the monomials of `spatial_order` at each stamp.
        """
        ones = np.ones((len(terms), 1))
        return [([0], terms if self.vary_sum else ones), (list(range(1, self.n_basis)), terms), (self.background_index, ones)]

    def unpack(self, solution: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return coefficients (n_basis, n_terms) of the kernel and (n,) of the background, all `max_background_order` terms."""
        n_terms = len(exponents(self.spatial_order))
        n_first = n_terms if self.vary_sum else 1
        coefficients = np.zeros((self.n_basis, n_terms))
        coefficients[0, :n_first] = solution[:n_first]
        n_rest = (self.n_basis - 1) * n_terms
        coefficients[1:] = solution[n_first : n_first + n_rest].reshape(-1, n_terms)
        background = np.zeros(len(exponents(self.max_background_order)))
        background[np.array(self.background_index) - self.n_basis] = solution[n_first + n_rest :]
        return coefficients, background


def assemble(
    model: Model, terms: Float64Array, grams: Float64Array, moments: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Sum the stamps' normal equations.

    With the design row of stamp s being its convolved basis images times the monomials phi_s of its position, the blocks
    are sum_s (phi_s phi_s^T) (x) G_s: the polynomials are taken at the stamp's star, which carries its signal.

    Parameters
    ----------
    terms : ndarray, shape (n_stamps, n_terms)
    grams : ndarray, shape (n_stamps, m, m)
        G_s = sum over pixels of w f f^T, f the basis images and background monomials.
    moments : ndarray, shape (n_stamps, m)
        sum over pixels of w f I.

    Returns
    -------
    matrix, vector : ndarray
        Of the normal equations.
    """
    blocks = model.blocks(terms)
    n_stamps = len(terms)
    rows, vector = [], []
    for i, (index_i, phi_i) in enumerate(blocks):
        vector.append((moments[:, index_i].T @ phi_i).ravel())
        row = []
        for index_j, phi_j in blocks[i:]:
            gram = grams[:, index_i][:, :, index_j]
            products = (phi_i[:, :, None] * phi_j[:, None, :]).reshape(n_stamps, -1)
            block = (products.T @ gram.reshape(n_stamps, -1)).reshape(
                phi_i.shape[1], phi_j.shape[1], len(index_i), len(index_j))
            row.append(block.transpose(2, 0, 3, 1).reshape(len(index_i) * phi_i.shape[1], -1))
        rows.append(row)
    full = [[rows[i][j - i] if j >= i else rows[j][i - j].T for j in range(len(blocks))] for i in range(len(blocks))]
    return np.block(full), np.concatenate(vector)


def solve(matrix: Float64Array, vector: Float64Array) -> Float64Array:
    """Solve symmetric normal equations by Cholesky; directions that the data do not constrain are set to 0.

    The matrix is first scaled to a unit diagonal. When it is singular to working precision, its eigenvectors of the
    smallest eigenvalues are left out of the solution.
    """
    scale = np.sqrt(np.diagonal(matrix))
    scale = np.where(scale > 0, scale, 1.0)
    scaled = matrix / scale[:, None] / scale[None, :]
    try:
        factor = scipy.linalg.cho_factor(scaled, lower=False)
        rcond = scipy.linalg.lapack.dpocon(factor[0], np.abs(scaled).sum(axis=0).max())[0]
    except np.linalg.LinAlgError:
        rcond = 0.0
    if rcond > _SMALLEST_RCOND:
        return scipy.linalg.cho_solve(factor, vector / scale) / scale
    values, vectors = np.linalg.eigh(scaled)
    kept = values > _CUT_RCOND * values[-1]
    vectors = vectors[:, kept]
    return (vectors @ ((vectors.T @ (vector / scale)) / values[kept])) / scale


def chi_squares(
    model: Model, solution: Float64Array, terms: Float64Array, grams: Float64Array, moments: Float64Array,
    squares: Float64Array
) -> Float64Array:
    """Return chi2 of each stamp, sum w (I - model)^2 = yy - 2 c.m + c.G.c, from its sums alone."""
    local = local_coefficients(model, solution, terms)
    return squares - 2 * np.einsum("sm,sm->s", local, moments) + np.einsum("sm,smn,sn->s", local, grams, local, optimize=True)


def local_coefficients(model: Model, solution: Float64Array, terms: Float64Array) -> Float64Array:
    """Return the coefficients of basis images and background monomials at each stamp, shape (n_stamps, m)."""
    coefficients, background = model.unpack(solution)
    return np.hstack([terms @ coefficients.T, np.broadcast_to(background, (len(terms), len(background)))])
