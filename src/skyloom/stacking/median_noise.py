"""Covariances between the pixels of a median of interpolated exposures.

The median M of n deviates x_j is the sum of its linear part sum_j p_j x_j, where p_j is the probability that x_j is
the middle one (Stein's lemma: Cov(M, x_j) = sigma_j^2 E[dM/dx_j]), and of a rest that is not correlated with it.
Between two pixels with the covariances C_j of the interpolated exposures and their correlations rho_j,

    Cov(M, M') = sum_j p_j p_j' C_j  +  sqrt(N N') <rho_j^3>,    N = Var(M) - sum_j p_j^2 sigma_j^2:

the expansion of M in Hermite polynomials has odd orders only, and the third is the largest of the rest. So wide
apertures see the linear part alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from skyloom.resampling.correlation import CovarianceMap
from skyloom.resampling.maps import evaluate
from skyloom.stacking.frames import PlacedExposure
from skyloom.stacking.outliers import median_exponent, median_variance

Float = npt.NDArray[np.float64]

_SPACING = 24
"""Distance of the pixels that are looked at, along both axes: some seven in a block of 64 x 64, with all phases."""


def median_covariance(
    placed: Sequence[PlacedExposure], variances: Sequence[float], shape: tuple[int, int], block: int
) -> CovarianceMap:
    """Return the covariances of the median of exposures that are interpolated bilinearly.

    Parameters
    ----------
    placed : sequence of PlacedExposure
        The exposures.
    variances : sequence of float
        Of the sky of each, per pixel of its own, in the units of the co-add.
    shape : (int, int)
        Of the output.
    block : int
        Side of the blocks whose means are taken, pixels.
    """
    reach = max(1, math.ceil(2 * max(one.scale for one in placed)) - 1)
    lags = np.array([(dx, dy) for dy in range(reach + 1) for dx in range(-reach, reach + 1)], np.float64)
    rows, columns = (math.ceil(n / block) for n in shape)
    result = np.zeros((rows, columns, len(lags)))
    for j in range(rows):
        at = _sample(j, block, shape)
        places = at[None] + lags[:, None]
        known = [_interpolation(one, v, at, places) for one, v in zip(placed, variances, strict=True)]
        total = _covariance(np.array([k[0] for k in known]), np.array([k[1] for k in known]), reach)
        i = (at[:, 0] // block).astype(np.int64)
        counts = np.bincount(i[total[reach] > 0], minlength=columns)
        for k, values in enumerate(total):
            result[j, :, k] = np.bincount(i, values, minlength=columns) / np.maximum(counts, 1)
    return CovarianceMap(result.reshape(rows, columns, reach + 1, 2 * reach + 1), block, shape)


def _sample(row: int, block: int, shape: tuple[int, int]) -> Float:
    """Return some pixels of a row of blocks, (x, y), at irregular distances."""
    low, high = row * block, min((row + 1) * block, shape[0])
    step = min(_SPACING, max(1, (high - low) // 2))
    y, x = np.mgrid[low:high:step, 0 : shape[1] : step].reshape(2, -1)
    rng = np.random.default_rng(row)
    jitter = rng.integers(0, step, (2, len(x)))
    return np.stack([np.minimum(x + jitter[0], shape[1] - 1), np.minimum(y + jitter[1], high - 1)], axis=1).astype(
        float
    )


def _interpolation(placed: PlacedExposure, variance: float, at: Float, places: Float) -> tuple[Float, Float]:
    """Return the variance of an exposure at places, shape (lags, N), 0 outside, and its covariance with pixels `at`."""
    window = placed.window()
    flat = np.zeros(places.shape[:2])
    if window is None or at[:, 1].max() + 1 < window[0].start or at[:, 1].min() > window[0].stop:
        return flat, flat
    back = placed.from_grid()
    ny, nx = placed.member.shape
    own = evaluate(back, at)
    there = evaluate(back, places.reshape(-1, 2)).reshape(places.shape)

    def inside(xy: Float) -> npt.NDArray[np.bool_]:
        return (xy >= 0).all(axis=-1) & (xy[..., 0] <= nx - 1) & (xy[..., 1] <= ny - 1)

    own, there = np.nan_to_num(own, nan=-1.0), np.nan_to_num(there, nan=-1.0)
    both = inside(own) & inside(there)
    spread = variance * (_overlap(there, there)).prod(axis=-1)
    return np.where(inside(there), spread, 0.0), np.where(both, variance * _overlap(own, there).prod(axis=-1), 0.0)


def _overlap(a: Float, b: Float) -> Float:
    """Return the sums of products of the weights of linear interpolation at two positions, along each axis."""
    first = np.floor(np.broadcast_to(a, b.shape))
    total = np.zeros(b.shape)
    for pixel in (first, first + 1):
        total += np.maximum(1 - np.abs(a - pixel), 0) * np.maximum(1 - np.abs(b - pixel), 0)
    return total


def _covariance(variance: Float, covariance: Float, reach: int) -> Float:
    """Return the covariances of the median, shape (lags, N), from those of the exposures, shape (n, lags, N)."""
    count = (variance > 0).sum(axis=0)
    most = len(variance)
    exponent = median_exponent(most)[count]
    safe = np.where(variance > 0, variance, 1.0)
    power = np.where(variance > 0, safe ** (0.5 * exponent), 0.0).sum(axis=0) / np.maximum(count, 1)
    own = np.where(count > 0, median_variance(most)[count] * np.where(count > 0, power, 1.0) ** (2 / exponent), 0.0)
    # of two each counts half; of very many those near the middle, in proportion to their density there, 1 / sigma
    chance = np.where(variance > 0, safe ** (-(2 - exponent) / 6), 0.0)
    chance /= np.maximum(chance.sum(axis=0), 1e-300)
    rest = np.sqrt(np.maximum(own - (chance**2 * variance).sum(axis=0), 0.0))
    here = np.s_[:, reach : reach + 1]  # the lag (0, 0)
    linear = (chance[here] * chance * covariance).sum(axis=0)
    rho = covariance / np.sqrt(safe * safe[here])
    cubed = (rho**3 * chance).sum(axis=0)
    return np.where((count > 0) & (count[reach] > 0), linear + rest * rest[reach] * cubed, 0.0)
