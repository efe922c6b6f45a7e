"""The operators that the networks are made of, as plain definitions that compute.

Where there is something faster for a platform it stands in `kernels`, and `backend` chooses:
"auto" takes it where it is faster, "plain" computes what stands here, which any derivative goes
through. All give equal values. Without the folder `kernels` everything computes, slower.

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
from jax import lax

from deepsum_jax.config import Backend
from deepsum_jax.data.resample import keys_kernel

kernels: Any
try:
    import deepsum_jax.kernels as kernels
except ModuleNotFoundError as error:
    if error.name != "deepsum_jax.kernels":
        raise
    kernels = None

Array = jax.Array
Precision = Any  # anything `lax.conv_general_dilated` takes as `precision`

LEAKY_SLOPE = 0.2
NORM_EPSILON = 1e-3


def _is_plain(backend: Backend) -> bool:
    return backend == "plain" or kernels is None


def _reflected(x: Array, pad: int) -> Array:
    edges = [(0, 0)] * (x.ndim - 3) + [(pad, pad), (pad, pad), (0, 0)]
    return jnp.pad(x, edges, mode="reflect")


def reflect_pad(x: Array, pad: int, backend: Backend = "auto") -> Array:
    """Pads H and W of [..., H, W, F], both > `pad`, by reflection about the border pixels'
    centres."""
    x = jnp.asarray(x)
    if not pad:
        return x
    if _is_plain(backend):
        return _reflected(x, pad)
    return kernels.reflect(x, pad, _reflected, backend)


def _check_kernel(x: Array, kernel: Array, sizes: Sequence[tuple[int, int]]) -> None:
    shape = kernel.shape
    if len(shape) != 4 or shape[:2] not in sizes or shape[2] != x.shape[-1]:
        raise ValueError(
            f"kernel: found shape {shape}, expected "
            f"{' or '.join(str([*s, x.shape[-1], 'C_out']) for s in sizes)}"
        )


def _convolution(x: Array, kernel: Array, precision: Precision) -> Array:
    """[B, N, H, W, C_in] with [D, 3, 3, C_in, C_out] → [B, N − D + 1, H, W, C_out]; a
    two-dimensional convolution where the depth is one."""
    padded = _reflected(x, 1)
    if kernel.shape[0] > 1:
        return lax.conv_general_dilated(
            padded, kernel, (1, 1, 1), "VALID",
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"), precision=precision,
        )  # fmt: skip
    batch, frames = x.shape[:2]
    y = lax.conv_general_dilated(
        padded.reshape(batch * frames, *padded.shape[2:]), kernel[0], (1, 1), "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision,
    )  # fmt: skip
    return y.reshape(batch, frames, *y.shape[1:])


def _convolve(x: Array, kernel: Array, precision: Precision, backend: Backend) -> Array:
    if _is_plain(backend):
        return _convolution(x, kernel, precision)
    return kernels.convolution(x, kernel, _convolution, precision, backend)


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
    y = _convolve(frames, kernel[None], precision, backend)
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
    return _convolve(jnp.asarray(x), jnp.asarray(kernel), precision, backend)


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
    x = jnp.asarray(x)
    if _is_plain(backend):
        return leaky_relu(instance_norm(_convolution(x, kernel, precision), gamma, beta))
    return kernels.convolution_norm_leaky(
        x, kernel, gamma, beta, _convolution, LEAKY_SLOPE, NORM_EPSILON, precision, backend
    )


def window_means(x: Array, size: int, backend: Backend = "auto") -> Array:
    """Means of the size² shifted windows of reflection-padded maps.

    The mean over H and W of a convolution is its kernel's product with these.

    Args:
      x: [..., H, W, F].
      size: odd.

    Returns:
      [..., size, size, F]: entry (i, j) is the mean of the H×W window at offset (i, j).
    """
    height, width = x.shape[-3:-1]
    padded = reflect_pad(x, size // 2, backend)
    columns = jnp.stack(
        [padded[..., i : i + height, :, :].mean(axis=-3) for i in range(size)], axis=-3
    )  # [..., size, W + size − 1, F]
    return jnp.stack([columns[..., j : j + width, :].mean(axis=-2) for j in range(size)], axis=-2)


def _dynamic_convolution(x: Array, filters: Array, precision: Precision) -> Array:
    """[M, H, W, F] with [M, K, K] → [M, H, W, F]: one grouped convolution, whose channels are the
    frames and whose batch is the feature maps, since all maps of a frame share the filter."""
    padded = _reflected(x, filters.shape[-1] // 2)
    return lax.conv_general_dilated(
        padded,
        filters[:, None],
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("CHWN", "OIHW", "CHWN"),
        feature_group_count=padded.shape[0],
        precision=precision,
    )


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
    if _is_plain(backend):
        return _dynamic_convolution(maps, taps, precision).reshape(x.shape)
    made = kernels.dynamic_convolution(maps, taps, _dynamic_convolution, precision, backend)
    return made.reshape(x.shape)


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
    weights = keys_kernel(taps + jnp.clip(shifts, -reach, reach)[..., None], jnp)  # [..., 2, K]
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return weights[..., 0, :, None] * weights[..., 1, None, :]


def _filled(x: Array, masks: Array) -> Array:
    """`mutual_inpainting` as a chain of selections."""
    donor = jnp.argmax(masks, axis=1, keepdims=True).astype(jnp.int32)
    given = x[:, -1:]
    for n in reversed(range(x.shape[1] - 1)):
        given = jnp.where(donor == n, x[:, n : n + 1], given)
    return jnp.where(~masks & masks.any(axis=1, keepdims=True), given, x)


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
    x, masks = jnp.asarray(x), jnp.asarray(masks)
    if _is_plain(backend):
        return _filled(x, masks)
    return kernels.fill_from_donors(x, masks, _filled, backend)


def instance_norm(x: Array, gamma: Array, beta: Array, epsilon: float = NORM_EPSILON) -> Array:
    """Normalises every frame and feature map over H and W (biased variance), then γ·x + β.

    Args:
      x: [..., H, W, F]; statistics are float32 at least.
      gamma, beta: [F].
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # In two passes: one would cancel on maps with a large offset.
    centred = wide - wide.mean(axis=(-3, -2), keepdims=True)
    inverse = lax.rsqrt((centred * centred).mean(axis=(-3, -2), keepdims=True) + epsilon)
    return (centred * inverse * gamma + beta).astype(x.dtype)


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
