"""What a fit of a matching kernel has found, whatever its method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from astropy.table import Table

from skyloom.subtraction.basis import Float64Array
from skyloom.subtraction.kernel import SpatialKernel


@dataclass(frozen=True, eq=False)
class Match:
    """A kernel and a background that take one image to another.

    Parameters
    ----------
    kernel : SpatialKernel
    background : ndarray
        Coefficients of the background's monomials, in the coordinates of the kernel.
    background_order : int
    stamps : Table
        Stars of the fit: x, y, snr, chi2, used.
    statistics : dict
        Numbers for `Subtraction.statistics`.
    """

    kernel: SpatialKernel
    background: Float64Array
    background_order: int
    stamps: Table
    statistics: dict[str, Any] = field(default_factory=dict)
