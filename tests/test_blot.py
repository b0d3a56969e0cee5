"""`blot_image` against its oracle and the original, and what it promises at borders and about missing pixels."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.blot_oracle import HALF
from reference.blot_oracle import blot as oracle
from skyloom.errors import InputError, ShapeError
from skyloom.resampling import blot_image
from skyloom.resampling.kernels import tap_weights

SMOOTH = sorted(HALF)
METHODS = ["nearest", *SMOOTH]
shapes = st.tuples(st.integers(1, 14), st.integers(1, 14))
seeds = st.integers(0, 2**32 - 1)


def noise(seed, shape, dtype=np.float64):
    return np.random.default_rng(seed).normal(100, 30, shape).astype(dtype)


def positions(seed, shape, n=(3, 7), margin=1.5):
    """Positions around an image (ny, nx): some on centres, some on lines of pixels, some in the last half pixel."""
    rng = np.random.default_rng([seed, 1])
    high = np.array(shape[::-1], float)
    xy = rng.uniform(-margin, high + margin, (*n, 2))
    xy.reshape(-1, 2)[::5] = np.round(xy.reshape(-1, 2)[::5])
    xy.reshape(-1, 2)[1::5, 0] = np.round(xy.reshape(-1, 2)[1::5, 0])
    xy.reshape(-1, 2)[3::7] = high - rng.uniform(0, 0.5, 2)
    return xy


def inside(pixmap, shape):
    return ((pixmap >= -1e-6) & (pixmap < np.array(shape[::-1]) - 1e-6)).all(axis=-1)


def near(dtype):
    # Rounding of 2^-24 (2^-53) in the weights, whose absolute values sum to at most 2.4, times 3 for pixels that the
    # odd reflection counts twice more, and squared for two axes; contrasts are below 300, and of some 40 terms a few
    # roundings add up. The polynomials of the Lanczos weights are right to 5e-9 and 1e-12 beyond that.
    return {"rtol": 0, "atol": 2e-2 if dtype == np.float32 else 1e-8}


def blot(data, pixmap, **options):
    """Blot in the precision of the data."""
    return blot_image(data, pixmap, out_img=np.full(pixmap.shape[:2], 7, data.dtype), **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rounding", [-1e-9, 0.0, 1e-9])
def test_image_that_lies_pixel_on_pixel_keeps_its_rows(method, rounding):
    """Whatever the rounding of a map, the image comes back whole, and nothing is added to it."""
    data = noise(4, (9, 11), np.float32)
    pixmap = np.stack(np.meshgrid(np.arange(15.0), np.arange(13.0)), axis=-1) + rounding
    found = blot(data, pixmap, interp=method, fillval=np.nan)
    np.testing.assert_allclose(found[:9, :11], data, rtol=1e-5)  # slopes of some 100 a pixel times the rounding
    assert np.isnan(found[9:]).all()
    assert np.isnan(found[:, 11:]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=200)
@given(seed=seeds, shape=shapes)
def test_equals_the_oracle(method, dtype, seed, shape):
    data, pixmap = noise(seed, shape, dtype), positions(seed, shape)
    found = blot(data, pixmap, interp=method, fillval=-5.0, iscale=0.5)
    np.testing.assert_allclose(found, oracle(data, pixmap, method=method, fill=-5.0, scale=0.5), **near(dtype))
    np.testing.assert_array_equal(found == -5.0, ~inside(pixmap, shape))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=100)
@given(seed=seeds, shape=shapes, value=st.floats(-1e6, 1e6, width=32))
def test_a_constant_stays_what_it_is_up_to_the_border(method, dtype, seed, shape, value):
    pixmap = positions(seed, shape)
    found = blot(np.full(shape, value, dtype), pixmap, interp=method, fillval=np.nan)
    np.testing.assert_array_equal(found, np.where(inside(pixmap, shape), dtype(value), np.nan))


@pytest.mark.parametrize(("method", "degree"), [("linear", 1), ("poly3", 3), ("poly5", 5), ("lanczos3", 0)])
@settings(max_examples=200)
@given(seed=seeds)
def test_polynomials_of_the_degree_are_reproduced_inside(method, degree, seed):
    rng = np.random.default_rng(seed)
    c = rng.normal(0, 1, (degree + 1, degree + 1))
    field = lambda x, y: np.polynomial.polynomial.polyval2d(x / 6, y / 6, c)  # noqa: E731
    y, x = np.mgrid[:13, :12].astype(float)
    pixmap = rng.uniform(2, 9, (4, 5, 2))  # all 6 taps inside
    found = blot(field(x, y), pixmap, interp=method)
    expected = field(pixmap[..., 0], pixmap[..., 1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(field(x, y)).max())  # 36 roundings and more


@pytest.mark.parametrize("method", ["poly3", "poly5", "lanczos3", "lanczos5"])
@settings(max_examples=50)
@given(seed=seeds, shape=st.tuples(st.integers(2, 9), st.integers(2, 9)))
def test_a_plane_stays_a_plane_up_to_the_border(method, seed, shape):
    a, b, c = np.random.default_rng(seed).normal(0, 1, 3)
    y, x = np.mgrid[: shape[0], : shape[1]]
    pixmap = positions(seed, shape)
    found = blot(a + b * x + c * y, pixmap, interp=method, fillval=np.nan)
    expected = np.where(inside(pixmap, shape), a + b * pixmap[..., 0] + c * pixmap[..., 1], np.nan)
    # a polynomial reproduces the slope; a normalised Lanczos kernel has its mean position off by a little
    t = np.linspace(0, 1, 1001)
    taps = np.arange(1 - HALF[method], HALF[method] + 1)
    off = np.abs((tap_weights(method, t) * (taps - t[:, None])).sum(axis=1)).max()
    assert off < (1e-12 if method.startswith("poly") else 0.02)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 + 1.001 * off * (abs(b) + abs(c)))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=200)
@given(seed=seeds, shape=shapes)
def test_flips_transposition_and_shifts(method, seed, shape):
    data, rng = noise(seed, shape), np.random.default_rng([seed, 2])
    ny, nx = shape
    pixmap = rng.uniform(0, 1, (4, 5, 2)) * [nx - 1, ny - 1]  # where inside is symmetric
    plain = blot(data, pixmap, interp=method)
    flipped = blot(data[:, ::-1], [nx - 1, 0] + [-1, 1] * pixmap, interp=method)
    turned = blot(data.T, pixmap[..., ::-1], interp=method)
    # rounding of t = x - floor(x), some 2^-49 here, and of the weights, times the contrast
    np.testing.assert_allclose(flipped, plain, **near(np.float64))
    np.testing.assert_allclose(turned, plain, **near(np.float64))
    if nx > 12:
        return
    # in the interior of a larger image, where no border is near, a shift by whole pixels changes nothing
    wide = noise(seed, (31, 33))
    shift = rng.integers(-5, 6, 2)
    centre = np.round(rng.uniform(12, 18, (4, 5, 2)) * 1024) / 1024  # exact after the shift too
    moved = blot(np.roll(wide, shift[::-1], axis=(0, 1)), centre + shift, interp=method)
    np.testing.assert_array_equal(moved, blot(wide, centre, interp=method))


@pytest.mark.parametrize("method", METHODS)
def test_pixel_centres_are_copied(method):
    data = noise(1, (20, 25), np.float32)
    data[5, 6] = 1e6
    y, x = np.mgrid[:20, :25]
    np.testing.assert_array_equal(blot_image(data, np.dstack([x, y]), interp=method), data)


# --- what is missing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=200)
@given(seed=seeds, shape=shapes, fill=st.sampled_from([0.0, -7.5, np.nan]))
def test_missing_pixels_reach_as_far_as_their_weights(method, seed, shape, fill):
    data, pixmap = noise(seed, shape), positions(seed, shape)
    rng = np.random.default_rng([seed, 3])
    holes = rng.random(shape) < 0.05
    data[holes] = rng.choice([np.nan, np.inf, -np.inf], holes.sum())
    found = blot(data, pixmap, interp=method, fillval=fill)
    np.testing.assert_allclose(found, oracle(data, pixmap, method=method, fill=fill), **near(np.float64))
    masked = np.ma.MaskedArray(np.where(holes, 1e30, data), holes)
    np.testing.assert_array_equal(
        blot_image(masked, pixmap, out_img=np.empty_like(found), interp=method, fillval=fill), found
    )


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=50)
@given(seed=seeds)
def test_positions_that_are_none_are_filled_and_harm_no_neighbour(method, seed):
    data, rng = noise(seed, (12, 13), np.float32), np.random.default_rng(seed)
    pixmap = rng.uniform(0, 12, (6, 11, 2))
    good = blot_image(data, pixmap, interp=method, fillval=-3.5)  # within 1e-6 of the border it may be filled
    bad = rng.random((6, 11)) < 0.4
    odd = rng.choice([np.nan, np.inf, -np.inf, 1e30, -1e30, 1e300, 2.0**31, 2.0**63, -0.25, 13.0], (6, 11, 2))
    which = rng.integers(0, 2, bad.sum())
    pixmap[(*np.nonzero(bad), which)] = odd[(*np.nonzero(bad), which)]
    np.testing.assert_array_equal(blot_image(data, pixmap, interp=method, fillval=-3.5), np.where(bad, -3.5, good))


# --- the original ---------------------------------------------------------------------------------------------


def original(data, pixmap, **options):
    resample = pytest.importorskip("drizzle.resample")
    return resample.blot_image(data, pixmap, **options)


@pytest.mark.parametrize("method", METHODS)
def test_same_numbers_as_the_original_inside(method):
    data = noise(3, (60, 70), np.float32)
    # exact in the original's float32 coordinates, and all taps inside
    pixmap = np.round(np.random.default_rng(4).uniform(6, 53, (40, 50, 2)) * 2**12) / 2**12
    found = blot_image(data, pixmap, interp=method, iscale=1.5)
    expected = original(data, pixmap, interp=method, iscale=1.5)
    if not method.startswith("lanczos"):
        # some 40 float32 roundings at most, of terms below 500 with weights whose absolute values sum to at most 2.4
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3)
        return
    # the original's weights come from a table with a step of 0.003, cut off: a slope of at most 1.4 per axis for each
    # of the taps; and they do not sum to 1
    norm = original(np.ones_like(data), pixmap, interp=method)
    assert np.abs(norm - 1).max() > 1e-3
    scale = np.abs(data).max() * 1.5
    np.testing.assert_allclose(found * norm, expected, rtol=0, atol=0.003 * 1.4 * 2 * HALF[method] * 0.5 * scale)


@pytest.mark.parametrize("method", ["linear", "poly3", "poly5"])
def test_same_numbers_as_the_original_at_borders(method):
    # at the upper border along y the original mixes up rows (see below); transposing shows that it is no choice
    data = noise(5, (16, 17), np.float32)
    pixmap = np.round(np.random.default_rng(6).uniform(-1, 18, (60, 50, 2)) * 2**12) / 2**12
    pixmap[pixmap[..., 1] > 13] = -1
    found = blot_image(data, pixmap, interp=method, fillval=-1)
    np.testing.assert_allclose(found, original(data, pixmap, interp=method, fillval=-1), rtol=0, atol=5e-3)


def test_at_the_upper_border_along_y_the_original_contradicts_itself():
    data, row = noise(5, (16, 17), np.float32), np.full(30, 14.25)
    pixmap = np.dstack([row, np.linspace(5, 10, 30)])  # x near the upper border
    one, other = (f(data.T.copy(), pixmap) for f in (original, blot_image))
    np.testing.assert_allclose(other, one, rtol=0, atol=5e-3)
    turned, ours = (f(data, pixmap[..., ::-1].copy()) for f in (original, blot_image))  # the same along y
    np.testing.assert_allclose(ours, other, rtol=0, atol=5e-3)
    assert np.abs(turned - one).max() > 0.1


def test_a_constant_at_the_border_where_the_original_loses_it():
    data, pixmap = np.full((12, 12), 5.0, np.float32), np.full((1, 1, 2), 11.3)
    assert not abs(original(data, pixmap, interp="poly3")[0, 0] - 5) <= 0.2  # NaN, too: it reads beyond the array
    assert blot_image(data, pixmap, interp="poly3")[0, 0] == 5


def test_any_finite_factor_above_0():
    data, pixmap = np.full((8, 8), 1e-20), np.full((1, 1, 2), 3.3)
    data[0, 0] = 0
    for factor in (1e39, 1e-39):
        found = blot_image(data.astype(np.float32), pixmap, iscale=factor)[0, 0]
        assert found == pytest.approx(1e-20 * factor, rel=1e-6, abs=1e-45)  # float32 rounding; the smallest float32
    assert blot_image(data.astype(np.float32), np.zeros((1, 1, 2)), iscale=1e39)[0, 0] == 0


def test_coordinates_are_double():
    data = np.arange(20000, dtype=np.float64)[None] * np.ones((8, 1))
    pixmap = np.array([[[16384.0004, 3.0]]])  # float32 steps are 0.002 there
    found = blot(data, pixmap, interp="poly5")[0, 0]
    assert abs(found - 16384.0004) < 1e-9
    assert abs(float(original(data.astype(np.float32), pixmap, interp="poly5")[0, 0]) - 16384.0004) > 2e-4


# --- arrays ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">f8", "f2", "u2", "i4", "u1", "i8", "?"])
def test_data_of_any_real_type_and_layout(dtype):
    data = (noise(7, (30, 20)) % 2 if dtype == "?" else noise(7, (30, 20))).astype(dtype)
    pixmap = positions(7, (30, 20), (9, 8))
    expected = blot_image(data.astype(np.float64), pixmap)
    wide = np.zeros((60, 60), dtype)
    wide[::2, ::3] = data
    for same in (data, np.asfortranarray(data), wide[::2, ::3], data.tolist()):
        before = np.array(same)
        np.testing.assert_allclose(blot_image(same, pixmap), expected, rtol=0, atol=2e-3)  # float32 rounding
        np.testing.assert_array_equal(same, before)
    exact = np.asarray(data, np.float64)
    assert blot_image(exact, pixmap, out_img=np.zeros((9, 8))).dtype == np.float64


def test_pixmaps_of_any_layout():
    data, pixmap = noise(8, (30, 20), np.float32), np.round(positions(8, (30, 20), (90, 8)) * 64) / 64
    expected = blot_image(data, pixmap)
    planar = np.ascontiguousarray(pixmap.transpose(2, 0, 1)).transpose(1, 2, 0)
    for same in (planar, np.asfortranarray(pixmap), pixmap.astype(np.float32), pixmap.astype(">f8"), pixmap.tolist()):
        np.testing.assert_array_equal(blot_image(data, same), expected)
    assert blot_image(data, np.zeros((0, 8, 2))).shape == (0, 8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_outputs_are_written_in_place_whatever_their_strides(dtype):
    data, pixmap = noise(9, (30, 20), dtype), positions(9, (30, 20), (100, 80))
    expected = blot(data, pixmap)
    frame = np.zeros((200, 240), dtype)
    for out in (frame[::2, ::3], frame[::-1].T[:80, :100].T, np.zeros((100, 80), dtype, order="F")):
        assert blot_image(data, pixmap, out_img=out) is out
        np.testing.assert_array_equal(out, expected)


def test_outputs_that_cannot_be_written_are_left_alone():
    data, pixmap = noise(9, (30, 20), np.float32), positions(9, (30, 20), (10, 8))
    expected = blot_image(data, pixmap)
    locked = np.zeros((10, 8), np.float32)
    locked.flags.writeable = False
    whole = np.zeros((10, 8), np.int32)
    for out in (locked, whole):
        np.testing.assert_array_equal(blot_image(data, pixmap, out_img=out), expected)
        assert (out == 0).all()


def test_the_output_may_share_memory_with_the_image():
    data, pixmap = noise(10, (30, 20), np.float32), np.round(positions(10, (30, 20), (30, 20)))
    expected = blot_image(data.copy(), pixmap)
    np.testing.assert_array_equal(blot_image(data, pixmap, out_img=data), expected)


# --- arguments ------------------------------------------------------------------------------------------------


def test_deprecated_arguments_do_what_they_did():
    data, pixmap = noise(11, (12, 15), np.float32), positions(11, (12, 15), (5, 6))
    plain = blot_image(data, pixmap, iscale=3.0, interp="lanczos3")
    with pytest.warns(DeprecationWarning, match="^Interpolation method 'lan3' has been deprecated"):
        np.testing.assert_array_equal(blot_image(data, pixmap, iscale=3.0, interp="lan3"), plain)
    with pytest.warns(DeprecationWarning, match="^Argument 'pix_ratio' has been deprecated"):
        np.testing.assert_array_equal(blot_image(data, pixmap, 0.5, iscale=0.75, interp="lanczos3"), plain)
    with pytest.warns(DeprecationWarning, match="^Argument 'exptime' has been deprecated"):
        np.testing.assert_array_equal(blot_image(data, pixmap, exptime=3.0, interp="lanczos3"), plain)
    with pytest.warns(DeprecationWarning, match="^Argument 'sinscl' has been deprecated"):
        np.testing.assert_array_equal(blot_image(data, pixmap, iscale=3, interp="lanczos3", sinscl=2.0), plain)
    with pytest.warns(DeprecationWarning, match="^Argument 'output_pixel_shape' has been deprecated") as record:
        np.testing.assert_array_equal(
            blot_image(data, pixmap, output_pixel_shape=(6, 5), iscale=3.0, interp="lanczos3"), plain
        )
    assert record[0].filename == __file__


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"interp": "sinc"}, InputError, "lanczos5"),
        ({"interp": "cubic"}, InputError, "poly3"),
        ({"interp": None}, InputError, "nearest"),
        ({"fillval": "INDEF"}, InputError, "fillval"),
        ({"fillval": None}, InputError, "fillval"),
        ({"iscale": np.nan}, InputError, "iscale"),
        ({"iscale": 0.0}, InputError, "iscale"),
        ({"iscale": -1.0}, InputError, "iscale"),
        ({"iscale": np.inf}, InputError, "iscale"),
        ({"iscale": "x"}, InputError, "iscale"),
        ({"pix_ratio": 0.0}, InputError, "pix_ratio"),
        ({"exptime": np.inf}, InputError, "finite"),
        ({"output_pixel_shape": (5, 6)}, ShapeError, "output_pixel_shape"),
        ({"out_img": np.zeros((6, 5))}, ShapeError, "out_img"),
        ({"pixmap": np.zeros((5, 6))}, ShapeError, "pixmap"),
        ({"pixmap": np.zeros((5, 6, 3))}, ShapeError, "pixmap"),
        ({"pixmap": np.zeros((5, 6, 2), complex)}, InputError, "pixmap"),
        ({"data": np.zeros(5)}, ShapeError, "2D"),
        ({"data": np.zeros((0, 5))}, ShapeError, "at least one pixel"),
        ({"data": np.zeros((5, 5), complex)}, InputError, "real"),
    ],
)
def test_arguments_that_make_no_sense(options, error, words):
    arguments = {"data": np.zeros((8, 8)), "pixmap": np.zeros((5, 6, 2))} | options
    with pytest.raises(error, match=words) as caught:
        blot_image(**arguments)
    assert isinstance(caught.value, ValueError)


# --- threads and instruction sets -----------------------------------------------------------------------------


DIGEST = """
import hashlib, numpy as np
from test_blot import METHODS, noise
from skyloom.resampling import blot_image
for dtype in (np.float32, np.float64):
    data, pixmap = noise(12, (190, 170), dtype), np.random.default_rng(13).uniform(-3, 190, (333, 77, 2))
    data[40, 50] = np.nan
    for method in METHODS:
        result = blot_image(data, pixmap, interp=method, out_img=np.empty((333, 77), dtype))
        print(hashlib.sha256(result.tobytes()).hexdigest())
"""


def test_same_bits_for_any_number_of_threads_and_any_instruction_set():
    outputs = set()
    for level, threads in (("avx512", 1), ("avx512", 2), ("avx512", 7), ("avx2", 3), ("baseline", 2)):
        env = dict(
            os.environ, SKYLOOM_SIMD=level, SKYLOOM_NUM_THREADS=str(threads), PYTHONPATH=os.pathsep.join(sys.path)
        )
        run = subprocess.run([sys.executable, "-c", DIGEST], env=env, capture_output=True, text=True, check=True)
        outputs.add(run.stdout)
    assert len(outputs) == 1
    assert outputs.pop().count("\n") == 2 * len(METHODS)
