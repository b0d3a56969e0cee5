"""The arguments of one image that is drizzled: read, checked, and made ready for the kernels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom import _kernels
from skyloom.errors import InputError, ShapeError
from skyloom.exposure import FloatArray
from skyloom.resampling._drizzle_checks import check_options, weights_of
from skyloom.resampling._drizzle_kernels import DrizzleGeometry, drop_scale, kernel_in_use
from skyloom.resampling._drizzle_map import Positions, any_finite, for_kernels, positions_of
from skyloom.resampling._drizzle_outputs import Outputs
from skyloom.resampling._drizzle_planes import (
    bit_plane,
    list_of,
    positive,
    real_plane,
    representable,
    same_shape,
    unshared,
    window_bounds,
)
from skyloom.resampling.covariance import Spreading


@dataclass(frozen=True, eq=False)
class Given:
    """The arguments of `Drizzle.add_image`, under their names; bounds: (xmin, xmax, ymin, ymax)."""

    data: Any
    exptime: float
    pixmap: Any
    data2: Any
    dq: Any
    iscale: float
    pixel_scale_ratio: float | None
    weight_map: Any
    wht_scale: float
    pixfrac: float
    in_units: str
    bounds: tuple[float | None, float | None, float | None, float | None]


@dataclass(frozen=True, eq=False)
class Image:
    """What the kernels take.

    Parameters
    ----------
    data, weight : ndarray of float32 or float64, shape (ny, nx)
        The image, and its weights if it has any.
    squares : list of (ndarray or None)
        Planes that are averaged with squared weights.
    bits : ndarray of uint32 or None
        Data-quality bits.
    positions : ndarray of float64, shape (ny, nx, 2), or SampledMap
        Where the pixels fall.
    window : tuple of int
        Part of the image that is used, half open: (x0, x1, y0, y1).
    kernel : str
        The kernel in use, in lower case.
    pixfrac, scale_ratio : float
        Side of a drop, and of an output pixel, in input pixels.
    iscale, wht_scale : float
        Factors on data (squared: on `squares`) and weights.
    flux_conserving : bool
        Whether all kernels shall conserve flux.
    """

    data: FloatArray
    weight: FloatArray | None
    squares: list[FloatArray | None]
    bits: npt.NDArray[np.uint32] | None
    positions: Positions
    window: tuple[int, int, int, int]
    kernel: str
    pixfrac: float
    scale_ratio: float
    iscale: float
    wht_scale: float
    flux_conserving: bool

    def source(self, outputs: Iterable[npt.NDArray[Any]]) -> _kernels.DrizzleInput:
        """Return the planes as the kernels take them, copied where they share memory with an output."""
        return _kernels.DrizzleInput(
            unshared(self.data, outputs),
            None if self.weight is None else unshared(self.weight, outputs),
            [None if s is None else unshared(s, outputs) for s in self.squares],
            None if self.bits is None else unshared(self.bits, outputs),
            data_scale=self.iscale,
            square_scale=self.iscale * self.iscale,
            weight_scale=self.wht_scale,
        )

    def spreading(self) -> Spreading:
        """Return what the covariances need to know."""
        return Spreading(
            kernel=self.kernel,
            pixfrac=self.pixfrac,
            pixel_scale_ratio=self.scale_ratio,
            iscale=self.iscale,
            wht_scale=self.wht_scale,
            window=self.window,
            flux_conserving=self.flux_conserving,
        )

    def geometry(self, positions: Positions, frame: tuple[int, ...]) -> DrizzleGeometry:
        """Return how the image lies on an output of the shape `frame`; positions: in that frame."""
        return DrizzleGeometry(
            pixmap=for_kernels(positions),
            window=self.window,
            frame=frame,
            pixfrac=self.pixfrac,
            scale_ratio=self.scale_ratio,
            n_squares=len(self.squares),
            normalised=self.flux_conserving and self.kernel not in ("square", "point", "turbo"),
        )


def read_image(given: Given, kernel: str, flux_conserving: bool, outputs: Outputs) -> Image:
    """Read the arguments of `Drizzle.add_image`, which calls this; nothing is changed.

    Parameters
    ----------
    given : Given
        The arguments.
    kernel, flux_conserving
        Those of the `Drizzle`.
    outputs : Outputs
        Where the image shall go.

    Raises
    ------
    InputError
        An argument cannot be used; `ShapeError` if planes differ in shape.
    """
    data = given.data
    image = real_plane(data.data if isinstance(data, np.ma.MaskedArray) else data, "data")
    if image.ndim != 2 or 0 in image.shape:
        raise ShapeError(f"'data' has the shape {image.shape}; a 2D image is needed.", found=image.shape)
    squares = _read_squares(given.data2, image.shape, outputs)
    weight = weights_of(data, given.weight_map, image.shape)
    positions = positions_of(given.pixmap, image.shape, expand=outputs.needs_positions)
    bits = None if given.dq is None else bit_plane(given.dq, "dq")
    if bits is not None:
        same_shape(bits, image.shape, "dq")
    window = window_bounds((image.shape[0], image.shape[1]), *given.bounds)
    ratio = given.pixel_scale_ratio
    ratio = None if ratio is None else positive(ratio, "pixel_scale_ratio")
    iscale, wht_scale = positive(given.iscale, "iscale"), positive(given.wht_scale, "wht_scale")
    check_options(given.exptime, given.in_units, given.pixfrac)
    kernel = kernel_in_use(kernel, given.pixfrac, flux_conserving, level=4)  # the caller of `Drizzle.add_image`
    ratio = drop_scale(kernel, given.pixfrac, ratio, positions, window)
    if given.in_units == "counts":
        iscale = positive(iscale / given.exptime, "iscale / exptime")
    image = representable(image, iscale, outputs.dtype)
    squares = [
        None if s is None else representable(s, positive(iscale * iscale, "iscale**2"), outputs.dtype) for s in squares
    ]
    if not any_finite(positions, window):
        raise InputError("No or too few valid pixels in the pixel map: none within the bounds is finite.")
    return Image(
        data=image,
        weight=weight,
        squares=squares,
        bits=bits,
        positions=positions,
        window=window,
        kernel=kernel,
        pixfrac=given.pixfrac,
        scale_ratio=ratio,
        iscale=iscale,
        wht_scale=wht_scale,
        flux_conserving=flux_conserving,
    )


def _read_squares(data2: Any, shape: tuple[int, ...], outputs: Outputs) -> list[FloatArray | None]:
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
    known = outputs.n_squares
    if known is not None and len(squares) != known:
        raise InputError(
            f"Mismatch between the number of 'out_img2' images ({known}) and the number of 'data2' images "
            f"({len(squares)}); it must be the same in every call.",
            found=len(squares),
            needed=known,
        )
    return squares
