"""How often registration succeeds, how exact it is, and whether it ever lies; beside spalipy and astroalign.

    python benchmarks/bench_regimes.py [--seeds 5] [--first 5000] [--unrelated 1000] [--only NAME ...] [--peers]

(1) Pairs of simulated images in 37 regimes with an exactly known transform. The error of a registration is the RMS
distance from the truth on a 25 x 25 grid over the overlap, in template pixels: success below 0.2 px, wrong above 1 px.
(2) Pairs of lists that have nothing in common, of which none may be accepted.

Peers that are not installed are left out. The bars are printed beside the numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from reference.registration_sim import MORE_REGIMES, REGIMES, Truth, make_images, unrelated_lists
from skyloom.errors import RegistrationError
from skyloom.exposure import Exposure
from skyloom.registration import register

Map = Callable[[np.ndarray], np.ndarray]
Tool = Callable[[Exposure, Exposure], tuple[Map, int]]

GOOD, WRONG, EXACT = 0.2, 1.0, 0.02  # template pixels


def ours(source: Exposure, template: Exposure) -> tuple[Map, int]:
    found = register(source, template)
    return found.template_to_source, found.n_matched


def spalipy(source: Exposure, template: Exposure) -> tuple[Map, int]:
    """Return the map that spalipy resamples with: its defaults, all steps but the resampling."""
    from spalipy import Spalipy

    s = Spalipy(source.data.astype(float), template_data=template.data.astype(float))
    s.make_source_quadlist()
    s.make_template_quadlist()
    s.fit_affine_transform()
    s.fit_spline_transform()
    if s.alignment_failed:
        raise RuntimeError("alignment failed")
    return lambda xy: s.full_transform(np.array([xy[:, 0], xy[:, 1]])[:, :, None], 0)[:, :, 0].T, len(
        s.source_det_matched
    )


def astroalign(source: Exposure, template: Exposure) -> tuple[Map, int]:
    import astroalign as aa

    transform, (pairs, _) = aa.find_transform(source.data.astype(float), template.data.astype(float))
    return transform.inverse, len(pairs)


@dataclass(frozen=True)
class Trial:
    """One pair through one tool: RMS and largest error (NaN if it was refused), matched stars, CPU seconds."""

    rms: float
    worst: float
    matched: int
    seconds: float
    reason: str = ""


def try_pair(tool: Tool, source: Exposure, template: Exposure, truth: Truth) -> Trial:
    start = time.process_time()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found, matched = tool(source, template)
    except Exception as error:  # noqa: BLE001 - each peer fails in its own ways, and all count the same
        return Trial(np.nan, np.nan, 0, time.process_time() - start, f"{type(error).__name__}: {error}")
    seconds = time.process_time() - start
    grid = truth.grid()
    miss = np.hypot(*((found(grid) - truth(grid)) / truth.scale).T)
    miss = np.where(np.isfinite(miss), miss, np.inf)
    return Trial(float(np.sqrt((miss**2).mean())), float(miss.max()), matched, seconds)


def cell(trials: list[Trial]) -> str:
    rms = np.array([t.rms for t in trials])
    wrong = int((rms > WRONG).sum())
    text = f"{int((rms <= GOOD).sum())}/{len(rms)}{f' {wrong} wrong' if wrong else ''}"
    accepted = rms[np.isfinite(rms)]
    numbers = f"{np.median(accepted):7.4f} {accepted.max():7.4f}" if len(accepted) else "      -       -"
    return f"{text:14s}{numbers} {np.median([t.seconds for t in trials]):6.2f}"


def regimes(names: list[str], seeds: range, tools: dict[str, Tool]) -> None:
    print(f"{'regime':32s}" + "".join(f"{name + ': good, median, max px, CPU s':40s}" for name in tools))
    everything: dict[str, list[Trial]] = {name: [] for name in tools}
    for name in names:
        rows: dict[str, list[Trial]] = {tool: [] for tool in tools}
        for seed in seeds:
            pair = make_images(seed, (REGIMES | MORE_REGIMES)[name])
            for tool, function in tools.items():
                rows[tool].append(try_pair(function, *pair))
        print(f"{name:32s}" + "".join(f"{cell(trials):40s}" for trials in rows.values()), flush=True)
        for seed, trial in zip(seeds, rows["skyloom"], strict=True):
            limit = EXACT if trial.matched >= 200 else GOOD
            if not trial.rms <= limit:
                print(f"    seed {seed}: rms {trial.rms:.4f}, {trial.matched} matched {trial.reason}")
        for tool, trials in rows.items():
            everything[tool] += trials
    print(f"{'all':32s}" + "".join(f"{cell(trials):40s}" for trials in everything.values()))
    mine = everything["skyloom"]
    rms = np.array([t.rms for t in mine])
    rich = np.array([t.rms for t in mine if t.matched >= 200])
    print(f"skyloom succeeded in {(rms <= GOOD).mean():.1%} of {len(rms)} pairs (bar: 99 %)")
    print(f"largest rms of an accepted pair: {np.nanmax(rms):.3f} px (bar: 0.2)")
    print(f"largest rms with 200 matched stars or more: {rich.max() if len(rich) else 0:.4f} px (bar: 0.02)")


def unrelated(count: int, first: int) -> None:
    odds, accepted = [0.0], 0
    start = time.process_time()
    for seed in range(first, first + count):
        try:
            register(*unrelated_lists(seed))
            accepted += 1
            print(f"    seed {seed} was accepted")
        except RegistrationError as error:
            odds.append(error.details["log_odds"])
    print(
        f"unrelated lists of 60-3000 stars: {accepted} of {count} accepted (bar: 0); best log-odds {max(odds):.1f} "
        f"(12 are needed); {(time.process_time() - start) / count:.2f} s CPU each"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=5000)
    parser.add_argument("--unrelated", type=int, default=1000)
    parser.add_argument("--only", nargs="*", help="regimes whose name contains one of these")
    parser.add_argument("--peers", action="store_true", help="run spalipy and astroalign too")
    parser.add_argument("--more", action="store_true", help="harder regimes instead of the 37")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    tools: dict[str, Tool] = {"skyloom": ours}
    for function in (spalipy, astroalign):
        with contextlib.suppress(ImportError):
            if arguments.peers:
                __import__(function.__name__)
                tools[function.__name__] = function
    known = MORE_REGIMES if arguments.more else REGIMES
    names = [n for n in known if not arguments.only or any(part in n for part in arguments.only)]
    if arguments.seeds:
        regimes(names, range(arguments.first, arguments.first + arguments.seeds), tools)
    if arguments.unrelated:
        unrelated(arguments.unrelated, arguments.first)


if __name__ == "__main__":
    main()
