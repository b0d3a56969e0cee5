"""Proper subtraction: formulas against a plain NumPy version, noise, fluxes, masks, and what bad input gives."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import fft

from reference.zogy_numpy import embed, periodic_convolution, proper
from simulate import SCIENCE, TEMPLATE, far_from_sources, simulate_pair
from skyloom.errors import InputError, NoOverlapError, ShapeError, SubtractionError
from skyloom.exposure import Exposure, MaskBit
from skyloom.proper import transfer
from skyloom.psf import ArrayPsf, estimate_psf
from skyloom.psf.analytic import Profile
from skyloom.subtraction.zogy import ZogyOptions, moving_significance, subtract_zogy
from skyloom.subtraction.zogy.match import Match, Planes, _Linearised
from skyloom.subtraction.zogy.moving import gradient
from skyloom.subtraction.zogy.proper import FLOOR, ProperPair
from skyloom.subtraction.zogy.subtract import _floor, difference_planes


def planes(data, sigma, usable=None, variance=None):
    usable = np.ones(data.shape, bool) if usable is None else usable
    variance = np.full(data.shape, sigma**2) if variance is None else variance
    return Planes(np.where(usable, data, 0.0), np.where(usable, variance, 0.0), usable, sigma)


def moffat(fwhm, half=12):
    return Profile(fwhm).stamp(half)


# formulas


@settings(max_examples=200, deadline=None)
@given(
    st.integers(8, 21),
    st.integers(8, 21),
    st.floats(0.1, 10),
    st.floats(0.1, 10),
    st.floats(0.05, 20),
    st.integers(0, 99),
)
def test_filters_are_those_of_the_paper(  # noqa: PLR0917
    ny, nx, sigma_n, sigma_r, beta, seed
):
    rng = np.random.default_rng(seed)
    p_n, p_r = (rng.random((5, 5)) + 5 * moffat(3.0, 2) for _ in range(2))
    p_n, p_r = p_n / p_n.sum(), p_r / p_r.sum()
    n, r = rng.normal(size=(2, ny, nx))
    truth = proper(n, r, p_n, p_r, sigma_n, sigma_r, 1.0, beta, FLOOR)
    pair = ProperPair(transfer(p_n, (ny, nx)), transfer(p_r, (ny, nx)), sigma_n, sigma_r, beta, (ny, nx))
    n_hat, r_hat = fft.rfft2(n), fft.rfft2(r)
    d_n, d_r = pair.difference_filters
    k_n, k_r = pair.score_filters
    # rounding, relative to the largest value
    close = {"rtol": 0, "atol": 1e-10}
    difference = fft.irfft2(d_n * n_hat - d_r * r_hat, (ny, nx)) * pair.flux_scale
    scale = np.abs(truth["d"]).max()
    assert_allclose(difference / scale, truth["d"] / scale, **close)
    score = fft.irfft2(k_n * n_hat - k_r * r_hat, (ny, nx))
    scale = np.abs(truth["s"]).max()
    assert_allclose(score / scale, truth["s"] / scale, **close)
    assert_allclose([pair.flux_scale, pair.score_flux], [truth["f_d"], truth["f_s"]], rtol=1e-10)


def test_the_transform_of_a_stamp_is_that_of_the_embedded_stamp():
    stamp = np.random.default_rng(1).random((7, 7))
    for shape in ((16, 15), (5, 8)):  # the second is smaller than the stamp, which wraps around
        assert_allclose(transfer(stamp, shape), fft.rfft2(embed(stamp, shape)), atol=1e-12)


def test_the_derivative_with_the_flux_ratio_is_a_derivative():
    rng = np.random.default_rng(2)
    shape = (16, 15)
    transfers = transfer(moffat(3.0, 5), shape), transfer(moffat(4.0, 5), shape)
    n, r = fft.rfft2(rng.normal(size=shape)), fft.rfft2(rng.normal(size=shape))

    def whitened(beta):
        pair = ProperPair(*transfers, 1.3, 0.7, beta, shape)
        d_n, d_r = pair.difference_filters
        return pair.flux_scale * (d_n * n - d_r * r), pair

    step = 1e-5
    numerical = (whitened(0.8 + step)[0] - whitened(0.8 - step)[0]) / (2 * step)
    # central difference: rounding 1e-16 / 1e-5, truncation 1e-10
    assert_allclose(whitened(0.8)[1].beta_derivative(n, r), numerical, rtol=0, atol=1e-6 * np.abs(numerical).max())


@pytest.mark.parametrize("shape", [(96, 96), (97, 131), (64, 201)], ids=str)
def test_images_of_any_shape_give_what_the_paper_gives(shape):
    rng = np.random.default_rng(3)
    p_n, p_r = moffat(4.0), moffat(3.0)
    n, r = rng.normal(0, 2.0, shape), rng.normal(0, 1.0, shape)
    n[40, 30] += 500
    found = difference_planes((planes(n, 2.0), planes(r, 1.0)), (ArrayPsf(p_n), ArrayPsf(p_r)), Match(0.8, (0.0, 0.0)))
    truth = proper(n, r, p_n, p_r, 2.0, 1.0, 1.0, 0.8, FLOOR)
    inside = (slice(30, -30),) * 2  # away from the border nothing wraps around
    # filters end at a finite radius: their tails beyond are far below the noise
    noise = 1 / truth["f_d"]
    assert np.abs(found.image - truth["d"] / truth["f_d"])[inside].max() < 0.02 * noise
    flux = truth["s"] / truth["f_s"]
    assert np.abs(found.flux - flux)[inside].max() < 0.02 * np.sqrt(np.median(found.flux_variance))
    k_n, k_r = truth["k_n"], truth["k_r"]
    variance = (
        periodic_convolution(np.full(shape, 4.0), k_n**2) + periodic_convolution(np.ones(shape), k_r**2)
    ) / truth["f_s"] ** 2
    assert_allclose(found.flux_variance[inside], variance[inside], rtol=0.01)
    assert np.unravel_index(found.significance.argmax(), shape) == (40, 30)


def test_tiles_are_invisible():
    """An image of several FFT tiles is what one transform of the whole gives, bright stars on the seams included."""
    rng = np.random.default_rng(31)
    shape = (560, 600)  # the tiles are of 512 pixels
    p_n, p_r = moffat(4.0), moffat(3.0)
    n, r = rng.normal(0, 2.0, shape), rng.normal(0, 1.0, shape)
    for x, y in ((512, 512), (511, 300), (300, 511), (200, 200)):
        box = slice(y - 12, y + 13), slice(x - 12, x + 13)
        n[box] += 5000 * p_n  # S/N 600
        r[box] += 4000 * p_r
    found = difference_planes((planes(n, 2.0), planes(r, 1.0)), (ArrayPsf(p_n), ArrayPsf(p_r)), Match(0.8, (0.0, 0.0)))
    truth = proper(n, r, p_n, p_r, 2.0, 1.0, 1.0, 0.8, FLOOR)
    inside = (slice(30, -30),) * 2  # the transform of the whole wraps around
    score = np.abs(found.flux - truth["s"] / truth["f_s"])[inside] / np.sqrt(np.median(found.flux_variance))
    difference = np.abs(found.image - truth["d"] / truth["f_d"])[inside] * truth["f_d"]
    assert score.max() < 0.1
    assert difference.max() < 0.1


# noise


def test_the_difference_is_white_and_its_errors_are_right():
    rng = np.random.default_rng(4)
    shape = (400, 400)
    n, r = rng.normal(0, 3.0, shape), rng.normal(0, 3.0 * 0.8, shape)  # equal depth
    found = difference_planes(
        (planes(n, 3.0), planes(r, 2.4)), (ArrayPsf(moffat(4.2)), ArrayPsf(moffat(3.0))), Match(0.8, (0, 0))
    )
    d = (found.image / np.sqrt(found.variance))[30:-30, 30:-30]
    n_pixels = d.size
    # standard errors of a standard deviation and of a correlation
    assert abs(d.std() - 1) < 4 / np.sqrt(2 * n_pixels)
    for first, second in ((d[1:], d[:-1]), (d[:, 1:], d[:, :-1]), (d[1:, 1:], d[:-1, :-1])):
        assert abs(np.mean(first * second)) < 4 / np.sqrt(n_pixels)
    # S is correlated over some 30 pixels each
    score = found.significance[30:-30, 30:-30]
    assert abs(score.std() - 1) < 4 * np.sqrt(30 / (2 * n_pixels))


def test_what_is_wrong_with_the_backgrounds_is_taken_off():
    rng = np.random.default_rng(5)
    shape = (320, 320)
    wrong = 0.3 * np.cos(np.arange(320) / 80)[:, None] + 0.2  # in units of the noise: 2 sigma of S
    images = planes(3 * (rng.normal(size=shape) + wrong), 3.0), planes(rng.normal(0, 2.4, shape), 2.4)
    psfs, match = (ArrayPsf(moffat(4.2)), ArrayPsf(moffat(3.0))), Match(0.8, (0, 0))
    for flatten in (False, True):
        found = difference_planes(images, psfs, match, flatten=flatten)
        means = [found.significance[y : y + 60, 30:-30].mean() for y in (30, 130, 230)]
        # S is correlated over some 30 pixels: means over 60 x 260 are known to 0.04; boxes of 40 pixels follow the wave
        assert (np.abs(means).max() < 0.2) == flatten


def test_a_vignetted_sky_is_taken_off_both_images_alike():
    """A border that falls by 30 times the noise within a dozen pixels: no surface follows it; both images have it."""
    pair = simulate_pair(3, 256, n_stars=40, n_transients=0, n_galaxies=0)
    y, x = np.indices(pair.science.shape)
    lit = 1 / (1 + np.exp((np.hypot(x - 128, y - 128) - 120) / 4.0))
    sky = 30 * np.sqrt(np.median(pair.science.variance)) * (lit - 1)
    dark = [
        replace(image, data=(image.data + scale * sky).astype(np.float32))
        for image, scale in ((pair.science, 1.0), (pair.template, pair.flux_ratio))
    ]
    psfs = {"psf_science": pair.science_psf, "psf_template": pair.template_psf}
    plain, found = (subtract_zogy(*images, **psfs) for images in ((pair.science, pair.template), dark))
    far = far_from_sources(pair) & found.usable
    corner = far & (lit < 0.9)
    assert corner.sum() > 5000
    # 0.6 to 0.9: what the filters make of an edge that no PSF has blurred; with skies of their own it is 10 to 20
    assert found.significance[corner].std() < plain.significance[corner].std() + 1.0
    assert found.significance[far & (lit > 0.98)].std() < plain.significance[far & (lit > 0.98)].std() + 0.1
    assert found.match.flux_ratio == pytest.approx(plain.match.flux_ratio, rel=0.005)


@pytest.fixture(scope="module")
def pair():
    return simulate_pair(11, 384, n_transients=12, snr=(12, 40))


@pytest.mark.parametrize("known", [True, False], ids=["psf given", "psf measured"])
def test_a_field_of_stars_leaves_noise(pair, known):
    psfs = {"psf_science": pair.science_psf, "psf_template": pair.template_psf} if known else {}
    found = subtract_zogy(pair.science, pair.template, **psfs)
    # 120 stars fix the ratio to some 1e-3; the model of measured point spread functions is good to 0.5 %
    assert abs(found.match.flux_ratio / pair.flux_ratio - 1) < (0.005 if known else 0.01)
    assert np.hypot(*found.match.shift) < 0.02
    far = far_from_sources(pair) & found.usable
    z = found.image[far] / np.sqrt(found.variance[far])
    assert abs(z.std() - 1) < 0.02
    assert abs(found.significance[far].std() - 1) < 0.05  # some 2000 independent values, and wings of bright stars
    y, x = np.indices(pair.science.shape)
    near = np.zeros_like(far)
    for xs, ys, flux in pair.stars.iterrows("x", "y", "flux"):
        # the some 20 stars that measure the PSF lie inside: at the border it is extrapolated
        near |= ((x - xs) ** 2 + (y - ys) ** 2 < 25) & (flux > 2e4) & (25 < xs < 359) & (25 < ys < 359)
    for xs, ys in pair.transients.iterrows("x", "y"):
        near &= (x - xs) ** 2 + (y - ys) ** 2 > 225
    assert np.mean(np.abs(found.significance[near & found.usable]) > 5) < 0.01


def test_fluxes_are_those_of_the_transients(pair):
    found = subtract_zogy(pair.science, pair.template, psf_science=pair.science_psf, psf_template=pair.template_psf)
    xy = np.column_stack([pair.transients["x"], pair.transients["y"]])
    apart = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1)) + 1e9 * np.eye(len(xy))
    lonely = pair.transients[apart.min(axis=1) > 20]
    pulls = []
    for row in lonely:
        x, y = round(row["x"]), round(row["y"])
        box = slice(y - 1, y + 2), slice(x - 1, x + 2)
        at = np.unravel_index(found.significance[box].argmax(), (3, 3))
        flux, variance = found.flux[box][at], found.flux_variance[box][at]
        # the centre of a pixel is up to 0.7 pixels off the source, where its filter sees up to 12 % less
        pulls.append((flux - row["flux"]) / np.sqrt(variance + (0.06 * flux) ** 2))
    assert len(pulls) > 5
    assert np.abs(pulls).max() < 4.5
    assert abs(np.median(pulls)) < 3 * 1.25 / np.sqrt(len(pulls)) + 0.5


def test_a_shift_is_found_and_taken_out():
    moved = simulate_pair(12, 256, shift=(0.31, -0.22), n_transients=0)
    found = subtract_zogy(moved.science, moved.template, psf_science=moved.science_psf, psf_template=moved.template_psf)
    # the template must be moved back; some 25 stars of S/N 10 to 500
    assert_allclose(found.match.shift, (-0.31, 0.22), atol=0.02)
    assert max(found.match.scatter) < 0.05
    assert np.abs(found.significance[20:-20, 20:-20]).max() < 6


def test_scattered_positions_are_measured_and_cost_significance():
    rng = np.random.default_rng(13)
    science = simulate_pair(13, 256, n_stars=0, n_galaxies=0, n_transients=0)
    shape = (256, 256)
    xy = np.array([(x, y) for x in range(20, 240, 20) for y in range(20, 240, 20)], float)
    n, r = (rng.normal(0, 10.0, shape) for _ in range(2))
    psf = science.science_psf
    for x, y in xy:
        for image, (dx, dy) in ((n, (0, 0)), (r, rng.normal(0, 0.08, 2))):
            stamp = psf.profile(x, y, dx, dy, 15)
            image[int(y) - 15 : int(y) + 16, int(x) - 15 : int(x) + 16] += 3e4 * stamp
    exposures = [Exposure(image, np.full(shape, 100.0)) for image in (n, r)]
    sources = Table({"x": xy[:, 0], "y": xy[:, 1], "flux": np.full(len(xy), 3e4)})
    found = subtract_zogy(*exposures, psf_science=psf, psf_template=psf, sources=sources)
    # the standard deviation of 121 values is known to 6 %
    assert_allclose(found.match.scatter, 0.08, atol=4 * 0.06 * 0.08)
    blind = subtract_zogy(*exposures, ZogyOptions(scatter=0.0), psf_science=psf, psf_template=psf, sources=sources)
    assert np.abs(blind.significance).max() > 8
    assert np.abs(found.significance).max() < 5.5


def test_a_source_that_moved_is_told_from_one_that_appeared():
    rng = np.random.default_rng(14)
    shape, psf = (160, 160), moffat(4.0, 15)
    n, r = (rng.normal(0, 1.0, shape) for _ in range(2))

    def add(image, x, y, flux, dx=0.0):
        stamp = ArrayPsf(psf).stamp_at(0, 0, dx, 0.0)
        image[y - 15 : y + 16, x - 15 : x + 16] += flux * stamp

    add(n, 50, 80, 1500.0, dx=0.4)
    add(r, 50, 80, 1500.0, dx=-0.4)
    add(n, 110, 80, 150.0)
    found = difference_planes(
        (planes(n, 1.0), planes(r, 1.0)), (ArrayPsf(psf), ArrayPsf(psf)), Match(1.0, (0.0, 0.0)), moving=True
    )
    moved, appeared = (moving_significance(found.moving[80, x]) for x in (50, 110))
    assert moved > 15 > abs(found.significance[80, 50])
    assert found.significance[80, 110] > 10
    assert appeared < 4
    # chi-square with two degrees of freedom has mean 2; some 700 independent values
    empty = found.moving[20:-20, 20:-20][:40]
    assert abs(empty.mean() - 2) < 0.5


@pytest.mark.parametrize("sigmas", [(1.06, 1.06), (1.7, 1.7), (2.6, 1.1)], ids=["2.5", "4", "elongated"])
def test_noise_alone_moves_as_chi_square_says(sigmas):
    rng = np.random.default_rng(15)
    y, x = np.indices((25, 25)) - 12.0
    u, v = (x + y) / np.sqrt(2), (y - x) / np.sqrt(2)
    psf = np.exp(-((u / sigmas[0]) ** 2 + (v / sigmas[1]) ** 2) / 2)
    psf /= psf.sum()
    noise = rng.normal(0, 1.0, (2, 700, 700))
    found = difference_planes(
        tuple(planes(data, 1.0) for data in noise), (ArrayPsf(psf),) * 2, Match(1.0, (0.0, 0.0)), moving=True
    )
    z2 = found.moving[30:-30, 30:-30].astype(float)
    # the score is correlated over some 4 pi sigma_u sigma_v pixels; 3.5 deviations of the means over the others
    count = z2.size / (4 * np.pi * sigmas[0] * sigmas[1])
    assert abs(z2.mean() - 2) < 3.5 * np.sqrt(4 / count)
    for level in (0.1, 0.01):
        assert abs((z2 > -2 * np.log(level)).mean() - level) < 3.5 * np.sqrt(level / count)


def test_what_scatters_has_not_moved():
    """A star whose flux or position scatters as much as the fit has found is no moving source."""
    rng = np.random.default_rng(15)
    psf = ArrayPsf(moffat(4.0, 15))
    n, r = rng.normal(0, 1.0, (2, 101, 101))
    n[35:66, 35:66] += 20000 * 1.03 * psf.stamp_at(0, 0, 0.0, 0.03)
    r[35:66, 35:66] += 20000 * psf.stamp(0, 0)
    pair = planes(n, 1.0), planes(r, 1.0)
    box = (slice(45, 56),) * 2
    strict = difference_planes(pair, (psf, psf), Match(1.0, (0.0, 0.0)), moving=True)
    found = difference_planes(
        pair, (psf, psf), Match(1.0, (0.0, 0.0), scatter=(0.03, 0.03), flux_scatter=0.03), moving=True
    )
    assert strict.moving[box].max() > 100
    assert found.moving[box].max() < 9


def test_gradients_are_right_to_a_percent():
    y, x = np.indices((60, 60), float)
    sigma = 4.0 * np.sqrt(2) / 2.355  # the score of a star of 4 pixels
    plane = np.exp(-((x - 30.3) ** 2 + (y - 29.8) ** 2) / (2 * sigma**2))
    for found, exact in zip(
        gradient(plane), (-(x - 30.3) / sigma**2 * plane, -(y - 29.8) / sigma**2 * plane), strict=True
    ):
        assert np.abs(found - exact).max() < 0.01 * np.abs(exact).max()


def test_improbability_of_movement_in_standard_deviations():
    # chi-square with 2 degrees of freedom: P(> z2) = exp(-z2 / 2); 2.7e-3 is 3 sigma, two-sided
    assert_allclose(moving_significance(-2 * np.log(2.699796063e-3)), 3.0, rtol=1e-6)
    assert np.isfinite(moving_significance(1e6))


# masks


def test_masked_pixels_are_flagged_and_poison_nothing(pair):
    rng = np.random.default_rng(15)
    hole = np.zeros(pair.science.shape, bool)
    hole[100:112, 150:170] = True
    hole |= rng.random(hole.shape) < 0.002
    garbage = np.where(hole, 1e5, pair.science.data).astype(np.float32)
    broken = Exposure(garbage, pair.science.variance, mask=np.where(hole, np.uint32(MaskBit.COSMIC_RAY), np.uint32(0)))
    psfs = {"psf_science": pair.science_psf, "psf_template": pair.template_psf}
    whole, found = subtract_zogy(pair.science, pair.template, **psfs), subtract_zogy(broken, pair.template, **psfs)
    assert (found.mask[hole] & MaskBit.COSMIC_RAY).all()
    assert not found.image[hole].any()
    assert not found.significance[hole].any()
    far = far_from_sources(pair, 20) & ~hole
    assert np.abs(found.significance[far]).max() < max(5.5, np.abs(whole.significance[far]).max() + 1)
    for plane in (found.image, found.variance, found.significance, found.flux, found.flux_variance):
        assert np.isfinite(plane).all()


@pytest.mark.parametrize("which", [0, 1])
def test_holes_are_filled_from_the_other_image_where_it_lies(which):
    psf = ArrayPsf(moffat(4.0, 15))
    images = np.zeros((2, 101, 101))
    images[:, 35:66, 35:66] = 5000 * psf.stamp(0, 0), 5000 * psf.stamp_at(0, 0, 0.8, -0.5)
    usable = np.ones((2, 101, 101), bool)
    usable[which, 50, 50] = False
    found = difference_planes(
        tuple(planes(data, 1.0, good) for data, good in zip(images, usable, strict=True)),
        (psf, psf),
        Match(1.0, (-0.8, 0.5)),
    )
    # the Wiener filter gives back all but a per cent of the peak, which is that of 280 deviations
    assert np.abs(found.significance[45:56, 45:56]).max() < 3


def test_the_response_to_a_pixel_of_the_template_is_moved_with_it():
    psf = ArrayPsf(moffat(4.0, 15))
    n, r = np.zeros((2, 101, 101))
    r[50, 50] = 1.0
    found = difference_planes((planes(n, 1.0), planes(r, 1.0)), (psf, psf), Match(1.0, (0.7, -0.4)))
    response = found.psf.pixel_responses(50, 50)[1]
    seen = -found.image[50 - 10 : 61, 50 - 10 : 61]
    middle = found.psf.half
    response = response[middle - 10 : middle + 11, middle - 10 : middle + 11]
    assert np.abs(seen - response).max() < 5e-3 * response.max()  # the filters' ends: a shift is a long sinc


def test_where_the_template_has_no_data_the_mask_says_so(pair):
    data = np.array(pair.template.data)
    data[:, :60] = np.nan
    found = subtract_zogy(
        pair.science,
        Exposure(data, pair.template.variance),
        psf_science=pair.science_psf,
        psf_template=pair.template_psf,
    )
    assert (found.mask[:, :60] & MaskBit.TEMPLATE).all()
    assert not found.usable[:, :60].any()
    assert found.usable[:, 80:].all()
    strip = found.significance[:, 60:80] * far_from_sources(pair)[:, 60:80]
    assert np.abs(strip).max() < 5.5


def test_the_background_does_not_matter(pair):
    psfs = {"psf_science": pair.science_psf, "psf_template": pair.template_psf}
    first = subtract_zogy(pair.science, pair.template, **psfs)
    raised = Exposure(pair.science.data + 1000, pair.science.variance)
    second = subtract_zogy(raised, pair.template, **psfs)
    # float32 holds a sky of 1300 to 1e-4
    assert np.abs(second.image - first.image).max() < 0.01 * np.sqrt(np.median(first.variance))


def test_threads_do_not_change_a_bit(pair, monkeypatch):
    psfs = {"psf_science": pair.science_psf, "psf_template": pair.template_psf}
    monkeypatch.setenv("SKYLOOM_NUM_THREADS", "1")
    one = subtract_zogy(pair.science, pair.template, **psfs, moving=True)
    monkeypatch.setenv("SKYLOOM_NUM_THREADS", "3")
    three = subtract_zogy(pair.science, pair.template, **psfs, moving=True)
    for name in ("image", "variance", "significance", "flux", "moving"):
        assert_array_equal(getattr(one, name), getattr(three, name))


def test_the_psf_of_the_difference_is_that_of_a_transient():
    psfs = ArrayPsf(moffat(4.0, 15)), ArrayPsf(moffat(2.8, 15))
    n, r = np.zeros((101, 101)), np.zeros((101, 101))
    n[35:66, 35:66] = 1000 * moffat(4.0, 15)
    found = difference_planes((planes(n, 1.0), planes(r, 1.5)), psfs, Match(1.0, (0.0, 0.0)))
    half = found.psf.half
    stamp = found.image[50 - half : 51 + half, 50 - half : 51 + half] / 1000
    expected = found.psf.stamp(50, 50)
    # the stamp ends where P_D is not yet 0, and is normalised over what it holds
    assert np.abs(stamp / stamp.sum() - expected).max() < 1e-3 * expected.max()
    assert_allclose(found.flux[50, 50], 1000, rtol=1e-3)


def test_the_wider_template_is_no_problem():
    wide = simulate_pair(
        19, 256, n_transients=0, science=replace(TEMPLATE, scale=1.0), template=replace(SCIENCE, scale=0.8, tilt=(0, 0))
    )
    found = subtract_zogy(wide.science, wide.template, psf_science=wide.science_psf, psf_template=wide.template_psf)
    assert np.abs(found.significance[25:-25, 25:-25]).max() < 6


@pytest.mark.parametrize("seed", [1, 5])
def test_images_of_unlike_fields_are_refused(pair, seed):
    other = simulate_pair(seed, 384)
    psfs = {"psf_science": pair.science_psf, "psf_template": other.template_psf}
    with pytest.raises(SubtractionError, match="flux") as caught:
        subtract_zogy(pair.science, other.template, **psfs)
    assert "same field" in str(caught.value)
    given = ZogyOptions(flux_ratio=0.8, fit_ratio=False)
    assert subtract_zogy(pair.science, other.template, given, **psfs).match.flux_ratio == 0.8


@pytest.mark.parametrize("unit", [2.0**-83, 2.0**83])
def test_the_unit_of_the_images_does_not_matter(pair, unit):
    """Values of 1e-23 or 1e27: their squares are no numbers in single precision."""
    science, template = (
        Exposure(one.data.astype(float) * unit, one.variance.astype(float) * unit**2, name=one.name)
        for one in (pair.science, pair.template)
    )
    known = {"psf_science": pair.science_psf, "psf_template": pair.template_psf}
    ordinary = subtract_zogy(pair.science, pair.template, sources=pair.stars, **known)
    stars = pair.stars.copy()
    stars["flux"] *= unit
    found = subtract_zogy(science, template, sources=stars, **known)
    np.testing.assert_array_equal(found.mask, ordinary.mask)
    # rounding of float32 at the brightest stars, some 1e4 deviations
    np.testing.assert_allclose(found.significance, ordinary.significance, atol=0.01)
    np.testing.assert_allclose(found.flux / unit, ordinary.flux, atol=1e-3 * np.abs(ordinary.flux).max())
    np.testing.assert_allclose(found.variance / unit**2, ordinary.variance, rtol=1e-3)
    assert estimate_psf(science).fwhm() == pytest.approx(estimate_psf(pair.science).fwhm(), rel=1e-3)


def test_the_floor_of_a_score_is_taken_off_where_there_is_one():
    rng = np.random.default_rng(3)
    white, usable = rng.normal(size=(128, 128)).astype(np.float32), np.ones((128, 128), bool)
    variance = np.ones_like(white)
    assert not np.any(_floor(white, variance, usable))
    floor = _floor(white - 1.5, variance, usable)
    # of 128 x 128 pixels the mean is known to 0.008, and modes of their boxes to some three times that
    assert np.mean(floor) == pytest.approx(-1.5, abs=0.1)
    assert np.std(floor) < 0.15


def test_bad_input_is_named(pair):
    with pytest.raises(ShapeError, match="one grid"):
        subtract_zogy(pair.science, Exposure(pair.template.data[:50]))
    blind = Exposure(pair.template.data, pair.template.variance, mask=np.ones((384, 384), np.uint32))
    with pytest.raises(NoOverlapError, match="no usable pixel in common"):
        subtract_zogy(pair.science, blind)
    for options in ({"flux_ratio": 0.0}, {"flux_ratio": np.nan}, {"scatter": -1.0}, {"scatter": (0.1, np.inf)}):
        with pytest.raises(InputError, match=next(iter(options))):
            ZogyOptions(**options)


def test_stars_that_tell_nothing_take_no_step():
    residual, flat = np.ones((3, 25)), np.ones((3, 25))
    around = _Linearised(residual, np.array([0 * flat, flat, flat, flat]), flat, flat)  # exactly singular
    step, covariance = around.step(np.ones(3, bool), np.array([True, False, False, True]))
    assert_array_equal(step, np.zeros(4))
    assert_array_equal(covariance[[0, 0, 3], [0, 3, 3]], np.inf)
    assert_array_equal(covariance[1:3], 0)
