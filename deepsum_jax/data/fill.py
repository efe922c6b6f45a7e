"""What stands where no measurement does, so that frames can be upsampled and computed with."""

from __future__ import annotations

import numpy as np


def fill_hidden(lr: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Frames as finite float32, with no-data values filled.

    What a mask hides stays, clouds too, unless it is no measurement: not finite, or further from
    all reliable values of the stack than ten times their range, as no-data codes are (−9999,
    65535, −3.4e38). Upsampling would smear those over their reliable neighbours, so they take
    their frame's clear median, or the stack's in a frame without a clear pixel.

    Args:
      lr: [T, h, w, C].
      masks: [T, h, w] bool.
    """
    with np.errstate(over="ignore"):  # becomes infinite, and is filled
        x = lr.astype(np.float32)
    broken = ~np.isfinite(x)
    clear = x[masks]  # [pixels, C]
    if len(clear):
        low, high = clear.min(axis=0), clear.max(axis=0)
        reach = 10 * (high - low)
        broken |= ~masks[..., None] & ((x < low - reach) | (x > high + reach))
    else:
        clear = np.zeros((1, x.shape[-1]), np.float32)
    for n in np.flatnonzero(broken.any(axis=(1, 2, 3))):
        own = x[n][masks[n]]
        x[n] = np.where(broken[n], np.median(own if len(own) else clear, axis=0), x[n])
    return x
