"""From raw frames to an `Aligned` stack: cool, registered, in one brightness, in one unit.

The first half of robust back-projection, with its robust statistics: nothing here depends on the
unit that the values come in, or on a few pixels that show something else.
"""

from __future__ import annotations

import numpy as np

from deepsum_jax.data.aligned import Aligned
from deepsum_jax.data.fill import nearest_reliable
from deepsum_jax.systems.robust import agreement
from deepsum_jax.systems.robust.back_projection import _compare, _noise, _register
from deepsum_jax.systems.robust.reference_image import Frames, mended, reference_image

_STEPS = 20  # back-projections of the reference alone
_NOISY = 3.0  # of the noise: the least contrast that is taken as the unit


def align(lr: np.ndarray, masks: np.ndarray, scale: int, psf_sigma: float) -> Aligned:
    """Registers frames of one band on frame 0 and brings them into its brightness.

    What the reference hides, and its hot pixels, are filled with what the others show there, and
    stay masked.

    Args:
      lr: [N, h, w, 1] raw; non-finite only where masked.
      masks: [N, h, w] bool, True = reliable; some of frame 0's are.
      scale: r.
      psf_sigma: deviation of the sensor's Gaussian, LR pixels.
    """
    level = np.median(lr[0][masks[0]]).astype(np.float64)
    unit = _unit(lr[0][masks[0]] - level)
    frames = [
        nearest_reliable(((np.where(m[..., None], f, level) - level) / unit).astype(np.float32), m)
        for f, m in zip(lr, masks)
    ]
    leak = agreement.point_leak(psf_sigma)
    cool = [m & ~agreement.hot_pixels(f, m, leak) for f, m in zip(frames, masks)]
    cool[0] = cool[0] if cool[0].any() else masks[0]
    frames = [nearest_reliable(f, m) for f, m in zip(frames, cool)]
    stack = Frames(np.stack(frames), np.stack(cool), scale, psf_sigma)
    reference = reference_image(stack, stack.masks[0], _STEPS)
    shifts = _register(stack, reference)
    sensors = stack.sensors(shifts)
    found = [
        _compare(stack, n, sensors[n], reference.image, reference.clear)
        for n in range(1, len(frames))
    ]
    noise = _noise(stack, found)
    matched = [stack.frames[0], *(f.matched for f in found)]
    own = stack.masks[0]
    if found:
        whole = mended(stack, reference, matched, shifts, noise, _STEPS)
        own = whole.mask
        view = stack.sensors(np.zeros((1, 2)))[0].observe(whole.image)
        matched[0] = np.where(own[..., None], matched[0], view)
    own_contrast = float(agreement.contrast(stack.frames[0], stack.masks[0])[0])
    contrast = max(own_contrast, _NOISY * float(noise[0])) or 1.0
    return Aligned(
        np.stack(matched)[..., 0] / np.float32(contrast),
        np.stack([own, *stack.masks[1:]]),
        shifts.astype(np.float32),
        np.asarray(noise[0] / contrast, np.float32),
        np.asarray(level),
        np.asarray(contrast * unit),
    )


def _unit(values: np.ndarray) -> float:
    """How large values [pixels, 1] about their level are: a scale that goes with their own."""
    low, high = np.quantile(values, (0.1, 0.9))
    # Most of a frame may have one value; all of it looks the same in any unit.
    return float(high - low) or float(values.std()) or 1.0
