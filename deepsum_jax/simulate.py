"""Scenes whose truth is known, in the Kelvins layout: simulated, or cut from real dates.

python -m deepsum_jax.simulate --output data --scenes 48 --seed 0
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepsum_jax import cli
from deepsum_jax.config import ChangingGround, SimulationConfig
from deepsum_jax.simulation.dataset import write_dataset
from deepsum_jax.simulation.dates import read_dates
from deepsum_jax.simulation.wald import TRUTHS, YEARS, WaldConfig, write_wald_dataset


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    default, real = SimulationConfig(), WaldConfig()
    p = cli.parser(
        "deepsum simulate",
        "Make scenes whose truth is known, in the folder layout of the PROBA-V Kelvins challenge:\n"
        "simulated ones (fields, relief, roads, water, clouds), or real dates degraded (--from).",
        """examples:
  simulate --output data --scenes 48 --seed 0                      ground that hardly changes
  simulate --output data --scenes 48 --seed 0 --ground changing    as real years change it
  simulate --output data --from 2009.tif 2010.tif … --band-number 4 --years half

Each scene folder has LRxxx.png with its mask QMxxx.png, HR.png with SM.png, and truth.json, the
shift of every frame in HR pixels; changing ground also has same_ground.npz, whether each pixel of
each frame shows the reference's ground. The same seed gives the same files, and a scene does not
change when more of them are asked for.""",
    )
    p.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="new or empty folder for the data set",
    )
    p.add_argument(
        "--seed", type=int, default=0, metavar="S", help="any number from 0 on (default 0)"
    )
    p.add_argument(
        "--band",
        choices=("NIR", "RED", "both"),
        default="NIR",
        help="near infrared is brighter than red; with --from, what the scenes call their band "
        "(default %(default)s)",
    )
    p.add_argument(
        "--scale",
        type=cli.positive,
        default=default.scale,
        metavar="R",
        help="HR pixels per LR pixel (default %(default)s)",
    )

    simulated = p.add_argument_group("simulated scenes")
    simulated.add_argument(
        "--scenes", type=int, metavar="N", help="training scenes per band (needed without --from)"
    )
    simulated.add_argument(
        "--test-scenes",
        type=int,
        default=0,
        metavar="M",
        help="test scenes per band; unlike the challenge's they have HR (default 0)",
    )
    simulated.add_argument(
        "--ground",
        choices=("steady", "changing"),
        default="steady",
        help="changing: other years, harvest, flood, haze and thin cloud that no mask knows, "
        "sensors and misregistration of many kinds (default %(default)s)",
    )
    simulated.add_argument(
        "--size",
        type=int,
        default=default.lr_size,
        metavar="PX",
        help="height and width of a frame in LR pixels; HR has R times as many "
        "(default %(default)s)",
    )
    simulated.add_argument(
        "--min-frames",
        type=int,
        default=default.min_frames,
        metavar="T",
        help="fewest frames of a scene (default %(default)s)",
    )
    simulated.add_argument(
        "--max-frames",
        type=int,
        metavar="T",
        help=f"most frames of a scene (default {default.max_frames}, or --min-frames if "
        "that is more; PROBA-V has 19 on average)",
    )

    dates = p.add_argument_group("real dates (Wald's protocol: a date is HR, all are degraded)")
    dates.add_argument(
        "--from",
        nargs="+",
        type=Path,
        metavar="RASTER",
        dest="dates",
        help="GeoTIFFs of one place in order of time, one a date (extra `geo`), or one .npy or "
        ".npz of [T, H, W]; 0 is no data, 8 bits are multiplied by 64",
    )
    dates.add_argument(
        "--band-number",
        type=cli.positive,
        default=1,
        metavar="N",
        help="of the GeoTIFFs, whatever they call it (default 1)",
    )
    dates.add_argument(
        "--years",
        choices=YEARS,
        default=real.years,
        help="a stack of all dates, of as many looks at one, or half of each (default %(default)s)",
    )
    dates.add_argument(
        "--truth",
        choices=TRUTHS,
        default=real.truth,
        help="in: HR's own date is among the frames, and the reference (default %(default)s)",
    )
    dates.add_argument(
        "--window",
        type=int,
        metavar="PX",
        help=f"height and width of a scene, HR pixels (default: {real.window}, or the multiple of "
        "the scale below it)",
    )
    ends: dict[str, Any] = {"type": int, "nargs": 2, "metavar": ("FIRST", "END")}
    dates.add_argument(
        "--train-columns", **ends, help="columns that training scenes come from (default: none)"
    )
    dates.add_argument(
        "--test-columns", **ends, help="columns that test scenes come from (default: all)"
    )
    return p


def _pair(ends: Sequence[int] | None) -> tuple[int, int] | None:
    return None if ends is None else (ends[0], ends[1])


def _write_dates(args: argparse.Namespace) -> int:
    if args.scenes is not None or args.test_scenes:
        raise ValueError("--scenes: found it beside --from, whose dates say how many scenes fit")
    if args.band == "both":
        raise ValueError("--band both: found it beside --from, expected NIR or RED")
    window = args.window or WaldConfig.window // args.scale * args.scale
    config = WaldConfig(scale=args.scale, window=window, years=args.years, truth=args.truth)
    dates = read_dates(args.dates, args.band_number)
    folders = write_wald_dataset(
        args.output,
        dates.values,
        dates.masks,
        config,
        band=args.band,
        seed=args.seed,
        columns=_pair(args.test_columns),
        train=_pair(args.train_columns),
    )
    return len(folders)


def _write_simulated(args: argparse.Namespace) -> int:
    if args.scenes is None:
        raise ValueError("--scenes: found none, expected how many to simulate, or --from RASTER…")
    most = args.max_frames
    if most is None:
        most = max(SimulationConfig().max_frames, args.min_frames)
    config = SimulationConfig(
        scenes=args.scenes,
        test_scenes=args.test_scenes,
        seed=args.seed,
        lr_size=args.size,
        scale=args.scale,
        bands=("RED", "NIR") if args.band == "both" else (args.band,),
        min_frames=args.min_frames,
        max_frames=most,
    )
    changing = ChangingGround() if args.ground == "changing" else None
    return len(write_dataset(args.output, config, changing=changing, progress=True))


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    count = _write_dates(args) if args.dates else _write_simulated(args)
    print(f"{count} scenes in {args.output}")


if __name__ == "__main__":
    cli.run(main)
