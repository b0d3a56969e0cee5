"""Irregular distortions: followed from star to star, and not looked for where there are none."""

import numpy as np
import pytest
from astropy.table import Table

from reference.registration_sim import MORE_REGIMES, REGIMES, Regime, make_lists
from skyloom.registration import RegistrationOptions, Transform, register
from skyloom.registration.fit import StarList, grow
from skyloom.registration.follow import _predict, follow, unmatched_part
from skyloom.registration.register import star_list


@pytest.mark.parametrize("name", ["irregular distortion 40 px", "irregular distortion 3 px"])
def test_irregular_distortions_are_followed(name):
    source, template, truth = make_lists(2, MORE_REGIMES[name], noise=0.03)
    result = register(source, template)
    # as many as 10 % missing in each list, and some at the border, leave
    assert result.n_matched > 0.7 * len(template)
    # the surface has some 300 unknowns for 1100 stars of 0.04 px, and the borders are extrapolated
    assert truth.rms_error(result)[0] < 0.1
    grid = truth.grid()
    np.testing.assert_allclose(result.source_to_template(result.template_to_source(grid)), grid, atol=1e-6)
    # a linear map does not claim more than the part in which it holds; if that is small, it is too inexact elsewhere
    linear = register(source, template, RegistrationOptions(max_order=1, max_error=1.0))
    assert linear.n_matched < result.n_matched


def lists(regime, seed=3, **kind):
    source, template, truth = make_lists(seed, regime, **kind)
    return star_list(source, None, "source"), star_list(template, None, "template"), truth


@pytest.mark.parametrize("name", ["base", "overlap 50%", "band 1.5 mag", "distortion 40 px", "2000 stars"])
def test_no_irregularity_where_there_is_none(name):
    source, template, truth = lists(REGIMES[name], spurious=0.3, missing=0.3)
    fit = grow(linear(truth), template, source, max_order=5, tolerance=5.0)
    assert unmatched_part(fit, template, source) <= 0.02


def linear(truth):
    """Return the transform that is right at the centre."""
    c = np.array([[truth.size / 2, truth.size / 2]])
    step = np.array([[1.0, 0.0], [0.0, 1.0]])
    matrix = (truth(c + step) - truth(c - step)).T / 2
    return Transform.linear(matrix, truth(c)[0] - matrix @ c[0])


def test_the_part_that_does_not_match_is_seen():
    source, template, truth = lists(MORE_REGIMES["irregular distortion 40 px"])
    fit = grow(linear(truth), template, source, max_order=1, tolerance=5.0)
    assert unmatched_part(fit, template, source) > 0.3
    followed = follow(fit, template, source, max_order=5)
    assert len(followed.matches) > 2 * len(fit.matches)
    assert unmatched_part(followed, template, source) < 0.05


def test_where_the_source_shows_nothing_nothing_is_missed():
    source, template, truth = lists(Regime(stars=1000), spurious=0.0)
    left = StarList(*(part[source.xy[:, 0] < 500] for part in (source.xy, source.error)), source.shape, source.rows)
    fit = grow(linear(truth), template, left, max_order=3, tolerance=5.0)
    assert unmatched_part(fit, template, left) < 0.05


def test_prediction_is_exact_for_affine_maps():
    rng = np.random.default_rng(1)
    xy = rng.uniform(0, 500, (300, 2))
    matrix, shift = np.array([[0.9, -0.3], [0.2, 1.1]]), np.array([3.0, -7.0])
    transform = Transform.linear(matrix, shift)
    known = np.sort(rng.permutation(300)[:150])
    predicted, reach = _predict(xy, known, transform(xy[known]), transform)
    near = np.isfinite(predicted).all(axis=1)
    assert near.mean() > 0.9
    np.testing.assert_allclose(predicted[near], transform(xy)[near], atol=1e-6)
    assert (reach > 0).all()
    # a pair does not vouch for itself: one that is wrong is predicted where it ought to be
    image = transform(xy[known])
    image[0] += [50.0, 0.0]
    predicted, _ = _predict(xy, known, image, transform)
    assert np.hypot(*(predicted[known[0]] - transform(xy[known[:1]])[0])) < 1e-6


def test_few_stars_have_no_irregularity():
    table = Table({"x": np.arange(10.0) ** 2, "y": np.arange(10.0)})
    stars = star_list(table, (100, 100), "stars")
    fit = grow(Transform.linear(np.eye(2)), stars, stars, max_order=1, tolerance=2.0)
    assert unmatched_part(fit, stars, stars) == 0.0
