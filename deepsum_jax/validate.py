"""What the three stages are judged by on the validation scenes while they train."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from deepsum_jax import figures, metrics
from deepsum_jax.baselines.sisr import sisr_image
from deepsum_jax.config import ModelConfig, TrainConfig
from deepsum_jax.deepsum import Params
from deepsum_jax.pipeline import Patches, make_iterator
from deepsum_jax.predict import compiled_forward
from deepsum_jax.prepare import PreparedScene, full_stack, upsample
from deepsum_jax.stages import Stage, regnet_loss

_REGNET_PATCHES = 64


def _cpsnr(sr: np.ndarray, scene: PreparedScene, border: int) -> float:
    return float(metrics.cpsnr(sr[None], scene.hr[None], scene.hr_mask[None, ..., None], border)[0])


def _mean_finite(values: Sequence[float]) -> float:
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("-inf")


def stack_image(
    params: Params, scene: PreparedScene, model: ModelConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The network on a scene's N clearest frames: SR [H, W, C] raw, and filters."""
    images, masks, shifts = full_stack(scene, model)
    sr, filters = compiled_forward(model)(
        params,
        images[None],
        masks[None],
        masks_registered=model.mask_alignment == "shifts",
        shifts=None if shifts is None else shifts[None],
    )
    return np.asarray(sr[0], np.float32), np.asarray(filters[0], np.float32)


def validate(
    stage: Stage, params: Params, scenes: Sequence[PreparedScene], config: TrainConfig
) -> dict[str, float]:
    """Figures of merit of a stage; the first is the one that "best" goes by, higher is better.

    `cpsnr` (dB) of the clearest frame for SISRNet and of whole stacks for DeepSUM, over all
    validation scenes; `accuracy` of synthetic shifts of clear reference frames for RegNet, and
    `clouded_accuracy` under the clouds that it trains with, where it does.
    """
    model = config.model
    if stage.name == "sisrnet":
        sharp = [_cpsnr(sisr_image(params, s.lr[0], model), s, config.border) for s in scenes]
        return {"cpsnr": _mean_finite(sharp)}
    if stage.name == "deepsum":
        fused = [_cpsnr(stack_image(params, s, model)[0], s, config.border) for s in scenes]
        return {"cpsnr": _mean_finite(fused)}
    plain = dataclasses.replace(config.data, clouded_shifts=False)
    merits = _registration(params, scenes, dataclasses.replace(config, data=plain))
    if config.data.clouded_shifts:
        clouded = _registration(params, scenes, config)
        merits |= {f"clouded_{name}": value for name, value in clouded.items()}
    return merits


def _registration(
    params: Params, scenes: Sequence[PreparedScene], config: TrainConfig
) -> dict[str, float]:
    """How well RegNet recovers synthetic shifts."""
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


def filter_montage(filters: np.ndarray) -> np.ndarray:
    """Dynamic filters [M, K, K] side by side, each scaled to its own peak."""
    shown = filters / np.maximum(filters.max(axis=(1, 2), keepdims=True), 1e-12)
    padded = np.pad(shown, ((0, 0), (1, 1), (1, 1)), constant_values=1.0)
    columns = int(np.ceil(np.sqrt(len(padded))))
    rows = -(-len(padded) // columns)
    blank = np.ones((rows * columns - len(padded), *padded.shape[1:]), padded.dtype)
    tiles = np.concatenate([padded, blank]).reshape(rows, columns, *padded.shape[1:])
    return np.concatenate(np.concatenate(tiles, axis=1), axis=1)


def picture(
    stage: Stage, params: Params, scene: PreparedScene, config: TrainConfig
) -> np.ndarray | None:
    """SR beside bicubic, HR, error and filters, as RGB pixels; None for RegNet's stage."""
    model = config.model
    bicubic = upsample(scene.lr[:1], model.scale)[0]
    panels: list[tuple[str, np.ndarray]] = []
    if stage.name == "sisrnet":
        sr = sisr_image(params, scene.lr[0], model)
    elif stage.name == "deepsum":
        sr, filters = stack_image(params, scene, model)
        if len(filters):
            panels.append(("filters", filter_montage(filters)))
    else:
        return None
    hr, clear = scene.hr[..., 0], scene.hr_mask
    sr = figures.match_brightness(sr[..., 0], hr, clear)
    rows = [
        ("bicubic", figures.match_brightness(bicubic[..., 0], hr, clear)),
        ("SR", sr),
        ("HR", hr),
        ("error", np.where(clear, sr - hr, np.nan)),
    ]
    picture_rows: list[tuple[str, Sequence[figures.Panel]]] = [(scene.name, rows)]
    if panels:
        picture_rows.append(("", panels))
    return figures.to_array(figures.grid(picture_rows))
