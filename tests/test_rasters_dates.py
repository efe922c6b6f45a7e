"""One date: bands as raw numbers, and which pixels are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rasterio", reason="needs the extra geo")

import rasterio
from rastering import grid, write
from rasterio.enums import ColorInterp, MaskFlags

from deepsum_jax.rasters.dates import Date, open_raster
from deepsum_jax.tiling.source import Rect

WHOLE = Rect(0, 0, 20, 30)


def values(bands: int = 1, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    """None of them 0 or 7."""
    found = np.random.default_rng(seed).integers(10, 200, (20, 30, bands))
    return found.astype(dtype)


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32", "float64"]
)
def test_values_are_raw(dtype: str, tmp_path: Path) -> None:
    image = values(3, dtype) // 2
    date = Date([write(tmp_path / "a.tif", image)])
    found, there = date.read([2, 0], WHOLE)
    assert date.dtype == found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, image[..., [2, 0]])
    assert there.all()


def test_scale_and_offset_are_told_and_not_applied(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", values(2))
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (1e-4, 2e-4), (-0.1, 0.5)
    date = Date([path])
    np.testing.assert_array_equal(date.read([0, 1], WHOLE)[0], values(2))
    assert date.scaling([1, 0]) == ((2e-4, 1e-4), (0.5, -0.1))


@pytest.mark.parametrize(
    ("rect", "known"),
    [
        (Rect(-3, -5, 10, 10), (slice(3, None), slice(5, None))),
        (Rect(15, 25, 10, 10), (slice(0, 5), slice(0, 5))),
        (Rect(-2, 4, 40, 6), (slice(2, 22), slice(None))),
        (Rect(20, 0, 5, 5), None),
        (Rect(0, -8, 5, 8), None),
        (Rect(-100, 100, 3, 3), None),
    ],
)
def test_beyond_a_date_there_is_nothing(
    rect: Rect, known: tuple[slice, slice] | None, tmp_path: Path
) -> None:
    found, there = Date([write(tmp_path / "a.tif", values())]).read([0], rect)
    wanted = np.zeros((rect.height, rect.width), bool)
    if known is not None:
        wanted[known] = True
    np.testing.assert_array_equal(there, wanted)
    big = np.pad(values()[..., 0], 200)
    rows, columns = rect.row + 200, rect.column + 200
    np.testing.assert_array_equal(
        found[..., 0], big[rows : rows + rect.height, columns : columns + rect.width]
    )


def test_files_of_one_date_are_its_bands(tmp_path: Path) -> None:
    a = write(tmp_path / "a.tif", values(2, "uint8"), names=("red", "nir"))
    b = write(tmp_path / "b.tif", values(1, "int16", 1), names=("swir",))
    date = Date([a, b])
    assert date.count == 3
    assert date.labels == ("red", "nir", "swir")
    assert date.dtype == np.int16
    found, _ = date.read([2, 0], WHOLE)
    np.testing.assert_array_equal(found[..., 0], values(1, "int16", 1)[..., 0])
    np.testing.assert_array_equal(found[..., 1], values(2, "uint8")[..., 0])
    moved = write(tmp_path / "c.tif", values(), grid(1))
    with pytest.raises(ValueError, match=r"c\.tif: found another grid than that of .*a\.tif"):
        Date([a, moved])


# --- what is there ------------------------------------------------------------------------------


def test_nodata_of_each_band(tmp_path: Path) -> None:
    """Each band of its own, as virtual rasters have it; a pixel that one band lacks is none."""
    image = values(2)
    image[2, 3, 0], image[4, 5, 1], image[6, 7, 0] = 0, 7, 7  # 7 is a value of the first band
    parts = []
    for band, nodata in enumerate((0, 7)):
        parts.append(write(tmp_path / f"{band}.tif", image[..., band], nodata=nodata))
    _, there = Date(parts).read([0, 1], WHOLE)
    assert list(zip(*np.nonzero(~there))) == [(2, 3), (4, 5)]
    _, there = Date(parts).read([1], WHOLE)
    assert list(zip(*np.nonzero(~there))) == [(4, 5)]
    # What the user says holds for all, in place of what the files say.
    _, there = Date(parts, nodata=7).read([0, 1], WHOLE)
    assert list(zip(*np.nonzero(~there))) == [(4, 5), (6, 7)]


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("float32", -3.4028234663852886e38), ("float32", -9999.9), ("float64", 1e300), ("int16", -1)],
)
def test_nodata_in_the_precision_of_the_values(dtype: str, nodata: float, tmp_path: Path) -> None:
    image = values(1, dtype)
    image[2, 3] = nodata
    path = write(tmp_path / "a.tif", image)
    for date in (Date([path], nodata), Date([write(tmp_path / "b.tif", image, nodata=nodata)])):
        _, there = date.read([0], WHOLE)
        assert list(zip(*np.nonzero(~there))) == [(2, 3)]


@pytest.mark.parametrize("nodata", [-1.0, 256.0, 7.5, float("nan"), 1e300])
def test_nodata_that_no_value_can_be(nodata: float, tmp_path: Path) -> None:
    _, there = Date([write(tmp_path / "a.tif", values(1, "uint8"))], nodata).read([0], WHOLE)
    assert there.all()


def test_values_that_are_no_numbers_are_none(tmp_path: Path) -> None:
    image = values(2, "float32")
    image[2, 3, 0], image[4, 5, 1], image[6, 7, 1] = np.nan, np.inf, -np.inf
    for nodata in (None, -9999.0, float("nan")):
        _, there = Date([write(tmp_path / "a.tif", image, nodata=nodata)]).read([0, 1], WHOLE)
        assert list(zip(*np.nonzero(~there))) == [(2, 3), (4, 5), (6, 7)]


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("nodata", [None, 7])
def test_a_mask_of_the_dataset(inside: bool, nodata: float | None, tmp_path: Path) -> None:
    mask = np.ones((20, 30), bool)
    mask[3:6, 4:9] = False
    image = values()
    image[0, 0] = 7
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside):
        path = write(tmp_path / "a.tif", image, mask=mask, nodata=nodata)
    assert (tmp_path / "a.tif.msk").exists() is not inside
    assert MaskFlags.per_dataset in rasterio.open(path).mask_flag_enums[0]
    _, there = Date([path]).read([0], WHOLE)
    mask[0, 0] = nodata is None
    np.testing.assert_array_equal(there, mask)
    _, there = Date([path]).read([0], Rect(4, 5, 5, 6))
    np.testing.assert_array_equal(there, mask[4:9, 5:11])


def test_an_alpha_band_is_a_mask_where_the_flags_say_so(tmp_path: Path) -> None:
    image = values(4, "uint8")
    image[..., 3] = 255
    image[3:6, 4:9, 3] = 0
    image[7, 7, 3] = 100  # half transparent
    path = write(tmp_path / "a.tif", image, photometric="RGB", alpha="yes")
    assert MaskFlags.alpha in rasterio.open(path).mask_flag_enums[0]
    date = Date([path])
    assert date.count == 3
    _, there = date.read([0, 1, 2], WHOLE)
    np.testing.assert_array_equal(there, image[..., 3] > 0)


def test_a_near_infrared_that_is_tagged_alpha_is_a_band(tmp_path: Path) -> None:
    """As NAIP's: with a no-data value the dataset's flags do not use it as a mask."""
    image = values(4, "uint8")
    image[3, 4, 3], image[5, 6, 0] = 1, 0
    path = write(tmp_path / "a.tif", image, photometric="RGB", alpha="yes", nodata=0)
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    date = Date([path])
    assert date.count == 4
    found, there = date.read([3], WHOLE)
    np.testing.assert_array_equal(found[..., 0], image[..., 3])
    assert there.all()
    _, there = date.read([0, 3], WHOLE)
    assert list(zip(*np.nonzero(~there))) == [(5, 6)]


# --- what is no date ----------------------------------------------------------------------------


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.tif: no such file"):
        open_raster(tmp_path / "no.tif")
    with pytest.raises(ValueError, match="found a folder, device or pipe"):
        open_raster(tmp_path)
    (tmp_path / "text.tif").write_text("no raster\nat all")
    with pytest.raises(
        ValueError, match=r"^[^\n]*text\.tif: found no raster that GDAL reads[^\n]*$"
    ):
        open_raster(tmp_path / "text.tif")
    for name, kind in [("complex64", "complex64"), ("complex_int16", "complex")]:
        path = tmp_path / f"{name}.tif"
        with rasterio.open(
            path, "w", driver="GTiff", width=30, height=20, count=1, dtype=name, transform=grid()
        ):
            pass
        with pytest.raises(ValueError, match=rf"{name}\.tif: found {kind}.*expected real numbers"):
            Date([path])


@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_a_file_that_is_cut_short(compress: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(1, 60000, (400, 300)).astype(np.uint16)
    path = write(tmp_path / "a.tif", noise, compress=compress)
    path.write_bytes(path.read_bytes()[:150_000])
    with pytest.raises(ValueError, match=r"^[^\n]*a\.tif: found [^\n]*(cut short|GDAL)[^\n]*$"):
        Date([path]).read([0], Rect(0, 0, 400, 300))
