"""Simulated scenes: shifts held against the images, the promised statistics, the command."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from deepsum_jax import cli, simulate
from deepsum_jax.config import SimulationConfig
from deepsum_jax.data import kelvins
from deepsum_jax.data.resample import bicubic_upsample
from deepsum_jax.simulation.dataset import kelvins_norm, scene_number, write_dataset
from deepsum_jax.simulation.steady import simulate_scene

SMALL = SimulationConfig(lr_size=24, min_frames=9, max_frames=11)
STILL = SimulationConfig(
    lr_size=40,
    min_frames=4,
    max_frames=4,
    read_noise=0,
    shot_noise=0,
    gain_sigma=0,
    offset_sigma=0,
    change=0,
    clear_fraction=1,
    max_hr_clouded=0,
    outlier_fraction=0.3,
)


DIGEST = "c4df693c6c1bf86e4ae47a41b94ce8afdf99e90fee39372027c898be806f998e"


def translation(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Least squares (dy, dx) with moving(y - dy, x - dx) = fixed(y, x).

    Gauss-Newton from the best of a coarse grid. `scipy.ndimage.shift` has the same sense: its
    output(y) is its input(y - shift).
    """
    moving, fixed = moving.astype(float), fixed.astype(float)
    inner = (slice(10, -10), slice(10, -10))

    def moved(t: np.ndarray) -> np.ndarray:
        return np.asarray(scipy.ndimage.shift(moving, t, order=3, mode="nearest"))

    grid = [np.array([dy, dx], float) for dy in range(-8, 9, 2) for dx in range(-8, 9, 2)]
    t = min(grid, key=lambda t: float(np.mean((moved(t) - fixed)[inner] ** 2)))
    for _ in range(6):
        slopes = np.stack([-slope[inner].ravel() for slope in np.gradient(moved(t))], axis=1)
        t = t - np.linalg.lstsq(slopes, (moved(t) - fixed)[inner].ravel())[0]
    return t


@pytest.mark.parametrize("index", [0, 1, 4])
def test_truth_agrees_with_the_images(index: int) -> None:
    scene, truth = simulate_scene(3, index, STILL)
    assert scene.hr is not None
    shifts = np.array(list(truth["frames"].values()))
    # The same blur on both sides, so that nothing but the translation tells them apart.
    smooth = [scipy.ndimage.gaussian_filter(f, 2.5) for f in bicubic_upsample(scene.lr, 3)]
    hr = scipy.ndimage.uniform_filter(scene.hr.astype(float), 3)
    hr = scipy.ndimage.gaussian_filter(hr, np.hypot(2.5, 3 * STILL.lr_psf_sigma))
    for n in (1, 2):
        found = translation(smooth[n], smooth[0])
        np.testing.assert_allclose(found, shifts[n] - shifts[0], atol=0.02)
    np.testing.assert_allclose(translation(smooth[0], hr), shifts[0] - truth["hr"], atol=0.02)


def test_unshifted_frame_lies_on_unshifted_hr() -> None:
    # Pixel centres alone: averaging HR over r x r blocks gives the LR frame, but for its blur.
    config = SimulationConfig(
        **{**STILL.to_dict(), "shift_sigma": 0, "outlier_fraction": 0, "lr_psf_sigma": 0.1}
    )
    scene, _ = simulate_scene(0, 5, config)
    assert scene.hr is not None
    blocks = scene.hr.reshape(40, 3, 40, 3).mean(axis=(1, 3))
    error = {
        (dy, dx): np.std((np.roll(blocks, (dy, dx), (0, 1)) - scene.lr[0])[2:-2, 2:-2])
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    }
    assert error[0, 0] < 0.25 * min(value for at, value in error.items() if at != (0, 0))


def test_frames_are_aliased() -> None:
    # A sensor whose blur hides what its pixels cannot sample leaves little at the highest
    # frequency an LR pixel has; ours leaves much more.
    def share(sigma: float) -> float:
        config = SimulationConfig(**{**STILL.to_dict(), "lr_psf_sigma": sigma})
        frame = simulate_scene(0, 2, config)[0].lr[0].astype(float)
        window = np.outer(*2 * [np.hanning(40)])
        power = np.abs(np.fft.fft2((frame - frame.mean()) * window)) ** 2
        return float((power[20].sum() + power[:, 20].sum()) / power.sum())

    assert share(STILL.lr_psf_sigma) > 10 * share(0.8)


def test_scenes_keep_their_promises() -> None:
    scenes, shifts = [], []
    for index in range(40):
        scene, truth = simulate_scene(7, index, SMALL)
        scenes.append(scene)
        shifts.append(np.array(list(truth["frames"].values())))
        assert np.abs(truth["hr"]).max() <= 1
        assert 9 <= scene.num_frames <= 11 and len(shifts[-1]) == scene.num_frames
    clearance = np.concatenate([s.clearance for s in scenes])
    assert clearance.min() >= 0.6
    assert 0.2 < np.mean(clearance == 1) < 0.5
    assert min(s.hr_mask.mean() for s in scenes if s.hr_mask is not None) >= 0.75
    assert max(s.lr.max() for s in scenes) < 2**14
    assert 6800 < np.mean([s.lr.mean() for s in scenes]) < 8800
    apart = [np.abs(t[:, None] - t[None]).max() for t in shifts]
    assert np.median(apart) < 4 and max(np.hypot(*t.T).max() for t in shifts) <= 6.0001


def test_counts_saturate_at_14_bits() -> None:
    config = SimulationConfig(**{**SMALL.to_dict(), "contrast": 2, "gain_sigma": 0.2})
    values = np.concatenate([simulate_scene(0, n, config)[0].lr.ravel() for n in range(5)])
    assert (values.min(), values.max()) == (0, 2**14 - 1)


def test_red_is_darker() -> None:
    red, nir = (simulate_scene(0, 1, SMALL, band)[0].lr.mean() for band in ("RED", "NIR"))
    assert red < nir - 1000


def test_clouds_are_bright_and_mostly_masked() -> None:
    config = SimulationConfig(lr_size=48, clear_fraction=0)
    bright = []
    for index in range(6):
        scene, _ = simulate_scene(1, index, config)
        cloudiest = int(scene.clearance.argmin())
        ground = np.median(scene.lr, axis=0)
        rise = scene.lr[cloudiest] - ground
        bright.append(rise[~scene.masks[cloudiest]].mean() - rise[scene.masks[cloudiest]].mean())
    assert np.mean(bright) > 800


def test_other_scales() -> None:
    scene, _ = simulate_scene(0, 0, SimulationConfig(lr_size=16, scale=4))
    assert scene.scale == 4


def test_a_scene_depends_on_seed_and_index_alone(tmp_path: Path) -> None:
    few = dataclasses.replace(SMALL, scenes=1, test_scenes=1, seed=5)
    write_dataset(tmp_path / "a", few)
    folders = write_dataset(tmp_path / "b", dataclasses.replace(few, scenes=2))
    assert [f.name for f in folders] == ["imgset0594", "imgset0595", "imgset1306"]
    for path in (tmp_path / "a").rglob("*.*"):
        if path.name != "norm.csv":
            assert (
                path.read_bytes()
                == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
            )
    first, other = (kelvins.read_scene(folder).lr[0] for folder in folders[:2])
    assert (first != other).mean() > 0.9
    assert (simulate_scene(6, 594, SMALL)[0].lr[0] != first).mean() > 0.9


def test_dataset_reads_back(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, bands=("RED", "NIR"), scenes=1, test_scenes=1, seed=2)
    written = write_dataset(tmp_path / "data", config)
    found = kelvins.find_scenes(tmp_path / "data")
    assert set(found) == set(written)
    assert {(s.part, s.band, s.name) for s in found} == {
        ("train", "RED", "imgset0000"),
        ("train", "NIR", "imgset0594"),
        ("test", "RED", "imgset1160"),
        ("test", "NIR", "imgset1306"),
    }
    norm = kelvins.read_norm_for(tmp_path / "data")
    for place in found:
        scene = kelvins.read_scene(place, norm[place.name])
        truth = json.loads((place.path / "truth.json").read_text())
        assert set(truth["frames"]) == {f"LR{n:03d}" for n in scene.frames}
        assert scene.hr is not None and scene.norm is not None and 34 < scene.norm < 56
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def digest_of_contents(folder: Path) -> str:
    """Of all files' names, pixels and truths; how a PNG is packed is no part of it, and norms are
    left to `test_norm_is_the_documented_rule`."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        if path.suffix == ".png":
            with Image.open(path) as image:
                pixels = np.asarray(image)
            digest.update(f"{pixels.shape}{pixels.dtype.newbyteorder('<').str}".encode())
            digest.update(pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())
        elif path.suffix != ".csv":
            digest.update(path.read_bytes())
    return digest.hexdigest()


def test_files_of_a_seed_are_those_of_version_0_1(tmp_path: Path) -> None:
    """Both bands and parts, 14 frames; their bytes were compared one by one when the digest was
    taken, from the tree before it was restructured."""
    config = SimulationConfig(
        lr_size=16, min_frames=3, max_frames=4, bands=("RED", "NIR"), scenes=1, test_scenes=1,
        seed=11,
    )  # fmt: skip
    write_dataset(tmp_path / "data", config)
    assert digest_of_contents(tmp_path / "data") == DIGEST


def test_norm_is_the_documented_rule() -> None:
    scene, _ = simulate_scene(0, 3, SMALL)
    assert scene.hr is not None and scene.hr_mask is not None
    clear = scene.masks.sum(axis=(1, 2))
    best = [bicubic_upsample(f, 3) for f, c in zip(scene.lr, clear, strict=True) if c == max(clear)]
    image = np.mean(best, axis=0)[3:-3, 3:-3]
    mse = []
    for u in range(7):
        for v in range(7):
            window = (slice(u, u + image.shape[0]), slice(v, v + image.shape[1]))
            gap = (scene.hr[window] - image)[scene.hr_mask[window]]
            mse.append(gap.var())
    expected = 10 * np.log10(65535**2 / min(mse))
    np.testing.assert_allclose(kelvins_norm(scene), expected, atol=1e-3)


def test_numbers_never_meet() -> None:
    places = [(part, band) for part in ("train", "test") for band in ("RED", "NIR")]
    numbers = [scene_number(*place, n) for place in places for n in range(1500)]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_size": 2},
        {"min_frames": 20},
        {"bands": ("BLUE",)},
        {"bands": ()},
        {"scenes": -1},
        {"test_scenes": -1},
        {"seed": -1},
    ],
)
def test_knobs_out_of_range(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"found .* expected"):
        SimulationConfig(**changes)  # type: ignore[arg-type]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "data"
    command = ["--output", str(output), "--scenes", "1", "--seed", "0", "--size", "16"]
    simulate.main([*command, "--band", "both", "--max-frames", "9"])
    assert "2 scenes" in capsys.readouterr().out
    assert len(kelvins.find_scenes(output)) == 2
    before = sorted(output.rglob("*"))

    def refused(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.run(lambda: simulate.main(arguments))
        assert stopped.value.code == 2
        message = capsys.readouterr().err
        assert re.fullmatch(r"error: [^\n]*\n", message)
        return message

    assert str(output) in refused(*command)
    assert sorted(output.rglob("*")) == before
    other = ["--output", str(tmp_path / "new"), "--seed", "0"]
    assert "lr_size" in refused(*other, "--scenes", "1", "--size", "1")
    assert "-1" in refused(*other, "--scenes", "-1")
    assert not (tmp_path / "new").exists()
