"""IBP against the blur that it takes the sensor to have.

python -m experiments.sensor --workdir DIR [--data DIR] [--steps-scale X]
"""

from __future__ import annotations

from collections.abc import Sequence

from deepsum_jax import cli
from experiments import exhibits, tables


def main(argv: Sequence[str] | None = None) -> None:
    tables.main(exhibits.SENSOR, argv)


if __name__ == "__main__":
    cli.run(main)
