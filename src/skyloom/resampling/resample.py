"""`resample`: bring an exposure onto another pixel grid in one step, with all of its planes."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom._kernels import clean_windows, interpolate
from skyloom._kernels import pixel_area_ratio as _pixel_area_ratio
from skyloom._threads import map_bands, row_bands
from skyloom.errors import InputError, NoOverlapError
from skyloom.exposure import UNUSABLE, Exposure, MaskBit
from skyloom.resampling.kernels import HALF_WIDTHS, polynomial_table, tap_weights
from skyloom.resampling.maps import Map, SampledMap, XYArray, area_at
from skyloom.resampling.spline import DEGREES, spline_coefficients

_log = logging.getLogger("skyloom.resampling")

LARGEST_PIXEL_RATIO = 1.1  # above it, interpolation leaves out light and aliases: area overlap is used
_PROBE = 61  # one pixel in so many of each megapixel is probed for the noise correlation; odd, to walk over the columns


def resample(
    exposure: Exposure,
    out_to_in: Map,
    shape: tuple[int, int],
    *,
    method: str = "auto",
    conserve: str = "flux",
    wcs: Any = None,
    tolerance: float = 1e-4,
    max_lost: float = 0.1,
) -> Exposure:
    """Bring an exposure onto another pixel grid, with its variance and mask.

    Each output value is I(x, y) = sum_k w_k d_k, with weights that sum to 1 over the usable pixels, times the
    area of the output pixel in input pixels if flux is conserved; its variance is sum_k w_k^2 v_k times that
    area squared.

    The mask of an output pixel follows from the part of sum abs(w_k) that fell on unusable pixels. None: the
    mask is clean. At most `max_lost`, and the nearest input pixel is usable: the rest is renormalised and the
    pixel gets `MaskBit.SPREAD`. More: it gets the bits of the pixels that were lost, `MaskBit.NO_DATA`
    outside of the image (for 'area' wherever no usable pixel overlaps it), and `MaskBit.EDGE` where only the
    kernel reaches outside. Bits that do not make a pixel unusable are passed on.

    Parameters
    ----------
    exposure : Exposure
        The image to resample.
    out_to_in : callable
        ``(N, 2) -> (N, 2)``, from output pixels to pixels of `exposure`.
    shape : (int, int)
        Shape (ny, nx) of the output.
    method : {'auto', 'lanczos3', 'lanczos4', 'lanczos5', 'spline3', 'spline5', 'cubic', 'poly3', 'poly5', \
'bilinear', 'area'}
        'splineN' is the interpolating spline of degree N, sum_k c_k beta(x - k) with the B-spline coefficients c of the
        image: the same as sum_k eta(x - k) d_k with the cardinal spline eta. Its values at the 10 x 10 nearest pixels
        (the rest is below 7e-4 for N = 3, 6e-3 for 5) are the weights w_k of variance and mask, and of the data where
        one of these pixels is unusable; farther off, an unusable pixel has the value that its neighbours make likely.
        'area' shares each input pixel among the output pixels that it overlaps (square drizzle, pixfrac 1).
        'auto' is 'lanczos3', or 'area' where an output pixel is more than 1.1 input pixels wide:
        interpolation would alias there.
    conserve : {'flux', 'surface brightness'}
        'flux': the sum over a star stays the same. 'surface brightness': the value of a flat sky stays the
        same.
    wcs : APE-14 WCS, optional
        WCS of the output grid, for the result.
    tolerance : float
        Largest error of the coordinates, in input pixels, see `skyloom.resampling.SampledMap`.
    max_lost : float
        Largest lost part of the kernel with which an output pixel is still used.

    Returns
    -------
    Exposure
        On the output grid. `correlation` is set to the variance of the mean of many output pixels over what
        independent pixels of its `variance` would have, 1 / mean(A sum_k w_k^2) for pixel area A, times that
        of the input. `coverage` is the part of sum abs(w_k) (for 'area' that of the pixel's area) that fell on
        usable pixels, 0 where the pixel lies outside of the image. `zeropoint` and `gain` are those of its sums over
        stars. `psf` and `saturation` are dropped: they belong to the input's pixels.

    Raises
    ------
    NoOverlapError
        No output pixel can be used.
    InputError
        An option is unknown, or the map is no map.
    """
    if method not in ("auto", "area", *HALF_WIDTHS):
        raise InputError(f"method is {method!r}; it must be 'auto', 'area', or one of {', '.join(HALF_WIDTHS)}.")
    if conserve not in ("flux", "surface brightness"):
        raise InputError(f"conserve is {conserve!r}; it must be 'flux' or 'surface brightness'.", conserve=conserve)
    if not 0 <= max_lost < 1:
        raise InputError(f"max_lost is {max_lost}; it must be at least 0 and below 1.", max_lost=max_lost)
    if not isinstance(exposure, Exposure):
        raise InputError(f"exposure is a {type(exposure).__name__}; an Exposure is needed: skyloom.read makes one.")
    sampled = SampledMap(out_to_in, shape, tolerance=tolerance)
    area = median_area(sampled)
    if area == 0:
        raise InputError("The coordinate map sends the output to a point or a line: its pixels have no area.")
    if method == "auto":
        method = "area" if area > LARGEST_PIXEL_RATIO**2 else "lanczos3"
    zeropoint, gain = exposure.zeropoint, exposure.gain
    if conserve == "surface brightness":  # a star's sum is smaller by the area
        zeropoint = None if zeropoint is None else zeropoint - 2.5 * np.log10(area)
        gain = None if gain is None else gain * area
    if method == "area":
        from skyloom.resampling.overlap import resample_by_area

        result = resample_by_area(exposure, sampled, conserve=conserve, max_lost=max_lost, tolerance=tolerance)
        result = result.replace(wcs=wcs, zeropoint=zeropoint, gain=gain)
    else:
        result = _interpolate(exposure, sampled, method, conserve, max_lost, wcs=wcs, zeropoint=zeropoint, gain=gain)
    if all((row & np.uint32(UNUSABLE)).all() for row in result.mask):
        raise NoOverlapError(
            f"No pixel of {exposure.name} falls on the grid of {sampled.shape[1]} x {sampled.shape[0]} "
            "pixels, or all that do are masked. Check the coordinate map (or the WCS) and the mask.",
            name=exposure.name,
        )
    _log.info(
        "resampled %s to %d x %d pixels by %s; noise correlation %.3f",
        exposure.name,
        sampled.shape[1],
        sampled.shape[0],
        method,
        result.correlation,
    )
    return result


def median_area(sampled: SampledMap) -> float:
    """Return the median area of an output pixel, in input pixels (1 if the map is nowhere finite)."""
    ny, nx = sampled.shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, 17), np.linspace(0, ny - 1, 17))
    area = area_at(sampled.map, np.stack([x.ravel(), y.ravel()], axis=1))
    area = area[np.isfinite(area)]
    return float(np.median(area)) if len(area) else 1.0


def _interpolate(
    exposure: Exposure, sampled: SampledMap, method: str, conserve: str, max_lost: float, **fields: Any
) -> Exposure:
    """Interpolate all planes; `fields` are more fields of the result."""
    ny, nx = sampled.shape
    data = np.empty((ny, nx), exposure.data.dtype)
    variance = None if exposure.variance is None else np.empty((ny, nx), exposure.data.dtype)
    mask, coverage = np.empty((ny, nx), np.uint32), np.empty((ny, nx), np.float32)
    table = polynomial_table(method, exposure.data.dtype)
    spline = spline_coefficients(exposure, DEGREES[method]) if method in DEGREES else None
    in_mask, clean = clean_plane(exposure.mask, table.shape[1])
    probe = _PROBE * (1 + 2 * (ny * nx >> 21))

    def fill(band: tuple[int, int]) -> tuple[float, int]:
        start, stop = band
        above, below = max(start - 1, 0), min(stop + 1, ny)
        pixmap = sampled.rows(above, below)
        xy = pixmap[start - above : stop - above].reshape(-1, 2)
        values, bits = data[start:stop].reshape(-1), mask[start:stop].reshape(-1)
        noise = None if variance is None else variance[start:stop].reshape(-1)
        area = _band_area(sampled, band, pixmap)
        interpolate(
            exposure.data,
            exposure.variance,
            in_mask,
            clean,
            xy,
            table,
            int(UNUSABLE),
            int(MaskBit.NO_DATA),
            int(MaskBit.EDGE),
            int(MaskBit.SPREAD),
            max_lost,
            values,
            noise,
            bits,
            area if conserve == "flux" else None,
            nx,
            coverage[start:stop].reshape(-1),
            spline,
            DEGREES.get(method, 0),
        )
        return _noise_gain(xy[::probe], area[::probe], bits[::probe], method)

    sums = np.array(map_bands(fill, row_bands(ny)))
    gain = sums[:, 0].sum() / sums[:, 1].sum() if sums[:, 1].sum() else 1.0
    return exposure.replace(
        data=data,
        variance=variance,
        mask=mask,
        coverage=coverage,
        psf=None,
        saturation=None,
        # interpolation onto coarse pixels leaves light out and the noise white: never less than the input's
        correlation=exposure.correlation / min(gain, 1.0),
        **fields,
    )


def clean_plane(
    mask: npt.NDArray[np.uint32], taps: int
) -> tuple[npt.NDArray[np.uint32] | None, npt.NDArray[np.uint8] | None]:
    """Return the mask and the plane of clean footprints, or neither if nothing is masked."""
    if not mask.any():
        return None, None
    clean = np.empty(mask.shape, np.uint8)
    map_bands(lambda band: clean_windows(mask, taps, *band, clean), row_bands(len(mask)))
    return mask, clean


def _band_area(sampled: SampledMap, band: tuple[int, int], pixmap: XYArray) -> npt.NDArray[np.float64]:
    """Return the areas of the pixels of a band, flat; `pixmap` has a row more on each side."""
    start, stop = band
    if min(sampled.shape) < 2:  # no neighbours to take differences with
        x, y = np.meshgrid(np.arange(sampled.shape[1]), np.arange(start, stop))
        return area_at(sampled.map, np.stack([x.ravel(), y.ravel()], axis=1).astype(float))
    area = np.empty((stop - start, sampled.shape[1]))
    first = start - max(start - 1, 0)
    _pixel_area_ratio(pixmap, first, first + stop - start, area)
    return area.reshape(-1)


@cache
def _squared_weights(method: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return fractions of a pixel, and the sum of the squared weights along one axis at each."""
    fraction = np.linspace(0, 1, 257)  # the sum is smooth: linear interpolation is right to 1e-4
    return fraction, np.square(tap_weights(method, fraction)).sum(axis=1)


def _noise_gain(
    xy: XYArray, area: npt.NDArray[np.float64], bits: npt.NDArray[np.uint32], method: str
) -> tuple[float, int]:
    """Return the sum over clean pixels of A sum_k w_k^2, and their number."""
    use = (bits == 0) & np.isfinite(area)
    gain = area[use].copy()
    for axis in (0, 1):
        x = xy[use, axis]
        gain *= np.interp(x - np.floor(x), *_squared_weights(method))
    return float(gain.sum()), int(use.sum())
