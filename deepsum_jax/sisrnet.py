"""SISRNet: from each upsampled image alone to feature maps (slides, "SISRNet")."""

from __future__ import annotations

import flax.linen as nn
import jax

from deepsum_jax import ops
from deepsum_jax.config import ModelConfig
from deepsum_jax.layers import Conv, InstanceNorm

Array = jax.Array


class SISRNet(nn.Module):
    """[3×3 convolution → instance norm → leaky ReLU], shared by all frames.

    Call with images [..., H, W, C], standardised and upsampled; returns [..., H, W, F].
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = images
        for i in range(self.config.sisrnet_layers):
            x = Conv(self.config.features, (3, 3), self.config, name=f"conv{i}")(x)
            x = InstanceNorm(self.config, name=f"norm{i}")(x)
            x = ops.leaky_relu(x)
        return x


class SISRHead(nn.Module):
    """The 1×1 convolution that pretrains SISRNet: features [..., H, W, F] → residual [..., C]."""

    config: ModelConfig

    @nn.compact
    def __call__(self, features: Array) -> Array:
        return Conv(self.config.channels, (1, 1), self.config, name="conv")(features)
