"""3×3 convolution of a few frames with few channels, for CPUs.

Nine shifted views side by side, [pixels, 9·C_in], times the kernel as a matrix. With a channel or
two the views are small, where minimal filtering would move more than it saves. The functions are
those of `winograd`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepsum_jax.kernels.padding import reflect_rows

Array = jax.Array
Precision = Any


def transform_kernel(kernel: Array) -> Array:
    """[3, 3, C_in, C_out] → [9·C_in, C_out]."""
    return kernel.reshape(-1, kernel.shape[-1])


def transform_kernel_adjoint(du: Array) -> Array:
    """[9·C_in, C_out] → [3, 3, C_in, C_out]."""
    return du.reshape(3, 3, -1, du.shape[-1])


def _views(x: Array) -> Array:
    """[n, h + 2, W, C] → [n, h, W, 9·C]."""
    height, width = x.shape[1] - 2, x.shape[2]
    x = x[:, :, np.pad(np.arange(width), 1, mode="reflect")]
    views = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(views, axis=-1)


def convolve(x: Array, u: Array, precision: Precision) -> Array:
    """Convolution of rows, one more on either side: [n, h + 2, W, C_in] with a kernel as a matrix
    → [n, h, W, C_out]."""
    return jnp.einsum("nyxc,cf->nyxf", _views(x), u, precision=precision)


def convolve_adjoint(x: Array, u: Array, dy: Array, precision: Precision) -> tuple[Array, Array]:
    """Cotangents of whole frames `x` [n, H, W, C_in] and of `u`."""
    views, pull = jax.vjp(lambda x: _views(reflect_rows(x)), x)
    du = jnp.einsum("nyxc,nyxf->cf", views, dy, precision=precision)
    (dx,) = pull(jnp.einsum("nyxf,cf->nyxc", dy, u, precision=precision))
    return dx, du
