"""Array functions against slow numpy loops written from their definitions."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsum_jax.config import Backend
from deepsum_jax.data import resample
from deepsum_jax.model import ops

GOLDEN = Path(os.environ.get("DEEPSUM_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
BACKENDS: tuple[Backend, ...] = ("cpu", "accelerator", "plain")

conv2d = jax.jit(ops.conv2d, static_argnames="backend")
conv3d = jax.jit(ops.conv3d, static_argnames="backend")
conv_norm_leaky = jax.jit(ops.conv_norm_leaky, static_argnames="backend")
filter_shift = jax.jit(ops.filter_shift)
global_dynamic_convolution = jax.jit(ops.global_dynamic_convolution, static_argnames="backend")
instance_norm = jax.jit(ops.instance_norm)
mutual_inpainting = jax.jit(ops.mutual_inpainting, static_argnums=2)
window_means = jax.jit(ops.window_means, static_argnames=("size", "backend"))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def mirror(i: int, n: int) -> int:
    """The index that reflection about the border pixels' centres gives to i."""
    return -i if i < 0 else 2 * (n - 1) - i if i >= n else i


# --- bicubic and nearest upsampling


def keys(t: float) -> float:
    """Keys (1981): u(t) for a = −1/2, as printed there."""
    t = abs(t)
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def slow_bicubic(frame: np.ndarray, r: int) -> np.ndarray:
    h, w = frame.shape
    out = np.zeros((r * h, r * w))
    for y, x in np.ndindex(out.shape):
        # The centre of output pixel y in input pixels, whose centres are the integers.
        cy, cx = (y + 0.5) / r - 0.5, (x + 0.5) / r - 0.5
        for j in range(int(np.floor(cy)) - 1, int(np.floor(cy)) + 3):
            for i in range(int(np.floor(cx)) - 1, int(np.floor(cx)) + 3):
                value = float(frame[min(max(j, 0), h - 1), min(max(i, 0), w - 1)])
                out[y, x] += keys(cy - j) * keys(cx - i) * value
    return out


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(7, 10), (1, 4), (2, 3)])
def test_bicubic_is_keys_sum(scale: int, shape: tuple[int, int]) -> None:
    frames = np.random.default_rng(1).uniform(-40, 900, (2, *shape))
    expected = np.stack([slow_bicubic(frame, scale) for frame in frames])
    unclipped = resample.bicubic_upsample(frames, scale, clip=False)
    assert unclipped.dtype == np.float64
    np.testing.assert_allclose(unclipped, expected, atol=1e-9)
    # Each frame is clipped to its own range, not to that of the stack.
    for frame, whole, result in zip(frames, expected, resample.bicubic_upsample(frames, scale)):
        np.testing.assert_allclose(result, whole.clip(frame.min(), frame.max()), atol=1e-9)


def test_bicubic_of_integers() -> None:
    frames = np.random.default_rng(2).integers(0, 2**16, (2, 3, 5, 6)).astype(np.uint16)
    frames[0, 0, 0], frames[0, 0, 1] = 0, 65535  # overshoots at both ends of uint16
    out = resample.bicubic_upsample(frames, 3, clip=False)
    assert out.shape == (2, 3, 15, 18) and out.dtype == np.float32
    assert out.min() < 0 and out.max() > 65535
    np.testing.assert_allclose(out[0, 0], slow_bicubic(frames[0, 0], 3), atol=0.02)
    clipped = resample.bicubic_upsample(frames, 3)
    assert clipped[0, 0].min() >= 0 and clipped[0, 0].max() <= 65535


def test_bicubic_golden() -> None:
    file = GOLDEN / "preprocessing.npz"
    if not file.exists():
        pytest.skip(f"no golden values at {file}; DEEPSUM_GOLDEN names their folder")
    golden = np.load(file)
    for clip, name in [(True, "bicubic_x3"), (False, "bicubic_x3_unclipped")]:
        out = resample.bicubic_upsample(golden["lr"].astype(np.float64), 3, clip=clip)
        np.testing.assert_allclose(out, golden[name], atol=1e-6)
        out = resample.bicubic_upsample(golden["lr"], 3, clip=clip)
        np.testing.assert_allclose(out, golden[name], rtol=3e-7)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_nearest(scale: int) -> None:
    masks = np.random.default_rng(3).random((2, 3, 4)) < 0.5
    out = resample.nearest_upsample(masks, scale)
    assert out.dtype == bool and out.shape == (2, 3 * scale, 4 * scale)
    for t, y, x in np.ndindex(out.shape):
        assert out[t, y, x] == masks[t, y // scale, x // scale]


# --- translation


@pytest.mark.parametrize("shift", [(0, 0), (2, -1), (-3, 4), (1, 0), (0, -2), (9, 1), (-1, -9)])
@pytest.mark.parametrize("fill", [None, False, True])
def test_translate(shift: tuple[int, int], fill: bool | None) -> None:
    h, w = 4, 6
    x: np.ndarray = np.random.default_rng(4).integers(0, 100, (2, h, w))
    x = x if fill is None else x > 50
    before = x.copy()
    expected = np.empty_like(x)
    for t, i, j in np.ndindex(x.shape):
        y, z = i - shift[0], j - shift[1]
        inside = 0 <= y < h and 0 <= z < w
        nearest = x[t, min(max(y, 0), h - 1), min(max(z, 0), w - 1)]
        expected[t, i, j] = nearest if inside or fill is None else fill
    out = resample.translate(x, shift, fill)
    assert out.dtype == x.dtype
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(x, before)


# --- convolutions


def slow_conv3d(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """[..., N, H, W, C] and [D, K, K, C, F] → [..., N − D + 1, H, W, F] in float64."""
    (n, h, w), (depth, size) = x.shape[-4:-1], kernel.shape[:2]
    out = np.zeros((*x.shape[:-4], n - depth + 1, h, w, kernel.shape[-1]))
    for d, i, j in np.ndindex(depth, size, size):
        rows = [mirror(y + i - size // 2, h) for y in range(h)]
        columns = [mirror(z + j - size // 2, w) for z in range(w)]
        tap = x[..., d : n - depth + 1 + d, :, :, :][..., rows, :, :][..., columns, :]
        out += tap.astype(np.float64) @ kernel[d, i, j].astype(np.float64)
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("size", "channels"), [(1, 3), (3, 1), (3, 5)])
def test_conv2d(size: int, channels: int, backend: Backend) -> None:
    x, kernel = noise(2, 2, 4, 7, channels), noise(size, size, channels, 2, seed=1)
    expected = slow_conv3d(x, kernel[None])
    out = conv2d(x, kernel, backend=backend)
    assert out.shape == (2, 2, 4, 7, 2)
    np.testing.assert_allclose(out, expected, atol=2e-5)
    one = conv2d(x[0, 0], kernel, backend=backend)
    np.testing.assert_allclose(one, expected[0, 0], atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("depth", "shape"), [(3, (2, 5, 4, 7, 3)), (2, (2, 3, 5, 3, 1)), (3, (1, 5, 80, 67, 4))]
)
def test_conv3d(depth: int, shape: tuple[int, ...], backend: Backend) -> None:
    x, kernel = noise(*shape), noise(depth, 3, 3, shape[-1], 2, seed=1)
    out = conv3d(x, kernel, backend=backend)
    assert out.shape == (shape[0], shape[1] - depth + 1, *shape[2:4], 2)
    np.testing.assert_allclose(out, slow_conv3d(x, kernel), atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_conv3d_derivatives(channels: int, backend: Backend) -> None:
    """The result is linear in x and in the kernel, so its derivatives are convolutions."""
    x, kernel = noise(2, 4, 5, 6, channels), noise(3, 3, 3, channels, 2, seed=1)
    dx, dkernel, weight = noise(*x.shape, seed=2), noise(*kernel.shape, seed=3), noise(5, 6, 2)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(ops.conv3d(x, kernel, backend=backend) * weight)

    by_x, by_kernel = gradients(x, kernel)
    assert np.sum(by_x * dx) == pytest.approx(np.sum(slow_conv3d(dx, kernel) * weight), rel=1e-4)
    expected = np.sum(slow_conv3d(x, dkernel) * weight)
    assert np.sum(by_kernel * dkernel) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("depth", "offset"), [(1, 0), (3, 0), (3, 1e3)])
def test_conv_norm_leaky(depth: int, offset: float, backend: Backend) -> None:
    """The block is what its three parts are, one after the other."""
    x, gamma, beta = norm_inputs((2, 4, 6, 7, 4), offset)
    kernel = noise(depth, 3, 3, 4, 4, seed=3)
    normal = slow_norm(slow_conv3d(x, kernel), gamma, beta, 1e-3)
    out = conv_norm_leaky(x, kernel, gamma, beta, backend=backend)
    assert out.shape == (2, 5 - depth, 6, 7, 4)
    tolerance = 1e-2 if offset else 2e-5  # float32 near 1e4 has a spacing of 1e-3
    np.testing.assert_allclose(out, np.where(normal > 0, normal, 0.2 * normal), atol=tolerance)


def test_kernels_of_other_sizes_are_refused() -> None:
    x = jnp.asarray(noise(1, 2, 6, 6, 3))
    for shape in ((5, 5, 3, 2), (3, 1, 3, 2), (3, 3, 4, 2), (3, 3, 3)):
        with pytest.raises(ValueError, match=r"kernel: found shape \("):
            ops.conv2d(x, jnp.zeros(shape))
    with pytest.raises(ValueError, match=r"expected \[3, 3, 3, 'C_out'\]"):
        ops.conv3d(x, jnp.zeros((1, 1, 1, 3, 2)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_reflect_pad(backend: Backend) -> None:
    x = noise(2, 3, 4, 2)
    out = np.asarray(ops.reflect_pad(jnp.asarray(x), 2, backend))
    assert out.shape == (2, 7, 8, 2)
    for b, y, z in np.ndindex(2, 7, 8):
        np.testing.assert_array_equal(out[b, y, z], x[b, mirror(y - 2, 3), mirror(z - 2, 4)])
    np.testing.assert_array_equal(ops.reflect_pad(jnp.asarray(x), 0, backend), x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_window_means(size: int, backend: Backend) -> None:
    x, kernel = noise(2, 3, 5, 7, 4), noise(size, size, 4, 6, seed=1)
    means = np.asarray(window_means(x, size=size, backend=backend))
    assert means.shape == (2, 3, size, size, 4)
    for i, j in np.ndindex(size, size):
        rows = [mirror(y + i - size // 2, 5) for y in range(5)]
        columns = [mirror(z + j - size // 2, 7) for z in range(7)]
        window = x[:, :, rows][..., columns, :].astype(float)
        np.testing.assert_allclose(means[:, :, i, j], window.mean((2, 3)), atol=1e-6)
    # What they are for: a convolution that is averaged over H and W.
    averaged = slow_conv3d(x, kernel[None]).mean((2, 3))
    np.testing.assert_allclose(np.einsum("bnijf,ijfo->bno", means, kernel), averaged, atol=1e-5)


# --- dynamic filters


def slow_dynamic(x: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """The double loop: every pixel's sum over the taps of its own frame's filter."""
    _, _, h, w, _ = x.shape
    size = filters.shape[-1]
    out = np.zeros(x.shape)
    for b, m, y, z in np.ndindex(x.shape[:4]):
        for i, j in np.ndindex(size, size):
            row, column = mirror(y + i - size // 2, h), mirror(z + j - size // 2, w)
            out[b, m, y, z] += float(filters[b, m, i, j]) * x[b, m, row, column].astype(float)
    return out


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        (1, (1, 2, 3, 4, 2)),
        (3, (2, 3, 4, 5, 3)),
        (5, (3, 2, 3, 8, 2)),
        (9, (2, 2, 5, 11, 3)),
        (9, (1, 1, 12, 9, 1)),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_global_dynamic_convolution(size: int, shape: tuple[int, ...], backend: Backend) -> None:
    x, filters = noise(*shape), noise(*shape[:2], size, size, seed=1)  # H or W = K//2 + 1 as well
    out = global_dynamic_convolution(x, filters, backend=backend)
    assert out.shape == shape
    np.testing.assert_allclose(out, slow_dynamic(x, filters), atol=5e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_global_dynamic_convolution_derivatives(backend: Backend) -> None:
    """The result is linear in x and in the filters, so its derivatives are dynamic convolutions."""
    x, filters = noise(2, 2, 5, 29, 3), noise(2, 2, 3, 3, seed=1)
    dx, dfilters, weight = noise(*x.shape, seed=2), noise(*filters.shape, seed=3), noise(5, 29, 3)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(x: jax.Array, filters: jax.Array) -> jax.Array:
        return jnp.sum(ops.global_dynamic_convolution(x, filters, backend=backend) * weight)

    by_x, by_filters = gradients(x, filters)
    assert np.sum(by_x * dx) == pytest.approx(np.sum(slow_dynamic(dx, filters) * weight), rel=1e-4)
    expected = np.sum(slow_dynamic(x, dfilters) * weight)
    assert np.sum(by_filters * dfilters) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-4, 4), (4, 1), (0, -1)])
def test_delta_filter_registers(shift: tuple[int, int]) -> None:
    """The delta at (4 − s_y, 4 − s_x) moves content by s, and `filter_shift` reads s off it."""
    x = noise(1, 1, 14, 17, 2)
    filters = np.zeros((1, 1, 9, 9), np.float32)
    filters[0, 0, 4 - shift[0], 4 - shift[1]] = 1
    out = np.asarray(global_dynamic_convolution(x, filters))
    for y, z in np.ndindex(6, 9):
        y, z = y + 4, z + 4
        np.testing.assert_array_equal(out[0, 0, y, z], x[0, 0, y - shift[0], z - shift[1]])
    moved = resample.translate(np.moveaxis(x[0, 0], -1, 0), shift)
    np.testing.assert_array_equal(out[0, 0, 4:-4, 4:-4, 1], moved[1, 4:-4, 4:-4])
    np.testing.assert_allclose(filter_shift(filters), [[shift]], atol=1e-6)


def test_filter_shift_is_minus_the_centroid() -> None:
    filters = np.random.default_rng(5).random((2, 3, 5, 5)).astype(np.float32)
    filters /= filters.sum((-2, -1), keepdims=True)
    expected = np.zeros((2, 3, 2))
    for b, m, i, j in np.ndindex(filters.shape):
        expected[b, m] -= filters[b, m, i, j] * np.array([i - 2, j - 2])
    np.testing.assert_allclose(filter_shift(filters), expected, atol=1e-6)


# --- mutual inpainting


def slow_inpainting(x: np.ndarray, masks: np.ndarray) -> np.ndarray:
    out = x.copy()
    for b, n, y, z in np.ndindex(x.shape[:4]):
        if not masks[b, n, y, z, 0]:
            for donor in range(x.shape[1]):
                if masks[b, donor, y, z, 0]:
                    out[b, n, y, z] = x[b, donor, y, z]
                    break
    return out


def test_inpainting_every_pattern_of_three() -> None:
    """One pixel for each of the eight patterns, nobody reliable among them."""
    patterns = np.array(list(itertools.product([False, True], repeat=3)))
    masks = patterns.T.reshape(1, 3, 2, 4, 1)
    x = noise(1, 3, 2, 4, 2)
    out = np.asarray(mutual_inpainting(x, masks))
    np.testing.assert_array_equal(out, slow_inpainting(x, masks))
    np.testing.assert_array_equal(out[:, :, 0, 0], x[:, :, 0, 0])  # nobody
    np.testing.assert_array_equal(out[0, :, 0, 1], x[0, [2] * 3, 0, 1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clear", [0.1, 0.5, 0.9])
def test_inpainting(clear: float, backend: Backend) -> None:
    masks = np.random.default_rng(6).random((3, 5, 4, 7, 1)) < clear
    x = noise(3, 5, 4, 7, 3)
    found = mutual_inpainting(x, masks, backend)
    np.testing.assert_array_equal(found, slow_inpainting(x, masks))


def test_inpainting_derivative() -> None:
    """The adjoint of a linear map: ⟨g, A·x⟩ = ⟨Aᵀ·g, x⟩, by the slow map."""
    masks = np.random.default_rng(8).random((2, 5, 4, 3, 1)) < 0.4
    x, g = noise(2, 5, 4, 3, 2), noise(2, 5, 4, 3, 2, seed=1)
    _, pull = jax.vjp(lambda x: mutual_inpainting(x, masks), jnp.asarray(x))
    adjoint = np.asarray(pull(jnp.asarray(g))[0])
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal(x.shape).astype(np.float32)
        expected = (g * slow_inpainting(x, masks)).sum(dtype=np.float64)
        np.testing.assert_allclose((adjoint * x).sum(dtype=np.float64), expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_inpainting_hides_what_lies_under_the_mask(bad: float) -> None:
    masks = np.random.default_rng(7).random((1, 3, 4, 4, 1)) < 0.5
    masks[:, 2] |= ~masks.any(1)
    x = noise(1, 3, 4, 4, 2)
    clouded = np.where(masks, x, np.float32(bad))

    @jax.jit
    @jax.grad
    def slope(x: jax.Array) -> jax.Array:
        return jnp.sum(mutual_inpainting(x, masks) * noise(*x.shape, seed=1))

    np.testing.assert_array_equal(mutual_inpainting(clouded, masks), slow_inpainting(x, masks))
    gradient = np.asarray(slope(clouded))
    np.testing.assert_array_equal(gradient, slope(x))
    assert np.isfinite(gradient).all() and (gradient[~masks[..., 0]] == 0).all()


# --- instance norm and activation


def slow_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float) -> np.ndarray:
    out = np.empty(x.shape)
    for index in np.ndindex(*x.shape[:-3], x.shape[-1]):
        plane = x[(*index[:-1], slice(None), slice(None), index[-1])].astype(np.float64)
        variance = ((plane - plane.mean()) ** 2).sum() / plane.size
        scaled = gamma[index[-1]] * (plane - plane.mean()) / np.sqrt(variance + epsilon)
        out[(*index[:-1], slice(None), slice(None), index[-1])] = scaled + beta[index[-1]]
    return out


def norm_inputs(shape: Sequence[int], offset: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scale = 1 + np.arange(shape[1], dtype=np.float32).reshape(-1, 1, 1, 1)  # frames must not mix
    x = noise(*shape) * scale + np.float32(offset)
    return x.astype(np.float32), 1 + 0.3 * noise(shape[-1], seed=1), noise(shape[-1], seed=2)


@pytest.mark.parametrize(("offset", "tolerance"), [(0, 1e-5), (1e4, 5e-3), (-1e4, 5e-3)])
def test_instance_norm(offset: float, tolerance: float) -> None:
    """A float32 near 1e4 has a spacing of 1e-3; a one-pass variance there is off by units."""
    x, gamma, beta = norm_inputs((2, 3, 9, 12, 4), offset)
    out = instance_norm(x, gamma, beta)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, slow_norm(x, gamma, beta, 1e-3), atol=tolerance)


def test_instance_norm_epsilon() -> None:
    x, gamma, beta = norm_inputs((1, 2, 5, 5, 3), 0)
    for epsilon in (1e-3, 0.5):
        out = instance_norm(x * 0.03, gamma, beta, epsilon)
        np.testing.assert_allclose(out, slow_norm(x * 0.03, gamma, beta, epsilon), atol=1e-5)


def test_instance_norm_of_a_flat_map() -> None:
    """Nothing but beta, and a finite gradient, at any offset."""
    _, gamma, beta = norm_inputs((1, 1, 1, 1, 3), 0)
    x = np.full((1, 2, 6, 6, 3), 1e4, np.float32)
    np.testing.assert_allclose(instance_norm(x, gamma, beta), np.broadcast_to(beta, x.shape))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(instance_norm(x, gamma, beta) ** 2)))(x)
    assert np.isfinite(gradient).all()


def test_instance_norm_keeps_statistics_in_float32() -> None:
    """In half precision the sum of squares of these maps overflows."""
    x, gamma, beta = norm_inputs((1, 2, 16, 16, 2), 0)
    x = (100 * x).astype(np.float16)
    half = instance_norm(x, gamma.astype(np.float16), beta.astype(np.float16))
    expected = slow_norm(x, gamma.astype(np.float16), beta.astype(np.float16), 1e-3)
    np.testing.assert_allclose(np.asarray(half, np.float32), expected, atol=5e-3)


def test_leaky_relu() -> None:
    out = ops.leaky_relu(jnp.array([-10.0, -0.5, 0.0, 3.0]))
    np.testing.assert_allclose(out, [-2, -0.1, 0, 3], rtol=1e-6)
