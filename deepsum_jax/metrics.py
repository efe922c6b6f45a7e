"""Scores in raw units: cPSNR, cSSIM and the Kelvins challenge score."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsum_jax import losses

Array = jax.Array

_SSIM_RADIUS, _SSIM_SIGMA = 5, 1.5

WORST_CPSNR = 0.0
"""What means take for an image that is not finite where HR is reliable, dB: an error as large as
the whole range."""


def _prepared(
    sr: Array, hr: Array, hr_mask: Array, border: int
) -> tuple[Array, Array, Array, losses.Alignment]:
    losses.check_images(sr, hr, hr_mask, border)
    mask = jnp.asarray(hr_mask).astype(bool)
    sr = jnp.asarray(sr).astype(jnp.float32)
    hr = jnp.where(mask, jnp.asarray(hr).astype(jnp.float32), 0)
    return sr, hr, mask, losses.align(sr, hr, mask, border)


@functools.partial(jax.jit, static_argnames=("border", "max_value"))
def cpsnr(
    sr: Array, hr: Array, hr_mask: Array, border: int = 3, max_value: float = 65535.0
) -> Array:
    """cPSNR in dB ("mPSNR" in the paper): the greatest PSNR over all alignments of SR and HR.

    10·log10(max_value² / MSE), with MSE as in `losses.registered_mse`.

    Args:
      sr, hr: [B, H, W, C] in raw units.
      hr_mask: [B, H, W, 1], bool or 0/1, True = reliable.
      border: d ≥ 0, HR pixels.
      max_value: the greatest value the sensor could give.

    Returns:
      [B] float32; +inf for a perfect image, NaN where no pixel is reliable.

    Raises:
      ValueError: shapes that do not belong together, or a border that leaves nothing.
    """
    _, _, _, best = _prepared(sr, hr, hr_mask, border)
    psnr = 10 * (2 * jnp.log10(jnp.float32(max_value)) - jnp.log10(best.mse))
    return jnp.where(jnp.isinf(best.mse), jnp.nan, psnr)


def _gaussian_mean(x: Array) -> Array:
    """11×11 Gaussian window, σ 1.5, over [H, W, C]; edges mirrored so that the size stays."""
    taps = np.exp(-0.5 * (np.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1) / _SSIM_SIGMA) ** 2)
    kernel = jnp.asarray(taps / taps.sum(), jnp.float32)
    pads = [(_SSIM_RADIUS, _SSIM_RADIUS), (_SSIM_RADIUS, _SSIM_RADIUS), (0, 0)]
    padded = jnp.pad(x, pads, mode="symmetric")
    rows = sum(k * padded[i : i + x.shape[0]] for i, k in enumerate(kernel))
    return sum(k * rows[:, i : i + x.shape[1]] for i, k in enumerate(kernel))


@functools.partial(jax.jit, static_argnames=("border", "max_value"))
def cssim(
    sr: Array, hr: Array, hr_mask: Array, border: int = 3, max_value: float = 65535.0
) -> Array:
    """cSSIM: SSIM after brightness correction, at cPSNR's best alignment, over clear pixels.

    SSIM (Wang et al. 2004) with an 11×11 Gaussian window of σ 1.5, K1 = 0.01, K2 = 0.03. Where
    HR is unreliable, both images show the corrected SR, so clouds do not leak into their
    neighbours' windows.

    Args and errors as in `cpsnr`.

    Returns:
      [B] float32, at most 1; NaN where no pixel is reliable.
    """
    sr, hr, mask, best = _prepared(sr, hr, hr_mask, border)
    c1, c2 = (0.01 * max_value) ** 2, (0.03 * max_value) ** 2

    def one_image(sr: Array, hr: Array, mask: Array, position: Array) -> Array:
        sr = losses.centre_crop(sr, border)
        hr, mask = losses.crop(hr, position, border), losses.crop(mask, position, border)
        _, b = losses.brightness_corrected(sr, hr, mask)
        # A common offset leaves the contrast terms as they are and saves them from cancellation.
        offset = sr.mean(axis=(0, 1)) + b
        x, y = sr + b - offset, jnp.where(mask, hr, sr + b) - offset
        mean_x, mean_y = _gaussian_mean(x), _gaussian_mean(y)
        var_x = _gaussian_mean(x * x) - mean_x**2
        var_y = _gaussian_mean(y * y) - mean_y**2
        covariance = _gaussian_mean(x * y) - mean_x * mean_y
        mean_x, mean_y = mean_x + offset, mean_y + offset
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        contrast = (2 * covariance + c2) / (var_x + var_y + c2)
        total = jnp.where(mask, luminance * contrast, 0).sum(axis=1).sum(axis=0)
        return (total / jnp.maximum(mask.sum(), 1)).mean()

    ssim = jax.vmap(one_image)(sr, hr, mask, best.position)
    return jnp.where(jnp.isinf(best.mse), jnp.nan, ssim)


def kelvins_score(cpsnr: Array, baseline: Array) -> Array:
    """The challenge's score: mean over scenes of baseline / cPSNR. Lower is better, 1 is par.

    Args:
      cpsnr: [S] dB; NaN scenes (no reliable pixel) are left out, +inf scores 0.
      baseline: [S] dB, from `norm.csv`.

    Returns:
      A scalar; NaN if no scene is left.

    Raises:
      ValueError: shapes that differ.
    """
    if np.shape(cpsnr) != np.shape(baseline):
        raise ValueError(
            f"cpsnr and baseline: found shapes {np.shape(cpsnr)} and {np.shape(baseline)}, "
            "expected equal ones"
        )
    return jnp.nanmean(jnp.asarray(baseline) / lax.stop_gradient(jnp.asarray(cpsnr)))
