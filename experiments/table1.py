"""Table I: what RegNet brings.

python -m experiments.table1 --workdir DIR [--data DIR] [--steps-scale X]
"""

from __future__ import annotations

from collections.abc import Sequence

from deepsum_jax import cli
from experiments import exhibits, tables


def main(argv: Sequence[str] | None = None) -> None:
    tables.main(exhibits.TABLE1, argv)


if __name__ == "__main__":
    cli.run(main)
