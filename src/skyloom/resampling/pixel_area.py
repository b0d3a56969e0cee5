"""The mean solid angle of the pixels of an image, from the outline of the image on the sky."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, WcsError
from skyloom.resampling.maps import _image_shape
from skyloom.resampling.pixmap import _bounding_box, _without_box, radians_per

FloatArray = npt.NDArray[np.float64]

_SPACING = 15.0  # pixels between points of the outline: distortion does not bend it noticeably in between
_SHRINKS = 64  # of one side, 1/32 of the image each: then nothing is left of it
_FLATTEST = 1e-9  # area over squared perimeter; rounding of positions gives outlines without area about 1e-11


class UnsupportedWCSError(WcsError, RuntimeError):
    """A world coordinate system is of a kind that cannot be used here, such as one without a position on the sky."""


def is_imaging_wcs(wcs: Any) -> bool:
    """Return whether a WCS maps pixels to positions on the sky, and to nothing else.

    Parameters
    ----------
    wcs : APE-14 WCS
        `gwcs.WCS`, `astropy.wcs.WCS`, or any other.

    Returns
    -------
    bool
        False, too, for whatever is no WCS.
    """
    types = getattr(getattr(wcs, "output_frame", None), "axes_type", None)
    if types is not None:  # gwcs
        return len(types) > 0 and all(str(kind).upper() == "SPATIAL" for kind in types)
    return _sky_axes(wcs) is not None and len(wcs.world_axis_physical_types) == 2


def compute_mean_pixel_area(wcs: Any, shape: tuple[int, int] | None = None) -> float | None:
    """Return the mean solid angle of the pixels of an image.

    The outline of the image, with points no more than 15 pixels apart, is a polygon on the sphere. Its area is the sum
    of the spherical excesses E of the triangles that its sides a, b form with a point c within (Van Oosterom &
    Strackee 1983, IEEE Trans. Biomed. Eng. 30, 125),

        tan(E / 2) = c . (a x b) / (1 + a . b + b . c + c . a),

    with the triple product taken of the differences a - c and b - c, which keeps its accuracy for small pixels.

    Parameters
    ----------
    wcs : APE-14 WCS
        System with two celestial axes, among others if need be. It is not changed.
    shape : (int, int), optional
        Shape (ny, nx) of the image. Without it ``wcs.array_shape``. The mean is taken over that part of the image that
        lies in ``wcs.bounding_box``; without any shape, over the bounding box.

    Returns
    -------
    float or None
        Steradians. 0 if the outline has no area, as that of a slit whose other axis is wavelength. None if the WCS is
        not finite on the outline, nor on a smaller one.

    Raises
    ------
    InputError
        Nothing tells the shape, or it is not one of an image, or it has no pixel in the bounding box.
    UnsupportedWCSError
        The WCS has not two celestial axes.
    """
    axes = _sky_axes(wcs)
    if axes is None:
        raise UnsupportedWCSError(
            f"A WCS with two celestial axes is needed to measure pixels; found {type(wcs).__name__} with "
            f"{getattr(wcs, 'world_axis_physical_types', 'no known axes')}."
        )
    sides = list(_region(wcs, shape))
    bare, _ = _without_box(wcs, ignore=True)
    steps = ((sides[1] - sides[0]) / 32, (sides[3] - sides[2]) / 32)
    for _ in range(_SHRINKS):
        xmin, xmax, ymin, ymax = sides
        x, y, pixels, _, *edges = _get_boundary_points(xmin, xmax, ymin, ymax, _SPACING, _SPACING)
        vectors = _unit_vectors(bare, axes, x, y)
        lost = ~np.isfinite(vectors.sum(axis=1))
        if not lost.any():
            return _polygon_area(vectors) / pixels
        bottom, right, top, left = (lost[edge].mean() for edge in edges)
        worst = int(np.argmax([left, right, bottom, top]))
        sides[worst] += (1, -1)[worst % 2] * steps[worst // 2]
        if sides[1] - sides[0] < steps[0] or sides[3] - sides[2] < steps[1]:
            break
    return None


def _region(wcs: Any, shape: tuple[int, int] | None) -> tuple[float, float, float, float]:
    """Return xmin, xmax, ymin, ymax: the edges of the image, or of its part within the bounding box."""
    if shape is None:
        shape = getattr(wcs, "array_shape", None)
    box = _bounding_box(wcs)
    if shape is None and box is None:
        raise InputError(
            "Either WCS must have 'array_shape' attribute set or 'shape' argument must be supplied: nothing tells the "
            "size of the image."
        )
    (xmin, xmax), (ymin, ymax) = box or ((-math.inf, math.inf), (-math.inf, math.inf))
    if shape is not None:
        ny, nx = _image_shape(shape)
        xmin, xmax, ymin, ymax = max(xmin, -0.5), min(xmax, nx - 0.5), max(ymin, -0.5), min(ymax, ny - 0.5)
    if not (xmin < xmax and ymin < ymax):
        raise InputError(f"The image of shape {shape} has no pixel in the bounding box {box} of its WCS.", shape=shape)
    return xmin, xmax, ymin, ymax


def _sky_axes(wcs: Any) -> tuple[int, int] | None:
    """Return the numbers of the world axes with longitude and latitude; None if there are none."""
    kinds: Any = getattr(wcs, "world_axis_physical_types", None) or ()
    ends = [str(kind).rpartition(".")[2] for kind in kinds if str(kind).startswith("pos.")]
    places = [n for n, kind in enumerate(kinds) if str(kind).startswith("pos.")]
    if len(ends) == 2 and {ends[0], ends[1]} in ({"ra", "dec"}, {"lon", "lat"}):
        return (places[0], places[1]) if ends[0] in ("ra", "lon") else (places[1], places[0])
    types: Any = getattr(getattr(wcs, "output_frame", None), "axes_type", None) or ()  # gwcs with frames of its own
    spatial = [n for n, kind in enumerate(types) if str(kind).upper() == "SPATIAL"]
    return (spatial[0], spatial[1]) if len(spatial) == 2 else None


def _unit_vectors(bare: Any, axes: tuple[int, int], x: FloatArray, y: FloatArray) -> FloatArray:
    """Return the directions, shape (N, 3), of positions in pixels."""
    world = bare.pixel_to_world_values(x, y)
    units = bare.world_axis_units
    lon, lat = (np.asarray(world[n], np.float64) * radians_per(units[n]) for n in axes)
    with np.errstate(invalid="ignore"):
        return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def _polygon_area(vectors: FloatArray) -> float:
    """Return the solid angle of a polygon; 0 if it is as flat as rounding would leave one without area."""
    a = vectors
    middle = a.mean(axis=0)
    c = middle / np.linalg.norm(middle)
    b = np.roll(a, -1, axis=0)
    triple = np.cross(a - c, b - c) @ c
    excess = 2 * np.arctan2(triple, 1 + (a * b).sum(axis=1) + (a + b) @ c)
    area = abs(float(excess.sum()))
    perimeter = float(np.linalg.norm(b - a, axis=1).sum())
    return area if area > _FLATTEST * perimeter**2 else 0.0


def _get_boundary_points(  # noqa: PLR0917  the original's signature
    xmin: float,
    xmax: float,
    ymin: float,
    ymax: float,
    dx: float | None = None,
    dy: float | None = None,
    shrink: float = 0,
) -> tuple[FloatArray, FloatArray, float, tuple[float, float], slice, slice, slice, slice]:
    """Return points along a rectangle, counter-clockwise from its corner (xmin, ymin).

    Parameters
    ----------
    xmin, xmax, ymin, ymax : float
        Sides of the rectangle, pixels.
    dx, dy : float, optional
        Largest distance between neighbours on the horizontal and on the vertical sides. By default there are corners
        only.
    shrink : float
        By how much each side is moved inwards first.

    Returns
    -------
    x, y : ndarray of float64, shape (N,)
        The points, each once.
    area : float
        Square pixels.
    centre : (float, float)
        Middle (x, y).
    bottom, right, top, left : slice
        The points of each side, without the corner at its end.
    """
    centre = (0.5 * (xmin + xmax), 0.5 * (ymin + ymax))
    x0, x1, y0, y1 = xmin + shrink, xmax - shrink, ymin + shrink, ymax - shrink
    nx = 1 if dx is None else max(1, math.ceil((xmax - xmin) / dx))
    ny = 1 if dy is None else max(1, math.ceil((ymax - ymin) / dy))
    along_x, along_y = np.linspace(x0, x1, nx + 1), np.linspace(y0, y1, ny + 1)
    x = np.concatenate([along_x[:-1], np.full(ny, x1), along_x[:0:-1], np.full(ny, x0)])
    y = np.concatenate([np.full(nx, y0), along_y[:-1], np.full(nx, y1), along_y[:0:-1]])
    ends = np.cumsum([0, nx, ny, nx, ny]).tolist()
    bottom, right, top, left = (slice(ends[k], ends[k + 1]) for k in range(4))
    return x, y, (x1 - x0) * (y1 - y0), centre, bottom, right, top, left
