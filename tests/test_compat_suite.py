"""The test suite that `drizzle` publishes, run against skyloom through `skyloom.compat`.

Its data files are not published with it. Headers and an image that are made here stand in, and what the original makes
of them stands in for recorded results.
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

NOT_PASSED = {  # reasons in docs/compat.md
    "test_cdrizzle": 1,  # unit tests inside the original's C code
    "test_drizzle_weights_squared_array_shape_mismatch": 1,  # a missing plane of variances counts as zeros
    "test_resample_kernel": 1,  # Lanczos: the original takes the kernel from a coarse table
    "test_blot_interpolation": 4,  # the original rounds coordinates to single precision
    "test_estimate_pixel_scale_ratio": 1,  # a number of the very file that is not there
}
SHAPE = (1024, 1024)


def header(size, degrees, scale, *, sip=0.0, crval=(6.0, -72.0), matrix="CD"):
    """Return the header of a tangent-plane WCS; `sip` is the distortion at the border, in pixels."""
    ny, nx = size
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"] if sip else ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = crval, (nx / 2 + 0.5, ny / 2 + 0.5)
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    wcs.wcs.pc = scale * np.array([[-c, s], [s, c]])
    wcs.wcs.radesys = "ICRS"
    if sip:
        a, b = np.zeros((2, 4, 4))
        half = nx / 2
        a[2, 0], a[1, 1], a[3, 0] = sip / half**2, -0.5 * sip / half**2, 0.2 * sip / half**3
        b[0, 2], b[1, 1], b[2, 1] = 0.7 * sip / half**2, 0.4 * sip / half**2, 0.1 * sip / half**3
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    cards = wcs.to_header(relax=True)
    if matrix == "CD":
        for name in list(cards["PC*"]):
            cards.rename_keyword(name, name.replace("PC", "CD"))
        del cards["CDELT*"]
    cards["WCSNAX1"], cards["WCSNAX2"] = nx, ny
    return cards


def write(path, cards, **planes):
    """Write extensions, of which the first has the WCS; None is an extension without pixels."""
    hdus = [fits.ImageHDU(data, header=cards if name == "SCI" else None, name=name) for name, data in planes.items()]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)


def write_stand_ins(folder):
    """Write the headers that the suite reads, and the one image that it drizzles."""
    folder.mkdir()
    image = np.random.default_rng(1).normal(10, 2, SHAPE).astype(np.float32)
    write(folder / "j8bt06nyq_flt.fits", header(SHAPE, 15, 7.6e-6), SCI=image)
    write(folder / "j8bt06nyq_sip_flt.fits", header(SHAPE, 15, 7.6e-6, sip=15.0), SCI=None)
    sky = (34.0, -5.0)
    texts = {"nrcb5_sip_wcs": header((2048, 2048), 70, 1.75e-5, sip=12.0, crval=sky)}
    for ratio, name in ((0.55, "0p55"), (1.0, "1p0"), (1.2, "1p2")):
        size = (int(2120 / ratio), int(2110 / ratio))
        texts[f"nrcb5_output_wcs_psr_{name}"] = header(size, 70, 1.75e-5 * ratio, crval=sky)
    for name, cards in texts.items():
        (folder / f"{name}.hdr").write_text(cards.tostring(sep="\n", endcard=True, padding=False))


def write_results_of_the_original(folder):
    """Write, in the place of the recorded results, what the original makes of the same images; runs without skyloom."""
    from drizzle.resample import Drizzle, blot_image
    from drizzle.utils import calc_pixmap

    with fits.open(folder / "j8bt06nyq_flt.fits") as hdus:
        image, source = hdus[1].data.astype(np.float32), WCS(hdus[1].header)
    source.array_shape = SHAPE
    point, grid = np.zeros((2, *SHAPE), np.float32)
    point[500, 200] = 100
    grid[32::64, 32::64] = 100
    shape = (1300, 1290)  # with room for the turned image: the tests look at 16 pixels around each source
    inside = (1000, 780)  # 125 rows at both ends are not looked at, and the rest is within the image
    cards, cards_inside = header(shape, 0, 7.6e-6, matrix="PC"), header(inside, 0, 7.6e-6)
    target, target_inside = WCS(cards), WCS(cards_inside)
    target.array_shape, target_inside.array_shape = shape, inside

    def drizzled(kernel, data, onto):
        drizzle = Drizzle(kernel=kernel, out_shape=onto.array_shape, fillval=0.0)
        drizzle.add_image(data, 1.0, calc_pixmap(source, onto), weight_map=np.ones_like(data))
        return drizzle

    for kernel in ("square", "point", "turbo", "lanczos3", "gaussian"):
        write(folder / f"reference_{kernel}_grid.fits", cards, SCI=drizzled(kernel, grid, target).out_img)
    write(folder / "reference_square_point.fits", cards, SCI=drizzled("square", point, target).out_img)
    for kernel in ("square", "turbo"):
        done = drizzled(kernel, image, target_inside)
        planes = {"SCI": done.out_img, "WHT": done.out_wht, "CTX": done.out_ctx[0]}
        write(folder / f"reference_{kernel}_image.fits", cards_inside, **planes)
    back = calc_pixmap(target, source)
    write(folder / "reference_blot_point.fits", cards, SCI=blot_image(0.4 * point, back))
    for name, options in {
        "default": {},
        "lanczos3": {"interp": "lanczos3"},
        "lanczos5": {"interp": "lanczos5"},
    }.items():
        write(folder / f"reference_blot_{name}.fits", cards, SCI=blot_image(grid, back, **options))


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
    data, report = package / "tests" / "data", tmp_path / "report.xml"
    write_stand_ins(data)
    subprocess.run([sys.executable, "-W", "ignore", __file__, str(data)], check=True, timeout=300)
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
    assert counts_by_function(failed) == NOT_PASSED


if __name__ == "__main__":
    write_results_of_the_original(Path(sys.argv[1]))
