r"""Cross-convolution: each image is filtered with the PSF of the other, and neither has to be sharpened.

A kernel that matches one image to the other must sharpen where that is the wider one along some axis, and noise grows.
After cross-convolution (Yuan & Akerlof 2008, ApJ 677, 808) both have stars of the shape P_S * P_T, and what is left for
a kernel K is small: the ratio of fluxes F, and the errors of the measured PSFs and of the registration,

    P_T * S  ~  K * P_S * T + background.

The noise of these two is strongly correlated. It is not whitened after the subtraction, where that would have to
divide by nearly nothing at frequencies at which both PSFs have no power. Each raw image is filtered once, with A and B,

    D = A * S - B * T - background,      A^ = phi P_T^,   B^ = phi K^ P_S^,
    phi = sqrt((v_S + v_T |K^(0)|^2) / (v_S |P_T^|^2 + v_T |K^ P_S^|^2)),

which are bounded: v_S |A^|^2 + v_T |B^|^2 = v_S + v_T |K^(0)|^2 at all frequencies, so that the noise of D is white.
A has the sum 1, and fluxes of sources of S keep their scale; their PSF in D is A * P_S. For K = F delta this is the
proper difference of Zackay, Ofek & Gal-Yam (2016, ApJ 830, 27, eq. 13). K / F is fitted between A * S and B * T of that
case, as `skyloom.subtraction.sfft` does: there the noise is white, which makes least squares over pixels the best fit.
What the noise of B * T would bias is taken off, so that K is F delta where nothing can be measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from skyloom.convolution import polynomial
from skyloom.errors import SubtractionError
from skyloom.exposure import UNUSABLE, Exposure, MaskBit
from skyloom.fill import fill_from_each_other
from skyloom.filters import Grid, VaryingFilter, convolve_full, correlate
from skyloom.proper import transfer
from skyloom.psf import Psf, estimate_psf, stamp_fwhm
from skyloom.subtraction.basis import Float64Array
from skyloom.subtraction.decorrelate import Decorrelation, spread
from skyloom.subtraction.masking import combine_masks
from skyloom.subtraction.match import Match
from skyloom.subtraction.noise import smoothing_kernel
from skyloom.subtraction.result import Subtraction
from skyloom.subtraction.sanity import check_variance
from skyloom.subtraction.sfft.match import match_sfft
from skyloom.subtraction.sfft.options import SfftOptions
from skyloom.subtraction.sfft.regions import kernel_half
from skyloom.subtraction.stamps import Planes, find_sources, source_positions
from skyloom.subtraction.zogy.proper import centred

_TOUCHED = 1e-2  # of a filter's weight: a pixel that took more from unusable ones takes no part in the fit
_SMOOTH = 7  # pixels, over which both images are averaged to compare their fluxes
_FLOOR = 1e-10  # of the largest noise power: where both images hold less, they hold nothing
_TIGHT = 1e-4  # error of filters that see images, for stars of a signal-to-noise ratio of some thousands


def subtract_crossed(science: Exposure, template: Exposure, options: SfftOptions, *, sources: Any) -> Subtraction:
    """Do what `subtract` is asked to by `SfftOptions(cross_convolve=True)`.

    The PSFs are those of the exposures, if they know them, or measured. `convolved` of the result is 'both', `kernel`
    None, and `decorrelation.filter` is A.

    Parameters
    ----------
    science, template : Exposure
        On one grid, with variances.
    options : SfftOptions
        For K.
    sources : Table or None
        Stars of the science image.
    """
    from skyloom.subtraction.alard_lupton import noise_statistics

    crossed = _Crossed(science, template, (_psf(science, sources), _psf(template, None)))
    half = options.kernel_half_width or kernel_half(crossed.fwhm)
    target, source, noise_correlation = crossed.filtered(2 * half)
    xy = find_sources(target) if sources is None else source_positions(sources)
    match = match_sfft(
        target,
        source,
        xy,
        fwhm=crossed.fwhm,
        options=dataclasses.replace(options, kernel_half_width=half),
        noise_correlation=noise_correlation,
    )
    result = crossed.difference(match, options.max_lost)
    check_variance(result)
    result.statistics.update(match.statistics | crossed.widths | noise_statistics(result))
    for name in ("kernel_sum", "kernel_sum_scatter"):
        result.statistics[name] *= crossed.ratio
    return result


def _psf(exposure: Exposure, sources: Any) -> Psf:
    return exposure.psf if isinstance(exposure.psf, Psf) else estimate_psf(exposure, sources)


def _flux_ratio(science: npt.NDArray[Any], template: npt.NDArray[Any], usable: npt.NDArray[np.bool_]) -> float:
    """Return about by how much the science image's fluxes are larger: from the brightest places, smoothed."""
    pair = [ndimage.uniform_filter(np.where(usable, plane, 0), _SMOOTH)[usable] for plane in (science, template)]
    ratio = float(np.vdot(pair[0], pair[1])) / max(float(np.vdot(pair[1], pair[1])), 1e-300)
    if not ratio > 0:
        raise SubtractionError(
            "The science image and the template have nothing in common: where one is bright the other is not. Check "
            "that they are registered."
        )
    return ratio


class _Crossed:
    """Both images without holes and without their medians, and their PSFs on the nodes of a grid."""

    def __init__(self, science: Exposure, template: Exposure, psfs: tuple[Psf, Psf]) -> None:
        self.exposures = science, template
        self.dtype: Any = science.data.dtype.type
        self.grid = Grid(science.shape)
        self.stamps = [self.grid.sample(psf.stamp) for psf in psfs]
        middle = [stamps[stamps.shape[0] // 2, stamps.shape[1] // 2] for stamps in self.stamps]
        fwhms = [stamp_fwhm(stamp) for stamp in middle]
        self.fwhm = max(fwhms)
        self.widths = {"science_fwhm": fwhms[0], "template_fwhm": fwhms[1]}
        self.levels = [np.median(one.data[one.usable]) for one in self.exposures]
        data = [
            np.where(one.usable, one.data - level, 0).astype(self.dtype)
            for one, level in zip(self.exposures, self.levels, strict=True)
        ]
        self.ratio = _flux_ratio(data[0], data[1], science.usable & template.usable)
        self.images = self._filled((data[0], data[1]), middle)
        # of the white noise before any resampling
        self.variances = [
            np.where(one.usable, np.asarray(one.variance, self.dtype), self.dtype(0)) * self.dtype(one.correlation)
            for one in self.exposures
        ]

    def _filled(
        self, data: tuple[npt.NDArray[Any], npt.NDArray[Any]], middle: list[Float64Array]
    ) -> list[npt.NDArray[Any]]:
        usable = self.exposures[0].usable, self.exposures[1].usable
        if usable[0].all() and usable[1].all():
            return list(data)
        ny, nx = data[0].shape
        reach = max(len(stamp) for stamp in middle)
        box = (fft.next_fast_len(ny + reach, real=True), fft.next_fast_len(nx + reach, real=True))
        transfers = [transfer(stamp, box, np.complex64) for stamp in middle]
        both = data[0], data[1] * self.dtype(self.ratio)
        filled = fill_from_each_other(both, usable, (transfers[0], transfers[1]), self.fwhm / 2.355, box)
        return [filled[0], filled[1] / self.dtype(self.ratio)]

    def filtered(self, lags: int) -> tuple[Planes, Planes, Float64Array]:
        """Return A * S and B * T for K = F delta, and how the noise of B * T is correlated, to so many lags.

        That of their difference is white.
        """
        pixel = np.full((1, 1), self.ratio)
        filters, noisy = self._filters(lambda _x, _y: pixel)
        planes = [
            Planes(image, variance, (kept >= 1 - _TOUCHED) & (variance > 0))
            for image, variance, kept in zip(self._apply(filters), self._noise(noisy), self._kept(filters), strict=True)
        ]
        middle = noisy[1][noisy[1].shape[0] // 2, noisy[1].shape[1] // 2]
        covariance = convolve_full(middle, middle[::-1, ::-1])
        centre = len(covariance) // 2
        covariance = covariance[centre - lags : centre + lags + 1, centre - lags : centre + lags + 1]
        return planes[0], planes[1], covariance / covariance[lags, lags]

    def difference(self, match: Match, max_lost: float) -> Subtraction:
        """Return D, its variance and mask, given the fit to what `filtered` returns."""
        kernel = match.kernel
        filters, noisy = self._filters(lambda x, y: self.ratio * kernel.image_at(x, y))
        planes = self._apply(filters)
        ny, nx = self.grid.shape
        x, y = np.arange(nx)[None, :], np.arange(ny)[:, None]
        left = polynomial(match.background, x, y, kernel.centre, kernel.scale)
        image = planes[0] - planes[1] - left
        # of the images with their levels: A has the sum 1, B that of K
        background = left + self.levels[0] - self.ratio * kernel.sum_at(x, y) * self.levels[1]
        variances = self._noise(noisy)
        masks = [
            spread(exposure.mask, 1 - kept, max_lost, stamps.shape[-1] // 2)
            for exposure, kept, stamps in zip(self.exposures, self._kept(filters), filters, strict=True)
        ]
        mask = combine_masks(masks[1], masks[0], "template")
        mask[(variances[0] + variances[1] <= 0) & ((mask & np.uint32(UNUSABLE)) == 0)] |= np.uint32(MaskBit.EDGE)
        good = (mask & np.uint32(UNUSABLE)) == 0
        image, of_science, of_template = (np.where(good, plane, 0).astype(self.dtype) for plane in (image, *variances))
        return Subtraction(
            image=image,
            variance=of_science + of_template,
            variance_science=of_science,
            variance_template=of_template,
            mask=mask,
            matched=np.where(good, self.exposures[0].data - image, 0).astype(self.dtype),
            kernel=None,
            background=background.astype(self.dtype),
            convolved="both",
            stamps=match.stamps,
            decorrelation=Decorrelation(VaryingFilter(filters[0], self.grid, _TIGHT)),
        )

    def _apply(self, filters: list[Float64Array]) -> list[npt.NDArray[Any]]:
        """Return A * S and B * T."""
        turned = [VaryingFilter(stamps[..., ::-1, ::-1], self.grid, _TIGHT) for stamps in filters]
        return correlate(list(zip(turned, self.images, strict=True)), dtype=self.dtype)

    def _noise(self, noisy: list[Float64Array]) -> list[npt.NDArray[Any]]:
        """Return what each image brings to the variance, given the filters of its white noise."""
        squares = [VaryingFilter(stamps[..., ::-1, ::-1] ** 2, self.grid) for stamps in noisy]
        parts = correlate(list(zip(squares, self.variances, strict=True)), dtype=self.dtype)
        return [np.maximum(part, 0) for part in parts]

    def _kept(self, filters: list[Float64Array]) -> list[npt.NDArray[Any]]:
        """Return which share of the weight of each filter, the sum of abs(A), lies on usable pixels."""
        weights = [np.abs(stamps[..., ::-1, ::-1]) for stamps in filters]
        shares = [VaryingFilter(w / w.sum(axis=(2, 3), keepdims=True), self.grid) for w in weights]
        planes = [exposure.usable.astype(self.dtype) for exposure in self.exposures]
        return correlate(list(zip(shares, planes, strict=True)), dtype=self.dtype)

    def _filters(self, kernel_at: Callable[[float, float], Float64Array]) -> tuple[list[Float64Array], ...]:
        """Return A and B at the nodes, and with them what images' noise went through, white before any resampling."""
        kernels = self.grid.sample(kernel_at)
        halves = [stamps.shape[-1] // 2 for stamps in self.stamps]
        half = max(halves) + kernels.shape[-1] // 2 + int(np.ceil(self.fwhm))
        side = fft.next_fast_len(2 * (half + sum(halves)) + 1, real=True)
        box = (side, side)
        p_science, p_template = (transfer(stamps, box) for stamps in self.stamps)
        before = p_template, transfer(kernels, box) * p_science
        smoothing = [transfer(smoothing_kernel(one.correlation), box) for one in self.exposures]
        levels = [self._levels(variance, one) for variance, one in zip(self.variances, self.exposures, strict=True)]
        power = sum(
            level[..., None, None] * np.abs(f * s) ** 2 for level, f, s in zip(levels, before, smoothing, strict=True)
        )
        top = power[..., :1, :1]
        phi = np.sqrt(top / np.maximum(power, _FLOOR * top))
        filters = [phi * f for f in before]
        noisy = [f * s for f, s in zip(filters, smoothing, strict=True)]
        a, b, c, d = (centred(fft.irfft2(f, box), half) for f in (*filters, *noisy))
        return [a, b], [c, d]

    def _levels(self, variance: npt.NDArray[Any], exposure: Exposure) -> Float64Array:
        """Return the variance of the sky around the nodes."""
        half = 1 + max(variance.shape) // (2 * (max(self.grid.x.size, self.grid.y.size) - 1))

        def around(x: float, y: float) -> float:
            part = tuple(slice(max(0, int(p) - half), int(p) + half + 1) for p in (y, x))
            good = exposure.usable[part]
            return float(np.median(variance[part][good] if good.any() else variance[exposure.usable]))

        return self.grid.sample(around)
