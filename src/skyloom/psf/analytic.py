"""Elliptical Moffat and Gaussian profiles, and their fit to a stamp."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

Stamp = npt.NDArray[np.float64]


AUREOLE_SLOPE = 1.1
"""Half of the power with which the light of a star falls far out (King 1971, PASP 83, 199, has 1)."""


@dataclass(frozen=True)
class Profile:
    """An elliptical Moffat profile ``(1 + r**2 / a**2)**-beta`` (Moffat 1969), or a Gaussian where `beta` is infinite.

    ``r**2 = ((1 - e1) x - e2 y)**2 + ((1 + e1) y - e2 x)**2``, over ``1 - e1**2 - e2**2``; `fwhm` in pixels. Around it
    is the aureole of real stars, ``aureole (1 + r**2 / fwhm**2)**-1.1``, whose light no seeing tells.
    Fitted to pixels, or to a PSF of one sample a pixel, it holds the blurring by the pixels, and `fwhm` too; for PSFs
    that are sampled more often it is that of the light before the pixels (see `effective_profile`).
    """

    fwhm: float
    beta: float = np.inf
    e1: float = 0.0
    e2: float = 0.0
    aureole: float = 0.0

    def stamp(self, half: int, dx: float = 0.0, dy: float = 0.0, *, oversampling: int = 1) -> Stamp:
        """Return the profile on a grid of (2 half oversampling + 1)**2 samples, whose sum is the number in a pixel."""
        axis = np.arange(-half * oversampling, half * oversampling + 1.0) / oversampling
        values = self.values(axis[None, :] - dx, axis[:, None] - dy)
        return values * (oversampling**2 / values.sum())

    @property
    def narrowest(self) -> float:
        """FWHM along the short axis, pixels."""
        e = float(np.hypot(self.e1, self.e2))
        return self.fwhm * float(np.sqrt((1 - e) / (1 + e)))

    def parameters(self) -> Stamp:
        """Return unbounded parameters: log FWHM, those of the ellipticity (below 0.7) and, unless Gaussian, of beta."""
        shape = [np.log(self.fwhm), np.arctanh(self.e1 / 0.7), np.arctanh(self.e2 / 0.7)]
        return np.array(shape if np.isinf(self.beta) else [*shape, np.log(self.beta - 1.1)])

    @classmethod
    def of(cls, parameters: Stamp) -> Profile:
        """Return the profile with these `parameters`."""
        e1, e2 = 0.7 * np.tanh(parameters[1:3])
        beta = 1.1 + np.exp(parameters[3]) if len(parameters) == 4 else np.inf
        return cls(float(np.exp(parameters[0])), float(beta), float(e1), float(e2))

    def values(self, x: Stamp, y: Stamp) -> Stamp:
        """Return the profile, 1 at the centre, at offsets (x, y) from it."""
        e1, e2 = self.e1, self.e2
        r2 = (((1 - e1) * x - e2 * y) ** 2 + ((1 + e1) * y - e2 * x) ** 2) / (1 - e1**2 - e2**2)
        r2 /= self.fwhm**2
        if np.isinf(self.beta):
            core = np.exp(-4 * np.log(2) * r2)
        else:
            core = (1 + 4 * (2 ** (1 / self.beta) - 1) * r2) ** -self.beta
        return core + self.aureole * (1 + r2) ** -AUREOLE_SLOPE if self.aureole else core


def parameter_bounds(half: int) -> Stamp:
    """Return the least and largest `Profile.parameters` in stamps of this half size, shape (2, 4)."""
    return np.array([[np.log(0.5), -2.0, -2.0, -3.0], [np.log(4.0 * half), 2.0, 2.0, 3.0]])


def fit_profile(
    stamp: Stamp, weight: Stamp, start: float, *, gaussian: bool = False, tolerance: float = 1e-5
) -> Profile:
    """Fit a profile, its flux, its centre and a constant background to a stamp, by weighted least squares.

    Parameters
    ----------
    stamp, weight : ndarray, shape (n, n), n odd
        Data with the source near the middle, and the inverse variance of each pixel (0: not used).
    start : float
        First guess of the FWHM, pixels.
    gaussian : bool
        Fit a Gaussian instead of a Moffat profile.
    tolerance : float
        Relative change of the parameters at which the fit ends.

    Returns
    -------
    profile : Profile
    """
    half = stamp.shape[0] // 2
    axis = np.arange(-half, half + 1.0)
    root = np.sqrt(weight / weight.max())
    data = (stamp * root).ravel()

    def residual(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        values = Profile.of(p[2:]).values(axis[None, :] - p[0], axis[:, None] - p[1])
        # flux and background are linear: solved for at every step (variable projection)
        basis = np.stack([(values * root).ravel(), root.ravel()])
        return np.linalg.solve(basis @ basis.T, basis @ data) @ basis - data

    shape = Profile(start, np.inf if gaussian else 3.1).parameters()
    low, high = (np.array([sign * 2.0, sign * 2.0, *bound[: shape.size]])
                 for sign, bound in zip((-1, 1), parameter_bounds(half), strict=True))  # fmt: skip
    first = np.clip([0.0, 0.0, *shape], low + 1e-6, high - 1e-6)
    result = least_squares(residual, first, bounds=(low, high), x_scale=0.1, ftol=tolerance / 10, xtol=tolerance)
    return Profile.of(result.x[2:])
