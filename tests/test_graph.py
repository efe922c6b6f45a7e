"""The graph-convolutional layer against slow numpy loops written from its definition."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsum_jax.config import Compute, ModelConfig
from deepsum_jax.model import graph
from deepsum_jax.model.graph import GraphConv, nearest_neighbours
from deepsum_jax.model.layers import apply

Params = dict[str, dict[str, np.ndarray]]

neighbours = jax.jit(nearest_neighbours, static_argnums=(1, 2))


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def layer_of(features: int, k: int, **changes: Any) -> GraphConv:
    """In double precision but for the changes to what it computes with."""
    double = {"dtype": "float64", "param_dtype": "float64"}
    compute = Compute(**{**double, "backend": "accelerator", **changes})
    return GraphConv(features, ModelConfig(neighbours=k), compute)


def random_params(channels: int, features: int, seed: int = 1) -> Params:
    """Every parameter drawn, biases too."""
    layer = GraphConv(features, ModelConfig(neighbours=1))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 6, 6, channels)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape), shapes["params"])


def run(params: Params, x: Any, k: int, **changes: Any) -> jax.Array:
    layer = layer_of(params["local"]["kernel"].shape[-1], k, **changes)
    return apply(layer, params, x)


jitted = jax.jit(run, static_argnames=("k", "rematerialize", "dtype", "param_dtype"))


# --- the definition, pixel by pixel


def candidates(frame: np.ndarray, y: int, x: int, search: int) -> list[tuple[float, int]]:
    """(squared distance, flat index) of all candidates of a pixel, the most alike first."""
    height, width, _ = frame.shape
    found = []
    for v in range(max(0, y - search // 2), min(height, y + search // 2 + 1)):
        for u in range(max(0, x - search // 2), min(width, x + search // 2 + 1)):
            if abs(v - y) > 1 or abs(u - x) > 1:
                found.append((float(((frame[v, u] - frame[y, x]) ** 2).sum()), v * width + u))
    return sorted(found)


def slow_layer(params: Params, frame: np.ndarray, k: int) -> np.ndarray:
    height, width, channels = frame.shape
    kernel = params["local"]["kernel"]
    out = np.zeros((height, width, kernel.shape[-1]))
    padded = np.pad(frame, ((1, 1), (1, 1), (0, 0)), mode="reflect")

    def affine(vector: np.ndarray, name: str) -> np.ndarray:
        return vector @ params[name]["kernel"] + params[name]["bias"]

    for y, x in np.ndindex(height, width):
        for i, j in np.ndindex(3, 3):
            out[y, x] += padded[y + i, x + j] @ kernel[i, j]
        chosen = candidates(frame, y, x, 11)[:k]
        for distance, index in chosen:
            other = frame.reshape(-1, channels)[index]
            hidden = affine(other - frame[y, x], "hidden")
            hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
            kappa = affine(hidden, "weights")
            left = affine(hidden, "left").reshape(3, -1)
            right = affine(hidden, "right").reshape(3, channels)
            theta = sum(kappa[s] * np.outer(left[s], right[s]) for s in range(3))
            out[y, x] += np.exp(-distance / 10) * (theta @ other) / len(chosen)
    return out / 2


# --- the graph


@pytest.mark.parametrize("band_pixels", [10**6, 60])
@pytest.mark.parametrize(
    ("shape", "k", "search"),
    [
        ((2, 9, 14, 3), 8, 11),
        ((1, 17, 13, 2), 5, 11),
        ((2, 8, 7, 2), 12, 5),
        ((1, 4, 3, 2), 9, 11),  # a corner pixel has eight candidates
        ((1, 1, 3, 2), 4, 11),
        ((3, 2, 2, 1), 2, 7),  # nobody has a candidate
    ],
)
def test_neighbours(
    shape: tuple[int, ...],
    k: int,
    search: int,
    band_pixels: int,
    double: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph, "_BAND_PIXELS", band_pixels)
    frames = noise(*shape)
    # Not through `neighbours`, which would remember the other band.
    index, valid = (np.asarray(a) for a in jax.jit(nearest_neighbours, static_argnums=(1, 2))(
        frames, k, search
    ))  # fmt: skip
    assert index.shape == valid.shape == (*shape[:3], k)
    assert (index.dtype, valid.dtype) == (np.int32, bool)
    for m, y, x in np.ndindex(shape[:3]):
        expected = [i for _, i in candidates(frames[m], y, x, search)[:k]]
        assert index[m, y, x][valid[m, y, x]].tolist() == expected
        assert (index[m, y, x][~valid[m, y, x]] == y * shape[2] + x).all()


def test_large_offsets_do_not_blur_distances() -> None:
    """Near 1e3 the squares of float32 features have a spacing that hides these differences."""
    frame = (1000 + noise(1, 12, 12, 3) / 8).astype(np.float32)
    index, _ = neighbours(frame, 6)
    for y, x in np.ndindex(12, 12):
        expected = [i for _, i in candidates(frame[0].astype(float), y, x, 11)[:6]]
        assert np.asarray(index)[0, y, x].tolist() == expected


def test_planted_pattern_is_found() -> None:
    """Copies of a pixel in the window are its neighbours; those beyond it or beside it are not."""
    frames = noise(1, 24, 24, 4)
    inside = [(7, 17), (12, 10), (17, 7), (10, 13)]
    for y, x in [*inside, (11, 13), (12, 6), (18, 12), (6, 12)]:
        frames[0, y, x] = frames[0, 12, 12]
    index, valid = neighbours(frames, 4)
    assert sorted(np.asarray(index)[0, 12, 12]) == sorted(
        y * 24 + x for y, x in [*inside, (12, 6)] if abs(y - 12) <= 5 and abs(x - 12) <= 5
    )
    assert valid.all()


def test_ties_go_to_the_nearer() -> None:
    index, valid = neighbours(np.ones((1, 15, 15, 2), np.float32), 4)
    assert valid.all()
    assert {divmod(int(i), 15) for i in index[0, 7, 7]} == {(5, 7), (9, 7), (7, 5), (7, 9)}


def test_neighbours_move_with_the_image() -> None:
    """Away from the borders, and under a flip everywhere."""
    frames = noise(1, 20, 22, 3).astype(np.float32)
    index = np.asarray(neighbours(frames, 6)[0])
    cut = np.asarray(neighbours(frames[:, 2:, 3:], 6)[0])
    rows, columns = np.divmod(cut, 19)
    np.testing.assert_array_equal(
        (rows + 2)[:, 5:, 5:] * 22 + (columns + 3)[:, 5:, 5:], index[:, 7:, 8:]
    )
    flipped = np.asarray(neighbours(frames[:, :, ::-1], 6)[0])[:, :, ::-1]
    rows, columns = np.divmod(flipped, 22)
    np.testing.assert_array_equal(rows * 22 + 21 - columns, index)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found shape \(4, 4, 2\)"):
        nearest_neighbours(jnp.zeros((4, 4, 2)), 1)
    for k, search in ((0, 11), (113, 11), (17, 5)):
        with pytest.raises(ValueError, match=f"k: found {k}, expected 1 to"):
            nearest_neighbours(jnp.zeros((1, 4, 4, 2)), k, search)
    for search in (3, 6):
        with pytest.raises(ValueError, match=f"search: found {search}"):
            nearest_neighbours(jnp.zeros((1, 4, 4, 2)), 1, search)


# --- the layer


def test_parameters() -> None:
    shapes = jax.tree.map(np.shape, random_params(4, 6))
    assert shapes == {
        "local": {"kernel": (3, 3, 4, 6)},
        "hidden": {"kernel": (4, 4), "bias": (4,)},
        "weights": {"kernel": (4, 3), "bias": (3,)},
        "left": {"kernel": (4, 18), "bias": (18,)},
        "right": {"kernel": (4, 12), "bias": (12,)},
    }


@pytest.mark.parametrize("band_pixels", [10**6, 60])
@pytest.mark.parametrize(
    ("shape", "k"), [((2, 9, 14), 8), ((1, 13, 7), 3), ((1, 3, 4), 9), ((2, 2, 2), 2)]
)
def test_layer(
    shape: tuple[int, ...],
    k: int,
    band_pixels: int,
    double: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph, "_BAND_PIXELS", band_pixels)
    params, x = random_params(3, 4), noise(*shape, 3)
    out = np.asarray(jax.jit(functools.partial(run, k=k))(params, x))
    assert out.shape == (*shape, 4) and out.dtype == np.float64
    for frame, found in zip(x, out):
        np.testing.assert_allclose(found, slow_layer(params, frame, k), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.1)])
def test_lower_precision(dtype: str, tolerance: float) -> None:
    params, x = random_params(3, 4), np.asarray(jnp.asarray(noise(1, 8, 9, 3), dtype), np.float32)
    params = jax.tree.map(lambda p: np.asarray(jnp.asarray(p, dtype), np.float32), params)
    out = jitted(params, x, k=5, dtype=dtype, param_dtype="float32")
    assert out.dtype == dtype
    expected = slow_layer(params, x[0].astype(float), 5)
    error = np.abs(np.asarray(out, np.float64)[0] - expected).max()
    assert error <= tolerance * np.abs(expected).max()


def test_frames_do_not_mix(double: None) -> None:
    params, x = random_params(3, 4), noise(2, 3, 9, 8, 3)
    out = np.asarray(jitted(params, x, k=4))
    assert out.shape == (2, 3, 9, 8, 4)
    other = x.copy()
    other[0, 1] = noise(9, 8, 3, seed=5)
    changed = np.abs(np.asarray(jitted(params, other, k=4)) - out).max((2, 3, 4)) > 0
    assert changed.tolist() == [[False, True, False], [False, False, False]]
    order = np.array([2, 0, 1])
    np.testing.assert_array_equal(jitted(params, x[:, order], k=4), out[:, order])
    np.testing.assert_allclose(jax.vmap(lambda x: run(params, x, 4))(x), out, atol=1e-12)
    mapped = jax.pmap(lambda x: run(params, x, 4), devices=jax.devices()[:2])(x)
    np.testing.assert_allclose(mapped, out, atol=1e-12)


@pytest.mark.parametrize("rematerialize", [False, True])
def test_gradient(rematerialize: bool, double: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against differences of the slow layer, along random directions and for single tensors."""
    monkeypatch.setattr(graph, "_BAND_PIXELS", 30)
    params, x, weight = random_params(2, 3), noise(1, 7, 8, 2), noise(1, 7, 8, 3, seed=2)

    def loss(params: Any, x: Any) -> Any:
        return jnp.sum(run(params, x, 5, rematerialize=rematerialize) * weight)

    def slow_loss(params: Any, x: Any) -> float:
        return float((slow_layer(params, x[0], 5) * weight[0]).sum())

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    leaves, tree = jax.tree.flatten((params, x))
    for n, (leaf, found) in enumerate(zip(leaves, jax.tree.leaves(gradient))):
        direction = noise(*leaf.shape, seed=n)
        ends = []
        for step in (1e-6, -1e-6):
            moved = [*leaves[:n], leaf + step * direction, *leaves[n + 1 :]]
            ends.append(slow_loss(*jax.tree.unflatten(tree, moved)))
        expected = (ends[0] - ends[1]) / 2e-6
        assert np.abs(expected) > 1e-3
        assert np.sum(np.asarray(found) * direction) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(2, 9, 10), (1, 2, 2), (1, 3, 2)])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_flat_images_have_finite_gradients(shape: tuple[int, ...], value: float) -> None:
    """All distances tie at zero, the activation is at its kink, and corners lack neighbours."""
    params = jax.tree.map(lambda p: p.astype(np.float32), random_params(3, 4))
    params["hidden"]["bias"][:] = 0
    x = np.full((*shape, 3), value, np.float32)

    def loss(params: Any, x: Any) -> jax.Array:
        return jnp.sum(run(params, x, 8, dtype="float32", param_dtype="float32") ** 2)

    for part in jax.tree.leaves(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)):
        assert np.isfinite(part).all()


def test_nobody_has_a_neighbour(double: None) -> None:
    """Operation by operation: what XLA makes of 0/0 within a compiled program is its own affair."""
    params, x = random_params(3, 4), noise(1, 2, 2, 3)
    with jax.disable_jit():
        out = np.asarray(run(params, x, 2))
    np.testing.assert_allclose(out[0], slow_layer(params, x[0], 2), atol=1e-12)


def test_fresh_layer_is_balanced_and_learns() -> None:
    """Fresh weights: a non-local part smaller than the local one, and no dead kernel."""
    settings = {"dtype": "float32", "param_dtype": "float32"}
    for width in (8, 32):
        layer = layer_of(width, 8, **settings)
        x = np.maximum(noise(2, 14, 14, width), 0.2 * noise(2, 14, 14, width)).astype(np.float32)
        params = jax.jit(layer.init)(jax.random.key(3), x)["params"]

        def outputs(params: Any, layer: GraphConv = layer, x: np.ndarray = x) -> jax.Array:
            return apply(layer, params, x)

        local = {**params, "left": jax.tree.map(jnp.zeros_like, params["left"])}
        whole, local_part = jax.jit(jax.vmap(outputs))(
            jax.tree.map(lambda *p: jnp.stack(p), params, local)
        )
        ratio = float(jnp.std(whole - local_part) / jnp.std(local_part))
        assert 0.01 < ratio < 0.5
        gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(outputs(p)))))(params)
        for part in jax.tree.leaves(gradient):
            assert np.abs(part).max() > 1e-3


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators(platform: str) -> None:
    single = {"dtype": "float32", "param_dtype": "float32", "backend": "auto"}
    params = jax.tree.map(lambda p: p.astype(np.float32), random_params(24, 24))
    x = jax.ShapeDtypeStruct((2, 9, 42, 42, 24), jnp.float32)

    def loss(params: Any, x: Any) -> jax.Array:
        return jnp.sum(run(params, x, 8, **single) ** 2)

    traced = jax.jit(jax.value_and_grad(loss)).trace(params, x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "top_k" in text
    assert "callback" not in text
