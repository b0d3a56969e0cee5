"""From two images on one grid to a difference and its score, by the method that the options are for."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.table import Table

from skyloom.exposure import Exposure, FloatArray
from skyloom.psf import Psf, stamp_fwhm

if TYPE_CHECKING:
    from skyloom.detection import Score
    from skyloom.subtraction import AlardLuptonOptions, SfftOptions, Subtraction, ZogyOptions, ZogyResult


def options_types() -> dict[str, type]:
    """Return the type of the options of each method."""
    from skyloom.subtraction import AlardLuptonOptions, SfftOptions, ZogyOptions

    return {"alard-lupton": AlardLuptonOptions, "sfft": SfftOptions, "zogy": ZogyOptions}


def subtract_by(
    options: AlardLuptonOptions | SfftOptions | ZogyOptions,
    science: Exposure,
    template: Exposure,
    *,
    psf: Psf,
    sources: Any,
) -> tuple[Subtraction, Score, Psf]:
    """Subtract a template; return the difference, its score, and the PSF of the difference.

    Parameters
    ----------
    options : AlardLuptonOptions, SfftOptions or ZogyOptions
        Their type tells the method.
    science, template : Exposure
        On one grid.
    psf : Psf
        Of the science image. That of the template is measured, unless it knows it.
    sources : Table
        Stars of the science image.

    Raises
    ------
    SkyloomError
        See `skyloom.subtraction.subtract` and `skyloom.subtraction.subtract_zogy`.
    """
    from skyloom.detection import score
    from skyloom.subtraction import ZogyOptions, subtract, subtract_zogy

    if not isinstance(options, ZogyOptions):
        result = subtract(science.replace(psf=psf), template, options, sources=sources)
        found = score(result, psf)
        return result, found, found.psf  # a decorrelated difference has a PSF of its own
    known = template.psf if isinstance(template.psf, Psf) else None
    proper = subtract_zogy(
        science, template, options, psf_science=psf, psf_template=known, sources=sources, moving=True
    )
    return _as_subtraction(proper, science), _as_score(proper), proper.psf


def _as_subtraction(found: ZogyResult, science: Exposure) -> Subtraction:
    """Return a proper difference in the form that differences of all methods have."""
    from skyloom.subtraction import Subtraction
    from skyloom.subtraction.alard_lupton import noise_statistics

    ny, nx = found.image.shape
    fwhms = [stamp_fwhm(one.stamp((nx - 1) / 2, (ny - 1) / 2)) for one in (found.psf_science, found.psf_template)]
    stars = found.match.stars if found.match.stars is not None else Table({name: [] for name in ("x", "y", "chi2")})
    used = np.asarray(stars["used"], bool) if len(stars) else np.zeros(0, bool)
    matched: Any = np.where(found.usable, science.data - found.image, 0).astype(science.data.dtype)
    background: Any = found.background.astype(found.image.dtype)
    result = Subtraction(
        image=found.image,
        variance=found.variance,
        variance_science=found.variance_science,
        variance_template=found.variance_template,
        mask=found.mask,
        matched=matched,
        kernel=None,
        background=background,
        convolved="both",
        stamps=stars,
    )
    result.statistics.update(noise_statistics(result))
    result.statistics.update(
        n_sources=len(stars),
        n_stamps=int(used.sum()),
        n_stamps_rejected=int((~used).sum()),
        chi2=float(np.median(stars["chi2"][used])) if used.any() else float("nan"),
        kernel_sum=1 / found.match.flux_ratio,
        shift=found.match.shift,
        position_scatter=found.match.scatter,
        flux_scatter=found.match.flux_scatter,
        science_fwhm=fwhms[0],
        template_fwhm=fwhms[1],
    )
    return result


def _as_score(found: ZogyResult) -> Score:
    """Return S_corr and the fluxes in the form in which other methods have their scores.

    The effective variance of the pixels is the one that gives a source on them the error of its flux, the scatter of
    positions included: Var F = V / sum P_D^2.
    """
    from skyloom.detection import Score

    square = _sum_of_squares(found.psf, found.image.shape)
    return Score(
        significance=found.significance,
        flux=found.flux,
        flux_variance=found.flux_variance,
        effective_variance=np.maximum(found.variance, found.flux_variance * square.astype(found.image.dtype)),
        coverage=found.coverage,
        psf=found.psf,
        moving=found.moving,
    )


def without_background(scored: Score, background: FloatArray) -> Score:
    """Return the score of a proper difference that has a smooth background, as it is without that.

    The flux on a pixel is sum P_D D / sum P_D^2, to which a background b adds b / sum P_D^2.
    """
    square = _sum_of_squares(scored.psf, background.shape)
    flux = scored.flux - np.where(scored.valid, background / square, 0).astype(scored.flux.dtype)
    error = np.sqrt(np.where(scored.valid, scored.flux_variance, 1))
    return dataclasses.replace(scored, flux=flux, significance=(flux / error).astype(scored.significance.dtype))


def with_sky_error(scored: Score, error: FloatArray) -> Score:
    """Return a score whose fluxes have in their errors that of the sky, which all pixels under a source share."""
    square = _sum_of_squares(scored.psf, error.shape)
    more = np.where(scored.valid, (error / square) ** 2, 0)
    total = scored.flux_variance + more
    shrink = np.sqrt(np.divide(scored.flux_variance, total, out=np.ones_like(total), where=total > 0))
    planes: dict[str, Any] = {
        "significance": scored.significance * shrink,
        "flux_variance": total,
        "effective_variance": scored.effective_variance + more * square,
    }
    if scored.moving is not None:
        planes["moving"] = scored.moving * shrink**2
    return dataclasses.replace(
        scored, **{name: plane.astype(getattr(scored, name).dtype) for name, plane in planes.items()}
    )


def _sum_of_squares(psf: Psf, shape: tuple[int, ...]) -> FloatArray:
    """Return sum P_D^2 of the place in every pixel."""
    from skyloom.filters import Grid

    grid = Grid((shape[0], shape[1]))
    return np.asarray(grid.plane(grid.sample(lambda x, y: float((psf.stamp(x, y) ** 2).sum()))))
