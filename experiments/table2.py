"""Table II: systems.

python -m experiments.table2 --workdir DIR [--data DIR] [--steps-scale X]
"""

from __future__ import annotations

from collections.abc import Sequence

from deepsum_jax import cli
from experiments import tables

ROWS = (tables.BICUBIC, tables.IBP, tables.SISR, tables.SISR_MEAN, tables.DUF, tables.DEEPSUM)


def main(argv: Sequence[str] | None = None) -> None:
    tables.run("table2", "Table II: systems", ROWS, argv)


if __name__ == "__main__":
    cli.run(main)
