"""Which system a command works with: its arguments, and the bundles that they mean."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from deepsum_jax import cli
from deepsum_jax.bundle import Bundle, load_params
from deepsum_jax.config import Compute, ModelConfig, TrainConfig, override
from deepsum_jax.systems.table import parameterless


def add_system_arguments(p: argparse.ArgumentParser, several: bool = False) -> None:
    """`--params`, or `--system` with `--scale` and `--psf-sigma` for what needs none.

    Args:
      p: gets the arguments.
      several: whether `--params` may be repeated, one bundle a band.
    """
    either = p.add_mutually_exclusive_group(required=True)
    what = "a parameter bundle, or the workdir of a training"
    either.add_argument(
        "--params",
        type=Path,
        action="append" if several else "store",
        metavar="DIR",
        help=f"{what}; one for each band" if several else what,
    )
    either.add_argument(
        "--system",
        choices=parameterless(),
        help="a system without parameters, in place of a trained one",
    )
    p.add_argument(
        "--scale",
        type=cli.positive,
        metavar="R",
        help="with --system: output pixels per input pixel, 1 to 8 "
        f"(default: {ModelConfig().scale}); parameters have their own",
    )
    p.add_argument(
        "--psf-sigma",
        type=float,
        metavar="S",
        help="with --system: blur of the sensor, the Gaussian's deviation in input pixels "
        f"(default: {ModelConfig().psf_sigma}); parameters have their own",
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        dest="assignments",
        metavar="compute.FIELD=VALUE",
        help="what to compute with, as compute.dtype=bfloat16; may be repeated",
    )


def chosen_compute(args: argparse.Namespace) -> Compute:
    """What `--set compute.FIELD=VALUE` asked for.

    Raises:
      ValueError: another section, or a field or value that there is not.
    """
    for assignment in args.assignments:
        if not assignment.strip().startswith("compute."):
            raise ValueError(
                f"--set {assignment}: found a setting of trained parameters, expected "
                "compute.FIELD=VALUE (the others travel with the parameters)"
            )
    return override(TrainConfig(), args.assignments).compute


def chosen_bundle(args: argparse.Namespace) -> Bundle:
    """The system that `add_system_arguments` asked for; the only one.

    Raises:
      ValueError, FileNotFoundError: as `chosen_bundles`.
    """
    ((_, bundle),) = chosen_bundles(args)
    return bundle


def chosen_bundles(args: argparse.Namespace) -> list[tuple[str, Bundle]]:
    """The systems that `add_system_arguments` asked for, each with what messages call it.

    Raises:
      ValueError: settings of a system without parameters beside parameters, or out of range.
      ValueError, FileNotFoundError: as `load_params`.
    """
    settings = {"scale": args.scale, "psf_sigma": args.psf_sigma}
    given = {name: value for name, value in settings.items() if value is not None}
    if args.system:
        return [(args.system, Bundle({}, _configured(args.system, given)))]
    for name, value in given.items():
        raise ValueError(
            f"--{name.replace('_', '-')}: found {value:g} for trained parameters, which have "
            "their own; expected it with --system alone"
        )
    paths = args.params if isinstance(args.params, list) else [args.params]
    return [(str(path), load_params(path)) for path in paths]


def _configured(system: str, settings: dict[str, Any]) -> ModelConfig:
    try:
        return ModelConfig(system=system, **settings)
    except ValueError as error:
        raise ValueError(
            str(error)
            .replace("ModelConfig.scale", "--scale")
            .replace("ModelConfig.psf_sigma", "--psf-sigma")
        ) from None
