"""The choice of the method of a difference, from the images.

The rule follows from what the three methods do on the same pairs (docs/methods.md, benchmarks/bench_methods.py):

- Images that share their noise (`SHARED`; one went into the other): Alard & Lupton. The others take the noise of both
  to be independent, and correct for it.
- Few stars (fewer than `FEW_STARS` that are good for a PSF): a kernel that is fitted to all pixels, galaxies among
  them, leaves least. SFFT.
- Crowded fields, where point spread functions and backgrounds are measured badly, and saturated stars, whose wings
  reach beyond the PSF: stamps around stars. Alard & Lupton.
- Stars that are elongated otherwise in one image than in the other (`TRAILED`): no sum of round Gaussians is a kernel
  between them. The proper subtraction, which measures both PSFs; SFFT in crowded fields and with saturated stars.
- Either image is the sharper one along some axis (the seeing differs by less than `ALIKE`), so that a kernel has to
  sharpen; or the sharper image is much the noisier one (`NOISIER`), and a kernel would spread its noise: the proper
  subtraction, which does neither. Not with a deep template (less than `DEEP` of the noise): its noise is nothing.
- Else all methods do equally well: Alard & Lupton.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import sep

from skyloom.exposure import Exposure, MaskBit
from skyloom.psf import Psf, stamp_fwhm

if TYPE_CHECKING:
    from skyloom.pipeline.difference import DifferenceOptions

FEW_STARS = 15
CROWDED = 0.25
"""Circles of 1.5 FWHM around the sources, as part of the field."""
ALIKE = 1.2
NOISIER = 1.5
DEEP = 0.5
TRAILED = 0.3
"""Difference of the ellipticities (a^2 - b^2) / (a^2 + b^2), as vectors: axes of 1.36 beside round stars."""
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
    trailed = float(np.hypot(*(ellipticity(science, sources, fwhm) - ellipticity(template, sources, fwhm))))
    kernel = "sfft" if trailed > TRAILED else "alard-lupton"
    shape = f"stars of different elongation ({trailed:.2f}) and " if trailed > TRAILED else ""
    if crowding > CROWDED:
        return kernel, f"{shape}a crowded field, {crowding:.0%} of it within 1.5 FWHM of sources"
    saturated = sum(int(np.count_nonzero(image.mask & np.uint32(MaskBit.SATURATED))) for image in (science, template))
    if saturated:
        return kernel, f"{shape}{saturated} saturated pixels, around which a proper difference rings"
    if shape:
        return "zogy", f"stars of different elongation ({trailed:.2f}), which no sum of round Gaussians matches"
    compared = compare(science, template, sources, fwhm)
    if compared is None:
        return "alard-lupton", "no star can be measured in both images to compare them"
    width, noise = compared
    if noise < DEEP:
        return "alard-lupton", f"a deep template, of {noise:.2f} times the noise of the science image"
    if 1 / ALIKE < width < ALIKE:
        return "zogy", f"like seeing (ratio {width:.2f}): a kernel would have to sharpen"
    if (width < 1 and noise > NOISIER) or (width > 1 and noise < 1 / NOISIER):
        return "zogy", f"the sharper image is the noisier one (template: {width:.2f} the width, {noise:.2f} the noise)"
    return "alard-lupton", f"the seeing differs (ratio {width:.2f}), and the noise is not in the sharper image"


def shared_noise(science: Exposure, template: Exposure) -> float:
    """Return the correlation coefficient of the noise of two images.

    Taken from the mixed second differences of sky pixels, I(x, y) - I(x + 1, y) - I(x, y + 1) + I(x + 1, y + 1): they
    hold the noise and hardly any light, of faint stars that both images have, say.
    """
    both = science.usable & template.usable
    corners = [np.s_[i : both.shape[0] - 1 + i, j : both.shape[1] - 1 + j] for i in (0, 1) for j in (0, 1)]
    usable = np.logical_and.reduce([both[corner] for corner in corners])
    steps = []
    for image in (science, template):
        one, right, above, across = (image.data[corner][usable] for corner in corners)
        steps.append(one - right - above + across)
    sky = np.ones(steps[0].shape, bool)
    for step in steps:
        sky &= np.abs(step) < _SKY_STEP * np.median(np.abs(step))
    if np.count_nonzero(sky) < _FEWEST_STEPS:
        return 0.0
    return float(np.corrcoef(steps[0][sky], steps[1][sky])[0, 1])


def ellipticity(image: Exposure, sources: Any, fwhm: float) -> npt.NDArray[np.float64]:
    """Return the median ellipticity of the brightest stars, (e1, e2) = (C_xx - C_yy, 2 C_xy) / (C_xx + C_yy).

    C are the second moments of a star: those in a round Gaussian window with the matrix W are Q^-1 = C^-1 + W^-1 of a
    Gaussian star. Stars beside unusable pixels do not count; without any, the answer is round.
    """
    half = int(np.ceil(2 * fwhm))
    offset = np.arange(-half, half + 1)
    window = (1.5 * fwhm / 2.3548) ** 2
    brightest = np.argsort(-np.asarray(sources["flux"]), kind="stable")[:BRIGHT]
    level = np.median(image.data[image.usable])
    found = []
    for x, y in zip(*(np.asarray(sources[name], float)[brightest] for name in "xy"), strict=True):
        i, j = round(y), round(x)
        part = np.s_[i - half : i + half + 1, j - half : j + half + 1]
        if min(i, j) < half or image.data[part].shape != (offset.size,) * 2 or not image.usable[part].all():
            continue
        dy, dx = offset[:, None] + i - y, offset[None, :] + j - x
        light = np.exp(-(dx**2 + dy**2) / (2 * window)) * (image.data[part] - level)
        moments = np.array([[(dx**2 * light).sum(), (dx * dy * light).sum()], [0, (dy**2 * light).sum()]])
        moments = (moments + np.triu(moments, 1).T) / light.sum()
        if not (np.linalg.det(moments) > 0 and 0 < np.trace(moments) < 1.8 * window):
            continue
        star = np.linalg.inv(np.linalg.inv(moments) - np.eye(2) / window)
        if np.trace(star) > 0 and np.linalg.det(star) > 0:
            found.append(np.array([star[0, 0] - star[1, 1], 2 * star[0, 1]]) / np.trace(star))
    return np.median(found, axis=0) if found else np.zeros(2)


def compare(science: Exposure, template: Exposure, sources: Any, fwhm: float) -> tuple[float, float] | None:
    """Return width and noise of the template relative to the science image, on the same stars; None without such stars.

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
        return None
    ratio = float(np.median(fluxes[0][known] / fluxes[1][known]))
    return float(np.median(radii[1][known] / radii[0][known])), ratio * noises[1] / noises[0]
