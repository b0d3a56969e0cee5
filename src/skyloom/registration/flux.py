"""The flux ratio of two registered images, from sums of the same circles on the sky.

Fluxes through windows as wide as each image's own stars compare two images only if their PSFs are scaled copies of one
another, and if no neighbour is in the window. A wide circle around a star less the mean of a ring around it is one
linear measure of the sky, the same for both images, whatever else lies in it: what neighbours add, they add to both in
the ratio that is looked for. What the seeing moves across the edge of the circle is small where that is wide; several
circles and the PSFs tell it together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skyloom.background import MAD_TO_SIGMA
from skyloom.exposure import Exposure
from skyloom.registration.result import Registration

Float = npt.NDArray[np.float64]
Share = Callable[[float, tuple[float, float]], float | None]

_RADIUS = 2.5
"""Radius of the circle in units of the wider FWHM: a Moffat profile of beta 3 has 98 % of its light inside."""

_RADII = 2.0, 2.5, 3.0, 3.5
"""Radii, in the same unit, of circles that together tell what light lies beyond."""

_RING = 1.5, 2.0
"""Radii of the ring that tells the sky, in units of the circle's."""

_MOST, _FEWEST = 100, 5
"""Brightest stars that are measured, and how many must remain."""

_COMMON = 10
"""Stars that circles of several radii must have in common."""

_LEAST_SNR = 15.0
"""Of a star's light in both circles: the ratio of noisier ones would be pulled by their own noise in the weights."""


@dataclass(frozen=True)
class FluxRatio:
    """Ratio of the fluxes of stars, its standard error, and the number of stars."""

    value: float
    error: float
    n_stars: int


@dataclass(frozen=True, eq=False)
class _Light:
    """Sums over circles, their variances, and where they could be taken."""

    flux: Float
    variance: Float
    good: npt.NDArray[np.bool_]


def flux_ratio(
    registration: Registration,
    source: Exposure,
    template: Exposure,
    fwhm: tuple[float, float],
    *,
    shares: tuple[Share, Share] | None = None,
) -> FluxRatio | None:
    """Return the flux of stars in the source image over that in the template.

    Parameters
    ----------
    registration : Registration
        The match of the two images.
    source, template : Exposure
        The images.
    fwhm : (float, float)
        Width of the stars of each (`skyloom.registration.image_fwhm`), its own pixels.
    shares : (callable, callable), optional
        For each image, the part of a star's light that is measured, ``share(radius, ring)`` with the radius of the
        circle and the radii of the ring, its own pixels, None if it is not known: see
        `skyloom.psf.growth.circle_share`. By default the same for both: right for PSFs of about the same shape.

    Returns
    -------
    FluxRatio or None
        None where fewer than five stars can be measured: near masked pixels, at the border, or too faint.
    """
    matched = registration.matched
    if "flux_template" in matched.colnames:
        matched = matched[np.argsort(-np.asarray(matched["flux_template"]), kind="stable")]
    images = (source, "source", registration.scale), (template, "template", 1.0)
    wider = max(fwhm[0] / registration.scale, fwhm[1])

    def lights(radius: float) -> tuple[list[_Light], npt.NDArray[np.bool_]]:
        found = [
            _circles(image, np.column_stack([matched[f"x_{name}"], matched[f"y_{name}"]])[:_MOST], radius * scale)
            for image, name, scale in images
        ]
        return found, np.all([one.good & (one.flux > _LEAST_SNR * np.sqrt(one.variance)) for one in found], axis=0)

    if shares is not None:
        rings = [[(r * wider * scale * np.array([1.0, *_RING])) for _, _, scale in images] for r in _RADII]
        seen = [[share(one[0], (one[1], one[2])) for share, one in zip(shares, pair, strict=True)] for pair in rings]
        expected = [np.log(s / t) for s, t in seen if s is not None and t is not None]
        if len(expected) == len(_RADII):
            found = _extrapolated([lights(r * wider) for r in _RADII], np.array(expected))
            if found is not None:
                return found
    both, good = lights(_RADIUS * wider)
    return _ratio(both, good) if good.sum() >= _FEWEST else None


def _ratio(both: list[_Light], good: npt.NDArray[np.bool_]) -> FluxRatio:
    """Fit the ratio of the lights in two images."""
    s, t = both
    return _fit(s.flux[good], s.variance[good], t.flux[good], t.variance[good])


def _extrapolated(found: list[tuple[list[_Light], npt.NDArray[np.bool_]]], expected: Float) -> FluxRatio | None:
    """Return the ratio that several circles lead to; None if they have too few stars in common.

    Of a star, circle i sees the shares S_i and T_i in the two images, so that ln(ratio_i) = ln(beta) + g_i, with g_i =
    ln(S_i / T_i). As PSFs know their wings badly, the same stars tell by a straight line through the ratios of all
    circles how much of the g_i is true: between nothing and all. The error of that part, a number from 0 to 1, is that
    of the line's slope, and at most that of a number of which nothing is known.
    """
    number = len(found)
    while number > 1 and np.all([good for _, good in found[:number]], axis=0).sum() < _COMMON:
        number -= 1
    if number < 2:
        return None
    good = np.all([one for _, one in found[:number]], axis=0)
    ratios = [_ratio(both, good) for both, _ in found[:number]]
    value = np.log([one.value for one in ratios])
    weight = np.array([(one.value / one.error) ** 2 for one in ratios])
    total = weight.sum()
    weight /= total
    middle = weight @ expected[:number]
    away = expected[:number] - middle
    spread = weight @ away**2
    slope = float(np.clip(weight @ (away * value) / spread, 0.0, 1.0)) if spread > 0 else 0.0
    slope_variance = 1 / max(total * spread, 12.0)  # 1 / 12: that of a number anywhere between 0 and 1
    beta = float(np.exp(weight @ value - slope * middle))
    best = ratios[min(number - 1, 1)]
    error = float(np.hypot(best.error / best.value, middle * np.sqrt(slope_variance)))
    return FluxRatio(beta, beta * error, best.n_stars)


def _circles(image: Exposure, xy: Float, radius: float) -> _Light:
    """Sum the light of circles above the rings around them.

    A masked pixel outside of the core takes the value at the opposite side of the star; where that is masked, too, or
    the core is, there is no sum.
    """
    half = int(np.ceil(_RING[1] * radius)) + 1
    ny, nx = image.shape
    at = np.rint(xy).astype(np.int64)
    good: npt.NDArray[np.bool_] = np.all((at >= half) & (at < np.array([nx, ny]) - half), axis=1)
    step = np.arange(-half, half + 1)
    centre = np.where(good[:, None], at, half if min(nx, ny) > 2 * half else 0)
    rows = np.clip(centre[:, 1, None, None] + step[:, None], 0, ny - 1)
    columns = np.clip(centre[:, 0, None, None] + step, 0, nx - 1)
    value = image.data[rows, columns].astype(np.float64)
    usable: npt.NDArray[np.bool_] = np.asarray(image.usable)[rows, columns]
    away = xy - at
    distance = np.hypot(step[:, None] - away[:, 1, None, None], step - away[:, 0, None, None])
    inside = np.clip(radius + 0.5 - distance, 0.0, 1.0)
    opposite = usable[:, ::-1, ::-1]
    lost = ~usable & ((distance < radius / _RADIUS) | ~opposite) & (inside > 0)
    value = np.where(usable, value, np.where(opposite, value[:, ::-1, ::-1], 0.0))
    ring = usable & (distance >= _RING[0] * radius) & (distance <= _RING[1] * radius)
    n_ring = ring.sum(axis=(1, 2))
    good &= ~lost.any(axis=(1, 2)) & (n_ring > np.pi * radius**2 / 2)
    sky = np.where(ring, value, 0.0).sum(axis=(1, 2)) / np.maximum(n_ring, 1)
    flux = ((value - sky[:, None, None]) * inside).sum(axis=(1, 2))
    spread = MAD_TO_SIGMA * np.array(
        [np.median(np.abs(v[r] - np.median(v[r]))) if r.any() else np.inf for v, r in zip(value, ring, strict=True)]
    )
    area = inside.sum(axis=(1, 2))
    variance = spread**2 * (area + area**2 / np.maximum(n_ring, 1))
    if image.gain:
        variance += np.maximum(flux, 0.0) / image.gain
    return _Light(flux, np.where(good, variance, np.inf), good)


def _fit(s: Float, s_variance: Float, t: Float, t_variance: Float) -> FluxRatio:
    """Fit s = beta t, both with errors and a scatter in proportion to the flux, without outliers.

    The effective-variance solution (York 1966, Canadian J. Phys. 44, 1079, for a line through the origin): with weights
    w = 1 / (var_s + beta^2 var_t) and the adjusted t* = w (t var_s + beta s var_t), beta = sum(w s t*) / sum(w t t*).
    The scatter is what makes the median of abs(s - beta t) sqrt(w) that of a normal deviate; outliers are beyond 4 of
    these.
    """
    beta = float(np.median(s / t))
    keep = np.ones(len(s), bool)
    for _ in range(20):
        model = 0.5 * (t + s / beta)
        scatter = _scatter(s - beta * t, s_variance + beta**2 * t_variance, beta * model, keep)
        own_s, own_t = s_variance + 0.5 * (scatter * beta * model) ** 2, t_variance + 0.5 * (scatter * model) ** 2
        weight = 1 / (own_s + beta**2 * own_t)
        keep = np.abs(s - beta * t) * np.sqrt(weight) < 4
        adjusted = weight * (t * own_s + beta * s * own_t)
        w = np.where(keep, weight, 0.0)
        before, beta = beta, float((w * s * adjusted).sum() / (w * t * adjusted).sum())
        if abs(beta / before - 1) < 1e-7:
            break
    return FluxRatio(beta, float(1 / np.sqrt((w * adjusted**2).sum())), int(keep.sum()))


def _scatter(miss: Float, variance: Float, flux: Float, keep: npt.NDArray[np.bool_]) -> float:
    """Return the relative scatter, 1 at most, that explains the median of the misses beside their variances."""
    square = np.median(((MAD_TO_SIGMA * miss[keep]) ** 2 - variance[keep]) / flux[keep] ** 2)
    return float(np.sqrt(np.clip(square, 0.0, 1.0)))
