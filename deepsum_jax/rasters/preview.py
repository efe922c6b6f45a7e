"""Which part of a large raster its preview shows, and that part of the result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepsum_jax.tiling.source import Rect, Source, Strip

SIDE = 96  # LR pixels: of what is shown, each pixel of the result can still be seen
_WHOLE = 2 * SIDE  # up to this side all is shown
_LOOKS = 5  # along each axis


def telling_part(source: Source, reference: int, bands: Sequence[int] = (0,)) -> Rect:
    """The whole of a small grid, or of a large one the part with most detail that stays.

    It is looked for at 5 × 5 places, in the median of all frames, where passing clouds are gone,
    and as far as the reference is clear.
    """
    if max(source.height, source.width) <= _WHOLE:
        return Rect(0, 0, source.height, source.width)
    height, width = min(SIDE, source.height), min(SIDE, source.width)
    rows, columns = (
        sorted({round(f * (size - side)) for f in np.linspace(0, 1, _LOOKS)})
        for size, side in ((source.height, height), (source.width, width))
    )
    places = [Rect(row, column, height, width) for row in rows for column in columns]
    centre = Rect((source.height - height) // 2, (source.width - width) // 2, height, width)
    return max([centre, *places], key=lambda place: _told(source, place, reference, bands))


def _told(source: Source, place: Rect, reference: int, bands: Sequence[int]) -> float:
    """How much of a place there is to see."""
    lr, masks = source.read(place)
    clear = masks.any(axis=0)  # [h, w]
    if not masks[reference].any():
        return 0.0
    told = 0.0
    for band in bands:
        frames = np.ma.masked_array(lr[..., band].astype(np.float32), ~masks)
        ground = np.ma.median(frames, axis=0)
        for axis in (0, 1):
            steps = np.abs(np.ma.diff(ground, axis=axis)).compressed()
            if steps.size:  # a few bright dots are no detail
                told += float(np.minimum(steps, np.percentile(steps, 95)).mean())
    return told * float(masks[reference].mean()) * float(clear.mean())


class Crop:
    """A part of the result, gathered from its strips.

    Attributes:
      part: which.
      image: float32 [r·h, r·w, C], NaN where nothing is valid.
      standard_error: likewise, or None.
    """

    def __init__(self, part: Rect, scale: int, channels: int) -> None:
        self.part = part
        self._rows = slice(part.row * scale, (part.row + part.height) * scale)
        self._columns = slice(part.column * scale, (part.column + part.width) * scale)
        shape = (part.height * scale, part.width * scale, channels)
        self.image = np.full(shape, np.nan, np.float32)
        self.standard_error: np.ndarray | None = None

    def take(self, strip: Strip) -> None:
        """Keeps what a strip has of the part."""
        first = max(self._rows.start, strip.row)
        last = min(self._rows.stop, strip.row + len(strip.valid))
        if first >= last:
            return
        own = slice(first - self._rows.start, last - self._rows.start)
        there = (slice(first - strip.row, last - strip.row), self._columns)
        valid = strip.valid[there][..., None]
        self.image[own] = np.where(valid, strip.image[there], np.nan)
        if strip.standard_error is not None:
            if self.standard_error is None:
                self.standard_error = np.full_like(self.image, np.nan)
            self.standard_error[own] = np.where(valid, strip.standard_error[there], np.nan)


def drawn_bands(colours: Sequence[str]) -> tuple[int, ...]:
    """The red, green and blue band by their names, or the first.

    Args:
      colours: of each band, by colour interpretation or description.
    """
    names = [str(name).lower() for name in colours]
    known = ("red", "green", "blue")
    return tuple(map(names.index, known)) if set(known) <= set(names) else (0,)
