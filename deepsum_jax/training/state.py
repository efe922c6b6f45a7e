"""Training states on disk: resumable, by step, each with its position in the data (orbax)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from deepsum_jax.bundle import first_line


class StateKeeper:
    """Training states by step, each with the position in the data; the last two are kept.

    Args:
      folder: of this stage's states.
    """

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        self._manager = ocp.CheckpointManager(os.path.abspath(folder), options=options)

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Saves in the background; what is being written counts only once it is complete."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position)
            ),
        )

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest complete state as numpy arrays, and its position; None if there is none.

        Args:
          like: a state of the same structure.

        Raises:
          ValueError: damaged files, or a state of another structure.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), position=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=args)
        except Exception as error:  # noqa: BLE001 (orbax raises many kinds for damaged files)
            folder = self._manager.directory / str(step)
            raise ValueError(
                f"{folder}: cannot be read as a training state ({first_line(error)}); remove it "
                "to go on from the state before"
            ) from None
        shapes = [jax.tree.map(np.shape, tree) for tree in (restored.state, like)]
        if shapes[0] != shapes[1]:
            folder = self._manager.directory / str(step)
            raise ValueError(f"{folder}: found a state of other shapes than this training's")
        return restored.state, restored.position

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()
