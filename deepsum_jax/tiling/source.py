"""A stack that is read window by window, whatever holds it: files, dask, an array in memory.

Shapes: T frames of h x w LR pixels with C bands, r scale.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class Rect(NamedTuple):
    """A part of the reference's LR grid; it lies within it."""

    row: int
    column: int
    height: int
    width: int

    @property
    def part(self) -> tuple[slice, slice]:
        """It as an index of [h, w]."""
        return (
            slice(self.row, self.row + self.height),
            slice(self.column, self.column + self.width),
        )


class Source(Protocol):
    """T frames on the reference's LR grid, each by whole pixels.

    Attributes:
      names: [T] what messages call the frames.
      height, width: of the grid, LR pixels.
      channels: C.
      dtype: of the raw values.
      fractions: float64 [T, 2] (y, x), LR pixels, −0.5 to 0.5: pixel i of a frame has its centre at
        i + fraction on the grid, as far as is known before registration; zeros where nothing is.
    """

    names: tuple[str, ...]
    height: int
    width: int
    channels: int
    dtype: np.dtype
    fractions: np.ndarray

    def read(self, rect: Rect) -> tuple[np.ndarray, np.ndarray]:
        """A part of all frames: lr [T, h, w, C] raw, and masks [T, h, w] bool, True = reliable;
        not reliable where a frame has nothing. Values are finite where they are reliable."""
        ...


class Strip(NamedTuple):
    """Rows of the result, as they become final."""

    row: int  # of the first, HR pixels
    image: np.ndarray  # float32 [rows, W, C] raw, finite
    valid: np.ndarray  # bool [rows, W], where any frame was reliable
    standard_error: np.ndarray | None  # float32 [rows, W, C] raw, where the system has it
    frames_per_pixel: np.ndarray | None  # float32 [rows, W], likewise


class ArraySource:
    """A stack that is in memory.

    Args:
      lr: [T, h, w, C] raw; masks: [T, h, w] bool.
    """

    def __init__(self, lr: np.ndarray, masks: np.ndarray) -> None:
        self._lr, self._masks = lr, masks
        self.names = tuple(f"frame {n}" for n in range(len(lr)))
        self.height, self.width, self.channels = lr.shape[1:]
        self.dtype = lr.dtype
        self.fractions = np.zeros((len(lr), 2))

    def read(self, rect: Rect) -> tuple[np.ndarray, np.ndarray]:
        part = (slice(None), *rect.part)
        return self._lr[part].copy(), self._masks[part].copy()
