"""One co-add in the making: what is done to which exposure when, within the memory that is allowed."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import NoOverlapError
from skyloom.exposure import BoolArray, MaskBit
from skyloom.resampling.correlation import CovarianceMap
from skyloom.stacking.drizzling import TilePlanes, TileSums, Weighted, add_to_tiles, tile_bytes, tiles_of, weighted
from skyloom.stacking.frames import Frame, PlacedExposure, area_factor
from skyloom.stacking.median_noise import median_covariance
from skyloom.stacking.members import Progress
from skyloom.stacking.memory import Budget, Plane, Scratch, Window, trim_memory, window_shape, zeros
from skyloom.stacking.options import CoaddOptions
from skyloom.stacking.outliers import MedianImage, Single, interpolate_single, median_image, outliers_of
from skyloom.stacking.result import Coadd, Contribution, exposure_fields

_log = logging.getLogger("skyloom.stacking")

_WORK_PER_PIXEL = 75  # bytes: reading an exposure, its planes, weights, the comparison with the median
_KEPT_PER_PIXEL = 22  # bytes of a frame that is kept in memory, with its outliers
_MEDIAN_PER_CELL = 10  # bytes of the median image


@dataclass(eq=False)
class Job:
    """The state of a co-add, from the placed exposures to the result.

    Parameters
    ----------
    placed : sequence of PlacedExposure
        The exposures.
    scales : sequence of float
        Their flux scales.
    shape : (int, int)
        Of the output grid.
    options, budget, scratch
        How, and with what.
    earlier : Coadd or None
        What is extended.
    progress : callable
        Called as ``progress(what, done, total)``.
    """

    placed: Sequence[PlacedExposure]
    scales: Sequence[float]
    shape: tuple[int, int]
    options: CoaddOptions
    budget: Budget
    scratch: Scratch
    earlier: Coadd | None
    progress: Progress
    _frames: dict[int, Frame] = field(default_factory=dict)
    _outliers: dict[int, Plane] = field(default_factory=dict)
    _rejected: dict[int, int] = field(default_factory=dict)
    _correlations: dict[int, float] = field(default_factory=dict)
    _sky_noise: list[float] = field(default_factory=list)
    _done: int = 0

    def __post_init__(self) -> None:
        sizes = [math.prod(one.member.shape) for one in self.placed]
        self._work = max(sizes) * _WORK_PER_PIXEL
        kept = sum(sizes) * _KEPT_PER_PIXEL
        self._keep_frames = kept <= self.budget.free // 4
        self._held = kept if self._keep_frames else 0
        self._dtype = np.result_type(*(one.member.dtype for one in self.placed))

    @property
    def n_context(self) -> int:
        """Planes of the context."""
        before = 0 if self.earlier is None else self.earlier.n_exposures
        return (before + len(self.placed) - 1) // 32 + 1

    def run(self, wcs: Any, reference: Mapping[str, Any], *, in_file: bool) -> Coadd:
        """Make the co-add; its planes lie on disk if they are large and `in_file`."""
        if self.options.method == "proper":
            from skyloom.stacking.proper import run_proper

            return run_proper(self, wcs, reference, in_file=in_file)
        planes = self.result_planes(in_file=in_file)
        tiles = tiles_of(self.shape)
        with_covariance = self.options.covariance is not None and self.options.method != "median"
        one_tile = tile_bytes(self.shape, self._dtype.itemsize, self.n_context, covariance=with_covariance)
        self.budget.check(self._held + self._work + one_tile, "Co-adding one exposure at a time")
        median, ratio = self.median() if self.options.method in ("clipped", "median") else (None, 1.0)
        group = max(1, (self.room - self._work) // one_tile)
        shares = np.zeros((len(self.placed), len(tiles)))
        noise, covariances = np.zeros((len(tiles), 2)), []
        steps = sum(one.part_for(tile) is not None for one in self.placed for tile in tiles)
        for start in range(0, len(tiles), group):
            sums = [self._start(tile) for tile in tiles[start : start + group]]
            shares[:, start : start + group] = add_to_tiles(
                sums, self.placed, lambda one: self._image(one, median, steps)
            )
            for k in range(start, start + len(sums)):
                tile = sums.pop(0)
                noise[k] = tile.noise_sums()
                if with_covariance:
                    covariances.append(self._covariance(tile))
                self._finish(tile, planes, median if self.options.method == "median" else None)
            del tile  # its memory is for the next ones
        self.check_covered(planes)
        correlation = max(1.0, noise[:, 0].sum() / noise[:, 1].sum()) if noise[:, 1].sum() > 0 else 1.0
        if self.options.method == "median":
            correlation = ratio
        contributions = self.contributions(shares.sum(axis=1))
        fields = exposure_fields(contributions, reference, wcs, correlation)
        covariance = join_covariances(covariances, self.shape, self.options.covariance or 1) if covariances else None
        if self.options.method == "median" and self.options.covariance is not None:
            covariance = median_covariance(self.placed, self._sky_noise, self.shape, self.options.covariance)
        return Coadd(planes, fields, contributions, self.options, covariance)

    # --- exposures ------------------------------------------------------------------------------

    def frame(self, one: PlacedExposure) -> Frame:
        """Return the pixels of an exposure, from memory if they are kept."""
        frame = self._frames.get(one.number)
        if frame is None:
            trim_memory()  # what is left of the last one lies in pieces
            frame = one.load()
            self._correlations[one.number] = frame.correlation
            if self._keep_frames:
                self._frames[one.number] = frame
        return frame

    def _image(self, one: PlacedExposure, median: MedianImage | None, steps: int) -> Weighted:
        self.progress("co-adding", self._done, steps)
        self._done += 1
        frame = self.frame(one)
        return weighted(one, frame, self.outliers(one, frame, median), self.options)

    def outliers(self, one: PlacedExposure, frame: Frame, median: MedianImage | None) -> BoolArray | None:
        """Return the outlying pixels of an exposure; they are looked for once."""
        if median is None or not self.options.rejects:
            return None
        ny, nx = one.member.shape
        packed = self._outliers.get(one.number)
        if packed is None:
            found = outliers_of(one, frame, median, self.options.rejection)
            self._rejected[one.number] = int(found.sum())
            _log.info("%s: %d outlying pixels", one.name, self._rejected[one.number])
            packed = self.scratch.plane((ny, -(-nx // 8)), np.uint8, on_disk=not self._keep_frames)
            packed.write((slice(None), slice(None)), np.packbits(found, axis=1))
            self._outliers[one.number] = packed
            trim_memory()
            return found
        return np.unpackbits(packed.read(), axis=1, count=nx).view(bool)

    def median(self) -> tuple[MedianImage, float]:
        """Interpolate all exposures onto the grid; return their median, and the noise correlation of the singles."""
        windows = [one.window() for one in self.placed]
        cells = sum(math.prod(window_shape(window)) for window in windows if window is not None)
        held = _MEDIAN_PER_CELL * math.prod(self.shape)
        on_disk = 8 * cells + held > self.budget.free // 4
        singles, ratios = [], []
        for number, one in enumerate(self.placed):
            self.progress("interpolating", number, len(self.placed))
            frame = self.frame(one)
            single = interpolate_single(one, frame, self.scratch, on_disk=on_disk)
            singles.append(single)
            ratios.append(_smoothing(frame, single) * one.scale**2 * frame.correlation)
            self._sky_noise.append(float(np.median(frame.variance[frame.usable])))
        if self.earlier is not None:
            counts = self._counts()
            whole = slice(0, self.shape[0]), slice(0, self.shape[1])
            singles.insert(0, Single(whole, _WhereUsed(self.earlier), self.earlier.planes["VAR"], counts))
        self.progress("taking the median", len(self.placed), len(self.placed))
        image = median_image(singles, self.shape, self.scratch, on_disk=on_disk, memory=self._work)
        self._held += 0 if on_disk else held
        return image, max(1.0, float(np.mean(ratios)))

    def _counts(self) -> Plane:
        """Return how many exposures the earlier co-add holds at each pixel."""
        assert self.earlier is not None
        counts = self.scratch.plane(self.shape, np.int16, on_disk=False)
        for tile in tiles_of(self.shape):
            bits = self.earlier.planes["CTX"].read(tile).view(np.uint32)
            counts.write(tile, np.bitwise_count(bits).sum(axis=0))
        return counts

    # --- tiles ----------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes that are free for more."""
        return self.budget.free - self._held

    def result_planes(self, *, in_file: bool) -> dict[str, Plane]:
        """Return the planes of the result."""
        size = self._dtype.itemsize
        cells = math.prod(self.shape)
        needed = cells * (3 * size + 8 + 4 * self.n_context)
        on_disk = in_file and needed > self.budget.free // 4
        if not in_file:
            self.budget.check(needed, "The result in memory (give output= for one in a file)")
        kinds: dict[str, tuple[tuple[int, ...], Any]] = {
            **dict.fromkeys(("SCI", "VAR", "WHT"), (self.shape, self._dtype)),
            "DQ": (self.shape, np.uint32),
            "CTX": ((self.n_context, *self.shape), np.int32),
            "EXPTIME": (self.shape, np.float32),
        }
        self._held += 0 if on_disk else needed
        return {name: self.scratch.plane(*kind, on_disk=on_disk) for name, kind in kinds.items()}

    def _start(self, window: Window) -> TileSums:
        shape = window_shape(window)
        planes = TilePlanes(
            data=zeros(shape, self._dtype),
            variance=zeros(shape, self._dtype),
            weight=zeros(shape, self._dtype),
            dq=zeros(shape, np.uint32),
            context=zeros((self.n_context, *shape), np.int32),
            culprits=zeros(shape, np.uint32),
        )
        if self.earlier is None:
            return TileSums(window, self.options, planes, 1.0)
        before = self.earlier.planes
        planes.data[:], planes.variance[:] = before["SCI"].read(window), before["VAR"].read(window)
        planes.weight[:] = before["WHT"].read(window)
        context = before["CTX"].read(window)
        planes.context[: len(context)] = context
        mask, used = before["DQ"].read(window), planes.weight > 0
        planes.dq[used], planes.culprits[~used] = mask[used], mask[~used]
        return TileSums(window, self.options, planes, float(self.earlier.fields["correlation"] or 1.0))

    def _finish(self, sums: TileSums, planes: Mapping[str, Plane], median: MedianImage | None) -> None:
        """Put the sums of a tile into the planes of the result."""
        own, window = sums.planes, sums.window
        empty = own.weight <= 0
        if median is not None:
            empty |= median.count.read(window) < 1
            own.data[:], own.variance[:] = median.data.read(window), median.variance.read(window)
            own.weight[empty] = 0
            own.context[:, empty] = 0
        mask = np.where(empty, own.culprits | np.uint32(MaskBit.NO_DATA), own.dq)
        if self.options.saturated == "flag":
            mask |= own.culprits & np.uint32(MaskBit.SATURATED)
        planes["SCI"].write(window, np.where(empty, 0, own.data))
        planes["VAR"].write(window, np.where(empty, 0, own.variance))
        planes["WHT"].write(window, own.weight)
        planes["DQ"].write(window, mask)
        planes["CTX"].write(window, own.context)
        planes["EXPTIME"].write(window, self.seconds(own.context))

    def seconds(self, context: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Return the sum of the exposure times of the exposures whose bits are set."""
        times = [] if self.earlier is None else [one.exptime for one in self.earlier.contributions]
        times += [one.member.exptime or 0.0 for one in self.placed]
        total = np.zeros(context.shape[1:], np.float32)
        for k, time in enumerate(times):
            if time:
                total += np.float32(time) * ((context[k // 32] >> (k % 32)) & 1)
        return total

    def _covariance(self, sums: TileSums) -> CovarianceMap:
        """Return the covariances in a tile, those of the earlier co-add included."""
        found = sums.covariance()
        assert found is not None
        before = None if self.earlier is None else self.earlier.covariance
        if before is None or sums.earlier_weight is None or before.block != found.block:
            return found
        j, i = (part.start // found.block for part in sums.window)
        blocks = before.covariance[j : j + found.covariance.shape[0], i : i + found.covariance.shape[1]]
        # Cov' = Cov W^2 / W'^2, with the mean of W / W' in each block
        with np.errstate(invalid="ignore", divide="ignore"):
            part = np.where(sums.planes.weight > 0, sums.earlier_weight / sums.planes.weight, 0.0)
        share = _block_means(np.square(part), found.block)
        old, new = same_reach([blocks * share[:, :, None, None], found.covariance])
        return CovarianceMap(old + new, found.block, found.shape)

    def contributions(self, weights: npt.NDArray[np.float64]) -> tuple[Contribution, ...]:
        """Return what each exposure brings, the earlier ones first."""
        own = tuple(
            Contribution(
                name=one.name,
                exptime=float(one.member.exptime or 0.0),
                scale=float(scale),
                factor=float(one.factor),
                sky=one.sky,
                n_rejected=self._rejected.get(one.number, 0),
                weight=float(weight),
                # fluxes were multiplied with the factor over the area of an output pixel that it may hold
                gain=float(one.member.gain or 0.0) * area_factor(one) / one.factor,
                correlation=self._correlations.get(one.number, one.member.correlation),
                level=one.member.level,
                fwhm=getattr(one.to_grid.map, "fwhm", 0.0),
                n_stars=getattr(one.to_grid.map, "n_stars", 0),
            )
            for one, scale, weight in zip(self.placed, self.scales, weights, strict=True)
        )
        return own if self.earlier is None else (*self.earlier.contributions, *own)

    def check_covered(self, planes: Mapping[str, Plane]) -> None:
        """Raise if nothing has been added anywhere."""
        if not any((planes["WHT"].read(tile) > 0).any() for tile in tiles_of(self.shape)):
            raise NoOverlapError("No output pixel has a usable input pixel: all that overlap are masked or rejected.")


class _WhereUsed(Plane):
    """The image of a co-add, NaN where it has no data."""

    def __init__(self, coadd: Coadd) -> None:
        super().__init__(np.empty((0, 0), np.float32))
        self._coadd = coadd

    def read(self, window: Window | None = None) -> npt.NDArray[Any]:
        """Return the values of a window."""
        values, weight = self._coadd.planes["SCI"].read(window), self._coadd.planes["WHT"].read(window)
        return np.where(weight > 0, values, values.dtype.type(np.nan))


def _smoothing(frame: Frame, single: Single) -> float:
    """Return the variance of the pixels of a frame over that of its interpolation."""
    whole = tuple(slice(0, n) for n in single.data.shape)
    good = np.isfinite(single.data.read(whole))  # type: ignore[arg-type]
    if not good.any():
        return 1.0
    return float(np.median(frame.variance[frame.usable]) / np.median(single.variance.read(whole)[good]))  # type: ignore[arg-type]


def _block_means(plane: npt.NDArray[Any], block: int) -> npt.NDArray[np.float64]:
    edges = [np.arange(0, n, block) for n in plane.shape]
    sums = np.add.reduceat(np.add.reduceat(plane.astype(np.float64), edges[0], axis=0), edges[1], axis=1)
    sizes = [np.diff([*edge, n]) for edge, n in zip(edges, plane.shape, strict=True)]
    return sums / (sizes[0][:, None] * sizes[1][None, :])


def same_reach(maps: Sequence[npt.NDArray[np.float64]]) -> list[npt.NDArray[np.float64]]:
    """Return covariances, shape (..., reach_y + 1, 2 reach_x + 1) each, padded to the largest lags of all."""
    y, x = (max(one.shape[axis] for one in maps) for axis in (2, 3))
    result = []
    for one in maps:
        side = (x - one.shape[3]) // 2
        result.append(np.pad(one, ((0, 0), (0, 0), (0, y - one.shape[2]), (side, side))))
    return result


def join_covariances(tiles: Sequence[CovarianceMap], shape: tuple[int, int], block: int) -> CovarianceMap:
    """Put the covariances of all tiles (in the order of `tiles_of`) together."""
    parts = same_reach([tile.covariance for tile in tiles])
    across = len({window[1].start for window in tiles_of(shape)})
    rows = [np.concatenate(parts[k : k + across], axis=1) for k in range(0, len(parts), across)]
    return CovarianceMap(np.concatenate(rows), block, shape)
