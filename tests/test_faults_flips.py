"""No damage passes without a word: bits flipped over every file of a working directory.

With DEEPSUM_FAULTS=long, more of them, of the trained `tiny` preset.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from faults.flips import Flip, draw, flipped, state_below, told
from helpers import FAST, contents

from deepsum_jax import load_params
from deepsum_jax.config import TrainConfig, override, preset
from deepsum_jax.systems.table import stages_of
from deepsum_jax.training.run import train

LONG = os.environ.get("DEEPSUM_FAULTS") == "long"
FLIPS, RESUMED = (300, 20) if LONG else (90, 1)
OFTEN = ["steps=6", "checkpoint_every=2", "validate_every=3"]


def settings() -> TrainConfig:
    config = preset("tiny")
    if not LONG:
        config = override(config, ["model.system=sisr"])
    for stage in stages_of(config.model):
        config = override(config, [f"{stage.name}.{often}" for often in OFTEN])
    return dataclasses.replace(config, compute=FAST)


CONFIG = settings()
LAST = stages_of(CONFIG.model)[-1].name


def bits(folder: Path) -> dict[str, bytes]:
    leaves = jax.tree_util.tree_leaves_with_path(load_params(folder).params)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that ended."""
    place = tmp_path_factory.mktemp("flips") / "w"
    train(place, CONFIG, progress=False)
    return place


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    """One that a test may damage."""
    return shutil.copytree(whole, tmp_path / "w")


@pytest.fixture(scope="module")
def like(whole: Path) -> dict[str, Any]:
    names = [stage.name for stage in stages_of(CONFIG.model)]
    return {name: state_below(whole / name / "checkpoints") for name in names}


def test_no_flipped_bit_is_silent(place: Path, like: dict[str, Any]) -> None:
    before = contents(place)
    flips = draw(place, FLIPS, random.Random(2026))
    assert len({flip.path for flip in flips}) > 60
    silent: list[Flip] = []
    for flip in flips:
        assert told(place, flip.path, CONFIG, like) == "", flip.path
        with flipped(flip):
            said = told(place, flip.path, CONFIG, like)
            if said.count("\n") != 1 or str(place) not in said:
                silent.append(flip)
    assert not silent, silent
    after = contents(place)
    assert {k: v for k, v in after.items() if "tensorboard" not in k} == {
        k: v for k, v in before.items() if "tensorboard" not in k
    }
    print(f"{len(flips)} flips in {len({flip.path for flip in flips})} files: none silent")


def test_from_a_damaged_state_the_one_before_goes_on(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the same parameters, bit for bit, as if it had never been damaged."""
    rng = random.Random(2026)
    for number in range(RESUMED):
        place = shutil.copytree(whole, tmp_path / f"w{number}")
        shutil.rmtree(place / LAST / "last")
        newest = max((place / LAST / "checkpoints").iterdir(), key=lambda p: int(p.name))
        (flip,) = draw(newest, 1, rng)
        changed = bytearray(flip.path.read_bytes())
        changed[flip.byte] ^= 1 << flip.bit
        flip.path.write_bytes(changed)
        capsys.readouterr()
        train(place, CONFIG, progress=False, report=False)
        said = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
        assert len(said) == 1 and str(newest) in said[0] and "going on from step 4" in said[0]
        for kind in ("best", "last"):
            assert bits(place / LAST / kind) == bits(whole / LAST / kind), flip
        assert not [p for p in place.rglob(".*") if p.name.endswith((".tmp", ".old"))]
        shutil.rmtree(place)
    with capsys.disabled():
        print(f"\n{RESUMED} damaged newest states: each went on from the one before")
