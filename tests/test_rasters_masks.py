"""Mask files: what their values mean, and where on a date they lie."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rasterio", reason="needs the extra geo")

import rasterio.warp
from odc.geo.geobox import GeoBox
from rastering import UTM, grid, write
from rasterio.transform import Affine

from deepsum_jax.rasters import options
from deepsum_jax.rasters.masks import MaskFile, mask_paths
from deepsum_jax.rasters.options import PRESETS, Quality, ReadOptions
from deepsum_jax.tiling.source import Rect

SIZE = (24, 36)
WHOLE = Rect(0, 0, *SIZE)
DATE = GeoBox(SIZE, grid(), UTM)


def random_mask(shape: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < 0.7).astype(np.uint8)


# --- what values mean ---------------------------------------------------------------------------


def test_without_a_rule_what_is_not_zero_is_reliable() -> None:
    found = Quality().reliable(np.array([0, 1, 255, -1]))
    assert found.tolist() == [False, True, True, True]
    assert Quality().reliable(np.array([0, 0.5, np.nan])).tolist() == [False, True, False]


def test_classes() -> None:
    scene = np.arange(12, dtype=np.uint8)
    assert np.flatnonzero(Quality(clear=(4, 5, 6)).reliable(scene)).tolist() == [4, 5, 6]
    # Not: no data, saturated, shadows, clouds of all kinds.
    assert np.flatnonzero(PRESETS["scl"].reliable(scene)).tolist() == [4, 5, 6, 7, 11]
    assert Quality(clear=(0,)).reliable(np.array([0.0, np.nan])).tolist() == [True, False]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32"])
def test_bits(dtype: str) -> None:
    codes = np.arange(128).astype(dtype)
    found = Quality(bad_bits=(0, 3, 4)).reliable(codes)
    wanted = [f"{n:08b}"[-1] + f"{n:08b}"[-4] + f"{n:08b}"[-5] == "000" for n in range(128)]
    assert found.tolist() == wanted
    assert Quality(bad_bits=(15,)).reliable(np.array([2**15, 2**14], np.uint16)).tolist() == [
        False,
        True,
    ]
    assert not Quality(bad_bits=(3,)).reliable(np.array([np.nan])).any()


def test_landsat_collection_1() -> None:
    """Codes from the handbook: 2720 is clear, 2800 has cloud, 2976 shadow, 6816 cirrus, 3744 snow;
    of confidences only the high ones hide."""
    codes = {2720: True, 2722: True, 2724: True, 2728: True, 1: False, 2800: False, 2752: True,
             2976: False, 6816: False, 3744: True, 2816: True}  # fmt: skip
    found = PRESETS["landsat-c1"].reliable(np.array(list(codes), np.uint16))
    assert found.tolist() == list(codes.values())


def test_landsat_collection_2() -> None:
    """21824 is clear, 21952 water, 1 fill, 22280 cloud, 23888 shadow, 54596 cirrus, 30048 snow,
    21826 dilated cloud."""
    codes = {21824: True, 21952: True, 1: False, 22280: False, 23888: False, 54596: False,
             30048: True, 21826: False}  # fmt: skip
    found = PRESETS["landsat-c2"].reliable(np.array(list(codes), np.uint16))
    assert found.tolist() == list(codes.values())


def test_a_probability() -> None:
    values = np.array([0, 40, 41, 100, 255], np.uint8)
    assert Quality(most=40).reliable(values).tolist() == [True, True, False, False, False]
    parts = np.array([0.0, 0.3, 0.31, np.nan], np.float32)
    assert Quality(most=0.305).reliable(parts).tolist() == [True, True, False, False]
    assert Quality(most=0.0).reliable(parts).tolist() == [True, False, False, False]


# --- where they lie -----------------------------------------------------------------------------


def test_a_mask_of_the_dates_grid(tmp_path: Path) -> None:
    mask = random_mask()
    file = MaskFile(write(tmp_path / "m.tif", mask), DATE, Quality())
    np.testing.assert_array_equal(file.reliable(WHOLE, 0), mask > 0)
    np.testing.assert_array_equal(file.reliable(Rect(3, 5, 7, 9), 0), mask[3:10, 5:14] > 0)
    found = file.reliable(Rect(-2, 30, 5, 20), 0)
    np.testing.assert_array_equal(found, np.pad(mask, 20)[18:23, 50:70] > 0)


def test_a_mask_without_a_place_counts_pixels(tmp_path: Path) -> None:
    mask = random_mask()
    path = tmp_path / "m.png"
    with (
        pytest.warns(rasterio.errors.NotGeoreferencedWarning),
        rasterio.open(path, "w", driver="PNG", height=24, width=36, count=1, dtype="uint8") as made,
    ):
        made.write(mask, 1)
    np.testing.assert_array_equal(MaskFile(path, DATE, Quality()).reliable(WHOLE, 0), mask > 0)
    with pytest.raises(ValueError, match=r"m\.png: found a mask of 24×36 .* expected 20×36"):
        MaskFile(path, GeoBox((20, 36), grid(), UTM), Quality())


@pytest.mark.parametrize("shift", [(0.0, 0.0), (4.0, -7.0), (-3.0, 2.0)])
def test_a_coarser_mask_speaks_by_its_nearest_pixel(
    shift: tuple[float, float], tmp_path: Path
) -> None:
    """Pixels of two, its grid moved by whole pixels of the date's."""
    row, column = shift
    coarse = random_mask((12, 18), 1)
    place = Affine(20, 0, grid(row, column).c, 0, -20, grid(row, column).f)
    file = MaskFile(write(tmp_path / "m.tif", coarse, place), DATE, Quality())
    fine = np.pad(np.kron(coarse, np.ones((2, 2))), 20)
    top, left = 20 - int(row), 20 - int(column)
    np.testing.assert_array_equal(
        file.reliable(WHOLE, 0), fine[top : top + 24, left : left + 36] > 0
    )


def test_a_finer_mask_speaks_by_its_nearest_pixel(tmp_path: Path) -> None:
    fine = random_mask((72, 108), 2)
    place = grid(0, 0, (10 / 3, 10 / 3))
    file = MaskFile(write(tmp_path / "m.tif", fine, place), DATE, Quality())
    np.testing.assert_array_equal(file.reliable(WHOLE, 0), fine[1::3, 1::3] > 0)
    np.testing.assert_array_equal(file.reliable(Rect(5, 6, 3, 4), 0), fine[16:24:3, 19:30:3] > 0)


def test_a_mask_one_small_pixel_aside_is_not_taken_for_the_same_grid(tmp_path: Path) -> None:
    """Degrees: a pixel is a hundred-thousandth."""
    size = 1e-5
    here = Affine(size, 0, -75, 0, -size, 41)
    date = GeoBox(SIZE, here, "EPSG:4326")
    mask = random_mask()
    aside = write(tmp_path / "m.tif", mask, here @ Affine.translation(1, 0), crs="EPSG:4326")
    found = MaskFile(aside, date, Quality()).reliable(WHOLE, 0)
    assert not found[:, 0].any()
    np.testing.assert_array_equal(found[:, 1:], mask[:, :-1] > 0)


@pytest.mark.parametrize("crs", ["EPSG:32617", "EPSG:4326"])
def test_a_mask_of_another_crs(crs: str, tmp_path: Path) -> None:
    """Half of it hidden, by an edge that the date's own coordinates tell."""
    bounds = DATE.boundingbox
    west, south, east, north = rasterio.warp.transform_bounds(UTM, crs, *bounds)
    place = Affine((east - west) / 400, 0, west, 0, (south - north) / 300, north)
    columns, rows = np.meshgrid(np.arange(400) + 0.5, np.arange(300) + 0.5)
    x, y = place.a * columns + place.c, place.e * rows + place.f
    theirs, _ = rasterio.warp.transform(crs, UTM, x.ravel(), y.ravel())
    middle = (bounds.left + bounds.right) / 2
    mask = (np.array(theirs).reshape(300, 400) > middle).astype(np.uint8)
    found = MaskFile(write(tmp_path / "m.tif", mask, place, crs=crs), DATE, Quality())
    wanted = np.zeros(SIZE, bool)
    wanted[:, 18:] = True
    assert np.count_nonzero(found.reliable(WHOLE, 0) != wanted) <= 2


def test_beyond_a_mask_nothing_is_reliable(tmp_path: Path) -> None:
    small = write(tmp_path / "m.tif", np.ones((10, 12), np.uint8), grid(5, 7))
    found = MaskFile(small, DATE, Quality()).reliable(WHOLE, 0)
    wanted = np.zeros(SIZE, bool)
    wanted[5:15, 7:19] = True
    np.testing.assert_array_equal(found, wanted)
    far = write(tmp_path / "far.tif", np.ones((10, 12), np.uint8), grid(500, 7))
    assert not MaskFile(far, DATE, Quality()).reliable(WHOLE, 0).any()
    pole = write(tmp_path / "pole.tif", np.ones((10, 12), np.uint8), grid(), crs="EPSG:3031")
    assert not MaskFile(pole, DATE, Quality()).reliable(WHOLE, 3).any()


# --- the buffer ---------------------------------------------------------------------------------


def grown(hidden: np.ndarray, buffer: int) -> np.ndarray:
    """What lies within a radius of hidden pixels, by looking at every pair."""
    ys, xs = np.nonzero(hidden)
    y, x = np.mgrid[: hidden.shape[0], : hidden.shape[1]]
    near = (y[..., None] - ys) ** 2 + (x[..., None] - xs) ** 2 <= buffer**2
    return np.asarray(near.any(axis=-1))


@pytest.mark.parametrize("buffer", [1, 2, 5])
def test_the_buffer_widens_what_is_hidden_and_knows_no_borders_of_parts(
    buffer: int, tmp_path: Path
) -> None:
    mask = np.ones(SIZE, np.uint8)
    mask[0, 20] = mask[10, 11] = mask[11, 12] = mask[23, 35] = 0
    file = MaskFile(write(tmp_path / "m.tif", mask), DATE, Quality())
    wanted = ~grown(mask == 0, buffer)
    assert wanted.any()
    np.testing.assert_array_equal(file.reliable(WHOLE, buffer), wanted)
    np.testing.assert_array_equal(file.reliable(Rect(12, 13, 8, 8), buffer), wanted[12:20, 13:21])


def test_the_buffer_does_not_grow_from_beyond_the_mask(tmp_path: Path) -> None:
    file = MaskFile(write(tmp_path / "m.tif", np.ones(SIZE, np.uint8)), DATE, Quality())
    assert file.reliable(WHOLE, 4).all()


# --- which file ---------------------------------------------------------------------------------


def test_masks_by_order_or_one_for_all(tmp_path: Path) -> None:
    dates = [[tmp_path / "a.tif"], [tmp_path / "b.tif"]]
    m, n = tmp_path / "m.tif", tmp_path / "n.tif"
    assert mask_paths(dates, ReadOptions()) == [None, None]
    assert mask_paths(dates, ReadOptions(masks=(m, n))) == [m, n]
    assert mask_paths(dates, ReadOptions(masks=(m,))) == [m, m]
    with pytest.raises(ValueError, match="--masks: found 3 files for 2 dates"):
        mask_paths(dates, ReadOptions(masks=(m, n, m)))


def test_masks_by_a_pattern_in_the_name_of_the_file_and_not_its_folder() -> None:
    folder = Path("x_B4") / "y"
    dates = [[folder / "s1_B4.tif"], [folder / "s2_B8.tif", folder / "s2_B4.tif"]]
    found = mask_paths(dates, ReadOptions(mask_pattern=("_B4", "_BQA")))
    assert found == [folder / "s1_BQA.tif", folder / "s2_BQA.tif"]
    with pytest.raises(ValueError, match=r"--mask-pattern _B4=_BQA: found no '_B4' in s3_B2\.tif"):
        mask_paths([[folder / "s3_B2.tif"]], ReadOptions(mask_pattern=("_B4", "_BQA")))


# --- options ------------------------------------------------------------------------------------


def asked(*arguments: str) -> argparse.Namespace:
    p = argparse.ArgumentParser()
    p.add_argument("--masks", nargs="+", type=Path, default=[])
    options.add_arguments(p)
    return p.parse_args(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--qa", "scl"),
        ("--clear", "0"),
        ("--bad-bits", "0"),
        ("--max-probability", "0"),
        ("--mask-buffer", "2"),
    ],
)
def test_what_masks_mean_needs_masks(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"^{arguments[0]}: found no mask files"):
        options.parse(asked(*arguments))
    found = options.parse(asked(*arguments, "--masks", "m.tif"))
    assert (found.quality, found.buffer) != (Quality(), 0)
    assert found.masks == (Path("m.tif"),)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--nodata", "0"),
        ("--max-probability", "0"),
        ("--bands", "1"),
        ("--bounds", "0", "0", "0", "0"),
        ("--window", "0", "0", "0", "0"),
        ("--warp",),
        ("--clear", "0"),
        ("--bad-bits", "0"),
        ("--qa", "scl"),
        ("--mask-pattern", "a=b"),
        ("--mask-buffer", "1"),
        ("--dtype", "uint8"),
    ],
)
def test_every_option_that_was_used_is_known(arguments: tuple[str, ...]) -> None:
    assert options.given(asked(*arguments)) == [arguments[0]]
    assert options.given(asked()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--clear", "4,x"),
        ("--clear", "-1"),
        ("--bad-bits", "63"),
        ("--bands", "1,,2"),
        ("--mask-pattern", "=b"),
        ("--mask-pattern", "ab"),
        ("--mask-buffer", "-1"),
        ("--mask-buffer", "1.5"),
        ("--memory", "0"),
        ("--memory", "nan"),
    ],
)
def test_options_that_are_refused(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        asked("=".join(arguments))
    assert f"argument {arguments[0]}: found {arguments[1]!r}" in capsys.readouterr().err
