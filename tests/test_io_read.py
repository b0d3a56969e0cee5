"""`read`: planes, masks, detector values and WCS of the files that observatories make."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skyloom.errors import InputError, ReadError, SkyloomWarning
from skyloom.exposure import LARGEST, Exposure, MaskBit
from skyloom.io import read
from skyloom.io.reader import pile_up_level

RNG = np.random.default_rng(3)
SKY = RNG.normal(100, 5, (12, 16)).astype(np.float32)
TAN = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 20.0, "CRPIX1": 5.0, "CRPIX2": 5.0,
       "CDELT1": -1e-4, "CDELT2": 1e-4}  # fmt: skip


def save(path, hdus):
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def primary(cards=(), data=None):
    return fits.PrimaryHDU(data, fits.Header(list(dict(cards).items())))


def image(data, name, cards=(), version=1):
    return fits.ImageHDU(data, fits.Header(list(dict(cards).items())), name=name, ver=version)


def bits(exposure, bit):
    return (exposure.mask & np.uint32(bit)) != 0


def test_import_is_light():
    code = "import sys, skyloom.io; print([m for m in sys.modules if m.startswith(('astropy', 'scipy', 'asdf'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8", ">f4", ">f8", ">i2", "f2", "?"])
def test_arrays_of_any_real_type_are_taken_and_left_alone(dtype):
    data = (SKY > 100 if dtype == "?" else SKY).astype(dtype)
    before = data.copy()
    for array in (data, data[::2, ::-1], data.T):
        array.flags.writeable = False
        exposure = read(array)
        np.testing.assert_array_equal(exposure.data, array)
        assert exposure.data.dtype == (np.float64 if dtype.endswith("f8") else np.float32)
        assert exposure.data.flags.c_contiguous
        assert exposure.data.dtype.isnative
    np.testing.assert_array_equal(data, before)


def test_whole_numbers_that_float32_cannot_hold_become_float64():
    data = np.array([[2**24 + 1, 5]], np.int32)
    np.testing.assert_array_equal(read(data).data, data)
    assert read(np.array([[2**24, 5]], np.int32)).data.dtype == np.float32


def test_masked_arrays_and_quantities():
    array = np.ma.masked_greater(SKY, 105)
    np.testing.assert_array_equal(bits(read(array), MaskBit.BAD), SKY > 105)
    assert read(array, mask=False).usable.all()
    assert read(SKY * units.electron).unit == "electron"


def test_an_exposure_passes_and_takes_overrides():
    exposure = Exposure(SKY, gain=2.0, exptime=10.0, mask=SKY > 105)
    again = read(exposure, gain=3.0, saturation=104.0)
    assert (again.gain, again.exptime, again.saturation) == (3.0, 10.0, 104.0)
    np.testing.assert_array_equal(bits(again, MaskBit.SATURATED), SKY >= 104)
    np.testing.assert_array_equal(bits(again, MaskBit.BAD), SKY > 105)
    assert exposure.gain == 2.0
    assert read(exposure) is exposure
    assert read(exposure, mask=False).usable.all()


@pytest.mark.parametrize("suffix", ["fits", "fits.gz", "fits.bz2", "fits.xz"])
def test_simple_image_with_the_usual_keywords(suffix, tmp_path):
    cards = {**TAN, "GAIN": 1.9, "RDNOISE": 5.0, "EXPTIME": 200.0, "SATURATE": 108.0, "MAGZERO": 25.0}
    plain = save(tmp_path / "a.fits", [primary(cards, SKY)])
    path = tmp_path / f"image.{suffix}"
    if suffix == "fits.xz":
        import lzma

        path.write_bytes(lzma.compress(plain.read_bytes()))
    else:
        save(path, [primary(cards, SKY)])
    exposure = read(str(path))
    np.testing.assert_array_equal(exposure.data, SKY)
    values = (exposure.gain, exposure.read_noise, exposure.exptime, exposure.saturation, exposure.zeropoint)
    assert values == (1.9, 5.0, 200.0, 108.0, 25.0)
    np.testing.assert_array_equal(bits(exposure, MaskBit.SATURATED), np.float32(108) <= SKY)
    np.testing.assert_allclose(exposure.wcs.pixel_to_world_values(4, 4), (10, 20), atol=1e-12)
    assert exposure.name == path.name
    assert exposure.unit == "adu"
    assert read(path, gain=2, read_noise=0, saturation=1e9, exptime=3).usable.all()


@pytest.mark.parametrize("compression", ["RICE_1", "GZIP_2"])
def test_compressed_images(compression, tmp_path):
    data = np.round(SKY * 100).astype(np.int32)
    hdu = fits.CompImageHDU(data, fits.Header(list(TAN.items())), compression_type=compression)
    exposure = read(save(tmp_path / "image.fits.fz", [primary(), hdu]))
    np.testing.assert_array_equal(exposure.data, data)
    assert exposure.wcs is not None


def test_scaled_and_blank_integers(tmp_path):
    counts = np.array([[0, 1, 65535], [300, 400, 500]], np.uint16)
    np.testing.assert_array_equal(read(save(tmp_path / "u.fits", [primary((), counts)])).data, counts)
    hdu = primary((), np.array([[-5, 7], [8, 9]], np.int16))
    hdu.header["BLANK"] = -5
    hdu.header["BSCALE"] = 0.5
    hdu.header["BZERO"] = 100.0
    path = tmp_path / "scaled.fits"
    raw = fits.PrimaryHDU(np.array([[-5, 7], [8, 9]], np.int16))
    raw.writeto(path)
    content = path.read_bytes()
    end = content.index(b"END     ")
    extra = b"".join(
        f"{card:<80}".encode() for card in ("BLANK   =                   -5", "BSCALE  =                  0.5",
                                            "BZERO   =                100.0")
    )  # fmt: skip
    path.write_bytes((content[:end] + extra + content[end : end + 80]).ljust(2880) + content[2880:])
    exposure = read(path)
    np.testing.assert_array_equal(exposure.data, [[0, 103.5], [104, 104.5]])
    np.testing.assert_array_equal(bits(exposure, MaskBit.NO_DATA), [[True, False], [False, False]])


def test_degenerate_axes_are_dropped(tmp_path):
    path = save(tmp_path / "radio.fits", [primary({**TAN, "CTYPE3": "FREQ", "CRVAL3": 1e9}, SKY[None, None])])
    exposure = read(path)
    np.testing.assert_array_equal(exposure.data, SKY)
    assert exposure.wcs.pixel_n_dim == 2


def test_hst(tmp_path):
    quality = np.zeros(SKY.shape, np.int16)
    quality[0, :6] = [0, 4, 64, 256, 4096, 32 | 8192]
    error = np.full_like(SKY, 3.0)
    error[2, 2] = 0
    path = save(
        tmp_path / "hst_flt.fits",
        [primary({"TELESCOP": "HST", "EXPTIME": 500.0, "CCDGAIN": 2.0, "READNSEA": 3.0, "READNSEB": 4.0}),
         image(SKY, "SCI", {**TAN, "BUNIT": "ELECTRONS"}), image(error, "ERR"), image(quality, "DQ")],
    )  # fmt: skip
    exposure = read(path)
    assert exposure.gain == 1.0  # the data are electrons, whatever CCDGAIN says
    assert exposure.unit == "electron"
    assert exposure.exptime == 500
    assert exposure.read_noise == pytest.approx(np.sqrt(12.5))
    np.testing.assert_allclose(exposure.variance[error > 0], 9)
    assert exposure.usable[0, :6].tolist() == [True, False, True, False, False, False]
    assert not exposure.usable[2, 2]
    assert bits(exposure, MaskBit.SATURATED)[0, :6].tolist() == [False, False, False, True, False, False]
    assert bits(exposure, MaskBit.COSMIC_RAY)[0, :6].tolist() == [False] * 4 + [True, True]
    assert read(path, mask=False).usable.sum() == SKY.size - 1
    assert exposure.header["CCDGAIN"] == 2.0


def test_second_chip_gets_its_own_planes(tmp_path):
    chips = [
        hdu
        for chip in (1, 2)
        for hdu in (image(SKY * chip, "SCI", version=chip), image(np.full_like(SKY, chip), "ERR", version=chip))
    ]
    path = save(tmp_path / "flc.fits", [primary({"TELESCOP": "HST"}), *chips])
    with pytest.raises(InputError, match="choose one"):
        read(path)
    second = read(path, ext=("SCI", 2))
    np.testing.assert_array_equal(second.data, SKY * 2)
    np.testing.assert_array_equal(second.variance, 4)


def test_jwst_variances_add_up_and_good_ramps_stay(tmp_path):
    quality = np.zeros(SKY.shape, np.uint32)
    quality[0, :5] = [0, 1, 2, 4, 3]
    planes = [image(np.full_like(SKY, v), n) for n, v in (("VAR_POISSON", 2.0), ("VAR_RNOISE", 3.0))]
    path = save(
        tmp_path / "jwst_cal.fits",
        [primary({"TELESCOP": "JWST", "EFFEXPTM": 100.0}), image(SKY, "SCI", {"BUNIT": "MJy/sr"}),
         image(quality, "DQ"), *planes],
    )  # fmt: skip
    exposure = read(path)
    np.testing.assert_array_equal(exposure.variance, 5)
    assert exposure.usable[0, :5].tolist() == [True, False, True, True, False]
    assert bits(exposure, MaskBit.SATURATED)[0, :5].tolist() == [False, False, False, False, True]
    assert (exposure.gain, exposure.exptime, exposure.unit) == (None, 100.0, "MJy/sr")


def test_decam_takes_weight_and_quality_from_the_files_beside_it(tmp_path):
    cards = {"INSTRUME": "DECam", "EXPTIME": 90.0}
    amplifiers = {"GAINA": 4.0, "GAINB": 5.0, "RDNOISEA": 6.0, "RDNOISEB": 8.0, "SATURATE": 5e4}
    quality = np.zeros(SKY.shape, np.int32)
    quality[0, :5] = [0, 1, 3, 5, 7]
    weight = np.full_like(SKY, 0.25)
    weight[1, 1] = 0
    science = save(tmp_path / "c4d_1_ooi_r.fits", [primary(cards), image(SKY, "N1", amplifiers)])
    assert read(science).variance is None
    save(tmp_path / "c4d_1_oow_r.fits", [primary(cards), image(weight, "N1")])
    save(tmp_path / "c4d_1_ood_r.fits", [primary(cards), image(quality, "N1")])
    exposure = read(science)
    assert (exposure.gain, exposure.saturation, exposure.exptime) == (4.5, 5e4, 90.0)
    np.testing.assert_array_equal(exposure.variance[2:], 4)
    assert not exposure.usable[1, 1]
    assert exposure.usable[0, :5].tolist() == [True, False, False, False, True]
    assert exposure.mask[0, 2] == MaskBit.SATURATED
    assert exposure.mask[0, 3] == MaskBit.COSMIC_RAY


def test_lsst_names_its_bits_in_the_header(tmp_path):
    mask = np.zeros(SKY.shape, np.int32)
    mask[0, :5] = [0, 1 << 0, 1 << 1, 1 << 3, 1 << 5]
    cards = {"MP_BAD": 0, "MP_SAT": 1, "MP_CR": 3, "HIERARCH MP_DETECTED": 5}
    hdus = [primary({"FLUXMAG0": 1.0})]
    for kind, data in (("IMAGE", SKY), ("MASK", mask), ("VARIANCE", np.full_like(SKY, 2.0))):
        hdu = fits.ImageHDU(data)
        hdu.header["EXTTYPE"] = kind
        if kind == "MASK":
            hdu.header.update(cards)
        hdus.append(hdu)
    exposure = read(save(tmp_path / "calexp.fits", hdus))
    assert exposure.usable[0, :5].tolist() == [True, False, False, False, True]
    assert exposure.mask[0, 2] == MaskBit.BAD | MaskBit.SATURATED
    np.testing.assert_array_equal(exposure.variance, 2)


@pytest.mark.parametrize(
    ("name", "plane", "expected"),
    [("ERROR", 3.0, 9.0), ("SIGMA", 2.0, 4.0), ("VARIANCE", 5.0, 5.0), ("IVAR", 0.5, 2.0), ("WHT", 0.5, None)],
)
def test_generic_names_of_planes(name, plane, expected, tmp_path):
    path = save(tmp_path / "a.fits", [primary((), SKY), image(np.full_like(SKY, plane), name)])
    variance = read(path).variance
    if expected is None:
        assert variance is None  # a drizzle weight is no inverse variance
    else:
        np.testing.assert_allclose(variance, expected)


def test_planes_that_do_not_fit_are_ignored_with_a_warning(tmp_path):
    path = save(tmp_path / "a.fits", [primary((), SKY), image(SKY[:5], "ERR")])
    with pytest.warns(SkyloomWarning, match="another shape"):
        assert read(path).variance is None
    path = save(tmp_path / "b.fits", [primary((), SKY), image(np.zeros_like(SKY), "ERR")])
    with pytest.warns(SkyloomWarning, match="no positive value"):
        assert read(path).variance is None


def test_mask_from_array_and_file(tmp_path):
    path = save(tmp_path / "a.fits", [primary((), SKY)])
    bad = SKY > 105
    np.testing.assert_array_equal(read(path, mask=bad).usable, ~bad)
    cosmic = np.where(bad, int(MaskBit.COSMIC_RAY), 0)
    np.testing.assert_array_equal(read(path, mask=cosmic).mask, cosmic)
    for dtype in (np.uint8, np.float32):
        mask_file = save(tmp_path / "mask.fits", [primary((), bad.astype(dtype))])
        np.testing.assert_array_equal(read(path, mask=mask_file).usable, ~bad)
    with pytest.raises(InputError, match="mask"):
        read(path, mask=bad[:5])
    with pytest.raises(ReadError, match="exactly one is needed"):
        read(path, mask=save(tmp_path / "mask.fits", [primary((), bad[:5].astype(np.uint8))]))


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"GAIN": 0.0}, None),
        ({"GAIN": "unknown"}, None),
        ({"GAIN": -1, "CCDGAIN": 3.0}, 3.0),
        ({"EGAIN": 1.5, "GAIN": 120}, 1.5),
        ({"GAIN": 2.0, "BUNIT": "electrons"}, 1.0),
        ({"GAIN": 2.0, "BUNIT": "ADU/s", "EXPTIME": 10.0}, 20.0),
        ({"BUNIT": "electrons/s", "EXPOSURE": 2.0, "TIMEUNIT": "d"}, 172800.0),
        ({"GAIN": 2.0, "BUNIT": "Jy/beam"}, None),
        ({"ATODGNA": 1.0, "ATODGNB": 3.0}, 2.0),
        ({"HIERARCH ESO DET OUT1 CONAD": 1.7}, 1.7),
    ],
)
def test_gain_is_electrons_per_unit_of_data(cards, expected, tmp_path):
    assert read(save(tmp_path / "a.fits", [primary(cards, SKY)])).gain == expected


@pytest.mark.parametrize("value", [0, -3, np.nan, np.inf, "x"])
@pytest.mark.parametrize("what", ["gain", "exptime"])
def test_explicit_values_that_make_no_sense_are_errors(what, value):
    with pytest.raises(InputError, match=what):
        read(SKY, **{what: value})


def test_hdus_in_memory():
    hdu = image(SKY, "SCI", TAN)
    for source in (hdu, fits.HDUList([primary(), hdu, image(np.full_like(SKY, 2.0), "ERR")])):
        exposure = read(source)
        np.testing.assert_array_equal(exposure.data, SKY)
        assert exposure.wcs is not None
    assert exposure.variance[0, 0] == 4
    with pytest.raises(ReadError, match="a table"):
        read(fits.BinTableHDU.from_columns([fits.Column("a", "E", array=np.arange(3.0))]))


def test_sip_distortion_survives(tmp_path):
    header = {**TAN, "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-3,
              "B_1_1": -2e-3}  # fmt: skip
    wcs = read(save(tmp_path / "a.fits", [primary(header, SKY)])).wcs
    linear = WCS(fits.Header(list(TAN.items())))
    x, y = 14.0, 9.0
    u, v = x - 4, y - 4  # SIP: relative to CRPIX, which is 1-based
    expected = linear.pixel_to_world_values(x + 1e-3 * u * u, y - 2e-3 * u * v)
    np.testing.assert_allclose(wcs.pixel_to_world_values(x, y), expected, rtol=0, atol=1e-11)


def test_no_celestial_axes_is_no_wcs(tmp_path):
    cards = {"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}
    assert read(save(tmp_path / "a.fits", [primary(cards, SKY)])).wcs is None


def test_gwcs_from_an_asdf_extension(tmp_path):
    asdf, gwcs = pytest.importorskip("asdf"), pytest.importorskip("gwcs")
    import io

    from astropy.coordinates import ICRS
    from astropy.modeling import models
    from gwcs import coordinate_frames as frames

    transform = models.Shift(-4) & models.Shift(-4) | models.Scale(1e-4) & models.Scale(1e-4)
    transform = transform | models.Pix2Sky_TAN() | models.RotateNative2Celestial(10, 20, 180)
    detector = frames.Frame2D(name="detector", unit=(units.pix, units.pix))
    sky = frames.CelestialFrame(name="icrs", reference_frame=ICRS(), unit=(units.deg, units.deg))
    wcs = gwcs.WCS([(detector, transform), (sky, None)])
    tree = io.BytesIO()
    asdf.AsdfFile({"meta": {"wcs": wcs}}).write_to(tree)
    column = np.frombuffer(tree.getvalue(), np.uint8)
    table = np.array([(column,)], dtype=[("ASDF_METADATA", "u1", column.size)])
    hdus = [primary({"TELESCOP": "JWST"}), image(SKY, "SCI"), fits.BinTableHDU(table, name="ASDF")]
    exposure = read(save(tmp_path / "a.fits", hdus))
    assert isinstance(exposure.wcs, gwcs.WCS)
    np.testing.assert_allclose(exposure.wcs.pixel_to_world_values(4, 4), (10, 20), atol=1e-9)

    tree = {"roman": {"data": SKY, "err": SKY / 10, "dq": np.zeros(SKY.shape, np.uint32),
                      "meta": {"wcs": wcs, "exposure": {"exposure_time": 55.0}}}}  # fmt: skip
    asdf.AsdfFile(tree).write_to(tmp_path / "roman.asdf")
    exposure = read(tmp_path / "roman.asdf")
    np.testing.assert_array_equal(exposure.data, SKY)
    np.testing.assert_allclose(exposure.variance, (SKY / 10) ** 2, rtol=1e-6)
    assert exposure.exptime == 55
    assert exposure.wcs is not None
    (tmp_path / "bad.asdf").write_bytes((tmp_path / "roman.asdf").read_bytes()[:600])
    with pytest.raises(ReadError, match="cannot be read as ASDF"):
        read(tmp_path / "bad.asdf")


def test_saturation_is_guessed_only_where_the_converter_ran_full(tmp_path):
    counts = RNG.integers(900, 1100, (64, 64)).astype(np.uint16)
    assert pile_up_level(counts) is None
    counts[:2, :10] = 65535
    assert pile_up_level(counts) == 65535
    assert read(save(tmp_path / "a.fits", [primary((), counts)])).mask[0, 0] == MaskBit.SATURATED
    counts[5:9, 5:15] = RNG.integers(65100, 65534, (4, 10))  # a bright but honest slope below it
    assert pile_up_level(counts) is None
    counts[:] = 1000
    counts[0, 0] = 65535
    assert pile_up_level(counts) is None
    assert pile_up_level(np.full((9, 9), np.nan)) is None
    assert pile_up_level(np.full((9, 9), 1000.0)) is None
    assert pile_up_level(RNG.poisson(2.0, (64, 64))) is None
    assert pile_up_level(np.minimum(RNG.poisson(0.5, (300, 300)), 3)) is None


def test_saturation_is_seen_at_any_level_and_in_floating_point():
    y, x = np.mgrid[:80, :90]
    stars = sum(
        a * np.exp(-((x - i) ** 2 + (y - j) ** 2) / 8) for i, j, a in ((20, 30, 3e4), (60, 50, 2e4), (50, 10, 500))
    )
    data = (stars + RNG.normal(100, 5, stars.shape)).astype(np.float32)
    assert pile_up_level(data) is None
    clipped = np.minimum(data, 8000.5)
    assert pile_up_level(clipped) == 8000.5
    exposure = read(clipped)
    assert exposure.saturation == 8000.5
    np.testing.assert_array_equal(exposure.mask == MaskBit.SATURATED, data >= 8000.5)
    clipped[0, 0] = np.nan
    assert pile_up_level(clipped) == 8000.5
    assert read(data).saturation is None
    assert read(clipped, saturation=9000.0).saturation == 9000.0
    # equal stars on the middles of pixels, without noise and with a little of it in the sky alone
    equal = np.zeros((90, 90), np.float32)
    equal[5::10, 5::10] = 1000
    assert pile_up_level(equal) is None
    assert pile_up_level(np.where(equal > 0, equal, RNG.normal(0, 1, equal.shape))) is None


@given(hnp.arrays(np.float32, (4, 5), elements=st.floats(width=32)), st.booleans())
def test_every_exposure_is_finite_and_masked_where_the_input_was_not(data, positive):
    bad = ~(np.abs(data) <= LARGEST)  # NaN, infinite, or a fill value
    with np.errstate(over="ignore"):
        exposure = Exposure(data, variance=np.abs(data) if positive else data)
    assert np.isfinite(exposure.data).all()
    assert np.isfinite(exposure.variance).all()
    np.testing.assert_array_equal(bits(exposure, MaskBit.NO_DATA), bad)
    assert (exposure.variance[exposure.usable] > 0).all()
