"""Mosaic of many exposures within a memory budget: peak memory, and time against the number of exposures.

Exposures with SCI, ERR and DQ (stars, noise, cosmic rays, dithered and turned over a field) are made in a temporary
folder. Each run is a process of its own: its peak resident memory is what the system counted, the interpreter and all
libraries included. The budget is that of the process, too. At the end the result of the smallest budget is compared
with one without a budget, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

RUN = """
import json, resource, sys, time
from skyloom import coadd
from skyloom.stacking import CoaddOptions
job = json.loads(sys.argv[1])
start = time.perf_counter()
grid = job["grid"]
options = CoaddOptions(job["method"], memory=job["memory"], overwrite=True)
result = coadd(job["files"], options, wcs=grid, output=job["output"])
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"rss": used.ru_maxrss * 1024, "cpu": used.ru_utime + used.ru_stime,
                  "wall": time.perf_counter() - start, "rejected": sum(result.n_rejected)}))
"""
PLANES = "SCI", "ERR", "DQ", "WHT", "CTX", "EXPTIME", "COVAR"


def tan(n: int, side: float, x: float, y: float, turn: float) -> WCS:
    """Return a tangent plane of 0.2 arcsec pixels whose middle lies x, y pixels from that of the field."""
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.cd = side / 3600 * np.array([[-c, s], [s, c]])
    wcs.wcs.crpix = np.array([(n + 1) / 2, (n + 1) / 2]) - np.array([[c, s], [-s, c]]) @ [x, y]
    wcs.pixel_shape = (n, n)
    return wcs


def make(folder: Path, count: int, n: int, grid: int, seed: int = 1) -> list[str]:
    """Write exposures of n x n pixels, spread over a field of `grid` pixels."""
    rng = np.random.default_rng(seed)
    field = tan(grid, 0.2, 0, 0, 0)
    header = field.to_header()
    header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = 2, grid, grid
    header.totextfile(folder / "grid.hdr")
    stars = rng.uniform(0, grid, (grid * grid // 4000, 2))
    flux = 10 ** rng.uniform(2.5, 5, len(stars))
    sky_positions = field.wcs_pix2world(stars, 0)
    v, u = np.mgrid[-8:9, -8:9]
    reach = (grid - n) / 2
    files = []
    for k in range(count):
        wcs = tan(n, 0.2, *rng.uniform(-reach, reach, 2), rng.uniform(-3, 3))
        level = rng.uniform(80, 120)
        image = rng.normal(level, np.sqrt(level), (n, n)).astype(np.float32)
        for (x, y), f in zip(wcs.wcs_world2pix(sky_positions, 0), flux, strict=True):
            i, j = round(x), round(y)
            if 9 < i < n - 9 and 9 < j < n - 9:
                star = np.exp(-0.5 * ((u + i - x) ** 2 + (v + j - y) ** 2) / 1.6**2)
                image[j - 8 : j + 9, i - 8 : i + 9] += f * star / star.sum()
        rays = rng.integers(0, n, (n * n // 5000, 2))
        image[rays[:, 0], rays[:, 1]] += rng.uniform(200, 5000, len(rays))
        quality = (rng.random((n, n)) < 1e-3).astype(np.int32)
        error = np.sqrt(np.maximum(image, level)).astype(np.float32)
        cards = wcs.to_header()
        hdus = fits.HDUList([fits.PrimaryHDU(header=fits.Header({"EXPTIME": 60.0}))])
        for name, plane in (("SCI", image), ("ERR", error), ("DQ", quality)):
            hdus.append(fits.ImageHDU(plane, cards, name=name))
        files.append(str(folder / f"e{k:03d}.fits"))
        hdus.writeto(files[-1], checksum=True)
    return files


def run(files: list[str], folder: Path, memory: str | None, method: str, name: str) -> dict[str, float]:
    job = {
        "files": files,
        "grid": str(folder / "grid.hdr"),
        "memory": memory,
        "method": method,
        "output": str(folder / name),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, json.dumps(job)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="8 exposures of 512 pixels")
    parser.add_argument("--exposures", type=int, default=100)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--grid", type=int, default=6000)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--method", default="clipped")
    parser.add_argument("--counts", type=int, nargs="*", help="numbers of exposures (default: 1/4, 1/2 and all)")
    parser.add_argument("--no-compare", action="store_true", help="leave out the run without a budget")
    parser.add_argument("--folder", help="where to put the temporary files")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.exposures, arguments.size, arguments.grid, arguments.memory = 8, 512, 2200, "280MiB"
    from skyloom.stacking.memory import parse_memory

    budget = parse_memory(arguments.memory) or 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place)
        files = make(folder, arguments.exposures, arguments.size, arguments.grid)
        print(
            f"{len(files)} exposures of {arguments.size}^2 into {arguments.grid}^2, by {arguments.method}, "
            f"budget {arguments.memory}"
        )
        print("exposures   peak RSS / budget    CPU s   CPU s per exposure   wall s   outlying pixels")
        for count in arguments.counts or (len(files) // 4, len(files) // 2, len(files)):
            one = run(files[:count], folder, arguments.memory, arguments.method, "budget.fits")
            print(
                f"{count:9d}   {one['rss'] / 2**20:7.0f} MiB {one['rss'] / budget:6.2f}   {one['cpu']:8.1f}   "
                f"{one['cpu'] / count:18.2f}   {one['wall']:6.0f}   {one['rejected']:15d}",
                flush=True,
            )
        if arguments.no_compare:
            return
        free = run(files, folder, None, arguments.method, "free.fits")
        print(f"without a budget: peak RSS {free['rss'] / 2**20:.0f} MiB, CPU {free['cpu']:.1f} s")
        with fits.open(folder / "budget.fits") as a, fits.open(folder / "free.fits") as b:
            same = all(np.array_equal(a[name].data, b[name].data, equal_nan=name != "DQ") for name in PLANES)
        print("the same bits" if same else "THE RESULTS DIFFER")


if __name__ == "__main__":
    main()
