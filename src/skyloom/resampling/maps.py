"""Coordinate maps: callables ``xy -> xy``, and how to know them on every pixel from few evaluations."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom._kernels import MapGrid, expand_grid
from skyloom._kernels import pixel_area_ratio as _pixel_area_ratio
from skyloom._threads import map_bands, row_bands
from skyloom.errors import InputError, ShapeError
from skyloom.resampling._drizzle_checks import LARGEST_FRAME

XYArray = npt.NDArray[np.float64]
Map = Callable[[XYArray], XYArray]

_log = logging.getLogger("skyloom.resampling")

_FIRST_STEP = 64.0  # pixels between the nodes of the first grid
_CHUNK = 1 << 20  # positions per call of a map


def evaluate(map_: Map, xy: npt.ArrayLike) -> XYArray:
    """Evaluate a map at some positions and check what it returns.

    Parameters
    ----------
    map_ : callable
        ``(N, 2) -> (N, 2)``.
    xy : array_like, shape (N, 2)
        Positions.

    Returns
    -------
    ndarray of float64, shape (N, 2)
        Mapped positions; NaN where the map is not defined (any non-finite coordinate).

    Raises
    ------
    ShapeError
        The map returns another shape.
    InputError
        It does not return real numbers.
    """
    xy = np.asarray(xy, np.float64)
    result = np.asarray(map_(xy.copy()))  # a copy: a map that writes into its argument harms nobody
    if result.dtype.kind not in "fiu":
        raise InputError(
            f"A coordinate map returned values of type {result.dtype}; real numbers are needed.",
            dtype=str(result.dtype),
        )
    result = result.astype(np.float64, copy=False)
    if result.shape != xy.shape:
        raise ShapeError(
            f"A coordinate map returned the shape {result.shape} for positions of shape {xy.shape}; "
            "it must return one (x, y) row for each row it is given.",
            found=result.shape,
            needed=xy.shape,
        )
    bad = ~np.all(np.isfinite(result), axis=1)
    if bad.any():
        result = np.where(bad[:, None], np.nan, result)
    return result


def compose(first: Map, second: Map) -> Map:
    """Return the map that applies `first`, and then `second`."""
    return lambda xy: second(first(xy))


# --- sampling -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Axis:
    """Nodes along one axis of n pixels, and the stencil of four nodes for each pixel."""

    nodes: npt.NDArray[np.float64]
    first: npt.NDArray[np.int32]  # (n,)
    weight: npt.NDArray[np.float64]  # (n, 4)


@lru_cache(maxsize=64)  # images of one detector share theirs
def _axis(n: int, cells: int) -> _Axis:
    nodes = np.linspace(0, n - 1, cells + 1)
    return _Axis(nodes, *_stencil(nodes, np.arange(n)))


def _stencil(nodes: npt.NDArray[np.float64], x: npt.ArrayLike) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Return the first node and the weights of cubic Lagrange interpolation at x, for equidistant nodes."""
    cells = len(nodes) - 1
    t = np.asarray(x, np.float64) * (cells / nodes[-1])
    first = np.clip(np.floor(t).astype(np.int32) - 1, 0, cells - 3)
    t = t - first  # from 0 to 3; between 1 and 2 but at the borders
    weight = np.stack(
        [
            -(t - 1) * (t - 2) * (t - 3) / 6,
            t * (t - 2) * (t - 3) / 2,
            -t * (t - 1) * (t - 3) / 2,
            t * (t - 1) * (t - 2) / 6,
        ],
        axis=-1,
    )
    return first.astype(np.int32), np.ascontiguousarray(weight)


class SampledMap:
    """A map known on every pixel of an image, from a sparse grid with a proven error.

    The map is evaluated on a grid of nodes, interpolated by local cubics (Lagrange, four nodes along each
    axis), and compared with the map itself at the middle of every cell and of its sides. Grids are halved
    until the difference is below the tolerance; cells where it is not (or that touch a place where the map is
    not finite) are evaluated on every pixel as soon as that costs less than a finer grid. The last grid
    includes the points of the last test, so its true error is about 16 times below the one that was tested.

    Parameters
    ----------
    map_ : callable
        ``(N, 2) -> (N, 2)``, positions in pixels of this image to positions anywhere.
    shape : (int, int)
        Shape (ny, nx) of the image.
    tolerance : float
        Largest error of either coordinate, in the units of the mapped positions (pixels).

    Attributes
    ----------
    map : callable
        The map itself.
    shape : (int, int)
        Shape (ny, nx) of the image.
    evaluations : int
        Number of positions at which the map was called.

    Raises
    ------
    InputError
        The tolerance is not positive, the map is no function, or the shape is not that of an image that fits into
        memory.
    ShapeError
        The map returns another shape than it was given.
    """

    def __init__(self, map_: Map, shape: tuple[int, int], *, tolerance: float = 1e-3) -> None:
        from skyloom.io.fits_file import memory_size

        ny, nx = self.shape = _image_shape(shape)
        if not callable(map_):
            raise InputError(f"A coordinate map is a {type(map_).__name__}; a function (N, 2) -> (N, 2) is needed.")
        if not (isinstance(tolerance, (int, float, np.number)) and tolerance > 0):
            raise InputError(f"tolerance is {tolerance!r}; it must be above 0 (pixels).", tolerance=tolerance)
        if ny * nx * np.dtype(np.float32).itemsize > memory_size():
            raise InputError(
                f"An image of {nx} x {ny} pixels does not fit into the memory of {memory_size() / 2**30:.1f} GiB; "
                "choose a smaller shape.",
                shape=self.shape,
            )
        self.evaluations = 0
        self.map = map_
        self._nodes: XYArray | None = None
        self._exact_index: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._exact_xy: XYArray = np.empty((0, 2))
        bad = self._refine(tolerance)
        if bad.any():
            self._evaluate_exactly(bad)
        _log.debug("coordinate map of %d x %d pixels known from %d evaluations", nx, ny, self.evaluations)

    def __repr__(self) -> str:
        ny, nx = self.shape
        nodes = "no grid" if self._nodes is None else f"a grid of {self._nodes.shape[1]} x {self._nodes.shape[0]} nodes"
        exact = f" and {len(self._exact_index)} single pixels" if len(self._exact_index) else ""
        return f"SampledMap of {nx} x {ny} pixels: {nodes}{exact}"

    def rows(self, start: int, stop: int) -> XYArray:
        """Return the map on rows start ... stop - 1, shape (stop - start, nx, 2)."""
        nx = self.shape[1]
        out = np.empty((stop - start, nx, 2))
        if self._nodes is None:
            out.fill(np.nan)
        else:
            x, y = self._x, self._y
            expand_grid(self._nodes, x.first, x.weight, y.first[start:stop], y.weight[start:stop], out)
        low, high = np.searchsorted(self._exact_index, (start * nx, stop * nx))
        out.reshape(-1, 2)[self._exact_index[low:high] - start * nx] = self._exact_xy[low:high]
        return out

    def shifted(self, dx: float, dy: float) -> SampledMap:
        """Return the same map with mapped positions moved by (dx, dy), without evaluating it again."""
        moved = copy.copy(self)
        offset, inner = np.array([dx, dy]), self.map
        moved.map = lambda xy: np.asarray(inner(xy)) + offset
        moved._nodes = None if self._nodes is None else self._nodes + offset
        moved._exact_xy = self._exact_xy + offset
        return moved

    def pixmap(self) -> XYArray:
        """Return the map on all pixels, shape (ny, nx, 2)."""
        pixmap = np.empty((*self.shape, 2))

        def fill(band: tuple[int, int]) -> None:
            pixmap[slice(*band)] = self.rows(*band)

        map_bands(fill, row_bands(self.shape[0]))
        return pixmap

    def grid(self) -> MapGrid | None:
        """Return the map for kernels that expand it themselves; None if there is no grid, but every pixel is known."""
        if self._nodes is None:
            return None
        x, y = self._x, self._y
        return MapGrid(self._nodes, x.first, x.weight, y.first, y.weight, self._exact_index, self._exact_xy)

    def _call(self, xy: XYArray) -> XYArray:
        self.evaluations += len(xy)
        parts = [evaluate(self.map, xy[i : i + _CHUNK]) for i in range(0, len(xy), _CHUNK)]
        return np.concatenate(parts) if parts else np.empty((0, 2))

    def _grid(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> XYArray:
        xx, yy = np.meshgrid(x, y)
        return self._call(np.stack([xx.ravel(), yy.ravel()], axis=1)).reshape(len(y), len(x), 2)

    def _refine(self, tolerance: float) -> npt.NDArray[np.bool_]:
        """Set the grid, and return which cells (of twice its step) still need every pixel."""
        ny, nx = self.shape
        cells_x, cells_y = (max(3, int(np.ceil((n - 1) / _FIRST_STEP))) for n in (nx, ny))
        coarse: XYArray | None = None
        while (2 * cells_x + 1) * (2 * cells_y + 1) < nx * ny / 2 and min(nx, ny) > 2 * 3:
            if coarse is None:
                coarse = self._grid(np.linspace(0, nx - 1, cells_x + 1), np.linspace(0, ny - 1, cells_y + 1))
            axis_x, axis_y = _axis(nx, 2 * cells_x), _axis(ny, 2 * cells_y)
            fine = self._grid(axis_x.nodes, axis_y.nodes)
            bad = _cells_above(coarse, fine, axis_x, axis_y, tolerance)
            cost_of_pixels = bad.mean() * nx * ny
            cost_of_next_grid = 4.0 * fine.shape[0] * fine.shape[1]
            if cost_of_pixels <= cost_of_next_grid:
                self._nodes, self._x, self._y = fine, axis_x, axis_y
                return bad
            coarse, cells_x, cells_y = fine, 2 * cells_x, 2 * cells_y
        return np.ones((1, 1), bool)

    def _evaluate_exactly(self, bad: npt.NDArray[np.bool_]) -> None:
        ny, nx = self.shape
        rows = np.minimum(np.arange(ny) * bad.shape[0] // max(ny - 1, 1), bad.shape[0] - 1)
        columns = np.minimum(np.arange(nx) * bad.shape[1] // max(nx - 1, 1), bad.shape[1] - 1)
        y, x = np.nonzero(bad[np.ix_(rows, columns)])
        self._exact_index = y * nx + x
        self._exact_xy = self._call(np.stack([x, y], axis=1).astype(np.float64))


def _cells_above(
    coarse: XYArray, fine: XYArray, axis_x: _Axis, axis_y: _Axis, tolerance: float
) -> npt.NDArray[np.bool_]:
    """Return the cells of the coarse grid, and their neighbours, where interpolation misses the fine grid."""
    cells_y, cells_x = coarse.shape[0] - 1, coarse.shape[1] - 1
    guess = np.empty(fine.shape)
    first_x, weight_x = _stencil(axis_x.nodes[::2], axis_x.nodes)
    first_y, weight_y = _stencil(axis_y.nodes[::2], axis_y.nodes)
    expand_grid(coarse, first_x, weight_x, first_y, weight_y, guess)
    good = np.all(np.abs(guess - fine) <= tolerance, axis=2)  # False for NaN
    bad = np.zeros((cells_y, cells_x), bool)
    for j in range(3):
        for i in range(3):
            bad |= ~good[j : j + 2 * cells_y : 2, i : i + 2 * cells_x : 2]
    # a neighbour's stencil of the fine grid reaches into a bad cell, where nothing is known
    wide = np.pad(bad, 1)
    for j in range(3):
        for i in range(3):
            bad |= wide[j : j + cells_y, i : i + cells_x]
    return bad


def _image_shape(shape: Any) -> tuple[int, int]:
    try:
        ny, nx = (int(n) for n in shape)
    except (TypeError, ValueError):
        ny = nx = 0
    if ny < 1 or nx < 1:
        raise InputError(f"shape is {shape!r}; it must be (ny, nx), both at least 1.", shape=shape)
    if max(ny, nx) > LARGEST_FRAME:
        raise InputError(f"shape is {shape!r}; an image has at most {LARGEST_FRAME} pixels along an axis.", shape=shape)
    return ny, nx


def sample_map(map_: Map, shape: tuple[int, int], *, tolerance: float = 1e-3) -> XYArray:
    """Return a map on every pixel of an image, from as few evaluations as the tolerance allows.

    Parameters
    ----------
    map_ : callable
        ``(N, 2) -> (N, 2)``, from pixels of this image to positions anywhere.
    shape : (int, int)
        Shape (ny, nx) of the image.
    tolerance : float
        Largest error of either coordinate, in the units of the mapped positions (pixels). See `SampledMap`.

    Returns
    -------
    ndarray of float64, shape (ny, nx, 2)
        ``pixmap[y, x] = map_((x, y))``; NaN where the map is not defined.

    Raises
    ------
    InputError, ShapeError
        See `SampledMap`.
    """
    return SampledMap(map_, shape, tolerance=tolerance).pixmap()


def area_at(map_: Map, xy: XYArray) -> npt.NDArray[np.float64]:
    """Return the area that pixels at some positions cover after a map: abs(det J), over one pixel."""
    n = len(xy)
    steps = [(0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)]
    ends = evaluate(map_, np.concatenate([xy + step for step in steps]))
    dx, dy = ends[:n] - ends[n : 2 * n], ends[2 * n : 3 * n] - ends[3 * n :]
    return np.abs(dx[:, 0] * dy[:, 1] - dx[:, 1] * dy[:, 0])


def pixel_area_ratio(pixmap: XYArray) -> npt.NDArray[np.float64]:
    """Return the area that each pixel covers after a map, in pixels of the map's target.

    Parameters
    ----------
    pixmap : ndarray of float64, shape (ny, nx, 2)
        Mapped position of each pixel.

    Returns
    -------
    ndarray of float64, shape (ny, nx)
        abs(det J), J the Jacobian matrix d(pixmap) / d(x, y), by central differences (second-order one-sided
        ones at the border); NaN where a neighbour is not finite or the image is one pixel wide.

    Raises
    ------
    ShapeError
        `pixmap` is not (ny, nx, 2).
    """
    pixmap = np.ascontiguousarray(pixmap, np.float64)
    if pixmap.ndim != 3 or pixmap.shape[2] != 2:
        raise ShapeError(f"A pixmap of shape {pixmap.shape} was given; it must be (ny, nx, 2).", found=pixmap.shape)
    area = np.empty(pixmap.shape[:2])
    map_bands(lambda band: _pixel_area_ratio(pixmap, *band, area[slice(*band)]), row_bands(len(pixmap)))
    return area


def invert_map(map_: Map, shape: tuple[int, int], *, tolerance: float = 1e-4, iterations: int = 30) -> Map:
    """Return the inverse of a smooth map that is one-to-one over an image, by Newton's method.

    Parameters
    ----------
    map_ : callable
        ``(N, 2) -> (N, 2)``, from pixels of an image to positions anywhere.
    shape : (int, int)
        Shape (ny, nx) of that image; the first guess is the affine map that fits best on it.
    tolerance : float
        Largest distance, in the units of the mapped positions, between the wanted position and the map of the
        answer.
    iterations : int
        Largest number of Newton steps.

    Returns
    -------
    callable
        ``(N, 2) -> (N, 2)``; NaN where Newton's method does not reach the tolerance.

    Raises
    ------
    InputError
        The map is not finite, or not invertible, on the image.
    """
    ny, nx = _image_shape(shape)
    grid = np.stack(np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9)), axis=-1).reshape(-1, 2)
    image = evaluate(map_, grid)
    good = np.isfinite(image).all(axis=1)
    design = np.column_stack([image, np.ones(len(image))])
    if good.sum() < 3 or np.linalg.matrix_rank(design[good] - design[good].mean(axis=0)) < 2:
        raise InputError("The coordinate map cannot be inverted: it is not finite, or sends the image to a line.")
    affine = np.linalg.lstsq(design[good], grid[good], rcond=None)[0]
    # half a pixel on both sides for the derivatives: a map is smooth on that scale
    right, up = np.array([0.5, 0.0]), np.array([0.0, 0.5])

    def inverse(target: XYArray) -> XYArray:
        target = np.asarray(target, np.float64)
        xy = np.column_stack([target, np.ones(len(target))]) @ affine
        answer = np.full(target.shape, np.nan)
        todo = np.flatnonzero(np.isfinite(xy).all(axis=1))
        for _ in range(iterations):
            p = xy[todo]
            n = len(p)
            five = evaluate(map_, np.concatenate([p, p + right, p - right, p + up, p - up]))
            miss = target[todo] - five[:n]
            done = np.hypot(*miss.T) <= tolerance
            dx, dy = (five[n : 2 * n] - five[2 * n : 3 * n]), (five[3 * n : 4 * n] - five[4 * n :])
            det = dx[:, 0] * dy[:, 1] - dx[:, 1] * dy[:, 0]
            with np.errstate(divide="ignore", invalid="ignore"):
                step = (
                    np.column_stack(
                        [
                            miss[:, 0] * dy[:, 1] - miss[:, 1] * dy[:, 0],
                            miss[:, 1] * dx[:, 0] - miss[:, 0] * dx[:, 1],
                        ]
                    )
                    / det[:, None]
                )
            good = np.all(np.isfinite(step), axis=1)
            # the last step squares the error once more, where the map is defined on all sides
            better = np.where(good[:, None], p + step, p)
            answer[todo[done]] = better[done]
            xy[todo] = better
            todo = todo[good & ~done]
            if not len(todo):
                break
        return answer

    return inverse
