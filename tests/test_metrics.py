"""Scores in raw units against float64 brute force and an independent SSIM."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsum_jax import losses, metrics

GOLDEN = Path(os.environ.get("DEEPSUM_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))


def example(noise: float = 40, level: float = 8000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw images [2, 24, 27, 2] around `level` counts, SR 500 too dark, HR shifted by (2, −1)."""
    rng = np.random.default_rng(0)
    scene = rng.standard_normal((2, 30, 33, 2)).cumsum(1).cumsum(2)
    scene = level + 600 * scene / scene.std()
    sr = scene[:, 3:-3, 3:-3] + noise * rng.standard_normal((2, 24, 27, 2)) - 500
    hr = scene[:, 1:-5, 4:-2] * 1.0
    mask = rng.random((2, 24, 27, 1)) < 0.8
    mask[:, 5:10, 8:14] = False
    return sr.astype(np.float32), hr.astype(np.float32), mask


def best_crop(
    sr: np.ndarray, hr: np.ndarray, mask: np.ndarray, d: int
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Least MSE of one image, and corrected SR, HR and mask at its position, in float64."""
    sr, hr = sr.astype(np.float64), hr.astype(np.float64)
    height, width = (n - 2 * d for n in sr.shape[:2])
    inner = sr[d : d + height, d : d + width]
    best = (math.inf, inner, inner, inner)
    for u, v in np.ndindex(2 * d + 1, 2 * d + 1):
        target = hr[u : u + height, v : v + width]
        clear = mask[u : u + height, v : v + width, 0].astype(bool)
        if clear.any():
            corrected = inner + (target - inner)[clear].mean(0)
            mse = ((target - corrected)[clear] ** 2).mean()
            if mse < best[0]:
                best = (mse, corrected, target, clear)
    return best


def kelvins_score(cpsnr: Any, baseline: Any) -> jax.Array:
    return metrics.kelvins_score(jnp.asarray(cpsnr), jnp.asarray(baseline))


def decibels(mse: float, max_value: float) -> float:
    return math.inf if mse == 0 else 10 * math.log10(max_value**2 / mse)


# --- cPSNR


@pytest.mark.parametrize(("border", "max_value"), [(3, 65535.0), (1, 16383.0)])
def test_cpsnr_brute_force(border: int, max_value: float) -> None:
    images = example()
    out = metrics.cpsnr(*images, border=border, max_value=max_value)
    expected = [decibels(best_crop(*image, border)[0], max_value) for image in zip(*images)]
    assert out.shape == (2,) and out.dtype == np.float32
    np.testing.assert_allclose(out, expected, atol=1e-4)
    if border == 3:
        np.testing.assert_array_equal(out, metrics.cpsnr(*images))


def test_cpsnr_of_counts() -> None:
    """Unsigned integers must not wrap around where SR is brighter than HR."""
    sr, hr, mask = example()
    sr, hr = (sr + 700).astype(np.uint16), hr.astype(np.uint16)
    expected = [decibels(best_crop(*image, 3)[0], 65535) for image in zip(sr, hr, mask)]
    np.testing.assert_allclose(metrics.cpsnr(sr, hr, mask), expected, atol=1e-4)


def test_cpsnr_golden() -> None:
    """cPSNR, position and score of four scenes, computed in float64 by another program."""
    file = GOLDEN / "kelvins_scoring.npz"
    if not file.exists():
        pytest.skip(f"no golden values at {file}; DEEPSUM_GOLDEN names their folder")
    golden = np.load(file)
    sr, hr = (
        np.stack([golden[f"{name}{i}"] for i in range(4)])[..., None] for name in ("sr", "hr")
    )
    mask = np.stack([golden[f"sm{i}"] for i in range(4)])[..., None]
    out = metrics.cpsnr(sr, hr, mask)
    expected = [golden[f"cpsnr{i}"] for i in range(4)]
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4)
    single = jnp.asarray(sr, jnp.float32), jnp.asarray(hr, jnp.float32)
    position = losses.align(*single, jnp.asarray(mask), 3).position
    np.testing.assert_array_equal(position, [golden[f"argmax{i}"] for i in range(4)])
    scores = [golden[f"score_at_baseline_46_{i}"] for i in range(4)]
    for value, score in zip(out, scores):
        np.testing.assert_allclose(kelvins_score(value[None], [46.0]), score, 3e-6)
    np.testing.assert_allclose(kelvins_score(out, np.full(4, 46.0)), np.mean(scores), 3e-6)


def test_perfect_and_clouded_images() -> None:
    """+inf and NaN, each in a batch with an ordinary image."""
    sr, hr, mask = example()
    sr, hr = sr.round(), hr.round()
    ordinary = float(metrics.cpsnr(sr, hr, mask)[1])
    perfect = sr.copy()
    perfect[0] = hr[0]
    out = metrics.cpsnr(perfect, hr, mask)
    assert out[0] == np.inf and out[1] == pytest.approx(ordinary, abs=1e-3)
    assert metrics.cpsnr(perfect + np.float32(64), hr, mask)[0] > 200  # exact but for rounding
    mask[0] = 0
    for values in (np.zeros_like(hr), np.full_like(hr, np.nan)):
        values[1] = hr[1]
        out = metrics.cpsnr(sr, values, mask)
        assert np.isnan(out[0]) and out[1] == ordinary
        assert np.isnan(metrics.cssim(sr, values, mask)[0])


@pytest.mark.parametrize("metric", [metrics.cpsnr, metrics.cssim])
def test_what_lies_under_the_mask_does_not_matter(metric: Callable[..., jax.Array]) -> None:
    sr, hr, mask = example()
    for bad in (np.nan, np.inf, 65535):
        hidden = np.where(mask, hr, np.float32(bad))
        np.testing.assert_array_equal(metric(sr, hidden, mask), metric(sr, hr, mask))
    zero_one = mask.astype(np.float32)
    np.testing.assert_allclose(metric(sr, hr, zero_one), metric(sr, hr, mask), rtol=1e-6)
    brighter = sr + np.array([300, -200], np.float32)
    np.testing.assert_allclose(metric(brighter, hr, mask), metric(sr, hr, mask), rtol=1e-5)


@pytest.mark.parametrize("metric", [metrics.cpsnr, metrics.cssim])
def test_errors(metric: Callable[..., jax.Array]) -> None:
    sr, hr, mask = example()
    with pytest.raises(ValueError, match="27"):
        metric(sr[:, :, 1:], hr, mask)
    with pytest.raises(ValueError, match="27"):
        metric(sr, hr, mask[:, :, 1:])
    with pytest.raises(ValueError, match="12"):
        metric(sr, hr, mask, border=12)


# --- cSSIM


def gaussian_mean(x: np.ndarray) -> np.ndarray:
    """11×11 weights of σ 1.5 summing to one; edges mirrored with the border pixel repeated."""
    distances = np.arange(-5, 6)
    weights = np.exp(-(distances[:, None] ** 2 + distances[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    padded = np.pad(x, ((5, 5), (5, 5), (0, 0)), mode="symmetric")
    out = np.zeros(x.shape)
    for y, z in np.ndindex(x.shape[:2]):
        out[y, z] = np.tensordot(weights, padded[y : y + 11, z : z + 11], axes=2)
    return out


def slow_cssim(sr: np.ndarray, hr: np.ndarray, mask: np.ndarray, d: int, max_value: float) -> float:
    _, x, y, clear = best_crop(sr, hr, mask, d)
    y = np.where(clear[..., None], y, x)
    c1, c2 = (0.01 * max_value) ** 2, (0.03 * max_value) ** 2
    mean_x, mean_y = gaussian_mean(x), gaussian_mean(y)
    var_x, var_y = gaussian_mean(x**2) - mean_x**2, gaussian_mean(y**2) - mean_y**2
    covariance = gaussian_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float((luminance * structure)[clear].mean())


@pytest.mark.parametrize(
    ("border", "max_value", "noise", "level"),
    [(3, 65535.0, 2500, 8000), (1, 4095.0, 100, 8000), (1, 4095.0, 200, 500)],
)
def test_cssim_by_hand(border: int, max_value: float, noise: float, level: float) -> None:
    images = example(noise, level)
    out = metrics.cssim(*images, border=border, max_value=max_value)
    expected = [slow_cssim(*image, border, max_value) for image in zip(*images)]
    assert out.shape == (2,) and out.dtype == np.float32
    assert all(0.2 < value < 0.97 for value in expected)
    np.testing.assert_allclose(out, expected, atol=2e-5)


def test_cssim_of_equal_images() -> None:
    """1 for an image and itself, whatever the brightness; less for any other."""
    sr, hr, mask = example()
    np.testing.assert_allclose(metrics.cssim(hr, hr, mask), 1, atol=1e-6)
    np.testing.assert_allclose(metrics.cssim(hr - 750, hr, mask), 1, atol=1e-5)
    assert np.all(metrics.cssim(sr, hr, mask) < 0.9999)
    flat = np.full_like(hr, 5000)
    np.testing.assert_allclose(metrics.cssim(flat, flat, mask), 1, atol=1e-6)


def test_cssim_of_bright_and_nearly_flat_images() -> None:
    """Differences of large squares would drown the variances in float32's rounding."""
    _, _, mask = example()
    rng = np.random.default_rng(1)
    hr = (60000 + 8 * rng.random((2, 24, 27, 2))).astype(np.float32)
    sr = (hr + 2 * rng.random(hr.shape) - 100).astype(np.float32)
    expected = [slow_cssim(*images, 3, 100) for images in zip(sr, hr, mask)]
    out = metrics.cssim(sr, hr, mask, max_value=100.0)
    np.testing.assert_allclose(out, expected, atol=1e-3)
    np.testing.assert_allclose(metrics.cssim(hr, hr, mask, max_value=100.0), 1, atol=1e-6)


# --- the challenge's score


def test_kelvins_score() -> None:
    cpsnr, baseline = np.array([46.0, 50.0, 40.0]), np.array([46.0, 45.0, 44.0])
    out = kelvins_score(cpsnr, baseline)
    assert np.shape(out) == ()
    assert float(out) == pytest.approx((1 + 0.9 + 1.1) / 3, rel=1e-6)


def test_kelvins_score_leaves_out_clouded_scenes() -> None:
    baseline = np.array([46.0, 45.0, 44.0])
    assert float(kelvins_score(np.array([np.nan, 50, 40]), baseline)) == pytest.approx(1)
    assert float(kelvins_score(np.array([np.inf, 50, 40]), baseline)) == pytest.approx(2 / 3)
    assert np.isnan(kelvins_score(np.full(3, np.nan), baseline))


def test_kelvins_score_errors() -> None:
    with pytest.raises(ValueError, match=r"(?s)3.*2|2.*3"):
        kelvins_score(np.ones(3), np.ones(2))
    with pytest.raises(ValueError):
        kelvins_score(np.ones(3), np.ones((3, 1)))
