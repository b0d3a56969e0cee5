"""Delta-function kernels: noise that resampling has correlated, the prior's unit, and the units of the images."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import fftconvolve

from simulate import Epoch, simulate_pair
from skyloom.subtraction import SfftOptions, subtract
from skyloom.subtraction.noise import smoothing_kernel
from skyloom.subtraction.sfft.design import DeltaModel
from skyloom.subtraction.sfft.fit import FitOptions, FitPlanes, fit_delta
from skyloom.subtraction.sfft.solve import Penalties


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


def test_prior_is_in_the_unit_of_the_full_variance():
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
