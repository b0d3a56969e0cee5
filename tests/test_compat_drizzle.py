"""`skyloom.compat.drizzle`: the surface of the original, and the keyword forms of its compiled part."""

import importlib
import inspect
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyloom import resampling
from skyloom.compat.drizzle import cdrizzle, resample, utils
from skyloom.errors import InputError
from skyloom.resampling import pixmap as pixmaps

EMPTY = inspect.Parameter.empty
DEPRECATED = object()  # an argument that warns if it is given at all; its default is not to be used

# name -> default, in order, as the documentation of drizzle 3.0 has them
SIGNATURES = {
    resample.Drizzle: {
        "kernel": "square",
        "fillval": None,
        "fillval2": None,
        "out_shape": None,
        "out_img": None,
        "out_wht": None,
        "out_ctx": None,
        "out_img2": None,
        "out_dq": None,
        "exptime": 0.0,
        "begin_ctx_id": 0,
        "max_ctx_id": None,
        "disable_ctx": False,
    },
    resample.Drizzle.add_image: {
        "self": EMPTY,
        "data": EMPTY,
        "exptime": EMPTY,
        "pixmap": EMPTY,
        "data2": None,
        "dq": None,
        "scale": DEPRECATED,
        "iscale": 1.0,
        "pixel_scale_ratio": 1.0,
        "weight_map": None,
        "wht_scale": 1.0,
        "pixfrac": 1.0,
        "in_units": "cps",
        "xmin": None,
        "xmax": None,
        "ymin": None,
        "ymax": None,
    },
    resample.blot_image: {
        "data": EMPTY,
        "pixmap": EMPTY,
        "pix_ratio": DEPRECATED,
        "exptime": DEPRECATED,
        "output_pixel_shape": DEPRECATED,
        "out_img": None,
        "fillval": 0.0,
        "iscale": 1.0,
        "interp": "poly5",
        "sinscl": DEPRECATED,  # gone in 3.0, still in programs written for 2
    },
    utils.calc_pixmap: {"wcs_from": EMPTY, "wcs_to": EMPTY, "shape": None, "disable_bbox": "to"},
    utils.decode_context: {"context": EMPTY, "x": EMPTY, "y": EMPTY},
    utils.estimate_pixel_scale_ratio: {
        "wcs_from": EMPTY,
        "wcs_to": EMPTY,
        "refpix_from": None,
        "refpix_to": None,
    },
    cdrizzle.tdriz: {
        **dict.fromkeys(["input", "weights", "pixmap", "output", "counts", "context"], EMPTY),
        "input2": None,
        "output2": None,
        "dq": None,
        "outdq": None,
        "uniqid": 1,
        "xmin": 0,
        "xmax": 0,
        "ymin": 0,
        "ymax": 0,
        "iscale": 1.0,
        "pscale_ratio": None,
        "scale": None,
        "pixfrac": 1.0,
        "kernel": "square",
        "in_units": "cps",
        "expscale": 1.0,
        "wtscale": 1.0,
        "fillstr": "INDEF",
        "fillstr2": "INDEF",
    },
    cdrizzle.tblot: {
        **dict.fromkeys(["source", "pixmap", "output"], EMPTY),
        **dict.fromkeys(["xmin", "xmax", "ymin", "ymax"], 0),
        "iscale": None,
        "kscale": None,
        "scale": None,
        "interp": "poly5",
        "exptime": None,
        "fillval": None,
        "misval": None,
    },
    cdrizzle.invert_pixmap: dict.fromkeys(["pixmap", "xyout", "bbox"], EMPTY),
    cdrizzle.clip_polygon: dict.fromkeys(["p", "q"], EMPTY),
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__qualname__)
def test_signatures_are_those_of_the_original(function):
    found = inspect.signature(function).parameters
    expected = SIGNATURES[function]
    # arguments of our own may follow, by keyword only
    assert [name for name, p in found.items() if p.kind is not p.KEYWORD_ONLY] == list(expected)
    for name, default in expected.items():
        if default is not DEPRECATED:
            assert found[name].default == default, name
            assert type(found[name].default) is type(default), name
        else:
            assert found[name].default is not EMPTY
    for parameter in list(found.values())[len(expected) :]:
        assert parameter.default is not EMPTY


def test_names_are_those_of_skyloom():
    assert resample.Drizzle is resampling.Drizzle
    assert resample.blot_image is resampling.blot_image
    assert utils.calc_pixmap is resampling.calc_pixmap
    assert utils.decode_context is resampling.decode_context
    assert utils.estimate_pixel_scale_ratio is resampling.estimate_pixel_scale_ratio
    assert utils._estimate_pixel_scale is pixmaps.estimate_pixel_scale
    assert resample.CTX_PLANE_BITS == 32
    assert sorted(resample.SUPPORTED_DRIZZLE_KERNELS) == [
        "gaussian",
        "lanczos2",
        "lanczos3",
        "point",
        "square",
        "turbo",
    ]


def test_attributes_of_drizzle():
    image = resample.Drizzle(out_shape=(4, 5))
    for name in ("ctx_id", "fillval", "fillval2", "kernel", "out_ctx", "out_dq", "out_img", "out_img2", "out_wht"):
        assert hasattr(image, name)
        with pytest.raises(AttributeError):
            setattr(image, name, None)
    assert image.total_exptime == 0.0
    assert image.ctx_id == 0


BAD_OUTPUT = [
    ({"begin_ctx_id": -1}, ValueError, "Invalid context image ID"),
    ({"begin_ctx_id": 5, "max_ctx_id": 4}, ValueError, "'max_ctx_id' cannot be smaller than 'begin_ctx_id'."),
    ({"exptime": -1.0}, ValueError, "Exposure time must be non-negative."),
    ({"exptime": 1.0}, ValueError, "Exposure time must be 0.0 for the first resampling"),
    ({"kernel": "round"}, ValueError, "Kernel 'round' is not supported."),
    ({"fillval": "fillval"}, ValueError, "could not convert string to float: 'fillval'"),
    ({"out_ctx": [0, 0]}, ValueError, "'out_ctx' must be either a 2D or 3D array."),
    ({"out_img": np.zeros((5, 4), np.float32)}, ValueError, "Inconsistent data shapes specified"),
    ({"out_dq": np.zeros((4, 5), np.uint32)[1:]}, ValueError, "Inconsistent data shapes specified:"),
    (
        {"out_dq": np.zeros((4, 5))},
        TypeError,
        "'out_dq' must be of an unsigned integer type with itemsize of 4 bytes or less.",
    ),
    (
        {"out_wht": np.ones((4, 5), np.float32)},
        ValueError,
        "Inconsistent exposure time and context and/or weight images",
    ),
    (
        {"out_wht": np.ones((4, 5), np.float32), "exptime": 1.0},
        ValueError,
        "Inconsistent values of supplied 'out_wht' and 'out_ctx' arrays",
    ),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD_OUTPUT)
def test_exceptions_of_the_constructor(options, error, words):
    with pytest.raises(error) as caught:
        resample.Drizzle(**{"out_shape": (4, 5)} | options)
    assert isinstance(caught.value, InputError)
    assert str(caught.value).startswith(words)


BAD_IMAGE = [
    ({"exptime": 0.0}, ValueError, "'exptime' *must* be a strictly positive number."),
    ({"pixmap": np.zeros((3, 5, 2))}, ValueError, "'pixmap' shape is not consistent with 'data' shape."),
    ({"weight_map": np.ones((4, 4))}, ValueError, "'weight_map' shape is not consistent with 'data' shape."),
    ({"data2": np.ones((4, 4))}, ValueError, "'data2' shape is not consistent with 'data' shape."),
    ({"data2": [np.ones((4, 4))]}, ValueError, "'data2' shape(s) is not consistent with 'data' shape."),
    ({"data2": [np.ones((4, 5))] * 2}, ValueError, "Mismatch between the number of 'out_img2' images"),
    ({"dq": np.ones((4, 4), np.uint32)}, ValueError, "'dq' shape is not consistent with 'data' shape."),
    (
        {"dq": np.ones((4, 5))},
        TypeError,
        "'dq' must be of an unsigned integer type with itemsize of 4 bytes or less.",
    ),
    ({"in_units": "CPS"}, ValueError, "Unknown unit type 'CPS'"),
    ({"iscale": 0.0}, ValueError, "'iscale'"),
    ({"pixel_scale_ratio": -1.0}, ValueError, "'pixel_scale_ratio'"),
    ({"wht_scale": 0.0}, ValueError, "'wht_scale'"),
    ({"pixmap": np.full((4, 5, 2), np.nan)}, ValueError, "No or too few valid pixels in the pixel map"),
]


@pytest.mark.parametrize(("arguments", "error", "words"), BAD_IMAGE)
def test_exceptions_of_add_image(arguments, error, words):
    drizzle = resample.Drizzle(out_shape=(4, 5), out_img2=[None])
    y, x = np.indices((4, 5), float)
    known = {"data": np.ones((4, 5)), "exptime": 1.0, "pixmap": np.dstack([x, y]), "data2": np.ones((4, 5))}
    with pytest.raises(error) as caught:
        drizzle.add_image(**known | arguments)
    assert isinstance(caught.value, InputError)
    assert str(caught.value).startswith(words)
    assert drizzle.ctx_id == 0
    assert drizzle.total_exptime == 0.0


@pytest.mark.parametrize("kernel", ["gaussian", "lanczos2", "lanczos3"])
def test_kernels_that_do_not_conserve_flux_warn(kernel):
    y, x = np.indices((4, 5), float)
    drizzle = resample.Drizzle(kernel=kernel, out_shape=(4, 5))
    with pytest.warns(Warning, match=f"Kernel '{kernel}' is not a flux-conserving kernel"):
        drizzle.add_image(np.ones((4, 5)), 1.0, np.dstack([x, y]))
    with pytest.warns(Warning, match=f"Kernel '{kernel}' is not a flux-conserving kernel"):
        cdrizzle.tdriz(*scene(), *planes(), kernel=kernel)


def test_util_is_deprecated():
    sys.modules.pop("skyloom.compat.drizzle.util", None)
    with pytest.warns(DeprecationWarning, match="module 'drizzle.util' is deprecated"):
        util = importlib.import_module("skyloom.compat.drizzle.util")
    with pytest.warns(DeprecationWarning, match="'is_blank' is deprecated"):
        assert util.is_blank(" \t") is True
    with pytest.warns(DeprecationWarning, match="'is_blank' is deprecated"):
        assert util.is_blank(" a ") is False


# --- tdriz --------------------------------------------------------------------------------------------------------


def scene(shape=(12, 14), shift=(1.3, 0.6)):
    rng = np.random.default_rng(3)
    image, weight = rng.uniform(1, 2, (2, *shape)).astype(np.float32)
    weight[3, 4:7] = 0
    y, x = np.indices(shape, float)
    return image, weight, np.dstack([1.01 * x + shift[0], y + shift[1] - 0.02 * x])


def planes(shape=(15, 18), dtype=np.float32):
    return np.zeros(shape, dtype), np.zeros(shape, dtype), np.zeros(shape, np.int32)


def test_tdriz_is_one_step_of_drizzle():
    image, weight, pixmap = scene()
    bits = np.arange(image.size, dtype=np.uint32).reshape(image.shape)
    expected = resample.Drizzle(out_shape=(15, 18), fillval=-1, fillval2=-2)
    output, counts, context = planes()
    variance, quality = planes()[0], np.zeros((15, 18), np.uint32)
    for k, factor in enumerate((1, 3)):
        numbers = expected.add_image(
            factor * image,
            2.0,
            pixmap + k,
            data2=image,
            dq=bits << k,
            iscale=0.7,
            weight_map=weight,
            wht_scale=1.5,
            pixfrac=0.8,
            in_units="counts",
            xmin=1,
            ymax=9,
        )
        found = cdrizzle.tdriz(
            input=factor * image,
            weights=weight,
            pixmap=pixmap + k,
            output=output,
            counts=counts,
            context=context,
            input2=image,
            output2=variance,
            dq=bits << k,
            outdq=quality,
            uniqid=k + 1,
            xmin=1,
            ymax=9,
            iscale=0.7,
            pscale_ratio=1.0,
            pixfrac=0.8,
            in_units="counts",
            expscale=2.0,
            wtscale=1.5,
            fillstr="-1",
            fillstr2="-2",
        )
        assert found == numbers
    np.testing.assert_array_equal(output, expected.out_img)
    np.testing.assert_array_equal(counts, expected.out_wht)
    np.testing.assert_array_equal(context, expected.out_ctx[0])
    np.testing.assert_array_equal(variance, expected.out_img2[0])
    np.testing.assert_array_equal(quality, expected.out_dq)
    assert context.max() == 3
    assert (output == -1).any()


@pytest.mark.parametrize("uniqid", [1, 2, 31, 32, 33, 64])
def test_tdriz_sets_its_bit_and_no_other(uniqid):
    image, weight, pixmap = scene()
    output, counts, context = planes()
    other = 1 << (3 if uniqid % 32 != 4 else 5)
    context[:] = other  # of an image that has left no weight in this plane's arrays
    cdrizzle.tdriz(image, weight, pixmap, output, counts, context, uniqid=uniqid)
    bits = context.view(np.uint32)
    mark = np.uint32(1 << ((uniqid - 1) % 32))
    np.testing.assert_array_equal(bits & ~mark, other)
    np.testing.assert_array_equal((bits & mark) != 0, counts > 0)


@pytest.mark.parametrize("how", ["strided", "big-endian", "fortran"])
def test_tdriz_writes_into_any_array(how):
    image, weight, pixmap = scene()
    expected = planes()
    cdrizzle.tdriz(image, weight, pixmap, *expected)
    make = {
        "strided": lambda p: np.zeros((15, 36), p.dtype)[:, ::2],
        "big-endian": lambda p: np.zeros(p.shape, p.dtype.newbyteorder(">")),
        "fortran": lambda p: np.zeros(p.shape, p.dtype, order="F"),
    }[how]
    found = [make(p) for p in planes()]
    cdrizzle.tdriz(image, weight, pixmap, *found)
    for result, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(result, wanted)


def test_tdriz_without_context_and_with_scale():
    image, weight, pixmap = scene()
    first, second = planes(), planes()
    cdrizzle.tdriz(image, weight, pixmap, *first, iscale=0.25, pscale_ratio=0.5)
    with pytest.warns(DeprecationWarning, match="scale"):
        cdrizzle.tdriz(image, weight, pixmap, second[0], second[1], None, scale=0.5)
    np.testing.assert_array_equal(second[0], first[0])
    np.testing.assert_array_equal(second[1], first[1])


def test_tdriz_errors():
    image, weight, pixmap = scene()
    with pytest.raises(InputError, match="'outdq' must also be provided"):
        cdrizzle.tdriz(image, weight, pixmap, *planes(), dq=np.ones(image.shape, np.uint32))
    with pytest.raises(InputError, match="as many of both"):
        cdrizzle.tdriz(image, weight, pixmap, *planes(), input2=[image, image], output2=planes()[0])
    with pytest.raises(InputError, match="not consistent"):
        cdrizzle.tdriz(image, weight[1:], pixmap, *planes())


# --- tblot --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
def test_tblot_is_blot_image(dtype):
    image, _, pixmap = scene()
    output = np.full((24, 14), 9, dtype)[::2]
    assert cdrizzle.tblot(image, pixmap, output, iscale=3.0, interp="linear", fillval=-1.0) == 0
    expected = resample.blot_image(image, pixmap, iscale=3.0, interp="linear", fillval=-1.0, out_img=output.copy())
    np.testing.assert_array_equal(output, expected)
    assert (output == -1).any()
    assert (output > 2).any()


def test_tblot_deprecated_arguments():
    image, _, pixmap = scene()
    expected, output = np.zeros((2, 12, 14), np.float32)
    cdrizzle.tblot(image, pixmap, expected, iscale=8.0, fillval=-1.0)
    with (
        pytest.warns(DeprecationWarning, match="'scale'"),
        pytest.warns(DeprecationWarning, match="'kscale'"),
        pytest.warns(DeprecationWarning, match="'exptime'"),
        pytest.warns(DeprecationWarning, match="'misval'"),
    ):
        cdrizzle.tblot(image, pixmap, output, scale=0.5, kscale=1.0, exptime=2.0, misval=-1.0)
    np.testing.assert_array_equal(output, expected)
    with pytest.warns(DeprecationWarning, match="misval"), pytest.raises(InputError, match="'misval' is set"):
        cdrizzle.tblot(image, pixmap, output, fillval=0.0, misval=-1.0)


# --- invert_pixmap --------------------------------------------------------------------------------------------------


def bilinear(pixmap, x, y):
    """The plain definition, with the outer cells going on."""
    i, j = (int(np.clip(np.floor(c), 0, n - 2)) for c, n in ((x, pixmap.shape[1]), (y, pixmap.shape[0])))
    u, v = x - i, y - j
    lower = (1 - u) * pixmap[j, i] + u * pixmap[j, i + 1]
    return (1 - v) * lower + v * ((1 - u) * pixmap[j + 1, i] + u * pixmap[j + 1, i + 1])


@given(x=st.floats(-0.5, 39.5), y=st.floats(-0.5, 29.5), degrees=st.floats(0, 360), bend=st.floats(-2e-3, 2e-3))
def test_inverse_of_a_pixel_map(x, y, degrees, bend):
    yy, xx = np.indices((30, 40), float)
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    u, v = xx + bend * xx * yy, yy + bend * xx**2
    pixmap = np.dstack([c * u - s * v + 100, s * u + c * v])
    found = cdrizzle.invert_pixmap(pixmap, bilinear(pixmap, x, y), [[-0.5, 39.5], [-0.5, 29.5]])
    # the last Newton step starts within 1e-4 of the goal; its derivatives, over whole cells, are right to a few percent
    np.testing.assert_allclose(found, (x, y), atol=1e-5)


def test_inverse_stays_within_the_limits():
    yy, xx = np.indices((10, 10), float)
    pixmap = np.dstack([xx, yy])
    np.testing.assert_array_equal(cdrizzle.invert_pixmap(pixmap, (-40, 4), None), (-0.5, 4))
    np.testing.assert_array_equal(cdrizzle.invert_pixmap(pixmap, (7, 50), [[2, 6], [0, 9]]), (6, 9))
    assert cdrizzle.invert_pixmap(np.zeros((5, 5, 2)), (1, 1), None) is None
    assert cdrizzle.invert_pixmap(np.full((5, 5, 2), np.nan), (1, 1), None) is None
    with pytest.raises(InputError, match="2 by 2"):
        cdrizzle.invert_pixmap(np.zeros((1, 5, 2)), (1, 1), None)


# --- clip_polygon ---------------------------------------------------------------------------------------------------


def area(polygon):
    if not polygon:
        return 0.0
    x, y = np.array(polygon).T
    return 0.5 * (x @ np.roll(y, -1) - y @ np.roll(x, -1))


@st.composite
def convex_polygons(draw):
    """Vertices on an ellipse, in either sense."""
    angles = sorted(draw(st.sets(st.integers(0, 47), min_size=3, max_size=8)))
    t = np.array(angles) * (2 * np.pi / 48)
    a, b, turn = draw(st.floats(0.5, 5)), draw(st.floats(0.5, 5)), draw(st.floats(0, 6))
    x, y = a * np.cos(t), b * np.sin(t)
    centre = np.array(draw(st.tuples(st.floats(-4, 4), st.floats(-4, 4))))
    vertices = np.column_stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)]) + centre
    return vertices if draw(st.booleans()) else vertices[::-1]


def is_inside(point, polygon, slack):
    vertices = np.array(polygon) if area(polygon) > 0 else np.array(polygon)[::-1]
    side = np.roll(vertices, -1, axis=0) - vertices
    away = np.array(point) - vertices
    return np.all(side[:, 0] * away[:, 1] - side[:, 1] * away[:, 0] >= -slack)


@given(convex_polygons(), convex_polygons())
def test_intersection_of_convex_polygons(p, q):
    both = cdrizzle.clip_polygon(p, q)
    assert isinstance(both, list)
    assert all(type(c) is float for vertex in both for c in vertex)
    assert all(is_inside(vertex, list(p), 1e-9) and is_inside(vertex, list(q), 1e-9) for vertex in both)
    assert area(both) >= 0
    # rounding of vertices of size 10
    assert area(both) == pytest.approx(area(cdrizzle.clip_polygon(q, p)), abs=1e-11)
    # what is inside q, and what is inside the four parts around it, is all of p
    far = 100.0
    corner = np.mean(q, axis=0)
    quarters = [corner + far * np.array([(0, 0), (sx, 0), (sx, sy), (0, sy)]) for sx in (-1, 1) for sy in (-1, 1)]
    parts = sum(area(cdrizzle.clip_polygon(p, quarter)) for quarter in quarters)
    assert parts == pytest.approx(abs(area(list(p))), abs=1e-9)


@given(*[st.tuples(st.integers(-8, 8), st.integers(1, 8)) for _ in range(4)])
def test_intersection_of_rectangles(px, py, qx, qy):
    def rectangle(x, y):
        return [(x[0], y[0]), (x[0] + x[1], y[0]), (x[0] + x[1], y[0] + y[1]), (x[0], y[0] + y[1])]

    both = cdrizzle.clip_polygon(rectangle(px, py), rectangle(qx, qy))
    x0, x1 = max(px[0], qx[0]), min(px[0] + px[1], qx[0] + qx[1])
    y0, y1 = max(py[0], qy[0]), min(py[0] + py[1], qy[0] + qy[1])
    expected = [(x0, y0), (x0, y1), (x1, y0), (x1, y1)] if x0 < x1 and y0 < y1 else []
    assert sorted(both) == expected


def test_vertices_on_straight_sides_are_left_out():
    square = [(0, 0), (1, 0), (1, 1), (0, 1)]
    more = [(0, 0), (0.5, 0), (1, 0), (1, 0.4), (1, 1), (1, 1), (0.7, 1), (0, 1), (0, 0.2)]
    assert sorted(cdrizzle.clip_polygon(more, square)) == sorted(square)
    assert sorted(cdrizzle.clip_polygon(square, more)) == sorted(square)


@pytest.mark.parametrize("bad", [[(0, 0), (1, 1)], [(0, 0), (1, 1), (np.nan, 2)], [1, 2, 3]])
def test_polygon_errors(bad):
    with pytest.raises(InputError, match="3 finite vertices"):
        cdrizzle.clip_polygon(bad, [(0, 0), (1, 0), (1, 1)])
