"""Where a result comes from: version, inputs with their checksums, and all parameters, as FITS cards."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from skyloom.errors import InputError


@dataclass(frozen=True)
class Provenance:
    """What made a file.

    Parameters
    ----------
    command : str
        Name of the step, e.g. "difference".
    parameters : mapping
        All options, by name. Anything that JSON can hold; other objects are written as their ``repr``.
    inputs : sequence of path or str
        Files that went in. Their checksums (SHA-256) are taken from the files when the cards are made.
    version : str
        Version of the software; that of skyloom if not given.
    """

    command: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[str | os.PathLike[str]] = ()
    version: str = ""

    def cards(self) -> list[tuple[str, Any, str]]:
        """Return (keyword, value, comment) of all cards; long values become CONTINUE cards when they are written."""
        version = self.version or _version()
        cards: list[tuple[str, Any, str]] = [
            ("CREATOR", f"skyloom {version}", "software that wrote this file"),
            ("DATE", dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S"), "UTC of writing"),
            ("SLCMD", _ascii(self.command), "what was done"),
            ("SLNIN", len(self.inputs), "number of inputs"),
        ]
        for number, source in enumerate(self.inputs, 1):
            name, total = _identify(source)
            cards.append((f"SLIN{number}", _ascii(name), "input"))
            if total is not None:
                cards.append((f"SLSUM{number}", total, ""))
        for number, (key, value) in enumerate(self.parameters.items(), 1):
            cards.append((f"SLPAR{number}", f"{_ascii(key)}={json.dumps(value, default=_plain)}", "parameter"))
        cards.append(("HISTORY", f"skyloom {version}: {_ascii(self.command)}", ""))
        return cards

    def made(self, header: Mapping[str, Any]) -> bool:
        """Whether a file with this header was made so: by this version, from these bytes, with these options."""
        cards = [(key, value) for key, value, _ in self.cards() if key not in ("DATE", "HISTORY")]
        more = f"SLPAR{len(self.parameters) + 1}"
        return more not in header and all(str(header.get(key)) == str(value) for key, value in cards)


def read_provenance(header: Mapping[str, Any]) -> Provenance | None:
    """Return the `Provenance` that a header carries, or None.

    The inputs are names, and may be gone; their checksums stand in the SLSUMn cards.
    """
    if "SLCMD" not in header:
        return None
    parameters: dict[str, Any] = {}
    number = 1
    while f"SLPAR{number}" in header:
        key, _, text = str(header[f"SLPAR{number}"]).partition("=")
        try:
            parameters[_text(key)] = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"The parameter card SLPAR{number} is damaged: {text!r}.", card=number) from error
        number += 1
    inputs = tuple(_text(str(header[f"SLIN{n}"])) for n in range(1, int(header.get("SLNIN", 0)) + 1))
    version = str(header.get("CREATOR", "")).removeprefix("skyloom ")
    return Provenance(_text(str(header["SLCMD"])), parameters, inputs, version)


def _identify(source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Return the name of an input and the SHA-256 of its bytes (None if it is not a file)."""
    try:
        return Path(source).name, file_digest(source)
    except OSError:
        return str(source), None


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, which is read once as long as its size, time and inode stay what they are.

    (The sum of a FITS file with CHECKSUM cards, as these sum it up, is always 0.)
    """
    path = Path(path).resolve()
    found = path.stat()
    return _digest(path, found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(4096)
def _digest(path: Path, *_state: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    """Return a JSON form of an object: paths as text, arrays and numpy numbers as lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return repr(value)


def _ascii(text: str) -> str:
    """Return text that a FITS card can hold: other characters become backslash escapes."""
    return text.encode("unicode_escape").decode("ascii")


def _text(escaped: str) -> str:
    """Undo `_ascii`."""
    return escaped.encode("ascii", "replace").decode("unicode_escape")


def _version() -> str:
    from skyloom import __version__

    return __version__
