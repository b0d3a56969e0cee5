"""Measurements on small stamps around sources, all sources at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skyloom.exposure import FloatArray

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

FWHM_PER_SIGMA = float(2 * np.sqrt(2 * np.log(2)))
"""Full width at half maximum of a Gaussian of unit standard deviation."""

_CHUNK = 2000
"""Sources per batch: bounds the memory of crowded fields."""

_LEAST_PROFILE = 0.05
"""Share of a star's window that must be on the image: a corner star keeps a finite flux."""


_LEAST_FLUX = 1e-100
"""Stands for fluxes of zero and below where they divide: its square is a number, and the error is far beyond any."""


@dataclass(frozen=True)
class Photometry:
    """Flux and position error of N sources; arrays of shape (N,)."""

    flux: Float
    flux_err: Float
    xy_err: Float


@dataclass(frozen=True)
class _Windows:
    """Stamps of N sources seen through a Gaussian window: `weight` and `light` = weight times data, shape (N, n, n)."""

    weight: Float
    light: Float
    dx: Float
    dy: Float


def _windows(data: FloatArray, dead: Bool | None, xy: Float, sigma: float) -> _Windows:
    """Cut the stamps; pixels that are dead or outside of the image weigh nothing."""
    ny, nx = data.shape
    half = int(np.ceil(3 * sigma))
    step = np.arange(-half, half + 1)
    centre = np.rint(xy).astype(np.intp)
    cols, rows = centre[:, 0, None] + step, centre[:, 1, None] + step
    dx, dy = cols - xy[:, :1], rows - xy[:, 1:]
    wx = np.where((cols >= 0) & (cols < nx), np.exp(-0.5 * (dx / sigma) ** 2), 0.0)
    wy = np.where((rows >= 0) & (rows < ny), np.exp(-0.5 * (dy / sigma) ** 2), 0.0)
    index = np.clip(rows, 0, ny - 1)[:, :, None], np.clip(cols, 0, nx - 1)[:, None, :]
    weight = wy[:, :, None] * wx[:, None, :]
    if dead is not None:
        weight[dead[index]] = 0.0
    return _Windows(weight, weight * data[index], dx, dy)


def photometry(
    data: FloatArray, noise: FloatArray, dead: Bool | None, xy: Float, sigma: float, *, gain: float | None = None
) -> Photometry:
    """Measure sources through a Gaussian window w = exp(-r^2 / (2 s^2)) with s = `sigma`.

    For a Gaussian star of the same width on pixels of variance v, with I = data and P the unit-flux profile:

    - flux F = sum(w I) / sum(w P), with sum(w P) = 1/2; var F = 4 sum(w^2 v) (+ 4/3 F / g photons);
    - position: var x = 8 pi s^4 v / F^2 (sky) + 16/9 s^2 / (g F) (photons of the star, g electrons per unit).

    Parameters
    ----------
    data, noise : ndarray, shape (ny, nx)
        Background-free data and standard deviation per pixel.
    dead : ndarray of bool, shape (ny, nx), or None
        Pixels of weight 0.
    xy : ndarray, shape (N, 2)
        Positions.
    sigma : float
        Window width, pixels.
    gain : float or None
        Electrons per unit; None leaves the star's own photon noise out.
    """
    parts = [_photometry(data, noise, _windows(data, dead, part, sigma), part, sigma) for part in _parts(xy)]
    flux, flux_variance, xy_variance = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    if gain is not None:
        electrons = np.maximum(flux, _LEAST_FLUX) * gain
        flux_variance = flux_variance + 4 / 3 * electrons / gain**2
        xy_variance = xy_variance + 16 / 9 * sigma**2 / electrons
    return Photometry(flux, np.sqrt(flux_variance), np.sqrt(xy_variance))


def _photometry(
    data: FloatArray, noise: FloatArray, stamps: _Windows, xy: Float, sigma: float
) -> tuple[Float, Float, Float]:
    """Return flux and the sky's part of the variances of flux and position."""
    star = (
        np.exp(-0.5 * (stamps.dy / sigma) ** 2)[:, :, None]
        * np.exp(-0.5 * (stamps.dx / sigma) ** 2)[:, None, :]
        / (2 * np.pi * sigma**2)
    )
    profile = np.maximum((stamps.weight * star).sum((1, 2)), _LEAST_PROFILE)
    flux = stamps.light.sum((1, 2)) / profile
    ny, nx = data.shape
    column, row = np.rint(xy).astype(np.intp).T
    sky = noise[np.clip(row, 0, ny - 1), np.clip(column, 0, nx - 1)].astype(np.float64) ** 2
    return (
        flux,
        (stamps.weight**2).sum((1, 2)) * sky / profile**2,
        8 * np.pi * sigma**4 * sky / np.maximum(flux, _LEAST_FLUX) ** 2,
    )


def widths(data: FloatArray, dead: Bool | None, xy: Float, sigma: float) -> Float:
    """Return the FWHM of sources from their second moment M in a Gaussian window: 1/M = 1/sigma_star^2 + 1/s^2.

    The narrower the window, the nearer is the result to the true FWHM of a star that is not Gaussian, and the noisier.
    A source much wider than the window has 1/M -> 1/s^2: it gets 5 windows.
    """
    return np.concatenate([_widths(_windows(data, dead, part, sigma), sigma) for part in _parts(xy)])


def _widths(stamps: _Windows, sigma: float) -> Float:
    second = (
        (stamps.light * stamps.dx[:, None, :] ** 2).sum((1, 2))
        + (stamps.light * stamps.dy[:, :, None] ** 2).sum((1, 2))
    ) / 2
    light = stamps.light.sum((1, 2))
    good = (second > 0) & (light > 0)
    inverse = np.where(good, light, 1.0) / np.where(good, second, 1.0) - 1 / sigma**2
    # a point narrower than a pixel may come out with M near 0
    inverse = np.where(good, np.clip(inverse, 1 / (5 * sigma) ** 2, 1 / 0.2**2), 1 / 0.2**2)
    return FWHM_PER_SIGMA / np.sqrt(inverse)


def _parts(xy: Float) -> list[Float]:
    return [xy[i : i + _CHUNK] for i in range(0, len(xy), _CHUNK)]


def pair_ratios(
    data: FloatArray, noise: FloatArray, x: npt.NDArray[np.integer], y: npt.NDArray[np.integer]
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
        return data[np.clip(rows, 0, ny - 1), np.clip(cols, 0, nx - 1)].astype(np.float64)

    peak = np.maximum(data[y, x].astype(np.float64), 1e-300)
    pairs = [(at(dx, dy) + at(-dx, -dy)) / (2 * peak) for dx, dy in ((1, 0), (0, 1), (1, 1), (1, -1))]
    error = noise[y, x] / peak * np.sqrt(0.5)
    return np.minimum(pairs[0], pairs[1]), np.minimum(pairs[2], pairs[3]), error
