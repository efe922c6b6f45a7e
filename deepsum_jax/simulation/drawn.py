"""Real dates as ground to train on: all that `wald` holds fixed is drawn, scene by scene.

A network that is to work on any sensor's stacks must not learn one sensor, one kind of stack or one
place by heart. So each scene draws its place, its date of truth, which other dates stand beside it
and how they lie, the sensor's blur and noise, and how brightness differs from frame to frame; some
scenes have frames that show another place, a cloud that no mask knows, or nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.ndimage

from deepsum_jax.config import Section
from deepsum_jax.data.scene import Scene
from deepsum_jax.simulation.dates import Dates
from deepsum_jax.simulation.steady import CONVENTION
from deepsum_jax.simulation.wald import HIDDEN, REACH, as_counts, pixel_means, to_counts

SHARP = 0.45  # pixels, a Gaussian about as wide as what a sharp image's pixel shows
_ROOM = 2  # pixels of the ground that interpolation sees besides


@dataclasses.dataclass(frozen=True)
class Drawn(Section):
    """What scenes are drawn from. Counts are raw units; pairs are the ends of a range."""

    scale: int = 3  # r, 1..8
    window: int = 96  # HR pixels, a multiple of r
    frames: tuple[int, ...] = (2, 12)  # of a scene
    looks: tuple[float, ...] = (0.25, 0.3)  # chances of looks alone, and of looks and years mixed
    psf_sigma: tuple[float, ...] = (0.25, 0.6)  # LR pixels, evenly
    noise: tuple[float, ...] = (3.0, 60.0)  # counts, evenly in the logarithm
    max_offset: int = 3  # HR pixels, per axis
    fraction_chance: float = 0.5  # that frames lie at fractions of a pixel
    brightness_chance: float = 0.5  # that gain and offset differ from frame to frame
    gain_sigma: float = 0.05  # relative
    offset_sigma: float = 150.0  # counts
    spoilt_chance: float = 0.25  # of a scene, to have frames that show something else
    masked_chance: float = 0.3  # of a frame, to have a masked part
    coarse_chance: float = 0.3  # that the ground is seen at half its resolution
    turned_chance: float = 0.0  # that it is turned by any angle and seen from further away
    zoom: tuple[float, ...] = (1.0, 1.5)  # how much further, evenly in the logarithm

    def check(self) -> None:
        self._require(1 <= self.scale <= 8, "scale", "1 to 8")
        whole = self.window % self.scale == 0 and self.window >= 8 * self.scale
        self._require(whole, "window", f"a multiple of {self.scale} from {8 * self.scale} on")
        chances = len(self.looks) == 2 and min(self.looks) >= 0 and sum(self.looks) <= 1
        self._require(chances, "looks", "two chances of sum 1 at most")
        ranges: dict[str, tuple[float, float]] = {
            "frames": (2, 1000),
            "psf_sigma": (0.1, 1),
            "noise": (0.001, 500),
            "max_offset": (0, 8),
            "fraction_chance": (0, 1),
            "brightness_chance": (0, 1),
            "gain_sigma": (0, 0.2),
            "offset_sigma": (0, 1000),
            "spoilt_chance": (0, 1),
            "masked_chance": (0, 1),
            "coarse_chance": (0, 1),
            "turned_chance": (0, 1),
            "zoom": (1, 4),
        }
        self._require_within(ranges)


def _blob(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A smooth random part of an image, bool."""
    field = scipy.ndimage.gaussian_filter(rng.standard_normal(shape), min(shape) / 6)
    return np.asarray(field > np.quantile(field, 1 - rng.uniform(0.03, 0.35)))


def _other(frame: np.ndarray, place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a spoilt frame shows instead."""
    kind = rng.integers(4)
    if kind == 0:
        return place
    if kind == 1:  # a cloud
        opacity = scipy.ndimage.gaussian_filter(_blob(frame.shape, rng).astype(np.float32), 1.0)
        return np.asarray(frame + opacity * (rng.uniform(1.1, 2) * frame.max() - frame))
    if kind == 2:
        return rng.normal(frame.mean(), frame.std() + 1, frame.shape)
    return np.roll(frame, rng.integers(4, max(5, frame.shape[0] // 2), 2), (0, 1))


@dataclasses.dataclass(frozen=True)
class _Place:
    """A window of all dates, with a margin that its frames may see."""

    dates: np.ndarray  # [T, side, side] counts
    masks: np.ndarray  # [T, side, side]
    elsewhere: np.ndarray  # [T, side, side] counts, another window
    margin: int


def _place(ground: Dates, config: Drawn, psf_sigma: float, rng: np.random.Generator) -> _Place:
    reach = REACH * config.scale * psf_sigma
    margin = config.max_offset + int(np.ceil(reach)) + 1
    side = config.window + 2 * margin
    limits = ground.values.shape[1:]
    if side > min(limits):
        raise ValueError(f"dates: found {limits[0]} × {limits[1]} pixels, expected {side} × {side}")
    # Nothing is drawn for it where nothing turns: the same numbers make the same scenes as ever.
    turned = config.turned_chance > 0 and rng.random() < config.turned_chance
    view = _turned_view(side, limits, config, rng) if turned else None
    times = 2 if rng.random() < config.coarse_chance and min(limits) >= 2 * side else 1

    def cut() -> tuple[np.ndarray, np.ndarray]:
        top, left = (int(rng.integers(0, n - times * side + 1)) for n in limits)
        rows, columns = (slice(n, n + times * side) for n in (top, left))
        split = (-1, side, times, side, times)
        values = as_counts(ground.values[:, rows, columns]).reshape(split).mean(axis=(2, 4))
        known = np.asarray(ground.masks[:, rows, columns].reshape(split).all(axis=(2, 4)))
        return values, known

    dates, masks = cut() if view is None else view.of(ground, side)
    return _Place(dates, masks, cut()[0], margin)


class View(NamedTuple):
    """A square of the ground, turned about its middle, and seen in coarser pixels."""

    centre: tuple[float, float]  # pixels of the ground
    angle: float
    zoom: float  # pixels of the ground per pixel of the view

    def of(self, ground: Dates, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Counts and masks [T, side, side], as sharp for their pixels as the ground for its own."""
        reach = int(np.ceil(_half(side, self.angle, self.zoom))) + _ROOM
        corner = [max(0, int(c) - reach) for c in self.centre]
        rows, columns = (slice(n, n + 2 * reach + 1) for n in corner)
        sine, cosine = np.sin(self.angle), np.cos(self.angle)
        matrix = self.zoom * np.array([[cosine, -sine], [sine, cosine]])
        middle = np.subtract(self.centre, corner) - matrix @ np.full(2, (side - 1) / 2)
        blur = SHARP * np.sqrt(self.zoom**2 - 1)

        def seen(image: np.ndarray, order: Literal[1, 3]) -> np.ndarray:
            shape = (side, side)
            return np.asarray(
                scipy.ndimage.affine_transform(
                    image, matrix, middle, shape, order=order, mode="nearest"
                )
            )

        values, known = [], []
        for date, mask in zip(ground.values[:, rows, columns], ground.masks[:, rows, columns]):
            values.append(seen(scipy.ndimage.gaussian_filter(as_counts(date), blur), order=3))
            hidden = scipy.ndimage.binary_dilation(~mask, iterations=_ROOM)
            known.append(seen(hidden.astype(np.float32), order=1) < HIDDEN)
        return np.stack(values), np.stack(known)


def _half(side: int, angle: float, zoom: float) -> float:
    """How far a turned square of a view reaches from its centre, pixels of the ground."""
    return zoom * side / 2 * (abs(np.sin(angle)) + abs(np.cos(angle)))


def _turned_view(
    side: int, limits: tuple[int, ...], config: Drawn, rng: np.random.Generator
) -> View | None:
    """A view that lies within the ground; none where it is too small for that drawn."""
    zoom = float(np.exp(rng.uniform(*np.log(config.zoom))))
    angle = rng.uniform(0, 2 * np.pi)
    reach = _half(side, angle, zoom) + _ROOM
    if 2 * reach > min(limits) - 1:
        return None
    y, x = (float(rng.uniform(reach, n - 1 - reach)) for n in limits)
    return View((y, x), angle, zoom)


def _members(dates: int, config: Drawn, rng: np.random.Generator) -> list[int]:
    """The date of each frame, HR's first."""
    count = int(rng.integers(config.frames[0], config.frames[1] + 1))
    hr_date, *others = (int(d) for d in rng.permutation(dates))
    looks, mixed = config.looks
    draw, years = rng.random(), count - 1
    if draw < looks:
        years = 0
    elif draw < looks + mixed:
        years = int(rng.integers(1, max(2, count - 1)))
    years = min(years, len(others))
    same = 1 if draw >= looks + mixed else count - years
    return [hr_date] * same + others[:years]


def _offsets(count: int, config: Drawn, rng: np.random.Generator) -> np.ndarray:
    reach = config.max_offset
    offsets = rng.integers(-reach, reach + 1, (count, 2)).astype(float)
    if rng.random() < config.fraction_chance:
        offsets = np.clip(offsets + rng.uniform(-0.5, 0.5, (count, 2)), -reach, reach)
    offsets[0] = 0
    return offsets


def draw_scene(
    grounds: Sequence[Dates], config: Drawn, rng: np.random.Generator, name: str, band: str = "NIR"
) -> tuple[Scene, dict[str, Any]]:
    """One scene of one of several stacks of co-located dates, bands or places.

    Args:
      grounds: each [T, H, W]; uint8 is multiplied by 64, anything else is counts already.
      config: what is drawn from.
      rng: draws.
      name, band: of the scene.

    Returns:
      The scene, frames uint16 [T, h, w] of which frame 0 is HR's own and the reference, and its
      truth, as `wald.cut_scenes` gives it, with the sensor and the spoilt frames.

    Raises:
      ValueError: dates too small for a window and what its frames see around it.
    """
    r, size = config.scale, config.window
    ground = grounds[int(rng.integers(len(grounds)))]
    psf_sigma = float(rng.uniform(config.psf_sigma[0], config.psf_sigma[1]))
    place = _place(ground, config, psf_sigma, rng)
    members = _members(len(place.dates), config, rng)
    count = len(members)
    noise = float(np.exp(rng.uniform(*np.log(config.noise))))
    bright = rng.random() < config.brightness_chance
    offsets = _offsets(count, config, rng)
    spoilt: set[int] = set()
    if count > 1 and rng.random() < config.spoilt_chance:
        spoilt = {int(n) for n in 1 + rng.permutation(count - 1)[: rng.integers(1, count)]}

    def seen(image: np.ndarray, offset: np.ndarray) -> np.ndarray:
        return _seen(image, offset, r * psf_sigma, place.margin, size, r)

    frames, masks = [], []
    for n, (date, offset) in enumerate(zip(members, offsets)):
        image = seen(place.dates[date], offset)
        if n in spoilt:
            image = _other(image, seen(place.elsewhere[date], offset), rng)
        if n and bright:
            gain = 1 + config.gain_sigma * rng.standard_normal()
            image = gain * image + config.offset_sigma * rng.standard_normal()
        frames.append(to_counts(image + noise * rng.standard_normal(image.shape)))
        mask = seen((~place.masks[date]).astype(np.float32), offset) <= HIDDEN
        if rng.random() < config.masked_chance / (1 if n else 3):
            mask &= ~_blob(mask.shape, rng)
        masks.append(mask)
    inner = slice(place.margin, place.margin + size)
    hr_date = members[0]
    scene = Scene(
        name, np.stack(frames), np.stack(masks), band=band,
        hr=to_counts(place.dates[hr_date][inner, inner]),
        hr_mask=place.masks[hr_date][inner, inner], reference=0,
    )  # fmt: skip
    truth = {
        "units": "HR pixels",
        "convention": CONVENTION,
        "frames": {f"LR{n:03d}": [float(s) for s in shift] for n, shift in enumerate(offsets)},
        "hr": [0.0, 0.0],
        "dates": {f"LR{n:03d}": date for n, date in enumerate(members)},
        "hr_date": hr_date,
        "psf_sigma": float(psf_sigma),
        "noise": noise,
        "spoilt": sorted(spoilt),
    }
    return scene, truth


def _seen(
    image: np.ndarray, offset: np.ndarray, sigma: float, margin: int, size: int, scale: int
) -> np.ndarray:
    """What a sensor at an offset sees of the middle of an image: [h, w]."""
    blurred = scipy.ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=REACH)
    whole = np.floor(offset).astype(int)
    if (offset != whole).any():
        blurred = scipy.ndimage.shift(blurred, whole - offset, order=3, mode="nearest")
    y, x = margin + whole
    return pixel_means(blurred[y : y + size, x : x + size], scale)
