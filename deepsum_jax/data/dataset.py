"""The scenes of a training: read, prepared (and cached), split, and what normalises them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from deepsum_jax import files
from deepsum_jax.config import NORMALIZATIONS, DataConfig, ModelConfig, Normalization, nearest
from deepsum_jax.data import kelvins
from deepsum_jax.data.aligned import Agree, Align, Aligned
from deepsum_jax.data.prepare import PreparedScene, SceneSkipped, prepare_scene
from deepsum_jax.data.resample import upsample
from deepsum_jax.reading import read_text

_CACHE_FORMAT = 7
_DIGEST = hashlib.sha256().digest_size  # bytes
# Settings of `DataConfig` that do not change how a scene is prepared.
_NOT_OF_SCENES = (
    "workers", "cache", "augment", "clouded_shifts", "normalization", "band", "ground",
    "fewer_frames",
)  # fmt: skip


def split(names: Sequence[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Training and validation names: one shuffle, then a cut. Both keep at least one name."""
    order = np.random.default_rng(seed).permutation(len(names))
    count = min(max(1, round(fraction * len(names))), len(names) - 1)
    ordered = sorted(names)
    validation = {ordered[i] for i in order[:count]}
    return [n for n in ordered if n not in validation], sorted(validation)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Prepared scenes of a training run, and what its bundles say of them."""

    train: tuple[PreparedScene, ...]
    validation: tuple[PreparedScene, ...]
    band: str
    normalization: Normalization
    fingerprint: str
    skipped: tuple[tuple[str, str], ...]  # name, reason


def choose_band(folders: Sequence[kelvins.SceneFolder], band: str) -> str:
    """The band to train on: the asked one, or the only one there is.

    Raises:
      ValueError: several bands and none asked for, or one that is not there.
    """
    bands = sorted({f.band for f in folders})
    if band == "all":
        return "all"
    if band:
        if band not in bands:
            raise ValueError(
                f"data.band: found {band!r}, but the data has {', '.join(bands)}; "
                f"{nearest(band, [*bands, 'all'])}"
            )
        return band
    if len(bands) > 1:
        raise ValueError(
            f"data.band: the data has {', '.join(bands)}; choose one, as --set data.band={bands[0]}"
            ", or all"
        )
    return bands[0]


def fingerprint_scene(folder: Path) -> str:
    """SHA-256 over the names and bytes of a scene's own images, whatever lies beside them."""
    digest = hashlib.sha256()
    for name, path in kelvins.own_images(folder).items():
        digest.update(name.encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _combine(prints: Iterable[str]) -> str:
    return hashlib.sha256("".join(prints).encode()).hexdigest()


def fingerprint(folders: Iterable[kelvins.SceneFolder]) -> str:
    """SHA-256 of the scenes' bytes, in their order; names the data of a training."""
    return _combine(fingerprint_scene(f.path) for f in folders)


def _cached(
    folder: kelvins.SceneFolder, model: ModelConfig, data: DataConfig, cache: Path | None,
    align: Align | None, agree: Agree | None,
) -> tuple[str, PreparedScene | str]:  # fmt: skip
    """A scene's fingerprint, and the scene prepared or the reason why it is skipped."""
    print_ = fingerprint_scene(folder.path)
    settings = {
        "format": _CACHE_FORMAT,
        "scene": [folder.name, folder.band, print_, _given_reference(folder.path, data)],
        "model": [model.num_frames, model.scale, model.channels, model.hidden],
        "data": {k: v for k, v in data.to_dict().items() if k not in _NOT_OF_SCENES},
    }
    if align is not None:
        settings["aligned"] = [model.system, model.psf_sigma]
    if agree is not None:
        settings["agreeing"] = [model.system, model.psf_sigma]
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
    path = cache / f"{key}.npz" if cache else None
    if path is not None and path.exists():
        try:
            return print_, _read_cached(path)
        except Exception:  # noqa: BLE001 (whatever numpy raises for what is not ours)
            print(f"note: {path}: is damaged; {folder.name} is prepared anew", file=sys.stderr)
            files.remove(path)
    result: PreparedScene | str
    try:
        result = prepare_scene(kelvins.read_scene(folder), model, data, align, agree)
    except SceneSkipped as skipped:
        result = str(skipped)
    if path is not None:
        _write_cached(path, result)
    return print_, result


def _given_reference(folder: Path, data: DataConfig) -> str:
    """What reference.txt says, where it is asked for; no part of the scene's fingerprint."""
    path = folder / "reference.txt"
    given = data.reference == "given" and path.is_file()
    return read_text(path, "a frame's name") if given else ""


def _write_cached(path: Path, result: PreparedScene | str) -> None:
    """Arrays (.npz), and their digest behind them: zip files check less than all of their bytes."""
    with files.written_aside(path) as aside, open(aside, "w+b") as file:
        np.savez(file, **_to_arrays(result))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").digest()
        file.write(digest)


def _read_cached(path: Path) -> PreparedScene | str:
    stored = memoryview(path.read_bytes())
    arrays, digest = stored[:-_DIGEST], stored[-_DIGEST:]
    if hashlib.sha256(arrays).digest() != digest:
        raise ValueError(f"{path}: found other bytes than were written")
    return _from_arrays(np.load(io.BytesIO(arrays)))


def _to_arrays(result: PreparedScene | str) -> dict[str, Any]:
    if isinstance(result, str):
        return {"skipped": result}
    arrays = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    aligned = arrays.pop("aligned")
    if aligned is not None:
        arrays |= {f"aligned_{name}": value for name, value in aligned._asdict().items()}
    return arrays


def _from_arrays(stored: Any) -> PreparedScene | str:
    if "skipped" in stored:
        return str(stored["skipped"])
    names = [f.name for f in dataclasses.fields(PreparedScene) if f.name != "aligned"]
    values = {name: stored[name] for name in names}
    if "aligned_frames" in stored:
        values["aligned"] = Aligned(**{name: stored[f"aligned_{name}"] for name in Aligned._fields})
    return PreparedScene(**{**values, "name": str(values["name"]), "band": str(values["band"])})


def measure_normalization(scenes: Sequence[PreparedScene]) -> Normalization:
    """Standardisation constants of training scenes, one per channel.

    The mean and deviation of the clear LR pixels; outputs share the mean, and their deviation is
    that of what the network has to add: HR less the upsampled clearest frame, brightness aside.
    """
    values = [s.lr[s.masks] for s in scenes]  # each [pixels, C]
    counts = np.array([len(v) for v in values], np.float64)
    mean = sum(v.sum(axis=0, dtype=np.float64) for v in values) / counts.sum()
    square = sum(((v - mean) ** 2).sum(axis=0, dtype=np.float64) for v in values)
    std = np.sqrt(square / counts.sum())
    errors = []
    for s in scenes:
        difference = (s.hr - upsample(s.lr[:1], s.scale)[0])[s.hr_mask]
        errors.append(difference.var(axis=0, dtype=np.float64))
    hr_std = np.sqrt(np.mean(errors, axis=0))

    def plain(x: np.ndarray) -> float | tuple[float, ...]:
        # Seven digits, as float32 holds: constants that read well and compare across machines.
        rounded = tuple(float(f"{max(v, 1e-6):.7g}") for v in np.atleast_1d(x))
        return rounded if len(rounded) > 1 else rounded[0]

    # A mean may well be negative or zero (reflectance anomalies): only deviations are bounded.
    means = tuple(float(f"{v:.7g}") for v in np.atleast_1d(mean))
    centre = means if len(means) > 1 else means[0]
    return Normalization(lr_mean=centre, lr_std=plain(std), hr_mean=centre, hr_std=plain(hr_std))


def _normalization(
    scenes: Sequence[PreparedScene], band: str, model: ModelConfig, data: DataConfig
) -> Normalization:
    if data.normalization == "model":
        return model.normalization
    if data.normalization == "measured":
        return measure_normalization(scenes)
    if band not in NORMALIZATIONS:
        raise ValueError(
            f"data.normalization: published constants exist for {', '.join(NORMALIZATIONS)}, "
            f"not for band {band!r}; choose measured"
        )
    return NORMALIZATIONS[band]


def training_folders(root: str | os.PathLike[str]) -> tuple[kelvins.SceneFolder, ...]:
    """The scenes that may train: those of `train/`, else those of no part; never val or test."""
    folders = kelvins.find_scenes(root)
    return tuple(f for f in folders if f.part == "train") or tuple(f for f in folders if not f.part)


def prepare_dataset(
    root: str | os.PathLike[str],
    model: ModelConfig,
    data: DataConfig,
    cache: Path | None = None,
    progress: bool = False,
    align: Align | None = None,
    agree: Agree | None = None,
) -> Dataset:
    """Reads, prepares and splits the training scenes under a Kelvins-layout folder.

    Args:
      root: the data folder.
      cache: folder for prepared scenes, or None; each is keyed by its bytes and the settings,
        written aside and renamed.
      progress: show a bar.
      align: of a system that looks through the sensor; see `prepare_scene`.
      agree: of a system that wants what disagrees masked; likewise.

    Raises:
      ValueError, FileNotFoundError: a structural fault of the data, or no scene left.
    """
    folders = training_folders(root)
    if not folders:
        kept = " and ".join(sorted({f.part for f in kelvins.find_scenes(root)}))
        raise ValueError(f"{root}: found only {kept} scenes, expected scenes to train on")
    band = choose_band(folders, data.band)
    kelvins.read_norm_for(root)  # a fault there should not wait for the scores at the end
    if band != "all":
        folders = tuple(f for f in folders if f.band == band)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        work = pool.map(lambda f: _cached(f, model, data, cache, align, agree), folders)
        bar = tqdm(work, "preparing scenes", len(folders), disable=not progress, unit="scene")
        results = list(bar)
    prepared = {(f.band, f.name): r for f, (_, r) in zip(folders, results)}
    skipped = tuple((name, r) for (_, name), r in prepared.items() if isinstance(r, str))
    train: list[PreparedScene] = []
    validation: list[PreparedScene] = []
    for one in sorted({f.band for f in folders}):
        good = {n: r for (b, n), r in prepared.items() if b == one and not isinstance(r, str)}
        if len(good) < 2:
            reasons = "; ".join(f"{n}: {r}" for n, r in skipped[:3]) or "too few scenes"
            raise ValueError(
                f"{root}: {len(good)} of {len(folders)} scenes can train, expected at least 2 "
                f"(one validates) — {reasons}"
            )
        names, held_out = split(list(good), data.validation_fraction, data.split_seed)
        train += [good[n] for n in names]
        validation += [good[n] for n in held_out]
    digest = _combine(p for p, _ in results)
    normalization = _normalization(train, band, model, data)
    return Dataset(tuple(train), tuple(validation), band, normalization, digest, skipped)
