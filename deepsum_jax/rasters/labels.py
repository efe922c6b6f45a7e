"""Coordinates of the finer grid: axes, and what else of an xarray object says where its pixels lie.

No xarray here: what it knows is read off its objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deepsum_jax.data import intake


class Dims(NamedTuple):
    """The names of an object's dimensions; None where it has no such."""

    time: Any
    y: Any
    x: Any
    band: Any


def dims_of(value: Any, what: str) -> Dims:
    """What the dimensions of a DataArray are.

    Raises:
      TypeError: names that are unknown.
      ValueError: two of one kind, or no y and x.
    """
    kinds = intake.kinds_of(value.dims, what)
    names = ", ".join(map(str, value.dims))
    if len(set(kinds)) < len(kinds) or not {"y", "x"} <= set(kinds):
        raise ValueError(f"{what}: found the dimensions ({names}), expected time, y, x, or band")
    by = dict(zip(kinds, value.dims))
    return Dims(by.get("time"), by["y"], by["x"], by.get("band"))


def centres(value: Any, dim: Any) -> np.ndarray | None:
    """The coordinates of an axis, float64; None where it has none."""
    if dim not in value.coords:
        return None
    labels = np.asarray(value.coords[dim].values)
    return labels.astype(np.float64) if labels.dtype.kind in "uif" else None


def finer(labels: np.ndarray, step: float, scale: int) -> np.ndarray:
    """Pixel centres of an axis of which each pixel becomes `scale`.

    Args:
      labels: float64 [n], evenly spaced.
      step: from one to the next, as `step_of` gives it.
    """
    i = np.arange(len(labels) * scale)
    return np.asarray(labels[0] + step * ((2 * i + 1 - scale) / (2 * scale)))


def step_of(labels: np.ndarray, known: float | None, what: str) -> float:
    """The step of an axis: the one that is written down, where the coordinates agree with it.

    Raises:
      ValueError: uneven coordinates, or a single one without a known step.
    """
    n = len(labels)
    if n < 2:
        if known is None:
            raise ValueError(f"{what}: found one pixel along an axis, expected two or more")
        return known
    step = float(labels[-1] - labels[0]) / (n - 1)
    off = np.abs(labels - (labels[0] + step * np.arange(n))).max()
    if not off < 0.1 * abs(step):
        raise ValueError(
            f"{what}: found coordinates that are not evenly spaced, expected those of pixels"
        )
    # Decimals in coordinates are rounded ones; a transform may be left over from another grid.
    agrees = known is not None and abs(known - step) * n < 0.01 * abs(step)
    return float(known) if agrees and known is not None else step


# --- transforms ---------------------------------------------------------------------------------


def geotransform(value: Any) -> tuple[float, ...] | None:
    """GDAL's six numbers, where a scalar coordinate or an attribute says them."""
    for coordinate in value.coords.values():
        if coordinate.ndim == 0 and "GeoTransform" in coordinate.attrs:
            return _numbers(coordinate.attrs["GeoTransform"])
    affine = _numbers(value.attrs.get("transform"))
    if affine is None:
        return None
    a, b, c, d, e, f = affine
    return c, a, b, f, d, e


def _numbers(found: Any) -> tuple[float, ...] | None:
    """Six numbers, of a text or a sequence of six or nine."""
    try:
        parts = [float(v) for v in (found.split() if isinstance(found, str) else found)]
    except (AttributeError, TypeError, ValueError):
        return None
    return tuple(parts[:6]) if len(parts) in (6, 9) else None


def finer_geotransform(
    old: Sequence[float], y: np.ndarray | None, x: np.ndarray | None, scale: int
) -> tuple[float, ...]:
    """GDAL's six numbers on the finer grid, true to its coordinates where it has them."""
    c, a, b, f, d, e = old
    a, b, d, e = a / scale, b / scale, d / scale, e / scale
    if y is None or x is None or b or d or min(len(y), len(x)) < 2:
        return c, a, b, f, d, e
    down, right = (float(v[-1] - v[0]) / (len(v) - 1) for v in (y, x))
    # A grid that was cut, or turned over, keeps the numbers of the whole.
    a = a if abs(right - a) * len(x) < 0.01 * abs(a) else right
    e = e if abs(down - e) * len(y) < 0.01 * abs(e) else down
    left, top = float(x[0]) - a / 2, float(y[0]) - e / 2
    c, f = (old if abs(new - old) < 1e-6 * abs(a) else new for old, new in ((c, left), (f, top)))
    return c, a, 0.0, f, 0.0, e


def in_words(numbers: Sequence[float]) -> str:
    return " ".join(repr(float(v)) for v in numbers)


# --- attributes and encodings -------------------------------------------------------------------

# Of an encoding, what belongs to the file that was read.
_OF_THE_FILE = (
    "chunks", "chunksizes", "preferred_chunks", "contiguous", "original_shape", "source", "szip",
)  # fmt: skip


def finer_attributes(attrs: Mapping[Any, Any], numbers: Sequence[float] | None, scale: int) -> dict:
    """Attributes of an array or a coordinate, with what they say of pixels true again."""
    kept = dict(attrs)
    if numbers is not None and _numbers(kept.get("transform")) is not None:
        c, a, b, f, d, e = numbers
        kept["transform"] = (a, b, c, d, e, f)
    for key in ("_FillValue", "missing_value"):  # files want it in the dtype of the values
        if isinstance(kept.get(key), (int, float, np.number)):
            kept[key] = np.float32(kept[key])
    for key in ("res", "resolution"):
        found = kept.get(key)
        if isinstance(found, (int, float, np.number)):
            kept[key] = float(found) / scale
        elif isinstance(found, (tuple, list)) and all(isinstance(v, (int, float)) for v in found):
            kept[key] = type(found)(v / scale for v in found)
    return kept


def kept_encoding(encoding: Mapping[Any, Any]) -> dict:
    """An encoding without what the finer grid has not: chunks, a source, a shape."""
    kept = {key: value for key, value in encoding.items() if key not in _OF_THE_FILE}
    if "dtype" not in kept:
        kept.pop("rasterio_dtype", None)  # alone it cuts decimals off, instead of rounding
    return kept
