"""Trees of arrays on disk (orbax), as parameters and training states are kept."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deepsum_jax import signals

# orbax is imported where it is needed: it takes half a second.
_lock = threading.Lock()  # of whoever uses it
_OVERHEAD = 2**18  # bytes that a tree takes on disk beside its arrays, at most
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def _orbax() -> Iterator[None]:
    """One tree at a time, in silence: orbax logs the tracebacks of what it raises as well.

    What it writes in two threads at once shares the signals by which it waits for its folders, and
    one comes to write into a folder that there is not yet.
    """
    _hush()
    logger, noise = logging.getLogger("absl"), _Noise()
    logger.addFilter(noise)
    try:
        with _lock:
            yield
    finally:
        logger.removeFilter(noise)


class _Noise(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname


class _Unasked(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        _, error, at = record.exc_info or (None, None, None)
        within = any("orbax" in frame.filename for frame in traceback.extract_tb(at))
        return not within and "OCDBT" not in str(error)  # the database that tensorstore keeps


@functools.cache
def _hush() -> None:
    """After the first write that fails, those beside it fail when nobody waits any more: they call
    a loop that is closed by then, from threads of tensorstore's, or end as tasks that nobody asks.
    """
    logging.getLogger("asyncio").addFilter(_Unasked())
    show = sys.unraisablehook

    def hook(what: Any) -> None:
        late = what.exc_type is RuntimeError and str(what.exc_value) == "Event loop is closed"
        if not (late and what.object is None):
            show(what)

    sys.unraisablehook = hook


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:99]


def _check_room(path: Path, tree: Any) -> None:
    """Raises OSError where the disk has no room for a tree, by a file that goes at once.

    What orbax is writing when a disk is full writes on in threads, which print tracebacks and meet
    folders that are gone.
    """
    allocate = getattr(os, "posix_fallocate", None)  # not everywhere
    if allocate is None:
        return
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    with tempfile.TemporaryFile(dir=path.parent) as file:
        try:
            allocate(file.fileno(), 0, size + size // 8 + _OVERHEAD)
        except OSError as error:
            if error.errno in _FULL:
                raise OSError(error.errno, os.strerror(error.errno), str(path)) from None


def write(path: Path, tree: Any) -> None:
    """Writes a tree as a new folder; of many processes, the one that calls writes it alone.

    Args:
      path: the folder.
      tree: dicts and tuples of arrays, with at least one.

    Raises:
      OSError: it cannot be written, as on a full disk.
    """
    import orbax.checkpoint as ocp

    tree = jax.tree.map(np.asarray, tree)
    _check_room(path, tree)
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process{here}"
    )
    if jax.process_count() == 1:
        alone = ocp.options.MultiprocessingOptions()
    # A signal waits: orbax writes on in threads, which would meet folders that are gone.
    with signals.held(), _orbax():
        try:
            with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
                checkpointer.save(path, tree)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 (orbax raises many kinds for what it cannot write)
            logging.getLogger("absl").addFilter(_Noise())  # for what its threads still meet
            for number in (*_FULL, errno.EROFS, errno.EACCES):
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number), str(path)) from None
            reason = f"cannot be written ({_reason(error)})"
            raise OSError(errno.EIO, reason, str(path)) from None


def read(path: Path, like: Any = None, most: int | None = None) -> Any:
    """Reads a tree as numpy arrays.

    Args:
      path: the folder.
      like: a tree of the same structure, whose kinds of nodes the result has; default as it was
        written, in dicts and lists.
      most: numbers that it may hold.

    Raises:
      ValueError: damaged files, more numbers, or a tree of another structure or other shapes; it
        names `path`.
    """
    import orbax.checkpoint as ocp

    with _orbax(), ocp.StandardCheckpointer() as checkpointer:
        try:
            if like is None:
                metadata = checkpointer.metadata(path).item_metadata
                like = getattr(metadata, "tree", metadata)
            count = sum(math.prod(x.shape) for x in jax.tree.leaves(like))
            if most is not None and count > most:
                raise ValueError(f"found {count} numbers, expected at most {most}")
            target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
            tree = checkpointer.restore(path, target)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (orbax raises many kinds for damaged files)
            raise ValueError(f"{path}: cannot be read as orbax arrays ({_reason(error)})") from None
    shapes = [jax.tree.map(np.shape, one) for one in (tree, target)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{path}: found arrays of other shapes than are wanted")
    return tree
