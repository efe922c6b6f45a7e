"""Dates from files as one stack on the reference's grid, read window by window."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio.warp
from rasterio.enums import Resampling
from rasterio.transform import Affine

from deepsum_jax.config import nearest
from deepsum_jax.rasters import grids
from deepsum_jax.rasters.dates import Date
from deepsum_jax.rasters.georeference import Georeference
from deepsum_jax.rasters.grids import Mismatch, Place
from deepsum_jax.rasters.masks import MaskFile, mask_paths
from deepsum_jax.rasters.options import ReadOptions
from deepsum_jax.tiling.source import Rect

_LOOK = 1024  # pixels on either side that the clearest date is chosen by, at most
_AROUND = 4  # pixels around a part that resampling reads


class Part(NamedTuple):
    """One date on a part of the reference's grid."""

    values: np.ndarray  # [h, w, C] raw
    there: np.ndarray  # [h, w], where it has values
    clear: np.ndarray  # [h, w], where no mask file hides it


def split_names(inputs: Sequence[Path]) -> list[list[Path]]:
    """The files of each date: A+B are two of one, unless a file has that very name."""
    return [
        [path]
        if path.exists() or "+" not in str(path)
        else [Path(part) for part in str(path).split("+") if part]
        for path in inputs
    ]


class RasterSource:
    """A `tiling.source.Source` of raster files; see there for its attributes.

    Attributes:
      reference: index of the date whose grid it is.
      georeference: of the part of the reference that is asked for.
      colours: what the bands are drawn as, by GDAL's names.
      paths: of all files that were read, the masks too.

    Raises:
      FileNotFoundError, ValueError: a file that is none, a date twice, bands that there are not,
        a date on another grid without `warp`, or beside the area; one line that names the file.

    Warns of dates that are resampled, scaled otherwise, or that do not say where they lie.
    """

    def __init__(
        self, inputs: Sequence[Path], options: ReadOptions = ReadOptions(),
        reference: int | str | Path = "clearest",
    ) -> None:  # fmt: skip
        names = split_names(inputs)
        _check_different(names)
        self._options = options
        self._dates = [Date(paths, options.nodata) for paths in names]
        masks = mask_paths(names, options)
        self._masks = [
            None if path is None else MaskFile(path, date.grid, options.quality)
            for path, date in zip(masks, self._dates)
        ]
        self.paths = [path for paths in names for path in paths]
        self.paths += [path for path in masks if path is not None]
        self.names = _told_apart(self._dates)
        self._bands = [_chosen_bands(date, self._dates, options.bands) for date in self._dates]
        self.channels = len(self._bands[0])
        self.dtype = np.result_type(*(date.dtype for date in self._dates))
        self._say_what_differs()
        fixed = None if reference == "clearest" else self._find(reference, names)
        self._counted = self._dates[fixed or 0].grid  # what is asked for is in its pixels and units
        self.onto(self._clearest() if fixed is None else fixed)

    # --- the reference

    def _find(self, reference: int | str | Path, names: Sequence[Sequence[Path]]) -> int:
        if isinstance(reference, int):
            if 0 <= reference < len(names):
                return reference
            raise ValueError(f"--reference: found {reference}, expected 0 to {len(names) - 1}")
        if reference == "first":
            return 0
        wanted = os.path.realpath(reference)
        for n, paths in enumerate(names):
            if wanted in [os.path.realpath(p) for p in paths] or str(reference) == self.names[n]:
                return n
        raise ValueError(
            f"--reference: found {reference}, expected clearest, first, a date's number or one of "
            "the dates' files"
        )

    def _clearest(self) -> int:
        grids.area(self._counted, self._options)  # raises what is wrong with the area itself
        return int(np.argmax([self._clear_area(n) for n in range(len(self._dates))]))

    def _clear_area(self, n: int) -> float:
        """How many pixels of a date are reliable within the area asked for, about."""
        try:
            rect = grids.area(self._dates[n].grid, self._options, self._counted)
        except ValueError:  # not there
            return -1.0
        step = max(1, -(-max(rect.height, rect.width) // _LOOK))
        # Whole rows of cells, evenly spread, of a date too large to be read for this.
        rows = range(rect.row, rect.row + rect.height, 64 * step)
        count = 0
        for row in rows:
            high = min(64, rect.row + rect.height - row)
            part = self._own_part(n, Rect(row, rect.column, high, rect.width))
            count += int(np.count_nonzero(part.there & part.clear))
        return float(count)

    def onto(self, reference: int) -> None:
        """Makes a date the reference: its grid is the stack's from here on.

        Raises:
          ValueError: another date lies on another grid, or beside the area.
        """
        self.reference = reference
        grid = self._dates[reference].grid
        self._area = grids.area(grid, self._options, self._counted)
        self.height, self.width = self._area.height, self._area.width
        bands = self._bands[reference]
        date = self._dates[reference]
        scales, offsets = date.scaling(bands)
        labels = [date.labels[b] or None for b in bands]
        self.georeference = Georeference(
            crs=date.crs,
            transform=grid.transform @ Affine.translation(self._area.column, self._area.row),
            height=self.height,
            width=self.width,
            dtype=date.dtype.name,
            nodata=date.nodata_of(bands[0]),
            scales=scales,
            offsets=offsets,
            descriptions=tuple(labels),
        )
        self.colours = date.colours(bands)
        self._places = [self._placed(n) for n in range(len(self._dates))]
        self.fractions = np.array(
            [(0.0, 0.0) if p is None else p.fraction for p in self._places], np.float64
        )

    def _placed(self, n: int) -> Place | None:
        """Where a date lies; None for one that is resampled."""
        date, reference = self._dates[n], self._dates[self.reference]
        found = grids.place(date.grid, reference.grid)
        if isinstance(found, Mismatch):
            if (date.crs is None) != (reference.crs is None):
                raise ValueError(
                    f"{date.paths[0]}: found {found.reason} of {reference.paths[0].name}, and no "
                    "way to resample between them; give both a CRS, as by rio edit-info --crs"
                )
            if not self._options.warp:
                raise ValueError(
                    f"{date.paths[0]}: found {found.reason} of {reference.paths[0].name}; --warp "
                    "resamples it, which takes detail from it"
                )
            warnings.warn(
                f"{self.names[n]}: resampled ({found.reason}); what lay between its pixels is "
                "lost to super-resolution",
                UserWarning,
                stacklevel=4,
            )
        height, width = reference.grid.shape
        if isinstance(found, Mismatch):
            theirs = self._source_window(
                n, Rect(-self._area.row, -self._area.column, height, width)
            )
        else:
            theirs = Rect(-found.row, -found.column, height, width)
        if not _meets(theirs, date.grid.shape):
            raise ValueError(
                f"{date.paths[0]}: found no overlap with {reference.paths[0].name}, expected dates "
                "of one place"
            )
        return None if isinstance(found, Mismatch) else found

    # --- reading

    def read(self, rect: Rect) -> tuple[np.ndarray, np.ndarray]:
        parts = [self.part(n, rect) for n in range(len(self._dates))]
        lr = np.stack([part.values for part in parts]).astype(self.dtype, copy=False)
        return lr, np.stack([part.there & part.clear for part in parts])

    def part(self, n: int, rect: Rect) -> Part:
        """One date on a part of the area."""
        whole = Rect(
            rect.row + self._area.row, rect.column + self._area.column, rect.height, rect.width
        )
        place = self._places[n]
        if place is None:
            return self._warped(n, rect)
        moved = whole._replace(row=whole.row - place.row, column=whole.column - place.column)
        return self._own_part(n, moved)

    def _own_part(self, n: int, rect: Rect) -> Part:
        """A part of a date on its own grid."""
        values, there = self._dates[n].read(self._bands[n], rect)
        mask = self._masks[n]
        if mask is None:
            return Part(values, there, np.ones_like(there))
        return Part(values, there, mask.reliable(rect, self._options.buffer))

    def _source_window(self, n: int, rect: Rect) -> Rect:
        """What of a date a part of the area shows, and a little around it; empty where nothing."""
        own, theirs = self._dates[self.reference].grid, self._dates[n].grid
        edge = np.linspace(0, 1, 9)
        x = np.concatenate([edge, edge, 0 * edge, 0 * edge + 1]) * rect.width
        y = np.concatenate([0 * edge, 0 * edge + 1, edge, edge]) * rect.height
        x, y = x + rect.column + self._area.column, y + rect.row + self._area.row
        x, y = grids.onto(own, theirs, x, y)
        if not np.isfinite((x, y)).all():  # the two CRS share no such place
            return Rect(0, 0, 0, 0)
        left, top = int(np.floor(x.min())) - _AROUND, int(np.floor(y.min())) - _AROUND
        right, bottom = int(np.ceil(x.max())) + _AROUND, int(np.ceil(y.max())) + _AROUND
        height, width = theirs.shape
        top, bottom = max(top, 0), min(bottom, height)
        left, right = max(left, 0), min(right, width)
        return Rect(top, left, max(bottom - top, 0), max(right - left, 0))

    def _finer(self, n: int) -> dict[str, float]:
        """Pixels of the reference by those of a date, down and across, in the middle of the area;
        for GDAL, which averages where they are fewer."""
        own, theirs = self._dates[self.reference].grid, self._dates[n].grid
        row, column, height, width = self._area
        x, y = np.array([0, 1, 0]) + column + width / 2, np.array([0, 0, 1]) + row + height / 2
        x, y = grids.onto(own, theirs, x, y)
        across, down = (float(np.hypot(x[k] - x[0], y[k] - y[0])) for k in (1, 2))
        return {"XSCALE": 1 / across, "YSCALE": 1 / down}

    def _warped(self, n: int, rect: Rect) -> Part:
        """A date resampled: values by cubic convolution, masks by the nearest pixel."""
        window = self._source_window(n, rect)
        if not window.height * window.width:
            nothing = np.zeros((rect.height, rect.width), bool)
            return Part(np.zeros((*nothing.shape, self.channels), self.dtype), nothing, nothing)
        found = self._own_part(n, window)
        theirs, own = self._dates[n].grid, self._dates[self.reference].grid
        place = {
            "src_transform": theirs.transform @ Affine.translation(window.column, window.row),
            "src_crs": str(theirs.crs),
            "dst_transform": own.transform
            @ Affine.translation(self._area.column + rect.column, self._area.row + rect.row),
            "dst_crs": str(own.crs),
            # GDAL would guess it anew for each part, and parts would not fit together.
            **self._finer(n),
        }

        def moved(image: np.ndarray, how: Resampling) -> np.ndarray:
            out = np.full((*image.shape[:-2], rect.height, rect.width), np.nan, np.float32)
            rasterio.warp.reproject(
                image,
                out,
                src_nodata=np.nan,
                dst_nodata=np.nan,
                resampling=how,
                tolerance=0,
                **place,
            )
            return out

        known = np.where(found.there[..., None], found.values.astype(np.float32), np.nan)
        values = np.moveaxis(moved(np.moveaxis(known, -1, 0), Resampling.cubic), 0, -1)
        flags = np.stack([found.there, found.clear]).astype(np.float32)
        there, clear = moved(flags, Resampling.nearest) > 0.5
        there &= np.isfinite(values).all(axis=-1)
        values = np.where(there[..., None], values, 0)
        if self.dtype.kind in "ui":
            info = np.iinfo(self.dtype)
            values = np.clip(np.rint(values), info.min, info.max)
        return Part(values.astype(self.dtype), there, clear)

    # --- what is said of the dates

    def _say_what_differs(self) -> None:
        first = self._dates[0]
        wanted = first.scaling(self._bands[0])
        for date, bands in zip(self._dates[1:], self._bands[1:]):
            if date.scaling(bands) != wanted:
                warnings.warn(
                    f"{date.paths[0].name}: its scale and offset {date.scaling(bands)} are not "
                    f"those of {first.paths[0].name}, {wanted}: its level may differ",
                    UserWarning,
                    stacklevel=3,
                )
        if not all(date.has_place for date in self._dates):
            warnings.warn(
                "the rasters do not say where they lie: pixels are taken as they are counted",
                UserWarning,
                stacklevel=3,
            )
        kinds = sorted({date.dtype.name for date in self._dates})
        if len(kinds) > 1:
            warnings.warn(
                f"dates hold {' and '.join(kinds)}: are their units the same?",
                UserWarning,
                stacklevel=3,
            )

    def why_hidden(self, rects: Sequence[Rect]) -> list[dict[str, float]]:
        """For each date the share of pixels that it does not have, and that a mask hides, over
        parts of the area."""
        size = sum(rect.height * rect.width for rect in rects)
        found = []
        for n in range(len(self._dates)):
            parts = [self.part(n, rect) for rect in rects]
            missing = sum(int(np.count_nonzero(~p.there)) for p in parts) / size
            masked = sum(int(np.count_nonzero(p.there & ~p.clear)) for p in parts) / size
            found.append({"no data": missing, "mask": masked})
        return found

    def close(self) -> None:
        for date in self._dates:
            date.close()


def _told_apart(dates: Sequence[Date]) -> tuple[str, ...]:
    """What messages call dates: their files' names, with as many folders as tell them apart."""
    parts = [date.paths[0].absolute().with_suffix("").parts for date in dates]
    for taken in range(1, max(len(p) for p in parts)):
        names = tuple("/".join(p[-taken:]) for p in parts)
        if len(set(names)) == len(names):
            return names
    return tuple(str(date.paths[0]) for date in dates)


def _meets(rect: Rect, shape: Any) -> bool:
    """Whether a part lies at least partly within [0, h) × [0, w)."""
    down = rect.row < shape[0] and rect.row + rect.height > 0
    return bool(down and rect.column < shape[1] and rect.column + rect.width > 0)


def _check_different(names: Sequence[Sequence[Path]]) -> None:
    """Raises ValueError where a date is given twice, by its name or by its contents."""
    seen: dict[str, Path] = {}
    sizes: dict[int, list[Path]] = {}
    for paths in names:
        for path in paths:
            if not path.is_file():
                continue  # which `Date` says
            real = os.path.realpath(path)
            if real in seen:
                raise ValueError(f"{path}: found this date twice, expected each once")
            seen[real] = path
        sizes.setdefault(sum(p.stat().st_size for p in paths if p.is_file()), []).append(paths[0])
    for alike in sizes.values():
        digests: dict[str, Path] = {}
        for path in alike if len(alike) > 1 else []:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest in digests:
                raise ValueError(
                    f"{path}: found the same image as {digests[digest]}, expected each date once"
                )
            digests[digest] = path


def _chosen_bands(date: Date, dates: Sequence[Date], asked: Sequence[str]) -> list[int]:
    """The bands (from 0 on) of a date that are super-resolved.

    Raises:
      ValueError: a band that it does not have, or dates of other bands where none were named.
    """
    if asked:
        return [_band(date, name) for name in asked]
    counts, first = {d.count for d in dates}, dates[0].labels
    if len(counts) == 1:
        if all(first) and len(set(first)) == len(first) and set(date.labels) == set(first):
            return [date.labels.index(label) for label in first]  # in whatever order they lie
        return list(range(date.count))
    shared = [label for label in dates[0].labels if label and all(label in d.labels for d in dates)]
    if not shared:
        raise ValueError(
            f"{date.paths[0]}: found dates of {min(counts)} to {max(counts)} bands, expected as "
            "many of each; --bands says which"
        )
    return [date.labels.index(label) for label in shared]


def _band(date: Date, name: str) -> int:
    if name in date.labels:
        return date.labels.index(name)
    if name.isdecimal():
        if 1 <= int(name) <= date.count:
            return int(name) - 1
        raise ValueError(f"{date.paths[0]}: found no band {name}, expected 1 to {date.count}")
    known = [label for label in date.labels if label]
    hint = f"; {nearest(name, known)}" if known else ""
    raise ValueError(
        f"{date.paths[0]}: found no band {name!r}, expected a number from 1 to {date.count}"
        + (f" or one of {', '.join(known)}{hint}" if known else "")
    )
