"""The file layout of ESA's PROBA-V Kelvins challenge, in both directions.

    norm.csv                                    `imgsetXXXX value` rows, optional
    {train,test}/{BAND}/{scene}/LR000.png ...   frames, 16-bit grey
                               /QM000.png ...   their masks, non-zero = reliable
                               /HR.png SM.png   truth and its mask; SM.png may stand alone
                               /reference.txt   the name of one frame, optional: `LR004`

Any band name and any frame size will do. Files and folders of other names (`truth.json`) are left
alone. Every fault is one line that says which file, what was found and what was expected.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepsum_jax.data.scene import Scene
from deepsum_jax.files import written_aside

PARTS = ("train", "test")
BANDS = ("RED", "NIR")

_PNG_START = b"\x89PNG\r\n\x1a\n"
# What the decoder raises, depending on where the bytes go wrong.
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
_LAYOUT = "{train,test}/BAND/SCENE/LR000.png, BAND/SCENE/LR000.png or SCENE/LR000.png"


def _read_png(path: Path, depths: tuple[int, ...]) -> np.ndarray:
    """The pixels of a grey PNG whose bit depth is one of `depths`."""
    expected = f"expected a grey PNG of {' or '.join(map(str, depths))} bits"
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: found {found}, {expected}")
    data = path.read_bytes()
    if not data.startswith(_PNG_START):
        raise ValueError(f"{path}: found a file that is not a PNG, {expected}")
    if len(data) < 33:  # signature and header chunk
        raise ValueError(f"{path}: found a PNG cut short after {len(data)} bytes, {expected}")
    # The header decides, not the decoder's mode: decoders widen depths and expand palettes.
    depth, colour = struct.unpack("BB", data[24:26])
    if colour != 0 or depth not in depths:
        kind = _COLOURS.get(colour, f"colour type {colour}")
        raise ValueError(f"{path}: found a {kind} PNG of {depth} bits, {expected}")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image)
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path}: found a PNG that is cut short or damaged ({reason}), {expected}"
        ) from None


def read_png16(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a 16-bit grey PNG as uint16 [h, w].

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not a PNG, damaged, in colour, or of another bit depth.
    """
    return _read_png(Path(path), (16,)).astype(np.uint16)


def read_mask_png(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a grey PNG of 1, 8 or 16 bits as a mask, bool [h, w]: non-zero = reliable.

    Raises: as `read_png16`.
    """
    return np.asarray(_read_png(Path(path), (1, 8, 16)) != 0)


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


def _to_uint16(values: Any, what: str) -> np.ndarray:
    array: np.ndarray = np.rint(grey(values, what))
    low, high = array.min(), array.max()
    if low < 0 or high > 65535:
        raise ValueError(f"{what}: found values from {low} to {high}, expected 0..65535")
    return array.astype(np.uint16)


def write_png16(path: str | os.PathLike[str], values: Any) -> None:
    """Writes an image [h, w], rounded, as a 16-bit grey PNG, under a temporary name first.

    Raises:
      TypeError: not real numbers.
      ValueError: not one image, or a value outside 0..65535.
    """
    pixels = _to_uint16(values, str(path))
    with written_aside(Path(path)) as aside:
        Image.fromarray(pixels).save(aside, format="PNG")


def write_mask_png(path: str | os.PathLike[str], mask: Any) -> None:
    """Writes a mask [h, w], True or non-zero = reliable, as an 8-bit PNG of 0 and 255."""
    array = np.asarray(mask)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{path}: found shape {array.shape}, expected one mask [h, w]")
    with written_aside(Path(path)) as aside:
        Image.fromarray(np.where(array != 0, np.uint8(255), np.uint8(0))).save(aside, format="PNG")


def read_norm(path: str | os.PathLike[str]) -> dict[str, float]:
    """Reads `norm.csv`: the challenge's baseline cPSNR in dB of each scene, by scene name.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a row that is not `name value`, value > 0, or a name that comes twice.
    """
    path = Path(path)
    norm: dict[str, float] = {}
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no such file, expected rows of `name value`")
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            name, value = fields[0], float(fields[1])
        except (IndexError, ValueError):
            name, value = "", math.nan
        if len(fields) != 2 or not 0 < value < math.inf:
            raise ValueError(
                f"{path}, line {number}: found {line.strip()[:60]!r}, expected a name and its "
                "baseline in dB"
            )
        if name in norm:
            raise ValueError(f"{path}, line {number}: found {name} again, expected it once")
        norm[name] = value
    return norm


def write_norm(path: str | os.PathLike[str], norm: Mapping[str, float]) -> None:
    """Writes `norm.csv`, sorted by name, with digits enough to read the same numbers back."""
    with written_aside(Path(path)) as aside:
        rows = (f"{name} {float(norm[name])!r}\n" for name in sorted(norm))
        aside.write_text("".join(rows), encoding="utf-8")


def read_norm_for(root: str | os.PathLike[str]) -> dict[str, float]:
    """The `norm.csv` that belongs to a data set, or {} where it has none.

    `root` is the data set's folder, or a train/test, band or scene folder inside it.
    """
    root = Path(os.path.abspath(root))
    tops = [root, *(p.parent for p in (root, *root.parents[:2]) if p.name in PARTS)]
    for top in tops:
        if (top / "norm.csv").is_file():
            return read_norm(top / "norm.csv")
    return {}


@dataclass(frozen=True)
class SceneFolder:
    """Where one scene lies: folder, name, band ("" if unknown), and part: "train", "test" or ""."""

    path: Path
    name: str
    band: str = ""
    part: str = ""


def _describe(path: Path, band: str | None = None) -> SceneFolder:
    """Reads band and part off the path of a scene folder."""
    path = Path(os.path.abspath(path))  # a link keeps its own name
    parent, grand = path.parent.name, path.parent.parent.name
    part = next((name for name in (grand, parent) if name in PARTS), "")
    if band is None:
        band = parent if grand in PARTS or parent in BANDS else ""
    return SceneFolder(path, path.name, "" if band in PARTS else band, part)


def _holds_frames(folder: Path) -> bool:
    # Not glob, which passes over folders that it may not read.
    return any(p.name.startswith("LR") and p.suffix == ".png" for p in folder.iterdir())


def find_scenes(root: str | os.PathLike[str]) -> tuple[SceneFolder, ...]:
    """Finds the scene folders of a data set, sorted by part, band and name.

    A scene folder holds at least one `LR*.png`. `root` is a data set
    (`{train,test}/BAND/SCENE`, `BAND/SCENE` or `SCENE` below it) or one scene folder itself.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: no scene in it, or a folder named imgset* without a frame.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: found no such folder, expected {_LAYOUT} in it")
    if _holds_frames(root):
        return (_describe(root),)
    found: list[SceneFolder] = []

    def visit(folder: Path, levels: int) -> None:
        for child in sorted(folder.iterdir()):
            if not child.is_dir() or child.name.startswith("."):
                continue
            if _holds_frames(child):
                found.append(_describe(child, None if folder == root else folder.name))
            elif child.name.startswith("imgset"):
                raise ValueError(f"{child}: found no frame in it, expected LR000.png and on")
            elif levels:
                # Only train/ and test/ have one more level below them, the bands.
                visit(child, levels if folder == root and child.name in PARTS else levels - 1)

    visit(root, 1)
    if not found:
        raise ValueError(f"{root}: found no scene, expected {_LAYOUT} in it")
    return tuple(sorted(found, key=lambda scene: (scene.part, scene.band, scene.name)))


def _by_suffix(folder: Path, prefix: str) -> dict[str, Path]:
    """The files PREFIX<digits>.png of a folder by their digits, in the order of the numbers."""
    pattern = re.compile(prefix + r"(\d+)\.png")
    found = {m[1]: p for p in folder.iterdir() if (m := pattern.fullmatch(p.name))}
    return dict(sorted(found.items(), key=lambda item: (int(item[0]), item[0])))


def _same_shape(images: Mapping[Path, np.ndarray]) -> None:
    first = next(iter(images))
    for path in images:
        if images[path].shape != images[first].shape:
            raise ValueError(
                f"{path}: found a size of {images[path].shape}, expected {images[first].shape} "
                f"like {first.name}"
            )


def read_scene(folder: str | os.PathLike[str] | SceneFolder, norm: float | None = None) -> Scene:
    """Reads one scene folder.

    Args:
      folder: the folder, or what `find_scenes` says of it. For a bare path the band is the name
        of the folder around it if that is RED or NIR or lies in train/ or test/, else "".
      norm: the scene's baseline cPSNR in dB, to be kept with it.

    Returns:
      The scene: frames uint16 [T, h, w] in the order of their numbers, which may have gaps, each
      with the mask of the same number; HR uint16 [r*h, r*w] or None; the HR mask where SM.png is.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: no frame, a missing partner (LR and QM, HR and SM), an unreadable file, or
        sizes that disagree.
    """
    if not isinstance(folder, SceneFolder):
        folder = _describe(Path(folder))
    path = folder.path
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: found no such folder, expected one with LR000.png in it")
    lr_paths, mask_paths = _by_suffix(path, "LR"), _by_suffix(path, "QM")
    if not lr_paths:
        raise ValueError(f"{path}: found no frame in it, expected LR000.png and on")
    for number in sorted(lr_paths.keys() ^ mask_paths.keys()):
        there, missing = ("LR", "QM") if number in lr_paths else ("QM", "LR")
        raise ValueError(
            f"{path / f'{missing}{number}.png'}: found no such file, expected it beside "
            f"{there}{number}.png"
        )
    lr = {p: read_png16(p) for p in lr_paths.values()}
    masks = {mask_paths[n]: read_mask_png(mask_paths[n]) for n in lr_paths}
    _same_shape({**lr, **masks})

    hr_path, sm_path = path / "HR.png", path / "SM.png"
    hr = read_png16(hr_path) if hr_path.exists() else None
    if hr is not None and not sm_path.exists():
        raise ValueError(f"{sm_path}: found no such file, expected it beside HR.png")
    hr_mask = read_mask_png(sm_path) if sm_path.exists() else None
    if hr is not None and hr_mask is not None:
        _same_shape({hr_path: hr, sm_path: hr_mask})
    frames, stack = tuple(map(int, lr_paths)), np.stack(list(lr.values()))
    stack_masks = np.stack(list(masks.values()))
    try:
        return Scene(
            folder.name, stack, stack_masks, frames, folder.band, hr, hr_mask, norm,
            _read_reference(path),
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_reference(folder: Path) -> int | None:
    """The number of the frame that reference.txt names; None without that file."""
    path = folder / "reference.txt"
    if not path.is_file():
        return None
    name = path.read_text(encoding="utf-8", errors="replace").strip()
    match = re.fullmatch(r"LR(\d+)", name)
    if match is None:
        raise ValueError(f"reference.txt: found {name[:60]!r}, expected a frame's name, as LR000")
    return int(match[1])


def write_scene(folder: str | os.PathLike[str], scene: Scene, *, overwrite: bool = False) -> None:
    """Writes a scene of one band as a scene folder, under a temporary name first.

    Values are rounded to uint16. `name`, `band` and `norm` are not stored: the folders' names and
    `norm.csv` say them.

    Raises:
      FileExistsError: `folder` exists and `overwrite` is not set.
      ValueError: more than one band, or a value that is not within 0..65535.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder}: found it there already, expected a new folder")
    title = f"scene {scene.name!r}"
    with written_aside(folder) as aside:
        aside.mkdir()
        for number, frame, mask in zip(scene.frames, scene.lr, scene.masks, strict=True):
            write_png16(
                aside / f"LR{number:03d}.png", _to_uint16(frame, f"{title}: LR{number:03d}")
            )
            write_mask_png(aside / f"QM{number:03d}.png", mask)
        if scene.reference is not None:
            text = f"LR{scene.reference:03d}\n"
            (aside / "reference.txt").write_text(text, encoding="utf-8")
        if scene.hr is not None:
            write_png16(aside / "HR.png", _to_uint16(scene.hr, f"{title}: HR"))
        if scene.hr_mask is not None:
            write_mask_png(aside / "SM.png", scene.hr_mask)
