"""Interpolation kernels as tables of polynomials, one per tap, for `skyloom._kernels.interpolate`."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from skyloom.errors import InputError

HALF_WIDTHS = {"bilinear": 1, "cubic": 2, "lanczos3": 3, "lanczos4": 4}
"""Half width of each kernel in pixels; a kernel has twice as many taps along an axis."""

# Error of the weights below 1e-8 (float32 rounds at 6e-8) and 5e-12; found by comparison with the closed
# form.
_DEGREE = {np.dtype(np.float32): 11, np.dtype(np.float64): 16}


def kernel_weight(method: str, distance: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the one-dimensional interpolation kernel at some distances, before normalisation.

    Parameters
    ----------
    method : {'bilinear', 'cubic', 'lanczos3', 'lanczos4'}
        'bilinear' is 1 - abs(u); 'cubic' the cubic convolution of Keys (1981, IEEE Trans. ASSP 29, 1153, eq.
        15); 'lanczosN' sinc(u) sinc(u / N) (Duchon 1979, J. Appl. Meteor. 18, 1016), for abs(u) < N.
    distance : array_like
        Distances u from the position to pixel centres, in pixels.

    Returns
    -------
    ndarray of float64
        Weights, of the shape of `distance`.

    Raises
    ------
    InputError
        The method is unknown.
    """
    if method not in HALF_WIDTHS:
        raise InputError(
            f"The interpolation method is {method!r}; it must be one of {', '.join(HALF_WIDTHS)}.",
            method=method,
        )
    half = HALF_WIDTHS[method]
    u = np.abs(np.asarray(distance, np.float64))
    if method == "bilinear":
        weight = 1 - u
    elif method == "cubic":
        weight = np.where(u < 1, (1.5 * u - 2.5) * u**2 + 1, ((-0.5 * u + 2.5) * u - 4) * u + 2)
    else:
        weight = np.sinc(u) * np.sinc(u / half)
    return np.where(u < half, weight, 0.0)


def tap_weights(method: str, fraction: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the normalised weights of all taps for positions between two pixels.

    Parameters
    ----------
    method : str
        See `kernel_weight`.
    fraction : array_like, shape (n,)
        x - floor(x), from 0 to 1.

    Returns
    -------
    ndarray of float64, shape (n, taps)
        Weights of the pixels floor(x) - taps/2 + 1 ... floor(x) + taps/2; each row sums to 1.
    """
    fraction = np.atleast_1d(np.asarray(fraction, np.float64))
    half = HALF_WIDTHS.get(method, 1)
    weights = kernel_weight(method, fraction[:, None] - np.arange(1 - half, half + 1))
    return weights / weights.sum(axis=1, keepdims=True)


@cache
def polynomial_table(method: str, dtype: npt.DTypeLike) -> npt.NDArray[np.float64]:
    """Return the coefficients of the tap weights as polynomials in u = 2 (x - floor(x)) - 1.

    The weights of Lanczos kernels are smooth functions of the position within one pixel, so a Chebyshev
    interpolant gives them to rounding, with neither sines nor divisions in the inner loop.

    Parameters
    ----------
    method : str
        See `kernel_weight`.
    dtype : dtype
        Type of the image: float32 needs a lower degree.

    Returns
    -------
    ndarray of float64, shape (degree + 1, taps)
        Row d belongs to u**d. The rows sum to 0, but for the first, which sums to 1.
    """
    degree = {"bilinear": 1, "cubic": 3}.get(method, _DEGREE[np.dtype(dtype)])
    nodes = chebyshev.chebpts1(degree + 1)
    series = chebyshev.chebfit(nodes, tap_weights(method, (nodes + 1) / 2), degree)
    table = np.stack([chebyshev.cheb2poly(column) for column in series.T], axis=1)
    excess = table.sum(axis=1, keepdims=True)
    excess[0] -= 1
    table = np.ascontiguousarray(table - excess / table.shape[1])
    table.flags.writeable = False
    return table
