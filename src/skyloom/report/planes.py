"""What the page takes from a difference: the planes to show, their usable pixels, frames and cutouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from skyloom.exposure import UNUSABLE, BoolArray, Exposure
from skyloom.report import images
from skyloom.report.images import Plane, Stretch

FRAME_PIXELS = 1_800_000
"""Pixels of one full-frame view; larger images are binned. Four frames then take about 6 MB of the page."""
SPRITE_PIXELS = 10_000_000
"""Pixels of all cutouts together, about 6 MB of the page: many candidates get smaller cutouts."""
SPRITE_LEVELS = 48
SIZES = (21, 61)
"""Smallest and largest side of a cutout, pixels."""
ROWS_PER_SHEET = 96


class DifferenceLike(Protocol):
    """What `write_report` needs of a difference, see `skyloom.pipeline.Difference`.

    Besides, it uses ``score``, ``matched``, ``psf``, ``kernel``, ``registration``, ``stamps``, ``diagnostics``,
    ``parameters`` and ``wcs`` where they are there and not None.
    """

    @property
    def image(self) -> npt.NDArray[np.floating]: ...  # noqa: D102
    @property
    def variance(self) -> npt.NDArray[np.floating]: ...  # noqa: D102
    @property
    def mask(self) -> npt.NDArray[np.integer]: ...  # noqa: D102
    @property
    def science(self) -> Exposure: ...  # noqa: D102
    @property
    def template(self) -> Exposure: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class View:
    """One plane as it is shown.

    Attributes
    ----------
    key, label : str
        Its name for programs and for people.
    values : float32 array, shape (ny, nx)
    usable : bool array, shape (ny, nx)
    unit : str
    """

    key: str
    label: str
    values: Plane
    usable: BoolArray
    unit: str


def collect(difference: DifferenceLike) -> dict[str, View]:
    """Return the planes that can be shown: science, template, difference and, if there is one, the score."""
    science, template = difference.science, difference.template
    unit = science.unit
    matched = getattr(difference, "matched", None)
    usable = (np.asarray(difference.mask) & np.asarray(difference.mask).dtype.type(UNUSABLE)) == 0
    views = [
        View("science", "Science", _plane(science.data), science.usable, unit),
        View("template", "Template", _plane(template.data), template.usable, template.unit)
        if matched is None
        else View("template", "Matched template", _plane(matched), template.usable & np.isfinite(matched), unit),
        View("difference", "Difference", _plane(difference.image), usable & np.isfinite(difference.image), unit),
    ]
    score = getattr(difference, "score", None)
    significance = significance_of(score)
    if significance is not None:
        # a plain array is exactly 0 where there is no score
        scored = usable & np.isfinite(significance) & np.asarray(getattr(score, "valid", significance != 0))
        views.append(View("score", "Score", _plane(significance), scored, "σ"))
    return {view.key: view for view in views}


def significance_of(score: Any) -> npt.NDArray[np.floating] | None:
    """Return the array of the score in units of its noise, from an array or an object that has it, or None."""
    score = getattr(score, "significance", score)
    return None if score is None else np.asarray(score)


def sigma_of(difference: DifferenceLike) -> npt.NDArray[np.float64]:
    """Return the standard deviation of each pixel of the difference; NaN where it has none."""
    variance = np.asarray(difference.variance, dtype=np.float64)
    good = np.isfinite(variance) & (variance > 0)
    return np.sqrt(np.where(good, variance, np.nan))


def _plane(values: npt.NDArray[np.floating]) -> Plane:
    return np.asarray(values, dtype=np.float32)


def alike(views: dict[str, View]) -> bool:
    """Tell whether science image and template are in the same unit, so that one stretch shows both."""
    return views["science"].unit == views["template"].unit


def frames(views: dict[str, View]) -> list[dict[str, Any]]:
    """Return the full-frame pictures: their levels as data URI, the stretch and how many pixels were binned."""
    ny, nx = views["difference"].values.shape
    factor = max(1, int(np.ceil(np.sqrt(nx * ny / FRAME_PIXELS))))
    binned = {
        key: images.bin_plane(view.values, view.usable, factor, extreme=key == "score") for key, view in views.items()
    }
    science, template = (binned[key] for key in ("science", "template"))
    sky = images.sky_stretch(science[0][science[1]])
    difference = binned["difference"]
    stretches = {
        "science": sky,
        "template": sky if alike(views) else images.sky_stretch(template[0][template[1]]),
        "difference": images.symmetric_stretch(images.robust_location(difference[0][difference[1]])[1], reach=8),
        "score": images.symmetric_stretch(1.0, reach=8),
    }
    return [
        {
            "key": key,
            "label": view.label,
            "unit": view.unit,
            "bin": factor,
            "stretch": stretches[key].as_dict(),
            "uri": images.png_uri(stretches[key].apply(*binned[key])),
        }
        for key, view in views.items()
    ]


def cutout_size(fwhm: float | None, candidates: int, panels: int) -> int:
    """Return the odd side of the cutouts: about 9 FWHM, within `SIZES` and the budget `SPRITE_PIXELS`."""
    wanted = 9 * fwhm if fwhm is not None and np.isfinite(fwhm) else 41
    affordable = np.sqrt(SPRITE_PIXELS / max(candidates * panels, 1))
    side = int(np.clip(min(wanted, affordable), *SIZES))
    return side - (side + 1) % 2


def sprites(
    views: dict[str, View], sigma: npt.NDArray[np.float64], xy: npt.NDArray[np.float64], fwhm: float | None
) -> dict[str, Any]:
    """Return the cutouts of all candidates on a few sheets: a row for each candidate, a column for each plane.

    Candidates beyond the budget (with the smallest cutouts) have none; give the best first.

    Parameters
    ----------
    views : dict of View
        From `collect`.
    sigma : array, shape (ny, nx)
        Standard deviation of the difference.
    xy : array, shape (n, 2)
        Positions of the candidates, pixels.
    fwhm : float or None
        Pixels; sets the size of the cutouts.
    """
    size = cutout_size(fwhm, len(xy), len(views))
    xy = xy[: SPRITE_PIXELS // (SIZES[0] ** 2 * len(views))]
    uris = []
    for start in range(0, len(xy), ROWS_PER_SHEET):
        panels = _cutouts(views, sigma, xy[start : start + ROWS_PER_SHEET], size)
        # the encoder turns pictures upside down (y up), so the first candidate is put last
        rows = np.concatenate(panels, axis=2)[::-1]
        uris.append(images.png_uri(rows.reshape(-1, rows.shape[2])))
    return {
        "size": size,
        "panels": [view.label for view in views.values()],
        "rows": ROWS_PER_SHEET,
        "levels": SPRITE_LEVELS,
        "count": len(xy),
        "uris": uris,
    }


def _cutouts(
    views: dict[str, View], sigma: npt.NDArray[np.float64], xy: npt.NDArray[np.float64], size: int
) -> list[images.Levels]:
    """Return the levels of n candidates in each plane, (n, size, size); science and template share one stretch."""
    values = {key: images.cut(view.values, xy, size, 0.0) for key, view in views.items()}
    usable = {key: images.cut(view.usable, xy, size, False) for key, view in views.items()}
    flat = {key: np.where(usable[key], values[key], np.nan).reshape(len(xy), -1) for key in views}
    (noise,) = images.quantiles(images.cut(sigma, xy, size, np.nan).reshape(len(xy), -1), 0.5)
    stretches: dict[str, Stretch] = {}
    shown_alike = [("science", "template")] if alike(views) else [("science",), ("template",)]
    for keys in shown_alike:
        stretch = images.sky_stretch(
            np.concatenate([flat[key] for key in keys], axis=1), levels=SPRITE_LEVELS, reach=0.999
        )
        stretches |= dict.fromkeys(keys, stretch)
    for key, unit in (("difference", noise), ("score", np.ones(len(xy)))):
        if key in views:
            (largest,) = images.quantiles(np.abs(flat[key]), 0.995)
            reach = np.divide(largest, unit, out=np.zeros_like(largest), where=unit > 0)
            stretches[key] = images.symmetric_stretch(unit, reach=reach, levels=SPRITE_LEVELS)
    return [stretches[key].apply(values[key], usable[key]) for key in views]
