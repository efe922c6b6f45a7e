"""What "best" goes by: a state that breaks on some scenes is not judged by the others alone."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deepsum_jax import metrics
from deepsum_jax.config import preset
from deepsum_jax.training import merit, stages

CONFIG = preset("tiny")


def scene(seed: int, clear: bool = True) -> Any:
    hr = 7000 + 500 * np.random.default_rng(seed).standard_normal((24, 24, 1)).astype(np.float32)
    return SimpleNamespace(hr=hr, hr_mask=np.full((24, 24), clear))


def noisy(one: Any, noise: float) -> np.ndarray:
    rng = np.random.default_rng(9)
    return (one.hr + noise * rng.standard_normal(one.hr.shape)).astype(np.float32)


def cpsnr(image: np.ndarray, one: Any) -> float:
    mask = one.hr_mask[None, ..., None]
    return float(metrics.cpsnr(image[None], one.hr[None], mask, CONFIG.border)[0])


def test_mean_over_the_scenes() -> None:
    scenes = [scene(0), scene(1)]
    images = [noisy(s, noise) for s, noise in zip(scenes, (30, 90))]
    expected = np.mean([cpsnr(image, s) for image, s in zip(images, scenes)])
    assert merit.mean_cpsnr(images, scenes, CONFIG.border) == {"cpsnr": pytest.approx(expected)}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_image_that_is_not_finite_counts_as_the_worst(value: float) -> None:
    scenes = [scene(0), scene(1)]
    images = [noisy(s, 30) for s in scenes]
    images[1][12, 12] = value
    found = merit.mean_cpsnr(images, scenes, CONFIG.border)
    expected = (cpsnr(images[0], scenes[0]) + metrics.WORST_CPSNR) / 2
    assert found == {"cpsnr": pytest.approx(expected)}


def test_hr_without_a_reliable_pixel_is_left_out_and_counted() -> None:
    scenes = [scene(0), scene(1, clear=False)]
    for bad in (30.0, np.nan):  # whatever is made of it
        images = [noisy(scenes[0], 30), noisy(scenes[1], bad)]
        found = merit.mean_cpsnr(images, scenes, CONFIG.border)
        expected = pytest.approx(cpsnr(images[0], scenes[0]))
        assert found == {"cpsnr": expected, "unscored": 1}
        assert next(iter(found)) == "cpsnr"  # the first is what "best" goes by
    nothing = merit.mean_cpsnr(images[1:], scenes[1:], CONFIG.border)
    assert nothing == {"cpsnr": float("-inf"), "unscored": 1}


def test_a_broken_state_is_not_the_best() -> None:
    """Sharper on one scene and broken on the other: worse than one that is fair on both."""
    scenes = [scene(0), scene(1)]

    def image(params: Any, one: Any, config: Any) -> tuple[np.ndarray, None]:
        made = noisy(one, params["noise"])
        if params["breaks"] and one is scenes[1]:
            made[:] = np.nan
        return made, None

    stage = dataclasses.replace(stages.stage("deepsum", CONFIG.model), image=image)
    fair = merit.judge(stage, {"noise": 90, "breaks": False}, scenes, CONFIG)
    broken = merit.judge(stage, {"noise": 30, "breaks": True}, scenes, CONFIG)
    assert fair["cpsnr"] > broken["cpsnr"]
