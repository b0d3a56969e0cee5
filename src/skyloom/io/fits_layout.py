"""The block structure of a FITS file, checked before anybody believes what its headers say.

A FITS file is a chain of header-data units (HDUs) in blocks of 2880 bytes (Pence et al. 2010, section 3). Readers that
walk the chain lazily do not notice when its end is missing: this module walks all of it, without reading any data, and
says what is wrong in one sentence.
"""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from skyloom.errors import ReadError
from skyloom.io.keywords import card
from skyloom.io.quiet import quiet_astropy

BLOCK = 2880
CARD = 80
_OTHERS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"II*\0": "a TIFF (or raw camera) picture",
    b"MM\0*": "a TIFF (or raw camera) picture",
    b"XISF": "an XISF image of PixInsight",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "an array of NumPy",
    b"#ASDF": "an ASDF file whose name does not end with .asdf",
    b"\x1f\x9d": "compressed by compress (.Z)",
    b"PK\3\4": "a zip archive",
    b"(\xb5/\xfd": "compressed by zstd",
    b"<": "a page of text, as servers send when something is wrong",
}
"""What other files begin with."""
MAX_HEADER_BLOCKS = 20_000
"""Longest header that is believed: 720 000 cards."""


@dataclass(frozen=True)
class HduLayout:
    """Where one HDU lies in its file, and its header (an ``astropy.io.fits.Header``)."""

    index: int
    header: Any
    start: int
    data_start: int
    data_size: int
    """Bytes of data, without the padding to a whole block."""

    @property
    def end(self) -> int:
        """First byte behind the HDU."""
        return self.data_start + padded(self.data_size)

    @property
    def label(self) -> str:
        """What messages call it."""
        name = str(card(self.header, "EXTNAME") or "").strip()
        return f"HDU {self.index} ({name})" if name else f"HDU {self.index}"


def padded(size: int) -> int:
    """Return `size` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def scan(stream: BinaryIO, name: str) -> list[HduLayout]:
    """Walk all HDUs of a FITS file.

    Parameters
    ----------
    stream : binary file, seekable
        The (uncompressed) file.
    name : str
        What messages call it.

    Returns
    -------
    list of HduLayout
        In the order of the file.

    Raises
    ------
    ReadError
        The file is empty, not FITS, cut short at any place, or one of its headers contradicts itself.
    """
    size = stream.seek(0, os.SEEK_END)
    if size == 0:
        raise ReadError(f"{name} is empty (0 bytes); a FITS image is needed.", path=name)
    layouts: list[HduLayout] = []
    position = 0
    while position < size:
        stream.seek(position)
        head = stream.read(CARD)
        if not layouts and head[:9] not in (b"SIMPLE  =", b"SIMPLE  ="[: len(head)]):
            kind = next((f", but {what}" for magic, what in _OTHERS.items() if head.startswith(magic)), "")
            raise ReadError(
                f"{name} is not a FITS file{kind}: it begins with {head[:9]!r} instead of 'SIMPLE  ='. Convert it to "
                "FITS first.",
                path=name,
            )
        if layouts and head[:8] != b"XTENSION":
            _refuse_trailing_bytes(stream, position, size, name, layouts)
            break
        layouts.append(_scan_hdu(stream, position, size, name, len(layouts)))
        position = layouts[-1].end
    return layouts


def _scan_hdu(stream: BinaryIO, start: int, size: int, name: str, index: int) -> HduLayout:
    """Read the header that begins at `start` and find where its data lie."""
    stream.seek(start)
    blocks: list[bytes] = []
    while not blocks or not _has_end(blocks[-1]):
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise ReadError(
                f"{name} is cut short inside the header of HDU {index}: there is no END card before the file ends "
                f"at byte {size}. Fetch the file again.",
                path=name,
                hdu=index,
            )
        blocks.append(block)
        if len(blocks) > MAX_HEADER_BLOCKS:
            raise ReadError(f"The header of HDU {index} of {name} has no END card; the file is damaged.", path=name)
    header = _parse(b"".join(blocks), name, index)
    data_start = start + BLOCK * len(blocks)
    data_size = _data_size(header, name, index)
    if data_start + data_size > size:
        raise ReadError(
            f"{name} is cut short (or its header is damaged): HDU {index} promises {data_size} bytes of data, "
            f"{size - data_start} are there. Fetch the file again.",
            path=name,
            hdu=index,
            promised=data_size,
            found=size - data_start,
        )
    return HduLayout(index, header, start, data_start, data_size)


def _has_end(block: bytes) -> bool:
    return any(block[i : i + 8] == b"END     " for i in range(0, BLOCK, CARD))


def _parse(raw: bytes, name: str, index: int) -> Any:
    """Return the header as an ``astropy.io.fits.Header``."""
    from astropy.io.fits import Header

    end = next(at for at in range(0, len(raw), CARD) if raw[at : at + 8] == b"END     ")
    for at in range(0, end, CARD):
        if not all(32 <= byte < 127 for byte in raw[at : at + 8]):
            raise ReadError(
                f"Card {at // CARD + 1} of the header of HDU {index} of {name} begins with {raw[at : at + 8]!r}, which "
                "is no keyword; the file is damaged. Fetch it again.",
                path=name,
                hdu=index,
            )
    if not all(32 <= byte < 127 for byte in set(raw)):
        # seen in the wild in comments (degree signs, accents); what they stand in is not believed
        raw = bytes(byte if 32 <= byte < 127 else 63 for byte in raw)
    try:
        with quiet_astropy():
            return Header.fromstring(raw.decode("ascii"))
    except Exception as error:
        raise ReadError(f"The header of HDU {index} of {name} cannot be parsed: {error}.", path=name) from error


def _data_size(header: Any, name: str, index: int) -> int:
    """Return the bytes of data that the mandatory keywords promise (Pence et al. 2010, eq. 2)."""
    bitpix = _integer(header, "BITPIX", name, index, choices=(8, 16, 32, 64, -32, -64))
    naxis = _integer(header, "NAXIS", name, index, choices=range(1000))
    axes = [_integer(header, f"NAXIS{i + 1}", name, index) for i in range(naxis)]
    if not axes:
        return 0
    if card(header, "GROUPS") is True and axes[0] == 0:
        raise ReadError(f"HDU {index} of {name} holds random groups; an image is needed.", path=name)
    if str(card(header, "XTENSION") or "").strip() in {"BINTABLE", "TABLE"}:
        _integer(header, "TFIELDS", name, index, choices=range(1000))
    pcount = _integer(header, "PCOUNT", name, index, default=0)
    gcount = _integer(header, "GCOUNT", name, index, default=1)
    return abs(bitpix) // 8 * gcount * (pcount + math.prod(axes))


def _integer(header: Any, key: str, name: str, index: int, *, default: int | None = None, choices: Any = None) -> int:
    """Return a mandatory keyword's value: a whole number, not negative unless among `choices`."""
    try:
        value = header.get(key, default)
    except Exception as error:
        raise ReadError(f"{key} of HDU {index} of {name} cannot be parsed: {error}.", path=name) from error
    good = isinstance(value, int) and not isinstance(value, bool)
    if not good or (value not in choices if choices is not None else value < 0):
        needed = (
            "a whole number of at least 0" if choices is None or isinstance(choices, range) else f"one of {choices}"
        )
        raise ReadError(
            f"{key} of HDU {index} of {name} is {value!r}; it must be {needed}. The header is damaged.",
            path=name,
            keyword=key,
        )
    return int(value)


def _refuse_trailing_bytes(stream: BinaryIO, position: int, size: int, name: str, layouts: list[HduLayout]) -> None:
    """Raise if what follows the last HDU is more than padding: a damaged extension, or one HDU with a wrong NAXIS."""
    stream.seek(position)
    while chunk := stream.read(1 << 20):
        if chunk.strip(b"\0 "):
            raise ReadError(
                f"{name} has {size - position} bytes behind {layouts[-1].label} that are no FITS extension: the file "
                "is damaged (an extension's header, or the size of the last one).",
                path=name,
            )


def checksum(stream: BinaryIO, start: int, end: int) -> int:
    """Return the 32-bit one's-complement sum of the bytes from `start` to `end` (Pence et al. 2010, appendix J)."""
    stream.seek(start)
    total = 0
    left = end - start
    while left > 0:
        chunk = stream.read(min(left, 1 << 22))
        if not chunk:
            break  # the padding of the last block is missing: it would add zeros
        left -= len(chunk)
        chunk += b"\0" * (-len(chunk) % 4)
        total += int(np.frombuffer(chunk, ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def verify_checksums(stream: BinaryIO, layout: HduLayout, name: str) -> bool:
    """Compare an HDU with its DATASUM and CHECKSUM cards.

    Returns
    -------
    bool
        True if the HDU has a CHECKSUM, and it is right; False if it has none.

    Raises
    ------
    ReadError
        One of the two is there and wrong.
    """
    hint = (
        "If a program copied the header to other data, or edited it, without renewing the checksum, then read it with "
        "verify=False (--no-verify); otherwise fetch the file again."
    )
    datasum = str(card(layout.header, "DATASUM") or "").strip()
    if datasum:
        found = checksum(stream, layout.data_start, layout.end)
        if not datasum.isdigit() or int(datasum) != found:
            raise ReadError(
                f"The data of {layout.label} of {name} have the checksum {found}, but DATASUM says {datasum}. {hint}",
                path=name,
                hdu=layout.index,
            )
    if not str(card(layout.header, "CHECKSUM") or "").strip():
        return False
    # The CHECKSUM card is chosen such that the sum over the whole HDU is -0 (all bits set)
    if checksum(stream, layout.start, layout.end) not in (0, 0xFFFFFFFF):
        raise ReadError(f"{layout.label} of {name} does not match its CHECKSUM. {hint}", path=name, hdu=layout.index)
    return True


def decompressed(stream: BinaryIO, name: str, memory_limit: int) -> BinaryIO:
    """Return the stream itself or, if it is compressed as a whole (gzip, bzip2, xz), what is inside.

    Raises
    ------
    ReadError
        The compressed stream is damaged or cut short, or its content does not fit into `memory_limit` bytes.
    """
    stream.seek(0)
    opener = _decompressor(stream.read(6))
    stream.seek(0)
    if opener is None:
        return stream
    content = io.BytesIO()
    try:
        with opener(stream) as reader:
            while chunk := reader.read(1 << 22):
                if content.tell() + len(chunk) > memory_limit:
                    raise ReadError(
                        f"{name} grows beyond {memory_limit / 2**30:.1f} GiB when it is decompressed; that does not "
                        "fit into the memory.",
                        path=name,
                    )
                content.write(chunk)
    except ReadError:
        raise
    except Exception as error:  # EOFError, BadGzipFile, zlib.error, LZMAError, OSError
        raise ReadError(
            f"{name} is compressed, and damaged or cut short: {error}. Fetch the file again.", path=name
        ) from error
    content.seek(0)
    return content


def _decompressor(magic: bytes) -> Any:
    """Return what opens a stream that begins with `magic`, None if it is not compressed."""
    if magic[:2] == b"\x1f\x8b":
        import gzip

        return gzip.open
    if magic[:3] == b"BZh":
        import bz2

        return bz2.open
    if magic == b"\xfd7zXZ\0":
        import lzma

        return lzma.open
    return None
