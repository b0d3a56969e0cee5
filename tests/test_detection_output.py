"""Cutouts, tables and regions of candidates."""

from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from skyloom.detection import cutouts, write_ecsv, write_fits, write_regions
from skyloom.errors import InputError, ShapeError, WriteError


@pytest.fixture
def difference():
    plane = np.arange(30 * 40, dtype=float).reshape(30, 40)
    return SimpleNamespace(science=SimpleNamespace(data=plane), matched=plane + 0.25, image=plane + 0.5,
                           score=SimpleNamespace(significance=-plane), template=None)  # fmt: skip


@pytest.fixture
def table():
    table = Table({
        "id": [1, 2, 3], "x": [10.0, 20.25, 35.0], "y": [5.0, 7.0, 29.0], "snr": [30.0, -9.0, 6.0], "sign": [1, -1, 1],
        "flags": [0, 0, 1], "flag_text": np.array(["", "", "dipole"], dtype="U96"), "real": [True, True, False],
    })  # fmt: skip
    table["x"].unit, table["x"].description = "pix", "Position"
    table.meta["fwhm"] = 4.0
    return table


@pytest.fixture
def wcs():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [10.0, -30.0], [1.0, 1.0]
    wcs.wcs.cdelt = [-1e-3, 1e-3]
    return wcs


def test_cutouts(difference):
    cube = cutouts(difference, [(20.3, 9.6), (0, 0)], size=5)
    assert cube.shape == (2, 4, 5, 5)
    np.testing.assert_array_equal(cube[0, 0], difference.science.data[8:13, 18:23])
    np.testing.assert_array_equal(cube[0, 1] - cube[0, 0], 0.25)
    np.testing.assert_array_equal(cube[0, 2] - cube[0, 0], 0.5)
    np.testing.assert_array_equal(cube[0, 3], -cube[0, 0])
    assert np.isnan(cube[1, :, :2]).all()
    assert np.isnan(cube[1, :, :, :2]).all()
    np.testing.assert_array_equal(cube[1, 0, 2:, 2:], difference.science.data[:3, :3])


def test_cutouts_far_outside_and_none_at_all(difference):
    assert np.isnan(cutouts(difference, [(-300, 500)], size=7)).all()
    assert cutouts(difference, [], size=7).shape == (0, 4, 7, 7)


@pytest.mark.parametrize(
    ("xy", "size", "error"), [([(1, 1)], 4, InputError), ([(1, 1, 1)], 5, ShapeError), ([(np.nan, 1)], 5, InputError)]
)
def test_cutout_errors(difference, xy, size, error):
    with pytest.raises(error):
        cutouts(difference, xy, size=size)


def test_ecsv_keeps_everything(table, tmp_path):
    path = write_ecsv(table, tmp_path / "candidates.ecsv")
    back = Table.read(path, format="ascii.ecsv")
    assert back.colnames == table.colnames
    assert back["x"].unit == "pix"
    assert back["x"].description == "Position"
    # ECSV does not tell an empty word from a missing one
    assert list(np.ma.filled(back["flag_text"], "")) == list(table["flag_text"])
    np.testing.assert_array_equal(back["x"], table["x"])


def test_fits_holds_table_and_cutouts(table, difference, tmp_path):
    path = write_fits(table, tmp_path / "candidates.fits", difference, size=9)
    with fits.open(path, checksum=True) as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "CANDIDATES", "CUTOUTS"]
        np.testing.assert_array_equal(hdus["CANDIDATES"].data["x"], table["x"])
        np.testing.assert_array_equal(hdus["CANDIDATES"].data["real"], table["real"])
        assert hdus["CANDIDATES"].header["TCOMM2"] == "Position"
        assert hdus["CUTOUTS"].shape == (3, 4, 9, 9)
        assert hdus["CUTOUTS"].header["PLANE3"] == "difference"
        np.testing.assert_array_equal(hdus["CUTOUTS"].data[1, 0], difference.science.data[3:12, 16:25])


def test_fits_without_candidates_has_no_cutouts(table, difference, tmp_path):
    with fits.open(write_fits(table[:0], tmp_path / "none.fits", difference)) as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "CANDIDATES"]
        assert len(hdus[1].data) == 0


def test_image_regions_count_from_one(table, tmp_path):
    lines = write_regions(table, tmp_path / "c.reg").read_text().splitlines()
    assert lines[0] == "# Region file format: DS9 version 4.1"
    assert lines[2] == "image"
    assert lines[3] == "circle(11.000,6.000,8.00) # color=green text={1: +30.0}"
    assert lines[4].startswith("circle(21.250,8.000,8.00) # color=cyan")
    assert lines[5].endswith("# color=red text={3: +6.0 dipole} dash=1")


def test_sky_regions(table, wcs, tmp_path):
    lines = write_regions(table, tmp_path / "c.reg", wcs=wcs).read_text().splitlines()
    assert lines[2] == "fk5"
    ra, dec, radius = lines[3].split("#")[0].strip()[len("circle(") : -2].split(",")
    sky = wcs.pixel_to_world(10.0, 5.0).fk5
    assert float(ra) == pytest.approx(sky.ra.deg, abs=1e-6)
    assert float(dec) == pytest.approx(sky.dec.deg, abs=1e-6)
    assert float(radius) == pytest.approx(8 * 3.6, rel=1e-3)  # 8 pixels of 3.6 arcsec
    assert write_regions(table, tmp_path / "i.reg", wcs=wcs, coordinates="image").read_text().count("image") == 1


def test_sky_regions_from_the_table(table, tmp_path):
    table["ra"], table["dec"] = [1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]
    assert "circle(2.0000000,+0.0000000" in write_regions(table, tmp_path / "c.reg").read_text()


def test_region_errors(table, tmp_path):
    with pytest.raises(InputError, match="need a WCS"):
        write_regions(table, tmp_path / "c.reg", coordinates="fk5")
    with pytest.raises(InputError, match="galactic"):
        write_regions(table, tmp_path / "c.reg", coordinates="galactic")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_ecsv, write_fits, write_regions])
def test_nothing_is_overwritten_by_accident(table, tmp_path, write):
    path = tmp_path / "out"
    path.write_text("precious")
    with pytest.raises(WriteError, match="exists"):
        write(table, path)
    assert path.read_text() == "precious"
    write(table, path, overwrite=True)
    assert path.read_bytes() != b"precious"
