"""skyloom: register, drizzle, co-add and difference astronomical images, and find what changed in them.

The public names are loaded when they are first used, so that ``import skyloom`` and ``skyloom --help`` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skyloom.exposure import Exposure, MaskBit
    from skyloom.io import read, write_exposure
    from skyloom.pipeline.difference import Difference, difference
    from skyloom.pipeline.find import detect
    from skyloom.pipeline.many import difference_many
    from skyloom.pipeline.stack import coadd
    from skyloom.registration.register import register
    from skyloom.resampling.resample import resample

__version__ = "0.1.0"

_HOMES = {
    "Difference": "skyloom.pipeline",
    "Exposure": "skyloom.exposure",
    "MaskBit": "skyloom.exposure",
    "coadd": "skyloom.pipeline",
    "detect": "skyloom.pipeline",
    "difference": "skyloom.pipeline",
    "difference_many": "skyloom.pipeline",
    "read": "skyloom.io",
    "register": "skyloom.registration",
    "resample": "skyloom.resampling",
    "write_exposure": "skyloom.io",
}

__all__ = [
    "Difference",
    "Exposure",
    "MaskBit",
    "coadd",
    "detect",
    "difference",
    "difference_many",
    "read",
    "register",
    "resample",
    "write_exposure",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'skyloom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
