"""Square-kernel drizzle, one pixel and one polygon at a time: slow, and plainly what the formulas say.

Fruchter & Hook (2002): a drop is the image, on the output grid, of an input pixel shrunk to `pixfrac`; its weight is
shared out in proportion to the overlap with each output pixel.
"""

import numpy as np


def polygon_area(points):
    """Signed area of a polygon (the shoelace formula)."""
    x, y = np.array(points).T
    return 0.5 * np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)


def clip_half_plane(points, axis, limit, keep_below):
    """Cut a polygon with the line coordinate[axis] = limit (Sutherland & Hodgman 1974)."""
    kept = []
    for k, a in enumerate(points):
        b = points[(k + 1) % len(points)]
        a_in = a[axis] <= limit if keep_below else a[axis] >= limit
        b_in = b[axis] <= limit if keep_below else b[axis] >= limit
        if a_in:
            kept.append(a)
        if a_in != b_in:
            t = (limit - a[axis]) / (b[axis] - a[axis])
            crossing = [a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])]
            crossing[axis] = limit
            kept.append(tuple(crossing))
    return kept


def overlap_area(quad, x, y):
    """Area that a convex quadrilateral shares with the output pixel (x, y)."""
    points = [tuple(p) for p in quad]
    for axis, centre in ((0, x), (1, y)):
        for limit, keep_below in ((centre + 0.5, True), (centre - 0.5, False)):
            points = clip_half_plane(points, axis, limit, keep_below)
            if len(points) < 3:
                return 0.0
    return abs(polygon_area(points))


def drop_corners(pixmap, half):
    """Corners (ny, nx, 4, 2) of all drops: bilinear interpolation of the map, continued linearly at the border."""
    padded = np.pad(pixmap, ((1, 1), (1, 1), (0, 0)), mode="reflect", reflect_type="odd")
    ny, nx = pixmap.shape[:2]
    corners = np.empty((ny, nx, 4, 2))
    for k, (sx, sy) in enumerate(((-1, 1), (1, 1), (1, -1), (-1, -1))):
        own = padded[1:-1, 1:-1]
        beside = padded[1:-1, 1 + sx : 1 + sx + nx]
        above = padded[1 + sy : 1 + sy + ny, 1:-1]
        diagonal = padded[1 + sy : 1 + sy + ny, 1 + sx : 1 + sx + nx]
        corners[:, :, k] = (1 - half) ** 2 * own + half * (1 - half) * (beside + above) + half**2 * diagonal
    return corners


def drizzle_square(data, weight, pixmap, shape, *, squares=(), dq=None, pixfrac=1.0):
    """Sums over one image: (sum w d, sum w, [sum w^2 v], OR of dq, number of pixels that reach each row)."""
    wd, w = np.zeros(shape), np.zeros(shape)
    wwv = [np.zeros(shape) for _ in squares]
    bits = np.zeros(shape, np.uint32)
    hits = np.zeros(data.shape[0], int)
    corners = drop_corners(np.asarray(pixmap, float), pixfrac / 2)
    for j, i in np.ndindex(*data.shape):
        quad = corners[j, i]
        if not (np.isfinite(data[j, i]) and weight[j, i] > 0 and np.isfinite(quad).all()):
            continue
        area = abs(polygon_area(quad))
        low, high = np.round(quad.min(axis=0)).astype(int), np.round(quad.max(axis=0)).astype(int)
        hit = False
        for y in range(max(low[1] - 1, 0), min(high[1] + 2, shape[0])):
            for x in range(max(low[0] - 1, 0), min(high[0] + 2, shape[1])):
                share = overlap_area(quad, x, y) / area
                if share <= 0:
                    continue
                hit = True
                part = share * float(weight[j, i])
                wd[y, x] += part * float(data[j, i])
                w[y, x] += part
                for total, plane in zip(wwv, squares, strict=True):
                    total[y, x] += part**2 * float(plane[j, i])
                if dq is not None:
                    bits[y, x] |= dq[j, i]
        hits[j] += hit
    return wd, w, wwv, bits, hits
