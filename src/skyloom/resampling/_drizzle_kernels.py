"""Hand one image to a drizzle kernel, on all threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skyloom import _kernels
from skyloom._threads import map_bands, num_threads


@dataclass(frozen=True, eq=False)
class Placing:
    """How an image lies on the output frame.

    Parameters
    ----------
    pixmap : ndarray of float64, shape (ny, nx, 2)
        Output position of the centre of each input pixel.
    window : tuple of int
        Part of the image that is used, half open: (x0, x1, y0, y1).
    frame : tuple of int
        Shape (ny, nx) of the output.
    pixfrac : float
        Side of a drop in input pixels.
    scale_ratio : float or None
        Side of an output pixel in input pixels.
    n_squares : int
        Planes that are averaged with squared weights.
    """

    pixmap: npt.NDArray[np.float64]
    window: tuple[int, int, int, int]
    frame: tuple[int, ...]
    pixfrac: float
    scale_ratio: float | None
    n_squares: int

    @property
    def tile_edge(self) -> int:
        """Edge of the tiles in which the output is worked on.

        It depends on the problem only. The sums of a tile shall be small next to the output, and stay in the cache.
        """
        cells = self.frame[0] * self.frame[1]
        if cells < 1 << 20:
            return 128
        if self.n_squares > 0:
            return 192
        return 256 if cells < 1 << 24 else 384


Runner = Callable[[_kernels.DrizzleInput, _kernels.DrizzleOutput, Placing], npt.NDArray[np.int32]]


def square(source: _kernels.DrizzleInput, target: _kernels.DrizzleOutput, placing: Placing) -> npt.NDArray[np.int32]:
    """Drizzle with the square kernel; return how many pixels of each row of the window contributed."""
    footprint = _kernels.DrizzleFootprint(
        placing.pixmap,
        placing.window,
        placing.frame,
        half=placing.pixfrac / 2,
        margin=0.0,
        unit=1 / (placing.scale_ratio or 1.0),
    )
    hits = np.zeros(placing.window[3] - placing.window[2], np.int32)
    # tiles and blocks are taken from a queue by whichever thread is free; each is written by one thread only
    blocks, tiles = np.zeros(1, np.int64), np.zeros(1, np.int64)
    workers = range(num_threads())
    map_bands(lambda _: footprint.find(blocks), workers)
    map_bands(lambda _: _kernels.drizzle_square(footprint, source, target, placing.tile_edge, hits, tiles), workers)
    return hits


KERNELS: dict[str, Runner] = {"square": square}
