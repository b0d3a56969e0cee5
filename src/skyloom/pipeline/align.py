"""Bring template frames onto the grid of the science image, each pixel resampled once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, ShapeError, WcsError
from skyloom.exposure import Exposure
from skyloom.pipeline.template import Frame
from skyloom.stacking.light import clearest

if TYPE_CHECKING:
    from skyloom.registration import Registration, RegistrationOptions
    from skyloom.stacking.result import Contribution

Map = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Alignment:
    """How one frame is brought onto a grid.

    Attributes
    ----------
    name : str
        Name of the frame.
    frame_to_grid, grid_to_frame : callable
        Coordinate maps between pixels, (N, 2) -> (N, 2).
    flux_ratio, flux_ratio_error : float
        Flux of a star on the grid's image over its flux in the frame, and its standard error; NaN if not measured.
    fwhm : float
        Of the frame's stars, in its pixels; NaN if not measured.
    registration : Registration or None
        The match of the stars, when stars were used.
    """

    name: str
    frame_to_grid: Map
    grid_to_frame: Map
    flux_ratio: float = float("nan")
    registration: Registration | None = None
    flux_ratio_error: float = float("nan")
    fwhm: float = float("nan")


@dataclass(frozen=True)
class StarMap:
    """A coordinate map that was found by stars, and what they tell: their FWHM (pixels), and how many they are."""

    map: Map
    fwhm: float
    n_stars: int

    def __call__(self, xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the positions of `map`."""
        return self.map(xy)


def align(of_grid: Frame, of_frame: Frame, how: str, options: RegistrationOptions | None = None) -> Alignment:
    """Find the maps between a frame and the image whose grid it shall be brought onto.

    Parameters
    ----------
    of_grid, of_frame : Frame
        The image that gives the grid, and the one that is to be brought onto it; with their sources for 'stars'.
    how : {'stars', 'wcs', 'none'}
        By a match of the stars, by the WCS of both, or not at all.
    options : RegistrationOptions, optional
        For 'stars'.

    Raises
    ------
    RegistrationError, WcsError, ShapeError
        The chosen way does not work for these images.
    """
    grid, frame = of_grid.exposure, of_frame.exposure
    if how == "stars":
        from skyloom.registration import flux_ratio, image_fwhm, register

        result = register(of_grid.sources, of_frame.sources, options)
        fwhm = image_fwhm(of_frame.sources)
        measured = flux_ratio(result, grid, frame, (image_fwhm(of_grid.sources), fwhm))
        ratio, error = (result.flux_ratio, float("nan")) if measured is None else (measured.value, measured.error)
        return Alignment(frame.name, result.template_to_source, result.source_to_template, ratio, result, error, fwhm)
    if how == "wcs":
        from skyloom.resampling import wcs_map

        for image in (grid, frame):
            if image.wcs is None:
                raise WcsError(
                    f"{image.name} has no usable WCS. Align by stars instead (--align stars).",
                    name=image.name,
                )
        return Alignment(frame.name, wcs_map(frame.wcs, grid.wcs), wcs_map(grid.wcs, frame.wcs))
    if how != "none":
        raise InputError(f"align is {how!r}; it must be 'stars', 'wcs' or 'none'.", align=how)
    if frame.shape != grid.shape:
        raise ShapeError(
            f"{frame.name} has the shape {frame.shape} and {grid.name} {grid.shape}; without alignment they must "
            "be the same. Align by stars or by WCS (--align).",
            found=frame.shape,
            needed=grid.shape,
        )
    return Alignment(frame.name, _identity, _identity)


def _identity(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.array(xy, np.float64)


def bring_onto_grid(
    grid: Exposure,
    frames: Sequence[Exposure],
    alignments: Sequence[Alignment],
    interpolation: str = "auto",
    *,
    proper: bool = False,
) -> tuple[Exposure, tuple[Contribution, ...]]:
    """Resample one frame onto the grid, or co-add several there; return it, and what each of several frames brings.

    Several frames are scaled to the flux of the `reference_frame` before they are averaged with inverse variances, and
    pixels that disagree with the others (cosmic rays) are left out. Where any of them is saturated the co-add counts as
    saturated: what the others leave there has another PSF than the rest. A `proper` co-add (Zackay & Ofek 2017) knows
    its PSF.
    """
    if len(frames) == 1:
        if alignments[0].grid_to_frame is _identity:
            return frames[0], ()
        from skyloom.resampling import resample

        return resample(frames[0], alignments[0].grid_to_frame, grid.shape, method=interpolation, wcs=grid.wcs), ()
    from skyloom.pipeline.stack import coadd_aligned
    from skyloom.stacking import CoaddOptions

    options = CoaddOptions(method="proper" if proper else "clipped", saturated="flag")
    result = coadd_aligned(grid, frames, alignments, options)
    image = result.exposure.replace(name=f"co-add of {len(frames)} frames", psf=result.psf if proper else None)
    return image, result.contributions


def reference_frame(frames: Sequence[Exposure], alignments: Sequence[Alignment]) -> int:
    """Return the number of the frame whose flux scale a co-add has: the first of those that no cloud has dimmed."""
    ratios = [one.flux_ratio for one in alignments]
    return clearest(ratios, [one.exptime for one in frames], frames[0].unit)


def wcs_to_write(template: Exposure) -> Any:
    """Return the WCS of the image to which others are registered, for their headers.

    Raises
    ------
    WcsError
        It has none.
    """
    if template.wcs is None:
        raise WcsError(
            f"{template.name} has no WCS, so none can be made for what is registered to it. Resample the pixels "
            "instead (--resample), or register to an image that has a WCS.",
            name=template.name,
        )
    return template.wcs


def write_registered(
    source: Exposure,
    template: Exposure | None,
    registration: Registration,
    path: str | Path,
    *,
    resampled: str | None,
    convention: str = "SIP",
    inputs: Sequence[str],
    overwrite: bool = False,
) -> Path:
    """Write the source with the WCS that registration gives it, or resampled onto the template's grid.

    `resampled` is the method of `skyloom.resample`, None for the pixels as they are. Without a template the
    registration is one to the sky, and has its own WCS.

    Raises
    ------
    WcsError
        The template has no WCS, and the source is not to be resampled.
    """
    from skyloom.io import Provenance, write_exposure
    from skyloom.registration import registered_header, registration_wcs
    from skyloom.resampling import resample

    if resampled is not None and template is not None:
        result = resample(source, registration.template_to_source, template.shape, method=resampled, wcs=template.wcs)
    else:
        wcs = None if template is None else wcs_to_write(template)
        result = source.replace(wcs=registration_wcs(registration, wcs, convention=convention))
    header = registered_header(source.header, registration)
    provenance = Provenance("register", {"resampled": resampled, "distortion": convention}, inputs)
    return write_exposure(result.replace(header=header), path, overwrite=overwrite, provenance=provenance)
