"""Subtraction with what polynomials leave of the sky taken off, for every method."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from skyloom.exposure import Exposure, FloatArray
from skyloom.pipeline.methods import subtract_by, with_sky_error, without_background
from skyloom.psf import Psf, stamp_fwhm
from skyloom.subtraction.residual_background import residual_background, sky_error

if TYPE_CHECKING:
    from skyloom.detection import Score
    from skyloom.subtraction import Subtraction

logger = logging.getLogger(__name__)

MATTERS = 0.02
"""Deviation of the residual background, in units of the noise, from which it is taken off: a matched filter over some
dozen pixels sees five times as much."""
DISTURBS = 0.3
"""From here on it has disturbed the fit of the kernel, too, which is repeated without it."""
MOST_ROUNDS = 3
TOLD = 0.02
"""Part of the image with an uncertain sky from which a message tells so."""


def subtract_without_sky(
    options: Any, science: Exposure, template: Exposure, *, psf: Psf, sources: Any
) -> tuple[Subtraction, Score, Psf]:
    """Subtract a template and what is left of the sky, see `skyloom.subtraction.residual_background`.

    A large one is taken off the science image and the subtraction repeated; a small one, or what is left after the last
    round, is taken off the difference. Either way it is part of the `background` and of the `matched` of the result. If
    a round of a proper difference leaves more than the one before, that one's difference is returned as it is.

    Parameters
    ----------
    options, science, template, psf, sources
        As for `skyloom.pipeline.methods.subtract_by`.
    """
    from skyloom.detection import score
    from skyloom.subtraction import ZogyOptions
    from skyloom.subtraction.alard_lupton import noise_statistics

    centre = ((n - 1) / 2 for n in reversed(science.shape))
    fwhm = stamp_fwhm(psf.stamp(*centre))
    proper = isinstance(options, ZogyOptions)
    sky: Any = 0
    smooth: Any = 0
    before: Any = np.inf, None, 0, 0
    for rounds_left in reversed(range(MOST_ROUNDS)):
        cleaned = dataclasses.replace(science, data=science.data - sky) if np.ndim(sky) else science
        result, scored, psf_difference = subtract_by(options, cleaned, template, psf=psf, sources=sources)
        left = residual_background(result.image, result.variance, result.usable, fwhm=fwhm)
        size = _in_noise(left, result)
        if left is None or size < MATTERS:
            break
        if proper and size > before[0]:  # no smooth surface describes it, as at the border of a vignetted field
            _, (result, scored, psf_difference), sky, smooth = before
            break
        before = size, (result, scored, psf_difference), sky, smooth
        smooth = smooth + left
        if size < DISTURBS or not rounds_left:
            result = _without_background(result, left)
            scored = without_background(scored, left) if proper else score(result, psf)
            break
        # a proper difference has no background fitted to it: what was taken off is not to be estimated anew
        sky = sky + left + (result.background if proper else 0)
    if np.ndim(sky):
        result = _with_sky(result, sky)
    if np.ndim(smooth):
        result.statistics.update(noise_statistics(result), smooth_background=_in_noise(smooth, result))
    error = sky_error(result.image, result.variance, result.usable, fwhm=fwhm)
    if error is not None:
        known, scored = scored, with_sky_error(scored, error)
        doubled = scored.valid & (scored.flux_variance > 4 * known.flux_variance)
        result.statistics["uncertain_sky"] = float(doubled.sum() / max(scored.valid.sum(), 1))
        if result.statistics["uncertain_sky"] > TOLD:
            logger.warning(
                "On %.0f %% of %s no smooth surface describes the sky: errors of fluxes are more than doubled there.",
                100 * result.statistics["uncertain_sky"],
                science.name,
            )
    return result, scored, psf_difference


def _in_noise(left: FloatArray | None, result: Subtraction) -> float:
    """Return the deviation of a residual background in units of the noise of the sky."""
    usable = result.usable & (result.variance > 0)
    if left is None or not usable.any():
        return 0.0
    return float(np.std(left[usable], dtype=np.float64) / np.sqrt(np.median(result.variance[usable])))


def _without_background(result: Subtraction, left: FloatArray) -> Subtraction:
    """Return a result without what is left of the sky, which is part of its background now."""
    image: Any = np.where(result.usable, result.image - left, 0).astype(result.image.dtype)
    return dataclasses.replace(_with_sky(result, left), image=image)


def _with_sky(result: Subtraction, sky: FloatArray) -> Subtraction:
    """Return a result whose background has some sky in addition."""
    planes: dict[str, Any] = {
        "matched": (result.matched + np.where(result.usable, sky, 0)).astype(result.image.dtype),
        "background": (result.background + sky).astype(result.image.dtype),
    }
    return dataclasses.replace(result, **planes)
