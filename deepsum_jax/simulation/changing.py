"""Simulated scenes whose ground changes as real ground does, with every change known.

Beside the reference, some frames are looks at its date and the others are of other years: parcels
altered up to inverted contrast, harvest, flood. Haze and shadows that no mask knows lie over some.
Sensors differ in blur, noise and contrast; frames may have been resampled once; they lie off the
scene's grid by shift, rotation and scale. HR is the reference's grid, date, gain and offset.

Coordinates and the sign of translations are those of `simulate`: pixel (i, j) covers
[i, i + 1) x [j, j + 1), and an image with translation t = (dy, dx), HR pixels, shows at the
scene's centre c what the scene's grid has at c + t.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.fft

from deepsum_jax.config import ChangingGround
from deepsum_jax.data.scene import Scene
from deepsum_jax.simulation import optics
from deepsum_jax.simulation.landscape import Rng, draw_clouds, fractal
from deepsum_jax.simulation.optics import Blur, Pose
from deepsum_jax.simulation.places import Place, draw_place
from deepsum_jax.simulation.steady import CONVENTION
from deepsum_jax.simulation.textures import check_textures

_FINE = 2  # samples of the ground per HR pixel
_GREATEST = 2**14 - 1  # counts


@dataclasses.dataclass(frozen=True)
class _Frame:
    """Everything that is drawn of a frame before anything is seen."""

    year: int
    day: float
    flooded: bool
    pose: Pose
    blur: Blur
    gain: float
    offset: float  # counts, in addition to gain * radiance
    noise: float  # counts
    extra: tuple[float, float]  # LR pixels by which it was resampled, (0, 0): it was not
    resampled: bool
    clouded: float  # masked fraction
    haze: bool = False
    thin_cloud: bool = False
    shadow: bool = False


def _log_uniform(rng: Rng, pair: tuple[float, ...]) -> float:
    low, high = (max(value, 1e-6) for value in pair)
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


# --- what is drawn ------------------------------------------------------------------------------


def _dates(rng: Rng, count: int, config: ChangingGround) -> list[tuple[int, float, bool]]:
    """Year, day and flood of frames beside the reference: looks (year 0) and other years."""
    least, most = config.looks
    share = rng.uniform(least, most)
    # So few years that a stack may hold several looks at another year than the reference's.
    years = int(rng.integers(1, config.years + 1))
    dates = []
    for _ in range(count):
        year = 0 if rng.random() < share else int(rng.integers(1, years + 1))
        day = float(np.round(rng.normal(0, 4), 1))
        wet = rng.random() < config.flood_chance * (1 if year else 0.2)
        dates.append((year, day, bool(wet)))
    return dates


def _poses(rng: Rng, count: int, config: ChangingGround) -> list[Pose]:
    exact, r = rng.random() < config.exact_chance, config.scale
    spread = _log_uniform(rng, config.shift_sigma) if max(config.shift_sigma) else 0.0
    shifts = rng.normal(0, 1, (count, 2)) * spread
    far = rng.random(count) < config.outlier_fraction
    shifts[far] = rng.uniform(-config.max_shift, config.max_shift, (int(far.sum()), 2))
    shifts = np.round(r * np.clip(shifts, -config.max_shift, config.max_shift), 4)
    turns = rng.normal(0, config.rotation_sigma, count)
    zooms = 1 + rng.normal(0, config.scale_sigma, count)
    if exact:
        return [Pose()] * count
    return [
        Pose((float(dy), float(dx)), float(a), float(z))
        for (dy, dx), a, z in zip(shifts, turns, zooms, strict=True)
    ]


def _blurs(rng: Rng, count: int, config: ChangingGround) -> list[Blur]:
    """One sensor's blur, a few per cent different from frame to frame."""
    low, high = config.psf_sigma
    ends, angle = np.sort(rng.uniform(low, high, 2)), rng.uniform(0, np.pi)
    if rng.random() < 0.5:  # many sensors are nearly isotropic
        ends[0] = max(low, 0.9 * ends[1])
    each = np.clip(ends * rng.lognormal(0, 0.04, (count, 1)), low, high)
    return [Blur(float(major), float(minor), float(angle)) for minor, major in each]


def _clouded(rng: Rng, count: int, reference: int, config: ChangingGround) -> np.ndarray:
    """Masked fraction of each frame; the reference is the clearest."""
    weather = rng.beta(1, 2)
    clouded = config.max_clouded * np.clip(weather * rng.uniform(0.2, 2, count), 0.01, 1)
    clouded[rng.random(count) < config.clear_fraction] = 0
    least = int(clouded.argmin())
    clouded[[reference, least]] = clouded[[least, reference]]
    clouded[reference] = min(clouded[reference], config.max_reference_clouded)
    return np.asarray(clouded)


def _frames(
    rng: Rng, count: int, reference: int, level: float, config: ChangingGround
) -> list[_Frame]:
    """Draws the frames of a scene; the reference lies on the scene's grid, dates and units."""
    dates, poses = _dates(rng, count - 1, config), _poses(rng, count, config)
    dates.insert(reference, (0, 0.0, False))
    poses[reference] = Pose()
    blurs, clouded = _blurs(rng, count, config), _clouded(rng, count, reference, config)
    noise = _log_uniform(rng, config.noise) if max(config.noise) else 0.0
    resampled = rng.random() < config.resampled_chance
    frames = []
    for n, (date, pose, blur) in enumerate(zip(dates, poses, blurs, strict=True)):
        drawn, chances = rng.normal(0, 1, 2), rng.random(3)
        apart = 0 if n == reference else 5 if date[0] else 1
        gain = float(np.exp(apart * config.gain_sigma * drawn[0]))
        # Gains turn about the scene's level, as if offsets had been fitted.
        offset = apart * config.offset_sigma * drawn[1] + level * (1 - gain)
        extra = rng.uniform(-0.5, 0.5, 2) if resampled else np.zeros(2)
        spread = min(max(float(rng.uniform(0.8, 1.25)) * noise, config.noise[0]), config.noise[1])
        airs = (config.haze_chance, config.thin_cloud_chance, config.shadow_chance)
        air = [bool(c < p) and n != reference for c, p in zip(chances, airs)]
        frames.append(
            _Frame(
                *date, pose, blur, gain, float(offset), spread,
                (float(extra[0]), float(extra[1])), resampled, float(clouded[n]), *air,
            )
        )  # fmt: skip
    return frames


# --- what is seen -------------------------------------------------------------------------------


class _Grounds:
    """The spectra of a place's grounds by date, each drawn once, in counts about its level."""

    def __init__(self, place: Place, contrast: float) -> None:
        self._place, self._seen = place, dict[tuple[int, float, bool], np.ndarray]()
        ground = place.ground(0, 0.0, False)
        # Too flat a ground, all water say, keeps its own small contrast.
        self._mean, self._gain = float(ground.mean()), contrast / max(float(ground.std()), 0.3)

    def spectrum(self, year: int, day: float, flooded: bool) -> np.ndarray:
        """[S, S // 2 + 1]."""
        if not np.isfinite(self._place.cut_on).any():
            day = 0.0  # nothing that a day could tell
        date = (year, day, flooded)
        if date not in self._seen:
            ground = (self._place.ground(*date) - self._mean) * self._gain
            self._seen[date] = scipy.fft.rfft2(ground.astype(np.float32))
        return self._seen[date]


def _veil(
    rng: Rng, radiance: np.ndarray, frame: _Frame, level: float, contrast: float
) -> tuple[np.ndarray, np.ndarray]:
    """Radiance [n, n] below clouds, haze and shadows, and the mask [h, h] of the clouds alone."""
    pad = optics.PAD if frame.resampled else 0
    size = len(radiance) - 2 * pad

    def wide(image: np.ndarray) -> np.ndarray:
        return np.pad(image, pad, mode="edge") if pad else image

    mask = np.ones((size, size), bool)
    if frame.shadow:  # of clouds outside the frame, or of masks that know no shadow
        _, dark, _ = draw_clouds(rng, size, rng.uniform(0.03, 0.2))
        radiance = radiance * (1 - rng.uniform(0.1, 0.45) * wide(dark))
    if frame.haze:
        thick = 0.5 + 0.25 * fractal(rng, size, 2.2, 0.1)
        thick = np.clip(thick, 0, 1) * rng.uniform(0.05, 0.3)
        radiance = radiance + wide(thick) * (level + 2 * contrast - radiance)
    if frame.thin_cloud:
        thin, _, _ = draw_clouds(rng, size, rng.uniform(0.05, 0.35))
        thin = wide(rng.uniform(0.1, 0.5) * thin)
        radiance = radiance + thin * (np.maximum(12000, radiance) - radiance)
    if frame.clouded > 0:
        opacity, shadow, mask = draw_clouds(rng, size, frame.clouded)
        top = wide(rng.uniform(10000, 15000) + 500 * fractal(rng, size, 1.5, 4 / 128))
        radiance = radiance * (1 - rng.uniform(0.3, 0.5) * wide(shadow))
        radiance = radiance + wide(opacity) * (np.maximum(top, radiance) - radiance)
    return radiance, mask


def _record(rng: Rng, radiance: np.ndarray, frame: _Frame, count: int, level: float) -> np.ndarray:
    """Counts, uint16 [h, h]: gain, offset and noise, then the resampling, then rounding."""
    counts = frame.gain * radiance + frame.offset
    # Half the variance is read noise, half grows with the light.
    variance = frame.noise**2 * (0.5 + 0.5 * np.maximum(counts, 0) / level)
    counts = counts + np.sqrt(variance) * rng.standard_normal(counts.shape, np.float32)
    if frame.resampled:
        counts = optics.resample(counts, count, frame.extra)
    return np.asarray(np.clip(np.rint(counts), 0, _GREATEST), np.uint16)


def _margin(config: ChangingGround) -> int:
    """Samples of ground around a scene: the greatest shift, padding, and the sensor's reach."""
    turned = 2 * config.lr_size * (config.rotation_sigma + config.scale_sigma)
    far = config.max_shift + optics.PAD + 1 + 4 * config.psf_sigma[1] + turned
    return int(np.ceil(_FINE * config.scale * far))


def _look(
    rng: Rng,
    grounds: _Grounds,
    frame: _Frame,
    margin: int,
    level: float,
    contrast: float,
    config: ChangingGround,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A frame's counts, its mask, and where it shows the reference's ground, [h, h] each."""
    h, r = config.lr_size, config.scale
    pad = optics.PAD if frame.resampled else 0
    spectrum = grounds.spectrum(frame.year, frame.day, frame.flooded)
    wanted = grounds.spectrum(0, 0.0, False)
    response = optics.transfer(len(spectrum), _FINE * r, frame.blur)

    def see(s: np.ndarray) -> np.ndarray:
        return optics.sample(s, response, h, r, _FINE, margin, frame.pose, frame.extra, pad)

    ground = see(spectrum)
    other = see(spectrum - wanted) if spectrum is not wanted else np.zeros_like(ground)
    bare = np.maximum(level + ground, 0)
    radiance, mask = _veil(rng, bare, frame, level, contrast)
    difference = other + (radiance - bare)
    if frame.resampled:
        difference = optics.resample(difference, h, frame.extra)
    limit = max(config.same_threshold * frame.noise, config.same_floor)
    return _record(rng, radiance, frame, h, level), mask, np.abs(difference) <= limit


def _high_resolution(
    rng: Rng, grounds: _Grounds, margin: int, level: float, config: ChangingGround
) -> tuple[np.ndarray, np.ndarray, Pose]:
    """HR in counts, uint16 [r*h, r*w], its mask and its pose."""
    size, pose = config.lr_size * config.scale, Pose()
    sigma, other = config.hr_psf_sigma, config.hr_date == "other"
    frame = _Frame(
        0, 0.0, False, pose, Blur(sigma, sigma, 0.0), 1.0, 0.0, config.hr_noise, (0.0, 0.0),
        False, 0.0,
    )  # fmt: skip
    if other:
        shift = np.round(np.clip(rng.normal(0, 0.5, 2), -1, 1), 4)
        pose = Pose((float(shift[0]), float(shift[1])))
        gain = 1 + rng.normal(0, config.gain_sigma)
        offset = level * (1 - gain) + rng.normal(0, config.offset_sigma)
        clouded = config.max_reference_clouded * max(0, rng.uniform(-1.5, 1))
        frame = dataclasses.replace(
            frame, day=float(rng.normal(0, 4)), pose=pose, gain=gain, offset=offset,
            clouded=clouded,
        )  # fmt: skip
    spectrum = grounds.spectrum(frame.year, frame.day, frame.flooded)
    response = optics.transfer(len(spectrum), _FINE, frame.blur)
    seen = optics.sample(spectrum, response, size, 1, _FINE, margin, pose)
    radiance, mask = _veil(rng, np.maximum(level + seen, 0), frame, level, 0.0)
    return _record(rng, radiance, frame, size, level), mask, pose


# --- scenes -------------------------------------------------------------------------------------


def _truth(frames: Sequence[_Frame], same: np.ndarray, hr: Pose, reference: int) -> dict[str, Any]:
    def details(frame: _Frame) -> dict[str, Any]:
        return {
            "year": frame.year,
            "day": frame.day,
            "flooded": frame.flooded,
            "rotation": frame.pose.rotation,
            "scale": frame.pose.zoom,
            "blur": dataclasses.asdict(frame.blur),
            "gain": frame.gain,
            "offset": frame.offset,
            "noise": frame.noise,
            "resampled": list(frame.extra) if frame.resampled else None,
            "clouded": frame.clouded,
            "unmasked": [k for k in ("haze", "thin_cloud", "shadow") if getattr(frame, k)],
        }

    names = [f"LR{n:03d}" for n in range(len(frames))]
    return {
        "units": "HR pixels",
        "convention": CONVENTION,
        "frames": {name: list(f.pose.shift) for name, f in zip(names, frames)},
        "hr": list(hr.shift),
        "reference": names[reference],
        "details": {name: details(f) for name, f in zip(names, frames)},
        "same_ground": same,
    }


def simulate_changing_scene(
    seed: int,
    index: int,
    config: ChangingGround = ChangingGround(),
    band: str = "NIR",
    name: str | None = None,
    textures: Sequence[Any] | None = None,
) -> tuple[Scene, dict[str, Any]]:
    """Simulates one scene of changing ground with HR. It depends on the arguments alone.

    Args:
      seed: of the data set, >= 0.
      index: of the scene in it, >= 0; another index is another place.
      config: what scenes look like.
      band: "NIR" or "RED": how bright the land is, and how much years differ.
      name: of the scene; None names it imgset and the index.
      textures: real images to cut ground from, float [H, W], or [D, H, W] for D dates of one
        place, whose differences are then the change between years. Sides of at least 16 pixels,
        of any unit; what is too small for a scene goes on mirrored.

    Returns:
      (scene, truth). Scene: frames uint16 [T, h, w] and HR uint16 [r*h, r*w], 14-bit values,
      without `norm`; `reference` is the frame that HR belongs to, and by one pixel or more the
      one with the fewest masked ones. With `config.hr_date` "reference", it and HR lie exactly
      on the scene's grid, with gain 1 and offset 0; with "other", HR is of a few days away.
      Truth, plain data but for the last entry:
      * units, convention, frames, hr: as of `simulate.simulate_scene`; a frame's translation
        (dy, dx) holds at the scene's centre.
      * reference: the frame's name.
      * details: by frame, year (0 is the reference's), day, flooded, rotation (radians) and scale
        about the centre (see `optics.Pose`), blur (LR pixels, see `optics.Blur`), gain and offset
        (counts = gain * radiance + offset), noise (counts), resampled ((dy, dx) LR pixels, or
        None), clouded (masked fraction), unmasked (what of haze, thin cloud and shadow there is).
      * same_ground: bool [T, h, w], True where the frame, before gain, offset and noise, differs
        from what it would show of the reference's ground through clear air by no more than
        `same_threshold` deviations of its noise, or `same_floor`.

    Raises:
      ValueError: a band other than the two, a negative seed or index, or a texture that is none.
    """
    if band not in ("NIR", "RED"):
        raise ValueError(f"band: found {band!r}, expected 'NIR' or 'RED'")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index: found {seed} and {index}, expected none negative")
    real = check_textures(textures)
    rng = np.random.default_rng([seed, index, 3])
    r, h, margin = config.scale, config.lr_size, _margin(config)
    level = rng.normal(7700, 600) if band == "NIR" else rng.normal(5000, 500)
    contrast = _log_uniform(rng, config.contrast) * (1 if band == "NIR" else 0.7)
    count = int(rng.integers(config.min_frames, config.max_frames + 1))
    reference = int(rng.integers(count))
    frames = _frames(rng, count, reference, level, config)

    side = scipy.fft.next_fast_len((_FINE * r * h + 2 * margin + 1) // 2, real=True) * 2
    place = draw_place((seed, index), side, _FINE * r, config, band, real)
    grounds = _Grounds(place, contrast)
    looks = [
        _look(np.random.default_rng([seed, index, 4, n]), grounds, frame, margin, level, contrast,
              config)
        for n, frame in enumerate(frames)
    ]  # fmt: skip
    lr, masks, same = (np.stack(parts) for parts in zip(*looks))
    # The swath's edge: one pixel less, so that the clearest frame is the reference and no other.
    clear = masks[reference].sum()
    for n in range(count):
        if n != reference and masks[n].sum() >= clear:
            masks[n].flat[np.flatnonzero(masks[n])[: masks[n].sum() - clear + 1]] = False
    hr_rng = np.random.default_rng([seed, index, 5])
    hr, hr_mask, hr_pose = _high_resolution(hr_rng, grounds, margin, level, config)
    scene = Scene(
        name or f"imgset{index:04d}", lr, masks, band=band, hr=hr, hr_mask=hr_mask,
        reference=reference,
    )  # fmt: skip
    return scene, _truth(frames, same, hr_pose, reference)
