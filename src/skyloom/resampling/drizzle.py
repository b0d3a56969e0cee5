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
from skyloom.errors import InputError, ShapeError
from skyloom.exposure import FloatArray
from skyloom.resampling._drizzle_checks import (
    check_context_ids,
    check_earlier,
    check_exptime,
    check_options,
    output_dtype,
    output_shape,
    weights_of,
)
from skyloom.resampling._drizzle_kernels import Placing, drizzle, drop_scale, kernel_in_use
from skyloom.resampling._drizzle_many import Progress, add_images
from skyloom.resampling._drizzle_map import Positions, any_finite, for_kernels, output_range, positions_of
from skyloom.resampling._drizzle_planes import (
    bit_plane,
    context_planes,
    fill_number,
    fill_text,
    list_of,
    output_plane,
    positive,
    real_plane,
    representable,
    same_shape,
    unshared,
    window_bounds,
)
from skyloom.resampling.context import CTX_PLANE_BITS
from skyloom.resampling.correlation import CovarianceMap
from skyloom.resampling.covariance import CovarianceSums, Spreading, total_variance

SUPPORTED_DRIZZLE_KERNELS = list(_kernels.DRIZZLE_KERNELS)

_NOT_GIVEN: Final = object()
_MIXED_SHAPES = (
    "Inconsistent data shapes specified: 'out_shape' and the output arrays that are given must be of one shape; "
    "found {}."
)


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

        if covariance is not None and not (
            isinstance(covariance, (int, np.integer)) and not isinstance(covariance, bool) and covariance >= 1
        ):
            raise InputError(
                f"'covariance' is {covariance!r}; the number of output pixels on a side of the blocks over which "
                "covariances are averaged is needed, a whole number (64, say; 1 for every pixel by itself).",
                covariance=covariance,
            )
        if covariance is not None and exptime > 0:
            raise InputError(
                "The covariances of earlier results are not known, so they cannot be continued: start with the first "
                "image, or leave out 'covariance'."
            )

        self._kernel = kernel
        self._flux_conserving = bool(flux_conserving)
        self._fillval = fill_text(fillval, out_img is not None)
        self._fillval2 = fill_text(fillval2, out_img2 is not None)
        self._texptime = float(exptime)
        self._ctx_id: int | None = None if disable_ctx else begin_ctx_id
        self._last_ctx_id = max(begin_ctx_id, max_ctx_id or 0)
        self._n_images = 0
        self._covariance_block = covariance
        self._covariance: CovarianceSums | None = None
        self._with_variances = False
        self._origin = (0, 0)
        self._blank = False  # the arrays are there, but nothing has been written to them yet
        self._dtype: npt.DTypeLike = output_dtype(out_img, out_wht)

        self._out_img: FloatArray | None = None if out_img is None else output_plane(out_img, self._dtype, "out_img")
        self._out_wht: FloatArray | None = None if out_wht is None else output_plane(out_wht, self._dtype, "out_wht")
        self._out_ctx = None if out_ctx is None else context_planes(out_ctx)
        self._out_dq: npt.NDArray[np.uint32] | None = None
        if out_dq is not None:
            bit_plane(out_dq, "out_dq")
            self._out_dq = output_plane(out_dq, np.uint32, "out_dq")
        self._out_img2: list[Any] | None = None
        if out_img2 is not None:
            planes = [out_img2] if isinstance(out_img2, np.ndarray) else list_of(out_img2, "out_img2")
            self._out_img2 = [None if p is None else output_plane(p, self._dtype, "out_img2") for p in planes]
        self._out_wht2: list[FloatArray | None] = []
        if out_wht2 is not None:
            self._out_wht2 = [
                None if p is None else output_plane(p, self._dtype, "out_wht2") for p in list_of(out_wht2, "out_wht2")
            ]
            found, needed = len(self._out_wht2), len(self._out_img2 or ())
            if found != needed:
                raise InputError(
                    f"There are {found} planes of 'out_wht2' for {needed} of 'out_img2'; give one for each, or None.",
                    found=found,
                    needed=needed,
                )

        shapes = {output_shape(out_shape)} if out_shape is not None else set()
        shapes |= {a.shape for a in (self._out_img, self._out_wht, self._out_dq) if a is not None}
        shapes |= {a.shape for a in (*(self._out_img2 or ()), *self._out_wht2) if a is not None}
        if self._out_ctx is not None:
            shapes.add(self._out_ctx.shape[1:])
        if len(shapes) > 1 or any(len(s) != 2 or 0 in s for s in shapes):
            raise ShapeError(_MIXED_SHAPES.format(sorted(shapes)), found=sorted(shapes))
        self._shape: tuple[int, ...] | None = next(iter(shapes), None)
        only_squares = self._out_img is None and self._out_wht is None and self._out_ctx is None and out_shape is None
        if self._shape is not None and not (only_squares and self._out_dq is None):
            self._allocate(check_context=self._out_wht is not None or self._out_ctx is not None)
        squares = [(plane, "out_img2") for plane in self._out_img2 or ()]
        own = [w if w is not None else self._out_wht for w in self._out_wht2 or [None] * len(squares)]
        if not self._blank:
            check_earlier([(self._out_img, "out_img"), *squares], [self._out_wht, *own])

    @property
    def fillval(self) -> str:
        """Fill value for pixels of `out_img` without contributions, as text."""
        return self._fillval

    @property
    def fillval2(self) -> str:
        """Fill value for pixels of `out_img2` without contributions, as text."""
        return self._fillval2

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return self._kernel

    @property
    def ctx_id(self) -> int | None:
        """Number (from 0) of the next image in the context; None without a context."""
        return self._ctx_id

    @property
    def out_img(self) -> FloatArray | None:
        """Weighted mean of the images, shape (ny, nx); None before the shape is known."""
        self._settle()
        return self._out_img

    @property
    def out_wht(self) -> FloatArray | None:
        """Sum of weights, shape (ny, nx)."""
        self._settle()
        return self._out_wht

    @property
    def out_ctx(self) -> npt.NDArray[np.int32] | None:
        """Which images have contributed: bits, int32, shape (planes, ny, nx)."""
        self._settle()
        return self._out_ctx

    @property
    def out_img2(self) -> list[Any] | None:
        """Planes averaged with squared weights, a list of arrays of shape (ny, nx)."""
        self._settle()
        return self._out_img2

    @property
    def out_wht2(self) -> list[Any] | None:
        """Sums of weights of the planes of `out_img2`, shape (ny, nx) each; None: that of all images, `out_wht`."""
        return self._out_wht2 if any(p is not None for p in self._out_wht2) else None

    @property
    def out_dq(self) -> npt.NDArray[np.uint32] | None:
        """Bits of all contributing pixels combined by OR, uint32, shape (ny, nx)."""
        self._settle()
        return self._out_dq

    @property
    def covariance(self) -> CovarianceMap | None:
        """Covariances between the pixels of `out_img`, if they were asked for; computed anew at each access.

        The noise of the images is the sum of their planes in `data2`, or of variance 1 without them.
        """
        weight = self.out_wht
        return None if self._covariance is None or weight is None else self._covariance.finish(weight)

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
        image = real_plane(data.data if isinstance(data, np.ma.MaskedArray) else data, "data")
        if image.ndim != 2 or 0 in image.shape:
            raise ShapeError(f"'data' has the shape {image.shape}; a 2D image is needed.", found=image.shape)
        squares = self._check_squares(data2, image.shape)
        weight = weights_of(data, weight_map, image.shape)
        # the shape of the output, a shifted frame and covariances need all positions
        expand = self._shape is None or self._origin != (0, 0) or self._covariance_block is not None
        positions = positions_of(pixmap, image.shape, expand=expand)
        bits = None if dq is None else bit_plane(dq, "dq")
        if bits is not None:
            same_shape(bits, image.shape, "dq")
        window = window_bounds((image.shape[0], image.shape[1]), xmin, xmax, ymin, ymax)
        ratio = None if pixel_scale_ratio is None else positive(pixel_scale_ratio, "pixel_scale_ratio")
        iscale, wht_scale = positive(iscale, "iscale"), positive(wht_scale, "wht_scale")
        check_options(exptime, in_units, pixfrac)
        kernel = kernel_in_use(self._kernel, pixfrac, self._flux_conserving)
        ratio = drop_scale(kernel, pixfrac, ratio, positions, window)
        if in_units == "counts":
            iscale = positive(iscale / exptime, "iscale / exptime")
        image = representable(image, iscale, self._dtype)
        squares = [
            None if s is None else representable(s, positive(iscale * iscale, "iscale**2"), self._dtype)
            for s in squares
        ]
        if not any_finite(positions, window):
            raise InputError("No or too few valid pixels in the pixel map: none within the bounds is finite.")
        noise = None if self._covariance_block is None else total_variance(squares)
        if noise is not None and np.fmin.reduce(noise, axis=None) < 0:
            raise InputError("Variances in 'data2' are negative: covariances cannot be computed from them.")
        if self._covariance_block is not None and self._n_images and self._with_variances != (noise is not None):
            raise InputError(
                "Some images have variances in 'data2' and others have none, so their covariances do not add up: give "
                "variances with every image, or with none of them (each pixel then counts as a variance of 1)."
            )

        positions = self._prepare_output(positions, squares, bits is not None)
        assert self._out_img is not None
        assert self._out_wht is not None
        planes = (self._out_img, self._out_wht, self._out_dq, *(self._out_img2 or ()), *self._out_wht2)
        outputs = [plane for plane in planes if plane is not None]
        if isinstance(positions, np.ndarray):
            positions = unshared(positions, outputs)
        source = _kernels.DrizzleInput(
            unshared(image, outputs),
            None if weight is None else unshared(weight, outputs),
            [None if s is None else unshared(s, outputs) for s in squares],
            None if bits is None else unshared(bits, outputs),
            data_scale=iscale,
            square_scale=iscale * iscale,
            weight_scale=wht_scale,
        )
        if self._covariance is not None:
            spreading = Spreading(kernel, pixfrac, ratio, iscale, wht_scale, window, self._flux_conserving)
            self._covariance.add_image(noise, positions, data=image, weight_map=weight, spreading=spreading)
        plane, bit = divmod(self._ctx_id or 0, CTX_PLANE_BITS)
        target = _kernels.DrizzleOutput(
            self._out_img,
            self._out_wht,
            [None if s is None else plane for s, plane in zip(squares, self._out_img2 or (), strict=True)],
            self._out_wht2,
            self._out_dq if bits is not None else None,
            None if self._out_ctx is None else self._out_ctx[plane],
            context_bit=bit,
            fill=fill_number(self._fillval),
            fill_squares=fill_number(self._fillval2),
            fresh=self._blank,
            filled=self._n_images > 0,
        )
        normalised = self._flux_conserving and kernel not in ("square", "point", "turbo")
        placing = Placing(for_kernels(positions), window, self._out_img.shape, pixfrac, ratio, len(squares), normalised)
        hits = drizzle(kernel, source, target, placing)
        self._blank = False
        self._texptime += exptime
        self._n_images += 1
        self._with_variances = noise is not None
        if self._ctx_id is not None:
            self._ctx_id += 1
        pixels = (window[1] - window[0]) * (window[3] - window[2])
        return pixels - int(hits.sum()), int(np.count_nonzero(hits == 0))

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

    def _check_squares(self, data2: Any, shape: tuple[int, ...]) -> list[FloatArray | None]:
        """Return the planes of `data2`, of which there must be as many as the output has."""
        if data2 is None:
            squares: list[FloatArray | None] = []
        elif isinstance(data2, np.ndarray) and data2.ndim == 2:
            squares = [real_plane(data2, "data2")]
            same_shape(squares[0], shape, "data2")  # type: ignore[arg-type]
        else:
            planes = list_of(data2, "data2")
            if not planes:
                raise InputError("'data2' is empty: give one plane for each of 'out_img2', or None.")
            squares = [None if p is None or np.size(p) == 0 else real_plane(p, "data2") for p in planes]
            for square in squares:
                if square is not None:
                    same_shape(square, shape, "data2", "shape(s)")
        known = len(self._out_img2) if self._out_img2 is not None else 0 if self._n_images else len(squares)
        if len(squares) != known:
            raise InputError(
                f"Mismatch between the number of 'out_img2' images ({known}) and the number of 'data2' images "
                f"({len(squares)}); it must be the same in every call.",
                found=len(squares),
                needed=known,
            )
        return squares

    def _prepare_output(self, pixmap: Positions, squares: list[FloatArray | None], with_dq: bool) -> Positions:
        """Allocate what is missing; return the map in the frame of the output."""
        if self._shape is None:
            assert isinstance(pixmap, np.ndarray)  # `add_image` has expanded it
            self._origin, self._shape = output_range(pixmap)
            try:
                self._allocate(check_context=False)
            except MemoryError:
                (ny, nx), self._shape, self._origin = self._shape, None, (0, 0)
                raise InputError(
                    f"The positions in the pixel map span {nx} x {ny} output pixels, more than the memory holds. Give "
                    "'out_shape', or set positions that mean nothing to NaN.",
                    size=(nx, ny),
                ) from None
        elif self._out_img is None or self._out_wht is None:
            self._allocate(check_context=False)
        shape = self._shape
        if squares:
            self._prepare_squares(squares)
        if with_dq and self._out_dq is None:
            self._out_dq = np.zeros(shape, np.uint32)
        if self._out_ctx is not None and self._ctx_id is not None:
            missing = self._ctx_id // CTX_PLANE_BITS + 1 - len(self._out_ctx)
            if missing > 0:
                self._out_ctx = np.concatenate([self._out_ctx, np.zeros((missing, *shape), np.int32)])
        return pixmap - self._origin if self._origin != (0, 0) and isinstance(pixmap, np.ndarray) else pixmap

    def _prepare_squares(self, squares: list[FloatArray | None]) -> None:
        """Allocate planes, and weights for those that do not have the weights of all images."""
        assert self._shape is not None
        assert self._out_wht is not None
        if any(square is None for square in squares):
            self._settle()
        number = fill_number(self._fillval2)
        value = np.nan if number is None else number
        planes = self._out_img2 or [None] * len(squares)
        weights: list[FloatArray | None] = self._out_wht2 or [None] * len(squares)
        for k, square in enumerate(squares):
            if weights[k] is None and planes[k] is None and not self._blank and np.any(self._out_wht):
                weights[k] = np.zeros(self._shape, self._dtype)  # earlier images were without this plane
            elif weights[k] is None and square is None:
                weights[k] = self._out_wht.copy()
            if planes[k] is None:
                blank = self._blank and weights[k] is None  # all of it will be written
                planes[k] = np.empty(self._shape, self._dtype) if blank else np.full(self._shape, value, self._dtype)
        self._out_img2, self._out_wht2 = planes, weights

    def _allocate(self, check_context: bool) -> None:
        """Make the arrays that were not given, and compare those that were."""
        assert self._shape is not None
        if self._covariance_block is not None:
            self._covariance = CovarianceSums(self._shape, block=self._covariance_block)
        if all(a is None for a in (self._out_img, self._out_wht, self._out_ctx, self._out_img2, self._out_dq)):
            self._blank = True
            self._out_img, self._out_wht = np.empty(self._shape, self._dtype), np.empty(self._shape, self._dtype)
            if self._ctx_id is not None:
                first, planes = self._ctx_id // CTX_PLANE_BITS, self._last_ctx_id // CTX_PLANE_BITS + 1
                self._out_ctx = np.empty((planes, *self._shape), np.int32)
                self._out_ctx[:first] = self._out_ctx[first + 1 :] = 0
            return
        if self._out_wht is None:
            self._out_wht = np.zeros(self._shape, self._dtype)
        if self._ctx_id is not None and self._out_ctx is None:
            planes = self._last_ctx_id // CTX_PLANE_BITS + 1
            self._out_ctx = np.zeros((planes, *self._shape), np.int32)
        if check_context and self._out_ctx is not None:
            counted = self._out_ctx.any(axis=0)
            # only negative lobes of Lanczos kernels reach some pixels beyond the edge of an image: no bit, weight < 0
            wrong = bool(np.any(np.where(counted, self._out_wht == 0, self._out_wht > 0)))
        else:
            wrong = False
        if wrong:
            raise InputError(
                "Inconsistent values of supplied 'out_wht' and 'out_ctx' arrays: pixels with a weight must have a "
                "context and the other way round. Give both of them, or disable_ctx=True."
            )
        if self._out_img is None:
            self._out_img = np.full(self._shape, fill_number(self._fillval) or 0.0, self._dtype)

    def _settle(self) -> None:
        """Fill the arrays of an output to which nothing has been added."""
        if self._blank and self._out_img is not None and self._out_wht is not None:
            self._out_img[...] = fill_number(self._fillval)
            self._out_wht[...] = 0
            if self._out_ctx is not None:
                self._out_ctx[...] = 0
            self._out_img2 = self._out_dq = None  # of a first image that failed
            self._blank = False
