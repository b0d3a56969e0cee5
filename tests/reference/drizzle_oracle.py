"""Drizzle, one pixel at a time: slow, and plainly what the formulas say.

Fruchter & Hook (2002): a drop is the image, on the output grid, of an input pixel shrunk to `pixfrac`; its weight is
shared out in proportion to the overlap with each output pixel. The other kernels are given by the distance of the
output pixel's centre from the drop's.
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


def round_half_up(x):
    return np.floor(x + 0.5)


def floor_of_sum(x, shift):
    """floor(x + shift); its rounding does not depend on the origin of x."""
    cell = round_half_up(x)
    return cell + np.floor((x - cell) + shift)


def shares(kernel, x, y, *, pixfrac=1.0, scale=1.0, conserving=False):
    """Cells (columns, rows) of the box of a drop at (x, y), and what each gets of it; scale: output/input pixel."""
    if kernel == "point":
        return np.array([round_half_up(x)]), np.array([round_half_up(y)]), np.ones((1, 1))
    if kernel == "turbo":
        half = pixfrac / (2 * scale)
        columns, rows = (np.arange(floor_of_sum(c, 0.5 - half), floor_of_sum(c, 0.5 + half) + 1) for c in (x, y))
        width, height = (
            np.clip(np.minimum(cells + 0.5, c + half) - np.maximum(cells - 0.5, c - half), 0, None)
            for cells, c in ((columns, x), (rows, y))
        )
        return columns, rows, np.outer(height, width) / (2 * half) ** 2
    if kernel == "gaussian":
        half = max(2.5 * pixfrac / 2.3548, 1.2) / scale
        columns, rows = (np.arange(floor_of_sum(c, 0.5 - half), floor_of_sum(c, 0.5 + half) + 1) for c in (x, y))
        e = 2.3548**2 * scale**2 / (2 * pixfrac**2)
        square = (rows[:, None] - y) ** 2 + (columns - x) ** 2
        if conserving:  # the common factor may underflow, the ratios do not
            return columns, rows, np.exp(-e * (square - square.min())) / np.exp(-e * (square - square.min())).sum()
        return columns, rows, e / np.pi * np.exp(-e * square)
    order = int(kernel[-1])
    scale = min(scale, 1.0) if conserving else scale
    columns, rows = (np.arange(floor_of_sum(c, 1 - order / scale), floor_of_sum(c, order / scale) + 1) for c in (x, y))
    lobes = [
        np.where(np.abs(u) < order, np.sinc(u) * np.sinc(u / order), 0.0)
        for u in ((columns - x) * scale, (rows - y) * scale)
    ]
    lobes = [np.where(np.abs(lobe) > 1e-12, lobe, 0.0) for lobe in lobes]  # zeros, but for rounding
    share = np.outer(lobes[1], lobes[0])
    return columns, rows, share / share.sum() if conserving else share


def drizzle_shares(kernel, data, weight, pixmap, shape, *, squares=(), dq=None, **options):
    """Sums over one image: those of `drizzle_square`, and where any share was above 0."""
    wd, w = np.zeros(shape), np.zeros(shape)
    wwv = [np.zeros(shape) for _ in squares]
    bits, positive = np.zeros(shape, np.uint32), np.zeros(shape, bool)
    hits = np.zeros(data.shape[0], int)
    for j, i in np.ndindex(*data.shape):
        x, y = pixmap[j, i]
        values = [data[j, i], weight[j, i], *(s[j, i] for s in squares)]
        if not (np.isfinite(values).all() and weight[j, i] > 0 and abs(x) < 2**28 and abs(y) < 2**28):
            continue
        columns, rows, share = shares(kernel, x, y, **options)
        in_x, in_y = (columns >= 0) & (columns < shape[1]), (rows >= 0) & (rows < shape[0])
        part = share[np.ix_(in_y, in_x)]
        if not part.any():
            continue
        hits[j] += 1
        cells = np.ix_(rows[in_y].astype(int), columns[in_x].astype(int))
        wd[cells] += part * weight[j, i] * data[j, i]
        w[cells] += part * weight[j, i]
        positive[cells] |= part > 0
        for total, plane in zip(wwv, squares, strict=True):
            total[cells] += (part * weight[j, i]) ** 2 * plane[j, i]
        if dq is not None:
            bits[cells] |= np.where(part != 0, dq[j, i], np.uint32(0))
    return wd, w, wwv, bits, positive, hits
