"""Flux ratio, shift and astrometric scatter of two images, from their stars.

Around each star both images are cut out and differenced properly (see `proper`), with the point spread functions of
that place. The flux ratio beta, a common shift of the template and a constant are those for which the weighted sum of
squares of all differences is least (Gauss-Newton, derivatives in Fourier space); what is left at each star tells how
far stars scatter around the common solution, beyond noise.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table
from scipy import fft

from skyloom.background import MAD_TO_SIGMA
from skyloom.errors import TooFewSourcesError
from skyloom.proper import transfer
from skyloom.psf import Psf
from skyloom.psf.model import stamps_of
from skyloom.subtraction.zogy.proper import ProperPair

logger = logging.getLogger("skyloom.subtraction")

Array = npt.NDArray[np.float64]

MAX_STARS = 120
FIRST_STARS = 30
"""So many stars, the best, bring the fit to where one more step with all of them is the last."""
ITERATIONS = 6
SMALL_STEP = 5e-3
"""Of the shift in pixels and of the relative flux ratio: the square of it is what the last step is wrong by."""
MODEL_ERROR = 0.01
"""Error of the point spread functions, relative to a star's signal: keeps the brightest star from ruling the fit."""
LARGEST_SHIFT = 1.5
"""Pixels, beyond which the images are not registered."""
MIN_STARS = 3
BOX_IN_FWHM = 3.0
"""Side of the boxes around stars in which both images are compared."""


@dataclass(frozen=True, eq=False)
class Planes:
    """One image as the fit and the filters take it; planes of shape (ny, nx).

    Parameters
    ----------
    data : ndarray
        Without background; 0 where unusable.
    variance : ndarray
        Variance of each pixel, with what resampling has correlated (see `Exposure.correlation`); 0 where unusable.
    usable : ndarray of bool
    sigma : float
        Standard deviation of the background's noise, likewise.
    """

    data: Any
    variance: Any
    usable: npt.NDArray[np.bool_]
    sigma: float


@dataclass(frozen=True, eq=False)
class Match:
    """How the template compares with the science image.

    Parameters
    ----------
    flux_ratio : float
        beta: flux of a source in the template over its flux in the science image.
    shift : (float, float)
        By how much (x, y) the template must be moved, in pixels.
    background : float
        Constant to subtract from the science image, in its unit.
    scatter : (float, float)
        Standard deviation of the stars' positions in x and y around that shift, noise taken off, in pixels.
    flux_scatter : float
        Standard deviation of the stars' flux ratios around `flux_ratio`, noise taken off, relative to it: what errors
        of the point spread functions do to a star.
    flux_ratio_error : float
        Standard error of `flux_ratio`.
    stars : Table
        The stars of the fit: x, y, dflux (relative), dx, dy, error (pixels), chi2, used.
    """

    flux_ratio: float
    shift: tuple[float, float]
    background: float = 0.0
    scatter: tuple[float, float] = (0.0, 0.0)
    flux_scatter: float = 0.0
    flux_ratio_error: float = 0.0
    stars: Table | None = None


def match_stars(
    science: Planes,
    template: Planes,
    psfs: tuple[Psf, Psf],
    xy: Array,
    fwhm: float,
    *,
    flux_ratio: float | None = None,
    fit_ratio: bool = True,
    fit_shift: bool = True,
) -> Match:
    """Fit flux ratio, shift and background to the stars at some positions.

    Parameters
    ----------
    science, template : Planes
    psfs : (Psf, Psf)
        Of science image and template.
    xy : ndarray, shape (N, 2)
        Positions of stars, the best first; the first usable 120 are taken.
    fwhm : float
        Of the wider point spread function, pixels.
    flux_ratio : float, optional
        Where to begin; by default the median ratio of the fluxes around the stars.
    fit_ratio, fit_shift : bool
        Whether these are free.

    Raises
    ------
    TooFewSourcesError
        Fewer than 3 stars with usable pixels around them.
    """
    cutouts = _Cutouts.around(science, template, psfs, xy, fwhm)
    n_stars = len(cutouts.xy)
    if n_stars < MIN_STARS:
        raise TooFewSourcesError(
            f"{n_stars} stars have usable pixels around them in both images; {MIN_STARS} are needed to fit the flux "
            "ratio of template and science image. Give deeper images, or the ratio (ZogyOptions).",
            found=n_stars,
            needed=MIN_STARS,
        )
    beta = cutouts.ratio() if flux_ratio is None else flux_ratio
    parameters: Array = np.array([beta, 0.0, 0.0, 0.0])
    free = np.array([fit_ratio, fit_shift, fit_shift, True])
    if n_stars > 2 * FIRST_STARS:
        parameters = _fit(cutouts.first(FIRST_STARS), parameters, free)[0]
    parameters, around, used, covariance = _fit(cutouts, parameters, free)
    table, flux_scatter, scatter = _scatter(cutouts.xy, around, used, parameters[0])
    beta, dx, dy, background = (float(value) for value in parameters)
    logger.info("template flux ratio %.4f, shift (%.3f, %.3f) px, scatter (%.3f, %.3f) px", beta, dx, dy, *scatter)
    # stars that do not tell the ratio leave a matrix that is singular but for rounding
    error = float(np.sqrt(covariance[0, 0])) if covariance[0, 0] >= 0 else np.inf
    return Match(beta, (dx, dy), background, scatter, flux_scatter, error, table)


def _fit(
    cutouts: _Cutouts, parameters: Array, free: npt.NDArray[np.bool_]
) -> tuple[Array, _Linearised, npt.NDArray[np.bool_], Array]:
    """Return the parameters, the differences that they leave, which stars were used, and the covariance."""
    for _ in range(ITERATIONS):
        around = cutouts.linearised(parameters)
        used = _alike(around.chi2)
        step, covariance = around.step(used, free)
        step[0] = np.clip(step[0], -parameters[0] / 2, parameters[0])
        step[1:3] = np.clip(step[1:3], -0.5, 0.5)
        parameters = parameters + step
        parameters[1:3] = np.clip(parameters[1:3], -LARGEST_SHIFT, LARGEST_SHIFT)
        if abs(step[0]) < SMALL_STEP * parameters[0] and np.abs(step[1:3]).max() < SMALL_STEP:
            return parameters, around.stepped(step), used, covariance
    return parameters, cutouts.linearised(parameters), used, covariance


@dataclass(frozen=True, eq=False)
class _Linearised:
    """Whitened differences around stars, and how they change with the parameters.

    Parameters
    ----------
    residual, variance, weight : ndarray, shape (n_stars, pixels)
        The difference, the variance that photons and read-out give it, and the weight in the fit: one over that
        variance with the error of the point spread functions.
    slopes : ndarray, shape (n_parameters, n_stars, pixels)
        Derivatives of `residual`.
    """

    residual: Array
    slopes: Array
    variance: Array
    weight: Array

    @property
    def chi2(self) -> Array:
        """Reduced chi-square of each star, shape (n_stars,)."""
        return np.asarray((self.weight * self.residual**2).mean(axis=1))

    def stepped(self, step: Array) -> _Linearised:
        """Return the differences after a small step: to first order, which leaves out its square."""
        return dataclasses.replace(self, residual=self.residual + np.tensordot(step, self.slopes, axes=1))

    def step(self, used: npt.NDArray[np.bool_], free: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return the Gauss-Newton step of all parameters for the stars in use, and its covariance; 0 where not free.

        Where the stars do not tell the parameters at all there is no step, and the covariance is infinite.
        """
        slopes, weight, residual = self.slopes[free][:, used], self.weight[used], self.residual[used]
        normal = np.einsum("sp,asp,bsp->ab", weight, slopes, slopes, optimize=True)
        step, covariance = np.zeros(free.size), np.zeros((free.size, free.size))
        try:
            covariance[np.ix_(free, free)] = np.linalg.inv(normal)
            step[free] = -np.linalg.solve(normal, np.einsum("sp,asp,sp->a", weight, slopes, residual, optimize=True))
        except np.linalg.LinAlgError:
            covariance[np.ix_(free, free)] = np.inf
        return step, covariance

    def own_steps(self, count: int) -> tuple[Array, Array]:
        """Return the step of the first parameters that each star alone would take, and its error from noise alone.

        Both of shape (n_stars, count).
        """
        slopes = self.slopes[:count]
        normal = np.einsum("sp,asp,bsp->sab", self.weight, slopes, slopes, optimize=True)
        size = np.einsum("saa->s", normal)[:, None, None] / count
        inverse = np.linalg.inv(normal + (1e-9 * size + 1e-30) * np.eye(count))
        right = -np.einsum("sp,asp,sp->sa", self.weight, slopes, self.residual, optimize=True)
        noise = np.einsum("sp,asp,bsp->sab", self.weight**2 * self.variance, slopes, slopes, optimize=True)
        covariance = inverse @ noise @ inverse
        return np.einsum("sab,sb->sa", inverse, right), np.sqrt(np.einsum("saa->sa", covariance))


@dataclass(frozen=True, eq=False)
class _Cutouts:
    """Square pieces around the stars, and their transforms."""

    xy: Array
    n: Array  # transforms of the science cutouts, (n_stars, side, side // 2 + 1)
    r: Array
    p_n: Array
    p_r: Array
    excess: tuple[Array, Array]  # variance over that of the background, minus 1, (n_stars, pixels of the box)
    fluxes: tuple[Array, Array]
    sigma: tuple[float, float]
    side: int
    half: int

    @classmethod
    def around(cls, science: Planes, template: Planes, psfs: tuple[Psf, Psf], xy: Array, fwhm: float) -> _Cutouts:
        half = int(np.ceil(BOX_IN_FWHM / 2 * fwhm))
        side = fft.next_fast_len(2 * (half + int(np.ceil(3 * fwhm))) + 1, real=True)
        reach = side // 2
        ny, nx = science.usable.shape
        good = science.usable & template.usable
        chosen = []
        for x, y in np.round(xy).astype(int):
            near = good[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
            if 0 <= x < nx and 0 <= y < ny and near.shape == (2 * half + 1,) * 2 and near.all():
                chosen.append((x, y))
                if len(chosen) == MAX_STARS:
                    break
        kind = np.result_type(science.data, template.data)
        pieces = [np.zeros((len(chosen), side, side), kind) for _ in range(4)]
        for k, (x, y) in enumerate(chosen):
            y0, x0 = y - reach, x - reach
            here = slice(max(0, y0), min(ny, y0 + side)), slice(max(0, x0), min(nx, x0 + side))
            there = slice(here[0].start - y0, here[0].stop - y0), slice(here[1].start - x0, here[1].stop - x0)
            for piece, plane in zip(
                pieces, (science.data, template.data, science.variance, template.variance), strict=True
            ):
                piece[k][there] = plane[here]
        box = slice(reach - half, reach + half + 1)
        pixels = (2 * half + 1) ** 2
        boxes = [piece[:, box, box].reshape(len(chosen), pixels).astype(float) for piece in pieces]
        x, y = np.array(chosen, float).reshape(-1, 2).T
        complex_ = np.result_type(kind, np.complex64)
        p_n, p_r = (
            transfer(_fit_into(stamps_of(psf, x, y), side), (side, side), complex_)
            if len(chosen)
            else np.zeros((0, side, 1))
            for psf in psfs
        )
        excess_n, excess_r = (
            np.maximum(variance / planes.sigma**2 - 1, 0)
            for variance, planes in zip(boxes[2:], (science, template), strict=True)
        )
        return cls(
            xy=np.array(chosen, float).reshape(-1, 2),
            n=fft.rfft2(pieces[0]),
            r=fft.rfft2(pieces[1]),
            p_n=p_n,
            p_r=p_r,
            excess=(excess_n, excess_r),
            fluxes=(boxes[0].sum(axis=1), boxes[1].sum(axis=1)),
            sigma=(science.sigma, template.sigma),
            side=side,
            half=half,
        )

    def first(self, count: int) -> _Cutouts:
        """Return those around the best stars."""
        planes: dict[str, Any] = {name: getattr(self, name)[:count] for name in ("xy", "n", "r", "p_n", "p_r")}
        pairs: dict[str, Any] = {
            name: tuple(one[:count] for one in getattr(self, name)) for name in ("excess", "fluxes")
        }
        return dataclasses.replace(self, **planes, **pairs)

    def ratio(self) -> float:
        """Return the flux ratio of template and science image, from sums over the boxes."""
        science, template = self.fluxes
        bright = science > max(0.0, 0.2 * np.percentile(science, 80))
        return float(max(np.median(template[bright] / science[bright]), 1e-6)) if bright.any() else 1.0

    def _box(self, planes: Array) -> Array:
        """Return the inverse transforms in the boxes around the stars, which are small: by sums over frequencies."""
        side = self.side
        at = np.arange(side // 2 - self.half, side // 2 + self.half + 1)
        rows = np.exp(2j * np.pi / side * np.outer(at, np.arange(side))) / side
        columns = np.exp(2j * np.pi / side * np.outer(np.arange(side // 2 + 1), at)) / side
        columns[1 : (side + 1) // 2] *= 2  # and those of negative frequencies
        kind = planes.dtype
        part = rows.astype(kind) @ planes
        columns = columns.astype(kind)
        return np.asarray(part.real @ columns.real - part.imag @ columns.imag)

    def linearised(self, parameters: Array) -> _Linearised:
        """Return the whitened differences in the boxes and their derivatives, for beta, dx, dy and background."""
        beta, dx, dy, background = parameters
        side = self.side
        ky, kx = (2j * np.pi * frequency for frequency in (fft.fftfreq(side)[:, None], fft.rfftfreq(side)[None, :]))
        pair = ProperPair(self.p_n, self.p_r, *self.sigma, beta, (side, side))
        scale = pair.flux_scale
        of_n, of_r = (scale * filter_ for filter_ in pair.difference_filters)
        kx, ky = kx.astype(self.r.dtype), ky.astype(self.r.dtype)
        r = self.r * np.exp(-kx * dx - ky * dy)
        moved = of_r * r
        planes = [of_n * self.n - moved, pair.beta_derivative(self.n, r), kx * moved, ky * moved]
        images = [self._box(plane).reshape(len(self.xy), -1).astype(float) for plane in planes]
        images[1] -= background * self.sigma[1] ** 2 * (scale / beta) ** 3  # d(scale) / d(beta), as of N - background
        constant = np.full(images[0].shape, -scale)  # a constant in N, less what is subtracted
        residual = images[0] - background * scale
        share = (self.sigma[0] * beta) ** 2 / ((self.sigma[0] * beta) ** 2 + self.sigma[1] ** 2)
        variance = 1 + share * self.excess[0] + (1 - share) * self.excess[1]
        weight = 1 / (variance + (MODEL_ERROR * beta * images[1]) ** 2)
        return _Linearised(residual, np.array([*images[1:], constant]), variance, weight)


def _fit_into(stamp: Array, side: int) -> Array:
    """Cut stamps that are larger than the grid; their sum is 1 again."""
    trim = max(0, (stamp.shape[-1] - side + 1) // 2)
    if trim:
        stamp = stamp[..., trim:-trim, trim:-trim]
        stamp = stamp / stamp.sum(axis=(-2, -1), keepdims=True)
    return stamp


def _alike(chi2: Array) -> npt.NDArray[np.bool_]:
    """Return which stars are not variable, not blended with what is, and not artefacts."""
    middle = np.median(chi2)
    spread = max(MAD_TO_SIGMA * np.median(np.abs(chi2 - middle)), 0.1 * middle)
    return np.asarray(chi2 <= middle + 4 * spread)


def _scatter(
    xy: Array, around: _Linearised, used: npt.NDArray[np.bool_], beta: float
) -> tuple[Table, float, tuple[float, float]]:
    """Return what each star adds to the common flux ratio and shift, and how far that scatters beyond noise."""
    own, errors = (values / [beta, 1, 1] for values in around.own_steps(3))
    spread = [_excess_scatter(own[used, k], errors[used, k]) for k in range(3)]
    columns = {"x": xy[:, 0], "y": xy[:, 1], "dflux": own[:, 0], "dx": own[:, 1], "dy": own[:, 2]}
    table = Table(columns | {"error": errors[:, 1:].max(axis=1), "chi2": around.chi2, "used": used})
    return table, spread[0], (spread[1], spread[2])


def _excess_scatter(values: Array, errors: Array) -> float:
    """Return the standard deviation that values have beyond their errors, by maximum likelihood.

    -2 ln L = sum ln(s^2 + e^2) + min(v^2 / (s^2 + e^2), 9): values beyond 3 standard deviations (variable stars) count
    as if they were there.
    """
    if values.size < MIN_STARS:
        return 0.0
    trial = np.concatenate([[0.0], np.median(errors) * np.geomspace(0.02, 100, 200)])
    variance = trial[:, None] ** 2 + errors**2
    deviance = (np.log(variance) + np.minimum(values**2 / variance, 9.0)).sum(axis=1)
    return float(trial[np.argmin(deviance)])
