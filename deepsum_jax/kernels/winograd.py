"""3×3 convolution of a few frames by minimal filtering, for CPUs.

F(4, 3) along W only: four output columns are interpolated from six products of six input columns
(Winograd 1980), instead of twelve. The three kernel rows are left to one matrix product

    [6 | rows·tiles, C_in] · [6 | C_in, 3·C_out]        (6 is a batch axis)

whose three column blocks are then added, shifted by a row each. A layer so costs 4.5·C_in·C_out
multiplications a pixel instead of 9, all in products large enough for full speed. A second
dimension, F(2×2, 3×3), would save little more and moves as much memory.

The points 0, ±5/8, ±3/2, ∞ keep the rounding error at that of a direct convolution in float32
(about 6e-7 of the largest value); the customary 0, ±1, ±2, ∞ would not.

Maps are [n, H, W, C], H, W ≥ 2, any parity, padded by reflection: along W here, along H by whoever
chooses the rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsum_jax.kernels.padding import reflect_adjoint, reflect_rows

Array = jax.Array
Precision = Any

_TILE = 4  # output columns of a tile
_POINTS = _TILE + 2  # input columns of a tile, and products


def _toom_cook(points: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B, G, A of F(m, 3) over given points and ∞: y = A·((G·kernel) ∘ (B·input))."""
    p = np.asarray(points, np.float64)

    def powers(count: int) -> np.ndarray:
        return np.vstack([p[:, None] ** np.arange(count), np.eye(count)[-1:]])

    # Row i of B is scaled by Π(p_i − p_j), which makes its coefficients fewer and rounder; G takes
    # the inverse factor.
    scale = np.array([np.prod(p[i] - np.delete(p, i)) for i in range(len(p))] + [1.0])[:, None]
    b = np.round(np.linalg.inv(powers(len(p) + 1)).T * scale, 12)
    return b, powers(3) / scale, powers(len(p) - 1).T


_B, _G, _A = _toom_cook([0.0, 0.625, -0.625, 1.5, -1.5])


def _combine(matrix: np.ndarray, terms: Sequence[Array]) -> list[Array]:
    """The linear combinations `matrix @ terms`, written out without the zeros."""
    return [
        functools.reduce(jnp.add, [t * np.asarray(c, t.dtype) for c, t in zip(row, terms) if c])
        for row in matrix
    ]


def _product(a: Array, b: Array, axes: tuple[int, int], precision: Precision) -> Array:
    """Product over one axis of each, batched over the leading axis of both."""
    dimensions = (((axes[0],), (axes[1],)), ((0,), (0,)))
    return lax.dot_general(a, b, dimensions, precision=precision)


def _tiles(width: int) -> int:
    return -(-width // _TILE)


def transform_kernel(kernel: Array) -> Array:
    """[3, 3, C_in, C_out] → [6, C_in, 3·C_out]."""
    g = jnp.asarray(_G, kernel.dtype)
    u = jnp.einsum("pj,ijcf->pcif", g, kernel, precision=lax.Precision.HIGHEST)
    return u.reshape(_POINTS, kernel.shape[2], -1)


def transform_kernel_adjoint(du: Array) -> Array:
    """[6, C_in, 3·C_out] → [3, 3, C_in, C_out]."""
    g = jnp.asarray(_G, du.dtype)
    du = du.reshape(*du.shape[:2], 3, -1)
    return jnp.einsum("pj,pcif->ijcf", g, du, precision=lax.Precision.HIGHEST)


def _transform_input(x: Array) -> Array:
    """[n, h + 2, W, C] → [6, n·(h + 2)·tiles, C], reflected columns included."""
    tiles, width, channels = _tiles(x.shape[2]), x.shape[2], x.shape[3]
    columns = np.pad(np.arange(width), 1, mode="reflect")
    # Beyond the last column anything finite will do: what it makes is cut off.
    columns = np.pad(columns, (0, (tiles + 1) * _TILE - width - 2), mode="edge")
    x = x[:, :, columns].reshape(*x.shape[:2], tiles + 1, _TILE, channels)
    terms = [x[:, :, :-1, j] for j in range(_TILE)] + [x[:, :, 1:, j] for j in range(2)]
    return jnp.stack(_combine(_B, terms)).reshape(_POINTS, -1, channels)


def _transform_input_adjoint(dv: Array, shape: tuple[int, ...]) -> Array:
    """[6, n·(H + 2)·tiles, C] → [n, H, W, C] = shape."""
    n, height, width, channels = shape
    tiles = _tiles(width)
    columns = _combine(_B.T, list(dv.reshape(_POINTS, n, height + 2, tiles, channels)))

    def placed(column: Array, tile: int) -> Array:
        return jnp.pad(column, ((0, 0), (0, 0), (tile, 1 - tile), (0, 0)))

    joined = [placed(c, 0) for c in columns[:_TILE]]
    for j in range(2):  # the last two columns lie in the next tile
        joined[j] = joined[j] + placed(columns[_TILE + j], 1)
    dx = jnp.stack(joined, 3).reshape(n, height + 2, (tiles + 1) * _TILE, channels)
    return reflect_adjoint(dx[:, :, : width + 2], 1)


def _transform_output(z: Array, shape: tuple[int, ...]) -> Array:
    """[6, n·(h + 2)·tiles, 3·C_out] → [n, h, W, C_out]; `shape` is the input's."""
    n, height, width, _ = shape
    z = z.reshape(_POINTS, n, height, _tiles(width), 3, -1)
    z = z[:, :, :-2, :, 0] + z[:, :, 1:-1, :, 1] + z[:, :, 2:, :, 2]
    # Joined along the channels, where runs are long.
    y = jnp.concatenate(_combine(_A, list(z)), axis=-1)
    return y.reshape(n, height - 2, _tiles(width) * _TILE, -1)[:, :, :width]


def _transform_output_adjoint(dy: Array) -> Array:
    """[n, H, W, C_out] → [6, n·(H + 2)·tiles, 3·C_out]."""
    n, height, width, features = dy.shape
    tiles = _tiles(width)
    dy = jnp.pad(dy, ((0, 0), (0, 0), (0, tiles * _TILE - width), (0, 0)))
    dy = dy.reshape(n, height, tiles, _TILE, features)
    dz = jnp.stack(_combine(_A.T, [dy[:, :, :, j] for j in range(_TILE)]))
    rows = [jnp.pad(dz, ((0, 0), (0, 0), (i, 2 - i), (0, 0), (0, 0))) for i in range(3)]
    return jnp.stack(rows, 4).reshape(_POINTS, -1, 3 * features)


def convolve(x: Array, u: Array, precision: Precision) -> Array:
    """Convolution of rows, one more on either side: [n, h + 2, W, C_in] with a transformed kernel
    → [n, h, W, C_out]."""
    return _transform_output(_product(_transform_input(x), u, (2, 1), precision), x.shape)


def convolve_adjoint(x: Array, u: Array, dy: Array, precision: Precision) -> tuple[Array, Array]:
    """Cotangents of whole frames `x` [n, H, W, C_in] and of `u`. The transformed cotangent serves
    both products."""
    v, dz = _transform_input(reflect_rows(x)), _transform_output_adjoint(dy)
    dx = _transform_input_adjoint(_product(dz, u, (2, 2), precision), x.shape)
    return dx, _product(v, dz, (1, 1), precision)
