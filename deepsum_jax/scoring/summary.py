"""The scores of many scenes: their means, intervals, and what is written of them."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from deepsum_jax.bundle import Bundle
from deepsum_jax.config import Compute
from deepsum_jax.data import kelvins
from deepsum_jax.data.doubts import doubts
from deepsum_jax.data.scene import with_channels
from deepsum_jax.inference import check_predictor
from deepsum_jax.scoring.company import COMPANY
from deepsum_jax.scoring.scene import SceneScore, evaluate_scene, read_truth
from deepsum_jax.scoring.splits import select_scenes
from deepsum_jax.systems.table import system_of


def bootstrap(
    differences: np.ndarray, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of paired differences [S]."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(differences), (resamples, len(differences)))
    low, high = np.percentile(differences[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _mean(values: Iterable[float | None]) -> tuple[float | None, int]:
    """Mean of the finite values, and how many there are."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return (float(np.mean(finite)) if finite else None), len(finite)


def _value(score: SceneScore, key: str) -> float | None:
    return score.company[key] if key in COMPANY else getattr(score, key)


def _means(scores: Sequence[SceneScore]) -> dict[str, Any]:
    out: dict[str, Any] = {"n": len(scores)}
    for key in ("cpsnr", "cssim", *COMPANY, "score"):
        mean, finite = _mean(_value(s, key) for s in scores)
        out[key] = mean
        # A scene without a Kelvins baseline has no score to be missing.
        asked = sum(s.norm is not None for s in scores) if key == "score" else len(scores)
        out[f"{key}_not_finite"] = asked - finite
    return out


def _plain(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def paired(scores: Sequence[SceneScore], other: str) -> dict[str, Any] | None:
    """How far the system lies above an alternative, scene by scene, with a bootstrap interval;
    None where no scene has both."""
    differences = np.array([s.cpsnr - s.company[other] for s in scores])
    differences = differences[np.isfinite(differences)]
    if not differences.size:
        return None
    low, high = bootstrap(differences)
    return {
        "n": int(differences.size),
        "mean": float(differences.mean()),
        "low": low,
        "high": high,
        "wins": int((differences > 0).sum()),
        "worst": float(differences.min()),
    }


def summarize(scores: Sequence[SceneScore], split: str) -> dict[str, Any]:
    """All results as plain data for JSON; what is not finite is None, and counted."""
    rows = [
        {
            "name": s.name,
            "band": s.band,
            "frames": s.frames,
            "cpsnr": _plain(s.cpsnr),
            "cssim": _plain(s.cssim),
            **{name: _plain(value) for name, value in s.company.items()},
            "norm": s.norm,
            "score": _plain(s.score),
            **({"remarks": list(s.remarks)} if s.remarks else {}),
        }
        for s in scores
    ]
    out: dict[str, Any] = {"format": 1, "split": split, "n": len(scores), "scenes": rows}
    out["mean"] = _means(scores)
    bands = sorted({s.band for s in scores})
    out["by_band"] = {b: _means([s for s in scores if s.band == b]) for b in bands}
    out["over"] = {name: paired(scores, name) for name in COMPANY}
    errors = [s.shift_errors for s in scores if s.shift_errors is not None]
    if errors:
        every = np.abs(np.concatenate(errors))  # [n, 2, 2]
        if len(every):
            median = np.median(every, axis=0)
            out["registration"] = {
                "by": next(s.filters_by for s in scores if s.filters_by),
                "frames": len(every),
                "median_error": [float(v) for v in median[0]],
                "median_error_cross_correlation": [float(v) for v in median[1]],
            }
    return out


def evaluate(
    bundle: Bundle,
    data: Path,
    split: str = "auto",
    band: str = "",
    max_frames: int | None = None,
    progress: bool = False,
    each: Callable[[SceneScore], None] | None = None,
    compute: Compute = Compute(),
) -> tuple[dict[str, Any], list[SceneScore]]:
    """Scores every scene of a split.

    Args:
      bundle: a whole network.
      data: a Kelvins-layout folder.
      split: one of `SPLITS`; see `select_scenes`.
      band: only this band.
      each: called with every scene's score and images; images are not kept afterwards.

    Returns:
      The summary (see `summarize`) and the scenes' scores, without images.

    Raises:
      ValueError, FileNotFoundError: a structural fault of the data or the bundle.
    """
    check_predictor(bundle)
    split, folders = select_scenes(bundle, data, split, band)
    norms = kelvins.read_norm_for(data)
    scores: list[SceneScore] = []
    doubted: dict[str, str] = {}
    for folder in tqdm(folders, "evaluating", disable=not progress, unit="scene"):
        scene = kelvins.read_scene(folder, norms.get(folder.name))
        truth = read_truth(folder)
        for doubt in doubts(with_channels(scene.lr, 3), scene.masks):
            doubted.setdefault(folder.name, doubt)
        try:
            score = evaluate_scene(bundle, scene, truth, max_frames, compute=compute)
        except ValueError as error:
            raise ValueError(f"{folder.path}: {error}") from None
        if each is not None:
            each(score)
        scores.append(dataclasses.replace(score, images={}))
    for name, doubt in list(doubted.items())[:1]:
        warnings.warn(
            f"{len(doubted)} of {len(scores)} scenes look wrong; scene {name}: {doubt}",
            UserWarning,
            stacklevel=2,
        )
    return {**summarize(scores, split), "system": system_of(bundle.config).label}, scores
