"""Intersection of two convex polygons."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError

Vertex = tuple[float, float]


def clip_polygon(p: npt.ArrayLike, q: npt.ArrayLike) -> list[Vertex]:
    """Return what of a polygon lies inside a convex one (Sutherland & Hodgman 1974, CACM 17, 32).

    Parameters
    ----------
    p, q : array_like, shape (n, 2)
        Vertices (x, y) of the polygon and of the convex window, in either sense.

    Returns
    -------
    list of (float, float)
        Vertices in counter-clockwise order, without those on a straight side; empty if the area is nothing.
    """
    polygon, window = _counter_clockwise(p), _counter_clockwise(q)
    for start, end in zip(window, window[1:] + window[:1], strict=True):
        side = [_side(start, end, vertex) for vertex in polygon]
        clipped: list[Vertex] = []
        for k, vertex in enumerate(polygon):
            if (side[k - 1] < 0 < side[k]) or (side[k] < 0 < side[k - 1]):
                t = side[k - 1] / (side[k - 1] - side[k])
                (x0, y0), (x1, y1) = polygon[k - 1], vertex
                clipped.append((x0 + t * (x1 - x0), y0 + t * (y1 - y0)))
            if side[k] >= 0:
                clipped.append(vertex)
        polygon = clipped
    return _corners(polygon)


def _side(start: Vertex, end: Vertex, point: Vertex) -> float:
    """Return twice the area of a triangle: positive for a point on the left of the line from start to end."""
    return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])


def _counter_clockwise(vertices: npt.ArrayLike) -> list[Vertex]:
    array = np.asarray(vertices, np.float64)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) < 3 or not np.isfinite(array).all():
        raise InputError(f"A polygon needs 3 finite vertices (x, y) at least; found an array of shape {array.shape}.")
    x, y = (array - array[0]).T
    area = x @ np.roll(y, -1) - y @ np.roll(x, -1)
    return [(float(x), float(y)) for x, y in (array if area >= 0 else array[::-1])]


def _corners(polygon: list[Vertex]) -> list[Vertex]:
    """Leave out vertices that lie on the line through their neighbours, and all of a polygon without area."""
    polygon = list(polygon)
    size = max((abs(c) for vertex in polygon for c in vertex), default=0.0)
    rounding = 1e-15 * (1 + size) ** 2  # of the products of coordinates in _side
    k = 0
    while k < len(polygon) and len(polygon) > 2:
        if abs(_side(polygon[k - 1], polygon[k], polygon[(k + 1) % len(polygon)])) > rounding:
            k += 1
        else:  # one at a time: of two vertices in one place one stays
            del polygon[k]
            k = 0
    return polygon if len(polygon) > 2 else []
