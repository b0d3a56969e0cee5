"""Options and result of a proper subtraction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import fft

from skyloom.errors import InputError
from skyloom.exposure import UNUSABLE
from skyloom.proper import transfer
from skyloom.psf import Psf, stamp_at
from skyloom.psf.model import Stamp, stamp_fwhm
from skyloom.subtraction.zogy.match import Match
from skyloom.subtraction.zogy.proper import ProperPair, centred, moved

Plane = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class ZogyOptions:
    """Options of `skyloom.subtraction.zogy.subtract_zogy`.

    Parameters
    ----------
    flux_ratio : float, optional
        Flux of a source in the template over its flux in the science image: where the fit begins, or the value if
        `fit_ratio` is False. By default the median ratio of the stars.
    fit_ratio, fit_shift : bool
        Fit the flux ratio and a common shift of the template to the stars.
    scatter : 'measured', float or (float, float)
        Standard deviation of positions (in x and y, pixels) in the template relative to the science image. 'measured':
        that of the stars.

    Raises
    ------
    InputError
        A value is out of its range.
    """

    flux_ratio: float | None = None
    fit_ratio: bool = True
    fit_shift: bool = True
    scatter: Literal["measured"] | float | tuple[float, float] = "measured"

    def __post_init__(self) -> None:
        if self.flux_ratio is not None and not (np.isfinite(self.flux_ratio) and self.flux_ratio > 0):
            raise InputError(f"flux_ratio is {self.flux_ratio}; it must be a finite number above 0.")
        if self.scatter != "measured" and not (
            np.all(np.isfinite(self.scatter)) and np.all(np.asarray(self.scatter) >= 0)
        ):
            raise InputError(f"scatter is {self.scatter!r}; 'measured' or pixels of at least 0 are needed.")


@dataclass(frozen=True, eq=False)
class ZogyResult:
    """A proper difference. Planes have the shape (ny, nx) of the science image, and are 0 where `mask` is unusable.

    Parameters
    ----------
    image : ndarray
        D / F_D: science minus template with white noise, in the flux unit of the science image.
    variance_science, variance_template : ndarray
        What each image brings to the variance of a pixel of `image`, photon noise of the sources included.
    mask : ndarray of uint32
        Bits of `MaskBit`.
    significance : ndarray
        S_corr (eq. 25): S over its standard deviation, with the noise of sources and of their positions.
    coverage : ndarray
        Part of a source's signal that comes from usable pixels; 0 where there is no score.
    flux, flux_variance : ndarray
        Flux of a point source on each pixel, in the science image's unit, and its variance.
    background : ndarray
        What was taken off as the science image's background. Empty if that was the caller's work.
    match : Match
        Flux ratio, shift and scatter that were used.
    psf_science, psf_template : Psf
    psf : Psf
        P_D, the point spread function of `image` (a source of unit flux in the science image has this sum).
    moving : ndarray
        Z^2 of TRANSLIENT, in noise a chi-square of two degrees of freedom; `moving_significance` makes it comparable
        with `significance`. Empty unless asked for.
    statistics : dict
        Numbers that tell how well it went.
    """

    image: Plane
    variance_science: Plane
    variance_template: Plane
    mask: npt.NDArray[np.uint32]
    significance: Plane
    coverage: Plane
    flux: Plane
    flux_variance: Plane
    match: Match
    psf_science: Psf
    psf_template: Psf
    psf: Psf
    moving: Plane = field(default_factory=lambda: np.empty((0, 0), np.float32))
    background: Plane = field(default_factory=lambda: np.empty((0, 0), np.float32))
    statistics: dict[str, Any] = field(default_factory=dict)

    @property
    def variance(self) -> Plane:
        """Variance of each pixel of `image`."""
        return np.asarray(self.variance_science + self.variance_template)

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """True where the difference may be used."""
        return (self.mask & np.uint32(UNUSABLE)) == 0

    def __repr__(self) -> str:
        ny, nx = self.image.shape
        return (
            f"<ZogyResult {nx}x{ny} flux ratio {self.match.flux_ratio:.4f}, scatter {self.match.scatter[0]:.3f}, "
            f"{self.match.scatter[1]:.3f} px, max {np.abs(self.significance).max():.1f} sigma>"
        )


class DifferencePsf:
    """P_D at any position: the point spread function of a proper difference.

    Parameters
    ----------
    psfs : (Psf, Psf)
        Of science image and template.
    sigma_n, sigma_r : float
        Noise of the images, both in the flux unit of the science image.
    shape : (int, int)
        Shape (ny, nx) of the images.
    shift : (float, float)
        By how much (x, y) the template was moved, pixels.
    """

    def __init__(
        self,
        psfs: tuple[Psf, Psf],
        sigma_n: float,
        sigma_r: float,
        shape: tuple[int, int],
        shift: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.shape, self.shift = shape, shift
        self.psfs, self.sigmas = psfs, (sigma_n, sigma_r)

    @property
    def half(self) -> int:
        """Half size of the stamps, pixels."""
        return self.psfs[0].half

    def fwhm(self, x: float | None = None, y: float | None = None) -> float:
        """Full width at half maximum in pixels (see `stamp_fwhm`) at (x, y), by default the middle of the images."""
        ny, nx = self.shape
        return stamp_fwhm(self.stamp((nx - 1) / 2 if x is None else x, (ny - 1) / 2 if y is None else y))

    def stamp(self, x: float, y: float) -> Stamp:
        """Return P_D at (x, y), centred on the middle pixel, divided by the sum over the stamp."""
        pair = self._pair(x, y)
        stamp = centred(fft.irfft2(pair.psf, pair.shape), self.half)
        return np.asarray(stamp / stamp.sum())

    def stamp_at(self, x: float, y: float, dx: float, dy: float) -> Stamp:
        """Return P_D at (x, y), centred (dx, dy) pixels from the middle pixel: what such a science star leaves."""
        pair = self._pair(x, y)
        star = transfer(stamp_at(self.psfs[0], x, y, dx, dy), pair.shape)
        stamp = centred(fft.irfft2(pair.difference_filters[0] * star, pair.shape), self.half)
        return np.asarray(stamp / stamp.sum())

    def pixel_responses(self, x: float, y: float) -> tuple[Stamp, Stamp]:
        """Return what a single bright pixel of the science image, and one of the template, leaves in the difference."""
        pair = self._pair(x, y)
        of_n, of_r = pair.difference_filters
        n, r = (centred(fft.irfft2(one, pair.shape), self.half) for one in (of_n, of_r * moved(self.shift, pair.shape)))
        return np.asarray(n), np.asarray(r)

    def _pair(self, x: float, y: float) -> ProperPair:
        side = fft.next_fast_len(4 * max(psf.half for psf in self.psfs) + 1, real=True)
        n, r = (transfer(psf.stamp(x, y), (side, side)) for psf in self.psfs)
        return ProperPair(n, r, *self.sigmas, 1.0, (side, side))
