"""PSF photometry on a difference: forced, and with free positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from astropy.table import Column, Table

from skyloom.detection.score import Score
from skyloom.errors import InputError
from skyloom.exposure import UNUSABLE
from skyloom.psf import Psf, stamp_at

Array = npt.NDArray[np.float64]

MAX_STEP = 1.0
"""A fitted position may leave its starting pixel by so many pixels."""


class DifferenceLike(Protocol):
    """What detection needs of a difference; planes have the shape (ny, nx)."""

    @property
    def image(self) -> Any:
        """Science minus matched template."""

    @property
    def variance(self) -> Any:
        """Variance of each pixel."""

    @property
    def mask(self) -> Any:
        """Bits of `MaskBit`."""

    @property
    def score(self) -> Any:
        """The `Score`."""

    @property
    def science(self) -> Any:
        """The science exposure."""

    @property
    def template(self) -> Any:
        """The template on the science grid, or None."""


@dataclass(frozen=True)
class Pixels:
    """A difference as photometry sees it, with a border of zero weight so that every stamp is whole.

    Parameters
    ----------
    image, weight, effective : ndarray, shape (ny + 2 pad, nx + 2 pad), float64
        Data, 1 / variance (0: unusable), and the variance at the scale of the PSF, see `skyloom.detection.score`.
    psf : Psf
    pad : int
        Width of the border.
    """

    image: Array
    weight: Array
    effective: Array
    psf: Psf
    pad: int

    @classmethod
    def of(cls, difference: DifferenceLike, score: Score) -> Pixels:
        """Collect the planes of a difference."""
        variance = np.asarray(difference.variance, float)
        image = np.asarray(difference.image, float)
        usable = ((np.asarray(difference.mask) & np.uint32(UNUSABLE)) == 0) & (variance > 0) & np.isfinite(image)
        weight = np.where(usable, 1 / np.where(usable, variance, 1), 0.0)
        pad = score.psf.half + 2
        data = np.where(usable, image, 0.0)
        effective = np.where(usable, score.effective_variance, 0.0)
        return cls(np.pad(data, pad), np.pad(weight, pad), np.pad(effective, pad), score.psf, pad)

    def box(self, x: int, y: int) -> tuple[slice, slice]:
        """Return the stamp around pixel (x, y) of the image."""
        half = self.psf.half
        x0, y0 = x + self.pad - half, y + self.pad - half
        return slice(y0, y0 + 2 * half + 1), slice(x0, x0 + 2 * half + 1)

    def inside(self, x: float, y: float) -> bool:
        """Tell whether (x, y) lies on the image."""
        ny, nx = (n - 2 * self.pad for n in self.image.shape)
        return bool(-0.5 <= x < nx - 0.5 and -0.5 <= y < ny - 0.5)


@dataclass(frozen=True)
class PsfFlux:
    """Flux, its error, and the error of the position (each coordinate, pixels) of a point source."""

    flux: float
    error: float
    position_error: float


def psf_flux(data: Array, weight: Array, effective: Array, model: Array) -> PsfFlux | None:
    """Weighted least-squares flux of a point source, with the error of correlated noise (equations 1 and 4 of `score`).

    Parameters
    ----------
    data, weight, effective : ndarray, shape (n, n)
        Stamp of the difference, 1 / variance, effective variance.
    model : ndarray, shape (n, n)
        PSF centred on the source, unit sum.

    Returns
    -------
    result : PsfFlux or None
        None where no pixel with weight carries any light.
    """
    norm = float((weight * model**2).sum())
    spread = float((weight**2 * effective * model**2).sum())
    if not (norm > 0 and spread > 0):
        return None
    flux, error = float((weight * data * model).sum()) / norm, np.sqrt(spread) / norm
    # the position's error from the Fisher matrix, scaled to the covariance of the flux
    along_y, along_x = np.gradient(model)
    slope = float((weight * (along_y**2 + along_x**2)).sum()) / 2
    position_error = error / max(abs(flux), np.finfo(float).tiny) * np.sqrt(norm / slope) if slope > 0 else np.inf
    return PsfFlux(flux, float(error), float(position_error))


def fit_position(
    data: Array, weight: Array, model_at: Callable[[float, float], Array], core: npt.NDArray[np.bool_]
) -> tuple[float, float]:
    """Fit the offset of a point source from the middle pixel by Gauss-Newton steps on flux and position.

    Parameters
    ----------
    data, weight : ndarray, shape (n, n)
        Stamp of the difference and 1 / variance.
    model_at : callable
        Returns the PSF, shape (n, n), centred so many pixels in x and y from the middle pixel.
    core : ndarray of bool, shape (n, n)
        Pixels to use.

    Returns
    -------
    dx, dy : float
        Offset in pixels; 0 where the fit leaves the pixel's neighbourhood.
    """
    dx = dy = 0.0
    weight = np.where(core, weight, 0.0)
    for _ in range(6):
        model = model_at(dx, dy)
        along_x: Array = np.gradient(model, axis=1)
        along_y: Array = np.gradient(model, axis=0)
        columns = np.stack([model[core], -along_x[core], -along_y[core]])
        normal = (columns * weight[core]) @ columns.T
        if np.linalg.matrix_rank(normal) < 3:
            return 0.0, 0.0
        flux, gx, gy = np.linalg.solve(normal, (columns * weight[core]) @ data[core])
        if flux == 0:
            return 0.0, 0.0
        step = np.clip([gx / flux, gy / flux], -0.5, 0.5)
        dx, dy = dx + step[0], dy + step[1]
        if max(abs(dx), abs(dy)) > MAX_STEP:
            return 0.0, 0.0
        if np.abs(step).max() < 1e-3:
            break
    return float(dx), float(dy)


def _uncertain_light(difference: DifferenceLike) -> Array:
    """Return the light that was subtracted times the scatter of the stars' flux ratios: common to all pixels of a star.

    Differences without a kernel have it in their effective variance.
    """
    subtraction: Any = getattr(difference, "subtraction", None)
    scatter = 0.0
    if getattr(subtraction, "kernel", None) is not None:
        scatter = float(subtraction.statistics.get("flux_scatter", 0.0))
    if not scatter > 0:
        return np.zeros(np.shape(difference.image))
    from skyloom.subtraction.scatter import constant_light

    return scatter * constant_light(subtraction)


def forced_photometry(difference: DifferenceLike, xy: npt.ArrayLike, *, score: Score | None = None) -> Table:
    """Measure point-source fluxes at given positions of a difference, changed or not.

    Parameters
    ----------
    difference : Difference
    xy : array_like, shape (N, 2)
        Positions, 0-based pixels.
    score : Score, optional
        Default: ``difference.score``.

    Returns
    -------
    table : Table
        x, y, flux, flux_err, snr and coverage (part of the PSF's weight on usable pixels). Flux and error are NaN
        where the position is outside of the image or no usable pixel is under the PSF.

    Raises
    ------
    InputError
        `xy` has another shape.
    """
    xy = np.atleast_2d(np.asarray(xy, float))
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise InputError(f"xy has the shape {xy.shape}; (N, 2) is needed.", shape=xy.shape)
    score = difference.score if score is None else score
    pixels = Pixels.of(difference, score)
    light = np.pad(_uncertain_light(difference), pixels.pad)
    rows = np.full((len(xy), 3), np.nan)
    rows[:, 2] = 0
    for row, (x, y) in zip(rows, xy, strict=True):
        if not (np.isfinite([x, y]).all() and pixels.inside(x, y)):
            continue
        ix, iy = round(x), round(y)
        box = pixels.box(ix, iy)
        model = stamp_at(score.psf, x, y, x - ix, y - iy)
        row[2] = (model**2)[pixels.weight[box] > 0].sum() / (model**2).sum()
        result = psf_flux(pixels.image[box], pixels.weight[box], pixels.effective[box], model)
        if result is not None:
            weight = pixels.weight[box] * model
            row[:2] = result.flux, np.hypot(result.error, (weight * light[box]).sum() / (weight * model).sum())
    unit = getattr(difference.science, "unit", None)
    return Table(
        {
            "x": Column(xy[:, 0], unit="pix", description="Position, 0-based"),
            "y": Column(xy[:, 1], unit="pix", description="Position, 0-based"),
            "flux": Column(rows[:, 0], unit=unit, description="PSF flux in the difference"),
            "flux_err": Column(
                rows[:, 1], unit=unit, description="Standard deviation of flux, noise covariance included"
            ),
            "snr": Column(rows[:, 0] / rows[:, 1], description="flux / flux_err"),
            "coverage": Column(rows[:, 2], description="Part of the PSF's weight on usable pixels"),
        }
    )
