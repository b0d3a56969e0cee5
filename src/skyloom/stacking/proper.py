"""Proper co-addition of exposures (Zackay & Ofek 2017), tile by tile, with PSFs that vary over the field.

Each exposure is resampled once by a Lanczos kernel, which leaves its noise nearly white. The output is cut into tiles;
in each, the formula of `skyloom.proper` is applied with the PSFs and the noise of that place, to the tile with a margin
all around that takes what wraps; neighbouring tiles overlap and are blended linearly.

Pixels that an exposure lacks take the weighted mean of the exposures that have them, which keeps the flux of sources,
and the variance of the result accounts for it. In stars that is the mean of other PSFs, which would ring. So a hole in
a bright star takes the star that fits the other pixels of all exposures (`skyloom.stacking.cores`); elsewhere, where it
matters, a first co-add, filtered to the PSF of the exposure, replaces the mean. What lies around either is flagged
SPREAD: the variance there is still that of the mean of the others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from skyloom._threads import num_threads
from skyloom.errors import TooFewSourcesError
from skyloom.exposure import UNUSABLE, Exposure, MaskBit
from skyloom.fill import fill_from_neighbours, predict
from skyloom.proper import ProperSum, psf_spectrum
from skyloom.psf import estimate_psf
from skyloom.psf.model import Psf
from skyloom.psf.tiled import TiledPsf
from skyloom.resampling.maps import evaluate
from skyloom.resampling.resample import resample
from skyloom.stacking.cores import find_cores, star_in
from skyloom.stacking.frames import PlacedExposure
from skyloom.stacking.memory import Plane, Window, window_shape
from skyloom.stacking.outliers import MedianImage
from skyloom.stacking.result import Coadd, exposure_fields

if TYPE_CHECKING:
    from skyloom.stacking.job import Job

TILE = 384
"""Distance of the tiles, pixels: PSFs change little within, and the margins cost no more than they."""
_OVERLAP = 64
"""Pixels over which a tile is blended with the next one."""
_MARGIN = 2.0
"""Margin of a tile in half sizes of the PSFs: kernels reach further than the PSF by what the root spreads them."""
_MATTERS = 3.0
"""Standard deviations by which the mean of the others must differ from a prediction to be replaced."""
_ROUNDS = 8
"""Predictions at most, each from the co-add with the one before."""
_NEIGHBOURS = 2.0
"""Sigma, pixels, of the Gaussian by which pixels that no exposure has are filled from those around them."""
_LOST = 0.1
"""Part of the PSF that may lie where no exposure has data; beyond it, the pixel is at an edge."""


_HOLES = np.uint32(MaskBit.SATURATED | MaskBit.COSMIC_RAY | MaskBit.BAD)
"""Reasons why an exposure lacks a pixel within its borders."""

Stars = list[tuple[Window, list[npt.NDArray[np.float64]]]]


@dataclass(frozen=True, eq=False)
class Layer:
    """An exposure on its part of the grid.

    Parameters
    ----------
    placed : PlacedExposure
        The exposure.
    window : Window
        The part of the output grid.
    data, variance : Plane of float32
        The variance is that of white noise: of the mean of many pixels, times their number.
    mask : Plane of uint32
        Bits of `MaskBit`.
    psf : Psf
        In pixels of the output grid, by output position.
    share : float
        Sum of the inverse variances.
    """

    placed: PlacedExposure
    window: Window
    data: Plane
    variance: Plane
    mask: Plane
    psf: Psf
    share: float


class _GridPsf:
    """The PSF of an exposure in pixels of the output grid, through the local derivative of the map."""

    def __init__(self, psf: Psf, placed: PlacedExposure) -> None:
        self._psf, self._back = psf, placed.from_grid()
        self._middle = [(n - 1) / 2 for n in reversed(placed.member.shape)]
        self.half = math.ceil(psf.half * placed.scale)

    def stamp(self, x: float, y: float) -> npt.NDArray[np.float64]:
        """Return the PSF at an output position, of unit sum."""
        at = np.array([[x, y], [x + 0.5, y], [x - 0.5, y], [x, y + 0.5], [x, y - 0.5]])
        xy = evaluate(self._back, at)
        if not np.isfinite(xy).all():
            return np.asarray(self._psf.stamp(*self._middle), np.float64)
        stamp = np.asarray(self._psf.stamp(*xy[0]), np.float64)
        # columns: steps in the exposure for a step along x and y of the grid
        jacobian = np.stack([xy[1] - xy[2], xy[3] - xy[4]], axis=1)
        if np.allclose(jacobian, np.eye(2), atol=1e-4) and self.half == self._psf.half:
            return stamp
        v, u = np.mgrid[-self.half : self.half + 1, -self.half : self.half + 1]
        column, row = np.einsum("ij,jnm->inm", jacobian, np.stack([u, v]).astype(np.float64))
        middle = stamp.shape[0] // 2
        moved = ndimage.map_coordinates(stamp, [row + middle, column + middle], order=3, mode="constant")
        return np.asarray(moved / moved.sum())


def run_proper(job: Job, wcs: Any, reference: Mapping[str, Any], *, in_file: bool) -> Coadd:
    """Make the proper co-add of a job."""
    median = job.median()[0] if len(job.placed) > 1 else None
    planes = job.result_planes(in_file=in_file)
    cells = sum(math.prod(window_shape(window)) for window in (one.window() for one in job.placed) if window)
    on_disk = 12 * cells > job.room // 2
    layers = []
    for number, one in enumerate(job.placed):
        job.progress("resampling", number, len(job.placed))
        layers.append(_layer(job, one, median, on_disk=on_disk))
    psf = _Tiles(job, layers, planes).run()
    job.check_covered(planes)
    contributions = job.contributions(np.array([layer.share for layer in layers]))
    # its noise is white by construction
    fields = exposure_fields(contributions, reference, wcs, 1.0) | {"correlation": 1.0}
    return Coadd(planes, fields, contributions, job.options, None, psf)


def _layer(job: Job, placed: PlacedExposure, median: MedianImage | None, *, on_disk: bool) -> Layer:
    """Resample one exposure onto its part of the grid, and measure its PSF."""
    frame, window = job.frame(placed), placed.window()
    assert window is not None
    outliers = job.outliers(placed, frame, median)
    mask = (
        frame.mask if outliers is None else np.where(outliers, frame.mask | np.uint32(MaskBit.COSMIC_RAY), frame.mask)
    )
    own = Exposure(frame.data, frame.variance, mask, correlation=frame.correlation, psf=frame.psf, name=placed.name)
    psf = _GridPsf(_psf_of(own), placed)
    corner = np.array([window[1].start, window[0].start], np.float64)
    back, shape = placed.from_grid(), window_shape(window)
    # in the units of the co-add, values are those of output pixels already: they are interpolated, not summed
    image = resample(own, lambda xy: back(xy + corner), shape, conserve="surface brightness")
    assert image.variance is not None
    variance = image.variance * image.correlation
    whole = slice(0, shape[0]), slice(0, shape[1])
    stored = [job.scratch.plane(shape, kind, on_disk=on_disk) for kind in (np.float32, np.float32, np.uint32)]
    for plane, values in zip(stored, (image.data, variance, image.mask), strict=True):
        plane.write(whole, values)
    share = float((1 / variance[image.usable]).sum(dtype=np.float64))
    return Layer(placed, window, stored[0], stored[1], stored[2], psf, share)


def _psf_of(exposure: Exposure) -> Psf:
    """Return the PSF that came with an exposure, or the one of its stars."""
    if isinstance(exposure.psf, Psf):
        return exposure.psf
    try:
        return estimate_psf(exposure, fallback="moffat")
    except TooFewSourcesError as error:
        raise TooFewSourcesError(
            f"{exposure.name} has too few stars for its PSF, which method='proper' needs. Give the exposure a psf, or "
            "choose another method.",
            name=exposure.name,
        ) from error


@dataclass(frozen=True, eq=False)
class _Part:
    """What a tile sees of a layer: pixels that can be used, and the noise and PSF there."""

    layer: Layer
    data: npt.NDArray[np.float32]
    good: npt.NDArray[np.bool_]
    bits: npt.NDArray[np.uint32]
    sigma: float


class _Tiles:
    """The tiles of a proper co-add, one after the other.

    Parameters
    ----------
    job : Job
        The co-add.
    layers : sequence of Layer
        Its exposures on the grid.
    planes : mapping of str to Plane
        To be filled.
    """

    def __init__(self, job: Job, layers: Sequence[Layer], planes: Mapping[str, Plane]) -> None:
        self._job, self._layers, self._planes = job, layers, planes
        self._shape = job.shape
        self._half = max(layer.psf.half for layer in layers)
        self._margin = math.ceil(_MARGIN * self._half) + 8
        self._starts = [list(range(0, max(n - TILE // 2, 1), TILE)) for n in job.shape]  # no slivers at the end

    def run(self) -> TiledPsf:
        """Fill the planes; return the PSF of the co-add."""
        rows, columns = ([*starts, n] for starts, n in zip(self._starts, self._shape, strict=True))
        cores = [
            (slice(y, y1), slice(x, x1)) for y, y1 in itertools.pairwise(rows) for x, x1 in itertools.pairwise(columns)
        ]
        stamps: list[npt.NDArray[np.float64] | None] = []
        for number, core in enumerate(cores):
            self._job.progress("co-adding", number, len(cores))
            stamps.append(self._one(core))
        for core in cores:  # what fills gaps so that FFTs have no holes is no data
            empty = self._planes["WHT"].read(core) <= 0
            for name in ("SCI", "VAR"):
                self._planes[name].write(core, np.where(empty, 0, self._planes[name].read(core)))
        known = [stamp for stamp in stamps if stamp is not None]
        side = 2 * self._half + 1
        mean = np.mean(known, axis=0) if known else np.ones((side, side))
        filled = np.array([mean if stamp is None else stamp for stamp in stamps])
        nodes = [(np.array(edges[:-1]) + np.array(edges[1:]) - 1) / 2 for edges in (rows, columns)]
        return TiledPsf(filled.reshape(len(nodes[0]), len(nodes[1]), side, side), nodes[1], nodes[0])

    def _one(self, core: Window) -> npt.NDArray[np.float64] | None:
        """Co-add one tile; return its PSF."""
        inner = tuple(
            slice(max(part.start - _OVERLAP // 2, 0), min(part.stop + _OVERLAP // 2, n))
            for part, n in zip(core, self._shape, strict=True)
        )
        sizes = [fft.next_fast_len(part.stop - part.start + 2 * self._margin, real=True) for part in inner]
        outer = slice(inner[0].start - self._margin, 0), slice(inner[1].start - self._margin, 0)
        outer = tuple(slice(part.start, part.start + n) for part, n in zip(outer, sizes, strict=True))  # type: ignore[assignment]
        used = [layer for layer in self._layers if self._reaches(layer, (inner[0], inner[1]))]
        if not used:
            self._planes["DQ"].write(core, np.full(window_shape(core), int(MaskBit.NO_DATA), np.uint32))
            return None
        middle = (core[1].start + core[1].stop - 1) / 2, (core[0].start + core[0].stop - 1) / 2
        tile = _Tile(used, outer, (sizes[0], sizes[1]), middle)
        tile.sum()
        cut = tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
        weight = np.outer(*(self._ramp(part, c, axis) for axis, (part, c) in enumerate(zip(inner, core, strict=True))))
        image, variance = tile.image(), tile.variance()
        for name, values in (("SCI", image), ("VAR", variance)):
            plane = self._planes[name]
            before = plane.read((inner[0], inner[1]))
            plane.write((inner[0], inner[1]), before + (weight * values[cut]).astype(plane.dtype))
        self._write_core(core, outer, tile)
        return tile.sums.psf(self._half)

    def _reaches(self, layer: Layer, window: Window) -> bool:
        part = _common(layer.window, window)
        return part is not None and bool(((_read(layer.mask, layer, part) & np.uint32(UNUSABLE)) == 0).any())

    def _ramp(self, inner: slice, core: slice, axis: int) -> npt.NDArray[np.float64]:
        """Return the weights of the tile along an axis: those of neighbouring tiles sum to 1."""
        at = np.arange(inner.start, inner.stop) + 0.5
        weight = np.ones(len(at))
        if core.start > 0:
            weight *= np.clip((at - core.start) / _OVERLAP + 0.5, 0, 1)
        if core.stop < self._shape[axis]:
            weight *= np.clip((core.stop - at) / _OVERLAP + 0.5, 0, 1)
        return weight

    def _write_core(self, core: Window, outer: Window, tile: _Tile) -> None:
        """Write the planes that are not blended."""
        cut = tuple(slice(c.start - o.start, c.stop - o.start) for c, o in zip(core, outer, strict=True))
        context = np.zeros((self._job.n_context, *window_shape(core)), np.int32)
        culprits = np.zeros(window_shape(core), np.uint32)
        passed = np.zeros(window_shape(core), np.uint32)
        for part in tile.parts():
            number, good, bits = part.layer.placed.number, part.good[cut], part.bits[cut]
            context[number // 32] |= np.where(good, np.uint32(1 << (number % 32)), np.uint32(0)).view(np.int32)
            culprits |= np.where(good, np.uint32(0), bits & ~np.uint32(MaskBit.NO_DATA))
            passed |= np.where(good, bits, np.uint32(0))
        empty = tile.weight[cut] <= 0
        edge = ~empty & (tile.lost()[cut] > _LOST)
        mask = np.where(empty, culprits | np.uint32(MaskBit.NO_DATA), passed)
        mask[edge] |= np.uint32(MaskBit.EDGE)
        if tile.replaced.any():  # within reach of a PSF
            around = ndimage.binary_dilation(tile.replaced, iterations=self._half)[cut]
            mask[around & ~empty] |= np.uint32(MaskBit.SPREAD)
        if self._job.options.saturated == "flag":
            mask |= culprits & np.uint32(MaskBit.SATURATED)
        self._planes["WHT"].write(core, np.where(empty, 0, tile.weight[cut]))
        self._planes["DQ"].write(core, mask)
        self._planes["CTX"].write(core, context)
        self._planes["EXPTIME"].write(core, self._job.seconds(context))


class _Tile:
    """The sums of one tile, with its margin.

    Parameters
    ----------
    layers : sequence of Layer
        The exposures that have pixels in it.
    window : Window
        Where it lies on the output grid; it may reach beyond.
    shape : (int, int)
        Of the tile with its margin.
    middle : (float, float)
        Output position whose PSFs are taken.
    """

    def __init__(
        self, layers: Sequence[Layer], window: Window, shape: tuple[int, int], middle: tuple[float, float]
    ) -> None:
        self._layers, self._window, self._shape = layers, window, shape
        self._stamps = [layer.psf.stamp(*middle) for layer in layers]
        self.sums = ProperSum(shape)
        self.weight = np.zeros(shape)
        self.replaced = np.zeros(shape, bool)
        """Pixels of bright sources that some exposures lack."""
        self._sigmas: list[float] = []

    def parts(self) -> Iterator[_Part]:
        """Read what the tile sees of each layer."""
        for number, layer in enumerate(self._layers):
            data, variance = np.zeros(self._shape, np.float32), np.zeros(self._shape, np.float32)
            bits = np.full(self._shape, int(MaskBit.NO_DATA), np.uint32)
            part = _common(layer.window, self._window)
            assert part is not None
            at = tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, self._window, strict=True))
            bits[at] = _read(layer.mask, layer, part)
            good = (bits & np.uint32(UNUSABLE)) == 0
            data[at] = _read(layer.data, layer, part)
            if number >= len(self._sigmas):
                variance[at] = _read(layer.variance, layer, part)
                # of the sky: stars are few
                self._sigmas.append(float(np.sqrt(np.median(variance[good]))))
            yield _Part(layer, data, good, bits, self._sigmas[number])

    def sum(self) -> None:
        """Add up the images: first their mean, which fills their gaps where no star does, then their transforms."""
        mean = np.zeros(self._shape)
        lost = np.zeros(self._shape, bool)
        for part in self.parts():
            mean += np.where(part.good, part.data, 0.0) / part.sigma**2
            self.weight += part.good / part.sigma**2
            lost |= (part.bits & _HOLES) > 0
        known = self.weight > 0
        mean[known] /= self.weight[known]
        level = float(np.median(mean[known]))
        stars = self._stars(lost, mean, level)
        mean = level + fill_from_neighbours(np.where(known, mean - level, 0.0), known, _NEIGHBOURS)
        for number, part in enumerate(self.parts()):
            filled = np.where(part.good, part.data, mean)
            for window, values in stars:
                np.copyto(filled[window], values[number], where=np.isfinite(values[number]))
            self.sums.add(fft.rfft2(filled, workers=num_threads()), self._spectrum(number), part.sigma)
        self._replace_fillings(mean, level, stars)

    def _stars(self, lost: npt.NDArray[np.bool_], mean: npt.NDArray[np.float64], level: float) -> Stars:
        """Return stars with holes: windows, and the pixels that each exposure should have there."""
        half = min(layer.psf.half for layer in self._layers)
        cores = find_cores(lost, mean, level, 1 / math.sqrt(self.weight.max()), half)
        if not cores:
            return []
        for part in self.parts():
            for core in cores:
                core.data.append(part.data[core.window].astype(np.float64))
                core.good.append(part.good[core.window])
        found = [(core.window, star_in(core, self._stamps, self._sigmas)) for core in cores]
        return [(window, star) for window, star in found if star is not None]

    def _replace_fillings(self, mean: npt.NDArray[np.float64], level: float, stars: Stars) -> None:
        """Where the mean of the others is no star of an exposure's PSF, put what the co-add predicts for it.

        A better filling makes a better co-add, which makes a better filling; each round leaves about half of the error.
        """
        near = ndimage.binary_dilation(self.weight > 0, iterations=int(3 * _NEIGHBOURS))
        for window, values in stars:
            self.replaced[window] |= np.isfinite(values).any(axis=0)
        fillings: dict[int, tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]] = {}
        for turn in range(_ROUNDS):
            seen = fft.rfft2(self.sums.image() - level, workers=num_threads())
            own = np.sqrt(self.sums.power) * self.sums.noise
            largest = 0.0
            for number, part in enumerate(self.parts()):
                if turn and number not in fillings:
                    continue
                if turn == 0 and not (~part.good & near).any():
                    continue
                psf = self._spectrum(number)
                predicted = level + fft.irfft2(predict(seen, own, psf), self._shape, workers=num_threads())
                if turn == 0:
                    where = ~part.good & near & (np.abs(predicted - mean) > _MATTERS * part.sigma)
                    for window, values in stars:
                        where[window] &= np.isnan(values[number])
                    if not where.any():
                        continue
                    fillings[number] = where, mean[where]
                    self.replaced |= where
                where, before = fillings[number]
                change = np.zeros(self._shape)
                change[where] = predicted[where] - before
                largest = max(largest, float(np.abs(change).max()) / part.sigma)
                fillings[number] = where, predicted[where]
                self.sums.add_change(fft.rfft2(change, workers=num_threads()), psf, part.sigma)
            if largest < _MATTERS:
                return

    def _spectrum(self, number: int) -> npt.NDArray[Any]:
        return psf_spectrum(self._stamps[number], self._shape)

    def image(self) -> npt.NDArray[np.float64]:
        """Return the proper co-add of the tile."""
        return self.sums.image()

    def variance(self) -> npt.NDArray[np.float64]:
        """Return its variance: sum_j k_j^2 * V_j eta, with k_j what image j is convolved with.

        eta is by how much the noise of the sum grows where images lack pixels, see `_growth`.
        """
        reach = [min(2 * layer.psf.half + 1, min(self._shape) // 2) for layer in self._layers]
        kernels, lacking = [], np.empty((len(self._layers), *self._shape), bool)
        for number, part in enumerate(self.parts()):
            kernel = self.sums.kernel(self._spectrum(number), part.sigma)
            around = np.arange(-max(reach), max(reach) + 1)
            kernels.append(kernel[np.ix_(around, around)].ravel())
            lacking[number] = ~part.good
        grown = _growth(lacking, np.array(kernels), np.array(self._sigmas))
        total = np.zeros((self._shape[0], self._shape[1] // 2 + 1), np.complex128)
        for number, part in enumerate(self.parts()):
            own = np.full(self._shape, part.sigma**2)
            window = _common(part.layer.window, self._window)
            assert window is not None
            at = tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(window, self._window, strict=True))
            values = _read(part.layer.variance, part.layer, window)
            own[at] = np.where(part.good[at], values, own[at])
            kernel = self.sums.kernel(self._spectrum(number), part.sigma)
            total += fft.rfft2(kernel**2) * fft.rfft2(own * grown, workers=num_threads())
        return np.maximum(fft.irfft2(total, self._shape), np.finfo(np.float32).tiny)

    def lost(self) -> npt.NDArray[np.float64]:
        """Return the part of the PSF of each pixel that lies where no exposure has data."""
        empty = (self.weight <= 0).astype(np.float64)
        if not empty.any():
            return empty
        spectrum = np.sqrt(self.sums.power) * self.sums.noise
        return np.asarray(fft.irfft2(fft.rfft2(empty) * spectrum, self._shape))


def _growth(
    lacking: npt.NDArray[np.bool_], kernels: npt.NDArray[np.float64], sigma: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return what the variance that a pixel brings is multiplied with, because some images lack it.

    An image m that lacks a pixel has the mean of the others there, sum_i a_i M_i with a_i = sigma_i^-2 / W and
    W = sum_i sigma_i^-2 over those that have it. What it brings to the sum has the variance

        sum_i |k_i + a_i sum_m k_m|^2 sigma_i^2
            = sum_i C_ii sigma_i^2 + (2 sum_im C_im + sum_mm' C_mm') / W,    C_jj' = k_j . k_j',

    over that of all images, sum_j C_jj sigma_j^2. Pixels that a fitted star or a prediction fills (flagged SPREAD)
    count as if the mean were there.

    Parameters
    ----------
    lacking : ndarray of bool, shape (n, ny, nx)
        Pixels that images lack.
    kernels : ndarray of float64, shape (n, size)
        What they are convolved with.
    sigma : ndarray of float64, shape (n,)
        Standard deviations of their noise.

    Returns
    -------
    ndarray of float64, shape (ny, nx)
        1 where no image has the pixel.
    """
    packed = np.packbits(lacking, axis=0).reshape(-1, lacking[0].size).T
    patterns, which = np.unique(packed, axis=0, return_inverse=True)
    missing = np.unpackbits(patterns, axis=1, count=len(lacking)).astype(np.float64)
    gram = kernels @ kernels.T
    own = np.diag(gram) * sigma**2
    weight = (1 - missing) @ sigma**-2.0
    cross = missing @ gram
    extra = 2 * (cross * (1 - missing)).sum(axis=1) + (cross * missing).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = np.where(weight > 0, ((1 - missing) @ own + extra / weight) / own.sum(), 1.0)
    return growth[which.ravel()].reshape(lacking.shape[1:])


def _common(one: Window, other: Window) -> Window | None:
    """Return the part of the grid that two windows share."""
    rows, columns = (slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return None if rows.start >= rows.stop or columns.start >= columns.stop else (rows, columns)


def _read(plane: Plane, layer: Layer, window: Window) -> npt.NDArray[Any]:
    """Read a window of the grid from a plane of a layer."""
    rows, columns = (slice(a.start - w.start, a.stop - w.start) for a, w in zip(window, layer.window, strict=True))
    return plane.read((rows, columns))
