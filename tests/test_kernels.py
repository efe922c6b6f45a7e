"""Every formulation of an operator gives the same values and gradients, in float64."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deepsum_jax.config import Backend
from deepsum_jax.kernels import winograd
from deepsum_jax.model import ops

Array = jax.Array


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def _numbers(*shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]


def _values_and_gradients(function: Callable[..., Array], *args: Array) -> Any:
    def weighted(*args: Array) -> tuple[Array, Array]:
        out = function(*args)
        weights = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        return (out * weights).sum(), out

    places = tuple(range(len(args)))
    gradients, out = jax.jit(jax.grad(weighted, argnums=places, has_aux=True))(*args)
    return out, gradients


def _textbook(x: Array, kernel: Array) -> Array:
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    return lax.conv_general_dilated(
        padded, kernel, (1, 1, 1), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def _assert_close(found: Any, expected: Any, tolerance: float = 1e-11) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


CASES: list[tuple[tuple[int, ...], Backend]] = [
    # B, N, H, W, C_in, C_out, depth
    ((1, 2, 2, 2, 4, 3, 1), "cpu"),
    ((1, 3, 5, 7, 1, 4, 1), "cpu"),
    ((2, 4, 8, 11, 2, 3, 3), "cpu"),
    ((1, 3, 4, 3, 1, 2, 3), "cpu"),
    ((1, 7, 48, 49, 4, 4, 1), "cpu"),  # more than one step of the loop
    ((1, 4, 131, 100, 2, 2, 3), "cpu"),  # bands of a frame, the last one overlapping
    ((2, 1, 9, 6, 5, 2, 1), "accelerator"),
    ((2, 3, 5, 4, 2, 3, 3), "accelerator"),
    ((1, 3, 5, 4, 2, 3, 3), "auto"),
    ((2, 1, 9, 6, 5, 2, 1), "plain"),
    ((2, 3, 5, 4, 2, 3, 3), "plain"),
]


@pytest.mark.parametrize(("shape", "backend"), CASES)
def test_convolution(shape: tuple[int, ...], backend: Backend) -> None:
    b, n, h, w, c, f, d = shape
    x, kernel = _numbers((b, n, h, w, c), (d, 3, 3, c, f))
    expected = _values_and_gradients(_textbook, x, kernel)
    found = _values_and_gradients(lambda x, k: ops.conv3d(x, k, "highest", backend), x, kernel)
    _assert_close(found, expected)


@pytest.mark.parametrize(("shape", "backend"), CASES)
def test_block(shape: tuple[int, ...], backend: Backend) -> None:
    b, n, h, w, c, f, d = shape
    x, kernel, gamma, beta = _numbers((b, n, h, w, c), (d, 3, 3, c, f), (f,), (f,))
    gamma = gamma.at[0].set(0.0)  # nothing may be divided by a scale

    def textbook(x: Array, kernel: Array, gamma: Array, beta: Array) -> Array:
        y = _textbook(x, kernel)
        mean = y.mean(axis=(2, 3), keepdims=True)
        variance = y.var(axis=(2, 3), keepdims=True)
        y = gamma * (y - mean) / jnp.sqrt(variance + 1e-3) + beta
        return jnp.where(y > 0, y, 0.2 * y)

    expected = _values_and_gradients(textbook, x, kernel, gamma, beta)
    block = functools.partial(ops.conv_norm_leaky, precision="highest", backend=backend)
    found = _values_and_gradients(block, x, kernel, gamma, beta)
    _assert_close(found, expected, 1e-9)


@pytest.mark.parametrize("backend", ["cpu", "accelerator", "plain"])
@pytest.mark.parametrize("shape", [(2, 3, 9, 8, 4, 5), (1, 2, 11, 53, 3, 9)])
def test_dynamic_convolution(shape: tuple[int, ...], backend: Backend) -> None:
    b, m, h, w, f, k = shape
    x, filters = _numbers((b, m, h, w, f), (b, m, k, k))

    def textbook(x: Array, filters: Array) -> Array:
        r = k // 2
        padded = jnp.pad(x, ((0, 0), (0, 0), (r, r), (r, r), (0, 0)), mode="reflect")
        return sum(
            filters[:, :, i, j, None, None, None] * padded[:, :, i : i + h, j : j + w]
            for i in range(k)
            for j in range(k)
        )  # type: ignore[return-value]

    expected = _values_and_gradients(textbook, x, filters)
    found = _values_and_gradients(
        lambda x, f: ops.global_dynamic_convolution(x, f, "highest", backend), x, filters
    )
    _assert_close(found, expected)


# --- the plain definitions against the others, whichever operators there are


def _masks(*shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(1).random(shape) < 0.5)


X, MAPS = (2, 4, 9, 7, 3), (2, 3, 9, 8, 4)
OPERATORS: dict[str, list[tuple[Callable[..., Array], list[tuple[int, ...]]]]] = {
    # Per operator: calls of it, and the shapes of what they are differentiated by.
    "reflect_pad": [
        (lambda x, backend: ops.reflect_pad(x, 1, backend), [X]),
        (lambda x, backend: ops.reflect_pad(x, 4, backend), [X]),
    ],
    "conv2d": [
        (lambda x, k, backend: ops.conv2d(x, k, backend=backend), [X, (3, 3, 3, 5)]),
        (lambda x, k, backend: ops.conv2d(x, k, backend=backend), [X, (1, 1, 3, 5)]),
    ],
    "conv3d": [
        (lambda x, k, backend: ops.conv3d(x, k, backend=backend), [X, (d, 3, 3, 3, 5)])
        for d in (1, 3)
    ],
    "conv_norm_leaky": [
        (
            lambda x, k, g, b, backend: ops.conv_norm_leaky(x, k, g, b, backend=backend),
            [X, (d, 3, 3, 3, 5), (5,), (5,)],
        )
        for d in (1, 3)
    ],
    "global_dynamic_convolution": [
        (
            lambda x, f, backend: ops.global_dynamic_convolution(x, f, backend=backend),
            [MAPS, (2, 3, k, k)],
        )
        for k in (1, 5, 9)
    ],
    "window_means": [
        (lambda x, backend: ops.window_means(x, 1, backend), [X]),
        (lambda x, backend: ops.window_means(x, 5, backend), [X]),
    ],
    "mutual_inpainting": [
        (lambda x, backend: ops.mutual_inpainting(x, _masks(*X[:4], 1), backend), [X]),
    ],
}


def test_every_operator_is_compared() -> None:
    chosen = {
        name
        for name, function in inspect.getmembers(ops, inspect.isfunction)
        if name[0] != "_" and "backend" in inspect.signature(function).parameters
    }
    assert chosen == set(OPERATORS)


@pytest.mark.parametrize("backend", ["cpu", "accelerator", "auto"])
@pytest.mark.parametrize(
    ("operator", "case"), [(n, c) for n, cases in OPERATORS.items() for c in range(len(cases))]
)
def test_plain_definition(operator: str, case: int, backend: Backend) -> None:
    """The same values and gradients, though one has derivatives of its own."""
    function, shapes = OPERATORS[operator][case]
    args = _numbers(*shapes)
    plain = _values_and_gradients(functools.partial(function, backend="plain"), *args)
    found = _values_and_gradients(functools.partial(function, backend=backend), *args)
    assert all(float(jnp.abs(part).max()) > 1e-3 for part in jax.tree.leaves(plain))
    _assert_close(found, plain, 1e-9 if operator == "conv_norm_leaky" else 1e-11)


def test_plain_definitions_know_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by name: what is there would fail when called."""
    monkeypatch.setattr(ops, "kernels", object())
    for cases in OPERATORS.values():
        for function, shapes in cases:
            function(*_numbers(*shapes), backend="plain")


def test_minimal_filtering_is_as_accurate_as_a_direct_convolution() -> None:
    x, kernel = _numbers((1, 1, 24, 24, 64), (1, 3, 3, 64, 64))
    exact = np.asarray(_textbook(x, kernel))
    x32, kernel32 = x.astype(jnp.float32), kernel.astype(jnp.float32)

    def error(backend: Backend) -> float:
        found = np.asarray(ops.conv3d(x32, kernel32, "highest", backend), np.float64)
        return float(np.abs(found - exact).max() / np.abs(exact).max())

    assert error("cpu") < 2e-6
    assert error("cpu") < 10 * error("accelerator")


def test_half_precision_is_widened_inside() -> None:
    x, kernel = (a.astype(jnp.bfloat16) for a in _numbers((1, 1, 9, 9, 8), (1, 3, 3, 8, 8)))
    found = ops.conv3d(x, kernel, "highest", "cpu")
    assert found.dtype == jnp.bfloat16
    exact = np.asarray(_textbook(x.astype(jnp.float64), kernel.astype(jnp.float64)))
    error = np.abs(np.asarray(found, np.float64) - exact).max() / np.abs(exact).max()
    assert error < 2**-8  # one rounding of the result


def test_interpolation_reproduces_the_definition() -> None:
    """y = A·((G·k) ∘ (B·d)) is the correlation of six samples with three taps."""
    rng = np.random.default_rng(1)
    d, k = rng.standard_normal(6), rng.standard_normal(3)
    y = winograd._A @ ((winograd._G @ k) * (winograd._B @ d))
    np.testing.assert_allclose(y, [d[i : i + 3] @ k for i in range(4)], atol=1e-12)
