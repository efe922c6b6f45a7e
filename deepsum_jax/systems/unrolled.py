"""Unrolled back-projection as a system: learned steps through the sensor, one band at a time.

It takes any number of frames and any unit, and tells how sure it is of each pixel; see
`unrolling.network`. The loss knows no alignment search and no brightness correction where the
truth lies on the reference's grid and date: position and brightness are then part of the truth.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsum_jax import losses
from deepsum_jax.config import Compute, ModelConfig, Section, TrainConfig
from deepsum_jax.data.aligned import Aligned
from deepsum_jax.data.prepare import PreparedScene
from deepsum_jax.model.layers import apply
from deepsum_jax.systems.robust_ibp import preferred_reference
from deepsum_jax.systems.system import (
    Batch,
    Params,
    Stack,
    Stage,
    Standalone,
    SuperResolved,
    System,
)
from deepsum_jax.systems.unrolling import alignment
from deepsum_jax.systems.unrolling.network import OWN_STEPS, Output, Unrolled
from deepsum_jax.systems.unrolling.standalone import prepare

Array = jax.Array

PARTS = ("own", "agreement", "fusion", "error")
_OWN, _SURE = 0.5, 0.05  # parts of the loss that the own image and the standard error have
_DECIBEL = -10 / np.log(10)  # of a logarithm of an error
_LEAST = 1e-6  # of the contrast squared; an error below it counts no more
# One network at a time uses all of a device; two would only need twice the memory. What else is to
# be done for a tile goes on beside it.
_COMPUTING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """The network's size, and what its truth is."""

    features: int = 48  # of the convolutions, 2–1024
    own_blocks: int = 3  # residual blocks that see the reference alone, 0–64
    blocks: int = 4  # that see what the others add, 0–64
    agreement_features: int = 16  # of the network that weighs frames, 2–1024
    iterations: int = 8  # weighted back-projections, 0–64
    momentum: bool = False  # in them, so that they go further, and most so where many frames speak
    # "grid": HR lies on the reference's grid and date. "registered": it may be shifted and
    # brighter, as HR of another sensor is.
    truth: Literal["grid", "registered"] = "grid"

    def check(self) -> None:
        for name in ("features", "agreement_features"):
            self._require(2 <= getattr(self, name) <= 1024, name, "2 to 1024")
        for name in ("own_blocks", "blocks", "iterations"):
            self._require(0 <= getattr(self, name) <= 64, name, "0 to 64")


def options_of(config: ModelConfig) -> Options:
    return Options.from_dict(config.options)


def network(config: ModelConfig, compute: Compute = Compute()) -> Unrolled:
    """The network of a configuration."""
    chosen = options_of(config)
    return Unrolled(
        config.scale, config.psf_sigma, chosen.features, chosen.own_blocks, chosen.blocks,
        chosen.agreement_features, chosen.iterations, chosen.momentum, compute,
    )  # fmt: skip


def param_shapes(config: ModelConfig) -> Any:
    """Shapes of the parameters, in the order in which data flows (JAX sorts by name)."""
    shape = (2, 8, 8)
    given = (
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.bool_),
        jax.ShapeDtypeStruct((2, 2), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    init = functools.partial(network(config).init, jax.random.key(0))
    shapes = jax.eval_shape(init, *given)["params"]
    return {name: shapes[name] for name in PARTS}


def check(config: ModelConfig) -> None:
    """Raises ValueError where a configuration asks for what this system has not."""
    if config.channels != 1:
        raise ValueError(
            f"model.channels: found {config.channels}, expected 1: bands are super-resolved one "
            "by one"
        )


# --- training ------------------------------------------------------------------------------------


def _alone(
    params: Params, config: ModelConfig, compute: Compute, free: bool,
    frame: Array, mask: Array, noise: Array,
) -> Array:  # fmt: skip
    """What the network makes of a reference [h, w] alone: [H, W]."""
    given = {"params": {"own": params["own"]}}
    image: Any = network(config, compute).apply(
        given, frame, mask, noise, free, method="reference_alone"
    )
    return image


def run(params: Params, batch: Batch, config: ModelConfig, compute: Compute) -> Output:
    """The network on a batch of aligned records, free to err; see `data.patches`."""
    module = network(config, compute)
    return jax.vmap(lambda *given: apply(module, params, *given, True))(
        batch["frames"][..., 0], batch["masks"][..., 0], batch["frame_shifts"], batch["noise"]
    )


def own_loss(
    params: Params, batch: Batch, config: TrainConfig, axis_name: str | None = None
) -> tuple[Array, dict[str, Array]]:
    """Log mean square error of what is made of the reference alone.

    Diagnostics: `own_decibels`, contrast over error.
    """
    alone = functools.partial(_alone, params, config.model, config.compute, True)
    image = jax.vmap(alone)(
        batch["frames"][:, 0, ..., 0], batch["masks"][:, 0, ..., 0], batch["noise"]
    )
    error = _log_error(image, batch, config)
    return error, {"own_decibels": _DECIBEL * error}


def loss(
    params: Params, batch: Batch, config: TrainConfig, axis_name: str | None = None
) -> tuple[Array, dict[str, Array]]:
    """Log mean square errors: of the image, of the reference's own, of what is said of both.

    A decibel counts the same on calm and on lively ground. The image pays once more for what it
    is worse than the reference's own. Diagnostics: `decibels` and `own_decibels`, contrast over
    error.
    """
    output = run(params, batch, config.model, config.compute)
    fused, own = (_log_error(image, batch, config) for image in (output.sr, output.own))
    worse = jax.nn.relu(fused - lax.stop_gradient(own))
    total = fused + _OWN * own + worse
    if options_of(config.model).truth == "grid":
        hr, mask = _truth(batch)
        square = lax.stop_gradient(jnp.square(output.sr - hr)) + 1e-9
        unlikely = output.log_variance + square * jnp.exp(-output.log_variance)
        total = total + _SURE * _mean(unlikely, mask, config.border)
    return total, {"decibels": _DECIBEL * fused, "own_decibels": _DECIBEL * own}


def _truth(batch: Batch) -> tuple[Array, Array]:
    """HR [B, H, W] and where it is reliable; what a mask hides may be NaN, and is 0 here."""
    mask = batch["hr_mask"][..., 0]
    return jnp.where(mask, batch["hr"][..., 0], 0), mask


def _log_error(image: Array, batch: Batch, config: TrainConfig) -> Array:
    """Logarithm of the mean square error of images [B, H, W] → [B]."""
    hr, mask = _truth(batch)
    if options_of(config.model).truth == "registered":
        error = losses.registered_mse(
            image[..., None], hr[..., None], mask[..., None], config.border
        )
    else:
        error = _mean(jnp.square(image - hr), mask, config.border)
    return jnp.log(error + _LEAST)


def _mean(x: Array, mask: Array, border: int) -> Array:
    """Means over reliable pixels within a border: [B, H, W] → [B]."""
    inner = slice(border, -border or None)
    known = mask[:, inner, inner].astype(x.dtype)
    return (known * x[:, inner, inner]).sum(axis=(1, 2)) / jnp.maximum(known.sum(axis=(1, 2)), 1)


def scene_image(
    params: Params, scene: PreparedScene, config: TrainConfig
) -> tuple[np.ndarray, None]:
    """SR [H, W, 1] raw of all of a scene's frames."""
    assert scene.aligned is not None
    # One shape for all scenes of a size, and so one compilation.
    stack = scene.aligned.of(max(config.model.num_frames, len(scene.aligned.frames)))
    return stack.raw(_images(params, [stack], config.model, config.compute).sr[0])[..., None], None


def own_scene_image(
    params: Params, scene: PreparedScene, config: TrainConfig
) -> tuple[np.ndarray, None]:
    """SR [H, W, 1] raw of a scene's reference alone."""
    assert scene.aligned is not None
    one = scene.aligned.of(1)
    image = _compiled_alone(_plain(config.model), config.compute)(
        params, one.frames[0], one.masks[0], one.noise
    )
    return one.raw(np.asarray(image, np.float32))[..., None], None


# The image of the reference first, which needs no other frame, and is cheap to learn.
OWN = Stage(
    "sisrnet", own_loss, trains=("own",), view="aligned", image=own_scene_image, log_loss=True
)
END_TO_END = Stage(
    "deepsum", loss, trains=PARTS, view="aligned", takes=("own",), image=scene_image, log_loss=True
)


# --- prediction ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _compiled(config: ModelConfig, compute: Compute, devices: int = 1) -> Callable[..., Output]:
    """The network on one stack, or on one for each of several devices."""
    run = functools.partial(apply, network(config, compute))
    if devices == 1:
        return jax.jit(run)
    return jax.pmap(run, in_axes=(None, 0, 0, 0, 0), devices=jax.local_devices()[:devices])


@functools.lru_cache(maxsize=8)
def _compiled_alone(config: ModelConfig, compute: Compute) -> Callable[..., Array]:
    """`_alone` of one reference."""
    return jax.jit(lambda params, *given: _alone(params, config, compute, False, *given))


def _plain(config: ModelConfig) -> ModelConfig:
    """The normalisation is no part of the computation, and must not compile it anew."""
    return dataclasses.replace(config, normalization=ModelConfig().normalization)


def _images(
    params: Params, stacks: Sequence[Aligned], config: ModelConfig, compute: Compute
) -> Any:
    """The network's `Output` for stacks of one shape, at most one for each device, as numpy's
    arrays with a leading axis."""
    run = _compiled(_plain(config), compute, len(stacks))
    given = [(s.frames, s.masks, s.shifts, s.noise) for s in stacks]
    with _COMPUTING:
        if len(stacks) == 1:
            output = jax.tree.map(lambda x: x[None], run(params, *given[0]))
        else:
            output = run(params, *(np.stack(parts) for parts in zip(*given)))
        return jax.tree.map(lambda x: np.asarray(x, np.float32), output)


def align(lr: np.ndarray, masks: np.ndarray, config: ModelConfig) -> Aligned:
    return alignment.align(lr, masks, config.scale, config.psf_sigma)


def super_resolve(
    params: Params, stack: Stack, config: ModelConfig, compute: Compute
) -> SuperResolved:
    return super_resolve_many(params, [stack], config, compute)[0]


def super_resolve_many(
    params: Params, stacks: Sequence[Stack], config: ModelConfig, compute: Compute
) -> list[SuperResolved]:
    """Parts of one survey, or one stack; at most one for each device."""
    aligned = []
    for lr, masks, survey in stacks:
        one = alignment.align(lr, masks, config.scale, config.psf_sigma, survey)
        # As many frames in all parts of a large stack, and so one compilation.
        aligned.append(one if survey is None else one.of(survey.frames))
    outputs = _images(params, aligned, config, compute)
    results = []
    for n, (stack, one) in enumerate(zip(stacks, aligned)):
        output = jax.tree.map(lambda x, n=n: x[n], outputs)
        parts = output.weights[: len(stack.lr)].sum(axis=(1, 2), dtype=np.float64)
        error = np.exp(output.log_variance / 2) * np.float32(one.contrast)
        results.append(
            SuperResolved(
                one.raw(output.sr)[..., None],
                (parts / max(parts.sum(), 1e-12)).astype(np.float32),
                standard_error=error[..., None],
                frames_per_pixel=output.spoke,
            )
        )
    return results


def standalone(params: Params, config: ModelConfig, compute: Compute) -> Standalone:
    """`super_resolve` of one band whose shifts are known, as JAX traces it."""

    def run(frames: Array, masks: Array, shifts: Array, blur: Array) -> tuple[Array, Array]:
        sigma = jnp.where(blur > 0, blur, config.psf_sigma)
        module = dataclasses.replace(network(config, compute), psf_sigma=sigma)
        with jax.default_matmul_precision(compute.precision):
            given = prepare(frames, masks, shifts, config.scale, sigma)
        output = apply(module, params, given.frames, given.masks, shifts, given.noise)
        image = output.sr * given.contrast + given.level
        return image, jnp.exp(output.log_variance / 2) * given.contrast

    return run


def work(model: ModelConfig, height: int, width: int, frames: int) -> float:
    """Multiplications and additions: convolutions on the LR grid, and sensors as dense products."""
    chosen, r = options_of(model), model.scale
    h, w = height // r, width // r
    f, c, out = chosen.features, chosen.agreement_features, r * r
    own = (2 * out + 3) * f + 2 * chosen.own_blocks * f * f + f * out
    fused = (f + 4 * out + 3) * f + 2 * chosen.blocks * f * f + f * out
    sure = (2 * f + 3) * (f // 2) + f // 2 * out
    agreement = (frames - 1) * (9 * c + c * c)
    convolutions = 2.0 * h * w * 9 * (own + fused + sure + agreement)
    seen = 2.0 * (h * height * width + h * w * width)  # one frame through its sensor
    looks = 2 * OWN_STEPS + 2 + frames * (2 * chosen.iterations + 6)
    return convolutions + looks * seen


UNROLLED = System(
    name="unrolled",
    label="unrolled",
    options=Options,
    check=check,
    stages=lambda config: (OWN, END_TO_END),
    param_shapes=param_shapes,
    zeroed=tuple((part, "leave") for part in PARTS),
    super_resolve=super_resolve,
    super_resolve_many=super_resolve_many,
    choose_reference=preferred_reference,
    align=align,
    standalone=standalone,
    gives=("standard_error", "frames_per_pixel"),
    any_units=True,
    work=work,
)
