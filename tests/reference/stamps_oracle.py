"""Plain NumPy versions of the kernels that work on stamps."""

from __future__ import annotations

import numpy as np


def find_substamps(data, good, cell, middles, halves, levels, least_good, given, found, most):  # noqa: PLR0917
    """Return the list of sub-stamps (x, y, signal): those of `found`, and new ones until there are `most`."""
    (x0, x1, y0, y1), (left, right, bottom, top) = cell, middles
    (half, core), (sky, floor, upper) = halves, levels
    found = list(found)
    if given is None:
        part = data[y0 : y1 + 1, x0 : x1 + 1]
        around = np.pad(part, 1, constant_values=-np.inf)
        peaks = [
            (-part[y, x], y, x)
            for y in range(part.shape[0])
            for x in range(part.shape[1])
            if floor < part[y, x] < upper and good[y0 + y, x0 + x] and part[y, x] == around[y : y + 3, x : x + 3].max()
        ]
        given = [(x0 + x, y0 + y) for _, y, x in sorted(peaks)]
    for x, y in given:
        if len(found) >= most:
            break
        if not (left <= x <= right and bottom <= y <= top):
            continue
        if any(abs(x - u) <= half and abs(y - v) <= half for u, v, _ in found):
            continue
        box = np.s_[y - half : y + half + 1, x - half : x + half + 1]
        inner = np.s_[y - core : y + core + 1, x - core : x + core + 1]
        if not good[inner].all() or (data[inner] >= upper).any() or good[box].mean() < least_good:
            continue
        bright = data[box][(data[box] > floor) & good[box]].astype(np.float64)
        if (bright - sky).sum() > 0:
            found.append((x, y, (bright - sky).sum()))
    return found


def sky_statistics(pixels, clip):
    """Return mode and deviation of the sky: the middle of the shortest tenth, and quartiles, after clipping."""
    values = np.sort(pixels, axis=None)
    for _ in range(5):
        low, middle, high = (float(values[int(share * (len(values) - 1))]) for share in (0.25, 0.5, 0.75))
        sigma = (high - low) / 1.35
        wide = values.astype(np.float64)
        kept = values[(wide >= middle - clip * sigma) & (wide < middle + clip * sigma)]
        if len(kept) in (0, len(values)):
            break
        values = kept
    share = max(2, int(0.1 * len(values)))
    if share >= len(values):
        return middle, sigma
    start = int(np.argmin(values[share:] - values[:-share]))
    return float(values[start] + values[start + share]) / 2, sigma


def stamp_sums(planes, variance, good, convolved_variance, step):
    """Return sum w f f^T, sum w f target and sum w v over every `step`-th good pixel of one stamp, w = 1 / variance."""
    used = good & (np.arange(len(good)) % step == 0)
    weight = np.where(used, 1 / variance, 0)
    functions, target = planes[:-1], planes[-1]
    return functions * weight @ functions.T, functions * weight @ target, weight @ convolved_variance


def filter_stamp(stamp, along_x, along_y, first):
    """Return the correlations of a stamp with each filter along y, times the one along x that it goes with."""
    width = along_x.shape[1]
    ny, nx = (side - width + 1 for side in stamp.shape)
    out = []
    for k in range(len(along_x)):
        for m in range(first[k], first[k + 1]):
            taps = np.outer(along_y[m], along_x[k])
            out.append([[(taps * stamp[y : y + width, x : x + width]).sum() for x in range(nx)] for y in range(ny)])
    return np.array(out).reshape(-1, ny, nx)
