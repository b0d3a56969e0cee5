"""Files that are either complete or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from skyloom.errors import ReadError, SkyloomError, WriteError
from skyloom.io.fits_file import path_of


def check_not_input(
    outputs: Iterable[str | os.PathLike[str] | None], inputs: Iterable[str | os.PathLike[str] | None]
) -> None:
    """Raise `WriteError` if an output would replace an input, which is never changed."""

    def place(path: str | os.PathLike[str]) -> str:
        return os.path.realpath(os.path.expanduser(path))  # noqa: PTH111  # raises nothing for an unknown user

    known = set()
    for path in inputs:
        if path is not None:
            known.add(place(path))
            with suppress(ReadError):  # of a name that no file has, reading tells
                known.add(place(path_of(path)))
    for path in outputs:
        if path is not None and place(path) in known:
            raise WriteError(f"{path} is an input and would be replaced; choose another output.", path=str(path))


def check_writable(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Raise now, before any work, if `path` could not be written later.

    Parameters
    ----------
    path : path-like
        File that will be written.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file that will be written: `path` with symbolic links followed.

    Raises
    ------
    WriteError
        The file exists and `overwrite` is False, it is a folder or a device, its folder is missing or may not be
        written, or no file can have such a name.
    """
    try:
        target = Path(os.path.realpath(Path(path).expanduser()))
        looped = target.is_symlink()
    except (OSError, RuntimeError, ValueError) as error:  # too long, of an unknown user, with a null byte
        reason = getattr(error, "strerror", None) or error
        raise WriteError(f"{str(path)!r} cannot be the name of a file: {reason}.", path=str(path)) from error
    if looped:
        raise WriteError(f"{path} is a symbolic link that leads back to itself; remove it.", path=str(path))
    if target.is_dir():
        raise WriteError(f"{path} is a folder; give the name of a file.", path=str(path))
    if target.exists() and not target.is_file():
        raise WriteError(f"{path} is a device or a pipe, not a regular file; give the name of a file.", path=str(path))
    if target.exists() and not overwrite:
        raise WriteError(
            f"{path} exists already; choose another name or pass overwrite=True (--overwrite).", path=str(path)
        )
    if not target.parent.is_dir():
        raise WriteError(f"The folder {target.parent} does not exist; create it first.", path=str(path))
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise WriteError(
            f"The folder {target.parent} may not be written; choose another or change its permissions.", path=str(path)
        )
    return target


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; give it the name `path` if the block succeeds.

    The bytes are on the disk (``fsync``) before the name appears, so that `path` is at any moment absent, the complete
    old file or the complete new file, even if the process is killed. If the block fails the temporary file is removed.

    Parameters
    ----------
    path : path-like
        File to write.
    overwrite : bool
        Replace `path` if it exists. If not, `path` is never replaced, not even if it appeared during the block.

    Yields
    ------
    Path
        File to write to, with the same suffixes as `path`. It does not exist yet.

    Raises
    ------
    WriteError
        See `check_writable`; or the disk is full, or the block wrote nothing.
    """
    target = check_writable(path, overwrite)
    # the head of a long name is dropped, the suffixes that writers look at are kept
    temporary = target.parent / f".{os.getpid()}-{secrets.token_hex(4)}-{target.name[-200:]}"
    try:
        yield temporary
        if not temporary.is_file():
            raise WriteError(f"Nothing was written for {path}.", path=str(path))
        _sync(temporary)
        _rename(temporary, target, path, overwrite)
        with suppress(OSError):  # some network file systems cannot
            _sync(target.parent)
    except SkyloomError:
        raise
    except OSError as error:
        full = error.errno == errno.ENOSPC or "Not enough space" in str(error)  # the latter are the words of astropy
        reason = "there is no space left on the disk" if full else error.strerror or str(error)
        raise WriteError(f"{path} cannot be written: {reason}.", path=str(path), errno=error.errno) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def no_empty_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Remove the folder, and those above it, that are empty when the block ends and did not exist before it."""
    path = Path(folder).expanduser()
    new = [one for one in (path, *path.parents) if not one.exists()]
    try:
        yield
    finally:
        with suppress(OSError):  # not made, or not empty
            for one in new:
                one.rmdir()


def _rename(temporary: Path, target: Path, path: str | os.PathLike[str], overwrite: bool) -> None:
    """Give the temporary file its name; without `overwrite` in one step that fails if the name is taken."""
    if not overwrite:
        try:
            os.link(temporary, target)
        except FileExistsError as error:
            raise WriteError(
                f"{path} was created by somebody else in the meantime; it is left alone.", path=str(path)
            ) from error
        except OSError:
            pass  # a file system without hard links
        else:
            return
    temporary.replace(target)


def _sync(path: Path) -> None:
    """Bring a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
