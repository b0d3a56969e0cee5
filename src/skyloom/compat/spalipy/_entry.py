"""One source of several, and how the attributes of all become those of `Spalipy`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.table import Table

from skyloom.compat.spalipy._affine import AffineTransform, ResidualSurface
from skyloom.compat.spalipy._quads import Quad
from skyloom.exposure import Exposure, MaskBit
from skyloom.registration import Registration

Float = npt.NDArray[np.float64]

_BAD = np.uint32(MaskBit.BAD)


@dataclass(eq=False)
class Entry:
    """One source and what has been found for it."""

    data: Float
    mask: npt.NDArray[Any] | None
    output_shape: tuple[int, int]
    det: Table = None
    coo: Float = None  # type: ignore[assignment]  # set by the constructor
    quadlist: list[list[Quad]] | None = None
    source_matched: Table | None = None
    template_matched: Table | None = None
    registration: Registration | None = None
    affine: AffineTransform | None = None
    sbs_x: ResidualSurface | None = None
    sbs_y: ResidualSurface | None = None
    spline: Callable[..., Float] | None = None
    aligned_data: Float | None = None
    aligned_mask: npt.NDArray[Any] | None = None
    failed: bool = False

    def exposure(self, number: int) -> Exposure:
        """Return the source as an exposure; what its mask marks is unusable."""
        exposure = Exposure(self.data, name=f"source entry {number}")
        return exposure if self.mask is None else exposure.replace(mask=np.where(self.mask != 0, _BAD, exposure.mask))


def per_entry(field: str, what: str) -> property:
    """Return a property: that field of the only entry, or a list; None while no entry has it."""

    def get(self: Any) -> Any:
        values = [getattr(entry, field) for entry in self._entries]
        if all(value is None for value in values):
            return None
        return values if self._many else values[0]

    return property(get, doc=what)
