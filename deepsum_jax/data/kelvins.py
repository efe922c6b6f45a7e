"""The file layout of ESA's PROBA-V Kelvins challenge, in both directions.

    norm.csv                                    `imgsetXXXX value` rows, optional
    {train,val,test}/{BAND}/{scene}/LR000.png ...   frames, 16-bit grey
                                   /QM000.png ...   their masks, non-zero = reliable
                                   /HR.png SM.png   truth and its mask; SM.png may stand alone
                                   /reference.txt   the name of one frame, optional: `LR004`

Any band name and any frame size will do, and suffixes in capitals. Files and folders of other
names (`truth.json`, quicklooks, what `predict` wrote) are left alone. Every fault is one line that
says which file, what was found and what was expected.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepsum_jax.data import png
from deepsum_jax.data.png import read_mask_png as read_mask_png
from deepsum_jax.data.png import read_png16 as read_png16
from deepsum_jax.data.png import write_mask_png as write_mask_png
from deepsum_jax.data.png import write_png16 as write_png16
from deepsum_jax.data.scene import Scene
from deepsum_jax.files import written_aside
from deepsum_jax.reading import read_text

PARTS = ("train", "val", "test")
BANDS = ("RED", "NIR")

_LAYOUT = "{train,test}/BAND/SCENE/LR000.png, BAND/SCENE/LR000.png or SCENE/LR000.png"


def read_norm(path: str | os.PathLike[str]) -> dict[str, float]:
    """Reads `norm.csv`: the challenge's baseline cPSNR in dB of each scene, by scene name.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a row that is not `name value`, value > 0, or a name that comes twice.
    """
    path = Path(path)
    norm: dict[str, float] = {}
    text = read_text(path, "rows of `name value`")
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

    `root` is the data set's folder, or a train, val or test, band or scene folder inside it.
    """
    root = Path(os.path.abspath(root))
    tops = [root, *(p.parent for p in (root, *root.parents[:2]) if p.name in PARTS)]
    for top in tops:
        if (top / "norm.csv").is_file():
            return read_norm(top / "norm.csv")
    return {}


@dataclass(frozen=True)
class SceneFolder:
    """Where one scene lies: folder, name, band ("" if unknown), and part: of `PARTS`, or ""."""

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
    if not (path.name + band).isprintable():  # they are shown in tables and messages
        raise ValueError(f"{path}: found control characters in a scene's name, expected none")
    return SceneFolder(path, path.name, "" if band in PARTS else band, part)


_OWN = re.compile(r"((?:LR|QM)\d+|HR|SM)\.png", re.IGNORECASE)


def own_images(folder: Path) -> dict[str, Path]:
    """A scene's own images by their names in the layout (`LR000.png`, `HR.png`), sorted.

    Suffixes may be in capitals. Whatever else lies there is not the scene's.

    Raises:
      ValueError: one name twice, in small letters and in capitals.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):  # not glob: it passes over what it may not read
        stem, suffix = path.stem, path.suffix.lower()
        if not _OWN.fullmatch(stem + suffix) or stem != stem.upper() or not path.is_file():
            continue
        if stem + suffix in found:
            raise ValueError(f"{path}: found {stem}{suffix} twice, expected it once")
        found[stem + suffix] = path
    return dict(sorted(found.items()))


def has_hr(folder: SceneFolder) -> bool:
    """Whether a scene has the truth to train with or be scored against."""
    return "HR.png" in own_images(folder.path)


def _holds_frames(folder: Path) -> bool:
    return any(name.startswith("LR") for name in own_images(folder))


def find_scenes(root: str | os.PathLike[str]) -> tuple[SceneFolder, ...]:
    """Finds the scene folders of a data set, sorted by part, band and name.

    A scene folder holds at least one `LR<digits>.png`. `root` is a data set
    (`{train,val,test}/BAND/SCENE`, `BAND/SCENE` or `SCENE` below it) or one scene folder itself.

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
            if not child.is_dir() or child.name.startswith((".", "__MACOSX")):
                continue
            if _holds_frames(child):
                found.append(_describe(child, None if folder == root else folder.name))
            elif child.name.startswith("imgset"):
                raise ValueError(f"{child}: found no frame in it, expected LR000.png and on")
            elif levels:
                # Only train/, val/ and test/ have one more level below them, the bands.
                visit(child, levels if folder == root and child.name in PARTS else levels - 1)

    visit(root, 1)
    if not found:
        raise ValueError(f"{root}: found no scene, expected {_LAYOUT} in it")
    return tuple(sorted(found, key=lambda scene: (scene.part, scene.band, scene.name)))


def _by_number(images: Mapping[str, Path], prefix: str) -> dict[str, Path]:
    """The images PREFIX<digits>.png by their digits, in the order of the numbers."""
    found = {name[2:-4]: path for name, path in images.items() if name.startswith(prefix)}
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
        of the folder around it if that is RED or NIR or lies in train/, val/ or test/, else "".
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
    own = own_images(path)
    lr_paths, mask_paths = _by_number(own, "LR"), _by_number(own, "QM")
    if not lr_paths:
        raise ValueError(f"{path}: found no frame in it, expected LR000.png and on")
    for number in sorted(lr_paths.keys() ^ mask_paths.keys()):
        there, missing = ("LR", "QM") if number in lr_paths else ("QM", "LR")
        raise ValueError(
            f"{path / f'{missing}{number}.png'}: found no such file, expected it beside "
            f"{there}{number}.png"
        )
    lr = {p: read_png16(p) for p in lr_paths.values()}
    ordered = [mask_paths[n] for n in lr_paths]
    masks = dict(zip(ordered, png.read_masks(ordered)))
    _same_shape({**lr, **masks})

    hr, hr_mask = _read_truth(path, own.get("HR.png"), own.get("SM.png"))
    frames, stack = tuple(map(int, lr_paths)), np.stack(list(lr.values()))
    stack_masks = np.stack(list(masks.values()))
    try:
        return Scene(
            folder.name, stack, stack_masks, frames, folder.band, hr, hr_mask, norm,
            _read_reference(path),
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_truth(
    folder: Path, hr_path: Path | None, mask_path: Path | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """HR and its mask, where they are."""
    hr = read_png16(hr_path) if hr_path else None
    if hr is not None and not mask_path:
        raise ValueError(f"{folder / 'SM.png'}: found no such file, expected it beside HR.png")
    hr_mask = read_mask_png(mask_path) if mask_path else None
    if hr_path and mask_path and hr is not None and hr_mask is not None:
        _same_shape({hr_path: hr, mask_path: hr_mask})
    return hr, hr_mask


def _read_reference(folder: Path) -> int | None:
    """The number of the frame that reference.txt names; None without that file."""
    path = folder / "reference.txt"
    if not path.is_file():
        return None
    name = read_text(path, "a frame's name").strip()
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
                aside / f"LR{number:03d}.png", png.to_uint16(frame, f"{title}: LR{number:03d}")
            )
            write_mask_png(aside / f"QM{number:03d}.png", mask)
        if scene.reference is not None:
            text = f"LR{scene.reference:03d}\n"
            (aside / "reference.txt").write_text(text, encoding="utf-8")
        if scene.hr is not None:
            write_png16(aside / "HR.png", png.to_uint16(scene.hr, f"{title}: HR"))
        if scene.hr_mask is not None:
            write_mask_png(aside / "SM.png", scene.hr_mask)
