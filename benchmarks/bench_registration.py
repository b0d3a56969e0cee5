"""How often registration succeeds, how exact it is, how fast, and whether it ever lies; beside spalipy and astroalign.

    python benchmarks/bench_registration.py [--seeds 2] [--first 5000] [--unrelated 100] [--only NAME ...] [--no-peers]

Four parts: (1) pairs of simulated images in 37 regimes with an exactly known transform: error over the overlap, success
below 1 px, a wrong answer above; (2) unrelated lists, of which none may be accepted; (3) CPU time; (4) the real
frames that come with skyloom. Peers that are not installed are left out. The bars are printed beside the numbers.
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
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from reference.registration_sim import REGIMES, Regime, make_images, make_lists, unrelated_lists
from skyloom.data import saao_frame
from skyloom.errors import RegistrationError
from skyloom.exposure import Exposure
from skyloom.registration import detect_sources, register

Map = Callable[[np.ndarray], np.ndarray]


def ours(source: Exposure, template: Exposure) -> Map:
    return register(source, template).template_to_source


def spalipy(source: Exposure, template: Exposure) -> Map:
    """Return the map that spalipy resamples with: its defaults, all steps but the resampling."""
    from spalipy import Spalipy

    s = Spalipy(source.data.astype(float), template_data=template.data.astype(float))
    s.make_source_quadlist()
    s.make_template_quadlist()
    s.fit_affine_transform()
    s.fit_spline_transform()
    if s.alignment_failed:
        raise RuntimeError("alignment failed")
    return lambda xy: s.full_transform(np.array([xy[:, 0], xy[:, 1]])[:, :, None], 0)[:, :, 0].T


def astroalign(source: Exposure, template: Exposure) -> Map:
    import astroalign as aa

    transform, _ = aa.find_transform(source.data.astype(float), template.data.astype(float))
    return transform.inverse


@dataclass
class Tally:
    """Results of one tool in one regime."""

    errors: list[float] = field(default_factory=list)
    worst: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def text(self) -> str:
        """One cell of the table."""
        good = [e for e in self.errors if e < 1]
        wrong = len(self.errors) - len(good)
        count = len(self.errors) + self.failed
        numbers = f"{np.median(good):6.4f}" if good else "     -"
        return (
            f"{len(good)}/{count}{f' {wrong} wrong' if wrong else '':8s} {numbers} px {np.median(self.seconds):5.2f} s"
        )


def run(tool: Callable[[Exposure, Exposure], Map], pairs: list, tally: Tally) -> None:
    for source, template, truth in pairs:
        start = time.process_time()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found = tool(source, template)
        except Exception:  # noqa: BLE001 - each peer fails in its own ways, and all count the same
            tally.failed += 1
            tally.seconds.append(time.process_time() - start)
            continue
        tally.seconds.append(time.process_time() - start)
        grid = truth.grid()
        miss = np.hypot(*((found(grid) - truth(grid)) / truth.scale).T)
        rms = float(np.sqrt((miss**2).mean()))
        tally.errors.append(rms if np.isfinite(rms) else np.inf)
        tally.worst.append(float(miss.max()))


def regimes(names: list[str], seeds: range, tools: dict) -> None:
    print(f"{'regime':32s}" + "".join(f"{name:32s}" for name in tools))
    totals = {name: Tally() for name in tools}
    rich: list[float] = []
    for name in names:
        pairs = [make_images(seed, REGIMES[name]) for seed in seeds]
        row = f"{name:32s}"
        for tool, function in tools.items():
            tally = Tally()
            run(function, pairs, tally)
            row += f"{tally.text:32s}"
            totals[tool].errors += tally.errors
            totals[tool].worst += tally.worst
            totals[tool].seconds += tally.seconds
            totals[tool].failed += tally.failed
            if tool == "skyloom" and REGIMES[name].stars >= 200:
                rich += tally.errors
        print(row, flush=True)
    print(f"{'all':32s}" + "".join(f"{tally.text:32s}" for tally in totals.values()))
    mine = totals["skyloom"]
    print(
        f"skyloom: {mine.failed} failed (bar: 0), largest rms {max(mine.errors):.3f} px (bar: 0.2); with 200 stars and "
        f"more {np.mean(np.array(rich) <= 0.02):.1%} at or below 0.02 px (fewer than 200 may overlap)"
    )


def unrelated(count: int, first: int) -> None:
    odds, accepted = [], 0
    for seed in range(first, first + count):
        try:
            register(*unrelated_lists(seed))
            accepted += 1
        except RegistrationError as error:
            odds.append(error.details["log_odds"])
    print(
        f"unrelated lists of 60-3000 stars: {accepted} of {count} accepted (bar: 0); best log-odds {max(odds):.1f} "
        "(12 are needed)"
    )


def cpu(function: Callable[[], object], repeat: int = 7) -> float:
    times = []
    for _ in range(repeat):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return float(np.median(times))


def speed() -> None:
    many = make_lists(1, Regime(stars=5000, size=4096, rotation=17.0, scale=1.1))[:2]
    register(*many)
    seconds = cpu(lambda: register(*many))
    print(f"matching {len(many[0])} with {len(many[1])} stars: {1e3 * seconds:.0f} ms CPU (bar: 50)")
    source, template, _ = make_images(1, Regime(rotation=17.0))
    lists = detect_sources(source), detect_sources(template)
    both = cpu(lambda: (detect_sources(source), detect_sources(template)))
    match = cpu(lambda: register(*lists))
    print(
        f"1024 x 1024 with 500 stars: detection in both {1e3 * both:.0f} ms, matching {1e3 * match:.0f} ms CPU "
        "(bar: 250 in all)"
    )


def real_frames() -> None:
    from skyloom.io import read

    template = read(saao_frame(77))
    stars = detect_sources(template)
    for number in (27, 43, 73, 75, 93, 100, 110, 163):
        result = register(read(saao_frame(number)), stars)
        m = result.matched[np.argsort(-result.matched["flux_template"])[:100]]
        bright = float(np.sqrt(np.mean(np.hypot(m["dx"], m["dy"]) ** 2)))
        print(f"SAAO frame {number:3d}: {result} | 100 brightest: {bright:.3f} px")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first", type=int, default=5000)
    parser.add_argument("--unrelated", type=int, default=100)
    parser.add_argument("--only", nargs="*", help="regimes whose name contains one of these")
    parser.add_argument("--no-peers", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    tools: dict[str, Callable[[Exposure, Exposure], Map]] = {"skyloom": ours}
    for function in (spalipy, astroalign):
        with contextlib.suppress(ImportError):
            if not arguments.no_peers:
                __import__(function.__name__)
                tools[function.__name__] = function
    names = [n for n in REGIMES if not arguments.only or any(part in n for part in arguments.only)]
    speed()
    regimes(names, range(arguments.first, arguments.first + arguments.seeds), tools)
    if arguments.unrelated:
        unrelated(arguments.unrelated, arguments.first)
    real_frames()


if __name__ == "__main__":
    main()
