"""`Drizzle`: co-add images by variable-pixel linear reconstruction (Fruchter & Hook 2002, PASP 114, 144).

Every input pixel is shrunk to a drop and rained onto the output grid. With overlap a of a drop with an output pixel,
weight w and value d of the input pixel (eqs. 4 and 5 there; the data may be rescaled by ``iscale`` before):

    W' = W + a w
    I' = (I W + a w d) / W'

Planes that come as variances are averaged with squared weights in the same pass: V' = (V W^2 + (a w)^2 v) / W'^2.
The sums over one image are kept in float64 and merged once into the running means.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from skyloom import _kernels
from skyloom.errors import InputError
from skyloom.exposure import FloatArray
from skyloom.resampling._drizzle_checks import check_context_ids, check_covariance, check_exptime
from skyloom.resampling._drizzle_image import Given, Image, read_image
from skyloom.resampling._drizzle_kernels import drizzle
from skyloom.resampling._drizzle_many import Progress, add_images
from skyloom.resampling._drizzle_outputs import Earlier, Outputs
from skyloom.resampling._drizzle_planes import fill_text, positive, unshared
from skyloom.resampling.correlation import CovarianceMap
from skyloom.resampling.covariance import total_variance

SUPPORTED_DRIZZLE_KERNELS = list(_kernels.DRIZZLE_KERNELS)

_NOT_GIVEN: Final = object()


class Drizzle:
    """Resample and co-add images onto one output grid.

    Parameters
    ----------
    kernel : {'square', 'point', 'turbo', 'gaussian', 'lanczos2', 'lanczos3'}
        How the flux of a pixel is spread: over the area of a drop (square: its image through the map; turbo: an
        upright square), into one pixel (point), or by the distance from the drop's centre, which does not conserve flux
        (see `flux_conserving`). Lanczos weights may be negative. Upper case is as good.
    fillval, fillval2 : float or str, optional
        Value of pixels of `out_img` (`out_img2`) that no image has reached. None, '' and 'INDEF' leave the values of an
        array that was given, and mean NaN in a new one.
    out_shape : tuple of int, optional
        Shape (ny, nx) of the output. Without it and without output arrays the first image defines it: the output
        then just holds that image, and the origin of all pixel maps is moved to its lower left corner.
    out_img, out_wht : ndarray of float32 or float64, shape (ny, nx), optional
        Earlier results to go on with, changed in place. float64 is float64 from end to end. An array that cannot be
        written in place (of another type, or read-only) is copied; the properties always hold the result.
    out_ctx : ndarray of int32, shape (ny, nx) or (planes, ny, nx), optional
        Bit k of plane p is set where image 32 p + k has contributed.
    out_img2 : ndarray or sequence of ndarray, shape (ny, nx), optional
        Earlier results for the planes that are averaged with squared weights.
    out_dq : ndarray of uint32, shape (ny, nx), optional
        Earlier OR-combined data-quality bits.
    exptime : float
        Exposure time of the earlier results, s.
    begin_ctx_id, max_ctx_id : int
        Number of the first image in the context, and the largest number that is expected (to allocate planes once).
    disable_ctx : bool
        Keep no context.
    flux_conserving : bool
        Divide the shares of each drop of the gaussian and Lanczos kernels by their sum, so that they add up to 1.
    out_wht2 : sequence of (ndarray or None), shape (ny, nx) each, optional
        Earlier sums of weights of those planes of `out_img2` that not all images had; None: `out_wht`.
    covariance : int, optional
        Keep the covariances between the pixels of the output, averaged over blocks of so many pixels a side (64 serves
        for most), or for each pixel (1: much memory); see `CovarianceSums`. The result is `Drizzle.covariance`.

    Raises
    ------
    InputError
        An option makes no sense, or earlier results contradict each other.
    """

    def __init__(  # noqa: PLR0917  the reference's signature
        self,
        kernel: str = "square",
        fillval: float | str | None = None,
        fillval2: float | str | None = None,
        out_shape: tuple[int, ...] | None = None,
        out_img: FloatArray | None = None,
        out_wht: FloatArray | None = None,
        out_ctx: npt.NDArray[np.int32] | None = None,
        out_img2: Any = None,
        out_dq: npt.NDArray[np.uint32] | None = None,
        exptime: float = 0.0,
        begin_ctx_id: int = 0,
        max_ctx_id: int | None = None,
        disable_ctx: bool = False,
        *,
        flux_conserving: bool = False,
        out_wht2: Any = None,
        covariance: int | None = None,
    ) -> None:
        if not isinstance(kernel, str) or kernel.lower() not in SUPPORTED_DRIZZLE_KERNELS:
            raise InputError(f"Kernel '{kernel}' is not supported.", kernel=kernel, known=SUPPORTED_DRIZZLE_KERNELS)
        if disable_ctx:
            out_ctx = None
        else:
            check_context_ids(begin_ctx_id, max_ctx_id)
        check_exptime(exptime, out_img, out_wht, out_ctx)
        check_covariance(covariance, exptime)

        self._kernel = kernel
        self._flux_conserving = bool(flux_conserving)
        self._texptime = float(exptime)
        self._with_variances = False
        self._outputs = Outputs(
            Earlier(out_shape, out_img, out_wht, out_ctx, out_img2, out_dq, out_wht2),
            fillval=fill_text(fillval, out_img is not None),
            fillval2=fill_text(fillval2, out_img2 is not None),
            first=None if disable_ctx else begin_ctx_id,
            last=max(begin_ctx_id, max_ctx_id or 0),
            covariance_block=covariance,
        )

    @property
    def fillval(self) -> str:
        """Fill value for pixels of `out_img` without contributions, as text."""
        return self._outputs.fillval

    @property
    def fillval2(self) -> str:
        """Fill value for pixels of `out_img2` without contributions, as text."""
        return self._outputs.fillval2

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return self._kernel

    @property
    def ctx_id(self) -> int | None:
        """Number (from 0) of the next image in the context; None without a context."""
        return self._outputs.ctx_id

    @property
    def out_img(self) -> FloatArray | None:
        """Weighted mean of the images, shape (ny, nx); None before the shape is known."""
        self._outputs.settle()
        return self._outputs.img

    @property
    def out_wht(self) -> FloatArray | None:
        """Sum of weights, shape (ny, nx)."""
        self._outputs.settle()
        return self._outputs.wht

    @property
    def out_ctx(self) -> npt.NDArray[np.int32] | None:
        """Which images have contributed: bits, int32, shape (planes, ny, nx)."""
        self._outputs.settle()
        return self._outputs.ctx

    @property
    def out_img2(self) -> list[Any] | None:
        """Planes averaged with squared weights, a list of arrays of shape (ny, nx)."""
        self._outputs.settle()
        return self._outputs.squares

    @property
    def out_wht2(self) -> list[Any] | None:
        """Sums of weights of the planes of `out_img2`, shape (ny, nx) each; None: that of all images, `out_wht`."""
        weights = self._outputs.square_weights
        return weights if any(p is not None for p in weights) else None

    @property
    def out_dq(self) -> npt.NDArray[np.uint32] | None:
        """Bits of all contributing pixels combined by OR, uint32, shape (ny, nx)."""
        self._outputs.settle()
        return self._outputs.dq

    @property
    def covariance(self) -> CovarianceMap | None:
        """Covariances between the pixels of `out_img`, if they were asked for; computed anew at each access.

        The noise of the images is the sum of their planes in `data2`, or of variance 1 without them.
        """
        weight, sums = self.out_wht, self._outputs.covariance
        return None if sums is None or weight is None else sums.finish(weight)

    @property
    def total_exptime(self) -> float:
        """Exposure time of all images, s."""
        return self._texptime

    def add_image(  # noqa: PLR0917  the reference's signature
        self,
        data: Any,
        exptime: float,
        pixmap: Any,
        data2: Any = None,
        dq: Any = None,
        scale: Any = _NOT_GIVEN,
        iscale: float = 1.0,
        pixel_scale_ratio: float | None = 1.0,
        weight_map: Any = None,
        wht_scale: float = 1.0,
        pixfrac: float = 1.0,
        in_units: str = "cps",
        xmin: float | None = None,
        xmax: float | None = None,
        ymin: float | None = None,
        ymax: float | None = None,
    ) -> tuple[int, int]:
        """Resample one image and add it to the output.

        A pixel counts for nothing if its weight is 0 or not finite, or if its value in `data` or `data2` is not
        finite. A pixel whose position in `pixmap` is not finite is lost, its neighbours are not. All arguments are
        checked before anything is changed: a call that fails leaves no trace.

        Parameters
        ----------
        data : array_like, shape (ny, nx)
            The image.
        exptime : float
            Its exposure time, s.
        pixmap : array_like of float, shape (ny, nx, 2), or SampledMap
            Output position (X, Y) of the centre of each input pixel. A `SampledMap` is interpolated where it is needed:
            the same numbers without the memory for all pixels. (An output without `out_shape`, and `covariance`,
            need that memory for a while.)
        data2 : array_like or sequence of (array_like or None), optional
            Planes in squared units of `data` (variances) to be averaged with squared weights: one for each of
            `out_img2`. A plane that is None leaves its output as it is: this then is averaged, and normed, over those
            images alone that had the plane (see `out_wht2`).
        dq : array_like of int, shape (ny, nx), optional
            Data-quality bits, at most 32.
        scale : float, optional
            Deprecated: sets `iscale` to its square and `pixel_scale_ratio` to itself.
        iscale : float
            `data` are multiplied by this, `data2` by its square.
        pixel_scale_ratio : float or None
            Side of an output pixel in units of an input pixel; sets the size of all kernels but square and point.
            None: 1 / sqrt(abs(det)) of the derivative of `pixmap`, its median over the image.
        weight_map : array_like, shape (ny, nx), optional
            Weight of each pixel, not negative; 1 without it.
        wht_scale : float
            Factor on all weights.
        pixfrac : float
            Side of a drop in units of an input pixel; FWHM of the gaussian kernel. No drop is smaller than 1e-3: below,
            the kernel is 'point', with a warning. Lanczos kernels ignore it.
        in_units : {'cps', 'counts'}
            Counts are divided by `exptime` (and `data2` by its square).
        xmin, xmax, ymin, ymax : float, optional
            Use only pixels within these indices (inclusive, from 0). A maximum of 0 means no limit.

        Returns
        -------
        nmiss : int
            Pixels within the bounds that contributed nothing to the output.
        nskip : int
            Rows within the bounds of which no pixel contributed.

        Raises
        ------
        InputError
            An argument cannot be used; `ShapeError` if planes differ in shape.
        """
        if scale is not _NOT_GIVEN:
            warnings.warn(
                "Argument 'scale' has been deprecated: give iscale=scale**2 and pixel_scale_ratio=scale instead.",
                DeprecationWarning,
                stacklevel=2,
            )
            pixel_scale_ratio = positive(scale, "scale")
            iscale = pixel_scale_ratio**2
        given = Given(
            data=data,
            exptime=exptime,
            pixmap=pixmap,
            data2=data2,
            dq=dq,
            iscale=iscale,
            pixel_scale_ratio=pixel_scale_ratio,
            weight_map=weight_map,
            wht_scale=wht_scale,
            pixfrac=pixfrac,
            in_units=in_units,
            bounds=(xmin, xmax, ymin, ymax),
        )
        image = read_image(given, self._kernel, self._flux_conserving, self._outputs)
        noise = self._noise_of(image)
        hits = self._add(image, noise)
        self._outputs.count_image()
        self._texptime += exptime
        self._with_variances = noise is not None
        x0, x1, y0, y1 = image.window
        return (x1 - x0) * (y1 - y0) - int(hits.sum()), int(np.count_nonzero(hits == 0))

    def _noise_of(self, image: Image) -> FloatArray | None:
        """Return the variance of an image for the covariances, if these are kept and it has any."""
        if not self._outputs.keeps_covariance:
            return None
        noise = total_variance(image.squares)
        if noise is not None and np.fmin.reduce(noise, axis=None) < 0:
            raise InputError("Variances in 'data2' are negative: covariances cannot be computed from them.")
        if self._outputs.n_images and self._with_variances != (noise is not None):
            raise InputError(
                "Some images have variances in 'data2' and others have none, so their covariances do not add up: give "
                "variances with every image, or with none of them (each pixel then counts as a variance of 1)."
            )
        return noise

    def _add(self, image: Image, noise: FloatArray | None) -> npt.NDArray[np.int32]:
        """Add an image that has been checked; return how many pixels of each row contributed."""
        out, with_dq = self._outputs, image.bits is not None
        positions = out.prepare(image.positions, image.squares, with_dq)
        if isinstance(positions, np.ndarray):
            positions = unshared(positions, out.planes)
        source = image.source(out.planes)
        if out.covariance is not None:
            out.covariance.add_image(
                noise, positions, data=image.data, weight_map=image.weight, spreading=image.spreading()
            )
        target = out.target(image.squares, with_dq)
        return drizzle(image.kernel, source, target, image.geometry(positions, out.shape))

    def add_images(
        self, images: Iterable[Mapping[str, Any]], progress: Progress | None = None
    ) -> list[tuple[int, int]]:
        """Resample many images and add them to the output, one after the other.

        Parameters
        ----------
        images : iterable of mappings
            The arguments of `add_image` for each image. A generator is read image by image.
        progress : callable, optional
            Called as ``progress(done, total)`` after each image; `total` is None if `images` has no length.

        Returns
        -------
        list of tuple of int
            What `add_image` returns, for each image.

        Raises
        ------
        InputError
            An image cannot be used: its number (from 0) is in the message and in ``details["image"]``. Those before it
            have been added, it and those after it have not.
        """
        return add_images(self.add_image, images, progress)
