"""Prediction: any stack, mask and dtype; the windows' average; refusals; the command."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers import FAST, TINY, delta_bundle, landscape, random_bundle, refuser

import deepsum_jax
from deepsum_jax import Bundle, ModelConfig, Normalization, Prediction, save_params
from deepsum_jax.bundle import BundleInfo
from deepsum_jax.data import kelvins
from deepsum_jax.data.fill import keep_clouds
from deepsum_jax.data.frames import select_frames
from deepsum_jax.data.resample import bicubic_upsample, nearest_upsample
from deepsum_jax.data.scene import Scene
from deepsum_jax.inference import super_resolve
from deepsum_jax.predict import main
from deepsum_jax.systems.system import Stack, SuperResolved
from deepsum_jax.systems.table import SYSTEMS
from deepsum_jax.systems.windows import average_windows, make_windows, window_inputs

NORM = Normalization(lr_mean=60.0, lr_std=20.0, hr_mean=60.0, hr_std=10.0)
MODEL = dataclasses.replace(TINY, normalization=NORM)
RANDOM, MEAN = random_bundle(MODEL), delta_bundle(MODEL)


def predict(*arguments: Any, **options: Any) -> Any:
    """`deepsum_jax.predict` in a formulation that compiles fast; the commands have their own."""
    return deepsum_jax.predict(*arguments, **{"compute": FAST, **options})


def frames(count: int, height: int = 8, width: int = 8) -> np.ndarray:
    """Frames of one landscape, each with some noise of its own."""
    noise = np.random.default_rng(1).standard_normal((count, height, width))
    return landscape(height, width) + noise


def clouded(count: int, *clear: float) -> np.ndarray:
    """Masks [count, 8, 8] of given clear fractions, in 64ths."""
    masks = np.zeros((count, 64), bool)
    for mask, fraction in zip(masks, clear):
        mask[: round(64 * fraction)] = True
    return masks.reshape(count, 8, 8)


def upsampled(stack: np.ndarray) -> np.ndarray:
    return bicubic_upsample(stack.astype(np.float32), 3)


# --- stacks of any kind


@pytest.mark.parametrize("count", [1, 2, 3, 6, 20])
def test_any_number_of_frames(count: int) -> None:
    """With delta filters and no residual, the image is the frames' mean by their weights."""
    stack = frames(count)
    result = predict(MEAN, stack, return_details=True)
    assert isinstance(result, Prediction)
    used = min(count, 15)
    windows = max(1, used - 2)
    expected = [sum(n in range(w, w + 3) for w in range(windows)) for n in range(used)]
    if count < 3:
        expected[0] += 3 - count  # repeated
    assert result.frames_used == tuple(range(used)) and result.reference_index == 0
    np.testing.assert_allclose(result.weights, np.array(expected) / sum(expected), rtol=1e-6)
    np.testing.assert_allclose(result.weights.sum(), 1, rtol=1e-6)
    assert result.image.shape == (24, 24) and result.image.dtype == np.float32
    mean = np.tensordot(result.weights, upsampled(stack[:used]), 1)
    np.testing.assert_allclose(result.image, mean, atol=2e-4)
    np.testing.assert_array_equal(predict(MEAN, stack), result.image)


def test_limit_of_frames() -> None:
    stack = frames(20)
    for limit, used in ((None, 15), (1, 1), (2, 2), (3, 3), (5, 5), (99, 20)):
        result = predict(MEAN, stack, max_frames=limit, return_details=True)
        assert result.frames_used == tuple(range(used))
    assert predict(MEAN, stack, return_details=True).frames_used == tuple(range(15))
    # One frame is the reference alone, repeated; two are it twice, and the next.
    one = predict(MEAN, stack, max_frames=1, reference=4, return_details=True)
    assert (one.reference_index, one.frames_used) == (4, (4,))
    np.testing.assert_allclose(one.image, upsampled(stack[4:5])[0], atol=2e-4)
    two = predict(MEAN, stack, max_frames=2, return_details=True)
    np.testing.assert_allclose(two.weights, [2 / 3, 1 / 3], rtol=1e-6)
    expected = np.tensordot(two.weights, upsampled(stack[:2]), 1)
    np.testing.assert_allclose(two.image, expected, atol=2e-4)
    # A network that takes more frames than the default limit gets as many as it takes.
    large = delta_bundle(dataclasses.replace(MODEL, num_frames=17))
    assert len(predict(large, stack, return_details=True).frames_used) == 17
    assert select_frames(np.ones((20, 8, 8), bool), 17, max_frames=4) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "dtype",
    [np.uint8, np.int16, np.uint16, ">u2", np.int32, np.int64, np.float16, np.float32, np.float64,
     np.longdouble, ml_dtypes.bfloat16],
)  # fmt: skip
def test_every_real_dtype(dtype: Any) -> None:
    stack = np.rint(frames(3))
    expected = predict(RANDOM, stack.astype(np.float32))
    np.testing.assert_array_equal(predict(RANDOM, stack.astype(dtype)), expected)


def test_arrays_of_other_kinds() -> None:
    stack = np.rint(frames(3))
    masks = clouded(3, 1, 0.9, 0.8)
    expected = predict(RANDOM, stack, masks)
    for other in (stack.tolist(), jnp.asarray(stack, jnp.bfloat16), stack[..., None]):
        image = predict(RANDOM, other, masks)
        np.testing.assert_array_equal(image.reshape(24, 24), expected)
    turned = predict(RANDOM, np.ascontiguousarray(stack.T).T, masks)
    np.testing.assert_array_equal(turned, expected)


def test_input_is_left_alone() -> None:
    stack, masks = frames(4), clouded(4, 1, 0.9, 0.8, 0.7)
    stack[~masks] = np.nan
    copies = stack.copy(), masks.copy()
    stack.setflags(write=False)
    masks.setflags(write=False)
    predict(RANDOM, stack, masks)
    np.testing.assert_array_equal(stack, copies[0])
    np.testing.assert_array_equal(masks, copies[1])


def test_bands_one_by_one() -> None:
    stack = np.stack([frames(4), frames(4)[::-1], 120 - frames(4)], axis=-1)
    masks = clouded(4, 1, 0.97, 0.8, 0.9)
    result = predict(RANDOM, stack, masks, return_details=True)
    for c in range(3):
        np.testing.assert_array_equal(result.image[..., c], predict(RANDOM, stack[..., c], masks))
    assert result.image.shape == (24, 24, 3)
    assert predict(RANDOM, stack[..., :1], masks).shape == (24, 24, 1)
    np.testing.assert_allclose(result.weights.sum(), 1, rtol=1e-6)


def test_bands_together() -> None:
    norm = Normalization(lr_mean=(60.0, 10.0), lr_std=(20.0, 20.0), hr_mean=0.0, hr_std=(1.0, 2.0))
    config = dataclasses.replace(TINY, channels=2, normalization=norm)
    stack = np.stack([frames(3), frames(3) - 50], axis=-1)
    image = predict(delta_bundle(config), stack)
    for c in range(2):
        np.testing.assert_allclose(image[..., c], upsampled(stack[..., c]).mean(axis=0), atol=2e-4)
    for wrong in (stack[..., :1], stack[..., 0], np.concatenate([stack, stack], axis=-1)):
        with pytest.raises(ValueError, match="channels, expected the bundle's 2"):
            predict(delta_bundle(config), wrong)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (2, 90)])
def test_odd_tiny_and_wide(size: tuple[int, int]) -> None:
    stack = 60 + 20 * np.random.default_rng(2).standard_normal((4, *size))
    if size == (1, 1):
        with pytest.warns(UserWarning, match="far from those of training"):
            image = predict(RANDOM, stack[:3] * 0 + 60)
    else:
        image = predict(RANDOM, stack)
    assert image.shape == (3 * size[0], 3 * size[1]) and np.isfinite(image).all()


@pytest.mark.parametrize("scale", [2, 4])
def test_other_scales(scale: int) -> None:
    config = dataclasses.replace(MODEL, scale=scale)
    stack = frames(3, 5, 6)
    image = predict(delta_bundle(config), stack)
    expected = bicubic_upsample(stack.astype(np.float32), scale).mean(axis=0)
    np.testing.assert_allclose(image, expected, atol=2e-4)


def test_too_small_for_the_filters() -> None:
    bundle = delta_bundle(dataclasses.replace(MODEL, filter_size=9))
    with pytest.raises(ValueError, match=r"found frames of 1×8 pixels, expected at least 2×2"):
        predict(bundle, frames(3)[:, :1])


# --- masks


def test_masks_of_every_kind() -> None:
    stack, masks = frames(4), clouded(4, 1, 0.9, 0.8, 0.7)
    expected = predict(RANDOM, stack, masks)
    for other in (masks.astype(np.uint8), masks.astype(float), masks.tolist(), jnp.asarray(masks)):
        np.testing.assert_array_equal(predict(RANDOM, stack, other), expected)
    trusting = predict(RANDOM, stack)
    np.testing.assert_array_equal(predict(RANDOM, stack, np.ones_like(masks)), trusting)
    assert np.abs(trusting - expected).max() > 0.1


@pytest.mark.parametrize("value", [np.inf, -np.inf, -9999, 65535, -3.4e38, 1e39])
def test_no_data_values_count_like_nan(value: float) -> None:
    stack, masks = frames(4), clouded(4, 1, 0.9, 0.8, 0.7)
    stack[~masks] = np.nan
    expected = predict(RANDOM, stack, masks)
    assert np.isfinite(expected).all()
    stack[~masks] = value
    np.testing.assert_array_equal(predict(RANDOM, stack, masks), expected)


def test_clouds_stay_what_they_are() -> None:
    # The published network saw clouds in its statistics; only what is no measurement is filled.
    stack, masks = frames(4), clouded(4, 1, 0.9, 0.8, 0.7)
    stack[~masks] = 250
    filled = keep_clouds(stack[..., None], masks)[..., 0]
    np.testing.assert_array_equal(filled, stack.astype(np.float32))


def test_filled_with_the_frames_own_median() -> None:
    stack, masks = frames(3)[..., None].repeat(2, axis=-1), clouded(3, 1, 0.5, 0)
    stack[..., 1] *= 2
    stack[~masks] = np.nan
    filled = keep_clouds(stack, masks)
    assert np.isfinite(filled).all()
    np.testing.assert_allclose(filled[1, -1, -1], np.median(stack[1][masks[1]], axis=0), rtol=1e-6)
    np.testing.assert_allclose(filled[2, 0, 0], np.median(stack[masks], axis=0), rtol=1e-6)
    one = keep_clouds(np.full((1, 2, 2, 1), np.nan), np.zeros((1, 2, 2), bool))
    np.testing.assert_array_equal(one, 0)


def test_hidden_pixels_come_from_the_first_reliable_frame() -> None:
    stack, masks = frames(3), clouded(3, 1, 0.9, 0.8)
    masks[0, 6:] = False
    masks[:, 7, 7] = False  # reliable nowhere: keeps its value
    stack[~masks] += 70
    up, clear = upsampled(stack), nearest_upsample(masks, 3)
    first = np.argmax(clear, axis=0)
    donor = np.take_along_axis(up, first[None], axis=0)
    expected = np.where(~clear & clear.any(axis=0), donor, up).mean(axis=0)
    np.testing.assert_allclose(predict(MEAN, stack, masks), expected, atol=2e-4)
    assert np.abs(predict(MEAN, stack) - expected).max() > 10


def test_no_data_does_not_reach_its_neighbours() -> None:
    """Delta filters: where every frame is clear, the image is that of frames without no-data."""
    stack = np.full((3, 8, 8), 60.0)
    masks = np.ones(stack.shape, bool)
    masks[:, 3, 3] = False
    stack[:, 2, :] += 20
    hurt = stack.copy()
    hurt[:, 3, 3] = -9999
    np.testing.assert_allclose(predict(MEAN, hurt, masks), predict(MEAN, stack, masks), atol=1e-3)


def test_reliable_no_data_is_refused() -> None:
    stack = frames(3)
    for value, words in ((np.nan, "1 non-finite"), (np.inf, "1 non-finite"), (-3.4e38, "1 pixels")):
        stack[1, 2, 3] = value
        with pytest.raises(ValueError, match=rf"stack: frames: found {words}.*mask.* out"):
            predict(MEAN, stack)


@pytest.mark.parametrize(
    ("stack", "masks", "error", "words"),
    [
        (np.zeros((0, 8, 8)), None, ValueError, r"shape \(0, 8, 8\), expected at least one frame"),
        (np.zeros((3, 0, 8)), None, ValueError, r"shape \(3, 0, 8\)"),
        (np.zeros((8, 8)), None, ValueError, r"shape \(8, 8\), expected \[T, h, w\]"),
        (np.zeros((1, 1, 3, 8, 8)), None, ValueError, "expected"),
        (np.zeros((3, 8, 8)), np.ones((3, 8, 9)), ValueError, r"\(3, 8, 9\), expected \(3, 8, 8\)"),
        (np.zeros((3, 8, 8)), np.ones((8, 9)), ValueError, r"masks of shape \(8, 9\)"),
        (np.zeros((3, 8, 8)), np.ones((3, 8, 8, 1)), ValueError, "masks of shape"),
        (np.zeros((3, 8, 8)), np.zeros((3, 8, 8)), ValueError, "no reliable pixel in any of 3"),
        (np.zeros((3, 8, 8)), np.full((3, 8, 8), 7), ValueError, "value 7, expected bool, 0 and 1"),
        (np.zeros((3, 8, 8)), np.full((3, 8, 8), np.nan), ValueError, "value nan"),
        (np.zeros((3, 8, 8)), np.full((3, 8, 8), "x"), TypeError, "masks: found dtype"),
        (np.zeros((3, 8, 8), complex), None, TypeError, "complex128, expected real"),
        (np.full((3, 8, 8), None), None, TypeError, "object, expected real"),
        (np.zeros((3, 8, 8), bool), None, TypeError, "bool, expected real"),
        ([[[1, 2]], [[3]]], None, TypeError, "unequal shapes"),
        ("stack.npy", None, TypeError, "stack"),
        (None, None, TypeError, "stack"),
    ],
)  # fmt: skip
def test_refused(stack: Any, masks: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        predict(MEAN, stack, masks)
    assert "\n" not in str(caught.value)


# --- the reference frame and the choice of frames


def test_image_lies_on_the_reference_frames_grid() -> None:
    """All frames but the reference move by the filters; the reference stays."""
    down, right = 2, -1
    bundle = delta_bundle(MODEL, (down, right))
    stack = frames(3, 5, 7)
    up = upsampled(stack)
    for reference in range(3):
        image = predict(bundle, stack, reference=reference)
        expected = up[reference].copy()
        for n in {0, 1, 2} - {reference}:
            expected += np.roll(up[n], (down, right), axis=(0, 1))
        inner = (slice(2, -2), slice(2, -2))
        np.testing.assert_allclose(image[inner], expected[inner] / 3, atol=2e-4)


def test_reference_by_clearance_or_index() -> None:
    stack = frames(5)
    masks = clouded(5, 0.7, 0.95, 0.92, 0.95, 0.1)
    chosen = predict(RANDOM, stack, masks, return_details=True)
    assert chosen.reference_index == 1  # of two equally clear frames the earlier
    assert chosen.frames_used == (1, 3, 2)
    assert predict(RANDOM, stack, return_details=True).reference_index == 0
    indices: list[Any] = [0, np.int64(4)]
    for index in indices:
        asked = predict(RANDOM, stack, masks, reference=index, return_details=True)
        assert asked.reference_index == index and asked.frames_used[0] == index
        assert set(asked.frames_used[1:]) >= {1, 3}


def test_reference_as_in_training() -> None:
    """A bundle's own rule picks the frame, unless another is asked for."""
    stack, masks = frames(4), clouded(4, 0.7, 1, 0.9, 0.9)

    def index(rule: Any, reference: int | str | None = None) -> int:
        bundle = dataclasses.replace(RANDOM, info=BundleInfo(reference=rule))
        asked = predict(bundle, stack, masks, reference=reference, return_details=True)
        return asked.reference_index

    assert index("clearest") == 1 and index("first") == 0
    assert index("first", "clearest") == 1 and index("clearest", "first") == 0
    assert index("given", 3) == 3
    with pytest.raises(ValueError, match="reference: found none, expected a frame's index"):
        index("given")


def test_wholly_clouded_reference() -> None:
    stack, masks = frames(4), clouded(4, 0, 1, 1, 1)
    stack[0] = np.nan
    result = super_resolve(RANDOM, Stack(stack[..., None], masks))
    assert np.isfinite(result.image).all()
    with pytest.raises(ValueError, match="frame 0 has no reliable pixel"):
        predict(RANDOM, stack, masks, reference=0)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [(-1, "0 to 2"), (3, "0 to 2"), (2**70, "0 to 2"), ("sharpest", "'first' or a frame"),
     ("0", "'clearest'"), (1.0, "'clearest'"), (True, "'clearest'"),
     (np.array([0, 1]), "'clearest'")],
)  # fmt: skip
def test_unknown_reference(reference: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"reference: found .* expected .*{expected}"):
        predict(MEAN, frames(3), reference=reference)


@pytest.mark.parametrize("limit", [0, -1, 2.5, "all"])
def test_unknown_limit(limit: Any) -> None:
    with pytest.raises(ValueError, match=r"max_frames: found .* expected a whole number above 0"):
        predict(MEAN, frames(3), max_frames=limit)


def test_bar_is_lowered_until_enough_frames_remain() -> None:
    clear = [0.2, 0.99, 0.91, 0.88, 0.79, 0.0]
    assert select_frames(clouded(6, *clear), 2) == [1, 2]
    assert select_frames(clouded(6, *clear), 3) == [1, 2, 3]
    assert select_frames(clouded(6, *clear), 5) == [1, 2, 3, 4, 0]
    assert select_frames(clouded(6, *clear), 9) == [1, 2, 3, 4, 0]  # never one without a pixel


def test_order_of_frames_does_not_matter() -> None:
    stack, masks = frames(6), clouded(6, 0.99, 0.97, 0.95, 0.93, 0.91, 0.5)
    first = predict(RANDOM, stack, masks, return_details=True)
    order = np.array([4, 2, 5, 0, 3, 1])
    second = predict(RANDOM, stack[order], masks[order], return_details=True)
    np.testing.assert_array_equal(second.image, first.image)
    assert tuple(order[list(second.frames_used)]) == first.frames_used == (0, 1, 2, 3, 4)


# --- windows


def test_windows_that_are_off_do_not_count() -> None:
    """Frames that lie 6 HR pixels off drag their windows' images with them."""
    place = 60 + 20 * np.random.default_rng(5).standard_normal((40, 40))
    stack = np.stack([place[10:26, 10:26]] * 3 + [place[12:28, 10:26]] * 3)
    result = super_resolve(MEAN, Stack(stack[..., None], np.ones(stack.shape, bool)))
    np.testing.assert_allclose(result.weights, np.array([1, 2, 2, 1, 0, 0]) / 6, rtol=1e-6)
    # Windows 0 and 1 have but one such frame between them, and need no shift.
    expected = np.tensordot(result.weights, upsampled(stack), 1)
    np.testing.assert_allclose(result.image[..., 0], expected, atol=2e-4)
    with pytest.warns(UserWarning, match="left out: frame 3 .2 pixels off"):
        found = predict(MEAN, stack, return_details=True)
    assert found.frames_used == (0, 1, 2)


def test_average_registers_on_the_first_window() -> None:
    large = landscape(60, 60)
    offsets = [(0, 0), (3, -4), (-2, 1), (5, 0)]  # the last is too far off
    images = [large[10 + y : 50 + y, 10 + x : 50 + x, None] for y, x in offsets]
    mean, part = average_windows([image.astype(np.float32) for image in images])
    assert part == [True, True, True, False]
    np.testing.assert_allclose(mean, images[0], atol=1e-4)  # borders too: nothing wraps


@pytest.mark.parametrize("registration", ["regnet", "correlation"])
def test_shifted_masks_are_relative_to_their_window(
    registration: Any,
) -> None:
    """Window n is registered on its own first frame: masks, and the frames of a system that
    registers by cross-correlation, move by s[n + j] − s[n]."""
    config = dataclasses.replace(MODEL, mask_alignment="shifts", registration=registration)
    offsets = np.array([(0, 0), (1, -1), (-1, 0), (2, 1), (0, -2)])  # LR pixels
    place = landscape(60, 60, seed=4)
    stack = np.stack([place[10 + y : 50 + y, 10 + x : 50 + x] for y, x in offsets])[..., None]
    shifts = 3 * offsets  # registered(y) = frame(y − s) = place(y − s + offset)
    masks = np.random.default_rng(3).random((5, 40, 40)) < 0.8
    windows = make_windows(Stack(stack, masks), config)
    assert windows.shifts is not None
    np.testing.assert_array_equal(windows.shifts, shifts)
    for window in range(3):
        given = window_inputs(windows, window, config)
        if registration == "regnet":
            assert given.shifts is None
        else:
            own = shifts[window : window + 3] - shifts[window]
            np.testing.assert_array_equal(given.shifts, own)
        for j in range(3):
            down, right = shifts[window + j] - shifts[window]
            up = masks[window + j].repeat(3, axis=0).repeat(3, axis=1)
            expected = np.zeros_like(up)
            for y in range(max(0, down), min(120, 120 + down)):
                columns = np.arange(max(0, right), min(120, 120 + right))
                expected[y, columns] = up[y - down, columns - right]
            np.testing.assert_array_equal(given.masks[j, ..., 0], expected)


@pytest.mark.parametrize("alignment", ["filters", "shifts"])
def test_the_network_is_told_whether_masks_are_registered(alignment: Any) -> None:
    """Delta filters that move frame 1's mask, or a mask that is taken as it comes."""
    config = dataclasses.replace(MODEL, mask_alignment=alignment)
    bundle = delta_bundle(config, (2, 0))
    place = landscape(60, 60, seed=4)
    stack = np.stack([place[10:26, 10:26]] * 3)  # cross-correlation finds no shift
    masks = np.ones(stack.shape, bool)
    masks[1, 4:8] = False  # HR rows 12 … 23
    result = predict(bundle, stack, masks, reference=0)
    up = upsampled(stack)
    moved = np.roll(up[0], 2, axis=0)
    hidden = slice(14, 26) if alignment == "filters" else slice(12, 24)
    frame = moved.copy()
    frame[hidden] = up[0][hidden]
    expected = (up[0] + frame + moved) / 3
    inner = (slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(result[inner], expected[inner], atol=2e-4)


def test_shifted_masks_end_to_end() -> None:
    config = dataclasses.replace(MODEL, mask_alignment="shifts")
    stack, masks = frames(5), clouded(5, 1, 0.97, 0.95, 0.92, 0.91)
    shifted = predict(random_bundle(config), stack, masks)
    trusting = predict(random_bundle(config), stack)
    assert np.isfinite(shifted).all() and np.abs(shifted - trusting).max() > 0.1
    # With nothing to hide it does not matter how masks are registered.
    np.testing.assert_allclose(trusting, predict(RANDOM, stack), atol=1e-3)


# --- units


def test_nothing_is_clipped() -> None:
    high = Normalization(lr_mean=70000.0, lr_std=20.0, hr_mean=70000.0, hr_std=10.0)
    bundle = delta_bundle(dataclasses.replace(MODEL, normalization=high))
    stack = frames(3)
    np.testing.assert_allclose(predict(bundle, stack + 69940), 69940 + predict(MEAN, stack), atol=1)
    low = predict(delta_bundle(MODEL), stack - stack.min() - 30)
    assert low.min() < -15


@pytest.mark.parametrize("change", [lambda x: x + 100, lambda x: x * 0 + 60, lambda x: x * 30])
def test_warns_of_values_unlike_those_of_training(change: Any) -> None:
    with pytest.warns(UserWarning, match=r"mean .* far from those of training \(mean 60, dev") as w:
        predict(MEAN, change(frames(3)))
    assert len(w) == 1 and w[0].filename == __file__


def test_hidden_values_do_not_warn() -> None:
    stack, masks = frames(3), clouded(3, 1, 0.9, 0.8)
    stack[~masks] = 1e9
    predict(MEAN, stack, masks)


# --- bundles


def test_partial_bundle_is_refused() -> None:
    partial = Bundle({k: v for k, v in MEAN.params.items() if k != "fusionnet"}, MODEL)
    with pytest.raises(ValueError, match=r"params: the bundle has no fusionnet; .*--init"):
        predict(partial, frames(3))


@pytest.mark.parametrize(
    ("name", "words"), [("ibpp", "did you mean 'ibp'"), ("x", "valid: deepsum, duf")]
)
def test_unknown_system(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"model.system: found '{name}'; {words}"):
        predict(Bundle({}, ModelConfig(system=name)), frames(3))


def test_options_are_the_systems_own() -> None:
    def given(system: str, **options: Any) -> ModelConfig:
        return ModelConfig.from_dict({"system": system, "options": options})

    sharp, soft = (
        predict(Bundle({}, given("ibp", iterations=n)), frames(3) + 7700) for n in (20, 0)
    )
    assert sharp.std() > soft.std()
    for config, words in (
        (given("ibp", step=2), "IBP: Options.step: found 2"),
        (given("ibp", stepp=1), "did you mean 'step'"),
        (given("bicubic_mean", step=1), "Bicubic.Mean: NoOptions has no field 'step'"),
    ):
        with pytest.raises(ValueError, match=words):
            predict(Bundle({}, config), frames(3) + 7700)


def test_prediction_is_frozen_and_tells_what_the_system_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Error and count of frames, where a system has them; bands that run one by one join them."""
    plain = predict(MEAN, frames(3), return_details=True)
    assert plain.standard_error is None and plain.frames_per_pixel is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.image = frames(3)

    def knows(params: Any, stack: Stack, config: ModelConfig, compute: Any) -> SuperResolved:
        assert compute == FAST
        image = upsampled(stack.lr.mean(axis=0)[None, ..., 0])[0, ..., None]
        value = float(stack.lr[0, 0, 0, 0])
        return SuperResolved(
            image,
            np.ones(len(stack.lr), np.float32) / len(stack.lr),
            standard_error=np.full_like(image, value),
            frames_per_pixel=np.full(image.shape[:2], value, np.float32),
        )

    system = dataclasses.replace(SYSTEMS["ibp"], name="knows", super_resolve=knows)
    monkeypatch.setattr("deepsum_jax.systems.table.SYSTEMS", {**SYSTEMS, "knows": system})
    bundle = Bundle({}, ModelConfig(system="knows"))
    stack = np.stack([frames(3), frames(3) + 10], axis=-1)
    one = predict(bundle, stack[..., 0], return_details=True)
    assert one.standard_error.shape == one.frames_per_pixel.shape == one.image.shape == (24, 24)
    both = predict(bundle, stack, return_details=True)
    assert both.standard_error.shape == both.image.shape == (24, 24, 2)
    np.testing.assert_allclose(both.standard_error[0, 0], stack[0, 0, 0], rtol=1e-6)
    assert both.frames_per_pixel.shape == (24, 24)
    np.testing.assert_allclose(both.frames_per_pixel[0, 0], stack[0, 0, 0].mean(), rtol=1e-6)


@pytest.mark.parametrize("params", [MEAN.params, "workdir", None])
def test_something_else_than_a_bundle(params: Any) -> None:
    with pytest.raises(TypeError, match=r"params: found \w+, expected a Bundle"):
        predict(params, frames(3))


# --- the command


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "ein Bündel #1%20"
    save_params(path, RANDOM)
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    stack = np.rint(frames(4)).astype(np.uint16)
    masks = clouded(4, 0.9, 0.97, 0.8, 0.9)
    written = Scene("imgset0001", stack, masks, frames=(0, 2, 3, 10))
    kelvins.write_scene(tmp_path / "in put" / "imgset0001", written)
    return written


def test_command_reads_every_kind_of_input(
    saved: Path, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = deepsum_jax.predict(RANDOM, scene.lr, scene.masks)
    folder = tmp_path / "in put" / "imgset0001"
    np.savez(tmp_path / "both.npz", stack=scene.lr, masks=scene.masks)
    np.savez_compressed(tmp_path / "alone.npz", stack=scene.lr)
    np.save(tmp_path / "stack.npy", scene.lr)
    np.save(tmp_path / "masks.npy", scene.masks)
    lr, qm = sorted(folder.glob("LR*.png")), sorted(folder.glob("QM*.png"))
    output = tmp_path / "new" / "folder" / "sr.npy"
    for inputs in (
        [folder],
        [tmp_path / "both.npz"],
        [tmp_path / "alone.npz", "--masks", tmp_path / "masks.npy"],
        [tmp_path / "stack.npy", "--masks", *qm],
        [*lr, "--masks", *qm],
        [*lr, "--masks", tmp_path / "masks.npy"],
    ):
        main(["--params", str(saved), "--output", str(output), *map(str, inputs)])
        np.testing.assert_array_equal(np.load(output), expected)
        output.unlink()
        assert "24×24 from 3 of 4 frames, on the grid of frame 1" in capsys.readouterr().out
    assert [p.name for p in output.parent.iterdir()] == []


def test_command_takes_the_reference_that_a_scene_gives(
    scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_params(tmp_path / "b", dataclasses.replace(RANDOM, info=BundleInfo(reference="given")))
    folder = tmp_path / "in put" / "imgset0001"
    command = ["--params", tmp_path / "b", "--output", tmp_path / "sr.npy", folder]
    message = refuser(capsys)(main, *command)
    assert "reference.txt" in message and not (tmp_path / "sr.npy").exists()
    (folder / "reference.txt").write_text("LR003\n")  # the third of 0, 2, 3 and 10
    main([str(a) for a in command])
    assert "on the grid of frame 2" in capsys.readouterr().out
    expected = deepsum_jax.predict(RANDOM, scene.lr, scene.masks, reference=2)
    np.testing.assert_array_equal(np.load(tmp_path / "sr.npy"), expected)


def test_command_writes_png(saved: Path, scene: Scene, tmp_path: Path) -> None:
    output = tmp_path / "sr.png"
    command = ["--params", str(saved), "--output", str(output), "--reference", "2"]
    main([*command, str(tmp_path / "in put" / "imgset0001")])
    image = deepsum_jax.predict(RANDOM, scene.lr, scene.masks, reference=2)
    expected = np.clip(np.rint(image), 0, 65535)
    np.testing.assert_array_equal(kelvins.read_png16(output), expected)


# --- a module that is called

STACK = """
import numpy as np
stack = np.full((2, 4, 4), 7000.0) + np.arange(4)
"""
CALL = "assert {}(Bundle({{}}, ModelConfig(system='bicubic_mean')), stack).shape == (12, 12)"
BUNDLE = "from deepsum_jax import Bundle, ModelConfig"
NAMES = "assert deepsum_jax.predict.main and deepsum_jax.predict.Prediction"


@pytest.mark.parametrize(
    "lines",
    [
        ["import deepsum_jax", CALL.format("deepsum_jax.predict"), NAMES],
        ["from deepsum_jax import predict", CALL.format("predict")],
        ["import deepsum_jax.predict", CALL.format("deepsum_jax.predict"), NAMES],
        ["from deepsum_jax.predict import predict", CALL.format("predict"),
         "import deepsum_jax", CALL.format("deepsum_jax.predict"), NAMES],
        ["import deepsum_jax.evaluate", CALL.format("deepsum_jax.predict"), NAMES],
        ["import deepsum_jax.evaluate", "from deepsum_jax import predict", CALL.format("predict")],
        ["from deepsum_jax import predict", "import deepsum_jax.predict",
         "from deepsum_jax.predict import predict as function",
         CALL.format("predict"), CALL.format("deepsum_jax.predict"), CALL.format("function")],
        ["from deepsum_jax import *", CALL.format("predict")],
        ["import deepsum_jax, sys", "assert not {'jax', 'numpy', 'optax', 'grain', 'matplotlib'} "
         "& set(sys.modules)", "from deepsum_jax import predict, load_params, evaluate",
         "assert not {'optax', 'grain', 'matplotlib', 'orbax'} & set(sys.modules)"],
    ],
    ids=lambda lines: lines[0],
)  # fmt: skip
def test_every_order_of_imports(lines: list[str]) -> None:
    program = "\n".join([lines[0], BUNDLE, STACK, *lines[1:]])
    if "assert not" in program:
        program = "\n".join(lines)
    done = in_a_fresh_process("-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_command_in_a_fresh_process() -> None:
    done = in_a_fresh_process("-m", "deepsum_jax.predict", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--max-frames" in done.stdout and "1 uses the reference alone" in done.stdout


def in_a_fresh_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[1], env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
