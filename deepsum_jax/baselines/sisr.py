"""SISR and SISR+Mean: SISRNet with its pretraining head, on single frames."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from deepsum_jax import systems
from deepsum_jax.baselines.bicubic_mean import registered_mean
from deepsum_jax.config import ModelConfig
from deepsum_jax.deepsum import Params, from_input, to_input
from deepsum_jax.prepare import fill_hidden, upsample


@functools.lru_cache(maxsize=4)
def _compiled(model: ModelConfig) -> Callable[[Params, Any], Any]:
    return jax.jit(lambda params, images: systems.sisr(params, images, model))


def sisr_image(params: Params, lr: np.ndarray, model: ModelConfig) -> np.ndarray:
    """Single-image super-resolution of one raw frame, finite: [h, w, C] → [H, W, C] raw."""
    images = np.asarray(to_input(upsample(lr[None], model.scale), model.normalization), np.float32)
    sr = np.asarray(_compiled(model)(params, images), np.float32)[0]
    return from_input(sr, model.normalization)


def sisr_mean(params: Params, lr: np.ndarray, masks: np.ndarray, model: ModelConfig) -> np.ndarray:
    """Mean of every frame's own super-resolved image, registered on frame 0.

    Args:
      params: with "sisrnet" and "sisr_head".
      lr: [N, h, w, C] raw, frame 0 the reference.
      masks: [N, h, w] bool, True = reliable.
      model: gives scale and normalisation.

    Returns:
      float32 [r·h, r·w, C], raw.
    """
    images = [sisr_image(params, frame, model) for frame in fill_hidden(lr, masks)]
    return registered_mean(np.stack(images), masks, model.scale)
