"""Noise of co-adds, end to end: predicted against the scatter of simulated realisations.

Dithered and turned exposures of different depth, with masked pixels, are co-added many times with fresh noise. Printed
are the scatter of single pixels over what the variance plane says, and the scatter of sums in circles of 1 to 10 pixels
radius over the errors from the co-add's covariances (blocks, scaled to the variance plane).
"""

from __future__ import annotations

import argparse

import numpy as np
from astropy.wcs import WCS

from skyloom.exposure import Exposure
from skyloom.resampling import circle_weights
from skyloom.stacking import CoaddOptions, coadd

RADII = np.arange(1, 11)
CASES = {
    "mean, ivm": CoaddOptions("mean", background="none", flux_scale="none"),
    "mean, ivm, pixfrac 0.7, pixel 0.6": CoaddOptions(
        "mean", 0.7, background="none", flux_scale="none", pixel_scale=0.6, rotation=0.0
    ),
    "mean, no weights": CoaddOptions("mean", weight="none", background="none", flux_scale="none"),
    "clipped, ivm": CoaddOptions(background="none", flux_scale="none"),
    "median": CoaddOptions("median", background="none", flux_scale="none"),
}


def tan(n: int, turn: float, shift: np.ndarray) -> WCS:
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [10.0, -20.0]
    wcs.wcs.cd = np.array([[-c, s], [s, c]]) / 3600
    wcs.wcs.crpix = (n + 1) / 2 + shift
    wcs.pixel_shape = (n, n)
    return wcs


def compare(name: str, options: CoaddOptions, n: int, realisations: int, seed: int = 1) -> None:
    rng = np.random.default_rng(seed)
    count = 5
    wcses = [tan(n, rng.uniform(-10, 10), rng.uniform(-4, 4, 2)) for _ in range(count)]
    depth = rng.uniform(1.0, 3.0, count)
    masks = [rng.random((n, n)) < 0.01 for _ in range(count)]
    sums, pixels, result = [], [], None
    for _ in range(realisations):
        frames = [
            Exposure(rng.normal(0, np.sqrt(v), (n, n)).astype(np.float32), np.full((n, n), v), mask, wcs=wcs)
            for v, mask, wcs in zip(depth, masks, wcses, strict=True)
        ]
        result = coadd(frames, options)
        data = result.exposure.data.astype(np.float64)
        if not sums:
            ny, nx = result.shape
            edge = int(0.25 * nx)
            places = [
                (x + rng.uniform(-1, 1), y + rng.uniform(-1, 1))
                for x in range(edge, nx - edge, 23)
                for y in range(edge, ny - edge, 23)
            ]
            circles = [[circle_weights(x, y, r) for x, y in places] for r in RADII]
            inner = np.s_[edge : ny - edge, edge : nx - edge]
        sums.append(
            [[(w * data[y0 : y0 + w.shape[0], x0 : x0 + w.shape[1]]).sum() for w, x0, y0 in row] for row in circles]
        )
        pixels.append(np.mean(data[inner] ** 2 / result.exposure.variance[inner]))
    assert result is not None
    observed = np.mean(np.square(sums), axis=0)
    variance = result.exposure.variance
    if result.covariance is not None:
        predicted = np.array(
            [[result.covariance.aperture_variance(x, y, float(r), variance) for x, y in places] for r in RADII]
        )
    else:
        predicted = result.exposure.correlation * np.array(
            [
                [(w**2 * variance[y0 : y0 + w.shape[0], x0 : x0 + w.shape[1]]).sum() for w, x0, y0 in row]
                for row in circles
            ]
        )
    ratio = np.sqrt(predicted.mean(axis=1) / observed.mean(axis=1))
    print(f"\n{name}: {realisations} realisations, {len(places)} places")
    print(f"  pixels, observed / predicted variance   {np.mean(pixels):.4f}")
    print("  radius             " + "".join(f"{r:7d}" for r in RADII))
    print("  error / scatter    " + "".join(f"{v:7.3f}" for v in ratio), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 realisations")
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--realisations", type=int, default=200)
    arguments = parser.parse_args()
    for name, options in CASES.items():
        compare(name, options, arguments.size, 20 if arguments.quick else arguments.realisations)


if __name__ == "__main__":
    main()
