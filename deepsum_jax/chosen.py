"""Which system a command works with: its arguments, and the bundles that they mean."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from deepsum_jax import cli, pretrained
from deepsum_jax.bundle import Bundle, load_params
from deepsum_jax.config import Compute, ModelConfig, TrainConfig, override
from deepsum_jax.systems.table import parameterless


def add_system_arguments(p: argparse.ArgumentParser, several: bool = False) -> None:
    """`--params` or `--system`, by default the parameters that the package ships; `--scale` and
    `--psf-sigma` for these and for systems that need none.

    Args:
      p: gets the arguments.
      several: whether `--params` may be repeated, one bundle a band.
    """
    either = p.add_mutually_exclusive_group()
    what = (
        "a parameter bundle, or the workdir of a training"
        f"{'; one for each band' if several else ''} (default: {pretrained.DEFAULT}, those that "
        f"the package ships; a folder of that name is ./{pretrained.DEFAULT})"
    )
    either.add_argument(
        "--params",
        type=pretrained.place,
        action="append" if several else "store",
        metavar="DIR",
        help=what,
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
        help="output pixels per input pixel, of the shipped parameters or of --system, 1 to 8 "
        f"(default: {ModelConfig().scale}); parameters from a folder have their own",
    )
    p.add_argument(
        "--psf-sigma",
        type=float,
        metavar="S",
        help="blur of the sensor, the Gaussian's deviation in input pixels, for the shipped "
        f"parameters (default: theirs) or --system (default: {ModelConfig().psf_sigma}); "
        "parameters from a folder have their own",
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
      ValueError: settings beside parameters that have their own, or out of range.
      ValueError, FileNotFoundError: as `load_params`.
    """
    settings = {"scale": args.scale, "psf_sigma": args.psf_sigma}
    given = {name: value for name, value in settings.items() if value is not None}
    if args.system:
        return [(args.system, Bundle({}, _configured(ModelConfig(system=args.system), given)))]
    asked = args.params or pretrained.DEFAULT
    paths = asked if isinstance(asked, list) else [asked]
    for name, value in given.items():
        if not all(pretrained.is_default(path) for path in paths):
            raise ValueError(
                f"--{name.replace('_', '-')}: found {value:g} for trained parameters, which have "
                f"their own; expected it with --system, or with --params {pretrained.DEFAULT}"
            )
    return [
        (str(path), _shipped(given) if pretrained.is_default(path) else load_params(path))
        for path in paths
    ]


def _shipped(settings: dict[str, Any]) -> Bundle:
    """The shipped parameters under the settings that were asked for; says that it is these."""
    bundle = load_params(pretrained.shipped(settings.get("scale"), "--scale"))
    bundle = dataclasses.replace(bundle, config=_configured(bundle.config, settings))
    what = f"{bundle.config.system}, scale {bundle.config.scale}"
    print(f"using the parameters that the package ships ({what})", file=sys.stderr)
    return bundle


def _configured(config: ModelConfig, settings: dict[str, Any]) -> ModelConfig:
    try:
        return dataclasses.replace(config, **settings)
    except ValueError as error:
        raise ValueError(
            str(error)
            .replace("ModelConfig.scale", "--scale")
            .replace("ModelConfig.psf_sigma", "--psf-sigma")
        ) from None
