"""Batches: what a record holds in every view, and that the stream is exact whoever reads it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from deepsum_jax.config import DataConfig, ModelConfig, Normalization
from deepsum_jax.data.inputs import View
from deepsum_jax.data.patches import (
    Batch,
    Patches,
    flip_and_rotate,
    make_iterator,
    synthetic_shifts,
)
from deepsum_jax.data.prepare import PreparedScene
from deepsum_jax.data.resample import bicubic_upsample

MODEL = ModelConfig(
    num_frames=3, features=4, filter_size=5, sisrnet_layers=2, channels=2,
    normalization=Normalization((100.0, 50.0), (20.0, 10.0), (90.0, 45.0), (5.0, 4.0)),
)  # fmt: skip
DATA = DataConfig(patch_size=12)
VIEWS: tuple[View, ...] = ("stacks", "frames", "shifts")
HEIGHT, WIDTH, FRAMES = 8, 9, 5  # LR; not square, so that rows and columns cannot change places


def make_scene(seed: int, corners: Sequence[tuple[int, int]], scale: int = 3) -> PreparedScene:
    rng = np.random.default_rng(seed)
    shape = (scale * HEIGHT, scale * WIDTH)
    others = [1 + rng.permutation(FRAMES - 1)[: MODEL.num_frames - 1] for _ in corners]
    return PreparedScene(
        f"scene{seed}",
        "NIR",
        rng.normal(100, 20, (FRAMES, HEIGHT, WIDTH, 2)).astype(np.float32),
        rng.random((FRAMES, HEIGHT, WIDTH)) < 0.7,
        np.array([(0, 0), (1, -2), (-3, 0), (4, 4), (0, -5)], np.int32),
        rng.normal(90, 20, (*shape, 2)).astype(np.float32),
        rng.random(shape) < 0.8,
        np.array(corners, np.int32).reshape(-1, 2),
        np.array([[0, *o] for o in others], np.int32).reshape(-1, MODEL.num_frames),
    )


# Seven patches; the last of each scene lies in the corner.
SCENES = (
    make_scene(0, [(0, 0), (1, 3), (4, 5)]),
    make_scene(1, [(3, 0), (0, 2), (2, 1), (4, 5)]),
)
PLACES = [(scene, p) for scene in SCENES for p in range(len(scene.corners))]


def patches(view: View, **settings: Any) -> Patches:
    return Patches(SCENES, MODEL, dataclasses.replace(DATA, **settings), view)


def expected_images(scene: PreparedScene, members: Sequence[int], y: int, x: int, r: int) -> Any:
    """Whole frames upsampled in float64 and cut; a test of its own holds that against Keys' sum."""
    out = []
    for n in members:
        bands = [bicubic_upsample(scene.lr[n, ..., c].astype(np.float64), r) for c in (0, 1)]
        up = np.stack([(bands[0] - 100) / 20, (bands[1] - 50) / 10], axis=-1)
        out.append(up[r * y : r * y + 12, r * x : r * x + 12])
    return np.stack(out)


def expected_masks(
    scene: PreparedScene, members: Sequence[int], y: int, x: int, r: int, shifted: bool
) -> np.ndarray:
    out = np.zeros((len(members), 12, 12, 1), bool)
    for n, member in enumerate(members):
        down, right = scene.shifts[member] if shifted else (0, 0)
        for i in range(12):
            for j in range(12):
                row, col = r * y + i - down, r * x + j - right
                if 0 <= row < r * HEIGHT and 0 <= col < r * WIDTH:
                    out[n, i, j] = scene.masks[member, row // r, col // r]
    return out


def expected_hr(scene: PreparedScene, y: int, x: int, r: int) -> tuple[np.ndarray, np.ndarray]:
    rows, cols = slice(r * y, r * y + 12), slice(r * x, r * x + 12)
    return scene.hr[rows, cols].astype(np.float64), scene.hr_mask[rows, cols, None]


def kinds(record: Batch) -> dict[str, tuple[tuple[int, ...], str]]:
    return {key: (value.shape, value.dtype.name) for key, value in record.items()}


# --- views


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("alignment", ["filters", "shifts"])
def test_stacks(scale: int, alignment: Any) -> None:
    model = dataclasses.replace(MODEL, scale=scale, mask_alignment=alignment)
    scenes = (make_scene(0, [(0, 0), (1, 3)], scale), make_scene(1, [(2, 3)], scale))
    records = Patches(scenes, model, DATA, "stacks")
    assert len(records) == 3
    for index, (scene, p) in enumerate([(scenes[0], 0), (scenes[0], 1), (scenes[1], 0)]):
        record, members, (y, x) = records[index], scene.members[p], scene.corners[p]
        assert kinds(record) == {
            "images": ((3, 12, 12, 2), "float32"),
            "masks": ((3, 12, 12, 1), "bool"),
            "hr": ((12, 12, 2), "float32"),
            "hr_mask": ((12, 12, 1), "bool"),
        }
        images = expected_images(scene, members, y, x, scale)
        np.testing.assert_allclose(record["images"], images, atol=1e-4)
        masks = expected_masks(scene, members, y, x, scale, alignment == "shifts")
        np.testing.assert_array_equal(record["masks"], masks)
        hr, hr_mask = expected_hr(scene, y, x, scale)
        np.testing.assert_allclose(record["hr"], (hr - [90, 45]) / [5, 4], atol=1e-4)
        np.testing.assert_array_equal(record["hr_mask"], hr_mask)


def test_frames() -> None:
    """One frame at a time; HR in input units, for the pretraining head adds in those."""
    records = patches("frames")
    assert len(records) == 3 * len(PLACES)
    hidden = 0
    for index in range(len(records)):
        scene, p = PLACES[index // 3]
        record, member, (y, x) = records[index], scene.members[p, index % 3], scene.corners[p]
        assert kinds(record) == {
            "images": ((1, 12, 12, 2), "float32"),
            "hr": ((12, 12, 2), "float32"),
            "hr_mask": ((12, 12, 1), "bool"),
        }
        images = expected_images(scene, [member], y, x, 3)
        np.testing.assert_allclose(record["images"], images, atol=1e-4)
        hr, hr_mask = expected_hr(scene, y, x, 3)
        np.testing.assert_allclose(record["hr"], (hr - [100, 50]) / [20, 10], atol=1e-4)
        clear = expected_masks(scene, [member], y, x, 3, shifted=False)[0]
        np.testing.assert_array_equal(record["hr_mask"], hr_mask & clear)
        hidden += (hr_mask & ~clear).sum()
    assert hidden > 0


def test_reference_frames_for_synthetic_shifts() -> None:
    records = patches("shifts")
    assert len(records) == len(PLACES)
    for index, (scene, p) in enumerate(PLACES):
        assert kinds(records[index]) == {"images": ((1, 12, 12, 2), "float32")}
        y, x = scene.corners[p]
        images = expected_images(scene, [0], y, x, 3)
        np.testing.assert_allclose(records[index]["images"], images, atol=1e-4)


def test_reference_frames_under_real_clouds() -> None:
    """Version n is the reference where frame n is clear, and frame n, clouds and all, elsewhere."""
    records = patches("shifts", clouded_shifts=True)
    for index, (scene, p) in enumerate(PLACES):
        members, (y, x) = scene.members[p], scene.corners[p]
        frames = expected_images(scene, members, y, x, 3)
        clear = expected_masks(scene, members, y, x, 3, False)
        assert not clear[1:].all()
        expected = np.where(clear, frames[:1], frames)
        np.testing.assert_allclose(records[index]["images"], expected, atol=1e-4)


def test_scenes_without_a_patch_are_passed_over() -> None:
    empty = make_scene(2, [])
    records = Patches((empty, SCENES[0], empty, SCENES[1]), MODEL, DATA, "stacks")
    assert len(records) == len(PLACES)
    for index in (2, 3):
        assert digest(records[index]) == digest(patches("stacks")[index])


# --- flips and rotations


def dihedral(x: np.ndarray, element: int) -> np.ndarray:
    """The eight symmetries of a square as transpositions and reversals of rows and columns."""
    x = np.swapaxes(x, -3, -2) if element & 1 else x
    x = x[..., ::-1, :, :] if element & 2 else x
    return x[..., ::-1, :] if element & 4 else x


def digest(record: Batch) -> bytes:
    return b"".join(np.ascontiguousarray(record[key]).tobytes() for key in sorted(record))


def test_codes_are_the_eight_symmetries() -> None:
    record = patches("stacks")[0]
    of = {digest({k: dihedral(v, e) for k, v in record.items()}): e for e in range(8)}
    moved = [flip_and_rotate(record, code) for code in range(8)]
    assert sorted(of[digest(m)] for m in moved) == list(range(8))
    assert of[digest(moved[0])] == 0
    assert of[digest(moved[2])] == 6  # half a turn
    assert of[digest(moved[4])] == 4  # left to right


@pytest.mark.parametrize("view", VIEWS)
def test_augmentation_moves_a_record_as_one(view: View) -> None:
    plain = [patches(view)[i] for i in range(len(patches(view)))]
    images = {
        np.ascontiguousarray(dihedral(record["images"], e)).tobytes(): (i, e)
        for i, record in enumerate(plain)
        for e in range(8)
    }
    seen = set()
    for record in stream(make_iterator(patches(view, augment=True), 3, seed=5), 90):
        index, element = images[record["images"].tobytes()]
        for key, value in plain[index].items():
            np.testing.assert_array_equal(record[key], dihedral(value, element), err_msg=key)
        seen.add(element)
    assert seen == set(range(8))


def test_no_augmentation_unless_asked_for() -> None:
    plain = {digest(patches("stacks")[i]) for i in range(len(PLACES))}
    assert {digest(r) for r in stream(make_iterator(patches("stacks"), 3, seed=5), 30)} == plain


# --- the stream


def stream(batches: Any, count: int) -> list[Batch]:
    """The next `count` records, one by one; at least."""
    records: list[Batch] = []
    while len(records) < count:
        batch = next(batches)
        size = len(next(iter(batch.values())))
        records += [{k: v[i] for k, v in batch.items()} for i in range(size)]
    return records


def indices(batches: Any, count: int) -> list[int]:
    """Which records of the view "stacks" come next; they must not be augmented."""
    known = {digest(patches("stacks")[i]): i for i in range(len(PLACES))}
    return [known[digest(record)] for record in stream(batches, count)]


@pytest.mark.parametrize("batch_size", [1, 3, 14])
def test_epochs_are_permutations_shuffled_anew(batch_size: int) -> None:
    order = indices(make_iterator(patches("stacks"), batch_size, seed=0), 42)
    epochs = [tuple(order[i : i + 7]) for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) > 3
    again = indices(make_iterator(patches("stacks"), batch_size, seed=0), 42)
    assert again == order
    assert indices(make_iterator(patches("stacks"), batch_size, seed=1), 42) != order


@pytest.mark.parametrize("view", VIEWS)
def test_batches_of_one(view: View) -> None:
    batches = make_iterator(patches(view), 1, seed=0)
    first = next(batches)
    expected = kinds(patches(view)[0])
    if view == "shifts":
        expected["shifts"] = ((3, 2), "int32")
    assert kinds(first) == {k: ((1, *shape), dtype) for k, (shape, dtype) in expected.items()}
    assert digest({k: v[0] for k, v in first.items()}) != digest(stream(batches, 1)[0])


@pytest.mark.parametrize("view", ["stacks", "shifts"])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_every_global_batch(view: View, processes: int) -> None:
    """On any number of devices a step sees the same batch, augmented in the same way."""
    records = patches(view, augment=True)
    whole = make_iterator(records, 4, seed=3)
    shares = [make_iterator(records, 4, 3, i, processes) for i in range(processes)]
    for _ in range(9):  # five epochs
        parts = [stream(share, 1) for share in shares]
        assert [len(part) for part in parts] == [4 // processes] * processes
        together = sorted(digest(record) for part in parts for record in part)
        assert together == sorted(digest(record) for record in stream(whole, 4))


@pytest.mark.parametrize("view", ["stacks", "shifts"])
def test_draws_depend_on_seed_epoch_and_record_alone(view: View) -> None:
    records = patches(view, augment=True)

    def epochs(batch_size: int, seed: int = 3) -> list[list[bytes]]:
        drawn = [digest(r) for r in stream(make_iterator(records, batch_size, seed), 56)]
        return [sorted(drawn[i : i + 7]) for i in range(0, 56, 7)]

    expected = epochs(7)
    assert epochs(2) == expected and epochs(8) == expected
    assert len({tuple(epoch) for epoch in expected}) > 1  # drawn anew in every epoch
    assert sorted(map(tuple, epochs(7, seed=4))) != sorted(map(tuple, expected))


def test_records_of_an_epoch_do_not_share_a_draw() -> None:
    drawn = stream(make_iterator(patches("shifts"), 7, seed=0), 7)
    assert len({record["shifts"].tobytes() for record in drawn}) > 3


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("batch_size", "share"), [(1, (0, 1)), (3, (0, 1)), (4, (1, 2))])
def test_resumes_exactly(view: View, batch_size: int, share: tuple[int, int]) -> None:
    """In the middle of an epoch too, and although the iterator reads ahead."""

    def fresh() -> Any:
        return make_iterator(patches(view, augment=True), batch_size, 9, *share)

    batches = fresh()
    states, told = [], []
    for _ in range(24):
        states.append(json.dumps(batches.get_state()))  # as a checkpoint keeps it
        told.append(next(batches))
    assert len({digest(batch) for batch in told}) > 12
    used = fresh()
    for start in (0, 1, 5, 17):
        resumed = fresh()
        for again in (resumed, used):
            again.set_state(json.loads(states[start]))
            assert json.dumps(again.get_state()) == states[start]
            for batch in told[start : start + 4]:
                following = next(again)
                assert kinds(following) == kinds(batch)
                assert digest(following) == digest(batch)


# --- synthetic shifts


@pytest.mark.parametrize("filter_size", [3, 5, 9])
def test_synthetic_shifts_fill_the_reach_of_the_filters(filter_size: int) -> None:
    model = dataclasses.replace(MODEL, num_frames=5, filter_size=filter_size)
    rng = np.random.default_rng(0)
    drawn = np.stack([synthetic_shifts(rng, model) for _ in range(300)])
    assert drawn.shape == (300, 5, 2) and drawn.dtype == np.int32
    assert (drawn[:, 0] == 0).all()
    reach = filter_size // 2
    for axis in (0, 1):
        assert set(np.unique(drawn[:, 1:, axis])) == set(range(-reach, reach + 1))
    assert (drawn[:, 1, 0] != drawn[:, 1, 1]).any() and (drawn[:, 1] != drawn[:, 2]).any()


def test_synthetic_shifts_come_with_the_frames() -> None:
    batch = next(make_iterator(patches("shifts", augment=True), 4, seed=0))
    assert kinds(batch) == {
        "images": ((4, 1, 12, 12, 2), "float32"),
        "shifts": ((4, 3, 2), "int32"),
    }
    assert (batch["shifts"][:, 0] == 0).all() and batch["shifts"].any()
    assert abs(batch["shifts"]).max() <= 2


# --- refusals


@pytest.mark.parametrize("scenes", [(), (make_scene(0, []),)])
def test_no_patch(scenes: tuple[PreparedScene, ...]) -> None:
    with pytest.raises(ValueError, match="no patch to train on"):
        make_iterator(Patches(scenes, MODEL, DATA, "stacks"), 1, seed=0)


def test_batch_that_processes_cannot_share() -> None:
    with pytest.raises(ValueError, match=r"batch_size: found 6, expected a multiple of 4 proc"):
        make_iterator(patches("stacks"), 6, 0, 1, 4)
