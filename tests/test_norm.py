"""Batch norm: statistics of the batch while training, their running averages afterwards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from helpers import TINY as MODEL

from deepsum_jax import Bundle, load_params, predict, save_params
from deepsum_jax.config import TINY, StageConfig, TrainConfig
from deepsum_jax.model import ops
from deepsum_jax.model.layers import Norm
from deepsum_jax.systems.table import init_params
from deepsum_jax.training import parallel, stages
from deepsum_jax.training.step import init_state, make_optimizer, make_train_step

BATCH = dataclasses.replace(MODEL, norm="batch")
CONFIG = dataclasses.replace(TINY, model=BATCH, deepsum=StageConfig(learning_rate=1e-3))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def batch(size: int, side: int = 24) -> dict[str, np.ndarray]:
    return {
        "images": 3 + 2 * noise(size, 3, side, side, 1),
        "masks": np.ones((size, 3, side, side, 1), bool),
        "hr": noise(size, side, side, 1, seed=1),
        "hr_mask": np.ones((size, side, side, 1), bool),
    }


def test_given_statistics() -> None:
    x, gamma, beta = noise(2, 3, 4, 5, 6), noise(6, seed=1), noise(6, seed=2)
    mean, variance = noise(6, seed=3), noise(6, seed=4) ** 2
    expected = gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta
    out = ops.batch_norm(jnp.asarray(x), gamma, beta, mean, variance)
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_statistics_of_the_batch_while_training() -> None:
    x = noise(2, 3, 8, 8, 4) * np.float32([1, 2, 3, 4]) + np.float32([5, 0, -5, 9])
    params = {
        "scale": np.float32([1, 2, 1, 1]), "bias": np.float32([0, 0, 3, 0]),
        "mean": noise(4), "variance": np.ones(4, np.float32),
    }  # fmt: skip
    out = np.asarray(Norm(4, BATCH, training=True).apply({"params": params}, x))
    np.testing.assert_allclose(out.mean(axis=(0, 1, 2, 3)), [0, 0, 3, 0], atol=1e-4)
    np.testing.assert_allclose(out.std(axis=(0, 1, 2, 3)), [1, 2, 1, 1], atol=2e-3)
    # All images together: single ones keep what sets them apart.
    assert np.abs(out.mean(axis=(2, 3)) - out.mean(axis=(0, 1, 2, 3))).max() > 1e-2
    still = np.asarray(Norm(4, BATCH).apply({"params": params}, x))
    expected = params["scale"] * (x - params["mean"]) / np.sqrt(1 + 1e-3) + params["bias"]
    np.testing.assert_allclose(still, expected, rtol=1e-4, atol=1e-4)


def test_tracking_keeps_values_and_their_gradients() -> None:
    x, running, measured = noise(5), noise(5, seed=1), noise(5, seed=2)

    def loss(x: Any, running: Any) -> Any:
        return (ops.track_statistics(x, running, measured) ** 3).sum()

    value, (by_x, by_running) = jax.value_and_grad(loss, (0, 1))(x, running)
    np.testing.assert_allclose(value, (x**3).sum(), rtol=1e-5)
    np.testing.assert_allclose(by_x, 3 * x**2, rtol=1e-5)
    np.testing.assert_allclose(by_running, running - measured, rtol=1e-5)


def test_a_step_moves_running_statistics_towards_the_batch() -> None:
    """By a twentieth of the way, at any learning rate, while Adam moves what is learned."""
    params = init_params(BATCH, jax.random.key(0))
    given = batch(4)
    state = init_state(params, stages.DEEPSUM, CONFIG)
    after, _ = jax.jit(make_train_step(stages.DEEPSUM, CONFIG))(state, given)
    kernel = params["sisrnet"]["conv0"]["kernel"].reshape(1, 3, 3, 1, -1)
    x = np.asarray(ops.conv3d(given["images"].reshape(1, 12, 24, 24, 1), kernel))
    norm = after.params["sisrnet"]["norm0"]
    np.testing.assert_allclose(norm["mean"], 0.05 * x.mean(axis=(0, 1, 2, 3)), rtol=1e-3)
    np.testing.assert_allclose(
        norm["variance"], 1 + 0.05 * (x.var(axis=(0, 1, 2, 3)) - 1), rtol=1e-3
    )
    moved = np.abs(
        after.params["sisrnet"]["conv0"]["kernel"] - params["sisrnet"]["conv0"]["kernel"]
    )
    np.testing.assert_allclose(moved[moved > 0], 1e-3, rtol=1e-2)  # Adam's first step


def test_running_statistics_are_not_clipped() -> None:
    optimizer = make_optimizer(StageConfig(clip_norm=1e-6, learning_rate=0.1), BATCH)
    params = {"sisrnet": {"norm0": {"mean": jnp.zeros(2), "scale": jnp.ones(2)}}}
    gradient = jax.tree.map(lambda x: jnp.full_like(x, 4.0), params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["sisrnet"]["norm0"]["mean"], -0.2, rtol=1e-5)


def test_devices_share_their_statistics() -> None:
    """Halves of a batch that differ in mean: running means are those of the whole."""
    given = batch(4)
    given["images"][2:] += 5
    params = init_params(BATCH, jax.random.key(0))
    means = []
    for count in (1, 2):
        devices = jax.devices()[:count]
        step = parallel.map_train_step(stages.DEEPSUM, CONFIG, devices)
        state = parallel.replicate(init_state(params, stages.DEEPSUM, CONFIG), devices)
        state, _ = step(state, parallel.shard(given, devices))
        means.append(parallel.to_host(state.params)["sisrnet"]["norm0"]["mean"])
    np.testing.assert_allclose(means[0], means[1], rtol=1e-4)


def test_trains_saves_and_predicts(tmp_path: Path) -> None:
    """Running statistics come near those of the batch, travel with the bundle, and are used."""
    config: TrainConfig = dataclasses.replace(
        CONFIG, deepsum=StageConfig(learning_rate=1e-2, steps=60)
    )
    given = batch(2)
    state = init_state(init_params(BATCH, jax.random.key(0)), stages.DEEPSUM, config)
    step = jax.jit(make_train_step(stages.DEEPSUM, config))
    losses = []
    for _ in range(60):
        state, metrics = step(state, given)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    bundle = Bundle(jax.tree.map(np.asarray, state.params), BATCH)
    save_params(tmp_path / "b", bundle)
    loaded = load_params(tmp_path / "b")
    assert loaded.config.norm == "batch"
    mean = loaded.params["sisrnet"]["norm0"]["mean"]
    np.testing.assert_array_equal(mean, bundle.params["sisrnet"]["norm0"]["mean"])
    stack = 7754 + 2316 * noise(3, 8, 8, seed=5)
    image = predict(loaded, stack)
    changed = jax.tree.map(np.copy, loaded.params)
    changed["sisrnet"]["norm0"]["mean"] += 1
    other = predict(Bundle(changed, BATCH), stack)
    assert np.isfinite(image).all() and np.abs(image - other).max() > 1
