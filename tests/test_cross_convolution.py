"""Cross-convolution: white noise, fluxes, stars of the same width but another shape, masks."""

import dataclasses

import numpy as np
import pytest

import skyloom
from simulate import TEMPLATE, far_from_sources, simulate_pair
from skyloom.detection import score
from skyloom.errors import SubtractionError
from skyloom.exposure import Exposure, MaskBit
from skyloom.pipeline import DifferenceOptions
from skyloom.subtraction import SfftOptions, subtract
from skyloom.subtraction.sfft.design import DeltaModel, Design
from test_decorrelate import lags

ROUND = dataclasses.replace(TEMPLATE, gain=1.5, sky=300.0, read_noise=6.0, fwhm=4.1, shear=(-0.05, 0.04))
"""A template of the same seeing and depth as the science image: kernels must sharpen it along one axis."""


@pytest.fixture(scope="module")
def pair():
    return simulate_pair(4, 400, n_transients=6, snr=(15.0, 40.0), template=ROUND)


@pytest.fixture(scope="module")
def crossed(pair):
    return subtract(pair.science, pair.template, SfftOptions(cross_convolve=True))


def in_units_of_noise(result):
    return np.where(result.usable, result.image / np.sqrt(np.where(result.usable, result.variance, 1)), 0)


def near_stars(pair, usable):
    y, x = np.indices(usable.shape)
    near = np.zeros_like(usable)
    for xs, ys, flux in pair.stars.iterrows("x", "y", "flux"):
        if flux > 2e4:
            near |= (x - xs) ** 2 + (y - ys) ** 2 <= 9
    for xs, ys in pair.transients.iterrows("x", "y"):
        near &= (x - xs) ** 2 + (y - ys) ** 2 > 15**2
    return near & usable


def test_noise_is_white_and_stars_are_gone(pair, crossed):
    z = in_units_of_noise(crossed)
    far = far_from_sources(pair) & crossed.usable
    # some 80,000 independent pixels: a deviation has the error 0.0025, a correlation 0.0035
    assert np.std(z[far]) == pytest.approx(1, abs=0.01)
    assert np.abs(lags(z, far)).max() < 0.01 + 2 * 0.0035
    other = subtract(pair.science, pair.template, SfftOptions(decorrelate=True))
    near = near_stars(pair, crossed.usable & other.usable)
    assert np.std(z[near]) < 1.1
    assert np.std(z[near]) < np.std(in_units_of_noise(other)[near])  # which had to sharpen
    assert crossed.statistics["kernel_sum"] * pair.flux_ratio == pytest.approx(1, abs=0.003)
    assert (crossed.convolved, crossed.kernel) == ("both", None)
    np.testing.assert_array_equal(crossed.variance, crossed.variance_science + crossed.variance_template)


def test_background_is_that_of_the_images_with_their_skies(pair, crossed):
    skies = np.median(pair.science.data), np.median(pair.template.data)
    assert skies[1] > 10  # ADU: it matters
    noise = float(np.sqrt(np.median(crossed.variance[crossed.usable])))
    expected = skies[0] - crossed.statistics["kernel_sum"] * skies[1]
    assert np.median(crossed.background) == pytest.approx(expected, abs=0.2 * noise)


def test_fluxes_and_score_of_new_sources(pair, crossed):
    found = score(crossed, pair.science_psf)
    pulls = []
    for x, y, flux in pair.transients.iterrows("x", "y", "flux"):
        place = round(y), round(x)
        assert found.significance[place] > 8
        pulls.append((found.flux[place] - flux) / np.sqrt(found.flux_variance[place]))
    # a mean of six, and up to half a pixel off the middle: a few per cent of S/N 25
    assert abs(np.mean(pulls)) < 1.5
    far = far_from_sources(pair) & found.valid
    # 3000 independent values: 0.013; and wings of stars beyond the PSFs' stamps, for which the kernel is too small
    assert np.std(found.significance[far]) == pytest.approx(1, abs=0.06)


def test_masks_and_inputs(pair, crossed):
    science, template = pair.science, pair.template
    mask = science.mask.copy()
    mask[100:104, 150:154] |= np.uint32(MaskBit.BAD)
    data = science.data.copy()
    data[100:104, 150:154] = np.nan
    holed = science.replace(data=data, mask=mask)
    before = template.data.copy()
    result = subtract(holed, template, SfftOptions(cross_convolve=True))
    np.testing.assert_array_equal(template.data, before)
    assert np.isfinite(result.image).all()
    assert (result.variance[result.usable] > 0).all()
    assert not result.usable[100:104, 150:154].any()
    assert (result.mask[100:104, 150:154] & np.uint32(MaskBit.BAD)).all()
    assert not result.usable[:2].any()
    away = np.ones(result.usable.shape, bool)
    away[70:134, 120:184] = False
    away &= result.usable & crossed.usable
    # elsewhere only the kernel's fit has changed a little
    assert np.std((result.image - crossed.image)[away] / np.sqrt(crossed.variance[away])) < 0.1


def test_difference_takes_it(pair):
    options = DifferenceOptions(method="sfft", align="none", subtraction=SfftOptions(cross_convolve=True))
    result = skyloom.difference(pair.science, pair.template, options=options)
    assert result.subtraction.convolved == "both"
    assert result.diagnostics["score_std"] == pytest.approx(1, abs=0.08)


def test_unrelated_images_are_refused():
    psf = simulate_pair(1, 64, n_stars=3).science_psf
    y, x = np.mgrid[:64, :64]
    bump = 1e4 * np.exp(-((x - 20) ** 2 + (y - 20) ** 2) / 8.0)
    noise = np.random.default_rng(0).normal(0, 1, (2, 64, 64))
    science, template = (
        Exposure(noise[k] + sign * bump, variance=np.ones((64, 64)), psf=psf) for k, sign in ((0, 1), (1, -1))
    )
    with pytest.raises(SubtractionError, match="nothing in common"):
        subtract(science, template, SfftOptions(cross_convolve=True))


def test_noise_product_of_correlated_noise():
    rng = np.random.default_rng(0)
    model = DeltaModel((3, 3), 1, 0)
    weight = rng.random((12, 14)).astype(np.float32)
    design = Design(np.zeros((12, 14)), model)
    correlation = np.array([[0, 0.1, 0, 0, 0], [0, 0.2, 0.4, 0.1, 0], [0.3, 0.5, 1, 0.5, 0.3], [0, 0.1, 0.4, 0.2, 0],
                            [0, 0, 0, 0.1, 0]])  # fmt: skip
    x = rng.normal(size=model.size)
    x[-1] = 0
    variance = np.full((18, 20), 2.0)[3:-3, 3:-3]
    variance_around = np.pad(variance, 1)
    X, Y = (np.arange(14) - 6.5) / 6.5, (np.arange(12) - 5.5) / 5.5
    terms = [np.ones((12, 14)), np.broadcast_to(Y[:, None], (12, 14)), np.broadcast_to(X, (12, 14))]
    expected = np.zeros(model.size)
    for s, phi_s in enumerate(terms):
        for a in range(9):
            v, u = divmod(a, 3)
            seen = weight * phi_s * variance_around[v : v + 12, u : u + 14]
            for t, phi_t in enumerate(terms):
                for b in range(9):
                    rho = correlation[2 + b // 3 - v, 2 + b % 3 - u]
                    expected[s * 9 + a] += (seen * phi_t).sum() * rho * x[t * 9 + b]
    moments = design.noise_moments(weight, variance)
    np.testing.assert_allclose(design.noise_product(x, moments, correlation), expected, rtol=1e-5, atol=1e-4)
