"""Small images around candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.detection.photometry import DifferenceLike
from skyloom.errors import InputError, ShapeError

PLANES = ("science", "template", "difference", "score")


def cutouts(difference: DifferenceLike, xy: npt.ArrayLike, *, size: int = 41) -> npt.NDArray[np.float32]:
    """Cut science image, template, difference and score around positions.

    The template is the one that was subtracted (``difference.matched``), or without that the unmatched one.

    Parameters
    ----------
    difference : Difference
    xy : array_like, shape (N, 2)
        Positions, 0-based pixels.
    size : int
        Side of the cutouts, odd.

    Returns
    -------
    cutouts : ndarray, shape (N, 4, size, size), float32
        In the order of `PLANES`; NaN outside of the image. The pixel nearest to the position is in the middle.

    Raises
    ------
    InputError
        `size` is not an odd number above 0, or a position is not finite.
    ShapeError
        `xy` has another shape.
    """
    if size < 1 or size % 2 == 0:
        raise InputError(f"size is {size}; an odd number of pixels is needed, so that there is a middle.", size=size)
    xy = np.asarray(xy, float).reshape(-1, 2) if np.size(xy) == 0 else np.atleast_2d(np.asarray(xy, float))
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ShapeError(f"xy has the shape {xy.shape}; (N, 2) is needed.", shape=xy.shape)
    if not np.isfinite(xy).all():
        raise InputError("A position of xy is not finite; leave such rows out.")
    planes = _planes(difference)
    out = np.full((len(xy), len(PLANES), size, size), np.nan, np.float32)
    for row, (x, y) in zip(out, xy, strict=True):
        for target, name in zip(row, PLANES, strict=True):
            _cut(planes[name], round(x), round(y), target)
    return out


def _planes(difference: DifferenceLike) -> Mapping[str, npt.NDArray]:
    matched: Any = getattr(difference, "matched", None)
    if matched is None:
        matched = difference.template.data
    score = getattr(difference.score, "significance", difference.score)
    return {"science": difference.science.data, "template": matched, "difference": difference.image, "score": score}


def _cut(plane: npt.NDArray, x: int, y: int, target: npt.NDArray) -> None:
    """Copy the surroundings of pixel (x, y) to `target`, as far as the plane reaches."""
    size, (ny, nx) = target.shape[0], plane.shape
    y0, x0 = y - size // 2, x - size // 2
    rows, columns = slice(max(y0, 0), min(y0 + size, ny)), slice(max(x0, 0), min(x0 + size, nx))
    if rows.start < rows.stop and columns.start < columns.stop:
        target[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0] = plane[rows, columns]
