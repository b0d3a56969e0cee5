"""Pixel maps between two WCS: this package, drizzle 3.0.0, and the writing of as many bytes, side by side.

    python benchmarks/bench_pixmap.py --size 2048 --repeat 5

Every repetition runs all candidates one after the other, and medians are printed, so that a busy machine slows all of
them alike. The limit is the time to write the map once into new memory. The error is the largest difference from
evaluating both systems on every pixel.
"""

import argparse
import os
import time

import numpy as np
from astropy import units
from astropy.coordinates import ICRS
from astropy.modeling import models
from astropy.wcs import WCS, Sip

from skyloom import __version__
from skyloom._kernels import simd_level
from skyloom.resampling import calc_pixmap


def fits_wcs(size, *, degrees=0.0, sip=False):
    """Tangent plane, 0.05 arcsec pixels; with SIP up to the third order and 3 % distortion at the corners."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"] if sip else ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = (150.0, 2.0), (size / 2, size / 2)
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    wcs.wcs.cd = 0.05 / 3600 * np.array([[-c, s], [s, c]])
    if sip:
        a, b = np.zeros((2, 4, 4))
        n = size
        a[2, 0], a[1, 1], a[0, 2], a[3, 0], a[1, 2] = 0.012 / n, -0.008 / n, 0.004 / n, 0.02 / n**2, 0.02 / n**2
        b[2, 0], b[1, 1], b[0, 2], b[0, 3], b[2, 1] = -0.004 / n, 0.008 / n, 0.01 / n, 0.02 / n**2, 0.02 / n**2
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    wcs.array_shape = (size, size)
    return wcs


def polynomial_gwcs(size):
    """Return a gwcs with a distortion of the third order and its box, and no analytic inverse."""
    import gwcs
    from gwcs.coordinate_frames import CelestialFrame, Frame2D

    x = models.Polynomial2D(3, c1_0=1, c2_0=0.012 / size, c1_1=-0.008 / size, c3_0=0.02 / size**2)
    y = models.Polynomial2D(3, c0_1=1, c0_2=0.01 / size, c1_1=0.008 / size, c0_3=0.02 / size**2)
    scale = models.Scale(-0.05 / 3600) & models.Scale(0.05 / 3600)
    centre = models.Shift(-size / 2) & models.Shift(-size / 2)
    sky = models.Pix2Sky_TAN() | models.RotateNative2Celestial(150.0, 2.0, 180.0)
    transform = centre | models.Mapping((0, 1, 0, 1)) | (x & y) | scale | sky
    detector = Frame2D(name="detector", unit=(units.pix, units.pix))
    world = CelestialFrame(reference_frame=ICRS(), name="world", unit=(units.deg, units.deg))
    wcs = gwcs.WCS([(detector, transform), (world, None)])
    wcs.bounding_box = ((-0.5, size - 0.5), (-0.5, size - 0.5))
    wcs.array_shape = (size, size)
    return wcs


def cases(size):
    """Return name -> (from, to)."""
    return {
        "TAN-SIP to TAN": (fits_wcs(size, sip=True), fits_wcs(size, degrees=3.0)),
        "TAN to TAN-SIP": (fits_wcs(size, degrees=3.0), fits_wcs(size, sip=True)),
        "gwcs to TAN": (polynomial_gwcs(size), fits_wcs(size, degrees=3.0)),
    }


def measure(pair, size, repeat):
    """Return the median seconds of each candidate, and the largest error of the default tolerance."""
    try:
        from drizzle.utils import calc_pixmap as original
    except ImportError:
        original = None

    def ours(threads, **options):
        def run():
            os.environ["SKYLOOM_NUM_THREADS"] = str(threads)
            return calc_pixmap(*pair, **options)

        return run

    candidates = {
        "1 thread": ours(1),
        "2 threads": ours(2),
        "every pixel": ours(1, tolerance=0),
        "drizzle 3.0.0": None if original is None else lambda: original(*pair),
        "write": lambda: np.ones((size, size, 2)),
    }
    seconds = {name: [] for name, run in candidates.items() if run is not None}
    results = {}
    for _ in range(repeat):
        for name, values in seconds.items():
            start = time.perf_counter()
            result = candidates[name]()
            values.append(time.perf_counter() - start)
            if name in ("1 thread", "every pixel"):
                results[name] = result
            del result
    error = np.abs(results["1 thread"] - results["every pixel"]).max()
    return {name: float(np.median(values)) for name, values in seconds.items()}, error


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2048, help="pixels on a side of the image")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    print(f"skyloom {__version__} ({simd_level()}), {args.size} x {args.size}, medians of {args.repeat}, ns/pixel")
    print(
        f"{'case':16s} {'1 thread':>9s} {'2 threads':>10s} {'every pixel':>12s} {'drizzle':>9s} {'write':>7s} "
        f"{'speed-up':>9s} {'on 2':>6s} {'error, px':>10s}"
    )
    for name, pair in cases(args.size).items():
        t, error = measure(pair, args.size, args.repeat)
        t = {k: 1e9 * v / args.size**2 for k, v in t.items()}
        peer = t.get("drizzle 3.0.0", float("nan"))
        print(
            f"{name:16s} {t['1 thread']:9.1f} {t['2 threads']:10.1f} {t['every pixel']:12.1f} {peer:9.1f} "
            f"{t['write']:7.1f} {peer / t['1 thread']:8.1f}x {peer / t['2 threads']:5.1f}x {error:10.1e}"
        )


if __name__ == "__main__":
    main()
