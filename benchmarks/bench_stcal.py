"""Co-add dithered exposures with their variances: `skyloom.resampling.Resample` against `stcal.resample.Resample`.

    OMP_NUM_THREADS=1 SKYLOOM_NUM_THREADS=1 python benchmarks/bench_stcal.py --size 2048 --repeats 3 --stepsize 1 10

Four exposures with SIP distortion (as a gwcs, and as an astropy WCS), three variances, the error from them, and data-
quality bits that are propagated. Printed are CPU seconds of both, alternating, the ratio of their minima, the time to
copy the bytes of all planes that go in and come out once, and the memory beyond inputs and outputs in units of the
outputs. Without stcal only ours is measured. stcal takes no astropy WCS, so it gets one with the attributes that it
asks for.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import resource
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from astropy import coordinates as coord
from astropy import units as u
from astropy.modeling import models as am
from astropy.wcs import WCS
from gwcs import WCS as GWCS
from gwcs import coordinate_frames as cf

from skyloom.resampling import Resample

PIXEL = 0.06 / 3600  # degrees


def sip_wcs(size: int, dx: float, dy: float, distortion: float = 2e-6) -> WCS:
    """Return a TAN-SIP WCS, shifted by (dx, dy) pixels and turned a little."""
    wcs = WCS(naxis=2)
    angle = np.deg2rad(0.5 * dx)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"] if distortion else ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix = [size / 2 + dx + 0.5, size / 2 + dy + 0.5]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.cd = PIXEL * np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if distortion:
        from astropy.wcs import Sip

        a, b = np.zeros((4, 4)), np.zeros((4, 4))
        a[2, 0], a[1, 1], b[0, 2], b[1, 1] = distortion, -0.6 * distortion, -0.7 * distortion, 0.4 * distortion
        a[3, 0], b[0, 3] = 4e-4 * distortion, -3e-4 * distortion
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.array_shape = (size, size)
    return wcs


def as_gwcs(wcs: WCS) -> GWCS:
    """Return the same as a gwcs."""
    x0, y0 = wcs.wcs.crpix - 1
    tan = am.Pix2Sky_TAN() | am.RotateNative2Celestial(*wcs.wcs.crval, 180)
    linear = am.AffineTransformation2D(wcs.wcs.cd)
    transform = am.Shift(-x0) & am.Shift(-y0)
    if wcs.sip is not None:
        polynomials = [am.Polynomial2D(3, c1_0=1), am.Polynomial2D(3, c0_1=1)]
        for axis, coefficients in enumerate([wcs.sip.a, wcs.sip.b]):
            for (p, q), value in np.ndenumerate(coefficients):
                if value:
                    setattr(polynomials[axis], f"c{p}_{q}", value)
        transform = transform | am.Mapping((0, 1, 0, 1)) | polynomials[0] & polynomials[1]
    transform = transform | linear | tan
    detector = cf.Frame2D(name="detector", unit=(u.pix, u.pix))
    sky = cf.CelestialFrame(name="sky", reference_frame=coord.ICRS(), unit=(u.deg, u.deg))
    result = GWCS([(detector, transform), (sky, None)])
    ny, nx = wcs.array_shape
    result.array_shape = (ny, nx)
    result.bounding_box = ((-0.5, nx - 0.5), (-0.5, ny - 0.5))
    return result


class Dressed:
    """An astropy WCS with what stcal asks of a WCS besides."""

    def __init__(self, wcs: WCS) -> None:
        self.wcs, self.bounding_box, self.array_shape = wcs, None, wcs.array_shape
        self.pixel_shape = wcs.pixel_shape
        self.output_frame = type("Frame", (), {"naxes": 2, "axes_type": ("SPATIAL", "SPATIAL")})()
        self.pixel_to_world_values = wcs.pixel_to_world_values
        self.world_to_pixel_values = wcs.world_to_pixel_values

    def __call__(self, x: Any, y: Any) -> Any:
        """Return sky positions."""
        return self.wcs.pixel_to_world_values(x, y)


def make_models(size: int, convert: Callable[[WCS], Any]) -> list[dict[str, Any]]:
    """Return four dithered exposures."""
    rng = np.random.default_rng(0)
    models = []
    for k, (dx, dy) in enumerate([(0.0, 0.0), (3.3, -2.4), (-2.7, 4.6), (5.1, 3.2)]):
        shape = (size, size)
        model = {
            "data": rng.normal(5, 1, shape).astype(np.float32),
            "dq": np.where(rng.random(shape) < 0.02, 1, 4 * (rng.random(shape) < 0.02)).astype(np.uint32),
            **{f"var_{n}": rng.gamma(5, 1, shape).astype(np.float32) for n in ("rnoise", "flat", "poisson")},
            "filename": f"exposure{k}",
            "group_id": k,
            "wcs": convert(sip_wcs(size, dx, dy)),
            "exposure_time": 100.0,
            "start_time": float(k),
            "end_time": k + 0.9,
            "duration": 100.0,
            "measurement_time": 99.0,
            "pixelarea_steradians": np.deg2rad(PIXEL) ** 2,
            "level": 0.0,
            "subtracted": True,
        }
        models.append(model)
    return models


def run(resample: type, output_wcs: Any, models: list[dict[str, Any]], stepsize: int) -> dict[str, Any]:
    """Return the co-add."""
    resampled = resample(
        {"wcs": output_wcs, "pixel_scale": 3600 * PIXEL, "pixel_scale_ratio": 1.0},
        n_input_models=len(models),
        good_bits=4,
        compute_err="from_var",
        propagate_dq=True,
        pixmap_stepsize=stepsize,
        pixmap_order=1 if stepsize == 1 else 3,
    )
    for model in models:
        resampled.add_model(model)
    resampled.finalize()
    return resampled.output_model


def planes(model: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    """Return the arrays of a model."""
    return [value for value in model.values() if isinstance(value, np.ndarray)]


def resident() -> int:
    """Return the memory of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def extra_memory(work: Callable[[], dict[str, Any]]) -> tuple[float, float]:
    """Return the memory beyond the outputs, in units of these, and the size of the outputs in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not to hide what is needed now
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    outputs = sum(plane.nbytes for plane in planes(work()))
    done.set()
    watcher.join()
    return (peak - before - outputs) / outputs, outputs


def measure(label: str, stepsize: int, ours: Any, theirs: Any, repeats: int) -> None:
    """Print the comparison of one case; `ours` and `theirs` are (class, output WCS, models)."""
    times: dict[str, list[float]] = {"ours": [], "theirs": [], "floor": []}
    results: dict[str, Any] = {}
    for _ in range(repeats):
        for name, case in (("ours", ours), ("theirs", theirs)):
            if case is None:
                continue
            results.pop(name, None)
            start = time.process_time()
            results[name] = run(case[0], case[1], case[2], stepsize)
            times[name].append(time.process_time() - start)
        arrays = [plane for model in ours[2] for plane in planes(model)] + planes(results["ours"])
        start = time.process_time()
        for plane in arrays:
            plane.copy()
        del arrays, plane
        times["floor"].append(time.process_time() - start)
    best = {name: min(seconds) for name, seconds in times.items() if seconds}
    print(f"{label}, stepsize {stepsize}: ours {best['ours']:.3f} s, floor {best['floor']:.3f} s", end="")
    if "theirs" in best:
        print(f", stcal {best['theirs']:.2f} s, ratio {best['theirs'] / best['ours']:.1f}", end="")
        for key in ("data", "var_rnoise", "err"):
            x, y = results["theirs"][key], results["ours"][key]
            with np.errstate(divide="ignore", invalid="ignore"):
                relative = np.abs(x - y) / np.abs(x)
            print(f"; {key} differs by {np.nanmax(np.where(x == 0, 0, relative)):.1e}", end="")
    results.clear()
    share, size = extra_memory(lambda: run(ours[0], ours[1], ours[2], stepsize))
    print(f"; extra memory {100 * share:.0f} % of {size / 2**20:.0f} MiB")


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stepsize", type=int, nargs="*", default=[1, 10])
    options = parser.parse_args()
    try:
        from stcal.resample import Resample as Theirs
    except ImportError:
        Theirs = None
    warnings.simplefilter("ignore")
    output = sip_wcs(options.size + 300, 0.0, 0.0, distortion=0.0)
    for label, convert in (("gwcs SIP", as_gwcs), ("astropy SIP", copy.deepcopy)):
        models = make_models(options.size, convert)
        ours = (Resample, convert(output), models)
        theirs: Any = None
        if Theirs is not None and convert is as_gwcs:
            theirs = (Theirs, convert(output), models)
        elif Theirs is not None:
            theirs = (Theirs, Dressed(output), [{**m, "wcs": Dressed(m["wcs"])} for m in models])
        for stepsize in options.stepsize:
            measure(label, stepsize, ours, theirs, options.repeats)


if __name__ == "__main__":
    main()
