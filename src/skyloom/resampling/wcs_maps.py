"""Coordinate maps from the pixels of one world coordinate system to those of another."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from skyloom.errors import WcsError
from skyloom.resampling.maps import Map, XYArray


def wcs_map(wcs_from: Any, wcs_to: Any) -> Map:
    """Return the map from the pixels of one WCS to the pixels of another, through the sky.

    Both are copied, so later changes to them change nothing here, and their bounding boxes: that of
    `wcs_from` holds (positions outside become NaN), that of `wcs_to` is ignored (positions outside its image
    are still positions).

    Parameters
    ----------
    wcs_from, wcs_to : APE-14 WCS
        Two-dimensional: `astropy.wcs.WCS` (with SIP, TPV, table distortions), `gwcs.WCS`, or any other. If
        their celestial frames differ, positions are transformed.

    Returns
    -------
    callable
        ``(N, 2) -> (N, 2)``; NaN where either WCS is not defined or an inverse does not converge.

    Raises
    ------
    WcsError
        One of them is no two-dimensional WCS.
    """
    source = copy.deepcopy(_low_level(wcs_from, "source"))
    target = copy.deepcopy(_low_level(wcs_to, "target"))
    if getattr(target, "bounding_box", None) is not None:
        target.bounding_box = None
    return map_between(source, target)


def map_between(source: Any, target: Any) -> Map:
    """Return the map of `wcs_map` between two WCS as they are, bounding boxes included, without copying them."""
    source, target = _low_level(source, "source"), _low_level(target, "target")
    if source.world_n_dim != target.world_n_dim:
        raise WcsError(
            f"The source WCS has {source.world_n_dim} world axes and the target WCS {target.world_n_dim}: positions in "
            "one cannot be found in the other. Give two of the same kind."
        )
    if _same_frame(source, target):
        to_world, to_pixel = _pixel_to_world(source), _world_to_pixel(target)
        return lambda xy: to_pixel(to_world(xy))
    return _map_through_frames(source, target)


def _low_level(wcs: Any, what: str) -> Any:
    wcs = getattr(wcs, "low_level_wcs", wcs)
    if not hasattr(wcs, "pixel_to_world_values"):
        raise WcsError(
            f"The {what} WCS is {type(wcs).__name__}; a WCS with the common interface of astropy is needed "
            "(astropy.wcs.WCS, gwcs.WCS, ...)."
        )
    if wcs.pixel_n_dim != 2:
        raise WcsError(
            f"The {what} WCS has {wcs.pixel_n_dim} pixel and {wcs.world_n_dim} world axes; two of each are "
            "needed, or the three world axes of a spectrum. Take its celestial part (.celestial)."
        )
    reference = getattr(getattr(wcs, "wcs", None), "crval", None)  # of a FITS WCS: wcslib takes NaN for 1e108 degrees
    if reference is not None and not np.isfinite(reference).all():
        raise WcsError(f"The {what} WCS has the reference value CRVAL = {reference}; finite numbers are needed.")
    return wcs


def _same_frame(a: Any, b: Any) -> bool:
    """Return whether world values of a are world values of b, without transformation."""
    if list(a.world_axis_physical_types) != list(b.world_axis_physical_types):
        return False
    if [str(unit) for unit in a.world_axis_units] != [str(unit) for unit in b.world_axis_units]:
        return False
    frames = []
    for wcs in (a, b):
        classes = wcs.world_axis_object_classes
        frames.append([entry[2].get("frame") for entry in classes.values()])
    if len(frames[0]) != len(frames[1]):
        return False
    return all(
        f is g or (f is not None and g is not None and f.is_equivalent_frame(g)) for f, g in zip(*frames, strict=True)
    )


def _pixel_to_world(wcs: Any) -> Map:
    if hasattr(wcs, "all_pix2world"):
        return lambda xy: wcs.all_pix2world(xy, 0)
    return lambda xy: np.stack(np.broadcast_arrays(*wcs.pixel_to_world_values(xy[:, 0], xy[:, 1])), axis=1)


def _world_to_pixel(wcs: Any) -> Map:
    if hasattr(wcs, "all_world2pix"):
        return lambda world: _all_world2pix(wcs, world)
    return lambda world: np.stack(np.broadcast_arrays(*wcs.world_to_pixel_values(*world.T)), axis=1)


def _all_world2pix(wcs: Any, world: XYArray) -> XYArray:
    """Invert a FITS WCS with its distortions; positions that do not converge become NaN."""
    from astropy.wcs import NoConvergence

    result = np.full(world.shape, np.nan)
    finite = np.isfinite(world).all(axis=1)
    if not finite.any():
        return result
    try:
        # 100 steps: a distortion of 20 % at the border needs some 50 of them
        result[finite] = wcs.all_world2pix(world[finite], 0, tolerance=1e-6, maxiter=100)
    except NoConvergence as error:
        best = np.array(error.best_solution)
        for failed in (error.divergent, error.slow_conv):
            if failed is not None:
                best[failed] = np.nan
        result[finite] = best
    return result


def _map_through_frames(source: Any, target: Any) -> Map:
    from astropy.wcs.utils import pixel_to_pixel
    from astropy.wcs.wcsapi import BaseHighLevelWCS, HighLevelWCSWrapper

    pair = [wcs if isinstance(wcs, BaseHighLevelWCS) else HighLevelWCSWrapper(wcs) for wcs in (source, target)]

    def through(xy: XYArray) -> XYArray:
        try:
            return np.stack(pixel_to_pixel(*pair, xy[:, 0], xy[:, 1]), axis=1)
        except ValueError as error:
            raise WcsError(
                f"The source WCS gives {source.world_axis_physical_types} and the target WCS "
                f"{target.world_axis_physical_types}, in which its positions cannot be found: {error}. Give two of the "
                "same kind."
            ) from error

    return through
