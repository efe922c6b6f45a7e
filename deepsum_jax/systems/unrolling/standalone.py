"""From raw frames to the network's inputs as a program of arrays alone, for what is exported.

What prediction runs is `alignment.align`, on the host and with its libraries; this is the same with
given shifts, at fixed sizes, for any platform that JAX compiles for. Frames that hide everything
are as if they were not there.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtr

from deepsum_jax.systems.robust import agreement
from deepsum_jax.systems.robust.comparison import KNOWN
from deepsum_jax.systems.robust.reference_image import SEEN, STEP
from deepsum_jax.systems.unrolling.alignment import NOISY, STEPS
from deepsum_jax.systems.unrolling.network import box, nearest
from deepsum_jax.systems.unrolling.optics import Optics, enlarge_axis, inside, make_optics

Array = jax.Array

_FAR = 2**30  # LR pixels squared, further than any; int32 holds twice as much


class Prepared(NamedTuple):
    """What the network takes, in units of the reference's contrast about its level."""

    frames: Array  # [N, h, w]
    masks: Array  # [N, h, w]
    noise: Array  # []
    level: Array  # [], raw units
    contrast: Array  # [], raw units, above 0


def prepare(frames: Array, masks: Array, shifts: Array, scale: int, psf_sigma: Array) -> Prepared:
    """Frames in the reference's brightness, without hot pixels, in units of their own.

    Args:
      frames: [N, h, w] raw, frame 0 the reference; non-finite only where masked.
      masks: [N, h, w] bool, True = reliable; some of frame 0's are.
      shifts: [N, 2], HR pixels; see `data.sensor`.
      scale: r.
      psf_sigma: deviation of the sensor's Gaussian, LR pixels.
    """
    shape = (frames.shape[1], frames.shape[2])
    level = _median(frames[0].ravel(), masks[0].ravel())
    about = jnp.where(masks, frames - level, 0)
    unit = _unit(about[0], masks[0])
    leak = _point_leak(psf_sigma)
    frames, masks = jax.vmap(lambda f, m: _cool(f, m, leak))(about / unit, masks)

    optics = make_optics(shape, shifts, scale, psf_sigma)
    still = make_optics(shape, jnp.zeros((1, 2)), scale, psf_sigma)
    image = _own_image(frames[0], masks[0], still, _enlarged(frames[0], scale))
    use = masks & inside(shape, shifts, scale)
    clear = nearest(masks[0].astype(frames.dtype), scale)
    known = use & (masks[0].all() | (optics.observe(clear) > KNOWN))
    view = optics.observe(image)
    gains, offsets = jax.vmap(_match)(frames, view, known)
    matched = (gains[:, None, None] * frames + offsets[:, None, None]).at[0].set(frames[0])
    noise = _stack_noise(frames, masks, matched - view, known)
    own = masks[0]
    if len(frames) > 1:
        own, view = _mended(frames[0], masks, matched[1:], shifts, image, still, noise, leak)
        matched = matched.at[0].set(jnp.where(own, frames[0], view))
    low, high = _quantiles(frames[0], masks[0], (0.1, 0.9))
    contrast = jnp.maximum((high - low) / 2.56, NOISY * noise)
    contrast = jnp.where(contrast > 0, contrast, 1.0)
    return Prepared(
        matched / contrast, masks.at[0].set(own), noise / contrast, level, unit * contrast
    )


# --- statistics of what is reliable


def _quantiles(x: Array, ok: Array, parts: tuple[float, ...]) -> Array:
    """Of the values [h, w] that are `ok`; NaN where none is."""
    return jnp.nanquantile(jnp.where(ok, x, jnp.nan), np.asarray(parts, np.float32))


def _median(x: Array, ok: Array) -> Array:
    """Over the first axis, of the values that are `ok`; anything where none is."""
    ordered = jnp.sort(jnp.where(ok, x, jnp.nan), axis=0)  # NaN come last
    count = ok.sum(axis=0)
    low, high = jnp.maximum(count - 1, 0) // 2, jnp.minimum(count // 2, len(x) - 1)
    middle = [jnp.take_along_axis(ordered, at[None], axis=0)[0] for at in (low, high)]
    return (middle[0] + middle[1]) / 2


def _unit(about: Array, ok: Array) -> Array:
    low, high = _quantiles(about, ok, (0.1, 0.9))
    deviation = jnp.nanstd(jnp.where(ok, about, jnp.nan))
    unit = jnp.where(high > low, high - low, deviation)
    return jnp.where(unit > 0, unit, 1.0)


def _match(frame: Array, wanted: Array, ok: Array) -> tuple[Array, Array]:
    """`agreement.match` of [h, w] each."""

    def middle_and_spread(x: Array) -> tuple[Array, Array]:
        low, middle, high = _quantiles(x, ok, (0.2, 0.5, 0.8))
        return middle, (high - low) / 2

    (middle_g, spread_g), (middle_p, spread_p) = map(middle_and_spread, (frame, wanted))
    lively = jnp.minimum(spread_g, spread_p) > 0
    gain = jnp.where(lively, spread_p / jnp.where(lively, spread_g, 1.0), 1.0)

    def closer(_: int, found: tuple[Array, Array]) -> tuple[Array, Array]:
        away = jnp.abs(found[0] * frame + found[1] - wanted)
        width = 1.5 * _median(away.ravel(), ok.ravel())
        weight = 1 / (1 + jnp.square(away / jnp.where(width > 0, width, 1.0)))
        weight = ok * jnp.where(width > 0, weight, away == 0)
        total = weight.sum()
        mean_g, mean_p = (weight * frame).sum() / total, (weight * wanted).sum() / total
        dg, dp = frame - mean_g, wanted - mean_p
        var_g, var_p = (weight * dg**2).sum(), (weight * dp**2).sum()
        alike = ((weight * dg * dp).sum() > 0.5 * jnp.sqrt(var_g * var_p)) & (var_g > 0)
        gain = jnp.where(alike, jnp.sqrt(var_p / jnp.where(alike, var_g, 1.0)), 1.0)
        return gain, mean_p - gain * mean_g

    start = (gain, middle_p - gain * middle_g)
    gain, offset = lax.fori_loop(0, agreement.ROUNDS, closer, start)
    few = ok.sum() < agreement.OVERLAP
    return jnp.where(few, 1.0, gain), jnp.where(few, 0.0, offset)


# --- neighbourhoods


def _around(x: Array) -> list[Array]:
    """The nine pixels about each of [h, w], row by row, edge values going on."""
    padded = jnp.pad(x, 1, mode="edge")
    h, w = x.shape
    return [padded[y : y + h, z : z + w] for y in range(3) for z in range(3)]


def _ring_median(x: Array) -> Array:
    """The upper median of the ring of eight."""
    nine = _around(x)
    return jnp.sort(jnp.stack([*nine[:4], *nine[5:]]), axis=0)[4]


def _mean_square(difference: Array, ok: Array) -> Array:
    known = ok.astype(difference.dtype)
    return box(known * jnp.square(difference)) / jnp.maximum(box(known), 1 / 18)


def _calm(squares: Array, ok: Array) -> Array:
    """The 10 % quantile of the roots; infinite where nothing is `ok`."""
    return jnp.where(ok.any(), jnp.sqrt(_quantiles(squares, ok, (0.1,))[0]), jnp.inf)


def _noise_of_frame(frame: Array, mask: Array) -> Array:
    taps = np.outer((1, -2, 1), (1, -2, 1)).ravel() / 6.0
    second = sum(float(tap) * x for tap, x in zip(taps, _around(frame)))
    whole = jnp.pad(mask, 1)  # nothing is reliable beyond the border
    h, w = mask.shape
    inner = jnp.stack([whole[y : y + h, z : z + w] for y in range(3) for z in range(3)]).all(axis=0)
    return _calm(_mean_square(jnp.asarray(second), inner), inner) / agreement.CALM_SECOND


def _stack_noise(frames: Array, masks: Array, differences: Array, known: Array) -> Array:
    """`comparison.stack_noise`; the reference's own difference is no pair's."""
    exists = masks.any(axis=(1, 2))
    single = jax.vmap(_noise_of_frame)(frames, masks)
    squares = jax.vmap(_mean_square)(differences[1:], known[1:])
    pairs = jax.vmap(_calm)(squares, known[1:]) / agreement.CALM_PAIR
    least = jnp.concatenate([pairs, jnp.where(exists, single, jnp.inf)]).min()
    spread = _quantiles(jnp.abs(frames[0]), masks[0], (0.9,))[0]
    return jnp.maximum(jnp.minimum(_median(single, exists), least), 1e-4 * spread)


# --- hot pixels, and what is hidden


def _point_leak(psf_sigma: Array) -> Array:
    inner, outer = ndtr(0.5 / psf_sigma), ndtr(1.5 / psf_sigma)
    return (outer - inner) / (2 * inner - 1)


def _spikes(difference: Array, expected: Array, ok: Array, leak: Array) -> Array:
    known = jnp.where(ok, difference, 0)
    nine, size = _around(known), jnp.abs(known)
    beside = jnp.abs(nine[1] + nine[3] + nine[5] + nine[7]) / 4
    return ok & agreement.stands_alone(size, expected, _ring_median(size), beside, leak)


def _cool(frame: Array, mask: Array, leak: Array) -> tuple[Array, Array]:
    """A frame [h, w] without what is hidden and hot, and its mask without hot pixels."""
    frame = _nearest_reliable(frame, mask)
    expected = jnp.maximum(_noise_of_frame(frame, mask), 1e-6)
    cool = mask & ~_spikes(frame - _ring_median(frame), expected, mask, leak)
    cool = jnp.where(cool.any(), cool, mask)
    return _nearest_reliable(frame, cool), cool


def _nearest_reliable(frame: Array, mask: Array) -> Array:
    """`data.fill.nearest_reliable`, of equally near ones too the one that it takes."""
    h, w = mask.shape
    row = jnp.arange(h)[:, None]
    above = lax.cummax(jnp.where(mask, row, -_FAR), axis=0)
    below = lax.cummin(jnp.where(mask, row, _FAR), axis=0, reverse=True)
    source = jnp.where(row - above <= below - row, above, below)  # [h, w], in the same column
    away = jnp.where(mask.any(axis=0), jnp.square(jnp.clip(source, 0, h - 1) - row), _FAR)
    apart = jnp.square(jnp.arange(w)[:, None] - jnp.arange(w))  # [w, w]

    def of_row(y: Array) -> Array:
        column = jnp.argmin(away[y] + apart, axis=1)
        return frame[jnp.clip(source[y], 0, h - 1)[column], column]

    return jnp.where(mask.any(), lax.map(of_row, jnp.arange(h)), frame)


# --- the reference's own image


def _enlarged(frame: Array, scale: int) -> Array:
    """Bicubic, within the frame's own range: [h, w] → [H, W]."""
    rows, columns = (jnp.asarray(enlarge_axis(n, scale)) for n in frame.shape)
    return jnp.clip(rows @ frame @ columns.T, frame.min(), frame.max())


def _own_image(frame: Array, mask: Array, still: Optics, first: Array) -> Array:
    """Back-projection [H, W] of one frame alone, from `first` on."""
    weight = mask.astype(frame.dtype)
    seen = still.back_project(weight[None])
    share = jnp.where(seen > SEEN, STEP / jnp.maximum(seen, SEEN), 0)

    def closer(_: int, image: Array) -> Array:
        left = weight * (frame - still.observe(image)[0])
        return image + share * still.back_project(left[None])

    return lax.fori_loop(0, STEPS, closer, first)


def _consensus(matched: Array, masks: Array, shifts: Array, scale: int) -> tuple[Array, Array]:
    """Median [H, W] of frames on the reference's grid, and where any is reliable."""
    moves = jnp.rint(shifts).astype(jnp.int32)

    def moved(frame: Array, mask: Array, move: Array) -> tuple[Array, Array]:
        image, clear = _enlarged(frame, scale), nearest(mask, scale)
        at = [jnp.arange(n) - s for n, s in zip(image.shape, move)]
        there = [(a >= 0) & (a < n) for a, n in zip(at, image.shape)]
        rows, columns = (jnp.clip(a, 0, n - 1) for a, n in zip(at, image.shape))
        known = clear[rows][:, columns] & there[0][:, None] & there[1]
        return image[rows][:, columns], known

    images, clear = jax.vmap(moved)(matched, masks, moves)
    return _median(images, clear), clear.any(axis=0)


def _mended(
    frame: Array, masks: Array, others: Array, shifts: Array, image: Array, still: Optics,
    noise: Array, leak: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """`reference_image.mended`: the reference's mask without hot pixels, and what it would show
    with its hidden places taken from the other frames, [h, w] each."""
    scale = image.shape[0] // frame.shape[0]
    median, known = _consensus(others, masks[1:], shifts[1:], scale)
    difference = frame - still.observe(jnp.where(known, median, image))[0]
    expected = jnp.maximum(noise, 1e-6)
    mask = masks[0] & ~_spikes(difference, expected, masks[0], leak)
    plain = _enlarged(_nearest_reliable(frame, mask), scale)
    hidden = ~nearest(mask, scale) & known
    image = _own_image(frame, mask, still, jnp.where(hidden, median, plain))
    return mask, still.observe(image)[0]
