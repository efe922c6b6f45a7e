"""The graph-convolutional layer: every pixel also gathers from alike pixels further away.

Valsesia, Fracastoro & Magli, "Deep Graph-Convolutional Image Denoising" (arXiv:1907.08448),
sec. III, as DeepSUM++ (arXiv:2001.06342) uses it in SISRNet. Every frame is a graph by itself:

    d_ij = h_j − h_i,   γ_ij = exp(−‖d_ij‖² / δ)
    out_i = ½ · (3×3 convolution of h)_i + ½ · mean over j ∈ S_i of γ_ij Θ(d_ij) h_j

where S_i are the k pixels of a search window that are most alike to pixel i, and the matrix
Θ(d) = Σ_s κ_s θL_s θR_sᵀ, s = 1 … R, is the output of a small network.

In place of Θ and θL of every edge (i, j), only R numbers and the hidden layer of the network are
computed for it: θL is affine in the hidden layer, so the sum over j goes before it. Loops over
bands of rows and over the k neighbours keep what is held of the edges to one neighbour of a band.

Shapes, beyond those of `ops`: M frames, k neighbours, R rank; P pixels of a band.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsum_jax.config import Compute, ModelConfig, Section
from deepsum_jax.model import ops
from deepsum_jax.model.layers import LinearParams, kernel_init

Array = jax.Array

RANK = 3  # R, of Θ

_COVERED = 3  # side of the block around a pixel that the convolution covers
_BAND_PIXELS = 4096  # of a step of the loops, at most, where rows are no longer than that


@dataclasses.dataclass(frozen=True)
class GraphOptions(Section):
    """The graph of SISRNet's non-local layers; used where there are `neighbours`."""

    search: int = 11  # side of the search window, pixels, odd, 5–63
    delta: float = 10.0  # δ, of squared distances between standardised features, above 0

    def check(self) -> None:
        self._require(5 <= self.search <= 63 and self.search % 2 == 1, "search", "odd, 5 to 63")
        self._require(self.delta > 0, "delta", "above 0")


def candidates(search: int) -> int:
    """How many pixels of its search window a pixel may choose its neighbours from."""
    return search**2 - _COVERED**2


def check_neighbours(config: ModelConfig) -> None:
    """Raises ValueError where a pixel shall have more neighbours than there are candidates."""
    search = GraphOptions.from_dict(config.options).search
    if config.neighbours > candidates(search):
        raise ValueError(
            f"model.neighbours: found {config.neighbours}, expected 0 to {candidates(search)} "
            f"(of a {search}×{search} window)"
        )


def _wide(x: Array) -> Array:
    """At least float32, for distances and whatever is summed up."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# --- bands of rows --------------------------------------------------------------------------


class _Bands:
    """Frames [M, H, W, …] cut into M·n bands of equally many rows, and put together again.

    Where n bands do not fill the frame evenly, the last one runs over its lower edge.
    """

    def __init__(self, frames: int, height: int, width: int) -> None:
        self.frames, self.height = frames, height
        self.count = -(-height // max(1, min(height, _BAND_PIXELS // width)))
        self.rows = -(-height // self.count)
        self.starts = np.tile(np.arange(self.count, dtype=np.int32) * self.rows, frames)  # [M·n]

    def cut(self, x: Array, reach: int = 0) -> Array:
        """[M, H, W, …] → [M·n, rows + 2·reach, W, …], with zeros outside the frame."""
        below = self.count * self.rows - self.height + reach
        x = jnp.pad(x, ((0, 0), (reach, below), *[(0, 0)] * (x.ndim - 2)))
        if self.count == 1:
            return x
        high = self.rows + 2 * reach
        bands = [x[:, n * self.rows : n * self.rows + high] for n in range(self.count)]
        return jnp.stack(bands, axis=1).reshape(-1, high, *x.shape[2:])

    def join(self, x: Array) -> Array:
        """[M·n, rows, W, …] → [M, H, W, …]."""
        return x.reshape(self.frames, -1, *x.shape[2:])[:, : self.height]


# --- the graph ------------------------------------------------------------------------------


def _half_window(search: int) -> np.ndarray:
    """Offsets (dy, dx) of one half of the window, nearest first; the other half are −(dy, dx)."""
    reach, covered = search // 2, _COVERED // 2
    offsets = [
        (dy, dx)
        for dy in range(reach + 1)
        for dx in range(-reach, reach + 1)
        if (dy, dx) > (0, 0) and max(dy, abs(dx)) > covered
    ]
    return np.array(sorted(offsets, key=lambda o: o[0] ** 2 + o[1] ** 2), np.int32)


def _search(band: Array, start: Array, height: int, k: int, search: int) -> tuple[Array, Array]:
    """Neighbours of the pixels of one band.

    Distances are sums of squared differences, not the cheaper |a|² + |b|² − 2ab, which loses the
    small ones to cancellation; to make up for it, those of a pixel pair are computed once.

    Args:
      band: [rows + 2·reach, W, F], reach = search // 2.
      start: number of the band's first own row in the frame of H = `height` rows.

    Returns:
      Flat index into the frame and validity, each [rows, W, k].
    """
    reach = search // 2
    rows, width = band.shape[0] - 2 * reach, band.shape[1]
    maps = jnp.moveaxis(band, -1, 0)  # [F, rows + 2·reach, W]
    others = jnp.pad(maps, ((0, 0), (0, 0), (reach, reach)))
    numbers = start - reach + jnp.arange(rows + 2 * reach)
    columns = np.arange(-reach, width + reach)
    inside = ((numbers >= 0) & (numbers < height))[:, None] & (columns >= 0) & (columns < width)
    shape = (rows + reach, width)  # pairs (i, i + offset) that have one pixel among the own rows
    ones, ones_inside = maps[:, : shape[0]], inside[: shape[0], reach : reach + width]

    def one_offset(offset: Array) -> Array:
        corner = offset[0], offset[1] + reach
        first = jnp.zeros_like(offset[0])  # start indices must be of one type
        other = lax.dynamic_slice(others, (first, *corner), (len(maps), *shape))
        # A sum over F spelt out is one loop along W for XLA; a reduction over F takes twice as
        # long on CPUs.
        distances = sum(jnp.square(other[f] - ones[f]) for f in range(len(maps)))
        both = ones_inside & lax.dynamic_slice(inside, corner, shape)
        return jnp.where(both, distances, jnp.inf)

    def reverse(args: tuple[Array, Array]) -> Array:
        """From i to i − offset: what i − offset has to i."""
        offset, distances = args
        wider = jnp.pad(distances, ((0, 0), (reach, reach)), constant_values=jnp.inf)
        return lax.dynamic_slice(wider, (reach - offset[0], reach - offset[1]), (rows, width))

    half = _half_window(search)
    ahead = lax.map(one_offset, jnp.asarray(half))  # [offsets, rows + reach, W]
    # A loop of its own: XLA would compute the distances a second time for it.
    behind = lax.map(reverse, (jnp.asarray(half), ahead))
    distances = jnp.stack([ahead[:, reach:], behind], axis=1)  # [offsets, 2, rows, W]
    distances = distances.transpose(2, 3, 0, 1).reshape(rows, width, -1)
    nearness, chosen = lax.top_k(-distances, k)
    valid = nearness > -jnp.inf
    steps = np.stack([half, -half], axis=1).reshape(-1, 2) @ np.array([width, 1], np.int32)
    own = start * width + jnp.arange(rows * width, dtype=jnp.int32).reshape(rows, width, 1)
    return jnp.where(valid, own + jnp.asarray(steps, jnp.int32)[chosen], own), valid


def nearest_neighbours(
    features: Array, k: int, search: int = GraphOptions.search
) -> tuple[Array, Array]:
    """The k pixels most alike to each pixel: of least squared distance between their features.

    Candidates lie in the pixel's own frame, in a window around it, and outside the 3×3 block
    around it. Equal distances are settled by the lesser distance in the image, then by a fixed
    order. No gradient passes.

    Args:
      features: [M, H, W, F], finite; squared distances must not overflow.
      k: neighbours of a pixel, 1 to search² − 9.
      search: side of the window centred on the pixel, odd, ≥ 5.

    Returns:
      int32 [M, H, W, k], flat indices y·W + x into the frame, the most alike first; and
      bool [M, H, W, k], False where a pixel has fewer than k candidates. Indices that are not
      valid are the pixel's own.

    Raises:
      ValueError: features of another rank, or k or search out of range.
    """
    if features.ndim != 4:
        raise ValueError(f"features: found shape {features.shape}, expected [M, H, W, F]")
    if search < 5 or search % 2 == 0:
        raise ValueError(f"search: found {search}, expected odd, ≥ 5")
    most = candidates(search)
    if not 1 <= k <= most:
        raise ValueError(f"k: found {k}, expected 1 to {most}, the candidates of a pixel")
    height = features.shape[1]
    bands = _Bands(*features.shape[:3])
    cut = bands.cut(_wide(lax.stop_gradient(features)), search // 2)
    index, valid = lax.map(
        lambda args: _search(args[0], args[1], height, k, search), (cut, jnp.asarray(bands.starts))
    )
    return bands.join(index), bands.join(valid)


# --- the layer ------------------------------------------------------------------------------


class _Affine(NamedTuple):
    """A matrix [F_in, F_out] and a bias [F_out]."""

    kernel: Array
    bias: Array


class _LocalParams(nn.Module):
    """Kernel of the convolution; a norm that follows would remove a bias."""

    shape: tuple[int, int, int, int]
    compute: Compute

    @nn.compact
    def __call__(self) -> Array:
        kernel = self.param("kernel", kernel_init, self.shape, self.compute.param_dtype)
        return kernel.astype(self.compute.dtype)


class _EdgeParams(NamedTuple):
    """The network that makes Θ of a difference."""

    hidden: _Affine  # F → F
    weights: _Affine  # κ: F → R
    left: _Affine  # θL: F → R·F_out
    right: _Affine  # θR: F → R·F


def _aggregate(
    band: Array, index: Array, valid: Array, params: _EdgeParams, delta: float, compute: Compute
) -> Array:
    """The non-local part of the pixels of one band.

    Args:
      band: [rows + 2·reach, W, F].
      index, valid: [rows, W, k], flat indices into the band.

    Returns:
      [rows, W, F_out], float32 at least.
    """
    rows, width, k = index.shape
    features = band.shape[-1]
    pixels = _wide(band).reshape(-1, features)
    reach = (band.shape[0] - rows) // 2
    own = pixels[reach * width : (reach + rows) * width]  # [P, F]
    present = valid.reshape(-1, k)
    count = jnp.maximum(present.sum(axis=-1, keepdims=True), 1)
    shares = present.astype(own.dtype) / count.astype(own.dtype)  # [P, k], 1/|S_i| or 0
    # Sums over F as products with ones: XLA's CPU reductions of short rows are several times
    # slower. Repetitions by concatenation, for the same reason, in the backward pass.
    group = jnp.asarray(np.kron(np.eye(RANK), np.ones((features, 1))), own.dtype)  # [R·F, R]

    def affine(x: Array, layer: _Affine) -> Array:
        y = jnp.matmul(x.astype(compute.dtype), layer.kernel, precision=compute.precision)
        return _wide(y + layer.bias)

    def repeat(x: Array) -> Array:
        """[P, F] → [P, R·F]."""
        return jnp.concatenate([x] * RANK, axis=-1)

    def add_neighbour(
        sums: tuple[Array, Array], neighbour: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        position, share = neighbour  # [P]
        other = pixels[position]
        difference = other - own
        gamma = share * jnp.exp(-jnp.sum(jnp.square(difference), axis=-1) / delta)
        hidden = ops.leaky_relu(affine(difference, params.hidden))
        products = affine(hidden, params.right) * repeat(other)
        inner = jnp.matmul(products, group, precision=compute.precision)  # θR_s · h_j: [P, R]
        factors = gamma[:, None] * affine(hidden, params.weights) * inner
        spread = jnp.concatenate([factors[:, s, None] * hidden for s in range(RANK)], axis=-1)
        return (sums[0] + spread, sums[1] + factors), None

    # [P, R·F] and [P, R], made of `own` so that they vary over mapped axes as it does.
    empty = jnp.zeros_like(repeat(own)), jnp.zeros_like(own, shape=(len(own), RANK))
    # Recomputed in the backward pass: otherwise it would hold every edge's hidden layers.
    step = jax.checkpoint(add_neighbour)
    neighbours = index.reshape(-1, k).T, shares.T
    (spread, factors), _ = lax.scan(step, empty, neighbours)
    # Σ_s Σ_j factor_s (hidden_j · left_s + bias_s), with the sum over j already taken.
    left = params.left.kernel.reshape(features, RANK, -1).swapaxes(0, 1)
    left = left.reshape(RANK * features, -1)
    out = jnp.matmul(spread, _wide(left), precision=compute.precision) + jnp.matmul(
        factors, _wide(params.left.bias).reshape(RANK, -1), precision=compute.precision
    )
    return out.reshape(rows, width, -1)


class GraphConv(nn.Module):
    """Mean of a 3×3 convolution and a non-local one: [..., H, W, F] → [..., H, W, F_out].

    Every frame by itself; H, W ≥ 2. A pixel without candidates (frames up to 2×2) gets nothing
    from the non-local part. Neither norm nor activation.

    Θ has no factor that normalises its variance: behind an instance norm, γ·Θ(d)·h of freshly
    drawn weights stays below the convolution at any d, since Θ grows as ‖d‖³ and γ falls as
    exp(−‖d‖²/δ). With zero biases Θ(0) is zero, so an exactly flat image teaches the non-local
    part nothing; wherever features differ, all its weights have a gradient.

    Attributes:
      features: F_out.
      config: gives the number of neighbours, and `GraphOptions`.
      compute: with `rematerialize`, the backward pass computes a band again in place of keeping
        its R·F sums per pixel.
    """

    features: int
    config: ModelConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        cfg, options = self.compute, GraphOptions.from_dict(self.config.options)
        *_, height, width, channels = x.shape
        kernel = _LocalParams((3, 3, channels, self.features), cfg, name="local")()

        def affine(name: str, size: int) -> _Affine:
            kernel, bias = LinearParams((channels, size), cfg, name=name)()
            return _Affine(kernel.astype(cfg.dtype), bias.astype(cfg.dtype))

        params = _EdgeParams(
            hidden=affine("hidden", channels),
            weights=affine("weights", RANK),
            left=affine("left", RANK * self.features),
            right=affine("right", RANK * channels),
        )
        x = x.astype(cfg.dtype)
        local = ops.conv2d(x, kernel, cfg.precision, cfg.backend)

        frames = x.reshape(-1, height, width, channels)
        index, valid = nearest_neighbours(frames, self.config.neighbours, options.search)
        bands, reach = _Bands(len(frames), height, width), options.search // 2

        def one_band(args: tuple[Array, Array, Array, Array]) -> Array:
            band, start, index, valid = args
            # Rows that run over the frame have no neighbours; what they index is of no account.
            return _aggregate(
                band, index - (start - reach) * width, valid, params, options.delta, cfg
            )

        out = lax.map(
            jax.checkpoint(one_band) if cfg.rematerialize else one_band,
            (
                bands.cut(frames, reach),
                jnp.asarray(bands.starts),
                bands.cut(index),
                bands.cut(valid),
            ),
        )
        return (0.5 * (local + bands.join(out).reshape(local.shape))).astype(cfg.dtype)
