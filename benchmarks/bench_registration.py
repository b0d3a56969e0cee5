"""How long registration takes, beside its bars and spalipy.

    python benchmarks/bench_registration.py [--peers] [--large]

CPU times, one thread; the peer runs in the same process. How often it succeeds and how exact it is:
``bench_regimes.py``; on real frames: ``bench_registration_real.py``.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["SKYLOOM_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from reference.registration_sim import Regime, make_images, make_lists
from skyloom.exposure import Exposure
from skyloom.noise import with_variance
from skyloom.registration import detect_sources, register
from skyloom.resampling import resample


def cpu(function: Callable[[], object], repeat: int = 7) -> float:
    times = []
    for _ in range(repeat):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return float(np.median(times))


def matching() -> None:
    for what, regime in (
        ("rotation, scale 1.1", Regime(stars=6000, size=4096, rotation=17.0, scale=1.1)),
        ("rotation, distortion 20 px", Regime(stars=5300, size=4096, rotation=17.0, distortion=20.0)),
    ):
        seconds = []
        for seed in range(5):
            source, template, _ = make_lists(seed, regime, missing=0.05)
            seconds.append(cpu(lambda lists=(source, template): register(*lists)))
        print(
            f"matching {len(source)} with {len(template)} stars, {what}: median {1e3 * np.median(seconds):.0f} ms, "
            f"longest {1e3 * max(seconds):.0f} ms (bar: 50)"
        )


def small() -> None:
    source, template, _ = make_images(1, Regime(rotation=17.0))
    lists = detect_sources(source), detect_sources(template)
    both = cpu(lambda: (detect_sources(source), detect_sources(template)))
    whole = cpu(lambda: register(source, template))
    print(
        f"1024 x 1024, {len(lists[0])} and {len(lists[1])} stars: detection in both {1e3 * both:.0f} ms, "
        f"the whole registration {1e3 * whole:.0f} ms (bar: 250)"
    )


def aligned(source: Exposure, template: Exposure) -> Exposure:
    """Return the source on the template's grid with variance and mask, from nothing but the pixels."""
    found = register(source, template)
    return resample(with_variance(source), found.template_to_source, template.shape)


def whole_chain(size: int, stars: int, peers: bool) -> None:
    source, template, _ = make_images(2, Regime(stars=stars, size=size, rotation=2.0, distortion=4.0))
    # float32, as images come out of files; the peer turns all into float64 itself
    source, template = (one.replace(data=one.data.astype(np.float32)) for one in (source, template))
    mine = cpu(lambda: aligned(source, template), 3)
    print(f"{size} x {size}, {stars} stars, detection to aligned data, variance and mask: {mine:.2f} s")
    if peers:
        from spalipy import Spalipy

        theirs = cpu(lambda: Spalipy(source.data.astype(float), template_data=template.data.astype(float)).align(), 1)
        print(f"    spalipy, data only: {theirs:.1f} s: {theirs / mine:.0f} times as long (bar: 12)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true", help="run spalipy too")
    parser.add_argument("--large", action="store_true", help="4096 x 4096 pixels too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    matching()
    small()
    whole_chain(1024, 500, arguments.peers)
    if arguments.large:
        whole_chain(4096, 5000, arguments.peers)


if __name__ == "__main__":
    main()
