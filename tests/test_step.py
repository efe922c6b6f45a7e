"""The pure steps: devices agree, everything lowers for accelerators, each stage learns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsum_jax.config import Compute, ModelConfig, StageConfig, TrainConfig, preset
from deepsum_jax.systems import deepsum, duf
from deepsum_jax.systems.system import Stage
from deepsum_jax.systems.windows import Forward
from deepsum_jax.training import parallel, stages
from deepsum_jax.training.step import gradients, init_state, make_optimizer, make_train_step

Batch = dict[str, np.ndarray]

STAGES = deepsum.stages(ModelConfig())
STAGE = pytest.mark.parametrize("stage", STAGES, ids=lambda s: s.name)
END_TO_END = stages.stage("deepsum")


def _config(dtype: Literal["float32", "float64"] = "float32", **model: Any) -> TrainConfig:
    tiny = preset("tiny")
    network = dataclasses.replace(tiny.model, **{"residual_init": "glorot", **model})
    return dataclasses.replace(tiny, model=network, compute=Compute(dtype, dtype))


def _batch(stage: Stage, config: TrainConfig, size: int = 4, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    model, side = config.model, config.data.patch_size
    frames = model.num_frames if stage.view == "stacks" else 1
    dtype = config.compute.param_dtype
    batch: Batch = {"images": rng.standard_normal((size, frames, side, side, 1)).astype(dtype)}
    if stage.view == "shifts":
        reach = model.filter_size // 2
        shifts = rng.integers(-reach, reach + 1, (size, model.num_frames, 2))
        batch["shifts"] = shifts.astype(np.int32)
        return batch
    batch["hr"] = rng.standard_normal((size, side, side, 1)).astype(dtype)
    batch["hr_mask"] = rng.random((size, side, side, 1)) < 0.9
    if stage.view == "stacks":
        batch["masks"] = rng.random((size, frames, side, side, 1)) < 0.8
    return batch


@functools.cache
def _params(stage: Stage, config: TrainConfig) -> Any:
    key = jax.random.key(1)
    params = stages.fresh_params(stage, config.model, key, config.compute)
    return jax.tree.map(np.asarray, params)


def _leaves(tree: Any) -> Mapping[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(v) for p, v in leaves}


def _has_zero_gradient(path: str) -> bool:
    """Biases that a norm or the brightness correction removes."""
    return (
        path.endswith("conv_out/bias")
        or path == "sisr_head/conv/bias"
        or (path.endswith("bias") and "conv" in path and not path.startswith("regnet"))
    )


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@STAGE
def test_devices_agree_in_double_precision(stage: Stage, double: None) -> None:
    """Five steps on 1, 2 and 4 devices: every parameter within 1e-8."""
    config = _config("float64")
    batches = [_batch(stage, config, seed=n) for n in range(5)]
    results = []
    for count in (1, 2, 4):
        devices = jax.devices()[:count]
        step = parallel.map_train_step(stage, config, devices)
        state = parallel.replicate(init_state(_params(stage, config), stage, config), devices)
        for batch in batches:
            state, _ = step(state, parallel.shard(batch, devices))
        results.append(_leaves(state.params))
    start = _leaves(_params(stage, config))
    for path, one in results[0].items():
        for other in results[1:]:
            np.testing.assert_allclose(other[path], one, rtol=0, atol=1e-8, err_msg=path)
        if path.split("/")[0] in stage.trains and not _has_zero_gradient(path):
            assert np.abs(one - start[path]).max() > 1e-5, f"{path} did not move"


@STAGE
def test_devices_agree_in_single_precision(stage: Stage) -> None:
    """First-step gradients within 1e-5 of each tensor's norm; losses within 1e-3 over steps."""
    config = _config()
    batch = _batch(stage, config)
    found = []
    for count in (1, 2, 4):
        devices = jax.devices()[:count]

        def run(params: Any, batch: Any) -> Any:
            return gradients(params, batch, stage, config, parallel.AXIS)

        mapped = jax.pmap(
            run, parallel.AXIS, in_axes=(None, 0), out_axes=(None, None), devices=devices
        )
        gradient, metrics = mapped(_params(stage, config), parallel.shard(batch, devices))
        found.append((_leaves(gradient), float(metrics["loss"])))
    (one, loss), *others = found
    for gradient, other_loss in others:
        np.testing.assert_allclose(other_loss, loss, rtol=1e-3)
        for path, value in one.items():
            if not _has_zero_gradient(path):
                error = np.linalg.norm(gradient[path] - value)
                assert error <= 1e-5 * np.linalg.norm(value), path


@STAGE
def test_mapped_step_is_the_bare_step(stage: Stage) -> None:
    config = _config()
    state, batch = init_state(_params(stage, config), stage, config), _batch(stage, config)
    bare, bare_metrics = jax.jit(make_train_step(stage, config))(state, batch)
    devices = jax.devices()[:2]
    mapped = parallel.map_train_step(stage, config, devices)
    other, metrics = mapped(parallel.replicate(state, devices), parallel.shard(batch, devices))
    assert int(other.step) == int(bare.step) == 1
    np.testing.assert_allclose(metrics["loss"], bare_metrics["loss"], rtol=1e-5)
    for path, value in _leaves(bare.params).items():
        if not _has_zero_gradient(path):
            np.testing.assert_allclose(_leaves(other.params)[path], value, atol=2e-4, err_msg=path)


# Samples of a batch of four whose targets show nothing: on two devices, all of one's; on four,
# all of two's or three's; and all there are.
HIDDEN = pytest.mark.parametrize("hidden", [(), (2,), (0, 1), (0, 1, 3), (0, 1, 2, 3)], ids=str)


def _plain_config(**model: Any) -> TrainConfig:
    """In double precision, by formulations that compile fast."""
    config = _config("float64", **model)
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, backend="plain"))


@functools.cache
def _mapped_gradients(stage: Stage, config: TrainConfig, count: int) -> Any:
    """On so many devices; on none: bare."""
    if not count:
        return jax.jit(lambda params, batch: gradients(params, batch, stage, config))
    return jax.pmap(
        lambda params, batch: gradients(params, batch, stage, config, parallel.AXIS),
        parallel.AXIS, in_axes=(None, 0), out_axes=(None, None), devices=jax.devices()[:count],
    )  # fmt: skip


@functools.cache
def _one_by_one(stage: Stage, config: TrainConfig) -> list[tuple[float, Mapping[str, np.ndarray]]]:
    """Loss and gradient of each sample of the batch by itself, none hidden."""
    batch, params = _batch(stage, config), _params(stage, config)

    def loss(trained: Any, sample: Any) -> jax.Array:
        return stage.loss({**params, **trained}, sample, config, None)[0][0]

    evaluate = jax.jit(jax.value_and_grad(loss))
    trained = {name: params[name] for name in stage.trains}
    found = [evaluate(trained, {k: v[[n]] for k, v in batch.items()}) for n in range(4)]
    return [(float(value), _leaves(gradient)) for value, gradient in found]


@HIDDEN
@pytest.mark.parametrize(
    "stage", [s for s in (*STAGES, duf.STAGE) if s.view != "shifts"], ids=lambda s: s.trains[0]
)
def test_mean_is_over_targets_that_show_something(
    stage: Stage, hidden: tuple[int, ...], double: None
) -> None:
    """Loss and gradient of the others alone, on however many devices they lie."""
    config = _plain_config(system="duf" if stage is duf.STAGE else "deepsum")
    batch, params = _batch(stage, config), _params(stage, config)
    alone = _one_by_one(stage, config)
    others = [n for n in range(4) if n not in hidden]
    loss = sum(alone[n][0] for n in others) / max(1, len(others))
    batch["hr_mask"][list(hidden)] = False
    for count in (0, 1, 2, 4):
        given = parallel.shard(batch, jax.devices()[:count]) if count else batch
        gradient, metrics = _mapped_gradients(stage, config, count)(params, given)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-10, err_msg=f"{count} devices")
        for path, found in _leaves(gradient).items():
            expected = np.zeros_like(found)
            for n in others:
                expected += alone[n][1][path] / len(others)
            size = max(1e-3, float(np.abs(expected).max()))
            np.testing.assert_allclose(
                found, expected, rtol=0, atol=1e-10 * size, err_msg=f"{count} devices: {path}"
            )


@functools.cache
def _mapped_step(stage: Stage, config: TrainConfig, count: int) -> Any:
    return parallel.map_train_step(stage, config, jax.devices()[:count])


@HIDDEN
def test_steps_with_hidden_targets_agree(hidden: tuple[int, ...], double: None) -> None:
    """Parameters after two steps on 1, 2 and 4 devices; a batch that shows nothing moves none."""
    config, stage = _plain_config(), END_TO_END
    batch, start = _batch(stage, config), _params(stage, config)
    batch["hr_mask"][list(hidden)] = False
    results = []
    for count in (1, 2, 4):
        devices = jax.devices()[:count]
        state = parallel.replicate(init_state(start, stage, config), devices)
        for _ in range(2):
            step = _mapped_step(stage, config, count)
            state, metrics = step(state, parallel.shard(batch, devices))
        results.append({**_leaves(state.params), "loss": np.asarray(metrics["loss"])})
    for path, one in results[0].items():
        for other in results[1:]:
            np.testing.assert_allclose(other[path], one, rtol=0, atol=1e-8, err_msg=path)
    moved = max(np.abs(results[0][path] - v).max() for path, v in _leaves(start).items())
    assert (moved == 0) if len(hidden) == 4 else (moved > 1e-4)


def test_fresh_parameters_are_of_the_dtype_asked_for() -> None:
    for stage in STAGES:
        single, double = _params(stage, _config()), _params(stage, _config("float64"))
        for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(double), strict=True):
            assert (a.dtype, b.dtype) == (np.float32, np.float64)
            np.testing.assert_array_equal(a, b.astype(np.float32))


@STAGE
def test_only_trained_sub_trees_change(stage: Stage) -> None:
    config = _config()
    params = _params(stage, config)
    state = init_state(params, stage, config)
    after, _ = jax.jit(make_train_step(stage, config))(state, _batch(stage, config))
    for name in params:
        moved = any(
            not np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(params[name]), jax.tree.leaves(after.params[name]))
        )
        assert moved == (name in stage.trains), name


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@STAGE
def test_reference_step_lowers_for_accelerators(stage: Stage, platform: str) -> None:
    config = TrainConfig()
    params = stages.fresh_params(stage, config.model, jax.random.key(0))
    state = jax.eval_shape(lambda p: init_state(p, stage, config), params)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _batch(stage, config, size=2)
    )
    traced = jax.jit(make_train_step(stage, config)).trace(state, batch)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.convolution" in text
    assert "callback" not in text


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_forward_lowers_for_accelerators(platform: str) -> None:
    model = ModelConfig()
    params = stages.fresh_params(END_TO_END, model, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 9, 96, 96, 1), jnp.float32)
    masks = jax.ShapeDtypeStruct((1, 9, 96, 96, 1), jnp.bool_)
    traced = jax.jit(Forward(deepsum.run, model)).trace(params, images, masks)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.convolution" in text
    assert "callback" not in text


@STAGE
def test_stage_learns(stage: Stage) -> None:
    """A few steps on one batch lower its loss."""
    settings = StageConfig(steps=30, batch_size=2, learning_rate=3e-3)
    every: Any = {stage.name: settings}
    config = dataclasses.replace(_config(), **every)
    batch = _batch(stage, config, size=2)
    state, step = init_state(_params(stage, config), stage, config), None
    step = jax.jit(make_train_step(stage, config))
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]


def test_schedule_warms_up_and_decays() -> None:
    def rates(config: StageConfig) -> list[float]:
        """Step sizes of Adam for a constant gradient: its learning rate, step by step."""
        optimizer = make_optimizer(config)
        params = {"w": jnp.zeros(())}
        state, moved = optimizer.init(params), []
        for _ in range(config.steps):
            updates, state = optimizer.update({"w": jnp.ones(())}, state, params)
            moved.append(-float(updates["w"]))
        return moved

    constant = rates(StageConfig(steps=5, learning_rate=0.1))
    np.testing.assert_allclose(constant, 0.1, rtol=1e-4)
    cosine = rates(StageConfig(steps=12, learning_rate=0.1, schedule="cosine", warmup_steps=3))
    assert 0 < cosine[0] < cosine[1] < cosine[2] < cosine[3]
    np.testing.assert_allclose(cosine[3], 0.1, rtol=1e-4)
    assert (np.diff(cosine[3:]) < 0).all()
    assert cosine[-1] < 0.01


def test_regnet_learns_at_its_own_rate() -> None:
    optimizer = make_optimizer(StageConfig(learning_rate=0.1, regnet_rate=0.25))
    params = {name: {"w": jnp.zeros(2)} for name in ("sisrnet", "regnet", "fusionnet")}
    gradient = {name: {"w": jnp.ones(2)} for name in params}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    moved = {name: -float(u["w"][0]) for name, u in updates.items()}
    assert moved == pytest.approx({"sisrnet": 0.1, "regnet": 0.025, "fusionnet": 0.1}, rel=1e-4)


def test_clipping_bounds_the_gradient() -> None:
    """Adam is blind to a common factor, so clipping shows only where steps differ in size."""
    optimizer = make_optimizer(StageConfig(clip_norm=1.0, learning_rate=0.1))
    plain = make_optimizer(StageConfig(learning_rate=0.1))
    params = {"w": jnp.zeros(())}

    def second_step(tx: Any) -> float:
        state = tx.init(params)
        _, state = tx.update({"w": jnp.asarray(1e-2)}, state, params)
        updates, _ = tx.update({"w": jnp.asarray(1e3)}, state, params)
        return -float(updates["w"])

    assert second_step(optimizer) != pytest.approx(second_step(plain), rel=1e-3)
