"""Many science images: what is kept is what would be made, and what goes wrong is told, once and to the right one."""

from __future__ import annotations

import json
import os
import re
import warnings

import numpy as np
import pytest
from astropy.io import fits
from threadpoolctl import threadpool_info

from simulate import simulate_pair
from skyloom._workers import WorkerError, work_through
from skyloom.cli import EXIT_FAILED, EXIT_OK, EXIT_PARTIAL, main
from skyloom.errors import ReadError, SkyloomWarning, WriteError
from skyloom.io import check_not_input, write_exposure
from skyloom.io.provenance import file_digest, read_unchanged
from skyloom.pipeline import BatchOptions, DifferenceOptions, Outcome, difference_many, many, products, write_outcomes
from worker_tasks import Starts

QUICK = DifferenceOptions(method="zogy", smooth_background=False)
QUICK_CLI = ["--method", "zogy"]


@pytest.fixture(scope="module")
def pair():
    return simulate_pair(1, 128, n_stars=80, n_transients=2, snr=(20.0, 40.0))


@pytest.fixture
def night(pair, tmp_path):
    """A folder with a template and two science images."""
    write_exposure(pair.template, tmp_path / "template.fits")
    rng = np.random.default_rng(5)
    for stem in ("s0", "s1"):
        data = pair.science.data + rng.normal(0, 2.0, pair.science.shape)
        write_exposure(pair.science.replace(data=data, variance=pair.science.variance + 4), tmp_path / f"{stem}.fits")
    return tmp_path


def run(folder, *stems, template="template.fits", **batch):
    batch = {"report": False, "resume": True} | batch
    paths = [folder / f"{stem}.fits" for stem in stems or ("s0",)]
    return difference_many(paths, folder / template, folder / "out", QUICK, BatchOptions(**batch))


def status(*arguments, **batch):
    return [one.status for one in run(*arguments, **batch)]


def test_names_in_the_home_folder_are_inputs_like_others(night, monkeypatch):
    monkeypatch.setenv("HOME", str(night))
    monkeypatch.chdir(night)

    def again():
        batch = BatchOptions(report=False, resume=True)
        (one,) = difference_many(["s0.fits"], "~/template.fits", night / "out", QUICK, batch)
        return one

    assert again().status == "done"
    assert fits.getval("out/s0.difference.fits", "SLSUM2") == file_digest("template.fits")
    assert again().status == "kept"
    with fits.open("template.fits", mode="update") as hdus:
        hdus[0].header["OBSERVER"] = "another file"
    assert again().status == "done"
    (night / "s0.fits").unlink()
    assert (again().status, again().error) == ("failed", "ReadError")
    with pytest.raises(WriteError, match="is an input"):
        check_not_input([night / "template.fits"], ["~/template.fits", "~nobody-of-that-name/a.fits"])


def test_masks_that_are_no_files_count(night, pair):
    """Another mask, or none at all, makes other products."""
    some = np.zeros(pair.science.shape, bool)
    some[:20] = True
    for reading in ({}, {"mask": some}, {"mask": some[::-1]}, {"mask": False}):
        assert status(night, reading=reading) == ["done"]
        assert status(night, reading=reading) == ["kept"]
    assert status(night, template_reading={"mask": some}) == ["done"]


def test_only_what_was_made_together_is_kept(night):
    """Candidates of another threshold, or of another run, are not those of the difference beside them."""
    out = night / "out"
    assert status(night, threshold=8.0) == ["done"]
    before = (out / "s0.candidates.ecsv").read_bytes()
    assert main(["detect", str(out / "s0.difference.fits"), "--threshold", "3", "--overwrite", "-q"]) == EXIT_OK
    assert (out / "s0.candidates.ecsv").read_bytes() != before
    assert status(night, threshold=8.0) == ["done"]
    assert (out / "s0.candidates.ecsv").read_bytes() == before


def test_no_report_of_an_earlier_run_is_left(night):
    report = night / "out" / "s0.report.html"
    assert status(night, report=True) == ["done"]
    assert status(night) == ["kept"]  # without a report is no other difference
    assert report.exists()
    assert status(night, threshold=8.0, resume=False, overwrite=True) == ["done"]
    assert not report.exists()
    report.write_text("the page of something else")
    assert status(night, threshold=8.0, report=True) == ["done"]
    assert "something else" not in report.read_text()


def test_a_kill_between_two_moves_leaves_no_old_difference(night, monkeypatch):
    """Neither as it is nor, as a crash of the machine may bring it back, as something that is kept."""
    difference = night / "out" / "s0.difference.fits"
    assert status(night) == ["done"]
    old = difference.read_bytes()

    def killed(path, **_):
        if path == difference:
            raise KeyboardInterrupt  # the last of the moves does not happen
        return atomic_write(path, overwrite=True)

    from skyloom.io import atomic_write

    with monkeypatch.context() as patch:
        patch.setattr("skyloom.io.atomic_write", killed)
        with pytest.raises(KeyboardInterrupt):
            run(night, threshold=3.0, resume=False, overwrite=True)
    assert not difference.exists()
    assert sorted(path.suffix for path in (night / "out").iterdir()) == [".ecsv", ".fits", ".reg"]
    difference.write_bytes(old)
    assert status(night) == ["done"]


def test_inputs_are_recorded_as_they_were_when_they_were_read(night, pair):
    """The template is replaced while the run goes on, which goes on with the one that it has read."""
    first = file_digest(night / "template.fits")
    other = pair.template.replace(data=pair.template.data + 1)

    def replaced(_):
        write_exposure(other, night / "template.fits", overwrite=True)

    sciences = [night / "s0.fits", night / "s1.fits"]
    difference_many(
        sciences, night / "template.fits", night / "out", QUICK, BatchOptions(report=False), on_frame=replaced
    )
    assert file_digest(night / "template.fits") != first
    for stem in ("s0", "s1"):
        assert fits.getval(night / "out" / f"{stem}.difference.fits", "SLSUM2") == first
    assert status(night, "s0", "s1") == ["done", "done"]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a"
    path.write_text("one")
    assert read_unchanged([path], path.read_text)[1] == "one"
    with pytest.raises(ReadError, match="was changed while it was read"):
        read_unchanged([path], lambda: path.write_text("the other"))


@pytest.mark.parametrize("jobs", [1, 2])
def test_frames_left_out_of_the_template_are_told_once(jobs, night, pair, capfd):
    blank = pair.template.replace(data=np.full(pair.template.shape, np.nan, np.float32))
    write_exposure(blank, night / "blank.fits")
    templates = [night / "template.fits", night / "blank.fits"]
    sciences = [night / "s0.fits", night / "s1.fits"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SkyloomWarning)
        found = difference_many(sciences, templates, night / "out", QUICK, BatchOptions(report=False, jobs=jobs))
    told = [str(one.message) for one in caught if issubclass(one.category, SkyloomWarning)]
    assert len(told) == 1, told
    assert "Template frame 2" in told[0]
    assert [one.template_warnings for one in found] == told * 2
    assert [(one.warnings, one.n_templates) for one in found] == [("", 1)] * 2
    command = ["difference", *map(str, sciences), "-o", str(night / "out"), "--no-report", *QUICK_CLI, "--overwrite"]
    command += ["--template", str(templates[0]), "--template", str(templates[1]), "--jobs", str(jobs), "-q"]
    capfd.readouterr()
    assert main(command) == EXIT_PARTIAL
    assert capfd.readouterr() == ("", "")
    if jobs == 1:
        assert main(command[:-1]) == EXIT_PARTIAL
        assert capfd.readouterr().err.count("left out") == 1


@pytest.mark.parametrize(
    ("error", "name", "message"),
    [
        (MemoryError(), "MemoryError", "--jobs"),
        (np._core._exceptions._ArrayMemoryError((9,), np.dtype(float)), "MemoryError", "--jobs.*Unable to allocate"),
        (ValueError(), "ValueError", r"^ValueError\(\)$"),
        (KeyError("x"), "KeyError", "x"),
    ],
)
def test_only_a_lack_of_memory_is_told_as_such(error, name, message, night, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(many, "difference", fails)
    (one,) = run(night)
    assert (one.status, one.error) == ("failed", name)
    assert re.search(message, one.message)
    assert ("memory" in one.message) == isinstance(error, MemoryError)


def test_summaries_are_json(tmp_path):
    """Which knows no NaN."""
    path = write_outcomes([Outcome("a.fits", "done", noise_std=float("nan"), score_std=1.5)], tmp_path / "a.json")
    (row,) = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert row["noise_std"] is None
    assert row["score_std"] == 1.5


def test_one_image_is_made_as_many_are(night, monkeypatch, capsys):
    """The command for a single one gives the same bits, with BLAS in one thread, and means the same by its seconds."""
    threads = []

    def seen(function):
        def wrapper(*arguments, **options):
            threads.extend(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")
            return function(*arguments, **options)

        return wrapper

    for name in ("difference", "prepare_template", "write_products"):
        monkeypatch.setattr(many, name, seen(getattr(many, name)))
    command = ["difference", str(night / "s0.fits"), str(night / "template.fits"), *QUICK_CLI, "--no-report"]
    assert main([*command, "-o", str(night / "one")]) == EXIT_OK
    assert re.search(r": \d+\.\d s, after \d+\.\d s for the template$", capsys.readouterr().out, re.MULTILINE)
    assert set(threads) == {1}
    (found,) = run(night)
    for path in (night / "out").iterdir():
        if path.suffix != ".fits":
            assert path.read_bytes() == (night / "one" / path.name).read_bytes()
    assert found.seconds > 0
    assert main([*command, "-o", str(night / "two"), "--json"]) == EXIT_OK
    assert json.loads(capsys.readouterr().out)["seconds"] > 0


def test_registrations_are_told_when_they_are_written(night, pair, monkeypatch, capsys):
    """An image that failed has no output, and nothing is told of one that could not be written."""
    blank = pair.template.replace(data=np.random.default_rng(1).normal(100, 5, pair.template.shape))
    write_exposure(blank, night / "nothing.fits")
    names = [str(night / name) for name in ("s0.fits", "nothing.fits", "template.fits")]
    command = ["register", *names, "--json", "--resample", "-o", str(night / "registered")]
    assert main([*command, "--reference", names[2]]) == EXIT_PARTIAL
    rows = json.loads(capsys.readouterr().out)
    assert [row["status"] for row in rows] == ["registered", "failed", "reference"]
    assert [row["output"] is None for row in rows] == [False, True, False]
    assert all(os.path.exists(row["output"]) for row in rows if row["output"])  # noqa: PTH110

    def full(*_, **__):
        raise WriteError("The disk is full.")

    monkeypatch.setattr("skyloom.pipeline.align.write_registered", full)
    command = ["register", names[0], names[2], "--json", "--resample", "-o", str(night / "one.fits")]
    assert main(command) == EXIT_FAILED
    assert capsys.readouterr().out == ""


def test_processes_that_cannot_be_replaced_do_not_stop_the_others(tmp_path):
    """What is left is done by the others; if there are none, it has failed, but nothing else has."""
    both = dict(work_through(Starts(tmp_path, 2, "value"), ["die", "die", "a", "b"], 2))
    assert sorted(both) == [0, 1, 2, 3]
    assert all(isinstance(one, WorkerError) for one in both.values())
    assert "no process is left" in str(both[3])


def test_one_process_does_the_work_of_one_that_died(tmp_path):
    one = dict(work_through(Starts(tmp_path, 2), ["die", "a", "b", "c"], 2))
    assert [one[index][0] for index in (1, 2, 3)] == ["a", "b", "c"]
    assert isinstance(one[0], WorkerError)


def test_processes_are_replaced_only_for_something_to_do(tmp_path):
    found = dict(work_through(Starts(tmp_path, 9), ["a", "die"], 2))
    assert found[0][0] == "a"
    assert isinstance(found[1], WorkerError)
    assert len(list(tmp_path.iterdir())) == 2


def test_why_no_process_could_begin_is_told(tmp_path):
    with pytest.raises(WorkerError, match=r"MemoryError.*fewer processes"):
        list(work_through(Starts(tmp_path, 0, "memory"), ["a", "b"], 2))


def test_products_name_a_report_that_is_not_wanted(tmp_path):
    made = products.Products.in_folder(tmp_path, "a", report=False)
    assert made.unwanted == tmp_path / "a.report.html"
    assert products.Products.in_folder(tmp_path, "a").unwanted is None
    assert products.Products.in_folder(tmp_path, "a", report=False, difference=False).unwanted is None
