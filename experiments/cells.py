"""Cells: one row with one seed, trained and scored, and kept under the working directory.

Experiments that share a row share its cells, and rows that share a pretraining train it once, so a
run that was interrupted, or another experiment, goes on with what is there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deepsum_jax import Bundle, files
from deepsum_jax.bundle import BundleInfo, load_params
from deepsum_jax.config import ModelConfig, Normalization, TrainConfig
from deepsum_jax.data import kelvins
from deepsum_jax.data.dataset import prepare_dataset
from deepsum_jax.data.scene import Scene
from deepsum_jax.scoring.scene import SceneScore
from deepsum_jax.scoring.splits import select_scenes
from deepsum_jax.scoring.summary import evaluate
from deepsum_jax.systems.table import parameterless, stages_of, system_of
from deepsum_jax.training.run import simulated_scenes, train
from experiments import benchmark, pictures
from experiments.rows import STAGES, Row, pretraining, row_config

Cell = dict[str, Any]

MANY_FRAMES = (15, 20)  # of a simulated scene, where a row asks for many


def brighter(norm: Normalization, gain: float, haze: float = 0.0) -> Normalization:
    """The normalisation that makes of an image x what `norm` makes of gain · x + haze · lr_std.

    Results are then those for such frames, less the haze and divided by the gain.
    """
    added = haze * np.atleast_1d(norm.lr_std)

    def changed(name: str) -> float | tuple[float, ...]:
        values = np.atleast_1d(getattr(norm, name))
        values = (values - added if name.endswith("mean") else values) / gain
        return tuple(map(float, values)) if len(values) > 1 else float(values[0])

    return Normalization(**{name: changed(name) for name in norm.to_dict()})


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where cells are made and kept: one budget, one data set.

    Attributes:
      workdir: for runs, cells and simulated scenes.
      data: the given scenes; None simulates them.
      base: the configuration that all rows start from.
      max_frames: at test.
      rows: all that rows may refer to, by name.
    """

    workdir: Path
    data: Path | None
    base: TrainConfig
    max_frames: int
    rows: dict[str, Row]

    # --- cells

    def cell_path(self, row: Row, seed: int) -> Path:
        if self._is_parameterless(row):
            seed = 0  # nothing depends on it
        return self.workdir / "cells" / f"{row.name}-{seed}.json"

    def cell(self, row: Row, seed: int) -> Cell | None:
        """A finished cell, or None."""
        path = self.cell_path(row, seed)
        return dict(files.read_json(path)) if path.exists() else None

    def run(self, row: Row, seed: int, progress: bool = True) -> None:
        """Trains and scores a cell, unless it is there."""
        if self.cell(row, seed) is not None:
            return
        bundle, seconds, steps = self.system(row, seed)
        data, band = self.scenes(row.many), self.base.data.band
        frames = row.max_frames or self.max_frames
        summary, scores = evaluate(
            self._for_test(bundle, row), data, self._split(data), band, frames, progress,
            compute=self.base.compute,
        )  # fmt: skip
        forward = self._forward_work(bundle.config, scores)
        cell = {
            **summary,
            "row": row.name,
            "label": row.label,
            "seed": seed,
            "train_seconds": seconds,
            "steps": steps,
            "gflop": forward / 1e9,
            "parameters": sum(int(np.size(x)) for x in jax.tree.leaves(bundle.params)),
            "made": benchmark.machine(),
        }
        files.write_json(self.cell_path(row, seed), cell)

    # --- systems

    def _is_parameterless(self, row: Row) -> bool:
        return row_config(row, self.base, 0).model.system in parameterless()

    def is_trained(self, row: Row, seed: int) -> bool:
        """Whether `system` has nothing to train."""
        if self._is_parameterless(row):
            return True
        source = self.rows[row.trained_as or row.name]
        return _clock(self._folder(source, seed)).get("done", False)

    def system(self, row: Row, seed: int) -> tuple[Bundle, float, dict[str, int]]:
        """A row's system, trained if it is not yet: bundle, seconds of training, steps by stage."""
        wanted = row_config(row, self.base, seed)
        info = BundleInfo(reference=wanted.data.reference)
        if wanted.model.system in parameterless():
            return Bundle({}, wanted.model, info), 0.0, {}
        source = self.rows[row.trained_as or row.name]
        config = row_config(source, self.base, seed)
        folder = self._folder(source, seed)
        seconds = 0.0
        plan = stages_of(config.model)
        before = [s.name for s in plan[:-1] if getattr(config, s.name).steps]
        init = None
        if before:
            first = pretraining(config)
            key = hashlib.sha256(json.dumps(first.to_dict(), sort_keys=True).encode()).hexdigest()
            init = folder.with_name(f"pretraining-{key[:12]}{'-many' * source.many}")
            seconds += _train(init, first, self.scenes(source.many), before)
        only = [plan[-1].name]
        seconds += _train(folder, config, self.scenes(source.many), only, init)
        bundle = load_params(folder)
        model = dataclasses.replace(bundle.config, system=wanted.model.system)
        info = dataclasses.replace(bundle.info, reference=wanted.data.reference)
        steps = {name: getattr(config, name).steps for name in (*before, *only)}
        return Bundle(bundle.params, model, info), seconds, steps

    def tested(self, row: Row, seed: int) -> Bundle:
        """A row's system as its tests see it."""
        return self._for_test(self.system(row, seed)[0], row)

    def _folder(self, source: Row, seed: int) -> Path:
        return self.workdir / "runs" / f"{source.name}-{seed}"

    def _for_test(self, bundle: Bundle, row: Row) -> Bundle:
        """A bundle that sees what the row's tests show it, and the scenes they are made on."""
        norm = brighter(bundle.config.normalization, row.gain, row.haze)
        config = dataclasses.replace(bundle.config, normalization=norm)
        held_out = self._held_out(self.scenes(row.many))
        seen = set(bundle.info.train_scenes)
        scenes = tuple(s for s in held_out if s not in seen)
        info = dataclasses.replace(bundle.info, validation_scenes=scenes)
        return Bundle(bundle.params, config, info)

    def _forward_work(self, model: ModelConfig, scores: Sequence[SceneScore]) -> float:
        """Operations per scene, of all windows that it takes."""
        work = system_of(model).work
        return sum(work(model, *s.shape, s.frames) for s in scores) / max(1, len(scores))

    # --- scenes

    def scenes(self, many: bool = False) -> Path:
        """The data folder; simulated once where none is given."""
        if self.data is not None:
            return self.data
        if not many:
            return simulated_scenes(self.base, self.workdir)
        low, high = MANY_FRAMES
        frames = dataclasses.replace(self.base.simulation, min_frames=low, max_frames=high)
        return simulated_scenes(
            dataclasses.replace(self.base, simulation=frames), self.workdir / "many"
        )

    def _tested_on(self) -> tuple[Bundle, Path, str]:
        """Whose, where and which split the scenes are that systems are tested on."""
        data = self.scenes()
        info = BundleInfo(validation_scenes=self._held_out(data))
        return Bundle({}, self.base.model, info), data, self._split(data)

    def bands(self) -> list[str]:
        """The bands of the scenes that systems are tested on."""
        _, folders = select_scenes(*self._tested_on(), self.base.data.band)
        return sorted({f.band for f in folders})

    def held_out_scenes(self, band: str, count: int) -> list[tuple[Scene, Any]]:
        """Evenly spaced scenes of a band that systems are tested on, each with its truth."""
        return pictures.choose_scenes(*self._tested_on(), band, count)

    def _split(self, data: Path) -> str:
        """Test scenes with HR where there are any; else the scenes that training leaves out."""
        return "val" if self._held_out(data) else "test"

    def _held_out(self, data: Path) -> tuple[str, ...]:
        return _validation_scenes(data, self.base, self.workdir / "cache")


@functools.lru_cache(maxsize=4)
def _validation_scenes(data: Path, base: TrainConfig, cache: Path) -> tuple[str, ...]:
    """The scenes that training leaves out, as BAND/NAME; none where the test part has HR."""
    if any(f.part == "test" and kelvins.has_hr(f) for f in kelvins.find_scenes(data)):
        return ()
    prepared = prepare_dataset(data, base.model, base.data, cache, progress=True)
    return tuple(f"{s.band}/{s.name}" for s in prepared.validation)


def _clock(folder: Path) -> Cell:
    path = folder.with_suffix(".clock.json")
    return dict(files.read_json(path)) if path.exists() else {"seconds": 0.0, "done": False}


def _train(
    folder: Path, config: TrainConfig, data: Path, only: Sequence[str], init: Path | None = None
) -> float:
    """Trains a folder to its end; seconds, those of interrupted runs included."""
    clock = _clock(folder)
    if clock["done"]:
        return float(clock["seconds"])
    start = time.perf_counter()
    try:
        train(folder, config, data, only, init, report=False)
        clock["done"] = True
    finally:
        clock["seconds"] += time.perf_counter() - start
        files.write_json(folder.with_suffix(".clock.json"), clock)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    for stage in STAGES:  # nothing resumes from them any more
        shutil.rmtree(folder / stage / "checkpoints", ignore_errors=True)
    return float(clock["seconds"])


def missing(bench: Bench, rows: Sequence[Row], seeds: Sequence[int]) -> list[tuple[Row, int]]:
    """The cells that have not run, each once, seed by seed."""
    wanted: dict[Path, tuple[Row, int]] = {}
    for seed in seeds:
        for row in rows:
            wanted.setdefault(bench.cell_path(row, seed), (row, seed))
    return [cell for path, cell in wanted.items() if not path.exists()]


def run_all(
    bench: Bench,
    cells: Sequence[tuple[Row, int]],
    ended: Callable[[Row], object] = lambda row: None,
) -> list[str]:
    """Runs cells one after another; a cell that fails does not stop the others.

    Args:
      ended: called behind each.

    Returns:
      What failed, a line each; for `raise_failures`, once what there is has been written.
    """
    failures, start = [], time.perf_counter()
    for n, (row, seed) in enumerate(cells):
        passed = time.perf_counter() - start
        print(f"\n=== [{n + 1}/{len(cells)}] {row.label}, seed {seed} "
              f"({passed / 60:.0f} min so far)", flush=True)  # fmt: skip
        try:
            bench.run(row, seed)
        except ValueError as error:
            failures.append(f"{row.label}, seed {seed}: {error}")
            print(f"failed: {error}", flush=True)
        ended(row)
    return failures


def raise_failures(failures: Sequence[str]) -> None:
    """Raises ValueError where cells have failed."""
    if failures:
        raise ValueError(f"{len(failures)} cells failed: {'; '.join(failures)}")
