"""Choose the stars, spread over the field, that the kernel is fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import sep
from scipy import ndimage

from skyloom.errors import TooFewStampsError
from skyloom.exposure import BoolArray, FloatArray
from skyloom.extraction import extract
from skyloom.subtraction.basis import Float64Array

_FLAG_BAD = 4 | 8  # SExtractor's bits for saturated and truncated sources
_AT_ONCE = 256  # boxes that are cut out together


@dataclass(frozen=True)
class Candidate:
    """A star that may become a stamp: its middle pixel (of the padded planes) and its signal-to-noise ratio."""

    x: int
    y: int
    snr: float


@dataclass(frozen=True, eq=False)
class Planes:
    """What the fit sees of one image; data are 0 where unusable."""

    data: FloatArray
    variance: FloatArray
    usable: BoolArray

    @property
    def shape(self) -> tuple[int, int]:
        """Shape, (ny, nx)."""
        return self.data.shape

    def padded(self, border: int) -> Planes:
        """Return larger planes with a border of unusable pixels."""
        data: FloatArray = np.pad(self.data, border)  # type: ignore[assignment]  # numpy's stubs lose the type
        variance: FloatArray = np.pad(self.variance, border)  # type: ignore[assignment]
        return Planes(data, variance, np.pad(self.usable, border))


def spikes(planes: Planes, fwhm: float) -> BoolArray:
    """Return the pixels that are too sharp to be light: cosmic rays, hot pixels.

    In the middle of a star the mean of the eight neighbours is at least s times the pixel, s being that of a Gaussian
    with 0.7 of the FWHM. A spike exceeds its neighbours' mean / s by more than 6 standard deviations.
    """
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 0
    data = np.where(planes.usable, planes.data, 0).astype(np.float32)
    seen = planes.usable.astype(np.float32)
    count = ndimage.convolve(seen, kernel, mode="constant")
    sky = np.float32(np.median(data[planes.usable])) if planes.usable.any() else np.float32(0)
    around = ndimage.convolve((data - sky) * seen, kernel, mode="constant") / np.maximum(count, 1)
    at_one = 2.0 ** (-4 / (0.7 * fwhm) ** 2)
    share = (at_one + at_one**2) / 2
    noise = np.sqrt(planes.variance * (1 + 1 / (np.maximum(count, 1) * share**2)))
    return planes.usable & (count > 3) & (data - sky - around / share > 6 * noise)


def without_spikes(planes: Planes, fwhm: float) -> tuple[Planes, BoolArray]:
    """Return planes whose spikes hold the median of their usable neighbours, and where these are."""
    found = spikes(planes, fwhm)
    data = planes.data.copy()
    good = planes.usable & ~found
    for y, x in zip(*np.nonzero(found), strict=True):
        box = np.s_[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        if good[box].any():
            data[y, x] = np.median(planes.data[box][good[box]])
    return Planes(data, planes.variance, planes.usable), found


def find_sources(planes: Planes) -> Float64Array:
    """Return positions (x, y) of sources above 5 sigma, brightest first, shape (N, 2)."""
    data = np.ascontiguousarray(planes.data, np.float32)
    mask = ~planes.usable
    background = sep.Background(data, mask=mask)
    noise = np.where(planes.usable, np.sqrt(planes.variance), 1).astype(np.float32)
    # in a crowded field the background's scatter is mostly stars: the noise is that of the pixels
    found = extract(data - background.back(), 5.0, err=noise, mask=mask, minarea=5)
    found = found[np.argsort(-found["flux"], kind="stable")]
    return np.column_stack([found["x"], found["y"]])


def column_names(sources: Any) -> list[str]:
    """Return the names of the columns of a table, or of the fields of an array."""
    names = getattr(sources, "colnames", None) or getattr(getattr(sources, "dtype", None), "names", None)
    return list(names or ())


def unflagged(sources: Any, bits: int = -1) -> BoolArray:
    """Return True for the sources of a table without any of some bits, shape (N,).

    The column is flag (`skyloom.registration.detect_sources`) or flags (stdpipe, SExtractor): they have the same bits.
    """
    good = np.ones(len(sources), bool)
    for name in {"flag", "flags"} & set(column_names(sources)):
        flags = np.asarray(sources[name])
        if flags.dtype.kind == "f":
            flags = np.where(np.isfinite(flags), flags, -1)
        good &= (flags.astype(np.int64) & bits) == 0
    return good


def source_positions(sources: Any) -> Float64Array:
    """Return (x, y) of the sources of a table that are not saturated or cut, brightest first, shape (N, 2)."""
    good = unflagged(sources, _FLAG_BAD)
    xy = np.column_stack([np.asarray(sources["x"], np.float64), np.asarray(sources["y"], np.float64)])
    good &= np.isfinite(xy).all(axis=1)
    order = np.arange(len(sources))
    if "flux" in column_names(sources):
        order = np.argsort(-np.nan_to_num(np.asarray(sources["flux"], np.float64), nan=-np.inf), kind="stable")
    return xy[order[good[order]]]


def cut(plane: npt.NDArray[Any], x: int, y: int, half: int) -> npt.NDArray[Any]:
    """Return the box of 2 half + 1 pixels around (x, y); it must lie inside the plane."""
    return plane[y - half : y + half + 1, x - half : x + half + 1]


def find_candidates(
    science: Planes, template: Planes, xy: Float64Array, *, half: int, core: int, fwhm: float, min_snr: float
) -> tuple[list[Candidate], dict[str, int]]:
    """Return the sources fit to be stamps, and how many were turned down for what reason.

    A stamp needs a core without unusable pixels in both images, half of its box usable, to be the brightest thing in
    its core, and enough S/N in both images. The planes are padded with unusable pixels so that the box fits
    everywhere.

    Parameters
    ----------
    xy : ndarray, shape (N, 2)
        Positions, brightest first.
    half, core : int
        Half widths in pixels of the stamp and of its core.
    fwhm : float
        Of the wider image, pixels.
    """
    counts = dict.fromkeys(("sources", "unusable pixels or border", "not a peak", "low S/N"), 0)
    counts["sources"] = len(xy)
    x, y = np.rint(xy).astype(int).T
    usable = science.usable & template.usable
    ny, nx = usable.shape
    fit = (half <= x) & (x < nx - half) & (half <= y) & (y < ny - half)
    snr = np.zeros(len(xy))
    chunks = np.array_split(np.flatnonzero(fit), max(1, len(xy) // _AT_ONCE)) if fit.any() else []
    for chunk in chunks:
        places = x[chunk], y[chunk]
        fit[chunk] = _boxes(usable, *places, core).all(axis=1) & (_boxes(usable, *places, half).mean(axis=1) >= 0.5)
        good = chunk[fit[chunk]]
        snr[good] = np.minimum(*(_core_snr(one, x[good], y[good], half, fwhm) for one in (science, template)))
    taken = np.zeros(usable.shape, bool)
    accepted: list[Candidate] = []
    for k in range(len(xy)):
        if not fit[k]:
            counts["unusable pixels or border"] += 1
        elif taken[y[k], x[k]]:
            counts["not a peak"] += 1
        elif not snr[k] >= min_snr:
            counts["low S/N"] += 1
        else:
            cut(taken, x[k], y[k], core)[...] = True
            accepted.append(Candidate(int(x[k]), int(y[k]), float(snr[k])))
    return accepted, counts


def _boxes(plane: npt.NDArray[Any], x: Any, y: Any, half: int) -> npt.NDArray[Any]:
    """Return the pixels of boxes around several positions, shape (N, (2 half + 1)^2)."""
    views = np.lib.stride_tricks.sliding_window_view(plane, (2 * half + 1, 2 * half + 1))
    return views[y - half, x - half].reshape(len(x), (2 * half + 1) ** 2)


def _core_snr(planes: Planes, x: Any, y: Any, half: int, fwhm: float) -> Float64Array:
    """Signal-to-noise ratios of the flux within one FWHM across, above the stamp's median, shape (N,)."""
    boxes, usable = _boxes(planes.data, x, y, half), _boxes(planes.usable, x, y, half)
    sky = np.zeros(len(x))
    whole = usable.all(axis=1)
    if whole.any():
        sky[whole] = np.median(boxes[whole], axis=1)
    for k in np.flatnonzero(~whole):
        sky[k] = np.median(boxes[k][usable[k]])
    small = max(1, round(fwhm / 2))
    flux = (_boxes(planes.data, x, y, small) - sky[:, None]).sum(axis=1)
    return flux / np.sqrt(_boxes(planes.variance, x, y, small).sum(axis=1))


def spread(accepted: list[Candidate], shape: tuple[int, int], tiles: int, per_tile: int) -> list[list[Candidate]]:
    """Sort candidates into the cells of a grid, best first, `per_tile` at most in each; empty cells are left out.

    `tiles` counts the cells along the longer side.
    """
    side = max(shape) / tiles
    cells: dict[tuple[int, int], list[Candidate]] = {}
    for star in sorted(accepted, key=lambda one: (-one.snr, one.y, one.x)):
        cell = cells.setdefault((int(star.y / side), int(star.x / side)), [])
        if len(cell) < per_tile:
            cell.append(star)
    return [cells[place] for place in sorted(cells)]


def measure_fwhm(planes: Planes, stars: list[Candidate], half: int) -> float:
    """Return the median FWHM (pixels) of stars, from their Gaussian-weighted second moments.

    With a round weight of the star's own width s, a Gaussian star has the weighted second moment s^2 / 2 on each axis,
    which is iterated (Bernstein & Jarvis 2002, AJ 123, 583, section 3).
    """
    axis = np.arange(-half, half + 1.0)
    r2 = (axis[None, :] ** 2 + axis[:, None] ** 2).ravel()
    # sums over a box of the signal and its moments are products with these columns
    moments = np.stack([np.ones(r2.size), np.tile(axis, axis.size), np.repeat(axis, axis.size), r2], axis=1)
    signals = np.stack([_signal(planes, star, half, r2) for star in stars])
    widths2 = np.full(len(stars), (0.25 * half) ** 2)
    moving = np.arange(len(stars))
    for _ in range(50):
        s2 = widths2[moving]
        total, x, y, square = (signals[moving] * np.exp(-r2 / (2 * s2[:, None])) @ moments).T
        with np.errstate(divide="ignore", invalid="ignore"):
            new = square / total - (x / total) ** 2 - (y / total) ** 2
        good = np.isfinite(new) & (new > 0.05) & (new < half**2)
        still = good & (np.abs(new - s2) >= 1e-3 * s2)
        widths2[moving[~good]] = np.nan
        widths2[moving[still]] = new[still]
        moving = moving[still]
        if moving.size == 0:
            break
    widths = np.sqrt(8 * np.log(2) * widths2)
    if not np.isfinite(widths).any():
        raise TooFewStampsError(
            f"None of {len(widths)} sources has a measurable width; check that both images "
            "show stars, or give science_fwhm and template_fwhm to skyloom.subtraction.subtract.",
            n_sources=len(widths),
        )
    return float(np.nanmedian(widths))


def _signal(planes: Planes, star: Candidate, half: int, r2: Float64Array) -> Float64Array:
    """Return the pixels of a star's box above the median of its outer part, 0 where unusable."""
    box = cut(planes.data, star.x, star.y, half).astype(np.float64).ravel()
    usable = cut(planes.usable, star.x, star.y, half).ravel()
    ring = usable & (r2 > (0.7 * half) ** 2)
    return np.where(usable, box - np.median(box[ring]) if ring.any() else box, 0.0)


def dilate(mask: BoolArray, half: int) -> BoolArray:
    """Grow a mask by a square of 2 half + 1 pixels."""
    if half == 0 or not mask.any():
        return mask
    return ndimage.maximum_filter(mask, size=2 * half + 1, mode="constant", cval=0)
