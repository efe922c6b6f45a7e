"""The Landsat experiment on made-up GeoTIFFs: a plane, known at every ground position."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from pngs import assert_panels

from deepsum_jax import cli, config
from deepsum_jax.bundle import Bundle, save_params
from deepsum_jax.data import kelvins
from deepsum_jax.scoring.company import COMPANY
from deepsum_jax.simulation.dataset import kelvins_norm
from deepsum_jax.systems.table import param_shapes
from experiments import landsat

rasterio = pytest.importorskip("rasterio")

CLEAR, FILL, CLOUD = 2720, 1, 2720 | 1 << 4  # 2720: low confidence in everything
DX = {"013032": 1500.0, "014032": 1506.0}
DAYS = ("013032_20180110", "014032_20180305", "013032_20180402", "014032_20180708")


def ground(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The plane, at metres east and north of a corner: 40 counts a 1500 m pixel, 25 southwards."""
    return 52000 + 40 * (x - 500_000) / 1500 + 25 * (4_500_000 - y) / 1500


def write(path: Path, values: np.ndarray, left: float, top: float, dx: float, dy: float) -> None:
    profile = {
        "driver": "GTiff", "count": 1, "dtype": "uint16", "crs": "EPSG:32618",
        "height": values.shape[0], "width": values.shape[1],
        "transform": rasterio.Affine(dx, 0, left, 0, -dy, top),
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as target:
        target.write(values.astype(np.uint16), 1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four dates with their own origins, a wedge without data, a cloud, and fill."""
    folder = tmp_path / "landsat"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n, name in enumerate(DAYS):
        dx, dy = DX[name[:6]], 1504.0
        left, top = 500_000 + rng.uniform(-6000, 0), 4_500_000 + rng.uniform(0, 6000)
        height, width = 104, 60 + n
        x = left + dx * (np.arange(width) + 0.5)
        y = top - dy * (np.arange(height) + 0.5)
        values = ground(x[None], y[:, None])
        if n == 1:  # the swath's slanted edge
            values[np.arange(width)[None] > 40 + np.arange(height)[:, None] / 8] = 0
        # Half the resolution, as delivered: a cloud on the third date, fill on the fourth.
        quality = np.full((height // 2 + 1, width // 2 + 1), CLEAR)
        if n == 2:
            quality[10:20, 8:16] = CLOUD
        if n == 3:
            quality[:, :4] = FILL
        stem = f"LC08_L1TP_{name}"
        write(folder / f"{stem}_B8.TIF", np.rint(values), left, top, dx, dy)
        write(folder / f"{stem}_BQA.TIF", quality, left, top, 2 * dx, 2 * dy)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    model = config.preset("tiny").model
    rng = np.random.default_rng(0)
    shapes = param_shapes(model)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), shapes)
    save_params(tmp_path / "bundle", Bundle(params, model))
    return tmp_path / "bundle"


# --- degrading ----------------------------------------------------------------------------------


def test_a_constant_stays_and_no_data_do_not_bleed() -> None:
    present = np.ones((24, 30), bool)
    present[:, 20:] = False
    values = np.where(present, 60001.0, 0.0)
    low, seen, clear = landsat.degrade(values, present, present, 3)
    np.testing.assert_allclose(low[:, :7], 60001, rtol=1e-12)
    assert seen[:, :7].all() and not seen[:, 7:].any() and (low[:, 7:] == 0).all()
    assert clear[:, :6].all() and not clear[:, 6:].any()


def test_clouds_hide_their_pixels_but_are_seen() -> None:
    values, clear = np.full((27, 27), 1000.0), np.ones((27, 27), bool)
    values[13, 13], clear[13, 13] = 9000.0, False
    low, seen, reliable = landsat.degrade(values, np.ones_like(clear), clear, 3)
    assert seen.all() and np.argwhere(~reliable).tolist() == [[4, 4]]
    assert low[4, 4] > low[4, 5] > 1000


def test_degrading_keeps_the_mean_and_matches_a_plain_sum() -> None:
    rng = np.random.default_rng(1)
    values = np.zeros((36, 36))
    values[12:24, 12:24] = rng.uniform(0, 1000, (12, 12))
    every = np.ones(values.shape, bool)
    low, _, _ = landsat.degrade(values, every, every, 3)
    np.testing.assert_allclose(low.sum() * 9, values.sum(), rtol=1e-9)

    sigma, reach = 0.45 * 3, 5
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    total = 0.0
    for y in range(15, 18):
        for x in range(18, 21):
            near = values[y - reach : y + reach + 1, x - reach : x + reach + 1]
            total += float((kernel * near).sum()) / 9
    np.testing.assert_allclose(low[5, 6], total, rtol=1e-9)


# --- masks and units ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "clear"),
    [
        (CLEAR, True),
        (FILL, False),
        (CLOUD, False),
        (2 << 5, True),
        (3 << 5, False),
        (2 << 7, True),
        (3 << 7, False),
        (3 << 9, False),
        (3 << 11, True),
    ],
)
def test_quality_bits(flags: int, clear: bool) -> None:
    assert landsat.is_clear(np.array([[flags]], np.uint16)).item() is clear


def test_winter_sun_is_low() -> None:
    # The heights at solar noon, 90 - 40.6 ± 23.4 degrees, bound them.
    june, december = (
        np.rad2deg(np.arcsin(landsat.sun_height(d))) for d in ("20180621", "20181221")
    )
    assert 60 < june < 72.8 and 20 < december < 26
    date = landsat.Date(
        "013032_20181221", landsat.Grid(0, 0, 1, 1), np.array([[5000, 9000]], np.uint16),
        np.ones((1, 2), bool), np.ones((1, 2), bool),
    )  # fmt: skip
    corrected = landsat.reflectance(date).values
    assert corrected[0, 0] == 0
    np.testing.assert_allclose(corrected[0, 1], 4000 / landsat.sun_height("20181221"))


def test_flags_lie_where_their_ground_is(source: Path) -> None:
    cloudy, filled = landsat.read_dates(source)[2:]
    hidden = np.zeros(cloudy.clear.shape, bool)
    hidden[20:40, 16:32] = True  # twice the flags' rows and columns
    np.testing.assert_array_equal(cloudy.clear, ~hidden)
    assert cloudy.present.all()
    np.testing.assert_array_equal(filled.present[0], np.arange(63) >= 8)
    # On a grid that starts elsewhere, a pixel takes the flag that its centre lies in.
    coarse, fine = landsat.Grid(0, 100, 20, 20), landsat.Grid(13, 97, 10, 10)
    flags = np.arange(20).reshape(4, 5)
    taken = landsat.nearest(flags, coarse, fine, (3, 3))
    np.testing.assert_array_equal(taken, [[0, 1, 1], [0, 1, 1], [5, 6, 6]])


# --- windows ------------------------------------------------------------------------------------


def test_windows_are_whole_pixels_near_one_ground_position(source: Path) -> None:
    dates = landsat.read_dates(source)
    assert [d.name for d in dates] == list(DAYS)
    centres = landsat.place_windows(dates, 45)
    assert len(centres) == 2
    assert abs(centres[0][0] - centres[1][0]) >= 45 * 1504
    pixel, _ = landsat.common_grid(dates)
    for centre in centres:
        flat = ground(np.array(centre[1]), np.array(centre[0]))
        for date in dates:
            window = landsat.cut(date, centre, 45, pixel)
            assert window.values.shape == (45, 45) and max(map(abs, window.shift)) <= 0.51
            # The plane at the window's centre says where it really lies.
            moved = flat + 25 * window.shift[0] * pixel.dy / 1500
            moved += 40 * window.shift[1] * pixel.dx / 1500
            assert window.values[22, 22] in (0, pytest.approx(moved, abs=0.51))


def test_margins_outside_a_date_are_absent(source: Path) -> None:
    date = landsat.read_dates(source)[0]
    height = len(date.values)
    centre = (date.grid.top - height / 2 * date.grid.dy, date.grid.left)
    window = landsat.cut(date, centre, 10, date.grid, margin=2)
    assert not window.present[:, :7].any() and window.present[:, 7:].all()


def test_scenes_read_back(source: Path, tmp_path: Path) -> None:
    dates = landsat.read_dates(source)
    places = landsat.make_places(dates, 45, 3)
    landsat.write_places(tmp_path / "data", places)
    found = kelvins.find_scenes(tmp_path / "data")
    norm = kelvins.read_norm_for(tmp_path / "data")
    assert [(f.part, f.band, f.name) for f in found] == [
        ("test", "PAN", "imgset0000"),
        ("test", "PAN", "imgset0001"),
    ]
    for folder, place in zip(found, places, strict=True):
        scene = kelvins.read_scene(folder)
        truth = json.loads((folder.path / "truth.json").read_text())
        assert truth["hr_date"] == DAYS[0]  # clear all over, and the earliest
        assert scene.frames == (1, 2, 3)
        assert scene.lr.shape == (3, 15, 15) and scene.hr is not None and scene.scale == 3
        assert scene.hr_mask is not None and scene.hr_mask.all()
        np.testing.assert_array_equal(scene.hr, place.scene.hr)
        assert scene.norm is None and norm[scene.name] == kelvins_norm(scene)
        # A plane survives blur and average: an LR pixel is the mean of the HR pixels it covers,
        # moved by the difference of the shifts.
        blocks = scene.hr.astype(float).reshape(15, 3, 15, 3).mean(axis=(1, 3))
        for number, frame, mask in zip(scene.frames, scene.lr, scene.masks):
            dy, dx = np.subtract(truth["frames"][f"LR{number:03d}"], truth["hr"])
            inner = mask.copy()
            inner[[0, -1]] = inner[:, [0, -1]] = False
            inner &= np.roll(inner, 1, axis=1) & np.roll(inner, -1, axis=1)
            gap = (frame - blocks)[inner] - (25 * dy + 40 * dx)
            assert inner.any() and abs(gap.mean()) < 1 and np.abs(gap).max() < 8
    # The cloud lies in the first window alone, the wedge and the fill show in their frames.
    first, second = (kelvins.read_scene(f) for f in found)
    assert not first.masks[1].all() and second.masks[1].all()
    assert not first.masks[0].all()
    assert first.lr[first.masks].min() > 50000  # no zero has crept into a reliable pixel
    assert first.lr.min() > 50000  # nor stands under a mask


def test_each_clear_date_can_be_hr(source: Path) -> None:
    places = landsat.make_places(landsat.read_dates(source), 45, 3, truths=2)
    assert [p.truth["hr_date"] for p in places][:2] == [DAYS[0], places[1].truth["hr_date"]]
    assert places[1].truth["hr_date"] != DAYS[0] and len(places) == 4


# --- the command --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:1 of 2 scenes look wrong")  # planes of one slope
@pytest.mark.filterwarnings("ignore:what the masks hide agrees")
def test_command(
    source: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command = ["--input", str(source), "--params", str(bundle), "--output", str(output)]
    landsat.main(command)
    printed = capsys.readouterr().out
    assert "mean of 2 scenes" in printed and "Bicubic+Mean" in printed
    assert printed == (output / "results.md").read_text()
    results = json.loads((output / "results.json").read_text())
    assert results["n"] == 2 and results["split"] == "all"
    assert {"cpsnr", *COMPANY} <= results["scenes"][0].keys()
    head, _, first = printed.splitlines()[:3]
    for name, label in COMPANY.items():
        column = head.split(" | ").index(label)
        assert first.split(" | ")[column] == f"{results['scenes'][0][name]:.2f}"
    # The plane, enlarged, is the plane: what looks alike, and where an error is flat.
    assert_panels(output / "panel.png", 2, 7, empty={(0, 5)}, alike=(1, 2, 3, 4))
    values, model = [], config.preset("tiny").model
    for folder in kelvins.find_scenes(output / "data"):
        scene = kelvins.read_scene(folder)
        values.append(scene.lr[scene.masks])
        image = np.load(output / "sr" / f"{folder.name}.npy")
        assert image.shape == (45, 45) and np.isfinite(image).all()
        png = kelvins.read_png16(output / "sr" / f"{folder.name}.png")
        np.testing.assert_array_equal(png, np.clip(np.rint(image), 0, 65535))
    clear = np.concatenate(values).astype(float)
    assert clear.mean() == pytest.approx(model.normalization.lr_mean, abs=1)
    assert clear.std() == pytest.approx(model.normalization.lr_std, abs=1)

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            cli.run(lambda: landsat.main(arguments))
        assert stopped.value.code == 2
        message = capsys.readouterr().err
        assert re.fullmatch(r"error: [^\n]*\n", message)
        return message

    assert "new or empty" in refused(*command)
    command[-1] = str(tmp_path / "other")
    assert "found 0 files" in refused("--input", str(bundle), *command[2:])
    next(source.glob("*_BQA.TIF")).unlink()
    assert "BQA.TIF: no such file" in refused(*command)
    assert not (tmp_path / "other").exists()


def test_without_rasterio(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ValueError, match=r"deepsum_jax\[geo\]"):
        landsat.read_dates(source)
