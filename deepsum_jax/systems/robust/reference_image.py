"""The reference's own image: what one frame says, without its hot pixels and hidden places.

Robust back-projection starts here and holds every other frame against it. What the reference hides
is filled from the median of the others, registered and in its brightness.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepsum_jax.data import resample
from deepsum_jax.data.fill import nearest_reliable
from deepsum_jax.data.sensor import Sensor, make_sensor
from deepsum_jax.systems.robust import agreement

STEP = 1.8  # 0..2, of a back-projection
SEEN = 1e-3  # of a frame; a pixel that only the tails of sensors reach is not seen
# A step sharpens noise as it does detail: one frame bears no more of them, the mean of many does.
_MANY = 3.0  # frames besides the reference, that are half a crowd


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
    """Frames that take part, the reference first, and the sensor they were seen through."""

    frames: np.ndarray  # [N, h, w, C] float32, about the reference's level, finite
    masks: np.ndarray  # [N, h, w] bool
    scale: int
    psf_sigma: float

    @property
    def leak(self) -> float:
        return agreement.point_leak(self.psf_sigma)

    def sensors(self, shifts: np.ndarray) -> list[Sensor]:
        shape = self.frames.shape[1:3]
        return [make_sensor(shape, s, self.scale, self.psf_sigma) for s in shifts]


# --- back-projection


def back_project_all(
    image: np.ndarray, frames: Sequence[np.ndarray], weights: Sequence[np.ndarray],
    sensors: Sequence[Sensor], iterations: int, part: np.ndarray | float = 1.0,
) -> np.ndarray:  # fmt: skip
    """image + STEP · Σ Aᵀ w (g − A image) / Σ Aᵀ w, again and again.

    Args:
      image: [H, W, C].
      frames: [h, w, C] each, in the reference's brightness.
      weights: [h, w] each.
      part: of a step that is taken, 0..1, everywhere or [H, W].
    """
    seen = seen_by(weights, sensors)
    step = np.where(seen > SEEN, STEP * part / np.maximum(seen, SEEN), 0)
    share = step[..., None].astype(np.float32)
    for _ in range(iterations):
        missing = [w[..., None] * (f - s.observe(image))
                   for s, f, w in zip(sensors, frames, weights)]  # fmt: skip
        image = image + share * sum(s.back_project(d) for s, d in zip(sensors, missing))
    return image


def crowd(others: Any) -> Any:
    """How far the frames that speak besides the reference are many, 0..1; numpy or JAX."""
    return others**4 / (others**4 + _MANY**4)


def seen_by(weights: Sequence[np.ndarray], sensors: Sequence[Sensor]) -> np.ndarray:
    """Σ Aᵀ w, [H, W]."""
    return np.asarray(sum(s.back_project(w) for s, w in zip(sensors, weights)))


def enlarged(frame: np.ndarray, mask: np.ndarray, scale: int) -> np.ndarray:
    return resample.upsample(nearest_reliable(frame, mask)[None], scale)[0]


# --- what the reference says


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The reference's own image, and what it says of itself."""

    image: np.ndarray  # [H, W, C]
    mask: np.ndarray  # [h, w], without hot pixels
    clear: np.ndarray  # [H, W]
    detail: np.ndarray  # [H, W, C], squared


def reference_image(
    stack: Frames, mask: np.ndarray, iterations: int, first: np.ndarray | None = None
) -> Reference:
    """Back-projection of the reference alone, from `first` on or from its enlargement."""
    sensor = stack.sensors(np.zeros((1, 2)))
    plain = enlarged(stack.frames[0], mask, stack.scale) if first is None else first
    image = back_project_all(
        plain, [stack.frames[0]], [mask.astype(np.float32)], sensor, iterations
    )
    clear = resample.nearest_upsample(mask, stack.scale)
    return Reference(image, mask, clear, agreement.detail(image, plain, stack.scale))


def consensus(stack: Frames, matched: Sequence[np.ndarray], shifts: np.ndarray) -> np.ndarray:
    """Median [H, W, C] of the frames but the reference on its grid; NaN where none is reliable.

    Args:
      matched: frames [h, w, C] in the reference's brightness, the reference first.
      shifts: [N, 2].
    """
    moved = []
    for frame, mask, shift in zip(matched[1:], stack.masks[1:], np.rint(shifts[1:]).astype(int)):
        image = np.moveaxis(enlarged(frame, mask, stack.scale), -1, 0)
        clear = resample.translate(resample.nearest_upsample(mask, stack.scale), shift, False)
        moved.append(np.where(clear, resample.translate(image, shift), np.nan))
    return np.moveaxis(_median(np.stack(moved)), 0, -1)


def _median(values: np.ndarray) -> np.ndarray:
    """Median [...] over the first axis without its NaN, NaN where there is nothing else: what
    numpy's nanmedian is, in a fifth of its time."""
    ordered = np.sort(values, axis=0)  # NaN come last
    count = np.isfinite(values).sum(axis=0)
    low, high = (np.maximum(count - 1, 0) // 2)[None], np.minimum(count // 2, len(values) - 1)[None]
    middle = [np.take_along_axis(ordered, at, axis=0)[0] for at in (low, high)]
    return np.asarray((middle[0] + middle[1]) / 2, np.float32)


def mended(
    stack: Frames, reference: Reference, matched: Sequence[np.ndarray], shifts: np.ndarray,
    noise: np.ndarray, iterations: int,
) -> Reference:  # fmt: skip
    """The reference without hot pixels, and with what it hides taken from the other frames."""
    median = consensus(stack, matched, shifts)
    known = np.isfinite(median).all(axis=-1)
    seen = stack.sensors(np.zeros((1, 2)))[0]
    others = np.where(known[..., None], median, reference.image)
    difference = stack.frames[0] - seen.observe(others)
    mask = reference.mask & ~agreement.spikes(
        difference,
        agreement.expected_difference(noise, 0 * difference, 0),
        reference.mask,
        stack.leak,
    )
    if mask.all():
        return reference
    # A hot pixel's hole is no larger than the pixel; what lies beside it is the reference's.
    plain = enlarged(stack.frames[0], mask, stack.scale)
    hidden = ~resample.nearest_upsample(mask, stack.scale) & known
    return reference_image(stack, mask, iterations, np.where(hidden[..., None], median, plain))
