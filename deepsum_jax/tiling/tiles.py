"""How a large grid is cut into tiles that overlap, and put together again without seams.

All tiles have one size, so that one compiled program serves them. Where two overlap, the outer
part of each, which lacks its surroundings, has no say, and between them one fades into the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from deepsum_jax.tiling.source import Rect

SIDE = 128  # LR pixels
MARGIN = 16  # LR pixels; two neighbours overlap by twice as many at least
FADE = 12  # LR pixels in which one tile fades into the next


class Axis(NamedTuple):
    """One axis cut into parts of one length."""

    starts: tuple[int, ...]
    length: int  # of each part

    def profile(self, number: int, scale: int) -> np.ndarray:
        """The say of one part's pixels, float32 [scale·length]; all parts sum to one."""
        start = self.starts[number]
        place = np.arange(scale * self.length) + 0.5 + scale * start
        say = np.ones(scale * self.length)
        if number:
            say *= self._rise(number, scale, place)
        if number + 1 < len(self.starts):
            say *= 1 - self._rise(number + 1, scale, place)
        return say.astype(np.float32)

    def _rise(self, number: int, scale: int, place: np.ndarray) -> np.ndarray:
        """From 0 to 1 where a part takes over from the one before."""
        middle = scale * self._middle(number)
        t = np.clip((place - middle) / (scale * FADE) + 0.5, 0, 1)
        return np.asarray(t * t * (3 - 2 * t))

    def _middle(self, number: int) -> float:
        """Of the overlap with the part before, LR pixels."""
        return (self.starts[number] + self.starts[number - 1] + self.length) / 2


def cut_axis(count: int, side: int = SIDE, margin: int = MARGIN) -> Axis:
    """So many pixels in parts of `side`, spread evenly; one part where they are no more."""
    if count <= side:
        return Axis((0,), count)
    parts = -(-(count - side) // (side - 2 * margin)) + 1
    starts = np.rint(np.linspace(0, count - side, parts)).astype(int)
    return Axis(tuple(starts.tolist()), side)


class Tiles(NamedTuple):
    """A grid of [h, w] LR pixels cut into tiles, in rows."""

    rows: Axis
    columns: Axis

    def rect(self, row: int, column: int) -> Rect:
        return Rect(
            self.rows.starts[row], self.columns.starts[column], self.rows.length,
            self.columns.length,
        )  # fmt: skip

    @property
    def numbers(self) -> list[tuple[int, int]]:
        """(row, column) of all tiles, row by row."""
        return [
            (y, x) for y in range(len(self.rows.starts)) for x in range(len(self.columns.starts))
        ]


def cut(height: int, width: int, side: int = SIDE, margin: int = MARGIN) -> Tiles:
    return Tiles(cut_axis(height, side, margin), cut_axis(width, side, margin))


def joined(
    tiles: Tiles, rows_of_tiles: Iterator[Sequence[np.ndarray]], scale: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Tiles faded into each other: (first row, [rows, W, K]) from top to bottom, HR pixels.

    Args:
      tiles: how the grid was cut.
      rows_of_tiles: for each row of tiles theirs, [side, side, K] each, HR pixels, finite.
      scale: r.
    """
    starts = [scale * start for start in tiles.rows.starts]
    left: np.ndarray | None = None  # what the row before still has to say
    for number, row in enumerate(rows_of_tiles):
        total = _row(tiles, row, number, scale)
        if left is not None:
            total[: len(left)] += left
        # What the next row has a say in waits for it.
        last = number + 1 == len(starts)
        done = len(total) if last else starts[number + 1] - starts[number]
        yield starts[number], total[:done]
        left = total[done:].copy()


def _row(tiles: Tiles, row: Sequence[np.ndarray], number: int, scale: int) -> np.ndarray:
    """A row of tiles times their say: [side, W, K]."""
    width = scale * (tiles.columns.starts[-1] + tiles.columns.length)
    down = tiles.rows.profile(number, scale)[:, None, None]
    total = np.zeros((len(down), width, row[0].shape[-1]), np.float32)
    for column, tile in enumerate(row):
        begin = scale * tiles.columns.starts[column]
        across = tiles.columns.profile(column, scale)[None, :, None]
        total[:, begin : begin + tile.shape[1]] += down * across * tile
    return total
