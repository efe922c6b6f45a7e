"""Every table and figure as one resumable queue, cell by cell, and the report of what there is.

python -m experiments.all --workdir DIR [--data DIR] [--steps-scale X] [--seeds 0 1 2]
"""

from __future__ import annotations

from collections.abc import Sequence

from deepsum_jax import cli
from experiments import panels, report, tables
from experiments.cells import raise_failures
from experiments.exhibits import EXHIBITS, PANELS
from experiments.rows import Row


def main(argv: Sequence[str] | None = None) -> None:
    p = tables.parser("python -m experiments.all", "Every table and figure of the experiments.")
    p.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", choices=[e.name for e in EXHIBITS],
        help=f"of {', '.join(e.name for e in EXHIBITS)}",
    )  # fmt: skip
    args = p.parse_args(argv)
    bench, output = tables.make_bench(args), args.output or args.workdir
    chosen = [e for e in EXHIBITS if not args.only or e.name in args.only]
    about = tables.caption("python -m experiments.all", args, bench.base)

    def rewrite(row: Row | None = None) -> None:
        """Writes the exhibits that a row belongs to; without one, all of them."""
        for e in chosen:
            if e.rows and (row is None or row in e.rows):
                tables.write(output, e, bench, args.seeds, about)
        if row is None and PANELS in chosen:
            panels.draw(bench, output, args.seeds[0], about)

    rows = [row for e in chosen for row in (*e.rows, *e.needs)]
    failures = tables.run_missing(bench, rows, args, rewrite)
    rewrite()
    report.main(["--input", str(output)])
    raise_failures(failures)


if __name__ == "__main__":
    cli.run(main)
