"""Whether a zip can be handed in to the Kelvins challenge.

python -m deepsum_jax.check submission.zip
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from deepsum_jax import cli
from deepsum_jax.data.submission import check_submission

_SHOWN = 20  # faults


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = cli.parser(
        "deepsum check",
        "Check a submission to the Kelvins challenge: 290 images of the test scenes, flat in the\n"
        "zip, 16-bit grey PNGs of 384×384 pixels. Every fault is named; exit status 2 with any.",
    )
    p.add_argument("submission", type=Path, metavar="FILE", help="the zip")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    faults = check_submission(args.submission)
    for fault in faults[:_SHOWN]:
        print(cli.one_line(f"{args.submission}: {fault}"))
    if faults:
        raise ValueError(f"{args.submission}: {len(faults)} faults, the challenge would refuse it")
    print(f"{args.submission}: complete, can be handed in")


if __name__ == "__main__":
    cli.run(main)
