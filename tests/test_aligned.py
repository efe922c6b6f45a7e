"""Aligned stacks from a scene to a batch: any number of frames, their units, their shifts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import UNROLLED, fields, landscape

from deepsum_jax.config import DataConfig, ModelConfig
from deepsum_jax.data import dataset as datasets
from deepsum_jax.data import kelvins
from deepsum_jax.data.aligned import Align, Aligned
from deepsum_jax.data.dataset import prepare_dataset
from deepsum_jax.data.patches import (
    Batch,
    Patches,
    flip_and_rotate,
    make_iterator,
    without_some,
)
from deepsum_jax.data.prepare import PreparedScene, SceneSkipped, prepare_scene
from deepsum_jax.data.scene import Scene
from deepsum_jax.data.sensor import observe
from deepsum_jax.systems import unrolled

MODEL = dataclasses.replace(UNROLLED, num_frames=5)
DATA = DataConfig(
    patch_size=24, patches_per_scene=4, reference="given", max_value=0, min_lr_clearance=0.5,
    max_shift=1,
)  # fmt: skip
SHIFTS = np.array([(0, 0), (1, -2), (0.4, 1.3), (-1.6, 0.7), (5, 1), (-0.8, -0.5), (1.5, 0.3)])
SIDE = 16


def align(lr: np.ndarray, masks: np.ndarray) -> Aligned:
    return unrolled.align(lr, masks, MODEL)


def make_scene(count: int, seed: int = 0) -> Scene:
    """Frames of one ground by the sensor, all clear; frame 0 is the reference."""
    hr, rng = fields(3 * SIDE, seed), np.random.default_rng(seed)
    lr = np.stack([observe(hr, shift, 3) for shift in SHIFTS[:count]])
    lr = np.rint(lr + rng.normal(0, 5, lr.shape)).astype(np.uint16)
    return Scene(
        f"imgset{seed:04d}", lr, np.ones(lr.shape, bool), band="NIR",
        hr=np.rint(hr).astype(np.uint16), hr_mask=np.ones(hr.shape, bool), reference=0,
    )  # fmt: skip


def prepared(count: int = 5, scene: Scene | None = None) -> PreparedScene:
    return prepare_scene(scene or make_scene(count), MODEL, DATA, align)


def aligned_of(scene: PreparedScene) -> Aligned:
    assert scene.aligned is not None
    return scene.aligned


# --- the alignment


def test_one_brightness_and_one_unit() -> None:
    """Whatever gain and offset a frame has, it shows what the reference shows at its shift."""
    lr = np.stack([observe(fields(3 * SIDE), s, 3) for s in SHIFTS])[..., None]
    gains, offsets = np.linspace(1, 1.6, len(lr)), np.linspace(0, -900, len(lr))
    bright = gains[:, None, None, None] * lr + offsets[:, None, None, None]
    stack = align(bright, np.ones(lr.shape[:3], bool))
    assert {x.dtype for x in (stack.frames, stack.shifts, stack.noise)} == {np.dtype("f4")}
    np.testing.assert_allclose(stack.shifts, SHIFTS, atol=0.2)
    np.testing.assert_allclose(stack.raw(stack.frames[0]), lr[0, ..., 0], atol=0.1)
    for frame, wanted in zip(stack.frames, lr[..., 0]):
        error = stack.raw(frame) - wanted
        assert np.abs(error).max() < 0.15 * lr[0].std()
    assert abs(np.median(stack.frames[0])) < 1e-3
    low, high = np.quantile(stack.frames[0], (0.1, 0.9))
    assert high - low == pytest.approx(2.56, rel=1e-3)


def test_units_there_and_back() -> None:
    stack = aligned_of(prepared())
    image = fields(48, 7)
    np.testing.assert_allclose(stack.raw(stack.own_units(image)), image, atol=0.01)
    np.testing.assert_allclose(stack.own_units(stack.raw(image / 1e3)), image / 1e3, rtol=1e-4)
    assert stack.own_units(image).dtype == stack.raw(image).dtype == np.float32


def test_some_frames_or_more_than_there_are() -> None:
    stack = aligned_of(prepared(3))
    assert stack.of(2).frames.shape == (2, SIDE, SIDE)
    more = stack.of(5)
    assert more.frames.shape == more.masks.shape == (5, SIDE, SIDE) and more.shifts.shape == (5, 2)
    for name in ("frames", "masks", "shifts"):
        np.testing.assert_array_equal(getattr(more, name)[:3], getattr(stack, name))
        assert not getattr(more, name)[3:].any()
        np.testing.assert_array_equal(getattr(stack.of(2), name), getattr(stack, name)[:2])
    assert more.masks.dtype == bool and more.frames.dtype == np.float32
    assert (more.level, more.contrast, more.noise) == (stack.level, stack.contrast, stack.noise)


@pytest.mark.parametrize("gain", [1, 1e-9, 1e6])
def test_hot_pixels_are_masked_and_filled(gain: float) -> None:
    """In any unit."""
    lr = make_scene(5).lr[..., None].astype(np.float64)
    lr[0, 5, 6], lr[2, 9, 3] = 6e4, 6e4
    stack = align(gain * lr, np.ones(lr.shape[:3], bool))
    assert not stack.masks[0, 5, 6] and not stack.masks[2, 9, 3]
    assert (~stack.masks).sum() < 8 and np.abs(stack.frames).max() < 6


def test_flat_ground_stays_finite() -> None:
    """A frame of one value has no contrast that could be a unit."""
    for count in (1, 3):
        stack = align(np.full((count, 8, 9, 1), 700.0), np.ones((count, 8, 9), bool))
        for x in stack:
            assert np.isfinite(x).all()
        assert stack.contrast > 0 and not stack.frames.any()
        np.testing.assert_allclose(stack.raw(stack.frames), 700)


def test_a_ship_on_water() -> None:
    """Most of the frame has one value, and the unit still goes with the frame's own."""
    frame = np.full((1, 16, 16, 1), 700.0)
    frame[0, 4:7, 5:8] = 900
    plain, other = (align(gain * frame, np.ones((1, 16, 16), bool)) for gain in (1, 1e-3))
    assert 0 < np.abs(plain.frames).max() < 20
    np.testing.assert_allclose(other.frames, plain.frames, rtol=1e-4)
    np.testing.assert_allclose(plain.raw(plain.frames)[plain.masks], frame[..., 0][plain.masks])


# --- a scene


@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_number_of_frames_and_any_shift(count: int) -> None:
    out = prepared(count)
    stack = aligned_of(out)
    assert len(out.lr) == len(out.masks) == len(out.shifts) == len(stack.frames) == count
    np.testing.assert_allclose(stack.shifts, SHIFTS[:count], atol=0.2)
    np.testing.assert_array_equal(out.shifts, np.rint(stack.shifts))
    assert out.shifts.dtype == np.int32
    assert out.members.tolist() == 4 * [[0]]
    assert out.corners.shape == (4, 2)


def test_frames_in_order_of_clearance_behind_the_reference() -> None:
    scene = make_scene(4)
    for n, hidden in enumerate([20, 10, 30, 5]):
        scene.masks[n].flat[:hidden] = False
    scene = dataclasses.replace(scene, reference=1)
    out = prepared(scene=scene)
    np.testing.assert_array_equal(out.masks, scene.masks[[1, 3, 0, 2]])
    np.testing.assert_allclose(aligned_of(out).shifts, SHIFTS[[1, 3, 0, 2]] - SHIFTS[1], atol=0.25)


def test_patches_ask_the_reference_alone() -> None:
    """Where the other frames are hidden, one frame still learns."""
    scene = make_scene(3)
    scene.masks[1:, :, :13] = False
    assert len(prepared(scene=scene).corners) == 4
    scene.masks[1:] = False
    assert len(prepared(scene=scene).lr) == 1  # frames without a reliable pixel go
    scene.masks[0, :, :10] = False
    with pytest.raises(SceneSkipped, match="reference frame is nowhere clearer"):
        prepare_scene(scene, MODEL, dataclasses.replace(DATA, min_lr_clearance=0.8), align)


def test_without_an_alignment_nothing_is_aligned() -> None:
    data = dataclasses.replace(DATA, max_shift=9)
    assert prepare_scene(make_scene(5), MODEL, data).aligned is None
    with pytest.raises(SceneSkipped, match="5 needed"):
        prepare_scene(make_scene(4), MODEL, data)


# --- the cache


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("aligned")
    for seed, count in enumerate((5, 2, 7)):
        scene = make_scene(count, seed)
        kelvins.write_scene(root / "train" / "NIR" / scene.name, scene)
    return root


def arrays(scenes: Sequence[PreparedScene]) -> list[dict[str, Any]]:
    found = []
    for scene in scenes:
        values = {f.name: getattr(scene, f.name) for f in dataclasses.fields(scene)}
        stack = values.pop("aligned")
        found.append({**values, **({} if stack is None else stack._asdict())})
    return found


def same(a: Sequence[PreparedScene], b: Sequence[PreparedScene]) -> bool:
    for x, y in zip(arrays(a), arrays(b), strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key], err_msg=key)
            if isinstance(x[key], np.ndarray):
                assert (x[key].dtype, x[key].shape) == (y[key].dtype, y[key].shape), key
    return True


def test_cached_and_read_back(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: Align = align
    bare = prepare_dataset(root, MODEL, DATA, align=given)
    assert sorted(len(s.lr) for s in (*bare.train, *bare.validation)) == [2, 5, 7]
    first = prepare_dataset(root, MODEL, DATA, tmp_path, align=given)
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "prepare_scene", None)  # all comes from the cache
        second = prepare_dataset(root, MODEL, DATA, tmp_path, align=given)
        fewer = dataclasses.replace(DATA, fewer_frames=0.5)  # no matter of scenes
        third = prepare_dataset(root, MODEL, fewer, tmp_path, align=given)
    for other in (first, second, third):
        assert same(other.train, bare.train) and same(other.validation, bare.validation)
        assert other.normalization == bare.normalization


def test_the_cache_is_not_mixed_with_others(root: Path, tmp_path: Path) -> None:
    """Neither with unaligned scenes, nor with another sensor's."""
    data = dataclasses.replace(DATA, max_shift=9, reference="clearest")
    model = dataclasses.replace(MODEL, num_frames=3)

    def scenes(align: Align | None, model: ModelConfig = model) -> list[PreparedScene]:
        found = prepare_dataset(root, model, data, tmp_path, align=align)
        return [*found.train, *found.validation]

    assert len(scenes(align)) == 3
    assert all(s.aligned is None for s in scenes(None))  # of the one with two frames, no scene
    assert len(scenes(None)) == 2
    assert all(s.aligned is not None for s in scenes(align))
    blurred = dataclasses.replace(model, psf_sigma=0.6)
    other = scenes(lambda lr, masks: unrolled.align(lr, masks, blurred), blurred)
    assert not np.array_equal(aligned_of(other[0]).frames, aligned_of(scenes(align)[0]).frames)
    assert len(list(tmp_path.iterdir())) == 9


# --- patches


def records(count: int = 5, **settings: Any) -> Patches:
    data = dataclasses.replace(DATA, **settings)
    return Patches((prepared(count),), MODEL, data, "aligned")


@pytest.mark.parametrize("count", [2, 5, 7])
def test_aligned_view(count: int) -> None:
    patches = records(count)
    scene = patches.scenes[0]
    stack = aligned_of(scene)
    assert len(patches) == 4
    for index, (y, x) in enumerate(scene.corners):
        record = patches[index]
        assert {k: (v.shape, v.dtype.name) for k, v in record.items()} == {
            "frames": ((5, 8, 8, 1), "float32"),
            "masks": ((5, 8, 8, 1), "bool"),
            "frame_shifts": ((5, 2), "float32"),
            "noise": ((), "float32"),
            "hr": ((24, 24, 1), "float32"),
            "hr_mask": ((24, 24, 1), "bool"),
        }
        for n in range(5):
            part = np.s_[y : y + 8, x : x + 8]
            frame, mask = record["frames"][n, ..., 0], record["masks"][n, ..., 0]
            if n < count:
                np.testing.assert_array_equal(frame, stack.frames[n][part])
                np.testing.assert_array_equal(mask, stack.masks[n][part])
                np.testing.assert_array_equal(record["frame_shifts"][n], stack.shifts[n])
            else:
                assert not mask.any() and not frame.any() and not record["frame_shifts"][n].any()
        hr = scene.hr[3 * y : 3 * y + 24, 3 * x : 3 * x + 24]
        np.testing.assert_allclose(stack.raw(record["hr"]), hr, atol=0.01)


def test_batches_of_aligned_records() -> None:
    batch = next(make_iterator(records(augment=True, fewer_frames=0.5), 3, seed=0))
    assert {k: v.shape for k, v in batch.items()} == {
        "frames": (3, 5, 8, 8, 1),
        "masks": (3, 5, 8, 8, 1),
        "frame_shifts": (3, 5, 2),
        "noise": (3,),
        "hr": (3, 24, 24, 1),
        "hr_mask": (3, 24, 24, 1),
    }


@pytest.mark.parametrize("code", range(8))
def test_frames_stay_what_the_sensor_sees(code: int) -> None:
    """A flipped or turned record still has frames = sensor(HR, shifts)."""
    hr = landscape(36, 36, 3)
    shifts = np.array([(0, 0), (2, -1), (-0.6, 1.4)], np.float32)
    frames = np.stack([observe(hr, shift, 3) for shift in shifts])
    record = {
        "frames": frames[..., None],
        "masks": frames[..., None] > 60,
        "frame_shifts": shifts,
        "noise": np.asarray(3.0, np.float32),
        "hr": hr[..., None],
        "hr_mask": hr[..., None] > 60,
    }
    turned = flip_and_rotate(record, code)
    for n in range(3):
        seen = observe(turned["hr"][..., 0], turned["frame_shifts"][n], 3)
        np.testing.assert_allclose(turned["frames"][n, ..., 0], seen, atol=1e-3)
    np.testing.assert_array_equal(turned["masks"], turned["frames"] > 60)
    np.testing.assert_array_equal(turned["hr_mask"], turned["hr"] > 60)
    assert turned["noise"] == 3 and turned["frame_shifts"].dtype == np.float32
    assert (code == 0) == np.array_equal(turned["hr"], record["hr"])


# --- frames that a record loses


def small_record(count: int = 6) -> Batch:
    rng = np.random.default_rng(1)
    return {"masks": rng.random((count, 4, 4, 1)) < 0.8, "noise": np.asarray(1.0)}


def test_lost_frames_hide_all_but_never_the_reference() -> None:
    record = small_record()
    before = record["masks"].copy()
    left = []
    for seed in range(200):
        out = without_some(record, 0.5, np.random.default_rng(seed))
        np.testing.assert_array_equal(out["masks"][0], before[0])
        lost = ~out["masks"].any(axis=(1, 2, 3))
        np.testing.assert_array_equal(out["masks"][~lost], before[~lost])
        left.append(int((~lost).sum()))
    np.testing.assert_array_equal(record["masks"], before)  # the caller's stay as they are
    assert 70 < sum(n < 6 for n in left) < 130
    assert set(left) == {1, 2, 3, 4, 5, 6}
    some = [without_some(record, 1.0, np.random.default_rng(s))["masks"] for s in range(60)]
    gone = np.asarray(~np.stack(some).any(axis=(2, 3, 4)))  # [60, N]
    assert gone.any(axis=1).all() and gone[:, 1:].any(axis=0).all()


def test_lost_frames_depend_on_the_generator_alone() -> None:
    one, other = small_record(), {**small_record(), "masks": ~small_record()["masks"]}

    def lost(record: Batch, seed: int) -> list[bool]:
        masks = np.asarray(without_some(record, 0.7, np.random.default_rng(seed))["masks"])
        return [not m.any() for m in masks]

    seeds = range(30)
    assert [lost(one, s) for s in seeds] == [lost(one, s) for s in seeds]
    assert [lost(one, s) for s in seeds] == [lost(other, s) for s in seeds]
    assert len({tuple(lost(one, s)) for s in seeds}) > 5


def test_nothing_is_lost_where_nothing_can_be() -> None:
    record, alone = small_record(), small_record(1)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert without_some(record, 0.0, rng) is record
        assert without_some(alone, 1.0, rng) is alone


def test_records_lose_frames_in_the_stream() -> None:
    batches = make_iterator(records(fewer_frames=0.5), 4, seed=2)
    lost = [
        tuple((~mask.any(axis=(1, 2, 3))).tolist())
        for _ in range(8)
        for mask in next(batches)["masks"]
    ]
    assert len(set(lost)) > 4 and not any(of_record[0] for of_record in lost)
    whole = make_iterator(records(), 4, seed=2)
    assert all(next(whole)["masks"].any(axis=(2, 3, 4)).all() for _ in range(3))
    with pytest.raises(ValueError, match=r"fewer_frames: found 2, expected 0 to 1"):
        DataConfig(fewer_frames=2)
