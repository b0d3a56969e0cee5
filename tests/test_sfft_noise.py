"""Delta-function kernels: noise that resampling has correlated, the prior's unit, and the units of the images."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import fftconvolve

from simulate import Epoch, simulate_pair
from skyloom.errors import InputError, SkyloomError
from skyloom.subtraction import SfftOptions, subtract
from skyloom.subtraction.noise import smoothing_kernel
from skyloom.subtraction.sfft import run_sfft, solve
from skyloom.subtraction.sfft.design import DeltaModel
from skyloom.subtraction.sfft.fit import FitOptions, FitPlanes, fit_delta
from skyloom.subtraction.sfft.solve import Penalties

fit_delta_module = importlib.import_module("skyloom.subtraction.sfft.fit")

TINY, HUGE = 2.0**-140, 2.0**130  # beyond single precision, of which the squares are within double


@pytest.fixture(scope="module")
def pair():
    """Images of like depth, for which the template's noise matters."""
    return simulate_pair(2, 320, n_galaxies=2, n_transients=0, template=Epoch(3.0, 1.5, 250.0, 6.0))


@pytest.mark.parametrize("correlation", [2.0, 5.2])
def test_noise_of_resampled_templates_does_not_roughen_the_kernel(pair, correlation):
    options = SfftOptions(convolve="template")
    smoothing = smoothing_kernel(correlation)
    data = fftconvolve(pair.template.data - 250.0, smoothing, mode="same") + 250.0
    variance = pair.template.variance * (smoothing**2).sum()
    resampled = replace(
        pair.template, data=data.astype(np.float32), variance=variance.astype(np.float32), correlation=correlation
    )
    rough = []
    for template in (pair.template, resampled):
        result = subtract(pair.science, template, options)
        kernel = result.kernel.image_at(160, 160)
        rough.append(np.abs(kernel).sum() / kernel.sum())
        assert result.statistics["noise_ratio"] == pytest.approx(1, abs=0.02)
    # the smoothed template needs a sharper kernel; with white noise of the variance c V taken off it is 1.6 times as
    # rough for c = 2, and no kernel at all for 5.2
    assert rough[1] < 1.4 * rough[0]


def test_prior_is_in_the_unit_of_the_full_variance(monkeypatch):
    monkeypatch.setattr(fit_delta_module, "_CORRECTIONS", 1)
    rng = np.random.default_rng(4)
    shape, v_science, v_template = (60, 64), 4.0, 9.0
    template = rng.normal(0, 3, shape)
    science = 1.5 * np.roll(template, 1, axis=1) + rng.normal(0, 2, shape)
    usable = np.zeros(shape, bool)
    usable[2:-2, 2:-2] = True
    model = DeltaModel((3, 3), 0, 0)
    inverse = np.full(9, 200.0)  # prior of 1 / deviation^2: as strong as the data
    planes = FitPlanes(science, template, usable, np.full(shape, v_science), np.full(shape, v_template))
    fit = fit_delta(planes, FitOptions(model, Penalties(0, 0.0, 0.0, inverse * v_science), None, 1))
    columns = [np.roll(template, (dy, dx), (0, 1))[usable] for dy in (1, 0, -1) for dx in (1, 0, -1)]
    A, S = np.array([*columns, np.ones(usable.sum())]).T, science[usable]
    P = np.diag([*inverse, 0.0])

    def best(variance, noise=0.0):
        return np.linalg.solve(A.T @ A / variance + P, A.T @ S / variance + noise)

    first = best(v_science)
    full = v_science + v_template * (first[:9] ** 2).sum()
    second = best(full)
    noise = np.append(usable.sum() * v_template / full * second[:9], 0.0)
    # the fits before the last are only brought near to the minimum: a part of the errors of a tap
    error = np.sqrt(full / np.sum(A[:, 4] ** 2))
    np.testing.assert_allclose(fit.unknowns[:9], best(full, noise)[:9], atol=0.1 * error)


def test_noise_of_the_template_does_not_weaken_the_kernel():
    rng = np.random.default_rng(8)
    truth = rng.normal(0, 3, (120, 130))
    science = 1.5 * np.roll(truth, 1, axis=1) + rng.normal(0, 1, truth.shape)
    template = truth + rng.normal(0, 2, truth.shape)  # of its power, 4/13 are noise
    usable = np.zeros(truth.shape, bool)
    usable[2:-2, 2:-2] = True
    options = FitOptions(DeltaModel((3, 3), 1, 0), Penalties(0, 0.0, 0.0), None, 1)

    def largest(image, template_variance):
        variances = (np.full(truth.shape, variance) for variance in (1.0, template_variance))
        return fit_delta(FitPlanes(science, image, usable, *variances), options).kernel[0].max()

    # four steps leave (4/13)^5 = 0.3 % of 1.5, one leaves 9 %; the noise of 15 000 pixels makes 0.7 %, of which three
    assert largest(template, 4.0) == pytest.approx(1.5, rel=0.025)
    # a template without the noise that its variance tells: steps that grow are not taken after the first
    assert 1.5 < largest(truth, 20.0) < 1.5 * (1 + 20 / 9) * 1.1


def test_noise_that_both_images_share_is_not_taken_off_again_and_again():
    rng = np.random.default_rng(9)
    template = rng.normal(0, 3, (120, 130))
    science = template + rng.normal(0, 1, template.shape)  # its noise of variance 8 is in the science image, too
    usable = np.zeros(template.shape, bool)
    usable[2:-2, 2:-2] = True
    planes = FitPlanes(science, template, usable, np.full(template.shape, 9.0), np.full(template.shape, 8.0))
    fit = fit_delta(planes, FitOptions(DeltaModel((3, 3), 1, 0), Penalties(0, 0.0, 0.0), None, 1))
    # one step adds 8/9, a second one (8/9)^2; the noise of 15 000 pixels makes 0.3 %
    assert fit.kernel[0].max() == pytest.approx(1 + 8 / 9, abs=0.03)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(("of_science", "of_template"), [(TINY, TINY), (HUGE, HUGE), (TINY, 1.0), (1.0, HUGE)])
def test_results_scale_with_the_images(given, of_science, of_template):
    pair = simulate_pair(5, 128, n_stars=25, n_galaxies=0, n_transients=0)
    science, template = (np.asarray(one.data, np.float64) for one in (pair.science, pair.template))

    def run(first, second):
        errors = {"err": True, "template_err": True}
        if given:
            errors = {
                "err": first * np.sqrt(pair.science.variance, dtype=np.float64),
                "template_err": second * np.sqrt(pair.template.variance, dtype=np.float64),
            }
        return run_sfft(
            first * science, second * template, **errors, image_gain=1.5 / first, template_gain=6 / second,
            kernel_shape=None, kernel_poly_order=1, get_convolved=True, get_scaled=True, get_noise=True,
            get_kernel=True,
        )  # fmt: skip

    plain, scaled = run(1.0, 1.0), run(of_science, of_template)
    # all by powers of 2, which multiply without rounding
    for k, unit in ((0, of_science), (1, of_science), (2, 1.0), (3, of_science)):
        np.testing.assert_array_equal(scaled[k] / unit, plain[k])
    ratio = of_science / of_template
    np.testing.assert_array_equal(scaled[4].kernel_coeffs / ratio, plain[4].kernel_coeffs)
    np.testing.assert_array_equal(scaled[4].bg_coeffs / of_science, plain[4].bg_coeffs)
    assert scaled[4].rms == plain[4].rms * of_science


@pytest.mark.parametrize("kernel_shape", [(5, 5), None])
@pytest.mark.parametrize(
    "wrong", ["stars", [["a", "b"], ["c", "d"]], np.ones((32, 32)) * 1j, np.ones((32, 32), object)]
)
def test_images_that_are_no_numbers_are_typed_errors(wrong, kernel_shape):
    good = np.ones((32, 32))
    for images in ((wrong, good), (good, wrong)):
        with pytest.raises(SkyloomError):
            run_sfft(*images, kernel_shape=kernel_shape)
        with pytest.raises(SkyloomError):
            solve(*images, kernel_shape=kernel_shape)


@pytest.mark.parametrize("name", ["image_gain", "template_gain"])
@pytest.mark.parametrize("gain", [0.0, -1.0, np.nan, np.inf, "2"])
def test_gains_that_cannot_be(name, gain):
    with pytest.raises(InputError, match=name):
        run_sfft(*np.ones((2, 32, 32)), **{name: gain})
