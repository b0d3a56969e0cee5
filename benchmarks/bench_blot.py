"""Blot: this package, drizzle 3.0.0 and a plain memory copy of the same bytes, side by side.

    python benchmarks/bench_blot.py --size 2048 --repeat 5

Every repetition runs all candidates one after the other, and medians are printed, so that a busy machine slows all of
them alike. The limit is the time to copy what has to be moved at least once: pixmap and image in, result out. The
largest difference to the original is printed for positions that it treats well (the polynomials: float32 rounding and
its float32 coordinates; Lanczos: it does not normalise).
"""

import argparse
import os
import time

import numpy as np

from bench_drizzle import pixel_map
from skyloom import __version__
from skyloom._kernels import simd_level
from skyloom.resampling import blot_image

METHODS = ("nearest", "linear", "poly3", "poly5", "lanczos3", "lanczos5")


def ours(threads):
    def run(image, pixmap, interp):
        os.environ["SKYLOOM_NUM_THREADS"] = str(threads)
        return blot_image(image, pixmap, interp=interp)

    return run


def reference():
    try:
        from drizzle.resample import blot_image as original
    except ImportError:
        return None
    return lambda image, pixmap, interp: original(image, pixmap, interp=interp)


def measure(size, repeat, method, dtype):
    """Return the median seconds of each candidate, and the largest difference to the original."""
    y, x = np.mgrid[:size, :size] / size
    image = (100 + 50 * np.sin(40 * x) * np.cos(30 * y)).astype(dtype)
    pixmap = pixel_map(size, 3.0, 1.0)
    pixmap[(pixmap > size - 4).any(axis=2)] = -1  # the original reads beyond the image there, and may crash
    moved = pixmap.nbytes + image.nbytes + 4 * size * size
    source, target = np.ones(moved // 2, np.uint8), np.zeros(moved // 2, np.uint8)
    candidates = {
        "1 thread": ours(1),
        "2 threads": ours(2),
        "drizzle 3.0.0": reference() if dtype == np.float32 else None,  # it refuses float64
        "copy": lambda *_: np.copyto(target, source),
    }
    seconds = {name: [] for name, run in candidates.items() if run is not None}
    results = {}
    for _ in range(repeat):
        for name, values in seconds.items():
            start = time.perf_counter()
            results[name] = candidates[name](image, pixmap, method)
            values.append(time.perf_counter() - start)
    difference = np.nan
    if "drizzle 3.0.0" in results:
        difference = np.abs(results["1 thread"] - results["drizzle 3.0.0"])[8:-8, 8:-8].max()
    return {name: float(np.median(values)) for name, values in seconds.items()}, difference


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2048, help="pixels on a side of image and result")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--method", choices=METHODS, action="append", help="only this one; may be repeated")
    args = parser.parse_args()
    print(f"skyloom {__version__} ({simd_level()}), {args.size} x {args.size}, medians of {args.repeat}, ns/pixel")
    print(
        f"{'case':18s} {'1 thread':>9s} {'2 threads':>10s} {'drizzle':>9s} {'copy':>7s} {'speed-up':>9s} {'on 2':>6s} "
        f"{'x copy':>7s} {'difference':>11s}"
    )
    for dtype in (np.float32, np.float64):
        for method in args.method or METHODS:
            seconds, difference = measure(args.size, args.repeat, method, dtype)
            t = {name: 1e9 * value / args.size**2 for name, value in seconds.items()}
            peer = t.get("drizzle 3.0.0", float("nan"))
            print(
                f"{method + ' ' + np.dtype(dtype).name:18s} {t['1 thread']:9.1f} {t['2 threads']:10.1f} {peer:9.1f} "
                f"{t['copy']:7.1f} {peer / t['1 thread']:8.1f}x {peer / t['2 threads']:5.1f}x "
                f"{t['1 thread'] / t['copy']:6.1f}x {difference:11.1e}"
            )


if __name__ == "__main__":
    main()
