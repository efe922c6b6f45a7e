"""IBP: its sensor against plain loops, its iteration against dense matrices, and what it must
leave alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from helpers import landscape

from deepsum_jax import metrics
from deepsum_jax.config import SimulationConfig
from deepsum_jax.data.registration import register_frames
from deepsum_jax.data.resample import bicubic_upsample
from deepsum_jax.data.sensor import PSF_SIGMA, back_project, observe
from deepsum_jax.simulation.steady import simulate_scene
from deepsum_jax.systems.bicubic_mean import bicubic_mean
from deepsum_jax.systems.ibp import ibp

# HR pixels; those of frames 1 and 4 are whole.
SHIFTS = np.array([(0, 0), (1, -2), (0.4, 1.3), (-1.6, 0.7), (2, 1), (-0.8, -0.5), (1.5, 0.3)])


def stack(
    height: int = 24, width: int = 28, scale: int = 3, shifts: np.ndarray = SHIFTS, seed: int = 0
) -> np.ndarray:
    """Frames [N, h, w, 1] of one image exactly as the observation model has them."""
    hr = landscape(scale * height, scale * width, seed)
    return np.stack([observe(hr, shift, scale) for shift in shifts])[..., None]


def clouded(frames: np.ndarray) -> np.ndarray:
    """Masks [N, h, w] with a hidden part in every frame, at a place of its own."""
    masks = np.ones(frames.shape[:3], bool)
    for n, mask in enumerate(masks):
        mask[n : n + 6, 3 * n : 3 * n + 7] = False
    return masks


def clear(frames: np.ndarray) -> np.ndarray:
    return np.ones(frames.shape[:3], bool)


# --- the observation model


def weight(distance: float, width: float, sigma: float, parts: int = 400) -> float:
    """A Gaussian averaged over a pixel's width, by the midpoint rule; not normalised."""
    points = ((k + 0.5) / parts - 0.5 for k in range(parts))
    return sum(math.exp(-0.5 * ((distance - width * p) / sigma) ** 2) for p in points)


def observe_by_loops(
    hr: np.ndarray, shift: tuple[float, float], scale: int, psf_sigma: float
) -> np.ndarray:
    height, width = hr.shape
    out = np.empty((height // scale, width // scale))
    margin = 6 * scale + 8
    axes = []
    for size, s in zip(hr.shape, shift):
        centres = [scale * i + (scale - 1) / 2 + s for i in range(size // scale)]
        axes.append(
            [
                [weight(y - c, scale, scale * psf_sigma) for y in range(-margin, size + margin)]
                for c in centres
            ]
        )
    for i, rows in enumerate(axes[0]):
        for j, columns in enumerate(axes[1]):
            total, norm = 0.0, 0.0
            for y, a in enumerate(rows, -margin):
                for x, b in enumerate(columns, -margin):
                    value = hr[min(max(y, 0), height - 1), min(max(x, 0), width - 1)]
                    total, norm = total + a * b * value, norm + a * b
            out[i, j] = total / norm
    return out


@pytest.mark.parametrize(
    ("scale", "shift", "psf_sigma"),
    [(1, (0.3, -0.5), 0.37), (2, (0.0, 0.0), 0.5), (3, (-1.7, 2.0), 0.37), (4, (7.25, -9.5), 0.2)],
)
def test_observe_by_definition(scale: int, shift: tuple[float, float], psf_sigma: float) -> None:
    hr = np.random.default_rng(scale).random((3 * scale, 4 * scale))
    expected = observe_by_loops(hr, shift, scale, psf_sigma)
    np.testing.assert_allclose(observe(hr, shift, scale, psf_sigma), expected, atol=2e-4)


def test_observe_channels_and_precision() -> None:
    hr = np.random.default_rng(1).random((12, 15, 2))
    out = observe(hr, (0.4, -1.1), 3)
    assert out.shape == (4, 5, 2) and out.dtype == np.float64
    for c in range(2):
        np.testing.assert_allclose(out[..., c], observe(hr[..., c], (0.4, -1.1), 3), rtol=1e-12)
    single = observe(hr.astype(np.float32), (0.4, -1.1), 3)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, out, rtol=1e-5)


def test_observe_has_the_sign_of_registration() -> None:
    """registered(y) = frame(y − s): what registers observed frames is what they were made by."""
    frames = stack(32, 40)[..., 0]
    found = register_frames(bicubic_upsample(frames, 3), None)
    np.testing.assert_allclose(found, SHIFTS, atol=0.75)
    np.testing.assert_array_equal(found[[1, 4]], SHIFTS[[1, 4]])


@pytest.mark.parametrize("shape", [(6, 9), (5, 4, 3)])
@pytest.mark.parametrize("scale", [1, 2, 3, 8])
def test_adjoint(scale: int, shape: tuple[int, ...]) -> None:
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩, edges included."""
    rng = np.random.default_rng(scale)
    for shift in [(0, 0), (0.3, -1.8), (-9.1, 4.5)]:
        x = rng.standard_normal((scale * shape[0], scale * shape[1], *shape[2:]))
        y = rng.standard_normal(shape)
        left = np.vdot(observe(x, shift, scale, 0.45), y)
        right = np.vdot(x, back_project(y, shift, scale, 0.45))
        assert left == pytest.approx(right, rel=1e-10)


# --- the iteration


def test_no_iteration_is_bicubic_mean() -> None:
    """Whole-pixel shifts and one brightness: the first guess is Bicubic+Mean itself."""
    large = landscape(40, 44)
    frames = np.stack([large[4 + n : 36 + n, 4 - n : 40 - n, None] for n in range(4)])
    out = ibp(frames, clear(frames), 3, iterations=0)
    inside = (slice(18, -18), slice(18, -18))  # edges come in replicated, and tell on the gains
    expected = bicubic_mean(frames, clear(frames), 3)
    np.testing.assert_allclose(out[inside], expected[inside], atol=0.2)
    for n in range(4):
        one = bicubic_mean(frames[[n]], clear(frames[:1]), 3)
        single = ibp(frames[[n]], clear(frames[:1]), 3, iterations=0)
        np.testing.assert_allclose(single, one, atol=1e-4)


def looks_at_grid(size: int, scale: int, shift: float) -> np.ndarray:
    """Which LR pixels of an axis lie within the HR grid, to half an HR pixel."""
    first = scale * np.arange(size) + shift
    return (first >= -0.5) & (first + scale - 1 <= scale * size - 0.5)


def test_iteration_by_dense_matrices() -> None:
    """hr + step · Σ Aᵀ w (g − A hr) / Σ Aᵀ w, with A from the images of single pixels."""
    scale, step = 2, 0.7
    shifts = np.array([(0, 0), (0.4, -1.3), (2.6, 3.2)])
    frames = stack(8, 9, scale, shifts)
    frames += np.random.default_rng(0).standard_normal(frames.shape)
    masks = np.random.default_rng(1).random(frames.shape[:3]) < 0.8
    masks[:, :4, :4] = False  # a corner that nobody sees
    runs = [
        ibp(frames, masks, scale, shifts=shifts, step=step, iterations=k, return_details=True)
        for k in range(3)
    ]
    units = np.eye(16 * 18).reshape(-1, 16, 18)
    matrices = [
        np.stack([observe(unit, shift, scale).ravel() for unit in units], axis=1)
        for shift in shifts
    ]
    weights = [
        (m & looks_at_grid(8, scale, s[0])[:, None] & looks_at_grid(9, scale, s[1])).ravel()
        for m, s in zip(masks, shifts)
    ]
    wanted = runs[0].gains[:, None, None] * frames + runs[0].offsets[:, None, None]
    seen = sum(a.T @ w for a, w in zip(matrices, weights))
    hr = runs[0].image.astype(np.float64).ravel()
    for k in range(3):
        np.testing.assert_allclose(runs[k].image.ravel(), hr, atol=2e-4)
        missing = [np.where(w, g.ravel() - a @ hr, 0) for a, w, g in zip(matrices, weights, wanted)]
        rms = np.sqrt(np.sum(np.square(missing)) / np.sum(weights))
        np.testing.assert_allclose(runs[2].residuals[k, 0], rms, rtol=1e-4)
        back = sum(a.T @ d for a, d in zip(matrices, missing))
        hr = hr + np.where(seen > 1e-3, step * back / np.maximum(seen, 1e-3), 0)
    unseen = seen.reshape(16, 18, 1) < 1e-3
    assert unseen.sum() > 9
    np.testing.assert_array_equal(runs[2].image[unseen], runs[0].image[unseen])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_residual_falls(scale: int, known: bool) -> None:
    """On frames of its own model: at every iteration, to a twentieth of where it began. What is
    left is in the gains, fitted to samples that are not quite the same, and in the finest
    detail, which comes slowly."""
    shifts = SHIFTS * scale / 3
    frames = stack(24, 28, scale, shifts)
    _, residuals, found, _, _ = ibp(
        frames, clear(frames), scale, shifts=shifts if known else None, iterations=150,
        return_details=True,
    )  # fmt: skip
    np.testing.assert_allclose(found, shifts, atol=0 if known else 0.15)
    assert len(residuals) == 151
    assert (np.diff(residuals, axis=0) < 0).all()
    assert residuals[-1, 0] < 0.05 * residuals[0, 0]


@pytest.mark.parametrize("step", [0.05, 1.0, 1.99])
def test_residual_falls_for_every_step_under_masks(step: float) -> None:
    """And with noise that no image can explain."""
    frames = stack() + 5 * np.random.default_rng(0).standard_normal((7, 24, 28, 1))
    details = ibp(frames, clouded(frames), 3, step=step, return_details=True)
    assert (np.diff(details.residuals, axis=0) < 0).all()


def test_beats_bicubic_mean() -> None:
    """On simulated scenes with clouds, noise, changes and unknown shifts."""
    config = SimulationConfig(lr_size=40, max_frames=9)
    images: list[tuple[np.ndarray, ...]] = []
    for index in range(6):
        scene, _ = simulate_scene(101, index, config)
        assert scene.hr is not None and scene.hr_mask is not None
        order = np.argsort(-scene.clearance, kind="stable")
        lr, masks = scene.lr[order, ..., None], scene.masks[order]
        rivals = ibp(lr, masks, 3), bicubic_mean(lr, masks, 3)
        images.append((*rivals, scene.hr[..., None].astype(np.float32), scene.hr_mask[..., None]))
    ours, theirs, hr, hr_mask = (np.stack(group) for group in zip(*images))
    gains = np.asarray(metrics.cpsnr(ours, hr, hr_mask) - metrics.cpsnr(theirs, hr, hr_mask))
    assert gains.min() > 0 and gains.mean() > 1


# --- registration


def test_finds_shifts_below_a_pixel() -> None:
    rng = np.random.default_rng(2)
    for scale, atol in [(1, 0.05), (3, 0.15), (6, 0.3)]:
        shifts = SHIFTS * scale / 3
        frames = stack(40, 36, scale, shifts)
        frames = frames * rng.uniform(0.5, 2, (7, 1, 1, 1)) + rng.standard_normal(frames.shape) / 4
        frames, masks = np.where(clouded(frames)[..., None], frames, 500), clouded(frames)
        found = ibp(frames, masks, scale, iterations=0, return_details=True).shifts
        np.testing.assert_array_equal(found[0], 0)
        np.testing.assert_allclose(found, shifts, atol=atol)


def test_refinement_sees_reliable_pixels_only() -> None:
    """Half of every frame is hidden, another half of the reference."""
    frames = stack(40, 36)
    masks = clear(frames)
    masks[0, :20], masks[1:, :, :18] = False, False
    found = ibp(frames, masks, 3, iterations=0, return_details=True).shifts
    np.testing.assert_allclose(found, SHIFTS, atol=0.08)


def test_refinement_does_not_go_astray() -> None:
    """A shift beyond the reach of the whole-pixel search is not crept up to."""
    large = np.add.outer(np.cos(np.arange(90) / 12), np.sin(np.arange(90) / 15))
    frames = stack(16, 16, shifts=np.zeros((2, 2)))
    for frame, corner in zip(frames, (20, 35)):
        frame[..., 0] = observe(large[corner : corner + 48, 20:68], (0, 0), 3)
    whole = register_frames(bicubic_upsample(frames[..., 0], 3), None)
    assert whole[1, 0] == 12  # a quarter of the side; 15 is true
    found = ibp(frames, clear(frames), 3, iterations=0, return_details=True).shifts
    np.testing.assert_array_equal(found, whole)


def test_registration_without_content() -> None:
    """A frame of noise and a flat one: shifts stay whole, and nothing breaks."""
    frames = stack()
    frames[1], frames[2] = np.random.default_rng(3).standard_normal(frames[1].shape), 7.0
    details = ibp(frames, clear(frames), 3, return_details=True)
    assert np.isfinite(details.image).all()
    np.testing.assert_array_equal(details.shifts[2], 0)
    assert (details.gains[[1, 2]] == 1).all()


# --- what must not change the result


@pytest.mark.parametrize("hidden", [1e6, -9999.0, np.nan, np.inf])
def test_ignores_what_lies_under_the_masks(hidden: float) -> None:
    frames, masks = stack(), clouded(stack())
    masks[-1] = False  # a frame of which nothing is left
    expected = ibp(frames, masks, 3)
    assert np.isfinite(expected).all()
    changed = np.where(masks[..., None], frames, hidden)
    np.testing.assert_array_equal(ibp(changed, masks, 3), expected)


def test_hidden_pixels_come_from_other_frames_or_their_neighbours() -> None:
    one = stack(24, 28, shifts=SHIFTS[:1])
    masks = clear(np.repeat(one, 3, axis=0))
    masks[1, 4:12, 6:16] = False
    expected = bicubic_mean(one, masks[:1], 3)
    out = ibp(np.repeat(one, 3, axis=0), masks, 3, iterations=0)
    np.testing.assert_allclose(out[15:33, 21:45], expected[15:33, 21:45], atol=1e-3)

    cliff = np.zeros((1, 16, 16, 1))
    cliff[:, :, 8:] = 100
    mask = clear(cliff)
    mask[:, 4:9, 11:] = False  # nobody sees it: what lies next to it goes on
    out = ibp(cliff, mask, 3)
    np.testing.assert_allclose(out[:, 36:], ibp(cliff, clear(cliff), 3)[:, 36:], atol=1)


@pytest.mark.parametrize(("gain", "offset"), [(1.3, 0), (1, -500), (0.01, 1e4), (40, 3)])
def test_ignores_brightness_and_contrast(gain: float, offset: float) -> None:
    """Of any frame but the reference, whose own the image has."""
    frames, masks = stack(), clouded(stack())
    expected = ibp(frames, masks, 3, return_details=True)
    changed = frames.copy()
    changed[2] = gain * frames[2] + offset
    out = ibp(changed, masks, 3, return_details=True)
    np.testing.assert_allclose(out.image, expected.image, atol=0.01)  # of a contrast of 20
    np.testing.assert_allclose(out.gains[2] * gain, expected.gains[2], rtol=1e-5)
    changed = frames.copy()
    changed[0] = gain * frames[0] + offset
    np.testing.assert_allclose(
        ibp(changed, masks, 3), gain * expected.image + offset, atol=0.01 * max(gain, 1)
    )


def test_gains_and_offsets_are_those_of_raw_values() -> None:
    frames = stack()
    expected = frames.copy()
    frames[3] = 0.5 * frames[3] + 900
    details = ibp(frames, clear(frames), 3, return_details=True)
    np.testing.assert_array_equal(details.gains[0], 1)
    np.testing.assert_array_equal(details.offsets[0], 0)
    matched = details.gains[3] * frames[3] + details.offsets[3]
    np.testing.assert_allclose(matched, expected[3], atol=0.5)


@pytest.mark.parametrize("level", [0.0, 7754.664, -3e5])
def test_constant_images_stay_constant(level: float) -> None:
    frames = np.full((3, 9, 8, 2), level, np.float32)
    frames[1] += 25  # another brightness; the image has the reference's
    masks = clouded(frames)
    details = ibp(frames, masks, 3, return_details=True)
    np.testing.assert_allclose(details.image, np.full((27, 24, 2), level), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(details.residuals, np.zeros((1, 2)))  # nothing left to do
    moved = ibp(frames, masks, 3, shifts=np.array([(0, 0), (0.6, -2.2), (30, 1)]))
    np.testing.assert_allclose(moved, details.image, rtol=1e-6, atol=1e-5)


def test_bands_one_by_one() -> None:
    frames = np.concatenate([stack(), 0.1 * stack(seed=1) + 300, 50 * stack(seed=2)], axis=-1)
    frames += np.random.default_rng(4).standard_normal(frames.shape)
    masks = clouded(frames)
    together = ibp(frames, masks, 3, shifts=SHIFTS, return_details=True)
    assert together.image.shape == (72, 84, 3) and together.residuals.shape == (21, 3)
    for c in range(3):
        alone = ibp(frames[..., [c]], masks, 3, shifts=SHIFTS, return_details=True)
        np.testing.assert_allclose(together.image[..., [c]], alone.image, rtol=1e-5)
        np.testing.assert_allclose(together.residuals[:, [c]], alone.residuals, rtol=1e-4)


# --- any stack, and only stacks


@pytest.mark.parametrize("scale", [1, 2, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_scale_size_and_number(scale: int, count: int) -> None:
    frames = stack(8, 13, scale, SHIFTS[:count])
    details = ibp(frames, clear(frames), scale, return_details=True)
    assert details.image.shape == (8 * scale, 13 * scale, 1)
    assert details.image.dtype == np.float32 and np.isfinite(details.image).all()
    assert details.shifts.shape == (count, 2)
    assert details.gains.shape == details.offsets.shape == (count, 1)
    np.testing.assert_array_equal(ibp(frames, clear(frames), scale), details.image)


def test_raw_integers() -> None:
    counts = np.rint(100 * stack()).astype(np.uint16)
    expected = ibp(counts.astype(np.float64), clear(counts), 3)
    np.testing.assert_array_equal(ibp(counts, clear(counts), 3), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": stack()[..., 0]}, "N, h, w, C"),
        ({"masks": np.ones((7, 24, 27), bool)}, "masks of shape"),
        ({"masks": np.zeros((7, 24, 28), bool)}, "no reliable pixel"),
        ({"lr": np.full((7, 24, 28, 1), np.nan)}, "non-finite"),
        ({"scale": 0}, "scale"),
        ({"shifts": SHIFTS[:3]}, "shifts"),
        ({"shifts": np.full((7, 2), np.nan)}, "shifts"),
        ({"psf_sigma": 0.0}, "psf_sigma"),
        ({"psf_sigma": math.nan}, "psf_sigma"),
        ({"step": 2.0}, "step"),
        ({"iterations": -1}, "iterations"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"lr": stack(), "masks": clear(stack()), "scale": 3} | changes
    with pytest.raises(ValueError, match=message):
        ibp(**arguments)


def test_sensor_refuses() -> None:
    with pytest.raises(ValueError, match="divisible by 3"):
        observe(np.zeros((9, 10)), (0, 0), 3)
    with pytest.raises(ValueError, match=r"\[h, w\]"):
        back_project(np.zeros(9), (0, 0), 3)
    with pytest.raises(ValueError, match="psf_sigma"):
        observe(np.zeros((9, 9)), (0, 0), 3, 5 * PSF_SIGMA + 1)
