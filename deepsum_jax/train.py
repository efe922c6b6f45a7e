"""Training from scenes to a parameter bundle, in stages, resumable at any moment.

python -m deepsum_jax.train --workdir DIR [--data DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deepsum_jax import cli, pretrained
from deepsum_jax.config import PRESETS, TrainConfig, override, preset
from deepsum_jax.systems.table import stages_of
from deepsum_jax.training import parallel, stages, workdir
from deepsum_jax.training.run import train


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = cli.parser(
        "deepsum train",
        "Train DeepSUM in its stages (SISRNet, RegNet, end to end), or another system in its own.",
        """examples:
  train --workdir W                             a demo on simulated scenes, minutes on a CPU
  train --workdir W --data DIR                  the published training on your scenes
  train --workdir W                             goes on with W where it was
  train --workdir RED --data DIR --set data.band=RED --init NIR      RED from NIR
  train --workdir W --data DIR --set model.system=unrolled --init default   from those shipped
  train --workdir W --data DIR --set model.features=32 --set deepsum.steps=50000

DIR has the layout of the PROBA-V Kelvins challenge:
  norm.csv, {train,test}/BAND/SCENE/{LR000.png, QM000.png, …, HR.png, SM.png}""",
    )
    p.add_argument(
        "--workdir",
        required=True,
        type=Path,
        metavar="DIR",
        help="where everything is kept; an unfinished run there goes on",
    )
    p.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="scenes in the Kelvins layout (default: simulated ones)",
    )
    p.add_argument(
        "--preset",
        metavar="NAME",
        help=f"{', '.join(PRESETS)} (default: reference with --data, else demo)",
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        dest="assignments",
        help="override one setting; may be repeated",
    )
    p.add_argument(
        "--stages",
        metavar="NAME[,NAME…]",
        default="",
        help=f"run only these of {', '.join(stages.NAMES)} (default: all that are needed)",
    )
    p.add_argument(
        "--init",
        type=pretrained.place,
        metavar="DIR",
        help="start from another run's parameters, an imported bundle, or default, the "
        "parameters that the package ships for model.scale (a folder of that name is ./default)",
    )
    p.add_argument(
        "--show-config", action="store_true", help="print every setting with its value, and stop"
    )
    return p


def _settings(args: argparse.Namespace) -> tuple[TrainConfig, Path | None]:
    """The configuration and data that the arguments mean.

    A `--workdir` of an earlier run without `--preset` and `--data` means that run's own, with what
    is `--set` on top.
    """
    stored = None if args.data or args.preset else workdir.read_config(args.workdir)
    if stored is not None:
        return override(stored, args.assignments), workdir.stored_root(args.workdir)
    config = preset(args.preset or ("reference" if args.data else "demo"))
    return override(config, args.assignments), args.data


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    config, data = _settings(args)
    if args.show_config:
        for line in _lines(config.to_dict()):
            print(line)
        return
    only = [name for name in args.stages.split(",") if name]
    parallel.use_cores([getattr(config, s.name).batch_size for s in stages_of(config.model)])
    train(args.workdir, config, data, only, args.init)


def _lines(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value}"


if __name__ == "__main__":
    cli.run(main)
