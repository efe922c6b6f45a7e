"""A whole training: data, stages, and the report at its end; resumable at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from deepsum_jax import files, signals
from deepsum_jax.bundle import Bundle, load_params
from deepsum_jax.config import ChangingGround, TrainConfig
from deepsum_jax.data.aligned import Agree, Align
from deepsum_jax.data.dataset import Dataset, prepare_dataset
from deepsum_jax.simulation.dataset import write_dataset
from deepsum_jax.systems.table import stages_of, system_of
from deepsum_jax.training import mending, parallel, workdir
from deepsum_jax.training.logbook import Logbook
from deepsum_jax.training.loop import run_stage
from deepsum_jax.training.owner import owned


def simulated_scenes(config: TrainConfig, folder: Path) -> Path:
    """The simulated scenes of a run without data, made once into its working directory."""
    place = workdir.own_data(folder)
    if (place / files.SUMS).exists():
        fault = files.fault_of_sums(place)
        if fault is not None:
            raise ValueError(
                f"{place}: is damaged ({fault}); remove it, and the same scenes are made anew"
            )
    if not place.exists():
        simulation = dataclasses.replace(config.simulation, scale=config.model.scale)
        changing = ChangingGround() if config.data.ground == "changing" else None
        with files.written_aside(place) as aside:
            write_dataset(aside, simulation, changing=changing)
            files.write_sums(aside)
    return place


def train(
    folder: Path,
    config: TrainConfig,
    data: Path | None = None,
    only: Sequence[str] = (),
    init: str | Path | None = None,
    progress: bool = True,
    report: bool = True,
) -> Bundle:
    """Trains a system, or goes on with a training that was interrupted.

    Args:
      folder: the working directory, where everything is kept. The same call on it resumes.
      config: all settings; its normalisation is replaced by the data's where it says so.
      data: scenes in the Kelvins layout; None simulates some into the working directory.
      only: names of the stages to run; default those of the run there, else all (with `init`,
        those whose parameters it lacks, and the last).
      init: a bundle or working directory whose parameters take the place of fresh ones, or
        "default", those that the package ships; default that which the run there started from.
      progress: show bars.
      report: score and draw the held-out scenes at the end.

    Returns:
      The best bundle.

    Raises:
      ValueError, FileNotFoundError: unusable data, configuration or working directory; another
        process that trains in it; a training that has diverged.
      signals.Stopped, KeyboardInterrupt: a signal asked to end; the same call goes on.
    """
    for stage in stages_of(config.model):
        parallel.check_batch(getattr(config, stage.name).batch_size, stage.name)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--workdir {folder}: is a file, expected a folder")
    owner = owned(folder) if parallel.is_first_process() else contextlib.nullcontext()
    with owner:
        return _train(folder, config, data, only, init, progress, report)


def _train(
    folder: Path,
    config: TrainConfig,
    data: Path | None,
    only: Sequence[str],
    init: str | Path | None,
    progress: bool,
    report: bool,
) -> Bundle:
    """`train` in a working directory that nobody else trains in."""
    if parallel.is_first_process():
        mending.sweep(folder)
        mending.mend(folder)
    workdir.check_config(folder, config)
    workdir.check_longer(folder, config)
    start = workdir.choose_start(folder, init, config.model)
    chosen = workdir.choose_stages(folder, config, only, start)
    if start is not None:
        print(f"init: {workdir.check_start(start, chosen, config)}")
    settings = config
    root = data if data is not None else simulated_scenes(config, folder)
    cache = folder / "cache" if config.data.cache else None
    dataset = prepare_dataset(
        root, config.model, config.data, cache, progress, _aligning(config), _agreeing(config)
    )
    first = parallel.is_first_process()
    workdir.keep_data(folder, root, dataset, first)
    if first:
        workdir.write_run(folder, settings, chosen, start)
    model = dataclasses.replace(config.model, normalization=dataset.normalization)
    config = dataclasses.replace(config, model=model)
    _tell(dataset, config)
    log = Logbook(folder, first)
    # Only now, behind whatever sets handlers of its own.
    with contextlib.closing(log), signals.heard():
        for stage in chosen:
            run_stage(stage, config, dataset, folder, log, start, progress)
    bundle = load_params(folder)
    if report and first and not bundle.missing_parts():
        _report(bundle, config, root, folder, progress)
    return bundle


def _aligning(config: TrainConfig) -> Align | None:
    """How the system takes stacks, if it has its own way."""
    align = system_of(config.model).align
    return None if align is None else lambda lr, masks: align(lr, masks, config.model)


def _agreeing(config: TrainConfig) -> Agree | None:
    """What tells the system what agrees, if it is to be told."""
    agree = system_of(config.model).agree
    if agree is None or not config.model.takes_agreement:
        return None
    return lambda lr, masks: agree(lr, masks, config.model)


def _tell(data: Dataset, config: TrainConfig) -> None:
    patches = sum(len(s.corners) for s in data.train)
    print(
        f"{len(data.train)} training and {len(data.validation)} validation scenes"
        f"{f' of band {data.band}' if data.band else ''}, {patches} patches; {parallel.describe()}"
    )
    for name, reason in data.skipped:
        print(f"skipped scene {name}: {reason}", file=sys.stderr)
    if data.skipped:
        print(f"{len(data.skipped)} scenes skipped", file=sys.stderr)


def _report(bundle: Bundle, config: TrainConfig, data: Path, folder: Path, progress: bool) -> None:
    """The table and the panel at the end: held-out scenes, beside the honest alternatives."""
    from deepsum_jax import figures
    from deepsum_jax.scoring.report import panel, report
    from deepsum_jax.scoring.scene import SceneScore
    from deepsum_jax.scoring.summary import evaluate

    shown: list[SceneScore] = []

    def each(score: SceneScore) -> None:
        if len(shown) < 4:
            shown.append(score)

    summary, _ = evaluate(
        bundle, data, "auto", progress=progress, each=each, compute=config.compute
    )
    files.write_signed(folder / "results.json", summary)
    print(f"\nheld-out scenes ({summary['split']}):")
    print(report(summary))
    figures.save(panel(shown), folder / "panel.png")
    print(f"\npanel: {folder / 'panel.png'}")
    print(f"use it: python -m deepsum_jax.predict --params {folder} --output sr.png SCENE_FOLDER")
