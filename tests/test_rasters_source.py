"""Dates as one stack: each on the reference's grid by whole pixels, or resampled where asked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rasterio", reason="needs the extra geo")

import rasterio
import rasterio.warp
import scipy.ndimage
from helpers import landscape
from rastering import LEFT, TOP, grid, write
from rasterio.transform import Affine

from deepsum_jax.rasters.options import Quality, ReadOptions
from deepsum_jax.rasters.source import RasterSource
from deepsum_jax.tiling.source import Rect

SIZE = (30, 40)
GROUND = np.rint(40 * landscape(120, 160)).astype(np.uint16)  # its origin is grid(-40, -50)


def seen(row: int = 0, column: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The ground at (row, column) of the origin's grid."""
    return GROUND[40 + row : 40 + row + size[0], 50 + column : 50 + column + size[1]]


def dates(folder: Path, *places: tuple[float, float], **options: Any) -> list[Path]:
    """Files 0.tif, 1.tif …, that each lie at a place and show what is there, by whole pixels."""
    return [
        write(folder / f"{n}.tif", seen(round(row), round(column)), grid(row, column), **options)
        for n, (row, column) in enumerate(places)
    ]


def source(paths: Sequence[Path], reference: int | str | Path = 0, **options: Any) -> RasterSource:
    return RasterSource(paths, ReadOptions(**options), reference)


def whole(found: RasterSource) -> tuple[np.ndarray, np.ndarray]:
    return found.read(Rect(0, 0, found.height, found.width))


# --- where dates lie ----------------------------------------------------------------------------


def test_dates_lie_on_the_references_grid_by_whole_pixels(tmp_path: Path) -> None:
    """What is seen of one ground is equal wherever two dates see it."""
    places = [(0, 0), (3, -4), (-2.3, 5.4), (-2.6, 5.6), (25, 0)]
    found = source(dates(tmp_path, *places))
    lr, masks = whole(found)
    assert lr.shape == (5, *SIZE, 1)
    for n, (row, column) in enumerate(places):
        wanted = np.zeros(SIZE, bool)
        top, left = round(row), round(column)
        wanted[max(top, 0) : max(top + 30, 0), max(left, 0) : max(left + 40, 0)] = True
        np.testing.assert_array_equal(masks[n], wanted)
        np.testing.assert_array_equal(lr[n, wanted, 0], seen()[wanted])
    np.testing.assert_allclose(
        found.fractions, [(0, 0), (0, 0), (-0.3, 0.4), (0.4, -0.4), (0, 0)], atol=1e-6
    )
    assert found.names == ("0", "1", "2", "3", "4")


def test_parts_are_parts_of_the_whole(tmp_path: Path) -> None:
    found = source(dates(tmp_path, (0, 0), (3.2, -4.4)), window=(2, 3, 20, 30))
    lr, masks = whole(found)
    part = Rect(4, 5, 6, 7)
    some, clear = found.read(part)
    np.testing.assert_array_equal(some, lr[(slice(None), *part.part)])
    np.testing.assert_array_equal(clear, masks[(slice(None), *part.part)])
    np.testing.assert_array_equal(lr[0, ..., 0], seen(2, 3, (20, 30)))


@pytest.mark.parametrize("reference", [0, 1, 2])
def test_any_date_may_lead(reference: int, tmp_path: Path) -> None:
    places = [(0, 0), (3.2, -4.4), (-2.1, 5.4)]
    found = source(dates(tmp_path, *places), reference)
    lr, masks = whole(found)
    assert found.georeference.transform.almost_equals(grid(*places[reference]))
    np.testing.assert_array_equal(
        lr[reference, ..., 0], seen(round(places[reference][0]), round(places[reference][1]))
    )
    for n in range(3):
        away = np.subtract(places[n], places[reference])
        left = away - np.rint(away)
        np.testing.assert_allclose(found.fractions[n], left, atol=1e-6)
        both = masks[n] & masks[reference]
        assert both.sum() > 500
        moved = np.rint(away) - (np.rint(places[n]) - np.rint(places[reference]))
        if not moved.any():
            np.testing.assert_array_equal(lr[n][both], lr[reference][both])


@pytest.mark.parametrize("options", [{"window": (4, 6, 20, 25)}, {}])
def test_the_georeference_is_the_parts(options: dict[str, Any], tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif", np.dstack([seen(), seen(1)]), grid(0.5, 2, (7, 9)), nodata=3,
        names=("red", "nir"),
    )  # fmt: skip
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (1e-4, 1e-4), (-0.1, -0.1)
    found = source([path], **options).georeference
    row, column, height, width = options.get("window", (0, 0, *SIZE))
    assert found.transform.almost_equals(grid(0.5 + row, 2 + column, (7, 9)), 1e-9)
    assert (found.height, found.width) == (height, width)
    assert (found.dtype, found.nodata) == ("uint16", 3)
    assert found.descriptions == ("red", "nir")
    assert (found.scales, found.offsets) == ((1e-4,) * 2, (-0.1,) * 2)
    assert found.crs is not None and found.crs.to_epsg() == 32618


def test_south_up_rasters(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{n}.tif", np.flipud(seen(row)), grid(30 + row, 0)
              @ Affine.scale(1, -1))
        for n, row in enumerate((0, 4))
    ]  # fmt: skip
    found = source(paths)
    lr, masks = whole(found)
    assert found.georeference.transform.e > 0
    assert masks[1].sum() == 26 * 40
    np.testing.assert_array_equal(lr[0][masks[1]], lr[1][masks[1]])


def test_rasters_that_do_not_say_where_they_lie_are_taken_as_they_are_counted(
    tmp_path: Path,
) -> None:
    paths = dates(tmp_path, (0, 0))
    with pytest.warns(UserWarning, match="do not say where they lie"):
        _, masks = whole(
            source([write_plain(tmp_path / "c.tif"), write_plain(tmp_path / "d.tif", 1)])
        )
    assert masks.all()
    for warp in (False, True):
        with (
            pytest.warns(UserWarning, match="do not say where they lie"),
            pytest.raises(
                ValueError,
                match=r"c\.tif: found CRS none, expected EPSG:32618 of 0\.tif.* give both a CRS",
            ),
        ):
            source([*paths, tmp_path / "c.tif"], warp=warp)


def write_plain(path: Path, add: int = 0) -> Path:
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        return write(path, seen() + np.uint16(add), Affine.identity(), crs=None)


def test_no_overlap_is_refused_and_beside_the_part_is_merely_nothing(tmp_path: Path) -> None:
    paths = dates(tmp_path, (0, 0), (30, 0))
    with pytest.raises(ValueError, match=r"1\.tif: found no overlap with 0\.tif"):
        source(paths)
    paths = dates(tmp_path, (0, 0), (25, 0))
    _, masks = whole(source(paths, window=(0, 0, 20, 40)))
    assert masks[0].all()
    assert not masks[1].any()


# --- which date leads ---------------------------------------------------------------------------


def test_the_clearest_leads(tmp_path: Path) -> None:
    paths = dates(tmp_path, (0, 0), (0.2, 0), (0, 0.3))
    for path, hidden in zip(paths, (300, 100, 200)):
        with rasterio.open(path, "r+") as file:
            image = file.read(1)
            image.flat[:hidden] = 9
            file.nodata = 9
            file.write(image, 1)
    assert source(paths, "clearest").reference == 1
    assert source(paths, "first").reference == 0
    assert source(paths, paths[2]).reference == 2
    assert source(paths, Path("2")).reference == 2
    # Of the part alone: the others are hidden above.
    assert source(paths, "clearest", window=(0, 0, 7, 40)).reference == 1
    assert source(paths, "clearest", window=(20, 0, 7, 40)).reference == 0  # the first of a tie
    for wrong in (3, -1, tmp_path / "x.tif"):
        with pytest.raises(ValueError, match=f"^--reference: found {wrong}"):
            source(paths, wrong)


def test_a_window_means_the_first_dates_pixels_while_the_clearest_is_sought(
    tmp_path: Path,
) -> None:
    """The second date is clearer and lies elsewhere; the ground that comes out is the same."""
    paths = dates(tmp_path, (0, 0), (5.2, -6.3))
    with rasterio.open(paths[0], "r+") as file:
        image = file.read(1)
        image[::2] = 9
        file.nodata = 9
        file.write(image, 1)
    found = source(paths, "clearest", window=(8, 2, 20, 25))
    assert found.reference == 1
    np.testing.assert_array_equal(whole(found)[0][1, ..., 0], seen(8, 2, (20, 25)))
    # A smaller date that the window leaves cannot lead.
    small = write(tmp_path / "s.tif", seen(0, 0, (10, 10)))
    assert source([paths[1], small], "clearest", window=(15, 20, 10, 15)).reference == 0


# --- bands --------------------------------------------------------------------------------------


def banded(path: Path, names: tuple[str, ...], add: int = 0) -> Path:
    """Band k of a name holds the ground plus 1000·(its letter)."""
    image = np.dstack([seen() + np.uint16(1000 * "rgbn".index(n) + add) for n in names])
    return write(path, image, names=names)


def test_bands_by_number_and_by_name(tmp_path: Path) -> None:
    a = banded(tmp_path / "a.tif", ("r", "g", "b", "n"))
    b = banded(tmp_path / "b.tif", ("n", "b", "r"))

    def chosen(*bands: str) -> tuple[list[list[int]], tuple[str | None, ...]]:
        found = source([a, b], bands=bands)
        lr, _ = whole(found)
        offsets = (lr.astype(int) - seen()[..., None])[:, 0, 0] // 1000
        return offsets.tolist(), found.georeference.descriptions

    assert chosen("n", "r") == ([[3, 0], [3, 0]], ("n", "r"))
    assert chosen("1", "3") == ([[0, 2], [3, 0]], ("r", "b"))  # numbers are each file's own
    # Those that all have, where the dates have others.
    assert chosen() == ([[0, 2, 3], [0, 2, 3]], ("r", "b", "n"))
    for wrong, message in [
        ("g", r"b\.tif: found no band 'g', expected a number from 1 to 3 or one of n, b, r"),
        ("4", r"b\.tif: found no band 4, expected 1 to 3"),
        ("0", r"a\.tif: found no band 0, expected 1 to 4"),
        ("²", r"a\.tif: found no band '²'"),
    ]:
        with pytest.raises(ValueError, match=message):
            chosen(wrong)


def test_bands_of_the_same_names_in_another_order(tmp_path: Path) -> None:
    a = banded(tmp_path / "a.tif", ("r", "g", "b"))
    b = banded(tmp_path / "b.tif", ("b", "r", "g"))
    lr, _ = whole(source([a, b]))
    np.testing.assert_array_equal(lr[0], lr[1])


def test_bands_whose_names_say_nothing_of_each_other_go_by_number(tmp_path: Path) -> None:
    a = write(tmp_path / "a.tif", np.dstack([seen(), seen(1)]), names=("May r", "May g"))
    b = write(tmp_path / "b.tif", np.dstack([seen(), seen(1) + 1]), names=("June r", "June g"))
    lr, _ = whole(source([a, b]))
    np.testing.assert_array_equal(lr[1] - lr[0], np.broadcast_to([0, 1], lr[0].shape))


def test_dates_of_other_bands_without_names(tmp_path: Path) -> None:
    a = write(tmp_path / "a.tif", np.dstack([seen(), seen(1)]))
    b = write(tmp_path / "b.tif", seen())
    with pytest.raises(ValueError, match=r"found dates of 1 to 2 bands.* --bands says which"):
        source([a, b])
    assert source([a, b], bands=("1",)).channels == 1


def test_bands_in_two_files(tmp_path: Path) -> None:
    paths = []
    for date, (row, column) in enumerate([(0, 0), (2.3, -3.4)]):
        for band in "ab":
            image = seen(round(row), round(column)) + np.uint16(1000 * (band == "b"))
            write(tmp_path / f"{date}{band}.tif", image, grid(row, column))
        paths.append(Path(f"{tmp_path}/{date}a.tif+{tmp_path}/{date}b.tif"))
    found = source(paths)
    lr, masks = whole(found)
    assert (lr[..., 1] - lr[..., 0])[masks].tolist() == [1000] * masks.sum()
    assert found.paths == [tmp_path / name for name in ("0a.tif", "0b.tif", "1a.tif", "1b.tif")]
    # A file of that very name is one file.
    shutil.copy(tmp_path / "0a.tif", tmp_path / "x+y.tif")
    assert source([tmp_path / "x+y.tif"]).channels == 1


# --- masks, and what differs --------------------------------------------------------------------


def test_masks_lie_on_their_dates_grid_and_hide_beside_nodata(tmp_path: Path) -> None:
    paths = dates(tmp_path, (0, 0), (3, -4.2))
    with rasterio.open(paths[1], "r+") as file:
        image = file.read(1)
        image[10, 20] = 9
        file.nodata = 9
        file.write(image, 1)
    masks = []
    for n, place in enumerate([(0, 0), (3, -4.2)]):
        cloud = np.zeros(SIZE, np.uint8)
        cloud[12 + n, 15 + n] = 9
        masks.append(write(tmp_path / f"m{n}.tif", cloud, grid(*place)))
    found = source(paths, masks=tuple(masks), quality=Quality(clear=(0,)), nodata=9)
    _, clear = whole(found)
    assert list(zip(*np.nonzero(~clear[0]))) == [(12, 15)]
    inner = ~clear[1][3:, :36]
    assert list(zip(*np.nonzero(inner))) == [(10, 16), (13, 12)]
    assert found.why_hidden([Rect(10, 10, 10, 10)]) == [
        {"no data": 0, "mask": 0.01},
        {"no data": 0.01, "mask": 0.01},
    ]
    assert set(masks) < set(found.paths)


def test_a_level_that_differs_is_said(tmp_path: Path) -> None:
    paths = dates(tmp_path, (0, 0), (1, 1))
    with rasterio.open(paths[1], "r+") as file:
        file.offsets = (-0.1,)
    with pytest.warns(UserWarning, match=r"1\.tif: its scale and offset .* its level may differ"):
        lr, _ = whole(source(paths))
    np.testing.assert_array_equal(lr[0, 1:, 1:], lr[1, 1:, 1:])  # raw all the same


def test_dates_of_other_dtypes(tmp_path: Path) -> None:
    a = write(tmp_path / "a.tif", (seen() // 20).astype(np.uint8))
    b = write(tmp_path / "b.tif", seen().astype(np.int16) - 5000)
    with pytest.warns(UserWarning, match="dates hold int16 and uint8"):
        found = source([a, b])
    lr, _ = whole(found)
    assert found.dtype == lr.dtype == np.int16
    assert lr[1].min() < 0
    assert found.georeference.dtype == "uint8"


def test_one_date_twice(tmp_path: Path) -> None:
    a, b = dates(tmp_path, (0, 0), (1, 1))
    (tmp_path / "link.tif").symlink_to(a)
    os.link(a, tmp_path / "hard.tif")
    shutil.copy(a, tmp_path / "copy.tif")
    for other in (a, tmp_path / "link.tif", tmp_path / "hard.tif", tmp_path / "copy.tif",
                  Path(f"{b}+{a}"), tmp_path / "x" / ".." / "0.tif"):  # fmt: skip
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"\.tif: found .*expected each (once|date once)"):
            source([a, other])


def test_names_tell_dates_apart(tmp_path: Path) -> None:
    a = write(tmp_path / "may" / "B4.tif", seen())
    b = write(tmp_path / "june" / "B4.tif", seen(1))
    found = source([a, b])
    assert found.names == ("may/B4", "june/B4")
    assert source([a, b], Path("june/B4")).reference == 1
    assert source([a, b], b).reference == 1


# --- resampled ----------------------------------------------------------------------------------


def smooth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A ground by its coordinates, with no detail that resampling would lose."""
    return 3000 + 800 * np.sin((x - LEFT) / 90) + 600 * np.cos((y - TOP) / 70)


def shown(path: Path, place: Affine, crs: str, size: tuple[int, int] = (60, 70)) -> Path:
    rows, columns = np.indices(size)
    x = place.a * (columns + 0.5) + place.b * (rows + 0.5) + place.c
    y = place.d * (columns + 0.5) + place.e * (rows + 0.5) + place.f
    if crs != "EPSG:32618":
        moved = rasterio.warp.transform(crs, "EPSG:32618", x.ravel(), y.ravel())
        x, y = (np.array(v).reshape(size) for v in moved)
    return write(path, smooth(x, y).astype(np.float32), place, crs=crs)


def zone17() -> Affine:
    (x,), (y,) = rasterio.warp.transform("EPSG:32618", "EPSG:32617", [LEFT - 80], [TOP + 120])
    return Affine(10, 0, x, 0, -10, y)


OTHER = {
    "zone": (zone17(), "EPSG:32617", (60, 70)),
    "finer": (Affine(7, 0, LEFT - 33, 0, -7, TOP + 21), "EPSG:32618", (70, 90)),
    "coarser": (Affine(14, 0, LEFT - 33, 0, -14, TOP + 21), "EPSG:32618", (60, 70)),
    "turned": (
        Affine(10, 0, LEFT - 90, 0, -10, TOP + 90) @ Affine.rotation(7), "EPSG:32618", (80, 80)),
    "south-up": (Affine(10, 0, LEFT - 33, 0, 10, TOP - 400), "EPSG:32618", (60, 70)),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(OTHER))
def test_another_grid_is_resampled_where_asked(kind: str, tmp_path: Path) -> None:
    a = shown(tmp_path / "a.tif", grid(), "EPSG:32618", SIZE)
    place, crs, size = OTHER[kind]
    b = shown(tmp_path / "b.tif", place, crs, size)
    with pytest.raises(ValueError, match=r"b\.tif: found .* of a\.tif; --warp"):
        source([a, b])
    with pytest.warns(UserWarning, match=r"b: resampled \(.*\); what lay between .* is lost"):
        found = source([a, b], warp=True, window=(2, 3, 25, 30))
    lr, masks = whole(found)
    assert masks.mean() > 0.9
    np.testing.assert_allclose(lr[1][masks[1]], lr[0][masks[1]], atol=30)  # of ±1400
    assert not found.fractions.any()
    # Parts are parts of the whole.
    part = Rect(5, 6, 9, 8)
    some, clear = found.read(part)
    inner = masks[(slice(None), *part.part)]
    np.testing.assert_array_equal(clear, inner)
    np.testing.assert_allclose(some[inner], lr[(slice(None), *part.part)][inner], rtol=1e-5)


def test_what_is_resampled_brings_its_masks(tmp_path: Path) -> None:
    """A hidden block keeps its place on the ground, and none of its values leaks out."""
    a = shown(tmp_path / "a.tif", grid(), "EPSG:32618", SIZE)
    place = Affine(7, 0, LEFT - 33, 0, -7, TOP + 21)
    b = shown(tmp_path / "b.tif", place, "EPSG:32618", (70, 90))
    with rasterio.open(b, "r+") as file:
        image = file.read(1)
        image[20:30, 20:34] = -9999
        file.nodata = -9999
        file.write(image, 1)
    with pytest.warns(UserWarning, match="resampled"):
        lr, masks = whole(source([a, b], warp=True))
    # x from -33 + 140 to -33 + 238, y from -21 + 140 to -21 + 210, in pixels of 10.
    hidden = np.zeros(SIZE, bool)
    hidden[12:19, 11:20] = True
    assert not masks[1][hidden].any()
    around = scipy.ndimage.binary_dilation(hidden, np.ones((3, 3), bool), iterations=3)
    assert masks[1][~around].all()
    np.testing.assert_allclose(lr[1][masks[1]], lr[0][masks[1]], atol=60)


def test_resampled_whole_numbers_stay_in_their_range(tmp_path: Path) -> None:
    """Cubic convolution overshoots at edges."""
    a = write(tmp_path / "a.tif", seen().astype(np.uint8))
    edges = np.where(np.arange(70) % 10 < 5, 0, 255).astype(np.uint8)
    b = write(tmp_path / "b.tif", np.tile(edges, (60, 1)), grid(-1, -1, (7, 7)))
    with pytest.warns(UserWarning, match="resampled"):
        lr, masks = whole(source([a, b], warp=True))
    assert lr.dtype == np.uint8
    inside = lr[1][masks[1]]
    assert (inside == 0).any() and (inside == 255).any()
    steps = np.abs(np.diff(lr[1, 15, :, 0].astype(int)))
    assert steps.max() <= 255


@pytest.mark.parametrize("crs", ["EPSG:32610", "EPSG:3031", "EPSG:4326"])
def test_another_crs_elsewhere_does_not_overlap(crs: str, tmp_path: Path) -> None:
    a = write(tmp_path / "a.tif", seen())
    b = write(tmp_path / "b.tif", seen(1), Affine(1e-3, 0, 20, 0, -1e-3, -80)
              if crs == "EPSG:4326" else None, crs=crs)  # fmt: skip
    with (
        pytest.warns(UserWarning, match="resampled"),
        pytest.raises(ValueError, match=r"b\.tif: found no overlap with a\.tif"),
    ):
        source([a, b], warp=True)
