"""Is it more than chance? Poisson log-likelihood ratio of the number of matches.

If the transform is wrong, each of the n template stars that fall inside the source image finds a source star within the
tolerance r with probability p = 1 - exp(-rho pi r^2), so that mu = n p matches are expected. The ratio of the
likelihoods of k matches with a rate of k and with a rate of mu is

    LLR = k ln(k / mu) - (k - mu)        (k > mu; else 0).

A transform with P free parameters can always be bent through P / 2 pairs; these are not evidence and k is lowered by
them. exp(-LLR) bounds the chance of k or more matches (Chernoff); times the number of transforms that were tried it
bounds the chance of a false match anywhere (Bonferroni).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.intp]

_CONTROL_DIRECTIONS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1], [0.7, 0.7], [-0.7, 0.7], [-0.7, -0.7], [0.7, -0.7]])
"""Shifts that measure the matches by chance: along rows and columns and across."""

_CONTROL_STARS = 600
"""Stars that are enough to measure the matches by chance."""

_CONTROL_STEPS = 4
"""Most distances by which few stars are shifted."""

_NEIGHBOURS = 8
"""Sources that give a local density."""


@dataclass(frozen=True)
class Matches:
    """Pairs of stars within a tolerance, one to one.

    Attributes
    ----------
    template, source : ndarray of int, shape (k,)
        Indices of the pairs.
    distance : ndarray, shape (k,)
        Source pixels.
    inside : int
        Template stars that fall inside the source image.
    """

    template: Int
    source: Int
    distance: Float
    inside: int

    def __len__(self) -> int:
        return len(self.template)

    def __getitem__(self, which: npt.NDArray[np.bool_]) -> Matches:
        return Matches(self.template[which], self.source[which], self.distance[which], self.inside)


def match_stars(predicted: Float, tree: cKDTree, shape: tuple[int, int], tolerance: float) -> Matches:
    """Match predicted positions to the nearest star of a list, each star at most once (the closest wins).

    Parameters
    ----------
    predicted : ndarray, shape (N, 2)
        Template stars in source pixels.
    tree : cKDTree
        Of the source stars.
    shape : (int, int)
        Of the source image (ny, nx).
    tolerance : float
        Source pixels.
    """
    inside = int(np.count_nonzero(is_inside(predicted, shape)))
    finite = np.where(np.isfinite(predicted), predicted, -1e9)
    distance, star = tree.query(finite, distance_upper_bound=tolerance)
    template = np.flatnonzero(np.isfinite(distance))
    # the farthest first: of those with the same star the last assignment, the closest, stays
    template = template[np.argsort(distance[template], kind="stable")[::-1]]
    owner = np.full(tree.n, -1)
    owner[star[template]] = template
    source = np.flatnonzero(owner >= 0)
    return Matches(owner[source], source, distance[owner[source]], inside)


def is_inside(xy: Float, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Tell which positions lie on a pixel of an image of this shape."""
    x, y = xy.T
    return (x > -0.5) & (x < shape[1] - 0.5) & (y > -0.5) & (y < shape[0] - 0.5)


def expected_by_chance(inside: int, n_source: int, shape: tuple[int, int], tolerance: float) -> float:
    """Return mu, the number of matches that a wrong transform finds, for sources of uniform density."""
    density = n_source / (shape[0] * shape[1])
    return float(inside * -np.expm1(-density * np.pi * tolerance**2))


def expected_by_density(predicted: Float, tree: cKDTree, shape: tuple[int, int], tolerance: float) -> float:
    """Return mu for sources of uneven density: rho is taken from the nearest sources of each predicted position."""
    predicted, thinned = _thin(predicted[is_inside(predicted, shape)])
    neighbours = min(_NEIGHBOURS, tree.n)
    if not len(predicted) or neighbours < 2:
        return 0.0
    far = tree.query(predicted, k=[neighbours])[0][:, 0]
    density = (neighbours - 1) / (np.pi * np.maximum(far, tolerance) ** 2)
    return float(thinned * -np.expm1(-density * np.pi * tolerance**2).sum())


def expected_by_control(predicted: Float, tree: cKDTree, shape: tuple[int, int], tolerance: float) -> float:
    """Return mu from shifting the prediction away from its place: the most of eight directions.

    Along a bad column that both lists share, or a row of a regular pattern, the shifted stars match as well. Few stars
    are shifted by several distances, of which the mean counts: one match by accident would weigh as much as a column.
    """
    # only those inside: thinned among stars that cannot match, too few would be left to see a column at all
    predicted, thinned = _thin(predicted[is_inside(predicted, shape)])
    shift = 3 * tolerance + 5.0
    steps = np.arange(1, 1 + int(np.clip(_CONTROL_STARS // max(len(predicted), 1), 1, _CONTROL_STEPS)))
    moved = predicted + shift * np.multiply.outer(_CONTROL_DIRECTIONS, steps).swapaxes(1, 2)[:, :, None]
    star = tree.query(moved.reshape(-1, 2), distance_upper_bound=tolerance)[1].reshape(moved.shape[:3])
    # a star counts once, however many find it; tree.n stands for none
    count = [[np.count_nonzero(np.bincount(one, minlength=tree.n)[: tree.n]) for one in way] for way in star]
    return thinned * float(np.mean(count, axis=1).max())


def _thin(xy: Float) -> tuple[Float, int]:
    """Return every n-th position, so that there are not too many, and n."""
    step = 1 + max(len(xy) - 1, 0) // _CONTROL_STARS
    return xy[::step], step


def log_likelihood_ratio(matched: float, expected: float, free_pairs: float = 0.0) -> float:
    """Return LLR = k ln(k / mu) - (k - mu) with k = `matched` - `free_pairs`; 0 where k <= mu."""
    k = matched - free_pairs
    if k <= expected or k <= 0:
        return 0.0
    mu = max(expected, 1e-12)
    return float(k * np.log(k / mu) - (k - mu))
