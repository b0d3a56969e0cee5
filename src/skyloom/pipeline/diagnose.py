"""Numbers that tell how well a difference went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from skyloom.background import MAD_TO_SIGMA
from skyloom.exposure import UNUSABLE, BoolArray, Exposure
from skyloom.pipeline.conditions import too_dim, transparency
from skyloom.psf import stamp_fwhm

if TYPE_CHECKING:
    from skyloom.detection import Score
    from skyloom.pipeline.align import Alignment
    from skyloom.psf import Psf
    from skyloom.subtraction import Subtraction

CLIP = 5.0
"""Standard deviations beyond which a value is a source, not noise."""
LIMIT = 5.0
"""Standard deviations of the faintest source that counts as seen."""


def clipped_moments(values: npt.NDArray[np.floating], clip: float = CLIP) -> tuple[float, float]:
    """Return mean and standard deviation of the values within `clip` standard deviations of zero-mean noise.

    The cut follows the data (median and median absolute deviation) until it settles. At 5 standard deviations it takes
    6e-7 of Gaussian noise away, so that it does not bias the result; it only removes what has truly changed.
    """
    values = np.asarray(values, np.float64)
    for _ in range(20):
        if values.size == 0:
            return float("nan"), float("nan")
        centre = np.median(values)
        spread = MAD_TO_SIGMA * np.median(np.abs(values - centre))
        kept = values[np.abs(values - centre) <= clip * spread]
        if kept.size == values.size:
            break
        values = kept
    return float(values.mean()), float(values.std())


def sky_pixels(result: Subtraction) -> BoolArray:
    """Return the usable pixels whose noise is that of the sky: variance within 30 % of the faint half's median."""
    usable = ((result.mask & np.uint32(UNUSABLE)) == 0) & (result.variance > 0)
    if not usable.any():
        return usable
    variance = result.variance[usable]
    faint = np.median(variance[variance <= np.median(variance)])
    return usable & (result.variance < 1.3 * faint)


def diagnose(
    result: Subtraction,
    scored: Score,
    psf: Psf,
    alignments: Sequence[Alignment],
    images: tuple[Exposure, Exposure],
    *,
    reference: int = 0,
) -> dict[str, Any]:
    """Collect the diagnostics of a difference of `images`.

    They are the science image, and the frame (of the number `reference`) that gives the template's flux scale.

    Returns
    -------
    dict
        `noise_mean`, `noise_std`: of difference / error over the sky; `score_std`: of the significance there;
        `sky_rms`: of the difference itself; `warning`, if the image lacks light; the statistics of the subtraction;
        `psf_fwhm`; `n_templates`, the frames that were used; `registration_rms`, `registration_n` of the first of them;
        see `depth` for the others.
    """
    sky = sky_pixels(result)
    ratio = result.image[sky] / np.sqrt(result.variance[sky])
    noise_mean, noise_std = clipped_moments(ratio)
    score_mean, score_std = clipped_moments(scored.significance[sky & scored.valid])
    numbers: dict[str, Any] = dict(result.statistics)
    numbers |= {
        "convolved": result.convolved,
        "psf_fwhm": stamp_fwhm(psf.stamp(*((n - 1) / 2 for n in reversed(result.image.shape)))),
        "usable_fraction": float(((result.mask & np.uint32(UNUSABLE)) == 0).mean()),
        "sky_fraction": float(sky.mean()),
        "noise_mean": noise_mean,
        "noise_std": noise_std,
        "score_mean": score_mean,
        "score_std": score_std,
        "sky_rms": clipped_moments(result.image[sky])[1],
        "n_templates": len(alignments),
    }
    numbers |= depth(result, scored, sky, max(1.0, score_std), images)
    if text := too_dim(numbers["transparency"]):
        numbers["warning"] = text
    registrations = [one.registration for one in alignments if one.registration is not None]
    if registrations:
        numbers |= {"registration_rms": registrations[0].rms, "registration_n": registrations[0].n_matched}
        numbers["flux_scale_error"] = alignments[reference].flux_ratio_error
    return numbers


def depth(
    result: Subtraction, scored: Score, sky: BoolArray, width: float, images: tuple[Exposure, Exposure]
) -> dict[str, Any]:
    """Return how deep a difference is.

    Returns
    -------
    dict
        `flux_scale`: flux of a star in the science image over its flux in the template, as it was subtracted;
        `limit_flux`: of a point source of `LIMIT` standard deviations in the middle of the sky pixels, in the `unit` of
        the science image, with the `width` of the score; `limit_flux_template`: in that of the template; `limit_mag`:
        the same in magnitudes, if either image has a zero point, and `zeropoint`, of the science image; `transparency`,
        see `skyloom.pipeline.conditions`.
    """
    science, template = images
    total = float(result.statistics["kernel_sum"])
    scale = 1 / total if result.convolved == "science" else total
    error = np.sqrt(scored.flux_variance[sky & scored.valid].astype(np.float64))
    limit = LIMIT * width * float(np.median(error)) if error.size else float("nan")
    zeropoint = science.zeropoint
    if zeropoint is None and template.zeropoint is not None and scale > 0:
        zeropoint = template.zeropoint + 2.5 * float(np.log10(scale))
    return {
        "flux_scale": scale,
        "limit_flux": limit,
        "limit_flux_template": limit / scale,
        "limit_mag": None if zeropoint is None or not limit > 0 else zeropoint - 2.5 * float(np.log10(limit)),
        "zeropoint": zeropoint,
        "transparency": transparency(scale, science, template),
        "unit": science.unit,
    }
