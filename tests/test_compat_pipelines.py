"""The tests of the pipelines of Roman and JWST, and of stcal, run with the originals and through `skyloom.compat`.

They run where these packages are installed (best in an environment of their own): romancal 1.1 and jwst 3.0 bring their
tests along; those of stcal are in its source distribution, and STCAL_SOURCE tells where that is unpacked.
"""

import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

OFFLINE = {
    "STPIPE_DISABLE_CRDS_STEPPARS": "true",
    "CRDS_SERVER_URL": "https://roman-crds.stsci.edu",  # a name that romancal asks for; nothing is fetched
}
PLUGIN = "jwst_without_reference_files"
ROMAN = ["--pyargs", "romancal.resample", "romancal.outlier_detection"]
JWST = ["-p", PLUGIN, "--pyargs", "jwst.resample", "jwst.outlier_detection"]
ONLY_THERE = {"test_resample_imaging_pixmap_interpolation"}  # wants interpolated maps to be worse: docs/compat.md
STCAL = ["tests/resample", "tests/outlier_detection", "-o", "log_cli_level=INFO"]


def outcomes(start, arguments, folder, cwd):
    """Run a suite, and return the names of all its tests and of those that pass."""
    report = folder / f"{len(start)}.xml"
    subprocess.run(
        [sys.executable, *start, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments],
        env=os.environ | OFFLINE | {"PYTHONPATH": str(Path(__file__).parent)},
        cwd=cwd,
        capture_output=True,
        check=False,
        timeout=7200,
    )
    cases = list(ET.parse(report).iter("testcase"))
    names = {f"{case.get('classname')}::{case.get('name')}" for case in cases}
    ended_badly = [case for case in cases if any(child.tag in ("failure", "error", "skipped") for child in case)]
    return names, names - {f"{case.get('classname')}::{case.get('name')}" for case in ended_badly}


@pytest.mark.parametrize(
    ("package", "arguments", "at_least"), [("romancal", ROMAN, 59), ("jwst", JWST, 0), ("stcal", STCAL, 381)]
)
def test_what_passes_with_the_original_passes_here(tmp_path, package, arguments, at_least):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: no tests to run")
    cwd = tmp_path
    if package == "stcal":
        if "STCAL_SOURCE" not in os.environ:
            pytest.skip("STCAL_SOURCE does not tell where the source distribution of stcal lies: no tests to run")
        cwd = Path(os.environ["STCAL_SOURCE"])
    names, passed = outcomes([], arguments, tmp_path, cwd)
    assert len(passed) >= max(at_least, 1)
    ours, passed_here = outcomes(["-m", "skyloom.compat", "stcal,drizzle", "--"], arguments, tmp_path, cwd)
    assert ours == names
    assert {name.partition("::")[2] for name in passed - passed_here} <= ONLY_THERE
