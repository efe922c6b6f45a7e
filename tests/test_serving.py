"""Frames that cannot serve: named, left out, and never the reference."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.ndimage

from deepsum_jax import Bundle, ModelConfig, predict
from deepsum_jax.config import SimulationConfig
from deepsum_jax.data.serving import Chosen, Serving, judge
from deepsum_jax.simulation.steady import simulate_scene

SIDE = 32
CLASSICAL = ("bicubic_mean", "ibp")


def world(seed: int = 0) -> np.ndarray:
    """Ground with edges, 1000 ± 200, [200, 200] HR pixels."""
    noise = scipy.ndimage.gaussian_filter(
        np.random.default_rng(seed).normal(size=(200, 200)), 3, mode="wrap"
    )
    return np.asarray(1000 + 200 * np.tanh(4 * noise / noise.std()))


def frame(ground: np.ndarray, dy: int = 0, dx: int = 0, seed: int = 0) -> np.ndarray:
    """An LR frame [32, 32] that lies (dy, dx) HR pixels off, with a little noise."""
    part = ground[50 + dy : 50 + dy + 3 * SIDE, 50 + dx : 50 + dx + 3 * SIDE]
    noise = np.random.default_rng(1000 + seed).normal(0, 3, (SIDE, SIDE))
    return np.asarray(part.reshape(SIDE, 3, SIDE, 3).mean(axis=(1, 3)) + noise)


def good_frames() -> list[np.ndarray]:
    shifts = ((0, 0), (1, -1), (-2, 1), (0, 2), (2, 2))
    return [frame(world(), dy, dx, n) for n, (dy, dx) in enumerate(shifts)]


def serve(frames: list[np.ndarray], **arguments: object) -> object:
    stack = np.stack(frames)[..., None]
    settings = {"reference": None, "reach": SIDE // 4, **arguments}
    return judge(stack, np.ones(stack.shape[:3], bool), **settings)  # type: ignore[arg-type]


BAD = {
    "of one value": np.full((SIDE, SIDE), 1000.0),
    "blank": 1000 + np.random.default_rng(5).normal(0, 0.5, (SIDE, SIDE)),
    "nothing in common with the reference": frame(world(seed=9)),
    "12 pixels off, further than the 8 that registration searches": frame(world(), 0, 36),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_frame_is_named(reason: str) -> None:
    serving = serve([*good_frames(), BAD[reason]])
    assert serving.left_out == {5: reason}  # type: ignore[attr-defined]
    assert serving.reference == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("system", CLASSICAL)
@pytest.mark.parametrize("reason", BAD)
def test_nothing_of_it_is_averaged_in(system: str, reason: str) -> None:
    bundle = Bundle({}, ModelConfig(system=system))
    without = predict(bundle, np.stack(good_frames()))
    with pytest.warns(UserWarning, match=rf"left out: frame 5 \({reason[:20]}"):
        found = predict(bundle, np.stack([*good_frames(), BAD[reason]]), return_details=True)
    assert 5 not in found.frames_used
    np.testing.assert_array_equal(found.image, without)


@pytest.mark.parametrize("reason", BAD)
def test_as_reference_by_rule_the_next_best_takes_its_place(reason: str) -> None:
    stack = np.stack([BAD[reason], *good_frames()])
    with pytest.warns(UserWarning, match="reference: frame 0 .*; frame 1 takes its place"):
        found = predict(Bundle({}, ModelConfig(system="bicubic_mean")), stack, return_details=True)
    assert found.reference_index == 1
    assert 0 not in found.frames_used


@pytest.mark.parametrize("reason", BAD)
def test_as_explicit_reference_it_is_an_error(reason: str) -> None:
    stack = np.stack([BAD[reason], *good_frames()])
    with pytest.raises(ValueError, match="reference: found that frame 0"):
        predict(Bundle({}, ModelConfig(system="ibp")), stack, reference=0)


def test_frames_that_have_names_are_called_by_them() -> None:
    chosen = Chosen([1, 0], Serving(1, (0, "blank"), {0: "blank", 2: "of one value"}))
    assert chosen.warnings(["may.tif", "june.tif", "july.tif"]) == [
        "reference: may.tif is blank; june.tif takes its place",
        "left out: july.tif (of one value)",
    ]


def test_a_hidden_reference_by_rule() -> None:
    masks = np.ones((5, SIDE, SIDE), bool)
    masks[0] = False
    bundle = Bundle({}, ModelConfig(system="ibp"))
    with pytest.warns(UserWarning, match="frame 0 has no reliable pixel; frame 1 takes its place"):
        found = predict(bundle, np.stack(good_frames()), masks, reference="first")
    np.testing.assert_array_equal(found, predict(bundle, np.stack(good_frames())[1:], reference=0))
    with pytest.raises(ValueError, match="frame 0 has no reliable pixel"):
        predict(bundle, np.stack(good_frames()), masks, reference=0)


def test_simulated_scenes_lose_no_frame() -> None:
    for index in range(6):
        scene, _ = simulate_scene(3, index, SimulationConfig(lr_size=48))
        lr = scene.lr[..., None].astype(np.float32)
        serving = judge(lr, scene.masks, None, 12)
        assert not serving.left_out and serving.replaced is None


def test_what_does_not_tell_is_kept() -> None:
    rng = np.random.default_rng(1)
    noise = list(rng.normal(1000, 50, (4, SIDE, SIDE)))
    assert not serve(noise).left_out  # type: ignore[attr-defined]
    two = [frame(world()), frame(world(seed=9))]
    assert not serve(two).left_out  # type: ignore[attr-defined]
    small = np.stack([*good_frames(), BAD["nothing in common with the reference"]])[:, :8, :8]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(Bundle({}, ModelConfig(system="bicubic_mean")), small)


def test_flat_ground_stays_flat() -> None:
    image = predict(Bundle({}, ModelConfig(system="ibp")), np.full((3, 20, 20), 500.0))
    np.testing.assert_allclose(image, 500)


def test_a_hot_pixel_makes_no_stranger() -> None:
    frames = good_frames()
    frames[2][7, 9] = 1e6
    assert not serve(frames).left_out  # type: ignore[attr-defined]


def test_the_masks_tell_who_is_wrong() -> None:
    others = [frame(world(9), dy, dx, n) for n, (dy, dx) in enumerate(((0, 0), (1, 1), (2, -1)))]
    stack = np.stack([frame(world()), *others])
    masks = np.ones(stack.shape, bool)
    assert judge(stack[..., None], masks, 0, SIDE // 4).reference == 1
    masks[1:, 0, 0] = False
    for explicit in (False, True):
        serving = judge(stack[..., None], masks, 0, SIDE // 4, explicit)
        assert serving.reference == 0 and serving.replaced is None
        assert set(serving.left_out) == {1, 2, 3}


def test_noise_is_named_even_where_all_others_are() -> None:
    noise = np.random.default_rng(2).normal(1000, 200, (4, SIDE, SIDE))
    stack = np.stack([frame(world()), *noise])[..., None]
    serving = judge(stack, np.ones(stack.shape[:3], bool), 0, SIDE // 4)
    assert serving.left_out == dict.fromkeys(range(1, 5), "noise")
