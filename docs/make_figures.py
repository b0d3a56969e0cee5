"""Draw the pictures of README and docs from the frames that come with skyloom: ``python docs/make_figures.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from astropy.visualization import AsinhStretch, ImageNormalize, ZScaleInterval

mpl.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

import skyloom  # noqa: E402
from skyloom.data import SAAO_TEMPLATE, saao_frame  # noqa: E402

IMAGES = Path(__file__).parent / "images"


def overview() -> None:
    """Science, template and difference of the demo, with the variable star."""
    result = skyloom.difference(saao_frame(110), [saao_frame(number) for number in SAAO_TEMPLATE])
    candidates = skyloom.detect(result)
    star = candidates[candidates["real"]][0]
    sigma = np.sqrt(np.where(result.variance > 0, result.variance, np.inf))
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.3), layout="constrained")
    panels = {
        "science": result.science.data,
        "template, 4 frames": result.template.data,
        "difference / noise": result.image / sigma,
    }
    for ax, (title, data) in zip(axes, panels.items(), strict=True):
        if title.startswith("difference"):
            ax.imshow(data, origin="lower", cmap="gray", vmin=-6, vmax=6)
        else:
            low = ZScaleInterval().get_limits(data)[0]
            norm = ImageNormalize(vmin=low, vmax=np.percentile(data, 99.7), stretch=AsinhStretch(0.05))
            ax.imshow(data, origin="lower", cmap="gray", norm=norm)
        ax.add_patch(plt.Circle((star["x"], star["y"]), 14, fill=False, color="tab:orange", lw=1.5))
        ax.set_title(title)
        ax.set_xticks([])
        ax.set_yticks([])
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / "overview.png", dpi=110)


def coadds() -> None:
    """One frame and two co-adds of six, and the PSF and the photometry of them; prints the numbers of the page."""
    from skyloom.pipeline import coadd
    from skyloom.psf import estimate_psf
    from skyloom.stacking import CoaddOptions

    frames = [skyloom.read(saao_frame(number)) for number in (*SAAO_TEMPLATE, 43, 100)]
    made = {method: coadd(frames, CoaddOptions(method), align="stars") for method in ("clipped", "proper")}
    images = {"one frame": frames[0], **{f"{method}, 6 frames": one.exposure for method, one in made.items()}}
    for frame in frames:
        print(f"{frame.name}: FWHM {estimate_psf(frame).fwhm():.2f}")
    for method, one in made.items():
        print(f"{method}: FWHM {one.psf.fwhm():.2f}, rejected {one.n_rejected}")
    _photometry(frames[0], made)
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.3), layout="constrained")
    for ax, (title, image) in zip(axes, images.items(), strict=True):
        data = np.where(image.usable, image.data, np.nan)[150:350, 180:380]
        low, high = np.nanpercentile(data, (5, 99.5))
        norm = ImageNormalize(vmin=low, vmax=high, stretch=AsinhStretch(0.1))
        ax.imshow(data, origin="lower", cmap="gray", norm=norm)
        ax.set_title(title)
        ax.set_xticks([])
        ax.set_yticks([])
    figure.savefig(IMAGES / "coadd_saao.png", dpi=65)


def _photometry(frame: skyloom.Exposure, made: dict) -> None:
    """Fluxes of isolated stars, by the PSF of each image and in circles: the co-adds over the frame."""
    import sep
    from scipy.spatial import cKDTree

    from skyloom.psf import estimate_psf
    from skyloom.psf.shift import shift_stamp
    from skyloom.registration import detect_sources

    stars = detect_sources(frame)
    stars = stars[(stars["flag"] == 0)]
    xy = np.column_stack([stars["x"], stars["y"]])
    alone = cKDTree(xy).query(xy, k=2)[0][:, 1] > 14
    inside = (xy > 90).all(axis=1) & (xy < 420).all(axis=1)
    xy = xy[alone & inside][:40]

    def fluxes(image: skyloom.Exposure, psf: object) -> np.ndarray:
        result = []
        for x, y in xy:
            i, j = round(x), round(y)
            stamp = shift_stamp(psf.stamp(x, y), x - i, y - j)[psf.half - 5 : psf.half + 6, psf.half - 5 : psf.half + 6]
            design = np.column_stack([stamp.ravel(), np.ones(stamp.size)])
            result.append(np.linalg.lstsq(design, image.data[j - 5 : j + 6, i - 5 : i + 6].ravel())[0][0])
        return np.array(result)

    def sums(image: skyloom.Exposure) -> np.ndarray:
        data = np.ascontiguousarray(image.data, np.float64)
        circle, ring = sep.sum_circle(data, *xy.T, 8.0)[0], sep.sum_circann(data, *xy.T, 14.0, 18.0)[0]
        return circle - ring * 8.0**2 / (18.0**2 - 14.0**2)

    by_psf, by_sum = fluxes(frame, estimate_psf(frame)), sums(frame)
    for method, one in made.items():
        for how, ratio in (
            ("PSF", fluxes(one.exposure, one.psf) / by_psf),
            ("circles of 8 pixels", sums(one.exposure) / by_sum),
        ):
            print(
                f"{method}, {how}: flux over that in the frame: median {np.median(ratio):.4f} of {len(ratio)} stars, "
                f"scatter {1.4826 * np.median(np.abs(ratio - np.median(ratio))):.4f}"
            )


if __name__ == "__main__":
    overview()
    coadds()
