"""Pure array functions: the operators the networks, the loss and the preparation are made of.

Shape vocabulary, used in every module:

====  =====================================================================
B     batch
T     frames of a scene; N frames of a stack (the network's, 9 by default)
r     scale, HR pixels per LR pixel (3)
h, w  LR grid; H = r·h and W = r·w the upsampled grid
C     channels (bands); F features
K     side of a dynamic filter (9); d border of the alignment search (3)
====  =====================================================================

Frame 0 of a stack is its reference frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsum_jax.kernels.backend import Backend
from deepsum_jax.kernels.convolution import convolution, convolution_norm_leaky, normalize
from deepsum_jax.kernels.dynamic import dynamic_convolution
from deepsum_jax.kernels.inpainting import fill_from_donors
from deepsum_jax.kernels.padding import reflect

Array = jax.Array
Precision = Any  # anything `lax.conv_general_dilated` takes as `precision`

LEAKY_SLOPE = 0.2
NORM_EPSILON = 1e-3
_KEYS_A = -0.5


def _keys_kernel(t: Any, xp: Any = np) -> Any:
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
        taps = _keys_kernel(np.arange(-2, 3) - offset)
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


def reflect_pad(x: Array, pad: int, backend: Backend = "auto") -> Array:
    """Pads H and W of [..., H, W, F], both > `pad`, by reflection about the border pixels'
    centres."""
    return reflect(jnp.asarray(x), pad, backend) if pad else x


def _check_kernel(x: Array, kernel: Array, sizes: Sequence[tuple[int, int]]) -> None:
    shape = kernel.shape
    if len(shape) != 4 or shape[:2] not in sizes or shape[2] != x.shape[-1]:
        raise ValueError(
            f"kernel: found shape {shape}, expected "
            f"{' or '.join(str([*s, x.shape[-1], 'C_out']) for s in sizes)}"
        )


def conv2d(
    x: Array,
    kernel: Array,
    precision: Precision = lax.Precision.HIGHEST,
    backend: Backend = "auto",
) -> Array:
    """Convolution (cross-correlation) of every frame, reflection-padded to the same size.

    Args:
      x: [..., H, W, C_in], H, W ≥ 2; leading axes are frames that share the kernel.
      kernel: [3, 3, C_in, C_out], or [1, 1, C_in, C_out].
      backend: which formulation to use; see `kernels`.

    Returns:
      [..., H, W, C_out].

    Raises:
      ValueError: a kernel of another size, or for other channels.
    """
    _check_kernel(x, kernel, ((1, 1), (3, 3)))
    if kernel.shape[0] == 1:
        return jnp.einsum("...c,cf->...f", x, kernel[0, 0], precision=precision)
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    frames = x.reshape(1, -1, *x.shape[-3:])
    y = convolution(frames, kernel[None], precision, backend)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def conv3d(
    x: Array,
    kernel: Array,
    precision: Precision = lax.Precision.HIGHEST,
    backend: Backend = "auto",
) -> Array:
    """3-D convolution: reflection-padded on H and W, "valid" on the frame axis.

    Args:
      x: [B, N, H, W, C_in].
      kernel: [D, 3, 3, C_in, C_out], D ≤ N.

    Returns:
      [B, N − D + 1, H, W, C_out].

    Raises:
      ValueError: a kernel of another size, or for other channels.
    """
    _check_kernel(x, kernel[0], ((3, 3),))
    return convolution(jnp.asarray(x), jnp.asarray(kernel), precision, backend)


def conv_norm_leaky(
    x: Array,
    kernel: Array,
    gamma: Array,
    beta: Array,
    precision: Precision = lax.Precision.HIGHEST,
    backend: Backend = "auto",
) -> Array:
    """`conv3d`, instance norm and leaky ReLU: the block that SISRNet and FusionNet repeat.

    A bias of the convolution would be removed by the norm, so there is none.

    Args:
      x: [B, N, H, W, C_in].
      kernel: [D, 3, 3, C_in, F]; D = 1 treats every frame alone.
      gamma, beta: [F].

    Returns:
      [B, N − D + 1, H, W, F].
    """
    return convolution_norm_leaky(
        jnp.asarray(x), kernel, gamma, beta, LEAKY_SLOPE, NORM_EPSILON, precision, backend
    )


def window_means(x: Array, size: int) -> Array:
    """Means of the size² shifted windows of reflection-padded maps.

    The mean over H and W of a convolution is its kernel's product with these.

    Args:
      x: [..., H, W, F].
      size: odd.

    Returns:
      [..., size, size, F]: entry (i, j) is the mean of the H×W window at offset (i, j).
    """
    height, width = x.shape[-3:-1]
    padded = reflect_pad(x, size // 2)
    columns = jnp.stack(
        [padded[..., i : i + height, :, :].mean(axis=-3) for i in range(size)], axis=-3
    )  # [..., size, W + size − 1, F]
    return jnp.stack([columns[..., j : j + width, :].mean(axis=-2) for j in range(size)], axis=-2)


def global_dynamic_convolution(
    x: Array,
    filters: Array,
    precision: Precision = lax.Precision.HIGHEST,
    backend: Backend = "auto",
) -> Array:
    """Applies each frame's own filter to all of its feature maps (RegNet's second half).

    out(y, x) = Σ_ij w[i, j] · in(y + i − K//2, x + j − K//2), with H and W padded by reflection.
    A frame that must be translated by the integer vector s to lie on the reference has its ideal
    filter in the delta at (K//2 − s_y, K//2 − s_x).

    Args:
      x: [B, M, H, W, F], H and W larger than K//2.
      filters: [B, M, K, K], K odd.

    Returns:
      [B, M, H, W, F].
    """
    maps = jnp.asarray(x).reshape(-1, *x.shape[2:])
    taps = jnp.asarray(filters).reshape(-1, *filters.shape[2:]).astype(maps.dtype)
    return dynamic_convolution(maps, taps, precision, backend).reshape(x.shape)


def translation_filters(shifts: Array, size: int) -> Array:
    """Filters that translate by given vectors: Keys' bicubic kernel, a delta for whole numbers.

    Differentiable in the shifts; `filter_shift` is the inverse. The dynamic filters of systems
    that register by shifts.

    Args:
      shifts: [..., 2], (s_y, s_x) in HR pixels: registered(y, x) = frame(y − s_y, x − s_x).
        Longer ones than the filter reaches are cut to its reach.
      size: K, odd.

    Returns:
      [..., K, K], each summing to one.
    """
    reach = size // 2
    taps = jnp.arange(-reach, reach + 1, dtype=shifts.dtype)
    weights = _keys_kernel(taps + jnp.clip(shifts, -reach, reach)[..., None], jnp)  # [..., 2, K]
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return weights[..., 0, :, None] * weights[..., 1, None, :]


def mutual_inpainting(x: Array, masks: Array, backend: Backend = "auto") -> Array:
    """Fills the unreliable pixels of every frame from the first reliable frame of the stack.

    A pixel keeps its value where its own mask is reliable, and where no frame's mask is. All
    frames take the same donor at a pixel, so one donor image does the work of the N×N
    coefficients that the method is usually written with.

    Args:
      x: [B, N, H, W, F], registered on the reference frame.
      masks: [B, N, H, W, 1] bool, True = reliable, on the reference frame's grid.

    Returns:
      [B, N, H, W, F].
    """
    return fill_from_donors(jnp.asarray(x), jnp.asarray(masks), backend)


def instance_norm(x: Array, gamma: Array, beta: Array, epsilon: float = NORM_EPSILON) -> Array:
    """Normalises every frame and feature map over H and W (biased variance), then γ·x + β.

    Args:
      x: [..., H, W, F]; statistics are float32 at least.
      gamma, beta: [F].
    """
    normal, _ = normalize(x, epsilon)
    return (normal * gamma + beta).astype(x.dtype)


def batch_norm(
    x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float = NORM_EPSILON
) -> Array:
    """Normalises every feature map by given statistics, the same for all images, then γ·x + β.

    Args:
      x: [..., H, W, F].
      gamma, beta, mean, variance: [F].
    """
    factor = gamma * jax.lax.rsqrt(variance + epsilon)
    return (x * factor + (beta - mean * factor)).astype(x.dtype)


@jax.custom_vjp
def track_statistics(x: Array, running: Array, measured: Array) -> Array:
    """`x` itself; the gradient of anything made of it, by `running`, is running − measured.

    A gradient step of rate m thus moves running statistics as an exponential moving average of
    momentum 1 − m does. So they live among the parameters, where they are saved, averaged over
    devices and handed on with the rest.
    """
    return x


def _track_forward(x: Array, running: Array, measured: Array) -> tuple[Array, Array]:
    return x, running - measured


def _track_backward(difference: Array, gradient: Array) -> tuple[Array, Array, Array]:
    return gradient, difference, jnp.zeros_like(difference)


track_statistics.defvjp(_track_forward, _track_backward)


def leaky_relu(x: Array) -> Array:
    """Leaky ReLU of slope 0.2, as in every layer of DeepSUM."""
    return jax.nn.leaky_relu(x, LEAKY_SLOPE)


def filter_shift(filters: Array) -> Array:
    """The translation that a dynamic filter applies: minus its centroid.

    Args:
      filters: [..., K, K], non-negative, each summing to one.

    Returns:
      [..., 2], (s_y, s_x) in HR pixels: registered(y, x) ≈ frame(y − s_y, x − s_x).
    """
    taps = jnp.arange(filters.shape[-1], dtype=filters.dtype) - filters.shape[-1] // 2
    rows = -(filters.sum(axis=-1) * taps).sum(axis=-1)
    cols = -(filters.sum(axis=-2) * taps).sum(axis=-1)
    return jnp.stack([rows, cols], axis=-1)
