"""Match two exposures with a delta-function kernel: what `skyloom.subtraction.subtract` does for `SfftOptions`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from astropy.table import Table
from scipy import ndimage, stats
from scipy.signal import oaconvolve

from skyloom.background import MAD_TO_SIGMA
from skyloom.convolution import exponents, monomials
from skyloom.exposure import BoolArray
from skyloom.filters import convolve_full
from skyloom.subtraction.basis import DeltaBasis
from skyloom.subtraction.kernel import SpatialKernel
from skyloom.subtraction.match import Match
from skyloom.subtraction.noise import smoothing_kernel
from skyloom.subtraction.sfft.design import DeltaModel, Float64Array
from skyloom.subtraction.sfft.fit import DeltaFit, FitOptions, FitPlanes, fit_delta, need_enough, warn_of_edge
from skyloom.subtraction.sfft.options import SfftOptions
from skyloom.subtraction.sfft.planes import reach
from skyloom.subtraction.sfft.regions import Boxes, kernel_half, object_region
from skyloom.subtraction.sfft.solve import Penalties
from skyloom.subtraction.stamps import Planes

_CROWDED = 0.4  # of the field within boxes around sources
_BOX = 3.0  # half the size of a box, in FWHM
_PIXELS_PER_UNKNOWN = 10
_CELLS, _PER_CELL = 8, 5
_MOST_SOURCES, _LEAST_SNR, _SPARE_SOURCES, _CLIP_SOURCES = 500, 30.0, 10, 4.0
_CHANCE = 1e-4  # that a ratio of fluxes which does not vary is taken to do so
_FLUX_PENALTY = 1e3
_SMOOTH = 7  # pixels, over which both images are averaged to compare their fluxes
_TAP, _VARIATION = 0.3, 0.1
_NEAR_A_PIXEL = 0.2  # deviations are smaller by this factor where the kernel is expected to be one pixel of 1
_WINGS, _WING_SLOPE = 3, 5.0  # their reach, in half widths of the kernel; they fall like r^-5
_WING_LIGHT = 0.03  # about so much of the sum they may hold
_ACCURACY = 0.1  # of the statistical errors of all unknowns together


def match_sfft(
    target: Planes,
    source: Planes,
    xy: Float64Array,
    *,
    fwhm: float,
    options: SfftOptions,
    correlation: float = 1.0,
    noise_correlation: Float64Array | None = None,
) -> Match:
    """Fit the kernel that takes `source` to `target`.

    Parameters
    ----------
    target, source : Planes
        Without their pedestals, with variances fit to be weights.
    xy : ndarray, shape (N, 2)
        Sources, the brightest first.
    fwhm : float
        Of the wider stars, pixels.
    options : SfftOptions
    correlation : float
        `Exposure.correlation` of the source: its noise is larger by this factor, as a variance, for wide kernels. It is
        taken to be white noise smoothed by `skyloom.subtraction.noise.smoothing_kernel`.
    noise_correlation : ndarray, optional
        How the noise of a source is correlated that went through filters, see `FitOptions`. The kernel is expected to
        be one pixel of 1 then.
    """
    half = options.kernel_half_width or kernel_half(fwhm)
    side = 2 * half + 1
    like_one_pixel = noise_correlation is not None
    model = DeltaModel((side, side), options.spatial_order, options.background_order, wings=not like_one_pixel)
    usable = _usable(target, source, half)
    need_enough(usable, model)
    region, table = _pixels(usable, xy, fwhm, options, needed=_PIXELS_PER_UNKNOWN * model.size)
    # of the white noise, which all of it is for weights of wide kernels; the bias knows how it is correlated
    template_variance = np.where(source.usable, source.variance, 0.0).astype(np.float64) * correlation
    seen = np.where(source.usable, source.data, 0).astype(np.float64)
    planes = FitPlanes(
        np.where(target.usable, target.data, 0).astype(np.float64),
        seen,
        usable if region is None else usable & region,
        np.where(usable, target.variance, 1.0),
        template_variance,
        wings=oaconvolve(seen, wings(half), mode="same") if model.wings else None,
    )
    precision = _prior(model, planes, fwhm) / (_NEAR_A_PIXEL**2 if like_one_pixel else 1.0)
    flux_order = 0 if options.flux_order == "auto" else options.flux_order
    penalties = Penalties(flux_order, _FLUX_PENALTY, options.ridge, precision)
    limits = options.sigma_clip, options.max_iterations
    known = _resampled(correlation) if noise_correlation is None else noise_correlation
    choices = FitOptions(
        model, penalties, *limits, accuracy=_ACCURACY, noise_correlation=known, like_one_pixel=like_one_pixel
    )
    fit = fit_delta(planes, choices)
    if options.flux_order == "auto" and not like_one_pixel and _ratio_varies(fit, planes, xy, max(2, round(fwhm))):
        free = dataclasses.replace(penalties, flux_order=options.spatial_order)
        fit = fit_delta(planes, dataclasses.replace(choices, penalties=free))
    warn_of_edge(fit, "Give a larger kernel_half_width.")
    return _as_match(fit, planes, table, options, n_sources=len(xy), all_pixels=region is None, core=fwhm)


def _ratio_varies(fit: DeltaFit, planes: FitPlanes, xy: Float64Array, half: int) -> bool:
    """Return whether what a constant ratio of fluxes leaves of sources follows their places: an F test.

    Of the light m that was subtracted, delta = sum w D m / sum w m^2 is left within `half` pixels of each source. A
    polynomial of the kernel's order, beside a constant, is fitted to the deltas, whose scatter is measured.
    """
    order = fit.design.model.kernel_order
    light = planes.science - fit.residual - fit.design.background(fit.unknowns)
    assert planes.variance is not None
    weight = fit.used / planes.variance
    column, row = np.rint(xy).astype(int).T
    ny, nx = fit.used.shape
    inside = (column >= 0) & (column < nx) & (row >= 0) & (row < ny)  # sources that were given may lie anywhere
    column, row = column[inside][:_MOST_SOURCES], row[inside][:_MOST_SOURCES]
    left, known = (
        ndimage.uniform_filter(plane, 2 * half + 1, mode="constant")[row, column] * (2 * half + 1) ** 2
        for plane in (weight * light * fit.residual, weight * light**2)
    )
    good = (known > _LEAST_SNR**2) & fit.used[row, column]
    delta, error2 = left[good] / known[good], 1 / known[good]
    terms = monomials(column[good], row[good], order, fit.design.centre, fit.design.scale)
    kept = np.ones(delta.size, bool)
    for _ in range(2):
        spare = int(kept.sum()) - len(terms)
        if order == 0 or spare < _SPARE_SOURCES:
            return False
        scatter = MAD_TO_SIGMA * float(np.median(np.abs(delta[kept] - np.median(delta[kept]))))
        root = 1 / np.sqrt(error2 + scatter**2)
        best, *_ = np.linalg.lstsq((terms * root).T[kept], (delta * root)[kept], rcond=None)
        residual = (delta - best @ terms) * root
        at_most = _CLIP_SOURCES * MAD_TO_SIGMA * np.median(np.abs(residual[kept]))
        squares = float((residual[kept] ** 2).sum())
        mean = np.average(delta[kept], weights=root[kept] ** 2)
        gain = float((((delta - mean) * root)[kept] ** 2).sum()) - squares
        kept &= np.abs(residual) <= at_most
    return bool(stats.f.sf(gain / (len(terms) - 1) / max(squares / spare, 1e-300), len(terms) - 1, spare) < _CHANCE)


def wings(half: int) -> Float64Array:
    """Return how a kernel goes on beyond its pixels: like r^-5 to three times their half width; the sum is 1.

    A kernel between stars whose wings fall like r^-n has such wings, too, and they are wider than any square for which
    free pixels could be paid. Cut off, a part of what they move from star to star is missing in the sum.
    """
    axis = np.arange(-_WINGS * half, _WINGS * half + 1.0)
    radius = np.hypot(axis[:, None], axis[None, :])
    outside = np.maximum(abs(axis[:, None]), abs(axis[None, :])) > half
    light = np.where(outside & (radius <= axis[-1] + 0.5), np.maximum(radius, 1.0) ** -_WING_SLOPE, 0.0)
    return np.asarray(light / light.sum())


def _usable(target: Planes, source: Planes, half: int) -> BoolArray:
    """Return the pixels of the fit: those whose kernel stays clear of bad pixels and of the border."""
    # a single bad pixel of the source under the wings of the kernel costs less than the pixels around it
    usable = target.usable & ~reach(~source.usable, (half + 1 - half % 2, half + 1 - half % 2))
    return np.asarray(usable & ~reach(np.zeros(usable.shape, bool), (2 * half + 1, 2 * half + 1)))


def _resampled(correlation: float) -> Float64Array | None:
    """Return how the noise is correlated of white noise that resampling has smoothed, see `FitOptions`."""
    if correlation <= 1:
        return None
    smoothing = smoothing_kernel(correlation)
    covariance = convolve_full(smoothing, smoothing)  # even, so that this is the correlation
    return np.asarray(covariance / covariance.max() / correlation)


def _as_match(
    fit: DeltaFit, planes: FitPlanes, table: Table, options: SfftOptions,
    *, n_sources: int, all_pixels: bool, core: float,
) -> Match:  # fmt: skip
    """Return kernel and background, the stars with their chi^2 within `core` pixels, and the numbers of the fit."""
    model = fit.design.model
    half = model.kernel_shape[0] // 2
    far = fit.unknowns[model.n_kernel] * wings(half) if model.wings else None
    coefficients = fit.kernel.reshape(len(fit.kernel), -1).T
    kernel = SpatialKernel(DeltaBasis(half), coefficients, fit.design.centre, fit.design.scale, far)
    chi2, share = _quality(fit, planes)
    table["chi2"] = _box_chi2(table, chi2, half=max(2, round(core)))
    sums = kernel.sum_at(*fit.design.centre)
    return Match(
        kernel,
        fit.background,
        options.background_order,
        table,
        {
            "n_sources": n_sources,
            "n_stamps": len(table),
            "n_stamps_rejected": 0,
            "chi2": share,
            "kernel_sum": float(sums),
            "kernel_sum_scatter": float(np.std(kernel.sum_at(table["x"], table["y"]))) if len(table) else 0.0,
            "kernel_edge": fit.edge,
            "kernel_wings": float(fit.unknowns[model.n_kernel] / sums) if model.wings else 0.0,
            "spatial_order": options.spatial_order,
            "background_order": options.background_order,
            "kernel_half_width": half,
            "pixels": "all" if all_pixels else "boxes",
            "n_pixels": int(np.count_nonzero(fit.used)),
        },
    )


def _prior(model: DeltaModel, planes: FitPlanes, fwhm: float) -> Float64Array:
    """Return the inverse variance of each coefficient of kernel and wings before there are data.

    The pixels of a matching kernel decline with the distance from its centre like the wings of stars, and change over
    the field by a small part. Without this, 225 free pixels of 6 terms each find much of the noise of a few stars,
    which is extrapolated to the corners of the field. Deviations are in units of the ratio of fluxes, from smoothed
    images.
    """
    science, template = (ndimage.uniform_filter(plane, _SMOOTH) for plane in (planes.science, planes.template))
    ratio = float(np.vdot(science[planes.usable], template[planes.usable]))
    ratio /= max(float(np.vdot(template[planes.usable], template[planes.usable])), 1e-300)
    half = model.kernel_shape[0] // 2
    axis = np.arange(-half, half + 1.0)
    radius2 = axis[:, None] ** 2 + axis[None, :] ** 2
    width = _TAP * abs(ratio) * (1 + radius2 / (0.5 * fwhm) ** 2) ** -1.5
    of_pixels = [width * (1.0 if i + j == 0 else _VARIATION) for i, j in exponents(model.kernel_order)]
    deviations = np.append(np.ravel(of_pixels), model.wings * [_WING_LIGHT * abs(ratio)])
    assert planes.variance is not None
    return float(np.mean(planes.variance[planes.usable])) / np.maximum(deviations, 1e-12) ** 2


def _pixels(
    usable: BoolArray, xy: Float64Array, fwhm: float, options: SfftOptions, *, needed: int
) -> tuple[BoolArray | None, Table]:
    """Return the boxes that are fitted (None: all pixels), and the usable sources in them."""
    size = max(4, round(_BOX * fwhm))
    sources = Table({"x": xy[:, 0], "y": xy[:, 1]})
    region, _ = object_region(sources, ~usable, Boxes(size, _CELLS, _PER_CELL))
    chosen = [k for k, (x, y) in enumerate(np.rint(xy).astype(int)) if _inside(region, x, y) and usable[y, x]]
    stars = sources[chosen]
    stars["snr"], stars["chi2"], stars["used"] = np.full(len(stars), np.nan), np.nan, True
    if options.pixels == "auto":
        covered, _ = object_region(sources, ~usable, Boxes(size, grid=1, per_cell=None))
        if (covered & usable).sum() > _CROWDED * usable.sum():
            return None, stars
    if options.pixels == "all" or np.count_nonzero(region & usable) < needed:
        return None, stars
    return region, stars


def _inside(region: BoolArray, x: int, y: int) -> bool:
    ny, nx = region.shape
    return bool(0 <= x < nx and 0 <= y < ny and region[y, x])


def _quality(fit: DeltaFit, planes: FitPlanes) -> tuple[Float64Array, float]:
    """Return chi^2 of each pixel (0 where it took no part), and their mean."""
    assert planes.variance is not None
    assert planes.template_variance is not None
    variance = planes.variance + fit.design.convolved_variance(fit.unknowns, planes.template_variance)
    chi2 = np.where(fit.used, fit.residual**2 / variance, 0.0)
    return chi2, float(chi2.sum() / max(np.count_nonzero(fit.used), 1))


def _box_chi2(stars: Table, chi2: Float64Array, half: int) -> Any:
    """Return the mean chi^2 within so many pixels of each star."""
    used = ndimage.uniform_filter((chi2 > 0).astype(np.float64), 2 * half + 1, mode="constant")
    mean = ndimage.uniform_filter(chi2, 2 * half + 1, mode="constant") / np.maximum(used, 1e-9)
    x, y = (np.rint(np.asarray(stars[name])).astype(int) for name in ("x", "y"))
    return mean[y, x]
