"""The super-resolution loss (slides, "Loss"): brightness-compensated, masked, over all alignments.

The alignment search here also serves the metrics.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array


class Alignment(NamedTuple):
    """What the search over the (2d + 1)² positions of HR found, per image."""

    mse: Array  # [B], least over positions; inf where no position has a reliable pixel
    position: Array  # [B, 2] int32, (u, v) of the crop window in HR at that least


def check_images(sr: Array, hr: Array, hr_mask: Array, border: int) -> None:
    """Refuses arrays that do not belong together.

    Raises:
      ValueError: a rank, a shape, or a size that leaves nothing inside the border.
      TypeError: complex numbers.
    """
    if jnp.iscomplexobj(sr) or jnp.iscomplexobj(hr):
        raise TypeError("sr and hr: found complex numbers, expected real ones")
    if np.ndim(sr) != 4 or np.shape(sr) != np.shape(hr):
        raise ValueError(
            f"sr and hr: found shapes {np.shape(sr)} and {np.shape(hr)}, "
            "expected two equal [B, H, W, C]"
        )
    expected = (*np.shape(sr)[:3], 1)
    if np.shape(hr_mask) != expected:
        raise ValueError(f"hr_mask: found shape {np.shape(hr_mask)}, expected {expected}")
    if border < 0 or min(np.shape(sr)[1:3]) <= 2 * border:
        raise ValueError(
            f"border: found {border} for images of {np.shape(sr)[1]}×{np.shape(sr)[2]}, "
            "expected less than half their size and ≥ 0"
        )


def _mean(values: Array, count: Array) -> Array:
    """Mean over H and W of [..., H, W, C] → [..., C], given the count of pixels that matter.

    Summed along W first: shorter float32 sums lose less.
    """
    return values.sum(axis=-2).sum(axis=-2) / count


def brightness_corrected(sr: Array, hr: Array, mask: Array) -> tuple[Array, Array]:
    """HR − SR − b over reliable pixels, 0 elsewhere, and b = mean(HR − SR) per channel.

    Args:
      sr, hr: [h, w, C], one crop each.
      mask: [h, w, 1] bool.

    Returns:
      error [h, w, C] and b [C].
    """
    count = jnp.maximum(mask.sum(), 1).astype(sr.dtype)
    # What lies under the mask is set to zero before and after: neither its value, nor a NaN
    # there, reaches the result or its gradient.
    difference = jnp.where(mask, hr, 0) - jnp.where(mask, sr, 0)
    b = _mean(difference, count)
    return jnp.where(mask, difference - b, 0), b


def crop(hr: Array, position: Array, border: int) -> Array:
    """HR's window at (u, v), of the size that SR has without its border: [H, W, C] → smaller."""
    size = (hr.shape[0] - 2 * border, hr.shape[1] - 2 * border, hr.shape[2])
    zero = jnp.zeros((), position.dtype)
    return lax.dynamic_slice(hr, (position[0], position[1], zero), size)


def _crop_mse(sr_crop: Array, hr: Array, mask: Array, border: int, position: Array) -> Array:
    """MSE of one image at one position; 0 without a reliable pixel."""
    window = crop(mask, position, border)
    error, _ = brightness_corrected(sr_crop, crop(hr, position, border), window)
    count = jnp.maximum(window.sum(), 1).astype(sr_crop.dtype)
    return _mean(error * error, count).mean()


def centre_crop(sr: Array, border: int) -> Array:
    """SR without `border` pixels on every side: [H, W, C] → [H − 2d, W − 2d, C]."""
    return sr[border : sr.shape[0] - border, border : sr.shape[1] - border]


def align(sr: Array, hr: Array, hr_mask: Array, border: int) -> Alignment:
    """The position of HR at which SR fits best, after brightness correction. No gradient.

    Args:
      sr, hr: [B, H, W, C] of one unit, float32 or wider.
      hr_mask: [B, H, W, 1] bool.
      border: d ≥ 0, HR pixels.
    """
    side = jnp.arange(2 * border + 1, dtype=jnp.int32)
    positions = jnp.stack(jnp.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)

    def one_image(sr: Array, hr: Array, mask: Array) -> Alignment:
        sr_crop = centre_crop(sr, border)

        def candidate(position: Array) -> Array:
            mse = _crop_mse(sr_crop, hr, mask, border, position)
            # An image that overflows is broken (NaN), which is not the same as hidden (inf).
            mse = jnp.where(jnp.isinf(mse), jnp.nan, mse)
            return jnp.where(crop(mask, position, border).any(), mse, jnp.inf)

        mse = jax.vmap(candidate)(positions)
        best = jnp.argmin(mse)
        return Alignment(mse[best], positions[best])

    found = jax.vmap(one_image)(sr, hr, hr_mask)
    return jax.tree.map(lax.stop_gradient, found)


def registered_mse(sr: Array, hr: Array, hr_mask: Array, border: int = 3) -> Array:
    """Least MSE over all alignments of SR and HR, with brightness compensated (slides, "Loss").

    SR is cropped by d = `border`; at each of the (2d + 1)² positions of that window in HR,
    b = mean(HR − SR) and MSE = mean((HR − SR − b)²) over HR's reliable pixels, b per channel and
    MSE over all channels. The loss is the least over positions. A position without a reliable
    pixel does not count, and an image without any has loss 0 and no gradient.

    Args:
      sr, hr: [B, H, W, C], one unit (standardised in training).
      hr_mask: [B, H, W, 1], bool or 0/1, True = reliable.
      border: d ≥ 0, HR pixels.

    Returns:
      [B] float32 (float64 for float64 images).

    Raises:
      ValueError: shapes that do not belong together, or a border that leaves nothing.
    """
    check_images(sr, hr, hr_mask, border)
    sr, hr = jnp.asarray(sr), jnp.asarray(hr)
    dtype = jnp.promote_types(jnp.promote_types(sr.dtype, hr.dtype), jnp.float32)
    sr, hr, mask = sr.astype(dtype), hr.astype(dtype), jnp.asarray(hr_mask).astype(bool)
    hr = jnp.where(mask, hr, 0)  # what a mask hides may be NaN, and must not meet a sum

    # The gradient of a minimum is the gradient at the minimiser: search without gradients, then
    # differentiate one position instead of all.
    best = align(lax.stop_gradient(sr), hr, mask, border)

    def at_best(sr: Array, hr: Array, mask: Array, position: Array) -> Array:
        return _crop_mse(centre_crop(sr, border), hr, mask, border, position)

    return jax.vmap(at_best)(sr, hr, mask, best.position)
