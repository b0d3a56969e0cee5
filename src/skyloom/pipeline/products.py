"""The set of files that a difference leaves behind: all of them, or none."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyloom.errors import InputError, WriteError

if TYPE_CHECKING:
    from skyloom.io.provenance import Input
    from skyloom.pipeline.difference import Difference

logger = logging.getLogger("skyloom.pipeline")


@dataclass(frozen=True)
class Products:
    """Paths of the products of one difference; None where one is not wanted."""

    table: Path
    fits_table: Path
    regions: Path
    difference: Path | None
    report: Path | None
    unwanted: Path | None = None
    """A report that an earlier run may have left, which would not be that of the difference."""

    @classmethod
    def in_folder(cls, folder: str | Path, stem: str, *, difference: bool = True, report: bool = True) -> Products:
        """Name the products of the science image `stem` in `folder`."""
        base = Path(folder)
        return cls(
            difference=base / f"{stem}.difference.fits" if difference else None,
            table=base / f"{stem}.candidates.ecsv",
            fits_table=base / f"{stem}.candidates.fits",
            regions=base / f"{stem}.candidates.reg",
            report=base / f"{stem}.report.html" if report else None,
            unwanted=base / f"{stem}.report.html" if difference and not report else None,
        )

    def written(self) -> list[tuple[str, Path]]:
        """Return what is written: a word and the path of each product."""
        named = [
            ("difference", self.difference),
            ("candidates", self.table),
            ("with cutouts", self.fits_table),
            ("DS9 regions", self.regions),
            ("report", self.report),
        ]
        return [(what, path) for what, path in named if path is not None]

    def beside(self) -> list[Path]:
        """Return the paths of what is made of the difference; the report is the last, so that it may be absent."""
        return [path for _, path in self.written() if path != self.difference]

    def check(self, *, overwrite: bool = False) -> None:
        """Raise `WriteError` now rather than after the work, when a product could not be written."""
        from skyloom.io import check_writable

        if exists_or_can_be_made(self.table.parent):
            for _, path in self.written():
                check_writable(path, overwrite=overwrite)


def exists_or_can_be_made(folder: Path) -> bool:
    """Return whether a folder for results exists; it is made when the first of them is written.

    Raises
    ------
    WriteError
        It cannot be made.
    """
    if folder.is_dir():
        return True
    ancestor = next(path for path in folder.absolute().parents if path.exists())
    if folder.exists() or not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
        raise WriteError(
            f"The output folder {folder} cannot be made, because {folder if folder.exists() else ancestor} is "
            "not a folder that may be written to. Choose another one.",
            path=str(folder),
        )
    return False


_SCRATCH = f".skyloom-{''.join(one if one.isalnum() else '_' for one in platform.node())}-"
"""What names of folders with unfinished files begin with; then follow the process and random letters."""
_STALE = 3600.0
"""Seconds without a change, after which such a folder of a process that no longer lives is removed: the numbers of
processes may mean others, in a container with the name of this machine."""


def remove_stale(folder: Path) -> None:
    """Remove what processes of this machine that were killed have left of unfinished products."""
    for path in folder.glob(f"{_SCRATCH}*") if folder.is_dir() else ():
        process = path.name.removeprefix(_SCRATCH).split("-")[0]
        with suppress(OSError):  # somebody else has done it
            if process.isdecimal() and not _lives(int(process)) and time.time() - path.stat().st_mtime > _STALE:
                shutil.rmtree(path)
                logger.info("removed %s, which process %s had left unfinished", path, process)


def _lives(process: int) -> bool:
    if os.name != "posix":  # where this call would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


def write_products(
    result: Difference,
    products: Products,
    inputs: Sequence[str | Path | Input],
    *,
    threshold: float,
    overwrite: bool = False,
) -> Any:
    """Find the candidates and write all products; return the candidate table."""
    from skyloom.pipeline.find import detect

    products.check(overwrite=overwrite)
    candidates = detect(result, threshold=threshold)
    write_found(result, candidates, products, inputs, overwrite=overwrite)
    return candidates


def write_found(
    result: Difference,
    candidates: Any,
    products: Products,
    inputs: Sequence[str | Path | Input] = (),
    *,
    overwrite: bool = False,
) -> None:
    """Write the products of a difference whose candidates are known.

    Every file is first written to a temporary folder beside its place. Only when all are complete are they moved, the
    difference last, which tells how they were made, and by their checksums which they are. One that is replaced is
    removed first, so that no other files ever lie beside it, not even when the process is killed.
    """
    from skyloom.detection import write_ecsv, write_fits, write_regions
    from skyloom.io import atomic_write

    folder = products.table.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f"{_SCRATCH}{os.getpid()}-", dir=folder)
    except OSError as error:
        raise WriteError(f"The output folder {folder} cannot be written to: {error.strerror or error}.") from error
    with scratch:
        staged = {path: Path(scratch.name) / path.name for _, path in products.written()}
        write_ecsv(candidates, staged[products.table])
        write_fits(candidates, staged[products.fits_table], result)
        write_regions(candidates, staged[products.regions], wcs=result.wcs)
        if products.report is not None:
            from skyloom.report import write_report

            write_report(result, candidates, staged[products.report])
        if products.difference is not None:
            from skyloom.pipeline.store import write_difference

            beside = [staged[path] for path in products.beside()]
            write_difference(result, staged[products.difference], inputs=inputs, outputs=beside)
        with _uninterrupted():
            if overwrite:
                for path in (products.difference, products.unwanted):
                    if path is not None:
                        path.resolve().unlink(missing_ok=True)  # a link stays one
            for path, complete in reversed(staged.items()):
                with atomic_write(path, overwrite=overwrite) as temporary:
                    complete.replace(temporary)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put off signals that would end the process until the block has ended."""
    if threading.current_thread() is not threading.main_thread():  # signals do not interrupt it
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP"))
        if number is not None and signal.getsignal(number) is not None
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in came[:1]:
        signal.raise_signal(number)


def image_stem(path: str | Path) -> str:
    """Return the file name without the endings of (compressed) FITS files; ``a.fits[SCI,2]`` gives ``a_SCI_2``."""
    from skyloom.io.fits_file import path_and_extension

    file, extension = path_and_extension(path)
    if extension is not None:
        return "_".join([image_stem(file), *re.findall(r"\w+", extension)])
    name = Path(path).name
    for ending in (".gz", ".fz", ".bz2"):
        name = name.removesuffix(ending)
    for ending in (".fits", ".fit", ".fts"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def different_stems(paths: Sequence[str | Path]) -> list[str]:
    """Return the names of images from which those of their results are made.

    Raises
    ------
    InputError
        An image is given twice, or two have the same name.
    """
    stems: dict[str, str | Path] = {}
    for path in paths:
        stem = image_stem(path)
        if stem in stems:
            places = {os.path.realpath(os.path.expanduser(one)) for one in (path, stems[stem])}  # noqa: PTH111
            raise InputError(
                f"{path} is given twice; leave one out."
                if len(places) == 1
                else f"{stems[stem]} and {path} have the same name, and their results would be written to the same "
                "files. Rename one, or give each a folder of its own.",
                name=stem,
            )
        stems[stem] = path
    return list(stems)
