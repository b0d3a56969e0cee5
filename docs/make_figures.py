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


if __name__ == "__main__":
    overview()
