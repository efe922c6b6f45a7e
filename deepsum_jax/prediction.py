"""What a bundle makes of a stack: which frames serve, as a whole or by tiles, and what is said."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np

from deepsum_jax.bundle import Bundle
from deepsum_jax.config import Compute
from deepsum_jax.data.doubts import doubts
from deepsum_jax.data.resample import nearest_upsample
from deepsum_jax.data.scene import check_stack
from deepsum_jax.inference import frames_in_use, super_resolve_bands
from deepsum_jax.radiometry import Normalize, radiometry
from deepsum_jax.systems.system import Stack
from deepsum_jax.tiling.mosaic import Mosaic, make_plan
from deepsum_jax.tiling.overview import WHOLE
from deepsum_jax.tiling.source import Rect, Source


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """A super-resolved image and how it came about."""

    image: np.ndarray  # float32 [r·h, r·w] or [r·h, r·w, C], raw units
    reference_index: int  # in the stack; the image lies on this frame's grid
    frames_used: tuple[int, ...]  # indices in the stack, clearest first after the reference
    weights: np.ndarray  # float32 [len(frames_used)], each frame's share; sums to one
    # Where the system has them:
    standard_error: np.ndarray | None = None  # as `image`, root-mean-square error to be expected
    frames_per_pixel: np.ndarray | None = None  # float32 [r·h, r·w], how many frames spoke


def _reference_index(reference: int | str | None, frames: int, rule: str) -> int | None:
    if reference is None:
        if rule == "given":
            raise ValueError(
                "reference: found none, expected a frame's index: these parameters were trained "
                "with given reference frames"
            )
        reference = rule
    if isinstance(reference, str) and reference in ("clearest", "first"):
        return 0 if reference == "first" else None
    if isinstance(reference, (int, np.integer)) and not isinstance(reference, bool):
        if 0 <= reference < frames:
            return int(reference)
        raise ValueError(f"reference: found {reference}, expected 0 to {frames - 1}")
    raise ValueError(
        f"reference: found {reference!r}, expected 'clearest', 'first' or a frame's index"
    )


def prediction_of(
    source: Source, bundle: Bundle, reference: int | str | None, max_frames: int | None,
    normalize: Normalize | None, compute: Compute,
) -> tuple[Prediction, np.ndarray]:  # fmt: skip
    """What a bundle makes of a source, and where any frame was reliable [r·h, r·w]."""
    config, height, width = bundle.config, source.height, source.width
    if config.channels not in (1, source.channels):
        raise ValueError(
            f"stack: found {source.channels} channels, expected the bundle's {config.channels}"
        )
    least = max(2, config.filter_size // 2 + 1)
    if min(height, width) * config.scale < least:
        raise ValueError(
            f"stack: found frames of {height}×{width} pixels, expected at least "
            f"{-(-least // config.scale)}×{-(-least // config.scale)}"
        )
    index = _reference_index(reference, len(source.names), bundle.info.reference)
    explicit = isinstance(reference, (int, np.integer))
    if height * width > WHOLE:
        result, valid = _by_tiles(bundle, source, index, explicit, max_frames, normalize, compute)
    else:
        lr, clear = check_stack(*source.read(Rect(0, 0, height, width)))
        result = _at_once(bundle, lr, clear, index, explicit, max_frames, normalize, compute)
        valid = np.any(nearest_upsample(clear, config.scale), axis=0)
    broken = np.count_nonzero(~np.isfinite(result.image))
    if broken:
        raise ValueError(
            f"params: found {broken} of {result.image.size} pixels of the image not finite, "
            "expected numbers: these parameters cannot serve this stack; check its values and units"
        )
    return result, valid


def _at_once(
    bundle: Bundle, lr: np.ndarray, masks: np.ndarray, reference: int | None, explicit: bool,
    max_frames: int | None, normalize: Normalize | None, compute: Compute,
) -> Prediction:  # fmt: skip
    """A stack [T, h, w, C] as a whole."""
    for doubt in doubts(lr, masks):
        warnings.warn(doubt, UserWarning, stacklevel=4)
    chosen = frames_in_use(bundle, lr, masks, reference, max_frames, explicit)
    for line in chosen.warnings():
        warnings.warn(line, UserWarning, stacklevel=4)
    units = radiometry(bundle, lambda: lr[masks], normalize)
    kept = chosen.kept
    result = super_resolve_bands(bundle, Stack(lr[kept], masks[kept]), compute, units)
    return Prediction(
        result.image, kept[0], tuple(kept), result.weights, result.standard_error,
        result.frames_per_pixel,
    )  # fmt: skip


def _by_tiles(
    bundle: Bundle, source: Source, reference: int | None, explicit: bool,
    max_frames: int | None, normalize: Normalize | None, compute: Compute,
) -> tuple[Prediction, np.ndarray]:  # fmt: skip
    """A large source, tile by tile; and where any frame was reliable."""
    plan = make_plan(
        bundle, source, reference, explicit=explicit, max_frames=max_frames, normalize=normalize
    )
    mosaic = Mosaic(bundle, source, plan, compute=compute)
    strips = list(mosaic.strips())

    def joined(parts: list[np.ndarray | None]) -> np.ndarray | None:
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if known else None

    kept = plan.chosen.kept
    prediction = Prediction(
        np.concatenate([strip.image for strip in strips]),
        kept[0],
        tuple(kept),
        mosaic.shares[kept].astype(np.float32),
        joined([strip.standard_error for strip in strips]),
        joined([strip.frames_per_pixel for strip in strips]),
    )
    return prediction, np.concatenate([strip.valid for strip in strips])
