"""Frames against the reference's image: made ready, registered on it, compared with it.

What robust back-projection and the unrolled network begin with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deepsum_jax.data.fill import nearest_reliable
from deepsum_jax.data.sensor import Sensor
from deepsum_jax.data.survey import Survey
from deepsum_jax.systems.robust import agreement, registration
from deepsum_jax.systems.robust.reference_image import Frames, Reference

KNOWN = 0.99  # of what an LR pixel looks at, for the reference to say something there


class Units(NamedTuple):
    """What a stack's own units are in raw ones: raw = own · unit + level."""

    level: np.ndarray  # [C] float64, the reference's
    unit: float  # above 0, of all bands

    def match(self, survey: Survey) -> Match:
        """A survey's brightness in these units."""
        offsets = (survey.gains * self.level + survey.offsets - self.level) / self.unit
        return Match(survey.gains.astype(np.float32), offsets.astype(np.float32))


class Match(NamedTuple):
    """gain · frame + offset has the reference's brightness, in a stack's own units."""

    gains: np.ndarray  # [N, C]
    offsets: np.ndarray  # [N, C]


def cool_frames(
    lr: np.ndarray, masks: np.ndarray, scale: int, psf_sigma: float
) -> tuple[Frames, Units]:
    """Frames without hot pixels in units of their own, in which no number is too small or large.

    About the reference's level, float32 holds the contrast of any brightness.

    Args:
      lr: [N, h, w, C] raw, frame 0 the reference; non-finite only where masked.
      masks: [N, h, w] bool; some of frame 0's are True.
    """
    level = np.median(lr[0][masks[0]], axis=0).astype(np.float64)
    unit = _unit(lr[0][masks[0]] - level)
    frames = [
        nearest_reliable(((np.where(m[..., None], f, level) - level) / unit).astype(np.float32), m)
        for f, m in zip(lr, masks)
    ]
    leak = agreement.point_leak(psf_sigma)
    cool = [m & ~agreement.hot_pixels(f, m, leak) for f, m in zip(frames, masks)]
    cool = [c if c.any() else m for c, m in zip(cool, masks)]
    frames = [nearest_reliable(f, m) for f, m in zip(frames, cool)]
    return Frames(np.stack(frames), np.stack(cool), scale, psf_sigma), Units(level, unit)


def _unit(values: np.ndarray) -> float:
    """How large values [pixels, C] about their level are: a scale that goes with their own."""
    low, high = np.quantile(values, (0.1, 0.9))
    # Most of a frame may have one value; all of it looks the same in any unit.
    return float(high - low) or float(values.std()) or 1.0


def register(
    stack: Frames,
    reference: Reference,
    steps: int = registration.STEPS,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Shifts [N, 2] of frames on the reference's image, HR pixels, in so many steps at most, from
    `start` on or from whole pixels that are searched for."""
    grey = stack.frames.mean(axis=-1)
    if start is None:
        shifts = registration.coarse_shifts(grey, stack.masks, stack.scale)
    else:
        shifts = np.array(start, np.float64)
    image = reference.image.mean(axis=-1)
    for n in range(1, len(grey)):
        shifts[n] = registration.refine(
            image, reference.clear, grey[n], stack.masks[n], shifts[n], stack.scale,
            stack.psf_sigma, steps,
        )  # fmt: skip
    return shifts


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """A frame against an image seen through its sensor."""

    matched: np.ndarray  # [h, w, C] in the reference's brightness
    difference: np.ndarray  # [h, w, C] to what was expected
    known: np.ndarray  # [h, w], where frame and reference are reliable
    use: np.ndarray  # [h, w], where the frame is reliable


def compare(
    stack: Frames,
    n: int,
    sensor: Sensor,
    image: np.ndarray,
    clear: np.ndarray,
    known_match: Match | None = None,
) -> Comparison:
    """Frame `n` in the reference's brightness, which is found unless it is known, against an image
    [H, W, C], known where `clear`."""
    use = stack.masks[n] & sensor.inside
    known = use
    if not clear.all():
        known = use & (sensor.observe(clear.astype(np.float32)) > KNOWN)
    view = sensor.observe(image)
    matched = np.empty_like(stack.frames[n])
    for c in range(matched.shape[-1]):
        if known_match is None:
            gain, offset = agreement.match(stack.frames[n, ..., c], view[..., c], known)
        else:
            gain, offset = known_match.gains[n, c], known_match.offsets[n, c]
        matched[..., c] = gain * stack.frames[n, ..., c] + offset
    return Comparison(matched, matched - view, known, use)


def stack_noise(stack: Frames, comparisons: Sequence[Comparison]) -> np.ndarray:
    """The stack's noise [C]: the calmest frame, or the calmest pair where textures cancel."""
    single = [agreement.noise_of_frame(f, m) for f, m in zip(stack.frames, stack.masks)]
    pairs = [agreement.noise_of_pair(c.difference, c.known) for c in comparisons]
    spread = np.quantile(np.abs(stack.frames[0][stack.masks[0]]), 0.9, axis=0)
    noise = np.minimum(np.median(single, axis=0), np.min([*pairs, *single], axis=0))
    return np.asarray(np.maximum(noise, 1e-4 * spread))
