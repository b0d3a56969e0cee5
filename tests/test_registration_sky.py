"""Registration to a catalogue: the absolute WCS of an image, with stars that move."""

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.time import Time
from astropy.wcs import WCS, Sip

from reference.registration_sim import add_stars
from skyloom.cli import main
from skyloom.errors import InputError, NoOverlapError, SkyloomWarning
from skyloom.exposure import Exposure
from skyloom.registration import RegistrationOptions, register_to_catalogue
from skyloom.registration.sky import separation

SIZE, SCALE, EPOCH, YEARS = 800, 0.5 / 3600, 2016.0, 10.0
NOISE = 0.02  # pixels
EXACT = 0.07
"""Pixels: 110 stars and 10 unknowns an axis leave 0.02 sqrt(10 / 110) = 0.006 px, four times that in corners without
stars; three of those errors."""


def true_wcs(*, rotation=20.0, mirrored=False, origin=(150.0, 70.0), distorted=True):
    w = WCS(naxis=2)
    t = np.radians(rotation)
    sign = 1.0 if mirrored else -1.0
    w.wcs.ctype, w.wcs.crval, w.wcs.crpix = ["RA---TAN-SIP", "DEC--TAN-SIP"], origin, [390.0, 420.0]
    w.wcs.cd = SCALE * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) @ np.diag([sign, 1.0])
    a, b = np.zeros((4, 4)), np.zeros((4, 4))
    if distorted:
        a[3, 0] = a[1, 2] = b[2, 1] = b[0, 3] = 1.0 / 400**3
    w.sip = Sip(a, b, None, None, w.wcs.crpix)
    w.array_shape = (SIZE, SIZE)
    return w


def sky_and_image(seed=1, count=400, motion=150.0, **kind):
    """Return a catalogue at `EPOCH`, the sources of an image taken `YEARS` later, and its true WCS."""
    rng = np.random.default_rng(seed)
    wcs = true_wcs(**kind)
    xy = rng.uniform(-300, SIZE + 300, (count, 2))
    later = wcs.pixel_to_world(*xy.T)
    magnitude = rng.uniform(12, 20, count)
    # a common drift and a scatter, mas / yr
    pm = motion * np.array([1.0, -0.7]) + rng.normal(0, motion / 5, (count, 2))
    before = SkyCoord(
        later.ra, later.dec, pm_ra_cosdec=pm[:, 0] * units.mas / units.yr, pm_dec=pm[:, 1] * units.mas / units.yr,
        distance=np.full(count, 1e3) * units.pc, obstime=Time(EPOCH + YEARS, format="jyear"),
    ).apply_space_motion(Time(EPOCH, format="jyear"))  # fmt: skip
    catalogue = Table(
        {
            "ra": before.ra.deg,
            "dec": before.dec.deg,
            "pmra": pm[:, 0],
            "pmdec": pm[:, 1],
            "ref_epoch": np.full(count, EPOCH),
            "phot_g_mean_mag": magnitude,
        }
    )
    inside = ((xy > 0) & (xy < SIZE - 1)).all(axis=1) & (rng.random(count) > 0.1)
    seen = xy[inside] + rng.normal(0, NOISE, (int(inside.sum()), 2))
    sources = Table({"x": seen[:, 0], "y": seen[:, 1], "flux": 10 ** (-0.4 * magnitude[inside])})
    sources.meta = {"shape": (SIZE, SIZE), "name": "night"}
    return catalogue, sources, wcs


def error_on_the_sky(found, truth):
    """Return the largest distance between two WCS over the image, pixels."""
    x, y = (g.ravel() for g in np.meshgrid(np.linspace(20, SIZE - 20, 9), np.linspace(20, SIZE - 20, 9)))
    return found.pixel_to_world(x, y).separation(truth.pixel_to_world(x, y)).deg.max() / SCALE


@pytest.mark.parametrize("kind", [{}, {"mirrored": True, "rotation": 200.0}, {"origin": (0.01, -89.2)}])
def test_absolute_wcs_without_knowing_anything_but_the_field(kind):
    catalogue, sources, truth = sky_and_image(**kind)
    result = register_to_catalogue(sources, catalogue, epoch=EPOCH + YEARS)
    assert error_on_the_sky(result.wcs, truth) < EXACT
    # ten years earlier the stars were 3.7 pixels away
    still = register_to_catalogue(sources, catalogue, epoch=EPOCH)
    assert 2.5 < error_on_the_sky(still.wcs, truth) < 5


def test_own_wcs_is_the_first_guess_and_gives_time_and_place():
    catalogue, sources, truth = sky_and_image(2)
    sources.meta["wcs"] = nearly = true_wcs(distorted=False)
    nearly.wcs.crpix = [405.0, 411.0]
    sources.meta["DATE-OBS"] = Time(EPOCH + YEARS, format="jyear").isot
    result = register_to_catalogue(sources, catalogue)
    assert result.method == "WCS"
    assert error_on_the_sky(result.wcs, truth) < EXACT
    assert result.scale == pytest.approx(1.0, abs=0.01)
    # a WCS on the other side of the sky holds no star; ignored, it does no harm
    nearly.wcs.crval = [330.0, -20.0]
    with pytest.raises(NoOverlapError, match="use_wcs=False"):
        register_to_catalogue(sources, catalogue)
    again = register_to_catalogue(sources, catalogue, RegistrationOptions(use_wcs=False))
    assert error_on_the_sky(again.wcs, truth) < EXACT


@pytest.mark.parametrize("name", ["stars.ecsv", "stars.fits", "stars.vot"])
def test_files_units_and_names(tmp_path, name):
    catalogue, sources, truth = sky_and_image(3)
    catalogue["ra"].unit, catalogue["dec"].unit = "deg", "deg"
    catalogue["pmra"] = (np.asarray(catalogue["pmra"]) / 1000) * units.arcsec / units.yr
    catalogue["ra_error"] = np.full(len(catalogue), 1.0)
    catalogue["dec_error"] = np.full(len(catalogue), 1.0)
    catalogue.rename_columns(["ra", "dec"], ["RA_ICRS", "DE_ICRS"])
    catalogue.write(tmp_path / name, **({"format": "votable"} if name.endswith("vot") else {}))
    result = register_to_catalogue(
        sources,
        tmp_path / name,
        epoch=f"{int(EPOCH + YEARS)}-01-01",
        centre=SkyCoord(150.02, 70.01, unit="deg"),
        pixel_scale=0.48,
    )
    assert error_on_the_sky(result.wcs, truth) < EXACT
    assert result.scale == pytest.approx(0.48 / 0.5, rel=0.02)


def test_unknown_motion_and_time():
    catalogue, sources, truth = sky_and_image(4)
    with pytest.warns(SkyloomWarning, match="epoch="):
        register_to_catalogue(sources, catalogue)
    catalogue["pmra"] = np.ma.masked_greater(catalogue["pmra"], 1e9)
    catalogue["pmra"].mask[:5] = True
    assert error_on_the_sky(register_to_catalogue(sources, catalogue, epoch=EPOCH + YEARS).wcs, truth) < EXACT
    catalogue.remove_columns(["pmra", "pmdec"])
    register_to_catalogue(sources, catalogue)  # no motion, no warning


def test_catalogues_that_cannot_be_used(tmp_path):
    catalogue, sources, _ = sky_and_image(5)
    with pytest.raises(InputError, match="no column for dec"):
        register_to_catalogue(sources, catalogue[["ra"]])
    with pytest.raises(InputError, match=r"none\.fits"):
        register_to_catalogue(sources, tmp_path / "none.fits")
    wrong = catalogue.copy()
    wrong["ra"].unit = "kg"
    with pytest.raises(InputError, match="kg"):
        register_to_catalogue(sources, wrong)
    del sources.meta["shape"]
    with pytest.raises(InputError, match="pixel_scale"):
        register_to_catalogue(sources, catalogue, epoch=EPOCH)
    spectral = WCS(naxis=2)
    spectral.wcs.ctype = ["FREQ", "STOKES"]
    sources.meta |= {"shape": (SIZE, SIZE), "wcs": spectral}
    with pytest.raises(InputError, match="celestial"):
        register_to_catalogue(sources, catalogue, epoch=EPOCH)


def test_separation_is_astropys():
    rng = np.random.default_rng(1)
    sky = np.column_stack([rng.uniform(0, 360, 50), rng.uniform(-90, 90, 50)])
    expected = SkyCoord(*sky.T, unit="deg").separation(SkyCoord(10.0, -80.0, unit="deg")).deg
    np.testing.assert_allclose(separation(sky, np.array([10.0, -80.0])), expected, atol=1e-9)


@pytest.mark.parametrize("convention", ["sip", "tpv"])
def test_an_image_with_stars_and_the_command(tmp_path, capsys, convention):
    catalogue, sources, truth = sky_and_image(6, motion=0.0)
    image = np.full((SIZE, SIZE), 100.0)
    flux = np.asarray(sources["flux"])
    add_stars(image, np.column_stack([sources["x"], sources["y"]]), 3e4 * flux / np.median(flux), 3.0)
    image = np.random.default_rng(1).poisson(image).astype(float)
    header = fits.Header({"DATE-OBS": "2020-05-05T01:02:03", "GAIN": 1.0})
    result = register_to_catalogue(Exposure(image, gain=1.0, header=header), catalogue)
    assert error_on_the_sky(result.wcs, truth) < 0.1
    fits.writeto(tmp_path / "image.fits", image.astype(np.float32), header)
    catalogue.write(tmp_path / "stars.ecsv")
    command = ["register", str(tmp_path / "image.fits"), "--distortion", convention, "-o", str(tmp_path / "out.fits")]
    assert main([*command, "--catalogue", str(tmp_path / "stars.ecsv")]) == 0
    assert "stars" in capsys.readouterr().out
    with fits.open(tmp_path / "out.fits") as hdus:
        assert error_on_the_sky(WCS(hdus["SCI"].header), truth) < 0.1
        assert hdus["SCI"].header["CTYPE1"].endswith(convention.upper())
        np.testing.assert_array_equal(hdus["SCI"].data, image.astype(np.float32))
    assert main(command) == 1
    assert "either a TEMPLATE or --catalogue" in capsys.readouterr().err
    assert main([*command, "--catalogue", str(tmp_path / "stars.ecsv"), "--resample", "--overwrite"]) == 1
    assert "--resample" in capsys.readouterr().err
