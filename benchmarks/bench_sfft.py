"""Subtraction with delta-function kernels: quality, time and memory of `run_sfft` and of the native call.

    python benchmarks/bench_sfft.py [--seeds 3] [--size 1024] [--kernel 7] [--peer]
    python benchmarks/bench_sfft.py --time 1024 2048 4096 [--peer]
    python benchmarks/bench_sfft.py --real REFERENCE.fits SCIENCE.fits [--package PYTHON]

Scenes: stars, galaxies and transients through two PSFs that vary over the field (tests/simulate.py). `run_sfft` gets
images and gains, `err=True`; the native call is `subtract` with `SfftOptions`, scored by the matched filter that knows
the covariance. --peer runs stdpipe's `run_sfft` too, if it is installed. With --real two frames of one field, whose
saturation, gain and read noise are those of the SAAO series, are registered, resampled and subtracted; --package names
a Python that has the `sfft` package, whose Customized_Packet gets the same images on its NumPy backend: kernels of
17 x 17 pixels of order 2, saturated stars replaced by the sky for the fit.
Each time and memory is that of one call in a process of its own (CPU time of the call, peak of the process).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import label, maximum_position
from scipy.signal import fftconvolve

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from simulate import far_from_sources, simulate_pair  # (the simulator of the tests)
from skyloom.detection import score
from skyloom.subtraction import SfftOptions, run_sfft, subtract
from skyloom.subtraction.sfft import FourierOptions, subtract_fourier

MARGIN = 30


def routine(name):
    if name == "skyloom":
        return run_sfft
    from stdpipe.subtraction import run_sfft as peer

    return peer


def dropin_arguments(pair, shift=0.0):
    images = (np.array(plane.data, float) + shift for plane in (pair.science, pair.template))
    return tuple(images), {
        "err": True, "template_err": True, "image_gain": pair.science.gain, "template_gain": pair.template.gain,
    }  # fmt: skip


def matched_filter(difference, noise, psf):
    """Significance of point sources, the noise of pixels taken as independent."""
    weight = 1 / noise**2
    mirrored = psf[::-1, ::-1]
    flux = fftconvolve(difference * weight, mirrored, mode="same")
    return flux / np.sqrt(fftconvolve(weight, mirrored**2, mode="same"))


def peaks(significance, transients, threshold=5.0):
    """Count the peaks above the threshold that are not within 4 pixels of a transient."""
    parts, count = label(significance > threshold)
    places = maximum_position(significance, parts, range(1, count + 1))
    xy = np.column_stack([transients["x"], transients["y"]])
    return sum(np.hypot(*(xy - (x, y)).T).min(initial=np.inf) > 4 for y, x in places)


def summary(pair, difference, noise, significance, sums):
    """Return what the bars are about: widths of the noise, false peaks, error of the kernel's sum."""
    inside = np.zeros(difference.shape, bool)
    inside[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    far = far_from_sources(pair) & inside
    near = np.zeros_like(inside)
    y, x = np.indices(inside.shape)
    for xs, ys, flux in pair.stars.iterrows("x", "y", "flux"):
        if flux > 2e4:
            near |= (x - xs) ** 2 + (y - ys) ** 2 <= 9
    for xs, ys in pair.transients.iterrows("x", "y"):
        near &= (x - xs) ** 2 + (y - ys) ** 2 > 15**2
    megapixels = np.count_nonzero(inside) / 1e6
    return {
        "Z sky": float(np.std(difference[far] / noise[far])),
        "Z star": float(np.std((difference / noise)[near & inside])),
        "S std": float(np.std(significance[far])),
        "false+": peaks(np.where(inside, significance, 0), pair.transients) / megapixels,
        "false-": peaks(np.where(inside, -significance, 0), pair.transients) / megapixels,
        "sum %": 100 * (float(np.mean(sums)) * pair.flux_ratio - 1),
        "sum max %": 100 * float(np.abs(np.array(sums) * pair.flux_ratio - 1).max()),
    }


def places(shape):
    return [(x * (shape[1] - 1) / 4, y * (shape[0] - 1) / 4) for x in range(5) for y in range(5)]


def run_dropin(name, pair, kernel):
    images, arguments = dropin_arguments(pair)
    side = {} if kernel is None else {"kernel_shape": (kernel, kernel)}
    start = time.process_time()
    difference, noise, result = routine(name)(*images, **arguments, **side, get_noise=True, get_kernel=True)
    seconds = time.process_time() - start
    from skyloom.subtraction.sfft import evaluate_flux_scale

    sums = [evaluate_flux_scale(result, x, y, difference.shape) for x, y in places(difference.shape)]
    middle = (difference.shape[0] - 1) / 2
    significance = matched_filter(difference, noise, pair.science_psf.stamp(middle, middle))
    images, arguments = dropin_arguments(pair, shift=1000.0)
    higher = routine(name)(*images, **arguments, **side)
    return summary(pair, difference, noise, significance, sums) | {
        "sky+1000": float(np.abs((higher - difference) / noise).max()),
        "CPU s": seconds,
    }


def run_native(pair, decorrelate):
    start = time.process_time()
    options = {"decorrelate": True} if decorrelate else {}
    result = subtract(pair.science, pair.template, SfftOptions(**options))
    seconds = time.process_time() - start
    found = score(result, pair.science_psf)
    noise = np.sqrt(np.where(result.usable, result.variance, np.inf))
    sums = [result.kernel.sum_at(x, y) for x, y in places(result.image.shape)]
    return summary(pair, result.image, noise, found.significance, sums) | {"CPU s": seconds}


def quality(options):
    table = {}
    for seed in range(options.first, options.first + options.seeds):
        pair = simulate_pair(seed, options.size)
        jobs = {"run_sfft": lambda pair=pair: run_dropin("skyloom", pair, options.kernel)}
        jobs["subtract"] = lambda pair=pair: run_native(pair, False)
        if options.decorrelate:
            jobs["decorrelated"] = lambda pair=pair: run_native(pair, True)
        if options.peer:
            jobs["stdpipe"] = lambda pair=pair: run_dropin("stdpipe", pair, options.kernel)
        for name, job in jobs.items():
            table.setdefault(name, []).append(job())
            print(f"seed {seed} {name:13s}", "  ".join(f"{k} {v:.4g}" for k, v in table[name][-1].items()), flush=True)
    for name, rows in table.items():
        print(f"mean   {name:13s}", "  ".join(f"{k} {np.mean([row[k] for row in rows]):.4g}" for k in rows[0]))


def _timed(name, path, repeat, queue):
    with np.load(path) as planes:
        images = planes["science"], planes["template"]
        arguments = {
            "err": True, "template_err": True,
            "image_gain": float(planes["gains"][0]), "template_gain": float(planes["gains"][1]),
        }  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    call = routine(name)
    seconds = []
    for _ in range(repeat):
        start = time.process_time()
        call(*images, **arguments)
        seconds.append(time.process_time() - start)
    queue.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, before))


def timing(options):
    os.environ["OMP_NUM_THREADS"] = os.environ["SKYLOOM_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for size in options.time:
            pair = simulate_pair(options.first, size)
            path = Path(folder) / f"{size}.npz"
            np.savez(
                path, science=np.array(pair.science.data, float), template=np.array(pair.template.data, float),
                gains=[pair.science.gain, pair.template.gain],
            )  # fmt: skip
            del pair
            for name in ("skyloom", "stdpipe") if options.peer else ("skyloom",):
                queue = spawn.Queue()
                repeat = options.repeat if name == "skyloom" else 1
                process = spawn.Process(target=_timed, args=(name, path, repeat, queue))
                process.start()
                seconds, peak, before = queue.get()
                process.join()
                print(
                    f"{size}^2 {name:8s} CPU {min(seconds):.2f} s (of {len(seconds)}: "
                    f"{', '.join(f'{s:.2f}' for s in seconds)})  peak memory {peak:.0f} MB, {before:.0f} MB before",
                    flush=True,
                )


PACKAGE = """
import resource, sys, time
from sfft.CustomizedPacket import Customized_Packet
folder = sys.argv[1]
def run():
    start = time.process_time()
    Customized_Packet.CP(
        FITS_REF=folder + "/reference.fits", FITS_SCI=folder + "/science.fits",
        FITS_mREF=folder + "/reference_masked.fits", FITS_mSCI=folder + "/science_masked.fits",
        FITS_DIFF=folder + "/difference.fits", ForceConv="REF", GKerHW=8, KerPolyOrder=2, BGPolyOrder=2,
        ConstPhotRatio=True, BACKEND_4SUBTRACT="Numpy", NUM_CPU_THREADS_4SUBTRACT=1, VERBOSE_LEVEL=0)
    return time.process_time() - start
first = run()
print("SECONDS", first, run(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def quality_of_real(name, seconds, difference, sigma, *, usable, stars):
    """Print the scatter in units of the science image's noise: everywhere, and within 5 pixels of stars."""
    y, x = np.indices(usable.shape)
    near = np.zeros_like(usable)
    for xs, ys in stars:
        near |= (x - xs) ** 2 + (y - ys) ** 2 <= 25
    z = (difference - np.median(difference[usable])) / sigma
    widths = [1.4826 * np.median(np.abs(z[where])) for where in (usable, usable & near)]
    print(
        f"{name:28s} z MAD {widths[0]:.3f}, around {len(stars)} stars {widths[1]:.3f}; |z| > 5 "
        f"{100 * np.mean(np.abs(z[usable]) > 5):.2f} %; CPU {seconds}",
        flush=True,
    )


def real(reference, science, package):
    """Subtract a pair of real frames; with the `sfft` package too, on the same images."""
    from scipy.ndimage import binary_dilation

    from skyloom.errors import SubtractionError
    from skyloom.exposure import MaskBit
    from skyloom.io import read
    from skyloom.noise import with_variance
    from skyloom.registration import detect_sources, register
    from skyloom.resampling import resample

    detector = {"saturation": 65300.0, "gain": 1.9, "read_noise": 5.0}  # of the SAAO series
    science, reference = (with_variance(read(path, **detector)) for path in (science, reference))
    stars = detect_sources(science)
    found = register(detect_sources(reference), stars)
    placed = resample(reference, found.template_to_source, science.shape)
    results = {}
    for half in (8, None):
        seconds = []
        for _ in range(3):
            start = time.process_time()
            options = SfftOptions(convolve="template", kernel_half_width=half)
            results[half] = subtract(science, placed, options, sources=stars)
            seconds.append(time.process_time() - start)
        results[half].statistics["CPU"] = ", ".join(f"{s:.2f} s" for s in seconds)
    result = results[8]
    saturated = ((science.mask | placed.mask) & np.uint32(MaskBit.SATURATED)) != 0
    edge = np.ones(science.shape, bool)
    edge[40:-40, 40:-40] = False
    usable = result.usable & ~edge & ~binary_dilation(saturated, iterations=10)
    sigma = np.sqrt(np.where(science.usable, science.variance, 1.0))
    good = stars[(stars["flag"] == 0) & (stars["snr"] > 20)][:300]
    places_of_stars = list(zip(good["x"], good["y"], strict=True))
    for result in results.values():
        side = 2 * result.kernel.half + 1
        quality_of_real(
            f"skyloom, {side} x {side}", result.statistics["CPU"], result.image, sigma,
            usable=usable, stars=places_of_stars,
        )  # fmt: skip
    start = time.process_time()
    try:
        both = science.usable & placed.usable
        fit = subtract_fourier(science.data, placed.data, both, FourierOptions(half=8, backend="cpu"))
    except SubtractionError as error:
        print(f"Fourier form: {error} CPU {time.process_time() - start:.2f} s")
    else:
        seconds = f"{time.process_time() - start:.2f} s"
        quality_of_real(
            f"Fourier form, {fit.steps} steps", seconds, fit.image, sigma, usable=usable, stars=places_of_stars
        )
    if package is None:
        return
    from astropy.io import fits

    with tempfile.TemporaryDirectory() as folder:
        hidden = binary_dilation(saturated | ~science.usable | ~placed.usable, iterations=10)
        for name, image in (("reference", placed), ("science", science)):
            plane = np.where(image.usable, image.data, np.median(image.data[image.usable])).astype(np.float64)
            fits.writeto(f"{folder}/{name}.fits", plane)
            fits.writeto(f"{folder}/{name}_masked.fits", np.where(hidden, np.median(plane), plane))
        told = subprocess.run([package, "-c", PACKAGE, folder], capture_output=True, text=True, check=False)
        line = [line for line in told.stdout.splitlines() if line.startswith("SECONDS")]
        if not line:
            raise SystemExit(f"The sfft package has failed: {told.stderr[-2000:]}")
        first, second, memory = (float(number) for number in line[0].split()[1:])
        seconds = f"{first:.2f} s, again {second:.2f} s, {memory:.0f} MB"
        difference = fits.getdata(f"{folder}/difference.fits")
        quality_of_real("sfft package, 17 x 17", seconds, difference, sigma, usable=usable, stars=places_of_stars)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--kernel", type=int, help="pixels a side of run_sfft's kernel; its default if not given")
    parser.add_argument("--decorrelate", action="store_true", help="the native call once more, decorrelated")
    parser.add_argument("--peer", action="store_true", help="run stdpipe as well")
    parser.add_argument("--time", type=int, nargs="+", metavar="SIZE", help="time and memory only, at these sizes")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--real", nargs=2, metavar=("REFERENCE", "SCIENCE"), help="a pair of real frames")
    parser.add_argument("--package", metavar="PYTHON", help="with --real: the sfft package as well")
    options = parser.parse_args()
    if options.real:
        real(*options.real, options.package)
    elif options.time:
        timing(options)
    else:
        quality(options)


if __name__ == "__main__":
    main()
