"""Pixel maps between two WCS, against the systems themselves evaluated pixel by pixel."""

import copy
import warnings

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import ICRS
from astropy.modeling import models
from astropy.wcs import WCS, DistortionLookupTable, Sip
from hypothesis import given, settings
from hypothesis import strategies as st

from skyloom.errors import InputError, WcsError
from skyloom.resampling import calc_pixmap, estimate_pixel_scale_ratio
from skyloom.resampling.pixmap import estimate_pixel_scale, radians_per

SCALE = 0.05 / 3600  # degrees


def fits_wcs(size=200, *, degrees=0.0, scale=SCALE, sip=0.0, crval=(150.0, 2.0), ctype="TAN"):
    """Return a FITS WCS of size x size pixels; `sip` is the distortion at the border, in pixels."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [f"RA---{ctype}" + ("-SIP" if sip else ""), f"DEC--{ctype}" + ("-SIP" if sip else "")]
    wcs.wcs.crval, wcs.wcs.crpix = crval, (size / 2, size / 2)
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    wcs.wcs.cd = scale * np.array([[-c, s], [s, c]])
    if sip:
        a, b = np.zeros((2, 4, 4))
        half = size / 2
        a[2, 0], a[1, 1], a[3, 0] = sip / half**2, -0.5 * sip / half**2, 0.3 * sip / half**3
        b[0, 2], b[1, 1], b[2, 1] = 0.7 * sip / half**2, 0.4 * sip / half**2, 0.2 * sip / half**3
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    wcs.array_shape = (size, size)
    return wcs


def gwcs_wcs(size=200, *, shift=0.0, box=True):
    """Return a gwcs with a distortion and an exact inverse, defined half a pixel beyond the image."""
    gwcs = pytest.importorskip("gwcs")
    from gwcs.coordinate_frames import CelestialFrame, Frame2D

    centre = models.Shift(-size / 2 - shift) & models.Shift(-size / 2)
    bend = models.Mapping((0, 1, 1)) | (models.Polynomial2D(2, c1_0=1, c0_2=0.02 / size) & models.Identity(1))
    bend.inverse = models.Mapping((0, 1, 1)) | (models.Polynomial2D(2, c1_0=1, c0_2=-0.02 / size) & models.Identity(1))
    scale = models.Scale(-SCALE) & models.Scale(SCALE)
    sky = models.Pix2Sky_TAN() | models.RotateNative2Celestial(150.0, 2.0, 180.0)
    detector = Frame2D(name="detector", unit=(units.pix, units.pix))
    world = CelestialFrame(reference_frame=ICRS(), name="world", unit=(units.deg, units.deg))
    wcs = gwcs.WCS([(detector, centre | bend | scale | sky), (world, None)])
    wcs.array_shape = (size, size)
    if box:
        wcs.bounding_box = ((-0.5, size - 0.5), (-0.5, size - 0.5))
    return wcs


def plain(wcs_from, wcs_to, shape):
    """The definition: every pixel through the sky."""
    y, x = np.indices(shape, dtype=float)
    return np.dstack(wcs_to.world_to_pixel_values(*wcs_from.pixel_to_world_values(x, y)))


def assert_same_map(found, expected, tolerance):
    """NaN in the same pixels, and all others within a tolerance."""
    lost = np.isnan(expected).any(axis=2)
    np.testing.assert_array_equal(np.isnan(found).any(axis=2), lost)
    assert np.abs(found - expected)[~lost].max() <= tolerance


# --- accuracy -------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    degrees=st.floats(-180, 180),
    ratio=st.floats(0.3, 3),
    sip=st.sampled_from([0.0, 0.5, 5.0, 20.0]),
    offset=st.floats(-0.01, 0.01),
)
def test_map_of_a_distorted_image_is_within_the_tolerance(shape, degrees, ratio, sip, offset):
    source = fits_wcs(sip=sip)
    target = fits_wcs(degrees=degrees, scale=ratio * SCALE, crval=(150 + offset, 2 - offset))
    assert_same_map(calc_pixmap(source, target, shape), plain(source, target, shape), 1e-5)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("step", [128, 64, 32])
def test_kinks_of_lookup_tables_are_within_the_tolerance(tolerance, step):
    size = 512
    source, target = fits_wcs(size, sip=3.0), fits_wcs(size, degrees=3.0)
    rng = np.random.default_rng(step)
    nodes = size // step + 1
    tables = [
        DistortionLookupTable(rng.normal(0, 0.05, (nodes, nodes)).astype(np.float32), (1, 1), (1, 1), (step, step))
        for _ in range(2)
    ]
    source.cpdis1, source.cpdis2 = tables
    assert_same_map(calc_pixmap(source, target, tolerance=tolerance), plain(source, target, (size, size)), tolerance)


@pytest.mark.parametrize("tolerance", [0, None])
def test_without_tolerance_every_pixel_is_evaluated(tolerance):
    source, target = fits_wcs(150, sip=3.0), fits_wcs(150, degrees=20.0)
    found = calc_pixmap(source, target, tolerance=tolerance)
    np.testing.assert_array_equal(found, plain(source, target, (150, 150)))


def test_inverse_of_a_distortion():
    source, target = fits_wcs(degrees=10.0), fits_wcs(sip=3.0)
    back = calc_pixmap(target, source, tolerance=0)
    forth = calc_pixmap(source, target)
    inside = np.s_[70:130, 70:130]
    x, y = np.rint(forth[inside][..., 0]).astype(int), np.rint(forth[inside][..., 1]).astype(int)
    # to first order around the nearest pixel: the second-order rest is below 1e-4 of half a pixel squared here
    step = forth[inside] - np.stack([x, y], axis=-1)
    along_x, along_y = np.gradient(back, axis=1), np.gradient(back, axis=0)
    again = back[y, x] + step[..., :1] * along_x[y, x] + step[..., 1:] * along_y[y, x]
    yy, xx = np.mgrid[inside]
    assert np.abs(again - np.stack([xx, yy], axis=-1)).max() < 1e-3


def test_inverse_of_a_strong_distortion_is_found_everywhere():
    # 20 pixels at the border of 200: the iteration for the inverse converges slowly there
    source, target = fits_wcs(degrees=10.0), fits_wcs(sip=20.0)
    found = calc_pixmap(source, target)
    assert np.isfinite(found).all()
    again = np.dstack(source.world_to_pixel_values(*target.pixel_to_world_values(found[..., 0], found[..., 1])))
    y, x = np.indices((200, 200))
    # 1e-5 of the target, whose pixels are up to 1.5 times as large there
    assert np.abs(again - np.dstack([x, y])).max() < 1.5e-5


def test_edge_of_a_projection():
    # an image of half the sky and more: beyond 90 degrees from its centre nothing has a place in the target
    source, target = fits_wcs(300, scale=1.0, ctype="ARC"), fits_wcs(300, scale=0.5)
    found, expected = calc_pixmap(source, target), plain(source, target, (300, 300))
    assert 0.1 < np.isnan(expected).any(axis=2).mean() < 0.9
    assert_same_map(found, expected, 1e-5)


def test_jump_of_a_projection():
    # the far side of a cylindrical map goes through the middle of the image: x jumps by 360 degrees
    source = fits_wcs(240, scale=0.05, crval=(330.0, 0.0))
    target = fits_wcs(400, scale=1.0, crval=(150.0, 0.0), ctype="CAR")
    found, expected = calc_pixmap(source, target), plain(source, target, (240, 240))
    assert np.ptp(expected[120, :, 0]) > 300
    assert_same_map(found, expected, 1e-5)


def test_systems_in_different_celestial_frames():
    source, target = fits_wcs(100, sip=1.0), fits_wcs(100)
    galactic = copy.deepcopy(target)
    galactic.wcs.ctype = ["GLON-TAN", "GLAT-TAN"]
    centre = target.pixel_to_world(49.0, 49.0).galactic
    galactic.wcs.crval = [centre.l.deg, centre.b.deg]
    galactic.wcs.set()
    y, x = np.indices((100, 100))
    expected = np.dstack(galactic.world_to_pixel(source.pixel_to_world(x, y)))
    assert_same_map(calc_pixmap(source, galactic), expected, 1e-5)


@pytest.mark.parametrize("tolerance", [1e-5, 0])
def test_same_bits_for_any_number_of_threads(tolerance, monkeypatch):
    source, target = fits_wcs(600, degrees=3.0), fits_wcs(600, sip=3.0)
    results = []
    for threads in (1, 3):
        monkeypatch.setenv("SKYLOOM_NUM_THREADS", str(threads))
        results.append(calc_pixmap(source, target, tolerance=tolerance))
    np.testing.assert_array_equal(*results)


# --- shape and bounding boxes -----------------------------------------------------------------------------------


def test_shape_comes_from_the_argument_then_the_image_then_the_box():
    source, target = fits_wcs(50), fits_wcs(50)
    source.bounding_box = ((5.3, 33.5), (2.8, 11.5))  # means nothing to astropy.wcs, but tells a shape
    assert calc_pixmap(source, target, (12, 34)).shape == (12, 34, 2)
    assert calc_pixmap(source, target).shape == (50, 50, 2)
    source.pixel_shape = None
    found = calc_pixmap(source, target)
    assert found.shape == (12, 34, 2)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    source.bounding_box = None
    with pytest.raises(InputError, match="must have pixel_shape"):
        calc_pixmap(source, target)


@pytest.mark.parametrize("disable", ["to", "from", "both", "none"])
@pytest.mark.parametrize("tolerance", [1e-5, 0])
def test_bounding_boxes_of_gwcs(disable, tolerance):
    source, target = gwcs_wcs(shift=1.7), gwcs_wcs(size=180)
    source.bounding_box = ((9.5, 150.2), (-0.5, 99.7))
    expected = plain(gwcs_wcs(shift=1.7, box=False), gwcs_wcs(size=180, box=False), (200, 200))
    y, x = np.indices((200, 200))
    if disable in ("to", "none"):
        expected[(x < 9.5) | (x > 150.2) | (y > 99.7)] = np.nan
    if disable in ("from", "none"):
        with np.errstate(invalid="ignore"):
            expected[(np.abs(expected - 89.5) > 90).any(axis=2)] = np.nan
    found = calc_pixmap(source, target, disable_bbox=disable, tolerance=tolerance)
    assert_same_map(found, expected, 1e-5)
    assert np.isnan(found).any() == (disable != "both")


def test_pixel_bounds_of_a_fits_wcs_are_its_box():
    source, target = fits_wcs(100, sip=2.0), fits_wcs(100)
    source.pixel_bounds = [(20, 60), None]
    target.pixel_bounds = [None, (30, 200)]
    exact = plain(fits_wcs(100, sip=2.0), fits_wcs(100), (100, 100))
    columns = np.arange(100)
    expected = np.where(((columns < 20) | (columns > 60))[None, :, None], np.nan, exact)
    assert_same_map(calc_pixmap(source, target), expected, 1e-5)
    expected[exact[..., 1] < 30] = np.nan
    assert_same_map(calc_pixmap(source, target, disable_bbox="none"), expected, 1e-5)
    assert_same_map(calc_pixmap(source, target, disable_bbox="both"), exact, 1e-5)
    assert source.pixel_bounds == [(20, 60), None]


def test_systems_are_never_changed():
    target = gwcs_wcs()
    source = gwcs_wcs(shift=3.0)

    class Watched(type(source)):
        def pixel_to_world_values(self, *arguments):
            assert source.bounding_box is not None  # the caller's own, while the map is computed
            assert target.bounding_box is not None
            raise ZeroDivisionError

    source.__class__ = Watched
    boxes = [tuple(wcs.bounding_box) for wcs in (source, target)]
    with pytest.raises(ZeroDivisionError):
        calc_pixmap(source, target, disable_bbox="both")
    assert [tuple(wcs.bounding_box) for wcs in (source, target)] == boxes


def test_gwcs_with_a_table_is_evaluated_on_every_pixel():
    gwcs = pytest.importorskip("gwcs")
    base = gwcs_wcs(100, box=False)
    steps = np.zeros(100)
    steps[37] = 0.3  # one odd column, which no grid would meet
    table = models.Tabular1D(points=np.arange(100), lookup_table=np.arange(100) + steps)
    transform = (table & models.Identity(1)) | base.forward_transform
    source = gwcs.WCS([(base.input_frame, transform), (base.output_frame, None)])
    source.array_shape = (100, 100)
    target = fits_wcs(100)
    assert_same_map(calc_pixmap(source, target), plain(source, target, (100, 100)), 1e-9)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"disable_bbox": "all"}, InputError, "'to', 'from', 'both' or 'none'"),
        ({"tolerance": -1.0}, InputError, "tolerance is -1"),
        ({"tolerance": float("nan")}, InputError, "tolerance is nan"),
        ({"tolerance": "x"}, InputError, "tolerance is x"),
        ({"shape": (0, 5)}, InputError, "at least 1"),
        ({"shape": (5, 5, 5)}, InputError, r"\(ny, nx\)"),
        ({"wcs_to": "a.fits"}, WcsError, "str"),
        ({"wcs_to": WCS(naxis=3)}, WcsError, "3 pixel"),
    ],
)
def test_bad_arguments(arguments, error, message):
    known = {"wcs_from": fits_wcs(20), "wcs_to": fits_wcs(20)}
    with pytest.raises(error, match=message):
        calc_pixmap(**(known | arguments))


def test_systems_that_have_no_positions_in_common_or_nowhere():
    source, target = fits_wcs(20), fits_wcs(20)
    linear = WCS(naxis=2)
    linear.array_shape = (20, 20)
    with pytest.raises(WcsError, match="same kind"):
        calc_pixmap(linear, target)
    source.wcs.crval = [np.nan, 0.0]  # wcslib makes 1e108 degrees of it
    for pair in ((source, target), (target, source)):
        with pytest.raises(WcsError, match="CRVAL"):
            calc_pixmap(*pair)


def test_orders_may_be_floats():
    source, target = fits_wcs(20), fits_wcs(20, degrees=5.0)
    options = {"tolerance": 0, "stepsize": 3}
    for order in (1, 3):
        whole = calc_pixmap(source, target, order=order, **options)
        np.testing.assert_array_equal(calc_pixmap(source, target, order=float(order), **options), whole)


@pytest.mark.parametrize("refpix", ["ab", 5, (1,), (1, 2, 3)])
def test_reference_pixels_that_are_none(refpix):
    with pytest.raises(InputError, match="refpix"):
        estimate_pixel_scale(fits_wcs(), refpix)


# --- pixel scales -----------------------------------------------------------------------------------------------


@given(
    lon=st.floats(0, 360),
    lat=st.sampled_from([-90.0, -89.9999, -60.0, 0.0, 45.0, 89.999, 90.0]),
    degrees=st.floats(0, 360),
    ratio=st.floats(0.1, 10),
)
def test_scale_at_the_tangent_point_is_that_of_the_matrix(lon, lat, degrees, ratio):
    wcs = fits_wcs(crval=(lon, lat), degrees=degrees, scale=ratio * SCALE)
    scale = estimate_pixel_scale(wcs, wcs.wcs.crpix - 1)
    # coordinates of 360 degrees are rounded to 6e-14 degrees, which are 4e-8 of the smallest pixel here
    assert scale == pytest.approx(np.deg2rad(ratio * SCALE), rel=1e-7)


def test_scale_away_from_the_tangent_point():
    # on a gnomonic projection an angle theta from the centre the area shrinks by cos^3(theta)
    wcs = fits_wcs(scale=1e-3)
    scale = estimate_pixel_scale(wcs, (99 + 10_000, 99))
    theta = np.arctan(np.deg2rad(10.0))
    assert scale == pytest.approx(np.deg2rad(1e-3) * np.cos(theta) ** 1.5, rel=1e-9)


def test_ratio_is_of_the_output_over_the_input():
    source, target = fits_wcs(), fits_wcs(scale=2.5 * SCALE)
    ratio = estimate_pixel_scale_ratio(source, target, source.wcs.crpix - 1, target.wcs.crpix - 1)
    assert type(ratio) is float
    assert ratio == pytest.approx(2.5, rel=1e-7)


def test_default_pixel_is_the_middle_of_the_box_of_the_image_or_the_origin():
    wcs = fits_wcs(201, scale=0.05)
    assert estimate_pixel_scale(wcs) == estimate_pixel_scale(wcs, (100, 100))
    wcs.bounding_box = ((-0.5, 20.5), (10.0, 50.0))
    assert estimate_pixel_scale(wcs) == estimate_pixel_scale(wcs, (10, 30))
    wcs.bounding_box = None
    wcs.pixel_shape = None
    assert estimate_pixel_scale(wcs) == estimate_pixel_scale(wcs, (0, 0))
    boxed = gwcs_wcs()
    assert estimate_pixel_scale(boxed) == estimate_pixel_scale(boxed, (99.5, 99.5))
    assert estimate_pixel_scale(boxed, (-0.5, 300.0)) > 0  # the box does not matter


def test_latitude_may_come_first():
    wcs = fits_wcs()
    swapped = copy.deepcopy(wcs)
    swapped.wcs.ctype = list(wcs.wcs.ctype)[::-1]
    swapped.wcs.crval = wcs.wcs.crval[::-1]
    swapped.wcs.cd = wcs.wcs.cd[::-1]
    swapped.wcs.set()
    assert estimate_pixel_scale(swapped, (3, 7)) == pytest.approx(estimate_pixel_scale(wcs, (3, 7)), rel=1e-9)


def test_scale_where_there_is_no_sky():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wcs = fits_wcs(scale=1.0, ctype="ARC")
        with pytest.raises(WcsError, match="no area"):
            estimate_pixel_scale(wcs, (1000, 1000))
    with pytest.raises(WcsError, match="two-dimensional"):
        estimate_pixel_scale_ratio(wcs, "a.fits")


def test_units_of_a_wcs_are_angles():
    assert [radians_per(unit) for unit in ("rad", "deg", "", "arcsec")] == pytest.approx(
        [1, np.pi / 180, np.pi / 180, np.pi / 648000]
    )
    with pytest.raises(WcsError, match="unit of angle"):
        radians_per("m")
