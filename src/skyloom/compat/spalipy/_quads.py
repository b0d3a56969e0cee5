"""Quads: four stars and the four numbers that survive shift, rotation and scale (Lang et al. 2010, AJ 139, 1782)."""

from __future__ import annotations

import logging
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist

from skyloom.errors import InputError

log = logging.getLogger("skyloom.compat.spalipy")

Float = npt.NDArray[np.float64]
Quad = tuple[Float, tuple[float, ...]]

_PAIRS = np.array(list(combinations(range(4), 2)))
_OTHERS = np.array([[k for k in range(4) if k not in pair] for pair in _PAIRS.tolist()])


def hashes(stars: Float, sides: Float) -> tuple[Float, Float]:
    """Order the stars of quads and return their shapes.

    The two stars farthest from each other, A and B, span a frame where A is (0, 0) and B is (1, 1); the shape is
    (xC, yC, xD, yD), with xC <= xD and xC + xD <= 1 to break the symmetries.

    Parameters
    ----------
    stars : ndarray, shape (N, 4, 2)
        Positions.
    sides : ndarray, shape (N, 6)
        Distances of the pairs 01, 02, 03, 12, 13, 23.

    Returns
    -------
    ndarray, shape (N, 4, 2)
        The stars in the order A, B, C, D.
    ndarray, shape (N, 4)
        The shapes.
    """
    z = stars[..., 0] + 1j * stars[..., 1]
    longest = sides.argmax(axis=1)
    order = np.concatenate([_PAIRS[longest], _OTHERS[longest]], axis=1)

    def frame() -> npt.NDArray[np.complex128]:
        a, b, *rest = np.take_along_axis(z, order, 1).T
        return (np.array(rest) - a) / (b - a) * (1 + 1j)

    far = frame().real.sum(axis=0) > 1
    order[far, :2] = order[far, 1::-1]
    shape = frame()
    swap = shape[0].real > shape[1].real
    order[swap, 2:] = order[swap, :1:-1]
    shape[:, swap] = shape[::-1, swap]
    return np.take_along_axis(stars, order[:, :, None], 1), np.column_stack(
        [shape[0].real, shape[0].imag, shape[1].real, shape[1].imag]
    )


def quad(coo: npt.ArrayLike, dist: npt.ArrayLike) -> Quad:
    """Return the four stars of a quad in order, and its hash.

    Parameters
    ----------
    coo : array_like, shape (4, 2)
        Positions.
    dist : array_like, shape (6,)
        Distances of all pairs, as `scipy.spatial.distance.pdist` gives them.
    """
    stars, shape = hashes(np.asarray(coo, np.float64)[None], np.asarray(dist, np.float64)[None])
    return stars[0], tuple(shape[0].tolist())


def quads(coo: Float, min_quad_sep: float) -> list[Quad]:
    """Return all quads of a list of stars (N, 2) in which no two stars are nearer than `min_quad_sep`."""
    if len(coo) < 4:
        return []
    groups = np.array(list(combinations(range(len(coo)), 4)))
    distance = np.zeros((len(coo), len(coo)))
    distance[np.triu_indices(len(coo), 1)] = pdist(coo)
    sides = distance[groups[:, _PAIRS[:, 0]], groups[:, _PAIRS[:, 1]]]
    wide = sides.min(axis=1) >= min_quad_sep
    stars, shapes = hashes(coo[groups[wide]], sides[wide])
    return list(zip(stars, map(tuple, shapes.tolist()), strict=True))


def tiles(coo: Float, shape: tuple[int, int], sub_tile: int, edge_buffer: float) -> list[npt.NDArray[Any]]:
    """Return which stars lie in each of `sub_tile` x `sub_tile` tiles, `edge_buffer` pixels from the image's border."""
    x, y = coo.T
    ny, nx = shape
    inside = (x >= edge_buffer) & (x <= nx - 1 - edge_buffer) & (y >= edge_buffer) & (y <= ny - 1 - edge_buffer)
    column = np.clip((x + 0.5) * sub_tile // nx, 0, sub_tile - 1)
    row = np.clip((y + 0.5) * sub_tile // ny, 0, sub_tile - 1)
    return [inside & (column == i) & (row == j) for j in range(sub_tile) for i in range(sub_tile)]


def quads_of_tiles(
    coo: Float, of_tiles: list[npt.NDArray[Any]], n_quad_det: int, min_quad_sep: float
) -> list[list[Quad]]:
    """Return the quads of the `n_quad_det` brightest stars of each tile; the stars (N, 2) are in order of brightness.

    Raises
    ------
    InputError
        No star lies in any tile.
    """
    if not np.any(of_tiles):
        raise InputError("No detection is far enough from the border; lower quad_edge_buffer.")
    found = []
    for inside in of_tiles:
        brightest = coo[inside][:n_quad_det]
        if len(brightest) < n_quad_det:
            log.warning("Low number of detections found - restricting n_quad_det to %d", len(brightest))
        found.append(quads(brightest, min_quad_sep))
    return found
