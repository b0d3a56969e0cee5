"""The output grid holds every exposure, with the scale and orientation that were asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyloom.errors import InputError, WcsError
from skyloom.exposure import Exposure
from skyloom.resampling import output_wcs_from, wcs_map
from test_maps import tan

SHAPE = (30, 40)


def exposure(wcs, shape=SHAPE, name="a.fits"):
    return Exposure(np.ones(shape, np.float32), wcs=wcs, name=name)


def outline(shape):
    ny, nx = shape
    corners = [(x, y) for x in (-0.5, (nx - 1) / 2, nx - 0.5) for y in (-0.5, (ny - 1) / 2, ny - 0.5)]
    return np.array(corners)


@settings(max_examples=25, deadline=None)
@given(
    ra=st.floats(0, 360),
    dec=st.floats(-90, 90),
    angles=st.lists(st.floats(-180, 180), min_size=1, max_size=3),
    scale=st.floats(0.1, 30),
)
def test_all_exposures_are_covered_and_tightly(ra, dec, angles, scale):
    exposures = []
    for i, angle in enumerate(angles):
        wcs = tan(ra, dec, scale=scale, angle=angle, shape=SHAPE)
        wcs.wcs.crpix = wcs.wcs.crpix + np.array([7.0, -4.0]) * i
        exposures.append(exposure(wcs))
    wcs, shape = output_wcs_from(exposures)
    assert wcs.array_shape == shape
    points = np.concatenate([wcs_map(e.wcs, wcs)(outline(SHAPE)) for e in exposures])
    low, high = points.min(axis=0), points.max(axis=0)
    # pixels reach half a pixel beyond their centres
    np.testing.assert_allclose(low, -0.5, atol=1e-4)
    assert (high <= np.array(shape[::-1]) - 0.5 + 1.1e-3).all()
    assert (high > np.array(shape[::-1]) - 1.5).all()


def test_one_exposure_gives_its_own_grid():
    wcs, shape = output_wcs_from([exposure(tan(shape=SHAPE, angle=31))])
    assert shape == SHAPE
    xy = outline(SHAPE)
    np.testing.assert_allclose(wcs_map(tan(shape=SHAPE, angle=31), wcs)(xy), xy, atol=1e-6)


@pytest.mark.parametrize(("rotation", "pixel_scale"), [(0, 0.25), (-30, 1.0)])
def test_scale_and_rotation(rotation, pixel_scale):
    wcs, _ = output_wcs_from([exposure(tan(angle=77))], rotation=rotation, pixel_scale=pixel_scale)
    x, y = wcs.wcs.crpix - 1  # elsewhere, meridians are not parallel to the one of the tangent point
    centre, up, right = wcs.pixel_to_world([x, x, x + 1], [y, y + 1, y])
    assert centre.separation(up).arcsec == pytest.approx(pixel_scale, rel=1e-4)
    assert centre.position_angle(up).wrap_at("180d").deg == pytest.approx(rotation, abs=0.01)
    assert centre.position_angle(right).wrap_at("180d").deg == pytest.approx(rotation - 90, abs=0.01)


def test_frames_may_differ():
    a, b = tan(), tan(96.0, 1.0, frame="galactic")
    sky = b.pixel_to_world(199.5, 149.5).icrs
    a.wcs.crval = [sky.ra.deg, sky.dec.deg]
    wcs, shape = output_wcs_from([exposure(a), exposure(b)])
    for each in (a, b):
        points = wcs_map(each, wcs)(outline(SHAPE))
        assert (points > -0.51).all()
        assert (points < np.array(shape[::-1]) - 0.49).all()


def test_scattered_exposures_are_refused_before_anything_is_allocated():
    pair = [exposure(tan()), exposure(tan(ra=160.0), name="far.fits")]
    with pytest.raises(WcsError, match="fill"):
        output_wcs_from(pair)
    with pytest.raises(WcsError, match="opposite"):
        output_wcs_from([exposure(tan(0, 0)), exposure(tan(180, 0))])
    with pytest.raises(WcsError, match=r"tangent plane"):
        output_wcs_from([exposure(tan(0, 0))] * 9 + [exposure(tan(120, 0), name="far.fits")])
    with pytest.raises(WcsError, match="memory"):
        output_wcs_from([exposure(tan())], pixel_scale=1e-5)
    with pytest.raises(WcsError, match="allowed"):
        output_wcs_from([exposure(tan())], max_pixels=100)


def test_bad_arguments():
    with pytest.raises(InputError, match="no exposures"):
        output_wcs_from([])
    with pytest.raises(WcsError, match=r"a\.fits has no WCS"):
        output_wcs_from([exposure(None)])
    with pytest.raises(InputError, match="pixel_scale"):
        output_wcs_from([exposure(tan())], pixel_scale=0)
    with pytest.raises(InputError, match="rotation"):
        output_wcs_from([exposure(tan())], rotation=np.nan)


def test_a_wcs_that_is_not_of_the_sky():
    from astropy.wcs import WCS

    linear = WCS(naxis=2)
    with pytest.raises(WcsError, match="not celestial"):
        output_wcs_from([exposure(linear)])
