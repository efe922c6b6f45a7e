"""Table I: what RegNet brings.

python -m experiments.table1 --workdir DIR [--data DIR] [--steps-scale X]
"""

from __future__ import annotations

from collections.abc import Sequence

from deepsum_jax import cli
from experiments import tables

ROWS = (tables.UNREGISTERED, tables.DEEPSUM)


def main(argv: Sequence[str] | None = None) -> None:
    tables.run("table1", "Table I: what RegNet brings", ROWS, argv)


if __name__ == "__main__":
    cli.run(main)
