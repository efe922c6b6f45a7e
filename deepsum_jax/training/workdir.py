"""A training's working directory: what run lives in it, and whether this call may go on with it.

It holds `config.json` (all settings), `run.json` (stages, and what training started from),
`data.json`, a folder per stage with `checkpoints/`, the `best` and the `last` bundle,
`metrics.jsonl`, `results.json` and `panel.png`. All but the picture carry digests.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deepsum_jax import files, pretrained
from deepsum_jax.bundle import Bundle, load_params, params_digest, read_step
from deepsum_jax.config import ModelConfig, TrainConfig
from deepsum_jax.data.dataset import Dataset
from deepsum_jax.systems.system import Stage
from deepsum_jax.systems.table import param_shapes, stages_of, system_of
from deepsum_jax.training import stages

_OFTEN = ("log", "validate", "checkpoint")
MAY_CHANGE = (
    "compute.backend",
    "compute.rematerialize",
    "compute.self_ensemble",
    "data.cache",
    *(f"{stage}.{often}_every" for stage in stages.NAMES for often in _OFTEN),
    *(f"{stage}.max_{limit}" for stage in stages.NAMES for limit in ("rise", "unsound")),
)
"""Settings that a run may resume with other values of: none of them changes what a step does.
A stage of constant learning rate may also get more steps; and one that is under way a lower rate,
with which it goes on from its newest state, as after it has diverged."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Parameters that a training starts from (`--init`)."""

    path: str | Path  # `pretrained.DEFAULT` for the shipped parameters, wherever they lie
    bundle: Bundle
    digest: str


def load_start(path: str | Path, model: ModelConfig = ModelConfig()) -> Start:
    """What `--init` names; of the shipped parameters those of the model's scale.

    Raises:
      ValueError, FileNotFoundError: as `load_params`; shipped parameters of another system.
    """
    if not pretrained.is_default(path):
        return Start(path, load_params(path), params_digest(path))
    folder = pretrained.shipped(model.scale, f"--init {path}: model.scale")
    bundle = load_params(folder)
    if bundle.config.system != model.system:
        raise ValueError(
            f"--init {path}: found model.system={model.system}, expected {bundle.config.system}, "
            f"which the package ships; add --set model.system={bundle.config.system}"
        )
    return Start(path, bundle, params_digest(folder))


# --- settings -------------------------------------------------------------------------------------


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new and list(old if isinstance(old, (list, tuple)) else [old]) != list(
        new if isinstance(new, (list, tuple)) else [new]
    ):
        yield path, old, new


def read_config(workdir: Path) -> TrainConfig | None:
    """The settings of the run that lives there; None where none does.

    Raises:
      ValueError: a damaged file, or settings of another version.
    """
    stored = workdir / "config.json"
    if not stored.is_file():
        return None
    try:
        return TrainConfig.from_dict(files.read_json(stored))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(stored)) else f"{stored}: {text}") from None


def _longer(old: TrainConfig, new: TrainConfig, path: str) -> bool:
    """Whether a setting is the steps of a stage that may go on for longer."""
    name, _, field = path.partition(".")
    if name not in stages.NAMES or field != "steps":
        return False
    before, after = getattr(old, name), getattr(new, name)
    return bool(before.schedule == after.schedule == "constant" and before.steps < after.steps)


def _lower(workdir: Path, old: TrainConfig, new: TrainConfig, path: str) -> bool:
    """Whether a setting is the rate of a stage under way that shall go on with a lower one."""
    name, _, field = path.partition(".")
    if name not in stages.NAMES or field != "learning_rate":
        return False
    lower = getattr(new, name).learning_rate < getattr(old, name).learning_rate
    return lower and has_begun(workdir, name) and ended_after(workdir, name) < 0


def check_config(workdir: Path, config: TrainConfig) -> None:
    """Raises ValueError where the run that lives there has other settings, but for those that may
    change."""
    old = read_config(workdir)
    if old is None:
        return
    differences = [
        f"{path} is {was!r} there and {now!r} here"
        for path, was, now in _differences(old.to_dict(), config.to_dict())
        if path not in MAY_CHANGE
        and not _longer(old, config, path)
        and not _lower(workdir, old, config, path)
    ]
    if differences:
        raise ValueError(
            f"{workdir}: belongs to another configuration ({'; '.join(differences[:3])}); use "
            "another --workdir. What may change: how often is logged, validated and saved, what is "
            "unsound, compute.backend, compute.rematerialize, compute.self_ensemble, more steps at "
            "a constant rate, and a lower rate of a stage that is under way"
        )


# --- stages and start -----------------------------------------------------------------------------


def _read_run(workdir: Path) -> dict[str, Any]:
    path = workdir / "run.json"
    if not path.is_file():
        return {}
    run = files.read_json(path)
    names = run.get("stages") if isinstance(run, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: found no list of stages, expected what this run consists of")
    init = run.get("init")
    told = [init.get(key) for key in ("path", "digest")] if isinstance(init, dict) else [None]
    if init is not None and not all(isinstance(one, str) for one in told):
        raise ValueError(f"{path}: found no path and digest, expected what this run started from")
    return run


def choose_start(workdir: Path, init: str | Path | None, model: ModelConfig) -> Start | None:
    """What the run starts from: what `--init` names, or what the run there started from.

    Raises:
      ValueError, FileNotFoundError: another start than that of the run, or one that is gone.
    """
    run = _read_run(workdir)
    stored = run.get("init")
    if not run:
        return None if init is None else load_start(init, model)
    if stored is None:
        if init is not None:
            raise ValueError(
                f"--init {init}: the run in {workdir} started from fresh parameters; use another "
                "--workdir"
            )
        return None
    path = pretrained.place(stored["path"]) if init is None else init
    if isinstance(path, Path) and not path.exists():
        raise FileNotFoundError(
            f"{path}: no such folder, expected the parameters that the run in {workdir} started "
            "from; name their new place by --init"
        )
    start = load_start(path, model)
    if start.digest != stored["digest"]:
        shipped = pretrained.is_default(path)
        version = " or the version of the package that it began with" if shipped else ""
        raise ValueError(
            f"--init {path}: found other parameters than those that the run in {workdir} started "
            f"from; use another --workdir{version}"
        )
    return start


def _needed(config: TrainConfig, start: Start | None) -> list[str]:
    """All stages with steps; with a start, those whose parameters it lacks, and the last."""
    plan, wanted = stages_of(config.model), []
    given = {} if start is None else start.bundle.params
    for stage in plan:
        supplied = bool(given) and all(name in given for name in stage.trains)
        pretrained = stage.name in given
        if stage is plan[-1] or not (supplied or pretrained):
            wanted.append(stage.name)
    return [name for name in wanted if getattr(config, name).steps]


def has_begun(workdir: Path, stage: str) -> bool:
    """Whether a stage has states or parameters of its own."""
    return (workdir / stage).is_dir() and any((workdir / stage).iterdir())


def ended_after(workdir: Path, stage: str) -> int:
    """The steps after which a stage has ended; −1 where it has not."""
    last = workdir / stage / "last"
    return read_step(last) if (last / "bundle.json").is_file() else -1


def check_longer(workdir: Path, config: TrainConfig) -> None:
    """Raises ValueError where a stage that has ended shall go on, and one that builds on it has
    begun."""
    plan = stages_of(config.model)
    for n, stage in enumerate(plan):
        steps = ended_after(workdir, stage.name)
        if not 0 <= steps < getattr(config, stage.name).steps:
            continue
        for later in plan[n + 1 :]:
            if has_begun(workdir, later.name):
                raise ValueError(
                    f"{stage.name}.steps: ended after {steps} steps, and {later.name}, which "
                    "builds on it, has begun; use another --workdir for more"
                )


def choose_stages(
    workdir: Path, config: TrainConfig, only: Sequence[str], start: Start | None
) -> tuple[Stage, ...]:
    """The stages of the run: those asked for, those that it has had, or all that are needed.

    Raises:
      ValueError: an unknown stage, or one before a stage that has begun.
    """
    plan = stages_of(config.model)
    asked = [stages.stage(name, config.model).name for name in only]
    had = list(_read_run(workdir).get("stages", ()))
    chosen = {*had, *asked} or set(_needed(config, start))
    begun = [n for n, stage in enumerate(plan) if has_begun(workdir, stage.name)]
    if begun and not had:  # a run of an earlier version, which kept no list
        chosen -= {s.name for n, s in enumerate(plan) if n < begun[-1] and n not in begun}
    for n, stage in enumerate(plan):
        if stage.name in asked and stage.name not in had and begun and n < begun[-1]:
            raise ValueError(
                f"--stages {stage.name}: {plan[begun[-1]].name}, which builds on it, has begun in "
                f"{workdir}; use another --workdir"
            )
    return tuple(stage for stage in plan if stage.name in chosen)


def check_start(start: Start, chosen: Sequence[Stage], config: TrainConfig) -> str:
    """What of a start fits the stages, in words.

    Raises:
      ValueError: nothing does, or parameters of other shapes, all named.
    """
    wanted = list(dict.fromkeys(name for s in chosen for name in (*s.trains, *s.uses)))
    fitting = [name for name in wanted if name in start.bundle.params]
    theirs = system_of(start.bundle.config).label
    if not fitting:
        raise ValueError(
            f"--init {start.path}: found {theirs}'s {', '.join(start.bundle.params) or 'nothing'}, "
            f"expected some of {', '.join(wanted)}, which {system_of(config.model).label} trains"
        )
    shapes = {
        **system_of(config.model).stage_shapes(config.model),
        **param_shapes(config.model),
    }
    stages.hand_over(
        {name: shapes[name] for name in fitting},
        {name: start.bundle.params[name] for name in fitting},
        "--init",
    )
    fresh = [name for name in wanted if name not in fitting]
    unused = [name for name in start.bundle.params if name not in fitting]
    parts = [f"{', '.join(fitting)} from {start.path}"]
    parts += [f"{', '.join(fresh)} fresh"] if fresh else []
    parts += [f"its {', '.join(unused)} not used"] if unused else []
    return "; ".join(parts)


def write_run(
    workdir: Path, config: TrainConfig, chosen: Sequence[Stage], start: Start | None
) -> None:
    """Keeps what the run is, so that a bare `--workdir` goes on with it."""
    files.write_signed(workdir / "config.json", config.to_dict())
    init = None
    if start is not None:
        shipped = pretrained.is_default(start.path)
        path = start.path if shipped else os.path.abspath(start.path)
        init = {"path": path, "digest": start.digest}
    files.write_signed(workdir / "run.json", {"stages": [s.name for s in chosen], "init": init})


# --- data -----------------------------------------------------------------------------------------

_OWN_DATA = "data"  # scenes that the run has simulated into its directory


def own_data(workdir: Path) -> Path:
    return workdir / _OWN_DATA


def stored_root(workdir: Path) -> Path | None:
    """The data folder of an earlier run; None where it simulated its own, wherever that lies now.

    Raises:
      ValueError: a damaged file.
    """
    path = workdir / "data.json"
    if not path.is_file():
        return None
    about = files.read_json(path)
    root = about.get("root") if isinstance(about, dict) else None
    if not isinstance(root, str):
        raise ValueError(f"{path}: found no root, expected the data folder of this training")  # noqa: TRY004
    inside = root == _OWN_DATA or Path(root) == own_data(workdir).absolute()
    moved = not Path(root).exists() and own_data(workdir).is_dir()
    return None if inside or moved else Path(root)


def keep_data(workdir: Path, root: Path, dataset: Dataset, write: bool) -> None:
    """Keeps what the run is trained on, or checks that it is the same.

    Raises:
      ValueError: other data than the run's.
    """
    own = root.absolute() == own_data(workdir).absolute()
    about = {
        "root": _OWN_DATA if own else str(root.absolute()),
        "fingerprint": dataset.fingerprint,
        "band": dataset.band,
        "normalization": dataset.normalization.to_dict(),
        "train": [s.name for s in dataset.train],
        "validation": [s.name for s in dataset.validation],
        "skipped": [list(s) for s in dataset.skipped],
    }
    path = workdir / "data.json"
    if path.exists():
        stored = files.read_json(path)
        same = isinstance(stored, dict) and all(
            stored.get(k) == v for k, v in about.items() if k != "root"
        )
        if not same:
            root_there = stored.get("root") if isinstance(stored, dict) else None
            raise ValueError(
                f"{workdir}: belongs to other data ({root_there}); use another --workdir"
            )
    if write:
        files.write_signed(path, about)
