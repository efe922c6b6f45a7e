"""Batch norm: statistics of the batch while training, their running averages afterwards."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FAST, TINY

from deepsum_jax import Bundle, load_params, predict, save_params
from deepsum_jax.config import StageConfig, TrainConfig, preset
from deepsum_jax.model import ops
from deepsum_jax.model.layers import Norm, apply
from deepsum_jax.systems.system import Stage
from deepsum_jax.systems.table import init_params
from deepsum_jax.training import parallel, stages
from deepsum_jax.training.step import gradients, init_state, make_optimizer, make_train_step

BATCH = dataclasses.replace(TINY, norm="batch")
CONFIG = dataclasses.replace(
    preset("tiny"), model=BATCH, compute=FAST, deepsum=StageConfig(learning_rate=1e-3)
)
DEEPSUM = stages.stage("deepsum", BATCH)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


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
    given: list[jax.Array] = [jnp.asarray(a) for a in (x, gamma, beta, mean, variance)]
    out = ops.batch_norm(given[0], given[1], given[2], given[3], given[4])
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_statistics_of_the_batch_while_training() -> None:
    x = noise(2, 3, 8, 8, 4) * floats(1, 2, 3, 4) + floats(5, 0, -5, 9)
    params = {
        "scale": floats(1, 2, 1, 1), "bias": floats(0, 0, 3, 0),
        "mean": noise(4), "variance": np.ones(4, np.float32),
    }  # fmt: skip
    out = np.asarray(apply(Norm(4, BATCH, FAST, training=True), params, x))
    np.testing.assert_allclose(out.mean(axis=(0, 1, 2, 3)), [0, 0, 3, 0], atol=1e-4)
    np.testing.assert_allclose(out.std(axis=(0, 1, 2, 3)), [1, 2, 1, 1], atol=2e-3)
    # All images together: single ones keep what sets them apart.
    assert np.abs(out.mean(axis=(2, 3)) - out.mean(axis=(0, 1, 2, 3))).max() > 1e-2
    still = np.asarray(apply(Norm(4, BATCH, FAST), params, x))
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
    state = init_state(params, DEEPSUM, CONFIG)
    after, _ = jax.jit(make_train_step(DEEPSUM, CONFIG))(state, given)
    kernel = params["sisrnet"]["conv0"]["kernel"].reshape(1, 3, 3, 1, -1)
    x = np.asarray(ops.conv3d(jnp.asarray(given["images"]).reshape(1, 12, 24, 24, 1), kernel))
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


# --- on several devices


def unlike(size: int = 4) -> dict[str, np.ndarray]:
    """A batch whose samples differ in level and in contrast, so that no share is like another."""
    given = batch(size)
    levels = np.arange(size, dtype=np.float32).reshape(-1, 1, 1, 1, 1)
    given["images"] = given["images"] * (1 + levels) + 5 * levels
    return given


def leaves(tree: Any) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(v) for p, v in found}


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


DOUBLE = dataclasses.replace(
    CONFIG, compute=dataclasses.replace(FAST, dtype="float64", param_dtype="float64")
)
STAGE = pytest.mark.parametrize("name", ["sisrnet", "deepsum"])


def given_to(name: str, config: TrainConfig, dtype: str) -> tuple[Stage, Any, dict[str, Any]]:
    """A stage, its fresh parameters, and a batch for it."""
    stage = stages.stage(name, BATCH)
    params = stages.fresh_params(stage, BATCH, jax.random.key(0), config.compute)
    given = {k: v.astype(dtype) if v.dtype != bool else v for k, v in unlike().items()}
    if stage.view == "frames":
        given["images"] = given["images"][:, :1]
        del given["masks"]
    return stage, params, given


def test_moments_are_the_whole_batchs() -> None:
    """A layer on four devices gives what it gives on one, and tells all the same moments."""
    x = np.asarray(unlike()["images"] * floats(1, -2, 3, 0.5))
    params = {
        "scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32),
        "mean": noise(4), "variance": np.ones(4, np.float32),
    }  # fmt: skip
    one = Norm(4, BATCH, FAST, training=True)
    shared = Norm(4, BATCH, FAST, training=True, axis_name=parallel.AXIS)

    def slope(norm: Norm, params: Any, x: Any) -> tuple[Any, Any]:
        """What the layer gives, and what its running statistics are told."""
        out = apply(norm, params, x)
        return out, jax.grad(lambda params: apply(norm, params, x).sum())(params)

    expected, told = slope(one, params, x)
    mapped = jax.pmap(functools.partial(slope, shared, params), parallel.AXIS)
    found, each = mapped(x.reshape(4, 1, *x.shape[1:]))
    np.testing.assert_allclose(np.asarray(found)[:, 0], expected, atol=2e-5)
    for statistic in ("mean", "variance"):
        everywhere = np.broadcast_to(np.asarray(told[statistic]), (4, 4))
        np.testing.assert_allclose(each[statistic], everywhere, rtol=1e-4)
    moments = np.asarray(params["variance"] - told["variance"])
    np.testing.assert_allclose(moments, x.var(axis=(0, 1, 2, 3)), rtol=1e-4)


@STAGE
def test_gradient_on_devices_is_that_of_one(name: str, double: None) -> None:
    """Moments couple the samples of all devices: the gradient goes through every one's share."""
    stage, params, batch = given_to(name, DOUBLE, "float64")
    batch["hr_mask"][1] = False  # nor does it matter that a device has nothing to learn from
    bare = jax.jit(lambda params, batch: gradients(params, batch, stage, DOUBLE))
    expected, expected_metrics = bare(params, batch)
    for count in (1, 2, 4):
        devices = jax.devices()[:count]
        mapped = jax.pmap(
            lambda params, batch: gradients(params, batch, stage, DOUBLE, parallel.AXIS),
            parallel.AXIS, in_axes=(None, 0), out_axes=(None, None), devices=devices,
        )  # fmt: skip
        gradient, metrics = mapped(params, parallel.shard(batch, devices))
        np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-12)
        found = leaves(gradient)
        for path, value in leaves(expected).items():
            size = max(1e-3, float(np.abs(value).max()))
            np.testing.assert_allclose(
                found[path], value, rtol=0, atol=1e-9 * size, err_msg=f"{count}: {path}"
            )


@STAGE
def test_steps_on_devices_are_those_of_one(name: str, double: None) -> None:
    """Losses, parameters and running statistics, over three steps."""
    stage, params, batch = given_to(name, DOUBLE, "float64")
    results = []
    for count in (1, 2, 4):
        devices = jax.devices()[:count]
        step = parallel.map_train_step(stage, DOUBLE, devices)
        state = parallel.replicate(init_state(params, stage, DOUBLE), devices)
        losses = []
        for _ in range(3):
            state, metrics = step(state, parallel.shard(batch, devices))
            losses.append(float(metrics["loss"]))
        results.append({**leaves(state.params), "losses": np.array(losses)})
    start = leaves(params)
    for path, one in results[0].items():
        for other in results[1:]:
            np.testing.assert_allclose(other[path], one, rtol=1e-9, atol=1e-9, err_msg=path)
        if is_running(path):
            assert np.abs(one - start[path]).max() > 1e-3, f"{path} did not move"


def test_devices_agree_in_single_precision() -> None:
    """A loss that is off in its third digit, as with moments of each device's own, is not
    rounding."""
    stage, params, batch = given_to("deepsum", CONFIG, "float32")
    losses, statistics = [], []
    for count in (1, 2, 4):
        devices = jax.devices()[:count]
        step = parallel.map_train_step(stage, CONFIG, devices)
        state = parallel.replicate(init_state(params, stage, CONFIG), devices)
        state, metrics = step(state, parallel.shard(batch, devices))
        losses.append(float(metrics["loss"]))
        statistics.append({k: v for k, v in leaves(state.params).items() if is_running(k)})
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
    for path, one in statistics[0].items():
        for other in statistics[1:]:
            np.testing.assert_allclose(other[path], one, rtol=1e-4, atol=1e-5, err_msg=path)


def is_running(path: str) -> bool:
    return path.split("/")[-1] in ("mean", "variance")


# --- from training to prediction


def test_trains_saves_and_predicts(tmp_path: Path) -> None:
    """Running statistics come near those of the batch, travel with the bundle, and are used."""
    config: TrainConfig = dataclasses.replace(
        CONFIG, deepsum=StageConfig(learning_rate=1e-2, steps=60)
    )
    given = batch(2)
    state = init_state(init_params(BATCH, jax.random.key(0)), DEEPSUM, config)
    step = jax.jit(make_train_step(DEEPSUM, config))
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
