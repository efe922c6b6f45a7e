"""A large stack at a glance: how clear its frames are where, and parts that stand for the whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from deepsum_jax.tiling.source import Rect, Source

CELL = 192  # LR pixels, of the parts that may stand for the whole
WHOLE = 512 * 512  # LR pixels; no more are looked at, and arrays computed, whole
_SAMPLES = 3  # parts on either axis, at most


class Overview(NamedTuple):
    """How clear a stack's frames are.

    Attributes:
      cells: the grid cut into cells.
      clear: float64 [T, cells], each frame's share of reliable pixels there.
    """

    cells: tuple[Rect, ...]
    clear: np.ndarray

    @property
    def clearance(self) -> np.ndarray:
        """Each frame's share of reliable pixels, float64 [T]."""
        size = np.array([cell.height * cell.width for cell in self.cells], np.float64)
        return np.asarray(self.clear @ size / size.sum())

    def samples(self, reference: int | None) -> list[Rect]:
        """Cells that stand for the whole, spread over it: the clearest where the reference is
        clear, or, without one, whichever frame is."""
        own = self.clear.max(axis=0) if reference is None else self.clear[reference]
        merit = own * self.clear.mean(axis=0)
        bottom = max(cell.row + cell.height for cell in self.cells)
        right = max(cell.column + cell.width for cell in self.cells)
        best: dict[tuple[int, int], int] = {}
        for n, cell in enumerate(self.cells):
            place = (
                _SAMPLES * (2 * cell.row + cell.height) // (2 * bottom),
                _SAMPLES * (2 * cell.column + cell.width) // (2 * right),
            )
            if merit[n] > 0 and (place not in best or merit[n] > merit[best[place]]):
                best[place] = n
        return [self.cells[n] for n in sorted(best.values(), key=lambda n: -merit[n])]


def _cells(height: int, width: int) -> Iterator[Rect]:
    if height * width <= WHOLE:
        yield Rect(0, 0, height, width)
        return
    down, across = (max(1, round(n / CELL)) for n in (height, width))
    rows, columns = (
        np.rint(np.linspace(0, n, parts + 1)).astype(int).tolist()
        for n, parts in ((height, down), (width, across))
    )
    for top, below in itertools.pairwise(rows):
        for left, beside in itertools.pairwise(columns):
            yield Rect(top, left, below - top, beside - left)


def look_over(source: Source) -> Overview:
    """Reads all of a source once, cell by cell."""
    cells = tuple(_cells(source.height, source.width))
    clear = [source.read(cell)[1].mean(axis=(1, 2)) for cell in cells]
    return Overview(cells, np.stack(clear, axis=1))
