"""The names of `stdpipe.sfft`."""

from __future__ import annotations

import functools
from typing import Any

from skyloom.subtraction import sfft
from skyloom.subtraction.sfft import SFFTResult, evaluate_background, evaluate_flux_scale, evaluate_kernel_at

__all__ = ["SFFTResult", "evaluate_background", "evaluate_flux_scale", "evaluate_kernel_at", "solve"]

_USE_INCREMENTAL_UPDATES = True
"""False: sum the normal matrix anew whenever pixels were clipped. The result is the same."""


@functools.wraps(sfft.solve)
def solve(*args: Any, **kwargs: Any) -> SFFTResult:
    """Fit and subtract, see `skyloom.subtraction.sfft.solve`."""
    return sfft.solve(*args, **{"rebuild": not _USE_INCREMENTAL_UPDATES, **kwargs})
