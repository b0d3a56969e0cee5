"""Peaks of the score, one for each source."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

from skyloom.detection.photometry import Pixels, fit_position
from skyloom.detection.score import Score
from skyloom.filters import convolve_full
from skyloom.psf import stamp_at

Array = npt.NDArray[np.float64]

LOBE_ERROR = 0.03
"""Error of the predicted side lobes of a brighter source, relative to them: that of a PSF model."""
CORE = 1.5
"""Radius of the pixels that positions and shapes are fitted to, FWHM."""


def disc(half: int, radius: float) -> npt.NDArray[np.bool_]:
    """Return the pixels of a stamp within `radius` pixels of its middle."""
    axis = np.arange(-half, half + 1.0)
    return axis[:, None] ** 2 + axis[None, :] ** 2 <= radius**2


def local_maxima(significance: npt.NDArray, threshold: float, fwhm: float) -> tuple[npt.NDArray, npt.NDArray]:
    """Return x and y of the pixels above `threshold` that no pixel within half a FWHM exceeds, the highest first."""
    reach = max(1, round(fwhm / 2))
    top = maximum_filter(significance, footprint=disc(reach, reach + 0.5), mode="constant", cval=-np.inf)
    y, x = np.nonzero((significance > threshold) & (significance == top))
    order = np.lexsort((x, y, -significance[y, x]))
    return x[order], y[order]


@dataclass
class Source:
    """A peak that is a source of its own: its pixel, sub-pixel offset, flux of the fit, and unit model."""

    ix: int
    iy: int
    dx: float
    dy: float
    flux: float
    model: Array = field(repr=False)

    @property
    def x(self) -> float:
        """Position, pixels."""
        return self.ix + self.dx

    @property
    def y(self) -> float:
        """Position, pixels."""
        return self.iy + self.dy


def deblend(
    peaks: list[tuple[int, int]], score: Score, pixels: Pixels, threshold: float, fwhm: float
) -> tuple[list[Source], Array]:
    """Keep the peaks that the side lobes of brighter sources do not explain, and fit them as point sources.

    In the order of their significance, each peak is compared with what the sources found before contribute to the
    score at its place: ``F R(d) / sigma_F``, R(d) = sum_u P(u) P(u - d) / sum P**2. Only what is left counts
    against the threshold.

    Parameters
    ----------
    peaks : list of (x, y)
        Pixels, the most significant first.
    score : Score
    pixels : Pixels
        Planes of the difference.
    threshold : float
        Significance.
    fwhm : float
        Of the PSF, pixels.

    Returns
    -------
    sources : list of Source
    residual : ndarray
        The image of `pixels` without the sources.
    """
    half, residual = score.psf.half, pixels.image.copy()
    lobes = np.zeros(score.significance.shape)  # flux that the found sources contribute to the filtered image
    reach = 2 * half
    sources = []
    for x, y in peaks:
        sigma = float(np.sqrt(score.flux_variance[y, x]))
        predicted = lobes[y, x] / sigma
        left = float(score.significance[y, x]) - predicted
        same_sign = left * score.significance[y, x] > 0
        if not same_sign or abs(left) <= threshold * np.hypot(1, LOBE_ERROR * predicted):
            continue
        source = fit_source(x, y, residual, pixels, fwhm)
        box = pixels.box(x, y)
        residual[box] -= source.flux * source.model
        response = convolve_full(source.model, score.psf.stamp(x, y)[::-1, ::-1])
        response *= source.flux / (score.psf.stamp(x, y) ** 2).sum()
        y0, x0 = max(0, y - reach), max(0, x - reach)
        target = lobes[y0 : y + reach + 1, x0 : x + reach + 1]
        target += response[y0 - y + reach :, x0 - x + reach :][: target.shape[0], : target.shape[1]]
        sources.append(source)
    return [_refit(source, residual, pixels, fwhm) for source in sources], residual


def fit_source(x: int, y: int, image: Array, pixels: Pixels, fwhm: float) -> Source:
    """Fit position and flux of a point source near pixel (x, y) of `image`, padded like `pixels`."""
    box = pixels.box(x, y)
    weight = pixels.weight[box]
    model_at = functools.partial(stamp_at, pixels.psf, x, y)
    dx, dy = fit_position(image[box], weight, model_at, disc(pixels.psf.half, CORE * fwhm))
    model = model_at(dx, dy)
    flux = float((weight * image[box] * model).sum() / max((weight * model**2).sum(), np.finfo(float).tiny))
    return Source(x, y, dx, dy, flux, model)


def _refit(source: Source, residual: Array, pixels: Pixels, fwhm: float) -> Source:
    """Fit a source again, all others subtracted; `residual` is brought up to date."""
    box = pixels.box(source.ix, source.iy)
    residual[box] += source.flux * source.model
    source = fit_source(source.ix, source.iy, residual, pixels, fwhm)
    residual[box] -= source.flux * source.model
    return source
