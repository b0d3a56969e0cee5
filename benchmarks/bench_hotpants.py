"""CPU time and memory of `run_hotpants`, and of the HOTPANTS binary if `--exe` names one, on the same pair.

    python benchmarks/bench_hotpants.py [--sizes 1024 2048 4096] [--exe /path/hotpants]

The options of the binary's own figures on record: r 13, rss 17, ko 2, bgo 1, one region; difference and noise. Memory
is the largest that the process had during the call, less what it had before (Linux).
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from simulate import simulate_pair
from skyloom.subtraction import run_hotpants

KEYS = {"image_fwhm": 4.2, "template_fwhm": 3.0, "image_gain": 1.5, "template_gain": 12.0, "extra": {"ko": 2, "bgo": 1}}
ON_RECORD = {1024: 4.5, 2048: 13.0, 4096: 43.2}
"""CPU s of HOTPANTS 5.1.11 alone, without reading and writing by Python."""


def pair(size):
    """Return image and template: a pair of 1024 x 1024, tiled, since stars and noise are all that matters here."""
    one = simulate_pair(1, 1024)
    times = -(-size // 1024)
    return [np.tile(e.data, (times, times))[:size, :size].copy() for e in (one.science, one.template)]


def cpu(who):
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def rss():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def peak():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def measure(call, repeats, who=resource.RUSAGE_SELF):
    """Return the least CPU and wall seconds of some calls."""
    times = []
    for _ in range(repeats):
        before, wall = cpu(who), time.perf_counter()
        call()
        times.append((cpu(who) - before, time.perf_counter() - wall))
    return min(t[0] for t in times), min(t[1] for t in times)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--exe")
    args = parser.parse_args()
    print(f"{'size':>6} {'CPU s':>8} {'ns/px':>7} {'2 thr wall s':>12} {'1 thr wall s':>12} {'bytes/px':>9} "
          f"{'binary CPU s':>13} {'ratio':>6}")  # fmt: skip
    for size in args.sizes:
        image, template = pair(size)
        call = lambda **more: run_hotpants(image, template, **KEYS, get_noise=True, **more)  # noqa: B023,E731
        os.environ["SKYLOOM_NUM_THREADS"] = "1"
        before = rss()
        call()
        memory = (peak() - before) / size**2
        seconds, one = measure(call, args.repeats)
        os.environ["SKYLOOM_NUM_THREADS"] = "2"
        _, two = measure(call, args.repeats)
        binary, note = ON_RECORD.get(size, np.nan), "on record"
        if args.exe:
            binary, _ = measure(lambda: call(_exe=args.exe), 3, resource.RUSAGE_CHILDREN)  # noqa: B023
            note = "measured"
        print(f"{size:6d} {seconds:8.3f} {seconds / size**2 * 1e9:7.0f} {two:12.3f} {one:12.3f} {memory:9.1f} "
              f"{binary:13.2f} {binary / seconds:6.1f}  ({note})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
