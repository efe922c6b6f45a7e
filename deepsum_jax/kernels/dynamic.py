"""Per-frame K×K filters over all feature maps of a frame, in two formulations.

Both take padded maps [M, H + K − 1, W + K − 1, F] and filters [M, K, K], and give the "valid"
cross-correlation [M, H, W, F].
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from deepsum_jax.kernels.backend import Backend, choose

Array = jax.Array
Precision = Any

_COLUMNS = 24  # of a block in the filters' gradient; see `_filters_adjoint`


def _grouped(padded: Array, filters: Array, precision: Precision) -> Array:
    """One grouped convolution: the frames are its channels and the feature maps its batch, since
    all maps of a frame share the filter."""
    return lax.conv_general_dilated(
        padded,
        filters[:, None],
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("CHWN", "OIHW", "CHWN"),
        feature_group_count=padded.shape[0],
        precision=precision,
    )


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


def _input_adjoint(filters: Array, cotangent: Array) -> Array:
    """Full correlation of the cotangent with the flipped filters: the padded maps' gradient."""
    edge = filters.shape[-1] - 1
    padded = jnp.pad(cotangent, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    return _shifted_sums(padded, filters[:, ::-1, ::-1])


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dynamic_convolution(
    padded: Array, filters: Array, precision: Precision, backend: Backend
) -> Array:
    """Cross-correlates every frame's maps with its own filter; see the module's head."""

    def accelerator(padded: Array, filters: Array) -> Array:
        return _grouped(padded, filters, precision)

    return choose(backend, _shifted_sums, accelerator, padded, filters)


def _forward(
    padded: Array, filters: Array, precision: Precision, backend: Backend
) -> tuple[Array, tuple[Array, Array]]:
    return dynamic_convolution(padded, filters, precision, backend), (padded, filters)


def _backward(
    precision: Precision, backend: Backend, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    def cpu(padded: Array, filters: Array, cotangent: Array) -> tuple[Array, Array]:
        size = filters.shape[-1]
        return (
            _input_adjoint(filters, cotangent),
            _filters_adjoint(padded, cotangent, size, precision),
        )

    def accelerator(padded: Array, filters: Array, cotangent: Array) -> tuple[Array, Array]:
        _, pull = jax.vjp(lambda p, f: _grouped(p, f, precision), padded, filters)
        return pull(cotangent)

    return choose(backend, cpu, accelerator, *saved, cotangent)


dynamic_convolution.defvjp(_forward, _backward)
