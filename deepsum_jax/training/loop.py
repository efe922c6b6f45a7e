"""One stage from its first step, or its newest state, to its last."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from deepsum_jax import signals
from deepsum_jax.bundle import Bundle, BundleInfo, fault_of, load_params, save_params
from deepsum_jax.config import StageConfig, TrainConfig
from deepsum_jax.data import patches
from deepsum_jax.data.dataset import Dataset
from deepsum_jax.systems.system import Params, Stage
from deepsum_jax.systems.table import stages_of
from deepsum_jax.training import merit, parallel, stages
from deepsum_jax.training.logbook import Logbook
from deepsum_jax.training.soundness import Step, Watch
from deepsum_jax.training.state import StateKeeper
from deepsum_jax.training.step import TrainState, init_state
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
    """Bar, log and best value of a running stage.

    What is logged are means over the steps whose update was not skipped, and how many were.
    """

    stage: Stage
    bar: Any
    log: Logbook
    recent: list[dict[str, float]] = dataclasses.field(default_factory=list)
    best: float = float("-inf")
    since: float = dataclasses.field(default_factory=time.perf_counter)

    def stepped(self, step: int, metrics: dict[str, float], log_now: bool) -> None:
        self.recent.append(metrics)
        self.bar.update()
        if not log_now:
            return
        taken = [m for m in self.recent if not m["skipped"]] or self.recent
        values = {k: float(np.mean([m[k] for m in taken])) for k in taken[0]}
        values["skipped"] = sum(m["skipped"] for m in self.recent)
        values["steps_per_second"] = len(self.recent) / (time.perf_counter() - self.since)
        self.bar.set_postfix(loss=f"{values['loss']:.4g}", **_short(values), refresh=False)
        self.log.scalars(self.stage.name, step, values)
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


def _resume(
    run: _Run, keeper: StateKeeper, state: TrainState, batches: Any
) -> tuple[TrainState, dict[str, Any]]:
    """The newest state and its position, with the batches set to its place in the data; where none
    is kept, the given state and no position.

    Raises:
      ValueError: a place in the data that this run's workers or processes cannot take up.
    """
    restored = keeper.restore(state)
    if restored is None:
        return state, {}
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
    return state, position


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

    Raises:
      ValueError: the stage has diverged; the newest state is from before. See `soundness`.
      signals.Stopped, KeyboardInterrupt: a signal asked to end; the step that it met is saved.
    """
    run = _Run(stage, config, data, workdir, start)
    if ended_after(workdir, stage.name) >= run.settings.steps:
        print(f"{stage.name}: done before, kept")
        return
    place = run.folder / "checkpoints"
    if parallel.is_first_process():
        place.mkdir(parents=True, exist_ok=True)  # it has begun, whatever comes of it
    with contextlib.closing(StateKeeper(place)) as keeper:
        params, best = _take_steps(run, keeper, log, progress)
    if parallel.is_first_process():
        scored = stage.merit is None and np.isfinite(best)
        cpsnr = best if scored else None
        save_params(run.folder / "last", run.bundle(params, run.settings.steps, cpsnr))


def _take_steps(
    run: _Run, keeper: StateKeeper, log: Logbook, progress: bool
) -> tuple[Params, float]:
    """All steps of a stage that are left: the parameters after the last, and the best merit."""
    stage, config, settings = run.stage, run.config, run.settings
    records = patches.Patches(run.data.train, config.model, config.data, stage.view)
    batches = patches.make_iterator(
        records, settings.batch_size, _data_seed(config, stage), *parallel.process_share(), True
    )
    fresh = init_state(starting_params(stage, config, run.workdir, run.start), stage, config)
    host, position = _resume(run, keeper, jax.device_get(fresh), batches)
    begin = int(host.step)
    later = stages.NAMES[stages.number(stage) + 1 :] if begin < settings.steps else ()
    log.rewind(stage.name, begin, later)
    train_step = parallel.map_train_step(stage, config)
    bar = tqdm(
        total=settings.steps,
        initial=begin,
        desc=stage.name,
        unit="step",
        disable=not progress,
        dynamic_ncols=True,
    )
    best = position.get("best")
    running = _Progress(stage, bar, log, best=float("-inf") if best is None else best)
    watch = Watch(
        stage, settings, run.folder, records.scenes_of, bar.write, position.get("first_loss")
    )
    watch.kept = begin or None

    def settle(step: Step) -> None:
        logs = step.number == settings.steps or step.number % settings.log_every == 0
        running.stepped(step.number, watch.judge(step), logs)

    with contextlib.closing(bar), signals.held() as asked:
        if not position.get("judged", True) and not _validate(run, host.params, begin, running):
            raise signals.ending(_parting(run, begin, watch, None))
        state, waiting = parallel.replicate(host), None
        for number in range(begin + 1, settings.steps + 1):
            batch = next(batches)
            origin = batch.pop("record")
            given = parallel.shard(batch)
            state, metrics = train_step(state, given)
            if waiting is not None:  # it is done by now, and the devices have this one to do
                settle(waiting)
            waiting = Step(number, metrics, given, origin)
            last = number == settings.steps
            validates = last or number % settings.validate_every == 0
            saves = last or number % settings.checkpoint_every == 0
            pauses = validates or saves or number % settings.log_every == 0
            # Of many processes none may stop alone; they ask each other where they pause anyway.
            stop = (pauses or not parallel.are_many()) and parallel.agreed(asked() is not None)
            if pauses or stop:
                settle(waiting)
                waiting = None
            if not (validates or saves or stop):
                continue
            host = parallel.to_host(state)
            _, after = train_step(state, watch.probe)  # whose state is not wanted
            state = parallel.replicate(host)
            fault = watch.fault_of_state(host.params, after)
            if fault is None:
                judged = not validates or _validate(run, host.params, number, running)
                stop = stop or parallel.agreed(asked() is not None)
                if saves or stop:
                    keeper.save(number, host, _position(run, batches, running, watch, judged))
                    watch.kept = number
            elif last or fault_of(host.params):
                raise watch.diverged(number, f"which left {fault}")
            if stop:
                raise signals.ending(_parting(run, number, watch, fault))
    return host.params, running.best


def _position(
    run: _Run, batches: Any, running: _Progress, watch: Watch, judged: bool
) -> dict[str, Any]:
    """What a state is kept with, so that a stage goes on from it as if it had never ended."""
    return {
        "data": batches.get_state(),
        "workers": run.config.data.workers,
        "processes": parallel.process_share()[1],
        "devices": jax.device_count(),
        "best": running.best if np.isfinite(running.best) else None,
        "judged": judged,  # False where a validation is left to do
        "first_loss": watch.first,
    }


def _parting(run: _Run, step: int, watch: Watch, fault: str | None) -> str:
    """What a stage says when a signal ends it."""
    by = signals.asked()
    met = f"stopped by {by.name if by else 'a signal'} at step {step} of {run.settings.steps} of "
    met += run.stage.name
    if fault is None:
        return f"{met}, which is saved; the same command goes on from there"
    kept = f"step {watch.kept} is kept" if watch.kept else "nothing of the stage is kept"
    return f"{met}, which was not sound ({fault}); {kept}; the same command goes on from there"


def _validate(run: _Run, params: Params, step: int, running: _Progress) -> bool:
    """Judges parameters on the validation scenes, keeps them if they are the best so far.

    Returns:
      Whether it came to its end: a signal does not wait for one, which is to be done again.
    """
    stage, scenes = run.stage, run.data.validation
    try:
        with signals.heeded():
            merits = merit.judge(stage, params, scenes, run.config)
    except (signals.Stopped, KeyboardInterrupt):
        if signals.asked() is None:
            raise
        return False
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
    return True
