"""Real images for the demo and the tests; see the README of each folder for source and licence."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent

SAAO_TEMPLATE = (27, 73, 75, 77)
"""Frames of earlier nights, with good seeing, to subtract."""
SAAO_SCIENCE = (110, 163)
"""The variable star at (288.1, 214.9) of frame 100 is bright in the first and faint in the second."""


def saao_frame(number: int) -> Path:
    """Return the path of the SAAO frame ``AKB13475I<number>``."""
    path = _HERE / "saao_kb13475" / f"AKB13475I{number:04d}.fits.fz"
    if not path.exists():
        have = ", ".join(sorted(p.name[8:13] for p in path.parent.glob("*.fz")))
        raise FileNotFoundError(f"{path.name} does not come with skyloom; there are {have}.")
    return path
