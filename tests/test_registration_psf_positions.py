"""Positions of crowded stars by fits of the PSF: nearer to the truth than windowed centroids, with the right errors."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from reference.registration_sim import BETA, Truth, add_stars
from skyloom.errors import InputError, SkyloomWarning
from skyloom.exposure import Exposure
from skyloom.psf import PsfModel
from skyloom.psf.analytic import Profile
from skyloom.registration import RegistrationOptions, detect_sources, register
from skyloom.registration.psf_positions import fit_stars

FWHM = 3.0


def moffat(shape):
    return PsfModel(Profile(FWHM, BETA).stamp(12)[None], 0, shape)


def image_of(xy, flux, rng=None, size=320, sky=100.0):
    image = np.full((size, size), sky)
    add_stars(image, xy, flux, FWHM)
    return image if rng is None else rng.poisson(image) + rng.normal(0, 3.0, image.shape)


def crowded(seed, count=1500, size=320):
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, size - 1, (count, 2))
    return rng, xy, np.minimum(400 * (1 + rng.pareto(1.0, count)), 2e5)


def miss(table, xy):
    """Return the distance from each of some true positions to the nearest source within a pixel, and its error."""
    distance, near = cKDTree(np.column_stack([table["x"], table["y"]])).query(xy, distance_upper_bound=1.0)
    found = np.isfinite(distance)
    return distance[found], np.asarray(table["x_err"])[near[found]]


def test_blends_without_noise_are_taken_apart():
    xy = np.array([[40.3, 41.2], [43.1, 42.0], [41.0, 44.6], [80.6, 30.4]])
    flux = np.array([4e4, 2e4, 1e4, 3e4])
    data = image_of(xy, flux, size=120, sky=0.0)
    rng = np.random.default_rng(1)
    start = xy + rng.uniform(-0.4, 0.4, xy.shape)
    for plane in (data, data.astype(np.float32)):
        plane.flags.writeable = False
        fitted = fit_stars(plane, np.full(plane.shape, 5.0), None, start, moffat(plane.shape), gain=1.0)
        assert fitted.good.all()
        # the shift of the profile by Lanczos interpolation is wrong by 0.3 % of the peak: of the brightest star, that
        # is 1.2 % of its faintest neighbour, and moves it by about that part of its width
        np.testing.assert_allclose(fitted.xy, xy, atol=0.02)
        np.testing.assert_allclose(fitted.flux, flux, rtol=0.02)


def test_errors_are_the_scatter():
    grid = np.arange(20, 300, 25.0)
    rng = np.random.default_rng(3)
    xy = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2) + rng.uniform(-0.5, 0.5, (len(grid) ** 2, 2))
    xy = np.concatenate([xy, xy + np.array([4.0, 1.0])])
    image = image_of(xy, np.full(len(xy), 3e3), rng) - 100.0
    # the sky's photons and the read noise; the stars' own photons come from the gain
    fitted = fit_stars(image, np.full(image.shape, np.sqrt(109.0)), None, xy, moffat(image.shape), gain=1.0)
    assert fitted.good.all()
    pull = (fitted.xy - xy) / fitted.xy_err[:, None]
    # 576 values: 3 % of scatter; the model's own error in the weights costs some per cent more
    assert 0.88 < pull.std() < 1.12
    assert abs(pull.mean()) < 0.15


def test_masked_pixels_weigh_nothing():
    xy, flux = np.array([[30.2, 31.4], [60.0, 61.0]]), np.array([2e4, 1e4])
    data = image_of(xy, flux, size=90, sky=0.0)
    dead = np.zeros(data.shape, bool)
    dead[31, 32] = dead[60, 60] = True
    data[dead] = 1e6
    fitted = fit_stars(data, np.full(data.shape, 5.0), dead, xy + 0.2, moffat(data.shape), gain=None)
    np.testing.assert_allclose(fitted.xy, xy, atol=0.02)
    dead[:] = True
    assert not fit_stars(data, np.ones(data.shape), dead, xy, moffat(data.shape), gain=None).good.any()


def test_crowded_stars_are_nearer_to_the_truth():
    rng, xy, flux = crowded(1)
    exposure = Exposure(image_of(xy, flux, rng), gain=1.0, read_noise=3.0)
    bright = xy[flux > 2000]
    windowed, fitted = (miss(detect_sources(exposure, positions=how), bright) for how in ("windowed", "psf"))
    # six fields of 230 stars gave 0.71 to 0.77
    assert np.sqrt(np.mean(fitted[0] ** 2)) < 0.85 * np.sqrt(np.mean(windowed[0] ** 2))
    assert len(fitted[0]) >= len(windowed[0])
    # the median of a Rayleigh distribution is 1.18; stars that nobody can tell apart make it larger
    pulls = [np.median(distance / error) / 1.1774 for distance, error in (windowed, fitted)]
    assert 0.8 < pulls[1] < 1.5 < pulls[0]


def test_register_uses_them():
    rng, xy, flux = crowded(4, count=900, size=250)
    truth = Truth(rotation=33.0, shift=(6.0, -4.0), size=250)
    source, template = (Exposure(image_of(p, flux, rng, size=250), gain=1.0, read_noise=3.0) for p in (truth(xy), xy))
    result = register(source, template, RegistrationOptions(positions="psf", max_order=1))
    assert truth.rms_error(result)[0] < 0.05
    # the positions are those of the fits
    stars = detect_sources(template, positions="psf")
    place = np.column_stack([result.matched["x_template"], result.matched["y_template"]])
    assert cKDTree(np.column_stack([stars["x"], stars["y"]])).query(place)[0].max() == 0
    assert result.flux_ratio == pytest.approx(1, abs=0.05)


def test_options_and_images_without_a_psf():
    rng = np.random.default_rng(5)
    mask = np.zeros((64, 64), bool)
    mask[30, 21] = mask[41, 50] = True  # no star is left whose core is whole
    stars = np.array([[20.0, 30.0], [50.0, 40.0]])
    exposure = Exposure(image_of(stars, [4e3, 4e3], rng, size=64), mask=mask, gain=1.0)
    with pytest.raises(InputError, match="'windowed' or 'psf'"):
        detect_sources(exposure, positions="centroid")
    with pytest.warns(SkyloomWarning, match="windowed"):
        table = detect_sources(exposure, positions="psf")
    assert len(table) == len(detect_sources(exposure))
