"""The interpolation kernel against its oracle, and what it promises about masks."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.interpolate_oracle import HALF, interpolate_one
from reference.interpolate_oracle import interpolate as oracle
from skyloom import _kernels
from skyloom.errors import InputError
from skyloom.exposure import UNUSABLE, MaskBit
from skyloom.resampling.kernels import kernel_weight, polynomial_table, tap_weights

METHODS = sorted(HALF)
MAX_LOST = 0.1


def interpolate(data, variance, mask, xy, method):
    table = polynomial_table(method, data.dtype)
    clean = None
    if mask is not None:
        clean = np.empty(mask.shape, np.uint8)
        _kernels.clean_windows(mask, table.shape[1], 0, len(mask), clean)
    n = len(xy)
    value, bits = np.full(n, np.nan, data.dtype), np.full(n, 77, np.uint32)
    noise = None if variance is None else np.full(n, np.nan, data.dtype)
    rules = (int(UNUSABLE), int(MaskBit.NO_DATA), int(MaskBit.EDGE), int(MaskBit.SPREAD), MAX_LOST)
    coverage = np.full(n, np.nan, np.float32)
    _kernels.interpolate(data, variance, mask, clean, xy, table, *rules, value, noise, bits, coverage=coverage)
    return value, noise, bits, coverage


def image(seed, shape, dtype, masked):
    rng = np.random.default_rng(seed)
    data = rng.normal(100, 30, shape).astype(dtype)
    variance = rng.uniform(1, 9, shape).astype(dtype)
    bits = rng.choice([1, 2, 4, 8, 32, 64], shape)
    mask = np.where(rng.random(shape) < masked, bits, 0).astype(np.uint32)
    return data, variance, mask


def tolerance(dtype):
    # float32: about 80 roundings (2^-24 each) of terms that sum to at most 2.4 max |data|, and of their squares
    return {"rtol": 0, "atol": 2e-3} if dtype == np.float32 else {"rtol": 0, "atol": 2e-8}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    masked=st.sampled_from([0.0, 0.02, 0.3]),
)
def test_equals_the_oracle(method, dtype, seed, shape, masked):
    data, variance, mask = image(seed, shape, dtype, masked)
    rng = np.random.default_rng(seed + 1)
    xy = rng.uniform(-6, max(shape) + 6, (40, 2))
    xy[::8] = np.round(xy[::8])
    xy[3::8, 0] = np.round(xy[3::8, 0])
    value, noise, bits, coverage = interpolate(data, variance, mask, xy, method)
    expected, expected_noise, expected_bits, covered = oracle(
        data, variance, mask, xy, method=method, max_lost=MAX_LOST
    )
    np.testing.assert_array_equal(bits, expected_bits)
    np.testing.assert_allclose(coverage, covered, rtol=0, atol=1e-5)  # float32 weights of up to 100 pixels
    np.testing.assert_allclose(value, expected, **tolerance(dtype))
    np.testing.assert_allclose(noise, expected_noise, **tolerance(dtype))


@pytest.mark.parametrize("method", METHODS)
def test_polynomials_equal_the_closed_form(method):
    t = fraction = np.linspace(0, 1, 1001)
    u = 2 * fraction - 1
    half = HALF[method]
    for dtype, bound in ((np.float32, 1e-8), (np.float64, 1e-11)):
        table = polynomial_table(method, dtype)
        weights = (t * (1 - t) * np.polynomial.polynomial.polyval(u, table)).T
        weights[:, half - 1] += 1 - t
        weights[:, half] += t
        assert (weights[0] == (np.arange(2 * half) == half - 1)).all()  # a pixel centre
        assert np.abs(weights - tap_weights(method, fraction)).max() < bound
        assert np.abs(weights.sum(axis=1) - 1).max() < 1e-14  # rounding of at most 25 terms


@pytest.mark.parametrize("method", METHODS)
def test_weights_have_the_symmetry_and_support_of_the_kernel(method):
    u = np.arange(-120, 121) / 20
    w = kernel_weight(method, u)
    np.testing.assert_array_equal(w, w[::-1])
    assert (w[np.abs(u) >= HALF[method]] == 0).all()
    assert w[120] == pytest.approx(1, abs=1e-14)


def test_unknown_kernel():
    with pytest.raises(InputError, match="lanczos3"):
        kernel_weight("lanczos9", 0.0)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_flat_image_stays_flat_whatever_is_masked(method, seed):
    _, variance, mask = image(seed, (20, 23), np.float64, 0.1)
    data = np.full(mask.shape, 7.0)
    data[(mask & int(UNUSABLE)) != 0] = 1e30  # garbage under the mask must not matter
    xy = np.random.default_rng(seed).uniform(-3, 25, (200, 2))
    value, _, bits, _ = interpolate(data, variance, mask, xy, method)
    usable = (bits & int(UNUSABLE)) == 0
    assert usable.any()
    np.testing.assert_allclose(value[usable], 7, rtol=1e-13)
    assert (value[~usable] == 0).all()


def test_polynomials_up_to_the_kernel_order_are_reproduced():
    # Keys' kernel has third-order convergence: it reproduces quadratics exactly
    y, x = np.mgrid[:20, :20].astype(float)
    field = lambda x, y: 3 + x - 2 * y + 0.3 * x * x - 0.2 * x * y + 0.1 * y * y  # noqa: E731
    xy = np.random.default_rng(1).uniform(3, 16, (100, 2))
    value, *_ = interpolate(field(x, y), None, None, xy, "cubic")
    np.testing.assert_allclose(value, field(*xy.T), rtol=1e-12)


def test_one_bad_pixel_reaches_no_farther_than_the_kernel():
    data = np.zeros((31, 31), np.float32)
    mask = np.zeros(data.shape, np.uint32)
    mask[15, 15] = MaskBit.SATURATED
    grid = np.stack(np.meshgrid(np.arange(31) + 0.37, np.arange(31) + 0.61), axis=-1).reshape(-1, 2)
    _, _, bits, _ = interpolate(data, None, mask, grid, "lanczos3")
    inside = (np.abs(grid - 15) < 3).all(axis=1)
    interior = (grid > 3).all(axis=1) & (grid < 27).all(axis=1)
    assert (bits[interior & ~inside] == 0).all()
    assert (bits[inside] != 0).all()
    assert set(np.unique(bits[inside])) == {int(MaskBit.SATURATED), int(MaskBit.SPREAD)}
    near = (np.abs(grid - 15) < 0.5).all(axis=1)
    assert (bits[near] == int(MaskBit.SATURATED)).all()


def test_a_pixel_centre_is_copied():
    data, variance, mask = image(3, (12, 12), np.float32, 0.1)
    x, y = np.meshgrid(np.arange(12.0), np.arange(12.0))
    value, noise, bits, _ = interpolate(data, variance, mask, np.stack([x.ravel(), y.ravel()], 1), "lanczos3")
    good = (mask.ravel() & int(UNUSABLE)) == 0
    np.testing.assert_array_equal(value, np.where(good, data.ravel(), 0))
    np.testing.assert_array_equal(noise, np.where(good, variance.ravel(), 0))
    np.testing.assert_array_equal(bits, mask.ravel())


def test_positions_that_are_no_positions():
    data = np.ones((8, 8), np.float32)
    odd = [np.nan, np.inf, -np.inf, 1e300, -1e300, 2.0**63, -10.5]
    xy = np.array([(a, b) for a in odd for b in [3.3, *odd]])
    value, _, bits, _ = interpolate(data, None, None, xy, "lanczos3")
    assert (value == 0).all()
    assert (bits == int(MaskBit.NO_DATA)).all()


def test_edge_or_no_data():
    data = np.ones((20, 20))
    xy = np.array([(0.4, 10.3), (-0.4, 10.3), (-0.7, 10.3), (2.4, 10.3), (19.4, 10.3), (19.7, 10.3)])
    _, _, bits, _ = interpolate(data, None, None, xy, "lanczos3")
    for position, found in zip(xy, bits, strict=True):
        assert (
            found
            == interpolate_one(data, data, np.zeros((20, 20), int), position, method="lanczos3", max_lost=MAX_LOST)[2]
        )
    assert bits[1] == int(MaskBit.EDGE)
    assert bits[2] == int(MaskBit.NO_DATA)
    assert bits[3] == 0
    assert bits[5] == int(MaskBit.NO_DATA)


def test_wrong_arrays_are_refused():
    data = np.ones((8, 8), np.float32)
    xy = np.zeros((4, 2))
    table = polynomial_table("cubic", np.float32)
    with pytest.raises(ValueError, match="outputs"):
        _kernels.interpolate(
            data, None, None, None, xy, table, 1, 1, 1, 1, 0.1, np.zeros(3, np.float32), None, np.zeros(4, np.uint32)
        )
    with pytest.raises(TypeError):
        _kernels.clean_windows(np.zeros((3, 3), np.int64), 6, 0, 3, np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match="stencil"):
        _kernels.expand_grid(
            np.zeros((5, 5, 2)),
            np.full(3, 2, np.int32),
            np.zeros((3, 4)),
            np.zeros(3, np.int32),
            np.zeros((3, 4)),
            np.zeros((3, 3, 2)),
        )


DIGEST = """
import hashlib, numpy as np
from test_interpolate import image, interpolate
for dtype in (np.float32, np.float64):
    data, variance, mask = image(5, (90, 110), dtype, 0.01)
    xy = np.random.default_rng(2).uniform(-4, 112, (5000, 2))
    for method in ("bilinear", "cubic", "lanczos3", "lanczos4"):
        for plane in interpolate(data, variance, mask, xy, method):
            print(hashlib.sha256(plane.tobytes()).hexdigest())
"""


def test_every_instruction_set_gives_the_same_bits():
    outputs = set()
    for level in ("baseline", "avx2", "avx512"):
        env = dict(os.environ, SKYLOOM_SIMD=level, PYTHONPATH=os.pathsep.join(sys.path))
        run = subprocess.run([sys.executable, "-c", DIGEST], env=env, capture_output=True, text=True, check=True)
        outputs.add(run.stdout)
    assert len(outputs) == 1
    assert outputs.pop().count("\n") == 32
