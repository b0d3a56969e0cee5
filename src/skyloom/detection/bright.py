"""How much of bright sources a subtraction leaves behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skyloom.detection.peaks import disc, local_maxima
from skyloom.detection.score import Score
from skyloom.filters import Grid, VaryingFilter, correlate

BRIGHT = 100.0
"""Stars with this many times the difference's flux error tell the residuals from noise at the level of 1 %."""
FEWEST = 5
UNKNOWN = 0.01
"""Fractional residual that is assumed where fewer than `FEWEST` bright sources tell it: a fair subtraction."""
LARGEST = 0.1


@dataclass(frozen=True, eq=False)
class BrightSources:
    """Light of the constant sky under the PSF, and what fraction of it subtractions leave.

    Parameters
    ----------
    flux : ndarray, shape (ny, nx), float32
        PSF flux of the science image at each pixel, sky subtracted; 0 where too little is usable.
    fraction : float
        Systematic residual of a bright source relative to its flux: the upper 1-sigma value over the bright sources.
    """

    flux: npt.NDArray[np.float32]
    fraction: float


def bright_sources(science: npt.NDArray, usable: npt.NDArray[np.bool_], score: Score, fwhm: float) -> BrightSources:
    """Measure the science image with the difference's filter, and the residuals at its bright sources.

    Parameters
    ----------
    science : ndarray, shape (ny, nx)
        Sky-subtracted science image in the unit of the difference.
    usable : ndarray of bool, shape (ny, nx)
        Pixels that both the difference and the science image may use.
    score : Score
    fwhm : float
        Of the PSF, pixels.

    Returns
    -------
    bright : BrightSources
    """
    grid = Grid(science.shape)
    stamps = grid.sample(score.psf.stamp)
    plain = VaryingFilter(stamps, grid)
    (flux,) = correlate([(plain, np.where(usable, science, 0.0))])
    seen = grid.plane((stamps**2).sum(axis=(2, 3))) * score.coverage
    valid = score.valid & (score.coverage > 0.5)
    flux = np.where(valid, flux / np.where(valid, seen, 1), 0.0)
    error = np.sqrt(np.where(valid, score.flux_variance, np.inf))
    # sources of both epochs: what is new (a hot column, say) is no residual of itself
    x, y = local_maxima(np.minimum(flux, flux - score.flux) / error, BRIGHT, fwhm)
    whole = score.coverage[y, x] > 0.99
    x, y = x[whole], y[whole]
    if x.size < FEWEST:
        return BrightSources(flux.astype(np.float32), UNKNOWN)
    # mean square of the difference's flux within a core, the noise taken out
    reach = max(1, round(0.75 * fwhm))
    offsets = np.argwhere(disc(reach, reach)) - reach
    ny, nx = flux.shape
    square = np.zeros(x.size)
    for dy, dx in offsets:
        at = np.clip(y + dy, 0, ny - 1), np.clip(x + dx, 0, nx - 1)
        square += score.flux[at] ** 2 - score.flux_variance[at]
    fraction2 = square / len(offsets) / flux[y, x] ** 2
    fraction = float(np.sqrt(max(np.quantile(fraction2, 0.84), 0.0)))
    return BrightSources(flux.astype(np.float32), min(fraction, LARGEST))
