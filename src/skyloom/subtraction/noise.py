"""Noise of convolved images whose pixels were correlated before."""

from __future__ import annotations

import numpy as np

from skyloom.filters import convolve_full
from skyloom.subtraction.basis import Float64Array


def smoothing_kernel(correlation: float) -> Float64Array:
    """Return the kernel s, shape (3, 3), whose smoothing of white noise gives it a correlation.

    The variance of a pixel is sum s^2 of the white noise's, that of a mean of many pixels is the white noise's: hence
    sum s^2 = 1 / correlation (Fruchter & Hook 2002, PASP 114, 144, section 7). s is (a, 1 - 2a, a) on each axis, which
    serves correlations up to 9.
    """
    # (1 - 2a)^2 + 2 a^2 = correlation^(-1/2)
    square = 1 / np.sqrt(np.clip(correlation, 0.5, 9.0))
    a = (2 - np.sqrt(max(0.0, 6 * square - 2))) / 6
    axis = np.array([a, 1 - 2 * a, a])
    return np.outer(axis, axis)


def convolved_noise_gain(kernel: Float64Array, correlation: float) -> float:
    """Return the variance of convolved noise over sum K^2 times the variance before, for pixels that were correlated.

    The noise is white noise smoothed by s, see `smoothing_kernel`, so that it passes through K * s:

        gain = sum (K * s)^2 / (sum K^2 sum s^2)

    which goes from 1 for a kernel of one pixel to `correlation` for a wide one.
    """
    smoothing = smoothing_kernel(correlation)
    return float((convolve_full(kernel, smoothing) ** 2).sum() / ((kernel**2).sum() * (smoothing**2).sum()))
