"""``stdpipe.subtraction``: what skyloom serves of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.subtraction import build_error_map, run_hotpants, run_zogy

__all__ = ["run_hotpants", "run_zogy"]


def _build_err_map(
    image: Any, mask: Any = None, gain: float | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the noise of each pixel, and the background, see `skyloom.subtraction.build_error_map`."""
    return build_error_map(image, mask, gain)
