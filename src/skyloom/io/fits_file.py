"""One FITS file, opened only after its structure was found whole, that gives checked planes."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError, ReadError, SkyloomWarning
from skyloom.io.fits_layout import HduLayout, decompressed, scan, verify_checksums
from skyloom.io.keywords import as_number, card, hdu_name
from skyloom.io.quiet import quiet_astropy
from skyloom.io.tiles import check_tiles

BYTES_PER_PIXEL = 16
"""Data, variance, mask and one copy: what a pixel needs in memory."""


class FitsFile:
    """A FITS file on disk, or an HDUList in memory.

    Parameters
    ----------
    source : Path or astropy.io.fits.HDUList
        What to read.
    name : str
        What messages call it.
    verify : bool
        Compare with the checksums in the file.

    Raises
    ------
    ReadError
        See `skyloom.io.read`.
    """

    def __init__(self, source: Any, name: str, verify: bool) -> None:
        self.name = name
        self.layouts: list[HduLayout] | None = None
        self.verify = verify
        self._verified: dict[int, bool] = {}
        self._stream: Any = None
        self._size = 0
        if isinstance(source, Path):
            self._open(source)
        else:
            self.hdulist = source

    def _open(self, path: Path) -> None:
        from astropy.io import fits

        file = open_regular(path)
        try:
            self._stream = decompressed(file, self.name, memory_size())
            self.layouts = scan(self._stream, self.name)
            self._size = self._stream.seek(0, os.SEEK_END)
            self._stream.seek(0)
            with quiet_astropy():
                try:
                    self.hdulist = fits.open(self._stream, memmap=False, lazy_load_hdus=False)
                except Exception as error:
                    raise ReadError(f"{self.name} cannot be opened as FITS: {error}.", path=self.name) from error
            if len(self.hdulist) != len(self.layouts):
                raise ReadError(
                    f"{self.name} has {len(self.layouts)} HDUs of which only {len(self.hdulist)} can be read; "
                    "the file is damaged.",
                    path=self.name,
                )
            self._file = file
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> FitsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.layouts is not None:
            with quiet_astropy():
                self.hdulist.close()
            self._file.close()

    def check_extensions(self, complete: bool) -> None:
        """Raise if the file may have lost extensions: it ends within a block, or NEXTEND promises more.

        Cut-outs often keep the number of the file they come from, so that a difference is an error only if the
        convention of the file excludes that (`complete`), or a valid CHECKSUM vouches for the header.
        """
        if not self.verify or self.layouts is None:
            return
        if card(self.layouts[0].header, "EXTEND") is True and self.layouts[-1].end > self._size:
            raise ReadError(
                f"{self.name} ends in the middle of a block of 2880 bytes, behind {self.layouts[-1].label}: what "
                "follows may have been cut off. Fetch it again, or read it with verify=False (--no-verify).",
                path=self.name,
            )
        promised = card(self.layouts[0].header, "NEXTEND")
        found = len(self.layouts) - 1
        if not isinstance(promised, int) or promised <= found:
            return
        message = f"{self.name} promises {promised} extensions (NEXTEND) and has {found}"
        if complete or self._verify_hdu(0):
            raise ReadError(
                f"{message}: the file is cut short. Fetch it again; if it is a cut-out on purpose, read it with "
                "verify=False (--no-verify).",
                path=self.name,
            )
        warnings.warn(f"{message}: it is cut short, or a cut-out of a larger file.", SkyloomWarning, stacklevel=3)

    def check_sums(self, indices: Iterable[int]) -> None:
        """Raise if one of these HDUs does not match its checksums."""
        for index in indices:
            self._verify_hdu(index)

    def plane(self, index: int) -> npt.NDArray[Any]:
        """Return the pixels of an image HDU, shape (ny, nx), scaled to physical values, blank pixels NaN."""
        if self.layouts is not None:
            self._verify_hdu(index)
            check_tiles(self._stream, self.layouts[index], self.name, memory_size() // BYTES_PER_PIXEL)
        hdu = self.hdulist[index]
        label = f"{self.label(index)} of {self.name}"
        shape = image_shape(hdu)
        if shape is None:
            raise ReadError(f"{label} holds {describe(hdu)}; a two-dimensional image is needed.", path=self.name)
        if math.prod(shape) * BYTES_PER_PIXEL > memory_size():
            raise ReadError(
                f"{label} has {shape[1]}x{shape[0]} pixels: too many for the memory of "
                f"{memory_size() / 2**30:.1f} GiB, or the header is damaged.",
                path=self.name,
            )
        try:
            with quiet_astropy():
                data = hdu.data
                if data is None:
                    raise ReadError(f"{label} has no data.", path=self.name)
                return linear_flux(np.asarray(data).reshape(shape), hdu.header)
        except ReadError:
            raise
        except Exception as error:
            raise ReadError(
                f"The pixels of {label} cannot be decoded: {error}. The file is damaged; fetch it again.",
                path=self.name,
            ) from error

    def label(self, index: int) -> str:
        """Return what messages call an HDU."""
        name = hdu_name(self.hdulist[index])
        return f"HDU {index} ({name})" if name else f"HDU {index}"

    def _verify_hdu(self, index: int) -> bool:
        if not self.verify or self.layouts is None:
            return False
        if index not in self._verified:
            self._verified[index] = verify_checksums(self._stream, self.layouts[index], self.name)
        return self._verified[index]


def path_of(name: str | os.PathLike[str]) -> Path:
    """Return the path of a file that is to be read, with the home folder of a user in the place of ``~``.

    An extension in brackets behind it, see `path_and_extension`, is left out.
    """
    return path_and_extension(name)[0]


def path_and_extension(name: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Return the path of a file, and the extension that stands in brackets behind it, as in ``image.fits[SCI,2]``.

    A file whose own name ends like that is taken as it is.

    Raises
    ------
    ReadError
        No file can have such a name.
    InputError
        The brackets hold a part of an image.
    """
    path = _existing(name)
    text = os.fspath(path)
    front, bracket, inside = text.removesuffix("]").partition("[")
    if path.exists() or not bracket or not text.endswith("]") or not (file := _existing(front)).exists():
        return path, None
    if not re.fullmatch(r"\s*\d+\s*|[^\[\]:*]*[^\[\]:*\d,\s][^\[\]:*]*", inside):
        raise InputError(
            f"[{inside}] behind {file.name} is no number or name of an extension. Parts of images cannot be chosen: "
            "cut them out before.",
            path=text,
        )
    return file, inside.strip()


def _existing(name: str | os.PathLike[str]) -> Path:
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # too long, or of an unknown user
        reason = getattr(error, "strerror", None) or error
        raise ReadError(f"{str(name)!r} cannot be the name of a file: {reason}.", path=str(name)) from error
    return path


def open_regular(path: Path) -> Any:
    """Open an existing regular file for reading, or say why that cannot be done."""
    if path.is_dir():
        raise ReadError(f"{path} is a folder; give the name of a FITS file.", path=str(path))
    if not path.exists():
        raise ReadError(f"There is no file {path}.", path=str(path))
    if not path.is_file():
        raise ReadError(f"{path} is not a regular file.", path=str(path))
    try:
        return path.open("rb")
    except OSError as error:
        raise ReadError(f"{path} cannot be opened: {error.strerror}.", path=str(path)) from error


def linear_flux(values: npt.NDArray[Any], header: Any) -> npt.NDArray[Any]:
    """Return fluxes of the asinh magnitudes that Pan-STARRS stores; of other images the values as they are.

    With a = 2.5 / ln(10), flux = BOFFSET + 2 BSOFTEN sinh(value / a) (Waters et al. 2020).
    """
    softening, offset = as_number(header, "BSOFTEN"), as_number(header, "BOFFSET")
    if softening is None or offset is None:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        flux = offset + 2 * softening * np.sinh(np.asarray(values, np.float64) * (math.log(10) / 2.5))
        return flux.astype(np.float32)


def memory_size() -> int:
    """Return the bytes of physical memory (2^46 where the system does not tell)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**46


def image_shape(hdu: Any) -> tuple[int, int] | None:
    """Return (ny, nx) of a two-dimensional image HDU (degenerate axes are dropped), else None."""
    if not is_image(hdu):
        return None
    shape = tuple(hdu.shape)
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape if len(shape) == 2 and 0 not in shape else None


def is_image(hdu: Any) -> bool:
    """Whether an HDU holds an image (of any number of axes), plain or compressed, with a size that can be read."""
    try:
        return bool(hdu.is_image) and all(isinstance(n, int | np.integer) and n >= 0 for n in hdu.shape)
    except Exception:  # noqa: BLE001  # tables have no is_image; cards that cannot be parsed raise this and that
        return False


def describe(hdu: Any) -> str:
    """Say in words what an HDU holds."""
    if not is_image(hdu):
        return "a table"
    shape = tuple(hdu.shape)
    if len(shape) < 1 or 0 in shape:
        return "no data"
    axes = "x".join(str(n) for n in reversed(shape))
    if len(shape) > 2:
        return f"a cube of {axes} pixels (pass one plane of it as an array)"
    return f"an array of {axes} pixels"
