"""Tile-compressed images: what must be true before a decoder may touch them.

The decoders that everybody uses are C code that believes the keywords; with wrong ones they write outside of their
buffers. The rules are those of the FITS standard 4.0 (2018), section 10.
"""

from __future__ import annotations

import itertools
import math
import struct
from typing import Any, BinaryIO

from skyloom.errors import ReadError
from skyloom.io.fits_layout import HduLayout
from skyloom.io.keywords import card

ALGORITHMS = {"RICE_1", "RICE_ONE", "GZIP_1", "GZIP_2", "PLIO_1", "HCOMPRESS_1", "NOCOMPRESS"}
PARAMETERS = {
    "BLOCKSIZE": {16, 32},
    "BYTEPIX": {1, 2, 4, 8},
    "SMOOTH": {0, 1},
}
DESCRIPTOR = {"P": ">ii", "Q": ">qq"}
"""Descriptor of a variable-length array: number of elements, and where they begin in the heap."""


def check_tiles(stream: BinaryIO, layout: HduLayout, name: str, most_pixels: int) -> None:
    """Refuse a tile-compressed image whose keywords contradict each other or its data; pass all other HDUs.

    Parameters
    ----------
    stream : binary file
        The file.
    layout : HduLayout
        The HDU.
    name : str
        What messages call the file.
    most_pixels : int
        More pixels than this, in the image or one tile, do not fit into the memory.

    Raises
    ------
    ReadError
        With what is wrong.
    """
    header = layout.header
    if card(header, "ZIMAGE") is not True:
        return

    def refuse(what: str) -> ReadError:
        return ReadError(f"{layout.label} of {name} is compressed, and damaged: {what}.", path=name, hdu=layout.index)

    algorithm = str(card(header, "ZCMPTYPE")).strip()
    if algorithm not in ALGORITHMS:
        raise refuse(f"ZCMPTYPE is {algorithm!r}")
    if card(header, "ZBITPIX") not in (8, 16, 32, 64, -32, -64):
        raise refuse(f"ZBITPIX is {card(header, 'ZBITPIX')!r}")
    naxis = card(header, "ZNAXIS")
    if not _whole(naxis) or not 1 <= naxis <= 9:
        raise refuse(f"ZNAXIS is {naxis!r}")
    axes = [card(header, f"ZNAXIS{i + 1}") for i in range(naxis)]
    tile = [card(header, f"ZTILE{i + 1}") for i in range(naxis)]
    tile = [(axes[i] if i == 0 else 1) if size is None else size for i, size in enumerate(tile)]
    if not all(_whole(size) and size >= 1 for size in (*axes, *tile)):
        raise refuse(f"its axes are {axes} and its tiles {tile}")
    if math.prod(axes) > most_pixels or math.prod(tile) > most_pixels:
        raise refuse(f"its {'x'.join(map(str, axes))} pixels do not fit into the memory")
    needed = math.prod(-(-axis // size) for axis, size in zip(axes, tile, strict=True))
    if card(header, "NAXIS2") != needed:
        raise refuse(f"it should have {needed} tiles and has {card(header, 'NAXIS2')}")
    for number in itertools.count(1):
        parameter = card(header, f"ZNAME{number}")
        if parameter is None:
            break
        value = card(header, f"ZVAL{number}")
        allowed = PARAMETERS.get(str(parameter).strip())
        if allowed is not None and value not in allowed:
            raise refuse(f"{parameter} is {value!r}")
    if algorithm == "HCOMPRESS_1":
        _check_hcompress(stream, layout, axes, tile, refuse)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_hcompress(stream: BinaryIO, layout: HduLayout, axes: list[int], tile: list[int], refuse: Any) -> None:
    """Compare the size that each tile's stream declares (two magic bytes, then nx, ny) with that of the tile.

    The decoder allocates by the keywords and writes by the stream.
    """
    header = layout.header
    row_size, rows = card(header, "NAXIS1"), card(header, "NAXIS2")
    column = _column_of(header, "COMPRESSED_DATA")
    if column is None:
        raise refuse("it has no column COMPRESSED_DATA")
    offset, kind = column
    theap = card(header, "THEAP")
    heap = layout.data_start + (theap if _whole(theap) else row_size * rows)
    for row, size in zip(range(rows), _tile_sizes(axes, tile), strict=True):
        stream.seek(layout.data_start + row * row_size + offset)
        count, start = struct.unpack(DESCRIPTOR[kind], stream.read(struct.calcsize(DESCRIPTOR[kind])))
        if count == 0:
            continue  # the tile is stored in another column
        if count < 10 or start < 0 or heap + start + count > layout.data_start + layout.data_size:
            raise refuse(f"tile {row} lies outside of the heap")
        stream.seek(heap + start)
        magic, *shape = struct.unpack(">2sii", stream.read(10))
        if magic != b"\xdd\x99" or math.prod(shape) != math.prod(size) or sorted(shape) != sorted(size):
            raise refuse(f"tile {row} is no stream of {size[0]}x{size[1]} pixels")


def _tile_sizes(axes: list[int], tile: list[int]) -> Any:
    """Yield the size of every tile, the first axis fastest; those at the end of an axis may be smaller."""
    lengths = [
        [min(size, axis - start) for start in range(0, axis, size)] for axis, size in zip(axes, tile, strict=True)
    ]
    for reversed_size in itertools.product(*reversed(lengths)):
        size = [length for length in reversed(reversed_size) if length > 1]
        yield (*size, 1, 1)[:2] if len(size) < 2 else tuple(size)


def _column_of(header: Any, name: str) -> tuple[int, str] | None:
    """Return the byte offset in a row, and the type (P or Q), of a variable-length column."""
    widths = {"L": 1, "B": 1, "A": 1, "I": 2, "J": 4, "E": 4, "K": 8, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16}
    offset = 0
    for number in range(1, (card(header, "TFIELDS") or 0) + 1):
        form = str(card(header, f"TFORM{number}") or "").strip()
        digits = "".join(itertools.takewhile(str.isdigit, form))
        kind = form[len(digits) : len(digits) + 1]
        if kind not in widths:
            return None
        if str(card(header, f"TTYPE{number}") or "").strip() == name:
            return (offset, kind) if kind in DESCRIPTOR else None
        offset += widths[kind] * int(digits or 1)
    return None
