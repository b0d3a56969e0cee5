"""Correlated noise of drizzled images: what an aperture's error is, when neighbours share input pixels.

A drizzled pixel is I_o = sum_i a_io w_i d_i / W_o, with the share a_io of input pixel i in output pixel o, weights w,
and W_o = sum_i a_io w_i. Input pixels with independent noise of variance v_i give

    Cov(o, o') = sum_i a_io a_io' w_i^2 v_i / (W_o W_o'),

and any linear measurement F = sum_o h_o I_o has the variance sum_oo' h_o h_o' Cov(o, o'). The variance plane of a
drizzle holds the terms o = o' only. Fruchter & Hook (2002, PASP 114, 144, section 7) and Casertano et al. (2000,
AJ 120, 2747, appendix) give the limit of large apertures for many dithers, the noise ratio R.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from skyloom.errors import InputError, ShapeError


def noise_ratio(pixfrac: float, scale_ratio: float = 1.0) -> float:
    """Return the noise ratio R of Fruchter & Hook (2002), for many images at random dithers and the square kernel.

    R is the noise of the sum of many output pixels over that of as many independent pixels with the noise of single
    output pixels. With r = pixfrac / scale_ratio, the side of a drop in output pixels (eqs. 9 and 10 there),

        R = r / (1 - 1 / (3 r))  for r >= 1,        R = 1 / (1 - r / 3)  for r <= 1.

    Per axis 1 / R is the integral of a(x)^2 over x, with a(x) the part of a drop that falls into one output pixel at
    the distance x, in output pixels; drops are taken to be aligned with the output pixels. Variances of an image, with
    two axes, grow by R^2. Multiply errors that were summed in quadrature over a large aperture by R.

    Parameters
    ----------
    pixfrac : float
        Side of a drop in units of an input pixel.
    scale_ratio : float
        Side of an output pixel in units of an input pixel.

    Returns
    -------
    float
        R, at least 1.

    Raises
    ------
    InputError
        A number is negative or not finite, or the scale is 0.
    """
    if not (math.isfinite(pixfrac) and math.isfinite(scale_ratio) and pixfrac >= 0 and scale_ratio > 0):
        raise InputError(
            f"pixfrac = {pixfrac} and scale_ratio = {scale_ratio}: sizes must be finite and positive.",
            pixfrac=pixfrac,
            scale_ratio=scale_ratio,
        )
    r = pixfrac / scale_ratio
    return r / (1 - 1 / (3 * r)) if r >= 1 else 1 / (1 - r / 3)


def circle_weights(x: float, y: float, radius: float) -> tuple[npt.NDArray[np.float64], int, int]:
    """Return the part of each pixel that lies in a circle.

    Parameters
    ----------
    x, y : float
        Centre in pixel coordinates.
    radius : float
        In pixels.

    Returns
    -------
    weights : ndarray of float64, shape (n, m)
        Area of the overlap, 0 to 1, exact.
    x0, y0 : int
        Pixel coordinates of ``weights[0, 0]``.
    """
    if not (math.isfinite(radius) and radius > 0 and math.isfinite(x) and math.isfinite(y)):
        raise InputError(f"A circle of radius {radius} at ({x}, {y}); finite numbers and a radius above 0 are needed.")
    x0, y0 = math.floor(x - radius + 0.5), math.floor(y - radius + 0.5)
    edges_x = np.arange(x0, math.ceil(x + radius + 0.5) + 1) - 0.5 - x
    edges_y = np.arange(y0, math.ceil(y + radius + 0.5) + 1) - 0.5 - y
    below = _circle_below(edges_x[None, :] / radius, edges_y[:, None] / radius) * radius**2
    weights = np.diff(np.diff(below, axis=0), axis=1)
    return np.clip(weights, 0.0, 1.0), x0, y0


def _circle_below(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Area of the part of the unit circle with u < x and v < y."""
    x, y = np.clip(x, -1.0, 1.0), np.clip(y, -1.0, 1.0)
    # area of u < t: a segment
    beyond_x = np.arcsin(x) + x * np.sqrt(1 - x * x) + np.pi / 2
    beyond_y = np.arcsin(y) + y * np.sqrt(1 - y * y) + np.pi / 2
    inside = x * y + 0.5 * (beyond_x + beyond_y) - np.pi / 4
    outside = np.where(x < 0, np.where(y < 0, 0.0, beyond_x), np.where(y < 0, beyond_y, beyond_x + beyond_y - np.pi))
    return np.where(x * x + y * y < 1, inside, outside)


def aperture_error(variance: npt.ArrayLike, correlation: npt.ArrayLike, weights: npt.ArrayLike) -> float:
    """Return the error of a weighted sum of pixels with correlated noise.

        sigma^2 = sum_l rho_l sum_o h_o h_(o+l) (V_o + V_(o+l)) / 2,

    the sum over all lags l of the correlation rho and all pixels o of the aperture h. Covariances are linear in the
    variances of the input pixels, hence the arithmetic mean: where the variance varies from pixel to pixel because
    drops lie differently on them, their average stays right.

    Parameters
    ----------
    variance : float or array_like, shape (n, m)
        Variance V of each pixel. Pixels whose variance is not finite add nothing.
    correlation : array_like, shape (2 ry + 1, 2 rx + 1)
        Correlation coefficients, 1 for lag 0 in the middle, as `CovarianceMap.correlation` gives them.
    weights : array_like, shape (n, m)
        The aperture: by what each pixel is multiplied in the sum.

    Returns
    -------
    float
        Standard deviation of the sum, in units of the square root of `variance`.

    Raises
    ------
    ShapeError
        The shapes do not fit.
    """
    rho, h = np.asarray(correlation, np.float64), np.asarray(weights, np.float64)
    if rho.ndim != 2 or rho.shape[0] % 2 == 0 or rho.shape[1] % 2 == 0:
        raise ShapeError("'correlation' must be a plane with odd sides, lag 0 in the middle.", found=rho.shape)
    v = np.asarray(variance, np.float64)
    if h.ndim != 2 or v.shape not in ((), h.shape):
        raise ShapeError(
            "'weights' must be a plane, and 'variance' a number or a plane of the same shape.",
            found=(h.shape, v.shape),
        )
    known = np.broadcast_to(np.isfinite(v), h.shape)
    h, v = np.where(known, h, 0.0), np.where(known, v, 0.0)
    middle_y, middle_x = rho.shape[0] // 2, rho.shape[1] // 2
    total = 0.0
    for dy in range(-middle_y, middle_y + 1):
        for dx in range(-middle_x, middle_x + 1):
            first, second = _overlapping(h, dy, dx)
            mean = np.add(*_overlapping(v, dy, dx)) / 2
            total += rho[dy + middle_y, dx + middle_x] * float(np.sum(first * second * mean))
    return math.sqrt(max(total, 0.0))


def _overlapping(plane: Any, dy: int, dx: int) -> tuple[Any, Any]:
    """Return two views of a plane: where (y + dy, x + dx) is inside, and the same shifted by the lag."""
    ny, nx = plane.shape
    ys, xs = max(0, ny - abs(dy)), max(0, nx - abs(dx))
    y0, x0 = max(0, -dy), max(0, -dx)
    return plane[y0 : y0 + ys, x0 : x0 + xs], plane[y0 + dy : y0 + dy + ys, x0 + dx : x0 + dx + xs]


@dataclass(frozen=True, eq=False)
class CovarianceMap:
    """Covariances between the pixels of a drizzled image, pixel by pixel or averaged over blocks.

    Parameters
    ----------
    covariance : ndarray of float64, shape (blocks in y, blocks in x, reach_y + 1, 2 reach_x + 1)
        ``covariance[j, i, dy, dx + reach_x]`` is Cov((x, y), (x + dx, y + dy)), the average over the pixels (x, y) of a
        block. In the units of the variances. 0 where there are no data.
    block : int
        Side of a block in output pixels; 1: every pixel has its own covariances, and results are exact.
    shape : tuple of int
        Shape (ny, nx) of the drizzled image.
    """

    covariance: npt.NDArray[np.float64] = field(repr=False)
    block: int
    shape: tuple[int, int]

    @property
    def reach(self) -> tuple[int, int]:
        """The largest lags (in y, in x)."""
        return self.covariance.shape[2] - 1, self.covariance.shape[3] // 2

    def kernel(self, x: float, y: float) -> npt.NDArray[np.float64]:
        """Return the covariances of the pixel at (x, y) with its neighbours, shape (2 reach_y + 1, 2 reach_x + 1)."""
        j, i = self._block_of(x, y)
        ry, rx = self.reach
        half = self.covariance[j, i]
        full = np.concatenate([half[:0:-1, ::-1], half])
        if self.block == 1:  # the pixels below have their own covariance with this one
            for dy in range(-ry, 1):
                for dx in range(-rx, rx + 1 if dy < 0 else 0):
                    inside = j + dy >= 0 and 0 <= i + dx < self.shape[1]
                    full[dy + ry, dx + rx] = self.covariance[j + dy, i + dx, -dy, rx - dx] if inside else 0.0
        return full

    def correlation(self, x: float, y: float) -> npt.NDArray[np.float64]:
        """Return the correlation of the noise with that of a pixel at (x, y), 1 in the middle.

        Parameters
        ----------
        x, y : float
            Output pixel coordinates.

        Returns
        -------
        ndarray of float64, shape (2 reach_y + 1, 2 reach_x + 1)
            Covariances over the variance: the average of the block, or that of the pixel.

        Raises
        ------
        InputError
            The position is outside of the image, or nothing has been drizzled there.
        """
        full = self.kernel(x, y)
        variance = full[self.reach]
        if not variance > 0:
            raise InputError(f"No data have been drizzled at ({x}, {y}); there is no noise to correlate.", x=x, y=y)
        return full / variance

    def noise_ratio(self, x: float, y: float) -> float:
        """Return the local noise ratio R: noise of large sums over that of independent pixels (see `noise_ratio`)."""
        return math.sqrt(max(float(self.correlation(x, y).sum()), 0.0))

    def aperture_variance(
        self, x: float, y: float, aperture: float | npt.ArrayLike, variance: npt.ArrayLike | None = None
    ) -> float:
        """Return the variance of the sum of pixels in an aperture.

        Parameters
        ----------
        x, y : float
            Centre of the aperture in output pixel coordinates.
        aperture : float or array_like, shape (n, m)
            Radius of a circle in pixels (pixels on its edge count by their part inside); or weights of pixels, the
            middle one, ``[n // 2, m // 2]``, at the pixel of (x, y).
        variance : array_like, shape (ny, nx), optional
            Variance plane of the drizzled image, where there is more noise than the map knows of (that of the
            sources). Covariances are scaled to it as in `aperture_error`.

        Returns
        -------
        float
            In the units of the variances. Pixels outside of the image add nothing, nor do those without data: NaN if
            none has. In a block that has any data, single pixels without are known by their `variance` only.

        Raises
        ------
        InputError
            The centre is outside of the image, or the aperture is not usable.
        """
        self._block_of(x, y)
        if np.ndim(aperture) == 0:
            weights, x0, y0 = circle_weights(x, y, float(aperture))  # type: ignore[arg-type]
        else:
            weights = np.asarray(aperture, np.float64)
            if weights.ndim != 2 or not np.isfinite(weights).all():
                raise InputError("'aperture' must be a radius or a plane of finite weights.", found=weights.shape)
            x0, y0 = (math.floor(at + 0.5) - n // 2 for at, n in zip((x, y), weights.shape[::-1], strict=True))
        ny, nx = self.shape
        weights = weights[max(0, -y0) : max(0, ny - y0), max(0, -x0) : max(0, nx - x0)]
        rows = max(0, y0) + np.arange(weights.shape[0])
        columns = max(0, x0) + np.arange(weights.shape[1])
        cells = self.covariance[(rows // self.block)[:, None], (columns // self.block)[None, :]]
        ry, rx = self.reach
        if not np.any((weights != 0) & (cells[:, :, 0, rx] > 0)):
            return math.nan
        scale = np.ones(weights.shape)
        if variance is not None:
            plane = np.asarray(variance)
            if plane.shape != self.shape:
                raise ShapeError("'variance' must have the shape of the image.", found=plane.shape, needed=self.shape)
            local = plane[rows[:, None], columns[None, :]].astype(np.float64)
            own = cells[:, :, 0, rx]
            known = np.isfinite(local) & (own > 0)
            weights = np.where(known, weights, 0.0)
            scale = np.where(known, local, 0.0) / np.where(known, own, 1.0)
        total = 0.0
        for dy in range(ry + 1):
            for dx in range(-rx if dy > 0 else 0, rx + 1):
                first, second = _overlapping(weights, dy, dx)
                covariance, _ = _overlapping(cells[:, :, dy, dx + rx], dy, dx)
                mean = np.add(*_overlapping(scale, dy, dx)) / 2
                total += (1 if dy == dx == 0 else 2) * float(np.sum(first * second * covariance * mean))
        return max(total, 0.0)

    def _block_of(self, x: float, y: float) -> tuple[int, int]:
        ny, nx = self.shape
        if not (-0.5 <= x < nx - 0.5 and -0.5 <= y < ny - 0.5):
            raise InputError(f"({x}, {y}) is outside of the image of {nx} x {ny} pixels.", x=x, y=y)
        return math.floor(y + 0.5) // self.block, math.floor(x + 0.5) // self.block

    def to_hdu(self, name: str = "COVAR") -> fits.ImageHDU:
        """Return the map as a FITS image with four axes: block in x, block in y, lag in x, lag in y.

        The linear keywords CRPIX, CRVAL and CDELT of axes 1 and 2 give the (1-based) output pixel coordinates of the
        middle of a block, those of axes 3 and 4 the lag in output pixels. COVBLOCK is the side of a block, COVNX and
        COVNY are the size of the drizzled image.
        """
        header = fits.Header()
        header["EXTNAME"] = name, "Noise covariance between neighbouring pixels"
        header["COVBLOCK"] = self.block, "[pix] side of the blocks that are averaged"
        header["COVNX"] = self.shape[1], "[pix] width of the drizzled image"
        header["COVNY"] = self.shape[0], "[pix] height of the drizzled image"
        for axis, what in ((1, "PIXEL-X"), (2, "PIXEL-Y")):
            header[f"CTYPE{axis}"] = what, "position in the drizzled image"
            header[f"CRPIX{axis}"], header[f"CRVAL{axis}"], header[f"CDELT{axis}"] = 0.5, 0.5, float(self.block)
        for axis, what, zero in ((3, "LAG-X", self.reach[1] + 1.0), (4, "LAG-Y", 1.0)):
            header[f"CTYPE{axis}"] = what, "lag in pixels; LAG-Y < 0 follows by symmetry"
            header[f"CRPIX{axis}"], header[f"CRVAL{axis}"], header[f"CDELT{axis}"] = zero, 0.0, 1.0
        return fits.ImageHDU(np.ascontiguousarray(self.covariance.transpose(2, 3, 0, 1)), header)

    @classmethod
    def from_hdu(cls, hdu: Any) -> CovarianceMap:
        """Read a map that `to_hdu` has written.

        Raises
        ------
        InputError
            The HDU holds something else.
        """
        try:
            header, data = hdu.header, np.asarray(hdu.data, np.float64)
            block, shape = int(header["COVBLOCK"]), (int(header["COVNY"]), int(header["COVNX"]))
            lags = round(header["CRPIX4"]), round(header["CRPIX3"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"This HDU is no noise covariance: {error}. Give the one that to_hdu() made.") from None
        needed = (-(-shape[0] // block), -(-shape[1] // block))
        if data.ndim != 4 or data.shape[2:] != needed or lags != (1, data.shape[1] // 2 + 1) or data.shape[1] % 2 == 0:
            raise ShapeError("This HDU is no noise covariance: its shape contradicts its header.", found=data.shape)
        return cls(np.ascontiguousarray(data.transpose(2, 3, 0, 1)), block, shape)
