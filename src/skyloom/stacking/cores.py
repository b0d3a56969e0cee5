"""Cores of stars that exposures lack, such as saturated ones: what the star would have there, by all of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.optimize import least_squares

from skyloom.stacking.memory import Window

Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_AROUND = 3
"""Pixels around a core that tell of the star."""
_BRIGHT = 20.0
"""Standard deviations above the sky of the pixels around, below which what the neighbours have serves as well."""
_MODEL_ERROR = 0.02
"""Relative error of a PSF that is measured, and of its interpolation."""
_WORST = 5.0
"""RMS of the residuals in units of their error (noise and that), above which this is no star but a trail, two stars, a
bad column."""


@dataclass(frozen=True, eq=False)
class Core:
    """A hole in some or all exposures, and what each of them has there and around it.

    Parameters
    ----------
    window : Window
        Part of the image that holds it and its surroundings.
    near : ndarray of bool
        The core and what is around it.
    middle : (float, float)
        x, y of its middle in the window.
    data, good : list of ndarray
        Pixels of each exposure in the window, and which of them it has.
    """

    window: Window
    near: BoolArray
    middle: tuple[float, float]
    data: list[Array] = field(default_factory=list)
    good: list[BoolArray] = field(default_factory=list)


def find_cores(lost: BoolArray, mean: Array, level: float, sigma: float, half: int) -> list[Core]:
    """Return the holes that lie in bright sources.

    Parameters
    ----------
    lost : ndarray of bool, shape (ny, nx)
        Pixels that are bad in an exposure.
    mean : ndarray, shape (ny, nx)
        Mean of the exposures that have a pixel.
    level, sigma : float
        Sky level, and standard deviation of the noise of the mean.
    half : int
        Half size of the PSFs: larger holes are none of a star.
    """
    holes, _ = ndimage.label(lost, np.ones((3, 3)))
    cores = []
    for number, found in enumerate(ndimage.find_objects(holes), 1):
        window = tuple(slice(part.start - _AROUND, part.stop + _AROUND) for part in found)
        inside = all(part.start >= 0 and part.stop <= n for part, n in zip(window, lost.shape, strict=True))
        if not inside or max(part.stop - part.start for part in found) > half:
            continue
        hole = holes[window] == number
        near = ndimage.binary_dilation(hole, np.ones((3, 3)), iterations=_AROUND)
        around = near & ~hole
        if np.median(mean[window][around]) - level > _BRIGHT * sigma:
            y, x = ndimage.center_of_mass(hole)
            cores.append(Core((window[0], window[1]), near, (float(x), float(y))))
    return cores


def star_in(core: Core, stamps: Sequence[Array], sigmas: Sequence[float]) -> list[Array] | None:
    """Return the star that fits the pixels around a core best, as each exposure sees it; None if none does.

    One flux, one position and one level for all exposures j with PSFs P_j, by least squares with the errors sigma_j and
    2 % of the values: d_j = f P_j(x - x0, y - y0) + c.

    Parameters
    ----------
    core : Core
        With the pixels of all exposures.
    stamps : sequence of ndarray
        PSFs, of unit sum, centred on the middle pixel.
    sigmas : sequence of float
        Standard deviations of the noise.

    Returns
    -------
    list of ndarray or None
        Values in the window of the core; NaN where an exposure has its pixels, or none of them.
    """
    splines = [ndimage.spline_filter(stamp, 5) for stamp in stamps]
    y, x = np.mgrid[: core.near.shape[0], : core.near.shape[1]].astype(np.float64)
    use = [good & core.near for good in core.good]
    data = np.concatenate([values[part] for values, part in zip(core.data, use, strict=True)])
    noise = np.concatenate([np.full(part.sum(), sigma) for part, sigma in zip(use, sigmas, strict=True)])
    if len(data) < 4 + 2 * len(stamps):
        return None
    error = np.hypot(noise, _MODEL_ERROR * (data - data.min()))

    def seen(at: Array) -> list[Array]:
        result = []
        for spline in splines:
            half = spline.shape[0] // 2
            place = [y - core.middle[1] - at[1] + half, x - core.middle[0] - at[0] + half]
            result.append(ndimage.map_coordinates(spline, place, order=5, prefilter=False))
        return result

    def solve(at: Array) -> tuple[Array, Array]:
        # flux and level are linear: solved for at every step (variable projection)
        star = np.concatenate([values[part] for values, part in zip(seen(at), use, strict=True)])
        basis = np.stack([star, np.ones_like(star)], axis=1) / error[:, None]
        found: Array = np.linalg.lstsq(basis, data / error)[0].astype(np.float64)
        return found, basis @ found - data / error

    reach = max(core.near.shape) / 2
    at = least_squares(lambda p: solve(p)[1], np.zeros(2), bounds=(-reach, reach), x_scale=0.3).x
    (flux, level), rest = solve(at)
    if flux <= 0 or np.sqrt(np.mean(rest**2)) > _WORST:
        return None
    own = [core.near & ~good if part.any() else np.zeros_like(good) for good, part in zip(core.good, use, strict=True)]
    return [np.where(part, flux * values + level, np.nan) for values, part in zip(seen(at), own, strict=True)]
