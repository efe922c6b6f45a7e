"""Robust IBP: iterative back-projection that believes a frame as far as it agrees.

Plain back-projection (`systems.ibp`) trusts every frame, and on ground that changes between the
dates it is worse than one frame enlarged. Here each LR pixel of each frame has a weight by how
well it agrees with the reference seen through the sensor (`agreement`), so that looks at one date
sharpen each other, and other years help where nothing happened. What is left when nothing agrees
is back-projection of the reference alone.

    reference alone → registration → agreement → all frames, weighted → further, where many speak
                                        ↑_________________↲ once more, with the sharper image

The reference has weight 1 wherever it is reliable; what it hides, and its hot pixels, come from
the frames by their median and then their agreement with that.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Literal, overload

import numpy as np

from deepsum_jax.data import resample
from deepsum_jax.data.scene import check_stack
from deepsum_jax.data.sensor import PSF_SIGMA, Sensor, check_parameters
from deepsum_jax.data.survey import Survey
from deepsum_jax.systems.robust import agreement, registration
from deepsum_jax.systems.robust.comparison import (
    Comparison,
    Units,
    compare,
    cool_frames,
    register,
    stack_noise,
)
from deepsum_jax.systems.robust.consensus import unusable
from deepsum_jax.systems.robust.reference_image import (
    Frames,
    back_project_all,
    crowd,
    mended,
    reference_image,
    seen_by,
)

ITERATIONS = 20  # ≥ 0, in each round
ROUNDS = 2  # ≥ 1, of weighing

_AGREES = 0.15  # of a frame; one that agrees less is asked whether it shows the place at all
_ALIKE = 0.2  # correlation with the reference, the least of the same place
_FAR_ALIKE = 0.6  # likewise, for a frame to be recognised far off


@dataclasses.dataclass(frozen=True, eq=False)
class RobustBackProjection:
    """A super-resolved image, and which frames it believes.

    Attributes:
      image: float32 [H, W, C], raw units of the reference.
      frames_per_pixel: float32 [H, W], how many frames spoke at a pixel: the sum of their weights
        back-projected; the reference alone counts 1.
      weights: float64 [N], each frame's part in the image, of sum one.
      beliefs: float32 [N, h, w], each pixel's weight, 0 to 1, on its own frame's grid.
      shifts: float64 [N, 2] HR pixels: registered(y, x) = frame(y − s_y, x − s_x); NaN where a
        frame was left out before it was registered.
      noise: float64 [C], deviation that the stack was found to have, raw units of the reference.
      left_out: (index, reason) of the frames that could not serve.
    """

    image: np.ndarray
    frames_per_pixel: np.ndarray
    weights: np.ndarray
    beliefs: np.ndarray
    shifts: np.ndarray
    noise: np.ndarray
    left_out: tuple[tuple[int, str], ...]


# --- weights


def _weigh(
    comparison: Comparison, expected: np.ndarray, credit: float, contrast: np.ndarray, leak: float
) -> tuple[np.ndarray, np.ndarray]:
    """A frame with its smooth differences taken off [h, w, C], and its weights [h, w]."""
    smooth = agreement.local_offset(comparison.difference, expected, comparison.known)
    left = comparison.difference - smooth.astype(np.float32)
    use = comparison.use & ~agreement.spikes(left, expected, comparison.use, leak)
    square = agreement.mean_square(left, use)
    weight = agreement.belief(square, expected, credit, contrast)
    return comparison.matched - smooth.astype(np.float32), use * weight


# --- who takes part


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Coefficient of two lists of values; 0 where one of them is flat, or they are few."""
    if a.size < 2 or not np.ptp(a) or not np.ptp(b):
        return 0.0
    return float(np.corrcoef(a.ravel().astype(np.float64), b.ravel().astype(np.float64))[0, 1])


def _stranger(stack: Frames, n: int, comparison: Comparison) -> str:
    """Why a frame that hardly agrees has nothing to do with the reference; "" if it has."""
    known = comparison.known
    view = comparison.matched - comparison.difference
    alike = _correlation(comparison.matched[known], view[known])
    grey, masks = stack.frames[[0, n]].mean(axis=-1), stack.masks[[0, n]]
    reach = stack.scale * (min(grey.shape[1:]) // 4)
    far = registration.far_shift(grey, masks, stack.scale)
    if np.abs(far).max() > reach:
        dy, dx = (far / stack.scale).astype(int)
        moved, clear = (
            resample.translate(x, (dy, dx), f) for x, f in ((grey[1], None), (masks[1], False))
        )
        both = clear & masks[0]
        if _correlation(moved[both], grey[0][both]) > max(_FAR_ALIKE, alike):
            return (
                f"lies {np.abs(far).max():.0f} HR pixels off, further than the registration's "
                f"search of {reach}"
            )
    return "nothing in common with the reference" if alike < _ALIKE else ""


# --- the iteration


@dataclasses.dataclass(frozen=True, eq=False)
class _Result:
    image: np.ndarray  # [H, W, C]
    weights: list[np.ndarray]  # [h, w] each, 0 for frames left out
    shifts: np.ndarray  # [N, 2]
    noise: np.ndarray  # [C]
    strangers: dict[int, str]
    frames_per_pixel: np.ndarray  # [H, W]


def _solve(
    stack: Frames, units: Units, shifts: np.ndarray | None, survey: Survey | None,
    iterations: int, rounds: int,
) -> _Result:  # fmt: skip
    reference = reference_image(stack, stack.masks[0], iterations)
    if shifts is None:
        shifts = register(stack, reference, start=None if survey is None else survey.shifts)
    match = None if survey is None else units.match(survey)
    sensors = stack.sensors(shifts)
    numbers = list(range(1, len(stack.frames)))

    def compared(image: np.ndarray) -> dict[int, Comparison]:
        return {n: compare(stack, n, sensors[n], image, reference.clear, match) for n in numbers}

    found = compared(reference.image)
    if survey is None:
        noise = stack_noise(stack, list(found.values()))
    else:
        noise = survey.noise / units.unit
    if numbers:
        matched = [stack.frames[0], *(found[n].matched for n in numbers)]
        reference = mended(stack, reference, matched, shifts, noise, iterations)
        found = compared(reference.image)
    detail = {n: sensors[n].observe(reference.detail) for n in numbers}

    def expected(n: int, number: int) -> np.ndarray:
        kappa = agreement.DETAIL[min(number, 1)]
        return agreement.expected_difference(noise, detail[n], kappa)

    credits, strangers = _admit(stack, found, {n: expected(n, 0) for n in numbers})
    numbers = list(credits)

    if survey is None:
        contrast = agreement.contrast(stack.frames[0], stack.masks[0])
    else:
        contrast = survey.contrast / units.unit
    image, own = reference.image, reference.mask.astype(np.float32)
    weights = {0: own}
    for number in range(rounds):
        found = compared(image) if number else found
        frames = [stack.frames[0]]
        for n in numbers:
            frame, weights[n] = _weigh(
                found[n], expected(n, number), credits[n], contrast, stack.leak
            )
            frames.append(frame)
        said, theirs = list(weights.values()), [sensors[n] for n in weights]
        image = back_project_all(reference.image, frames, said, theirs, iterations)
    speaking = _frames_per_pixel(stack, said, theirs)
    part = crowd(np.maximum(speaking - 1, 0))
    image = back_project_all(image, frames, said, theirs, iterations, part)
    every = [weights.get(n, 0 * own) for n in range(len(stack.frames))]
    return _Result(image, every, shifts, noise, strangers, speaking)


def _frames_per_pixel(
    stack: Frames, weights: Sequence[np.ndarray], sensors: Sequence[Sensor]
) -> np.ndarray:
    """How many frames speak at a pixel [H, W]; one that says all counts 1."""
    whole = np.ones(stack.masks.shape[1:], np.float32)
    once = seen_by([whole], stack.sensors(np.zeros((1, 2))))
    return np.asarray(seen_by(weights, sensors) / once, np.float32)


def _admit(
    stack: Frames, found: dict[int, Comparison], expected: dict[int, np.ndarray]
) -> tuple[dict[int, float], dict[int, str]]:
    """The credit of each frame that takes part, and why the others do not."""
    agreements, strangers = {}, {}
    for n, comparison in found.items():
        square = agreement.mean_square(comparison.difference, comparison.known)
        ratio = (square / np.square(expected[n])).mean(axis=-1)
        share = agreement.agreement(ratio, comparison.known)
        why = _stranger(stack, n, comparison) if share < _AGREES else ""
        if why:
            strangers[n] = why
        else:
            agreements[n] = share
    credits = agreement.credits(np.array(list(agreements.values())))
    return dict(zip(agreements, credits.tolist())), strangers


@overload
def robust_ibp(
    lr: np.ndarray,
    masks: np.ndarray,
    scale: int,
    *,
    psf_sigma: float = ...,
    shifts: np.ndarray | None = ...,
    survey: Survey | None = ...,
    iterations: int = ...,
    rounds: int = ...,
    return_details: Literal[False] = ...,
) -> np.ndarray: ...


@overload
def robust_ibp(
    lr: np.ndarray,
    masks: np.ndarray,
    scale: int,
    *,
    psf_sigma: float = ...,
    shifts: np.ndarray | None = ...,
    survey: Survey | None = ...,
    iterations: int = ...,
    rounds: int = ...,
    return_details: Literal[True],
) -> RobustBackProjection: ...


def robust_ibp(
    lr: np.ndarray,
    masks: np.ndarray,
    scale: int,
    *,
    psf_sigma: float = PSF_SIGMA,
    shifts: np.ndarray | None = None,
    survey: Survey | None = None,
    iterations: int = ITERATIONS,
    rounds: int = ROUNDS,
    return_details: bool = False,
) -> np.ndarray | RobustBackProjection:
    """Back-projection of all frames on frame 0's grid, each pixel as far as it agrees.

    What lies under a mask has no influence, and what differs from the reference beyond noise and
    unresolved detail has little.

    Args:
      lr: [N, h, w, C] raw, frame 0 the reference (see `choose_reference`); non-finite only where
        masked.
      masks: [N, h, w] bool, True = reliable; some of frame 0's are.
      scale: r.
      psf_sigma: deviation of the sensor's Gaussian, LR pixels; its pixel integrates besides.
      shifts: [N, 2], HR pixels, that register the frames, if known: registered(y, x) =
        frame(y − s_y, x − s_x). By default they are found, up to a quarter of the smaller side.
      survey: of the large stack that the frames are a part of: where registration begins, and the
        one brightness, noise and contrast of all parts.
      iterations: back-projections in each round, and as many at the end where many frames speak;
        more sharpen further, noise too, and trust `psf_sigma` further.
      rounds: of weighing, the later ones against the sharpened image.
      return_details: return a `RobustBackProjection` instead of the image alone.

    Returns:
      float32 [r·h, r·w, C], raw units of the reference frame, unclipped.

    Raises:
      TypeError: not arrays of real numbers.
      ValueError: shapes that do not belong together, non-finite reliable values, a reference
        without a reliable pixel, or a parameter out of range.
    """
    lr, masks = check_stack(lr, masks)
    _check(lr, masks, scale, psf_sigma, shifts, iterations, rounds)
    reasons = {n: unusable(f, m) for n, (f, m) in enumerate(zip(lr, masks))}
    kept = [n for n in reasons if n == 0 or not reasons[n]]
    stack, units = cool_frames(lr[kept], masks[kept], scale, psf_sigma)
    level, unit = units
    given = None if shifts is None else np.asarray(shifts, np.float64)[kept]
    theirs = None if survey is None else survey.led_by(kept)
    result = _solve(stack, units, given, theirs, iterations, rounds)
    image = (unit * result.image.astype(np.float64) + level).astype(np.float32)
    if not return_details:
        return image
    left_out = {n: why for n, why in reasons.items() if n not in kept}
    left_out |= {kept[n]: why for n, why in result.strangers.items()}
    noise = unit * result.noise
    return _details(image, noise, stack, result, kept, len(lr), left_out)


def _details(
    image: np.ndarray, noise: np.ndarray, stack: Frames, result: _Result, kept: list[int],
    count: int, left_out: dict[int, str],
) -> RobustBackProjection:  # fmt: skip
    beliefs = np.zeros((count, *stack.masks.shape[1:]), np.float32)
    beliefs[kept] = result.weights
    parts, shifts = beliefs.sum(axis=(1, 2), dtype=np.float64), np.full((count, 2), np.nan)
    shifts[kept] = result.shifts
    return RobustBackProjection(
        image,
        result.frames_per_pixel,
        parts / parts.sum(),
        beliefs,
        shifts,
        noise,
        tuple(sorted(left_out.items())),
    )


def _check(
    lr: np.ndarray, masks: np.ndarray, scale: int, psf_sigma: float, shifts: np.ndarray | None,
    iterations: int, rounds: int,
) -> None:  # fmt: skip
    check_parameters(scale, psf_sigma)
    if lr.ndim != 4:
        raise ValueError(f"lr: found shape {lr.shape}, expected [N, h, w, C]")
    if not masks[0].any():
        raise ValueError(
            "masks: found no reliable pixel in frame 0, expected a reference with some"
        )
    if shifts is not None and (
        np.shape(shifts) != (len(lr), 2) or not np.isfinite(np.asarray(shifts)).all()
    ):
        raise ValueError(
            f"shifts: found shape {np.shape(shifts)}, expected {(len(lr), 2)}, all finite"
        )
    if operator.index(iterations) < 0 or operator.index(rounds) < 1:
        raise ValueError(
            f"iterations and rounds: found {iterations} and {rounds}, expected whole numbers from "
            "0 and 1"
        )
