r"""Differences whose noise is white: what the matching kernel has correlated is undone (Kaiser 2004; DMTN-021).

A kernel-matched difference D = S - K * T has noise of two kinds: that of the image that was left alone, which is white
(of variance v_1 for each pixel), and that of the convolved one (white of variance v_2 before), which went through the
kernel k. Its power spectrum is

    C(f) = v_1 + v_2 |k(f)|^2,

and the filter

    phi(f) = sqrt((v_1 + v_2 |k(0)|^2) / (v_1 + v_2 |k(f)|^2))

makes it white (Reiss & Lupton 2016, LSST DMTN-021, eq. 2; the numerator is chosen so that phi has unit sum, and fluxes
keep their scale). The variance of a pixel of phi * D is then v_1 + v_2 |k(0)|^2, and its PSF, phi * P for the PSF P of
D, is sharper than P: the matched filter with it is the proper score of Zackay, Ofek & Gal-Yam (2016), up to the errors
of the kernel. Noise that was correlated before, by resampling, enters C(f) as well, with the
spectrum of `skyloom.subtraction.noise.smoothing_kernel`.

The kernel, v_1 and v_2 vary over the field: phi is computed on the nodes of a grid, and what lies between is blended
smoothly (`skyloom.filters`). v_1 and v_2 are those of the sky: under bright stars, where photon noise changes within a
PSF, no filter makes the noise white, and the variance of a pixel is

    V = sum_u phi(u)^2 V_1(x - u) + sum_u (phi * k)(u)^2 V_2(x - u).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.optimize import brentq

from skyloom.exposure import UNUSABLE, MaskBit
from skyloom.filters import Grid, VaryingFilter, convolve_full, correlate
from skyloom.psf import Psf, stamp_at
from skyloom.subtraction.basis import Float64Array
from skyloom.subtraction.noise import smoothing_kernel
from skyloom.subtraction.stamps import dilate

if TYPE_CHECKING:
    from skyloom.subtraction.result import Subtraction

_LARGEST_HALF = 40  # pixels from phi's centre to its edge at most
_PSF_CUT = 1e-3  # of the flux that may lie outside of a stamp of the PSF
_CUT = 1e-4  # of sum |phi| that may lie outside of the filter
_FLOOR = 1e-6  # of the largest noise power: where both images hold less, there is nothing to restore
_NO_MORE = 1e-6  # correlation beyond that of the kernel: rounding
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

        whole = self._whole(0.0, 0.0)
        self._half = whole.shape[0] // 2
        for smaller in range(psf.half, self._half):  # phi takes light to its wings, and more from them
            inner = slice(whole.shape[0] // 2 - smaller, whole.shape[0] // 2 + smaller + 1)
            if abs(whole[inner, inner].sum() - whole.sum()) < _PSF_CUT:
                self._half = smaller
                break

    @property
    def half(self) -> int:
        """Half size of the stamps, pixels."""
        return self._half

    def stamp(self, x: float, y: float) -> Float64Array:
        """Return the PSF at (x, y), centred on the middle pixel, with unit sum."""
        return self.stamp_at(x, y, 0.0, 0.0)

    def stamp_at(self, x: float, y: float, dx: float, dy: float) -> Float64Array:
        """Return the PSF at (x, y), centred (dx, dy) pixels from the middle pixel, with unit sum."""
        stamp = self._whole(x, y, dx, dy)
        rim = stamp.shape[0] // 2 - self._half
        stamp = stamp[rim : stamp.shape[0] - rim, rim : stamp.shape[1] - rim]
        return stamp / stamp.sum()

    def _whole(self, x: float, y: float, dx: float = 0.0, dy: float = 0.0) -> Float64Array:
        return convolve_full(stamp_at(self._psf, x, y, dx, dy), self._decorrelation.image_at(x, y))


def decorrelate(result: Subtraction, *, max_lost: float = 0.1) -> Subtraction:
    """Return a difference with white noise.

    Parameters
    ----------
    result : Subtraction
        As `skyloom.subtraction.subtract` returns it.
    max_lost : float
        A pixel becomes unusable if more than this share of the filter's weight, the sum of abs(phi), falls on unusable
        pixels or outside of the image.

    Returns
    -------
    Subtraction
        With image, variances and mask of the decorrelated difference, both correlations 1, `decorrelation` set, and
        the statistics of the noise measured again. A difference that is white already, decorrelated or proper, is
        returned as it is.
    """
    from skyloom.subtraction.alard_lupton import noise_statistics

    if result.decorrelation is not None or result.kernel is None:
        return result
    noise = _Noise(result)
    stamps = noise.whitening()
    phi = VaryingFilter(stamps, noise.grid)
    weights = VaryingFilter(np.abs(stamps) / np.abs(stamps).sum(axis=(2, 3), keepdims=True), noise.grid)
    dtype: Any = result.image.dtype.type
    image, kept = correlate([(phi, result.image), (weights, result.usable.astype(dtype))], dtype=dtype)
    still, moved = noise.variances(stamps, dtype)
    mask = spread(result.mask, 1 - kept, max_lost, phi.side // 2)
    good = ((mask & np.uint32(UNUSABLE)) == 0) & (still + moved > 0)
    image, still, moved = (np.where(good, plane, dtype(0)) for plane in (image, still, moved))
    science, template = (moved, still) if result.convolved == "science" else (still, moved)
    white = dataclasses.replace(
        result,
        image=image,
        variance=science + template,
        variance_science=science,
        variance_template=template,
        mask=mask,
        correlation_science=1.0,
        correlation_template=1.0,
        variance_before=None,
        statistics=dict(result.statistics),
        decorrelation=Decorrelation(phi),
    )
    if good.any():
        white.statistics.update(noise_statistics(white))
    return white


class _Noise:
    """The noise of a difference: that of independent pixels of two images, and the kernels that it went through."""

    def __init__(self, result: Subtraction) -> None:
        self.result = result
        still, moved = result.variance_science, result.variance_template
        c_still, self.c_moved = result.correlation_science, result.correlation_template
        if result.convolved == "science":
            still, moved, c_still, self.c_moved = moved, still, self.c_moved, c_still
        self.grid = Grid(result.image.shape)
        powers = self.grid.sample(lambda x, y: float((result.noise_kernel(x, y) ** 2).sum()))
        dtype = result.image.dtype
        self.still = still * dtype.type(c_still)
        # blurred and moved by the kernel's squares: right on the sky, and where the convolved image was bridged
        self.moved = moved * dtype.type(self.c_moved) / self.grid.plane(powers).astype(dtype)
        before = result.variance_before
        if before is not None:
            self.moved = np.where(np.isfinite(before) & (before > 0), before, self.moved).astype(dtype)
        self.smoothing = smoothing_kernel(c_still)

    def through(self, x: float, y: float) -> Float64Array:
        """Return the kernel that the noise of the convolved image went through, and its smoothing before that."""
        kernel = self.result.noise_kernel(x, y)
        return convolve_full(kernel, _smoothing_of(kernel, self.c_moved))

    def level(self, plane: npt.NDArray[Any], x: float, y: float) -> float:
        """Return the variance of the sky around a node."""
        box = 1 + max(plane.shape) // (2 * (max(self.grid.x.size, self.grid.y.size) - 1))
        part = tuple(slice(max(0, int(p) - box), int(p) + box + 1) for p in (y, x))
        good = self.result.usable[part]
        return float(np.median(plane[part][good] if good.any() else plane[self.result.usable]))

    def whitening(self) -> Float64Array:
        """Return phi at the nodes of the grid, shape (n_y, n_x, n, n)."""

        def stamp(x: float, y: float) -> Float64Array:
            levels = self.level(self.still, x, y), self.level(self.moved, x, y)
            return _whitening(self.smoothing, self.through(x, y), *levels)

        return _cut(self.grid.sample(stamp))

    def variances(self, stamps: Float64Array, dtype: Any) -> list[npt.NDArray[Any]]:
        """Return what each image brings to the variance after the filter: that left alone, and that convolved."""
        nodes = [(float(x), float(y)) for y in self.grid.y for x in self.grid.x]
        flat = stamps.reshape(-1, *stamps.shape[2:])
        planes = []
        through = [self.through(*node) for node in nodes]
        for plane, kernels in ((self.still, [self.smoothing] * len(nodes)), (self.moved, through)):
            # turned: the variance is convolved with them, `correlate` correlates
            squares = [convolve_full(stamp, k)[::-1, ::-1] ** 2 for stamp, k in zip(flat, kernels, strict=True)]
            varying = VaryingFilter(np.array(squares).reshape(*stamps.shape[:2], *squares[0].shape), self.grid)
            planes += correlate([(varying, plane)], dtype=dtype)
        return [np.maximum(plane, 0) for plane in planes]


def _smoothing_of(kernel: Float64Array, correlation: float) -> Float64Array:
    """Return the smoothing s that the noise had before the kernel, for the correlation that it has after.

    A correlation c of convolved noise, beyond that of the kernel, means sum (k * s)^2 = sum k^2 / c.
    """
    total = float((kernel**2).sum())

    def excess(before: float) -> float:
        return total / float((convolve_full(kernel, smoothing_kernel(before)) ** 2).sum()) - correlation

    if correlation <= 1 + _NO_MORE or excess(1.0) >= 0:
        return smoothing_kernel(1.0)
    return smoothing_kernel(9.0 if excess(9.0) < 0 else brentq(excess, 1.0, 9.0, xtol=1e-3))


def _whitening(first: Float64Array, second: Float64Array, v_1: float, v_2: float) -> Float64Array:
    """Return phi for white noise of variances v_1 and v_2 that went through two kernels, on a grid of its own."""
    side = fft.next_fast_len(4 * _LARGEST_HALF, real=True)
    power = np.zeros((side, side // 2 + 1))
    for kernel, variance in ((first, v_1), (second, v_2)):
        power += variance * np.abs(fft.rfft2(kernel, s=(side, side))) ** 2
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


def spread(
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
