"""The WCS that a registration gives to the source."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, Sip

from reference.registration_sim import REGIMES, make_lists
from skyloom.errors import InputError, SkyloomWarning, WcsError
from skyloom.registration import register, registration_header, registration_wcs


def template_wcs(declination=-80.0, distortion=0.0, projection="TAN"):
    w = WCS(naxis=2)
    sip = "-SIP" if distortion else ""
    w.wcs.ctype = [f"RA---{projection}{sip}", f"DEC--{projection}{sip}"]
    w.wcs.crval, w.wcs.crpix = [0.02, declination], [500.0, 530.0]
    w.wcs.cd = np.array([[-1.0, 0.1], [0.1, 1.0]]) / 3600
    if distortion:
        a, b = np.zeros((4, 4)), np.zeros((4, 4))
        a[3, 0] = a[1, 2] = b[2, 1] = b[0, 3] = distortion / 512**3
        w.sip = Sip(a, b, None, None, w.wcs.crpix)
    w.wcs.set()
    return w


def miss_on_the_sky(registration, wcs_source, wcs_template, truth):
    """Distance in source pixels between a template pixel's place by the registration and through the sky."""
    grid = truth.grid()
    sky = wcs_template.pixel_to_world(*grid.T)
    x, y = wcs_source.world_to_pixel(sky)
    return np.abs(np.column_stack([x, y]) - registration.template_to_source(grid)).max()


@pytest.mark.parametrize(
    "wcs",
    [template_wcs(), template_wcs(0.0, distortion=5.0), template_wcs(40.0, projection="SIN"), template_wcs(89.99)],
)
@pytest.mark.parametrize("convention", ["SIP", "TPV"])
@pytest.mark.parametrize("name", ["mirror, rotation", "distortion 40 px", "overlap 30%", "scale 2"])
def test_source_wcs_agrees_with_the_registration(name, convention, wcs):
    source, template, truth = make_lists(3, REGIMES[name])
    registration = register(source, template)
    found = registration_wcs(registration, wcs, convention=convention)
    # both directions: the tolerance is 0.01 px for pixel to sky; the inverse is iterated by astropy
    assert miss_on_the_sky(registration, found, wcs, truth) < 0.011
    assert found.array_shape == registration.source_shape
    undistorted = name in ("mirror, rotation", "scale 2", "overlap 30%") and wcs.sip is None
    if undistorted and wcs.wcs.ctype[0] == "RA---TAN":
        assert found.sip is None
    elif name == "distortion 40 px":
        assert found.to_header(relax=True)["CTYPE1"].endswith(convention)
    # others read it from the header
    again = WCS(fits.Header.fromstring(found.to_header(relax=True).tostring()))
    xy = np.array([[3.0, 5.0], [1000.0, 20.0], [400.0, 900.0]])
    np.testing.assert_allclose(again.all_pix2world(xy, 0), found.all_pix2world(xy, 0), rtol=0, atol=1e-9)


def test_unknown_convention():
    with pytest.raises(InputError, match="SIP"):
        registration_wcs(register(*make_lists(3)[:2]), template_wcs(), convention="ZPN")


def test_header_round_trip_and_inverse_polynomial():
    source, template, truth = make_lists(3, REGIMES["distortion 40 px"])
    registration = register(source, template)
    wcs = template_wcs()
    header = registration_wcs(registration, wcs).to_header(relax=True)
    for key, card in registration_header(registration).items():
        header[key] = card
    text = fits.Header.fromstring(header.tostring())
    again = WCS(text)
    assert miss_on_the_sky(registration, again, wcs, truth) < 0.011
    assert text["REGNSTAR"] == registration.n_matched
    assert text["REGRMSX"] == pytest.approx(registration.rms_xy[0], abs=1e-5)
    # AP and BP undo A and B to a hundredth of a pixel over the image
    xy = np.random.default_rng(1).uniform(0, 1023, (100, 2))
    focal = again.sip_pix2foc(xy, 0)
    np.testing.assert_allclose(again.sip_foc2pix(focal, 0), xy, atol=0.02)


def test_wcs_of_the_result_and_its_absence():
    source, template, _ = make_lists(5)
    registration = register(source, template)
    assert registration.wcs is None
    with pytest.raises(WcsError, match="no WCS"):
        registration_wcs(registration)
    with pytest.raises(WcsError, match="celestial"):
        registration_wcs(registration, spectral())


def spectral():
    w = WCS(naxis=2)
    w.wcs.ctype = ["FREQ", "STOKES"]
    w.wcs.crval, w.wcs.cdelt = [1e9, 1.0], [1e6, 1.0]
    return w


def test_wcs_that_cannot_be_tan_sip_warns_with_its_error():
    source, template, _ = make_lists(5, REGIMES["distortion 40 px"])
    registration = register(source, template)
    with pytest.warns(SkyloomWarning, match=r"off by up to .* px"):
        registration_wcs(registration, template_wcs(), max_order=2)
