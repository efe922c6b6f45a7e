"""Simulated data sets on disk, in the Kelvins layout."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from deepsum_jax.config import ChangingGround, SimulationConfig
from deepsum_jax.data.kelvins import SceneFolder, write_norm, write_scene
from deepsum_jax.data.resample import bicubic_upsample
from deepsum_jax.data.scene import Scene
from deepsum_jax.files import written_aside
from deepsum_jax.metrics import cpsnr
from deepsum_jax.simulation.changing import simulate_changing_scene
from deepsum_jax.simulation.steady import simulate_scene

# Kelvins numbers by (part, band): where they begin, and how many there are.
_NUMBERS = {
    ("train", "RED"): (0, 594),
    ("train", "NIR"): (594, 566),
    ("test", "RED"): (1160, 146),
    ("test", "NIR"): (1306, 144),
}
_KELVINS_SCENES = 1450


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


def write_truth(folder: Path, truth: Mapping[str, Any]) -> None:
    """Writes what is known of a scene beside it: `truth.json`, and arrays as `NAME.npz`."""
    arrays = {name: value for name, value in truth.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in truth.items() if name not in arrays}
    text = json.dumps(plain, indent=1) + "\n"
    (folder / "truth.json").write_text(text, encoding="utf-8")
    for name, value in arrays.items():
        content: dict[str, Any] = {name: value}
        np.savez_compressed(folder / f"{name}.npz", **content)


def write_scenes(
    output: str | os.PathLike[str],
    scenes: Iterable[tuple[str, Scene, Mapping[str, Any]]],
    count: int | None = None,
    progress: bool = False,
) -> tuple[SceneFolder, ...]:
    """Writes scenes with HR in the Kelvins layout, beside each what is known of it, and norm.csv.

    The folder appears when it is whole.

    Args:
      output: a folder that does not exist, or is empty.
      scenes: part ("train" or "test"), scene, and its truth; see `write_truth`.
      count: how many there are, for the progress bar on stderr.

    Returns:
      Where each scene lies.

    Raises:
      FileExistsError: `output` is a file, or a folder that is not empty.
    """
    output = Path(os.path.abspath(output))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output}: found it there already, expected a new or empty folder")
    norm, folders = {}, []
    with written_aside(output) as aside:
        for part, scene, truth in tqdm(
            scenes, "simulating", count, unit="scene", disable=not progress
        ):
            place = Path(part) / scene.band / scene.name
            write_scene(aside / place, scene)
            write_truth(aside / place, truth)
            norm[scene.name] = kelvins_norm(scene)
            folders.append(SceneFolder(output / place, scene.name, scene.band, part))
        write_norm(aside / "norm.csv", norm)
    return tuple(folders)


def _sized(changing: ChangingGround, config: SimulationConfig) -> ChangingGround:
    return dataclasses.replace(
        changing,
        lr_size=config.lr_size,
        scale=config.scale,
        min_frames=config.min_frames,
        max_frames=config.max_frames,
        bands=config.bands,
    )


def write_dataset(
    output: str | os.PathLike[str],
    config: SimulationConfig = SimulationConfig(),
    *,
    changing: ChangingGround | None = None,
    progress: bool = False,
) -> tuple[SceneFolder, ...]:
    """Simulates a data set, with scenes for training and for testing of every band.

    All have HR.png and SM.png, those of the test part too, so that they can be scored; beside
    them lies `truth.json`, where ground changes `same_ground.npz` (bool [T, h, w], whether a
    frame's pixel shows the reference's ground), and in `output` their `norm.csv`. The folder
    appears when it is whole. A scene is the same however many are made with it.

    Args:
      output: a folder that does not exist, or is empty.
      config: how many scenes, of which seed, and what they look like.
      changing: what they look like where their ground changes as real ground does; sizes, frames,
        scale and bands are those of `config` all the same.
      progress: show a progress bar on stderr.

    Returns:
      Where each scene lies.

    Raises:
      FileExistsError: `output` is a file, or a folder that is not empty.
      ValueError: no scene asked for.
    """
    if config.scenes + config.test_scenes == 0:
        raise ValueError("found 0 scenes and 0 test scenes, expected at least one scene")
    numbers = {
        scene_number(part, band, position): (part, band)
        for part, count in (("train", config.scenes), ("test", config.test_scenes))
        for band in config.bands
        for position in range(count)
    }

    def simulate(number: int, band: str) -> tuple[Scene, dict[str, Any]]:
        if changing is None:
            return simulate_scene(config.seed, number, config, band)
        return simulate_changing_scene(config.seed, number, _sized(changing, config), band)

    scenes = ((part, *simulate(number, band)) for number, (part, band) in numbers.items())
    return write_scenes(output, scenes, len(numbers), progress)
