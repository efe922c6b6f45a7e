"""Writing loses nothing silently: not to rounding, not to clipping."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers import refuser

from deepsum_jax import submit
from deepsum_jax.config import SimulationConfig
from deepsum_jax.data import kelvins
from deepsum_jax.data.scene import Scene
from deepsum_jax.data.stackfile import write_output
from deepsum_jax.predict import main
from deepsum_jax.simulation.dataset import write_dataset

LEVELS = 2000.0 + 100 * np.arange(64).reshape(1, 8, 8)


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        (LEVELS / 1e4, r"from 0\.2 to 0\.83, of which rounding leaves 2 grey levels"),
        (LEVELS / 1e5, "rounding leaves 1 grey level"),
        (0 * LEVELS + 0.2, "rounding leaves 1 grey level"),
        (290 + LEVELS / 4000, "rounding leaves"),  # kelvins
        (290 + LEVELS / 20000, "rounding leaves"),
        (LEVELS - 9000, "from -7000 to -700, 100% of them outside"),
        (LEVELS * 20, r"outside 16 bits.*\.npy"),
    ],
)
def test_an_image_that_would_lose_most_is_refused(
    stack: np.ndarray, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "s.npy", stack)
    output = tmp_path / "out" / "o.png"
    command = ["--system", "bicubic_mean", "--output", output, tmp_path / "s.npy"]
    message = refuser(capsys)(main, *command)
    assert ".npy" in message and "o.png" in message
    with pytest.raises(ValueError, match=words):
        write_output(output, np.squeeze(stack).astype(np.float32))
    assert not output.parent.exists() or not list(output.parent.iterdir())


def test_what_stood_there_stays(tmp_path: Path) -> None:
    write_output(tmp_path / "o.png", LEVELS[0])
    before = (tmp_path / "o.png").read_bytes()
    with pytest.raises(ValueError):
        write_output(tmp_path / "o.png", LEVELS[0] / 1e4)
    assert (tmp_path / "o.png").read_bytes() == before


@pytest.mark.parametrize(
    "image", [LEVELS[0], LEVELS[0] % 256, np.full((4, 4), 5000.0004), np.zeros((3, 3)) + 1e-5,
              np.eye(4), LEVELS[0] / 100],
)  # fmt: skip
def test_what_loses_little_is_written_silently(image: np.ndarray, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_output(tmp_path / "o.PNG", image)
    np.testing.assert_array_equal(kelvins.read_png16(tmp_path / "o.PNG"), np.rint(image))


def test_clipped_pixels_are_counted(tmp_path: Path) -> None:
    image = LEVELS[0].copy()
    image[0, :3], image[1, :2] = -5, 70000
    with pytest.warns(UserWarning, match=r"clipped 5 of 64 pixels \(3 below 0, 2 above 65535\)"):
        write_output(tmp_path / "o.png", image)
    pixels = kelvins.read_png16(tmp_path / "o.png")
    assert not pixels[0, :3].any() and (pixels[1, :2] == 65535).all()


def test_reflectance_is_no_scene_of_the_layout(tmp_path: Path) -> None:
    scene = Scene("s", LEVELS / 1e4, np.ones(LEVELS.shape, bool))
    with pytest.raises(ValueError, match="rounding leaves"):
        kelvins.write_scene(tmp_path / "s", scene)
    assert not list(tmp_path.iterdir())


def test_a_submission_that_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = SimulationConfig(lr_size=16, min_frames=3, max_frames=3)
    write_dataset(tmp_path / "data", dataclasses.replace(looks, scenes=0, test_scenes=2))
    command = ["--system", "bicubic_mean", "--data", str(tmp_path / "data"), "--partial"]
    command += ["--output", str(tmp_path / "s.zip")]
    image = np.tile(LEVELS[0], (6, 6))
    image[:5] -= 9000
    monkeypatch.setattr(submit, "predict", lambda *_, **__: image)
    with pytest.warns(UserWarning, match=r"2 of 2 scenes \(imgset1306, imgset1307\)"):
        submit.main(command)
    (tmp_path / "s.zip").unlink()
    monkeypatch.setattr(submit, "predict", lambda *_, **__: image / 1e5)
    with pytest.raises(ValueError, match="scene imgset1306: found values"):
        submit.main(command)
    assert not (tmp_path / "s.zip").exists()
