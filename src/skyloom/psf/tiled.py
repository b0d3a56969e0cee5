"""A point spread function known at the nodes of a grid."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from skyloom.errors import ShapeError
from skyloom.psf.model import Stamp, stamp_fwhm
from skyloom.psf.shift import shift_stamp


class TiledPsf:
    """A PSF between the nodes of a rectangular grid: stamps, interpolated linearly.

    Parameters
    ----------
    stamps : array_like, shape (len(y), len(x), n, n), n odd
        The PSF at each node, centred on the middle pixel; each is divided by its sum.
    x, y : array_like, shapes (nx,), (ny,)
        Positions of the nodes, ascending, pixels.

    Raises
    ------
    ShapeError
        The shapes do not fit.
    """

    def __init__(self, stamps: npt.ArrayLike, x: npt.ArrayLike, y: npt.ArrayLike) -> None:
        values = np.array(stamps, float)
        self.x, self.y = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
        if values.ndim != 4 or values.shape[:2] != (len(self.y), len(self.x)) or values.shape[2] % 2 == 0:
            raise ShapeError(
                f"The stamps have the shape {values.shape} for {len(self.y)} x {len(self.x)} nodes; "
                "(rows of nodes, columns of nodes, n, n) with an odd n is needed.",
                found=values.shape,
            )
        self.stamps = values / values.sum(axis=(2, 3), keepdims=True)
        self.stamps.flags.writeable = False

    @property
    def half(self) -> int:
        """Half size of the stamps, pixels."""
        return int(self.stamps.shape[-1] // 2)

    def stamp(self, x: float, y: float) -> Stamp:
        """Return the PSF at (x, y), shape (2 half + 1, 2 half + 1), unit sum; outside, that of the border."""
        wx, wy = _weights(self.x, x), _weights(self.y, y)
        return np.einsum("j,i,jinm->nm", wy, wx, self.stamps)

    def stamp_at(self, x: float, y: float, dx: float, dy: float) -> Stamp:
        """Return the PSF at (x, y), centred (dx, dy) pixels from the middle pixel."""
        return shift_stamp(self.stamp(x, y), dx, dy)

    def fwhm(self, x: float | None = None, y: float | None = None) -> float:
        """Full width at half maximum in pixels (see `stamp_fwhm`) at (x, y), by default the middle of the nodes."""
        at_x = float(self.x.mean()) if x is None else x
        return stamp_fwhm(self.stamp(at_x, float(self.y.mean()) if y is None else y))

    def __repr__(self) -> str:
        return f"<TiledPsf of {len(self.y)} x {len(self.x)} nodes, half {self.half}, FWHM {self.fwhm():.2f} px>"


def _weights(nodes: npt.NDArray[np.float64], at: float) -> npt.NDArray[np.float64]:
    """Return the weights of linear interpolation, clipped to the nodes."""
    weight = np.zeros(len(nodes))
    place = float(np.interp(at, nodes, np.arange(len(nodes))))
    low = min(int(place), max(len(nodes) - 2, 0))
    weight[low] = 1 - (place - low)
    if len(nodes) > 1:
        weight[low + 1] = place - low
    return weight
