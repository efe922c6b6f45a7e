"""Dates from files as one stack on the reference's grid, read window by window."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from odc.geo.geobox import GeoBox
from rasterio.transform import Affine

from deepsum_jax.rasters import grids, listed, warping
from deepsum_jax.rasters.dates import Date
from deepsum_jax.rasters.georeference import Georeference
from deepsum_jax.rasters.grids import Mismatch, Place
from deepsum_jax.rasters.masks import MaskFile, mask_paths
from deepsum_jax.rasters.options import ReadOptions
from deepsum_jax.rasters.values import holds
from deepsum_jax.rasters.warping import Part
from deepsum_jax.tiling.source import Rect

_LOOK = 1024  # pixels on either side that the clearest date is chosen by, at most
_ROWS = 64  # that are looked at in one go


class RasterSource:
    """A `tiling.source.Source` of raster files; see there for its attributes.

    Attributes:
      reference: index of the date whose grid it is.
      georeference: of the part of the reference that is asked for.
      options: how the rasters are read.
      colours: what the bands are drawn as, by GDAL's names.
      paths: of all files that are read, the masks' and those that a VRT is put together from too.

    Raises:
      FileNotFoundError, ValueError: a file that is none, a date twice, bands that there are not,
        a date on another grid without `warp`, or beside the area; one line that names the file.

    Warns of dates that are resampled, scaled otherwise, or that do not say where they lie.
    """

    def __init__(
        self, inputs: Sequence[Path], options: ReadOptions = ReadOptions(),
        reference: int | str | Path = "clearest",
    ) -> None:  # fmt: skip
        names = listed.split_names(inputs)
        listed.check_different(names)
        self.names = listed.told_apart(names)
        self.options = options
        self._dates = [Date(paths, options.nodata) for paths in names]
        masks = mask_paths(names, options)
        self._masks = [
            None if path is None else MaskFile(path, date.grid, options.quality)
            for path, date in zip(masks, self._dates)
        ]
        read = {path for date in self._dates for path in date.files}
        self.paths = sorted(read.union(*(mask.files for mask in self._masks if mask is not None)))
        self._bands = listed.chosen_bands(self._dates, options.bands)
        self.channels = len(self._bands[0])
        self.dtype = np.result_type(*(date.dtype for date in self._dates))
        if options.nodata is not None and not holds(self.dtype, options.nodata):
            raise ValueError(
                f"--nodata {options.nodata:g}: found {self.dtype} values, expected one of those "
                "that they can have"
            )
        self._say_what_differs()
        fixed = None if reference == "clearest" else self._find(reference)
        self._counted = self._dates[fixed or 0].grid  # what is asked for is in its pixels and units
        self.onto(self._clearest() if fixed is None else fixed)

    # --- the reference

    def _find(self, reference: int | str | Path) -> int:
        count = len(self._dates)
        if isinstance(reference, int):
            if 0 <= reference < count:
                return reference
            raise ValueError(f"--reference: found {reference}, expected 0 to {count - 1}")
        if reference == "first":
            return 0
        wanted = os.path.realpath(reference)
        for n, date in enumerate(self._dates):
            if wanted in map(os.path.realpath, date.paths) or str(reference) == self.names[n]:
                return n
        raise ValueError(
            f"--reference: found {reference}, expected clearest, first, a date's number or one of "
            "the dates' files"
        )

    def _clearest(self) -> int:
        grids.area(self._counted, self.options)  # raises what is wrong with the area itself
        return int(np.argmax([self._clear_area(n) for n in range(len(self._dates))]))

    def _clear_area(self, n: int) -> float:
        """How many pixels of a date are reliable within the area asked for; an estimate from some
        of the rows where there are many."""
        try:
            rect = grids.area(self._dates[n].grid, self.options, self._counted)
        except ValueError:  # not there
            return -1.0
        step = max(1, -(-max(rect.height, rect.width) // _LOOK))
        clear = read = 0
        for row in range(0, rect.height, _ROWS * step):
            high = min(_ROWS, rect.height - row)
            part = self._own_part(n, Rect(rect.row + row, rect.column, high, rect.width))
            clear += int(np.count_nonzero(part.there & part.clear))
            read += high
        return clear * (rect.height / read)

    def onto(self, reference: int) -> None:
        """Makes a date the reference: its grid is the stack's from here on.

        Raises:
          ValueError: another date lies on another grid, or beside the area.
        """
        self.reference = reference
        grid = self._dates[reference].grid
        self._area = grids.area(grid, self.options, self._counted)
        self._grid = _cut(grid, self._area)
        self.height, self.width = self._area.height, self._area.width
        bands = self._bands[reference]
        date = self._dates[reference]
        scales, offsets = date.scaling(bands)
        labels = [date.labels[b] or None for b in bands]
        self.georeference = Georeference(
            crs=date.crs,
            transform=self._grid.transform,
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
            if not self.options.warp:
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
        if not self._meets(n, found):
            raise ValueError(
                f"{date.paths[0]}: found no overlap with {reference.paths[0].name}, expected dates "
                "of one place"
            )
        return None if isinstance(found, Mismatch) else found

    def _meets(self, n: int, found: Place | Mismatch) -> bool:
        """Whether a date shows anything of the reference, within the area or beside it."""
        grid, reference = self._dates[n].grid, self._dates[self.reference].grid
        if isinstance(found, Mismatch):
            return warping.shown(grid, reference) is not None
        height, width = grid.shape
        down = -height < found.row < reference.shape.y
        return bool(down and -width < found.column < reference.shape.x)

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
        return Part(values, there, mask.reliable(rect, self.options.buffer))

    def _warped(self, n: int, rect: Rect) -> Part:
        onto, grid = _cut(self._grid, rect), self._dates[n].grid
        needed = warping.shown(grid, onto)
        if needed is None:
            nothing = np.zeros((rect.height, rect.width), bool)
            return Part(np.zeros((*nothing.shape, self.channels), self.dtype), nothing, nothing)
        own, density = self._own_part(n, needed), warping.density(grid, self._grid)
        return warping.warped(own, _cut(grid, needed), onto, self.dtype, density)

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
        for mask in self._masks:
            if mask is not None:
                mask.close()


def _cut(grid: GeoBox, part: Rect) -> GeoBox:
    """A part of a grid as one of its own."""
    moved = grid.transform @ Affine.translation(part.column, part.row)
    return GeoBox((part.height, part.width), moved, grid.crs)
