"""The filters of a proper difference as compact kernels that follow the point spread functions over the field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft

from skyloom._threads import map_bands, serial_blas
from skyloom.fill import fill_from_each_other
from skyloom.filters import MAX_GRID, Grid, VaryingFilter
from skyloom.proper import total, transfer
from skyloom.psf import Psf, PsfModel
from skyloom.psf.model import stamp_fwhm, stamps_of
from skyloom.subtraction.zogy.match import BOX_IN_FWHM, Planes
from skyloom.subtraction.zogy.proper import Array, ProperPair, centred, moved

TIGHT = 5e-4
"""Error of the filters that see images: a tenth of that of measured point spread functions, or less."""
LOOSE = 5e-3
"""Error of the filters that see variances, or what is missing of sources."""
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
    difference_squared : (VaryingFilter, VaryingFilter) or None
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
    difference_squared: tuple[VaryingFilter, VaryingFilter] | None
    score_squared: VaryingFilter
    response: VaryingFilter
    score_of_background: float
    background_variances: tuple[float, float, float, float]
    stamps: tuple[Array, Array]
    shift: tuple[float, float]

    @classmethod
    def on_grid(
        cls,
        shape: tuple[int, int],
        psfs: tuple[Psf, Psf],
        sigmas: tuple[float, float],
        shift: tuple[float, float],
        *,
        variances: bool = True,
        threads: int | None = None,
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
        variances : bool
            Whether `difference_squared` is wanted.
        threads : int, optional
            Number of threads; the result does not depend on it.
        """
        grid = Grid(shape, max(_nodes(psf) for psf in psfs))
        y, x = (nodes.ravel() for nodes in np.meshgrid(grid.y, grid.x, indexing="ij"))
        stamps = [stamps_of(psf, x, y) for psf in psfs]
        if all((one == one[0]).all() for one in stamps):
            stamps = [one[:1] for one in stamps]  # the same filters everywhere
        middle = [psf.stamp((shape[1] - 1) / 2, (shape[0] - 1) / 2) for psf in psfs]
        fwhm = max(stamp_fwhm(stamp) for stamp in middle)
        rows = np.array_split(np.arange(len(stamps[0])), -(-len(stamps[0]) // grid.x.size))

        def of_row(row: npt.NDArray[np.intp]) -> _Kernels:
            return _Kernels.of((stamps[0][row], stamps[1][row]), sigmas, shift, fwhm)

        with serial_blas():
            kernels = _Kernels.joined(map_bands(of_row, rows, threads), grid)
        d, k = kernels.difference, kernels.score
        score_of_background, plain, of_x, of_y, of_both = (float(number) for number in kernels.numbers)
        return cls(
            difference=VaryingFilter(d, grid, TIGHT),
            score=VaryingFilter(k, grid, TIGHT),
            score_of_template=VaryingFilter(-k[:, :, 1:], grid, ROUGH),
            error_of_template=VaryingFilter(kernels.error, grid, ROUGH),
            difference_squared=(
                VaryingFilter(d[:, :, :1] ** 2, grid, LOOSE),
                VaryingFilter(d[:, :, 1:] ** 2, grid, LOOSE),
            )
            if variances
            else None,
            score_squared=VaryingFilter(k**2, grid, LOOSE),
            response=VaryingFilter(kernels.response, grid, LOOSE),
            score_of_background=score_of_background,
            background_variances=(plain, of_x, of_y, of_both),
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


@dataclass(frozen=True, eq=False)
class _Kernels:
    """The filters at some places as stamps of a correlation, shape (places, planes, n, n), and means over the places.

    `numbers` are `score_of_background` and `background_variances`.
    """

    difference: Array
    score: Array
    error: Array
    response: Array
    numbers: Array

    @classmethod
    def of(
        cls, stamps: tuple[Array, Array], sigmas: tuple[float, float], shift: tuple[float, float], fwhm: float
    ) -> _Kernels:
        """Compute filters for the point spread functions of some places, each of shape (places, n, n).

        In single precision, whose rounding is far below `TIGHT`; the unit of the noise cancels.
        """
        reach = max(stamp.shape[-1] // 2 for stamp in stamps)
        # the filters reach as far as the point spread functions and, by their differences in width, somewhat beyond
        half = reach + int(np.ceil(fwhm))
        side = fft.next_fast_len(2 * half + 2 * reach + 1, real=True)
        box = (side, side)
        unit = float(np.hypot(*sigmas))
        p_n, p_r = (transfer(stamp, box, np.complex64) for stamp in stamps)
        pair = ProperPair(p_n, p_r, sigmas[0] / unit, sigmas[1] / unit, 1.0, box)
        move = moved(shift, box).astype(np.complex64)
        flux = pair.score_flux[:, None, None].astype(np.float32)
        d_n, d_r = pair.difference_filters
        k_n, k_r = (part / flux for part in pair.score_filters)
        # a Gaussian as wide at half maximum as the boxes of `match_stars`
        y2, x2 = fft.fftfreq(side)[:, None] ** 2, fft.rfftfreq(side) ** 2
        beyond = (1 - np.exp(-2 * (np.pi * BOX_IN_FWHM * fwhm / 2.355) ** 2 * (y2 + x2))).astype(np.float32)
        of_star = (k_r * p_r).real
        share = (total(of_star * beyond, box) / total(of_star, box))[:, None, None].astype(np.float32)

        def kernel(*spectra: Array) -> Array:
            planes = (centred(fft.irfft2(spectrum, box), half)[..., ::-1, ::-1] for spectrum in spectra)
            return np.stack(list(planes), axis=1).astype(np.float64)

        score = kernel(k_n, -k_r * move)
        response = score[:, :1] * centred(fft.irfft2(p_n, box), half)[:, None]
        numbers = k_n[:, 0, 0].real, *(unit**2 * one for one in _background_variances(pair, (k_n, k_r)))
        return cls(
            difference=kernel(d_n, -d_r * move),
            score=score,
            error=kernel(k_r * move * beyond / share),
            response=response / response.sum(axis=(-2, -1), keepdims=True),
            numbers=np.mean(np.asarray(numbers, np.float64), axis=1),
        )

    @classmethod
    def joined(cls, rows: list[_Kernels], grid: Grid) -> _Kernels:
        """Join the rows of a grid, or take those of one place everywhere: shape (n_y, n_x, planes, n, n)."""

        def joined(name: str) -> Array:
            one = np.concatenate([getattr(row, name) for row in rows])
            everywhere = np.broadcast_to(one, (grid.y.size * grid.x.size, *one.shape[1:]))
            return everywhere.reshape(grid.y.size, grid.x.size, *one.shape[1:])

        difference, score, error, response = (joined(name) for name in ("difference", "score", "error", "response"))
        return cls(difference, score, error, response, np.mean([row.numbers for row in rows], axis=0))


def _nodes(psf: Psf) -> int:
    """Return how many nodes along an axis filters for this point spread function need, at most.

    With five of them, filters for PSFs that vary by 7 % as polynomials of second degree are interpolated to 1e-5.
    """
    return min(max(2 * psf.order + 1, 4), MAX_GRID) if isinstance(psf, PsfModel) else MAX_GRID


def _background_variances(pair: ProperPair, filters: tuple[Array, Array]) -> list[npt.NDArray[np.float64]]:
    """Return the variances of S / F_S and of its derivatives along x and y, and their covariance, for each place.

    The derivatives are those of `gradient`, which multiplies the transform with i (8 sin k - sin 2k) / 6.
    """
    ny, nx = pair.shape
    power = sum(
        sigma**2 * (k.real**2 + k.imag**2) for sigma, k in zip((pair.sigma_n, pair.sigma_r), filters, strict=True)
    )
    y, x = (
        (8 * np.sin(k) - np.sin(2 * k)) / 6
        for k in (2 * np.pi * fft.fftfreq(ny)[:, None], 2 * np.pi * fft.rfftfreq(nx)[None, :])
    )
    moments = (np.ones((ny, 1)), x**2, y**2, x * y)
    return [total(power * moment.astype(np.float32), pair.shape) for moment in moments]
