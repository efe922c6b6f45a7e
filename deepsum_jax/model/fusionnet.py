"""FusionNet: slow fusion of the registered frames by 3-D convolutions (slides, "FusionNet")."""

from __future__ import annotations

import flax.linen as nn
import jax

from deepsum_jax.config import Compute, ModelConfig
from deepsum_jax.model.layers import Conv, Norm, conv_norm_leaky, kernel_init

Array = jax.Array


class FusionNet(nn.Module):
    """(N − 1)/2 × [3×3×3 convolution → norm → leaky ReLU], then 1×1×1 to C channels.

    Each layer takes two frames away; instance norm works on every remaining frame by itself.
    Call with features [B, N, H, W, F]; returns the residual [B, H, W, C].

    Attributes:
      config: the network.
      compute: what it computes with.
      training, axis_name: batch norm takes the batch's statistics; see `layers.Norm`.
    """

    config: ModelConfig
    compute: Compute = Compute()
    training: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: Array) -> Array:
        cfg, x = self.config, features
        for i in range(cfg.fusionnet_layers):
            norm = Norm(
                cfg.features, cfg, self.compute, self.training, self.axis_name, name=f"norm{i}"
            )
            x = conv_norm_leaky(x, 3, i, cfg, self.compute, norm)
        init = nn.initializers.zeros if cfg.residual_init == "zeros" else kernel_init
        return Conv(cfg.channels, 1, self.compute, init, name="conv_out")(x[:, 0])
