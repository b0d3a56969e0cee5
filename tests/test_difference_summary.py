"""What is told of the images of a run: depth, light, seeing, and which of them a cloud has ruined."""

from __future__ import annotations

import csv
import html
import json
import math
import os
import re
import time

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from simulate import simulate_pair
from skyloom.cli import EXIT_FAILED, EXIT_OK, main, parse
from skyloom.cli.difference import _images_and_templates
from skyloom.cli.difference_many import _listed
from skyloom.detection.flags import found
from skyloom.errors import InputError, NoUsableDataError, ReadError, SkyloomWarning, WriteError
from skyloom.exposure import Exposure
from skyloom.io import Provenance, write_exposure
from skyloom.pipeline import BatchOptions, DifferenceOptions, Outcome, difference_many, write_outcomes
from skyloom.pipeline.conditions import DIM, SHALLOW, compare, observed, too_dim, transparency
from skyloom.pipeline.outcome import check_is_summary
from skyloom.pipeline.products import _SCRATCH, different_stems, remove_stale

QUICK = DifferenceOptions(method="zogy", smooth_background=False)
HEADER = {"TELESCOP": "T1", "INSTRUME": "CCD", "FILTER": "r", "MJD-OBS": 60000.25, "EXPTIME": 30.0}
CLOUD = 0.05
"""Light that comes through; the sky stays as bright."""
NOT_COUNTS = ("DN s-1", "count s**-1", "e-/sec", "adu/s", "Jy", "MJy/sr", "nanomaggy", "erg s-1 cm-2")
"""Units of fluxes and rates, which do not grow with the exposure time."""


@pytest.fixture(scope="module")
def pair():
    return simulate_pair(1, 128, n_stars=80, n_transients=2, snr=(20.0, 40.0))


@pytest.fixture(scope="module")
def run(pair, tmp_path_factory):
    """The outcomes of a clear and of a cloudy image, and their folder."""
    folder = tmp_path_factory.mktemp("cloud")
    rng = np.random.default_rng(3)
    template = pair.template.replace(header=HEADER, exptime=30.0, zeropoint=25.0)
    write_exposure(template, folder / "template.fits")
    sky = np.median(pair.science.data)
    noise = np.sqrt(np.median(pair.science.variance))
    cloudy = sky + CLOUD * (pair.science_model - sky) + rng.normal(0, noise, pair.science.shape)
    for name, data, variance in (
        ("clear", pair.science.data, pair.science.variance),
        ("cloudy", cloudy, np.full(pair.science.shape, noise**2)),
    ):
        image = pair.science.replace(data=data, variance=variance, header=HEADER, exptime=30.0)
        write_exposure(image, folder / f"{name}.fits")
    paths = [folder / "clear.fits", folder / "cloudy.fits"]
    batch = BatchOptions(report=False)
    return difference_many(paths, folder / "template.fits", folder / "out", QUICK, batch), folder


def test_a_cloudy_image_is_told(run, pair):
    (clear, cloudy), folder = run
    assert (clear.status, cloudy.status) == ("done", "done")
    assert (clear.depth, cloudy.depth) == ("usual", "poor")
    assert "of the light" in cloudy.warnings
    assert clear.warnings == ""
    # by stars of a field of 128 x 128 pixels: 1 to 3 % of noise, and as much again by the errors of the measured PSFs
    assert clear.flux_scale == pytest.approx(1 / pair.flux_ratio, rel=0.05)
    assert cloudy.flux_scale == pytest.approx(CLOUD / pair.flux_ratio, rel=0.25)
    assert clear.transparency == pytest.approx(clear.flux_scale)  # of equal exposure times and gains
    assert cloudy.limit_flux_template > 5 * clear.limit_flux_template
    kept = difference_many(
        [folder / "clear.fits", folder / "cloudy.fits"],
        folder / "template.fits",
        folder / "out",
        QUICK,
        BatchOptions(report=False, resume=True),
    )
    for one, other in zip(kept, (clear, cloudy), strict=True):
        assert one.status == "kept"
        numbers = [
            {k: v for k, v in vars(it).items() if k not in ("status", "seconds", "cpu_seconds")} for it in (one, other)
        ]
        assert numbers[0] == numbers[1]


def test_numbers_of_an_image(run, pair):
    (clear, _), _ = run
    assert (clear.filter, clear.date, clear.mjd, clear.exptime) == ("r", "2023-02-25T06:00:00", 60000.25, 30.0)
    assert clear.limit_mag == pytest.approx(25 - 2.5 * math.log10(clear.limit_flux_template), abs=1e-4)
    assert clear.limit_flux == pytest.approx(clear.limit_flux_template * clear.flux_scale, rel=1e-5)
    # a matched filter of white noise in both images is no better than that of the science image alone (4 pi sigma^2
    # pixels of a Gaussian), and the template's noise adds less than as much again
    width = clear.science_fwhm / 2.3548
    alone = 5 * math.sqrt(4 * math.pi) * width * math.sqrt(np.median(pair.science.variance))
    assert alone < clear.limit_flux < 2 * max(1.0, clear.score_std) * alone
    assert clear.science_fwhm > clear.template_fwhm > 1
    assert clear.cpu_seconds > 0
    assert 0.5 < clear.usable_fraction <= 1
    assert clear.registration_n > 10
    assert 0 < clear.registration_rms < 0.5
    assert 0 < clear.flux_scale_error < 0.1 * clear.flux_scale
    assert clear.sky_rms == pytest.approx(clear.noise_std * math.sqrt(np.median(pair.science.variance)), rel=0.5)


def test_candidates_have_magnitudes_by_the_zero_point_of_the_template(run):
    (clear, _), _ = run
    table = Table.read(clear.candidates)
    expected = 25.0 + 2.5 * math.log10(clear.flux_scale) - 2.5 * np.log10(np.abs(table["flux"]))
    np.testing.assert_allclose(table["mag"], expected, atol=1e-4)
    assert fits.getval(clear.difference, "MAGZERO") == pytest.approx(25 + 2.5 * math.log10(clear.flux_scale), abs=1e-5)


def row(number, **numbers):
    numbers = {"flux_scale": 1.0, "limit_flux_template": 100.0, "exptime": 30.0, "unit": "adu"} | numbers
    return Outcome(f"{number}.fits", "done", depth="usual", **numbers)


def test_images_are_compared_with_the_better_ones_of_their_kind():
    night = [row(number) for number in range(4)]
    night += [row("dim", flux_scale=0.9 * DIM), row("shallow", limit_flux_template=1.1 * SHALLOW * 100)]
    night += [row("short", flux_scale=0.1, limit_flux_template=900.0, exptime=3.0)]  # its time tells why
    night += [row("other", flux_scale=0.01, filter="u")]  # nothing to compare with
    night += [Outcome("none.fits", "failed")]
    judged = {one.science.removesuffix(".fits"): one for one in compare(night)}
    assert [name for name, one in judged.items() if one.depth == "poor"] == ["dim", "shallow"]
    assert "of the light of the better images" in judged["dim"].warnings
    assert "limiting flux" in judged["shallow"].warnings
    assert compare(night[4:6]) == night[4:6]  # too few
    mostly = [*night[:3], *(row(f"c{number}", flux_scale=0.05) for number in range(6))]
    assert [one.depth for one in compare(mostly)] == ["usual"] * 3 + ["poor"] * 6
    rates = [row(number, unit="adu/s", exptime=10.0 ** (number % 2)) for number in range(4)]
    assert compare(rates) == rates
    for unit in NOT_COUNTS:
        fluxes = [row(number, unit=unit, exptime=(1000.0, 30.0)[number % 2]) for number in range(8)]
        assert compare(fluxes) == fluxes
    for unit in ("adu", "DN", "count", "Counts", "e-", "electrons"):
        counts = [row(number, unit=unit, exptime=30.0) for number in range(3)]
        long = row("long", unit=unit, exptime=1000.0, limit_flux_template=1.0)  # as many counts in 33 times as long
        assert [one.depth for one in compare([*counts, long])] == ["usual"] * 3 + ["poor"]
    assert compare([]) == []


def test_transparency():
    data = np.zeros((2, 2))
    one = Exposure(data, header=HEADER, exptime=30.0, gain=2.0)
    assert transparency(0.5, one, one) == 0.5
    assert transparency(0.5, one, one.replace(exptime=60.0)) == 1.0
    assert transparency(0.5, one, one.replace(gain=20.0)) == 0.5  # a co-add of ten
    assert transparency(0.5, one, one.replace(gain=1.0)) == 1.0
    assert transparency(0.5, one.replace(unit="adu/s"), one.replace(unit="adu/s", exptime=60.0)) == 0.5
    for unit in NOT_COUNTS:
        assert transparency(1.0, one.replace(unit=unit, exptime=1000.0), one.replace(unit=unit)) == 1.0
    for other in ({"header": HEADER | {"FILTER": "i"}}, {"header": {}}, {"exptime": None}, {"unit": "electron"}):
        assert transparency(0.5, one, one.replace(**other)) is None
    assert too_dim(None) == too_dim(DIM) == ""
    assert "of the light" in too_dim(0.9 * DIM)


@pytest.mark.parametrize(
    ("cards", "date", "mjd"),
    [
        ({"MJD-OBS": 56507.5}, "2013-08-03T12:00:00", 56507.5),
        ({"DATE-OBS": "2013-08-03T12:00:00.000"}, "2013-08-03T12:00:00", 56507.5),
        ({"DATE-OBS": "2013-08-03", "UT": "12:00:00"}, "2013-08-03T12:00:00", 56507.5),
        ({"DATE-OBS": "2013-08-03"}, "2013-08-03", None),
        ({"DATE-OBS": "03/08/99", "JD": 2456508.0}, "2013-08-03T12:00:00", 56507.5),
        ({"DATE-OBS": "2020-01-02", "UT": "3:04:05.5"}, "2020-01-02T03:04:05", 58850.1278414352),
        ({"DATE-OBS": "2020-01-02", "UT": "3:4:5"}, "2020-01-02T03:04:05", 58850.127835648),
        ({"DATE-OBS": "02/01/98", "UT": "12:00:00"}, "1998-01-02T12:00:00", 50815.5),
        ({"DATE-OBS": "02/01/98"}, "02/01/98", None),
        ({"MJD": 1e7}, "", None),
        ({"MJD": 2456508.0, "JD": 2456508.0}, "2013-08-03T12:00:00", 56507.5),
        ({"DATE-OBS": "yesterday", "MJD-OBS": "none"}, "yesterday", None),
        ({}, "", None),
    ],
)
def test_dates_of_headers(cards, date, mjd):
    told = observed(cards)
    assert told["date"] == date
    assert told["mjd"] == (mjd if mjd is None else pytest.approx(mjd, abs=1e-9))


def test_a_summary_replaces_only_a_summary(tmp_path):
    rows = [row("a"), Outcome("b c.fits", "failed", message='with "quotes",\nand lines')]
    for kind in ("csv", "ecsv", "json"):
        path = write_outcomes(rows, tmp_path / f"a.{kind}")
        check_is_summary(path)
        check_is_summary(tmp_path / f"none.{kind}")
        path.write_text({"csv": "ra,dec\n1,2\n", "ecsv": "science status\n", "json": '{"science": 1}'}[kind])
        with pytest.raises(WriteError, match="not the summary of an earlier run"):
            check_is_summary(path)
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(WriteError, match="--overwrite"):
            check_is_summary(path)
    (tmp_path / "old.csv").write_text("science,status,method,n_candidates,template_warnings\n")  # of an older version
    check_is_summary(tmp_path / "old.csv")
    first = next(csv.reader((tmp_path / "old.csv").read_text().splitlines()))
    assert first[0] == next(iter(Outcome.__annotations__)) == "science"


def test_a_file_that_is_no_summary_stays(run, tmp_path, capsys):
    _, folder = run
    notes = tmp_path / "notes.csv"
    notes.write_text("my notes\n")
    command = ["difference", str(folder / "clear.fits"), "--template", str(folder / "template.fits"), "--resume"]
    assert main([*command, "-o", str(tmp_path / "out"), "--summary", str(notes)]) == EXIT_FAILED
    assert "not the summary" in capsys.readouterr().err
    assert notes.read_text() == "my notes\n"
    assert not (tmp_path / "out").exists()


def test_names_of_a_list(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        place.mkdir()
    (here / "a.fits").touch()
    (there / "a.fits").touch()
    (there / "b #1.fits").touch()
    (there / "c.fits").touch()
    lines = "\ufeff# the night\r\na.fits\r\n\r\n  b #1.fits\r\nc.fits # clouds\r\n~/d.fits\r\nnone.fits"
    (there / "list.txt").write_bytes(lines.encode())
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = _listed(str(there / "list.txt"))
    assert names == ["a.fits", "b", str(there / "c.fits"), f"{tmp_path}/d.fits", "none.fits"]
    (there / "list.txt").write_bytes(b"a\xff.fits")
    with pytest.raises(ReadError, match="cannot be read"):
        _listed(str(there / "list.txt"))


def test_images_may_stand_behind_options():
    def read(*words):
        return _images_and_templates(parse(["difference", *words]))

    assert read("--jobs", "2", "a", "b", "--template", "t") == (["a", "b"], ["t"])
    assert read("a", "--jobs", "2", "b", "--template=t", "c") == (["a", "b", "c"], ["t"])
    assert read("--template", "t", "a", "b") == (["a", "b"], ["t"])
    assert read("--template", "t", "--template", "u", "a") == (["a"], ["t", "u"])
    assert read("-o", "x", "a", "b") == (["a", "b"], [])
    for words in (
        ["a", "--template", "t", "b"],
        ["--template", "t", "b", "--template", "u"],
        ["--list", "l", "--template", "t", "b"],
    ):
        with pytest.raises(InputError, match="b stands behind --template t"):
            read(*words)
    assert parse(["register", "a", "--json", "b"]).template == "b"
    assert parse(["register", "a", "b", "--json", "c", "-v", "d"]).more == ["c", "d"]
    assert parse(["coadd", "a", "-o", "x", "b"]).exposures == ["a", "b"]


@pytest.mark.parametrize(
    "words", [["detect", "a", "--threshold", "6", "b"], ["difference", "a", "b", "--no-such-thing"]]
)
def test_what_no_command_takes_is_told_with_its_usage(words, capsys):
    with pytest.raises(SystemExit) as end:
        parse(words)
    assert end.value.code == EXIT_FAILED
    err = capsys.readouterr().err
    assert err.startswith(f"usage: skyloom {words[0]} ")
    assert f"skyloom {words[0]}: " in err
    assert words[-1] in err
    assert err.count("\n") <= 4  # short


def test_names_that_are_given_twice(tmp_path, capsys):
    with pytest.raises(InputError, match="is given twice"):
        different_stems([tmp_path / "a.fits", tmp_path / "." / "a.fits"])
    with pytest.raises(InputError, match="the same name"):
        different_stems([tmp_path / "a.fits", tmp_path / "b" / "a.fits"])
    same = str(tmp_path / "a.fits")
    assert main(["difference", same, same, "-o", str(tmp_path / "out")]) == EXIT_FAILED
    assert "are the same image" in capsys.readouterr().err  # at once: there is no such file
    assert not list(tmp_path.iterdir())


def test_the_same_file_is_refused_before_it_is_read(run):
    _, folder = run
    (one,) = difference_many([folder / "template.fits"], folder / "template.fits", folder / "same", QUICK)
    assert (one.status, one.error) == ("failed", NoUsableDataError.__name__)
    assert one.seconds < 1
    assert not (folder / "same").exists()


def test_counts_are_grammatical():
    assert found(1, 0) == "1 candidate (and 0 flagged as artefacts)"
    assert found(2, 1) == "2 candidates (and 1 flagged as artefact)"


def test_folders_of_killed_processes_are_removed(tmp_path):
    """Those of this machine whose process lives no more, and that nobody has written to for a while."""
    gone = 2**22 + 1  # above the largest number of a process
    ages = {f"{_SCRATCH}{gone}-a": 1e4, f"{_SCRATCH}{gone}-b": 0.0, f"{_SCRATCH}{os.getpid()}-c": 1e4}
    ages |= {f".skyloom-another_machine-{gone}-d": 1e4, ".skyloom-abc": 1e4}
    for name, age in ages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.fits").touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    remove_stale(tmp_path)
    remove_stale(tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(list(ages)[1:])


def test_why_products_are_made_anew(run, tmp_path):
    inputs = [tmp_path / "a.fits", tmp_path / "t.fits"]
    outputs = [tmp_path / "a.ecsv"]
    for path in (*inputs, *outputs):
        path.write_text(path.name)
    made = Provenance("difference", {"threshold": 5.0, "align": "stars"}, inputs, outputs=outputs)
    header = {key: value for key, value, _ in made.cards()}

    def why(header=header, **changes):
        from dataclasses import replace

        return replace(made, **changes).differs(header)

    assert why() == ""
    assert why(parameters={"threshold": 6.0, "align": "stars"}) == "threshold was 5.0, now 6.0"
    assert why(parameters={"threshold": 5.0}) == 'align="stars" was given'
    assert why(version="9.9").startswith("made by skyloom ")
    assert why(inputs=inputs[:1]) == "it had 2 inputs"
    assert why(inputs=[inputs[0], outputs[0]]) == "it was made of t.fits, not a.ecsv"
    assert why(inputs=[inputs[0], tmp_path / "none.fits"]).endswith("none.fits cannot be read")
    assert "does not tell" in why({"CREATOR": header["CREATOR"]})
    for path, text in ((inputs[1], "t.fits has changed"), (outputs[0], "a.ecsv is not the one that was made with it")):
        before = path.read_text()
        path.write_text("another")
        assert why() == text
        path.write_text(before)


def test_why_is_told(run, capsys):
    """By the command, for each image."""
    _, folder = run
    command = ["difference", str(folder / "clear.fits"), "--template", str(folder / "template.fits"), "--no-report"]
    command += ["--method", "zogy", "-o", str(folder / "again")]
    assert main([*command, "--resume"]) == EXIT_OK
    assert "made anew" not in capsys.readouterr().out
    (folder / "again" / "clear.candidates.reg").unlink()
    assert main([*command, "--resume", "--json"]) == EXIT_OK
    (told,) = json.loads(capsys.readouterr().out)
    assert told["remade"] == "clear.candidates.reg is missing"
    assert list(told) == list(Outcome.__annotations__)
    assert main([*command, "--resume", "--threshold", "6"]) == EXIT_OK
    assert re.search(r"^\[1/1\] .*clear\.fits: .*made anew: threshold was 5.0, now 6.0$", capsys.readouterr().out, re.M)


def test_a_page_beside_is_made_anew_by_detect(run, tmp_path, capsys):
    (clear, _), _ = run
    difference = str(clear.difference)
    command = ["detect", difference, "-o", str(tmp_path), "--no-report"]
    assert main(command) == EXIT_OK
    assert not (tmp_path / "clear.report.html").exists()
    (tmp_path / "clear.report.html").write_text("of other candidates")
    assert main([*command, "--overwrite"]) == EXIT_OK
    assert "clear.report.html" in capsys.readouterr().out
    page = (tmp_path / "clear.report.html").read_text()
    assert f"{clear.registration_n} stars" in page
    assert "Limiting flux" in page


def test_the_page_of_a_cloudy_image_says_so_first(run, tmp_path, capsys):
    (_, cloudy), _ = run
    (tmp_path / "cloudy.report.html").touch()
    assert main(["detect", str(cloudy.difference), "-o", str(tmp_path), "--overwrite", "-q"]) == EXIT_OK
    page = html.unescape((tmp_path / "cloudy.report.html").read_text())
    (verdict,) = re.findall(r'<ul class="verdict".*?</ul>', page, re.S)
    first = re.search(r"<li.*?</li>", verdict, re.S)
    assert cloudy.warnings in first[0]
    assert "poor" in first[0]
    assert found(cloudy.n_candidates, cloudy.n_artefacts) in verdict
    # the command names what the command has
    assert main(["detect", str(cloudy.difference), "-o", str(tmp_path)]) == EXIT_FAILED
    told = capsys.readouterr().err
    assert "-o FOLDER" in told
    assert "overwrite=True" not in told


def test_warnings_of_one_image_stand_in_its_json(run, tmp_path, capsys):
    _, folder = run
    command = ["difference", str(folder / "cloudy.fits"), str(folder / "template.fits"), "--no-report", "--json"]
    assert main([*command, "--method", "zogy", "-o", str(tmp_path)]) == EXIT_OK
    told = capsys.readouterr()
    one = json.loads(told.out)
    assert one["depth"] == "poor"
    (warning,) = one["warnings"]
    assert "of the light" in warning
    assert warning in told.err
    assert one["template_warnings"] == []
    assert (one["error"], one["remade"]) == (None, None)
    assert one["error_scale"] >= 1


def test_a_run_warns_of_its_cloudy_images(monkeypatch):
    from skyloom.pipeline import many

    rows = {number: row(number) for number in range(4)} | {4: row("dim", flux_scale=0.1)}
    with pytest.warns(SkyloomWarning, match=r"dim\.fits: It has only 0.1 of the light"):
        judged = many._compared(rows)
    assert [one.depth for one in judged] == ["usual"] * 4 + ["poor"]


def test_the_nearest_option_is_suggested(capsys):
    with pytest.raises(SystemExit):
        parse(["detect", "a.fits", "--treshold", "6"])
    assert "do you mean --threshold?" in capsys.readouterr().err
