"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepsum_jax.reading import read_json as read_json


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_target(path: str | os.PathLike[str], what: str) -> None:
    """Refuses a file name that could not be written, before the work is done.

    Args:
      path: the file, whose folders may be missing.
      what: the argument that names it, for the message.

    Raises:
      ValueError: a folder, a device, or a place where nothing can be written.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise ValueError(f"{what} {path}: found a folder, expected a file")
    if target.exists() and not target.is_file():
        raise ValueError(f"{what} {path}: found a device or pipe, expected a file")
    above = next(p for p in target.parents if p.exists())
    if not above.is_dir():
        raise ValueError(f"{what} {path}: found that {above} is a file, expected a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{what} {path}: found no permission to write to {above}")


@contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a name beside `path` for a file or folder that takes the place of `path` at the end.

    A reader never meets half a file, and a failure leaves what stood there before. A symbolic
    link stays, and what it points at is replaced.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileExistsError(f"{path}: found a device or pipe, expected a file or folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    _remove(aside)  # left by a process of the same number that was killed, as in containers
    _remove(old)
    try:
        yield aside
        if aside.is_dir() and path.exists():  # a folder that is not empty cannot be replaced
            os.replace(path, old)
            try:
                os.replace(aside, path)
            except OSError:
                os.replace(old, path)
                raise
            _remove(old)
        else:
            os.replace(aside, path)
    finally:
        _remove(aside)


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Writes indented JSON. Raises ValueError for NaN and infinity, which JSON has no words for."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n")
