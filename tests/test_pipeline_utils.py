"""`skyloom.resampling.pipeline_utils`: weights, masks, ranges and pixel areas against their definitions."""

import logging
import math
import re

import numpy as np
import pytest
from astropy import coordinates, units
from astropy.io.fits import Header
from astropy.modeling import models
from astropy.nddata import BitFlagNameMap
from astropy.wcs import WCS
from gwcs import WCS as GWCS
from gwcs import coordinate_frames as cf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skyloom.errors import InputError, ShapeError
from skyloom.resampling import pipeline_utils as utils
from skyloom.resampling.pixel_area import _FLATTEST, _polygon_area, _sky_axes

NAMES = {"DO_NOT_USE": 1, "SATURATED": 2, "JUMP_DET": 4}


class NameMap(BitFlagNameMap):
    DO_NOT_USE = 1
    SATURATED = 2
    JUMP_DET = 4


def tan(shape, scale=1e-5, crval=(150.0, 2.0), crpix=None):
    """Return a tangent-plane FITS system; `scale` in degrees."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = crval
    wcs.wcs.crpix = (shape[1] / 2 + 0.5, shape[0] / 2 + 0.5) if crpix is None else crpix
    wcs.wcs.cdelt = [-scale, scale]
    wcs.wcs.set()
    wcs.array_shape = shape
    return wcs


def as_gwcs(shape, scale=1e-5, crval=(150.0, 2.0)):
    """Return the same system as `tan`, as a gwcs."""
    transform = (
        models.Shift(-(shape[1] - 1) / 2) & models.Shift(-(shape[0] - 1) / 2)
        | models.Scale(-scale) & models.Scale(scale)
        | models.Pix2Sky_TAN()
        | models.RotateNative2Celestial(*crval, 180)
    )
    frames = cf.Frame2D(name="detector"), cf.CelestialFrame(name="sky", reference_frame=coordinates.ICRS())
    wcs = GWCS([(frames[0], transform), (frames[1], None)])
    wcs.bounding_box = ((-0.5, shape[1] - 0.5), (-0.5, shape[0] - 0.5))
    wcs.array_shape = shape
    return wcs


def slit(shape=(60, 100), scale=1e-5):
    """Return a gwcs of a slit: position along y, wavelength along x."""
    transform = models.Mapping((1, 1, 0)) | (models.Scale(scale) | models.Shift(150)) & (
        models.Scale(scale) | models.Shift(2)
    ) & (models.Scale(0.01) | models.Shift(1))
    sky = cf.CelestialFrame(name="sky", axes_order=(0, 1), reference_frame=coordinates.ICRS())
    wave = cf.SpectralFrame(name="wave", axes_order=(2,), unit=(units.micron,))
    frame = cf.CompositeFrame([sky, wave], name="world")
    wcs = GWCS([(cf.Frame2D(name="detector"), transform), (frame, None)])
    wcs.bounding_box = ((-0.5, shape[1] - 0.5), (-0.5, shape[0] - 0.5))
    wcs.array_shape = shape
    return wcs


def model(shape=(3, 4), **changes):
    return {
        "filename": "a_cal.fits",
        "data": np.ones(shape, np.float32),
        "dq": np.zeros(shape, np.uint32),
        "var_rnoise": np.full(shape, 0.25, np.float32),
        "var_sky": np.full(shape, 0.5, np.float32),
        "exposure_time": 7.0,
        "measurement_time": 5.0,
    } | changes


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int32", "uint32", "uint8", "int16", ">i4", "uint64"])
@given(data=st.data())
def test_mask_by_definition(kind, data):
    """A pixel is good if all bits that are set in it are among the good ones."""
    bits = np.dtype(kind)
    dq = data.draw(hnp.arrays(bits, st.tuples(st.integers(1, 4), st.integers(1, 4))))
    good = data.draw(st.integers(0, 2 ** (8 * bits.itemsize) - 1))
    expected = [
        [all(good >> k & 1 for k in range(8 * bits.itemsize) if int(value) >> k & 1) for value in row] for row in dq
    ]
    mask = utils.build_mask(dq, good)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("names", [NAMES, NameMap])
@pytest.mark.parametrize(
    ("good_bits", "same_as"),
    [
        ("1, 4", 5),
        ("1+4", 5),
        ("1|4", 5),
        ([1, 4], 5),
        ("DO_NOT_USE,JUMP_DET", 5),
        (["DO_NOT_USE", "JUMP_DET"], 5),
        ("~SATURATED", ~2),
        ("~1,4", ~5),
        ("~0", None),
        ("", None),
        ("None", None),
    ],
)
def test_mask_by_names_and_texts(names, good_bits, same_as):
    dq = np.arange(16).reshape(4, 4)
    result = utils.build_mask(dq, good_bits, flag_name_map=names)
    expected = np.ones((4, 4)) if same_as is None else (dq & ~same_as) == 0
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("good_bits", ["UNKNOWN", 2.5, "1,,4", {3: 4}, True])
def test_good_bits_that_make_no_sense(good_bits):
    with pytest.raises(InputError, match=r"good_bits is .*dq_flag_name_map"):
        utils.build_mask(np.zeros((2, 2), int), good_bits, NAMES)


@pytest.mark.parametrize("dq", [np.zeros((2, 2)), np.zeros((2, 2), bool), None, "abc"])
def test_data_quality_must_be_integers(dq):
    with pytest.raises(InputError, match="must be integers; found"):
        utils.build_mask(dq, 0)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float32", "float64", ">f4", "int32"])
@given(data=st.data())
def test_inverse_variance_by_definition(kind, data):
    values = st.one_of(st.sampled_from([0, -1, 1, 3]), st.integers(-5, 5))
    if np.dtype(kind).kind == "f":
        tiny = np.float32(1e-45)  # its inverse is beyond float32
        values = st.one_of(values, st.floats(width=32), st.sampled_from([np.nan, np.inf, -np.inf, tiny, -tiny]))
    variance = data.draw(hnp.arrays(kind, (2, 3), elements=values))
    before = variance.copy()
    result = utils._get_inverse_variance(variance, (2, 3), "var_rnoise")
    np.testing.assert_array_equal(variance, before)
    assert result.dtype == np.float32
    for inverse, value in zip(result.flat, variance.ravel().tolist(), strict=True):
        exact = 1 / value if value > 0 else 0.0
        # rounding of the quotient to float32 (half a unit: 6e-8), or to a subnormal number (half of 1.4e-45)
        expected = exact if exact <= float(np.finfo(np.float32).max) else 0.0
        assert inverse == pytest.approx(expected, rel=1e-7, abs=1e-45)


@pytest.mark.parametrize("variance", [None, np.ones((2, 2)), np.ones(3), np.float32(1)])
def test_variance_that_is_not_there_weighs_1_and_is_logged(caplog, variance):
    with caplog.at_level(logging.WARNING):
        weight = utils._get_inverse_variance(variance, (2, 3), "var_sky")
    np.testing.assert_array_equal(weight, np.ones((2, 3), np.float32))
    assert re.match("'var_sky' array not available. Setting drizzle weight map to 1", caplog.messages[0])


@pytest.mark.parametrize(("weight_type", "value"), [("ivm", 4.0), ("ivm-sky", 2.0), ("exptime", 5.0), (None, 1.0)])
def test_weight_of_good_pixels(weight_type, value):
    given_ = model()
    given_["dq"][0, 0] = 2
    given_["dq"][0, 1] = 1
    given_["data"][2, 3] = np.nan
    given_["data"][2, 2] = np.inf
    expected = np.full((3, 4), value)
    expected[0, 1] = expected[2, 3] = expected[2, 2] = 0
    for plane in given_.values():
        if isinstance(plane, np.ndarray):
            plane.flags.writeable = False
    weight = utils.build_driz_weight(given_, weight_type, good_bits="SATURATED", flag_name_map=NAMES)
    assert weight.dtype == np.float32
    assert weight.flags.writeable
    np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize("weight_type", ["ivm", "ivm-sky", "exptime", None])
def test_weights_of_a_data_model(weight_type):
    """The pipeline of JWST hands over its data models, which have model[key] and nothing else of a mapping."""

    class DataModel:
        def __init__(self, values):
            self._values = values

        def __getitem__(self, key):
            return self._values[key]

    for given_ in (model(), {k: v for k, v in model().items() if k in ("data", "dq", "exposure_time")}):
        expected = utils.build_driz_weight(given_, weight_type, good_bits=0)
        np.testing.assert_array_equal(utils.build_driz_weight(DataModel(given_), weight_type, good_bits=0), expected)
    with pytest.raises(KeyError, match="has no 'dq'"):
        utils.build_driz_weight(DataModel({"data": np.ones((3, 4)), "exposure_time": 7.0}), weight_type, good_bits=0)


def test_without_good_bits_there_need_be_no_data_quality():
    expected = utils.build_driz_weight(model(dq=np.full((3, 4), 9)), "ivm", good_bits=None)
    np.testing.assert_array_equal(expected, np.full((3, 4), 4))
    np.testing.assert_array_equal(utils.build_driz_weight(model(dq=None), "ivm", good_bits=None), expected)


def test_exposure_time_stands_in_for_measurement_time():
    assert utils.get_tmeasure(model()) == (5.0, True)
    assert utils.get_tmeasure(model(measurement_time=None)) == (7.0, False)
    assert utils.get_tmeasure({"exposure_time": 7.0}) == (7.0, False)
    assert utils.get_tmeasure(model(measurement_time=0.0)) == (0.0, True)
    with pytest.raises(KeyError, match=r"Model b\.fits has neither") as error:
        utils.get_tmeasure({"filename": "b.fits"})
    assert isinstance(error.value, InputError)


@pytest.mark.parametrize("time", [math.nan, math.inf, -1.0, None, "7"])
def test_times_that_make_no_weight(time):
    with pytest.raises(InputError, match=r"Model a_cal\.fits has the exposure time"):
        utils.build_driz_weight(model(measurement_time=None, exposure_time=time), "exptime", 0)


@pytest.mark.parametrize("weight_type", ["ivm-typo", "foo", "", 3])
def test_unknown_kind_of_weight(weight_type):
    with pytest.raises(ValueError, match=f"^Invalid weight type: {weight_type!r}"):
        utils.build_driz_weight(model(), weight_type, 0)


def test_planes_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"a_cal.*'dq' of shape \(4, 3\), and 'data' of shape \(3, 4\)"):
        utils.build_driz_weight(model(dq=np.zeros((4, 3), int)), "ivm", 0)
    for key in ("data", "dq"):
        with pytest.raises(KeyError, match=f"has no '{key}'"):
            utils.build_driz_weight(model(**{key: None}), "ivm", 0)


# --- ranges, units ----------------------------------------------------------------------------------------------------


@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    ends=st.tuples(*[st.floats(-40, 40) | st.sampled_from([-math.inf, math.inf]) for _ in range(4)]),
)
def test_range_within_a_box(shape, ends):
    """Pixels whose centres lie in a box are in the range, and those half a pixel outside are not."""
    x0, x1, y0, y1 = ends
    result = utils.resample_range(shape, ((x0, x1), (y0, y1)))
    for (low, high), (first, last), n in zip(((x0, x1), (y0, y1)), (result[:2], result[2:]), shape[::-1], strict=True):
        assert 0 <= first <= last <= n - 1
        inside = [k for k in range(n) if low <= k <= high]
        assert all(first <= k <= last for k in inside)
        if inside:
            assert first > low - 0.5 - 1e-9 or first == 0
            assert last <= high + 0.5


@pytest.mark.parametrize(
    ("shape", "box", "expected"),
    [
        ((750, 470), None, (0, 469, 0, 749)),
        ((10, 20), ((1.5, 8.4), (2.5, 7)), (2, 8, 3, 7)),  # halves up
        ((1200, 1400), ((700, 300), (600, 800)), (700, 700, 600, 800)),
        ((750, 470), ((-5, -1), (-800, -600)), (0, 0, 0, 0)),
        ((750, 470), ((300, 700), (600, 800)), (300, 469, 600, 749)),
        ((3, 4), ((9, 20), (0, 2)), (3, 3, 0, 2)),
        ((1, 1), ((-0.5, 0.5), (-0.5, 0.5)), (0, 0, 0, 0)),
        ((-750, -470), None, (0, 0, 0, 0)),
    ],
)
def test_ranges(shape, box, expected):
    assert utils.resample_range(shape, box) == expected


def test_range_of_a_gwcs_box():
    wcs = as_gwcs((50, 60))
    assert utils.resample_range((50, 60), wcs.bounding_box) == (0, 59, 0, 49)
    wcs.bounding_box = ((5.5, 20.2), (2, 9))
    assert utils.resample_range((50, 60), wcs.bounding_box) == (6, 20, 2, 9)


@pytest.mark.parametrize(
    ("shape", "box"),
    [((3,), None), (3, None), ((1, 2, 3), None), ((9, 9), ((1, 5),)), ((9, 9), 4), ((9, 9), ((math.nan, 5), (1, 2)))],
)
def test_ranges_that_make_no_sense(shape, box):
    with pytest.raises(InputError, match="of length 2"):
        utils.resample_range(shape, box)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("Jy", True),
        ("MJy", True),
        (units.mJy, True),
        ("MJy/sr", False),
        ("DN/s", False),
        ("electron", False),
        ("no unit", False),
        ("", False),
        (None, False),
    ],
)
def test_flux_density(unit, expected):
    assert utils.is_flux_density(unit) is expected


# --- systems and areas ------------------------------------------------------------------------------------------------


def test_imaging_systems():
    assert utils.is_imaging_wcs(tan((9, 9)))
    assert utils.is_imaging_wcs(as_gwcs((9, 9)))
    assert utils.is_imaging_wcs(WCS(Header({"CTYPE1": "GLAT-CAR", "CTYPE2": "GLON-CAR"})))
    spatial = cf.Frame2D(name="sky", axes_type=("SPATIAL", "SPATIAL"))
    assert utils.is_imaging_wcs(GWCS([(cf.Frame2D(name="detector"), models.Identity(2)), (spatial, None)]))
    for other in (slit(), WCS(naxis=2), WCS(Header({"CTYPE1": "WAVE"})), None, 3):
        assert not utils.is_imaging_wcs(other)


def mean_area_of_all_pixels(wcs, x, y):
    """Return the sum of the areas of all cells of a grid of corners over their number, on the tangent plane."""
    lon, lat = np.deg2rad(wcs.pixel_to_world_values(*np.meshgrid(x, y)))
    middle = [np.rad2deg(lon.mean()), np.rad2deg(lat.mean())]
    sky = coordinates.SkyCoord(lon, lat, unit="rad")
    offsets = sky.transform_to(coordinates.SkyOffsetFrame(origin=coordinates.SkyCoord(*middle, unit="deg")))
    # equal-area coordinates about the middle: longitude, sine of latitude
    u, v = offsets.lon.wrap_at("180d").rad, np.sin(offsets.lat.rad)
    d1u, d1v = u[1:, 1:] - u[:-1, :-1], v[1:, 1:] - v[:-1, :-1]
    d2u, d2v = u[1:, :-1] - u[:-1, 1:], v[1:, :-1] - v[:-1, 1:]
    cells = np.abs(0.5 * (d1u * d2v - d1v * d2u))
    return cells.sum() / (x[-1] - x[0]) / (y[-1] - y[0])


@pytest.mark.parametrize("crval", [(150.0, 2.0), (0.0, 0.0), (359.999, -88.0), (30.0, 89.99)])
@pytest.mark.parametrize("make", [tan, as_gwcs])
def test_area_is_the_mean_over_all_pixels(make, crval):
    shape = (300, 400)
    wcs = make(shape, scale=2e-4, crval=crval)
    expected = mean_area_of_all_pixels(tan(shape, 2e-4, crval), np.arange(-0.5, 400), np.arange(-0.5, 300))
    # sides of cells (and of the outline, in pieces of 15 pixels) are great circles here and straight lines in (u, v)
    # there: they differ by curvature, 15 pixels * the size of the image in radians squared
    assert utils.compute_mean_pixel_area(wcs) == pytest.approx(expected, rel=1e-6)


def test_area_of_a_distorted_image():
    shape = (300, 300)
    header = tan(shape, 2e-5).to_header()
    header.update({"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2})
    header.update({"A_2_0": 3e-5, "B_0_2": 4e-5, "A_0_2": -1e-5})
    wcs = WCS(header)
    wcs.array_shape = shape
    expected = mean_area_of_all_pixels(wcs, np.arange(-0.5, 300), np.arange(-0.5, 300))
    # a side of 15 pixels bends by 3e-5 * 7.5^2 = 1.7e-3 pixel, of an image of 300: 6e-6, 2/3 of it on average
    assert utils.compute_mean_pixel_area(wcs) == pytest.approx(expected, rel=1e-5)
    before = wcs.to_header(relax=True).tostring()
    utils.compute_mean_pixel_area(wcs)
    assert wcs.to_header(relax=True).tostring() == before


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (3, 3), (1, 500)])
def test_area_of_tiny_images(shape):
    # at the tangent point; 500 pixels of 1e-5 degrees are 1e-4 radians: less by 1e-8
    nominal = np.deg2rad(1e-5) ** 2
    for wcs in (tan(shape), as_gwcs(shape)):
        assert utils.compute_mean_pixel_area(wcs) == pytest.approx(nominal, rel=2e-8)


def test_which_pixels_the_mean_is_over():
    wcs = as_gwcs((4000, 4000), scale=1e-3)  # 2.8 degrees at the corner: pixels there are smaller by 3.6e-3
    wcs.bounding_box = ((-0.5, 99.5), (-0.5, 99.5))
    corner = utils.compute_mean_pixel_area(wcs)
    assert utils.compute_mean_pixel_area(wcs, (4000, 4000)) == corner
    wcs.bounding_box = ((-30, 99.5), (-30, 99.5))  # beyond the image
    assert utils.compute_mean_pixel_area(wcs) == corner
    wcs.bounding_box = None
    assert utils.compute_mean_pixel_area(wcs, (100, 100)) == pytest.approx(corner, rel=1e-12)
    assert utils.compute_mean_pixel_area(wcs) > 1.001 * corner
    fits = tan((4000, 4000), scale=1e-3)
    assert utils.compute_mean_pixel_area(fits, (100, 100)) == pytest.approx(corner, rel=1e-9)
    wcs.array_shape = None
    with pytest.raises(ValueError, match="Either WCS must have 'array_shape'"):
        utils.compute_mean_pixel_area(wcs)
    wcs.bounding_box = ((-0.5, 99.5), (-0.5, 99.5))
    assert utils.compute_mean_pixel_area(wcs) == pytest.approx(corner, rel=1e-12)
    wcs.bounding_box = ((200, 300), (200, 300))
    with pytest.raises(InputError, match="no pixel in the bounding box"):
        utils.compute_mean_pixel_area(wcs, (100, 100))
    with pytest.raises(InputError, match=r"\(ny, nx\)"):
        utils.compute_mean_pixel_area(fits, (100,))


def test_area_of_what_is_no_image():
    assert utils.compute_mean_pixel_area(slit()) == 0.0
    for other in (WCS(naxis=2), None, GWCS([(cf.Frame2D(name="detector"), models.Identity(2)), ("world", None)])):
        with pytest.raises(utils.UnsupportedWCSError, match="two celestial axes"):
            utils.compute_mean_pixel_area(other, (9, 9))
    assert issubclass(utils.UnsupportedWCSError, RuntimeError)


class Holed:
    """A tangent-plane system that is not defined in some of the image."""

    world_axis_physical_types = ("pos.eq.ra", "pos.eq.dec")
    world_axis_units = ("deg", "deg")
    bounding_box = None

    def __init__(self, shape, hole):
        self.array_shape, self.hole = shape, hole
        self.inner = tan(shape)

    def pixel_to_world_values(self, x, y):
        lost = self.hole(np.asarray(x), np.asarray(y))
        return tuple(np.where(lost, np.nan, world) for world in self.inner.pixel_to_world_values(x, y))


@pytest.mark.parametrize(
    "hole",
    [lambda x, y: x < 60.3, lambda x, y: y > 120, lambda x, y: (x > 180) | (y < 5), lambda x, y: x + y < 20],
)
def test_area_where_the_system_is_not_defined_everywhere(hole):
    # over what is left of 200 pixels of 1.7e-7 radians each, areas differ by their squares
    area = utils.compute_mean_pixel_area(Holed((200, 200), hole))
    assert area == pytest.approx(np.deg2rad(1e-5) ** 2, rel=1e-8)


def test_no_area_where_the_system_is_defined_nowhere():
    assert utils.compute_mean_pixel_area(Holed((200, 200), lambda x, y: x > -5)) is None


def test_octant_of_the_sphere():
    area = _polygon_area(np.eye(3))
    assert area == pytest.approx(np.pi / 2, rel=1e-15)
    flat = np.array([[1.0, 0, 0], [1, 1e-3, 0], [1, 2e-3, 0], [1, 1e-3, 0]])
    assert _polygon_area(flat / np.linalg.norm(flat, axis=1)[:, None]) == 0
    assert _FLATTEST < 1e-5  # a slit of 100 000 pixels by one has an area


def test_latitude_may_come_first():
    wcs = WCS(Header({"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CDELT1": 1e-5, "CDELT2": 1e-5, "CRVAL1": 60.0}))
    assert _sky_axes(wcs) == (1, 0)
    assert utils.compute_mean_pixel_area(wcs, (10, 10)) == pytest.approx(np.deg2rad(1e-5) ** 2, rel=1e-9)


@given(
    box=st.tuples(*[st.integers(-50, 50) for _ in range(2)], *[st.integers(1, 80) for _ in range(2)]),
    steps=st.tuples(*[st.none() | st.floats(0.5, 100) for _ in range(2)]),
    shrink=st.sampled_from([0, 0.25]),
)
def test_points_of_an_outline(box, steps, shrink):
    x0, y0, nx, ny = box
    x, y, area, centre, *edges = utils._get_boundary_points(x0, x0 + nx, y0, y0 + ny, *steps, shrink)
    # the polygon has the sense and the area that are promised; all its corners are there, no point is twice
    assert 0.5 * np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) == pytest.approx(area, rel=1e-12)
    assert area == pytest.approx((nx - 2 * shrink) * (ny - 2 * shrink))
    assert centre == (x0 + nx / 2, y0 + ny / 2)
    assert len(set(zip(x, y, strict=True))) == len(x) == sum(len(x[edge]) for edge in edges)
    limits = y0 + shrink, x0 + nx - shrink, y0 + ny - shrink, x0 + shrink
    for edge, coordinate, limit in zip(edges, (y, x, y, x), limits, strict=True):
        assert np.all(coordinate[edge] == limit)
    longest = np.max(np.abs(np.diff(np.append(x, x[0])))), np.max(np.abs(np.diff(np.append(y, y[0]))))
    for step, longest_, size in zip(steps, longest, (nx, ny), strict=True):
        assert longest_ <= min(math.inf if step is None else step, size) * (1 + 1e-12)


# --- pixel maps by steps ----------------------------------------------------------------------------------------------


def with_table(shape, pitch):
    """Return a FITS system with a distortion table of a given pitch, which no error can be promised for."""
    from astropy.wcs import DistortionLookupTable

    wcs = tan(shape, 1e-5)
    y, x = np.mgrid[: shape[0] // pitch + 2, : shape[1] // pitch + 2]
    table = (0.3 * np.sin(x / 3) * np.cos(y / 4)).astype(np.float32)
    wcs.cpdis1 = DistortionLookupTable(table, (1, 1), (1, 1), (pitch, pitch))
    wcs.array_shape = shape
    return wcs


@pytest.mark.parametrize(("order", "error"), [(1, 3e-3), (3, 3e-3)])
def test_steps_over_fine_tables(order, error):
    source, target = with_table((120, 130), 10), tan((150, 150), 1e-5)
    exact = utils.calc_pixmap(source, target)
    sparse = utils.calc_pixmap(source, target, stepsize=2, order=order)
    np.testing.assert_array_equal(utils.calc_pixmap(source, target, stepsize=2.0, order=order), sparse)
    # nodes every 2 pixels of a map that is bilinear in cells of 10: what is lost is at its kinks, where the slope of
    # 0.03 per pixel changes by 0.003 or so
    assert 0 < np.abs(sparse - exact).max() < error
    np.testing.assert_array_equal(utils.calc_pixmap(source, target, None, "to", 1, order), exact)


def test_step_does_not_coarsen_what_is_known_to_be_smooth():
    source, target = tan((120, 130), 1e-5, (150.0005, 2.0)), tan((150, 150), 1.1e-5)
    np.testing.assert_array_equal(
        utils.calc_pixmap(source, target, stepsize=60), utils.calc_pixmap(source, target, stepsize=1)
    )


def test_steps_that_make_no_sense():
    wcs = tan((20, 20))
    for step in (0, -3, 0.5, math.nan, math.inf, None):
        with pytest.raises(InputError, match="stepsize is"):
            utils.calc_pixmap(wcs, wcs, stepsize=step)
    for order in (0, 2, 5, None, "cubic"):
        with pytest.raises(InputError, match="Interpolation order should be either 1 or 3"):
            utils.calc_pixmap(wcs, wcs, stepsize=2, order=order)
    assert utils.calc_pixmap(wcs, wcs, order=2).shape == (20, 20, 2)  # without effect


def test_steps_on_images_smaller_than_the_spline():
    source, target = with_table((2, 3), 10), tan((9, 9))
    np.testing.assert_array_equal(
        utils.calc_pixmap(source, target, stepsize=10, order=3), utils.calc_pixmap(source, target)
    )


def test_planes_and_shapes_that_are_no_numbers():
    for wrong in (np.ones((2, 3), complex), np.full((2, 3), None)):
        with pytest.raises(InputError, match="'var_sky' is of type"):
            utils._get_inverse_variance(wrong, (2, 3), "var_sky")
    with pytest.raises(InputError, match="data_shape"):
        utils.resample_range("ab")
    from skyloom.compat.stcal.resample import utils as names

    assert names._get_boundary_points is utils._get_boundary_points
