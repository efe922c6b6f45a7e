"""Pixel grids: which dates share one but for whole pixels and a fraction, and which do not.

Frames are never resampled where it can be helped: what lies between whole pixels is what
super-resolution feeds on. A date keeps its own pixels, shifted by whole ones to where they lie
best; the fraction that is left is told to registration.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
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
    onto: Affine = ~reference.transform @ grid.transform  # the date's pixels → the reference's
    half = _size(grid) / 2
    linear = np.array([(onto.a, onto.b), (onto.d, onto.e)]) - np.eye(2)
    drift = float((np.abs(linear) @ half).max())
    if not drift < _DRIFT:
        turned = abs(linear[0, 1]) + abs(linear[1, 0]) > abs(linear[0, 0]) + abs(linear[1, 1])
        what = "a rotation" if turned else f"pixels of {_pixel(grid)}"
        wanted = "the reference's" if turned else _pixel(reference)
        return Mismatch(f"{what}, expected {wanted}")
    middle = np.array(onto @ tuple(half)) - half
    whole = np.floor(middle + 0.5)
    x, y = (float(v) for v in middle - whole)
    return Place(int(whole[1]), int(whole[0]), (y, x))


def _name(crs: Any) -> str:
    return "none" if crs is None else str(crs)


def _pixel(grid: GeoBox) -> str:
    t = grid.transform
    x, y = float(np.hypot(t.a, t.d)), float(np.hypot(t.b, t.e))
    return f"{x:.6g} × {y:.6g}"


def area(reference: GeoBox, options: ReadOptions) -> Rect:
    """The part of the reference's grid that is asked for.

    Raises:
      ValueError: it does not lie within the reference.
    """
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
    if not (left < right and bottom < top):
        raise ValueError(
            f"--bounds: found {left:g} {bottom:g} {right:g} {top:g}, expected left < right and "
            "bottom < top"
        )
    corners = [~reference.transform @ (x, y) for x in (left, right) for y in (bottom, top)]
    xs, ys = zip(*corners)
    first, last = (
        np.clip(np.array(ends), 0, (width, height))
        for ends in (
            (np.floor(min(xs) + 1e-6), np.floor(min(ys) + 1e-6)),
            (np.ceil(max(xs) - 1e-6), np.ceil(max(ys) - 1e-6)),
        )
    )
    wide, high = (int(n) for n in last - first)
    if wide < 1 or high < 1:
        box = reference.boundingbox
        raise ValueError(
            f"--bounds: found no overlap with the reference, expected a part of {box.left:g} "
            f"{box.bottom:g} {box.right:g} {box.top:g}"
        )
    return Rect(int(first[1]), int(first[0]), high, wide)
