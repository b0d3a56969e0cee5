"""Where a result comes from: version, inputs with their checksums, and all parameters, as FITS cards."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from skyloom.errors import InputError, ReadError
from skyloom.io.fits_file import path_of

T = TypeVar("T")


class Input(NamedTuple):
    """A file that goes in, as it is now: its name, and the SHA-256 of its bytes (None if it is not a file)."""

    name: str
    digest: str | None

    @classmethod
    def of(cls, source: str | os.PathLike[str] | Input) -> Input:
        """Look at a file; one that was looked at stays as it was."""
        if isinstance(source, Input):
            return source
        try:
            path = path_of(source)
            if path.is_file():  # a pipe would wait
                return cls(Path(source).name, file_digest(path))
        except (OSError, ReadError):
            pass
        return cls(str(source), None)


def read_unchanged(paths: Sequence[str | os.PathLike[str]], read: Callable[[], T]) -> tuple[list[Input], T]:
    """Return what the files are, and what is read from them.

    Raises
    ------
    ReadError
        They were changed meanwhile.
    """
    before = [Input.of(path) for path in paths]
    result = read()
    for path, one in zip(paths, before, strict=True):
        if Input.of(path) != one:
            raise ReadError(f"{path} was changed while it was read; start again.", path=str(path))
    return before, result


@dataclass(frozen=True)
class Provenance:
    """What made a file.

    Parameters
    ----------
    command : str
        Name of the step, e.g. "difference".
    parameters : mapping
        All options, by name. Anything that JSON can hold; other objects are written as their ``repr``.
    inputs : sequence of path, str or Input
        Files that went in. The checksums (SHA-256) of paths are taken from the files when the cards are made.
    version : str
        Version of the software; that of skyloom if not given.
    outputs : sequence of path or str
        Files that were made with this one; their checksums tell whether they still are what was made.
    """

    command: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[str | os.PathLike[str] | Input] = ()
    version: str = ""
    outputs: Sequence[str | os.PathLike[str]] = ()

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
            one = Input.of(source)
            cards.append((f"SLIN{number}", _ascii(one.name), "input"))
            if one.digest is not None:
                cards.append((f"SLSUM{number}", one.digest, ""))
        for number, path in enumerate(self.outputs, 1):
            cards.append((f"SLOUT{number}", file_digest(path), ""))
        for number, (key, value) in enumerate(self.parameters.items(), 1):
            cards.append((f"SLPAR{number}", f"{_ascii(key)}={json.dumps(value, default=_plain)}", "parameter"))
        cards.append(("HISTORY", f"skyloom {version}: {_ascii(self.command)}", ""))
        return cards

    def made(self, header: Mapping[str, Any]) -> bool:
        """Whether a file with this header was made so: by this version, from these bytes, with these options.

        And the outputs are those that were made with it.
        """
        return not self.differs(header)

    def differs(self, header: Mapping[str, Any]) -> str:
        """Return in a few words the first reason why a file with this header was not made so; nothing if it was."""
        for source in self.inputs:
            if (one := Input.of(source)).digest is None:
                return f"{one.name} cannot be read"
        for key, value, _ in self.cards():
            if key not in ("DATE", "HISTORY") and str(header.get(key)) != str(value):
                return self._in_words(key, str(value), str(header.get(key, "")))
        extra = header.get(f"SLPAR{len(self.parameters) + 1}")
        return "" if extra is None else f"{_text(str(extra))} was given"

    def _in_words(self, key: str, now: str, before: str) -> str:
        number = int(key.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ") or 0)
        if key.startswith("SLPAR") and before:
            (name, _, new), (known, _, old) = (text.partition("=") for text in (now, before))
            return f"{name} was {old}, now {new}" if name == known else "it has other options"
        if key.startswith("SLSUM"):
            return f"{Input.of(self.inputs[number - 1]).name} has changed"
        if key.startswith("SLIN"):
            return f"it was made of {_text(before)}, not {_text(now)}" if before else "it had fewer inputs"
        if key.startswith("SLOUT"):
            return f"{Path(self.outputs[number - 1]).name} is not the one that was made with it"
        words = {"CREATOR": f"made by {before or 'another program'}", "SLNIN": f"it had {before or 'no'} inputs"}
        return words.get(key, "it has other options" if before else "its header does not tell how it was made")


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
