"""--scale and --psf-sigma for systems without parameters, and backends that cannot start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import random_bundle, refuser

from deepsum_jax import Bundle, ModelConfig, cli, evaluate, predict, save_params, submit
from deepsum_jax.config import SimulationConfig
from deepsum_jax.predict import main
from deepsum_jax.simulation.dataset import write_dataset

Main = Callable[[Sequence[str]], None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of scale 2."""
    root = tmp_path_factory.mktemp("chosen") / "data"
    write_dataset(
        root,
        SimulationConfig(
            scenes=1, test_scenes=1, lr_size=16, scale=2, min_frames=3, max_frames=3, bands=("NIR",)
        ),
    )
    return root


def command(name: str, data: Path, output: Path) -> tuple[Main, list[Any]]:
    return {
        "predict": (main, ["--output", output / "o.npy", next((data / "train/NIR").iterdir())]),
        "evaluate": (evaluate.main, ["--data", data, "--split", "all"]),
        "submit": (submit.main, ["--data", data, "--partial", "--output", output / "o.zip"]),
    }[name]


@pytest.mark.parametrize("name", ["predict", "evaluate", "submit"])
def test_the_scale_and_the_sensor_of_a_system_without_parameters(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, arguments = command(name, data, tmp_path)
    asked = []

    def keep(bundle: Bundle, *_: Any, **__: Any) -> Any:
        asked.append(bundle.config)
        raise ValueError("far enough")

    place = "deepsum_jax.scoring.summary.check_predictor" if name == "evaluate" else None
    place = place or f"deepsum_jax.{name}.check_predictor"
    monkeypatch.setattr(place, keep)
    options = ["--system", "ibp", "--scale", "2", "--psf-sigma", "0.5"]
    with pytest.raises(ValueError, match="far enough"):
        run([*options, *map(str, arguments)])
    assert asked == [ModelConfig(system="ibp", scale=2, psf_sigma=0.5)]


def test_predict_and_evaluate_at_another_scale(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, arguments = command("predict", data, tmp_path)
    run(["--system", "bicubic_mean", "--scale", "2", *map(str, arguments)])
    assert np.load(tmp_path / "o.npy").shape == (32, 32)
    run, arguments = command("evaluate", data, tmp_path)
    message = refuser(capsys)(run, "--system", "bicubic_mean", *arguments)
    assert "--scale 2" in message
    run(["--system", "bicubic_mean", "--scale", "2", *map(str, arguments)])
    assert "split: all (2 scenes" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["predict", "evaluate", "submit"])
@pytest.mark.parametrize("option", [["--scale", "2"], ["--psf-sigma", "0.4"]])
def test_parameters_have_their_own(
    name: str, option: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_params(tmp_path / "b", random_bundle())
    run, arguments = command(name, data, tmp_path)
    message = refuser(capsys)(run, "--params", tmp_path / "b", *option, *arguments)
    assert f"{option[0]}: found {option[1]} for trained parameters" in message
    assert "--system" in message


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--scale", "9"], "--scale: found 9, expected 1 to 8"),
        (["--psf-sigma", "0"], "--psf-sigma: found 0.0, expected above 0, at most 2"),
        (["--psf-sigma", "nan"], "--psf-sigma: found nan"),
    ],
)
def test_settings_out_of_range(
    option: list[str], words: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, arguments = command("predict", data, tmp_path)
    assert words in refuser(capsys)(run, "--system", "ibp", *option, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "--system", "bicubic_mean", "--output", "o.npy", "s.npy"],
        ["evaluate", "--system", "ibp", "--data", "."],
        ["train", "--workdir", "w", "--preset", "tiny"],
        ["check", "s.zip"],
    ],
)
def test_a_backend_that_there_is_not(arguments: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.full((2, 8, 8), 7000))
    environment = {**os.environ, "JAX_PLATFORMS": "nonsense"}
    done = subprocess.run(
        [sys.executable, "-m", "deepsum_jax", *arguments],
        capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: JAX_PLATFORMS=nonsense: JAX cannot start")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.npy"]


def test_a_backend_that_fails_later(capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> None:
        raise RuntimeError("Unable to initialize backend 'cuda': \n no driver")

    with pytest.raises(SystemExit) as stopped:
        cli.run(failing)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "JAX cannot start" in line and "no driver" in line


def test_predict_as_a_function_is_not_touched() -> None:
    assert predict(Bundle({}, ModelConfig(system="ibp", scale=2)), np.ones((2, 8, 8))).shape == (
        16, 16,
    )  # fmt: skip
