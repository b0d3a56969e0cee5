"""The constructor's arguments, checked and brought into one form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table

from skyloom.errors import InputError, ShapeError
from skyloom.resampling._drizzle_checks import is_number

Float = npt.NDArray[np.float64]

_WHOLE = {
    "spline_order": (0, 5),
    "interp_order": (0, 5),
    "sub_tile": (1, 2**31),
    "n_quad_det": (0, 2**31),
    "max_quad_cand": (0, 2**31),
    "patience_quad_cand": (0, 2**31),
    "min_n_match": (0, 2**31),
    "bad_flag_bits": (-(2**31), 2**31),
}
"""Options that are whole numbers, and their ranges."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """Lists of one length, one item for each source."""

    data: list[Float]
    masks: list[npt.NDArray[Any] | None]
    source_dets: list[Table | None]
    output_shapes: list[tuple[int, int]]
    template_data: Float | None


def checked_inputs(
    options: Any,
    *,
    source_data: Any,
    source_mask: Any,
    template_data: Any,
    source_det: Any,
    template_det: Any,
    output_shape: Any,
    check: bool,
    copy: bool,
) -> Inputs:
    """Return the inputs of `Spalipy` as lists of float64 images.

    Raises
    ------
    InputError
        Something is of the wrong type or length, or missing.
    ShapeError
        An image is not two-dimensional, or a mask has another shape.
    """
    many = isinstance(source_data, list)
    sources = source_data if many else [source_data]
    count = len(sources)
    masks = _listed(source_mask, many, count, "source_mask")
    dets = _listed(source_det, many, count, "source_det")
    if check:
        for number, (data, mask, det) in enumerate(zip(sources, masks, dets, strict=True)):
            _check_image(data, f"source_data of entry {number}")
            _check_table(det, options.columns, f"source_det of entry {number}")
            if mask is not None:
                _check_mask(mask, data.shape, number)
        if template_data is not None:
            _check_image(template_data, "template_data")
        _check_table(template_det, options.columns, "template_det")
        _check_options(options, template_data, template_det)
    make = np.array if copy else np.asarray
    data = [make(one, np.float64, order="C") for one in sources]
    template = None if template_data is None else np.asarray(template_data, np.float64, order="C")
    return Inputs(data, list(masks), list(dets), _shapes(output_shape, data, template), template)


def _listed(value: Any, many: bool, count: int, name: str) -> list[Any]:
    """Return one item for each source."""
    if value is None:
        return [None] * count
    if isinstance(value, list) != many:
        raise InputError(f"{name} and source_data must both be lists, or neither.")
    items = value if many else [value]
    if len(items) != count:
        raise InputError(f"{name} has {len(items)} items and source_data {count}; they must be as many.")
    return list(items)


def _check_image(data: Any, what: str) -> None:
    if not isinstance(data, np.ndarray) or data.dtype.kind not in "fiub":
        raise InputError(f"{what} is of type {type(data).__name__}; an array of numbers is needed.")
    if data.ndim != 2 or 0 in data.shape:
        raise ShapeError(f"{what} has the shape {data.shape}; a two-dimensional image is needed.", found=data.shape)


def _check_mask(mask: Any, shape: tuple[int, ...], number: int) -> None:
    if not isinstance(mask, np.ndarray) or mask.dtype.kind not in "iub":
        raise InputError(f"source_mask of entry {number} must be an array of integers or booleans.")
    if mask.shape != shape:
        raise ShapeError(
            f"source_mask of entry {number} has the shape {mask.shape} and the data {shape}; they must be the same.",
            found=mask.shape,
            needed=shape,
        )


def _check_table(det: Any, columns: list[str], what: str) -> None:
    if det is None:
        return
    if not isinstance(det, Table):
        raise InputError(f"{what} is of type {type(det).__name__}; an astropy Table is needed.")
    if missing := [name for name in columns if name not in det.colnames]:
        raise InputError(f"{what} has no column {', '.join(missing)}; it needs {', '.join(columns)}.", missing=missing)


def _check_options(options: Any, template_data: Any, template_det: Any) -> None:
    if template_data is None and template_det is None:
        raise InputError("Neither template_data nor template_det was given; one of them is needed.")
    if options.preserve_footprints and template_data is None:
        raise InputError("preserve_footprints needs template_data.")
    for name, (low, high) in _WHOLE.items():
        value = getattr(options, name)
        if not (is_number(value) and low <= value <= high and int(value) == value):
            raise InputError(f"{name} is {value!r}; it must be a whole number from {low} to {high}.", **{name: value})
        setattr(options, name, int(value))
    for name in ("max_match_dist", "max_quad_hash_dist", "sep_thresh"):
        value = getattr(options, name)
        if not (is_number(value) and 0 < value < math.inf):
            raise InputError(f"{name} is {value!r}; it must be a finite number above 0.", **{name: value})
    for name in ("min_quad_sep", "quad_edge_buffer", "min_fwhm", "min_sep", "cval", "cval_mask"):
        value = getattr(options, name)
        if not (is_number(value) or isinstance(value, bool | np.bool_) or (name == "min_sep" and value is None)):
            raise InputError(f"{name} is {value!r}; a number is needed.", **{name: value})
    if options.n_det is not None and not (is_number(options.n_det) and options.n_det > 0):
        raise InputError(f"n_det is {options.n_det!r}; a number above 0, or a fraction up to 1, is needed.")
    if options.temp_dir is not None and not Path(options.temp_dir).is_dir():
        raise InputError(f"temp_dir {options.temp_dir} is not a directory.", path=str(options.temp_dir))


def _shapes(output_shape: Any, data: list[Float], template: Float | None) -> list[tuple[int, int]]:
    """Return the shape of each output."""
    if isinstance(output_shape, list) and len(output_shape) == len(data) and np.ndim(output_shape[0]) == 1:
        wanted = output_shape
    elif output_shape is not None:
        wanted = [output_shape] * len(data)
    else:
        wanted = [one.shape if template is None else template.shape for one in data]
    for shape in wanted:
        if np.shape(shape) != (2,) or not all(is_number(n) and n > 0 and int(n) == n for n in shape):
            raise InputError(f"output_shape is {shape!r}; two whole numbers above 0, (ny, nx), are needed.")
    return [(int(ny), int(nx)) for ny, nx in wanted]
