"""Pictures: what is drawn is the systems' own, on one scale, and where it is said to be."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, delta_bundle, landscape, random_bundle
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from deepsum_jax import Bundle, ModelConfig, figures, losses
from deepsum_jax.config import SimulationConfig
from deepsum_jax.data.fill import fill_hidden
from deepsum_jax.data.frames import select_frames
from deepsum_jax.data.scene import Scene
from deepsum_jax.inference import super_resolve
from deepsum_jax.scoring.scene import evaluate_scene
from deepsum_jax.simulation.dataset import write_dataset
from deepsum_jax.simulation.steady import simulate_scene
from deepsum_jax.systems.system import Stack
from experiments import pictures

SIMULATION = SimulationConfig(lr_size=20, min_frames=5, max_frames=6)
RANDOM = random_bundle(dataclasses.replace(TINY, residual_init="zeros"))
MEAN, IBP = (Bundle({}, ModelConfig(system=s)) for s in ("bicubic_mean", "ibp"))
SYSTEMS = [("Bicubic+Mean", MEAN), ("IBP", IBP), ("ours", RANDOM)]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Two scenes; the second has HR pixels masked."""
    found = [simulate_scene(0, index, SIMULATION)[0] for index in (1, 2)]
    assert found[1].hr_mask is not None
    mask = found[1].hr_mask.copy()
    mask[30:36, 20:30] = False
    return [found[0], dataclasses.replace(found[1], hr_mask=mask)]


@pytest.fixture(scope="module")
def compared(scenes: list[Scene]) -> Figure:
    return pictures.comparison(SYSTEMS, scenes)


def panels(figure: Figure, columns: int) -> np.ndarray:
    """A comparison's axes [scenes, 3, columns]."""
    return np.array(figure.axes, dtype=object).reshape(-1, 3, columns)


def shown(axis: Axes) -> np.ndarray:
    """The first image drawn on an axis, NaN where it is blank."""
    return np.ma.filled(np.ma.asarray(axis.images[0].get_array(), float), np.nan)


def render(figure: Figure, empty: bool = False) -> None:
    """Draws a figure, warnings being errors: whatever image an axis holds is there to be seen."""
    page = figures.to_array(figure)
    assert page.ndim == 3
    assert (page == page[0, 0]).all() == empty
    assert any(axis.images for axis in figure.axes) != empty
    height = len(page)
    for axis in figure.axes:
        if not axis.images or not np.isfinite(shown(axis)).any():
            continue
        x0, y0, x1, y1 = (round(v) for v in axis.get_window_extent().extents)
        part = page[height - y1 : height - y0, x0:x1].reshape(-1, 3)
        assert np.ptp(part, axis=0).max() > 3, axis.get_title()


# --- the detail


def test_crop_finds_the_detail() -> None:
    hr = landscape(150, 120) / 100
    hr[70:118, 40:88] += np.random.default_rng(0).normal(0, 50, (48, 48))
    clear = np.ones(hr.shape, bool)
    assert pictures.choose_crop(hr, clear) == (70, 40, 48)


def test_crop_avoids_what_is_masked_and_the_border() -> None:
    rng = np.random.default_rng(1)
    hr, clear = landscape(150, 140) / 100, np.ones((150, 140), bool)
    hr[60:140, 60:130] += rng.normal(0, 900, (80, 70))  # the most detail, under a cloud
    clear[100, 95] = False
    hr[:10] += rng.normal(0, 90, (10, 140))  # some at the border
    hr[20:50, 30:60] += rng.normal(0, 50, (30, 30))
    y, x, side = pictures.choose_crop(hr, clear)
    assert clear[y : y + side, x : x + side].all()
    assert min(y, x, 150 - side - y, 140 - side - x) >= pictures.MARGIN
    assert not (y <= 100 < y + side and x <= 95 < x + side)
    # What hides under a mask counts nothing, were it a cloud's edge or no number at all.
    clear[60:140, 60:130] = False
    hr[60:140, 60:130] = np.nan
    y, x, _ = pictures.choose_crop(hr, clear)
    assert y <= 20 and y + side >= 50 and x <= 30 and x + side >= 60


def test_the_edge_of_a_mask_is_no_detail() -> None:
    hr, clear = landscape(160, 160) / 100 + 8000, np.ones((160, 160), bool)
    clear[62:, 70:] = False  # full windows end at row 61, and see what follows if they look
    hr[90:138, 10:58] += np.random.default_rng(0).normal(0, 50, (48, 48))
    assert pictures.choose_crop(hr, clear) == (90, 10, 48)


def test_crop_of_a_scene_never_quite_clear() -> None:
    hr, clear = landscape(90, 90), np.ones((90, 90), bool)
    clear[::10, ::10] = False
    clear[:, :40] = False
    y, x, side = pictures.choose_crop(hr, clear)
    counts = [
        [clear[i : i + side, j : j + side].sum() for j in range(8, 90 - 8 - side + 1)]
        for i in range(8, 90 - 8 - side + 1)
    ]
    assert clear[y : y + side, x : x + side].sum() == np.max(counts)
    assert pictures.choose_crop(hr, np.zeros_like(clear))[2] == pictures.CROP


@pytest.mark.parametrize(("height", "width"), [(30, 70), (48, 48), (50, 90)])
def test_crop_of_small_scenes(height: int, width: int) -> None:
    y, x, side = pictures.choose_crop(landscape(height, width), np.ones((height, width), bool))
    assert side == min(height, 48)
    assert 0 <= y <= height - side and 0 <= x <= width - side


# --- systems side by side


@pytest.mark.parametrize("move", [(0, 0), (2, -3), (-1, 3)])
def test_place_undoes_shift_and_brightness(move: tuple[int, int]) -> None:
    wide = landscape(60, 56)
    hr = wide[6:54, 6:50]  # [48, 44]
    image = wide[6 + move[0] : 54 + move[0], 6 + move[1] : 50 + move[1]] - 500
    clear = np.ones(hr.shape, bool)
    clear[20:25, 10:20] = False
    broken = np.where(clear, hr, np.nan)
    placed, error = pictures.place(image, broken, clear)
    inside = np.isfinite(placed)
    np.testing.assert_allclose(placed[inside], hr[inside], atol=1e-3)
    # `move` rows and columns at the edges are unknown, and nothing else.
    assert inside.sum() == (48 - abs(move[0])) * (44 - abs(move[1]))
    assert np.isnan(error[~clear]).all() and np.isnan(error[~inside]).all()
    np.testing.assert_allclose(error[np.isfinite(error)], 0, atol=1e-3)
    assert np.isfinite(error).sum() == 42 * 38 - 50


def test_errors_are_those_that_cpsnr_measures(compared: Figure, scenes: list[Scene]) -> None:
    for rows, scene in zip(panels(compared, 5), scenes):
        for axis, (_, bundle) in zip(rows[2, 1:-1], SYSTEMS):
            error = shown(axis)
            assert np.isnan(error[~np.asarray(scene.hr_mask)]).all()
            found = 20 * math.log10(65535) - 10 * math.log10(np.nanmean(error**2))
            score = evaluate_scene(bundle, scene, max_frames=9)
            np.testing.assert_allclose(found, score.cpsnr, atol=1e-3)


def on_hr(image: np.ndarray, scene: Scene) -> np.ndarray:
    """An image [H, W] where it fits HR best, NaN where nothing is; its brightness as it was."""
    hr, mask = np.asarray(scene.hr).astype(np.float32), np.asarray(scene.hr_mask)
    sr, target, clear = (
        jnp.asarray(x[None, ..., None]) for x in (image.astype(np.float32), hr, mask)
    )
    y, x = (int(v) - 3 for v in losses.align(sr, target, clear, 3).position[0])
    height, width = hr.shape
    moved = np.full(hr.shape, np.nan)
    inside = image[max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)]
    moved[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)] = inside
    return moved


def same_but_for_brightness(a: np.ndarray, b: np.ndarray) -> bool:
    same = np.array_equal(np.isnan(a), np.isnan(b))
    return bool(same and np.nanmax(a - b) - np.nanmin(a - b) < 0.01)


def test_images_are_the_systems_own(compared: Figure, scenes: list[Scene]) -> None:
    for rows, scene in zip(panels(compared, 5), scenes):
        hr = np.asarray(scene.hr, float)
        np.testing.assert_array_equal(shown(rows[0, -1]), hr)
        for n, (_, bundle) in enumerate(SYSTEMS, start=1):
            kept = select_frames(scene.masks, bundle.config.num_frames, None, 9)
            stack = Stack(scene.lr[kept][..., None], scene.masks[kept])
            own = super_resolve(bundle, stack).image[..., 0]
            image, error = shown(rows[0, n]), shown(rows[2, n])
            assert same_but_for_brightness(image, on_hr(own, scene))
            compared_at = np.isfinite(error)
            np.testing.assert_allclose(error[compared_at], (image - hr)[compared_at], atol=1e-3)
            np.testing.assert_allclose(np.nanmean(error), 0, atol=0.01)


def test_lr_is_the_reference_frame_in_blocks(compared: Figure, scenes: list[Scene]) -> None:
    for rows, scene in zip(panels(compared, 5), scenes):
        lr = scene.lr[select_frames(scene.masks, 9)[0]].astype(float)
        blocks = np.kron(lr, np.ones((3, 3)))
        assert same_but_for_brightness(shown(rows[0, 0]), on_hr(blocks, scene))


def test_references_follow_the_bundle(scenes: list[Scene]) -> None:
    scene, masks = scenes[0], np.ones_like(scenes[0].masks)
    masks[0, 0, 0] = False  # the first frame is not the clearest
    scene = dataclasses.replace(scene, masks=masks)
    rules: tuple[tuple[Any, int], ...] = (("clearest", 1), ("first", 0))
    for rule, n in rules:
        info = dataclasses.replace(RANDOM.info, reference=rule)
        bundle = dataclasses.replace(RANDOM, info=info)
        rows = panels(pictures.comparison([("ours", bundle)], [scene]), 3)[0]
        seen = fill_hidden(scene.lr[[n]][..., None], masks[[n]])[0, ..., 0]
        blocks = np.kron(seen.astype(float), np.ones((3, 3)))
        assert same_but_for_brightness(shown(rows[0, 0]), on_hr(blocks, scene))
        filters = pictures.filters_on_frames(bundle, scene)
        assert filters.axes[0].get_title() == f"LR{n:03d}, reference"


def test_scales_are_shared_within_a_scene(compared: Figure, scenes: list[Scene]) -> None:
    errors = []
    for rows, scene in zip(panels(compared, 5), scenes):
        grey = {axis.images[0].get_clim() for axis in rows[:2].flat}
        hr, clear = np.asarray(scene.hr), np.asarray(scene.hr_mask)
        assert len(grey) == 1
        np.testing.assert_allclose(grey.pop(), np.percentile(hr[clear], [1, 99]), rtol=1e-6)
        limits = {axis.images[0].get_clim() for axis in rows[2, 1:-1]}
        assert len(limits) == 1
        low, high = limits.pop()
        assert -low == high > 0
        every = np.abs(np.concatenate([shown(axis).ravel() for axis in rows[2, 1:-1]]))
        np.testing.assert_allclose(high, np.nanpercentile(every, 99), rtol=1e-6)
        assert not rows[2, 0].images and not rows[2, -1].images
        errors.append(high)
        (bar,) = rows[2, -1].child_axes
        assert "raw counts" in bar.get_ylabel()
        np.testing.assert_allclose(bar.get_ylim(), (low, high))
    assert errors[0] != errors[1]


def test_titles_say_what_evaluate_says(compared: Figure, scenes: list[Scene]) -> None:
    for rows, scene in zip(panels(compared, 5), scenes):
        titles = [axis.get_title() for axis in rows[0]]
        assert titles[0].startswith("LR") and titles[-1].startswith("HR")
        for title, (label, bundle) in zip(titles[1:-1], SYSTEMS):
            score = evaluate_scene(bundle, scene, max_frames=9)
            assert title == f"{label}\n{score.cpsnr:.2f} dB"
        assert rows[0, 0].get_ylabel() == f"NIR {scene.name}"


def test_details_are_what_the_rectangles_frame(
    scenes: list[Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "CROP", 20)
    figure = pictures.comparison([("mean", MEAN)], scenes)
    for rows, scene in zip(panels(figure, 3), scenes):
        top, left, side = pictures.choose_crop(np.asarray(scene.hr), np.asarray(scene.hr_mask))
        assert top != left and side == 20
        for whole, detail in zip(rows[0], rows[1]):
            (frame,) = whole.patches
            assert isinstance(frame, Rectangle)
            assert frame.get_bbox().bounds == (left - 0.5, top - 0.5, side, side)
            cut = shown(whole)[top : top + side, left : left + side]
            np.testing.assert_array_equal(shown(detail), cut)


def test_as_many_frames_as_asked_for(scenes: list[Scene]) -> None:
    titles = set()
    for count in (3, 5):
        figure = pictures.comparison([("ours", RANDOM)], scenes[:1], max_frames=count)
        score = evaluate_scene(RANDOM, scenes[0], max_frames=count)
        titles.add(figure.axes[1].get_title())
        assert f"ours\n{score.cpsnr:.2f} dB" in titles
    assert len(titles) == 2


def test_odd_scenes_are_drawn(scenes: list[Scene]) -> None:
    scene = scenes[0]
    hr, hr_mask = np.asarray(scene.hr), np.asarray(scene.hr_mask)
    dark = dataclasses.replace(scene, hr_mask=np.zeros_like(hr_mask))
    clouded = dataclasses.replace(scene, masks=np.zeros_like(scene.masks))
    few = dataclasses.replace(
        scene, lr=scene.lr[:2], masks=scene.masks[:2], frames=(), reference=None
    )
    small = Scene("small", scene.lr[:, :6, :9], scene.masks[:, :6, :9], hr=hr[:18, :27])
    figure = pictures.comparison([("mean", MEAN), ("ours", RANDOM)], [dark, clouded, few, small])
    render(figure)
    titles = [[axis.get_title() for axis in rows[0, 1:-1]] for rows in panels(figure, 4)]
    assert titles[0] == titles[1] == ["mean\n–", "ours\n–"]
    assert all(t.endswith(" dB") for t in titles[2] + titles[3])
    assert panels(figure, 4)[3, 0, 0].get_ylabel() == "small"
    render(pictures.comparison([("mean", MEAN)], []), empty=True)
    render(pictures.comparison([], [scene]))
    with pytest.raises(ValueError, match=f"scene '{scene.name}': found no HR"):
        pictures.comparison([("mean", MEAN)], [dataclasses.replace(scene, hr=None)])


def test_channel_0_of_several_is_drawn(scenes: list[Scene]) -> None:
    scene = scenes[1]
    double = dataclasses.replace(
        scene,
        lr=np.stack([scene.lr, scene.lr // 2], axis=-1),
        hr=np.stack([np.asarray(scene.hr), np.asarray(scene.hr) // 2], axis=-1),
    )
    bundle = Bundle({}, ModelConfig(system="bicubic_mean", channels=2))
    rows = panels(pictures.comparison([("mean", bundle)], [double]), 3)[0]
    one = panels(pictures.comparison([("mean", MEAN)], [scene]), 3)[0]
    np.testing.assert_array_equal(shown(rows[0, 2]), shown(one[0, 2]))
    np.testing.assert_array_equal(shown(rows[0, 0]), shown(one[0, 0]))
    score = evaluate_scene(bundle, double)
    assert rows[0, 1].get_title() == f"mean\n{score.cpsnr:.2f} dB"
    render(pictures.filters_on_frames(delta_bundle(dataclasses.replace(TINY, channels=2)), double))


# --- RegNet's filters


def marks(axis: Axes) -> dict[str, tuple[float, float]]:
    """Places (y, x) of what is marked on a filter, by label."""
    found = {
        str(line.get_label()): np.ravel(np.asarray(line.get_data(), float)) for line in axis.lines
    }
    return {label: (float(y), float(x)) for label, (x, y) in found.items()}


@pytest.fixture(scope="module")
def clear_scene() -> Scene:
    return dataclasses.replace(
        simulate_scene(0, 1, SIMULATION)[0],
        masks=None,  # type: ignore[arg-type]
    )


def truth_of(*places: tuple[float, float]) -> dict[str, Any]:
    return {"frames": {f"LR{n:03d}": place for n, place in enumerate(places)}}


@pytest.mark.parametrize("shift", [(2, -1), (-2, 0), (0, 1)])
def test_marks_lie_on_the_delta(clear_scene: Scene, shift: tuple[int, int]) -> None:
    truth = truth_of((0.5, 0.25), (0.5 + shift[0], 0.25 + shift[1]), (0.25, 0.25))
    figure = pictures.filters_on_frames(delta_bundle(TINY, shift), clear_scene, truth)
    render(figure)
    axis = figure.axes[3]
    image = axis.images[0]
    assert image.get_extent() == [-2.5, 2.5, 2.5, -2.5]
    row, column = np.unravel_index(int(shown(axis).argmax()), (5, 5))
    place = float(row) - 2, float(column) - 2  # of the delta, HR pixels about the centre
    assert place == (-shift[0], -shift[1])
    np.testing.assert_allclose(marks(axis)["true shift's tap"], place, atol=1e-6)
    np.testing.assert_allclose(marks(axis)["filter's centroid"], place, atol=1e-5)
    assert axis.get_ylim() == (2.5, -2.5) and axis.get_xlim() == (-2.5, 2.5)
    made = f"{shift[0]:+.2f}, {shift[1]:+.2f}".replace("-", "−")
    assert axis.get_title() == f"filter {made}\ntrue {made}"
    # The other frame's truth is its own.
    np.testing.assert_allclose(marks(figure.axes[5])["true shift's tap"], (0.25, 0), atol=1e-6)
    assert figure.axes[5].get_title().endswith("true −0.25, +0.00")


def test_filters_are_the_networks_own_on_one_scale(clear_scene: Scene) -> None:
    figure = pictures.filters_on_frames(RANDOM, clear_scene)
    kept = select_frames(clear_scene.masks, 3)
    stack = Stack(clear_scene.lr[kept][..., None], clear_scene.masks[kept])
    own = super_resolve(RANDOM, stack).filters
    assert own is not None
    for axis, taps in zip(figure.axes[3:6:2], own):
        np.testing.assert_allclose(shown(axis), taps, rtol=1e-5)
        assert "true" not in axis.get_title() and set(marks(axis)) == {"filter's centroid"}
        assert axis.images[0].get_clim() == (0, own.max())
    legend = figure.axes[1].get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["filter's centroid"]


def test_frames_are_named_and_masked_pixels_tinted(clear_scene: Scene) -> None:
    masks = np.ones_like(clear_scene.masks)
    masks[0, 2:5, 3] = False  # so the second is the reference
    masks[2:] = False
    masks[2:, :12] = True
    scene = dataclasses.replace(clear_scene, masks=masks, frames=tuple(range(3, 3 + len(masks))))
    figure = pictures.filters_on_frames(RANDOM, scene)
    titles = [axis.get_title() for axis in figure.axes[0:6:2]]
    assert titles == ["LR004, reference", "LR003", "LR005"]
    tint = np.asarray(figure.axes[2].images[1].get_array())[..., 3]
    np.testing.assert_array_equal(tint > 0, ~np.kron(masks[0], np.ones((3, 3), bool)))
    assert len({axis.images[0].get_clim() for axis in figure.axes[0:6:2]}) == 1


def test_true_shifts_beyond_the_filter_stay_on_its_edge(clear_scene: Scene) -> None:
    truth = truth_of((0, 0), (5, -1), (0, 0))
    axis = pictures.filters_on_frames(delta_bundle(), clear_scene, truth).axes[3]
    assert marks(axis)["true shift's tap"] == (-2.5, 1)
    assert axis.get_title().endswith("true +5.00, −1.00 (beyond)")


def test_too_few_frames_repeat_the_reference(clear_scene: Scene) -> None:
    few = dataclasses.replace(
        clear_scene,
        lr=clear_scene.lr[:2],
        masks=clear_scene.masks[:2],
        frames=(0, 1),
        reference=None,
    )
    figure = pictures.filters_on_frames(delta_bundle(TINY, (1, 0)), few, truth_of((0, 0), (1, 0)))
    render(figure)
    titles = [axis.get_title() for axis in figure.axes[0:6:2]]
    assert titles == ["LR000, reference", "LR001", "LR000, repeated"]
    assert figure.axes[5].get_title() == "filter +1.00, +0.00\ntrue +0.00, +0.00"


def test_systems_without_filters_show_their_frames(clear_scene: Scene) -> None:
    figure = pictures.filters_on_frames(MEAN, clear_scene, truth_of(*[(0, 0)] * 6))
    render(figure)
    count = len(clear_scene.lr)  # side by side, with no cell left for a filter
    assert all(axis.images and not axis.lines for axis in figure.axes[:count])
    clouded = dataclasses.replace(clear_scene, masks=np.zeros_like(clear_scene.masks))
    render(pictures.filters_on_frames(RANDOM, clouded), empty=True)


# --- scenes


def test_chosen_scenes_are_evenly_spaced(tmp_path: Path) -> None:
    config = dataclasses.replace(
        SIMULATION, lr_size=16, min_frames=1, max_frames=1, scenes=2, test_scenes=3
    )
    folders = write_dataset(tmp_path / "data", config)
    (folders[-1].path / "truth.json").unlink()

    def names(split: str, count: int) -> list[int]:
        chosen = pictures.choose_scenes(MEAN, tmp_path / "data", split, "NIR", count)
        return [int(scene.name[-4:]) for scene, _ in chosen]

    assert names("all", 3) == [594, 1306, 1308]
    assert names("all", 2) == [594, 1308]
    assert names("test", 1) == [1306]
    assert names("test", 9) == [1306, 1307, 1308]
    chosen = pictures.choose_scenes(MEAN, tmp_path / "data", "test", "", 3)
    assert [truth is None for _, truth in chosen] == [False, False, True]
    assert chosen[0][1] == json.loads((folders[2].path / "truth.json").read_text())
    assert chosen[0][0].norm is not None
    with pytest.raises(ValueError, match="--band: found 'RED'"):
        pictures.choose_scenes(MEAN, tmp_path / "data", "all", "RED", 1)
