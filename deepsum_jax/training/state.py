"""Training states on disk: resumable, by step, each with its position in the data and digests.

A state is a folder: `state/` (orbax), `position/metadata` (JSON) and `SHA256SUMS`, without which
none is complete but those of earlier versions.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deepsum_jax import files, trees
from deepsum_jax.training import parallel

_POSITION = "position/metadata"
_EARLIER = "_CHECKPOINT_METADATA"  # of a state that orbax alone wrote, without digests
_LEFT = ".orbax-checkpoint-tmp"  # of one that it had not completed


class StateKeeper:
    """Training states by step, each with the position in the data; the last two are kept.

    Args:
      folder: of this stage's states.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(os.path.abspath(folder))
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "states")
        self._writing: concurrent.futures.Future[None] | None = None
        if parallel.is_first_process():
            self._sweep()

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Saves in the background; what is being written counts only once it is complete.

        Signals and errors of the caller do not reach what is being written.

        Raises:
          OSError: the state before could not be written.
        """
        self._wait()
        if parallel.is_first_process():
            copied = jax.tree.map(np.array, state)
            self._writing = self._writer.submit(self._write, step, copied, position)

    def _write(self, step: int, state: Any, position: dict[str, Any]) -> None:
        with files.written_aside(self._folder / str(step)) as aside:
            aside.mkdir()
            trees.write(aside / "state", state)
            (aside / _POSITION).parent.mkdir()
            (aside / _POSITION).write_text(json.dumps(position, allow_nan=False))
            files.write_sums(aside)
        # Later ones are those that a damaged or unwanted end of the training left.
        earlier = [other for other in self._steps() if other < step]
        for other in self._steps():
            if other not in (step, *earlier[-1:]):
                files.remove(self._folder / str(other))

    def _steps(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdecimal())

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest intact state as numpy arrays, and its position; None if there is none at all.

        Says in one line which states are damaged.

        Args:
          like: a state of the same structure.

        Raises:
          ValueError: all are damaged, or of another structure.
        """
        found, chosen, faults = None, -1, []
        for step in reversed(self._steps()):
            folder = self._folder / str(step)
            try:
                _check(folder)
                if found is None:
                    found, chosen = _read(folder, like), step
            except (ValueError, OSError) as error:
                faults.append(" ".join(str(error).split()))
        if faults and found is None:
            raise ValueError(
                f"{faults[0]}{', and no state before it is intact' if faults[1:] else ''}; remove "
                f"{self._folder} to begin the stage anew"
            )
        if faults:
            print(f"note: {'; '.join(faults)}; going on from step {chosen}", file=sys.stderr)
        return found

    def _sweep(self) -> None:
        """Removes what killed processes left half written."""
        files.sweep(self._folder)
        if self._folder.is_dir():
            for left in self._folder.glob(f"*{_LEFT}"):
                shutil.rmtree(left)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
          OSError: it could not be written.
        """
        try:
            self._wait()
        finally:
            self._writer.shutdown()


def _check(folder: Path) -> None:
    """Raises ValueError where a state is not as it was written, or not all of it."""
    if (folder / _EARLIER).exists() and not (folder / files.SUMS).exists():
        return
    try:
        fault = files.fault_of_sums(folder)
    except FileNotFoundError:
        fault = f"{files.SUMS} is missing"
    if fault is not None:
        raise ValueError(f"{folder}: is damaged ({fault})")


def _read(folder: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    try:
        state = trees.read(folder / "state", like)
        position = files.read_json(folder / _POSITION)
    except (ValueError, OSError) as error:
        raise ValueError(f"{folder}: cannot be read as a training state ({error})") from None
    if not isinstance(position, dict) or "data" not in position:
        raise ValueError(f"{folder / _POSITION}: found no position in the data")
    return state, position
