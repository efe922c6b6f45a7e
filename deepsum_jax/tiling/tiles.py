"""How a large grid is cut into tiles that overlap, and put together again without seams.

All tiles have one size, so that one compiled program serves them. Where two overlap, the outer
part of each, which lacks its surroundings, has no say, and between them one fades into the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from deepsum_jax.tiling.source import Rect

SIDE = 128  # LR pixels
MARGIN = 16  # LR pixels; two neighbours overlap by twice as many at least
FADE = 12  # LR pixels in which one tile fades into the next
_ROWS = 48  # HR pixels, that are joined at a time


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
    tiles: Tiles,
    rows_done: Iterable[None],
    tile: Callable[[tuple[int, int]], np.ndarray],
    scale: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """Tiles faded into each other: (first row, [rows, W, K]) from top to bottom, HR pixels.

    Args:
      tiles: how the grid was cut.
      rows_done: goes on whenever one more row of tiles is done.
      tile: of (row, column) that are done, the tile [side, side, K], HR pixels, finite. Only some
        of its rows are read at a time.
      scale: r.
    """
    starts = [scale * start for start in tiles.rows.starts]
    length = scale * tiles.rows.length
    for number, _ in enumerate(rows_done):
        # What the next row of tiles has a say in waits for it.
        last = number + 1 == len(starts)
        end = starts[number] + length if last else starts[number + 1]
        for top in range(starts[number], end, _ROWS):
            bottom = min(top + _ROWS, end)
            having = [n for n in range(number + 1) if starts[n] + length > top]
            parts = [_part(tiles, n, slice(top, bottom), tile, scale) for n in having]
            yield top, sum(parts[1:], start=parts[0])


def _part(
    tiles: Tiles, number: int, rows: slice, tile: Callable[[tuple[int, int]], np.ndarray],
    scale: int,
) -> np.ndarray:  # fmt: skip
    """What a row of tiles says in some rows of the result, [rows, W, K]."""
    begin = scale * tiles.rows.starts[number]
    inner = slice(rows.start - begin, min(rows.stop - begin, scale * tiles.rows.length))
    down = tiles.rows.profile(number, scale)[inner, None, None]
    width = scale * (tiles.columns.starts[-1] + tiles.columns.length)
    total: np.ndarray | None = None
    for column, start in enumerate(tiles.columns.starts):
        found = tile((number, column))
        if total is None:
            total = np.zeros((rows.stop - rows.start, width, found.shape[-1]), np.float32)
        across = tiles.columns.profile(column, scale)[None, :, None]
        there = slice(scale * start, scale * start + found.shape[1])
        total[: len(down), there] += down * across * found[inner]
    assert total is not None
    return total
