"""Files that are not what they should be: every fault ends in one typed error, never in wrong pixels."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import warnings

import numpy as np
import pytest
from astropy.io import fits

from skyloom.errors import InputError, NoUsableDataError, ReadError, ShapeError, SkyloomWarning
from skyloom.io import read
from skyloom.io.fits_layout import scan

RNG = np.random.default_rng(20)
SKY = RNG.normal(100, 5, (20, 30)).astype(np.float32)
COUNTS = RNG.integers(0, 60000, SKY.shape).astype(np.uint16)


def wcs_header():
    header = fits.Header()
    cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 20.0, "CRPIX1": 5.0, "CRPIX2": 5.0,
             "CDELT1": -1e-4, "CDELT2": 1e-4, "GAIN": 2.0, "EXPTIME": 30.0}  # fmt: skip
    header.update(cards)
    return header


def simple():
    return [fits.PrimaryHDU(SKY, wcs_header())]


def scaled():
    return [fits.PrimaryHDU(COUNTS, wcs_header())]


def multi():
    primary = fits.PrimaryHDU()
    primary.header["NEXTEND"] = 3
    return [
        primary,
        fits.ImageHDU(SKY, wcs_header(), name="SCI"),
        fits.ImageHDU(np.sqrt(SKY), name="ERR"),
        fits.ImageHDU((COUNTS > 55000).astype(np.int16), name="DQ"),
    ]


def compressed(algorithm):
    def build():
        data = (COUNTS % 50).astype(np.int16) if algorithm == "PLIO_1" else COUNTS.astype(np.int32)
        tile = SKY.shape if algorithm == "HCOMPRESS_1" else None
        hdu = fits.CompImageHDU(data, wcs_header(), compression_type=algorithm, tile_shape=tile, name="SCI")
        return [fits.PrimaryHDU(), hdu]

    build.__name__ = algorithm
    return build


SEEDS = [simple, scaled, multi, *(compressed(a) for a in ("RICE_1", "GZIP_1", "GZIP_2", "PLIO_1", "HCOMPRESS_1"))]


def write(path, hdus, *, checksum=False):
    fits.HDUList(hdus).writeto(path, checksum=checksum, overwrite=True)
    return path.read_bytes()


def mutants(content: bytes, chance: random.Random, flips: int):
    """Yield damaged copies: cut at blocks and anywhere, bits flipped, cards removed or with absurd values, junk."""
    for cut in range(0, len(content), 2880):
        yield content[:cut]
    for _ in range(flips):
        yield content[: chance.randrange(len(content))]
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        yield bytes(damaged)
        at, size = chance.randrange(len(content)), chance.randrange(1, 300)
        yield content[:at] + chance.randbytes(size) + content[at + size :]
    cards = [at for at in range(0, len(content) - 80, 80) if content[at + 8 : at + 10] == b"= "]
    values = [b"0", b"-1", b"999999999999", b"7", b"'x'", b"1e400", b"T", b"NaN"]
    for at in cards:
        yield content[:at] + b" " * 80 + content[at + 80 :]
        yield content[: at + 10] + chance.choice(values).rjust(20) + b" " * 50 + content[at + 80 :]


@pytest.mark.filterwarnings("ignore::skyloom.errors.SkyloomWarning")
@pytest.mark.parametrize("flips", [10, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.__name__)
@pytest.mark.parametrize("sealed", [True, False], ids=["checksums", "no checksums"])
def test_damaged_files_give_right_data_or_an_input_error(seed, sealed, flips, tmp_path):
    path = tmp_path / "seed.fits"
    content = write(path, seed(), checksum=sealed)
    whole = read(path)
    chance = random.Random(1)
    with path.open("rb") as stream:
        hdus = scan(stream, path.name)
    needed = hdus[-1].data_start + hdus[-1].data_size  # what follows is padding
    # a file that ends between two HDUs is whole; if its NEXTEND disagrees there is a warning
    whole_files = {hdu.start for hdu in hdus}
    messages = []
    for damaged in mutants(content, chance, flips):
        path.write_bytes(damaged)
        try:
            found = read(path)
        except InputError as error:
            messages.append(str(error))
            continue
        assert len(damaged) >= needed or len(damaged) in whole_files  # nothing that is cut short is accepted
        if sealed:
            # a checksum covers every bit of data and header: whatever is accepted is what was written
            np.testing.assert_array_equal(found.data, whole.data)
            np.testing.assert_array_equal(found.mask, whole.mask)
            assert (found.variance is None) == (whole.variance is None)
    assert messages
    assert all(len(message) > 20 for message in messages)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_damaged_compressed_stream_is_an_error(pack, tmp_path):
    path = tmp_path / "image.fits.packed"
    content = pack(write(tmp_path / "plain.fits", simple()))
    path.write_bytes(content)
    np.testing.assert_array_equal(read(path).data, SKY)
    for cut in (5, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ReadError):
            read(path)


def test_missing_folder_empty_and_other_files(tmp_path):
    with pytest.raises(ReadError, match="There is no file"):
        read(tmp_path / "absent.fits")
    with pytest.raises(ReadError, match="is a folder"):
        read(tmp_path)
    path = tmp_path / "file.fits"
    path.touch()
    with pytest.raises(ReadError, match="is empty"):
        read(path)
    path.write_text("hello " * 1000)
    with pytest.raises(ReadError, match="not a FITS file"):
        read(path)
    with pytest.raises(ReadError, match="not a regular file"):
        read("/dev/null")
    for name in ("~nobody-of-this-name/x.fits", "y" * 300 + ".fits"):
        with pytest.raises(ReadError, match="cannot be the name of a file"):
            read(name)
    with pytest.raises(ReadError, match="There is no file"):
        read("a\0b.fits")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    path = tmp_path / "file.fits"
    write(path, simple())
    path.chmod(0)
    with pytest.raises(ReadError, match="cannot be opened"):
        read(path)


def test_cut_between_two_extensions_is_noticed(tmp_path):
    """Such a file is valid FITS; only NEXTEND tells, which many cut-outs carry along from another file."""
    path = tmp_path / "image.fits"
    for sealed, outcome in ((True, ReadError), (False, SkyloomWarning)):
        write(path, multi(), checksum=sealed)
        with fits.open(path) as hdus:
            end_of_sci = hdus[1].fileinfo()["datLoc"] + hdus[1].fileinfo()["datSpan"]
        path.write_bytes(path.read_bytes()[:end_of_sci])
        with (
            pytest.raises(ReadError, match="promises 3 extensions")
            if outcome is ReadError
            else pytest.warns(SkyloomWarning, match="promises 3 extensions")
        ):
            read(path)
        assert read(path, verify=False).variance is None


def test_wrong_checksums_are_errors_unless_waived(tmp_path):
    path = tmp_path / "image.fits"
    content = bytearray(write(path, simple(), checksum=True))
    content[-2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ReadError, match=r"DATASUM.*verify=False"):
        read(path)
    assert read(path, verify=False).shape == SKY.shape
    with fits.open(path) as hdus:
        header, data = hdus[0].header.copy(), hdus[0].data
    # a header that was sealed, then edited
    write(path, [fits.PrimaryHDU(SKY, wcs_header())], checksum=True)
    edited = path.read_bytes().replace(b"GAIN    =                  2.0", b"GAIN    =                  3.0")
    path.write_bytes(edited)
    with pytest.raises(ReadError, match=r"CHECKSUM.*verify=False"):
        read(path)
    assert read(path, verify=False).gain == 3
    assert data.shape == SKY.shape
    assert header["GAIN"] == 2


def test_absurd_sizes_are_refused_before_anything_is_allocated(tmp_path):
    path = tmp_path / "image.fits"
    content = write(path, simple())
    path.write_bytes(content.replace(b"NAXIS1  =                   30", b"NAXIS1  =         900000000000"))
    with pytest.raises(ReadError, match="promises"):
        read(path)
    content = write(path, compressed("RICE_1")())
    path.write_bytes(content.replace(b"ZNAXIS1 =                   30", b"ZNAXIS1 =         900000000000"))
    with pytest.raises(ReadError, match="fit into the memory"):
        read(path)


def test_files_without_a_two_dimensional_image(tmp_path):
    path = tmp_path / "file.fits"
    table = fits.BinTableHDU.from_columns([fits.Column("a", "E", array=np.arange(4.0))], name="CAT")
    write(path, [fits.PrimaryHDU(), table])
    with pytest.raises(ReadError, match=r"no two-dimensional image.*CAT.*table"):
        read(path)
    with pytest.raises(ReadError, match="holds a table"):
        read(path, ext="CAT")
    write(path, [fits.PrimaryHDU(np.zeros((3, 4, 5), np.float32))])
    with pytest.raises(ReadError, match="a cube of 5x4x3 pixels"):
        read(path)
    write(path, [fits.PrimaryHDU(np.zeros(7, np.float32))])
    with pytest.raises(ReadError, match="an array of 7 pixels"):
        read(path)
    write(path, [fits.PrimaryHDU()])
    with pytest.raises(ReadError, match="no data"):
        read(path)


def test_several_images_need_a_choice(tmp_path):
    path = tmp_path / "chips.fits"
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(SKY, name="N1"), fits.ImageHDU(SKY + 1, name="S1")]
    write(path, hdus)
    with pytest.raises(InputError, match=r"holds 2 images.*N1.*S1"):
        read(path)
    for ext in ("S1", "s1", 2, "2", ("S1", 1), "S1,1"):
        np.testing.assert_array_equal(read(path, ext=ext).data, SKY + 1)
    for ext in ("S2", 3, -1, ("S1", 2), "S1,2", ("S1",)):
        with pytest.raises(ReadError, match="has no extension"):
            read(path, ext=ext)


def test_images_without_a_usable_pixel(tmp_path):
    path = tmp_path / "nan.fits"
    write(path, [fits.PrimaryHDU(np.full((4, 5), np.nan, np.float32))])
    with pytest.raises(NoUsableDataError, match="NO_DATA on 100%"):
        read(path)
    with pytest.raises(NoUsableDataError, match="BAD on 100%"):
        read(SKY, mask=np.ones(SKY.shape, bool))


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (None, InputError),
        (b"abc", InputError),
        (np.zeros((4, 4), complex), InputError),
        (np.array([["a", "b"]]), InputError),
        ([[1, 2], [3]], InputError),
        (np.zeros(5), ShapeError),
        (np.zeros((2, 5, 5)), ShapeError),
        (np.zeros((0, 5)), ShapeError),
        (3.0, ShapeError),
    ],
)
def test_things_that_are_no_image(source, error):
    with pytest.raises(error):
        read(source)


@pytest.mark.parametrize(("key", "value"), [("CDELT1", 0.0), ("CRVAL1", "NaN"), ("CRPIX2", "100"), ("CRVAL2", None)])
def test_a_wcs_that_cannot_be_used_is_told_and_left_out(key, value, tmp_path):
    """Where wcslib finds a text in the place of a number it goes on without it: somewhere else on the sky."""
    path = tmp_path / "image.fits"
    header = wcs_header()
    header[key] = value
    write(path, [fits.PrimaryHDU(SKY, header)])
    with pytest.warns(SkyloomWarning, match="WCS of image.fits cannot be used"):
        assert read(path).wcs is None


def test_reading_warns_of_nothing_that_astropy_repairs(tmp_path):
    header = wcs_header()
    header["DATE-OBS"] = "31/12/99"
    header["RADECSYS"] = "FK5"
    write(tmp_path / "old.fits", [fits.PrimaryHDU(SKY, header)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path / "old.fits").wcs is not None
