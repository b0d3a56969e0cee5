"""The flux ratio of registered images: PSFs of different shape, crowding, masked pixels, errors on both sides."""

import numpy as np
import pytest

from skyloom.exposure import Exposure, MaskBit
from skyloom.pipeline.stack import _share
from skyloom.psf.growth import circle_share
from skyloom.registration import detect_sources, flux_ratio, image_fwhm, register
from skyloom.registration.flux import _fit

SIZE, SKY, NOISE, RATIO = 400, 200.0, 3.0, 0.45
SHIFT = np.array([3.3, -2.6])


def image_of(xy, flux, fwhm, beta, rng):
    """Return stars of a Moffat profile, normalised over the whole plane."""
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    y, x = np.mgrid[:SIZE, :SIZE]
    image = rng.normal(SKY, NOISE, (SIZE, SIZE))
    for (x0, y0), f in zip(xy, flux, strict=True):
        j, i = (slice(max(int(c) - 60, 0), int(c) + 60) for c in (y0, x0))
        r2 = (x[j, i] - x0) ** 2 + (y[j, i] - y0) ** 2
        image[j, i] += f * (beta - 1) / (np.pi * alpha**2) * (1 + r2 / alpha**2) ** -beta
    return image


def pair(seed, *, count=250):
    """Return a blurred source image of a crowded field, and a sharp template with wide wings."""
    rng = np.random.default_rng(seed)
    xy, flux = rng.uniform(0, SIZE, (count, 2)), 10 ** rng.uniform(3, 4.6, count)
    source = Exposure(image_of(xy + SHIFT, RATIO * flux, 4.6, 4.5, rng), gain=1e6, name="source")
    template = Exposure(image_of(xy, flux, 3.2, 2.8, rng), gain=1e6, name="template")
    return source, template


def measure(source, template):
    """Return the registration and the flux ratio."""
    tables = [detect_sources(one) for one in (source, template)]
    found = register(*tables)
    return found, flux_ratio(found, source, template, (image_fwhm(tables[0]), image_fwhm(tables[1])))


def lost(fwhm, beta, radius):
    """Return the share of a Moffat profile outside a radius, in closed form."""
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    return (1 + (radius / alpha) ** 2) ** (1 - beta)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_psfs_of_different_shape_in_a_crowded_field(seed):
    registration, ratio = measure(*pair(seed))
    radius = 2.5 * 4.6
    wings = abs(lost(4.6, 4.5, radius) - lost(3.2, 2.8, radius))  # what the two circles lose differs by this
    assert ratio.n_stars >= 15
    assert abs(ratio.value / RATIO - 1) < wings + 4 * ratio.error / RATIO
    # the test shows something: the windows of detection see other shares of such PSFs
    assert abs(registration.flux_ratio / RATIO - 1) > 2 * abs(ratio.value / RATIO - 1)
    if seed == 1:  # what `register` tells of images is measured in them
        assert register(*pair(seed)).flux_ratio == ratio.value


@pytest.mark.parametrize("beta", [2.5, 3.0, 4.5])
@pytest.mark.parametrize("fwhm", [2.5, 6.0])
@pytest.mark.parametrize("level", [0.0, -1e-5])
def test_share_of_a_circle_in_closed_form(fwhm, beta, level):
    """Beyond the stamp, too: a Moffat profile whose stamp holds less light than the star, and a level that is none."""
    half, far = int(3.5 * fwhm), int(9 * fwhm) + 1
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    at = np.arange(-far - 0.5 + 0.1, far + 0.5, 0.2)  # pixels are means of 5 x 5 points
    fine = (beta - 1) / np.pi * alpha**-2 * (1 + (at[:, None] ** 2 + at**2) / alpha**2) ** -beta
    star = fine.reshape(2 * far + 1, 5, 2 * far + 1, 5).mean(axis=(1, 3))  # of unit flux over the plane
    distance = np.hypot(*np.mgrid[-far : far + 1, -far : far + 1])
    cut = slice(far - half, far + half + 1)
    stamp = star[cut, cut] + level
    for radius in (2.0 * fwhm, 2.5 * fwhm, 4.5 * fwhm):  # within the stamp and beyond it
        ring = (distance >= 1.5 * radius) & (distance <= 2 * radius)
        inside = np.clip(radius + 0.5 - distance, 0, 1)
        expected = ((star - star[ring].mean()) * inside).sum()
        # profile, circle and ring are taken for smooth: an error of the order of (pixel / FWHM)^2 / 24 of the light
        # within a pixel of the edge, which is half of it at most
        assert abs(circle_share(stamp / stamp.sum(), radius, (1.5 * radius, 2 * radius)) - expected) < 0.02 / fwhm**2


@pytest.mark.parametrize("half", [1, 2, 3])
def test_stamps_without_wings_tell_nothing(half):
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    stamp = (1 + (x**2 + y**2) / 4.4**2) ** -3.0  # FWHM of 4.5 pixels
    assert circle_share(stamp / stamp.sum(), 11.0, (16.5, 22.0)) is None
    source, template = pair(1)
    found, plain = measure(source, template)
    nothing = (lambda _radius, _ring: None, lambda _radius, _ring: 0.9)
    tables = [detect_sources(one) for one in (source, template)]
    widths = image_fwhm(tables[0]), image_fwhm(tables[1])
    assert flux_ratio(found, source, template, widths, shares=nothing) == plain


def test_psfs_tell_what_circles_lose():
    """No bias but noise where the wider image has the stronger wings, and circles lose some 2.5 % more there."""
    errors, plain = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed + 20)
        xy, flux = rng.uniform(0, SIZE, (70, 2)), 10 ** rng.uniform(3.5, 5, 70)
        source = Exposure(image_of(xy + SHIFT, RATIO * flux, 4.6, 2.6, rng), gain=1e6, name="source")
        template = Exposure(image_of(xy, flux, 3.2, 3.2, rng), gain=1e6, name="template")
        tables = [detect_sources(one) for one in (source, template)]
        found = register(*tables)
        shares = tuple(_share(image, table) for image, table in zip((source, template), tables, strict=True))
        widths = image_fwhm(tables[0]), image_fwhm(tables[1])
        ratio = flux_ratio(found, source, template, widths, shares=shares)
        errors.append((ratio.value / RATIO - 1, ratio.error / RATIO))
        plain.append(flux_ratio(found, source, template, widths).value / RATIO - 1)
    bias, sigma = np.mean(errors, axis=0)[0], np.sqrt(np.square(errors).sum(axis=0)[1]) / 4
    # the wings of a star are known to some 0.3 % of its light where they sink into the noise
    assert abs(bias) < 4 * np.hypot(sigma, 0.003 / 2)
    assert np.mean(plain) < -0.015


def test_psfs_that_are_wrong_about_the_wings_do_no_harm():
    """The ratios of several circles say that nothing is lost, whatever the PSFs claim."""
    rng = np.random.default_rng(31)
    xy, flux = rng.uniform(0, SIZE, (70, 2)), 10 ** rng.uniform(3.5, 5, 70)
    source = Exposure(image_of(xy + SHIFT, RATIO * flux, 4.0, 3.5, rng), gain=1e6, name="source")
    template = Exposure(image_of(xy, flux, 4.0, 3.5, rng), gain=1e6, name="template")
    found, plain = measure(source, template)
    lies = [lambda radius, _ring, b=beta: 1 - lost(4.0, b, radius) for beta in (2.2, 5.0)]
    assert lies[0](8.0, None) / lies[1](8.0, None) < 0.93
    ratio = flux_ratio(found, source, template, (4.0, 4.0), shares=tuple(lies))
    assert abs(ratio.value / RATIO - 1) < 4 * ratio.error / RATIO
    assert ratio.error > plain.error  # that of the line's slope comes to it


def test_masked_pixels_do_not_count():
    source, template = pair(4)
    _, clean = measure(source, template)
    rng = np.random.default_rng(5)
    bad = rng.random((SIZE, SIZE)) < 2e-3
    data, mask = source.data.copy(), np.where(bad, np.uint32(MaskBit.BAD), np.uint32(0))
    data[bad] = 1e6
    _, ratio = measure(Exposure(data, mask=mask, gain=1e6, name="source"), template)
    assert ratio.n_stars < clean.n_stars  # stars with a bad pixel in the core are left out
    # a filled pixel costs what the two sides of a star differ by in a crowded field: no more than the scatter measured
    assert abs(ratio.value - clean.value) < 4 * np.hypot(ratio.error, clean.error)


def test_too_few_stars_tell_nothing():
    source, template = pair(6)
    tables = [detect_sources(one) for one in (source, template)]
    found = register(*tables)
    everything = np.full((SIZE, SIZE), np.uint32(MaskBit.BAD))
    hidden = Exposure(source.data, mask=everything, name="hidden")
    assert flux_ratio(found, hidden, template, (4.6, 3.2)) is None


def test_errors_on_both_axes_leave_no_bias():
    rng = np.random.default_rng(7)
    values, errors = [], []
    for _ in range(200):
        true = 10 ** rng.uniform(2, 3, 40)
        s_error, t_error = 5.0, 8.0  # signal to noise 12 and more
        s = RATIO * true * (1 + rng.normal(0, 0.01, 40)) + rng.normal(0, s_error, 40)
        t = true + rng.normal(0, t_error, 40)
        s[::13] *= 1.5  # variable stars
        result = _fit(s, np.full(40, s_error**2), t, np.full(40, t_error**2))
        values.append(result.value)
        errors.append(result.error)
    mean, scatter = np.mean(values), np.std(values)
    assert abs(mean - RATIO) < 4 * scatter / np.sqrt(200)
    # the error is known to 1 / sqrt(2 x 200) = 5 %; one outlier in 13 is not always found, and clipping has its price
    assert 0.7 < np.mean(errors) / scatter < 1.2
