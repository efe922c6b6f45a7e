"""Stacks from files, and super-resolved images into files, for the command `predict`."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepsum_jax import files
from deepsum_jax.data import kelvins
from deepsum_jax.data.scene import check_stack


def read_input(inputs: Sequence[Path], masks: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """The stack and masks that the command's inputs hold, as `check_stack` passes them.

    One Kelvins scene folder; one `.npy` stack or `.npz` with `stack` and perhaps `masks`; or
    16-bit PNG frames of one place. `masks` are PNGs, one a frame and in the same order, or one
    `.npy`.
    """
    first = inputs[0]
    for path in (*inputs, *masks):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    if len(inputs) == 1 and first.is_dir():
        scene = kelvins.read_scene(first)
        if masks:
            raise ValueError(f"--masks: {first} has its own masks (QM*.png)")
        return scene.lr, scene.masks
    if len(inputs) == 1 and first.suffix in (".npy", ".npz"):
        stack, found = _read_arrays(first)
        return check_stack(stack, _read_masks(masks) if masks else found, str(first))
    wrong = next((p for p in inputs if p.suffix.lower() != ".png"), None)
    if wrong is not None:
        raise ValueError(
            f"{wrong}: expected one scene folder, one .npy or .npz stack, or 16-bit .png frames"
        )
    frames = [kelvins.read_png16(p) for p in inputs]
    if masks and masks[0].suffix != ".npy" and len(masks) != len(inputs):
        raise ValueError(f"--masks: found {len(masks)} files for {len(inputs)} frames")
    for path, frame in zip(inputs, frames):
        if frame.shape != frames[0].shape:
            raise ValueError(
                f"{path}: found {frame.shape[0]}×{frame.shape[1]} pixels, expected "
                f"{frames[0].shape[0]}×{frames[0].shape[1]} like {first}"
            )
    return check_stack(np.stack(frames), _read_masks(masks) if masks else None, "the frames")


# What numpy raises for files that hold no arrays, or not all of them.
_BROKEN = (
    OSError, ValueError, EOFError, MemoryError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def _read_arrays(path: Path) -> tuple[np.ndarray, Any]:
    """The stack in a `.npy` or `.npz`, and the masks that an `.npz` may have."""
    expected = "expected arrays of numbers as np.save or np.savez(stack=…) writes them"
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded, None
            if "stack" in loaded:
                return loaded["stack"], loaded.get("masks")
            names = ", ".join(loaded.files) or "none"
    except _BROKEN as error:
        if "allow_pickle" in str(error):  # numpy's advice is to trust the file
            reason = "pickled objects, or no array at all"
        else:
            reason = f"a file that is cut short or damaged ({error or type(error).__name__})"
        raise ValueError(f"{path}: found {reason}, {expected}") from None
    raise ValueError(f"{path}: found the arrays {names}, expected one named 'stack'")


def _read_masks(masks: Sequence[Path]) -> np.ndarray:
    if len(masks) == 1 and masks[0].suffix == ".npy":
        return _read_arrays(masks[0])[0]
    read = [kelvins.read_mask_png(p) for p in masks]
    for path, mask in zip(masks, read):
        if mask.shape != read[0].shape:
            raise ValueError(
                f"{path}: found {mask.shape[0]}×{mask.shape[1]} pixels, expected "
                f"{read[0].shape[0]}×{read[0].shape[1]} like {masks[0]}"
            )
    return np.stack(read)


def write_output(path: Path, image: np.ndarray) -> None:
    """Writes `.npy` (float32, exact) or `.png` (16-bit, rounded and clipped, one band)."""
    if path.suffix == ".npy":
        with files.written_aside(path) as aside, open(aside, "wb") as file:
            np.save(file, image)
        return
    kelvins.write_png16(path, np.clip(np.rint(image), 0, 65535))


def check_output(path: Path, channels: int) -> None:
    """Refuses what `write_output` could not write, before the work is done."""
    files.check_target(path, "--output")
    if path.suffix not in (".npy", ".png"):
        raise ValueError(f"--output {path}: found suffix {path.suffix!r}, expected .png or .npy")
    if path.suffix == ".png" and channels > 1:
        raise ValueError(f"--output {path}: a .png holds one band, found {channels}; use .npy")
