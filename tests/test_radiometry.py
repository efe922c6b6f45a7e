"""Stacks in other units than training's: what is said of them, and what maps them there."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import FAST, TINY, UNROLLED, landscape, random_bundle, refuser

import deepsum_jax
from deepsum_jax import Bundle, ModelConfig, Normalization, save_params
from deepsum_jax.predict import main
from deepsum_jax.radiometry import radiometry
from deepsum_jax.tiling.mosaic import Mosaic, make_plan
from deepsum_jax.tiling.source import ArraySource

COUNTS = Normalization(lr_mean=6000.0, lr_std=600.0, hr_mean=5900.0, hr_std=150.0)
BUNDLE = random_bundle(dataclasses.replace(TINY, normalization=COUNTS))

predict = functools.partial(deepsum_jax.predict, compute=FAST)


def counts(bands: int = 1, side: int = 16) -> np.ndarray:
    """[4, h, w, C], of the training's statistics exactly."""
    x = np.stack([landscape(side, side, seed) for seed in range(4 * bands)]).astype(np.float64)
    x = np.moveaxis(x.reshape(bands, 4, side, side), 0, -1)
    away = x - x.mean(axis=(0, 1, 2))
    return 6000 + 600 * away / away.std(axis=(0, 1, 2))


def test_reflectance_gives_the_image_of_counts() -> None:
    """Band by band, however bright each is; and counts give the same with and without."""
    stack = counts(2)
    gain, offset = np.array([1e-4, 3e-4]), np.array([0.0, -0.2])
    plain = predict(BUNDLE, stack)
    assert plain.std() > 100
    same = predict(BUNDLE, stack, normalize="stack")
    np.testing.assert_allclose(same, plain, rtol=0, atol=0.05)
    image = predict(BUNDLE, gain * stack + offset, normalize="stack")
    np.testing.assert_allclose((image - offset) / gain, plain, rtol=0, atol=0.05)


def test_what_masks_hide_has_no_say() -> None:
    stack, masks = counts()[..., 0], np.ones((4, 16, 16), bool)
    masks[2, :6] = False
    clouded = np.where(masks, stack, np.nan)
    image = predict(BUNDLE, 1e-4 * clouded, masks, normalize="stack")
    known = clouded[masks]
    there = 6000 + 600 * (clouded - known.mean()) / known.std()
    expected = (predict(BUNDLE, there, masks) - 6000) / 600 * known.std() + known.mean()
    np.testing.assert_allclose(1e4 * image, expected, rtol=0, atol=0.05)


def test_a_band_of_one_value() -> None:
    stack = counts(2)
    stack[..., 1] = 0.1
    image = predict(BUNDLE, stack, normalize="stack")
    with pytest.warns(UserWarning, match="deviation 0"):
        flat = predict(BUNDLE, np.full((4, 16, 16), 6000.0))
    np.testing.assert_allclose(image[..., 1], flat - 6000 + 0.1, atol=0.01)


def test_tiles_have_the_units_of_the_whole() -> None:
    """Also where a tile's own statistics are others."""
    stack = counts(side=48).astype(np.float32)
    stack[:, :, 24:] += 900
    there = 6000 + 600 * (stack - stack.mean()) / stack.std()

    def tiled(lr: np.ndarray, normalize: Any) -> np.ndarray:
        source = ArraySource(lr, np.ones(lr.shape[:3], bool))
        plan = make_plan(BUNDLE, source, 0, side=32, margin=8, normalize=normalize)
        return np.concatenate(
            [strip.image for strip in Mosaic(BUNDLE, source, plan, compute=FAST).strips()]
        )

    expected = (tiled(there, None) - 6000) / 600 * stack.std() + stack.mean()
    image = tiled((1e-4 * stack).astype(np.float32), "stack")
    np.testing.assert_allclose(1e4 * image, expected, rtol=0, atol=0.5)


def test_the_warning_says_both_and_what_to_do() -> None:
    with pytest.warns(UserWarning) as warned:
        predict(BUNDLE, 1e-4 * counts(2))
    (message,) = (str(w.message) for w in warned)
    assert "(band 1: mean 0.6, deviation 0.06; band 2: mean 0.6, deviation 0.06)" in message
    assert "training (mean 6000, deviation 600)" in message
    assert 'normalize="stack" (--normalize stack)' in message


def test_the_warning_of_a_network_of_two_bands() -> None:
    norm = Normalization((6000.0, 100.0), (600.0, 10.0), (6000.0, 100.0), (600.0, 10.0))
    bundle = random_bundle(dataclasses.replace(TINY, channels=2, normalization=norm))
    pixels = counts(2).reshape(-1, 2)
    with pytest.warns(UserWarning, match="band 1: mean 6000, deviation 600; band 2: mean 100, dev"):
        assert radiometry(bundle, lambda: pixels) is None
    units = radiometry(bundle, lambda: pixels, "stack")
    assert units is not None
    np.testing.assert_allclose(units.gain, (1, 1 / 60))
    np.testing.assert_allclose(units.gain * 6000 + units.offset, (6000, 100))


@pytest.mark.parametrize("bundle", [random_bundle(UNROLLED), Bundle({}, ModelConfig(system="ibp"))])
def test_systems_of_any_unit_refuse_it(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match=r"normalize: found 'stack' for \w+, which takes any unit"):
        predict(bundle, counts(), normalize="stack")


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="normalize: found 'training', expected 'stack'"):
        predict(BUNDLE, counts(), normalize="training")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_params(tmp_path / "params", BUNDLE)
    stack = counts()[..., 0]
    np.save(tmp_path / "stack.npy", 1e-4 * stack)
    ends = [
        "--set",
        "compute.backend=plain",
        str(tmp_path / "stack.npy"),
        "--output",
        str(tmp_path / "sr.npy"),
    ]
    main(["--params", str(tmp_path / "params"), "--normalize", "stack", *ends])
    image = np.load(tmp_path / "sr.npy")
    np.testing.assert_allclose(1e4 * image, predict(BUNDLE, stack), rtol=0, atol=0.05)
    message = refuser(capsys)(main, "--system", "ibp", "--normalize", "stack", *ends)
    assert "IBP, which takes any unit; leave it out" in message
