"""Pixel maps between two world coordinate systems, and the ratio of their pixel scales."""

from __future__ import annotations

import copy
import math
import threading
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skyloom._threads import map_bands, row_bands
from skyloom.errors import InputError, WcsError
from skyloom.resampling.maps import Map, SampledMap, XYArray, evaluate
from skyloom.resampling.wcs_maps import map_between

Interval = tuple[float, float]
Box = tuple[Interval, Interval]

_FINEST_TABLE = 64.0  # pixels; `sample_map` looks at least every 32 pixels, so twice between the nodes of such a table
_POSITIONS = 1 << 16  # per call of a map


def calc_pixmap(
    wcs_from: Any,
    wcs_to: Any,
    shape: tuple[int, int] | None = None,
    disable_bbox: Literal["to", "from", "both", "none"] = "to",
    *,
    stepsize: float = 1,
    order: int = 1,
    tolerance: float | None = 1e-5,
) -> XYArray:
    """Return where the pixels of one image lie in another.

    The two systems are evaluated on a sparse grid, and local cubics, whose error is tested against the systems
    themselves, give all pixels in between (see `SampledMap`). Where the test fails every pixel is evaluated, as it is
    for systems with a structure that such a grid could miss: look-up tables finer than 64 pixels, and gwcs models with
    tables or with several regions. A `stepsize` above 1 lets these, too, be evaluated on a sparse grid.

    Parameters
    ----------
    wcs_from, wcs_to : APE-14 WCS
        Two-dimensional systems of the image and of the output: `astropy.wcs.WCS`, `gwcs.WCS`, or any other. They are
        not changed at any time. If their celestial frames differ, positions are transformed.
    shape : (int, int), optional
        Shape (ny, nx) of the image. Without it ``wcs_from.array_shape``, and without that the upper ends of
        ``wcs_from.bounding_box``.
    disable_bbox : {'to', 'from', 'both', 'none'}
        Of which systems the bounding box is ignored. Pixels outside a box that counts are NaN.
    stepsize : float
        Above 1: systems for which no error can be promised are evaluated every `stepsize` pixels, but at 10 positions
        along each axis at least, and interpolated. If one of these is not finite, every pixel is evaluated.
    order : {1, 3}
        Splines for that: linear or cubic.
    tolerance : float or None
        Largest error of either coordinate, pixels of the output. 0 or None: every pixel is evaluated.

    Returns
    -------
    ndarray of float64, shape (ny, nx, 2)
        Output position (x, y) of the centre of each pixel; NaN where it has none, or where an inverse does not
        converge.

    Raises
    ------
    InputError
        `disable_bbox`, `stepsize`, `order` or `tolerance` cannot be used, or nothing tells the shape.
    WcsError
        One of the systems is no two-dimensional WCS.
    """
    if disable_bbox not in ("to", "from", "both", "none"):
        raise InputError(
            f"disable_bbox is {disable_bbox!r}; it must be 'to', 'from', 'both' or 'none'.", disable_bbox=disable_bbox
        )
    if tolerance is not None and not (isinstance(tolerance, (int, float, np.number)) and tolerance >= 0):
        raise InputError(f"tolerance is {tolerance}; it must be at least 0 (pixels), or None.", tolerance=tolerance)
    if not (isinstance(stepsize, (int, float, np.number)) and 1 <= stepsize < math.inf):
        raise InputError(f"stepsize is {stepsize!r}; it must be a number from 1 (pixels).", stepsize=stepsize)
    if stepsize > 1 and order not in (1, 3):
        raise InputError(f"Interpolation order should be either 1 or 3; found {order!r}.", order=order)
    size = _pixmap_shape(wcs_from, shape)
    source, source_box = _without_box(wcs_from, disable_bbox in ("from", "both"))
    target, target_box = _without_box(wcs_to, disable_bbox in ("to", "both"))
    positions = positions_between(
        source, target, size, stepsize=stepsize, order=3 if order == 3 else 1, tolerance=tolerance
    )
    pixmap = positions.pixmap() if isinstance(positions, SampledMap) else positions
    if source_box is not None:
        blank_outside(pixmap, source_box)
    if target_box is not None:
        map_bands(lambda band: _mask_outside(pixmap[slice(*band)], target_box), row_bands(size[0]))
    return pixmap


def positions_between(
    source: Any, target: Any, size: tuple[int, int], *, stepsize: float, order: int, tolerance: float | None
) -> SampledMap | XYArray:
    """Return the map of `calc_pixmap` between systems without bounding boxes, sampled if its error can be promised."""
    pitch = min(_finest_structure(source), _finest_structure(target))
    if tolerance and pitch >= _FINEST_TABLE:
        kinks = math.isfinite(pitch)  # between two of the points where the error is tested it may be twice as large
        return SampledMap(map_between(source, target), size, tolerance=tolerance / 4 if kinks else tolerance)
    sparse = _spline(source, target, size, stepsize, order) if stepsize > 1 else None
    return _evaluate_all(source, target, size) if sparse is None else sparse


def _pixmap_shape(wcs: Any, shape: Any) -> tuple[int, int]:
    """Return the shape to map: what the caller says, else the shape of the image, else the end of its bounding box."""
    if shape is None:
        shape = getattr(wcs, "array_shape", None)
    if shape is None and (box := _bounding_box(wcs)) is not None:
        shape = tuple(math.ceil(high + 0.5) for _, high in box[::-1])
    if shape is None:
        raise InputError(
            'The "from" WCS must have pixel_shape property set: it has neither array_shape nor bounding_box. '
            "Set one of them, or give shape=(ny, nx)."
        )
    try:
        ny, nx = (int(n) for n in shape)
    except (TypeError, ValueError):
        ny = nx = 0
    if ny < 1 or nx < 1:
        raise InputError(f"shape is {shape!r}; it must be (ny, nx), both at least 1.", shape=shape)
    return ny, nx


# --- bounding boxes -----------------------------------------------------------------------------------------


def _bounding_box(wcs: Any) -> Box | None:
    """Return ((xmin, xmax), (ymin, ymax)) of the `bounding_box` of a WCS; None if it has none of this form."""
    box: Any = getattr(wcs, "bounding_box", None)
    if hasattr(box, "bounding_box"):  # an astropy.modeling.ModelBoundingBox; "F" is the order x, y
        box = box.bounding_box(order="F")
    try:
        (xmin, xmax), (ymin, ymax) = ([float(getattr(end, "value", end)) for end in interval] for interval in box)
    except (TypeError, ValueError):
        return None
    return (xmin, xmax), (ymin, ymax)


def _without_box(wcs: Any, ignore: bool) -> tuple[Any, Box | None]:
    """Return a copy of a WCS that is defined everywhere, and the box that is to be applied in its place.

    Working on a copy leaves nothing to restore, whatever happens, and lets threads share the original. Without the box
    the map has no edge that a sparse grid would have to follow.
    """
    try:
        wcs = copy.deepcopy(getattr(wcs, "low_level_wcs", wcs))
    except Exception as error:
        raise WcsError(f"The WCS ({type(wcs).__name__}) cannot be copied: {error}") from error
    box = None
    if hasattr(wcs, "all_pix2world"):  # FITS: a bounding_box set by hand means nothing to it
        if wcs.pixel_n_dim == 2 and wcs.pixel_bounds is not None:
            whole = (-math.inf, math.inf)
            x, y = ((whole if interval is None else tuple(interval)) for interval in wcs.pixel_bounds)
            box = (x, y)
            wcs.pixel_bounds = None
    elif getattr(wcs, "bounding_box", None) is not None:
        box = _bounding_box(wcs)
        if ignore or box is not None:  # a box of another form stays: the map follows its edges
            wcs.bounding_box = None
    return wcs, None if ignore else box


def _outside(position: npt.NDArray[Any], interval: Interval) -> npt.NDArray[np.bool_]:
    return (position < interval[0]) | (position > interval[1])


def blank_outside(pixmap: XYArray, box: Box) -> None:
    """Set the positions of pixels outside a box of the image to NaN."""
    ny, nx = pixmap.shape[:2]
    pixmap[:, _outside(np.arange(nx), box[0])] = np.nan
    pixmap[_outside(np.arange(ny), box[1])] = np.nan


def _mask_outside(pixmap: XYArray, box: Box) -> None:
    pixmap[_outside(pixmap[..., 0], box[0]) | _outside(pixmap[..., 1], box[1])] = np.nan


# --- systems that a sparse grid does not show -----------------------------------------------------------------


def _finest_structure(wcs: Any) -> float:
    """Return the smallest step of the look-up tables of a WCS, pixels: infinite if there are none, 0 if unknown."""
    tables = [getattr(wcs, name, None) for name in ("cpdis1", "cpdis2", "det2im1", "det2im2")]
    steps = [
        abs(step)
        for table in tables
        if table is not None
        for step, nodes in zip(table.cdelt, table.data.shape[::-1], strict=True)
        if nodes > 1
    ]
    for model in _submodels(getattr(wcs, "forward_transform", None)):
        if any(hasattr(model, name) for name in ("lookup_table", "label_mapper", "mapper")):
            return 0.0
    return min(steps, default=math.inf)


def _submodels(model: Any) -> list[Any]:
    """Return the simple models that an astropy.modeling model is made of."""
    parts = [part for part in (getattr(model, "left", None), getattr(model, "right", None)) if part is not None]
    return [simple for part in parts for simple in _submodels(part)] if parts else [model]


def _spline(source: Any, target: Any, shape: tuple[int, int], stepsize: float, order: int) -> XYArray | None:
    """Return the map interpolated between positions every `stepsize` pixels; None if it is not finite at all these."""
    from scipy.interpolate import RectBivariateSpline

    y, x = (np.linspace(0, n - 1, max(math.ceil(n / stepsize), min(10, n))) for n in shape)
    if min(len(y), len(x)) <= order:
        return None
    xy = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    nodes = evaluate(map_between(source, target), xy).reshape(len(y), len(x), 2)
    if not np.isfinite(nodes).all():
        return None
    rows, columns = (np.arange(n) for n in shape)
    splines = [RectBivariateSpline(y, x, nodes[..., k], kx=order, ky=order) for k in range(2)]
    return np.stack([spline(rows, columns) for spline in splines], axis=-1)


def _evaluate_all(source: Any, target: Any, shape: tuple[int, int]) -> XYArray:
    """Return the map evaluated on every pixel, on all threads, each with copies of the two systems of its own."""
    ny, nx = shape
    pixmap = np.empty((ny, nx, 2))
    own = threading.local()
    lock = threading.Lock()

    def fill(band: tuple[int, int]) -> None:
        if not hasattr(own, "map"):
            with lock:
                own.map = map_between(copy.deepcopy(source), copy.deepcopy(target))
        start, stop = band
        xy = np.stack(np.meshgrid(np.arange(nx), np.arange(start, stop)), axis=-1).reshape(-1, 2)
        map_: Map = own.map
        pixmap[start:stop] = evaluate(map_, xy).reshape(-1, nx, 2)

    map_bands(fill, row_bands(ny, max(1, _POSITIONS // nx)))
    return pixmap


# --- pixel scales ---------------------------------------------------------------------------------------------


def estimate_pixel_scale_ratio(
    wcs_from: Any, wcs_to: Any, refpix_from: npt.ArrayLike | None = None, refpix_to: npt.ArrayLike | None = None
) -> float:
    """Return the pixel scale of one WCS over that of another: the side of an output pixel in pixels of the input.

    Parameters
    ----------
    wcs_from, wcs_to : APE-14 WCS
        Two-dimensional celestial systems of input and output.
    refpix_from, refpix_to : array_like, shape (2,), optional
        Pixels (x, y) at which the scales are taken: see `estimate_pixel_scale`.

    Returns
    -------
    float
        Scale of `wcs_to` over scale of `wcs_from`.

    Raises
    ------
    WcsError
        One of the systems is no two-dimensional WCS, or is not defined at its reference pixel.
    """
    return estimate_pixel_scale(wcs_to, refpix_to) / estimate_pixel_scale(wcs_from, refpix_from)


def estimate_pixel_scale(wcs: Any, refpix: npt.ArrayLike | None = None) -> float:
    """Return the square root of the solid angle of one pixel, in radians.

    The corners of the pixel are projected onto the plane that touches the sky at its centre,

        u = cos(b) sin(l - l0),    v = sin(b - b0) + 2 sin(b0) cos(b) sin^2((l - l0) / 2),

    where their quadrilateral has the area of half the cross product of its diagonals. Written in differences, this
    keeps its accuracy for small pixels, across the meridian l = 0 and at the poles.

    Parameters
    ----------
    wcs : APE-14 WCS
        Two-dimensional celestial system. Its bounding box is ignored.
    refpix : array_like, shape (2,), optional
        Position (x, y) of the middle of the pixel. By default the middle of the bounding box, else that of the image
        (rounded down to a pixel), else (0, 0).

    Raises
    ------
    WcsError
        This is no two-dimensional WCS, or it is not defined at that pixel.
    InputError
        `refpix` is no pixel.
    """
    bare, _ = _without_box(wcs, ignore=True)
    if not hasattr(bare, "pixel_to_world_values") or bare.pixel_n_dim != 2:
        raise WcsError(f"A two-dimensional WCS is needed to measure a pixel; found {type(wcs).__name__}.")
    try:
        x, y = _reference_pixel(wcs) if refpix is None else np.asarray(refpix, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"refpix is {refpix!r}; two numbers are needed, the pixel (x, y).", refpix=refpix) from None
    steps = np.array([(0.0, 0.0), (-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5)])
    world = np.array(bare.pixel_to_world_values(x + steps[:, 0], y + steps[:, 1]), np.float64)
    lon, lat = world if not str(bare.world_axis_physical_types[0]).endswith((".dec", ".lat")) else world[::-1]
    radian = radians_per(bare.world_axis_units[0])
    dl, b = radian * (lon[1:] - lon[0]), radian * lat[1:]
    b0 = radian * lat[0]
    u = np.cos(b) * np.sin(dl)
    v = np.sin(radian * (lat[1:] - lat[0])) + 2 * math.sin(b0) * np.cos(b) * np.sin(dl / 2) ** 2
    area = 0.5 * abs((u[2] - u[0]) * (v[3] - v[1]) - (u[3] - u[1]) * (v[2] - v[0]))
    if not (np.isfinite(area) and area > 0):
        raise WcsError(f"The WCS gives the pixel at x = {x}, y = {y} no area on the sky; give another refpix.")
    return math.sqrt(area)


def radians_per(unit: str) -> float:
    """Return the radians of a WCS's unit of angle; degrees if it has no name.

    Raises
    ------
    WcsError
        This is no unit of angle.
    """
    from astropy import units

    try:
        return float(units.Unit(unit or "deg").to("rad"))
    except (ValueError, units.UnitConversionError):
        raise WcsError(f"The WCS has its positions in {unit!r}; a unit of angle is needed.", unit=unit) from None


def _reference_pixel(wcs: Any) -> tuple[float, float]:
    if (box := _bounding_box(wcs)) is not None:
        return (box[0][0] + box[0][1]) / 2, (box[1][0] + box[1][1]) / 2
    if shape := getattr(wcs, "pixel_shape", None):
        return (shape[0] - 1) // 2, (shape[1] - 1) // 2
    return 0.0, 0.0
