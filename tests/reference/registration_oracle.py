"""The formulas of registration, one star at a time."""

from itertools import combinations

import numpy as np


def polynomial(coefficients, order, centre, half, xy):
    """q = sum c_ij u^i v^j, terms by degree, then by the power of v."""
    result = []
    for x, y in xy:
        u, v = (x - centre[0]) / half, (y - centre[1]) / half
        terms = [u ** (degree - j) * v**j for degree in range(order + 1) for j in range(degree + 1)]
        result.append([sum(c * t for c, t in zip(row, terms, strict=True)) for row in coefficients])
    return np.array(result)


def invariants(points):
    """Frame of the longest side; the others' centre nearer to A and at positive height: (stars, shape, parity)."""
    a, b = max(combinations(range(len(points)), 2), key=lambda p: np.hypot(*(points[p[0]] - points[p[1]])))
    rest = [k for k in range(len(points)) if k not in (a, b)]
    z = points[:, 0] + 1j * points[:, 1]
    shape = [(z[k] - z[a]) / (z[b] - z[a]) for k in rest]
    if np.mean(shape).real > 0.5:
        a, b = b, a
        shape = [(z[k] - z[a]) / (z[b] - z[a]) for k in rest]
    parity = 1 if np.mean(shape).imag >= 0 else -1
    shape = [s if parity > 0 else s.conjugate() for s in shape]
    order = np.argsort([s.real for s in shape])
    return (a, b, *(rest[k] for k in order)), [shape[k] for k in order], parity


def neighbour_groups(xy, neighbours, size):
    """All groups of a star and its nearest neighbours, as a set of frozen sets."""
    groups = set()
    for star in range(len(xy)):
        near = np.argsort(np.hypot(*(xy - xy[star]).T), kind="stable")[:neighbours]
        groups |= {frozenset(int(k) for k in group) for group in combinations(near, size)}
    return groups


def matches(predicted, stars, tolerance):
    """Each star's closest suitor among those for which it is the nearest, within the tolerance."""
    pairs = {}
    for t, q in enumerate(predicted):
        distance = np.hypot(*(stars - q).T)
        s = int(distance.argmin())
        if distance[s] < tolerance and (s not in pairs or distance[s] < pairs[s][1]):
            pairs[s] = t, distance[s]
    return {(t, s) for s, (t, _) in pairs.items()}


def windowed(image, x, y, sigma):
    """Flux, second moment and width of a source through a Gaussian window, pixel by pixel."""
    light = norm = second = 0.0
    half = int(np.ceil(3 * sigma))
    for row in range(round(y) - half, round(y) + half + 1):
        for column in range(round(x) - half, round(x) + half + 1):
            if not (0 <= row < image.shape[0] and 0 <= column < image.shape[1]):
                continue
            r2 = (column - x) ** 2 + (row - y) ** 2
            w = np.exp(-r2 / (2 * sigma**2))
            light += w * image[row, column]
            norm += w * w / (2 * np.pi * sigma**2)
            second += w * image[row, column] * r2 / 2
    moment = second / light
    return light / norm, 2 * np.sqrt(2 * np.log(2)) / np.sqrt(1 / moment - 1 / sigma**2)
