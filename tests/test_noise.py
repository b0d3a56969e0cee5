"""The noise model against simulated photons and read noise, whose variance is known in every pixel."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
from scipy import ndimage

from reference.noise_oracle import expected_signal as plain_signal
from skyloom.errors import NoUsableDataError, SkyloomWarning
from skyloom.exposure import Exposure, MaskBit
from skyloom.noise import NoiseModel, expected_signal, noise_model, with_variance

GAIN, READ_NOISE = 2.0, 5.0
SHAPE = (300, 300)


@functools.cache
def scene_of(seed, **options):
    image = scene(np.random.default_rng([seed, 1]), **options)
    image.flags.writeable = False
    return image


def scene(rng, *, stars, fwhm=3.0, sky=200.0, shape=SHAPE):
    """Expected electrons: sky and stars with fluxes from 10^2 to 10^5 electrons."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.full(shape, float(sky))
    sigma = fwhm / 2.3548
    half = int(6 * sigma) + 2
    for cx, cy, flux in zip(
        rng.uniform(0, shape[1], stars), rng.uniform(0, shape[0], stars), 10 ** rng.uniform(2, 5, stars), strict=True
    ):
        box = (slice(max(int(cy) - half, 0), int(cy) + half), slice(max(int(cx) - half, 0), int(cx) + half))
        distance2 = (x[box] - cx) ** 2 + (y[box] - cy) ** 2
        image[box] += flux / (2 * np.pi * sigma**2) * np.exp(-distance2 / (2 * sigma**2))
    return image


def observe(rng, electrons, *, frames=1, subtract=0.0, integer=False):
    """Return an image in units of data, and the true variance of its pixels."""
    data = sum(rng.poisson(electrons) + rng.normal(0, READ_NOISE, electrons.shape) for _ in range(frames))
    data = data / (frames * GAIN) - subtract / GAIN
    variance = (electrons + READ_NOISE**2) / GAIN**2 / frames
    return (np.round(data), variance + 1 / 12) if integer else (data, variance)


def median_ratio(seeds, *, given=True, **options):
    """Return the median over seeds of (total predicted variance) / (total true variance), and that of faint pixels."""
    ratios = []
    observing = {key: options.pop(key) for key in ("frames", "subtract", "integer") if key in options}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        electrons = scene_of(seed, **options)
        data, truth = observe(rng, electrons, **observing)
        values = {"gain": GAIN, "read_noise": READ_NOISE} if given else {"read_noise": READ_NOISE}
        found = with_variance(Exposure(data, **values)).variance
        faint = electrons <= np.quantile(electrons, 0.3)
        ratios.append((found.sum() / truth.sum(), found[faint].sum() / truth[faint].sum()))
    return np.median(ratios, axis=0)


@pytest.mark.parametrize(("stars", "fwhm"), [(0, 3.0), (100, 2.5), (100, 5.0), (1500, 2.5), (1500, 5.0)])
@pytest.mark.parametrize(("subtracted", "integer"), [(False, True), (True, False)])
def test_predicted_variance_is_the_true_one(stars, fwhm, subtracted, integer):
    sky = 200.0
    total, faint = median_ratio(3, stars=stars, fwhm=fwhm, sky=sky, subtract=sky * subtracted, integer=integer)
    # a variance from 2e4 pixels is known to 1.5 %, the median of three to 1 %
    assert total == pytest.approx(1, abs=0.03)
    # in a crowded field no pixel is free of the shapes of stars
    assert faint == pytest.approx(1, abs=0.06 if stars > 1000 else 0.03)


@pytest.mark.parametrize("sky", [5.0, 50.0, 2000.0])
def test_from_dark_to_bright_skies(sky):
    total, _ = median_ratio(3, stars=100, sky=sky)
    assert total == pytest.approx(1, abs=0.03)


@pytest.mark.filterwarnings("ignore::skyloom.errors.SkyloomWarning")
@pytest.mark.parametrize("stars", [100, 1000])
def test_an_average_of_frames_whose_gain_was_not_updated(stars):
    total, faint = median_ratio(3, stars=stars, fwhm=3.0, frames=9)
    assert total == pytest.approx(1, abs=0.1)
    assert faint == pytest.approx(1, abs=0.1)


def test_an_average_is_told():
    rng = np.random.default_rng(0)
    data, _ = observe(rng, scene(rng, stars=50), frames=4)
    with pytest.warns(SkyloomWarning, match="average of that many frames"):
        model = noise_model(Exposure(data, gain=GAIN, read_noise=READ_NOISE))
    assert model.origin == "sky"
    assert model.gain == pytest.approx(4 * GAIN, rel=0.05)


def test_an_average_without_its_sky_is_seen_in_its_sources():
    rng = np.random.default_rng(0)
    electrons = scene(rng, stars=60, fwhm=7.0)  # well sampled: the filter sees photons rather than shapes
    data, truth = observe(rng, electrons, frames=9, subtract=200.0)
    with pytest.warns(SkyloomWarning, match="less noisy than photons"):
        exposure = with_variance(Exposure(data, gain=GAIN, read_noise=READ_NOISE))
    assert exposure.variance.sum() / truth.sum() == pytest.approx(1, abs=0.3)  # 9 without it, in the sources


def test_the_gain_is_found_from_the_sky():
    total, _ = median_ratio(3, given=False, stars=300)
    assert total == pytest.approx(1, abs=0.05)


def test_an_unknown_gain_without_sky_is_told():
    rng = np.random.default_rng(0)
    data, truth = observe(rng, scene(rng, stars=20), subtract=200.0)
    with pytest.warns(SkyloomWarning, match="photon noise of its sources is left out"):
        exposure = with_variance(Exposure(data))
    assert np.ptp(exposure.variance) == 0
    assert exposure.variance[0, 0] == pytest.approx(truth.min(), rel=0.05)


@pytest.mark.parametrize("stars", [0, 50, 1500])
def test_nothing_is_said_where_all_agrees(stars):
    rng = np.random.default_rng(8)
    electrons = scene(rng, stars=stars)
    for subtract in (0.0, 200.0):
        data, _ = observe(rng, electrons, subtract=subtract)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = noise_model(Exposure(data, gain=GAIN, read_noise=READ_NOISE))
        assert (model.origin, model.gain, model.correlation) == ("given", GAIN, 1.0)


def test_noise_that_was_correlated_by_resampling():
    """Shifted by half a pixel with bilinear weights: 1/4 of the variance is left, all of it in large means."""
    rng = np.random.default_rng(1)
    data, truth = observe(rng, scene(rng, stars=0, shape=(400, 400)), subtract=200.0)
    shifted = ndimage.shift(data, (0.5, 0.5), order=1, mode="wrap")
    exposure = with_variance(Exposure(shifted[2:-2, 2:-2], gain=4 * GAIN, read_noise=READ_NOISE))
    assert np.median(exposure.variance) / truth.min() == pytest.approx(0.25, rel=0.05)
    # means over 3x3 pixels still miss a third of it: (1 - 1/(2 * 3))^2 along both axes
    assert exposure.correlation == pytest.approx(4 * (1 - 1 / 6) ** 2, rel=0.1)


def test_weights_do_not_follow_the_noise():
    """The mean of a star-free field, weighted by the inverse variance, is not pulled to the pixels that are low."""
    rng = np.random.default_rng(2)
    sky = 10.0
    data, truth = observe(rng, scene(rng, stars=0, sky=sky, shape=(600, 600)))
    exposure = with_variance(Exposure(data, gain=GAIN, read_noise=READ_NOISE))
    weighted = np.average(exposure.data, weights=1 / exposure.variance)
    error = np.sqrt(truth.mean() / data.size)
    # with the variance of the pixel's own value the mean would be too low by 0.4, 100 of these errors
    assert weighted == pytest.approx(data.mean(), abs=2 * error)


def test_expected_signal_keeps_the_cores_of_stars():
    rng = np.random.default_rng(3)
    electrons = scene(rng, stars=40, fwhm=2.5)
    data, truth = observe(rng, electrons)
    exposure = Exposure(data, gain=GAIN, read_noise=READ_NOISE)
    signal = expected_signal(exposure, noise_model(exposure))
    bright = electrons > 2000
    assert bright.sum() > 50
    # each is known to about its own noise
    assert np.std((signal - electrons / GAIN)[bright] / np.sqrt(truth[bright])) < 1.2
    np.testing.assert_allclose(np.median(signal[bright] * GAIN / electrons[bright]), 1, atol=0.02)


def test_masked_pixels_have_no_influence():
    rng = np.random.default_rng(4)
    data, _ = observe(rng, scene(rng, stars=50))
    mask = rng.random(SHAPE) < 0.05
    mask[100:140, 50:90] = True
    first = with_variance(Exposure(data, mask=mask, gain=GAIN, read_noise=READ_NOISE))
    data[mask] = rng.choice([np.nan, np.inf, -1e9, 1e9], mask.sum())
    second = with_variance(Exposure(data, mask=mask, gain=GAIN, read_noise=READ_NOISE))
    np.testing.assert_array_equal(first.variance, second.variance)
    assert np.isfinite(second.variance).all()
    assert (second.variance > 0).all()
    assert not (second.mask & np.uint32(MaskBit.BAD))[~mask].any()


def test_a_variance_that_is_there_is_kept():
    exposure = Exposure(np.ones((5, 5)), variance=np.ones((5, 5)))
    assert with_variance(exposure) is exposure


def test_images_without_noise_or_pixels():
    with pytest.raises(NoUsableDataError, match="no noise"):
        with_variance(Exposure(np.ones((20, 20)), gain=1.0))
    with pytest.raises(NoUsableDataError, match="No pixel"):
        with_variance(Exposure(np.full((20, 20), np.nan), gain=1.0))


@pytest.mark.filterwarnings("ignore::skyloom.errors.SkyloomWarning")  # so few pixels may contradict their gain
@pytest.mark.parametrize("shape", [(1, 9), (2, 2), (3, 3), (4, 50), (12, 12)])
def test_tiny_images(shape):
    data = np.random.default_rng(5).normal(100, 5, shape)
    exposure = with_variance(Exposure(data, gain=4.0))
    assert (exposure.variance > 0).all()
    assert exposure.usable.all()


def test_bit_identical_for_any_number_of_threads(monkeypatch):
    rng = np.random.default_rng(6)
    data, _ = observe(rng, scene(rng, stars=100, shape=(700, 50)))
    planes = []
    for threads in ("1", "3"):
        monkeypatch.setenv("SKYLOOM_NUM_THREADS", threads)
        planes.append(with_variance(Exposure(data, gain=GAIN, read_noise=READ_NOISE)).variance)
    np.testing.assert_array_equal(*planes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "masked"), [((1, 1), 0), ((3, 40), 0.2), ((150, 17), 0), ((70, 700), 0.05)])
def test_expected_signal_is_that_of_plain_windows(shape, masked, dtype):
    rng = np.random.default_rng(7)
    data = rng.normal(300, 10, shape).astype(dtype)
    data[rng.random(shape) < 0.02] += dtype(5000)
    mask = rng.random(shape) < masked
    exposure = Exposure(data, mask=mask)
    for gain in (2.0, None):
        model = NoiseModel(noise=10.0, level=300.0, gain=gain, read_variance=1.0, origin="given")
        plain = plain_signal(data.astype(float), ~mask, level=300.0, variance_of=model.variance)
        # sums of 225 squares in the arithmetic of the data
        np.testing.assert_allclose(expected_signal(exposure, model), plain, rtol=3e3 * np.finfo(dtype).eps, atol=0)
