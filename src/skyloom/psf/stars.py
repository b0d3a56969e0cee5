"""Choose the stars from which a point spread function can be measured."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import sep
from scipy.spatial import cKDTree

from skyloom.errors import InputError
from skyloom.extraction import extract

Array = npt.NDArray[np.float64]
Plane = npt.NDArray[Any]

CELLS = 4
"""Stars are taken in turn from CELLS x CELLS parts of the image, so that its variation is sampled everywhere."""


@dataclass(frozen=True)
class SourceField:
    """The sources of an image, and which of them are good stars.

    Parameters
    ----------
    x, y : ndarray, shape (N,)
        Positions, pixels.
    flux : ndarray, shape (N,)
        Fluxes, data units.
    stars : ndarray of int, shape (n_stars,)
        Indices of the good stars, best first.
    fwhm : float
        Typical full width at half maximum of the stars, pixels.
    counts : dict
        How many sources passed each test, for messages.
    """

    x: Array
    y: Array
    flux: Array
    stars: npt.NDArray[np.intp]
    fwhm: float
    counts: dict[str, int]


FOUND = 10.0
"""Standard deviations of the smoothed image from which on there is a source. Fainter ones are left to the rings around
stars: nobody finds them beneath a star, whose level would be too low if they were taken out of its ring alone. (In a
field of 1000 stars on 512 x 512 pixels fluxes are 0.44 % off with 5, 0.14 +- 0.09 % with 10.)"""
SMOOTHING = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32)
"""What images are smoothed with before sources are detected, of any sum."""
WELL_SAMPLED = 5.0
"""Pixels: larger apertures see pixels that are small beside the radius of half of the light."""
MEASURED = 600
"""So many sources, the brightest, have their size measured."""


def half_sample_mode(values: Array) -> float:
    """Mode of a sample: the shortest half, again and again (Robertson & Cryer 1974)."""
    values = np.sort(values)
    while values.size > 2:
        half = (values.size + 1) // 2
        widths = values[half - 1 :] - values[: values.size - half + 1]
        start = int(np.argmin(widths))
        values = values[start : start + half]
    return float(values.mean())


def detect(image: Plane, variance: Plane, usable: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Detect sources `FOUND` sigma above a subtracted background; return an array with the columns of `sep.extract`.

    The deviation is that of the smoothed image, of noise that changes little over three pixels.
    """
    return _extract(image, _deviation(variance, usable), usable)


def _deviation(variance: Plane, usable: npt.NDArray[np.bool_]) -> Plane:
    """Return the standard deviation of the pixels, 1 where unusable."""
    return np.sqrt(variance, out=np.ones_like(variance), where=usable)


def _extract(image: Plane, sigma: Plane, usable: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    threshold = FOUND * float(np.sqrt((SMOOTHING**2).sum()) / SMOOTHING.sum())
    mask = None if usable.all() else ~usable
    smoothing: dict[str, Any] = {"filter_type": "conv", "filter_kernel": SMOOTHING}
    return extract(image, threshold, err=sigma, mask=mask, minarea=5, deblend_cont=0.001, **smoothing)


def source_columns(sources: Any) -> tuple[Array, Array, Array | None]:
    """Return x, y and flux (None without such a column) of a table or a structured array."""
    names = getattr(sources, "colnames", None) or getattr(getattr(sources, "dtype", None), "names", None) or ()
    if "x" not in names or "y" not in names:
        raise InputError(f"The sources have the columns {tuple(names)}; 'x' and 'y' (0-based pixels) are needed.")
    flux = np.asarray(sources["flux"], float) if "flux" in names else None
    return np.asarray(sources["x"], float), np.asarray(sources["y"], float), flux


def in_flux_unit(sources: Any, unit: float) -> Any:
    """Return a table of sources (or None) whose fluxes, if it has any, are those in another unit."""
    if sources is None or source_columns(sources)[2] is None:
        return sources
    changed = copy.copy(sources)
    changed["flux"] = np.asarray(sources["flux"], float) / unit
    return changed


def nearest(x: Array, y: Array, sources: Any) -> Array:
    """Return the distance of positions from the nearest of some sources; infinity without any."""
    found = np.column_stack(source_columns(sources)[:2])
    found = found[np.isfinite(found).all(axis=1)]
    return np.asarray(cKDTree(found).query(np.column_stack([x, y]))[0]) if len(found) else np.full(x.size, np.inf)


def choose_stars(
    image: Plane,
    variance: Plane,
    usable: npt.NDArray[np.bool_],
    sources: Any,
    *,
    max_stars: int,
    stars: Any = None,
) -> SourceField:
    """Choose isolated, unmasked, well exposed sources of the stars' size.

    Stars share one half-light radius: the mode of the radii of all well exposed sources. Kept are sources within 15
    % of it (plus what noise explains), without unusable pixels in their core, and to which neighbours add, at the
    border of their core, less than a twentieth of their peak. In crowded fields, where fewer than max_stars / 4 (at
    least 20) of them pass that last test, the limit is what so many pass.

    Parameters
    ----------
    image, variance : ndarray, shape (ny, nx), float32 or float64
        Background-subtracted data and variance.
    usable : ndarray of bool, shape (ny, nx)
    sources : table or None
        Known sources: columns x, y, optionally flux. None: detect them.
    max_stars : int
        Largest number of stars to choose.
    stars : table, optional
        Columns x, y: only sources within a pixel of one of these are chosen.

    Returns
    -------
    field : SourceField
    """
    sigma, bad = _deviation(variance, usable), None if usable.all() else ~usable
    unusable = None if bad is None else bad.astype(np.float32)
    x, y, flux = source_columns(_extract(image, sigma, usable) if sources is None else sources)
    inside = np.isfinite(x) & np.isfinite(y) & (x > -0.5) & (y > -0.5)
    inside &= (x < image.shape[1] - 0.5) & (y < image.shape[0] - 0.5)
    x, y, flux = x[inside], y[inside], None if flux is None else flux[inside]
    counts = {"sources": int(x.size)}
    if x.size == 0:
        return SourceField(x, y, np.zeros(0), np.zeros(0, np.intp), np.nan, counts)
    eligible = np.ones(x.size, bool) if stars is None else nearest(x, y, stars) < 1

    def half_light_radius(index: npt.NDArray[np.intp], subpix: int) -> Array:
        reach = np.full(index.size, 2 * aperture)
        radius = sep.flux_radius(image, x[index], y[index], reach, 0.5, mask=bad, subpix=subpix)[0]
        return np.asarray(np.where(radius > 0.5, radius, np.nan))

    aperture = 4.0
    for _ in range(4):  # the aperture follows the size of the stars
        light, error, _ = sep.sum_circle(image, x, y, aperture, err=sigma, mask=bad)
        snr = light / np.maximum(error, np.finfo(float).tiny)
        clean = eligible if unusable is None else eligible & (sep.sum_circle(unusable, x, y, aperture / 2)[0] == 0)
        good = clean & (snr > 20)
        if np.count_nonzero(good) < 5:
            good = clean & (snr > 10)
        by_signal = np.flatnonzero(good)[np.argsort(-snr[good], kind="stable")[:MEASURED]]
        # the brightest ones: in crowded fields, neighbours make faint ones look large
        brightest = by_signal[: max(20, by_signal.size // 3)]
        rough = half_light_radius(brightest, 1)
        rough = rough[np.isfinite(rough)]
        if not rough.size:
            return SourceField(x, y, light if flux is None else flux, np.zeros(0, np.intp), np.nan, counts)
        # slowly: in very crowded fields neighbours fill any aperture, and it would grow without end
        before, aperture = aperture, min(max(2.0, 2.5 * half_sample_mode(rough)), 1.5 * aperture)
        if abs(aperture - before) < 0.02 * before:
            break
    radius = np.full(x.size, np.nan)
    radius[by_signal] = half_light_radius(by_signal, 3 if aperture < WELL_SAMPLED else 2)
    good &= np.isfinite(radius)
    typical = half_sample_mode(radius[brightest[good[brightest]]])
    fwhm = 2 * typical
    flux = light if flux is None else flux
    counts["well exposed and unmasked"] = int(np.count_nonzero(good))
    good &= np.abs(radius - typical) < typical * (0.15 + 1.5 / np.maximum(snr, 1))
    counts["of the stars' size"] = int(np.count_nonzero(good))
    contamination = _contamination(x, y, light, fwhm)
    wanted = min(int(np.count_nonzero(good)), max(max_stars // 4, 20))
    limit = max(0.05, float(np.sort(contamination[good])[wanted - 1])) if wanted else 0.05
    good &= contamination <= limit
    counts["isolated"] = int(np.count_nonzero(good))
    return SourceField(x, y, flux, _spread(x, y, snr, good, shape=image.shape, count=max_stars), fwhm, counts)


def _contamination(x: Array, y: Array, flux: Array, fwhm: float) -> Array:
    """Light of the neighbours at the border of each source's core, relative to its own peak (Moffat of beta 3)."""
    tree = cKDTree(np.column_stack([x, y]))
    pairs = tree.query_pairs(5 * fwhm, output_type="ndarray")
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    first, second = pairs[:, 0], pairs[:, 1]
    distance = np.hypot(x[first] - x[second], y[first] - y[second])
    profile = (1 + 4 * (2 ** (1 / 3) - 1) * (np.maximum(distance / fwhm - 0.5, 0)) ** 2) ** -3.0
    light = np.maximum(flux, 0)
    share = np.where(light[first] > 0, light[second] * profile / np.where(light[first] > 0, light[first], 1), np.inf)
    return np.asarray(np.bincount(first, share, minlength=x.size), float)


def _spread(
    x: Array, y: Array, snr: Array, good: npt.NDArray[np.bool_], *, shape: tuple[int, ...], count: int
) -> npt.NDArray[np.intp]:
    """Take the brightest good source of each cell, then the second of each, ..., up to `count`."""
    cell = (CELLS * (x + 0.5) / shape[1]).astype(int) + CELLS * (CELLS * (y + 0.5) / shape[0]).astype(int)
    index = np.flatnonzero(good)
    index = index[np.lexsort((-snr[index], cell[index]))]
    starts = np.searchsorted(cell[index], cell[index])
    rank = np.arange(index.size) - starts
    return index[np.lexsort((-snr[index], rank))][:count]
