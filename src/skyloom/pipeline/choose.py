"""The choice of the method of a difference, from the images.

The rule follows from what the three methods do on the same pairs (docs/methods.md, benchmarks/bench_methods.py):

- Images that share their noise (`SHARED`; one went into the other): Alard & Lupton. The others take the noise of both
  to be independent, and correct for it.
- Few stars (fewer than `FEW_STARS` that are good for a PSF): a kernel that is fitted to all pixels, galaxies among
  them, leaves least. SFFT.
- Crowded fields, where point spread functions and backgrounds are measured badly, and saturated stars, whose wings
  reach beyond the PSF: stamps around stars. Alard & Lupton.
- Either image is the sharper one along some axis (the seeing differs by less than `ALIKE`), so that a kernel has to
  sharpen; or the sharper image is much the noisier one (`NOISIER`), and a kernel would spread its noise: the proper
  subtraction, which does neither. Not with a deep template (less than `DEEP` of the noise): its noise is nothing.
- Else all methods do equally well, and Alard & Lupton's takes the least time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import sep

from skyloom.exposure import Exposure, MaskBit
from skyloom.psf import Psf, stamp_fwhm

if TYPE_CHECKING:
    from skyloom.pipeline.difference import DifferenceOptions

FEW_STARS = 15
CROWDED = 0.25
"""Part of the field within 1.5 FWHM of a source."""
ALIKE = 1.2
NOISIER = 1.5
DEEP = 0.5
SHARED = 0.5
"""Correlation coefficient of the noise of both images."""
_SKY_STEP = 5.0  # median absolute differences: 3.4 standard deviations
_FEWEST_STEPS = 100
BRIGHT = 100
"""Stars, the brightest, on which flux and width of both images are compared."""


def choose_method(
    options: DifferenceOptions, science: Exposure, template: Exposure, psf: Psf, sources: Any
) -> tuple[str, str]:
    """Return the method and, in a few words, why.

    Parameters
    ----------
    options : DifferenceOptions
        What they ask for counts.
    science, template : Exposure
        On one grid, with variances.
    psf : Psf
        Of the science image.
    sources : Table
        Of the science image, with x, y, flux and fwhm.
    """
    if options.chosen is not None:
        return options.chosen, "as asked for"
    ny, nx = science.shape
    fwhm = stamp_fwhm(psf.stamp((nx - 1) / 2, (ny - 1) / 2))
    shared = shared_noise(science, template)
    if shared > SHARED:
        return "alard-lupton", f"the images share their noise (correlation {shared:.2f})"
    n_stars = int(getattr(psf, "n_stars", len(sources)))
    if n_stars < FEW_STARS:
        return "sfft", f"only {n_stars} good stars: a kernel fitted to all pixels takes what else there is"
    near = len(sources) * np.pi * (1.5 * fwhm) ** 2
    crowding = min(1.0, near / max(int(np.count_nonzero(science.usable)), 1))
    if crowding > CROWDED:
        return "alard-lupton", f"a crowded field, {crowding:.0%} of it within 1.5 FWHM of sources"
    saturated = sum(int(np.count_nonzero(image.mask & np.uint32(MaskBit.SATURATED))) for image in (science, template))
    if saturated:
        return "alard-lupton", f"{saturated} saturated pixels, around which a proper difference rings"
    width, noise = compare(science, template, sources, fwhm)
    if noise < DEEP:
        return "alard-lupton", f"a deep template, of {noise:.2f} times the noise of the science image"
    if 1 / ALIKE < width < ALIKE:
        return "zogy", f"like seeing (ratio {width:.2f}): a kernel would have to sharpen"
    if (width < 1 and noise > NOISIER) or (width > 1 and noise < 1 / NOISIER):
        return "zogy", f"the sharper image is the noisier one (template: {width:.2f} the width, {noise:.2f} the noise)"
    return "alard-lupton", f"the seeing differs (ratio {width:.2f}), and the noise is not in the sharper image"


def shared_noise(science: Exposure, template: Exposure) -> float:
    """Return the correlation coefficient of the differences of neighbouring sky pixels of two images."""
    usable = science.usable & template.usable
    steps = [np.diff(image.data, axis=1)[usable[:, 1:] & usable[:, :-1]] for image in (science, template)]
    sky = np.ones(steps[0].shape, bool)
    for step in steps:
        sky &= np.abs(step) < _SKY_STEP * np.median(np.abs(step))
    if np.count_nonzero(sky) < _FEWEST_STEPS:
        return 0.0
    return float(np.corrcoef(steps[0][sky], steps[1][sky])[0, 1])


def compare(science: Exposure, template: Exposure, sources: Any, fwhm: float) -> tuple[float, float]:
    """Return width and noise of the template relative to the science image, on the same stars.

    The width is that of the half-light radii, whose ratio lies somewhat nearer to 1 than that of the FWHMs; the noise
    that of the background, on one flux scale.
    """
    brightest = np.argsort(-np.asarray(sources["flux"]), kind="stable")[:BRIGHT]
    x, y = (np.ascontiguousarray(np.asarray(sources[name], float)[brightest]) for name in "xy")
    fluxes, radii, noises = [], [], []
    for image in (science, template):
        bad = ~image.usable
        level = np.median(image.data[image.usable])
        # filled, so that a star at the border of the overlap has an annulus; it does not count if its circle is cut
        data = np.ascontiguousarray(np.where(bad, level, image.data))
        flux, _, _ = sep.sum_circle(data, x, y, 1.5 * fwhm, bkgann=(3 * fwhm, 5 * fwhm))
        _, _, flag = sep.sum_circle(data, x, y, 1.5 * fwhm, mask=bad)
        radius, _ = sep.flux_radius(data - level, x, y, np.full(x.size, 2.5 * fwhm), 0.5, mask=bad)
        good = (flux > 0) & (radius > 0) & ((flag & sep.APER_HASMASKED) == 0)
        fluxes.append(np.where(good, flux, np.nan))
        radii.append(np.where(good, radius, np.nan))
        assert image.variance is not None
        noises.append(float(np.sqrt(np.median(image.variance[image.usable]) * image.correlation)))
    known = np.isfinite(fluxes[0]) & np.isfinite(fluxes[1])
    if not known.any():
        return np.inf, 0.0
    ratio = float(np.median(fluxes[0][known] / fluxes[1][known]))
    return float(np.median(radii[1][known] / radii[0][known])), ratio * noises[1] / noises[0]
