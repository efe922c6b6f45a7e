"""From scenes to prepared scenes: each rule against a slow oracle, and a cache that cannot lie."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import landscape

from deepsum_jax.config import (
    NORMALIZATIONS,
    DataConfig,
    ModelConfig,
    Normalization,
    SimulationConfig,
)
from deepsum_jax.config.presets import TINY
from deepsum_jax.data import dataset as datasets
from deepsum_jax.data import kelvins
from deepsum_jax.data.dataset import Dataset, measure_normalization, prepare_dataset, split
from deepsum_jax.data.fill import keep_clouds
from deepsum_jax.data.frames import clearest_first
from deepsum_jax.data.prepare import (
    PreparedScene,
    SceneSkipped,
    choose_patches,
    prepare_scene,
)
from deepsum_jax.data.resample import aligned_masks, bicubic_upsample, upsample, upsample_window
from deepsum_jax.data.scene import Scene
from deepsum_jax.simulation.dataset import write_dataset

MODEL = ModelConfig(num_frames=3, features=4, filter_size=5, sisrnet_layers=2)
DATA = DataConfig(patch_size=12, patches_per_scene=5)
RNG = np.random.default_rng(0)


# --- upsampling


@pytest.mark.parametrize("scale", [2, 3])
def test_window_is_the_cut_of_the_whole(scale: int) -> None:
    """At every place, the edges included, and clipped to the range of the whole frame."""
    lr = np.random.default_rng(1).normal(0, 1, (2, 7, 8, 2)).astype(np.float32)
    lr[0, 3, 3] = 40  # overshoots around it, next to windows that do not see it
    bands = [bicubic_upsample(lr[..., c], scale) for c in (0, 1)]
    whole = np.stack(bands, axis=-1)
    np.testing.assert_array_equal(upsample(lr, scale), whole)
    for size in (1, 3, 7):
        for y in range(7 - size + 1):
            for x in range(8 - size + 1):
                cut = whole[:, scale * y : scale * (y + size), scale * x : scale * (x + size)]
                window = upsample_window(lr, np.array([y, x], np.int32), size, scale)
                assert window.dtype == np.float32 and window.shape == cut.shape
                np.testing.assert_allclose(window, cut, atol=1e-5)


# --- what masks hide


def test_only_what_is_no_measurement_is_filled() -> None:
    lr = np.random.default_rng(2).uniform(100, 200, (3, 4, 5, 2))
    masks = np.ones((3, 4, 5), bool)
    lr[0, 0, 0], lr[0, 0, 1] = (np.nan, 150), (-9999, 65535)
    lr[1, 2, 3], lr[1, 3, 3] = (np.inf, -np.inf), (-3.4e38, 1e300)
    lr[1, 0, 0], lr[1, 0, 1] = (0, 400), (900, 1100)  # a shadow and a cloud: they stay
    for n, y, x in [(0, 0, 0), (0, 0, 1), (1, 2, 3), (1, 3, 3), (1, 0, 0), (1, 0, 1)]:
        masks[n, y, x] = False
    masks[2] = False  # wholly hidden, with one hole
    lr[2, 1, 1] = np.nan
    before = lr.copy()
    filled = keep_clouds(lr, masks)
    np.testing.assert_array_equal(lr, before)  # the caller's stay as they are
    assert filled.dtype == np.float32
    expected = lr.copy()
    own = [np.median(lr[n][masks[n]].astype(np.float32), axis=0) for n in (0, 1)]
    expected[0, 0, 0, 0] = own[0][0]  # the other band of that pixel is sound
    expected[0, 0, 1] = own[0]
    expected[1, 2, 3] = expected[1, 3, 3] = own[1]
    expected[2, 1, 1] = np.median(lr[masks], axis=0)
    np.testing.assert_allclose(filled, expected, rtol=1e-6)


def test_reach_of_a_measurement_is_ten_ranges() -> None:
    lr = np.array([[[10, 20, 121, 120, -91, -90]]], np.int32)[..., None]
    masks = np.array([[[True, True, False, False, False, False]]])
    np.testing.assert_array_equal(keep_clouds(lr, masks)[0, 0, :, 0], [10, 20, 15, 120, 15, -90])


def test_without_a_clear_pixel_holes_become_zero() -> None:
    lr = np.array([[[5.0, np.nan, -np.inf]]])[..., None]
    np.testing.assert_array_equal(keep_clouds(lr, np.zeros((1, 1, 3), bool)).ravel(), [5, 0, 0])


def test_clearest_first() -> None:
    masks = np.zeros((5, 2, 4), bool)
    for n, count in enumerate([3, 8, 0, 3, 5]):
        masks[n].flat[:count] = True
    assert clearest_first(masks).tolist() == [1, 4, 0, 3, 2]


# --- masks by shifts


@pytest.mark.parametrize("scale", [1, 3])
def test_aligned_masks(scale: int) -> None:
    masks = np.random.default_rng(3).random((6, 4, 5)) < 0.7
    shifts = np.array([(0, 0), (1, -2), (-3, 1), (0, 4), (-1, -1), (40, -50)], np.int32)
    out = aligned_masks(masks, shifts, scale)
    expected = np.zeros((6, 4 * scale, 5 * scale), bool)
    for n, (down, right) in enumerate(shifts):
        for y in range(4 * scale):
            for x in range(5 * scale):
                row, col = y - down, x - right
                if 0 <= row < 4 * scale and 0 <= col < 5 * scale:
                    expected[n, y, x] = masks[n, row // scale, col // scale]
    assert out.dtype == bool
    np.testing.assert_array_equal(out, expected)
    assert not out[5].any()  # moved out of sight


# --- where patches lie


def choose_slowly(
    masks: np.ndarray, hr_mask: np.ndarray, frames: int, scale: int, data: DataConfig
) -> dict[tuple[int, int], list[int]]:
    """Every patch that may train, and its frames, by counting pixels."""
    size, found = data.patch_size // scale, {}
    for y in range(masks.shape[1] - size + 1):
        for x in range(masks.shape[2] - size + 1):
            clear = [float(m[y : y + size, x : x + size].mean()) for m in masks]
            enough = [c > data.min_lr_clearance for c in clear]
            hr = hr_mask[scale * y : scale * (y + size), scale * x : scale * (x + size)]
            if enough[0] and sum(enough) >= frames and hr.mean() > data.min_hr_clearance:
                by_clearance = sorted(range(1, len(masks)), key=lambda n: (-clear[n], n))
                found[y, x] = [0, *by_clearance[: frames - 1]]
    return found


@pytest.mark.parametrize("scale", [2, 3])
def test_patches_against_counting(scale: int) -> None:
    """Thresholds that whole counts meet exactly: a patch must be above them."""
    data = DataConfig(
        patch_size=12, patches_per_scene=1000, min_lr_clearance=0.75, min_hr_clearance=0.75
    )
    rng = np.random.default_rng(4)
    total = 0
    for _ in range(20):
        masks = rng.random((6, 8, 10)) < 0.8
        hr_mask = np.kron(rng.random((8, 10)) < 0.85, np.ones((scale, scale))) > 0
        expected = choose_slowly(masks, hr_mask, 3, scale, data)
        if not expected:
            with pytest.raises(SceneSkipped, match="no patch has 3 clear frames and a clear HR"):
                choose_patches(masks, hr_mask, 3, scale, data, seed=0)
            continue
        corners, members = choose_patches(masks, hr_mask, 3, scale, data, seed=0)
        assert corners.dtype == members.dtype == np.int32
        assert len(corners) == len(expected)  # each once
        chosen = {(int(y), int(x)): m.tolist() for (y, x), m in zip(corners, members)}
        assert chosen == expected
        total += len(expected)
    assert total > 20


def test_some_patches_at_random() -> None:
    masks, hr_mask = np.random.default_rng(5).random((5, 12, 14)) < 0.9, np.ones((36, 42), bool)

    def choose(seed: int) -> tuple[np.ndarray, np.ndarray]:
        return choose_patches(masks, hr_mask, 3, 3, DATA, seed)

    corners, members = choose(0)
    assert corners.shape == (5, 2) and members.shape == (5, 3)
    possible = choose_slowly(masks, hr_mask, 3, 3, DATA)
    assert len(possible) > 20 and len({tuple(c) for c in corners}) == 5
    for corner, member in zip(corners, members):
        assert possible[tuple(corner)] == member.tolist()
    np.testing.assert_array_equal(choose(0)[0], corners)
    drawn = {tuple(c) for seed in range(12) for c in choose(seed)[0]}
    assert len(drawn) > 20 and max(c[0] for c in drawn) == 8 and max(c[1] for c in drawn) == 10


# --- a scene


def make_scene() -> Scene:
    """Views of one landscape; frame n shows it from `FROM[n]`, HR pixels."""
    canvas = 6000 + 100 * (landscape(72, 72, seed=3) - 60)
    lr, masks = [], np.ones((7, 16, 16), bool)
    for y, x in FROM:
        view = canvas[12 + y : 60 + y, 12 + x : 60 + x]
        lr.append(view.reshape(16, 3, 16, 3).mean(axis=(1, 3)))
    stack = np.stack(lr)
    for n, hidden in enumerate(HIDDEN):
        masks[n].flat[:hidden] = False
    stack[2, 5, 5], stack[2, 0, 0] = 60001, 6000
    stack[3, 5, 5], stack[3, 0, 0] = 60000, 65535  # under a mask no value is too high
    stack[1, 0, 0] = np.nan
    hr = np.rint(canvas[12:60, 12:60])
    hr[0, 0] = np.nan
    hr_mask = np.ones((48, 48), bool)
    hr_mask[0, :5] = False
    return Scene("imgset0594", stack, masks, band="NIR", hr=hr, hr_mask=hr_mask)


FROM = [(1, 0), (0, -2), (0, 0), (2, 1), (7, 1), (0, 0), (-2, 3)]
HIDDEN = [30, 10, 1, 5, 20, 256, 10]


def test_scene_by_the_published_rules() -> None:
    """Frame 2 has a value that is too high, 4 is shifted too far, 5 is all hidden."""
    scene = make_scene()
    out = prepare_scene(scene, MODEL, DATA)
    assert (out.name, out.band, out.scale) == ("imgset0594", "NIR", 3)
    kept = [3, 1, 6, 0]  # by clearance; 1 and 6 tie
    assert out.lr.shape == (4, 16, 16, 1) and out.lr.dtype == np.float32
    expected = scene.lr.copy()
    expected[1, 0, 0] = np.median(scene.lr[1][scene.masks[1]])
    np.testing.assert_allclose(out.lr[..., 0], expected[kept], rtol=1e-6)
    np.testing.assert_array_equal(out.masks, scene.masks[kept])
    assert out.masks.dtype == bool
    # registered(y) = frame(y − s): from where frame n was seen, less where frame 3 was.
    np.testing.assert_array_equal(out.shifts, [(0, 0), (-2, -3), (-4, 2), (-1, -1)])
    assert out.shifts.dtype == np.int32
    assert out.hr.shape == (48, 48, 1) and out.hr.dtype == np.float32
    assert scene.hr is not None
    np.testing.assert_array_equal(out.hr[1:, :, 0], scene.hr[1:])
    assert out.hr[0, 0, 0] == scene.hr[1, 0]  # the nearest reliable one
    np.testing.assert_array_equal(out.hr_mask, scene.hr_mask)
    possible = choose_slowly(out.masks, out.hr_mask, 3, 3, DATA)
    assert out.corners.shape == (5, 2)
    for corner, member in zip(out.corners, out.members):
        assert possible[tuple(corner)] == member.tolist()


def test_reference_by_other_rules() -> None:
    """Shifts are on the frame that the rule names; the others follow by clearance."""
    scene = dataclasses.replace(make_scene(), frames=(0, 1, 2, 5, 6, 8, 9), reference=9)
    clearest = prepare_scene(scene, MODEL, DATA)
    first = prepare_scene(scene, MODEL, dataclasses.replace(DATA, reference="first", max_shift=9))
    np.testing.assert_array_equal(first.masks, scene.masks[[0, 3, 1, 6, 4]])
    np.testing.assert_array_equal(first.shifts, [(0, 0), (1, 1), (-1, -2), (-3, 3), (6, 1)])
    given = prepare_scene(scene, MODEL, dataclasses.replace(DATA, reference="given", max_shift=9))
    np.testing.assert_array_equal(given.masks, scene.masks[[6, 3, 1, 4, 0]])
    np.testing.assert_array_equal(given.shifts[0], 0)
    np.testing.assert_array_equal(given.shifts[1], -clearest.shifts[2])


def test_no_reference_to_serve() -> None:
    scene, given = make_scene(), dataclasses.replace(DATA, reference="given")
    for number in (None, 40):  # not said, or a frame that is not there
        with pytest.raises(ValueError, match=r"imgset0594.*reference\.txt"):
            prepare_scene(dataclasses.replace(scene, reference=number), MODEL, given)
    with pytest.raises(SceneSkipped, match="given frame"):  # a value that is too high
        prepare_scene(dataclasses.replace(scene, reference=2), MODEL, given)


def test_given_reference_is_part_of_the_cache(tmp_path: Path) -> None:
    root = tmp_path / "data"
    config = SimulationConfig(
        lr_size=16, min_frames=5, max_frames=5, scenes=3, test_scenes=0, seed=1
    )
    write_dataset(root, config)
    data = dataclasses.replace(TINY.data, reference="given", max_shift=12)

    def references() -> list[np.ndarray]:
        prepared = prepare_dataset(root, TINY.model, data, tmp_path / "cache")
        return [s.lr[0] for s in (*prepared.train, *prepared.validation)]

    before = references()
    for folder in kelvins.find_scenes(root):
        number = kelvins.read_scene(folder).reference
        assert number is not None
        (folder.path / "reference.txt").write_text(f"LR{(number + 1) % 5:03d}\n")
    after = references()
    assert len(before) == len(after)
    assert not any(np.array_equal(a, b) for a, b in zip(before, after))


def test_other_limits() -> None:
    scene = make_scene()
    every = prepare_scene(scene, MODEL, dataclasses.replace(DATA, max_value=0, max_shift=7))
    clear = scene.masks.sum(axis=(1, 2))
    assert every.masks.sum(axis=(1, 2)).tolist() == [clear[n] for n in (2, 3, 1, 6, 4, 0)]
    assert every.lr[0, 5, 5, 0] == 60001
    near = prepare_scene(scene, MODEL, dataclasses.replace(DATA, max_shift=3))
    assert near.shifts.tolist() == [[0, 0], [-2, -3], [-1, -1]]


def test_patches_differ_between_scenes_and_split_seeds() -> None:
    def corners(name: str = "a", band: str = "NIR", **settings: Any) -> list[list[int]]:
        scene = dataclasses.replace(make_scene(), name=name, band=band)
        data = dataclasses.replace(DATA, **settings)
        return prepare_scene(scene, MODEL, data).corners.tolist()

    assert corners() == corners()
    for other in (corners(name="b"), corners(band="RED"), corners(split_seed=2)):
        assert other != corners()


def test_plain_registration_when_asked_for() -> None:
    """Clouds fool the plain one, not the masked one."""
    scene = make_scene()
    stack, masks = scene.lr.copy(), scene.masks.copy()
    masks[0] = True
    masks[0, -3:, -10:] = False
    stack[0, -3:, -10:] = 40000
    cloudy = dataclasses.replace(scene, lr=stack, masks=masks)
    wide = dataclasses.replace(DATA, max_shift=24)
    masked = prepare_scene(cloudy, MODEL, wide)
    plain = prepare_scene(cloudy, MODEL, dataclasses.replace(wide, registration="plain"))
    assert masked.shifts[-1].tolist() == [-1, -1]
    assert abs(plain.shifts[-1]).max() > 4


def test_several_bands() -> None:
    scene = make_scene()
    assert scene.hr is not None
    lr, hr = np.stack([scene.lr, scene.lr / 2], -1), np.stack([scene.hr, scene.hr / 2], -1)
    lr[2, 5, 5] = 6000, 60001  # a high value in one band is enough
    both = dataclasses.replace(scene, lr=lr, hr=hr)
    out = prepare_scene(both, dataclasses.replace(MODEL, channels=2), DATA)
    one = prepare_scene(scene, MODEL, DATA)
    np.testing.assert_allclose(out.lr, np.concatenate([one.lr, one.lr / 2], -1), rtol=1e-6)
    np.testing.assert_allclose(out.hr, np.concatenate([one.hr, one.hr / 2], -1), rtol=1e-6)
    np.testing.assert_array_equal(out.shifts, one.shifts)


def hide_all_but(count: int) -> Callable[[Scene], Scene]:
    def change(scene: Scene) -> Scene:
        masks = scene.masks.copy()
        masks[[0, 1, 6][: 4 - count]] = False
        return dataclasses.replace(scene, masks=masks)

    return change


def hide_hr(scene: Scene) -> Scene:
    return dataclasses.replace(scene, hr_mask=np.zeros_like(scene.hr_mask))


def hide_columns(scene: Scene) -> Scene:
    masks = scene.masks.copy()
    masks[:, :, ::2] = False
    return dataclasses.replace(scene, masks=masks)


def same(scene: Scene) -> Scene:
    return scene


@pytest.mark.parametrize(
    ("change", "settings", "reason"),
    [
        (hide_hr, {}, "HR has no reliable pixel"),
        (hide_all_but(2), {"max_shift": 24}, None),  # with frame 4, three are left
        (hide_all_but(1), {"max_shift": 24}, "2 usable frames, 3 needed"),
        (same, {"max_value": 5000}, "0 usable frames, 3 needed"),
        (same, {"max_shift": 2}, "2 frames within ±2 pixels, 3 needed"),
        (hide_columns, {}, "no patch has 3 clear frames and a clear HR"),
        (same, {"patch_size": 51}, "frames are 16×16 pixels, patches need 17×17"),
    ],
)
def test_scene_that_cannot_serve(
    change: Callable[[Scene], Scene], settings: dict[str, Any], reason: str | None
) -> None:
    scene, data = change(make_scene()), dataclasses.replace(DATA, **settings)
    if reason is None:
        prepare_scene(scene, MODEL, data)
        return
    with pytest.raises(SceneSkipped) as caught:
        prepare_scene(scene, MODEL, data)
    assert str(caught.value).startswith(reason)
    if reason != "HR has no reliable pixel":  # what to set otherwise
        assert re.search(r"(data|model)\.\w+", str(caught.value))


@pytest.mark.parametrize(
    ("change", "model", "words"),
    [
        ({"hr": None}, {}, r"'imgset0594': found no HR.png"),
        ({}, {"scale": 2}, r"'imgset0594': found scale 3 and 1 channels, expected 2 and 1"),
        ({}, {"channels": 2}, r"found scale 3 and 1 channels, expected 3 and 2"),
    ],
)
def test_scene_of_another_kind(change: dict[str, Any], model: dict[str, Any], words: str) -> None:
    """A structural fault is no reason to go on without the scene."""
    scene = dataclasses.replace(make_scene(), **change)
    with pytest.raises(ValueError, match=words) as caught:
        prepare_scene(scene, dataclasses.replace(MODEL, **model), DATA)
    assert not isinstance(caught.value, SceneSkipped)


# --- the split


@pytest.mark.parametrize("count", [2, 3, 10, 101])
@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.5, 0.999])
def test_split(count: int, fraction: float) -> None:
    names = [f"imgset{i:04d}" for i in RNG.permutation(count)]
    train, validation = split(names, fraction, seed=1)
    assert sorted([*train, *validation]) == sorted(names)  # each on one side, once
    assert train == sorted(train) and validation == sorted(validation)
    assert len(validation) == min(max(round(fraction * count), 1), count - 1)
    assert split(sorted(names), fraction, seed=1) == (train, validation)  # whatever the order


def test_split_is_a_shuffle_by_its_seed() -> None:
    names = [f"imgset{i:04d}" for i in range(40)]
    held_out = {tuple(split(names, 0.25, seed)[1]) for seed in range(30)}
    assert len(held_out) == 30
    assert set().union(*held_out) == set(names)


# --- normalisation


def prepared(seed: int, frames: int = 3, channels: int = 1, offset: float = 90) -> PreparedScene:
    rng = np.random.default_rng(seed)
    lr = rng.normal(offset, 20, (frames, 5, 6, channels)).astype(np.float32)
    up = np.stack([bicubic_upsample(lr[0, ..., c], 3) for c in range(channels)], axis=-1)
    hr = up + rng.normal(7, 2 + seed, up.shape).astype(np.float32)
    return PreparedScene(
        f"scene{seed}", "NIR", lr, rng.random((frames, 5, 6)) < 0.6,
        np.array([(0, 0), (2, -1), (-3, 4), (0, 5), (1, 1)][:frames], np.int32),
        hr, rng.random((15, 18)) < 0.8, np.zeros((1, 2), np.int32),
        np.arange(3, dtype=np.int32)[None],
    )  # fmt: skip


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("offset", [90.0, -300.0])
def test_measured_normalization(channels: int, offset: float) -> None:
    scenes = [prepared(i, 3 + i % 2, channels, offset) for i in range(4)]
    for s in scenes:
        s.lr[..., -1] += 5  # bands differ
        s.lr[~s.masks] = 1e6  # clouds do not count
    # The clearest frame shows nothing of that: what HR adds is measured on the whole of it.
    for s in scenes:
        s.masks[0] = True
        s.lr[0] = np.random.default_rng(9).normal(offset, 20, s.lr[0].shape)
        s.hr[~s.hr_mask] = -1e6
    measured = measure_normalization(scenes)
    for c in range(channels):
        clear = np.concatenate([s.lr[s.masks][:, c] for s in scenes]).astype(np.float64)
        residuals = []
        for s in scenes:
            up = bicubic_upsample(s.lr[0, ..., c].astype(np.float64), 3)
            residuals.append((s.hr[..., c] - up)[s.hr_mask].var())
        expected = Normalization(
            clear.mean(), clear.std(), clear.mean(), float(np.sqrt(np.mean(residuals)))
        )
        for field, value in expected.to_dict().items():
            found: Any = getattr(measured, field)
            assert type(found) is (tuple if channels > 1 else float)
            assert np.atleast_1d(found)[c] == pytest.approx(value, rel=2e-6), field


def test_normalization_of_a_flat_scene_can_be_divided_by() -> None:
    flat = dataclasses.replace(
        prepared(0), lr=np.full((3, 5, 6, 1), 7, np.float32), hr=np.full((15, 18, 1), 9, np.float32)
    )
    assert measure_normalization([flat]) == Normalization(7.0, 1e-6, 7.0, 1e-6)


# --- a data set and its cache


def write_data(root: Path) -> Path:
    """Four scenes of noise; the last cannot train."""
    rng = np.random.default_rng(6)
    for i in range(4):
        scene = Scene(
            f"imgset{i:04d}",
            rng.integers(5000, 9000, (5, 24, 24)),
            np.ones((5, 24, 24), bool),
            hr=rng.integers(5000, 9000, (72, 72)),
            hr_mask=np.full((72, 72), i != 3),
        )
        kelvins.write_scene(root / "train" / "NIR" / scene.name, scene)
    return root


SETTINGS = DataConfig(patch_size=12, patches_per_scene=2, max_shift=36)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scenes that are prepared from their images, not read from a cache."""
    names: list[str] = []
    original = datasets.prepare_scene

    def counted(scene: Scene, *others: Any) -> PreparedScene:
        names.append(scene.name)
        return original(scene, *others)

    monkeypatch.setattr(datasets, "prepare_scene", counted)
    return names


def told(dataset: Dataset) -> dict[str, Any]:
    """All of a data set, its arrays as bytes."""

    def plain(scene: PreparedScene) -> dict[str, Any]:
        values = {f.name: getattr(scene, f.name) for f in dataclasses.fields(scene)}
        return {
            k: (v.dtype, v.shape, v.tobytes()) if isinstance(v, np.ndarray) else v
            for k, v in values.items()
        }

    return {
        **{f.name: getattr(dataset, f.name) for f in dataclasses.fields(dataset)},
        "train": [plain(s) for s in dataset.train],
        "validation": [plain(s) for s in dataset.validation],
    }


NAMES = ["imgset0000", "imgset0001", "imgset0002"]  # the fourth is skipped, and cached as that


def test_dataset(data: Path) -> None:
    dataset = prepare_dataset(data, MODEL, SETTINGS)
    train, validation = split(NAMES, SETTINGS.validation_fraction, SETTINGS.split_seed)
    assert [s.name for s in dataset.train] == train
    assert [s.name for s in dataset.validation] == validation
    assert dataset.band == "NIR" and {s.band for s in dataset.train} == {"NIR"}
    assert dataset.skipped == (("imgset0003", "HR has no reliable pixel"),)
    assert dataset.normalization == measure_normalization(dataset.train)
    published = dataclasses.replace(SETTINGS, normalization="published")
    assert prepare_dataset(data, MODEL, published).normalization == NORMALIZATIONS["NIR"]
    model = dataclasses.replace(MODEL, normalization=Normalization(1.0, 2.0, 3.0, 4.0))
    kept = dataclasses.replace(SETTINGS, normalization="model")
    assert prepare_dataset(data, model, kept).normalization == model.normalization


def test_second_time_from_the_cache(data: Path, tmp_path: Path, asked: list[str]) -> None:
    bare = told(prepare_dataset(data, MODEL, SETTINGS))
    first = told(prepare_dataset(data, MODEL, SETTINGS, tmp_path / "new" / "cache"))
    assert sorted(asked) == sorted(2 * [*NAMES, "imgset0003"])
    asked.clear()
    second = told(prepare_dataset(data, MODEL, SETTINGS, tmp_path / "new" / "cache"))
    assert asked == []
    assert second == first == bare
    # What does not bear on the preparation does not spoil the cache.
    others = dataclasses.replace(SETTINGS, augment=True, normalization="published", band="NIR")
    prepare_dataset(
        data, dataclasses.replace(MODEL, features=8), others, tmp_path / "new" / "cache"
    )
    assert asked == []


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ({"num_frames": 5}, {}),
        ({}, {"patch_size": 15}),
        ({}, {"patches_per_scene": 3}),
        ({}, {"max_value": 8000}),
        ({}, {"max_shift": 35}),
        ({}, {"min_lr_clearance": 0.6}),
        ({}, {"min_hr_clearance": 0.6}),
        ({}, {"registration": "plain"}),
        ({}, {"split_seed": 2}),
    ],
)
def test_changed_settings_miss_the_cache(
    model: dict[str, Any], settings: dict[str, Any], data: Path, cached: Path, asked: list[str]
) -> None:
    other_model = dataclasses.replace(MODEL, **model)
    other = dataclasses.replace(SETTINGS, **settings)
    try:
        found = told(prepare_dataset(data, other_model, other, cached))
    except ValueError as error:  # no scene is left
        assert "0 of 4 scenes can train" in str(error) and "max_value" in settings
        found = None
    assert sorted(asked) == [*NAMES, "imgset0003"]
    if found is not None:
        assert found == told(prepare_dataset(data, other_model, other))


@pytest.fixture
def cached(data: Path, tmp_path: Path) -> Path:
    """A full cache."""
    cache = tmp_path / "cache"
    prepare_dataset(data, MODEL, SETTINGS, cache)
    assert len(list(cache.iterdir())) == 4
    return cache


def test_changed_bytes_miss_the_cache(tmp_path: Path, asked: list[str]) -> None:
    root, cache = write_data(tmp_path / "data"), tmp_path / "cache"
    prints = {prepare_dataset(root, MODEL, SETTINGS, cache).fingerprint}
    for scene, file, change in [
        ("imgset0001", "LR002.png", 1),
        ("imgset0000", "HR.png", 1),
        ("imgset0002", "QM000.png", -255),
    ]:
        path = root / "train" / "NIR" / scene / file
        if file.startswith("QM"):
            mask = kelvins.read_mask_png(path)
            mask[0, 0] = False
            kelvins.write_mask_png(path, mask)
        else:
            pixels = kelvins.read_png16(path)
            pixels[0, 0] += change
            kelvins.write_png16(path, pixels)
        asked.clear()
        found = prepare_dataset(root, MODEL, SETTINGS, cache)
        assert asked == [scene]
        assert told(found) == told(prepare_dataset(root, MODEL, SETTINGS))
        prints.add(found.fingerprint)
    assert len(prints) == 4
    asked.clear()
    (root / "train" / "NIR" / "imgset0001" / "truth.json").write_text("{}")
    assert prepare_dataset(root, MODEL, SETTINGS, cache).fingerprint in prints
    assert asked == []


def test_bands_do_not_share_a_cache(tmp_path: Path) -> None:
    """Scenes of the same name and bytes, in two bands."""
    root = write_data(tmp_path / "data")
    for path in (root / "train" / "NIR").iterdir():
        kelvins.write_scene(root / "train" / "RED" / path.name, kelvins.read_scene(path))
    with pytest.raises(ValueError, match=r"data.band: the data has NIR, RED; choose one"):
        prepare_dataset(root, MODEL, SETTINGS, tmp_path / "cache")
    every = dataclasses.replace(SETTINGS, band="all")
    for _ in range(2):
        dataset = prepare_dataset(root, MODEL, every, tmp_path / "cache")
        assert [s.band for s in dataset.train] == ["NIR", "NIR", "RED", "RED"]
        assert [s.band for s in dataset.validation] == ["NIR", "RED"]
    red = prepare_dataset(root, MODEL, dataclasses.replace(SETTINGS, band="RED"), tmp_path)
    assert {s.band for s in (*red.train, *red.validation)} == {"RED"}


def flip_a_bit(stored: bytes) -> bytes:
    broken = bytearray(stored)
    broken[len(broken) // 2] ^= 1
    return bytes(broken)


def another_archive(stored: bytes) -> bytes:
    file = io.BytesIO()
    np.savez(file, name="imgset0000")
    return file.getvalue()


def claims_encryption(stored: bytes) -> bytes:
    """A flipped bit in the archive's directory."""
    broken = bytearray(stored)
    broken[stored.index(b"PK\x01\x02") + 8] ^= 1
    return bytes(broken)


def other_shape(stored: bytes) -> bytes:
    """A flipped bit in an array's header: fewer rows, so that its end is never read."""
    return stored.replace(b"(72, 72, 1)", b"(32, 72, 1)")


def broken_header(stored: bytes) -> bytes:
    """A flipped bit in the length of an array's header."""
    broken = bytearray(stored)
    if b"lr.npy" in stored:
        broken[stored.index(b"NUMPY", stored.index(b"lr.npy")) + 7] ^= 64
    return bytes(broken)


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: b"",
        lambda stored: stored[:40],
        lambda stored: stored[: len(stored) // 2],
        lambda stored: stored[:-1],
        lambda stored: bytes(len(stored)),
        lambda stored: b"not an archive",
        flip_a_bit,
        another_archive,
        claims_encryption,
        other_shape,
        broken_header,
    ],
)
def test_damaged_cache_is_prepared_anew(
    damage: Callable[[bytes], bytes], data: Path, cached: Path, asked: list[str]
) -> None:
    whole = told(prepare_dataset(data, MODEL, SETTINGS))
    asked.clear()
    stored = {path: path.read_bytes() for path in cached.iterdir()}
    touched = 0
    for path, before in stored.items():
        path.write_bytes(damage(before))
        touched += path.read_bytes() != before
    assert told(prepare_dataset(data, MODEL, SETTINGS, cached)) == whole
    assert len(asked) == touched >= 3
    asked.clear()
    assert told(prepare_dataset(data, MODEL, SETTINGS, cached)) == whole
    assert asked == []
    assert {path.name for path in cached.iterdir()} == {path.name for path in stored}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(
    error: BaseException, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    whole = told(prepare_dataset(data, MODEL, SETTINGS))

    def half(file: Any, **arrays: Any) -> None:
        file.write(b"PK\x03\x04half")
        file.flush()
        assert any(cache.iterdir())
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", half)
        with pytest.raises(type(error)):
            prepare_dataset(data, MODEL, SETTINGS, cache)
    assert list(cache.iterdir()) == []
    assert told(prepare_dataset(data, MODEL, SETTINGS, cache)) == whole
    assert sorted(p.suffix for p in cache.iterdir()) == 4 * [".npz"]


def test_too_few_scenes_say_why(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data")
    for name in ("imgset0001", "imgset0002"):
        scene = kelvins.read_scene(root / "train" / "NIR" / name)
        few = dataclasses.replace(scene, lr=scene.lr[:2], masks=scene.masks[:2], frames=(0, 1))
        kelvins.write_scene(root / "train" / "NIR" / name, few, overwrite=True)
    with pytest.raises(ValueError) as caught:
        prepare_dataset(root, MODEL, SETTINGS)
    message = str(caught.value)
    assert message.startswith(f"{root}: 1 of 4 scenes can train, expected at least 2")
    assert "imgset0001: 2 usable frames, 3 needed" in message
    assert "imgset0003: HR has no reliable pixel" in message


def test_only_training_scenes_train(data: Path, tmp_path: Path) -> None:
    scene = kelvins.read_scene(data / "train" / "NIR" / "imgset0000")
    for part in ("train", "test"):
        for i in range(3):
            kelvins.write_scene(tmp_path / part / "NIR" / f"{part}{i}", scene)
    dataset = prepare_dataset(tmp_path, MODEL, SETTINGS)
    names = [s.name for s in (*dataset.train, *dataset.validation)]
    assert sorted(names) == ["train0", "train1", "train2"]
    (tmp_path / "norm.csv").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"norm\.csv"):  # not only when scores are due
        prepare_dataset(tmp_path, MODEL, SETTINGS)
    (tmp_path / "norm.csv").unlink()
    with pytest.raises(ValueError, match="found only test scenes"):
        prepare_dataset(tmp_path / "test", MODEL, SETTINGS)
