"""Which scenes of a data folder are scored."""

from __future__ import annotations

from pathlib import Path

from deepsum_jax.bundle import Bundle
from deepsum_jax.config import nearest
from deepsum_jax.data import kelvins
from deepsum_jax.data.dataset import fingerprint, training_folders

SPLITS = ("auto", "all", "train", "val", "test")


def select_scenes(
    bundle: Bundle, data: Path, split: str, band: str = ""
) -> tuple[str, tuple[kelvins.SceneFolder, ...]]:
    """The scenes with HR that a split means for this bundle and this data.

    "auto" is the held-out split where `data` holds the bundle's own training scenes (the test
    scenes with HR, else the validation scenes), and all scenes elsewhere. "val" is what the
    training kept out, and what lies under `data`/val.

    Returns:
      The split's name, resolved, and its scenes.

    Raises:
      ValueError: no scene with HR, or a split that the data does not have.
    """
    folders = kelvins.find_scenes(data)
    if band and band != "all":
        bands = sorted({f.band for f in folders})
        if band not in bands:
            raise ValueError(
                f"--band: found {band!r}, but {data} has {', '.join(bands) or 'no band folders'}; "
                f"{nearest(band, [*bands, 'all'])}"
            )
        folders = tuple(f for f in folders if f.band == band)
    scored = tuple(f for f in folders if kelvins.has_hr(f))
    if not scored:
        raise ValueError(f"{data}: found {len(folders)} scenes but no HR.png, nothing to score")
    if split == "auto":
        split = "all"
        if _is_own_data(bundle, data):
            scored = tuple(f for f in scored if f.band in bundle.info.bands)
            split = "test" if any(f.part == "test" for f in scored) else "val"
    if split == "all":
        return split, scored
    info = bundle.info
    ids = set(info.train_scenes if split == "train" else info.validation_scenes)
    chosen = tuple(f for f in scored if _belongs(f, split, ids))
    if not chosen:
        raise ValueError(f"{data}: found no scene with HR of the split {split!r}")
    return split, chosen


def _belongs(folder: kelvins.SceneFolder, split: str, ids: set[str]) -> bool:
    """Whether a scene is of a split, where a bundle names `ids` as those of its train or val."""
    if split == "test" or folder.part in ("val", "test"):
        return folder.part == split
    return f"{folder.band}/{folder.name}" in ids


def _is_own_data(bundle: Bundle, data: Path) -> bool:
    if not bundle.info.data_fingerprint:
        return False
    folders = [f for f in training_folders(data) if f.band in bundle.info.bands]
    return fingerprint(folders) == bundle.info.data_fingerprint
