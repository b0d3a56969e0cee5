"""Interpolation at single positions, written for reading: sums over taps with closed-form weights."""

import math

import numpy as np

from reference.spline_oracle import cardinal_spline
from skyloom.exposure import UNUSABLE, MaskBit

HALF = {"bilinear": 1, "cubic": 2, "lanczos3": 3, "lanczos4": 4, "lanczos5": 5, "poly3": 2, "poly5": 3}
HALF |= {"spline3": 5, "spline5": 5}
NEGLIGIBLE = 1e-6


def weight(method, u):
    u = abs(u)
    half = HALF[method]
    if u >= half:
        return 0.0
    if method == "bilinear":
        return 1 - u
    if method.startswith("spline"):
        return float(cardinal_spline(u, int(method[-1])))
    if method == "cubic":  # Keys 1981, a = -1/2
        return 1.5 * u**3 - 2.5 * u**2 + 1 if u < 1 else -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2
    if method.startswith("poly"):  # Lagrange: position t = k - u between pixels 0 and 1, from pixels 1 - half ... half
        k = math.ceil(u)
        return math.prod((k - u - m) / (k - m) for m in range(1 - half, half + 1) if m != k)
    if u == 0:
        return 1.0
    return math.sin(math.pi * u) * math.sin(math.pi * u / half) / (math.pi**2 * u**2 / half)


def interpolate_one(data, variance, mask, xy, *, method, max_lost):
    """Return (value, variance, mask bits, coverage) at one position."""
    x, y = xy
    ny, nx = data.shape
    half = HALF[method]
    if not (math.isfinite(x) and math.isfinite(y)):
        return 0.0, 0.0, int(MaskBit.NO_DATA), 0.0
    x0, y0 = math.floor(x), math.floor(y)
    inside = -0.5 <= x <= nx - 0.5 and -0.5 <= y <= ny - 0.5
    columns, rows = range(x0 - half + 1, x0 + half + 1), range(y0 - half + 1, y0 + half + 1)
    wx = {c: weight(method, x - c) for c in columns}
    wy = {r: weight(method, y - r) for r in rows}
    for axis in (wx, wy):
        total = sum(axis.values())
        for k, v in axis.items():  # the rest of a spline, of which the tails are cut, is shared by all
            axis[k] = v + (1 - total) / (2 * half) if method.startswith("spline") else v / total
    w = {(r, c): wy[r] * wx[c] for r in rows for c in columns}
    sum_abs = sum(abs(v) for v in w.values())
    good = culprits = remarks = 0
    lost = sum_w = sum_wd = sum_wwv = 0.0
    nearest_lost = False
    nearest = (math.floor(y + 0.5), math.floor(x + 0.5))
    for (r, c), v in w.items():
        outside = not (0 <= r < ny and 0 <= c < nx)
        bits = int(MaskBit.EDGE if inside else MaskBit.NO_DATA) if outside else int(mask[r, c])
        matters = abs(v) > NEGLIGIBLE * sum_abs
        if outside or bits & int(UNUSABLE):
            if matters:
                lost += abs(v)
                culprits |= bits
                nearest_lost |= (r, c) == nearest
        else:
            good += 1
            sum_w += v
            sum_wd += v * float(data[r, c])
            sum_wwv += v * v * float(variance[r, c])
            remarks |= bits if matters else 0
    coverage = 1 - lost / sum_abs if inside else 0.0
    if nearest_lost or lost > max_lost * sum_abs or sum_w <= 0.1:
        return 0.0, 0.0, culprits | remarks, coverage
    return sum_wd / sum_w, sum_wwv / sum_w**2, remarks | (int(MaskBit.SPREAD) if lost else 0), coverage


def interpolate(data, variance, mask, xy, *, method, max_lost):
    rows = [interpolate_one(data, variance, mask, p, method=method, max_lost=max_lost) for p in xy]
    value, var, bits, coverage = zip(*rows, strict=True)
    return np.array(value), np.array(var), np.array(bits, np.uint32), np.array(coverage)
