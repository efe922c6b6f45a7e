"""DeepSUM as a system: its stages, its parameters, and how it runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from deepsum_jax import losses
from deepsum_jax.config import Compute, ModelConfig, TrainConfig
from deepsum_jax.data.prepare import PreparedScene
from deepsum_jax.model import deepsum as network
from deepsum_jax.model.graph import RANK, GraphOptions, candidates, check_neighbours
from deepsum_jax.model.layers import apply
from deepsum_jax.systems import windows
from deepsum_jax.systems.pretraining import REGNET, SISRNET, head_shapes
from deepsum_jax.systems.robust.agreeing import agreeing
from deepsum_jax.systems.system import Batch, Params, Stack, Stage, SuperResolved, System

Array = jax.Array

PROPOSERS = {
    "regnet": "RegNet",
    "shifts": "learned shifts",
    "correlation": "cross-correlation, fixed kernel",
    "agreement": "robust back-projection's shifts, fixed kernel",
    "none": "no registration",
}
"""Where the dynamic filters come from, by `ModelConfig.registration`."""


def run(
    params: Params,
    images: Array,
    masks: Array,
    config: ModelConfig,
    compute: Compute,
    shifts: Array | None = None,
    frame_by_frame: bool = False,
    training: bool = False,
    axis_name: str | None = None,
) -> network.Output:
    """The network on a batch of inputs, as `data.inputs` makes them."""
    module = network.DeepSUM(config, compute, frame_by_frame, training, axis_name)
    return apply(module, params, images, masks, config.takes_registered_masks, shifts)


def loss(
    params: Params, batch: Batch, config: TrainConfig, axis_name: str | None = None
) -> tuple[Array, dict[str, Array]]:
    """Registered MSE of the whole network, in output units."""
    output = run(
        params, batch["images"], batch["masks"], config.model, config.compute,
        batch.get("frame_shifts"), training=True, axis_name=axis_name,
    )  # fmt: skip
    return losses.registered_mse(output.sr, batch["hr"], batch["hr_mask"], config.border), {}


def scene_image(
    params: Params, scene: PreparedScene, config: TrainConfig
) -> tuple[np.ndarray, np.ndarray]:
    """SR [H, W, C] raw of a scene's N clearest frames, and filters."""
    forward = windows.Forward(run, config.model, config.compute)
    return windows.scene_image(forward, params, scene)


END_TO_END = Stage(
    "deepsum",
    loss,
    trains=("sisrnet", "regnet", "fusionnet"),
    view="stacks",
    takes=("sisrnet", "regnet"),
    image=scene_image,
)


def stages(config: ModelConfig) -> tuple[Stage, ...]:
    """All three, or without RegNet's where nothing learns to register."""
    if config.learns_registration:
        return (SISRNET, REGNET, END_TO_END)
    trains = tuple(name for name in END_TO_END.trains if name != "regnet")
    return (SISRNET, dataclasses.replace(END_TO_END, trains=trains, takes=("sisrnet",)))


def param_shapes(config: ModelConfig) -> Any:
    """Shapes of the parameters, in the order in which data flows (JAX sorts by name)."""
    module = network.DeepSUM(config)

    def init(images: Array, masks: Array, shifts: Array) -> Any:
        given = shifts if config.takes_shifts else None
        return module.init(jax.random.key(0), images, masks, True, given)

    shapes = windows.stack_shapes(init, config)
    return {name: shapes[name] for name in END_TO_END.trains if name in shapes}


def reach(config: ModelConfig, side: int) -> float:
    """That of the filters, LR pixels, to the nearest whole one."""
    return round(config.filter_size // 2 / config.scale)


def super_resolve(
    params: Params, stack: Stack, config: ModelConfig, compute: Compute
) -> SuperResolved:
    """A stack through the sliding window."""
    forward = windows.Forward(run, config, compute)
    return windows.super_resolve(forward, params, stack, PROPOSERS[config.registration])


# --- nominal work --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Work:
    """Floating-point operations of the published network's parts, for one stack."""

    sisrnet: float
    regnet: float
    dynamic: float
    fusionnet: float

    @property
    def total(self) -> float:
        return self.sisrnet + self.regnet + self.dynamic + self.fusionnet


def nominal_work(model: ModelConfig, height: int, width: int) -> Work:
    """Multiplications and additions of one forward pass over a stack of [N, height, width].

    As the published graph does it: RegNet's convolutions on every pair, full-size 3-D ones; and a
    network that makes both factors of every edge's matrix, where there are graph layers.
    """
    pixels, n, f = 2.0 * height * width, model.num_frames, model.features
    c, taps = model.channels, model.filter_size**2
    per_frame = 9.0 * (c * f + (model.sisrnet_layers - 1) * f * f)
    if model.neighbours:
        search, edges = GraphOptions.from_dict(model.options).search, model.neighbours
        graph = 1.5 * candidates(search) * f + edges * (f * f * (1 + 2 * RANK) + 3 * f * RANK)
        per_frame += model.sisrnet_layers // 2 * graph  # every second layer
    per_pair = 9 * (2 * f * 2 * f + 2 * f * f + 2 * f * f + f * taps)
    fused = sum(range(1, n - 1, 2))  # frames that the layers leave
    return Work(
        sisrnet=pixels * n * per_frame,
        regnet=pixels * (n - 1) * per_pair,
        dynamic=pixels * (n - 1) * taps * (f + c),
        fusionnet=pixels * (fused * 27 * f * f + f * c),
    )


def work(model: ModelConfig, height: int, width: int, frames: int) -> float:
    """Of all windows that so many frames make."""
    parts = nominal_work(model, height, width)
    learned = parts.regnet * model.learns_registration
    registered = learned + parts.dynamic * (model.registration != "none")
    count = windows.count_windows(frames, model)
    return count * (parts.sisrnet + parts.fusionnet + registered)


DEEPSUM = System(
    name="deepsum",
    label="DeepSUM",
    options=GraphOptions,
    check=check_neighbours,
    stages=stages,
    param_shapes=param_shapes,
    stage_shapes=lambda config: {"sisr_head": head_shapes(config)},
    zeroed=(("fusionnet", "conv_out"),),
    super_resolve=super_resolve,
    agree=agreeing,
    reach=reach,
    work=work,
)
