"""RegNet: proposes a registration filter for every frame but the reference (slides, "RegNet")."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepsum_jax import ops
from deepsum_jax.config import ModelConfig
from deepsum_jax.layers import Conv, kernel_init

Array = jax.Array


class PairConv(nn.Module):
    """3×3 convolution of every pair (frame n, frame 0), 2F → F_out.

    The reference frame's half of the sum is the same for all pairs and is computed once.
    """

    features: int
    config: ModelConfig

    @nn.compact
    def __call__(self, features: Array) -> Array:
        cfg, dtype, param_dtype = self.config, self.config.dtype, self.config.param_dtype
        shape = (2, 3, 3, features.shape[-1], self.features)
        # Fans as of a 3-D convolution over the pair: [depth, 3, 3, F, F_out].
        kernel = self.param("kernel", kernel_init, shape, param_dtype).astype(dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), param_dtype)
        x = features.astype(dtype)
        frames = ops.conv2d(
            x[:, 1:], kernel[0], cfg.precision, cfg.backend
        )  # [B, N−1, H, W, F_out]
        reference = ops.conv2d(
            x[:, :1], kernel[1], cfg.precision, cfg.backend
        )  # [B, 1, H, W, F_out]
        return frames + (reference + bias.astype(dtype))


class MeanConv(nn.Module):
    """3×3 convolution followed by the mean over H and W, for the price of one small product.

    Both are linear, so the mean of the convolution is the product of its kernel with the means of
    the nine shifted windows of the padded maps: [..., H, W, F] → [..., F_out].
    """

    features: int
    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", kernel_init, shape, self.config.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.config.param_dtype)
        wide = jnp.promote_types(self.config.dtype, jnp.float32)
        means = ops.window_means(x.astype(wide), 3)  # [..., 3, 3, F]
        logits = jnp.einsum(
            "...ijf,ijfo->...o", means, kernel.astype(wide), precision=self.config.precision
        )
        return logits + bias.astype(wide)


class RegNet(nn.Module):
    """Registration filters from SISRNet's features.

    Call with features [B, N, H, W, F]; returns logits over the K² taps, [B, N−1, K²], of the
    filters that register frames 1 … N−1 on frame 0. `filters_from_logits` makes filters of them.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, features: Array) -> Array:
        width = self.config.features
        x = ops.leaky_relu(PairConv(2 * width, self.config, name="conv0")(features))
        for i in range(1, 4):
            x = ops.leaky_relu(Conv(width, 3, self.config, name=f"conv{i}")(x))
        return MeanConv(self.config.filter_size**2, self.config, name="conv4")(x)


def filters_from_logits(logits: Array) -> Array:
    """Softmax over the taps: [B, N−1, K²] → filters [B, N−1, K, K], each summing to one."""
    size = round(logits.shape[-1] ** 0.5)
    return jax.nn.softmax(logits, axis=-1).reshape(*logits.shape[:-1], size, size)
