"""Follow an irregular distortion: from the stars that match to their neighbours, and on, as far as the stars lead.

A polynomial that is right in one part of the image may be many pixels off elsewhere. There a star is predicted from the
nearest pairs that are known, by the affine map through them, which is right to the second order of their distance.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.special import bdtr

from skyloom.registration.fit import Fit, StarList, add_spline, fit_pairs, true_spread
from skyloom.registration.transform import Transform
from skyloom.registration.verify import Matches, is_inside, match_stars

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.intp]
Bool = npt.NDArray[np.bool_]

_NEIGHBOURS = 10
"""Pairs that predict a star."""

_FEWEST = 60
"""Stars in the overlap below which there is no irregularity to be told from chance."""

_RADIUS, _LEAST_RADIUS = 5.0, 1.5
"""Source pixels: largest and least distance of a star from where its neighbours predict it."""

_MOST_STEPS = 100
_FITS = 4

_MOST_CELLS = 16
"""Of the residual surface along each axis."""

_PROBES = 400
"""Stars whose surroundings are looked at."""

_SAMPLE = 12
"""Stars that give the share of matches in the surroundings of one."""

_MOST_SHARE = 0.9
"""Some stars always lack a partner."""

_RARE = 1e-4
"""Chance of so few matches in a sample of the usual share, below which the surroundings do not match."""


def unmatched_part(fit: Fit, template: StarList, source: StarList) -> float:
    """Return the part of the overlap's stars in whose surroundings far fewer stars match than elsewhere.

    Only surroundings where the source shows as many stars as elsewhere count: where it shows none, none can match.
    """
    predicted = fit.transform(template.xy)
    inside = np.flatnonzero(is_inside(predicted, source.shape))
    if len(inside) < _FEWEST:
        return 0.0
    matched = np.zeros(len(template), bool)
    matched[fit.matches.template] = True
    xy = predicted[inside]
    probes = slice(None, None, 1 + len(xy) // _PROBES)
    distance, near = cKDTree(xy, balanced_tree=False, compact_nodes=False).query(xy[probes], _SAMPLE)
    count = matched[inside][near].sum(axis=1)
    # the share where they do match
    usual = float(np.median(count[count >= 0.5 * np.quantile(count, 0.98)])) / _SAMPLE
    shown = source.tree.query_ball_point(xy[probes], distance[:, -1], return_length=True)
    poor = (bdtr(count, _SAMPLE, min(usual, _MOST_SHARE)) < _RARE) & (shown > 0.5 * np.median(shown))
    return float(poor.mean())


def follow(fit: Fit, template: StarList, source: StarList, *, max_order: int) -> Fit | None:
    """Extend the pairs of a fit to where its polynomial fails, and fit a polynomial and a spline to all of them.

    Returns
    -------
    Fit or None
        None if the neighbours lead no farther.
    """
    if len(fit.matches) < 2 * _NEIGHBOURS:
        return None
    pairs = _spread(fit, template, source)
    if len(pairs) <= len(fit.matches):
        return None
    result, transform, radius = None, fit.transform, _RADIUS
    for _ in range(_FITS):
        result = fit_pairs(pairs, template, source, last=transform, max_order=max_order, tolerance=radius, clip=False)
        if result is None:
            return None
        result = add_spline(result, template, source, most_cells=_MOST_CELLS)
        transform = result.transform
        # with the surface in place the pairs are matched anew, more strictly each time
        radius = float(np.clip(6 * true_spread(result.matches.distance, radius), _LEAST_RADIUS, radius))
        pairs = match_stars(transform(template.xy), source.tree, source.shape, radius)
    return result


def _spread(fit: Fit, template: StarList, source: StarList) -> Matches:
    """Return the pairs that can be reached from neighbour to neighbour."""
    partner = np.full(len(template), -1)
    partner[fit.matches.template] = fit.matches.source
    for _ in range(_MOST_STEPS):
        known = np.flatnonzero(partner >= 0)
        predicted, reach = _predict(template.xy, known, source.xy[partner[known]], fit.transform)
        finite = np.where(np.isfinite(predicted), predicted, 1e12)
        distance, star = source.tree.query(finite, distance_upper_bound=_RADIUS)
        # a star between its neighbours is predicted better than one beyond them
        good = (distance < np.clip(reach, _LEAST_RADIUS, _RADIUS)) & is_inside(finite, source.shape)
        new = np.full(len(template), -1)
        order = np.flatnonzero(good)
        order = order[np.argsort(distance[order], kind="stable")]
        chosen, first = np.unique(star[order], return_index=True)
        new[order[first]] = chosen
        if np.array_equal(new, partner):
            break
        partner = new
        if np.count_nonzero(partner >= 0) < _NEIGHBOURS:
            return fit.matches
    index = np.flatnonzero(partner >= 0)
    distance = np.hypot(*(source.xy[partner[index]] - predicted[index]).T)
    return Matches(index, partner[index], distance, int(np.count_nonzero(is_inside(finite, source.shape))))


def _predict(xy: Float, known: Int, image: Float, transform: Transform) -> tuple[Float, Float]:
    """Predict all stars from the pairs nearest to each, itself left out.

    Returns
    -------
    ndarray, shape (N, 2)
        Positions in the source; NaN for stars that are far from all pairs.
    ndarray, shape (N,)
        Distance within which the star is to be looked for: the scatter of the neighbours about their map, three times,
        and a part of the distance to them.
    """
    count = min(_NEIGHBOURS + 1, len(known))
    distance, near = cKDTree(xy[known]).query(xy, count)
    # a pair does not predict itself
    itself = known[near] == np.arange(len(xy))[:, None]
    weight = np.where(itself, 0.0, 1.0)
    a = xy[known][near] - xy[:, None]
    b = image[near]
    design = np.concatenate([np.ones((*a.shape[:2], 1)), a], axis=2)
    gram = np.einsum("nki,nkj,nk->nij", design, design, weight)
    # neighbours in a row fix no map: the polynomial's derivative stands in, weakly
    prior = transform.jacobian(xy)
    ridge = 1e-3 * np.einsum("nkk->n", gram[:, 1:, 1:])[:, None, None] * np.diag([0.0, 1.0, 1.0])
    right = np.einsum("nki,nkc,nk->nic", design, b, weight)
    right[:, 1:] += ridge[:, 1:, 1:] @ prior.transpose(0, 2, 1)
    solution = np.linalg.solve(gram + ridge, right)
    miss = np.hypot(*np.moveaxis(b - design @ solution, 2, 0))
    scatter = np.sqrt((weight * miss**2).sum(axis=1) / np.maximum(weight.sum(axis=1) - 3, 1))
    spacing = np.median(distance[known, -1])
    # beyond twice the usual distance of the farthest neighbour nothing is predicted
    reachable = distance[:, -1] < 2 * spacing
    return np.where(reachable[:, None], solution[:, 0], np.nan), 3 * scatter + 0.03 * transform.scale * distance[:, -1]
