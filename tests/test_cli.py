"""The command line as a user meets it: results, exit status, one clear sentence on failure, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from skyloom.cli import EXIT_FAILED, EXIT_OK, EXIT_PARTIAL, main
from skyloom.data import saao_frame


def test_help_imports_no_heavy_library():
    code = (
        "import sys\nfrom skyloom.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'numpy', 'scipy', 'astropy', 'matplotlib', 'sep', 'rich', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "difference" in done.stdout


def test_wrong_option_fails_with_status_1(capsys):
    with pytest.raises(SystemExit) as end:
        main(["difference", "a.fits", "b.fits", "--no-such-option"])
    assert end.value.code == EXIT_FAILED
    assert "--no-such-option" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Results of one run of `skyloom difference` on two real frames."""
    folder = tmp_path_factory.mktemp("difference")
    status = main(["difference", str(saao_frame(93)), str(saao_frame(27)), "-o", str(folder), "-q"])
    assert status == EXIT_OK
    return folder


def test_difference_writes_all_products(run_folder):
    names = sorted(path.name for path in run_folder.iterdir())
    stem = "AKB13475I0093"
    assert names == sorted(
        f"{stem}.{kind}"
        for kind in ("difference.fits", "candidates.ecsv", "candidates.fits", "candidates.reg", "report.html")
    )
    with fits.open(run_folder / f"{stem}.difference.fits", checksum=True) as hdus:
        shape = hdus["SCI"].data.shape
        assert shape == (512, 512)
        assert hdus["ERR"].data.shape == hdus["DQ"].data.shape == hdus["SCORE"].data.shape == shape
        header = hdus[0].header
        assert header["SLCMD"] == "difference"
        assert header["SLIN1"] == saao_frame(93).name
        assert "HISTORY" in header
        error = hdus["ERR"].data
        assert np.isnan(hdus["SCI"].data[error == 0]).all()  # no value without an error
        assert np.isfinite(hdus["SCI"].data[error > 0]).all()
    table = Table.read(run_folder / f"{stem}.candidates.ecsv")
    assert {"x", "y", "flux", "flux_err", "snr", "flags", "real"} <= set(table.colnames)
    assert len(table) == len(Table.read(run_folder / f"{stem}.candidates.fits", hdu=1))


def test_results_are_not_replaced_unasked(run_folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in run_folder.iterdir()}
    status = main(["difference", str(saao_frame(93)), str(saao_frame(27)), "-o", str(run_folder)])
    assert status == EXIT_FAILED
    assert "overwrite" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in run_folder.iterdir()}


def test_detect_again_with_another_threshold(run_folder, tmp_path):
    difference = run_folder / "AKB13475I0093.difference.fits"
    assert main(["detect", str(difference), "-o", str(tmp_path), "--threshold", "5", "-q"]) == EXIT_OK
    again = Table.read(tmp_path / "AKB13475I0093.candidates.ecsv")
    first = Table.read(run_folder / "AKB13475I0093.candidates.ecsv")
    assert len(again) == len(first)
    # float32 planes in the file
    np.testing.assert_allclose(again["snr"], first["snr"], rtol=1e-3)
    np.testing.assert_array_equal(again["flags"], first["flags"])
    assert main(["detect", str(difference), "-o", str(tmp_path), "--threshold", "20", "-q", "--overwrite"]) == EXIT_OK
    fewer = Table.read(tmp_path / "AKB13475I0093.candidates.ecsv")
    assert 0 < len(fewer) < len(again)


def test_register_prints_and_resamples(tmp_path, capsys):
    out = tmp_path / "registered.fits"
    status = main(
        [
            "register",
            str(saao_frame(27)),
            str(saao_frame(93)),
            "-o",
            str(out),
            "--resample",
            "--interpolation",
            "spline3",
            "--plot",
            str(tmp_path / "residuals.png"),
        ]
    )
    assert status == EXIT_OK
    assert "rms" in capsys.readouterr().out
    assert fits.getdata(out, "SCI").shape == (512, 512)
    coverage = fits.getdata(out, "COVERAGE")
    assert 0.5 < (coverage == 1).mean() < 1
    np.testing.assert_array_equal(coverage[(fits.getdata(out, "DQ") & 1) != 0] < 1, True)
    assert "spline3" in str(fits.getheader(out))
    assert (tmp_path / "residuals.png").stat().st_size > 1000


def test_register_without_template_wcs_needs_resample(tmp_path, capsys):
    out = tmp_path / "registered.fits"
    frames = [str(saao_frame(n)) for n in (27, 93, 75)]
    for arguments in (["register", *frames[:2]], ["register", *frames, "--reference", frames[1]]):
        assert main([*arguments, "-o", str(out)]) == EXIT_FAILED
        said = capsys.readouterr()
        assert "--resample" in said.err
        assert "rms" not in said.out  # it is known before the work
    assert not list(tmp_path.iterdir())


def test_options_of_register_that_would_do_nothing(tmp_path, capsys):
    frames = [str(saao_frame(n)) for n in (27, 93)]
    assert main(["register", *frames, "-o", str(tmp_path / "a.fits"), "--interpolation", "area"]) == EXIT_FAILED
    assert "--interpolation is for --resample" in capsys.readouterr().err
    assert main(["register", *frames, "--resample"]) == EXIT_FAILED
    assert "--resample needs --output" in capsys.readouterr().err


def test_register_many_images_jointly(tmp_path, capsys):
    out, frames = tmp_path / "registered", [str(saao_frame(n)) for n in (75, 27, 93)]
    arguments = ["register", *frames, "--joint", "--reference", frames[2], "--resample", "-o", str(out)]
    assert main(arguments) == EXIT_OK
    printed = capsys.readouterr().out
    assert printed.count("rms") >= 3
    assert f"{frames[2]}: the reference" in printed
    *stems, reference = [Path(frame).name.split(".")[0] for frame in frames]
    written = [*sorted(f"{stem}.registered.fits" for stem in (*stems, reference)), "stars.ecsv"]
    assert sorted(path.name for path in out.iterdir()) == written
    np.testing.assert_array_equal(fits.getdata(out / f"{reference}.registered.fits", "SCI"), fits.getdata(frames[2]))
    stars = Table.read(out / "stars.ecsv")
    assert stars["n_images"].max() == 3
    # on the grid of the reference: moved by a pixel in any direction, the images look less alike
    template = fits.getdata(frames[2]).astype(float)
    inner = (slice(60, -60), slice(60, -60))
    for stem in stems:
        image = fits.getdata(out / f"{stem}.registered.fits", "SCI")

        def likeness(*shift, image=image):
            return np.corrcoef(np.roll(image, shift, (0, 1))[inner].ravel(), template[inner].ravel())[0, 1]

        assert likeness(0, 0) > max(likeness(0, 1), likeness(0, -1), likeness(1, 0), likeness(-1, 0))
    # what exists is not replaced
    assert main(arguments) == EXIT_FAILED
    assert "overwrite" in capsys.readouterr().err


def test_register_many_images_of_which_one_has_no_stars(tmp_path, capsys):
    noise = tmp_path / "noise.fits"
    fits.PrimaryHDU(np.random.default_rng(3).normal(100, 10, (200, 200))).writeto(noise)
    status = main(["register", str(saao_frame(75)), str(noise), "--reference", str(saao_frame(93))])
    assert status == EXIT_PARTIAL
    printed = capsys.readouterr().out
    assert "1 images registered" in printed
    assert "1 refused" in printed
    assert main(["register", str(noise), str(saao_frame(93)), "--joint", "--plot", "a.png"]) == EXIT_FAILED
    assert "--plot" in capsys.readouterr().err


def test_warnings_of_images_that_are_read_again_are_shown_once(tmp_path, capsys):
    rng = np.random.default_rng(1)
    y, x = np.indices((90, 90))
    data = rng.normal(100, 5, (90, 90))
    for star in rng.uniform(10, 80, (8, 2)):
        data += 2000 * np.exp(-((x - star[0]) ** 2 + (y - star[1]) ** 2) / 4)
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": "NaN"})
    fits.PrimaryHDU(data.astype(np.float32), header).writeto(tmp_path / "odd.fits")
    assert main(["coadd", str(tmp_path / "odd.fits"), "-o", str(tmp_path / "out.fits")]) == 0
    assert capsys.readouterr().err.count("The WCS of odd.fits cannot be used") == 1


def test_coadd_registers_frames_without_wcs(tmp_path, capsys):
    out = tmp_path / "coadd.fits"
    status = main(["coadd", *(str(saao_frame(n)) for n in (75, 77, 27)), "-o", str(out)])
    assert status == EXIT_OK
    assert "3 exposures" in capsys.readouterr().out
    with fits.open(out, checksum=True) as hdus:
        assert {"SCI", "ERR", "DQ", "WHT", "CTX"} <= {hdu.name for hdu in hdus}
        weight, data = hdus["WHT"].data, hdus["SCI"].data
        assert np.isfinite(data[weight > 0]).all()
        assert np.median(weight[200:300, 200:300]) > 0
    more = tmp_path / "more.fits"  # and goes on with the co-add, which has no WCS either
    assert main(["coadd", str(saao_frame(93)), "--resume", str(out), "-o", str(more)]) == EXIT_OK
    assert "4 in all" in capsys.readouterr().out


# --- bad input ---------------------------------------------------------------------------------------------------


def _write(path: Path, data: np.ndarray, **cards: float) -> Path:
    fits.PrimaryHDU(data, fits.Header(cards)).writeto(path)
    return path


@pytest.fixture(scope="module")
def bad_inputs(tmp_path_factory):
    """Files that `skyloom difference` cannot work with, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("bad")
    rng = np.random.default_rng(5)
    noise = rng.normal(100, 10, (512, 512)).astype(np.float32)
    good = fits.getdata(saao_frame(27)).astype(np.float32)
    files = {
        "missing file": folder / "missing.fits",
        "no stars": _write(folder / "noise.fits", noise, GAIN=1.0),
        "NaN only": _write(folder / "nan.fits", np.full((512, 512), np.nan, np.float32)),
        "constant": _write(folder / "constant.fits", np.full((512, 512), 7, np.int16)),
        "cube": _write(folder / "cube.fits", np.zeros((3, 20, 20), np.float32)),
        "tiny": _write(folder / "tiny.fits", noise[:3, :3]),
        "other field": _write(folder / "other.fits", good[::-1, :][:, :200].copy()),
        "not FITS": folder / "text.fits",
        "empty": folder / "empty.fits",
        "truncated": folder / "truncated.fits",
        "folder": folder,
    }
    files["not FITS"].write_text("SIMPLE is not enough\n" * 400)
    files["empty"].write_bytes(b"")
    files["truncated"].write_bytes(saao_frame(27).read_bytes()[: 5 * 2880])
    return files


@pytest.mark.parametrize("role", ["science", "template"])
@pytest.mark.parametrize(
    "fault",
    ["missing file", "no stars", "NaN only", "constant", "cube", "tiny", "not FITS", "empty", "truncated", "folder"],
)
def test_bad_input_fails_with_one_sentence_and_no_file(bad_inputs, tmp_path, capsys, role, fault):
    good, bad = str(saao_frame(93)), str(bad_inputs[fault])
    pair = [bad, good] if role == "science" else [good, bad]
    out = tmp_path / "out"
    assert main(["difference", *pair, "-o", str(out)]) == EXIT_FAILED
    _assert_one_sentence(capsys.readouterr().err, bad_inputs[fault].name)
    assert not out.exists()


def _assert_one_sentence(error: str, name: str) -> None:
    lines = [line for line in error.splitlines() if line.startswith("skyloom ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    assert name in lines[0], lines[0]


def test_shapes_that_differ_without_alignment(bad_inputs, tmp_path, capsys):
    out = tmp_path / "out"
    status = main(
        ["difference", str(saao_frame(93)), str(bad_inputs["other field"]), "--align", "none", "-o", str(out)]
    )
    assert status == EXIT_FAILED
    assert "(512, 512)" in capsys.readouterr().err
    assert not out.exists()


def test_all_masked(tmp_path, capsys):
    mask = _write(tmp_path / "mask.fits", np.ones((512, 512), np.uint8))
    out = tmp_path / "out"
    status = main(
        ["difference", str(saao_frame(93)), str(saao_frame(27)), "--template-mask", str(mask), "-o", str(out)]
    )
    assert status == EXIT_FAILED
    _assert_one_sentence(capsys.readouterr().err, saao_frame(27).name)
    assert not out.exists()


def test_no_overlap(tmp_path, capsys):
    cards = {
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CRPIX1": 256.0,
        "CRPIX2": 256.0,
        "CDELT1": -1e-4,
        "CDELT2": 1e-4,
    }
    data = fits.getdata(saao_frame(27)).astype(np.float32)
    here = _write(tmp_path / "here.fits", data, CRVAL1=150.0, CRVAL2=2.0, GAIN=1.9, **cards)
    there = _write(tmp_path / "there.fits", data, CRVAL1=151.0, CRVAL2=2.0, GAIN=1.9, **cards)
    out = tmp_path / "out"
    assert main(["difference", str(here), str(there), "--align", "wcs", "-o", str(out)]) == EXIT_FAILED
    assert "there.fits" in capsys.readouterr().err
    assert not out.exists()


def test_output_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    status = main(["difference", str(saao_frame(93)), str(saao_frame(27)), "-o", str(tmp_path / "file" / "out")])
    assert status == EXIT_FAILED
    assert "file" in capsys.readouterr().err


def test_register_tells_once_or_as_json(capfd):
    """With -v the result stands on standard output only; programs get the numbers of every image."""
    pair = [str(saao_frame(93)), str(saao_frame(27))]
    assert main(["register", "-v", *pair]) == EXIT_OK
    told = capfd.readouterr()
    assert (told.out + told.err).count("Registration:") == 1
    assert main(["register", "--json", *pair]) == EXIT_OK
    one = json.loads(capfd.readouterr().out)
    assert one["status"] == "registered"
    assert (one["source"], one["template"]) == tuple(pair)
    assert one["log_likelihood_ratio"] > 0
    assert 0 < one["error"] < one["rms"]
    assert np.sqrt(abs(np.linalg.det(one["transform"]["matrix"]))) == pytest.approx(one["scale"])
    assert f"{one['n_matched']} stars, rms {one['rms']:.3f} px" in told.out
    assert main(["register", "--json", "--reference", pair[1], *pair]) == EXIT_OK
    rows = json.loads(capfd.readouterr().out)
    assert [row["source"] for row in rows] == pair
    assert [row["status"] for row in rows] == ["registered", "reference"]
    assert [row["template"] for row in rows] == [pair[1], pair[1]]
    assert rows[0]["transform"] == one["transform"]
    assert rows[0]["n_matched"] == one["n_matched"]
