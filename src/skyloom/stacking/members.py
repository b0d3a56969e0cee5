"""The exposures of a co-add: looked at once, one by one, before anything is added up.

What is kept of an exposure is small (its scalars, its WCS; the samples of its sky lie on disk where there are many), so
that any number of them can be co-added; the pixels are read again when their turn comes.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, SkyloomError, WcsError
from skyloom.exposure import BoolArray, Exposure
from skyloom.io.fits_file import path_and_extension, path_of
from skyloom.io.keywords import EXPTIME, as_number, grows_with_time
from skyloom.io.provenance import file_digest
from skyloom.stacking.memory import Plane, Scratch

_SAMPLES = 100_000  # pixels of an exposure that its sky level is measured on
_SHARE_OF_SAMPLES = 16  # samples take that part of the memory at most
_END = 2**16  # bytes: files whose first and last so many differ are no copies
_BLOCKS = 128  # along an axis: usable pixels are known by blocks of so many to a side, single pixels in small images

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Member:
    """What is known of an exposure without its pixels.

    Parameters
    ----------
    source : object
        An Exposure, a callable that returns one, or whatever `skyloom.read` takes.
    name, unit, shape, dtype, wcs, exptime, zeropoint, gain, correlation
        Those of the exposure.
    level : float
        Median of its usable pixels.
    stride : int
        Every so manieth pixel along x and y is a sample.
    samples : Plane of float, shape (ny / stride, nx / stride)
        Values; NaN where a pixel is not usable.
    step : int
        Side of the blocks of `blocks`, pixels.
    blocks : ndarray of bool
        Whether any pixel of a block is usable.
    """

    source: Any
    name: str
    unit: str
    shape: tuple[int, int]
    dtype: npt.DTypeLike
    wcs: Any
    exptime: float | None
    zeropoint: float | None
    gain: float | None
    correlation: float
    level: float
    stride: int
    samples: Plane
    step: int
    blocks: BoolArray

    @classmethod
    def of(cls, source: Any, scratch: Scratch, *, on_disk: bool) -> Member:
        """Look at one exposure; its samples are kept in memory or on disk."""
        exposure = load(source)
        _check_exptime(exposure)
        usable = exposure.usable
        stride = max(1, int(np.sqrt(exposure.data.size / _SAMPLES)))
        lattice = np.s_[::stride, ::stride]
        values = np.where(usable[lattice], exposure.data[lattice], exposure.data.dtype.type(np.nan))
        samples = scratch.plane(values.shape, values.dtype, on_disk=on_disk)
        samples.write((slice(None), slice(None)), values)
        step = -(-max(exposure.shape) // _BLOCKS)
        return cls(
            source=source,
            name=exposure.name,
            unit=exposure.unit,
            shape=exposure.shape,
            dtype=exposure.data.dtype,
            wcs=exposure.wcs,
            exptime=exposure.exptime,
            zeropoint=exposure.zeropoint,
            gain=exposure.gain,
            correlation=exposure.correlation,
            level=_middle(values),
            stride=stride,
            samples=samples,
            step=step,
            blocks=_any_in_blocks(usable, step),
        )

    def load(self) -> Exposure:
        """Read the pixels (again).

        Raises
        ------
        InputError
            The exposure is not what it was: the file has been changed meanwhile.
        """
        exposure = load(self.source)
        if exposure.shape != self.shape or exposure.data.dtype != self.dtype:
            raise InputError(f"{self.name} was changed while it was being co-added; start again.", name=self.name)
        return exposure


def _middle(values: npt.NDArray[np.floating]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def load(source: Any) -> Exposure:
    """Return the exposure that a source stands for: see `Member`."""
    from skyloom.io import read

    if isinstance(source, Exposure):
        return source
    exposure = source() if callable(source) else read(source)
    if not isinstance(exposure, Exposure):
        raise InputError(
            f"A source of exposures returned a {type(exposure).__name__}; an Exposure is needed.", source=repr(source)
        )
    return exposure


def file_of(source: Any) -> str | os.PathLike[str] | None:
    """Return the file of a path, or of a call of `read` that waits (functools.partial)."""
    first = source.args[0] if isinstance(source, partial) and source.args else source
    return first if isinstance(first, str | os.PathLike) else None


def check_repeats(sources: Sequence[Any]) -> None:
    """Raise if a file, or a copy of it, would count twice: its noise is not independent, and errors come out too small.

    Extensions of one file are different exposures.

    Raises
    ------
    InputError
        Naming both.
    ReadError
        No file can have such a name.
    """
    found = [(path_of(file), source) for source in sources if (file := file_of(source)) is not None]
    groups = [found]
    for key in (_size_and_options, _ends, lambda path, _: file_digest(path)):  # a whole file is read only at last
        apart: dict[Any, list[tuple[Path, Any]]] = defaultdict(list)
        for number, group in enumerate(groups):
            for path, source in group:
                with suppress(OSError):  # reading tells
                    if path.is_file():
                        apart[number, key(path, source)].append((path, source))
        groups = [group for group in apart.values() if len(group) > 1]
    for (first, _), (path, _), *_ in groups:
        what = f"{path} is given twice" if first == path else f"{first} and {path} are the same file, or copies of it"
        raise InputError(f"{what}, and would count twice. Leave one out.", file=str(path))


def _size_and_options(path: Path, source: Any) -> tuple[int, str]:
    how = source.keywords if isinstance(source, partial) else {}
    extension = path_and_extension(file_of(source) or path)[1]
    return path.stat().st_size, repr((extension, sorted(how.items())))


def _ends(path: Path, _: Any) -> tuple[bytes, bytes]:
    """Return digests of the first and of the last bytes."""
    with path.open("rb") as stream:
        first = stream.read(_END)
        stream.seek(max(0, path.stat().st_size - _END))
        return sha256(first).digest(), sha256(stream.read(_END)).digest()


def _any_in_blocks(usable: BoolArray, step: int) -> BoolArray:
    if step == 1:
        return usable
    rows = np.logical_or.reduceat(usable, np.arange(0, usable.shape[0], step), axis=0)
    return np.logical_or.reduceat(rows, np.arange(0, usable.shape[1], step), axis=1)


def as_list(sources: Any) -> list[Any]:
    """Return exposures as a list.

    Raises
    ------
    InputError
        There are none, or this is one image and no list.
    """
    alone = isinstance(sources, str | os.PathLike | Exposure) or getattr(sources, "ndim", 0) == 2  # a cube is a list
    if alone or not isinstance(sources, Iterable):
        raise InputError(f"exposures is a {type(sources).__name__}; a list of exposures or files is needed.")
    from skyloom.io.reader import named

    sources = [named(one, f"exposure {number}") for number, one in enumerate(sources, 1)]
    if not sources:
        raise InputError("There are no exposures to co-add; at least one is needed.")
    return sources


def survey(
    sources: Sequence[Any], scratch: Scratch, *, with_wcs: bool, memory: int | None, progress: Progress
) -> list[Member]:
    """Look at all exposures, and refuse those that cannot be co-added, before any work is done.

    Parameters
    ----------
    sources : sequence
        See `Member`.
    scratch : Scratch
        For the samples of the skies, if there are many.
    with_wcs : bool
        Whether each needs a WCS.
    memory : int or None
        Bytes that the co-add may occupy; None: all that there are.
    progress : callable
        Called as ``progress(what, done, total)``.

    Returns
    -------
    list of Member

    Raises
    ------
    InputError
        There are none, one is there twice, their units differ, or one has an exposure time of 0 or less.
    WcsError
        One has no WCS, or one that is not finite anywhere on the image.
    SkyloomError
        An exposure cannot be read or has no usable pixels: the message names it.
    """
    sources = as_list(sources)
    check_repeats(sources)
    on_disk = memory is not None and 4 * _SAMPLES * len(sources) > memory // _SHARE_OF_SAMPLES
    members = []
    for number, source in enumerate(sources):
        progress("looking at the exposures", number, len(sources))
        try:
            member = Member.of(source, scratch, on_disk=on_disk)
        except SkyloomError as error:
            error.add_note(f"This is exposure {number + 1} of {len(sources)}.")
            raise
        if with_wcs:
            _check_wcs(member)
        members.append(member)
    check_units(members)
    return members


def check_units(members: Sequence[Any]) -> None:
    """Raise if the units of some members (with a name and a unit) differ.

    Raises
    ------
    InputError
        Naming the first one that differs.
    """
    first = members[0]
    for member in members[1:]:
        if not _same_unit(member.unit, first.unit):
            raise InputError(
                f"{member.name} is in {member.unit}, but {first.name} is in {first.unit}; all exposures must have the "
                "same unit. Convert them, or set BUNIT if a header is wrong.",
                name=member.name,
                found=member.unit,
                needed=first.unit,
            )


def _check_exptime(exposure: Exposure) -> None:
    """Raise if a header says that nothing was exposed: flux scales and weights would go wrong without a word."""
    if exposure.exptime is not None:
        return
    found = [(key, as_number(exposure.header, key)) for (key,) in EXPTIME]
    for key, value in found:
        if value is not None and value <= 0:
            raise InputError(
                f"{exposure.name} has an exposure time of {value:g} s ({key}); one above 0 is needed. Give it with "
                "skyloom.read(..., exptime=...), correct the header, or leave the exposure out.",
                name=exposure.name,
                key=key,
                found=value,
            )


def _check_wcs(member: Member) -> None:
    if member.wcs is None:
        raise WcsError(
            f"{member.name} has no WCS. Align by stars (--align stars, align='stars'), give maps=, or leave it out.",
            name=member.name,
            no_wcs=True,
        )
    low = getattr(member.wcs, "low_level_wcs", member.wcs)
    if getattr(low, "pixel_n_dim", 2) != 2:
        return  # `wcs_map` says what is needed
    ny, nx = member.shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, 5), np.linspace(0, ny - 1, 5))
    world = low.pixel_to_world_values(x.ravel(), y.ravel())
    if not np.isfinite(np.asarray(world, np.float64)).all(axis=0).any():
        raise WcsError(
            f"The WCS of {member.name} gives no finite position anywhere on the image; correct it, or leave the "
            "exposure out.",
            name=member.name,
        )


def _same_unit(one: str, other: str) -> bool:
    if one.strip().lower() == other.strip().lower():
        return True
    from astropy import units

    first, second = (units.Unit(text, parse_strict="silent") for text in (one, other))
    return bool(first == second)


def is_surface_brightness(unit: str) -> bool:
    """Return whether a unit is per solid angle, as MJy/sr is."""
    from astropy import units

    parsed = units.Unit(unit, parse_strict="silent")
    if isinstance(parsed, units.UnrecognizedUnit):
        return re.search(r"/\s*(sr|arcsec|deg)|(sr|arcsec2?|arcsec\*\*2)\s*\^?(\*\*)?-[12]", unit) is not None
    base = parsed.decompose()
    return any(one == units.rad and power <= -2 for one, power in zip(base.bases, base.powers, strict=True))


def flux_scales(members: Sequence[Any], how: str | Sequence[float]) -> list[float]:
    """Return the factors that bring all exposures to the flux scale of the first.

    Parameters
    ----------
    members : sequence
        Exposures, or what is known of them: name, unit, zeropoint, exptime.
    how : {'auto', 'zeropoint', 'exptime', 'none'} or sequence of float
        'auto' takes zero points if all have one, else exposure times if all have one and the unit is plain counts, ADU
        or electrons, else nothing. Or the factors themselves.

    Returns
    -------
    list of float

    Raises
    ------
    InputError
        `how` makes no sense, or an exposure lacks what it needs.
    """
    if not isinstance(how, str):
        try:
            factors = [float(factor) for factor in how]
        except (TypeError, ValueError):
            factors = []
        if len(factors) != len(members) or not all(np.isfinite(factor) and factor > 0 for factor in factors):
            raise InputError(
                f"flux_scale is {factors or how}; it must hold a finite number above 0 for each of the {len(members)} "
                "exposures.",
                flux_scale=factors,
            )
        return factors
    if how == "auto":
        if all(member.zeropoint is not None for member in members):
            how = "zeropoint"
        elif all(member.exptime is not None and grows_with_time(member.unit) for member in members):
            how = "exptime"
        else:
            how = "none"
    if how == "none":
        return [1.0] * len(members)
    values = []
    for member in members:
        value = getattr(member, how)
        if value is None:
            raise InputError(
                f"{member.name} has no {how}, but flux_scale is {how!r}. Give it, or a factor for each exposure.",
                name=member.name,
            )
        values.append(10 ** (0.4 * value) if how == "zeropoint" else value)
    return [float(values[0] / value) for value in values]
