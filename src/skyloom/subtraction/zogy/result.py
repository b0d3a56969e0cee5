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
from skyloom.psf import Psf
from skyloom.psf.model import Stamp
from skyloom.subtraction.zogy.match import Match
from skyloom.subtraction.zogy.proper import ProperPair, centred

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
    variance : ndarray
        Variance of each pixel of `image`, photon noise of the sources included.
    mask : ndarray of uint32
        Bits of `MaskBit`.
    significance : ndarray
        S_corr (eq. 25): S over its standard deviation, with the noise of sources and of their positions.
    flux, flux_variance : ndarray
        Flux of a point source on each pixel, in the science image's unit, and its variance.
    matched : ndarray
        Science image minus `image`: what was subtracted.
    match : Match
        Flux ratio, shift and scatter that were used.
    psf_science, psf_template : Psf
    psf : Psf
        P_D, the point spread function of `image` (a source of unit flux in the science image has this sum).
    moving : ndarray
        Z^2 of TRANSLIENT, divided by 2 and as significant as `significance`**2: see `skyloom.subtraction.zogy.moving`.
        Empty unless asked for.
    statistics : dict
        Numbers that tell how well it went.
    """

    image: Plane
    variance: Plane
    mask: npt.NDArray[np.uint32]
    significance: Plane
    flux: Plane
    flux_variance: Plane
    match: Match
    psf_science: Psf
    psf_template: Psf
    psf: Psf
    moving: Plane = field(default_factory=lambda: np.empty((0, 0), np.float32))
    statistics: dict[str, Any] = field(default_factory=dict)

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
    """

    def __init__(self, psfs: tuple[Psf, Psf], sigma_n: float, sigma_r: float) -> None:
        self._psfs, self._sigmas = psfs, (sigma_n, sigma_r)

    @property
    def half(self) -> int:
        """Half size of the stamps, pixels."""
        return self._psfs[0].half

    def stamp(self, x: float, y: float) -> Stamp:
        """Return P_D at (x, y), centred on the middle pixel, divided by the sum over the stamp."""
        side = fft.next_fast_len(4 * max(psf.half for psf in self._psfs) + 1, real=True)
        shape = (side, side)
        n, r = (transfer(psf.stamp(x, y), shape) for psf in self._psfs)
        pair = ProperPair(n, r, *self._sigmas, 1.0, shape)
        stamp = centred(fft.irfft2(pair.psf, shape), self.half)
        return np.asarray(stamp / stamp.sum())
