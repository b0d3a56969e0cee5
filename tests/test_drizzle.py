"""The `Drizzle` class: what it accepts, what it keeps, and agreement with the reference implementation."""

import numpy as np
import pytest

from skyloom.errors import InputError, ShapeError
from skyloom.resampling import Drizzle, decode_context

reference = pytest.importorskip("drizzle.resample")


def planes(shape, seed=3):
    rng = np.random.default_rng(seed)
    data = rng.normal(1000, 30, shape).astype(np.float32)
    return data, rng.uniform(0.5, 2, shape).astype(np.float32), rng.uniform(20, 40, shape).astype(np.float32)


def turned_map(shape, degrees, offset, scale=1.0, curvature=1e-6):
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    u, v = x - (shape[1] - 1) / 2, y - (shape[0] - 1) / 2
    u, v = u * (1 + curvature * (u * u + v * v)), v * (1 + curvature * (u * u + v * v))
    c, s = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))
    return np.dstack([c * u - s * v + offset[0], s * u + c * v + offset[1]])


@pytest.mark.parametrize("pixfrac", [1.0, 0.6])
@pytest.mark.parametrize("scale", [0.7, 1.0, 2.0])
def test_agrees_with_the_reference_implementation(pixfrac, scale):
    shape, size = (90, 110), int(170 * scale) + 20
    ours, theirs = (module.Drizzle(out_shape=(size, size), fillval="nan") for module in (_OURS, reference))
    for k, degrees in enumerate((2.0, 31.0, 95.0)):
        data, weight, variance = planes(shape, seed=k)
        dq = np.where(np.arange(shape[1]) % 7 == k, 1 << k, 0).astype(np.uint32) * np.ones(shape, np.uint32)
        pixmap = turned_map(shape, degrees, (size / 2, size / 2), scale)
        options = {
            "data2": [variance, data],
            "dq": dq,
            "weight_map": weight,
            "wht_scale": 1.5,
            "pixfrac": pixfrac,
            "iscale": 0.5,
            "in_units": "counts",
        }
        assert ours.add_image(data, 12.0 + k, pixmap, **options) == (0, 0)
        theirs.add_image(data, 12.0 + k, pixmap, **options)
    # the reference keeps float32 running sums: about 3 images x 8 contributions, each rounded to 6e-8
    np.testing.assert_allclose(ours.out_wht, theirs.out_wht, rtol=2e-6, atol=2e-6)
    solid = theirs.out_wht > 1e-3
    np.testing.assert_allclose(ours.out_img[solid], theirs.out_img[solid], rtol=3e-6)
    for mine, other in zip(ours.out_img2, theirs.out_img2, strict=True):
        np.testing.assert_allclose(mine[solid], other[solid], rtol=1e-5, atol=1e-6 * np.nanmax(other))
    np.testing.assert_array_equal(ours.out_dq[solid], theirs.out_dq[solid])
    np.testing.assert_array_equal(ours.out_ctx[:, solid], theirs.out_ctx[:, solid])
    np.testing.assert_array_equal(np.isnan(ours.out_img), ours.out_wht == 0)
    assert ours.total_exptime == theirs.total_exptime == 39.0
    assert ours.ctx_id == theirs.ctx_id == 3
    assert (ours.kernel, ours.fillval, ours.fillval2) == (theirs.kernel, theirs.fillval, theirs.fillval2)


class _OURS:
    Drizzle = Drizzle


def test_running_means_of_many_images_are_exact():
    shape = (12, 14)
    drizzle = Drizzle(out_img=np.zeros(shape), out_wht=np.zeros(shape))
    y, x = np.mgrid[:12, :14].astype(float)
    stack = [planes(shape, seed) for seed in range(200)]
    for data, weight, variance in stack:
        drizzle.add_image(data, 1.0, np.dstack([x, y]), weight_map=weight, data2=variance)
    data, weight, variance = (np.array([s[k] for s in stack], float) for k in range(3))
    # 200 float64 updates
    np.testing.assert_allclose(drizzle.out_img, (data * weight).sum(0) / weight.sum(0), rtol=1e-13)
    np.testing.assert_allclose(drizzle.out_img2[0], (variance * weight**2).sum(0) / weight.sum(0) ** 2, rtol=1e-13)
    assert drizzle.out_img.dtype == drizzle.out_wht.dtype == drizzle.out_img2[0].dtype == np.float64
    assert drizzle.out_ctx.shape == (7, 12, 14)
    assert decode_context(drizzle.out_ctx, 3, 4)[0].tolist() == list(range(200))


@pytest.mark.parametrize("layout", ["C", "F", "strided", "float64"])
def test_results_reach_the_arrays_that_were_given(layout):
    shape = (30, 40)
    dtype = np.float64 if layout == "float64" else np.float32

    def array(kind):
        if layout == "strided":
            return np.zeros((60, 120), kind)[::2, 1:-1:3][:, :40]
        return np.zeros(shape, kind, order="F" if layout == "F" else "C")

    given = [array(dtype), array(dtype), array(np.int32), array(np.uint32), array(dtype)]
    data, weight, variance = planes((20, 25))
    pixmap = turned_map((20, 25), 12, (18, 15))
    dq = np.full((20, 25), 5, np.uint32)
    drizzle = Drizzle(
        out_img=given[0], out_wht=given[1], out_ctx=given[2], out_dq=given[3], out_img2=given[4], fillval=-9
    )
    plain = Drizzle(out_img=np.zeros(shape, dtype), fillval=-9)
    for d in (drizzle, plain):
        d.add_image(data, 2.0, pixmap, weight_map=weight, data2=variance, dq=dq)
    assert np.array_equal(given[0], plain.out_img)
    assert np.array_equal(given[1], plain.out_wht)
    assert np.array_equal(given[2], plain.out_ctx[0])
    assert np.array_equal(given[3], plain.out_dq)
    reached = given[1] > 0
    assert np.array_equal(given[4][reached], plain.out_img2[0][reached])
    assert np.shares_memory(drizzle.out_img, given[0])


def test_outputs_that_cannot_be_written_are_copied():
    image = np.zeros((10, 10), np.float32)
    image.flags.writeable = False
    drizzle = Drizzle(out_img=image, fillval=0)
    drizzle.add_image(np.ones((5, 5)), 1.0, np.dstack(np.mgrid[:5, :5].astype(float)))
    assert not image.any()
    assert drizzle.out_img.sum() == 25


def test_inputs_of_any_layout_give_the_same_and_are_not_changed():
    data, weight, variance = planes((33, 47))
    dq = np.random.default_rng(1).integers(0, 2**31, data.shape).astype(np.int32)
    pixmap = turned_map(data.shape, 12, (30, 30))
    needed = Drizzle(out_shape=(70, 70))
    needed.add_image(data, 1.0, pixmap, weight_map=weight, data2=variance, dq=dq)

    def sliced(a):
        big = np.zeros((2 * a.shape[0], 3 * a.shape[1], *a.shape[2:]), a.dtype)
        big[1::2, 2::3] = a
        return big[1::2, 2::3]

    def read_only(a):
        a = a.copy()
        a.flags.writeable = False
        return a

    for change in (np.asfortranarray, sliced, read_only, lambda a: a.astype(a.dtype.newbyteorder(">"))):
        arguments = [change(a) for a in (data, pixmap, weight, variance, dq)]
        copies = [a.copy() for a in arguments]
        found = Drizzle(out_shape=(70, 70))
        found.add_image(arguments[0], 1.0, arguments[1], weight_map=arguments[2], data2=arguments[3], dq=arguments[4])
        np.testing.assert_array_equal(found.out_img, needed.out_img)
        np.testing.assert_array_equal(found.out_img2[0], needed.out_img2[0])
        np.testing.assert_array_equal(found.out_dq, needed.out_dq)
        for a, b in zip(arguments, copies, strict=True):
            np.testing.assert_array_equal(a, b)


def test_masked_pixels_weigh_nothing():
    data = np.ma.masked_greater(planes((20, 20))[0], 1000)
    found = Drizzle(out_shape=(30, 30))
    found.add_image(data, 1.0, turned_map((20, 20), 5, (15, 15)))
    assert found.out_wht.sum() == pytest.approx((~data.mask).sum(), rel=1e-6)
    assert np.nanmax(found.out_img) <= 1000 * (1 + 1e-6)


def test_an_image_that_shares_memory_with_the_output():
    image = planes((20, 20))[0]
    pixmap = turned_map((20, 20), 90, (9.5, 9.5), curvature=0)
    needed = Drizzle(out_shape=(20, 20), fillval=0)
    needed.add_image(image.copy(), 1.0, pixmap)
    found = Drizzle(out_img=image, fillval=0)
    found.add_image(image, 1.0, pixmap)
    np.testing.assert_array_equal(found.out_img, needed.out_img)


def good_arguments(**changes):
    y, x = np.mgrid[:4, :5].astype(float)
    return {"data": np.ones((4, 5), np.float32), "exptime": 1.0, "pixmap": np.dstack([x, y]), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exptime": 0.0}, "strictly positive"),
        ({"exptime": np.nan}, "strictly positive"),
        ({"data": np.ones(4)}, "2D image"),
        ({"data": np.ones((0, 5))}, "2D image"),
        ({"data": np.ones((4, 5), complex)}, "real numbers"),
        ({"pixmap": np.ones((5, 4, 2))}, "'pixmap' shape is not consistent"),
        ({"pixmap": np.ones((4, 5, 3))}, "ny, nx, 2"),
        ({"pixmap": np.full((4, 5, 2), np.nan)}, "No or too few valid pixels"),
        ({"weight_map": np.ones((4, 4))}, "'weight_map' shape is not consistent"),
        ({"weight_map": np.full((4, 5), -1.0)}, "not be negative"),
        ({"dq": np.ones((4, 5), np.int64)}, "4 bytes or less"),
        ({"dq": np.ones((4, 5), bool)}, "4 bytes or less"),
        ({"dq": np.ones((4, 4), np.uint8)}, "'dq' shape is not consistent"),
        ({"data2": np.ones((4, 4))}, "'data2' shape is not consistent"),
        ({"data2": [np.ones((4, 5)), np.ones((4, 4))]}, "consistent|Mismatch"),
        ({"pixfrac": np.nan}, "pixfrac"),
        ({"iscale": 0.0}, "iscale"),
        ({"iscale": np.inf}, "iscale"),
        ({"pixel_scale_ratio": -1.0}, "pixel_scale_ratio"),
        ({"wht_scale": 0.0}, "wht_scale"),
        ({"in_units": "CPS"}, "Unknown unit type"),
        ({"xmin": 4, "xmax": 2}, "No pixel lies between"),
        ({"ymin": 7}, "No pixel lies between"),
    ],
)
def test_a_call_that_fails_leaves_no_trace(changes, message):
    drizzle = Drizzle(out_shape=(6, 6), fillval=-3)
    drizzle.add_image(**good_arguments())
    before = [drizzle.out_img.copy(), drizzle.out_wht.copy(), drizzle.out_ctx.copy()]
    with pytest.raises(InputError, match=message) as error:
        drizzle.add_image(**good_arguments(**changes))
    assert isinstance(error.value, ValueError)
    if "dq" in changes and changes["dq"].shape == (4, 5):
        assert isinstance(error.value, TypeError)
    assert drizzle.ctx_id == 1
    assert drizzle.total_exptime == 1.0
    assert drizzle.out_img2 is None
    assert drizzle.out_dq is None
    for found, needed in zip((drizzle.out_img, drizzle.out_wht, drizzle.out_ctx), before, strict=True):
        np.testing.assert_array_equal(found, needed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "magic"}, "Kernel 'magic' is not supported."),
        ({"begin_ctx_id": -1}, "Invalid context image ID"),
        ({"begin_ctx_id": 3, "max_ctx_id": 2}, "'max_ctx_id' cannot be smaller"),
        ({"exptime": -1.0}, "must be non-negative"),
        ({"exptime": np.nan}, "must be non-negative"),
        ({"exptime": 1.0}, "must be 0.0 for the first"),
        ({"out_wht": np.ones((5, 5))}, "Inconsistent exposure time"),
        ({"out_wht": np.ones((5, 5)), "exptime": 1.0}, "Inconsistent values"),
        ({"out_ctx": np.zeros(5, np.int32)}, "either a 2D or 3D"),
        ({"out_dq": np.zeros((5, 5), np.int64)}, "4 bytes or less"),
        ({"out_img": np.zeros((5, 4))}, "Inconsistent data shapes"),
        ({"out_img2": [np.zeros((5, 5)), np.zeros((5, 4))]}, "Inconsistent data shapes"),
        ({"out_shape": (5,)}, "Inconsistent data shapes"),
        ({"fillval": "fillval"}, "could not convert string to float: 'fillval'"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=message):
        Drizzle(**{"out_shape": (5, 5), **options})


@pytest.mark.parametrize(
    ("fillval", "given", "before", "after"),
    [
        (None, False, np.nan, np.nan),
        ("", True, 5.0, 5.0),
        ("indef", True, 5.0, 5.0),
        ("NaN", True, 5.0, np.nan),
        (-1.5, True, 5.0, -1.5),
        ("-1.5", False, -1.5, -1.5),
    ],
)
def test_fill_values(fillval, given, before, after):
    options = {"out_img": np.full((6, 6), 5.0, np.float32)} if given else {"out_shape": (6, 6)}
    drizzle = Drizzle(fillval=fillval, fillval2=7, **options)
    np.testing.assert_equal(float(drizzle.out_img[5, 5]), before)
    drizzle.add_image(**good_arguments(data2=np.ones((4, 5))))
    np.testing.assert_equal(float(drizzle.out_img[5, 5]), after)
    assert drizzle.out_img2[0][5, 5] == 7
    assert drizzle.out_img[0, 0] == 1


def test_the_context_goes_on_where_it_was_left():
    first = Drizzle(out_shape=(6, 6))
    for _ in range(33):
        first.add_image(**good_arguments())
    assert first.out_ctx.shape == (2, 6, 6)
    assert first.out_ctx[0, 0, 0] == -1
    again = Drizzle(out_img=first.out_img, out_wht=first.out_wht, out_ctx=first.out_ctx, exptime=33.0, begin_ctx_id=130)
    again.add_image(**good_arguments())
    assert again.out_ctx.shape == (5, 6, 6)
    assert decode_context(again.out_ctx, [0, 5], [0, 5])[0].tolist() == [*range(33), 130]
    assert again.total_exptime == 34.0
    with pytest.raises(InputError, match="3D"):
        decode_context(again.out_ctx[0], 0, 0)
    with pytest.raises(InputError, match="integers"):
        decode_context(again.out_ctx, [0.5], [1.0])


def test_the_first_image_can_define_the_frame():
    y, x = np.mgrid[:4, :9].astype(float)
    drizzle = Drizzle()
    assert drizzle.out_img is None
    drizzle.add_image(np.full((4, 9), 2.0), 1.0, np.dstack([x + 100, y - 50]))
    assert drizzle.out_img.shape == (4, 9)
    drizzle.add_image(np.full((4, 9), 4.0), 1.0, np.dstack([x + 101, y - 50]))
    np.testing.assert_array_equal(drizzle.out_img[:, 0], 2.0)
    np.testing.assert_array_equal(drizzle.out_img[:, 1:], 3.0)


def test_the_number_of_square_planes_stays():
    drizzle = Drizzle(out_shape=(6, 6))
    drizzle.add_image(**good_arguments())
    with pytest.raises(InputError, match="Mismatch between the number of 'out_img2' images"):
        drizzle.add_image(**good_arguments(data2=np.ones((4, 5))))


def test_bounds_select_pixels():
    drizzle = Drizzle(out_shape=(6, 6), fillval=0)
    assert drizzle.add_image(**good_arguments(xmin=1, xmax=2, ymin=3, ymax=0)) == (0, 0)
    assert drizzle.out_wht.sum() == 2
    assert drizzle.out_wht[3, 1] == drizzle.out_wht[3, 2] == 1


def test_scale_is_deprecated():
    drizzle = Drizzle(out_shape=(6, 6))
    with pytest.warns(DeprecationWarning, match="^Argument 'scale' has been deprecated"):
        drizzle.add_image(**good_arguments(scale=2.0))
    assert drizzle.out_img[0, 0] == 4


def test_a_pixmap_of_one_coordinate_is_no_pixmap():
    for pixmap in (np.zeros((4, 5)), np.zeros((4, 5, 3)), np.zeros((4, 5, 2, 1)), np.zeros(5)):
        with pytest.raises(ShapeError, match="'pixmap'"):
            Drizzle(out_shape=(6, 6)).add_image(**good_arguments(pixmap=pixmap))


def test_no_planes_are_not_an_empty_list_of_planes():
    drizzle = Drizzle(out_shape=(6, 6))
    with pytest.raises(ValueError, match="'data2' is empty"):
        drizzle.add_image(**good_arguments(data2=[]))
    assert drizzle.ctx_id == 0


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">u2", "<i4", ">i4", "u4", "<i8", ">u8"])
def test_a_context_of_any_integer_type_has_its_bits(dtype):
    n = 8 * np.dtype(dtype).itemsize
    images = [0, n - 2, n - 1, 2 * n - 1]
    context = np.zeros((2, 3, 4), f"u{n // 8}")
    for image in images:
        context[image // n, 2, 1] |= context.dtype.type(1 << image % n)
    found = decode_context(context.astype(dtype), [1, 0], [2, 0])
    assert [pixel.tolist() for pixel in found] == [images, []]


def test_no_overlap_is_counted():
    drizzle = Drizzle(out_shape=(6, 6))
    arguments = good_arguments()
    arguments["pixmap"] = arguments["pixmap"] + 100
    assert drizzle.add_image(**arguments) == (20, 4)
    assert not drizzle.out_ctx.any()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("size", [4e-17, 1.1e-16, 2e-16, 1e-15])
def test_rounding_noise_of_an_aligned_map_costs_nothing(size, axis):
    """A corner at -5e-17 is at 1 as seen from the cell to its left; the drop must not go there for that."""
    y, x = np.mgrid[:12, :70].astype(float)
    pixmap = np.dstack([x, y])
    rng = np.random.default_rng(3)
    for _ in range(5):
        noisy = pixmap.copy()
        noisy[..., axis] += rng.uniform(-size, size, x.shape)
        driz = Drizzle(out_shape=x.shape)
        assert driz.add_image(np.ones(x.shape, np.float32), 1.0, noisy) == (0, 0)
        np.testing.assert_allclose(driz.out_wht, 1, rtol=1e-6)  # float32


def test_drops_with_corners_beyond_all_frames_are_lost_and_do_no_harm():
    y, x = np.mgrid[:8, :8].astype(float)
    pixmap = np.dstack([x, y])
    pixmap[3, 3] = 2.6e8, 2.6e8
    driz = Drizzle(out_shape=(8, 8))
    nmiss, _ = driz.add_image(np.ones((8, 8), np.float32), 1.0, pixmap, pixfrac=8.0)
    # the position of one pixel is part of the corners of its neighbours, too
    assert 1 <= nmiss <= 9
    assert np.isfinite(driz.out_img).all()
    assert driz.out_wht[0, 0] > 0
