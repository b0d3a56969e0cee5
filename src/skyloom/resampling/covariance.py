"""The sums from which the covariances of a drizzled image follow, collected image by image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom import _kernels
from skyloom._threads import map_bands, row_bands
from skyloom.errors import InputError, ShapeError
from skyloom.exposure import FloatArray
from skyloom.resampling._drizzle_planes import as_array, positive, real_plane, same_shape, strided, window_bounds
from skyloom.resampling.correlation import CovarianceMap
from skyloom.resampling.maps import SampledMap

_CANCELLED = 0.05
"""Part of the largest weight in a block, below which the weight of a kernel with negative shares has cancelled."""
_LEFT_OUT = 3e-3
"""Part of the drops that may be wider than the lags reach: tears in a pixel map shall not cost memory."""


@dataclass(frozen=True)
class Spreading:
    """How the pixels of an image are spread over the output; the names are those of `Drizzle.add_image`.

    Parameters
    ----------
    kernel : str
        Kernel of the drizzle.
    pixfrac : float
        Side of a drop in units of an input pixel.
    pixel_scale_ratio : float
        Side of an output pixel in units of an input pixel.
    iscale, wht_scale : float
        Factors on data (squared: on variances) and weights.
    window : tuple of int, optional
        Part of the image that is used, half open: (x0, x1, y0, y1).
    flux_conserving : bool
        The shares of a pixel are divided by their sum (gaussian and Lanczos kernels).
    """

    kernel: str = "square"
    pixfrac: float = 1.0
    pixel_scale_ratio: float = 1.0
    iscale: float = 1.0
    wht_scale: float = 1.0
    window: tuple[int, int, int, int] | None = None
    flux_conserving: bool = False

    def __post_init__(self) -> None:
        if self.kernel.lower() not in _kernels.DRIZZLE_KERNELS:
            raise InputError(
                f"Kernel '{self.kernel}' is unknown; one of {', '.join(_kernels.DRIZZLE_KERNELS)} is needed.",
                kernel=self.kernel,
            )
        if self.kernel.lower() in ("square", "turbo", "gaussian"):
            positive(self.pixfrac, "pixfrac")
        positive(self.pixel_scale_ratio, "pixel_scale_ratio")


class CovarianceSums:
    """Sums of products of shares over all images, for the covariances between the pixels of a drizzled image.

    With the share a_io of input pixel i in output pixel o, weights w and variances v,

        W_o W_o' Cov(o, o') = sum_i a_io a_io' w_i^2 v_i,    W_o = sum_i a_io w_i.

    The right side adds up image by image; `finish` divides by the weights of the finished drizzle. It is exact for
    every pixel o whose sums are kept. For averages over blocks that is one pixel out of `every`, on a lattice that is
    as even as it can be (a rank-1 lattice: x = step y modulo every): how drops lie on the output pixels changes
    smoothly or periodically from pixel to pixel, and a lattice without short periods averages both.

    Parameters
    ----------
    shape : tuple of int
        Shape (ny, nx) of the output.
    block : int
        Side of the blocks over which covariances are averaged, in output pixels. 1: no average, every pixel has its
        own (memory: 8 bytes times the number of lags, 15 for drops of up to 3 x 3 output pixels, for each pixel).
    every : int, optional
        Pixels out of which one is used. Best are primes. By default 13, or 1 for blocks smaller than 32 pixels.

    Raises
    ------
    InputError
        An argument makes no sense.
    """

    def __init__(self, shape: tuple[int, ...], *, block: int = 64, every: int | None = None) -> None:
        if every is None:
            every = 13 if block >= 32 else 1
        if block < 1 or every < 1 or every > max(1, block * block // 16):
            raise InputError(
                f"Blocks of {block} x {block} pixels, of which one out of {every} is used: both numbers must be at "
                "least 1, and 16 pixels are needed in a block that is not used fully.",
                block=block,
                every=every,
            )
        if len(shape) != 2 or min(shape) < 1:
            raise ShapeError(f"The output has the shape {shape}; (ny, nx) is needed.", found=shape)
        self.shape = (int(shape[0]), int(shape[1]))
        self.block = int(block)
        self._every, self._step = int(every), _even_step(int(every))
        self._sums = np.zeros((self.shape[0], -(-self.shape[1] // self._every), 1, 1))
        self._signed = False  # whether any image had shares of both signs

    def add_image(
        self,
        variance: Any,
        pixmap: Any,
        *,
        data: Any = None,
        weight_map: Any = None,
        spreading: Spreading | None = None,
    ) -> None:
        """Add the products of one image.

        Parameters
        ----------
        variance : array_like, shape (ny, nx), or None
            Variance of each input pixel; None: 1 for all.
        pixmap : array_like of float, shape (ny, nx, 2), or SampledMap
            Output position (X, Y) of the centre of each input pixel. Of a `SampledMap` only the window is expanded.
        data : array_like, shape (ny, nx), optional
            The image, of which only pixels that are not finite matter: they count for nothing.
        weight_map : array_like, shape (ny, nx), optional
            Weight of each pixel; 1 without it.
        spreading : Spreading, optional
            Sizes, factors and bounds.

        Raises
        ------
        InputError
            An argument cannot be used; `ShapeError` if planes differ in shape.
        """
        spreading = spreading or Spreading()
        if isinstance(pixmap, SampledMap) and spreading.window is not None:
            x0, x1, y0, y1 = spreading.window
            cut = np.s_[y0:y1, x0:x1]
            data, weight_map, variance = (
                p if p is None else np.asanyarray(p)[cut] for p in (data, weight_map, variance)
            )
            pixmap, spreading = pixmap.rows(y0, y1)[:, x0:x1], replace(spreading, window=None)
        elif isinstance(pixmap, SampledMap):
            pixmap = pixmap.pixmap()
        positions = strided(as_array(pixmap, "pixmap", np.float64))
        if positions.ndim != 3 or positions.shape[2] != 2 or 0 in positions.shape:
            raise ShapeError("'pixmap' must have the shape (ny, nx, 2).", found=positions.shape)
        ny, nx = positions.shape[:2]
        planes: list[FloatArray | None] = []
        for what, plane in (("data", data), ("weight_map", weight_map), ("variance", variance)):
            planes.append(None if plane is None else real_plane(plane, what))
            if plane is not None:
                same_shape(planes[-1], (ny, nx), what)  # type: ignore[arg-type]
        if planes[2] is not None and np.fmin.reduce(planes[2], axis=None) < 0:
            raise InputError(f"The smallest variance is {np.nanmin(planes[2])}; variances must not be negative.")
        scale = positive(spreading.iscale, "iscale") * positive(spreading.wht_scale, "wht_scale")
        kernel = spreading.kernel.lower()
        image = _kernels.SpreadImage(
            positions,
            spreading.window or window_bounds((ny, nx), None, None, None, None),
            *planes,
            kernel=_kernels.DRIZZLE_KERNELS.index(kernel),
            pixfrac=1.0 if kernel.startswith("lanczos") else spreading.pixfrac,
            ratio=positive(spreading.pixel_scale_ratio, "pixel_scale_ratio"),
            normalised=spreading.flux_conserving and kernel[0] in "gl",
            weight_scale=scale,  # squared with the weight, as iscale is for variances
        )
        low, high, spans = _find_rows(image, spreading.window or (0, nx, 0, ny))
        self._make_room(*(_reach(counts) for counts in spans))
        self._signed |= kernel.startswith("lanczos")
        map_bands(
            lambda band: image.sum_products(low, high, self.shape, self._every, self._step, band, self._sums),
            row_bands(self.shape[0], 128),
        )

    def _make_room(self, reach_x: int, reach_y: int) -> None:
        """Widen the sums to lags of at least this reach."""
        old_y, old_x = self._sums.shape[2] - 1, self._sums.shape[3] // 2
        x, y = max(reach_x, old_x), max(reach_y, old_y)
        if (x, y) != (old_x, old_y):
            self._sums = np.pad(self._sums, ((0, 0), (0, 0), (0, y - old_y), (x - old_x, x - old_x)))

    def finish(self, out_wht: npt.ArrayLike) -> CovarianceMap:
        """Return the covariances, given the weights of the finished drizzle.

        Parameters
        ----------
        out_wht : array_like, shape (ny, nx)
            The sum of weights of all images, as `Drizzle.out_wht`.

        Raises
        ------
        ShapeError
            The weights have another shape than the output.
        """
        weight = np.asarray(out_wht)
        if weight.shape != self.shape:
            raise ShapeError(
                f"'out_wht' has the shape {weight.shape}; that of the output, {self.shape}, is needed.",
                found=weight.shape,
                needed=self.shape,
            )
        bands = row_bands(self.shape[0], self.block * max(1, 64 // self.block))
        return CovarianceMap(
            np.concatenate(map_bands(lambda band: self._averages(weight, *band), bands)), self.block, self.shape
        )

    def _averages(self, weight: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[np.float64]:
        """Return the mean covariances of the blocks in some rows of the output."""
        nx, block, every = self.shape[1], self.block, self._every
        sums = self._sums[start:stop]
        reach_y, reach_x = sums.shape[2] - 1, sums.shape[3] // 2
        y = np.arange(stop - start)[:, None]
        x = (y + start) * self._step % every + np.arange(sums.shape[1]) * every
        down, across = -(-(stop - start) // block), -(-nx // block)
        cell = (y // block * across + np.minimum(x, nx - 1) // block).ravel()
        near = weight[start : stop + reach_y].astype(np.float64)
        if block > 1 and self._signed:
            # shares of both signs: where they cancel, noise has no bound, and one pixel would outweigh its block
            edges = np.arange(0, nx, block)
            top = np.repeat(np.maximum.reduceat(near[: stop - start].max(axis=0), edges), block)[:nx]
            near[near < _CANCELLED * top] = 0
        # a margin of zeros, so that neighbours can be looked up everywhere
        near = np.pad(near, ((0, reach_y + stop - start - len(near)), (reach_x, reach_x + every)))
        place = y * near.shape[1] + x + reach_x
        own = near.take(place)
        result = np.zeros((down * across, reach_y + 1, 2 * reach_x + 1))
        for dy in range(reach_y + 1):
            for dx in range(-reach_x if dy > 0 else 0, reach_x + 1):
                pairs = own * near.take(place + (dy * near.shape[1] + dx))
                known = pairs != 0
                np.divide(sums[:, :, dy, dx + reach_x], pairs, out=pairs, where=known)
                total = np.bincount(cell, pairs.ravel(), len(result))
                result[:, dy, dx + reach_x] = total / np.maximum(np.bincount(cell, known.ravel(), len(result)), 1)
        result[:, 0, :reach_x] = result[:, 0, :reach_x:-1]
        return result.reshape(down, across, reach_y + 1, 2 * reach_x + 1)


def total_variance(variances: Iterable[FloatArray | None]) -> FloatArray | None:
    """Return the sum of variance planes of different sources of noise; None if there is none."""
    planes = [plane for plane in variances if plane is not None]
    if len(planes) < 2:
        return planes[0] if planes else None
    with np.errstate(invalid="ignore"):
        return np.sum(planes, axis=0)


def _even_step(every: int) -> int:
    """Return the step for which the shortest vector of the lattice reciprocal to x = step y (mod every) is longest."""

    def shortest(step: int) -> int:
        k = np.arange(1, every)
        a, b = k, k * step % every
        return int(np.min(np.minimum(a, every - a) ** 2 + np.minimum(b, every - b) ** 2, initial=every * every))

    return max(range(every), key=shortest)


def _find_rows(
    image: _kernels.SpreadImage, window: tuple[int, int, int, int]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return the output rows that the batches of the image reach, and how many drops are how wide and how high."""
    x0, x1, y0, y1 = window
    low = np.empty((y1 - y0, -(-(x1 - x0) // _kernels.SPREAD_BATCH)), np.int32)
    high = np.empty_like(low)

    def find(band: tuple[int, int]) -> npt.NDArray[np.int64]:
        spans = np.zeros((2, _kernels.SPREAD_SPANS), np.int64)
        image.rows_reached(low, high, spans, band[0] + y0, band[1] + y0)
        return spans

    return low, high, np.sum(map_bands(find, row_bands(y1 - y0, 256)), axis=0)


def _reach(counts: npt.NDArray[np.int64]) -> int:
    """Return the largest lag that all but a negligible part of the drops keep within."""
    total = np.cumsum(counts)
    return int(np.searchsorted(total, (1 - _LEFT_OUT) * total[-1]))
