"""Real images as ground: crops of rasters, brought onto the fine grid that sensors look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.ndimage


def check_textures(textures: Sequence[Any] | None) -> list[np.ndarray]:
    """Checks textures and returns them as float32 [D, H, W].

    Args:
      textures: images [H, W], or several dates of one place [D, H, W], sides of at least 16
        pixels, finite, of any unit and offset; None is none.

    Raises:
      ValueError: another rank, too few pixels, values that are not finite, or a flat image.
    """
    checked = []
    for number, texture in enumerate(textures or ()):
        array = np.asarray(texture, np.float32)
        if array.ndim == 2:
            array = array[None]
        if array.ndim != 3 or min(array.shape[1:]) < 16 or not len(array):
            raise ValueError(
                f"texture {number}: found shape {np.shape(texture)}, expected [H, W] or [D, H, W] "
                "with sides of at least 16 pixels"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"texture {number}: found values that are not finite")
        if not array[0].std() > 0:
            raise ValueError(f"texture {number}: found a flat image, expected some contrast")
        checked.append(array)
    return checked


def robust_fit(values: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Gain and offset that bring most of `values` to `target`: least absolute deviations.

    Changed ground must not tilt the line, so pixels far off it lose their say step by step.

    Args:
      values, target: [n] each, floating.
    """
    gain, offset = 1.0, float(np.median(target) - np.median(values))
    weights = np.ones(values.shape)
    for _ in range(15):
        mean_v, mean_t = np.average(values, weights=weights), np.average(target, weights=weights)
        spread = np.average((values - mean_v) ** 2, weights=weights)
        gain = float(np.average((values - mean_v) * (target - mean_t), weights=weights))
        gain /= max(float(spread), 1e-12)
        offset = float(mean_t - gain * mean_v)
        miss = np.abs(gain * values + offset - target)
        weights = 1 / np.maximum(miss, 1e-3 * target.std() + 1e-9)
    return gain, offset


def crop_texture(
    rng: np.random.Generator,
    textures: Sequence[np.ndarray],
    side: int,
    coarsest: float,
    dates: int,
) -> np.ndarray:
    """A square of ground cut from one texture, turned, flipped and enlarged at random.

    A texture's pixel becomes 1 to `coarsest` samples wide. What is too small even then goes on
    mirrored beyond its borders.

    Args:
      rng: decides everything.
      textures: checked ones, [D, H, W] each, at least one.
      side: samples of the square.
      coarsest: >= 1.
      dates: at most so many of the texture's dates, in random order.

    Returns:
      float32 [min(D, dates), side, side]; the first date is standardised, and the others are
      fitted to it robustly, so that exposure does not pass for change.
    """
    texture = textures[int(rng.integers(len(textures)))]
    chosen = rng.permutation(len(texture))[:dates]
    texture = np.rot90(texture[chosen], int(rng.integers(4)), axes=(1, 2))
    if rng.random() < 0.5:
        texture = texture[:, ::-1]
    least = min(max(1.0, side / (min(texture.shape[1:]) - 1)), coarsest)
    pitch = rng.uniform(least, coarsest)
    size = int(np.ceil(side / pitch)) + 2
    short = [max(0, size - n) for n in texture.shape[1:]]
    if any(short):
        texture = np.pad(texture, ((0, 0), (0, short[0]), (0, short[1])), mode="symmetric")
    top, left = (int(rng.integers(n - size + 1)) for n in texture.shape[1:])
    window = texture[:, top : top + size, left : left + size]
    enlarged = np.stack([
        scipy.ndimage.affine_transform(
            date, np.full(2, 1 / pitch), 0.5, output_shape=(side, side), order=3, mode="mirror"
        )
        for date in window
    ])  # fmt: skip
    # A crop may be flat where its texture is not: a lake.
    deviation = max(float(enlarged[0].std()), 0.05 * float(texture[0].std()))
    ground = np.asarray((enlarged - enlarged[0].mean()) / deviation, np.float32)
    wanted = ground[0, ::5, ::5].ravel()
    for date in ground[1:]:
        gain, offset = robust_fit(date[::5, ::5].ravel(), wanted)
        # Little in common makes a fitted gain small: a year keeps its contrast, inverted or not.
        limited = float(np.clip(gain, 0.7, 1.5))
        date *= np.float32(limited)
        # Least deviations of what is left: the median.
        date += np.float32(
            offset if limited == gain else np.median(wanted - date[::5, ::5].ravel())
        )
    return ground
