"""The command that makes the shipped parameters, on small ground and few steps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import UNROLLED, landscape, refuser

from deepsum_jax import files, load_params, predict
from deepsum_jax.config import TrainConfig, preset
from deepsum_jax.data import kelvins
from deepsum_jax.simulation.drawn import Drawn
from experiments import default

HEIGHT, WIDTH = 130, 290


def write_dates(folder: Path, count: int = 3) -> Path:
    """GeoTIFFs of one place, four bands of uint8; a corner of the second date is no-data."""
    rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
    folder.mkdir()
    for n in range(count):
        bands = [landscape(HEIGHT, WIDTH, 10 * n + b).clip(1, 200) + 10 * b for b in range(4)]
        values = np.stack(bands).astype("u1")
        if n == 1:
            values[3, :20, :30] = 0
        profile = {
            "driver": "GTiff", "count": 4, "height": HEIGHT, "width": WIDTH, "dtype": "uint8",
            "crs": "EPSG:26914", "transform": rasterio.Affine(5, 0, 0, 0, -5, 0),
        }  # fmt: skip
        with rasterio.open(folder / f"{2010 + n}.tif", "w", **profile) as target:
            target.write(values)
    return folder


@pytest.fixture(scope="module")
def dates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dates(tmp_path_factory.mktemp("default") / "dates")


def test_grounds_are_the_bands_and_their_index_and_mixtures(dates: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
    found = default.grounds(dates)
    assert len(found) == 15 + default.MIXTURES and found[5] is found[0]
    raw = []
    for path in sorted(dates.glob("*.tif")):
        with rasterio.open(path) as source:
            raw.append(source.read()[:, :, :280])
    expected = np.stack(raw, axis=1).astype(np.float64)  # [4, T, H, W]
    for band in range(4):
        assert found[band].values.dtype == np.uint8
        np.testing.assert_array_equal(found[band].values, expected[band])
    index = found[4]
    assert index.values.shape == (3, HEIGHT, 280) and index.values.dtype == np.uint16
    red, infrared = expected[0], expected[3]
    wanted = 8000 * (1 + (infrared - red) / (infrared + red))
    np.testing.assert_allclose(index.values, wanted, atol=1)
    assert not index.masks[1, :20, :30].any() and index.masks.sum() == index.masks.size - 600
    assert found[0].masks.all() and not found[3].masks[1, :20, :30].any()
    flat = np.stack([values.ravel() for values in expected], axis=1)
    sums = np.column_stack([flat, np.ones(len(flat))])
    for mixture in found[15:]:
        known = mixture.masks.ravel()
        values = mixture.values.ravel().astype(np.float64)
        inner = known & (values > 64) & (values < 16320)
        assert (mixture.masks == found[3].masks).all() and inner.sum() > 0.9 * known.sum()
        weights = np.linalg.lstsq(sums[inner], values[inner], rcond=None)[0]
        np.testing.assert_allclose(sums[inner] @ weights, values[inner], atol=1.5)
        assert abs(values[known].mean() - 8000) < 50 and abs(values[known].std() - 2000) < 50
    part = default.grounds(dates, (5, 50))
    np.testing.assert_array_equal(part[2].values, found[2].values[:, :, 5:50])


def test_no_dates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refuser(capsys)(default.main, "--dates", tmp_path, "--workdir", tmp_path / "w")
    assert message.endswith("found no .tif, expected one a date")
    assert not (tmp_path / "w").exists()


def test_scenes_of_both_kinds(dates: Path) -> None:
    """Each is the same however many are made with it."""
    ground = default.grounds(dates)
    made = list(default.scenes(ground, 2, real=3, simulated=1))
    fewer = list(default.scenes(ground, 2, real=2, simulated=1))
    assert [scene.name for _, scene, _ in made] == [f"imgset{n:04d}" for n in range(4)]
    for (part, scene, truth), (_, again, _) in zip(made[:2], fewer):
        assert part == "train" and scene.scale == 2 and truth["hr"] == [0.0, 0.0]
        assert scene.lr.shape[1:] == (default.WINDOW, default.WINDOW)
        np.testing.assert_array_equal(scene.lr, again.lr)
    assert made[3][1].scale == 2 and "same_ground" in made[3][2]
    np.testing.assert_array_equal(made[3][1].lr, fewer[2][1].lr)


def test_settings_are_the_preset_s_at_a_scale() -> None:
    plain = preset("unrolled")
    for scale in (2, 3, 4):
        config = default.settings(scale, ["deepsum.steps=7"])
        assert config.model.scale == scale and config.data.patch_size == 32 * scale
        assert config.deepsum.steps == 7 and config.model.system == "unrolled"
        assert Drawn(scale=scale, window=32 * scale).window == config.data.patch_size
    assert default.settings(3, []) == plain


def test_a_tiny_run_ends_with_a_bundle_that_predicts(
    dates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {k: v for k, v in UNROLLED.options.items() if k != "truth"}
    changes = {
        **{f"model.options.{name}": value for name, value in options.items()},
        "model.num_frames": 3,
        "data.patch_size": 36,
        "data.validation_fraction": 0.1,
        "sisrnet.batch_size": 4,
        "sisrnet.steps": 2,
        "deepsum.batch_size": 4,
        "deepsum.steps": 2,
        "deepsum.log_every": 1,
        "compute.backend": "plain",
    }
    command = ["--dates", str(dates), "--workdir", str(tmp_path / "w"), "--real", "8"]
    command += ["--simulated", "2", "--output", str(tmp_path / "shipped")]
    for name, value in changes.items():
        command += ["--set", f"{name}={value}"]
    default.main(command)
    assert "shipped: the bundle, its settings and its log" in capsys.readouterr().out
    data = tmp_path / "w" / "data-x3"
    assert len(kelvins.find_scenes(data)) == 10
    bundle = load_params(tmp_path / "shipped")
    assert {leaf.dtype for leaf in jax.tree.leaves(bundle.params)} == {np.dtype(np.float16)}
    trained = load_params(tmp_path / "w" / "x3")
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, np.float16)),
        bundle.params,
        trained.params,
    )
    assert bundle.info == dataclasses.replace(trained.info, reference="clearest", bands=())
    assert trained.info.reference == "given" and bundle.info.step == 2
    config = TrainConfig.from_dict(files.read_json(tmp_path / "shipped/config.json"))
    assert config == default.settings(3, [f"{k}={v}" for k, v in changes.items()])
    log = (tmp_path / "shipped/metrics.jsonl").read_text().splitlines()
    told = [(r["stage"], r["step"]) for r in map(json.loads, log) if "own_decibels" in r]
    assert told == [("sisrnet", 2), ("deepsum", 1), ("deepsum", 2)]

    scene = kelvins.read_scene(kelvins.find_scenes(data)[0])
    image: Any = predict(bundle, scene.lr[:1], scene.masks[:1])  # with no word on the reference
    assert image.shape == (96, 96) and np.isfinite(image).all()

    made = {path: path.stat().st_mtime_ns for path in data.rglob("*.png")}
    before = jax.tree.map(np.asarray, bundle.params)
    default.main(command)  # it goes on where it was: nothing is made anew
    assert "deepsum: done before, kept" in capsys.readouterr().out
    assert made == {path: path.stat().st_mtime_ns for path in data.rglob("*.png")}
    again = load_params(tmp_path / "shipped").params
    jax.tree.map(np.testing.assert_array_equal, again, before)
