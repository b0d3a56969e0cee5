"""The real-space delta-function fit against dense least squares, and what `run_sfft` promises."""

import inspect
import subprocess
import sys
import warnings

import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from reference import sfft_oracle as oracle
from simulate import simulate_pair
from skyloom.compat.stdpipe import sfft as drop_in
from skyloom.convolution import exponents
from skyloom.detection import score
from skyloom.errors import InputError, ShapeError, SkyloomWarning, SubtractionError, TooFewPixelsError
from skyloom.pipeline.difference import DifferenceOptions, difference
from skyloom.pipeline.store import read_difference
from skyloom.psf.analytic import Profile
from skyloom.registration import detect_sources
from skyloom.subtraction import AlardLuptonOptions, SfftOptions, subtract
from skyloom.subtraction.sfft import evaluate_background, evaluate_flux_scale, evaluate_kernel_at, run_sfft, solve
from skyloom.subtraction.sfft.clip import outliers
from skyloom.subtraction.sfft.design import DeltaModel, Design
from skyloom.subtraction.sfft.dropin import terms
from skyloom.subtraction.sfft.fit import FitOptions, FitPlanes, fit_delta
from skyloom.subtraction.sfft.match import _pixels
from skyloom.subtraction.sfft.run import background_plane, difference_noise
from skyloom.subtraction.sfft.solve import Penalties
from skyloom.subtraction.stamps import Planes

# a kernel that is too small for the stars, so that the test is quick
SMALL_KERNEL = pytest.mark.filterwarnings("ignore:The kernel of:skyloom.errors.SkyloomWarning")

GAIN = 2.0


def star_field(shape, fwhm, *, seed, sky=200.0, scale=1.0, n=None):
    rng = np.random.default_rng(seed)
    ny, nx = shape
    n = n or ny * nx // 400
    image = np.full(shape, sky)
    stamp_half = 10
    for x, y, flux in zip(rng.uniform(0, nx, n), rng.uniform(0, ny, n), 10 ** rng.uniform(3, 4.8, n), strict=True):
        ix, iy = round(x), round(y)
        stamp = scale * flux * Profile(fwhm).stamp(stamp_half, x - ix, y - iy)
        y0, y1, x0, x1 = max(iy - 10, 0), min(iy + 11, ny), max(ix - 10, 0), min(ix + 11, nx)
        image[y0:y1, x0:x1] += stamp[y0 - iy + 10 : y1 - iy + 10, x0 - ix + 10 : x1 - ix + 10]
    return image


def observe(model, gain, rng, read=3.0):
    return rng.poisson(model * gain) / gain + rng.normal(0, read, model.shape), np.sqrt(model / gain + read**2)


@pytest.fixture(scope="module")
def pair():
    """Science and template with their errors: Gaussian stars, FWHM 3.3 and 2.6, kernel sum 1.25."""
    rng = np.random.default_rng(5)
    science, err = observe(star_field((200, 220), 3.3, seed=1, sky=300.0, scale=1.25), GAIN, rng)
    template, template_err = observe(star_field((200, 220), 2.6, seed=1, sky=180.0), 12.0, rng, 1.0)
    return science, template, err, template_err


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(9, 40), st.integers(9, 45)),
    kernel=st.sampled_from([(1, 1), (3, 3), (3, 5), (5, 1), (7, 7)]),
    order=st.integers(0, 3),
    background=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_design_is_that_of_the_formula(shape, kernel, order, background, seed):
    rng = np.random.default_rng(seed)
    template = rng.normal(size=shape)
    model = DeltaModel(kernel, order, background)
    design = Design(template, model)
    columns = oracle.columns(template, kernel, order, background).reshape(model.size, -1)
    unknowns, image = rng.normal(size=model.size), rng.normal(size=shape)
    # the oracle's kernel is not flipped
    flipped = np.concatenate([model.kernel(unknowns).ravel(), model.background(unknowns)])
    np.testing.assert_allclose(design.apply(unknowns).ravel(), flipped @ columns, atol=1e-11)
    weight = rng.random(shape).astype(np.float32)
    projected, squares = design.project(image, weight)
    assert squares == pytest.approx((weight * image**2).sum())
    expected = columns @ (weight * image).ravel()
    order_of = np.concatenate([model.kernel(projected).ravel(), model.background(projected)])
    np.testing.assert_allclose(order_of, expected, atol=1e-10)
    variance = rng.random(shape)
    axes = oracle.axes(shape)
    kernel_at = lambda x, y: np.tensordot(  # noqa: E731
        [axes[0][y, x] ** i * axes[1][y, x] ** j for i, j in exponents(order)], model.kernel(unknowns), axes=1
    )
    if np.prod(shape) < 250:
        squared = oracle.varying_convolution(variance, lambda x, y: kernel_at(x, y) ** 2)
        np.testing.assert_allclose(design.convolved_variance(unknowns, variance), squared, atol=1e-5 * squared.max())


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(20, 45), st.integers(20, 45)),
    kernel=st.sampled_from([(1, 1), (3, 3), (3, 5), (5, 5)]),
    order=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_matrix_is_that_of_a_kernel_constant_within_cells(shape, kernel, order, seed):
    rng = np.random.default_rng(seed)
    template, weight = rng.normal(size=shape), (rng.random(shape) * (rng.random(shape) > 0.3)).astype(np.float32)
    model = DeltaModel(kernel, order, 1)
    matrix = Design(template, model).matrix(weight)
    cell = 4  # of images of up to 256 pixels a side
    columns = oracle.columns(template, kernel, 0, 1).reshape(-1, *shape)
    taps, flat = columns[: model.taps], columns[model.taps :]
    X, Y = oracle.axes(shape)
    middle = [
        np.repeat([axis[k : k + cell].mean() for k in range(0, len(axis), cell)], cell)[: len(axis)]
        for axis in (X[0], Y[:, 0])
    ]
    taps = taps.reshape(*kernel, *shape)[::-1, ::-1].reshape(taps.shape)
    stepped = np.array(
        [middle[0][None, :] ** i * middle[1][:, None] ** j * tap for i, j in exponents(order) for tap in taps]
    )
    exact = np.array([X**i * Y**j * tap for i, j in exponents(order) for tap in taps])
    n = model.n_kernel
    gram = np.einsum("ayx,yx,byx->ab", stepped, weight, stepped)
    np.testing.assert_allclose(matrix[:n, :n], gram, atol=1e-5 * np.abs(gram).max())  # sums in float32
    for block, left in ((matrix[:n, n:], exact), (matrix[n:, n:], flat)):
        expected = np.einsum("ayx,yx,byx->ab", left, weight, flat)
        np.testing.assert_allclose(block, expected, atol=1e-5 * weight.sum())
    assert np.array_equal(matrix, matrix.T)


@settings(max_examples=12, deadline=None)
@given(
    kernel=st.sampled_from([(3, 3), (5, 3), (5, 5)]),
    orders=st.sampled_from([(0, 0, 0), (1, 1, 1), (2, 2, 1), (2, 0, 0), (1, 3, 0)]),
    flux=st.sampled_from([0.0, 1.0, 1e3]),
    ridge=st.sampled_from([0.0, 1e-6, 1e-2]),
    seed=st.integers(0, 1000),
)
def test_fit_is_the_least_squares_solution(kernel, orders, flux, ridge, seed):
    rng = np.random.default_rng(seed)
    shape = 44, 50
    template = star_field(shape, 2.4, seed=seed, n=30, sky=0.0) + rng.normal(0, 5, shape)
    science = 1.2 * np.roll(template, 1, axis=1) + rng.normal(0, 20, shape)
    usable = rng.random(shape) > 0.1
    variance = rng.uniform(100, 900, shape)
    order, background, flux_order = orders
    model = DeltaModel(kernel, order, background)
    fit = fit_delta(
        FitPlanes(science, template, usable, variance, None),
        FitOptions(model, Penalties(flux_order, flux, ridge), None, 1),
    )
    weight = usable / variance
    unit = np.median(np.diagonal(fit.design.matrix(weight.astype(np.float32)))[: model.n_kernel])
    k, b, residual = oracle.dense_fit(
        science, template, weight, kernel_shape=kernel, kernel_order=order, background_order=background,
        flux_order=flux_order, flux=flux * unit, ridge=ridge * unit,
    )  # fmt: skip
    # weights are rounded to float32
    np.testing.assert_allclose(fit.kernel, k, atol=1e-6 * np.abs(k).max())
    np.testing.assert_allclose(fit.residual, residual, atol=1e-5 * 20)
    assert fit.background.shape == b.shape


def test_result_has_every_field_in_the_order_of_stdpipe(pair):
    science, template, err, template_err = pair
    result = solve(science, template, err=err, template_err=template_err, kernel_shape=(5, 7), max_iter=2)
    assert (result.kernel_shape, result.kernel_poly_order, result.bg_poly_order, result.flux_poly_order) == (
        (5, 7),
        2,
        2,
        1,
    )
    assert result.kernel_coeffs.shape == (35, 6)
    assert result.bg_coeffs.shape == (6,)
    assert result.flux_poly_coeffs.shape == (3,)
    assert terms(2) == [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]
    np.testing.assert_allclose(result.diff, science - result.model, atol=1e-9)
    ny, nx = science.shape
    for x, y in ((30, 40), (180, 100)):
        kernel = evaluate_kernel_at(result, x, y, (ny, nx))
        window = template[y - 2 : y + 3, x - 3 : x + 4]
        value = (kernel[::-1, ::-1] * window).sum() + evaluate_background(result, x, y, (ny, nx))
        assert value == pytest.approx(result.model[y, x], abs=1e-6)
        # the terms above flux_poly_order are held near 0 by the penalty, not at it
        assert evaluate_flux_scale(result, x, y, (ny, nx)) == pytest.approx(kernel.sum(), abs=2e-3)
    assert evaluate_background(result, np.arange(nx)[None, :], np.arange(ny)[:, None], (ny, nx)).shape == (ny, nx)
    assert result.template_level == 0.0


@SMALL_KERNEL
def test_background_of_lower_order_than_the_kernel(pair):
    science, template, err, _ = pair
    result = solve(science, template, err=err, kernel_shape=(5, 5), kernel_poly_order=1, bg_poly_order=0, max_iter=1)
    y, x = 60, 90
    kernel = evaluate_kernel_at(result, x, y, science.shape)
    window = template[y - 2 : y + 3, x - 2 : x + 3] - result.template_level
    value = (kernel[::-1, ::-1] * window).sum() + evaluate_background(result, x, y, science.shape)
    assert value == pytest.approx(result.model[y, x], abs=1e-6)


def test_size_of_the_kernel_from_the_stars():
    # Moffat stars, whose wings 7 x 7 pixels do not reach
    pair = simulate_pair(3, 300, n_stars=60, n_galaxies=0, n_transients=0, vary=0.0)
    images = np.array(pair.science.data, float), np.array(pair.template.data, float)
    errors = {"err": np.sqrt(pair.science.variance), "template_err": np.sqrt(pair.template.variance)}
    options = {"kernel_poly_order": 0, "flux_poly_order": 0, "bg_poly_order": 1, **errors}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # this kernel is not too small
        result = run_sfft(*images, kernel_shape=None, get_kernel=True, **options)[1]
    assert result.kernel_shape[0] == result.kernel_shape[1]
    assert 11 <= result.kernel_shape[0] <= 17
    truth = 1 / pair.flux_ratio
    # 60 stars of S/N up to 700: the sum has an error of 0.1 %; the wings beyond hold another 0.15 %
    assert evaluate_flux_scale(result, 150, 150, images[0].shape) == pytest.approx(truth, rel=3e-3)
    with pytest.warns(SkyloomWarning, match=r"7 x 7 pixels is too small .* Give a larger kernel_shape, or None"):
        small = solve(*images, **options)
    assert evaluate_flux_scale(small, 150, 150, images[0].shape) < 0.99 * truth
    assert solve(*images, kernel_shape=None, max_iter=1, **options).kernel_shape == result.kernel_shape
    flat = np.zeros((20, 20)), np.zeros((20, 20))
    with pytest.raises((TooFewPixelsError, SubtractionError)):
        solve(*flat, kernel_shape=None)


def test_error_of_the_border_of_a_kernel():
    rng = np.random.default_rng(6)
    template = ndimage.gaussian_filter(rng.normal(0, 100, (50, 60)), 1.5)
    usable = np.zeros(template.shape, bool)
    usable[2:-2, 2:-2] = True
    options = FitOptions(DeltaModel((5, 5), 1, 1), Penalties(0, 0.0, 0.0), sigma_clip=None)
    fits = [
        fit_delta(FitPlanes(template + rng.normal(0, 3, template.shape), template, usable, None, None), options)
        for _ in range(60)
    ]
    edges = np.array([fit.edge * fit._sum for fit in fits])
    # a deviation from 60 values has an error of 9 %
    assert np.std(edges) == pytest.approx(np.mean([fit.edge_error for fit in fits]), rel=0.4)
    assert np.mean(edges) == pytest.approx(0.0, abs=4 * np.std(edges) / np.sqrt(60))


def test_no_kernel_is_too_small_for_noise():
    rng = np.random.default_rng(4)
    science, template = rng.normal(0, 5, (2, 90, 100))
    err = np.full(science.shape, 5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for side in (1, 3, 7):
            solve(science, template, err=err, template_err=err, kernel_shape=(side, side))


def test_kernel_sum_and_noise(pair):
    science, template, err, template_err = pair
    _, scaled, noise, result = run_sfft(
        science, template, err=err, template_err=template_err, kernel_poly_order=1, bg_poly_order=1,
        get_scaled=True, get_noise=True, get_kernel=True,
    )  # fmt: skip
    # 100 stars of S/N up to several hundred: the sum has an error of 0.1 %
    assert evaluate_flux_scale(result, 110, 100, science.shape) == pytest.approx(1.25, rel=3e-3)
    inner = ~result.dmask
    # 39000 pixels: the deviation has an error of 0.4 %; 150 unknowns take 0.2 %
    assert np.std(scaled[inner]) == pytest.approx(1.0, abs=0.015)
    assert abs(np.mean(scaled[inner])) < 0.02
    assert np.all(noise[inner] > err[inner])
    assert np.count_nonzero(inner) - result.n_good < 0.006 * result.n_good  # 3 sigma: 0.27 %
    stars = star_field(science.shape, 3.3, seed=1, sky=0.0) > 2000
    assert np.abs(np.mean(scaled[inner & stars])) < 0.3


@SMALL_KERNEL
def test_sky_level_does_not_matter(pair):
    science, template, err, template_err = pair
    options = {"err": err, "template_err": template_err, "kernel_shape": (5, 5)}
    plain = run_sfft(science, template, **options)
    for s, t in ((1000.0, 0.0), (0.0, 1000.0), (1000.0, 1000.0), (-300.0, 500.0)):
        raised = run_sfft(science + s, template + t, **options)
        assert np.max(np.abs(raised - plain) / err) < 1e-3


@SMALL_KERNEL
def test_sky_level_does_not_matter_for_noise_maps_from_the_images(pair):
    science, template, _, _ = pair
    options = {"err": True, "template_err": True, "image_gain": GAIN, "template_gain": 12.0, "kernel_shape": (5, 5)}
    plain, noise = run_sfft(science, template, get_noise=True, **options)
    raised = run_sfft(science + 1000, template + 1000, **options)
    assert np.max(np.abs(raised - plain) / noise) < 1e-3


def test_star_cores_stay_in_the_fit(pair):
    science, template, _, _ = pair
    result = solve(science, template, kernel_shape=(7, 7), kernel_poly_order=1, bg_poly_order=1)
    z = result.diff / result.rms
    cores = star_field(science.shape, 3.3, seed=1, sky=0.0) > 3000
    assert np.abs(z[cores & ~result.dmask]).max() > 3.5  # photon noise that a constant threshold would clip
    assert evaluate_flux_scale(result, 110, 100, science.shape) == pytest.approx(1.25, rel=5e-3)


def test_outliers_are_clipped_at_their_brightness():
    rng = np.random.default_rng(3)
    signal = np.where(rng.random((200, 200)) < 0.05, 10 ** rng.uniform(1, 4, (200, 200)), 0.0)
    sigma = np.sqrt(1 + 0.3 * signal)
    residual = rng.normal(size=signal.shape) * sigma
    residual[10, 10] += 12 * sigma[10, 10]
    clipped = outliers(residual, np.ones_like(signal), signal, np.ones(signal.shape, bool), 5.0)
    assert clipped[10, 10]
    # brightness classes a factor of 2 wide: deviations within vary by 1.2 about their middle
    assert clipped.sum() < 20


@SMALL_KERNEL
def test_bit_identical_for_any_number_of_threads(pair, monkeypatch):
    science, template, err, template_err = pair
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("SKYLOOM_NUM_THREADS", threads)
        results.append(run_sfft(science, template, err=err, template_err=template_err, kernel_shape=(5, 5)))
    assert np.array_equal(*results)


@SMALL_KERNEL
def test_rebuilding_the_matrix_changes_nothing(pair, monkeypatch):
    science, template, err, _ = pair
    science = science.copy()
    science[50:53, 50:53] += 5000
    first = drop_in.solve(science, template, err=err, kernel_shape=(5, 5))
    monkeypatch.setattr(drop_in, "_USE_INCREMENTAL_UPDATES", False)
    second = drop_in.solve(science, template, err=err, kernel_shape=(5, 5))
    assert first.n_iter > 1
    assert first.n_good == second.n_good
    np.testing.assert_allclose(first.kernel_coeffs, second.kernel_coeffs, atol=1e-8 * np.abs(first.kernel_coeffs).max())


@SMALL_KERNEL
def test_inputs_of_any_kind_are_left_alone(pair):
    science, template, err, template_err = pair
    options = {"kernel_shape": (3, 3), "kernel_poly_order": 0, "bg_poly_order": 0, "flux_poly_order": 0, "max_iter": 1}
    plain = run_sfft(science, template, err=err, template_err=template_err, **options)
    planes = [np.asfortranarray(plane.astype(">f8")) for plane in (science, template, err, template_err)]
    for plane in planes:
        plane.flags.writeable = False
    copies = [plane.copy() for plane in planes]
    again = run_sfft(planes[0], planes[1], err=planes[2], template_err=planes[3], **options)
    assert np.array_equal(plain, again)
    assert all(np.array_equal(a, b) for a, b in zip(planes, copies, strict=True))


# ---- what the notes list as failures -------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["mask", "template_mask", "science NaN", "template NaN"])
@pytest.mark.parametrize("err", [None, True])
def test_all_masked_is_a_typed_error(which, err):
    rng = np.random.default_rng(0)
    science, template = rng.normal(100, 5, (2, 64, 64))
    masks = {which: np.ones((64, 64), bool)} if "mask" in which else {}
    science = np.full_like(science, np.nan) if which == "science NaN" else science
    template = np.full_like(template, np.nan) if which == "template NaN" else template
    with pytest.raises(TooFewPixelsError, match="Too few good pixels: 0") as caught:
        run_sfft(science, template, err=err, template_err=err, **masks)
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, SubtractionError)


@SMALL_KERNEL
def test_masked_and_missing_pixels_are_zero_and_leak_nowhere(pair):
    science, template, err, template_err = pair
    options = {"err": err, "template_err": template_err, "kernel_shape": (5, 5), "get_scaled": True}
    clean, _ = run_sfft(science, template, **options)
    science, template = science.copy(), template.copy()
    mask = np.zeros(science.shape, bool)
    mask[60:70, 60:70] = True
    science[mask] = 1e5
    template[120:124, 90:94] = np.nan
    science[150:153, 30:40] = np.nan
    science[:, :40] = np.nan
    diff, scaled = run_sfft(science, template, mask=mask, **options)
    assert np.isfinite(diff).all()
    assert np.isfinite(scaled).all()
    for bad in (mask, np.isnan(science)):
        assert not diff[bad].any()
        assert not scaled[bad].any()
    assert not diff[118:126, 88:96].any()
    elsewhere = (diff != 0) & (clean != 0)
    assert elsewhere.sum() > 0.7 * diff.size
    # other pixels in the fit: coefficients change by parts of their errors
    assert np.std(((diff - clean) / err)[elsewhere]) < 0.1


@pytest.mark.parametrize("value", [0.0, 250.0])
def test_constant_images_are_a_typed_error(value):
    with pytest.raises(SubtractionError, match="no structure"):
        run_sfft(np.full((64, 64), value), np.full((64, 64), value))


def test_pure_noise_runs():
    rng = np.random.default_rng(1)
    science, template = rng.normal(100, 5, (2, 96, 96))
    diff, result = run_sfft(science, template, kernel_shape=(3, 3), get_kernel=True)
    assert np.std(diff[~result.dmask]) == pytest.approx(5.0, rel=0.05)


def test_template_that_is_the_image_leaves_nothing(pair):
    science = pair[0]
    diff = run_sfft(science, science)
    assert np.std(diff) < 1e-3 * np.median(pair[2])  # what the ridge leaves of the stars


def test_shapes_that_differ(pair):
    science, template, err, _ = pair
    with pytest.raises(ShapeError, match="same shape"):
        run_sfft(science, template[:-1])
    with pytest.raises(ShapeError, match="err has the shape"):
        run_sfft(science, template, err=err[1:])
    with pytest.raises(ShapeError, match="template_mask has the shape"):
        run_sfft(science, template, template_mask=np.zeros((3, 3), bool))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_shape": (6, 7)}, "odd"),
        ({"kernel_shape": 7}, "odd"),
        ({"max_iter": 0}, "max_iter"),
        ({"kernel_poly_order": 0}, "flux_poly_order"),
        ({"bg_poly_order": -1}, "bg_poly_order"),
        ({"ridge": -1.0}, "ridge"),
        ({"flux_penalty": np.nan}, "flux_penalty"),
        ({"sigma_clip": -3.0}, "sigma_clip"),
        ({"err": True, "image_gain": 0.0}, "gain"),
        ({"obj": Table({"a": [1.0]})}, "no column x"),
        ({"obj": Table({"x": [9.0], "y": [9.0]}), "obj_grid": 0}, "obj_grid"),
    ],
)
def test_bad_options_are_typed_errors(pair, options, message):
    with pytest.raises(InputError, match=message):
        run_sfft(pair[0], pair[1], **options)


def test_tiny_image_with_a_kernel_that_does_not_fit():
    rng = np.random.default_rng(1)
    with pytest.raises(TooFewPixelsError):
        run_sfft(*rng.normal(100, 5, (2, 5, 40)))


def test_small_image_runs():
    rng = np.random.default_rng(2)
    science = star_field((40, 41), 3.0, seed=2, n=12) + rng.normal(0, 5, (40, 41))
    diff = run_sfft(science, science + rng.normal(0, 5, (40, 41)), kernel_poly_order=1, bg_poly_order=1)
    assert diff.shape == (40, 41)
    assert np.isfinite(diff).all()


def test_saturated_stars_with_a_mask(pair):
    science, template, err, template_err = pair
    full = 2000.0
    mask, template_mask = science >= full, template >= full
    assert mask.any()
    diff, scaled = run_sfft(
        np.minimum(science, full), np.minimum(template, full), mask=mask, template_mask=template_mask,
        err=err, template_err=template_err, kernel_poly_order=1, bg_poly_order=1, get_scaled=True,
    )  # fmt: skip
    assert not diff[mask].any()
    assert np.std(scaled[diff != 0]) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, ">f4"])
@SMALL_KERNEL
def test_other_types(pair, dtype):
    science, template, err, _ = pair
    options = {"err": err, "kernel_shape": (3, 3), "max_iter": 1}
    exact = run_sfft(np.rint(science), np.rint(template), **options)
    diff = run_sfft(np.rint(science).astype(dtype), np.rint(template).astype(dtype), **options)
    assert np.array_equal(diff, exact)


@SMALL_KERNEL
def test_objects_restrict_the_fit(pair):
    science, template, err, _ = pair
    options = {"err": err, "kernel_shape": (3, 3), "kernel_poly_order": 0, "bg_poly_order": 0, "flux_poly_order": 0}
    objects = Table(
        {"x": [50.0, 120.0, 125.0], "y": [50.0, 80.0, 80.0], "flux": [3.0, 2.0, 1.0], "fwhm": [3.0, 3.0, 3.0]}
    )
    _, result = run_sfft(science, template, obj=objects, max_iter=1, get_kernel=True, **options)
    assert result.n_good == 2 * 19**2 + 5 * 19
    _, result = run_sfft(science, template, obj=objects, obj_per_cell=1, max_iter=1, get_kernel=True, **options)
    assert result.n_good == 2 * 19**2


@SMALL_KERNEL
def test_verbose(pair, capsys):
    messages = []
    options = {"kernel_shape": (3, 3), "max_iter": 1}
    run_sfft(pair[0], pair[1], verbose=messages.append, **options)
    assert "SFFT" in messages[0]
    assert not capsys.readouterr().out
    run_sfft(pair[0], pair[1], verbose=True, **options)
    assert "SFFT" in capsys.readouterr().out


@SMALL_KERNEL
def test_noise_without_errors(pair):
    science, template, _, template_err = pair
    result = solve(science, template, template_err=template_err, kernel_shape=(5, 5))
    noise = difference_noise(result, None, template_err)
    assert np.median(noise) == pytest.approx(result.rms, rel=0.05)
    assert difference_noise(result, None, None) == pytest.approx(result.rms)
    np.testing.assert_allclose(background_plane(result)[3, 5], evaluate_background(result, 5, 3, science.shape))


# ---- drop-in ---------------------------------------------------------------------------------------------------------


def test_signatures_are_those_of_stdpipe():
    expected = """
        image template mask template_mask err template_err image_gain template_gain kernel_shape kernel_poly_order
        bg_poly_order flux_poly_order flux_penalty ridge sigma_clip max_iter obj obj_size obj_grid obj_per_cell
        obj_max_masked_fraction get_convolved get_scaled get_noise get_kernel verbose
    """
    assert list(inspect.signature(run_sfft).parameters) == expected.split()


@SMALL_KERNEL
def test_order_of_what_is_returned(pair):
    science, template, err, _ = pair
    options = {"err": err, "kernel_shape": (3, 3), "max_iter": 1}
    diff, convolved, scaled, noise, result = run_sfft(
        science, template, get_convolved=True, get_scaled=True, get_noise=True, get_kernel=True, **options
    )
    inner = ~result.dmask
    np.testing.assert_allclose((science - convolved - background_plane(result))[inner], diff[inner], atol=1e-9)
    np.testing.assert_allclose((scaled * noise)[inner], diff[inner], atol=1e-9)
    assert isinstance(run_sfft(science, template, **options), np.ndarray)


def test_activated_names():
    code = (
        "import skyloom.compat; skyloom.compat.activate('stdpipe');"
        "from stdpipe.sfft import SFFTResult, solve; from stdpipe.subtraction import run_sfft, _build_err_map;"
        "import skyloom.subtraction.sfft as s; assert SFFTResult is s.SFFTResult and run_sfft is s.run_sfft"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- native ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exposures():
    return simulate_pair(3, 320, n_stars=60, n_transients=0)


@pytest.mark.parametrize("pixels", ["boxes", "all"])
def test_native_subtraction(exposures, pixels):
    pair = exposures
    options = SfftOptions(pixels=pixels, spatial_order=1, background_order=1, convolve="template")
    result = subtract(pair.science, pair.template, options)
    assert result.statistics["pixels"] == pixels
    # of the two Moffat profiles, parts that differ by 1.7 % lie beyond the kernel's half width of 8 pixels
    assert result.statistics["kernel_sum"] == pytest.approx(1 / pair.flux_ratio, rel=1e-2)
    assert result.convolved == "template"
    usable = result.usable
    z = result.image[usable] / np.sqrt(result.variance[usable])
    # 100 000 pixels; stars whose model is not perfect are among them
    assert 1.4826 * np.median(np.abs(z)) == pytest.approx(1.0, abs=0.02)
    assert abs(result.statistics["noise_ratio"] - 1) < 0.02
    side = 2 * result.kernel.half + 1
    assert result.kernel.image_at(5, 300).shape == (side, side)
    assert set(result.stamps.colnames) == {"x", "y", "snr", "chi2", "used"}


def test_flux_ratio_that_varies_is_found(exposures):
    pair = exposures
    options = SfftOptions(spatial_order=1, background_order=1, kernel_half_width=5, convolve="template")
    sky = np.float32(300)
    transparency = np.linspace(0.92, 1.08, 320, dtype=np.float32)[None, :]
    clouded = pair.science.replace(data=sky + transparency * (pair.science.data - sky))
    for science, expected, room in ((pair.science, 1.0, 1e-4), (clouded, 1.08 / 0.92, 0.03)):
        kernel = subtract(science, pair.template, options).kernel
        # 60 stars, of which some ten are bright, tell the slope to 1 %
        assert kernel.sum_at(319, 160) / kernel.sum_at(0, 160) == pytest.approx(expected, abs=room)


def test_sources_beyond_the_image_count_for_nothing(exposures):
    options = SfftOptions(pixels="all", spatial_order=1, background_order=1, kernel_half_width=4, convolve="template")
    sources = detect_sources(exposures.science)["x", "y", "flux"]
    known = subtract(exposures.science, exposures.template, options, sources=sources)
    sources.add_row((319.5, 20.0, 1e7))
    sources.add_row((-40.0, 1e4, 1e7))
    found = subtract(exposures.science, exposures.template, options, sources=sources)
    np.testing.assert_array_equal(found.image, known.image)


def test_wings_hold_what_lies_beyond_the_pixels_of_a_kernel():
    pair = simulate_pair(2, 320, n_stars=80, n_galaxies=0, n_transients=0, beta=2.5)
    # the bright stars tell the sum to 0.2 %; cut off at its pixels, the kernel would have a sum 2 % too low
    result = subtract(pair.science, pair.template, SfftOptions(spatial_order=1, convolve="template"))
    assert result.statistics["kernel_sum"] == pytest.approx(1 / pair.flux_ratio, rel=7e-3)
    assert result.statistics["kernel_wings"] > 0.01
    kernel = result.kernel
    assert kernel.half > kernel.core.half == result.statistics["kernel_half_width"]
    assert kernel.image_at(200, 200).sum() == pytest.approx(kernel.sum_at(200, 200))
    image = np.zeros((121, 121), np.float32)
    image[60, 60] = 1
    far = kernel.convolve(image).data
    border = 60 - kernel.half
    expected = np.zeros(image.shape)
    expected[border:-border, border:-border] = kernel.polynomial.planes[0]  # the place of the point: near X = Y = -0.7
    ring = np.hypot(*np.indices(image.shape) - 60) > 1.5 * kernel.core.half
    np.testing.assert_allclose(far[ring], expected[ring], atol=1e-7)


def test_native_score_is_calibrated(exposures):
    pair = exposures
    result = subtract(pair.science, pair.template, SfftOptions(spatial_order=1, convolve="template"))
    scored = score(result, pair.science_psf)
    # 3000 independent places: 1.3 %
    assert 1.4826 * np.median(np.abs(scored.significance[scored.valid])) == pytest.approx(1.0, abs=0.04)


def test_native_convolves_the_sharper_image(exposures):
    pair = exposures
    options = SfftOptions(spatial_order=0, kernel_half_width=5)
    swapped = subtract(pair.template, pair.science, options)
    assert swapped.convolved == "science"
    usable = swapped.usable
    z = swapped.image[usable] / np.sqrt(swapped.variance[usable])
    assert 1.4826 * np.median(np.abs(z)) == pytest.approx(1.0, abs=0.05)


def test_options_pick_the_pixels_by_crowding():
    rng = np.random.default_rng(4)
    planes = Planes(np.ones((200, 200)), np.ones((200, 200)), np.ones((200, 200), bool))
    few, many = rng.uniform(10, 190, (8, 2)), rng.uniform(0, 199, (400, 2))
    for xy, crowded in ((few, False), (many, True)):
        region, stars = _pixels(planes.usable, xy, 3.0, SfftOptions(), needed=100)
        assert (region is None) == crowded
        assert len(stars) > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"convolve": "both"},
        {"pixels": "some"},
        {"spatial_order": 5},
        {"flux_order": 3},
        {"ridge": -1.0},
        {"max_lost": -0.1},
    ],
)
def test_options_are_checked(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        SfftOptions(**wrong)


def test_method_and_options_go_together():
    assert isinstance(DifferenceOptions(method="sfft").matching, SfftOptions)
    assert isinstance(DifferenceOptions().matching, AlardLuptonOptions)
    assert DifferenceOptions(subtraction=SfftOptions(spatial_order=1)).matching.spatial_order == 1
    with pytest.raises(InputError, match="AlardLuptonOptions"):
        DifferenceOptions(method="alard-lupton", subtraction=SfftOptions())


def test_pipeline_with_sfft(exposures, tmp_path):
    pair = exposures
    options = DifferenceOptions(method="sfft", align="none", subtraction=SfftOptions(spatial_order=1))
    result = difference(pair.science, pair.template, options=options)
    assert result.diagnostics["noise_std"] == pytest.approx(1.0, abs=0.03)
    again = read_difference(result.write(tmp_path / "d.fits"))
    np.testing.assert_allclose(again.kernel.image_at(9, 9), result.kernel.image_at(9, 9), atol=1e-6)


def test_a_strip_without_room_for_the_kernel_is_one_typed_error(exposures):
    strips = [
        one.replace(data=one.data[:16], variance=one.variance[:16], mask=one.mask[:16])
        for one in (exposures.science, exposures.template)
    ]
    with pytest.raises(TooFewPixelsError, match="0 may be used"):
        subtract(*strips, SfftOptions())
