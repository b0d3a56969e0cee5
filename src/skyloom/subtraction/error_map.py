"""Noise maps from an image alone, as the subtraction routines of stdpipe build them for ``err=True``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import sep

from skyloom.errors import NoUsableDataError
from skyloom.subtraction.dropin_arguments import bad_plane, real_plane


def build_error_map(
    image: Any, mask: Any = None, gain: float | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the noise of each pixel, and the background: sqrt(rms^2 + abs(image - background) / gain).

    Parameters
    ----------
    image : array_like, shape (ny, nx)
    mask : array_like of bool, optional
        True where a pixel is not to be used. Pixels that are not finite never are.
    gain : float, optional
        e-/ADU; without it, the noise of the background only.

    Returns
    -------
    err, background : ndarray, shape (ny, nx)
        err is that of the background where masked.

    Raises
    ------
    NoUsableDataError
        All pixels are masked.
    """
    image = real_plane(image, "the image")
    bad = bad_plane(mask, image.shape, "the mask") | ~np.isfinite(image)
    if bad.all():
        raise NoUsableDataError("No pixel can be used for a noise map: all are masked or NaN.")
    # sep does not look at masked pixels, but NaN would survive its arithmetic
    data = np.where(bad, np.median(image[~bad]), image).astype(np.float64)
    background = sep.Background(data, mask=bad)
    level, err = background.back(dtype=np.float64), background.rms(dtype=np.float64)
    if gain is not None:
        source = np.abs(data - level)
        source[bad] = 0
        err = np.sqrt(err**2 + source / gain)
    return err, level
