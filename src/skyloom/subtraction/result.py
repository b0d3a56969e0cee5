"""The result of a subtraction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from astropy.table import Table

from skyloom.exposure import UNUSABLE, BoolArray, FloatArray
from skyloom.subtraction.basis import Float64Array
from skyloom.subtraction.kernel import SpatialKernel

if TYPE_CHECKING:
    from skyloom.subtraction.decorrelate import Decorrelation


@dataclass(frozen=True, eq=False)
class Subtraction:
    """A difference image, and how it was made. All planes have the shape (ny, nx) of the science image.

    Parameters
    ----------
    image : ndarray
        Science minus matched template, on the science image's flux scale; 0 where unusable.
    variance : ndarray
        `variance_science` + `variance_template`; 0 where unusable.
    variance_science, variance_template : ndarray
        What each input contributes to the variance of a pixel of `image`. The one of the image that was convolved
        belongs to correlated pixels, see `noise_kernel`.
    mask : ndarray of uint32
        Bits of `MaskBit`.
    matched : ndarray
        What was subtracted, on the science image's scale and with its background: K * template + background from the
        science image, or template / sum K + background from K * science / sum K. Of a proper difference, what is left
        when it is taken off the science image.
    kernel : SpatialKernel or None
        The kernel as fitted: from the template to the science image, or the other way if `convolved` is 'science'. A
        proper difference has none, nor has one after cross-convolution.
    background : ndarray
        The differential background, in the unit of `image`: part of `matched`.
    convolved : {'template', 'science', 'both'}
        Which image was convolved.
    stamps : Table
        Stars of the fit: x, y, chi2, used, and snr (NaN with free pixels), or those of `zogy.match.Match.stars`.
    statistics : dict
        Numbers that tell how well it went.
    correlation_science, correlation_template : float
        `Exposure.correlation` of the inputs: factor by which the noise of each grows, as a variance, on scales of
        many pixels.
    variance_before : ndarray, optional
        Of the convolved image's pixels before the kernel, and before any resampling correlated them (its variance times
        its correlation); not positive where unknown. `decorrelate` needs it where photon noise changes within a PSF.
    decorrelation : Decorrelation, optional
        The filter that made the noise of `image` white: its PSF is `decorrelation.psf(psf)`, psf being that of the
        difference before. `matched` and `background` are those of the difference before.
    """

    image: FloatArray
    variance: FloatArray
    variance_science: FloatArray
    variance_template: FloatArray
    mask: npt.NDArray[np.uint32]
    matched: FloatArray
    kernel: SpatialKernel | None
    background: FloatArray
    convolved: Literal["template", "science", "both"]
    stamps: Table
    statistics: dict[str, Any] = field(default_factory=dict)
    correlation_science: float = 1.0
    correlation_template: float = 1.0
    variance_before: FloatArray | None = None
    decorrelation: Decorrelation | None = None

    @property
    def usable(self) -> BoolArray:
        """True where the difference may be used."""
        return (self.mask & np.uint32(UNUSABLE)) == 0

    def noise_kernel(self, x: float, y: float) -> Float64Array:
        """Return the kernel through which the noise of the convolved image went, near pixel (x, y).

        White noise of variance v in the convolved image has the autocovariance v (k correlated with k) in `image`,
        and the variance v sum k^2 in `variance_template` (or `variance_science`). k is the matching kernel, divided
        by its sum if the science image was convolved. The other image's noise is as it came. The noise of a proper
        difference is white: its kernel is one pixel. Of a decorrelated difference this is the kernel before that.
        """
        if self.kernel is None:
            return np.ones((1, 1))
        kernel = self.kernel.image_at(x, y)
        return kernel if self.convolved == "template" else kernel / kernel.sum()

    def __repr__(self) -> str:
        ny, nx = self.image.shape
        s = self.statistics
        return (
            f"<Subtraction {nx}x{ny} {self.convolved} convolved, order {s.get('spatial_order')}, "
            f"{s.get('n_stamps')} stamps, chi2 {s.get('chi2', np.nan):.2f}, usable={self.usable.mean():.1%}>"
        )
