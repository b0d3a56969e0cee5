"""Drizzle and blot with input that makes no sense, or is at the limits of floating-point numbers."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skyloom.errors import InputError, ShapeError
from skyloom.resampling import Drizzle, SampledMap, blot_image, decode_context
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


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (np.full(SHAPE, 1e300), {}),
        (np.full(SHAPE, 3e38, np.float32), {"iscale": 10.0}),
        (np.full(SHAPE, 3e38, np.float32), {"in_units": "counts", "exptime": 0.1}),
        (np.ones(SHAPE), {"iscale": 1e150}),
    ],
)
def test_values_that_the_output_cannot_hold_are_missing(values, options):
    """An infinite mean would stay infinite, whatever is added."""
    drizzle = Drizzle(out_shape=SHAPE)
    with np.errstate(over="ignore"):
        drizzle.add_image(**({"data": values, "exptime": 1.0, "pixmap": identity()} | options))
    drizzle.add_image(np.full(SHAPE, 5.0), 1.0, identity())
    assert_array_equal(drizzle.out_img, 5)
    assert_array_equal(drizzle.out_wht, 1)
    double = Drizzle(out_img=np.zeros(SHAPE), out_wht=np.zeros(SHAPE))
    double.add_image(**({"data": values, "exptime": 1.0, "pixmap": identity()} | options))
    assert_allclose(double.out_wht, 1, rtol=1e-12)  # areas are differences of some numbers of order 1
    assert np.isfinite(double.out_img).all()


def test_variances_that_the_output_cannot_hold_are_missing():
    drizzle = Drizzle(out_shape=SHAPE)
    variance = np.ones(SHAPE)
    variance[2, 3] = 1e60
    drizzle.add_image(np.ones(SHAPE), 1.0, identity(), data2=variance)
    assert_array_equal(drizzle.out_wht == 0, variance > 1)


def test_factors_whose_square_is_no_number():
    with pytest.raises(InputError, match="iscale"):
        Drizzle(out_shape=SHAPE).add_image(np.ones(SHAPE), 1.0, identity(), data2=np.ones(SHAPE), iscale=1e200)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_earlier_results_that_are_not_finite_are_refused(bad):
    earlier = {"exptime": 1.0, "disable_ctx": True}
    wrong, ones = np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float32)
    wrong[1, 2] = bad
    for planes in (
        {"out_img": ones, "out_wht": wrong},
        {"out_img": wrong, "out_wht": ones},
        {"out_img": ones, "out_wht": ones, "out_img2": [wrong]},
        {"out_img": ones, "out_wht": ones, "out_img2": [ones], "out_wht2": [wrong]},
    ):
        with pytest.raises(InputError, match="finite"):
            Drizzle(**planes, **earlier)
    weight = np.where(np.isfinite(wrong), 1, 0).astype(np.float32)  # blank pixels without weight are as they should be
    drizzle = Drizzle(out_img=wrong, out_wht=weight, out_img2=[wrong.copy()], out_wht2=[weight.copy()], **earlier)
    drizzle.add_image(np.ones(SHAPE), 1.0, identity(), data2=np.ones(SHAPE))
    assert_array_equal(drizzle.out_img, 1)
    assert np.isfinite(drizzle.out_img2[0]).all()


def test_planes_of_other_types_are_refused():
    for name, plane in {
        "pixmap": identity() + 1j,
        "out_img": np.zeros(SHAPE, complex),
        "out_wht": np.full(SHAPE, None),
        "out_img2": 3.0,
        "out_wht2": 3.0,
        "out_ctx": np.zeros(SHAPE),
    }.items():
        arguments = {"data": np.ones(SHAPE), "exptime": 1.0, "pixmap": identity()}
        options = {"out_shape": SHAPE} | ({"out_img2": [np.ones(SHAPE)]} if name == "out_wht2" else {})
        (options if name.startswith("out") else arguments)[name] = plane
        with pytest.raises(InputError, match=name):
            Drizzle(**options).add_image(**arguments)
    deep = np.full(SHAPE, 2**40)
    with pytest.raises(InputError, match="32 bits"):
        Drizzle(out_img=np.ones(SHAPE), out_wht=np.ones(SHAPE), out_ctx=deep, exptime=1.0)


@pytest.mark.parametrize("pixfrac", [5000.0, 1e9, 1e300, 10**400])
@pytest.mark.parametrize("kernel", ["square", "turbo"])
def test_drops_wider_than_any_image_are_refused(kernel, pixfrac):
    with pytest.raises(InputError, match="pixfrac"):
        Drizzle(kernel=kernel, out_shape=SHAPE).add_image(np.ones(SHAPE), 1.0, identity(), pixfrac=pixfrac)


@pytest.mark.parametrize("kernel", ["turbo", "gaussian"])
def test_drops_that_rounding_would_swallow_are_refused(kernel):
    drizzle = Drizzle(kernel=kernel, out_shape=SHAPE, flux_conserving=True)
    with pytest.raises(InputError, match="pixel_scale_ratio"):
        drizzle.add_image(np.ones(SHAPE), 1.0, identity(), pixel_scale_ratio=1e12)


def test_maps_so_far_away_that_fractions_of_pixels_are_lost():
    for shift in (1e12, 1e18, 1e30):
        with pytest.raises(InputError, match="far from 0"):
            Drizzle().add_image(np.ones(SHAPE), 1.0, identity() + shift)
    drizzle = Drizzle()
    drizzle.add_image(np.ones(SHAPE), 1.0, identity() + 1e9)
    assert_array_equal(drizzle.out_wht, 1)


@pytest.mark.parametrize("scale", [None, "x", [], 0, math.nan])
@pytest.mark.filterwarnings("ignore:Argument 'scale':DeprecationWarning")
def test_deprecated_scales_that_are_no_numbers(scale):
    with pytest.raises(InputError, match="scale"):
        Drizzle(out_shape=SHAPE).add_image(np.ones(SHAPE), 1.0, identity(), scale=scale)
    with pytest.raises(InputError, match="context image ID"):
        Drizzle(out_shape=SHAPE, max_ctx_id=10**400)


@pytest.mark.parametrize(("x", "y"), [(7, 0), (0, 6), (-1, 0), ([0, 9], [0, 0])])
def test_pixels_outside_of_the_context(x, y):
    for kind in (InputError, IndexError):
        with pytest.raises(kind, match="7 x 6 pixels"):
            decode_context(np.zeros((1, *SHAPE), np.int32), x, y)


@pytest.mark.filterwarnings("ignore:Argument :DeprecationWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"interp": []},
        {"interp": np.ones(2)},
        {"iscale": 10**400},
        {"pix_ratio": 1e-300},
        {"pix_ratio": 1e300},
        {"output_pixel_shape": 5},
        {"output_pixel_shape": None},
    ],
)
def test_arguments_of_blot_that_make_no_sense(options):
    with pytest.raises(InputError, match=r"interp|iscale|output_pixel_shape"):
        blot_image(np.ones(SHAPE), identity(), **options)
