"""The smooth background that polynomials leave in a difference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

import skyloom
from simulate import far_from_sources, simulate_pair
from skyloom.background import MAD_TO_SIGMA
from skyloom.pipeline import DifferenceOptions
from skyloom.subtraction import AlardLuptonOptions, SfftOptions, ZogyOptions
from skyloom.subtraction.residual_background import (
    _Penalty,
    _weighted_smooth,
    residual_background,
    residual_level,
    sky_error,
    smooth_surface,
)

SHAPE = (300, 340)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
# a star with wide wings, FWHM 4: Moffat with beta = 2.5
STAR = (1 + np.add.outer(np.arange(-20.0, 21) ** 2, np.arange(-20.0, 21) ** 2) / 12.5) ** -2.5
STAR /= STAR.sum()
HALO = 300 * np.exp(-((X + 30) ** 2 + Y**2) / (2 * 110**2))


PAIR = simulate_pair(8, 256, n_stars=40)
ALIGNED = DifferenceOptions(align="none")


def found_in(image, *, variance=25.0, usable=None):
    usable = np.ones(image.shape, bool) if usable is None else usable
    return residual_background(image, np.full(image.shape, variance), usable, fwhm=3.5)


@pytest.mark.parametrize("blur", [0.0, 1.5])
def test_noise_has_no_background(blur):
    for seed in range(15):
        noise = np.random.default_rng(seed).normal(0, 5, SHAPE)
        assert found_in(gaussian_filter(noise, blur) if blur else noise) is None


def test_level_is_that_of_the_sky():
    rng = np.random.default_rng(4)
    usable, variance = rng.random(SHAPE) > 0.1, np.full(SHAPE, 25.0)
    for seed in range(10):
        noise = np.random.default_rng(seed).normal(0, 5, SHAPE)
        noise[~usable] = np.nan
        # 300 x 340 pixels: a mean of 0.016, a median of means of 0.02
        assert abs(residual_level(noise, variance, usable, fwhm=3.5)) < 0.1
        level = residual_level(noise + 1.0, variance, usable, fwhm=3.5)
        assert level == pytest.approx(1.0, abs=0.1)
        # three sources of 1000 on it, which make the mean 1.03 and one box in a hundred 10 too high
        noise[100::80, 150] += 1000.0
        assert residual_level(noise + 1.0, variance, usable, fwhm=3.5) == pytest.approx(level, abs=0.02)
    assert residual_level(noise[:60, :60], variance[:60, :60], usable[:60, :60], fwhm=3.5) == 0.0


def test_transients_do_not_lower_the_sky():
    """Their light is in the stamps, whose background takes it up: here it was 0.024 sigma too high."""
    pair = simulate_pair(5, 512, n_transients=25)
    result = skyloom.subtraction.subtract(pair.science, pair.template)
    sky = far_from_sources(pair) & result.usable
    noise = pair.science.data - pair.science_model
    left = ((result.image - noise) / np.sqrt(np.where(sky, result.variance, 1)))[sky]
    # 576 boxes of 21 pixels: 1.25 / 21 / 24 = 0.0025, 4 times that
    assert abs(left.mean()) < 0.01


def test_wings_of_transients_do_not_raise_the_level():
    """Their cores are clipped, but not their wings: two hundred made it 0.065 sigma too high."""
    rng = np.random.default_rng(8)
    noise = rng.normal(0, 5, (512, 512))
    variance, usable = np.full(noise.shape, 25.0), np.ones(noise.shape, bool)
    level = residual_level(noise, variance, usable, fwhm=4.0)
    star = STAR * 3000
    for y, x in rng.integers(20, 490, (200, 2)):
        noise[y - 20 : y + 21, x - 20 : x + 21] += star
    # medians of means of 512 x 512 pixels, and the difference of two of them: 1.25 sqrt(2) / 512 sigma, 3 times that
    assert residual_level(noise, variance, usable, fwhm=4.0) == pytest.approx(level, abs=3 * 0.0035 * 5)


def test_halo_is_followed_to_the_noise_of_the_boxes():
    image = HALO + np.random.default_rng(1).normal(0, 5, SHAPE)
    off = found_in(image) - HALO
    # a box of 18 x 18 pixels has a mean to 5 / 18 = 0.28; the corner is extrapolated by half a box, where the second
    # derivative, 300 / 110^2, makes it 1 off, and what boxes average over is as much
    assert np.abs(off[20:-20, 20:-20]).max() < 4 * 0.28 + 1
    assert np.std(off) < 0.4


def test_masked_pixels_do_not_count():
    rng = np.random.default_rng(2)
    image = HALO + rng.normal(0, 5, SHAPE)
    usable = rng.random(SHAPE) > 0.2
    usable[100:180, 50:120] = False  # whole boxes, to be filled by their neighbours
    expected = found_in(image, usable=usable)
    image[~usable] = np.nan
    found = found_in(image, usable=usable)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - HALO)[100:180, 50:120].max() < 0.1 * np.ptp(HALO[100:180, 50:120])


def test_what_has_changed_is_no_background():
    """One box far off its neighbours, the residual of a saturated star, say, does not pull the surface."""
    image = 0.2 * HALO + np.random.default_rng(3).normal(0, 5, SHAPE)
    plain = found_in(image)
    image[144:162, 144:162] += 40
    assert np.abs(found_in(image) - plain).max() < 2  # of 40; the box is left out, its neighbours tell


def test_star_like_sources_are_not_followed():
    image = np.random.default_rng(4).normal(0, 5, SHAPE)
    for x, y in np.random.default_rng(5).uniform(10, 290, (40, 2)):
        image += 300 * np.exp(-((X - x) ** 2 + (Y - y) ** 2) / (2 * 1.5**2))
    assert found_in(image) is None


def test_nothing_to_go_by():
    image = HALO.copy()
    assert found_in(image[:40]) is None
    assert found_in(image, usable=np.zeros(SHAPE, bool)) is None
    assert found_in(np.zeros(SHAPE)) is None


@st.composite
def boxes(draw):
    my, mx = draw(st.integers(4, 12)), draw(st.integers(4, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y, x = np.mgrid[:my, :mx]
    values = np.sin(x / 2) + y / 3 + rng.normal(0, draw(st.floats(1e-2, 10)), (my, mx))
    weights = np.where(rng.random((my, mx)) < draw(st.floats(0, 0.3)), 0, rng.uniform(0.5, 1, (my, mx)))
    weights[0, 0] = 1
    return values, weights


@settings(max_examples=100, deadline=None)
@given(boxes=boxes())
def test_surface_solves_its_normal_equations(boxes):
    """Against the dense solution of (W + s P) z = W y."""
    values, weights = boxes
    found, strength = _weighted_smooth(values, weights, _Penalty.on(values.shape), np.zeros_like(values))
    d_rows, d_columns = (np.diff(np.eye(n), 2, axis=0) for n in values.shape)
    penalty = np.kron(d_rows.T @ d_rows, np.eye(values.shape[1])) + np.kron(
        np.eye(values.shape[0]), d_columns.T @ d_columns
    )
    left = np.diag(weights.ravel()) + strength * penalty
    expected = np.linalg.lstsq(left, (weights * values).ravel())[0].reshape(values.shape)
    # the fixed point is left when a step is below 1e-4 of the surface; where boxes are empty, it creeps
    size = np.abs(expected - expected.mean()).max() + np.abs(values).max()
    assert np.abs(found - expected)[weights > 0].max() < 0.02 * size


@settings(max_examples=40, deadline=None)
@given(boxes=boxes(), scale=st.floats(1e-6, 1e6))
def test_surface_scales_with_its_values(boxes, scale):
    values, weights = boxes
    expected, found = smooth_surface(values, weights), smooth_surface(scale * values, 3 * weights)
    np.testing.assert_allclose(found.values, scale * expected.values, atol=1e-7 * scale * np.abs(values).max())
    assert found.significance == pytest.approx(expected.significance, rel=1e-4, abs=1e-12)


def test_planes_are_left_alone():
    """The penalty of second differences does not bend them, nor their borders."""
    y, x = np.mgrid[:8, :9]
    plane = 3 + 2.0 * x - y + 0.1 * x * y
    surface = smooth_surface(plane, np.ones((8, 9)))
    np.testing.assert_allclose(surface.values, plane, atol=1e-6)
    assert surface.significance < 1e-20


@pytest.mark.parametrize("method", ["alard-lupton", "sfft", "zogy"])
def test_difference_without_a_halo(method):
    pair = simulate_pair(22, 320, n_stars=80, n_transients=6)
    y, x = np.mgrid[:320, :320]
    halo = 400 * np.exp(-((x + 20) ** 2 + y**2) / (2 * 80**2))
    science = dataclasses.replace(pair.science, data=(pair.science.data + halo).astype(np.float32))
    widths = {}
    for smooth in (True, False):
        options = DifferenceOptions(method=method, smooth_background=smooth)
        result = skyloom.difference(science, pair.template, options=options)
        usable = result.subtraction.usable
        score = result.score.significance[usable]
        widths[smooth] = MAD_TO_SIGMA * np.median(np.abs(score - np.median(score)))
        left = (result.science.data - result.matched - result.image)[usable]
        assert np.abs(left).max() < 0.02  # float32 at 1e5 ADU; noise 15
    assert widths[True] < 1.25  # halo of 400 in 12 boxes of 20 pixels: curvature within a box remains
    # proper differences have their images' backgrounds, in wider boxes, taken off before
    assert widths[False] > (1.3 if method == "zogy" else 2) * widths[True]


def test_a_sky_that_no_surface_follows_is_an_error_where_it_is():
    usable, variance = np.ones(SHAPE, bool), np.full(SHAPE, 25.0)
    for seed in range(10):
        noise = np.random.default_rng(seed).normal(0, 5, SHAPE)
        assert sky_error(noise, variance, usable, fwhm=3.5) is None
        # point sources of any flux, also where four boxes meet, are none
        stars = np.zeros(SHAPE)
        stars[36::72, 36::72] = 50_000.0
        assert sky_error(noise + gaussian_filter(stars, 1.5), variance, usable, fwhm=3.5) is None
    rim = 4.0 * (np.abs(np.hypot(X, Y) - 150) < 25)
    error = sky_error(noise + rim, variance, usable, fwhm=3.5)
    assert error is not None
    assert (error >= 0).all()
    assert 2 < error[rim > 0].mean() < 6  # of 4
    assert error[np.hypot(X, Y) > 175 + 4 * 18].max() == 0  # four boxes


def test_errors_of_the_sky_are_those_of_all_pixels_of_a_source():
    from skyloom.pipeline.methods import with_sky_error

    result = skyloom.difference(*(getattr(PAIR, name) for name in ("science", "template")), options=ALIGNED)
    wider = with_sky_error(result.score, np.full(result.shape, 2.0, np.float32))
    middle = (result.shape[0] // 2, result.shape[1] // 2)
    square = (result.psf.stamp(*middle[::-1]) ** 2).sum()
    added = wider.flux_variance[middle] - result.score.flux_variance[middle]
    assert np.sqrt(added) == pytest.approx(2.0 / square, rel=0.02)  # the PSF varies over the field
    assert wider.significance[middle] == pytest.approx(
        wider.flux[middle] / np.sqrt(wider.flux_variance[middle]), rel=1e-3, abs=1e-3
    )


def test_a_sky_that_doubles_the_errors_is_told(monkeypatch, caplog):
    def left_quarter(image, *_, **__):
        error = np.zeros(image.shape, np.float32)
        error[:, : image.shape[1] // 4] = 50.0
        return error

    monkeypatch.setattr("skyloom.pipeline.smooth.sky_error", left_quarter)
    result = skyloom.difference(PAIR.science, PAIR.template, options=ALIGNED)
    # the border, where nothing is scored, is a little of that quarter
    assert result.diagnostics["uncertain_sky"] == pytest.approx(0.25, abs=0.03)
    assert "no smooth surface describes the sky" in caplog.text


@pytest.mark.parametrize(
    "matching",
    [
        AlardLuptonOptions(),
        AlardLuptonOptions(convolve="science"),
        AlardLuptonOptions(decorrelate=True),
        SfftOptions(),
        ZogyOptions(),
    ],
)
def test_a_stored_difference_has_the_same_candidates(matching, tmp_path):
    """Also where a part of the errors, that of an unsmooth sky, is no function of the stored planes."""
    rim = 40.0 * (np.abs(np.hypot(X, Y) - 150) < 25)
    science = PAIR.science.replace(data=PAIR.science.data + rim[: PAIR.science.shape[0], : PAIR.science.shape[1]])
    options = dataclasses.replace(ALIGNED, subtraction=matching, method="auto")
    result = skyloom.difference(science, PAIR.template, options=options)
    table = skyloom.detect(result)
    stored = skyloom.detect(result.write(tmp_path / "d.fits"))
    assert len(table) > 1
    np.testing.assert_array_equal(stored["kind"], table["kind"])
    np.testing.assert_array_equal(stored["flags"], table["flags"])
    for name in ("x", "y", "flux", "snr", "significance"):
        # float32 planes, PSFs between the nodes at which those of convolved images are stored
        np.testing.assert_allclose(stored[name], table[name], rtol=2e-3, atol=1e-3)
