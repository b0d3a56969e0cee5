"""The choice of the method of a difference, from the images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skyloom.exposure import Exposure
from skyloom.psf import Psf

if TYPE_CHECKING:
    from skyloom.pipeline.difference import DifferenceOptions


def choose_method(
    options: DifferenceOptions, science: Exposure, template: Exposure, psf: Psf, sources: Any
) -> tuple[str, str]:
    """Return the method and why."""
    if options.chosen is not None:
        return options.chosen, "as asked for"
    return "alard-lupton", "default"
