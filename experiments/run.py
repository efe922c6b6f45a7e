"""Tables and figures as one resumable queue, cell by cell, each written as soon as its cells are.

python -m experiments NAME… --workdir DIR [--data DIR] [--steps-scale X] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments import panels, report, tables
from experiments.cells import missing, raise_failures, run_all
from experiments.exhibits import EXHIBITS, PANELS, Exhibit
from experiments.rows import Row


def _made(
    chosen: Sequence[Exhibit], args: argparse.Namespace, command: str
) -> tuple[dict[str, str], list[str]]:
    """Runs what is missing of exhibits and writes them.

    Returns:
      What to print of each, by name, and what failed, for `raise_failures`.
    """
    bench, output = tables.make_bench(args), args.output or args.workdir
    about = tables.caption(command, args, bench.base)
    texts: dict[str, str] = {}

    def rewrite(row: Row | None = None) -> None:
        """Writes the exhibits that a row belongs to; without one, all of them."""
        for e in chosen:
            if e.rows and (row is None or row in e.rows):
                texts[e.name] = tables.write(output, e, bench, args.seeds, about)
        if row is None and PANELS in chosen:
            panels.draw(bench, output, args.seeds[0], about)
            texts[PANELS.name] = _pictures(output)

    cells = missing(bench, [row for e in chosen for row in e.rows], args.seeds)
    shown = missing(bench, [row for e in chosen for row in e.needs], args.seeds[:1])
    cells += [cell for cell in shown if cell not in cells]
    failures = [] if args.no_run else run_all(bench, cells, rewrite)
    rewrite()
    return texts, failures


def _pictures(output: Path) -> str:
    return f"pictures: {', '.join(str(p) for p in sorted(output.glob(f'{PANELS.name}_*.png')))}\n"


def run(chosen: Sequence[Exhibit], argv: Sequence[str] | None = None) -> None:
    """Some exhibits from their command line."""
    command = f"python -m experiments {' '.join(e.name for e in chosen)}"
    what = "\n".join(f"{e.title}. {e.about}" for e in chosen)
    args = tables.parser(command, what).parse_args(argv)
    texts, failures = _made(chosen, args, command)
    for e in chosen:
        print(f"\n{e.title}\n\n{texts[e.name]}", end="")
    raise_failures(failures)


def main(argv: Sequence[str] | None = None) -> None:
    """All of them, or those of `--only`, and the report."""
    command, names = "python -m experiments all", [e.name for e in EXHIBITS]
    p = tables.parser(command, "Every table and figure of the experiments, and the report.")
    some = f"of {', '.join(names)}"
    p.add_argument("--only", nargs="+", default=[], metavar="NAME", choices=names, help=some)
    args = p.parse_args(argv)
    chosen = [e for e in EXHIBITS if not args.only or e.name in args.only]
    _, failures = _made(chosen, args, command)
    report.main(["--input", str(args.output or args.workdir)])
    raise_failures(failures)
