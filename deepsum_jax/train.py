"""Training from scenes to a parameter bundle, in three stages, resumable at any moment.

    python -m deepsum_jax.train --workdir DIR [--data DIR]

A working directory holds `config.json`, `data.json`, a folder per stage with `checkpoints/`, the
`best` and the `last` bundle, `metrics.jsonl`, `results.json` and `panel.png`.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from deepsum_jax import (
    cli,
    evaluate,
    figures,
    files,
    parallel,
    pipeline,
    prepare,
    simulate,
    stages,
    validate,
)
from deepsum_jax.checkpoint import (
    Bundle,
    BundleInfo,
    StateKeeper,
    load_params,
    save_params,
)
from deepsum_jax.config import PRESETS, StageConfig, TrainConfig, override, preset
from deepsum_jax.deepsum import Params
from deepsum_jax.logbook import Logbook
from deepsum_jax.predict import missing_parts
from deepsum_jax.stages import STAGES, Stage
from deepsum_jax.step import init_state

_FRESH_PARAMS, _BATCHES = 0, 1  # purposes of random numbers


def _key(config: TrainConfig, stage: Stage, purpose: int) -> jax.Array:
    """A key that depends on (seed, stage, purpose) alone."""
    key = jax.random.fold_in(jax.random.key(config.seed), stages.number(stage))
    return jax.random.fold_in(key, purpose)


def _data_seed(config: TrainConfig, stage: Stage) -> int:
    sequence = np.random.SeedSequence([config.seed, stages.number(stage), _BATCHES])
    return int(sequence.generate_state(1)[0] >> 1)


def starting_params(
    stage: Stage, config: TrainConfig, workdir: Path, init: Bundle | None
) -> Params:
    """Parameters before a stage's first step.

    Fresh ones, replaced by `init`'s where it has them, and those by what earlier stages of this
    run hand over.

    Raises:
      ValueError: parameters that do not fit, all named.
    """
    params = stages.fresh_params(stage, config.model, _key(config, stage, _FRESH_PARAMS))
    if init is not None:
        given = {k: v for k, v in init.params.items() if k in params}
        params = stages.hand_over(params, given, "--init")
    for earlier in STAGES[: stages.number(stage)]:
        best = workdir / earlier.name / "best"
        if not (workdir / earlier.name / "last" / "bundle.json").is_file():
            continue
        made = load_params(best if best.is_dir() else workdir / earlier.name / "last").params
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


def _bundle(
    params: Params,
    stage: Stage,
    step: int,
    config: TrainConfig,
    data: prepare.Dataset,
    cpsnr: float | None,
) -> Bundle:
    bands = sorted({s.band for s in (*data.train, *data.validation)})
    info = BundleInfo(
        bands=tuple(bands),
        reference=config.data.reference,
        stage=stage.name,
        step=step,
        seed=config.seed,
        data_fingerprint=data.fingerprint,
        train_scenes=tuple(f"{s.band}/{s.name}" for s in data.train),
        validation_scenes=tuple(f"{s.band}/{s.name}" for s in data.validation),
        validation_cpsnr=cpsnr,
    )
    return Bundle(params, config.model, info)


def run_stage(
    stage: Stage,
    config: TrainConfig,
    data: prepare.Dataset,
    workdir: Path,
    log: Logbook,
    init: Bundle | None = None,
    progress: bool = True,
) -> None:
    """Trains one stage to its end, from its newest checkpoint if it has one.

    Leaves `workdir/STAGE/best`, the bundle that did best on the validation scenes, and
    `workdir/STAGE/last`, which also marks the stage as done.
    """
    folder = workdir / stage.name
    if (folder / "last" / "bundle.json").is_file():
        print(f"{stage.name}: done before, kept")
        return
    settings: StageConfig = getattr(config, stage.name)
    patches = pipeline.Patches(data.train, config.model, config.data, stage.view)
    batches = pipeline.make_iterator(
        patches, settings.batch_size, _data_seed(config, stage), *parallel.process_share()
    )
    state = init_state(starting_params(stage, config, workdir, init), stage, config)
    keeper = StateKeeper(folder / "checkpoints")
    start, best = 0, float("-inf")
    restored = keeper.restore(state)
    if restored is not None:
        state, position = restored
        start, best = int(state.step), position["best"]
        best = float("-inf") if best is None else best
        if position.get("processes") != parallel.process_share()[1]:
            raise ValueError(
                f"{folder}: the checkpoint's position in the data was saved by "
                f"{position.get('processes', 'an unknown number of')} processes, and this is one "
                f"of {parallel.process_share()[1]}; resume with as many, or use another --workdir"
            )
        if position["workers"] != config.data.workers:
            raise ValueError(
                f"data.workers: found {config.data.workers}, but the checkpoint's position in the "
                f"data was saved with {position['workers']}; use that to resume"
            )
        batches.set_state(position["data"])
    log.rewind(stage.name, start, tuple(s.name for s in STAGES[stages.number(stage) + 1 :]))
    train_step = parallel.map_train_step(stage, config)
    state = parallel.replicate(state)
    bar = tqdm(
        total=settings.steps,
        initial=start,
        desc=stage.name,
        unit="step",
        disable=not progress,
        dynamic_ncols=True,
    )
    running = _Progress(stage, bar, log, best=best)
    for step in range(start + 1, settings.steps + 1):
        state, metrics = train_step(state, parallel.shard(next(batches)))
        last = step == settings.steps
        running.stepped(step, metrics, last or step % settings.log_every == 0)
        if last or step % settings.validate_every == 0:
            _validate(stage, state, step, config, data, folder, running)
        if last or step % settings.checkpoint_every == 0:
            position = {
                "data": batches.get_state(),
                "workers": config.data.workers,
                "processes": parallel.process_share()[1],
                "best": running.best if np.isfinite(running.best) else None,
            }
            keeper.save(step, state, position)
    bar.close()
    keeper.close()
    if parallel.is_first_process():
        cpsnr = running.best if stage.name != "regnet" and np.isfinite(running.best) else None
        params = parallel.to_host(state.params)
        save_params(folder / "last", _bundle(params, stage, settings.steps, config, data, cpsnr))


def _validate(
    stage: Stage,
    state: Any,
    step: int,
    config: TrainConfig,
    data: prepare.Dataset,
    folder: Path,
    running: _Progress,
) -> None:
    """Judges the state on the validation scenes, keeps it if it is the best so far."""
    params = parallel.to_host(state.params)
    merits = validate.validate(stage, params, data.validation, config)
    name, value = next(iter(merits.items()))
    running.log.scalars(stage.name, step, {f"validation_{k}": v for k, v in merits.items()})
    running.bar.write(f"{stage.name} step {step}: validation {name} {value:.4g}")
    if running.log.wants_images:
        pixels = validate.picture(stage, params, data.validation[0], config)
        if pixels is not None:
            running.log.image(stage.name, step, "validation", pixels)
    if value > running.best and parallel.is_first_process():
        cpsnr = value if name == "cpsnr" else None
        save_params(folder / "best", _bundle(params, stage, step, config, data, cpsnr))
    running.best = max(running.best, value)
    running.since = time.perf_counter()


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new and list(old if isinstance(old, (list, tuple)) else [old]) != list(
        new if isinstance(new, (list, tuple)) else [new]
    ):
        yield f"{path} is {old!r} there and {new!r} here"


def _same_or_raise(path: Path, now: dict[str, Any], what: str) -> None:
    """Writes `now` to a new file, or checks that an old one says the same."""
    if path.exists():
        differences = list(_differences(files.read_json(path), now))
        if differences:
            shown = "; ".join(differences[:3])
            raise ValueError(
                f"{path.parent}: belongs to another {what} ({shown}); use another --workdir"
            )
    elif parallel.is_first_process():
        files.write_json(path, now)


def simulated_scenes(config: TrainConfig, workdir: Path) -> Path:
    """The simulated scenes of a run without data, made once."""
    folder = workdir / "data"
    if not folder.exists():
        s = config.simulation
        simulation = simulate.SimulationConfig(
            lr_size=s.lr_size,
            scale=config.model.scale,
            min_frames=s.min_frames,
            max_frames=s.max_frames,
        )
        simulate.write_dataset(folder, simulation, s.scenes, s.test_scenes, s.seed)
    return folder


def _default_stages(config: TrainConfig, init: Bundle | None) -> tuple[Stage, ...]:
    """All stages with steps; with `init`, those whose parameters it lacks, and the last."""
    wanted = []
    plan = stages.plan(config.model)
    for stage in plan:
        supplied = init is not None and all(k in init.params for k in stage.trains)
        pretrained = init is not None and stage.name in init.params
        if stage is plan[-1] or not (supplied or pretrained):
            wanted.append(stage)
    return tuple(s for s in wanted if getattr(config, s.name).steps)


def train(
    workdir: Path,
    config: TrainConfig,
    data: Path | None = None,
    only: Sequence[str] = (),
    init: Path | None = None,
    progress: bool = True,
    report: bool = True,
) -> Bundle:
    """Trains a network, or goes on with a training that was interrupted.

    Args:
      workdir: where everything is kept. The same call on the same folder resumes.
      config: all settings; its normalisation is replaced by the data's where it says so.
      data: scenes in the Kelvins layout; None simulates some into the workdir.
      only: names of the stages to run; default all (with `init`, those whose parameters it lacks,
        and the last).
      init: a bundle or workdir whose parameters take the place of fresh ones.
      progress: show bars.
      report: score and draw the held-out scenes at the end.

    Returns:
      The best bundle.

    Raises:
      ValueError, FileNotFoundError: unusable data, configuration or workdir.
    """
    for stage in stages.plan(config.model):
        parallel.check_batch(getattr(config, stage.name).batch_size, stage.name)
    start = load_params(init) if init is not None else None
    chosen = (
        tuple(stages.stage(n, config.model) for n in only)
        if only
        else _default_stages(config, start)
    )
    chosen = tuple(s for s in stages.plan(config.model) if s in chosen)
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir {workdir}: is a file, expected a folder")
    settings = config.to_dict()
    if (workdir / "config.json").exists():
        _same_or_raise(workdir / "config.json", settings, "configuration")
    new = not workdir.exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        root = data if data is not None else simulated_scenes(config, workdir)
        cache = workdir / "cache" if config.data.cache else None
        dataset = prepare.prepare_dataset(root, config.model, config.data, cache, progress)
    except BaseException:  # Ctrl-C too: without config.json nothing could resume from this
        if new:
            shutil.rmtree(workdir, ignore_errors=True)
        raise
    _same_or_raise(workdir / "config.json", settings, "configuration")
    model = dataclasses.replace(config.model, normalization=dataset.normalization)
    config = dataclasses.replace(config, model=model)
    about = {
        "root": str(root.absolute()),
        "fingerprint": dataset.fingerprint,
        "band": dataset.band,
        "normalization": dataset.normalization.to_dict(),
        "train": [s.name for s in dataset.train],
        "validation": [s.name for s in dataset.validation],
        "skipped": [list(s) for s in dataset.skipped],
    }
    same = {k: v for k, v in about.items() if k != "root"}
    if (workdir / "data.json").exists():
        stored = files.read_json(workdir / "data.json")
        if {k: v for k, v in stored.items() if k != "root"} != same:
            raise ValueError(
                f"{workdir}: belongs to other data ({stored.get('root')}); use another --workdir"
            )
    files.write_json(workdir / "data.json", about)
    _tell(dataset, config)
    log = Logbook(workdir, parallel.is_first_process())
    for stage in chosen:
        run_stage(stage, config, dataset, workdir, log, start, progress)
    log.close()
    bundle = load_params(workdir)
    if report and parallel.is_first_process() and not missing_parts(bundle):
        _report(bundle, root, workdir, progress)
    return bundle


def _tell(data: prepare.Dataset, config: TrainConfig) -> None:
    patches = sum(len(s.corners) for s in data.train)
    print(
        f"{len(data.train)} training and {len(data.validation)} validation scenes"
        f"{f' of band {data.band}' if data.band else ''}, {patches} patches; {parallel.describe()}"
    )
    for name, reason in data.skipped:
        print(f"skipped scene {name}: {reason}", file=sys.stderr)
    if data.skipped:
        print(f"{len(data.skipped)} scenes skipped", file=sys.stderr)


def _report(bundle: Bundle, data: Path, workdir: Path, progress: bool) -> None:
    """The table and the panel at the end: held-out scenes, beside Bicubic+Mean."""
    shown: list[evaluate.SceneScore] = []

    def each(score: evaluate.SceneScore) -> None:
        if len(shown) < 4:
            shown.append(score)

    summary, _ = evaluate.evaluate(bundle, data, "auto", progress=progress, each=each)
    files.write_json(workdir / "results.json", summary)
    print(f"\nheld-out scenes ({summary['split']}):")
    print(evaluate.report(summary))
    figures.save(evaluate.panel(shown), workdir / "panel.png")
    print(f"\npanel: {workdir / 'panel.png'}")
    print(f"use it: python -m deepsum_jax.predict --params {workdir} --output sr.png SCENE_FOLDER")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = cli.parser(
        "python -m deepsum_jax.train",
        "Train DeepSUM in three stages: SISRNet, RegNet, then end to end.",
        """examples:
  train --workdir W                             a demo on simulated scenes, minutes on a CPU
  train --workdir W --data DIR                  the published training on your scenes
  train --workdir W                             goes on with W where it was
  train --workdir RED --data DIR --set data.band=RED --init NIR      RED from NIR
  train --workdir W --data DIR --set model.features=32 --set deepsum.steps=50000

DIR has the layout of the PROBA-V Kelvins challenge:
  norm.csv, {train,test}/BAND/SCENE/{LR000.png, QM000.png, …, HR.png, SM.png}""",
    )
    p.add_argument(
        "--workdir",
        required=True,
        type=Path,
        metavar="DIR",
        help="where everything is kept; an unfinished run there goes on",
    )
    p.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="scenes in the Kelvins layout (default: simulated ones)",
    )
    p.add_argument(
        "--preset",
        metavar="NAME",
        help=f"{', '.join(PRESETS)} (default: reference with --data, else demo)",
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        dest="assignments",
        help="override one setting; may be repeated",
    )
    p.add_argument(
        "--stages",
        metavar="NAME[,NAME…]",
        default="",
        help=f"run only these of {', '.join(s.name for s in STAGES)}",
    )
    p.add_argument(
        "--init",
        type=Path,
        metavar="DIR",
        help="start from another run's parameters, or an imported bundle",
    )
    p.add_argument(
        "--show-config", action="store_true", help="print every setting with its value, and stop"
    )
    return p


def _stored_root(workdir: Path) -> Path | None:
    """The data folder of an earlier run; None where it simulated its own."""
    path = workdir / "data.json"
    if not path.is_file():
        return None
    about = files.read_json(path)
    root = about.get("root") if isinstance(about, dict) else None
    if not isinstance(root, str):
        raise ValueError(f"{path}: found no root, expected the data folder of this training")  # noqa: TRY004
    return None if Path(root) == (workdir / "data").absolute() else Path(root)


def _settings(args: argparse.Namespace) -> tuple[TrainConfig, Path | None]:
    """The configuration and data that the arguments mean.

    A bare `--workdir` of an earlier run means that run's own.
    """
    stored = args.workdir / "config.json"
    if stored.is_file() and not (args.data or args.preset or args.assignments):
        try:
            config = TrainConfig.from_dict(files.read_json(stored))
        except ValueError as error:
            raise ValueError(f"{stored}: {error}") from None
        return config, _stored_root(args.workdir)
    config = preset(args.preset or ("reference" if args.data else "demo"))
    return override(config, args.assignments), args.data


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    config, data = _settings(args)
    if args.show_config:
        for line in _lines(config.to_dict()):
            print(line)
        return
    only = [name for name in args.stages.split(",") if name]
    parallel.use_cores([getattr(config, s.name).batch_size for s in stages.plan(config.model)])
    train(args.workdir, config, data, only, args.init)


def _lines(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value}"


if __name__ == "__main__":
    cli.run(main)
