"""Blot at single positions, written for reading: closed-form weights, and an image that is continued explicitly."""

import math

import numpy as np

HALF = {"linear": 1, "poly3": 2, "poly5": 3, "lanczos3": 3, "lanczos5": 5}


def lagrange(t, k, nodes):
    """Weight of node k in the polynomial through all nodes, at t."""
    return math.prod((t - m) / (k - m) for m in nodes if m != k)


def lanczos(u, n):
    if u == 0:
        return 1.0
    return math.sin(math.pi * u) * math.sin(math.pi * u / n) / (math.pi**2 * u**2 / n) if abs(u) < n else 0.0


def weights(t, method):
    """Return the taps, relative to the pixel at or below the position, and their weights, for t = x - floor(x)."""
    half = HALF[method]
    taps = range(1 - half, half + 1)
    if t == 0:
        return taps, [float(k == 0) for k in taps]
    if method == "linear" or method.startswith("poly"):
        return taps, [lagrange(t, k, taps) for k in taps]
    w = [lanczos(t - k, half) for k in taps]
    return taps, [v / sum(w) for v in w]


def continued(row, k, method):
    """Return the value of a 1-D image at any whole k, and which of its pixels it was made of."""
    last = len(row) - 1
    if 0 <= k <= last:
        return row[k]
    end = 0 if k < 0 else last
    if method == "linear" or last == 0:
        return row[end]
    return 2 * row[end] - continued(row, 2 * end - k, method)


def blot_one(data, x, y, *, method, scale=1.0, fill=0.0):
    ny, nx = data.shape
    rounding = 1e-6  # of positions
    if not (-rounding <= x < nx - rounding and -rounding <= y < ny - rounding):
        return fill
    x, y = max(x, 0.0), max(y, 0.0)
    if method == "nearest":
        value = data[min(math.floor(y + 0.5), ny - 1), min(math.floor(x + 0.5), nx - 1)]
        return scale * value if math.isfinite(value) else fill
    ix, iy = math.floor(x), math.floor(y)
    taps, wx = weights(x - ix, method)
    _, wy = weights(y - iy, method)
    value = 0.0
    for j, a in zip(taps, wy, strict=True):
        for k, b in zip(taps, wx, strict=True):
            if a * b != 0:
                columns = [continued(data[:, i], iy + j, method) for i in range(nx)]
                value += a * b * continued(columns, ix + k, method)
    return scale * value if math.isfinite(value) else fill


def blot(data, pixmap, **options):
    data = np.where(np.isfinite(data), data, np.nan).astype(float)
    values = [blot_one(data, float(x), float(y), **options) for x, y in pixmap.reshape(-1, 2)]
    return np.array(values).reshape(pixmap.shape[:2])
