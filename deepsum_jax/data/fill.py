"""What stands where no measurement does, so that frames can be upsampled and computed with.

Upsampling carries what lies under a mask over its border, and norms take it in. So either it stays
as it was in the published training, clouds and all, or it has no say: `ModelConfig.hidden`.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage

from deepsum_jax.config import Hidden


def fill(lr: np.ndarray, masks: np.ndarray, hidden: Hidden) -> np.ndarray:
    """Frames as finite float32, with what the masks hide as the rule says.

    Args:
      lr: [T, h, w, C].
      masks: [T, h, w] bool.
      hidden: "published" (`keep_clouds`) or "filled" (`fill_hidden`).
    """
    return keep_clouds(lr, masks) if hidden == "published" else fill_hidden(lr, masks)


def _float32(lr: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes infinite, and is filled
        return lr.astype(np.float32)


def nearest_reliable(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A frame [h, w, …] whose hidden pixels take the value of the nearest reliable one; as it is
    where there is none."""
    if mask.all() or not mask.any():
        return frame
    nearest = scipy.ndimage.distance_transform_edt(
        ~mask, return_distances=False, return_indices=True
    )
    return np.asarray(frame[tuple(nearest)])


def fill_hidden(lr: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Frames as finite float32 in which what a mask hides has no say.

    A hidden pixel takes the value of the nearest reliable one of its frame. A frame without any
    is a copy of the clearest other one; zeros where there is none.

    Args:
      lr: [T, h, w, C]; what is reliable is finite.
      masks: [T, h, w] bool.
    """
    x = _float32(lr)
    for n in np.flatnonzero(~masks.all(axis=(1, 2))):
        x[n] = nearest_reliable(x[n], masks[n])
    clear = masks.sum(axis=(1, 2))
    x[clear == 0] = x[clear.argmax()] if clear.any() else 0
    return x


def keep_clouds(lr: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Frames as finite float32 in which clouds stay, as in the published training, and only
    no-data values are filled.

    What a mask hides is no data where it is not finite, or further from all reliable values of
    the stack than ten times their range, as codes are (−9999, 65535, −3.4e38). It takes its
    frame's clear median, or the stack's in a frame without a clear pixel.

    Args:
      lr: [T, h, w, C].
      masks: [T, h, w] bool.
    """
    x = _float32(lr)
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


def without_outliers(lr: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Masks without the pixels that lie further from the rest of their frame than its range.

    For whatever matches frames or registers them: one hot pixel would outweigh all others there.
    The range is that from the 1st to the 99th percentile of the frame's reliable pixels.

    Args:
      lr: [T, h, w, C]; what is reliable is finite.
      masks: [T, h, w] bool.

    Returns:
      [T, h, w] bool.
    """
    kept = masks.copy()
    for n in np.flatnonzero(masks.any(axis=(1, 2))):
        low, high = np.percentile(lr[n][masks[n]], [1, 99], axis=0)  # [C]
        reach = high - low
        with np.errstate(invalid="ignore"):
            inside = (lr[n] >= low - reach) & (lr[n] <= high + reach)
        kept[n] &= inside.all(axis=-1) | (reach == 0).any()  # a flat frame has no range
    return kept
