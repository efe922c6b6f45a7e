"""Mask files: what of a date they hide, on the date's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.ndimage
from odc.geo.geobox import GeoBox

from deepsum_jax.rasters.dates import files_of, open_raster, read_part
from deepsum_jax.rasters.grids import onto
from deepsum_jax.rasters.options import Quality, ReadOptions
from deepsum_jax.tiling.source import Rect


class MaskFile:
    """The first band of a raster as a mask.

    Raises:
      FileNotFoundError, ValueError: as `open_raster`; a file without place of another size than
        its date's; when read, classes or bits that nothing says how to read.
    """

    def __init__(self, path: Path, grid: GeoBox, quality: Quality) -> None:
        self._dataset = open_raster(path)
        self._path, self._grid, self._quality = path, grid, quality
        own = self._dataset.transform
        placeless = own.is_identity or grid.transform.is_identity
        same = self._dataset.shape == tuple(grid.shape)
        self._own = GeoBox(self._dataset.shape, own, self._dataset.crs)
        if placeless and not same:
            height, width = self._dataset.shape
            raise ValueError(
                f"{path}: found a mask of {height}×{width} pixels that does not say where it lies, "
                f"expected {grid.shape.y}×{grid.shape.x} like its date"
            )
        self._same = same and placeless

    @property
    def files(self) -> set[Path]:
        """Those that it is read from."""
        return {self._path} | files_of(self._dataset)

    def reliable(self, rect: Rect, buffer: int) -> np.ndarray:
        """Which pixels [h, w] of a part of the date's grid it calls reliable, `buffer` pixels away
        from those that it does not; none beyond the mask's own area."""
        wide = Rect(
            rect.row - buffer, rect.column - buffer, rect.height + 2 * buffer,
            rect.width + 2 * buffer,
        )  # fmt: skip
        clear, known = self._nearest(wide)
        reliable = clear & known
        if buffer:
            # What lies beyond the mask hides nothing of what lies within.
            hidden = known & ~clear
            if hidden.any():
                reliable &= scipy.ndimage.distance_transform_edt(~hidden) > buffer
        inner = slice(buffer, -buffer or None)
        return np.asarray(reliable[inner, inner])

    def _nearest(self, rect: Rect) -> tuple[np.ndarray, np.ndarray]:
        """Whether the nearest mask pixel is clear, and whether there is one: bool [h, w] each."""
        rows = np.arange(rect.row, rect.row + rect.height)
        columns = np.arange(rect.column, rect.column + rect.width)
        x, y = (a.ravel() for a in np.meshgrid(columns + 0.5, rows + 0.5))
        if not self._same:
            x, y = onto(self._grid, self._own, x, y)
        height, width = self._dataset.shape
        # A pixel's centre on the edge of two mask pixels belongs to the latter, for all rounding.
        row, column = (np.floor(np.clip(v + 1e-6, -1, n)) for v, n in ((y, height), (x, width)))
        known = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        clear = np.zeros(known.shape, bool)
        if known.any():
            row, column = row[known].astype(int), column[known].astype(int)
            top, left = int(row.min()), int(column.min())
            size = int(row.max()) - top + 1, int(column.max()) - left + 1
            values = read_part(self._dataset, [1], Rect(top, left, *size))[0]
            clear[known] = self._says(values)[row - top, column - left]
        shape = (rect.height, rect.width)
        return clear.reshape(shape), known.reshape(shape)

    def _says(self, values: np.ndarray) -> np.ndarray:
        """Which of its values are reliable."""
        if self._quality == Quality():
            # Any value but 0, yet one only, and one that is used for it: classes and bits are not
            # reliable wherever they are not 0.
            known = values[np.isfinite(values) & (values != 0)]
            top = known.max(initial=0)
            full = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1
            if (known != top).any() or top not in (0, 1, 255, full):
                raise ValueError(
                    f"{self._path}: found {known.min():g} to {top:g} in a mask, expected 0 "
                    "(hidden) and 1 or 255 (reliable); --qa, --clear, --bad-bits or "
                    "--max-probability say what other values mean"
                )
        return self._quality.reliable(values)

    def close(self) -> None:
        self._dataset.close()


def mask_paths(dates: Sequence[Sequence[Path]], options: ReadOptions) -> list[Path | None]:
    """The mask file of each date.

    Raises:
      ValueError: another number of masks than dates, or a name without what the pattern replaces.
    """
    if options.mask_pattern is not None:
        old, new = options.mask_pattern
        found: list[Path | None] = []
        for paths in dates:
            path = next((p for p in paths if old in p.name), None)
            if path is None:
                raise ValueError(
                    f"--mask-pattern {old}={new}: found no {old!r} in {paths[0].name}, expected it "
                    "in the name of every date"
                )
            found.append(path.with_name(path.name.replace(old, new)))
        return found
    if not options.masks:
        return [None] * len(dates)
    if len(options.masks) == 1:
        return [options.masks[0]] * len(dates)
    if len(options.masks) != len(dates):
        raise ValueError(
            f"--masks: found {len(options.masks)} files for {len(dates)} dates, expected one for "
            "each, in the same order, or one for all"
        )
    return [*options.masks]
