"""Many science images against one template: the same products as one by one, whatever happens to the others."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from simulate import simulate_pair
from skyloom._threads import serial_blas
from skyloom._workers import WorkerError, work_through
from skyloom.cli import EXIT_FAILED, EXIT_OK, EXIT_PARTIAL, main
from skyloom.errors import InputError, ReadError, WriteError
from skyloom.io import Provenance, write_exposure
from skyloom.pipeline import (
    BatchOptions,
    DifferenceOptions,
    Template,
    difference,
    difference_many,
    outcome_table,
    prepare_template,
)
from skyloom.registration import RegistrationOptions
from worker_tasks import Answer, Die

QUICK = DifferenceOptions(method="zogy", smooth_background=False)
QUICK_CLI = ["--method", "zogy", "--no-report"]
KINDS = ("difference.fits", "candidates.ecsv", "candidates.fits", "candidates.reg")


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """A folder with a template, three science images of it, and a damaged file."""
    folder = tmp_path_factory.mktemp("night")
    pair = simulate_pair(1, 128, n_stars=80, n_transients=2, snr=(20.0, 40.0))
    rng = np.random.default_rng(5)
    write_exposure(pair.template, folder / "template.fits")
    for number in range(3):
        noise = 2.0 * (number + 1)
        one = pair.science
        data = one.data + rng.normal(0, noise, one.shape)
        write_exposure(one.replace(data=data, variance=one.variance + noise**2), folder / f"s{number}.fits")
    (folder / "bad.fits").write_text("SIMPLE  = nothing")
    return folder


@pytest.fixture(scope="module")
def made(night, tmp_path_factory):
    """The folder with the products of two of the images, their outcomes, and what was told of them."""
    folder, told = tmp_path_factory.mktemp("made"), []
    batch = BatchOptions(report=False, jobs=1)
    found = difference_many(
        names(night, "s0", "s1"), night / "template.fits", folder, QUICK, batch, on_frame=told.append
    )
    return folder, found, told


@pytest.fixture(scope="module")
def result(night):
    """What the first of them gives by itself."""
    with serial_blas():  # whose sums depend on the number of its threads
        return difference(night / "s0.fits", night / "template.fits", options=QUICK)


def names(folder, *stems):
    return [str(folder / f"{stem}.fits") for stem in stems]


def planes(path):
    """All bytes of a product but the time of its writing."""
    if path.suffix != ".fits":
        return path.read_bytes()
    with fits.open(path) as hdus:
        return [(hdu.name, None if hdu.data is None else hdu.data.tobytes()) for hdu in hdus]


def test_all_ways_make_the_same_products(night, made, result, tmp_path):
    """One by one, all in this process, and in two processes: the same files, with the same provenance."""
    sciences = names(night, "s0", "s1")
    told = []
    batch = BatchOptions(report=False, jobs=2)
    both = difference_many(sciences, str(night / "template.fits"), tmp_path, QUICK, batch, on_frame=told.append)
    for found, said in (made[1:], (both, told)):
        assert [one.science for one in found] == sciences
        assert {one.status for one in found} == {"done"}
        assert all(one.n_candidates > 0 and one.n_templates == 1 and one.seconds > 0 for one in found)
        assert [one.science for one in said] == sciences  # in their order, though they end in any
    for kind in KINDS:
        for stem in ("s0", "s1"):
            assert planes(made[0] / f"{stem}.{kind}") == planes(tmp_path / f"{stem}.{kind}")
    with fits.open(made[0] / "s0.difference.fits") as hdus:
        usable = hdus["DQ"].data == 0
        np.testing.assert_array_equal(hdus["SCI"].data[usable], result.image[usable])
        assert (hdus[0].header["SLIN1"], hdus[0].header["SLIN2"]) == ("s0.fits", "template.fits")
        assert hdus[0].header["NTEMPLAT"] == 1


def test_one_that_fails_does_not_stop_the_others(night, tmp_path, capsys):
    """The template is among the images, too: it would be subtracted from itself."""
    out = tmp_path / "out"
    arguments = [*names(night, "bad", "s0", "template"), "--template", str(night / "template.fits"), "-o", str(out)]
    summary = tmp_path / "all.json"
    assert main(["difference", *arguments, *QUICK_CLI, "--summary", str(summary)]) == EXIT_PARTIAL
    rows = json.loads(summary.read_text())
    assert [row["status"] for row in rows] == ["failed", "done", "failed"]
    assert [row["error"] for row in rows] == ["ReadError", None, "NoUsableDataError"]
    assert "same image" in rows[2]["message"]
    assert rows[0]["score_std"] is None
    assert sorted(path.name for path in out.iterdir()) == sorted(f"s0.{kind}" for kind in KINDS)
    told = capsys.readouterr()
    assert "1 done, 0 kept, 2 failed" in told.out
    assert "bad.fits: failed: ReadError" in told.err
    bad = [*names(night, "bad"), "--template", str(night / "template.fits"), "-o", str(tmp_path / "none")]
    assert main(["difference", *bad, *QUICK_CLI]) == EXIT_FAILED


def test_resume_makes_what_is_missing_or_otherwise(night, made, tmp_path, monkeypatch):
    template, out = tmp_path / "template.fits", tmp_path / "out"
    template.write_bytes((night / "template.fits").read_bytes())
    shutil.copytree(made[0], out)
    sciences = names(night, "s0", "s1")

    def status(options=QUICK, **batch):
        found = difference_many(sciences, template, out, options, BatchOptions(report=False, resume=True, **batch))
        return [one.status for one in found], found

    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with monkeypatch.context() as patch:  # the template is not prepared for nothing
        patch.setattr("skyloom.pipeline.many.prepare_template", None)
        again, found = status()
    assert again == ["kept", "kept"]
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert all(one.n_candidates > 0 and one.method == "zogy" and one.n_templates == 1 for one in found)
    (out / "s1.candidates.reg").unlink()  # a run that was killed while it moved its files
    assert status()[0] == ["kept", "done"]
    (out / "s0.difference.fits").write_bytes((out / "s0.difference.fits").read_bytes()[:3000])
    assert status()[0] == ["done", "kept"]
    del sciences[1]
    assert status(threshold=6.0)[0] == ["done"]
    assert status(threshold=6.0)[0] == ["kept"]
    assert status(threshold=6.0, reading={"gain": 2.0})[0] == ["done"]
    with fits.open(template, mode="update") as hdus:
        hdus[0].header["OBSERVER"] = "another file"
    assert status(threshold=6.0, reading={"gain": 2.0})[0] == ["done"]


def test_what_exists_is_not_replaced(night, made, tmp_path):
    sciences, template = names(night, "s0"), night / "template.fits"
    batch, first = BatchOptions(report=False), made[1]
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    with pytest.raises(WriteError, match="--resume"):
        difference_many(sciences, template, tmp_path, QUICK, batch)
    again = difference_many(sciences, template, tmp_path, QUICK, BatchOptions(report=False, overwrite=True))
    assert [first[0].n_candidates] == [one.n_candidates for one in again]
    inputs = [tmp_path / "s0.difference.fits", *sciences]
    with pytest.raises(WriteError, match="is an input"):
        difference_many(inputs, template, tmp_path, QUICK, BatchOptions(report=False, overwrite=True))


def test_wrong_arguments(night, tmp_path, capsys):
    science, template = names(night, "s0", "template")
    other = tmp_path / "s0.fits"
    other.write_bytes((night / "s0.fits").read_bytes())
    with pytest.raises(InputError, match="the same name"):
        difference_many([science, other], template, tmp_path / "out")
    with pytest.raises(InputError, match="0 science images"):
        difference_many([], template, tmp_path / "out")
    for jobs in (1, 2):  # a template that cannot be read is nothing that single images have
        with pytest.raises(ReadError, match=r"bad\.fits"):
            difference_many([science, template], night / "bad.fits", tmp_path / "out", batch=BatchOptions(jobs=jobs))
    with pytest.raises(InputError, match="jobs is 0"):
        BatchOptions(jobs=0)
    for wrong in (["--jobs", "2"], ["--resume"], ["--summary", "a.csv"], ["--list", "a"]):
        assert main(["difference", science, template, "-o", str(tmp_path), *wrong]) == EXIT_FAILED
        assert "give --template, too" in capsys.readouterr().err
    assert main(["difference", science, "-o", str(tmp_path)]) == EXIT_FAILED
    many = ["difference", science, "--template", template, "-o", str(tmp_path)]
    assert main([*many, "--summary", "a.txt"]) == EXIT_FAILED
    assert ".ecsv" in capsys.readouterr().err
    assert main([*many, "--list", str(tmp_path / "nowhere")]) == EXIT_FAILED
    assert "nowhere cannot be read" in capsys.readouterr().err


def test_lists_and_tables(night, tmp_path, capsys):
    """Names from a file; a table that others can read, with the products of an earlier run in it."""
    (tmp_path / "names.txt").write_text("\n".join([*names(night, "s0"), "", *names(night, "bad")]) + "\n")
    many = ["difference", "--list", str(tmp_path / "names.txt"), "--template", str(night / "template.fits"), *QUICK_CLI]
    many += ["-o", str(tmp_path / "out")]
    assert main([*many, "--summary", str(tmp_path / "a.csv")]) == EXIT_PARTIAL
    assert main([*many, "--resume", "--summary", str(tmp_path / "a.ecsv")]) == EXIT_PARTIAL
    assert "0 done, 1 kept, 1 failed" in capsys.readouterr().out
    with (tmp_path / "a.csv").open() as stream:
        first = list(csv.DictReader(stream))
    second = Table.read(tmp_path / "a.ecsv", format="ascii.ecsv")
    assert list(second["status"]) == ["kept", "failed"]
    assert first[1]["n_candidates"] == ""
    assert second["n_candidates"].mask.tolist() == [False, True]
    assert int(first[0]["n_candidates"]) == second["n_candidates"][0]
    assert float(first[0]["score_std"]) == pytest.approx(second["score_std"][0], rel=1e-12)


def test_warnings_belong_to_their_image(night, tmp_path):
    """A frame of the template that is the science image is left out of that one's template only."""
    templates = [night / "template.fits", night / "s1.fits"]
    found = difference_many(names(night, "s0", "s1"), templates, tmp_path, QUICK, BatchOptions(report=False))
    assert [one.n_templates for one in found] == [2, 1]
    assert found[0].warnings == ""
    assert "s1.fits" in found[1].warnings
    assert "left out" in found[1].warnings


def test_identical_images_are_refused(night, tmp_path, capsys):
    copy = tmp_path / "copy.fits"
    copy.write_bytes((night / "s0.fits").read_bytes())
    assert main(["difference", str(night / "s0.fits"), str(copy), "-o", str(tmp_path / "out")]) == EXIT_FAILED
    assert "copy.fits and the science image s0.fits are the same image" in capsys.readouterr().err


def test_a_prepared_template_is_a_template(night):
    prepared = prepare_template(night / "template.fits", QUICK)
    assert isinstance(prepared, Template)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = (difference(night / "s2.fits", it, options=QUICK) for it in (prepared, night / "template.fits"))
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.score.significance, other.score.significance)


def test_a_template_knows_what_it_was_prepared_for(night):
    """Sources that are not there, or that another threshold found, are not taken for those that were asked for."""
    path = night / "template.fits"
    without = prepare_template(path, dataclasses.replace(QUICK, align="none"))
    with pytest.raises(InputError, match="prepared with align = 'none', and the difference has 'stars'"):
        difference(night / "s2.fits", without, options=QUICK)
    deep = dataclasses.replace(QUICK, registration=RegistrationOptions(threshold=QUICK.stars.threshold + 1))
    with pytest.raises(InputError, match=r"registration\.threshold"):
        difference(night / "s2.fits", prepare_template(path, deep), options=QUICK)


def test_provenance_tells_what_made_a_file(tmp_path):
    source = tmp_path / "a.fits"
    source.write_bytes(b"abcd" * 100)
    one = Provenance("difference", {"a": 1, "b": None}, [source])
    header = {key: value for key, value, _ in one.cards()}
    assert one.made(header)
    assert not Provenance("difference", {"a": 2, "b": None}, [source]).made(header)
    assert not Provenance("difference", {"a": 1}, [source]).made(header)
    assert not Provenance("difference", {"a": 1, "b": None}, []).made(header)
    assert one.differs(header | {"SLPAR1": "something"}) == "it has other options"
    source.write_bytes(b"abce" * 100)
    os.utime(source, ns=(1, 1))
    assert not one.made(header)


@pytest.mark.parametrize("stems", [("s0",), ("s0", "s1")])
def test_a_full_disk_leaves_no_folder(stems, night, result, *, tmp_path, monkeypatch, capsys):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("skyloom.detection.write_regions", full)
    # what is to be written need not be made anew
    monkeypatch.setattr("skyloom.pipeline.many.difference", lambda *_args, **_options: result)
    command = ["difference", *names(night, *stems), "--template", str(night / "template.fits"), *QUICK_CLI]
    assert main([*command, "-o", str(tmp_path / "new" / "out")]) == EXIT_FAILED
    assert os.strerror(errno.ENOSPC) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    assert main([*command, "-o", str(tmp_path / "old")]) == EXIT_FAILED
    assert (tmp_path / "old").is_dir()  # it was there before


def test_outcomes_of_nothing_are_an_empty_table():
    assert len(outcome_table([])) == 0


def test_a_process_that_dies_takes_only_its_image_along(monkeypatch):
    monkeypatch.setenv("SKYLOOM_NUM_THREADS", "6")
    items = ["a", "die", "b", "c"]
    found = dict(work_through(Answer(), items, 2))
    assert sorted(found) == [0, 1, 2, 3]
    assert [found[index] for index in (0, 2, 3)] == [(item, "3") for item in "abc"]
    assert isinstance(found[1], WorkerError)
    assert found[1].details == {"exitcode": 7}
    with pytest.raises(WorkerError, match="before its first image"):
        list(work_through(Die(), items, 2))


@pytest.mark.parametrize(("ending", "jobs"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_an_interrupted_run_leaves_complete_products(ending, jobs, night, tmp_path):
    """Every image has all of its products, or none; no temporary file is left, and the run can go on."""
    sciences = []
    for number in range(12):
        sciences.append(tmp_path / f"n{number}.fits")
        sciences[-1].symlink_to(night / f"s{number % 3}.fits")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "skyloom", "difference", *map(str, sciences), "--jobs", str(jobs), "-o", str(out)]
    command += ["--template", str(night / "template.fits"), *QUICK_CLI, "--summary", str(tmp_path / "summary.csv")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert "n0.fits" in process.stdout.readline()
        if ending == signal.SIGINT:
            os.killpg(process.pid, ending)  # as a terminal does
        else:
            process.send_signal(ending)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + ending
    assert "what is written is complete" in err, err
    rows = list(csv.DictReader((tmp_path / "summary.csv").read_text().splitlines()))
    assert f"{len(rows)} of 12 images are finished" in err
    assert rows[0]["science"].endswith("n0.fits")
    assert {row["status"] for row in rows} == {"done"}
    assert err.count("\n") == 1, err
    kinds = {}
    for path in out.iterdir():
        stem, _, kind = path.name.partition(".")
        kinds.setdefault(stem, set()).add(kind)
    assert "n0" in kinds
    assert len(kinds) < 12
    assert all(found == set(KINDS) for found in kinds.values()), kinds


def test_all_is_well(night, tmp_path, capsys):
    many = ["difference", *names(night, "s0"), "--template", str(night / "template.fits"), *QUICK_CLI]
    assert main([*many, "-o", str(tmp_path), "-q"]) == EXIT_OK
    assert capsys.readouterr().out == ""
