"""From a scene to a prepared scene: what a training's stacks are made of, on the host.

Order by clearance, integer shifts, what is dropped, and where training patches lie. Frames stay
on the LR grid here, in raw units; `inputs` upsamples what is asked for.
"""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np

from deepsum_jax.config import DataConfig, ModelConfig
from deepsum_jax.data import resample
from deepsum_jax.data.aligned import Agree, Align, Aligned
from deepsum_jax.data.fill import fill, fill_hidden
from deepsum_jax.data.frames import reference_first, reference_frame
from deepsum_jax.data.registration import register_upsampled
from deepsum_jax.data.scene import Scene, with_channels

_ONE_VALUE = 0.95  # of an image's reliable pixels; one that has so many of one value shows nothing


class SceneSkipped(ValueError):
    """A sound scene whose content cannot serve; the message says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedScene:
    """Frames that passed, the reference and then the clearest, and where they can train.

    Attributes:
      name, band: the scene's.
      lr: [T, h, w, C] float32 raw units, finite; frame 0 is the reference.
      masks: [T, h, w] bool.
      shifts: [T, 2], HR pixels: the translations that register each frame on frame 0; whole ones
        (int32) but for systems that ask what agrees.
      hr: [H, W, C] float32 raw units.
      hr_mask: [H, W] bool.
      corners: [P, 2] int32, LR row and column of each patch.
      members: [P, N] int32, the frames of each patch's stack, 0 first.
      aligned: the stack as systems take it that look through the sensor; their patches have all
        frames, whatever `members` says.
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
    aligned: Aligned | None = None

    @property
    def scale(self) -> int:
        return self.hr.shape[0] // self.lr.shape[1]


def _window_fraction(mask: np.ndarray, size: int) -> np.ndarray:
    """Fraction of reliable pixels in every size×size window: [..., h, w] → [..., h′, w′]."""
    return resample.window_sums(mask.astype(np.int64), size) / size**2


def _what_lacks(
    reference: np.ndarray, enough: np.ndarray, hr: np.ndarray, frames: int, data: DataConfig
) -> str:
    """Which setting leaves no patch; arrays [h′, w′] say where patches meet it."""
    least = f"clearer than data.min_lr_clearance = {data.min_lr_clearance:g}"
    if not reference.any():
        return f"the reference frame is nowhere {least}"
    if not enough.any():
        return f"nowhere are model.num_frames = {frames} frames {least}"
    bar = f"data.min_hr_clearance = {data.min_hr_clearance:g}"
    if not hr.any():
        return f"HR is nowhere clearer than {bar}"
    return f"frames {least} and HR clearer than {bar} never meet on one patch"


def shows_nothing(values: np.ndarray) -> bool:
    """Whether nearly all reliable pixels [P, C] have one value: constant, black or saturated."""
    return bool(np.mean(values == np.median(values, axis=0)) >= _ONE_VALUE)


def _usable(lr: np.ndarray, masks: np.ndarray, data: DataConfig) -> tuple[np.ndarray, str]:
    """Which frames can serve, bool [T], and in words what the others lack.

    What a mask hides has no say: clouds and no-data codes are above any limit.
    """
    seen = np.asarray(masks.any(axis=(1, 2)))
    high: np.ndarray = np.zeros(len(lr), bool)
    if data.max_value:
        high = np.asarray(((lr > data.max_value).any(axis=-1) & masks).any(axis=(1, 2)))
    lacks = []
    if high.any():
        lacks.append(f"{high.sum()} with a reliable value above data.max_value = {data.max_value}")
    if not seen.all():
        lacks.append(f"{np.count_nonzero(~seen)} without a reliable pixel")
    flat = np.array([m.any() and shows_nothing(f[m]) for f, m in zip(lr, masks)])
    if flat.any():
        lacks.append(f"{flat.sum()} of one value, as black or saturated")
    return seen & ~high & ~flat, ", ".join(lacks)


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
            f"frames are {masks.shape[1]}×{masks.shape[2]} pixels, patches need {size}×{size} "
            f"(data.patch_size = {data.patch_size})"
        )
    clear = _window_fraction(masks, size)  # [T, h′, w′]
    hr_clear = _window_fraction(hr_mask, data.patch_size)[::scale, ::scale]
    usable = clear > data.min_lr_clearance
    good = usable[0] & (usable.sum(axis=0) >= frames) & (hr_clear > data.min_hr_clearance)
    corners = np.argwhere(good).astype(np.int32)
    if not len(corners):
        enough = usable.sum(axis=0) >= frames
        raise SceneSkipped(
            f"no patch has {frames} clear frames and a clear HR: "
            + _what_lacks(usable[0], enough, hr_clear > data.min_hr_clearance, frames, data)
        )
    rng = np.random.default_rng(seed)
    corners = rng.permutation(corners)[: data.patches_per_scene]
    others = clear[1:, corners[:, 0], corners[:, 1]].T  # [P, T − 1]
    members = 1 + np.argsort(-others, axis=1, kind="stable")[:, : frames - 1]
    return corners, np.pad(members, ((0, 0), (1, 0))).astype(np.int32)


def _frames_in_order(
    scene: Scene, model: ModelConfig, data: DataConfig, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """The frames that can serve [T, h, w, C], float32 and filled, and their masks: the reference
    first, then by clearance; `least` of them at least."""
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
    if shows_nothing(with_channels(scene.hr, 2)[scene.hr_mask]):
        raise SceneSkipped("HR is of one value, as black or saturated")
    keep, lacks = _usable(lr, scene.masks, data)
    reference = reference_frame(scene, data.reference)
    if reference is not None:
        if not keep[reference]:
            raise SceneSkipped(
                f"its {data.reference} frame (data.reference) cannot serve as reference: the scene "
                f"has {lacks}"
            )
        reference = int(keep[:reference].sum())
    lr, masks = fill(lr[keep], scene.masks[keep], model.hidden), scene.masks[keep]
    if len(lr) < least:
        raise SceneSkipped(
            f"{len(lr)} usable frames, {least} needed (model.num_frames); the scene has "
            f"{scene.num_frames}{f', {lacks}' if lacks else ''}"
        )
    order = reference_first(masks, reference)
    return lr[order], masks[order]


def prepare_scene(
    scene: Scene, model: ModelConfig, data: DataConfig, align: Align | None = None,
    agree: Agree | None = None,
) -> PreparedScene:  # fmt: skip
    """Applies the training rules of the published preparation to a scene.

    Frames with a reliable value above `max_value` go, the rest is ordered by clearance behind the
    reference (the clearest, but for other rules), registered on it by integer cross-correlation
    of the upsampled frames, and frames shifted further than `max_shift` go.

    Args:
      align: of a system that looks through the sensor. It registers the frames, none goes for its
        shift, and one is enough.
      agree: of a system that wants what disagrees with the reference masked. Patches lie where
        they would without it: where ground has changed there is something to learn.

    Raises:
      ValueError: a scene of another scale or channel count than the model's, or without HR.
      SceneSkipped: too few frames are left, or no patch is clear enough.
    """
    needed = 1 if align else model.num_frames
    lr, masks = _frames_in_order(scene, model, data, needed)
    aligned, same = None, masks
    if align is not None:
        aligned = align(lr, masks)
        shifts = np.rint(aligned.shifts).astype(np.int32)
    else:
        if agree is not None:
            shifts, same = agree(lr, masks)
            lr = fill(lr, same, model.hidden)
        else:
            shifts = register_upsampled(lr, masks, model.scale, method=data.registration)
        keep = np.abs(shifts).max(axis=1) <= data.max_shift
        lr, masks, same, shifts = lr[keep], masks[keep], same[keep], shifts[keep]
        if len(lr) < model.num_frames:
            raise SceneSkipped(
                f"{len(lr)} frames within ±{data.max_shift} pixels, {model.num_frames} needed "
                f"(data.max_shift = {data.max_shift} HR pixels, model.num_frames)"
            )
    seed = zlib.crc32(f"{data.split_seed}/{scene.band}/{scene.name}".encode())
    assert scene.hr is not None and scene.hr_mask is not None
    corners, members = choose_patches(masks, scene.hr_mask, needed, model.scale, data, seed)
    hr = fill_hidden(with_channels(scene.hr, 2)[None], scene.hr_mask[None])[0]
    return PreparedScene(
        scene.name, scene.band, lr, same, shifts, hr, scene.hr_mask, corners, members, aligned
    )
