"""The test suite that `drizzle` publishes, run against skyloom through `skyloom.compat`.

Its data files are not published. Where a test needs no more of them than a WCS of some shape, a header made here stands
in; where it compares with recorded results or with a number of that very file, it cannot run.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, Sip

NEEDS_DATA = {  # recorded results, or a number of a file that is not there
    "test_resample_kernel": 6,
    "test_resample_kernel_image": 2,
    "test_blot_interpolation": 4,
    "test_estimate_pixel_scale_ratio": 1,
}
NOT_SERVED = {  # reasons in docs/compat.md
    "test_drizzle_weights_squared_array_shape_mismatch": 1,  # a missing plane of variances counts as zeros
    "test_cdrizzle": 1,  # unit tests inside the original's C code
}


def header(size, degrees, scale, *, crval=(34.0, -5.0), sip=0.0):
    """Return the header of a tangent-plane WCS; `sip` is the distortion at the border, in pixels."""
    ny, nx = size
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"] if sip else ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = crval, (nx / 2 + 0.5, ny / 2 + 0.5)
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    wcs.wcs.cd = scale * np.array([[-c, s], [s, c]])
    wcs.wcs.radesys = "ICRS"
    if sip:
        a, b = np.zeros((2, 4, 4))
        half = nx / 2
        a[2, 0], a[1, 1], a[3, 0] = sip / half**2, -0.5 * sip / half**2, 0.2 * sip / half**3
        b[0, 2], b[1, 1], b[2, 1] = 0.7 * sip / half**2, 0.4 * sip / half**2, 0.1 * sip / half**3
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    cards = wcs.to_header(relax=True)
    cards["WCSNAX1"], cards["WCSNAX2"] = nx, ny
    return cards


def write_stand_ins(folder):
    """Write the headers that the suite reads, and one empty image."""
    folder.mkdir()
    sky = (6.0, -72.0)
    images = {
        "j8bt06nyq_flt.fits": (None, header((1024, 1024), 15, 7.6e-6, crval=sky)),
        "j8bt06nyq_sip_flt.fits": (None, header((1024, 1024), 15, 7.6e-6, crval=sky, sip=15.0)),
        "reference_square_image.fits": (
            np.zeros((1080, 1050), np.float32),
            header((1080, 1050), 0, 7.6e-6, crval=sky),
        ),
    }
    for name, (data, cards) in images.items():
        hdus = [fits.PrimaryHDU(), fits.ImageHDU(data, header=cards, name="SCI")]
        fits.HDUList(hdus).writeto(folder / name)
    texts = {"nrcb5_sip_wcs": header((2048, 2048), 70, 1.75e-5, sip=12.0)}
    for ratio, name in ((0.55, "0p55"), (1.0, "1p0"), (1.2, "1p2")):
        size = (int(2120 / ratio), int(2110 / ratio))
        texts[f"nrcb5_output_wcs_psr_{name}"] = header(size, 70, 1.75e-5 * ratio)
    for name, cards in texts.items():
        (folder / f"{name}.hdr").write_text(cards.tostring(sep="\n", endcard=True, padding=False))


def counts_by_function(cases):
    """Return how many cases of each test function there are."""
    names = [case.get("name").partition("[")[0] for case in cases]
    return {name: names.count(name) for name in names}


@pytest.mark.slow
def test_published_suite_of_drizzle(tmp_path):
    found = importlib.util.find_spec("drizzle")
    if found is None:
        pytest.skip("drizzle is not installed: no tests to run")
    # a package with nothing in it but the tests: that the original is not needed is part of what is tested
    package = tmp_path / "drizzle"
    shutil.copytree(Path(found.origin).parent / "tests", package / "tests", ignore=shutil.ignore_patterns("data"))
    (package / "__init__.py").touch()
    write_stand_ins(package / "tests" / "data")
    report = tmp_path / "report.xml"
    pytest_ = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(package / "tests")]
    subprocess.run(
        [sys.executable, "-m", "skyloom.compat", "drizzle", "--", *pytest_],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=1500,
    )
    cases = list(ET.parse(report).iter("testcase"))
    assert len(cases) == 268
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    assert counts_by_function(failed) == NEEDS_DATA | NOT_SERVED
