"""`skyloom.coadd`: exposures that are placed by their stars."""

import numpy as np
import pytest
from astropy.wcs import WCS

import skyloom
from skyloom.errors import InputError, RegistrationError, SkyloomWarning, WcsError
from skyloom.stacking import CoaddOptions, read_coadd
from skyloom.stacking.light import frame_lines

SHAPE = (200, 220)
SHIFTS = ((0.0, 0.0), (4.3, -2.6), (-3.7, 5.2))
SIGMA = 1.4
PLAIN = CoaddOptions("mean", background="match")


def frames(lights=(1.0, 1.0, 1.0)):
    """Return three exposures of 60 stars without a WCS, and the place and flux of the brightest star in the first.

    Clouds may leave each with a part of the light of the stars.
    """
    rng = np.random.default_rng(7)
    xy = rng.uniform(15, np.array(SHAPE[::-1]) - 15, (60, 2))
    flux = 10 ** rng.uniform(3.5, 5, 60)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    images = []
    for (dx, dy), light in zip(SHIFTS, lights, strict=True):
        model = sum(
            light * f * np.exp(-((x - a - dx) ** 2 + (y - b - dy) ** 2) / (2 * SIGMA**2)) / (2 * np.pi * SIGMA**2)
            for (a, b), f in zip(xy, flux, strict=True)
        )
        images.append(rng.normal(model + 100, np.sqrt(model + 100)))
    exposures = [skyloom.Exposure(d, np.maximum(d, 100), name=f"{k}.fits", gain=1.0) for k, d in enumerate(images)]
    return exposures, xy[np.argmax(flux)], flux.max()


def brightest(image, at):
    """Return centroid and flux of the star nearest to a position."""
    x0, y0 = np.rint(at).astype(int)
    box = np.s_[y0 - 6 : y0 + 7, x0 - 6 : x0 + 7]
    values = image[box] - np.median(image)
    y, x = np.mgrid[box]
    return (values * x).sum() / values.sum(), (values * y).sum() / values.sum(), values.sum()


def test_images_without_a_wcs_are_placed_by_their_stars():
    exposures, at, flux = frames()
    made = skyloom.coadd(exposures, PLAIN)
    assert made.n_exposures == 3
    assert made.shape == SHAPE
    assert made.wcs is None
    x, y, light = brightest(made.exposure.data, at)
    # the scatter of the centroid is SIGMA / sqrt(3 flux) < 0.005 px; neighbours and the window add what is left
    assert np.hypot(x - at[0], y - at[1]) < 0.05
    assert light == pytest.approx(flux, rel=0.03)
    assert made.covariance is not None
    # arrays alone will do as well
    assert skyloom.coadd([one.data for one in exposures], PLAIN).n_exposures == 3


def test_stars_are_used_in_spite_of_a_wcs_that_is_wrong():
    exposures, at, _ = frames()
    wrong = WCS(
        {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 9.0, "CRVAL2": 1.0, "CDELT1": -1e-4, "CDELT2": 1e-4}
    )
    exposures = [one.replace(wcs=wrong) for one in exposures]
    by_stars = skyloom.coadd(exposures, PLAIN, align="stars", wcs=exposures[0])
    x, y, _ = brightest(by_stars.exposure.data, at)
    assert np.hypot(x - at[0], y - at[1]) < 0.05
    by_wcs = skyloom.coadd(exposures, PLAIN, wcs=exposures[0])
    assert by_wcs.exposure.data.max() < 0.7 * by_stars.exposure.data.max()  # three stars beside one another


def test_the_reference_may_be_an_image_without_wcs(tmp_path):
    exposures, at, _ = frames()
    wcs = WCS(
        {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 9.0, "CRVAL2": 1.0, "CDELT1": -1e-4, "CDELT2": 1e-4}
    )
    reference = skyloom.write_exposure(exposures[0], tmp_path / "reference.fits")
    made = skyloom.coadd([one.replace(wcs=wcs) for one in exposures[1:]], PLAIN, wcs=reference)
    x, y, _ = brightest(made.exposure.data, at)
    assert np.hypot(x - at[0], y - at[1]) < 0.05
    with pytest.raises(WcsError, match="no celestial WCS"):
        skyloom.coadd([one.replace(wcs=wcs) for one in exposures], PLAIN, wcs=reference, align="wcs")


def test_the_grid_is_that_of_the_first_exposure_with_stars():
    exposures, at, _ = frames()
    wcs = WCS(
        {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 9.0, "CRVAL2": 1.0, "CDELT1": -1e-4, "CDELT2": 1e-4}
    )
    empty = skyloom.Exposure(np.zeros((90, 80)), name="empty.fits", wcs=wcs)
    for number in (3, 1):
        with pytest.warns(SkyloomWarning, match="empty.fits is left out"):
            made = skyloom.coadd([empty, *exposures[:number]], PLAIN, align="stars")
        assert made.n_exposures == number
        assert made.shape == SHAPE
        assert made.wcs is None
        x, y, _ = brightest(made.exposure.data, at)
        assert np.hypot(x - at[0], y - at[1]) < 0.05


def test_a_coadd_by_stars_goes_on_from_memory_as_from_its_file(tmp_path):
    exposures, *_ = frames()
    made = skyloom.coadd(exposures[:2], PLAIN)
    path = made.write(tmp_path / "made.fits")
    both = [skyloom.coadd(exposures[2:], resume=earlier) for earlier in (made, path)]
    assert [one.n_exposures for one in both] == [3, 3]
    assert both[0].scales == pytest.approx(both[1].scales, rel=1e-6)  # registered to planes in float32
    np.testing.assert_allclose(both[0].exposure.data, both[1].exposure.data, rtol=1e-4)
    assert skyloom.stacking.read_coadd(path).options.flux_scale == made.options.flux_scale  # as they were made


def test_a_cloudy_exposure_is_told_and_its_noise_and_flux_are_right(tmp_path):
    """Truth: noise of the sky, the flux of the brightest star, and light that is 0.2 of the others'."""
    exposures, at, flux = frames((0.2, 1.0, 1.0))
    with pytest.warns(SkyloomWarning, match=r"0\.fits has only 0\.2.*light.*It gives the flux scale"):
        cloudy = skyloom.coadd(exposures)
    with pytest.warns(SkyloomWarning, match=r"0\.fits has only 0\.2.*light.*bright sky\?$"):
        clear = skyloom.coadd([*exposures[1:], exposures[0]], output=tmp_path / "deep.fits")
    x, y = np.meshgrid(*(np.arange(n) for n in SHAPE[::-1]))
    for made, light, corner, gains in ((cloudy, 0.2, (0, 0), 2 / 0.2), (clear, 1.0, SHIFTS[1], 2.0)):
        image = made.exposure
        assert brightest(image.data, np.add(at, corner))[2] == pytest.approx(light * flux, rel=0.03)
        sky = image.usable & (image.data < np.median(image.data) + 3 * np.sqrt(image.variance))
        sky &= (np.minimum(x, SHAPE[1] - x) > 20) & (np.minimum(y, SHAPE[0] - y) > 20)
        spread = 1.4826 * np.median(np.abs(image.data - np.median(image.data[sky]))[sky] / np.sqrt(image.variance[sky]))
        assert spread == pytest.approx(1, abs=0.08)  # the wings of 60 stars widen, the cut narrows it
        assert image.gain == pytest.approx(gains, rel=0.06)  # two clear exposures, and the cloudy one's few electrons
    (first, *others), rows = cloudy.frames, {row["name"]: row for row in clear.frames}
    assert first["light"] == pytest.approx(0.2, rel=0.05)
    assert first["weight_share"] == pytest.approx(0.04 / 2.04, rel=0.1)  # the same sky: the light squared
    assert [row["light"] for row in others] == pytest.approx([1, 1], abs=0.03)
    assert all(row["fwhm"] == pytest.approx(2.355 * SIGMA, rel=0.08) and row["n_stars"] > 20 for row in rows.values())
    assert all(row["sky"] == pytest.approx(100, abs=5) for row in rows.values())
    assert read_coadd(tmp_path / "deep.fits").frames == clear.frames
    lines = frame_lines(clear.frames)
    assert lines[0].split()[:3] == ["exposure", "flux", "scale"]
    assert [line.split()[0] for line in lines[1:]] == ["1.fits", "2.fits", "0.fits"]


def test_the_clearest_frame_gives_the_scale_of_a_template():
    exposures, *_ = frames((0.2, 1.0, 1.0))
    exposures = [one.replace(exptime=30.0) for one in exposures]
    with pytest.warns(SkyloomWarning, match=r"0\.fits has only .* light of the better exposures"):
        found = skyloom.difference(exposures[2], exposures[:2])
    assert found.diagnostics["transparency"] == pytest.approx(1, abs=0.02)
    assert [one.name for one in found.template_frames] == ["1.fits", "0.fits"]
    assert [one.name for one in found.alignments] == ["0.fits", "1.fits"]
    assert found.template_frames[1].scale == pytest.approx(5, rel=0.05)


def test_shapes_may_be_arrays():
    exposures, *_ = frames()
    assert skyloom.coadd(exposures[:2], PLAIN, shape=np.array(SHAPE) + 5).shape == (205, 225)
    with pytest.raises(InputError, match="output shape"):
        skyloom.coadd(exposures[:2], PLAIN, shape=np.array([1, 2, 3]))


def test_what_cannot_be_placed_is_told():
    exposures, *_ = frames()
    with pytest.raises(WcsError, match="no WCS"):
        skyloom.coadd(exposures, PLAIN, align="wcs")
    with pytest.raises(InputError, match="image with stars"):
        skyloom.coadd(exposures, PLAIN, wcs={"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "NAXIS1": 9, "NAXIS2": 9})
    with pytest.raises(InputError, match="align is 'star'"):
        skyloom.coadd(exposures, PLAIN, align="star")
    for alone in (exposures[0], exposures[0].data, "a.fits", None):
        with pytest.raises(InputError, match="a list of exposures"):
            skyloom.coadd(alone)
    with pytest.raises(InputError, match="no exposures"):
        skyloom.coadd(iter([]))
    told = pytest.warns(SkyloomWarning, match="left out: All usable pixels")
    with told, pytest.raises(RegistrationError, match="None of the 2"):
        skyloom.coadd([np.zeros(SHAPE), np.zeros(SHAPE)], PLAIN)
