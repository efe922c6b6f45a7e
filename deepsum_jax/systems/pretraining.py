"""The two stages that pretrain DeepSUM's parts: their losses, and what they are judged by.

SISRNet learns single-image super-resolution with a head that is dropped afterwards; RegNet learns
to undo synthetic shifts of SISRNet's features (slides, "DeepSUM").
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsum_jax import losses, units
from deepsum_jax.config import Compute, ModelConfig, TrainConfig
from deepsum_jax.data.inputs import input_images
from deepsum_jax.data.prepare import PreparedScene
from deepsum_jax.model.layers import apply
from deepsum_jax.model.regnet import RegNet
from deepsum_jax.model.sisrnet import SISRHead, SISRNet
from deepsum_jax.systems.system import Batch, Params, Stage

Array = jax.Array

_REGNET_PATCHES = 64  # that RegNet is judged on

# --- SISRNet: single-image super-resolution ------------------------------------------------------


def sisr(
    params: Params,
    images: Array,
    model: ModelConfig,
    compute: Compute = Compute(),
    training: bool = False,
    axis_name: str | None = None,
) -> Array:
    """SISRNet with its head: standardised images [..., H, W, C] → sharper ones, same units."""
    network = SISRNet(model, compute, training, axis_name)
    features = apply(network, params["sisrnet"], images)
    residual = apply(SISRHead(model, compute), params["sisr_head"], features)
    return images + residual.astype(images.dtype)


def head_shapes(config: ModelConfig) -> Any:
    """Shapes of SISRNet's pretraining head."""
    features = jax.ShapeDtypeStruct((1, 8, 8, config.features), jnp.float32)
    return module_shapes(SISRHead(config), features)


def module_shapes(module: nn.Module, *inputs: Any) -> Any:
    """Shapes of a module's parameters, for inputs given by shape and dtype."""
    init = functools.partial(module.init, jax.random.key(0))
    return jax.eval_shape(init, *inputs)["params"]


@functools.lru_cache(maxsize=4)
def _compiled_sisr(model: ModelConfig, compute: Compute) -> Callable[[Params, Any], Any]:
    return jax.jit(lambda params, images: sisr(params, images, model, compute))


def sisr_image(
    params: Params, lr: np.ndarray, model: ModelConfig, compute: Compute = Compute()
) -> np.ndarray:
    """Single-image super-resolution of one raw frame, finite: [h, w, C] → [H, W, C] raw."""
    sr = _compiled_sisr(model, compute)(params, input_images(lr[None], model))
    return units.from_input(np.asarray(sr, np.float32)[0], model.normalization)


def sisrnet_loss(
    params: Params, batch: Batch, config: TrainConfig, axis_name: str | None = None
) -> tuple[Array, dict[str, Array]]:
    """Registered MSE of single-image super-resolution, in input units."""
    images = batch["images"][:, 0]
    sr = sisr(params, images, config.model, config.compute, True, axis_name)
    loss = losses.registered_mse(sr, batch["hr"], batch["hr_mask"], config.border)
    return loss, {}


def _clearest_frame(
    params: Params, scene: PreparedScene, config: TrainConfig
) -> tuple[np.ndarray, None]:
    return sisr_image(params, scene.lr[0], config.model, config.compute), None


# --- RegNet: synthetic shifts --------------------------------------------------------------------


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
    params: Params, batch: Batch, config: TrainConfig, axis_name: str | None = None
) -> tuple[Array, dict[str, Array]]:
    """How wrong RegNet is about synthetic shifts.

    Cross-entropy between proposed filters and the ideal deltas; where RegNet proposes shifts, the
    mean squared error in HR pixels. Diagnostics: `accuracy`, the share of filters whose greatest
    tap is the right one, or of shifts that are right to half a pixel on both axes.
    """
    model, compute = config.model, config.compute
    reach = model.filter_size // 2
    sisrnet = SISRNet(model, compute)
    features = apply(sisrnet, params["sisrnet"], batch["images"])  # [B, 1 or N, H, W, F]
    shifts = batch["shifts"]  # [B, N, 2]
    versions = jax.vmap(lambda f, s: shifted_crops(f, s, reach))(
        lax.stop_gradient(features), shifts
    )  # [B, N, H′, W′, F]
    proposed = apply(RegNet(model, compute), params["regnet"], versions)  # [B, N − 1, K² or 2]
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


def regnet_merit(
    params: Params, scenes: Sequence[PreparedScene], config: TrainConfig
) -> dict[str, float]:
    """`accuracy` of synthetic shifts of clear reference frames, and `clouded_accuracy` under the
    clouds that it trains with, where it does."""
    plain = dataclasses.replace(config.data, clouded_shifts=False)
    merits = _registration(params, scenes, dataclasses.replace(config, data=plain))
    if config.data.clouded_shifts:
        clouded = _registration(params, scenes, config)
        merits |= {f"clouded_{name}": value for name, value in clouded.items()}
    return merits


def _registration(
    params: Params, scenes: Sequence[PreparedScene], config: TrainConfig
) -> dict[str, float]:
    from deepsum_jax.data.patches import Patches, make_iterator  # grain; not for prediction

    patches = Patches(tuple(scenes), config.model, config.data, "shifts")
    count = min(_REGNET_PATCHES, len(patches))
    size = min(8, count)
    batches = make_iterator(patches, size, seed=0)
    run = _compiled_regnet(config)
    outcomes = [run(params, next(batches)) for _ in range(count // size)]
    loss, accuracy = np.mean(np.asarray(outcomes, np.float64), axis=0)
    return {"accuracy": float(accuracy), "loss": float(loss)}


@functools.lru_cache(maxsize=4)
def _compiled_regnet(config: TrainConfig) -> Callable[[Params, Any], Any]:
    def run(params: Params, batch: Any) -> Any:
        loss, diagnostics = regnet_loss(params, batch, config)
        return loss.mean(), diagnostics["accuracy"].mean()

    return jax.jit(run)


SISRNET = Stage(
    "sisrnet", sisrnet_loss, trains=("sisrnet", "sisr_head"), view="frames", image=_clearest_frame
)
REGNET = Stage(
    "regnet",
    regnet_loss,
    trains=("regnet",),
    view="shifts",
    uses=("sisrnet",),
    takes=("sisrnet",),
    merit=regnet_merit,
)
