"""One date: its files, its bands as raw numbers, and which of its pixels are there."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from deepsum_jax.rasters.values import holds
from deepsum_jax.tiling.source import Rect

# GDAL's datasets are not to be used by two threads at once, and files are read fast enough by one.
_READING = threading.RLock()
_LOOK = 256  # pixels on either side that a band tagged alpha is judged by
_OPAQUE = 0.9  # share of pixels that are either wholly there or not at all, of a true alpha band


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
            dataset = rasterio.open(path)
    except RasterioError as error:
        raise ValueError(
            f"{path}: found no raster that GDAL reads ({_reason(error)}), expected a GeoTIFF or "
            "another of its formats, whole"
        ) from None
    if dataset.count == 0:
        parts = f"{len(dataset.subdatasets)} rasters within" if dataset.subdatasets else "no bands"
        raise ValueError(
            f"{path}: found {parts}, expected a file of one raster; gdal_translate makes one of "
            "each"
        )
    return dataset


def files_of(dataset: Any) -> set[Path]:
    """The files that a dataset lives in: its own, masks beside it, and those a VRT is put together
    from."""
    with _READING:
        return {path for path in map(Path, dataset.files) if path.is_file()}


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
            raise ValueError(
                f"{dataset.name}: found a raster that is cut short or damaged ({_reason(error)}), "
                "expected one that reads; fetch it anew"
            ) from None


def _reason(error: BaseException) -> str:
    """What GDAL says, where rasterio only says that GDAL said it."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    return " ".join(str(first).split())[:200]


def _is_alpha(dataset: Any, band: int) -> bool:
    """Whether a band is a mask rather than a measurement.

    It is where GDAL uses it as one, nothing names it otherwise, and nearly all of its values are
    one of two, none and all: in aerial imagery the near infrared often is the fourth band, which
    writers of GeoTIFFs tag as alpha.
    """
    alpha = MaskFlags.alpha
    used = any(alpha in flags for flags in dataset.mask_flag_enums)
    if not used or dataset.colorinterp[band - 1] != ColorInterp.alpha:
        return False
    name = (dataset.descriptions[band - 1] or "").lower()
    if name and not any(word in name for word in ("alpha", "mask")):
        return False
    shape = tuple(min(n, _LOOK) for n in dataset.shape)
    try:
        look = dataset.read(band, out_shape=shape, resampling=Resampling.nearest)
    except RasterioError:
        return True  # `read_part` says it
    return bool(np.isin(look, (0, look.max())).mean() >= _OPAQUE)


class _File(NamedTuple):
    """A dataset, and what GDAL would have to be asked for again and again."""

    dataset: Any
    bands: tuple[int, ...]  # that are measurements, from 1 on
    alpha: int | None
    masked: bool  # by one mask for all bands that is no band itself
    own_masks: tuple[int, ...]  # bands with a mask of their own


def _file(path: Path) -> _File:
    dataset = open_raster(path)
    alpha = next((band for band in dataset.indexes if _is_alpha(dataset, band)), None)
    flags = [set(f) for f in dataset.mask_flag_enums]
    return _File(
        dataset,
        tuple(band for band in dataset.indexes if band != alpha),
        alpha,
        any(MaskFlags.per_dataset in f and MaskFlags.alpha not in f for f in flags),
        tuple(band for band, f in zip(dataset.indexes, flags) if not f),
    )


class Date:
    """One date's files, of one grid.

    Args:
      paths: of its files; their bands are the date's, in this order.
      nodata: in place of what the files say.

    Attributes:
      grid: of its pixels.
      labels: names of its bands, "" where a band has none.
      dtype: that holds all its bands.

    Raises:
      FileNotFoundError, ValueError: files that are none, of several grids, or of other numbers than
        real ones; one line.
    """

    def __init__(self, paths: Sequence[Path], nodata: float | None = None) -> None:
        self.paths = tuple(paths)
        self._files = [_file(path) for path in self.paths]
        first = self._files[0].dataset
        self.crs = first.crs
        self.grid = GeoBox(first.shape, first.transform, first.crs)
        for path, (dataset, *_) in zip(self.paths, self._files):
            if (dataset.shape, dataset.transform, dataset.crs) != (
                first.shape, first.transform, first.crs,
            ):  # fmt: skip
                raise ValueError(
                    f"{path}: found another grid than that of {self.paths[0]}, expected bands of "
                    "one date on one grid"
                )
        self._bands = [(n, band) for n, file in enumerate(self._files) for band in file.bands]
        if not self._bands:
            raise ValueError(f"{self.paths[0]}: found no band but a mask, expected measurements")
        self.labels = tuple(d.descriptions[b - 1] or "" for d, b in self._each())
        kinds = {str(d.dtypes[b - 1]) for d, b in self._each()}
        for kind in kinds:
            if "complex" in kind:
                raise ValueError(f"{self.paths[0]}: found {kind} values, expected real numbers")
        self.dtype = np.result_type(*(np.dtype(kind) for kind in kinds))
        self._nodata = nodata

    def _each(self, bands: Sequence[int] | None = None) -> list[tuple[Any, int]]:
        """The dataset, and the number there, of bands (from 0 on)."""
        chosen = self._bands if bands is None else [self._bands[n] for n in bands]
        return [(self._files[n].dataset, band) for n, band in chosen]

    @property
    def files(self) -> set[Path]:
        """Those that it is read from."""
        return set(self.paths).union(*(files_of(file.dataset) for file in self._files))

    @property
    def count(self) -> int:
        """How many bands it has."""
        return len(self._bands)

    @property
    def has_place(self) -> bool:
        """Whether its files say where they lie."""
        return not self._files[0].dataset.transform.is_identity

    def scaling(self, bands: Sequence[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Scales and offsets of bands (from 0 on)."""
        pairs = [(d.scales[b - 1], d.offsets[b - 1]) for d, b in self._each(bands)]
        return tuple(s for s, _ in pairs), tuple(o for _, o in pairs)

    def colours(self, bands: Sequence[int]) -> tuple[str, ...]:
        """What bands are drawn as, by GDAL's names."""
        return tuple(d.colorinterp[b - 1].name for d, b in self._each(bands))

    def nodata_of(self, band: int) -> float | None:
        """The value that says that there is none, of a band (from 0 on); None where there is no
        such value, or none that the band's numbers can have."""
        if self._nodata is not None:
            return self._nodata
        [(dataset, number)] = self._each([band])
        found = dataset.nodatavals[number - 1]
        kind = np.dtype(dataset.dtypes[number - 1])
        return None if found is None or not holds(kind, found) else float(found)

    def read(self, bands: Sequence[int], rect: Rect) -> tuple[np.ndarray, np.ndarray]:
        """Bands (from 0 on) of a part of it: raw values [h, w, C], and which pixels are there in
        all of them [h, w]; not there where the part lies beyond it."""
        inner, within = _inside(rect, self.grid.shape)
        values = np.zeros((rect.height, rect.width, len(bands)), self.dtype)
        known = np.zeros((rect.height, rect.width), bool)
        if inner is None:
            return values, known
        there = np.ones((inner.height, inner.width), bool)
        for n, file in enumerate(self._files):
            places = [k for k, band in enumerate(bands) if self._bands[band][0] == n]
            if not places:
                continue
            numbers = [self._bands[bands[k]][1] for k in places]
            found = read_part(file.dataset, numbers, inner)
            for k, part in zip(places, found):
                values[(*within, k)] = part
                there &= _has_value(part, self.nodata_of(bands[k]))
            there &= _unmasked(file, numbers, inner)
        known[within] = there
        return values, known

    def close(self) -> None:
        with _READING:
            for file in self._files:
                file.dataset.close()


def _has_value(part: np.ndarray, nodata: float | None) -> np.ndarray:
    there = np.isfinite(part) if part.dtype.kind == "f" else np.ones(part.shape, bool)
    if nodata is not None and np.isfinite(nodata) and holds(part.dtype, nodata):
        there &= part != part.dtype.type(nodata)
    return there


def _unmasked(file: _File, numbers: Sequence[int], rect: Rect) -> np.ndarray:
    """Where neither alpha nor a mask of the file's hides one of some bands: [h, w]."""
    clear = np.ones((rect.height, rect.width), bool)
    if file.alpha is not None:
        clear &= read_part(file.dataset, [file.alpha], rect)[0] > 0
    masks = [*numbers[:1]] if file.masked else [n for n in numbers if n in file.own_masks]
    if masks:
        clear &= (read_part(file.dataset, masks, rect, masked=True) > 0).all(axis=0)
    return clear


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
