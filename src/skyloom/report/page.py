"""Assembly of the review page: one HTML file that needs nothing else and asks for nothing from the network."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from skyloom import __version__
from skyloom.detection.flags import found
from skyloom.report.candidates import CandidateList, candidate_list
from skyloom.report.planes import DifferenceLike, collect, frames, sigma_of, sprites
from skyloom.report.plots import Subject, all_plots
from skyloom.report.summary import Summary, describe, details, facts, judge, sky_vectors, summarize

SCRIPTS = ("pixels.js", "frame.js", "marks.js", "table.js", "main.js")
SKY_STEPS = 24
"""Cells of the grid, each way, from which the page interpolates RA and Dec linearly."""


def write_report(difference: DifferenceLike, candidates: Any, path: str | Path) -> Path:
    """Write the review page of a difference: verdict, candidates with cutouts, full-frame views and diagnostics.

    The page is one file without any reference to another. It opens from disk in any current browser.

    Parameters
    ----------
    difference : Difference
        From `skyloom.difference`, or anything alike; what is missing is left out of the page.
    candidates : Table or None
        From `skyloom.detect`. Needs the columns ``x`` and ``y`` (0-based pixels); uses ``id snr flux flux_err sign ra
        dec flags flag_text`` where they are there, and shows all others with the details of a candidate.
    path : str or Path
        The HTML file to write. An existing one is replaced.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    WriteError
        The file cannot be written.
    """
    from skyloom.io import atomic_write

    html = render(difference, candidates)
    path = Path(path)
    with atomic_write(path, overwrite=True) as temporary:
        Path(temporary).write_text(html, encoding="utf-8")
    return path


def render(difference: DifferenceLike, candidates: Any) -> str:
    """Return the page as text; see `write_report`."""
    views = collect(difference)
    table = candidate_list(candidates)
    summary = summarize(difference, table, views)
    pictures = frames(views)
    cutouts = sprites(views, sigma_of(difference), table.xy, summary.fwhm)
    science, template = difference.science, difference.template
    ny, nx = views["difference"].values.shape
    data = {
        "key": _identity(difference, table),
        "science": science.name,
        "template": template.name,
        "shape": (ny, nx),
        "fwhm": summary.fwhm,
        "pixelScale": summary.pixel_scale,
        "frames": pictures,
        "sprites": cutouts,
        "columns": table.columns,
        "flagged": [bool(flag) for flag in table.flagged],
        **_sky(getattr(difference, "wcs", None), (ny, nx)),
    }
    script = _asset_script()
    low, high = _snr_range(table)
    return (
        _environment()
        .from_string(_asset("template.html.j2"))
        .render(
            version=__version__,
            title=f"{science.name} minus {template.name}: {found(len(table) - summary.flagged, summary.flagged)}",
            science=science,
            template=template,
            verdict=judge(summary),
            facts=facts(summary, difference),
            images=[("Science", describe(science)), ("Template", describe(template))],
            count=len(table),
            snr_min=low,
            snr_max=high,
            without_cutouts=len(table) - cutouts["count"],
            frames=pictures,
            bin=pictures[0]["bin"],
            aspect=f"{np.clip(nx / ny, 0.75, 2):.3f}",
            has_score="score" in views,
            plots=_drawn(difference, views, summary),
            details=details(difference),
            style=Markup(_asset("style.css")),
            script=Markup(script),
            script_hash=_hash(script),
            data=Markup(_json(data)),
        )
    )


def _drawn(difference: DifferenceLike, views: dict[str, Any], summary: Summary) -> list[dict[str, Any]]:
    plots = all_plots(Subject(difference, views, summary))
    return [
        {"name": plot.name, "title": plot.title, "caption": plot.caption, "svg": Markup(plot.svg)} for plot in plots
    ]


def _environment() -> Environment:
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _asset_script() -> str:
    return '"use strict";\n' + "\n".join(_asset(name) for name in SCRIPTS)


def _hash(script: str) -> str:
    """Return the source expression of the content security policy that lets this script run, and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _json(data: Any) -> str:
    """Return JSON that can stand in a ``<script>`` element: no text in it can end the element or open a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _identity(difference: DifferenceLike, table: CandidateList) -> str:
    """Return what the browser's storage knows this page by: the same for the same images and candidates."""
    digest = hashlib.sha256(f"{difference.science.name}\0{difference.template.name}".encode())
    digest.update(np.ascontiguousarray(np.round(table.xy, 2)).tobytes())
    return digest.hexdigest()[:16]


def _snr_range(table: CandidateList) -> tuple[float, float]:
    """Return the ends of the S/N slider, rounded outwards to 0.1; the few brightest would take all its length."""
    values: list[Any] = next((column["values"] for column in table.columns if column["key"] == "snr"), [])
    sizes = [abs(value) for value in values if value is not None]
    if not sizes:
        return 0.0, 0.0
    low, high = min(sizes), max(float(np.percentile(sizes, 98)), min(sizes) + 1)
    return float(np.floor(low * 10) / 10), float(np.ceil(high * 10) / 10)


def _sky(wcs: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return a grid of unit vectors on the sky and the directions of north and east on the image, or None for both."""
    ny, nx = shape
    x, y = np.linspace(-0.5, nx - 0.5, SKY_STEPS + 1), np.linspace(-0.5, ny - 0.5, SKY_STEPS + 1)
    vectors = sky_vectors(wcs, np.column_stack([axis.ravel() for axis in np.meshgrid(x, y)]))
    if vectors is None:
        return {"sky": None, "compass": None}
    return {
        "sky": {
            "nx": len(x),
            "ny": len(y),
            "x0": x[0],
            "y0": y[0],
            "dx": x[1] - x[0],
            "dy": y[1] - y[0],
            "vectors": [float(f"{value:.12g}") if np.isfinite(value) else None for value in vectors.ravel()],
        },
        "compass": _compass(wcs, shape),
    }


def _compass(wcs: Any, shape: tuple[int, ...]) -> dict[str, list[float]] | None:
    """Return the directions of east and north in pixels at the middle of the image, as unit vectors (x, y)."""
    middle = (np.array(shape[::-1]) - 1) / 2
    sky = sky_vectors(wcs, middle + np.array([[0, 0], [1, 0], [0, 1]]))
    if sky is None or not np.isfinite(sky).all():
        return None
    here, right, up = sky
    east = np.cross([0, 0, 1], here)
    axes = np.array([east, np.cross(here, east)])
    jacobian = axes @ np.array([right - here, up - here]).T  # of (east, north) by (x, y)
    if not abs(np.linalg.det(jacobian)) > 0:  # at a pole, or a WCS without extent
        return None
    steps = np.linalg.inv(jacobian).T
    return {name: [float(v) for v in step / np.linalg.norm(step)] for name, step in zip("EN", steps, strict=True)}
