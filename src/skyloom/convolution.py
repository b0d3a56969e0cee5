"""Convolution that knows masks and variances, with one kernel or with one that varies over the field.

A spatially varying kernel is a polynomial of position (Alard 2000, eq. 4),

    K(u, v; x, y) = sum_{i + j <= n} X^i Y^j P_ij(u, v),    X = (x - x_c) / s_x,  Y = (y - y_c) / s_y,

and is evaluated exactly at each pixel: there are no blocks and no steps. (K^2, for the variance, is taken to first
order in x about the middle of every 32 columns.) The sums run in float32, row of the kernel by row of the kernel,
which rounds to about 1e-6 of the brightest pixel under the kernel: subtract a large pedestal first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom import _kernels
from skyloom._threads import map_bands, row_bands
from skyloom.errors import InputError, ShapeError
from skyloom.exposure import BoolArray, FloatArray

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

MAX_ORDER = 4
"""Highest order of the polynomial of a varying kernel."""

_ORDERS = {(n + 1) * (n + 2) // 2: n for n in range(MAX_ORDER + 1)}
"""The order of a polynomial with so many terms."""
_CHUNK = 16  # the kernels work on as many columns at once
_BLOCK = 2 * _CHUNK  # columns for which a kernel is expanded about their middle
_DIRECT_TAPS = 1000  # kernels with more taps than this are quicker by FFT
_COARSE = 5e-4  # error of a kernel that is not `exact`, as a share of its norm
_COARSE_SQUARE = 0.02  # error of sum K^2, as a share of it
_DARK = 0.002  # share of sum K^2 that may be left out


@dataclass(frozen=True, eq=False)
class PolynomialKernel:
    """A kernel that is a polynomial of position.

    Parameters
    ----------
    planes : ndarray of float64, shape ((n + 1)(n + 2) / 2, ky, kx)
        P_ij in the order of `exponents(n)`; odd sides.
    centre : (float, float)
        x_c and y_c, pixels.
    scale : (float, float)
        s_x and s_y, pixels.
    """

    planes: Float64Array
    centre: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        shape = self.planes.shape
        if len(shape) != 3 or shape[0] not in _ORDERS or shape[1] % 2 == 0 or shape[2] % 2 == 0:
            raise ShapeError(
                f"The planes of a varying kernel have the shape {shape}; (terms, odd, odd) is needed, with "
                f"1, 3, 6, 10 or 15 terms for the orders 0 to {MAX_ORDER}.",
                shape=shape,
            )

    @property
    def order(self) -> int:
        """Order n of the polynomial."""
        return _ORDERS[len(self.planes)]

    def moved(self, x: int, y: int) -> PolynomialKernel:
        """Return the kernel of a part of the image: pixel (x, y) is the part's first."""
        other = replace(self, centre=(self.centre[0] - x, self.centre[1] - y))
        vars(other)["shortcuts"] = self.shortcuts  # they are the same everywhere, and take time to find
        return other

    @cached_property
    def shortcuts(self) -> tuple[bool, bool, int]:
        """Whether K may be linear, and K^2 constant, within a block of columns, and the rows of K^2 to be left out."""
        return (*_coarser(self), _dark_margin(self))

    def terms_at(self, x: Any, y: Any) -> Float64Array:
        """Return the monomials X^i Y^j at (x, y), numbers or arrays, in the order of the planes."""
        return monomials(x, y, self.order, self.centre, self.scale)

    def image_at(self, x: float, y: float) -> Float64Array:
        """Return the kernel at pixel (x, y), shape (ky, kx), centred on its middle pixel."""
        return np.tensordot(self.terms_at(x, y), self.planes, axes=1)

    def sum_at(self, x: Any, y: Any) -> Any:
        """Return the kernel's sum at (x, y), numbers or arrays that broadcast."""
        return polynomial(self.planes.sum(axis=(1, 2)), x, y, self.centre, self.scale)


@dataclass(frozen=True, eq=False)
class Convolved:
    """The planes of a convolved image, all of shape (ny, nx) and float32.

    Parameters
    ----------
    data : ndarray
        sum K d over usable pixels, divided by `kept`; 0 where nothing usable is in reach.
    variance : ndarray or None
        sum K^2 var over usable pixels, divided by `kept` squared.
    lost : ndarray
        Share of sum |K| that fell on unusable pixels or outside of the image, 0 to 1.
    """

    data: Float32Array
    variance: Float32Array | None
    lost: Float32Array


def exponents(order: int) -> list[tuple[int, int]]:
    """Return the powers (i, j) of X and Y of the monomials up to a total degree, j running first."""
    return [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]


def monomials(x: Any, y: Any, order: int, centre: tuple[float, float], scale: tuple[float, float]) -> Float64Array:
    """Return X^i Y^j for all `exponents(order)`, shape (terms,) + shape of x and y broadcast together."""
    X = (np.asarray(x, np.float64) - centre[0]) / scale[0]
    Y = (np.asarray(y, np.float64) - centre[1]) / scale[1]
    return np.stack([X**i * Y**j for i, j in exponents(order)])


def polynomial(
    coefficients: Float64Array, x: Any, y: Any, centre: tuple[float, float], scale: tuple[float, float]
) -> Any:
    """Return sum_ij c_ij X^i Y^j, the coefficients in the order of `exponents`; x and y are numbers or broadcast."""
    order = _ORDERS[len(coefficients)]
    X = (np.asarray(x, np.float64) - centre[0]) / scale[0]
    Y = (np.asarray(y, np.float64) - centre[1]) / scale[1]
    c = dict(zip(exponents(order), coefficients, strict=True))
    # Horner's rule in X of Horner's rule in Y: with a row of x and a column of y, one pass over the plane a power of X
    value: Any = 0.0
    for i in range(order, -1, -1):
        in_y: Any = 0.0
        for j in range(order - i, -1, -1):
            in_y = in_y * Y + c[i, j]
        value = value * X + in_y
    return value + np.zeros(np.broadcast_shapes(X.shape, Y.shape))


Part = tuple[tuple[int, int], tuple[int, int]]
"""Rows and columns, half-open: ((y0, y1), (x0, x1))."""


def convolve_varying(
    data: FloatArray,
    kernel: PolynomialKernel,
    variance: FloatArray | None = None,
    usable: BoolArray | None = None,
    *,
    part: Part | None = None,
    exact: bool = True,
    threads: int | None = None,
) -> Convolved:
    """Convolve an image and its variance with a kernel that varies over the field, in one pass.

    With weights u = 1 on usable pixels and 0 elsewhere (also outside of the image):

        data(x) = sum_u K u d / kept,  variance(x) = sum_u K^2 u var / kept^2,  kept = sum K u / sum K,
        lost = 1 - sum |K| u / sum |K|

    so that a level survives a hole, and `lost` says how far to trust it. Where less than a tenth of the kernel's sum is
    kept, data and variance are 0 and `lost` is 1.

    Parameters
    ----------
    data : ndarray, shape (ny, nx)
        The image; what it holds where unusable does not matter.
    kernel : PolynomialKernel
        Its sum must not be 0.
    variance : ndarray, shape (ny, nx), optional
        Variance of independent pixels.
    usable : ndarray of bool, shape (ny, nx), optional
        True where data may be used; everywhere if not given.
    part : ((y0, y1), (x0, x1)), optional
        The result is wanted for these rows and columns only; for all of the image if not given.
    exact : bool
        If False, the kernel may be off by up to 0.05 % of its norm at the ends of each 32 columns, and the variance by
        up to 2 %, where that saves time: K^2 is then cut off where next to nothing of its sum lies.
    threads : int, optional
        As in `skyloom._threads.map_bands`.

    Returns
    -------
    Convolved
        Its planes have the shape of the part.

    Raises
    ------
    ShapeError
        The planes differ in shape.
    """
    for what, plane in (("variance", variance), ("usable", usable)):
        if plane is not None and plane.shape != data.shape:
            raise ShapeError(
                f"The {what} has the shape {plane.shape}, but the data have {data.shape}; they must be the same.",
                found=plane.shape,
                needed=data.shape,
            )
    if _untouched(data.shape, kernel, usable, part):
        out, out_variance, _, _ = _run(data, kernel, variance, None, part=part, exact=exact, threads=threads)
        if out_variance is not None:
            np.maximum(out_variance, 0, out=out_variance)
        return Convolved(out, out_variance, np.zeros(out.shape, np.float32))
    if usable is None:
        usable = np.ones(data.shape, bool)
    out, out_variance, lost, kept = _run(data, kernel, variance, usable, part=part, exact=exact, threads=threads)
    assert lost is not None
    assert kept is not None
    hopeless = kept < 0.1
    lost[hopeless] = 1.0
    factor = np.where(hopeless, np.float32(0), 1 / np.where(hopeless, np.float32(1), kept))
    out *= factor
    if out_variance is not None:
        out_variance *= factor * factor
        # the first-order expansion of K^2 may dip below 0 where a kernel varies wildly
        np.maximum(out_variance, 0, out=out_variance)
    return Convolved(out, out_variance, lost)


def _untouched(shape: tuple[int, ...], kernel: PolynomialKernel, usable: BoolArray | None, part: Part | None) -> bool:
    """Whether the kernel reaches usable pixels only, from everywhere in the part."""
    (y0, y1), (x0, x1) = part or ((0, shape[0]), (0, shape[1]))
    y, x = (side // 2 for side in kernel.planes.shape[1:])
    inside = y0 >= y and x0 >= x and y1 + y <= shape[0] and x1 + x <= shape[1]
    return inside and (usable is None or bool(usable[y0 - y : y1 + y, x0 - x : x1 + x].all()))


def _coarser(kernel: PolynomialKernel) -> tuple[bool, bool]:
    """Whether K may be taken as linear, and K^2 as constant, within each block of columns, for X and Y from -1 to 1.

    Of X^k the line nearest to it on |t| <= T leaves T^k / 2 at most (T^3 / 4 for k = 3).
    """
    half, powers = _BLOCK / 2 / kernel.scale[0], exponents(kernel.order)
    flat = kernel.planes.reshape(len(powers), -1)
    gram = flat @ flat.T
    worst = worst_square = 0.0
    for X in (-1.0, 0.0, 1.0):
        for Y in (-1.0, 0.0, 1.0):
            # of the coefficients of t^n in K(X + t): combinations of the planes
            k = np.array(
                [[comb(i, n) * X ** max(i - n, 0) * Y**j for i, j in powers] for n in range(max(2, kernel.order + 1))]
            )
            products = k @ gram @ k.T
            norms = np.sqrt(np.maximum(products.diagonal(), 0))
            curved = sum(norms[n] * half**n / 2 for n in range(2, len(norms)))
            worst = max(worst, curved / norms[0])
            worst_square = max(worst_square, 2 * abs(products[0, 1]) * half / norms[0] ** 2)
    return bool(worst <= _COARSE), bool(worst_square <= _COARSE_SQUARE)


def _dark_margin(kernel: PolynomialKernel) -> int:
    """Return along how many rows and columns of each side K^2 holds next to nothing, for X and Y from -1 to 1."""
    at = np.array([[X**i * Y**j for i, j in exponents(kernel.order)] for X in (-1, 0, 1) for Y in (-1, 0, 1)])
    ky, kx = kernel.planes.shape[1:]
    squares = (at @ kernel.planes.reshape(len(kernel.planes), -1)) ** 2
    v, u = np.arange(ky)[:, None], np.arange(kx)[None, :]
    ring = np.minimum(np.minimum(v, ky - 1 - v), np.minimum(u, kx - 1 - u)).ravel()
    outside = np.cumsum([np.bincount(ring, weights=square) for square in squares], axis=1)
    dark = (outside <= _DARK * outside[:, -1:]).all(axis=0)
    return int(np.argmin(dark))


def convolve(image: FloatArray, kernel: npt.ArrayLike, usable: BoolArray | None = None) -> FloatArray:
    """Convolve an image with one kernel; pixels that are unusable or outside of the image count as 0.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
        The image.
    kernel : array_like, shape (ky, kx)
        Odd sides; the middle pixel is the origin.
    usable : ndarray of bool, shape (ny, nx), optional
        False where the image counts as 0, whatever its value.

    Returns
    -------
    ndarray, shape (ny, nx)
        sum over (u, v) of K(u, v) image(x - u, y - v), float32 (float64 if the image is).

    Raises
    ------
    ShapeError
        The kernel is not two-dimensional with odd sides, or `usable` has another shape than the image.
    InputError
        The kernel is not finite.
    """
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim != 2 or kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ShapeError(f"The kernel has the shape {kernel.shape}; two odd sides are needed.", shape=kernel.shape)
    if not np.isfinite(kernel).all():
        raise InputError("The kernel holds NaN or infinite values; it must be finite.")
    if usable is not None and usable.shape != image.shape:
        raise ShapeError(
            f"usable has the shape {usable.shape}, but the image has {image.shape}; they must be the same.",
            found=usable.shape,
            needed=image.shape,
        )
    if image.dtype == np.float64 or kernel.size > _DIRECT_TAPS:
        masked = image if usable is None else np.where(usable, image, image.dtype.type(0))
        from scipy.signal import oaconvolve  # slow to import, seldom needed

        return oaconvolve(masked, kernel.astype(image.dtype, copy=False), mode="same")
    masked = image if usable is None else np.where(usable, image, np.float32(0))
    return _run(masked, PolynomialKernel(kernel[None]), None, None)[0]


def convolve_stamps(stamps: Float32Array, kernels: Float64Array, threads: int | None = None) -> Float32Array:
    """Convolve each stamp with its own kernel.

    Parameters
    ----------
    stamps : ndarray of float32, shape (n, sy, sx)
    kernels : ndarray, shape (n, ky, kx)
        Odd sides.
    threads : int, optional
        As in `skyloom._threads.map_bands`.

    Returns
    -------
    ndarray of float32, shape (n, sy - ky + 1, sx - kx + 1)
        Only the parts that no border touches.
    """
    n, sy, sx = stamps.shape
    ky, kx = kernels.shape[1:]
    ny, nx = sy - ky + 1, sx - kx + 1
    width = -(-nx // _CHUNK) * _CHUNK
    padded = np.zeros((n, sy, width + kx - 1), np.float32)
    padded[:, :, :sx] = stamps
    flipped = np.ascontiguousarray(kernels[:, None, ::-1, ::-1], np.float64)
    out = np.empty((n, ny, width), np.float32)

    def one(k: int) -> None:
        _kernels.convolve_varying(
            padded[k], None, None, flipped[k], 0, (0.0, 0.0), (1.0, 1.0), out[k], None, None, None, nx, (0, ny)
        )

    map_bands(one, range(n), threads)
    return out[:, :, :nx]


def _run(
    data: FloatArray,
    kernel: PolynomialKernel,
    variance: FloatArray | None,
    usable: BoolArray | None,
    *,
    part: Part | None = None,
    exact: bool = True,
    threads: int | None = None,
) -> tuple[Float32Array, Float32Array | None, Float32Array | None, Float32Array | None]:
    """Pad the planes, run the compiled loops band by band, and cut the results to size."""
    (y0, y1), (x0, x1) = part or ((0, data.shape[0]), (0, data.shape[1]))
    ny, nx = y1 - y0, x1 - x0
    ky, kx = kernel.planes.shape[1:]
    width = -(-nx // _CHUNK) * _CHUNK
    # the pixels that the kernel reaches from the part, as far as there are any
    top, left = max(0, y0 - ky // 2), max(0, x0 - kx // 2)
    reach = slice(top, y1 + ky // 2), slice(left, x1 + kx // 2)
    first = top - (y0 - ky // 2), left - (x0 - kx // 2)

    def padded(plane: npt.NDArray[Any]) -> Float32Array:
        full = np.zeros((ny + ky - 1, width + kx - 1), np.float32)
        inside = plane[reach]
        frame = full[first[0] : first[0] + inside.shape[0], first[1] : first[1] + inside.shape[1]]
        np.copyto(frame, inside, where=True if usable is None else usable[reach], casting="unsafe")
        return full

    shape = (ny, width)
    out = np.empty(shape, np.float32)
    out_variance = None if variance is None else np.empty(shape, np.float32)
    lost = None if usable is None else np.empty(shape, np.float32)
    kept = None if usable is None else np.empty(shape, np.float32)
    padded_data = padded(data)
    padded_variance = None if variance is None else padded(variance)
    padded_usable = None if usable is None else padded(usable)
    linear, constant_square, margin = (False, False, 0) if exact else kernel.shortcuts
    flipped = np.ascontiguousarray(kernel.planes[:, ::-1, ::-1], np.float64)

    def band(rows: tuple[int, int]) -> None:
        _kernels.convolve_varying(
            padded_data,
            padded_variance,
            padded_usable,
            flipped,
            kernel.order,
            (kernel.centre[0] - x0, kernel.centre[1] - y0),
            kernel.scale,
            out,
            out_variance,
            lost,
            kept,
            nx,
            rows,
            linear,
            constant_square,
            margin,
        )

    map_bands(band, row_bands(ny), threads)
    return tuple(None if plane is None else plane[:, :nx] for plane in (out, out_variance, lost, kept))  # type: ignore[return-value]
