"""The local statistics of Lee (1980) by plain means over windows."""

import itertools

import numpy as np
from scipy import ndimage

WINDOWS = (15, 5, 1)


def local_mean(data, weight, window):
    """Return the mean over the window about each pixel, 0 where all weights are 0; `data` is 0 where `weight` is."""
    if window == 1:
        return data
    ones = np.ones((window, window))
    total = ndimage.convolve(weight, ones, mode="constant")
    return ndimage.convolve(data, ones, mode="constant") / np.maximum(np.rint(total), 1)


def expected_signal(data, usable, *, level, variance_of):
    """Return the expected value of each pixel; `variance_of(signal)` is the variance of pixels of an expected value."""
    weight = usable.astype(np.float64)
    light = np.where(usable, data - level, 0.0)
    estimate = local_mean(light, weight, WINDOWS[0])
    for coarse, fine in itertools.pairwise(WINDOWS):
        detail = (local_mean(light, weight, fine) - estimate) * weight
        scatter = local_mean(detail**2, weight, coarse)
        noise = variance_of(estimate + level) / fine**2
        estimate = estimate + np.maximum(1 - 2 * noise / np.maximum(scatter, noise), 0) * detail
    return estimate + level
