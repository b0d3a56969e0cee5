"""Statistics of differences by `run_hotpants` against the truth of simulated pairs: several seeds and options.

    python benchmarks/bench_hotpants_quality.py [--seeds 1 2 3] [--size 1024] [--exe /path/hotpants]

Columns: robust deviation of difference / noise on the sky, and its deviation within 3 pixels of stars above 2e4 ADU
(both should be 1); robust deviation of the matched filter with weights 1 / noise^2 on the sky (1 where the template is
deep); peaks above 5 and below -5 per image that are no transients; bias and pull of PSF fluxes of transients above S/N
15.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.signal import fftconvolve

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from simulate import TEMPLATE, simulate_pair
from skyloom.subtraction import run_hotpants

METHODS = {
    "stdpipe's defaults": {},
    "ko=2 bgo=1": {"ko": 2, "bgo": 1},
    "ko=2 bgo=1 unweighted": {"ko": 2, "bgo": 1, "fit": "hotpants"},
    "ko=2 bgo=1, 2x2 regions": {"ko": 1, "bgo": 1, "nrx": 2, "nry": 2, "nsx": 6, "nsy": 6},
}
MARGIN = 30


def robust(values):
    return 1.4826 * np.median(np.abs(values - np.median(values)))


def judge(pair, diff, noise):
    """Return the statistics of the columns."""
    size = diff.shape[0]
    y, x = np.mgrid[:size, :size]
    inner = np.zeros(diff.shape, bool)
    inner[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    near = np.zeros(diff.shape, bool)
    busy = np.zeros(diff.shape, bool)
    for star in pair.stars:
        box = np.s_[
            max(0, int(star["y"]) - 15) : int(star["y"]) + 16, max(0, int(star["x"]) - 15) : int(star["x"]) + 16
        ]
        r = np.hypot(x[box] - star["x"], y[box] - star["y"])
        near[box] |= (r < 3) & (star["flux"] > 2e4)
        busy[box] |= r < 8
    for galaxy in pair.galaxies:
        busy |= np.hypot(x - galaxy["x"], y - galaxy["y"]) < 15
    for source in pair.transients:
        away = np.hypot(x - source["x"], y - source["y"]) > 12
        near &= away
        busy |= ~away
    z = np.divide(diff, noise, out=np.zeros_like(diff), where=noise > 0)
    psf = pair.science_psf.stamp(size / 2, size / 2)[::-1, ::-1]
    weight = np.divide(1, noise.astype(float) ** 2, out=np.zeros(diff.shape), where=noise > 0)
    score = fftconvolve(weight * diff, psf, mode="same")
    score /= np.sqrt(np.maximum(fftconvolve(weight, psf**2, mode="same"), 1e-12))
    false = []
    for sign in (1, -1):
        peaks = (sign * score > 5) & (sign * score == ndimage.maximum_filter(sign * score, 5)) & inner
        py, px = np.nonzero(peaks)
        known = [np.hypot(px - s["x"], py - s["y"]) < 4 for s in pair.transients] or [np.zeros(len(px), bool)]
        false.append(int((~np.any(known, axis=0)).sum()))
    ratios, pulls = [], []
    for source in pair.transients:
        sx, sy = round(source["x"]), round(source["y"])
        if source["snr"] < 15 or not (MARGIN < sx < size - MARGIN and MARGIN < sy < size - MARGIN):
            continue
        box = np.s_[sy - 10 : sy + 11, sx - 10 : sx + 11]
        shape = pair.science_psf.profile(source["x"], source["y"], source["x"] - sx, source["y"] - sy, 10)
        flux = (diff[box] * shape).sum() / (shape**2).sum()
        sigma = np.sqrt((noise[box].astype(float) ** 2 * shape**2).sum()) / (shape**2).sum()
        ratios.append(flux / source["flux"] - 1)
        pulls.append((flux - source["flux"]) / sigma)
    sky = inner & ~busy & (noise > 0)
    return [robust(z[sky]), np.std(z[near & inner & (noise > 0)]), robust(score[sky]), *false,
            100 * np.mean(ratios), np.std(pulls)]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--exe")
    args = parser.parse_args()
    print(f"{'':28} {'Z sky':>7} {'Z star':>7} {'S sky':>7} {'FP':>6} {'FN':>6} {'bias %':>7} {'pull':>6}")
    scenes = {"deep template": {}, "equal depth": {"template": TEMPLATE.__class__(3.0, 1.5, 180.0, 6.0, scale=0.8)}}
    for scene, changes in scenes.items():
        print(scene)
        pairs = [simulate_pair(seed, args.size, **changes) for seed in args.seeds]
        for name, extra in METHODS.items():
            rows = []
            for pair in pairs:
                diff, noise = run_hotpants(
                    pair.science.data, pair.template.data, err=np.sqrt(pair.science.variance),
                    template_err=np.sqrt(pair.template.variance), image_fwhm=4.2, template_fwhm=3.0, image_gain=1.5,
                    template_gain=pair.template.gain, extra=extra, get_noise=True, _exe=args.exe,
                )  # fmt: skip
                rows.append(judge(pair, diff, noise))
            values = np.mean(rows, axis=0)
            print(f"  {name:26} " + " ".join(f"{v:7.3f}" for v in values[:3]) +
                  f" {values[3]:6.1f} {values[4]:6.1f} {values[5]:7.2f} {values[6]:6.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
