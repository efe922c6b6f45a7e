"""Large stacks by tiles: nothing of how they are cut shows in what comes out."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.ndimage

from deepsum_jax import predict
from deepsum_jax.bundle import Bundle, load_params
from deepsum_jax.config import ModelConfig
from deepsum_jax.data.sensor import make_sensor
from deepsum_jax.data.survey import Survey
from deepsum_jax.data.turns import CODES, turned, turned_back
from deepsum_jax.inference import super_resolve_bands, super_resolve_parts
from deepsum_jax.systems.system import Stack
from deepsum_jax.tiling import mosaic, overview, tiles
from deepsum_jax.tiling.source import ArraySource, Rect
from deepsum_jax.tiling.store import Folder
from deepsum_jax.tiling.survey import make_survey

SCALE = 3
IBP = Bundle({}, ModelConfig(system="ibp"))
ROBUST = Bundle({}, ModelConfig(system="robust_ibp"))
MEAN = Bundle({}, ModelConfig(system="bicubic_mean"))


def ground(side: int, seed: int = 0) -> np.ndarray:
    """An HR image with detail of all sizes: float64 [3·side, 3·side]."""
    rng = np.random.default_rng(seed)
    size = (SCALE * side,) * 2
    layers = [scipy.ndimage.gaussian_filter(rng.standard_normal(size), s) * s for s in (2, 5, 15)]
    return np.asarray(1000 + 300 * sum(layers))


def frames(
    hr: np.ndarray, shifts: np.ndarray, noise: float = 2.0, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """What sensors see of it: [T, h, w, 1], and masks without a cloud."""
    rng = np.random.default_rng(seed)
    shape = (hr.shape[0] // SCALE, hr.shape[1] // SCALE)
    seen = [make_sensor(shape, s, SCALE, 0.37).observe(hr.astype(np.float32)) for s in shifts]
    lr = np.stack(seen) + noise * rng.standard_normal((len(shifts), *shape))
    return lr[..., None].astype(np.float32), np.ones(lr.shape, bool)


SHIFTS = np.array([(0, 0), (1.3, -0.6), (-0.8, 1.9), (2.2, 0.4), (-1.5, -1.1)])


def run(
    bundle: Bundle, source: ArraySource, plan: mosaic.Plan, memory: float = 0.01
) -> dict[str, np.ndarray]:
    strips = list(mosaic.Mosaic(bundle, source, plan, memory=memory).strips())
    found = {"image": np.concatenate([s.image for s in strips])}
    found["valid"] = np.concatenate([s.valid for s in strips])
    for what in ("standard_error", "frames_per_pixel"):
        parts = [p for p in (getattr(s, what) for s in strips) if p is not None]
        if parts:
            found[what] = np.concatenate(parts)
    rows = np.cumsum([0, *(len(s.image) for s in strips)])[:-1]
    assert [s.row for s in strips] == rows.tolist()
    return found


# --- cutting and joining


@pytest.mark.parametrize("count", [5, 128, 129, 130, 200, 225, 400, 1000])
def test_every_pixel_is_said_once(count: int) -> None:
    axis = tiles.cut_axis(count)
    total = np.zeros(SCALE * count)
    for n, start in enumerate(axis.starts):
        say = axis.profile(n, SCALE)
        total[SCALE * start : SCALE * (start + axis.length)] += say
        # What lacks its surroundings has no say.
        edge = SCALE * (tiles.MARGIN - tiles.FADE // 2)
        assert n == 0 or not say[:edge].any()
        assert n + 1 == len(axis.starts) or not say[-edge:].any()
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_tiles_are_joined_where_they_were_cut() -> None:
    image = np.random.default_rng(0).random((SCALE * 150, SCALE * 210, 2)).astype(np.float32)
    cut = tiles.cut(150, 210, 64, 16)
    assert len(cut.rows.starts) > 3 and len(cut.columns.starts) > 4

    def tile(number: tuple[int, int]) -> np.ndarray:
        y, x = cut.rows.starts[number[0]], cut.columns.starts[number[1]]
        return image[SCALE * y : SCALE * (y + 64), SCALE * x : SCALE * (x + 64)]

    found = list(tiles.joined(cut, iter([None] * len(cut.rows.starts)), tile, SCALE))
    sizes = [len(part) for _, part in found]
    assert [row for row, _ in found] == np.cumsum([0, *sizes])[:-1].tolist() and max(sizes) < 100
    np.testing.assert_allclose(np.concatenate([part for _, part in found]), image, atol=1e-6)


# --- tiles against the whole


@pytest.mark.parametrize("bundle", [MEAN, IBP, ROBUST], ids=lambda b: b.config.system)
def test_tiles_show_what_the_whole_shows(bundle: Bundle) -> None:
    hr = ground(128)
    source = ArraySource(*frames(hr, SHIFTS))
    plan = mosaic.make_plan(bundle, source, 0, explicit=True, side=64, margin=16)
    assert len(plan.tiles.numbers) == 9
    found = run(bundle, source, plan)["image"]
    whole = run(bundle, source, plan._replace(tiles=tiles.cut(128, 128, 128)))["image"]
    inner = np.s_[SCALE * 16 : -SCALE * 16, SCALE * 16 : -SCALE * 16]
    difference = (found - whole)[inner]
    assert np.sqrt(np.mean(difference**2)) < 0.01 * whole.std()
    for axis, cut in enumerate((plan.tiles.rows, plan.tiles.columns)):
        for n in range(1, len(cut.starts)):
            middle = SCALE * (cut.starts[n] + cut.starts[n - 1] + cut.length) // 2
            lines = range(middle - 9, middle + 9)
            steps = [np.abs(np.diff(x, axis=axis)).take(lines, axis).mean() for x in (found, whole)]
            assert 0.98 < steps[0] / steps[1] < 1.02
    plain = super_resolve_bands(bundle, Stack(*source.read(Rect(0, 0, 128, 128)))).image
    assert np.sqrt(np.mean((found - plain)[inner] ** 2)) < 0.02 * whole.std()


def test_how_many_run_at_once_changes_nothing() -> None:
    source = ArraySource(*frames(ground(96), SHIFTS))
    plan = mosaic.make_plan(ROBUST, source, side=48, margin=12)
    assert mosaic.tiles_at_once(ROBUST, plan, 0.0) == 1 < mosaic.tiles_at_once(ROBUST, plan, 4.0)
    one, many = (run(ROBUST, source, plan, memory) for memory in (0.0, 4.0))
    assert one.keys() == many.keys() == {"image", "valid", "frames_per_pixel"}
    for what in one:
        np.testing.assert_array_equal(one[what], many[what])


def test_devices_share_the_tiles() -> None:
    """pmap over four devices, two tiles short of a round, against one at a time."""
    assert jax.local_device_count() == 4
    bundle = load_params()
    lr, masks = frames(ground(48), SHIFTS[:3])
    survey = Survey(
        SHIFTS[:3], np.ones((3, 1)), np.zeros((3, 1)), np.full(1, 2.0), lr.std()[None], 4
    )
    parts = [Stack(lr[:, y : y + 24, :24], masks[:, y : y + 24, :24], survey) for y in (0, 8, 24)]
    together = super_resolve_parts(bundle, parts)
    assert len(together) == 3
    for part, found in zip(parts, together):
        alone = super_resolve_bands(bundle, part)  # through the same pmap
        plain = bundle_alone(bundle, part)
        np.testing.assert_allclose(found.image, plain.image, rtol=0, atol=1e-4 * lr.std())
        np.testing.assert_array_equal(found.image, alone.image)
        assert found.weights.shape == (3,)


def bundle_alone(bundle: Bundle, part: Stack):  # type: ignore[no-untyped-def]
    from deepsum_jax.config import Compute
    from deepsum_jax.systems import unrolled

    return unrolled.super_resolve(bundle.params, part, bundle.config, Compute())


# --- what the whole says


def test_a_survey_finds_shifts_and_brightness() -> None:
    hr = ground(200)
    lr, masks = frames(hr, SHIFTS)
    lr[2] = 1.5 * lr[2] - 200
    lr[3, 40:160, 40:160] = 5000.0  # clouds that no mask knows
    source = ArraySource(lr, masks)
    samples = [Rect(y, x, 64, 64) for y in (0, 68, 136) for x in (0, 68, 136)]
    field = make_survey(source, range(5), samples, SCALE, 0.37, 5)
    here = field.at(Rect(80, 80, 40, 40))
    np.testing.assert_allclose(here.shifts, SHIFTS, atol=0.1)
    np.testing.assert_allclose(here.gains[2], 1 / 1.5, rtol=0.02)
    np.testing.assert_allclose(here.gains[[0, 1, 4]], 1, rtol=0.02)
    np.testing.assert_allclose(1.5 * here.gains[2] * 1000 - 200 * here.gains[2] + here.offsets[2],
                               1000, rtol=0.01)  # fmt: skip
    assert field.whole.frames == 5


def test_a_survey_follows_a_scale() -> None:
    """A frame of a thousandth larger pixels is off by another shift at each end."""
    hr = ground(240)
    lr, masks = frames(hr, SHIFTS[:2])
    y, x = np.mgrid[:720, :720].astype(float)
    stretched = scipy.ndimage.map_coordinates(hr, [y * 1.001, x], order=3, mode="nearest")
    lr[1] = frames(stretched, np.zeros((1, 2)))[0][0]
    source = ArraySource(lr, masks)
    samples = [Rect(y, x, 80, 80) for y in (0, 80, 160) for x in (0, 80, 160)]
    field = make_survey(source, range(2), samples, SCALE, 0.37, 2)
    ends = [field.at(Rect(row, 100, 40, 40)).shifts[1] for row in (0, 200)]
    expected = [0.001 * SCALE * (row + 19.5) for row in (0, 200)]
    np.testing.assert_allclose([e[0] for e in ends], expected, atol=0.1)
    np.testing.assert_allclose([e[1] for e in ends], 0, atol=0.1)


def test_what_the_grids_say_stands_where_nothing_can_be_seen() -> None:
    lr, masks = frames(ground(96), SHIFTS)
    lr[4] = np.random.default_rng(3).normal(1000, 300, lr[4].shape)  # nothing in common
    source = ArraySource(lr, masks)
    source.fractions = np.array([(0, 0), *SHIFTS[1:] / SCALE]) + 0.1
    field = make_survey(source, range(5), [Rect(0, 0, 96, 96)], SCALE, 0.37, 5)
    np.testing.assert_allclose(field.whole.shifts[4], SHIFTS[4], atol=1e-9)
    np.testing.assert_allclose(field.whole.shifts[1:4], SHIFTS[1:4], atol=0.1)


def test_a_survey_turns_with_its_frames() -> None:
    hr = ground(40)
    lr, masks = frames(hr, SHIFTS, noise=0.0)
    one = np.ones((5, 1))
    survey = Survey(SHIFTS, one, 0 * one, np.full(1, 2.0), lr.std()[None], 5)
    plain = super_resolve_bands(IBP, Stack(lr, masks, survey)).image
    for code in CODES:
        stack = Stack(turned(lr, code, (1, 2)), turned(masks, code, (1, 2)), survey.turned(code))
        image = turned_back(super_resolve_bands(IBP, stack).image, code, (0, 1))
        assert np.abs(image - plain)[12:-12, 12:-12].max() < 0.02 * plain.std()


# --- clouds


@pytest.mark.filterwarnings("ignore:frame 0 .* higher than the others")
def test_another_frame_leads_where_the_reference_is_hidden() -> None:
    hr = ground(128)
    lr, masks = frames(hr, SHIFTS)
    lr[1:] = 0.5 * lr[1:] + 100  # another sensor's brightness
    masks[0, :, 60:] = False
    lr[~masks] = 9000.0
    source = ArraySource(lr, masks)
    for bundle, error in ((ROBUST, 0.35), (IBP, 0.4)):
        plan = mosaic.make_plan(bundle, source, 0, explicit=True, side=48, margin=12)
        found = run(bundle, source, plan)
        assert found["valid"].all()
        right = np.s_[40:-40, 3 * 90 : -40]
        level = hr[right].std()
        assert np.sqrt(np.mean((found["image"][..., 0] - hr)[right] ** 2)) < error * level


def test_what_no_frame_shows_is_not_valid() -> None:
    lr, masks = frames(ground(96), SHIFTS)
    masks[:, :, :60] = False
    lr[~masks] = np.nan
    source = ArraySource(lr, masks)
    plan = mosaic.make_plan(ROBUST, source, side=32, margin=8)
    found = run(ROBUST, source, plan)
    assert np.isfinite(found["image"]).all()
    assert not found["valid"][:, : 3 * 57].any() and found["valid"][:, 3 * 63 :].all()
    assert found["frames_per_pixel"][:, : 3 * 30].max() == 0
    with pytest.raises(ValueError, match="no reliable pixel in any frame"):
        mosaic.make_plan(ROBUST, ArraySource(lr, np.zeros_like(masks)))


def test_the_clearest_of_the_whole_leads() -> None:
    lr, masks = frames(ground(96), SHIFTS)
    masks[:, :20] = False
    masks[3] = True
    plan = mosaic.make_plan(ROBUST, ArraySource(lr, masks), side=32, margin=8)
    assert plan.reference == 3
    assert plan.overview.clearance[3] == 1 > plan.overview.clearance[0]


# --- going on


def test_done_tiles_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ArraySource(*frames(ground(96), SHIFTS))
    plan = mosaic.make_plan(MEAN, source, side=48, margin=12)
    about = {"of": "this run"}
    first = list(mosaic.Mosaic(MEAN, source, plan, store=Folder(tmp_path / "p", about)).strips())
    again = Folder(tmp_path / "p", about)
    assert again.begun
    damaged = tmp_path / "p" / "tile-0-1.npy"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    made: list[int] = []
    parts = mosaic.super_resolve_parts

    def counted(bundle, stacks, *how):  # type: ignore[no-untyped-def]
        made.append(len(stacks))
        return parts(bundle, stacks, *how)

    monkeypatch.setattr(mosaic, "super_resolve_parts", counted)
    second = list(mosaic.Mosaic(MEAN, source, plan, store=again).strips())
    assert sum(made) == 1
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a.image, b.image)
    other = Folder(tmp_path / "p", {"of": "another run"})
    assert not other.begun
    other.sweep()
    assert not list(tmp_path.iterdir())


# --- the public function


def test_large_arrays_go_by_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    lr, masks = frames(ground(150), SHIFTS)
    whole = predict(ROBUST, lr[..., 0], masks, return_details=True)
    monkeypatch.setattr("deepsum_jax.prediction.WHOLE", 100 * 100)
    found = predict(ROBUST, lr[..., 0], masks, return_details=True)
    assert found.image.shape == whole.image.shape == (450, 450)
    assert found.reference_index == whole.reference_index
    assert set(found.frames_used) == set(whole.frames_used)
    np.testing.assert_allclose(found.weights.sum(), 1, rtol=1e-5)
    assert found.frames_per_pixel is not None and found.standard_error is None
    inner = np.s_[48:-48, 48:-48]
    difference = (found.image - whole.image)[inner]
    assert np.any(difference) and np.sqrt(np.mean(difference**2)) < 0.01 * whole.image.std()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = predict(ROBUST, lr[..., 0], masks, max_frames=1, return_details=True)
    assert dataclasses.replace(one, image=lr).frames_per_pixel is not None
    assert overview.WHOLE == 512 * 512
