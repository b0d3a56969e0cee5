"""Write FITS files whose images are larger than the memory: row by row, with checksums, atomic.

The bytes are those that astropy would write; the checksums follow appendix J of the FITS standard 4.0.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from skyloom.errors import InputError
from skyloom.io.atomic import atomic_write
from skyloom.io.quiet import quiet_astropy

BLOCK = 2880
_ROWS = 256
_BITPIX = {"u1": 8, "i2": 16, "i4": 32, "i8": 64, "f4": -32, "f8": -64, "u4": 32}


@dataclass(frozen=True, eq=False)
class StreamedImage:
    """An image extension whose rows are asked for when they are written.

    Parameters
    ----------
    name : str
        EXTNAME.
    shape : tuple of int
        Shape, (ny, nx) or (planes, ny, nx).
    dtype : numpy dtype
        Type of the values; uint32 is stored with BZERO = 2^31.
    rows : callable
        ``rows(plane, start, stop)`` returns rows of a plane (0 for a single one), shape (stop - start, nx).
    cards : astropy.io.fits.Header
        More cards.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: Callable[[int, int, int], npt.NDArray[Any]]
    cards: Any


def write_streamed(
    primary: Any,
    images: Sequence[StreamedImage],
    more: Sequence[Any],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Write a primary HDU without data, images, and further small HDUs.

    Parameters
    ----------
    primary : astropy.io.fits.PrimaryHDU
        Without data.
    images : sequence of StreamedImage
        In the order of the file.
    more : sequence of HDU
        Extensions behind them.
    path : path-like
        File to write, not compressed.
    overwrite : bool
        Replace an existing file.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    WriteError
        See `atomic_write`.
    InputError
        The file's name asks for compression.
    """
    if Path(path).suffix.lower() in (".gz", ".fz", ".bz2", ".xz"):
        raise InputError(
            f"{path} cannot be compressed while it is written in pieces; choose a name that ends in .fits."
        )
    with atomic_write(path, overwrite=overwrite) as temporary, quiet_astropy(), temporary.open("wb") as file:
        file.write(_bytes_of([primary]))
        for image in images:
            _write_image(file, image)
        if more:
            file.write(_bytes_of(more))
    return Path(path)


def _bytes_of(hdus: Sequence[Any]) -> bytes:
    """Return the bytes of small HDUs, as they stand in a file."""
    from astropy.io import fits

    buffer = io.BytesIO()
    alone = isinstance(hdus[0], fits.PrimaryHDU)
    whole = fits.HDUList(list(hdus) if alone else [fits.PrimaryHDU(), *hdus])
    whole.writeto(buffer, checksum=True, output_verify="silentfix+exception")
    return buffer.getvalue() if alone else buffer.getvalue()[BLOCK:]


def _write_image(file: BinaryIO, image: StreamedImage) -> None:
    header = _header(image)
    start = file.tell()
    file.write(_padded(header).encode("ascii"))  # of the right length, to be written again with the checksums
    total, size = 0, 0
    planes = image.shape[0] if len(image.shape) == 3 else 1
    for plane in range(planes):
        for row in range(0, image.shape[-2], _ROWS):
            values = _stored(image.rows(plane, row, min(row + _ROWS, image.shape[-2])), image.dtype)
            data = values.tobytes()
            total = _add(total, data, size)
            size += len(data)
            file.write(data)
    file.write(b"\0" * (-size % BLOCK))
    end = file.tell()
    header["DATASUM"] = str(total)
    header["CHECKSUM"] = "0" * 16
    header["CHECKSUM"] = encode_checksum(_add(total, _padded(header).encode("ascii"), 0))
    file.seek(start)
    file.write(_padded(header).encode("ascii"))
    file.seek(end)


def _header(image: StreamedImage) -> Any:
    from astropy.io import fits

    header = fits.Header()
    header["XTENSION"] = ("IMAGE", "Image extension")
    header["BITPIX"] = (_BITPIX[image.dtype.newbyteorder("=").str[1:]], "array data type")
    header["NAXIS"] = (len(image.shape), "number of array dimensions")
    for axis, n in enumerate(reversed(image.shape), 1):
        header[f"NAXIS{axis}"] = int(n)
    header["PCOUNT"] = (0, "number of parameters")
    header["GCOUNT"] = (1, "number of groups")
    if image.dtype == np.uint32:
        header["BSCALE"], header["BZERO"] = 1, 2**31
    header["EXTNAME"] = (image.name, "extension name")
    header.extend(image.cards, update=True)
    header["CHECKSUM"] = ("0" * 16, "HDU checksum")
    header["DATASUM"] = ("0" * 10, "data unit checksum")
    return header


def _padded(header: Any) -> str:
    text: str = header.tostring(sep="", endcard=True, padding=True)
    return text


def _stored(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return values as FITS stores them: big-endian, unsigned ones moved by 2^31."""
    if dtype == np.uint32:
        return (np.asarray(values, np.uint32) ^ np.uint32(2**31)).astype(">u4")
    return np.ascontiguousarray(values, dtype.newbyteorder(">"))


def _add(total: int, data: bytes, offset: int) -> int:
    """Return the ones' complement sum of 32-bit words of `total` and data that begin `offset` bytes into the unit."""
    lead, tail = offset % 4, -(offset + len(data)) % 4
    words = np.frombuffer(b"\0" * lead + data + b"\0" * tail, ">u4")
    total += int(words.sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def encode_checksum(total: int) -> str:
    """Return the 16 characters that make the sum of an HDU -0 (FITS standard 4.0, section J.2)."""
    rest = 0xFFFFFFFF - total
    characters = np.zeros((4, 4), int)  # character, byte
    for byte in range(4):
        value = (rest >> (24 - 8 * byte)) & 0xFF
        parts = [value // 4 + 48] * 4
        parts[0] += value % 4
        while any(58 <= part <= 64 or 91 <= part <= 96 for part in parts):  # letters and digits only
            for pair in (0, 2):
                if any(58 <= part <= 64 or 91 <= part <= 96 for part in parts[pair : pair + 2]):
                    parts[pair], parts[pair + 1] = parts[pair] + 1, parts[pair + 1] - 1
        characters[:, byte] = parts
    text = "".join(chr(c) for c in characters.ravel())
    return text[-1] + text[:-1]  # the value of the card begins at byte 12: rotated by one
