"""Covariances of drizzled pixels: against the matrix of all shares, and against the scatter of simulated images."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from skyloom.errors import InputError
from skyloom.resampling import (
    CovarianceMap,
    CovarianceSums,
    Drizzle,
    Spreading,
    aperture_error,
    circle_weights,
    noise_ratio,
)

sys.path.insert(0, str(Path(__file__).parent / "reference"))
import covariance_oracle as oracle

KERNELS = ["square", "point", "turbo", "gaussian", "lanczos2", "lanczos3"]


def turned_map(ny, nx, *, turn=0.0, scale=1.0, shift=(0.0, 0.0), centre=None):
    """Pixel map of an image turned by some degrees; `scale` is the side of an output pixel in input pixels."""
    y, x = np.mgrid[:ny, :nx].astype(float)
    cx, cy = centre or ((nx - 1) / 2, (ny - 1) / 2)
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    x, y = x - cx, y - cy
    return np.stack([(c * x - s * y + cx) / scale + shift[0], (s * x + c * y + cy) / scale + shift[1]], -1)


def summed(images, shape, weights, *, block=1, every=None, **spreading):
    sums = CovarianceSums(shape, block=block, every=every)
    for weight, variance, pixmap in images:
        sums.add_image(variance, pixmap, weight_map=weight, spreading=Spreading(**spreading))
    return sums.finish(weights)


def dense(result):
    """The full matrix that a map with one pixel per block stands for."""
    ny, nx = result.shape
    reach_y, reach_x = result.reach
    out = np.zeros((ny, nx, ny, nx))
    for y, x, dy, dx in np.ndindex(ny, nx, reach_y + 1, 2 * reach_x + 1):
        other = y + dy, x + dx - reach_x
        if other[0] < ny and 0 <= other[1] < nx and (dy > 0 or dx >= reach_x):
            out[y, x, *other] = out[*other, y, x] = result.covariance[y, x, dy, dx]
    return out


@st.composite
def scenes(draw):
    """One or two small images on a small output frame, with zeros among the weights and NaN among the variances."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.5, 0.8, 1.0, 1.7]))
    images = []
    for _ in range(draw(st.integers(1, 2))):
        ny, nx = draw(st.integers(2, 6)), draw(st.integers(2, 6))
        weight = rng.choice([0.0, 1.0, 0.3, 2.0], (ny, nx), p=[0.2, 0.4, 0.2, 0.2])
        variance = rng.uniform(0.2, 3.0, (ny, nx))
        variance[rng.random((ny, nx)) < 0.1] = np.nan
        shift = rng.uniform(-2, 4, 2)
        images.append((weight, variance, turned_map(ny, nx, turn=rng.uniform(0, 360), scale=scale, shift=shift)))
    shape = draw(st.integers(4, 9)), draw(st.integers(4, 9))
    return images, shape, scale, draw(st.sampled_from([0.3, 0.8, 1.0]))


def check_against_matrix(scene, kernel):
    images, shape, scale, pixfrac = scene
    expected, weights = oracle.covariance(images, shape, kernel=kernel, pixfrac=pixfrac, ratio=scale)
    result = summed(images, shape, weights, kernel=kernel, pixfrac=pixfrac, pixel_scale_ratio=scale)
    # shares are known to about 1e-14; where the weight is as small as they are, so is what it is divided by
    known = np.abs(weights) > 1e-6
    both = known[:, :, None, None] & known
    np.testing.assert_allclose(dense(result)[both], expected[both], rtol=1e-6, atol=1e-12)


@given(scenes())
@settings(max_examples=60)
def test_square_kernel_equals_the_matrix_of_shares(scene):
    check_against_matrix(scene, "square")


@pytest.mark.parametrize("kernel", KERNELS[1:])
@given(scene=scenes())
@settings(max_examples=20)
def test_other_kernels_equal_the_matrix_of_shares(kernel, scene):
    check_against_matrix(scene, kernel)


def test_data_that_are_not_finite_count_for_nothing():
    pixmap, variance = turned_map(6, 7, turn=20, shift=(1, 1)), np.ones((6, 7))
    weight, data = np.ones((6, 7)), np.zeros((6, 7))
    data[2, 3], weight[2, 3] = np.inf, 0
    with_data, with_weight = CovarianceSums((9, 9), block=1), CovarianceSums((9, 9), block=1)
    with_data.add_image(variance, pixmap, data=data)
    with_weight.add_image(variance, pixmap, weight_map=weight)
    ones = np.ones((9, 9))
    assert np.array_equal(with_data.finish(ones).covariance, with_weight.finish(ones).covariance)


def test_inputs_of_any_layout_are_read_and_left_alone():
    rng = np.random.default_rng(3)
    pixmap, variance, weight = turned_map(8, 9, turn=7), rng.uniform(1, 2, (8, 9)), rng.uniform(1, 2, (8, 9))
    expected = summed([(weight, variance, pixmap)], (8, 9), np.ones((8, 9)))
    odd = [np.repeat(a, 2, axis=0)[::2] for a in (weight, variance.astype(">f8"), pixmap)]
    odd[2] = np.asfortranarray(pixmap)
    for a in odd:
        a.flags.writeable = False
    assert np.array_equal(summed([odd], (8, 9), np.ones((8, 9))).covariance, expected.covariance)


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    rng = np.random.default_rng(5)
    image = rng.uniform(1, 2, (200, 300)), rng.uniform(1, 2, (200, 300)), turned_map(200, 300, turn=3, scale=0.8)
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("SKYLOOM_NUM_THREADS", threads)
        results.append(summed([image, image], (260, 380), np.ones((260, 380)), block=32, pixfrac=0.8).covariance)
    assert np.array_equal(*results)


def test_a_torn_map_does_not_widen_the_lags():
    pixmap = turned_map(1200, 60, turn=1)
    pixmap[600:, :, 1] += 500.0
    sums = CovarianceSums((1710, 100))
    sums.add_image(None, pixmap)
    assert max(sums.finish(np.ones((1710, 100))).reach) <= 2


def coverage(images, shape, **options):
    """Weights of the square-kernel drizzle."""
    drizzle = Drizzle(out_wht=np.zeros(shape), disable_ctx=True)
    for weight, _, pixmap in images:
        drizzle.add_image(np.zeros(weight.shape), 1.0, pixmap, weight_map=weight, **options)
    return drizzle.out_wht


@pytest.mark.parametrize(
    ("count", "scale", "turn", "pixfrac"),
    [(1, 1.0, 3.0, 1.0), (2, 1.0, 3.0, 0.6), (4, 0.5, 1.0, 0.7), (3, 2 / 3, 0.0, 0.8)],
)
def test_one_pixel_in_thirteen_is_enough_for_one_percent(count, scale, turn, pixfrac):
    rng = np.random.default_rng(8)
    n, size = 220, int(220 / scale)
    images = [
        (np.ones((n, n)), np.ones((n, n)), turned_map(n, n, turn=k * turn, scale=scale, shift=rng.uniform(0, 2, 2)))
        for k in range(1, count + 1)
    ]
    weights = coverage(images, (size, size), pixfrac=pixfrac)
    full, part = (summed(images, (size, size), weights, block=64, every=n, pixfrac=pixfrac) for n in (1, None))
    middle = slice(1, -1)  # blocks that are fully covered
    totals = []
    for result in (full, part):
        variance = result.covariance[middle, middle, 0, result.reach[1]]
        half = result.covariance[middle, middle].copy()
        half[:, :, 0, : result.reach[1] + 1] = 0
        totals.append((variance, variance + 2 * half.sum(axis=(2, 3))))
    for exact, sampled in zip(*totals, strict=True):
        np.testing.assert_allclose(sampled, exact, rtol=0.01)


# apertures -----------------------------------------------------------------------------------------------------------


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.05, 8))
def test_circles_have_their_area_and_the_right_pixels(x, y, radius):
    weights, x0, y0 = circle_weights(x, y, radius)
    assert weights.sum() == pytest.approx(np.pi * radius**2, rel=1e-9)
    j, i = np.indices(weights.shape)
    corners = [np.hypot(i + x0 - x + a, j + y0 - y + b) for a in (-0.5, 0.5) for b in (-0.5, 0.5)]
    assert np.allclose(weights[np.max(corners, axis=0) < radius], 1)
    step = (np.arange(20) + 0.5) / 20 - 0.5
    fine = np.hypot(i[..., None, None] + x0 - x + step, j[..., None, None] + y0 - y + step[:, None]) < radius
    # 400 squares by their middles: at most 60 of them are cut by the circle, by half of their area on average
    np.testing.assert_allclose(weights, fine.mean(axis=(2, 3)), atol=0.04)


@functools.cache
def small_scene(pixfrac):
    """Images, and the covariance matrix and the weights of their co-add."""
    rng = np.random.default_rng(11)
    images = [
        (
            rng.uniform(0.5, 2, (14, 15)),
            rng.uniform(0.5, 2, (14, 15)),
            turned_map(14, 15, turn=t, shift=rng.uniform(0, 2, 2)),
        )
        for t in (0, 20, 75)
    ]
    return images, *oracle.covariance(images, (16, 17), pixfrac=pixfrac)


@pytest.mark.parametrize("aperture", [0.4, 1.0, 3.3, 30.0, np.array([[1.0, -2.0, 0.5], [0.0, 1.0, 1.0]])])
@pytest.mark.parametrize("centre", [(8.2, 7.6), (0.0, 15.4), (16.4, -0.5)])
def test_aperture_variance_is_the_quadratic_form(aperture, centre):
    images, expected, weights = small_scene(0.8)
    shape = weights.shape
    result = summed(images, shape, weights, pixfrac=0.8)
    if np.ndim(aperture) == 0:
        values, x0, y0 = circle_weights(*centre, aperture)
    else:
        values, x0, y0 = aperture, *(int(np.floor(at + 0.5)) - 1 for at in centre)
    h = np.zeros((100, 100))
    h[y0 + 40 : y0 + 40 + values.shape[0], x0 + 40 : x0 + 40 + values.shape[1]] = values
    h = h[40 : 40 + shape[0], 40 : 40 + shape[1]]
    want = np.einsum("ab,abcd,cd", h, expected, h)
    variance = np.einsum("abab->ab", expected).copy()
    if not np.any(h[variance > 0]):  # two of the centres lie in corners that no image reaches
        want = np.nan
    assert result.aperture_variance(*centre, aperture) == pytest.approx(want, rel=1e-9, nan_ok=True)
    # the variance plane of the drizzle itself changes nothing, four times that doubles the error
    assert result.aperture_variance(*centre, aperture, 4 * variance) == pytest.approx(4 * want, rel=1e-9, nan_ok=True)


def test_kernels_of_single_pixels_are_rows_of_the_matrix():
    images, expected, weights = small_scene(0.8)
    shape = weights.shape
    result = summed(images, shape, weights, pixfrac=0.8)
    for x, y in ((8, 7), (0, 0), (16, 15), (3, 15)):
        kernel, (ry, rx) = result.kernel(x, y), result.reach
        for dy, dx in np.ndindex(kernel.shape):
            yy, xx = y + dy - ry, x + dx - rx
            inside = 0 <= yy < shape[0] and 0 <= xx < shape[1]
            assert kernel[dy, dx] == pytest.approx(expected[y, x, yy, xx] if inside else 0.0, rel=1e-9, abs=1e-12)


def test_aperture_error_of_stationary_noise():
    rng = np.random.default_rng(2)
    half = rng.uniform(0, 0.2, (3, 5))
    rho = (half + half[::-1, ::-1]) / 2
    rho[1, 2] = 1
    h, v = rng.uniform(0, 1, (6, 7)), rng.uniform(1, 2, (6, 7))
    v[3, 3] = np.nan
    want = 0.0
    for a in np.ndindex(h.shape):
        for b in np.ndindex(h.shape):
            dy, dx = b[0] - a[0] + 1, b[1] - a[1] + 2
            if 0 <= dy < 3 and 0 <= dx < 5 and np.isfinite(v[a] * v[b]):
                want += h[a] * h[b] * rho[dy, dx] * (v[a] + v[b]) / 2
    assert aperture_error(v, rho, h) == pytest.approx(np.sqrt(want), rel=1e-12)
    assert aperture_error(4.0, [[1.0]], np.ones((3, 3))) == pytest.approx(6.0)


def test_the_map_survives_a_file(tmp_path):
    images, _, weights = small_scene(0.8)
    for block in (1, 5):
        result = summed(images, weights.shape, weights, block=block, every=1, pixfrac=0.8)
        hdu = result.to_hdu()
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / f"{block}.fits")
        with fits.open(tmp_path / f"{block}.fits") as hdus:
            back = CovarianceMap.from_hdu(hdus["COVAR"])
            header = hdus["COVAR"].header
        assert np.array_equal(back.covariance, result.covariance)
        assert (back.block, back.shape) == (block, weights.shape)
        # the header alone: value of lag (1, 0) in the first block, whose middle is (block + 1) / 2 in FITS' counting
        lag = round((1 - header["CRVAL3"]) / header["CDELT3"] + header["CRPIX3"]) - 1
        assert hdu.data[0, lag, 0, 0] == result.covariance[0, 0, 0, result.reach[1] + 1]
        assert header["CRVAL1"] + (1 - header["CRPIX1"]) * header["CDELT1"] == (block + 1) / 2


# the closed form -----------------------------------------------------------------------------------------------------


@given(st.floats(0.01, 1.5), st.floats(0.2, 3))
def test_noise_ratio_is_the_inverse_mean_square_overlap(pixfrac, scale):
    r = pixfrac / scale
    t = np.linspace(-(1 + r) / 2, (1 + r) / 2, 20001)
    share = np.clip(np.minimum(min(1.0, r), (1 + r) / 2 - np.abs(t)), 0, None) / r
    # the trapezium rule with 20 000 steps on a function with four corners
    assert 1 / np.trapezoid(share**2, t) == pytest.approx(noise_ratio(pixfrac, scale), rel=1e-3)


@pytest.mark.parametrize(("pixfrac", "scale"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.5), (0.7, 0.6)])
def test_many_random_dithers_approach_the_closed_form(pixfrac, scale):
    rng = np.random.default_rng(4)
    n, size = 40, int(36 / scale)
    # stratified: 144 dithers, one in each of 12 x 12 fields of an input pixel
    shifts = ((np.indices((12, 12)).reshape(2, -1).T + rng.random((144, 2))) / 12 - 2) / scale
    images = [(np.ones((n, n)), np.ones((n, n)), turned_map(n, n, scale=scale, shift=s)) for s in shifts]
    weights = coverage(images, (size, size), pixfrac=pixfrac)
    result = summed(images, (size, size), weights, block=size, every=1, pixfrac=pixfrac)
    # 144 dithers over a pixel: the weights scatter by about 1 %
    assert result.noise_ratio(size / 2, size / 2) == pytest.approx(noise_ratio(pixfrac, scale), rel=0.01)


def test_noise_ratio_of_points_is_one():
    assert noise_ratio(0.0) == 1
    assert noise_ratio(1.0) == pytest.approx(1.5)


# simulated images ----------------------------------------------------------------------------------------------------


def simulated_errors(pattern, radii, blocks, *, realisations, n, noise="flat", seed=3):
    """Scatter of aperture sums in simulated co-adds over the predicted errors: for each kind of blocks, by radius.

    Blocks take the variances of pixels from the variance plane: some of them hold the border of an image, where the
    depth changes. Also the 1 sigma error that counting alone gives the ratios.
    """
    count, scale, turn, pixfrac = pattern
    rng = np.random.default_rng(seed)
    images = []
    for k in range(count):
        weight = rng.uniform(0.7, 1.4) * (rng.random((n, n)) > 0.02)
        # a variance that rises by a factor of 3 over the image, as that of a bright sky gradient
        variance = np.ones((n, n)) if noise == "flat" else np.linspace(1, 3, n)[:, None] * np.ones(n)
        shift = rng.uniform(-1, 1, 2) + (10 if turn else 0)
        images.append((weight, variance, turned_map(n, n, turn=turn * k, scale=scale, shift=shift)))
    size = int((n + (20 if turn else 0)) / scale)
    weights = coverage(images, (size, size), pixfrac=pixfrac)
    maps = [summed(images, (size, size), weights, block=block, pixfrac=pixfrac) for block in blocks]
    margin, step = (0.15 * n + 10) / scale + 5, 2 * max(radii) + 3
    grid = np.arange(margin, size - margin, step)
    apertures = [(r, x, y) for r in radii for x, y in rng.uniform(-1, 1, (len(grid) ** 2, 2)) + cross(grid)]
    measure = np.zeros((len(apertures), size, size), np.float32)
    for h, (radius, x, y) in zip(measure, apertures, strict=True):
        values, x0, y0 = circle_weights(x, y, radius)
        h[y0 : y0 + values.shape[0], x0 : x0 + values.shape[1]] = values
    squares = np.zeros(len(apertures))
    for _ in range(realisations):
        drizzle = Drizzle(out_shape=(size, size), fillval=0, disable_ctx=True)
        for weight, variance, pixmap in images:
            data = rng.normal(0, np.sqrt(variance)).astype(np.float32)
            drizzle.add_image(data, 1.0, pixmap, weight_map=weight, pixfrac=pixfrac)
        squares += (measure.reshape(len(apertures), -1) @ drizzle.out_img.ravel()) ** 2 / realisations
    exact = summed(images, (size, size), weights, block=1, pixfrac=pixfrac)
    planes = [None if block == 1 else exact.covariance[:, :, 0, exact.reach[1]] for block in blocks]
    predicted = np.array(
        [[m.aperture_variance(x, y, r, v) for r, x, y in apertures] for m, v in zip(maps, planes, strict=True)]
    )
    ratio = (squares / predicted).reshape(len(maps), len(radii), -1).mean(axis=2)
    return np.sqrt(ratio), 1 / np.sqrt(2 * realisations * len(grid) ** 2)


def cross(grid):
    return np.array([(x, y) for x in grid for y in grid])


PATTERNS = [  # images, output pixel in input pixels, degrees between images, pixfrac
    (4, 1.0, 17.0, 0.8),
    (3, 0.6, 1.5, 1.0),
    (2, 1.0, 3.0, 1.0),
    (4, 0.5, 0.0, 0.6),
]


@pytest.mark.parametrize("pattern", PATTERNS[:3])
def test_aperture_errors_are_the_scatter_of_simulated_images(pattern):
    ratio, error = simulated_errors(pattern, (1, 3, 6), (1, 24), realisations=50, n=90, noise="gradient")
    # counting statistics alone: the prediction from single pixels is exact. 4 sigma
    np.testing.assert_allclose(ratio[0], 1, atol=4 * error)
    # blocks: small apertures do not see all ways in which drops lie on pixels, which leaves 2 %
    np.testing.assert_allclose(ratio[1], 1, atol=4 * error + 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["flat", "gradient"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_aperture_errors_within_five_percent(pattern, noise):
    ratio, error = simulated_errors(pattern, range(1, 11), (1, 64), realisations=200, n=256, noise=noise)
    assert error < 0.015
    np.testing.assert_allclose(ratio, 1, atol=0.05)


def test_the_variance_plane_brings_the_photons_of_a_star():
    """Correlations without the star, variances with it: its error is that of the full covariances."""
    n, shape = 100, (150, 150)
    rng = np.random.default_rng(9)
    images, flat = [], []
    for _ in range(4):
        shift = rng.uniform(-1, 1, 2)
        pixmap = turned_map(n, n, scale=0.7, shift=shift)
        star = np.exp(-(((pixmap - 70.3) * 0.7) ** 2).sum(axis=2) / 2 / 1.5**2)
        images.append((np.ones((n, n)), 1 + 50 * star, pixmap))
        flat.append((np.ones((n, n)), np.ones((n, n)), pixmap))
    weights = coverage(images, shape, pixfrac=0.8)
    exact = summed(images, shape, weights, pixfrac=0.8)
    without, local = (summed(flat, shape, weights, block=block, pixfrac=0.8) for block in (1, 64))
    variance = exact.covariance[:, :, 0, exact.reach[1]]
    for radius in (1, 2, 3, 5, 8):
        full = np.sqrt(exact.aperture_variance(70.3, 70.3, radius))
        # the star is not much wider than the reach of the covariances: taking its noise as linear there costs 1 to 2 %
        assert np.sqrt(without.aperture_variance(70.3, 70.3, radius, variance)) == pytest.approx(full, rel=0.02)
        if radius < 3:  # one small aperture sees one of the ways in which drops lie on pixels, not their average
            continue
        assert np.sqrt(local.aperture_variance(70.3, 70.3, radius, variance)) == pytest.approx(full, rel=0.03)
        aperture, x0, y0 = circle_weights(70.3, 70.3, radius)
        plane = variance[y0 : y0 + aperture.shape[0], x0 : x0 + aperture.shape[1]]
        error = aperture_error(plane, local.correlation(70.3, 70.3), aperture)
        assert error == pytest.approx(full, rel=0.03)
        assert np.sqrt((aperture**2 * plane).sum()) < 0.8 * full  # what is missing without correlations


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Spreading(kernel="tophat"), "Kernel 'tophat' is unknown"),
        (lambda: CovarianceSums((9, 9), block=0), "at least 1"),
        (lambda: CovarianceSums((9, 9), block=8, every=5), "16 pixels are needed"),
        (lambda: CovarianceSums((9, 0)), "is needed"),
        (lambda: CovarianceSums((9, 9)).add_image(np.ones((3, 3)), np.ones((4, 3, 2))), "'variance' shape"),
        (lambda: CovarianceSums((9, 9)).add_image(-np.ones((4, 3)), np.ones((4, 3, 2))), "must not be negative"),
        (lambda: CovarianceSums((9, 9)).add_image(None, np.ones((4, 3))), "'pixmap' must have"),
        (lambda: CovarianceSums((9, 9)).finish(np.ones((9, 8))), "'out_wht' has the shape"),
        (lambda: CovarianceSums((9, 9)).finish(np.ones((9, 9))).correlation(4, 4), "No data"),
        (lambda: CovarianceSums((9, 9)).finish(np.ones((9, 9))).aperture_variance(9, 4, 1), "outside of the image"),
        (lambda: CovarianceSums((9, 9)).finish(np.ones((9, 9))).aperture_variance(4, 4, -1), "radius"),
        (lambda: CovarianceMap.from_hdu(fits.ImageHDU(np.ones((3, 3)))), "no noise covariance"),
        (lambda: noise_ratio(-1), "must be finite and positive"),
        (lambda: aperture_error(1.0, np.ones((2, 3)), np.ones((3, 3))), "odd sides"),
        (lambda: aperture_error(np.ones((2, 2)), np.ones((3, 3)), np.ones((3, 3))), "same shape"),
    ],
)
def test_errors_say_what_is_wrong(call, words):
    with pytest.raises(InputError, match=words):
        call()


# as a part of Drizzle ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Kernel", "ignore:In lanczos kernel")
@pytest.mark.parametrize("conserving", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_drizzle_keeps_covariances_that_agree_with_its_variance(kernel, conserving):
    rng = np.random.default_rng(6)
    n, shape = 40, (48, 50)
    drizzle = Drizzle(
        kernel=kernel, out_wht=np.zeros(shape), disable_ctx=True, covariance=1, flux_conserving=conserving
    )
    for k in range(2):
        planes = [rng.uniform(0.5, 2, (n, n)) for _ in range(2)]
        planes[0][3, 5] = np.nan
        drizzle.add_image(
            np.ma.masked_array(rng.normal(size=(n, n)), rng.random((n, n)) < 0.05),
            3.0,
            turned_map(n, n, turn=10 * k, scale=0.9, shift=(2, 3)),
            data2=planes,
            weight_map=rng.choice([0.0, 1.0, 2.0], (n, n)),
            wht_scale=0.7,
            iscale=1.3,
            pixel_scale_ratio=0.9,
            pixfrac=0.8,
            in_units="counts",
            xmin=2,
            ymax=36,
        )
    result = drizzle.covariance
    # Where shares of both signs cancel, the weight is left with rounding errors of the single shares, 1e-12 at most.
    known = np.abs(drizzle.out_wht) > 1e-4
    variance = np.sum(drizzle.out_img2, axis=0)[known]
    np.testing.assert_allclose(result.covariance[:, :, 0, result.reach[1]][known], variance, rtol=1e-6)


def test_drizzle_adds_nothing_of_a_call_that_fails():
    pixmap, shape = turned_map(12, 12, turn=5), (12, 12)
    drizzle = Drizzle(out_shape=shape, covariance=4)
    drizzle.add_image(np.zeros((12, 12)), 1.0, pixmap, np.ones((12, 12)))
    before = drizzle.covariance.covariance, drizzle.out_wht.copy(), drizzle.ctx_id
    for arguments in ({"data2": -np.ones((12, 12))}, {"data2": np.ones((12, 12)), "in_units": "Jy"}):
        with pytest.raises(InputError):
            drizzle.add_image(np.zeros((12, 12)), 1.0, pixmap, **arguments)
    assert np.array_equal(drizzle.covariance.covariance, before[0])
    assert np.array_equal(drizzle.out_wht, before[1])
    assert drizzle.ctx_id == before[2]


def test_drizzle_without_covariances_has_none():
    drizzle = Drizzle(out_shape=(5, 5))
    drizzle.add_image(np.zeros((5, 5)), 1.0, turned_map(5, 5))
    assert drizzle.covariance is None
    assert Drizzle(covariance=64).covariance is None


def test_covariances_cannot_be_continued():
    with pytest.raises(InputError, match="cannot be continued"):
        Drizzle(out_img=np.zeros((5, 5)), out_wht=np.ones((5, 5)), exptime=1.0, disable_ctx=True, covariance=64)
