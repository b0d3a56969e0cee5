"""The options of `skyloom.resampling.Resample`, checked."""

from __future__ import annotations

import math
from typing import Any

from skyloom.errors import InputError
from skyloom.resampling._drizzle_checks import LARGEST_PIXFRAC, is_number
from skyloom.resampling._drizzle_planes import fill_text
from skyloom.resampling.drizzle import SUPPORTED_DRIZZLE_KERNELS
from skyloom.resampling.model_input import WEIGHT_PLANES, ModelOptions


class Options:
    """The part of `skyloom.resampling.Resample` that knows its options, which users may set at any time."""

    pixfrac: float
    kernel: str
    fillval: Any
    weight_type: str | None
    good_bits: Any
    pixmap_stepsize: float
    pixmap_order: int
    pixmap_tolerance: float | None
    variance_array_names: Any
    dq_flag_name_map: Any
    _enable_var: bool
    _compute_err: str | None
    _propagate_dq: bool

    @property
    def _variance_names(self) -> list[str]:
        return list(self.variance_array_names) if self._enable_var else []

    def _check_options(self) -> None:
        """Raise if an option, which users may set at any time, makes no sense."""
        if not isinstance(self.kernel, str) or self.kernel.lower() not in SUPPORTED_DRIZZLE_KERNELS:
            raise InputError(f"Kernel '{self.kernel}' is not supported.", kernel=self.kernel)
        if self.weight_type not in (*WEIGHT_PLANES, "exptime", None):
            raise InputError(
                f"Unexpected weight type: '{self.weight_type}'. It must be 'ivm', 'ivm-sky', 'exptime', or None.",
                weight_type=self.weight_type,
            )
        if self._compute_err not in ("from_var", "driz_err", None, False):
            raise InputError(
                f"compute_err is {self._compute_err!r}; it must be 'from_var', 'driz_err' or None.",
                compute_err=self._compute_err,
            )
        if not (is_number(self.pixfrac) and 0 <= self.pixfrac <= LARGEST_PIXFRAC):
            raise InputError(
                f"pixfrac is {self.pixfrac!r}; a finite number from 0 to {LARGEST_PIXFRAC:.0f} is needed.",
                pixfrac=self.pixfrac,
            )
        if not (is_number(self.pixmap_stepsize) and 1 <= self.pixmap_stepsize < math.inf):
            raise InputError(
                f"pixmap_stepsize is {self.pixmap_stepsize!r}; a number from 1 (pixels) is needed.",
                pixmap_stepsize=self.pixmap_stepsize,
            )
        if self.pixmap_stepsize > 1 and self.pixmap_order not in (1, 3):
            raise InputError(
                f"Interpolation order should be either 1 or 3; found pixmap_order = {self.pixmap_order!r}.",
                pixmap_order=self.pixmap_order,
            )
        if self.pixmap_tolerance is not None and not (is_number(self.pixmap_tolerance) and self.pixmap_tolerance >= 0):
            raise InputError(
                f"pixmap_tolerance is {self.pixmap_tolerance!r}; a number from 0 (pixels) is needed, or None.",
                pixmap_tolerance=self.pixmap_tolerance,
            )
        fill_text(self.fillval, given=False)

    def _model_options(self) -> ModelOptions:
        return ModelOptions(
            weight_type=self.weight_type,
            good_bits=self.good_bits,
            flag_names=self.dq_flag_name_map,
            variance_names=self._variance_names,
            with_error=self._compute_err == "driz_err",
            with_dq=self._propagate_dq,
        )
