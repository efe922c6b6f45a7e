"""Drawn scenes: what each chance and range decides, held against the ground they come from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from helpers import contents, landscape

from deepsum_jax.data import kelvins
from deepsum_jax.data.scene import Scene
from deepsum_jax.data.sensor import observe
from deepsum_jax.simulation import drawn
from deepsum_jax.simulation.dataset import kelvins_norm, write_scenes
from deepsum_jax.simulation.dates import Dates
from deepsum_jax.simulation.drawn import Drawn, draw_scene

SMALL = Drawn(window=24, coarse_chance=0)
# Nothing but ground, optics and offsets.
PLAIN = dataclasses.replace(
    SMALL,
    noise=(0.001, 0.001),
    brightness_chance=0,
    spoilt_chance=0,
    masked_chance=0,
    fraction_chance=0,
    looks=(1.0, 0.0),
    frames=(6, 6),
)
Drawing = tuple[Scene, dict[str, Any]]


def ground(count: int = 5, seed: int = 0) -> Dates:
    """uint8 [T, H, W], one landscape a date."""
    values = np.stack([landscape(72, 90, 10 * seed + n) for n in range(count)])
    return Dates(values.clip(1, 255).astype("u1"), np.ones(values.shape, bool))


def draw(config: Drawn = SMALL, seed: int = 0, grounds: list[Dates] | None = None) -> Drawing:
    given = [ground()] if grounds is None else grounds
    return draw_scene(given, config, np.random.default_rng(seed), "imgset0001")


def with_(config: Drawn, **values: Any) -> Drawn:
    return dataclasses.replace(config, **values)


def offsets_of(truth: dict[str, Any]) -> np.ndarray:
    return np.array(list(truth["frames"].values()))


def hr_of(scene: Scene) -> np.ndarray:
    assert scene.hr is not None
    return scene.hr.astype(np.float64)


def corner_of(image: np.ndarray, whole: np.ndarray) -> tuple[int, int]:
    """Where an image lies in a larger one, pixel by pixel."""
    height, width = image.shape
    for y, x in np.argwhere(whole == image[0, 0]):
        if np.array_equal(whole[y : y + height, x : x + width], image):
            return int(y), int(x)
    raise AssertionError("found no such part")


def seen_slowly(date: np.ndarray, top: int, left: int, offset: Any, sigma: float) -> np.ndarray:
    """What a frame at a whole offset shows, each pixel a double sum over the date: [8, 8]."""
    reach = int(4 * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    dy, dx = (int(v) for v in offset)
    out = np.zeros((8, 8))
    for i in range(8):
        for j in range(8):
            for y in range(top + 3 * i + dy, top + 3 * i + 3 + dy):
                for x in range(left + 3 * j + dx, left + 3 * j + 3 + dx):
                    rows, columns = slice(y - reach, y + reach + 1), slice(x - reach, x + reach + 1)
                    out[i, j] += taps @ date[rows, columns] @ taps / 9
    return out


def expected_frames(scene: Scene, truth: dict[str, Any], given: Dates) -> np.ndarray:
    counts = 64.0 * given.values
    top, left = corner_of(hr_of(scene), counts[truth["hr_date"]])
    return np.stack(
        [
            seen_slowly(counts[date], top, left, offset, 3 * truth["psf_sigma"])
            for date, offset in zip(truth["dates"].values(), offsets_of(truth))
        ]
    )


# --- the generator decides


def test_a_scene_depends_on_its_generator_alone() -> None:
    (a, told), (b, again), (c, other) = draw(seed=3), draw(seed=3), draw(seed=4)
    for x, y in [(a.lr, b.lr), (a.masks, b.masks), (hr_of(a), hr_of(b))]:
        np.testing.assert_array_equal(x, y)
    assert told == again != other
    assert not np.array_equal(hr_of(a), hr_of(c))
    json.dumps(told)
    assert (a.name, a.band, a.reference, a.scale) == ("imgset0001", "NIR", 0, 3)
    assert a.lr.dtype == np.uint16 and a.lr.shape == (len(told["frames"]), 8, 8)


def test_places_dates_and_grounds_are_drawn() -> None:
    grounds = [ground(seed=n) for n in (0, 1)]
    places: set[tuple[int, ...]] = set()
    for seed in range(12):
        scene, truth = draw(PLAIN, seed, grounds)
        found = []
        for n, one in enumerate(grounds):
            try:
                found.append((n, *corner_of(hr_of(scene), 64.0 * one.values[truth["hr_date"]])))
            except AssertionError:
                continue
        places.update((*place, truth["hr_date"]) for place in found)
    assert len(places) == 12
    assert {place[0] for place in places} == {0, 1} and len({place[3] for place in places}) > 2


def test_ranges_are_drawn_from() -> None:
    config = with_(SMALL, psf_sigma=(0.3, 0.5), noise=(4.0, 40.0), frames=(3, 6), looks=(1.0, 0.0))
    told = [draw(config, seed)[1] for seed in range(40)]
    for name, (low, high) in {"psf_sigma": (0.3, 0.5), "noise": (4, 40)}.items():
        values = [truth[name] for truth in told]
        assert low <= min(values) < low + 0.2 * (high - low)
        assert high >= max(values) > high - 0.2 * (high - low)
    assert 8 < np.median([truth["noise"] for truth in told]) < 20  # evenly in the logarithm
    assert {len(truth["frames"]) for truth in told} == {3, 4, 5, 6}


# --- what stands beside HR


@pytest.mark.parametrize("count", [2, 5, 9])
def test_kinds_of_stack(count: int) -> None:
    def dates(looks: tuple[float, float]) -> list[list[int]]:
        config = with_(PLAIN, looks=looks, frames=(count, count))
        drawn = [draw(config, seed)[1] for seed in range(6)]
        for truth in drawn:
            assert truth["dates"]["LR000"] == truth["hr_date"]
        return [list(truth["dates"].values()) for truth in drawn]

    for found in dates((1, 0)):
        assert found == count * [found[0]]
    for found in dates((0, 0)):
        assert len(set(found)) == len(found) == min(count, 5)
    for found in dates((0, 1)):
        years = [date for date in found if date != found[0]]
        assert len(found) == count and 1 <= len(years) <= 4 and len(set(years)) == len(years)
        assert count == 2 or found.count(found[0]) >= 2


def test_frames_are_hr_through_the_sensor() -> None:
    """At whole offsets within rounding, years too."""
    offsets: set[tuple[float, float]] = set()
    for seed, looks in [(0, (1.0, 0.0)), (1, (0.0, 1.0))]:
        scene, truth = draw(with_(PLAIN, looks=looks), seed)
        expected = expected_frames(scene, truth, ground())
        np.testing.assert_allclose(scene.lr, expected, atol=0.51)
        assert scene.masks.all() and scene.hr_mask is not None and scene.hr_mask.all()
        offsets.update(map(tuple, offsets_of(truth)))
    assert len(offsets) > 6 and np.abs(list(offsets)).max() == 3


def test_frames_at_fractions_of_a_pixel() -> None:
    """Against back-projection's own sensor, apart from the border that HR does not show."""
    config = with_(PLAIN, fraction_chance=1, psf_sigma=(0.45, 0.45), window=36)
    scene, truth = draw(config, 2)
    offsets = offsets_of(truth)
    assert (offsets[0] == 0).all() and (offsets != np.rint(offsets))[1:].mean() > 0.8
    assert np.abs(offsets).max() <= 3
    inner = slice(4, -4)
    for frame, offset in zip(scene.lr, offsets):
        wanted = observe(hr_of(scene), offset, 3, 0.45)[inner, inner]
        error = np.abs(frame[inner, inner] - wanted).max()
        assert error < 0.05 * hr_of(scene).std()
        elsewhere = observe(hr_of(scene), -offset, 3, 0.45)[inner, inner]
        if np.abs(offset).max() > 1:
            assert np.abs(frame[inner, inner] - elsewhere).max() > 5 * error


def test_no_offset() -> None:
    config = with_(PLAIN, max_offset=0, fraction_chance=1)
    assert not offsets_of(draw(config)[1]).any()


def test_noise_is_as_told() -> None:
    scene, truth = draw(with_(PLAIN, noise=(20, 20), max_offset=0, window=36))
    assert truth["noise"] == pytest.approx(20)
    spread = np.std(scene.lr[1:].astype(float) - scene.lr[0], axis=(1, 2))
    np.testing.assert_allclose(spread, 20 * np.sqrt(2), rtol=0.3)


def test_brightness_is_gain_and_offset_of_all_but_the_reference() -> None:
    scene, truth = draw(with_(PLAIN, brightness_chance=1))
    expected = expected_frames(scene, truth, ground())
    np.testing.assert_allclose(scene.lr[0], expected[0], atol=0.51)
    gains = []
    for frame, wanted in zip(scene.lr[1:], expected[1:]):
        gain, offset = np.polyfit(wanted.ravel(), frame.ravel(), 1)
        np.testing.assert_allclose(frame, gain * wanted + offset, atol=1)
        gains.append(gain)
    assert 0.01 < np.std(gains) < 0.15 and np.mean(gains) == pytest.approx(1, abs=0.1)


def test_spoilt_frames_are_named() -> None:
    alike = []
    for seed in range(8):
        scene, truth = draw(with_(PLAIN, spoilt_chance=1), seed)
        expected = expected_frames(scene, truth, ground())
        off = np.abs(scene.lr - expected).max(axis=(1, 2)) > 0.51
        assert np.flatnonzero(off).tolist() == truth["spoilt"]
        assert truth["spoilt"] and 0 not in truth["spoilt"]
        for n in truth["spoilt"]:
            alike.append(np.corrcoef(scene.lr[n].ravel(), expected[n].ravel())[0, 1])
    assert max(alike) > 0.5 and np.median(alike) < 0.4  # clouds leave some of the ground


# --- masks, units, resolution


def test_what_the_ground_hides_is_masked() -> None:
    given = ground()
    given.masks[:, 30:40, 35:60] = False
    given.values[~given.masks] = 0
    seen = 0
    for seed in range(8):
        scene, truth = draw(PLAIN, seed, [given])
        assert scene.hr_mask is not None
        hidden = ~scene.hr_mask
        np.testing.assert_array_equal(hr_of(scene)[hidden], 0)
        assert (hr_of(scene)[~hidden] > 0).all()
        for frame, mask, offset in zip(scene.lr, scene.masks, offsets_of(truth)):
            dy, dx = (int(v) for v in offset)
            moved = scipy.ndimage.shift(hidden.astype(float), (-dy, -dx), order=0, mode="nearest")
            whole = np.asarray(moved.reshape(8, 3, 8, 3).all(axis=(1, 3)))[1:-1, 1:-1]
            assert not mask[1:-1, 1:-1][whole].any()
            assert (frame[mask] > 0.9 * 64 * given.values[given.masks].min()).all()
        seen += bool(hidden.any())
    assert seen > 3


def test_masked_parts_are_drawn() -> None:
    scenes = [draw(with_(SMALL, masked_chance=1, window=48), seed)[0] for seed in range(6)]
    hidden = [np.mean(~mask) for scene in scenes for mask in scene.masks[1:]]
    assert 0.02 < min(hidden) < 0.1 and 0.2 < max(hidden) < 0.4
    assert 0 < sum(not scene.masks[0].all() for scene in scenes) < 6  # a third of the chance


def test_eight_bits_are_64_counts_each() -> None:
    given = ground()
    wide = Dates(64 * given.values.astype(np.uint16), given.masks)
    (a, told), (b, again) = draw(grounds=[given]), draw(grounds=[wide])
    np.testing.assert_array_equal(a.lr, b.lr)
    np.testing.assert_array_equal(hr_of(a), hr_of(b))
    assert told == again and a.lr[0].mean() > 2000


def test_turned_ground_by_right_angles_is_the_ground() -> None:
    date = ground(1, 4)
    whole = 64.0 * date.values[0]
    for turns in range(4):
        view = drawn.View((35.5, 44.5), turns * np.pi / 2, 1.0)
        values, known = view.of(date, 24)
        expected = np.rot90(whole[24:48, 33:57], -turns)
        np.testing.assert_allclose(values[0], expected, atol=0.05)
        assert known.all() and known.shape == (1, 24, 24)


def test_ground_from_further_away() -> None:
    """A wave is as long as the angle and the zoom have it, and what is hidden stays hidden."""
    y, x = np.indices((120, 120)) - 59.5
    values = np.rint(8000 + 2000 * np.cos(2 * np.pi * (y + 2 * x) / 40))[None].astype(np.uint16)
    masks = np.ones(values.shape, bool)
    masks[0, 60:] = False
    angle, zoom = 0.4, 1.5
    seen, known = drawn.View((59.5, 59.5), angle, zoom).of(Dates(values, masks), 24)
    v, u = zoom * (np.indices((24, 24)) - 11.5)
    row, column = np.cos(angle) * v - np.sin(angle) * u, np.sin(angle) * v + np.cos(angle) * u
    wave = np.cos(2 * np.pi * (row + 2 * column) / 40)
    # A Gaussian leaves so much of it.
    sigma2 = drawn.SHARP**2 * (zoom**2 - 1)
    left = np.exp(-0.5 * sigma2 * 5 * (2 * np.pi / 40) ** 2)
    np.testing.assert_allclose(seen[0], 8000 + 2000 * left * wave, atol=12)
    assert known[0][row < -6].all() and not known[0][row > 0].any()


def test_ground_is_turned_now_and_then() -> None:
    given = [Dates(np.full((3, 150, 150), 100, "u1"), np.ones((3, 150, 150), bool))]
    given[0].values[:, ::2] = 50  # stripes along rows: a turned one varies along them
    found = []
    for seed in range(40):
        scene, _ = draw(with_(PLAIN, turned_chance=0.5), seed, given)
        found.append(bool((np.ptp(hr_of(scene), axis=1) > 0).any()))
    assert 10 < sum(found) < 30
    small = [Dates(given[0].values[:, :48, :48], given[0].masks[:, :48, :48])]
    scene, _ = draw(with_(PLAIN, turned_chance=1, zoom=(1.5, 1.5)), 0, small)  # no room: as it is
    assert set(np.unique(hr_of(scene))) == {3200.0, 6400.0}


def test_coarse_ground_is_its_pixels_mean() -> None:
    given = Dates(np.tile(ground().values, (1, 2, 2)), np.ones((5, 144, 180), bool))
    scene, truth = draw(with_(PLAIN, coarse_chance=1), 1, [given])
    date = 64.0 * given.values[truth["hr_date"]]
    found = []
    for y in (0, 1):
        for x in (0, 1):
            part = date[y : y + 142, x : x + 178].reshape(71, 2, 89, 2).mean(axis=(1, 3))
            try:
                found.append(corner_of(hr_of(scene), part))
            except AssertionError:
                continue
    assert found
    # Too small for that, the ground is taken as it is.
    scene, truth = draw(with_(PLAIN, coarse_chance=1))
    corner_of(hr_of(scene), 64.0 * ground().values[truth["hr_date"]])


# --- what is refused


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("scale: found 9, expected 1 to 8", {"scale": 9}),
        ("window: found 25, expected a multiple of 3 from 24 on", {"window": 25}),
        ("window: found 21, expected a multiple of 3 from 24 on", {"window": 21}),
        ("frames: .*two rising numbers in 2 to 1000", {"frames": (1, 4)}),
        ("frames: .*two rising numbers in 2 to 1000", {"frames": (5, 4)}),
        ("frames: .*two rising numbers in 2 to 1000", {"frames": (5,)}),
        ("looks: .*two chances of sum 1 at most", {"looks": (0.6, 0.6)}),
        ("looks: .*two chances of sum 1 at most", {"looks": (-0.5, 0.6)}),
        ("psf_sigma: .*two rising numbers in 0.1 to 1", {"psf_sigma": (0.0, 0.5)}),
        ("psf_sigma: .*two rising numbers in 0.1 to 1", {"psf_sigma": (0.5, 0.4)}),
        ("noise: .*two rising numbers in 0.001 to 500", {"noise": (0.0, 0.0)}),
        ("max_offset: found 9, expected 0 to 8", {"max_offset": 9}),
        ("gain_sigma: found -1, expected 0 to 0.2", {"gain_sigma": -1}),
        ("offset_sigma: found -1, expected 0 to 1000", {"offset_sigma": -1}),
        ("spoilt_chance: found 2, expected 0 to 1", {"spoilt_chance": 2}),
        ("coarse_chance: found -1, expected 0 to 1", {"coarse_chance": -1}),
        (r"zoom: found \(0.5, 1\), expected two rising numbers in 1 to 4", {"zoom": (0.5, 1)}),
    ],
)
def test_wrong_settings(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        Drawn(**options)


def test_ground_that_is_too_small() -> None:
    small = Dates(ground().values[:, :30], ground().masks[:, :30])
    with pytest.raises(ValueError) as caught:
        draw(grounds=[small])
    assert str(caught.value).startswith("dates: found 30 × 90 pixels, expected ")
    assert "\n" not in str(caught.value)


# --- on disk


def some(count: int = 3) -> Iterator[tuple[str, Scene, dict[str, Any]]]:
    for n in range(count):
        scene, truth = draw(SMALL, n)
        yield ("train", dataclasses.replace(scene, name=f"imgset{n:04d}"), truth)


def test_scenes_on_disk(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()  # an empty folder will do
    folders = write_scenes(tmp_path / "data", some(), 3)
    found = kelvins.find_scenes(tmp_path / "data")
    assert {f.path for f in folders} == {f.path for f in found}
    norms = kelvins.read_norm(tmp_path / "data" / "norm.csv")
    assert len(norms) == 3
    for folder, (part, scene, truth) in zip(folders, some(), strict=True):
        assert (folder.part, folder.band, folder.name) == (part, "NIR", scene.name)
        read = kelvins.read_scene(folder)
        assert read.reference == 0 and read.hr_mask is not None and scene.hr_mask is not None
        for x, y in [
            (read.lr, scene.lr),
            (read.masks, scene.masks),
            (hr_of(read), hr_of(scene)),
            (read.hr_mask, scene.hr_mask),
        ]:
            np.testing.assert_array_equal(x, y)
        assert json.loads((folder.path / "truth.json").read_text()) == truth
        assert norms[scene.name] == pytest.approx(kelvins_norm(scene), abs=1e-3)


def test_the_folder_appears_whole(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, Scene, dict[str, Any]]]:
        yield from some(2)
        assert not (tmp_path / "data").exists()
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        write_scenes(tmp_path / "data", broken())
    assert contents(tmp_path) == {}


def test_a_full_folder_is_refused(tmp_path: Path) -> None:
    """Before a single scene is made."""

    def never() -> Iterator[tuple[str, Scene, dict[str, Any]]]:
        raise AssertionError("asked for a scene")
        yield from some()

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    (tmp_path / "file").write_text("")
    before = contents(tmp_path)
    for name in ("full", "file"):
        with pytest.raises(FileExistsError, match="expected a new or empty folder"):
            write_scenes(tmp_path / name, never())
    assert contents(tmp_path) == before
