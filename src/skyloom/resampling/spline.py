"""Interpolating splines: the B-spline coefficients of an image with unusable pixels, and the cardinal kernel."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from skyloom.exposure import BoolArray, Exposure, FloatArray

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

DEGREES = {"spline3": 3, "spline5": 5}
"""Degree of the spline of each method of `skyloom.resampling.resample`."""


def spline_coefficients(exposure: Exposure, degree: int) -> FloatArray:
    """Return the coefficients c of the spline sum_k c_k beta(x - k) that passes through all pixels.

    The recursive filter of Unser, Aldroubi & Eden (1993, IEEE Trans. Signal Processing 41, 821) reaches without end, so
    unusable pixels are filled before, see `filled`. Beyond the borders the image is mirrored.

    Parameters
    ----------
    exposure : Exposure
        The image.
    degree : {3, 5}
        Degree of the spline.

    Returns
    -------
    ndarray, shape (ny, nx)
        Coefficients, of the data's type.
    """
    from scipy.ndimage import spline_filter

    coefficients = spline_filter(filled(exposure.data, exposure.usable), degree, mode="mirror")
    return np.asarray(coefficients.astype(exposure.data.dtype, copy=False))


def filled(data: FloatArray, usable: BoolArray) -> FloatArray:
    """Return the data, with each unusable pixel interpolated between the nearest usable ones of its row and column.

    The up to four neighbours weigh by their inverse distance: across one row or column alone that is linear. The median
    of the image stands where a row and a column have none.
    """
    if usable.all():
        return data
    y, x = np.nonzero(~usable)
    total, weight = _between(data, y, x)
    by_column = np.lexsort((y, x))
    column_total, column_weight = _between(data.T, x[by_column], y[by_column])
    total[by_column] += column_total
    weight[by_column] += column_weight
    middle = float(np.median(data[usable])) if usable.any() else 0.0
    result = data.copy()
    result[y, x] = np.divide(total, weight, out=np.full(len(y), middle), where=weight > 0)
    return result


def _between(data: FloatArray, row: Index, column: Index) -> tuple[Float, Float]:
    """Return the sums of value / distance and 1 / distance of the pixels at both ends of runs of unusable pixels.

    `row` and `column` are the unusable pixels, in the order of rows.
    """
    nx = data.shape[1]
    first = np.ones(len(row), bool)
    first[1:] = (np.diff(column) != 1) | (np.diff(row) != 0)
    run = np.cumsum(first) - 1
    start = column[first]
    stop = start + np.bincount(run)
    total, weight = np.zeros(len(row)), np.zeros(len(row))
    for end in (start[run] - 1, stop[run]):
        inside = (end >= 0) & (end < nx)
        share = 1.0 / np.abs(column - end)[inside]
        total[inside] += share * data[row[inside], end[inside]]
        weight[inside] += share
    return total, weight


@cache
def _cardinal_coefficients(degree: int) -> Float:
    """Return the coefficients of the spline that is 1 at 0 and 0 at all other integers, around the middle one."""
    from scipy.ndimage import spline_filter1d

    one = np.zeros(81)  # the coefficients fall by 0.27 (degree 3) and 0.43 (5) per pixel: to 1e-15 at the ends
    one[40] = 1
    return np.asarray(spline_filter1d(one, degree, mode="mirror"))


def cardinal_spline(u: Float, degree: int) -> Float:
    """Return the kernel of spline interpolation at distances u from a pixel (Unser 1999, eq. 14).

    The spline through the data d is sum_k d_k eta(x - k): these are the weights of the pixels.
    """
    from scipy.interpolate import BSpline

    knots = np.arange(degree + 2) - (degree + 1) / 2
    basis = BSpline.basis_element(knots, extrapolate=False)
    shift = np.arange(-40, 41)
    values = np.nan_to_num(basis(np.asarray(u, np.float64)[..., None] - shift))
    return np.asarray(values @ _cardinal_coefficients(degree))
