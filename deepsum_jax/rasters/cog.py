"""From rows in a plain file to a cloud-optimised GeoTIFF, by GDAL's own driver.

The rows lie in a file as they are, and a few lines of XML (GDAL's virtual format) say what they
are: that is written without holding more than a few rows, and every failure to write is heard.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.dtypes import dtype_rev, typename_fwd
from rasterio.errors import RasterioError
from rasterio.windows import Window

from deepsum_jax.rasters.georeference import Georeference

BLOCK = 512  # pixels a side
_CACHE = 64 * 2**20  # bytes that GDAL keeps of what it reads and writes


@dataclasses.dataclass(frozen=True)
class Rows:
    """A raster as plain rows in files, from the first to the last.

    Attributes:
      values: file of the dtype of `grid`, [H, C, W].
      valid: file of uint8 [H, W], 255 where valid; None where all are, or the no-data value says.
      grid: what the rows are.
      tags: of the whole raster.
      colours: what each band is drawn as, by GDAL's names: "Gray", "Red", "Undefined" …
    """

    values: Path
    valid: Path | None
    grid: Georeference
    tags: Mapping[str, str]
    colours: Sequence[str]


def _virtual(rows: Rows) -> str:
    """The rows as GDAL's virtual raster."""
    grid, size = rows.grid, np.dtype(rows.grid.dtype).itemsize
    root = ElementTree.Element(
        "VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height)
    )

    def add(parent: ElementTree.Element, name: str, text: Any, **attributes: str) -> None:
        ElementTree.SubElement(parent, name, attributes).text = str(text)

    def add_raw(
        parent: ElementTree.Element, file: Path, dtype: str, start: int, pixel: int, line: int
    ) -> ElementTree.Element:
        band = ElementTree.SubElement(
            parent, "VRTRasterBand", dataType=dtype, subClass="VRTRawRasterBand"
        )
        add(band, "SourceFilename", file.name, relativeToVRT="1")
        add(band, "ImageOffset", start)
        add(band, "PixelOffset", pixel)
        add(band, "LineOffset", line)
        add(band, "ByteOrder", "LSB" if sys.byteorder == "little" else "MSB")
        return band

    if grid.crs is not None:
        add(root, "SRS", grid.crs.to_wkt())
    add(root, "GeoTransform", ", ".join(repr(float(v)) for v in grid.transform.to_gdal()))
    about = ElementTree.SubElement(root, "Metadata")
    for key, value in rows.tags.items():
        add(about, "MDI", value, key=key)
    bands = len(rows.colours)
    for b, colour in enumerate(rows.colours):
        band = add_raw(
            root,
            rows.values,
            typename_fwd[dtype_rev[np.dtype(grid.dtype).name]],
            b * grid.width * size,
            size,
            bands * grid.width * size,
        )
        band.set("band", str(b + 1))
        add(band, "ColorInterp", colour)
        if grid.descriptions[b]:
            add(band, "Description", grid.descriptions[b])
        if grid.nodata is not None:
            add(band, "NoDataValue", repr(grid.nodata))
        if (grid.scales[b], grid.offsets[b]) != (1.0, 0.0):
            add(band, "Scale", repr(float(grid.scales[b])))
            add(band, "Offset", repr(float(grid.offsets[b])))
    if rows.valid is not None:
        mask = ElementTree.SubElement(root, "MaskBand")
        add_raw(mask, rows.valid, "Byte", 0, 1, grid.width)
    return ElementTree.tostring(root, encoding="unicode")


def write(rows: Rows, path: Path) -> None:
    """Makes a cloud-optimised GeoTIFF: 512 × 512 blocks, DEFLATE, averaged overviews.

    The same rows give the same bytes. What was written is read back and compared, since GDAL does
    not notice every failure.

    Args:
      path: the file, which does not exist; in a folder of its own, for GDAL puts more beside it.

    Raises:
      OSError: it could not be written.
    """
    virtual = rows.values.with_suffix(".vrt")
    virtual.write_text(_virtual(rows), encoding="utf-8")
    raw = sum(p.stat().st_size for p in (rows.values, rows.valid) if p is not None)
    tight = shutil.disk_usage(path.parent).free < 2 * raw + 2**20
    try:
        with rasterio.Env(GDAL_CACHEMAX=_CACHE), _quiet() if tight else contextlib.nullcontext():
            rasterio.shutil.copy(
                virtual, path, driver="COG", compress="DEFLATE", predictor="YES", blocksize=BLOCK,
                overview_resampling="AVERAGE", bigtiff="IF_SAFER", num_threads="ALL_CPUS",
            )  # fmt: skip
            _check(virtual, path)
    except (OSError, RasterioError) as error:
        raise OSError(_reason(error, path)) from None
    except Exception as error:
        # What GDAL reports while it copies is of a private class of rasterio's.
        if not type(error).__module__.startswith("rasterio"):
            raise
        raise OSError(_reason(error, path)) from None
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _reason(error: Exception, path: Path) -> str:
    free = shutil.disk_usage(path.parent).free / 1e6
    return f"{' '.join(str(error).split())[:200]}; {free:.0f} MB are free on its disk"


def _check(virtual: Path, path: Path) -> None:
    """Reads a GeoTIFF back, all of it, and holds it against what it was made of."""
    with rasterio.open(virtual) as wanted, rasterio.open(path) as found:
        levels = len(found.overviews(1))
        masked = "per_dataset" in {flag.name for flag in wanted.mask_flag_enums[0]}
        for window in _windows(found):
            same = wanted.read(window=window).tobytes() == found.read(window=window).tobytes()
            if same and masked:
                same = np.array_equal(*(d.dataset_mask(window=window) for d in (wanted, found)))
            if not same:
                raise OSError("what was written does not read back as it was")
    for level in range(levels):
        with rasterio.open(path, overview_level=level) as overview:
            for (i, j), _ in overview.block_windows(1):
                overview.block_size(1, i, j)  # raises where there is none, which reads as zeros
            for window in _windows(overview):
                overview.read(window=window, masked=masked)


def _windows(raster: Any) -> Iterator[Window]:
    """A few blocks at a time, so that wide rasters take no more memory than others."""
    for row in range(0, raster.height, BLOCK):
        for column in range(0, raster.width, 4 * BLOCK):
            height, width = min(BLOCK, raster.height - row), raster.width - column
            yield Window(column, row, min(4 * BLOCK, width), height)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what C libraries write to stderr: libtiff has its own words for a full disk."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
