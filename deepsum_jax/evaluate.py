"""Scores of a system on scenes with HR, beside the honest alternatives on the same frames.

python -m deepsum_jax.evaluate --params DIR --data DIR
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from deepsum_jax import cli, files
from deepsum_jax.chosen import add_system_arguments, chosen_bundle, chosen_compute
from deepsum_jax.data.frames import MAX_FRAMES
from deepsum_jax.scoring.scene import SceneScore
from deepsum_jax.scoring.splits import SPLITS
from deepsum_jax.scoring.summary import evaluate


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = cli.parser(
        "deepsum evaluate",
        "Score a system on scenes with HR. Beside it on the same frames: bicubic and IBP of the\n"
        "reference frame alone, Bicubic+Mean and IBP of all frames.",
        """splits:
  auto   held-out scenes where DIR is the bundle's own training data, else all
  all    every scene with HR       train, val   those of the bundle's own split
  test   scenes under DIR/test that have HR; those under DIR/val belong to val""",
    )
    add_system_arguments(p)
    p.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="scenes in the Kelvins layout"
    )
    p.add_argument("--split", choices=SPLITS, default="auto", help="default: auto")
    p.add_argument(
        "--reference",
        choices=("clearest", "first", "given"),
        help="the frame whose grid images lie on; given: by the scenes' reference.txt "
        "(default: as in training)",
    )
    p.add_argument("--band", default="", help="score only this band; default: every one")
    p.add_argument(
        "--max-frames",
        type=cli.positive,
        metavar="M",
        help=f"use at most the M clearest frames (default: {MAX_FRAMES}, or as many as the "
        "network takes); 1 uses the reference alone",
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    p.add_argument(
        "--panel", type=Path, metavar="FILE", help="also draw the first four scenes into this PNG"
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    for target, argument in ((args.json, "--json"), (args.panel, "--panel")):
        if target is not None:
            files.check_target(target, argument)
    bundle = chosen_bundle(args)
    if args.reference:
        info = dataclasses.replace(bundle.info, reference=args.reference)
        bundle = dataclasses.replace(bundle, info=info)
    kept: list[SceneScore] = []

    def each(score: SceneScore) -> None:
        if len(kept) < 4:
            kept.append(score)

    summary, _ = evaluate(
        bundle,
        args.data,
        args.split,
        args.band,
        args.max_frames,
        progress=True,
        each=each,
        compute=chosen_compute(args),
    )
    print(f"split: {summary['split']} ({summary['n']} scenes of {args.data})")
    from deepsum_jax.scoring.report import panel, report  # matplotlib

    print(report(summary))
    if args.json:
        files.write_json(args.json, summary)
    if args.panel:
        from deepsum_jax import figures

        figures.save(panel(kept), args.panel)


if __name__ == "__main__":
    cli.run(main)
