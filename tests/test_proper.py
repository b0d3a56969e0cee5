"""Proper co-addition: the formulas against sums over pixels, and whole co-adds against theory."""

import numpy as np
import pytest
from scipy import fft
from scipy.signal import fftconvolve

from skyloom.errors import InputError, ShapeError, TooFewSourcesError
from skyloom.exposure import Exposure, MaskBit
from skyloom.proper import ProperSum, psf_spectrum
from skyloom.psf import estimate_psf
from skyloom.psf.analytic import Profile
from skyloom.psf.hdu import psf_from_hdu, psf_to_hdu
from skyloom.psf.model import ArrayPsf
from skyloom.psf.tiled import TiledPsf
from skyloom.stacking import CoaddOptions, coadd, proper
from skyloom.stacking.cores import find_cores, star_in

PROPER = CoaddOptions("proper", background="none", flux_scale="none")
FWHM = (2.5, 3.5, 5.0, 4.0)
SIGMA = (3.0, 2.0, 1.0, 4.0)


def gauss(fwhm, half=13, dx=0.0, dy=0.0):
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    s = fwhm / 2.3548
    g = np.exp(-((x - dx) ** 2 + (y - dy) ** 2) / 2 / s**2)
    return g / g.sum()


def identity(xy):
    return xy


# --- formulas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 12), (11, 14), (13, 9)])
def test_sums_are_those_over_pixels(shape):
    """Correlation with the PSF, and noise white to the last digit, against sums written out."""
    rng = np.random.default_rng(2)
    ny, nx = shape
    total, images, psfs = ProperSum(shape), [], []
    for flux, sigma in ((1.0, 2.0), (0.5, 1.0), (2.0, 3.0)):
        stamp = rng.random((3, 5))
        stamp /= stamp.sum()
        image = rng.normal(size=shape)
        total.add(fft.rfft2(image), psf_spectrum(stamp, shape), sigma, flux)
        images.append(image)
        psfs.append((stamp, sigma, flux))
    matched = np.zeros(shape)
    for image, (stamp, sigma, flux) in zip(images, psfs, strict=True):
        for y in range(ny):
            for x in range(nx):
                for v in range(-1, 2):
                    for u in range(-2, 3):
                        matched[y, x] += flux / sigma**2 * stamp[v + 1, u + 2] * image[(y + v) % ny, (x + u) % nx]
    np.testing.assert_allclose(fft.irfft2(total.matched, shape), matched, atol=1e-12)
    assert total.noise == pytest.approx((1 / 4 + 0.25 + 4 / 9) ** -0.5)
    # the result is linear in the images: by kernels, whose noise is white of deviation 1 / F_R
    by_kernels, power = np.zeros(shape), 0.0
    for image, (stamp, sigma, flux) in zip(images, psfs, strict=True):
        kernel = total.kernel(psf_spectrum(stamp, shape), sigma, flux)
        by_kernels += fft.irfft2(fft.rfft2(kernel) * fft.rfft2(image), shape)
        power = power + np.abs(fft.fft2(kernel)) ** 2 * sigma**2
    np.testing.assert_allclose(by_kernels, total.image(), atol=1e-12)
    np.testing.assert_allclose(power, total.noise**2, rtol=1e-10)


def test_one_image_stays_and_equal_images_are_averaged():
    rng = np.random.default_rng(3)
    image = rng.normal(size=(64, 60))
    line = np.array([1.0, 6.0, 1.0]) / 8  # its spectrum is above 0 everywhere
    stamp = np.outer(line, line)
    spectrum = psf_spectrum(stamp, image.shape)
    total = ProperSum(image.shape)
    for factor in (1.0, 3.0):
        total.add(fft.rfft2(factor * image), spectrum, sigma=2.0)
    np.testing.assert_allclose(total.image(), 2 * image, atol=1e-12)
    np.testing.assert_allclose(total.psf(1), stamp, atol=1e-12)
    assert total.signal_to_noise(7.0) == pytest.approx(7 * np.sqrt(2 * (stamp**2).sum()) / 2)


def test_psfs_that_do_not_fit():
    with pytest.raises(ShapeError, match="odd"):
        psf_spectrum(np.ones((4, 5)), (20, 20))
    with pytest.raises(ShapeError, match="not larger"):
        psf_spectrum(np.ones((5, 21)), (20, 20))


# --- whole co-adds --------------------------------------------------------------------------------


def scene(n, spacing, rng, flux=200.0, sky=50.0):
    """Point sources of one flux at whole pixels, as seen with several PSFs; their positions."""
    truth = np.zeros((n, n))
    at = np.arange(spacing, n - spacing // 2, spacing)
    truth[np.ix_(at, at)] = flux
    exposures = [
        Exposure(
            fftconvolve(truth, gauss(fwhm), mode="same") + rng.normal(sky, sigma, (n, n)),
            np.full((n, n), sigma**2),
            psf=ArrayPsf(gauss(fwhm)),
            name=f"fwhm {fwhm}",
        )
        for fwhm, sigma in zip(FWHM, SIGMA, strict=True)
    ]
    return exposures, [(y, x) for y in at for x in at]


def matched_filter(image, psf, places, sky=50.0):
    """Fluxes of point sources, optimal in white noise."""
    filtered = fftconvolve(image - sky, psf[::-1, ::-1], mode="same") / (psf**2).sum()
    return np.array([filtered[at] for at in places])


def test_signal_to_noise_is_that_of_theory():
    """The gain over the mean with inverse variances, in faint stars of many fields with the same noise."""
    rng = np.random.default_rng(5)
    weights = 1 / np.square(SIGMA)
    mean_psf = sum(w * gauss(f) for w, f in zip(weights, FWHM, strict=True)) / weights.sum()
    theory = ProperSum((128, 128))
    for fwhm, sigma in zip(FWHM, SIGMA, strict=True):
        theory.add(None, psf_spectrum(gauss(fwhm), (128, 128)), sigma)
    fluxes = {"proper": [], "mean": []}
    for _ in range(6):
        exposures, places = scene(420, 21, rng, flux=30.0)
        for method in fluxes:
            result = coadd(
                exposures,
                CoaddOptions(method, background="none", flux_scale="none", covariance=None),
                maps=[identity] * 4,
            )
            psf = result.psf.stamp(200, 200) if method == "proper" else mean_psf
            fluxes[method] += list(matched_filter(result.exposure.data.astype(float), psf, places))
    error = {method: np.std(values) for method, values in fluxes.items()}
    n = len(fluxes["mean"])
    expected = 1 / theory.signal_to_noise(1.0), 1 / np.sqrt((mean_psf**2).sum() * weights.sum())
    # counting statistics of some 2000 stars, 4 sigma; the fluxes of both methods share most of their noise
    assert error["proper"] == pytest.approx(expected[0], rel=4 / np.sqrt(2 * n))
    assert error["mean"] == pytest.approx(expected[1], rel=4 / np.sqrt(2 * n))
    assert error["mean"] / error["proper"] == pytest.approx(expected[1] / expected[0], rel=2 / np.sqrt(2 * n))
    for values, sigma in zip(fluxes.values(), error.values(), strict=True):
        assert np.mean(values) == pytest.approx(30.0, abs=4 * error["mean"] / np.sqrt(n))
        assert sigma > 0


def test_noise_is_white_and_what_is_said():
    rng = np.random.default_rng(6)
    exposures, _ = scene(400, 1000, rng)
    result = coadd(exposures, PROPER, maps=[identity] * 4)
    pull = (result.exposure.data - 50.0) / np.sqrt(result.exposure.variance)
    # 160 000 pixels: 0.25 % for the variance of each, 4 sigma
    assert pull.std() == pytest.approx(1, abs=0.01)
    for shifted in (pull[1:] * pull[:-1], pull[:, 1:] * pull[:, :-1], pull[3:] * pull[:-3]):
        assert abs(shifted.mean()) < 0.01
    assert result.exposure.correlation == 1


def test_psf_is_that_of_the_stars():
    rng = np.random.default_rng(7)
    exposures, places = scene(300, 60, rng, flux=2e5)
    result = coadd(exposures, PROPER, maps=[identity] * 4)
    y, x = places[5]
    star = result.exposure.data[y - 13 : y + 14, x - 13 : x + 14] - 50.0
    np.testing.assert_allclose(star / 2e5, result.psf.stamp(x, y), atol=3e-4)
    assert star.sum() == pytest.approx(2e5, rel=2e-3)


def test_tiles_and_gaps_keep_fluxes_and_noise(monkeypatch):
    """Dithered exposures that cover parts of the field, with masked pixels, in small tiles."""
    monkeypatch.setattr(proper, "TILE", 90)
    monkeypatch.setattr(proper, "_OVERLAP", 30)
    rng = np.random.default_rng(8)
    exposures, places = scene(300, 24, rng, flux=400.0)
    parts, maps = [], []
    for one, (y, x) in zip(exposures, [(0, 0), (20, 0), (0, 31), (17, 9)], strict=True):
        cut = np.s_[y : y + 260, x : x + 260]
        mask = rng.random((260, 260)) < 0.02
        parts.append(one.replace(data=np.where(mask, 1e6, one.data[cut]), variance=one.variance[cut], mask=mask))
        maps.append(lambda xy, offset=(x, y): xy + offset)
    result = coadd(parts, PROPER, maps=maps, shape=(300, 300))
    usable = result.exposure.usable
    assert usable[35:250, 35:250].mean() > 0.999  # at least three exposures
    np.testing.assert_array_equal(result.weight > 0, (result.exposure.mask & np.uint32(MaskBit.NO_DATA)) == 0)
    assert not usable[281:, :].any()
    whole = [(y, x) for y, x in places if 40 < y < 230 and 40 < x < 230]
    found = matched_filter(result.exposure.data.astype(float), result.psf.stamp(130, 130), whole)
    assert found.mean() == pytest.approx(400, abs=4 * found.std() / np.sqrt(len(whole)) + 4)
    faint = scene(300, 1000, rng)[0]
    blank = [
        one.replace(data=new.data[y : y + 260, x : x + 260])
        for one, new, (y, x) in zip(parts, faint, [(0, 0), (20, 0), (0, 31), (17, 9)], strict=True)
    ]
    noise = coadd(blank, PROPER, maps=maps, shape=(300, 300)).exposure
    use = noise.usable
    pull = (noise.data[use] - 50) / np.sqrt(noise.variance[use])
    # some 80 000 pixels, and the noise of each tile's noise; two to four exposures at a place
    assert pull.std() == pytest.approx(1, abs=0.03)
    assert abs(pull.mean()) < 0.05


@pytest.mark.parametrize(("level", "lacking"), [(1.2e4, [1, 1, 0, 0]), (3e3, [1, 1, 1, 1])])
def test_saturated_cores_hardly_ring(monkeypatch, level, lacking):
    """Cores that some exposures lack, or all, are filled with the star that the other pixels of all exposures tell."""
    exposures, places = scene(240, 60, np.random.default_rng(11), flux=2e5)
    whole = coadd(exposures, PROPER, maps=[identity] * 4).exposure
    clipped = [one.replace(data=np.minimum(one.data, level), mask=one.data > level) for one in exposures]
    assert [int(one.mask.sum() > 0) for one in clipped] == lacking
    filled = coadd(clipped, PROPER, maps=[identity] * 4).exposure
    monkeypatch.setattr(proper, "_ROUNDS", 0)
    monkeypatch.setattr(proper, "find_cores", lambda *_: [])
    mean = coadd(clipped, PROPER, maps=[identity] * 4).exposure  # cores are the mean of what the others have
    y, x = np.indices(whole.shape)
    distance = np.min([np.hypot(y - v, x - u) for v, u in places], axis=0)
    ring, far = (distance >= 4) & (distance < 8), distance > 40
    wrong = [np.sqrt(np.mean((one.data - whole.data)[ring] ** 2)) for one in (filled, mean)]
    # the PSFs are given, so that what is left is noise and interpolation of them: 2e-4 of the peak
    assert wrong[0] < max(0.05 * wrong[1], 2e-4 * whole.data.max())
    assert (filled.mask[(distance < 8) & filled.usable] & np.uint32(MaskBit.SPREAD)).all()
    inner = np.s_[30:-30, 30:-30]  # the border is flagged for itself
    lost = np.all([one.mask > 0 for one in clipped], axis=0)
    assert not filled.usable[lost].any()
    assert filled.usable[inner][distance[inner] > (8 if lost.any() else 0)].all()  # around a hole is an edge
    np.testing.assert_array_equal(filled.mask[inner][far[inner]], 0)
    light = [(one.data - 50.0)[(distance < 20) & ~lost].sum() for one in (filled, whole)]
    assert light[0] == pytest.approx(light[1], rel=0.01)


def hole_in_a_star(rng, *, second=0.0):
    """Return a core with what three exposures have around it, the stamps of their PSFs, and the star without hole."""
    y, x = np.mgrid[:60, :60].astype(float)
    stamps, images, good = [], [], []
    for fwhm in (3.0, 4.0, 5.0):
        v, u = np.mgrid[-15:16, -15:16]
        stamp = Profile(fwhm, 3.0).values(u.astype(float), v.astype(float))
        stamps.append(stamp / stamp.sum())
        star = sum(
            f * Profile(fwhm, 3.0).values(x - x0, y - y0) / stamp.sum()
            for f, x0, y0 in ((1e5, 30.3, 28.6), (second * 1e5, 33.0, 31.0))
        )
        images.append(20 + star)
        good.append(np.hypot(x - 30.3, y - 28.6) > 1.5 + 0.3 * len(good))
    mean = np.mean(images, axis=0)
    (core,) = find_cores(~np.all(good, axis=0), mean, 20.0, 1.0, 15)
    for image, usable in zip(images, good, strict=True):
        core.data.append((image + rng.normal(0, 2, image.shape))[core.window])
        core.good.append(usable[core.window])
    return core, stamps, [image[core.window] for image in images]


def test_a_core_is_what_the_pixels_around_it_say():
    core, stamps, truth = hole_in_a_star(np.random.default_rng(1))
    found = star_in(core, stamps, [2.0] * 3)
    for values, true, good in zip(found, truth, core.good, strict=True):
        np.testing.assert_array_equal(np.isfinite(values), core.near & ~good)
        # some 60 pixels around with errors of 2 %; splines between pixels of a FWHM of 3: 0.5 %
        np.testing.assert_allclose(values[core.near & ~good], true[core.near & ~good], rtol=0.02)


def test_holes_that_are_no_cores_of_stars():
    core, stamps, _ = hole_in_a_star(np.random.default_rng(2), second=0.7)
    assert star_in(core, stamps, [2.0] * 3) is None  # two stars
    flat = np.full((40, 40), 20.0)
    lost = np.zeros((40, 40), bool)
    lost[20:23, 20:22] = True
    assert not find_cores(lost, flat, 20.0, 1.0, 15)  # a bad pixel of the sky
    lost[:, 10] = True
    assert not find_cores(lost, flat + 1e3, 20.0, 1.0, 15)[1:]  # a column is no core, nor is what touches the border


def test_rotated_exposures_bring_rotated_psfs():
    rng = np.random.default_rng(9)
    v, u = np.mgrid[-12:13, -12:13]
    long = np.exp(-(u**2) / 2 / 2.5**2 - v**2 / 2 / 1.4**2)
    turned = np.exp(-(u**2) / 2 / 1.4**2 - v**2 / 2 / 2.5**2)
    exposures = [
        Exposure(rng.normal(0, 1, (120, 120)), np.ones((120, 120)), psf=ArrayPsf(psf), name="x")
        for psf in (long, turned)
    ]
    quarter = lambda xy: np.stack([119 - xy[:, 1], xy[:, 0]], axis=1)  # noqa: E731
    result = coadd(exposures, PROPER, maps=[identity, quarter], shape=(120, 120))
    np.testing.assert_allclose(result.psf.stamp(60, 60), long / long.sum(), atol=1e-4)


def test_an_exposure_without_stars_is_named():
    flat = Exposure(np.random.default_rng(0).normal(0, 1, (80, 80)), np.ones((80, 80)), name="empty.fits")
    with pytest.raises(TooFewSourcesError, match=r"empty\.fits"):
        coadd([flat], PROPER, maps=[identity])


# --- PSFs in files --------------------------------------------------------------------------------


def test_tiled_psf_and_files():
    stamps = np.array([[gauss(f, 6) for f in (2.0, 3.0)], [gauss(f, 6) for f in (4.0, 5.0)]])
    psf = TiledPsf(stamps, [10, 30], [5, 25])
    np.testing.assert_allclose(psf.stamp(10, 5), stamps[0, 0])
    np.testing.assert_allclose(psf.stamp(20, 15), stamps.mean(axis=(0, 1)))
    np.testing.assert_allclose(psf.stamp(99, -9), stamps[0, 1])
    back = psf_from_hdu(psf_to_hdu(psf))
    np.testing.assert_allclose(back.stamp(13, 22), psf.stamp(13, 22))
    constant = psf_from_hdu(psf_to_hdu(ArrayPsf(gauss(3.0, 7))))
    np.testing.assert_allclose(constant.stamp(5, 5), gauss(3.0, 7))
    assert "FWHM" in repr(psf)
    with pytest.raises(ShapeError):
        TiledPsf(stamps, [1], [1])
    with pytest.raises(InputError, match="PSF"):
        psf_to_hdu(gauss)
    rng = np.random.default_rng(1)
    exposures, _ = scene(200, 30, rng, flux=1e4)
    model = estimate_psf(exposures[0])
    np.testing.assert_allclose(psf_from_hdu(psf_to_hdu(model)).stamp(3, 150), model.stamp(3, 150), atol=1e-12)
