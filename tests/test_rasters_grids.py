"""Grids: whole pixels, the sign of what is left, and what is no longer one grid."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("rasterio", reason="needs the extra geo")

from odc.geo.geobox import GeoBox
from rastering import LEFT, TOP, UTM, grid
from rasterio.transform import Affine

from deepsum_jax.rasters import grids
from deepsum_jax.rasters.grids import Mismatch, Place
from deepsum_jax.rasters.options import ReadOptions

SIZE = (40, 60)
PIXELS = [(10, 10), (0.5, 0.5), (3031.5584415584412, 3020.1315789473683), (1e-5, 2e-5)]


def box(transform: Affine, crs: str | None = UTM, size: tuple[int, int] = SIZE) -> GeoBox:
    return GeoBox(size, transform, crs)


# --- where pixels lie ---------------------------------------------------------------------------


@pytest.mark.parametrize("south_up", [False, True])
@pytest.mark.parametrize("pixel", PIXELS)
@pytest.mark.parametrize(
    ("row", "column", "whole", "left"),
    [
        (0, 0, (0, 0), (0, 0)),
        (7, -12, (7, -12), (0, 0)),
        (2.25, 5.4, (2, 5), (0.25, 0.4)),
        (-2.25, -5.4, (-2, -5), (-0.25, -0.4)),
        (2.75, -5.6, (3, -6), (-0.25, 0.4)),
        (-0.3, 0.2, (0, 0), (-0.3, 0.2)),
    ],
)
def test_a_date_that_begins_further_down_has_its_pixels_further_down(
    row: float, column: float, whole: tuple[int, int], left: tuple[float, float],
    pixel: tuple[float, float], south_up: bool,
) -> None:  # fmt: skip
    found = grids.place(
        box(grid(row, column, pixel, south_up)), box(grid(0, 0, pixel, south_up), size=(90, 30))
    )
    assert isinstance(found, Place)
    assert (found.row, found.column) == whole
    np.testing.assert_allclose(found.fraction, left, atol=2e-4 if pixel[0] < 1e-3 else 1e-6)


def test_what_is_placed_is_what_lies_there() -> None:
    """By the coordinates of pixels' centres, which know nothing of rows and columns."""
    theirs, own = box(grid(3.3, -4.2)), box(grid())
    found = grids.place(theirs, own)
    assert isinstance(found, Place)
    centre = theirs.transform * (7.5, 11.5)  # of column 7, row 11
    column, row = (v - 0.5 for v in ~own.transform * centre)
    assert 11 + found.row + found.fraction[0] == pytest.approx(row)
    assert 7 + found.column + found.fraction[1] == pytest.approx(column)


def test_a_rotated_pair_is_one_grid() -> None:
    turned = grid() * Affine.rotation(30)
    found = grids.place(box(turned * Affine.translation(-3.2, 5.1)), box(turned))
    assert isinstance(found, Place)
    assert (found.row, found.column) == (5, -3)
    np.testing.assert_allclose(found.fraction, (0.1, -0.2), atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_pixels_may_drift_by_half_a_pixel_from_the_centre_to_the_ends(axis: int) -> None:
    """40×60 pixels: 20 and 30 from the centre to the ends."""
    for drift, same in [(0.49, True), (-0.49, True), (0.51, False), (-0.51, False)]:
        pixel = [10.0, 10.0]
        pixel[axis] *= 1 + drift / (SIZE[axis] / 2)
        found = grids.place(box(grid(0, 0, (pixel[0], pixel[1]))), box(grid()))
        assert isinstance(found, Place) is same, (drift, found)


def test_a_drifting_date_is_placed_by_its_centre() -> None:
    stretched = Affine(10.1, 0, LEFT, 0, -10, TOP)  # 60 pixels: 0.3 from the centre to the ends
    found = grids.place(box(stretched), box(grid()))
    assert isinstance(found, Place)
    assert found.column == 0
    np.testing.assert_allclose(found.fraction, (0, 0.3), atol=1e-9)


def test_what_is_not_one_grid_is_said() -> None:
    def reason(transform: Affine, crs: str | None = UTM) -> str:
        found = grids.place(box(transform, crs), box(grid()))
        assert isinstance(found, Mismatch)
        return found.reason

    assert reason(grid(), "EPSG:32617") == "CRS EPSG:32617, expected EPSG:32618"
    assert reason(grid(), None) == "CRS none, expected EPSG:32618"
    assert reason(grid(0, 0, (20, 20))) == "pixels of 20 × 20, expected 10 × 10"
    assert "rotation" in reason(grid() * Affine.rotation(5))
    assert "other way" in reason(grid(0, 0, south_up=True))
    assert "other way" in reason(grid() * Affine.translation(60, 0) * Affine.scale(-1, 1))


def test_one_crs_by_two_names() -> None:
    from rasterio.crs import CRS

    other = CRS.from_wkt(CRS.from_epsg(32618).to_wkt())
    assert isinstance(grids.place(GeoBox(SIZE, grid(), other), box(grid())), Place)


# --- the part that is asked for -----------------------------------------------------------------


def test_a_window_counts_pixels() -> None:
    assert grids.area(box(grid()), ReadOptions(window=(3, 5, 20, 30))) == (3, 5, 20, 30)
    assert grids.area(box(grid()), ReadOptions()) == (0, 0, *SIZE)


@pytest.mark.parametrize(
    "window", [(-1, 0, 9, 9), (0, -1, 9, 9), (0, 0, 0, 9), (35, 0, 6, 9), (0, 55, 9, 6)]
)
def test_a_window_beyond_the_reference_is_refused(window: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"--window: found rows .* expected .* 40×60"):
        grids.area(box(grid()), ReadOptions(window=window))


@pytest.mark.parametrize("south_up", [False, True])
@pytest.mark.parametrize("pixel", [(10, 10), (20, 5)])
def test_bounds_take_the_pixels_that_they_touch(pixel: tuple[float, float], south_up: bool) -> None:
    whole = grid(0, 0, pixel, south_up)
    for (top, left, height, width), slack in [
        ((3, 5, 20, 30), 0.0),  # on edges of pixels: these, and no neighbour
        ((3, 5, 20, 30), 0.4),  # within them
    ]:
        corners = [
            whole * (left + slack, top + slack),
            whole * (left + width - slack, top + height - slack),
        ]
        xs, ys = zip(*corners)
        bounds = (min(xs), min(ys), max(xs), max(ys))
        assert grids.area(box(whole), ReadOptions(bounds=bounds)) == (top, left, height, width)


def test_bounds_that_reach_beyond_are_cut() -> None:
    bounds = (LEFT - 1000, TOP - 55, LEFT + 101, TOP + 1000)
    assert grids.area(box(grid()), ReadOptions(bounds=bounds)) == (0, 0, 6, 11)


def test_bounds_that_are_none() -> None:
    for bounds, message in [
        ((LEFT + 10, TOP, LEFT, TOP + 10), "left < right"),
        ((LEFT, TOP, LEFT + 10, TOP - 10), "bottom < top"),
        ((LEFT, TOP, LEFT, TOP + 10), "left < right"),
        ((0, 0, 10, 10), "no overlap"),
        ((math.nan, 0, 10, 10), "left < right"),
        ((-math.inf, 0, 10, 10), "left < right"),
    ]:
        with pytest.raises(ValueError, match=rf"^--bounds: .*({message})"):
            grids.area(box(grid()), ReadOptions(bounds=bounds))


# --- the part, counted on another date's grid ----------------------------------------------------


def test_a_window_is_the_same_ground_on_any_reference() -> None:
    """Of the first date, where the clearest is chosen and nobody knows yet which that is."""
    first, other = box(grid()), box(grid(-4.3, 6.2))
    found = grids.area(other, ReadOptions(window=(3, 10, 20, 30)), first)
    assert found == (7, 4, 20, 30)
    # And what lies beyond it is cut off.
    assert grids.area(other, ReadOptions(window=(3, 0, 20, 30)), first) == (7, 0, 20, 24)
    with pytest.raises(ValueError, match="no overlap"):
        grids.area(other, ReadOptions(window=(0, 0, 20, 5)), first)
    with pytest.raises(ValueError, match="--window: found rows 30 to 50"):
        grids.area(other, ReadOptions(window=(30, 0, 20, 5)), first)
    assert grids.area(other, ReadOptions(), first) == (0, 0, *SIZE)


def test_bounds_have_the_units_of_the_grid_that_they_are_counted_on() -> None:
    first = box(grid(), size=(400, 600))
    degrees = box(Affine(1e-4, 0, -75.02, 0, -1e-4, 41.56), "EPSG:4326", (700, 900))
    row, column, height, width = grids.area(degrees, ReadOptions(window=(50, 60, 100, 200)), first)
    # 1e-4 degrees are 11.1 m down and 8.3 m across there; the grids are all but parallel.
    assert height == pytest.approx(1000 / 11.1, abs=3)
    assert width == pytest.approx(2000 / 8.33, abs=3)
    x, y = grids.onto(degrees, first, np.array([column + 0.5]), np.array([row + 0.5]))
    assert abs(x[0] - 60) < 2
    assert abs(y[0] - 50) < 2
