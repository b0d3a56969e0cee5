"""``stdpipe.subtraction``: what skyloom serves of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.subtraction import build_error_map, run_hotpants, run_zogy
from skyloom.subtraction.sfft import SFFTResult, run_sfft
from skyloom.subtraction.sfft.run import difference_noise

__all__ = ["run_hotpants", "run_sfft", "run_zogy"]


def _build_err_map(
    image: Any, mask: Any = None, gain: float | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the noise of each pixel, and the background, see `skyloom.subtraction.build_error_map`."""
    return build_error_map(image, mask, gain)


def _compute_diff_noise(
    sfft_result: SFFTResult, err: Any, template_err: Any, mask: Any, log: Any
) -> npt.NDArray[np.float64]:
    """Return the noise of a difference, see `skyloom.subtraction.sfft.run.difference_noise`."""
    del mask, log
    return difference_noise(sfft_result, err, template_err)
