"""Transforms: the polynomial, its derivative, its inverse, the residual surface, and the fit."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from reference import registration_oracle as oracle
from skyloom.errors import InputError
from skyloom.registration import Transform
from skyloom.registration.fit import StarList, add_spline, fit_pairs, grow, true_spread
from skyloom.registration.spline import _basis, fit_spline
from skyloom.registration.transform import n_terms
from skyloom.registration.verify import Matches

orders = st.integers(1, 5)
seeds = st.integers(0, 2**32 - 1)


def random_transform(seed, order, bend=0.01, size=1000.0):
    """A rotation with scale and parity plus distortions of up to `bend` of the field."""
    rng = np.random.default_rng(seed)
    t, s = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(-1, 1))
    linear = s * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) @ np.diag([rng.choice([-1, 1]), 1])
    coefficients = rng.uniform(-1, 1, (2, n_terms(order))) * bend * s * size / n_terms(order)
    coefficients[:, 0] = rng.uniform(-size, size, 2)
    coefficients[:, 1:3] = linear * size / 2
    return Transform(coefficients, order, rng.uniform(0, size, 2), size / 2)


@given(seeds, orders)
@settings(max_examples=25, deadline=None)
def test_polynomial_is_the_sum_of_its_terms(seed, order):
    t = random_transform(seed, order)
    xy = np.random.default_rng(seed).uniform(-100, 1100, (7, 2))
    expected = oracle.polynomial(t.coefficients, order, t.centre, t.half, xy)
    # rounding of sums of 21 terms of size up to 1e4
    np.testing.assert_allclose(t(xy), expected, rtol=0, atol=1e-9)


@given(seeds, orders)
@settings(max_examples=25, deadline=None)
def test_jacobian_is_the_derivative(seed, order):
    t = random_transform(seed, order)
    xy = np.random.default_rng(seed).uniform(0, 1000, (5, 2))
    step = 0.01
    for axis in range(2):
        h = np.zeros(2)
        h[axis] = step
        numeric = (t(xy + h) - t(xy - h)) / (2 * step)
        # rounding 1e-12 / step; the third derivative of the bend is far smaller
        np.testing.assert_allclose(t.jacobian(xy)[:, :, axis], numeric, atol=1e-7)


@given(seeds, orders)
@settings(max_examples=40, deadline=None)
def test_inverse_undoes_the_transform(seed, order):
    t = random_transform(seed, order)
    xy = np.random.default_rng(seed).uniform(-200, 1200, (50, 2))
    # Newton stops at 1e-10 of the half size (500)
    np.testing.assert_allclose(t.inverse(t(xy)), xy, rtol=0, atol=1e-7)


def test_inverse_beyond_a_fold_is_nan_and_not_a_wrong_place():
    # x' = x - x^3 / 3 folds at |x| = 1 (of `half`): nothing maps to x' > 2/3 near by, only far beyond the fold
    c = np.zeros((2, n_terms(3)))
    c[0, 1], c[1, 2], c[0, 6] = 1, 1, -1 / 3
    t = Transform(c, 3, np.zeros(2), 1.0)
    target = np.array([[0.5, 0.2], [0.9, 0.0], [np.nan, 0.0]])
    back = t.inverse(target)
    good = np.isfinite(back).all(axis=1)
    assert good[0]
    assert not good[2]
    np.testing.assert_allclose(t(back[good]), target[good], atol=1e-9)


@given(st.floats(-179, 179), st.floats(0.2, 5), st.sampled_from([-1, 1]))
def test_rotation_scale_and_parity(angle, scale, parity):
    t = np.radians(angle)
    m = scale * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) @ np.diag([parity, 1])
    transform = Transform.linear(m, (3.0, 4.0))
    assert transform.parity == parity
    assert transform.scale == pytest.approx(scale, rel=1e-12)
    assert transform.rotation == pytest.approx(angle, abs=1e-9)
    np.testing.assert_allclose(transform.matrix, m, atol=1e-12)


def test_bad_transforms_and_positions_are_refused():
    with pytest.raises(InputError, match="no inverse"):
        Transform.linear([[1, 2], [2, 4]])
    with pytest.raises(InputError, match="shape"):
        Transform(np.zeros((2, 4)), 1, np.zeros(2), 1.0)
    with pytest.raises(InputError, match=r"\(N, 2\)"):
        Transform.linear(np.eye(2))(np.zeros(2))


@pytest.mark.parametrize("derivative", [0, 1])
def test_spline_basis_is_scipys(derivative):
    t, count = np.linspace(0, 1, 33)[:-1], 7
    knots = np.arange(-3, count + 1) / (count - 3)
    expected = np.column_stack(
        [BSpline.basis_element(knots[i : i + 5], extrapolate=False).derivative(derivative)(t) for i in range(count)]
    )
    np.testing.assert_allclose(_basis(t, count, derivative), np.nan_to_num(expected), atol=1e-12)


def test_spline_reproduces_a_smooth_surface_and_its_derivative():
    rng = np.random.default_rng(3)
    xy = rng.uniform(0, 1000, (2000, 2))

    def surface(p):
        return np.column_stack([np.sin(p[:, 0] / 200) * np.cos(p[:, 1] / 300), np.cos(p[:, 0] / 250)])

    sigma = np.full(len(xy), 0.05)
    spline, _ = fit_spline(xy, surface(xy) + rng.normal(0, 0.05, xy.shape), sigma, 6)
    inside = rng.uniform(50, 950, (300, 2))
    # 81 coefficients from 2000 stars: noise 0.05 sqrt(81 / 2000) = 0.01; allow 5 of that
    assert np.abs(spline(inside) - surface(inside)).max() < 0.05
    h = np.array([0.01, 0.0])
    numeric = (spline(inside + h) - spline(inside - h)) / 0.02
    np.testing.assert_allclose(spline.jacobian(inside)[:, :, 0], numeric, atol=1e-8)
    # outside: constant along the normal
    far = np.array([[-500.0, 300.0], [spline.low[0], 300.0]])
    np.testing.assert_allclose(spline(far)[0], spline(far)[1], atol=1e-12)


def star_lists(seed, truth, count=400, noise=0.03, outliers=0):
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 1000, (count, 2))
    image = truth(xy) + rng.normal(0, noise, xy.shape)
    image[:outliers] += rng.uniform(-4, 4, (outliers, 2))
    rows = np.arange(count)
    shape = tuple(int(v) for v in (np.abs(image).max(axis=0)[::-1] + 500))
    error = np.full(count, noise)
    return StarList(xy, np.full(count, 1e-3), (1000, 1000), rows), StarList(image, error, shape, rows)


def test_the_order_is_backed_by_the_pairs_that_were_kept():
    """45 pairs could back a third order (10 terms); the 33 that are no outliers cannot."""
    truth = random_transform(4, 3, bend=0.5)
    template, source = star_lists(4, truth, count=45, noise=0.01)
    source.xy[:12] += np.random.default_rng(0).uniform(30, 60, (12, 2))
    index = np.arange(45)
    pairs = Matches(index, index, np.zeros(45), 45)
    for kept, highest in ((pairs, 2), (pairs[index >= 2], 2), (pairs[index >= 12], 2)):
        fit = fit_pairs(
            kept, template, source, last=Transform.linear(truth.matrix, np.zeros(2)), max_order=5, tolerance=99
        )
        assert len(fit.matches) <= 33
        assert fit.transform.order <= highest


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_growth_finds_the_order_and_the_coefficients(order):
    truth = random_transform(11, order, bend=0.02)
    template, source = star_lists(order, truth, outliers=40)
    first = Transform.linear(truth.matrix, truth(np.zeros((1, 2)))[0])
    fit = grow(first, template, source, max_order=5, tolerance=30.0)
    assert fit.transform.order == order
    grid = np.random.default_rng(1).uniform(50, 950, (200, 2))
    miss = (fit.transform(grid) - truth(grid)) / 0.03
    # per axis the error variance is about P / n of the noise: 21 terms, 360 stars; 4 sigma
    assert np.sqrt((miss**2).mean()) < 4 * np.sqrt(n_terms(order) / 360)
    assert len(fit.matches) >= 340
    # the 40 outliers moved by up to 4 px: nearly all of them are out
    assert np.isin(fit.matches.template, np.arange(40)).sum() <= 3


@given(seeds, st.floats(0.03, 1.0), st.floats(0.3, 1.0))
@settings(max_examples=30, deadline=None)
def test_spread_of_true_pairs_is_found_among_matches_by_chance(seed, sigma, fraction):
    rng = np.random.default_rng(seed)
    true = np.hypot(*rng.normal(0, sigma, (2, int(400 * fraction))))
    chance = 5.0 * np.sqrt(rng.random(400 - len(true)))
    # 120 pairs or more: 5 % and up to twice that by confusion with chance; 4 sigma
    assert true_spread(np.concatenate([true, chance]), 5.0) == pytest.approx(sigma, rel=0.4)


def test_covariance_is_the_scatter_of_fits():
    truth = random_transform(5, 2, bend=0.02)
    grid = np.array([[100.0, 100.0], [500.0, 500.0], [900.0, 300.0]])
    miss, predicted = [], []
    for seed in range(60):
        template, source = star_lists(seed, truth, count=120, noise=0.05)
        fit = grow(truth, template, source, max_order=2, tolerance=5.0)
        t = fit.transform
        from skyloom.registration.transform import monomials

        terms = monomials((grid - t.centre) / t.half, t.order)
        p = terms.shape[1]
        predicted.append(np.sqrt(np.einsum("ni,ij,nj->n", terms, fit.covariance[:p, :p], terms)))
        miss.append(t(grid)[:, 0] - truth(grid)[:, 0])
    # the scatter of 60 normal deviates is known to 9 %; 4 sigma
    ratio = np.std(miss, axis=0) / np.mean(predicted, axis=0)
    assert (np.abs(ratio - 1) < 0.37).all()


def test_spline_is_added_only_where_it_pays():
    def wavy(xy):
        return xy * 1.1 + 10 + 0.4 * np.column_stack([np.sin(xy[:, 1] / 70), np.sin(xy[:, 0] / 80)])

    first = Transform.linear(1.1 * np.eye(2), (10, 10))
    template, source = star_lists(1, wavy, count=1500)
    fit = grow(first, template, source, max_order=5, tolerance=3.0)
    better = add_spline(fit, template, source)
    assert better.transform.residual is not None
    grid = np.random.default_rng(1).uniform(50, 950, (300, 2))
    before, after = (np.sqrt(((f.transform(grid) - wavy(grid)) ** 2).mean()) for f in (fit, better))
    assert after < 0.25 * before
    np.testing.assert_allclose(better.transform.inverse(better.transform(grid)), grid, atol=1e-7)

    plain = [
        add_spline(grow(first, *lists, max_order=5, tolerance=3.0), *lists).transform.residual is None
        for lists in (star_lists(seed, first, count=300) for seed in range(20))
    ]
    # a false alarm needs 4 sigma and 2 sigma by chance
    assert all(plain)


def test_leverage_predicts_points_that_are_left_out():
    rng = np.random.default_rng(4)
    xy = rng.uniform(0, 1000, (150, 2))
    # strong waves: the strength of the penalty does not hang on one point
    values = 3 * np.sin(xy / 90) + rng.normal(0, 0.1, xy.shape)
    sigma = np.full(len(xy), 0.1)
    spline, leverage = fit_spline(xy, values, sigma, 6)
    inner = np.flatnonzero((np.abs(xy - 500) < 400).all(axis=1))[:8]  # those on the border change the rectangle
    for one in inner:
        others = np.arange(len(xy)) != one
        without, _ = fit_spline(xy[others], values[others], sigma[others], 6)
        miss = (values - spline(xy))[one] / (1 - leverage[one])
        np.testing.assert_allclose(miss, (values - without(xy))[one], rtol=0.02, atol=1e-3)


def test_variance_of_a_surface_is_its_scatter_and_grows_where_there_are_no_data():
    rng = np.random.default_rng(5)
    xy = rng.uniform(0, 1000, (600, 2))
    xy = xy[np.hypot(*(xy - 500).T) > 200]
    sigma = np.full(len(xy), 0.1)
    truth = np.sin(xy / 150)
    probe = np.array([[150.0, 500.0], [800.0, 200.0], [400.0, 850.0]])
    fits = [fit_spline(xy, truth + rng.normal(0, 0.1, xy.shape), sigma, 6)[0] for _ in range(60)]
    miss = np.array([fit(probe) for fit in fits]) - np.sin(probe / 150)
    expected = np.mean([fit.variance(probe) for fit in fits])
    # a variance from 360 values is known to 7 %; the prior may be wrong by some tens of per cent at single places
    assert 0.6 < (miss**2).mean() / expected < 1.5
    assert fits[0].variance(np.array([[500.0, 500.0]]))[0] > 4 * expected


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("spline", [False, True])
def test_what_other_programs_are_told_is_the_transform(order, spline):
    """The dictionary, through JSON, and the convention that stands in it, without any code of the transform."""
    t = random_transform(4, order)
    rng = np.random.default_rng(8)
    if spline:
        known = rng.uniform(0, 1000, (60, 2))
        surface, _ = fit_spline(known, np.sin(known / 200), np.full(60, 0.1), cells=4)
        t = Transform(t.coefficients, order, t.centre, t.half, t.kind, surface)
    told = json.loads(json.dumps(t.to_dict()))
    xy = rng.uniform(100, 900, (9, 2))
    u, v = ((xy - told["centre"]) / told["half"]).T
    pairs = zip(told["exponents"], np.transpose(told["coefficients"]), strict=True)
    expected = sum(np.outer(u**i * v**j, c) for (i, j), c in pairs)
    assert (told["spline"] is not None) == spline
    if spline:
        s = told["spline"]
        low, high, c = (np.array(s[name]) for name in ("low", "high", "coefficients"))
        cells = len(c) - 3
        knots = np.arange(-3, cells + 4) / cells
        bx, by = (BSpline.design_matrix(w, knots, 3).toarray() for w in ((xy - low) / (high - low)).T)
        expected = expected + np.einsum("ni,nj,ijk->nk", by, bx, c)
    np.testing.assert_allclose(t(xy), expected, rtol=0, atol=1e-9)  # rounding of sums of some terms of up to 1e4
    linear = xy @ np.transpose(told["matrix"]) + told["shift"]
    centre = np.array([told["centre"]])
    if order == 1 and not spline:
        np.testing.assert_allclose(t(xy), linear, rtol=0, atol=1e-9)
    elif not spline:
        np.testing.assert_allclose(t(centre), centre @ np.transpose(told["matrix"]) + told["shift"], rtol=0, atol=1e-9)
