"""Files as observatories, surveys and amateurs write them: each is read for what it is, or refused with what to do.

One small pair of images is written in all these ways. What a variant must hold is what the plain file holds, so that
all commands make the same of both; the commands themselves are run where the form changes what they do.
"""

from __future__ import annotations

import bz2
import gzip
import json

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import simulate
import skyloom
from skyloom.cli import EXIT_FAILED, EXIT_OK, main
from skyloom.errors import InputError, ReadError, SkyloomWarning
from skyloom.exposure import UNUSABLE, MaskBit
from skyloom.io import read
from skyloom.io.iraf_wcs import as_tpv

SIZE = 240
CARDS = {"GAIN": 1.5, "RDNOISE": 6.0, "SATURATE": 9e4, "EXPTIME": 60.0}
TAN = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0, "CRPIX1": 120.0, "CRPIX2": 110.0,
       "CD1_1": -1e-4, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 1e-4}  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    return simulate.simulate_pair(5, SIZE, n_stars=60, n_galaxies=0, n_transients=2, vary=0.0, snr=(40.0, 60.0))


@pytest.fixture(scope="module")
def data(pair):
    """Whole counts, so that integers hold them."""
    return np.round(pair.science.data).astype(np.float32)


@pytest.fixture(scope="module")
def files(pair, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    write(folder / "science.fits", [fits.PrimaryHDU(data, header(CARDS, TAN))])
    write(folder / "template.fits", [fits.PrimaryHDU(pair.template.data, header(CARDS | {"GAIN": 12.0}, TAN))])
    return folder


def header(*cards):
    return fits.Header([card for one in cards for card in one.items()])


def write(path, hdus):
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def extension(name, data, cards=(), kind=fits.ImageHDU, version=1):
    hdu = kind(data, header(dict(cards)), name=name)
    hdu.ver = version
    return hdu


def is_set(exposure, bit):
    return (exposure.mask & np.uint32(bit)) != 0


# --- how pixels are stored -----------------------------------------------------------------------


def stored(data, form, folder):
    """Write the image in one of many forms; return its path."""
    cards = header(CARDS, TAN)
    path = folder / "image.fits"
    if form in ("gz", "bz2"):
        write(path, [fits.PrimaryHDU(data, cards)])
        packed = folder / f"image.fits.{form}"
        packed.write_bytes({"gz": gzip, "bz2": bz2}[form].compress(path.read_bytes()))
        return packed
    if form == "cube of one plane":
        return write(path, [fits.PrimaryHDU(data[None], cards)])
    if form == "uint16":
        return write(path, [fits.PrimaryHDU(data.astype(np.uint16), cards)])
    if form == "float64":
        return write(path, [fits.PrimaryHDU(data.astype(">f8"), cards)])
    if form == "scaled integers":
        hdu = fits.PrimaryHDU(data.copy(), cards)
        hdu.scale("int32", bzero=-70.0, bscale=0.25)
        return write(path, [hdu])
    if form == "fpack":
        return write(path, [fits.PrimaryHDU(), fits.CompImageHDU(data.astype(np.int32), cards)])
    if form == "fpack, floats":
        hdu = fits.CompImageHDU(data, cards, quantize_level=64, dither_seed=1, quantize_method=1)
        return write(path, [fits.PrimaryHDU(), hdu])
    if form == "keywords in the primary header":
        return write(path, [fits.PrimaryHDU(header=header(CARDS)), extension("SCI", data, TAN)])
    if form == "odd name":
        return write(folder / "50%_[x] (1).fits", [fits.PrimaryHDU(data, cards)])
    if form == "units in values":
        texts = {"GAIN": "1.5 e-/ADU", "RDNOISE": "6.0 electrons", "SATURATE": "90000 ADU", "EXPTIME": "60.0 s"}
        return write(path, [fits.PrimaryHDU(data, header(texts, TAN))])
    raise AssertionError(form)


FORMS = ("gz", "bz2", "cube of one plane", "uint16", "float64", "scaled integers", "fpack", "fpack, floats",
         "keywords in the primary header", "odd name", "units in values")  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_pixels_and_keywords_in_any_form(form, data, files, tmp_path):
    plain, found = read(files / "science.fits"), read(stored(data, form, tmp_path))
    # quantised floats are off by half a step: noise / 64
    np.testing.assert_allclose(found.data, plain.data, atol=0.5 if form == "fpack, floats" else 0)
    names = ("gain", "read_noise", "saturation", "exptime", "unit", "zeropoint")
    assert [getattr(found, name) for name in names] == [getattr(plain, name) for name in names]
    np.testing.assert_allclose(found.wcs.pixel_to_world_values(7, 9), plain.wcs.pixel_to_world_values(7, 9), atol=1e-12)


def test_borders_of_nan_and_blank_are_no_data(data, tmp_path):
    framed = np.pad(data, 9, constant_values=np.nan)
    found = read(write(tmp_path / "nan.fits", [fits.PrimaryHDU(framed)]))
    np.testing.assert_array_equal(is_set(found, MaskBit.NO_DATA), np.isnan(framed))
    counts = np.where(np.isnan(framed), -1, framed).astype(np.int32)
    blank = fits.CompImageHDU(counts)
    blank.header["BLANK"] = -1
    hdus = fits.HDUList([fits.PrimaryHDU(), blank])
    hdus.writeto(tmp_path / "blank.fits")
    found = read(tmp_path / "blank.fits")
    np.testing.assert_array_equal(found.usable, ~np.isnan(framed))


# --- conventions of observatories ----------------------------------------------------------------


def test_hst_drizzled_image_has_no_data_where_its_weight_is_zero(data, tmp_path):
    weight = np.full(data.shape, 300.0, np.float32)
    weight[:40] = 0
    cards = {"TELESCOP": "HST", "INSTRUME": "ACS", "EXPTIME": 500.0, "NEXTEND": 3}
    context = extension("CTX", np.ones(data.shape, np.int32))
    path = write(
        tmp_path / "j_drz.fits",
        [
            fits.PrimaryHDU(header=header(cards)),
            extension("SCI", np.where(weight > 0, data, 0), TAN | {"BUNIT": "ELECTRONS/S"}),
            extension("WHT", weight),
            context,
        ],
    )
    found = read(path)
    np.testing.assert_array_equal(is_set(found, MaskBit.NO_DATA), weight == 0)
    assert (found.unit, found.gain, found.variance) == ("electron/s", 500.0, None)


def test_jwst_i2d(data, tmp_path):
    cards = {"TELESCOP": "JWST", "EFFEXPTM": 311.0}
    weight = np.ones(data.shape, np.float32)
    weight[:, :30] = 0
    error = np.where(weight > 0, 3, np.nan).astype(np.float32)
    names = {"SCI": data, "ERR": error, "CON": np.ones((1, *data.shape), np.int32), "WHT": weight,
             "VAR_POISSON": error**2, "VAR_RNOISE": error**2}  # fmt: skip
    units = {"SCI": {"BUNIT": "MJy/sr", "PIXAR_SR": 2e-14}}
    hdus = [extension(name, plane, units.get(name, {})) for name, plane in names.items()]
    found = read(write(tmp_path / "i2d.fits", [fits.PrimaryHDU(header=header(cards)), *hdus]))
    np.testing.assert_array_equal(found.usable, weight > 0)
    assert set(np.unique(found.variance)) == {0, 9}
    assert (found.unit, found.exptime, found.gain) == ("MJy/sr", 311.0, None)


@pytest.mark.parametrize("units", ["nJy", "electron"])
def test_rubin_visit_image(units, data, tmp_path):
    mask = np.zeros(data.shape, np.int32)
    mask[3, 3], mask[4, 4], mask[5, 5] = 1 << 1, 1 << 5, 1 << 3  # saturated; detected; cosmic ray
    bits = {"MP_BAD": 0, "MP_SAT": 1, "MP_CR": 3, "HIERARCH MP_DETECTED": 5, "HIERARCH MP_NO_DATA": 8}
    image = header(TAN, {"EXTTYPE": "IMAGE", "BUNIT": units})
    hdus = [
        fits.PrimaryHDU(header=header({"TELESCOP": "LSSTComCam", "EXPTIME": 30.0})),
        fits.CompImageHDU(data, image, name="IMAGE", compression_type="GZIP_1", quantize_level=0),
        extension("MASK", mask, {"EXTTYPE": "MASK"} | bits, kind=fits.CompImageHDU),
        extension("VARIANCE", np.full(data.shape, 16.0, np.float32), {"EXTTYPE": "VARIANCE"}, kind=fits.CompImageHDU),
        fits.BinTableHDU.from_columns([fits.Column("x", "1D", array=[1.0])], name="ARCHIVE_INDEX"),
    ]
    found = read(write(tmp_path / "calexp.fits", hdus))
    np.testing.assert_array_equal(found.data, data)
    usable = np.ones(data.shape, bool)
    usable[3, 3] = usable[5, 5] = False
    np.testing.assert_array_equal(found.usable, usable)
    assert is_set(found, MaskBit.SATURATED)[3, 3]
    assert is_set(found, MaskBit.COSMIC_RAY)[5, 5]
    # AB: 3631 Jy have magnitude 0
    assert found.zeropoint == (pytest.approx(31.4, abs=1e-3) if units == "nJy" else None)
    assert found.gain == (None if units == "nJy" else 1.0)


def test_hyper_suprime_cam_knows_the_flux_of_magnitude_zero(data, tmp_path):
    path = write(tmp_path / "hsc.fits", [fits.PrimaryHDU(header=header({"FLUXMAG0": 10**10.8})), extension("I", data)])
    assert read(path).zeropoint == pytest.approx(27.0)


def test_decam_of_many_chips_asks_for_one_and_takes_it(data, tmp_path, capsys):
    cards = {"INSTRUME": "DECam", "EXPTIME": 90.0}
    chips = [
        extension(name, (data + n).astype(np.int32), TAN | {"GAINA": 4.0, "GAINB": 4.2}, kind=fits.CompImageHDU)
        for n, name in enumerate(("S29", "S31", "N4"))
    ]
    image = write(tmp_path / "c4d_ooi_g.fits.fz", [fits.PrimaryHDU(header=header(cards)), *chips])
    with pytest.raises(InputError, match=r"3 images.*S29.*S31.*N4"):
        read(image)
    codes = [np.zeros(data.shape, np.int32) for _ in chips]
    codes[1][8, 8] = 5
    quality = [extension(chip.name, plane, kind=fits.CompImageHDU) for chip, plane in zip(chips, codes, strict=True)]
    write(tmp_path / "c4d_ood_g.fits.fz", [fits.PrimaryHDU(header=header(cards)), *quality])
    for how in ({"ext": "S31"}, {"ext": 2}):
        found = read(image, **how)
        np.testing.assert_array_equal(found.data, data + 1)
        assert found.gain == pytest.approx(4.1)
        np.testing.assert_array_equal(np.argwhere(is_set(found, MaskBit.COSMIC_RAY)), [[8, 8]])
    assert main(["detect", f"{image}", "-q"]) == EXIT_FAILED
    assert "skyloom" in capsys.readouterr().err


def test_pan_starrs_stack_is_linear_again(data, tmp_path):
    """asinh magnitudes as integers, a mask whose header names its bits, and a variance that is stored so, too."""
    a = 2.5 / np.log(10)
    cards = TAN | {"TELESCOP": "PS1", "BOFFSET": 12.5, "BSOFTEN": 80.0, "CELL.GAIN": 1.2, "CELL.SATURATION": 5e4}
    squeezed = a * np.arcsinh((data - 12.5) / (2 * 80.0))
    image = fits.PrimaryHDU(squeezed, header(cards))
    image.scale("int32", bzero=0.0, bscale=1e-7)
    path = write(tmp_path / "skycell.stk.g.unconv.fits", [image])
    variance = np.full(data.shape, 81.0)
    spread = fits.PrimaryHDU(a * np.arcsinh(variance / (2 * 80.0)), header(cards | {"BOFFSET": 0.0}))
    write(tmp_path / "skycell.stk.g.unconv.wt.fits", [spread])
    bits = {"DETECTOR": 1, "SAT": 32, "CR": 256, "BURNTOOL": 128, "CONV.POOR": 16384}
    names = {f"MSKNAM{n:02d}": name for n, name in enumerate(bits)}
    names |= {f"MSKVAL{n:02d}": value for n, value in enumerate(bits.values())}
    mask = np.zeros(data.shape, np.uint16)
    mask[0, :5] = 1, 32, 256, 128, 16384
    write(tmp_path / "skycell.stk.g.unconv.mask.fits", [fits.PrimaryHDU(mask, header({"TELESCOP": "PS1"} | names))])
    found = read(path)
    np.testing.assert_allclose(found.data, data, rtol=2e-6)  # steps of 1e-7 of the magnitude, and float32
    np.testing.assert_allclose(found.variance[1:], 81, rtol=1e-6)
    np.testing.assert_array_equal(found.usable[0, :5], [False, False, False, True, True])
    assert found.usable[1:].all()
    assert is_set(found, MaskBit.SATURATED)[0, 1]
    assert is_set(found, MaskBit.COSMIC_RAY)[0, 2]
    assert (found.gain, found.saturation) == (1.2, 5e4)


def test_swarp_weight_beside_the_co_add(data, tmp_path):
    weight = np.ones(data.shape, np.float32)
    weight[-7:] = 0
    path = write(tmp_path / "coadd.fits", [fits.PrimaryHDU(data * weight, header({"SOFTNAME": "SWarp", "GAIN": 9.0}))])
    assert read(path).usable.all()
    sibling = write(tmp_path / "coadd.weight.fits", [fits.PrimaryHDU(weight)])
    np.testing.assert_array_equal(is_set(read(path), MaskBit.NO_DATA), weight == 0)
    write(sibling, [fits.PrimaryHDU(weight[1:])])
    with pytest.warns(SkyloomWarning, match=r"coadd\.weight\.fits has another shape"):
        assert read(path).usable.all()


def test_planes_named_after_their_detector(data, tmp_path):
    flags = np.zeros(data.shape, np.int32)
    flags[2, 2] = 1
    hdus = [fits.PrimaryHDU()]
    for n, chip in enumerate(("1-1", "1-2")):
        hdus += [
            extension(f"{chip}.SCI", data + n),
            extension(f"{chip}.RMS", np.full(data.shape, 2.0 + n, np.float32)),
            extension(f"{chip}.FLG", flags * n, {}),
        ]
    hdus[3].name, hdus[6].name = "1-1.FLAG", "1-2.FLAG"
    path = write(tmp_path / "vis.fits", hdus)
    with pytest.raises(InputError, match="holds 2 images"):
        read(path)
    found = read(f"{path}[1-2.SCI]")
    np.testing.assert_array_equal(found.data, data + 1)
    assert set(np.unique(found.variance)) == {9}
    np.testing.assert_array_equal(found.usable, flags == 0)


def test_roman_counts_per_second(data, tmp_path):
    asdf = pytest.importorskip("asdf")
    quality = np.zeros(data.shape, np.uint32)
    quality[6, 6] = 1
    meta = {"telescope": "ROMAN", "exposure": {"exposure_time": 139.8}}
    tree = {"data": data, "err": np.full(data.shape, 0.5, np.float32), "dq": quality, "meta": meta}
    asdf.AsdfFile({"roman": tree}).write_to(tmp_path / "r_cal.asdf")
    found = read(tmp_path / "r_cal.asdf")
    np.testing.assert_array_equal(found.usable, quality == 0)
    assert (found.unit, found.exptime) == ("DN/s", 139.8)
    assert found.variance.max() == 0.25


@pytest.mark.parametrize(
    ("unit", "expected", "gain"),
    [
        ("ADU", "adu", 2.0),
        ("counts/pixel", "adu", 2.0),
        ("ELECTRONS", "electron", 1.0),
        ("e-/sec", "electron/s", 60.0),
        ("electrons per second", "electron/s", 60.0),
        ("DN / s", "adu/s", 120.0),
        ("photoelectrons", "electron", 1.0),
        ("MJy/sr", "MJy/sr", None),
        ("nanomaggy", "nanomaggy", None),
    ],
)
def test_units(unit, expected, gain, data, tmp_path):
    cards = {"BUNIT": unit, "GAIN": 2.0, "EXPTIME": 60.0}
    found = read(write(tmp_path / "unit.fits", [fits.PrimaryHDU(data, header(cards))]))
    assert (found.unit, found.gain) == (expected, gain)


def test_colour_mosaics_are_told(data, tmp_path):
    path = write(tmp_path / "raw.fits", [fits.PrimaryHDU(data, header({"BAYERPAT": "RGGB"}))])
    with pytest.warns(SkyloomWarning, match=r"mosaic of colour filters.*RGGB"):
        read(path)


@pytest.mark.parametrize(
    ("start", "what"),
    [(b"\x89PNG\r\n", "a PNG"), (b"XISF0100", "an XISF"), (b"II*\0", "a TIFF"), (b"<!DOCTYPE html>", "a page of text")],
)
def test_other_files_are_named(start, what, tmp_path):
    path = tmp_path / "image.fits"
    path.write_bytes(start + bytes(4000))
    with pytest.raises(ReadError, match=f"not a FITS file, but {what}.*Convert it"):
        read(path)


# --- extensions in brackets ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def chips(pair, data, tmp_path_factory):
    """Two chips of science, and of template, in one file each."""
    folder = tmp_path_factory.mktemp("chips")
    for name, plane in (("science", data), ("template", pair.template.data)):
        other = np.random.default_rng(1).normal(100, 5, plane.shape).astype(np.float32)
        hdus = [extension("CCD", other, CARDS), extension("CCD", plane, CARDS, version=2)]
        write(folder / f"{name}.fits", [fits.PrimaryHDU(), *hdus])
    return folder


@pytest.mark.parametrize("brackets", ["[2]", "[CCD,2]", "[ccd, 2]"])
def test_brackets_choose_an_extension(brackets, chips, data):
    np.testing.assert_array_equal(read(f"{chips}/science.fits{brackets}").data, data)


def test_brackets_that_choose_nothing(chips, files):
    path = chips / "science.fits"
    with pytest.raises(ReadError, match=r"no extension 7"):
        read(f"{path}[7]")
    with pytest.raises(InputError, match=r"Parts of images cannot be chosen"):
        read(f"{path}[1:100,1:100]")
    with pytest.raises(InputError, match=r"give one"):
        read(f"{path}[1]", ext=2)
    with pytest.raises(ReadError, match=r"There is no file .*gone\.fits\[1\]"):
        read(f"{path.parent}/gone.fits[1]")
    quality = np.zeros((SIZE, SIZE), np.uint8)
    quality[1, 2] = 1
    mask = write(chips / "mask.fits", [fits.PrimaryHDU(quality * 0), extension("B", quality)])
    assert np.argwhere(~read(files / "science.fits", mask=f"{mask}[B]").usable).tolist() == [[1, 2]]


def test_commands_take_brackets(chips, tmp_path, capsys):
    science, template = (f"{chips}/{name}.fits[2]" for name in ("science", "template"))
    arguments = ["difference", science, template, "-o", str(tmp_path), "--no-report", "--json"]
    assert main(arguments) == EXIT_OK
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["difference"] == str(tmp_path / "science_2.difference.fits")
    names = fits.getheader(outcome["difference"])
    assert (names["SLIN1"], names["SLIN2"]) == ("science.fits[2]", "template.fits[2]")
    assert main(["register", science, template, "--json"]) == EXIT_OK
    assert json.loads(capsys.readouterr().out)["n_matched"] > 10
    # two extensions of one file are two exposures; one extension twice is a mistake
    coadd = ["coadd", "--align", "stars", "-o", str(tmp_path / "c.fits"), "-q"]
    assert main([*coadd, science, template]) == EXIT_OK
    assert main([*coadd, "--overwrite", science, f"{chips}/science.fits[2]"]) == EXIT_FAILED
    assert "given twice" in capsys.readouterr().err
    assert main(["coadd", science, template, "-o", f"{chips}/science.fits", "--overwrite"]) == EXIT_FAILED
    assert "is an input" in capsys.readouterr().err


# --- world coordinates ---------------------------------------------------------------------------


def iraf_header(kind, order, cross, numbers, radial=""):
    """Return a TNX or ZPX header; the cards of the text are cut after 68 characters, as IRAF does."""
    result = header(TAN, {"WCSDIM": 2, "WAT0_001": "system=image"})
    box = "-0.3171856965643079 0.3150652479325533 -0.3126038394350166 0.3111955040928311"
    for axis, name in ((1, "lng"), (2, "lat")):
        result[f"CTYPE{axis}"] = result[f"CTYPE{axis}"][:-3] + kind.upper()
        values = " ".join(f"{value * axis:.13E}" for value in numbers)
        text = f'wtype={kind} axtype={"ra" if axis == 1 else "dec"} {radial}{name}cor = "3. {order}. {order}. {cross}. '
        text += f'{box} {values} "'
        for n in range(0, len(text), 68):
            result[f"WAT{axis}_{n // 68 + 1:03d}"] = text[n : n + 68]
    return result


def test_tnx_as_the_library_reads_it_where_it_can():
    """wcslib understands TNX whose cards happen to be cut in the right places: an oracle for those that are not."""
    numbers = [1.23e-5, 2e-3, 0.3, 4.1, 5e-3, -0.6, 7.2, 8e-1, 9.9, -10.5]
    known = iraf_header("tnx", 4, 2, numbers)
    x, y = np.meshgrid(np.linspace(0, 2000, 9), np.linspace(0, 1500, 9))
    ours = WCS(as_tpv(known, (1500, 2000))).pixel_to_world_values(x, y)
    np.testing.assert_allclose(ours, WCS(known).pixel_to_world_values(x, y), atol=1e-11)
    straight = WCS(header(TAN)).pixel_to_world_values(x, y)
    assert np.abs(np.subtract(ours, straight)).max() > 1e-3  # 10 pixels: there is something to get right


@pytest.mark.parametrize(("order", "cross", "count"), [(4, 1, 16), (5, 2, 15), (3, 0, 5)])
def test_tnx_is_the_sum_of_its_definition(order, cross, count, data, tmp_path):
    rng = np.random.default_rng(count)
    numbers = rng.normal(0, 1e-3, count)
    found = read(write(tmp_path / "tnx.fits", [fits.PrimaryHDU(data, iraf_header("tnx", order, cross, numbers))]))
    assert found.wcs is not None
    x, y = np.meshgrid(np.linspace(0, SIZE - 1, 5), np.linspace(0, SIZE - 1, 5))
    xi, eta = -1e-4 * (x + 1 - 120), 1e-4 * (y + 1 - 110)
    terms = [
        (i, j)
        for j in range(order)
        for i in range(order)
        if cross == 1 or (i + j < order if cross == 2 else 0 in (i, j))
    ]
    bend = sum(number * xi**i * eta**j for number, (i, j) in zip(numbers, terms, strict=True))
    # the linear part of an undistorted gnomonic projection, upside down
    tangent = WCS(header(TAN))
    expected = tangent.wcs_pix2world((xi + bend) / -1e-4 + 120, (eta + 2 * bend) / 1e-4 + 110, 1)
    np.testing.assert_allclose(found.wcs.pixel_to_world_values(x, y), expected, atol=1e-10)


def test_zpx_without_correction_is_the_zenithal_polynomial(data, tmp_path):
    cards = iraf_header("zpx", 2, 2, [0.0, 0.0, 0.0], radial="projp1=1. projp3=220. ")
    found = read(write(tmp_path / "zpx.fits", [fits.PrimaryHDU(data, cards)]))
    zenithal = header(TAN, {"CTYPE1": "RA---ZPN", "CTYPE2": "DEC--ZPN", "PV2_1": 1.0, "PV2_3": 220.0})
    x, y = np.meshgrid(np.linspace(0, SIZE - 1, 5), np.linspace(0, SIZE - 1, 5))
    np.testing.assert_allclose(
        found.wcs.pixel_to_world_values(x, y), WCS(zenithal).pixel_to_world_values(x, y), atol=1e-9
    )


def test_tnx_that_makes_no_sense_is_told(data, tmp_path):
    cards = iraf_header("tnx", 4, 2, [1.0, 2.0])
    with pytest.warns(SkyloomWarning, match="WCS of tnx.fits cannot be used"):
        assert read(write(tmp_path / "tnx.fits", [fits.PrimaryHDU(data, cards)])).wcs is None


# --- geometry ------------------------------------------------------------------------------------


def flipped(image):
    return image.data[:, ::-1]


def turned(image):
    return np.rot90(image.data, 1)


@pytest.mark.parametrize("how", [flipped, turned])
def test_templates_of_any_parity_and_quarter_turns(how, pair):
    """The difference is as good as that of the unturned template: its noise is calibrated, and it finds the same."""
    science = pair.science
    template = pair.template.replace(data=how(pair.template), variance=None, mask=None)
    result = skyloom.difference(science, template)
    assert abs(result.diagnostics["noise_std"] - 1) < 0.06  # 240^2 pixels, and the error of the sky's noise
    found = skyloom.detect(result)
    for star in pair.transients:
        distance = np.hypot(found["x"] - star["x"], found["y"] - star["y"])
        assert found["real"][np.argmin(distance)]
        assert distance.min() < 0.5
    usable = (result.mask & np.uint32(UNUSABLE)) == 0
    assert usable.mean() > 0.8


# --- messages ------------------------------------------------------------------------------------


def test_arrays_are_named_by_what_they_are(data):
    few = np.ones((5, 5))
    with pytest.raises(skyloom.errors.SkyloomError, match=r"^science has no noise"):
        skyloom.difference(few, data)
    with pytest.raises(skyloom.errors.SkyloomError, match="data of template are of type"):
        skyloom.difference(data, few.astype(str))
    with pytest.raises(InputError, match="data of exposure 2 have the shape"):
        skyloom.coadd([data, np.ones((3, 5, 5))])
    with pytest.raises(skyloom.errors.SkyloomError, match="pixels of source have the value 1"):
        skyloom.register(few, data)
    other = simulate.simulate_pair(6, SIZE, n_stars=60, n_galaxies=0, n_transients=0, vary=0.0).science.data
    with pytest.raises(skyloom.errors.RegistrationError, match="exposure 2 because: No transform"):
        skyloom.coadd([data, other])


@pytest.mark.parametrize(("word", "meant"), [("diff", "difference"), ("co-add", "coadd"), ("zz", None)])
def test_unknown_commands(word, meant, capsys):
    with pytest.raises(SystemExit) as ended:
        main([word, "a.fits"])
    assert ended.value.code == EXIT_FAILED
    told = capsys.readouterr().err
    assert f"there is no command {word}" in told
    assert ("do you mean" in told) == (meant is not None)
    assert meant is None or f"do you mean {meant}?" in told
