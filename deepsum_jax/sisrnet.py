"""SISRNet: from each upsampled image alone to feature maps (slides, "SISRNet")."""

from __future__ import annotations

import flax.linen as nn
import jax

from deepsum_jax import ops
from deepsum_jax.config import ModelConfig
from deepsum_jax.graph import GraphConv
from deepsum_jax.layers import Conv, Norm, conv_norm_leaky

Array = jax.Array


class SISRNet(nn.Module):
    """[3×3 convolution → norm → leaky ReLU], shared by all frames.

    Call with images [..., H, W, C], standardised and upsampled; returns [..., H, W, F].

    Attributes:
      config: the network. With `neighbours`, every second layer is graph-convolutional.
      training: batch norm takes the batch's statistics.
    """

    config: ModelConfig
    training: bool = False

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = images.reshape(1, -1, *images.shape[-3:])  # every frame by itself
        for i in range(self.config.sisrnet_layers):
            if self.config.neighbours and i % 2:
                x = GraphConv(self.config.features, self.config, name=f"conv{i}")(x)
                norm = Norm(self.config.features, self.config, self.training, name=f"norm{i}")
                x = ops.leaky_relu(norm(x))
            else:
                x = conv_norm_leaky(x, 1, i, self.config, self.training)
        return x.reshape(*images.shape[:-1], -1)


class SISRHead(nn.Module):
    """The 1×1 convolution that pretrains SISRNet: features [..., H, W, F] → residual [..., C]."""

    config: ModelConfig

    @nn.compact
    def __call__(self, features: Array) -> Array:
        return Conv(self.config.channels, 1, self.config, name="conv")(features)
