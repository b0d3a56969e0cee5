"""What a difference finds, and how well it measures it, on simulated pairs whose truth is known.

    python benchmarks/bench_difference_truth.py [--seeds 10] [--size 1024] [--first 1]

Each pair: stars and galaxies through two PSFs that vary over the field, a tilted sky, another gain and flux scale, and
transients of which every second one lies in a galaxy. The pair goes through `skyloom.difference` as a user's would;
fluxes and detections are then compared with what was simulated. The bars are printed beside the numbers.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from simulate import simulate_pair  # (the simulator of the tests)
from skyloom.detection import find_candidates, forced_photometry
from skyloom.pipeline.difference import DifferenceOptions, difference

MARGIN = 30
"""Transients and false candidates nearer to the border are not counted: kernel and PSF reach outside there."""
MATCH = 3.0
"""A candidate within so many pixels of a transient is that transient."""


@dataclass
class Tally:
    """Numbers of all pairs together."""

    pixels: int = 0
    bright: int = 0
    found: int = 0
    found_real: int = 0
    false: int = 0
    false_real: int = 0
    pulls: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    score_mean: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def robust_std(values: np.ndarray) -> float:
    """Return the standard deviation that the median absolute deviation gives."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def isolated(table, reach: float) -> np.ndarray:
    """Tell which sources have no other transient within `reach` pixels: blends have no flux of their own."""
    distance = np.hypot(table["x"][:, None] - table["x"], table["y"][:, None] - table["y"])
    np.fill_diagonal(distance, np.inf)
    return distance.min(axis=1, initial=np.inf) > reach


def examine(seed: int, size: int, tally: Tally, *, verbose: bool) -> None:
    """Simulate one pair, subtract it, and add what is found to the tally."""
    pair = simulate_pair(seed, size)
    start = time.perf_counter()
    result = difference(pair.science, pair.template, options=DifferenceOptions(align="none"))
    candidates = find_candidates(result)
    tally.seconds.append(time.perf_counter() - start)
    inner = (slice(MARGIN, -MARGIN),) * 2
    usable = result.score.valid[inner] & (result.variance[inner] > 0)
    tally.pixels += int(usable.sum())
    tally.noise.append(robust_std((result.image[inner] / np.sqrt(np.maximum(result.variance[inner], 1e-30)))[usable]))
    significance = result.score.significance[inner][usable]
    tally.score.append(robust_std(significance))
    tally.score_mean.append(float(np.median(significance)))

    truth = pair.transients
    forced = forced_photometry(result, np.column_stack([truth["x"], truth["y"]]))
    alone = isolated(truth, 20.0) & np.isfinite(forced["flux"])
    expected = np.asarray(truth["flux"] / forced["flux_err"])
    tally.pulls += list(((forced["flux"] - truth["flux"]) / forced["flux_err"])[alone])
    tally.ratios += list((forced["flux"] / truth["flux"])[alone])
    tally.weights += list(expected[alone] ** 2)

    inside = (candidates["x"] > MARGIN) & (candidates["x"] < size - MARGIN)
    candidates = candidates[inside & (candidates["y"] > MARGIN) & (candidates["y"] < size - MARGIN)]
    distance = np.hypot(candidates["x"][:, None] - truth["x"], candidates["y"][:, None] - truth["y"])
    real = np.asarray(candidates["real"], bool)
    bright = (expected > 8) & isolated(truth, 5.0)
    near = distance < MATCH
    tally.bright += int(bright.sum())
    tally.found += int((near.any(axis=0) & bright).sum())
    tally.found_real += int((near[real].any(axis=0) & bright).sum())
    false = ~near.any(axis=1)
    tally.false += int(false.sum())
    tally.false_real += int((false & real).sum())
    if verbose:
        for row, is_false in zip(candidates, false, strict=True):
            if is_false or not row["real"]:
                print(f"  seed {seed} {'false' if is_false else 'true '} ({row['x']:.1f}, {row['y']:.1f}) "
                      f"S/N {row['snr']:.1f} star flux {row['science_flux']:.0f} {row['flag_text']}")  # fmt: skip
        for i in np.flatnonzero(bright & ~near[real].any(axis=0)):
            print(f"  seed {seed} missed ({truth['x'][i]:.1f}, {truth['y'][i]:.1f}) expected S/N {expected[i]:.1f}")


def report(tally: Tally) -> None:
    """Print the numbers beside their bars."""
    pulls, ratios, weights = (np.array(values) for values in (tally.pulls, tally.ratios, tally.weights))
    bright = weights > 15**2
    bias = np.average(ratios[bright], weights=weights[bright]) - 1
    error = 1 / np.sqrt(weights[bright].sum())
    per_million = 1e6 / tally.pixels
    rows = [
        (
            "completeness of S/N > 8, without flags",
            f"{tally.found_real / tally.bright:.1%} of {tally.bright}",
            ">= 95 %",
        ),
        ("completeness of S/N > 8, flagged or not", f"{tally.found / tally.bright:.1%}", ""),
        ("false candidates, 10^6 px, without flags", f"{tally.false_real * per_million:.2f}", "<= 3"),
        ("false candidates, 10^6 px, flagged or not", f"{tally.false * per_million:.2f}", ""),
        ("flux bias, S/N > 15, weighted mean", f"{bias:+.2%} +- {error:.2%}", "< 2 %"),
        ("flux bias, S/N > 15, median", f"{np.median(ratios[bright]) - 1:+.2%} of {bright.sum()}", "< 2 %"),
        ("pull of fluxes: mean", f"{pulls.mean():+.3f} +- {pulls.std() / np.sqrt(pulls.size):.3f}", "0"),
        ("pull of fluxes: standard deviation", f"{pulls.std():.3f}, robust {robust_std(pulls):.3f}", "1"),
        ("D / sigma: standard deviation", f"{np.mean(tally.noise):.4f}", "1 +- 0.03"),
        ("score: standard deviation", f"{np.mean(tally.score):.4f}", "1 +- 0.03"),
        ("score: median", f"{np.mean(tally.score_mean):+.4f}", "0"),
        ("seconds a pair", f"{np.median(tally.seconds):.1f}", ""),
    ]
    print(f"\n{'':44}{'skyloom':>24}   bar")
    for what, value, bar in rows:
        print(f"{what:44}{value:>24}   {bar}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="number of pairs")
    parser.add_argument("--first", type=int, default=1, help="seed of the first pair")
    parser.add_argument("--size", type=int, default=1024, help="side of the images, pixels")
    parser.add_argument("--quiet", action="store_true", help="print only the summary")
    arguments = parser.parse_args()
    tally = Tally()
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        examine(seed, arguments.size, tally, verbose=not arguments.quiet)
    report(tally)


if __name__ == "__main__":
    main()
