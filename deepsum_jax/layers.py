"""The parametrised layers that the sub-networks are built from."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax

from deepsum_jax import ops
from deepsum_jax.config import ModelConfig

Array = jax.Array

# Glorot normal, truncated at two standard deviations, as published.
kernel_init = nn.initializers.glorot_normal()


def apply(module: nn.Module, params: Any, *args: Any) -> Any:
    """A module applied to its own sub-tree of parameters."""
    return module.apply({"params": params}, *args)


class Conv(nn.Module):
    """Reflection-padded 2-D convolution with bias: [..., H, W, C_in] → [..., H, W, F_out].

    Attributes:
      features: F_out.
      size: side of the kernel, 3 or 1.
      config: gives dtype, param_dtype, precision and backend.
    """

    features: int
    size: int
    config: ModelConfig
    kernel_init: nn.initializers.Initializer = kernel_init

    @nn.compact
    def __call__(self, x: Array) -> Array:
        cfg = self.config
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, cfg.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), cfg.param_dtype)
        y = ops.conv2d(x.astype(cfg.dtype), kernel.astype(cfg.dtype), cfg.precision, cfg.backend)
        return y + bias.astype(cfg.dtype)


class _ConvParams(nn.Module):
    """Kernel and bias of a convolution that another layer computes."""

    shape: tuple[int, ...]
    config: ModelConfig

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        dtype = self.config.param_dtype
        kernel = self.param("kernel", kernel_init, self.shape, dtype)
        return kernel, self.param("bias", nn.initializers.zeros, self.shape[-1:], dtype)


class _NormParams(nn.Module):
    """Scale γ and bias β of an instance norm that another layer computes."""

    features: int
    config: ModelConfig

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        shape, dtype = (self.features,), self.config.param_dtype
        gamma = self.param("scale", nn.initializers.ones, shape, dtype)
        return gamma, self.param("bias", nn.initializers.zeros, shape, dtype)


def conv_norm_leaky(x: Array, depth: int, index: int, config: ModelConfig) -> Array:
    """Layer `index` of SISRNet or FusionNet: 3×3 (×depth) convolution, instance norm, leaky ReLU.

    To be called inside a compact module, which gets the sub-trees `conv{index}` and `norm{index}`.
    The published network has a bias in these convolutions; the norm removes it from every result,
    so it is kept among the parameters and not computed with.

    Args:
      x: [B, N, H, W, C_in].

    Returns:
      [B, N − depth + 1, H, W, F].
    """
    window = (3, 3) if depth == 1 else (depth, 3, 3)
    shape = (*window, x.shape[-1], config.features)
    kernel, _ = _ConvParams(shape, config, name=f"conv{index}")()
    gamma, beta = _NormParams(config.features, config, name=f"norm{index}")()
    kernel = kernel.reshape(depth, 3, 3, *shape[-2:]).astype(config.dtype)
    block = functools.partial(
        ops.conv_norm_leaky, precision=config.precision, backend=config.backend
    )
    return (jax.checkpoint(block) if config.rematerialize else block)(
        x.astype(config.dtype), kernel, gamma, beta
    )
