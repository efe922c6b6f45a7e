"""FusionNet: slow fusion of the registered frames by 3-D convolutions (slides, "FusionNet")."""

from __future__ import annotations

import flax.linen as nn
import jax

from deepsum_jax.config import ModelConfig
from deepsum_jax.layers import Conv, conv_norm_leaky, kernel_init

Array = jax.Array


class FusionNet(nn.Module):
    """(N − 1)/2 × [3×3×3 convolution → norm → leaky ReLU], then 1×1×1 to C channels.

    Each layer takes two frames away; instance norm works on every remaining frame by itself.
    Call with features [B, N, H, W, F]; returns the residual [B, H, W, C].

    Attributes:
      config: the network.
      training: batch norm takes the batch's statistics.
    """

    config: ModelConfig
    training: bool = False

    @nn.compact
    def __call__(self, features: Array) -> Array:
        x = features
        for i in range(self.config.fusionnet_layers):
            x = conv_norm_leaky(x, 3, i, self.config, self.training)
        init = nn.initializers.zeros if self.config.residual_init == "zeros" else kernel_init
        last = Conv(self.config.channels, 1, self.config, init, name="conv_out")
        return last(x[:, 0])
