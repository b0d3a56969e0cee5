"""Measurements on small stamps around sources, all sources at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

FWHM_PER_SIGMA = float(2 * np.sqrt(2 * np.log(2)))
"""Full width at half maximum of a Gaussian of unit standard deviation."""

_CHUNK = 2000
"""Sources per batch: bounds the memory of crowded fields."""


@dataclass(frozen=True)
class Measures:
    """Flux, width and position error of N sources; arrays of shape (N,)."""

    flux: Float
    flux_err: Float
    fwhm: Float
    xy_err: Float

    def take(self, which: Bool) -> Measures:
        """Return the measures of some of the sources."""
        return Measures(self.flux[which], self.flux_err[which], self.fwhm[which], self.xy_err[which])


def measure(data: Float, noise: Float, dead: Bool, xy: Float, sigma: float, gain: float | None) -> Measures:
    """Measure sources through a Gaussian window w = exp(-r^2 / (2 s^2)) with s = `sigma`.

    For a Gaussian star of the same width on pixels of variance v, with I = data and P the unit-flux profile:

    - flux F = sum(w I) / sum(w P), with sum(w P) = 1/2; var F = 4 sum(w^2 v) (+ 4/3 F / g photons);
    - position: var x = 8 pi s^4 v / F^2 (sky) + 16/9 s^2 / (g F) (photons of the star, g electrons per unit);
    - width: the windowed second moment M obeys 1/M = 1/sigma_star^2 + 1/s^2.

    Parameters
    ----------
    data, noise : ndarray, shape (ny, nx)
        Background-free data and standard deviation per pixel.
    dead : ndarray of bool, shape (ny, nx)
        Pixels of weight 0.
    xy : ndarray, shape (N, 2)
        Positions.
    sigma : float
        Window width, pixels.
    gain : float or None
        Electrons per unit; None leaves the star's own photon noise out.
    """
    parts = [_measure(data, noise, dead, xy[i:i + _CHUNK], sigma, gain) for i in range(0, len(xy), _CHUNK)]
    return Measures(*(np.concatenate([getattr(p, name) for p in parts]) for name in
                      ("flux", "flux_err", "fwhm", "xy_err")))


def _measure(data: Float, noise: Float, dead: Bool, xy: Float, sigma: float, gain: float | None) -> Measures:
    ny, nx = data.shape
    step = np.arange(-int(np.ceil(3 * sigma)), int(np.ceil(3 * sigma)) + 1)
    centre = np.rint(xy).astype(np.intp)
    cols, rows = centre[:, 0, None] + step, centre[:, 1, None] + step
    dx, dy = cols - xy[:, :1], rows - xy[:, 1:]
    wx, wy = (np.exp(-0.5 * (d / sigma) ** 2) for d in (dx, dy))
    inside = ((rows >= 0) & (rows < ny))[:, :, None] & ((cols >= 0) & (cols < nx))[:, None, :]
    index = np.clip(rows, 0, ny - 1)[:, :, None], np.clip(cols, 0, nx - 1)[:, None, :]
    window = np.where(inside & ~dead[index], wy[:, :, None] * wx[:, None, :], 0.0)
    light = window * data[index]
    sum_light = light.sum((1, 2))
    profile = (window * wy[:, :, None] * wx[:, None, :]).sum((1, 2)) / (2 * np.pi * sigma**2)
    profile = np.maximum(profile, 0.05)  # a star cut in half and half again keeps a finite flux
    flux = sum_light / profile
    second = ((light * dx[:, None, :] ** 2).sum((1, 2)) + (light * dy[:, :, None] ** 2).sum((1, 2))) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        moment = second / sum_light
        inverse = 1 / moment - 1 / sigma**2
    # a source much wider than the window has 1/M -> 1/s^2: its width is not known, only that it is large
    inverse = np.where(np.isfinite(inverse) & (moment > 0), np.clip(inverse, 1 / (5 * sigma) ** 2, 1 / 0.2**2), 25.0)
    sky_variance = noise[np.clip(centre[:, 1], 0, ny - 1), np.clip(centre[:, 0], 0, nx - 1)] ** 2
    light_positive = np.maximum(flux, 1e-300)
    flux_variance = (window**2).sum((1, 2)) * sky_variance / profile**2
    xy_variance = 8 * np.pi * sigma**4 * sky_variance / light_positive**2
    if gain is not None:
        flux_variance += 4 / 3 * light_positive / gain
        xy_variance += 16 / 9 * sigma**2 / (gain * light_positive)
    return Measures(flux, np.sqrt(flux_variance), FWHM_PER_SIGMA / np.sqrt(inverse), np.sqrt(xy_variance))


def pair_ratios(data: Float, noise: Float, x: npt.NDArray[np.integer], y: npt.NDArray[np.integer]
                ) -> tuple[Float, Float, Float]:
    """Compare opposite neighbours of peak pixels with the peak.

    Parameters
    ----------
    data, noise : ndarray, shape (ny, nx)
        Background-free data and standard deviation per pixel.
    x, y : ndarray of int, shape (N,)
        Peak pixels.

    Returns
    -------
    across : ndarray, shape (N,)
        The lower of the horizontal and the vertical pair's mean, over the peak.
    diagonal : ndarray, shape (N,)
        The same for the two diagonal pairs.
    error : ndarray, shape (N,)
        Standard error of either ratio by the noise of the pixels.
    """
    ny, nx = data.shape
    # peaks on the border have no opposite neighbours: the same inner neighbour stands for both
    def at(dx: int, dy: int) -> Float:
        cols, rows = x + dx, y + dy
        cols = np.where((cols < 0) | (cols >= nx), x - dx, cols)
        rows = np.where((rows < 0) | (rows >= ny), y - dy, rows)
        return data[np.clip(rows, 0, ny - 1), np.clip(cols, 0, nx - 1)]

    peak = np.maximum(data[y, x], 1e-300)
    pairs = [(at(dx, dy) + at(-dx, -dy)) / (2 * peak) for dx, dy in ((1, 0), (0, 1), (1, 1), (1, -1))]
    error = noise[y, x] / peak * np.sqrt(0.5)
    return np.minimum(pairs[0], pairs[1]), np.minimum(pairs[2], pairs[3]), error
