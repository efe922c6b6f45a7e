"""Shipped parameters: found by scale, called "default", the choice of commands that name none.

Stand-ins lie elsewhere, so that the tests hold whatever the package ships.
"""

from __future__ import annotations

import dataclasses
import glob
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import random_bundle, refuser

import deepsum_jax
from deepsum_jax import Bundle, ModelConfig, evaluate, load_params, pretrained, save_params, submit
from deepsum_jax.bundle import find_bundle, params_digest
from deepsum_jax.config import SimulationConfig
from deepsum_jax.predict import main, predict
from deepsum_jax.sample import sample_stack
from deepsum_jax.simulation.dataset import write_dataset

PACKAGE = Path(deepsum_jax.__file__).parent
ROOT = PACKAGE.parent
STAND_IN = ModelConfig(system="ibp")
LINE = "using the parameters that the package ships (ibp, scale {})\n"
COMMANDS = ("predict", "evaluate", "submit")


def ship(folder: Path, *scales: int) -> Path:
    """Stand-ins for what is shipped; `folder` becomes their place."""
    for scale in scales:
        config = dataclasses.replace(STAND_IN, scale=scale, psf_sigma=scale / 10)
        save_params(folder / f"x{scale}", Bundle({}, config))
    return folder


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pretrained, "PLACE", ship(tmp_path / "pretrained", 2, 3, 4))
    return tmp_path / "pretrained"


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare").mkdir()
    monkeypatch.setattr(pretrained, "PLACE", tmp_path / "bare")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of scale 2."""
    root = tmp_path_factory.mktemp("pretrained") / "data"
    looks = SimulationConfig(
        scenes=1, test_scenes=1, lr_size=16, scale=2, min_frames=3, max_frames=3
    )
    write_dataset(root, looks)
    return root


def command(name: str, data: Path, output: Path) -> tuple[Any, list[str]]:
    main_of, arguments = {
        "predict": (main, ["--output", output / "o.npy", next((data / "train/NIR").iterdir())]),
        "evaluate": (evaluate.main, ["--data", data, "--split", "all"]),
        "submit": (submit.main, ["--data", data, "--partial", "--output", output / "o.zip"]),
    }[name]
    return main_of, [str(a) for a in arguments]


def configured(
    name: str, data: Path, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[ModelConfig]:
    """The configurations that a command comes to work with."""
    seen: list[ModelConfig] = []
    whose = "scoring.summary" if name == "evaluate" else name

    def keep(bundle: Bundle, *_: Any) -> None:
        seen.append(bundle.config)
        if name != "submit":  # it goes through all of its bundles
            raise ValueError("far enough")

    monkeypatch.setattr(f"deepsum_jax.{whose}.check_predictor", keep)

    def stop(*_: Any) -> None:
        raise ValueError("far enough")

    monkeypatch.setattr("deepsum_jax.submit.super_resolved", stop)
    run, arguments = command(name, data, tmp_path)
    with pytest.raises(ValueError, match="far enough"):
        run([*options, *arguments])
    return seen


# --- what this installation ships


@pytest.mark.filterwarnings("ignore:the stack's values")  # 8 bits, where training may have had 14
def test_what_is_shipped_is_whole() -> None:
    """Every scale or none at all; each predicts what its folder says it does, for any band."""
    assert pretrained.scales() in ((), (2, 3, 4))
    stack, masks = sample_stack()
    for scale in pretrained.scales():
        bundle = load_params(scale=scale)
        assert bundle.config.scale == scale and not bundle.missing_parts()
        assert params_digest(pretrained.shipped(scale))
        assert bundle.info.reference != "given" and bundle.config.channels == 1
        assert set(bundle.info.bands) in (set(), {"NIR", "RED"})  # `submit` needs both
        image = predict(bundle, stack[:3, :24, :20], masks[:3, :24, :20])
        assert image.shape == (24 * scale, 20 * scale) and np.isfinite(image).all()


def test_everything_shipped_is_package_data(tmp_path: Path) -> None:
    """The patterns take every file that is no module, those of orbax's folders too."""
    shutil.copytree(PACKAGE, tmp_path / "p", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    save_params(tmp_path / "p/pretrained/x7", random_bundle())
    (tmp_path / "p/pretrained/README.md").touch()
    with open(ROOT / "pyproject.toml", "rb") as file:
        setuptools = tomllib.load(file)["tool"]["setuptools"]
    assert setuptools["packages"]["find"]["namespaces"] is False
    found = {
        name
        for pattern in setuptools["package-data"]["deepsum_jax"]
        for name in glob.glob(pattern, root_dir=tmp_path / "p", recursive=True)
    }
    below = {p.relative_to(tmp_path / "p"): p for p in (tmp_path / "p").rglob("*") if p.is_file()}
    wanted = {str(name) for name in below if name.suffix != ".py"}
    assert len([name for name in wanted if "x7/params" in name]) > 5
    assert not wanted - found
    packages = {str(name.parent) for name in below if name.name == "__init__.py"}
    assert {"pretrained", "sample"} <= packages


# --- in Python


def test_the_default_is_that_of_scale_3(shipped: Path) -> None:
    assert pretrained.scales() == (2, 3, 4)
    for bundle in (load_params(), load_params("default"), load_params("default", scale=3)):
        config = bundle.config
        assert (config.system, config.scale, config.psf_sigma) == ("ibp", 3, 0.3)
    assert load_params(scale=2).config.scale == load_params("default", scale=2).config.scale == 2
    assert load_params(scale=4).config.psf_sigma == 0.4
    assert find_bundle("default") == shipped / "x3"
    assert params_digest("default") == params_digest(shipped / "x3")


@pytest.mark.parametrize("scale", [1, 5, 0])
def test_a_scale_that_is_not_shipped(scale: int, shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        load_params(scale=scale)
    assert str(caught.value) == f"scale: found {scale}, expected 2, 3 or 4, which the package ships"
    save_params(tmp_path / "b", random_bundle())
    with pytest.raises(ValueError, match=r"scale: found 2 for the parameters in .*b, which have"):
        load_params(tmp_path / "b", scale=2)


def test_other_folders_are_not_scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = ship(tmp_path / "p", 2)
    (place / "x3").mkdir()  # unfinished
    shutil.copytree(place / "x2", place / "xtra")
    monkeypatch.setattr(pretrained, "PLACE", place)
    assert pretrained.scales() == (2,)
    with pytest.raises(ValueError, match=r"^scale: found 3, expected 2, which the package ships$"):
        load_params()


def test_nothing_is_shipped(nothing: None) -> None:
    with pytest.raises(FileNotFoundError, match=r"^default: found no parameters in the package"):
        load_params()


def test_a_folder_of_that_name(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = Bundle({}, ModelConfig(system="bicubic_mean", scale=2))
    save_params("./default", mine)
    assert load_params("default").config.system == "ibp"
    for path in ("./default", Path("default"), tmp_path / "default"):
        assert load_params(path).config.system == "bicubic_mean"
    with pytest.raises(ValueError, match=r"default: found the name of .*; \./default is one"):
        save_params("default", mine)
    for name, system in (("default", "ibp"), ("./default", "bicubic_mean")):
        with monkeypatch.context() as patch:
            (config,) = configured("predict", data, ["--params", name], tmp_path, patch)
        assert config.system == system


# --- commands


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("options", "scale", "sigma"),
    [
        ([], 3, 0.3),
        (["--params", "default"], 3, 0.3),
        (["--scale", "2"], 2, 0.2),
        (["--params", "default", "--scale", "4", "--psf-sigma", "0.7"], 4, 0.7),
        (["--psf-sigma", "1"], 3, 1.0),
    ],
)
def test_commands_take_the_default(
    name: str, options: list[str], scale: int, sigma: float, shipped: Path, data: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (config,) = configured(name, data, options, tmp_path, monkeypatch)
    assert (config.system, config.scale, config.psf_sigma) == ("ibp", scale, sigma)
    captured = capsys.readouterr()
    assert captured.err == LINE.format(scale) and captured.out == ""


def test_predict_and_evaluate_without_parameters(
    shipped: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, arguments = command("predict", data, tmp_path)
    run(arguments)
    image = np.load(tmp_path / "o.npy")
    run(["--params", str(shipped / "x3"), *arguments])
    np.testing.assert_array_equal(image, np.load(tmp_path / "o.npy"))
    assert image.shape == (48, 48) and capsys.readouterr().err == LINE.format(3)
    run, arguments = command("evaluate", data, tmp_path)
    run(["--scale", "2", "--json", str(tmp_path / "s.json"), *arguments])
    captured = capsys.readouterr()
    assert "split: all (2 scenes" in captured.out and LINE.format(2) in captured.err
    summary = deepsum_jax.files.read_json(tmp_path / "s.json")
    assert summary["mean"]["cpsnr"] == summary["mean"]["ibp"] and summary["system"] == "IBP"


@pytest.mark.parametrize("name", COMMANDS)
def test_what_commands_refuse(
    name: str, shipped: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, arguments = command(name, data, tmp_path)
    refused = refuser(capsys)
    message = refused(run, "--scale", "7", *arguments)
    assert message == "error: --scale: found 7, expected 2, 3 or 4, which the package ships"
    message = refused(run, "--psf-sigma", "3", *arguments)
    assert "--psf-sigma: found 3.0, expected above 0, at most 2" in message
    message = refused(run, "--params", shipped / "x3", "--scale", "2", *arguments)
    assert "--scale: found 2 for trained parameters" in message and "--params default" in message
    with pytest.raises(SystemExit):
        run(["--params", "default", "--system", "ibp", *arguments])
    assert "not allowed with" in capsys.readouterr().err
    assert not (tmp_path / "o.npy").exists() and not (tmp_path / "o.zip").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_where_nothing_is_shipped(
    name: str, nothing: None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, arguments = command(name, data, tmp_path)
    for options in ([], ["--params", "default"], ["--scale", "2"]):
        message = refuser(capsys)(run, *options, *arguments)
        assert message.startswith("error: default: found no parameters in the package")
    run(["--system", "bicubic_mean", "--scale", "2", *arguments])


def test_submit_takes_the_default_for_what_is_left(
    shipped: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    red = Bundle({}, ModelConfig(system="bicubic_mean"))
    info = dataclasses.replace(red.info, bands=("RED",))
    save_params(tmp_path / "red", dataclasses.replace(red, info=info))
    options = ["--params", str(tmp_path / "red"), "--params", "default"]
    with pytest.raises(ValueError, match=r"default: found a second system for band RED"):
        submit.main([*options, *command("submit", data, tmp_path)[1]])
    with pytest.raises(ValueError, match=r"--scale: found 2 for trained parameters"):
        submit.main([*options, "--scale", "2", *command("submit", data, tmp_path)[1]])
