"""The whole way from nothing to a trained bundle, and exact resumption after `kill -9`."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from deepsum_jax import load_params, predict, train
from deepsum_jax.config import TINY, override
from deepsum_jax.data import kelvins

REPOSITORY = Path(__file__).parents[1]
SETTINGS = [
    f"{stage}.{field}={value}"
    for stage in ("sisrnet", "regnet", "deepsum")
    for field, value in (("steps", 14), ("checkpoint_every", 4), ("validate_every", 7))
]


def _command(workdir: Path) -> list[str]:
    command = [sys.executable, "-m", "deepsum_jax.train", "--workdir", str(workdir)]
    command += ["--preset", "tiny"]
    for assignment in SETTINGS:
        command += ["--set", assignment]
    return command


def _start(workdir: Path, cache: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        _command(workdir), cwd=REPOSITORY, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def _steps(workdir: Path, stage: str) -> list[int]:
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # being written
            continue
    return [r["step"] for r in records if r["stage"] == stage and "loss" in r]


def _bits(folder: Path) -> dict[str, bytes]:
    leaves = jax.tree_util.tree_leaves_with_path(load_params(folder).params)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def test_killed_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Killed once in every stage, at a random step: the same parameters as without."""
    whole, broken, cache = tmp_path / "whole", tmp_path / "broken", tmp_path / "xla"
    run = _start(whole, cache)
    output, _ = run.communicate(timeout=400)
    assert run.returncode == 0, output
    assert "held-out scenes (test)" in output
    for stage in ("sisrnet", "regnet", "deepsum"):
        target = random.randint(2, 12)
        run = _start(broken, cache)
        while run.poll() is None and max(_steps(broken, stage), default=0) < target:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        assert run.returncode == -signal.SIGKILL, f"{stage} ended before step {target}"
    run = _start(broken, cache)
    output, _ = run.communicate(timeout=400)
    assert run.returncode == 0, output
    for place in ("sisrnet/last", "regnet/last", "deepsum/last", "deepsum/best"):
        assert _bits(broken / place) == _bits(whole / place), place
    for stage in ("sisrnet", "regnet", "deepsum"):
        assert _steps(broken, stage) == list(range(1, 15)), "a step is told once"
    for name in ("results.json", "panel.png", "config.json", "data.json"):
        assert (whole / name).stat().st_size > 0
    first = json.loads((whole / "results.json").read_text())
    assert first == json.loads((broken / "results.json").read_text())
    assert first["split"] == "test" and first["n"] == 2

    bundle = load_params(whole)
    folder = kelvins.find_scenes(whole / "data")[0]
    scene = kelvins.read_scene(folder)
    image = predict(bundle, scene.lr, scene.masks)
    assert image.shape == (3 * scene.lr.shape[1], 3 * scene.lr.shape[2])
    assert np.isfinite(image).all()

    with pytest.raises(ValueError, match=r"another configuration.*deepsum.steps"):
        train.train(whole, override(TINY, ["deepsum.steps=3"]))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.json", "{}"),
        ("data.json", "[]"),
        ("data.json", '{"root": 3}'),
        ("config.json", '{"nonsense": 1}'),
        ("config.json", "{"),
    ],
)
def test_damaged_workdir_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_dict()))
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        train.main(["--workdir", str(tmp_path)])
