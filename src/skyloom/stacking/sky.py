"""The skies of the exposures brought to one level, from their differences where they overlap."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.csgraph import connected_components

from skyloom._threads import serial_blas
from skyloom.background import MAD_TO_SIGMA
from skyloom.stacking.frames import PlacedExposure, normalised

_SAMPLES_PER_CELL = 16  # along an axis
_ENOUGH = 30  # samples in a cell whose median is used
_ROUNDS = 30
_NUMBERS_PER_LEVEL = 21  # of 8 bytes, in all arrays and sparse matrices that there are at a time
_SOFT = 2.0  # standard deviations: a residual of that size has half of the weight

Coefficients = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Levels:
    """The sky of one exposure in cells of the output grid.

    Parameters
    ----------
    cell : ndarray of int64, shape (n,)
        Numbers of the cells, ascending.
    level : ndarray of float64, shape (n,)
        Median of the samples in each.
    noise : float
        Standard deviation of a level.
    """

    cell: npt.NDArray[np.int64]
    level: npt.NDArray[np.float64]
    noise: float


def cell_size(placed: Sequence[PlacedExposure]) -> float:
    """Return the side of the cells, output pixels: they hold some 16 x 16 samples of the coarsest exposure."""
    return _SAMPLES_PER_CELL * max(1.0, *(one.scale * one.member.stride for one in placed))


def levels_of(placed: PlacedExposure, cell: float) -> Levels:
    """Return the sky levels of an exposure, in the units of the co-add."""
    member = placed.member
    stride, (ny, nx) = member.stride, placed.shape
    rows = range(0, member.shape[0], stride)
    xy = np.concatenate([placed.to_grid.rows(row, row + 1)[:, ::stride] for row in rows])
    samples = member.samples.read()
    inside = np.isfinite(samples) & (xy >= -0.5).all(axis=2)
    inside &= (xy[..., 0] < nx - 0.5) & (xy[..., 1] < ny - 0.5)
    return cell_levels(xy[inside], samples[inside].astype(np.float64) * placed.factor, nx, cell)


def cell_levels(xy: npt.NDArray[np.float64], values: npt.NDArray[np.float64], nx: int, cell: float) -> Levels:
    """Return the medians of values at output positions, in the cells that have enough of them."""
    column, row = np.floor((xy.T + 0.5) / cell).astype(np.int64)
    number = row * (int(nx / cell) + 1) + column
    order = np.lexsort((values, number))
    cells, first, count = np.unique(number[order], return_index=True, return_counts=True)
    ordered = values[order]
    median = ordered[first + count // 2]
    scatter = np.abs(ordered - np.repeat(median, count))
    sigma = MAD_TO_SIGMA * float(np.median(scatter)) if len(scatter) else 0.0
    enough = count >= _ENOUGH
    typical = float(np.median(count[enough])) if enough.any() else 1.0
    return Levels(cells[enough], median[enough], sigma * np.sqrt(np.pi / 2 / typical))


def match_skies(
    levels: Sequence[Levels], shape: tuple[int, int], cell: float, *, plane: bool, fixed: bool = False
) -> Coefficients:
    """Return the skies that have to be subtracted so that the exposures agree where they overlap.

    With s_k(u) = a_k + b_k u_x + c_k u_y for exposure k (b = c = 0 for constants), and what the sky itself has in cell
    j as an unknown L_j, minimises

        sum_kj w_kj (d_kj - s_k(u_j) - L_j)^2,

    reweighted until it rests: w = 1 / (sigma^2 (1 + (r / 2 f sigma)^2)), with f >= 1 the typical size of residuals in
    sigma, so that a variable source or a ghost in some cells does not count. Without the L_j, which have closed forms,
    that is the sum over all pairs of exposures of w_kj w_mj / W_j times the squared difference, W_j = sum_k w_kj; the
    pairs are never listed. What differences do not tell is set so: the first exposure of each group of exposures that
    overlap keeps its level; gradients have the mean 0, as in the shortest of all solutions.

    Parameters
    ----------
    levels : sequence of Levels
        Of each exposure.
    shape : (int, int)
        Of the output grid.
    cell : float
        Side of the cells, output pixels.
    plane : bool
        Whether the skies have gradients.
    fixed : bool
        Whether the first is a finished co-add, whose sky (and gradient) is that of all.

    Returns
    -------
    ndarray of float64, shape (n, 3)
        a, b, c.
    """
    n = len(levels)
    result = np.zeros((n, 3))
    seen = _seen(levels)
    if not len(seen.level):
        return result
    across = int(shape[1] / cell) + 1
    middles = (np.stack([seen.cells % across, seen.cells // across], axis=-1) + 0.5) * cell - 0.5
    xy = middles.astype(np.float64)
    terms = np.stack([np.ones(len(xy)), *normalised(xy, shape)], axis=1)[:, : 3 if plane else 1]
    solution = _solve(seen, terms, n)
    links = coo_array((np.ones(len(seen.k)), (seen.k, n + seen.j)), shape=(n + len(xy), n + len(xy)))
    group = connected_components(links, directed=False)[1][:n]
    for label in range(group.max() + 1):
        members = np.flatnonzero(group == label)
        solution[members, 0] -= solution[members[0], 0]
    if fixed:
        linked = group == group[0]
        solution[linked] -= solution[0]
    result[:, : solution.shape[1]] = solution
    return result


def needed_memory(levels: Sequence[Levels], *, plane: bool) -> int:
    """Return the bytes that `match_skies` takes beyond the levels: for their residuals, and the normal equations."""
    n = len(levels)
    unknowns = n * (3 if plane else 1)
    equations = 4 * unknowns**2 + 3 * n**2  # matrix and work space of its solution; products of the exposures
    return 8 * (_NUMBERS_PER_LEVEL * sum(len(one.level) for one in levels) + equations)


@dataclass(frozen=True, eq=False)
class _Seen:
    """The levels in cells that two exposures see or more: exposure k and cell number j of each, and the cells."""

    k: npt.NDArray[np.int64]
    j: npt.NDArray[np.int64]
    level: npt.NDArray[np.float64]
    sigma2: npt.NDArray[np.float64]
    cells: npt.NDArray[np.int64]


def _seen(levels: Sequence[Levels]) -> _Seen:
    cell = np.concatenate([one.cell for one in levels])
    level = np.concatenate([one.level for one in levels])
    k = np.repeat(np.arange(len(levels)), [len(one.cell) for one in levels])
    sigma2 = np.array([one.noise**2 for one in levels])[k]
    cells, j, count = np.unique(cell, return_inverse=True, return_counts=True)
    use = count[j] > 1
    cells, j = np.unique(cell[use], return_inverse=True)
    spread = float(np.ptp(level[use])) if use.any() else 0.0
    floor = 1e-12 * max(spread, np.finfo(float).tiny) ** 2
    return _Seen(k[use], j, level[use], np.maximum(sigma2[use], floor), cells)


def _solve(seen: _Seen, terms: npt.NDArray[np.float64], n: int) -> Coefficients:
    """Solve the least-squares problem with weights that fall with the residuals; the shortest of all solutions."""
    k, j, p, m = seen.k, seen.j, terms.shape[1], len(terms)
    at = terms[j]

    def total(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.bincount(j, values, minlength=m).astype(np.float64)

    prior = 1 / seen.sigma2
    # a residual from a mean that it is part of is smaller than its error
    error2 = seen.sigma2 * (1 - prior / total(prior)[j])
    weight = prior
    solution: Coefficients = np.zeros((n, p))
    for _ in range(_ROUNDS):
        norm = total(weight)
        own = csr_array((weight, (k, j)), shape=(n, m))
        matrix = np.empty((n, p, n, p))
        for a, b in itertools.combinations_with_replacement(range(p), 2):
            product = terms[:, a] * terms[:, b]
            block = -(own @ diags_array(product / norm) @ own.T).toarray()
            block[np.diag_indices(n)] += np.bincount(k, weight * product[j], minlength=n)
            matrix[:, a, :, b] = matrix[:, b, :, a] = block
        above = weight * (seen.level - (total(weight * seen.level) / norm)[j])
        right = np.stack([np.bincount(k, above * at[:, a], minlength=n) for a in range(p)], axis=1)
        before = solution
        with serial_blas():
            solution = linalg.lstsq(
                matrix.reshape(n * p, n * p), right.ravel(), cond=1e-11, overwrite_a=True, check_finite=False
            )[0].reshape(n, p)
        rest = seen.level - np.sum(at * solution[k], axis=1)
        residual = rest - (total(weight * rest) / norm)[j]
        # levels scatter more than by noise (stars, flat fields): as much as half of them do at most
        ratio2 = residual**2 / error2
        spread = max(1.0, float(np.sqrt(np.median(ratio2))) * MAD_TO_SIGMA)
        weight = prior / (1 + ratio2 / (_SOFT * spread) ** 2)
        if np.abs(solution - before).max() <= 1e-3 * np.sqrt(np.median(seen.sigma2)):
            break
    return solution
