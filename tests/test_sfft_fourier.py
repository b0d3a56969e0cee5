"""The Fourier form of the delta-function fit against dense least squares."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, gaussian_filter

import fake_cupy
from skyloom.errors import InputError, ShapeError, SubtractionError, TooFewPixelsError
from skyloom.subtraction.sfft.fourier import BSplines, FourierOptions, Polynomials, subtract_fourier

BASES = [Polynomials(0), Polynomials(1), Polynomials(2), BSplines(1, 1), BSplines(2, 2)]


def functions(basis, shape):
    ny, nx = shape
    along = basis.axes(np.linspace(-1, 1, nx), np.linspace(-1, 1, ny))
    return along[1][:, :, None] * along[0][:, None, :]


def dense(science, template, target, options):
    """Least squares over the target pixels, with every column written out; shifts are rolls."""
    half = options.half
    shifts = [(dy, dx) for dy in range(-half, half + 1) for dx in range(-half, half + 1)]
    terms = functions(options.kernel, science.shape)
    rolled = np.array([[np.roll(term * template, shift, (0, 1)) for shift in shifts] for term in terms])
    middle = len(shifts) // 2
    zero_sum = [rolled[s, a] - rolled[s, middle] for s in range(len(terms)) for a in range(len(shifts)) if a != middle]
    peaks = rolled[:, middle]
    if options.constant_ratio:
        peaks = np.tensordot(options.kernel.constant(), peaks, axes=1)[None]
    columns = np.concatenate([peaks, zero_sum, functions(options.background, science.shape)])
    x, *_ = np.linalg.lstsq(columns[:, target].T, science[target], rcond=None)
    return np.tensordot(x, columns, axes=1)


@settings(max_examples=8, deadline=None)
@given(
    shape=st.tuples(st.integers(34, 48), st.integers(34, 48)),
    half=st.integers(1, 2),
    kernel=st.sampled_from(BASES),
    background=st.sampled_from(BASES[:3]),
    constant=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_model_is_that_of_least_squares(  # noqa: PLR0917  what hypothesis varies
    shape, half, kernel, background, constant, seed
):
    rng = np.random.default_rng(seed)
    template = rng.normal(size=shape)
    template -= np.median(template[half:-half, half:-half])
    science = 0.8 * template + 0.4 * np.roll(template, 1, axis=1) + rng.normal(0, 0.3, shape)
    science -= np.median(science[half:-half, half:-half])
    options = FourierOptions(half, kernel, background, constant, 0.0, "cpu")
    fit = subtract_fourier(science, template, options=options)
    target = np.zeros(shape, bool)
    target[half:-half, half:-half] = True
    expected = dense(science, template, target, options)
    np.testing.assert_allclose(fit.matched[target], expected[target], atol=1e-5)
    np.testing.assert_allclose(fit.image[target], (science - fit.matched)[target], atol=1e-12)
    sums = [fit.kernel_at(x, y).sum() for x, y in ((0, 0), (shape[1] - 1, 3), (10, 20))]
    if constant:
        assert np.ptp(sums) < 1e-6


@pytest.mark.parametrize("basis", BASES)
def test_constant_function_is_in_each_basis(basis):
    np.testing.assert_allclose(np.tensordot(basis.constant(), functions(basis, (12, 17)), axes=1), 1.0, atol=1e-12)


def stars(shape, fwhm, *, flux, rng):
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.zeros(shape)
    for _ in range(40):
        x0, y0, f = rng.uniform(0, shape[1]), rng.uniform(0, shape[0]), 10 ** rng.uniform(3, 4.5)
        image += flux * f * np.exp(-4 * np.log(2) * ((x - x0) ** 2 + (y - y0) ** 2) / fwhm**2) / fwhm**2 / 1.1331
    return image


def test_masked_pixels_have_no_influence():
    shape = 120, 130
    template = stars(shape, 2.5, flux=1.0, rng=np.random.default_rng(1)) + 100
    noise = np.random.default_rng(2).normal(0, 3, (2, *shape))
    science = stars(shape, 3.3, flux=1.3, rng=np.random.default_rng(1)) + 300 + noise[0]
    template += 0.3 * noise[1]
    usable = np.ones(shape, bool)
    usable[40:48, 50:60] = False
    options = FourierOptions(4, Polynomials(1), Polynomials(1), backend="cpu")
    first = subtract_fourier(science, template, usable, options)
    for value in (1e5, np.nan):
        bad_science, bad_template = science.copy(), template.copy()
        bad_science[~usable] = bad_template[~usable] = value
        again = subtract_fourier(bad_science, bad_template, usable, options)
        np.testing.assert_allclose(again.kernels, first.kernels, atol=1e-9)
        assert np.isfinite(again.image).all()
    far = np.ones(shape, bool)
    far[:8] = far[-8:] = far[:, :8] = far[:, -8:] = far[32:56, 42:68] = False
    assert np.std(first.image[far]) == pytest.approx(3.0, rel=0.1)
    # 40 stars of S/N up to 1000: the ratio is known to 0.1 %; the kernel has noise of the template as well
    assert first.kernel_at(60, 60).sum() == pytest.approx(1.3, rel=0.01)
    raised = subtract_fourier(science + 1000, template + 1000, usable, options)
    assert np.max(np.abs(raised.image - first.image)[usable]) < 1e-3 * 3.0


def test_rims_of_saturated_stars_do_not_delay_the_solution():
    shape = 160, 170
    y, x = np.mgrid[: shape[0], : shape[1]]
    rng = np.random.default_rng(5)
    template = stars(shape, 4.0, flux=1.0, rng=np.random.default_rng(3))
    for x0, y0 in ((40, 50), (120, 30), (90, 110), (150, 155), (20, 140)):
        radius2 = (x - x0) ** 2 + (y - y0) ** 2
        template += 1e6 * (1 + radius2 / 3.0**2) ** -2.5
    usable = template < 6e4
    science = gaussian_filter(template, 1.0, radius=6) + rng.normal(0, 5, shape)
    template += rng.normal(0, 1, shape)
    options = FourierOptions(6, Polynomials(1), backend="cpu")
    fit = subtract_fourier(science, template, usable, options)
    assert fit.steps < 100  # guided by transforms alone, it takes more than 300
    far = ~binary_dilation(~usable, np.ones((13, 13)))
    far[:7] = far[-7:] = far[:, :7] = far[:, -7:] = False
    assert np.std(fit.image[far]) == pytest.approx(5, rel=0.1)  # the template's noise, convolved, adds 0.4 %


def test_cost_does_not_depend_on_the_kernel(monkeypatch):
    from skyloom.subtraction.sfft import fourier

    rng = np.random.default_rng(0)
    science, template = rng.normal(size=(2, 96, 96))
    counts = []
    original = fourier._ScipyFft.rfft2
    for half in (1, 4):
        calls = []
        monkeypatch.setattr(
            fourier._ScipyFft, "rfft2", staticmethod(lambda image, calls=calls: calls.append(1) or original(image))
        )
        system = fourier._System(
            template, np.ones((96, 96), bool), FourierOptions(half, backend="cpu"), np, fourier._ScipyFft
        )
        system.step(system.project(science))
        counts.append(len(calls))
    assert counts[0] == counts[1]


def test_typed_errors():
    rng = np.random.default_rng(0)
    science, template = rng.normal(size=(2, 40, 40))
    with pytest.raises(ShapeError):
        subtract_fourier(science, template[1:])
    with pytest.raises(TooFewPixelsError):
        subtract_fourier(science, np.full_like(template, np.nan))
    with pytest.raises(TooFewPixelsError, match="unknowns"):
        subtract_fourier(science, template, options=FourierOptions(8, backend="cpu"))
    with pytest.raises(SubtractionError, match="no structure"):
        subtract_fourier(science, np.ones_like(template), options=FourierOptions(1, Polynomials(0), backend="cpu"))
    with pytest.raises(InputError, match="backend"):
        FourierOptions(backend="tpu")
    with pytest.raises(InputError, match="half"):
        FourierOptions(half=0)


def test_gpu_gives_the_same_or_says_that_there_is_none():
    rng = np.random.default_rng(0)
    science, template = rng.normal(size=(2, 60, 64))
    options = {"half": 2, "kernel": Polynomials(1), "background": Polynomials(0)}
    on_cpu = subtract_fourier(science, template, options=FourierOptions(**options, backend="cpu"))
    try:
        on_gpu = subtract_fourier(science, template, options=FourierOptions(**options, backend="gpu"))
    except InputError as error:
        assert "CuPy" in str(error) or "cupy" in str(error)  # noqa: PT017
        return
    np.testing.assert_allclose(on_gpu.image.get(), on_cpu.image, atol=1e-9)


@pytest.mark.parametrize("shape_of", [Polynomials(1), BSplines(1, 2)], ids=["polynomials", "b-splines"])
@pytest.mark.parametrize("on_device", [False, True])
def test_code_for_the_device_calls_nothing_of_numpy(monkeypatch, shape_of, on_device):
    template = np.random.default_rng(3).gamma(0.3, 100.0, (60, 66))
    science = 1.3 * np.roll(template, 1, axis=0)
    usable = np.ones(template.shape, bool)
    usable[20:23, 30:34] = False
    options = FourierOptions(half=2, kernel=shape_of, background=shape_of)
    expected = subtract_fourier(science, template, usable, replace(options, backend="cpu"))
    cupy = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    images = (science, template, usable)
    if on_device:
        images = tuple(cupy.asarray(image) for image in images)
        with pytest.raises(InputError, match="CuPy arrays"):
            subtract_fourier(*images, replace(options, backend="cpu"))
    fit = subtract_fourier(*images, replace(options, backend="auto" if on_device else "gpu"))
    assert isinstance(fit.image, cupy.ndarray)
    np.testing.assert_allclose(fit.image.get(), expected.image, atol=1e-6)
    np.testing.assert_allclose(fit.kernel_at(30, 30), expected.kernel_at(30, 30), atol=1e-8)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.module(devices=0))
    with pytest.raises(InputError, match="no device"):
        subtract_fourier(science, template, usable, replace(options, backend="gpu"))
