"""Scores: every scene counted, the same images as `predict`, Bicubic+Mean, splits, registration."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import FAST, TINY, delta_bundle, random_bundle, refuser

import deepsum_jax
from deepsum_jax import Bundle, ModelConfig, figures, metrics, save_params
from deepsum_jax.bundle import BundleInfo
from deepsum_jax.config import SimulationConfig
from deepsum_jax.data import kelvins
from deepsum_jax.data.dataset import fingerprint, training_folders
from deepsum_jax.data.fill import fill_hidden
from deepsum_jax.data.resample import upsample
from deepsum_jax.data.scene import Scene
from deepsum_jax.evaluate import main
from deepsum_jax.scoring import scene as scoring
from deepsum_jax.scoring import summary as summaries
from deepsum_jax.scoring.company import COMPANY, company
from deepsum_jax.scoring.report import panel as draw_panel
from deepsum_jax.scoring.report import report
from deepsum_jax.scoring.scene import SceneScore
from deepsum_jax.scoring.splits import select_scenes
from deepsum_jax.simulation.dataset import write_dataset
from deepsum_jax.simulation.steady import simulate_scene
from deepsum_jax.systems.bicubic_mean import bicubic_mean
from deepsum_jax.systems.ibp import ibp
from deepsum_jax.systems.system import Stack

SIMULATION = SimulationConfig(
    scenes=4, test_scenes=2, seed=0, lr_size=16, min_frames=5, max_frames=6
)
RANDOM = random_bundle(dataclasses.replace(TINY, residual_init="zeros"))


def predict(*arguments: Any, **options: Any) -> Any:
    """`deepsum_jax.predict` in a formulation that compiles fast."""
    return deepsum_jax.predict(*arguments, **{"compute": FAST, **options})


def evaluate_scene(*arguments: Any, **options: Any) -> SceneScore:
    return scoring.evaluate_scene(*arguments, **{"compute": FAST, **options})


def rewritten(folder: Path, scene: Scene, **changes: Any) -> None:
    kelvins.write_scene(folder, dataclasses.replace(scene, **changes), overwrite=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training and two test scenes, among them the awkward ones that must not be left out."""
    root = tmp_path_factory.mktemp("data") / "simulated"
    folders = write_dataset(root, SIMULATION)
    scenes = [kelvins.read_scene(folder) for folder in folders]
    few, clouded, dark = scenes[:3]
    rewritten(folders[0].path, few, lr=few.lr[:2], masks=few.masks[:2], frames=few.frames[:2])
    rewritten(folders[1].path, clouded, masks=np.zeros_like(clouded.masks))
    assert dark.hr_mask is not None
    rewritten(folders[2].path, dark, hr_mask=np.zeros_like(dark.hr_mask))
    return root


@pytest.fixture(scope="module")
def summary(data: Path) -> dict[str, Any]:
    return summaries.evaluate(RANDOM, data, compute=FAST)[0]


def rows(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in summary["scenes"]}


def scene_of(data: Path, name: str) -> Scene:
    (folder,) = [f for f in kelvins.find_scenes(data) if f.name == name]
    return kelvins.read_scene(folder)


# --- what is written


def test_json_is_the_documented_format(data: Path, tmp_path: Path) -> None:
    save_params(tmp_path / "bundle", RANDOM)
    output, panel = tmp_path / "new" / "scores.json", tmp_path / "new" / "panel.png"
    command = ["--params", tmp_path / "bundle", "--data", data, "--json", output, "--panel", panel]
    main([str(a) for a in command])
    written = json.loads(output.read_text(), parse_constant=lambda word: pytest.fail(word))
    assert list(written)[:6] == ["format", "split", "n", "scenes", "mean", "by_band"]
    assert (written["format"], written["split"], written["n"]) == (1, "all", 6)
    others = ["bicubic", "ibp_one", "bicubic_mean", "ibp"]
    assert list(COMPANY) == others
    keys = ["name", "band", "frames", "cpsnr", "cssim", *others, "norm", "score"]
    assert all(list(row) == keys for row in written["scenes"])
    assert list(written["over"]) == others
    over = {"n", "mean", "low", "high", "wins", "worst"}
    assert all(set(value) == over for value in written["over"].values())
    means = {"n", "cpsnr", "cssim", *others, "score"}
    assert set(written["mean"]) >= means and set(written["by_band"]) == {"NIR"}
    assert written["by_band"]["NIR"] == written["mean"]
    assert panel.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in output.parent.iterdir()) == ["panel.png", "scores.json"]


def level_of_nothing(data: Path, name: str) -> float:
    """cPSNR of an image of zeros, which the brightness correction makes the mean of HR."""
    scene = scene_of(data, name)
    assert scene.hr is not None and scene.hr_mask is not None
    hr, mask = scene.hr[None, ..., None], scene.hr_mask[None, ..., None]
    return float(metrics.cpsnr(np.zeros(hr.shape, np.float32), hr, mask)[0])


def test_no_scene_with_hr_is_left_out(data: Path, summary: dict[str, Any]) -> None:
    found = rows(summary)
    assert sorted(found) == [f"imgset{n:04d}" for n in (594, 595, 596, 597, 1306, 1307)]
    few, clouded, dark = (found[f"imgset{n:04d}"] for n in (594, 595, 596))
    assert few["frames"] == 2 and few["cpsnr"] > level_of_nothing(data, "imgset0594") + 3
    for row, frames in ((clouded, 0), (dark, dark["frames"])):
        assert row["frames"] == frames
        for key in ("cpsnr", "cssim", "score"):
            assert row[key] is None
        assert all(row[key] is None for key in COMPANY) and row["norm"] > 20
    assert summary["n"] == summary["mean"]["n"] == 6
    for key in ("cpsnr", "cssim", *COMPANY, "score"):
        assert summary["mean"][f"{key}_not_finite"] == 2
        finite = [row[key] for row in summary["scenes"] if row[key] is not None]
        assert len(finite) == 4
        np.testing.assert_allclose(summary["mean"][key], np.mean(finite), rtol=1e-12)
    text = report(summary)
    assert "2 of 6 scenes have no finite cPSNR" in text and "imgset0595" in text


def test_scores_are_those_of_predict(data: Path, summary: dict[str, Any]) -> None:
    norms = kelvins.read_norm(data / "norm.csv")
    for name in ("imgset0594", "imgset0597", "imgset1306"):
        scene, row = scene_of(data, name), rows(summary)[name]
        image = predict(RANDOM, scene.lr, scene.masks, return_details=True)
        arrays = image.image[None, ..., None], scene.hr[None, ..., None]  # type: ignore[index]
        mask = scene.hr_mask[None, ..., None]  # type: ignore[index]
        assert row["frames"] == len(image.frames_used)
        np.testing.assert_allclose(row["cpsnr"], metrics.cpsnr(*arrays, mask)[0], rtol=1e-6)
        np.testing.assert_allclose(row["cssim"], metrics.cssim(*arrays, mask)[0], rtol=1e-6)
        assert row["norm"] == norms[name]
        np.testing.assert_allclose(row["score"], row["norm"] / row["cpsnr"], rtol=1e-12)


def score(name: str, cpsnr: float, bicubic: float, **changes: Any) -> SceneScore:
    values = {"band": "NIR", "norm": None, **changes}
    return SceneScore(
        name=name, frames=3, cpsnr=cpsnr, cssim=0.9, company=dict.fromkeys(COMPANY, bicubic),
        shape=(48, 48), **values,
    )  # fmt: skip


def test_summary_by_band_and_without_norm() -> None:
    scores = [
        score("a", 40, 39, norm=44.0),
        score("b", math.inf, 39, norm=40.0),
        score("c", math.nan, math.nan, band="RED"),
        score("d", 45, 46, band="RED"),
    ]
    found = summaries.summarize(scores, "val")
    assert found["split"] == "val" and set(found["by_band"]) == {"NIR", "RED"}
    assert [row["cpsnr"] for row in found["scenes"]] == [40, None, None, 45]
    assert found["by_band"]["NIR"]["cpsnr"] == 40 and found["by_band"]["RED"]["cpsnr"] == 45
    assert found["mean"]["score"] == 1.1 and found["mean"]["score_not_finite"] == 1
    assert found["by_band"]["RED"]["score"] is None
    assert found["by_band"]["RED"]["score_not_finite"] == 0  # no baseline, so none is missing
    for over in found["over"].values():
        assert over["n"] == 2 and over["wins"] == 1
        assert over["mean"] == 0 and over["worst"] == -1
    json.dumps(found, allow_nan=False)
    assert "RED" in report(found)


def test_columns_have_their_own_heads() -> None:
    """However long the names are, two columns never run into one word."""
    found = {**summaries.summarize([score("a", 40, 39)], "all"), "system": "Bicubic+Mean"}
    head, row = report(found).splitlines()[:2]
    names = ["bicubic", "IBP of one", "Bicubic+Mean", "IBP", "Bicubic+Mean"]
    assert [word.strip() for word in head.split("  ") if word.strip()] == [
        "scene", "band", "frames", *names, "cSSIM", "score"
    ]  # fmt: skip
    assert row.split() == ["a", "NIR", "3", *["39.00"] * 4, "40.00", "0.90000", "–"]
    end = 0
    for name, value in zip(names, [*["39.00"] * 4, "40.00"]):  # each under its own head
        end = head.index(name, end) + len(name)
        assert row[end - 5 : end] == value


def test_how_far_above_each_alternative() -> None:
    scores = [score("a", 40, 39), score("b", 41, 39), score("c", 38, 39)]
    for s, one in zip(scores, (39.5, math.nan, 39.5)):
        s.company["ibp_one"] = one
    over = summaries.summarize(scores, "all")["over"]
    assert (over["bicubic"]["n"], over["bicubic"]["wins"], over["bicubic"]["worst"]) == (3, 2, -1)
    np.testing.assert_allclose(over["bicubic"]["mean"], 2 / 3)
    assert (over["ibp_one"]["n"], over["ibp_one"]["wins"], over["ibp_one"]["mean"]) == (2, 1, -0.5)
    text = report(summaries.summarize(scores, "all"))
    assert "over IBP of one: -0.50 dB" in text and "better on 1 of 2 scenes, worst -1.50" in text


def test_images_are_given_to_each_and_not_kept(data: Path) -> None:
    """A large set must fit into memory: nothing of a scene is held once the next one is read."""
    seen: list[str] = []
    alive: list[weakref.ref[np.ndarray]] = []

    def each(score: SceneScore) -> None:
        if score.images:
            assert {"LR", "SR", "HR", "mask", *COMPANY} == set(score.images)
            assert score.images["SR"].shape == score.shape == (48, 48)
            alive.append(weakref.ref(score.images["SR"]))
        seen.append(score.name)
        gc.collect()
        assert sum(image() is not None for image in alive) <= 1

    for option in ({}, {"each": each}):
        _, scores = summaries.evaluate(RANDOM, data, compute=FAST, **option)  # type: ignore[arg-type]
        assert len(scores) == 6 and not any(s.images for s in scores)
    assert seen == [s.name for s in scores] and len(alive) == 5


def test_broken_images_count_as_the_worst(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that is not finite where HR is reliable must not be left out of the mean; an HR
    without a reliable pixel is."""
    original = scoring.super_resolve

    def broken(bundle: Bundle, stack: Any, compute: Any) -> Any:
        result = original(bundle, stack, compute)
        if len(stack.lr) != 2:
            return result
        image = result.image.copy()
        image[20, 20] = np.nan
        return result._replace(image=image)

    monkeypatch.setattr(scoring, "super_resolve", broken)
    summary, _ = summaries.evaluate(RANDOM, data, compute=FAST)
    few, dark = rows(summary)["imgset0594"], rows(summary)["imgset0596"]
    assert few["frames"] == 2 and (few["cpsnr"], few["cssim"]) == (metrics.WORST_CPSNR, 0)
    assert metrics.WORST_CPSNR == 0 and dark["cpsnr"] is None
    mean = summary["mean"]
    others = [row["cpsnr"] for row in summary["scenes"] if row["cpsnr"]]
    assert len(others) == 3 and mean["cpsnr_not_finite"] == 2
    np.testing.assert_allclose(mean["cpsnr"], sum(others) / 4)
    # norm / 0 is infinite: not a number for JSON, and counted.
    assert few["score"] is None and mean["score_not_finite"] == 3
    assert summary["over"]["bicubic"]["worst"] < -20
    json.dumps(summary, allow_nan=False)
    # One infinite pixel is as bad.
    scene = scene_of(data, "imgset0597")
    assert scene.hr is not None and scene.hr_mask is not None
    image = np.full((48, 48, 1), 7000, np.float32)
    image[:20] = 7400
    expected = scoring.score_image(image, scene, 3)
    assert expected[0] > 20
    image[20, 20] = np.inf
    assert scoring.score_image(image, scene, 3) == (metrics.WORST_CPSNR, 0)


def test_nothing_finite_at_all() -> None:
    found = summaries.summarize([score("a", math.nan, math.nan)], "all")
    assert found["mean"]["cpsnr"] is None and found["over"] == dict.fromkeys(COMPANY)
    assert "1 of 1 scenes have no finite cPSNR" in report(found)


def test_long_tables_are_cut() -> None:
    found = summaries.summarize([score(f"s{n}", 40, 39) for n in range(50)], "all")
    text = report(found)
    assert "s39" in text and "s40" not in text and "and 10 more scenes" in text


def test_panel_of_scenes_without_images_or_pixels(data: Path) -> None:
    dark, clouded = scene_of(data, "imgset0596"), scene_of(data, "imgset0595")
    scores = [evaluate_scene(RANDOM, s) for s in (clouded, dark)]
    draw_panel(scores[:1])
    draw_panel(scores)


def test_errors_are_drawn_to_the_scale_of_what_is_known() -> None:
    error = np.full((10, 10), -2.0)
    error[0] = np.nan
    figure = figures.grid([("a", [("HR", error + 7), ("error", error)])])
    assert figure.axes[1].images[0].get_clim() == (-2, 2)


def test_bootstrap() -> None:
    rng = np.random.default_rng(3)
    differences = 1 + 2 * rng.standard_normal(200)
    low, high = summaries.bootstrap(differences)
    half = 1.96 * differences.std() / math.sqrt(200)
    np.testing.assert_allclose([low, high], differences.mean() + np.array([-half, half]), atol=0.03)
    assert summaries.bootstrap(differences) == (low, high)
    np.testing.assert_allclose(summaries.bootstrap(np.full(5, 0.25)), 0.25)


# --- Bicubic+Mean


def keys(t: np.ndarray) -> np.ndarray:
    """Keys' kernel, a = −1/2, written out."""
    t = np.abs(t)
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.select([t <= 1, t < 2], [near, far], 0.0)


def interpolation(size: int, scale: int) -> np.ndarray:
    """Matrix [scale·size, size] of cubic interpolation with replicated edges."""
    matrix = np.zeros((size * scale, size))
    for row in range(size * scale):
        centre = (row + 0.5) / scale - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[row, min(max(tap, 0), size - 1)] += keys(np.array(centre - tap))
    return matrix


def slow_bicubic_mean(lr: np.ndarray, masks: np.ndarray, scale: int, reach: int) -> np.ndarray:
    """Bicubic+Mean by loops, with registration by brute force within ±reach."""
    height, width = (n * scale for n in lr.shape[1:])
    rows, columns = (interpolation(n, scale) for n in lr.shape[1:])
    images = [np.clip(rows @ f @ columns.T, f.min(), f.max()) for f in lr.astype(float)]
    clear = [np.kron(m, np.ones((scale, scale))) > 0 for m in masks]

    def moved(x: np.ndarray, dy: int, dx: int) -> tuple[np.ndarray, np.ndarray]:
        y, x_ = np.arange(height) - dy, np.arange(width) - dx
        inside = ((y >= 0) & (y < height))[:, None] & ((x_ >= 0) & (x_ < width))
        return x[np.clip(y, 0, height - 1)][:, np.clip(x_, 0, width - 1)], inside

    placed, reliable = [images[0]], [clear[0]]
    for image, mask in zip(images[1:], clear[1:], strict=True):
        best, at = -2.0, (0, 0)
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                shifted, inside = moved(image, dy, dx)
                both = clear[0] & moved(mask, dy, dx)[0] & inside
                r = np.corrcoef(images[0][both], shifted[both])[0, 1]
                if r > best:
                    best, at = r, (dy, dx)
        shifted, inside = moved(image, *at)
        placed.append(shifted)
        reliable.append(moved(mask, *at)[0] & inside)
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            good = [n for n in range(len(lr)) if reliable[n][y, x]]
            values = [
                placed[n][y, x] if reliable[n][y, x] or not good else placed[good[0]][y, x]
                for n in range(len(lr))
            ]
            out[y, x] = np.mean(values)
    return out


@pytest.mark.parametrize("index", [0, 2])
def test_bicubic_mean_against_loops(index: int) -> None:
    config = dataclasses.replace(SIMULATION, clear_fraction=0.2, outlier_fraction=0.0)
    scene, _ = simulate_scene(0, index, config)
    lr, masks = scene.lr[:4], scene.masks[:4].copy()
    masks[:, 5, 5:9] = False  # reliable in no frame
    found = bicubic_mean(lr[..., None], masks, 3)
    assert found.shape == (48, 48, 1) and found.dtype == np.float32
    filled = fill_hidden(lr[..., None], masks)[..., 0]
    expected = slow_bicubic_mean(filled, masks, 3, reach=12)
    np.testing.assert_allclose(found[..., 0], expected, rtol=2e-5)


def test_bicubic_mean_sees_the_same_frames(data: Path, summary: dict[str, Any]) -> None:
    scene = scene_of(data, "imgset0597")
    used = list(predict(RANDOM, scene.lr, scene.masks, return_details=True).frames_used)
    image = bicubic_mean(scene.lr[used][..., None], scene.masks[used], 3)
    hr, mask = scene.hr, scene.hr_mask
    assert hr is not None and mask is not None
    expected = metrics.cpsnr(image[None], hr[None, ..., None], mask[None, ..., None])
    np.testing.assert_allclose(rows(summary)[scene.name]["bicubic_mean"], expected[0], rtol=1e-6)


def test_company_sees_the_same_frames_or_the_reference_alone(
    data: Path, summary: dict[str, Any]
) -> None:
    """All four, from the frames that `predict` used, written out."""
    scene = scene_of(data, "imgset1307")
    used = list(predict(RANDOM, scene.lr, scene.masks, return_details=True).frames_used)
    lr, masks = scene.lr[used][..., None], scene.masks[used]
    images = {
        "bicubic": upsample(lr[:1].astype(np.float32), 3)[0],
        "ibp_one": ibp(lr[:1], masks[:1], 3, psf_sigma=RANDOM.config.psf_sigma),
        "bicubic_mean": bicubic_mean(lr, masks, 3),
        "ibp": ibp(lr, masks, 3, psf_sigma=RANDOM.config.psf_sigma),
    }
    assert scene.hr is not None and scene.hr_mask is not None
    hr, mask = scene.hr[None, ..., None], scene.hr_mask[None, ..., None]
    found = rows(summary)[scene.name]
    for name, image in images.items():
        expected = metrics.cpsnr(image[None].astype(np.float32), hr, mask)[0]
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, err_msg=name)
    assert len({round(found[name], 3) for name in COMPANY}) == 4


def test_company_of_a_blind_reference() -> None:
    """A reference that is all cloud shows nothing by itself; with the other frames there is."""
    lr = np.random.default_rng(0).uniform(7000, 8000, (3, 8, 8, 1))
    masks = np.ones((3, 8, 8), bool)
    masks[0] = False
    images = company(Stack(lr, masks), 3, 0.4)
    assert [name for name, image in images.items() if image is None] == ["bicubic", "ibp_one"]
    scene = Scene("x", lr[..., 0], masks, hr=np.full((24, 24), 7500))
    bundle = dataclasses.replace(RANDOM, info=BundleInfo(reference="first"))
    found = evaluate_scene(bundle, scene)  # so the next frame takes its place, and it is said
    assert all(math.isfinite(value) for value in found.company.values())
    assert found.remarks == ("reference: frame 0 has no reliable pixel; frame 1 takes its place",)
    draw_panel([found])
    assert found.remarks[0] in report(summaries.summarize([found], "all"))


@pytest.mark.parametrize("rule", ["first", "given"])
def test_reference_by_rule(data: Path, tmp_path: Path, rule: Any) -> None:
    """The frame that the rule names lies in front, for the baseline too; `--reference` sets it."""
    scene = scene_of(data, "imgset1306")
    assert scene.reference is not None
    index = 0 if rule == "first" else scene.frames.index(scene.reference)
    bundle = dataclasses.replace(RANDOM, info=BundleInfo(reference=rule))
    score = evaluate_scene(bundle, scene)
    clear = scene.masks[index]
    np.testing.assert_array_equal(score.images["LR"][clear], scene.lr[index][clear])
    image = predict(bundle, scene.lr, scene.masks, reference=index)
    np.testing.assert_allclose(score.images["SR"], image, rtol=1e-6)
    save_params(tmp_path / "bundle", RANDOM)
    command = ["--params", tmp_path / "bundle", "--data", data, "--split", "test"]
    command += ["--reference", rule, "--json", tmp_path / "scores.json"]
    main([str(a) for a in command])
    written = rows(json.loads((tmp_path / "scores.json").read_text()))
    assert written["imgset1306"]["cpsnr"] == pytest.approx(score.cpsnr, abs=1e-6)
    for key in COMPANY:
        assert written["imgset1306"][key] == pytest.approx(score.company[key], abs=1e-6)


def test_bicubic_mean_of_no_data() -> None:
    lr = np.full((3, 8, 8, 1), 100.0)
    lr[:, 2:4] = 150
    masks = np.ones((3, 8, 8), bool)
    expected = bicubic_mean(lr, masks, 3)
    masks[1, 0, 0] = False
    for value in (np.nan, -9999, -3.4e38):
        lr[1, 0, 0] = value
        image = bicubic_mean(lr, masks, 3)
        np.testing.assert_allclose(image, expected, atol=1.0)


# --- splits


@pytest.fixture(scope="module")
def trained(data: Path) -> Bundle:
    """A bundle that says it was trained on `data`."""
    info = BundleInfo(
        bands=("NIR",),
        data_fingerprint=fingerprint(training_folders(data)),
        train_scenes=("NIR/imgset0594", "NIR/imgset0596", "NIR/imgset0597"),
        validation_scenes=("NIR/imgset0595",),
    )
    return dataclasses.replace(RANDOM, info=info)


def chosen(bundle: Bundle, data: Path, split: str, band: str = "") -> tuple[str, list[int]]:
    name, folders = select_scenes(bundle, data, split, band)
    return name, [int(f.name[-4:]) for f in folders]


def test_splits(data: Path, trained: Bundle) -> None:
    everything = [594, 595, 596, 597, 1306, 1307]
    assert sorted(chosen(trained, data, "all")[1]) == everything
    assert chosen(trained, data, "train") == ("train", [594, 596, 597])
    assert chosen(trained, data, "val") == ("val", [595])
    assert chosen(trained, data, "test") == ("test", [1306, 1307])
    assert chosen(trained, data, "auto") == ("test", [1306, 1307])
    assert chosen(RANDOM, data, "auto")[0] == "all"
    other = dataclasses.replace(
        trained, info=dataclasses.replace(trained.info, data_fingerprint="0" * 64)
    )
    assert chosen(other, data, "auto")[0] == "all"
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=f"no scene with HR of the split '{split}'"):
            chosen(RANDOM, data, split)


def test_auto_without_test_scenes_validates(data: Path, trained: Bundle, tmp_path: Path) -> None:
    shutil.copytree(data / "train", tmp_path / "copy" / "train")
    assert chosen(trained, tmp_path / "copy", "auto") == ("val", [595])
    pixels = kelvins.read_png16(tmp_path / "copy" / "train" / "NIR" / "imgset0597" / "LR000.png")
    pixels[0, 0] += 1
    kelvins.write_png16(tmp_path / "copy/train/NIR/imgset0597/LR000.png", pixels)
    assert chosen(trained, tmp_path / "copy", "auto")[0] == "all"  # no longer the same data
    for hr in (tmp_path / "copy").rglob("HR.png"):
        hr.unlink()
    with pytest.raises(ValueError, match=r"found 4 scenes but no HR\.png"):
        chosen(trained, tmp_path / "copy", "all")


def test_bands(data: Path) -> None:
    assert len(chosen(RANDOM, data, "all", "NIR")[1]) == 6
    assert len(chosen(RANDOM, data, "all", "all")[1]) == 6
    with pytest.raises(
        ValueError, match=r"--band: found 'NIS', but .* has NIR; did you mean 'NIR'"
    ):
        chosen(RANDOM, data, "all", "NIS")


# --- registration


def test_registration_errors_have_the_right_sign() -> None:
    """Filters that translate every frame by (2, −1), against translations that are known."""
    bundle = delta_bundle(TINY, (2, -1))
    scene, _ = simulate_scene(0, 7, SIMULATION)
    masks = np.zeros_like(scene.masks)
    for n, rows_ in enumerate((16, 15, 14)):  # three frames are used, in this order
        masks[n, :rows_] = True
    scene = dataclasses.replace(scene, masks=masks)
    place = [(0.5, 0.25), (2.5, -0.75), (0.75, 1.75)]  # t_n − t_0: (2, −1) and (0.25, 1.5)
    truth = {"frames": {f"LR{n:03d}": t for n, t in enumerate(place)}}
    errors = evaluate_scene(bundle, scene, truth, max_frames=3).shift_errors
    assert errors is not None and errors.shape == (2, 2, 2)
    np.testing.assert_allclose(errors[:, 0], [(0, 0), (1.75, -2.5)], atol=1e-5)
    # A frame beyond the filters' reach says nothing about RegNet.
    truth["frames"]["LR002"] = (5.0, 0.0)
    errors = evaluate_scene(bundle, scene, truth, max_frames=3).shift_errors
    assert errors is not None and len(errors) == 1


def test_cross_correlation_is_right_to_half_a_pixel() -> None:
    """The sign once more, with nothing of ours between the truth and the images."""
    config = dataclasses.replace(SIMULATION, lr_size=24, min_frames=6, outlier_fraction=0.0)
    scene, truth = simulate_scene(0, 3, config)
    errors = scoring._shift_errors(
        dataclasses.replace(RANDOM, config=dataclasses.replace(TINY, num_frames=5, filter_size=9)),
        scene, [0, 1, 2, 3, 4], np.zeros((4, 9, 9), np.float32), truth,
    )  # fmt: skip
    true = scoring.true_shifts(truth, range(5))[1:]
    assert np.median(np.abs(errors[:, 1])) < 0.6 < np.abs(true).max()
    np.testing.assert_allclose(errors[:, 0], -true, atol=1e-6)  # filters of nothing move nothing


def test_registration_is_summarized() -> None:
    errors = np.array([[(0.1, -0.2), (1, 1)], [(-0.3, 0.4), (-2, 0)], [(0.5, 0.6), (3, 0)]])
    scores = [score("a", 40, 39, shift_errors=errors, filters_by="RegNet"), score("b", 40, 39)]
    whole = summaries.summarize(scores, "all")
    found = whole["registration"]
    assert found["frames"] == 3 and found["by"] == "RegNet"
    np.testing.assert_allclose(found["median_error"], [0.3, 0.4])
    np.testing.assert_allclose(found["median_error_cross_correlation"], [2, 0])
    assert "3 frames: RegNet 0.30, 0.40; integer cross-correlation 2.00, 0.00" in report(whole)


@pytest.mark.parametrize(
    ("config", "by"),
    [
        (TINY, "RegNet"),
        (dataclasses.replace(TINY, registration="shifts"), "learned shifts"),
        (dataclasses.replace(TINY, registration="correlation"), "cross-correlation, fixed kernel"),
        (dataclasses.replace(TINY, registration="none"), "no registration"),
        (dataclasses.replace(TINY, system="duf"), ""),
        (ModelConfig(system="ibp"), ""),
    ],
)
def test_registration_is_by_who_proposed_it(config: ModelConfig, by: str) -> None:
    """Only RegNet's filters are called RegNet's, and only where there are any is there a row."""
    scene, truth = simulate_scene(0, 3, SIMULATION)
    bundle = random_bundle(config) if config.system != "ibp" else Bundle({}, config)
    found = evaluate_scene(bundle, scene, truth)
    assert found.filters_by == by and (found.shift_errors is not None) == bool(by)
    whole = summaries.summarize([found], "all")
    assert whole.get("registration", {}).get("by", "") == by
    text = report(whole)
    assert ("registration, median error" in text) == bool(by)
    assert ("RegNet" in text) == (by == "RegNet")


# --- faults


@pytest.mark.parametrize(
    "truth", ["[]", "{}", '{"frames": {"LR000": [0, 0]}}', '{"frames": {"LR000": [0]}}', "{"]
)
def test_unusable_truth_is_named(
    truth: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_params(tmp_path / "bundle", RANDOM)
    folder = tmp_path / "imgset0597"
    shutil.copytree(data / "train" / "NIR" / "imgset0597", folder)
    (folder / "truth.json").write_text(truth)
    command = ["--params", tmp_path / "bundle", "--data", folder]
    message = refuser(capsys)(main, *command)
    assert str(folder) in message and "truth.json" in message and "expected" in message


def test_other_scale_or_bands() -> None:
    rng = np.random.default_rng(0)
    lr = rng.integers(7000, 9000, (3, 8, 8, 2))
    two = Scene("field", lr, None, hr=rng.integers(0, 9, (24, 24, 2)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scene 'field': found 2 channels, expected 1"):
        evaluate_scene(RANDOM, two)
    double = Scene("field", lr[..., 0], None, hr=rng.integers(0, 9, (16, 16)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scene 'field': found scale 2, expected 3"):
        evaluate_scene(RANDOM, double)


def test_bands_together_are_scored(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, channels=2)
    scene, _ = simulate_scene(0, 1, SIMULATION)
    assert scene.hr is not None
    both = dataclasses.replace(
        scene,
        lr=np.stack([scene.lr, scene.lr], axis=-1),
        hr=np.stack([scene.hr, scene.hr], axis=-1),
    )
    one = evaluate_scene(delta_bundle(TINY), scene)
    two = evaluate_scene(delta_bundle(config), both)
    np.testing.assert_allclose([two.cpsnr, two.cssim], [one.cpsnr, one.cssim], rtol=1e-5)
    for key in COMPANY:
        np.testing.assert_allclose(two.company[key], one.company[key], rtol=1e-5)


def test_scene_too_small_is_named(tmp_path: Path) -> None:
    tiny = Scene("x", np.full((3, 1, 1), 7000), None, hr=np.full((3, 3), 7000))  # type: ignore[arg-type]
    kelvins.write_scene(tmp_path / "imgset0001", tiny)
    with pytest.raises(ValueError, match=r"imgset0001: .*found .*expected"):
        summaries.evaluate(RANDOM, tmp_path)
