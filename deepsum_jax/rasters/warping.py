"""Dates on other grids than the reference's, resampled: what --warp asks for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import rasterio.warp
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from deepsum_jax.rasters import grids
from deepsum_jax.tiling.source import Rect

_AROUND = 4  # pixels of the coarser grid around a part that resampling reads


class Part(NamedTuple):
    """One date on a part of a grid."""

    values: np.ndarray  # [h, w, C] raw
    there: np.ndarray  # [h, w], where it has values
    clear: np.ndarray  # [h, w], where no mask file hides it


def shown(grid: GeoBox, onto: GeoBox) -> Rect | None:
    """The part of a grid that it takes to resample it onto another, within it; None where the two
    lie beside each other.

    Args:
      grid, onto: both with a CRS, or both without.
    """
    edge = np.linspace(0, 1, 9)
    x = onto.shape.x * np.concatenate([edge, edge, 0 * edge, 0 * edge + 1])
    y = onto.shape.y * np.concatenate([0 * edge, 0 * edge + 1, edge, edge])
    x, y = grids.onto(onto, grid, x, y)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None  # so far away that projections do not reach
    around = [
        _AROUND * max(1.0, np.ptp(v) / size) for v, size in ((y, onto.shape.y), (x, onto.shape.x))
    ]
    # Compared as floats: they may be larger than whole numbers get.
    top, left = max(y.min(), 0.0), max(x.min(), 0.0)
    bottom, right = min(y.max(), float(grid.shape.y)), min(x.max(), float(grid.shape.x))
    if bottom <= top or right <= left:
        return None
    row, column = (max(0, int(np.floor(v - a))) for v, a in zip((top, left), around))
    end, last = (
        min(size, int(np.ceil(v + a)))
        for v, a, size in zip((bottom, right), around, (grid.shape.y, grid.shape.x))
    )
    return Rect(row, column, end - row, last - column)


def density(grid: GeoBox, onto: GeoBox) -> tuple[float, float]:
    """How many of a grid's pixels, along its own axes (x, y), there are to one of another in the
    middle of that."""
    x, y = onto.shape.x / 2, onto.shape.y / 2
    step = np.array([(-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)])
    found = grids.onto(onto, grid, x + step[:, 0], y + step[:, 1])
    across, down = (np.hypot(v[1] - v[0], v[3] - v[2]) for v in found)
    return float(across), float(down)


def warped(
    part: Part, grid: GeoBox, onto: GeoBox, dtype: np.dtype, finer: tuple[float, float]
) -> Part:
    """A part resampled: values by cubic convolution, masks by the nearest pixel.

    Args:
      part: on `grid`.
      onto: the grid that it is wanted on.
      dtype: of the values that come out, rounded and clipped where it is one of whole numbers.
      finer: `density` of the whole grids: where it is above 1, cubic convolution takes a mean.
    """

    def moved(image: np.ndarray, how: Resampling) -> np.ndarray:
        out = np.full((len(image), onto.shape.y, onto.shape.x), np.nan, np.float32)
        rasterio.warp.reproject(
            image, out, src_nodata=np.nan, dst_nodata=np.nan, resampling=how,
            src_transform=grid.transform, dst_transform=onto.transform,
            src_crs=str(grid.crs), dst_crs=str(onto.crs),
            # GDAL's own choices would differ from tile to tile.
            tolerance=0, XSCALE=min(1, 1 / finer[0]), YSCALE=min(1, 1 / finer[1]),
        )  # fmt: skip
        return out

    known = np.where(part.there[..., None], part.values.astype(np.float32), np.nan)
    values = np.moveaxis(moved(np.moveaxis(known, -1, 0), Resampling.cubic), 0, -1)
    flags = np.stack([part.there, part.clear]).astype(np.float32)
    there, clear = moved(flags, Resampling.nearest) > 0.5
    there &= np.isfinite(values).all(axis=-1)
    values = np.where(there[..., None], values, 0)
    if dtype.kind in "ui":
        info = np.iinfo(dtype)
        values = np.clip(np.rint(values), info.min, info.max)
    return Part(values.astype(dtype), there, clear)
