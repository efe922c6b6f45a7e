"""SISR and SISR+Mean: SISRNet with its pretraining head, on single frames."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepsum_jax.config import Compute, ModelConfig
from deepsum_jax.data.fill import fill
from deepsum_jax.model.graph import GraphOptions, check_neighbours
from deepsum_jax.model.sisrnet import SISRNet
from deepsum_jax.systems.bicubic_mean import registered_mean
from deepsum_jax.systems.deepsum import nominal_work
from deepsum_jax.systems.pretraining import SISRNET, head_shapes, module_shapes, sisr_image
from deepsum_jax.systems.system import Params, Stack, SuperResolved, System, equal_weights


def param_shapes(config: ModelConfig) -> Any:
    """Shapes of SISRNet's parameters and its head's."""
    image = jax.ShapeDtypeStruct((1, 1, 8, 8, config.channels), jnp.float32)
    return {"sisrnet": module_shapes(SISRNet(config), image), "sisr_head": head_shapes(config)}


def one_frame(params: Params, stack: Stack, config: ModelConfig, compute: Compute) -> SuperResolved:
    """The reference frame alone."""
    lr = fill(stack.lr, stack.masks, config.hidden)[0]
    image = sisr_image(params, lr, config, compute)
    return SuperResolved(image, np.eye(len(stack.lr), dtype=np.float32)[0])


def mean(params: Params, stack: Stack, config: ModelConfig, compute: Compute) -> SuperResolved:
    """Mean of every frame's own super-resolved image, registered on frame 0."""
    frames = fill(stack.lr, stack.masks, config.hidden)
    images = np.stack([sisr_image(params, frame, config, compute) for frame in frames])
    image = registered_mean(images, frames, stack.masks, config.scale, stack.survey)
    return SuperResolved(image, equal_weights(len(frames)))


def _one_frame_work(model: ModelConfig, height: int, width: int, frames: int) -> float:
    return nominal_work(model, height, width).sisrnet / model.num_frames


SISR = System(
    name="sisr",
    label="SISR",
    options=GraphOptions,
    check=check_neighbours,
    stages=lambda config: (SISRNET,),
    param_shapes=param_shapes,
    super_resolve=one_frame,
    work=_one_frame_work,
)
SISR_MEAN = dataclasses.replace(
    SISR,
    name="sisr_mean",
    label="SISR+Mean",
    super_resolve=mean,
    work=lambda model, height, width, frames: nominal_work(model, height, width).sisrnet,
)
