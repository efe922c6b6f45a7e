"""Per-frame K×K filters over all feature maps of a frame, for CPUs.

Maps [M, H, W, F], H and W > K // 2, and filters [M, K, K] give the cross-correlation
[M, H, W, F] of the maps padded by reflection, a few frames at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsum_jax.kernels.backend import Backend, choose
from deepsum_jax.kernels.loops import group_size, in_turn
from deepsum_jax.kernels.padding import reflect_adjoint

Array = jax.Array
Precision = Any

_COLUMNS = 24  # of a block in the filters' gradient; see `_filters_adjoint`


def _shifted_sums(padded: Array, filters: Array) -> Array:
    """K² multiply-adds of shifted views, which XLA's CPU compiler fuses into loops over F.

    The barrier after each row of taps keeps a loop's operands few enough for the registers.
    """
    size = filters.shape[-1]
    height, width = padded.shape[1] - size + 1, padded.shape[2] - size + 1
    out = jnp.zeros((), padded.dtype)
    for i in range(size):
        rows = padded[:, i : i + height]
        taps = filters[:, i, :, None, None, None]
        out = out + sum(taps[:, j] * rows[:, :, j : j + width] for j in range(size))
        out = lax.optimization_barrier(out)
    return out


class _Frames:
    """The steps over frames [M, H, W, F], and how a step fetches its frames with a border."""

    def __init__(self, x: Array, size: int) -> None:
        self.frames, self.height, self.width, _ = x.shape
        self.size = size
        self.group = group_size(self.frames, self.height * self.width)
        self.steps = self.frames // self.group

    def own(self, x: Array, step: Array) -> Array:
        """[M, …] → a step's [n, …]."""
        return lax.dynamic_slice_in_dim(x, step * self.group, self.group)

    def whole(self, x: Array) -> Array:
        """[steps, n, …] → [M, …]."""
        return x.reshape(self.frames, *x.shape[2:])

    def fetch(self, x: Array, step: Array, rows: np.ndarray, cols: np.ndarray) -> Array:
        """A step's frames at these rows and columns.

        Rows are fetched by one index over all frames: a slice of the frames XLA would merge into
        every tap that reads it.
        """
        frames = step * self.group + np.arange(self.group)
        lines = x.reshape(-1, *x.shape[2:])
        return lines[frames[:, None] * self.height + rows][:, :, cols]

    def reflected(self, x: Array, step: Array) -> Array:
        """A step's frames padded for "valid" filters."""
        rows, cols = (
            np.pad(np.arange(n), self.size // 2, mode="reflect") for n in (self.height, self.width)
        )
        return self.fetch(x, step, rows, cols)

    def surrounded(self, x: Array, step: Array) -> Array:
        """A step's frames amid zeros, for "full" filters."""
        edge = self.size - 1
        rows, cols = np.arange(-edge, self.height + edge), np.arange(-edge, self.width + edge)
        inside = ((rows >= 0) & (rows < self.height))[:, None] & (cols >= 0) & (cols < self.width)
        nearest = np.clip(rows, 0, self.height - 1), np.clip(cols, 0, self.width - 1)
        return jnp.where(inside[..., None], self.fetch(x, step, *nearest), 0)


def _filters_adjoint(padded: Array, cotangent: Array, size: int, precision: Precision) -> Array:
    """The filters' gradient, dw[i, j] = Σ_yxf g(y, x, f) · in(y + i, x + j, f).

    K² reductions would each read everything once. Instead, columns are multiplied with columns:
    for blocks of 24 columns the products of every column of g with every column of the input, of
    which the diagonals x, x + j are the wanted sums. That computes about 3.6 (K = 9) times as
    much as is wanted, at the full speed of a matrix product.
    """
    _, height, width, features = cotangent.shape
    blocks = -(-width // _COLUMNS)
    extra = blocks * _COLUMNS - width
    span = _COLUMNS + size - 1  # input columns that a block meets

    def one_frame(args: tuple[Array, Array]) -> Array:
        x, g = (jnp.pad(a, ((0, 0), (0, extra), (0, 0))) for a in args)
        g = g.reshape(height, blocks, _COLUMNS, features).transpose(1, 2, 0, 3)
        g = g.reshape(blocks, _COLUMNS, height * features)
        x = jnp.stack([x[:, b * _COLUMNS : b * _COLUMNS + span] for b in range(blocks)])
        x = x.transpose(0, 2, 1, 3)  # [blocks, span, H + K − 1, F]
        rows = []
        for i in range(size):
            shifted = x[:, :, i : i + height].reshape(blocks, span, height * features)
            rows.append(jnp.einsum("bxk,bzk->xz", g, shifted, precision=precision))
        products = jnp.stack(rows)  # [K, columns, span]
        # Padding every row by one entry turns diagonals into columns.
        skewed = jnp.pad(products.reshape(size, -1), ((0, 0), (0, _COLUMNS)))
        return skewed.reshape(size, _COLUMNS, span + 1)[:, :, :size].sum(axis=1)

    return lax.map(one_frame, (padded, cotangent))


def _cpu(x: Array, filters: Array) -> Array:
    loop = _Frames(x, filters.shape[-1])

    def step(number: Array) -> Array:
        return _shifted_sums(loop.reflected(x, number), loop.own(filters, number))

    return loop.whole(in_turn(step, loop.steps, x))


def _cpu_adjoint(x: Array, filters: Array, dy: Array, precision: Precision) -> tuple[Array, Array]:
    loop = _Frames(x, filters.shape[-1])

    def step(number: Array) -> tuple[Array, Array]:
        # The padded maps' cotangent: "full" correlation with the flipped filters.
        flipped = loop.own(filters, number)[:, ::-1, ::-1]
        dpadded = _shifted_sums(loop.surrounded(dy, number), flipped)
        padded, own = loop.reflected(x, number), loop.own(dy, number)
        return dpadded, _filters_adjoint(padded, own, loop.size, precision)

    dpadded, dfilters = in_turn(step, loop.steps, dy)
    return reflect_adjoint(loop.whole(dpadded), loop.size // 2), loop.whole(dfilters)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def dynamic_convolution(
    x: Array, filters: Array, plain: Callable[..., Array], precision: Precision, backend: Backend
) -> Array:
    """Cross-correlates every frame's maps with its own filter; see the module's head."""
    return choose(backend, _cpu, lambda x, f: plain(x, f, precision), x, filters)


def _forward(
    x: Array, filters: Array, plain: Callable[..., Array], precision: Precision, backend: Backend
) -> tuple[Array, tuple[Array, Array]]:
    return dynamic_convolution(x, filters, plain, precision, backend), (x, filters)


def _backward(
    plain: Callable[..., Array], precision: Precision, backend: Backend,
    saved: tuple[Array, Array], dy: Array,
) -> tuple[Array, Array]:  # fmt: skip
    def cpu(x: Array, filters: Array, dy: Array) -> tuple[Array, Array]:
        return _cpu_adjoint(x, filters, dy, precision)

    def transposed(x: Array, filters: Array, dy: Array) -> tuple[Array, Array]:
        _, pull = jax.vjp(lambda x, f: plain(x, f, precision), x, filters)
        return pull(dy)

    return choose(backend, cpu, transposed, *saved, dy)


dynamic_convolution.defvjp(_forward, _backward)
