"""The parametrised layers that the sub-networks are built from."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from deepsum_jax.config import Compute, ModelConfig
from deepsum_jax.model import ops

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
    """

    features: int
    size: int
    compute: Compute
    kernel_init: nn.initializers.Initializer = kernel_init

    @nn.compact
    def __call__(self, x: Array) -> Array:
        cfg = self.compute
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, cfg.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), cfg.param_dtype)
        y = ops.conv2d(x.astype(cfg.dtype), kernel.astype(cfg.dtype), cfg.precision, cfg.backend)
        return y + bias.astype(cfg.dtype)


class LinearParams(nn.Module):
    """Kernel and bias of a convolution or product that another layer computes."""

    shape: tuple[int, ...]
    compute: Compute

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        dtype = self.compute.param_dtype
        kernel = self.param("kernel", kernel_init, self.shape, dtype)
        return kernel, self.param("bias", nn.initializers.zeros, self.shape[-1:], dtype)


class Norm(nn.Module):
    """Instance or batch norm, as configured, over [B, N, H, W, F].

    Instance norm takes statistics of every image alone. Batch norm takes those of the whole batch
    while training, and afterwards their running averages, which are parameters that no gradient
    of the loss moves (see `ops.track_statistics`).

    Attributes:
      training: the whole batch is at hand.
      axis_name: of the mapped device axis that the batch is spread over, if it is.
    """

    features: int
    config: ModelConfig
    compute: Compute
    training: bool = False
    axis_name: str | None = None

    def setup(self) -> None:
        shape, dtype = (self.features,), self.compute.param_dtype
        self.gamma = self.param("scale", nn.initializers.ones, shape, dtype)
        self.beta = self.param("bias", nn.initializers.zeros, shape, dtype)
        if self.config.norm == "batch":
            self.mean = self.param("mean", nn.initializers.zeros, shape, dtype)
            self.variance = self.param("variance", nn.initializers.ones, shape, dtype)

    def affine(self) -> tuple[Array, Array]:
        """γ and β, each [F]."""
        return self.gamma, self.beta

    def __call__(self, x: Array) -> Array:
        if self.config.norm == "instance":
            return ops.instance_norm(x, self.gamma, self.beta)
        if not self.training:
            return ops.batch_norm(x, self.gamma, self.beta, self.mean, self.variance)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = self._batch_mean(wide)
        variance = self._batch_mean((wide - mean) ** 2)
        y = ops.batch_norm(x, self.gamma, self.beta, mean, variance)
        y = ops.track_statistics(y, self.mean, lax.stop_gradient(mean))
        return ops.track_statistics(y, self.variance, lax.stop_gradient(variance))

    def _batch_mean(self, x: Array) -> Array:
        """Mean per feature over the batch, all devices' shares of it: [B, N, H, W, F] → [F]."""
        mean = x.mean(axis=(0, 1, 2, 3))
        return mean if self.axis_name is None else lax.pmean(mean, self.axis_name)


def is_statistic(path: Any) -> bool:
    """Whether a parameter's path ends in one of batch norm's running statistics."""
    return path[-1].key in ("mean", "variance")


def conv_norm_leaky(
    x: Array, depth: int, index: int, config: ModelConfig, compute: Compute, norm: Norm
) -> Array:
    """Layer `index` of SISRNet or FusionNet: 3×3 (×depth) convolution, norm, leaky ReLU.

    To be called inside a compact module, which gets the sub-tree `conv{index}`.
    The published network has a bias in these convolutions; the norm removes it from every result,
    so it is kept among the parameters and not computed with.

    Args:
      x: [B, N, H, W, C_in].
      norm: the layer's.

    Returns:
      [B, N − depth + 1, H, W, F].
    """
    window = (3, 3) if depth == 1 else (depth, 3, 3)
    shape = (*window, x.shape[-1], config.features)
    kernel, _ = LinearParams(shape, compute, name=f"conv{index}")()
    kernel = kernel.reshape(depth, 3, 3, *shape[-2:]).astype(compute.dtype)
    x = x.astype(compute.dtype)
    if config.norm == "batch":
        y = ops.conv3d(x, kernel, compute.precision, compute.backend)
        return ops.leaky_relu(norm(y))
    block = functools.partial(
        ops.conv_norm_leaky, precision=compute.precision, backend=compute.backend
    )
    return (jax.checkpoint(block) if compute.rematerialize else block)(x, kernel, *norm.affine())
