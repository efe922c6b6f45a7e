"""Cells made into tables, charts and curves, with paired statistics; and their arguments.

Systems are held against another on the same scenes: the mean difference of their cPSNR (over the
seeds that have run), a bootstrap interval over scenes, and the scenes won. A row of which nothing
has run reads "not run". What anyone can have without a network stands under every table.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from deepsum_jax import cli, figures, files
from deepsum_jax.config import PRESETS, TrainConfig, override, preset
from deepsum_jax.scoring.summary import bootstrap
from deepsum_jax.training import parallel
from experiments.cells import Bench, Cell
from experiments.exhibits import ROWS, Exhibit
from experiments.rows import STAGES, Row, scaled

Entry = dict[str, Any]

# --- statistics ---------------------------------------------------------------------------------


ALTERNATIVES = {
    "bicubic": "bicubic of the reference",
    "ibp_one": "IBP of the reference alone",
    "bicubic_mean": "Bicubic+Mean",
    "ibp": "IBP",
}
"""What is said of `scoring.company` under a table."""


def scene_values(cells: Sequence[Cell], key: str = "cpsnr") -> dict[str, float]:
    """Mean over seeds of every scene's cPSNR, NaN where one has none; by BAND/NAME.

    Args:
      key: "cpsnr" of the row itself, or one of `ALTERNATIVES`, which earlier cells lack.
    """
    values = [
        {f"{s['band']}/{s['name']}": float(s.get(key) or np.nan) for s in cell["scenes"]}
        for cell in cells
    ]
    common = [name for name in values[0] if all(name in v for v in values)]
    return {name: float(np.mean([v[name] for v in values])) for name in common}


def differences(a: dict[str, float], b: dict[str, float]) -> np.ndarray:
    """a − b over the scenes that both have: [S]."""
    paired = np.array([a[name] - b[name] for name in a if name in b])
    return paired[np.isfinite(paired)]


def _finite_mean(values: dict[str, float]) -> float | None:
    finite = [v for v in values.values() if np.isfinite(v)]
    return float(np.mean(finite)) if finite else None


def entry(bench: Bench, row: Row, seeds: Sequence[int]) -> Entry:
    """A row of a table as plain data, held against what the row says."""
    out: Entry = {"row": row.name, "system": row.label, "cpsnr": None}
    cells = [c for c in (bench.cell(row, seed) for seed in seeds) if c is not None]
    if not cells:
        return out
    values = scene_values(cells)
    out |= {key: _finite_mean(scene_values(cells, key)) for key in ALTERNATIVES}
    means = [c["mean"]["cpsnr"] for c in cells if c["mean"]["cpsnr"] is not None]
    out |= {
        "cpsnr": _finite_mean(values),
        "seeds": len(cells),
        "seed_deviation": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "cssim": float(np.mean([c["mean"]["cssim"] or np.nan for c in cells])),
        "scenes": len(values),
        "gflop": cells[0]["gflop"],
        "parameters": cells[0]["parameters"],
        "train_seconds": float(np.mean([c["train_seconds"] for c in cells])),
        "steps": cells[0]["steps"],
        "made": sorted({_made(c["made"]) for c in cells}),
    }
    other = bench.rows[row.against]
    held = [c for c in (bench.cell(other, seed) for seed in seeds) if c is not None]
    if other.name != row.name and held:
        behind = differences(scene_values(held), values)
        if behind.size:
            low, high = bootstrap(behind)
            out |= {
                "against": other.label,
                "behind": float(behind.mean()),
                "low": low,
                "high": high,
                "wins": int((behind > 0).sum()),
                "of": int(behind.size),
            }
    return out


def _made(made: dict[str, Any]) -> str:
    """When, of which commit and where a cell was made."""
    return (
        f"{made['date']} of commit {made['commit']} on {made['cores']} cores of {made['processor']}"
        f" with jax {made['jax']}"
    )


# --- what is written ----------------------------------------------------------------------------


def markdown(table: Sequence[Entry], seeds: int, first: str = "system") -> str:
    """The table as Markdown."""
    names = {t["against"] for t in table if "against" in t}
    better = (
        f"{'its ' * (len(names) > 1)}{names.pop() if len(names) == 1 else 'DeepSUM'} is better by"
    )
    head = [first, "cPSNR dB", "cSSIM", f"{better} (95 %)", "on scenes", "steps", "training s",
            "GFLOP", "parameters"]  # fmt: skip
    lines = []
    for t in table:
        if t["cpsnr"] is None:
            lines.append([t["system"], "not run", *[""] * (len(head) - 2)])
            continue
        behind = f"{t['behind']:+.2f} ({t['low']:+.2f} to {t['high']:+.2f})" if "of" in t else ""
        spread = f" ± {t['seed_deviation']:.2f}" if t["seed_deviation"] is not None else ""
        some = f" ({t['seeds']} of {seeds} seeds)" if 1 < seeds > t["seeds"] and t["steps"] else ""
        lines.append(
            [
                t["system"],
                f"{t['cpsnr']:.2f}{spread}{some}",
                f"{t['cssim']:.4f}",
                behind,
                f"{t['wins']} of {t['of']}" if "of" in t else "",
                " + ".join(str(v) for v in t["steps"].values()) or "–",
                f"{t['train_seconds']:.0f}",
                f"{t['gflop']:.1f}" if t["gflop"] else "–",
                f"{t['parameters']:,}",
            ]
        )
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def company(table: Sequence[Entry]) -> str:
    """What the alternatives have on the scenes of a table's rows, in a line; a range where rows
    differ in scenes or settings. Empty where no cell tells."""
    parts = []
    for key, label in ALTERNATIVES.items():
        known = [f"{t[key]:.2f}" for t in table if t.get(key) is not None]
        if known:
            low, high = min(known, key=float), max(known, key=float)
            parts.append(f"{label} {low}" + f" to {high}" * (low != high))
    return f"On the same scenes: {', '.join(parts)} dB." if parts else ""


def chart(table: Sequence[Entry], title: str) -> Figure:
    """The rows as dots on one axis, which need not begin at zero as bars would."""
    known = [t for t in table if t["cpsnr"] is not None]
    figure = Figure(figsize=(7, 0.45 * len(known) + 1.1), layout="constrained")
    axis = figure.subplots()
    for y, t in enumerate(known):
        axis.errorbar(t["cpsnr"], y, xerr=t["seed_deviation"], fmt="o", color="#4878a8", capsize=3)
        axis.annotate(f"{t['cpsnr']:.2f}", (t["cpsnr"], y), (0, 7), textcoords="offset points",
                      ha="center", fontsize=9)  # fmt: skip
    axis.set_yticks(range(len(known)), [t["system"] for t in known])
    axis.set(xlabel="mean cPSNR on the test scenes, dB", title=title)
    axis.margins(x=0.15, y=0.2)
    axis.grid(axis="x", alpha=0.3)
    axis.invert_yaxis()
    return figure


_COLOURS = ("#4878a8", "#c8663c", "#4f9a5b", "#8a6bb0")


def curves(exhibit: Exhibit, entries: dict[str, Entry]) -> Figure:
    """The curves over their axis; the table's rows as level lines."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for (label, points), colour in zip(exhibit.curves.items(), _COLOURS):
        known = [(x, entries[r.name]) for x, r in points if entries[r.name]["cpsnr"] is not None]
        spread = [t["seed_deviation"] or 0 for _, t in known]
        if known:
            axis.errorbar(
                [x for x, _ in known], [t["cpsnr"] for _, t in known],
                yerr=spread if any(spread) else None,
                fmt="o-", color=colour, label=label, capsize=3,
            )  # fmt: skip
    for row in exhibit.table:
        if entries[row.name]["cpsnr"] is not None:
            axis.axhline(entries[row.name]["cpsnr"], color="grey", linestyle="--", label=row.label)
    axis.set(xlabel=exhibit.axis, ylabel="mean cPSNR on the test scenes, dB", title=exhibit.title)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend()
    return figure


def _curve_table(exhibit: Exhibit, entries: dict[str, Entry]) -> list[Entry]:
    """The points of all curves as rows."""
    out = [entries[row.name] for row in exhibit.table]
    for label, points in exhibit.curves.items():
        out += [{**entries[row.name], "system": f"{label}, {x:g}", "x": x} for x, row in points]
    return out


def write(output: Path, exhibit: Exhibit, bench: Bench, seeds: Sequence[int], caption: str) -> str:
    """Writes an exhibit's CSV, Markdown and PNG from the cells there are; returns the Markdown."""
    entries = {row.name: entry(bench, row, seeds) for row in exhibit.rows}
    if exhibit.curves:
        table, figure = _curve_table(exhibit, entries), curves(exhibit, entries)
    else:
        table = [entries[row.name] for row in exhibit.table]
        figure = chart(table, exhibit.title)
    made = sorted({m for t in table for m in t.get("made", ())})
    caption += f" Made {'; '.join(made)}." if made else ""
    text = markdown(table, len(seeds), f"system, {exhibit.axis}" if exhibit.axis else "system")
    beside = company(table)
    text += f"\n{beside}\n" if beside else ""
    with files.written_aside(output / f"{exhibit.name}.csv") as aside:
        _write_csv(aside, table, f"{beside} {caption}".strip())
    with files.written_aside(output / f"{exhibit.name}.md") as aside:
        aside.write_text(f"# {exhibit.title}\n\n{exhibit.about}\n\n{text}\n{caption}\n")
    figures.save(figure, output / f"{exhibit.name}.png", caption)
    return text


_COLUMNS = (
    "row", "system", "x", "cpsnr", "seeds", "seed_deviation", "cssim", "scenes", *ALTERNATIVES,
    "against", "behind", "low", "high", "wins", "of", "steps", "train_seconds", "gflop",
    "parameters", "made",
)  # fmt: skip


def _write_csv(path: Path, table: Sequence[Entry], caption: str) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        for t in table:
            lists = [k for k in ("steps", "made") if k in t]
            writer.writerow({**t, **{k: json.dumps(t[k]) for k in lists}})
        file.write(f"# {caption}\n")


# --- arguments --------------------------------------------------------------------------------


def parser(command: str, what: str) -> argparse.ArgumentParser:
    """The arguments that all experiments share."""
    p = cli.parser(
        command,
        f"{what}\nTrains what is missing, scores it on held-out scenes, writes CSV, Markdown and "
        "PNG.",
        "A run that was interrupted goes on. Experiments in one --workdir share what they train.",
    )
    p.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="for runs and cells")
    p.add_argument(
        "--data", type=Path, metavar="DIR",
        help="scenes in the Kelvins layout; scored where test/ has HR, else on those that training "
        "leaves out (default: simulated)",
    )  # fmt: skip
    p.add_argument("--output", type=Path, metavar="DIR", help="for the files (default: --workdir)")
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


def make_bench(args: argparse.Namespace) -> Bench:
    """The bench that the arguments mean.

    Raises:
      ValueError: a setting out of range, or a working directory of another budget.
    """
    if not 0 < args.steps_scale < float("inf"):
        raise ValueError(f"--steps-scale: found {args.steps_scale}, expected more than 0")
    base = scaled(override(preset(args.preset), args.assignments), args.steps_scale)
    parallel.use_cores([getattr(base, stage).batch_size for stage in STAGES])
    budget = {
        "configuration": base.to_dict(),
        "data": str(args.data.absolute()) if args.data else None,
        "max_frames": args.max_frames,
    }
    kept = args.workdir / "budget.json"
    if kept.exists() and files.read_json(kept) != json.loads(json.dumps(budget)):
        raise ValueError(f"{args.workdir}: holds cells of another budget; use another --workdir")
    if args.data and not args.data.is_dir():
        raise FileNotFoundError(f"{args.data}: found no such folder, expected scenes in it")
    files.write_json(kept, budget)
    return Bench(args.workdir, args.data, base, args.max_frames, ROWS)


def caption(command: str, args: argparse.Namespace, base: TrainConfig) -> str:
    """What was asked for and the budget, to stand under every table and figure."""
    command += f" --preset {args.preset}" + "".join(f" --set {a}" for a in args.assignments)
    command += f" --steps-scale {args.steps_scale:g} --seeds {' '.join(map(str, args.seeds))}"
    scenes = "the given data" if args.data else "simulated scenes"
    budget = ", ".join(
        f"{name} {stage.steps} steps of {stage.batch_size}"
        for name, stage in ((s, getattr(base, s)) for s in STAGES)
    )
    return (
        f"Held-out part of {scenes}, at most {args.max_frames} frames. `{command}`. Budget: "
        f"{budget}; patches of {base.data.patch_size} HR pixels."
    )
