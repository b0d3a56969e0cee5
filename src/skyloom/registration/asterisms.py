"""Asterisms: small groups of neighbouring stars and the numbers that survive shift, rotation, scale and reflection.

Triangles (Groth 1986; Valdes et al. 1995) and quads (Lang et al. 2010) among the nearest neighbours of each star
(Beroiz et al. 2020). Both are written in one frame: the longest side A -> B becomes 0 -> 1 of the complex plane, and
the other stars become the invariants. A reflection is undone before that, by the sign of the area, and kept as parity.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.intp]

_SHORTEST_SIDE = 6.0
"""Pixels: shorter sides carry no shape above the errors of the centroids."""

_LEAST_RATIO = 0.1
"""Shortest to longest side; flatter groups have no stable order of their stars."""


@dataclass(frozen=True)
class Asterisms:
    """N groups of stars in a canonical order.

    Attributes
    ----------
    stars : ndarray of int, shape (N, size)
        Indices of the stars: A, B (the ends of the longest side), then the others.
    invariants : ndarray, shape (N, 2 * (size - 2))
        Real and imaginary part of the other stars in the frame of A -> B, after undoing a reflection.
    parity : ndarray of int, shape (N,)
        +1 or -1: the sign that was undone.
    """

    stars: Int
    invariants: Float
    parity: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.stars)


def neighbour_groups(xy: Float, neighbours: int, size: int) -> Int:
    """Return all groups of `size` among each star and its `neighbours` - 1 nearest, no repeats, shape (N, size)."""
    count = len(xy)
    neighbours = min(neighbours, count)
    if neighbours < size:
        return np.empty((0, size), np.intp)
    _, near = cKDTree(xy).query(xy, neighbours)
    choices = np.array(list(combinations(range(neighbours), size)))
    groups = np.sort(near[:, choices].reshape(-1, size), axis=1)
    # one integer for each group: far faster to make unique than rows
    key = np.zeros(len(groups), np.int64)
    for column in groups.T:
        key = key * count + column
    return groups[np.unique(key, return_index=True)[1]]


def make_asterisms(xy: Float, neighbours: int, size: int = 3) -> Asterisms:
    """Return the asterisms of a list of stars.

    Parameters
    ----------
    xy : ndarray, shape (N, 2)
        Positions.
    neighbours : int
        Each star is combined with so many of its nearest neighbours (itself included).
    size : {3, 4}
        Triangles or quads.
    """
    groups = neighbour_groups(xy, neighbours, size)
    z = xy[:, 0] + 1j * xy[:, 1]
    pairs = np.array(list(combinations(range(size), 2)))
    sides = np.abs(z[groups[:, pairs[:, 1]]] - z[groups[:, pairs[:, 0]]])
    longest = sides.argmax(axis=1) if len(groups) else np.empty(0, np.intp)
    shortest = sides.min(axis=1) if len(groups) else np.empty(0)
    rows = np.arange(len(groups))
    length = sides[rows, longest]
    good = (shortest > _SHORTEST_SIDE) & (shortest > _LEAST_RATIO * length)
    groups, longest = groups[good], longest[good]
    others = np.array([[k for k in range(size) if k not in pair] for pair in pairs])
    a, b = (np.take_along_axis(groups, pairs[longest, end, None], 1)[:, 0] for end in (0, 1))
    rest = np.take_along_axis(groups, others[longest], 1)
    shape = (z[rest] - z[a, None]) / (z[b] - z[a])[:, None]
    # A is the end from which the other stars' centre is nearer: breaks the symmetry of A and B
    swap = shape.real.mean(axis=1) > 0.5
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    shape = np.where(swap[:, None], 1 - shape, shape)
    # parity: the side of AB on which the stars' centre lies
    parity = np.where(shape.imag.mean(axis=1) >= 0, 1, -1)
    shape = np.where(parity[:, None] > 0, shape, shape.conj())
    if size > 3:
        order = np.argsort(shape.real, axis=1, kind="stable")
        rest, shape = np.take_along_axis(rest, order, 1), np.take_along_axis(shape, order, 1)
    invariants = np.column_stack([shape.real, shape.imag]) if len(shape) else np.empty((0, 2 * (size - 2)))
    return Asterisms(np.column_stack([a, b, rest]), invariants, parity)
