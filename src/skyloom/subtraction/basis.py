"""The basis of the matching kernel: Gaussians times polynomials (Alard & Lupton 1998, ApJ 503, 325, eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from numpy.polynomial.hermite import hermvander

from skyloom import _kernels
from skyloom.exposure import FloatArray

Float64Array = npt.NDArray[np.float64]

_SAME = 1e-12  # combinations of functions whose square is so small are left out: others reproduce them


@dataclass(frozen=True, eq=False)
class KernelBasis:
    """Basis functions B_0 .. B_n of the kernel.

    The functions span u^p v^q exp(-(u^2 + v^2) / (2 sigma_g^2)), p + q <= d_g. B_0, the first Gaussian, has the sum 1
    and all others have the sum 0 (Alard 2000, section 2), so that the coefficient of B_0 is the kernel's sum. The
    zero-sum functions are orthonormalised: the span is the same, and the normal equations are better conditioned.

    Parameters
    ----------
    filters : ndarray, shape (n_raw, 2, 2 half + 1)
        Factors of the separable functions R_m(u, v) = filters[m, 0, v] filters[m, 1, u].
    mix : ndarray, shape (n, n_raw)
        B_n = sum_m mix[n, m] R_m.
    n_constant : int
        The coefficients of so many functions, the last ones, are to be the same all over the field.
    """

    filters: Float64Array
    mix: Float64Array
    n_constant: int = 0
    _cache: dict[np.dtype[Any], tuple[FloatArray, FloatArray, npt.NDArray[np.int64], FloatArray]] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def half(self) -> int:
        """Pixels from the centre to the edge."""
        return self.filters.shape[2] // 2

    def __len__(self) -> int:
        return len(self.mix)

    @cached_property
    def images(self) -> Float64Array:
        """The functions as images, shape (n, 2 half + 1, 2 half + 1)."""
        raw = self.filters[:, 0, :, None] * self.filters[:, 1, None, :]
        return np.tensordot(self.mix, raw, axes=1)

    def convolve(self, stamp: FloatArray, out: FloatArray | None = None) -> FloatArray:
        """Convolve one stamp with all functions.

        Parameters
        ----------
        stamp : ndarray, shape (ny + 2 half, nx + 2 half)
            float32 or float64: that is the precision of the sums.
        out : ndarray, shape (n, ny, nx), optional
            For the result: contiguous, of the precision of the stamp.

        Returns
        -------
        ndarray, shape (n, ny, nx)
            Only the part that no border touches.
        """
        dtype = stamp.dtype.newbyteorder("=")
        if out is None:
            out = np.empty((len(self), *(side - 2 * self.half for side in stamp.shape)), dtype)
        along_x, along_y, first, mix = self._bank(dtype)
        raw: Any = np.empty((len(along_y), *out.shape[1:]), dtype)
        _kernels.filter_stamp(np.ascontiguousarray(stamp, dtype), along_x, along_y, first, raw)  # type: ignore[arg-type]
        np.matmul(mix, raw.reshape(len(raw), -1), out=out.reshape(len(mix), -1))
        return out

    def _bank(self, dtype: np.dtype[Any]) -> tuple[FloatArray, FloatArray, npt.NDArray[np.int64], FloatArray]:
        """Return the different filters along x and all along y, in the order of correlations, and `mix`.

        Filters along y are sorted by those along x that they go with: those of the k-th are `first[k]` to
        `first[k + 1]`. So are the columns of `mix`.
        """
        if dtype not in self._cache:
            # wings far below all rounding cost time and change nothing
            least = np.finfo(dtype).eps ** 2 * np.abs(self.filters).max(axis=2, keepdims=True)
            factors = np.where(np.abs(self.filters) > least, self.filters, 0.0)[..., ::-1]
            along_x, index = np.unique(factors[:, 1], axis=0, return_inverse=True)
            order = np.argsort(index.reshape(-1), kind="stable")
            first = np.searchsorted(index.reshape(-1)[order], np.arange(len(along_x) + 1))
            self._cache[dtype] = (
                along_x.astype(dtype),
                factors[order, 0].astype(dtype),
                first.astype(np.int64),
                np.ascontiguousarray(self.mix[:, order], dtype),
            )
        return self._cache[dtype]


@dataclass(frozen=True)
class DeltaBasis:
    """Basis functions that are 1 in one pixel of the kernel and 0 in the others, row by row.

    Parameters
    ----------
    half : int
        Pixels from the centre to the edge.
    """

    half: int

    def __len__(self) -> int:
        return (2 * self.half + 1) ** 2


@dataclass(frozen=True)
class ZeroSumDeltaBasis:
    """All pixels of a round kernel, free: B_0 is 1 in the middle pixel, B_n is 1 in another one and -1 in the middle.

    So all functions but the first have the sum 0, and the coefficient of B_0 is the kernel's sum (Miller, Pennypacker &
    White 2008, PASP 120, 449, section 3).

    Parameters
    ----------
    half : int
        Pixels from the centre to the edge.
    """

    half: int
    n_constant: ClassVar[int] = 0

    @cached_property
    def pixels(self) -> list[tuple[int, int]]:
        """The pixels (v, u), counted from the middle one, which comes first."""
        axis = range(-self.half, self.half + 1)
        disc = [(v, u) for v in axis for u in axis if u * u + v * v <= (self.half + 0.5) ** 2]
        return sorted(disc, key=lambda pixel: pixel != (0, 0))

    def __len__(self) -> int:
        return len(self.pixels)

    @cached_property
    def images(self) -> Float64Array:
        """The functions as images, shape (n, 2 half + 1, 2 half + 1)."""
        images = np.zeros((len(self), 2 * self.half + 1, 2 * self.half + 1))
        images[1:, self.half, self.half] = -1
        for image, (v, u) in zip(images, self.pixels, strict=True):
            image[self.half + v, self.half + u] = 1
        return images

    def convolve(self, stamp: FloatArray) -> FloatArray:
        """Convolve one stamp with all functions, see `KernelBasis.convolve`."""
        ny, nx = (side - 2 * self.half for side in stamp.shape)
        moved: FloatArray = np.empty((len(self), ny, nx), stamp.dtype.newbyteorder("="))
        for plane, (v, u) in zip(moved, self.pixels, strict=True):
            plane[:] = stamp[self.half - v : self.half - v + ny, self.half - u : self.half - u + nx]
        moved[1:] -= moved[0]
        return moved

    def roughness(self, derivative: int) -> Float64Array:
        """Return R with a^T R a = sum of the squared differences of a kernel a along both axes.

        First differences are its gradient, second ones its curvature (Becker et al. 2012, MNRAS 425, 1341, section
        3.2; Bramich et al. 2016, MNRAS 457, 542). Those that would reach beyond the kernel are left out.

        Parameters
        ----------
        derivative : {1, 2}
        """
        inside = np.zeros((2 * self.half + 1,) * 2, bool)
        for v, u in self.pixels:
            inside[self.half + v, self.half + u] = True
        total = np.zeros((len(self), len(self)))
        for axis in (0, 1):
            known = np.lib.stride_tricks.sliding_window_view(inside, derivative + 1, axis=axis).all(axis=-1)
            steps = np.diff(self.images, derivative, axis=axis + 1)[:, known]
            total += steps @ steps.T
        return total


def gaussian_basis(
    sigmas: tuple[float, ...], orders: tuple[int, ...], half: int, *, constant_wings: bool = False
) -> KernelBasis:
    """Build the basis from the widths of the Gaussians (pixels) and the degrees of their polynomials.

    The filters are Hermite functions, H_p(u / sigma) G(u): of the same span as u^p G(u) but orthogonal, so that few
    digits cancel when they are combined. With `constant_wings`, a last Gaussian of degree 0 after others of higher ones
    is one function, the last, and counts as `n_constant`: the wings, many faint pixels that tell little, are those of
    all stars together.
    """
    apart = constant_wings and orders[-1] == 0 and max(orders) > 0
    axis = np.arange(-half, half + 1.0)
    filters = []
    for sigma, order in zip(sigmas, orders, strict=True):
        gauss = np.exp(-0.5 * (axis / sigma) ** 2)
        gauss /= gauss.sum()
        hermite = hermvander(axis / sigma, order).T * gauss
        filters += [(hermite[q], hermite[p]) for p in range(order + 1) for q in range(order + 1 - p)]
    raw_filters = np.array(filters)
    raw = raw_filters[:, 0, :, None] * raw_filters[:, 1, None, :]
    sums = raw.sum(axis=(1, 2))
    # R_m - sum(R_m) R_0 has the sum 0; scaled to norm 1 before functions are compared
    zero_sum = np.eye(len(raw))[1:]
    zero_sum[:, 0] -= sums[1:]
    zero_sum /= np.linalg.norm(zero_sum @ raw.reshape(len(raw), -1), axis=1)[:, None]
    images = zero_sum @ raw.reshape(len(raw), -1)
    n = len(images) - apart
    square, vectors = np.linalg.eigh(images[:n] @ images[:n].T)
    kept = square > _SAME * square.max(initial=0.0)
    rotation = (vectors[:, kept] / np.sqrt(square[kept])).T
    mix = np.vstack([np.eye(1, len(raw)), rotation @ zero_sum[:n]])
    if apart:
        # what the others cannot do
        left = zero_sum[-1] - (images[-1] @ (rotation @ images[:n]).T) @ mix[1:]
        mix = np.vstack([mix, left / np.linalg.norm(left @ raw.reshape(len(raw), -1))])
    return KernelBasis(raw_filters, mix, int(apart))


def default_sigmas(fwhm_wide: float, fwhm_narrow: float, count: int) -> tuple[float, ...]:
    """Return widths of the Gaussians for two seeings: 1/2, 1, 2, 4, ... times the width that takes one to the other.

    For Gaussian stars this width is sqrt(FWHM_1^2 - FWHM_2^2) / 2.355 (Israel, Hessman & Schuh 2007, AN 328, 16). It is
    kept above 1 pixel, so that the basis stays able to sharpen a little and to shift a fraction of a pixel. Stars have
    wider wings than Gaussians: the widest are for what these have in the one image and not in the other.
    """
    sigma = max(1.0, np.sqrt(abs(fwhm_wide**2 - fwhm_narrow**2)) / np.sqrt(8 * np.log(2)))
    return tuple(float(sigma * 2.0**k) for k in range(-1, count - 1))


def default_half_width(sigmas: tuple[float, ...] | None, fwhm: float) -> int:
    """Return half the kernel's width: room for the wings of the wider stars, and for the widest Gaussian asked for."""
    return int(np.ceil(max(5.0, 3.0 * fwhm, 2.5 * max(sigmas or (0.0,)))))
