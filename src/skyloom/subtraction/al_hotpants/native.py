"""All of HOTPANTS in memory: from two images to difference, noise, mask, kernel and header."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.table import Table

from skyloom._threads import map_bands, row_bands, serial_blas
from skyloom.errors import InputError, ReadError, ShapeError, SubtractionError, TooFewStampsError
from skyloom.subtraction.al_hotpants.fit import RegionFit, fit_region
from skyloom.subtraction.al_hotpants.header import make_header
from skyloom.subtraction.al_hotpants.inputs import Plane, prepare
from skyloom.subtraction.al_hotpants.kernel import HotpantsBasis, HotpantsKernel, Region
from skyloom.subtraction.al_hotpants.options import HotpantsOptions
from skyloom.subtraction.al_hotpants.planes import make_planes
from skyloom.subtraction.al_hotpants.stamps import SearchImage, field_window, find_stamps, make_regions
from skyloom.subtraction.basis import Float64Array, KernelBasis
from skyloom.subtraction.dropin_arguments import real_plane
from skyloom.subtraction.kernel import SpatialKernel
from skyloom.subtraction.sanity import check_kernel

log = logging.getLogger("skyloom.subtraction")

_SHARPENS = 0.5
"""sum K^2 / (sum K)^2 above which a kernel may sharpen: 1 for a shift by whole pixels, much less for a smoothing."""


@dataclass(frozen=True, eq=False)
class HotpantsResult:
    """What HOTPANTS makes of two images.

    Parameters
    ----------
    diff : ndarray of float32, shape (ny, nx)
        Image minus matched template; `fi` where bad.
    convolved : ndarray of float32 or None
        The image that was convolved, with the differential background, on the scale of `diff`.
    noise : ndarray of float32 or None
        Standard deviation of `diff`; `fin` where bad.
    mask : ndarray of uint16
        Bits of `HotpantsBit`.
    kernel : HotpantsKernel
    header : astropy.io.fits.Header
        The keywords of HOTPANTS.
    stamps : Table
        Sub-stamps: x, y (0-based), region, merit.
    """

    diff: npt.NDArray[np.float32]
    convolved: npt.NDArray[np.float32] | None
    noise: npt.NDArray[np.float32] | None
    mask: npt.NDArray[np.uint16]
    kernel: HotpantsKernel
    header: fits.Header
    stamps: Table

    @property
    def scaled(self) -> npt.NDArray[np.float32] | None:
        """`diff` divided by `noise`; as `diff` where that is bad."""
        if self.noise is None:
            return None
        return np.divide(self.diff, self.noise, out=self.diff.copy(), where=self.noise > 0)


def hotpants(
    image: Any,
    template: Any,
    options: HotpantsOptions | None = None,
    *,
    positions: Any = None,
    sharper: bool = False,
    want_convolved: bool = True,
    want_noise: bool = True,
    want_statistics: bool = True,
) -> HotpantsResult:
    """Match a template to an image as HOTPANTS does, and subtract it.

    Parameters
    ----------
    image, template : array_like, shape (ny, nx)
        On the same grid.
    options : HotpantsOptions, optional
        Masks and noise are among them (imi, tmi, ini, tni).
    positions : array_like, shape (N, 2), optional
        x, y (0-based) of stars for sub-stamps; those of `ssf` and `cmp` if not given.
    sharper : bool
        With c='t': if the kernel that was found sharpens the template, convolve the image in its place.
    want_convolved, want_noise, want_statistics : bool
        Planes, and statistics of the difference in the header: what is not wanted saves time and memory.

    Raises
    ------
    ShapeError, InputError
        Planes of different shapes, or not images of real numbers.
    NoUsableDataError
        An image has no good pixel.
    TooFewStampsError
        Too few stars for the fit of a region.
    SubtractionError
        The kernel that was found is not one that images can have.
    """
    # `chosen` is for the lambda, where mypy does not know that options, which are set again below, are not None
    chosen = options = options or HotpantsOptions()
    image, template = real_plane(image, "the image"), real_plane(template, "the template")
    if image.shape != template.shape:
        raise ShapeError(
            f"The image has the shape {image.shape} and the template {template.shape}; they must be on the same grid. "
            "Resample the template first.",
            image=image.shape,
            template=template.shape,
        )
    given = [("image", image, options.imi, options.ini), ("template", template, options.tmi, options.tni)]
    sides = {plane.name: plane for plane in map_bands(lambda one: prepare(*one, chosen), given)}
    fitted: list[RegionFit | None] = []
    if options.ki is not None:
        kernel = options.ki if isinstance(options.ki, HotpantsKernel) else HotpantsKernel.read(options.ki)
    else:
        basis = _basis(options)
        options = options.replace(r=basis.half)
        with serial_blas():
            kernel, fitted = _fit_all(sides, options, basis, _positions(options, positions), sharper=sharper)
    with serial_blas():
        products = make_planes(
            sides["image"], sides["template"], kernel, options, want_convolved=want_convolved, want_noise=want_noise
        )
    header = make_header(products, kernel, fitted, options, statistics=want_statistics)
    stamps = _stamp_table(fitted)
    return HotpantsResult(products.diff, products.convolved, products.noise, products.mask, kernel, header, stamps)


def _fit_all(
    sides: dict[str, Plane], options: HotpantsOptions, basis: HotpantsBasis, positions: Float64Array | None, *,
    sharper: bool,
) -> tuple[HotpantsKernel, list[RegionFit | None]]:  # fmt: skip
    """Fit every region, in the direction that is asked for or that leaves less."""
    regions = make_regions(sides["image"].data.shape, options)
    fitted: list[RegionFit | None] = []
    columns, ways = [], []
    wanted = {"t": ["template"], "i": ["image"], "b": ["template", "image"]}[options.c]
    for region in regions:
        found = _fit_one(sides, region, wanted, basis=basis, options=options, positions=positions, sharper=sharper)
        if found is None:
            fitted.append(None)
            columns.append(np.full(HotpantsKernel.row_count(len(basis), options.ko, options.bgo), np.nan))
            ways.append(wanted[0])
            continue
        way, fit, column = found
        fitted.append(fit)
        columns.append(column)
        ways.append(way)
        if options.sconv:
            wanted = [way]
    return HotpantsKernel(basis, options.ko, options.bgo, tuple(regions), np.array(columns), tuple(ways)), fitted


def _fit_one(
    sides: dict[str, Plane], region: Region, wanted: list[str], *, basis: HotpantsBasis, options: HotpantsOptions,
    positions: Float64Array | None, sharper: bool,
) -> tuple[str, RegionFit, Float64Array] | None:  # fmt: skip
    """Fit one region; None if it has too few stamps and that is to be accepted (`empty`)."""
    own = basis.orthonormal()
    args: dict[str, Any] = {"basis": basis, "own": own, "options": options, "positions": positions}
    results: list[tuple[str, RegionFit, Float64Array]] = []
    failure: TooFewStampsError | None = None
    for way in wanted:
        try:
            results.append(_fit_way(sides, region, way, **args))
        except TooFewStampsError as error:
            failure = error
    if sharper and results and _sharpening(own, results[0]) > _SHARPENS:
        log.info("the kernel may sharpen the template: trying to convolve the image")
        try:
            other = _fit_way(sides, region, "image", **args)
        except SubtractionError:
            other = results[0]
        if _sharpening(own, other) < 0.5 * _sharpening(own, results[0]):
            results = [other]
    if results:
        return min(results, key=lambda one: one[1].figure)
    if options.empty == "fill":
        log.warning("%s", failure)
        return None
    assert failure is not None
    raise failure


def _fit_way(
    sides: dict[str, Plane], region: Region, way: str, *, basis: HotpantsBasis, own: KernelBasis,
    options: HotpantsOptions, positions: Float64Array | None,
) -> tuple[str, RegionFit, Float64Array]:  # fmt: skip
    """Fit one region in one direction."""
    moved, still = (sides[name] for name in (("template", "image") if way == "template" else ("image", "template")))
    limits = [np.inf if limit is None else limit for limit in (options.tuk, options.iuk)]
    upper, upper_still = limits if way == "template" else limits[::-1]
    shape = moved.bits.shape[0], moved.bits.shape[1]
    good: npt.NDArray[np.bool_] = np.empty(shape, bool)

    def find_good(rows: tuple[int, int]) -> None:
        part = slice(*rows)
        np.equal(moved.bits[part] | still.bits[part], 0, out=good[part])
        if np.isfinite(upper_still):
            good[part] &= still.data[part] < upper_still - still.pedestal

    map_bands(find_good, row_bands(len(good)))
    window = field_window(shape, options)
    search = SearchImage(moved.data, good, float(upper - moved.pedestal), window)
    queues = find_stamps(search, region, positions, options)
    fit = fit_region(moved, still, region, queues, basis=own, options=options)
    kernel = SpatialKernel(own, fit.coefficients, region.centre, region.scale)
    check_kernel(kernel, (region.bx0, region.bx1, region.by0, region.by1))
    coefficients = basis.coefficients_from(own, fit.coefficients)
    background = fit.background.copy()
    # the fit saw both images less their pedestals
    background[0] += still.pedestal - moved.pedestal * fit.coefficients[0, 0]
    return way, fit, HotpantsKernel.pack(coefficients, background)


def _sharpening(basis: KernelBasis, found: tuple[str, RegionFit, Float64Array]) -> float:
    """Return sum K^2 / (sum K)^2 where X = Y = 0."""
    image = np.tensordot(found[1].coefficients[:, 0], basis.images, axes=1)
    return float((image**2).sum() / image.sum() ** 2)


def _basis(options: HotpantsOptions) -> HotpantsBasis:
    """Return the kernel's basis that `ng` or `pca` describes."""
    if options.pca is None:
        return HotpantsBasis(options.r, *options.gaussians)
    count, given = None, options.pca
    if given and str(given[0]).isdigit():
        count, given = int(given[0]), given[1:]
    images = [real_plane(one, "a basis image") for one in given]
    if not images or (count is not None and count != len(images)):
        raise InputError(f"The option pca has {len(images)} images; their number {count}, then as many are needed.")
    side = images[0].shape[0]
    if side % 2 == 0 or any(one.shape != (side, side) for one in images):
        raise ShapeError(
            f"The images of pca have the shapes {[one.shape for one in images]}; all square, of one odd side."
        )
    stack = np.array(images, np.float64)
    if not np.isfinite(stack).all() or stack[0].sum() == 0:
        raise InputError("The images of pca must be finite, and the first must have a sum that is not 0.")
    return HotpantsBasis((side - 1) // 2, given=stack)


def _positions(options: HotpantsOptions, positions: Any) -> Float64Array | None:
    """Return the positions (x, y), 0-based, that the user gives for sub-stamps."""
    if positions is not None:
        return np.asarray(positions, np.float64).reshape(-1, 2)
    given = options.ssf if options.ssf is not None else options.cmp
    if given is None:
        return None
    if isinstance(given, str | Path):
        try:
            given = np.loadtxt(given, usecols=(0, 1) if options.ssf is not None else (1, 2), ndmin=2)
        except (OSError, ValueError) as error:
            raise ReadError(f"The positions in {given} cannot be read: {error}") from error
    xy = np.asarray(given, np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ShapeError(f"The positions ssf have the shape {xy.shape}; (N, 2) is needed.")
    return xy[np.isfinite(xy).all(axis=1)] - 1


def _stamp_table(fitted: list[RegionFit | None]) -> Table:
    """Return the sub-stamps of the fit."""
    rows = [
        (star.x, star.y, number, merit)
        for number, fit in enumerate(fitted)
        if fit is not None
        for star, merit in zip(fit.stamps, fit.merits, strict=True)
    ]
    return Table(rows=rows or None, names=["x", "y", "region", "merit"], dtype=[int, int, int, float])
