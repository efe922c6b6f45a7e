"""Tables and curves: statistics, files, what has not run, and the commands."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import refuser
from PIL import Image
from pngs import marks

from deepsum_jax import files
from deepsum_jax.config.presets import TINY
from deepsum_jax.scoring.company import COMPANY
from experiments import __main__ as door
from experiments import cells, exhibits, panels, rows, run, tables
from experiments.exhibits import Exhibit

TABLE = Exhibit("table", "A table", "What it says.", (rows.BICUBIC, rows.SISR, rows.DEEPSUM))


def bench(workdir: Path) -> cells.Bench:
    return cells.Bench(workdir, None, TINY, 9, exhibits.ROWS)


def keep(b: cells.Bench, row: rows.Row, seed: int, values: list[float | None], **more: Any) -> None:
    """A finished cell of scenes a, b, …"""
    known = [v for v in values if v is not None]
    cell = {
        "scenes": [{"band": "NIR", "name": chr(97 + n), "cpsnr": v} for n, v in enumerate(values)],
        "mean": {"cssim": 0.9, "cpsnr": float(np.mean(known))}, "gflop": 2.0, "parameters": 7,
        "train_seconds": 3.0, "steps": {"sisrnet": 4},
        "made": {"date": "today", "commit": "c", "cores": 2, "processor": "P", "jax": "1"},
        **more,
    }  # fmt: skip
    files.write_json(b.cell_path(row, seed), cell)


# --- statistics


def test_entry_is_paired_over_scenes_and_seeds(tmp_path: Path) -> None:
    b = bench(tmp_path)
    keep(b, rows.DUF, 0, [40, 41, None])
    keep(b, rows.DUF, 1, [41, 42, None])
    keep(b, rows.DEEPSUM, 0, [42, 40, 45])
    keep(b, rows.DEEPSUM, 1, [43, 41, 45])
    assert tables.entry(b, rows.SISR, (0, 1)) == {"row": "sisr", "system": "SISR", "cpsnr": None}
    duf, deepsum = tables.entry(b, rows.DUF, (0, 1)), tables.entry(b, rows.DEEPSUM, (0, 1))
    assert duf["cpsnr"] == pytest.approx(41.0)  # over seeds, then scenes; the hidden one left out
    assert deepsum["cpsnr"] == pytest.approx(np.mean([42.5, 40.5, 45.0]))
    assert duf["behind"] == pytest.approx(0.5) and (duf["wins"], duf["of"]) == (1, 2)
    assert duf["low"] < 0.5 < duf["high"]
    assert duf["seeds"] == 2 and duf["seed_deviation"] == pytest.approx(np.sqrt(0.5))
    assert "behind" not in deepsum
    assert tables.entry(b, rows.DUF, (0,))["cpsnr"] == pytest.approx(40.5)


def test_seeds_that_have_not_run(tmp_path: Path) -> None:
    """What there is is shown, and how much of it."""
    b = bench(tmp_path)
    keep(b, rows.DUF, 1, [40, 41])
    entry = tables.entry(b, rows.DUF, (0, 1, 2))
    assert entry["seeds"] == 1 and entry["cpsnr"] == 40.5 and entry["seed_deviation"] is None
    assert "| DUF | 40.50 (1 of 3 seeds) |" in tables.markdown([entry], 3)
    assert "(1 of" not in tables.markdown([entry], 1)


def test_scenes_are_paired_by_name(tmp_path: Path) -> None:
    """Systems that were held out other scenes meet on those they share."""
    b = bench(tmp_path)
    keep(b, rows.DUF, 0, [40, 41, 42])
    keep(b, rows.DEEPSUM, 0, [1, 2, 3])
    path = b.cell_path(rows.DEEPSUM, 0)
    cell = files.read_json(path)
    cell["scenes"] = [
        {"band": "NIR", "name": "c", "cpsnr": 45.0}, {"band": "RED", "name": "a", "cpsnr": 9.0},
    ]  # fmt: skip
    files.write_json(path, cell)
    entry = tables.entry(b, rows.DUF, (0,))
    assert entry["behind"] == pytest.approx(3.0) and entry["of"] == 1


def test_row_is_held_against_what_it_says(tmp_path: Path) -> None:
    b = bench(tmp_path)
    first = rows.on_reference(rows.SISR_MEAN, "first")
    keep(b, first, 0, [40, 40])
    keep(b, rows.DEEPSUM, 0, [50, 50])
    keep(b, rows.on_reference(rows.DEEPSUM, "first"), 0, [41, 42])
    entry = tables.entry(b, first, (0,))
    assert entry["behind"] == pytest.approx(1.5) and entry["against"] == "DeepSUM, first frame"
    keep(b, rows.DUF, 0, [40, 40])
    both = [entry, tables.entry(b, rows.DUF, (0,))]
    assert "its DeepSUM is better by" in tables.markdown(both, 1)
    assert "DeepSUM, first frame is better by" in tables.markdown(both[:1], 1)


# --- files


def test_files_of_a_table(tmp_path: Path) -> None:
    b = bench(tmp_path)
    keep(b, rows.BICUBIC, 0, [40.0, 41.0], steps={})
    keep(b, rows.DEEPSUM, 0, [42.0, 43.0], steps={"sisrnet": 4, "deepsum": 5})
    text = tables.write(tmp_path, TABLE, b, (0,), "said here.")
    assert "| SISR | not run |" in text
    assert "| Bicubic+Mean | 40.50 | 0.9000 | +2.00 (+2.00 to +2.00) | 2 of 2 | – | 3 |" in text
    assert "| DeepSUM | 42.50 | 0.9000 |  |  | 4 + 5 | 3 | 2.0 | 7 |" in text
    written = (tmp_path / "table.md").read_text()
    assert written.startswith("# A table\n\nWhat it says.\n\n" + text)
    about = "said here. Made today of commit c on 2 cores of P with jax 1."
    assert written.endswith(f"{about}\n")
    found = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [r["system"] for r in found[:3]] == ["Bicubic+Mean", "SISR", "DeepSUM"]
    assert found[0]["cpsnr"] == "40.5" and found[1]["cpsnr"] == ""
    assert json.loads(found[2]["steps"]) == {"sisrnet": 4, "deepsum": 5}
    with Image.open(tmp_path / "table.png") as image:
        assert image.info["Description"] == about and image.width > 500
    assert marks(tmp_path / "table.png", "#4878a8") == 2  # a dot for each row that has run
    known = [tables.entry(b, row, (0,)) for row in (rows.BICUBIC, rows.SISR, rows.DEEPSUM)]
    axis = tables.chart(known, "A table").axes[0]
    dots = [np.ravel(np.asarray(line.get_data(), float)) for line in axis.lines]
    assert [tuple(dot) for dot in dots] == [(40.5, 0), (42.5, 1)]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["Bicubic+Mean", "DeepSUM"]


def test_files_of_curves(tmp_path: Path) -> None:
    b = bench(tmp_path)
    keep(b, rows.DEEPSUM, 0, [42.0, 43.0])
    keep(b, rows.at_gain(rows.DEEPSUM, 2.0), 0, [41.0, 42.0])
    entries = {row.name: tables.entry(b, row, (0,)) for row in exhibits.BRIGHTNESS.rows}
    axis = tables.curves(exhibits.BRIGHTNESS, entries).axes[0]
    (line,) = axis.lines  # of batch norm nothing has run
    x, y = np.asarray(line.get_data(), float)
    assert list(x) == [1.0, 2.0] and list(y) == [42.5, 41.5]
    text = tables.write(tmp_path, exhibits.BRIGHTNESS, b, (0,), "")
    assert "| instance norm, 2 | 41.50 |" in text and "| batch norm, 0.5 | not run |" in text
    assert marks(tmp_path / "brightness.png", "#4878a8") == 2  # the curve, and the legend's
    assert marks(tmp_path / "brightness.png", "#c8663c") == 0


def test_alternatives_stand_under_a_table(tmp_path: Path) -> None:
    """Their means over the scenes of the rows; from where to where, should rows differ; nothing
    of cells that do not tell."""
    assert set(tables.ALTERNATIVES) == set(COMPANY)
    b = bench(tmp_path)
    keep(b, rows.DUF, 0, [40.0, 41.0, None])
    keep(b, rows.DUF, 1, [40.0, 41.0, None])
    assert tables.company([tables.entry(b, rows.DUF, (0, 1))]) == ""
    others = {"bicubic": [38.0, 39.0, None], "ibp_one": [39.5, 40.5, None],
              "bicubic_mean": [36.0, 37.0, None], "ibp": [40.25, 41.25, None]}  # fmt: skip
    for row, more in ((rows.DUF, 0.0), (rows.DEEPSUM, 0.5)):
        for seed in (0, 1):
            keep(b, row, seed, [40.0, 41.0, None])
            cell = files.read_json(b.cell_path(row, seed))
            for n, scene in enumerate(cell["scenes"]):
                scene |= {key: values[n] for key, values in others.items()}
                scene["ibp"] = scene["ibp"] and scene["ibp"] + more
            files.write_json(b.cell_path(row, seed), cell)
    duf = tables.entry(b, rows.DUF, (0, 1))
    assert [duf[key] for key in tables.ALTERNATIVES] == [38.5, 40.0, 36.5, 40.75]
    start = (
        "On the same scenes: bicubic of the reference 38.50, IBP of the reference alone 40.00, "
        "Bicubic+Mean 36.50, IBP 40.75"
    )
    assert tables.company([duf, tables.entry(b, rows.SISR, (0,))]) == f"{start} dB."
    text = tables.write(tmp_path, TABLE, b, (0, 1), "said here.")
    assert text.endswith("|\n\n" + start.replace("40.75", "41.25") + " dB.\n")
    both = dataclasses.replace(TABLE, table=(rows.DUF, rows.DEEPSUM))
    text = tables.write(tmp_path, both, b, (0, 1), "said here.")
    assert text.endswith(f"\n\n{start} to 41.25 dB.\n")
    assert text in (tmp_path / "table.md").read_text()
    found = (tmp_path / "table.csv").read_text().splitlines()
    assert found[-1].startswith(f"# {start} to 41.25 dB. said here. Made ")
    values = next(csv.DictReader(found))
    assert [float(values[key]) for key in tables.ALTERNATIVES] == [38.5, 40.0, 36.5, 40.75]


def test_nothing_has_run(tmp_path: Path) -> None:
    for exhibit in exhibits.EXHIBITS:
        if exhibit.rows:
            text = tables.write(tmp_path, exhibit, bench(tmp_path), (0,), "")
            assert text.count("not run") >= len(exhibit.rows)


# --- the exhibits themselves


def test_exhibits_are_whole() -> None:
    """Names are unique, every row's partners exist, and every setting is one."""
    names = [e.name for e in exhibits.EXHIBITS]
    assert len(set(names)) == len(names)
    every = [r for e in exhibits.EXHIBITS for r in (*e.rows, *e.needs)]
    for row in every:
        assert exhibits.ROWS[row.name] == row, f"two rows named {row.name}"
        assert row.against in exhibits.ROWS
        assert not row.trained_as or not exhibits.ROWS[row.trained_as].trained_as
        rows.row_config(row, TINY, 0)


def test_paper_s_tables_have_the_paper_s_rows() -> None:
    assert [r.label for r in exhibits.TABLE2.rows] == [
        "Bicubic+Mean", "IBP", "SISR", "SISR+Mean", "DUF", "DeepSUM",
    ]  # fmt: skip
    assert len(exhibits.TABLE1.rows) == 2 and len(exhibits.REGISTRATION.rows) == 3


# --- the commands


def _settings(workdir: Path) -> list[str]:
    settings = ["--preset", "tiny", "--workdir", str(workdir)]
    for stage in ("sisrnet", "regnet", "deepsum"):
        settings += ["--set", f"{stage}.steps=1", "--set", f"{stage}.validate_every=1"]
    return [*settings, "--set", "compute.backend=plain"]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains, keeps its cells, trains nothing twice, shares rows, and minds its budget."""
    trained: list[str] = []
    real = cells.train

    def spy(workdir: Path, *args: Any, **kwargs: Any) -> Any:
        trained.append(workdir.name)
        return real(workdir, *args, **kwargs)

    monkeypatch.setattr(cells, "train", spy)
    chosen = (rows.BICUBIC, rows.SISR, rows.SISR_MEAN, rows.UNREGISTERED)
    settings = _settings(tmp_path / "w")
    run.run([dataclasses.replace(TABLE, table=chosen)], settings)
    assert [name.split("-")[0] for name in trained] == ["sisr", "pretraining", "no_registration"]
    text = (tmp_path / "w" / "table.md").read_text()
    assert "not run" not in text and "--preset tiny" in text and "Made 2" in text
    kept = {p.name: p.read_bytes() for p in (tmp_path / "w" / "cells").iterdir()}
    assert len(kept) == 4
    again = dataclasses.replace(TABLE, name="again", table=chosen[1:])
    run.run([again], settings)
    assert len(trained) == 3
    assert kept == {p.name: p.read_bytes() for p in (tmp_path / "w" / "cells").iterdir()}
    with pytest.raises(ValueError, match="another budget"):
        run.run([again], [*settings, "--steps-scale", "2"])
    run.run([dataclasses.replace(TABLE, table=(rows.DUF,))], [*settings, "--no-run"])
    assert "| DUF | not run |" in (tmp_path / "w" / "table.md").read_text()


def test_all_goes_on_past_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue ends what it can, says what failed, and writes the report with its gaps."""
    ran: list[str] = []

    def stand_in(self: cells.Bench, row: rows.Row, seed: int, progress: bool = True) -> None:
        ran.append(f"{row.name}-{seed}")
        if row is rows.DUF:
            raise ValueError("the loss is not finite")
        keep(self, row, seed, [40.0, 41.0])

    monkeypatch.setattr(cells.Bench, "run", stand_in)
    settings = ["--preset", "tiny", "--workdir", str(tmp_path), "--only", "table1", "table2"]
    with pytest.raises(ValueError, match=r"2 cells failed: DUF, seed 0: .*DUF, seed 1"):
        door.main(["all", *settings, "--seeds", "0", "1"])
    # Seed by seed, each cell once; what has no parameters has one seed.
    assert ran == [
        "bicubic_mean-0", "ibp-0", "sisr-0", "sisr_mean-0", "duf-0", "deepsum-0",
        "no_registration-0", "sisr-1", "sisr_mean-1", "duf-1", "deepsum-1", "no_registration-1",
    ]  # fmt: skip
    assert "| DUF | not run |" in (tmp_path / "table2.md").read_text()
    report = (tmp_path / "report.html").read_text()
    assert "not run" in report and "Table II" in report
    ran.clear()
    with pytest.raises(ValueError, match="2 cells failed"):
        door.main(["all", *settings, "--seeds", "0", "1"])
    assert ran == ["duf-0", "duf-1"]


def test_several_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One queue for all that are named, each cell once; pictures need one seed, the first."""
    ran: list[str] = []

    def stand_in(self: cells.Bench, row: rows.Row, seed: int, progress: bool = True) -> None:
        ran.append(f"{row.name}-{seed}")
        keep(self, row, seed, [40.0, 41.0])

    def draw(bench: cells.Bench, output: Path, seed: int, caption: str) -> None:
        (output / "panels_NIR.png").write_text(f"{seed}; {caption}")

    monkeypatch.setattr(cells.Bench, "run", stand_in)
    monkeypatch.setattr(panels, "draw", draw)
    settings = ["--preset", "tiny", "--workdir", str(tmp_path), "--seeds", "3", "4"]
    door.main(["table1", "panels", *settings])
    assert ran == [
        "no_registration-3", "deepsum-3", "no_registration-4", "deepsum-4",
        "bicubic_mean-3", "ibp-3", "duf-3",
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "Table I: what RegNet brings" in printed and "| DeepSUM | 40.50 ± 0.00 |" in printed
    assert f"pictures: {tmp_path / 'panels_NIR.png'}" in printed
    command = "`python -m experiments table1 panels --preset tiny --steps-scale 1 --seeds 3 4`"
    assert command in (tmp_path / "table1.md").read_text()
    assert (tmp_path / "panels_NIR.png").read_text().startswith("3; Held-out")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_names_are_listed(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    door.main(argv)
    lines = capsys.readouterr().out.splitlines()
    for name in (*(e.name for e in exhibits.EXHIBITS), *door.OTHERS):
        (line,) = (text for text in lines if text.split()[:1] == [name])
        assert len(line.split()) > 2
    assert {e.name for e in exhibits.EXHIBITS} == {
        "table1", "table2", "registration", "ablations", "panels", "brightness", "haze", "sensor",
        "reference_frame", "frames_test", "frames_training", "steps", "agreement",
    }  # fmt: skip
    others = {"benchmark", "scaling", "real", "ground", "landsat", "report", "all"}
    others |= {"default", "trust"}
    assert set(door.OTHERS) == others


def test_every_name_has_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (*(e.name for e in exhibits.EXHIBITS), *door.OTHERS):
        with pytest.raises(SystemExit) as stopped:
            door.main([name, "--help"])
        assert stopped.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: python -m experiments {name} [-h]")
    assert all(e.command == f"python -m experiments {e.name} --workdir DIR"
               for e in exhibits.EXHIBITS)  # fmt: skip


def test_commands_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = refuser(capsys)
    for name in (*(e.name for e in exhibits.EXHIBITS), "all"):
        wrong = ("--workdir", tmp_path / "w", "--preset", "dem")
        assert "preset" in refused(door.main, name, *wrong)
    assert "--steps-scale" in refused(
        door.main, "table1", "--workdir", tmp_path, "--steps-scale", "0"
    )
    missing = tmp_path / "missing"
    assert "no such folder" in refused(
        door.main, "table1", "--workdir", tmp_path / "w", "--data", missing, "--preset", "tiny"
    )
    assert not (tmp_path / "w").exists()
    assert "did you mean 'table2'?" in refused(door.main, "tabel2", "--workdir", tmp_path)
    assert "did you mean 'sensor'?" in refused(door.main, "table2", "sensors", "--workdir", "w")
    assert "expected it alone" in refused(door.main, "table2", "report", "--input", tmp_path)
    assert "expected a NAME" in refused(door.main, "--workdir", tmp_path, "table2")
