"""Quality against N at training.

python -m experiments.frames_training --workdir DIR [--data DIR] [--steps-scale X]
"""

from __future__ import annotations

from collections.abc import Sequence

from deepsum_jax import cli
from experiments import exhibits, tables


def main(argv: Sequence[str] | None = None) -> None:
    tables.main(exhibits.FRAMES_TRAINING, argv)


if __name__ == "__main__":
    cli.run(main)
