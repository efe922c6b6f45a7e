"""`deepsum predict` on rasters, end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rasterio", reason="needs the extra geo")

import rasterio
import rasterio.shutil
from helpers import contents, landscape
from rastering import grid, write
from rasterio.enums import MaskFlags
from rasterio.transform import Affine

from deepsum_jax.predict import main
from deepsum_jax.tiling.store import Folder

Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the command with its output in a folder of its own."""

    def run(output: str, *arguments: Any, system: str = "bicubic_mean") -> None:
        path = tmp_path / "out" / output
        main(["--system", system, "--output", str(path), *(str(a) for a in arguments)])

    return run


def stack(
    folder: Path, size: tuple[int, int] = (30, 40), dates: int = 3, bands: int = 1,
    hidden: float = 0.1, **options: Any,
) -> list[Path]:  # fmt: skip
    """Dates of one landscape, each a little aside and with holes of the no-data value 0."""
    ground = 8 * landscape(size[0] + 10, size[1] + 10)
    paths = []
    for n in range(dates):
        rng = np.random.default_rng(n)
        row, column = 2 * n % 5, 3 * n % 7
        image = ground[row : row + size[0], column : column + size[1], None] + 60 * np.arange(bands)
        image = np.rint(np.clip(image, 1, 4000)).astype(np.uint16)
        image[rng.random(size) < hidden] = 0
        place = grid(row + (0.2 * n if n < 3 else 0), column - 0.1 * n)
        options = {"nodata": 0, **options}
        paths.append(write(folder / f"2024-0{n + 1}-01.tif", image, place, **options))
    return paths


def profile(path: Path) -> dict[str, Any]:
    with rasterio.open(path) as file:
        return {**file.profile, "bounds": tuple(file.bounds), "res": file.res}


# --- where it lies, and what its numbers are ----------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bounds_crs_pixel_size_and_nodata_are_exact(scale: int, run: Run, tmp_path: Path) -> None:
    paths = stack(tmp_path, bands=2, names=("red", "nir"))
    with rasterio.open(paths[1], "r+") as file:
        file.scales, file.offsets = (1e-4,) * 2, (-0.1,) * 2
    with pytest.warns(UserWarning, match="scale and offset"):
        run("sr.tif", "--reference", paths[1], "--scale", scale, *paths)
    given, found = profile(paths[1]), profile(tmp_path / "out" / "sr.tif")
    assert found["bounds"] == pytest.approx(given["bounds"], abs=1e-6)
    assert found["crs"] == given["crs"]
    assert found["res"] == pytest.approx([v / scale for v in given["res"]], rel=1e-12)
    assert (found["height"], found["width"]) == (30 * scale, 40 * scale)
    assert (found["dtype"], found["nodata"], found["count"]) == ("uint16", 0, 2)
    with rasterio.open(tmp_path / "out" / "sr.tif") as file:
        assert file.descriptions == ("red", "nir")
        assert (file.scales, file.offsets) == ((1e-4,) * 2, (-0.1,) * 2)
        tags = file.tags()
    assert tags["DEEPSUM_REFERENCE"] == "2024-02-01"
    assert set(json.loads(tags["DEEPSUM_DATES"])) == {"2024-01-01", "2024-02-01", "2024-03-01"}
    assert os.listdir(tmp_path / "out") == ["sr.tif"]


def test_a_window_and_bounds_are_that_part(run: Run, tmp_path: Path) -> None:
    paths = stack(tmp_path)
    run("w.tif", "--window", 4, 6, 20, 24, "--reference", "first", *paths)
    left, top = grid(4, 6) @ (0, 0)
    assert profile(tmp_path / "out" / "w.tif")["bounds"] == (left, top - 200, left + 240, top)
    run("b.tif", "--reference", "first", "--bounds", left, top - 200, left + 240, top, *paths)
    w, b = (rasterio.open(tmp_path / "out" / n).read() for n in ("w.tif", "b.tif"))
    np.testing.assert_array_equal(w, b)


def test_the_image_is_the_ground_at_its_place(run: Run, tmp_path: Path) -> None:
    """A mean of frames: every block of 3×3 is what the dates saw there, about."""
    paths = stack(tmp_path, hidden=0)
    run("sr.tif", "--reference", "first", *paths)
    image = rasterio.open(tmp_path / "out" / "sr.tif").read(1).astype(float)
    own = rasterio.open(paths[0]).read(1).astype(float)
    means = image.reshape(30, 3, 40, 3).mean(axis=(1, 3))

    def unlike(other: np.ndarray) -> float:
        return float(np.std((other - own)[3:-3, 3:-3]))

    assert unlike(means) < 0.5 * min(unlike(np.roll(means, s, a)) for s in (1, -1) for a in (0, 1))


@pytest.mark.parametrize("south_up", [False, True])
def test_rotated_and_south_up_rasters_keep_their_way(
    south_up: bool, run: Run, tmp_path: Path
) -> None:
    way = Affine.scale(1, -1) if south_up else Affine.rotation(30)
    paths = [
        write(tmp_path / f"{n}.tif", np.rint(10 * landscape(30, 40, 3)).astype(np.uint16) + n,
              grid() @ way)
        for n in range(2)
    ]  # fmt: skip
    run("sr.tif", *paths)
    found = profile(tmp_path / "out" / "sr.tif")["transform"]
    assert found.almost_equals(grid() @ way @ Affine.scale(1 / 3), 1e-6)


def test_of_uint8_with_nodata_0_nothing_valid_comes_out_as_0(run: Run, tmp_path: Path) -> None:
    """Values of 1 beside holes, which any interpolation that rings takes below 0."""
    rng = np.random.default_rng(0)
    paths = []
    for n in range(3):
        image = np.where(rng.random((30, 40)) < 0.5, 1, 200).astype(np.uint8)
        image[:6, :6] = 0  # in none
        paths.append(write(tmp_path / f"{n}.tif", image, nodata=0))
    with pytest.warns(UserWarning, match="clipped"):
        run("sr.tif", *paths, system="ibp")
    with rasterio.open(tmp_path / "out" / "sr.tif") as file:
        image, valid = file.read(1), file.dataset_mask() > 0
    assert not valid[:15, :15].any()
    assert valid[21:, 21:].all()
    assert (image[~valid] == 0).all()
    assert (image[valid] > 0).all()
    assert (image == 1).sum() > 100  # where there was something to be lost


def test_dates_partly_beyond_and_frames_that_tell_so(run: Run, tmp_path: Path) -> None:
    """Two dates on the left, five on the right: the frames raster says which is which."""
    ground = 1000 + np.rint(10 * landscape(30, 100)).astype(np.uint16)
    rng = np.random.default_rng(0)
    paths = []
    for n in range(5):
        first = 0 if n < 2 else 50
        image = ground[:, first:] + rng.integers(0, 4, (30, 100 - first)).astype(np.uint16)
        paths.append(write(tmp_path / f"{n}.tif", image, grid(0, first)))
    place = tmp_path / "out" / "n.tif"
    run("sr.tif", "--frames", place, "--reference", "first", *paths, system="robust_ibp")
    with rasterio.open(tmp_path / "out" / "n.tif") as file:
        spoke = file.read(1)
        assert (file.dtypes, file.nodata) == (("uint8",), None)
        assert file.bounds == rasterio.open(paths[0]).bounds
    assert spoke.max() <= 5
    assert spoke[10:-10, 10:120].max() <= 2
    assert spoke[10:-10, 180:-10].mean() > 3


def test_an_internal_mask_where_the_dtype_has_no_room_for_nodata(run: Run, tmp_path: Path) -> None:
    mask = np.ones((30, 40), bool)
    mask[10:20, 10:20] = False
    paths = []
    for n in range(2):
        image = np.random.default_rng(n).integers(0, 255, (30, 40)).astype(np.uint8)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            paths.append(write(tmp_path / f"{n}.tif", image, mask=mask))
    run("sr.tif", *paths)
    with rasterio.open(tmp_path / "out" / "sr.tif") as file:
        assert file.nodata is None
        assert MaskFlags.per_dataset in file.mask_flag_enums[0]
        found = file.dataset_mask() > 0
    np.testing.assert_array_equal(found, np.kron(mask, np.ones((3, 3))) > 0)


def test_dtype(run: Run, tmp_path: Path) -> None:
    paths = stack(tmp_path)
    run("sr.tif", "--dtype", "float32", *paths)
    found = profile(tmp_path / "out" / "sr.tif")
    assert (found["dtype"], found["nodata"]) == ("float32", 0)


def test_the_same_bytes_whatever_the_memory_and_in_any_run(run: Run, tmp_path: Path) -> None:
    paths = stack(tmp_path, (150, 140))
    for name, memory in (("a", 0.01), ("b", 8), ("c", 8)):
        (tmp_path / "out" / name).mkdir(parents=True)
        run(f"{name}/sr.tif", "--memory", memory, *paths)
    a, b, c = (contents(tmp_path / "out" / name) for name in "abc")
    assert list(a) == ["sr.tif"]
    assert a == b == c


# --- killed and started again -------------------------------------------------------------------


class Killed(BaseException):
    """As a signal would be: nothing catches it."""


@pytest.mark.parametrize("system", ["bicubic_mean", "robust_ibp"])
def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    system: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    paths = stack(tmp_path, (420, 20))  # five tiles
    arguments = ["--memory", 0.01, "--reference", "first", "--dtype", "float32", *paths]
    if system == "robust_ibp":
        arguments = ["--frames", tmp_path / "out" / "n.tif", *arguments]
    run("sr.tif", *arguments, system=system)
    wanted = contents(tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    save, saved = Folder.save, 0
    rng = np.random.default_rng(0)
    kills = 0

    def dying(self: Folder, name: str, array: np.ndarray) -> None:
        nonlocal saved
        if saved == moment:
            raise Killed
        save(self, name, array)
        saved += 1

    monkeypatch.setattr(Folder, "save", dying)
    for _ in range(20):
        moment = saved + int(rng.integers(0, 3))
        try:
            run("sr.tif", *arguments, system=system)
        except Killed:
            kills += 1
            assert not (tmp_path / "out" / "sr.tif").exists()
        else:
            break
    assert kills >= 2
    assert contents(tmp_path / "out") == wanted
    assert "going on from" in capsys.readouterr().err


def test_a_run_killed_by_the_system_goes_on(run: Run, tmp_path: Path) -> None:
    paths = stack(tmp_path, (420, 20))
    arguments = ["--memory", 0.01, "--reference", "first", *paths]
    run("sr.tif", *arguments)
    wanted = contents(tmp_path / "out")
    (tmp_path / "out" / "sr.tif").unlink()
    code = (
        "import time\n"
        "from deepsum_jax.tiling.store import Folder\n"
        "save = Folder.save\n"
        "def slowly(self, *a):\n"
        "    save(self, *a)\n"
        "    time.sleep(0.5)\n"
        "Folder.save = slowly\n"
        "import sys\n"
        "from deepsum_jax.predict import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, "--system", "bicubic_mean"]
    command += ["--output", str(tmp_path / "out" / "sr.tif"), *(str(a) for a in arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    partial = tmp_path / "out" / ".sr.tif.partial"
    while process.poll() is None and len(list(partial.glob("tile*.npy"))) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said.decode()
    assert not (tmp_path / "out" / "sr.tif").exists()
    assert len(list(partial.glob("tile*.npy"))) < 5  # there was something left to do
    run("sr.tif", *arguments)
    assert contents(tmp_path / "out") == wanted


@pytest.mark.parametrize(
    "change",
    [
        "--max-frames=2",
        "--set=compute.self_ensemble=true",
        "--nodata=77",
        "--scale=2",
        "touch",
        "touch source",
    ],
)
def test_what_another_run_left_is_not_used(
    change: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    paths = stack(tmp_path, (150, 20))
    touched = paths[1]
    if change == "touch source":
        paths[1] = tmp_path / "date.vrt"
        rasterio.shutil.copy(touched, paths[1], driver="VRT")
    other = [] if change.startswith("touch") else [change]
    run("wanted.tif", *other, *paths)

    def dying(self: Folder, name: str, array: np.ndarray) -> None:
        save(self, name, array + 1000)
        raise Killed

    save = Folder.save
    monkeypatch.setattr(Folder, "save", dying)
    with pytest.raises(Killed):
        run("sr.tif", *paths)
    monkeypatch.setattr(Folder, "save", save)
    assert (tmp_path / "out" / ".sr.tif.partial").exists()
    if not other:
        os.utime(touched, (1, 1))
    run("sr.tif", *other, *paths)
    assert "going on" not in capsys.readouterr().err
    found, wanted = (rasterio.open(tmp_path / "out" / f"{n}.tif").read() for n in ("sr", "wanted"))
    np.testing.assert_array_equal(found, wanted)
