"""Registration of real frames: all of a series to its sharpest, and pairs whose WCS is known but not used.

    python benchmarks/bench_registration_real.py DATA [--plot FILE]

DATA holds these folders; those that are absent are left out:

  diffim/saao_kb13475   85 frames of a crowded bulge field (SAAO 1.0 m), no WCS
  drizzle/lt_rise       4 frames of the Liverpool Telescope, TAN WCS
  register/gc_2mass     J, H and K atlas images of the galactic centre, whose scales differ by 0 to 2
  register/m13          frames of very low signal to noise: registered, or refused for the right reason
  register/eso085_030   a pair of a small telescope

For the series it prints each frame's rms and draws the distribution. Where both images have a WCS, it is not used; the
table then shows by how much it differs from the stars: a constant offset (pointing) and the scatter about it.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from pathlib import Path

import numpy as np

from skyloom.errors import RegistrationError, SkyloomWarning
from skyloom.exposure import Exposure
from skyloom.io import read
from skyloom.registration import Registration, RegistrationOptions, detect_sources, image_fwhm, register
from skyloom.resampling import resample, wcs_map

BRIGHT = 100
BLIND = RegistrationOptions(use_wcs=False)
DETECTOR = {"saturation": 65300.0, "gain": 1.9, "read_noise": 5.0}  # of the SAAO series


def bright_rms(result: Registration) -> float:
    """RMS distance of the pairs with the brightest stars, pixels: there the noise of the centroids is small."""
    m = result.matched[np.argsort(-result.matched["flux_template"])[:BRIGHT]]
    return float(np.sqrt(np.mean(np.square(m["dx"]) + np.square(m["dy"]))))


def series(folder: Path, plot: Path | None) -> None:
    frames = [read(path, **DETECTOR) for path in sorted(folder.glob("*.fits"))]
    lists = [detect_sources(frame) for frame in frames]
    fwhm = np.array([image_fwhm(table) for table in lists])
    best = int(np.argmin(fwhm))
    print(f"{folder.name}: {len(frames)} frames to {frames[best].name} (FWHM {fwhm[best]:.2f} px)")
    print("frame                  FWHM  stars matched  rms px  brightest  order  LLR")
    rms, bright, failed = [], [], 0
    start = time.process_time()
    for frame, table, width in zip(frames, lists, fwhm, strict=True):
        if frame is frames[best]:
            continue
        try:
            r = register(table, lists[best], BLIND)
        except RegistrationError as error:
            failed += 1
            print(f"{frame.name:22s} {width:4.1f} {len(table):6d} refused: {error}")
            continue
        rms.append(r.rms)
        bright.append(bright_rms(r))
        print(
            f"{frame.name:22s} {width:4.1f} {len(table):6d} {r.n_matched:7d} {r.rms:7.3f} {bright[-1]:10.3f} "
            f"{r.order:6d} {r.log_likelihood_ratio:6.0f}"
        )
    seconds = (time.process_time() - start) / (len(frames) - 1)
    for name, values in (("all pairs", rms), (f"{BRIGHT} brightest", bright)):
        low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
        print(f"rms of {name}: median {middle:.3f} px, 10 % {low:.3f}, 90 % {high:.3f}, largest {max(values):.3f}")
    print(f"{failed} of {len(frames) - 1} refused; matching {1e3 * seconds:.0f} ms CPU each")
    if plot is not None:
        draw(rms, bright, plot)


def draw(rms: list[float], bright: list[float], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    axes = Figure(figsize=(6, 3.2), dpi=110, layout="constrained").subplots()
    bins = np.arange(0, max(rms) + 0.02, 0.02)
    axes.hist(rms, bins, color="0.75", label="all matched stars")
    axes.hist(bright, bins, histtype="step", color="C0", linewidth=1.8, label=f"{BRIGHT} brightest")
    axes.set(xlabel="rms distance after registration (px)", ylabel="frames", xlim=(0, bins[-1]))
    axes.set_title(f"{len(rms)} SAAO frames to the sharpest one", loc="left", fontsize=10)
    axes.legend(frameon=False)
    axes.figure.savefig(path)
    print(f"wrote {path}")


def pairs(title: str, images: list[Exposure]) -> None:
    print(f"\n{title}")
    for image in images:
        try:
            table = detect_sources(image)
            print(f"  {image.name:34s} {len(table):6d} sources, FWHM {image_fwhm(table):.2f} px")
        except RegistrationError as error:
            print(f"  {image.name:34s} {error}")
    for template, source in itertools.combinations(images, 2):
        names = f"  {source.name} -> {template.name}: "
        try:
            r = register(source, template, BLIND)
        except RegistrationError as error:
            print(f"{names}refused: {error}")
            continue
        print(f"{names}{r}")
        if source.wcs is not None and template.wcs is not None:
            xy = np.column_stack([r.matched["x_template"], r.matched["y_template"]])
            miss = wcs_map(template.wcs, source.wcs)(xy) - r.template_to_source(xy)
            offset = np.median(miss, axis=0)
            scatter = np.sqrt(np.mean((miss - offset) ** 2, axis=0))
            print(
                f"    WCS - stars: offset ({offset[0]:+.3f}, {offset[1]:+.3f}) px, scatter about it "
                f"({scatter[0]:.3f}, {scatter[1]:.3f}) px"
            )


def scaled(image: Exposure, factor: float) -> Exposure:
    """Return the same sky on pixels of another size, by area overlap: a survey of lower resolution.

    Its pixels see the light of all stars, of those that are saturated (cut off at 3000) here, too.
    """
    image = image.replace(mask=None, saturation=None)
    ny, nx = (int(n / factor) for n in image.shape)
    coarse = resample(image, lambda xy: (xy + 0.5) * factor - 0.5, (ny, nx), method="area")
    return coarse.replace(name=f"{image.name} on {factor:g} px")


def across_scale(bands: list[Exposure]) -> None:
    """Register each band to each other one on larger pixels, whose transform is known exactly."""
    print("\n2MASS across scale: each band to each other one on larger pixels; error: RMS distance from the truth")
    for factor in (1.5, 1.7, 2.0):
        for source, band in itertools.permutations(bands, 2):
            template = scaled(band, factor)
            names = f"  {source.name} -> {template.name}: "
            try:
                r = register(source, template, BLIND)
            except RegistrationError as error:
                print(f"{names}refused: {error}")
                continue
            ny, nx = template.shape
            grid = np.stack(np.meshgrid(np.linspace(0, nx - 1, 25), np.linspace(0, ny - 1, 25)), -1).reshape(-1, 2)
            truth = wcs_map(band.wcs, source.wcs)((grid + 0.5) * factor - 0.5)
            error = np.sqrt(np.mean(((r.template_to_source(grid) - truth) ** 2).sum(axis=1)))
            print(f"{names}{r.n_matched} stars, rms {r.rms:.2f} px, scale {r.scale:.4f}, error {error:.3f} px")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--plot", type=Path, help="draw the distribution of the rms over the series")
    arguments = parser.parse_args()
    for category in (SkyloomWarning, UserWarning):
        warnings.simplefilter("ignore", category)
    data = arguments.data
    if (data / "diffim/saao_kb13475").is_dir():
        series(data / "diffim/saao_kb13475", arguments.plot)
    for title, folder, pattern in (
        ("Liverpool Telescope, WCS not used", "drizzle/lt_rise", "*.fits"),
        ("2MASS J, H, K, WCS not used", "register/gc_2mass", "*.fits"),
        ("M13, very low signal to noise", "register/m13", "*.fits"),
        ("ESO 085-030", "register/eso085_030", "*.fit"),
    ):
        if (data / folder).is_dir():
            pairs(title, [read(path) for path in sorted((data / folder).glob(pattern))])
    folder = data / "register/gc_2mass"
    if folder.is_dir():
        across_scale([read(path) for path in sorted(folder.glob("*.fits"))])


if __name__ == "__main__":
    main()
