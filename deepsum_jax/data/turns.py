"""The eight flips and quarter turns of an image; for augmentation and for self-ensembles."""

from __future__ import annotations

import numpy as np

CODES = range(8)  # bit 2 flips left to right, bits 0–1 count quarter turns


def turned(x: np.ndarray, code: int, axes: tuple[int, int]) -> np.ndarray:
    """An array as one of the eight shows it, its rows and columns along `axes`."""
    x = np.rot90(x, code & 3, axes)
    return np.ascontiguousarray(np.flip(x, axes[1]) if code & 4 else x)


def turned_back(x: np.ndarray, code: int, axes: tuple[int, int]) -> np.ndarray:
    """The inverse of `turned`."""
    x = np.flip(x, axes[1]) if code & 4 else x
    return np.ascontiguousarray(np.rot90(x, -(code & 3), axes))
