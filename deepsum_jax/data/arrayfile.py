"""Arrays from `.npy` and `.npz` files that others made.

A file is believed only as far as it goes: an array's header must declare exactly the bytes that
follow it, and an entry of a zip may not become out of all proportion larger than it is, before
anything is allocated. Nothing is unpickled, and every checksum that there is, is checked.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from deepsum_jax.reading import check_file

_LARGEST = 2**34  # bytes of an array, 16 GiB: a year of a Sentinel-2 tile's band as float32
_ENTRIES = 1000  # of a zip
# An entry larger than this many bytes may be so many times its compressed size at most; measured
# values compress twice or thrice, masks a thousand times, but they are small.
_UNSUSPICIOUS, _EXPANSION = 2**30, 100
_HEADER = 10_000  # bytes
_BLOCK = 2**24  # bytes that are read at a time
_VERSIONS = {
    b"\x01\x00": (np.lib.format.read_array_header_1_0, 2),
    b"\x02\x00": (np.lib.format.read_array_header_2_0, 4),
}  # of .npy, and the bytes that their header's length has
_PICKLED = "pickled objects, or no array at all"
# What Python and numpy raise for files that are not what they should be.
BROKEN = (
    OSError, ValueError, TypeError, KeyError, EOFError, NotImplementedError, RuntimeError,
    OverflowError, SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_arrays(
    path: Path, expected: str, wanted: Sequence[str] = ()
) -> np.ndarray | dict[str, Any]:
    """The array of a `.npy`, or those of an `.npz` by name.

    Args:
      path: which of the two it is, its first bytes say.
      expected: what should be there, for messages.
      wanted: of an `.npz` only these are read, for others there stands None; empty reads all.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: neither, pickled objects, a damaged file, or one that declares more than it holds
        or than is read.
      MemoryError: more than there is room for.
    """
    size = check_file(path, expected)
    with open(path, "rb") as file, _explained(path, expected):
        if file.read(2) == b"PK":
            return _read_zip(file, wanted)
        file.seek(0)
        return _read_array(file, size)


@contextlib.contextmanager
def _explained(path: Path, expected: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that are nearly Python
            yield
    except BROKEN as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: found {reason}, expected {expected}") from None


def _read_zip(file: IO[bytes], wanted: Sequence[str]) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    try:
        archive = zipfile.ZipFile(file)
    except BROKEN as error:
        raise ValueError(_damaged(error)) from None
    with archive:
        entries = archive.infolist()
        if len(entries) > _ENTRIES:
            raise ValueError(f"{len(entries)} arrays, where at most {_ENTRIES} are read")
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if name in arrays:
                raise ValueError(f"the array {name} twice")
            arrays[name] = None
            if not wanted or name in wanted:
                check_entry(entry, _LARGEST)
                with _opened(archive, entry) as member:
                    arrays[name] = _read_array(member, entry.file_size)
    return arrays


def check_entry(entry: zipfile.ZipInfo, most: int) -> None:
    """Refuses an entry of a zip that is too large to be read, or packed as numpy packs none.

    Raises:
      ValueError: its text is what was found.
    """
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{entry.filename} packed in a way (number {entry.compress_type}) of zip "
                         "files that is not read")  # fmt: skip
    allowed = min(most, max(_UNSUSPICIOUS, _EXPANSION * entry.compress_size))
    if entry.file_size > allowed:
        raise ValueError(
            f"{entry.filename} of {entry.file_size} bytes, where at most {allowed} are read"
        )


def _opened(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return archive.open(entry)
    except BROKEN as error:
        raise ValueError(_damaged(error)) from None


def _read_array(file: IO[bytes], size: int) -> np.ndarray:
    """The array that a stream of so many bytes holds; it must hold it exactly."""
    shape, fortran, dtype = _read_header(file)
    if dtype.hasobject:
        raise ValueError(_PICKLED)
    declared, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if declared != there or min(shape, default=0) < 0:
        raise ValueError(_damaged(f"{there} bytes of values, where its header declares {declared}"))
    if declared > _LARGEST:
        raise ValueError(f"an array of {declared} bytes, where at most {_LARGEST} are read")
    try:
        data = bytearray(declared)  # an array over it may be written to
        _fill(data, file)
        array = np.ndarray(shape, dtype, data, order="F" if fortran else "C")
    except BROKEN as error:
        raise ValueError(_damaged(error)) from None
    if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise ValueError(_damaged("truth values that are neither 0 nor 1"))
    return array


def _fill(data: bytearray, file: IO[bytes]) -> None:
    """Reads a stream to its end, where the checksum of a zip's entry is checked."""
    view, place = memoryview(data), 0
    while place < len(data):
        part = file.read(min(_BLOCK, len(data) - place))
        if not part:
            raise EOFError(f"its last {len(data) - place} bytes are missing")
        view[place : place + len(part)] = part
        place += len(part)
    file.read(1)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and dtype."""
    try:
        magic = file.read(8)  # with a small entry of a zip that is all, and its checksum is checked
    except BROKEN as error:
        raise ValueError(_damaged(error)) from None
    if magic and not magic.startswith(np.lib.format.MAGIC_PREFIX):
        raise ValueError(_PICKLED)
    try:
        read, width = _VERSIONS[magic[6:]]
        length = file.read(width)
        if int.from_bytes(length, "little") > _HEADER:  # numpy would read it first
            raise ValueError("a header that is too long")
        return read(io.BytesIO(length + file.read(int.from_bytes(length, "little"))))
    except (*BROKEN, MemoryError) as error:  # MemoryError: of the parser, for deep nesting
        raise ValueError(_damaged(error)) from None


def _damaged(reason: object) -> str:
    return f"a file that is cut short or damaged ({reason or type(reason).__name__})"
