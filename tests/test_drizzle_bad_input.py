"""Drizzle and blot with input that makes no sense, or is at the limits of floating-point numbers."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skyloom.errors import InputError, ShapeError
from skyloom.resampling import Drizzle, SampledMap, blot_image
from skyloom.resampling.covariance import CovarianceSums, Spreading

SHAPE = (6, 7)


def identity(shape=SHAPE):
    y, x = np.indices(shape, dtype=float)
    return np.dstack([x, y])


@pytest.mark.parametrize("what", ["weight_map", "data2"])
def test_masks_of_all_planes_count(what):
    mask = np.zeros(SHAPE, bool)
    mask[2, 3] = True
    drizzle = Drizzle(out_shape=SHAPE)
    drizzle.add_image(np.ones(SHAPE), 1, identity(), **{what: np.ma.array(np.full(SHAPE, 5), mask=mask)})
    assert_array_equal(drizzle.out_wht == 0, mask)


@pytest.mark.parametrize("bounds", [{"xmin": math.nan}, {"xmax": math.nan}, {"ymin": "a"}, {"ymin": math.inf}])
def test_bounds_that_are_no_numbers(bounds):
    with pytest.raises(InputError, match="No pixel lies between"):
        Drizzle(out_shape=SHAPE).add_image(np.ones(SHAPE), 1, identity(), **bounds)


def test_infinite_bounds_are_no_bounds():
    drizzle = Drizzle(out_shape=SHAPE)
    drizzle.add_image(np.ones(SHAPE), 1, identity(), xmin=-math.inf, xmax=math.inf, ymax=2)
    assert_array_equal(drizzle.out_wht[:3], 1)
    assert_array_equal(drizzle.out_wht[3:], 0)


@pytest.mark.parametrize("name", ["iscale", "wht_scale", "pixel_scale_ratio"])
def test_factors_that_are_no_numbers(name):
    with pytest.raises(InputError, match=name):
        Drizzle(out_shape=SHAPE).add_image(np.ones(SHAPE), 1, identity(), **{name: "x"})


@pytest.mark.parametrize(("dtype", "weight"), [(np.float32, 3e38), (np.float64, 1e150)])
def test_weights_near_the_largest_number(dtype, weight):
    drizzle = Drizzle(out_img=np.zeros(SHAPE, dtype), out_wht=np.zeros(SHAPE, dtype))
    for _ in range(4):  # the sum is more than float32 holds
        drizzle.add_image(np.full(SHAPE, 5.0), 1, identity(), weight_map=np.full(SHAPE, weight), data2=np.ones(SHAPE))
    assert np.all(np.isfinite(drizzle.out_wht))
    assert np.all(drizzle.out_wht >= weight)
    # a few roundings in the type of the planes
    assert_allclose(drizzle.out_img, 5, rtol=4 * np.finfo(dtype).eps)
    assert np.all(np.isfinite(drizzle.out_img2[0]))


@pytest.mark.parametrize("weight", [1e-150, 1e-160, 1e-250])
def test_variances_have_no_nan_where_there_is_weight(weight):
    """The square of a weight below 1e-154 is no normal number: such weights, in the wings of kernels, are 0."""
    drizzle = Drizzle(fillval=np.nan, out_img=np.zeros(SHAPE), out_wht=np.zeros(SHAPE))
    for _ in range(2):
        drizzle.add_image(np.full(SHAPE, 7.0), 1, identity(), weight_map=np.full(SHAPE, weight), data2=np.ones(SHAPE))
    assert (drizzle.out_wht > 0).all() == (weight > 1e-153)
    weighted = drizzle.out_wht > 0
    assert_allclose(drizzle.out_img2[0][weighted], 0.5, rtol=1e-12)
    assert_array_equal(np.isfinite(drizzle.out_img), weighted)


@pytest.mark.parametrize("kernel", ["square", "turbo"])
def test_covariances_of_drops_much_larger_than_the_frame(kernel):
    """The part of a drop within the frame is the same as in a frame that is large enough."""
    large, low, high = (70, 60), 30, 42
    image, sizes = np.ones((3, 4)), {"kernel": kernel, "pixfrac": 1.0, "pixel_scale_ratio": 0.05}
    shift = np.array([20.3, 24.6])
    sums = []
    for shape, origin in ((large, 0), ((high - low, high - low), low)):
        total = CovarianceSums(shape, block=1)
        total.add_image(image, identity((3, 4)) * 20 - 20 + shift - origin, spreading=Spreading(**sizes))
        sums.append(total.finish(np.ones(shape)).covariance)
    whole, part = sums
    reach_y, reach_x = part.shape[2] - 1, part.shape[3] // 2
    assert part.max() > 0
    middle = whole.shape[3] // 2
    for dy in range(reach_y + 1):
        for dx in range(-reach_x if dy else 0, reach_x + 1):
            y, x = np.ogrid[: high - low, : high - low]
            inside = (y + dy < high - low) & (x + dx >= 0) & (x + dx < high - low)
            expected = np.where(inside, whole[low:high, low:high, dy, middle + dx], 0)
            # areas are differences of numbers of the size of a drop, some 400 cells
            assert_allclose(part[:, :, dy, reach_x + dx], expected, atol=1e-12 * whole.max())


def test_masked_data_of_blot_are_missing():
    data = np.ma.array(np.ones(SHAPE), mask=np.eye(*SHAPE, dtype=bool))
    assert_array_equal(blot_image(data, identity(), fillval=-9) == -9, np.eye(*SHAPE, dtype=bool))


FLAGS = np.full(SHAPE, 3, np.uint32)


def test_a_failed_first_call_leaves_no_garbage():
    drizzle = Drizzle(out_shape=SHAPE, covariance=1)
    with pytest.raises(InputError, match="negative"):
        drizzle.add_image(np.ones(SHAPE), 1, identity(), data2=[-np.ones(SHAPE)], dq=FLAGS)
    drizzle.add_image(np.ones(SHAPE), 1, identity(), data2=[np.ones(SHAPE)])
    assert drizzle.out_dq is None
    assert_allclose(drizzle.out_img2[0], 1)


def test_a_map_without_any_position_leaves_no_trace():
    nowhere = np.full((*SHAPE, 2), np.nan)
    drizzle = Drizzle(out_shape=SHAPE)
    with pytest.raises(InputError, match="pixel map"):
        drizzle.add_image(np.ones(SHAPE), 1, nowhere, data2=[np.ones(SHAPE)] * 2, dq=FLAGS)
    assert (drizzle.out_img2, drizzle.out_dq, drizzle.ctx_id, drizzle.total_exptime) == (None, None, 0, 0)
    drizzle.add_image(np.ones(SHAPE), 1, identity())
    given = np.full(SHAPE, 7, np.float32)
    drizzle = Drizzle(out_img=given, fillval=-1)
    with pytest.raises(InputError, match="pixel map"):
        drizzle.add_image(np.ones(SHAPE), 1, nowhere)
    assert_array_equal(given, 7)


@pytest.mark.parametrize("factor", [1e30, 1e9, 1e6])
def test_a_map_without_bounds_gives_no_shape(factor):
    drizzle = Drizzle()
    with pytest.raises(InputError, match="span"):
        drizzle.add_image(np.ones(SHAPE), 1, identity() * factor)
    drizzle.add_image(np.ones(SHAPE), 1, identity())
    assert drizzle.out_img.shape == SHAPE


def test_pixels_without_any_position_are_masked_in_the_map():
    positions = np.ma.array(identity(), mask=False)
    positions[2, 3] = np.ma.masked
    drizzle = Drizzle(out_shape=SHAPE)
    drizzle.add_image(np.ones(SHAPE), 1, positions)
    assert_array_equal(drizzle.out_wht == 0, positions.mask[..., 0])


def test_a_map_and_flags_that_share_memory_with_the_output():
    both = identity()
    drizzle = Drizzle(kernel="point", out_img=both[..., 0])
    drizzle.add_image(np.ones(SHAPE), 1, both)
    assert_array_equal(drizzle.out_img, 1)
    flags = np.arange(np.prod(SHAPE), dtype=np.uint32).reshape(SHAPE)
    drizzle = Drizzle(kernel="point", out_shape=SHAPE, out_dq=flags)
    drizzle.add_image(np.ones(SHAPE), 1, identity() + np.array([1, 0]), dq=flags)
    expected = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    expected[:, 1:] = expected[:, :-1].copy()
    assert_array_equal(drizzle.out_dq, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": None},
        {"out_shape": (-3, 5)},
        {"out_shape": (3.5, 5)},
        {"out_shape": 5},
        {"out_shape": (2**40, 5)},
        {"out_shape": SHAPE, "begin_ctx_id": 1.5},
        {"out_shape": SHAPE, "max_ctx_id": "x"},
        {"out_shape": SHAPE, "exptime": "x"},
    ],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(InputError):
        Drizzle(**options)


@pytest.mark.parametrize("options", [{"exptime": "x"}, {"in_units": ["cps"]}, {"pixfrac": None}])
def test_arguments_that_make_no_sense(options):
    arguments = {"data": np.ones(SHAPE), "exptime": 1, "pixmap": identity()} | options
    with pytest.raises(InputError, match=r"exptime|unit|pixfrac"):
        Drizzle(out_shape=SHAPE).add_image(**arguments)


@pytest.mark.parametrize("block", [True, 0, -1, 1.5, "64", math.nan])
def test_blocks_of_covariances_that_make_no_sense(block):
    with pytest.raises(InputError, match="'covariance' is"):
        Drizzle(out_shape=SHAPE, covariance=block)


def test_covariances_of_images_with_and_without_variances_do_not_mix():
    drizzle = Drizzle(out_shape=SHAPE, covariance=1)
    drizzle.add_image(np.ones(SHAPE), 1, identity(), data2=[np.full(SHAPE, 9.0)])
    with pytest.raises(InputError, match="do not add up"):
        drizzle.add_image(np.ones(SHAPE), 1, identity(), data2=[None])
    # the call that failed has left nothing: still one image of variance 9
    assert_allclose(drizzle.covariance.aperture_variance(3, 3, np.ones((1, 1))), 9)


def test_an_aperture_without_data_has_no_variance():
    drizzle = Drizzle(out_shape=(40, 40), covariance=1)
    drizzle.add_image(np.ones(SHAPE), 1, identity(), data2=[np.ones(SHAPE)])
    assert math.isnan(drizzle.covariance.aperture_variance(30, 30, 3.0))
    assert drizzle.covariance.aperture_variance(3, 3, 2.0) > 0


def test_blot_takes_a_sparse_map():
    sparse = SampledMap(lambda xy: xy * 0.9 + 1, (30, 40))
    image = np.arange(50 * 50, dtype=np.float32).reshape(50, 50)
    assert_array_equal(blot_image(image, sparse), blot_image(image, sparse.pixmap()))


@pytest.mark.parametrize("bad", [[[1, 2], [3]], "abc"], ids=["ragged", "text"])
@pytest.mark.parametrize("name", ["data", "pixmap", "weight_map", "dq", "data2", "out_img", "out_wht", "out_img2"])
def test_what_is_no_array_is_named(name, bad):
    arguments = {"data": np.ones((4, 4), "f4"), "exptime": 1.0, "pixmap": identity((4, 4))}
    outputs = {"out_shape": (4, 4), "kernel": "square"}
    (outputs if name.startswith("out") else arguments)[name] = [bad] if name == "out_img2" else bad
    with pytest.raises(InputError, match=name):
        Drizzle(**outputs).add_image(**arguments)
    if name in ("data", "pixmap"):
        with pytest.raises(InputError, match=name):
            blot_image(arguments["data"], arguments["pixmap"])


def test_shapes_that_differ_are_named():
    drizzle = Drizzle(out_shape=(4, 4))
    with pytest.raises(ShapeError, match=r"'weight_map' .* \(3, 4\), needed \(4, 4\)"):
        drizzle.add_image(np.ones((4, 4)), 1.0, identity((4, 4)), weight_map=np.ones((3, 4)))
    with pytest.raises(ShapeError) as caught:
        drizzle.add_image(np.ones((3, 4)), 1.0, identity((4, 4)))
    assert caught.value.__notes__ == ["The map is for (4, 4), the image is (3, 4)."]
