"""Co-add exposures that may first have to be registered."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from skyloom.errors import InputError, NoUsableDataError, RegistrationError, SkyloomWarning, WcsError
from skyloom.pipeline.align import Alignment, align

if TYPE_CHECKING:
    from skyloom.exposure import Exposure
    from skyloom.resampling import Coadd, CoaddOptions


@dataclass(frozen=True)
class StackOptions:
    """How `stack` brings exposures together.

    Parameters
    ----------
    align : {'auto', 'wcs', 'stars'}
        'auto' uses the WCS when every exposure has one, else the stars.
    pixfrac, weight, reject, pixel_scale
        See `skyloom.resampling.CoaddOptions`.
    """

    align: str = "auto"
    pixfrac: float = 1.0
    weight: str = "ivm"
    reject: bool = True
    pixel_scale: float | None = None

    def __post_init__(self) -> None:
        if self.align not in ("auto", "wcs", "stars"):
            raise InputError(f"align is {self.align!r}; it must be 'auto', 'wcs' or 'stars'.", align=self.align)

    def coadd_options(self) -> CoaddOptions:
        """Return the options of the co-adding itself."""
        from skyloom.resampling import CoaddOptions

        return CoaddOptions(pixfrac=self.pixfrac, weight=self.weight, reject=self.reject, pixel_scale=self.pixel_scale)


def stack(
    exposures: Sequence[Exposure],
    options: StackOptions | None = None,
    *,
    reference: Exposure | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Coadd:
    """Co-add exposures, aligned by WCS or by their stars.

    Parameters
    ----------
    exposures : sequence of Exposure
        The images.
    options : StackOptions, optional
        How.
    reference : Exposure, optional
        Image whose grid is the output grid. By default a new grid that covers all (WCS), or that of the first exposure.
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
    from skyloom.resampling import coadd

    options = options or StackOptions()
    if not exposures:
        raise InputError("There are no exposures to co-add; at least one is needed.")
    n_steps = len(exposures) + 1
    report = progress or (lambda *_: None)
    images = [*exposures, *([] if reference is None else [reference])]
    by_wcs = options.align == "wcs" or (options.align == "auto" and all(one.wcs is not None for one in images))
    if by_wcs:
        report("co-adding", len(exposures), n_steps)
        if reference is None:
            return coadd(exposures, options.coadd_options())
        if reference.wcs is None:
            raise WcsError(f"The reference {reference.name} has no WCS; choose another, or align by stars.")
        return coadd(exposures, options.coadd_options(), wcs=reference.wcs, shape=reference.shape)
    grid = exposures[0] if reference is None else reference
    frames, alignments = _register_all(grid, exposures, report)
    report("co-adding", len(exposures), n_steps)
    return coadd_aligned(grid, frames, alignments, options.coadd_options())


def _register_all(
    grid: Exposure, exposures: Sequence[Exposure], report: Callable[[str, int, int], None]
) -> tuple[list[Exposure], list[Alignment]]:
    """Register every exposure to the grid's image; leave out, with a warning, those that do not match."""
    frames, alignments = [], []
    for number, exposure in enumerate(exposures):
        report(f"registering {exposure.name}", number, len(exposures) + 1)
        try:
            if exposure is grid:
                alignments.append(replace(align(grid, exposure, "none"), flux_ratio=1.0))
            else:
                alignments.append(align(grid, exposure, "stars"))
        except (RegistrationError, NoUsableDataError) as error:
            if len(exposures) == 1:
                raise
            warnings.warn(f"{exposure.name} is left out: {error}", SkyloomWarning, stacklevel=3)
            continue
        frames.append(exposure)
    if not frames or (len(frames) == 1 and frames[0] is grid and len(exposures) > 1):
        raise RegistrationError(
            f"None of the other exposures can be registered to {grid.name}; the messages above say why. "
            "Choose another reference, or align by WCS.",
            name=grid.name,
        )
    return frames, alignments


def coadd_aligned(
    grid: Exposure, frames: Sequence[Exposure], alignments: Sequence[Alignment], options: CoaddOptions | None = None
) -> Coadd:
    """Co-add frames on the grid of an image, scaled to the flux of the first frame where the ratios were measured."""
    from skyloom.resampling import coadd

    ratios = np.array([one.flux_ratio for one in alignments])
    scales = list(ratios / ratios[0]) if np.isfinite(ratios).all() else None
    return coadd(
        frames, options, wcs=grid.wcs, shape=grid.shape, maps=[one.frame_to_grid for one in alignments], scales=scales
    )
