"""Wald's protocol against a plain loop, its choice of dates and reference, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from helpers import contents, landscape, refuser

from deepsum_jax import simulate
from deepsum_jax.data import kelvins
from deepsum_jax.data.frames import clearest_first
from deepsum_jax.simulation import wald
from deepsum_jax.simulation.dates import read_dates
from deepsum_jax.simulation.wald import WaldConfig, cut_scenes, write_wald_dataset

REAL = Path(__file__).parents[1].parent / "shared" / "real" / "naip-dakota"
SMALL = WaldConfig(window=24)


def some_dates(count: int = 5, height: int = 64, width: int = 90) -> np.ndarray:
    """uint8 [T, H, W], one image a date."""
    return np.stack([landscape(height, width, n) for n in range(count)]).clip(1, 255).astype("u1")


def test_a_frame_by_loops() -> None:
    """Offset, blur and pixel mean of one frame, each pixel a double sum over the date."""
    dates = some_dates(3)
    config = WaldConfig(window=24, noise=0)
    scene, truth = cut_scenes(dates, config=config)[1]
    margin = 2 + int(np.ceil(4 * 3 * 0.42))
    top, left = margin, margin + 24  # of the second window
    assert scene.hr is not None
    np.testing.assert_array_equal(
        scene.hr, 64 * dates[1, top : top + 24, left : left + 24].astype(int)
    )
    taps = np.exp(-0.5 * (np.arange(-5, 6) / (3 * 0.42)) ** 2)
    taps /= taps.sum()
    for n in range(3):
        dy, dx = (int(v) for v in truth["frames"][f"LR{n:03d}"])
        for i, j in [(0, 0), (3, 5), (7, 7)]:
            total = 0.0
            for y in range(top + 3 * i + dy, top + 3 * i + 3 + dy):
                for x in range(left + 3 * j + dx, left + 3 * j + 3 + dx):
                    patch = 64.0 * dates[n, y - 5 : y + 6, x - 5 : x + 6]
                    total += float(taps @ patch @ taps) / 9
            assert abs(int(scene.lr[n, i, j]) - total) <= 0.51


def test_the_reference_is_hr_s_own_frame() -> None:
    for years in wald.YEARS:
        config = WaldConfig(window=24, years=years)
        for scene, truth in cut_scenes(some_dates(6), config=config, seed=3):
            reference = scene.reference
            assert reference is not None
            assert clearest_first(scene.masks)[0] == reference
            hidden = (~scene.masks).sum(axis=(1, 2))
            assert hidden[reference] == 0 and set(np.delete(hidden, reference)) == {1}
            assert truth["frames"][f"LR{reference:03d}"] == [0, 0]
            assert truth["dates"][f"LR{reference:03d}"] == truth["hr_date"] == 3
            offsets = np.array(list(truth["frames"].values()))
            assert np.abs(offsets).max() == 2


def test_the_dates_of_the_frames() -> None:
    def members(**options: Any) -> list[int]:
        config = WaldConfig(window=24, **options)
        return list(cut_scenes(some_dates(6), config=config)[0][1]["dates"].values())

    assert members() == [0, 1, 2, 3, 4, 5]
    assert members(truth="out") == [0, 1, 2, 4, 5]
    assert members(years="one") == [3] * 6
    half = members(years="half")
    assert half.count(3) == 3 and len(set(half)) == 4
    assert len(members(years="one", looks=9)) == 9


def test_looks_are_equal_but_for_offset_and_noise() -> None:
    config = WaldConfig(window=24, years="one", looks=40)
    scene, truth = cut_scenes(some_dates(), config=config, seed=1)[0]
    offsets = list(truth["frames"].values())
    most = max(offsets, key=offsets.count)
    same = [n for n, offset in enumerate(offsets) if offset == most]
    assert len(same) > 2
    spread = np.std(scene.lr[same].astype(float) - scene.lr[same[0]], axis=(1, 2))[1:]
    np.testing.assert_allclose(spread, 10 * np.sqrt(2), rtol=0.4)


def test_no_data_is_masked() -> None:
    dates = some_dates()
    dates[1, :, :30] = 0
    dates[2, 20:30, :] = 0  # of HR's date
    scene, _ = cut_scenes(dates, config=WaldConfig(window=24, max_offset=0))[0]
    assert not scene.masks[1, :, :7].any() and scene.hr_mask is not None
    first = 2 + 6 - 2  # the margin without an offset
    assert not scene.hr_mask[20 - first : 24].any() and scene.hr_mask[: 20 - first].all()
    clear = scene.masks.sum(axis=(1, 2))
    assert clear.argmax() == scene.reference and (clear == clear.max()).sum() == 1
    # What lies under no-data does not leak into the frame around it.
    assert scene.lr[2][scene.masks[2]].min() > 0.5 * scene.lr[0].min()


def test_deterministic_and_windows_independent() -> None:
    dates = some_dates()
    first, again = (cut_scenes(dates, config=SMALL, seed=5) for _ in range(2))
    for (a, ta), (b, tb) in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.lr, b.lr)
        assert ta == tb
    fewer = cut_scenes(dates[:, :, :50], config=SMALL, seed=5)
    assert len(fewer) < len(first)
    np.testing.assert_array_equal(fewer[0][0].lr, first[0][0].lr)
    assert (cut_scenes(dates, config=SMALL, seed=6)[0][0].lr != first[0][0].lr).any()


def test_data_set(tmp_path: Path) -> None:
    folders = write_wald_dataset(
        tmp_path / "data", some_dates(width=140), config=SMALL, train=(0, 70), columns=(72, 140)
    )
    found = kelvins.find_scenes(tmp_path / "data")
    assert {f.path for f in folders} == {f.path for f in found}
    assert {f.part for f in found} == {"train", "test"}
    norms = kelvins.read_norm(tmp_path / "data" / "norm.csv")
    for folder in found:
        scene = kelvins.read_scene(folder)
        assert scene.scale == 3 and scene.reference == 2 and norms[folder.name] > 0
        truth = json.loads((folder.path / "truth.json").read_text())
        assert set(truth["frames"]) == {f"LR{n:03d}" for n in range(5)}
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="expected a new or empty folder"):
        write_wald_dataset(tmp_path / "data", some_dates(), config=SMALL)
    with pytest.raises(ValueError, match="expected them apart"):
        write_wald_dataset(
            tmp_path / "x", some_dates(width=140), config=SMALL, train=(0, 70), columns=(60, 140)
        )
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("a multiple of 3", {"window": 50}),
        ("one of all, one, half", {"years": "some"}),
        ("in where the frames are looks", {"years": "one", "truth": "out"}),
        ("0 to 500", {"noise": -1.0}),
    ],
)
def test_wrong_settings(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        WaldConfig(**options)


def test_wrong_dates() -> None:
    with pytest.raises(ValueError, match=r"found 20 × 90 pixels, expected 40 × 40"):
        cut_scenes(some_dates()[:, :20], config=SMALL)
    with pytest.raises(ValueError, match=r"found uint8 of shape \(64, 90\)"):
        cut_scenes(some_dates()[0], config=SMALL)
    with pytest.raises(ValueError, match="hr_date: found 5, expected 0 to 4"):
        cut_scenes(some_dates(), config=SMALL, hr_date=5)
    with pytest.raises(ValueError, match="masks: found shape"):
        cut_scenes(some_dates(), np.ones((5, 3, 3), bool), config=SMALL)


# --- files


def write_tiff(path: Path, bands: np.ndarray, left: float, top: float, pitch: float = 5.0) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
    count, height, width = bands.shape
    profile = {
        "driver": "GTiff", "count": count, "height": height, "width": width,
        "dtype": bands.dtype, "crs": "EPSG:26914",
        "transform": rasterio.Affine(pitch, 0, left, 0, -pitch, top),
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as target:
        target.write(bands)


def test_dates_go_to_the_nearest_whole_pixel(tmp_path: Path) -> None:
    ground = np.stack([landscape(40, 50, n).clip(1, 255) for n in range(4)]).astype("u1")
    write_tiff(tmp_path / "a.tif", ground[:, 2:38, 3:45], 15, -10)
    write_tiff(tmp_path / "b.tif", ground[:, 1:39, 5:50], 25 + 1.9, -5 + 2.1)  # less than half
    files = [tmp_path / "a.tif", tmp_path / "b.tif"]
    dates = read_dates(files, band=4)
    assert dates.values.shape == (2, 36, 40) and dates.masks.all()
    np.testing.assert_array_equal(dates.values[0], ground[3, 2:38, 5:45])
    np.testing.assert_array_equal(dates.values[1], dates.values[0])
    some = read_dates(files, band=4, columns=(7, 20))
    np.testing.assert_array_equal(some.values, dates.values[:, :, 7:20])
    with pytest.raises(ValueError, match="found 4 bands, expected band 5"):
        read_dates(files, band=5)
    write_tiff(tmp_path / "c.tif", ground, 0, 0, pitch=6)
    with pytest.raises(ValueError, match=r"c\.tif: found pixels .* like the first"):
        read_dates([*files, tmp_path / "c.tif"])
    write_tiff(tmp_path / "d.tif", ground, 5000, 0)
    with pytest.raises(ValueError, match="no pixel in common"):
        read_dates([*files, tmp_path / "d.tif"])


def test_arrays(tmp_path: Path) -> None:
    dates, masks = some_dates(3, 10, 12), np.ones((3, 10, 12), bool)
    dates[0, 0, 0], masks[1, 2, 3] = 0, False
    np.save(tmp_path / "a.npy", dates)
    np.savez(tmp_path / "a.npz", dates=dates, masks=masks)
    found = read_dates([tmp_path / "a.npy"])
    np.testing.assert_array_equal(found.values, dates)
    assert (~found.masks).sum() == 1 and (~read_dates([tmp_path / "a.npz"]).masks).sum() == 2
    np.save(tmp_path / "flat.npy", dates[0])
    (tmp_path / "text.npy").write_text("no")
    for name, message in [
        ("flat", "expected real dates"),
        ("text", "expected a numpy array of dates"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_dates([tmp_path / f"{name}.npy"])
    with pytest.raises(FileNotFoundError, match="found no such file"):
        read_dates([tmp_path / "none.npy"])
    with pytest.raises(ValueError, match="expected a range within 0 to 12"):
        read_dates([tmp_path / "a.npy"], columns=(5, 13))


def test_without_rasterio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    monkeypatch.delitem(sys.modules, "deepsum_jax.rasters.dates", raising=False)
    with pytest.raises(ValueError, match="expected the extra geo"):
        read_dates([tmp_path / "a.tif"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", some_dates())
    options = ["--output", str(tmp_path / "out"), "--window", "24", "--years", "half"]
    simulate.main([*options, "--from", str(tmp_path / "a.npy")])
    assert "scenes in" in capsys.readouterr().out
    assert len(kelvins.find_scenes(tmp_path / "out")) == 6
    refused = refuser(capsys)
    message = refused(
        simulate.main, *options[:1], tmp_path / "other", "--from", tmp_path / "none.npy"
    )
    assert "none.npy: found no such file" in message
    message = refused(simulate.main, *options[:1], tmp_path / "other")
    assert (
        message == "error: --scenes: found none, expected how many to simulate, or --from RASTER…"
    )


@pytest.mark.skipif(not REAL.is_dir(), reason="the real dates lie beside the checkout only")
def test_real_dates() -> None:
    pytest.importorskip("rasterio", reason="needs the extra geo")
    files = sorted(REAL.glob("*.tif"))
    dates = read_dates(files, band=4, columns=(0, 280))
    assert dates.values.shape == (10, 723, 280)
    assert (~dates.masks).sum(axis=(1, 2)).argmax() == 3  # no-data of 2014 alone
    middle = dates.values[5].astype(float)
    # Moving the second date by a pixel makes it less like the first: it lies where it should.
    blurred = scipy.ndimage.gaussian_filter(dates.values.astype(float), (0, 1, 1))
    here = np.corrcoef(blurred[6].ravel(), middle.ravel())[0, 1]
    for axis in (0, 1):
        moved = np.roll(blurred[6], 2, axis)
        assert np.corrcoef(moved.ravel(), middle.ravel())[0, 1] < here
    assert len(cut_scenes(dates.values, dates.masks)) == 14
