"""How the cost of the network grows with frames, image size and features: a table and a plot.

    python -m experiments scaling --output DIR [--preset P]

Times and memory of one forward pass, each in a process of its own, as `experiments benchmark`
measures them. One quantity varies at a time, the others stay at the preset's.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from deepsum_jax import cli, figures, files
from deepsum_jax.config import PRESETS, override, preset
from experiments import benchmark

SWEEPS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    # what it is called: the setting, its unit, the values
    "frames": ("model.num_frames", "frames N", (3, 5, 7, 9, 11, 13)),
    "pixels": ("data.patch_size", "side of the upsampled image, pixels", (48, 96, 144, 192, 288)),
    "features": ("model.features", "features F", (16, 32, 48, 64, 96, 128)),
}
_COLUMNS = ("sweep", "value", "seconds", "work_gflop", "roof_gflops", "score", "peak_memory_gb")


def measure(preset_name: str, pairs: int) -> list[dict[str, Any]]:
    """Every row of the table."""
    rows = []
    for sweep, (setting, _, values) in SWEEPS.items():
        for value in values:
            found = benchmark.run_apart("forward", preset_name, [f"{setting}={value}"], 1, pairs)
            rows.append({"sweep": sweep, "value": value, **found})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| | | seconds | GFLOP | score | peak GB |", "|---|---|---|---|---|---|"]
    for r in rows:
        lines.append(
            f"| {r['sweep']} | {r['value']} | {r['seconds']:.3g} | {r['work_gflop']:.4g} "
            f"| {r['score']:.2f} | {r['peak_memory_gb']:.2f} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """Seconds over each quantity, beside nominal work at the roof's speed."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axis, (sweep, (_, unit, _)) in zip(figure.subplots(1, len(SWEEPS)), SWEEPS.items()):
        own = [r for r in rows if r["sweep"] == sweep]
        values = [r["value"] for r in own]
        axis.loglog(values, [r["seconds"] for r in own], "o-", label="measured")
        ideal = [r["work_gflop"] / r["roof_gflops"] for r in own]
        axis.loglog(values, ideal, "--", color="gray", label="nominal work at the roof")
        axis.set(xlabel=unit, xticks=values)
        axis.set_xticklabels(values)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("seconds, forward")
    figure.axes[0].legend(fontsize=8)
    return figure


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = cli.parser(
        "python -m experiments scaling",
        "Measure how the forward pass grows with frames, image size and features.",
    )
    p.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="for scaling.csv, .md and .png"
    )
    p.add_argument(
        "--preset", default="reference", help=f"{', '.join(PRESETS)} (default: %(default)s)"
    )
    p.add_argument(
        "--pairs", type=cli.positive, default=5, help="alternating timings (default: %(default)s)"
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    for setting, _, values in SWEEPS.values():  # refused before anything is measured
        override(preset(args.preset), [f"{setting}={values[0]}"])
    files.check_target(args.output / "scaling.csv", "--output")
    rows = measure(args.preset, args.pairs)
    about = ", ".join(f"{k} {v}" for k, v in benchmark.machine().items())
    command = f"python -m experiments scaling --preset {args.preset} --pairs {args.pairs}"
    text = f"{table(rows)}\n\n`{command}`: {rows[0]['platform']}, {about}\n"
    with (
        files.written_aside(args.output / "scaling.csv") as aside,
        open(aside, "w", newline="") as file,
    ):
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    with files.written_aside(args.output / "scaling.md") as aside:
        aside.write_text(text)
    figures.save(plot(rows), args.output / "scaling.png")
    print(text)


if __name__ == "__main__":
    cli.run(main)
