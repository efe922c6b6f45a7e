"""Simulated PROBA-V-like scenes in the Kelvins layout, with every shift known.

The ground (`landscape`) is drawn on a grid finer than HR. Two sensors look at it: a sharp one that
delivers HR, and a blurrier one whose pixels are r times larger and whose samples are therefore
aliased, so that frames with different sub-pixel shifts carry different information. Each frame
has its own date, gain, offset, noise, clouds, cloud shadows and imperfect mask.

Coordinates: pixel (i, j) of an image covers [i, i+1) x [j, j+1) of its own grid (half-pixel
centres), so LR pixel (i, j) covers the r x r HR pixels from (r*i, r*j). An image with translation
t = (dy, dx), in HR pixels, shows at (y, x) what the scene's grid has at (y + dy, x + dx).

    python -m deepsum_jax.simulate --output data --scenes 48 --seed 0
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import scipy.special
from tqdm import tqdm

from deepsum_jax import cli
from deepsum_jax.config import Section
from deepsum_jax.files import written_aside
from deepsum_jax.kelvins import SceneFolder, write_norm, write_scene
from deepsum_jax.landscape import Rng, draw_clouds, draw_ground, fractal
from deepsum_jax.metrics import cpsnr
from deepsum_jax.ops import bicubic_upsample
from deepsum_jax.scene import Scene

FINE = 2  # samples of the ground per HR pixel
# Kelvins numbers by (part, band): where they begin, and how many there are.
_NUMBERS = {
    ("train", "RED"): (0, 594),
    ("train", "NIR"): (594, 566),
    ("test", "RED"): (1160, 146),
    ("test", "NIR"): (1306, 144),
}
_KELVINS_SCENES = 1450
CONVENTION = "registered(y, x) = frame(y - dy, x - dx) lies on the scene's grid"


@dataclasses.dataclass(frozen=True)
class SimulationConfig(Section):
    """What simulated scenes look like. Counts are raw units, 14 bits."""

    lr_size: int = 128  # LR pixels, height and width of a frame, >= 16
    scale: int = 3  # r, 1..8
    min_frames: int = 9  # frames of a scene, >= 1
    max_frames: int = 14  # >= min_frames; the number is uniform between the two
    bands: tuple[str, ...] = ("NIR",)  # of NIR, RED
    shift_sigma: float = 0.9  # HR pixels, per axis; clipped at 2. 0..2
    outlier_fraction: float = 0.025  # of frames that are shifted by 3..6 HR pixels, 0..1
    lr_psf_sigma: float = 0.42  # LR pixels, Gaussian, before integration over the pixel, 0.1..1
    hr_psf_sigma: float = 0.5  # HR pixels, likewise, 0.1..1
    read_noise: float = 10.0  # counts, standard deviation, 0..500
    shot_noise: float = 0.02  # counts of variance per count of signal, 0..10
    gain_sigma: float = 0.02  # relative, between frames, 0..0.2
    offset_sigma: float = 60.0  # counts, between frames, 0..1000
    change: float = 0.2  # of the ground between dates, in units of its contrast, 0..1
    contrast: float = 1.0  # of the ground, relative to that of its band, 0.1..2
    clear_fraction: float = 0.33  # of frames that have no cloud at all, 0..1
    max_clouded: float = 0.38  # masked fraction of the cloudiest frame, 0..0.4
    max_hr_clouded: float = 0.2  # masked fraction of the cloudiest HR, 0..0.25

    def check(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "lr_size": (16, 4096),
            "scale": (1, 8),
            "min_frames": (1, 1000),
            "max_frames": (self.min_frames, 1000),
            "shift_sigma": (0, 2),
            "outlier_fraction": (0, 1),
            "lr_psf_sigma": (0.1, 1),
            "hr_psf_sigma": (0.1, 1),
            "read_noise": (0, 500),
            "shot_noise": (0, 10),
            "gain_sigma": (0, 0.2),
            "offset_sigma": (0, 1000),
            "change": (0, 1),
            "contrast": (0.1, 2),
            "clear_fraction": (0, 1),
            "max_clouded": (0, 0.4),
            "max_hr_clouded": (0, 0.25),
        }
        for field, (low, high) in ranges.items():
            self._require(low <= getattr(self, field) <= high, field, f"{low} to {high}")
        known = bool(self.bands) and set(self.bands) <= {"NIR", "RED"}
        once = len(set(self.bands)) == len(self.bands)
        self._require(known and once, "bands", "NIR, RED or both")


# --- the sensor ---------------------------------------------------------------------------------


def _margin(config: SimulationConfig) -> int:
    """Samples of ground around a scene: the greatest shift, and the reach of the LR sensor."""
    return int(np.ceil(FINE * (6 + config.scale * (0.5 + 4 * config.lr_psf_sigma)))) + 2


def _sampler(
    count: int, pitch: int, sigma: float, shift: float, side: int, margin: int
) -> scipy.sparse.csr_array:
    """One axis of a sensor: `count` pixels of `pitch` ground samples, as a matrix [count, side].

    A pixel integrates over its own extent after a Gaussian of `sigma` samples; `shift`, in
    samples, moves all pixels on.
    """
    centre = margin + (np.arange(count) + 0.5) * pitch - 0.5 + shift
    reach = int(np.ceil(pitch / 2 + 4 * sigma))
    at = np.floor(centre).astype(int)[:, None] + np.arange(-reach, reach + 2)
    away = at - centre[:, None]
    weights = scipy.special.ndtr((away + pitch / 2) / sigma)
    weights -= scipy.special.ndtr((away - pitch / 2) / sigma)
    weights /= weights.sum(axis=1, keepdims=True)
    starts = np.arange(0, weights.size + 1, weights.shape[1])
    return scipy.sparse.csr_array(
        (weights.astype(np.float32).ravel(), at.ravel(), starts), shape=(count, side)
    )


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


def kelvins_norm(scene: Scene) -> float:
    """The challenge's baseline cPSNR of a scene with HR, in dB, for `norm.csv`.

    The baseline image is the plain average of every frame that ties for the most clear pixels,
    bicubically upsampled, unregistered.
    """
    if scene.hr is None or scene.hr_mask is None or scene.scale is None:
        raise ValueError(f"scene {scene.name!r}: found no HR, expected it for a baseline")
    clear = scene.masks.sum(axis=(1, 2))
    mean = bicubic_upsample(scene.lr[clear == clear.max()], scene.scale).mean(axis=0)
    image, hr = mean[None, ..., None], scene.hr[None, ..., None]
    return float(cpsnr(image, hr, scene.hr_mask[None, ..., None])[0])


def scene_number(part: str, band: str, position: int) -> int:
    """The Kelvins number of the scene at a position in its part and band.

    Beyond the numbers the challenge has, those of the four parts and bands alternate from 1450
    on, so that no two scenes of a data set share a number, and so a name.
    """
    first, room = _NUMBERS[part, band]
    if position < room:
        return first + position
    return _KELVINS_SCENES + 4 * (position - room) + list(_NUMBERS).index((part, band))


def write_dataset(
    output: str | os.PathLike[str],
    config: SimulationConfig = SimulationConfig(),
    scenes: int = 1,
    test_scenes: int = 0,
    seed: int = 0,
    *,
    progress: bool = False,
) -> tuple[SceneFolder, ...]:
    """Simulates a data set: `scenes` for training and `test_scenes` for testing, of every band.

    All have HR.png and SM.png, those of the test part too, so that they can be scored; beside
    them lies `truth.json`, and in `output` their `norm.csv`. The folder appears when it is whole.
    A scene is the same however many are made with it.

    Args:
      output: a folder that does not exist, or is empty.
      config: what scenes look like, and their bands.
      scenes, test_scenes: numbers of scenes per band, >= 0, not both 0.
      seed: >= 0.
      progress: show a progress bar on stderr.

    Returns:
      Where each scene lies.

    Raises:
      FileExistsError: `output` is a file, or a folder that is not empty.
      ValueError: a number out of range.
    """
    output = Path(os.path.abspath(output))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output}: found it there already, expected a new or empty folder")
    if min(scenes, test_scenes, seed) < 0 or scenes + test_scenes == 0:
        raise ValueError(
            f"found {scenes} scenes, {test_scenes} test scenes and seed {seed}, expected at "
            "least one scene and nothing negative"
        )
    numbers = {
        scene_number(part, band, position): (part, band)
        for part, count in (("train", scenes), ("test", test_scenes))
        for band in config.bands
        for position in range(count)
    }
    norm, folders = {}, []
    with written_aside(output) as aside:
        for number, (part, band) in tqdm(
            numbers.items(), desc="simulating", unit="scene", disable=not progress
        ):
            scene, truth = simulate_scene(seed, number, config, band)
            place = Path(part) / band / scene.name
            write_scene(aside / place, scene)
            text = json.dumps(truth, indent=1) + "\n"
            (aside / place / "truth.json").write_text(text, encoding="utf-8")
            norm[scene.name] = kelvins_norm(scene)
            folders.append(SceneFolder(output / place, scene.name, band, part))
        write_norm(aside / "norm.csv", norm)
    return tuple(folders)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    default = SimulationConfig()
    p = cli.parser(
        "python -m deepsum_jax.simulate",
        "Simulate satellite scenes (fields, relief, roads, water, clouds) with known shifts, in\n"
        "the folder layout of the PROBA-V Kelvins challenge.",
        """Each scene folder has LRxxx.png with its mask QMxxx.png, HR.png with SM.png, and
truth.json, the shift of every frame in HR pixels. The same seed gives the same files, and a
scene does not change when more of them are asked for.""",
    )
    p.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="new or empty folder for the data set",
    )
    p.add_argument(
        "--scenes", type=int, required=True, metavar="N", help="training scenes per band"
    )
    p.add_argument("--seed", type=int, required=True, metavar="S", help="any number from 0 on")
    p.add_argument(
        "--test-scenes",
        type=int,
        default=0,
        metavar="M",
        help="test scenes per band; unlike the challenge's they have HR (default 0)",
    )
    p.add_argument(
        "--size",
        type=int,
        default=default.lr_size,
        metavar="PX",
        help=f"height and width of a frame in LR pixels; HR has {default.scale} times "
        "as many (default %(default)s)",
    )
    p.add_argument(
        "--band",
        choices=("NIR", "RED", "both"),
        default="NIR",
        help="near infrared is brighter than red (default %(default)s)",
    )
    p.add_argument(
        "--min-frames",
        type=int,
        default=default.min_frames,
        metavar="T",
        help="fewest frames of a scene (default %(default)s)",
    )
    p.add_argument(
        "--max-frames",
        type=int,
        metavar="T",
        help=f"most frames of a scene (default {default.max_frames}, or --min-frames if "
        "that is more; PROBA-V has 19 on average)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    most = args.max_frames
    if most is None:
        most = max(SimulationConfig().max_frames, args.min_frames)
    config = SimulationConfig(
        lr_size=args.size,
        bands=("RED", "NIR") if args.band == "both" else (args.band,),
        min_frames=args.min_frames,
        max_frames=most,
    )
    folders = write_dataset(
        args.output, config, args.scenes, args.test_scenes, args.seed, progress=True
    )
    print(f"{len(folders)} scenes in {args.output}")


if __name__ == "__main__":
    cli.run(main)
