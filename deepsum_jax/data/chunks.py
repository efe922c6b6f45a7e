"""What a PNG is made of, checked before anything decodes it.

Decoders pass over checksums of pixel data, over images that end early and over what comes behind
them: a damaged file gives other pixels, or black ones. Here every chunk's checksum is checked, the
order of chunks, and that the compressed data hold as many bytes as the header declares, no more
and no fewer. Nothing is allocated by what a file says of itself.

Source: W3C, Portable Network Graphics Specification (Third Edition), sections 5, 7 and 10.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

START = b"\x89PNG\r\n\x1a\n"
MOST_PIXELS = 2**27  # of an image; a Sentinel-2 tile has nine tenths of it
_BLOCK = 2**14  # compressed bytes at a time; they become at most a thousand times as many
_VALUES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by colour type
# Where the seven passes of an interlaced image begin and how they step: rows, then columns.
_PASSES = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2),
           (1, 2, 0, 1))  # fmt: skip


class Header(NamedTuple):
    """What a PNG's first chunk says."""

    width: int
    height: int
    depth: int  # bits a value
    colour: int  # type: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGBA
    compression: int
    filters: int
    interlace: int


def read_header(data: bytes) -> Header:
    """The header of a PNG, unchecked. Raises ValueError where there is none."""
    if not data.startswith(START):
        raise ValueError("a file that is not a PNG")
    if len(data) < 33:  # signature and header chunk
        raise ValueError(f"a PNG cut short after {len(data)} bytes")
    return Header(*struct.unpack(">IIBBBBB", data[16:29]))


def check_png(data: bytes) -> None:
    """Raises ValueError, with what was found, where a PNG's bytes are not whole and consistent."""
    header = read_header(data)
    if not 0 < header.width * header.height <= MOST_PIXELS:
        raise ValueError(
            f"a PNG of {header.height}×{header.width} pixels, where 1 to {MOST_PIXELS} are read"
        )
    if header.colour not in _VALUES or header.interlace > 1:
        raise ValueError(f"a PNG of colour type {header.colour}, interlace {header.interlace}")
    chunks = list(_chunks(data))
    kinds = [kind for kind, _ in chunks]
    if kinds[0] != b"IHDR" or len(chunks[0][1]) != 13 or kinds.count(b"IHDR") > 1:
        raise ValueError("chunks out of order")
    pixels = [n for n, kind in enumerate(kinds) if kind == b"IDAT"]
    if not pixels or len(pixels) != pixels[-1] - pixels[0] + 1:
        raise ValueError("no pixel data" if not pixels else "chunks out of order")
    _check_size(b"".join(chunks[n][1] for n in pixels), _raw_size(header))


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of each chunk, up to IEND, behind which nothing may come."""
    view, place = memoryview(data), len(START)
    while place < len(data):
        if place + 12 > len(data):
            raise ValueError(f"a chunk cut short at byte {place}")
        length = int.from_bytes(view[place : place + 4])
        kind, end = bytes(view[place + 4 : place + 8]), place + 8 + length
        if end + 4 > len(data):
            raise ValueError(f"a chunk cut short at byte {place}")
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise ValueError(f"a chunk whose checksum is wrong at byte {place}")
        yield kind, view[place + 8 : end]
        place = end + 4
        if kind == b"IEND":
            if place < len(data):
                raise ValueError(f"{len(data) - place} bytes behind its end")
            return
    raise ValueError("no end of the file")


def _raw_size(header: Header) -> int:
    """Bytes of the rows of an image, each with that of its filter, before compression."""
    passes = _PASSES if header.interlace else ((0, 1, 0, 1),)
    bits, size = _VALUES[header.colour] * header.depth, 0
    for top, down, left, across in passes:
        rows, columns = -(-(header.height - top) // down), -(-(header.width - left) // across)
        if rows > 0 and columns > 0:
            size += rows * (1 + -(-columns * bits // 8))
    return size


def _check_size(compressed: bytes, expected: int) -> None:
    """Refuses pixel data of another size than declared.

    Block by block, so that a bomb is met before it has gone off.
    """
    inflate, size = zlib.decompressobj(), 0
    try:
        for start in range(0, len(compressed), _BLOCK):
            size += len(inflate.decompress(compressed[start : start + _BLOCK]))
            if size > expected or inflate.eof:
                break
    except zlib.error as error:
        raise ValueError(f"pixel data that are damaged ({error})") from None
    if size != expected or not inflate.eof:
        found = f"more than {expected}" if size > expected else str(size)
        raise ValueError(f"pixel data of {found} bytes, where its header declares {expected}")
    if inflate.unused_data or start + _BLOCK < len(compressed):
        raise ValueError("bytes behind its pixel data")
