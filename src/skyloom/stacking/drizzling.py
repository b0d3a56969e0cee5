"""The sums of a co-add, tile by tile.

The output is cut into tiles of a fixed size. The memory that may be used decides how many of them are worked on at a
time, and hence how often an exposure is read; what is computed for a tile is the same: the result does not depend on
the budget, not in one bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError
from skyloom.exposure import UNUSABLE, BoolArray, MaskBit
from skyloom.resampling._drizzle_map import any_finite
from skyloom.resampling.correlation import CovarianceMap
from skyloom.resampling.covariance import CovarianceSums, Spreading
from skyloom.resampling.drizzle import Drizzle
from skyloom.resampling.maps import SampledMap
from skyloom.resampling.overlap import spread_bits
from skyloom.stacking.frames import Frame, PlacedExposure, sky_variance
from skyloom.stacking.memory import Window, window_shape
from skyloom.stacking.options import TILE, CoaddOptions

_PROBED_ROWS = 4  # the noise correlation is taken from every so manieth row
_BAND = 256  # rows of an exposure whose masked pixels are carried to the grid at a time

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Weighted:
    """A frame with its weights.

    Parameters
    ----------
    placed : PlacedExposure
        Where it lies.
    frame : Frame
        Its pixels.
    outliers : ndarray of bool, or None
        Pixels that are left out.
    weight : ndarray, shape (ny, nx)
        Weight of each pixel, 0 where it is not used.
    dq : ndarray of uint32, shape (ny, nx)
        Bits of the pixels that are used.
    noise : float
        Median of weight times variance, times the noise correlation of the exposure: the variance that means of many
        of its pixels tell of, in units of the inverse weight.
    """

    placed: PlacedExposure
    frame: Frame
    outliers: BoolArray | None
    weight: Array
    dq: npt.NDArray[np.uint32]
    noise: float

    def bits(self, part: Window) -> npt.NDArray[np.uint32]:
        """Bits of some pixels, with those of the outliers."""
        mask = self.frame.mask[part]
        return (
            mask if self.outliers is None else np.where(self.outliers[part], mask | np.uint32(MaskBit.COSMIC_RAY), mask)
        )


def weighted(placed: PlacedExposure, frame: Frame, outliers: BoolArray | None, options: CoaddOptions) -> Weighted:
    """Return a frame with the weights that the options ask for."""
    use = frame.usable if outliers is None else frame.usable & ~outliers
    values: Any = 1.0
    if options.weight == "ivm":
        values = 1 / sky_variance(frame)
    elif options.weight == "exptime":
        # data of exposure time t were scaled by 1/t: the weight is that of the counts
        values = float(placed.member.exptime or 0.0)
    weight: Array = np.where(use, values, 0.0).astype(frame.data.dtype)
    noise = frame.correlation * float(np.median((weight * frame.variance)[use])) if use.any() else 0.0
    return Weighted(placed, frame, outliers, weight, np.where(use, frame.mask, np.uint32(0)), noise)


def check_weights(placed: Sequence[PlacedExposure], options: CoaddOptions) -> None:
    """Raise if an exposure lacks what its weight needs.

    Raises
    ------
    InputError
        Naming the exposure.
    """
    for one in placed:
        if options.weight == "exptime" and not (one.member.exptime or 0) > 0:
            raise InputError(f"{one.name} has no exposure time, but weight is 'exptime'.", name=one.name)


@dataclass(frozen=True, eq=False)
class TilePlanes:
    """The planes of a tile, as they go into the output."""

    data: Array
    variance: Array
    weight: Array
    dq: npt.NDArray[np.uint32]
    context: npt.NDArray[np.int32]
    culprits: npt.NDArray[np.uint32]


class TileSums:
    """Running sums of one tile.

    Parameters
    ----------
    window : Window
        The tile on the output grid.
    options : CoaddOptions
        How.
    planes : TilePlanes
        To go on with, changed in place; of zeros at the start.
    correlation : float
        Noise correlation of what has been added before.
    """

    def __init__(self, window: Window, options: CoaddOptions, planes: TilePlanes, correlation: float) -> None:
        self.window, self.planes = window, planes
        self._options = options
        shape = window_shape(window)
        self._covariance = None if options.covariance is None else CovarianceSums(shape, block=options.covariance)
        self.earlier_weight = planes.weight.copy() if planes.weight.any() else None
        # With W_o the weight of output pixel o and a_io the share of drop i in it, sum_o W_o d_o = sum_i w_i d_i (sum_o
        # a_io) = sum_i w_i d_i: the variance of this, sum_i w_i^2 v_i c_i with the correlation c_i of the noise of the
        # input, is kept as sum_o sum_i a_io w_i (w_i v_i c_i)
        before = planes.weight[::_PROBED_ROWS].astype(np.float64)
        self._total = correlation * planes.variance[::_PROBED_ROWS] * before**2

    def add(self, image: Weighted) -> float:
        """Drizzle a frame into the tile; return the weight that it adds, on the probed rows."""
        placed, frame, planes = image.placed, image.frame, self.planes
        part = placed.part_for(self.window)
        if part is None:
            return 0.0
        to_tile = placed.to_grid.shifted(-self.window[1].start, -self.window[0].start)
        rows, columns = part
        bounds = columns.start, columns.stop, rows.start, rows.stop
        if not any_finite(to_tile, bounds):
            return 0.0  # beyond the border of the map
        _carry_bits(image.bits(part), to_tile, part, planes.culprits)
        if not (image.weight[part] > 0).any():
            return 0.0
        before = planes.weight[::_PROBED_ROWS].astype(np.float64)
        drizzle = Drizzle(
            fillval=0.0,
            out_img=planes.data,
            out_wht=planes.weight,
            out_ctx=planes.context,
            out_img2=[planes.variance],
            out_dq=planes.dq,
            exptime=1.0 if before.any() or planes.weight.any() else 0.0,
            begin_ctx_id=placed.number,
        )
        drizzle.add_image(
            frame.data,
            exptime=1.0,
            pixmap=to_tile,
            weight_map=image.weight,
            data2=[frame.variance],
            dq=image.dq,
            pixfrac=self._options.pixfrac,
            xmin=columns.start,
            xmax=max(columns.stop - 1, 1),  # 0 means no limit
            ymin=rows.start,
            ymax=max(rows.stop - 1, 1),
        )
        if self._covariance is not None:
            spreading = Spreading(pixfrac=self._options.pixfrac, window=bounds)
            self._covariance.add_image(frame.variance, to_tile, weight_map=image.weight, spreading=spreading)
        added = planes.weight[::_PROBED_ROWS] - before
        self._total += added * image.noise
        return float(added.sum())

    def covariance(self) -> CovarianceMap | None:
        """Return the covariances of what was added here (in units of all weights)."""
        return None if self._covariance is None else self._covariance.finish(self.planes.weight)

    def noise_sums(self) -> tuple[float, float]:
        """Return the sums, weighted by W^2, of the variance of means of many pixels and of that of single pixels."""
        # weighted so that the ragged border, with its few drops, counts little
        weight = self.planes.weight[::_PROBED_ROWS].astype(np.float64)
        return float(self._total.sum()), float((self.planes.variance[::_PROBED_ROWS] * weight**2).sum())


def _carry_bits(
    mask: npt.NDArray[np.uint32], to_tile: SampledMap, part: Window, culprits: npt.NDArray[np.uint32]
) -> None:
    """Add the bits of the unusable pixels of a part of an exposure to the output pixels around them."""
    rows, columns = part
    for start in range(0, len(mask), _BAND):
        band = mask[start : start + _BAND]
        if (band & np.uint32(UNUSABLE)).any():
            xy = to_tile.rows(rows.start + start, rows.start + start + len(band))[:, columns]
            culprits |= spread_bits(band, xy, (culprits.shape[0], culprits.shape[1]))


def tiles_of(shape: tuple[int, int]) -> list[Window]:
    """Return the tiles of an output grid, row by row."""
    ny, nx = shape
    return [
        (slice(y, min(y + TILE, ny)), slice(x, min(x + TILE, nx)))
        for y in range(0, ny, TILE)
        for x in range(0, nx, TILE)
    ]


def tile_bytes(shape: tuple[int, int], itemsize: int, context_planes: int, *, covariance: bool) -> int:
    """Return the memory that the sums of a tile take."""
    cells = min(shape[0], TILE) * min(shape[1], TILE)
    # data, variance, weight; DQ, culprits; probed weights and totals; work space of a drizzle
    per_cell = 3 * itemsize + 8 + 4 * context_planes + 2 * 8 // _PROBED_ROWS + 4
    return cells * (per_cell + (12 if covariance else 0))


def add_to_tiles(
    sums: Sequence[TileSums], placed: Sequence[PlacedExposure], image_of: Callable[[PlacedExposure], Weighted]
) -> npt.NDArray[np.float64]:
    """Add all exposures to some tiles, each read once.

    Returns
    -------
    ndarray of float64, shape (exposures, tiles)
        The weights they add.
    """
    shares = np.zeros((len(placed), len(sums)))
    for k, one in enumerate(placed):
        touched = [t for t, tile in enumerate(sums) if one.part_for(tile.window) is not None]
        if not touched:
            continue
        image = image_of(one)
        for t in touched:
            shares[k, t] = sums[t].add(image)
    return shares
