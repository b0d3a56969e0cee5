"""The skies of the exposures brought to one level, from their differences where they overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from skyloom.background import MAD_TO_SIGMA
from skyloom.stacking.frames import PlacedExposure, normalised

_SAMPLES_PER_CELL = 16  # along an axis
_ENOUGH = 30  # samples in a cell whose median is used
_ROUNDS = 30
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

    With s_k(u) = a_k + b_k u_x + c_k u_y for exposure k (b = c = 0 for constants), minimises the differences of all
    pairs k, m in all cells j that they share,

        sum_kmj w_kmj (d_kj - s_k(u_j) - d_mj + s_m(u_j))^2,

    reweighted until it rests: w = 1 / (sigma^2 (1 + (r / 2 f sigma)^2)), with f >= 1 the typical size of residuals in
    sigma, so that a variable source or a ghost in some cells does not count. What differences do not tell is set so:
    the first exposure of each group of exposures that overlap keeps its level; gradients have the mean 0, as in the
    shortest of all solutions.

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
    pairs = _differences(levels)
    if pairs is None:
        return result
    k, m, difference, variance, number = pairs
    across = int(shape[1] / cell) + 1
    xy = (np.stack([number % across, number // across], axis=-1) + 0.5) * cell - 0.5
    terms = np.stack([np.ones(len(k)), *normalised(xy, shape)], axis=1)[:, : 3 if plane else 1]
    solution = _solve(k, m, difference, variance, terms, n)
    _, group = connected_components(coo_array((np.ones(len(k)), (k, m)), shape=(n, n)), directed=False)
    for label in range(group.max() + 1):
        members = np.flatnonzero(group == label)
        solution[members, 0] -= solution[members[0], 0]
    if fixed:
        linked = group == group[0]
        solution[linked] -= solution[0]
    result[:, : solution.shape[1]] = solution
    return result


def _differences(levels: Sequence[Levels]) -> tuple[npt.NDArray[Any], ...] | None:
    """Return numbers of two exposures, difference, its variance and cell, for all pairs and shared cells."""
    parts = []
    for k in range(len(levels)):
        for m in range(k):
            common, at_k, at_m = np.intersect1d(levels[k].cell, levels[m].cell, assume_unique=True, return_indices=True)
            if not len(common):
                continue
            difference = levels[k].level[at_k] - levels[m].level[at_m]
            variance = np.full(len(common), levels[k].noise ** 2 + levels[m].noise ** 2)
            parts.append((np.full(len(common), k), np.full(len(common), m), difference, variance, common))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True)) if parts else None


def _solve(  # noqa: PLR0917
    k: npt.NDArray[np.int64],
    m: npt.NDArray[np.int64],
    difference: npt.NDArray[np.float64],
    variance: npt.NDArray[np.float64],
    terms: npt.NDArray[np.float64],
    n: int,
) -> Coefficients:
    """Solve the least-squares problem with weights that fall with the residuals; the shortest of all solutions."""
    p = terms.shape[1]
    floor = 1e-12 * max(float(np.abs(difference).max()), np.finfo(float).tiny) ** 2
    sigma2 = np.maximum(variance, floor)
    weight = 1 / sigma2
    solution: Coefficients = np.zeros((n, p))
    for _ in range(_ROUNDS):
        matrix, right = np.zeros((n, p, n, p)), np.zeros((n, p))
        products = weight[:, None, None] * terms[:, :, None] * terms[:, None, :]
        for one, other, sign in ((k, k, 1), (m, m, 1), (k, m, -1), (m, k, -1)):
            for a in range(p):
                for b in range(p):
                    np.add.at(matrix[:, a, :, b], (one, other), sign * products[:, a, b])
        weighted = (weight * difference)[:, None] * terms
        np.add.at(right, k, weighted)
        np.subtract.at(right, m, weighted)
        before = solution
        solution = (
            np.linalg.lstsq(matrix.reshape(n * p, n * p), right.ravel(), rcond=1e-11)[0]
            .reshape(n, p)
            .astype(np.float64)
        )
        residual: npt.NDArray[np.float64] = difference - np.sum(terms * (solution[k] - solution[m]), axis=1)
        # levels scatter more than by noise (stars, flat fields): as much as half of them do at most
        spread = max(1.0, float(np.median(np.abs(residual) / np.sqrt(sigma2))) * MAD_TO_SIGMA)
        weight = 1 / (sigma2 * (1 + residual**2 / (_SOFT * spread) ** 2 / sigma2))
        if np.abs(solution - before).max() <= 1e-3 * np.sqrt(np.median(sigma2)):
            break
    return solution
