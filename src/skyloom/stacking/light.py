"""How much light each exposure of a co-add got, beside the others: which of them had clouds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from skyloom.io.keywords import grows_with_time

if TYPE_CHECKING:
    from skyloom.stacking.result import Contribution

DIM = 0.3
"""Share of the light: 1.3 mag are lost."""
_AS_CLEAR = 0.95
"""An exposure with so much of the light of the brightest is as clear."""


def light(scales: Sequence[float], exptimes: Sequence[float | None], unit: str) -> npt.NDArray[np.float64]:
    """Return the light that exposures got, relative to the better ones: to the upper quartile of all.

    It is the inverse of the flux scale; divided by the exposure time, if the unit is plain counts, ADU or electrons and
    all times are known.

    Parameters
    ----------
    scales : sequence of float
        What fluxes are multiplied with to be on one scale.
    exptimes : sequence of float or None
        Seconds; None or 0 if unknown.
    unit : str
        Of the pixels.
    """
    times = np.array([time or 0.0 for time in exptimes])
    got = 1 / np.asarray(scales, np.float64)
    if grows_with_time(unit) and (times > 0).all():
        got = got / times
    return got / np.quantile(got, 0.75)


def clearest(scales: Sequence[float], exptimes: Sequence[float | None], unit: str) -> int:
    """Return the first exposure that is as clear as the brightest one, 0 if that is not known."""
    got = light(scales, exptimes, unit)
    return int(np.argmax(got >= _AS_CLEAR * got.max())) if np.isfinite(got).all() else 0


def frame_rows(contributions: Sequence[Contribution], unit: str) -> list[dict[str, Any]]:
    """Return what each exposure brings to a co-add, for tables and JSON.

    Returns
    -------
    list of dict
        `name`; `flux_scale`, what its fluxes were multiplied with; `light`, see the function; `sky`, the level of its
        sky in its own unit; `fwhm` (pixels, NaN if unknown); `n_stars`, by which it was placed; `n_rejected`, outlying
        pixels; `weight_share`, its part of all weights.
    """
    if not contributions:
        return []
    shares = np.array([one.weight for one in contributions])
    shares = shares / max(shares.sum(), np.finfo(float).tiny)
    got = light([one.scale for one in contributions], [one.exptime for one in contributions], unit)
    return [
        {
            "name": one.name,
            "flux_scale": one.scale,
            "light": float(bright),
            "sky": one.level,
            "fwhm": one.fwhm or float("nan"),
            "n_stars": one.n_stars,
            "n_rejected": one.n_rejected,
            "weight_share": float(share),
        }
        for one, bright, share in zip(contributions, got, shares, strict=True)
    ]


def frame_lines(rows: Sequence[dict[str, Any]], first: str = "exposure") -> list[str]:
    """Return the rows as lines of text, under a heading that begins with what they are."""
    width = max(len(first), *(len(row["name"]) for row in rows))
    lines = [f"{first:<{width}}  flux scale  light         sky    FWHM  stars  rejected  weight"]
    for row in rows:
        fwhm = "-" if not np.isfinite(row["fwhm"]) else f"{row['fwhm']:.2f}"
        sky = "-" if not np.isfinite(row["sky"]) else f"{row['sky']:.5g}"
        lines.append(
            f"{row['name']:<{width}}  {row['flux_scale']:10.4g}  {row['light']:5.2f}  {sky:>10}  {fwhm:>6}  "
            f"{row['n_stars'] or '-':>5}  {row['n_rejected']:8d}  {row['weight_share']:6.1%}"
        )
    return lines


def dim_frames(rows: Sequence[dict[str, Any]], start: int = 0) -> list[str]:
    """Return a warning for each exposure, from the one of the number `start` on, that got much less light than others.

    The first of all gives the flux scale.
    """
    texts = []
    for number, row in enumerate(rows):
        if number < start or row["light"] >= DIM:
            continue
        text = (
            f"{row['name']} has only {row['light']:.2g} of the light of the better exposures, and "
            f"{row['weight_share']:.1%} of the weight. Clouds, bad seeing or a bright sky?"
        )
        if number == 0:
            text += (
                " It gives the flux scale of the co-add, whose zero point is not that of a clear sky: put another "
                "exposure first."
            )
        texts.append(text)
    return texts
