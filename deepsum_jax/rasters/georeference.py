"""Stand-in."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Georeference:
    crs: Any
    transform: Any
    height: int
    width: int
    dtype: str
    nodata: float | None
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    descriptions: tuple[str | None, ...]

    def finer(self, scale: int) -> Georeference:
        t = self.transform
        return dataclasses.replace(
            self,
            height=self.height * scale,
            width=self.width * scale,
            transform=type(t)(t.a / scale, t.b / scale, t.c, t.d / scale, t.e / scale, t.f),
        )
