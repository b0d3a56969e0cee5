"""The scatter of the stars' flux ratios: found where it is, entered in variance and score; and the bias by noise."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from simulate import simulate_pair
from skyloom.detection import forced_photometry, score
from skyloom.subtraction import AlardLuptonOptions, subtract
from skyloom.subtraction.normal import Model, StampSums, solve

SIZE = 400
COLOUR = 0.04


@pytest.fixture(scope="module")
def scenes():
    found = {}
    for colour in (0.0, COLOUR):
        pair = simulate_pair(3, SIZE, n_stars=150, n_galaxies=0, n_transients=0, vary=0.0, colour=colour)
        options = AlardLuptonOptions(convolve="template", spatial_order=0, background_order=1)
        found[colour] = pair, subtract(pair.science, pair.template, options)
    return found


def test_scatter_of_colours_is_measured(scenes):
    assert scenes[0.0][1].statistics["flux_scatter"] < 0.003  # the fit's own systematics at most
    # 30 stars or more know a robust deviation to 20 %; the fit takes up a part of it
    assert scenes[COLOUR][1].statistics["flux_scatter"] == pytest.approx(COLOUR, rel=0.5)


def near_bright_stars(pair, usable):
    near = np.zeros(usable.shape, bool)
    for x, y, flux in pair.stars.iterrows("x", "y", "flux"):
        if flux > 2e4:
            near[max(0, round(y) - 2) : round(y) + 3, max(0, round(x) - 2) : round(x) + 3] = True
    return near & usable


def test_variance_holds_the_scatter_and_its_parts_still_add_up(scenes):
    (_, plain), (pair, coloured) = scenes[0.0], scenes[COLOUR]
    parts = coloured.variance_science + coloured.variance_template
    np.testing.assert_allclose(coloured.variance, parts, rtol=1e-5)  # float32
    near = near_bright_stars(pair, coloured.usable)
    z = coloured.image[near] / np.sqrt(coloured.variance[near])
    before = coloured.image[near] / np.sqrt(plain.variance[near])
    assert before.std() > 1.5  # without the scatter the errors would be far too small
    assert z.std() < 1.25  # of 30 stars whose pixels scatter together, the deviation is known to 15 %


def test_score_knows_that_the_pixels_of_a_star_scatter_together(scenes):
    pair, coloured = scenes[COLOUR]
    found = score(coloured, pair.science_psf)
    blind = score(replace(coloured, statistics={}), pair.science_psf)
    near = near_bright_stars(pair, coloured.usable & found.valid)
    assert blind.significance[near].std() > 1.5  # pixels taken for independent
    assert found.significance[near].std() < 1.25  # as above
    assert (found.flux_variance >= blind.flux_variance).all()
    far = coloured.matched < np.median(coloured.matched) + np.sqrt(coloured.variance)  # sky: as it was
    ratio = found.significance[far] / np.where(blind.significance[far] != 0, blind.significance[far], 1)
    assert np.median(ratio[blind.significance[far] != 0]) == pytest.approx(1, abs=0.01)


def test_forced_photometry_has_the_errors_of_the_score(scenes):
    pair, coloured = scenes[COLOUR]
    found = score(coloured, pair.science_psf)
    difference = SimpleNamespace(
        image=coloured.image, variance=coloured.variance, mask=coloured.mask, score=found, science=pair.science,
        template=pair.template, subtraction=coloured,
    )  # fmt: skip
    y, x = np.nonzero(near_bright_stars(pair, coloured.usable & found.valid))
    table = forced_photometry(difference, np.column_stack([x, y]))
    # 5 %: the score's filters and gains are those of a grid's nodes, photometry's those of the place
    np.testing.assert_allclose(table["flux_err"], np.sqrt(found.flux_variance[y, x]), rtol=0.05)
    plain = forced_photometry(SimpleNamespace(**{**vars(difference), "subtraction": None}), np.column_stack([x, y]))
    assert np.median(table["flux_err"] / plain["flux_err"]) > 1.5


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_each_step_lowers_the_bias_by_noise_by_the_same_factor(steps):
    signal, noise, truth = 10.0, 2.0, 1.25
    sums = StampSums(
        np.array([[[signal + noise, 0.0], [0.0, 1.0]]]), np.array([[signal * truth, 0.0]]), np.zeros(1),
        np.array([1.0]), np.array([[noise, 0.0], [0.0, 0.0]]),
    )  # fmt: skip
    found = solve(Model(1, 0, 0, 0, vary_sum=False), np.ones((1, 1)), sums, debiasing=steps)
    share = noise / (signal + noise)
    assert found[0] == pytest.approx(truth * (1 - share ** (steps + 1)))
