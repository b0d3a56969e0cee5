"""Odd images and wrong files through the main job: a right result, or one typed error; never a warning of NumPy's.

pytest turns every warning into an error here (pyproject.toml), so that each call also proves that none is shown.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

import simulate
import skyloom
from skyloom.cli import EXIT_FAILED, EXIT_OK, EXIT_PARTIAL, main
from skyloom.convolution import exponents
from skyloom.errors import (
    InputError,
    NoUsableDataError,
    RegistrationError,
    SkyloomError,
    SkyloomWarning,
    SubtractionError,
    WriteError,
)
from skyloom.exposure import LARGEST, UNUSABLE, Exposure, MaskBit
from skyloom.registration.stamps import photometry
from skyloom.subtraction.basis import gaussian_basis
from skyloom.subtraction.kernel import SpatialKernel
from skyloom.subtraction.sanity import check_kernel, check_variance

SIZE = 200


@pytest.fixture(scope="module")
def pair():
    return simulate.simulate_pair(3, SIZE, n_stars=50, n_galaxies=0, n_transients=0, vary=0.0)


@pytest.fixture(scope="module")
def files(pair, tmp_path_factory):
    """Science, template, and a template that is nothing but noise."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(1).normal(100, 5, (SIZE, SIZE))
    for name, data in (("science", pair.science.data), ("template", pair.template.data), ("noise", noise)):
        fits.PrimaryHDU(np.asarray(data, np.float32)).writeto(folder / f"{name}.fits")
    return folder


def sound(difference):
    """Return whether every usable pixel has a finite value and a positive finite variance."""
    usable = (difference.mask & np.uint32(UNUSABLE)) == 0
    planes = difference.image, difference.variance, difference.matched
    scores = difference.score.significance, difference.score.flux, difference.score.flux_variance
    return (
        usable.any()
        and all(np.isfinite(plane[usable]).all() for plane in planes)
        and (difference.variance[usable] > 0).all()
        and all(np.isfinite(plane).all() for plane in scores)
    )


def noise_of(shape):
    return np.random.default_rng(2).normal(100, 5, shape)


HOPELESS = {
    "1x1": np.ones((1, 1)),
    "1xN": noise_of((1, 60)),
    "Nx1": noise_of((60, 1)),
    "5x5": noise_of((5, 5)),
    "20x20": noise_of((20, 20)),
    "4x3000": noise_of((4, 3000)),
    "noise": noise_of((SIZE, SIZE)),
    "zeros": np.zeros((60, 60)),
    "constant": np.full((60, 60), -7.0),
    "all NaN": np.full((60, 60), np.nan),
    "all infinite": np.full((60, 60), np.inf),
    "all masked": np.ma.masked_array(noise_of((60, 60)), True),
    "one pixel": np.pad([[1e5]], 40),
    "too large for any unit": np.full((60, 60), 1e200),
    "cube": np.zeros((3, 60, 60)),
    "empty": np.zeros((0, 5)),
    "complex": np.zeros((60, 60), complex),
    "text": np.full((9, 9), "a"),
    "objects": np.full((9, 9), None),
    "bool": noise_of((60, 60)) > 100,
    "number": 3.0,
    "ragged": [[1, 2], [3]],
    "nothing": None,
}


@pytest.mark.filterwarnings("ignore::skyloom.errors.SkyloomWarning")
@pytest.mark.parametrize("image", HOPELESS.values(), ids=HOPELESS)
def test_hopeless_images_are_refused_in_either_role(image, pair):
    for science, template in ((image, pair.template), (pair.science, image)):
        with pytest.raises(SkyloomError, match=r"[.]$"):
            skyloom.difference(science, template)


@pytest.mark.filterwarnings("ignore:The gain of:skyloom.errors.SkyloomWarning")
@pytest.mark.parametrize("unit", [1e-29, 1e-18, 1e12])
def test_any_unit_gives_the_same_difference(unit, pair):
    science, template = (
        Exposure(np.asarray(one.data, np.float64) * unit, np.asarray(one.variance, np.float64) * unit**2)
        for one in (pair.science, pair.template)
    )
    as_single = [Exposure(one.data.astype(np.float32), one.variance) for one in (science, template)]
    for images in ((science, template), as_single):
        found = skyloom.difference(*images)
        assert sound(found)
        assert found.diagnostics["kernel_sum"] == pytest.approx(1 / pair.flux_ratio, rel=0.02)  # 50 stars: noise 0.5 %
        assert found.diagnostics["noise_std"] == pytest.approx(1, abs=0.05)


def test_fill_values_are_no_data_and_leave_the_precision_alone():
    data = noise_of((20, 20)).astype(np.float32)
    data[3, 4], data[5, 6], data[7, 8] = -3.4e38, 2 * LARGEST, np.nan
    exposure = Exposure(data)
    assert exposure.data.dtype == np.float32
    assert [tuple(at) for at in np.argwhere(exposure.mask == MaskBit.NO_DATA)] == [(3, 4), (5, 6), (7, 8)]
    assert Exposure(data * np.float32(1e-20)).data.dtype == np.float64


def test_holes_borders_and_infinite_blocks_do_not_leak(pair):
    data = np.array(pair.science.data)
    data[:, :70] = np.nan
    data[150:160, 100:120] = np.inf
    found = skyloom.difference(pair.science.replace(data=data), pair.template)
    assert sound(found)
    assert (found.mask[:, :70] & np.uint32(MaskBit.NO_DATA)).all()


def test_identical_images_leave_nothing(pair):
    found = skyloom.difference(pair.science, pair.science)
    assert sound(found)
    # the rounding of float32 at the brightest pixels' values
    assert np.abs(found.image).max() < 1e-5 * np.abs(pair.science.data).max()


@pytest.mark.parametrize(
    ("coefficients", "what"),
    [([[-1.0, 0, 0]], "sum"), ([[np.nan, 0, 0]], "sum"), ([[1.0, 40.0, 0]], "sum")],
    ids=["negative", "NaN", "runs away over the field"],
)
def test_insane_kernels_are_refused(coefficients, what):
    basis = gaussian_basis((1.5,), (0,), 6)
    assert len(exponents(1)) == 3
    good = SpatialKernel(basis, np.array([[1.0, 0.1, 0.1]]), (50.0, 50.0), (50.0, 50.0))
    check_kernel(good, (0, 100, 0, 100))
    with pytest.raises(SubtractionError, match=what):
        check_kernel(replace(good, coefficients=np.array(coefficients)), (0, 100, 0, 100))


def test_ringing_kernels_are_refused():
    basis = gaussian_basis((1.0, 1.1), (0, 0), 8)
    first, second = basis.images.sum(axis=(1, 2))
    large = 1000.0  # in the one Gaussian, and as much with the other sign in the other: their sum is 1
    coefficients = [[1 / first], [large]] if abs(second) < 1e-9 else [[large], [(1 - large * first) / second]]
    kernel = SpatialKernel(basis, np.array(coefficients), (5.0, 5.0), (5.0, 5.0))
    assert kernel.sum_at(5, 5) == pytest.approx(1)
    with pytest.raises(SubtractionError, match="absolute"):
        check_kernel(kernel, (0, 10, 0, 10))


def test_a_difference_without_a_positive_variance_is_refused(pair):
    from skyloom.subtraction import subtract

    result = subtract(pair.science, pair.template)
    y, x = np.argwhere(result.usable)[100]
    for name, value in (("variance", 0.0), ("variance_template", -1.0), ("image", np.nan)):
        plane = np.array(getattr(result, name))
        plane[y, x] = value
        with pytest.raises(SubtractionError, match="1 usable pixel"):
            check_variance(replace(result, **{name: plane}))


def test_sources_without_flux_have_an_infinite_position_error():
    data, noise, dead = np.zeros((20, 20)), np.ones((20, 20)), np.zeros((20, 20), bool)
    found = photometry(data, noise, dead, np.array([[10.0, 10.0]]), 1.5, gain=2.0)
    assert found.flux[0] == 0
    assert found.xy_err[0] > 1e100


def test_a_bad_frame_among_templates_is_left_out(pair):
    template = pair.template
    dark = Exposure(np.full((SIZE, SIZE), np.nan, np.float32), name="dark")
    with pytest.warns(SkyloomWarning, match=r"frame 1 \(dark\) is left out"):
        found = skyloom.difference(pair.science, [dark, template])
    alone = skyloom.difference(pair.science, template)
    np.testing.assert_array_equal(found.image, alone.image)
    with pytest.raises(NoUsableDataError):
        skyloom.difference(pair.science, [dark, dark])
    with pytest.raises(InputError, match="no file"):
        skyloom.difference(pair.science, [template, "missing.fits"])


def test_a_bad_template_file_gives_status_2(files, tmp_path, capsys):
    science, template, noise = (str(files / f"{name}.fits") for name in ("science", "template", "noise"))
    status = main(["difference", science, template, noise, "-o", str(tmp_path), "--no-report"])
    captured = capsys.readouterr()
    assert status == EXIT_PARTIAL
    assert "frame 2 (noise.fits) is left out" in captured.err
    assert (tmp_path / "science.difference.fits").is_file()
    with pytest.raises(RegistrationError):
        skyloom.difference(science, [noise, noise])


def test_inputs_are_never_replaced(files, capsys):
    science, template = str(files / "science.fits"), str(files / "template.fits")
    before = (files / "science.fits").read_bytes()
    for command in (
        ["register", science, template, "--resample", "--overwrite", "-o", science],
        ["coadd", template, science, "--overwrite", "-o", science],
    ):
        assert main(command) == EXIT_FAILED
        assert "is an input and would be replaced" in capsys.readouterr().err
    assert (files / "science.fits").read_bytes() == before


def test_pipes_and_devices_are_never_replaced(pair, tmp_path):
    pipe = tmp_path / "pipe.fits"
    os.mkfifo(pipe)
    with pytest.raises(WriteError, match="not a regular file"):
        skyloom.write_exposure(pair.science, pipe, overwrite=True)
    assert pipe.is_fifo()


@pytest.mark.parametrize("threshold", ["nan", "0", "-3", "inf", "x"])
def test_wrong_thresholds_are_told_before_any_work(threshold, capsys):
    with pytest.raises(SystemExit) as end:
        main(["difference", "missing.fits", "missing.fits", "--threshold", threshold])
    assert end.value.code == EXIT_FAILED
    assert "--threshold" in capsys.readouterr().err


def test_wrong_thresholds_of_the_function(pair):
    from skyloom.registration import detect_sources

    for threshold in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(InputError, match="threshold"):
            detect_sources(pair.science, threshold=threshold)


@pytest.mark.parametrize("name", ["a b.fits", "q'\".fits", "br[0].fits", "nl\nx.fits", "ünï☃.fits", "%s{x}.fits"])
def test_any_file_name(name, files, tmp_path):
    odd = tmp_path / name
    odd.write_bytes((files / "science.fits").read_bytes())
    out = tmp_path / f"out {name}"
    assert main(["register", str(odd), str(files / "template.fits"), "--resample", "-q", "-o", str(out)]) == EXIT_OK
    assert skyloom.read(out).usable.any()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_standard_output_that_cannot_be_written(files):
    command = [
        sys.executable,
        "-m",
        "skyloom",
        "register",
        *(str(files / f"{n}.fits") for n in ("science", "template")),
    ]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == EXIT_FAILED
    assert done.stderr.startswith("skyloom register: standard output cannot be used")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_work_leaves_no_file(ending, files, tmp_path):
    paths = [str(files / f"{name}.fits") for name in ("science", "template")]
    command = [sys.executable, "-m", "skyloom", "difference", *paths, "-v", "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "registering" in line:
                break
        time.sleep(0.05)
        process.send_signal(ending)
        err = process.stderr.read()
        assert process.wait(30) == 128 + ending
    assert "interrupted; nothing was written" in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.*"))


def test_ended_writing_leaves_no_file(tmp_path):
    """A program that is told to end removes its temporary files, though by itself Python would not."""
    script = (
        "import sys, time; from skyloom.cli import guarded; from skyloom.io import atomic_write\n"
        "def job():\n"
        "    with atomic_write(sys.argv[1]) as path:\n"
        "        path.write_bytes(b'x'); print('begun', flush=True); time.sleep(60)\n"
        "    return 0\n"
        "sys.exit(guarded('job', job))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out.fits")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert err == "job: interrupted; nothing was written.\n"
    assert not list(tmp_path.iterdir())
