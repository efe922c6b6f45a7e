"""Rasters that come out: georeference, values, validity as cloud-optimised, failures to write."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")

from rasterio.enums import ColorInterp, MaskFlags  # noqa: E402

from deepsum_jax import files  # noqa: E402
from deepsum_jax.rasters import layers, output  # noqa: E402
from deepsum_jax.rasters.georeference import Georeference  # noqa: E402
from deepsum_jax.rasters.values import Lost, converted, holds  # noqa: E402
from deepsum_jax.tiling.source import Strip  # noqa: E402

SCALE = 3
NAMES = ("red", "green", "blue", "nir")


def georeference(
    height: int = 200,
    width: int = 230,
    dtype: str = "uint16",
    nodata: float | None = 0,
    names: tuple[str, ...] = NAMES,
) -> Georeference:
    return Georeference(
        crs=rasterio.crs.CRS.from_epsg(32614),
        transform=rasterio.Affine(10, 0, 500000, 0, -10, 4600000),
        height=height,
        width=width,
        dtype=dtype,
        nodata=nodata,
        scales=(1e-4,) * len(names),
        offsets=(-0.1,) * len(names),
        descriptions=names,
    )


def result(geo: Georeference, invalid: float = 0.1, seed: int = 0) -> Strip:
    """A whole result as one strip: smooth, so that overviews can be foretold."""
    rng = np.random.default_rng(seed)
    height, width, bands = geo.height * SCALE, geo.width * SCALE, len(geo.descriptions)
    image = rng.normal(3000, 50, (height, width, bands)).astype(np.float32)
    image += 3 * np.arange(width, dtype=np.float32)[None, :, None]
    valid = rng.random((height, width)) >= invalid
    spoke = rng.uniform(0.6, 9.4, (height, width)).astype(np.float32)
    return Strip(0, image, valid, np.abs(image) / 100, spoke)


def cut(whole: Strip, step: int) -> Iterator[Strip]:
    for row in range(0, len(whole.valid), step):
        yield Strip(row, *(None if a is None else a[row : row + step] for a in whole[1:]))  # type: ignore[arg-type]


def write(all_layers: list[layers.Layer], whole: Strip, step: int = 100) -> None:
    with output.written(all_layers, {"DEEPSUM_VERSION": "1 & <2>"}) as take:
        for strip in cut(whole, step):
            take(strip)


def assert_valid(path: Path) -> None:
    cogeo = pytest.importorskip("rio_cogeo")
    assert cogeo.cog_validate(path, strict=True, quiet=True) == (True, [], [])


# --- what is in them ----------------------------------------------------------------------------


def test_an_image_as_its_input(tmp_path: Path) -> None:
    geo, path = georeference(), tmp_path / "new" / "sr.tif"
    whole = result(geo)
    write([layers.image(path, geo, SCALE)], whole)
    assert_valid(path)
    with rasterio.open(path) as raster:
        assert raster.crs == geo.crs
        assert raster.bounds == (500000, 4598000, 502300, 4600000)
        assert raster.res == pytest.approx((10 / 3, 10 / 3), rel=1e-12)
        assert raster.shape == (600, 690)
        assert raster.dtypes == ("uint16",) * 4 and raster.nodata == 0
        assert raster.scales == geo.scales and raster.offsets == geo.offsets
        assert raster.descriptions == NAMES
        assert raster.colorinterp == (
            ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined,
        )  # fmt: skip
        assert raster.tags()["DEEPSUM_VERSION"] == "1 & <2>"
        assert set(raster.tags()) == {"DEEPSUM_VERSION", "AREA_OR_POINT"}
        assert raster.block_shapes == [(512, 512)] * 4 and raster.overviews(1) == [2]
        found = np.moveaxis(raster.read(), 0, -1)
        coarse = raster.read(1, out_shape=(300, 345))
    expected = np.where(whole.valid[..., None], np.rint(whole.image), 0)
    np.testing.assert_array_equal(found, expected)
    quarters = np.where(whole.valid, whole.image[..., 0], np.nan).reshape(300, 2, 345, 2)
    with np.errstate(invalid="ignore"):
        known = np.nansum(quarters, axis=(1, 3)) / np.maximum(np.isfinite(quarters).sum((1, 3)), 1)
    assert np.abs(coarse - known).max() <= 1.5  # where nodata had a say it would be hundreds
    assert os.listdir(path.parent) == ["sr.tif"]


def test_what_accompanies_an_image(tmp_path: Path) -> None:
    geo = georeference(names=("", "nir"))
    whole = result(geo)
    error, frames = tmp_path / "se.tif", tmp_path / "n.tif"
    write([layers.standard_error(error, geo, SCALE), layers.frames(frames, geo, SCALE)], whole)
    for path in (error, frames):
        assert_valid(path)
    with rasterio.open(error) as raster:
        assert raster.dtypes == ("float32",) * 2 and np.isnan(raster.nodata)
        assert raster.descriptions == ("standard error of band 1", "standard error of nir")
        assert raster.scales == geo.scales and raster.offsets == (0, 0)
        assert whole.standard_error is not None
        expected = np.where(whole.valid[..., None], whole.standard_error, np.nan)
        np.testing.assert_array_equal(np.moveaxis(raster.read(), 0, -1), expected)
    with rasterio.open(frames) as raster:
        assert raster.dtypes == ("uint8",) and raster.nodata is None
        assert whole.frames_per_pixel is not None
        expected = np.where(whole.valid, np.rint(whole.frames_per_pixel), 0)
        np.testing.assert_array_equal(raster.read(1), expected)


@pytest.mark.parametrize("cuts", [(600, 7)])
def test_the_same_strips_are_the_same_bytes(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    geo = georeference()
    for step in cuts:
        write([layers.image(tmp_path / f"{step}.tif", geo, SCALE)], result(geo), step)
    one, other = ((tmp_path / f"{step}.tif").read_bytes() for step in cuts)
    assert one == other


@pytest.mark.parametrize(
    ("dtype", "nodata", "flag"),
    [
        ("float32", None, MaskFlags.nodata),
        ("uint8", None, MaskFlags.per_dataset),
        ("int16", None, MaskFlags.per_dataset),
        ("uint16", -9999, MaskFlags.per_dataset),
        ("float64", -9999, MaskFlags.nodata),
    ],
)
@pytest.mark.parametrize("invalid", [0.1, 0.0])
def test_invalid_pixels(
    tmp_path: Path, dtype: str, nodata: float | None, flag: MaskFlags, invalid: float
) -> None:
    """They are hidden, whether or not the input had a no-data value; one is not made up."""
    geo, path = georeference(190, 190, nodata=nodata, names=("pan",)), tmp_path / "sr.tif"
    whole = result(geo, invalid)
    whole = whole._replace(image=whole.image / 20)
    write([layers.image(path, geo, SCALE, dtype)], whole)
    assert_valid(path)
    with rasterio.open(path) as raster:
        hidden = raster.dataset_mask() == 0
        kept = flag == MaskFlags.nodata and nodata is not None
        expected = flag if invalid or kept else MaskFlags.all_valid
        assert raster.mask_flag_enums[0] == [expected]
        assert raster.dtypes == (dtype,)
    np.testing.assert_array_equal(hidden, ~whole.valid)


def test_colours(tmp_path: Path) -> None:
    """Near infrared that a file calls alpha is no transparency."""
    geo, path = georeference(60, 60, "uint8", names=("", "", "", "")), tmp_path / "sr.tif"
    for found, expected in {
        ("red", "green", "blue", "alpha"): ["red", "green", "blue", "undefined"],
        ("palette", "undefined", "undefined", "undefined"): ["gray"] + ["undefined"] * 3,
        (): ["gray"] + ["undefined"] * 3,
    }.items():
        with pytest.warns(UserWarning, match="clipped"):
            write([layers.image(path, geo, SCALE, colours=found)], result(geo))
        with rasterio.open(path) as raster:
            assert [c.name for c in raster.colorinterp] == expected


def test_no_crs_and_a_rotated_grid(tmp_path: Path) -> None:
    geo, path = georeference(60, 60, names=("pan",)), tmp_path / "sr.tif"
    turned = rasterio.Affine(9, 1, 100, 1, -9, 200)
    geo = Georeference(**{**vars(geo), "crs": None, "transform": turned})
    write([layers.image(path, geo, SCALE)], result(geo))
    with rasterio.open(path) as raster:
        assert raster.crs is None
        assert raster.transform.almost_equals(rasterio.Affine(3, 1 / 3, 100, 1 / 3, -3, 200), 1e-9)


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "nodata", "values", "expected"),
    [
        ("uint8", 0, [-3, 0, 0.3, 0.7, 255.4, 256], [1, 1, 1, 1, 255, 255]),
        ("uint8", 255, [254.6, 255, 300, 7.5], [254, 254, 254, 8]),
        ("int16", -9999, [-9999.4, -9998.7, -9999, -40000], [-10000, -9998, -9998, -32768]),
        ("uint32", None, [5e9, 2.0], [2**32 - 1, 2]),
        ("float32", None, [0.1, np.inf], [np.float32(0.1), np.inf]),
    ],
)
def test_values_in_a_dtype(
    dtype: str, nodata: float | None, values: list[float], expected: list[float]
) -> None:
    given = np.asarray(values, np.float64).reshape(1, -1, 1)
    valid = np.isfinite(given[..., 0])
    lost = Lost()
    found = converted(given, valid, np.dtype(dtype), nodata, lost)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[valid][:, 0], np.asarray(expected)[valid[0]])
    low, high = {"f": (-np.inf, np.inf)}.get(found.dtype.kind) or (
        np.iinfo(dtype).min, np.iinfo(dtype).max,
    )  # fmt: skip
    assert lost.below == sum(round(v) < low for v in np.asarray(values)[valid[0]])
    assert lost.above == sum(round(v) > high for v in np.asarray(values)[valid[0]])


def test_a_float_that_is_the_no_data_value() -> None:
    given = np.array([[[-9999.0], [0.0]]], np.float32)
    found = converted(given, np.array([[True, False]]), np.dtype("float32"), -9999, Lost())
    assert found[0, 0, 0] != -9999 and abs(found[0, 0, 0] + 9999) < 0.01
    assert found[0, 1, 0] == -9999


def test_no_data_values_that_a_dtype_holds() -> None:
    lowest = float(np.finfo(np.float32).min)
    assert holds(np.dtype("float32"), lowest) and not holds(np.dtype("float32"), -1e300)
    assert holds(np.dtype("float32"), float("nan")) and not holds(np.dtype("int16"), float("nan"))
    assert holds(np.dtype("uint8"), 255) and not holds(np.dtype("uint8"), 256)
    assert not holds(np.dtype("uint8"), 1.5) and not holds(np.dtype("uint8"), None)


def test_clipped_values_are_counted(tmp_path: Path) -> None:
    geo, path = georeference(50, 50, names=("pan",)), tmp_path / "sr.tif"
    whole = result(geo, 0)
    whole.image[0, :5], whole.image[9, :3] = -2, 70000
    with pytest.warns(UserWarning, match=r"clipped 8 of 22500 .*5 below 0, 3 above 65535") as seen:
        write([layers.image(path, geo, SCALE)], whole)
    assert "\n" not in str(seen[0].message) and str(path) in str(seen[0].message)


# --- failures -----------------------------------------------------------------------------------


def test_dtypes_that_no_image_has() -> None:
    for name in ("complex64", "text", "bool"):
        with pytest.raises(ValueError, match=f"dtype: found {name}, expected one of uint8"):
            layers.image(Path("sr.tif"), georeference(), SCALE, name)


def test_rows_that_do_not_follow(tmp_path: Path) -> None:
    geo, path = georeference(50, 50), tmp_path / "sr.tif"
    path.write_bytes(b"before")
    for chosen in (slice(1, None), slice(None, -1)):
        with pytest.raises(ValueError, match="rows"):  # noqa: SIM117
            with output.written([layers.image(path, geo, SCALE)], {}) as take:
                for strip in list(cut(result(geo), 50))[chosen]:
                    take(strip)
    bare = result(geo)._replace(standard_error=None)
    with pytest.raises(ValueError, match="expected one that gives it"):
        error = layers.standard_error(tmp_path / "se.tif", geo, SCALE)
        write([layers.image(path, geo, SCALE), error], bare)
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["sr.tif"]


def test_unwritable_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "sr.tif"):
        with pytest.raises(ValueError, match="expected a f"):  # noqa: SIM117
            with output.written([layers.image(path, georeference(), SCALE)], {}):
                pytest.fail("the work began")


LIMITED = """
import sys
from pathlib import Path
import test_rasters_output as t
t.limited(Path(sys.argv[1]), int(sys.argv[2]))
"""


def limited(path: Path, most: int) -> None:
    """Writes two rasters where no file may have more than so many bytes: a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    geo = georeference(200, 200, "uint8", names=("pan",))
    whole = result(geo, 0)
    whole = whole._replace(image=np.random.default_rng(0).uniform(1, 255, whole.image.shape))
    try:
        write([layers.frames(path.with_name("n.tif"), geo, SCALE),
               layers.image(path, geo, SCALE)], whole)  # fmt: skip
    except OSError as error:
        print(error)


def run_limited(path: Path, most: int) -> tuple[str, str]:
    here = os.pathsep.join((str(Path(__file__).parents[1]), str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), str(most)],
        env={**os.environ, "PYTHONPATH": here}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr


@pytest.mark.parametrize("most", [200_000, 370_000, 400_000, 450_000])
def test_no_room(tmp_path: Path, most: int) -> None:
    """For the rows (360 kB), or for the GeoTIFF that GDAL makes of them (475 kB): one line, and
    neither file is there, though the smaller one was made."""
    said, _ = run_limited(tmp_path / "sr.tif", most)
    assert len(said.splitlines()) == 1 and ".tif: found that it cannot be written" in said
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize("kilobytes", [300, 900, 1000])
def test_a_full_disk(tmp_path: Path, kilobytes: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    try:
        said, more = run_limited(disk / "sr.tif", 10**9)
        assert len(said.splitlines()) == 1 and ".tif: found that it cannot be written" in said
        assert "No space" in said or "0 MB are free" in said
        assert more == ""
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


KILLED = """
import sys, os, signal
from pathlib import Path
import test_rasters_output as t
geo = t.georeference(50, 50)
with t.output.written([t.layers.image(Path(sys.argv[1]), geo, 3)], {}) as take:
    take(next(t.cut(t.result(geo), 50)))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    path = tmp_path / "sr.tif"
    here = os.pathsep.join((str(Path(__file__).parents[1]), str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], env={**os.environ, "PYTHONPATH": here}
    )
    assert done.returncode == -signal.SIGKILL
    assert not path.exists() and len(os.listdir(tmp_path)) == 1
    geo = georeference(50, 50)
    with pytest.raises(ValueError, match="found 0 rows"):  # noqa: SIM117
        with output.written([layers.image(path, geo, SCALE)], {}):
            (living,) = os.listdir(tmp_path)  # the dead one's are gone
            assert f".{os.getpid()}." in living
            files.sweep(tmp_path)
            assert os.listdir(tmp_path) == [living]
    assert os.listdir(tmp_path) == []
