"""Files that others made, read with care: no pipe or device is opened, nothing endless is read."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

_TEXT = 2**24  # bytes; a description of a hundred thousand scenes has a fifth of it


def check_file(path: str | os.PathLike[str], expected: str) -> int:
    """Refuses what is no regular file, before anything opens it: a pipe would block for ever.

    Args:
      path: a file; links are followed.
      expected: what should be there, for the message.

    Returns:
      Its size in bytes.

    Raises:
      FileNotFoundError: there is nothing, or a folder.
      ValueError: a device, pipe or socket.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null in the name
        raise FileNotFoundError(f"{path}: found no such file, expected {expected}") from None
    if stat.S_ISDIR(status.st_mode):
        raise FileNotFoundError(f"{path}: found a folder, expected {expected}")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: found a device or pipe, expected {expected}")
    return status.st_size


def read_bytes(path: str | os.PathLike[str], expected: str, most: int = _TEXT) -> bytes:
    """The bytes of a regular file that has at most so many.

    Raises:
      FileNotFoundError: there is nothing, or a folder.
      ValueError: a device or pipe, or a larger file.
    """
    size = check_file(path, expected)
    if size <= most:
        with open(path, "rb") as file:
            data = file.read(most + 1)  # it may have grown
        if len(data) <= most:
            return data
    raise ValueError(f"{path}: found more than {most} bytes, expected {expected}")


def read_text(path: str | os.PathLike[str], expected: str) -> str:
    """UTF-8 text; bytes that are none become question marks. Raises as `read_bytes`."""
    return read_bytes(path, expected).decode("utf-8-sig", errors="replace")


def parse_json(data: bytes, path: str | os.PathLike[str]) -> Any:
    """What the bytes of a JSON file say.

    Raises:
      ValueError: names the file: no JSON, or such as no program of ours writes: numbers of
        thousands of digits, lists in lists without end, NaN.
    """
    try:
        return json.loads(data.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        reason = "lists within lists, too deep"
    except ValueError as error:  # of the JSON, of its encoding, of its numbers
        reason = "a number of too many digits" if "digits" in str(error) else str(error)
    raise ValueError(f"{path}: expected JSON, found {reason}")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name}, which is no number")
