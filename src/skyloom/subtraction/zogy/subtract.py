"""`subtract_zogy`: the proper difference and score of two images on one grid."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import sep
from scipy import ndimage
from scipy.interpolate import RectBivariateSpline

from skyloom._threads import row_bands
from skyloom.background import MAD_TO_SIGMA, SMALLEST, estimate_background, median
from skyloom.errors import NoOverlapError, ShapeError, SubtractionError, TooFewSourcesError
from skyloom.exposure import UNUSABLE, Exposure, MaskBit
from skyloom.filters import correlate
from skyloom.noise import with_variance
from skyloom.psf import Psf, estimate_psf
from skyloom.psf.model import stamp_fwhm
from skyloom.psf.stars import detect, in_flux_unit
from skyloom.registration import detect_sources
from skyloom.subtraction.sanity import in_unit, natural_unit
from skyloom.subtraction.stamps import column_names, unflagged
from skyloom.subtraction.zogy.bank import ProperFilters
from skyloom.subtraction.zogy.match import Match, Planes, match_stars
from skyloom.subtraction.zogy.moving import GRADIENT_REACH, gradient, moving_statistic
from skyloom.subtraction.zogy.result import DifferencePsf, ZogyOptions, ZogyResult

logger = logging.getLogger("skyloom.subtraction")

Array = npt.NDArray[Any]

MIN_COVERAGE = 0.1
"""Least part of a source's signal that must come from usable pixels for a flux."""
GOOD_COVERAGE = 0.95
FIT_SNR = 20.0
STEEP = 5.0
"""Times their scatter over the field by which running medians show a sky that its background has not followed."""
CROWDED = 0.2
"""Median of the score, in its errors, from which on it has a floor: of an empty sky it is below 0.05."""
LEAST_RATIO_SNR = 5.0
"""Of a fitted flux ratio; of other stars at the same places it is some 0 to 4, of the same stars tens to thousands."""


def subtract_zogy(
    science: Exposure,
    template: Exposure,
    options: ZogyOptions | None = None,
    *,
    psf_science: Psf | None = None,
    psf_template: Psf | None = None,
    sources: Any = None,
    moving: bool = False,
) -> ZogyResult:
    """Difference two images properly (Zackay, Ofek & Gal-Yam 2016).

    Parameters
    ----------
    science, template : Exposure
        On one pixel grid. Without a variance plane the noise is measured.
    options : ZogyOptions, optional
    psf_science, psf_template : Psf, optional
        Point spread functions; measured on the images by default.
    sources : table, optional
        Sources of the science image with columns x, y, and flux, if known; detected by default. The fit of flux ratio
        and shift takes the best of them.
    moving : bool
        Compute TRANSLIENT's Z^2 as well.

    Returns
    -------
    ZogyResult

    Raises
    ------
    ShapeError
        The images differ in shape.
    NoOverlapError
        No pixel is usable in both.
    TooFewSourcesError
        Too few stars for a point spread function, or for a fit that was asked for.
    SubtractionError
        The stars do not tell a flux ratio above 0: the images are not of one field, or not registered.
    """
    options = options or ZogyOptions()
    _check(science, template)
    unit = natural_unit(science)
    if unit != 1:
        known: Any = {"psf_science": psf_science, "psf_template": psf_template, "moving": moving}
        both = in_unit(science, unit), in_unit(template, unit)
        return _from_unit(subtract_zogy(*both, options, sources=in_flux_unit(sources, unit), **known), unit)
    science, template = (image if image.variance is not None else with_variance(image) for image in (science, template))
    if sources is None and psf_science is None:
        sources = detect_sources(science)
    psfs = (
        estimate_psf(science, sources) if psf_science is None else psf_science,
        estimate_psf(template) if psf_template is None else psf_template,
    )
    (of_science, sky), (of_template, _) = _planes(science), _planes(template)
    planes = of_science, of_template
    match = fit_match(planes, psfs, sources, options)
    fwhm = stamp_fwhm(psfs[0].stamp(*_middle(science.shape)))
    planes = _on_common_sky(planes, (science, template), sky + _steep_sky(of_science.data, fwhm), match.flux_ratio)
    match = fit_match(planes, psfs, sources, options)
    result = difference_planes(planes, psfs, match, masks=(science.mask, template.mask), moving=moving, flatten=True)
    level: Any = np.where(planes[0].usable, science.data - planes[0].data, 0) + science.data.dtype.type(
        match.background
    )
    return dataclasses.replace(result, background=result.background + level)


def _from_unit(result: ZogyResult, unit: float) -> ZogyResult:
    """Return a result in the images' own unit again."""
    values, squares = ("image", "flux", "background"), ("variance_science", "variance_template", "flux_variance")
    planes: dict[str, Any] = {name: getattr(result, name).astype(np.float64) * unit for name in values}
    planes |= {name: getattr(result, name).astype(np.float64) * unit**2 for name in squares}
    match = dataclasses.replace(result.match, background=result.match.background * unit)
    return dataclasses.replace(result, match=match, **planes)


def _check(science: Exposure, template: Exposure) -> None:
    if science.shape != template.shape:
        raise ShapeError(
            f"The science image has the shape {science.shape}, the template {template.shape}; both must be on one "
            "grid. Register and resample the template first.",
            found=template.shape,
            needed=science.shape,
        )
    if not (science.usable & template.usable).any():
        raise NoOverlapError(
            f"{science.name} and {template.name} have no usable pixel in common; check their masks and the "
            "registration."
        )


def _planes(exposure: Exposure) -> tuple[Planes, Array]:
    """Return an image without its background, with its noise; and that background."""
    usable = exposure.usable
    level = estimate_background(exposure).level
    assert exposure.variance is not None
    variance = np.where(usable, exposure.variance * exposure.data.dtype.type(exposure.correlation), 0)
    sigma = float(np.sqrt(median(variance[usable])))
    data = np.where(usable, exposure.data - level, 0).astype(exposure.data.dtype)
    return Planes(data, variance.astype(exposure.data.dtype), usable, sigma), level


def _on_common_sky(
    planes: tuple[Planes, Planes], exposures: tuple[Exposure, Exposure], sky: Array, flux_ratio: float
) -> tuple[Planes, Planes]:
    """Return both images without the `sky` of the science image, and the template without what its own differs by.

    No smooth surface follows a steep sky, as at the border of a vignetted field. The errors of one that was fitted to
    each image would stay in the difference; those of a surface that both lack cancel.
    """
    science, template = exposures
    usable = planes[0].usable & planes[1].usable
    plain: Any = np.where(usable, template.data - flux_ratio * science.data, 0).astype(template.data.dtype)
    noise = np.where(usable, planes[1].variance + flux_ratio**2 * planes[0].variance, 0)
    of_template = flux_ratio * sky + _smooth_background(plain, plain, noise, usable)
    first, second = (
        dataclasses.replace(one, data=np.where(one.usable, image.data - level, 0).astype(one.data.dtype))
        for one, image, level in zip(planes, exposures, (sky, of_template), strict=True)
    )
    return first, second


def _steep_sky(image: Array, fwhm: float) -> Array:
    """Return what medians over seven FWHM show of the sky beyond their own scatter: 0 almost everywhere."""
    step = max(1, round(fwhm))
    ny, nx = image.shape
    rows, columns = -(-ny // step), -(-nx // step)
    if min(rows, columns) < SMALLEST:
        return np.zeros_like(image)
    whole = np.pad(image, ((0, rows * step - ny), (0, columns * step - nx)), mode="edge")
    means = whole.reshape(rows, step, columns, step).mean(axis=(1, 3))
    medians = ndimage.gaussian_filter(ndimage.median_filter(means, 7, mode="nearest"), 1.0, mode="nearest")
    scatter = MAD_TO_SIGMA * np.median(np.abs(medians))
    beyond = np.sign(medians) * np.maximum(np.abs(medians) - STEEP * scatter, 0)
    y, x = ((np.arange(n) - (step - 1) / 2) / step for n in (ny, nx))
    return np.asarray(RectBivariateSpline(np.arange(rows), np.arange(columns), beyond, s=0)(y, x))


def fit_match(
    planes: tuple[Planes, Planes],
    psfs: tuple[Psf, Psf],
    sources: Any,
    options: ZogyOptions,
    *,
    good: npt.NDArray[np.bool_] | None = None,
) -> Match:
    """Return flux ratio, shift and scatter as the options ask: given, or fitted to the best of some sources.

    Parameters
    ----------
    planes, psfs : pairs
        Of science image and template.
    sources : table or None
        Columns x, y, optionally flux and flag. None: they are detected on the science image.
    options : ZogyOptions
    good : ndarray of bool, optional
        Where stars may lie.

    Raises
    ------
    TooFewSourcesError
        Too few stars for what is to be fitted or measured.
    SubtractionError
        The flux ratio is not above 0, or not determined by the stars.
    """
    measured = isinstance(options.scatter, str)
    x, y = np.broadcast_to(0.0 if measured else np.asarray(options.scatter, float), 2)
    given = (float(x), float(y))
    if not (options.fit_ratio or options.fit_shift or measured) and options.flux_ratio is not None:
        return Match(options.flux_ratio, (0.0, 0.0), scatter=given)
    science = planes[0]
    if sources is None:
        sources = detect(science.data, science.variance, science.usable)
    if not len(sources):
        raise TooFewSourcesError(
            "The science image has no source 5 standard deviations above its background, so that the flux ratio of "
            "template and science image cannot be fitted. Give deeper images, or the ratio (ZogyOptions).",
            found=0,
        )
    xy = best_stars(sources, science.sigma, psfs[0])
    if good is not None:
        row, column = (np.clip(np.round(xy[:, k]).astype(int), 0, good.shape[1 - k] - 1) for k in (1, 0))
        xy = xy[good[row, column]]
    fwhm = max(stamp_fwhm(psf.stamp(*_middle(science.usable.shape))) for psf in psfs)
    match = match_stars(
        *planes, psfs, xy, fwhm,
        flux_ratio=options.flux_ratio, fit_ratio=options.fit_ratio, fit_shift=options.fit_shift,
    )  # fmt: skip
    if not match.flux_ratio > 0:
        raise SubtractionError(
            f"The stars of the template have {match.flux_ratio:.3g} times the flux of those of the science image; a "
            "ratio above 0 is needed. Check that both show the same field.",
            flux_ratio=match.flux_ratio,
        )
    if options.fit_ratio:
        _check_ratio(match)
    return match if measured else dataclasses.replace(match, scatter=given)


def _check_ratio(match: Match) -> None:
    """Raise SubtractionError if the stars do not tell the flux ratio: they differ from it, or noise hides them."""
    assert match.stars is not None
    number = int(match.stars["used"].sum())
    error = float(np.hypot(match.flux_ratio_error, match.flux_ratio * match.flux_scatter / np.sqrt(max(number, 1))))
    if match.flux_ratio < LEAST_RATIO_SNR * error:
        raise SubtractionError(
            f"{number} stars of the science image have {match.flux_ratio:.3g} +- {error:.2g} times their flux in the "
            f"template; a ratio of at least {LEAST_RATIO_SNR:.0f} times its error is needed. Check that both images "
            "show the same field and are registered, or give the ratio (ZogyOptions).",
            flux_ratio=match.flux_ratio,
            error=error,
            n_stars=number,
        )


def bad_bits(usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """Return the mask of an exposure whose other pixels are bad."""
    return np.where(usable, np.uint32(0), np.uint32(MaskBit.BAD))


def _middle(shape: tuple[int, ...]) -> tuple[float, float]:
    return (shape[1] - 1) / 2, (shape[0] - 1) / 2


def best_stars(sources: Any, sigma: float, psf: Psf) -> npt.NDArray[np.float64]:
    """Return positions (N, 2) of the sources of best signal, the brightest first."""
    xy = np.column_stack([np.asarray(sources["x"], float), np.asarray(sources["y"], float)])
    flux = np.asarray(sources["flux"], float) if "flux" in column_names(sources) else np.zeros(len(xy))
    good = np.isfinite(xy).all(axis=1) & np.isfinite(flux) & unflagged(sources)
    if flux[good].any():
        # noise of a matched filter on the background
        noise = sigma / np.sqrt((psf.stamp(*xy[good].mean(axis=0)) ** 2).sum())
        bright = good & (flux > FIT_SNR * noise)
        good = bright if bright.sum() >= 10 else good & (flux > 5 * noise)
    order = np.argsort(-flux[good], kind="stable")
    return np.asarray(xy[good][order])


# --- the difference -----------------------------------------------------------------------------------------


def difference_planes(
    planes: tuple[Planes, Planes],
    psfs: tuple[Psf, Psf],
    match: Match,
    *,
    masks: tuple[Array, Array] | None = None,
    moving: bool = False,
    variances: bool = True,
    flatten: bool = False,
    threads: int | None = None,
) -> ZogyResult:
    """Difference two images whose background, point spread functions and match are known; see `subtract_zogy`.

    Without `variances` those of the difference's pixels, and the statistics, are left out. With `flatten`, a smooth
    background of the difference is taken off: it has no sources, and shows what is wrong with those of both images.
    """
    single = all(fits_single_precision(p.data, p.sigma) for p in planes)
    kind: np.dtype[Any] = np.dtype(np.float32 if single else np.float64)
    science, template = _in_one_unit(planes, match)
    both = science.usable & template.usable
    filters = ProperFilters.on_grid(
        science.usable.shape, psfs, (science.sigma, template.sigma), match.shift, variances=variances, threads=threads
    )
    n, r = filters.fill((science, template))
    images = (n.astype(kind, copy=False), r.astype(kind, copy=False))
    noise = (science.variance.astype(kind, copy=False), template.variance.astype(kind, copy=False))
    found = _filtered(filters, images, noise, both, match=match, moving=moving, threads=threads)
    image, score, coverage, score_variance = (found[name] for name in ("image", "score", "coverage", "score_variance"))
    noise_variance = score_variance.copy() if moving else None
    _add_scatter(score_variance, found, match)
    valid = both & (coverage > MIN_COVERAGE) & (score_variance > 0)
    level: Any = kind.type(0)
    if flatten and min(image.shape) >= SMALLEST and valid.any():
        level = _smooth_background(image, score, score_variance, valid)
        image -= level
        score -= image.dtype.type(filters.score_of_background) * level
        score -= _floor(score, score_variance, valid)
    mask = _mask(masks, planes, valid, coverage)
    usable = (mask & np.uint32(UNUSABLE)) == 0
    empty = np.empty((0, 0), np.float32)
    pixel_variances = [
        np.where(usable, np.maximum(found[name], 0), 0) if name in found else empty
        for name in ("variance_science", "variance_template")
    ]
    z2 = empty
    if noise_variance is not None:
        z2 = moving_statistic(score, noise_variance, gradient(found["of_template"]), match, filters)
        z2 = np.where(valid, z2, 0).astype(np.float32, copy=False)
    bad = None if valid.all() else ~valid
    if bad is not None:
        image[~usable] = score[bad] = 0
        score_variance[bad] = coverage[bad] = 1
    significance = (score / np.sqrt(score_variance)).astype(np.float32, copy=False)
    score /= coverage
    score_variance /= coverage
    score_variance /= coverage
    if bad is not None:
        score_variance[bad] = coverage[bad] = 0
    result = ZogyResult(
        image=image,
        variance_science=pixel_variances[0],
        variance_template=pixel_variances[1],
        mask=mask,
        significance=significance,
        coverage=coverage.astype(np.float32, copy=False),
        flux=score,
        flux_variance=score_variance,
        match=match,
        psf_science=psfs[0],
        psf_template=psfs[1],
        psf=DifferencePsf(psfs, science.sigma, template.sigma, image.shape, match.shift),
        moving=z2,
        background=np.broadcast_to(level, image.shape) if variances else empty,
    )
    if variances:
        result.statistics.update(_statistics(result))
    return result


def _filtered(
    filters: ProperFilters,
    images: tuple[Array, Array],
    noise: tuple[Array, Array],
    both: npt.NDArray[np.bool_],
    *,
    match: Match,
    moving: bool,
    threads: int | None,
) -> dict[str, Array]:
    """Return difference and score with what tells their errors, from the two images and the variances in them.

    They are: D (image) and S (score), the coverage of pixels that are usable in `both`, the variance of S
    (score_variance) and, if there are filters for them, of D's pixels by each image; what S has of the template
    (of_template) if positions scatter, or moving sources are to be found; S for a relative error of its stars' fluxes
    (error) if these scatter.
    """
    kind = images[0].dtype
    jobs: dict[str, Any] = {
        "image": (filters.difference, images),
        "score": (filters.score, images),
        "coverage": (filters.response, (~both).astype(kind), 1.0),  # what is missing: less, and often nothing
        "score_variance": (filters.score_squared, noise),
    }
    if moving or any(match.scatter):
        jobs["of_template"] = filters.score_of_template, images[1]
    if match.flux_scatter:
        jobs["error"] = filters.error_of_template, images[1]
    if filters.difference_squared is not None:
        for name, one, plane in zip(("science", "template"), filters.difference_squared, noise, strict=True):
            jobs[f"variance_{name}"] = one, plane
    found = dict(zip(jobs, correlate(list(jobs.values()), threads, dtype=kind.type), strict=True))
    np.subtract(1, found["coverage"], out=found["coverage"])
    np.clip(found["coverage"], 0, 1, out=found["coverage"])
    np.maximum(found["score_variance"], 0, out=found["score_variance"])
    return found


def _smooth_background(image: Array, score: Array, variance: Array, usable: npt.NDArray[np.bool_]) -> Array:
    """Return the sky of a difference: clipped means in boxes as large as those of its images' backgrounds."""
    box = int(np.clip(min(image.shape) // 8, 32, 128))
    typical = median(variance[usable])
    # the photons of sources, and what has changed
    hidden = (variance > 1.5 * typical) | (np.abs(score - median(score[usable])) > 4 * np.sqrt(typical))
    plane = sep.Background(np.ascontiguousarray(image), mask=~usable | hidden, bw=box, bh=box)
    return np.asarray(plane.back(dtype=image.dtype))


def _floor(score: Array, variance: Array, usable: npt.NDArray[np.bool_]) -> Any:
    """Return what the score is where nothing has changed: 0, but for crowded fields.

    There the wings of residuals of many stars, far below the noise of a pixel, add up to what a sky would be, which the
    difference between them does not show.
    """
    some = (slice(None, None, 3),) * 2
    known = usable[some]
    if not known.any():
        return 0
    typical = np.median(score[some][known]) / np.sqrt(np.median(variance[some][known]))
    return _smooth_background(score, score, variance, usable) if abs(typical) > CROWDED else score.dtype.type(0)


def _add_scatter(score_variance: Array, found: dict[str, Array], match: Match) -> None:
    """Add, in place, what stars do that lie differently in both images: what the template holds moves (eqs. 30-33).

    And what they do that the point spread functions do not describe: `error` per relative error of a star's flux.
    """
    kind = score_variance.dtype.type
    of_template, error = found.get("of_template"), found.get("error")
    for start, stop in row_bands(len(score_variance)):  # pieces that the processor's cache holds
        band = slice(start, stop)
        if of_template is not None and any(match.scatter):
            first = max(start - GRADIENT_REACH, 0)
            slopes = gradient(of_template[first : stop + GRADIENT_REACH])
            for sigma, slope in zip(match.scatter, slopes, strict=True):
                score_variance[band] += (kind(sigma) * slope[start - first : stop - first]) ** 2
        if error is not None:
            score_variance[band] += (kind(match.flux_scatter) * error[band]) ** 2


def fits_single_precision(data: Array, sigma: float, unit: float = 1.0) -> bool:
    """Whether transforms in float32, whose errors are some 2e-7 of the brightest pixel, stay below 1 % of the noise.

    Nor may the squares of variances leave its range, in the unit of the image, of which `data` and `sigma` are so many.
    """
    return 1e-9 < sigma * unit < 1e9 and bool(max(data.max(), -data.min()) * 2e-7 < 0.01 * sigma)


def _in_one_unit(planes: tuple[Planes, Planes], match: Match) -> tuple[Planes, Planes]:
    """Return science image and template in the flux unit of the science image, and without the fitted background."""
    science, template = planes
    beta = template.data.dtype.type(match.flux_ratio)
    level = science.data.dtype.type(match.background)
    return (
        Planes(np.where(science.usable, science.data - level, 0), science.variance, science.usable, science.sigma),
        Planes(template.data / beta, template.variance / beta**2, template.usable, template.sigma / float(beta)),
    )


def _mask(
    masks: tuple[Array, Array] | None, planes: tuple[Planes, Planes], valid: npt.NDArray[np.bool_], coverage: Array
) -> npt.NDArray[np.uint32]:
    """Join the masks; pixels without a score are at an edge, those that lack part of it are touched."""
    if masks is None:
        masks = tuple(bad_bits(p.usable) for p in planes)  # type: ignore[assignment]
    assert masks is not None
    science, template = (np.asarray(mask, np.uint32) for mask in masks)
    mask = science | template
    mask[(template & np.uint32(UNUSABLE)) != 0] |= np.uint32(MaskBit.TEMPLATE)
    unusable = (mask & np.uint32(UNUSABLE)) != 0
    mask[~valid & ~unusable] |= np.uint32(MaskBit.EDGE)
    mask[valid & (coverage < GOOD_COVERAGE)] |= np.uint32(MaskBit.SPREAD)
    return mask


def _statistics(result: ZogyResult) -> dict[str, Any]:
    usable = result.usable & (result.variance > 0)
    scaled = result.image[usable] / np.sqrt(result.variance[usable])
    score = result.significance[usable]
    robust = [MAD_TO_SIGMA * median(np.abs(v - median(v))) if v.size else 1.0 for v in (scaled, score)]
    stars = result.match.stars
    return {
        "noise_std": robust[0],
        "score_std": robust[1],
        "n_stars": 0 if stars is None else int(np.sum(stars["used"])),
    }
