"""Proper subtraction on simulated pairs: noise, fluxes, completeness, false peaks, time and memory of `run_zogy`.

    python benchmarks/bench_zogy.py [--seeds 3] [--size 1024] [--given] [--peer] [--inject 60]

Scenes: stars, galaxies and transients through two PSFs that vary over the field (see tests/simulate.py). `run_zogy`
gets images and gains, measures noise and PSFs itself (or, with --given, takes the true PSF of the field's middle); with
--peer, stdpipe's function of that name, if it is installed, gets the same images, PSFs and flux scale.

With --inject the pair is differenced again with so many more sources in the science image, which have no noise of their
own. What this adds to Fpsf, at their places, tells the bias of fluxes: the noise of both differences is the same.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import sys
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import label, map_coordinates, maximum_position

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from simulate import far_from_sources, simulate_pair  # (the simulator of the tests)
from skyloom.psf import PsfexModel
from skyloom.subtraction import run_zogy

MARGIN = 30
BINS = (3, 5, 7, 10, 20, 50)


def psf_dict(psf, size):
    """Return the PSF in the middle of the field, in PSFEx's form."""
    return PsfexModel(psf.stamp((size - 1) / 2, (size - 1) / 2)[None]).to_dict()


def near_bright_stars(pair, radius):
    y, x = np.indices(pair.science.shape)
    near = np.zeros(pair.science.shape, bool)
    for xs, ys, flux in pair.stars.iterrows("x", "y", "flux"):
        if flux > 2e4:
            near |= (x - xs) ** 2 + (y - ys) ** 2 <= radius**2
    for xs, ys in pair.transients.iterrows("x", "y"):
        near &= (x - xs) ** 2 + (y - ys) ** 2 > 15**2
    return near


def inject(pair, count, seed):
    """Return the science image with more sources, far from its stars and transients, and their x, y and flux."""
    rng = np.random.default_rng(1000 + seed)
    data = np.array(pair.science.data, float)
    size = len(data)
    taken = [(x, y) for table in (pair.stars, pair.transients) for x, y in table.iterrows("x", "y")]
    rows = []
    while len(rows) < count:
        x, y = rng.uniform(MARGIN + 20, size - MARGIN - 20, 2)
        if np.hypot(*(np.array(taken) - (x, y)).T).min() < 18:
            continue
        taken.append((x, y))
        sigma = np.sqrt(np.median(pair.science.variance))
        flux = rng.uniform(15, 50) * sigma / np.sqrt((pair.science_psf.stamp(x, y) ** 2).sum())
        ix, iy = round(x), round(y)
        data[iy - 30 : iy + 31, ix - 30 : ix + 31] += flux * pair.science_psf.profile(x, y, x - ix, y - iy, 30)
        rows.append((x, y, flux))
    return data, np.array(rows)


def injected_bias(pair, routine, known, count, seed):
    """Return the relative errors of the fluxes of injected sources, without their noise."""
    more, sources = inject(pair, count, seed)
    fluxes = [
        routine(
            data, np.array(pair.template.data, float), image_gain=pair.science.gain,
            template_gain=pair.template.gain, get_Fpsf=True, **known,
        )[2]
        for data in (more, np.array(pair.science.data, float))
    ]  # fmt: skip
    added = map_coordinates(fluxes[0] - fluxes[1], sources[:, 1::-1].T, order=3)
    return added / sources[:, 2] - 1


def peaks(score, transients, threshold=5.0):
    """Count the peaks above the threshold that are not within 4 pixels of a transient."""
    parts, count = label(score > threshold)
    places = maximum_position(score, parts, range(1, count + 1))
    xy = np.column_stack([transients["x"], transients["y"]])
    return sum(np.hypot(*(xy - (x, y)).T).min(initial=np.inf) > 4 for y, x in places)


def measure(pair, products):
    d, score, _, flux, error = products
    inside = np.zeros(d.shape, bool)
    inside[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    far, near = far_from_sources(pair) & inside, near_bright_stars(pair, 5) & inside
    b = np.where(far, d - d[far].mean(), 0)
    lag = [
        np.sum(b[1:] * b[:-1]) / np.sum(b[1:] ** 2 * (far[:-1])),
        np.sum(b[:, 1:] * b[:, :-1]) / np.sum(b[:, 1:] ** 2 * far[:, :-1]),
    ]
    rows = []
    for row in pair.transients:
        x, y = row["x"], row["y"]
        if not (MARGIN < x < d.shape[1] - MARGIN and MARGIN < y < d.shape[0] - MARGIN):
            continue
        others = np.hypot(pair.transients["x"] - x, pair.transients["y"] - y)
        if np.sort(others)[1] < 15:
            continue
        box = score[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3]
        found = map_coordinates(flux, [[y], [x]], order=3)[0]
        rows.append(
            (row["snr"], box.max() > 5, found / row["flux"] - 1, (found - row["flux"]) / error[round(y), round(x)])
        )
    return {
        "lag-1": float(np.mean(lag)),
        "S std": float(score[far].std()),
        "S star": float(score[near].std()),
        "FP": peaks(np.where(inside, score, 0), pair.transients),
        "FN": peaks(np.where(inside, -score, 0), pair.transients),
        "rows": rows,
    }


def report(name, results, seconds, megapixels):
    rows = np.array([row for result in results for row in result["rows"]], float).reshape(-1, 4)
    bright = rows[:, 0] > 15
    found = []
    for low, high in itertools.pairwise(BINS):
        here = rows[(rows[:, 0] >= low) & (rows[:, 0] < high), 1]
        found.append(f"{here.mean():.2f} ({len(here)})")
    mean = {key: np.mean([result[key] for result in results]) for key in ("lag-1", "S std", "S star", "FP", "FN")}
    bias, pulls = rows[bright, 2], rows[:, 3]
    width = 1.4826 * np.median(np.abs(pulls - np.median(pulls)))
    print(
        f"{name:12s} lag-1 {mean['lag-1']:+.4f}  S std {mean['S std']:.3f}, near stars {mean['S star']:.3f}  "
        f"false +/- per 10^6 px {mean['FP'] / megapixels:.2f} / {mean['FN'] / megapixels:.2f}  "
        f"flux bias (S/N > 15) {100 * np.mean(bias):+.2f} +- {100 * np.std(bias) / max(1, len(bias)) ** 0.5:.2f} %, "
        f"median {100 * np.median(bias):+.2f} %  pull width {width:.2f}  "
        f"completeness {' '.join(found)}  CPU {np.median(seconds):.2f} s"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--given", action="store_true", help="give the PSFs and the flux scale")
    parser.add_argument("--peer", action="store_true", help="run stdpipe as well (implies --given)")
    parser.add_argument("--inject", type=int, default=0, metavar="N", help="sources for the bias of fluxes")
    options = parser.parse_args()
    routines = {"skyloom": run_zogy}
    if options.peer:
        from stdpipe.subtraction import run_zogy as peer

        routines["stdpipe"] = peer
    results = {name: [] for name in routines}
    seconds = {name: [] for name in routines}
    biases = {name: [] for name in routines}
    for seed in range(options.first, options.first + options.seeds):
        pair = simulate_pair(seed, options.size, n_transients=round(40 * (options.size / 1024) ** 2))
        known = {}
        if options.given or options.peer:
            known = {
                "image_psf": psf_dict(pair.science_psf, options.size),
                "template_psf": psf_dict(pair.template_psf, options.size),
                "scale": pair.flux_ratio, "image_obj": pair.stars[pair.stars["flux"] > 5e3],
            }  # fmt: skip
        for name, routine in routines.items():
            start = time.process_time()
            products = routine(
                np.array(pair.science.data, float), np.array(pair.template.data, float),
                image_gain=pair.science.gain, template_gain=pair.template.gain, get_psf=True, get_Fpsf=True, **known,
            )  # fmt: skip
            seconds[name].append(time.process_time() - start)
            results[name].append(measure(pair, products))
            if options.inject:
                biases[name].append(injected_bias(pair, routine, known, options.inject, seed))
    for name in routines:
        report(name, results[name], seconds[name], (options.size - 2 * MARGIN) ** 2 / 1e6)
        if options.inject:
            means = [100 * bias.mean() for bias in biases[name]]
            every = 100 * np.concatenate(biases[name])
            print(
                f"  injected sources, S/N 15 to 50: bias {every.mean():+.3f} +- "
                f"{np.std(means) / max(1, len(means) - 1) ** 0.5:.3f} % (scatter of the pairs), by pair "
                f"{' '.join(f'{mean:+.2f}' for mean in means)}; scatter of sources {every.std():.2f} %"
            )
    print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
