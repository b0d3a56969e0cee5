"""The loops over the pixels of stamps, against plain NumPy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import convolve

sys.path.insert(0, str(Path(__file__).parent))

from reference import stamps_oracle
from skyloom import _kernels
from skyloom.convolution import convolve_stamps

EPS = np.finfo(np.float32).eps


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.booleans(), st.integers(1, 6))
def test_sub_stamps_are_those_of_the_plain_search(seed, half, positions, most):
    rng = np.random.default_rng(seed)
    ny, nx = rng.integers(4 * half + 2, 40, 2)
    # few different values, so that there are plateaus and ties
    data = rng.integers(0, 12, (ny, nx)).astype(np.float32)
    good = rng.random((ny, nx)) > 0.03
    data[~good] = 0
    core, room = int(rng.integers(0, half + 1)), int(rng.integers(half, half + 3))
    cell = (
        int(rng.integers(0, 3)),
        int(nx - rng.integers(1, 4)),
        int(rng.integers(0, 3)),
        int(ny - rng.integers(1, 4)),
    )
    args = (data, good, cell, (room, nx - 1 - room, room, ny - 1 - room), (half, core), (1.5, 6.2, 10.5), 0.5)
    tried = np.column_stack([rng.integers(-2, nx + 2, 8), rng.integers(-2, ny + 2, 8)]) if positions else None
    old = [(float(half), float(half), 3.0)][: most - 1]
    expected = stamps_oracle.find_substamps(*args, tried, old, most)
    found = np.zeros((most, 3))
    found[: len(old)] = np.array(old).reshape(-1, 3)
    count = _kernels.find_substamps(*args, tried, found, len(old))
    np.testing.assert_allclose(found[:count], np.array(expected).reshape(-1, 3), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.floats(1.5, 4))
def test_the_sky_is_that_of_plain_numpy(seed, size, clip):
    rng = np.random.default_rng(seed)
    # few different values in half of the cases: ties, and intervals of no length
    pixels = rng.normal(100, 10, size) if seed % 2 else rng.integers(-3, 4, size)
    pixels = np.sort((pixels + (rng.random(size) < 0.1) * 300).astype(np.float32))
    assert _kernels.sky_statistics(pixels, clip) == stamps_oracle.sky_statistics(pixels, clip)


class Stamps:
    """The arrays of a fit with random pixels."""

    def __init__(self, seed, n, size):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(1, 4))
        self.planes = rng.normal(size=(count, n + 1, size)).astype(np.float32)
        self.target, self.convolved = rng.uniform(0.5, 2, (2, count, size)).astype(np.float32)
        self.good = rng.random((count, size)) > 0.3
        self.signal, self.residual = rng.normal(size=(2, count, size)).astype(np.float32)
        self.rows = rng.permutation(count)[: int(rng.integers(0, count + 1))]
        self.eps = float(rng.uniform(0, 0.5))
        self.variance = self.target.astype(float) + self.convolved + (self.eps * self.signal.astype(float)) ** 2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 90), st.integers(1, 3))
def test_the_equations_of_stamps_are_weighted_sums(seed, n, size, step):
    s = Stamps(seed, n, size)
    count = len(s.planes)
    grams, moments, noise = np.full((count, n, n), -7.0), np.full((count, n), -7.0), np.full(count, -7.0)
    _kernels.stamp_sums(s.planes, s.target, s.convolved, s.good, s.signal, s.eps, step, s.rows, grams, moments, noise)
    for k in range(count):
        if k not in s.rows:
            assert (grams[k] == -7).all()
            assert (moments[k] == -7).all()
            assert noise[k] == -7
            continue
        args = s.variance[k], s.good[k], s.convolved[k], step
        expected = stamps_oracle.stamp_sums(s.planes[k].astype(float), *args)
        absolute = stamps_oracle.stamp_sums(np.abs(s.planes[k]).astype(float), *args)
        assert np.array_equal(grams[k], grams[k].T)
        # rounding of the weights, of the weighted planes and of as many additions, in single precision
        for got, wanted, size_of in zip((grams[k], moments[k], noise[k]), expected, absolute, strict=True):
            assert (np.abs(got - wanted) <= EPS * (size + 10) * size_of).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 90))
def test_residuals_of_stamps_and_their_merits(seed, n, size):
    s = Stamps(seed, n, size)
    rng = np.random.default_rng(seed)
    count, n_signal = len(s.planes), int(rng.integers(0, n + 1))
    local = rng.normal(size=(count, n)).astype(np.float32)
    signal, residual, merits = s.signal.copy(), s.residual.copy(), np.full(count, -7.0)
    _kernels.stamp_residuals(s.planes, local, n_signal, s.rows, signal, residual)
    most = float(rng.uniform(0.1, 3))
    good = s.good.copy()
    good[0] = False
    _kernels.stamp_merits(s.residual, s.signal, s.target, s.convolved, good, s.eps, most, s.rows, merits)
    for k in range(count):
        if k not in s.rows:
            assert np.array_equal(signal[k], s.signal[k])
            assert np.array_equal(residual[k], s.residual[k])
            assert merits[k] == -7
            continue
        parts = local[k, :, None].astype(float) * s.planes[k, :-1]
        limit = EPS * (n + 4) * (np.abs(parts).sum(axis=0) + np.abs(s.planes[k, -1]))  # rounding of the sums
        assert (np.abs(signal[k] - parts[:n_signal].sum(axis=0)) <= limit).all()
        assert (np.abs(residual[k] - (s.planes[k, -1] - parts.sum(axis=0))) <= limit).all()
        ratios = np.minimum(s.residual[k].astype(float) ** 2 / s.variance[k], most)[good[k]]
        if not len(ratios):
            assert np.isnan(merits[k])
        else:
            assert abs(merits[k] - ratios.mean()) <= 10 * EPS * ratios.mean()  # rounding of each ratio


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.sampled_from([np.float32, np.float64]))
def test_stamps_are_filtered_as_by_plain_correlation(seed, half, dtype):
    rng = np.random.default_rng(seed)
    width, n_x = 2 * half + 1, int(rng.integers(1, 4))
    first = np.concatenate([[0], np.cumsum(rng.integers(0, 4, n_x))]).astype(np.int64)
    # zeros at the ends are skipped
    along_x, along_y = (
        (rng.normal(size=(n, width)) * (rng.random((n, width)) > 0.4)).astype(dtype) for n in (n_x, first[-1])
    )
    stamp = rng.normal(size=rng.integers(width, width + 25, 2)).astype(dtype)
    out = np.empty((first[-1], stamp.shape[0] - 2 * half, stamp.shape[1] - 2 * half), dtype)
    _kernels.filter_stamp(stamp, along_x, along_y, first, out)
    largest = [np.abs(a).max(initial=0) for a in (stamp, along_x, along_y)]
    np.testing.assert_allclose(
        out,
        stamps_oracle.filter_stamp(stamp.astype(float), along_x.astype(float), along_y.astype(float), first),
        rtol=0,
        atol=float(np.finfo(dtype).eps * 4 * width**2 * np.prod(largest)),  # rounding of so many additions
    )


def test_kernels_of_stamps_refuse_arrays_that_do_not_fit():
    data, good, found = np.zeros((20, 20), np.float32), np.ones((20, 20), bool), np.zeros((3, 3))
    rest = ((2, 2), (0.0, 1.0, 9.0), 0.5, None, found)
    for cell, middles, count in (
        ((0, 20, 0, 19), (4, 15, 4, 15), 0),
        ((0, 19, 0, 19), (1, 15, 4, 15), 0),
        ((0, 19, 0, 19), (4, 15, 4, 18), 0),
        ((0, 19, 0, 19), (4, 15, 4, 15), 4),
    ):
        with pytest.raises(ValueError, match=r"cell|sub-stamps|found"):
            _kernels.find_substamps(data, good, cell, middles, *rest, count)
    with pytest.raises(ValueError, match="pixels"):
        _kernels.sky_statistics(np.zeros(0, np.float32), 3.0)
    planes, plane, rows, sums = np.zeros((2, 4, 9), np.float32), np.zeros((2, 9), np.float32), np.arange(2), np.zeros(2)
    good, short, local = np.ones((2, 9), bool), np.zeros((2, 8), np.float32), np.zeros((2, 3), np.float32)
    for values, which, n in ((short, rows, 3), (plane, rows + 1, 3), (plane, rows - 1, 3), (plane, rows, 4)):
        with pytest.raises(ValueError, match=r"same stamps|no stamp|grams"):
            _kernels.stamp_sums(
                planes, plane, plane, good, values, 0.0, 1, which, np.zeros((2, n, n)), np.zeros((2, n)), sums
            )
        with pytest.raises(ValueError, match=r"same stamps|no stamp|n_signal"):
            _kernels.stamp_residuals(planes, local, n, which, plane.copy(), values.copy())
        with pytest.raises(ValueError, match=r"same stamps|no stamp|merit"):
            _kernels.stamp_merits(plane, plane, plane, values, good, 0.0, 1.0, which, np.zeros(5 - n))
    taps, first = np.zeros((1, 5), np.float32), np.array([0, 1])
    with pytest.raises(ValueError, match="out"):
        _kernels.filter_stamp(data, taps, taps, first, np.zeros((1, 16, 15), np.float32))
    with pytest.raises(ValueError, match="first"):
        _kernels.filter_stamp(data, taps, taps, np.array([0, 2]), np.zeros((1, 16, 16), np.float32))


@pytest.mark.parametrize("shape", [(1, 9, 7), (5, 40, 61), (0, 20, 20)])
def test_each_stamp_is_convolved_with_its_own_kernel(shape):
    rng = np.random.default_rng(8)
    stamps, kernels = rng.random(shape).astype(np.float32), rng.normal(size=(shape[0], 5, 3))
    stamps.flags.writeable = False
    out = convolve_stamps(stamps, kernels)
    assert out.shape == (shape[0], shape[1] - 4, shape[2] - 2)
    for got, stamp, kernel in zip(out, stamps, kernels, strict=True):
        expected = convolve(stamp.astype(float), kernel, mode="valid")
        np.testing.assert_allclose(got, expected, rtol=0, atol=EPS * 20 * np.abs(kernel).sum())
