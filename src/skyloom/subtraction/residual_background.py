"""The smooth background that polynomials leave in a difference: haloes of the Moon, reflections, fringes.

The sky of the difference is averaged in boxes, and the averages are smoothed by penalised least squares: a Whittaker
smoother with second differences in both directions (Eilers 2003, Analytical Chemistry 75, 3631), which bends no plane
at the borders, with weights and the strength of the penalty from generalised cross-validation as Garcia (2010,
Computational Statistics & Data Analysis 54, 1167) has it. If the smooth surface does not tell more than a constant
does, there is nothing to be taken off.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, special
from scipy.interpolate import RectBivariateSpline

from skyloom.background import MAD_TO_SIGMA
from skyloom.exposure import BoolArray, FloatArray
from skyloom.subtraction.basis import Float64Array

SMALLEST_BOX = 16
"""Pixels; fewer have no average worth the name once the sources are left out."""
BOX_IN_FWHM = 5.0
"""Boxes of so many FWHM do not see single stars, and the noise of two neighbours is independent."""
MOST_BOXES = 64
"""Along the longer side."""
FEWEST_BOXES = 4
"""Along the shorter side; a smaller image has no room for structure that a polynomial cannot follow."""
FEWEST_PIXELS = 40
"""Of the sky in a box that counts."""
CLIP = 3.0
"""Standard deviations beyond which a pixel of a box is not sky."""
SOURCE = 4.0
"""Standard deviations of the mean of a box as wide as the seeing, from which on it is a source."""
SURROUNDINGS = 2.0
"""FWHM around a source in which its wings are."""
MOST_STEPS = 50
"""Of the fixed point; two or three are enough unless many boxes are empty."""
CHANCE = 1e-6
"""Probability that white noise passes for structure."""
EXPONENTS = np.arange(-4.0, 8.1, 0.5)
"""Of the strength of the penalty: from following every box to a bilinear surface, which it leaves alone."""
STEEP = 0.1
"""Part of what the surface changes by from box to box that it may be off by: a box is odd only beyond that."""
ROBUST_STEPS = 4
"""Of reweighting: boxes on what has truly changed must not pull the surface."""


@dataclass(frozen=True, eq=False)
class SmoothSurface:
    """Values on a grid of boxes, smoothed.

    Parameters
    ----------
    values : ndarray of float64, shape (my, mx)
        The surface at the centres of the boxes.
    degrees_of_freedom : float
        Trace of the smoother: how many numbers the surface follows.
    significance : float
        Probability of so good a fit to white noise about a constant.
    """

    values: Float64Array
    degrees_of_freedom: float
    significance: float


def residual_background(
    image: FloatArray, variance: FloatArray, usable: BoolArray, *, fwhm: float
) -> npt.NDArray[np.float32] | None:
    """Return what is left of the sky in a difference; None if that is nothing but noise.

    Parameters
    ----------
    image, variance : ndarray, shape (ny, nx)
        A difference, and its variance, photon noise of the sources included: pixels with more variance than the sky
        about them do not count.
    usable : ndarray of bool
        Pixels that may be used.
    fwhm : float
        Of the stars, in pixels.

    Returns
    -------
    ndarray of float32, shape (ny, nx), or None
    """
    shape = image.shape
    edges = _boxes(shape, fwhm)
    if edges is None:
        return None
    means, weights = _box_means(image, variance, usable, *edges)
    if (weights > 0).mean() < 0.25:
        return None
    surface = smooth_surface(means, weights)
    if surface.significance > CHANCE:
        return None
    return _interpolate(surface.values, *edges, shape)


def residual_level(image: FloatArray, variance: FloatArray, usable: BoolArray, *, fwhm: float) -> float:
    """Return the level of the sky in a difference; 0 if the field is too small to tell.

    The background of a fit to stamps takes up the light of whatever only one image has in them. The median over all
    boxes of the field hardly sees it, and is the more precise. Sources in the difference are left out with all their
    surroundings: boxes with the wings of a hundred transients would raise the median of two thousand.

    Parameters
    ----------
    image, variance, usable, fwhm
        As for `residual_background`.
    """
    edges = _boxes(image.shape, fwhm)
    if edges is None:
        return 0.0
    means, weights = _box_means(image, variance, usable & ~_sources(image, variance, usable, fwhm), *edges)
    seen = means[weights > 0]
    return float(np.median(seen)) if seen.size >= FEWEST_BOXES**2 else 0.0


def _sources(image: FloatArray, variance: FloatArray, usable: BoolArray, fwhm: float) -> BoolArray:
    """Return the pixels within some FWHM of what stands out, up or down, in boxes as wide as the seeing."""
    known = usable & (variance > 0)
    z = np.divide(image, np.sqrt(variance, where=known, out=np.ones_like(variance)), where=known,
                  out=np.zeros_like(image))  # fmt: skip
    side = 2 * round(fwhm / 2) + 1
    seen = ndimage.uniform_filter(np.clip(z, -CLIP, CLIP, out=z), side, mode="constant")
    sample = np.abs(seen[::3, ::3][known[::3, ::3]])
    level = SOURCE * MAD_TO_SIGMA * float(np.median(sample)) if sample.size else 0.0
    found: BoolArray = ndimage.maximum_filter(np.abs(seen) > level, 2 * round(SURROUNDINGS * fwhm) + 1, mode="constant")
    return found


def sky_error(image: FloatArray, variance: FloatArray, usable: BoolArray, *, fwhm: float) -> FloatArray | None:
    """Return by how much the sky of a difference is off where no smooth surface describes it; None if that is nowhere.

    The errors of a vignetted border, of a reflection's rim or of a nebula are those of neighbouring boxes together:
    the fourth largest of the nine averages about a place, in units of the scatter of all averages, which no change of a
    point source reaches, whose light is in four boxes at most.

    Parameters
    ----------
    image, variance, usable, fwhm
        As for `residual_background`, which has been taken off.

    Returns
    -------
    ndarray of float32, shape (ny, nx), or None
        Standard deviation, common to all pixels of a place.
    """
    edges = _boxes(image.shape, fwhm)
    if edges is None:
        return None
    means, weights = _box_means(image, variance, usable, *edges)
    z = np.abs(means) * np.sqrt(weights)
    if not (z > 0).any():
        return None
    scatter = max(1.0, MAD_TO_SIGMA * float(np.median(z[z > 0])))
    together = ndimage.rank_filter(z / scatter, -4, size=3, mode="nearest")
    size = scatter * np.sqrt(np.maximum(together**2 - CLIP**2, 0) / np.where(weights > 0, weights, np.inf))
    if not size.any():
        return None
    return np.maximum(_interpolate(ndimage.maximum_filter(size, 3), *edges, image.shape, degree=1), 0)


def _boxes(shape: tuple[int, ...], fwhm: float) -> tuple[Any, Any] | None:
    """Return the edges of the boxes along y and x; None if the image is too small to have several."""
    box = max(SMALLEST_BOX, int(np.ceil(BOX_IN_FWHM * fwhm)), -(-max(shape) // MOST_BOXES))
    counts = [n // box for n in shape]
    if min(counts) < FEWEST_BOXES:
        return None
    rows, columns = (np.linspace(0, n, m + 1).round().astype(int) for n, m in zip(shape, counts, strict=True))
    return rows, columns


def _box_means(
    image: Any, variance: Any, usable: BoolArray, rows: Any, columns: Any
) -> tuple[Float64Array, Float64Array]:
    """Return the clipped mean of the sky in each box, and its weight: pixels over variance; 0 where there is no sky."""
    bands = [slice(top, end) for top, end in pairwise(rows)]
    found = [_row_means(image[band], variance[band], usable[band], columns) for band in bands]
    means, weights = np.stack(found, axis=1)
    return means, weights


def _row_means(image: Any, variance: Any, usable: BoolArray, columns: Any) -> tuple[Float64Array, Float64Array]:
    """Return clipped means and weights of boxes side by side: as many columns of each as the narrowest has."""
    at = columns[:-1, None] + np.arange(np.diff(columns).min())
    values, noise, good = (plane[:, at].transpose(1, 0, 2).reshape(len(at), -1) for plane in (image, variance, usable))
    sky = good & (noise <= 1.3 * _median(noise, good))
    centre = np.where(sky, _median(values, sky), 0)
    away = np.abs(values - centre)
    kept = sky & (away <= CLIP * MAD_TO_SIGMA * _median(away, sky))
    n = kept.sum(axis=1)
    enough = (good.sum(axis=1) >= FEWEST_PIXELS) & (n >= FEWEST_PIXELS)
    means = np.where(kept, values, 0).sum(axis=1, dtype=np.float64) / np.maximum(n, 1)
    power = np.where(sky, noise, 0).sum(axis=1, dtype=np.float64) / np.maximum(sky.sum(axis=1), 1)
    return np.where(enough, means, 0.0), np.divide(n, power, out=np.zeros(len(at)), where=enough)


def _median(values: Any, good: BoolArray) -> Float64Array:
    """Return the median of the good values of each row, shape (n, 1); infinite without any."""
    order = np.sort(np.where(good, values, np.inf), axis=1)
    n = np.maximum(good.sum(axis=1, keepdims=True), 1)
    low, high = (np.take_along_axis(order, k, axis=1).astype(np.float64) for k in ((n - 1) // 2, n // 2))
    return (low + high) / 2


def smooth_surface(values: Float64Array, weights: Float64Array) -> SmoothSurface:
    """Smooth values on a regular grid: minimise sum w (y - z)^2 + s (|D_y z|^2 + |D_x z|^2), D second differences.

    The penalty is diagonal in the products of the eigenvectors of the two matrices D'D, with the sums of their
    eigenvalues; Garcia's is so in cosines, with the squared sums. His residuals are studentised for the robust weights;
    these are not, but may be as large as a part of the surface's own steps (`STEEP`).

    Parameters
    ----------
    values, weights : ndarray of float64, shape (my, mx)
        Weights are relative; where one is 0, the value does not count and is filled by its neighbours.

    Returns
    -------
    SmoothSurface
    """
    base = weights / weights.max()
    counted = base > 0
    penalty = _Penalty.on(values.shape)
    surface, strength = np.where(counted, values, np.average(values, weights=base)), 1.0
    steepness = ndimage.maximum_filter(surface, 3) - ndimage.minimum_filter(surface, 3)
    robust = np.ones_like(base)
    for _ in range(ROBUST_STEPS):
        surface, strength = _weighted_smooth(values, base * robust, penalty, surface)
        residuals = np.where(counted, (values - surface) * np.sqrt(base), 0)
        centred = residuals[counted] - np.median(residuals[counted])
        spread = MAD_TO_SIGMA * np.median(np.abs(centred))
        u = np.abs(residuals) / np.maximum(4.685 * (spread + STEEP * steepness), np.finfo(np.float64).tiny)
        robust = np.where(u < 1, (1 - u**2) ** 2, 0)  # bisquare, eq. 26
    shrink = 1 / (1 + strength * penalty.eigenvalues)
    used = base * robust
    n = float((used > 0).sum())
    freedom = float(shrink.sum() * counted.mean())
    left = float((used * (values - surface) ** 2).sum())
    constant = float((used * (values - np.average(values, weights=used)) ** 2).sum())
    extra, rest = max(freedom - 1, 1e-3), max(n - freedom, 1.0)
    gain = max(constant - left, 0)
    chance = float(special.fdtrc(extra, rest, (gain / extra) / (left / rest))) if left > 0 else float(gain == 0)
    return SmoothSurface(surface, freedom, chance)


@dataclass(frozen=True, eq=False)
class _Penalty:
    """Eigenvectors (columns) of D'D along each axis, and the eigenvalues of the sum of both."""

    rows: Float64Array
    columns: Float64Array
    eigenvalues: Float64Array

    @classmethod
    def on(cls, shape: tuple[int, ...]) -> _Penalty:
        """Return the penalty on a grid."""
        (first, rows), (second, columns) = (np.linalg.eigh((d := np.diff(np.eye(n), 2, axis=0)).T @ d) for n in shape)
        return cls(rows, columns, np.clip(first[:, None] + second, 0, None))

    def forward(self, plane: Float64Array) -> Float64Array:
        return self.rows.T @ plane @ self.columns

    def back(self, plane: Float64Array) -> Float64Array:
        return self.rows @ plane @ self.columns.T


def _weighted_smooth(
    values: Float64Array, weights: Float64Array, penalty: _Penalty, start: Float64Array
) -> tuple[Float64Array, float]:
    """Return the smooth surface and the strength of its penalty: the fixed point of Garcia's eq. 14, s by eq. 16."""
    n = float((weights > 0).sum())
    surface, strength = start, 1.0
    for _ in range(MOST_STEPS):
        target = penalty.forward(weights * (values - surface) + surface)

        def score(exponent: float, target: Float64Array = target) -> float:
            shrink = 1 / (1 + 10**exponent * penalty.eigenvalues)
            residuals = values - penalty.back(shrink * target)
            return float((weights * residuals**2).sum() / n / (1 - shrink.mean()) ** 2)

        # the score may have several minima: one for each scale on which there is structure
        strength = 10 ** min(EXPONENTS, key=score)
        after = penalty.back(target / (1 + strength * penalty.eigenvalues))
        change = np.abs(after - surface).max()
        surface = after
        if change <= 1e-4 * np.abs(surface - surface.mean()).max():
            break
    return surface, strength


def _interpolate(
    values: Float64Array, rows: Any, columns: Any, shape: tuple[int, ...], degree: int = 3
) -> npt.NDArray[np.float32]:
    """Return the surface in every pixel, by bicubic interpolation; linear beyond the centres of the outermost boxes."""
    centres = [
        np.pad((edges[1:] + edges[:-1] - 1) / 2, 1, mode="reflect", reflect_type="odd") for edges in (rows, columns)
    ]
    padded = np.pad(values, 1, mode="reflect", reflect_type="odd")
    spline = RectBivariateSpline(*centres, padded, kx=degree, ky=degree, s=0)
    plane: Float64Array = spline(np.arange(shape[0]), np.arange(shape[1]))
    return plane.astype(np.float32)
