"""A training's directory: the same run goes on, what may change, and what it started from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from helpers import contents

from deepsum_jax import Bundle, ModelConfig, files, pretrained, save_params, train
from deepsum_jax.bundle import BundleInfo, params_digest
from deepsum_jax.config import SimulationConfig, TrainConfig, override, preset
from deepsum_jax.data import kelvins
from deepsum_jax.simulation.dataset import write_dataset
from deepsum_jax.systems.system import Stage
from deepsum_jax.systems.table import init_params
from deepsum_jax.training import loop, parallel, stages, workdir
from deepsum_jax.training import run as training_run

TINY = preset("tiny")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes") / "data"
    write_dataset(root, dataclasses.replace(TINY.simulation, scale=TINY.model.scale))
    return root


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What stages have run, each with the digest of what it started from; none really trains."""
    seen: list[tuple[str, str]] = []

    def run_stage(
        stage: Stage, config: TrainConfig, data: Any, folder: Path, log: Any, start: Any, *_: Any
    ) -> None:
        seen.append((stage.name, "" if start is None else start.digest))
        params = stages.fresh_params(stage, config.model, jax.random.key(0))
        steps = getattr(config, stage.name).steps
        info = BundleInfo(stage=stage.name, step=steps)
        save_params(folder / stage.name / "last", Bundle(params, config.model, info))

    monkeypatch.setattr(training_run, "run_stage", run_stage)
    monkeypatch.setattr(training_run, "_report", lambda *_: None)
    return seen


def start_bundle(path: Path, seed: int = 0, **changes: Any) -> Path:
    model = dataclasses.replace(TINY.model, **changes)
    save_params(path, Bundle(init_params(model, jax.random.key(seed)), model))
    return path


def run(*arguments: Any) -> None:
    train.main([str(a) for a in arguments])


# --- the same run goes on


def test_bare_resume_keeps_its_stages(
    scenes: Path, tmp_path: Path, ran: list[tuple[str, str]]
) -> None:
    """It once planned all stages, and forgot what the later ones had logged."""
    run("--workdir", tmp_path / "w", "--data", scenes, "--preset", "tiny", "--stages", "regnet")
    run("--workdir", tmp_path / "w")
    assert ran == [("regnet", ""), ("regnet", "")]
    # A further stage is added to them, and stays.
    run("--workdir", tmp_path / "w", "--stages", "deepsum")
    run("--workdir", tmp_path / "w")
    assert [name for name, _ in ran[2:]] == ["regnet", "deepsum"] * 2
    with pytest.raises(ValueError, match="--stages sisrnet: deepsum, which builds on it, has begu"):
        run("--workdir", tmp_path / "w", "--stages", "sisrnet")


def test_bare_resume_keeps_its_start(
    scenes: Path, tmp_path: Path, ran: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = start_bundle(tmp_path / "start")
    monkeypatch.chdir(tmp_path)
    run("--workdir", "w", "--data", scenes, "--preset", "tiny", "--init", "start")
    expected = [("deepsum", params_digest(start))]  # all else is there already
    assert ran == expected
    stored = files.read_json(tmp_path / "w" / "run.json")
    assert stored == {
        "stages": ["deepsum"],
        "init": {"path": str(start), "digest": params_digest(start)},
    }
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run("--workdir", tmp_path / "w")
    assert ran == 2 * expected
    # Moved, it has to be named; the digest says that it is the same.
    start.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"start: no such folder.*by --init"):
        run("--workdir", tmp_path / "w")
    run("--workdir", tmp_path / "w", "--init", tmp_path / "moved")
    run("--workdir", tmp_path / "w")
    assert ran == 4 * expected


def test_another_start_is_refused(scenes: Path, tmp_path: Path, ran: list[Any]) -> None:
    one, other = start_bundle(tmp_path / "one"), start_bundle(tmp_path / "other", seed=1)
    command = ["--data", scenes, "--preset", "tiny"]
    run("--workdir", tmp_path / "w", *command, "--init", one)
    run("--workdir", tmp_path / "fresh", *command)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"other: found other parameters than those that the run"):
        run("--workdir", tmp_path / "w", "--init", other)
    with pytest.raises(ValueError, match=r"one: the run in .*fresh started from fresh parameters"):
        run("--workdir", tmp_path / "fresh", "--init", one)
    assert contents(tmp_path) == before


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the package ships: DeepSUM for scale 3, SISR for scale 2."""
    start_bundle(tmp_path / "shipped" / "x3")
    start_bundle(tmp_path / "shipped" / "x2", scale=2, system="sisr")
    monkeypatch.setattr(pretrained, "PLACE", tmp_path / "shipped")
    return tmp_path / "shipped"


def test_start_from_what_the_package_ships(
    scenes: Path, tmp_path: Path, ran: list[tuple[str, str]], shipped: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Kept by its name and digest, so that the run goes on wherever the package is installed."""
    run("--workdir", tmp_path / "w", "--data", scenes, "--preset", "tiny", "--init", "default")
    assert "init: sisrnet, regnet, fusionnet from default\n" in capsys.readouterr().out
    digest = params_digest(shipped / "x3")
    init = files.read_json(tmp_path / "w" / "run.json")["init"]
    assert init == {"path": "default", "digest": digest}
    shipped.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(pretrained, "PLACE", tmp_path / "elsewhere")
    start_bundle(tmp_path / "default", seed=1)  # a folder of that name is another thing
    monkeypatch.chdir(tmp_path)
    run("--workdir", tmp_path / "w")
    run("--workdir", tmp_path / "w", "--init", "default")
    assert ran == 3 * [("deepsum", digest)]
    assert files.read_json(tmp_path / "w" / "run.json")["init"] == init
    with pytest.raises(ValueError, match=r"--init default: found other parameters than"):
        run("--workdir", tmp_path / "w", "--init", "./default")
    # A later version of the package may ship others.
    start_bundle(tmp_path / "elsewhere" / "x3", seed=2)
    with pytest.raises(ValueError, match=r"--init default: .*; use .* or the version of the pack"):
        run("--workdir", tmp_path / "w")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["model.scale=2"],
            "--init default: found model.system=deepsum, expected sisr, which the package ships; "
            "add --set model.system=sisr",
        ),
        (
            ["model.system=sisr"],
            "--init default: found model.system=sisr, expected deepsum, which the package ships; "
            "add --set model.system=deepsum",
        ),
        (
            ["model.scale=4"],
            "--init default: model.scale: found 4, expected 2 or 3, which the package ships",
        ),
    ],
)
def test_what_is_shipped_must_be_of_the_system_and_scale(
    settings: list[str], words: str, tmp_path: Path, ran: list[Any], shipped: Path
) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    command = ["--workdir", tmp_path / "w", "--preset", "tiny", "--init", "default", *options]
    with pytest.raises(ValueError) as caught:
        run(*command)
    assert str(caught.value) == words
    assert not (tmp_path / "w").exists() and not ran


def test_start_where_nothing_is_shipped(
    tmp_path: Path, ran: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "PLACE", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"^default: found no parameters in the package"):
        run("--workdir", tmp_path / "w", "--preset", "tiny", "--init", "default")
    assert not (tmp_path / "w").exists()


def test_workdir_of_an_earlier_version(scenes: Path, tmp_path: Path, ran: list[Any]) -> None:
    """It has no run.json: stages that it went without are not made up for."""
    run("--workdir", tmp_path / "w", "--data", scenes, "--preset", "tiny", "--stages", "deepsum")
    (tmp_path / "w" / "run.json").unlink()
    stored = files.read_json(tmp_path / "w" / "config.json")
    computed = stored.pop("compute")
    stored["model"] = {**stored["model"], **computed}
    files.write_json(tmp_path / "w" / "config.json", {**stored, "preset": "tiny"})
    ran.clear()
    run("--workdir", tmp_path / "w")
    assert ran == [("deepsum", "")]
    assert files.read_json(tmp_path / "w" / "run.json")["stages"] == ["deepsum"]


def test_moved_workdir_goes_on(tmp_path: Path, ran: list[tuple[str, str]]) -> None:
    """Its own scenes lie in it, wherever it lies; other data stays where it was."""
    run("--workdir", tmp_path / "w", "--preset", "tiny")
    first, scenes = list(ran), contents(tmp_path / "w" / "data")
    assert files.read_json(tmp_path / "w" / "data.json")["root"] == "data"
    (tmp_path / "w").rename(tmp_path / "moved")
    run("--workdir", tmp_path / "moved")
    assert ran == 2 * first and contents(tmp_path / "moved" / "data") == scenes
    assert workdir.stored_root(tmp_path / "moved") is None
    # An earlier version kept the whole path, of where it was.
    about = files.read_json(tmp_path / "moved" / "data.json")
    files.write_json(tmp_path / "moved" / "data.json", {**about, "root": str(tmp_path / "w/data")})
    run("--workdir", tmp_path / "moved")
    assert ran == 3 * first
    assert not (tmp_path / "w").exists()
    run("--workdir", tmp_path / "other", "--data", tmp_path / "moved" / "data", "--preset", "tiny")
    assert workdir.stored_root(tmp_path / "other") == tmp_path / "moved" / "data"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"stages": 3}'])
def test_damaged_run_is_named(scenes: Path, tmp_path: Path, text: str, ran: list[Any]) -> None:
    run("--workdir", tmp_path / "w", "--data", scenes, "--preset", "tiny", "--stages", "sisrnet")
    (tmp_path / "w" / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json"):
        run("--workdir", tmp_path / "w")


# --- what a start has


def test_start_of_another_system_says_what_fits(
    scenes: Path, tmp_path: Path, ran: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    start = start_bundle(tmp_path / "sisr", system="sisr")
    run("--workdir", tmp_path / "w", "--data", scenes, "--preset", "tiny", "--init", start)
    told = capsys.readouterr().out
    assert f"init: sisrnet from {start}; regnet, fusionnet fresh; its sisr_head not used\n" in told
    assert [name for name, _ in ran] == ["regnet", "deepsum"]


def test_start_of_which_nothing_fits_is_refused(
    scenes: Path, tmp_path: Path, ran: list[Any]
) -> None:
    start = start_bundle(tmp_path / "duf", system="duf")
    with pytest.raises(ValueError) as caught:
        run("--workdir", tmp_path / "w", "--data", scenes, "--preset", "tiny", "--init", start)
    assert str(caught.value) == (
        f"--init {start}: found DUF's duf, expected some of sisrnet, sisr_head, regnet, "
        "fusionnet, which DeepSUM trains"
    )
    assert not (tmp_path / "w").exists() and not ran


# --- settings


def checked(tmp_path: Path, before: Sequence[str], after: Sequence[str]) -> None:
    """A run that lives in `tmp_path` with one configuration is gone on with another."""
    files.write_json(tmp_path / "config.json", override(TINY, before).to_dict())
    workdir.check_config(tmp_path, override(TINY, after))


@pytest.mark.parametrize(
    "change",
    [
        *[f"{stage}.{field}=7" for stage in stages.NAMES
          for field in ("log_every", "validate_every", "checkpoint_every", "steps")],
        "compute.backend=plain",
        "compute.rematerialize=true",
        "data.cache=false",
    ],
)  # fmt: skip
def test_what_may_change(change: str, tmp_path: Path) -> None:
    checked(tmp_path, [], [change])


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ([], ["deepsum.steps=3"], "deepsum.steps is 4 there and 3 here"),
        (["regnet.schedule=cosine"], ["regnet.schedule=cosine", "regnet.steps=7"], "regnet.steps"),
        (["regnet.schedule=cosine"], ["regnet.steps=7"], "regnet.s"),
        ([], ["regnet.schedule=cosine", "regnet.steps=7"], "regnet.s"),
        ([], ["compute.dtype=bfloat16"], "compute.dtype is 'float32' there and 'bfloat16' here"),
        ([], ["compute.param_dtype=float64"], "compute.param_dtype"),
        ([], ["compute.precision=default"], "compute.precision"),
        ([], ["model.features=5"], "model.features is 4 there and 5 here"),
        ([], ["model.options.search=7"], "model.options.search is None there and 7 here"),
        ([], ["seed=1"], "seed is 0 there and 1 here"),
        ([], ["sisrnet.learning_rate=1e-4"], "sisrnet.learning_rate"),
        ([], ["sisrnet.batch_size=8"], "sisrnet.batch_size"),
        ([], ["sisrnet.warmup_steps=1"], "sisrnet.warmup_steps"),
        ([], ["data.workers=1"], "data.workers"),
        ([], ["simulation.change=0.3"], "simulation.change"),
    ],
)
def test_what_may_not_change(
    before: list[str], after: list[str], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"belongs to another configuration \(.*{named}"):
        checked(tmp_path, before, after)


def test_changes_are_kept_and_set_on_top(scenes: Path, tmp_path: Path, ran: list[Any]) -> None:
    """`--set` alone changes the run that lives there, and the next bare command knows."""
    run("--workdir", tmp_path / "w", "--data", scenes, "--preset", "tiny", "--set", "seed=3")
    run("--workdir", tmp_path / "w", "--set", "deepsum.steps=9", "--set", "regnet.log_every=2")
    found = workdir.read_config(tmp_path / "w")
    assert found == override(TINY, ["seed=3", "deepsum.steps=9", "regnet.log_every=2"])
    run("--workdir", tmp_path / "w")
    assert len(ran) == 9 and workdir.read_config(tmp_path / "w") == found
    with pytest.raises(ValueError, match="seed is 3 there and 4 here"):
        run("--workdir", tmp_path / "w", "--set", "seed=4")


def test_more_steps_of_what_others_build_on(scenes: Path, tmp_path: Path, ran: list[Any]) -> None:
    """They are refused before anything is written: the run itself still goes on."""
    run("--workdir", tmp_path / "w", "--data", scenes, "--preset", "tiny")
    before = contents(tmp_path / "w")
    with pytest.raises(ValueError, match=r"sisrnet.steps: ended after 4 steps, and regnet"):
        run("--workdir", tmp_path / "w", "--set", "sisrnet.steps=9")
    assert contents(tmp_path / "w") == before
    run("--workdir", tmp_path / "w")
    run("--workdir", tmp_path / "w", "--set", "deepsum.steps=9")


def test_another_number_of_devices_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only rounding differs, so it is allowed; bit equality is promised on as many alone."""
    position = {"data": {"at": 3}, "workers": 0, "processes": 1, "best": 40.0}
    state = SimpleNamespace(step=2)
    stage = stages.stage("regnet", TINY.model)

    def resumed(**changes: Any) -> tuple[Any, Any, Any]:
        keeper: Any = SimpleNamespace(restore=lambda like: (state, {**position, **changes}))
        seen: list[Any] = []
        batches = SimpleNamespace(set_state=seen.append)
        data: Any = None
        place = loop._Run(stage, TINY, data, tmp_path, None)
        fresh: Any = None
        return (*loop._resume(place, keeper, fresh, batches), seen)

    devices = jax.device_count()
    assert resumed(devices=devices) == (state, {**position, "devices": devices}, [{"at": 3}])
    assert resumed() == (state, position, [{"at": 3}])  # of an earlier version
    assert capsys.readouterr().err == ""
    assert resumed(devices=devices + 1)[0] is state
    told = capsys.readouterr().err
    assert f"regnet goes on with {devices} devices, it had {devices + 1}" in told
    assert "rounded in another order" in told
    with pytest.raises(ValueError, match=r"saved by 2 processes"):
        resumed(processes=2)
    with pytest.raises(ValueError, match=r"data.workers: found 0, but .* saved with 1"):
        resumed(workers=1)
    assert parallel.process_share() == (0, 1)


def test_a_stage_takes_from_earlier_ones_alone(tmp_path: Path) -> None:
    """A RegNet that is made once more must not see what the end of the training made of SISRNet."""
    for seed, name in ((1, "sisrnet"), (2, "deepsum")):
        start_bundle(tmp_path / name / "last", seed=seed)
    regnet = stages.stage("regnet", TINY.model)
    found = loop.starting_params(regnet, TINY, tmp_path, None)["sisrnet"]["conv0"]["kernel"]
    for seed, same in ((1, True), (2, False)):
        other = init_params(TINY.model, jax.random.key(seed))["sisrnet"]["conv0"]["kernel"]
        assert (found == other).all() == same


def test_parent_is_the_start(tmp_path: Path) -> None:
    start = workdir.load_start(start_bundle(tmp_path / "start"))
    data: Any = SimpleNamespace(train=(), validation=(), fingerprint="")
    stage = stages.stage("deepsum", TINY.model)
    for given, parent in ((start, params_digest(tmp_path / "start")), (None, "")):
        place = loop._Run(stage, TINY, data, tmp_path, given)
        assert place.bundle({}, 3, None).info.parent == parent


@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_settings_of_the_run_are_json(
    name: str, scenes: Path, tmp_path: Path, ran: list[Any]
) -> None:
    run("--workdir", tmp_path / "w", "--data", scenes, "--preset", "tiny", "--stages", "sisrnet")
    stored = files.read_json(tmp_path / "w" / name)
    if name == "config.json":
        assert TrainConfig.from_dict(stored) == TINY
    else:
        assert stored["root"] == str(scenes) and len(stored["train"]) == 2


def test_own_scenes_have_the_models_scale(tmp_path: Path) -> None:
    config = dataclasses.replace(
        TINY,
        model=dataclasses.replace(TINY.model, scale=2),
        simulation=SimulationConfig(
            scenes=2, test_scenes=1, lr_size=16, min_frames=3, max_frames=3
        ),
    )
    root = training_run.simulated_scenes(config, tmp_path)
    assert kelvins.read_png16(next(root.rglob("HR.png"))).shape == (32, 32)
    assert ModelConfig().scale == SimulationConfig().scale == 3


def test_start_of_other_shapes_is_refused_before_anything_is_written(
    scenes: Path, tmp_path: Path, ran: list[Any]
) -> None:
    wider = start_bundle(tmp_path / "wider", features=6)
    with pytest.raises(ValueError, match=r"--init do not fit: .*sisrnet/conv0/kernel has shape"):
        run("--workdir", tmp_path / "w", "--data", scenes, "--preset", "tiny", "--init", wider)
    assert not (tmp_path / "w").exists()
