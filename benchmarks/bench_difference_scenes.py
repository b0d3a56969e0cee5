"""What native differences are worth on simulated scenes of many kinds, without any tuning per scene.

    python benchmarks/bench_difference_scenes.py [--method sfft] [--seeds 3] [--size 1024] [--scenes equal-depth ...]

Columns, means over the seeds and below them their uncertainties: standard deviation (robust) of difference / error on
the sky, and (plain) within 3 pixels of stars above 2e4 ADU; of the score on the sky; peaks above 5 and below -5 sigma
per 10^6 pixels that are no transient; of fluxes at the true positions of transients,

- bias: mean error of those above S/N 15, weighted by (S/N)^2, in per cent;
- quiet: the same of the images without noise, through the kernel, weights and PSF that were found with it. What noise
  does to fluxes cancels, so that this tells the bias much better;
- of PSF: that of the transients' light alone, without noise or subtraction, with the PSF and weights that were found;
- pull: standard deviation of error / its estimate, over all transients and NOISES new noises of the two images, again
  through the same kernel; and once more of the one noise that everything was found with (differences without a kernel
  and scenes that are changed after the simulation have only this one, and "bias");

completeness at 5 sigma for transients of (true, science sky) S/N 5-7, 7-10, 10-20; the convolved image and the kernel's
order; CPU seconds of difference and score. The first row are the bars; the second is the best that any of seven runs
of HOTPANTS 5.1.11, ZOGY and SFFT through stdpipe 0.4.1 had on such pairs.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np
from scipy import ndimage

from bench_difference_truth import isolated, robust_std
from simulate import SCIENCE, TEMPLATE, _add, _observe, simulate_pair
from skyloom.detection import forced_photometry
from skyloom.pipeline.difference import DifferenceOptions, difference

MARGIN, NOISES = 30, 4
SHALLOW = replace(TEMPLATE, gain=1.5, read_noise=6.0)
SCENES = {
    "reference": {},
    "equal-depth": {"template": SHALLOW},
    "template-worse": {"template": replace(TEMPLATE, fwhm=5.2)},
    "worse-equal-depth": {"template": replace(SHALLOW, fwhm=5.2)},
    "same-seeing": {"template": replace(TEMPLATE, fwhm=4.2, shear=(-0.03, 0.03))},
    "sparse-100": {"n_stars": 100, "n_galaxies": 10},
    "crowded-3000": {"n_stars": 3000},
    "crowded-10000": {"n_stars": 10000},
    "crowded-equal-depth": {"n_stars": 3000, "template": SHALLOW},
    "saturation": {"saturation": 6000.0},
    "gradients": {"science": replace(SCIENCE, tilt=(60.0, -40.0)), "template": replace(TEMPLATE, tilt=(-20.0, 30.0))},
    "colour-terms": {"colour": 0.03},
    "odd-shape": {"crop": (701, 1023)},
    "cosmic-rays": {"cosmic_rays": 0.01},
    "moon-halo": {"change": "halo"},
    "nebula": {"change": "nebula"},
    "clouds": {"change": "clouds"},
    "vignetting": {"change": "vignetting"},
    "undersampled": {"science": replace(SCIENCE, fwhm=2.2), "template": replace(TEMPLATE, fwhm=1.8)},
    "elongated": {"science": replace(SCIENCE, shear=(0.2, 0.1)), "template": replace(TEMPLATE, shear=(-0.1, 0.05))},
    "bleed": {"saturation": 20000.0, "change": "bleed"},
    "few-8": {"n_stars": 8, "n_galaxies": 2},
    "tiny": {"n_stars": 400, "crop": (131, 160)},
    "mosaic-edges": {"change": "edges"},
}
"""What differs from the simulator's defaults."""
BARS = ["0.98-1.02", "<= 1.05", "0.98-1.02", "<= 2", "<= 2", "< 0.5", "< 0.5", "", "0.97-1.05", "0.97-1.05"]
BEST = ["0.956", "1.011", "0.980", "0", "0", "0.0", "", "", "", "1.02"]
NAMES = ["Z sky", "Z star", "S sky", "false +", "false -", "bias %", "quiet %", "of PSF %", "pull", "pull (1)"]
BINS = ((5, 7), (7, 10), (10, 20))
BRIGHT = 15
"""S/N of transients that tell the bias of fluxes."""


def photons(exposure, light, rng):
    """Return an exposure with more light on it, and its noise."""
    extra = rng.poisson(light * exposure.gain) / exposure.gain
    variance = (exposure.variance + light / exposure.gain).astype(np.float32)
    return exposure.replace(data=(exposure.data + extra).astype(np.float32), variance=variance)


def halo(pair, X, Y, rng):
    """Add the Moon, 3000 ADU at the peak, beyond a corner of the science image."""
    light = 3000 / (1 + ((X - 1.1) ** 2 + (Y - 0.9) ** 2) / 0.3)
    return replace(pair, science=photons(pair.science, light, rng))


def nebula(pair, X, _Y, rng):
    """Add clouds of gas on both images, in structures of 15 pixels and more, 100 ADU bright."""
    scales = [ndimage.gaussian_filter(rng.normal(size=X.shape), s, mode="wrap") for s in (15, 30, 60)]
    light = 100 * np.exp(0.7 * sum(s / s.std() for s in scales) / np.sqrt(3))
    template = photons(pair.template, pair.flux_ratio * light, rng)
    return replace(pair, science=photons(pair.science, light, rng), template=template)


def dimmed(pair, transparency, sky):
    """Dim a science image by a transparency that varies, above the level `sky`."""
    t = transparency.astype(np.float32)
    science = pair.science.replace(data=sky + t * (pair.science.data - sky), variance=pair.science.variance * t**2)
    transients = pair.transients.copy()
    at = t[np.rint(transients["y"]).astype(int), np.rint(transients["x"]).astype(int)]
    transients["flux"] *= at  # the noise is dimmed, too, and the S/N stays
    return replace(pair, science=science, transients=transients)


def clouds(pair, X, Y, _rng):
    """Put thin cirrus before it: 20 % less light on one side than on the other, under an even sky."""
    return dimmed(pair, 0.9 + 0.1 * (0.8 * X + 0.6 * Y), np.float32(SCIENCE.sky))


def vignetting(pair, X, Y, _rng):
    """Leave the flat field out: sky and stars of the science image lose 30 % in the corners."""
    return dimmed(pair, 1 - 0.15 * (X**2 + Y**2), np.float32(0))


def bleed(pair, _X, _Y, _rng):
    """Draw columns of saturated pixels through saturated stars."""
    images = []
    for exposure in (pair.science, pair.template):
        data = exposure.data.copy()
        full = data >= exposure.saturation
        reach = ndimage.binary_dilation(full, np.ones((3, 1), bool), iterations=12)
        data[reach & (full.sum(axis=0) > 2)] = exposure.saturation
        images.append(exposure.replace(data=data))
    return replace(pair, science=images[0], template=images[1])


def edges(pair, X, Y, _rng):
    """Cut slanting borders, other ones on each image, and a gap between chips, all NaN."""
    images = []
    for exposure, slope in ((pair.science, 0.2), (pair.template, -0.15)):
        data = exposure.data.copy()
        data[(X + slope * Y > 0.85) | (Y - slope * X < -0.9) | (np.abs(X - 0.1 - slope * Y) < 0.02)] = np.nan
        images.append(exposure.replace(data=data))
    return replace(pair, science=images[0], template=images[1])


CHANGES = {"halo": halo, "nebula": nebula, "clouds": clouds, "vignetting": vignetting, "bleed": bleed, "edges": edges}


def make(seed, size, crop=None, cosmic_rays=0.0, change=None, **changes):
    """Return a pair, and the science pixels hit by cosmic rays, whose share is `cosmic_rays`; `crop` cuts it."""
    pair = simulate_pair(seed, size, n_transients=round(100 * (size / 1024) ** 2), **changes)
    if change is not None:
        Y, X = np.mgrid[:size, :size] / (size - 1) * 2 - 1
        pair = CHANGES[change](pair, X, Y, np.random.default_rng(seed + 5000))
        pair = replace(pair, science_model=None)  # the models do not know of it
    if crop is not None:
        ny, nx = (min(side, size) for side in crop)
        cut = [
            exposure.replace(
                data=exposure.data[:ny, :nx], variance=exposure.variance[:ny, :nx], mask=exposure.mask[:ny, :nx]
            )
            for exposure in (pair.science, pair.template)
        ]
        kept = {
            name: table[(table["x"] < nx - 1) & (table["y"] < ny - 1)]
            for name, table in (("stars", pair.stars), ("galaxies", pair.galaxies), ("transients", pair.transients))
        }
        models = {name: getattr(pair, name)[:ny, :nx] for name in ("science_model", "template_model")}
        pair = replace(pair, science=cut[0], template=cut[1], **kept, **models)
    if cosmic_rays:
        rng = np.random.default_rng(seed)
        data = pair.science.data.copy()
        hit = rng.random(data.shape) < cosmic_rays
        data[hit] += np.exp(rng.uniform(np.log(100), np.log(2e4), hit.sum())).astype(np.float32)
        pair = replace(pair, science=pair.science.replace(data=data))
        return pair, hit
    return pair, np.zeros(pair.science.shape, bool)


def regions(pair):
    """Return the empty sky, and the pixels within 3 of bright stars."""
    ny, nx = pair.science.shape
    y, x = np.mgrid[:ny, :nx]
    inner = np.zeros((ny, nx), bool)
    inner[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    near, busy = np.zeros((ny, nx), bool), np.zeros((ny, nx), bool)

    def disc(plane, source, radius, value=True):
        box = np.s_[
            max(0, int(source["y"] - radius)) : int(source["y"] + radius) + 2,
            max(0, int(source["x"] - radius)) : int(source["x"] + radius) + 2,
        ]
        plane[box][np.hypot(x[box] - source["x"], y[box] - source["y"]) < radius] = value

    for star in pair.stars:
        disc(busy, star, 8)
        if star["flux"] > 2e4:
            disc(near, star, 3)
    for galaxy in pair.galaxies:
        disc(busy, galaxy, 15)
    for source in pair.transients:
        disc(busy, source, 12)
        disc(near, source, 12, False)
    return inner & ~busy, inner & near


@dataclass(frozen=True)
class Verdict:
    """Numbers of one pair: the first five columns, a row per transient, and how many were found.

    The rows of `fluxes`: truth, its error, and the measured flux of the image, of the image without noise, of the
    transients alone, and of each of NOISES new noises.
    """

    planes: list[float]
    fluxes: np.ndarray
    found: list[tuple[int, int]]


def judge(pair, hit, result):
    """Compare a difference with the truth."""
    sky, near = regions(pair)
    usable = result.score.valid & (result.variance > 0)
    if hit.any():  # on and around cosmic rays there is signal
        sky, near = sky & ~ndimage.binary_dilation(hit, iterations=3), near & ~hit
    z = result.image / np.sqrt(np.where(result.variance > 0, result.variance, 1))
    score = np.where(result.score.valid, result.score.significance, 0)
    truth = pair.transients
    inner = np.zeros(z.shape, bool)
    inner[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    false = []
    for sign in (1, -1):
        peaks = (sign * score > 5) & (sign * score == ndimage.maximum_filter(sign * score, 5)) & inner
        y, x = np.nonzero(peaks)
        known = (np.hypot(x[:, None] - truth["x"], y[:, None] - truth["y"]) < 4).any(axis=1)
        false.append(1e6 * (~known).sum() / (inner & usable).sum())
    inside = isolated(truth, 8.0) & (truth["x"] > MARGIN) & (truth["y"] > MARGIN)
    inside &= (truth["x"] < z.shape[1] - MARGIN) & (truth["y"] < z.shape[0] - MARGIN)
    found = np.array(
        [score[max(0, round(y) - 2) : round(y) + 3, max(0, round(x) - 2) : round(x) + 3].max(initial=0) > 5
         for x, y in truth.iterrows("x", "y")]
    )  # fmt: skip
    of_bin = [inside & (truth["snr"] >= low) & (truth["snr"] < high) for low, high in BINS]
    at_stars = np.std(z[near & usable]) if (near & usable).any() else np.nan
    planes = [robust_std(z[sky & usable]), at_stars, robust_std(score[sky & usable]), *false]
    return Verdict(planes, fluxes(pair, result), [((found & one).sum(), one.sum()) for one in of_bin])


def fluxes(pair, result):
    """Measure the transients in several noises, see `Verdict`."""
    truth = pair.transients
    xy = np.column_stack([truth["x"], truth["y"]])
    forced = forced_photometry(result, xy)
    columns = [truth["flux"], forced["flux_err"], forced["flux"]]
    if result.kernel is None or pair.science_model is None:
        columns += [np.full(len(truth), np.nan)] * (2 + NOISES)
        return _isolated(truth, columns)
    science, template = (np.asarray(model, np.float32) for model in (pair.science_model, pair.template_model))
    light = np.zeros(science.shape)
    for x, y, flux in truth.iterrows("x", "y", "flux"):
        _add(light, x, y, flux, psf=pair.science_psf, field_position=(x, y), half=30)
    rng = np.random.default_rng(7)
    pairs = [(science, template), (light.astype(np.float32), None)]
    pairs += [
        [_observe(np.asarray(model, float), epoch, rng, pair.science.saturation).data for model, epoch in images]
        for images in NOISES * [((science, pair.science_psf.epoch), (template, pair.template_psf.epoch))]
    ]
    for images in pairs:
        again = replace(result, image=np.where(result.subtraction.usable, again_subtracted(result, *images), 0))
        columns.append(forced_photometry(again, xy)["flux"])
    return _isolated(truth, columns)


def _isolated(truth, columns):
    """Return the rows of transients without neighbours that were measured."""
    rows = np.array(columns, float).T
    return rows[isolated(truth, 20.0) & np.isfinite(rows[:, :3]).all(axis=1)]


def again_subtracted(result, science, template):
    """Return the difference of other images by the kernel and background that were found; of light without them."""
    kernel = result.kernel
    y, x = np.ogrid[: science.shape[0], : science.shape[1]]
    moved, still = (template, science) if result.subtraction.convolved == "template" else (science, template)
    if moved is not None:
        level = np.float32(np.median(moved))
        moved = kernel.convolve(moved - level).data + level * kernel.sum_at(x, y)
    if result.subtraction.convolved == "template":
        return still if moved is None else still - moved - result.subtraction.background
    difference = moved / kernel.sum_at(x, y)
    return difference if still is None else difference - still / kernel.sum_at(x, y) - result.subtraction.background


def mean_error(values):
    """Return the mean and its uncertainty."""
    return np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan


def summary(verdicts):
    """Return the columns: means and uncertainties."""
    planes = [mean_error(column) for column in np.array([one.planes for one in verdicts]).T]
    for index in (3, 4):  # counts: those of Poisson, if that is more
        planes[index] = planes[index][0], np.sqrt(max(planes[index][0], 0.5) / len(verdicts))
    rows = np.concatenate([one.fluxes for one in verdicts])
    truth, error = rows[:, 0], rows[:, 1]
    bright = truth > BRIGHT * error
    weight = (truth / error)[bright] ** 2
    biases = []
    for index in (2, 3, 4):
        relative = (rows[:, index] / truth - 1)[bright]
        bias = np.average(relative, weights=weight) if weight.sum() > 0 else np.nan
        known = weight**-0.5 if index == 2 else relative - bias
        biases.append((100 * bias, 100 * np.sqrt((weight**2 * known**2).sum()) / weight.sum()))
    pulls = []
    for those in (rows[:, 5:], rows[:, 2:3]):
        pull = (those - truth[:, None]) / error[:, None]
        pulls.append((np.sqrt(np.mean(pull**2)), 1 / np.sqrt(2 * pull.size)))
    return [*planes, *biases, *pulls], np.sum([one.found for one in verdicts], axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--keep", help="folder for the verdicts, pickled")
    parser.add_argument("--method", default="alard-lupton", choices=["alard-lupton", "sfft", "zogy", "auto"])
    parser.add_argument("--scenes", nargs="+", default=list(SCENES), choices=list(SCENES))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    options = DifferenceOptions(align="none", method=arguments.method)
    print(
        f"{'':20}"
        + "".join(f"{name:>10}" for name in NAMES)
        + "   "
        + "   ".join(f"{low}-{high}" for low, high in BINS)
    )
    for name, row in (("bars", BARS), ("best peer", BEST)):
        print(f"{name:20}" + "".join(f"{value:>10}" for value in row) + "   0.60   1.00   1.00")
    for scene in arguments.scenes:
        verdicts, ways, seconds = [], [], []
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            pair, hit = make(seed, arguments.size, **SCENES[scene])
            start = time.process_time()
            result = difference(pair.science, pair.template, options=options)
            seconds.append(time.process_time() - start)
            verdicts.append(judge(pair, hit, result))
            ways.append(f"{result.subtraction.convolved[0]}{result.diagnostics.get('spatial_order', '')}")
            if arguments.keep:
                Path(arguments.keep).mkdir(exist_ok=True)
                (Path(arguments.keep) / f"{scene}-{seed}.pickle").write_bytes(pickle.dumps(verdicts[-1]))
        columns, found = summary(verdicts)
        shares = "".join(f"{a:6d}/{b:<3d}" for a, b in found)
        print(f"{scene:20}" + "".join(f"{value:10.3f}" for value, _ in columns) + shares, end="   ")
        print(f"{' '.join(ways)}; {np.median(seconds):.2f}")
        print(f"{'':20}" + "".join(f"{error:10.3f}" for _, error in columns), flush=True)


if __name__ == "__main__":
    main()
