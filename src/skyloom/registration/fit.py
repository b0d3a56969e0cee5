"""From a first similarity to the final transform: match, fit, clip, raise the order while the data ask for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from skyloom.registration.spline import fit_spline
from skyloom.registration.transform import Transform, monomials, n_terms
from skyloom.registration.verify import Matches, expected_by_chance, log_likelihood_ratio, match_stars

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_STARS_PER_TERM = 4
"""Stars that each term of a polynomial (of x and of y) must be backed by."""

_ROUNDS = 12
"""Most rounds of matching and fitting."""

_GROWING_STARS = 1000
"""Brightest stars of the template that find the order; all of them fit the final transform."""

_FEWEST_BRIGHT = 25
"""Brightest stars that take part however crowded the field."""

_CHANCE = 0.1
"""Largest chance that a star finds a partner by accident: in crowded fields only so many of the brightest take part
until the matching radius is small enough for all."""

RADII = 9
"""Matching radii among which the clearest is chosen."""

_STILL = 0.1
"""Part of the matching radius by which a round may move the stars and still count as the last: no pair changes."""

_SPREAD_DISTANCES = 300
"""Distances that give the spread to 4 per cent, 1 / sqrt(2 n), which is all that a matching radius needs."""

_SPLINE_STARS = 60
"""Fewest pairs for a residual surface."""

_SPLINE_ROUNDS = 3
"""Fits of the surface that find the weights and the outliers, before the last one."""

_ROUNDING = 1e-4
"""Pixels: lists that agree to this are copies of each other, and what is left is rounding."""

_LEAST_TOLERANCE = 1.0
"""Source pixels: a smaller matching radius wins nothing and loses faint stars."""

_CLIP = 4.0
"""Residuals above so many robust standard deviations do not take part in the fit."""

_LEAST_FLOOR = 0.003
"""Pixels."""

_RAYLEIGH_MEDIAN = float(np.sqrt(2 * np.log(2)))
"""Median length of a two-dimensional Gaussian vector of unit standard deviation per axis."""


@dataclass(frozen=True, eq=False)
class StarList:
    """Stars of one image, brightest first.

    Attributes
    ----------
    xy : ndarray, shape (N, 2)
        Positions.
    error : ndarray, shape (N,)
        Standard error of the position along each axis, pixels.
    shape : (int, int)
        Of the image, (ny, nx).
    rows : ndarray of int, shape (N,)
        Where each star stands in the table that it came from.
    """

    xy: Float
    error: Float
    shape: tuple[int, int]
    rows: npt.NDArray[np.intp]

    @cached_property
    def tree(self) -> cKDTree:
        """Nearest-neighbour tree of the positions; a balanced one takes longer to build than it saves."""
        return cKDTree(self.xy, balanced_tree=False, compact_nodes=False)

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, which: slice | Bool) -> StarList:
        return StarList(self.xy[which], self.error[which], self.shape, self.rows[which])


@dataclass(frozen=True, eq=False)
class Fit:
    """A transform, the pairs that it was fitted to, and how well.

    Attributes
    ----------
    transform : Transform
        Template to source.
    covariance : ndarray, shape (2 P, 2 P)
        Of ``transform.coefficients.ravel()``, source pixels squared, scaled to the scatter found.
    matches : Matches
        Pairs within the final tolerance, clipped ones left out.
    sigma : ndarray, shape (n_matched,)
        Standard error of each pair, with the floor that the scatter asks for.
    tolerance : float
        Of the last matching, source pixels.
    depth : (int, int)
        The brightest stars of template and source among which the pairs were looked for.
    """

    transform: Transform
    covariance: Float
    matches: Matches
    sigma: Float
    tolerance: float
    depth: tuple[int, int]


def grow(first: Transform, template: StarList, source: StarList, *, max_order: int, tolerance: float) -> Fit | None:
    """Grow a first guess to the final transform.

    Each round matches with the transform so far, fits all orders up to a rising limit, and keeps the one of least
    BIC = N ln(chi^2 / N) + k ln N, with N = 2 n residuals and k free coefficients.

    Parameters
    ----------
    first : Transform
        First guess.
    template, source : StarList
        The stars.
    max_order : int
        Highest degree to try.
    tolerance : float
        First matching radius, source pixels.

    Returns
    -------
    Fit or None
        None if too few stars match to fit anything.
    """
    transform, fit, most = first, None, _GROWING_STARS
    for round_ in range(_ROUNDS):
        if round_ == _ROUNDS - 1:
            most = len(template)
        a = _uncrowded(template, tolerance / transform.scale)[:most]
        b = _uncrowded(source, tolerance)
        matches = match_stars(transform(a.xy), b.tree, b.shape, tolerance)
        if len(matches) < 3:
            return None
        spread = true_spread(matches.distance, tolerance)
        # beyond four sigma of the true pairs there is little but chance
        matches = matches[matches.distance < max(4 * spread, _LEAST_TOLERANCE)]
        if len(matches) < 3:
            return None
        # the first fit is linear: it must not bend through pairs that a coarse guess got wrong. After that, two orders
        # more than the last: a distortion may have odd orders only
        tried = 1 if fit is None else min(max_order, transform.order + 2)
        fit = fit_pairs(matches, a, b, last=transform, max_order=tried, tolerance=tolerance)
        if fit is None:
            return None
        last, transform = transform, fit.transform
        xy = a.xy[matches.template]
        predicted = transform(xy)
        left = np.hypot(*(b.xy[matches.source] - predicted).T)
        radius = max(_LEAST_TOLERANCE, min(tolerance, 6 * true_spread(left, tolerance)))
        still = bool((np.abs(predicted - last(xy)) < _STILL * tolerance).all()) and radius > 0.9 * tolerance
        if still and (tried == max_order or tried >= transform.order + 2):
            if most >= len(template):
                break
            most, radius = len(template), _clearest_radius(matches, b, tolerance)
        tolerance = radius
    return fit


def _clearest_radius(matches: Matches, source: StarList, tolerance: float) -> float:
    """Return the matching radius, up to `tolerance`, at which the matches are the least likely by chance.

    In crowded fields true pairs are few beyond a fraction of a pixel, however far blends spread some of them.
    """
    radii = np.geomspace(_LEAST_TOLERANCE, max(tolerance, _LEAST_TOLERANCE), RADII)
    evidence = [
        log_likelihood_ratio(
            int(np.count_nonzero(matches.distance < r)),
            expected_by_chance(matches.inside, len(source), source.shape, r),
        )
        for r in radii.tolist()
    ]
    return float(radii[int(np.argmax(evidence))])


def _uncrowded(stars: StarList, radius: float) -> StarList:
    """Return as many of the brightest as leave a disc of this radius a chance of `_CHANCE` to hold one."""
    most = int(_CHANCE * stars.shape[0] * stars.shape[1] / (np.pi * radius**2))
    return stars if most >= len(stars) else stars[: max(most, _FEWEST_BRIGHT)]


def true_spread(distance: Float, radius: float) -> float:
    """Return the standard deviation per axis of the true pairs among matches of which many may be by chance.

    Distances of true pairs follow a Rayleigh distribution, those by chance fill the disc of the matching radius R:

        p(d) = f d / s^2 exp(-d^2 / (2 s^2)) + (1 - f) 2 d / R^2,

    with f and s found by expectation maximisation from several starts, of which the likeliest counts. s is at most
    R / 3: beyond, the two parts cannot be told apart.
    """
    d2 = np.minimum(distance[:: 1 + len(distance) // _SPREAD_DISTANCES], radius) ** 2
    most = (radius / 3) ** 2
    s2, fraction = most * 4.0 ** np.array([-4.0, -2.0, 0.0]), np.full(3, 0.5)
    chance = 2 / radius**2
    moments = np.column_stack([np.ones_like(d2), d2])

    def true_density() -> Float:
        return (fraction / s2)[:, None] * np.exp(np.multiply.outer(-0.5 / s2, d2))

    for _ in range(15):
        member = true_density()
        member /= member + ((1 - fraction) * chance)[:, None]
        total, squares = (member @ moments).T
        fraction = np.minimum(total / len(d2), 0.999)
        s2 = np.minimum(np.maximum(squares / (2 * total + 1e-300), 1e-8), most)
    likelihood = np.log(true_density() + ((1 - fraction) * chance)[:, None]).sum(axis=1)
    return float(np.sqrt(s2[int(np.argmax(likelihood))]))


def add_spline(fit: Fit, template: StarList, source: StarList, *, most_cells: int = 8) -> Fit:
    """Add a smooth surface to a polynomial whose residuals are alike for neighbouring stars, if it predicts new stars.

    Both conditions must hold: (1) the mean product of neighbours' residuals exceeds four of its standard errors, and
    (2) the surface lowers the error of left-out stars, one at a time, by more than twice its standard error. The
    weights are those of the positions' own errors, not of what the polynomial misses; outliers are clipped.
    """
    if len(fit.matches) < _SPLINE_STARS:
        return fit
    a, b = template.xy[fit.matches.template], source.xy[fit.matches.source]
    miss = b - fit.transform(a)
    if np.median(np.abs(miss)) < _ROUNDING:
        return fit
    unit = miss / fit.sigma[:, None]
    near = cKDTree(a).query(a, k=2)[1][:, 1]
    product = (unit * unit[near]).sum(axis=1)
    if product.mean() < 4 * product.std() / np.sqrt(len(a)):
        return fit
    cells = int(np.clip(np.sqrt(len(a) / 8), 2, most_cells))
    variance = _pair_variance(fit.matches, template, source, fit.transform.scale)
    keep, sigma = np.ones(len(a), bool), fit.sigma
    for _ in range(_SPLINE_ROUNDS):
        spline, leverage = fit_spline(a[keep], miss[keep], sigma[keep], cells)
        left = miss - spline(a)
        left_out = left[keep] / np.maximum(1 - leverage, 1e-3)[:, None]
        gain = (miss[keep] ** 2 - left_out**2).sum(axis=1) / sigma[keep] ** 2
        if gain.mean() < 2 * gain.std() / np.sqrt(len(gain)):
            return fit
        length = np.hypot(*left.T)
        sigma = np.sqrt(variance + noise_floor(length[keep], variance[keep]) ** 2)
        keep = length < _clip_limit(length, sigma, keep)
    spline, _ = fit_spline(a[keep], miss[keep], sigma[keep], cells)
    left = miss[keep] - spline(a[keep])
    chi2 = float(((left / sigma[keep, None]) ** 2).sum()) / (2 * len(left))
    return replace(
        fit,
        transform=replace(fit.transform, residual=replace(spline, root=spline.root * np.sqrt(chi2))),
        matches=replace(fit.matches[keep], distance=np.hypot(*left.T)),
        sigma=sigma[keep],
        # the polynomial is what it is: the surface is what may be wrong
        covariance=np.zeros_like(fit.covariance),
    )


def _pair_variance(matches: Matches, template: StarList, source: StarList, scale: float) -> Float:
    """Return the variance of the distance of each pair along an axis, from both positions, source pixels squared."""
    return source.error[matches.source] ** 2 + (scale * template.error[matches.template]) ** 2


def _clip_limit(length: Float, sigma: Float, keep: Bool) -> Float:
    """Return the length of the residuals beyond which pairs are outliers, judged by the scatter of those kept."""
    spread = max(1.0, float(np.median(length[keep] / sigma[keep])) / _RAYLEIGH_MEDIAN)
    return _CLIP * spread * sigma


def fit_pairs(
    matches: Matches,
    template: StarList,
    source: StarList,
    *,
    last: Transform,
    max_order: int,
    tolerance: float,
    clip: bool = True,
) -> Fit | None:
    """Fit all families of transform to matched pairs and return the one of least BIC; `clip` drops outliers."""
    a, b = template.xy[matches.template], source.xy[matches.source]
    variance = _pair_variance(matches, template, source, last.scale)
    low, high = a.min(axis=0), a.max(axis=0)
    centre, half = (low + high) / 2, max(float((high - low).max()) / 2, 1.0)
    uv = (a - centre) / half
    design = monomials(uv, _highest_order(len(a), max_order))
    keep, sigma = _clipped(design, b, variance, last.parity)
    if not clip:
        keep[:] = True
    n = int(keep.sum())
    if n < 3:
        return None
    design, b, sigma = design[keep], b[keep], sigma[keep]
    candidates = [weighted_similarity(uv[keep], b, sigma, last.parity)]
    if n >= 4:
        gram, right = _normal(design, b, sigma)
        candidates += [_polynomial(gram, right, o) for o in range(1, _highest_order(n, max_order) + 1)]
    scores, misses = [], []
    for coefficients, _, free in candidates:
        misses.append(b - design[:, : coefficients.shape[1]] @ coefficients.T)
        chi2 = float(np.square(misses[-1] / sigma[:, None]).sum())
        # 1e-6: lists without any error are as good as one with a thousandth of the error floor
        scores.append(2 * n * np.log(chi2 / (2 * n) + 1e-6) + free * np.log(2 * n))
    best = int(np.argmin(scores))
    while best > 1:
        lower = int(np.argmin(scores[:best]))
        if _predicts_better(design, candidates[best][1], misses[best], misses[lower], sigma):
            break
        best = lower
    coefficients, inverse, free = candidates[best]
    chosen = _order_of(coefficients)
    if abs(np.linalg.det(coefficients[:, 1:3])) <= 1e-12:
        return None
    chi2 = float(np.square(misses[best] / sigma[:, None]).sum()) / max(2 * n - free, 1)
    covariance = inverse if free == 4 else np.asarray(np.kron(np.eye(2), inverse), np.float64)
    covariance = covariance * max(chi2, 1e-12)
    kind = "similarity" if free == 4 else "affine" if chosen == 1 else "polynomial"
    kept = replace(matches[keep], distance=np.hypot(*misses[best].T))
    found = Transform(coefficients, chosen, centre, half, kind)
    return Fit(found, covariance, kept, sigma, tolerance, (len(template), len(source)))


def _highest_order(count: int, max_order: int) -> int:
    """Return the highest order that so many stars can back."""
    return max(o for o in range(1, max_order + 1) if o == 1 or n_terms(o) * _STARS_PER_TERM <= count)


def _predicts_better(design: Float, inverse: Float, miss: Float, lower_miss: Float, sigma: Float) -> bool:
    """Tell whether a polynomial is closer to pairs that it was not fitted to than a lower order is.

    Pairs are left out one at a time, miss / (1 - leverage). The gain must be twice its standard error: where a few
    pairs have nearly all of the weight (the others saturated), BIC counts the others as if they had agreed.
    """
    design = design[:, : len(inverse)]
    leverage = ((design @ inverse) * design).sum(axis=1) / sigma**2
    left_out = miss / np.maximum(1 - leverage, 1e-3)[:, None]
    gain = (lower_miss**2 - left_out**2).sum(axis=1) / sigma**2
    return bool(gain.mean() > 2 * gain.std() / np.sqrt(len(gain)))


def _order_of(coefficients: Float) -> int:
    return next(o for o in range(1, 10) if n_terms(o) == coefficients.shape[1])


def _clipped(design: Float, b: Float, variance: Float, parity: int) -> tuple[Bool, Float]:
    """Return which pairs survive clipping and their standard errors with a floor that makes the scatter right."""
    keep = np.ones(len(b), bool)
    floor = 0.0
    sigma = np.sqrt(variance + 1e-4)
    for _ in range(6):
        if keep.sum() >= 2 * design.shape[1]:
            gram, right = _normal(design[keep], b[keep], sigma[keep])
            coefficients = np.linalg.solve(gram, right).T
            miss = b - design @ coefficients.T
        else:
            coefficients, _, _ = weighted_similarity(design[keep, 1:3], b[keep], sigma[keep], parity)
            miss = b - design[:, :3] @ coefficients.T
        length = np.hypot(*miss.T)
        floor = noise_floor(length[keep], variance[keep])
        sigma = np.sqrt(variance + floor**2)
        now = length < _clip_limit(length, sigma, keep)
        if now.sum() < 3 or np.array_equal(now, keep):
            break
        keep = now
    return keep, sigma


def noise_floor(length: Float, variance: Float) -> float:
    """Return the scatter f (per axis) beyond the known errors, at which median(r^2 / (variance + f^2)) = 2 ln 2."""
    # r^2 / (v + f^2) > 2 ln 2 where r^2 / (2 ln 2) - v > f^2: true for one half of the pairs
    excess = float(np.median(np.square(length / _RAYLEIGH_MEDIAN) - variance))
    return max(_LEAST_FLOOR, float(np.sqrt(max(excess, 0.0))))


def _normal(design: Float, b: Float, sigma: Float) -> tuple[Float, Float]:
    """Return Gram matrix and right-hand side of the weighted least squares (coordinates are within [-1, 1])."""
    weighted = design / sigma[:, None]
    return weighted.T @ weighted, weighted.T @ (b / sigma[:, None])


def _polynomial(gram: Float, right: Float, order: int) -> tuple[Float, Float, int]:
    """Solve for one order, whose normal equations are the leading block of those of any higher one.

    Returns the coefficients, the covariance of those of either axis, and the number of all.
    """
    p = n_terms(order)
    inverse = np.linalg.inv(gram[:p, :p])
    coefficients = np.asarray(np.linalg.solve(gram[:p, :p], right[:p]).T, np.float64)
    return coefficients, np.asarray(inverse, np.float64), 2 * p


def weighted_similarity(uv: Float, b: Float, sigma: Float, parity: int) -> tuple[Float, Float, int]:
    """Fit shift, scale and rotation: x' = c + p a u - d v, y' = e + p d u + a v, parameters (c, e, a, d).

    Returns the coefficients, the covariance of them all, and the number of parameters.
    """
    n = len(uv)
    design = np.zeros((n, 2, 4))
    design[:, 0, 0] = design[:, 1, 1] = 1.0
    design[:, 0, 2], design[:, 0, 3] = parity * uv[:, 0], -uv[:, 1]
    design[:, 1, 2], design[:, 1, 3] = uv[:, 1], parity * uv[:, 0]
    weighted = (design / sigma[:, None, None]).reshape(2 * n, 4)
    gram = weighted.T @ weighted
    solution = np.linalg.solve(gram, weighted.T @ (b / sigma[:, None]).reshape(2 * n))
    # coefficients.ravel() = (c, p a, -d, e, p d, a)
    spread = np.zeros((6, 4))
    for row, column, value in ((0, 0, 1), (1, 2, parity), (2, 3, -1), (3, 1, 1), (4, 3, parity), (5, 2, 1)):
        spread[row, column] = value
    return (spread @ solution).reshape(2, 3), spread @ np.linalg.inv(gram) @ spread.T, 4
