"""What the whole of a large stack says of its frames, from parts that stand for it.

A frame is registered in each part, by what the grids say and by search, whichever shows more of the
reference. Parts that agree give its shift, and how that changes across the stack: a rotation or a
scale of a few parts in ten thousand is a pixel at the ends of a large image. Where they do not
agree, as under clouds, what the grids say stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.ndimage

from deepsum_jax.data.survey import Survey
from deepsum_jax.systems.robust import agreement, registration
from deepsum_jax.systems.robust.comparison import compare, cool_frames, stack_noise
from deepsum_jax.systems.robust.reference_image import Frames, Reference, reference_image
from deepsum_jax.tiling.source import Rect, Source

_STEPS = 20  # back-projections of the reference alone
_LEAST = 64  # pixels, the fewest that tell a shift
_CLEAR = 0.1  # of a part's reference, for the part to tell anything
_SURE = 8.0  # by the root of the pixels: the least correlation of detail that is no chance
_DETAIL = 2.0  # LR pixels: what changes more slowly than this Gaussian is no detail
_BETTER = 0.02  # of correlation, that a search must gain over what the grids say
_NEAR = 0.5  # LR pixels; parts whose shifts differ by less agree
_FEW = 4  # parts, the fewest that tell how a shift changes across the stack
_GREATEST_SLOPE = 2e-3  # of a shift, by pixel


class Look(NamedTuple):
    """One part: where it lies, and what it says of each frame."""

    centre: np.ndarray  # [2] LR pixels
    shifts: np.ndarray  # [M, 2] HR pixels
    alike: np.ndarray  # [M], correlation of detail with the reference there; 0 tells nothing
    noise: np.ndarray  # [C] raw units
    pairs: list[tuple[np.ndarray, np.ndarray]]  # values of frame and of the reference, [P, C] each
    own: np.ndarray  # [P, C], the reference's values


class Field(NamedTuple):
    """A survey as it changes across the stack."""

    centre: np.ndarray  # [2] LR pixels, where `whole` holds
    whole: Survey
    slopes: np.ndarray  # [M, 2, 2] HR pixels of shift by LR pixel down and across
    level: np.ndarray  # [C] raw units, the reference's usual value

    def at(self, rect: Rect) -> Survey:
        """The survey for a part."""
        away = _centre(rect) - self.centre
        return self.whole._replace(shifts=self.whole.shifts + self.slopes @ away)


def _centre(rect: Rect) -> np.ndarray:
    return np.array([rect.row + (rect.height - 1) / 2, rect.column + (rect.width - 1) / 2])


def make_survey(
    source: Source, kept: Sequence[int], samples: Sequence[Rect], scale: int, psf_sigma: float,
    frames: int,
) -> Field:  # fmt: skip
    """Surveys frames of a source.

    Args:
      kept: indices of the frames, the reference first.
      samples: parts that stand for the whole, from `Overview.samples`.
      scale: r.
      psf_sigma: deviation of the sensor's Gaussian, LR pixels.
      frames: as many as any part will have.

    Raises:
      ValueError: the reference is not clear in any part.
    """
    picked = list(kept)
    fractions = np.asarray(source.fractions, np.float64)[picked]
    start = scale * (fractions - fractions[0])
    looks = []
    for rect in samples:
        lr, masks = source.read(rect)
        if masks[picked[0]].mean() > _CLEAR or (len(samples) == 1 and masks[picked[0]].any()):
            looks.append(_look(lr[picked], masks[picked], rect, start, scale, psf_sigma))
    if not looks:
        raise ValueError(
            f"{source.names[picked[0]]}: found no part in which this reference is clear, expected "
            "one; choose another reference"
        )
    centre = np.mean([look.centre for look in looks], axis=0)
    placed = [_place(looks, n, centre, start[n], scale) for n in range(len(picked))]
    gains, offsets = _brightness(looks, len(picked))
    own = np.concatenate([look.own for look in looks])
    low, high = np.quantile(own, (0.1, 0.9), axis=0)
    noise = np.median([look.noise for look in looks], axis=0)
    whole = Survey(
        np.stack([shift for shift, _ in placed]),
        gains,
        offsets,
        noise,
        np.asarray((high - low) / 2.56),
        frames,
    )
    return Field(centre, whole, np.stack([slope for _, slope in placed]), np.median(own, axis=0))


# --- one part


def _look(
    lr: np.ndarray, masks: np.ndarray, rect: Rect, start: np.ndarray, scale: int, psf_sigma: float
) -> Look:
    stack, units = cool_frames(lr, masks, scale, psf_sigma)
    reference = reference_image(stack, stack.masks[0], _STEPS)
    shifts, alike = _register(stack, reference, start)
    sensors = stack.sensors(shifts)
    found = [
        compare(stack, n, sensors[n], reference.image, reference.clear) for n in range(1, len(lr))
    ]
    noise = stack_noise(stack, found)
    pairs = [(np.zeros((0, lr.shape[-1])),) * 2]
    for n, one in enumerate(found, start=1):
        seen = one.matched - one.difference  # the reference through the frame's sensor
        raw = [
            x[one.known].astype(np.float64) * units.unit + units.level
            for x in (stack.frames[n], seen)
        ]
        pairs.append((raw[0], raw[1]))
    own = lr[0][stack.masks[0]].astype(np.float64)
    return Look(_centre(rect), shifts, alike, noise * units.unit, pairs, own)


def _register(
    stack: Frames, reference: Reference, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shifts [N, 2] from what the grids say or from a search, whichever is more alike, and how
    alike [N]."""
    grey, scale = stack.frames.mean(axis=-1), stack.scale
    image = reference.image.mean(axis=-1)
    searched = registration.coarse_shifts(grey, stack.masks, scale)
    shifts, alike = np.zeros((len(grey), 2)), np.ones(len(grey))

    def refined(n: int, begin: np.ndarray) -> tuple[np.ndarray, float]:
        found = registration.refine(
            image, reference.clear, grey[n], stack.masks[n], begin, scale, stack.psf_sigma
        )
        sensor = stack.sensors(found[None])[0]
        known = stack.masks[n] & sensor.inside
        known &= sensor.observe(reference.clear.astype(np.float32)) > 0.99
        return found, _alike(grey[n], sensor.observe(image), known)

    for n in range(1, len(grey)):
        shifts[n], alike[n] = refined(n, start[n])
        if np.abs(searched[n] - start[n]).max() > scale:
            other, theirs = refined(n, searched[n])
            if theirs > alike[n] + _BETTER:
                shifts[n], alike[n] = other, theirs
    return shifts, np.maximum(alike, 0)


def _alike(frame: np.ndarray, view: np.ndarray, known: np.ndarray) -> float:
    """Correlation of the detail that two images [h, w] show where both are known; 0 where that is
    little, or may be chance. Clouds and their edges count by where they are, not by how bright."""
    if np.count_nonzero(known) < _LEAST:
        return 0.0
    found = []
    for x in (frame, view):
        detail = (x - scipy.ndimage.gaussian_filter(x, _DETAIL, mode="nearest"))[known]
        size = 1.5 * float(np.median(np.abs(detail)))
        found.append(np.clip(detail, -3 * size, 3 * size))
    if not np.ptp(found[0]) or not np.ptp(found[1]):
        return 0.0
    # Detail is alike from pixel to pixel: a correlation has the spread of a quarter as many.
    correlation = float(np.corrcoef(found[0], found[1])[0, 1])
    return correlation if correlation > _SURE / found[0].size ** 0.5 else 0.0


# --- all parts together


def _place(
    looks: Sequence[Look], n: int, centre: np.ndarray, start: np.ndarray, scale: int
) -> tuple[np.ndarray, np.ndarray]:
    """A frame's shift [2] at the centre, and its slopes [2, 2]."""
    flat = np.zeros((2, 2))
    told = [look for look in looks if look.alike[n] > 0]
    if n == 0 or not told:
        return start, flat
    found = np.stack([look.shifts[n] for look in told])
    away = np.stack([look.centre for look in told]) - centre
    reach = max(_NEAR, _GREATEST_SLOPE * float(np.abs(away).max())) * scale
    agree = np.abs(found - np.median(found, axis=0)).max(axis=1) <= reach
    if agree.sum() < 2 and len(looks) > 2:  # one part alone may be mistaken
        return start, flat
    shift, slopes = np.median(found[agree], axis=0), flat
    for _ in range(3):
        if agree.sum() < _FEW:
            return np.median(found[agree], axis=0), flat
        columns = np.column_stack([np.ones(agree.sum()), away[agree]])
        solution = np.linalg.lstsq(columns, found[agree], rcond=None)[0]
        shift, slopes = solution[0], solution[1:].T
        left = np.abs(found - shift - away @ slopes.T).max(axis=1)
        kept = left <= max(3 * float(np.median(left[agree])), 0.1)
        if (kept == agree).all() or kept.sum() < _FEW:
            break
        agree = kept
    plain = found[agree] - np.median(found[agree], axis=0)
    # A slope must explain more than chance lets it.
    if np.abs(slopes).max() > scale * _GREATEST_SLOPE or left[agree].std() > 0.5 * plain.std():
        return np.median(found[agree], axis=0), flat
    return shift, slopes


def _brightness(looks: Sequence[Look], frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Gains and offsets [M, C] over the pixels of all parts."""
    bands = looks[0].own.shape[-1]
    gains, offsets = np.ones((frames, bands)), np.zeros((frames, bands))
    for n in range(1, frames):
        told = [look for look in looks if look.alike[n] > 0] or looks
        frame, seen = (np.concatenate([look.pairs[n][k] for look in told]) for k in (0, 1))
        for c in range(bands):
            ok = np.ones(len(frame), bool)
            gains[n, c], offsets[n, c] = agreement.match(frame[:, c], seen[:, c], ok)
    return gains, offsets
