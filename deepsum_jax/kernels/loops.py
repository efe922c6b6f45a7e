"""Loops of the CPU formulations: a few frames at a time, into a buffer.

XLA's CPU compiler merges whatever is elementwise into whoever reads it, however often that is
read, and drops optimization barriers first. A loop is a border that it keeps: what goes in and
what comes out is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

STEP_PIXELS = 12_288  # that a step should have, for what it touches to stay in the cache


def group_size(frames: int, pixels: int) -> int:
    """How many frames of so many pixels make a step; divides `frames`."""
    most = max(1, STEP_PIXELS // pixels)
    return max(n for n in range(1, min(frames, most) + 1) if frames % n == 0)


def buffer(x: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Room for results that are made of `x`.

    What it holds at first is of no importance, except that it comes from `x`: room full of zeros
    XLA would set up, and hold, from the start of the program on.
    """
    return jnp.broadcast_to(x[(0,) * x.ndim].astype(dtype), shape)


def in_turn(step: Callable[[Array], Any], count: int, x: Array) -> Any:
    """[step(0), step(1), …] stacked, as by `lax.map`, made of `x`."""

    def add_step(number: Array, made: Any) -> Any:
        return jax.tree.map(
            lambda every, one: lax.dynamic_update_index_in_dim(every, one, number, 0),
            made,
            step(number),
        )

    results = jax.eval_shape(step, jnp.int32(0))
    buffers = jax.tree.map(lambda r: buffer(x, (count, *r.shape), r.dtype), results)
    return lax.fori_loop(0, count, add_step, buffers)
