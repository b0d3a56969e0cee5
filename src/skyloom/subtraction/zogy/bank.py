"""The filters of a proper difference as compact kernels that follow the point spread functions over the field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft

from skyloom.fill import fill_from_each_other
from skyloom.filters import Grid, VaryingFilter
from skyloom.proper import total, transfer
from skyloom.psf import Psf
from skyloom.psf.model import stamp_fwhm
from skyloom.subtraction.zogy.match import BOX_IN_FWHM, Planes
from skyloom.subtraction.zogy.proper import Array, ProperPair, centred, moved

TIGHT = 3e-4
"""Error of the filters that see images: a tenth of that of measured point spread functions, or less."""
LOOSE = 3e-3
"""Error of the filters that see variances."""
ROUGH = 2e-2
"""Error of the filters that see masks, or what scatters by some per cent."""


@dataclass(frozen=True, eq=False)
class ProperFilters:
    """Filters for images in one flux unit (beta = 1), evaluated on a grid of positions and interpolated between them.

    Parameters
    ----------
    difference : VaryingFilter
        Of science image and template: D / F_D.
    score, score_of_template : VaryingFilter
        S / F_S, of both images; k_r R / F_S, of the template.
    error_of_template : VaryingFilter
        `score_of_template` without what is smooth over the boxes in which fluxes of stars are compared, and 1 of a
        star as that is: point spread functions have unit sums, so that errors of theirs leave no flux beyond it.
    difference_squared : (VaryingFilter, VaryingFilter)
        Of one variance each: what either image brings to the variance of D / F_D.
    score_squared : VaryingFilter
        Of both variances: the variance of S / F_S.
    response : VaryingFilter
        Part of a source's S / F_S that comes from where; of unit sum.
    score_of_background : float
        What S / F_S answers to a science image of 1 everywhere.
    background_variances : (float, float, float, float)
        For the noise of the background: the variances of S / F_S and of its derivatives along x and y (those of
        `gradient`), and the covariance of these two.
    stamps : (ndarray, ndarray)
        Of both point spread functions in the middle of the field.
    shift : (float, float)
        By how much (x, y) the template is moved, pixels.
    """

    difference: VaryingFilter
    score: VaryingFilter
    score_of_template: VaryingFilter
    error_of_template: VaryingFilter
    difference_squared: tuple[VaryingFilter, VaryingFilter]
    score_squared: VaryingFilter
    response: VaryingFilter
    score_of_background: float
    background_variances: tuple[float, float, float, float]
    stamps: tuple[Array, Array]
    shift: tuple[float, float]

    @classmethod
    def on_grid(
        cls, shape: tuple[int, int], psfs: tuple[Psf, Psf], sigmas: tuple[float, float], shift: tuple[float, float]
    ) -> ProperFilters:
        """Compute the filters at the nodes of a grid over an image.

        Parameters
        ----------
        shape : (int, int)
            Shape (ny, nx) of the image.
        psfs : (Psf, Psf)
            Of science image and template.
        sigmas : (float, float)
            Noise of both images in the flux unit of the science image.
        shift : (float, float)
            By how much (x, y) the template is to be moved.
        """
        grid = Grid(shape)
        stamps = [grid.sample(psf.stamp) for psf in psfs]
        middle = [psf.stamp((shape[1] - 1) / 2, (shape[0] - 1) / 2) for psf in psfs]
        # the filters reach as far as the point spread functions and, by their differences in width, somewhat beyond
        half = max(psf.half for psf in psfs) + int(np.ceil(max(stamp_fwhm(stamp) for stamp in middle)))
        side = fft.next_fast_len(2 * half + 2 * max(psf.half for psf in psfs) + 1, real=True)
        box = (side, side)
        pair = ProperPair(transfer(stamps[0], box), transfer(stamps[1], box), *sigmas, 1.0, box)
        move = moved(shift, box)
        flux = pair.score_flux[..., None, None]
        d_n, d_r = (fft.irfft2(f, box) for f in (pair.difference_filters[0], -pair.difference_filters[1] * move))
        k_n, k_r = (fft.irfft2(f / flux, box) for f in (pair.score_filters[0], -pair.score_filters[1] * move))
        p_n = fft.irfft2(pair.n, box)
        # a Gaussian as wide at half maximum as the boxes of `match_stars`
        width = BOX_IN_FWHM * max(stamp_fwhm(stamp) for stamp in middle) / 2.355
        beyond = 1 - np.exp(-2 * (np.pi * width) ** 2 * (fft.fftfreq(side)[:, None] ** 2 + fft.rfftfreq(side) ** 2))
        of_star = pair.score_filters[1] * pair.r
        share = total((of_star * beyond).real, box) / total(of_star.real, box)
        k_e = fft.irfft2(-pair.score_filters[1] * move * beyond / (flux * share[..., None, None]), box)

        def kernel(*planes: Array) -> Array:
            """Return kernels of a convolution as stamps of a correlation, shape (n_y, n_x, planes, n, n)."""
            return np.stack([centred(plane, half)[..., ::-1, ::-1] for plane in planes], axis=2)

        response = kernel(k_n)[:, :, 0] * centred(p_n, half)
        return cls(
            difference=VaryingFilter(kernel(d_n, d_r), grid, TIGHT),
            score=VaryingFilter(kernel(k_n, k_r), grid, TIGHT),
            score_of_template=VaryingFilter(kernel(-k_r), grid, ROUGH),
            error_of_template=VaryingFilter(kernel(-k_e), grid, ROUGH),
            difference_squared=(
                VaryingFilter(kernel(d_n) ** 2, grid, LOOSE),
                VaryingFilter(kernel(d_r) ** 2, grid, LOOSE),
            ),
            score_squared=VaryingFilter(kernel(k_n, k_r) ** 2, grid, LOOSE),
            response=VaryingFilter(response / response.sum(axis=(-2, -1), keepdims=True), grid, ROUGH),
            score_of_background=float((pair.score_filters[0][..., 0, 0].real / pair.score_flux).mean()),
            background_variances=_background_variances(pair),
            stamps=(middle[0], middle[1]),
            shift=shift,
        )

    def fill(self, planes: tuple[Planes, Planes]) -> tuple[npt.NDArray, npt.NDArray]:
        """Return both images with their unusable pixels filled, see `fill`."""
        if all(plane.usable.all() for plane in planes):
            return planes[0].data, planes[1].data
        ny, nx = planes[0].usable.shape
        reach = max(len(stamp) for stamp in self.stamps)
        grid = (fft.next_fast_len(ny + reach, real=True), fft.next_fast_len(nx + reach, real=True))
        transfers = [transfer(stamp, grid, np.complex64) for stamp in self.stamps]
        if any(self.shift):  # the template is filled where it lies: before it is moved
            transfers[1] = transfers[1] * moved((-self.shift[0], -self.shift[1]), grid).astype(np.complex64)
        return fill_from_each_other(
            (planes[0].data, planes[1].data), (planes[0].usable, planes[1].usable), (transfers[0], transfers[1]),
            stamp_fwhm(self.stamps[0]) / 2.355, grid,
        )  # fmt: skip


def _background_variances(pair: ProperPair) -> tuple[float, float, float, float]:
    """Return the variances of S / F_S and of its derivatives along x and y, and their covariance: means over the field.

    The derivatives are those of `gradient`, which multiplies the transform with i (8 sin k - sin 2k) / 6.
    """
    ny, nx = pair.shape
    k_n, k_r = pair.score_filters
    power = pair.sigma_n**2 * np.abs(k_n) ** 2 + pair.sigma_r**2 * np.abs(k_r) ** 2
    y, x = (
        (8 * np.sin(k) - np.sin(2 * k)) / 6
        for k in (2 * np.pi * fft.fftfreq(ny)[:, None], 2 * np.pi * fft.rfftfreq(nx)[None, :])
    )
    plain, of_x, of_y, of_both = (
        float((total(power * moment, pair.shape) / pair.score_flux**2).mean()) for moment in (1.0, x**2, y**2, x * y)
    )
    return plain, of_x, of_y, of_both
