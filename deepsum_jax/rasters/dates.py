"""One date: its files, its bands as raw numbers, and which of its pixels are there."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from deepsum_jax.tiling.source import Rect

# GDAL's datasets are not to be used by two threads at once, and files are read fast enough by one.
_READING = threading.RLock()


def open_raster(path: Path) -> Any:
    """A dataset.

    Raises:
      FileNotFoundError, ValueError: no such file, or none that GDAL reads; one line.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: found a folder, device or pipe, expected a raster file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # said once, by `source`
            return rasterio.open(path)
    except RasterioError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: found no raster that GDAL reads ({reason[:200]})") from None


def read_part(dataset: Any, bands: Sequence[int], rect: Rect, masked: bool = False) -> np.ndarray:
    """Bands, or their masks, of a part within a dataset: [C, h, w].

    Raises:
      ValueError: a file that is cut short or damaged.
    """
    window = Window(rect.column, rect.row, rect.width, rect.height)
    read = dataset.read_masks if masked else dataset.read
    with _READING:
        try:
            return np.asarray(read(list(bands), window=window))
        except RasterioError as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{dataset.name}: found a raster that is cut short or damaged ({reason[:200]}), "
                "expected one that reads; fetch it anew"
            ) from None


def is_alpha(dataset: Any, band: int) -> bool:
    """Whether a band is a mask rather than a measurement: where the dataset's own flags use it as
    one. A band that is merely tagged alpha, as NAIP's near infrared is, is none."""
    alpha = MaskFlags.alpha
    used = any(alpha in flags for flags in dataset.mask_flag_enums)
    return bool(used and dataset.colorinterp[band - 1] == ColorInterp.alpha)


class Date:
    """One date's files, of one grid.

    Attributes:
      grid: of its pixels.
      labels: names of its bands, a number where a band has none.
      dtype, scales, offsets: of its bands.
    """

    def __init__(self, paths: Sequence[Path], nodata: float | None = None) -> None:
        self.paths = tuple(paths)
        self._datasets = [open_raster(path) for path in self.paths]
        first = self._datasets[0]
        self.crs = first.crs
        self.grid = GeoBox(first.shape, first.transform, first.crs)
        for path, dataset in zip(self.paths, self._datasets):
            if (dataset.shape, dataset.transform, dataset.crs) != (
                first.shape, first.transform, first.crs,
            ):  # fmt: skip
                raise ValueError(
                    f"{path}: found another grid than that of {self.paths[0]}, expected bands of "
                    "one date on one grid"
                )
        self._bands = [
            (dataset, band)
            for dataset in self._datasets
            for band in dataset.indexes
            if not is_alpha(dataset, band)
        ]
        if not self._bands:
            raise ValueError(f"{self.paths[0]}: found no band but an alpha band")
        self.labels = tuple(d.descriptions[b - 1] or "" for d, b in self._bands)
        self._nodata = nodata
        kinds = {d.dtypes[b - 1] for d, b in self._bands}
        for kind in kinds:
            if "complex" in kind:
                raise ValueError(f"{self.paths[0]}: found {kind} values, expected real numbers")
        self.dtype = np.result_type(*(np.dtype(kind) for kind in kinds))

    @property
    def count(self) -> int:
        """How many bands it has."""
        return len(self._bands)

    @property
    def has_place(self) -> bool:
        """Whether its files say where they lie."""
        return not self._datasets[0].transform.is_identity

    def scaling(self, bands: Sequence[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Scales and offsets of bands (from 0 on)."""
        pairs = [(d.scales[b - 1], d.offsets[b - 1]) for d, b in (self._bands[n] for n in bands)]
        return tuple(s for s, _ in pairs), tuple(o for _, o in pairs)

    def colours(self, bands: Sequence[int]) -> tuple[str, ...]:
        """What bands are drawn as, by GDAL's names."""
        return tuple(d.colorinterp[b - 1].name for d, b in (self._bands[n] for n in bands))

    def nodata_of(self, band: int) -> float | None:
        """The value that says that there is none, of a band (from 0 on)."""
        dataset, number = self._bands[band]
        return dataset.nodatavals[number - 1] if self._nodata is None else self._nodata

    def read(self, bands: Sequence[int], rect: Rect) -> tuple[np.ndarray, np.ndarray]:
        """Bands (from 0 on) of a part of it: raw values [h, w, C], and which pixels are there in
        all of them [h, w]; not there where the part lies beyond it."""
        inner, within = _inside(rect, self.grid.shape)
        values = np.zeros((rect.height, rect.width, len(bands)), self.dtype)
        known = np.zeros((rect.height, rect.width), bool)
        if inner is None:
            return values, known
        there = np.ones((inner.height, inner.width), bool)
        for n, band in enumerate(bands):
            dataset, number = self._bands[band]
            part = read_part(dataset, [number], inner)[0]
            values[(*within, n)] = part
            there &= self._there(dataset, number, part, band, inner)
        known[within] = there
        return values, known

    def _there(
        self, dataset: Any, number: int, part: np.ndarray, band: int, inner: Rect
    ) -> np.ndarray:
        there = np.isfinite(part) if part.dtype.kind == "f" else np.ones(part.shape, bool)
        nodata = self.nodata_of(band)
        if nodata is not None and np.isfinite(nodata):
            there &= part != nodata
        flags = dataset.mask_flag_enums[number - 1]
        if MaskFlags.per_dataset in flags or not {MaskFlags.all_valid, MaskFlags.nodata} & {*flags}:
            there &= read_part(dataset, [number], inner, masked=True)[0] > 0
        return there

    def close(self) -> None:
        with _READING:
            for dataset in self._datasets:
                dataset.close()


def _inside(rect: Rect, shape: Any) -> tuple[Rect | None, tuple[slice, slice]]:
    """The part of a rect that lies in [0, h) × [0, w), and where that lies in the rect."""
    height, width = int(shape[0]), int(shape[1])
    top, left = max(rect.row, 0), max(rect.column, 0)
    bottom = min(rect.row + rect.height, height)
    right = min(rect.column + rect.width, width)
    within = (
        slice(top - rect.row, bottom - rect.row),
        slice(left - rect.column, right - rect.column),
    )
    if bottom <= top or right <= left:
        return None, within
    return Rect(top, left, bottom - top, right - left), within
