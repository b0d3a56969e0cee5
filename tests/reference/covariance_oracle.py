"""Covariances of drizzled pixels from the matrix of all shares: C = A diag(w^2 v) A^T / (W W^T)."""

import numpy as np
from drizzle_oracle import drop_corners, overlap_area, polygon_area


def _box_share(d, half):
    """Overlap of a pixel at distance d with a drop of 2 half, over the drop's size."""
    return np.maximum(np.minimum(d + 0.5, half) - np.maximum(d - 0.5, -half), 0) / (2 * half)


def _axis_shares(kernel, position, size, pixfrac, ratio):
    """Shares along one axis in the pixels 0 ... size - 1, of a kernel that is a product of two."""
    cells = np.arange(-60, size + 60)
    d = cells - position
    if kernel == "point":
        share = (cells == np.floor(position + 0.5)).astype(float)
    elif kernel == "turbo":
        share = _box_share(d, pixfrac / ratio / 2)
    elif kernel == "gaussian":
        reach = max(2.5 * pixfrac / 2.3548, 1.2) / ratio
        e = 2.3548**2 * ratio**2 / (2 * pixfrac**2)
        inside = (cells >= np.floor(position - reach + 0.5)) & (cells <= np.floor(position + reach + 0.5))
        share = np.where(inside, np.sqrt(e / np.pi) * np.exp(-e * d**2), 0)
    else:
        n, u = int(kernel[-1]), d * ratio
        share = np.where(np.abs(u) < n, np.sinc(u) * np.sinc(u / n), 0)
    return share[60:-60]


def shares(pixmap, shape, *, kernel="square", pixfrac=1.0, ratio=1.0):
    """Matrix of the shares of all input pixels in all output pixels, shape (*shape, input pixels)."""
    pixmap = np.asarray(pixmap, float)
    out = np.zeros((*shape, pixmap.shape[0] * pixmap.shape[1]))
    corners = drop_corners(pixmap, pixfrac / 2)
    for k, (j, i) in enumerate(np.ndindex(pixmap.shape[:2])):
        if kernel != "square":
            x, y = pixmap[j, i]
            along_x = _axis_shares(kernel, x, shape[1], pixfrac, ratio)
            out[:, :, k] = _axis_shares(kernel, y, shape[0], pixfrac, ratio)[:, None] * along_x
            continue
        quad = corners[j, i]
        low, high = np.floor(quad.min(axis=0)).astype(int), np.ceil(quad.max(axis=0)).astype(int)
        for y in range(max(low[1], 0), min(high[1] + 1, shape[0])):
            for x in range(max(low[0], 0), min(high[0] + 1, shape[1])):
                out[y, x, k] = overlap_area(quad, x, y) / abs(polygon_area(quad))
    return out


def covariance(images, shape, **options):
    """Covariance matrix (*shape, *shape) of the co-add of images (weight, variance, pixmap), and its weights."""
    total, weights = np.zeros((np.prod(shape), np.prod(shape))), np.zeros(shape)
    for weight, variance, pixmap in images:
        a = shares(pixmap, shape, **options)
        usable = (weight > 0) & np.isfinite(variance)
        w, v = np.where(usable, weight, 0.0).ravel(), np.where(usable, variance, 0.0).ravel()
        weights += a @ w
        flat = a.reshape(-1, w.size)
        total += (flat * (w**2 * v)) @ flat.T
    norm = np.where(weights != 0, 1 / np.where(weights != 0, weights, 1), 0).ravel()
    return (total * norm[:, None] * norm).reshape(*shape, *shape), weights
