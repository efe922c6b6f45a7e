"""From frames to what the networks take: the only place that makes images, masks and shifts.

Training, validation and prediction all come through here. Frames are finite, raw and on the LR
grid, frame 0 the reference; what leaves lies on the HR grid, standardised.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from deepsum_jax import units
from deepsum_jax.config import ModelConfig
from deepsum_jax.data import resample

# What a record of training batches is: a single frame with HR, a reference frame with synthetic
# shifts, a whole stack with HR, or one on its own grids, aligned; see `patches`.
View = Literal["frames", "shifts", "stacks", "aligned"]


class Window(NamedTuple):
    """A square part of the frames."""

    row: int  # of its corner, LR pixels
    column: int
    size: int  # LR pixels

    def cut(self, x: np.ndarray, scale: int = 1) -> np.ndarray:
        """Its part of [N, scale·h, scale·w, …]."""
        row, column, size = (scale * n for n in self)
        return x[:, row : row + size, column : column + size]


class Inputs(NamedTuple):
    """A stack as the networks take it, without the batch axis."""

    images: np.ndarray  # [N, H, W, C] float32, standardised
    masks: np.ndarray  # [N, H, W, 1] bool; on frame 0's grid where the network takes them so
    shifts: np.ndarray | None  # [N, 2] float32, HR pixels; only where the network takes them


def needs_shifts(model: ModelConfig) -> bool:
    """Whether frames must be registered before they are made into inputs."""
    return model.takes_registered_masks or model.takes_shifts


def input_images(lr: np.ndarray, model: ModelConfig, window: Window | None = None) -> np.ndarray:
    """Frames [N, h, w, C], upsampled and standardised: float32 [N, H, W, C] of the window."""
    if window is None:
        images = resample.upsample(lr, model.scale)
    else:
        corner = (window.row, window.column)
        images = resample.upsample_window(lr, corner, window.size, model.scale)
    return np.asarray(units.to_input(images, model.normalization), np.float32)


def upsampled_masks(masks: np.ndarray, scale: int, window: Window | None = None) -> np.ndarray:
    """Masks [N, h, w], each on its own frame's grid: [N, H, W] of the window."""
    return resample.nearest_upsample(masks if window is None else window.cut(masks), scale)


def make_inputs(
    lr: np.ndarray,
    masks: np.ndarray,
    shifts: np.ndarray | None,
    model: ModelConfig,
    window: Window | None = None,
) -> Inputs:
    """Frames as a network's inputs.

    Args:
      lr: [N, h, w, C] raw, finite.
      masks: [N, h, w] bool.
      shifts: [N, 2], HR pixels, that register the frames on frame 0; may be None unless
        `needs_shifts`.
      model: gives scale, normalisation, and what the network takes.
      window: make only this part.
    """
    if model.takes_registered_masks and shifts is not None:
        # Whole masks are shifted, so that what lies beside the window can come in.
        clear = resample.aligned_masks(masks, np.rint(shifts).astype(np.int32), model.scale)
        clear = clear if window is None else window.cut(clear, model.scale)
    else:
        clear = upsampled_masks(masks, model.scale, window)
    moves = None
    if model.takes_shifts and shifts is not None:
        moves = shifts.astype(np.float32)
    return Inputs(input_images(lr, model, window), clear[..., None], moves)
