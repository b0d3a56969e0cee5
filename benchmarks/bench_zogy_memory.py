"""Peak memory of `run_zogy`: how much the call adds to the process, outputs included.

    python benchmarks/bench_zogy_memory.py [--size 4096] [--given]

A simulated pair of 1024 x 1024 pixels is repeated to the size; with --given the PSFs are given, else they are measured.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from simulate import simulate_pair  # (the simulator of the tests)
from skyloom.subtraction import run_zogy


def resident():
    """Memory of this process now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--given", action="store_true")
    options = parser.parse_args()
    unit = min(512, options.size)
    pair = simulate_pair(1, unit, vary=0.0, n_transients=4)
    times = options.size // unit
    image, template = (np.tile(np.array(one.data, float), (times, times)) for one in (pair.science, pair.template))
    known = {}
    if options.given:
        known = {
            "image_psf": pair.science_psf.stamp(unit / 2, unit / 2),
            "template_psf": pair.template_psf.stamp(unit / 2, unit / 2),
        }
    before, start = resident(), time.process_time()
    run_zogy(
        image, template, image_gain=pair.science.gain, template_gain=pair.template.gain,
        get_psf=True, get_Fpsf=True, **known,
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(
        f"{image.shape[0]} x {image.shape[1]}: {peak:.0f} MB at most, {before:.0f} MB before the call: it takes "
        f"{peak - before:.0f} MB; CPU {time.process_time() - start:.1f} s"
    )


if __name__ == "__main__":
    main()
