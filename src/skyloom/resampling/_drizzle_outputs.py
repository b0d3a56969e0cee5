"""The planes of a drizzle's output: those that were given, those that are made, and how far they are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom import _kernels
from skyloom.errors import InputError, ShapeError
from skyloom.exposure import FloatArray
from skyloom.resampling._drizzle_checks import check_earlier, output_dtype, output_shape
from skyloom.resampling._drizzle_map import Positions, output_range
from skyloom.resampling._drizzle_planes import bit_plane, context_planes, fill_number, list_of, output_plane
from skyloom.resampling.context import CTX_PLANE_BITS
from skyloom.resampling.covariance import CovarianceSums

_MIXED_SHAPES = (
    "Inconsistent data shapes specified: 'out_shape' and the output arrays that are given must be of one shape; "
    "found {}."
)


@dataclass(frozen=True, eq=False)
class Earlier:
    """The arguments of `Drizzle` with the shape of the output and earlier results, under their names."""

    out_shape: Any
    out_img: Any
    out_wht: Any
    out_ctx: Any
    out_img2: Any
    out_dq: Any
    out_wht2: Any


class Outputs:
    """The planes of a drizzle, and what is known of them.

    Parameters
    ----------
    earlier : Earlier
        What the caller has given.
    fillval, fillval2 : str
        As `fill_text` has them.
    first, last : int, optional
        Number of the first image in the context, None without one; the largest that is expected.
    covariance_block : int, optional
        Blocks over which covariances are averaged, if they are kept.

    Raises
    ------
    InputError
        Earlier results contradict each other; `ShapeError` if they differ in shape.
    """

    def __init__(
        self,
        earlier: Earlier,
        *,
        fillval: str,
        fillval2: str,
        first: int | None,
        last: int,
        covariance_block: int | None,
    ) -> None:
        self.fillval, self.fillval2 = fillval, fillval2
        self.ctx_id, self._last_ctx_id = first, last
        self.n_images = 0
        self.covariance: CovarianceSums | None = None
        self._covariance_block = covariance_block
        self._origin = (0, 0)
        self._blank = False  # the arrays are there, but nothing has been written to them yet
        self.dtype: npt.DTypeLike = output_dtype(earlier.out_img, earlier.out_wht)
        self._take(earlier)
        self._shape = self._common_shape(earlier.out_shape)
        given = (earlier.out_shape, self.img, self.wht, self.ctx, self.dq)
        if any(g is not None for g in given):  # with squares alone the first image has a say in the shape
            self._allocate(check_context=self.wht is not None or self.ctx is not None)
        squares = [(plane, "out_img2") for plane in self.squares or ()]
        own = [w if w is not None else self.wht for w in self.square_weights or [None] * len(squares)]
        if not self._blank:
            check_earlier([(self.img, "out_img"), *squares], [self.wht, *own])

    def _take(self, earlier: Earlier) -> None:
        """Take the arrays that were given; those that can be written in place are not copied."""

        def plane(array: Any, what: str) -> FloatArray | None:
            return None if array is None else output_plane(array, self.dtype, what)

        self.img, self.wht = plane(earlier.out_img, "out_img"), plane(earlier.out_wht, "out_wht")
        self.ctx = None if earlier.out_ctx is None else context_planes(earlier.out_ctx)
        self.dq: npt.NDArray[np.uint32] | None = None
        if earlier.out_dq is not None:
            bit_plane(earlier.out_dq, "out_dq")
            self.dq = output_plane(earlier.out_dq, np.uint32, "out_dq")
        self.squares: list[Any] | None = None
        if earlier.out_img2 is not None:
            single = isinstance(earlier.out_img2, np.ndarray)
            planes = [earlier.out_img2] if single else list_of(earlier.out_img2, "out_img2")
            self.squares = [plane(p, "out_img2") for p in planes]
        self.square_weights: list[FloatArray | None] = []
        if earlier.out_wht2 is not None:
            self.square_weights = [plane(p, "out_wht2") for p in list_of(earlier.out_wht2, "out_wht2")]
            found, needed = len(self.square_weights), len(self.squares or ())
            if found != needed:
                raise InputError(
                    f"There are {found} planes of 'out_wht2' for {needed} of 'out_img2'; give one for each, or None.",
                    found=found,
                    needed=needed,
                )

    def _common_shape(self, out_shape: Any) -> tuple[int, ...] | None:
        """Return the one shape of all that was given, None if nothing was."""
        shapes = {output_shape(out_shape)} if out_shape is not None else set()
        shapes |= {plane.shape for plane in self.planes}
        if self.ctx is not None:
            shapes.add(self.ctx.shape[1:])
        if len(shapes) > 1 or any(len(s) != 2 or 0 in s for s in shapes):
            raise ShapeError(_MIXED_SHAPES.format(sorted(shapes)), found=sorted(shapes))
        return next(iter(shapes), None)

    @property
    def planes(self) -> list[npt.NDArray[Any]]:
        """All planes but the context."""
        planes = (self.img, self.wht, self.dq, *(self.squares or ()), *self.square_weights)
        return [plane for plane in planes if plane is not None]

    @property
    def n_squares(self) -> int | None:
        """How many planes go with squared weights; None as long as the first image may choose."""
        return len(self.squares) if self.squares is not None else 0 if self.n_images else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (ny, nx) of the output, once it is known."""
        assert self._shape is not None
        return self._shape

    @property
    def keeps_covariance(self) -> bool:
        """Whether covariances are wanted."""
        return self._covariance_block is not None

    @property
    def needs_positions(self) -> bool:
        """Whether all positions are needed: by the shape of the output, a shifted frame or covariances."""
        return self._shape is None or self._origin != (0, 0) or self._covariance_block is not None

    def prepare(self, positions: Positions, squares: list[FloatArray | None], with_dq: bool) -> Positions:
        """Allocate what an image needs and is not there; return its map in the frame of the output."""
        if self._shape is None:
            assert isinstance(positions, np.ndarray)  # `needs_positions`
            self._origin, self._shape = output_range(positions)
            try:
                self._allocate(check_context=False)
            except MemoryError:
                (ny, nx), self._shape, self._origin = self._shape, None, (0, 0)
                raise InputError(
                    f"The positions in the pixel map span {nx} x {ny} output pixels, more than the memory holds. Give "
                    "'out_shape', or set positions that mean nothing to NaN.",
                    size=(nx, ny),
                ) from None
        elif self.img is None or self.wht is None:
            self._allocate(check_context=False)
        shape = self._shape
        if squares:
            self._prepare_squares(squares)
        if with_dq and self.dq is None:
            self.dq = np.zeros(shape, np.uint32)
        if self.ctx is not None and self.ctx_id is not None:
            missing = self.ctx_id // CTX_PLANE_BITS + 1 - len(self.ctx)
            if missing > 0:
                self.ctx = np.concatenate([self.ctx, np.zeros((missing, *shape), np.int32)])
        return positions - self._origin if self._origin != (0, 0) and isinstance(positions, np.ndarray) else positions

    def _prepare_squares(self, squares: list[FloatArray | None]) -> None:
        """Allocate planes, and weights for those that do not have the weights of all images."""
        assert self._shape is not None
        assert self.wht is not None
        if any(square is None for square in squares):
            self.settle()
        number = fill_number(self.fillval2)
        value = np.nan if number is None else number
        planes = self.squares or [None] * len(squares)
        weights: list[FloatArray | None] = self.square_weights or [None] * len(squares)
        for k, square in enumerate(squares):
            if weights[k] is None and planes[k] is None and not self._blank and np.any(self.wht):
                weights[k] = np.zeros(self._shape, self.dtype)  # earlier images were without this plane
            elif weights[k] is None and square is None:
                weights[k] = self.wht.copy()
            if planes[k] is None:
                blank = self._blank and weights[k] is None  # all of it will be written
                planes[k] = np.empty(self._shape, self.dtype) if blank else np.full(self._shape, value, self.dtype)
        self.squares, self.square_weights = planes, weights

    def _allocate(self, check_context: bool) -> None:
        """Make the arrays that were not given, and compare those that were."""
        assert self._shape is not None
        if self._covariance_block is not None:
            self.covariance = CovarianceSums(self._shape, block=self._covariance_block)
        if all(a is None for a in (self.img, self.wht, self.ctx, self.squares, self.dq)):
            self._blank = True
            self.img, self.wht = np.empty(self._shape, self.dtype), np.empty(self._shape, self.dtype)
            if self.ctx_id is not None:
                first, planes = self.ctx_id // CTX_PLANE_BITS, self._last_ctx_id // CTX_PLANE_BITS + 1
                self.ctx = np.empty((planes, *self._shape), np.int32)
                self.ctx[:first] = self.ctx[first + 1 :] = 0
            return
        if self.wht is None:
            self.wht = np.zeros(self._shape, self.dtype)
        if self.ctx_id is not None and self.ctx is None:
            planes = self._last_ctx_id // CTX_PLANE_BITS + 1
            self.ctx = np.zeros((planes, *self._shape), np.int32)
        if check_context and self.ctx is not None:
            counted = self.ctx.any(axis=0)
            # only negative lobes of Lanczos kernels reach some pixels beyond the edge of an image: no bit, weight < 0
            if np.any(np.where(counted, self.wht == 0, self.wht > 0)):
                raise InputError(
                    "Inconsistent values of supplied 'out_wht' and 'out_ctx' arrays: pixels with a weight must have a "
                    "context and the other way round. Give both of them, or disable_ctx=True."
                )
        if self.img is None:
            self.img = np.full(self._shape, fill_number(self.fillval) or 0.0, self.dtype)

    def target(self, squares: list[FloatArray | None], with_dq: bool) -> _kernels.DrizzleOutput:
        """Return the planes as the kernels take them, for an image with these planes; `prepare` comes before."""
        assert self.img is not None
        assert self.wht is not None
        plane, bit = divmod(self.ctx_id or 0, CTX_PLANE_BITS)
        return _kernels.DrizzleOutput(
            self.img,
            self.wht,
            [None if s is None else plane for s, plane in zip(squares, self.squares or (), strict=True)],
            self.square_weights,
            self.dq if with_dq else None,
            None if self.ctx is None else self.ctx[plane],
            context_bit=bit,
            fill=fill_number(self.fillval),
            fill_squares=fill_number(self.fillval2),
            fresh=self._blank,
            filled=self.n_images > 0,
        )

    def count_image(self) -> None:
        """Take note that an image has been added."""
        self._blank = False
        self.n_images += 1
        if self.ctx_id is not None:
            self.ctx_id += 1

    def settle(self) -> None:
        """Fill the arrays of an output to which nothing has been added."""
        if self._blank and self.img is not None and self.wht is not None:
            self.img[...] = fill_number(self.fillval)
            self.wht[...] = 0
            if self.ctx is not None:
                self.ctx[...] = 0
            self.squares = self.dq = None  # of a first image that failed
            self._blank = False
