"""Regions, stamps and sub-stamps as HOTPANTS chooses them: where the kernel is fitted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom import _kernels
from skyloom._threads import map_bands
from skyloom.errors import InputError
from skyloom.exposure import BoolArray
from skyloom.subtraction.al_hotpants.kernel import Region
from skyloom.subtraction.al_hotpants.options import HotpantsOptions
from skyloom.subtraction.basis import Float64Array

_SKY_SAMPLE = 10000  # pixels of a stamp from which its sky is found
_LEAST_USABLE = 0.5  # share of a sub-stamp


@dataclass(frozen=True)
class Substamp:
    """A star that may serve in the fit: its middle pixel (0-based) and the sum of its bright pixels above the sky."""

    x: int
    y: int
    signal: float


@dataclass(frozen=True, eq=False)
class SearchImage:
    """Where sub-stamps are looked for.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        The image that will be convolved, 0 where bad.
    good : ndarray of bool
        Pixels that are good in both images.
    upper : float
        Sub-stamps have no pixel at or above this value.
    window : (int, int, int, int)
        x0, x1, y0, y1, inclusive: the part of the image in use.
    """

    data: npt.NDArray[np.float32]
    good: BoolArray
    upper: float
    window: tuple[int, int, int, int]


def make_regions(shape: tuple[int, int], options: HotpantsOptions) -> list[Region]:
    """Cut the field into regions: nrx x nry, or those of `rf`.

    Regions of HOTPANTS share their first and last pixels with their neighbours; these do not. The border is half a
    stamp, or none if there is one region.

    Raises
    ------
    InputError
        There are more regions than pixels, or a region lies outside of the image.
    """
    window = field_window(shape, options)
    x0, x1, y0, y1 = window
    if options.rf is not None:
        limits = _given_regions(options.rf, window)
    else:
        if options.nrx > x1 - x0 + 1 or options.nry > y1 - y0 + 1:
            raise InputError(
                f"nrx={options.nrx} and nry={options.nry} regions do not fit on an image of shape {shape}."
            )
        x = x0 + np.arange(options.nrx + 1) * (x1 - x0 + 1) // options.nrx
        y = y0 + np.arange(options.nry + 1) * (y1 - y0 + 1) // options.nry
        limits = [(x[i], x[i + 1] - 1, y[j], y[j + 1] - 1) for j in range(options.nry) for i in range(options.nrx)]
    border = 0 if len(limits) == 1 else stamp_side(shape, options)[0] // 2
    return [
        Region(
            int(a), int(b), int(c), int(d),
            max(x0, int(a) - border), min(x1, int(b) + border), max(y0, int(c) - border), min(y1, int(d) + border),
        )
        for a, b, c, d in limits
    ]  # fmt: skip


def field_window(shape: tuple[int, int], options: HotpantsOptions) -> tuple[int, int, int, int]:
    """Return the part of the image that `gd` leaves: x0, x1, y0, y1, inclusive."""
    ny, nx = shape
    if options.gd is None:
        return 0, nx - 1, 0, ny - 1
    xmin, xmax, ymin, ymax = options.gd
    window = max(0, xmin), min(nx, xmax or nx) - 1, max(0, ymin), min(ny, ymax or ny) - 1
    if window[1] <= window[0] or window[3] <= window[2]:
        raise InputError(f"The option gd={options.gd} leaves nothing of an image of shape {shape}.")
    return window


def _given_regions(rf: Any, window: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    """Return the limits of the regions that the user gives, cut to the window."""
    lines = Path(rf).read_text().split() if isinstance(rf, str | Path) else rf
    limits = []
    for line in lines:
        numbers = re.findall(r"-?\d+", line) if isinstance(line, str) else list(line)
        if len(numbers) != 4:
            raise InputError(f"The region {line!r} cannot be read; 'xmin:xmax,ymin:ymax' is needed.")
        x0, x1, y0, y1 = (int(one) for one in numbers)
        x0, x1, y0, y1 = max(x0, window[0]), min(x1, window[1]), max(y0, window[2]), min(y1, window[3])
        if x1 <= x0 or y1 <= y0:
            raise InputError(f"The region {line!r} has no pixels on the image.")
        limits.append((x0, x1, y0, y1))
    if not limits:
        raise InputError("The option rf holds no regions.")
    return limits


def stamp_side(shape: tuple[int, int], options: HotpantsOptions) -> tuple[int, int, int]:
    """Return the side of a stamp, and how many there are along x and y in a region.

    As many as asked for (nsx, nsy), if a stamp then has room for a sub-stamp; else as many as fit.
    """
    ny, nx = shape[0] // options.nry, shape[1] // options.nrx
    kernel, substamp = 2 * options.r + 1, 2 * options.rss + 1
    side = min(nx // options.nsx, ny // options.nsy) - kernel
    side -= side % 2 == 0
    if side >= substamp:
        return side, options.nsx, options.nsy
    side = substamp + kernel
    side -= side % 2 == 0
    return side, max(1, min(options.nsx, nx // side)), max(1, min(options.nsy, ny // side))


def find_stamps(
    image: SearchImage, region: Region, positions: Float64Array | None, options: HotpantsOptions
) -> list[list[Substamp]]:
    """Return the queue of sub-stamps of each stamp of a region that has any, best first.

    If fewer than `nft` of the stamps have one, the threshold `ft` is multiplied by `sft` and all is done once more.

    Parameters
    ----------
    positions : ndarray, shape (N, 2), optional
        x, y (0-based) to be tried first.
    """
    _, nsx, nsy = stamp_side(image.data.shape, options)
    x = region.x0 + np.arange(nsx + 1) * (region.x1 - region.x0 + 1) // nsx
    y = region.y0 + np.arange(nsy + 1) * (region.y1 - region.y0 + 1) // nsy
    cells = [(x[i], x[i + 1] - 1, y[j], y[j + 1] - 1) for j in range(nsy) for i in range(nsx)]
    stamps: list[list[Substamp]] = []
    for threshold in (options.ft, options.ft * options.sft):
        queues = map_bands(lambda cell: _find_substamps(image, cell, positions, threshold, options), cells)  # noqa: B023
        stamps = [queue for queue in queues if queue]
        if len(stamps) >= options.nft * len(cells) and stamps:
            break
    return stamps


def _find_substamps(
    image: SearchImage,
    cell: tuple[int, int, int, int],
    positions: Float64Array | None,
    threshold: float,
    options: HotpantsOptions,
) -> list[Substamp]:
    """Return the sub-stamps of one stamp, those at given positions first, then the brightest."""
    x0, x1, y0, y1 = cell
    step = max(1, int(np.sqrt((x1 - x0 + 1) * (y1 - y0 + 1) / _SKY_SAMPLE)))
    lattice = slice(y0, y1 + 1, step), slice(x0, x1 + 1, step)
    sample = image.data[lattice][image.good[lattice]]
    if len(sample) < 100:
        return []
    sample.sort()
    sky, sigma = _kernels.sky_statistics(sample, options.ssig)
    floor = sky + threshold * sigma
    add = _Adding(image, cell, sky, floor, options)
    found: list[Substamp] = []
    if positions is not None:
        inside = (positions > (x0 - 0.5, y0 - 0.5)) & (positions <= (x1 + 0.5, y1 + 0.5))
        given = np.rint(positions[inside.all(axis=1)]).astype(np.int64)
        found = add([], given, len(given))[: options.nss]
    if positions is None or options.afssc:
        found += add(found, None, 2 * options.nss)[: max(0, options.nss - len(found))]
    return found


@dataclass(frozen=True, eq=False)
class _Adding:
    """Adds sub-stamps to those that one stamp has.

    They need room for themselves and the kernel, a pixel in none of those found, no pixel that is bad or too bright in
    their cores (for the fit of HOTPANTS: in all of them), and half of their pixels good.
    """

    image: SearchImage
    cell: tuple[int, int, int, int]
    sky: float
    floor: float
    options: HotpantsOptions

    def __call__(self, found: list[Substamp], given: npt.NDArray[np.int64] | None, most: int) -> list[Substamp]:
        """Return new ones, the best first, at given pixels (n, 2) or at peaks.

        They end when there are `most`, those `found` before included.
        """
        options, half = self.options, self.options.rss
        core = half if options.fit == "hotpants" else min(half, max(3, round(0.4 * options.r)))
        room = half + options.r
        left, right, bottom, top = self.image.window
        rows = np.zeros((max(most, len(found)), 3))
        for row, one in zip(rows, found, strict=False):
            row[:] = one.x, one.y, one.signal
        count = _kernels.find_substamps(
            self.image.data,
            self.image.good,
            self.cell,
            (left + room, right - room, bottom + room, top - room),
            (half, core),
            (self.sky, self.floor, self.image.upper),
            _LEAST_USABLE,
            given,
            rows,
            len(found),
        )
        new = [Substamp(int(x), int(y), signal) for x, y, signal in rows[len(found) : count].tolist()]
        return sorted(new, key=lambda one: -one.signal)
