"""A submission to the Kelvins challenge: every test scene super-resolved, in one zip.

python -m deepsum_jax.submit --params NIR --params RED --data DIR --output submission.zip
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deepsum_jax import cli, files
from deepsum_jax.bundle import Bundle
from deepsum_jax.chosen import add_system_arguments, chosen_bundles, chosen_compute
from deepsum_jax.config import Compute
from deepsum_jax.data import kelvins, submission
from deepsum_jax.data.frames import MAX_FRAMES, reference_frame
from deepsum_jax.data.png import clip_uint16
from deepsum_jax.inference import check_predictor
from deepsum_jax.predict import predict


def bundles_by_band(bundles: Sequence[tuple[str, Bundle]]) -> dict[str, Bundle]:
    """Which bundle serves each of the challenge's bands.

    Args:
      bundles: each with what messages call it. One that knows no bands serves all that are left.

    Raises:
      ValueError: a band without a bundle, or with two.
    """
    chosen: dict[str, Bundle] = {}
    for name, bundle in bundles:
        check_predictor(bundle)
        for band in bundle.info.bands or submission.NAMES:
            if band in chosen:
                raise ValueError(f"{name}: found a second system for band {band}, expected one")
            chosen[band] = bundle
    missing = [band for band in submission.NAMES if band not in chosen]
    if missing:
        trained = ", ".join(chosen) or "none"
        raise ValueError(
            f"--params: found systems for {trained}, expected one for {' and '.join(missing)} too"
        )
    return chosen


def super_resolved(
    data: Path,
    bundles: Mapping[str, Bundle],
    max_frames: int | None,
    names: Sequence[str] | None,
    compute: Compute = Compute(),
) -> dict[str, np.ndarray]:
    """Every test scene's image by name.

    Args:
      names: the scenes that must be there, and no others; None takes those that are.

    Raises:
      ValueError: scenes that are missing or too many, or of a band without a bundle; an image that
        16 bits would lose most of.

    Warns where 16 bits clip more than one pixel in a hundred of a scene.
    """
    folders = [f for f in kelvins.find_scenes(data) if f.part == "test" and f.band in bundles]
    found = {f.name for f in folders}
    if names is not None and found != set(names):
        lacking, extra = sorted(set(names) - found), sorted(found - set(names))
        what = f"no {lacking[0]}" if lacking else f"{extra[0]}, which is none of them"
        raise ValueError(
            f"{data}: found {len(found)} test scenes and {what}, expected the challenge's "
            f"{len(names)} (--partial writes those that are there)"
        )
    if not folders:
        raise ValueError(f"{data}: found no scene under test/, expected some")
    images: dict[str, np.ndarray] = {}
    clipped: list[str] = []
    for folder in tqdm(folders, "super-resolving", unit="scene"):
        scene, bundle = kelvins.read_scene(folder), bundles[folder.band]
        given = bundle.info.reference == "given"
        images[folder.name] = predict(
            bundle,
            scene.lr,
            scene.masks,
            reference=reference_frame(scene, "given") if given else None,
            max_frames=max_frames,
            compute=compute,
        )
        cut = clip_uint16(images[folder.name], f"scene {folder.name}")
        if 100 * cut.lost > cut.pixels.size:
            clipped.append(folder.name)
    if clipped:
        warnings.warn(
            f"{len(clipped)} of {len(images)} scenes ({submission.some(clipped)}) have more than "
            "1 % of their pixels outside 0..65535, which the zip clips",
            UserWarning,
            stacklevel=2,
        )
    return images


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = cli.parser(
        "deepsum submit",
        "Super-resolve the Kelvins challenge's 290 test scenes into the zip that it takes.",
        """examples:
  submit --data probav --output submission.zip                the shipped parameters
  submit --params NIR --params RED --data probav --output submission.zip
  submit --system ibp --data probav --output ibp.zip
A bundle serves the bands that it was trained on. `deepsum check FILE` checks any zip.""",
    )
    add_system_arguments(p, several=True)
    p.add_argument("--data", required=True, type=Path, metavar="DIR", help="with a folder test/")
    p.add_argument("--output", required=True, type=Path, metavar="FILE", help="the zip")
    p.add_argument(
        "--max-frames",
        type=cli.positive,
        metavar="M",
        help=f"use at most the M clearest frames (default: {MAX_FRAMES}, or as many as the "
        "network takes)",
    )
    p.add_argument(
        "--partial",
        action="store_true",
        help="write whatever test scenes there are; the challenge refuses such a zip",
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    files.check_target(args.output, "--output")
    bundles = bundles_by_band(chosen_bundles(args))
    names = None if args.partial else [n for names in submission.NAMES.values() for n in names]
    images = super_resolved(args.data, bundles, args.max_frames, names, chosen_compute(args))
    submission.write_submission(args.output, images, expected_names=names)
    print(f"{args.output}: {len(images)} images")


if __name__ == "__main__":
    cli.run(main)
