"""What one model (the dictionary by which a mission pipeline describes an exposure) brings to a co-add, checked."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, ShapeError, WcsError
from skyloom.exposure import LARGEST, FloatArray
from skyloom.resampling._drizzle_planes import bit_plane, real_plane, representable, strided
from skyloom.resampling.pipeline_utils import MissingKeyError, _ignored_bits, get_tmeasure

_log = logging.getLogger(__name__)

BitArray = npt.NDArray[np.uint32]

WEIGHT_PLANES = {"ivm": "var_rnoise", "ivm-sky": "var_sky"}
"""The variances of which the weights of each weight type are the inverse."""

_ALL_BITS = 0xFFFFFFFF


class ModelTypeError(InputError, TypeError):
    """A model, or a value in it, is of a type that cannot be used."""


class NotAnImageError(ShapeError, RuntimeError):
    """The data of a model are no two-dimensional image."""


@dataclass(frozen=True, eq=False)
class ModelOptions:
    """What a co-add takes from models.

    Parameters
    ----------
    weight_type : {'ivm', 'ivm-sky', 'exptime', None}
        See `skyloom.resampling.Resample`.
    good_bits, flag_names
        Data-quality bits that do not matter, and bits by their names.
    variance_names : sequence of str
        Planes of variances that are co-added.
    with_error, with_dq : bool
        Whether planes of errors and of data-quality bits are.
    """

    weight_type: str | None
    good_bits: Any
    flag_names: Any
    variance_names: Sequence[str]
    with_error: bool
    with_dq: bool


@dataclass(frozen=True, eq=False)
class ModelImage:
    """The planes and numbers of a model as kernels take them; all planes have the shape of `data`, (ny, nx).

    Parameters
    ----------
    name : str
        What messages call the model.
    data : ndarray of float32 or float64
        The image.
    level : float
        Sky level that is to be subtracted.
    exposure_time : float
        Seconds.
    weight_name : str
        Key of `weight_variance`, or "".
    weight_variance : ndarray or None
        Variance that the pixels are weighted with the inverse of.
    weight : float
        Factor on the weights of all pixels.
    mask : ndarray of uint32 or None
        Data-quality bits: pixels with any of the bits `rejected` count for nothing.
    rejected : int
        Those bits.
    dq : ndarray of uint32 or None
        Data-quality bits to be propagated.
    error : ndarray or None
        Errors to be averaged.
    variances : dict of ndarray
        Variances by their names: those that the model has.
    """

    name: str
    data: FloatArray
    level: float
    exposure_time: float
    weight_name: str
    weight_variance: FloatArray | None
    weight: float
    mask: BitArray | None
    rejected: int
    dq: BitArray | None
    error: FloatArray | None
    variances: dict[str, FloatArray]


def model_name(model: Mapping[str, Any]) -> str:
    """Return the filename of a model, or "Unknown"."""
    name = model.get("filename")
    return str(name) if name is not None and str(name).strip() else "Unknown"


def read_model(model: Mapping[str, Any], options: ModelOptions) -> ModelImage:
    """Check everything that is used of a model.

    Raises
    ------
    InputError
        A plane or a number cannot be used; the message names the model and the key. Also a `KeyError`, `TypeError` or
        `RuntimeError` where that is what stcal raises.
    """
    name = model_name(model)
    data = _plane(model, "data")
    if data.ndim != 2 or 0 in data.shape:
        raise NotAnImageError(
            f"Input model '{name}' is not a 2D image: 'data' has the shape {data.shape}.", model=name, found=data.shape
        )
    known = getattr(model["wcs"], "array_shape", None)
    if known is not None and tuple(known) != data.shape:
        raise ShapeError(
            f"Model '{name}' has 'data' of shape {data.shape}, and its 'wcs' is that of an image of shape "
            f"{tuple(known)}; set wcs.array_shape to the shape of the data, or give the WCS of these data.",
            model=name,
            found=data.shape,
            needed=tuple(known),
        )
    data = representable(data, 1.0, np.float32)  # the type of the output
    level = 0.0 if model["subtracted"] or model["level"] is None else number(model, "level")
    if abs(level) > LARGEST:
        raise InputError(f"Model '{name}' has 'level' = {level}; no sky is brighter than {LARGEST:.0e}.", level=level)
    mask, rejected = _mask(model, options, data.shape)
    weight, weight_variance = _weights(model, options.weight_type, data.shape)
    return ModelImage(
        name=name,
        data=data,
        level=level,
        exposure_time=number(model, "exposure_time", above=0.0),
        weight_name="" if weight_variance is None else WEIGHT_PLANES[str(options.weight_type)],
        weight_variance=weight_variance,
        weight=weight,
        mask=mask,
        rejected=rejected,
        dq=_bits(model, data.shape) if options.with_dq else None,
        error=_same_shape(model, "err", data.shape) if options.with_error else None,
        variances=_variances(model, options.variance_names, data.shape),
    )


def number(model: Mapping[str, Any], key: str, above: float = -math.inf) -> float:
    """Return a number of a model, which must be finite and above a limit."""
    value = model[key]
    try:
        found = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not (math.isfinite(found) and found > above):
        what = "a finite number" if above == -math.inf else f"a number above {above:g}"
        raise InputError(
            f"Model '{model_name(model)}' has '{key}' = {value!r}; {what} is needed.",
            model=model_name(model),
            key=key,
            found=value,
        )
    return found


def check_times(model: Mapping[str, Any]) -> None:
    """Raise if the times of a model, which may be None but for its exposure time, or its group cannot be used."""
    number(model, "exposure_time", above=0.0)
    if isinstance(model["group_id"], np.ndarray):
        raise ModelTypeError(
            f"Model '{model_name(model)}' has a 'group_id' that is an array; a text or a number is needed, "
            "the same for all models of a group.",
            key="group_id",
        )
    for key in ("duration", "measurement_time"):
        if model[key] is not None:
            number(model, key)
    for key in ("start_time", "end_time"):
        time = model[key]
        if isinstance(time, (float, np.floating)) and not math.isfinite(time):
            raise InputError(
                f"Model '{model_name(model)}' has '{key}' = {time}; a time is needed, or None where it is not known.",
                model=model_name(model),
                key=key,
                found=time,
            )


def is_spectral_wcs(wcs: Any) -> bool:
    """Return whether one of the world axes of a WCS is spectral."""
    return "SPECTRAL" in world_axes(wcs)


def world_axes(wcs: Any) -> list[str]:
    """Return the kinds of the world axes of a WCS: SPATIAL, SPECTRAL, ... as gwcs names them.

    Raises
    ------
    WcsError
        This is no WCS.
    """
    types = getattr(getattr(wcs, "output_frame", None), "axes_type", None)
    if types is not None:
        return [types] if isinstance(types, str) else [str(kind) for kind in types]
    low = getattr(wcs, "low_level_wcs", wcs)
    if not hasattr(low, "world_axis_physical_types"):
        raise WcsError(
            f"A WCS with the common interface of astropy is needed (gwcs.WCS, astropy.wcs.WCS, ...); found "
            f"{type(wcs).__name__}.",
            found=type(wcs).__name__,
        )
    starts = {"pos": "SPATIAL", "em": "SPECTRAL", "spect": "SPECTRAL"}
    return [starts.get(str(kind).partition(".")[0], "OTHER") for kind in low.world_axis_physical_types]


def _plane(model: Mapping[str, Any], key: str) -> FloatArray:
    if model[key] is None:
        raise ModelTypeError(f"Model '{model_name(model)}' has '{key}' = None; an image is needed.", key=key)
    try:
        return real_plane(model[key], key)
    except InputError as error:
        raise ModelTypeError(f"Model '{model_name(model)}': {error}", key=key, **error.details) from error


def _same_shape(model: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> FloatArray:
    plane = _plane(model, key)
    _need_shape(model, key, plane.shape, shape)
    return plane


def _need_shape(model: Mapping[str, Any], key: str, found: tuple[int, ...], needed: tuple[int, ...]) -> None:
    if found != needed:
        raise ShapeError(
            f"Model '{model_name(model)}' has '{key}' of shape {found}; that of 'data', {needed}, is needed.",
            model=model_name(model),
            key=key,
            found=found,
            needed=needed,
        )


def _bits(model: Mapping[str, Any], shape: tuple[int, ...]) -> BitArray:
    """Return the data-quality bits in 32 bits, without a copy where possible."""
    name, dq = model_name(model), model["dq"]
    if dq is None:
        raise ModelTypeError(f"Model '{name}' has 'dq' = None; a plane of integers is needed.", key="dq")
    bits = np.asarray(dq)
    _need_shape(model, "dq", bits.shape, shape)
    if bits.dtype == np.int32:
        return strided(bits.view(np.uint32))
    try:
        return bit_plane(bits, "dq")
    except InputError as error:
        raise type(error)(f"Model '{name}': {error}", model=name, **error.details) from error


def _mask(model: Mapping[str, Any], options: ModelOptions, shape: tuple[int, ...]) -> tuple[BitArray | None, int]:
    """Return data-quality bits, and those of them that exclude a pixel."""
    ignored = _ignored_bits(options.good_bits, options.flag_names)
    if ignored is None:
        return None, 0
    dq = np.asarray(model["dq"])
    if dq.dtype.kind in "iu" and dq.dtype.itemsize == 8 and dq.shape == shape:
        bad = np.uint64(~ignored & 0xFFFFFFFFFFFFFFFF)
        return ((dq.astype(np.uint64, copy=False) & bad) != 0).astype(np.uint32), 1
    return _bits(model, shape), ~ignored & _ALL_BITS


def _weights(
    model: Mapping[str, Any], weight_type: str | None, shape: tuple[int, ...]
) -> tuple[float, FloatArray | None]:
    """Return the common factor of the weights, and the variance that they are the inverse of."""
    if weight_type == "exptime":
        time, _ = get_tmeasure(model)
        key = "exposure_time" if model.get("measurement_time") is None else "measurement_time"
        return float(np.float32(number({**model, key: time}, key, above=0.0))), None
    if weight_type is None:
        return 1.0, None
    key = WEIGHT_PLANES[weight_type]
    if model.get(key) is None or np.shape(model[key]) != shape:
        _log.warning("'%s' array not available in model '%s'. Setting drizzle weight map to 1", key, model_name(model))
        return 1.0, None
    return 1.0, _plane(model, key)


def _variances(model: Mapping[str, Any], names: Sequence[str], shape: tuple[int, ...]) -> dict[str, FloatArray]:
    """Return those of the variances that the model has in the shape of its data."""
    planes = {}
    for key in names:
        plane = model.get(key)
        if plane is None or np.size(plane) == 0:
            _log.debug("No data for '%s' for model '%s'. Skipping ...", key, model_name(model))
        elif np.shape(plane) != shape:
            _log.warning("Data shape mismatch for '%s' for model '%s'. Skipping ...", key, model_name(model))
        else:
            planes[key] = _plane(model, key)
    return planes


def missing_key(model: Mapping[str, Any], key: str) -> MissingKeyError:
    """Return the error for a key that a model lacks."""
    return MissingKeyError(
        f"Attempt to access non-existent key '{key}' in a data model. Model '{model_name(model)}' has the keys "
        f"{', '.join(map(str, model))}.",
        key=key,
    )
