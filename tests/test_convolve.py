import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import convolve2d

from reference import convolve_oracle
from skyloom.convolution import PolynomialKernel, convolve, convolve_varying, exponents, monomials, polynomial
from skyloom.errors import InputError, ShapeError
from skyloom.filters import convolve_full

EPS = np.finfo(np.float32).eps


def make_case(seed, shape, half, order, bad=0.05):
    """Random image, variance and mask, and a kernel that varies over the field and is positive everywhere."""
    rng = np.random.default_rng(seed)
    ny, nx = shape
    data = rng.normal(size=shape).astype(np.float32)
    variance = rng.uniform(0.5, 2, shape).astype(np.float32)
    usable = rng.random(shape) >= bad
    ky, kx = 2 * half[0] + 1, 2 * half[1] + 1
    planes = rng.uniform(-0.03, 0.03, (len(exponents(order)), ky, kx))
    planes[0] = rng.uniform(0.5, 1.5, (ky, kx))
    return data, variance, usable, PolynomialKernel(planes, ((nx - 1) / 2, (ny - 1) / 2), (nx / 2, ny / 2))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 40)),
    half=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    order=st.integers(0, 4),
)
def test_varying_kernel_is_the_sum_over_pixels(seed, shape, half, order):
    data, variance, usable, kernel = make_case(seed, shape, half, order)
    out, _, lost, kept = convolve_oracle.convolve_varying(data, variance, usable, kernel)
    found = convolve_varying(data, kernel, variance, usable)
    hopeless = kept < 0.1
    # float32: each of the <= 25 products and 5 terms of the polynomial rounds to EPS of sum |K d| < 25 * 2 * 4
    tolerance = 25 * EPS * 200
    good = ~hopeless & (kept > 0.1 + tolerance)
    np.testing.assert_allclose(found.data[good], (out / np.where(hopeless, 1, kept))[good], atol=10 * tolerance)
    np.testing.assert_allclose(found.lost[good], lost[good], atol=tolerance)
    assert (found.data[hopeless & (kept < 0.1 - tolerance)] == 0).all()
    assert (found.lost[hopeless & (kept < 0.1 - tolerance)] == 1).all()


def test_variance_is_convolved_with_the_squared_kernel():
    # K^2 is expanded to first order over 16 columns each way: off by t^2 (K'^2 + K K'') with t = 16 / 200, and K' and
    # K'' below 0.2 K for these planes
    data, variance, usable, kernel = make_case(3, (9, 400), (1, 2), 2)
    _, expected, _, kept = convolve_oracle.convolve_varying(data, variance, usable, kernel)
    found = convolve_varying(data, kernel, variance, usable).variance
    np.testing.assert_allclose(found, expected / kept**2, rtol=(16 / 200) ** 2 * 0.24)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), ny=st.integers(1, 12), nx=st.integers(1, 40))
def test_fixed_kernel_has_exact_variance_and_lost_weight(seed, ny, nx):
    data, variance, usable, kernel = make_case(seed, (ny, nx), (2, 1), 0, bad=0.3)
    _, expected, lost, kept = convolve_oracle.convolve_varying(data, variance, usable, kernel)
    found = convolve_varying(data, kernel, variance, usable)
    good = kept > 0.11
    np.testing.assert_allclose(found.variance[good], (expected / np.where(good, kept, 1) ** 2)[good], rtol=50 * EPS)
    np.testing.assert_allclose(found.lost[good], lost[good], atol=50 * EPS)


def test_unusable_pixels_contribute_nothing_whatever_they_hold():
    data, variance, usable, kernel = make_case(5, (40, 50), (3, 3), 2)
    poisoned_data, poisoned_variance = data.copy(), variance.copy()
    poisoned_data[~usable] = np.nan
    poisoned_variance[~usable] = np.inf
    clean, poisoned = (
        convolve_varying(data, kernel, variance, usable),
        convolve_varying(poisoned_data, kernel, poisoned_variance, usable),
    )
    for plane in ("data", "variance", "lost"):
        np.testing.assert_array_equal(getattr(clean, plane), getattr(poisoned, plane))
        assert np.isfinite(getattr(poisoned, plane)).all()


def test_a_level_survives_holes_and_borders():
    _, _, usable, kernel = make_case(6, (40, 50), (3, 3), 2)
    found = convolve_varying(np.full((40, 50), 7.0, np.float32), kernel, None, usable)
    y, x = np.mgrid[:40, :50]
    expected = 7 * kernel.sum_at(x, y)
    np.testing.assert_allclose(found.data, expected, rtol=100 * EPS)  # some 50 additions, each rounds to EPS
    assert found.variance is None


def test_there_is_no_step_where_the_kernel_is_expanded_anew():
    kernel = make_case(7, (4, 640), (1, 1), 3)[3]
    found = convolve_varying(np.ones((4, 640), np.float32), kernel).data[2, 2:-2]
    # the sum is a cubic in x: its fourth differences are rounding only
    assert np.abs(np.diff(found, 4)).max() < 16 * 20 * EPS * np.abs(found).max()


def test_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    data, variance, usable, kernel = make_case(8, (200, 90), (4, 4), 2)
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("SKYLOOM_NUM_THREADS", threads)
        results.append(convolve_varying(data, kernel, variance, usable))
    for plane in ("data", "variance", "lost"):
        np.testing.assert_array_equal(getattr(results[0], plane), getattr(results[1], plane))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("side", [1, 5, 33])
def test_plain_convolution(dtype, side):
    rng = np.random.default_rng(9)
    image, kernel = rng.normal(size=(50, 61)).astype(dtype), rng.normal(size=(side, side + 2))
    usable = rng.random(image.shape) > 0.1
    expected = convolve2d(np.where(usable, image, 0).astype(float), kernel, mode="same")
    found = convolve(image, kernel, usable)
    assert found.dtype == dtype
    # rounding of side^2 products; the FFT spreads it over the image
    np.testing.assert_allclose(found, expected, atol=side**2 * 10 * np.finfo(dtype).eps)
    np.testing.assert_allclose(
        convolve(image, kernel),
        convolve2d(image.astype(float), kernel, mode="same"),
        atol=side**2 * 10 * np.finfo(dtype).eps,
    )


def test_inputs_may_be_views_and_are_not_changed():
    image = np.random.default_rng(1).normal(size=(40, 40)).astype(np.float32)
    kernel = np.ones((3, 3))
    view = image.T[::-1]
    before = image.copy()
    np.testing.assert_allclose(convolve(view, kernel), convolve2d(view, kernel, mode="same"), atol=9 * 10 * EPS)
    np.testing.assert_array_equal(image, before)


def test_polynomials_agree():
    c = np.random.default_rng(2).normal(size=10)
    x, y = np.arange(7.0)[None, :], np.arange(5.0)[:, None]
    X, Y = np.broadcast_arrays(x, y)
    expected = np.tensordot(c, monomials(X, Y, 3, (3, 2), (4, 5)), axes=1)
    np.testing.assert_allclose(polynomial(c, x, y, (3, 2), (4, 5)), expected, rtol=1e-12)
    assert polynomial(c, 3.0, 2.0, (3, 2), (4, 5)) == pytest.approx(c[0])


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 3, 3), (1, 3)])
def test_kernels_of_other_shapes_are_refused(shape):
    with pytest.raises(ShapeError, match="odd"):
        PolynomialKernel(np.ones(shape))


def test_bad_arguments_are_refused():
    image = np.ones((5, 5), np.float32)
    with pytest.raises(ShapeError, match="odd"):
        convolve(image, np.ones((2, 3)))
    with pytest.raises(InputError, match="finite"):
        convolve(image, np.full((3, 3), np.nan))
    with pytest.raises(ShapeError, match="same"):
        convolve(image, np.ones((3, 3)), np.ones((4, 5), bool))
    with pytest.raises(ShapeError, match="same"):
        convolve_varying(image, PolynomialKernel(np.ones((1, 3, 3))), np.ones((4, 5), np.float32))


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_a_coarser_kernel_stays_within_its_tolerance(order):
    # x_scale of 2048 pixels: blocks of 32 columns are so small that both short cuts are taken, and worth taking
    data, variance, usable, kernel = make_case(11, (9, 400), (2, 2), order, bad=0.01)
    wide = PolynomialKernel(kernel.planes, kernel.centre, (2048.0, 2048.0))
    exact, coarse = (convolve_varying(data, wide, variance, usable, exact=exact) for exact in (True, False))
    # 0.05 % of the kernel's norm, times that of the 25 pixels under it
    size = np.sqrt((wide.planes[0] ** 2).sum() * convolve2d(data**2, np.ones((5, 5)), mode="same"))
    assert (np.abs(coarse.data - exact.data) <= 5e-4 * size + 1e-5).all()
    np.testing.assert_allclose(coarse.variance, exact.variance, rtol=0.02)
    np.testing.assert_allclose(coarse.lost, exact.lost, atol=5e-4)
    if order > 1:
        assert (coarse.data != exact.data).any()
    if order > 0:
        assert (coarse.variance != exact.variance).any()


def test_a_kernel_that_varies_much_is_never_made_coarser():
    data, variance, usable, kernel = make_case(12, (9, 64), (2, 2), 2)  # t = 16 / 32 at the ends of a block
    planes = kernel.planes.copy()
    planes[1:] *= 10
    kernel = PolynomialKernel(planes, kernel.centre, kernel.scale)
    exact, coarse = (convolve_varying(data, kernel, variance, usable, exact=exact) for exact in (True, False))
    for plane in ("data", "variance", "lost"):
        np.testing.assert_array_equal(getattr(coarse, plane), getattr(exact, plane))


@pytest.mark.parametrize("shapes", [((5, 5), (3, 3)), ((7, 4), (2, 9)), ((1, 1), (6, 5)), ((31, 31), (25, 25))])
def test_stamps_are_convolved_to_the_last_pixel(shapes):
    a, b = (np.random.default_rng(3).normal(size=shape) for shape in shapes)
    np.testing.assert_allclose(convolve_full(a, b), convolve2d(a, b), atol=1e-13)  # sums of 600 products
