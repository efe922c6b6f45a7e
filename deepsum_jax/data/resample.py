"""From the LR grid to the HR grid and along it, on the host: upsampling, whole-pixel shifts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_KEYS_A = -0.5


def keys_kernel(t: Any, xp: Any = np) -> Any:
    """Keys' cubic convolution kernel with a = −0.5 (Keys 1981, eq. 15), at distances `t`."""
    t = xp.abs(t)
    near = ((_KEYS_A + 2) * t - (_KEYS_A + 3)) * t * t + 1
    far = _KEYS_A * (((t - 5) * t + 8) * t - 4)
    return xp.where(t <= 1, near, xp.where(t < 2, far, 0.0))


def _upsample_axis(x: np.ndarray, scale: int, axis: int) -> np.ndarray:
    """Cubic upsampling of one axis, polyphase: each of the `scale` phases is a 4-tap filter."""
    x = np.moveaxis(x, axis, -1)
    size = x.shape[-1]
    # An output pixel's centre lies at most half an LR pixel from its LR pixel's: ±2 taps suffice.
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(2, 2)], mode="edge")
    out = np.empty((*x.shape, scale), x.dtype)
    for phase in range(scale):
        offset = (phase + 0.5) / scale - 0.5
        taps = keys_kernel(np.arange(-2, 3) - offset)
        out[..., phase] = sum(
            x.dtype.type(tap) * padded[..., k : k + size] for k, tap in enumerate(taps) if tap
        )
    return np.moveaxis(out.reshape(*x.shape[:-1], size * scale), -1, axis)


def bicubic_upsample(frames: np.ndarray, scale: int, clip: bool = True) -> np.ndarray:
    """Bicubic upsampling of frames on the host, as DeepSUM's inputs are made.

    Keys' kernel with a = −0.5, half-pixel centres, edge values replicated.

    Args:
      frames: [..., h, w], any real dtype and unit; finite.
      scale: r ≥ 1.
      clip: clip each frame to its own range, which removes overshoot.

    Returns:
      float32 [..., r·h, r·w] (float64 if `frames` is).
    """
    frames = np.asarray(frames)
    x = frames.astype(np.float64 if frames.dtype == np.float64 else np.float32)
    up = _upsample_axis(_upsample_axis(x, scale, -2), scale, -1)
    if clip:
        low = x.min(axis=(-2, -1), keepdims=True)
        high = x.max(axis=(-2, -1), keepdims=True)
        up = np.clip(up, low, high, out=up)
    return up


def upsample(lr: np.ndarray, scale: int) -> np.ndarray:
    """Bicubic upsampling with the channels last: [..., h, w, C] → [..., H, W, C]."""
    return np.moveaxis(bicubic_upsample(np.moveaxis(lr, -1, -3), scale), -3, -1)


def upsample_window(
    lr: np.ndarray, corner: Sequence[int] | np.ndarray, size: int, scale: int
) -> np.ndarray:
    """The part of `upsample(lr)` over an LR window, at the window's cost.

    Args:
      lr: [N, h, w, C].
      corner: LR row and column.
      size: of the window, LR pixels.

    Returns:
      [N, r·size, r·size, C].
    """
    margin = 2  # the reach of the kernel
    y, x = (int(c) for c in corner)
    rows = np.clip(np.arange(y - margin, y + size + margin), 0, lr.shape[1] - 1)
    cols = np.clip(np.arange(x - margin, x + size + margin), 0, lr.shape[2] - 1)
    window = np.moveaxis(lr[:, rows][:, :, cols], -1, -3)  # [N, C, size + 4, size + 4]
    up = bicubic_upsample(window, scale, clip=False)
    edge = margin * scale
    up = np.moveaxis(up[..., edge:-edge, edge:-edge], -3, -1)
    return np.clip(up, lr.min(axis=(1, 2), keepdims=True), lr.max(axis=(1, 2), keepdims=True))


def nearest_upsample(masks: np.ndarray, scale: int) -> np.ndarray:
    """Masks by nearest neighbour: [..., h, w] → [..., r·h, r·w], on the host."""
    return np.repeat(np.repeat(masks, scale, axis=-2), scale, axis=-1)


def translate(x: np.ndarray, shift: Sequence[int], fill: bool | None = None) -> np.ndarray:
    """Moves the content of [..., H, W] by an integer vector: out(y, x) = in(y − s_y, x − s_x).

    Nothing wraps around: what comes in from outside is `fill`, or the nearest edge value.
    """
    height, width = x.shape[-2:]
    rows = np.arange(height) - int(shift[0])
    cols = np.arange(width) - int(shift[1])
    out = x[..., np.clip(rows, 0, height - 1), :][..., np.clip(cols, 0, width - 1)]
    if fill is not None:
        out[..., (rows < 0) | (rows >= height), :] = fill
        out[..., (cols < 0) | (cols >= width)] = fill
    return out


def aligned_masks(masks: np.ndarray, shifts: np.ndarray, scale: int) -> np.ndarray:
    """Masks on frame 0's upsampled grid by integer shifts: [N, h, w] → [N, H, W] bool.

    What comes in from outside a frame is not reliable.
    """
    up = nearest_upsample(masks, scale)
    return np.stack([translate(m, s, fill=False) for m, s in zip(up, shifts)])


def window_sums(x: np.ndarray, size: int) -> np.ndarray:
    """Sums over all size×size windows, on the host.

    Args:
      x: [..., H, W], numbers; masks as integers.
      size: up to H and W.

    Returns:
      [..., H − size + 1, W − size + 1]; exact for integers.
    """
    total = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 0), (1, 0)]).cumsum(axis=-2).cumsum(axis=-1)
    strips = total[..., size:, :] - total[..., :-size, :]
    return np.asarray(strips[..., size:] - strips[..., :-size])
