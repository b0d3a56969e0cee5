"""Co-add exposures that may first have to be registered."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from skyloom.errors import (
    InputError,
    NoUsableDataError,
    RegistrationError,
    SkyloomWarning,
    TooFewSourcesError,
    WcsError,
)
from skyloom.exposure import Exposure
from skyloom.pipeline.align import Alignment, Map, StarMap, reference_frame
from skyloom.stacking.light import dim_frames

if TYPE_CHECKING:
    from skyloom.stacking import Coadd, CoaddOptions

ALIGN = ("auto", "wcs", "stars")
Progress = Callable[[str, int, int], None]


def coadd(
    exposures: Sequence[Any],
    options: CoaddOptions | None = None,
    *,
    align: str = "auto",
    wcs: Any = None,
    shape: tuple[int, int] | None = None,
    maps: Sequence[Map] | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: Coadd | str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Coadd:
    """Co-add exposures, placed on one grid by their WCS, by their stars or by given maps.

    Stars of all exposures are fitted together (`register_group` with ``joint=True``), so that the alignment does not
    carry the noise of the positions in one of them. Once the exposures have their places, `skyloom.stacking.coadd`
    does the rest; see there for what is added up.

    Parameters
    ----------
    exposures : sequence of Exposure, of what `skyloom.read` takes, or of callables that return an Exposure
        The images, all in the same unit. The first one gives the flux scale and zero point, so that it should be a
        clear one; a `SkyloomWarning` tells if it, or another, got much less light than the others.
    options : CoaddOptions, optional
        How to co-add. With `resume`, by default the options of that co-add.
    align : {'auto', 'wcs', 'stars'}
        'auto' uses the WCS when every exposure (and the output grid) has one, else the stars.
    wcs : Exposure, path, APE-14 WCS or FITS header, optional
        Output grid. To align by stars it must be an image, and its stars are what all others are registered to. By
        default a new grid that covers all (by WCS), or that of the first exposure (by stars).
    shape : (int, int), optional
        Shape (ny, nx) of the output grid. By default that of `wcs` or of the first exposure.
    maps : sequence of callable, optional
        From the pixels of each exposure to output pixels, ``(N, 2) -> (N, 2)``; nothing else is used to align then.
    output : path-like, optional
        Write the result to this FITS file. Its planes then need not fit into memory.
    resume : Coadd or path-like, optional
        A co-add to go on with, see `skyloom.stacking.coadd`.
    progress : callable, optional
        Called as ``progress(what, done, total)``.

    Returns
    -------
    Coadd
        An exposure that cannot be registered or does not overlap is left out with a `SkyloomWarning`. `Coadd.frames`
        tells what each exposure brings.

    Raises
    ------
    InputError, WcsError, RegistrationError, NoOverlapError
        Nothing can be co-added.
    """
    from skyloom.stacking import Coadd, read_coadd
    from skyloom.stacking import coadd as coadd_placed
    from skyloom.stacking.members import as_list

    if align not in ALIGN:
        raise InputError(f"align is {align!r}; it must be 'auto', 'wcs' or 'stars'.", align=align)
    exposures = as_list(exposures)  # it may have to be gone through twice
    earlier = resume if isinstance(resume, Coadd) or resume is None else read_coadd(resume)
    into: dict[str, Any] = {"output": output, "resume": earlier, "progress": progress}
    result: Coadd | None = None
    if maps is not None or align != "stars":
        try:
            result = coadd_placed(exposures, options, wcs=wcs, shape=shape, maps=maps, **into)
        except WcsError as error:
            if maps is not None or align == "wcs" or not error.details.get("no_wcs"):
                raise
    if result is None:
        result = _by_stars(exposures, options, _image_of(wcs), shape, into)
    _warn_of_clouds(result, 0 if earlier is None else earlier.n_exposures)
    return result


def _image_of(grid: Any) -> Exposure | None:
    """Return the image whose stars the others are registered to."""
    from skyloom.io import read

    image = read(grid) if isinstance(grid, str | os.PathLike) else grid
    if not isinstance(image, Exposure | None):
        raise InputError(
            "To align by stars, the output grid must be an image with stars; give its path or an Exposure."
        )
    return image


def _by_stars(
    exposures: Sequence[Any],
    options: CoaddOptions | None,
    reference: Exposure | None,
    shape: tuple[int, int] | None,
    into: dict[str, Any],
) -> Coadd:
    from skyloom.stacking import coadd as coadd_placed
    from skyloom.stacking.members import check_repeats
    from skyloom.stacking.result import options_for_more

    earlier = into["resume"]
    if options is None:
        options = options_for_more(earlier)
    check_repeats(exposures)
    frame = earlier.exposure if earlier is not None else reference
    grid, members, maps, ratios = register_all(exposures, frame, into["progress"])
    scales = np.array(ratios) / (ratios[0] if earlier is None else 1.0)
    if options.flux_scale == "auto" and np.isfinite(scales).all():
        options = replace(options, flux_scale=tuple(scales.tolist()))
    if earlier is None:
        into = into | {"wcs": grid.wcs, "shape": grid.shape if shape is None else shape}
    return coadd_placed(members, options, maps=maps, **into)


def register_all(
    exposures: Sequence[Any], reference: Exposure | None, progress: Progress | None
) -> tuple[Exposure, list[Any], list[Map], list[float]]:
    """Register exposures to a reference (by default the first that has stars), all stars together.

    Returns
    -------
    grid : Exposure
        The reference.
    members : list
        Those of the exposures that could be registered; the others are left out with a warning.
    maps : list of callable
        From their pixels to those of the reference.
    ratios : list of float
        Flux of a star in the reference over that in each of them; NaN if unknown.

    Raises
    ------
    RegistrationError
        None can be.
    """
    from skyloom.registration import detect_sources, flux_ratio, image_fwhm, register_group
    from skyloom.stacking.members import load

    report = progress or (lambda *_: None)
    tables, members, reasons, grid = [], [], [], reference
    for number, source in enumerate(exposures):
        report("detecting stars", number, len(exposures))
        exposure = load(source)
        try:
            table = detect_sources(exposure)
        except (RegistrationError, NoUsableDataError) as error:
            if len(exposures) == 1 and reference is not None:
                raise
            reasons.append(str(error))
            warnings.warn(f"{exposure.name} is left out: {error}", SkyloomWarning, stacklevel=4)
            continue
        if grid is None:
            grid = exposure
        table.meta["wcs"] = exposure.wcs
        tables.append(table)
        members.append(source)
    if grid is None or not members:
        raise RegistrationError(
            f"None of the {len(exposures)} exposures can be registered; the first because: {reasons[0]}"
        )
    if reference is None and len(members) == 1 and len(exposures) == 1:
        return grid, members, [_identity], [1.0]
    group = register_group(tables, reference=0 if reference is None else grid, joint=True, progress=progress)
    grid_table = tables[0] if reference is None else detect_sources(grid)
    grid_share = _share(grid, grid_table)
    found: list[Any] = []
    maps: list[Map] = []
    ratios: list[float] = []
    for number, (source, one) in enumerate(zip(members, group, strict=True)):
        if one is None and number != group.reference:
            name = tables[number].meta.get("name", f"exposure {number + 1}")
            warnings.warn(f"{name} is left out: {group.errors[number]}", SkyloomWarning, stacklevel=4)
            continue
        found.append(source)
        placed = (_identity, len(tables[number])) if one is None else (one.source_to_template, one.n_matched)
        maps.append(StarMap(placed[0], image_fwhm(tables[number]), placed[1]))
        if one is None:
            ratios.append(1.0)
            continue
        report("measuring flux ratios", number, len(members))
        exposure = load(source)
        share = _share(exposure, tables[number])
        shares = None if share is None or grid_share is None else (share, grid_share)
        widths = image_fwhm(tables[number]), image_fwhm(grid_table)
        measured = flux_ratio(one, exposure, grid, widths, shares=shares)
        ratios.append(1 / (one.flux_ratio if measured is None else measured.value))
    return grid, found, maps, ratios


def _share(exposure: Exposure, sources: Any) -> Callable[[float, tuple[float, float]], float | None] | None:
    """Return how much of a star's light circles see, by the PSF of an image; None if it has too few stars for one."""
    from skyloom.psf import Psf, estimate_psf
    from skyloom.psf.growth import circle_share

    psf = exposure.psf
    if not isinstance(psf, Psf):
        try:
            psf = estimate_psf(exposure, sources, order=0, fallback="moffat")
        except TooFewSourcesError:
            return None
    ny, nx = exposure.shape
    return partial(circle_share, psf.stamp((nx - 1) / 2, (ny - 1) / 2))


def _identity(xy: Any) -> Any:
    return np.array(xy, np.float64)


def coadd_aligned(
    grid: Exposure, frames: Sequence[Exposure], alignments: Sequence[Alignment], options: CoaddOptions
) -> Coadd:
    """Co-add frames on the grid of an image, scaled to the flux of the clearest where the ratios were measured."""
    from skyloom.stacking import coadd as coadd_placed

    clear = reference_frame(frames, alignments)  # it gives scale, zero point and exposure time, and so comes first
    order = [clear, *(k for k in range(len(frames)) if k != clear)]
    frames, alignments = [frames[k] for k in order], [alignments[k] for k in order]
    ratios = np.array([one.flux_ratio for one in alignments])
    if np.isfinite(ratios).all():
        options = replace(options, flux_scale=tuple((ratios / ratios[0]).tolist()))
    maps = [
        StarMap(one.frame_to_grid, one.fwhm, one.registration.n_matched if one.registration else 0)
        for one in alignments
    ]
    result = coadd_placed(frames, options, wcs=grid.wcs, shape=grid.shape, maps=maps)
    _warn_of_clouds(result)
    return result


def _warn_of_clouds(result: Coadd, start: int = 0) -> None:
    """Warn of exposures with much less light than the others; those before `start` were told."""
    for text in dim_frames(result.frames, start):
        warnings.warn(text, SkyloomWarning, stacklevel=4)
