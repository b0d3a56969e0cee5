"""Interpolation kernels as tables of polynomials, one per tap, for `skyloom._kernels.interpolate`."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from skyloom.errors import InputError
from skyloom.resampling.spline import DEGREES, cardinal_spline

HALF_WIDTHS = {"bilinear": 1, "cubic": 2, "lanczos3": 3, "lanczos4": 4, "lanczos5": 5, "poly3": 2, "poly5": 3}
HALF_WIDTHS |= dict.fromkeys(DEGREES, 5)
"""Half width of each kernel in pixels; a kernel has twice as many taps along an axis."""

# Degrees of w_k / (t (1 - t)). Lanczos: error of the weights below 1e-8 (float32 rounds at 6e-8) and 5e-13; found by
# comparison with the closed form.
_LANCZOS_DEGREE = {np.dtype(np.float32): 9, np.dtype(np.float64): 15}
_DEGREE = {"bilinear": 0, "cubic": 1, "poly3": 1, "poly5": 3, "spline3": 1, "spline5": 3}


def kernel_weight(method: str, distance: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the one-dimensional interpolation kernel at some distances, before normalisation.

    Parameters
    ----------
    method : {'bilinear', 'cubic', 'lanczos3', 'lanczos4', 'lanczos5', 'poly3', 'poly5', 'spline3', 'spline5'}
        'bilinear' is 1 - abs(u); 'cubic' the cubic convolution of Keys (1981, IEEE Trans. ASSP 29, 1153, eq.
        15); 'lanczosN' sinc(u) sinc(u / N) (Duchon 1979, J. Appl. Meteor. 18, 1016), for abs(u) < N; 'polyN' the
        polynomial of degree N through the N + 1 nearest pixels (Everett's formula with central differences);
        'splineN' the cardinal spline of degree N, cut at 5 pixels, where its values are below 7e-4 (N = 3) or 6e-3.
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
    elif method in DEGREES:
        weight = cardinal_spline(u, DEGREES[method])
    elif method.startswith("poly"):
        weight = _lagrange_weight(u, half)
    else:
        weight = np.sinc(u) * np.sinc(u / half)
    return np.where(u < half, weight, 0.0)


def _lagrange_weight(u: npt.NDArray[np.float64], half: int) -> npt.NDArray[np.float64]:
    """Return the Lagrange weight of pixel k for the position t = u + k between pixels 0 and 1, of 2 `half` pixels."""
    k = -np.floor(u)
    weight = np.ones_like(u)
    for m in range(1 - half, half + 1):
        weight *= np.divide(u + k - m, k - m, out=np.ones_like(u), where=k != m)
    return weight


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
        Weights of the pixels floor(x) - taps/2 + 1 ... floor(x) + taps/2; each row sums to 1. What the cut tails of a
        spline leave is shared by all taps, which keeps the weights polynomials and their squares right.
    """
    fraction = np.atleast_1d(np.asarray(fraction, np.float64))
    half = HALF_WIDTHS.get(method, 1)
    weights = kernel_weight(method, fraction[:, None] - np.arange(1 - half, half + 1))
    total = weights.sum(axis=1, keepdims=True)
    return weights + (1 - total) / (2 * half) if method in DEGREES else weights / total


@cache
def polynomial_table(method: str, dtype: npt.DTypeLike) -> npt.NDArray[np.float64]:
    """Return the coefficients of the tap weights as polynomials of the position between two pixels.

    With t = x - floor(x), the weights are those of linear interpolation, (1 - t) and t of the middle taps, plus
    t (1 - t) P_k(u), u = 2 t - 1. The weights of Lanczos kernels are smooth functions of t, so a Chebyshev interpolant
    P_k gives them to rounding, with neither sines nor divisions in the inner loop; those of the other kernels are
    polynomials. At a pixel centre all weights but its own are exactly 0.

    Parameters
    ----------
    method : str
        See `kernel_weight`.
    dtype : dtype
        Type of the image: float32 needs a lower degree.

    Returns
    -------
    ndarray of float64, shape (degree + 1, taps)
        Row d belongs to u**d. The rows sum to 0, and the columns mirror each other: P_k(u) = P_{taps-1-k}(-u).
    """
    degree = _DEGREE.get(method, _LANCZOS_DEGREE[np.dtype(dtype)])
    nodes = chebyshev.chebpts2(degree + 3)[1:-1]  # good for a polynomial that is multiplied by 1 - u^2
    t = (nodes[:, None] + 1) / 2
    half = HALF_WIDTHS[method]
    linear = np.where(np.arange(2 * half) == half - 1, 1 - t, np.where(np.arange(2 * half) == half, t, 0.0))
    values = (tap_weights(method, t[:, 0]) - linear) / (t * (1 - t))
    series = chebyshev.chebfit(nodes, values, degree)
    table = np.stack([chebyshev.cheb2poly(column) for column in series.T], axis=1)
    sign = (-1.0) ** np.arange(degree + 1)[:, None]
    table = (table + sign * table[:, ::-1]) / 2
    table = np.ascontiguousarray(table - table.mean(axis=1, keepdims=True))
    table.flags.writeable = False
    return table
