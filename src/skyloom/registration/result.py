"""`Registration`: the verified transform between two images and its statistics."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table

from skyloom.registration.search import Solution
from skyloom.registration.transform import Transform, as_xy, monomials
from skyloom.registration.verify import is_inside

Float = npt.NDArray[np.float64]

_GRID = 17
"""Positions along each axis at which the error of a transform is looked at."""


@dataclass(frozen=True, eq=False)
class Registration:
    """The transform between a source image and a template, with the proof that it is right.

    Attributes
    ----------
    transform : Transform
        Template to source pixels.
    covariance : ndarray, shape (2 P, 2 P)
        Of ``transform.coefficients.ravel()``, source pixels squared.
    matched : Table
        The pairs: x_source, y_source, x_template, y_template, dx, dy (source minus predicted position, source pixels),
        sigma (standard error of dx and of dy) and, where known, flux_source and flux_template.
    rms_xy : (float, float)
        Root mean square of dx and of dy, each pair weighted with 1 / sigma^2, source pixels.
    log_likelihood_ratio : float
        Of the matches, against chance.
    chance_probability : float
        Bound on the probability that unrelated images match as well.
    flux_ratio : float
        Source flux / template flux. Of two images as `skyloom.registration.flux_ratio` measures it. Of tables (groups,
        catalogues, too few stars for circles) the median of their ratios, NaN where fluxes are unknown: windows of
        `detect_sources` follow the width of the stars, so that with PSFs of different shape this is some percent off.
    source_shape, template_shape : (int, int)
        Shapes (ny, nx).
    method : str
        What found the transform.
    template_wcs : object, optional
        The template's WCS, from which `wcs` is made.
    """

    transform: Transform
    covariance: Float
    matched: Table
    rms_xy: tuple[float, float]
    log_likelihood_ratio: float
    chance_probability: float
    flux_ratio: float
    source_shape: tuple[int, int]
    template_shape: tuple[int, int]
    method: str
    template_wcs: Any = field(default=None, repr=False)

    @classmethod
    def from_solution(
        cls, solution: Solution, source_table: Table, template_table: Table, template_wcs: Any
    ) -> Registration:
        """Put together the result from the accepted solution and the tables that it came from."""
        fit, source, template = solution.fit, solution.source, solution.template
        a, b = template.xy[fit.matches.template], source.xy[fit.matches.source]
        miss = b - fit.transform(a)
        matched = Table(
            {
                "x_source": b[:, 0],
                "y_source": b[:, 1],
                "x_template": a[:, 0],
                "y_template": a[:, 1],
                "dx": miss[:, 0],
                "dy": miss[:, 1],
                "sigma": fit.sigma,
            }
        )
        ratio = np.nan
        if "flux" in source_table.colnames and "flux" in template_table.colnames:
            flux = [
                np.asarray(table["flux"], np.float64)[stars.rows[index]]
                for table, stars, index in (
                    (source_table, source, fit.matches.source),
                    (template_table, template, fit.matches.template),
                )
            ]
            matched["flux_source"], matched["flux_template"] = flux
            positive = (flux[0] > 0) & (flux[1] > 0)
            if positive.any():
                ratio = float(np.median(flux[0][positive] / flux[1][positive]))
        weight = fit.sigma**-2.0
        rms = np.sqrt((miss**2 * weight[:, None]).sum(axis=0) / weight.sum())
        return cls(
            fit.transform,
            fit.covariance,
            matched,
            (float(rms[0]), float(rms[1])),
            solution.log_likelihood_ratio,
            float(np.exp(min(solution.log_chance, 0.0))),
            ratio,
            source.shape,
            template.shape,
            solution.method,
            template_wcs,
        )

    def template_to_source(self, xy: npt.ArrayLike) -> Float:
        """Map template pixels to source pixels, both of shape (N, 2)."""
        return self.transform(xy)

    def source_to_template(self, xy: npt.ArrayLike) -> Float:
        """Map source pixels to template pixels, both of shape (N, 2): the exact inverse."""
        return self.transform.inverse(xy)

    def position_error(self, xy: npt.ArrayLike) -> Float:
        """Return the standard error of `template_to_source` at template pixels (N, 2), per axis, source pixels."""
        t = self.transform
        terms = monomials((as_xy(xy) - t.centre) / t.half, t.order)
        p = terms.shape[1]
        blocks = self.covariance[:p, :p], self.covariance[p:, p:]
        variance = np.column_stack([np.einsum("ni,ij,nj->n", terms, block, terms) for block in blocks])
        if t.residual is not None:
            variance += t.residual.variance(as_xy(xy))[:, None]
        return np.sqrt(variance)

    def overlap_error(self) -> float:
        """Return the standard error of `template_to_source`, RMS of the distance over the overlap, source pixels."""
        ny, nx = self.template_shape
        x, y = np.meshgrid(np.linspace(0, nx - 1, _GRID), np.linspace(0, ny - 1, _GRID))
        xy = np.column_stack([x.ravel(), y.ravel()])
        inside = is_inside(self.transform(xy), self.source_shape)
        if not inside.any():  # an overlap smaller than a cell of the grid
            xy = np.column_stack([self.matched["x_template"], self.matched["y_template"]])
            inside = np.ones(len(xy), bool)
        return float(np.sqrt(np.square(self.position_error(xy[inside])).sum(axis=1).mean()))

    def residual_map(self, cells: int = 8) -> Float:
        """Return what the transform leaves over, averaged over the source image: none but noise, if it is right.

        Parameters
        ----------
        cells : int
            Cells along each axis of the source.

        Returns
        -------
        ndarray, shape (cells, cells, 2)
            Mean of (dx, dy) of the matched stars in each cell, weighted with 1 / sigma^2, source pixels, first axis
            along y; NaN where there are none.
        """
        m, (ny, nx) = self.matched, self.source_shape
        column = np.clip((np.asarray(m["x_source"]) + 0.5) * cells / nx, 0, cells - 1).astype(np.intp)
        row = np.clip((np.asarray(m["y_source"]) + 0.5) * cells / ny, 0, cells - 1).astype(np.intp)
        weight = np.asarray(m["sigma"], np.float64) ** -2.0
        total, *sums = (
            np.bincount(row * cells + column, w, cells * cells) for w in (weight, weight * m["dx"], weight * m["dy"])
        )
        with np.errstate(invalid="ignore"):
            return np.stack([one / total for one in sums], axis=-1).reshape(cells, cells, 2)

    @property
    def n_matched(self) -> int:
        """Number of pairs in the fit."""
        return len(self.matched)

    @property
    def rms(self) -> float:
        """Root mean square distance of the pairs, weighted, source pixels."""
        return float(np.hypot(*self.rms_xy))

    @property
    def scale(self) -> float:
        """Source pixels per template pixel."""
        return self.transform.scale

    @property
    def rotation(self) -> float:
        """Degrees, see `Transform.rotation`."""
        return self.transform.rotation

    @property
    def parity(self) -> int:
        """-1 if one image is a mirror image of the other, else +1."""
        return self.transform.parity

    @property
    def order(self) -> int:
        """Degree of the polynomial."""
        return self.transform.order

    @cached_property
    def wcs(self) -> Any:
        """WCS of the source, from the template's and the transform; None if the template has none."""
        if self.template_wcs is None:
            return None
        from skyloom.registration.sip import registration_wcs

        return registration_wcs(self, self.template_wcs)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers of the registration, for other programs: JSON can hold them.

        Returns
        -------
        dict
            The properties and attributes by their names; `rms_x`, `rms_y`; `error`, of `overlap_error`; `transform`,
            see `Transform.to_dict`.
        """
        names = (
            "n_matched", "rms", "scale", "rotation", "parity", "order", "flux_ratio", "log_likelihood_ratio",
            "chance_probability", "method", "source_shape", "template_shape",
        )  # fmt: skip
        x, y = self.rms_xy
        return {name: getattr(self, name) for name in names} | {
            "kind": self.transform.kind,
            "rms_x": x,
            "rms_y": y,
            "error": self.overlap_error(),
            "transform": self.transform.to_dict(),
        }

    def plot(self, axes: Any = None) -> Any:
        """Draw the residuals of the matched stars as arrows over the source image.

        Parameters
        ----------
        axes : matplotlib.axes.Axes, optional
            Where to draw; the default is a new figure.

        Returns
        -------
        matplotlib.axes.Axes
        """
        if axes is None:
            from matplotlib.figure import Figure

            axes = Figure(figsize=(7, 6), layout="constrained").subplots()
        m = self.matched
        ny, nx = self.source_shape
        arrows = axes.quiver(m["x_source"], m["y_source"], m["dx"], m["dy"], m["sigma"], angles="xy", width=0.003)
        typical = max(float(np.median(np.hypot(m["dx"], m["dy"]))), 1e-6)
        axes.quiverkey(arrows, 0.88, 1.03, 2 * typical, f"{2 * typical:.2g} px", labelpos="E")
        axes.figure.colorbar(arrows, ax=axes, label="expected error (px)")
        axes.set(
            xlim=(-0.5, nx - 0.5),
            ylim=(-0.5, ny - 0.5),
            aspect="equal",
            xlabel="x of the source (px)",
            ylabel="y of the source (px)",
        )
        axes.set_title(f"{self.n_matched} stars, rms {self.rms:.3f} px, order {self.order}", loc="left")
        return axes

    def __str__(self) -> str:
        family = f"{self.transform.kind} of order {self.order}" + (" + spline" if self.transform.residual else "")
        mirrored = ", mirrored" if self.parity < 0 else ""
        return (
            f"Registration: {self.n_matched} stars, rms {self.rms:.3f} px, {family}, scale {self.scale:.5f}, "
            f"rotation {self.rotation:.3f} deg{mirrored}, LLR {self.log_likelihood_ratio:.0f} ({self.method})"
        )
