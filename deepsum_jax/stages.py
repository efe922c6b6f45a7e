"""The three training stages as data: loss, trained sub-trees, and where parameters come from.

SISRNet learns single-image super-resolution with a head that is dropped afterwards; RegNet learns
to undo synthetic shifts of SISRNet's features; then everything learns super-resolution together
(slides, "DeepSUM").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from deepsum_jax import losses, systems
from deepsum_jax.config import ModelConfig, TrainConfig, nearest
from deepsum_jax.deepsum import Params
from deepsum_jax.layers import apply
from deepsum_jax.pipeline import View
from deepsum_jax.regnet import RegNet
from deepsum_jax.sisrnet import SISRNet

Array = jax.Array
Batch = Mapping[str, Array]
Loss = Callable[[Params, Batch, TrainConfig], tuple[Array, dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
      name: also the name of its section in `TrainConfig` and of its folder.
      loss: (params, batch, config) → [B] and named diagnostics, each [B].
      trains: the sub-trees that the optimiser updates.
      uses: further sub-trees that the loss reads.
      takes: sub-trees that earlier stages hand over; the others start fresh.
      view: what a record of its batches is; see `pipeline.Patches`.
    """

    name: str
    loss: Loss
    trains: tuple[str, ...]
    uses: tuple[str, ...]
    takes: tuple[str, ...]
    view: View


def sisrnet_loss(
    params: Params, batch: Batch, config: TrainConfig
) -> tuple[Array, dict[str, Array]]:
    """Registered MSE of single-image super-resolution, in input units."""
    sr = systems.sisr(params, batch["images"][:, 0], config.model, training=True)
    loss = losses.registered_mse(sr, batch["hr"], batch["hr_mask"], config.border)
    return loss, {}


def shifted_crops(features: Array, shifts: Array, reach: int) -> Array:
    """Versions of feature maps that look translated, cut from inside a larger window.

    Nothing is wrapped or filled, so no border gives the shift away.

    Args:
      features: [N, H, W, F], or [1, H, W, F] of which all are cut.
      shifts: [N, 2] int32 within ±reach: the translation that registers version n, that is
        version_n(y − s) = crop(y).

    Returns:
      [N, H − 2·reach, W − 2·reach, F].
    """
    count, height, width, channels = features.shape
    size = (height - 2 * reach, width - 2 * reach, channels)

    def cut(features: Array, shift: Array) -> Array:
        start = (reach + shift[0], reach + shift[1], jnp.zeros((), shift.dtype))
        return lax.dynamic_slice(features, start, size)

    if count == 1:
        return jax.vmap(cut, in_axes=(None, 0))(features[0], shifts)
    return jax.vmap(cut)(features, shifts)


def regnet_loss(
    params: Params, batch: Batch, config: TrainConfig
) -> tuple[Array, dict[str, Array]]:
    """How wrong RegNet is about synthetic shifts.

    Cross-entropy between proposed filters and the ideal deltas; where RegNet proposes shifts, the
    mean squared error in HR pixels. Diagnostics: `accuracy`, the share of filters whose greatest
    tap is the right one, or of shifts that are right to half a pixel on both axes.
    """
    model = config.model
    reach = model.filter_size // 2
    features = apply(SISRNet(model), params["sisrnet"], batch["images"])  # [B, 1 or N, H, W, F]
    shifts = batch["shifts"]  # [B, N, 2]
    versions = jax.vmap(lambda f, s: shifted_crops(f, s, reach))(
        lax.stop_gradient(features), shifts
    )  # [B, N, H′, W′, F]
    proposed = apply(RegNet(model), params["regnet"], versions)  # [B, N − 1, K² or 2]
    if model.registration == "shifts":
        error = proposed - shifts[:, 1:]
        hit = (jnp.abs(error).max(axis=-1) < 0.5).astype(proposed.dtype)
        return (error**2).mean(axis=(1, 2)), {"accuracy": hit.mean(axis=1)}
    taps = reach - shifts[:, 1:]  # the ideal filter's delta, row and column
    labels = taps[..., 0] * model.filter_size + taps[..., 1]
    log_likelihood = jnp.take_along_axis(
        jax.nn.log_softmax(proposed, axis=-1), labels[..., None], axis=-1
    )[..., 0]
    hit = (proposed.argmax(axis=-1) == labels).astype(proposed.dtype)
    return -log_likelihood.mean(axis=1), {"accuracy": hit.mean(axis=1)}


def deepsum_loss(
    params: Params, batch: Batch, config: TrainConfig
) -> tuple[Array, dict[str, Array]]:
    """Registered MSE of the whole network, in output units."""
    model = config.model
    registered = model.mask_alignment == "shifts"
    shifts = batch.get("frame_shifts")
    output = systems.run(
        params, batch["images"], batch["masks"], model, registered, shifts, training=True
    )
    loss = losses.registered_mse(output.sr, batch["hr"], batch["hr_mask"], config.border)
    return loss, {}


SISRNET = Stage(
    "sisrnet", sisrnet_loss, trains=("sisrnet", "sisr_head"), uses=(), takes=(), view="frames"
)
REGNET = Stage(
    "regnet", regnet_loss, trains=("regnet",), uses=("sisrnet",), takes=("sisrnet",), view="shifts"
)
DEEPSUM = Stage(
    "deepsum",
    deepsum_loss,
    trains=("sisrnet", "regnet", "fusionnet"),
    uses=(),
    takes=("sisrnet", "regnet"),
    view="stacks",
)
STAGES: tuple[Stage, ...] = (SISRNET, REGNET, DEEPSUM)


def plan(model: ModelConfig) -> tuple[Stage, ...]:
    """The stages that a system learns in, each with the sub-trees that the system has.

    Raises:
      ValueError: a system without parameters.
    """
    if model.system in ("sisr", "sisr_mean"):
        return (SISRNET,)
    if model.system == "duf":
        return (dataclasses.replace(DEEPSUM, trains=("duf",), takes=()),)
    if model.system != "deepsum":
        raise ValueError(f"model.system: {systems.LABELS[model.system]} has nothing to train")
    if model.learns_registration:
        return STAGES
    trains = tuple(name for name in DEEPSUM.trains if name != "regnet")
    return (SISRNET, dataclasses.replace(DEEPSUM, trains=trains, takes=("sisrnet",)))


def stage(name: str, model: ModelConfig = ModelConfig()) -> Stage:
    """A system's stage of that name. Raises ValueError naming the nearest one."""
    names = [one.name for one in plan(model)]
    if name not in names:
        raise ValueError(f"unknown stage {name!r}; {nearest(name, names)}")
    return plan(model)[names.index(name)]


def number(one: Stage) -> int:
    """A stage's place among all: what its random numbers and its turn go by."""
    return [other.name for other in STAGES].index(one.name)


def fresh_params(one: Stage, model: ModelConfig, key: Array) -> Params:
    """Newly initialised parameters of every sub-tree that a stage trains or uses."""
    params = systems.init_params(model, key)
    head = systems.draw_params(systems.head_shapes(model), jax.random.fold_in(key, 1))
    params = {"sisr_head": head, **params}
    return {name: params[name] for name in (*one.trains, *one.uses)}


def _paths(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(k.key) for k in path): jnp.shape(leaf) for path, leaf in leaves}


def hand_over(fresh: Params, given: Params, origin: str) -> Params:
    """Puts handed-over sub-trees in the place of fresh ones.

    Args:
      fresh: the receiving stage's parameters.
      given: sub-trees by name; each must be one of `fresh` and fit it exactly.
      origin: where they come from, for the message.

    Raises:
      ValueError: names every missing, unexpected or misshapen parameter.
    """
    unknown = sorted(set(given) - set(fresh))
    wrong = [f"unexpected {name}" for name in unknown]
    for name in sorted(set(given) & set(fresh)):
        want, have = _paths(fresh[name]), _paths(given[name])
        wrong += [f"missing {name}/{path}" for path in want if path not in have]
        wrong += [f"unexpected {name}/{path}" for path in have if path not in want]
        wrong += [
            f"{name}/{path} has shape {have[path]}, expected {want[path]}"
            for path in want
            if path in have and have[path] != want[path]
        ]
    if wrong:
        raise ValueError(f"parameters from {origin} do not fit: {'; '.join(wrong)}")
    return {**fresh, **given}
