"""A first guess from the WCS of both images, corrected for a common offset."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from skyloom.registration.fit import StarList
from skyloom.registration.transform import Transform, monomials
from skyloom.registration.verify import match_stars

Float = npt.NDArray[np.float64]

_SEARCH = 40.0
"""Source pixels: largest error of pointing that the WCS may have; beyond it the blind search is as good."""

_STARS = 300
_GRID = 9


def wcs_positions(from_wcs: Any, to_wcs: Any, xy: Float) -> Float:
    """Map pixels of one image to pixels of the other through the sky (APE-14), NaN where that is impossible."""
    sky = from_wcs.pixel_to_world(xy[:, 0], xy[:, 1])
    try:
        x, y = to_wcs.world_to_pixel(sky)
    except Exception:  # noqa: BLE001 - each WCS library has its own error for positions that do not project
        return np.full(xy.shape, np.nan)
    return np.column_stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])


def prior_transform(
    source_wcs: Any, template_wcs: Any, template: StarList, source: StarList
) -> tuple[Transform, int] | None:
    """Return the transform that the WCS predict, shifted to where most stars agree, and the number of shifts tried.

    The shift is where the differences between all source and all predicted positions are densest.
    """
    ny, nx = template.shape
    gx, gy = np.meshgrid(np.linspace(0, nx - 1, _GRID), np.linspace(0, ny - 1, _GRID))
    grid = np.column_stack([gx.ravel(), gy.ravel()])
    image = wcs_positions(template_wcs, source_wcs, grid)
    good = np.isfinite(image).all(axis=1)
    if good.sum() < 20:
        return None
    centre, half = np.array([nx - 1, ny - 1]) / 2, max(nx, ny) / 2
    design = monomials((grid[good] - centre) / half, 3)
    coefficients = np.asarray(np.linalg.lstsq(design, image[good], rcond=None)[0].T, np.float64)
    if abs(np.linalg.det(coefficients[:, 1:3])) <= 1e-12:
        return None
    first = Transform(coefficients, 3, centre, half)
    stars, targets = template[:_STARS], source[:_STARS]
    predicted = first(stars.xy)
    pairs = cKDTree(predicted).sparse_distance_matrix(targets.tree, _SEARCH, output_type="ndarray")
    if len(pairs) == 0:
        return None
    offsets = targets.xy[pairs["j"]] - predicted[pairs["i"]]
    tree = cKDTree(offsets)
    votes = tree.query_ball_point(offsets, 2.0, return_length=True)
    near = tree.query_ball_point(offsets[int(np.argmax(votes))], 2.0)
    shifted = coefficients.copy()
    shifted[:, 0] += np.median(offsets[near], axis=0)
    transform = Transform(shifted, 3, centre, half)
    if len(match_stars(transform(stars.xy), targets.tree, targets.shape, 4.0)) < 3:
        return None
    return transform, int((_SEARCH / 2.0) ** 2)
