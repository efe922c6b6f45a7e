"""All commands under one name: `deepsum COMMAND …`, or `python -m deepsum_jax COMMAND …`."""

from __future__ import annotations

import importlib
import sys

from deepsum_jax import cli
from deepsum_jax.config import nearest

COMMANDS = {
    "predict": "one sharper image from a stack of frames",
    "train": "a system from scenes with HR; resumable",
    "evaluate": "scores on scenes with HR, beside the honest alternatives",
    "simulate": "scenes with known shifts, to try things on",
    "submit": "the Kelvins challenge's test scenes as one zip",
    "export": "a system as one file that JAX alone runs, on CPU, GPU and TPU",
    "check": "whether a zip can be handed in",
    "tf_import": "the authors' TensorFlow weights as a parameter bundle",
}
"""Every command and what it gives; each is a module of its name."""


def usage() -> str:
    """The commands as text."""
    lines = [f"  {name:<11}{about}" for name, about in COMMANDS.items()]
    return "\n".join(
        [
            "usage: deepsum COMMAND [arguments]",
            "",
            "Multi-image super-resolution of satellite stacks.",
            "",
            *lines,
            "",
            "deepsum COMMAND --help explains each; so does python -m deepsum_jax.COMMAND.",
        ]
    )


def _dispatch() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    name = arguments[0].replace("-", "_")
    if arguments[0] == "--version":
        from deepsum_jax.bundle import package_version

        print(package_version())
        return
    if name not in COMMANDS:
        raise ValueError(f"deepsum: no command {arguments[0]!r}; {nearest(name, COMMANDS)}")
    importlib.import_module(f"deepsum_jax.{name}").main(arguments[1:])


def main() -> None:
    """The console script."""
    cli.run(_dispatch)


if __name__ == "__main__":
    main()
