"""Frames that are registered to a fraction of a pixel and share the reference's brightness.

Systems that look through the sensor take them so, on their own grids: nothing is resampled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Aligned(NamedTuple):
    """A stack of one band, in units of the reference's contrast about its level."""

    frames: np.ndarray  # [N, h, w] float32, finite; frame 0 the reference
    masks: np.ndarray  # [N, h, w] bool
    shifts: np.ndarray  # [N, 2] float32, HR pixels: registered(y) = frame(y − s)
    noise: np.ndarray  # [] float32, deviation
    level: np.ndarray  # [] float64, raw units
    contrast: np.ndarray  # [] float64, raw units, above 0

    def raw(self, x: np.ndarray) -> np.ndarray:
        """What an image in the stack's own units is in raw ones, float32."""
        return np.asarray(x * self.contrast + self.level, np.float32)

    def own_units(self, x: np.ndarray) -> np.ndarray:
        """What a raw image is in the stack's own units, float32."""
        return np.asarray((x - self.level) / self.contrast, np.float32)

    def of(self, count: int) -> Aligned:
        """The first `count` frames; those that there are not hide everything."""
        have = min(count, len(self.frames))
        room = ((0, count - have), *((0, 0),) * 2)
        return self._replace(
            frames=np.pad(self.frames[:have], room),
            masks=np.pad(self.masks[:have], room),
            shifts=np.pad(self.shifts[:have], room[:2]),
        )


class Agreeing(NamedTuple):
    """Where a stack's frames lie, and what of them shows the reference's ground."""

    shifts: np.ndarray  # [N, 2] float32, HR pixels: registered(y) = frame(y − s)
    masks: np.ndarray  # [N, h, w] bool


# (frames [N, h, w, C] raw, masks [N, h, w]) → what agrees; frame 0 is the reference.
Agree = Callable[[np.ndarray, np.ndarray], Agreeing]

# (frames [N, h, w, 1] raw, masks [N, h, w]) → the aligned stack; frame 0 is the reference.
Align = Callable[[np.ndarray, np.ndarray], Aligned]
