"""What users bring besides well-kept rasters: files twice, bands that are tagged as what they are
not, masks that are none; and grids that need to be resampled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rasterio", reason="needs the extra geo")

import rasterio
import rasterio.warp
from rastering import LEFT, TOP, UTM, grid, write
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.transform import Affine

from deepsum_jax.rasters import listed
from deepsum_jax.rasters.dates import Date, open_raster
from deepsum_jax.rasters.options import PRESETS, Quality, ReadOptions
from deepsum_jax.rasters.source import RasterSource
from deepsum_jax.tiling.source import Rect

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
SIZE = 40
WHOLE = Rect(0, 0, SIZE, SIZE)


def values(bands: int = 1, dtype: str = "uint16", seed: int = 0, size: int = SIZE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(1, np.iinfo(dtype).max, (size, size, bands)).astype(dtype)


def whole(source: RasterSource) -> tuple[np.ndarray, np.ndarray]:
    return source.read(Rect(0, 0, source.height, source.width))


# --- files --------------------------------------------------------------------------------------


def test_a_date_is_given_once(tmp_path: Path) -> None:
    a, b = (write(tmp_path / f"{n}.tif", values(seed=n)) for n in range(2))
    (tmp_path / "link.tif").symlink_to(a)
    (tmp_path / "copy.tif").write_bytes(a.read_bytes())
    listed.check_different([[a], [b]])
    for other, message in [
        (a, r"0\.tif: found this file twice"),
        (tmp_path / "x" / ".." / "0.tif", r"0\.tif: found this file twice"),
        (tmp_path / "link.tif", r"link\.tif: found this file twice"),
        (tmp_path / "copy.tif", r"copy\.tif: found the same image as .*0\.tif, expected each"),
    ]:
        (tmp_path / "x").mkdir(exist_ok=True)
        for dates in ([[a], [b], [other]], [[a, b], [other]]):
            with pytest.raises(ValueError, match=message):
                listed.check_different(dates)


def test_pipes_and_files_of_many_rasters(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    with pytest.raises(ValueError, match=r"pipe\.tif: found a folder, device or pipe"):
        open_raster(tmp_path / "pipe.tif")
    path = tmp_path / "many.tif"
    for n in range(2):
        with rasterio.open(
            path, "w", driver="GTiff", width=20, height=20, count=1, dtype="uint8",
            transform=grid(), APPEND_SUBDATASET="YES" if n else "NO",
        ) as file:  # fmt: skip
            file.write(np.ones((1, 20, 20), np.uint8))
    assert Date([path]).count == 1  # GDAL takes the first


def test_what_gdal_says_of_a_damaged_file(tmp_path: Path) -> None:
    """Not that it said something."""
    path = write(tmp_path / "a.tif", values(size=400), compress="deflate")
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"^[^\n]*a\.tif: found [^\n]*$") as refused:
        Date([path]).read([0], Rect(0, 0, 400, 400))
    assert "previous exception" not in str(refused.value)


# --- bands --------------------------------------------------------------------------------------


def test_bands_in_another_order(tmp_path: Path) -> None:
    a = Date([write(tmp_path / "a.tif", values(3), names=("red", "green", "nir"))])
    b = Date([write(tmp_path / "b.tif", values(3), names=("nir", "red", "green"))])
    c = Date([write(tmp_path / "c.tif", values(3), names=("nir", "red", "green 2"))])
    plain = Date([write(tmp_path / "d.tif", values(3))])
    assert listed.chosen_bands([a, b], ()) == [[0, 1, 2], [1, 2, 0]]
    assert listed.chosen_bands([a, plain], ()) == [[0, 1, 2], [0, 1, 2]]
    with pytest.warns(UserWarning, match="only red, nir: the bands green, green 2 are not in all"):
        assert listed.chosen_bands([a, b, c], ()) == [[0, 2], [1, 0], [1, 0]]
    for asked in (("red", "red"), ("nir", "3")):
        with pytest.raises(ValueError, match=rf"^--bands: found '{asked[1]}' twice"):
            listed.chosen_bands([a], asked)


COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)


def tagged_alpha(path: Path, fourth: np.ndarray, **how: Any) -> tuple[Date, np.ndarray]:
    """Red, green, blue and a band that is tagged alpha, without a no-data value: GDAL takes it for
    a mask."""
    image = np.concatenate([values(3, "uint8"), fourth[..., None].astype(np.uint8)], axis=-1)
    write(path, image, photometric="RGB", alpha="yes", **how)
    with rasterio.open(path) as file:
        assert file.colorinterp == COLOURS
        assert MaskFlags.alpha in file.mask_flag_enums[0]
    return Date([path]), image


def test_alpha_is_known_by_its_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    opaque = 255 * (rng.random((SIZE, SIZE)) < 0.7)
    soft = np.where(rng.random((SIZE, SIZE)) < 0.05, 100, opaque)
    for n, fourth in enumerate((opaque, soft, 255 * np.ones((SIZE, SIZE)))):
        date, image = tagged_alpha(tmp_path / f"{n}.tif", fourth)
        assert date.count == 3
        found, there = date.read([2, 0], WHOLE)
        np.testing.assert_array_equal(found, image[..., [2, 0]])
        np.testing.assert_array_equal(there, fourth > 0)
    for n, fourth in enumerate((rng.integers(0, 256, (SIZE, SIZE)), rng.normal(90, 9, (40, 40)))):
        date, image = tagged_alpha(tmp_path / f"nir{n}.tif", fourth)
        assert date.count == 4
        found, there = date.read([0, 3], WHOLE)
        np.testing.assert_array_equal(found, image[..., [0, 3]])
        assert there.all()  # near infrared of 0 hides nothing


def test_a_name_tells_what_a_band_is(tmp_path: Path) -> None:
    names = ("red", "green", "blue", "nir")
    fourth = 255 * (np.random.default_rng(1).random((SIZE, SIZE)) < 0.7)
    date, _ = tagged_alpha(tmp_path / "a.tif", fourth, names=names)
    assert date.labels == names
    assert date.read([0], WHOLE)[1].all()
    date, _ = tagged_alpha(tmp_path / "b.tif", fourth, names=(*names[:3], "Alpha"))
    assert date.labels == names[:3]


def test_a_nodata_value_that_no_date_can_have(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", values())
    for nodata in (-1.0, 65536.0, 0.5, float("nan")):
        with pytest.raises(ValueError, match=r"^--nodata .*: found uint16 values, expected one of"):
            RasterSource([path], ReadOptions(nodata=nodata))


def test_the_clearest_of_many_rows(tmp_path: Path) -> None:
    """An estimate from some of the rows counts as much as a full count."""
    image = np.random.default_rng(0).integers(1, 99, (1100, 4)).astype(np.uint8)
    image[:20] = 0
    files = [
        write(tmp_path / "short.tif", image[100:]),
        write(tmp_path / "tall.tif", image, nodata=0),
    ]
    assert RasterSource(files, ReadOptions()).reference == 1


# --- masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_a_plain_mask(top: int, tmp_path: Path) -> None:
    wanted = np.random.default_rng(1).random((SIZE, SIZE)) < 0.6
    mask = write(tmp_path / "m.tif", (wanted * top).astype(np.uint16))
    date = write(tmp_path / "a.tif", values())
    _, masks = whole(RasterSource([date], ReadOptions(masks=(mask,))))
    np.testing.assert_array_equal(masks[0], wanted)


@pytest.mark.parametrize(
    ("codes", "preset"), [([4, 8, 9], "scl"), ([2720, 2800], "landsat-c1"), ([1, 255], None)]
)
def test_classes_are_no_plain_mask(codes: list[int], preset: str | None, tmp_path: Path) -> None:
    """They would be reliable wherever they are not 0, clouds too."""
    image = np.random.default_rng(1).choice(codes, (SIZE, SIZE)).astype(np.uint16)
    mask = write(tmp_path / "m.tif", image)
    date = write(tmp_path / "a.tif", values())
    with pytest.raises(ValueError, match=r"m\.tif: found \d+ to \d+ in a mask, .*--qa, --clear"):
        RasterSource([date], ReadOptions(masks=(mask,)))
    quality = Quality(clear=(255,)) if preset is None else PRESETS[preset]
    _, masks = whole(RasterSource([date], ReadOptions(masks=(mask,), quality=quality)))
    assert 0.2 < masks.mean() < 0.8


# --- resampling ---------------------------------------------------------------------------------


def plane(x: Any, y: Any) -> Any:
    """10 a pixel eastwards and 20 southwards, from coordinates."""
    return 1000 + (x - LEFT) + 2 * (TOP - y)


def seen_plane(path: Path, place: Affine, crs: str, size: int = 200) -> Path:
    columns, rows = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    x = place.a * columns + place.b * rows + place.c
    y = place.d * columns + place.e * rows + place.f
    if crs != UTM:
        found = rasterio.warp.transform(crs, UTM, x.ravel(), y.ravel())
        x, y = (np.reshape(axis, (size, size)) for axis in found)
    return write(path, plane(x, y).astype(np.float32), place, crs=crs)


def other_zone(size: tuple[float, float]) -> Affine:
    [x], [y] = rasterio.warp.transform(UTM, "EPSG:32619", [LEFT - 300], [TOP + 300])
    return Affine(size[0], 0, x, 0, -size[1], y)


@pytest.mark.parametrize(
    ("crs", "place"),
    [
        (UTM, Affine(17, 0, LEFT - 50, 0, -17, TOP + 50)),
        (UTM, Affine(3, 0, LEFT - 50, 0, -3, TOP + 50)),
        (UTM, grid(-40, -30) @ Affine.rotation(10)),
        ("EPSG:32619", other_zone((11, 12))),
    ],
)
def test_a_plane_stays_one(crs: str, place: Affine, tmp_path: Path) -> None:
    """As cubic convolution keeps planes: to a hundredth of a pixel, from any grid."""
    first = seen_plane(tmp_path / "a.tif", grid(), UTM, SIZE)
    other = seen_plane(tmp_path / "b.tif", place, crs)
    with pytest.warns(UserWarning, match="b: resampled"):
        source = RasterSource([first, other], ReadOptions(warp=True), "first")
    lr, masks = whole(source)
    assert masks.all()
    np.testing.assert_allclose(lr[1], lr[0], atol=0.2)


def test_resampling_knows_no_parts(tmp_path: Path) -> None:
    """The same values, to a rounding, in parts of any size: else borders of tiles would show."""
    first = write(tmp_path / "a.tif", values())
    place = other_zone((4.3, 6.1)) @ Affine.rotation(-7)
    other = write(tmp_path / "b.tif", values(seed=1, size=300), place, crs="EPSG:32619")
    with pytest.warns(UserWarning, match="resampled"):
        source = RasterSource([first, other], ReadOptions(warp=True), "first")
    lr, masks = whole(source)
    assert masks[1].all() and lr[1].std() > 3000
    for rect in (Rect(3, 20, 9, 11), Rect(0, 0, 40, 1), Rect(39, 0, 1, 40), Rect(16, 16, 24, 7)):
        part, clear = source.read(rect)
        assert clear.all()
        difference = part.astype(float) - lr[(slice(None), *rect.part)]
        assert np.abs(difference).max() <= 1


# --- real ones ----------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="needs shared/real")
def test_real_dates_lie_where_their_files_say() -> None:
    """NAIP's years: origins that differ by whole metres, the fourth band tagged alpha."""
    files = sorted((REAL / "naip-dakota").glob("*.tif"))
    source = RasterSource(files, ReadOptions(bands=("nir",), window=(300, 100, 40, 50)), "first")
    lr, masks = whole(source)
    for n, file in enumerate(files):
        with rasterio.open(file) as dataset:
            x, y = source.georeference.transform @ (0.5, 0.5)
            u, v = ~dataset.transform @ (x, y)
            row, column = int(np.floor(v)), int(np.floor(u))
            expected = dataset.read(4)[row : row + 40, column : column + 50]
        np.testing.assert_array_equal(lr[n, ..., 0], expected)
        # By how much the date's pixel lies south and east of the reference's, 5 m each.
        wanted = (row + 0.5 - v, column + 0.5 - u)
        np.testing.assert_allclose(source.fractions[n], wanted, atol=1e-6)
    assert masks.mean() > 0.99
