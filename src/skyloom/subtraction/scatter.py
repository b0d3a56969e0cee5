"""The scatter of the stars' flux ratios: what one kernel cannot match, as stars differ in colour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from skyloom.background import MAD_TO_SIGMA
from skyloom.subtraction.basis import Float64Array
from skyloom.subtraction.result import Subtraction

_FEWEST = 10  # stars that tell a scatter
_ERROR = 0.01  # of a flux ratio; stars with a larger one do not tell it
_SIGNIFICANT = 3.0


def flux_scatter(result: Subtraction, core: int) -> float:
    """Return the relative scatter of the flux ratios of stars beyond their noise; 0 if it is not significant.

    With the light m that was subtracted, a star whose flux ratio is off by delta leaves delta m in the difference d:

        delta = (sum d m / V) / (sum m^2 / V),    var(delta) = (sum m^2 V_eff / V^2) / (sum m^2 / V)^2,

    over the core of each star of the fit, also of those that were dropped. V_eff is V with the part of the image that
    was convolved multiplied by what a filter of the shape m / V sees of its correlated noise (`noise_gain`). Of
    Gaussian scatter eps, half of the stars have |delta| MAD_TO_SIGMA <= sqrt(var + eps^2).

    Parameters
    ----------
    result : Subtraction
        Its variance without any scatter.
    core : int
        Half width of a star's core, pixels.
    """
    from skyloom.detection.score import noise_gains

    light = constant_light(result)
    usable = result.usable
    of_science = result.convolved == "science"
    smooth = result.variance_science if of_science else result.variance_template
    # of resampled pixels, whose noise was correlated before
    factors = result.correlation_science, result.correlation_template
    factor, factor_still = factors if of_science else factors[::-1]
    delta, white, smoothed, filters, kernels = [], [], [], [], []
    ny, nx = result.image.shape
    for x, y in zip(np.rint(result.stamps["x"]).astype(int), np.rint(result.stamps["y"]).astype(int), strict=True):
        box = np.s_[max(0, y - core) : min(ny, y + core + 1), max(0, x - core) : min(nx, x + core + 1)]
        if not usable[box].all():
            continue
        m, v, v_smooth = light[box], result.variance[box].astype(np.float64), smooth[box].astype(np.float64)
        total = float((m * m / v).sum())
        if total > _ERROR**-2:
            delta.append(float((result.image[box] * m / v).sum()) / total)
            white.append(factor_still * float((m * m * (v - v_smooth) / v**2).sum()) / total**2)
            smoothed.append(factor * float((m * m * v_smooth / v**2).sum()) / total**2)
            whole = np.zeros((2 * core + 1, 2 * core + 1))  # a box that the border cuts sees nothing beyond
            whole[: m.shape[0], : m.shape[1]] = m / v
            filters.append(whole)
            kernels.append(result.noise_kernel(x, y))
    if len(delta) < _FEWEST:
        return 0.0
    squares = (MAD_TO_SIGMA * np.array(delta)) ** 2
    variance = np.array(white) + noise_gains(np.array(filters), np.array(kernels)) * np.array(smoothed)
    excess = float(np.median(squares - variance))
    # the median of n values of chi2 with one degree of freedom, in units of itself, is uncertain by 2.33 / sqrt(n)
    noise = 2.33 / np.sqrt(len(delta)) * float(np.median(variance))
    return float(np.sqrt(excess)) if excess > _SIGNIFICANT * noise else 0.0


def constant_light(result: Subtraction) -> Float64Array:
    """Return the light of stars and galaxies that was subtracted: `matched` less its sky, 0 where unusable."""
    matched = result.matched.astype(np.float64)
    usable = result.usable
    light = np.maximum(matched - np.median(matched[usable]), 0.0)
    light[~usable] = 0.0
    return light


def with_flux_scatter(result: Subtraction, core: int) -> Subtraction:
    """Return the subtraction with the scatter of the flux ratios measured, and (scatter light)^2 in its variance.

    It counts as noise of the template, which does not say what light the science image should hold. It is the same
    for all pixels of a star: `skyloom.detection.score` takes `statistics["flux_scatter"]` into account.
    """
    scatter = flux_scatter(result, core)
    statistics = result.statistics | {"flux_scatter": scatter}
    if scatter == 0:
        return replace(result, statistics=statistics)
    more: npt.NDArray[np.floating] = ((scatter * constant_light(result)) ** 2).astype(result.variance.dtype)
    return replace(
        result,
        variance=result.variance + more,
        variance_template=result.variance_template + more,
        statistics=statistics,
    )
