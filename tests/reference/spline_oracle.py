"""Interpolating splines, written for reading: dense linear systems and B-splines as truncated powers."""

import math
from functools import cache

import numpy as np


def b_spline(u, degree):
    """B-spline of a degree, centred on 0: a difference of truncated powers (Schoenberg 1946)."""
    j = np.arange(degree + 2)
    powers = np.maximum((degree + 1) / 2 - j - np.abs(np.asarray(u, float))[..., None], 0) ** degree
    # for -|u| the sum over the powers that are above 0 has few terms, and no cancellation
    return powers @ [(-1) ** i * math.comb(degree + 1, i) for i in j] / math.factorial(degree)


def coefficients_1d(values, degree):
    """Coefficients c with sum_k c_k b(j - k) = values_j, where c is mirrored at the first and the last one."""
    n = len(values)
    matrix = np.zeros((n, n))
    period = max(2 * (n - 1), 1)
    for j in range(n):
        for k in range(j - degree, j + degree + 1):
            m = k % period
            matrix[j, min(m, period - m)] += b_spline(j - k, degree)
    return np.linalg.solve(matrix, values)


def coefficients(image, degree):
    return coefficients_1d(coefficients_1d(image, degree).T, degree).T


def value(c, x, y, degree):
    """The spline with coefficients c at one position, all taps inside."""
    wx = b_spline(x - np.arange(c.shape[1]), degree)
    wy = b_spline(y - np.arange(c.shape[0]), degree)
    return wy @ c @ wx


@cache
def _cardinal_coefficients(degree):
    one = np.zeros(61)
    one[30] = 1
    return coefficients_1d(one, degree)


def cardinal_spline(u, degree):
    """The spline that is 1 at 0 and 0 at every other integer."""
    return b_spline(np.asarray(u, float)[..., None] - np.arange(-30, 31), degree) @ _cardinal_coefficients(degree)


def filled(data, usable):
    """Unusable pixels from the nearest usable ones to the left, right, above and below, by inverse distance."""
    result = data.astype(float)
    for y, x in zip(*np.nonzero(~usable), strict=True):
        total = weight = 0.0
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            for d in range(1, max(data.shape)):
                j, i = y + d * dy, x + d * dx
                if not (0 <= j < data.shape[0] and 0 <= i < data.shape[1]):
                    break
                if usable[j, i]:
                    total += data[j, i] / d
                    weight += 1 / d
                    break
        result[y, x] = total / weight if weight else np.median(data[usable]) if usable.any() else 0.0
    return result
