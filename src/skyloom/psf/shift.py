"""Sub-pixel shifts of small images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import i0

REACH = 8
KAISER_BETA = 8.0
"""With both, a pixel-integrated Moffat of FWHM 2.6, 3 and 4 pixels is shifted to 6e-4, 3e-4 and 1e-4 of its peak."""

_TAPS = np.arange(-REACH, REACH + 2)


def shift_matrices(size: int, shifts: npt.ArrayLike, step: int = 1) -> npt.NDArray[np.float64]:
    """Return the matrices S with ``(S f)(u) = f(u - d)`` for each shift d, by windowed sinc interpolation.

    The interpolation weights are ``L(u - d - v)``, ``L(t) = sinc(t) I0(beta sqrt(1 - (t / a)**2)) / I0(beta)`` for
    abs(t) < a = 8 (the window of Kaiser 1974), divided by their sum so that a constant stays one. What lies outside of
    the `size` samples counts as 0.

    Parameters
    ----------
    size : int
        Number of samples.
    shifts : array_like, shape (N,)
        Shifts in samples.
    step : int
        Distance of the samples u that are made, from the first one on: those at the pixels, if f has `step` samples
        a pixel.

    Returns
    -------
    matrices : ndarray, shape (N, ceil(size / step), size), float64
    """
    shifts = np.atleast_1d(np.asarray(shifts, float))
    whole = np.floor(shifts)
    values = _weights(shifts - whole)
    weights = np.zeros((len(shifts), 2 * size - 1))  # for all differences u - v
    star, tap = np.nonzero(np.abs(_TAPS + whole[:, None]) < size)
    weights[star, (_TAPS + whole[:, None]).astype(np.intp)[star, tap] + size - 1] = values[star, tap]
    return np.ascontiguousarray(sliding_window_view(weights, size, axis=1)[:, ::step, ::-1])


def sample_matrix(at: npt.ArrayLike, size: int) -> npt.NDArray[np.float64]:
    """Return the matrix that interpolates `size` samples at some positions, by the weights of `shift_matrices`.

    Parameters
    ----------
    at : array_like, shape (N,)
        Positions; the first sample is at 0.
    size : int

    Returns
    -------
    matrix : ndarray, shape (N, size), float64
    """
    at = np.asarray(at, float)
    whole = np.ceil(at)
    row, tap = np.nonzero((whole[:, None] - _TAPS >= 0) & (whole[:, None] - _TAPS < size))
    matrix = np.zeros((len(at), size))
    matrix[row, (whole[:, None] - _TAPS).astype(np.intp)[row, tap]] = _weights(whole - at)[row, tap]
    return matrix


def _weights(part: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the weights of the samples `_TAPS` before positions so much (0 to 1) less than a sample."""
    values = _windowed_sinc(_TAPS - part[:, None])
    return np.asarray(values / values.sum(axis=-1, keepdims=True))


def _windowed_sinc(t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    window = i0(KAISER_BETA * np.sqrt(np.maximum(1 - (t / REACH) ** 2, 0))) / i0(KAISER_BETA)
    return np.asarray(np.sinc(t) * window * (np.abs(t) < REACH))


def shift_stamp(stamp: npt.NDArray[np.float64], dx: float, dy: float) -> npt.NDArray[np.float64]:
    """Return `stamp` moved by (dx, dy) pixels: what was at (x, y) is at (x + dx, y + dy).

    Parameters
    ----------
    stamp : ndarray, shape (ny, nx)
    dx, dy : float
        Pixels.

    Returns
    -------
    shifted : ndarray, shape (ny, nx), float64
    """
    ny, nx = stamp.shape
    return shift_matrices(ny, dy)[0] @ stamp @ shift_matrices(nx, dx)[0].T
