"""Pixel grids: which dates share one but for whole pixels and a fraction, and which do not.

Frames are never resampled where it can be helped: what lies between whole pixels is what
super-resolution feeds on. A date keeps its own pixels, shifted by whole ones to where they lie
best; the fraction that is left is told to registration.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import rasterio.warp
from odc.geo.geobox import GeoBox
from rasterio.transform import Affine

from deepsum_jax.rasters.options import ReadOptions
from deepsum_jax.tiling.source import Rect

_DRIFT = 0.5  # LR pixels, how far a date's grid may run apart from the reference's by its ends


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a date's pixels lie on the reference's grid.

    Attributes:
      row, column: whole pixels that are added to a date's to get the reference's.
      fraction: [2] (y, x), what is left: −0.5 to 0.5 pixels.
    """

    row: int
    column: int
    fraction: tuple[float, float]


class Mismatch(NamedTuple):
    """Why a date does not share the reference's grid."""

    reason: str


def _size(grid: GeoBox) -> np.ndarray:
    return np.array([grid.shape.x, grid.shape.y], np.float64)


def place(grid: GeoBox, reference: GeoBox) -> Place | Mismatch:
    """Where a date's grid lies on the reference's, or why it does not.

    Two grids are one where CRS, rotation and pixel size agree so far that no pixel drifts by half a
    pixel from the date's centre to its ends.
    """
    if grid.crs != reference.crs:
        return Mismatch(f"CRS {_name(grid.crs)}, expected {_name(reference.crs)}")
    to: Affine = ~reference.transform @ grid.transform  # the date's pixels → the reference's
    half = _size(grid) / 2
    linear = np.array([(to.a, to.b), (to.d, to.e)]) - np.eye(2)
    drift = float((np.abs(linear) @ half).max())
    if not drift < _DRIFT:
        if to.a < 0 or to.e < 0:
            return Mismatch("rows or columns that run the other way than those")
        turned = abs(linear[0, 1]) + abs(linear[1, 0]) > abs(linear[0, 0]) + abs(linear[1, 1])
        what = "a rotation" if turned else f"pixels of {_pixel(grid)}"
        wanted = "the reference's" if turned else _pixel(reference)
        return Mismatch(f"{what}, expected {wanted}")
    middle = np.array(to @ tuple(half)) - half
    whole = np.floor(middle + 0.5)
    x, y = (float(v) for v in middle - whole)
    return Place(int(whole[1]), int(whole[0]), (y, x))


def _name(crs: Any) -> str:
    if crs is None:
        return "none"
    return f"EPSG:{crs.epsg}" if crs.epsg else crs.proj.name


def _pixel(grid: GeoBox) -> str:
    t = grid.transform
    x, y = float(np.hypot(t.a, t.d)), float(np.hypot(t.b, t.e))
    return f"{x:.6g} × {y:.6g}"


def area(reference: GeoBox, options: ReadOptions, counted: GeoBox | None = None) -> Rect:
    """The part of the reference's grid that is asked for.

    Args:
      counted: the grid whose pixels a window counts, and whose units bounds have; by default the
        reference's. What of the part lies beyond the reference is cut off.

    Raises:
      ValueError: it does not lie within the grid that it is counted on, or not on the reference.
    """
    if counted is not None and counted is not reference and (options.window or options.bounds):
        return _elsewhere(reference, options, counted)
    height, width = reference.shape
    if options.window is not None:
        row, column, high, wide = options.window
        if (
            min(row, column) < 0
            or min(high, wide) < 1
            or row + high > height
            or column + wide > width
        ):
            raise ValueError(
                f"--window: found rows {row} to {row + high} and columns {column} to "
                f"{column + wide}, expected a part of the reference's {height}×{width} pixels"
            )
        return Rect(row, column, high, wide)
    if options.bounds is None:
        return Rect(0, 0, height, width)
    left, bottom, right, top = options.bounds
    if not (left < right and bottom < top and np.isfinite(options.bounds).all()):
        raise ValueError(
            f"--bounds: found {left:g} {bottom:g} {right:g} {top:g}, expected left < right and "
            "bottom < top"
        )
    corners = [~reference.transform @ (x, y) for x in (left, right) for y in (bottom, top)]
    xs, ys = zip(*corners)
    row, column = np.floor(min(ys) + 1e-6), np.floor(min(xs) + 1e-6)
    found = _within(
        reference, row, column, np.ceil(max(ys) - 1e-6) - row, np.ceil(max(xs) - 1e-6) - column
    )
    if found is None:
        box = reference.boundingbox
        raise ValueError(
            f"--bounds: found no overlap with the reference, expected a part of {box.left:.12g} "
            f"{box.bottom:.12g} {box.right:.12g} {box.top:.12g}"
        )
    return found


def _within(grid: GeoBox, row: float, column: float, high: float, wide: float) -> Rect | None:
    """What of a part lies on a grid."""
    height, width = grid.shape
    top, below = (int(np.clip(v, 0, height)) for v in (row, row + high))
    left, beside = (int(np.clip(v, 0, width)) for v in (column, column + wide))
    found = Rect(top, left, below - top, beside - left)
    return found if found.height > 0 and found.width > 0 else None


def _elsewhere(reference: GeoBox, options: ReadOptions, counted: GeoBox) -> Rect:
    """`area` of what is counted on another grid: the same whole pixels where it is the same but for
    its origin, else the pixels that the part touches."""
    part, found = area(counted, options), place(counted, reference)
    moved: Rect | None = None
    if isinstance(found, Place):
        moved = _within(
            reference, part.row + found.row, part.column + found.column, part.height, part.width
        )
    else:
        y, x = (np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.0, 0.0, 1.0, 1.0]))
        x, y = onto(counted, reference, part.column + x * part.width, part.row + y * part.height)
        if np.isfinite((x, y)).all():
            first = np.floor((x.min(), y.min()))
            size = np.ceil((x.max(), y.max())) - first
            moved = _within(reference, first[1], first[0], size[1], size[0])
    if moved is None:
        raise ValueError("--window or --bounds: found no overlap with the reference")
    return moved


def onto(
    grid: GeoBox, other: GeoBox, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """From (column, row) on one grid to those on another, across their CRS; where there is no such
    place, infinite. Two grids of which one has no CRS are taken to share it."""
    x, y = _through(grid.transform, x, y)
    if grid.crs is not None and other.crs is not None and grid.crs != other.crs:
        x, y = (np.array(v) for v in rasterio.warp.transform(str(grid.crs), str(other.crs), x, y))
    return _through(~other.transform, x, y)


def _through(t: Affine, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f
