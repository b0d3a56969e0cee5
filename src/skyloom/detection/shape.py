"""Does a candidate look like a point source? Chi-square, size, ellipticity, and the alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

BETTER = 16.0
"""An alternative is taken when its chi-square is smaller by so much: 4 sigma for one more parameter."""
TRAILED = 4.0
"""Standard deviations by which a trail is elongated."""
SIGMA_TO_FWHM2 = 8 * np.log(2)
SLOPES = np.linspace(-1, 1, 17)
"""Of lines, relative to rows and columns: at the border of a stamp two neighbours are a FWHM apart."""


@dataclass(frozen=True)
class Shape:
    """Shape of a candidate.

    Parameters
    ----------
    chi2 : float
        Reduced chi-square of the point source in its core.
    dof : int
        Degrees of freedom of it.
    fwhm : float
        Full width at half maximum, pixels; NaN where its square would be negative: noise, or sharper than any source.
    width_snr : float
        How significantly it is wider (> 0) or narrower (< 0) than the PSF.
    ellipticity : float
        1 for a line, 0 for a circle; the PSF's own ellipticity is not in it. NaN beyond 1, where the squared width in
        one direction would be negative.
    elongation_snr : float
        How significant the ellipticity is.
    misfit : float
        Chi-square, of three degrees of freedom, of all second moments together: 0 for those of the PSF.
    trailed : bool
        Significantly longer than the PSF in one direction, and across it no narrower: a point source that moved while
        the shutter was open.
    """

    chi2: float
    dof: int
    fwhm: float
    width_snr: float
    ellipticity: float
    elongation_snr: float
    misfit: float
    trailed: bool


def measure_shape(
    data: Array, weight: Array, model: Array, core: npt.NDArray[np.bool_], *, flux: float, fwhm: float
) -> Shape:
    """Compare a stamp with a point source, and measure how its second moments differ.

    A source that is broader than the PSF P by the variances (s_xx, s_yy, s_xy) is to first order ``F (P + (s_xx
    P_xx + s_yy P_yy + 2 s_xy P_xy) / 2)``: the coefficients of the second derivatives, fitted together with flux
    and position, give size and ellipticity.

    Parameters
    ----------
    data, weight : ndarray, shape (n, n)
        Difference without neighbours, and 1 / variance, systematic errors included.
    model : ndarray, shape (n, n)
        PSF at the fitted position, unit sum.
    core : ndarray of bool, shape (n, n)
        Pixels to use.
    flux : float
        Fitted flux.
    fwhm : float
        Of the PSF, pixels.

    Returns
    -------
    shape : Shape
    """
    w = weight[core]
    dof = max(int(np.count_nonzero(w)) - 3, 1)
    chi2 = float((w * (data - flux * model)[core] ** 2).sum()) / dof
    gx: Array = np.gradient(model, axis=1)
    gy: Array = np.gradient(model, axis=0)
    gxx: Array = np.gradient(gx, axis=1)
    gyy: Array = np.gradient(gy, axis=0)
    gxy: Array = np.gradient(gx, axis=0)
    columns = np.stack([plane[core] for plane in (model, gx, gy, gxx + gyy, gxx - gyy, 2 * gxy)])
    normal = (columns * w) @ columns.T
    unknown = Shape(chi2, dof, np.nan, 0.0, np.nan, 0.0, 0.0, False)
    if np.linalg.matrix_rank(normal) < len(columns):
        return unknown
    inverse = np.linalg.inv(normal)
    f, _, _, total, plus, cross = inverse @ ((columns * w) @ data[core])
    if f == 0:
        return unknown
    # (s_xx + s_yy) / 2 = 2 total / F;  (s_xx - s_yy) / 2 = 2 plus / F;  s_xy = 2 cross / F
    variance = fwhm**2 / SIGMA_TO_FWHM2 + 2 * total / f
    ellipticity = float(np.hypot(2 * plus / f, 2 * cross / f) / variance) if variance > 0 else np.inf
    width_snr = float(np.sign(f) * total / np.sqrt(inverse[3, 3]))
    width = float(np.sqrt(SIGMA_TO_FWHM2 * variance)) if variance > 0 else np.nan
    elongation_snr = float(np.hypot(plus / np.sqrt(inverse[4, 4]), cross / np.sqrt(inverse[5, 5])))
    moments = np.array([total, plus, cross])
    misfit = float(moments @ np.linalg.solve(inverse[3:, 3:], moments))
    longer, errors = float(np.hypot(plus, cross)), np.sqrt(np.diag(inverse)[3:])
    across = np.sign(f) * total - longer
    trailed = elongation_snr > TRAILED and width_snr > 0 and across > -3 * np.hypot(errors[0], errors[1:].max())
    measured = ellipticity if ellipticity <= 1 else np.nan
    return Shape(chi2, dof, width, width_snr, measured, elongation_snr, misfit, bool(trailed))


def line_flux(data: Array, weight: Array, model: Array, radius: float) -> float:
    """Return how much of a PSF flux comes from a bright or dark line that runs through the whole stamp.

    Lines are rows, columns and trails of 32 directions. Outside of the core, the amplitude of a line with the PSF's
    cross profile is measured in each column (for a line nearer to a row); their weighted median is the line. It counts
    from 5 sigma on.

    Parameters
    ----------
    data, weight : ndarray, shape (n, n)
        Difference, neighbours included, and 1 / variance.
    model : ndarray, shape (n, n)
        PSF at the fitted position.
    radius : float
        Of the core, pixels.

    Returns
    -------
    flux : float
        That of the direction with the largest one; 0 without a line.
    """
    side, total = len(data), float((weight * model**2).sum())
    along = np.arange(side) - side // 2
    outside = np.abs(along) > radius
    # sheared by its slope, a line is a row: pixel (i, x) of plane k is (i + slope_k x, x) of the stamp
    rows = np.arange(side)[None, :, None] + np.round(SLOPES[:, None, None] * along).astype(int)
    inside = (rows >= 0) & (rows < side)
    rows = np.clip(rows, 0, side - 1)
    stretch = np.hypot(1, SLOPES)[:, None]  # a section along y is wider than the line
    best = 0.0
    for planes in ((data, weight, model), (data.T, weight.T, model.T)):
        d, w, m = (plane[rows, np.arange(side)] for plane in planes)
        w = np.where(inside, w, 0.0)
        cross = planes[2].sum(axis=1)
        centre = float((cross * along).sum() / cross.sum())
        profile = np.interp((along - centre) / stretch + centre, along, cross)[:, :, None]
        norm = (w * profile**2).sum(axis=1)
        norm[:, ~outside] = 0.0
        amplitude = np.divide((w * d * profile).sum(axis=1), norm, out=np.zeros_like(norm), where=norm > 0)
        order = np.argsort(amplitude, axis=1)
        share = np.cumsum(np.take_along_axis(norm, order, axis=1), axis=1)
        middle = (share < share[:, -1:] / 2).sum(axis=1, keepdims=True)
        line = np.take_along_axis(np.take_along_axis(amplitude, order, axis=1), middle, axis=1)[:, 0]
        # a median scatters by sqrt(pi / 2) more than a mean
        clear = ((norm > 0).sum(axis=1) >= 8) & (np.abs(line) * np.sqrt(2 / np.pi * share[:, -1]) > 5)
        if clear.any():
            fluxes = line[clear] * (w * profile * m).sum(axis=(1, 2))[clear] / total
            best = max(best, float(fluxes[np.argmax(np.abs(fluxes))]), key=abs)
    return best


def gain(data: Array, weight: Array, model: Array) -> float:
    """Return by how much a model of free amplitude lowers the chi-square of a stamp."""
    norm = float((weight * model**2).sum())
    return float((weight * data * model).sum()) ** 2 / norm if norm > 0 else 0.0


def is_sharper(
    data: Array, weight: Array, model: Array, core: npt.NDArray[np.bool_], kernels: Sequence[Array] = ()
) -> bool:
    """Tell whether one pixel, or a kernel (a hot pixel of an image that was convolved), fits better than the PSF.

    Parameters
    ----------
    data, weight, model : ndarray, shape (n, n)
        Difference without neighbours, 1 / variance, and the PSF at the fitted position.
    core : ndarray of bool, shape (n, n)
    kernels : sequence of ndarray
        The kernels at this place.
    """
    weight = np.where(core, weight, 0.0)
    point = gain(data, weight, model)
    best = float((weight * data**2).max())
    n = data.shape[0] // 2
    shifts = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    for kernel in kernels:
        m = kernel.shape[0] // 2
        trim = max(m - n, 0)
        padded = np.pad(kernel[trim : 2 * m + 1 - trim, trim : 2 * m + 1 - trim], max(n - m, 0))
        best = max(best, *(gain(data, weight, np.roll(padded, (dy, dx), (0, 1))) for dx, dy in shifts))
    return best > point + BETTER


def is_dipole(data: Array, weight: Array, models: tuple[Array, Array], core: npt.NDArray[np.bool_]) -> bool:
    """Tell whether two point sources of opposite sign and like flux describe a stamp better than one.

    Parameters
    ----------
    data, weight : ndarray, shape (n, n)
        Difference with both of them in it, and 1 / variance.
    models : (ndarray, ndarray), shape (n, n)
        The PSF at the candidate and at its counterpart.
    core : ndarray of bool, shape (n, n)
    """
    w = np.where(core, weight, 0.0)[core]
    columns = np.stack([model[core] for model in models])
    normal, vector = (columns * w) @ columns.T, (columns * w) @ data[core]
    if np.linalg.matrix_rank(normal) < 2:
        return False
    fluxes = np.linalg.solve(normal, vector)
    better = float(vector @ fluxes) - gain(data[core], w, columns[0])
    small, large = np.sort(np.abs(fluxes))
    return bool(fluxes[0] * fluxes[1] < 0 and small > 0.4 * large and better > BETTER)
