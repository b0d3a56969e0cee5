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
from skyloom.pipeline.align import Alignment, Map

if TYPE_CHECKING:
    from skyloom.stacking import Coadd, CoaddOptions

ALIGN = ("auto", "wcs", "stars")
Progress = Callable[[str, int, int], None]


def stack(
    exposures: Sequence[Any],
    options: CoaddOptions | None = None,
    *,
    align: str = "auto",
    reference: Exposure | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: Coadd | str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Coadd:
    """Co-add exposures, aligned by WCS or by their stars.

    Stars of all exposures are fitted together (`register_group` with ``joint=True``), so that the alignment does not
    carry the noise of the positions in one of them.

    Parameters
    ----------
    exposures : sequence of Exposure, of what `skyloom.read` takes, or of callables that return an Exposure
        The images.
    options : CoaddOptions, optional
        How to co-add.
    align : {'auto', 'wcs', 'stars'}
        'auto' uses the WCS when every exposure has one, else the stars.
    reference : Exposure, optional
        Image whose grid is the output grid. By default a new grid that covers all (WCS), or that of the first exposure.
    output, resume
        See `skyloom.coadd`.
    progress : callable, optional
        Called as ``progress(what, done, total)``.

    Returns
    -------
    Coadd
        An exposure that cannot be registered or does not overlap is left out with a `SkyloomWarning`.

    Raises
    ------
    InputError, RegistrationError, NoOverlapError
        Nothing can be co-added.
    """
    from skyloom.stacking import coadd

    if align not in ALIGN:
        raise InputError(f"align is {align!r}; it must be 'auto', 'wcs' or 'stars'.", align=align)
    if not len(exposures):
        raise InputError("There are no exposures to co-add; at least one is needed.")
    if align != "stars" and (reference is None or reference.wcs is not None):
        try:
            return coadd(exposures, options, wcs=reference, output=output, resume=resume, progress=progress)
        except WcsError as error:
            if align == "wcs" or not error.details.get("no_wcs"):
                raise
    elif align == "wcs" and reference is not None:
        raise WcsError(f"The reference {reference.name} has no WCS; choose another, or align by stars.")
    return _by_stars(exposures, options, reference, output, resume, progress)


def _by_stars(  # noqa: PLR0917
    exposures: Sequence[Any],
    options: CoaddOptions | None,
    reference: Exposure | None,
    output: str | os.PathLike[str] | None,
    resume: Coadd | str | os.PathLike[str] | None,
    progress: Progress | None,
) -> Coadd:
    from skyloom.stacking import Coadd, CoaddOptions, coadd, read_coadd
    from skyloom.stacking.members import check_repeats

    earlier = resume if isinstance(resume, Coadd) or resume is None else read_coadd(resume)
    if options is None:
        options = CoaddOptions() if earlier is None else earlier.options
    check_repeats(exposures)
    frame = earlier.exposure if earlier is not None else reference
    grid, members, maps, ratios = register_all(exposures, frame, progress)
    scales = np.array(ratios) / (ratios[0] if earlier is None else 1.0)
    if options.flux_scale == "auto" and np.isfinite(scales).all():
        options = replace(options, flux_scale=tuple(scales.tolist()))
    where: dict[str, Any] = {} if earlier is not None else {"wcs": grid.wcs, "shape": grid.shape}
    return coadd(members, options, maps=maps, output=output, resume=earlier, progress=progress, **where)


def register_all(
    exposures: Sequence[Any], reference: Exposure | None, progress: Progress | None
) -> tuple[Exposure, list[Any], list[Map], list[float]]:
    """Register exposures to a reference (by default the first of them), all stars together.

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
    tables, members, grid = [], [], reference
    for number, source in enumerate(exposures):
        report("detecting stars", number, len(exposures))
        exposure = load(source)
        if grid is None:
            grid = exposure
        try:
            table = detect_sources(exposure)
        except (RegistrationError, NoUsableDataError) as error:
            if len(exposures) == 1 and reference is not None:
                raise
            warnings.warn(f"{exposure.name} is left out: {error}", SkyloomWarning, stacklevel=4)
            continue
        table.meta["wcs"] = exposure.wcs
        tables.append(table)
        members.append(source)
    assert grid is not None
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
        maps.append(_identity if one is None else one.source_to_template)
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
    """Co-add frames on the grid of an image, scaled to the flux of the first frame where the ratios were measured."""
    from skyloom.stacking import coadd

    ratios = np.array([one.flux_ratio for one in alignments])
    if np.isfinite(ratios).all():
        options = replace(options, flux_scale=tuple((ratios / ratios[0]).tolist()))
    return coadd(frames, options, wcs=grid.wcs, shape=grid.shape, maps=[one.frame_to_grid for one in alignments])
