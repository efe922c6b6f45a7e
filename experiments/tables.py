"""The engine of the tables: systems trained with one budget, scored on the same test scenes.

A table is a list of rows; a cell is one row with one seed. Cells are kept under the working
directory as they end, and tables that share a row share its cell, so a run that was interrupted, or
another table, goes on with what is there. A row that has not run reads "not run".

Every learned system sees the same scenes, patches and batch sizes. Networks over stacks get the
preset's end-to-end steps behind whatever pretraining they have; systems without stages of their own
(SISR, DUF) get the steps of SISRNet's pretraining and of the end-to-end stage together.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from deepsum_jax import Bundle, cli, evaluate, figures, files, parallel
from deepsum_jax.baselines.duf import duf_work
from deepsum_jax.checkpoint import load_params
from deepsum_jax.config import PRESETS, ModelConfig, TrainConfig, override, preset
from deepsum_jax.systems import PARAMETERLESS
from deepsum_jax.train import simulated_scenes, train
from experiments import benchmark

Summary = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """One system of a table.

    Attributes:
      name: of its cells.
      label: in the table.
      settings: overrides of the table's configuration, as `--set` takes them.
      trained_as: name of the row whose parameters it uses; itself by default.
    """

    name: str
    label: str
    settings: tuple[str, ...] = ()
    trained_as: str = ""


BICUBIC = Row("bicubic_mean", "Bicubic+Mean", ("model.system=bicubic_mean",))
IBP = Row("ibp", "IBP", ("model.system=ibp",))
SISR = Row("sisr", "SISR", ("model.system=sisr",))
SISR_MEAN = Row("sisr_mean", "SISR+Mean", ("model.system=sisr_mean",), trained_as="sisr")
DUF = Row("duf", "DUF", ("model.system=duf",))
DEEPSUM = Row("deepsum", "DeepSUM")
UNREGISTERED = Row("no_registration", "DeepSUM without RegNet", ("model.registration=none",))
CORRELATION = Row(
    "correlation", "cross-correlation, fixed kernel", ("model.registration=correlation",)
)
SHIFTS = Row("shifts", "learned shifts, fixed kernel", ("model.registration=shifts",))
ROWS = {
    row.name: row
    for row in (BICUBIC, IBP, SISR, SISR_MEAN, DUF, DEEPSUM, UNREGISTERED, CORRELATION, SHIFTS)
}


def scaled(config: TrainConfig, factor: float) -> TrainConfig:
    """A configuration with all stages' steps times a factor."""
    stages = {}
    for name in ("sisrnet", "regnet", "deepsum"):
        stage = getattr(config, name)
        stages[name] = dataclasses.replace(stage, steps=max(1, round(stage.steps * factor)))
    return dataclasses.replace(config, **stages)


def row_config(row: Row, base: TrainConfig, seed: int) -> TrainConfig:
    """What a row trains with."""
    config = override(base, [*row.settings, f"seed={seed}"])
    both = base.sisrnet.steps + base.deepsum.steps
    if config.model.system in ("sisr", "sisr_mean"):
        return override(config, [f"sisrnet.steps={both}"])
    if config.model.system == "duf":
        return override(config, [f"deepsum.steps={both}"])
    return config


def work(model: ModelConfig, height: int, width: int) -> float:
    """Nominal operations of one forward pass of a system over a stack."""
    if model.system == "duf":
        return duf_work(model, height, width)
    parts = benchmark.nominal_work(model, height, width)
    if model.system == "sisr":
        return parts.sisrnet / model.num_frames
    if model.system == "sisr_mean":
        return parts.sisrnet
    if model.system != "deepsum":
        return 0.0
    registration = {"none": 0.0, "correlation": parts.dynamic}
    return (
        parts.sisrnet
        + parts.fusionnet
        + registration.get(model.registration, parts.regnet + parts.dynamic)
    )


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where cells are made and kept: one budget, one data set."""

    workdir: Path
    data: Path
    base: TrainConfig
    max_frames: int

    def cell_path(self, row: Row, seed: int) -> Path:
        return self.workdir / "cells" / f"{row.name}-{seed}.json"

    def cell(self, row: Row, seed: int) -> Summary | None:
        """A finished cell, or None."""
        path = self.cell_path(row, seed)
        return dict(files.read_json(path)) if path.exists() else None

    def run(self, row: Row, seed: int) -> None:
        """Trains and scores a cell, unless it is there."""
        if self.cell(row, seed) is not None:
            return
        print(f"\n=== {row.label}, seed {seed}", flush=True)
        bundle, seconds, steps = self._system(row, seed)
        summary, _ = evaluate.evaluate(
            bundle, self.data, "test", max_frames=self.max_frames, progress=True
        )
        side = self.base.model.scale * self.base.simulation.lr_size
        cell = {
            **summary,
            "row": row.name,
            "seed": seed,
            "train_seconds": seconds,
            "steps": steps,
            "gflop": work(bundle.config, side, side) / 1e9,
            "parameters": sum(int(np.size(x)) for x in jax.tree.leaves(bundle.params)),
        }
        files.write_json(self.cell_path(row, seed), cell)

    def _system(self, row: Row, seed: int) -> tuple[Bundle, float, dict[str, int]]:
        config = row_config(row, self.base, seed)
        if config.model.system in PARAMETERLESS:
            return Bundle({}, config.model), 0.0, {}
        source = ROWS[row.trained_as or row.name]
        folder = self.workdir / "runs" / f"{source.name}-{seed}"
        clock = folder.with_suffix(".seconds")
        own = row_config(source, self.base, seed)
        if not clock.exists():
            start = time.perf_counter()
            train(folder, own, self.data)
            shutil.rmtree(folder / "cache", ignore_errors=True)
            clock.write_text(f"{time.perf_counter() - start:.1f}\n")
        bundle = load_params(folder)
        model = dataclasses.replace(bundle.config, system=config.model.system)
        done = {
            name: getattr(own, name).steps
            for name in ("sisrnet", "regnet", "deepsum")
            if (folder / name).exists()
        }
        return dataclasses.replace(bundle, config=model), float(clock.read_text()), done


# --- what is written ----------------------------------------------------------------------------


def _cpsnr(cells: Sequence[Summary]) -> np.ndarray:
    """Mean over seeds of every scene's cPSNR, NaN where there is none: [S]."""
    values = [[s["cpsnr"] for s in cell["scenes"]] for cell in cells]
    return np.asarray(values, np.float64).mean(axis=0)  # None becomes NaN


def _interval(differences: np.ndarray) -> str:
    low, high = evaluate.bootstrap(differences)
    return f"{low:+.2f} to {high:+.2f}"


def lines(bench: Bench, rows: Sequence[Row], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The table as plain data, one entry a row; all are held against the last one."""
    cells = {row.name: [bench.cell(row, seed) for seed in seeds] for row in rows}
    last = cells[rows[-1].name]
    out: list[dict[str, Any]] = []
    for row in rows:
        found = [c for c in cells[row.name] if c is not None]
        entry: dict[str, Any] = {"system": row.label, "cpsnr": None}
        out.append(entry)
        if len(found) < len(seeds):
            continue
        values = _cpsnr(found)
        entry |= {
            "cpsnr": float(np.nanmean(values)),
            "cssim": float(np.mean([c["mean"]["cssim"] for c in found])),
            "scenes": len(values),
            "gflop": found[0]["gflop"],
            "parameters": found[0]["parameters"],
            "train_seconds": float(np.mean([c["train_seconds"] for c in found])),
            "steps": found[0]["steps"],
        }
        if row is not rows[-1] and all(c is not None for c in last):
            differences = _cpsnr([c for c in last if c is not None]) - values
            differences = differences[np.isfinite(differences)]
            entry |= {
                "behind": float(differences.mean()),
                "interval": _interval(differences),
                "wins": f"{int((differences > 0).sum())} of {len(differences)}",
            }
    return out


def markdown(table: Sequence[dict[str, Any]], caption: str) -> str:
    """The table as Markdown; a row without its cells says so."""
    last = table[-1]["system"]
    out = [
        f"| system | cPSNR dB | cSSIM | {last} is better by (95 %) | on scenes | steps | "
        "training s | GFLOP | parameters |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for t in table:
        if t["cpsnr"] is None:
            out.append(f"| {t['system']} | not run | | | | | | | |")
            continue
        behind = f"{t['behind']:+.2f} ({t['interval']})" if "behind" in t else ""
        steps = " + ".join(str(v) for v in t["steps"].values()) or "–"
        gflop = f"{t['gflop']:.1f}" if t["gflop"] else "–"
        out.append(
            f"| {t['system']} | {t['cpsnr']:.2f} | {t['cssim']:.4f} | {behind} "
            f"| {t.get('wins', '')} | {steps} | {t['train_seconds']:.0f} | {gflop} "
            f"| {t['parameters']:,} |"
        )
    return "\n".join(out) + f"\n\n{caption}\n"


def chart(table: Sequence[dict[str, Any]], title: str) -> Figure:
    """The rows as dots on one axis, which need not begin at zero as bars would."""
    known = [t for t in table if t["cpsnr"] is not None]
    figure = Figure(figsize=(7, 0.45 * len(known) + 1.1), layout="constrained")
    axis = figure.subplots()
    for y, t in enumerate(known):
        axis.plot(t["cpsnr"], y, "o", color="#4878a8")
        axis.annotate(f"{t['cpsnr']:.2f}", (t["cpsnr"], y), (7, 0), textcoords="offset points",
                      va="center", fontsize=9)  # fmt: skip
    axis.set_yticks(range(len(known)), [t["system"] for t in known])
    axis.set(xlabel="mean cPSNR on the test scenes, dB", title=title)
    axis.margins(x=0.15, y=0.15)
    axis.grid(axis="x", alpha=0.3)
    axis.invert_yaxis()
    return figure


def write(
    output: Path, name: str, title: str, table: Sequence[dict[str, Any]], caption: str
) -> str:
    """Writes CSV, Markdown and PNG; returns the Markdown."""
    text = markdown(table, caption)
    with files.written_aside(output / f"{name}.csv") as aside, open(aside, "w", newline="") as file:
        entries = [{**t, "steps": json.dumps(t.get("steps"))} for t in table]
        writer = csv.DictWriter(file, dict.fromkeys(key for entry in entries for key in entry))
        writer.writeheader()
        writer.writerows(entries)
        file.write(f"# {caption}\n")
    with files.written_aside(output / f"{name}.md") as aside:
        aside.write_text(f"# {title}\n\n{text}")
    figures.save(chart(table, title), output / f"{name}.png")
    return text


# --- the command --------------------------------------------------------------------------------


def parser(module: str, title: str) -> argparse.ArgumentParser:
    """The arguments that all tables share."""
    p = cli.parser(
        f"python -m experiments.{module}",
        f"{title}: train what is missing, score it on the test scenes, write the table.",
        "A run that was interrupted goes on; tables in one --workdir share their rows.",
    )
    p.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="for runs and cells")
    p.add_argument(
        "--data", type=Path, metavar="DIR", help="Kelvins layout, HR in test/ (default: simulated)"
    )
    p.add_argument("--output", type=Path, metavar="DIR", help="for the table (default: --workdir)")
    p.add_argument("--preset", default="demo", help=f"{', '.join(PRESETS)} (default: %(default)s)")
    p.add_argument(
        "--set", action="append", default=[], dest="assignments", metavar="SECTION.FIELD=VALUE",
        help="override one setting for all rows; may be repeated",
    )  # fmt: skip
    p.add_argument(
        "--steps-scale", type=float, default=1.0, metavar="X",
        help="times all stages' steps (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="S",
        help="of the training (default: 0)",
    )  # fmt: skip
    p.add_argument(
        "--max-frames", type=cli.positive, default=9, metavar="M",
        help="frames a scene, for every system (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("--no-run", action="store_true", help="only write what cells there are")
    return p


def _bench(args: argparse.Namespace) -> Bench:
    if not 0 < args.steps_scale < float("inf"):
        raise ValueError(f"--steps-scale: found {args.steps_scale}, expected more than 0")
    base = scaled(override(preset(args.preset), args.assignments), args.steps_scale)
    parallel.use_cores([base.sisrnet.batch_size, base.regnet.batch_size, base.deepsum.batch_size])
    budget = {
        "configuration": base.to_dict(),
        "data": str(args.data.absolute()) if args.data else None,
        "max_frames": args.max_frames,
    }
    kept = args.workdir / "budget.json"
    if kept.exists() and files.read_json(kept) != json.loads(json.dumps(budget)):
        raise ValueError(f"{args.workdir}: holds cells of another budget; use another --workdir")
    data = args.data or simulated_scenes(base, args.workdir)
    files.write_json(kept, budget)
    return Bench(args.workdir, data, base, args.max_frames)


def run(module: str, title: str, rows: Sequence[Row], argv: Sequence[str] | None = None) -> None:
    """One table from its command line."""
    args = parser(module, title).parse_args(argv)
    bench = _bench(args)
    if not args.no_run:
        for seed in args.seeds:
            for row in rows:
                bench.run(row, seed)
    command = f"python -m experiments.{module} --preset {args.preset}"
    command += "".join(f" --set {a}" for a in args.assignments)
    command += f" --steps-scale {args.steps_scale:g} --seeds {' '.join(map(str, args.seeds))}"
    about = ", ".join(f"{k} {v}" for k, v in benchmark.machine().items())
    scenes = "the given data" if args.data else "simulated scenes"
    caption = f"Test part of {scenes}, at most {args.max_frames} frames. `{command}`; {about}."
    table = lines(bench, rows, args.seeds)
    print("\n" + write(args.output or args.workdir, module, title, table, caption))
