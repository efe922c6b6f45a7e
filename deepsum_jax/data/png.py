"""Grey PNGs: images of 16 bits and masks, read strictly and written without silent loss.

Every fault is one line that says which file, what was found and what was expected.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from deepsum_jax.data import chunks
from deepsum_jax.data.intake import listed
from deepsum_jax.files import written_aside
from deepsum_jax.reading import read_bytes

# What the decoder raises, depending on where the bytes go wrong.
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
_LARGEST = 2**29  # bytes of a file; incompressible pixels of the largest image have half of it


def decode(data: bytes, depths: tuple[int, ...]) -> np.ndarray:
    """The pixels [h, w] of a grey PNG whose bit depth is one of `depths`.

    Raises:
      ValueError: another kind of PNG, or a damaged one; its text is what was found.
    """
    header = chunks.read_header(data)
    # The header decides, not the decoder's mode: decoders widen depths and expand palettes.
    if header.colour != 0 or header.depth not in depths:
        kind = _COLOURS.get(header.colour, f"colour type {header.colour}")
        raise ValueError(f"a {kind} PNG of {header.depth} bits")
    try:
        chunks.check_png(data)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.array(image)
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"a PNG that is cut short or damaged ({reason})") from None


def _read_png(path: Path, depths: tuple[int, ...]) -> np.ndarray:
    expected = f"a grey PNG of {' or '.join(map(str, depths))} bits"
    data = read_bytes(path, expected, _LARGEST)
    try:
        return decode(data, depths)
    except ValueError as error:
        raise ValueError(f"{path}: found {error}, expected {expected}") from None


def read_png16(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a 16-bit grey PNG as uint16 [h, w].

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not a PNG, damaged, in colour, or of another bit depth.
    """
    return _read_png(Path(path), (16,)).astype(np.uint16, copy=False)


def read_mask_png(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a grey PNG of 1, 8 or 16 bits as a mask, bool [h, w]: non-zero = reliable.

    Raises: as `read_masks`.
    """
    return read_masks([Path(path)])[0]


def read_masks(paths: Iterable[Path]) -> list[np.ndarray]:
    """Reads the masks of one stack, each bool [h, w]: non-zero = reliable.

    Raises:
      FileNotFoundError, ValueError: as `read_png16`, or more than one non-zero value: the classes
        of a scene classification, or grades of cloudiness.
    """
    read, seen = [], np.zeros(0, np.int64)
    for path in paths:
        values = _read_png(path, (1, 8, 16))
        known = np.unique(values).astype(np.int64)
        own = known[known != 0]
        seen = np.union1d(seen, own)
        # White is 1, 255 or 65535 by a file's depth; frames of one stack may differ in it.
        if len(own) > 1 or (len(seen) > 1 and not np.isin(seen, (1, 255, 65535)).all()):
            every = np.union1d(seen, known)
            raise ValueError(
                f"{path}: found the {listed(every)}{'' if len(own) > 1 else ' in these masks'}, "
                "expected 0 and one other, which is reliable; make classes into masks first, as "
                "np.isin(classes, [4, 5, 6])"
            )
        read.append(np.asarray(values != 0))
    return read


def grey(values: Any, what: str) -> np.ndarray:
    """One image [h, w] or [h, w, 1] as a real array [h, w], every value finite."""
    array = np.asarray(values)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{what}: found shape {array.shape}, expected one image [h, w]")
    if array.dtype.kind not in "uif":
        raise TypeError(f"{what}: found dtype {array.dtype}, expected real numbers")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: found values that are not finite, expected 0..65535")
    return np.asarray(array)


_INSTEAD = "expected 0..65535 in whole steps; write .npy, or scale the values first"


def _check_rounding(array: np.ndarray, rounded: np.ndarray, what: str) -> None:
    """Refuses an image whose contrast does not survive rounding, such as reflectance."""
    if array.dtype.kind != "f":
        return
    x = array.astype(np.float64)
    greatest, deviation = float(np.abs(x).max()), float(x.std())
    error = float(np.sqrt(np.mean((rounded - x) ** 2)))
    # A flat image has no contrast to lose; about its level float32 is noisy.
    flat = deviation < 1e-4 * greatest
    if (error > deviation / 4 and not flat) or (greatest > 1e-3 and not rounded.any()):
        levels = len(np.unique(rounded))
        raise ValueError(
            f"{what}: found values from {array.min():.4g} to {array.max():.4g}, of which rounding "
            f"leaves {levels} grey level{'s' if levels > 1 else ''}; {_INSTEAD}"
        )


def to_uint16(values: Any, what: str) -> np.ndarray:
    """An image that must fit 16 bits, rounded: uint16 [h, w].

    Raises:
      TypeError: not real numbers.
      ValueError: not one image, a value outside 0..65535, or contrast that rounding takes away.
    """
    array = grey(values, what)
    rounded: np.ndarray = np.rint(array)
    low, high = rounded.min(), rounded.max()
    if low < 0 or high > 65535:
        raise ValueError(f"{what}: found values from {low} to {high}, expected 0..65535")
    _check_rounding(array, rounded, what)
    return rounded.astype(np.uint16)


class Clipped(NamedTuple):
    """An image cut to what 16 bits hold."""

    pixels: np.ndarray  # uint16 [h, w]
    below: int  # how many pixels were less than 0
    above: int  # and how many more than 65535

    @property
    def lost(self) -> int:
        return self.below + self.above


def clip_uint16(values: Any, what: str) -> Clipped:
    """An image rounded and clipped to 16 bits, and how much that took away.

    Raises:
      TypeError: not real numbers.
      ValueError: not one image, or one that would lose most: pixels to clipping, or its contrast
        to rounding.
    """
    array = grey(values, what)
    rounded: np.ndarray = np.rint(array)
    below, above = int(np.count_nonzero(rounded < 0)), int(np.count_nonzero(rounded > 65535))
    if 2 * (below + above) > array.size:
        raise ValueError(
            f"{what}: found values from {array.min():.4g} to {array.max():.4g}, "
            f"{(below + above) / array.size:.0%} of them outside 16 bits; {_INSTEAD}"
        )
    _check_rounding(array, rounded, what)
    return Clipped(np.clip(rounded, 0, 65535).astype(np.uint16), below, above)


def write_png16(path: str | os.PathLike[str], values: Any) -> None:
    """Writes an image [h, w], rounded, as a 16-bit grey PNG, under a temporary name first.

    Raises: as `to_uint16`.
    """
    pixels = to_uint16(values, str(path))
    with written_aside(Path(path)) as aside:
        Image.fromarray(pixels).save(aside, format="PNG")


def write_mask_png(path: str | os.PathLike[str], mask: Any) -> None:
    """Writes a mask [h, w], True or non-zero = reliable, as an 8-bit PNG of 0 and 255."""
    array = np.asarray(mask)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{path}: found shape {array.shape}, expected one mask [h, w]")
    with written_aside(Path(path)) as aside:
        Image.fromarray(np.where(array != 0, np.uint8(255), np.uint8(0))).save(aside, format="PNG")
