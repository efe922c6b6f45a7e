"""Dates of one place read from files onto one grid, without resampling a single value.

GeoTIFFs of different dates rarely share their origin and size. Here each is moved by the nearest
whole pixel onto the first one's grid, so what is left is a misregistration of up to half a pixel,
as between real dates; then all are cut to the window that they have in common.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deepsum_jax.data.arrayfile import read_arrays
from deepsum_jax.data.chunks import MOST_PIXELS
from deepsum_jax.tiling.source import Rect

# Pixel sizes that differ by more would drift apart by a pixel over a thousand.
_SAME_PITCH = 1e-3


class Dates(NamedTuple):
    """Co-located dates of one band."""

    values: np.ndarray  # [T, H, W], the files' dtype
    masks: np.ndarray  # [T, H, W] bool, True = measured


class _Raster(NamedTuple):
    path: Path
    values: np.ndarray  # [H, W]
    nodata: float | None
    transform: Any  # of rasterio: columns and rows to map units
    crs: Any


def _read_raster(path: Path, band: int) -> _Raster:
    try:
        from deepsum_jax.rasters.dates import open_raster, read_part
    except ImportError:
        raise ValueError(
            "GeoTIFFs: found no rasterio, expected the extra geo: pip install 'deepsum_jax[geo]'"
        ) from None
    with open_raster(path) as source:
        if not 1 <= band <= source.count:
            raise ValueError(f"{path}: found {source.count} bands, expected band {band} in it")
        if source.height * source.width > MOST_PIXELS:
            raise ValueError(
                f"{path}: found {source.height}×{source.width} pixels, expected at most "
                f"{MOST_PIXELS}; cut it, as by rio clip"
            )
        # By number alone: a file's colour tags may call a near-infrared band alpha.
        (values,) = read_part(source, (band,), Rect(0, 0, source.height, source.width))
        return _Raster(path, values, source.nodata, source.transform, source.crs)


def _corner(raster: _Raster, first: _Raster) -> tuple[int, int]:
    """Row and column of the first raster's grid where this one's first pixel lies, nearest."""
    a, b = raster.transform, first.transform
    if raster.crs != first.crs:
        raise ValueError(f"{raster.path}: found {raster.crs}, expected {first.crs} like the first")
    pitch, wanted = (a.a, a.b, a.d, a.e), (b.a, b.b, b.d, b.e)
    if not np.allclose(pitch, wanted, rtol=0, atol=_SAME_PITCH * abs(b.a)):
        raise ValueError(f"{raster.path}: found pixels {pitch}, expected {wanted} like the first")
    if b.b or b.d:
        raise ValueError(f"{first.path}: found a rotated grid, expected rows that run east")
    return round((a.f - b.f) / b.e), round((a.c - b.c) / b.a)


def _on_first_grid(rasters: Sequence[_Raster]) -> Dates:
    corners = np.array([_corner(raster, rasters[0]) for raster in rasters])
    ends = corners + [raster.values.shape for raster in rasters]
    start, stop = corners.max(axis=0), ends.min(axis=0)
    if (stop <= start).any():
        raise ValueError(f"{rasters[0].path}: found no pixel in common with the others")
    values, masks = [], []
    for raster, (top, left) in zip(rasters, corners):
        rows = slice(start[0] - top, stop[0] - top)
        columns = slice(start[1] - left, stop[1] - left)
        part = raster.values[rows, columns]
        values.append(part)
        masks.append(measured(part, raster.nodata))
    return Dates(np.stack(values), np.stack(masks))


def measured(values: np.ndarray, nodata: float | None = None) -> np.ndarray:
    """Which values are measurements: finite, not 0 and not the file's own no-data value."""
    mask = np.isfinite(values) & (values != 0)
    return mask if nodata is None else mask & (values != nodata)


def _read_array(path: Path) -> Dates:
    found = read_arrays(path, "a numpy array of dates [T, H, W]")
    masks = None
    if isinstance(found, np.ndarray):
        values = found
    else:
        masks = found.pop("masks", None)
        if len(found) != 1:
            raise ValueError(
                f"{path}: found the arrays {', '.join([*found][:9]) or 'none'}, expected one of "
                "dates [T, H, W] and at most one more, named masks"
            )
        values = next(iter(found.values()))
    if values.ndim != 3 or 0 in values.shape or values.dtype.kind not in "uif":
        raise ValueError(
            f"{path}: found {values.dtype} of shape {values.shape}, expected real dates [T, H, W]"
        )
    if masks is not None and masks.shape != values.shape:
        raise ValueError(f"{path}: found masks of {masks.shape}, expected {values.shape}")
    if masks is not None and masks.dtype.kind not in "buif":
        raise ValueError(f"{path}: found masks of dtype {masks.dtype}, expected bool, or 0 and 1")
    known = measured(values)
    return Dates(values, known if masks is None else known & (masks != 0))


def read_dates(
    paths: Sequence[str | os.PathLike[str]],
    band: int = 1,
    columns: tuple[int, int] | None = None,
) -> Dates:
    """Reads the dates of one place.

    Args:
      paths: GeoTIFFs, one a date, in the order of time; or one .npy or .npz file of dates
        [T, H, W], an .npz with masks [T, H, W] beside them if it likes.
      band: of the GeoTIFFs, by number from 1 on, whatever the files call it.
      columns: first and last + 1 of the common window to keep; None keeps all.

    Returns:
      values [T, H, W] and masks [T, H, W]; 0, the no-data value and what is not finite are
      not measured.

    Raises:
      FileNotFoundError: a file that is not there.
      ValueError: an unreadable file, another grid than the first one's, no such band or column,
        or rasterio missing.
    """
    found = [Path(path) for path in paths]
    if not found:
        raise ValueError("dates: found no file, expected at least one")
    if found[0].suffix in (".npy", ".npz"):
        if len(found) > 1:
            raise ValueError(
                f"{found[0]}: found {len(found) - 1} files beside it, expected all dates in one"
            )
        dates = _read_array(found[0])
    else:
        dates = _on_first_grid([_read_raster(path, band) for path in found])
    if columns is None:
        return dates
    first, end = columns
    if not 0 <= first < end <= dates.values.shape[2]:
        raise ValueError(
            f"columns: found {first} to {end}, expected a range within 0 to {dates.values.shape[2]}"
        )
    return Dates(dates.values[:, :, first:end], dates.masks[:, :, first:end])
