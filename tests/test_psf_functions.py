"""The functions of stdpipe.psf, natively."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.table import Table
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter

from simulate import SCIENCE, simulate_pair
from skyloom.errors import InputError, ShapeError, TooFewSourcesError
from skyloom.psf import PsfexModel, PsfModel
from skyloom.psf.analytic import Profile
from skyloom.psf.functions import (
    bilinear_interpolate,
    create_psf_model,
    enclosed_psf_fraction,
    get_psf_stamp,
    get_supersampled_psf_stamp,
    load_psf,
    place_psf_stamp,
    run_psfex,
    select_psf_seeds,
)


def gaussian(sigma=2.0, half=25, sampling=1.0):
    axis = np.arange(-half, half + 1) * sampling
    return PsfexModel(np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * sigma**2))[None], sampling).to_dict()


@pytest.fixture(scope="module")
def pair():
    return simulate_pair(3, 384, n_transients=0)


def central_error(psf, truth, x, y):
    stamp = get_psf_stamp(psf, x, y)
    half, wide = stamp.shape[0] // 2, truth.half
    exact = truth.stamp(x, y)
    reach = min(half, wide)
    cut = [one[n - reach : n + reach + 1, n - reach : n + reach + 1] for one, n in ((stamp, half), (exact, wide))]
    return np.abs(cut[0] - cut[1]).max() / exact.max()


def test_a_measured_model_is_that_of_the_stars(tmp_path):
    # order 1 can follow a width that varies linearly; the product X Y alone would be 0.028 of the peak in the corners
    pair = simulate_pair(3, 384, n_transients=0, science=replace(SCIENCE, vary_fwhm=(0.04, -0.03, 0.0)))
    psf, objects = run_psfex(
        pair.science.data, gain=1.5, order=1, get_obj=True, psffile=str(tmp_path / "model.psf"), psf_size=25
    )
    assert {"width", "height", "fwhm", "sampling", "ncoeffs", "degree", "data"} <= psf.keys()
    assert (psf["width"], psf["degree"], psf["ncoeffs"]) == (25, 1, 3)
    assert len(objects) > 20
    for x, y in ((60, 60), (190, 200), (320, 310)):
        # the largest of 625 pixels, from some 40 stars: 0.019 in the mean of ten such fields, and 0.035 at most
        assert central_error(psf, pair.science_psf, x, y) < 0.04
    written = load_psf(tmp_path / "model.psf", get_header=True)
    assert written.pop("header")["POLDEG1"] == 1
    assert_allclose(written["data"], psf["data"], atol=1e-7)


def test_a_model_of_given_stars(pair):
    background = pair.science.data - np.median(pair.science.data)
    raw = create_psf_model(background, pair.stars, size=25, get_raw=True)
    assert isinstance(raw, PsfModel)
    fine = create_psf_model(background, pair.stars, size=25, oversampling=2)
    assert (fine["sampling"], fine["width"]) == (0.5, 49)
    assert_allclose(get_psf_stamp(fine, 100, 100), raw.stamp(100, 100), atol=2e-3 * raw.stamp(100, 100).max())
    assert central_error(fine, pair.science_psf, 190, 190) < 0.04


def test_stars_are_chosen_among_the_callers(pair):
    """The others are wider here, and count as neighbours only."""
    data = pair.science.data - np.median(pair.science.data)
    data[:, 192:] = gaussian_filter(data, 2.0)[:, 192:]
    sources = pair.stars["x", "y"]
    ours, theirs = sources[sources["x"] < 180], sources[sources["x"] > 204]
    ours_alone = create_psf_model(data, ours, get_raw=True).fwhm()
    for others in (sources, theirs):  # with or without those of the caller
        assert abs(create_psf_model(data, ours, neighbors_obj=others, get_raw=True).fwhm() / ours_alone - 1) < 0.02
    assert create_psf_model(data, theirs, get_raw=True).fwhm() > 1.1 * ours_alone


def test_masked_stars_do_not_count(pair):
    mask = np.zeros(pair.science.shape, bool)
    mask[::3] = True
    with pytest.raises(TooFewSourcesError):
        run_psfex(pair.science.data, mask=mask)


def test_an_aperture_of_unit_flux(pair):
    psf = run_psfex(pair.science.data, gain=1.5, aper=5.0)
    raw = get_psf_stamp(psf, 191, 191, normalize=False)
    assert raw.sum() > 1.01
    assert_allclose(raw.sum() * enclosed_psf_fraction(psf, 191, 191, radius=5.0), 1, rtol=1e-6)


@pytest.mark.parametrize("sampling", [0.5, 1.0])
def test_stamps_of_a_gaussian(sampling):
    psf = gaussian(sampling=sampling)
    axis = np.arange(-psf["width"] * sampling // 2 + 1, 0)
    stamp = get_psf_stamp(psf, 10.3, 20.8)
    half = stamp.shape[0] // 2
    axis = np.arange(-half, half + 1.0)
    exact = np.exp(-((axis[:, None] + 0.2) ** 2 + (axis - 0.3) ** 2) / 8) / (8 * np.pi)
    # cubic splines with steps of half a sigma
    assert np.abs(stamp - exact).max() < 1e-3 * exact.max()
    assert_allclose(get_supersampled_psf_stamp(psf).sum(), 1)
    assert get_supersampled_psf_stamp(psf, normalize=False).max() == 1
    assert_allclose(get_psf_stamp(psf, normalize=False).sum() * sampling**2, 8 * np.pi, rtol=1e-3)


def test_sources_are_added_in_place():
    image = np.zeros((60, 50), np.float32)
    place_psf_stamp(image, gaussian(), 25.3, 30.7, flux=1000)
    assert_allclose(image.sum(), 1000, rtol=1e-3)  # a part lies outside of the image
    y, x = np.indices(image.shape)
    assert_allclose([(x * image).sum() / image.sum(), (y * image).sum() / image.sum()], [25.3, 30.7], atol=0.01)
    before = image.copy()
    place_psf_stamp(image, gaussian(), 500, 500)
    assert_array_equal(image, before)
    noisy = np.zeros((60, 50))
    np.random.seed(1)  # noqa: NPY002  the function uses NumPy's global generator
    place_psf_stamp(noisy, gaussian(), 25, 30, flux=1e4, gain=2.0)
    # Poisson: the standard deviation of the sum is sqrt(flux / gain)
    assert abs(noisy.sum() - 1e4) < 4 * np.sqrt(1e4 / 2)
    assert_allclose(noisy * 2, np.round(noisy * 2), atol=1e-6)


def test_flux_in_circles():
    radii = np.array([[1.0, 2.0], [4.0, 20.0]])
    found = enclosed_psf_fraction(gaussian(), 3.2, -0.4, radii)
    # stamps hold values at the pixels' centres
    assert_allclose(found, 1 - np.exp(-(radii**2) / 8), atol=0.01)
    assert isinstance(enclosed_psf_fraction(gaussian(), radius=3), float)
    with pytest.raises(TypeError, match="radius is required"):
        enclosed_psf_fraction(gaussian())


def test_seeds_are_the_brightest_of_each_cell():
    rng = np.random.default_rng(4)
    table = Table({"x": rng.uniform(0, 300, 500), "y": rng.uniform(0, 200, 500), "flux": rng.lognormal(size=500)})
    table["flags"] = rng.integers(0, 4, 500)
    seeds = select_psf_seeds(table, (200, 300), grid=(3, 2), max_per_tile=4, edge=10, accept_flags=1)
    assert set(np.unique(seeds["flags"])) <= {0, 1}
    cells = {}
    for row in table:
        if 10 <= row["x"] < 290 and 10 <= row["y"] < 190 and row["flags"] in (0, 1):
            cells.setdefault((int(row["x"] // 100), int(row["y"] // 100)), []).append(row["flux"])
    expected = sorted(flux for fluxes in cells.values() for flux in sorted(fluxes)[-4:])
    assert_array_equal(np.sort(seeds["flux"]), expected)


def test_bilinear_interpolation():
    y, x = np.mgrid[:6, :7]
    assert_allclose(bilinear_interpolate(2 * x + 3 * y, [1.5, 4.25], [2.0, 3.5]), [9.0, 19.0])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: run_psfex(np.ones((20, 20)), _exe="/usr/bin/psfex"),
            InputError,
            "_exe: PSFEx and SExtractor are not run",
        ),
        (lambda: run_psfex(np.ones((20, 20)), mask=np.ones((3, 3))), ShapeError, "mask"),
        (lambda: run_psfex(np.ones(20)), ShapeError, "two-dimensional"),
        (lambda: get_psf_stamp({"data": 1}), InputError, "sampling"),
    ],
)
def test_bad_input_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_profiles_serve_as_models():
    psf = PsfexModel(Profile(3.0).stamp(10)[None]).to_dict()
    assert_allclose(get_psf_stamp(psf), Profile(3.0).stamp(10) / Profile(3.0).stamp(10).sum(), atol=1e-9)
