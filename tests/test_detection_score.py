"""The matched filter: against direct sums, and its noise against simulations."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter

from simulate import SCIENCE, TEMPLATE, ConstantKernel, ideal_subtraction
from skyloom import filters as filters_module
from skyloom.detection import filter_image, noise_gain, score
from skyloom.errors import InputError, ShapeError
from skyloom.exposure import MaskBit
from skyloom.filters import Grid, VaryingFilter, correlate
from skyloom.psf import ArrayPsf
from skyloom.psf.analytic import Profile

EQUAL_DEPTH = {
    "science": replace(SCIENCE, tilt=(0, 0)),
    "template": replace(TEMPLATE, gain=1.5, read_noise=6.0, sky=225.0),
}


class LinearPsf:
    """Changes from one profile to another along x."""

    half = 6

    def __init__(self, width):
        self.ends, self.width = (Profile(3.0).stamp(6), Profile(5.0, e1=0.2).stamp(6)), width

    def stamp(self, x, y):
        t = x / (self.width - 1)
        return (1 - t) * self.ends[0] + t * self.ends[1]


def correlate_directly(stamp_of, plane):
    """Sum over the stamp at every pixel: the plain definition."""
    ny, nx = plane.shape
    half = stamp_of(0, 0).shape[0] // 2
    padded = np.pad(plane, half)
    return np.array(
        [
            [(stamp_of(x, y) * padded[y : y + 2 * half + 1, x : x + 2 * half + 1]).sum() for x in range(nx)]
            for y in range(ny)
        ]
    )


# filters


@pytest.mark.parametrize("tile", [16, 512])
@pytest.mark.parametrize("shape", [(37, 50), (13, 64), (20, 20)])
def test_correlation_with_a_varying_filter(monkeypatch, tile, shape):
    monkeypatch.setattr(filters_module, "TILE", tile)
    psf, grid = LinearPsf(shape[1]), Grid(shape)
    plane = np.random.default_rng(1).normal(size=shape)
    (found,) = correlate([(VaryingFilter(grid.sample(psf.stamp), grid), plane)])
    # a filter that changes linearly is separated and interpolated exactly: only rounding is left
    np.testing.assert_allclose(found, correlate_directly(psf.stamp, plane), atol=1e-12)


def test_threads_do_not_change_a_bit(monkeypatch):
    monkeypatch.setattr(filters_module, "TILE", 32)
    grid = Grid((100, 90))
    job = (VaryingFilter(grid.sample(LinearPsf(90).stamp), grid), np.random.default_rng(2).normal(size=(100, 90)))
    np.testing.assert_array_equal(correlate([job], threads=1)[0], correlate([job], threads=3)[0])


def test_grid_interpolates_smooth_functions():
    grid = Grid((300, 700))
    plane = grid.plane(grid.sample(lambda x, y: 1 + (x / 700) ** 2 - x * y / 210000))
    y, x = np.mgrid[0:300, 0:700]
    np.testing.assert_allclose(plane, 1 + (x / 700) ** 2 - x * y / 210000, atol=1e-10)


# the formula


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.5))
def test_score_is_the_formula(seed, masked):
    rng = np.random.default_rng(seed)
    shape, stamp = (18, 23), Profile(3.0).stamp(5)
    image, variance = rng.normal(size=shape), rng.uniform(0.5, 2, shape)
    effective = variance * rng.uniform(1, 3, shape)
    usable = rng.random(shape) >= masked
    found = filter_image(image, variance, usable, ArrayPsf(stamp), effective_variance=effective)
    w = usable / variance
    norm = correlate_directly(lambda x, y: stamp**2, w)
    noise = correlate_directly(lambda x, y: stamp**2, w**2 * effective)
    coverage = correlate_directly(lambda x, y: stamp**2, usable.astype(float)) / (stamp**2).sum()
    valid = coverage > 0.1 + 1e-9
    flux = correlate_directly(lambda x, y: stamp, w * image)[valid] / norm[valid]
    # planes are float32
    np.testing.assert_allclose(found.flux[valid], flux, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(found.flux_variance[valid], (noise / norm**2)[valid], rtol=2e-6)
    np.testing.assert_allclose(found.coverage, coverage, atol=1e-6)
    assert (found.flux_variance[coverage < 0.1 - 1e-9] == 0).all()
    assert (found.significance[coverage < 0.1 - 1e-9] == 0).all()


def test_noise_gain_is_one_without_a_kernel_and_known_for_gaussians():
    stamp = Profile(4.0).stamp(20)
    delta = np.zeros((5, 5))
    delta[2, 2] = 3.0
    assert noise_gain(stamp, delta) == pytest.approx(1)
    # Gaussians of variances p and k: sum (P*K)^2 = 1 / (4 pi (p + k)), so g = 4 pi p k / (p + k)
    p, k = (f**2 / (8 * np.log(2)) for f in (4.0, 3.5))
    assert noise_gain(stamp, Profile(3.5).stamp(20)) == pytest.approx(4 * np.pi * p * k / (p + k), rel=1e-4)


# the noise


def blank(**options):
    return ideal_subtraction(seed=3, size=512, n_stars=0, n_galaxies=0, n_transients=0, **EQUAL_DEPTH, **options)


def std(plane, margin=25):
    return float(plane[margin:-margin, margin:-margin].std())


def test_score_of_equal_depth_images_is_calibrated():
    pair, subtraction = blank()
    assert std(subtraction.image / np.sqrt(subtraction.variance)) == pytest.approx(1, abs=0.01)
    scored = score(subtraction, pair.science_psf)
    # 462^2 pixels hold some 10^4 independent filter areas: 0.7 % standard error; the rest is the brief's 3 %
    assert std(scored.significance) == pytest.approx(1, abs=0.03)
    assert std(scored.flux) ** 2 == pytest.approx(float(np.median(scored.flux_variance)), rel=0.06)
    diagonal = filter_image(subtraction.image, subtraction.variance, subtraction.mask == 0, pair.science_psf)
    assert std(diagonal.significance) > 1.15  # what leaving the covariance out would give


def test_score_is_calibrated_when_the_science_image_was_convolved():
    pair, forward = blank()
    rng = np.random.default_rng(4)
    # the same sky, swapped: a sharp science image is convolved, the template is not
    science, template = pair.template.data - 180.0, rng.normal(0, 15, pair.science.shape)
    source = pair.template_psf.profile(256, 256, 0, 0, 20) * 3e5
    science[236:277, 236:277] += source
    kernel = forward.kernel
    subtraction = SimpleNamespace(
        image=kernel.convolve(science) - template, variance_science=kernel.convolve(pair.template.variance, power=2),
        variance_template=np.full(template.shape, 225.0), mask=pair.template.mask, kernel=kernel, convolved="science",
    )  # fmt: skip
    subtraction.image -= np.median(subtraction.image)
    scored = score(subtraction, pair.template_psf)
    assert std(scored.significance[:200]) == pytest.approx(1, abs=0.04)
    # fluxes are in the unit of the difference: that of the template
    expected, sigma = 3e5 * kernel.image.sum(), float(np.sqrt(scored.flux_variance[256, 256]))
    # 0.5 % for the light of the source outside of the PSF's stamp
    assert scored.flux[256, 256] == pytest.approx(expected, rel=0.005, abs=4 * sigma)


def test_correlation_of_resampled_images_is_allowed_for():
    rng = np.random.default_rng(5)
    kernel = ConstantKernel(Profile(2.5).stamp(7))
    # the mean of 2 x 2 pixels: the variance is a quarter, that of a mean of many is what it was before: c = 4
    resampled = uniform_filter(rng.normal(0, 2, (500, 500)), 2)
    white = rng.normal(0, 1, (500, 500))
    subtraction = SimpleNamespace(
        image=white - kernel.convolve(resampled), variance_science=np.ones((500, 500)),
        variance_template=np.full((500, 500), (kernel.image**2).sum()), mask=np.zeros((500, 500), np.uint32),
        kernel=kernel, convolved="template", correlation_template=4.0,
    )  # fmt: skip
    found = std(score(subtraction, ArrayPsf(Profile(5.0).stamp(15))).significance)
    # the PSF is not infinitely wide, so that c is an upper limit
    assert 0.95 < found < 1.01
    assert std(score(subtraction, ArrayPsf(Profile(5.0).stamp(15)), correlation_template=1.0).significance) > 1.2


# planes


def test_masked_pixels_do_not_leak():
    rng = np.random.default_rng(6)
    image, variance, usable = rng.normal(size=(60, 60)), np.ones((60, 60)), np.ones((60, 60), bool)
    usable[20:30, 20:40] = False
    psf = ArrayPsf(Profile(3.0).stamp(8))
    clean = filter_image(np.where(usable, image, 0), variance, usable, psf)
    image[20:30, 20:40] = [1e30, np.nan, np.inf, -1e30] * 5
    variance[25, 25] = np.nan
    dirty = filter_image(image, variance, usable, psf)
    for name in ("significance", "flux", "flux_variance", "effective_variance", "coverage"):
        np.testing.assert_array_equal(getattr(dirty, name), getattr(clean, name))
        assert np.isfinite(getattr(dirty, name)).all()
    assert not dirty.valid[25, 30]
    assert (dirty.significance[~dirty.valid] == 0).all()


def test_big_endian_read_only_and_strided_planes():
    image = np.random.default_rng(7).normal(size=(40, 80)).astype(">f4")
    image.flags.writeable = False
    psf, ones = ArrayPsf(Profile(3.0).stamp(8)), np.ones((40, 40))
    found = filter_image(image[:, ::2], ones, ones > 0, psf)
    expected = filter_image(np.array(image[:, ::2], float), ones, ones > 0, psf)
    np.testing.assert_array_equal(found.flux, expected.flux.astype(np.float32))  # float64 images keep their precision


def test_everything_masked_gives_an_invalid_score():
    zeros = np.zeros((30, 30))
    found = filter_image(zeros, zeros + 1, zeros > 0, ArrayPsf(Profile(3.0).stamp(8)))
    assert not found.valid.any()
    assert "0.0% valid" in repr(found)


def test_only_unusable_bits_count():
    pair, subtraction = blank()
    subtraction.mask = np.full_like(subtraction.mask, np.uint32(MaskBit.SPREAD))
    assert score(subtraction, pair.science_psf).valid.all()


def test_errors():
    pair, subtraction = blank()
    with pytest.raises(ShapeError, match="must be the same"):
        filter_image(np.ones((5, 5)), np.ones((5, 6)), np.ones((5, 5), bool), pair.science_psf)
    with pytest.raises(InputError, match="above 0"):
        score(subtraction, pair.science_psf, correlation_template=0.0)
    with pytest.raises(InputError, match="'science' or 'template'"):
        score(SimpleNamespace(**{**vars(subtraction), "convolved": "both"}), pair.science_psf)
