"""The matched filter of a difference image, with the noise covariance that the matching kernel brings.

A point source of flux F at x appears in the difference D as F P(u - x). With the weights w = 1/V of the usable
pixels the least-squares flux and its variance are, o being the correlation ``(P o A)(x) = sum_u P(u) A(x + u)``::

    F = (P o w D) / (P**2 o w)                                                         (1)
    Var F = sum_uu' P(u) w(u) P(u') w(u') Cov(D_u, D_u') / (P**2 o w)**2               (2)

Of the two images, one was convolved with the matching kernel K, so its noise n_K = K * n is correlated. Where the
variance V_n of n changes little within a PSF, V_K = V_n sum K**2 and the double sum in (2) is ``w**2 V_n sum_v (P o
K)(v)**2``, (P o K) being the filter as the unconvolved noise sees it. Relative to independent noise of the same
variance plane that is the factor::

    g(x) = sum (P o K)**2 / (sum K**2 sum P**2)                                        (3)

so that, with c_1 and c_2 for what resampling had correlated in each image before (`Exposure.correlation`)::

    V_eff = c_1 V_white + c_2 g V_K
    Var F = (P**2 o w**2 V_eff) / (P**2 o w)**2                                        (4)

The significance is F / sqrt(Var F). Leaving g out (a diagonal noise map) underestimates the noise by a quarter for
images of equal depth.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.fft import next_fast_len, rfft2

from skyloom.background import MAD_TO_SIGMA
from skyloom.errors import InputError, ShapeError
from skyloom.exposure import UNUSABLE
from skyloom.filters import Grid, VaryingFilter, convolve_full, correlate
from skyloom.psf import Psf, stamp_at

Array = npt.NDArray[np.float64]
Plane = npt.NDArray[np.float32] | npt.NDArray[np.float64]

MIN_COVERAGE = 0.1
"""Least part of the PSF's weight that must lie on usable pixels for a score."""


class Kernel(Protocol):
    """A matching kernel, as `skyloom.subtraction` makes it."""

    def image_at(self, x: float, y: float) -> Array:
        """Return the kernel at (x, y), centred on the middle pixel."""


class SubtractionLike(Protocol):
    """What `score` needs of a subtraction; planes have the shape (ny, nx)."""

    @property
    def image(self) -> Any:
        """Science minus matched template."""

    @property
    def variance_science(self) -> Any:
        """Part of the variance that the science image brings."""

    @property
    def variance_template(self) -> Any:
        """Part of the variance that the template brings."""

    @property
    def mask(self) -> Any:
        """Bits of `MaskBit`."""

    @property
    def kernel(self) -> Any:
        """The matching kernel, a `Kernel`."""

    @property
    def convolved(self) -> Any:
        """'science' or 'template'."""


@dataclass(frozen=True, eq=False)
class Score:
    """A matched-filtered difference. All planes have the shape (ny, nx).

    Significance and coverage are float32, the others float64 where the image is, whose values may be beyond float32.

    Parameters
    ----------
    significance : ndarray
        Flux over its error; 0 where too little of the PSF is on usable pixels.
    flux : ndarray
        PSF flux of a point source on each pixel, in the difference's unit; 0 where there is no score.
    flux_variance : ndarray
        Its variance; 0 where there is no score.
    effective_variance : ndarray
        Variance of the pixels as the filter sees it, V_eff of the module's equation (4): for photometry.
    coverage : ndarray
        Part of the PSF's weight (sum of P**2) on usable pixels, 0 to 1.
    psf : Psf
        The PSF of the difference.
    moving : ndarray, optional
        Z^2 of TRANSLIENT in every pixel, see `skyloom.subtraction.zogy.moving`: of differences that tell sources that
        moved from those that changed.
    """

    significance: Plane
    flux: Plane
    flux_variance: Plane
    effective_variance: Plane
    coverage: Plane
    psf: Psf
    moving: Plane | None = None

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """True where there is a score."""
        return self.flux_variance > 0

    @property
    def width(self) -> float:
        """Robust standard deviation of the significance (from its median absolute value): 1 if all noise is known."""
        values = self.significance[self.valid]
        return float(MAD_TO_SIGMA * np.median(np.abs(values))) if values.size else 1.0

    def rescaled(self, factor: float) -> Score:
        """Return the score with all errors larger by `factor`."""
        square = np.float32(factor) ** 2
        return dataclasses.replace(
            self,
            significance=self.significance / np.float32(factor),
            flux_variance=self.flux_variance * square,
            effective_variance=self.effective_variance * square,
            moving=None if self.moving is None else self.moving / square,
        )

    def __repr__(self) -> str:
        ny, nx = self.significance.shape
        return f"<Score {nx}x{ny}: {self.valid.mean():.1%} valid, max {np.abs(self.significance).max():.1f} sigma>"


class ConvolvedPsf:
    """The PSF of an image that was convolved with a matching kernel: ``K * P``, divided by its sum.

    Parameters
    ----------
    psf : Psf
        PSF before the convolution.
    kernel : Kernel
    """

    def __init__(self, psf: Psf, kernel: Kernel) -> None:
        self._psf, self._kernel = psf, kernel
        self._half = psf.half + (kernel.image_at(0.0, 0.0).shape[0] // 2 + 1) // 2

    @property
    def half(self) -> int:
        """Half size of the stamps, pixels."""
        return self._half

    def stamp(self, x: float, y: float) -> Array:
        """Return the PSF at (x, y), centred on the middle pixel, with unit sum."""
        return self.stamp_at(x, y, 0.0, 0.0)

    def stamp_at(self, x: float, y: float, dx: float, dy: float) -> Array:
        """Return the PSF at (x, y), centred (dx, dy) pixels from the middle pixel, with unit sum."""
        both = convolve_full(stamp_at(self._psf, x, y, dx, dy), self._kernel.image_at(x, y))
        trim = both.shape[0] // 2 - self._half
        both = both[trim : both.shape[0] - trim, trim : both.shape[1] - trim]
        return both / both.sum()


def noise_gain(stamp: Array, kernel: Array) -> float:
    """Return g of equation (3): the variance of filtered convolved noise, relative to independent noise.

    Parameters
    ----------
    stamp : ndarray, shape (n, n)
        The filter P.
    kernel : ndarray, shape (m, m)
        The kernel K that the noise was convolved with.
    """
    return float(noise_gains(stamp[None], kernel[None])[0])


def noise_gains(stamps: Array, kernels: Array) -> Array:
    """Return `noise_gain` of many filters (N, n, n) and their kernels (N, m, m).

    The sum of the squares of P correlated with K is that of abs(P^ K^)^2 over the frequencies, by Parseval's theorem.
    """
    side = next_fast_len(stamps.shape[-1] + kernels.shape[-1] - 1, real=True)
    power = [np.abs(rfft2(planes, (side, side))) ** 2 for planes in (stamps, kernels)]
    twice = np.full(side // 2 + 1, 2.0)  # half of the frequencies are not there: as these, but for the outermost
    twice[0] = 1
    if side % 2 == 0:
        twice[-1] = 1
    seen = (power[0] * power[1] * twice).sum(axis=(1, 2)) / side**2
    return np.asarray(seen / ((kernels**2).sum(axis=(1, 2)) * (stamps**2).sum(axis=(1, 2))))


def score(
    subtraction: SubtractionLike,
    psf: Psf,
    *,
    correlation_science: float | None = None,
    correlation_template: float | None = None,
    threads: int | None = None,
) -> Score:
    """Filter a difference with its PSF, and give flux and significance of a point source on every pixel.

    Parameters
    ----------
    subtraction : Subtraction
        With image, variance_science, variance_template, mask, kernel and convolved.
    psf : Psf
        PSF of the science image, before any convolution.
    correlation_science, correlation_template : float, optional
        `Exposure.correlation` of the images: 1 for pixels that were never resampled. Default: the attributes of that
        name of the subtraction, or 1.
    threads : int, optional
        Number of threads; the result does not depend on it.

    Returns
    -------
    score : Score

    Raises
    ------
    InputError
        `convolved` is neither 'science' nor 'template', or a correlation is not above 0.
    ShapeError
        The planes have different shapes.
    """
    convolved = subtraction.convolved
    decorrelation = getattr(subtraction, "decorrelation", None)
    if convolved not in ("science", "template") and decorrelation is None:
        raise InputError(f"The subtraction says that {convolved!r} was convolved; 'science' or 'template' is needed.")
    kernel = subtraction.kernel
    white, correlated = (
        np.asarray(plane, float) for plane in (subtraction.variance_science, subtraction.variance_template)
    )
    factor_white, factor_correlated = _correlations(subtraction, correlation_science, correlation_template)
    if convolved == "science":
        psf = ConvolvedPsf(psf, kernel)
    if decorrelation is not None:  # white noise: equation (4) with V_eff = V
        usable = (np.asarray(subtraction.mask) & np.uint32(UNUSABLE)) == 0
        image, psf = np.asarray(subtraction.image), decorrelation.psf(psf)
        found = filter_image(image, white + correlated, usable, psf, threads=threads)
        return _with_flux_scatter(found, subtraction, white + correlated, threads)
    if convolved == "science":
        white, correlated, factor_white, factor_correlated = correlated, white, factor_correlated, factor_white
    grid = Grid(white.shape)
    gain = grid.plane(grid.sample(lambda x, y: noise_gain(psf.stamp(x, y), kernel.image_at(x, y))))
    effective = factor_white * white + factor_correlated * gain * correlated
    usable = (np.asarray(subtraction.mask) & np.uint32(UNUSABLE)) == 0
    found = filter_image(
        np.asarray(subtraction.image), white + correlated, usable, psf, effective_variance=effective, threads=threads
    )
    return _with_flux_scatter(found, subtraction, white + correlated, threads)


def _with_flux_scatter(found: Score, subtraction: Any, variance: Array, threads: int | None) -> Score:
    """Add the scatter eps of the stars' flux ratios to the variance of fluxes.

    All pixels of a star scatter together: its light m changes the flux of equation (1) by eps (P o w m) / (P**2 o w).
    """
    scatter = float(getattr(subtraction, "statistics", {}).get("flux_scatter", 0.0))
    if not scatter > 0:
        return found
    from skyloom.subtraction.scatter import constant_light

    light = filter_image(constant_light(subtraction), variance, subtraction.usable, found.psf, threads=threads).flux
    total = np.where(found.valid, found.flux_variance + (scatter * light) ** 2, 0.0)
    shrink = np.sqrt(np.where(found.valid, found.flux_variance, 0.0) / np.where(total > 0, total, 1.0))
    kind: Any = found.flux_variance.dtype
    return dataclasses.replace(
        found,
        significance=(found.significance * shrink).astype(np.float32),
        flux_variance=total.astype(kind),
    )


def _correlations(subtraction: SubtractionLike, science: float | None, template: float | None) -> tuple[float, float]:
    """Return the noise correlation of both images, as given or as the subtraction knows it."""
    science = float(getattr(subtraction, "correlation_science", 1.0) if science is None else science)
    template = float(getattr(subtraction, "correlation_template", 1.0) if template is None else template)
    if not (science > 0 and template > 0):
        raise InputError(
            f"The correlations of science and template are {science} and {template}; they must be above 0 (1 for "
            "independent pixels)."
        )
    return science, template


def filter_image(
    image: npt.NDArray,
    variance: npt.NDArray,
    usable: npt.NDArray[np.bool_],
    psf: Psf,
    *,
    effective_variance: npt.NDArray | None = None,
    threads: int | None = None,
) -> Score:
    """Filter any image with its PSF: equations (1) and (4).

    Parameters
    ----------
    image, variance : ndarray, shape (ny, nx)
        Sky-subtracted data, and the variance of each pixel.
    usable : ndarray of bool, shape (ny, nx)
    psf : Psf
        PSF of the image.
    effective_variance : ndarray, shape (ny, nx), optional
        V_eff of equation (4). Default: `variance`, for independent pixels.
    threads : int, optional
        Number of threads; the result does not depend on it.

    Returns
    -------
    score : Score

    Raises
    ------
    ShapeError
        The planes have different shapes.
    """
    effective_variance = variance if effective_variance is None else effective_variance
    shapes = {np.shape(plane) for plane in (image, variance, usable, effective_variance)}
    if len(shapes) != 1:
        raise ShapeError(
            f"Image, variance, usable and effective variance have the shapes {sorted(shapes)}; they must be the same.",
            shapes=sorted(shapes),
        )
    usable = usable & np.isfinite(image) & np.isfinite(variance) & (variance > 0)
    safe = np.where(usable, variance, 1.0).astype(float)
    weight = usable / safe
    data = np.where(usable, image, 0.0) * weight
    spread = np.where(usable, effective_variance, 0.0) * weight**2
    grid = Grid(image.shape)
    stamps = grid.sample(psf.stamp)
    linear, square = VaryingFilter(stamps, grid), VaryingFilter(stamps**2, grid)
    signal, norm, noise, coverage = correlate(
        [(linear, data), (square, weight), (square, spread), (square, usable)], threads
    )
    coverage = np.clip(coverage / grid.plane((stamps**2).sum(axis=(2, 3))), 0, 1)
    # FFT rounding leaves tiny values where all is masked; the coverage tells them from real ones
    valid = (coverage > MIN_COVERAGE) & (norm > 0) & (noise > 0)
    norm, noise = np.where(valid, norm, 1.0), np.where(valid, noise, 1.0)
    kind: Any = np.float64 if image.dtype == np.float64 else np.float32
    return Score(
        significance=(valid * signal / np.sqrt(noise)).astype(np.float32),
        flux=(valid * signal / norm).astype(kind),
        flux_variance=(valid * noise / norm**2).astype(kind),
        effective_variance=np.where(usable, effective_variance, 0.0).astype(kind),
        coverage=coverage.astype(np.float32),
        psf=psf,
    )
