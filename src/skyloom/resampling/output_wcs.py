"""The output grid of a co-add: one tangent plane that holds all exposures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, ReadError, WcsError
from skyloom.exposure import Exposure
from skyloom.resampling._drizzle_checks import is_number
from skyloom.resampling.maps import XYArray

_SIDE = 17  # points on each side of an outline: a side that distortion bends by a pixel is still covered
_SMALLEST_FILL = 0.01  # exposures that fill less of the output grid than this do not belong together
_SLACK = 1e-3  # of a pixel, which outlines may stick out: the rounding of coordinates shall not add a row
_BYTES_PER_PIXEL = 40  # of the planes of a co-add


def output_wcs_from(
    exposures: Sequence[Any],
    *,
    pixel_scale: float | None = None,
    rotation: float | None = None,
    max_pixels: float | None = None,
) -> tuple[Any, tuple[int, int]]:
    """Return a WCS and a shape that hold all exposures.

    The projection is TAN (gnomonic; Calabretta & Greisen 2002, section 5.1.3) in ICRS, with its tangent point at the
    mean of the exposures' centres, square pixels, and east to the left of north.

    Parameters
    ----------
    exposures : sequence of Exposure
        Images with a celestial WCS (only name, wcs and shape are used).
    pixel_scale : float, optional
        Size of an output pixel, arcsec. By default the median of the exposures' pixels.
    rotation : float, optional
        Position angle of the output's y axis, degrees from north through east. By default that of the first exposure; 0
        is north up.
    max_pixels : float, optional
        Largest number of output pixels. By default what the memory of this machine can hold.

    Returns
    -------
    wcs : astropy.wcs.WCS
        With `pixel_shape` set.
    shape : (int, int)
        (ny, nx).

    Raises
    ------
    WcsError
        An exposure has no celestial WCS; they span half of the sky; or the grid would be absurd: more than
        `max_pixels`, or nearly all of it empty. Raised before anything is allocated.
    InputError
        No exposures, or a pixel scale or rotation that makes no sense.
    """
    if len(exposures) == 0:
        raise InputError("There are no exposures; at least one is needed for an output grid.")
    if pixel_scale is not None and not (is_number(pixel_scale) and 0 < pixel_scale < np.inf):
        raise InputError(f"pixel_scale is {pixel_scale}; it must be above 0 (arcsec).", pixel_scale=pixel_scale)
    if rotation is not None and not (is_number(rotation) and np.isfinite(rotation)):
        raise InputError(f"rotation is {rotation}; it must be a finite number (degrees).", rotation=rotation)
    centres = np.stack([_sky(exposure, _centre(exposure)) for exposure in exposures])
    mean = centres.mean(axis=(0, 1))
    if np.linalg.norm(mean) < 0.1:
        raise WcsError(
            "The exposures lie on opposite sides of the sky; no tangent plane holds them all. Co-add them in groups.",
            exposures=[exposure.name for exposure in exposures],
        )
    crval = np.rad2deg([np.arctan2(mean[1], mean[0]), np.arcsin(mean[2] / np.linalg.norm(mean))])
    if pixel_scale is None:
        pixel_scale = float(np.median([np.sqrt(_pixel_area(exposure)) for exposure in exposures]))
    if rotation is None:
        rotation = _position_angle(exposures[0])
    wcs = _tan(crval, pixel_scale, rotation)
    outlines = [_project(wcs, exposure) for exposure in exposures]
    low, high = (pick([pick(outline, axis=0) for outline in outlines], axis=0) for pick in (np.min, np.max))
    nx, ny = np.maximum(np.ceil(high - low - _SLACK), 1)
    filled = sum(_polygon_area(outline) for outline in outlines)
    _refuse_absurd_size(nx, ny, filled, max_pixels, pixel_scale)
    wcs.wcs.crpix -= low + 0.5  # the lower left corner of all outlines is the corner of pixel (0, 0)
    wcs.wcs.set()
    shape = int(ny), int(nx)
    wcs.pixel_shape = shape[::-1]
    return wcs, shape


def grid_of(given: Any, shape: tuple[int, int] | None = None) -> tuple[Any, tuple[int, int]]:
    """Return the WCS and the shape of an output grid that somebody else has chosen.

    Parameters
    ----------
    given : APE-14 WCS, FITS header, Exposure, path or HDU
        What describes the grid. A path may be that of an image, or of a header as text (.hdr, .head, .txt).
    shape : (int, int), optional
        Shape (ny, nx), if it is not that of the header, image or WCS.

    Returns
    -------
    wcs : object
        The WCS, as it is if one was given.
    shape : (int, int)
        (ny, nx).

    Raises
    ------
    WcsError
        There is no WCS, or nothing tells the shape.
    InputError
        The shape makes no sense.
    """
    wcs, known = given, None
    if not hasattr(getattr(given, "low_level_wcs", given), "pixel_to_world_values"):
        from collections.abc import Mapping

        from astropy.io import fits

        from skyloom.io import read
        from skyloom.io.wcs import wcs_from_header

        if isinstance(given, str | os.PathLike) and Path(given).suffix.lower() in (".hdr", ".head", ".txt"):
            given = header_from_text(given)
        if isinstance(given, fits.Header | Mapping):
            header = given if isinstance(given, fits.Header) else fits.Header(given)
            wcs = wcs_from_header(header, None, "the output header")
            axes = [header.get(f"ZNAXIS{k}", header.get(f"NAXIS{k}")) for k in (2, 1)]
            known = None if None in axes else tuple(axes)
        else:
            image = given if isinstance(given, Exposure) else read(given)
            wcs, known = image.wcs, image.shape
        if wcs is None:
            raise WcsError("The header or image that was given for the output grid has no celestial WCS.", no_wcs=True)
    if shape is None:
        shape = known if known is not None else getattr(wcs, "array_shape", None)
    if shape is None:
        raise WcsError("The output WCS does not know the shape of its image; give shape=(ny, nx).")
    return wcs, check_shape(shape)


def header_from_text(path: str | os.PathLike[str]) -> Any:
    """Return the header in a text file; raise a ReadError if there is none."""
    from astropy.io import fits

    try:
        return fits.Header.fromtextfile(Path(path).expanduser())
    except (OSError, ValueError) as error:
        raise ReadError(f"{path} cannot be read as the text of a header: {error}.", path=str(path)) from error


def check_shape(shape: Any) -> tuple[int, int]:
    """Return the shape (ny, nx) of an output grid; raise an InputError if it makes no sense."""
    try:
        ny, nx = (int(n) for n in shape)
    except (TypeError, ValueError):
        ny = nx = 0
    if ny < 1 or nx < 1:
        raise InputError(f"The output shape is {shape}; two numbers (ny, nx) of at least 1 are needed.", shape=shape)
    return ny, nx


def _refuse_absurd_size(nx: float, ny: float, filled: float, max_pixels: float | None, pixel_scale: float) -> None:
    from skyloom.io.fits_file import memory_size

    size = f"{nx:.0f} x {ny:.0f} pixels of {pixel_scale:.4g} arcsec"
    if filled < _SMALLEST_FILL * nx * ny:
        raise WcsError(
            f"The output grid would have {size}, and the exposures would fill {filled / (nx * ny):.2g} of it. Check "
            "the WCS of each exposure, or co-add them in groups.",
            shape=(ny, nx),
        )
    limit = memory_size() / _BYTES_PER_PIXEL if max_pixels is None else max_pixels
    if nx * ny > limit:
        raise WcsError(
            f"The output grid would have {size}; at most {limit:.3g} pixels "
            f"{'fit into the memory' if max_pixels is None else 'are allowed'}. Check the WCS of each exposure, or "
            "choose a larger pixel scale.",
            shape=(ny, nx),
            limit=limit,
        )


def _centre(exposure: Exposure) -> XYArray:
    ny, nx = exposure.shape
    return np.array([[(nx - 1) / 2, (ny - 1) / 2]])


def _outline(shape: tuple[int, int]) -> XYArray:
    """Return points along the outer edges of the border pixels, in order."""
    ny, nx = shape
    x, y = np.linspace(-0.5, nx - 0.5, _SIDE), np.linspace(-0.5, ny - 0.5, _SIDE)
    sides = [(x, y[0]), (x[-1], y), (x[::-1], y[-1]), (x[0], y[::-1])]
    return np.concatenate([np.stack(np.broadcast_arrays(*side), axis=1)[:-1] for side in sides])


def _sky(exposure: Exposure, xy: XYArray) -> npt.NDArray[np.float64]:
    """Return ICRS unit vectors, shape (N, 3), of pixel positions."""
    from astropy.coordinates import SkyCoord
    from astropy.wcs.wcsapi import BaseHighLevelWCS, HighLevelWCSWrapper

    wcs = exposure.wcs
    if wcs is None:
        raise WcsError(f"{exposure.name} has no WCS; give wcs=, or maps= from a registration.", name=exposure.name)
    high = wcs if isinstance(wcs, BaseHighLevelWCS) else HighLevelWCSWrapper(wcs)
    sky = high.pixel_to_world(*xy.T) if wcs.pixel_n_dim == 2 else None
    if not isinstance(sky, SkyCoord):
        raise WcsError(
            f"The WCS of {exposure.name} is not celestial; positions on the sky are needed.", name=exposure.name
        )
    vectors = sky.icrs.cartesian.xyz.value.T
    if not np.isfinite(vectors).all():
        raise WcsError(f"The WCS of {exposure.name} is not defined on all of the image.", name=exposure.name)
    return np.asarray(vectors, np.float64)


def _steps(exposure: Exposure) -> npt.NDArray[np.float64]:
    """Return the step of the sky vector along x and along y at the centre, per pixel, shape (2, 3)."""
    offsets = np.array([(0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5)])
    a, b, c, d = _sky(exposure, _centre(exposure) + offsets)
    return np.stack([a - b, c - d])


def _pixel_area(exposure: Exposure) -> float:
    """Return the solid angle of the central pixel, square arcsec."""
    area = np.linalg.norm(np.cross(*_steps(exposure))) * np.rad2deg(3600.0) ** 2
    if not area > 0:
        raise WcsError(
            f"The pixels of {exposure.name} have no area on the sky; its WCS is unusable.", name=exposure.name
        )
    return float(area)


def _position_angle(exposure: Exposure) -> float:
    """Return the position angle of the y axis at the centre, degrees from north through east."""
    x, y, z = _sky(exposure, _centre(exposure))[0]
    step = _steps(exposure)[1]
    east = np.array([-y, x, 0.0]) / np.hypot(x, y) if np.hypot(x, y) > 0 else np.array([0.0, 1.0, 0.0])
    north = np.cross([x, y, z], east)
    return float(np.rad2deg(np.arctan2(step @ east, step @ north)))


def _tan(crval: npt.NDArray[np.float64], pixel_scale: float, rotation: float) -> Any:
    from astropy.wcs import WCS

    c, s = np.cos(np.deg2rad(rotation)), np.sin(np.deg2rad(rotation))
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.crval = crval
    wcs.wcs.crpix = [1.0, 1.0]
    wcs.wcs.cd = pixel_scale / 3600 * np.array([[-c, s], [s, c]])
    wcs.wcs.set()
    return wcs


def _project(wcs: Any, exposure: Exposure) -> XYArray:
    from astropy.coordinates import SkyCoord

    sky = SkyCoord(*_sky(exposure, _outline(exposure.shape)).T, representation_type="cartesian", frame="icrs")
    spherical = sky.spherical
    outline = wcs.wcs_world2pix(np.stack([spherical.lon.deg, spherical.lat.deg], axis=1), 0)
    # behind the tangent plane wcslib gives NaN, or positions without meaning
    mean = SkyCoord(*wcs.wcs.crval, unit="deg", frame="icrs").cartesian.xyz.value
    if not np.isfinite(outline).all() or (sky.cartesian.xyz.value.T @ mean < 0.1).any():
        raise WcsError(
            f"{exposure.name} lies too far from the mean of the exposures for one tangent plane. Co-add in groups.",
            name=exposure.name,
        )
    return np.asarray(outline, np.float64)


def _polygon_area(xy: XYArray) -> float:
    x, y = xy.T
    return float(0.5 * abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)))
