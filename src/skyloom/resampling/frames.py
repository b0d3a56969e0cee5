"""One exposure on its way into a co-add: on the common flux scale and sky, with its maps to and from the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from skyloom.background import estimate_background
from skyloom.errors import InputError
from skyloom.exposure import BoolArray, Exposure, FloatArray
from skyloom.noise import with_variance
from skyloom.resampling.maps import Map, SampledMap, area_at

_SAMPLES = 100_000  # pixels of an exposure that its sky levels are measured on
_SAMPLES_PER_CELL = 16  # along an axis
_ENOUGH = 30  # samples in a cell whose median is used
_WEIGHT_BOX = 64  # pixels a side of the boxes in which the sky noise is measured


@dataclass(frozen=True, eq=False)
class Frame:
    """An exposure in the units of the co-add.

    Parameters
    ----------
    name : str
        Name of the exposure.
    data, variance : ndarray, shape (ny, nx)
        In the units of the co-add.
    mask : ndarray of uint32, shape (ny, nx)
        As in the exposure.
    usable : ndarray of bool, shape (ny, nx)
        Pixels that count.
    to_grid : SampledMap
        From pixels of the exposure to output pixels.
    from_grid : callable
        The other way.
    exptime : float
        Seconds; 0 if unknown.
    factor : float
        What the exposure was multiplied with.
    """

    name: str
    data: FloatArray
    variance: FloatArray
    mask: npt.NDArray[np.uint32]
    usable: BoolArray
    to_grid: SampledMap
    from_grid: Map
    exptime: float
    factor: float


def flux_scales(exposures: Sequence[Exposure], how: str) -> list[float]:
    """Return the factors that bring all exposures to the flux scale of the first.

    Parameters
    ----------
    exposures : sequence of Exposure
        The images.
    how : {'auto', 'zeropoint', 'exptime', 'none'}
        'auto' takes zero points if all have one, else exposure times if all have one and none is a rate, else nothing.

    Returns
    -------
    list of float

    Raises
    ------
    InputError
        `how` is unknown, or an exposure lacks what it needs.
    """
    if how == "auto":
        if all(exposure.zeropoint is not None for exposure in exposures):
            how = "zeropoint"
        elif all(exposure.exptime is not None and not _is_rate(exposure.unit) for exposure in exposures):
            how = "exptime"
        else:
            how = "none"
    if how == "none":
        return [1.0] * len(exposures)
    if how not in ("zeropoint", "exptime"):
        raise InputError(f"flux_scale is {how!r}; it must be 'auto', 'zeropoint', 'exptime' or 'none'.", flux_scale=how)
    values = []
    for exposure in exposures:
        value = getattr(exposure, how)
        if value is None:
            raise InputError(f"{exposure.name} has no {how}, but flux_scale is {how!r}. Give it, or scales=.")
        values.append(10 ** (0.4 * value) if how == "zeropoint" else value)
    return [float(values[0] / value) for value in values]


def _is_rate(unit: str) -> bool:
    return unit.replace(" ", "").lower().endswith(("/s", "/sec", "s-1", "s**-1", "s^-1"))


def make_frame(exposure: Exposure, to_grid: SampledMap, from_grid: Map, scale: float, *, subtract_sky: bool) -> Frame:
    """Bring an exposure to the units of the co-add.

    Fluxes are kept: values are multiplied by the area of an output pixel in pixels of the exposure (one number for the
    whole exposure: flat-fielded values are surface brightnesses, and drizzle averages them), and by `scale`.

    Parameters
    ----------
    exposure : Exposure
        With at least one usable pixel.
    to_grid : SampledMap
        From its pixels to output pixels.
    from_grid : callable
        The other way.
    scale : float
        Flux scale.
    subtract_sky : bool
        Whether to subtract the background.

    Returns
    -------
    Frame
    """
    exposure = with_variance(exposure)
    assert exposure.variance is not None
    data = exposure.data
    if subtract_sky:
        data = data - estimate_background(exposure).level
    ny, nx = exposure.shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, 17), np.linspace(0, ny - 1, 17))
    area = float(np.nanmedian(area_at(to_grid.map, np.stack([x.ravel(), y.ravel()], axis=1))))
    factor = exposure.data.dtype.type(scale / area)
    return Frame(
        name=exposure.name,
        data=data * factor,
        variance=exposure.variance * factor**2,
        mask=exposure.mask,
        usable=exposure.usable,
        to_grid=to_grid,
        from_grid=from_grid,
        exptime=exposure.exptime or 0.0,
        factor=float(factor),
    )


def sky_variance(frame: Frame) -> npt.NDArray[np.float64]:
    """Return the variance of the sky at every pixel, without the photon noise of sources.

    Weights from the pixels' own variances would count the faint wings of a star more than its core, and the noise of
    each pixel into its weight: the stars of the co-add would get the wrong shape and flux. So the variance is smoothed:
    medians in boxes, linear between them.
    """
    variance, usable = frame.variance, frame.usable
    ny, nx = variance.shape
    boxes = [max(1, round(n / _WEIGHT_BOX)) for n in (ny, nx)]
    edges = [np.linspace(0, n, count + 1).astype(int) for n, count in zip((ny, nx), boxes, strict=True)]
    overall = float(np.median(variance[usable]))
    medians = np.full(boxes, overall)
    for j in range(boxes[0]):
        for i in range(boxes[1]):
            box = slice(edges[0][j], edges[0][j + 1]), slice(edges[1][i], edges[1][i + 1])
            values = variance[box][usable[box]]
            if len(values) >= _ENOUGH:
                medians[j, i] = np.median(values)
    # position of each pixel among the middles of the boxes
    positions = [
        np.clip(np.interp(np.arange(n), (edge[:-1] + edge[1:] - 1) / 2, np.arange(count)), 0, count - 1)
        for n, edge, count in zip((ny, nx), edges, boxes, strict=True)
    ]
    grid = np.meshgrid(*positions, indexing="ij")
    return ndimage.map_coordinates(medians, grid, order=1, mode="nearest")


def match_levels(frames: Sequence[Frame], shape: tuple[int, int]) -> list[Frame]:
    """Subtract one number from each frame, so that their skies agree where they overlap.

    The medians of the frames in cells of the output grid are compared, pair by pair; the offsets are the least-squares
    solution for all median differences, with a mean of zero in each group of frames that overlap.

    Parameters
    ----------
    frames : sequence of Frame
        The exposures.
    shape : (int, int)
        Shape of the output grid.

    Returns
    -------
    list of Frame
    """
    stride = [max(1, int(np.sqrt(frame.data.size / _SAMPLES))) for frame in frames]
    step = max(1.0, *(_step(frame) * s for frame, s in zip(frames, stride, strict=True)))
    cell = _SAMPLES_PER_CELL * step  # output pixels
    cells = [_cell_medians(frame, s, cell, shape) for frame, s in zip(frames, stride, strict=True)]
    rows, differences, weights = [], [], []
    for k in range(len(frames)):
        for m in range(k):
            common = np.intersect1d(cells[k][0], cells[m][0], return_indices=True)
            if not len(common[0]):
                continue
            row = np.zeros(len(frames))
            row[k], row[m] = 1, -1
            rows.append(row)
            differences.append(np.median(cells[k][1][common[1]] - cells[m][1][common[2]]))
            weights.append(np.sqrt(len(common[0])))
    if not rows:
        return list(frames)
    weight = np.array(weights)
    offsets = np.linalg.lstsq(np.array(rows) * weight[:, None], np.array(differences) * weight, rcond=None)[0]
    return [
        replace(frame, data=frame.data - frame.data.dtype.type(offset))
        for frame, offset in zip(frames, offsets, strict=True)
    ]


def _step(frame: Frame) -> float:
    """Return the size of a pixel of the frame on the output grid, output pixels."""
    ny, nx = frame.to_grid.shape
    return float(np.sqrt(area_at(frame.to_grid.map, np.array([[(nx - 1) / 2, (ny - 1) / 2]]))[0]))


def _cell_medians(
    frame: Frame, stride: int, cell: float, shape: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Return the numbers of the cells that have enough samples of a frame, and the medians there."""
    rows = range(0, frame.data.shape[0], stride)
    xy = np.concatenate([frame.to_grid.rows(row, row + 1)[:, ::stride] for row in rows])
    inside = (xy >= -0.5).all(axis=2) & (xy[..., 0] < shape[1] - 0.5) & (xy[..., 1] < shape[0] - 0.5)
    inside &= frame.usable[::stride, ::stride]
    column, row = np.floor((xy[inside].T + 0.5) / cell).astype(np.int64)
    number = row * (int(shape[1] / cell) + 1) + column
    values = frame.data[::stride, ::stride][inside]
    order = np.lexsort((values, number))
    cells, first, count = np.unique(number[order], return_index=True, return_counts=True)
    enough = count >= _ENOUGH
    return cells[enough], values[order][first[enough] + count[enough] // 2]
