"""SISRNet: from each upsampled image alone to feature maps (slides, "SISRNet")."""

from __future__ import annotations

import flax.linen as nn
import jax

from deepsum_jax.config import Compute, ModelConfig
from deepsum_jax.model import ops
from deepsum_jax.model.graph import GraphConv
from deepsum_jax.model.layers import Conv, Norm, conv_norm_leaky

Array = jax.Array


class SISRNet(nn.Module):
    """[3×3 convolution → norm → leaky ReLU], shared by all frames.

    Call with images [..., H, W, C], standardised and upsampled; returns [..., H, W, F].

    Attributes:
      config: the network. With `neighbours`, every second layer is graph-convolutional.
      compute: what it computes with.
      training, axis_name: batch norm takes the batch's statistics; see `layers.Norm`.
    """

    config: ModelConfig
    compute: Compute = Compute()
    training: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Array) -> Array:
        cfg = self.config
        x = images.reshape(1, -1, *images.shape[-3:])  # every frame by itself
        for i in range(cfg.sisrnet_layers):
            norm = Norm(
                cfg.features, cfg, self.compute, self.training, self.axis_name, name=f"norm{i}"
            )
            if cfg.neighbours and i % 2:
                x = GraphConv(cfg.features, cfg, self.compute, name=f"conv{i}")(x)
                x = ops.leaky_relu(norm(x))
            else:
                x = conv_norm_leaky(x, 1, i, cfg, self.compute, norm)
        return x.reshape(*images.shape[:-1], -1)


class SISRHead(nn.Module):
    """The 1×1 convolution that pretrains SISRNet: features [..., H, W, F] → residual [..., C]."""

    config: ModelConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, features: Array) -> Array:
        return Conv(self.config.channels, 1, self.compute, name="conv")(features)
