"""Correlation with filters that vary over the field: its loops against plain NumPy, its terms against their bound."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyloom import filters as filters_module
from skyloom._kernels import SPECTRUM_BYTES, filter_tile, tile_spectrum
from skyloom.filters import Grid, VaryingFilter, correlate
from skyloom.psf.analytic import Profile

LENGTHS = sorted(2**a * 3**b * 5**c for a in range(7) for b in range(4) for c in range(3) if 2**a * 3**b * 5**c <= 100)
KINDS = [np.float32, np.float64]


def spectrum_of(plane, size):
    """Return the transform as the loops keep it."""
    lanes = SPECTRUM_BYTES // plane.itemsize
    out = np.full((-(-(size[1] // 2 + 1) // lanes), size[0], 2, lanes), np.nan, plane.dtype)
    tile_spectrum(plane, size[1], out)
    return out


def as_complex(spectrum, nx):
    """Return the half spectrum as of `numpy.fft.rfft2`, and what fills its last block."""
    values = (spectrum[:, :, 0] + 1j * spectrum[:, :, 1]).transpose(1, 0, 2).reshape(spectrum.shape[1], -1)
    return values[:, : nx // 2 + 1], values[:, nx // 2 + 1 :]


def rounding(kind, size):
    """Return the error of a transform relative to its RMS value: some bits per pass, and there are log2 passes."""
    return 4 * np.finfo(kind).eps * np.log2(size[0] * size[1] + 1)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LENGTHS), st.sampled_from(LENGTHS), st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
def test_spectra_are_those_of_numpy(ny, nx, kind, seed):
    rng = np.random.default_rng(seed)
    plane = rng.normal(size=(rng.integers(1, ny + 1), rng.integers(1, nx + 1))).astype(kind)
    found, beyond = as_complex(spectrum_of(plane, (ny, nx)), nx)
    expected = np.fft.rfft2(plane.astype(np.float64), (ny, nx))
    np.testing.assert_allclose(found, expected, atol=rounding(kind, (ny, nx)) * np.linalg.norm(plane), rtol=0)
    assert not beyond.any()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(LENGTHS), st.sampled_from(LENGTHS), st.sampled_from(KINDS), st.integers(1, 9), st.integers(1, 6),
    st.integers(1, 3), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_tiles_are_sums_of_products_of_transforms(ny, nx, kind, terms, rank, number, seed):  # noqa: PLR0917
    rng = np.random.default_rng(seed)
    stamps, planes = (rng.normal(size=(*shape, ny, nx)).astype(kind) for shape in ((rank, number), (number,)))
    first = int(rng.integers(0, min(ny, nx)))
    rows, columns = int(rng.integers(1, ny - first + 1)), int(rng.integers(1, nx - first + 1))
    mixture = rng.normal(size=(terms, rank)).astype(kind)
    weights = rng.normal(size=(terms, rows, columns)).astype(kind)
    whole = np.full((rows + 3, columns + 4), np.nan, kind)  # a view of it is filled, and nothing else
    transforms = np.array([[spectrum_of(one, (ny, nx)) for one in row] for row in stamps])
    spectra = [spectrum_of(plane, (ny, nx)) for plane in planes]
    filter_tile(transforms, spectra, mixture, weights, nx, first, whole[1:-2, 2:-2])
    products = (np.fft.rfft2(stamps.astype(float)) * np.fft.rfft2(planes.astype(float))).sum(axis=1)
    filtered = np.fft.irfft2(np.tensordot(mixture.astype(float), products, axes=1), (ny, nx)) * ny * nx
    expected = (weights * filtered[:, first : first + rows, first : first + columns]).sum(axis=0)
    # the loops do not divide by the number of pixels; rounding is relative to the products that are summed
    size = np.abs(mixture).sum() * np.abs(weights).max() * np.linalg.norm(stamps) * np.linalg.norm(planes) * ny * nx
    np.testing.assert_allclose(whole[1:-2, 2:-2], expected, atol=rounding(kind, (ny, nx)) * size, rtol=0)
    whole[1:-2, 2:-2] = np.nan
    assert np.isnan(whole).all()


def test_loops_refuse_what_does_not_fit():
    plane = np.zeros((8, 8), np.float32)
    spectrum = spectrum_of(plane, (8, 8))
    weights, mixture, out = np.ones((1, 4, 4), np.float32), np.ones((1, 1), np.float32), np.zeros((4, 4), np.float32)
    good = (spectrum[None, None], [spectrum], mixture, weights, 8, 4, out)
    filter_tile(*good)
    short, odd = spectrum[:, :5].copy(), np.zeros((4, 8), np.float32)[:, ::2]
    for position, wrong in (
        (0, short[None, None]), (1, []), (1, [short]), (2, np.ones((1, 2), np.float32)),
        (3, np.ones((1, 4, 5), np.float32)), (4, 64), (5, 5), (5, -1), (6, odd),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"must|as many"):
            filter_tile(*(wrong if k == position else value for k, value in enumerate(good)))
    with pytest.raises(ValueError, match="larger"):
        tile_spectrum(np.zeros((9, 8), np.float32), 8, spectrum)
    with pytest.raises(ValueError, match="products of 2, 3 and 5"):
        tile_spectrum(plane[:7, :7].copy(), 7, np.zeros((1, 7, 2, 16), np.float32))


class Drifting:
    """A Gaussian whose width and direction change over the field."""

    def __init__(self, shape):
        self.shape = shape

    def stamp(self, x, y):
        ny, nx = self.shape
        return Profile(3 + 1.5 * x / nx, e1=0.3 * np.sin(3 * y / ny)).stamp(8)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
def test_fewer_terms_in_a_tile_keep_the_tolerance(tolerance):
    shape = (600, 900)
    grid = Grid(shape)
    stamps = grid.sample(Drifting(shape).stamp)
    rough, exact = VaryingFilter(stamps, grid, tolerance), VaryingFilter(stamps, grid, 1e-12)
    typical = np.sqrt((stamps**2).sum(axis=(-2, -1)).mean())
    error, terms = [], []
    for y in range(0, 600, 200):
        for x in range(0, 900, 225):
            mixture, weights = rough.within(slice(y, y + 200), slice(x, x + 225), np.float64)
            terms.append(len(mixture))
            for row, column in ((3, 5), (77, 101), (199, 224), (120, 13)):
                found = np.tensordot(mixture.T @ weights[:, row, column], rough.filters, axes=1)[0]
                error.append(((found - exact.image_at(x + column, y + row)) ** 2).sum())
    assert np.mean(terms) < len(rough.filters)
    # the tolerance is that of the mean over a tile, and these are a few pixels of each
    assert np.sqrt(np.mean(error)) < 1.5 * tolerance * typical


def test_instruction_sets_agree_and_threads_do_not_change_a_bit(monkeypatch, tmp_path):
    shape = (150, 130)
    grid = Grid(shape)
    job = VaryingFilter(grid.sample(Drifting(shape).stamp), grid), np.random.default_rng(3).normal(size=shape)
    monkeypatch.setattr(filters_module, "TILE", 64)
    one, three = (correlate([job], threads=count, dtype=np.float32)[0] for count in (1, 3))
    np.testing.assert_array_equal(one, three)
    code = (
        "import numpy as np; from skyloom import filters; from skyloom._kernels import simd_level\n"
        "from test_filters import Drifting\n"
        "filters.TILE = 64; shape = (150, 130); grid = filters.Grid(shape)\n"
        "job = filters.VaryingFilter(grid.sample(Drifting(shape).stamp), grid), "
        "np.random.default_rng(3).normal(size=shape)\n"
        f"np.save(r'{tmp_path}/' + simd_level(), filters.correlate([job], dtype=np.float32)[0])"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    for level in ("baseline", "avx2", "avx512"):  # the processor's best in place of one that it lacks
        subprocess.run(
            [sys.executable, "-c", code], env=dict(os.environ, SKYLOOM_SIMD=level, PYTHONPATH=path), check=True
        )
    assert (tmp_path / "baseline.npy").exists()
    for result in tmp_path.glob("*.npy"):
        # fused or not, sums are rounded a little differently: some 1e-7 of the largest values
        np.testing.assert_allclose(np.load(result), one, atol=3e-6, rtol=0)


@pytest.mark.parametrize("shape", [(60, 75), (300, 280)])
def test_planes_may_go_on_beyond_the_image(shape):
    """With 1 everywhere a filter gives its sum, up to the border; with zeros nothing, exactly."""
    grid = Grid(shape)
    stamps = grid.sample(lambda x, y: (1 + x / 100) * Profile(3.0 + y / 200).stamp(7))
    varying = VaryingFilter(stamps, grid)
    ones, zeros = np.ones(shape), np.zeros(shape)
    everywhere, inside, nothing = correlate([(varying, ones, 1.0), (varying, ones), (varying, zeros)])
    sums = grid.plane(stamps.sum(axis=(-2, -1)))
    np.testing.assert_allclose(everywhere, sums, rtol=5e-3)  # five times the filters' tolerance
    np.testing.assert_allclose(inside[7:-7, 7:-7], everywhere[7:-7, 7:-7], rtol=1e-12)
    assert (inside[0] < 0.7 * everywhere[0]).all()
    assert not nothing.any()
