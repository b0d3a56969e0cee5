"""Correlation of an image with a filter that varies over the field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.interpolate import make_interp_spline

from skyloom._kernels import SPECTRUM_BYTES, filter_tile, tile_spectrum
from skyloom._threads import map_bands, serial_blas

Array = npt.NDArray[np.float64]

TILE = 256
"""Side of the tiles in which images are filtered, pixels: a few MB each, many enough for all threads."""
GRID_STEP = 128
"""Distance of the positions at which filters are evaluated, pixels; between them they are interpolated."""
MAX_GRID = 9
SAMPLES = 8
"""So many steps along each axis of a tile tell how a filter varies within it: it does so over `GRID_STEP`."""
TOLERANCE = 1e-3


def convolve_full(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the convolution of two stamps, all pixels that either reaches, by FFT.

    As `scipy.signal.fftconvolve`, whose module takes a third of a second to import.
    """
    shape = [n + m - 1 for n, m in zip(a.shape, b.shape, strict=True)]
    size = [fft.next_fast_len(n, real=True) for n in shape]
    product = fft.rfft2(a, size) * fft.rfft2(b, size)
    return np.asarray(fft.irfft2(product, size)[: shape[0], : shape[1]])


class Grid:
    """A coarse grid of positions over an image, and smooth interpolation from it.

    Parameters
    ----------
    shape : tuple of int
        Shape (ny, nx) of the image.
    most : int
        Largest number of nodes along an axis.
    """

    def __init__(self, shape: tuple[int, int], most: int = MAX_GRID) -> None:
        self.shape = shape
        self.y, self.x = (self._axis(n, most) for n in shape)
        self._splines_y, self._splines_x = (
            _cardinal_splines(nodes, n) for nodes, n in zip((self.y, self.x), shape, strict=True)
        )

    @staticmethod
    def _axis(n: int, most: int) -> Array:
        count = int(np.clip(np.ceil(n / GRID_STEP) + 1, 2, most))
        return np.linspace(0, max(n - 1, 1), count)

    def sample(self, function: Callable[[float, float], npt.ArrayLike]) -> Array:
        """Evaluate ``function(x, y)`` at all nodes; shape (n_y, n_x, ...)."""
        return np.array([[function(float(x), float(y)) for x in self.x] for y in self.y], dtype=float)

    def rectangle(self, values: Array, rows: slice, columns: slice, dtype: type = np.float64) -> npt.NDArray[Any]:
        """Interpolate `values`, shape (..., n_y, n_x), to the pixels of a rectangle of the image.

        By cubic splines along both axes (of lower degree on smaller grids), which are linear in the values: two
        products with the matrices of the splines through one node each.
        """
        across = values @ self._splines_x[columns].T
        return np.asarray(self._splines_y[rows].astype(dtype) @ across.astype(dtype))

    def plane(self, values: Array) -> Array:
        """Interpolate `values`, shape (n_y, n_x), to every pixel of the image."""
        if np.ptp(values) == 0:
            return np.full(self.shape, values.flat[0])
        return self.rectangle(values, slice(None), slice(None))


def _cardinal_splines(nodes: Array, n: int) -> Array:
    """Return the splines that are 1 at one node and 0 at the others, at n pixels, shape (n, nodes)."""
    return np.asarray(make_interp_spline(nodes, np.eye(nodes.size), k=min(3, nodes.size - 1))(np.arange(n)))


class VaryingFilter:
    """A filter that varies over the field, as a sum of few constant filters times smooth maps.

    The stamps at the nodes of a grid are separated by singular values, ``Q(u; x) = sum_r c_r(x) S_r(u)``, with as
    few terms as keep the error below a tolerance; the c_r are interpolated. A correlation with Q is then a sum of
    ordinary ones: ``(Q o A)(x) = sum_u Q(u; x) A(x + u) = sum_r c_r(x) (S_r o A)(x)``.

    A filter may take several planes and add up what it finds in each, ``sum_p (Q_p o A_p)(x)``; the maps c_r are common
    to all of them.

    Parameters
    ----------
    stamps : ndarray, shape (n_y, n_x, n, n) or (n_y, n_x, planes, n, n)
        The filter at the nodes of `grid`.
    grid : Grid
    tolerance : float
        Largest RMS error of the separated filter, relative to the RMS of the filter.
    """

    def __init__(self, stamps: Array, grid: Grid, tolerance: float = TOLERANCE) -> None:
        nodes, self.side = stamps.shape[:2], stamps.shape[-1]
        planes = stamps.shape[2] if stamps.ndim == 5 else 1
        flat = stamps.reshape(nodes[0] * nodes[1], -1)
        constant = (flat == flat[0]).all()
        with serial_blas():
            if constant:
                s, u = np.ones(1), np.ones((len(flat), 1))
            else:
                # singular values from the products of the stamps, of which there are few: right to 1e-8 of the largest
                square, u = np.linalg.eigh(flat @ flat.T)
                s, u = np.sqrt(np.maximum(square[::-1], 0)), u[:, ::-1]
                s = s[s > 1e-7 * s[0]]
            left_out = _norms_from(s)
            rank = _terms(left_out, tolerance / 2 * left_out[0])  # half of the error, so that `within` has some as well
            vt = flat[:1] if constant else (u[:, :rank].T @ flat) / s[:rank, None]
        self._error = np.sqrt(((tolerance * left_out[0]) ** 2 - left_out[rank] ** 2) / len(flat))
        self.filters = vt.reshape(rank, planes, self.side, self.side)
        self._grid, self._values = grid, (u[:, :rank] * s[:rank]).T.reshape(rank, *nodes)

    def image_at(self, x: float, y: float) -> Array:
        """Return the filter at the pixel next to (x, y), shape (n, n), or (planes, n, n) if it takes several planes."""
        row, column = (int(np.clip(round(float(p)), 0, n - 1)) for p, n in zip((y, x), self._grid.shape, strict=True))
        weights = self.coefficients(slice(row, row + 1), slice(column, column + 1))[:, 0, 0]
        image: Array = np.tensordot(weights, self.filters, axes=1)
        return image[0] if len(image) == 1 else image

    def coefficients(self, rows: slice, columns: slice, dtype: type = np.float64) -> npt.NDArray[Any]:
        """Return c_r at the pixels of a rectangle, shape (rank, n_rows, n_columns)."""
        return self._grid.rectangle(self._values, rows, columns, dtype)

    def within(self, rows: slice, columns: slice, dtype: type) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return the filter in a rectangle by as few terms as it takes there, which are fewer than over the field.

        ``Q(u; x) = sum_t w_t(x) sum_r m_tr S_r(u)``, from the singular values of the c_r at some pixels.

        Returns
        -------
        mixture : ndarray, shape (terms, rank)
            m_tr, with orthonormal rows.
        weights : ndarray, shape (terms, n_rows, n_columns)
            w_t.
        """
        y, x = (slice(p.start, p.stop, max(1, (p.stop - p.start - 1) // SAMPLES)) for p in (rows, columns))
        some = self.coefficients(y, x)
        some = some.reshape(len(some), -1)
        square, u = np.linalg.eigh(some @ some.T)
        left_out = _norms_from(np.sqrt(np.maximum(square[::-1], 0)))
        mixture = u[:, ::-1][:, : _terms(left_out, self._error * np.sqrt(some.shape[1]))].T
        weights = self._grid.rectangle(np.tensordot(mixture, self._values, axes=1), rows, columns, dtype)
        return np.ascontiguousarray(mixture, dtype), np.ascontiguousarray(weights)


def _norms_from(s: Array) -> Array:
    """Return the norms of what lacks the first r terms, for r = 0 to all of them, from the norms of the terms."""
    return np.append(np.sqrt(np.cumsum((s**2)[::-1])[::-1]), 0.0)


def _terms(left_out: Array, error: float) -> int:
    """Return how many terms are needed, at least one."""
    return max(1, int(np.count_nonzero(left_out > error)))


Planes = npt.NDArray[Any] | Sequence[npt.NDArray[Any]]


def correlate(
    jobs: Sequence[tuple[VaryingFilter, Planes] | tuple[VaryingFilter, Planes, float]],
    threads: int | None = None,
    dtype: type[np.float32] | type[np.float64] = np.float64,
) -> list[npt.NDArray[Any]]:
    """Correlate planes with varying filters: ``out(x) = sum_u Q(u; x) A(x + u)``, A being 0 outside of the image.

    A job may have a third item, what its planes are outside of the image.

    Parameters
    ----------
    jobs : sequence of (VaryingFilter, ndarray of shape (ny, nx), or as many of these as the filter takes)
        Filters with stamps of one size, and the plane or planes that each is applied to.
    threads : int, optional
        Number of threads; the result does not depend on it.
    dtype : type
        float32 or float64: in which the transforms are computed, and of the result. Errors are some 1e-7 (1e-16) of the
        largest value within a tile.

    Returns
    -------
    planes : list of ndarray, shape (ny, nx)
    """
    work = [
        (varying, [planes] if isinstance(planes, np.ndarray) else list(planes), float(sum(outside)))
        for varying, planes, *outside in jobs
    ]
    ny, nx = work[0][1][0].shape
    half = work[0][0].side // 2
    step_y, step_x = (-(-n // -(-n // TILE)) for n in (ny, nx))  # tiles of one size
    size = tuple(fft.next_fast_len(step + 2 * half, real=True) for step in (step_y, step_x))
    outputs: list[npt.NDArray[Any]] = [np.empty((ny, nx), dtype) for _ in work]
    filters = {id(varying): varying.filters for varying, *_ in work}
    transforms = {key: _spectra(stamps[..., ::-1, ::-1].astype(dtype), size) for key, stamps in filters.items()}

    def filter_one(corner: tuple[int, int]) -> None:
        y, x = corner
        rows, columns = slice(y, min(y + step_y, ny)), slice(x, min(x + step_x, nx))
        seen: dict[tuple[int, float], npt.NDArray[Any] | None] = {}
        for (varying, planes, outside), out in zip(work, outputs, strict=True):
            keys = [(id(plane), outside) for plane in planes]
            for plane, key in zip(planes, keys, strict=True):
                if key not in seen:
                    piece = _with_border(plane, rows, columns, half, outside)
                    seen[key] = _spectra(piece.astype(dtype, copy=False), size) if piece.any() else None
            known = [one for key in keys if (one := seen[key]) is not None]
            if not known:  # nothing but zeros here
                out[rows, columns] = 0
                continue
            spectra = [np.zeros_like(known[0]) if (one := seen[key]) is None else one for key in keys]
            mixture, weights = varying.within(rows, columns, dtype)
            mixture /= size[0] * size[1]  # inverse transforms are sums
            filter_tile(
                transforms[id(varying)], spectra, mixture, weights, size[1], 2 * half, out[rows, columns],
            )  # fmt: skip

    corners = [(y, x) for y in range(0, ny, step_y) for x in range(0, nx, step_x)]
    with serial_blas():
        map_bands(filter_one, corners, threads)
    return outputs


def _spectra(planes: npt.NDArray[Any], size: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return transforms of planes, shape (..., n, m), on a grid of shape `size`: (..., blocks, size[0], 2, lanes).

    See `_kernels/correlate.hpp`.
    """
    lanes = SPECTRUM_BYTES // planes.itemsize
    out = np.empty((*planes.shape[:-2], -(-(size[1] // 2 + 1) // lanes), size[0], 2, lanes), planes.dtype)
    for index in np.ndindex(planes.shape[:-2]):
        tile_spectrum(np.ascontiguousarray(planes[index]), size[1], out[index])
    return out


def _with_border(plane: npt.NDArray, rows: slice, columns: slice, border: int, outside: float) -> npt.NDArray:
    """Return a rectangle of a plane with its surroundings, outside of the plane of the value `outside`."""
    ny, nx = plane.shape
    shape = rows.stop - rows.start + 2 * border, columns.stop - columns.start + 2 * border
    out = np.full(shape, outside, plane.dtype) if outside else np.zeros(shape, plane.dtype)
    y0, x0 = rows.start - border, columns.start - border
    cut = plane[max(y0, 0) : min(rows.stop + border, ny), max(x0, 0) : min(columns.stop + border, nx)]
    top, left = max(-y0, 0), max(-x0, 0)
    out[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return out
