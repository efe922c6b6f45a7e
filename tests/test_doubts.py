"""What looks wrong about a stack is said, and what is ordinary is not."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
from helpers import landscape

from deepsum_jax import Bundle, ModelConfig, predict
from deepsum_jax.config import SimulationConfig
from deepsum_jax.data.doubts import doubts, frames_last, level_jump
from deepsum_jax.data.scene import Scene
from deepsum_jax.simulation.changing import simulate_changing_scene
from deepsum_jax.simulation.steady import simulate_scene

MEAN = Bundle({}, ModelConfig(system="bicubic_mean"))
LOOKS = SimulationConfig(lr_size=48, min_frames=5, max_frames=12)


def scenes(count: int = 8, **looks: Any) -> list[Scene]:
    config = dataclasses.replace(LOOKS, **looks)
    return [simulate_scene(7, n, config)[0] for n in range(count)]


def said(lr: np.ndarray, masks: np.ndarray) -> list[str]:
    return doubts(lr if lr.ndim == 4 else lr[..., None], masks)


@pytest.mark.parametrize(
    "looks", [{}, {"offset_sigma": 300.0}, {"gain_sigma": 0.06}, {"change": 0.6}, {"contrast": 0.5}]
)
def test_simulated_scenes_raise_no_doubt(looks: dict[str, Any]) -> None:
    for scene in scenes(**looks):
        assert said(scene.lr, scene.masks) == [], scene.name


def test_ground_that_changes_raises_no_doubt() -> None:
    for n in range(6):
        scene = simulate_changing_scene(3, 8 * n % 37)[0]
        assert said(scene.lr, scene.masks) == [], scene.name


def test_inverted_masks() -> None:
    seen = 0
    for scene in scenes():
        if scene.masks.all(axis=(1, 2)).sum() < scene.num_frames:
            (doubt,) = said(scene.lr, ~scene.masks)
            assert "invert them, as ~masks" in doubt
            seen += 1
    assert seen > 4


def test_inverted_masks_of_some_frames() -> None:
    rng = np.random.default_rng(0)
    ground = 2000 + 20 * landscape(40, 40) + rng.normal(0, 10, (9, 40, 40))
    cloudy = np.zeros(ground.shape, bool)
    for n in range(3):
        cloudy[n, :, 10 * n :] = True  # of the others the user has no masks
    lr = ground + cloudy * rng.uniform(500, 6000, cloudy.shape)
    masks = cloudy.copy()
    masks[3:] = True
    assert (~masks).mean() < 0.1
    (doubt,) = said(lr, masks)
    assert "agrees with the other frames better" in doubt and "~masks" in doubt
    assert said(lr, ~cloudy) == []


def test_masks_that_are_right_though_they_hide_most() -> None:
    rng = np.random.default_rng(1)
    ground = 2000 + 20 * landscape(40, 40) + rng.normal(0, 10, (5, 40, 40))
    masks = np.zeros(ground.shape, bool)
    masks[:, :, :12] = True  # a swath's edge
    for code in (0.0, -9999.0, np.nan, 65535.0):
        assert said(np.where(masks, ground, code), masks) == []
    lake = ground.copy()
    lake[:, 10:20, 10:20] = 300 + rng.normal(0, 1, (5, 10, 10))
    shown = np.ones(ground.shape, bool)
    shown[:, 10:20, 10:20] = False
    assert said(lake, shown) == []


def test_masks_that_are_right_though_they_hide_most_and_clouds() -> None:
    rng = np.random.default_rng(5)
    lr = 2000 + rng.normal(0, 10, (5, 40, 40))
    masks = np.ones(lr.shape, bool)
    masks[:, :, 20:] = False
    for n in range(5):
        masks[n, 8 * n : 8 * n + 8] = False
    lr[~masks] += rng.uniform(3000, 9000, np.count_nonzero(~masks))
    assert (~masks).mean() > 0.5
    assert said(lr, masks) == []
    lr = 2000 + rng.normal(0, 10, lr.shape)  # what is hidden is like what is shown
    (doubt,) = said(lr, rng.random(lr.shape) < 0.4)
    assert "hide most of the stack (60%)" in doubt


def test_inverted_masks_of_few_values_and_few_frames() -> None:
    """A value that is common where masks show is no code, however common where they hide."""
    lr = np.random.default_rng(6).integers(100, 103, (1, 40, 40)).astype(np.uint8)
    masks = np.zeros(lr.shape, bool)
    masks[0, :, :10] = True
    (doubt,) = said(lr, masks)
    assert "hide most of the stack (75%)" in doubt
    assert said(lr, ~masks) == []


def test_predict_says_that_masks_hide_most() -> None:
    lr = 1000.0 + np.random.default_rng(0).normal(0, 100, (2, 12, 12))
    masks = np.zeros(lr.shape, bool)
    masks[:, :3] = True
    with pytest.warns(UserWarning, match=r"hide most of the stack \(75%\).*invert them"):
        predict(MEAN, lr, masks)


@pytest.mark.parametrize(("frames", "high"), [(4, [2, 3]), (8, [1, 5, 6]), (6, [0]), (2, [1])])
def test_a_level_that_jumps(frames: int, high: list[int]) -> None:
    rng = np.random.default_rng(frames)
    ground = 1500 + 15 * (landscape(32, 32) - 60)
    lr = ground + rng.normal(0, 40, frames)[:, None, None] + rng.normal(0, 20, (frames, 32, 32))
    masks = rng.random(lr.shape) < 0.9
    jumped = lr.copy()
    jumped[high] += 1000
    names = ", ".join(map(str, high))
    words = f"frames? {names} .*lies? about (9|10)[0-9][0-9].* higher than the other"
    with pytest.warns(UserWarning, match=words):
        predict(MEAN, np.rint(jumped).astype(np.uint16), masks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(MEAN, lr, masks)
    jumped[~masks] = np.nan  # what is hidden has no say
    assert any("higher" in d for d in said(jumped, masks))


def test_fields_that_change_are_no_offset() -> None:
    """Most of the ground rises by far more than it differs; a fifth of it stays."""
    rng = np.random.default_rng(2)
    lr = 1500 + 5 * (landscape(32, 32) - 60) + rng.normal(0, 20, (8, 32, 32))
    masks = rng.random(lr.shape) < 0.9
    ripe = lr.copy()
    ripe[4:, :26] += 1000
    assert said(ripe, masks) == []
    ripe[4:, 26:] += 800
    (doubt,) = said(ripe, masks)
    assert "frames 4, 5, 6, 7 (of 0 to 7) lie about" in doubt
    never = np.ones_like(masks)
    never[:4, :16], never[4:, 16:] = False, False  # no pixel that both show
    assert said(ripe, never) == []


def test_one_frame_that_lies_higher_is_called_one() -> None:
    lr = np.full((5, 32, 32), 1500.0) + np.random.default_rng(3).normal(0, 20, (5, 32, 32))
    masks = np.ones(lr.shape, bool)
    lr[3] += 1000
    (doubt,) = said(lr, masks)
    assert doubt.startswith("frame 3 (of 0 to 4) lies about")
    many = np.repeat(lr[:1], 20, axis=0) + np.arange(20)[:, None, None]
    many[9:] += 1000
    (doubt,) = said(many, np.ones(many.shape, bool))
    assert "frames 9, 10, 11, 12, 13, 14, 15, 16 … (of 0 to 19) lie about" in doubt


@pytest.mark.parametrize(
    ("levels", "deviation", "noise", "jumps"),
    [
        ([0, 160, 320, 900, 1060, 1220], 100, 5, False),  # 6 spreads
        ([0, 75, 150, 900, 975, 1050], 100, 5, True),
        ([0, 10, 600, 610], 500, 5, True),  # more than half a frame's own deviation
        ([0, 50, 600, 650], 500, 5, False),  # 15 spreads of four frames tell little
        ([0, 10, 5, 600], 500, 5, False),  # one frame alone
        ([0, 10, 5, 1200], 500, 5, True),
        ([0, 0, 0, 150, 150, 150], 500, 5, False),
        ([0] * 15 + [500] * 15, 10, 300, False),  # of frames so unlike
        ([0] * 15 + [500] * 15, 10, 100, True),
        ([0] * 20 + [200, 400] + [590] * 20, 10, 5, False),  # no gap between two groups
    ],
)
def test_how_far_levels_must_lie_apart(
    levels: list[int], deviation: int, noise: int, jumps: bool
) -> None:
    rng = np.random.default_rng(8)
    ground = 1500 + rng.normal(0, deviation, 1600)
    x = ground + np.array(levels)[:, None] + rng.normal(0, noise, (len(levels), 1600))
    assert (level_jump(x, np.ones(x.shape, bool)) is not None) is jumps
    # Wherever clouds lie: each frame is held against what it shows itself.
    assert (level_jump(x, rng.random(x.shape) < 0.5) is not None) is jumps
    few = np.ones(x.shape, bool)
    few[np.array(levels) > 100, 15:] = False  # too few pixels to tell a level
    assert level_jump(x, few) is None


def test_a_jump_in_one_band() -> None:
    lr = 1500 + np.random.default_rng(9).normal(0, 20, (6, 32, 32, 2))
    lr[3:, ..., 1] += 1000
    assert len(said(lr, np.ones(lr.shape[:3], bool))) == 1


def test_jumps_are_seen_in_bands_and_simulated_scenes() -> None:
    seen = 0
    for scene in scenes(contrast=0.5):
        lr = np.stack([scene.lr, scene.lr], -1).astype(float)
        lr[scene.num_frames // 2 :] += 2000
        seen += any("higher" in d for d in said(lr, scene.masks))
    assert seen >= 6


def test_frames_as_the_last_axis() -> None:
    doubt = frames_last((64, 64, 9, 1))
    assert doubt is not None and "np.moveaxis(stack, -1, 0)" in doubt
    for shape in ((9, 64, 64, 1), (40, 16, 16, 1), (64, 64, 32, 1), (64, 64, 1, 1), (9, 64, 3, 3)):
        assert frames_last(shape) is None
