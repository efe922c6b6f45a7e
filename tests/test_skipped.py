"""A skipped scene's message names the setting that did it; what masks hide drops no frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepsum_jax.config import DataConfig, ModelConfig, SimulationConfig
from deepsum_jax.data.prepare import SceneSkipped, prepare_scene
from deepsum_jax.data.scene import Scene
from deepsum_jax.simulation.steady import simulate_scene

MODEL = ModelConfig(num_frames=3)
SETTINGS: dict[str, Any] = {"patch_size": 24, "max_shift": 24}
LOOKS = SimulationConfig(
    lr_size=24, min_frames=4, max_frames=4, clear_fraction=1, max_hr_clouded=0.0
)


def scene(**changes: Any) -> Scene:
    made = simulate_scene(1, 0, LOOKS)[0]
    values = {"lr": made.lr, "masks": made.masks, "hr": made.hr, "hr_mask": made.hr_mask}
    return Scene("imgset0000", **{**values, **changes})


def test_a_high_value_under_a_mask_drops_no_frame() -> None:
    plain = scene()
    lr, masks = plain.lr.copy(), plain.masks.copy()
    lr[:, :3, :3], masks[:, :3, :3] = 65535, False
    prepared = prepare_scene(scene(lr=lr, masks=masks), MODEL, DataConfig(**SETTINGS))
    assert len(prepared.lr) == 4
    masks[1:] = True
    with pytest.raises(SceneSkipped, match=r"3 with a reliable value above data\.max_value"):
        prepare_scene(scene(lr=lr, masks=masks), MODEL, DataConfig(**SETTINGS))


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({}, {"max_value": 10}, ["data.max_value = 10", "0 usable frames", "model.num_frames"]),
        ({}, {"max_shift": 0}, ["data.max_shift = 0 HR pixels", "model.num_frames"]),
        ({}, {"patch_size": 75}, ["data.patch_size = 75"]),
        ({"masks": "dark"}, {}, ["3 without a reliable pixel", "model.num_frames"]),
        ({"masks": "sparse"}, {}, ["nowhere", "data.min_lr_clearance = 0.7"]),
        ({"masks": "two"}, {}, ["model.num_frames = 3", "data.min_lr_clearance = 0.7"]),
        ({"hr_mask": "sparse"}, {}, ["HR is nowhere", "data.min_hr_clearance = 0.85"]),
    ],
)
def test_the_setting_is_named(
    changes: dict[str, Any], settings: dict[str, Any], words: list[str]
) -> None:
    plain = scene()
    assert plain.hr_mask is not None
    masks, hr_mask = np.ones_like(plain.masks), np.ones_like(plain.hr_mask)
    if changes.get("masks") == "dark":
        masks[1:] = False
    if changes.get("masks") == "sparse":
        masks[:, ::2] = False
    if changes.get("masks") == "two":
        masks[2:, ::2] = False
    if changes.get("hr_mask"):
        hr_mask[::2] = False
    rng = np.random.default_rng(0)
    lr = plain.lr if "max_shift" not in settings else np.stack(
        [np.roll(rng.integers(0, 9999, (24, 24)), n, 0) for n in range(4)]
    )  # fmt: skip
    with pytest.raises(SceneSkipped) as caught:
        prepare_scene(
            scene(lr=lr, masks=masks, hr_mask=hr_mask),
            MODEL,
            DataConfig(**{**SETTINGS, **settings}),
        )
    for word in words:
        assert word in str(caught.value)
