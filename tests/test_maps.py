"""Coordinate maps: sampled ones against every pixel, WCS against WCS, inverses and areas."""

import copy

import numpy as np
import pytest
from astropy.io.fits import Header
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from skyloom.errors import InputError, ShapeError, WcsError
from skyloom.resampling import SampledMap, compose, invert_map, pixel_area_ratio, sample_map, wcs_map


def tan(ra=150.0, dec=20.0, *, scale=0.5, angle=0.0, shape=(300, 400), frame=None, sip=None):
    """A TAN (or TAN-SIP) WCS with its reference in the middle of the image; scale in arcsec."""
    header = Header()
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    cd = scale / 3600 * np.array([[-c, s], [s, c]])
    names = ("GLON", "GLAT") if frame == "galactic" else ("RA--", "DEC-")
    suffix = "-TAN-SIP" if sip else "-TAN"
    for i in (1, 2):
        header[f"CTYPE{i}"] = names[i - 1] + suffix
        header[f"CRVAL{i}"] = (ra, dec)[i - 1]
        header[f"CRPIX{i}"] = (shape[2 - i] + 1) / 2
        header[f"CUNIT{i}"] = "deg"
        for j in (1, 2):
            header[f"CD{i}_{j}"] = cd[i - 1, j - 1]
    if frame and frame != "galactic":
        header["RADESYS"] = frame.upper()
    if sip:
        header["A_ORDER"] = header["B_ORDER"] = 3
        header.update({"A_2_0": sip, "A_1_1": -sip / 2, "B_0_2": sip, "B_3_0": sip / 300})
    header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = 2, shape[1], shape[0]
    return WCS(header)


def every_pixel(map_, shape):
    x, y = np.meshgrid(np.arange(shape[1]), np.arange(shape[0]))
    return map_(np.stack([x.ravel(), y.ravel()], 1).astype(float)).reshape(*shape, 2)


def distortion(strength, order=3):
    def map_(xy):
        u = xy / 200 - 1
        r = (u**2).sum(axis=1, keepdims=True)
        return xy + strength * u * r ** ((order - 1) / 2)

    return map_


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (7, 9), (8, 8), (64, 65), (301, 402), (500, 40)])
@pytest.mark.parametrize("map_", [lambda xy: xy * 1.01 + 3, distortion(15.0), distortion(30.0, 5)])
def test_sampled_map_keeps_its_tolerance(shape, map_):
    for tolerance in (1e-2, 1e-3, 1e-6):
        pixmap = sample_map(map_, shape, tolerance=tolerance)
        assert np.abs(pixmap - every_pixel(map_, shape)).max() < tolerance


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    wave=st.floats(3, 500),
    amplitude=st.floats(0.01, 3),
)
def test_rough_maps_are_refined(shape, wave, amplitude):
    def map_(xy):
        return xy[:, ::-1] + amplitude * np.sin(2 * np.pi * xy / wave)

    pixmap = sample_map(map_, shape, tolerance=1e-3)
    # a wave shorter than two cells can hide from the test points, so only resolved waves are promised
    if wave > 130:
        assert np.abs(pixmap - every_pixel(map_, shape)).max() < 1e-3
    assert pixmap.shape == (*shape, 2)


def test_few_evaluations_for_a_smooth_map():
    sampled = SampledMap(wcs_map(tan(sip=1e-6), tan(angle=23)), (1000, 1200))
    assert sampled.evaluations < 0.01 * 1000 * 1200


def test_a_step_costs_only_its_neighbourhood():
    def map_(xy):
        return xy + np.where(xy[:, :1] > 511.5, 5.0, 0.0)

    sampled = SampledMap(map_, (1024, 1024))
    np.testing.assert_allclose(sampled.rows(0, 1024), every_pixel(map_, (1024, 1024)), atol=1e-9)
    assert sampled.evaluations < 0.5 * 1024**2


def test_undefined_regions_are_exact():
    def map_(xy):
        return np.where(np.hypot(*(xy - 150).T)[:, None] < 120, xy * 1.5, np.nan)

    pixmap = sample_map(map_, (300, 300))
    expected = every_pixel(map_, (300, 300))
    np.testing.assert_array_equal(np.isnan(pixmap), np.isnan(expected))
    np.testing.assert_allclose(pixmap, expected, atol=1e-9)


def test_half_nan_positions_are_nan():
    pixmap = sample_map(lambda xy: np.column_stack([xy[:, 0], np.where(xy[:, 1] > 3, np.inf, 0)]), (20, 20))
    assert np.isnan(pixmap[4:]).all()
    assert np.isfinite(pixmap[:4]).all()


def test_rows_do_not_depend_on_the_band():
    sampled = SampledMap(distortion(20.0), (200, 150))
    whole = sampled.rows(0, 200)
    for start, stop in [(0, 1), (63, 65), (199, 200), (10, 150)]:
        np.testing.assert_array_equal(sampled.rows(start, stop), whole[start:stop])


def test_bad_arguments():
    identity = lambda xy: xy  # noqa: E731
    for shape in [(0, 3), (3,), "ab", None]:
        with pytest.raises(InputError, match="shape"):
            sample_map(identity, shape)
    for tolerance in (0, -1, np.nan):
        with pytest.raises(InputError, match="tolerance"):
            sample_map(identity, (5, 5), tolerance=tolerance)
    with pytest.raises(ShapeError, match="coordinate map"):
        sample_map(lambda xy: xy[:, 0], (5, 5))
    with pytest.raises(ShapeError, match="pixmap"):
        pixel_area_ratio(np.zeros((3, 3)))


def test_a_map_may_write_into_its_argument():
    def rude(xy):
        xy += 1
        return xy

    np.testing.assert_allclose(sample_map(rude, (50, 50)), every_pixel(lambda xy: xy + 1, (50, 50)))


# --- WCS ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sip", [None, 2e-6])
def test_wcs_map_round_trip(sip):
    a, b = tan(angle=10, sip=sip), tan(ra=150.01, scale=0.4, angle=-40, sip=sip)
    xy = np.random.default_rng(0).uniform(0, 300, (200, 2))
    there = wcs_map(a, b)
    np.testing.assert_allclose(compose(there, wcs_map(b, a))(xy), xy, atol=1e-4)
    sky = a.pixel_to_world(*xy.T)
    np.testing.assert_allclose(there(xy), np.stack(b.world_to_pixel(sky), 1), atol=1e-4)


def test_frames_are_transformed():
    icrs = tan()
    galactic = tan(*_galactic_centre_of(icrs), frame="galactic")
    fk5 = tan(frame="fk5")
    xy = np.array([(10.0, 20.0), (300.0, 200.0)])
    for other in (galactic, fk5):
        sky = icrs.pixel_to_world(*xy.T)
        expected = np.stack(other.world_to_pixel(sky), 1)
        np.testing.assert_allclose(wcs_map(icrs, other)(xy), expected, atol=1e-6)
    assert np.abs(wcs_map(icrs, fk5)(xy) - wcs_map(icrs, icrs)(xy)).max() > 1e-3  # some milliarcseconds


def _galactic_centre_of(wcs):
    sky = wcs.pixel_to_world(199.5, 149.5).galactic
    return sky.l.deg, sky.b.deg


def test_wcs_map_copies_and_never_changes_a_wcs():
    a, b = tan(), tan(angle=5)
    before = copy.deepcopy((a.to_header_string(), b.to_header_string()))
    map_ = wcs_map(a, b)
    xy = np.array([(1.0, 2.0), (30.0, 40.0)])
    first = map_(xy)
    assert (a.to_header_string(), b.to_header_string()) == before
    b.wcs.crval = [10, 10]
    np.testing.assert_array_equal(map_(xy), first)


def test_the_other_side_of_the_sky_is_nowhere():
    xy = np.array([(1.0, 2.0), (200.0, 100.0)])
    assert np.isnan(wcs_map(tan(ra=0, dec=0), tan(ra=180, dec=0))(xy)).all()


def test_diverging_inverse_distortion_is_nan_without_warning():
    far = np.array([(1e5, 1e5), (150.0, 150.0)])
    result = wcs_map(tan(scale=5), tan(scale=0.5, sip=1e-4))(far)
    assert np.isnan(result[0]).all()


def test_gwcs_bounding_boxes():
    gwcs = pytest.importorskip("gwcs")
    from astropy import coordinates as coord
    from astropy import units as u
    from astropy.modeling import models
    from gwcs import coordinate_frames as cf

    model = (
        (models.Shift(-150) & models.Shift(-150))
        | (models.Scale(1 / 3600) & models.Scale(1 / 3600))
        | models.Pix2Sky_TAN()
        | models.RotateNative2Celestial(30, 20, 180)
    )
    detector = cf.Frame2D(name="detector", axes_names=("x", "y"), unit=(u.pix, u.pix))
    sky = cf.CelestialFrame(name="icrs", reference_frame=coord.ICRS(), unit=(u.deg, u.deg))
    wcs = gwcs.WCS([(detector, model), (sky, None)])
    wcs.bounding_box = ((-0.5, 299.5), (-0.5, 299.5))
    fits = tan(ra=30, dec=20, scale=1.0, shape=(300, 300))
    xy = np.array([(10.0, 20.0), (290.0, 150.0), (400.0, 10.0)])
    to_fits = wcs_map(wcs, fits)(xy)
    assert np.isfinite(to_fits[:2]).all()
    assert np.isnan(to_fits[2]).all()  # outside of the source's box
    back = wcs_map(fits, wcs)
    np.testing.assert_allclose(back(to_fits[:2]), xy[:2], atol=1e-6)
    assert np.isfinite(back(np.array([(-50.0, 10.0)]))).all()  # the target's box does not matter
    assert wcs.bounding_box is not None


def test_not_a_wcs():
    with pytest.raises(WcsError, match="source"):
        wcs_map("header", tan())
    with pytest.raises(WcsError, match="target"):
        wcs_map(tan(), WCS(naxis=3))


# --- inverse and area ----------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    angle=st.floats(-180, 180),
    scale=st.floats(0.3, 3),
    mirror=st.booleans(),
    strength=st.floats(-10, 10),
)
def test_inverse_of_a_distorted_map(angle, scale, mirror, strength):
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    matrix = scale * np.array([[c, -s], [s, c]]) @ np.diag([-1 if mirror else 1, 1])
    map_ = compose(distortion(strength), lambda xy: xy @ matrix.T + 20)
    xy = np.random.default_rng(1).uniform(0, 400, (100, 2))
    np.testing.assert_allclose(invert_map(map_, (400, 400))(map_(xy)), xy, atol=1e-6)


def test_inverse_where_there_is_none():
    with pytest.raises(InputError, match="inverted"):
        invert_map(lambda xy: xy * (1, 0), (50, 50))
    with pytest.raises(InputError, match="inverted"):
        invert_map(lambda xy: xy * np.nan, (50, 50))
    disc = invert_map(lambda xy: np.where(np.hypot(*xy.T)[:, None] < 40, xy, np.nan), (50, 50))
    result = disc(np.array([(3.0, 4.0), (100.0, 3.0), (np.nan, 1.0)]))
    np.testing.assert_allclose(result[0], (3, 4))
    assert np.isnan(result[1:]).all()


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (40, 60), (130, 5)])
def test_area_of_an_affine_map_is_its_determinant(shape):
    matrix = np.array([[1.2, -0.3], [0.4, -0.9]])
    area = pixel_area_ratio(every_pixel(lambda xy: xy @ matrix.T, shape))
    np.testing.assert_allclose(area, abs(np.linalg.det(matrix)), rtol=1e-12)


def test_area_is_the_jacobian_of_a_distortion():
    map_ = distortion(20.0)
    shape = (400, 400)
    u = np.stack(np.meshgrid(np.arange(400), np.arange(400)), -1) / 200 - 1
    r = (u**2).sum(-1)
    a = 0.1  # strength / 200
    jacobian = (1 + a * r) * (1 + 3 * a * r)  # radial: tangential stretch times radial stretch
    # error of central differences: third derivatives, a / 200^2; one-sided ones at the border are twice that
    np.testing.assert_allclose(pixel_area_ratio(every_pixel(map_, shape)), jacobian, atol=3e-5)


def test_area_next_to_undefined_positions_is_nan():
    pixmap = every_pixel(lambda xy: xy * 2, (20, 20))
    pixmap[10, 10] = np.nan
    area = pixel_area_ratio(pixmap)
    unknown = np.isnan(area)
    assert unknown.sum() == 4  # its four neighbours; its own neighbours are all known
    np.testing.assert_allclose(area[~unknown], 4)


@pytest.mark.parametrize("wrong", [lambda xy: xy + 0j, lambda xy: "a", lambda xy: xy.astype(str)])
def test_maps_that_give_no_real_numbers(wrong):
    with pytest.raises(InputError, match="real numbers"):
        SampledMap(wrong, (20, 30))


def test_maps_and_shapes_that_cannot_be_used():
    with pytest.raises(InputError, match="a function"):
        SampledMap(None, (20, 30))
    with pytest.raises(InputError, match="tolerance is 'a'"):
        SampledMap(lambda xy: xy, (20, 30), tolerance="a")
    with pytest.raises(InputError, match="does not fit into the memory"):
        SampledMap(lambda xy: xy, (10**7, 10**7))
    with pytest.raises(InputError, match="along an axis"):
        SampledMap(lambda xy: xy, (1, 10**12))
