"""Simulated PROBA-V-like scenes of ground that hardly changes, with every shift known.

The ground (`landscape`) is drawn on a grid finer than HR. Two sensors look at it: a sharp one that
delivers HR, and a blurrier one whose pixels are r times larger and whose samples are therefore
aliased, so that frames with different sub-pixel shifts carry different information. Each frame
has its own date, gain, offset, noise, clouds, cloud shadows and imperfect mask.

Coordinates: pixel (i, j) of an image covers [i, i+1) x [j, j+1) of its own grid (half-pixel
centres), so LR pixel (i, j) covers the r x r HR pixels from (r*i, r*j). An image with translation
t = (dy, dx), in HR pixels, shows at (y, x) what the scene's grid has at (y + dy, x + dx).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deepsum_jax.config import SimulationConfig
from deepsum_jax.data.scene import Scene
from deepsum_jax.data.sensor import pixel_rows
from deepsum_jax.simulation.landscape import Rng, draw_clouds, draw_ground, fractal

FINE = 2  # samples of the ground per HR pixel
CONVENTION = "registered(y, x) = frame(y - dy, x - dx) lies on the scene's grid"


# --- the sensor ---------------------------------------------------------------------------------


def _margin(config: SimulationConfig) -> int:
    """Samples of ground around a scene: the greatest shift, and the reach of the LR sensor."""
    return int(np.ceil(FINE * (6 + config.scale * (0.5 + 4 * config.lr_psf_sigma)))) + 2


def _sampler(count: int, pitch: int, sigma: float, shift: float, side: int, margin: int) -> Any:
    """One axis of a sensor: `count` pixels of `pitch` ground samples, as a matrix [count, side].

    `shift`, in samples, moves all pixels on.
    """
    centre = margin + (np.arange(count) + 0.5) * pitch - 0.5 + shift
    return pixel_rows(centre, pitch, sigma, side)


def _look(
    land: np.ndarray, config: SimulationConfig, shift: np.ndarray, date: float, high: bool
) -> np.ndarray:
    """What the HR or LR sensor sees of the land on a date 0..1, in units of contrast, noise-free.

    `shift` is the image's translation (dy, dx) in HR pixels.
    """
    r = 1 if high else config.scale
    count = config.lr_size * config.scale // r
    sigma = FINE * (config.hr_psf_sigma if high else r * config.lr_psf_sigma)
    side, margin = land.shape[-1], _margin(config)
    rows, columns = (_sampler(count, FINE * r, sigma, FINE * float(s), side, margin) for s in shift)
    trend, season = 2 * date - 1, np.sin(2 * np.pi * date)
    view = land[0] + np.float32(config.change * trend) * land[1]
    view += np.float32(config.change * season) * land[2]
    return np.asarray((columns @ np.ascontiguousarray((rows @ view).T)).T)


def _expose(
    rng: Rng, view: np.ndarray, clouded: float, config: SimulationConfig, noise: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """An image in counts, uint16 14 bits, and its mask: clouds, gain, offset, noise, rounding."""
    counts, mask = view, np.ones(view.shape, bool)
    if clouded > 0:
        opacity, shadow, mask = draw_clouds(rng, view.shape[0], clouded)
        top = rng.uniform(10000, 15000) + 500 * fractal(rng, view.shape[0], 1.5, 4 / 128)
        counts = counts * (1 - rng.uniform(0.3, 0.5) * shadow)
        counts = counts + opacity * (np.maximum(top, counts) - counts)
    counts = counts * (1 + rng.normal(0, config.gain_sigma)) + rng.normal(0, config.offset_sigma)
    variance = config.read_noise**2 + config.shot_noise * np.maximum(counts, 0)
    counts = counts + noise * np.sqrt(variance) * rng.standard_normal(view.shape, dtype=np.float32)
    return np.clip(np.rint(counts), 0, 2**14 - 1).astype(np.uint16), mask


# --- scenes -------------------------------------------------------------------------------------


def _shifts(rng: Rng, count: int, config: SimulationConfig) -> np.ndarray:
    """Translations [count, 2] in HR pixels, to four decimals."""
    shifts = np.clip(rng.normal(0, 1, (count, 2)) * config.shift_sigma, -2, 2)
    angle, size = rng.uniform(0, 2 * np.pi, count), rng.uniform(3, 6, count)
    far = np.stack([size * np.sin(angle), size * np.cos(angle)], axis=1)
    outlier = rng.random(count) < config.outlier_fraction
    return np.round(np.where(outlier[:, None], far, shifts), 4)


def simulate_scene(
    seed: int,
    index: int,
    config: SimulationConfig = SimulationConfig(),
    band: str = "NIR",
    name: str | None = None,
) -> tuple[Scene, dict[str, Any]]:
    """Simulates one scene with HR. It depends on the arguments alone, on no other scene.

    Args:
      seed: of the data set, >= 0.
      index: of the scene in it, >= 0; another index is another place.
      config: what scenes look like.
      band: "NIR" or "RED": how bright the land is.
      name: of the scene; None names it imgset and the index.

    Returns:
      (scene, truth): frames uint16 [T, h, w] and HR uint16 [r*h, r*w], 14-bit values, the frame
      nearest to HR in time as `reference`, without `norm` (see `kelvins_norm`); and what
      `truth.json` holds: the translation (dy, dx) in HR pixels that puts each frame, and HR, on
      the scene's grid. From frame n to frame m it is t_n - t_m.

    Raises:
      ValueError: a band other than the two, or a negative seed or index.
    """
    if band not in ("NIR", "RED"):
        raise ValueError(f"band: found {band!r}, expected 'NIR' or 'RED'")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index: found {seed} and {index}, expected none negative")
    rng = np.random.default_rng([seed, index])
    r, h = config.scale, config.lr_size
    frames = int(rng.integers(config.min_frames, config.max_frames + 1))
    shifts = _shifts(rng, frames, config)
    hr_shift = np.round(np.clip(rng.normal(0, 0.5, 2) * config.shift_sigma, -1, 1), 4)
    dates, hr_date = np.sort(rng.random(frames)), rng.random()

    mean, spread, contrast = (7700.0, 600.0, 1600.0) if band == "NIR" else (5000.0, 500.0, 1300.0)
    level = rng.normal(mean, spread)
    contrast *= config.contrast * rng.uniform(0.75, 1.2)
    land = draw_ground(rng, FINE * r * h + 2 * _margin(config), FINE * r)

    weather = rng.beta(1, 2)  # of the scene: most are fair
    clouded = config.max_clouded * np.clip(weather * rng.uniform(0.2, 2, frames), 0.01, 1)
    clouded[rng.random(frames) < config.clear_fraction] = 0
    hr_clouded = config.max_hr_clouded * max(0, rng.uniform(-1.5, 1))

    images = [
        _expose(rng, level + contrast * _look(land, config, shift, date, False), cloud, config)
        for shift, date, cloud in zip(shifts, dates, clouded, strict=True)
    ]
    view = level + contrast * _look(land, config, hr_shift, hr_date, True)
    hr, hr_mask = _expose(rng, view, hr_clouded, config, noise=1.5)  # smaller pixels, less light
    scene = Scene(
        name or f"imgset{index:04d}",
        np.stack([image for image, _ in images]),
        np.stack([mask for _, mask in images]),
        band=band,
        hr=hr,
        hr_mask=hr_mask,
        reference=int(np.abs(dates - hr_date).argmin()),
    )
    truth = {
        "units": "HR pixels",
        "convention": CONVENTION,
        "frames": {f"LR{n:03d}": list(map(float, t)) for n, t in enumerate(shifts)},
        "hr": list(map(float, hr_shift)),
    }
    return scene, truth
