"""Stacks from files, and super-resolved images into files, for the command `predict`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepsum_jax import files, sample
from deepsum_jax.config import nearest
from deepsum_jax.data import kelvins, png
from deepsum_jax.data.arrayfile import read_arrays
from deepsum_jax.data.scene import check_stack
from deepsum_jax.reading import check_file


def read_input(inputs: Sequence[Path], masks: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """The stack and masks that the command's inputs hold, as `check_stack` passes them.

    One Kelvins scene folder; one `.npy` stack or `.npz` with `stack` and perhaps `masks`; 16-bit
    PNG frames of one place; or `sample`, where there is no such path, the stack that the package
    ships. `masks` are PNGs, one a frame and in the same order, or one for all, or one `.npy`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: other files, masks twice, or what `check_stack` refuses.
    """
    if sample.is_meant(inputs):
        inputs = [sample.FILE]
    first = inputs[0]
    for path in (*inputs, *masks):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        if not path.is_dir():
            check_file(path, "a file or folder")
    if len(inputs) == 1 and first.is_dir():
        scene = kelvins.read_scene(first)
        if masks:
            raise ValueError(f"--masks: {first} has its own masks (QM*.png)")
        return scene.lr, scene.masks
    if len(inputs) == 1 and _suffix(first) in (".npy", ".npz"):
        stack, found = _read_arrays(first)
        if masks and found is not None:
            raise ValueError(f"--masks: {first} has its own masks (the array 'masks')")
        return check_stack(stack, _read_masks(masks) if masks else found, str(first))
    wrong = next((p for p in inputs if _suffix(p) != ".png"), None)
    if wrong is not None:
        raise ValueError(
            f"{wrong}: expected one scene folder, one .npy or .npz stack, or 16-bit .png frames"
        )
    if len(masks) > 1 and len(masks) != len(inputs):
        raise ValueError(
            f"--masks: found {len(masks)} files for {len(inputs)} frames, expected one for each, "
            "or one for all"
        )
    frames = _stacked(inputs, [png.read_png16(p) for p in inputs])
    return check_stack(frames, _read_masks(masks) if masks else None, "the frames")


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _stacked(paths: Sequence[Path], images: Sequence[np.ndarray]) -> np.ndarray:
    """Images of one size as one array [T, h, w]."""
    for path, image in zip(paths, images):
        if image.shape != images[0].shape:
            raise ValueError(
                f"{path}: found {image.shape[0]}×{image.shape[1]} pixels, expected "
                f"{images[0].shape[0]}×{images[0].shape[1]} like {paths[0]}"
            )
    return np.stack(images)


def _read_arrays(path: Path) -> tuple[np.ndarray, Any]:
    """The stack in a `.npy` or `.npz`, and the masks that an `.npz` may have."""
    expected = "arrays of numbers as np.save or np.savez(stack=…) writes them"
    arrays = read_arrays(path, expected, ("stack", "masks"))
    if isinstance(arrays, np.ndarray):
        return arrays, None
    names = list(arrays)
    if arrays.get("stack") is None:
        raise ValueError(
            f"{path}: found the arrays {', '.join(names[:9]) or 'none'}, expected one named 'stack'"
        )
    unknown = [name for name in names if name not in ("stack", "masks")]
    if unknown:
        hint = nearest("masks" if unknown[0] in _MASKS else unknown[0], ("stack", "masks"))
        raise ValueError(
            f"{path}: found the array{'s' if len(unknown) > 1 else ''} {', '.join(unknown[:9])} "
            f"beside 'stack', expected at most 'masks' (True = reliable); {hint}"
        )
    return arrays["stack"], arrays.get("masks")


# What people call masks; some of them mark clouds, so they are not taken for what they may be.
_MASKS = ("mask", "clouds", "cloud", "cloud_mask", "qa", "qm", "valid", "clear", "scl")


def _read_masks(masks: Sequence[Path]) -> np.ndarray:
    """Masks as the user gives them: [T, h, w], or [h, w] where one PNG serves all frames."""
    arrays = [p for p in masks if _suffix(p) in (".npy", ".npz")]
    if arrays and (len(masks) > 1 or _suffix(masks[0]) == ".npz"):
        raise ValueError(f"--masks: found {arrays[0]}, expected PNGs, or one .npy alone")
    if arrays:
        return _read_arrays(masks[0])[0]
    read = _stacked(masks, png.read_masks(masks))
    return read[0] if len(masks) == 1 else read


def write_output(path: Path, image: np.ndarray) -> None:
    """Writes `.npy` (float32, exact) or `.png` (16-bit, rounded and clipped, one band).

    Raises:
      ValueError: a `.png` that would lose most of the image; nothing is written then.

    Warns of pixels that a `.png` clips.
    """
    if _suffix(path) == ".npy":
        with files.written_aside(path) as aside, open(aside, "wb") as file:
            np.save(file, image)
        return
    cut = png.clip_uint16(image, str(path))
    if cut.lost:
        warnings.warn(
            f"{path}: clipped {cut.lost} of {cut.pixels.size} pixels ({cut.below} below 0, "
            f"{cut.above} above 65535); a .npy keeps them",
            UserWarning,
            stacklevel=2,
        )
    png.write_png16(path, cut.pixels)


def write_map(path: Path, values: np.ndarray) -> None:
    """Writes what accompanies an image, as `write_output`, but refuses no `.png`: by then the image
    is there. Warns of what whole steps from 0 to 65535 take away."""
    if _suffix(path) != ".png":
        return write_output(path, values)
    whole = np.clip(np.rint(np.nan_to_num(values, nan=65535.0, posinf=65535.0)), 0, 65535)
    finite = np.isfinite(values)
    lost = np.abs(whole - values)[finite]
    if not finite.all() or (lost.size and lost.max() > 0.5):
        reason = "found values that 16 bits cannot hold, clipped"
    elif lost.size and np.sqrt(np.mean(lost**2)) > values[finite].std() / 4:
        reason = "found differences that whole steps cannot hold, rounded"
    else:
        reason = ""
    if reason:
        warnings.warn(f"{path}: {reason}; a .npy keeps them", UserWarning, stacklevel=2)
    png.write_png16(path, whole)


def check_output(path: Path, channels: int, what: str = "--output") -> None:
    """Refuses what `write_output` could not write, before the work is done.

    Args:
      what: the argument that names the file, for the message.
    """
    files.check_target(path, what)
    if _suffix(path) not in (".npy", ".png"):
        raise ValueError(f"{what} {path}: found suffix {path.suffix!r}, expected .png or .npy")
    if _suffix(path) == ".png" and channels > 1:
        raise ValueError(f"{what} {path}: a .png holds one band, found {channels}; use .npy")
