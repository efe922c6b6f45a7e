"""Instance norm against batch norm on frames with a constant added.

python -m experiments.haze --workdir DIR [--data DIR] [--steps-scale X]
"""

from __future__ import annotations

from collections.abc import Sequence

from deepsum_jax import cli
from experiments import exhibits, tables


def main(argv: Sequence[str] | None = None) -> None:
    tables.main(exhibits.HAZE, argv)


if __name__ == "__main__":
    cli.run(main)
