"""Tables: budgets, cells that are kept, statistics, and what has not run."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import refuser

from deepsum_jax import files
from deepsum_jax.config import DEMO, TINY
from experiments import benchmark, registration, table1, table2, tables

ROWS = (tables.BICUBIC, tables.SISR, tables.DEEPSUM)


def bench(workdir: Path) -> tables.Bench:
    return tables.Bench(workdir, workdir / "data", TINY, max_frames=9)


def cell(values: list[float | None], **more: Any) -> dict[str, Any]:
    scenes = [{"cpsnr": v} for v in values]
    return {
        "scenes": scenes, "mean": {"cssim": 0.9}, "gflop": 2.0, "parameters": 7,
        "train_seconds": 3.0, "steps": {"sisrnet": 4}, **more,
    }  # fmt: skip


def keep(b: tables.Bench, row: tables.Row, seed: int, values: list[float | None]) -> None:
    files.write_json(b.cell_path(row, seed), cell(values))


def test_budgets_are_equal() -> None:
    """Every stack network trains as many end-to-end steps; the others all steps in one stage."""
    steps = {row.name: tables.row_config(row, DEMO, 3) for row in tables.ROWS.values()}
    for name in ("deepsum", "no_registration", "correlation", "shifts"):
        assert steps[name].deepsum == DEMO.deepsum and steps[name].sisrnet == DEMO.sisrnet
    both = DEMO.sisrnet.steps + DEMO.deepsum.steps
    assert steps["sisr"].sisrnet.steps == steps["duf"].deepsum.steps == both
    assert {c.seed for c in steps.values()} == {3}
    assert len({c.deepsum.batch_size for c in steps.values()}) == 1
    assert len({c.data for c in steps.values()}) == 1


def test_steps_scale() -> None:
    half = tables.scaled(DEMO, 0.5)
    assert half.deepsum.steps == DEMO.deepsum.steps // 2
    assert tables.scaled(DEMO, 1e-9).regnet.steps == 1
    assert dataclasses.replace(half, sisrnet=DEMO.sisrnet, regnet=DEMO.regnet,
                               deepsum=DEMO.deepsum) == DEMO  # fmt: skip


def test_statistics(tmp_path: Path) -> None:
    b = bench(tmp_path)
    for seed, offset in ((0, 0.0), (1, 1.0)):
        keep(b, tables.BICUBIC, seed, [40 + offset, 41 + offset, None])
        keep(b, tables.DEEPSUM, seed, [42 + offset, 40 + offset, 45.0])
    bicubic, sisr, deepsum = tables.lines(b, ROWS, (0, 1))
    assert sisr == {"system": "SISR", "cpsnr": None}
    assert bicubic["cpsnr"] == pytest.approx(41.0)  # seeds, then scenes; the hidden one left out
    assert deepsum["cpsnr"] == pytest.approx(np.mean([42.5, 40.5, 45.0]))
    assert bicubic["behind"] == pytest.approx(0.5) and bicubic["wins"] == "1 of 2"
    assert "behind" not in deepsum
    one_seed = tables.lines(b, ROWS, (0,))
    assert one_seed[0]["cpsnr"] == pytest.approx(40.5)
    assert tables.lines(b, ROWS, (0, 2))[0]["cpsnr"] is None


def test_files(tmp_path: Path) -> None:
    b = bench(tmp_path)
    keep(b, tables.BICUBIC, 0, [40.0, 41.0])
    keep(b, tables.DEEPSUM, 0, [42.0, 43.0])
    text = tables.write(tmp_path, "table", "A table", tables.lines(b, ROWS, (0,)), "said here")
    assert "| SISR | not run |" in text and text.endswith("said here\n")
    assert "| Bicubic+Mean | 40.50 | 0.9000 | +2.00 (+2.00 to +2.00) | 2 of 2 | 4 | 3 |" in text
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [r["system"] for r in rows[:3]] == ["Bicubic+Mean", "SISR", "DeepSUM"]
    assert rows[0]["cpsnr"] == "40.5" and rows[1]["cpsnr"] == ""
    assert (tmp_path / "table.png").stat().st_size > 5_000


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains, keeps its cells, trains nothing twice, shares rows, and minds its budget."""
    settings = ["--preset", "tiny", "--workdir", str(tmp_path / "w")]
    for stage in ("sisrnet", "regnet", "deepsum"):
        settings += ["--set", f"{stage}.steps=1", "--set", f"{stage}.validate_every=1"]
    settings += ["--set", "model.backend=accelerator"]
    trained: list[str] = []
    real = tables.train

    def spy(workdir: Path, *args: Any) -> Any:
        trained.append(workdir.name)
        return real(workdir, *args)

    monkeypatch.setattr(tables, "train", spy)
    rows = (tables.BICUBIC, tables.SISR, tables.SISR_MEAN, tables.UNREGISTERED)
    tables.run("table2", "Some systems", rows, settings)
    assert trained == ["sisr-0", "no_registration-0"]
    text = (tmp_path / "w" / "table2.md").read_text()
    assert "not run" not in text and "--preset tiny" in text and "commit" in text
    kept = {p.name: p.read_bytes() for p in (tmp_path / "w" / "cells").iterdir()}
    assert len(kept) == 4
    tables.run("table1", "Again", rows[1:], settings)
    assert trained == ["sisr-0", "no_registration-0"]
    assert kept == {p.name: p.read_bytes() for p in (tmp_path / "w" / "cells").iterdir()}
    with pytest.raises(ValueError, match="another budget"):
        tables.run("table1", "Again", rows, [*settings, "--steps-scale", "2"])
    tables.run("table1", "Again", (tables.DUF,), [*settings, "--no-run"])
    assert "| DUF | not run |" in (tmp_path / "w" / "table1.md").read_text()


def test_commands_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = refuser(capsys)
    for module in (table1, table2, registration):
        assert "preset" in refused(module.main, "--workdir", tmp_path / "w", "--preset", "dem")
    assert "--steps-scale" in refused(table1.main, "--workdir", tmp_path, "--steps-scale", "0")
    assert not (tmp_path / "w").exists()


def test_nominal_work_of_systems() -> None:
    model = TINY.model
    parts = benchmark.nominal_work(model, 24, 24)

    def of(**changes: Any) -> float:
        return tables.work(dataclasses.replace(model, **changes), 24, 24)

    assert of() == pytest.approx(parts.total)
    assert of(registration="none") == pytest.approx(parts.sisrnet + parts.fusionnet)
    assert of(system="sisr_mean") == pytest.approx(model.num_frames * of(system="sisr"))
    assert of(system="ibp") == of(system="bicubic_mean") == 0
    assert of(system="duf") > 0
