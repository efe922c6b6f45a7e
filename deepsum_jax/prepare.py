"""From scenes to prepared scenes: what a stack is made of, on the host.

Order by clearance, integer shifts, what is dropped, and where training patches lie. Frames stay
on the LR grid here, in raw units; the pipeline upsamples what is asked for.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from deepsum_jax import deepsum, files, kelvins, ops, registration
from deepsum_jax.config import NORMALIZATIONS, DataConfig, ModelConfig, Normalization, nearest
from deepsum_jax.scene import Scene

_CACHE_FORMAT = 3


class SceneSkipped(ValueError):
    """A sound scene whose content cannot serve; the message says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedScene:
    """Frames that passed, the reference and then the clearest, and where they can train.

    Attributes:
      name, band: the scene's.
      lr: [T, h, w, C] float32 raw units, finite; frame 0 is the reference.
      masks: [T, h, w] bool.
      shifts: [T, 2] int32, HR pixels: the translations that register each frame on frame 0.
      hr: [H, W, C] float32 raw units.
      hr_mask: [H, W] bool.
      corners: [P, 2] int32, LR row and column of each patch.
      members: [P, N] int32, the frames of each patch's stack, 0 first.
    """

    name: str
    band: str
    lr: np.ndarray
    masks: np.ndarray
    shifts: np.ndarray
    hr: np.ndarray
    hr_mask: np.ndarray
    corners: np.ndarray
    members: np.ndarray

    @property
    def scale(self) -> int:
        return self.hr.shape[0] // self.lr.shape[1]


def with_channels(images: np.ndarray, rank: int) -> np.ndarray:
    """Adds the channel axis that single-band images leave out."""
    return images[..., None] if images.ndim == rank else images


def fill_hidden(lr: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Frames as finite float32, with no-data values filled.

    What a mask hides stays, clouds too, unless it is no measurement: not finite, or further from
    all reliable values of the stack than ten times their range, as no-data codes are (−9999,
    65535, −3.4e38). Upsampling would smear those over their reliable neighbours, so they take
    their frame's clear median, or the stack's in a frame without a clear pixel.

    Args:
      lr: [T, h, w, C].
      masks: [T, h, w] bool.
    """
    with np.errstate(over="ignore"):  # becomes infinite, and is filled
        x = lr.astype(np.float32)
    broken = ~np.isfinite(x)
    clear = x[masks]  # [pixels, C]
    if len(clear):
        low, high = clear.min(axis=0), clear.max(axis=0)
        reach = 10 * (high - low)
        broken |= ~masks[..., None] & ((x < low - reach) | (x > high + reach))
    else:
        clear = np.zeros((1, x.shape[-1]), np.float32)
    for n in np.flatnonzero(broken.any(axis=(1, 2, 3))):
        own = x[n][masks[n]]
        x[n] = np.where(broken[n], np.median(own if len(own) else clear, axis=0), x[n])
    return x


def clearest_first(masks: np.ndarray) -> np.ndarray:
    """Indices of frames by falling count of reliable pixels; a tie keeps the stack's order."""
    return np.argsort(-masks.reshape(len(masks), -1).sum(axis=1), kind="stable")


def reference_frame(scene: Scene, rule: str) -> int | None:
    """Index of the frame that a rule makes the reference; None for the clearest of those in use.

    Args:
      rule: "clearest", "first" (in the stack) or "given" (by the scene).

    Raises:
      ValueError: a scene that gives none where it should.
    """
    if rule != "given":
        return None if rule == "clearest" else 0
    if scene.reference not in scene.frames:
        raise ValueError(
            f"scene {scene.name!r}: found no given reference frame, expected a reference.txt that "
            "names one"
        )
    return scene.frames.index(scene.reference)


def reference_first(masks: np.ndarray, reference: int | None) -> np.ndarray:
    """Indices of frames: the reference, then the others by clearance."""
    order = clearest_first(masks)
    return order if reference is None else np.r_[reference, order[order != reference]]


def upsample(lr: np.ndarray, scale: int) -> np.ndarray:
    """Bicubic upsampling with the channels last: [..., h, w, C] → [..., H, W, C]."""
    return np.moveaxis(ops.bicubic_upsample(np.moveaxis(lr, -1, -3), scale), -3, -1)


def upsample_window(
    lr: np.ndarray, corner: Sequence[int] | np.ndarray, size: int, scale: int
) -> np.ndarray:
    """The part of `upsample(lr)` over an LR window, at the window's cost.

    Args:
      lr: [N, h, w, C].
      corner: LR row and column.
      size: of the window, LR pixels.

    Returns:
      [N, r·size, r·size, C].
    """
    margin = 2  # the reach of the kernel
    y, x = (int(c) for c in corner)
    rows = np.clip(np.arange(y - margin, y + size + margin), 0, lr.shape[1] - 1)
    cols = np.clip(np.arange(x - margin, x + size + margin), 0, lr.shape[2] - 1)
    window = np.moveaxis(lr[:, rows][:, :, cols], -1, -3)  # [N, C, size + 4, size + 4]
    up = ops.bicubic_upsample(window, scale, clip=False)
    edge = margin * scale
    up = np.moveaxis(up[..., edge:-edge, edge:-edge], -3, -1)
    return np.clip(up, lr.min(axis=(1, 2), keepdims=True), lr.max(axis=(1, 2), keepdims=True))


def _window_fraction(mask: np.ndarray, size: int) -> np.ndarray:
    """Fraction of reliable pixels in every size×size window: [..., h, w] → [..., h′, w′]."""
    return ops.window_sums(mask.astype(np.int64), size) / size**2


def choose_patches(
    masks: np.ndarray, hr_mask: np.ndarray, frames: int, scale: int, data: DataConfig, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where a scene can train: patches with enough clear frames and a clear HR.

    Args:
      masks: [T, h, w], frame 0 the reference.
      hr_mask: [H, W].
      frames: N.

    Returns:
      corners [P, 2] and members [P, N]: frame 0, then the frames clearest on that patch.
    """
    size = data.patch_size // scale
    if min(masks.shape[1:]) < size:
        raise SceneSkipped(
            f"frames are {masks.shape[1]}×{masks.shape[2]} pixels, patches need {size}×{size}"
        )
    clear = _window_fraction(masks, size)  # [T, h′, w′]
    hr_clear = _window_fraction(hr_mask, data.patch_size)[::scale, ::scale]
    usable = clear > data.min_lr_clearance
    good = usable[0] & (usable.sum(axis=0) >= frames) & (hr_clear > data.min_hr_clearance)
    corners = np.argwhere(good).astype(np.int32)
    if not len(corners):
        raise SceneSkipped(f"no patch has {frames} clear frames and a clear HR")
    rng = np.random.default_rng(seed)
    corners = rng.permutation(corners)[: data.patches_per_scene]
    others = clear[1:, corners[:, 0], corners[:, 1]].T  # [P, T − 1]
    members = 1 + np.argsort(-others, axis=1, kind="stable")[:, : frames - 1]
    return corners, np.pad(members, ((0, 0), (1, 0))).astype(np.int32)


def prepare_scene(scene: Scene, model: ModelConfig, data: DataConfig) -> PreparedScene:
    """Applies the training rules of the published preparation to a scene.

    Frames with a value above `max_value` go, the rest is ordered by clearance behind the reference
    (the clearest, but for other rules), registered on it by integer cross-correlation of the
    upsampled frames, and frames shifted further than `max_shift` go.

    Raises:
      ValueError: a scene of another scale or channel count than the model's, or without HR.
      SceneSkipped: too few frames are left, or no patch is clear enough.
    """
    lr = with_channels(scene.lr, 3)
    if scene.hr is None or scene.hr_mask is None:
        raise ValueError(f"scene {scene.name!r}: found no HR.png, expected one for training")
    if scene.scale != model.scale or lr.shape[-1] != model.channels:
        raise ValueError(
            f"scene {scene.name!r}: found scale {scene.scale} and {lr.shape[-1]} channels, "
            f"expected {model.scale} and {model.channels}"
        )
    if not scene.hr_mask.any():
        raise SceneSkipped("HR has no reliable pixel")
    keep = np.asarray(scene.masks.any(axis=(1, 2)))
    if data.max_value:
        keep &= ~(lr > data.max_value).any(axis=(1, 2, 3))
    reference = reference_frame(scene, data.reference)
    if reference is not None:
        if not keep[reference]:
            raise SceneSkipped(f"its {data.reference} frame cannot serve as reference")
        reference = int(keep[:reference].sum())
    lr, masks = fill_hidden(lr[keep], scene.masks[keep]), scene.masks[keep]
    if len(lr) < model.num_frames:
        raise SceneSkipped(f"{len(lr)} usable frames, {model.num_frames} needed")
    order = reference_first(masks, reference)
    lr, masks = lr[order], masks[order]
    shifts = registration.register_frames(
        upsample(lr, model.scale), ops.nearest_upsample(masks, model.scale), data.registration
    )
    keep = np.abs(shifts).max(axis=1) <= data.max_shift
    lr, masks, shifts = lr[keep], masks[keep], shifts[keep]
    if len(lr) < model.num_frames:
        raise SceneSkipped(
            f"{len(lr)} frames within ±{data.max_shift} pixels, {model.num_frames} needed"
        )
    seed = zlib.crc32(f"{data.split_seed}/{scene.band}/{scene.name}".encode())
    corners, members = choose_patches(
        masks, scene.hr_mask, model.num_frames, model.scale, data, seed
    )
    hr = fill_hidden(with_channels(scene.hr, 2)[None], scene.hr_mask[None])[0]
    return PreparedScene(
        scene.name, scene.band, lr, masks, shifts, hr, scene.hr_mask, corners, members
    )


def aligned_masks(masks: np.ndarray, shifts: np.ndarray, scale: int) -> np.ndarray:
    """Masks on frame 0's upsampled grid by integer shifts: [N, h, w] → [N, H, W] bool.

    What comes in from outside a frame is not reliable.
    """
    up = ops.nearest_upsample(masks, scale)
    return np.stack([ops.translate(m, s, fill=False) for m, s in zip(up, shifts)])


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
    """SHA-256 over the names and bytes of a scene's images."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.glob("*.png") if p.is_file()):
        digest.update(path.name.encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _combine(prints: Iterable[str]) -> str:
    return hashlib.sha256("".join(prints).encode()).hexdigest()


def fingerprint(folders: Iterable[kelvins.SceneFolder]) -> str:
    """SHA-256 of the scenes' bytes, in their order; names the data of a training."""
    return _combine(fingerprint_scene(f.path) for f in folders)


def _cached(
    folder: kelvins.SceneFolder, model: ModelConfig, data: DataConfig, cache: Path | None
) -> tuple[str, PreparedScene | str]:
    """A scene's fingerprint, and the scene prepared or the reason why it is skipped."""
    print_ = fingerprint_scene(folder.path)
    settings = {
        "format": _CACHE_FORMAT,
        "scene": [folder.name, folder.band, print_, _given_reference(folder.path, data)],
        "model": [model.num_frames, model.scale, model.channels],
        "data": {
            k: v
            for k, v in data.to_dict().items()
            if k not in ("workers", "cache", "augment", "clouded_shifts", "normalization", "band")
        },
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
    path = cache / f"{key}.npz" if cache else None
    if path is not None and path.exists():
        try:
            return print_, _read_cached(path)
        except Exception:  # noqa: BLE001 (not ours, or damaged on disk: prepare anew)
            path.unlink(missing_ok=True)
    result: PreparedScene | str
    try:
        result = prepare_scene(kelvins.read_scene(folder), model, data)
    except SceneSkipped as skipped:
        result = str(skipped)
    if path is not None:
        with files.written_aside(path) as aside, open(aside, "wb") as file:
            np.savez(file, **_to_arrays(result))
    return print_, result


def _given_reference(folder: Path, data: DataConfig) -> str:
    """What reference.txt says, where it is asked for; no part of the scene's fingerprint."""
    path = folder / "reference.txt"
    return path.read_text(errors="replace") if data.reference == "given" and path.exists() else ""


def _read_cached(path: Path) -> PreparedScene | str:
    with open(path, "rb") as file:
        if zipfile.ZipFile(file).testzip() is not None:  # numpy does not check all of a member
            raise zipfile.BadZipFile(path)
        file.seek(0)
        return _from_arrays(np.load(file))


def _to_arrays(result: PreparedScene | str) -> dict[str, Any]:
    if isinstance(result, str):
        return {"skipped": result}
    arrays = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    return arrays


def _from_arrays(stored: Any) -> PreparedScene | str:
    if "skipped" in stored:
        return str(stored["skipped"])
    values = {f.name: stored[f.name] for f in dataclasses.fields(PreparedScene)}
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
    """The scenes that may train: those of `train/`, or all where there is no such part."""
    folders = kelvins.find_scenes(root)
    return tuple(f for f in folders if f.part == "train") or tuple(
        f for f in folders if f.part != "test"
    )


def prepare_dataset(
    root: str | os.PathLike[str],
    model: ModelConfig,
    data: DataConfig,
    cache: Path | None = None,
    progress: bool = False,
) -> Dataset:
    """Reads, prepares and splits the training scenes under a Kelvins-layout folder.

    Args:
      root: the data folder.
      cache: folder for prepared scenes, or None; each is keyed by its bytes and the settings,
        written aside and renamed.
      progress: show a bar.

    Raises:
      ValueError, FileNotFoundError: a structural fault of the data, or no scene left.
    """
    folders = training_folders(root)
    if not folders:
        raise ValueError(f"{root}: found only test scenes, expected scenes to train on")
    band = choose_band(folders, data.band)
    kelvins.read_norm_for(root)  # a fault there should not wait for the scores at the end
    if band != "all":
        folders = tuple(f for f in folders if f.band == band)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        work = pool.map(lambda f: _cached(f, model, data, cache), folders)
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


def full_stack(
    scene: PreparedScene, model: ModelConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The whole scene's N clearest frames as the network takes them, for validation.

    Returns:
      images [N, H, W, C] standardised, masks [N, H, W, 1] (aligned where the configuration
      aligns masks by shifts), and shifts [N, 2] where the system registers by them.
    """
    members = np.arange(model.num_frames)
    masks = (
        aligned_masks(scene.masks[members], scene.shifts[members], model.scale)
        if model.mask_alignment == "shifts"
        else ops.nearest_upsample(scene.masks[members], model.scale)
    )
    images = deepsum.to_input(upsample(scene.lr[members], model.scale), model.normalization)
    shifts = scene.shifts[members].astype(np.float32) if model.takes_shifts else None
    return np.asarray(images, np.float32), masks[..., None], shifts
