"""Inputs: what they are made of by slow oracles, windows as parts of the whole, and one maker for
training, validation and prediction."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsum_jax.config import Compute, DataConfig, ModelConfig, Normalization
from deepsum_jax.data.inputs import (
    Window,
    input_images,
    make_inputs,
    needs_shifts,
    upsampled_masks,
)
from deepsum_jax.data.patches import Patches
from deepsum_jax.data.prepare import PreparedScene
from deepsum_jax.data.registration import register_frames
from deepsum_jax.data.resample import bicubic_upsample, upsample
from deepsum_jax.model.deepsum import Output
from deepsum_jax.systems import windows
from deepsum_jax.systems.system import Stack

NORM = Normalization(90.0, 20.0, 80.0, 5.0)
MODEL = ModelConfig(num_frames=3, features=4, filter_size=5, sisrnet_layers=2, normalization=NORM)
HEIGHT, WIDTH = 6, 7  # LR; not square, so that rows and columns cannot change places
SHIFTS = np.array([(0, 0), (2, -1), (-3, 4)], np.int32)
ALIGNMENTS: tuple[Any, ...] = ("filters", "shifts")
REGISTRATIONS: tuple[Any, ...] = ("regnet", "shifts", "correlation", "agreement", "none")


def frames(channels: int = 1, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Frames [3, h, w, C] and masks."""
    rng = np.random.default_rng(seed)
    lr = rng.normal(90, 20, (3, HEIGHT, WIDTH, channels)).astype(np.float32)
    return lr, rng.random((3, HEIGHT, WIDTH)) < 0.6


def moved(mask: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """A mask translated by padding and cutting; what comes in is not reliable."""
    pad = int(abs(shift).max())
    padded = np.roll(np.pad(mask, pad), shift, axis=(0, 1))
    return padded[pad : pad + mask.shape[0], pad : pad + mask.shape[1]]


# --- the whole


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("registration", REGISTRATIONS)
def test_whole_stack(alignment: Any, registration: Any) -> None:
    model = dataclasses.replace(MODEL, mask_alignment=alignment, registration=registration)
    lr, masks = frames()
    given = make_inputs(lr, masks, SHIFTS, model)
    if registration in ("correlation", "agreement"):
        np.testing.assert_array_equal(given.shifts, SHIFTS)
        assert given.shifts is not None and given.shifts.dtype == np.float32
    else:
        assert given.shifts is None
    assert given.images.dtype == np.float32 and given.masks.dtype == bool
    up = bicubic_upsample(lr[..., 0].astype(np.float64), 3)
    np.testing.assert_allclose(given.images, (up[..., None] - 90) / 20, atol=1e-4)
    expected = np.kron(masks, np.ones((3, 3))) > 0
    if alignment == "shifts":
        expected = np.stack([moved(m, s) for m, s in zip(expected, SHIFTS)])
        assert (expected != (np.kron(masks, np.ones((3, 3))) > 0)).any()
    np.testing.assert_array_equal(given.masks, expected[..., None])


def test_every_channel_has_its_units() -> None:
    norm = Normalization((90.0, -5.0), (20.0, 0.5), (1.0, 1.0), (1.0, 1.0))
    model = dataclasses.replace(MODEL, channels=2, scale=2, normalization=norm)
    lr, _ = frames(2)
    images = input_images(lr, model)
    for c, (mean, std) in enumerate(((90, 20), (-5, 0.5))):
        up = bicubic_upsample(lr[..., c].astype(np.float64), 2)
        np.testing.assert_allclose(images[..., c], (up - mean) / std, rtol=1e-5, atol=1e-4)


def test_who_needs_shifts() -> None:
    """Those that take them, and those that take registered masks; the others do without."""
    lr, masks = frames()
    for registration in REGISTRATIONS:
        for alignment in ALIGNMENTS:
            model = dataclasses.replace(MODEL, mask_alignment=alignment, registration=registration)
            given = registration in ("correlation", "agreement")
            assert needs_shifts(model) == (alignment == "shifts" or given)
            if not needs_shifts(model):
                with_, without = (make_inputs(lr, masks, s, model) for s in (SHIFTS, None))
                assert with_.shifts is without.shifts is None
                np.testing.assert_array_equal(with_.masks, without.masks)
                np.testing.assert_array_equal(with_.images, without.images)


# --- windows


@pytest.mark.parametrize("scale", [1, 3])
def test_window_cuts_either_grid(scale: int) -> None:
    x = np.arange(2 * 5 * scale * 6 * scale).reshape(2, 5 * scale, 6 * scale)
    part = Window(1, 3, 2).cut(x, scale)
    for n in range(2):
        for i in range(2 * scale):
            for j in range(2 * scale):
                assert part[n, i, j] == x[n, scale + i, 3 * scale + j]
    assert part.shape == (2, 2 * scale, 2 * scale)


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("registration", ["regnet", "correlation"])
def test_windows_are_parts_of_the_whole(scale: int, alignment: Any, registration: Any) -> None:
    """At every place, the edges included; what a shift brings in from beside a window too."""
    model = dataclasses.replace(
        MODEL, scale=scale, mask_alignment=alignment, registration=registration
    )
    lr, masks = frames()
    lr[1, 2, 3] = 4000  # overshoots around it, next to windows that do not see it
    whole = make_inputs(lr, masks, SHIFTS, model)
    for size in (1, 3, 6):
        for y in range(HEIGHT - size + 1):
            for x in range(WIDTH - size + 1):
                part = make_inputs(lr, masks, SHIFTS, model, Window(y, x, size))
                rows = slice(scale * y, scale * (y + size))
                columns = slice(scale * x, scale * (x + size))
                np.testing.assert_allclose(
                    part.images, whole.images[:, rows, columns], rtol=1e-5, atol=1e-4
                )
                assert part.images.dtype == np.float32
                np.testing.assert_array_equal(part.masks, whole.masks[:, rows, columns])
                np.testing.assert_array_equal(part.shifts, whole.shifts)
                own = upsampled_masks(masks, scale, Window(y, x, size))
                np.testing.assert_array_equal(own, upsampled_masks(masks, scale)[:, rows, columns])


# --- one maker for all


def alike(seed: int = 3) -> tuple[Stack, PreparedScene]:
    """The same three frames as `predict` has them and as a training's scene."""
    rng = np.random.default_rng(seed)
    ground = np.cumsum(np.cumsum(rng.normal(0, 1, (60, 66)), axis=0), axis=1)
    lr = np.stack([ground[y : y + 36 : 3, x : x + 42 : 3] for y, x in ((9, 9), (11, 8), (6, 12))])
    lr = (90 + 20 * (lr - lr.mean()) / lr.std()).astype(np.float32)[..., None]  # [3, 12, 14, 1]
    masks = rng.random(lr.shape[:3]) < 0.9
    masks[:, :2, :2] = False
    shifts = register_frames(upsample(lr, 3), upsampled_masks(masks, 3))
    assert np.abs(shifts[1:]).max() > 0
    corners = np.array([(0, 0), (5, 3), (8, 10)], np.int32)
    scene = PreparedScene(
        "a", "NIR", lr, masks, shifts, np.zeros((36, 42, 1), np.float32),
        np.ones((36, 42), bool), corners, np.arange(3, dtype=np.int32)[None].repeat(3, 0),
    )  # fmt: skip
    return Stack(lr, masks), scene


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("registration", ["regnet", "correlation"])
def test_training_sees_what_prediction_sees(alignment: Any, registration: Any) -> None:
    model = dataclasses.replace(MODEL, mask_alignment=alignment, registration=registration)
    stack, scene = alike()
    whole = windows.window_inputs(windows.make_windows(stack, model), 0, model)
    records = Patches((scene,), model, DataConfig(patch_size=12), "stacks")
    assert len(records) == 3
    for n, (y, x) in enumerate(scene.corners):
        rows, columns = slice(3 * y, 3 * y + 12), slice(3 * x, 3 * x + 12)
        record = records[n]
        np.testing.assert_allclose(record["images"], whole.images[:, rows, columns], atol=1e-4)
        np.testing.assert_array_equal(record["masks"], whole.masks[:, rows, columns])
        if registration in ("correlation", "agreement"):
            np.testing.assert_array_equal(record["frame_shifts"], whole.shifts)
        else:
            assert "frame_shifts" not in record and whole.shifts is None


def tell_all(
    params: Any, images: jax.Array, masks: jax.Array, config: ModelConfig, compute: Compute,
    shifts: jax.Array | None = None, frame_by_frame: bool = False,
) -> Output:  # fmt: skip
    """A stand-in for a network, whose image depends on everything that it is given."""
    weight = jnp.arange(1.0, 4.0)[:, None, None, None]
    sr = (weight * jnp.where(masks, images, -images)).sum(axis=1)
    if shifts is not None:
        sr += (shifts * jnp.array([[0.0, 0.0], [1, 3], [10, 30]])).sum()
    return Output(sr, jnp.zeros((len(images), 2, 5, 5)), masks, sr)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("registration", ["regnet", "correlation"])
def test_validation_sees_what_prediction_sees(alignment: Any, registration: Any) -> None:
    model = dataclasses.replace(MODEL, mask_alignment=alignment, registration=registration)
    stack, scene = alike()
    forward = windows.Forward(tell_all, model)
    validated, _ = windows.scene_image(forward, {}, scene)
    predicted = windows.super_resolve(forward, {}, stack).image
    np.testing.assert_array_equal(validated, predicted)
