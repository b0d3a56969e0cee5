"""Options that several commands share: how to read an image, where to write."""

from __future__ import annotations

import argparse
from typing import Any


def add_reading_options(parser: argparse.ArgumentParser, roles: tuple[str, ...] = ()) -> None:
    """Add the overrides of what headers say; with `roles`, one set per role (``--science-gain`` ...)."""
    group = parser.add_argument_group("reading", "Overrides of what the headers say.")
    for role in roles or ("",):
        dash = f"--{role}-" if role else "--"
        of = f" of the {role}" if role else ""
        group.add_argument(f"{dash}ext", metavar="EXT", help=f"extension{of}: number or name")
        group.add_argument(f"{dash}mask", metavar="FILE", help=f"mask{of}: non-zero pixels are bad")
        group.add_argument(f"{dash}gain", type=above_zero, metavar="E/ADU", help=f"gain{of}, electrons per data unit")
        group.add_argument(f"{dash}read-noise", type=float, metavar="E", help=f"read noise{of}, electrons")
        group.add_argument(f"{dash}saturation", type=float, metavar="ADU", help=f"saturation level{of}")
    group.add_argument("--no-verify", action="store_true", help="read files although their checksums are wrong")


def add_threshold(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--threshold``, in standard deviations; `what` says of what."""
    parser.add_argument(
        "--threshold", type=above_zero, default=5.0, metavar="SIGMA", help=f"{what} (default: %(default)s)"
    )


def add_json(parser: argparse._ActionsContainer) -> None:
    """Add ``--json``: the result for programs."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_positions(parser: argparse.ArgumentParser) -> None:
    """Add ``--positions``: how stars are measured."""
    parser.add_argument(
        "--positions",
        choices=("windowed", "psf"),
        default="windowed",
        help="centroids in a Gaussian window, or fits of the PSF, for crowded fields (default: %(default)s)",
    )


def above_zero(text: str) -> float:
    """Read a number; argparse calls this before any work is done."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def reading_options(arguments: argparse.Namespace, role: str = "") -> dict[str, Any]:
    """Return the keyword arguments for `skyloom.io.read`."""
    stem = f"{role}_" if role else ""
    ext = getattr(arguments, f"{stem}ext")
    return {
        "ext": int(ext) if ext is not None and ext.isdigit() else ext,
        "mask": getattr(arguments, f"{stem}mask"),
        "gain": getattr(arguments, f"{stem}gain"),
        "read_noise": getattr(arguments, f"{stem}read_noise"),
        "saturation": getattr(arguments, f"{stem}saturation"),
        "verify": not arguments.no_verify,
    }
