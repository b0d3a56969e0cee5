"""Interpolating splines with masks and variances, against dense linear systems."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import spline_oracle as oracle
from skyloom import _kernels
from skyloom.exposure import Exposure, MaskBit
from skyloom.resampling import resample
from skyloom.resampling.kernels import polynomial_table
from skyloom.resampling.spline import cardinal_spline, filled, spline_coefficients

DEGREES = (3, 5)


def turned(xy):
    return xy @ np.array([[0.8, 0.35], [-0.35, 0.8]]) + [np.sqrt(3), 7.3217]


@pytest.mark.parametrize("degree", DEGREES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=st.tuples(st.integers(2, 25), st.integers(2, 25)))
def test_coefficients_solve_the_linear_system(degree, seed, shape):
    image = np.random.default_rng(seed).normal(100, 30, shape)
    found = spline_coefficients(Exposure(image), degree)
    # the poles of the filter amplify rounding by the norm of its inverse, at most 9 per axis for degree 3 and 60 for 5
    np.testing.assert_allclose(found, oracle.coefficients(image, degree), rtol=0, atol=1e-9)


@pytest.mark.parametrize("degree", DEGREES)
def test_the_cardinal_spline_is_one_at_its_pixel_and_zero_at_all_others(degree):
    u = np.arange(-120, 121) / 20
    np.testing.assert_allclose(cardinal_spline(u, degree), oracle.cardinal_spline(u, degree), atol=1e-11)
    np.testing.assert_allclose(cardinal_spline(np.arange(-6.0, 7), degree), np.arange(-6, 7) == 0, atol=1e-14)
    beyond = np.abs(cardinal_spline(np.linspace(5, 9, 401), degree)).max()
    assert beyond < {3: 7.1e-4, 5: 6e-3}[degree]  # what the documentation says


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    share=st.sampled_from([0.05, 0.4, 0.9, 1.0]),
)
def test_fill_is_by_the_neighbours_of_row_and_column(seed, shape, share):
    rng = np.random.default_rng(seed)
    data, usable = rng.normal(10, 3, shape), rng.random(shape) > share
    before = data.copy()
    np.testing.assert_allclose(filled(data, usable), oracle.filled(data, usable), rtol=1e-12)
    np.testing.assert_array_equal(data, before)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 5e-3)])
def test_values_are_those_of_the_spline(degree, dtype, tolerance):
    """Wherever nothing is lost; float32 rounds the coefficients, up to 300, and 36 terms, at 6e-8 each."""
    rng = np.random.default_rng(2)
    data = rng.normal(100, 30, (40, 43)).astype(dtype)
    mask = np.zeros(data.shape, np.uint32)
    mask[20, 22] = MaskBit.BAD
    result = resample(
        Exposure(data, mask=mask), turned, (45, 44), method=f"spline{degree}", conserve="surface brightness"
    )
    c = oracle.coefficients(oracle.filled(data, mask == 0), degree)
    clean = result.mask == 0
    assert clean.sum() > 500
    y, x = np.nonzero(clean)
    expected = [oracle.value(c, *p, degree) for p in turned(np.column_stack([x, y]).astype(float))]
    np.testing.assert_allclose(result.data[clean], expected, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(result.coverage[clean], 1)


@pytest.mark.parametrize("degree", DEGREES)
def test_variance_is_by_the_squares_of_the_cardinal_spline(degree):
    rng = np.random.default_rng(3)
    variance = rng.uniform(1, 9, (40, 43))
    result = resample(Exposure(variance, variance), turned, (45, 44), method=f"spline{degree}")
    y, x = np.nonzero(result.mask == 0)
    area = 0.8**2 + 0.35**2
    for i, j, (u, v) in zip(x, y, turned(np.column_stack([x, y]).astype(float)), strict=True):
        wx = oracle.cardinal_spline(u - np.arange(43), degree)
        wy = oracle.cardinal_spline(v - np.arange(40), degree)
        # what the weights beyond 5 pixels sum to, 7e-4 and 6e-3, is shared by the ten taps of each axis: twice that on
        # two axes, over squares that sum to 0.4 or more
        expected = area**2 * wy**2 @ variance @ wx**2
        assert result.variance[j, i] == pytest.approx(expected, rel={3: 7e-4, 5: 6e-3}[degree])


@pytest.mark.parametrize("degree", DEGREES)
def test_masked_pixels_count_no_farther_than_is_said(degree):
    """Whatever lies under a mask changes nothing; pixels beyond 5 pixels of it are clean."""
    rng = np.random.default_rng(4)
    data = rng.normal(100, 3, (50, 50))
    mask = np.zeros(data.shape, np.uint32)
    mask[24:26, 24:26] = MaskBit.SATURATED
    results = []
    for garbage in (100.0, 1e9):
        dirty = np.where(mask != 0, garbage, data)
        results.append(resample(Exposure(dirty, np.ones(data.shape), mask), turned, (50, 50), method=f"spline{degree}"))
    for plane in ("data", "variance", "mask", "coverage"):
        np.testing.assert_array_equal(getattr(results[0], plane), getattr(results[1], plane))
    y, x = np.mgrid[:50, :50]
    at = turned(np.column_stack([x.ravel(), y.ravel()]).astype(float)).reshape(50, 50, 2)
    inner = ((at > 5) & (at < 44)).all(axis=2)
    far = inner & (np.abs(at - 24.5) > 5.5).any(axis=2)
    assert (results[0].mask[far] == 0).all()
    assert (results[0].coverage[far] == 1).all()
    near = inner & ~far
    assert (results[0].coverage[near & ~results[0].usable] < 1).all()
    assert (~results[0].usable[near]).any()


def test_the_kernel_refuses_splines_of_other_kinds():
    data = np.ones((20, 20), np.float32)
    arguments = (data, None, None, None, np.full((1, 2), 9.5))
    rest = (31, 1, 16, 32, 0.1, np.zeros(1, np.float32), None, np.zeros(1, np.uint32))
    for method, degree in (("spline3", 4), ("lanczos3", 3)):
        with pytest.raises(ValueError, match="degree 3 or 5"):
            _kernels.interpolate(
                *arguments, polynomial_table(method, np.float32), *rest, spline=data, spline_degree=degree
            )


DIGEST_METHODS = ("spline3", "spline5")


def test_any_band_of_rows_gives_the_same_bits(monkeypatch):
    rng = np.random.default_rng(5)
    exposure = Exposure(
        rng.normal(size=(200, 210)).astype(np.float32), np.ones((200, 210)), rng.random((200, 210)) < 0.01
    )
    for method in DIGEST_METHODS:
        planes = []
        for threads in ("1", "3"):
            monkeypatch.setenv("SKYLOOM_NUM_THREADS", threads)
            result = resample(exposure, turned, (220, 200), method=method)
            planes.append((result.data, result.variance, result.mask, result.coverage))
        for one, other in zip(*planes, strict=True):
            np.testing.assert_array_equal(one, other)
