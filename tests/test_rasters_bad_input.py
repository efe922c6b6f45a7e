"""Rasters that do not do: one line, status 2, and nothing beside the output."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rasterio", reason="needs the extra geo")

import rasterio
import rasterio.shutil
from helpers import contents, landscape, refuser
from rastering import grid, write

from deepsum_jax import cli, locks
from deepsum_jax.predict import main
from deepsum_jax.tiling.store import Folder

GROUND = np.rint(8 * landscape(60, 60)).astype(np.uint16)


def image(row: int = 0, size: int = 24, bands: int = 1) -> np.ndarray:
    return np.repeat(GROUND[row : row + size, row : row + size, None], bands, axis=2)


@pytest.fixture
def dates(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / f"{n}.tif", image(n), grid(n, n)) for n in range(3)]


Refuse = Callable[..., str]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refuse:
    """Runs the command on what must be refused; nothing appears or changes but what a warning
    says."""
    refused = refuser(capsys)

    def refuse(*arguments: Any, output: Any = None) -> str:
        path = tmp_path / "sr.tif" if output is None else output
        before = contents(tmp_path)
        message = refused(main, "--system", "bicubic_mean", "--output", path, *arguments)
        assert contents(tmp_path) == before
        return message.replace(f"{tmp_path}/", "")

    return refuse


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refuse:
    """The same of what goes wrong when the dates have been told of."""

    def fail(*arguments: Any, output: Any) -> str:
        before = contents(tmp_path)
        command = ["--system", "bicubic_mean", "--output", output, *arguments]
        with pytest.raises(SystemExit) as stopped:
            cli.run(lambda: main([str(a) for a in command]))
        assert stopped.value.code == 2
        assert contents(tmp_path) == before
        *said, message = capsys.readouterr().err.splitlines()
        assert said[0].startswith("date, reliable")
        assert message.startswith("error: ")
        assert not [line for line in said if "error" in line or "Traceback" in line]
        return message

    return fail


def test_what_comes_of_good_ones(dates: list[Path], tmp_path: Path) -> None:
    """What the others lack is not the cause that they are refused."""
    main(["--system", "bicubic_mean", "--output", str(tmp_path / "sr.tif"), *map(str, dates)])
    assert sorted(os.listdir(tmp_path)) == ["0.tif", "1.tif", "2.tif", "sr.tif"]


# --- files --------------------------------------------------------------------------------------


def test_files_that_are_none(dates: list[Path], refuse: Refuse, tmp_path: Path) -> None:
    assert refuse(*dates, tmp_path / "no.tif") == "error: no.tif: no such file"
    (tmp_path / "text.tif").write_text("no raster\nat all")
    assert refuse(*dates, tmp_path / "text.tif").startswith("error: text.tif: found no raster")
    (tmp_path / "empty.tif").write_bytes(b"")
    assert refuse(*dates, tmp_path / "empty.tif").startswith("error: empty.tif: found no raster")
    os.mkfifo(tmp_path / "pipe.tif")
    assert "found a folder, device or pipe" in refuse(*dates, tmp_path / "pipe.tif")
    (tmp_path / "folder").mkdir()
    shutil.copy(dates[0], tmp_path / "folder")
    assert refuse(tmp_path / "folder") == (
        "error: folder: found a folder of rasters, expected the files, as folder/*.tif"
    )


def test_no_files(refuse: Refuse, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--system", "bicubic_mean", "--output", "sr.tif"])
    assert stopped.value.code == 2
    assert "INPUT" in capsys.readouterr().err.splitlines()[-1]


def test_pngs_beside_rasters(dates: list[Path], refuse: Refuse, tmp_path: Path) -> None:
    with (
        pytest.warns(rasterio.errors.NotGeoreferencedWarning),
        rasterio.open(
            tmp_path / "a.png", "w", driver="PNG", height=24, width=24, count=1, dtype="uint16"
        ) as file,
    ):
        file.write(image()[..., 0], 1)
    for inputs in ((*dates, tmp_path / "a.png"), (tmp_path / "a.png", *dates)):
        assert "a.png" in refuse(*inputs)
        assert "raster" in refuse(*inputs)


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("tiled", [True, False])
def test_a_file_that_is_cut_short(
    share: float, tiled: bool, refuse: Refuse, tmp_path: Path
) -> None:
    paths = []
    for n in range(2):
        noise = np.random.default_rng(n).integers(1, 60000, (150, 150)).astype(np.uint16)
        block: dict[str, Any] = {"tiled": True, "blockxsize": 32, "blockysize": 32} if tiled else {}
        paths.append(write(tmp_path / f"{n}.tif", noise, compress="deflate", **block))
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: int(share * len(whole))])
    message = refuse(*paths)
    assert message.startswith("error: 1.tif: found")
    assert "cut short" in message or "GDAL reads" in message


def test_a_file_that_breaks_while_tiles_are_made(
    dates: list[Path], fail: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was begun is worth nothing with other inputs, and goes."""
    save = Folder.save

    def failing(self: Folder, name: str, array: np.ndarray) -> None:
        save(self, name, array)
        raise ValueError("0.tif: found a raster that is cut short")

    monkeypatch.setattr(Folder, "save", failing)
    assert "cut short" in fail(*dates, output=tmp_path / "sr.tif")


def test_complex_values(dates: list[Path], refuse: Refuse, tmp_path: Path) -> None:
    path = write(tmp_path / "c.tif", image().astype(np.complex64))
    assert refuse(*dates, path) == "error: c.tif: found complex64 values, expected real numbers"


def test_one_date_twice(dates: list[Path], refuse: Refuse, tmp_path: Path) -> None:
    assert refuse(*dates, dates[0]) == "error: 0.tif: found this file twice, expected each once"
    (tmp_path / "link.tif").symlink_to(dates[0])
    assert "link.tif: found this file twice" in refuse(*dates, tmp_path / "link.tif")
    shutil.copy(dates[0], tmp_path / "copy.tif")
    assert "copy.tif: found the same image as 0.tif" in refuse(*dates, tmp_path / "copy.tif")


# --- grids and bands ----------------------------------------------------------------------------


def test_grids_that_do_not_go_together(dates: list[Path], refuse: Refuse, tmp_path: Path) -> None:
    crs = write(tmp_path / "crs.tif", image(3), crs="EPSG:32617")
    message = refuse("--reference", "first", *dates, crs)
    assert message.startswith("error: crs.tif: found CRS EPSG:32617, expected EPSG:32618 of 0.tif")
    assert "--warp" in message
    coarse = write(tmp_path / "coarse.tif", image(3), grid(0, 0, (20, 20)))
    message = refuse("--reference", "first", *dates, coarse)
    assert message.startswith("error: coarse.tif: found pixels of 20 × 20, expected 10 × 10")
    far = write(tmp_path / "far.tif", image(3), grid(1000))
    assert "far.tif: found no overlap with 0.tif" in refuse("--reference", "first", *dates, far)


def test_parts_that_there_are_not(dates: list[Path], refuse: Refuse) -> None:
    assert refuse("--bounds", 0, 0, 9, 9, *dates).startswith("error: --bounds: found no overlap")
    assert refuse("--window", 0, 0, 99, 9, *dates).startswith("error: --window: found rows 0 to 99")
    assert "found 12×20 pixels, expected at least 16×16" in refuse("--window", 0, 0, 12, 20, *dates)


def test_bands_that_there_are_not(dates: list[Path], refuse: Refuse, tmp_path: Path) -> None:
    assert refuse("--bands", 2, *dates) == "error: 0.tif: found no band 2, expected 1 to 1"
    named = write(tmp_path / "n.tif", image(4, bands=2), names=("red", "nir"))
    assert "did you mean 'nir'" in refuse("--bands", "nri", named)
    assert "found dates of 1 to 2 bands" in refuse(*dates, named)


def test_references_that_there_are_not(dates: list[Path], refuse: Refuse) -> None:
    assert "--reference: found 3, expected 0 to 2" in refuse("--reference", 3, *dates)
    assert "--reference: found x.tif" in refuse("--reference", "x.tif", *dates)


# --- masks --------------------------------------------------------------------------------------


def test_all_cloud(dates: list[Path], refuse: Refuse, tmp_path: Path) -> None:
    cloud = write(tmp_path / "m.tif", np.zeros((60, 60), np.uint8), grid(-9, -9))
    assert "found no reliable pixel" in refuse("--masks", cloud, "--", *dates)
    for path in dates:
        with rasterio.open(path, "r+") as file:
            file.write(np.zeros((1, 24, 24), np.uint16))
            file.update_tags(n=path.stem)
            file.nodata = 0
    assert "found no reliable pixel" in refuse(*dates)


def test_a_reference_that_is_all_cloud(dates: list[Path], refuse: Refuse, tmp_path: Path) -> None:
    masks = [
        write(tmp_path / f"m{n}.tif", np.full((24, 24), n > 0, np.uint8), grid(n, n))
        for n in range(3)
    ]
    message = refuse("--reference", dates[0], *dates, "--masks", *masks)
    assert "found no reliable pixel in 0" in message


def test_masks_that_do_not_fit(dates: list[Path], refuse: Refuse, tmp_path: Path) -> None:
    mask = write(tmp_path / "m.tif", np.ones((24, 24), np.uint8))
    other = write(tmp_path / "o.tif", np.ones((24, 24), np.uint8))
    assert "--masks: found 2 files for 3 dates" in refuse(*dates, "--masks", mask, other)
    assert "nothere.tif: no such file" in refuse(*dates, "--masks", tmp_path / "nothere.tif")
    assert "found no 'B4' in 0.tif" in refuse("--mask-pattern", "B4=QA", *dates)
    assert "x.tif: no such file" in refuse("--mask-pattern", "0=x", dates[0])
    assert "--qa: found no mask files" in refuse("--qa", "scl", *dates)


# --- outputs ------------------------------------------------------------------------------------


def test_outputs_that_are_inputs(dates: list[Path], refuse: Refuse, tmp_path: Path) -> None:
    assert "found one of the inputs" in refuse(*dates, output=dates[1])
    (tmp_path / "link.tif").symlink_to(dates[1])
    assert "found one of the inputs" in refuse(*dates, output=tmp_path / "link.tif")
    pair = f"{dates[0]}+{write(tmp_path / 'b.tif', image(1))}"
    assert "found one of the inputs" in refuse(pair, output=tmp_path / "b.tif")
    rasterio.shutil.copy(dates[1], tmp_path / "date.vrt", driver="VRT")
    assert "found one of the inputs" in refuse(dates[0], tmp_path / "date.vrt", output=dates[1])
    mask = write(tmp_path / "0m.tif", np.ones((24, 24), np.uint8))
    assert "found one of the inputs" in refuse(
        "--mask-pattern", "0.tif=0m.tif", dates[0], output=mask
    )
    assert "found the file of --output" in refuse(*dates, "--preview", tmp_path / "p.png",
                                                  output=tmp_path / "p.png")  # fmt: skip


def test_outputs_that_cannot_be_written(dates: list[Path], refuse: Refuse, tmp_path: Path) -> None:
    message = refuse(*dates, output=tmp_path / "sr.png")
    assert "found suffix '.png' for rasters (0.tif …), expected .tif" in message
    assert "found a folder" in refuse(*dates, output=tmp_path)
    assert "is a file, expected a folder" in refuse(*dates, output=dates[0] / "sr.tif")
    (tmp_path / "closed").mkdir(mode=0o500)
    if not os.access(tmp_path / "closed", os.W_OK):  # who is root may write
        assert "no permission" in refuse(*dates, output=tmp_path / "closed" / "sr.tif")


def test_an_output_that_another_process_writes(
    dates: list[Path], fail: Refuse, tmp_path: Path
) -> None:
    partial = tmp_path / ".sr.tif.partial"
    partial.mkdir()
    with locks.locked(partial, "writing sr.tif", "name another --output"):
        message = fail(*dates, output=tmp_path / "sr.tif")
    assert f"found process {os.getpid()} on " in message and "name another --output" in message


def test_words_that_mean_nothing(dates: list[Path], refuse: Refuse) -> None:
    for wrong in ("nonsense", "complex64", "object", "float128", "str"):
        assert f"dtype: found {wrong}, expected one of uint8" in refuse("--dtype", wrong, *dates)
    assert "--set compute.nonsense" in refuse("--set", "compute.nonsense=1", *dates)


def test_a_full_disk(fail: Refuse, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        paths = [write(tmp_path / f"big{n}.tif", GROUND + np.uint16(n)) for n in range(2)]
        message = fail(*paths, "--dtype", "float64", output=small / "sr.tif")
        assert "No space left" in message or "free" in message
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("driver", ["JP2OpenJPEG", "VRT", "HFA", "PNG"])
def test_what_else_gdal_reads(driver: str, dates: list[Path], tmp_path: Path) -> None:
    """Anything but PNGs, which are for scenes without a place."""
    known = rasterio.drivers.raster_driver_extensions()
    if driver not in known.values():
        pytest.skip(f"GDAL has no {driver}")
    suffix = {"JP2OpenJPEG": ".jp2", "VRT": ".vrt", "HFA": ".img", "PNG": ".png"}[driver]
    paths = []
    options = {"QUALITY": "100", "REVERSIBLE": "YES"} if driver == "JP2OpenJPEG" else {}
    for path in dates:
        paths.append(tmp_path / "other" / f"{path.stem}{suffix}")
        paths[-1].parent.mkdir(exist_ok=True)
        rasterio.shutil.copy(path, paths[-1], driver=driver, **options)
    command = ["--system", "bicubic_mean", "--output"]
    if driver == "PNG":
        with pytest.raises(ValueError, match=r"found suffix '\.tif'"):
            main([*command, str(tmp_path / "sr.tif"), *map(str, paths)])
        return
    main([*command, str(tmp_path / "sr.tif"), *map(str, paths)])
    main([*command, str(tmp_path / "wanted.tif"), *map(str, dates)])
    found, wanted = (rasterio.open(tmp_path / n).read() for n in ("sr.tif", "wanted.tif"))
    np.testing.assert_array_equal(found, wanted)
