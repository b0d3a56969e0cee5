"""Blind search: deeper and deeper star lists, votes, verification, until a transform is beyond doubt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skyloom.errors import NoMatchError
from skyloom.registration.asterisms import make_asterisms
from skyloom.registration.detect import LOWER
from skyloom.registration.fit import RADII, Fit, StarList, add_spline, grow, true_spread
from skyloom.registration.follow import follow, unmatched_part
from skyloom.registration.transform import Transform, n_terms
from skyloom.registration.verify import (
    expected_by_chance,
    expected_by_control,
    expected_by_density,
    is_inside,
    log_likelihood_ratio,
    match_stars,
)
from skyloom.registration.vote import Similarities, cast_votes, count_votes

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """One depth of the search.

    Attributes
    ----------
    depth : int
        Brightest stars of each list that form asterisms.
    neighbours : int
        Nearest neighbours that are combined.
    size : int
        3 for triangles, 4 for quads.
    tolerance : float
        Radius in the space of shapes.
    """

    depth: int
    neighbours: int
    size: int
    tolerance: float


LEVELS = (
    Level(25, 10, 3, 0.012),
    Level(60, 8, 3, 0.012),
    Level(150, 7, 3, 0.012),
    Level(400, 6, 3, 0.012),
    Level(60, 9, 4, 0.02),
    Level(300, 6, 4, 0.02),
    Level(1000, 6, 3, 0.006),
)
"""A difference in depth, band or artefacts makes the brightest stars differ: then a deeper level succeeds. Quads serve
where triangles are too common."""

_VERIFY_STARS = 300
_VERIFY_TOLERANCE = 4.0
_FIRST_TOLERANCE = 5.0
_PER_LEVEL = 24
_FITS_PER_LEVEL = 4
_PART = 0.02
"""Part of the overlap that may be without matches before an irregular distortion is looked for."""

_MOST_STRETCH = 1.5
_ALIKE = 0.1
"""Largest difference of the coefficients of two linear maps, of their scale, that a distortion may make."""

_RIVALS = 8
_SURE = 100.0
"""Coarse log-likelihood ratio above which no other hypothesis of the level is looked at."""

_FIT_STARS = 3000
_FEW_CHOICES = 6
"""Stars of the shorter list that leave the fit no choice of its pairs."""
_FEW = 15
"""Sources below which an error says that they are too few, before anything else."""


@dataclass(frozen=True, eq=False)
class Solution:
    """An accepted transform with its evidence.

    Attributes
    ----------
    fit : Fit
        The transform and its pairs.
    template, source : StarList
        The stars that were used, to which the indices of the pairs refer.
    log_likelihood_ratio : float
        Of the matches against chance, after the stars that the transform's freedom takes.
    log_chance : float
        Natural logarithm of the bound on the probability of a false match: LLR and number of trials.
    method : str
        How it was found.
    """

    fit: Fit
    template: StarList
    source: StarList
    log_likelihood_ratio: float
    log_chance: float
    method: str


def search(
    template: StarList, source: StarList, *, max_order: int, threshold: float, scale_range: tuple[float, float]
) -> Solution:
    """Find the transform between two lists of stars without any prior.

    Raises
    ------
    NoMatchError
        No transform reaches the threshold; the message has the best that was found.
    """
    trials, best = 0, 0.0
    brightest = template[:_VERIFY_STARS], source[:_VERIFY_STARS]
    for level in LEVELS:
        votes = _votes(template, source, level, scale_range)
        # every vote is a transform that could have been chosen
        trials += len(votes)
        hypotheses = count_votes(votes, (np.array(template.shape[::-1]) - 1) / 2, _PER_LEVEL)
        scores = np.zeros(len(hypotheses))
        for i in range(len(hypotheses)):
            scores[i] = _score(hypotheses, i, *brightest)
            if scores[i] > _SURE:
                break
        for i in np.argsort(-scores, kind="stable")[:_FITS_PER_LEVEL]:
            # the first look is coarse: only what could not be right is left out
            if scores[i] < 0.5 * threshold:
                break
            first = Transform.linear(*hypotheses.linear(int(i)))
            solution = refine(first, template, source, max_order=max_order, trials=trials, method=_name(level))
            if solution is None:
                continue
            best = max(best, -solution.log_chance)
            if -solution.log_chance > threshold:
                _check_rivals(solution, hypotheses, int(i), template, source)
                return solution
    few = min(len(source), len(template)) < _FEW
    raise NoMatchError(
        f"No transform brings the {len(source)} sources of the source image and the {len(template)} of the template "
        f"together better than chance (best log-odds {best:.1f}, needed {threshold:g}). "
        + (
            f"With so few sources most of them must be in both images: take deeper ones, or {LOWER}."
            if few
            else f"Check that the images show the same field, or {LOWER}."
        ),
        n_source=len(source),
        n_template=len(template),
        log_odds=best,
        needed=threshold,
    )


def _check_rivals(
    solution: Solution, hypotheses: Similarities, winner: int, template: StarList, source: StarList
) -> None:
    """Raise if another transform explains the stars half as well: a regular pattern, repeated artefacts.

    For stars at random places no second transform comes near; if one does, which of the two is right cannot be known.
    """
    a, b = template[:_VERIFY_STARS], source[:_VERIFY_STARS]
    reference = _score(hypotheses, winner, a, b)
    for i in np.flatnonzero(hypotheses.votes >= 0.25 * hypotheses.votes[winner])[:_RIVALS]:
        first = Transform.linear(*hypotheses.linear(int(i)))
        if i == winner or _alike(first, solution.fit.transform, template.shape):
            continue
        if _score(hypotheses, int(i), a, b) < 0.5 * reference:
            continue
        rival = refine(first, template, source, max_order=1, trials=1, method="")
        if rival is None or rival.log_likelihood_ratio < 0.5 * solution.log_likelihood_ratio:
            continue
        if not _alike(rival.fit.transform, solution.fit.transform, template.shape):
            raise NoMatchError(
                "Two different transforms bring the sources together comparably well (log-likelihood ratios "
                f"{solution.log_likelihood_ratio:.0f} and {rival.log_likelihood_ratio:.0f}): the pattern of the "
                "sources repeats itself. Give images with a WCS, or mask the repeated artefacts.",
                log_odds=-solution.log_chance,
            )


def _alike(one: Transform, other: Transform, shape: tuple[int, int]) -> bool:
    """Tell whether two transforms of a template of this shape are the same but for distortions."""
    centre = (np.array([shape[::-1]]) - 1) / 2
    place = one(centre) - other(centre)
    linear = (one.jacobian(centre) - other.jacobian(centre))[0] / other.scale
    return bool(np.hypot(*place[0]) < 3 * _FIRST_TOLERANCE and np.abs(linear).max() < _ALIKE)


def _name(level: Level) -> str:
    return f"{'triangles' if level.size == 3 else 'quads'} of the {level.depth} brightest"


def _votes(template: StarList, source: StarList, level: Level, scale_range: tuple[float, float]) -> Similarities:
    """Return the votes of one level."""
    a, b = template.xy[: level.depth], source.xy[: level.depth]
    shapes_a, shapes_b = (make_asterisms(xy, level.neighbours, level.size) for xy in (a, b))
    return cast_votes(a, shapes_a, b, shapes_b, tolerance=level.tolerance, scale_range=scale_range)


def _score(hypotheses: Similarities, index: int, a: StarList, b: StarList) -> float:
    """Return the coarse log-likelihood ratio of one hypothesis from the brightest stars."""
    matches = match_stars(hypotheses.apply(index, a.xy), b.tree, b.shape, _VERIFY_TOLERANCE)
    expected = expected_by_chance(matches.inside, len(b), b.shape, _VERIFY_TOLERANCE)
    return log_likelihood_ratio(len(matches), expected, 2)


def refine(
    first: Transform,
    template: StarList,
    source: StarList,
    *,
    max_order: int,
    trials: int,
    method: str,
    tolerance: float = _FIRST_TOLERANCE,
) -> Solution | None:
    """Fit in full from a first guess and weigh the evidence; None if the fit loses the stars."""
    a, b = template[:_FIT_STARS], source[:_FIT_STARS]
    try:
        fit = grow(first, a, b, max_order=max_order, tolerance=tolerance)
    except np.linalg.LinAlgError:  # stars that all lie on a line, or at one place, fix no map
        return None
    if fit is None or not _sound(fit.transform, first, template, source):
        return None
    # residuals that fill the whole disc of the matching radius are no evidence at all
    if fit.tolerance >= tolerance and true_spread(fit.matches.distance, tolerance) > 0.3 * tolerance:
        return None
    chance = _by_chance(fit, a, b)
    completed = add_spline(fit, a, b) if max_order > 1 else fit
    free = 2.0 if fit.transform.kind == "similarity" else float(n_terms(fit.transform.order))
    if max_order > 1 and unmatched_part(fit, a, b) > _PART:
        try:
            followed = follow(fit, a, b, max_order=max_order)
        except np.linalg.LinAlgError:  # neighbours on a line lead nowhere
            followed = None
        if followed is not None:
            more = _by_chance(followed, a, b)
            # it must win more pairs than chance brings, three standard deviations of that
            if len(followed.matches) - more > len(fit.matches) - chance + 3 * np.sqrt(more):
                completed, chance = followed, more
                # the freedom of the surface is no evidence
                free = float(n_terms(followed.transform.order)) + _surface_terms(followed.transform)
        # what holds in less than half of the overlap is not the transform, however sure it is there
        if unmatched_part(completed, a, b) > 0.5:
            return None
    llr = log_likelihood_ratio(len(completed.matches), chance, free)
    # the matching radius was chosen among several, too; and while pairs are chosen and the fit follows them, each star
    # is a chance to move it to where more stars match
    choices = max(trials, 1) * RADII * max(1.0, min(len(a), len(b)) / _FEW_CHOICES)
    return Solution(completed, a, b, llr, float(np.log(choices)) - llr, method)


def _surface_terms(transform: Transform) -> int:
    """Return the number of coefficients of a transform's residual surface, per axis."""
    return 0 if transform.residual is None else transform.residual.coefficients[..., 0].size


def _by_chance(fit: Fit, template: StarList, source: StarList) -> float:
    """Return the number of matches that chance brings among the stars that took part: the largest of the estimates."""
    template, source = (_first(stars, n) for stars, n in zip((template, source), fit.depth, strict=True))
    predicted = fit.transform(template.xy)
    inside = int(is_inside(predicted, source.shape).sum())
    return max(
        expected_by_chance(inside, len(source), source.shape, fit.tolerance),
        expected_by_density(predicted, source.tree, source.shape, fit.tolerance),
        expected_by_control(predicted, source.tree, source.shape, fit.tolerance),
    )


def _first(stars: StarList, count: int) -> StarList:
    """Return so many of the brightest stars."""
    return stars if count >= len(stars) else stars[:count]


def _sound(transform: Transform, first: Transform, template: StarList, source: StarList) -> bool:
    """Tell whether the transform is near the first guess in shape, and neither folds nor degenerates at the stars."""
    size = np.linalg.svd(transform.matrix, compute_uv=False) / first.scale
    if size[0] > _MOST_STRETCH or size[1] < 1 / _MOST_STRETCH or transform.parity != first.parity:
        return False
    inside = is_inside(transform(template.xy), source.shape)
    if not inside.any():
        return False
    area = np.linalg.det(transform.jacobian(template.xy[inside])) / np.linalg.det(transform.matrix)
    return bool((area > 1 / _MOST_STRETCH**2).all() and (area < _MOST_STRETCH**2).all())
