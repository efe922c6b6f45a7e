"""What the whole of a large stack says, for the systems that see a part of it.

A part is too small to tell how bright a frame is, how noisy the stack, or, under clouds, where a
frame lies; and parts that tell it apart from each other show seams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Survey(NamedTuple):
    """What is known of the frames of one part, the reference first."""

    shifts: (
        np.ndarray
    )  # [M, 2] HR pixels, where registration begins, or ends: registered(y) = frame(y − s)
    gains: np.ndarray  # [M, C] above 0; gain · frame + offset has the reference's brightness
    offsets: np.ndarray  # [M, C] raw units
    noise: np.ndarray  # [C] raw units of the reference, deviation
    contrast: np.ndarray  # [C] raw units of the reference, above 0
    frames: int  # as many as any part may have, so that one compiled program serves all

    def band(self, channel: int) -> Survey:
        """That of one band alone."""
        one = slice(channel, channel + 1)
        return self._replace(
            gains=self.gains[:, one],
            offsets=self.offsets[:, one],
            noise=self.noise[one],
            contrast=self.contrast[one],
        )

    def led_by(self, members: Sequence[int]) -> Survey:
        """That of some of the frames, the first of them as their reference."""
        picked, first = list(members), members[0]
        gain, offset = self.gains[first], self.offsets[first]
        return self._replace(
            shifts=self.shifts[picked] - self.shifts[first],
            gains=self.gains[picked] / gain,
            offsets=(self.offsets[picked] - offset) / gain,
            noise=self.noise / gain,
            contrast=self.contrast / gain,
        )

    def turned(self, code: int) -> Survey:
        """That of frames turned as by `data.turns.turned`."""
        y, x = self.shifts.T
        for _ in range(code & 3):  # a quarter turn takes (y, x) to (−x, y)
            y, x = -x, y
        return self._replace(shifts=np.stack([y, -x if code & 4 else x], axis=1))
