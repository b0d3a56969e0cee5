"""How well and how fast a template is matched and subtracted, on simulated pairs whose truth is known.

    python benchmarks/bench_subtract.py [--seeds 3] [--size 1024] [--first 1]

Each pair: stars and galaxies through two PSFs that vary over the field, a tilted sky, another gain and flux scale,
and transients of which every second one lies in a galaxy. Printed beside the bars: the scatter of difference /
sqrt(variance) on empty sky and within 3 pixels of stars brighter than 2e4 ADU, the kernel's sum over the true flux
ratio, the weighted mean error of the transients' PSF fluxes with its own uncertainty, and the processor time of one
call. Last, the time that the convolution alone takes, with a kernel of 27 x 27 pixels, image and variance together.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("SKYLOOM_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np

from simulate import simulate_pair  # (the simulator of the tests)
from skyloom.convolution import PolynomialKernel, convolve_varying, exponents
from skyloom.subtraction import subtract

BARS = {"sky": "0.95-1.05", "stars": "< 1.10", "kernel sum": "0.99-1.01", "flux bias %": "< 2", "seconds": "1-2"}


def discs(shape, table, radius, flux=0.0):
    """Tell the pixels within `radius` of the sources brighter than `flux`."""
    inside = np.zeros(shape, bool)
    for row in table[table["flux"] > flux]:
        x, y = row["x"], row["y"]
        x0, y0 = max(0, int(x - radius)), max(0, int(y - radius))
        box = np.s_[y0 : int(y + radius) + 2, x0 : int(x + radius) + 2]
        Y, X = np.mgrid[box[0].start : min(box[0].stop, shape[0]), box[1].start : min(box[1].stop, shape[1])]
        inside[box] |= (X - x) ** 2 + (Y - y) ** 2 <= radius**2
    return inside


def flux_errors(pair, result, half=8):
    """Return relative errors of the PSF fluxes of isolated transients, and their expected scatter."""
    errors, sigmas = [], []
    for source in pair.transients:
        distance = np.hypot(pair.transients["x"] - source["x"], pair.transients["y"] - source["y"])
        x, y = round(source["x"]), round(source["y"])
        box = np.s_[y - half : y + half + 1, x - half : x + half + 1]
        if np.sort(distance)[1:2].min(initial=np.inf) < 25 or not result.usable[box].all():
            continue
        psf = pair.science_psf.profile(source["x"], source["y"], source["x"] - x, source["y"] - y, half)
        flux = (psf * result.image[box]).sum() / (psf**2).sum()
        errors.append(flux / source["flux"] - 1)
        sigmas.append(np.sqrt((psf**2 * result.variance[box]).sum()) / (psf**2).sum() / source["flux"])
    return np.array(errors), np.array(sigmas)


def measure(seed, size):
    pair = simulate_pair(seed, size)
    started = time.process_time()
    result = subtract(pair.science, pair.template)
    seconds = time.process_time() - started
    shape = result.image.shape
    z = result.image / np.sqrt(np.where(result.usable, result.variance, 1))
    quiet = result.usable & ~discs(shape, pair.transients, 15)
    sources = discs(shape, pair.stars, 25) | discs(shape, pair.galaxies, 30)
    errors, sigmas = flux_errors(pair, result)
    weights = sigmas**-2
    return {
        "sky": z[quiet & ~sources].std(),
        "stars": z[quiet & discs(shape, pair.stars, 3, 2e4)].std(),
        "kernel sum": result.statistics["kernel_sum"] * pair.flux_ratio,
        "flux bias %": 100 * (errors * weights).sum() / weights.sum(),
        "+-": 100 / np.sqrt(weights.sum()),
        "order": result.statistics["spatial_order"],
        "stamps": result.statistics["n_stamps"],
        "seconds": seconds,
    }


def convolution_seconds(size, order, half=13):
    rng = np.random.default_rng(1)
    image, variance = rng.normal(size=(size, size)).astype(np.float32), np.ones((size, size), np.float32)
    planes = rng.uniform(size=(len(exponents(order)), 2 * half + 1, 2 * half + 1))
    kernel = PolynomialKernel(planes, (size / 2, size / 2), (size / 2, size / 2))
    times = []
    for _ in range(3):
        started = time.process_time()
        convolve_varying(image, kernel, variance)
        times.append(time.process_time() - started)
    return min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--size", type=int, default=1024)
    arguments = parser.parse_args()
    rows = [measure(seed, arguments.size) for seed in range(arguments.first, arguments.first + arguments.seeds)]
    print("".join(f"{name:>13s}" for name in rows[0]))
    print("".join(f"{BARS.get(name, ''):>13s}" for name in rows[0]), " (bars)")
    for row in rows:
        print("".join(f"{value:13.4g}" for value in row.values()))
    print("".join(f"{np.median([row[name] for row in rows]):13.4g}" for name in rows[0]), " (median)")
    for order in (0, 1, 2, 3):
        print(f"convolution alone, spatial order {order}: {convolution_seconds(arguments.size, order):.3f} s")


if __name__ == "__main__":
    main()
