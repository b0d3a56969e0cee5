"""The diagnostics of a difference, one function per plot. Each returns a `Plot`, or None when its data are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from skyloom.exposure import BoolArray
from skyloom.report.candidates import filled
from skyloom.report.images import robust_location
from skyloom.report.planes import DifferenceLike, View, sigma_of
from skyloom.report.summary import Summary, psf_fwhm, stamps_used
from skyloom.report.svg import BLUE, GREEN, INK, LINE, MUTED, ORANGE, drawing, to_svg

MAX_POINTS = 1500
"""Points in one scatter plot: an SVG point is some 80 bytes. More are thinned evenly, and the caption says so."""

Array = npt.NDArray[np.float64]
POINTS: dict[str, Any] = {"markersize": 4, "alpha": 0.6, "markeredgewidth": 0}


@dataclass(frozen=True)
class Plot:
    """One figure of the page: its heading, an ``<svg>`` element and what it shows, in a sentence or two."""

    name: str
    title: str
    svg: str
    caption: str


@dataclass(frozen=True, eq=False)
class Subject:
    """All that a plot may draw from."""

    difference: DifferenceLike
    views: Mapping[str, View]
    summary: Summary

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the image, (ny, nx)."""
        ny, nx = self.views["difference"].values.shape
        return ny, nx

    def matched(self, *columns: str) -> list[Array] | None:
        """Return columns of the table of matched stars, rows with a NaN left out; None when there are none."""
        table = getattr(getattr(self.difference, "registration", None), "matched", None)
        if table is None or any(name not in table.colnames for name in columns) or len(table) == 0:
            return None
        values = np.array([filled(table[name]) for name in columns])
        values = values[:, np.isfinite(values).all(axis=0)]
        return list(values) if values.shape[1] else None


def all_plots(subject: Subject) -> list[Plot]:
    """Draw all diagnostics that the difference has data for."""
    functions: tuple[Callable[[Subject], Plot | None], ...] = (
        noise,
        star_residuals,
        astrometry,
        astrometry_map,
        photometry,
        kernel,
        stamps,
        fwhm_map,
    )
    return [plot for function in functions if (plot := function(subject)) is not None]


def _thin(count: int) -> tuple[slice, str]:
    step = -(-count // MAX_POINTS)
    return slice(None, None, step), "" if step == 1 else f" One star in {step} is drawn."


def _field(axes: Any, shape: tuple[int, int]) -> None:
    """Set up axes that show the whole image."""
    ny, nx = shape
    axes.set(xlim=(-0.5, nx - 0.5), ylim=(-0.5, ny - 0.5), xlabel="x [px]", ylabel="y [px]", aspect="equal")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.spines[["top", "right"]].set_visible(True)


def noise(subject: Subject) -> Plot | None:
    """Draw the distribution of D/sigma and of the score against the unit Gaussian."""
    view = subject.views["difference"]
    pull = view.values / sigma_of(subject.difference)
    samples: list[tuple[str, npt.NDArray[np.floating], str]] = [("D/σ", pull[view.usable & np.isfinite(pull)], BLUE)]
    if "score" in subject.views:
        score = subject.views["score"]
        samples.append(("score", score.values[score.usable], ORANGE))
    samples = [sample for sample in samples if sample[1].size]
    if not samples:
        return None
    edges = np.linspace(-8, 8, 81)
    centres = (edges[1:] + edges[:-1]) / 2
    with drawing() as figure:
        axes = figure.add_subplot()
        axes.grid(visible=True)
        lowest = 1 / max(values.size for _, values, _ in samples)
        for label, values, colour in samples:
            density = np.histogram(values, edges)[0] / values.size / np.diff(edges)
            axes.stairs(np.where(density > 0, density, np.nan), edges, color=colour, label=label, linewidth=1.4)
        axes.plot(
            centres,
            np.exp(-(centres**2) / 2) / np.sqrt(2 * np.pi),
            color=INK,
            linestyle="--",
            linewidth=1,
            label="unit Gaussian",
        )
        axes.set(
            yscale="log",
            ylim=(lowest, 5),
            xlim=(-8, 8),
            xlabel="value in units of its noise",
            ylabel="probability density",
        )
        axes.legend(loc="upper left", handlelength=1.4)
        svg = to_svg(figure, "noise")
    stds = ", ".join(f"{label} {float(robust_location(values)[1]):.3f}" for label, values, _ in samples)
    beyond = ", ".join(f"{label} {np.mean(np.abs(values) > 5):.1e}" for label, values, _ in samples)
    return Plot(
        "noise",
        "Noise",
        svg,
        f"Robust standard deviation of all usable pixels: {stds}. Part of the pixels beyond 5: {beyond}; Gaussian "
        "noise has 5.7e-07, sources that changed come on top.",
    )


def star_residuals(subject: Subject) -> Plot | None:
    """Draw the rms of D/sigma under each matched star against its flux: 1 when stars subtract to the noise."""
    stars = subject.matched(*_on_science("x", "y", "flux"))
    if stars is None:
        return None
    chi, flux = _chi_under(subject, stars)
    if not chi.size:
        return None
    part, thinned = _thin(chi.size)
    with drawing() as figure:
        axes = figure.add_subplot()
        axes.grid(visible=True)
        axes.axhline(1, color=INK, linestyle="--", linewidth=1)
        axes.plot(flux[part], chi[part], ".", color=BLUE, **POINTS)
        middle, median = _running_median(flux, chi)
        axes.plot(middle, median, color=ORANGE, linewidth=1.8)
        axes.set(xscale="log", yscale="log", xlabel="flux of the star", ylabel="rms of D/σ under the star")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(min(0.5, float(chi.min())), max(2.0, 1.1 * float(chi.max())))
        svg = to_svg(figure, "star-residuals")
    bright = chi[flux >= np.percentile(flux, 75)]
    return Plot(
        "star-residuals",
        "Residuals under stars",
        svg,
        f"Each point is a star of the registration, within one FWHM; 1 (dashed) is pure noise, the line is the "
        f"running median. Brightest quarter: median {np.median(bright):.2f}.{thinned}",
    )


def _on_science(*names: str) -> list[str]:
    return [f"{name}_source" for name in names]


def _chi_under(subject: Subject, stars: list[Array]) -> tuple[Array, Array]:
    """Return the rms of D/sigma within one FWHM of stars (x, y, flux) with usable pixels there, and their fluxes."""
    view = subject.views["difference"]
    ny, nx = subject.shape
    ratio = np.where(view.usable, view.values / sigma_of(subject.difference), np.nan)
    radius = subject.summary.fwhm or 3.0
    half = int(np.ceil(radius))
    oy, ox = np.mgrid[-half : half + 1, -half : half + 1]
    x, y, flux = stars
    inside = (x >= half) & (x <= nx - 1 - half) & (y >= half) & (y <= ny - 1 - half) & (flux > 0)
    x, y, flux = x[inside], y[inside], flux[inside]
    column, row = np.rint(x).astype(int)[:, None, None] + ox, np.rint(y).astype(int)[:, None, None] + oy
    near = np.hypot(column - x[:, None, None], row - y[:, None, None]) <= radius
    values = np.where(near, ratio[row, column] ** 2, 0.0)
    chi = np.sqrt(values.sum(axis=(1, 2)) / near.sum(axis=(1, 2)))
    good = np.isfinite(chi) & (chi > 0)
    return chi[good], flux[good]


def _running_median(x: Array, y: Array) -> tuple[Array, Array]:
    """Return the medians of x and y in up to 12 groups of equal size, at least 5 points each."""
    groups = np.array_split(np.argsort(x, kind="stable"), int(np.clip(x.size // 5, 1, 12)))
    return np.array([np.median(x[g]) for g in groups]), np.array([np.median(y[g]) for g in groups])


def _residuals(subject: Subject, *columns: str) -> tuple[list[Array], BoolArray] | None:
    """Return columns of the matched stars, and which of them are the half with the smaller errors."""
    stars = subject.matched(*columns, "sigma")
    if stars is None:
        stars = subject.matched(*columns)
        return None if stars is None else (stars, np.ones(stars[0].size, bool))
    *values, sigma = stars
    return values, sigma <= np.median(sigma)


def astrometry(subject: Subject) -> Plot | None:
    """Draw the residuals of the registration against each other."""
    found = _residuals(subject, "dx", "dy")
    if found is None:
        return None
    (dx, dy), better = found
    part, thinned = _thin(dx.size)
    plain = float(np.sqrt(np.mean(dx**2 + dy**2)))
    rms = plain if subject.summary.rms_px is None else subject.summary.rms_px
    limit = 1.1 * max(float(np.percentile(np.hypot(dx, dy), 98)), 1.5 * rms, 1e-6)
    angle = np.linspace(0, 2 * np.pi, 73)
    with drawing(3.1, 2.9) as figure:
        axes = figure.add_subplot()
        axes.grid(visible=True)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        for these, colour in ((~better, MUTED), (better, BLUE)):
            axes.plot(dx[part][these[part]], dy[part][these[part]], ".", color=colour, **POINTS)
        axes.plot(rms * np.cos(angle), rms * np.sin(angle), color=ORANGE, linewidth=1.5)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel="Δx [px]", ylabel="Δy [px]")
        svg = to_svg(figure, "astrometry")
    halves = "" if better.all() else " Grey: the half with the larger errors."
    return Plot(
        "astrometry",
        "Astrometric residuals",
        svg,
        f"{dx.size:,} matched stars; mean ({dx.mean():+.4f}, {dy.mean():+.4f}) px, unweighted rms {plain:.4f} px. The "
        f"circle is the rms of the fit, {rms:.4f} px.{halves}{thinned}",
    )


def astrometry_map(subject: Subject) -> Plot | None:
    """Draw the residuals of the registration as arrows on the field, and their means in 5 x 5 cells."""
    found = _residuals(subject, *_on_science("x", "y"), "dx", "dy")
    if found is None:
        return None
    stars, better = found
    x, y, dx, dy = (values[better] for values in stars)
    typical = float(np.median(np.hypot(dx, dy)))
    if not typical > 0:
        return None
    length = max(subject.shape) / 25
    step = -(-x.size // 400)
    arrow = {"angles": "xy", "scale_units": "xy", "scale": typical / length}
    with drawing(3.1, 2.9) as figure:
        axes = figure.add_subplot()
        _field(axes, subject.shape)
        axes.quiver(*(v[::step] for v in (x, y, dx, dy)), color=BLUE, width=0.0045, headwidth=3.5, alpha=0.5, **arrow)
        means = _cell_means(subject.shape, x, y, dx, dy)
        if len(means):
            axes.quiver(*means.T, color=ORANGE, width=0.009, headwidth=3, **arrow)
        svg = to_svg(figure, "astrometry-map")
    some = "" if better.all() else " of the half with the smaller errors"
    return Plot(
        "astrometry-map",
        "Residuals on the field",
        svg,
        f"Residuals{some}, a typical one ({typical:.3f} px) drawn {length:.0f} px long; the bold arrows are the means "
        "of 5 × 5 cells. Long bold arrows mean distortion that was not fitted."
        + ("" if step == 1 else f" One star in {step} is drawn."),
    )


def _cell_means(shape: tuple[int, int], *columns: Array) -> Array:
    """Return the means of columns (x, y, ...) in those of 5 x 5 cells of the field that hold 3 stars or more."""
    stars = np.column_stack(columns)
    cell = np.floor(5 * (stars[:, :2] + 0.5) / shape[::-1]).astype(int) @ (1, 10)
    members = [stars[cell == one] for one in np.unique(cell)]
    return np.array([group.mean(axis=0) for group in members if len(group) >= 3])


def photometry(subject: Subject) -> Plot | None:
    """Draw the flux ratio of the matched stars against flux."""
    stars = subject.matched("flux_source", "flux_template")
    if stars is None:
        return None
    flux, other = stars
    good = (flux > 0) & (other > 0)
    if not good.any():
        return None
    flux, ratio = flux[good], flux[good] / other[good]
    part, thinned = _thin(flux.size)
    middle, scatter = map(float, robust_location(ratio))
    spread = max(5 * scatter, 0.02 * middle)
    with drawing() as figure:
        axes = figure.add_subplot()
        axes.grid(visible=True)
        axes.axhline(middle, color=INK, linestyle="--", linewidth=1)
        axes.plot(flux[part], ratio[part], ".", color=BLUE, **POINTS)
        axes.plot(*_running_median(flux, ratio), color=ORANGE, linewidth=1.8)
        axes.set(
            xscale="log",
            ylim=(middle - spread, middle + spread),
            xlabel="flux of the star",
            ylabel="flux ratio of the images",
        )
        svg = to_svg(figure, "photometry")
    return Plot(
        "photometry",
        "Photometric ratio",
        svg,
        f"Median {middle:.4f}, robust scatter {scatter / middle:.2%}; the line is the running median. A slope "
        f"at the bright end means saturation or non-linearity.{thinned}",
    )


def kernel(subject: Subject) -> Plot | None:
    """Draw the matching kernel at 3 x 3 positions of the field, on one colour scale."""
    model: Any = getattr(subject.difference, "kernel", None)
    if not callable(getattr(model, "image_at", None)):
        return None
    ny, nx = subject.shape
    tiles: list[list[Array]] = [
        [np.asarray(model.image_at(x, y), dtype=np.float64) for x in _three(nx)] for y in _three(ny)
    ]
    sums = np.array([[tile.sum() for tile in row] for row in tiles])
    size = tiles[0][0].shape[0]
    tiles, inner = _core(tiles)
    framed = [[np.pad(tile, 1, constant_values=np.nan) for tile in row] for row in tiles]
    mosaic = np.concatenate([np.concatenate(row, axis=1) for row in framed])
    peak = float(np.nanmax(np.abs(mosaic))) or 1.0
    with drawing(3.3, 2.9) as figure:
        axes = figure.add_subplot()
        drawn = axes.imshow(mosaic, origin="lower", cmap="RdBu_r", vmin=-peak, vmax=peak)
        axes.set_axis_off()
        bar = figure.colorbar(drawn, ax=axes, shrink=0.85)
        bar.outline.set_visible(False)
        svg = to_svg(figure, "kernel")
    change = float(np.ptp(sums) / abs(sums[1, 1])) if sums[1, 1] else 0.0
    return Plot(
        "kernel",
        "Matching kernel",
        svg,
        f"At the corners, the sides and the middle of the field: the inner {inner} × {inner} of {size} × {size} px. "
        f"Sum {sums[1, 1]:.4f} in the middle; it changes by {change:.2%} over the field.",
    )


def _core(tiles: list[list[Array]]) -> tuple[list[list[Array]], int]:
    """Cut kernels to the smallest centred square outside of which all are below 1 % of the peak; and its side."""
    strength = np.max(np.abs([tile for row in tiles for tile in row]), axis=0)
    half = strength.shape[0] // 2
    oy, ox = np.nonzero(strength > 0.01 * strength.max())
    keep = max(int(np.max(np.abs([oy - half, ox - half]), initial=0)), min(3, half))
    inside = slice(half - keep, half + keep + 1)
    return [[tile[inside, inside] for tile in row] for row in tiles], 2 * keep + 1


def _three(length: int) -> Array:
    return np.array([1 / 6, 1 / 2, 5 / 6]) * length - 0.5


def stamps(subject: Subject) -> Plot | None:
    """Draw where the stamps of the kernel fit lie, used and rejected ones."""
    table: Any = getattr(subject.difference, "stamps", None)
    used = stamps_used(table)
    if used is None or not used.size or any(name not in table.colnames for name in "xy"):
        return None
    x, y = (filled(table[name]) for name in "xy")
    with drawing(3.1, 2.9) as figure:
        axes = figure.add_subplot()
        _field(axes, subject.shape)
        axes.plot(x[used], y[used], "s", color=GREEN, markersize=5, markeredgewidth=0, label=f"used ({used.sum()})")
        axes.plot(x[~used], y[~used], "x", color=ORANGE, markersize=5, label=f"rejected ({(~used).sum()})")
        figure.legend(loc="outside upper center", ncols=2, handletextpad=0.2)
        svg = to_svg(figure, "stamps")
    chi2 = filled(table["chi2"])[used] if "chi2" in table.colnames else np.empty(0)
    chi2 = chi2[np.isfinite(chi2)]
    about = f" Median χ² of those used: {np.median(chi2):.2f}." if chi2.size else ""
    return Plot(
        "stamps",
        "Stamps of the kernel fit",
        svg,
        f"{used.sum()} of {used.size} stamps were used.{about} Where there are none, the kernel is extrapolated.",
    )


def fwhm_map(subject: Subject) -> Plot | None:
    """Draw the FWHM of the point spread function at 3 x 3 positions of the field."""
    psf = getattr(subject.difference, "psf", None)
    if psf_fwhm(psf) is None:
        return None
    ny, nx = subject.shape
    xs, ys = _three(nx), _three(ny)
    try:
        values = np.array([[psf_fwhm(psf, x, y) or np.nan for x in xs] for y in ys])
    except TypeError:  # a point spread function that is the same everywhere
        values = np.full((3, 3), psf_fwhm(psf))
    if not np.isfinite(values).all():
        return None
    with drawing(3.1, 2.9) as figure:
        axes = figure.add_subplot()
        _field(axes, subject.shape)
        middle = float(np.median(values))
        span = max(float(np.abs(values - middle).max()), 0.05 * middle)
        axes.imshow(
            values,
            origin="lower",
            extent=(-0.5, nx - 0.5, -0.5, ny - 0.5),
            cmap="PuOr_r",
            aspect="equal",
            vmin=middle - 2 * span,
            vmax=middle + 2 * span,
            alpha=0.35,
        )
        for j, i in np.ndindex(3, 3):
            axes.text(float(xs[i]), float(ys[j]), f"{values[j, i]:.2f}", ha="center", va="center", fontsize=10)
        for k in (1, 2):
            axes.axvline(k * nx / 3 - 0.5, color=LINE, linewidth=0.8)
            axes.axhline(k * ny / 3 - 0.5, color=LINE, linewidth=0.8)
        svg = to_svg(figure, "fwhm")
    return Plot(
        "fwhm",
        "FWHM on the field",
        svg,
        f"FWHM of the point spread function in pixels: {values.min():.2f} to {values.max():.2f}.",
    )
