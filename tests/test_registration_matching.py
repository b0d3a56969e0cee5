"""Asterisms, votes and the evidence, each against a star-by-star version."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.stats import poisson

from reference import registration_oracle as oracle
from skyloom.registration.asterisms import make_asterisms, neighbour_groups
from skyloom.registration.verify import (
    expected_by_chance,
    expected_by_control,
    expected_by_density,
    log_likelihood_ratio,
    match_stars,
)
from skyloom.registration.vote import Similarities, cast_votes, count_votes, least_squares_similarity

seeds = st.integers(0, 2**32 - 1)


def field(seed, count=20, size=1000.0):
    return np.random.default_rng(seed).uniform(0, size, (count, 2))


def similarity(xy, scale, angle, parity, shift):
    z = scale * np.exp(1j * angle) * (parity * xy[:, 0] + 1j * xy[:, 1]) + complex(*shift)
    return np.column_stack([z.real, z.imag])


@given(seeds, st.integers(3, 4), st.integers(3, 9))
@settings(max_examples=20, deadline=None)
def test_groups_are_those_of_the_nearest_neighbours(seed, size, neighbours):
    xy = field(seed)
    groups = neighbour_groups(xy, neighbours, size)
    expected = oracle.neighbour_groups(xy, neighbours, size) if neighbours >= size else set()
    assert {frozenset(map(int, g)) for g in groups} == expected
    assert len(groups) == len(expected)


@given(seeds, st.sampled_from([3, 4]))
@settings(max_examples=20, deadline=None)
def test_asterisms_follow_their_definition(seed, size):
    xy = field(seed)
    asterisms = make_asterisms(xy, 6, size)
    assert len(asterisms) > 0
    for stars, invariants, parity in zip(asterisms.stars, asterisms.invariants, asterisms.parity, strict=True):
        group = np.sort(stars)
        order, shape, sign = oracle.invariants(xy[group])
        np.testing.assert_array_equal(stars, group[list(order)])
        assert parity == sign
        np.testing.assert_allclose(invariants, np.concatenate([np.real(shape), np.imag(shape)]), atol=1e-12)


@given(seeds, st.sampled_from([3, 4]), st.floats(0.3, 4), st.floats(-3.1, 3.1), st.sampled_from([-1, 1]))
@settings(max_examples=30, deadline=None)
def test_asterisms_survive_similarities(seed, size, scale, angle, parity):
    xy = field(seed)
    a = make_asterisms(xy, 6, size)
    # scaled up, so that no side falls below the shortest allowed
    b = make_asterisms(similarity(xy, 1 + scale, angle, parity, (50, -7)), 6, size)
    found = {tuple(sorted(s)): (tuple(s), i, p) for s, i, p in zip(b.stars, b.invariants, b.parity, strict=True)}
    for stars, invariants, sign in zip(a.stars, a.invariants, a.parity, strict=True):
        other, image, image_sign = found[tuple(sorted(stars))]
        # ties of the order (isosceles, collinear) may break either way by rounding
        margin = min(abs(invariants[: size - 2].mean() - 0.5), abs(invariants[size - 2 :].mean()))
        if margin < 1e-6:
            continue
        assert other == tuple(stars)
        np.testing.assert_allclose(image, invariants, atol=1e-9)
        assert image_sign == sign * parity


@given(seeds, st.floats(0.3, 3), st.floats(-3.1, 3.1), st.sampled_from([-1, 1]))
@settings(max_examples=20, deadline=None)
def test_votes_crowd_at_the_truth(seed, scale, angle, parity):
    xy = field(seed, 25)
    image = similarity(xy, scale, angle, parity, (30.0, -20.0))
    votes = cast_votes(xy, make_asterisms(xy, 8), image, make_asterisms(image, 8), tolerance=0.01, scale_range=(0.2, 5))
    crowds = count_votes(votes, np.array([500.0, 500.0]), 5)
    assert crowds.parity[0] == parity
    matrix, shift = crowds.linear(0)
    np.testing.assert_allclose(xy @ matrix.T + shift, crowds.apply(0, xy), atol=1e-9)
    # chance neighbours within the vote's radius (12 px) pull the mean by a fraction of it
    assert np.abs(crowds.apply(0, xy) - image).max() < 12
    assert (np.diff(crowds.votes) <= 0).all()


def test_least_squares_similarity_is_numpys():
    rng = np.random.default_rng(1)
    a, b = rng.uniform(0, 100, (5, 4, 2)), rng.uniform(0, 100, (5, 4, 2))
    parity = np.array([1, -1, 1, -1, 1])
    z, w = least_squares_similarity(a, b, parity)
    for k in range(5):
        u, v = parity[k] * a[k, :, 0], a[k, :, 1]
        one, zero = np.ones(4), np.zeros(4)
        design = np.concatenate([np.column_stack([u, -v, one, zero]), np.column_stack([v, u, zero, one])])
        expected = np.linalg.lstsq(design, np.concatenate([b[k, :, 0], b[k, :, 1]]), rcond=None)[0]
        np.testing.assert_allclose([z[k].real, z[k].imag, w[k].real, w[k].imag], expected, atol=1e-9)


def test_no_votes_make_no_hypotheses():
    nothing = make_asterisms(field(1, 2), 5)
    assert len(nothing) == 0
    votes = cast_votes(field(1, 2), nothing, field(2, 2), nothing, tolerance=0.01, scale_range=(0.2, 5))
    assert isinstance(votes, Similarities)
    assert len(count_votes(votes, np.zeros(2), 5)) == 0


@given(seeds, st.floats(1, 60))
@settings(max_examples=30, deadline=None)
def test_matches_are_one_to_one_and_nearest(seed, tolerance):
    predicted, stars = field(seed, 40, 300.0), field(seed + 1, 30, 300.0)
    found = match_stars(predicted, cKDTree(stars), (300, 300), tolerance)
    assert set(zip(found.template.tolist(), found.source.tolist(), strict=True)) == oracle.matches(
        predicted, stars, tolerance
    )
    assert len(set(found.source.tolist())) == len(found)
    np.testing.assert_allclose(found.distance, np.hypot(*(predicted[found.template] - stars[found.source]).T))


def test_predictions_that_are_not_finite_match_nothing():
    predicted = np.array([[np.nan, 1.0], [np.inf, 1.0], [10.0, 10.0]])
    found = match_stars(predicted, cKDTree([[10.0, 10.0]]), (20, 20), 3.0)
    np.testing.assert_array_equal(found.template, [2])
    assert found.inside == 1


def test_expected_matches_are_those_of_unrelated_lists():
    rng = np.random.default_rng(5)
    counts = [
        len(match_stars(rng.uniform(0, 500, (200, 2)), cKDTree(rng.uniform(0, 500, (300, 2))), (500, 500), 3.0))
        for _ in range(300)
    ]
    expected = expected_by_chance(200, 300, (500, 500), 3.0)
    # Poisson mean of 300 trials: standard error sqrt(mu / 300), 4 of it; the rim outside of the image loses < 1 %, and
    # two suitors of one star lose about mu / 300 of the pairs
    assert np.mean(counts) == pytest.approx(expected, abs=4 * np.sqrt(expected / 300) + 0.04 * expected)


def test_expected_matches_count_clusters_and_columns():
    rng = np.random.default_rng(6)
    shape, tolerance = (1000, 1000), 3.0

    def mean_count(draw):
        return np.mean([len(match_stars(draw(), cKDTree(draw()), shape, tolerance)) for _ in range(40)])

    def cluster():
        return 500 + rng.normal(0, 60, (200, 2))

    def columns():
        return np.column_stack([rng.choice([100.0, 700.0], 300) + rng.normal(0, 0.3, 300), rng.uniform(0, 1000, 300)])

    for draw, estimate in ((cluster, expected_by_density), (columns, expected_by_control)):
        said = np.mean([estimate(draw(), cKDTree(draw()), shape, tolerance) for _ in range(40)])
        real = mean_count(draw)
        assert real > 3 * expected_by_chance(len(draw()), len(draw()), shape, tolerance)
        # an estimate that is too low would let chance pass as evidence; twice too high only costs a little of it
        assert 0.8 * real < said < 2 * real
    few = np.array([[10.0, 10.0]])
    assert expected_by_density(few, cKDTree(few), shape, tolerance) == 0
    assert expected_by_density(few + 5000, cKDTree(cluster()), shape, tolerance) == 0


@given(st.floats(0.01, 50), st.integers(1, 200))
def test_evidence_bounds_the_chance(expected, matched):
    llr = log_likelihood_ratio(matched, expected)
    if matched <= expected:
        assert llr == 0
    else:
        # Chernoff: P(k or more) <= exp(-LLR)
        assert poisson.sf(matched - 1, expected) <= np.exp(-llr) * (1 + 1e-9)
        assert log_likelihood_ratio(matched + 3, expected, 3) == pytest.approx(llr)
