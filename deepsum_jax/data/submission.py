"""Submissions to the Kelvins challenge: one flat zip of 290 16-bit PNGs."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepsum_jax.data import chunks
from deepsum_jax.data.arrayfile import BROKEN, check_entry
from deepsum_jax.data.png import decode, grey
from deepsum_jax.files import written_aside
from deepsum_jax.reading import check_file

NAMES = {
    "RED": tuple(f"imgset{number:04d}" for number in range(1160, 1306)),
    "NIR": tuple(f"imgset{number:04d}" for number in range(1306, 1450)),
}
"""The challenge's test scenes by band."""

SIDE = 384  # HR pixels, height and width of an image


def some(names: Iterable[str]) -> str:
    """The first of some names, for messages."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (" …" if len(ordered) > 3 else "")


def write_submission(
    path: str | os.PathLike[str],
    images: Mapping[str, Any],
    *,
    expected_names: Iterable[str] | None = None,
) -> None:
    """Writes super-resolved images as one flat zip of 16-bit PNGs, ready to be handed in.

    The same images give the same bytes.

    Args:
      path: the zip file, written under a temporary name first.
      images: [H, W] or [H, W, 1] in raw units by scene name (`imgsetXXXX`); rounded and clipped
        to 0..65535.
      expected_names: the names that a complete submission has, to be checked; None skips it.

    Raises:
      ValueError: no image, a wrong, missing or extra name, an image not [H, W] or not finite.
    """
    path = Path(path)
    if not images:
        raise ValueError(f"{path}: found no image, expected at least one")
    if expected_names is not None:
        wanted = set(expected_names)
        for kind, names in (("missing", wanted - set(images)), ("extra", set(images) - wanted)):
            if names:
                raise ValueError(
                    f"{path}: found {len(names)} scenes {kind} ({some(names)}), expected exactly "
                    f"{len(wanted)}"
                )
    with written_aside(path) as aside, zipfile.ZipFile(aside, "w") as archive:
        for name in sorted(images):
            if not re.fullmatch(r"imgset\d+", name):
                raise ValueError(f"{path}: found the scene name {name!r}, expected imgsetXXXX")
            pixels = np.clip(np.rint(grey(images[name], f"{path}: {name}")), 0, 65535)
            encoded = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint16)).save(encoded, format="PNG")
            entry = zipfile.ZipInfo(f"{name}.png", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # the same bytes on every operating system
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, encoded.getvalue())


def _fault(data: bytes, side: int) -> str | None:
    """What is wrong with one image of a submission; None where nothing is."""
    try:
        header = chunks.read_header(data)
    except ValueError:
        return "is not a PNG"
    if (header.depth, header.colour) != (16, 0):
        return f"has {header.depth} bits and colour type {header.colour}, expected 16 bits of grey"
    if (header.height, header.width) != (side, side):
        return f"has {header.height}×{header.width} pixels, expected {side}×{side}"
    try:
        pixels = decode(data, (16,))
    except ValueError as error:
        return f"cannot be read: {error}"
    return "has one value everywhere" if pixels.min() == pixels.max() else None


def check_submission(
    path: str | os.PathLike[str],
    expected_names: Iterable[str] = (*NAMES["RED"], *NAMES["NIR"]),
    side: int = SIDE,
) -> list[str]:
    """What is wrong with a submission, a line each; empty for one that can be handed in.

    Args:
      path: the zip file.
      expected_names: the scenes that it must have, and no others.
      side: height and width of every image.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a zip file.
    """
    path, wanted = Path(path), {f"{name}.png" for name in expected_names}
    check_file(path, "a submission's zip")
    faults = []
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            twice = {name for name, times in Counter(names).items() if times > 1}
            groups = {
                "missing": wanted - set(names),
                "not of the challenge's test scenes": set(names) - wanted,
                "there twice": twice,
            }
            for kind, group in groups.items():
                if group:
                    faults.append(f"{len(group)} images {kind}: {some(group)}")
            for name in sorted(wanted & set(names)):
                most = 2 * side * side + 2**16  # of a PNG that holds so many 16-bit pixels
                if archive.getinfo(name).file_size > most:
                    faults.append(f"{name} has {archive.getinfo(name).file_size} bytes")
                    continue
                check_entry(archive.getinfo(name), most)
                fault = _fault(archive.read(name), side)
                if fault is not None:
                    faults.append(f"{name} {fault}")
    except BROKEN as error:
        raise ValueError(f"{path}: found a damaged file ({error}), expected a zip") from None
    return faults
