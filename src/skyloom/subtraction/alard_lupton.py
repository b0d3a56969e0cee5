"""Optimal image subtraction with a kernel that varies over the field (Alard & Lupton 1998; Alard 2000)."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from astropy.table import Table
from scipy import ndimage

from skyloom._threads import serial_blas
from skyloom.background import MAD_TO_SIGMA
from skyloom.convolution import polynomial
from skyloom.errors import NoUsableDataError, ShapeError, SubtractionError, TooFewStampsError
from skyloom.exposure import UNUSABLE, Exposure, FloatArray
from skyloom.subtraction.basis import (
    KernelBasis,
    ZeroSumDeltaBasis,
    default_half_width,
    default_sigmas,
    gaussian_basis,
)
from skyloom.subtraction.cross import subtract_crossed
from skyloom.subtraction.decorrelate import decorrelate
from skyloom.subtraction.fit import KernelFit, fit_kernel, systematic_fraction
from skyloom.subtraction.fit_input import FitInput
from skyloom.subtraction.masking import combine_masks, spread_mask
from skyloom.subtraction.match import Match
from skyloom.subtraction.noise import convolved_noise_gain
from skyloom.subtraction.options import AlardLuptonOptions
from skyloom.subtraction.residual_background import residual_level
from skyloom.subtraction.result import Subtraction
from skyloom.subtraction.sanity import check_kernel, check_range, check_variance, in_unit, natural_unit
from skyloom.subtraction.scatter import with_flux_scatter
from skyloom.subtraction.sfft.options import SfftOptions
from skyloom.subtraction.stamps import (
    Planes,
    dilate,
    find_candidates,
    find_sources,
    measure_fwhm,
    source_positions,
    spikes,
    spread,
    without_spikes,
)

log = logging.getLogger("skyloom.subtraction")

_WEIGHT_BOX = 5  # pixels over which variances are averaged before they become weights

_OTHER = {"template": "science", "science": "template"}

_SEEING_BOXES = (12, 24, 48)  # half widths in pixels of the boxes in which the seeing is measured

_DELTA_REACH = 1.75  # FWHM from the centre to the edge of a kernel whose pixels are all free

_CLEARLY_SHARPER = 1.2  # ratio of seeing above which there is no question which image to convolve


def subtract(
    science: Exposure,
    template: Exposure,
    options: AlardLuptonOptions | SfftOptions | None = None,
    *,
    sources: Any = None,
    science_fwhm: float | None = None,
    template_fwhm: float | None = None,
) -> Subtraction:
    """Match a template to a science image and subtract it.

    The image with the narrower stars, T, is convolved with a kernel K, a sum of Gaussians times polynomials whose
    coefficients vary over the field, found by weighted least squares on stamps around stars: S = K * T + background.
    When it is the science image that is convolved, the difference is divided by the kernel's sum, so that it always has
    the science image's flux scale.

    Parameters
    ----------
    science, template : Exposure
        On the same pixel grid. Without a variance plane it is estimated.
    options : AlardLuptonOptions or SfftOptions, optional
        All choices. Their type tells the kind of kernel: with `SfftOptions` all its pixels are free (Hu et al. 2022,
        ApJ 936, 157), and it is fitted to all pixels of boxes around stars, or of the field.
    sources : Table, optional
        Stars on the science image (columns x, y and, if there, flux and flag) from which to choose stamps; detected
        if not given.
    science_fwhm, template_fwhm : float, optional
        Seeing in pixels; measured if not given.

    Returns
    -------
    Subtraction

    Raises
    ------
    ShapeError
        The two images have different shapes.
    InputError
        Values too large or too small beside those of the science image.
    NoUsableDataError
        No pixel is usable in both images.
    TooFewStampsError
        Too few stars fit to be stamps, or too few that the kernel fits.
    SubtractionError
        The fitted kernel is not one that images can have.
    """
    options = options or AlardLuptonOptions()
    if science.shape != template.shape:
        raise ShapeError(
            f"The science image has the shape {science.shape} and the template {template.shape}; they must "
            "be on the same grid. Resample the template first.",
            science=science.shape,
            template=template.shape,
        )
    unit = natural_unit(science)
    if unit != 1:
        stars = {"sources": sources, "science_fwhm": science_fwhm, "template_fwhm": template_fwhm}
        return _from_unit(subtract(in_unit(science, unit), in_unit(template, unit), options, **stars), unit)
    science, template = _with_variance(science), _with_variance(template)
    check_range("the template", template.data)
    if not (science.usable & template.usable).any():
        raise _none_usable(science, template)
    if isinstance(options, SfftOptions) and options.cross_convolve:
        return subtract_crossed(science, template, options, sources=sources)
    planes = {"science": _planes(science), "template": _planes(template)}
    xy = find_sources(planes["science"]) if sources is None else source_positions(sources)
    fwhm = _seeing(planes, xy, science_fwhm, template_fwhm)
    results: list[Subtraction] = []
    failures: list[SubtractionError] = []
    for convolved in _directions(options, fwhm):
        try:
            with serial_blas():
                correlation = (template if convolved == "template" else science).correlation
                match = _match(planes, xy, fwhm, options, convolved=convolved, correlation=correlation)
            check_kernel(match.kernel, (0, science.shape[1] - 1, 0, science.shape[0] - 1))
            result = _difference(science, template, planes, convolved=convolved, fit=match, max_lost=options.max_lost)
            check_variance(result)
            result = _with_level(result, max(fwhm.values()))
        except SubtractionError as error:
            failures.append(error)
            continue
        seeing = {"science_fwhm": fwhm["science"], "template_fwhm": fwhm["template"]}
        result.statistics.update(match.statistics | seeing | noise_statistics(result))
        results.append(result)
    try:
        if not results:
            raise failures[0]
    finally:
        failures.clear()  # their tracebacks hold this list, and all planes with it
    best = with_flux_scatter(min(results, key=_residual), core=_core(fwhm))
    return decorrelate(best, max_lost=options.max_lost) if options.decorrelate else best


def _directions(
    options: AlardLuptonOptions | SfftOptions, fwhm: dict[str, float]
) -> list[Literal["template", "science"]]:
    """Return which image to convolve: the sharper one; where the widths do not tell, either is tried.

    Stars of about the same width may be elongated differently, so that each image is the sharper one along one axis.
    """
    if options.convolve != "auto":
        return [options.convolve]
    if fwhm["template"] * _CLEARLY_SHARPER < fwhm["science"]:
        return ["template"]
    if fwhm["science"] * _CLEARLY_SHARPER < fwhm["template"]:
        return ["science"]
    return ["template", "science"]


def _residual(result: Subtraction) -> float:
    """Return what is left of bright stars; the template, which is deeper as a rule, is preferred where it ties."""
    left = float(np.nan_to_num(result.statistics["systematic_fraction"]))
    return left if result.convolved == "template" else 1.2 * left


def _with_level(result: Subtraction, fwhm: float) -> Subtraction:
    """Return the result with the level of its sky, measured all over the field, in its background."""
    dtype = result.image.dtype.type
    level = dtype(residual_level(result.image, result.variance, result.usable, fwhm=fwhm))
    if level == 0:
        return result
    return replace(
        result,
        image=np.where(result.usable, result.image - level, dtype(0)),
        matched=result.matched + level,
        background=result.background + level,
    )


def _none_usable(science: Exposure, template: Exposure) -> NoUsableDataError:
    told = "; ".join(
        f"of {name} {100 * np.mean(exposure.usable):.3g} % are usable, and {100 * np.mean(exposure.variance == 0):.3g} "
        "% have no variance that is a positive finite number"
        for name, exposure in (("the science image", science), ("the template", template))
    )
    return NoUsableDataError(
        f"No pixel is usable in both the science image and the template: {told}. Check their masks, that they overlap, "
        "and their variances, which float32 cannot hold below 1e-45."
    )


def _from_unit(result: Subtraction, unit: float) -> Subtraction:
    """Return a result in the images' own unit again."""
    values, squares = ("image", "matched", "background"), ("variance", "variance_science", "variance_template")
    planes: dict[str, Any] = {name: getattr(result, name).astype(np.float64) * unit for name in values}
    planes |= {name: getattr(result, name).astype(np.float64) * unit**2 for name in squares}
    before = result.variance_before
    planes["variance_before"] = None if before is None else before.astype(np.float64) * unit**2
    return replace(result, **planes)


def _with_variance(exposure: Exposure) -> Exposure:
    if exposure.variance is not None:
        return exposure
    from skyloom.noise import with_variance

    return with_variance(exposure)


def _planes(exposure: Exposure) -> Planes:
    """Take off the median, so that unusable pixels can be 0 and sums in float32 keep their digits."""
    assert exposure.variance is not None
    usable = exposure.usable
    pedestal = _pedestal(exposure)
    return Planes(
        np.where(usable, exposure.data - exposure.data.dtype.type(pedestal), exposure.data.dtype.type(0)),
        exposure.variance,
        usable,
    )


def _pedestal(exposure: Exposure) -> float:
    usable = exposure.usable
    return float(np.median(exposure.data[usable])) if usable.any() else 0.0


def _seeing(
    planes: dict[str, Planes], xy: npt.NDArray[np.float64], science_fwhm: float | None, template_fwhm: float | None
) -> dict[str, float]:
    """Return the FWHM of both images; those not given are measured, on the same stars."""
    given = {"science": science_fwhm, "template": template_fwhm}
    if None not in given.values():
        return given  # type: ignore[return-value]
    fwhm: dict[str, float] = {}
    for half in _SEEING_BOXES:
        padded = {name: image.padded(half) for name, image in planes.items()}
        stars, counts = find_candidates(
            padded["science"], padded["template"], xy + half, half=half, core=4, fwhm=3.0, min_snr=20.0
        )
        if not stars and not fwhm:
            raise _too_few("No source is good enough to measure the seeing", counts, 1)
        if not stars:
            break
        stars = sorted(stars, key=lambda star: -star.snr)[:100]
        fwhm = {
            name: measure_fwhm(padded[name], stars, half) if value is None else value for name, value in given.items()
        }
        if max(fwhm.values()) <= half / 2:  # else the outer part, where the sky is measured, holds light of the star
            break
    return fwhm


def _core(fwhm: dict[str, float]) -> int:
    """Return the half width of a stamp's core, pixels."""
    return max(3, int(np.ceil(1.25 * max(fwhm.values()))))


def _too_few(what: str, counts: dict[str, int], needed: int) -> TooFewStampsError:
    why = ", ".join(f"{count} {reason}" for reason, count in counts.items() if reason != "sources")
    return TooFewStampsError(
        f"{what}: of {counts['sources']} sources, {why}; at least {needed} stamps are needed. Take "
        "another method, which needs no stamps (--method sfft), or lower min_snr or min_stamps of the options.",
        needed=needed,
        **counts,
    )


def _match(
    planes: dict[str, Planes],
    xy: npt.NDArray[np.float64],
    fwhm: dict[str, float],
    options: AlardLuptonOptions | SfftOptions,
    *,
    convolved: Literal["template", "science"],
    correlation: float,
) -> Match:
    """Fit the kind of kernel that the options are for."""
    if isinstance(options, SfftOptions):
        from skyloom.subtraction.sfft.match import match_sfft

        target, source = (_weighing(planes[name]) for name in (_OTHER[convolved], convolved))
        return match_sfft(target, source, xy, fwhm=max(fwhm.values()), options=options, correlation=correlation)
    fit, counts = _fit(planes, xy, fwhm, options, convolved=convolved, correlation=correlation)
    return Match(fit.kernel, fit.background, fit.background_order, _table(fit), _describe(fit, counts))


def _fit(
    planes: dict[str, Planes],
    xy: npt.NDArray[np.float64],
    fwhm: dict[str, float],
    options: AlardLuptonOptions,
    *,
    convolved: Literal["template", "science"],
    correlation: float,
) -> tuple[KernelFit, dict[str, int]]:
    """Choose the basis and the stamps, and fit the kernel."""
    wide = max(fwhm.values())
    basis = _basis(options, fwhm)
    kernel_half = basis.half
    half = options.stamp_half_width or max(8, int(np.ceil(3.5 * wide)))
    core = _core(fwhm)
    border = half + kernel_half
    source, _ = without_spikes(planes[convolved], fwhm[convolved])
    target = planes[_OTHER[convolved]]
    target = replace(target, usable=target.usable & ~spikes(target, fwhm[_OTHER[convolved]]))
    target, source = (_weighing(one).padded(border) for one in (target, source))
    # the middle half of the kernel holds nearly all of its weight
    untouched = ~dilate(~source.usable, (kernel_half + 1) // 2)
    images = FitInput(target, replace(source, usable=untouched), basis, half, core, wide, border, correlation)
    accepted, counts = find_candidates(
        images.target, images.source, xy + border, half=half, core=core, fwhm=wide, min_snr=options.min_snr
    )
    if len(accepted) < options.min_stamps:
        raise _too_few(f"Only {len(accepted)} sources are good enough for stamps", counts, options.min_stamps)
    tiles = options.tiles or int(np.clip(max(images.shape) / (2 * half + 1) / 1.5, 1, 12))
    cells = spread(accepted, images.target.shape, tiles, options.candidates_per_tile)
    return fit_kernel(images, cells, options), counts


def _basis(options: AlardLuptonOptions, fwhm: dict[str, float]) -> KernelBasis | ZeroSumDeltaBasis:
    """Return the basis that is asked for, for this seeing."""
    wide = max(fwhm.values())
    if options.basis == "delta":
        return ZeroSumDeltaBasis(options.kernel_half_width or max(4, int(np.ceil(_DELTA_REACH * wide))))
    sigmas = options.gaussian_sigmas or default_sigmas(wide, min(fwhm.values()), len(options.orders))
    half = options.kernel_half_width or default_half_width(options.gaussian_sigmas, wide)
    return gaussian_basis(sigmas, options.orders, half, constant_wings=True)


def _weighing(planes: Planes) -> Planes:
    """Return planes whose variance is averaged over some pixels.

    A variance that was computed from the pixel's own counts goes up and down with them, and its inverse as a weight
    would pull every fit below the mean.
    """
    seen = planes.usable.astype(np.float32)
    weight = ndimage.uniform_filter(seen, _WEIGHT_BOX, mode="constant")
    mean = ndimage.uniform_filter(np.where(planes.usable, planes.variance, 0), _WEIGHT_BOX, mode="constant")
    variance = np.where(planes.usable, mean / np.maximum(weight, 1e-6), 0)
    return replace(planes, variance=variance)


def _difference(
    science: Exposure,
    template: Exposure,
    planes: dict[str, Planes],
    *,
    convolved: Literal["template", "science"],
    fit: Match,
    max_lost: float,
) -> Subtraction:
    """Convolve, subtract, and put the planes together."""
    moved, still = (template, science) if convolved == "template" else (science, template)
    smooth = fit.kernel.convolve(planes[convolved].data, planes[convolved].variance, planes[convolved].usable)
    assert still.variance is not None
    assert smooth.variance is not None
    ny, nx = science.shape
    x, y = np.arange(nx)[None, :], np.arange(ny)[:, None]
    level = polynomial(fit.background, x, y, fit.kernel.centre, fit.kernel.scale) + _pedestal(still)
    matched = smooth.data + level
    image = still.data - matched
    gain = convolved_noise_gain(fit.kernel.image_at((nx - 1) / 2, (ny - 1) / 2), moved.correlation)
    variance_moved, variance_still = smooth.variance * np.float32(gain), still.variance
    sigma = np.sqrt(np.maximum(variance_moved + variance_still, 0))  # what is not positive is refused below
    kept = spread_mask(planes[convolved], moved, fit.kernel.core, smooth.lost, sigma=sigma, max_lost=max_lost)
    mask = combine_masks(kept, still.mask, convolved)
    usable = (mask & np.uint32(UNUSABLE)) == 0
    if not usable.any():
        raise NoUsableDataError(
            "No pixel of the difference is usable: the images overlap in too small a part, or the "
            f"kernel (half width {fit.kernel.core.half} pixels) reaches a masked pixel everywhere."
        )
    total = fit.kernel.sum_at(x, y)
    background = level - total * _pedestal(moved)  # so that matched = K * moved + background
    if convolved == "science":
        # K * science / sum K - matched: what is subtracted is the template itself, on the science image's scale
        image, background = -image / total, _pedestal(moved) - level / total
        matched = still.data / total + background
        variance_still, variance_moved = variance_still / total**2, variance_moved / total**2

    dtype = science.data.dtype

    def clean(plane: FloatArray) -> FloatArray:
        return np.where(usable, plane, 0).astype(dtype)  # type: ignore[return-value]  # numpy's stubs lose the type

    variance = {convolved: clean(variance_moved), _OTHER[convolved]: clean(variance_still)}
    correlation = {"science": science.correlation, "template": template.correlation}
    correlation[convolved] /= gain
    return Subtraction(
        image=clean(image),
        variance=variance["science"] + variance["template"],
        variance_science=variance["science"],
        variance_template=variance["template"],
        mask=mask,
        matched=matched.astype(dtype),
        kernel=fit.kernel,
        background=background.astype(dtype),
        convolved=convolved,
        stamps=fit.stamps,
        correlation_science=correlation["science"],
        correlation_template=correlation["template"],
        variance_before=_before(planes[convolved], moved.correlation),
    )


def _before(planes: Planes, correlation: float) -> FloatArray:
    """Return the variance of the white noise that resampling has correlated; 0 where unusable."""
    variance: FloatArray = planes.variance * correlation
    variance[~planes.usable] = 0
    return variance


def noise_statistics(result: Subtraction) -> dict[str, float]:
    """How far the difference scatters as its variance says, on the sky and under bright stars."""
    usable = result.usable & (result.variance > 0)
    image, matched = result.image[usable].astype(np.float64), result.matched[usable].astype(np.float64)
    sigma = np.sqrt(result.variance[usable].astype(np.float64))
    signal = matched - np.median(matched)
    z = image / sigma
    sky = z[signal < 3 * sigma]
    sky = sky if len(sky) > 100 else z
    middle = float(np.median(sky))
    kept = sky[np.abs(sky - middle) < 5]
    return {
        "noise_ratio": float(MAD_TO_SIGMA * np.median(np.abs(sky - middle))),
        "mean_over_sigma": float(kept.mean()) if len(kept) else middle,
        "systematic_fraction": systematic_fraction(image, sigma**2, signal),
    }


def _describe(fit: KernelFit, counts: dict[str, int]) -> dict[str, Any]:
    sums = fit.kernel.sum_at(*fit.positions(fit.stars).T)
    return {
        "n_sources": counts["sources"],
        "n_stamps": len(fit.stars),
        "n_stamps_rejected": len(fit.rejected),
        "chi2": float(np.median(fit.chi2)),
        "kernel_sum": float(np.mean(sums)),
        "kernel_sum_scatter": float(np.std(sums)),
        "spatial_order": fit.kernel.order,
        "background_order": fit.background_order,
        "kernel_half_width": fit.kernel.half,
        "stamp_systematic_fraction": fit.systematic,
    } | ({} if fit.regularisation is None else {"regularisation": fit.regularisation})


def _table(fit: KernelFit) -> Table:
    stars = fit.stars + fit.rejected
    xy = fit.positions(stars)
    return Table(
        {
            "x": xy[:, 0],
            "y": xy[:, 1],
            "snr": np.array([star.snr for star in stars]),
            "chi2": np.concatenate([fit.chi2, np.full(len(fit.rejected), np.nan)]),
            "used": np.arange(len(stars)) < len(fit.stars),
        }
    )
