"""What a training run tells while it works: `metrics.jsonl`, and TensorBoard where installed."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from deepsum_jax import files


class Logbook:
    """Appends records to `metrics.jsonl` and mirrors them to TensorBoard.

    Args:
      workdir: of the run.
      active: False writes nothing (all processes but the first).
    """

    def __init__(self, workdir: Path, active: bool = True) -> None:
        self.path, self.active = workdir / "metrics.jsonl", active
        self._board: Any = None
        if not active:
            return
        try:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"))
        except ImportError:
            print(
                "note: TensorBoard is not installed (extra `tensorboard`); logging to "
                f"{self.path} only",
                file=sys.stderr,
            )

    def rewind(self, stage: str, step: int, later: tuple[str, ...]) -> None:
        """Forgets what was written after the step that a run resumes from."""
        if not self.active or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines(keepends=True):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed while writing it
            if record["stage"] in later or (record["stage"] == stage and record["step"] > step):
                continue
            kept.append(line)
        with files.written_aside(self.path) as aside:
            aside.write_text("".join(kept))

    def scalars(self, stage: str, step: int, values: dict[str, float]) -> None:
        """One record: {"stage", "step", name: value …}; what is not finite becomes null."""
        if not self.active:
            return
        plain = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        with open(self.path, "a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **plain}) + "\n")
        if self._board is not None:
            for key, known in plain.items():
                if known is not None:
                    self._board.add_scalar(f"{stage}/{key}", known, step)

    def image(self, stage: str, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture for TensorBoard: uint8 [height, width, 3]."""
        if self._board is not None:
            self._board.add_image(f"{stage}/{name}", pixels, step, dataformats="HWC")

    @property
    def wants_images(self) -> bool:
        """Whether drawing a picture is worth it."""
        return self._board is not None

    def close(self) -> None:
        """Flushes what TensorBoard still holds."""
        if self._board is not None:
            self._board.close()
