"""RegNet: proposes a registration filter for every frame but the reference (slides, "RegNet")."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepsum_jax.config import Compute, ModelConfig
from deepsum_jax.model import ops
from deepsum_jax.model.layers import Conv, kernel_init

Array = jax.Array


class PairConv(nn.Module):
    """3×3 convolution of every pair (frame n, frame 0), 2F → F_out.

    The reference frame's half of the sum is the same for all pairs and is computed once: call
    `reference`, then the module with what it returns.
    """

    features: int
    config: ModelConfig
    compute: Compute

    def setup(self) -> None:
        width = self.config.features
        # Fans as of a 3-D convolution over the pair: [depth, 3, 3, F, F_out].
        shape = (2, 3, 3, width, self.features)
        self.kernel = self.param("kernel", kernel_init, shape, self.compute.param_dtype)
        zeros = nn.initializers.zeros
        self.bias = self.param("bias", zeros, (self.features,), self.compute.param_dtype)

    def _half(self, x: Array, depth: int) -> Array:
        cfg = self.compute
        kernel = self.kernel[depth].astype(cfg.dtype)
        return ops.conv2d(x.astype(cfg.dtype), kernel, cfg.precision, cfg.backend)

    def reference(self, frame: Array) -> Array:
        """Frame 0's half: [B, 1, H, W, F] → [B, 1, H, W, F_out]."""
        return self._half(frame, 1) + self.bias.astype(self.compute.dtype)

    def __call__(self, frames: Array, reference: Array) -> Array:
        """Frames [B, M, H, W, F] and frame 0's half → [B, M, H, W, F_out]."""
        return self._half(frames, 0) + reference


class MeanConv(nn.Module):
    """3×3 convolution followed by the mean over H and W, for the price of one small product.

    Both are linear, so the mean of the convolution is the product of its kernel with the means of
    the nine shifted windows of the padded maps: [..., H, W, F] → [..., F_out].
    """

    features: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", kernel_init, shape, self.compute.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.compute.param_dtype)
        wide = jnp.promote_types(self.compute.dtype, jnp.float32)
        means = ops.window_means(x.astype(wide), 3, self.compute.backend)  # [..., 3, 3, F]
        logits = jnp.einsum(
            "...ijf,ijfo->...o", means, kernel.astype(wide), precision=self.compute.precision
        )
        return logits + bias.astype(wide)


class RegNet(nn.Module):
    """Registration filters from SISRNet's features.

    Call with features [B, N, H, W, F]; returns logits over the K² taps, [B, N−1, K²], of the
    filters that register frames 1 … N−1 on frame 0. `filters_from_logits` makes filters of them.
    Where the configuration registers by learned shifts, it returns those instead, [B, N−1, 2] in
    HR pixels; `ops.translation_filters` makes filters of them.
    `reference` and `pairs` are its two halves, for whoever takes the frames one by one.
    """

    config: ModelConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        width = self.config.features
        self.conv0 = PairConv(2 * width, self.config, self.compute)
        self.conv1, self.conv2, self.conv3 = (Conv(width, 3, self.compute) for _ in range(3))
        shifts = self.config.registration == "shifts"
        self.conv4 = MeanConv(2 if shifts else self.config.filter_size**2, self.compute)

    def reference(self, frame: Array) -> Array:
        """What all pairs need of frame 0: [B, 1, H, W, F] → [B, 1, H, W, 2F]."""
        return self.conv0.reference(frame)

    def pairs(self, frames: Array, reference: Array) -> Array:
        """Logits for frames [B, M, H, W, F], [B, M, K²]."""
        x = ops.leaky_relu(self.conv0(frames, reference))
        for conv in (self.conv1, self.conv2, self.conv3):
            x = ops.leaky_relu(conv(x))
        return self.conv4(x)

    def __call__(self, features: Array) -> Array:
        return self.pairs(features[:, 1:], self.reference(features[:, :1]))


def filters_from_logits(logits: Array) -> Array:
    """Softmax over the taps: [B, N−1, K²] → filters [B, N−1, K, K], each summing to one."""
    size = round(logits.shape[-1] ** 0.5)
    return jax.nn.softmax(logits, axis=-1).reshape(*logits.shape[:-1], size, size)
