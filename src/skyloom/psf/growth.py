"""The part of a star's light that a circle sees, with the wings beyond the stamp of its PSF."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from skyloom.psf.model import stamp_fwhm

Array = npt.NDArray[np.float64]

_INNER = 0.6
"""Radius, in FWHM, beyond which the profile is that of a wing: cores may be of another shape."""
_PARAMETERS = 4
"""Of the profile: a, alpha, beta and the level."""
_MODEL_ERROR = 0.03
"""Relative error of the profile: what a Moffat profile may miss."""


def circle_share(stamp: npt.ArrayLike, radius: float, ring: tuple[float, float]) -> float | None:
    """Return the sum over a circle around a star, less the mean of a ring times its area, over all light of the star.

    The wings beyond the stamp follow from a Moffat profile a (1 + r^2 / alpha^2)^-beta, fitted with a level to the mean
    of the stamp at each radius: its light beyond r is pi a alpha^2 / (beta - 1) (1 + r^2 / alpha^2)^(1 - beta).

    Parameters
    ----------
    stamp : array_like, shape (n, n), n odd
        The PSF, centred on the middle pixel.
    radius : float
        Of the circle, pixels.
    ring : (float, float)
        Inner and outer radius of the ring, pixels; at least `radius`.

    Returns
    -------
    float or None
        None of a stamp too small to tell of the wings: four radii beyond 0.6 FWHM are needed for their profile.
    """
    values = np.asarray(stamp, np.float64)
    half = values.shape[0] // 2
    distance = np.hypot(*np.mgrid[-half : half + 1, -half : half + 1])
    inside = distance <= half
    number = distance[inside].astype(np.int64)
    count = np.bincount(number)
    mean = np.bincount(number, values[inside]) / count
    scatter = np.sqrt(np.maximum(np.bincount(number, values[inside] ** 2) / count - mean**2, 0) / count)
    at = np.bincount(number, distance[inside]) / count
    wing = at > _INNER * stamp_fwhm(values)
    if np.count_nonzero(wing) < _PARAMETERS:
        return None
    error = np.hypot(scatter, _MODEL_ERROR * np.abs(mean))[wing] + 1e-9 * values.max()
    beyond, level = _wings(at[wing], mean[wing], error, stamp_fwhm(values))

    def within(r: float) -> float:
        return float(((values - level) * np.clip(r + 0.5 - distance, 0.0, 1.0)).sum())

    total = within(half) + beyond(half)
    known = within(radius) if radius <= half else total - beyond(radius)
    surface = (beyond(ring[0]) - beyond(ring[1])) / (ring[1] ** 2 - ring[0] ** 2)
    return (known - surface * radius**2) / total


def _wings(radius: Array, profile: Array, error: Array, fwhm: float) -> tuple[Callable[[float], float], float]:
    """Fit the profile of the wings; return their light beyond a radius, and the level."""

    def solve(shape: Array) -> tuple[Array, Array]:
        # amplitude and level are linear: solved for at every step (variable projection)
        wing = (1 + (radius / np.exp(shape[0])) ** 2) ** -(1.1 + np.exp(shape[1]))
        basis = np.stack([wing, np.ones_like(wing)], axis=1) / error[:, None]
        found: Array = np.linalg.lstsq(basis, profile / error)[0].astype(np.float64)
        return found, basis @ found - profile / error

    start, width = np.log([fwhm, 1.9]), np.log([4.0, 5.0])
    shape = least_squares(lambda p: solve(p)[1], start, bounds=(start - width, start + width)).x
    (amplitude, level), alpha, beta = solve(shape)[0], float(np.exp(shape[0])), float(1.1 + np.exp(shape[1]))
    light = max(float(amplitude), 0.0) * np.pi * alpha**2 / (beta - 1)
    return lambda r: float(light * (1 + (r / alpha) ** 2) ** (1 - beta)), float(level)
