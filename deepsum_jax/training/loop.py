"""One stage from its first step, or its newest state, to its last."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from deepsum_jax.bundle import Bundle, BundleInfo, load_params, save_params
from deepsum_jax.config import StageConfig, TrainConfig
from deepsum_jax.data import patches
from deepsum_jax.data.dataset import Dataset
from deepsum_jax.systems.system import Params, Stage
from deepsum_jax.systems.table import stages_of
from deepsum_jax.training import merit, parallel, stages
from deepsum_jax.training.logbook import Logbook
from deepsum_jax.training.state import StateKeeper
from deepsum_jax.training.step import init_state
from deepsum_jax.training.workdir import Start, ended_after

_FRESH_PARAMS, _BATCHES = 0, 1  # purposes of random numbers


def _key(config: TrainConfig, stage: Stage, purpose: int) -> jax.Array:
    """A key that depends on (seed, stage, purpose) alone."""
    key = jax.random.fold_in(jax.random.key(config.seed), stages.number(stage))
    return jax.random.fold_in(key, purpose)


def _data_seed(config: TrainConfig, stage: Stage) -> int:
    sequence = np.random.SeedSequence([config.seed, stages.number(stage), _BATCHES])
    return int(sequence.generate_state(1)[0] >> 1)


def starting_params(
    stage: Stage, config: TrainConfig, workdir: Path, start: Start | None
) -> Params:
    """Parameters before a stage's first step.

    Fresh ones, replaced by the start's where it has them, and those by what earlier stages of
    this run hand over.

    Raises:
      ValueError: parameters that do not fit, all named.
    """
    key = _key(config, stage, _FRESH_PARAMS)
    params = stages.fresh_params(stage, config.model, key, config.compute)
    if start is not None:
        given = {k: v for k, v in start.bundle.params.items() if k in params}
        params = stages.hand_over(params, given, "--init")
    plan = stages_of(config.model)
    for earlier in plan[: [one.name for one in plan].index(stage.name)]:
        best, last = (workdir / earlier.name / kind for kind in ("best", "last"))
        if not (last / "bundle.json").is_file():
            continue
        made = load_params(best if best.is_dir() else last).params
        given = {k: made[k] for k in stage.takes if k in earlier.trains}
        params = stages.hand_over(params, given, f"stage {earlier.name}")
    return params


@dataclasses.dataclass
class _Progress:
    """Bar, log and best value of a running stage."""

    stage: Stage
    bar: Any
    log: Logbook
    recent: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: float = float("-inf")
    since: float = dataclasses.field(default_factory=time.perf_counter)

    def stepped(self, step: int, metrics: dict[str, Any], log_now: bool) -> None:
        self.recent.append(metrics)
        self.bar.update()
        if not log_now:
            return
        fetched = jax.device_get(self.recent)
        values = {k: float(np.mean([m[k] for m in fetched])) for k in fetched[0]}
        values["steps_per_second"] = len(fetched) / (time.perf_counter() - self.since)
        self.bar.set_postfix(loss=f"{values['loss']:.4g}", **_short(values), refresh=False)
        self.log.scalars(self.stage.name, step, values)
        if not np.isfinite(values["loss"]):
            raise ValueError(
                f"{self.stage.name}: the loss is not finite at step {step}; lower "
                f"{self.stage.name}.learning_rate or set {self.stage.name}.clip_norm"
            )
        self.recent, self.since = [], time.perf_counter()


def _short(values: dict[str, float]) -> dict[str, str]:
    return {"accuracy": f"{values['accuracy']:.2f}"} if "accuracy" in values else {}


@dataclasses.dataclass
class _Run:
    """What a stage's loop needs at hand."""

    stage: Stage
    config: TrainConfig
    data: Dataset
    workdir: Path
    start: Start | None

    @property
    def folder(self) -> Path:
        return self.workdir / self.stage.name

    @property
    def settings(self) -> StageConfig:
        return getattr(self.config, self.stage.name)

    def bundle(self, params: Params, step: int, cpsnr: float | None) -> Bundle:
        """Parameters of this stage, with where they come from."""
        train, validation = self.data.train, self.data.validation
        info = BundleInfo(
            bands=tuple(sorted({s.band for s in (*train, *validation)})),
            reference=self.config.data.reference,
            stage=self.stage.name,
            step=step,
            seed=self.config.seed,
            parent=self.start.digest if self.start is not None else "",
            data_fingerprint=self.data.fingerprint,
            train_scenes=tuple(f"{s.band}/{s.name}" for s in train),
            validation_scenes=tuple(f"{s.band}/{s.name}" for s in validation),
            validation_cpsnr=cpsnr,
        )
        return Bundle(params, self.config.model, info)


def _resume(run: _Run, keeper: StateKeeper, state: Any, batches: Any) -> tuple[Any, float]:
    """The newest state, with the batches set to its place in the data, and the best merit so far;
    the given state where none is kept.

    Raises:
      ValueError: a place in the data that this run's workers or processes cannot take up.
    """
    restored = keeper.restore(state)
    if restored is None:
        return state, float("-inf")
    state, position = restored
    processes = parallel.process_share()[1]
    if position.get("processes") != processes:
        raise ValueError(
            f"{run.folder}: the checkpoint's position in the data was saved by "
            f"{position.get('processes', 'an unknown number of')} processes, and this is one "
            f"of {processes}; resume with as many, or use another --workdir"
        )
    if position["workers"] != run.config.data.workers:
        raise ValueError(
            f"data.workers: found {run.config.data.workers}, but the checkpoint's position in the "
            f"data was saved with {position['workers']}; use that to resume"
        )
    devices = position.get("devices", jax.device_count())
    if devices != jax.device_count():
        print(
            f"note: {run.stage.name} goes on with {jax.device_count()} devices, it had {devices}: "
            "the same batches, whose sums are rounded in another order",
            file=sys.stderr,
        )
    batches.set_state(position["data"])
    return state, float("-inf") if position["best"] is None else position["best"]


def run_stage(
    stage: Stage,
    config: TrainConfig,
    data: Dataset,
    workdir: Path,
    log: Logbook,
    start: Start | None = None,
    progress: bool = True,
) -> None:
    """Trains one stage to its end, from its newest checkpoint if it has one.

    Resumed on as many devices, a run ends in the same parameters, bit for bit; on another number
    of devices in the same but for rounding, since sums are taken in another order.

    Leaves `workdir/STAGE/best`, the bundle that did best on the validation scenes, and
    `workdir/STAGE/last`, which also marks the stage as done.
    """
    run = _Run(stage, config, data, workdir, start)
    if ended_after(workdir, stage.name) >= run.settings.steps:
        print(f"{stage.name}: done before, kept")
        return
    settings = run.settings
    batches = patches.make_iterator(
        patches.Patches(data.train, config.model, config.data, stage.view),
        settings.batch_size,
        _data_seed(config, stage),
        *parallel.process_share(),
    )
    state = init_state(starting_params(stage, config, workdir, start), stage, config)
    keeper = StateKeeper(run.folder / "checkpoints")
    state, best = _resume(run, keeper, state, batches)
    begin = int(state.step)
    log.rewind(stage.name, begin, stages.NAMES[stages.number(stage) + 1 :])
    train_step = parallel.map_train_step(stage, config)
    state = parallel.replicate(state)
    bar = tqdm(
        total=settings.steps,
        initial=begin,
        desc=stage.name,
        unit="step",
        disable=not progress,
        dynamic_ncols=True,
    )
    running = _Progress(stage, bar, log, best=best)
    for step in range(begin + 1, settings.steps + 1):
        state, metrics = train_step(state, parallel.shard(next(batches)))
        last = step == settings.steps
        running.stepped(step, metrics, last or step % settings.log_every == 0)
        if last or step % settings.validate_every == 0:
            _validate(run, state, step, running)
        if last or step % settings.checkpoint_every == 0:
            position = {
                "data": batches.get_state(),
                "workers": config.data.workers,
                "processes": parallel.process_share()[1],
                "devices": jax.device_count(),
                "best": running.best if np.isfinite(running.best) else None,
            }
            keeper.save(step, state, position)
    bar.close()
    keeper.close()
    if parallel.is_first_process():
        scored = stage.merit is None and np.isfinite(running.best)
        params = parallel.to_host(state.params)
        cpsnr = running.best if scored else None
        save_params(run.folder / "last", run.bundle(params, settings.steps, cpsnr))


def _validate(run: _Run, state: Any, step: int, running: _Progress) -> None:
    """Judges the state on the validation scenes, keeps it if it is the best so far."""
    stage, scenes = run.stage, run.data.validation
    params = parallel.to_host(state.params)
    merits = merit.judge(stage, params, scenes, run.config)
    name, value = next(iter(merits.items()))
    running.log.scalars(stage.name, step, {f"validation_{k}": v for k, v in merits.items()})
    running.bar.write(f"{stage.name} step {step}: validation {name} {value:.4g}")
    if running.log.wants_images:
        pixels = merit.picture(stage, params, scenes[0], run.config)
        if pixels is not None:
            running.log.image(stage.name, step, "validation", pixels)
    if value > running.best and parallel.is_first_process():
        cpsnr = value if name == "cpsnr" else None
        save_params(run.folder / "best", run.bundle(params, step, cpsnr))
    running.best = max(running.best, value)
    running.since = time.perf_counter()
