"""A disk that is full at any write: one line names the file, and nothing half-written stays."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Refused, contents, refuser

from deepsum_jax import evaluate, simulate, submit
from deepsum_jax.config import SimulationConfig
from deepsum_jax.predict import main as predict_main
from deepsum_jax.simulation.dataset import write_dataset


@contextmanager
def writes_end_at(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes, whoever writes it: what a full disk does, anywhere."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("full")
    looks = SimulationConfig(scenes=1, test_scenes=1, lr_size=16, min_frames=3, max_frames=3)
    write_dataset(root / "data", looks)
    np.save(root / "s.npy", np.random.default_rng(0).normal(7000, 500, (4, 24, 24)))
    (root / "out").mkdir()
    return root


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    return refuser(capsys)


SYSTEM = ("--system", "bicubic_mean")
SIMULATED = ("--seed", 0, "--size", 16, "--min-frames", 3, "--max-frames", 3, "--scenes", 1)


@pytest.mark.parametrize(
    ("main", "arguments", "option", "name", "sizes"),
    [
        (predict_main, [*SYSTEM, "s.npy"], "--output", "o.npy", (0, 200, 9000)),
        (predict_main, [*SYSTEM, "s.npy"], "--output", "o.png", (0, 200)),
        (evaluate.main, [*SYSTEM, "--data", "data"], "--json", "e.json", (0, 100)),
        (submit.main, [*SYSTEM, "--data", "data", "--partial"], "--output", "z.zip", (0, 300)),
        (simulate.main, [*SIMULATED], "--output", "sim", (0, 80, 300, 900)),
    ],
)
def test_full_disk(
    main: Callable[..., Any], arguments: list[Any], option: str, name: str,
    sizes: tuple[int, ...], root: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(root)
    before = contents(root)
    target = root / "out" / name
    for size in sizes:
        with writes_end_at(size):
            message = refused(main, *arguments, option, target)
        assert message.startswith(f"error: {target}")
        assert "File too large" in message or "requested and" in message  # numpy's words
        assert contents(root) == before
    main([str(a) for a in (*arguments, option, target)])
    assert target.exists()
    shutil.rmtree(root / "out")
    (root / "out").mkdir()
