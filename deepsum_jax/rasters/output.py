"""Rasters written strip by strip, in memory that does not depend on their size.

Rows go to a plain file in a hidden folder beside the target, of which `cog` makes the GeoTIFF at
the end. All rasters of a run appear together, each whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from deepsum_jax import files
from deepsum_jax.rasters import cog, values
from deepsum_jax.rasters.layers import Layer
from deepsum_jax.tiling.source import Strip

_ROWS = 64  # converted at a time


@contextlib.contextmanager
def written(layers: Sequence[Layer], tags: Mapping[str, str]) -> Iterator[Callable[[Strip], None]]:
    """Yields what takes the strips of a result, from the first row to the last.

    The files appear when all is written; a failure leaves what stood there before. The same strips
    give the same bytes, however they are cut.

    Args:
      tags: provenance that goes into each file.

    Raises:
      ValueError: a file that could not be written, before the work; strips that are not the whole
        raster, one after the other; a layer that the result does not have.
      OSError: a file that cannot be written; one line that names it.

    Warns of values that a dtype cannot hold.
    """
    for layer in layers:
        files.check_target(layer.path, "output")
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(_writer(layer)) for layer in layers]

        def write(strip: Strip) -> None:
            for writer in writers:
                with _naming(writer.layer.path):
                    writer.write(strip)

        yield write
        made = []
        for writer in writers:
            with _naming(writer.layer.path):
                made.append(writer.finish(tags))
        for writer, file in zip(writers, made):
            with _naming(writer.layer.path), files.written_aside(writer.layer.path) as aside:
                os.replace(file, aside)
            line = writer.lost.line(writer.dtype, writer.size)
            if line:
                line = f"{writer.layer.path}: {line}; --dtype float32 keeps them"
                warnings.warn(line, UserWarning, stacklevel=3)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Failures to write, in one line that names the file that the user knows."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"{path}: found that it cannot be written ({reason})") from error


class _Writer:
    """One layer's rows, as they come."""

    def __init__(self, layer: Layer, folder: Path) -> None:
        self.layer = layer
        self.dtype = np.dtype(layer.grid.dtype)
        self.lost = values.Lost()
        self._folder = folder
        self._rows = 0
        self._invalid = 0
        self._values: BinaryIO = open(folder / "values", "wb")  # noqa: SIM115 (closed by finish)
        masked = layer.grid.nodata is None and not layer.everywhere
        self._valid: BinaryIO | None = open(folder / "valid", "wb") if masked else None  # noqa: SIM115

    @property
    def size(self) -> int:
        """How many values the raster has."""
        return self.layer.grid.height * self.layer.grid.width * len(self.layer.colours)

    def write(self, strip: Strip) -> None:
        grid, found = self.layer.grid, self.layer.of(strip)
        if found is None:
            raise ValueError(
                f"{self.layer.path}: found nothing of the kind from this system, expected one "
                "that gives it; leave it out"
            )
        expected = (len(strip.valid), grid.width, len(self.layer.colours))
        if strip.row != self._rows or found.shape != expected:
            raise ValueError(
                f"{self.layer.path}: found rows of shape {found.shape} from {strip.row}, expected "
                f"{expected} from {self._rows}"
            )
        for start in range(0, len(found), _ROWS):
            part = found[start : start + _ROWS]
            valid = np.isfinite(part).all(axis=-1)
            if not self.layer.everywhere:
                valid &= strip.valid[start : start + _ROWS]
            out = values.converted(part, valid, self.dtype, grid.nodata, self.lost)
            self._values.write(np.ascontiguousarray(np.moveaxis(out, -1, 1)).data)
            if self._valid is not None:
                self._valid.write(np.where(valid, np.uint8(255), np.uint8(0)).data)
            self._invalid += int(np.count_nonzero(~valid))
        self._rows += len(found)

    def finish(self, tags: Mapping[str, str]) -> Path:
        """Makes the GeoTIFF, still in the folder."""
        layer, grid = self.layer, self.layer.grid
        if self._rows != grid.height:
            raise ValueError(f"{layer.path}: found {self._rows} rows, expected {grid.height}")
        self.close()
        if not self._invalid and not layer.nodata_needed:
            grid = dataclasses.replace(grid, nodata=None)
        mask = None if self._valid is None or not self._invalid else self._folder / "valid"
        done = self._folder / "raster.tif"
        cog.write(cog.Rows(self._folder / "values", mask, grid, tags, layer.colours), done)
        return done

    def close(self) -> None:
        self._values.close()
        if self._valid is not None:
            self._valid.close()


@contextlib.contextmanager
def _writer(layer: Layer) -> Iterator[_Writer]:
    with contextlib.ExitStack() as stack:
        with _naming(layer.path):
            folder = stack.enter_context(files.folder_aside(layer.path))
            writer = _Writer(layer, folder)
        try:
            yield writer
        finally:
            with contextlib.suppress(OSError):  # what is left to write is not wanted any more
                writer.close()
