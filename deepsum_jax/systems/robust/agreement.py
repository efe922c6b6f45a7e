"""Agreement: how far a frame shows what the reference shows, pixel by pixel.

A frame differs from what the sensor would make of the reference's image for three reasons: noise,
the fine detail that one frame cannot tell (what super-resolution is after), and ground that
changed. The first two have a known size,

    s0² = σ² + (κ · detail)²,

σ the stack's noise and detail the local deviation that one frame's back-projection adds to its
bicubic image. What differs by more is change, and is believed by

    w = 1 / (1 + s² / (c · s0)²)²,

s² the mean square difference over 3×3 pixels. The width c is the frame's credit: where most of a
frame is alike, a field that differs a little is a look at another day, and the mean of the days
serves best; where hardly anything is, what seems alike may be chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.ndimage
import scipy.special

DETAIL = (0.2, 0.1)  # κ of the first round and of those with a sharpened image, 0..1
CREDIT = (2.0, 40.0)  # c of a frame that shows other ground, and what the same ground adds
_HALF_CREDIT = 3.5  # 1 / agreement at which half of that is given
_STEEPNESS = 8
_LITTLE = 0.4  # of the reference's contrast; ground that changed by more is never believed

OVERLAP = 16  # pixels in common, the fewest that tell two frames' contrast or shift
_SMOOTH = 4.0  # LR pixels, deviation: brightness is matched locally where it changes as slowly
ROUNDS = 4  # of reweighting
# Of noise of deviation 1: the 10 % quantile of 3×3 root mean squares of the second difference
# below, and of the difference of two images.
CALM_SECOND, CALM_PAIR = 0.54, 0.96
_RING = np.array([(1, 1, 1), (1, 0, 1), (1, 1, 1)], bool)[..., None]
_SECOND = np.outer((1, -2, 1), (1, -2, 1)) / 6.0  # deviation 1 for noise of deviation 1


def box(x: np.ndarray) -> np.ndarray:
    """Means over 3×3 pixels of [h, w, …]."""
    size = (3, 3) + (1,) * (x.ndim - 2)
    return np.asarray(scipy.ndimage.uniform_filter(x, size, mode="nearest"))


def mean_square(difference: np.ndarray, ok: np.ndarray) -> np.ndarray:
    """3×3 mean squares [h, w, C] of a difference [h, w, C], over the pixels `ok` [h, w]."""
    known = ok[..., None].astype(np.float32)
    return box(known * np.square(difference)) / np.maximum(box(known), 1 / 18)


def point_leak(psf_sigma: float) -> float:
    """What the pixels beside a point of ground show of it at least, as part of its own pixel's.

    Args:
      psf_sigma: deviation of the sensor's Gaussian, LR pixels.
    """
    inner, outer = scipy.special.ndtr(np.array([0.5, 1.5]) / psf_sigma)
    return float((outer - inner) / (2 * inner - 1))


def hot_pixels(frame: np.ndarray, mask: np.ndarray, leak: float) -> np.ndarray:
    """Pixels [h, w] of a frame [h, w, C] that stand out of it as the optics cannot show them."""
    ring = scipy.ndimage.median_filter(frame, footprint=_RING, mode="nearest")
    noise = np.broadcast_to(noise_of_frame(frame, mask), frame.shape)
    return spikes(frame - ring, np.maximum(noise, 1e-6), mask, leak)


# --- how noisy, how detailed


def _calm(squares: np.ndarray, ok: np.ndarray) -> np.ndarray:
    """10 % quantile [C] of the roots: what the calmest parts show is noise alone."""
    if not ok.any():
        return np.full(squares.shape[-1], np.inf)
    return np.asarray(np.sqrt(np.quantile(squares[ok], 0.1, axis=0)))


def noise_of_frame(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A frame's noise [C] from its calmest parts, raw units; an upper bound on textured ground.

    Args:
      frame: [h, w, C], finite.
      mask: [h, w].
    """
    second = scipy.ndimage.convolve(frame, _SECOND[..., None], mode="nearest")
    inner = scipy.ndimage.binary_erosion(mask, np.ones((3, 3), bool), border_value=0)
    return _calm(mean_square(second, inner), inner) / CALM_SECOND


def noise_of_pair(difference: np.ndarray, ok: np.ndarray) -> np.ndarray:
    """The noise [C] of two frames that differ by `difference` [h, w, C]; an upper bound too."""
    return _calm(mean_square(difference, ok), ok) / CALM_PAIR


def detail(image: np.ndarray, plain: np.ndarray, scale: int) -> np.ndarray:
    """Local deviation squared [H, W, C] of what back-projection added to an enlarged frame."""
    side = 3 * scale
    square = np.square(image - plain)
    return np.asarray(scipy.ndimage.uniform_filter(square, (side, side, 1), mode="nearest"))


def expected_difference(noise: np.ndarray, detail: np.ndarray, kappa: float) -> np.ndarray:
    """s0 [h, w, C]: how much frames differ that show the same ground."""
    square = np.square(noise) + kappa**2 * np.maximum(detail, 0)
    return np.asarray(np.sqrt(np.maximum(square, 1e-12)))


# --- brightness


def _middle_and_spread(x: np.ndarray) -> tuple[float, float]:
    """Median and half the spread of the middle 60 %, which a cloud over a fifth cannot move."""
    low, middle, high = np.quantile(x, (0.2, 0.5, 0.8))
    return float(middle), float(high - low) / 2


def match(frame: np.ndarray, wanted: np.ndarray, ok: np.ndarray) -> tuple[float, float]:
    """Gain and offset that give a frame the brightness and contrast of `wanted`, [h, w] each.

    A ratio of deviations, as there is noise in both, from quantiles first and then from moments
    of the pixels that agree. A frame whose contrast tells nothing keeps the gain 1.
    """
    if np.count_nonzero(ok) < OVERLAP:
        return 1.0, 0.0
    g, p = frame[ok].astype(np.float64), wanted[ok].astype(np.float64)
    (middle_g, spread_g), (middle_p, spread_p) = _middle_and_spread(g), _middle_and_spread(p)
    gain = spread_p / spread_g if min(spread_g, spread_p) > 0 else 1.0
    offset = middle_p - gain * middle_g
    for _ in range(ROUNDS):
        away = np.abs(gain * g + offset - p)
        width = 1.5 * float(np.median(away))
        weight = 1 / (1 + np.square(away / width)) if width > 0 else (away == 0).astype(float)
        total = weight.sum()
        mean_g, mean_p = (weight @ g) / total, (weight @ p) / total
        dg, dp = g - mean_g, p - mean_p
        var_g, var_p = weight @ dg**2, weight @ dp**2
        alike = weight @ (dg * dp) > 0.5 * np.sqrt(var_g * var_p)
        gain = float(np.sqrt(var_p / var_g)) if alike and var_g > 0 else 1.0
        offset = float(mean_p - gain * mean_g)
    return gain, offset


def local_offset(difference: np.ndarray, expected: np.ndarray, ok: np.ndarray) -> np.ndarray:
    """The part of a difference [h, w, C] that changes smoothly: haze, season, the sun's height.

    Args:
      difference: frame less expectation.
      expected: [h, w, C], its usual size s0.
      ok: [h, w].
    """
    width = 6 * expected + np.median(np.abs(difference[ok]), axis=0) if ok.any() else 1.0
    weight = ok[..., None] / (1 + np.square(difference / width))
    sigma = (_SMOOTH, _SMOOTH, 0)
    total, sums = (scipy.ndimage.gaussian_filter(x, sigma) for x in (weight, weight * difference))
    return np.asarray(sums / np.maximum(total, 1e-3))


# --- belief


def agreement(ratio: np.ndarray, ok: np.ndarray) -> float:
    """How much of a frame agrees, 0..1.

    Args:
      ratio: [h, w], s² / s0², mean over bands.
      ok: [h, w].
    """
    return float(np.mean(1 / (1 + ratio[ok] / 4))) if ok.any() else 0.0


def credits(agreements: np.ndarray) -> np.ndarray:
    """Widths c [N] of frames by how much of each agrees, and how much of the stack does."""
    stack = agreements.mean() if len(agreements) else 1.0
    both = np.sqrt(np.maximum(agreements * stack, 1e-6))
    low, more = CREDIT
    return np.asarray(low + more / (1 + (1 / both / _HALF_CREDIT) ** _STEEPNESS))


def contrast(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A frame's contrast [C], as the deviation that its middle 80 % would have if normal."""
    low, high = np.quantile(frame[mask], (0.1, 0.9), axis=0)
    return np.asarray(high - low) / 2.56


def belief(
    square: np.ndarray, expected: np.ndarray, credit: float, contrast: np.ndarray
) -> np.ndarray:
    """Weights [h, w], 0..1: 1 / (1 + s² / width²)², the bands' mean.

    Credit widens s0, but to a small part of the reference's contrast at most: another day's
    brightness is believed, a cloud or another crop is not.

    Args:
      square: s² [h, w, C].
      expected: s0 [h, w, C].
      credit: c.
      contrast: [C], of the reference.
    """
    width = np.minimum(credit * expected, np.maximum(CREDIT[0] * expected, _LITTLE * contrast))
    ratio = (square / np.square(width)).mean(axis=-1)
    return np.asarray(1 / np.square(1 + ratio), np.float32)


def spikes(difference: np.ndarray, expected: np.ndarray, ok: np.ndarray, leak: float) -> np.ndarray:
    """Hot pixels [h, w]: single ones that differ as nothing seen through the optics could.

    The optics spread a point of ground over its neighbours; a hot pixel's know nothing of it.

    Args:
      difference: [h, w, C] between what should look alike.
      expected: [h, w, C], its usual size s0.
      ok: [h, w].
      leak: of the optics, see `point_leak`.
    """
    known = np.where(ok[..., None], difference, 0)
    size = np.abs(known)
    around = scipy.ndimage.median_filter(size, footprint=_RING, mode="nearest")
    cross = np.array([(0, 1, 0), (1, 0, 1), (0, 1, 0)])[..., None] / 4
    beside = np.abs(scipy.ndimage.convolve(known, cross, mode="nearest"))
    return np.asarray(ok & stands_alone(size, expected, around, beside, leak).any(axis=-1))


def stands_alone(size: Any, expected: Any, around: Any, beside: Any, leak: Any) -> Any:
    """Which differences are a hot pixel's; arrays of numpy or JAX.

    Args:
      size: of the differences.
      expected: their usual size.
      around: the median size in the ring of eight.
      beside: the size of the mean difference of the four pixels beside.
      leak: of the optics, see `point_leak`.
    """
    return (size > 12 * expected) & (size > 10 * around) & (beside < 0.5 * leak * size)
