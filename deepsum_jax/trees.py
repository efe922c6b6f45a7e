"""Trees of arrays on disk (orbax), as parameters and training states are kept."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

# orbax is imported where it is needed: it takes half a second.


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """orbax logs the tracebacks of what it raises as well."""
    logger, noise = logging.getLogger("absl"), _Noise()
    logger.addFilter(noise)
    try:
        yield
    finally:
        logger.removeFilter(noise)


class _Noise(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:99]


def write(path: Path, tree: Any) -> None:
    """Writes a tree as a new folder; of many processes, the one that calls writes it alone.

    Args:
      path: the folder.
      tree: dicts and tuples of arrays, with at least one.

    Raises:
      OSError: it cannot be written, as on a full disk.
    """
    import orbax.checkpoint as ocp

    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process{here}"
    )
    if jax.process_count() == 1:
        alone = ocp.options.MultiprocessingOptions()
    with _quiet():
        try:
            with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
                checkpointer.save(path, jax.tree.map(np.asarray, tree))
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 (orbax raises many kinds for what it cannot write)
            full = "No space left" in str(error)
            number = errno.ENOSPC if full else errno.EIO
            reason = "No space left on device" if full else f"cannot be written ({_reason(error)})"
            raise OSError(number, reason, str(path)) from None


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

    with _quiet(), ocp.StandardCheckpointer() as checkpointer:
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
