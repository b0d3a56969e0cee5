"""Drizzle: this package, drizzle 3.0.0 and a plain memory copy of the same bytes, side by side.

    python benchmarks/bench_drizzle.py --size 2048 --repeat 5

Every repetition runs all candidates one after the other, and medians are printed, so that a busy machine slows all of
them alike. The limit is the time to copy what has to be moved at least once: inputs in, outputs in and out.
"""

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np

from skyloom import __version__
from skyloom._kernels import simd_level
from skyloom.resampling import Drizzle


def pixel_map(size, degrees, scale):
    """Rotate about the middle, with a SIP-like distortion of about 1 % at the corners."""
    y, x = np.mgrid[:size, :size].astype(float)
    half = (size - 1) / 2
    u, v = (x - half) / half, (y - half) / half
    du, dv = half * (u + 3e-3 * u * u + 2e-3 * u**3 + 1e-3 * u * v * v), half * (v + 2e-3 * u * v + 2e-3 * v**3)
    c, s = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))
    centre = scale * half
    return np.dstack([c * du - s * dv + centre, s * du + c * dv + centre])


CASES = {
    "3 deg": {"degrees": 3.0},
    "3 deg, pixfrac 0.6": {"degrees": 3.0, "pixfrac": 0.6},
    "45 deg": {"degrees": 45.0},
    "90 deg": {"degrees": 90.0},
    "3 deg, 3 x data2 + dq": {"degrees": 3.0, "extra": True},
    "3 deg, 2 x finer": {"degrees": 3.0, "scale": 2.0},
    "point": {"degrees": 3.0, "kernel": "point"},
    "turbo": {"degrees": 3.0, "kernel": "turbo"},
    "gaussian": {"degrees": 3.0, "kernel": "gaussian"},
    "lanczos2": {"degrees": 3.0, "kernel": "lanczos2"},
    "lanczos2, 2 x finer": {"degrees": 3.0, "kernel": "lanczos2", "scale": 2.0},
    "lanczos3": {"degrees": 3.0, "kernel": "lanczos3"},
    "lanczos3, 2 x finer": {"degrees": 3.0, "kernel": "lanczos3", "scale": 2.0},
}


def ours(threads):
    def run(shape, image, kernel, options):
        os.environ["SKYLOOM_NUM_THREADS"] = str(threads)
        Drizzle(kernel, out_shape=shape).add_image(image, 1.0, **options)

    return run


def reference():
    try:
        from drizzle.resample import Drizzle as Reference
    except ImportError:
        return None
    return lambda shape, image, kernel, options: Reference(kernel, out_shape=shape).add_image(image, 1.0, **options)


def measure(size, repeat, *, degrees, scale=1.0, pixfrac=1.0, extra=False, kernel="square"):
    """Return the median seconds of each candidate."""
    rng = np.random.default_rng(1)
    image, weight = rng.normal(100, 10, (2, size, size)).astype(np.float32)
    weight = np.abs(weight) / 100
    shape = (int(size * scale), int(size * scale))
    options = {"pixmap": pixel_map(size, degrees, scale), "weight_map": weight, "pixfrac": pixfrac}
    options["pixel_scale_ratio"] = 1 / scale
    if extra:
        options |= {"data2": [weight] * 3, "dq": (weight > 1.2).astype(np.uint32)}
    n_outputs = 3 + (4 if extra else 0)
    moved = options["pixmap"].nbytes + (2 + (4 if extra else 0)) * image.nbytes + n_outputs * 8 * shape[0] * shape[1]
    source, target = np.ones(moved // 2, np.uint8), np.zeros(moved // 2, np.uint8)
    candidates = {
        "1 thread": ours(1),
        "2 threads": ours(2),
        "drizzle 3.0.0": reference(),
        "copy": lambda *_: np.copyto(target, source),
    }
    seconds = {name: [] for name, run in candidates.items() if run is not None}
    for _ in range(repeat):
        for name, values in seconds.items():
            start = time.perf_counter()
            candidates[name](shape, image, kernel, options)
            values.append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def peak_kib():
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def memory(size):
    """Return what one image on two threads takes beyond inputs and outputs, as a fraction of the outputs."""
    image = np.ones((size, size), np.float32)
    pixmap = pixel_map(size, 3.0, 1.0)
    ours(2)((256, 256), image[:256, :256].copy(), "square", {"pixmap": pixmap[:256, :256].copy()})  # threads, modules
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is in use now
    before = peak_kib()
    ours(2)(image.shape, image, "square", {"pixmap": pixmap, "weight_map": image})
    outputs = 3 * 4 * size**2 / 1024
    return (peak_kib() - before - outputs) / outputs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2048, help="pixels on a side of the input")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--case", choices=list(CASES), action="append", help="only this case; may be repeated")
    parser.add_argument("--memory", action="store_true", help="only the memory that a drizzle takes (Linux)")
    args = parser.parse_args()
    if args.memory:
        print(f"{args.size} x {args.size}, two threads: {100 * memory(args.size):.1f} % of the outputs beyond them")
        return
    warnings.filterwarnings("ignore", "Kernel ")  # that some do not conserve flux
    print(
        f"skyloom {__version__} ({simd_level()}), {args.size} x {args.size} float32, medians of {args.repeat}, ns/pixel"
    )
    print(
        f"{'case':24s} {'1 thread':>9s} {'2 threads':>10s} {'drizzle':>9s} {'copy':>7s} {'speed-up':>9s} {'on 2':>6s}"
    )
    for name in args.case or CASES:
        t = {k: 1e9 * v / args.size**2 for k, v in measure(args.size, args.repeat, **CASES[name]).items()}
        peer = t.get("drizzle 3.0.0", float("nan"))
        print(
            f"{name:24s} {t['1 thread']:9.1f} {t['2 threads']:10.1f} {peer:9.1f} {t['copy']:7.1f} "
            f"{peer / t['1 thread']:8.1f}x {peer / t['2 threads']:5.1f}x"
        )


if __name__ == "__main__":
    main()
