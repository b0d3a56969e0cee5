"""Running sums over models: data, weight, context, bits, errors and variances, all from one geometry pass per model.

With the weights w of the pixels of model i, the overlaps a of their drops with an output cell, and the root e of their
variance, the model contributes to the variance of the cell as one measurement with

    V_i = (sum a w e / sum a w)^2,

and n models with their own weights W_i have V = sum(W_i^2 V_i) / (sum W_i)^2. W_i is the inverse of the V_i of the
variance that the pixels are weighted with, or the exposure time. That is the estimate of stcal. With squared weights
instead, V = sum (a w)^2 v / (sum a w)^2 over all pixels: what the noise of independent pixels gives (Casertano et al.
2000, AJ 120, 2747, appendix A).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom import _kernels
from skyloom._threads import map_bands, row_bands
from skyloom.exposure import FloatArray
from skyloom.resampling._drizzle_kernels import DrizzleGeometry, drizzle
from skyloom.resampling._drizzle_planes import fill_number, fill_text
from skyloom.resampling.context import CTX_PLANE_BITS
from skyloom.resampling.model_input import ModelImage

_INFINITY = 0x7F800000
"""Bits of infinity in float32; NaN and values below 0 have larger ones."""


@dataclass(frozen=True)
class Scales:
    """Factors on the data of a model, on its errors, and on its variances (beside the square of that on the data)."""

    data: float = 1.0
    error: float = 1.0
    variance: float = 1.0


@dataclass(frozen=True, eq=False)
class SumsOptions:
    """What is summed, and how.

    Parameters
    ----------
    fillval : float, str or None
        Value of pixels of data and errors without weight; see `skyloom.resampling.Drizzle`.
    max_models : int or None
        How many models are expected; None keeps context for 32, and more as they come. 0: no context.
    with_dq, with_error : bool
        Whether data-quality bits and errors are propagated.
    variance_dtypes : dict of str to dtype
        Names of the variances, and their types.
    squared_weights : bool
        Whether errors and variances are averaged with squared weights.
    """

    fillval: Any
    max_models: int | None
    with_dq: bool
    with_error: bool
    variance_dtypes: dict[str, npt.DTypeLike]
    squared_weights: bool


class ModelSums:
    """The planes of a co-add of models, shape (ny, nx) each, which hold the result for all models so far.

    Attributes
    ----------
    out_img, out_wht : ndarray of float32
        Weighted mean of the data, sum of weights.
    out_ctx : ndarray of int32, shape (planes, ny, nx), or None
        Which models have contributed; see `skyloom.resampling.decode_context`.
    out_dq : ndarray of uint32 or None
        Data-quality bits of all pixels that contributed.
    error : ndarray of float32 or None
        Weighted mean of the errors (root of the sum of squared weights times squares of errors).
    variances, variance_weights : dict of ndarray
        Variances, NaN where they are not known, and sums of the weights W_i of those that some models lack.
    """

    def __init__(self, shape: tuple[int, int], options: SumsOptions) -> None:
        self.options = options
        self.shape = shape
        self.blank = True
        self.out_img = np.empty(shape, np.float32)
        self.out_wht = np.empty(shape, np.float32)
        self.out_ctx: npt.NDArray[np.int32] | None = None
        if options.max_models != 0:
            planes = 1 if options.max_models is None else (options.max_models - 1) // CTX_PLANE_BITS + 1
            self.out_ctx = np.empty((planes, *shape), np.int32)
        self.out_dq = np.empty(shape, np.uint32) if options.with_dq else None
        self.error: FloatArray | None = np.empty(shape, np.float32) if options.with_error else None
        self.error_weight: FloatArray | None = None
        self.variances: dict[str, FloatArray] = {}
        self.variance_weights: dict[str, FloatArray] = {}
        self.root_weight: FloatArray | None = None

    @property
    def fill(self) -> float:
        """Value of pixels without weight."""
        return float(fill_number(fill_text(self.options.fillval, given=False)) or 0.0)

    def settle(self) -> None:
        """Fill planes to which nothing has been added."""
        if self.blank:
            self.out_img[...] = self.fill
            self.out_wht[...] = 0
            for plane in (self.out_ctx, self.out_dq):
                if plane is not None:
                    plane[...] = 0
            if self.error is not None:
                self.error[...] = self.fill
            self.blank = False

    def add(
        self,
        image: ModelImage,
        geometry: DrizzleGeometry,
        footprint: _kernels.DrizzleFootprint,
        kernel: str,
        *,
        number: int,
        scales: Scales,
    ) -> None:
        """Add a model.

        Parameters
        ----------
        image : ModelImage
            The model.
        geometry, footprint, kernel
            Where it lies: see `skyloom.resampling._drizzle_kernels.drizzle`.
        number : int
            Number (from 0) of its bit in the context.
        scales : Scales
            Factors on its planes.
        """
        plane, bit = divmod(number, CTX_PLANE_BITS)
        self._grow_context(plane)
        signed = kernel.startswith("lanczos")
        errors, variances = self._error_slots(image, signed), self._variance_slots(image, signed)
        squared = self.options.squared_weights
        squares = [*variances, *errors] if squared else []
        if squared:
            errors, variances = [], []
        reference = _reference(image, variances)
        source = _source(image, scales, squares, errors, variances)
        target = _kernels.DrizzleOutput(
            self.out_img,
            self.out_wht,
            [slot.plane for slot in squares],
            [slot.weight for slot in squares],
            self.out_dq,
            None if self.out_ctx is None else self.out_ctx[plane],
            context_bit=bit,
            fill=self.fill,
            fill_squares=math.nan,
            fresh=self.blank,
            filled=not self.blank,
        )
        target.set_errors([slot.plane for slot in errors], [slot.weight for slot in errors])
        target.set_roots(
            [slot.plane for slot in variances],
            [slot.weight for slot in variances],
            self.root_weight,
            reference=reference,
            own_weight=image.weight,
            variance_scale=scales.variance,
        )
        if self.blank and self.out_ctx is not None:
            self.out_ctx[:plane] = self.out_ctx[plane + 1 :] = 0
        drizzle(kernel, source, target, geometry, footprint)
        self.blank = False

    def add_variances(
        self,
        image: ModelImage,
        geometry: DrizzleGeometry,
        footprint: _kernels.DrizzleFootprint,
        kernel: str,
        scales: Scales,
    ) -> None:
        """Add the variances alone of a model whose data have been added; the parameters are those of `add`."""
        scratch = ModelSums(self.shape, replace(self.options, max_models=0, with_dq=False, with_error=False))
        scratch.blank = self.blank
        scratch.settle()
        scratch.variances, scratch.variance_weights = self.variances, self.variance_weights
        scratch.root_weight = self.root_weight
        scratch.add(image, geometry, footprint, kernel, number=0, scales=scales)
        self.root_weight = scratch.root_weight

    def planes_of(self, image: ModelImage) -> tuple[int, int]:
        """Return how many planes of a model are averaged with squared weights, and how many like the data."""
        n = len(image.variances) + (image.error is not None)
        if self.options.squared_weights:
            return n, 0
        extra = bool(image.variances) and image.weight_name not in ("", *image.variances)
        return 0, n + extra

    def variance(self, name: str) -> FloatArray:
        """Return a variance in the type that it is wanted in; NaN where no model has told it."""
        dtype = self.options.variance_dtypes[name]
        if name not in self.variances:
            return np.full(self.shape, np.nan, dtype)
        return self.variances[name].astype(dtype, copy=False)

    def final_error(self) -> FloatArray:
        """Return the errors."""
        assert self.error is not None
        return np.sqrt(self.error, out=self.error) if self.options.squared_weights else self.error

    def checkpoint(self, box: tuple[int, int, int, int], number: int) -> Callable[[], None]:
        """Return what undoes the changes by a model.

        Parameters
        ----------
        box : tuple of int
            The cells (x0, x1, y0, y1), half open, that the model reaches.
        number : int
            Its number in the context.
        """
        names = ("blank", "out_ctx", "root_weight", "error_weight")
        state = {name: getattr(self, name) for name in names}
        dicts = dict(self.variances), dict(self.variance_weights)
        inside = np.s_[box[2] : box[3], box[0] : box[1]]
        plane = number // CTX_PLANE_BITS
        context = self.out_ctx[plane] if self.out_ctx is not None and plane < len(self.out_ctx) else None
        planes = (self.out_img, self.out_wht, context, self.out_dq, self.error, self.error_weight, self.root_weight)
        written = [p for p in (*planes, *dicts[0].values(), *dicts[1].values()) if p is not None]
        copies = [] if self.blank else [(p, p[inside].copy()) for p in written]

        def undo() -> None:
            for name, value in state.items():
                setattr(self, name, value)
            self.variances, self.variance_weights = dicts
            for p, copy in copies:
                p[inside] = copy

        return undo

    def _grow_context(self, plane: int) -> None:
        if self.out_ctx is not None and plane >= len(self.out_ctx):
            more = np.zeros((plane + 1 - len(self.out_ctx), *self.shape), np.int32)
            self.out_ctx = np.concatenate([self.out_ctx, more])

    def _error_slots(self, image: ModelImage, signed: bool) -> list[_Slot]:
        if image.error is None or self.error is None:
            return []
        if self.options.squared_weights:
            return [_Slot(np.square(image.error), self.error, None)]
        if self.error_weight is None and (signed or not np.isfinite(_extremes(image.error)).all()):
            self.error_weight = np.zeros_like(self.out_wht) if self.blank else self.out_wht.copy()
        return [_Slot(image.error, self.error, self.error_weight)]

    def _variance_slots(self, image: ModelImage, signed: bool) -> list[_Slot]:
        """Make room for the variances of a model, and for sums of weights that they share with none."""
        squared = self.options.squared_weights
        slots = []
        for name, dtype in self.options.variance_dtypes.items():
            source = image.variances.get(name)
            if name not in self.variances:
                if source is None:
                    continue
                kind = np.float32 if squared else dtype
                self.variances[name] = np.empty(self.shape, kind) if self.blank else np.full(self.shape, np.nan, kind)
                if not self.blank:  # earlier models were without it
                    self.variance_weights[name] = np.zeros_like(self.out_wht)
            alone = source is None or (not squared and (signed or not _is_variance(source)))
            if alone and name not in self.variance_weights:
                common = self.out_wht if squared else self.root_weight
                first = self.blank or common is None
                self.variance_weights[name] = np.zeros_like(self.out_wht) if first else np.array(common)
            if source is not None:
                slots.append(_Slot(source, self.variances[name], self.variance_weights.get(name)))
        if self.root_weight is None and not squared and any(slot.weight is None for slot in slots):
            self.root_weight = np.empty_like(self.out_wht)
        return slots


def root_of_sum(planes: Sequence[FloatArray], dtype: npt.DTypeLike) -> FloatArray:
    """Return the root of the sum of those of the variances that are known; NaN where none is."""
    root = np.empty(planes[0].shape, dtype)

    def fill(band: tuple[int, int]) -> None:
        parts, out = [plane[slice(*band)] for plane in planes], root[slice(*band)]
        np.copyto(out, parts[0])
        for part in parts[1:]:
            out += part
        some = np.isnan(out)  # in one of them; where not in all, the others count
        if some.any():
            some &= ~np.logical_and.reduce([np.isnan(part) for part in parts])
            out[some] = np.nansum([part[some] for part in parts], axis=0, dtype=dtype)
        np.sqrt(out, out=out)

    map_bands(fill, row_bands(len(root)))
    return root


@dataclass(frozen=True, eq=False)
class _Slot:
    """A plane of a model, where it goes, and the sum of its weights if they are its own."""

    source: FloatArray
    plane: FloatArray | None
    weight: FloatArray | None


def _extremes(plane: FloatArray) -> tuple[float, float]:
    return float(plane.min()), float(plane.max())


def _is_variance(plane: FloatArray) -> bool:
    """Return whether all values are finite and from 0."""
    if plane.dtype == np.float32 and int(plane.view(np.uint32).max()) < _INFINITY:  # one pass: the bits order as values
        return True
    low, high = _extremes(plane)
    return low >= 0 and math.isfinite(high)


def _reference(image: ModelImage, variances: list[_Slot]) -> int:
    """Return which variance gives the weights; it is appended if it is not among those that are co-added."""
    if not variances or image.weight_variance is None:
        return -1
    for k, slot in enumerate(variances):
        if slot.source is image.variances.get(image.weight_name):
            return k
    variances.append(_Slot(image.weight_variance, None, None))
    return len(variances) - 1


def _source(
    image: ModelImage, scales: Scales, squares: list[_Slot], errors: list[_Slot], variances: list[_Slot]
) -> _kernels.DrizzleInput:
    return _kernels.DrizzleInput(
        image.data,
        image.weight_variance,
        [slot.source for slot in squares],
        image.dq,
        data_scale=scales.data,
        square_scale=scales.data**2,
        weight_scale=image.weight,
        errors=[slot.source for slot in errors],
        roots=[slot.source for slot in variances],
        error_scale=scales.error,
        root_scale=scales.data,
        data_offset=image.level,
        inverse_weight=image.weight_variance is not None,
        mask=image.mask,
        rejected=image.rejected,
    )
