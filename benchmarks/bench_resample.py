"""Resampling speed: one thread of ours, of reproject, of scipy, and a memory copy of the same planes, side by side.

Run ``python benchmarks/bench_resample.py [size]``. Ratios inside one run are what counts; each time is the best of some
repeats. Photometry of noise-free stars after a turn by 23 degrees is printed next to the speed.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["SKYLOOM_NUM_THREADS"] = "1"

import sys
import time
from collections.abc import Callable

import numpy as np
from astropy.wcs import WCS
from reproject import reproject_interp
from scipy import ndimage

from skyloom import _kernels
from skyloom.exposure import Exposure
from skyloom.resampling import SampledMap, resample, sample_map, wcs_map

ANGLE, FWHM, FLUX = 23.0, 2.5, 1e5


def best(function: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest time of some calls, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def make_wcs(n: int, angle: float, sip: float = 0.0) -> WCS:
    """Return a TAN WCS (with third-order SIP if asked for) turned by an angle, 0.5 arcsec pixels."""
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"] if sip else ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150, 20]
    wcs.wcs.crpix = [n / 2 + 0.3, n / 2 - 0.1]
    wcs.wcs.cd = 0.5 / 3600 * np.array([[-c, s], [s, c]])
    if sip:
        from astropy.wcs import Sip

        a, b = np.zeros((4, 4)), np.zeros((4, 4))
        a[2, 0], b[0, 2], a[1, 2] = sip, -sip, sip / n
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    wcs.pixel_shape = (n, n)
    return wcs


def star_field(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noise-free Gaussian stars, integrated over pixels, and their positions."""
    from scipy.special import erf

    rng = np.random.default_rng(1)
    grid = np.arange(40, n - 40, 45)
    xy = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2) + rng.uniform(-0.5, 0.5, (len(grid) ** 2, 2))
    sigma, image = FWHM / 2.3548, np.zeros((n, n))
    for x, y in xy:
        corner = np.floor([x, y]).astype(int) - 15
        profiles = [
            np.diff(0.5 * (1 + erf((np.arange(32) - 0.5 + c - p) / (sigma * np.sqrt(2)))))
            for c, p in zip(corner, (x, y), strict=True)
        ]
        image[corner[1] : corner[1] + 31, corner[0] : corner[0] + 31] += FLUX * np.outer(profiles[1], profiles[0])
    return image, xy


def photometry(image: np.ndarray, xy: np.ndarray) -> str:
    """Return bias and scatter of the flux within 3 FWHM."""
    import sep

    inner = ((xy > 40) & (xy < image.shape[0] - 40)).all(axis=1)
    flux, _, _ = sep.sum_circle(np.ascontiguousarray(image, np.float64), *xy[inner].T, 3 * FWHM, subpix=0)
    ratio = flux / FLUX - 1
    return f"bias {ratio.mean():+.1e}, scatter {ratio.std():.1e}"


def maps(n: int) -> None:
    """Time the sparse pixel map against every pixel through the WCS."""
    print(f"\ncoordinate maps, {n} x {n}")
    for name, sip in (("TAN -> TAN", 0.0), ("TAN-SIP -> TAN", 2e-6)):
        map_ = wcs_map(make_wcs(n, 0, sip), make_wcs(n, ANGLE))
        y, x = np.mgrid[:n, :n].astype(float)
        every = np.stack([x.ravel(), y.ravel()], 1)
        exact = map_(every).reshape(n, n, 2)
        full = best(lambda m=map_, xy=every: m(xy), 2)
        sparse = best(lambda m=map_: sample_map(m, (n, n)))
        error = np.abs(sample_map(map_, (n, n)) - exact).max()
        print(
            f"  {name:16s} every pixel {full * 1e9 / n**2:6.0f} ns/px, sparse {sparse * 1e9 / n**2:5.1f} ns/px "
            f"({full / sparse:4.0f}x), largest error {error:.1e} px, "
            f"{SampledMap(map_, (n, n)).evaluations} evaluations"
        )


def kernels(n: int) -> None:
    """Time the resamplers."""
    image, xy = star_field(n)
    source, target = make_wcs(n, 0), make_wcs(n, ANGLE)
    out_to_in, stars = wcs_map(target, source), wcs_map(source, target)(xy)
    data = image.astype(np.float32)
    plain = Exposure(data)
    full = Exposure(data, variance=np.ones_like(data), mask=np.random.default_rng(2).random((n, n)) < 1e-3)
    pixmap = sample_map(out_to_in, (n, n))
    rows = []
    for method in ("bilinear", "cubic", "lanczos3", "lanczos4"):
        result = resample(plain, out_to_in, (n, n), method=method)
        rows.append(
            (
                f"skyloom {method}",
                best(lambda m=method: resample(plain, out_to_in, (n, n), method=m)),
                photometry(result.data, stars),
            )
        )
    rows.append(("skyloom lanczos3 +variance+mask", best(lambda: resample(full, out_to_in, (n, n))), ""))
    rows.append(
        (
            "skyloom area overlap",
            best(lambda: resample(plain, out_to_in, (n, n), method="area"), 2),
            photometry(resample(plain, out_to_in, (n, n), method="area").data, stars),
        )
    )
    positions = np.ascontiguousarray(pixmap[..., ::-1].transpose(2, 0, 1))
    for order, name in ((1, "bilinear"), (3, "spline 3")):
        run = lambda o=order: ndimage.map_coordinates(data, positions, order=o)  # noqa: E731
        rows.append((f"scipy map_coordinates {name}, map given", best(run, 2), photometry(run(), stars)))
    for order in ("bilinear", "bicubic"):
        run = lambda o=order: reproject_interp((data, source), target, (n, n), order=o, return_footprint=False)  # noqa: E731
        rows.append((f"reproject_interp {order}", best(run, 2), photometry(np.nan_to_num(run()), stars)))
    copy = best(lambda: (data.copy(), full.mask.copy(), pixmap.copy()))
    rows.append(("memory copy of data, mask and pixmap", copy, ""))
    print(f"\nresampling {n} x {n} float32, turned by {ANGLE} degrees, {_kernels.simd_level()}, one thread")
    for name, seconds, remark in rows:
        print(f"  {name:40s} {seconds * 1e9 / n**2:7.1f} ns/px {n**2 / seconds / 1e6:8.1f} Mpix/s   {remark}")


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    maps(size)
    kernels(size)
