"""`run_hotpants` and bad input: each row of the table of failures has a typed error or a right result."""

import stat
import sys

import numpy as np
import pytest
from astropy.table import Table

from simulate import simulate_pair
from skyloom.errors import InputError, NoUsableDataError, ReadError, ShapeError, SubtractionError, TooFewStampsError
from skyloom.subtraction import (
    HotpantsBit,
    HotpantsKernel,
    HotpantsOptions,
    build_error_map,
    hotpants,
    run_hotpants,
)
from skyloom.subtraction.al_hotpants.kernel import HotpantsBasis, Region

SIZE = 256
KEYS = {"image_fwhm": 4.2, "template_fwhm": 3.0, "image_gain": 1.5, "template_gain": 12.0}
BAD = HotpantsBit.OUTPUT_ISBAD
FILL = np.float32(1e-30)
INNER = (slice(20, -20),) * 2


@pytest.fixture(scope="module")
def pair():
    return simulate_pair(7, SIZE, n_stars=60, n_galaxies=2, n_transients=0)


def images(pair):
    return pair.science.data.copy(), pair.template.data.copy()


def noise(pair):
    return {"err": np.sqrt(pair.science.variance), "template_err": np.sqrt(pair.template.variance)}


def spread(values):
    return 1.4826 * np.median(np.abs(values - np.median(values)))


@pytest.mark.parametrize("which", ["science", "template"])
@pytest.mark.parametrize("how", ["mask", "nan"])
def test_nothing_usable(pair, which, how):
    image, template = images(pair)
    masks = {}
    plane = image if which == "science" else template
    if how == "nan":
        plane[:] = np.nan
    else:
        masks["mask" if which == "science" else "template_mask"] = np.ones(plane.shape, bool)
    with pytest.raises(NoUsableDataError, match="image" if which == "science" else "template"):
        run_hotpants(image, template, **masks, **KEYS)
    assert issubclass(NoUsableDataError, ValueError)  # what the original raises


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("how", ["nan", "inf", "masked garbage", "masked ordinary"])
def test_a_bad_block_is_filled_and_spoils_nothing_around(pair, which, how):
    planes = images(pair)
    clean = run_hotpants(*planes, **KEYS, **noise(pair))
    block = np.s_[100:110, 120:130]
    masks = {}
    if how == "nan":
        planes[which][block] = np.nan
    elif how == "inf":
        planes[which][block] = np.inf
    else:
        bad = np.zeros((SIZE, SIZE), bool)
        bad[block] = True
        masks["mask" if which == 0 else "template_mask"] = bad
        if how == "masked garbage":
            planes[which][block] = 1e5
    diff, scaled, sigma = run_hotpants(*planes, **KEYS, **noise(pair), **masks, get_scaled=True, get_noise=True)
    assert (diff[block] == FILL).all()
    assert (sigma[block] == 0).all()
    assert np.isfinite(diff).all()
    assert np.isfinite(scaled).all()
    filled = diff == FILL
    filled[:13], filled[-13:], filled[:, :13], filled[:, -13:] = False, False, False, False
    # not more than the kernel's reach; the science image is not convolved
    assert filled.sum() <= (100 if which == 0 else 36**2)
    ring = np.s_[80:130, 100:150]
    good = ~filled[ring]
    assert np.abs(diff[ring] - clean[ring])[good].max() < 5 * np.median(sigma[sigma > 0])


@pytest.mark.parametrize("error", [np.inf, 1e25, 0.0])
def test_bad_pixels_may_have_any_error(pair, error):
    """Errors of 1 / sqrt(weight) are infinite where the weight is 0, a few such pixels in each stamp."""
    planes, errors = images(pair), noise(pair)
    bad = np.zeros((SIZE, SIZE), bool)
    bad[7::31, 4::31] = True
    masks = {"mask": bad, "template_mask": bad}
    ordinary = run_hotpants(*planes, **masks, **errors, **KEYS, get_noise=True)
    for key in ("err", "template_err"):
        errors[key] = np.where(bad, error, errors[key])
    for found, expected in zip(run_hotpants(*planes, **masks, **errors, **KEYS, get_noise=True), ordinary, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_stamps_without_a_usable_pixel_are_none(pair):
    bad = np.zeros((SIZE, SIZE), bool)
    bad[::9, ::9] = True  # few, but the kernel reaches one of them from everywhere
    with pytest.raises(TooFewStampsError, match="has 0 stamps"):
        run_hotpants(*images(pair), **noise(pair), **KEYS, mask=bad, template_mask=bad)


def test_a_mask_has_the_bits_of_hotpants(pair):
    image, template = images(pair)
    image[60, 60], image[61, 60], template[150, 150] = np.nan, 1e7, -1e7
    mask = np.zeros(image.shape, np.int16)
    mask[100, 100] = 1
    basis = HotpantsBasis(9, (0,), (1.5,))
    whole = Region(0, SIZE - 1, 0, SIZE - 1, 0, SIZE - 1, 0, SIZE - 1)
    kernel = HotpantsKernel(basis, 0, 0, (whole,), np.array([[0, 1.25, 75.0]]), ("template",))
    options = HotpantsOptions(iu=1e6, tu=1e6, il=-1e6, tl=-1e6, imi=mask, ki=kernel)
    result = hotpants(image, template, options)
    assert result.mask[60, 60] == BAD | HotpantsBit.ISNAN | HotpantsBit.INPUT_ISBAD
    assert result.mask[61, 60] == BAD | HotpantsBit.SAT_PIXEL | HotpantsBit.INPUT_ISBAD
    assert result.mask[100, 100] & ~np.uint16(1) == BAD | HotpantsBit.INPUT_MASK | HotpantsBit.INPUT_ISBAD
    assert result.mask[150, 150] == BAD | HotpantsBit.LOW_PIXEL | HotpantsBit.INPUT_ISBAD | HotpantsBit.BAD_CONV
    assert result.mask[150, 151] & HotpantsBit.BAD_CONV
    assert result.mask[150, 155] == HotpantsBit.OK_CONV  # in the wings of the kernel: less than 1 % of it
    assert result.mask[150, 165] == 0
    assert (result.mask[:9] & BAD).all()


def test_a_strip_without_science_data_is_flagged(pair):
    image, template = images(pair)
    image[:, :60] = np.nan
    diff = run_hotpants(image, template, **KEYS)
    assert (diff[:, :60] == FILL).all()
    assert spread(diff[20:-20, 80:-20]) < 25


@pytest.mark.parametrize("value", [0.0, 100.0])
def test_constant_images_have_no_stars(value):
    plane = np.full((SIZE, SIZE), value)
    with pytest.raises((TooFewStampsError, NoUsableDataError)):
        run_hotpants(plane, plane, **KEYS)


def test_pure_noise_has_no_stars():
    rng = np.random.default_rng(1)
    with pytest.raises(TooFewStampsError, match="0 stamps") as raised:
        run_hotpants(rng.normal(100, 5, (SIZE, SIZE)), rng.normal(100, 5, (SIZE, SIZE)), **KEYS)
    assert raised.value.details["found"] == 0


def test_a_copy_subtracts_to_nothing(pair):
    image, _ = images(pair)
    diff = run_hotpants(image, image, image_fwhm=4.2, template_fwhm=4.2, image_gain=1.5)
    assert np.abs(diff[INNER]).max() < 1e-3 * np.ptp(image)
    assert spread(diff[INNER]) < 0.05


def test_shapes_must_agree(pair):
    image, template = images(pair)
    with pytest.raises(ShapeError, match="same grid"):
        run_hotpants(image, template[:250], **KEYS)
    with pytest.raises(ShapeError, match="mask"):
        run_hotpants(image, template, mask=np.zeros((3, 3), bool), **KEYS)
    with pytest.raises(ShapeError, match="noise"):
        run_hotpants(image, template, err=np.ones((3, 3)), **KEYS)
    with pytest.raises(ShapeError):
        run_hotpants(image[None], template[None], **KEYS)
    with pytest.raises(InputError, match="real numbers"):
        run_hotpants(image.astype(complex), template, **KEYS)


@pytest.mark.parametrize("side", [1, 12, 40])
def test_tiny_images(pair, side):
    image, template = (plane[:side, :side] for plane in images(pair))
    with pytest.raises((TooFewStampsError, NoUsableDataError)):
        run_hotpants(image, template, **KEYS)


def test_saturated_stars_do_not_spoil_the_kernel(pair):
    image, template = images(pair)
    level = 3000.0
    bad = image > level
    assert bad.sum() > 20
    image[bad], template[template > level] = level, level
    masked = run_hotpants(
        image, template, mask=image >= level, template_mask=template >= level, **KEYS, get_header=True
    )
    plain = run_hotpants(image, template, **KEYS)
    truth = 1 / pair.flux_ratio
    assert float(masked[1]["KSUM00"]) == pytest.approx(truth, rel=0.02)
    assert spread(masked[0][INNER]) < 25
    assert spread(plain[INNER]) < 25


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", ">f8", "i4", "i2"])
def test_types_of_pixels(pair, dtype):
    image, template = images(pair)
    expected = run_hotpants(image, template, **KEYS)
    planes = [np.clip(np.rint(p), -3e4, 3e4).astype(dtype) if dtype == "i2" else
              (np.rint(p) if "i" in dtype else p).astype(dtype) for p in (image, template)]  # fmt: skip
    diff = run_hotpants(*planes, **KEYS)
    assert diff.dtype == np.float32
    assert spread(diff[INNER] - expected[INNER]) < 2  # rounding to whole numbers


def test_strided_and_readonly_input(pair):
    image, template = (np.asfortranarray(plane) for plane in images(pair))
    wide = np.zeros((SIZE, 2 * SIZE), np.float32)
    wide[:, ::2] = template
    image.flags.writeable = False
    diff = run_hotpants(image, wide[:, ::2], **KEYS)
    np.testing.assert_array_equal(
        diff, run_hotpants(np.ascontiguousarray(image), np.ascontiguousarray(template), **KEYS)
    )


@pytest.mark.parametrize("told", [True, False])
def test_a_template_with_wider_stars_is_not_deconvolved(pair, told):
    """The image is convolved in its place: the noise is not amplified, and fluxes stay the image's."""
    template, image = images(pair)
    keys = {"image_gain": 12.0, "template_gain": 1.5}
    keys |= {"image_fwhm": 3.0, "template_fwhm": 4.2} if told else {"extra": {"r": 13, "rss": 17}}
    diff, header = run_hotpants(image, template, **keys, get_header=True)
    assert header["CONVOL00"] == "IMAGE"
    # the wider image's noise, on the scale of the other: 15 ADU times 0.8
    assert spread(diff[INNER]) < 1.15 * 15 * pair.flux_ratio
    forced = run_hotpants(image, template, **{**keys, "extra": {**keys.get("extra", {}), "c": "t"}}, get_header=True)
    assert forced[1]["CONVOL00"] == "TEMPLATE"


def test_sky_subtracted_images(pair):
    image, template = images(pair)
    expected = run_hotpants(image, template, **KEYS, **noise(pair))
    diff = run_hotpants(image - 300, template - 180, **KEYS, **noise(pair))
    assert np.abs(diff[INNER] - expected[INNER]).max() < 1
    # and without noise maps, although their counts no longer say what the noise is
    assert spread(run_hotpants(image - 300, template - 180, **KEYS)[INNER]) < 25


@pytest.mark.parametrize("shape", [(255, 251), (200, 256), (256, 190)])
def test_odd_and_oblong_images_have_the_pixels_of_the_whole(pair, shape):
    image, template = (plane[: shape[0], : shape[1]] for plane in images(pair))
    diff = run_hotpants(image, template, **KEYS)
    assert diff.shape == shape
    assert spread(diff[INNER]) < 25


def test_unknown_options_name_the_nearest(pair):
    with pytest.raises(InputError, match="'nsx'") as raised:
        run_hotpants(*images(pair), extra={"nsxx": 5}, **KEYS)
    assert raised.value.details["nearest"] == "nsx"
    with pytest.raises(InputError, match="argument image"):
        run_hotpants(*images(pair), extra={"inim": "a.fits"}, **KEYS)


@pytest.mark.parametrize(
    "extra",
    [{"r": 0}, {"r": 2.5}, {"r": "wide"}, {"ko": 9}, {"c": "x"}, {"n": "q"}, {"fom": "z"}, {"ng": [3, 6, 0.7]},
     {"ng": [1, 2, -1.0]}, {"kfm": 2}, {"gd": [5, 2]}, {"gd": [50, 20, 0, 10]}, {"fit": "other"}, {"tg": 0},
     {"rf": ["9:1,2:3"]}, {"rf": ["what"]}, {"pca": [2, np.ones((3, 3))]}, {"pca": [np.ones((4, 4))]}, {"nrx": 5000},
     {"il": np.nan}],
)  # fmt: skip
def test_senseless_options(pair, extra):
    with pytest.raises(InputError):
        run_hotpants(*images(pair), extra=extra, **KEYS)


def test_options_in_all_spellings():
    options = HotpantsOptions.from_mapping(
        {"-NG": "2 3 0.7 2 1.5", "okn": "1", "ko": 1.0, "tuk": None, "c": "template"}
    )
    assert options.gaussians == ((3, 2), (0.7, 1.5))
    assert options.okn is True
    assert options.ko == 1
    assert options.tuk is None
    assert options.c == "t"


def test_objects_without_positions(pair):
    with pytest.raises(InputError, match="columns x and y"):
        run_hotpants(*images(pair), obj=Table({"ra": [1.0]}), **KEYS)
    with pytest.raises(ReadError):
        run_hotpants(*images(pair), extra={"ssf": "/no/such/file"}, **KEYS)


@pytest.mark.parametrize("fwhm", [0, -3, np.nan])
def test_senseless_seeing(pair, fwhm):
    with pytest.raises(InputError, match="image_fwhm"):
        run_hotpants(*images(pair), image_fwhm=fwhm)


def test_an_empty_region_is_an_error_or_filled(pair):
    image, template = images(pair)
    image[:, 110:] = 300 + np.random.default_rng(0).normal(0, 15, (SIZE, SIZE - 110))
    template[:, 110:] = 180 + np.random.default_rng(1).normal(0, 4, (SIZE, SIZE - 110))
    with pytest.raises(TooFewStampsError, match="x=128"):
        run_hotpants(image, template, **KEYS, nx=2, ny=1)
    diff, header = run_hotpants(image, template, **KEYS, nx=2, ny=1, extra={"empty": "fill"}, get_header=True)
    assert (diff[:, 128:] == FILL).all()
    assert spread(diff[20:-20, 20:80]) < 25
    assert "no solution" in header.comments["KSUM01"]


def test_noise_maps_of_bad_values_flag_pixels(pair):
    sigma = noise(pair)
    sigma["err"][50, 60], sigma["err"][50, 61], sigma["template_err"][90, 90] = np.nan, 0, -1
    before = sigma["err"].copy()
    diff, scaled = run_hotpants(*images(pair), **KEYS, **sigma, get_scaled=True)
    assert diff[50, 60] == diff[50, 61] == diff[90, 90] == FILL
    assert np.isfinite(scaled).all()
    np.testing.assert_array_equal(sigma["err"], before)


def test_error_map_is_background_noise_and_photons(pair):
    image, _ = images(pair)
    bad = np.zeros(image.shape, bool)
    bad[30:40, 30:40] = True
    image[50, 50] = np.nan
    err, background = build_error_map(image, bad, gain=1.5)
    level = np.median(background)
    assert level == pytest.approx(300, rel=0.03)
    rms = err[30:40, 30:40]
    assert np.median(rms) == pytest.approx(np.sqrt(300 / 1.5 + 16), rel=0.1)
    peak = np.unravel_index(np.nanargmax(np.where(bad, 0, image)), image.shape)
    assert err[peak] == pytest.approx(np.sqrt(image[peak] / 1.5), rel=0.05)
    without = build_error_map(image, bad)[0]
    assert without[peak] < 0.5 * err[peak]
    assert np.isfinite(err).all()
    with pytest.raises(NoUsableDataError):
        build_error_map(image, np.ones(image.shape, bool))


FAKE = """#!{python}
import sys
import numpy as np
from astropy.io import fits
from astropy.table import Table
words = sys.argv[1:]
files = {{w[1:]: words[k + 1] for k, w in enumerate(words[:-1]) if w.startswith("-")}}
print("loud and clear", file=sys.stderr)
if "{mode}" == "fail":
    sys.exit(3)
image, template = (fits.getdata(files[k]) for k in ("inim", "tmplim"))
open({log!r}, "w").write("\\n".join([*words, str(int(fits.getdata(files["imi"]).max()))]))
if "{mode}" == "nothing":
    sys.exit(0)
open(files["savexy"], "w").write("image\\nbox(1,1,3,3)\\n")
table = fits.BinTableHDU(Table({{"Region0": np.zeros(5)}}))
layers = [image - template, template, image * 0 + 2, image * 0 + 3]
if "{mode}" == "zeros":
    layers[0] *= 0
fits.HDUList([fits.PrimaryHDU(layers[0])] + [fits.ImageHDU(p) for p in layers[1:]] + [table]).writeto(files["outim"])
"""


def fake_binary(tmp_path, mode="good"):
    path = tmp_path / "a folder"
    path.mkdir()
    path = path / "hotpants; exit"  # nothing of it may reach a shell
    path.write_text(FAKE.format(python=sys.executable, mode=mode, log=str(tmp_path / "log")))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_binary_is_run_without_a_shell_and_leaves_nothing(pair, tmp_path):
    exe = fake_binary(tmp_path)
    image, template = images(pair)
    image[5, 5] = np.nan
    place = tmp_path / "work"
    place.mkdir()
    found = run_hotpants(
        image, template, **KEYS, **noise(pair), obj=Table({"x": [50.0], "y": [60.0]}), _exe=str(exe),
        _tmpdir=str(place),
        extra={"ko": 2, "ng": "1 2 0.7", "okn": True, "sconv": False, "fi": None, "fit": "weighted"},
        get_convolved=True, get_scaled=True, get_noise=True, get_kernel=True, get_header=True,
    )  # fmt: skip
    assert len(found) == 6
    np.testing.assert_allclose(found[0][10:20], image[10:20] - template[10:20], rtol=1e-6)
    assert (found[2] == 2).all()
    assert (found[3] == 3).all()
    assert found[5]["NSTAMPS"] == 1
    assert list(place.iterdir()) == []
    words = (tmp_path / "log").read_text().split("\n")
    assert words[-1] == str(0xA0)  # the bits that HOTPANTS needs
    for option, values in {"-ko": ["2"], "-ng": ["1", "2", "0.7"], "-n": ["i"], "-c": ["t"]}.items():
        at = words.index(option)
        assert words[at + 1 : at + 1 + len(values)] == values
    assert {"-okn", "-allm", "-hki", "-ssf", "-ini", "-tni"} <= set(words)
    assert not {"-sconv", "-fi", "-fit"} & set(words)
    kept = tmp_path / "kept"
    run_hotpants(image, template, **KEYS, _exe=str(exe), _workdir=str(kept))
    assert (kept / "diff.fits").is_file()


@pytest.mark.parametrize("mode", ["fail", "nothing", "zeros"])
def test_a_binary_that_fails_says_why(pair, tmp_path, mode):
    exe = fake_binary(tmp_path, mode)
    place = tmp_path / "work"
    place.mkdir()
    with pytest.raises(SubtractionError, match="loud and clear"):
        run_hotpants(*images(pair), **KEYS, _exe=str(exe), _tmpdir=str(place))
    assert list(place.iterdir()) == []


def test_a_binary_that_is_missing(pair):
    with pytest.raises(InputError, match="no executable"):
        run_hotpants(*images(pair), **KEYS, _exe="/no/such/hotpants")


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_values_whose_squares_are_no_numbers_are_refused(pair, factor):
    image, template = (plane * np.float32(factor) for plane in images(pair))
    with pytest.raises(InputError, match=r"values of the image are of the order of .* Multiply") as error:
        run_hotpants(image, template, **KEYS)
    assert error.value.details["found"] == pytest.approx(np.median(np.abs(image.astype(float))), rel=0.1)
    with pytest.raises(InputError, match="values of the template are of the order of"):
        hotpants(images(pair)[0], template)
