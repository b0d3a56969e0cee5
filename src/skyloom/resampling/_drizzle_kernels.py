"""Choose a drizzle kernel, and hand one image to it, on all threads."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from skyloom import _kernels
from skyloom._threads import map_bands, num_threads
from skyloom.errors import InputError
from skyloom.resampling._drizzle_map import Positions, rows_of

# A drop of 4096 x 4096 output pixels for every input pixel: no image is drizzled with that on purpose.
WIDEST_DROP = 4096

# Narrower drops vanish in the rounding of positions: no output pixel is 1e9 input pixels wide.
NARROWEST_DROP = 1e-9

# Below this the drops of the reference are points, whatever the kernel.
SMALLEST_PIXFRAC = 1e-3


@dataclass(frozen=True, eq=False)
class DrizzleGeometry:
    """Where the drops of an image fall on the output: positions, sizes, and which pixels and planes there are.

    Parameters
    ----------
    pixmap : ndarray of float64, shape (ny, nx, 2), or MapGrid
        Output position of the centre of each input pixel.
    window : tuple of int
        Part of the image that is used, half open: (x0, x1, y0, y1).
    frame : tuple of int
        Shape (ny, nx) of the output.
    pixfrac : float
        Side of a drop in input pixels.
    scale_ratio : float
        Side of an output pixel in input pixels.
    n_squares : int
        Planes that are averaged with squared weights.
    normalised : bool
        Whether the shares of a drop are divided by their sum (gaussian and Lanczos kernels only).
    n_errors : int
        Planes, besides the data, that are averaged like the data.
    """

    pixmap: npt.NDArray[np.float64] | _kernels.MapGrid
    window: tuple[int, int, int, int]
    frame: tuple[int, ...]
    pixfrac: float
    scale_ratio: float
    n_squares: int
    normalised: bool
    n_errors: int = 0

    @property
    def tile_edge(self) -> int:
        """Edge of the tiles in which the output is worked on.

        It depends on the problem only. The sums of a tile (8 bytes for each plane of sums and cell) take at most
        3.5 % of the memory of the output planes (4 bytes a cell, for images of some 300 x 300 and more), and are not
        much larger than a cache.
        """
        cells, sums = self.frame[0] * self.frame[1], 2 + self.n_squares + self.n_errors
        edge = math.isqrt(int(0.035 * cells * 4 * (sums + 1) / (8 * sums)))
        return max(64, min(edge // 16 * 16, 384 if sums == 2 else 256))


def find_footprint(kernel: str, geometry: DrizzleGeometry) -> _kernels.DrizzleFootprint:
    """Find, on all threads, which cells of the output the pieces of an image reach."""
    if kernel == "square":
        half, margin, unit = geometry.pixfrac / 2, 0.0, 1 / geometry.scale_ratio
    else:
        half, margin, unit = 0.0, _kernel_of(kernel, geometry).reach, 1.0
    footprint = _kernels.DrizzleFootprint(
        geometry.pixmap, geometry.window, geometry.frame, half=half, margin=margin, unit=unit
    )
    blocks = np.zeros(1, np.int64)  # taken from a queue by whichever thread is free
    map_bands(lambda _: footprint.find(blocks), range(num_threads()))
    return footprint


def drizzle(
    kernel: str,
    source: _kernels.DrizzleInput,
    target: _kernels.DrizzleOutput,
    geometry: DrizzleGeometry,
    footprint: _kernels.DrizzleFootprint | None = None,
) -> npt.NDArray[np.int32]:
    """Drizzle an image, on all threads; return how many pixels of each row of the window contributed.

    Parameters
    ----------
    kernel : str
        As `kernel_in_use` has it.
    source, target : DrizzleInput, DrizzleOutput
        The planes of the image and of the output.
    geometry : DrizzleGeometry
        How the image lies on the output.
    footprint : DrizzleFootprint, optional
        What `find_footprint` has found.
    """
    if footprint is None:
        footprint = find_footprint(kernel, geometry)
    hits = np.zeros(geometry.window[3] - geometry.window[2], np.int32)
    if kernel == "square":
        run = _kernels.drizzle_square
    else:
        run = partial(_kernels.drizzle_separable, _kernel_of(kernel, geometry))
    # each tile is written by one thread only; a thread starts with the tiles of its part of the output
    tiles = np.zeros(num_threads(), np.int64)
    map_bands(lambda part: run(footprint, source, target, geometry.tile_edge, hits, tiles, part), range(len(tiles)))
    return hits


def _kernel_of(kernel: str, geometry: DrizzleGeometry) -> _kernels.DrizzleKernel:
    return _separable_kernel(kernel, geometry.pixfrac, geometry.scale_ratio, geometry.normalised)


def _separable_kernel(name: str, pixfrac: float, scale_ratio: float, normalised: bool) -> _kernels.DrizzleKernel:
    # the size of a Lanczos kernel does not depend on pixfrac, and a point has none
    size = pixfrac if name in ("turbo", "gaussian") else 1.0
    return _kernels.DrizzleKernel(name, pixfrac=size, scale_ratio=scale_ratio, normalised=normalised)


def kernel_in_use(name: str, pixfrac: float, flux_conserving: bool, level: int = 3) -> str:
    """Return the kernel's name in lower case, 'point' where drops have no size; warn as the reference does.

    Parameters
    ----------
    name : str
        One of the names that `Drizzle` takes, in any case.
    pixfrac : float
        Side of a drop in input pixels.
    flux_conserving : bool
        Whether shares are normalised, so that all kernels conserve flux.
    level : int
        Whose line a warning names: 3 is the caller of the caller.
    """
    name = name.lower()
    loses_flux = name not in ("square", "point", "turbo") and not flux_conserving
    if loses_flux:
        warnings.warn(f"Kernel '{name}' is not a flux-conserving kernel.", Warning, stacklevel=level)
    if pixfrac <= SMALLEST_PIXFRAC:
        warnings.warn("Kernel reset to 'point' due to input 'pixfrac' being too small.", Warning, stacklevel=level)
        return "point"
    if name.startswith("lanczos") and pixfrac != 1:
        warnings.warn(
            "In lanczos kernel, pixel_fraction is ignored: 'pixfrac' has no effect.", Warning, stacklevel=level
        )
    return name


def drop_scale(
    name: str, pixfrac: float, scale_ratio: float | None, pixmap: Positions, window: tuple[int, int, int, int]
) -> float:
    """Return the side of an output pixel in input pixels, from `pixmap` in the window if `scale_ratio` is None.

    Raises
    ------
    InputError
        Drops would be absurdly wide or narrow.
    """
    if name in ("square", "point"):
        return scale_ratio or 1.0
    scale = estimate_scale_ratio(pixmap, window) if scale_ratio is None else scale_ratio
    width = 2 * _separable_kernel(name, pixfrac, scale, normalised=False).reach
    if not NARROWEST_DROP <= width <= WIDEST_DROP:
        raise InputError(
            f"With pixel_scale_ratio = {scale:.4g} and pixfrac = {pixfrac:.4g} each drop of the kernel '{name}' is "
            f"{width:.4g} output pixels wide; from {NARROWEST_DROP:g} to {WIDEST_DROP} are allowed. "
            "'pixel_scale_ratio' is the side of an output pixel in units of an input pixel.",
            width=width,
            pixel_scale_ratio=scale,
        )
    return scale


def estimate_scale_ratio(pixmap: Positions, window: tuple[int, int, int, int] | None = None) -> float:
    """Return the side of an output pixel in units of an input pixel, as a pixel map has it.

    This is 1 / sqrt(abs(det D)), with D the derivative of output positions by input pixels: the median over the finite
    and regular places of a grid of about 64 x 64 pixels. An image of one row or column gives the inverse of
    its pixels' distance, a single pixel (or a map without any such place) gives 1.

    Parameters
    ----------
    pixmap : ndarray of float64, shape (ny, nx, 2), or SampledMap
        Output position of the centre of each input pixel.
    window : tuple of int, optional
        Part of the image that is used, half open: (x0, x1, y0, y1).
    """
    x0, x1, y0, y1 = window or (0, pixmap.shape[1], 0, pixmap.shape[0])
    nx, ny = x1 - x0, y1 - y0
    rows = np.arange(y0, max(y1 - 1, y0 + 1), max(1, ny // 64))
    columns = np.arange(x0, max(x1 - 1, x0 + 1), max(1, nx // 64))
    lines = rows_of(pixmap, rows)
    own = lines[:, columns]
    with np.errstate(invalid="ignore", over="ignore"):
        along_x = lines[:, columns + 1] - own if nx > 1 else None
        along_y = rows_of(pixmap, rows + 1)[:, columns] - own if ny > 1 else None
        if along_x is None or along_y is None:
            step = along_x if along_x is not None else along_y
            area = np.zeros(1) if step is None else (step**2).sum(axis=-1)
        else:
            area = np.abs(along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0])
    area = area[np.isfinite(area) & (area > 0)]
    return float(1 / np.sqrt(np.median(area))) if area.size else 1.0
