"""The two parametrised layers that all three sub-networks are built from."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepsum_jax import ops
from deepsum_jax.config import ModelConfig

Array = jax.Array

# Glorot normal, truncated at two standard deviations, as published.
kernel_init = nn.initializers.glorot_normal()


def apply(module: nn.Module, params: Any, *args: Any) -> Any:
    """A module applied to its own sub-tree of parameters."""
    return module.apply({"params": params}, *args)


class Conv(nn.Module):
    """Reflection-padded convolution with bias, of frames (2-D) or of a stack (3-D).

    Attributes:
      features: F_out.
      window: kernel size, (K, K) or (D, K, K); a 3-D kernel is "valid" on the frame axis.
      config: gives dtype, param_dtype and precision.
    """

    features: int
    window: tuple[int, ...]
    config: ModelConfig
    kernel_init: nn.initializers.Initializer = kernel_init

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.config.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.config.param_dtype)
        conv = ops.conv2d if len(self.window) == 2 else ops.conv3d
        dtype = self.config.dtype
        y = conv(x.astype(dtype), kernel.astype(dtype), self.config.precision)
        return y + bias.astype(dtype)


class InstanceNorm(nn.Module):
    """Instance norm of every frame and feature map, with learned scale γ and bias β."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape, dtype = (x.shape[-1],), jnp.dtype(self.config.param_dtype)
        gamma = self.param("scale", nn.initializers.ones, shape, dtype)
        beta = self.param("bias", nn.initializers.zeros, shape, dtype)
        return ops.instance_norm(x, gamma, beta)
