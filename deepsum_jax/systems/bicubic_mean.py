"""Bicubic+Mean: the row that stands beside every model."""

from __future__ import annotations

import numpy as np

from deepsum_jax.config import Compute, ModelConfig
from deepsum_jax.data import resample
from deepsum_jax.data.fill import fill_hidden
from deepsum_jax.data.registration import register_upsampled
from deepsum_jax.data.survey import Survey
from deepsum_jax.systems.system import Params, Stack, SuperResolved, System, equal_weights


def on_grid(
    images: np.ndarray, masks: np.ndarray, shifts: np.ndarray, scale: int
) -> tuple[np.ndarray, np.ndarray]:
    """Upsampled frames moved onto frame 0's grid by whole HR pixels.

    Args:
      images: [N, H, W, C].
      masks: [N, h, w] bool.
      shifts: [N, 2] int, that register the frames.

    Returns:
      images [N, H, W, C] and masks [N, H, W] bool; what a shift brings in from outside is
      unreliable.
    """
    moved = [
        np.moveaxis(resample.translate(np.moveaxis(image, -1, 0), shift), 0, -1)
        for image, shift in zip(images, shifts)
    ]
    return np.stack(moved), resample.aligned_masks(masks, shifts, scale)


def filled_mean(images: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Mean [H, W, C] of registered images [N, H, W, C] under their masks [N, H, W].

    Clouded pixels are filled from the first frame that is reliable there, as in mutual
    inpainting, and keep their value where none is.
    """
    first = np.argmax(clear, axis=0)  # [H, W], the first reliable frame
    donor = np.take_along_axis(images, first[None, ..., None], axis=0)
    fill = ~clear & clear.any(axis=0)
    return np.where(fill[..., None], donor, images).mean(axis=0)


def registered_mean(
    images: np.ndarray, lr: np.ndarray, masks: np.ndarray, scale: int, survey: Survey | None = None
) -> np.ndarray:
    """Mean of upsampled frames, registered on frame 0 by masked integer cross-correlation, or as a
    survey says, and filled (see `filled_mean`).

    Args:
      images: [N, r·h, r·w, C], finite, frame 0 the reference.
      lr: [N, h, w, C], the frames that they were made of.
      masks: [N, h, w] bool, True = reliable.
      scale: r.

    Returns:
      [r·h, r·w, C].
    """
    if survey is None:
        shifts = register_upsampled(lr, masks, scale, images)
    else:
        shifts = np.rint(survey.shifts).astype(np.int32)
    return filled_mean(*on_grid(images, masks, shifts, scale))


def bicubic_mean(
    lr: np.ndarray, masks: np.ndarray, scale: int, survey: Survey | None = None
) -> np.ndarray:
    """Mean of the bicubic-upsampled frames, registered on frame 0 (see `registered_mean`).

    Args:
      lr: [N, h, w, C] raw, frame 0 the reference; non-finite only where masked.
      masks: [N, h, w] bool, True = reliable.
      scale: r.
      survey: of the large stack that the frames are a part of, if they are.

    Returns:
      float32 [r·h, r·w, C], raw.
    """
    frames = fill_hidden(lr, masks)
    return registered_mean(resample.upsample(frames, scale), frames, masks, scale, survey)


def super_resolve(
    params: Params, stack: Stack, config: ModelConfig, compute: Compute
) -> SuperResolved:
    image = bicubic_mean(stack.lr, stack.masks, config.scale, stack.survey)
    return SuperResolved(image, equal_weights(len(stack.lr)))


BICUBIC_MEAN = System(name="bicubic_mean", label="Bicubic+Mean", super_resolve=super_resolve)
