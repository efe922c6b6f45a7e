"""The sensor as JAX sees it: dense, differentiable matrices for both axes of many frames at once.

The same sensor as `data.sensor`: a Gaussian integrated over the LR pixel, rows that sum to one, and
an HR image that goes on beyond its border with its edge values. Dense products of a frame's rows
and columns are what a processor does fastest, and the shift may be any fraction of a pixel.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from deepsum_jax.data import resample

Array = jax.Array


class Optics(NamedTuple):
    """How N frames see the HR grid: A_n = rows_n ⊗ columns_n."""

    rows: Array  # [N, h, H]
    columns: Array  # [N, w, W]

    @property
    def reference(self) -> Optics:
        """That of frame 0 alone."""
        return Optics(self.rows[:1], self.columns[:1])

    def observe(self, hr: Array) -> Array:
        """A_n of one image: [H, W] → [N, h, w]."""
        half = jnp.einsum("nhH,HW->nhW", self.rows, hr)
        return jnp.einsum("nhW,nwW->nhw", half, self.columns)

    def back_project(self, lr: Array) -> Array:
        """Σ_n A_nᵀ: [N, h, w] → [H, W]."""
        half = jnp.einsum("nhw,nwW->nhW", lr, self.columns)
        return jnp.einsum("nhH,nhW->HW", self.rows, half)


def axis_matrix(count: int, scale: int, shift: Array, psf_sigma: float | Array) -> Array:
    """One axis of a frame's sensor: [count, scale·count], rows that sum to one.

    Args:
      count: LR pixels.
      scale: r.
      shift: HR pixels, a scalar; see `data.sensor`.
      psf_sigma: deviation of the Gaussian, LR pixels.
    """
    size, sigma = scale * count, scale * psf_sigma
    centre = scale * jnp.arange(count) + (scale - 1) / 2 + shift

    # The Gaussian's integral up to the edges of HR pixels and of what lies r apart from them.
    edges = jnp.arange(size + scale, dtype=centre.dtype) - scale / 2
    below = ndtr((edges - centre[:, None]) / sigma)
    inner = below[:, scale:] - below[:, :-scale]
    # What lies beyond an end falls on its pixel; differences r apart telescope to r terms.
    first = below[:, 1 : scale + 1].sum(axis=1)
    last = scale - below[:, size - 1 : size + scale - 1].sum(axis=1)
    return inner.at[:, 0].set(first).at[:, -1].set(last) / scale


def make_optics(
    shape: tuple[int, int], shifts: Array, scale: int, psf_sigma: float | Array
) -> Optics:
    """The sensors of frames [h, w] = `shape` with shifts [N, 2], HR pixels."""
    rows, columns = (
        jax.vmap(lambda s, count=count: axis_matrix(count, scale, s, psf_sigma))(shifts[:, axis])
        for axis, count in enumerate(shape)
    )
    return Optics(rows, columns)


def inside(shape: tuple[int, int], shifts: Array, scale: int) -> Array:
    """Which LR pixels look at the HR grid: bool [N, h, w]."""
    seen = []
    for axis, count in enumerate(shape):
        size = scale * count
        centre = scale * jnp.arange(count) + (scale - 1) / 2 + shifts[:, axis, None]
        seen.append(jnp.abs(centre - (size - 1) / 2) <= (size - scale + 1) / 2)
    return seen[0][:, :, None] & seen[1][:, None, :]


def enlarge_axis(count: int, scale: int) -> np.ndarray:
    """Bicubic enlargement of one axis as a matrix: float32 [scale·count, count]."""
    eye = np.eye(count, dtype=np.float32)
    return np.ascontiguousarray(resample.bicubic_upsample(eye[:, None], scale, False)[:, 0].T)


def smooth_axis(count: int, sigma: float) -> np.ndarray:
    """Gaussian smoothing of one axis, a matrix of rows that sum to one: float32 [count, count]."""
    away = np.arange(count)[:, None] - np.arange(count)
    weights = np.exp(-0.5 * np.square(away / sigma))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def unshuffle(hr: Array, scale: int) -> Array:
    """[H, W] → [h, w, r²]: the HR pixels of each LR pixel as channels."""
    h, w = hr.shape[0] // scale, hr.shape[1] // scale
    return hr.reshape(h, scale, w, scale).transpose(0, 2, 1, 3).reshape(h, w, scale * scale)


def shuffle(lr: Array, scale: int) -> Array:
    """[h, w, r²] → [H, W], the inverse of `unshuffle`."""
    h, w = lr.shape[:2]
    return lr.reshape(h, w, scale, scale).transpose(0, 2, 1, 3).reshape(h * scale, w * scale)
