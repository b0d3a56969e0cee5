"""Compare measured PSFs with those of PSFEx on real images: width, and what is left of stars.

    python benchmarks/bench_psfex.py IMAGE.fits ... [--gain 1] [--saturation 60000] [--order 1]
    python benchmarks/bench_psfex.py --truth 2.5 3.5 5.0 [--seeds 3] [--stars 169] [--degree 0]

Needs the programs `psfex` and `source-extractor` (or `sex`). For each image: FWHM of both models in the middle, and
the median over isolated stars, whose peak is above 25 sigma, of the reduced chi2 (within one FWHM; flux, level and
position fitted, 2 % error allowed for) of either model. "Wider" is by how much the stars are wider than each model
(their width fitted, too): 0 for a model without bias. Neither program sees the other's choice of stars.

With --truth, simulated fields of 768^2 pixels and some FWHM (one PSF for all of the field): by how much each model is
wider than the true PSF in the middle, and its largest error within two FWHM, in per cent of the peak. Widths are those
of four samples a pixel, as steps of the pixels would hide errors of narrow stars.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter
from scipy.optimize import least_squares

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import skyloom
from simulate import Epoch, simulate_pair
from skyloom.background import estimate_background
from skyloom.errors import InputError, SkyloomError, SkyloomWarning
from skyloom.io import write_exposure
from skyloom.noise import with_variance
from skyloom.psf import as_psf, estimate_psf, stamp_fwhm
from skyloom.registration import detect_sources

SIDE = 35  # of the vignettes
COLUMNS = ["X_IMAGE", "Y_IMAGE", "FLUX_APER(1)", "FLUXERR_APER(1)", "FLUX_RADIUS", "SNR_WIN", "ELONGATION", "FLAGS",
           f"VIGNET({SIDE},{SIDE})"]  # fmt: skip


def program(*names):
    for name in names:
        if found := shutil.which(name):
            return found
    raise InputError(f"None of the programs {', '.join(names)} is installed; both are packages of Debian.")


def run_psfex(exposure, gain, order):
    """Return the model of PSFEx."""
    sex, psfex = program("source-extractor", "sex", "sextractor"), program("psfex")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_exposure(exposure.replace(variance=None), folder / "image.fits")
        (folder / "columns").write_text("\n".join(COLUMNS))
        level = exposure.saturation or 1e9  # SExtractor takes no more
        subprocess.run(
            [sex, "image.fits[1]" if _extended(folder / "image.fits") else "image.fits", "-c", "/dev/null",
             "-PARAMETERS_NAME", "columns", "-CATALOG_TYPE", "FITS_LDAC", "-CATALOG_NAME", "image.cat", "-FILTER", "N",
             "-DETECT_THRESH", "5", "-SATUR_LEVEL", str(level), "-GAIN", str(gain), "-PHOT_APERTURES", "12",
             "-VERBOSE_TYPE", "QUIET"],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        subprocess.run(
            [psfex, "image.cat", "-c", "/dev/null", "-PSFVAR_DEGREES", str(order), "-PSF_SIZE", f"{SIDE},{SIDE}",
             "-PSF_SAMPLING", "1", "-CHECKPLOT_TYPE", "NONE", "-CHECKIMAGE_TYPE", "NONE", "-WRITE_XML", "N",
             "-VERBOSE_TYPE", "QUIET"],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        return as_psf(folder / "image.psf")


def _extended(path):
    from astropy.io import fits

    with fits.open(path) as hdus:
        return hdus[0].data is None


def good_stars(exposure, data, fwhm):
    """Return positions of isolated stars with a peak above 25 sigma, away from the border."""
    sources = detect_sources(exposure, threshold=5.0)
    xy = np.column_stack([sources["x"], sources["y"]])
    kept = []
    for k, (x, y) in enumerate(xy):
        ix, iy, half = round(float(x)), round(float(y)), int(3 * fwhm)
        if not (half <= ix < data.shape[1] - half and half <= iy < data.shape[0] - half):
            continue
        box = np.s_[iy - half : iy + half + 1, ix - half : ix + half + 1]
        apart = np.hypot(*(xy - xy[k]).T)
        near = (apart > 0) & (apart < 4 * fwhm)
        snr = data[iy, ix] / np.sqrt(exposure.variance[iy, ix])
        if snr > 25 and exposure.usable[box].all() and not near.any():
            kept.append((ix, iy, x - ix, y - iy))
    return kept


def judge(exposure, data, star, psf, fwhm, *, stretch=False):
    """Return the reduced chi2 of one star within one FWHM of its middle, and by how much it is wider than the model.

    Without `stretch` the model is taken as wide as it is.
    """
    ix, iy, dx, dy = star
    half = int(np.ceil(1.5 * fwhm))
    box = np.s_[iy - half : iy + half + 1, ix - half : ix + half + 1]
    values, variance = data[box].astype(float), exposure.variance[box].astype(float)
    stamp = psf.stamp(ix, iy)
    spline, middle = spline_filter(stamp, 5), stamp.shape[0] // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    inside = np.hypot(x - dx, y - dy) <= fwhm

    def residual(parameters):
        factor = 1 + parameters[2] if stretch else 1.0
        at = [(axis[inside] - step) / factor + middle for axis, step in ((y, parameters[1]), (x, parameters[0]))]
        design = np.column_stack([map_coordinates(spline, at, order=5, prefilter=False), np.ones(inside.sum())])
        sigma = np.sqrt(variance[inside] + (0.02 * np.maximum(values[inside], 0)) ** 2)
        found = np.linalg.lstsq(design / sigma[:, None], values[inside] / sigma, rcond=None)[0]
        return (values[inside] - design @ found) / sigma

    fit = least_squares(residual, (dx, dy, 0.0) if stretch else (dx, dy), diff_step=1e-3, x_scale=0.1)
    return 2 * fit.cost / (inside.sum() - 4), fit.x[-1]


def compare(path, options):
    detector = {"gain": options.gain, "read_noise": options.read_noise, "saturation": options.saturation}
    exposure = with_variance(skyloom.read(path, verify=False, **detector))
    data = exposure.data - estimate_background(exposure).level
    own, theirs = estimate_psf(exposure, order=options.order), run_psfex(exposure, options.gain, options.order)
    ny, nx = exposure.shape
    widths = [stamp_fwhm(psf.stamp(nx // 2, ny // 2)) for psf in (own, theirs)]
    stars = good_stars(exposure, data, widths[0])
    chi2 = [[judge(exposure, data, star, psf, widths[0])[0] for star in stars] for psf in (own, theirs)]
    wider = [[100 * judge(exposure, data, star, psf, widths[0], stretch=True)[1] for star in stars]
             for psf in (own, theirs)]  # fmt: skip
    print(f"{Path(path).name:28} {widths[0]:8.3f} {widths[1]:8.3f} {100 * (widths[0] / widths[1] - 1):+7.2f} "
          f"{len(stars):6d} {np.median(chi2[0]):9.3f} {np.median(chi2[1]):9.3f} "
          f"{np.mean(np.array(chi2[0]) < chi2[1]):8.0%} {median_error(wider[0])} {median_error(wider[1])}",
          flush=True)  # fmt: skip


def median_error(values):
    """Return the median and its standard error as text."""
    scatter = 1.4826 * np.median(np.abs(values - np.median(values)))
    return f"{np.median(values):+6.2f} +- {1.25 * scatter / np.sqrt(len(values)):.2f}"


def compare_with_truth(fwhm, options):
    """Print the errors of both models of simulated fields, and their standard errors."""
    rows = []
    for seed in range(1, options.seeds + 1):
        pair = simulate_pair(
            seed, 768, n_stars=options.stars, n_galaxies=0, n_transients=0, vary=0, science=Epoch(fwhm, 1.5, 300, 6)
        )
        exposure, middle = pair.science, 383
        true = pair.science_psf.stamp(middle, middle)
        models = [estimate_psf(exposure, order=options.degree), run_psfex(exposure, exposure.gain, options.degree)]
        stamps = [psf.stamp(middle, middle) for psf in models]
        half = min(int(2 * fwhm), *(stamp.shape[0] // 2 for stamp in (true, *stamps)))
        true_fwhm = fine_fwhm(partial(_pixels, pair.science_psf, half), half)
        true_core, *cores = (cut(stamp, half) for stamp in (true, *stamps))
        rows.append(
            [100 * (fine_fwhm(psf.stamp_at, half) / true_fwhm - 1) for psf in models]
            + [100 * np.abs(core - true_core).max() / true_core.max() for core in cores]
        )
    mean, error = np.mean(rows, axis=0), np.std(rows, axis=0) / np.sqrt(max(1, options.seeds - 1))
    wider = [f"{mean[k]:+6.2f} +- {error[k]:.2f}" for k in (0, 1)]
    print(f"{fwhm:5.2f} {true_fwhm:8.3f} {wider[0]:>16} {wider[1]:>16} {mean[2]:8.2f} {mean[3]:8.2f}", flush=True)


def _pixels(psf, half, x, y, dx, dy):  # noqa: PLR0917
    return psf.profile(x, y, dx, dy, half)


def fine_fwhm(stamp_at, half, samples=4):
    """Return the FWHM in pixels of a PSF in the middle, from the pixels of stars at all phases of a fine grid."""
    fine = np.empty((2 * half * samples + 1,) * 2)
    for j in range(samples):
        for i in range(samples):
            pixels = cut(stamp_at(383, 383, -i / samples, -j / samples), half)
            fine[j::samples, i::samples] = pixels[: 2 * half + (j == 0), : 2 * half + (i == 0)]
    return stamp_fwhm(fine) / samples


def cut(stamp, half):
    """Return the middle of a stamp, with the sum 1."""
    middle = stamp.shape[0] // 2
    core = stamp[middle - half : middle + half + 1, middle - half : middle + half + 1]
    return core / core.sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*")
    parser.add_argument("--truth", type=float, nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stars", type=int, default=169, help="of a simulated field")
    parser.add_argument("--degree", type=int, default=0, help="of the models' variation over a simulated field")
    parser.add_argument("--gain", type=float, default=1.0)
    parser.add_argument("--read-noise", type=float, default=5.0)
    parser.add_argument("--saturation", type=float, default=60000.0)
    parser.add_argument("--order", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore", SkyloomWarning)
    if options.truth:
        print(f"{'FWHM':>5} {'in pixels':>8} {'wider %':>16} {'PSFEx':>16} {'error %':>8} {'PSFEx':>8}")
    for fwhm in options.truth:
        compare_with_truth(fwhm, options)
    if not options.images:
        return
    print(
        f"{'image':28} {'FWHM':>8} {'PSFEx':>8} {'%':>7} {'stars':>6} {'chi2':>9} {'PSFEx':>9} {'better':>8} "
        f"{'wider %':>14} {'PSFEx':>14}"
    )
    for path in options.images:
        try:
            compare(path, options)
        except SkyloomError as error:
            print(f"{Path(path).name}: {type(error).__name__}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
