"""What a stage is judged by on the validation scenes while it trains, and what it shows of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from deepsum_jax import metrics
from deepsum_jax.config import TrainConfig
from deepsum_jax.data.prepare import PreparedScene
from deepsum_jax.data.resample import upsample
from deepsum_jax.systems.system import Params, Stage


def mean_cpsnr(
    images: Iterable[np.ndarray], scenes: Sequence[PreparedScene], border: int
) -> dict[str, float]:
    """Mean cPSNR (dB) of images [H, W, C] against their scenes' HR.

    An HR without a reliable pixel is left out, and counted in `unscored`. An image that is not
    finite where HR is reliable counts as the worst there is, `metrics.WORST_CPSNR`: a state that
    breaks on some scenes must not be judged by the others alone.
    """
    values, unscored = [], 0
    for image, scene in zip(images, scenes):
        if not scene.hr_mask.any():
            unscored += 1
            continue
        mask = scene.hr_mask[None, ..., None]
        value = float(metrics.cpsnr(image[None], scene.hr[None], mask, border)[0])
        values.append(metrics.WORST_CPSNR if np.isnan(value) else value)
    mean = float(np.mean(values)) if values else float("-inf")
    return {"cpsnr": mean, **({"unscored": unscored} if unscored else {})}


def judge(
    stage: Stage, params: Params, scenes: Sequence[PreparedScene], config: TrainConfig
) -> dict[str, float]:
    """Figures of merit of a stage; the first is the one that "best" goes by, higher is better."""
    if stage.merit is not None:
        return stage.merit(params, scenes, config)
    assert stage.image is not None
    images = (stage.image(params, scene, config)[0] for scene in scenes)
    return mean_cpsnr(images, scenes, config.border)


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
    """SR beside bicubic, HR, error and filters, as RGB pixels; None where a stage has no image."""
    if stage.image is None:
        return None
    from deepsum_jax import figures  # matplotlib, for those who look

    sr, filters = stage.image(params, scene, config)
    bicubic = upsample(scene.lr[:1], config.model.scale)[0, ..., 0]
    hr, clear = scene.hr[..., 0], scene.hr_mask
    shown = figures.match_brightness(sr[..., 0], hr, clear)
    rows: list[tuple[str, Sequence[figures.Panel]]] = [
        (
            scene.name,
            [
                ("bicubic", figures.match_brightness(bicubic, hr, clear)),
                ("SR", shown),
                ("HR", hr),
                ("error", np.where(clear, shown - hr, np.nan)),
            ],
        )
    ]
    if filters is not None and len(filters):
        rows.append(("", [("filters", filter_montage(filters))]))
    return figures.to_array(figures.grid(rows))
