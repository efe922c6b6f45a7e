"""DUF against slow numpy, and what must or must not change its result."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsum_jax import Compute, ModelConfig, Normalization
from deepsum_jax.config import Backend
from deepsum_jax.data import resample
from deepsum_jax.model.layers import apply
from deepsum_jax.systems import duf
from deepsum_jax.systems.duf import DUFNet

CONFIG = ModelConfig(
    num_frames=5, features=2, channels=2,
    normalization=Normalization(7000.0, (2000.0, 1500.0), (6500.0, 7200.0), 600.0),
)  # fmt: skip
DOUBLE = Compute(dtype="float64", param_dtype="float64", backend="accelerator")
SINGLE = dataclasses.replace(DOUBLE, dtype="float32", param_dtype="float32")
FACTOR, OFFSET = np.array([10 / 3, 2.5]), np.array([5 / 6, -1 / 3])  # of its change of units
LARGE = 800.0  # a logit beside which the others' share underflows


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def inputs(config: ModelConfig, height: int = 4, width: int = 6, compute: Compute = DOUBLE) -> Any:
    """Shapes of one stack's upsampled images and masks, by its LR size."""
    stack = (1, config.num_frames, height * config.scale, width * config.scale)
    images = jax.ShapeDtypeStruct((*stack, config.channels), compute.dtype)
    return images, jax.ShapeDtypeStruct((*stack, 1), jnp.bool_)


def shapes_of(config: ModelConfig, compute: Compute = DOUBLE) -> Any:
    given = inputs(config, compute=compute)
    return jax.eval_shape(DUFNet(config, compute).init, jax.random.key(0), *given)["params"]


def params_of(config: ModelConfig, compute: Compute = DOUBLE, seed: int = 0) -> Any:
    """Kernels about as large as fresh ones; biases and scales that are not the neutral ones."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, x: jax.ShapeDtypeStruct) -> np.ndarray:
        size = np.sqrt(2 / (np.prod(x.shape[:-2]) * sum(x.shape[-2:]))) if x.ndim > 1 else 0.3
        values = size * rng.standard_normal(x.shape) + (path[-1].key == "scale")
        return values.astype(x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(config, compute))


def delta_params(config: ModelConfig, taps: np.ndarray, compute: Compute = DOUBLE) -> Any:
    """A residual of zero, and for each of the r×r HR pixels the filter that takes one tap alone."""
    params = params_of(config, compute)
    logits = np.zeros((25, config.scale, config.scale))
    np.put_along_axis(logits, taps[None], LARGE, axis=0)
    params["filters1"]["bias"] = logits.reshape(-1).astype(compute.param_dtype)
    params["residual1"] = jax.tree.map(np.zeros_like, params["residual1"])
    return params


@functools.cache
def forward(network: DUFNet) -> Any:
    return jax.jit(lambda params, images, masks: apply(network, params, images, masks))


def run(
    config: ModelConfig,
    params: Any,
    images: np.ndarray,
    masks: np.ndarray,
    compute: Compute = DOUBLE,
) -> np.ndarray:
    return np.asarray(forward(DUFNet(config, compute))(params, images, masks))


def stacks(
    config: ModelConfig = CONFIG,
    batch: int = 2,
    height: int = 5,
    width: int = 4,
    compute: Compute = DOUBLE,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """LR frames, what the network gets of them, and LR masks of which every pixel has a donor."""
    rng = np.random.default_rng(0)
    shape = (batch, config.num_frames, height, width)
    lr, clear = rng.standard_normal((*shape, config.channels)), rng.random((*shape, 1)) < 0.6
    clear[:, -1] |= ~clear.any(axis=1)
    lr = lr.astype(compute.dtype)
    return lr, resample.upsample(lr, config.scale), clear


def up(masks: np.ndarray, scale: int = 3) -> np.ndarray:
    """LR masks [B, N, h, w, 1] on the upsampled grid."""
    return resample.nearest_upsample(masks[..., 0], scale)[..., None]


# --- against slow numpy


def slow_fill(lr: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """One stack, pixel by pixel."""
    out = lr.copy()
    for y, x in np.ndindex(lr.shape[1:3]):
        reliable = np.flatnonzero(clear[:, y, x, 0])
        for n in range(len(lr)):
            if len(reliable) and not clear[n, y, x, 0]:
                out[n, y, x] = lr[reliable[0], y, x]
    return out


def slow_gather(image: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """One image [h, w, C], HR pixel by HR pixel; filters [h, w, 25, r, r]."""
    height, width, channels = image.shape
    r = filters.shape[-1]
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    out = np.zeros((r * height, r * width, channels))
    for y, x in np.ndindex(out.shape[:2]):
        for i, j in np.ndindex(5, 5):
            tap = filters[y // r, x // r, 5 * i + j, y % r, x % r]
            out[y, x] += tap * padded[y // r + i, x // r + j]
    return out


def slow_conv(x: np.ndarray, kernel: np.ndarray, frames: int = 0) -> np.ndarray:
    """[N, h, w, C] by [D, k, k, C, F], with `frames` zero frames before and after."""
    edge = kernel.shape[1] // 2
    x = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)), mode="reflect")
    x = np.pad(x, ((frames, frames), (0, 0), (0, 0), (0, 0)))
    depth, size = kernel.shape[:2]
    left, height, width = x.shape[0] - depth + 1, x.shape[1] - 2 * edge, x.shape[2] - 2 * edge
    return sum(
        x[d : d + left, i : i + height, j : j + width] @ kernel[d, i, j]
        for d, i, j in np.ndindex(depth, size, size)
    )


def slow_norm_relu(x: np.ndarray, p: Any) -> np.ndarray:
    mean, variance = x.mean(axis=(1, 2), keepdims=True), x.var(axis=(1, 2), keepdims=True)
    return np.maximum(0, (x - mean) / np.sqrt(variance + 1e-3) * p["scale"] + p["bias"])


def slow_duf(lr: np.ndarray, clear: np.ndarray, p: Any, orders: str, r: int) -> np.ndarray:
    """One stack; `orders` says of each block whether it keeps (k) or reduces (r) the frames."""

    def layer(x: np.ndarray, name: str) -> np.ndarray:
        return slow_conv(x, p[name]["kernel"][None]) + p[name]["bias"]

    filled = slow_fill(lr, clear)
    middle = sorted(range(len(lr)), key=lambda n: n if n % 2 == 0 else -n)
    x = slow_conv(filled[middle], p["conv_in"]["kernel"][None])
    for i, kind in enumerate(orders):
        b = p[f"block{i}"]
        y = slow_conv(slow_norm_relu(x, b["norm0"]), b["conv0"]["kernel"][None])
        y = slow_norm_relu(y, b["norm1"])
        new = slow_conv(y, b["conv1"]["kernel"], frames=int(kind == "k"))
        x = np.concatenate([x if kind == "k" else x[1:-1], new], axis=-1)
    assert len(x) == 1
    x = np.maximum(0, layer(slow_norm_relu(x, p["norm_out"]), "conv_out"))
    logits = layer(np.maximum(0, layer(x, "filters0")), "filters1")[0]
    logits = logits.reshape(*logits.shape[:2], 25, r, r)
    filters = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    residual = layer(np.maximum(0, layer(x, "residual0")), "residual1")[0]
    out = slow_gather(filled[0], filters) * FACTOR + OFFSET
    for y, x_ in np.ndindex(out.shape[:2]):
        c = out.shape[2]
        first = (y % r * r + x_ % r) * c
        out[y, x_] += residual[y // r, x_ // r, first : first + c]
    return out


@pytest.mark.parametrize("scale", [1, 3, 5])
def test_dynamic_upsampling(scale: int) -> None:
    rng = np.random.default_rng(scale)
    image, filters = rng.standard_normal((2, 4, 6, 3)), rng.random((2, 4, 6, 25, scale, scale))
    backends: tuple[Backend, ...] = ("cpu", "accelerator", "plain")
    for backend in backends:
        out = duf.upsample_dynamically(jnp.asarray(image), jnp.asarray(filters), backend)
        for b in range(2):
            np.testing.assert_allclose(out[b], slow_gather(image[b], filters[b]), atol=1e-12)


@pytest.mark.parametrize(("frames", "orders"), [(3, "kkkkkr"), (9, "kkrrrr")])
def test_the_whole_network(frames: int, orders: str) -> None:
    config = dataclasses.replace(CONFIG, num_frames=frames, features=3)
    lr, images, clear = stacks(config)
    params = params_of(config)
    out = run(config, params, images, up(clear))
    for b in range(2):
        expected = slow_duf(lr[b], clear[b], params, orders, config.scale)
        np.testing.assert_allclose(out[b], expected, atol=1e-10)
        assert np.ptp(expected) > 1


def test_formulations_agree() -> None:
    config = dataclasses.replace(CONFIG, num_frames=3)
    _, images, clear = stacks(config)
    params = params_of(config)
    backends: tuple[Backend, ...] = ("cpu", "accelerator", "plain")
    cpu, accelerator, plain = (
        run(config, params, images, up(clear), dataclasses.replace(DOUBLE, backend=backend))
        for backend in backends
    )
    np.testing.assert_allclose(cpu, accelerator, atol=1e-10)
    np.testing.assert_allclose(plain, accelerator, atol=1e-10)


# --- shapes, parameters and programs


def equations(jaxpr: Any) -> Iterator[Any]:
    """All of a program's, those of the functions that it calls too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inside = getattr(value, "jaxpr", value)
            if hasattr(inside, "eqns"):
                yield from equations(inside)


def test_frame_order() -> None:
    assert duf.frame_order(3) == [1, 0, 2]
    assert duf.frame_order(9) == [7, 5, 3, 1, 0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("frames", "kept"), [(3, 5), (5, 4), (7, 3), (9, 2), (11, 1), (13, 0), (15, 0)]
)
def test_any_number_of_frames(frames: int, kept: int) -> None:
    config = dataclasses.replace(CONFIG, num_frames=frames)
    reducing = (frames - 1) // 2
    assert duf.blocks_keep(config) == [True] * kept + [False] * reducing
    params = shapes_of(config)
    assert sum(name.startswith("block") for name in params) == kept + reducing
    out = jax.eval_shape(DUFNet(config, DOUBLE).apply, {"params": params}, *inputs(config, 4, 5))
    assert out.shape == (1, 12, 15, 2)


def test_parameters() -> None:
    """The paper's sizes for seven frames, but for one channel and a scale of 3."""
    shapes = jax.tree.map(lambda x: x.shape, shapes_of(ModelConfig(num_frames=7)))

    def dense(width: int) -> dict[str, Any]:
        norm = {"scale": (width,), "bias": (width,)}
        return {
            "norm0": norm, "conv0": {"kernel": (1, 1, width, width)},
            "norm1": norm, "conv1": {"kernel": (3, 3, 3, width, 32)},
        }  # fmt: skip

    assert shapes == {
        "conv_in": {"kernel": (3, 3, 1, 64)},
        **{f"block{i}": dense(w) for i, w in enumerate([64, 96, 128, 160, 192, 224])},
        "norm_out": {"scale": (256,), "bias": (256,)},
        "conv_out": {"kernel": (3, 3, 256, 256), "bias": (256,)},
        "filters0": {"kernel": (1, 1, 256, 512), "bias": (512,)},
        "filters1": {"kernel": (1, 1, 512, 225), "bias": (225,)},
        "residual0": {"kernel": (1, 1, 256, 256), "bias": (256,)},
        "residual1": {"kernel": (1, 1, 256, 9), "bias": (9,)},
    }


@pytest.mark.parametrize("start", ["glorot", "zeros"])
def test_initial_residual(start: Any) -> None:
    config = dataclasses.replace(CONFIG, num_frames=3, residual_init=start)

    @jax.jit
    def kernel() -> Any:
        images, masks = (jnp.zeros(x.shape, x.dtype) for x in inputs(config))
        variables = DUFNet(config, DOUBLE).init(jax.random.key(0), images, masks)
        return variables["params"]["residual1"]["kernel"]

    assert np.std(kernel()) == pytest.approx(0 if start == "zeros" else (2 / 26) ** 0.5, rel=0.2)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float16", "float32"), ("bfloat16", "float32"), ("float32", "float32"),
     ("float64", "float64")],
)  # fmt: skip
def test_dtypes(dtype: Any, expected: str) -> None:
    config = dataclasses.replace(CONFIG, num_frames=3)
    compute = dataclasses.replace(SINGLE, dtype=dtype)
    params = shapes_of(config, compute)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    given = inputs(config, compute=compute)
    program = jax.make_jaxpr(DUFNet(config, compute).apply)({"params": params}, *given)
    assert program.out_avals[0].dtype == expected
    convolutions = [e for e in equations(program.jaxpr) if "conv_general" in e.primitive.name]
    assert len(convolutions) == 8
    assert {e.outvars[0].aval.dtype for e in convolutions} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_frames": 3, "scale": 5}, {"num_frames": 15, "features": 5},
     {"channels": 1, "normalization": Normalization()}],
)  # fmt: skip
def test_work_is_that_of_the_program(changes: dict[str, Any]) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    given = {"params": shapes_of(config)}
    program = jax.make_jaxpr(DUFNet(config, DOUBLE).apply)(given, *inputs(config, 4, 6))
    products = 25 * 24 * config.scale**2 * config.channels  # the dynamic filters'
    for e in equations(program.jaxpr):
        if e.primitive.name == "conv_general_dilated":
            kernel = e.invars[1].aval.shape  # [..., C_in, C_out]
            products += np.prod(e.outvars[0].aval.shape) * np.prod(kernel[:-1])
        elif e.primitive.name == "dot_general":
            contracted = e.params["dimension_numbers"][0][0]
            inner = np.prod([e.invars[0].aval.shape[axis] for axis in contracted])
            products += np.prod(e.outvars[0].aval.shape) * inner
    work = duf.duf_work(config, 4 * config.scale, 6 * config.scale)
    assert work == 2 * products
    assert work == duf.duf_work(config, 8 * config.scale, 3 * config.scale)


# --- what the filters gather


@pytest.mark.parametrize("scale", [3, 5])
def test_finds_the_lr_frames(scale: int) -> None:
    """In what bicubic upsampling made of raw counts: exactly, so that filters of the centre alone
    repeat the reference's pixels."""
    config = dataclasses.replace(
        CONFIG, num_frames=3, scale=scale, normalization=Normalization(0.0, 1.0, 0.0, 1.0)
    )
    lr = np.random.default_rng(0).integers(0, 16384, (1, 3, 4, 5, 2)).astype(np.float32)
    images, masks = resample.upsample(lr, scale), np.ones((1, 3, 4 * scale, 5 * scale, 1), bool)
    params = delta_params(config, np.full((scale, scale), 12), SINGLE)
    out = run(config, params, images, masks, SINGLE)
    np.testing.assert_array_equal(out, lr[:, 0].repeat(scale, axis=1).repeat(scale, axis=2))


def test_each_phase_has_its_own_filter() -> None:
    """Each HR pixel of an LR pixel takes another neighbour of the filled reference."""
    taps = np.array([[0, 4, 20], [12, 24, 2], [10, 13, 6]])
    lr, images, clear = stacks()
    out = run(CONFIG, delta_params(CONFIG, taps), images, up(clear))
    for b in range(2):
        padded = np.pad(slow_fill(lr[b], clear[b])[0], ((2, 2), (2, 2), (0, 0)), mode="reflect")
        for (i, j), tap in np.ndenumerate(taps):
            taken = padded[tap // 5 :, tap % 5 :][:5, :4]
            np.testing.assert_allclose(out[b, i::3, j::3], taken * FACTOR + OFFSET, atol=1e-12)


# --- what must, and what must not, change the result


@pytest.mark.parametrize("hidden", [1e6, -9999.0, np.nan, np.inf])
def test_ignores_what_lies_under_the_masks(hidden: float) -> None:
    """Where another frame is reliable, and what lies between the LR pixels."""
    lr, images, clear = stacks()
    clear[:, :, 2, 1] = False  # a pixel that nobody sees, and that therefore counts
    seen = clear.any(axis=1, keepdims=True)
    params = params_of(CONFIG)
    expected = run(CONFIG, params, images, up(clear))
    changed = np.full_like(images, hidden)
    changed[:, :, 1::3, 1::3] = np.where(~clear & seen, hidden, lr)
    np.testing.assert_array_equal(run(CONFIG, params, changed, up(clear)), expected)
    changed = images.copy()
    changed[:, 1, 7, 4] += 1
    assert np.ptp(run(CONFIG, params, changed, up(clear)) - expected) > 1e-3


def test_brightness_is_the_references() -> None:
    """A constant added to the reference comes out in the outputs' units; one added to another
    frame does nothing."""
    _, images, clear = stacks()
    masks, params = np.ones_like(up(clear)), params_of(CONFIG)
    expected = run(CONFIG, params, images, masks)
    constants = np.array([0.7, -3.0, 40.0, 0.1, -0.2]).reshape(-1, 1, 1, 1)
    out = run(CONFIG, params, images + constants, masks)
    np.testing.assert_allclose(out, expected + 0.7 * FACTOR, atol=1e-10)


def test_reference_is_in_the_middle() -> None:
    """Kernels that look at the middle of three frames only see frame 0; others see all."""
    _, images, clear = stacks(batch=1)
    masks, params = np.ones_like(up(clear)), params_of(CONFIG)

    @jax.jit
    def influence(params: Any) -> jax.Array:
        def loss(images: Any) -> jax.Array:
            return jnp.square(apply(DUFNet(CONFIG, DOUBLE), params, images, masks)).sum()

        return jnp.abs(jax.grad(loss)(images)).max(axis=(0, 2, 3, 4))

    assert (influence(params) > 1e-4).all()
    for name in (n for n in params if n.startswith("block")):
        params[name]["conv1"]["kernel"][[0, 2]] = 0
    np.testing.assert_array_equal(influence(params) > 1e-4, np.arange(5) == 0)


def test_stacks_of_a_batch_are_independent() -> None:
    _, images, clear = stacks()
    masks, params = up(clear), params_of(CONFIG)
    expected = run(CONFIG, params, images, masks)
    swapped = run(CONFIG, params, images[::-1], masks[::-1])
    np.testing.assert_allclose(swapped, expected[::-1], atol=1e-12)
    images[1], masks[1] = np.nan, ~masks[1]
    np.testing.assert_allclose(run(CONFIG, params, images, masks)[0], expected[0], atol=1e-12)


def gradient(config: ModelConfig, compute: Compute) -> Any:
    def loss(params: Any, images: Any, masks: Any) -> jax.Array:
        return jnp.square(apply(DUFNet(config, compute), params, images, masks)).mean()

    return jax.grad(loss)


def test_gradients_are_finite() -> None:
    """With no-data values under the masks, and for flat frames that nobody sees; every parameter
    has one."""
    config = dataclasses.replace(CONFIG, num_frames=3)
    params, (_, images, clear) = params_of(config, SINGLE), stacks(config, compute=SINGLE)
    pull = jax.jit(gradient(config, SINGLE))
    images[~np.broadcast_to(up(clear), images.shape)] = np.nan
    for path, x in jax.tree.leaves_with_path(pull(params, images, up(clear))):
        assert np.isfinite(x).all() and np.any(x), path
    flat = pull(params, np.ones_like(images), np.zeros_like(up(clear)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(flat))


def test_rematerialised_training_computes_blocks_again() -> None:
    config = dataclasses.replace(CONFIG, num_frames=3)
    kept, again = DOUBLE, dataclasses.replace(DOUBLE, rematerialize=True)
    shapes, given = shapes_of(config, kept), inputs(config)
    assert shapes == shapes_of(config, again)
    first, second = (
        sum(
            e.primitive.name == "dot_general"
            for e in equations(jax.make_jaxpr(gradient(config, c))(shapes, *given).jaxpr)
        )
        for c in (kept, again)
    )
    assert second == first + 6  # the 1×1×1 convolutions, between two norms


# --- refusals


@pytest.mark.parametrize(
    ("changes", "images", "masks", "message"),
    [
        ({"scale": 2}, (1, 5, 12, 12, 2), (1, 5, 12, 12, 1), r"scale: found 2"),
        ({}, (1, 5, 9, 10, 2), (1, 5, 9, 10, 1), "9×10 pixels, expected multiples of 3"),
        ({}, (1, 5, 10, 9, 2), (1, 5, 10, 9, 1), "10×9 pixels, expected multiples of 3"),
        ({}, (1, 5, 9, 6, 2), (1, 5, 9, 6, 1), "at least 9×9"),
        ({}, (1, 3, 9, 9, 2), (1, 3, 9, 9, 1), r"expected \[B, 5, H, W, 2\]"),
        ({}, (1, 5, 9, 9, 1), (1, 5, 9, 9, 1), r"expected \[B, 5, H, W, 2\]"),
        ({}, (5, 9, 9, 2), (5, 9, 9, 1), r"expected \[B, 5, H, W, 2\]"),
        ({}, (1, 5, 9, 9, 2), (1, 5, 9, 9), "masks: found"),
        ({}, (1, 5, 9, 9, 2), (1, 5, 3, 3, 1), "masks: found"),
    ],
)
def test_refuses(
    changes: dict[str, Any], images: tuple[int, ...], masks: tuple[int, ...], message: str
) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ValueError, match=message):
        DUFNet(config, DOUBLE).init(jax.random.key(0), np.zeros(images), np.ones(masks, bool))
    if "pixels" in message or "scale" in message:
        with pytest.raises(ValueError, match=message):
            duf.duf_work(config, *images[2:4])
