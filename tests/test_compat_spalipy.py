"""The drop-in for spalipy: its interface, and right where the original is wrong."""

import inspect
import logging

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS, Sip
from scipy.interpolate import SmoothBivariateSpline
from scipy.ndimage import map_coordinates
from scipy.spatial.distance import pdist

from reference.registration_sim import Regime, make_images
from skyloom.cli import align_fits
from skyloom.compat.spalipy import Spalipy
from skyloom.compat.spalipy import __version__ as version
from skyloom.compat.spalipy.spalipy import AffineTransform, calc_affine_transform, main, main_simple, quad
from skyloom.exposure import MaskBit

SIZE = 320
SMALL = {"size": SIZE, "stars": 250, "shift": (12.0, -8.0)}

PUBLISHED = {
    "source_mask": None,
    "template_data": None,
    "source_det": None,
    "template_det": None,
    "output_shape": None,
    "n_det": None,
    "n_quad_det": 20,
    "min_quad_sep": 50,
    "max_match_dist": 3,
    "min_n_match": 100,
    "sub_tile": 1,
    "max_quad_cand": 10,
    "quad_edge_buffer": 0,
    "patience_quad_cand": 2,
    "max_quad_hash_dist": 0.005,
    "spline_order": 3,
    "interp_order": 3,
    "sep_thresh": 5,
    "min_fwhm": 1,
    "bad_flag_bits": 0,
    "min_sep": None,
    "preserve_footprints": False,
    "cval": 0,
    "cval_mask": 0,
    "skip_checking": False,
    "copy": True,
    "use_memmap": False,
    "temp_dir": None,
    "thread_pool_max": None,
}


def pair(seed=1, **changes):
    source, template, truth = make_images(seed, Regime(**SMALL | changes))
    return np.array(source.data, np.float64), np.array(template.data, np.float64), truth


def aligned(source, template, **options):
    one = Spalipy(source, template_data=template, **{"min_n_match": 30} | options)
    one.align()
    return one


def worst(one, truth, entry=0):
    grid = truth.grid()
    return np.hypot(*((one.full_transform(grid + one.anchor, entry) - truth(grid)) / truth.scale).T).max()


def test_signature_is_the_published_one():
    parameters = list(inspect.signature(Spalipy).parameters.items())
    assert parameters[0][0] == "source_data"
    assert {name: p.default for name, p in parameters[1:]} == PUBLISHED
    assert [name for name, _ in parameters[1:]] == list(PUBLISHED)
    assert Spalipy.columns == ["x", "y", "flux", "fwhm", "flag"]
    assert version


@pytest.mark.parametrize(
    "regime",
    [
        {"rotation": 90.0, "distortion": 5.0},
        {"rotation": 180.0, "distortion": 5.0},
        {"rotation": 30.0, "scale": 1.3},
        {"mirrored": True, "rotation": 50.0},
    ],
)
def test_transform_and_its_inverse(regime):
    source, template, truth = pair(**regime)
    one = aligned(source, template)
    # about 100 stars of this depth fix the map to 0.01 px where they are; the corners are extrapolated
    assert worst(one, truth) < 0.15
    xy = truth.grid()
    back = one.full_transform(xy, 0)
    np.testing.assert_allclose(one.full_transform(back, 0, inverse=False), xy, atol=1e-7)
    # the published way through the attributes, and the layout (2, n, m)
    through = one.affine_transform.inverse().apply_transform(one.spline_transform(xy))
    np.testing.assert_allclose(through, back, atol=1e-3)
    stacked = xy.T[:, :, None]
    np.testing.assert_allclose(one.full_transform(stacked, 0)[:, :, 0].T, back)
    offset = one.spline_transform(xy, relative=True)
    np.testing.assert_allclose(offset, -np.column_stack([one.sbs_x.ev(*xy.T), one.sbs_y.ev(*xy.T)]))
    one.log_transform_stats()


def test_flux_is_conserved_and_stars_lie_on_those_of_the_template():
    source, template, _ = pair(rotation=20.0, scale=0.8)
    result = aligned(source - 100.0, template)
    inner = np.s_[60:-60, 60:-60]
    a, b = result.aligned_data[inner], template[inner] - 100.0
    # the source has the template's fluxes, on pixels of another size; its sky was taken off before
    bright = b > 300
    assert bright.sum() > 100
    assert np.corrcoef(a[bright], b[bright])[0, 1] > 0.95
    # stars of this field hold 1e5 or more, photon noise and edges below 3 per cent
    assert a[a > 50].sum() == pytest.approx(b[b > 50].sum(), rel=0.05)


def test_no_spline_is_scale_rotation_and_shift():
    source, template, truth = pair(rotation=25.0)
    one = aligned(source, template, spline_order=0)
    assert one.spline_transform is None
    assert one.sbs_x is None
    assert worst(one, truth) < 0.05
    assert one.affine_transform.rotation == pytest.approx(-25.0, abs=0.02)
    assert one.affine_transform.scale == pytest.approx(1.0, abs=1e-3)
    np.testing.assert_allclose(
        one.full_transform(truth.grid(), 0), one.affine_transform.inverse().apply_transform(truth.grid())
    )


@pytest.mark.parametrize("spline_order", [0, 3])
def test_footprints_hold_everything_at_whole_pixels(spline_order):
    source, template, truth = pair(rotation=20.0, distortion=0.0 if spline_order == 0 else 3.0)
    one = aligned(source, template, spline_order=spline_order, preserve_footprints=True, cval=-1.0)
    ax, ay = one.anchor
    assert one.aligned_data.shape == one.template_data.shape == one.output_shape
    np.testing.assert_array_equal(one.template_data[ay : ay + SIZE, ax : ax + SIZE], template)
    assert (one.template_data[:ay] == -1).all()
    corners = np.array([[0.0, 0.0], [SIZE - 1, 0], [0, SIZE - 1], [SIZE - 1, SIZE - 1]])
    image = one.full_transform(corners, 0, inverse=False)
    assert (image > -1e-6).all()
    assert (image < np.array(one.output_shape[::-1]) - 1 + 1e-6).all()
    assert worst(one, truth) < 0.15
    # detections move with the frame, and still match
    x, y = (np.asarray(one.template_det_matched[c], float) for c in ("x", "y"))
    matched = np.column_stack([np.asarray(one.source_det_matched[c], float) for c in ("x", "y")])
    miss = one.full_transform(matched, 0, inverse=False) - np.column_stack([x, y])
    assert np.median(np.hypot(*miss.T)) < 0.2
    before = one.aligned_data.copy()
    one.transform_data()
    np.testing.assert_array_equal(one.aligned_data, before)


def test_nan_and_masks_stay_where_they_are():
    source, template, truth = pair(rotation=15.0)
    clean = aligned(source, template)
    source[160, 150] = np.nan
    mask = np.zeros(source.shape, np.int16)
    mask[100:110, 200:210] = 12
    for order in range(6):
        one = aligned(source, template, source_mask=mask, interp_order=order, cval=-5.0, cval_mask=3)
        # NaN: at most the four nearest pixels, whatever the kernel
        assert 1 <= np.isnan(one.aligned_data).sum() <= 4
        assert one.aligned_mask.dtype == np.int16
        assert set(np.unique(one.aligned_mask)) == {0, 3, 12}
        # 100 pixels, and those of the border that lose too much of the kernel: one all around at most
        assert 80 <= (one.aligned_mask == 12).sum() <= 12 * 12
        assert (one.aligned_data[one.aligned_mask != 0] == -5).mean() > 0.9
    centre = truth(np.array([[160.0, 160.0]]))
    assert np.isfinite(centre).all()
    assert np.isnan(clean.aligned_data).sum() == 0
    assert clean.aligned_mask is None


def test_nearest_pixel():
    source, template, _ = pair()
    one = aligned(source, template, interp_order=0, spline_order=0)
    x, y = np.meshgrid(np.arange(100, 110.0), np.arange(150, 160.0))
    p = np.rint(one.full_transform(np.stack([x, y]), 0)).astype(int)
    area = one.affine_transform.scale**-2
    np.testing.assert_allclose(one.aligned_data[150:160, 100:110], source[p[1], p[0]] * area, rtol=1e-6)


def test_lists_keep_their_order_and_tell_failures(caplog):
    source, template, truth = pair(rotation=10.0)
    other = pair(77, rotation=40.0)[0]
    sources = [source, other, source.astype(">f4")]
    with caplog.at_level(logging.INFO):
        one = aligned(sources, template, thread_pool_max=2)
    assert one.alignment_failed == [False, True, False]
    assert one.aligned_data[1] is None
    assert one.affine_transform[1] is None
    assert one.aligned_mask is None
    assert "Alignment failed for entry 1" in caplog.text
    assert sources[2].dtype == ">f4"
    assert one.source_data[2].dtype == np.float64
    assert worst(one, truth, 2) < 0.1
    single = aligned(source, template)
    np.testing.assert_array_equal(one.aligned_data[0], single.aligned_data)
    with pytest.raises(RuntimeError, match="successfully"):
        aligned(other, template)


def test_template_gives_the_frame():
    source, template, truth = pair(rotation=10.0)
    one = aligned(source, template[:250, :300])
    assert one.output_shape == one.aligned_data.shape == (250, 300)
    assert worst(one, truth) < 0.3
    assert aligned(source, template, output_shape=(50, 60)).aligned_data.shape == (50, 60)


def test_tables_instead_of_images(tmp_path):
    source, template, truth = pair(rotation=10.0)
    found = Spalipy(source, template_data=template, min_n_match=30)
    given = Spalipy(source, source_det=found.source_det[found.columns], template_det=found.template_det, min_n_match=30)
    given.align()
    assert worst(given, truth) < 0.1
    assert given.aligned_data.shape == source.shape
    assert given.source_coo.shape == (len(given.source_det), 2)
    assert len(given.source_det_matched) == len(given.template_det_matched) >= 30
    assert len(Spalipy(source, template_data=template, min_n_match=9, n_det=40).source_det) == 40
    half = Spalipy(source, template_data=template, min_n_match=9, n_det=0.5)
    assert len(half.source_det) == pytest.approx(len(found.source_det) / 2, abs=1)
    apart = pdist(found.source_coo).min()
    assert apart >= 6  # min_sep: twice max_match_dist


def test_memory_mapped_results(tmp_path):
    source, template, _ = pair()
    mask = source > 1e4
    one = aligned(source, template, source_mask=mask, use_memmap=True, temp_dir=tmp_path)
    assert isinstance(one.aligned_data, np.memmap)
    assert isinstance(one.aligned_mask, np.memmap)
    assert isinstance(one.template_data, np.memmap)
    np.testing.assert_array_equal(one.template_data, template)
    np.testing.assert_array_equal(one.aligned_data, aligned(source, template, source_mask=mask).aligned_data)
    assert list(tmp_path.iterdir()) == []  # unlinked


def test_quads_are_those_of_lang():
    stars, shape = quad(
        np.array([[0.0, 0], [100, 0], [30, 70], [40, 20]]), pdist([[0, 0], [100, 0], [30, 70], [40, 20]])
    )
    # by hand: (0.3 + 0.7 i) (1 + i) and (0.4 + 0.2 i) (1 + i)
    np.testing.assert_allclose(shape, (-0.4, 1.0, 0.2, 0.6))
    np.testing.assert_array_equal(stars, [[0, 0], [100, 0], [30, 70], [40, 20]])
    rng = np.random.default_rng(3)
    for _ in range(20):
        xy = rng.uniform(0, 100, (4, 2))
        stars, shape = quad(xy, pdist(xy))
        assert shape[0] <= shape[2]
        assert shape[0] + shape[2] <= 1 + 1e-12
        image = AffineTransform([0.3, -1.2, 5.0, 7.0]).apply_transform(xy[rng.permutation(4)])
        moved, again = quad(image, pdist(image))
        np.testing.assert_allclose(again, shape, atol=1e-9)
        np.testing.assert_allclose(moved, AffineTransform([0.3, -1.2, 5.0, 7.0]).apply_transform(stars), atol=1e-9)


def test_no_detections_within_the_edge_buffer():
    source, template, _ = pair()
    one = Spalipy(source, template_data=template, min_n_match=9, quad_edge_buffer=max(source.shape))
    for function in (one.make_source_quadlist, one.make_template_quadlist):
        with pytest.raises(ValueError, match="lower quad_edge_buffer"):
            function()


def test_quad_lists_by_tiles():
    source, template, _ = pair()
    one = Spalipy(source, template_data=template, min_n_match=9, n_quad_det=8, sub_tile=2, min_quad_sep=20)
    assert one.source_quadlist is None
    one.make_source_quadlist()
    one.make_template_quadlist()
    assert len(one.source_quadlist) == 4
    assert 0 < max(len(tile) for tile in one.source_quadlist) <= 70  # C(8, 4)
    stars, shape = one.source_quadlist[0][0]
    assert pdist(stars).min() >= 20
    assert shape == pytest.approx(quad(stars, pdist(stars))[1])
    assert sum(len(tile) for tile in one.source_quadlist) > len(one.template_quadlist) / 2 > 0
    inner = Spalipy(source, template_data=template, min_n_match=9, quad_edge_buffer=60)
    inner.make_source_quadlist()
    for stars, _ in inner.source_quadlist[0]:
        assert stars.min() >= 60
        assert stars.max() <= SIZE - 61


def test_affine_transform():
    t = AffineTransform([0.3, 0.4, 5.0, -2.0])
    assert t.scale == pytest.approx(0.5)
    assert t.rotation == pytest.approx(np.degrees(np.arctan2(0.4, 0.3)))
    for one in (t, AffineTransform([0.3, 0.4, 5.0, -2.0], parity=-1)):
        matrix, shift = one.matrix_form()
        assert np.sign(np.linalg.det(matrix)) == one.parity
        xy = np.random.default_rng(1).normal(0, 10, (5, 2))
        np.testing.assert_allclose(one.apply_transform(xy), xy @ matrix.T + shift)
        np.testing.assert_allclose(one.inverse().apply_transform(one.apply_transform(xy)), xy, atol=1e-12)
        assert "0.3" in repr(one)
    fitted = calc_affine_transform(xy, t.apply_transform(xy))
    np.testing.assert_allclose(fitted.v, t.v, atol=1e-12)


def test_wrong_arguments_are_value_errors(tmp_path):
    source, template, _ = pair()
    for wrong, match in (
        ({"template_data": None}, "Neither"),
        ({"source_mask": np.zeros((3, 3), bool)}, "shape"),
        ({"source_mask": [np.zeros(source.shape, bool)]}, "lists"),
        ({"source_mask": source}, "integers"),
        ({"template_data": template[0]}, "two-dimensional"),
        ({"template_data": template.tolist()}, "array"),
        ({"source_det": Table({"x": [1.0]})}, "no column"),
        ({"source_det": [1, 2]}, "lists"),
        ({"template_det": "a"}, "Table"),
        ({"min_n_match": 10**6}, "no solution possible"),
        ({"spline_order": 6}, "spline_order"),
        ({"interp_order": -1}, "interp_order"),
        ({"n_det": 0}, "n_det"),
        ({"max_match_dist": 0}, "max_match_dist"),
        ({"temp_dir": tmp_path / "none"}, "not a directory"),
        ({"output_shape": (10,)}, "output_shape"),
        ({"output_shape": 10}, "output_shape"),
        ({"n_det": "x"}, "n_det"),
        ({"n_quad_det": None}, "n_quad_det"),
        ({"n_quad_det": 1e300}, "n_quad_det"),
        ({"min_n_match": 2.5}, "min_n_match"),
        ({"spline_order": [1, 2]}, "spline_order"),
        ({"bad_flag_bits": "x"}, "bad_flag_bits"),
        ({"max_match_dist": None}, "max_match_dist"),
        ({"sep_thresh": None}, "sep_thresh"),
        ({"min_fwhm": np.ones(3)}, "min_fwhm"),
        ({"cval": "x"}, "cval"),
    ):
        with pytest.raises(ValueError, match=match):
            Spalipy(source, **{"template_data": template} | wrong)
    one = Spalipy(source, template_data=template, min_n_match=9)
    detections = one.template_det
    with pytest.raises(ValueError, match="preserve_footprints"):
        Spalipy(source, template_det=detections, preserve_footprints=True)
    with pytest.raises(ValueError, match="fit_affine_transform"):
        one.full_transform([[1.0, 2.0]], 0)
    with pytest.raises(RuntimeError, match="fit_affine_transform"):
        one.transform_data()


# --- scripts -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spalipy")
    source, template, truth = pair(rotation=20.0, distortion=1.0)
    header = fits.Header()
    header["OBJECT"], header["EXPTIME"], header["AIRMASS"] = "M 1", 30.0, (1.3, "at mid exposure")
    header["HISTORY"] = "flat-fielded"
    data = source.astype(np.float32)
    data[100:104, 100:104] = np.nan
    fits.writeto(folder / "source.fits", data, header)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN-SIP", "DEC--TAN-SIP"], [10.0, 20.0], [150.0, 170.0]
    wcs.wcs.cdelt = [-1 / 3600, 1 / 3600]
    a = np.zeros((3, 3))
    a[2, 0] = 1e-5
    wcs.sip = Sip(a, a.T, None, None, wcs.wcs.crpix)
    fits.writeto(folder / "template.fits", template.astype(np.float32), wcs.to_header(relax=True))
    return folder, template, truth, wcs


@pytest.mark.parametrize("script", [main_simple, main])
def test_scripts_write_a_whole_file(files, tmp_path, script):
    folder, template, _, wcs = files
    output = tmp_path / "out.fits"
    names = [str(folder / "source.fits"), str(output)]
    names += [str(folder / "template.fits")] if script is main_simple else ["-tf", str(folder / "template.fits")]
    more = [] if script is main_simple else ["--n-det", "1.0", "--quad-edge-buffer", "5"]
    script([*names, "--min-n-match", "30", *more])
    with fits.open(output) as hdus:
        header, data, quality = hdus[0].header, hdus[0].data, hdus["DQ"].data
        assert header["OBJECT"] == "M 1"
        assert header.comments["AIRMASS"] == "at mid exposure"
        assert "flat-fielded" in str(header["HISTORY"])
        assert header["SLIN2"] == "template.fits"
        assert header["REGNSTAR"] > 30
        assert data.shape == template.shape
        sky = WCS(header).pixel_to_world(30.0, 40.0)
        assert sky.separation(wcs.pixel_to_world(30.0, 40.0)).arcsec < 1e-6
    bad = (quality & int(MaskBit.NO_DATA)) != 0
    assert np.isnan(data).sum() >= 16
    assert bad[np.isnan(data)].all()
    inner = np.s_[40:-40, 40:-40]
    good = (quality[inner] == 0) & (template[inner] > 300)
    assert np.corrcoef(data[inner][good], template[inner][good])[0, 1] > 0.95
    with pytest.raises(ValueError, match="exists"):
        script([*names, "--min-n-match", "30"])
    script([*names, "--min-n-match", "30", "--overwrite"])


def test_script_with_footprints_moves_the_wcs(files, tmp_path):
    folder, template, _, wcs = files
    output = tmp_path / "out.fits"
    status = align_fits.main_simple(
        [
            str(folder / "source.fits"),
            str(output),
            str(folder / "template.fits"),
            "--min-n-match",
            "30",
            "--preserve-footprints",
        ]
    )
    assert status == 0
    with fits.open(output) as hdus:
        data, header = hdus[0].data, hdus[0].header
    y, x = np.unravel_index(np.argmax(np.where(template < 3e4, template, 0)[60:-60, 60:-60]), (SIZE - 120, SIZE - 120))
    star = wcs.pixel_to_world(x + 60.0, y + 60.0)
    px, py = np.rint(WCS(header).world_to_pixel(star)).astype(int)
    assert data[py - 1 : py + 2, px - 1 : px + 2].max() == pytest.approx(template[y + 60, x + 60], rel=0.2)
    assert data.shape > template.shape


@pytest.mark.parametrize("layout", ["ascii", "ldac"])
def test_catalogues_count_from_one(files, tmp_path, layout):
    folder = files[0]
    source, template = (fits.getdata(folder / f"{name}.fits").astype(float) for name in ("source", "template"))
    found = Spalipy(source, template_data=template, min_n_match=30)
    tables = found.source_det[found.columns], found.template_det[found.columns]
    one = Spalipy(source, source_det=tables[0], template_det=tables[1], min_n_match=30)
    for name, det in (("source", one.source_det), ("template", one.template_det)):
        columns = {"X_IMAGE": det["x"] + 1, "Y_IMAGE": det["y"] + 1, "FLUX_BEST": det["flux"]}
        columns |= {"FWHM_IMAGE": det["fwhm"], "FLAGS": det["flag"]}
        if layout == "ldac":
            table = fits.BinTableHDU(Table(columns), name="LDAC_OBJECTS")
            head = fits.BinTableHDU(Table({"Field Header Card": ["x"]}), name="LDAC_IMHEAD")
            fits.HDUList([fits.PrimaryHDU(), head, table]).writeto(tmp_path / f"{name}.cat")
        else:
            lines = [f"# {n:3d} {key:15s} text" for n, key in enumerate(columns, 1)]
            lines += [
                " ".join(str(float(v)) if k != "FLAGS" else str(v) for k, v in zip(columns, row, strict=True))
                for row in zip(*columns.values(), strict=True)
            ]
            (tmp_path / f"{name}.cat").write_text("\n".join(lines) + "\n")
    output = tmp_path / "out.fits"
    main(
        [
            str(folder / "source.fits"),
            str(output),
            "-sc",
            str(tmp_path / "source.cat"),
            "-tc",
            str(tmp_path / "template.cat"),
            "--min-n-match",
            "30",
            "--n-det",
            "1.0",
        ]
    )
    one.align()
    with fits.open(output) as hdus:
        difference = hdus[0].data - one.aligned_data
    # the same detections but for rounding of 1 + x; a displacement by 0.01 px would be hundreds of counts
    assert np.nanmax(np.abs(difference)) < 0.01


def test_script_errors_are_one_sentence(files, tmp_path, capsys):
    folder = files[0]
    names = [str(folder / "source.fits"), str(tmp_path / "out.fits"), str(folder / "template.fits")]
    assert align_fits.main_simple([*names, "--min-n-match", "1000"]) == 1
    assert "min_n_match" in capsys.readouterr().err
    (tmp_path / "empty.cat").write_text("# 1 X_IMAGE x\n1.0\n")
    assert align_fits.main([*names[:2], "-tc", str(tmp_path / "empty.cat")]) == 1
    assert "Y_IMAGE" in capsys.readouterr().err
    assert align_fits.main([*names[:2], "-tc", str(tmp_path / "none.cat")]) == 1
    assert not (tmp_path / "out.fits").exists()
    for script in (align_fits.main, align_fits.main_simple):
        with pytest.raises(SystemExit) as stop:
            script(["--help"])
        assert stop.value.code == 0
        assert "--preserve-footprints" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        align_fits.main([*names[:2], "-tf", names[2], "--output-shape", "3"])


def test_options_may_be_scalars_of_numpy_and_outputs_a_row():
    source, template, _ = pair()
    plain = aligned(source, template, output_shape=(1, 40))
    assert plain.aligned_data.shape == (1, 40)
    again = aligned(
        source,
        template,
        output_shape=np.array([1, 40]),
        spline_order=np.float32(3),
        n_quad_det=np.int64(20),
        sub_tile=1.0,
    )
    np.testing.assert_array_equal(again.aligned_data, plain.aligned_data)


@pytest.mark.parametrize("fault", ["missing", "empty", "text", "folder"])
@pytest.mark.parametrize("role", ["source", "template"])
def test_scripts_name_files_that_are_no_images(fault, role, files, tmp_path, capsys):
    bad = tmp_path / "bad.fits"
    if fault == "folder":
        bad.mkdir()
    elif fault != "missing":
        bad.write_text("hello " * 1000 if fault == "text" else "")
    good = str(files[0] / "source.fits")
    source, template = (str(bad), good) if role == "source" else (good, str(bad))
    out = str(tmp_path / "out.fits")
    for script, names in (
        (align_fits.main_simple, [source, out, template]),
        (align_fits.main, [source, out, "-tf", template]),
    ):
        assert script(names) == 1
        err = capsys.readouterr().err
        assert "bad.fits" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_interpolation_is_the_spline_of_that_order(order):
    source, template, _ = pair(rotation=3.0)
    one = aligned(source, template, interp_order=order)
    y, x = np.mgrid[20 : SIZE - 20, 20 : SIZE - 20].astype(float)
    inside = (slice(20, SIZE - 20),) * 2
    xy = one.full_transform(np.column_stack([x.ravel(), y.ravel()]))
    expected = map_coordinates(source, xy[:, ::-1].T, order=order, mode="mirror").reshape(x.shape)
    whole = ((xy > 8) & (xy < SIZE - 9)).all(axis=1).reshape(x.shape)
    # the map is known to 1e-4 pixels, and stars change by as much as their height per pixel; area 1 to 1e-3
    tolerance = 2e-4 * np.ptp(source) + 2e-3 * np.abs(expected)
    assert (np.abs(one.aligned_data[inside] - expected) < tolerance)[whole].all()


def test_a_masked_pixel_does_not_reach_far_into_the_spline():
    source, template, _ = pair()
    mask = np.zeros(source.shape, bool)
    mask[100:103, 100:104] = True
    spoilt = source.copy()
    spoilt[mask] = 1e7
    results = [aligned(data, template, source_mask=mask) for data in (source, spoilt)]
    np.testing.assert_array_equal(results[0].aligned_data, results[1].aligned_data)


def test_surfaces_are_those_of_scipy():
    source, template, _ = pair(distortion=3.0)
    one = aligned(source, template)
    assert isinstance(one.sbs_x, SmoothBivariateSpline)
    x, y = np.array([50.0, 100.0]), np.array([60.0, 200.0])
    np.testing.assert_allclose(one.sbs_x.ev(x, y), one.sbs_x(x, y, grid=False))
    assert one.sbs_y.get_residual() == 0
    assert len(one.sbs_x.get_coeffs()) == np.prod([len(t) - 4 for t in one.sbs_x.get_knots()])
    step = (one.sbs_x.ev(x + 1e-3, y) - one.sbs_x.ev(x - 1e-3, y)) / 2e-3
    np.testing.assert_allclose(one.sbs_x.partial_derivative(1, 0)(x, y, grid=False), step, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    "wrong", [{"max_quad_cand": -1}, {"patience_quad_cand": 1.5}, {"max_quad_hash_dist": 0.0}, {"n_quad_det": -3}]
)
def test_arguments_without_influence_are_checked(wrong):
    source, template, _ = pair()
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Spalipy(source, template_data=template, **wrong)
