"""Decorrelated differences: white noise, conserved fluxes, masks."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.table import Table
from scipy.signal import fftconvolve

from simulate import AnalyticPsf, Epoch, far_from_sources, simulate_pair
from skyloom.convolution import exponents
from skyloom.detection import score
from skyloom.exposure import MaskBit
from skyloom.psf.analytic import Profile
from skyloom.subtraction import AlardLuptonOptions, SfftOptions, SpatialKernel, Subtraction, decorrelate, subtract
from skyloom.subtraction.alard_lupton import noise_statistics
from skyloom.subtraction.basis import DeltaBasis
from skyloom.subtraction.noise import convolved_noise_gain, smoothing_kernel

HALF = 7


def kernel_of(shape, total=1.25, vary=0.3):
    """A Gaussian kernel whose width grows from left to right."""
    ny, nx = shape
    narrow, wide = (Profile(width).stamp(HALF) * total for width in (3.0, 3.0 * (1 + vary)))
    planes = {(0, 0): (narrow + wide) / 2, (1, 0): (wide - narrow) / 2, (0, 1): np.zeros_like(narrow)}
    coefficients = np.stack([planes[term].ravel() for term in exponents(1)], axis=1)
    return SpatialKernel(DeltaBasis(HALF), coefficients, ((nx - 1) / 2, (ny - 1) / 2), ((nx - 1) / 2, (ny - 1) / 2))


def noise_difference(
    seed=0, shape=(512, 500), *, sigma_science=5.0, sigma_template=6.0, convolved="template", correlation=1.0
):
    """A difference of noise alone; the noise of the convolved image may have been correlated by resampling."""
    rng = np.random.default_rng(seed)
    kernel = kernel_of(shape)
    white = {"science": rng.normal(0, sigma_science, shape), "template": rng.normal(0, sigma_template, shape)}
    variance = {"science": sigma_science**2, "template": sigma_template**2}
    other = "science" if convolved == "template" else "template"
    smoothing = smoothing_kernel(correlation)
    moved = fftconvolve(white[convolved], smoothing, mode="same")
    x, y = (n // 2 for n in shape[::-1])
    gain = convolved_noise_gain(kernel.image_at(x, y), correlation)
    smooth = kernel.convolve(moved, np.full(shape, variance[convolved] * (smoothing**2).sum()), np.ones(shape, bool))
    image, of_moved, of_still = white[other] - smooth.data, smooth.variance * gain, np.full(shape, variance[other])
    if convolved == "science":
        total = kernel.sum_at(np.arange(shape[1])[None, :], np.arange(shape[0])[:, None])
        image, of_moved, of_still = -image / total, of_moved / total**2, of_still / total**2
    parts = {convolved: of_moved, other: of_still}
    mask = np.zeros(shape, np.uint32)
    for axis in (0, 1):
        mask.swapaxes(0, axis)[:HALF] = mask.swapaxes(0, axis)[-HALF:] = MaskBit.EDGE
    correlations = {f"correlation_{convolved}": correlation / gain}
    return Subtraction(
        image=np.where(mask == 0, image, 0), variance=np.where(mask == 0, parts["science"] + parts["template"], 0),
        variance_science=np.where(mask == 0, parts["science"], 0),
        variance_template=np.where(mask == 0, parts["template"], 0),
        mask=mask, matched=np.zeros(shape), kernel=kernel, background=np.zeros(shape), convolved=convolved,
        stamps=Table(), **correlations,
    )  # fmt: skip


def lags(image, where):
    """Correlations of neighbours along y, x and the diagonal."""
    out = []
    for a, b in (((1, 0), (-1, None)), ((0, 1), (None, -1)), ((1, 1), (-1, -1))):
        first = (slice(a[0], None), slice(a[1], None))
        second = (slice(None, b[0]), slice(None, b[1]))
        both = where[first] & where[second]
        out.append(np.mean(image[first][both] * image[second][both]) / np.mean(image[where] ** 2))
    return np.array(out)


@pytest.mark.parametrize("convolved", ["template", "science"])
@pytest.mark.parametrize("correlation", [1.0, 2.0])
def test_noise_becomes_white_and_is_known(convolved, correlation):
    before = noise_difference(convolved=convolved, correlation=correlation)
    after = decorrelate(before)
    z, good = np.where(after.usable, after.image / np.sqrt(np.where(after.usable, after.variance, 1)), 0), after.usable
    assert abs(lags(before.image, before.usable)).max() > 0.03
    # 230,000 independent pixels: a correlation has the error 0.002, a deviation 0.0015
    assert abs(lags(z, good)).max() < 0.01
    assert np.std(z[good]) == pytest.approx(1, abs=0.01)
    for half in (slice(None, 250), slice(250, None)):  # the kernel is a third wider on the right
        assert np.std(z[:, half][good[:, half]]) == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(after.variance, after.variance_science + after.variance_template)
    assert (after.correlation_science, after.correlation_template) == (1, 1)
    assert decorrelate(after) is after
    assert good.mean() > 0.85


def test_filter_is_that_of_the_published_formula():
    before = noise_difference(shape=(200, 210), sigma_science=4.0, sigma_template=7.0)
    phi = decorrelate(before).decorrelation
    for x, y in ((10, 10), (105, 100), (205, 190)):
        kernel, image = before.kernel.image_at(x, y), phi.image_at(x, y)
        side = 256
        power = 4.0**2 + 7.0**2 * np.abs(np.fft.fft2(kernel, (side, side))) ** 2
        whitened = power * np.abs(np.fft.fft2(image, (side, side))) ** 2
        # what is cut off phi, and splines between the nodes; lag-1 correlations are far smaller yet
        np.testing.assert_allclose(whitened, 4.0**2 + 7.0**2 * kernel.sum() ** 2, rtol=0.01)
        assert image.sum() == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(image, image[::-1, ::-1], atol=1e-12)


def test_flux_of_a_star_is_conserved_and_the_score_is_that_of_white_noise():
    shape = 300, 320
    psf = AnalyticPsf(Epoch(4.2, 1.5, 300.0, 6.0, shear=(0.05, 0.02)), shape, half=15)
    before = noise_difference(3, shape)
    flux, places = 3e5, [(60, 70), (250, 80), (160, 220)]
    image = before.image.copy()
    for x, y in places:
        image[y - 15 : y + 16, x - 15 : x + 16] += flux * psf.stamp(x, y)
    after = decorrelate(replace(before, image=image))
    sharper = after.decorrelation.psf(psf)
    found = score(after, psf)
    for x, y in places:
        stamp = sharper.stamp(x, y)
        assert stamp.sum() == pytest.approx(1, abs=1e-9)
        assert (stamp**2).sum() > 1.05 * (psf.stamp(x, y) ** 2).sum()
        cut = after.image[y - 15 : y + 16, x - 15 : x + 16]
        # the noise of the fit is 40, 1e-4 of the flux; stars of 15 pixels lose some of phi * P at the edge
        assert (cut * stamp).sum() / (stamp**2).sum() == pytest.approx(flux, rel=2e-3)
        assert found.flux[y, x] == pytest.approx(flux, rel=2e-3)
    quiet = score(decorrelate(before), psf)
    inner = np.zeros(shape, bool)
    inner[25:-25, 25:-25] = True
    # the filter leaves some 2000 independent values
    assert np.std(quiet.significance[inner]) == pytest.approx(1, abs=0.05)
    # the matched filter in white noise is the best linear one: it beats that of the difference before
    plain = score(before, psf)
    assert (quiet.flux_variance[inner] < plain.flux_variance[inner]).all()


def test_masks_spread_as_far_as_the_filter_matters():
    before = noise_difference(4, (150, 160))
    mask, image = before.mask.copy(), before.image.copy()
    mask[70:75, 80:85] = MaskBit.SATURATED
    image[70:75, 80:85] = 0
    mask[100, 40] = MaskBit.BAD
    image[100, 40] = 0
    after = decorrelate(replace(before, image=image, mask=mask))
    assert (after.mask[70:75, 80:85] & MaskBit.SATURATED).all()
    assert not after.usable[69, 82]
    assert after.mask[69, 82] & MaskBit.SATURATED
    assert after.usable[60, 82]
    far = after.mask[76:90, 82]
    assert (far[(far & MaskBit.SATURATED) == 0] & MaskBit.SPREAD).any()
    for plane in (after.image, after.variance, after.variance_science, after.variance_template):
        assert np.isfinite(plane).all()
        assert (plane[~after.usable] == 0).all()
    assert (after.variance[after.usable] > 0).all()
    assert after.image.dtype == before.image.dtype
    assert not np.shares_memory(after.mask, mask)


@pytest.mark.parametrize("options", [AlardLuptonOptions(), SfftOptions()], ids=["alard-lupton", "sfft"])
def test_subtract_decorrelates_on_request(options):
    # a template of the same depth, for which the correlation matters
    pair = simulate_pair(
        2, 384, n_galaxies=4, n_transients=0,
        template=Epoch(3.0, 1.5, 250.0, 6.0, scale=0.8, vary_fwhm=(-0.02, 0.03, 0.0)),
    )  # fmt: skip
    plain = subtract(pair.science, pair.template, options)
    white = subtract(pair.science, pair.template, replace(options, decorrelate=True))
    assert plain.decorrelation is None
    moved = pair.template if plain.convolved == "template" else pair.science
    np.testing.assert_allclose(plain.variance_before[moved.usable], (moved.variance * moved.correlation)[moved.usable])
    assert (plain.variance_before[~moved.usable] == 0).all()
    measured = noise_statistics(white)
    assert {name: white.statistics[name] for name in measured} == measured
    assert measured["noise_ratio"] != plain.statistics["noise_ratio"]
    far = far_from_sources(pair, 25) & white.usable
    assert far.sum() > 2e4

    def high_pass(result):
        z = result.image / np.sqrt(np.where(result.usable, result.variance, 1))
        return z - np.mean(z[far])

    before, after = lags(high_pass(plain), far), lags(high_pass(white), far)
    assert abs(before).max() > 0.03
    # error of a correlation of so many pixels
    assert abs(after).max() < 0.01 + 2 / np.sqrt(far.sum())
    assert np.std(high_pass(white)[far]) == pytest.approx(1, abs=0.02)
    found = score(white, pair.science_psf)
    width = 1.4826 * np.median(np.abs(found.significance[far]))
    assert width == pytest.approx(1, abs=0.06)  # some 3000 independent values


def test_smoothing_before_the_kernel_is_found_from_the_correlation_after():
    from skyloom.subtraction.decorrelate import _smoothing_of

    kernel = Profile(2.5).stamp(6)
    for before in (1.0, 1.7, 3.0):
        after = before / convolved_noise_gain(kernel, before)
        np.testing.assert_allclose(_smoothing_of(kernel, after), smoothing_kernel(before), atol=2e-3)
    assert _smoothing_of(kernel, 0.9).shape == (3, 3)


@pytest.mark.parametrize("seed", range(6))
def test_rounding_of_the_correlation_does_not_matter(seed):
    from skyloom.subtraction.decorrelate import _smoothing_of

    kernel = np.random.default_rng(seed).normal(size=(9, 9)) ** 2
    for after in (1 - 2e-16, 1.0, 1 + 2e-16, 1 + 4e-16, 1 + 1e-12):
        np.testing.assert_array_equal(_smoothing_of(kernel, after), smoothing_kernel(1.0))


@pytest.mark.parametrize("convolved", ["template", "science"])
@pytest.mark.parametrize("correlation", [1.0, 2.0])
def test_photon_noise_lies_where_the_kernel_takes_it(convolved, correlation):
    shape, x, y = (90, 100), 50, 45
    gaussian = Profile(3.0).stamp(HALF)
    shifted = (np.roll(gaussian, 1, axis=1) + np.roll(gaussian, 2, axis=1)) / 2  # by 1.5 pixels
    kernel = SpatialKernel(DeltaBasis(HALF), shifted.reshape(-1, 1), (49.5, 44.5), (49.5, 44.5))
    before = noise_difference(shape=shape, convolved=convolved, correlation=correlation)
    other = "science" if convolved == "template" else "template"

    def decorrelated(bright):
        variance = np.full(shape, 36.0)
        variance[y, x] += bright
        smooth = kernel.convolve(np.zeros(shape), variance, np.ones(shape, bool)).variance
        gain = convolved_noise_gain(shifted, correlation)
        planes = {f"variance_{convolved}": smooth * gain, f"variance_{other}": np.full(shape, 25.0)}
        changes = {"kernel": kernel, "variance_before": variance * correlation, f"correlation_{other}": 1.0}
        changes[f"correlation_{convolved}"] = correlation / gain
        return decorrelate(replace(before, **planes, **changes))

    plain, with_star = decorrelated(0.0), decorrelated(36.0)
    name = f"variance_{convolved}"
    more = getattr(with_star, name) - getattr(plain, name)
    phi = with_star.decorrelation.image_at(x, y)
    response = fftconvolve(phi, fftconvolve(shifted, smoothing_kernel(correlation))) ** 2
    half = len(response) // 2
    expected = np.zeros(shape)
    expected[y, x] = 36.0 * correlation
    expected = fftconvolve(expected, response)[half:-half, half:-half]
    # phi is the same: its medians of the sky do not see one pixel; planes of float64, filters separated to 1e-3
    np.testing.assert_allclose(more, expected, atol=3e-3 * expected.max())
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    assert (more * xx).sum() / more.sum() == pytest.approx(x + 1.5, abs=0.02)
    assert (more * yy).sum() / more.sum() == pytest.approx(y, abs=0.02)
