"""Mutual inpainting of [B, N, H, W, F] under masks [B, N, H, W, 1], for CPUs.

The donor image is one gather on CPUs: a chain of N selections would make XLA's compiler evaluate
whatever computes the frames anew for each of them. On accelerators the chain is cheap, and
gathers are not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from deepsum_jax.kernels.backend import Backend, choose

Array = jax.Array


def _donors(masks: Array) -> tuple[Array, Array]:
    """Who gives at each pixel, [B, 1, H, W, 1] int32, and who takes, [B, N, H, W, 1] bool."""
    donor = jnp.argmax(masks, axis=1, keepdims=True).astype(jnp.int32)
    return donor, ~masks & masks.any(axis=1, keepdims=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def fill_from_donors(
    x: Array, masks: Array, plain: Callable[..., Array], backend: Backend
) -> Array:
    """Every pixel that a mask hides from the first frame that is reliable there, if any is."""

    def cpu(x: Array, masks: Array) -> Array:
        donor, fill = _donors(masks)
        return jnp.where(fill, jnp.take_along_axis(x, donor, axis=1), x)

    return choose(backend, cpu, plain, x, masks)


def _forward(
    x: Array, masks: Array, plain: Callable[..., Array], backend: Backend
) -> tuple[Array, Array]:
    return fill_from_donors(x, masks, plain, backend), masks


def _backward(
    plain: Callable[..., Array], backend: Backend, masks: Array, dy: Array
) -> tuple[Array, None]:
    donor, fill = _donors(masks)
    given = jnp.where(fill, dy, 0).sum(axis=1, keepdims=True)  # what all takers owe the donor
    frames = jnp.arange(masks.shape[1], dtype=jnp.int32).reshape(1, -1, 1, 1, 1)
    return jnp.where(fill, 0, dy) + jnp.where(frames == donor, given, 0), None


fill_from_donors.defvjp(_forward, _backward)
