"""Where a raster lies and what its numbers are: what goes from the input into the output."""

from __future__ import annotations

import dataclasses

from rasterio.crs import CRS
from rasterio.transform import Affine


@dataclasses.dataclass(frozen=True)
class Georeference:
    """Of a raster of C bands.

    Attributes:
      crs: None where nothing is known.
      transform: from (column, row) to the CRS's units.
      height, width: pixels.
      dtype: of the values, numpy's name.
      nodata: the value of pixels without one; None where there is no such value.
      scales, offsets: [C], physical value = scale · value + offset.
      descriptions: [C], names of the bands.
    """

    crs: CRS | None
    transform: Affine
    height: int
    width: int
    dtype: str
    nodata: float | None
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    descriptions: tuple[str | None, ...]

    def finer(self, scale: int) -> Georeference:
        """The same area in pixels a `scale`-th as large."""
        t = self.transform
        return dataclasses.replace(
            self,
            transform=Affine(t.a / scale, t.b / scale, t.c, t.d / scale, t.e / scale, t.f),
            height=scale * self.height,
            width=scale * self.width,
        )
