"""The benchmark: nominal work by count, and every row measured on the smallest network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import refuser
from pngs import pixels

from deepsum_jax.config import ModelConfig, TrainConfig
from deepsum_jax.config.presets import TINY
from deepsum_jax.systems.deepsum import END_TO_END, nominal_work
from deepsum_jax.systems.pretraining import REGNET, SISRNET
from deepsum_jax.training.stages import stage
from experiments import benchmark, scaling


def slow_work(model: ModelConfig, side: int) -> float:
    """Every multiplication and addition of the published graph, layer by layer."""
    n, f, k = model.num_frames, model.features, model.filter_size

    def conv(frames: int, taps: int, channels: int, features: int) -> int:
        return 2 * frames * side * side * taps * channels * features

    total = conv(n, 9, model.channels, f)
    total += sum(conv(n, 9, f, f) for _ in range(model.sisrnet_layers - 1))
    for taps, channels, features in ((18, f, 2 * f), (9, 2 * f, f), (9, f, f), (9, f, f)):
        total += conv(n - 1, taps, channels, features)
    total += conv(n - 1, 9, f, k * k)
    total += conv(n - 1, k * k, 1, f + model.channels)
    left = n
    while left > 1:
        left -= 2
        total += conv(left, 27, f, f)
    return total + conv(1, 1, f, model.channels)


def test_nominal_work() -> None:
    model = ModelConfig()
    work = nominal_work(model, 96, 96)
    assert work.total == pytest.approx(slow_work(model, 96))
    small = TINY.model
    assert nominal_work(small, 24, 24).total == pytest.approx(slow_work(small, 24))
    # What is commonly stated for the published network, in GFLOP.
    parts = (work.sisrnet, work.regnet, work.fusionnet, work.dynamic)
    assert [x / 1e9 for x in parts] == pytest.approx([42.9, 50.4, 32.6, 0.78], rel=0.02)


def test_work_of_steps() -> None:
    config = TrainConfig()
    whole = nominal_work(config.model, 96, 96)
    assert benchmark.step_work(END_TO_END, config, 2) == pytest.approx(6 * whole.total)
    assert benchmark.step_work(SISRNET, config, 9) == pytest.approx(3 * whole.sisrnet)
    inner = nominal_work(config.model, 88, 88).regnet
    assert benchmark.step_work(REGNET, config, 9) == pytest.approx(whole.sisrnet + 27 * inner)


def test_measure_by_a_known_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run compiles; then each timing of the row has one of the roof, of enough products
    to last 20 ms, and the score is the median of their ratios."""
    row, product = iter([9.0, 5.0, 1.0, 4.0, 2.0]), iter([7.0, 7.0, 0.01, *[0.5, 1.5] * 3])

    def clock(run: object) -> float:
        return next(row if run == "row" else product)

    monkeypatch.setattr(benchmark, "_seconds", clock)
    monkeypatch.setattr(benchmark, "_roof", lambda dtype: ("product", 12.0))
    found = benchmark.measure("row", 24.0, 3, "float32")  # type: ignore[arg-type]
    assert next(row, None) is None and next(product, None) is None
    # 12 operations in a second: 24 in 1, 4 and 2 seconds are 2, ½ and 1 of what the roof does.
    assert found["seconds"] == 2 and found["compile_seconds"] == 7
    assert found["roof_gflops"] == pytest.approx(12e-9) and found["work_gflop"] == 24e-9
    assert found["score"] == pytest.approx(1)


def test_other_networks_have_no_nominal_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'duf'" in refuser(capsys)(benchmark.main, "--set", "model.system=duf")


@pytest.mark.parametrize("row", benchmark.ROWS)
def test_rows(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one pair of timings, of which score, seconds and roof say the same thing."""
    monkeypatch.setattr(benchmark, "_SCENE", 16)
    monkeypatch.setattr(benchmark, "_CPU_PRODUCT", (64, 64, 64))
    monkeypatch.setattr(benchmark, "_PIPELINE_SECONDS", 0.01)
    found = benchmark.run_row(row, TINY, batch=4, pairs=1)
    assert found["row"] == row and found["platform"] == "cpu"
    if row == "pipeline":
        assert all(rate > 0 for rate in found["examples_per_second"].values())
        return
    assert found["seconds"] > 0 and found["work_gflop"] > 0
    seconds = found["work_gflop"] / found["roof_gflops"] / found["score"]
    assert seconds == pytest.approx(found["seconds"], rel=1e-9)
    side = 16 * TINY.model.scale if row == "predict" else TINY.data.patch_size
    stacks = 1 if row == "predict" else 4
    work = stacks * nominal_work(TINY.model, side, side).total
    if row.startswith("step_"):
        work = benchmark.step_work(stage(row.removeprefix("step_")), TINY, 4)
    assert found["work_gflop"] == pytest.approx(work / 1e9)
    assert row in benchmark.report([found])


def test_command_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused = refuser(capsys)
    assert "--rows" in refused(benchmark.main, "--rows", "forwards")
    assert "preset" in refused(benchmark.main, "--preset", "refrence")
    assert "--json" in refused(benchmark.main, "--json", tmp_path)


def test_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stand_in(row: str, preset: str, assignments: list[str], *_: int) -> dict[str, object]:
        asked.append(assignments[0])
        return {
            "row": row, "platform": "cpu", "seconds": 0.5, "work_gflop": 3.0,
            "roof_gflops": 12.0, "score": 0.5, "peak_memory_gb": 1.0,
        }  # fmt: skip

    monkeypatch.setattr(benchmark, "run_apart", stand_in)
    scaling.main(["--output", str(tmp_path), "--preset", "tiny"])
    assert "model.num_frames=9" in asked and "model.features=64" in asked
    assert len(asked) == len(set(asked)) == sum(len(v) for *_, v in scaling.SWEEPS.values())
    assert len((tmp_path / "scaling.csv").read_text().splitlines()) == len(asked) + 1
    assert "| pixels | 96 | 0.5 |" in (tmp_path / "scaling.md").read_text()
    page = pixels(tmp_path / "scaling.png")
    thirds = np.array_split(page, len(scaling.SWEEPS), axis=1)  # each with its curve, C0
    assert all((third == (31, 119, 180)).all(axis=-1).sum() > 50 for third in thirds)
    assert json.dumps(benchmark.machine())
