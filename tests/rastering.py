"""Small GeoTIFFs for tests: what they hold, and where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine

UTM = "EPSG:32618"
LEFT, TOP = 500000.0, 4600000.0


def grid(
    row: float = 0, column: float = 0, pixel: tuple[float, float] = (10, 10), south_up: bool = False
) -> Affine:
    """A grid whose first pixel lies at (row, column), in pixels of (y, x) units, of the origin."""
    y, x = pixel
    down = y if south_up else -y
    return Affine(x, 0, LEFT + column * x, 0, down, TOP + row * down)


def write(
    path: Path,
    values: np.ndarray,
    transform: Affine | None = None,
    *,
    crs: Any = UTM,
    nodata: float | None = None,
    names: tuple[str, ...] = (),
    mask: np.ndarray | None = None,
    **options: Any,
) -> Path:
    """A GeoTIFF of values [h, w] or [h, w, C]; `mask` [h, w], 0 = hidden, lies in a .msk file."""
    values = values[..., None] if values.ndim == 2 else values
    profile = {
        "driver": "GTiff", "height": values.shape[0], "width": values.shape[1],
        "count": values.shape[2], "dtype": values.dtype.name, "crs": crs, "nodata": nodata,
        "transform": grid() if transform is None else transform, **options,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.moveaxis(values, -1, 0))
        for band, name in enumerate(names, 1):
            file.set_band_description(band, name)
        if mask is not None:
            file.write_mask(np.where(mask, 255, 0).astype(np.uint8))
    return path
