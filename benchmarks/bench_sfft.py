"""Subtraction with delta-function kernels: quality, time and memory of `run_sfft` and of the native call.

    python benchmarks/bench_sfft.py [--seeds 3] [--size 1024] [--kernel 7] [--peer]
    python benchmarks/bench_sfft.py --time 1024 2048 4096 [--peer]
    python benchmarks/bench_sfft.py --fourier 512 1024
    python benchmarks/bench_sfft.py --real REFERENCE.fits SCIENCE.fits [--package PYTHON]

Scenes: stars, galaxies and transients through two PSFs that vary over the field (tests/simulate.py). `run_sfft` gets
images and gains, `err=True`; the native call is `subtract` with `SfftOptions`, scored by the matched filter that knows
the covariance. --peer runs stdpipe's `run_sfft` too, if it is installed. With --real two frames of one field, whose
saturation, gain and read noise are those of the SAAO series, are registered, resampled and subtracted; --package names
a Python that has the `sfft` package, whose Customized_Packet gets the same images on its NumPy backend: kernels of
17 x 17 pixels of order 2, saturated stars replaced by the sky for the fit.
Its calls alternate with ours (CPU time of the calls; for one thread set OMP_NUM_THREADS, OPENBLAS_NUM_THREADS and
SKYLOOM_NUM_THREADS to 1). With --time each time and memory is that of one call in a process of its own (CPU time of the
call, peak of the process). --fourier times the Fourier form on the CPU and on a GPU, if there is one.
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
from skyloom.errors import InputError
from skyloom.subtraction import SfftOptions, run_sfft, subtract
from skyloom.subtraction.sfft import FourierOptions, subtract_fourier

MARGIN = 30
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "SKYLOOM_NUM_THREADS"), "1")


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
    os.environ.update(ONE_THREAD)
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
for line in sys.stdin:
    start = time.process_time()
    Customized_Packet.CP(
        FITS_REF=folder + "/reference.fits", FITS_SCI=folder + "/science.fits",
        FITS_mREF=folder + "/reference_masked.fits", FITS_mSCI=folder + "/science_masked.fits",
        FITS_DIFF=folder + "/difference.fits", ForceConv="REF", GKerHW=8, KerPolyOrder=2, BGPolyOrder=2,
        ConstPhotRatio=True, BACKEND_4SUBTRACT="Numpy", NUM_CPU_THREADS_4SUBTRACT=1, VERBOSE_LEVEL=0)
    seconds = time.process_time() - start
    print("SECONDS", seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)
"""


class Package:
    """The `sfft` package in a process of its own, which waits between calls."""

    def __init__(self, python, folder):
        self._process = subprocess.Popen(
            [python, "-c", PACKAGE, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | ONE_THREAD,
        )  # fmt: skip
        self.first, self.memory = self.run()  # compiles

    def run(self):
        """Return the CPU time of a call, and the peak memory, MB."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("SECONDS"):
                return tuple(float(number) for number in line.split()[1:])
        raise SystemExit("The sfft package has failed.")

    def close(self):
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


class Judge:
    """Prints the scatter in units of the science image's noise: everywhere, and within 5 pixels of stars."""

    def __init__(self, usable, sigma, stars):
        self.usable, self.sigma, self.count = usable, sigma, len(stars)
        y, x = np.indices(usable.shape)
        self.near = np.zeros_like(usable)
        for xs, ys in stars:
            self.near |= (x - xs) ** 2 + (y - ys) ** 2 <= 25

    def __call__(self, name, difference, seconds):
        """Print a line for one difference."""
        z = (difference - np.median(difference[self.usable])) / self.sigma
        widths = [1.4826 * np.median(np.abs(z[where])) for where in (self.usable, self.usable & self.near)]
        print(
            f"{name:28s} z MAD {widths[0]:.3f}, around {self.count} stars {widths[1]:.3f}; |z| > 5 "
            f"{100 * np.mean(np.abs(z[self.usable]) > 5):.2f} %; CPU {seconds}",
            flush=True,
        )


def real(reference, science, package, repeat):
    """Subtract a pair of real frames; with the `sfft` package too, on the same images, in turn."""
    from astropy.io import fits
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
    saturated = ((science.mask | placed.mask) & np.uint32(MaskBit.SATURATED)) != 0
    usable = science.usable & placed.usable
    edge = np.ones(science.shape, bool)
    edge[40:-40, 40:-40] = False
    good = stars[(stars["flag"] == 0) & (stars["snr"] > 20)][:300]
    judge = Judge(
        usable & ~edge & ~binary_dilation(saturated, iterations=10),
        np.sqrt(np.where(science.usable, science.variance, 1.0)), list(zip(good["x"], good["y"], strict=True)),
    )  # fmt: skip

    def ours(half):
        start = time.process_time()
        choices = SfftOptions(convolve="template", kernel_half_width=half)
        result = subtract(science, placed, choices, sources=stars)
        return time.process_time() - start, result

    ours(8)  # imports, and memory that is used for the first time
    with tempfile.TemporaryDirectory() as folder:
        hidden = binary_dilation(saturated | ~usable, iterations=10)
        for name, image in (("reference", placed), ("science", science)):
            plane = np.where(image.usable, image.data, np.median(image.data[image.usable])).astype(np.float64)
            fits.writeto(f"{folder}/{name}.fits", plane)
            fits.writeto(f"{folder}/{name}_masked.fits", np.where(hidden, np.median(plane), plane))
        peer = Package(package, folder) if package else None
        seconds = np.array([(ours(8)[0], peer.run()[0] if peer else np.nan) for _ in range(repeat)])
        if peer:
            peer.close()
            told = f"{np.median(seconds[:, 1]):.2f} s (first {peer.first:.2f} s, {peer.memory:.0f} MB)"
            judge("sfft package, 17 x 17", fits.getdata(f"{folder}/difference.fits"), told)
            ratios = seconds[:, 1] / seconds[:, 0]
            print(f"times faster, {repeat} interleaved: median {np.median(ratios):.2f}, least {ratios.min():.2f}")
    for half, told in ((8, f"{np.median(seconds[:, 0]):.2f} s"), (None, None)):
        once, result = ours(half)
        side = 2 * result.kernel.half + 1
        judge(f"skyloom, {side} x {side}", result.image, told or f"{once:.2f} s, once")
    start = time.process_time()
    try:
        fit = subtract_fourier(science.data, placed.data, usable, FourierOptions(half=8, backend="cpu"))
    except SubtractionError as error:
        print(f"Fourier form: {error} CPU {time.process_time() - start:.2f} s")
    else:
        judge(f"Fourier form, {fit.steps} steps", fit.image, f"{time.process_time() - start:.2f} s")


def fourier(sizes, first, repeat):
    """Time the Fourier form on the CPU and, if there is one, on a GPU; print how far their results are apart."""
    for size in sizes:
        pair = simulate_pair(first, size)
        images = [np.array(plane.data, float) for plane in (pair.science, pair.template)]
        sigma = np.sqrt(pair.science.variance)
        results = {}
        for backend in ("cpu", "gpu"):
            choices = FourierOptions(half=8, backend=backend)
            seconds = []
            try:
                for _ in range(repeat + 1):  # the first call on a GPU compiles
                    start = time.perf_counter()
                    image = subtract_fourier(*images, None, choices).image
                    results[backend] = image.get() if backend == "gpu" else image  # waits for the GPU
                    seconds.append(time.perf_counter() - start)
            except InputError as error:
                print(f"{size}^2 {backend}: {error}")
                continue
            print(f"{size}^2 {backend}: {np.median(seconds[1:]):.3f} s wall, first {seconds[0]:.2f} s", flush=True)
        if len(results) == 2:
            apart = np.abs(results["gpu"] - results["cpu"]) / sigma
            print(f"{size}^2: GPU and CPU differ by {np.nanmax(apart):.1e} sigma at most")


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
    parser.add_argument("--fourier", type=int, nargs="+", metavar="SIZE", help="the Fourier form, on CPU and GPU")
    parser.add_argument("--real", nargs=2, metavar=("REFERENCE", "SCIENCE"), help="a pair of real frames")
    parser.add_argument("--package", metavar="PYTHON", help="with --real: the sfft package as well")
    options = parser.parse_args()
    if options.real:
        real(*options.real, options.package, options.repeat)
    elif options.fourier:
        fourier(options.fourier, options.first, options.repeat)
    elif options.time:
        timing(options)
    else:
        quality(options)


if __name__ == "__main__":
    main()
