"""The pure train step: (state, batch) → (state, metrics).

It runs bare, on one device, or mapped over a named axis of devices (`parallel`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from deepsum_jax.config import ModelConfig, StageConfig, TrainConfig
from deepsum_jax.model.layers import is_statistic
from deepsum_jax.systems.system import Batch, Params, Stage

Array = jax.Array

_STATISTICS_RATE = 0.05  # what a step's batch adds to batch norm's running statistics


class TrainState(NamedTuple):
    """What training changes: the stage's step count, parameters and optimiser."""

    step: Array  # int32 scalar
    params: Params
    opt_state: Any


def make_optimizer(
    config: StageConfig, model: ModelConfig = ModelConfig()
) -> optax.GradientTransformation:
    """Adam with the stage's schedule and clipping; betas and epsilon as published.

    Running statistics of a model with batch norm move by themselves, apart from it.
    """
    rate: optax.ScalarOrSchedule = config.learning_rate
    if config.schedule == "cosine" or config.warmup_steps:
        rest = max(1, config.steps - config.warmup_steps)
        after = (
            optax.cosine_decay_schedule(config.learning_rate, rest)
            if config.schedule == "cosine"
            else optax.constant_schedule(config.learning_rate)
        )
        # Step 0 already learns: the ramp's first value is one part, not nothing.
        parts = config.warmup_steps + 1
        ramp = optax.linear_schedule(
            config.learning_rate / parts, config.learning_rate, config.warmup_steps
        )
        rate = optax.join_schedules([ramp, after], [config.warmup_steps])
    transforms: list[optax.GradientTransformation] = [optax.adam(rate, b1=0.9, b2=0.999, eps=1e-8)]
    if config.clip_norm:
        transforms.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.regnet_rate != 1:
        # The loss forgives a shift that all frames have in common, and at the full rate a RegNet
        # that arrives trained drifts into one.
        def is_regnet(params: Params) -> dict[str, bool]:
            return {name: name == "regnet" for name in params}

        transforms.append(optax.masked(optax.scale(config.regnet_rate), is_regnet))
    if model.norm != "batch":
        return optax.chain(*transforms)

    def kinds(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "statistics" if is_statistic(path) else "learned", params
        )

    return optax.partition(
        {"learned": optax.chain(*transforms), "statistics": optax.sgd(_STATISTICS_RATE)}, kinds
    )


def split_params(params: Params, stage: Stage) -> tuple[Params, Params]:
    """Parameters that the stage trains, and those that it only reads."""
    trained = {k: v for k, v in params.items() if k in stage.trains}
    return trained, {k: v for k, v in params.items() if k not in stage.trains}


def init_state(params: Params, stage: Stage, config: TrainConfig) -> TrainState:
    """The state before a stage's first step."""
    optimizer = make_optimizer(getattr(config, stage.name), config.model)
    trained, _ = split_params(params, stage)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained))


def gradients(
    params: Params, batch: Batch, stage: Stage, config: TrainConfig, axis_name: str | None = None
) -> tuple[Params, dict[str, Array]]:
    """Gradients of a stage's mean loss over a batch, for the sub-trees that it trains.

    The mean is over the samples whose target has a reliable pixel, wherever they lie; the others
    have no loss to count.

    Args:
      axis_name: of the mapped device axis that the batch is spread over.

    Returns:
      The gradients and {"loss", …} scalars.
    """
    trained, read = split_params(params, stage)

    def mean_loss(trained: Params) -> tuple[Array, dict[str, Array]]:
        loss, diagnostics = stage.loss({**trained, **read}, batch, config, axis_name)
        means = {name: value.mean() for name, value in diagnostics.items()}
        counts = _counts(batch, loss)
        total, devices = counts.sum(), 1
        if axis_name is not None:
            total, devices = lax.psum(total, axis_name), lax.axis_size(axis_name)
        # This device's part of the batch's mean, times the devices: the mean over them is it.
        mean = devices * (counts * loss).sum() / jnp.maximum(total, 1)
        return mean, {"loss": mean, **means}

    result = jax.grad(mean_loss, has_aux=True)(trained)
    if axis_name is not None:
        result = lax.pmean(result, axis_name)
    return result


def _counts(batch: Batch, loss: Array) -> Array:
    """[B], 1 where a sample's target has a reliable pixel, else 0."""
    if "hr_mask" not in batch:
        return jnp.ones_like(loss)
    return batch["hr_mask"].astype(bool).any(axis=(1, 2, 3)).astype(loss.dtype)


def _all_finite(tree: Any) -> Array:
    """Whether every value of a tree is finite."""
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def make_train_step(
    stage: Stage, config: TrainConfig, axis_name: str | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The pure train step of a stage.

    Args:
      axis_name: of the mapped device axis, if any.

    Returns:
      (state, batch) → (state, {"loss", "gradient_norm", …} scalars). Where the loss, the gradient
      or what would come of it is not finite, parameters and optimiser stay as they were, the step
      counts all the same, and "skipped" is 1, else 0.
    """
    optimizer = make_optimizer(getattr(config, stage.name), config.model)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        trained, read = split_params(state.params, stage)
        gradient, metrics = gradients(state.params, batch, stage, config, axis_name)
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, trained)
        params = optax.apply_updates(trained, updates)
        # A sum over all, so that every device comes to the same.
        finite = jnp.isfinite(metrics["loss"] + metrics["gradient_norm"]) & _all_finite(params)
        metrics["skipped"] = 1 - finite.astype(jnp.float32)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state),
            (trained, state.opt_state),
        )
        return TrainState(state.step + 1, {**params, **read}, opt_state), metrics

    return train_step
