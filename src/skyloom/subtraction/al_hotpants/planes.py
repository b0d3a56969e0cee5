"""The output planes of `run_hotpants`, strip by strip: convolved image, difference, noise and mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skyloom._threads import map_bands, row_bands
from skyloom.convolution import MAX_ORDER, PolynomialKernel, convolve_varying, exponents
from skyloom.subtraction.al_hotpants.inputs import HotpantsBit, Plane
from skyloom.subtraction.al_hotpants.kernel import HotpantsKernel, Region
from skyloom.subtraction.al_hotpants.options import HotpantsOptions
from skyloom.subtraction.al_hotpants.stamps import field_window
from skyloom.subtraction.basis import Float64Array

Float32Plane = npt.NDArray[np.float32]
_ROWS = 128  # of a strip
_TOUCHED = 1e-6  # share of sum |K| below which a pixel counts as untouched: rounding of the sums


@dataclass(frozen=True, eq=False)
class Products:
    """The output planes, all of shape (ny, nx); None for those not wanted.

    Parameters
    ----------
    diff, convolved, noise : ndarray of float32
    mask : ndarray of uint16
        `HotpantsBit`.
    """

    diff: Float32Plane
    mask: npt.NDArray[np.uint16]
    convolved: Float32Plane | None
    noise: Float32Plane | None


@dataclass(frozen=True, eq=False)
class _Task:
    """What one region does to the planes."""

    region: Region
    moved: Plane
    still: Plane
    kernel: PolynomialKernel
    background: Float64Array
    sign: float
    factor: float
    """The difference, its noise and the convolved image are multiplied by this: 1, or 1 / sum K."""


def make_planes(
    image: Plane, template: Plane, kernel: HotpantsKernel, options: HotpantsOptions, *,
    want_convolved: bool, want_noise: bool,
) -> Products:  # fmt: skip
    """Convolve, subtract, and propagate noise and masks.

    Where two regions meet, their results are blended over half a stamp on each side (`options.blend`); the variance is
    blended like the difference, which is an upper limit, as K^2 is convex.
    """
    shape = image.data.shape
    products = Products(
        np.empty(shape, np.float32),
        np.empty(shape, np.uint16),
        np.empty(shape, np.float32) if want_convolved else None,
        np.empty(shape, np.float32) if want_noise else None,
    )
    blank = ((products.diff, options.fi), (products.convolved, options.fi), (products.noise, options.fin))
    tasks = [
        _task(number, image, template, kernel, options)
        for number in range(len(kernel.regions))
        if np.isfinite(kernel.solutions[number]).all()
    ]

    def strip(rows: tuple[int, int]) -> None:
        here = slice(*rows)
        for plane, value in blank:
            if plane is not None:
                plane[here] = value
        products.mask[here] = image.bits[here] | template.bits[here] | np.uint16(HotpantsBit.OUTPUT_ISBAD)
        _fill_strip(rows, tasks, products, kernel.basis.half, options)

    map_bands(strip, row_bands(shape[0], _ROWS))
    return products


def _task(number: int, image: Plane, template: Plane, kernel: HotpantsKernel, options: HotpantsOptions) -> _Task:
    """Return what the region of this number has to do."""
    region, convolved = kernel.regions[number], kernel.convolved[number]
    moved, still = (template, image) if convolved == "template" else (image, template)
    own = kernel.polynomial(number)
    # HOTPANTS takes the kernel's sum in the middle of the region
    total = own.sum_at(*region.centre)
    scaled = options.n == convolved[0]  # wanted on the scale of the image that was convolved
    sign = 1.0 if convolved == "template" else -1.0
    return _Task(region, moved, still, own, kernel.background(number), sign, 1 / total if scaled else 1.0)


def _fill_strip(
    rows: tuple[int, int], tasks: list[_Task], products: Products, half: int, options: HotpantsOptions
) -> None:
    """Fill some rows of the products, from all regions that reach them."""
    wanted = {"want_noise": products.noise is not None, "want_convolved": products.convolved is not None}
    ny, nx = products.diff.shape
    x0, x1, y0, y1 = field_window((ny, nx), options)
    margins = (y0 + half, y1 + 1 - half), (x0 + half, x1 + 1 - half)
    if len(tasks) == 1:
        box = _clip_box(rows, tasks[0].region, 0, margins)
        if box is not None:
            _store(box, _region_part(tasks[0], box, half, options, **wanted), products, options)
        return
    blended = _Blend(rows, nx)
    for task in tasks:
        region = task.region
        blend = _blend_width(region) if options.blend else 0
        box = _clip_box(rows, region, blend, margins)
        if box is not None:
            weight = np.outer(
                _ramp(box[0], region.y0, region.y1, blend=blend, first=region.by0, last=region.by1),
                _ramp(box[1], region.x0, region.x1, blend=blend, first=region.bx0, last=region.bx1),
            )
            blended.add(box, region, weight, _region_part(task, box, half, options, **wanted))
    _store((rows, (0, nx)), blended.part(), products, options)


@dataclass(frozen=True, eq=False)
class _Part:
    """The planes of one region on a box."""

    diff: Float32Plane
    convolved: Float32Plane | None
    variance: Float32Plane | None
    bits: npt.NDArray[np.uint16]


Box = tuple[tuple[int, int], tuple[int, int]]
"""Rows and columns, half-open."""


def _clip_box(rows: tuple[int, int], region: Region, blend: int, margins: Box) -> Box | None:
    """Return the rows and columns of a strip that a region reaches, within the margins."""
    y = max(rows[0], region.by0, region.y0 - blend), min(rows[1], region.by1 + 1, region.y1 + 1 + blend)
    x = max(region.bx0, region.x0 - blend), min(region.bx1 + 1, region.x1 + 1 + blend)
    y = max(y[0], margins[0][0]), min(y[1], margins[0][1])
    x = max(x[0], margins[1][0]), min(x[1], margins[1][1])
    return (y, x) if y[0] < y[1] and x[0] < x[1] else None


def _region_part(
    task: _Task, box: Box, half: int, options: HotpantsOptions, *, want_noise: bool, want_convolved: bool
) -> _Part:
    """Convolve and subtract on a box of the image.

    The convolution runs over good pixels only and divides by the share of sum K that fell on them, so that nothing
    leaks from bad ones.
    """
    (y0, y1), (x0, x1) = box
    ny, nx = task.moved.data.shape
    # the box with what the kernel reaches, as far as there is any
    rows, columns = slice(max(0, y0 - half), min(ny, y1 + half)), slice(max(0, x0 - half), min(nx, x1 + half))
    inside = (y0 - rows.start, y1 - rows.start), (x0 - columns.start, x1 - columns.start)
    here = slice(y0, y1), slice(x0, x1)
    good = ~task.moved.bad((rows, columns))
    kernel = task.kernel.moved(columns.start, rows.start)
    data = task.moved.data[rows, columns]
    variance = task.moved.variance((rows, columns)) if want_noise else None
    squared = None if options.convvar else variance
    smooth = convolve_varying(data, kernel, squared, good, part=inside, exact=False, threads=1)
    total = smooth.variance
    if options.convvar and variance is not None:
        total = np.maximum(convolve_varying(variance, kernel, None, good, part=inside, exact=False, threads=1).data, 0)
    # K * data was taken of the image less its pedestal, and so is `still`; sum K is the same everywhere
    shift = task.moved.pedestal * task.kernel.sum_at(*task.region.centre) - task.still.pedestal
    matched = smooth.data
    matched += _level(task, box, shift)
    diff = task.still.data[here] - matched
    diff *= np.float32(task.sign * task.factor)
    if total is not None:
        total += task.still.variance(here)
        total *= np.float32(task.factor**2)
    convolved = None
    if want_convolved:
        matched += np.float32(task.still.pedestal)
        matched *= np.float32(task.factor)
        convolved = matched
    return _Part(diff, convolved, total, _output_bits(task, here, smooth.lost, options))


def _level(task: _Task, box: Box, shift: float) -> Float32Plane:
    """Return the differential background + `shift` on a box: a product of its polynomials of x and the powers of y."""
    (y0, y1), (x0, x1) = box
    order = next(n for n in range(MAX_ORDER + 1) if len(exponents(n)) == len(task.background))
    X = (np.arange(x0, x1) - task.kernel.centre[0]) / task.kernel.scale[0]
    Y = (np.arange(y0, y1) - task.kernel.centre[1]) / task.kernel.scale[1]
    of_x = np.zeros((order + 1, len(X)))
    for (i, j), c in zip(exponents(order), task.background, strict=True):
        of_x[j] += c * X**i
    of_x[0] += shift
    return (Y[:, None] ** np.arange(order + 1)).astype(np.float32) @ of_x.astype(np.float32)


def _output_bits(
    task: _Task, here: tuple[slice, slice], lost: Float32Plane, options: HotpantsOptions
) -> npt.NDArray[np.uint16]:
    """Return the mask of the output: bits of both images, and what the kernel spread."""
    bits = task.moved.bits[here] | task.still.bits[here]
    if bits.any():
        bits[(bits & np.uint16(HotpantsBit.INPUT_ISBAD)) != 0] |= np.uint16(HotpantsBit.OUTPUT_ISBAD)
    touched = lost > _TOUCHED
    if touched.any():
        given_up = lost > 1 - options.kfm
        bits[given_up] |= np.uint16(HotpantsBit.OUTPUT_ISBAD | HotpantsBit.BAD_CONV)
        bits[touched & ~given_up] |= np.uint16(HotpantsBit.OK_CONV)
    return bits


def _blend_width(region: Region) -> int:
    """Return over how many pixels, on each side of its borders, a region goes over into its neighbours."""
    border = max(region.x0 - region.bx0, region.bx1 - region.x1, region.y0 - region.by0, region.by1 - region.y1)
    return min(border, (region.x1 - region.x0 + 1) // 4, (region.y1 - region.y0 + 1) // 4)


def _ramp(span: tuple[int, int], low: int, high: int, *, blend: int, first: int, last: int) -> Float64Array:
    """Return the weight of a region along one axis: 1 inside, 1/2 at its ends, down to 0 at `blend` pixels beyond.

    There is no ramp at ends where the region has no border (`first` = low, `last` = high): nothing comes after them.
    """
    at = np.arange(*span)
    weight = np.ones(len(at))
    if blend > 0 and first < low:
        weight *= _rise((at - (low - 0.5)) / blend)
    if blend > 0 and last > high:
        weight *= _rise(((high + 0.5) - at) / blend)
    return weight


def _rise(t: Float64Array) -> Float64Array:
    """Go from 0 at t = -1 to 1 at t = 1, so that rise(t) + rise(-t) = 1."""
    return 0.5 + 0.5 * np.sin(0.5 * np.pi * np.clip(t, -1, 1))


class _Blend:
    """Weighted means of the regions' planes on one strip."""

    def __init__(self, rows: tuple[int, int], width: int) -> None:
        shape = (rows[1] - rows[0], width)
        self.rows = rows
        self.weight = np.zeros(shape, np.float32)
        self.sums = np.zeros((3, *shape), np.float32)
        self.bits = np.zeros(shape, np.uint16)
        self.inside = np.zeros(shape, bool)

    def add(self, box: Box, region: Region, weight: Float64Array, part: _Part) -> None:
        where = slice(box[0][0] - self.rows[0], box[0][1] - self.rows[0]), slice(*box[1])
        # a region that has no value here leaves the pixel to the others
        bad = (part.bits & np.uint16(HotpantsBit.OUTPUT_ISBAD)) != 0
        share = np.maximum(weight, 1e-6).astype(np.float32) * np.where(bad, np.float32(1e-6), np.float32(1))
        self.weight[where] += share
        for total, plane in zip(self.sums, (part.diff, part.convolved, part.variance), strict=True):
            if plane is not None:
                total[where] += share * plane
        self.bits[where] |= part.bits
        y, x = (slice(max(0, low - start), max(0, high + 1 - start)) for low, high, start in
                ((region.y0, region.y1, self.rows[0]), (region.x0, region.x1, 0)))  # fmt: skip
        self.inside[y, x] = True

    def part(self) -> _Part:
        """Return the means; pixels that lie in no region are bad."""
        weight = np.where(self.weight > 0, self.weight, np.float32(1))
        self.bits[~self.inside | (self.weight == 0)] |= np.uint16(HotpantsBit.OUTPUT_ISBAD)
        return _Part(self.sums[0] / weight, self.sums[1] / weight, self.sums[2] / weight, self.bits)


def _store(box: Box, part: _Part, products: Products, options: HotpantsOptions) -> None:
    """Put a part into the products, with fill values where it is bad."""
    here = slice(*box[0]), slice(*box[1])
    products.mask[here] = part.bits
    products.diff[here] = part.diff
    if products.convolved is not None and part.convolved is not None:
        products.convolved[here] = part.convolved
    if products.noise is not None and part.variance is not None:
        np.sqrt(part.variance, out=products.noise[here])
    if options.mous >= 0 and part.bits.any():
        bad = (part.bits & np.uint16(HotpantsBit.OUTPUT_ISBAD)) != 0
        products.diff[here][bad] = options.fi
        if products.noise is not None:
            products.noise[here][bad] = options.fin
