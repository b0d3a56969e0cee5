r"""Differences whose noise is white: what the matching kernel has correlated is undone (Kaiser 2004; DMTN-021).

A kernel-matched difference D = S - K * T has noise of two kinds: that of the image that was left alone, which is white
(of variance v_1 for each pixel), and that of the convolved one (white of variance v_2 before), which went through the
kernel k. Its power spectrum is

    C(f) = v_1 + v_2 |k(f)|^2,

and the filter

    phi(f) = sqrt((v_1 + v_2 |k(0)|^2) / (v_1 + v_2 |k(f)|^2))

makes it white (Reiss & Lupton 2016, LSST DMTN-021, eq. 2; the numerator is chosen so that phi has unit sum, and fluxes
keep their scale). The variance of a pixel of phi * D is then v_1 + v_2 |k(0)|^2, and its PSF, phi * P for the PSF P of D,
is sharper than that of either image's match: the matched filter with it is the proper score of Zackay, Ofek & Gal-Yam
(2016), up to the errors of the kernel. Noise that was correlated before, by resampling, enters C(f) as well, with the
spectrum of `skyloom.subtraction.noise.smoothing_kernel`.

The kernel, v_1 and v_2 vary over the field: phi is computed on the nodes of a grid, and what lies between is blended
smoothly (`skyloom.filters`). v_1 and v_2 are those of the sky: under bright stars, where photon noise changes within a
PSF, no filter makes the noise white, and the variance of a pixel is

    V = sum_u phi(u)^2 V_1(x - u) + sum_u (phi * k)(u)^2 V_2(x - u).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.optimize import brentq
from scipy.signal import fftconvolve

from skyloom.exposure import UNUSABLE, MaskBit
from skyloom.filters import Grid, VaryingFilter, correlate
from skyloom.psf import Psf
from skyloom.subtraction.basis import Float64Array
from skyloom.subtraction.noise import smoothing_kernel
from skyloom.subtraction.stamps import dilate

if TYPE_CHECKING:
    from skyloom.subtraction.result import Subtraction

_LARGEST_HALF = 40  # pixels from phi's centre to its edge at most
_CUT = 1e-4  # of sum |phi| that may lie outside of the filter
_FLOOR = 1e-6  # of the largest noise power: where both images hold less, there is nothing to restore
_TOUCHED = 1e-3  # a pixel that took less than this share of phi's weight from unusable ones counts as untouched


@dataclass(frozen=True, eq=False)
class Decorrelation:
    """The filter that made the noise of a difference white.

    Parameters
    ----------
    filter : VaryingFilter
        phi, symmetric about its middle.
    """

    filter: VaryingFilter

    @property
    def half(self) -> int:
        """Pixels from the filter's centre to its edge."""
        return self.filter.side // 2

    def image_at(self, x: float, y: float) -> Float64Array:
        """Return phi at pixel (x, y), shape (2 half + 1, 2 half + 1); its sum is 1."""
        return self.filter.image_at(x, y)

    def psf(self, psf: Psf) -> Psf:
        """Return the PSF of the decorrelated difference, for that of the difference before."""
        return DecorrelatedPsf(psf, self)


class DecorrelatedPsf:
    """phi * P, of unit sum.

    Parameters
    ----------
    psf : Psf
        P, of the difference before.
    decorrelation : Decorrelation
    """

    def __init__(self, psf: Psf, decorrelation: Decorrelation) -> None:
        self._psf, self._decorrelation = psf, decorrelation

    @property
    def half(self) -> int:
        """Half size of the stamps, pixels: that of P. phi * P is narrower."""
        return self._psf.half

    def stamp(self, x: float, y: float) -> Float64Array:
        """Return the PSF at (x, y), centred on the middle pixel, with unit sum."""
        stamp = fftconvolve(np.asarray(self._psf.stamp(x, y)), self._decorrelation.image_at(x, y), mode="full")
        rim = (stamp.shape[0] - (2 * self.half + 1)) // 2
        stamp = stamp[rim : stamp.shape[0] - rim, rim : stamp.shape[1] - rim]
        return stamp / stamp.sum()


def decorrelate(result: Subtraction, *, max_lost: float = 0.1) -> Subtraction:
    """Return a difference with white noise.

    Parameters
    ----------
    result : Subtraction
        As `skyloom.subtraction.subtract` returns it.
    max_lost : float
        A pixel becomes unusable if more than this share of the filter's weight, sum |phi|, falls on unusable pixels or
        outside of the image.

    Returns
    -------
    Subtraction
        With `image`, `variance_science`, `variance_template`, `variance` and `mask` of the decorrelated difference, both
        correlations 1, and `decorrelation` set. A difference that is decorrelated already is returned as it is.
    """
    if result.decorrelation is not None:
        return result
    science_moved = result.convolved == "science"
    still, moved = result.variance_template, result.variance_science
    c_still, c_moved = result.correlation_template, result.correlation_science
    if not science_moved:
        still, moved, c_still, c_moved = moved, still, c_moved, c_still
    usable = result.usable
    grid = Grid(result.image.shape)
    box = max(32, int(max(result.image.shape) / max(len(grid.x), len(grid.y))))

    def spectra(x: float, y: float) -> tuple[Float64Array, Float64Array]:
        """Return the kernels through which white noise of both images went: of large-scale variance v_1, v_2."""
        kernel = result.noise_kernel(x, y)
        return smoothing_kernel(c_still), fftconvolve(kernel, _smoothing_of(kernel, c_moved), mode="full")

    def levels(x: float, y: float) -> tuple[float, float]:
        """Return v_1 and v_2 |k(0)|^2 of the sky around a node."""
        rows, columns = (slice(max(0, int(p) - box), int(p) + box + 1) for p in (y, x))
        good = usable[rows, columns]
        return tuple(
            float(np.median(plane[rows, columns][good] if good.any() else plane[usable])) * factor
            for plane, factor in ((still, c_still), (moved, c_moved * _gain_of_mean(result.noise_kernel(x, y))))
        )  # type: ignore[return-value]

    whitening = grid.sample(lambda x, y: _whitening(*spectra(x, y), *levels(x, y)))
    stamps = _cut(whitening)
    phi = VaryingFilter(stamps, grid)
    of_still, of_moved = [], []
    for row, y in zip(stamps, grid.y, strict=True):
        for stamp, x in zip(row, grid.x, strict=True):
            first, second = spectra(float(x), float(y))
            of_still.append(fftconvolve(stamp, first, mode="full") ** 2 * c_still)
            power = (result.noise_kernel(float(x), float(y)) ** 2).sum()
            of_moved.append(fftconvolve(stamp, second, mode="full") ** 2 * (c_moved / power))
    shape = grid.y.size, grid.x.size
    squares = [
        VaryingFilter(np.array(images).reshape(*shape, *images[0].shape), grid) for images in (of_still, of_moved)
    ]
    lost_filter = VaryingFilter(np.abs(stamps) / np.abs(stamps).sum(axis=(2, 3), keepdims=True), grid)
    dtype = result.image.dtype
    image, kept = correlate([(phi, result.image), (lost_filter, usable.astype(dtype))], dtype=dtype.type)
    (variance_still,) = correlate([(squares[0], still)], dtype=dtype.type)
    (variance_moved,) = correlate([(squares[1], moved)], dtype=dtype.type)
    mask = _spread(result.mask, 1 - kept, max_lost, phi.side // 2)
    good = ((mask & np.uint32(UNUSABLE)) == 0) & (variance_still + variance_moved > 0)
    image, variance_still, variance_moved = (
        np.where(good, np.maximum(plane, low), 0).astype(dtype)
        for plane, low in ((image, -np.inf), (variance_still, 0), (variance_moved, 0))
    )
    science, template = (variance_moved, variance_still) if science_moved else (variance_still, variance_moved)
    return dataclasses.replace(
        result,
        image=image,
        variance=science + template,
        variance_science=science,
        variance_template=template,
        mask=mask,
        correlation_science=1.0,
        correlation_template=1.0,
        decorrelation=Decorrelation(phi),
    )


def _gain_of_mean(kernel: Float64Array) -> float:
    """Return the variance that convolved noise has on large scales, in units of its pixels': (sum k)^2 / sum k^2."""
    return float(kernel.sum() ** 2 / (kernel**2).sum())


def _smoothing_of(kernel: Float64Array, correlation: float) -> Float64Array:
    """Return the smoothing s that the noise had before the kernel, for the correlation that it has after.

    A correlation c of convolved noise, beyond that of the kernel, means sum (k * s)^2 = sum k^2 / c.
    """
    if correlation <= 1:
        return smoothing_kernel(1.0)
    total = float((kernel**2).sum())

    def excess(before: float) -> float:
        return total / float((fftconvolve(kernel, smoothing_kernel(before)) ** 2).sum()) - correlation

    return smoothing_kernel(9.0 if excess(9.0) < 0 else brentq(excess, 1.0, 9.0, xtol=1e-3))


def _whitening(first: Float64Array, second: Float64Array, v_1: float, v_2: float) -> Float64Array:
    """Return phi for noise of v_1 and v_2 (on large scales) that went through two kernels, on a grid of its own."""
    side = fft.next_fast_len(4 * _LARGEST_HALF, real=True)
    power = np.zeros((side, side // 2 + 1))
    for kernel, variance in ((first, v_1), (second, v_2)):
        power += variance * np.abs(fft.rfft2(kernel / kernel.sum(), s=(side, side))) ** 2
    power = np.maximum(power, _FLOOR * power.max())
    phi = fft.fftshift(fft.irfft2(np.sqrt(power[0, 0] / power), s=(side, side)))
    middle = side // 2
    cut = slice(middle - _LARGEST_HALF, middle + _LARGEST_HALF + 1)
    return phi[cut, cut]


def _cut(stamps: Float64Array) -> Float64Array:
    """Return stamps as small as they can be, each with unit sum."""
    size = np.abs(stamps)
    half = _LARGEST_HALF
    total = size.sum(axis=(2, 3))
    for smaller in range(1, _LARGEST_HALF):
        inner = slice(_LARGEST_HALF - smaller, _LARGEST_HALF + smaller + 1)
        if (size[:, :, inner, inner].sum(axis=(2, 3)) > (1 - _CUT) * total).all():
            half = smaller
            break
    inner = slice(_LARGEST_HALF - half, _LARGEST_HALF + half + 1)
    stamps = stamps[:, :, inner, inner]
    return stamps / stamps.sum(axis=(2, 3), keepdims=True)


def _spread(
    mask: npt.NDArray[np.uint32], lost: npt.NDArray[np.floating], max_lost: float, half: int
) -> npt.NDArray[np.uint32]:
    """Return the mask after the filter: what lost too much is unusable, for the reasons that are in its reach."""
    bits = mask.copy()
    given_up = lost > max_lost
    for bit in MaskBit:
        if bit & UNUSABLE and (has := (mask & np.uint32(bit)) != 0).any():
            bits[given_up & dilate(has, half)] |= np.uint32(bit)
    bits[given_up & ((bits & np.uint32(UNUSABLE)) == 0)] |= np.uint32(MaskBit.EDGE)
    bits[(lost > _TOUCHED) & ((bits & np.uint32(UNUSABLE)) == 0)] |= np.uint32(MaskBit.SPREAD)
    return bits
