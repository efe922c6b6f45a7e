"""Reflection padding of H and W by index, and its adjoint.

By index, every row and then every column is fetched once, which XLA's CPU compiler runs at memory
speed and does not merge into what reads the result; its own `jnp.pad` it would evaluate anew, with
all its branches, for every tap that reads a pixel. Accelerators get `jnp.pad`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from deepsum_jax.kernels.backend import Backend, choose

Array = jax.Array


def reflect_by_index(x: Array, pad: int) -> Array:
    """[..., H, W, F] → [..., H + 2·pad, W + 2·pad, F]; H, W > pad."""
    rows, cols = (np.pad(np.arange(n), pad, mode="reflect") for n in x.shape[-3:-1])
    return x[..., rows, :, :][..., cols, :]


def reflect_rows(x: Array) -> Array:
    """One row more on either side: [n, H, W, F] → [n, H + 2, W, F]."""
    return x[:, np.pad(np.arange(x.shape[1]), 1, mode="reflect")]


def reflect_adjoint(dx: Array, pad: int) -> Array:
    """Adjoint of `reflect_by_index`: border values go back to where they came from,
    [..., H + 2·pad, W + 2·pad, F] → [..., H, W, F]."""
    return _fold(_fold(dx, pad, dx.ndim - 3), pad, dx.ndim - 2)


def _fold(dx: Array, pad: int, axis: int) -> Array:
    """One axis of `reflect_adjoint`: every value, and those of its up to two mirror images."""
    size = dx.shape[axis] - 2 * pad
    at = np.arange(size)
    folded = jnp.take(dx, pad + at, axis=axis)
    for mirror in (pad - at, pad + 2 * (size - 1) - at):
        border = (mirror >= 0) & (mirror < dx.shape[axis])
        border &= (mirror < pad) | (mirror >= pad + size)
        image = jnp.take(dx, np.where(border, mirror, 0), axis=axis)
        shape = [1] * dx.ndim
        shape[axis] = size
        folded = folded + jnp.where(border.reshape(shape), image, 0)
    return folded


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def reflect(x: Array, pad: int, plain: Callable[..., Array], backend: Backend) -> Array:
    """Pads H and W of [..., H, W, F] by reflection about the border pixels' centres."""
    return choose(backend, lambda x: reflect_by_index(x, pad), lambda x: plain(x, pad), x)


def _forward(
    x: Array, pad: int, plain: Callable[..., Array], backend: Backend
) -> tuple[Array, None]:
    return reflect(x, pad, plain, backend), None


def _backward(
    pad: int, plain: Callable[..., Array], backend: Backend, _: None, dx: Array
) -> tuple[Array]:
    def transposed(dx: Array) -> Array:
        shape = (*dx.shape[:-3], dx.shape[-3] - 2 * pad, dx.shape[-2] - 2 * pad, dx.shape[-1])
        x = jax.ShapeDtypeStruct(shape, dx.dtype)
        return jax.linear_transpose(lambda x: plain(x, pad), x)(dx)[0]

    return (choose(backend, lambda dx: reflect_adjoint(dx, pad), transposed, dx),)


reflect.defvjp(_forward, _backward)
