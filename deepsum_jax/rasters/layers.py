"""What comes out of a stack as rasters: the image, its standard error, how many frames spoke."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.dtypes import dtype_rev

from deepsum_jax.rasters import values
from deepsum_jax.rasters.georeference import Georeference
from deepsum_jax.tiling.source import Strip

_COLOURS = ("red", "green", "blue", "gray")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A raster to be written of the strips of a result; see `image`, `standard_error`, `frames`.

    Attributes:
      path: the file.
      grid: what it will be; where its dtype holds no no-data value, a mask tells what is valid.
      colours: of the bands, by GDAL's names.
      of: its values in a strip, [rows, W, C].
      everywhere: whether it has values where no frame was reliable.
      nodata_needed: whether the no-data value stays where every pixel is valid.
    """

    path: Path
    grid: Georeference
    colours: tuple[str, ...]
    of: Callable[[Strip], np.ndarray | None]
    everywhere: bool = False
    nodata_needed: bool = True


def image(
    path: Path,
    georeference: Georeference,
    scale: int,
    dtype: str | None = None,
    colours: Sequence[str] = (),
) -> Layer:
    """The image: dtype, no-data value, scales, offsets and names of the input's.

    Args:
      georeference: of the reference frame, LR.
      dtype: other than the input's; numpy's name.
      colours: the input's colour interpretation, a name a band ("red", "alpha", "undefined" …).

    Raises:
      ValueError: a dtype that is not real, or that GeoTIFF does not know.
    """
    kind = _real_dtype(georeference.dtype if dtype is None else dtype)
    nodata = georeference.nodata
    if nodata is not None and not values.holds(kind, nodata):
        nodata = None
    if nodata is None and kind.kind == "f":
        nodata = float("nan")
    grid = dataclasses.replace(georeference.finer(scale), dtype=kind.name, nodata=nodata)
    return Layer(
        path, grid, _colours(grid, colours), lambda strip: strip.image,
        nodata_needed=georeference.nodata is not None,
    )  # fmt: skip


def standard_error(path: Path, georeference: Georeference, scale: int) -> Layer:
    """The standard error to be expected of each value, float32, in the unit of the raw values."""
    grid = georeference.finer(scale)
    names = [name or f"band {b}" for b, name in enumerate(grid.descriptions, 1)]
    grid = dataclasses.replace(
        grid,
        dtype="float32",
        nodata=float("nan"),
        offsets=(0.0,) * len(names),  # an error has no zero to move
        descriptions=tuple(f"standard error of {name}" for name in names),
    )
    return Layer(path, grid, _colours(grid, ()), lambda strip: strip.standard_error)


def frames(path: Path, georeference: Georeference, scale: int) -> Layer:
    """How many frames spoke at each pixel, uint8, rounded; 0 where none did."""

    def spoke(strip: Strip) -> np.ndarray | None:
        if strip.frames_per_pixel is None:
            return None
        return np.where(strip.valid, strip.frames_per_pixel, 0)[..., None]

    grid = dataclasses.replace(
        georeference.finer(scale),
        dtype="uint8",
        nodata=None,
        scales=(1.0,),
        offsets=(0.0,),
        descriptions=("frames that spoke",),
    )
    return Layer(path, grid, _colours(grid, ()), spoke, everywhere=True)


def _real_dtype(name: Any) -> np.dtype:
    try:
        dtype = np.dtype(name)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "uif" or dtype.name not in dtype_rev:
        known = ", ".join(n for n in map(str, dtype_rev) if n[0] in "uif")
        raise ValueError(f"dtype: found {name}, expected one of {known}")
    return dtype


def _colours(grid: Georeference, found: Sequence[str]) -> tuple[str, ...]:
    """What each band is drawn as. A super-resolved band is no palette, and an alpha band that came
    this far is a measurement, as NAIP's near infrared."""
    bands = len(grid.descriptions)
    names = [str(name).lower() for name in (found or grid.descriptions)]
    known = [
        n.capitalize() if n in ("red", "green", "blue", "gray") else "Undefined" for n in names
    ]
    if {"Red", "Green", "Blue"} <= set(known) or "Gray" in known:
        return tuple(known)
    return ("Gray", *("Undefined",) * (bands - 1))
