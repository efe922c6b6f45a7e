"""What a PNG shows: whether its panels are drawn and differ, and how many marks of a colour."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import scipy.ndimage
from PIL import Image


def pixels(path: Path) -> np.ndarray:
    """RGB [height, width, 3] of a PNG."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def assert_panels(
    path: Path,
    rows: int,
    columns: int,
    empty: Collection[tuple[int, int]] = (),
    alike: Collection[int] = (),
) -> None:
    """Every panel of an even grid shows an image, and no two of a row the same one.

    Args:
      empty: (row, column) of those that hold no image of their own.
      alike: columns whose images no eye could tell from others.
    """
    page = pixels(path).astype(float)
    height, width = page.shape[0] / rows, page.shape[1] / columns
    for row in range(rows):
        shown: list[np.ndarray] = []
        for column in range(columns):
            if (row, column) in empty:
                continue
            top, left = round((row + 0.2) * height), round((column + 0.2) * width)
            panel = page[top : top + round(0.6 * height), left : left + round(0.6 * width)]
            assert np.ptp(panel, axis=(0, 1)).max() > 3, f"panel {row}, {column} is blank"
            if column in alike:
                continue
            for other in shown:
                assert _apart(panel, other) > 0.09, f"panel {row}, {column} is there twice"
            shown.append(panel)


def _apart(panel: np.ndarray, other: np.ndarray, reach: int = 10) -> float:
    """How much two images differ, as a share of the contrast of the first, where they fit best:
    their places on an even grid differ by some pixels. What is drawn twice differs by 0.06 at
    most, different systems' images by 0.13 at least."""
    height, width = (min(a, b) for a, b in zip(panel.shape[:2], other.shape[:2]))
    one, two = (
        scipy.ndimage.gaussian_filter(x.mean(axis=-1), 2)[:height, :width] for x in (panel, other)
    )
    one = one[reach : height - reach : 2, reach : width - reach : 2]
    gaps = [
        np.abs(one - two[y : height - 2 * reach + y : 2, x : width - 2 * reach + x : 2]).mean()
        for y in range(2 * reach + 1)
        for x in range(2 * reach + 1)
    ]
    return float(min(gaps) / max(np.abs(one - one.mean()).mean(), 1e-6))


def marks(path: Path, colour: str) -> int:
    """How many separate marks of a colour "#rrggbb" there are."""
    wanted = [int(colour[n : n + 2], 16) for n in (1, 3, 5)]
    return int(scipy.ndimage.label((pixels(path) == wanted).all(axis=-1), np.ones((3, 3)))[1])
