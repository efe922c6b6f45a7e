"""The sensor: how a frame sees the HR grid. Back-projection looks through it, and simulation.

Coordinates are those of `simulation`: pixel centres at whole numbers, LR pixel i covers
HR pixels r·i to r·i + r − 1. A frame with shift s (registered(y) = frame(y − s), HR pixels) is

    frame(i) = Σ_y k(y − c_i) · hr(y),    c_i = r·i + (r − 1)/2 + s,

on either axis, where k is a Gaussian of `psf_sigma` integrated over the LR pixel, r HR pixels
wide: translation by any fraction, blur and decimation in one sparse matrix A_n of rows that sum
to one. Beyond its border the HR image goes on with its edge values.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import scipy.special

from deepsum_jax.config import ModelConfig

# Chosen on simulated scenes. With the pixel's own integration it leaves a third of the contrast at
# the LR grid's Nyquist frequency.
PSF_SIGMA = ModelConfig.psf_sigma  # LR pixels, 0..2

_PSF_REACH = 4  # deviations of the Gaussian


class Sensor(NamedTuple):
    """How one frame sees the HR grid: A = rows ⊗ columns."""

    rows: Any  # sparse [h, H]
    columns: Any  # sparse [w, W]
    inside: np.ndarray  # [h, w] bool, LR pixels that look at the HR grid

    def observe(self, hr: np.ndarray) -> np.ndarray:
        """A: [H, W, …] → [h, w, …]."""
        return _along(self.columns, _along(self.rows, hr, 0), 1)

    def back_project(self, lr: np.ndarray) -> np.ndarray:
        """Aᵀ: [h, w, …] → [H, W, …]."""
        return _along(self.rows.T, _along(self.columns.T, lr, 1), 0)


def _along(matrix: Any, x: np.ndarray, axis: int) -> np.ndarray:
    """A matrix times one axis of an array."""
    moved = np.moveaxis(x, axis, 0)
    out = matrix @ moved.reshape(len(moved), -1)
    return np.moveaxis(out.reshape(-1, *moved.shape[1:]), 0, axis)


def pixel_rows(
    centre: np.ndarray, pitch: float, sigma: float, side: int, dtype: Any = np.float32
) -> Any:
    """One axis of a sensor, sparse [count, side]: a row of weights over the grid for each pixel.

    Args:
      centre: [count], where the pixels' centres lie on the grid.
      pitch: how wide they are, samples of the grid.
      sigma: of the Gaussian before a pixel integrates over its width, samples.
      side: of the grid, which goes on beyond its border with its edge values.
    """
    reach = math.ceil(pitch / 2 + _PSF_REACH * sigma)
    at = np.floor(centre).astype(int)[:, None] + np.arange(-reach, reach + 2)
    away = at - centre[:, None]
    weights = scipy.special.ndtr((away + pitch / 2) / sigma)
    weights -= scipy.special.ndtr((away - pitch / 2) / sigma)
    weights /= weights.sum(axis=1, keepdims=True)
    starts = np.arange(0, weights.size + 1, weights.shape[1])
    return scipy.sparse.csr_array(
        (weights.ravel().astype(dtype), np.clip(at, 0, side - 1).ravel(), starts),
        shape=(len(centre), side),
    )


def _axis(
    count: int, scale: int, shift: float, psf_sigma: float, dtype: Any
) -> tuple[Any, np.ndarray]:
    """One axis of a sensor: sparse [count, r·count], and which pixels look at the HR grid."""
    size = scale * count
    centre = scale * np.arange(count) + (scale - 1) / 2 + shift
    # Half an HR pixel beyond the border is still what the border shows.
    inside = np.abs(centre - (size - 1) / 2) <= (size - scale + 1) / 2
    return pixel_rows(centre, scale, scale * psf_sigma, size, dtype), inside


def make_sensor(
    shape: tuple[int, ...], shift: Sequence[float] | np.ndarray, scale: int, psf_sigma: float,
    dtype: Any = np.float32,
) -> Sensor:  # fmt: skip
    """The sensor of a frame [h, w, …] = `shape` with a shift (s_y, s_x) in HR pixels."""
    (rows, above), (columns, beside) = (
        _axis(count, scale, float(s), psf_sigma, dtype) for count, s in zip(shape[:2], shift)
    )
    return Sensor(rows, columns, above[:, None] & beside)


def check_parameters(scale: int, psf_sigma: float) -> None:
    if operator.index(scale) < 1:
        raise ValueError(f"scale: found {scale}, expected a whole number from 1")
    if not 0 < psf_sigma <= 2:
        raise ValueError(f"psf_sigma: found {psf_sigma}, expected more than 0, at most 2 LR pixels")


def _floating(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    return x if x.dtype == np.float32 else x.astype(np.float64)


def observe(
    hr: np.ndarray,
    shift: Sequence[float] | np.ndarray,
    scale: int,
    psf_sigma: float = PSF_SIGMA,
) -> np.ndarray:
    """What a frame shows of an HR image: translated, blurred, averaged over r×r, decimated.

    Args:
      hr: [r·h, r·w] or [r·h, r·w, C], finite.
      shift: (s_y, s_x), HR pixels, that registers the frame on `hr`: the frame shows at (y, x)
        what `hr` has at (y + s_y, x + s_x).
      scale: r.
      psf_sigma: deviation of the Gaussian, LR pixels.

    Returns:
      [h, w] or [h, w, C], float32 if `hr` is, else float64.

    Raises:
      ValueError: sides that `scale` does not divide, or a parameter out of range.
    """
    check_parameters(scale, psf_sigma)
    hr = _floating(hr)
    if hr.ndim not in (2, 3) or hr.shape[0] % scale or hr.shape[1] % scale:
        raise ValueError(
            f"hr: found shape {hr.shape}, expected [H, W] or [H, W, C] with sides divisible by "
            f"{scale}"
        )
    shape = (hr.shape[0] // scale, hr.shape[1] // scale)
    return make_sensor(shape, shift, scale, psf_sigma, hr.dtype).observe(hr)


def back_project(
    lr: np.ndarray,
    shift: Sequence[float] | np.ndarray,
    scale: int,
    psf_sigma: float = PSF_SIGMA,
) -> np.ndarray:
    """The adjoint of `observe`: [h, w] or [h, w, C] → [r·h, r·w] or [r·h, r·w, C].

    Σ observe(x) · y = Σ x · back_project(y) for all x and y.
    """
    check_parameters(scale, psf_sigma)
    lr = _floating(lr)
    if lr.ndim not in (2, 3):
        raise ValueError(f"lr: found shape {lr.shape}, expected [h, w] or [h, w, C]")
    return make_sensor(lr.shape, shift, scale, psf_sigma, lr.dtype).back_project(lr)
