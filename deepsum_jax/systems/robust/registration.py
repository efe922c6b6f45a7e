"""Registration of frames on the reference, to a fraction of a pixel, by what they agree on.

Whole LR pixels come from masked cross-correlation, the rest from Gauss-Newton steps through the
sensor in which a pixel counts the less the more it differs, so neither clouds nor fields that
changed pull at the shift.
"""

from __future__ import annotations

import numpy as np

from deepsum_jax.data.registration import MaskedCorrelation
from deepsum_jax.data.sensor import make_sensor
from deepsum_jax.systems.robust import agreement

_OVERLAP = 16  # pixels in common, the fewest that tell a shift
STEPS = 5  # Gauss-Newton
_STILL = 0.01  # HR pixels; a smaller step is the last
_DELTA = 0.5  # HR pixels, of the difference quotients
_SEEN = 0.99  # of what an LR pixel looks at, for the pixel to count
_FAR = 0.6  # of a side, the widest search for frames that lie too far off


def coarse_shifts(
    frames: np.ndarray, masks: np.ndarray, scale: int, search: int | None = None
) -> np.ndarray:
    """Shifts [N, 2] on frame 0 in HR pixels, whole LR pixels, of grey frames [N, h, w]."""
    correlation = MaskedCorrelation(frames[0], masks[0], search)
    shifts = [correlation.shift(f, m) for f, m in zip(frames[1:], masks[1:])]
    return scale * np.array([(0, 0), *shifts], np.float64)


def far_shift(frames: np.ndarray, masks: np.ndarray, scale: int) -> np.ndarray:
    """The shift [2] of frame 1 on frame 0, HR pixels, with a search over most of the frame."""
    search = int(_FAR * min(frames.shape[1:]))
    correlation = MaskedCorrelation(frames[0], masks[0], search, min_overlap=0.1)
    return scale * np.array(correlation.shift(frames[1], masks[1]), np.float64)


def refine(
    image: np.ndarray, clear: np.ndarray, frame: np.ndarray, mask: np.ndarray, shift: np.ndarray,
    scale: int, psf_sigma: float, steps: int = STEPS,
) -> np.ndarray:  # fmt: skip
    """A frame's shift by robust Gauss-Newton through the sensor.

    Minimises Σ ρ(frame − gain · A(s) image − offset) over s, gain and offset, ρ Cauchy's with a
    width of the median difference. A search that leads further than one LR pixel away has gone
    astray, and the shift is kept.

    Args:
      image: [H, W], grey, HR.
      clear: [H, W], where it is known.
      frame, mask: [h, w].
      shift: [2], HR pixels, within about an LR pixel.
    """
    found = np.array(shift, np.float64)
    steady = bool(clear.all())
    for _ in range(steps):
        sensor = make_sensor(frame.shape, found, scale, psf_sigma)
        seen = mask & sensor.inside
        if not steady:
            seen &= sensor.observe(clear.astype(np.float32)) > _SEEN
        if np.count_nonzero(seen) < _OVERLAP:
            return shift
        views = [
            make_sensor(frame.shape, found + d, scale, psf_sigma).observe(image)[seen]
            for d in _DELTA * np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])
        ]
        slopes = [(views[0] - views[1]) / (2 * _DELTA), (views[2] - views[3]) / (2 * _DELTA)]
        view = sensor.observe(image)[seen]
        columns = np.stack([*slopes, view, np.ones_like(view)], axis=1).astype(np.float64)
        solution = _robust_solve(columns, frame[seen].astype(np.float64))
        gain = solution[2]
        if not np.isfinite(solution).all() or gain <= 0:
            return shift
        move = solution[:2] / gain
        found += np.clip(move, -scale / 2, scale / 2)
        if np.abs(found - shift).max() > scale:
            return shift
        if np.abs(move).max() < _STILL:
            break
    return found


def _robust_solve(columns: np.ndarray, target: np.ndarray, rounds: int = 3) -> np.ndarray:
    """Least squares [k] of columns [n, k] on a target [n] under Cauchy weights.

    The last two columns are what the target looks like but for gain and offset; the pixels that
    agree with them so are believed first.
    """
    gain, offset = agreement.match(columns[:, -2], target, np.ones(len(target), bool))
    away = np.abs(gain * columns[:, -2] + offset - target)
    # Columns of like size, or the normal equations would lose the smaller ones.
    size = np.maximum(np.sqrt(np.mean(np.square(columns), axis=0)), 1e-12)
    scaled = columns / size
    solution = np.zeros(columns.shape[1])
    for _ in range(rounds):
        width = 1.5 * float(np.median(away))
        weight = 1 / (1 + np.square(away / width)) if width > 0 else (away == 0).astype(float)
        weighted = scaled * weight[:, None]
        solution = np.linalg.lstsq(weighted.T @ scaled, weighted.T @ target, rcond=None)[0]
        away = np.abs(scaled @ solution - target)
    return np.asarray(solution / size)
