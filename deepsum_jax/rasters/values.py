"""From computed values to those that a raster's dtype holds."""

from __future__ import annotations

import dataclasses

import numpy as np

_EXACT = 2**53  # float64 counts no further in whole steps


@dataclasses.dataclass
class Lost:
    """Values that a dtype could not hold, counted over a whole raster."""

    below: int = 0
    above: int = 0

    def line(self, dtype: np.dtype, values: int) -> str:
        """One line for people, "" where nothing was lost."""
        low, high = limits(dtype)
        return (
            f"clipped {self.below + self.above} of {values} values ({self.below} below {low:g}, "
            f"{self.above} above {high:g}) to fit {dtype}"
            if self.below + self.above
            else ""
        )


def limits(dtype: np.dtype) -> tuple[float, float]:
    """The least and the greatest value that a dtype holds and float64 counts to."""
    if dtype.kind == "f":
        return float(np.finfo(dtype).min), float(np.finfo(dtype).max)
    info = np.iinfo(dtype)
    return float(max(info.min, -_EXACT)), float(min(info.max, _EXACT))


def holds(dtype: np.dtype, nodata: float | None) -> bool:
    """Whether a dtype can hold a no-data value."""
    if nodata is None:
        return False
    if np.isnan(nodata):
        return dtype.kind == "f"
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return bool(np.isfinite(np.asarray(nodata).astype(dtype))) or bool(np.isinf(nodata))
    low, high = limits(dtype)
    return float(nodata).is_integer() and low <= nodata <= high


def converted(
    values: np.ndarray, valid: np.ndarray, dtype: np.dtype, nodata: float | None, lost: Lost
) -> np.ndarray:
    """Values in a dtype: rounded and clipped where it is one of whole numbers.

    What is valid never becomes the no-data value: it moves to the nearest other one.

    Args:
      values: float [rows, W, C], finite where valid.
      valid: bool [rows, W]; elsewhere the no-data value comes to stand, or 0 where there is none.
      nodata: that `dtype` holds, or None.
      lost: adds what was clipped.

    Returns:
      dtype [rows, W, C].
    """
    low, high = limits(dtype)
    wide = np.where(valid[..., None], values, 0).astype(np.float64)
    if dtype.kind in "iu":
        np.rint(wide, out=wide)
    lost.below += int(np.count_nonzero(wide < low))
    lost.above += int(np.count_nonzero(wide > high))
    out = np.clip(wide, low, high).astype(dtype)
    if nodata is None:
        return out
    code = np.asarray(nodata).astype(dtype)
    taken = valid[..., None] & (out == code)
    if taken.any():
        # A value that was rounded onto the code goes back to the side that it came from.
        out[taken] = _beside(code, np.broadcast_to(values, out.shape)[taken])
    out[~valid] = code
    return out


def _beside(code: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The nearest value of the code's dtype to each of the values, other than the code."""
    low, high = limits(code.dtype)
    upward = ((values >= float(code)) & (float(code) < high)) | (float(code) <= low)
    if code.dtype.kind == "f":
        return np.nextafter(code, np.where(upward, np.inf, -np.inf).astype(code.dtype))
    return np.asarray(float(code) + np.where(upward, 1, -1)).astype(code.dtype)
