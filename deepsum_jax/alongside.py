"""What `deepsum predict` writes beside the image: its standard error, how many frames spoke at each
pixel, and a preview for people."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepsum_jax import files
from deepsum_jax.bundle import Bundle
from deepsum_jax.data.fill import fill_hidden
from deepsum_jax.data.resample import bicubic_upsample
from deepsum_jax.data.scene import with_channels
from deepsum_jax.data.stackfile import check_output, write_map
from deepsum_jax.systems.table import system_of

if TYPE_CHECKING:
    from deepsum_jax.prediction import Prediction


def add_arguments(p: argparse.ArgumentParser) -> None:
    """`--uncertainty`, `--frames` and `--preview`."""
    p.add_argument(
        "--uncertainty",
        type=Path,
        metavar="FILE",
        help="also write the standard error to be expected at each pixel, where the system has it; "
        "formats as of --output",
    )
    p.add_argument(
        "--frames",
        type=Path,
        metavar="FILE",
        help="also write how many frames spoke at each pixel, where the system has it; formats as "
        "of --output, whole frames in a .png",
    )
    p.add_argument(
        "--preview",
        type=Path,
        metavar="FILE",
        help="also draw the reference frame, bicubic, the result and its standard error side by "
        "side into this .png",
    )


def check_arguments(args: argparse.Namespace, channels: int = 1, rasters: bool = False) -> None:
    """Refuses files that could not be written, and a name for two of them, before the work is done.

    Args:
      args: of `add_arguments`, and `output`.
      channels: of the stack.
      rasters: whether they are, which `rasters.command` checks further.

    Raises:
      ValueError: as `check_output`; a preview that is no .png; two files of one name.
    """
    if args.uncertainty is not None and not rasters:
        check_output(args.uncertainty, channels, "--uncertainty")
    if args.frames is not None and not rasters:
        check_output(args.frames, 1, "--frames")
    if args.preview is not None:
        files.check_target(args.preview, "--preview")
        if args.preview.suffix.lower() != ".png":
            found = args.preview.suffix
            raise ValueError(f"--preview {args.preview}: found suffix {found!r}, expected .png")
    seen: dict[str, str] = {}
    for name in ("output", "uncertainty", "frames", "preview"):
        path = getattr(args, name)
        if path is None:
            continue
        first = seen.setdefault(os.path.realpath(path), name)
        if first != name:
            raise ValueError(f"--{name} {path}: found the file of --{first}, expected another")


def check_system(args: argparse.Namespace, bundle: Bundle) -> None:
    """Raises ValueError where something is asked for that the system does not give."""
    system = system_of(bundle.config)
    if args.uncertainty is not None and "standard_error" not in system.gives:
        raise ValueError(
            f"--uncertainty: found no standard error from {system.label}, expected a system that "
            "gives it; leave it out"
        )
    if args.frames is not None and "frames_per_pixel" not in system.gives:
        raise ValueError(
            f"--frames: found no frames per pixel from {system.label}, expected a system that "
            "gives them; leave it out"
        )


def write(
    args: argparse.Namespace,
    stack: np.ndarray,
    masks: np.ndarray,
    result: Prediction,
    bundle: Bundle,
) -> None:
    """Writes the files that were asked for, each aside and then renamed.

    Args:
      stack: [T, h, w] or [T, h, w, C] raw, as it was super-resolved; masks: [T, h, w] bool.
      bundle: the system.
    """
    if args.uncertainty is not None and result.standard_error is not None:
        write_map(args.uncertainty, result.standard_error)
    if args.frames is not None and result.frames_per_pixel is not None:
        spoke = result.frames_per_pixel
        whole = args.frames.suffix.lower() == ".png"  # a picture of whole frames says enough
        write_map(args.frames, np.rint(spoke) if whole else spoke)
    if args.preview is not None:
        _draw(args.preview, stack, masks, result, bundle)


def _draw(
    path: Path, stack: np.ndarray, masks: np.ndarray, result: Prediction, bundle: Bundle
) -> None:
    index, label = result.reference_index, system_of(bundle.config).label
    error = result.standard_error
    draw(
        path,
        with_channels(stack, 3)[index],
        masks[index],
        with_channels(result.image, 2),
        None if error is None else with_channels(error, 2),
        f"reference, frame {index}",
        f"{label} ×{bundle.config.scale}",
    )


def draw(
    path: Path, frame: np.ndarray, mask: np.ndarray, image: np.ndarray, error: np.ndarray | None,
    reference: str, label: str, bands: Sequence[int] = (0,),
) -> None:  # fmt: skip
    """A picture of before and after: a reference frame, bicubic, the image, its standard error.

    Args:
      path: a .png.
      frame: [h, w, C] raw, the reference; mask: [h, w] bool.
      image, error: [r·h, r·w, C], raw; NaN where there is nothing.
      reference, label: what the frame and the image are called.
      bands: the one that is shown, or those that are red, green and blue.
    """
    from deepsum_jax import figures  # matplotlib, for those who draw

    chosen, channels = list(bands), frame.shape[-1]
    frame, image = frame[..., chosen], image[..., chosen]
    seen = fill_hidden(frame[None], mask[None])[0]  # [h, w, 1 or 3]
    scale = len(image) // len(frame)
    enlarged = [bicubic_upsample(band, scale) for band in np.moveaxis(seen, -1, 0)]
    known = mask.repeat(scale, axis=0).repeat(scale, axis=1)
    panels = [
        np.where(mask[..., None], frame, np.nan),
        np.where(known[..., None], np.stack(enlarged, axis=-1), np.nan),
        image,
    ]
    low, high = figures.stretch(panels)  # of all colours together, so that grey stays grey
    about, of = "", ""
    if len(chosen) == 3:
        panels = [np.nan_to_num((panel - low) / (high - low), nan=1.0) for panel in panels]
        panels, of = [np.clip(panel, 0, 1) for panel in panels], ", mean of the colours"
    else:
        panels = [panel[..., 0] for panel in panels]
        about = f", band {chosen[0] + 1} of {channels}" if channels > 1 else ""
    shown = list(zip((reference + about, "bicubic", label), panels))
    sure = None
    if error is not None:
        sure = (f"standard error{of}", error[..., chosen].mean(axis=-1))
    figures.save(figures.preview(shown, sure, (low, high), "raw units"), path)
