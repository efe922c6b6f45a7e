"""The registered, brightness-compensated, masked loss against brute force in float64."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepsum_jax import losses

align = jax.jit(losses.align, static_argnames="border")


@functools.partial(jax.jit, static_argnames="border")
def evaluate(sr: Any, hr: Any, mask: Any, border: int = 3) -> tuple[jax.Array, jax.Array]:
    """Loss [B] and its gradient by SR, compiled once for most of the tests here."""

    def total(sr: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = losses.registered_mse(sr, hr, mask, border)
        return values.sum(), values

    (_, values), gradient = jax.value_and_grad(total, has_aux=True)(sr)
    return values, gradient


def loss(sr: Any, hr: Any, mask: Any, border: int = 3) -> np.ndarray:
    return np.asarray(evaluate(sr, hr, mask, border=border)[0])


def gradient(sr: Any, hr: Any, mask: Any, border: int = 3) -> np.ndarray:
    return np.asarray(evaluate(sr, hr, mask, border=border)[1])


def searched(sr: np.ndarray, hr: np.ndarray, mask: np.ndarray, d: int) -> dict:
    """One image's MSE at each position (u, v) that sees a reliable pixel, pixel by pixel."""
    height, width, channels = sr.shape
    found = {}
    for u in range(2 * d + 1):
        for v in range(2 * d + 1):
            errors = [
                [float(hr[u + y, v + x, c]) - float(sr[d + y, d + x, c]) for c in range(channels)]
                for y in range(height - 2 * d)
                for x in range(width - 2 * d)
                if mask[u + y, v + x, 0]
            ]
            if errors:
                brightness = [sum(channel) / len(errors) for channel in zip(*errors)]
                squares = [(e - b) ** 2 for pixel in errors for e, b in zip(pixel, brightness)]
                found[u, v] = sum(squares) / len(squares)
    return found


def brute_force(sr: np.ndarray, hr: np.ndarray, mask: np.ndarray, d: int) -> np.ndarray:
    return np.array([min(searched(*images, d).values(), default=0) for images in zip(sr, hr, mask)])


def example(
    batch: int = 2, height: int = 14, width: int = 17, channels: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smooth image, HR shifted by (1, −1) in it, and a mask with holes; bands differ."""
    rng = np.random.default_rng(seed)
    scene = rng.standard_normal((batch, height + 6, width + 6, channels)).cumsum(1).cumsum(2)
    scene = (scene / scene.std()).astype(np.float32)
    sr = scene[:, 3:-3, 3:-3] + 0.1 * rng.standard_normal((batch, height, width, channels))
    hr = scene[:, 2:-4, 4:-2] + np.linspace(-1, 2, channels)
    mask = rng.random((batch, height, width, 1)) < 0.8
    return sr.astype(np.float32), hr.astype(np.float32), mask


# --- values


@pytest.mark.parametrize(("border", "channels"), [(0, 1), (1, 3), (3, 1), (3, 2)])
def test_brute_force(border: int, channels: int) -> None:
    sr, hr, mask = example(channels=channels)
    out = loss(sr, hr, mask, border=border)
    assert out.shape == (2,) and out.dtype == jnp.float32
    np.testing.assert_allclose(out, brute_force(sr, hr, mask, border), rtol=2e-5)


def test_default_border_is_three() -> None:
    sr, hr, mask = example()
    default = jax.jit(losses.registered_mse)(sr, hr, mask)
    np.testing.assert_allclose(default, loss(sr, hr, mask, border=3), rtol=1e-5)


@pytest.mark.parametrize("border", [1, 3])
def test_position(border: int) -> None:
    """(u, v) is the offset of SR's inner part in HR: d plus the shift of the scene in HR."""
    sr, hr, mask = example(seed=1)
    aligned = align(sr, hr, mask, border=border)
    best = [searched(*images, border) for images in zip(sr, hr, mask)]
    np.testing.assert_array_equal(aligned.position, [min(f, key=f.__getitem__) for f in best])
    np.testing.assert_array_equal(aligned.position, [[border + 1, border - 1]] * 2)
    np.testing.assert_allclose(aligned.mse, brute_force(sr, hr, mask, border), rtol=2e-5)


@pytest.mark.parametrize("seed", range(5))
def test_sparse_masks(seed: int) -> None:
    """A few pixels: which are reliable, and how many of them, changes with the position."""
    sr, hr, mask = example(seed=seed)
    mask &= np.random.default_rng(3).random(mask.shape) < 0.04
    np.testing.assert_allclose(loss(sr, hr, mask), brute_force(sr, hr, mask, 3), 2e-5, 1e-9)


def test_positions_without_reliable_pixels_are_skipped() -> None:
    """Two pixels of HR's first row: only u = 0 sees them, and there the loss is not 0."""
    sr, hr, mask = example()
    mask[0] = False
    mask[0, 0, [7, 8]] = True
    found = searched(sr[0], hr[0], mask[0], 3)
    assert {u for u, _ in found} == {0} and min(found.values()) > 1e-4
    np.testing.assert_allclose(loss(sr, hr, mask)[0], min(found.values()), rtol=1e-4)
    slope = gradient(sr, hr, mask)
    assert np.isfinite(slope).all() and np.any(slope[0])
    assert align(sr, hr, mask, border=3).position[0, 0] == 0


def test_masks_of_zeros_and_ones() -> None:
    sr, hr, mask = example()
    zero_one = mask.astype(np.float32)
    np.testing.assert_allclose(loss(sr, hr, zero_one), loss(sr, hr, mask), rtol=1e-6)
    np.testing.assert_allclose(gradient(sr, hr, zero_one), gradient(sr, hr, mask), atol=1e-7)


# --- invariances


def test_brightness_per_channel() -> None:
    sr, hr, mask = example()
    brighter = sr + np.array([2, -1], np.float32)
    np.testing.assert_allclose(loss(brighter, hr, mask), loss(sr, hr, mask), rtol=1e-4)
    np.testing.assert_allclose(
        gradient(brighter, hr, mask), gradient(sr, hr, mask), rtol=1e-3, atol=1e-7
    )
    # One brightness for all channels would not do, and nor would one MSE for each.
    single = [loss(sr[..., [c]], hr[..., [c]], mask) for c in range(2)]
    assert np.all(np.mean(single, 0) <= loss(sr, hr, mask) * 1.0001)


def test_brightness_has_no_gradient() -> None:
    sr, hr, mask = example()
    np.testing.assert_allclose(gradient(sr, hr, mask).sum((1, 2)), 0, atol=1e-6)


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (1, 2), (2, 2)])
def test_moving_hr_moves_the_position_alone(step: tuple[int, int]) -> None:
    """HR cut elsewhere out of a larger image: its best position moves, its loss does not."""
    y, x = step
    rng = np.random.default_rng(4)
    large = rng.standard_normal((2, 16, 19, 2)).cumsum(1).cumsum(2).astype(np.float32)
    clear = rng.random((2, 16, 19, 1)) < 0.8
    sr = large[:, 1:-1, 1:-1] + 0.1 * rng.standard_normal((2, 14, 17, 2)).astype(np.float32)
    before, after = np.s_[:, 1:-1, 1:-1], np.s_[:, y : y + 14, x : x + 17]
    first = align(sr, large[before], clear[before], border=3)
    second = align(sr, large[after], clear[after], border=3)
    np.testing.assert_array_equal(first.position, [[3, 3]] * 2)
    np.testing.assert_array_equal(second.position, [[4 - y, 4 - x]] * 2)
    np.testing.assert_allclose(
        loss(sr, large[after], clear[after]), loss(sr, large[before], clear[before]), rtol=1e-5
    )
    np.testing.assert_allclose(
        gradient(sr, large[after], clear[after]),
        gradient(sr, large[before], clear[before]),
        atol=1e-6,
    )


def test_images_of_a_batch_are_independent() -> None:
    images = example(batch=4)
    pairs = [[array[[a, b]] for array in images] for a, b in [(0, 1), (3, 0), (1, 3)]]
    values = [loss(sr, hr, mask) for sr, hr, mask in pairs]
    slopes = [gradient(sr, hr, mask) for sr, hr, mask in pairs]
    for out in (values, slopes):
        np.testing.assert_array_equal(out[0][0], out[1][1])
        np.testing.assert_array_equal(out[0][1], out[2][0])
        np.testing.assert_array_equal(out[1][0], out[2][1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_what_lies_under_the_mask_does_not_matter(bad: float) -> None:
    sr, hr, mask = example()
    hidden = np.where(mask, hr, np.float32(bad))
    np.testing.assert_array_equal(loss(sr, hidden, mask), loss(sr, hr, mask))
    np.testing.assert_array_equal(gradient(sr, hidden, mask), gradient(sr, hr, mask))
    assert np.isfinite(gradient(sr, hidden, mask)).all()


def test_the_border_of_sr_does_not_matter() -> None:
    sr, hr, mask = example()
    changed = sr.copy()
    changed[:, :3], changed[:, -3:], changed[:, :, :3], changed[:, :, -3:] = 7, 8, 9, -9
    np.testing.assert_array_equal(loss(changed, hr, mask), loss(sr, hr, mask))
    inner = np.zeros(sr.shape, bool)
    inner[:, 3:-3, 3:-3] = True
    slope = gradient(sr, hr, mask)
    assert (slope[~inner] == 0).all() and np.any(slope[inner])


# --- gradients


@pytest.mark.parametrize("fill", [0, np.nan])
def test_all_clouded_target(fill: float) -> None:
    """Loss 0 and no gradient, whatever the target holds, and no effect on its neighbour."""
    sr, hr, mask = example()
    clear = loss(sr, hr, mask), gradient(sr, hr, mask)
    mask[0], hr[0] = False, fill
    clouded = loss(sr, hr, mask), gradient(sr, hr, mask)
    assert clouded[0][0] == 0
    np.testing.assert_array_equal(clouded[1][0], 0)
    for before, after in zip(clear, clouded):
        np.testing.assert_array_equal(after[1], before[1])


@pytest.mark.parametrize("what", ["flat", "both flat", "equal", "equal but for brightness"])
def test_gradient_is_finite(what: str) -> None:
    sr, hr, mask = example()
    if what.startswith("equal"):
        hr = sr + np.float32(0.5 * what.endswith("brightness"))
    else:
        sr = np.full_like(sr, 3.3)
        hr = np.full_like(hr, -1.7) if what == "both flat" else hr
    assert np.isfinite(gradient(sr, hr, mask)).all()
    if what != "flat":
        np.testing.assert_allclose(loss(sr, hr, mask), 0, atol=1e-12)
        np.testing.assert_allclose(gradient(sr, hr, mask), 0, atol=1e-7)


def test_a_single_reliable_pixel() -> None:
    """Brightness alone explains it: the loss is 0 and its gradient too."""
    sr, hr, mask = example()
    mask[:] = False
    mask[:, 6, 7] = True
    np.testing.assert_array_equal(loss(sr, hr, mask), 0)
    np.testing.assert_array_equal(gradient(sr, hr, mask), 0)


def test_gradient_by_finite_differences() -> None:
    sr, hr, mask = example(seed=6)
    with jax.enable_x64(True):
        wide, target = jnp.asarray(sr, jnp.float64), jnp.asarray(hr, jnp.float64)
        slope = gradient(wide, target, mask)
        assert slope.dtype == np.float64
        out = loss(wide, target, mask)
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, brute_force(sr, hr, mask, 3), rtol=1e-12)
    rng, step = np.random.default_rng(7), 1e-5
    for _ in range(3):
        direction = rng.standard_normal(sr.shape)
        above = brute_force(sr + step * direction, hr, mask, 3)
        below = brute_force(sr - step * direction, hr, mask, 3)
        expected = (above - below) / (2 * step)
        np.testing.assert_allclose((slope * direction).sum((1, 2, 3)), expected, rtol=1e-6)
    np.testing.assert_allclose(gradient(sr, hr, mask), slope, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_diverged_image_is_not_taken_for_a_clouded_one(bad: float) -> None:
    """Loss 0 is for targets that show nothing; an SR image that blew up must be noticed."""
    sr, hr, mask = example()
    ordinary = loss(sr, hr, mask)[1]
    sr[0, 4:9, 5:9] = bad
    assert not np.isfinite(loss(sr, hr, mask)[0])
    assert np.isnan(align(sr, hr, mask, border=3).mse[0])  # infinity is for hidden targets
    assert loss(sr, hr, mask)[1] == ordinary


# --- number formats


def test_half_precision_images_are_compared_in_float32() -> None:
    sr, hr, mask = example()
    half = sr.astype(jnp.bfloat16)
    out = loss(half, hr, mask)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, brute_force(half.astype(np.float32), hr, mask, 3), rtol=2e-5)


def test_large_common_offset() -> None:
    """A brightness of thousands is taken off before anything is squared."""
    sr, hr, mask = example()
    far = (hr + np.float32(4000)).astype(np.float32)
    np.testing.assert_allclose(loss(sr, far, mask), brute_force(sr, far, mask, 3), rtol=1e-3)


# --- errors


IMAGE, MASK = (2, 12, 12, 1), (2, 12, 12, 1)


@pytest.mark.parametrize(
    ("sr", "hr", "mask", "border", "named"),
    [
        (IMAGE[1:], IMAGE[1:], MASK[1:], 3, r"\(12, 12, 1\)"),
        ((*IMAGE, 1), (*IMAGE, 1), MASK, 3, r"sr and hr.*\(2, 12, 12, 1, 1\)"),
        ((2, 12, 13, 1), IMAGE, MASK, 3, "13"),
        ((2, 12, 12, 3), IMAGE, MASK, 3, r"12, 3\)"),
        (IMAGE, (1, 12, 12, 1), MASK, 3, r"\(1, 12, 12, 1\)"),
        (IMAGE, IMAGE, (2, 12, 11, 1), 3, "11"),
        (IMAGE, IMAGE, (2, 12, 12), 3, r"\(2, 12, 12\)"),
        (IMAGE, IMAGE, (1, 12, 12, 1), 3, r"\(1, 12, 12, 1\)"),
        ((2, 12, 12, 3), (2, 12, 12, 3), (2, 12, 12, 3), 3, r"12, 3\)"),
        (IMAGE, IMAGE, MASK, 6, "6"),
        ((2, 6, 40, 1), (2, 6, 40, 1), (2, 6, 40, 1), 3, "3"),
        (IMAGE, IMAGE, MASK, -1, "-1"),
    ],
)
def test_errors(sr: tuple, hr: tuple, mask: tuple, border: int, named: str) -> None:
    """What does not belong together is refused with both numbers, not broadcast."""
    with pytest.raises(ValueError, match=named):
        losses.registered_mse(jnp.zeros(sr), jnp.zeros(hr), jnp.ones(mask, bool), border)


def test_the_smallest_image() -> None:
    """One pixel is left inside the border: 49 positions of one pixel each."""
    sr, hr, mask = example(height=7, width=7)
    np.testing.assert_array_equal(loss(sr, hr, mask), [0, 0])
