"""What native differences are worth on simulated scenes of many kinds, without any tuning per scene.

    python benchmarks/bench_difference_scenes.py [--seeds 3] [--size 1024] [--scenes equal-depth crowded-10000 ...]

Columns, means over the seeds: standard deviation (robust) of difference / error on the sky, and (plain) within 3 pixels
of stars above 2e4 ADU; of the score on the sky; peaks above 5 and below -5 sigma per 10^6 pixels that are no transient;
weighted mean error of the fluxes of transients above S/N 15, with its own uncertainty, and their pull; completeness at
5 sigma for transients of (true, science sky) S/N 5-7, 7-10, 10-20; the convolved image and the kernel's order; CPU
seconds of all after the simulation. The first row are the bars; the second is the best that any of seven runs of
HOTPANTS 5.1.11, ZOGY and SFFT through stdpipe 0.4.1 had on such pairs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np
from scipy import ndimage

from bench_difference_truth import isolated, robust_std
from simulate import SCIENCE, TEMPLATE, simulate_pair
from skyloom.detection import forced_photometry
from skyloom.pipeline.difference import DifferenceOptions, difference
from skyloom.subtraction import AlardLuptonOptions

MARGIN = 30
SHALLOW = replace(TEMPLATE, gain=1.5, read_noise=6.0)
SCENES = {
    "reference": {},
    "equal-depth": {"template": SHALLOW},
    "template-worse": {"template": replace(TEMPLATE, fwhm=5.2)},
    "worse-equal-depth": {"template": replace(SHALLOW, fwhm=5.2)},
    "same-seeing": {"template": replace(TEMPLATE, fwhm=4.2, shear=(-0.03, 0.03))},
    "sparse-100": {"n_stars": 100, "n_galaxies": 10},
    "crowded-3000": {"n_stars": 3000},
    "crowded-10000": {"n_stars": 10000},
    "crowded-equal-depth": {"n_stars": 3000, "template": SHALLOW},
    "saturation": {"saturation": 6000.0},
    "gradients": {"science": replace(SCIENCE, tilt=(60.0, -40.0)), "template": replace(TEMPLATE, tilt=(-20.0, 30.0))},
    "colour-terms": {"colour": 0.03},
    "odd-shape": {"crop": (701, 1023)},
    "cosmic-rays": {"cosmic_rays": 0.01},
}
"""What differs from the simulator's defaults."""
BARS = ["0.98-1.02", "<= 1.05", "0.98-1.02", "<= 2", "<= 2", "< 0.5", "", "0.97-1.05", "0.60", "1.00", "1.00"]
BEST = ["0.956", "1.011", "0.980", "0", "0", "0.0", "", "1.02", "0.60", "1.00", "1.00"]
NAMES = ["Z sky", "Z star", "S sky", "false +", "false -", "bias %", "+-", "pull", "5-7", "7-10", "10-20"]


def make(seed, size, crop=None, cosmic_rays=0.0, **changes):
    """Return a pair, and the science pixels hit by cosmic rays, whose share is `cosmic_rays`; `crop` cuts it."""
    pair = simulate_pair(seed, size, n_transients=round(100 * (size / 1024) ** 2), **changes)
    if crop is not None:
        ny, nx = (min(side, size) for side in crop)
        cut = [
            exposure.replace(
                data=exposure.data[:ny, :nx], variance=exposure.variance[:ny, :nx], mask=exposure.mask[:ny, :nx]
            )
            for exposure in (pair.science, pair.template)
        ]
        kept = {
            name: table[(table["x"] < nx - 1) & (table["y"] < ny - 1)]
            for name, table in (("stars", pair.stars), ("galaxies", pair.galaxies), ("transients", pair.transients))
        }
        pair = replace(pair, science=cut[0], template=cut[1], **kept)
    if cosmic_rays:
        rng = np.random.default_rng(seed)
        data = pair.science.data.copy()
        hit = rng.random(data.shape) < cosmic_rays
        data[hit] += np.exp(rng.uniform(np.log(100), np.log(2e4), hit.sum())).astype(np.float32)
        pair = replace(pair, science=pair.science.replace(data=data))
        return pair, hit
    return pair, np.zeros(pair.science.shape, bool)


def regions(pair):
    """Return the empty sky, and the pixels within 3 of bright stars."""
    ny, nx = pair.science.shape
    y, x = np.mgrid[:ny, :nx]
    inner = np.zeros((ny, nx), bool)
    inner[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    near, busy = np.zeros((ny, nx), bool), np.zeros((ny, nx), bool)

    def disc(plane, source, radius, value=True):
        box = np.s_[
            max(0, int(source["y"] - radius)) : int(source["y"] + radius) + 2,
            max(0, int(source["x"] - radius)) : int(source["x"] + radius) + 2,
        ]
        plane[box][np.hypot(x[box] - source["x"], y[box] - source["y"]) < radius] = value

    for star in pair.stars:
        disc(busy, star, 8)
        if star["flux"] > 2e4:
            disc(near, star, 3)
    for galaxy in pair.galaxies:
        disc(busy, galaxy, 15)
    for source in pair.transients:
        disc(busy, source, 12)
        disc(near, source, 12, False)
    return inner & ~busy, inner & near


def judge(pair, hit, options):
    """Subtract a pair and return the columns."""
    result = difference(pair.science, pair.template, options=options)
    sky, near = regions(pair)
    usable = result.score.valid & (result.variance > 0)
    if hit.any():  # on and around cosmic rays there is signal
        sky, near = sky & ~ndimage.binary_dilation(hit, iterations=3), near & ~hit
    z = result.image / np.sqrt(np.where(result.variance > 0, result.variance, 1))
    score = np.where(result.score.valid, result.score.significance, 0)
    truth = pair.transients
    inner = np.zeros(z.shape, bool)
    inner[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    false = []
    for sign in (1, -1):
        peaks = (sign * score > 5) & (sign * score == ndimage.maximum_filter(sign * score, 5)) & inner
        y, x = np.nonzero(peaks)
        known = (np.hypot(x[:, None] - truth["x"], y[:, None] - truth["y"]) < 4).any(axis=1)
        false.append(1e6 * (~known).sum() / (inner & usable).sum())
    forced = forced_photometry(result, np.column_stack([truth["x"], truth["y"]]))
    good = isolated(truth, 20.0) & np.isfinite(np.asarray(forced["flux"], float))
    expected = np.where(good, truth["flux"] / forced["flux_err"], 0)
    errors = np.where(good, (forced["flux"] - truth["flux"]) / forced["flux_err"], 0)
    bright = expected > 15
    weight = expected[bright] ** 2
    bias = np.sum(weight * (forced["flux"] / truth["flux"] - 1)[bright]) / weight.sum()
    inside = isolated(truth, 8.0) & (truth["x"] > MARGIN) & (truth["y"] > MARGIN)
    inside &= (truth["x"] < z.shape[1] - MARGIN) & (truth["y"] < z.shape[0] - MARGIN)
    found = np.array(
        [score[max(0, round(y) - 2) : round(y) + 3, max(0, round(x) - 2) : round(x) + 3].max(initial=0) > 5
         for x, y in truth.iterrows("x", "y")]
    )  # fmt: skip
    counts = [
        (found[inside & (truth["snr"] >= low) & (truth["snr"] < high)].sum(),
         (inside & (truth["snr"] >= low) & (truth["snr"] < high)).sum())
        for low, high in ((5, 7), (7, 10), (10, 20))
    ]  # fmt: skip
    at_stars = np.std(z[near & usable]) if (near & usable).any() else np.nan
    fluxes = [100 * bias, 100 / np.sqrt(weight.sum()), robust_std(errors[good])]
    numbers = [robust_std(z[sky & usable]), at_stars, robust_std(score[sky & usable]), *false, *fluxes]
    return numbers, counts, result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--scenes", nargs="+", default=list(SCENES), choices=list(SCENES))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    options = DifferenceOptions(align="none", subtraction=AlardLuptonOptions())
    print(f"{'':20}" + "".join(f"{name:>10}" for name in NAMES) + "   way, order; CPU s")
    for name, row in (("bars", BARS), ("best peer", BEST)):
        print(f"{name:20}" + "".join(f"{value:>10}" for value in row))
    for scene in arguments.scenes:
        rows, counts, ways, seconds = [], [], [], []
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            pair, hit = make(seed, arguments.size, **SCENES[scene])
            start = time.process_time()
            numbers, count, result = judge(pair, hit, options)
            rows.append(numbers)
            counts.append(count)
            ways.append(f"{result.subtraction.convolved[0]}{result.diagnostics['spatial_order']}")
            seconds.append(time.process_time() - start)
        mean = np.mean(rows, axis=0)
        weights = np.array([row[6] for row in rows]) ** -2.0
        mean[5], mean[6] = np.average([row[5] for row in rows], weights=weights), weights.sum() ** -0.5
        found = np.sum(counts, axis=0)
        cells = [f"{value:10.3f}" for value in mean] + [f"{a:6d}/{b:<3d}" for a, b in found]
        print(f"{scene:20}" + "".join(cells) + f"   {' '.join(ways)}; {np.median(seconds):.2f}", flush=True)


if __name__ == "__main__":
    main()
