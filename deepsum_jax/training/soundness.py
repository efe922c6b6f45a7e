"""Numbers that go wrong: which steps of a stage are sound, and when it has to stop.

A step is unsound where its update was skipped, since it or the loss was not finite, or where the
loss lies far above the stage's first. No state is kept but those from which a step is sound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from deepsum_jax import files
from deepsum_jax.bundle import fault_of
from deepsum_jax.config import StageConfig
from deepsum_jax.systems.system import Stage

_SHOWN = 10  # skipped updates of a stage that are told one by one, and whose batches are kept


class Step(NamedTuple):
    """A step that was taken, and what it was taken with."""

    number: int
    metrics: Mapping[str, Any]  # scalars
    batch: dict[str, np.ndarray]  # sharded
    records: np.ndarray  # [B] of the batch


class Watch:
    """Judges a stage's steps one by one.

    Args:
      stage, settings: the stage.
      folder: of the stage, where batches of skipped updates are kept.
      scenes_of: names the scenes of records.
      tell: says a line to the user.
      first: the stage's first loss, of a stage that goes on.
    """

    def __init__(
        self,
        stage: Stage,
        settings: StageConfig,
        folder: Path,
        scenes_of: Callable[[np.ndarray], list[str]],
        tell: Callable[[str], None],
        first: float | None = None,
    ) -> None:
        self.stage, self.settings, self.folder = stage, settings, folder
        self.scenes_of, self.tell, self.first = scenes_of, tell, first
        self.kept: int | None = None  # the step of the newest state on disk
        self.probe: dict[str, np.ndarray] = {}  # the batch that states are tried on: a sound one
        self._in_a_row = self._shown = 0

    def judge(self, step: Step) -> dict[str, float]:
        """Its metrics.

        Raises:
          ValueError: too many steps in a row were unsound.
        """
        metrics = {name: float(value) for name, value in jax.device_get(step.metrics).items()}
        fault = self._fault(metrics)
        if not self.probe or (fault is None and metrics["gradient_norm"] > 0):
            self.probe = step.batch  # one that shows something
        if fault is None:
            self._in_a_row = 0
            if self.first is None and (metrics["loss"] > 0 or self.stage.log_loss):
                self.first = metrics["loss"]  # one of 0 is that of a batch that shows nothing
            return metrics
        self._in_a_row += 1
        if metrics["skipped"] and self._shown < _SHOWN:
            self._shown += 1
            place = self._keep(step, metrics)
            self.tell(
                f"{self.stage.name} step {step.number}: {fault}; update skipped, its batch (of "
                f"{self._scenes(step)}) kept in {place}"
            )
        if self._in_a_row >= self.settings.max_unsound:
            steps = "1 step" if self._in_a_row == 1 else f"{self._in_a_row} steps in a row"
            raise self.diverged(
                step.number, f"unsound for {steps}, the last with {fault} on {self._scenes(step)}"
            )
        return metrics

    def _fault(self, metrics: Mapping[str, float]) -> str | None:
        loss = metrics["loss"]
        if not math.isfinite(loss):
            return f"a loss of {loss}"
        if metrics["skipped"]:
            return f"an update that is not finite (gradient norm {metrics['gradient_norm']:.3g})"
        if self.first is None or not self._far_above(loss, self.first):
            return None
        return f"a loss of {loss:.3g} (its first was {self.first:.3g})"

    def _far_above(self, loss: float, first: float) -> bool:
        """Losses are in standardised units: from below 1 they may well rise to it."""
        rise = self.settings.max_rise
        if self.stage.log_loss:
            return loss > max(first, 0.0) + math.log(rise)
        return loss > max(first, 1.0) * rise

    def fault_of_state(self, params: Any, after: Mapping[str, Any]) -> str | None:
        """What is wrong with a state; None where nothing is.

        Args:
          params: its parameters, as numpy arrays.
          after: metrics of a step from it, on a batch that was sound before.
        """
        return fault_of(params) or self._fault(
            {name: float(value) for name, value in jax.device_get(after).items()}
        )

    def diverged(self, step: int, reason: str) -> ValueError:
        """What to raise where a stage has to stop: the state of before, and what to do."""
        name, rate = self.stage.name, self.settings.learning_rate
        lower = min(rate / 10, 1e-3)
        kept = "nothing of it is kept" if self.kept is None else f"kept is step {self.kept}"
        return ValueError(
            f"{name}: stopped at step {step}, {reason}; {kept}; to go on from there lower "
            f"{name}.learning_rate (found {rate:g}), as --set {name}.learning_rate={lower:g}"
        )

    def _scenes(self, step: Step) -> str:
        names = self.scenes_of(step.records)
        return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")

    def _keep(self, step: Step, metrics: Mapping[str, float]) -> Path:
        """Writes a batch [B, …] for inspection, with the names of its scenes and its metrics."""
        place = self.folder / f"skipped_{step.number:06d}.npz"
        arrays: dict[str, Any] = {k: v.reshape(-1, *v.shape[2:]) for k, v in step.batch.items()}
        arrays |= {f"metric_{name}": value for name, value in metrics.items()}
        arrays["scenes"] = [self.scenes_of(record)[0] for record in step.records[:, None]]
        with files.written_aside(place) as aside, open(aside, "wb") as file:
            np.savez(file, **arrays)
        return place
