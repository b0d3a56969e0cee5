"""Weights, masks and ranges of the exposures that mission pipelines describe by dictionaries.

These are the helpers of `skyloom.resampling.resample_models.Resample`, named as in `stcal.resample.utils`. A *model* is
a dictionary of planes and numbers of one exposure.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, ShapeError
from skyloom.resampling import pixmap as _pixmap
from skyloom.resampling._drizzle_checks import is_number
from skyloom.resampling.pixel_area import (
    UnsupportedWCSError,
    _get_boundary_points,
    compute_mean_pixel_area,
    is_imaging_wcs,
)

__all__ = [
    "UnsupportedWCSError",
    "_get_boundary_points",
    "_get_inverse_variance",
    "build_driz_weight",
    "build_mask",
    "calc_pixmap",
    "compute_mean_pixel_area",
    "get_tmeasure",
    "is_flux_density",
    "is_imaging_wcs",
    "resample_range",
]

_log = logging.getLogger(__name__)

_SMALLEST_VARIANCE = 1 / float(np.finfo(np.float32).max)  # of which the inverse is a float32


class MissingKeyError(InputError, KeyError):
    """A model lacks something that is needed of it."""

    def __str__(self) -> str:  # KeyError would show the text in quotes
        return str(self.args[0])


def calc_pixmap(  # noqa: PLR0917  the signature of stcal
    wcs_from: Any,
    wcs_to: Any,
    shape: tuple[int, int] | None = None,
    disable_bbox: Literal["to", "from", "both", "none"] = "to",
    stepsize: float = 1,
    order: int = 1,
) -> npt.NDArray[np.float64]:
    """Return where the pixels of one image lie in another: `skyloom.resampling.calc_pixmap`, which has the details."""
    return _pixmap.calc_pixmap(wcs_from, wcs_to, shape, disable_bbox, stepsize=stepsize, order=order)


def build_mask(dqarr: npt.ArrayLike, good_bits: Any, flag_name_map: Any = None) -> npt.NDArray[np.uint8]:
    """Return which pixels may be used, by their data-quality bits.

    Parameters
    ----------
    dqarr : array_like of int
        Data-quality bits.
    good_bits : int, str, list or None
        Bits that do not matter: a sum of bits, a list, or a text with numbers or names separated by ``,``, ``+`` or
        ``|``. With ``~`` in front all bits but these do not matter. None: no bit matters.
    flag_name_map : dict, `astropy.nddata.BitFlagNameMap`, optional
        Bits by their names.

    Returns
    -------
    ndarray of uint8, shape of `dqarr`
        1 where the pixel is good.

    Raises
    ------
    InputError
        `dqarr` has no integers, or `good_bits` cannot be understood.
    """
    dq = np.asarray(dqarr)
    if dq.dtype.kind not in "iu":
        raise InputError(f"Data-quality bits must be integers; found {dq.dtype}.", dtype=str(dq.dtype))
    ignored = _ignored_bits(good_bits, flag_name_map)
    if ignored is None:
        return np.ones(dq.shape, np.uint8)
    every = np.iinfo(f"u{dq.dtype.itemsize}").max
    bad = np.array(~ignored & every, f"u{dq.dtype.itemsize}").astype(dq.dtype)  # as bits, whatever the sign
    good: npt.NDArray[np.uint8] = ((dq & bad) == 0).view(np.uint8)
    return good


def _ignored_bits(good_bits: Any, flag_name_map: Any) -> int | None:
    from astropy.nddata.bitmask import interpret_bit_flags

    try:
        bits: int | None = interpret_bit_flags(good_bits, flag_name_map=flag_name_map)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"good_bits is {good_bits!r}, which cannot be understood ({error}); it must be None, an integer, a list, "
            "or a text with numbers or names of flags. Names need dq_flag_name_map.",
            good_bits=good_bits,
        ) from error
    return bits


def get_tmeasure(model: Mapping[str, Any]) -> tuple[Any, bool]:
    """Return the time that an exposure is weighted with, and whether that is its measurement time.

    Parameters
    ----------
    model : dict
        With ``measurement_time``, or else ``exposure_time``.

    Returns
    -------
    time : float
        Seconds.
    is_measurement : bool
        False if there is no measurement time, so that this is the exposure time.

    Raises
    ------
    KeyError
        The model has neither.
    """
    time = _value(model, "measurement_time")
    if time is not None:
        return time, True
    try:
        return model["exposure_time"], False
    except KeyError as error:
        raise MissingKeyError(f"{_name(model)} has neither 'measurement_time' nor 'exposure_time'.") from error


def _value(model: Mapping[str, Any], key: str) -> Any:
    """Return a value of a model, None if it has none; the data models of JWST have no more of a mapping than [key]."""
    try:
        return model[key]
    except KeyError:
        return None


def _name(model: Mapping[str, Any]) -> str:
    return f"Model {_value(model, 'filename') or '(without a filename)'}"


def build_driz_weight(
    model: Mapping[str, Any], weight_type: str | None = None, good_bits: Any = None, flag_name_map: Any = None
) -> npt.NDArray[np.float32]:
    """Return the weights of the pixels of an exposure.

    Parameters
    ----------
    model : dict, or a data model that has ``model[key]``
        With ``data`` and ``dq`` (not needed if `good_bits` is None), and what the kind of weight needs.
    weight_type : {'ivm', 'ivm-sky', 'exptime', None}
        'ivm' and 'ivm-sky': 1 / ``var_rnoise`` and 1 / ``var_sky``, or 1, with a message to the log, if the model has
        no such plane of the shape of its data. 'exptime': see `get_tmeasure`. None: 1.
    good_bits, flag_name_map
        See `build_mask`.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
        0 for pixels that are bad by their data-quality bits, whose value is not finite, or whose variance is not a
        positive number.

    Raises
    ------
    InputError
        `weight_type` is unknown, the time is no number from 0, or see `build_mask`.
    ShapeError
        The data-quality bits do not have the shape of the data.
    KeyError
        The model lacks ``data``, ``dq`` or a time.
    """
    data = np.asarray(_take(model, "data"))
    weight = _unmasked_weight(model, weight_type, data.shape)
    if good_bits is not None:
        dq = np.asarray(_take(model, "dq"))
        if dq.shape != data.shape:
            raise ShapeError(f"{_name(model)} has 'dq' of shape {dq.shape}, and 'data' of shape {data.shape}.")
        weight *= build_mask(dq, good_bits, flag_name_map)
    if data.dtype.kind == "f":
        weight *= np.isfinite(data)
    return weight


def _take(model: Mapping[str, Any], key: str) -> Any:
    value = _value(model, key)
    if value is None:
        raise MissingKeyError(f"{_name(model)} has no {key!r}, which its weights need.", key=key)
    return value


def _unmasked_weight(
    model: Mapping[str, Any], weight_type: str | None, shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    if weight_type == "ivm":
        return _get_inverse_variance(_value(model, "var_rnoise"), shape, "var_rnoise")
    if weight_type == "ivm-sky":
        return _get_inverse_variance(_value(model, "var_sky"), shape, "var_sky")
    if weight_type == "exptime":
        time, _ = get_tmeasure(model)
        if not (isinstance(time, (int, float, np.number)) and math.isfinite(time) and time >= 0):
            raise InputError(
                f"{_name(model)} has the exposure time {time!r}; weights by time need a number from 0 (seconds).",
                time=time,
            )
        return np.full(shape, time, np.float32)
    if weight_type is None:
        return np.ones(shape, np.float32)
    raise InputError(
        f"Invalid weight type: {weight_type!r}. It must be 'ivm', 'ivm-sky', 'exptime', or None.",
        weight_type=weight_type,
    )


def _get_inverse_variance(array: Any, data_shape: tuple[int, ...], array_name: str) -> npt.NDArray[np.float32]:
    """Return 1 / variance, or ones if there is no variance of the shape of the data, and a message to the log.

    Parameters
    ----------
    array : array_like or None
        Variances.
    data_shape : tuple of int
        Shape of the data.
    array_name : str
        What the message calls the plane.

    Returns
    -------
    ndarray of float32
        0 where the variance is not a positive number (or is so small that float32 does not hold its inverse).
    """
    if array is not None and np.asarray(array).dtype.kind not in "fiub":
        raise InputError(f"'{array_name}' is of type {np.asarray(array).dtype}; real numbers are needed.")
    if array is None or np.shape(array) != tuple(data_shape):
        why = "" if array is None else f" (its shape is {np.shape(array)}, that of the data {tuple(data_shape)})"
        _log.warning("'%s' array not available. Setting drizzle weight map to 1%s", array_name, why)
        return np.ones(data_shape, np.float32)
    variance = np.asarray(array)
    inverse = np.zeros(variance.shape, np.float32)
    np.divide(1.0, variance, out=inverse, where=variance >= _SMALLEST_VARIANCE, casting="same_kind")
    return inverse


def is_flux_density(bunit: Any) -> bool:
    """Return whether a unit is one of flux per frequency, such as MJy, and not of surface brightness, such as MJy/sr.

    Parameters
    ----------
    bunit : str, `astropy.units.Unit` or None
        The unit of data.

    Returns
    -------
    bool
        False, too, for what is no unit.
    """
    from astropy import units as u

    try:
        return bool(u.Unit(bunit).is_equivalent(u.Jy))
    except (TypeError, ValueError):
        return False


def resample_range(data_shape: tuple[int, int], bbox: Any = None) -> tuple[int, int, int, int]:
    """Return the range of pixels that lie in a bounding box.

    Parameters
    ----------
    data_shape : (int, int)
        Shape (ny, nx) of the image.
    bbox : ((float, float), (float, float)), optional
        Limits ((xmin, xmax), (ymin, ymax)), such as ``wcs.bounding_box``. By default the image.

    Returns
    -------
    xmin, xmax, ymin, ymax : int
        First and last pixels, within the image: a box that has none of its pixels gives the nearest one.

    Raises
    ------
    InputError
        One of the arguments has not two axes.
    """
    shape = tuple(data_shape) if np.iterable(data_shape) else (data_shape,)
    if len(shape) != 2 or not all(is_number(n) for n in shape):
        raise InputError(f"Expected 'data_shape' to be of length 2; found {data_shape!r}.", data_shape=data_shape)
    ny, nx = shape
    if bbox is None:
        return 0, max(0, int(nx) - 1), 0, max(0, int(ny) - 1)
    if hasattr(bbox, "bounding_box"):  # an astropy.modeling.ModelBoundingBox; "F" is the order x, y
        bbox = bbox.bounding_box(order="F")
    try:
        (x0, x1), (y0, y1) = ([float(getattr(end, "value", end)) for end in interval] for interval in bbox)
    except (TypeError, ValueError):
        x0 = x1 = y0 = y1 = math.nan
    if any(map(math.isnan, (x0, x1, y0, y1))):
        raise InputError(
            f"Expected bounding box to be of length 2: ((xmin, xmax), (ymin, ymax)); found {bbox!r}.", bbox=bbox
        )
    return (*_interval(x0, x1, int(nx)), *_interval(y0, y1, int(ny)))


def _interval(low: float, high: float, n: int) -> tuple[int, int]:
    """Return the first and the last pixel from `low` to `high`, both rounded half up."""
    last = max(0, n - 1)
    first = math.floor(min(max(low, 0), last) + 0.5)
    return first, max(first, math.floor(min(max(high, 0), last) + 0.5))
