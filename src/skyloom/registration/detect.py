"""Find the sources of one image: positions, fluxes and shapes, through sep (Bertin & Arnouts 1996; Barbary 2016)."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt
import sep
from astropy.table import Table

from skyloom.background import MAD_TO_SIGMA
from skyloom.errors import InputError, NoUsableDataError, SkyloomWarning, TooFewSourcesError
from skyloom.exposure import UNUSABLE, BoolArray, Exposure, FloatArray, MaskBit
from skyloom.extraction import extract
from skyloom.registration.stamps import FWHM_PER_SIGMA, Photometry, pair_ratios, photometry, widths

log = logging.getLogger("skyloom.registration")

Float = npt.NDArray[np.float64]

"""sep keeps its buffer sizes in global variables: one extraction at a time may change them."""

_DEAD = UNUSABLE & ~MaskBit.SATURATED
"""Bits that hide a pixel from detection: a saturated star is still a star."""

_LARGE = 2**22
"""Pixels of an image of which a part is enough to know the background."""

_LARGEST_SIGMA = 20.0

_CORE_WINDOW, _NARROWEST_WINDOW = 0.5, 0.8
"""Window for the FWHM, in units of a star's width, and its least in pixels. For a Moffat profile of beta 2.5 to 5 it
gives the true FWHM to 3 %, where a window of the star's own width is 7 to 16 % too wide."""

_SMALLEST_SIGMA = 0.6
"""Pixels. No optical star is narrower than FWHM 1.4 px after integration over pixels."""

WHERE = "register: --threshold, difference: --star-threshold, Python: RegistrationOptions.threshold"
LOWER = f"lower the threshold for stars ({WHERE})"


_FILTER = np.array([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])
"""Smoothing before detection; sep divides it by its sum."""

_FILTER_NOISE = float(np.sqrt((_FILTER**2).sum()) / _FILTER.sum())
"""White noise after the filter, in units of the noise before."""


@dataclass(frozen=True)
class _Extraction:
    threshold: float
    min_area: int
    deblend_contrast: float


class SourceFlag(IntFlag):
    """Bits of a source's ``flag``, with the values of SExtractor's FLAGS."""

    BLENDED = 2
    """Was one with a neighbour before deblending."""
    SATURATED = 4
    """A pixel near the peak is saturated: the position is a guess."""
    TRUNCATED = 8
    """Reaches the border, or an unusable pixel next to the peak."""


def detect_sources(
    exposure: Any,
    *,
    threshold: float = 5.0,
    min_area: int = 5,
    box: int | None = None,
    deblend_contrast: float = 0.005,
    max_sources: int | None = None,
    positions: str = "windowed",
) -> Table:
    """Detect sources and measure their positions with a Gaussian window, or by fits of the PSF.

    Unusable pixels take no part, save the saturated ones: a saturated star is kept and flagged. Hot pixels and
    cosmic-ray tracks are dropped: across a star of Gaussian width sigma, the mean of two opposite neighbours of the
    peak pixel is at least exp(-1 / (2 sigma^2)) of the peak for any position within the pixel; across a track it is 0.

    Parameters
    ----------
    exposure : Exposure, or what `skyloom.io.read` accepts
        The image. Its variance, where given, sets the noise; else the scatter of the background does.
    threshold : float
        Detection limit per pixel after a 3x3 filter, in units of the noise.
    min_area : int
        Pixels above the limit that make a source.
    box : int, optional
        Side of the background's boxes in pixels; the default is 64, or a quarter of a smaller image.
    deblend_contrast : float
        Share of the flux that a branch needs to become a source of its own.
    max_sources : int, optional
        Keep only so many of the brightest.
    positions : {'windowed', 'psf'}
        'psf', for crowded fields: the PSF, measured from the image's own stars, is fitted to all sources at once, which
        gives x, y, flux and their errors where it converges. Saturated and truncated sources keep what the window says.

    Returns
    -------
    Table
        Sorted by decreasing flux, with ``meta["shape"]`` (ny, nx) and ``meta["name"]``:

        ``x, y``           windowed position, 0-based pixels; ``x_err, y_err`` its standard error
        ``flux, flux_err`` flux in a Gaussian window as wide as the image's own stars (to a common factor), or by PSF
        ``fwhm``           full width at half maximum of the core, pixels
        ``a, b, theta``    isophotal rms axes (pixels) and angle (radians, from x towards y)
        ``peak``           highest pixel above the background
        ``snr``            flux / flux_err
        ``flag``           bits of `SourceFlag`

    Raises
    ------
    InputError
        The threshold is not a finite number above 0, or `positions` is unknown.
    NoUsableDataError
        All pixels are masked, or all usable ones have the same value.
    TooFewSourcesError
        Nothing is above the limit, or nothing that is looks like a source.
    """
    if not 0 < threshold < np.inf:
        raise InputError(f"threshold is {threshold}; a finite number of standard deviations above 0 is needed.")
    if positions not in ("windowed", "psf"):
        raise InputError(f"positions is {positions!r}; it must be 'windowed' or 'psf'.", positions=positions)
    if not isinstance(exposure, Exposure):
        from skyloom.io import read

        exposure = read(exposure)
    data, dead = _plane(exposure)
    noise = _subtract_background(exposure, data, dead, box)
    sky_free = data
    if dead is not None:
        sky_free[dead] = 0.0
    found = _extract(sky_free, noise, dead, _Extraction(threshold, min_area, deblend_contrast), exposure.name)
    found = found[np.argsort(-found["flux"], kind="stable")]
    found, sigma = _drop_artefacts(found, sky_free, noise, dead, name=exposure.name)
    if max_sources is not None:
        found = found[:max_sources]
    xy = _windowed_positions(found, sky_free, dead, sigma)
    light = photometry(sky_free, noise, dead, xy, sigma, gain=exposure.gain)
    fwhm = widths(sky_free, dead, xy, max(_CORE_WINDOW * sigma, _NARROWEST_WINDOW))
    flag = _flags(found, exposure)
    if positions == "psf":
        xy, light = _fitted(sky_free, noise, dead, xy, light, flag=flag, exposure=exposure)
    order = np.argsort(-light.flux, kind="stable")
    order = order[light.flux[order] > 0]
    if not len(order):
        raise TooFewSourcesError(
            f"{exposure.name} has no source with a positive flux; {LOWER} (now {threshold:g}) or check the background.",
            name=exposure.name,
            found=0,
        )
    columns: dict[str, npt.NDArray[Any]] = {
        "x": xy[:, 0],
        "y": xy[:, 1],
        "x_err": light.xy_err,
        "y_err": light.xy_err,
        "flux": light.flux,
        "flux_err": light.flux_err,
        "fwhm": fwhm,
        "a": found["a"].astype(np.float64),
        "b": found["b"].astype(np.float64),
        "theta": found["theta"].astype(np.float64),
        "peak": found["peak"].astype(np.float64),
        "snr": light.flux / light.flux_err,
        "flag": flag,
    }
    table = Table(
        {name: column[order] for name, column in columns.items()}, meta={"name": exposure.name, "shape": exposure.shape}
    )
    log.debug("%s: %d sources, FWHM %.2f px", exposure.name, len(table), sigma * FWHM_PER_SIGMA)
    return table


def image_fwhm(sources: Table) -> float:
    """Return the typical FWHM of the stars in pixels: clipped median over bright, clean, round sources.

    Parameters
    ----------
    sources : Table
        From `detect_sources`.

    Raises
    ------
    TooFewSourcesError
        The table is empty.
    """
    if len(sources) == 0:
        raise TooFewSourcesError("The table of sources is empty; at least one is needed to measure the FWHM.", found=0)
    fwhm, snr, flag = (np.asarray(sources[name]) for name in ("fwhm", "snr", "flag"))
    round_ = np.asarray(sources["b"]) > 0.6 * np.asarray(sources["a"])
    for good in ((flag == 0) & (snr > 20) & round_, (flag == 0) & (snr > 8), np.ones(len(fwhm), bool)):
        if good.sum() >= 5:
            break
    values = fwhm[good][:200]
    for _ in range(5):
        middle = np.median(values)
        spread = MAD_TO_SIGMA * np.median(np.abs(values - middle))
        values = values[np.abs(values - middle) <= 3 * spread + 1e-9]
    return float(np.median(values))


def _plane(exposure: Exposure) -> tuple[FloatArray, BoolArray | None]:
    """Return writable data and the pixels that detection must not see, None if it may see all."""
    dead: BoolArray | None = None
    if exposure.mask.max() > 0:
        hidden = (exposure.mask & np.uint32(_DEAD)) != 0
        dead = hidden if hidden.any() else None
    live = exposure.data if dead is None else exposure.data[~dead]
    if live.size == 0:
        raise NoUsableDataError(
            f"{exposure.name} has no usable pixel: all {exposure.data.size} are masked or not finite, in "
            "themselves or in their variance.",
            name=exposure.name,
            usable=0,
        )
    if live.min() == live.max():
        raise NoUsableDataError(
            f"All usable pixels of {exposure.name} have the value {live.flat[0]:g}; an image with sources is needed.",
            name=exposure.name,
            value=float(live.flat[0]),
        )
    return exposure.data.copy(), dead


def _subtract_background(exposure: Exposure, data: FloatArray, dead: BoolArray | None, box: int | None) -> FloatArray:
    """Subtract the background from `data`, in place, and return the noise of each pixel, (ny, nx).

    Of a large image every third row is looked at: the level of a box of 64 x 64 pixels is still known to 0.04 of the
    noise, before the median of 3 x 3 boxes. An odd step sees rows that are read out by turns alike.
    """
    if box is None:
        box = int(min(64, max(8, min(exposure.shape) // 4)))
    ny = exposure.shape[0]
    step = 1 if data.size < _LARGE else 3
    rows = np.ascontiguousarray(data[::step])
    hidden = None if dead is None else np.ascontiguousarray(dead[::step])
    background = sep.Background(rows, mask=hidden, bw=box, bh=-(-box // step))

    level = background.back(dtype=data.dtype)
    for first in range(step):
        data[first::step] -= level[: len(range(first, ny, step))]
    noise: FloatArray
    if exposure.variance is None:
        noise = np.repeat(background.rms(dtype=data.dtype), step, axis=0)[:ny]
    else:
        root: Any = np.sqrt(exposure.variance * data.dtype.type(exposure.correlation))
        noise = root.astype(data.dtype, copy=False)
    if not noise.min() > 0:
        # boxes of constant pixels (padding that nobody masked) have no noise: nothing there may count as detected
        floor = (
            background.globalrms if background.globalrms > 0 else float(np.std(data if dead is None else data[~dead]))
        )
        noise[~(noise > 0)] = floor
    return noise


def _extract(
    data: FloatArray, noise: FloatArray, dead: BoolArray | None, options: _Extraction, name: str
) -> npt.NDArray[Any]:
    """Return the sources of an image, at least one."""
    found = extract(
        data,
        options.threshold * _FILTER_NOISE,
        name=name,
        err=noise,
        mask=dead,
        minarea=options.min_area,
        filter_kernel=_FILTER,
        filter_type="conv",
        deblend_cont=options.deblend_contrast,
    )
    found = found[np.isfinite(found["x"] + found["y"] + found["flux"] + found["a"] + found["b"])]
    if len(found) == 0:
        raise TooFewSourcesError(
            f"{name} has no source above {options.threshold:g} times its noise; check the image or {LOWER}.",
            name=name,
            found=0,
        )
    return found


def _drop_artefacts(
    found: npt.NDArray[Any], data: FloatArray, noise: FloatArray, dead: BoolArray | None, *, name: str
) -> tuple[npt.NDArray[Any], float]:
    """Drop what is sharper than the optics allow; return the rest and the Gaussian width of a star."""
    # A flat (saturated) core has ratio 1 and passes.
    across, diagonal, error = pair_ratios(data, noise, found["xpeak"], found["ypeak"])

    def too_sharp(sigma: float) -> BoolArray:
        return (across < 0.5 * np.exp(-0.5 / sigma**2) - 2 * error) | (
            diagonal < 0.5 * np.exp(-1.0 / sigma**2) - 2 * error
        )

    keep = ~too_sharp(_SMALLEST_SIGMA)
    if not keep.any():
        raise TooFewSourcesError(
            f"All {len(found)} detections of {name} are sharper than a star can be (hot pixels or cosmic rays).",
            name=name,
            found=0,
            artefacts=len(found),
        )
    sigma, sharpest = _star_width(found[keep], data, dead)
    keep &= ~too_sharp(min(0.8 * sharpest, 2.0))
    return (found[keep], sigma) if keep.any() else (found, sigma)


def _star_width(found: npt.NDArray[Any], data: FloatArray, dead: BoolArray | None) -> tuple[float, float]:
    """Return the typical Gaussian width of the brighter sources and the lower quartile of their widths.

    The window is refined until it is as wide as what is seen through it: only then does it take the same share of a
    star's flux in sharp and in blurred images, for any profile. Blends only ever broaden, which the quartile resists.
    """
    bright = found[np.argsort(-found["cpeak"], kind="stable")][: max(10, min(400, len(found) // 3))]
    peak = np.column_stack([bright["xpeak"], bright["ypeak"]]).astype(np.float64)
    centre = np.column_stack([bright["x"], bright["y"]]).astype(np.float64)
    # of a blend, the peak is a star and the centre is nowhere
    xy = np.where(np.abs(centre - peak).max(axis=1, keepdims=True) > 1.0, peak, centre)
    sigma = float(np.median(np.sqrt(np.maximum(bright["a"] * bright["b"], 0.0))))
    low = sigma
    for _ in range(4):
        sigma = float(np.clip(sigma, _SMALLEST_SIGMA, _LARGEST_SIGMA))
        low, sigma = np.quantile(widths(data, dead, xy, sigma), [0.25, 0.5]) / FWHM_PER_SIGMA
    return float(np.clip(sigma, _SMALLEST_SIGMA, _LARGEST_SIGMA)), float(np.clip(low, _SMALLEST_SIGMA, _LARGEST_SIGMA))


def _windowed_positions(found: npt.NDArray[Any], data: FloatArray, dead: BoolArray | None, sigma: float) -> Float:
    """Return windowed centroids; the isophotal one where the window wandered off to a neighbour."""
    start = np.column_stack([found["x"], found["y"]]).astype(np.float64)
    x, y, flag = sep.winpos(data, start[:, 0], start[:, 1], sigma, mask=dead, subpix=1)
    xy = np.column_stack([x, y])
    moved = np.hypot(*(xy - start).T)
    usable = np.isfinite(moved) & (moved < max(0.5, 0.6 * sigma)) & ((flag & sep.APER_ALLMASKED) == 0)
    return np.where(usable[:, None], xy, start)


def _fitted(
    data: FloatArray,
    noise: FloatArray,
    dead: BoolArray | None,
    xy: Float,
    light: Photometry,
    *,
    flag: npt.NDArray[np.int32],
    exposure: Exposure,
) -> tuple[Float, Photometry]:
    """Return positions and fluxes of PSF fits; those of the window, scaled to the same fluxes, where there are none."""
    from skyloom.psf.estimate import estimate_psf_of_planes
    from skyloom.registration.psf_positions import fit_stars

    usable = np.ones(data.shape, bool) if dead is None else ~dead
    try:
        psf = estimate_psf_of_planes(data, np.square(noise), usable, fallback="moffat", name=exposure.name)
    except TooFewSourcesError as error:
        warnings.warn(f"No PSF can be fitted: {error} The positions are windowed ones.", SkyloomWarning, stacklevel=4)
        return xy, light
    gain = exposure.gain if exposure.variance is None else None
    fitted = fit_stars(data, noise, dead, xy, psf, gain=gain)
    bad = int(SourceFlag.SATURATED | SourceFlag.TRUNCATED)
    use = fitted.good & ((flag & bad) == 0)
    if not use.any():
        return xy, light
    scale = float(np.median(fitted.flux[use] / np.maximum(light.flux[use], 1e-100)))
    return np.where(use[:, None], fitted.xy, xy), Photometry(
        np.where(use, fitted.flux, scale * light.flux),
        np.where(use, fitted.flux_err, scale * light.flux_err),
        np.where(use, fitted.xy_err, light.xy_err),
    )


def _flags(found: npt.NDArray[Any], exposure: Exposure) -> npt.NDArray[np.int32]:
    """Translate sep's flags and look for saturated and dead pixels next to the peak."""
    flag = np.where(found["flag"] & sep.OBJ_MERGED, int(SourceFlag.BLENDED), 0)
    flag |= np.where(found["flag"] & sep.OBJ_TRUNC, int(SourceFlag.TRUNCATED), 0)
    ny, nx = exposure.shape
    step = np.arange(-2, 3)
    rows = np.clip(found["ypeak"][:, None, None] + step[:, None], 0, ny - 1)
    cols = np.clip(found["xpeak"][:, None, None] + step, 0, nx - 1)
    bits = np.bitwise_or.reduce(exposure.mask[rows, cols], axis=(1, 2))
    flag |= np.where(bits & np.uint32(MaskBit.SATURATED), int(SourceFlag.SATURATED), 0)
    flag |= np.where(bits & np.uint32(_DEAD), int(SourceFlag.TRUNCATED), 0)
    return flag.astype(np.int32)
