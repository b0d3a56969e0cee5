"""Noise of convolved images whose pixels were correlated before."""

from __future__ import annotations

import numpy as np
from scipy.signal import convolve2d

from skyloom.subtraction.basis import Float64Array


def convolved_noise_gain(kernel: Float64Array, correlation: float) -> float:
    """Return the variance of convolved noise over sum K^2 times the variance before, for pixels that were correlated.

    Resampling leaves noise as if white noise had been smoothed by a narrow s of sum 1: the variance of a pixel is sum s^2
    of the white one's, that of a mean of many pixels is the white one's, so sum s^2 = 1 / correlation (Fruchter & Hook
    2002, PASP 114, 144, section 7). After the kernel the variance is that of the white noise times sum (K * s)^2:

        gain = correlation sum (K * s)^2 / sum K^2

    which goes from 1 for a kernel of one pixel to `correlation` for a wide one. s is taken to be (a, 1 - 2a, a) on each
    axis, which serves correlations up to 9.
    """
    # (1 - 2a)^2 + 2 a^2 = correlation^(-1/2)
    square = 1 / np.sqrt(np.clip(correlation, 0.5, 9.0))
    a = (2 - np.sqrt(max(0.0, 6 * square - 2))) / 6
    smoothing = np.array([a, 1 - 2 * a, a])
    smoothed = convolve2d(kernel, np.outer(smoothing, smoothing))
    return float((smoothed**2).sum() / (kernel**2).sum() / ((smoothing**2).sum() ** 2))
