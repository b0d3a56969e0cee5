"""Three methods of subtraction on the same registered pairs, simulated and real: residuals, noise, detections, time.

    python benchmarks/bench_methods.py [--data DATA] [--figures FOLDER] [--only NAME ...] [--pair TEXT] [--seeds 3]

DATA holds these folders; those that are absent are left out:

  diffim/saao_kb13475               crowded bulge field (SAAO 1.0 m): two nights, one frame each, and against a co-add
  diffim/decam_sfft_obs04_obs18     DECam, two epochs of 5 aligned exposures, with a published difference
  drizzle/lt_rise                   Liverpool Telescope, sparse field

Each pair is registered and resampled once; all methods get the same two images and measure noise, PSFs and stars
themselves. Columns of the table, for each pair and method:

  z stars    robust standard deviation (and standard deviation) of difference / error within 3 pixels of bright stars
  S stars    the same of the score
  S sky      standard deviation of the score in the background, clipped at 5
  peaks      extrema of the score beyond 5 sigma, positive and negative, known changes left out
  real       candidates without flags, likewise
  change     S/N of the known change
  depth      median error of a PSF flux in the background, relative to Alard & Lupton
  CPU        seconds of `skyloom.difference`

Simulated scenes: means over the seeds and, where it matters, +- their standard deviation.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from astropy.io import fits
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import skyloom
from simulate import SCIENCE, TEMPLATE, simulate_pair  # (the simulator of the tests)
from skyloom.background import MAD_TO_SIGMA
from skyloom.detection import filter_image
from skyloom.detection.peaks import local_maxima
from skyloom.errors import SkyloomWarning
from skyloom.exposure import Exposure, MaskBit
from skyloom.noise import with_variance
from skyloom.pipeline import Difference, DifferenceOptions
from skyloom.pipeline.align import align, bring_onto_grid
from skyloom.pipeline.choose import choose_method
from skyloom.pipeline.diagnose import clipped_moments, sky_pixels
from skyloom.pipeline.template import find_stars
from skyloom.psf import estimate_psf, stamp_fwhm
from skyloom.registration import detect_sources

METHODS = ("alard-lupton", "sfft", "zogy")
BRIGHT = 50.0
"""S/N of the stars whose surroundings are looked at."""
NEAR = 3.0


@dataclass
class Pair:
    """Two images on one grid, and the places (x, y) where something is known to have changed."""

    name: str
    science: Exposure
    template: Exposure
    changes: np.ndarray
    view: tuple[int, int] | None = None
    """Middle of the part that is drawn."""
    published: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Differences that others have made of the same images."""


def on_grid(name, science, frames, changes=(), *, view=None, how="stars"):
    """Register and resample (co-add, if there are several) once."""
    science, frames = with_variance(science), [with_variance(frame) for frame in frames]
    options = DifferenceOptions(align=how)
    grid, *others = (find_stars(image, options) for image in (science, *frames))
    alignments = [align(grid, frame, how) for frame in others]
    template = with_variance(bring_onto_grid(science, frames, alignments)[0])
    return Pair(name, science, template, np.array(changes, float).reshape(-1, 2), view)


def simulated(seeds):
    shallow = dataclasses.replace(TEMPLATE, gain=1.5, sky=300.0, read_noise=6.0)
    scenes = {
        "sim deep template": {},
        "sim equal depth": {"template": dataclasses.replace(shallow, scale=1.0)},
        "sim wide template": {
            "template": dataclasses.replace(SCIENCE, scale=0.8, tilt=(0.0, 0.0)),
            "science": TEMPLATE,
        },
        "sim like seeing": {"template": dataclasses.replace(shallow, fwhm=4.1, shear=(-0.05, 0.04))},
        "sim shallow template": {"template": dataclasses.replace(shallow, gain=0.5, scale=0.7)},
        "sim crowded": {"n_stars": 3000},
    }
    for name, options in scenes.items():
        for seed in range(1, seeds + 1):
            pair = simulate_pair(seed, 512, n_transients=6, snr=(8.0, 30.0), **options)
            xy = np.column_stack([pair.transients["x"], pair.transients["y"]])
            yield Pair(name, pair.science, pair.template, xy, None if len(xy) == 0 else tuple(xy[0]))


def saao(folder):
    detector = {"saturation": 65300.0, "gain": 1.9, "read_noise": 5.0}
    read = {n: skyloom.read(folder / f"AKB13475I{n:04d}.fits", **detector) for n in (77, 93, 100, 104, 110, 163)}
    place = np.array([[288.1, 214.9]])
    for number, others in ((110, [100]), (163, [104]), (110, [77, 93, 104])):
        science = read[number]
        x, y = skyloom.register(science, read[100]).template_to_source(place)[0] if number != 100 else place[0]
        name = f"SAAO {number} - {', '.join(map(str, others))}"
        yield on_grid(name, science, [read[n] for n in others], [(x, y)], view=(x, y))


def liverpool(folder):
    paths = sorted(folder.glob("*.fits"))
    frames = [skyloom.read(path, gain=2.4, read_noise=12.0, saturation=60000.0) for path in paths]
    yield on_grid("LT RISE 11 - 1", frames[0], [frames[1]], view=(515, 513))


def decam(folder):
    def exposure(name):
        return skyloom.read(folder / f"{name}.fits", gain=4.0, read_noise=11.8, saturation=42000.0, verify=False)

    epochs = [[with_sky(exposure(f"DEC-OBS{n}{k}.mini")) for k in "abcde"] for n in ("04", "18")]
    yield on_grid("DECam 04a - 18a", epochs[0][0], [epochs[1][0]], [(130, 127)], view=(130, 127), how="none")
    science = on_grid("", epochs[0][0], epochs[0], how="none").template
    pair = on_grid("DECam 5 x 04 - 5 x 18", science, epochs[1], [(130, 127)], view=(130, 127), how="none")
    for name, file in (("published", "FinalDifference"), ("published, decorr.", "FinalDifference.DeCorr")):
        pair.published[name] = fits.getdata(folder / f"{file}.fits").astype(float)
    yield pair


def with_sky(exposure):
    """Add the noise of the sky, which was taken off the frames: it is measured, not computed from counts."""
    sigma = skyloom.background.white_noise(exposure)
    data = np.asarray(exposure.data, float)
    return exposure.replace(variance=(sigma**2 + np.maximum(data, 0) / 4.0).astype(exposure.data.dtype))


def bright_stars(pair):
    """Positions of bright stars of the science image that are neither saturated nor known to change."""
    table = detect_sources(pair.science)
    xy = np.column_stack([table["x"], table["y"]])
    good = np.asarray(table["snr"]) > BRIGHT
    saturated = np.zeros(pair.science.shape, bool)
    for exposure in (pair.science, pair.template):
        saturated |= (exposure.mask & np.uint32(MaskBit.SATURATED)) != 0
    for k, (x, y) in enumerate(xy):
        ix, iy = round(x), round(y)
        box = saturated[max(0, iy - 8) : iy + 9, max(0, ix - 8) : ix + 9]
        good[k] &= not box.any() and not (np.hypot(*(pair.changes - (x, y)).T) < 8).any()
    return xy[good]


def near(xy, shape, radius):
    y, x = np.indices(shape)
    found = np.zeros(shape, bool)
    for xs, ys in xy:
        rows = slice(max(0, int(ys) - 8), int(ys) + 9)
        columns = slice(max(0, int(xs) - 8), int(xs) + 9)
        found[rows, columns] |= (x[rows, columns] - xs) ** 2 + (y[rows, columns] - ys) ** 2 <= radius**2
    return found


def spread(values):
    """Robust standard deviation about 0 and plain standard deviation."""
    values = np.asarray(values, float)
    return (MAD_TO_SIGMA * np.median(np.abs(values)), values.std()) if values.size else (np.nan, np.nan)


def away(x, y, changes, radius=8.0):
    distance = np.hypot(np.asarray(x)[:, None] - changes[None, :, 0], np.asarray(y)[:, None] - changes[None, :, 1])
    return distance.min(axis=1, initial=np.inf) > radius


def measure(pair: Pair, result: Difference):
    usable = result.subtraction.usable & (result.variance > 0)
    z = result.image / np.sqrt(np.where(usable, result.variance, 1))
    stars = near(bright_stars(pair), z.shape, NEAR)
    sky = sky_pixels(result.subtraction) & result.score.valid & ~near(pair.changes, z.shape, 8)
    fwhm = result.diagnostics["psf_fwhm"]
    peaks = []
    for sign in (1, -1):
        x, y = local_maxima(sign * result.score.significance, 5.0, fwhm)
        peaks.append(int(away(x, y, pair.changes).sum()))
    table = skyloom.detect(result)
    real = table[np.asarray(table["real"], bool)]
    change = np.nan
    if len(pair.changes):
        found = [
            np.abs(result.score.significance[max(0, round(y) - 2) : round(y) + 3, max(0, round(x) - 2) : round(x) + 3])
            for x, y in pair.changes
        ]
        change = float(np.median([box.max() for box in found if box.size]))
    return {
        "z": spread(z[stars & usable]),
        "s": spread(result.score.significance[stars & result.score.valid]),
        "sky": clipped_moments(result.score.significance[sky])[1],
        "peaks": tuple(peaks),
        "real": int(away(real["x"], real["y"], pair.changes).sum()) if len(real) else 0,
        "change": change,
        "error": float(np.sqrt(np.median(result.score.flux_variance[sky]))),
    }


def measure_published(pair, image, psf):
    """Look at a difference without errors: in units of its own noise in the background, before and after filtering."""
    sigma = MAD_TO_SIGMA * np.median(np.abs(image - np.median(image)))
    scored = filter_image(image - np.median(image), np.full(image.shape, sigma**2), np.isfinite(image), psf)
    stars = near(bright_stars(pair), image.shape, NEAR)
    sky = ~near(np.concatenate([bright_stars(pair), pair.changes]), image.shape, 8)
    width = clipped_moments(scored.significance[sky])[1]
    significance = scored.significance / width
    peaks = []
    for sign in (1, -1):
        x, y = local_maxima(sign * significance, 5.0, stamp_fwhm(psf.stamp(0, 0)))
        peaks.append(int(away(x, y, pair.changes).sum()))
    x, y = pair.changes[0].astype(int)
    return {
        "z": spread(image[stars] / sigma),
        "s": spread(significance[stars]),
        "sky": width,
        "peaks": tuple(peaks),
        "real": np.nan,
        "change": float(significance[y - 2 : y + 3, x - 2 : x + 3].max()),
        "error": np.nan,
        "cpu": np.nan,
    }


def run(pair, figures):
    planes, rows = {}, {}
    for method in METHODS:
        options = DifferenceOptions(method=method, align="none")
        start = time.process_time()
        try:
            result = skyloom.difference(pair.science, pair.template, options=options)
        except skyloom.errors.SkyloomError as error:
            print(f"{pair.name}: {method}: {error}")
            continue
        rows[method] = measure(pair, result) | {"cpu": time.process_time() - start}
        scale = np.sqrt(np.where(result.variance > 0, result.variance, 1))
        planes[method] = np.where(result.variance > 0, result.image / scale, np.nan), result.score.significance
    for name, image in pair.published.items():
        rows[name] = measure_published(pair, image, result.psf)
        sigma = MAD_TO_SIGMA * np.median(np.abs(image - np.median(image)))
        score = filter_image(image, np.full(image.shape, sigma**2), np.isfinite(image), result.psf)
        planes[name] = image / sigma, score.significance / rows[name]["sky"]
    psf, sources = estimate_psf(pair.science), detect_sources(pair.science)
    choice = choose_method(DifferenceOptions(), pair.science, pair.template, psf, sources)
    if figures is not None:
        draw(pair, planes, figures)
    return rows, choice


def draw(pair, planes, folder):
    """One picture: the science image, and difference / error and score by each method, around the middle."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    half = 60
    ny, nx = pair.science.shape
    x, y = pair.view or (nx // 2, ny // 2)
    x, y = (int(np.clip(round(v), half, n - half)) for v, n in ((x, nx), (y, ny)))
    cut = slice(y - half, y + half), slice(x - half, x + half)
    figure, axes = plt.subplots(2, 1 + len(planes), figsize=(2.4 * (1 + len(planes)), 5.2), layout="constrained")
    for row, (label, exposure) in zip(
        axes[:, 0], (("science", pair.science), ("template", pair.template)), strict=True
    ):
        data = np.where(exposure.usable, exposure.data, np.nan)[cut]
        low, high = np.nanpercentile(data, [5, 99])
        row.imshow(np.arcsinh((data - low) / (high - low) * 5), origin="lower", cmap="gray")
        row.set_title(label, fontsize=9)
    for column, (method, pictures) in zip(axes.T[1:], planes.items(), strict=True):
        for axis, plane, label in zip(column, pictures, ("difference / error", "score"), strict=True):
            axis.imshow(plane[cut], origin="lower", cmap="gray", vmin=-5, vmax=5)
            axis.set_title(f"{method}\n{label}", fontsize=9)
    for axis in axes.ravel():
        axis.set_axis_off()
    figure.suptitle(f"{pair.name}, {2 * half} x {2 * half} pixels; grey from -5 to +5 standard deviations", fontsize=10)
    folder.mkdir(parents=True, exist_ok=True)
    name = "methods_" + "".join(c if c.isalnum() else "_" for c in pair.name.lower())
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=75)
    Image.open(drawn).convert("L").quantize(48).save(folder / f"{name}.png", optimize=True)
    plt.close(figure)


def show(name, results, choices):
    print(f"\n{name}  (auto: {choices[0][0]}: {choices[0][1]})")
    for method in dict.fromkeys(method for one in results for method in one):
        both_known = [one for one in results if method in one and "alard-lupton" in one]
        rows, reference = [one[method] for one in results if method in one], None
        if len(both_known) == len(rows):
            reference = [one["alard-lupton"]["error"] for one in both_known]
        mean = {key: np.mean([row[key] for row in rows], axis=0) for key in rows[0]}
        depth = [row["error"] / one for row, one in zip(rows, reference, strict=True)] if reference else [np.nan]

        def both(values, digits):
            """Return the mean of the pairs and, if there are several, their standard deviation."""
            scatter = f" +- {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
            return f"{np.mean(values):.{digits}f}{scatter}"

        print(
            f"  {method:22s} z stars {both([row['z'][0] for row in rows], 2)} ({mean['z'][1]:.2f})  S stars "
            f"{mean['s'][0]:.2f} ({mean['s'][1]:.2f})  S sky {both([row['sky'] for row in rows], 3)}  peaks "
            f"{mean['peaks'][0]:.1f} / {mean['peaks'][1]:.1f}  real {mean['real']:.1f}  change "
            f"{both([row['change'] for row in rows], 1)}  depth {both(depth, 3)}  CPU {mean['cpu']:.2f} s",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--pair", default="", help="only pairs with this text in their name")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore", SkyloomWarning)
    sources = [("sim", lambda: simulated(options.seeds))]
    if options.data is not None:
        for name, make, place in (
            ("saao", saao, "diffim/saao_kb13475"),
            ("lt", liverpool, "drizzle/lt_rise"),
            ("decam", decam, "diffim/decam_sfft_obs04_obs18"),
        ):
            if (options.data / place).is_dir():
                sources.append((name, lambda make=make, place=place: make(options.data / place)))
    for name, make in sources:
        if options.only and name not in options.only:
            continue
        found: dict[str, list] = {}
        for pair in make():
            if options.pair not in pair.name:
                continue
            drawn = options.figures if pair.name not in found else None
            found.setdefault(pair.name, []).append(run(pair, drawn))
            if len(found[pair.name]) == (options.seeds if name == "sim" else 1):
                runs = found[pair.name]
                show(pair.name, [rows for rows, _ in runs], [choice for _, choice in runs])


if __name__ == "__main__":
    main()
