"""Before a run goes on: what is missing or damaged of it, and what is made anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import FAST, contents, random_bundle

from deepsum_jax import load_params, save_params
from deepsum_jax.bundle import Damaged
from deepsum_jax.config import override, preset
from deepsum_jax.training import mending
from deepsum_jax.training.run import train


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As if a stage had ended in it."""
    place = tmp_path_factory.mktemp("mending") / "w"
    save_params(place / "regnet" / "best", random_bundle())
    shutil.copytree(place / "regnet" / "best", place / "regnet" / "last")
    for name in ("config.json", "data.json"):
        (place / name).write_text("{}")
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "w")


def flip(path: Path) -> None:
    stored = bytearray(path.read_bytes())
    stored[len(stored) // 2] ^= 1
    path.write_bytes(stored)


def newest(folder: Path) -> Path:
    return max((p for p in (folder / "params").rglob("*") if p.is_file()), key=lambda p: p.name)


def damaged(folder: Path, how: str) -> None:
    if how == "description":
        flip(folder / "bundle.json")
    elif how == "no description":
        (folder / "bundle.json").unlink()
    elif how == "no JSON":
        (folder / "bundle.json").write_bytes(b"\xff")
    elif how == "no parameters":
        shutil.rmtree(folder / "params")
    else:
        flip(newest(folder))


WAYS = ["description", "no description", "no JSON", "no parameters", "parameters"]


@pytest.mark.parametrize("how", ["nothing", *WAYS])
@pytest.mark.parametrize("kind", ["best", "last"])
def test_a_damaged_bundle_is_noticed_first(
    kind: str, how: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "nothing":
        before = contents(place)
        mending.mend(place)
        assert contents(place) == before and capsys.readouterr().err == ""
        return
    folder = place / "regnet" / kind
    damaged(folder, how)
    with pytest.raises(Damaged) as caught:
        mending.mend(place)
    advice = "remove that folder" if kind == "best" else "nor is there a state"
    assert str(folder) in str(caught.value) and advice in str(caught.value)
    assert "\n" not in str(caught.value)
    (place / "regnet" / "checkpoints" / "4").mkdir(parents=True)
    if kind == "best":
        with pytest.raises(Damaged):
            mending.mend(place)
        return
    mending.mend(place)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("note: ") and str(folder) in said and said.endswith("from a state")
    assert not folder.exists() and (place / "regnet" / "best").exists()


@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_a_run_without_its_settings_is_no_new_one(name: str, place: Path) -> None:
    (place / name).unlink()
    with pytest.raises(ValueError, match=rf"{name}: found none, and that regnet has begun"):
        mending.mend(place)
    shutil.rmtree(place / "regnet")
    mending.mend(place)


def test_a_damaged_end_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit, by no further step; what later stages have logged stays."""
    config = override(preset("tiny"), ["model.system=sisr", "sisrnet.steps=2"])
    config = override(config, [f"compute.backend={FAST.backend}"])
    options: dict[str, Any] = {"progress": False, "report": False}
    place, last = tmp_path / "w", tmp_path / "w" / "sisrnet" / "last"
    train(place, config, **options)
    with open(place / "metrics.jsonl", "a") as log:
        log.write('{"stage": "deepsum", "step": 1}\n')
    before, logged = load_params(last), (place / "metrics.jsonl").read_bytes()
    flip(newest(last))
    capsys.readouterr()
    train(place, config, **options)
    told = [line for line in capsys.readouterr().err.splitlines() if str(last) in line]
    assert len(told) == 1 and told[0].endswith("made anew from a state")
    again = load_params(last)
    assert again.info == before.info
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, before.params))
    assert (place / "metrics.jsonl").read_bytes() == logged
