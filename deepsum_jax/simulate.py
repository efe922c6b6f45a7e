"""Simulated scenes in the Kelvins layout.

python -m deepsum_jax.simulate --output data --scenes 48 --seed 0
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from deepsum_jax import cli
from deepsum_jax.config import SimulationConfig
from deepsum_jax.data.simulation import write_dataset


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    default = SimulationConfig()
    p = cli.parser(
        "deepsum simulate",
        "Simulate satellite scenes (fields, relief, roads, water, clouds) with known shifts, in\n"
        "the folder layout of the PROBA-V Kelvins challenge.",
        """Each scene folder has LRxxx.png with its mask QMxxx.png, HR.png with SM.png, and
truth.json, the shift of every frame in HR pixels. The same seed gives the same files, and a
scene does not change when more of them are asked for.""",
    )
    p.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="new or empty folder for the data set",
    )
    p.add_argument(
        "--scenes", type=int, required=True, metavar="N", help="training scenes per band"
    )
    p.add_argument("--seed", type=int, required=True, metavar="S", help="any number from 0 on")
    p.add_argument(
        "--test-scenes",
        type=int,
        default=0,
        metavar="M",
        help="test scenes per band; unlike the challenge's they have HR (default 0)",
    )
    p.add_argument(
        "--size",
        type=int,
        default=default.lr_size,
        metavar="PX",
        help=f"height and width of a frame in LR pixels; HR has {default.scale} times "
        "as many (default %(default)s)",
    )
    p.add_argument(
        "--band",
        choices=("NIR", "RED", "both"),
        default="NIR",
        help="near infrared is brighter than red (default %(default)s)",
    )
    p.add_argument(
        "--min-frames",
        type=int,
        default=default.min_frames,
        metavar="T",
        help="fewest frames of a scene (default %(default)s)",
    )
    p.add_argument(
        "--max-frames",
        type=int,
        metavar="T",
        help=f"most frames of a scene (default {default.max_frames}, or --min-frames if "
        "that is more; PROBA-V has 19 on average)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    most = args.max_frames
    if most is None:
        most = max(SimulationConfig().max_frames, args.min_frames)
    config = SimulationConfig(
        scenes=args.scenes,
        test_scenes=args.test_scenes,
        seed=args.seed,
        lr_size=args.size,
        bands=("RED", "NIR") if args.band == "both" else (args.band,),
        min_frames=args.min_frames,
        max_frames=most,
    )
    folders = write_dataset(args.output, config, progress=True)
    print(f"{len(folders)} scenes in {args.output}")


if __name__ == "__main__":
    cli.run(main)
