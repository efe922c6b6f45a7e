"""Pure train and evaluation steps: (state, batch) → (state, metrics).

They run bare, on one device, or mapped over a named axis of devices (`parallel`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from deepsum_jax import systems
from deepsum_jax.config import ModelConfig, StageConfig, TrainConfig
from deepsum_jax.deepsum import Params, from_output
from deepsum_jax.layers import is_statistic
from deepsum_jax.stages import Stage

Array = jax.Array
Batch = Mapping[str, Array]

_LARGE = 2**14  # pixels from which on one frame fills a device by itself
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

    Args:
      axis_name: of the mapped device axis, over which gradients and metrics are averaged.

    Returns:
      The gradients and {"loss", …} scalars.
    """
    trained, read = split_params(params, stage)

    def mean_loss(trained: Params) -> tuple[Array, dict[str, Array]]:
        loss, diagnostics = stage.loss({**trained, **read}, batch, config)
        means = {name: value.mean() for name, value in diagnostics.items()}
        return loss.mean(), {"loss": loss.mean(), **means}

    result = jax.grad(mean_loss, has_aux=True)(trained)
    if axis_name is not None:
        # Every device holds as many samples, so the mean of means is the batch's mean.
        result = lax.pmean(result, axis_name)
    return result


def make_train_step(
    stage: Stage, config: TrainConfig, axis_name: str | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The pure train step of a stage.

    Args:
      axis_name: of the mapped device axis, if any.

    Returns:
      (state, batch) → (state, {"loss", "gradient_norm", …} scalars).
    """
    optimizer = make_optimizer(getattr(config, stage.name), config.model)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        trained, read = split_params(state.params, stage)
        gradient, metrics = gradients(state.params, batch, stage, config, axis_name)
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, trained)
        params = {**optax.apply_updates(trained, updates), **read}
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


@dataclasses.dataclass(frozen=True)
class Forward:
    """The network from standardised inputs to raw counts; hashable, for jit."""

    config: ModelConfig

    def __call__(
        self,
        params: Params,
        images: Array,
        masks: Array,
        masks_registered: bool = False,
        shifts: Array | None = None,
    ) -> tuple[Array, Array]:
        """images [B, N, H, W, C], masks [B, N, H, W, 1], shifts [B, N, 2] where the system takes
        them → SR [B, H, W, C] in raw counts, and filters [B, N − 1, K, K]."""
        large = images.shape[2] * images.shape[3] >= _LARGE
        output = systems.run(
            params, images, masks, self.config, masks_registered, shifts, frame_by_frame=large
        )
        return from_output(output.sr, self.config.normalization), output.filters
