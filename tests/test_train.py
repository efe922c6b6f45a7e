"""The whole way from nothing to a trained bundle, and exact resumption after `kill -9`."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import FAST
from PIL import Image

from deepsum_jax import files, load_params, predict, train
from deepsum_jax.bundle import params_digest
from deepsum_jax.config import TrainConfig, override, preset
from deepsum_jax.data import kelvins
from deepsum_jax.training.run import train as run_training

REPOSITORY = Path(__file__).parents[1]
TINY = preset("tiny")
KILLED_AT = {
    stage: random.Random(f"{stage} 2026").randint(2, 12)
    for stage in ("sisrnet", "regnet", "deepsum")
}
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
    """Killed once in every stage, at some step: the same parameters as without."""
    whole, broken, cache = tmp_path / "whole", tmp_path / "broken", tmp_path / "xla"
    run = _start(whole, cache)
    output, _ = run.communicate(timeout=400)
    assert run.returncode == 0, output
    assert "held-out scenes (test)" in output
    moments = []  # what was to be the step, and which it was
    for stage, target in KILLED_AT.items():
        run = _start(broken, cache)
        while run.poll() is None and max(_steps(broken, stage), default=0) < target:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        moments.append((stage, target, max(_steps(broken, stage), default=0)))
        assert run.returncode == -signal.SIGKILL, f"ended before it was killed: {moments}"
    run = _start(broken, cache)
    output, _ = run.communicate(timeout=400)
    assert run.returncode == 0, (moments, output)
    for place in ("sisrnet/last", "regnet/last", "deepsum/last", "deepsum/best"):
        assert _bits(broken / place) == _bits(whole / place), (place, moments)
    for stage in ("sisrnet", "regnet", "deepsum"):
        assert _steps(broken, stage) == list(range(1, 15)), ("a step is told once", moments)
    stored = TrainConfig.from_dict(files.read_json(whole / "config.json"))
    assert stored == override(TINY, SETTINGS)
    about = files.read_json(whole / "data.json")
    assert about["root"] == "data" and about == files.read_json(broken / "data.json")
    run_there = {"stages": ["sisrnet", "regnet", "deepsum"], "init": None}
    assert files.read_json(whole / "run.json") == run_there
    with Image.open(whole / "panel.png") as panel:
        pixels = np.asarray(panel.convert("L"))
    assert min(pixels.shape) > 200 and len(np.unique(pixels)) > 50
    assert (pixels == np.asarray(Image.open(broken / "panel.png").convert("L"))).all()
    first = json.loads((whole / "results.json").read_text())
    assert first == json.loads((broken / "results.json").read_text())
    assert first["split"] == "test" and first["n"] == 2
    assert [row["name"] for row in first["scenes"]] == ["imgset1306", "imgset1307"]
    for row in first["scenes"]:
        assert row["cpsnr"] > row["bicubic"] - 3

    bundle = load_params(whole)
    folder = kelvins.find_scenes(whole / "data")[0]
    scene = kelvins.read_scene(folder)
    image = predict(bundle, scene.lr, scene.masks)
    assert image.shape == (3 * scene.lr.shape[1], 3 * scene.lr.shape[2])
    assert np.isfinite(image).all()

    with pytest.raises(ValueError, match=r"another configuration.*deepsum.steps"):
        run_training(whole, override(TINY, ["deepsum.steps=3"]))


def test_more_steps_are_as_if_from_the_start(tmp_path: Path) -> None:
    """At a constant rate, with warm-up too; how often is logged and saved changes nothing."""
    base = [
        "model.system=sisr", "sisrnet.warmup_steps=2", "sisrnet.clip_norm=1",
        "sisrnet.validate_every=2",
    ]  # fmt: skip
    config = dataclasses.replace(override(TINY, base), compute=FAST)
    longer = override(config, ["sisrnet.steps=10", "sisrnet.log_every=5"])
    options: dict[str, Any] = {"progress": False, "report": False}
    run_training(tmp_path / "whole", longer, **options)
    data = tmp_path / "whole" / "data"
    run_training(tmp_path / "grown", config, data, **options)
    assert load_params(tmp_path / "grown" / "sisrnet" / "last").info.step == 4
    bundle = run_training(
        tmp_path / "grown", override(longer, ["sisrnet.checkpoint_every=3"]), data, **options
    )
    assert bundle.info.parent == ""
    for place in ("sisrnet/last", "sisrnet/best"):
        whole, grown = (load_params(tmp_path / name / place) for name in ("whole", "grown"))
        assert _bits(tmp_path / "grown" / place) == _bits(tmp_path / "whole" / place)
        assert grown.info == whole.info
    assert load_params(tmp_path / "grown" / "sisrnet" / "last").info.step == 10
    # From a start, and with the start's digest on every bundle.
    started = run_training(tmp_path / "started", config, data, init=tmp_path / "grown", **options)
    again = run_training(tmp_path / "started", config, data, **options)
    assert started.info.parent == params_digest(tmp_path / "grown") != ""
    assert again.info == started.info


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.json", "{}"),
        ("data.json", "[]"),
        ("data.json", '{"root": 3}'),
        ("config.json", '{"nonsense": 1}'),
        ("config.json", "{"),
        ("run.json", "{"),
        ("run.json", '{"stages": "all"}'),
        ("run.json", '{"stages": [["sisrnet"]]}'),
        ("run.json", '{"stages": [], "init": "default"}'),
        ("run.json", '{"stages": [], "init": {"path": "default"}}'),
        ("run.json", "[]"),
        ("config.json", "[]"),
        ("config.json", '{"model": 3}'),
        ("config.json", '{"seed": 1, "file_sha256": "0"}'),
    ],
)
def test_damaged_workdir_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_dict()))
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        train.main(["--workdir", str(tmp_path)])
