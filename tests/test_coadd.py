"""Co-adds: flux, noise, cosmic rays, sky levels, bookkeeping; all on simulated dithered exposures."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from skyloom.errors import InputError, NoOverlapError, SkyloomWarning, WcsError
from skyloom.exposure import Exposure, MaskBit
from skyloom.io import read
from skyloom.noise import with_variance
from skyloom.resampling import CovarianceMap, sample_map, wcs_map
from skyloom.stacking import Coadd, CoaddOptions, RejectionOptions, coadd
from test_maps import tan
from test_resample import pixel_profile

SHAPE = (150, 160)
SKY, READ = 200.0, 4.0
GRID = tan(shape=SHAPE, scale=1.0)
PLAIN = CoaddOptions("mean", background="none")


def pointings(n, seed=0, turn=2.0):
    """WCSs dithered by some pixels and turned a little."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(n):
        wcs = tan(shape=SHAPE, scale=1.0, angle=rng.uniform(-turn, turn))
        wcs.wcs.crpix = wcs.wcs.crpix + rng.uniform(-4, 4, 2)
        result.append(wcs)
    return result


def star_positions(seed=1, n=6):
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(30, SHAPE[1] - 30, n), np.linspace(30, SHAPE[0] - 30, n))
    return np.stack([x.ravel(), y.ravel()], 1) + rng.uniform(-1, 1, (n * n, 2))


def observe(wcs, rng=None, *, flux=3000.0, fwhm=3.0, sky=SKY, scale=1.0, **fields):
    """Stars of the grid as seen through a WCS, with photon and read noise (gain 1) if there is a generator."""
    sigma = fwhm / 2.3548
    image = np.full(SHAPE, sky, float)
    for x, y in wcs_map(GRID, wcs)(star_positions()):
        image += flux * scale * np.outer(pixel_profile(y, SHAPE[0], sigma), pixel_profile(x, SHAPE[1], sigma))
    variance = image + READ**2
    if rng is not None:
        image = rng.poisson(image) + rng.normal(0, READ, SHAPE)
    return Exposure(image.astype(np.float32), variance, wcs=wcs, gain=1.0, **fields)


def star_fluxes(image, radius=8):
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return np.array([image[np.hypot(x - a, y - b) < radius].sum() for a, b in star_positions()])


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.7])
def test_flux_is_kept(scale):
    exposures = [observe(wcs, sky=0.0) for wcs in pointings(3)]
    result = coadd(exposures, CoaddOptions("mean", background="none", pixel_scale=scale))
    inner = result.exposure.data[result.exptime_map.shape[0] // 2, :]
    assert np.isfinite(inner).all()
    # all light of all stars: they lie well inside all exposures
    total = np.where(result.exposure.usable, result.exposure.data, 0).sum(dtype=float)
    assert total == pytest.approx(36 * 3000, rel=1e-3)
    assert result.exposure.usable.mean() > 0.9


@pytest.mark.parametrize(
    ("pixfrac", "weight", "pixel_scale"),
    [(1.0, "ivm", 1.0), (0.7, "ivm", 1.0), (1.0, "exptime", 0.7), (0.8, "none", 1.3), (1.0, "ivm", 2.0)],
)
def test_noise_is_what_is_said(pixfrac, weight, pixel_scale):
    """Scatter of ten realisations against the predicted variance, per pixel and of means of many pixels."""
    rng = np.random.default_rng(11)
    wcss = pointings(5, seed=3, turn=20.0)
    options = CoaddOptions("mean", pixfrac, weight, "none", [1.0] * 5, pixel_scale=pixel_scale, rotation=0.0)
    skies = [100.0, 100.0, 200.0, 300.0, 100.0]
    pixels, blocks = [], []
    size = round(15 / pixel_scale)
    for _ in range(10):
        exposures = [observe(w, rng, flux=0.0, sky=s, exptime=s) for w, s in zip(wcss, skies, strict=True)]
        exposures = [e.replace(data=e.data - s) for e, s in zip(exposures, skies, strict=True)]
        result = coadd(exposures, options)
        ny, nx = result.exposure.shape
        margin = round(40 / pixel_scale)
        cut = (slice(margin, ny - margin), slice(margin, nx - margin))
        data, variance = result.exposure.data[cut], result.exposure.variance[cut]
        assert (result.weight[cut] > 0).all()
        data = data.astype(float) - np.median(data)
        pixels.append(np.mean((data - data.mean()) ** 2) / np.mean(variance))
        whole = [n // size * size for n in data.shape]
        block = data[: whole[0], : whole[1]].reshape(whole[0] // size, size, whole[1] // size, size)
        blocks.append(block.mean(axis=(1, 3)).var(ddof=1) * size**2 / np.mean(variance))
    # ten times some thousand pixels, correlated over a few of them: 2 % scatter
    assert np.mean(pixels) == pytest.approx(1, abs=0.05)
    # ten times some 30 blocks: 8 % scatter (one sigma); the edges of a block lose a few per cent of its covariance
    assert np.mean(blocks) / result.exposure.correlation == pytest.approx(1, abs=0.25)


def test_correlation_of_a_shifted_grid_in_closed_form():
    """A shift by half a pixel on both axes averages four pixels: variance 1/4, correlation 4."""
    exposure = Exposure(np.ones((40, 40), np.float32), variance=np.ones((40, 40)))
    result = coadd([exposure], PLAIN, maps=[lambda xy: xy + 0.5], shape=(40, 40))
    np.testing.assert_allclose(result.exposure.variance[5:35, 5:35], 0.25, rtol=1e-6)
    assert result.exposure.correlation == pytest.approx(4, rel=1e-5)
    whole = coadd([exposure], PLAIN, maps=[lambda xy: xy + 2], shape=(40, 40))
    np.testing.assert_allclose(whole.exposure.variance[5:35, 5:35], 1, rtol=1e-6)
    assert whole.exposure.correlation == pytest.approx(1, rel=1e-5)


def test_fruchter_and_hook_correlation():
    """Many dithers at pixfrac p and scale s: R = (1 - p / 3 s) / ... of Fruchter & Hook 2002, eqs. 9 and 10."""
    rng = np.random.default_rng(5)
    p, s = 0.8, 1.0
    exposures = [Exposure(np.ones((60, 60), np.float32), variance=np.ones((60, 60))) for _ in range(150)]
    shifts = rng.uniform(0, 1, (150, 2))
    result = coadd(exposures, CoaddOptions("mean", p, background="none"), maps=[lambda xy, d=d: xy + d for d in shifts])
    ratio = p / s
    expected = 1 / (1 - ratio / 3) ** 2 if ratio <= 1 else (ratio / (1 - 1 / (3 * ratio))) ** 2
    # 150 dithers: the mean of squared overlaps is known to a few per cent
    assert result.exposure.correlation == pytest.approx(expected, rel=0.05)


def add_rays(exposure, rng, n=60):
    """Cosmic rays: single pixels and short tracks, far above the noise. Returns the exposure and where they are."""
    data = exposure.data.copy()
    hit = np.zeros(SHAPE, bool)
    for _ in range(n):
        y, x = rng.integers(10, SHAPE[0] - 12), rng.integers(10, SHAPE[1] - 12)
        dy, dx = rng.integers(0, 2, 2)
        for k in range(rng.integers(1, 4)):
            data[y + k * dy, x + k * dx] += rng.uniform(400, 4000)
            hit[y + k * dy, x + k * dx] = True
    return exposure.replace(data=data), hit


def test_cosmic_rays_go_and_stars_stay():
    rng = np.random.default_rng(21)
    wcss = pointings(5, seed=7)
    clean = [observe(wcs, rng) for wcs in wcss]
    pairs = [add_rays(exposure, rng) for exposure in clean]
    options = CoaddOptions(background="none")
    grid = {"wcs": GRID, "shape": SHAPE}
    with_rays = coadd([exposure for exposure, _ in pairs], options, **grid)
    without = coadd(clean, CoaddOptions("mean", background="none"), **grid)
    rays = coadd([exposure for exposure, _ in pairs], CoaddOptions("mean", background="none"), **grid)
    sigma = np.sqrt(without.exposure.variance)
    inner = (slice(20, -20), slice(20, -20))
    both = with_rays.exposure.usable[inner]
    assert both.mean() > 0.999
    residual = ((with_rays.exposure.data - without.exposure.data) / sigma)[inner][both]
    assert np.abs(residual).max() < 8
    assert (np.abs(residual) > 3).mean() < 2e-3
    assert (((rays.exposure.data - without.exposure.data) / sigma)[inner] > 8).mean() > 0.01
    found, hits = sum(with_rays.n_rejected), sum(hit.sum() for _, hit in pairs)
    assert 0.9 * hits < found < 2.5 * hits
    # stars keep their flux: 36 stars of 3000 counts on a sky of 200, radius 8
    ratio = star_fluxes(with_rays.exposure.data) / star_fluxes(without.exposure.data)
    assert abs(ratio.mean() - 1) < 1e-3


def test_different_seeing_does_not_look_like_cosmic_rays():
    rng = np.random.default_rng(2)
    exposures = [
        observe(wcs, rng, fwhm=fwhm, flux=30000.0)
        for wcs, fwhm in zip(pointings(5), [3, 3.6, 4.2, 3.2, 3.9], strict=True)
    ]
    result = coadd(exposures, CoaddOptions(background="none"), wcs=GRID, shape=SHAPE)
    assert sum(result.n_rejected) < 1e-3 * 5 * SHAPE[0] * SHAPE[1]


def test_a_trailed_exposure_keeps_its_stars():
    """Crescents on one side of every star, where the guiding jumped, are no cosmic rays."""
    rng = np.random.default_rng(12)
    exposures = [observe(wcs, rng, fwhm=5.0, flux=60000.0) for wcs in pointings(5)]
    trailed = exposures[4].data.copy()
    trailed[4:] = 0.7 * trailed[4:] + 0.3 * exposures[4].data[:-4]
    exposures[4] = exposures[4].replace(data=trailed)
    result = coadd(exposures, CoaddOptions(background="none"), wcs=GRID, shape=SHAPE)
    # 36 stars with some 100 pixels above the noise each
    assert result.n_rejected[4] < 100


def test_two_exposures_keep_the_lower_pixel():
    rng = np.random.default_rng(3)
    exposures = [observe(wcs, rng) for wcs in pointings(2)]
    hit, where = add_rays(exposures[0], rng, 20)
    result = coadd([hit, exposures[1]], CoaddOptions(background="none"), wcs=GRID, shape=SHAPE)
    assert result.n_rejected[0] > 0.8 * where.sum()
    assert result.n_rejected[1] < 0.2 * where.sum()


@pytest.mark.parametrize("background", ["match", "subtract"])
def test_skies_are_matched(background):
    rng = np.random.default_rng(4)
    skies = [100.0, 180.0, 250.0, 140.0]
    exposures = [observe(wcs, rng, sky=sky) for wcs, sky in zip(pointings(4), skies, strict=True)]
    result = coadd(exposures, CoaddOptions(background=background), wcs=GRID, shape=SHAPE)
    data = result.exposure.data
    levels = [np.median(data[box][result.exposure.usable[box]]) for box in (np.s_[:8], np.s_[60:90], np.s_[-8:])]
    # medians of hundreds of pixels with a noise of 7
    assert np.ptp(levels) < 3
    expected = skies[0] if background == "match" else 0
    assert np.median(data[20:-20, 20:-20]) == pytest.approx(expected, abs=2.5)
    assert sum(result.n_rejected) < 1e-3 * 4 * SHAPE[0] * SHAPE[1]


@pytest.mark.parametrize("how", ["zeropoint", "exptime", "scales"])
def test_flux_scale_is_that_of_the_first_exposure(how):
    factors = [1.0, 2.0, 0.5]
    exposures = [
        observe(
            wcs,
            sky=0.0,
            scale=f,
            exptime=30.0 * f if how == "exptime" else 30.0,
            zeropoint=25 + 2.5 * np.log10(f) if how == "zeropoint" else None,
        )
        for wcs, f in zip(pointings(3), factors, strict=True)
    ]
    scales = [1 / f for f in factors] if how == "scales" else "auto"
    result = coadd(exposures, replace(PLAIN, flux_scale=scales), wcs=GRID, shape=SHAPE)
    assert result.scales == pytest.approx([1 / f for f in factors])
    np.testing.assert_allclose(star_fluxes(result.exposure.data), 3000, rtol=5e-3)
    assert result.exposure.exptime == 30.0
    assert result.exposure.zeropoint == exposures[0].zeropoint
    if how == "exptime":
        assert result.exptime_map.max() == 30 * sum(factors)


def test_context_names_and_times():
    wcss = pointings(35, seed=9)
    wcss[7].wcs.crval = [10.0, 10.0]
    exposures = [
        Exposure(np.ones(SHAPE, np.float32), np.ones(SHAPE), wcs=wcs, exptime=1.0 + k, name=f"{k}.fits")
        for k, wcs in enumerate(wcss)
    ]
    options = CoaddOptions("mean", background="none", flux_scale="none")
    with pytest.warns(SkyloomWarning, match=r"7\.fits"):
        result = coadd(exposures, options, wcs=GRID, shape=SHAPE)
    assert result.n_exposures == 34
    assert result.context.shape == (2, *SHAPE)
    names = [f"{k}.fits" for k in range(35) if k != 7]
    assert list(result.names) == names
    assert result.contributors(80, 75) == names
    assert result.exptime_map[75, 80] == sum(k + 1 for k in range(35) if k != 7)
    corner = result.contributors(0, 0)
    assert 0 < len(corner) < 34
    for name, wcs in zip(names, [w for k, w in enumerate(wcss) if k != 7], strict=True):
        x, y = wcs_map(GRID, wcs)(np.array([(0.0, 0.0)]))[0]
        if max(-x, -y) < -1:
            assert name in corner
        elif max(-x, -y) > 2:
            assert name not in corner


def test_weights_are_inverse_variances():
    exposures = [Exposure(np.ones(SHAPE, np.float32), np.full(SHAPE, v), wcs=GRID) for v in (1.0, 4.0)]
    result = coadd(exposures, PLAIN, wcs=GRID, shape=SHAPE)
    np.testing.assert_allclose(result.weight[5:-5, 5:-5], 1.25, rtol=1e-5)
    np.testing.assert_allclose(result.exposure.variance[5:-5, 5:-5], 0.8, rtol=1e-4)


def test_reasons_survive_where_nothing_is_left():
    mask = np.zeros(SHAPE, np.uint32)
    mask[50:60, 50:60] = MaskBit.SATURATED
    exposures = [Exposure(np.ones(SHAPE, np.float32), np.ones(SHAPE), mask, wcs=GRID) for _ in range(2)]
    remark = exposures[1].replace(mask=np.where(mask != 0, np.uint32(MaskBit.SPREAD), mask))
    nothing_left = coadd(exposures, PLAIN, wcs=GRID, shape=SHAPE)
    assert (nothing_left.exposure.mask[52:58, 52:58] == int(MaskBit.SATURATED | MaskBit.NO_DATA)).all()
    assert (nothing_left.weight[52:58, 52:58] == 0).all()
    one_left = coadd([exposures[0], remark], PLAIN, wcs=GRID, shape=SHAPE)
    assert (one_left.exposure.mask[52:58, 52:58] == int(MaskBit.SPREAD)).all()
    assert one_left.exposure.usable[5:-5, 5:-5].all()


def test_maps_instead_of_wcs():
    wcss = pointings(3)
    by_wcs = coadd([observe(wcs) for wcs in wcss], PLAIN, wcs=wcss[0], shape=SHAPE)
    bare = [observe(wcs).replace(wcs=None) for wcs in wcss]
    by_maps = coadd(bare, PLAIN, maps=[wcs_map(wcs, wcss[0]) for wcs in wcss])
    np.testing.assert_array_equal(by_maps.exposure.data, by_wcs.exposure.data)
    assert by_maps.wcs is None
    assert by_wcs.wcs is wcss[0]


def test_rejection_with_maps_inverts_them():
    rng = np.random.default_rng(6)
    wcss = pointings(4)
    exposures = [add_rays(observe(wcs, rng), rng)[0] for wcs in wcss]
    options = CoaddOptions(background="none")
    by_wcs = coadd(exposures, options, wcs=GRID, shape=SHAPE)
    by_maps = coadd(exposures, options, maps=[wcs_map(wcs, GRID) for wcs in wcss], shape=SHAPE)
    # the inverse maps agree to 1e-4 pixel or better: only pixels on a threshold may change sides
    assert by_maps.n_rejected == pytest.approx(by_wcs.n_rejected, abs=2)


def test_nan_and_garbage_stay_out():
    rng = np.random.default_rng(8)
    exposures = []
    for wcs in pointings(3):
        exposure = observe(wcs, rng)
        data = exposure.data.copy()
        data[rng.random(SHAPE) < 0.03] = rng.choice([np.nan, np.inf])
        mask = rng.random(SHAPE) < 0.02
        data[mask] = 1e20
        exposures.append(exposure.replace(data=data, mask=mask))
    result = coadd(exposures)
    assert np.isfinite(result.exposure.data).all()
    assert np.abs(result.exposure.data).max() < 1e5
    assert (result.exposure.variance[result.exposure.usable] > 0).all()
    np.testing.assert_array_equal(result.weight > 0, result.exposure.usable)


def test_inputs_are_not_changed_and_threads_do_not_matter(monkeypatch):
    rng = np.random.default_rng(1)
    exposures = [observe(wcs, rng) for wcs in pointings(3)]
    before = [exposure.data.copy() for exposure in exposures]
    results = []
    for threads in ("1", "4"):
        monkeypatch.setenv("SKYLOOM_NUM_THREADS", threads)
        results.append(coadd(exposures))
    for exposure, data in zip(exposures, before, strict=True):
        np.testing.assert_array_equal(exposure.data, data)
    for plane in ("data", "variance", "mask"):
        np.testing.assert_array_equal(getattr(results[0].exposure, plane), getattr(results[1].exposure, plane))
    np.testing.assert_array_equal(results[0].context, results[1].context)


def test_written_and_read(tmp_path):
    from astropy.io import fits

    rng = np.random.default_rng(1)
    result = coadd([observe(wcs, rng, exptime=20.0) for wcs in pointings(3)])
    path = result.write(tmp_path / "co.fits")
    with fits.open(path) as hdus:
        assert [hdu.name for hdu in hdus[1:]] == ["SCI", "ERR", "DQ", "WHT", "CTX", "EXPTIME", "INPUTS", "COVAR", "PSF"]
        np.testing.assert_array_equal(hdus["CTX"].data, result.context)
        np.testing.assert_array_equal(hdus["WHT"].data, result.weight)
        assert hdus["EXPTIME"].data.max() == 60
        assert hdus[0].header["NCOMBINE"] == 3
        assert hdus[0].header["TEXPTIME"] == 60
    again = coadd([read(path), read(path)], PLAIN, wcs=result.wcs, shape=result.exposure.shape)
    # the maps are right to some 1e-9 pixel: a sliver of a pixel may reach one that was empty before
    used = result.exposure.usable
    assert again.exposure.usable[used].all()
    np.testing.assert_allclose(again.exposure.data[used], result.exposure.data[used], rtol=1e-4, atol=0.1)
    assert "3 exposures" in repr(result)
    assert isinstance(result, Coadd)


def test_nothing_to_do():
    exposure = observe(GRID)
    far = tan(ra=10.0, shape=SHAPE)
    with pytest.raises(InputError, match="no exposures"):
        coadd([])
    with pytest.warns(SkyloomWarning), pytest.raises(NoOverlapError, match="None of the 1"):
        coadd([exposure], wcs=far, shape=SHAPE)
    with pytest.warns(SkyloomWarning), pytest.raises(NoOverlapError):
        coadd([exposure.replace(mask=np.ones(SHAPE, bool))], wcs=GRID, shape=SHAPE)


def make_options(rejection=None, **options):
    return CoaddOptions(rejection=RejectionOptions(**(rejection or {})), **options)


@pytest.mark.parametrize(
    ("options", "fields", "error", "match"),
    [
        ({"pixfrac": 0}, {}, InputError, "pixfrac"),
        ({"pixfrac": 1.2}, {}, InputError, "pixfrac"),
        ({"weight": "invvar"}, {}, InputError, "ivm"),
        ({"background": "yes"}, {}, InputError, "match"),
        ({"flux_scale": "guess"}, {}, InputError, "zeropoint"),
        ({"flux_scale": "zeropoint"}, {}, InputError, "no zeropoint"),
        ({"weight": "exptime"}, {}, InputError, "exposure time"),
        ({"rejection": {"sigma": (-1.0, 3.0)}}, {}, InputError, "thresholds"),
        ({}, {"shape": (50, 50)}, InputError, "shape"),
        ({}, {"shape": (0, 50), "wcs": GRID}, InputError, "at least 1"),
        ({}, {"maps": []}, InputError, "0 maps"),
        ({"flux_scale": [1.0, 2.0]}, {}, InputError, "factor|flux_scale"),
        ({"flux_scale": [-1.0]}, {}, InputError, "flux_scale"),
    ],
)
def test_bad_options(options, fields, error, match):
    with pytest.raises(error, match=match):
        coadd([observe(GRID)], make_options(**options), **fields)


def test_no_wcs():
    with pytest.raises(WcsError, match="maps="):
        coadd([observe(GRID).replace(wcs=None, name="bare.fits")])
    wcs = tan(shape=SHAPE)
    wcs.pixel_shape = None
    with pytest.raises(WcsError, match="shape"):
        coadd([observe(GRID)], wcs=wcs)


def test_gain_of_the_coadd_predicts_photon_noise():
    """Source counts F in the co-add have the variance F / gain: check against the propagated variance."""
    exposures = [observe(wcs, flux=1e6, sky=1.0) for wcs in [GRID] * 4]
    result = coadd(exposures, PLAIN, wcs=GRID, shape=SHAPE)
    assert result.exposure.gain == pytest.approx(4, rel=1e-3)
    x, y = np.round(star_positions()[0]).astype(int)
    assert result.exposure.variance[y, x] == pytest.approx(result.exposure.data[y, x] / 4, rel=0.01)


@pytest.mark.parametrize("conserve", ["flux", "surface brightness"])
@pytest.mark.parametrize("pixel_scale", [0.5, 2.0])
def test_gain_does_not_depend_on_the_size_of_pixels(pixel_scale, conserve):
    """Electrons per unit: of the sum over a star, which surface brightness makes smaller by the area of a pixel."""
    options = replace(PLAIN, pixel_scale=pixel_scale, conserve=conserve, flux_scale=[2.0])
    result = coadd([observe(GRID).replace(gain=3.0)], options)
    area = 1.0 if conserve == "flux" else pixel_scale**2
    assert result.exposure.gain == pytest.approx(3.0 / 2.0 * area, rel=1e-4)  # tangent planes


def test_noise_correlation_of_the_exposures_is_that_of_one_run_when_resumed():
    exposures = [
        observe(wcs, sky=sky).replace(correlation=c)
        for wcs, sky, c in zip(pointings(4, seed=5), (100.0, 100.0, 300.0, 300.0), (1.0, 1.0, 1.5, 3.0), strict=True)
    ]
    options = replace(PLAIN, flux_scale=[1.0] * 4)
    whole = coadd(exposures, options, wcs=GRID, shape=SHAPE)
    first = coadd(exposures[:2], replace(options, flux_scale=[1.0] * 2), wcs=GRID, shape=SHAPE)
    both = coadd(exposures[2:], replace(options, flux_scale=[1.0] * 2), resume=first)
    # the variance of the first lies in single precision
    assert both.exposure.correlation == pytest.approx(whole.exposure.correlation, rel=1e-4)
    plain = coadd([one.replace(correlation=1.0) for one in exposures], options, wcs=GRID, shape=SHAPE)
    # weights 1/v: each exposure's part of the variance of the sum is its weight, v_i w_i^2 = w_i
    w = np.array([1 / 116, 1 / 116, 1 / 316, 1 / 316])
    expected = float(w @ [1.0, 1.0, 1.5, 3.0] / w.sum())
    assert whole.exposure.correlation / plain.exposure.correlation == pytest.approx(expected, rel=0.01)  # the borders


def test_correlation_that_is_measured_with_the_noise_goes_into_the_coadd():
    rng = np.random.default_rng(8)
    smooth = ndimage.gaussian_filter(rng.normal(0, 10, SHAPE), 0.8) + 100
    exposure = Exposure(smooth.astype(np.float32), wcs=GRID)
    known = with_variance(exposure)
    assert known.correlation > 2
    bare, given = (coadd([one], PLAIN, wcs=GRID, shape=SHAPE).exposure for one in (exposure, known))
    assert bare.correlation == pytest.approx(given.correlation, rel=1e-6)
    assert bare.correlation == pytest.approx(known.correlation, rel=0.01)


def test_elongated_pixels_are_complete_at_the_borders_of_tiles():
    shape = (2040, 24)
    exposure = Exposure(np.ones(shape, np.float32), np.ones(shape, np.float32))
    result = coadd(
        [exposure], replace(PLAIN, weight="none"), maps=[lambda xy: xy * [60.0, 1 / 60] + 30], shape=(100, 1500)
    )
    # every pixel lies within the frame and has the weight 1; in single precision
    assert result.weight.sum(dtype=float) == pytest.approx(2040 * 24, rel=1e-5)


def test_pixmap_and_frame_agree():
    """The value of a pixel comes from where the map says: a single bright pixel lands on its mapped position."""
    data = np.zeros(SHAPE, np.float32)
    data[70, 40] = 1000
    wcs = pointings(1, seed=13)[0]
    result = coadd([Exposure(data, np.ones(SHAPE), wcs=wcs)], PLAIN, wcs=GRID, shape=SHAPE)
    image = result.exposure.data.astype(float)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    centroid = [(image * x).sum() / image.sum(), (image * y).sum() / image.sum()]
    # a drop shared among pixels keeps its centroid to the third moments of a pixel
    np.testing.assert_allclose(centroid, sample_map(wcs_map(wcs, GRID), SHAPE)[70, 40], atol=0.2)


@pytest.mark.parametrize("saturated", ["fill", "flag"])
def test_place_where_one_exposure_is_saturated(saturated):
    rng = np.random.default_rng(8)
    level = rng.normal(100, 3, (3, 40, 50))
    level[0, 18:21, 22:25] = 60000  # a saturated core in the first exposure only
    exposures = [
        Exposure(plane, np.full(plane.shape, 9.0), saturation=50000.0, exptime=10.0, name=f"e{k}")
        for k, plane in enumerate(level)
    ]
    result = coadd(
        exposures,
        CoaddOptions(saturated=saturated, background="none", flux_scale="none", method="mean"),
        maps=[lambda xy: xy] * 3,
    )
    flagged = (result.exposure.mask & np.uint32(MaskBit.SATURATED)) != 0
    # the mean of the two others, 3 / sqrt(2) rms each: 6 standard deviations
    assert np.abs(result.exposure.data[18:21, 22:25] - 100).max() < 6 * 3 / np.sqrt(2)
    assert flagged[18:21, 22:25].all() == (saturated == "flag")
    assert not flagged[:16].any()


def test_covariances_agree_with_the_scatter_of_apertures_and_go_into_the_file(tmp_path):
    from astropy.io import fits

    rng = np.random.default_rng(21)
    wcses = pointings(4)
    options = CoaddOptions("mean", background="none", pixfrac=0.8, covariance=32)
    places = [(x, y) for x in np.arange(25.3, 130, 14) for y in np.arange(25.6, 125, 14)]
    squares, count = [], 25
    for _ in range(count):
        frames = [Exposure(rng.normal(0, 3, SHAPE), np.full(SHAPE, 9.0), wcs=wcs) for wcs in wcses]
        result = coadd(frames, options, wcs=GRID, shape=SHAPE)
        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
        sums = [result.exposure.data[np.hypot(x - round(a), y - round(b)) < 4.2].sum() for a, b in places]
        squares.append(np.square(sums))
    j, i = np.mgrid[-4:5, -4:5]
    aperture = (np.hypot(i, j) < 4.2).astype(float)
    variance = result.exposure.variance
    predicted = [result.covariance.aperture_variance(round(a), round(b), aperture, variance) for a, b in places]
    ratio = np.mean(np.array(squares) / predicted)
    assert ratio == pytest.approx(1, abs=4 * np.sqrt(2 / (count * len(places))))  # counting statistics, 4 sigma
    # the one number that an exposure carries is the mean of the local ratios, where all four overlap
    assert result.covariance.noise_ratio(80, 75) ** 2 == pytest.approx(result.exposure.correlation, rel=0.05)
    with fits.open(result.write(tmp_path / "deep.fits")) as hdus:
        back = CovarianceMap.from_hdu(hdus["COVAR"])
    assert np.array_equal(back.covariance, result.covariance.covariance)
    assert coadd(frames, replace(PLAIN, covariance=None), wcs=GRID, shape=SHAPE).covariance is None
    for covariance in (0, 100, 2048):  # blocks have to fill the tiles
        with pytest.raises(InputError, match="power of 2"):
            CoaddOptions(covariance=covariance)
