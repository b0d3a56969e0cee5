"""How exposures are co-added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from skyloom.errors import InputError
from skyloom.resampling._drizzle_checks import is_number
from skyloom.stacking.memory import parse_memory

TILE = 1024
"""Side of the tiles in which a co-add is worked on, output pixels: a multiple of the blocks of covariances."""

METHODS = ("clipped", "mean", "median", "proper")
_CHOICES = {
    "method": METHODS,
    "weight": ("ivm", "exptime", "none"),
    "background": ("match", "plane", "subtract", "none"),
    "conserve": ("auto", "flux", "surface brightness"),
    "saturated": ("fill", "flag"),
}
_SCALES = ("auto", "zeropoint", "exptime", "none")


@dataclass(frozen=True)
class RejectionOptions:
    """How outliers are told from noise.

    A pixel is an outlier if abs(d - b) > s G + f P + n sigma, where b is the blotted median, G the largest difference
    between b and its four neighbours, P the largest abs(b - sky) within `reach` pixels, and sigma the noise of d - b;
    and so is a neighbour of an outlier, with the second values of n and s.

    Parameters
    ----------
    sigma : (float, float)
        n.
    gradient : (float, float)
        s: allows for errors of the registration and for undersampling.
    fraction : float
        f: allows for different seeing, which changes the peak of a star (Gruen, Seitz & Bernstein 2014, PASP 126, 158,
        eq. 11, at the pixel itself). The measured contrast of the peaks of an exposure's stars is added.
    reach : int
        Half width, in pixels, of the box of P: how far a wider or trailed image carries light from a star's peak.
    """

    sigma: tuple[float, float] = (4.0, 3.0)
    gradient: tuple[float, float] = (1.2, 0.7)
    fraction: float = 0.3
    reach: int = 4

    def __post_init__(self) -> None:
        values = (*self.sigma, *self.gradient, self.fraction, self.reach)
        if not all(is_number(value) and np.isfinite(value) and value >= 0 for value in values):
            raise InputError(f"The thresholds of the rejection are {values}; none of them may be below 0.")


@dataclass(frozen=True)
class CoaddOptions:
    """How exposures are co-added.

    Parameters
    ----------
    method : {'clipped', 'mean', 'median', 'proper'}
        'clipped': the weighted mean without cosmic rays and other outliers; needs at least two exposures at a place,
        better three. 'mean': the weighted mean of all. 'median': of the exposures interpolated onto the grid. 'proper':
        the statistically optimal sum of Zackay & Ofek (2017), with the PSF of each exposure; outliers are left out.
    pixfrac : float
        Side of a drop in input pixels, above 0 and at most 1 (Fruchter & Hook 2002, section 2).
    weight : {'ivm', 'exptime', 'none'}
        Inverse variance of the sky, exposure time, or the same for all. ('proper' has its own.)
    background : {'match', 'plane', 'subtract', 'none'}
        'match' subtracts one number from each exposure, so that their skies agree with that of the first; 'plane' a
        number and a gradient; 'subtract' a smooth sky (and with it whatever is larger than its boxes); 'none' nothing.
    flux_scale : {'auto', 'zeropoint', 'exptime', 'none'} or sequence of float
        What brings the exposures to the flux scale of the first one, see `flux_scales`; or a factor for each.
    conserve : {'auto', 'flux', 'surface brightness'}
        What a pixel's value is; 'auto' goes by the unit: surface brightness if it is per solid angle (MJy/sr). Fluxes
        are multiplied by the area of an output pixel in pixels of the exposure.
    rejection : RejectionOptions
        How to tell outliers from noise.
    saturated : {'fill', 'flag'}
        What becomes of places where some exposures are saturated. 'fill': the others fill them. 'flag': they get
        `MaskBit.SATURATED`, because the PSF there is that of the others alone; right for a template.
    pixel_scale, rotation : float, optional
        Of a new output grid, see `output_wcs_from`.
    covariance : int, optional
        Noise covariances between output pixels are kept, averaged over blocks of so many pixels a side, a power of 2
        up to 1024; None: not.
    memory : int or str, optional
        What the whole process may occupy, bytes or '1GiB'. Output planes that do not fit are worked on in tiles and
        kept on disk (the result is the same to the last bit). By default 60 % of the machine's memory.
    overwrite : bool
        Whether an output file may be replaced.

    Raises
    ------
    InputError
        An option makes no sense.
    """

    method: str = "clipped"
    pixfrac: float = 1.0
    weight: str = "ivm"
    background: str = "match"
    flux_scale: str | Sequence[float] = "auto"
    conserve: str = "auto"
    rejection: RejectionOptions = field(default_factory=RejectionOptions)
    saturated: str = "fill"
    pixel_scale: float | None = None
    rotation: float | None = None
    covariance: int | None = 64
    memory: int | str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not (is_number(self.pixfrac) and 0 < self.pixfrac <= 1):
            raise InputError(f"pixfrac is {self.pixfrac!r}; it must be above 0 and at most 1.", pixfrac=self.pixfrac)
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise InputError(f"{name} is {value!r}; it must be one of {', '.join(choices)}.", **{name: value})
        if isinstance(self.flux_scale, str) and self.flux_scale not in _SCALES:
            raise InputError(
                f"flux_scale is {self.flux_scale!r}; it must be one of {', '.join(_SCALES)}, or a factor for each "
                "exposure.",
                flux_scale=self.flux_scale,
            )
        if self.covariance is not None and not (
            isinstance(self.covariance, int | np.integer) and self.covariance >= 1 and TILE % self.covariance == 0
        ):
            raise InputError(
                f"covariance is {self.covariance!r}; the side of the blocks is needed, a power of 2 from 1 to {TILE}, "
                "or None.",
                covariance=self.covariance,
            )
        if not isinstance(self.rejection, RejectionOptions):
            raise InputError(f"rejection is a {type(self.rejection).__name__}; RejectionOptions(...) are needed.")
        parse_memory(self.memory)

    @property
    def rejects(self) -> bool:
        """Whether outliers are looked for."""
        return self.method in ("clipped", "proper")
