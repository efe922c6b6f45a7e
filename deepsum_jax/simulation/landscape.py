"""Invented landscapes and skies: what the simulated sensors of `simulate` look at.

Pure functions of a random generator. Land: fields, forest, relief, roads, towns, rivers and
lakes, in units of its own contrast. Sky: clouds, their shadows, and the masks one gets of them.
"""

from __future__ import annotations

import numpy as np
import scipy.fft

Rng = np.random.Generator


def fractal(rng: Rng, side: int, slope: float, finest: float = 1.0) -> np.ndarray:
    """Noise [side, side] of unit deviation, amplitude ~ frequency^-slope, nothing below `finest`.

    `finest` is the shortest wavelength as a fraction of the side; the larger, the smoother.
    """
    size = scipy.fft.next_fast_len(side, real=True)
    highest = min(size // 2, max(2, int(1 / finest)) if finest < 1 else size // 2)
    fy = np.arange(-highest, highest)[:, None]
    fx = np.arange(highest)[None, :]
    frequency = np.sqrt(fy**2 + fx**2).astype(np.float32)
    frequency[highest, 0] = np.inf  # no mean
    spectrum = np.zeros((size, size // 2 + 1), np.complex64)
    waves = rng.standard_normal((2, 2 * highest, highest), dtype=np.float32)
    spectrum[np.arange(-highest, highest), :highest] = (waves[0] + 1j * waves[1]) * (
        frequency**-slope
    )
    noise = scipy.fft.irfft2(spectrum, s=(size, size))[:side, :side]
    return np.asarray(noise / noise.std(), np.float32)


def _lines(rng: Rng, side: int, width: float, finest: float) -> np.ndarray:
    """Winding lines, bool [side, side], about `width` samples wide: where smooth noise is zero."""
    noise = fractal(rng, side, 1.8, finest)
    # A slope across the scene, so that lines lead through it rather than around in rings.
    angle, ramp = rng.uniform(0, 2 * np.pi), np.linspace(-2.5, 2.5, side, dtype=np.float32)
    noise += np.float32(np.sin(angle)) * ramp[:, None] + np.float32(np.cos(angle)) * ramp
    noise += np.float32(rng.normal(0, 0.5))
    gy, gx = np.gradient(noise)
    return np.asarray(np.abs(noise) < width / 2 * np.hypot(gy, gx))


def _strips(rng: Rng, length: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a line into strips of random width: strip number, and place within it 0..1, [length]."""
    widths = np.maximum(3, mean * rng.lognormal(0, 0.45, int(length / mean * 2) + 8))
    ends = np.cumsum(widths)
    at = np.arange(length)
    number = np.minimum(np.searchsorted(ends, at, side="right"), len(ends) - 1)
    return number, ((at - (ends - widths)[number]) / widths[number]).astype(np.float32)


def _fields(
    rng: Rng, y: np.ndarray, x: np.ndarray, fine_per_lr: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A patchwork of fields in one direction, at the points (y, x): brightness and two changes."""
    angle = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = x * cos + y * sin, y * cos - x * sin
    u, v = u - u.min(), v - v.min()
    size = fine_per_lr * rng.uniform(2, 9)  # samples: fields of 2 to 9 LR pixels and longer
    row, across = _strips(rng, int(v.max()) + 1, size)
    row_v, across_v = row[v.astype(np.int32)], across[v.astype(np.int32)]
    slip = rng.uniform(0, 8 * size, row.max() + 1).astype(np.float32)  # rows do not line up
    along = (u + slip[row_v]).astype(np.int32)
    column, _ = _strips(rng, int(along.max()) + 1, size * rng.uniform(1, 2.5))
    number = row_v * (column.max() + 1) + column[along]
    parcels = (row.max() + 1) * (column.max() + 1)
    crops = rng.normal(0, 1, 6)  # a region grows a few crops
    brightness = crops[rng.integers(0, 6, parcels)] + rng.normal(0, 0.3, parcels)
    # Tillage: some fields are striped along their rows.
    stripes = rng.normal(0, 0.3, parcels) * (rng.random(parcels) < 0.3)
    turns = np.float32(2 * np.pi * rng.integers(1, 5))
    values = brightness.astype(np.float32)[number]
    values += stripes.astype(np.float32)[number] * np.sin(turns * across_v)
    if rng.random() < 0.5:  # lanes or hedges between the rows
        values[across_v * size < 1.5] += np.float32(rng.choice([-0.8, 0.8]))
    changes = rng.standard_normal((2, parcels)) * (rng.random((2, parcels)) < 0.35)
    first, second = changes.astype(np.float32)[:, number]
    return values, first, second


def draw_ground(rng: Rng, side: int, fine_per_lr: int) -> np.ndarray:
    """The land [3, side, side] float32: brightness of unit deviation, and two ways it changes."""
    land = np.zeros((3, side, side), np.float32)
    y, x = np.meshgrid(*2 * [np.arange(side, dtype=np.float32)], indexing="ij")
    hills = fractal(rng, side, rng.uniform(1.9, 2.3), 4 / side)

    # Regions of one land use each, with winding borders.
    winding = np.float32(side / 16)
    wy, wx = y + winding * fractal(rng, side, 1.8, 0.02), x + winding * hills
    sites = rng.uniform(0, side, (rng.integers(4, 10), 2)).astype(np.float32)
    nearest = np.full((side, side), np.inf, np.float32)
    region = np.zeros((side, side), np.int8)
    for number, (sy, sx) in enumerate(sites):
        distance = (wy - sy) ** 2 + (wx - sx) ** 2
        closer = distance < nearest
        nearest[closer], region[closer] = distance[closer], number
    wild = rng.uniform(0.1, 0.4)
    forest = fractal(rng, side, rng.uniform(0.9, 1.3), 3 / side)
    for number in range(len(sites)):
        inside = region == number
        if not inside.any():
            continue
        if rng.random() < wild:
            land[0][inside] = rng.normal(0, 0.8) + 0.35 * forest[inside]
        else:
            land[:, inside] = _fields(rng, y[inside], x[inside], fine_per_lr)
    land[0] += rng.uniform(0.05, 0.15) * forest

    # Relief: slopes towards the sun are brighter.
    gy, gx = np.gradient(hills)
    sun = rng.uniform(0, 2 * np.pi)
    shade = gy * np.float32(np.sin(sun)) + gx * np.float32(np.cos(sun))
    land[0] += rng.choice([0.1, 0.25, 0.6], p=[0.5, 0.3, 0.2]) * shade / shade.std() + 0.7 * hills

    lr = float(fine_per_lr)
    for _ in range(rng.integers(2, 6)):  # straight roads
        angle, through = rng.uniform(0, np.pi), rng.uniform(0, side, 2)
        distance = (y - through[0]) * np.cos(angle) + (x - through[1]) * np.sin(angle)
        land[0][np.abs(distance) < lr * rng.uniform(0.06, 0.16)] += rng.choice([-1.2, 1.2])
    for _ in range(rng.integers(0, 3)):  # winding ones
        land[0][_lines(rng, side, lr * rng.uniform(0.1, 0.3), 0.15)] += rng.choice([-1, 1])
    for _ in range(rng.integers(0, 4)):  # towns
        spread = lr * rng.uniform(1.5, 5)
        places = rng.normal(rng.uniform(0, side, 2), spread, (rng.integers(20, 160), 2))
        sizes = rng.uniform(0.2, 0.7, places.shape) * lr
        for (top, left), (high, wide) in zip(places.astype(int), sizes.astype(int), strict=True):
            box = (slice(max(top, 0), max(top + high + 1, 0)),
                   slice(max(left, 0), max(left + wide + 1, 0)))  # fmt: skip
            land[0][box] = rng.normal(0.4, 1.2)

    water = np.zeros((side, side), bool)
    if rng.random() < 0.5:
        water |= _lines(rng, side, lr * rng.uniform(0.4, 2), 0.2)
    if rng.random() < 0.6:
        level = fractal(rng, side, 1.7, 0.01)
        water |= level < np.quantile(level[::8, ::8], rng.uniform(0.005, 0.12))
    land[1:, water] = 0
    dry = land[0][~water]
    land[0] = (land[0] - dry.mean()) / max(float(dry.std()), 1e-3)
    land[0] = 2.2 * np.tanh(land[0] / 2.2)  # reflectance has bounds
    land[0][water] = -2.3 + 0.05 * hills[water]
    return land


def draw_clouds(rng: Rng, side: int, clouded: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clouds over an image: opacity 0..1, shadow 0..1 and an imperfect mask, [side, side] each.

    Exactly the fraction `clouded` of the mask is False.
    """
    pixels = side * side
    # Room around the image, so that a shadow may fall in from a cloud outside it.
    away = np.rint(rng.uniform(0.03, 0.08, 2) * side * rng.choice([-1, 1], 2)).astype(int)
    room = int(np.abs(away).max())
    field = fractal(rng, side + 2 * room, rng.uniform(1.6, 2.1), 2 / side)
    over = field[room : room + side, room : room + side]
    under = field[room + away[0] :, room + away[1] :][:side, :side]
    # The mask follows the denser parts, errs along the edges, and misses thin rims.
    errors = 0.08 * fractal(rng, side, 1.0, 4 / side)
    suspect = np.maximum(over, under - 0.25) + errors
    count = round(clouded * pixels)
    mask = np.ones(pixels, bool)
    mask[np.argpartition(-suspect.ravel(), count)[:count]] = False
    edge = np.partition(suspect.ravel(), pixels - 1 - count)[pixels - 1 - count]
    softness = rng.uniform(0.4, 1.2)
    opacity = np.clip((over - edge + 0.05) / softness, 0, 1)
    shadow = np.clip((under - 0.25 - edge) / softness, 0, 1) * (1 - opacity)
    return opacity**1.5, shadow, mask.reshape(side, side)
