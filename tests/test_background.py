"""Background and white noise of simulated skies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from skyloom.background import (
    CLIP,
    CLIPPED_DEVIATION,
    LOWER_HALF_MEAN,
    NORM,
    estimate_background,
    median,
    noise_samples,
    white_noise,
)
from skyloom.errors import InputError, NoUsableDataError
from skyloom.exposure import Exposure


def stars(rng, shape, number, fwhm=3.0):
    image = np.zeros(shape)
    np.add.at(image, (rng.integers(0, shape[0], number), rng.integers(0, shape[1], number)),
              10 ** rng.uniform(2, 5, number))  # fmt: skip
    return ndimage.gaussian_filter(image, fwhm / 2.3548)


def test_constants():
    normal = stats.norm
    assert pytest.approx(4 * (normal.pdf(0) - normal.pdf(normal.ppf(0.75))), abs=1e-6) == LOWER_HALF_MEAN
    inside = 2 * normal.cdf(CLIP) - 1
    assert pytest.approx(np.sqrt(1 - 2 * CLIP * normal.pdf(CLIP) / inside), abs=1e-6) == CLIPPED_DEVIATION


@pytest.mark.parametrize("spacing", [1, 2, 3])
def test_samples_are_those_of_the_plain_filter(spacing):
    """Oracle: Immerkær's 3x3 coefficients written out, with a loop over all squares of usable pixels."""
    rng = np.random.default_rng(0)
    data, mask = rng.normal(0, 1, (17, 14)), rng.random((17, 14)) < 0.05
    coefficients = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    assert pytest.approx(np.sqrt((coefficients**2).sum())) == NORM
    expected = []
    for y in range(17 - 2 * spacing):
        for x in range(14 - 2 * spacing):
            square = (slice(y, y + 2 * spacing + 1, spacing), slice(x, x + 2 * spacing + 1, spacing))
            if not mask[square].any():
                expected.append(((data[square] * coefficients).sum(), data[square].mean()))
    response, mean, _ = noise_samples(Exposure(data, mask=mask), spacing=spacing)
    np.testing.assert_allclose(np.sort(response), np.sort([r for r, _ in expected]), atol=1e-12)
    np.testing.assert_allclose(np.sort(mean), np.sort([m for _, m in expected]), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sigma=st.floats(1e-3, 1e3),
    level=st.floats(-1e4, 1e4),
    slopes=st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
)
def test_white_noise_is_blind_to_level_and_gradients(seed, sigma, level, slopes):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:128, :128]
    smooth = level + sigma * (slopes[0] * x + slopes[1] * y + 1e-2 * slopes[0] * x**2)
    exposure = Exposure(rng.normal(0, sigma, (128, 128)) + smooth)
    # 8000 pixels: 2 % scatter
    assert white_noise(exposure) == pytest.approx(sigma, rel=0.08)


@pytest.mark.parametrize("number", [50, 1000])
def test_white_noise_is_blind_to_stars(number):
    rng = np.random.default_rng(1)
    found = [white_noise(Exposure(rng.normal(0, 10, (256, 256)) + stars(rng, (256, 256), number))) for _ in range(5)]
    assert np.median(found) == pytest.approx(10, rel=0.03)


def test_white_noise_of_whole_numbers():
    rng = np.random.default_rng(2)
    for sigma in (0.5, 1.3):
        data = np.round(rng.normal(100, sigma, (300, 300)))
        assert white_noise(Exposure(data)) == pytest.approx(np.sqrt(sigma**2 + 1 / 12), rel=0.03)


@pytest.mark.parametrize("number", [0, 100, 1500])
def test_background_level_of_a_tilted_sky(number):
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:256, :256]
    sky = 500 + 0.2 * x - 0.1 * y
    data = sky + rng.normal(0, 10, sky.shape) + stars(rng, sky.shape, number)
    background = estimate_background(Exposure(data))
    error = background.level - sky
    assert background.level.shape == background.rms.shape == sky.shape
    assert background.level.dtype == background.rms.dtype == np.float32
    # boxes of 32x32: 10 / 32 each; in the crowded field the stars that nobody can tell from sky stay
    assert np.sqrt(np.mean(error**2)) < (20 if number > 1000 else 2)
    assert abs(np.median(error)) < (15 if number > 1000 else 1)
    if number <= 100:
        assert background.global_rms == pytest.approx(10, rel=0.1)
        assert background.global_level == pytest.approx(512.8, abs=2)


def test_masked_pixels_do_not_count_and_nothing_is_changed():
    rng = np.random.default_rng(4)
    data = rng.normal(100, 5, (128, 160))
    mask = np.zeros(data.shape, bool)
    mask[30:60, 40:90] = True
    first = estimate_background(Exposure(data, mask=mask))
    data[mask] = 1e6
    exposure = Exposure(data, mask=mask)
    second = estimate_background(exposure)
    np.testing.assert_array_equal(first.level, second.level)
    np.testing.assert_array_equal(exposure.data, data)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 3), (5, 40), (31, 33)])
def test_tiny_images(shape):
    rng = np.random.default_rng(5)
    background = estimate_background(Exposure(rng.normal(100, 5, shape)))
    assert background.level.shape == shape
    assert np.isfinite(background.level).all()
    assert np.abs(background.level - 100).max() < 25


def test_bad_arguments():
    exposure = Exposure(np.ones((20, 20)))
    for box in (0, -3, 2.5):
        with pytest.raises(InputError, match="box"):
            estimate_background(exposure, box=box)
    empty = Exposure(np.full((20, 20), np.nan))
    for function in (estimate_background, white_noise):
        with pytest.raises(NoUsableDataError):
            function(empty)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(["u1", "i2", "u2", "i4", "i8", "f4", "f8", ">f4", ">i2"]),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_median_is_that_of_numpy(dtype, size, seed):
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    values = rng.normal(size=size) * 10.0 ** rng.integers(-3, 30) if kind.kind == "f" else (
        rng.integers(np.iinfo(kind).max // 2, np.iinfo(kind).max, size, endpoint=True)
    )  # fmt: skip
    values = values.astype(kind)
    # the mean of the two middle values is rounded to single precision by NumPy, and is not here
    assert median(values) == pytest.approx(float(np.median(values.astype(np.float64))), rel=1e-15)


def test_median_of_large_values_and_of_none():
    assert median(np.array([30000, 30000], np.int16)) == 30000
    assert median(np.array([250, 255], np.uint8)) == 252.5
    assert median(np.array([1.7e308, 1.7e308])) == 1.7e308
    assert np.isnan(median(np.array([])))
