"""`coadd`: many exposures of one field into one image, each resampled once from its own pixels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from skyloom.errors import InputError, NoOverlapError, SkyloomWarning, WcsError
from skyloom.resampling.maps import Map, invert_map
from skyloom.resampling.output_wcs import check_shape, grid_of, output_wcs_from
from skyloom.resampling.wcs_maps import wcs_map
from skyloom.stacking.drizzling import check_weights
from skyloom.stacking.files import read_coadd
from skyloom.stacking.frames import PlacedExposure, area_factor, place
from skyloom.stacking.job import Job
from skyloom.stacking.members import Member, Progress, check_units, file_of, flux_scales, is_surface_brightness, survey
from skyloom.stacking.memory import Budget, Scratch, parse_memory
from skyloom.stacking.options import CoaddOptions
from skyloom.stacking.result import Coadd, options_for_more
from skyloom.stacking.sky import cell_levels, cell_size, levels_of, match_skies, needed_memory


def coadd(
    exposures: Sequence[Any],
    options: CoaddOptions | None = None,
    *,
    wcs: Any = None,
    shape: tuple[int, int] | None = None,
    maps: Sequence[Map] | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: Coadd | str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Coadd:
    """Co-add exposures: bring each of them once, from its own pixels, onto one grid.

    Data, variance and mask of an exposure go through the geometry together. For the methods 'mean' and 'clipped' the
    value of an output pixel is sum_i a_i w_i d_i / sum_i a_i w_i over the drops i that overlap it by a_i (Fruchter &
    Hook 2002, eqs. 3-5), its variance sum_i (a_i w_i)^2 v_i / (sum_i a_i w_i)^2.

    All exposures are looked at before anything is added up, so that one that cannot be used is an error at the start.
    Their pixels are read again when their turn comes, and at most a few of them are in memory at a time.

    Parameters
    ----------
    exposures : sequence of Exposure, of whatever `skyloom.read` takes, or of callables that return an Exposure
        The images, all in the same unit. The first one gives the flux scale. Those without variance get one from
        `skyloom.noise`.
    options : CoaddOptions, optional
        Method, weights, sky, flux scale, rejection, memory. With `resume`, by default those of the co-add.
    wcs : APE-14 WCS, FITS header, Exposure or path, optional
        Output grid. By default a tangent plane that holds all exposures, see `output_wcs_from`.
    shape : (int, int), optional
        Shape (ny, nx) of the output grid. By default that of `wcs`, or, with `maps`, of the first exposure.
    maps : sequence of callable, optional
        For exposures without WCS: from the pixels of each exposure to output pixels, ``(N, 2) -> (N, 2)``.
    output : path-like, optional
        Write the result to this FITS file. Its planes then need not fit into memory.
    resume : Coadd or path-like, optional
        A co-add to go on with, by 'mean' or 'clipped'; it is not changed. Its grid, unit, flux scale and sky stay. The
        means go on from its planes as if the exposures had come in one run: with given scales and skies, the same bits
        (errors to 2e-7 of their value). What depends on all exposures together is decided for the new ones alone:
        their outliers are found by comparison with the co-add, and their skies matched to it.
    progress : callable, optional
        Called as ``progress(what, done, total)``.

    Returns
    -------
    Coadd
        If it was written to `output`, its planes are read from there when they are asked for.

    Raises
    ------
    NoOverlapError
        No exposure has a usable pixel on the output grid. A single one that has none is left out with a
        `SkyloomWarning`.
    WcsError
        An exposure has neither WCS nor map, or one that is finite nowhere; or the grid that would hold all is absurd.
    InputError
        No exposures, a file or a copy of it twice, mixed units, an option that makes no sense, or too little memory.
        Nothing is written then.
    """
    from skyloom.io import check_writable

    if not isinstance(options, CoaddOptions | None):
        raise InputError(f"options is a {type(options).__name__}; CoaddOptions(method=...) are needed.")
    earlier = resume if isinstance(resume, Coadd) or resume is None else read_coadd(resume)
    if options is None:
        options = options_for_more(earlier)
    if output is not None:
        check_writable(output, options.overwrite)
    _check_resume(earlier, options, wcs, shape, maps)
    report = progress or _silent
    with Scratch(output) as scratch:
        members = survey(
            exposures, scratch, with_wcs=maps is None, memory=parse_memory(options.memory), progress=report
        )
        if earlier is not None:
            _warn_of_repeats(members, earlier)
            check_units([_as_member(earlier), *members])
            wcs, shape = earlier.wcs, earlier.shape
        else:
            wcs, shape = _grid(members, options, wcs, shape, maps)
        placed = _placed(members, wcs, shape, maps, first=0 if earlier is None else earlier.n_exposures)
        check_weights(placed, options)
        scales = _scales(members, options, earlier)
        placed = _scaled(placed, scales, members, options)
        placed = _matched(placed, earlier, options)
        budget = Budget.of(options.memory)  # now that what is kept of the exposures is there, and all libraries loaded
        job = Job(placed, _kept(scales, members, placed), shape, options, budget, scratch, earlier, report)
        result = job.run(wcs, _reference(members, earlier), in_file=output is not None)
        if output is None:
            return result
        report("writing", 0, 1)
        files = [path for path in (file_of(one.member.source) for one in placed) if path is not None]
        result.write(output, overwrite=options.overwrite, inputs=files)
    return read_coadd(output, verify=False)


def _warn_of_repeats(members: Sequence[Member], earlier: Coadd) -> None:
    """Warn of files that may be in a co-add already, of whose exposures only the names are known."""
    for member in members:
        if file_of(member.source) is not None and member.name in set(earlier.names):
            warnings.warn(
                f"The co-add that is extended has a {member.name} already; if it is the same, it counts twice.",
                SkyloomWarning,
                stacklevel=3,
            )


def _silent(*_: Any) -> None:
    """No progress is shown."""


def _as_member(earlier: Coadd) -> Any:
    """Return what `flux_scales` and `check_units` ask of an exposure, for a finished co-add."""
    from types import SimpleNamespace

    return SimpleNamespace(**{key: earlier.fields[key] for key in ("name", "unit", "zeropoint", "exptime")})


def _check_resume(earlier: Coadd | None, options: CoaddOptions, *grid: Any) -> None:
    if earlier is None:
        return
    for one in (earlier.options, options):
        if one.method not in ("mean", "clipped"):
            raise InputError(f"A co-add by '{one.method}' cannot be extended; only means ('mean', 'clipped') go on.")
    if options.weight != earlier.options.weight:
        raise InputError(
            f"weight is {options.weight!r}, but the co-add was made with {earlier.options.weight!r}; weights of "
            "different kinds do not add up.",
            weight=options.weight,
        )
    known = earlier.options
    new_grid = options.pixel_scale not in (None, known.pixel_scale) or options.rotation not in (None, known.rotation)
    if grid[0] is not None or grid[1] is not None or new_grid:
        raise InputError(
            "The grid of a co-add that is extended stays; leave out wcs=, shape=, pixel_scale and rotation."
        )
    if grid[2] is None and earlier.wcs is None:
        raise WcsError(
            "The co-add that is extended has no WCS; register to it by stars (--align stars) or give maps= onto it.",
            no_wcs=True,
        )


# --- geometry -----------------------------------------------------------------------------------


def _grid(
    members: Sequence[Member], options: CoaddOptions, wcs: Any, shape: Any, maps: Sequence[Map] | None
) -> tuple[Any, tuple[int, int]]:
    """Return the WCS (None if there is none) and the shape of the output grid."""
    if maps is not None:
        if len(maps) != len(members) or not all(callable(one) for one in maps):
            raise InputError(
                f"There are {len(maps)} maps for {len(members)} exposures; give one for each, a function "
                "(N, 2) -> (N, 2)."
            )
        size = members[0].shape if shape is None else shape
        return grid_of(wcs, size) if wcs is not None else (None, check_shape(size))
    if wcs is None:
        if shape is not None:
            raise InputError("A shape was given without wcs= or maps=; the output grid needs one of them too.")
        return output_wcs_from(members, pixel_scale=options.pixel_scale, rotation=options.rotation)
    return grid_of(wcs, shape)


def _placed(
    members: Sequence[Member], wcs: Any, shape: tuple[int, int], maps: Sequence[Map] | None, first: int
) -> list[PlacedExposure]:
    """Put the exposures onto the grid; leave out those that do not reach it."""
    result: list[PlacedExposure] = []
    for k, member in enumerate(members):
        if maps is not None:
            given = maps[k]
            one = place(member, shape, given, partial(invert_map, given, member.shape))
        else:
            one = place(member, shape, wcs_map(member.wcs, wcs), partial(wcs_map, wcs, member.wcs))
        if one.overlaps():
            area_factor(one)  # raises if there is none
            result.append(replace(one, number=first + len(result)))
            continue
        warnings.warn(
            f"{member.name} has no usable pixel on the output grid and is left out.", SkyloomWarning, stacklevel=3
        )
    if not result:
        raise NoOverlapError(
            f"None of the {len(members)} exposures has a usable pixel on the output grid of {shape[1]} x {shape[0]} "
            "pixels. Check the WCS or the maps.",
            names=[member.name for member in members],
        )
    return result


# --- flux and sky -------------------------------------------------------------------------------


def _scales(members: Sequence[Member], options: CoaddOptions, earlier: Coadd | None) -> list[float]:
    how = options.flux_scale
    if earlier is None or not isinstance(how, str):
        return flux_scales(members, how)
    return flux_scales([_as_member(earlier), *members], how)[1:]


def _kept(scales: Sequence[float], members: Sequence[Member], placed: Sequence[PlacedExposure]) -> list[float]:
    """Return the scales of those exposures that are on the grid."""
    number = {id(member): k for k, member in enumerate(members)}
    return [scales[number[id(one.member)]] for one in placed]


def _scaled(
    placed: Sequence[PlacedExposure], scales: Sequence[float], members: Sequence[Member], options: CoaddOptions
) -> list[PlacedExposure]:
    """Set what the pixel values are multiplied with: fluxes are kept, or surface brightnesses."""
    flux = options.conserve == "flux" or (
        options.conserve == "auto" and not is_surface_brightness(placed[0].member.unit)
    )
    return [
        replace(
            one,
            factor=scale * (area_factor(one) if flux else 1.0),
            subtract_sky=options.background == "subtract",
        )
        for one, scale in zip(placed, _kept(scales, members, placed), strict=True)
    ]


def _matched(placed: Sequence[PlacedExposure], earlier: Coadd | None, options: CoaddOptions) -> list[PlacedExposure]:
    """Set the skies that are subtracted."""
    if options.background not in ("match", "plane"):
        return list(placed)
    shape, cell = placed[0].shape, cell_size(placed)
    levels = [levels_of(one, cell) for one in placed]
    if earlier is not None:
        step = max(1, int(cell / 16))
        rows = np.arange(0, shape[0], step)
        lines = [(slice(row, row + 1), slice(0, shape[1])) for row in rows.tolist()]
        values = np.concatenate([earlier.planes["SCI"].read(line) for line in lines])[:, ::step]
        used = np.concatenate([earlier.planes["WHT"].read(line) for line in lines])[:, ::step] > 0
        xy = np.stack(np.meshgrid(np.arange(0, shape[1], step), rows), axis=-1).astype(np.float64)
        levels.insert(0, cell_levels(xy[used], values[used].astype(np.float64), shape[1], cell))
    plane = options.background == "plane"
    Budget.of(options.memory).check(
        needed_memory(levels, plane=plane), f"Matching the skies of {len(placed)} exposures"
    )
    skies = match_skies(levels, shape, cell, plane=plane, fixed=earlier is not None)
    skies = skies if earlier is None else skies[1:]
    return [
        replace(one, sky=(float(sky[0]), float(sky[1]), float(sky[2]))) for one, sky in zip(placed, skies, strict=True)
    ]


def _reference(members: Sequence[Member], earlier: Coadd | None) -> dict[str, Any]:
    """Return what the co-add takes over from the first exposure."""
    if earlier is not None:
        return {key: earlier.fields[key] for key in ("exptime", "zeropoint", "unit")}
    first = members[0]
    return {"exptime": first.exptime, "zeropoint": first.zeropoint, "unit": first.unit}
