"""One exposure on its way into a co-add: placed on the grid, on the common flux scale and sky."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from skyloom._threads import map_bands, row_bands
from skyloom.background import estimate_background
from skyloom.errors import WcsError
from skyloom.exposure import BoolArray, FloatArray
from skyloom.noise import with_variance
from skyloom.resampling.maps import Map, SampledMap, XYArray, area_at
from skyloom.stacking.members import Member
from skyloom.stacking.memory import Window

_LARGEST_AREA = 1e8  # of a pixel in pixels of the other grid: a side of 10^4
_ENOUGH = 30  # pixels in a box whose median is used
_WEIGHT_BOX = 64  # pixels a side of the boxes in which the sky noise is measured
_REACH = 3.0  # pixels (of either grid) beyond the centre of a pixel that a drop or an interpolation may reach
_HALF = 0.55  # half a block, and what the curvature of a map within it may add


@dataclass(frozen=True, eq=False)
class Frame:
    """The pixels of an exposure in the units of the co-add.

    Parameters
    ----------
    data, variance : ndarray, shape (ny, nx)
        In the units of the co-add.
    mask : ndarray of uint32, shape (ny, nx)
        As in the exposure.
    usable : ndarray of bool, shape (ny, nx)
        Pixels that count.
    correlation : float
        `Exposure.correlation`: measured with the variance, if the exposure came without one.
    psf : object
        That of the exposure, if it has one.
    """

    data: FloatArray
    variance: FloatArray
    mask: npt.NDArray[np.uint32]
    usable: BoolArray
    correlation: float = 1.0
    psf: Any = None


@dataclass(frozen=True, eq=False)
class PlacedExposure:
    """An exposure and where it lies on the output grid: its maps there and back, flux scale and sky, without pixels.

    Parameters
    ----------
    member : Member
        The exposure.
    number : int
        Its number in the context.
    to_grid : SampledMap
        From its pixels to output pixels.
    from_grid : callable
        Returns the map back.
    blocks_xy : ndarray of float32, shape (blocks in y, blocks in x, 2)
        Output positions of the middles of the member's blocks.
    shape : (int, int)
        Of the output grid.
    factor : float
        What values are multiplied with: flux scale over area of an input pixel in output pixels (or 1).
    subtract_sky : bool
        Whether to subtract the background.
    sky : tuple of float
        Level in the units of the co-add, and its change across the grid along x and y, that is subtracted; see
        `skyloom.stacking.sky`.
    """

    member: Member
    number: int
    to_grid: SampledMap
    from_grid: Callable[[], Map]
    blocks_xy: npt.NDArray[np.float32]
    shape: tuple[int, int]
    factor: float
    subtract_sky: bool
    sky: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def name(self) -> str:
        """What messages call the exposure."""
        return self.member.name

    @property
    def scale(self) -> float:
        """Size of a pixel of the exposure on the output grid."""
        ny, nx = self.member.shape
        return float(np.sqrt(area_at(self.to_grid.map, np.array([[(nx - 1) / 2, (ny - 1) / 2]]))[0]))

    @cached_property
    def extent(self) -> tuple[float, float]:
        """Output pixels along x and y that a pixel of the exposure spans, at most."""
        ny, nx = self.member.shape
        middle = np.array([(nx - 1) / 2, (ny - 1) / 2])
        ends = self.to_grid.map(middle + np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5]]))
        spans = [np.abs(ends[1] - ends[0]), np.abs(ends[3] - ends[2])]
        for axis in (0, 1):
            distance = np.diff(_middles(self.member.shape[axis], self.member.step))
            if len(distance):
                steps = np.abs(np.diff(self.blocks_xy, axis=axis)) / np.expand_dims(distance, (1 - axis, 2))
                spans[1 - axis] = np.fmax(spans[1 - axis], np.fmax.reduce(steps, axis=(0, 1)))
        x, y = np.nan_to_num(spans[0] + spans[1], nan=1.0)
        return float(x), float(y)

    @property
    def margin(self) -> tuple[float, float]:
        """Output pixels along x and y that a block reaches beyond its middle, with what its drops reach."""
        x, y = ((_HALF * self.member.step + _REACH) * max(extent, 1.0) for extent in self.extent)
        return x, y

    def window(self) -> Window | None:
        """Return the part of the output grid that the exposure can reach; None if there is none."""
        xy = self.blocks_xy[np.isfinite(self.blocks_xy).all(axis=2)]
        if not len(xy):
            return None
        low = np.maximum(np.floor(xy.min(axis=0) - self.margin), 0)
        high = np.minimum(np.ceil(xy.max(axis=0) + self.margin) + 1, self.shape[::-1])
        if (low >= high).any():
            return None
        return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))

    def part_for(self, window: Window) -> Window | None:
        """Return the rows and columns of the exposure that can reach a window of the output grid."""
        x, y = self.blocks_xy[..., 0], self.blocks_xy[..., 1]
        rows, columns = window
        across, along = self.margin
        near = (x > columns.start - 0.5 - across) & (x < columns.stop - 0.5 + across)
        near &= (y > rows.start - 0.5 - along) & (y < rows.stop - 0.5 + along)
        if not near.any():
            return None
        part = []
        for axis, n in ((1, self.member.shape[0]), (0, self.member.shape[1])):
            hit = np.flatnonzero(near.any(axis=axis))
            part.append(slice(int(hit[0]) * self.member.step, min(int(hit[-1] + 1) * self.member.step, n)))
        return part[0], part[1]

    def overlaps(self) -> bool:
        """Return whether a usable pixel (or a block that has one) lies on the output grid."""
        ny, nx = self.shape
        x, y = self.blocks_xy[..., 0], self.blocks_xy[..., 1]
        half = self.member.step / 2 if self.member.step > 1 else 0.0
        across, along = (0.5 + half * extent for extent in self.extent)
        inside = (x > -across) & (x < nx - 1 + across) & (y > -along) & (y < ny - 1 + along)
        return bool((inside & self.member.blocks).any())

    def load(self) -> Frame:
        """Read the pixels and bring them to the units of the co-add."""
        exposure = with_variance(self.member.load())
        assert exposure.variance is not None
        data = exposure.data
        if self.subtract_sky:
            data = data - estimate_background(exposure).level
        factor = data.dtype.type(self.factor)
        data = data * factor
        if any(self.sky):
            self._subtract_plane(data)
        variance = exposure.variance * factor**2
        return Frame(data, variance, exposure.mask, exposure.usable, exposure.correlation, exposure.psf)

    def _subtract_plane(self, data: FloatArray) -> None:
        level, slope_x, slope_y = self.sky
        if not (slope_x or slope_y):
            data -= data.dtype.type(level)
            return

        def subtract(band: tuple[int, int]) -> None:
            u, v = normalised(self.to_grid.rows(*band), self.shape)
            plane = level + slope_x * u + slope_y * v
            data[slice(*band)] -= np.where(np.isfinite(plane), plane, 0.0).astype(data.dtype)

        map_bands(subtract, row_bands(len(data)))


def normalised(xy: XYArray, shape: tuple[int, int]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return output positions scaled to -1 ... 1 along the longer side of the grid, from its middle."""
    ny, nx = shape
    half = max(nx, ny) / 2
    return (xy[..., 0] - (nx - 1) / 2) / half, (xy[..., 1] - (ny - 1) / 2) / half


def place(member: Member, shape: tuple[int, int], to_grid: Map, from_grid: Callable[[], Map]) -> PlacedExposure:
    """Put an exposure onto the grid; its number, factor and sky follow later."""
    sampled = SampledMap(to_grid, member.shape)
    middles = [_middles(n, member.step) for n in member.shape]
    xy = np.concatenate([sampled.rows(int(row), int(row) + 1)[:, middles[1]] for row in middles[0]])
    return PlacedExposure(member, -1, sampled, from_grid, xy.astype(np.float32), shape, 1.0, subtract_sky=False)


def _middles(size: int, step: int) -> npt.NDArray[np.int64]:
    """Return the middle pixels of the blocks along an axis."""
    return np.minimum(np.arange(0, size, step) + (step - 1) // 2, size - 1)


def area_factor(placed: PlacedExposure) -> float:
    """Return the area of an output pixel in pixels of the exposure, its median over the exposure.

    Raises
    ------
    WcsError
        That is no area: the map sends all to a point or a line, or to pixels of an absurd size.
    """
    ny, nx = placed.member.shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, 17), np.linspace(0, ny - 1, 17))
    area = area_at(placed.to_grid.map, np.stack([x.ravel(), y.ravel()], axis=1))
    area = area[np.isfinite(area)]
    median = float(np.median(area)) if area.size else 0.0
    if not 1 / _LARGEST_AREA <= median <= _LARGEST_AREA:
        raise WcsError(
            f"A pixel of {placed.member.name} covers {median:.3g} pixels of the output grid; from "
            f"{1 / _LARGEST_AREA:g} to {_LARGEST_AREA:g} can be co-added. Correct its WCS or map, or leave it out.",
            name=placed.member.name,
            area=median,
        )
    return 1 / median


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
    result = np.empty((ny, nx))

    def fill(band: tuple[int, int]) -> None:
        grid = np.meshgrid(positions[0][slice(*band)], positions[1], indexing="ij")
        result[slice(*band)] = ndimage.map_coordinates(medians, grid, order=1, mode="nearest")

    map_bands(fill, row_bands(ny, 256))
    return result
