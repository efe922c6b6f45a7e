"""3×3 and 3×3×3 convolutions of frames, alone or with instance norm and leaky ReLU behind them.

On accelerators these are XLA's own convolutions over the whole batch. On CPUs they loop over the
output frames, a few small ones or a band of a large one at a time, so that what lies between the
steps of a layer stays in the cache and memory does not grow with the number of frames. XLA
differentiates loops and strided slices badly, hence the explicit derivatives.

A 3-D convolution of depth D is a 2-D one of D frames joined along their channels. All functions
take maps [B, N, H, W, C_in] and a kernel [D, 3, 3, C_in, C_out], padded by reflection on H and W
and "valid" on the frame axis, and give [B, N − D + 1, H, W, C_out].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsum_jax.kernels import direct, winograd
from deepsum_jax.kernels.backend import Backend, choose
from deepsum_jax.kernels.loops import STEP_PIXELS, buffer, group_size, in_turn

Array = jax.Array
Precision = Any
Plain = Callable[[Array, Array, Precision], Array]

_FEW_CHANNELS = 3  # up to here the direct formulation is faster


class _Loop:
    """The loop over output frames: which input frames each step joins, and how it convolves."""

    def __init__(self, shape: tuple[int, ...], depth: int) -> None:
        self.batch, self.frames, self.height, self.width, self.channels = shape
        self.depth, self.left = depth, shape[1] - depth + 1
        few = depth * self.channels <= _FEW_CHANNELS
        self.method: Any = direct if few else winograd
        every = np.arange(self.batch * self.frames).reshape(self.batch, self.frames)
        first = every[:, : self.left].reshape(-1)
        step = group_size(len(first), self.height * self.width)
        # [steps, frames of a step, depth] into the B·N frames
        self.table = (first[:, None] + np.arange(depth)).reshape(-1, step, depth)
        # Rows of a band: large frames are cut into the fewest equal ones that are small enough.
        self.band = -(-self.height // -(-self.height * self.width // STEP_PIXELS))

    def join(self, x: Array, rows: Array) -> Array:
        """A step's input: [n, H, W, D·C_in]."""
        x = x.reshape(-1, self.height, self.width, self.channels)
        return jnp.concatenate([x[rows[:, k]] for k in range(self.depth)], axis=-1)

    def convolve(self, x: Array, rows: Array, u: Array, precision: Precision) -> Array:
        """A step's convolution with a transformed kernel, in float32 at least: [n, H, W, C_out]."""
        lines = x.reshape(-1, self.width, self.channels)

        def one_band(start: Array | int) -> Array:
            # The band's lines and one more on either side, reflected at the frame's edges.
            line = jnp.abs(start + np.arange(-1, self.band + 1))
            line = self.height - 1 - jnp.abs(self.height - 1 - line)
            index = rows[:, :, None] * self.height + line  # [n, depth, band + 2]
            joined = [lines[index[:, k]] for k in range(self.depth)]
            return self.method.convolve(_wide(jnp.concatenate(joined, axis=-1)), u, precision)

        bands = -(-self.height // self.band)
        if bands == 1:
            return one_band(0)

        def add_band(number: Array, y: Array) -> Array:
            start = jnp.minimum(number * self.band, self.height - self.band)  # the last may overlap
            return lax.dynamic_update_slice_in_dim(y, one_band(start), start, axis=1)

        made = jax.eval_shape(one_band, 0)
        shape = (made.shape[0], self.height, *made.shape[2:])
        return lax.fori_loop(0, bands, add_band, buffer(x, shape, made.dtype))

    def run(self, step: Callable[[Array], Any], x: Array) -> Any:
        """Every step's results, each [steps, n, …]; `step` takes its rows of the table."""
        table = jnp.asarray(self.table)
        return in_turn(lambda number: step(table[number]), len(self.table), x)

    def transform(self, kernel: Array) -> Array:
        """The kernel as the method wants it, in float32 at least."""
        return self.method.transform_kernel(_flat_kernel(_wide(kernel)))

    def transform_adjoint(self, du: Array) -> Array:
        """The kernel's cotangent, [D, 3, 3, C_in, C_out]."""
        return _unflat_kernel(self.method.transform_kernel_adjoint(du), self.depth)

    def steps(self, y: Array) -> Array:
        """[B, N − D + 1, …] → [steps, n, …]."""
        return y.reshape(*self.table.shape[:2], *y.shape[2:])

    def whole(self, y: Array) -> Array:
        """[steps, n, …] → [B, N − D + 1, …]."""
        return y.reshape(self.batch, self.left, *y.shape[2:])

    def spread(self, dx: Array) -> Array:
        """Adjoint of all joins: [steps, n, H, W, D·C_in] → [B, N, H, W, C_in]."""
        if self.depth == 1:
            return self.whole(dx)
        parts = jnp.split(self.whole(dx), self.depth, axis=-1)
        placed = [
            jnp.pad(p, ((0, 0), (k, self.depth - 1 - k), (0, 0), (0, 0), (0, 0)))
            for k, p in enumerate(parts)
        ]
        return functools.reduce(jnp.add, placed)


def _flat_kernel(kernel: Array) -> Array:
    """[D, 3, 3, C_in, C_out] → [3, 3, D·C_in, C_out], as `_Loop.join` orders channels."""
    depth, _, _, channels, features = kernel.shape
    return jnp.moveaxis(kernel, 0, 2).reshape(3, 3, depth * channels, features)


def _unflat_kernel(kernel: Array, depth: int) -> Array:
    """The inverse of `_flat_kernel`."""
    return jnp.moveaxis(kernel.reshape(3, 3, depth, -1, kernel.shape[-1]), 2, 0)


def _wide(x: Array) -> Array:
    """Half precision is widened: minimal filtering would amplify its rounding, and CPUs multiply
    it no faster."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# --- the convolution alone ------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolution(
    x: Array, kernel: Array, plain: Plain, precision: Precision, backend: Backend
) -> Array:
    """Reflection-padded 3×3 (×D) convolution; see the module's head for shapes."""

    def cpu(x: Array, kernel: Array) -> Array:
        loop = _Loop(x.shape, kernel.shape[0])
        u = loop.transform(kernel)

        def step(rows: Array) -> Array:
            return loop.convolve(x, rows, u, precision).astype(x.dtype)

        return loop.whole(loop.run(step, x))

    return choose(backend, cpu, lambda x, k: plain(x, k, precision), x, kernel)


def _convolution_forward(
    x: Array, kernel: Array, plain: Plain, precision: Precision, backend: Backend
) -> tuple[Array, tuple[Array, Array]]:
    return convolution(x, kernel, plain, precision, backend), (x, kernel)


def _convolution_backward(
    plain: Plain, precision: Precision, backend: Backend, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    def cpu(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        loop = _Loop(x.shape, kernel.shape[0])
        return _loop_adjoint(loop, x, kernel, precision, lambda dy: dy, (loop.steps(dy),))

    def otherwise(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        _, pull = jax.vjp(lambda x, k: plain(x, k, precision), x, kernel)
        return pull(dy)

    return choose(backend, cpu, otherwise, *saved, dy)


def _loop_adjoint(
    loop: _Loop, x: Array, kernel: Array, precision: Precision, before: Any, parts: Any
) -> tuple[Array, Array]:
    """Cotangents of maps and kernel; `before` makes a step's dy of its parts."""
    u = loop.transform(kernel)

    def step(total: Array, args: Any) -> tuple[Array, Array]:
        rows, *rest = args
        joined, dy = _wide(loop.join(x, rows)), _wide(before(*rest))
        dx, du = loop.method.convolve_adjoint(joined, u, dy, precision)
        return total + du, dx.astype(x.dtype)

    du, dx = lax.scan(step, jnp.zeros_like(u), (jnp.asarray(loop.table), *parts))
    dk = loop.transform_adjoint(du)
    return loop.spread(dx), dk.astype(kernel.dtype)


convolution.defvjp(_convolution_forward, _convolution_backward)


# --- convolution, instance norm, leaky ReLU ---------------------------------------------------


def normalize(y: Array, epsilon: float) -> tuple[Array, Array]:
    """Every frame and map to mean 0 and variance 1 over H and W, and the inverse deviations.

    Statistics in float32 at least and in two passes: one pass would cancel on maps with a large
    offset.
    """
    wide = _wide(y)
    centred = wide - wide.mean(axis=(-3, -2), keepdims=True)
    inverse = lax.rsqrt((centred * centred).mean(axis=(-3, -2), keepdims=True) + epsilon)
    return (centred * inverse).astype(y.dtype), inverse


def _activate(normal: Array, gamma: Array, beta: Array, slope: float) -> Array:
    y = _wide(normal) * gamma + beta
    return jnp.where(y > 0, y, slope * y).astype(normal.dtype)


def _activate_adjoint(
    normal: Array, inverse: Array, dout: Array, gamma: Array, beta: Array, slope: float
) -> tuple[Array, Array, Array]:
    """Cotangents of what is normalised, and of γ and β summed per frame: [n, F]."""
    normal, dout = _wide(normal), _wide(dout)
    dy = jnp.where(normal * gamma + beta > 0, dout, slope * dout)
    along = (dy * normal).mean(axis=(-3, -2), keepdims=True)
    mean = dy.mean(axis=(-3, -2), keepdims=True)
    pixels = dy.shape[-3] * dy.shape[-2]
    dx = (gamma * inverse) * (dy - mean - normal * along)
    return dx, along[..., 0, 0, :] * pixels, mean[..., 0, 0, :] * pixels


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7, 8))
def convolution_norm_leaky(
    x: Array,
    kernel: Array,
    gamma: Array,
    beta: Array,
    plain: Plain,
    slope: float,
    epsilon: float,
    precision: Precision,
    backend: Backend,
) -> Array:
    """Convolution, instance norm with γ and β, leaky ReLU: one loop on CPUs.

    The convolution has no bias, since the norm would remove it.

    Args:
      gamma, beta: [F], float32 at least.
    """
    return _block_forward(x, kernel, gamma, beta, plain, slope, epsilon, precision, backend)[0]


def _block_forward(
    x: Array, kernel: Array, gamma: Array, beta: Array, plain: Plain,
    slope: float, epsilon: float, precision: Precision, backend: Backend,
) -> tuple[Array, tuple[Array, ...]]:  # fmt: skip
    def cpu(x: Array, kernel: Array, gamma: Array, beta: Array) -> tuple[Array, Array, Array]:
        loop = _Loop(x.shape, kernel.shape[0])
        u = loop.transform(kernel)

        def step(rows: Array) -> tuple[Array, Array, Array]:
            y = loop.convolve(x, rows, u, precision)
            normal, inverse = normalize(y, epsilon)
            out = _activate(normal, gamma, beta, slope)
            return out.astype(x.dtype), normal.astype(x.dtype), inverse

        out, normal, inverse = loop.run(step, x)
        return loop.whole(out), loop.whole(normal), loop.whole(inverse)

    def otherwise(x: Array, kernel: Array, gamma: Array, beta: Array) -> tuple[Array, Array, Array]:
        normal, inverse = normalize(plain(x, kernel, precision), epsilon)
        return _activate(normal, gamma, beta, slope), normal, inverse

    out, normal, inverse = choose(backend, cpu, otherwise, x, kernel, gamma, beta)
    return out, (x, kernel, gamma, beta, normal, inverse)


def _block_backward(
    plain: Plain, slope: float, epsilon: float, precision: Precision, backend: Backend,
    saved: tuple[Array, ...], dout: Array,
) -> tuple[Array, ...]:  # fmt: skip
    def cpu(
        x: Array, kernel: Array, gamma: Array, beta: Array, normal: Array, inverse: Array,
        dout: Array,
    ) -> tuple[Array, ...]:  # fmt: skip
        loop = _Loop(x.shape, kernel.shape[0])
        u = loop.transform(kernel)

        def step(total: Any, args: Any) -> tuple[Any, Array]:
            rows, normal, inverse, dout = args
            dy, dgamma, dbeta = _activate_adjoint(normal, inverse, dout, gamma, beta, slope)
            dx, du = loop.method.convolve_adjoint(_wide(loop.join(x, rows)), u, dy, precision)
            sums = (du, dgamma.sum(axis=0), dbeta.sum(axis=0))
            return jax.tree.map(jnp.add, total, sums), dx.astype(x.dtype)

        zeros = (jnp.zeros_like(u), *(jnp.zeros(gamma.shape, u.dtype) for _ in range(2)))
        steps = (jnp.asarray(loop.table), *(loop.steps(a) for a in (normal, inverse, dout)))
        (du, dgamma, dbeta), dx = lax.scan(step, zeros, steps)
        dk = loop.transform_adjoint(du)
        return (
            loop.spread(dx), dk.astype(kernel.dtype), dgamma.astype(gamma.dtype),
            dbeta.astype(beta.dtype),
        )  # fmt: skip

    def otherwise(
        x: Array, kernel: Array, gamma: Array, beta: Array, normal: Array, inverse: Array,
        dout: Array,
    ) -> tuple[Array, ...]:  # fmt: skip
        dy, dgamma, dbeta = _activate_adjoint(normal, inverse, dout, gamma, beta, slope)
        _, pull = jax.vjp(lambda x, k: plain(x, k, precision), x, kernel)
        dx, dk = pull(dy.astype(x.dtype))
        return (
            dx, dk, dgamma.sum(axis=(0, 1)).astype(gamma.dtype),
            dbeta.sum(axis=(0, 1)).astype(beta.dtype),
        )  # fmt: skip

    return choose(backend, cpu, otherwise, *saved, dout)


convolution_norm_leaky.defvjp(_block_forward, _block_backward)
