"""Elliptical Moffat and Gaussian profiles, and their fit to a stamp."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

Stamp = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """An elliptical Moffat profile ``(1 + r**2 / a**2)**-beta`` (Moffat 1969), or a Gaussian where `beta` is infinite.

    ``r**2 = ((1 - e1) x - e2 y)**2 + ((1 + e1) y - e2 x)**2``, over ``1 - e1**2 - e2**2``; `fwhm` in pixels.
    """

    fwhm: float
    beta: float = np.inf
    e1: float = 0.0
    e2: float = 0.0

    def stamp(self, half: int, dx: float = 0.0, dy: float = 0.0) -> Stamp:
        """Return the profile on a grid of (2 half + 1)**2 pixels, with unit sum."""
        axis = np.arange(-half, half + 1.0)
        values = self.values(axis[None, :] - dx, axis[:, None] - dy)
        return values / values.sum()

    def values(self, x: Stamp, y: Stamp) -> Stamp:
        """Return the profile, 1 at the centre, at offsets (x, y) from it."""
        e1, e2 = self.e1, self.e2
        r2 = (((1 - e1) * x - e2 * y) ** 2 + ((1 + e1) * y - e2 * x) ** 2) / (1 - e1**2 - e2**2)
        if np.isinf(self.beta):
            return np.exp(-4 * np.log(2) * r2 / self.fwhm**2)
        return (1 + 4 * (2 ** (1 / self.beta) - 1) * r2 / self.fwhm**2) ** -self.beta


def fit_profile(
    stamp: Stamp, weight: Stamp, start: float | Profile, *, gaussian: bool = False, level: bool = True
) -> Profile:
    """Fit a profile, its flux, its centre and a constant background to a stamp, by weighted least squares.

    Parameters
    ----------
    stamp, weight : ndarray, shape (n, n), n odd
        Data with the source near the middle, and the inverse variance of each pixel (0: not used).
    start : float or Profile
        First guess; of the FWHM, in pixels, or of all.
    gaussian : bool
        Fit a Gaussian instead of a Moffat profile.
    level : bool
        Whether there may be a background. It takes part of the wings for itself where these are noisy.

    Returns
    -------
    profile : Profile
    """
    half = stamp.shape[0] // 2
    axis = np.arange(-half, half + 1.0)
    root = np.sqrt(weight / weight.max())
    data = (stamp * root).ravel()

    def shape_of(p: npt.NDArray[np.float64]) -> Profile:
        # log-widths keep the FWHM positive, tanh keeps the ellipticity below 0.7
        e1, e2 = 0.7 * np.tanh(p[3:5])
        return Profile(float(np.exp(p[0])), np.inf if gaussian else float(1.1 + np.exp(p[5])), float(e1), float(e2))

    def residual(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        values = shape_of(p).values(axis[None, :] - p[1], axis[:, None] - p[2])
        # flux and background are linear: solved for at every step (variable projection)
        basis = np.stack([(values * root).ravel(), root.ravel()][: 1 + level])
        return np.linalg.solve(basis @ basis.T, basis @ data) @ basis - data

    if not isinstance(start, Profile):
        start = Profile(start, 3.1)
    shape = [float(np.arctanh(e / 0.7)) for e in (start.e1, start.e2)]
    first = np.array([np.log(start.fwhm), 0.0, 0.0, *shape] + ([] if gaussian else [np.log(start.beta - 1.1)]))
    low = np.array([np.log(0.5), -2.0, -2.0, -2.0, -2.0, -3.0][: first.size])
    high = np.array([np.log(4.0 * half), 2.0, 2.0, 2.0, 2.0, 3.0][: first.size])
    first = np.clip(first, low + 1e-6, high - 1e-6)
    result = least_squares(residual, first, bounds=(low, high), x_scale=0.1, ftol=1e-6, xtol=1e-5)
    return shape_of(result.x)
