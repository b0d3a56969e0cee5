"""Writing: what was written is what is read; a file is complete or absent, whatever happens."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from skyloom.errors import InputError, SkyloomWarning, WriteError
from skyloom.exposure import Exposure, MaskBit
from skyloom.io import (
    Provenance,
    atomic_write,
    check_writable,
    read,
    read_provenance,
    write_exposure,
    write_hdus,
)

RNG = np.random.default_rng(4)
SKY = RNG.normal(100, 5, (40, 30))


def tan_wcs():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [10.0, 12.0]
    wcs.wcs.cdelt = [-1e-4, 1e-4]
    return wcs


def full_exposure(dtype=np.float32):
    data = SKY.astype(dtype)
    data[3, 4] = np.nan
    mask = np.zeros(SKY.shape, np.uint32)
    mask[5, 6] = MaskBit.SATURATED
    mask[7, 8] = MaskBit.TEMPLATE | MaskBit.SPREAD
    variance = np.abs(SKY).astype(dtype)
    variance[9, 9] = 0
    header = fits.Header([("OBJECT", "NGC 1", "what"), ("NAXIS1", 99), ("CRPIX1", 77.0), ("CHECKSUM", "x")])
    return Exposure(
        data, variance, mask, tan_wcs(), gain=1.5, read_noise=4.0, saturation=5e4, exptime=60.0, zeropoint=25.0,
        correlation=1.2, header=header,
    )  # fmt: skip


def test_coverage_is_an_extension(tmp_path):
    coverage = np.linspace(0, 1, SKY.size).reshape(SKY.shape)
    with fits.open(write_exposure(full_exposure().replace(coverage=coverage), tmp_path / "a.fits")) as hdus:
        np.testing.assert_array_equal(hdus["COVERAGE"].data, coverage.astype(np.float32))


@pytest.mark.parametrize("name", ["a.fits", "a.fits.fz", "a.fits.gz"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip(name, dtype, tmp_path):
    exposure = full_exposure(dtype)
    path = write_exposure(exposure, tmp_path / name)
    again = read(path)
    np.testing.assert_array_equal(again.data, exposure.data)
    np.testing.assert_array_equal(again.mask, exposure.mask)
    # the error is stored: rounded once by the root and once by the square
    np.testing.assert_allclose(again.variance, exposure.variance, rtol=4 * np.finfo(dtype).eps)
    assert again.data.dtype == dtype
    for field in ("gain", "read_noise", "saturation", "exptime", "zeropoint", "correlation", "unit"):
        assert getattr(again, field) == getattr(exposure, field), field
    np.testing.assert_allclose(again.wcs.pixel_to_world_values(3, 4), tan_wcs().pixel_to_world_values(3, 4))
    assert again.header["OBJECT"] == "NGC 1"


def test_the_file_is_sealed_and_explains_itself(tmp_path):
    path = write_exposure(full_exposure(), tmp_path / "a.fits", planes={"weight": SKY, "flags": SKY > 100})
    with fits.open(path, checksum=True) as hdus:  # any wrong checksum is a warning, and so an error here
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "SCI", "ERR", "DQ", "WEIGHT", "FLAGS"]
        assert hdus[0].header["NEXTEND"] == 5
        assert all("DATASUM" in hdu.header for hdu in hdus)
        assert np.isnan(hdus["SCI"].data[3, 4])
        assert np.isnan(hdus["SCI"].data).sum() == 1
        assert {bit.name: 2 ** (int(bit).bit_length() - 1) for bit in MaskBit} == {
            hdus["DQ"].header[f"BIT{n}"]: 2**n for n in range(len(MaskBit))
        }
        np.testing.assert_array_equal(hdus["WEIGHT"].data, SKY)
        np.testing.assert_array_equal(hdus["FLAGS"].data, SKY > 100)


@pytest.mark.parametrize("plane", [np.zeros((3, 3), complex), np.array([["a"]])])
def test_planes_that_fits_cannot_hold(plane, tmp_path):
    with pytest.raises(InputError, match="plane X"):
        write_exposure(full_exposure(), tmp_path / "a.fits", planes={"X": plane})
    assert list(tmp_path.iterdir()) == []


def test_headers_that_are_no_fits_headers(tmp_path):
    header = {"OBSERVER": "me", "list": [1, 2], "a very long keyword": 3.0, "nan": np.nan}
    path = write_exposure(Exposure(SKY, header=header), tmp_path / "a.fits")
    assert read(path).header["OBSERVER"] == "me"


def test_names_and_units_that_are_not_ascii(tmp_path):
    path = write_exposure(Exposure(SKY, unit="µJy"), tmp_path / "é.fits", provenance=Provenance("Ü", {"é": "è"}, ["ß"]))
    exposure = read(path)
    assert exposure.unit == "uJy"
    assert read_provenance(exposure.header).parameters == {"é": "è"}
    assert read_provenance(exposure.header).inputs == ("ß",)


def test_more_inputs_than_short_keywords(tmp_path):
    inputs = [f"frame{n}.fits" for n in range(1200)]
    path = write_exposure(Exposure(SKY), tmp_path / "a.fits", provenance=Provenance("coadd", {}, inputs))
    assert read_provenance(read(path).header).inputs == tuple(inputs)


def test_gwcs_becomes_a_fits_wcs(tmp_path):
    gwcs = pytest.importorskip("gwcs")
    from astropy import units
    from astropy.coordinates import ICRS
    from astropy.modeling import models
    from gwcs import coordinate_frames as frames

    transform = models.Shift(-14) & models.Shift(-14) | models.Scale(1e-4) & models.Scale(1e-4)
    transform = transform | models.Pix2Sky_TAN() | models.RotateNative2Celestial(10, 20, 180)
    detector = frames.Frame2D(name="detector", unit=(units.pix, units.pix))
    sky = frames.CelestialFrame(name="icrs", reference_frame=ICRS(), unit=(units.deg, units.deg))
    wcs = gwcs.WCS([(detector, transform), (sky, None)])
    written = read(write_exposure(Exposure(SKY, wcs=wcs), tmp_path / "a.fits")).wcs
    x, y = np.meshgrid([0, 15, 29], [0, 20, 39])
    found = written.world_to_pixel_values(*wcs(x, y))
    np.testing.assert_allclose(found, (x, y), atol=0.011)  # pixels: the tolerance of the approximation
    with pytest.warns(SkyloomWarning, match="no FITS form"):
        write_exposure(Exposure(SKY, wcs=object()), tmp_path / "b.fits")


def test_existing_files_are_kept_unless_overwrite(tmp_path):
    path = tmp_path / "a.fits"
    write_exposure(full_exposure(), path)
    before = path.read_bytes()
    with pytest.raises(WriteError, match="overwrite=True"):
        write_exposure(Exposure(SKY), path)
    assert path.read_bytes() == before
    write_exposure(Exposure(SKY), path, overwrite=True)
    assert read(path).variance is None


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x.fits", "y" * 300 + ".fits", "a\0b.fits"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(WriteError, match="cannot be the name of a file"):
        check_writable(name)


def test_links_that_lead_back_to_themselves(tmp_path):
    loop = tmp_path / "loop.fits"
    loop.symlink_to(loop)
    with pytest.raises(WriteError, match="leads back to itself"):
        check_writable(loop, overwrite=True)


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(WriteError, match="does not exist"):
        check_writable(tmp_path / "absent" / "a.fits")
    with pytest.raises(WriteError, match="is a folder"):
        check_writable(tmp_path)
    (tmp_path / "a.fits").touch()
    with pytest.raises(WriteError, match="exists already"):
        check_writable(tmp_path / "a.fits")
    assert check_writable(tmp_path / "a.fits", overwrite=True) == (tmp_path / "a.fits").resolve()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WriteError, match="may not be written"):
        check_writable(tmp_path / "a.fits")


def write_with(action, path, *, overwrite=False):
    with atomic_write(path, overwrite=overwrite) as temporary:
        action(temporary)


def half_then(error):
    def action(temporary):
        temporary.write_text("half")
        raise error

    return action


def test_a_failing_block_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_with(half_then(ZeroDivisionError()), tmp_path / "a.txt")
    with pytest.raises(KeyboardInterrupt):
        write_with(half_then(KeyboardInterrupt()), tmp_path / "a.txt")
    with pytest.raises(WriteError, match="Nothing was written"):
        write_with(lambda _: None, tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EROFS, os.strerror(errno.EROFS)),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_a_full_disk_is_a_write_error_and_keeps_the_old_file(code, words, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(WriteError, match=words):
        write_with(half_then(OSError(code, os.strerror(code))), path, overwrite=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_really_full_disk(tmp_path):
    def action(temporary):
        temporary.symlink_to("/dev/full")
        fits.PrimaryHDU(SKY).writeto(temporary, overwrite=True)

    with pytest.raises(WriteError, match="no space left on the disk"):
        write_with(action, tmp_path / "a.fits")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "a.txt"

    def action(temporary):
        temporary.write_text("mine")
        path.write_text("theirs")

    with pytest.raises(WriteError, match="somebody else"):
        write_with(action, path)
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_links_are_followed_and_suffixes_kept(tmp_path):
    target, link = tmp_path / "target.fits.gz", tmp_path / "link.fits.gz"
    link.symlink_to(target)
    with atomic_write(link) as temporary:
        assert temporary.suffixes[-2:] == [".fits", ".gz"]
        assert temporary.parent == target.parent
        temporary.write_text("x")
    assert link.is_symlink()
    assert target.read_text() == "x"
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_write_hdus(tmp_path):
    path = write_hdus([fits.PrimaryHDU(), fits.ImageHDU(SKY, name="X")], tmp_path / "a.fits")
    np.testing.assert_array_equal(read(path).data, SKY)


WRITER = """
import sys, time, numpy as np
from skyloom.exposure import Exposure
from skyloom.io import write_exposure
exposure = Exposure(np.full((300, 300), float(sys.argv[2])), variance=np.ones((300, 300)))
write_exposure(exposure, sys.argv[1] + ".warm", overwrite=True)
print("ready", flush=True)
while True:
    write_exposure(exposure, sys.argv[1], overwrite=True)
"""


@pytest.mark.parametrize("rounds", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_a_killed_writer_leaves_a_valid_file_or_none(rounds, tmp_path):
    path = tmp_path / "a.fits"
    moments = np.random.default_rng(5).uniform(0, 0.15, rounds)
    for number, moment in enumerate(moments):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number + 1)], stdout=subprocess.PIPE)
        try:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(moment)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
        if path.exists():
            data = read(path).data  # verified by its checksums
            assert data.min() == data.max() in range(1, number + 2)
    assert path.exists()


def test_provenance_survives_the_file(tmp_path):
    source = write_exposure(full_exposure(), tmp_path / "in.fits")
    parameters = {
        "threshold": 5.0,
        "name": "it's long " * 30,
        "path": Path("x/y"),
        "array": np.arange(3),
        "none": None,
        "flag": True,
        "nested": {"a": [1, 2.5]},
        "text": "a=b\nÅngström",
    }
    provenance = Provenance("difference", parameters, [source, "elsewhere/Été.fits"])
    header = read(write_exposure(full_exposure(), tmp_path / "out.fits", provenance=provenance)).header
    found = read_provenance(header)
    assert found.command == "difference"
    assert found.parameters == {**parameters, "path": "x/y", "array": [0, 1, 2]}
    assert found.inputs == ("in.fits", "elsewhere/Été.fits")
    assert header["SLSUM1"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert "SLSUM2" not in header
    with fits.open(tmp_path / "out.fits") as hdus:
        assert any("difference" in line for line in hdus[0].header["HISTORY"])


def test_provenance_is_replaced_when_a_result_is_written_again(tmp_path):
    first = write_exposure(full_exposure(), tmp_path / "a.fits", provenance=Provenance("one", {"x": 1, "y": 2}))
    second = write_exposure(read(first), tmp_path / "b.fits", provenance=Provenance("two", {"z": 3}))
    found = read_provenance(read(second).header)
    assert (found.command, found.parameters) == ("two", {"z": 3})
    assert read_provenance({}) is None
    with pytest.raises(InputError, match="SLPAR1"):
        read_provenance({"SLCMD": "x", "SLPAR1": "a={"})
