"""Where to fit: boxes around stars that are spread over the field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from skyloom.errors import InputError, NoUsableDataError
from skyloom.exposure import BoolArray, Exposure
from skyloom.subtraction.dropin_arguments import real_plane
from skyloom.subtraction.sfft.design import Float64Array
from skyloom.subtraction.sfft.noise_map import power_of_two
from skyloom.subtraction.stamps import column_names, unflagged

_DEFAULT_SIZE = 15
_PER_FWHM = 3.0
_KERNEL_PER_FWHM = 1.5


def box_half_size(objects: Any) -> int:
    """Return 3 times the median FWHM of the objects, or 15 pixels if their FWHM is not known."""
    if "fwhm" in column_names(objects):
        fwhm = np.asarray(objects["fwhm"], np.float64)
        fwhm = fwhm[np.isfinite(fwhm) & (fwhm > 0)]
        if fwhm.size:
            return max(1, round(_PER_FWHM * float(np.median(fwhm))))
    return _DEFAULT_SIZE


def kernel_half(fwhm: float) -> int:
    """Return the half size of a kernel that reaches into the wings of stars of so wide an FWHM: 1.5 of it, 3 to 15."""
    return int(np.clip(np.ceil(_KERNEL_PER_FWHM * fwhm), 3, 15))


def kernel_shape_for(image: Any, template: Any, mask: Any, template_mask: Any) -> tuple[int, int]:
    """Return the kernel's shape for the wider of two images' stars, (7, 7) if there are none."""
    from skyloom.registration import detect_sources, image_fwhm

    widths = []
    for plane, bad, what in ((image, mask, "the image"), (template, template_mask, "the template")):
        data = real_plane(plane, what).astype(np.float64)
        data /= power_of_two(data, np.isfinite(data))
        try:
            known: dict[str, Any] = {} if bad is None else {"mask": np.asarray(bad, bool)}
            stars = detect_sources(Exposure(data, **known))
        except NoUsableDataError:
            continue  # the fit will tell that there are too few pixels
        if len(stars):
            widths.append(image_fwhm(stars))
    side = 2 * kernel_half(max(widths, default=0.0)) + 1
    return side, side


@dataclass(frozen=True)
class Boxes:
    """Which boxes around objects are wanted.

    Parameters
    ----------
    size : int
        Half the size of a box: 2 size + 1 pixels a side.
    grid : int
        Cells along each axis.
    per_cell : int or None
        So many objects of a cell at most.
    max_masked_fraction : float
        Boxes of which more is bad are left out.
    """

    size: int
    grid: int = 4
    per_cell: int | None = 10
    max_masked_fraction: float = 0.5

    def __post_init__(self) -> None:
        for what, value, least in (("size", self.size, 0), ("grid", self.grid, 1), ("per_cell", self.per_cell, 1)):
            if value is not None and value < least:
                raise InputError(f"obj_{what} is {value}; it must be at least {least}.")


def object_region(objects: Any, bad: BoolArray, boxes: Boxes) -> tuple[BoolArray, int]:
    """Return True in boxes around the best objects of each cell of a grid, and how many boxes there are.

    Parameters
    ----------
    objects : Table
        Columns x and y, and, if there, flag or flags (objects with any are left out), flux and fluxerr (which tell the
        order).
    bad : ndarray of bool, shape (ny, nx)
        Pixels that cannot be used.
    boxes : Boxes
    """
    size = boxes.size
    ny, nx = bad.shape
    region = np.zeros(bad.shape, bool)
    taken: dict[tuple[int, int], int] = {}
    count = 0
    for x, y in _positions(objects):
        column, row = round(x), round(y)
        if not (0 <= column < nx and 0 <= row < ny):
            continue
        cell = row * boxes.grid // ny, column * boxes.grid // nx
        if boxes.per_cell is not None and taken.get(cell, 0) >= boxes.per_cell:
            continue
        box = slice(max(row - size, 0), row + size + 1), slice(max(column - size, 0), column + size + 1)
        if bad[box].mean() > boxes.max_masked_fraction:
            continue
        region[box] = True
        taken[cell] = taken.get(cell, 0) + 1
        count += 1
    return region, count


def _positions(objects: Any) -> list[tuple[float, float]]:
    """Return x and y of the objects without flags, those of the highest S/N first."""
    names = column_names(objects)
    for needed in ("x", "y"):
        if needed not in names:
            raise InputError(f"obj has no column {needed}; it has {', '.join(names)}. Give positions as x and y.")
    x, y = (np.asarray(objects[name], np.float64) for name in ("x", "y"))
    good = np.isfinite(x) & np.isfinite(y) & unflagged(objects)
    order = np.arange(len(x))
    if "flux" in names:
        merit: Float64Array = np.asarray(objects["flux"], np.float64)
        if "fluxerr" in names:
            error = np.asarray(objects["fluxerr"], np.float64)
            merit = np.divide(merit, error, out=np.full(len(merit), -np.inf), where=error > 0)
        order = np.argsort(-np.nan_to_num(merit, nan=-np.inf), kind="stable")
    return [(float(x[k]), float(y[k])) for k in order if good[k]]
