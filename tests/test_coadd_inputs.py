"""What goes into a co-add: skies, units, grids, bad exposures, outliers against the truth, medians."""

import tracemalloc
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from skyloom.errors import InputError, ReadError, SkyloomError, WcsError, WriteError
from skyloom.exposure import Exposure
from skyloom.io import read, write_exposure
from skyloom.resampling import grid_of, wcs_map
from skyloom.stacking import CoaddOptions, coadd
from skyloom.stacking.members import is_surface_brightness
from skyloom.stacking.memory import Scratch
from skyloom.stacking.outliers import masked_median, median_variance
from skyloom.stacking.sky import Levels, cell_levels, match_skies, needed_memory
from test_coadd import GRID, PLAIN, SHAPE, add_rays, observe, pointings, star_positions
from test_maps import tan

# --- skies ----------------------------------------------------------------------------------------


def levels(skies, shape, cell, rng, *, noise=0.1, ghost=0.0):
    """Levels of exposures that each see two thirds of the cells, with planes for skies and a common structure."""
    ny, nx = shape[0] // cell, shape[1] // cell
    across = int(shape[1] / cell) + 1
    common = rng.normal(0, 5, (ny, nx))
    result = []
    for a, b, c in skies:
        y, x = np.nonzero(rng.random((ny, nx)) < 0.67)
        u = ((x + 0.5) * cell - shape[1] / 2) / (max(shape) / 2)
        v = ((y + 0.5) * cell - shape[0] / 2) / (max(shape) / 2)
        level = a + b * u + c * v + common[y, x] + rng.normal(0, noise, len(x))
        level += ghost * (rng.random(len(x)) < 0.1)
        result.append(Levels(np.sort(y * across + x), level[np.argsort(y * across + x)], noise))
    return result


@pytest.mark.parametrize("ghost", [0.0, 300.0])
def test_planes_are_found_from_differences(ghost):
    rng = np.random.default_rng(1)
    skies = rng.normal(0, 20, (5, 3))
    shape, cell = (600, 800), 40
    found = match_skies(levels(skies, shape, cell, rng, ghost=ghost), shape, cell, plane=True)
    expected = skies - skies.mean(axis=0)
    expected[:, 0] -= expected[0, 0]
    # 200 cells of noise 0.1 each; gradients reach 1 at the ends: some 0.02, 5 sigma
    np.testing.assert_allclose(found, expected, atol=0.1)
    constants = skies * [1, 0, 0]
    found = match_skies(levels(constants, shape, cell, rng, ghost=ghost), shape, cell, plane=False)
    np.testing.assert_allclose(found[:, 0], constants[:, 0] - constants[0, 0], atol=0.1)
    assert not found[:, 1:].any()


def test_skies_are_the_least_squares_solution_with_a_free_level_in_each_cell():
    """By the whole design matrix, with a column for every exposure and every cell, and the same weights."""
    rng = np.random.default_rng(3)
    n, shape, cell, noises = 6, (400, 400), 40, np.array([0.1, 0.1, 0.4, 0.2, 0.1, 0.3])
    parts = [
        replace(one, noise=float(noise), level=one.level + rng.normal(0, noise, len(one.level)))
        for one, noise in zip(
            levels(rng.normal(0, 9, (n, 3)) * [1, 0, 0], shape, cell, rng, noise=0), noises, strict=True
        )
    ]
    k = np.repeat(np.arange(n), [len(one.cell) for one in parts])
    cells, j = np.unique(np.concatenate([one.cell for one in parts]), return_inverse=True)
    value = np.concatenate([one.level for one in parts])
    design = np.zeros((len(k), n + len(cells)))
    design[np.arange(len(k)), k] = design[np.arange(len(k)), n + j] = 1
    scaled = design / noises[k][:, None]
    # error of a residual: its noise less what the mean of its cell takes
    own = noises[k] ** 2 * (1 - noises[k] ** -2 / np.bincount(j, noises[k] ** -2)[j])
    several = np.bincount(j)[j] > 1
    weight = np.ones(len(k))
    for _ in range(100):
        root = np.sqrt(weight)
        found = np.linalg.lstsq(scaled * root[:, None], root * value / noises[k])[0]
        ratio2 = np.where(several, (value - design @ found) ** 2 / np.where(several, own, 1), 0)
        spread = max(1.0, 1.4826 * float(np.sqrt(np.median(ratio2[several]))))
        weight = 1 / (1 + ratio2 / (2 * spread) ** 2)
    expected = found[:n] - found[0]
    # it stops when nothing moves by more than 1e-3 of the noise of a level
    np.testing.assert_allclose(match_skies(parts, shape, cell, plane=False)[:, 0], expected, atol=3e-4)


def test_memory_for_skies_grows_with_the_exposures_and_not_with_their_pairs():
    rng = np.random.default_rng(4)
    peaks = []
    for n in (20, 80):
        parts = [Levels(np.arange(2000), rng.normal(0, 1, 2000), 1.0) for _ in range(n)]
        tracemalloc.start()
        match_skies(parts, (2000, 2000), 40, plane=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 5 * peaks[0]  # 4 for what grows with their number, 16 for pairs


@pytest.mark.parametrize("plane", [False, True])
@pytest.mark.parametrize(("n", "cells"), [(20, 2000), (200, 200)])
def test_memory_for_skies_is_known(n, cells, plane):
    rng = np.random.default_rng(5)
    parts = [Levels(np.arange(cells), rng.normal(0, 1, cells), 1.0) for _ in range(n)]
    match_skies(parts[:2], (2000, 2000), 40, plane=plane)  # what is loaded the first time is not counted
    tracemalloc.start()
    match_skies(parts, (2000, 2000), 40, plane=plane)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # residuals and equations are counted together, but hardly ever are all there at once
    assert peak < needed_memory(parts, plane=plane) < 2 * peak


def test_groups_that_do_not_overlap_keep_their_first_level():
    left, right = np.arange(10), np.arange(50, 60)
    parts = [
        Levels(cells, np.full(10, sky), 1.0) for cells, sky in ((left, 5.0), (left, 8.0), (right, 1.0), (right, 0.0))
    ]
    found = match_skies(parts, (400, 400), 40, plane=False)
    np.testing.assert_allclose(found[:, 0], [0, 3, 0, -1], atol=1e-9)
    assert not match_skies([parts[0], parts[2]], (400, 400), 40, plane=True).any()


def test_levels_are_medians_of_cells():
    rng = np.random.default_rng(2)
    xy, values = rng.uniform(-0.5, 99.5, (5000, 2)), rng.normal(3, 1, 5000)
    found = cell_levels(xy, values, 100, 25.0)
    cell = np.floor((xy + 0.5) / 25).astype(int) @ [1, 5]
    for number, level in zip(found.cell, found.level, strict=True):
        inside = np.sort(values[cell == number])
        assert level == inside[len(inside) // 2]
    # a median of 312 values of deviation 1
    assert found.noise == pytest.approx(np.sqrt(np.pi / 2 / 312), rel=0.1)


def test_gradients_of_the_sky_are_matched():
    rng = np.random.default_rng(4)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    exposures = []
    for k, wcs in enumerate(pointings(4, turn=1.0)):
        one = observe(wcs, rng, sky=150.0)
        exposures.append(one.replace(data=one.data + (k - 1.5) * (0.3 * x - 0.2 * y)))
    options = CoaddOptions("mean", background="plane", covariance=None)
    result = coadd(exposures, options, wcs=GRID)
    skies = np.array([one.sky for one in result.contributions])
    # the longer side is 160 pixels: a slope of 0.3 per pixel is one of 24 over half of it
    np.testing.assert_allclose(skies[:, 1], 24 * (np.arange(4) - 1.5), atol=1.5)
    np.testing.assert_allclose(skies[:, 2], -16 * (np.arange(4) - 1.5), atol=1.5)


# --- units, grids and bad exposures ---------------------------------------------------------------


def test_mixed_units_are_named():
    exposures = [observe(wcs, name=f"{k}.fits") for k, wcs in enumerate(pointings(3))]
    mixed = [*exposures[:2], exposures[2].replace(unit="electron / s")]
    with pytest.raises(InputError, match=r"2\.fits is in electron / s, but 0\.fits is in adu") as caught:
        coadd(mixed, PLAIN, wcs=GRID)
    assert caught.value.details["name"] == "2.fits"
    same = [
        one.replace(unit=unit)
        for one, unit in zip(exposures, ["electron/s", "electron / s", "ELECTRON/S"], strict=True)
    ]
    assert coadd(same, PLAIN, wcs=GRID).exposure.unit == "electron/s"


def test_surface_brightness_is_averaged():
    units = {"MJy/sr": True, "MJy / sr": True, "nJy/arcsec2": True, "adu": False, "Jy": False, "electron/s": False}
    assert {unit: is_surface_brightness(unit) for unit in units} == units
    for unit, expected in (("MJy/sr", 5.0), ("nJy", 20.0)):
        exposure = Exposure(np.full(SHAPE, 5.0), np.ones(SHAPE), wcs=GRID, unit=unit)
        result = coadd([exposure], replace(PLAIN, pixel_scale=2.0, flux_scale="none"))
        np.testing.assert_allclose(result.exposure.data[20:50, 20:50], expected, rtol=1e-4)
        kept = coadd([exposure], replace(PLAIN, pixel_scale=2.0, conserve="surface brightness"))
        np.testing.assert_allclose(kept.exposure.data[20:50, 20:50], 5.0, rtol=1e-4)


class Nowhere:
    """A WCS without a finite position."""

    pixel_n_dim = world_n_dim = 2

    def pixel_to_world_values(self, x, y):
        return np.full_like(x, np.nan), np.full_like(y, np.nan)


def test_bad_exposures_are_named_before_anything_is_done(tmp_path):
    good = observe(GRID, name="good.fits")
    output = tmp_path / "co.fits"
    for bad, error, match in [
        (good.replace(wcs=Nowhere(), name="lost.fits"), WcsError, r"lost\.fits.*finite"),
        (good.replace(wcs=None, name="bare.fits"), WcsError, r"bare\.fits has no WCS"),
        (tmp_path / "missing.fits", ReadError, r"missing\.fits"),
    ]:
        with pytest.raises(error, match=match):
            coadd([good, bad], PLAIN, wcs=GRID, output=output)
    for weight, scale in (("exptime", "none"), ("ivm", "exptime")):
        options = replace(PLAIN, weight=weight, flux_scale=scale)
        with pytest.raises(InputError, match=r"dark\.fits has no exp"):
            coadd([good.replace(exptime=3.0), good.replace(name="dark.fits")], options, wcs=GRID, output=output)
    with pytest.raises(SkyloomError, match=r"cut\.fits has the shape \(3, 3\)"):
        coadd([good, lambda: good.replace(variance=np.ones((3, 3)), name="cut.fits")], PLAIN, wcs=GRID, output=output)
    with pytest.raises(SkyloomError, match=r"exptime of zero\.fits is 0"):
        coadd([lambda: good.replace(exptime=0.0, name="zero.fits")], PLAIN, wcs=GRID, output=output)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"exposures": None}, "exposures is a NoneType"),
        ({"exposures": "a.fits"}, "exposures is a str"),
        ({"exposures": []}, "no exposures"),
        ({"options": {"method": "mean"}}, "options is a dict"),
        ({"maps": [None]}, "a function"),
    ],
)
def test_arguments_that_make_no_sense(arguments, words):
    with pytest.raises(InputError, match=words):
        coadd(**{"exposures": [observe(GRID)], "options": PLAIN} | arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"pixfrac": "1"},
        {"covariance": "a"},
        {"rejection": {}},
        {"flux_scale": None},
        {"flux_scale": ("a",)},
        {"pixel_scale": "1"},
        {"rotation": "x"},
    ],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(InputError, match=next(iter(options))):
        coadd([observe(GRID)], CoaddOptions(**options))


def test_exposures_may_come_from_a_generator():
    exposures = [observe(GRID, np.random.default_rng(seed)) for seed in range(2)]
    found = coadd((one for one in exposures), PLAIN, wcs=GRID)
    np.testing.assert_array_equal(found.exposure.data, coadd(exposures, PLAIN, wcs=GRID).exposure.data)


@pytest.mark.parametrize(
    "bad",
    [
        lambda xy: xy * 0 + 3,
        lambda xy: np.stack([xy[:, 0], xy[:, 0]], axis=1),
        lambda xy: xy * 1e30,
        lambda xy: xy * 1e-9,
    ],
    ids=["point", "line", "huge", "tiny"],
)
def test_maps_without_area_are_named(bad):
    """Fluxes are divided by the area of a pixel: such an exposure would drown all others, or vanish."""
    exposures = [observe(GRID, name=f"{name}.fits").replace(wcs=None) for name in ("good", "bad")]
    with pytest.raises(WcsError, match=r"A pixel of bad\.fits covers"):
        coadd(exposures, PLAIN, maps=[lambda xy: xy, bad])


def test_a_disk_without_room_is_told_before_it_is_full():
    """A mapped file that finds the disk full would end the process."""
    with Scratch() as scratch:
        small = scratch.plane((10, 10), np.float32, on_disk=True)
        assert small.read().sum() == 0
        with pytest.raises(WriteError, match="more than are free on the disk"):
            scratch.plane((10**7, 10**7), np.float32, on_disk=True)


def test_grids_come_from_headers_and_images(tmp_path):
    header = GRID.to_header()
    header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = 2, 50, 40
    header.totextfile(tmp_path / "grid.hdr")
    exposure = observe(GRID)
    xy = np.array([[3.0, 4.0], [30.0, 10.0]])
    for source, shape in (
        (header, (40, 50)),
        (dict(header), (40, 50)),
        (tmp_path / "grid.hdr", (40, 50)),
        (exposure, SHAPE),
        (GRID, SHAPE),
    ):
        wcs, found = grid_of(source)
        assert found == shape
        np.testing.assert_allclose(wcs_map(wcs, GRID)(xy), xy, atol=1e-6)
    assert grid_of(header, (9, 8))[1] == (9, 8)
    with pytest.raises(WcsError, match="no celestial WCS"):
        grid_of(fits.Header())
    with pytest.raises(ReadError, match="header"):
        grid_of(tmp_path / "none.hdr")


# --- outliers and medians -------------------------------------------------------------------------


def test_rays_are_found_and_star_cores_are_not_eaten():
    """Seeing from 2.4 to 5 pixels, bright stars, rays from 25 sigma on."""
    rng = np.random.default_rng(31)
    exposures, hits, stars = [], [], []
    for wcs, fwhm in zip(pointings(5, seed=2), [2.4, 3.0, 3.5, 4.0, 5.0], strict=True):
        clean = observe(wcs, rng, fwhm=fwhm, flux=40000.0)
        one, hit = add_rays(clean, rng, 50)
        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
        places = wcs_map(GRID, wcs)(star_positions())
        near = np.any([np.hypot(x - a, y - b) < 9 for a, b in places], axis=0)
        exposures.append(one)
        hits.append(hit)
        stars.append(near)
    result = coadd(exposures, CoaddOptions(background="none", flux_scale="none", covariance=None), wcs=GRID)
    sky = [hit & ~near for hit, near in zip(hits, stars, strict=True)]
    # the rays off the stars, whose light the tolerance of 4 pixels allows for in all seeings
    found = np.array(result.n_rejected)
    assert (found > 0.95 * np.array([one.sum() for one in sky])).all()
    assert found.sum() < 2.2 * sum(hit.sum() for hit in hits)
    clean = [one.replace(mask=hit) for one, hit in zip(exposures, hits, strict=True)]
    again = coadd(clean, CoaddOptions(background="none", flux_scale="none", covariance=None), wcs=GRID)
    # without the rays: pixels of stars and noise that are taken for some, of 120 000
    assert sum(again.n_rejected) < 60


def test_medians_have_the_noise_they_say():
    rng = np.random.default_rng(3)
    wcses = pointings(5, seed=3, turn=10.0)
    pixels, blocks = [], []
    for _ in range(8):
        frames = [Exposure(rng.normal(0, 3, SHAPE), np.full(SHAPE, 9.0), wcs=wcs) for wcs in wcses]
        result = coadd(frames, CoaddOptions("median", background="none"), wcs=GRID)
        inner = np.s_[25:125, 30:130]
        data = result.exposure.data[inner].astype(float)
        variance = result.exposure.variance[inner].mean()
        pixels.append(np.mean(data**2) / variance)
        blocks.append(np.mean(data.reshape(5, 20, 5, 20).mean(axis=(1, 3)) ** 2) * 400 / variance)
    # eight times 10 000 pixels, each the same as some two others; the frames weigh differently after interpolation
    assert np.mean(pixels) == pytest.approx(1, abs=0.05)
    # eight times 25 blocks: 10 % (one sigma)
    assert np.mean(blocks) / result.exposure.correlation == pytest.approx(1, abs=0.3)


def test_variance_of_medians_is_that_of_simulations():
    rng = np.random.default_rng(4)
    for n in (1, 2, 3, 4, 7, 10):
        simulated = np.median(rng.normal(size=(40_000, n)), axis=1).var()
        # a variance from 40 000 values: 0.7 %, 4 sigma
        assert median_variance(12)[n] == pytest.approx(simulated, rel=0.03)
    assert median_variance(41)[41] == pytest.approx(np.pi / 2 / 41, rel=0.03)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 9])
def test_variance_of_medians_of_unequal_depth(n):
    rng = np.random.default_rng(n)
    sigma = np.linspace(1, 2.5, n)[:, None]
    values = (rng.normal(size=(n, 60_000)) * sigma).astype(np.float32)
    # two values that contradict one another have no median: they are left alone here
    predicted = masked_median(np.zeros((n, 1), np.float32), (sigma**2).astype(np.float32))[1][0]
    # a variance from 60 000 values: 0.6 %, 2.5 sigma; and what `median_exponent` leaves
    left = 0.04 if n == 3 else 0.02
    assert np.median(values, axis=0).var() == pytest.approx(predicted, rel=0.015 + left)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_masked_medians_are_those_of_numpy(n, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 40)).astype(np.float32)
    values[rng.random((n, 40)) < 0.3] = np.nan
    median, variance, count = masked_median(values, np.full((n, 40), 100.0, np.float32))  # none of two contradicts
    for k in range(40):
        good = values[np.isfinite(values[:, k]), k]
        assert count[k] == len(good)
        assert median[k] == pytest.approx(np.median(good) if len(good) else 0, abs=1e-6)
        assert variance[k] == pytest.approx(100 * median_variance(n)[len(good)], rel=1e-5)


def test_far_exposures_are_left_out_of_the_numbers():
    far = tan(ra=10.0, shape=SHAPE)
    exposures = [observe(GRID, name="a"), observe(GRID, name="b").replace(wcs=far), observe(GRID, name="c")]
    with pytest.warns(UserWarning, match="b has no usable pixel"):
        result = coadd(exposures, replace(PLAIN, flux_scale=[1.0, 2.0, 3.0]), wcs=GRID)
    assert result.names == ("a", "c")
    assert result.scales == (1.0, 3.0)


def test_an_exposure_time_of_nothing_is_an_error_that_names_the_exposure(tmp_path):
    rng = np.random.default_rng(2)
    files = []
    for k, (wcs, seconds) in enumerate(zip(pointings(3), (30.0, 0.0, 30.0), strict=True)):
        one = observe(wcs, rng, name=f"e{k}.fits")
        files.append(write_exposure(one, tmp_path / one.name))
        with fits.open(files[-1], mode="update") as hdus:
            hdus[0].header["EXPTIME"] = seconds
    with pytest.raises(InputError, match=r"e1\.fits has an exposure time of 0 s \(EXPTIME\)") as caught:
        coadd(files, PLAIN, wcs=GRID, output=tmp_path / "co.fits")
    assert "exposure 2 of 3" in caught.value.__notes__[0]
    assert not (tmp_path / "co.fits").exists()
    known = [files[0], partial(read, files[1], exptime=30.0), files[2]]
    assert coadd(known, PLAIN, wcs=GRID).n_exposures == 3
