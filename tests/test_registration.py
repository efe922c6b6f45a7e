"""Integer registration against golden shifts, brute force, and clouds that fool the plain one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from deepsum_jax.data.registration import MaskedCorrelation, plain_shift, register_frames

GOLDEN = Path(os.environ.get("DEEPSUM_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))

# The content of frame n lies at an offset of −s from where it lies in the reference.
SHIFTS = [(0, 0), (3, -2), (-4, 4), (0, 1), (-1, -3)]


def landscape(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random image, about 500 ± 100."""
    spectrum = np.fft.fft2(np.random.default_rng(seed).standard_normal((height, width)))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    image = np.fft.ifft2(spectrum / (0.02 + np.hypot(y, x)) ** 1.3).real
    return 500 + 100 * (image - image.mean()) / image.std()


def stack(height: int = 48, width: int = 60) -> np.ndarray:
    """Windows of one large image such that frame(y − s) = reference(y)."""
    large = landscape(height + 20, width + 20)
    frames = [large[10 + y : 10 + y + height, 10 + x : 10 + x + width] for y, x in SHIFTS]
    rng = np.random.default_rng(1)
    return np.stack([frame + 5 * rng.standard_normal(frame.shape) for frame in frames])


def cloud(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A bright cloud in every frame, at a place of its own, and the masks that know it."""
    frames, masks = frames.copy(), np.ones(frames.shape, bool)
    corners = [(4, 4), (20, 30), (24, 8), (6, 36), (15, 20)]
    for frame, mask, (y, x) in zip(frames, masks, corners):
        frame[y : y + 18, x : x + 20] = 4000
        mask[y : y + 18, x : x + 20] = False
    return frames, masks


# --- plain


def test_plain_golden() -> None:
    file = GOLDEN / "preprocessing.npz"
    if not file.exists():
        pytest.skip(f"no golden values at {file}; DEEPSUM_GOLDEN names their folder")
    golden = np.load(file)
    expected = golden["shift_to_register_on_first"]
    frames = golden["frames"]
    np.testing.assert_array_equal([plain_shift(frames[0], frame) for frame in frames], expected)
    np.testing.assert_array_equal(register_frames(frames, None, method="plain"), expected)
    np.testing.assert_array_equal(register_frames(frames, None), expected)


@pytest.mark.parametrize("shape", [(7, 10), (8, 5), (6, 6)])
def test_plain_brute_force(shape: tuple[int, int]) -> None:
    """The greatest circular correlation, each shift by its representative nearest to zero."""
    rng = np.random.default_rng(2)
    for _ in range(5):
        reference, frame = rng.random(shape), rng.random(shape)
        shifts = [(y, x) for y in range(shape[0]) for x in range(shape[1])]
        best = max(shifts, key=lambda s: np.sum(reference * np.roll(frame, s, axis=(0, 1))))
        shift = plain_shift(reference, frame)
        assert tuple(np.mod(shift, shape)) == best
        assert all(abs(s) <= n // 2 for s, n in zip(shift, shape))


def test_plain_sign() -> None:
    """registered(y) = frame(y − s)."""
    reference = landscape(24, 31)
    for shift in SHIFTS:
        frame = np.roll(reference, (-shift[0], -shift[1]), axis=(0, 1))
        assert plain_shift(reference, frame) == shift


def test_plain_of_faint_float32_images() -> None:
    """A large common offset, which cannot move the peak, must not drown it in rounding."""
    for contrast in (10, 3, 1):
        reference = 8000 + contrast * (landscape(96, 96) - 500) / 100
        frame = np.roll(reference, (-3, 2), axis=(0, 1))
        shift = plain_shift(reference.astype(np.float32), frame.astype(np.float32))
        assert shift == (3, -2)


def test_plain_is_fooled_by_clouds_and_masked_is_not() -> None:
    frames, masks = cloud(stack())
    plain = register_frames(frames, masks, method="plain")
    assert (np.abs(plain[1:] - SHIFTS[1:]).max(1) > 4).all()
    np.testing.assert_array_equal(register_frames(frames, masks), SHIFTS)


# --- masked


@pytest.mark.parametrize("shape", [(48, 60), (61, 40), (50, 50)])
def test_masked_shifts(shape: tuple[int, int]) -> None:
    out = register_frames(stack(*shape), None)
    assert out.dtype == np.int32 and out.shape == (5, 2)
    np.testing.assert_array_equal(out, SHIFTS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e12])
def test_masked_ignores_what_lies_under_the_masks(bad: float) -> None:
    frames, masks = cloud(stack())
    np.testing.assert_array_equal(register_frames(np.where(masks, frames, bad), masks), SHIFTS)


def test_masked_ignores_brightness_and_contrast() -> None:
    frames, masks = cloud(stack())
    for gain, offset in [(0.1, 0), (1, 1e5), (7, -3e3), (1e-4, 0)]:
        changed = frames.copy()
        changed[1:] = gain * frames[1:] + offset
        np.testing.assert_array_equal(register_frames(changed, masks), SHIFTS)
    counts = (frames * 8).astype(np.uint16)
    for units in (counts, frames * 1e-6, frames * 1e6):
        np.testing.assert_array_equal(register_frames(units, masks), SHIFTS)


def correlation(
    reference: np.ndarray, frame: np.ndarray, masks: tuple[np.ndarray, np.ndarray], shift: tuple
) -> tuple[int, float]:
    """Overlap of reliable pixels and their coefficient of correlation at one shift."""
    height, width = reference.shape
    first, second = [], []
    for y in range(max(0, shift[0]), min(height, height + shift[0])):
        for x in range(max(0, shift[1]), min(width, width + shift[1])):
            if masks[0][y, x] and masks[1][y - shift[0], x - shift[1]]:
                first.append(reference[y, x])
                second.append(frame[y - shift[0], x - shift[1]])
    if len(first) < 2:
        return len(first), -1.0
    return len(first), float(np.corrcoef(first, second)[0, 1])


@pytest.mark.parametrize("seed", range(6))
def test_masked_brute_force(seed: int) -> None:
    """Unrelated images: nothing but the definition decides where the peak is. They rise towards
    one side, so that what overlaps has another mean at every shift."""
    rng = np.random.default_rng(seed)
    shape, search, min_overlap = (12, 15), 4, 0.5
    ramp = np.arange(15) / 10
    reference, frame = 100 + rng.random(shape) + ramp, 7 * (rng.random(shape) - ramp)
    masks = rng.random(shape) < 0.7, rng.random(shape) < 0.7
    shifts = [(y, x) for y in range(-search, search + 1) for x in range(-search, search + 1)]
    found = {s: correlation(reference, frame, masks, s) for s in shifts}
    bar = min_overlap * max(overlap for overlap, _ in found.values())
    tried = {s: value for s, (overlap, value) in found.items() if overlap >= bar}
    out = MaskedCorrelation(reference, masks[0], search, min_overlap).shift(frame, masks[1])
    assert out == max(tried, key=tried.__getitem__)


def test_search_bounds_the_shift() -> None:
    frames = stack()
    assert tuple(register_frames(frames, None, search=4)[2]) == SHIFTS[2]
    assert np.abs(register_frames(frames, None, search=2)).max() <= 2
    assert not register_frames(frames, None, search=0).any()


def test_min_overlap() -> None:
    """A perfect match in a sliver does not count."""
    rng = np.random.default_rng(3)
    reference, frame = rng.random((20, 20)), rng.random((20, 20))
    frame[:3] = reference[-3:]  # at a shift of 17 down, three rows agree
    clear = np.ones((20, 20), bool)
    assert MaskedCorrelation(reference, clear, 18, min_overlap=0.1).shift(frame, clear) == (17, 0)
    shift = MaskedCorrelation(reference, clear, 18, min_overlap=0.5).shift(frame, clear)
    assert abs(shift[0]) <= 10


# --- frames without content


@pytest.mark.parametrize("level", [0.0, 7754.664, 1e-7])
def test_flat_images(level: float) -> None:
    flat, image = np.full((20, 26), level), landscape(20, 26)
    clear = np.ones(flat.shape, bool)
    for reference, frame in [(flat, flat), (image, flat), (flat, image)]:
        assert plain_shift(reference, frame) == (0, 0)
        assert MaskedCorrelation(reference, clear).shift(frame, clear) == (0, 0)


def test_flat_under_a_bright_cloud() -> None:
    """What is left of a frame is flat: rounding must not choose a shift."""
    image = landscape(20, 26)
    clear, mask = np.ones(image.shape, bool), np.ones(image.shape, bool)
    mask[:8] = False
    frame = np.where(mask, 123.456, 60000.0)
    assert MaskedCorrelation(image, clear).shift(frame, mask) == (0, 0)
    assert MaskedCorrelation(frame, mask).shift(image, clear) == (0, 0)


def test_nothing_in_common() -> None:
    image = landscape(20, 26)
    nothing, clear = np.zeros(image.shape, bool), np.ones(image.shape, bool)
    assert MaskedCorrelation(image, clear).shift(image, nothing) == (0, 0)
    assert MaskedCorrelation(image, nothing).shift(image, clear) == (0, 0)
    few = nothing.copy()
    few[4:7, 4:7] = True
    assert MaskedCorrelation(image, few).shift(np.roll(image, 2, axis=0), clear) == (0, 0)


# --- stacks


def test_channels_share_one_grid() -> None:
    """One of them shows nothing; together they tell the shift."""
    frames, masks = cloud(stack())
    bands = np.stack([np.random.default_rng(4).random(frames.shape), frames], axis=-1)
    for order in (bands, bands[..., ::-1]):
        np.testing.assert_array_equal(register_frames(order, masks), SHIFTS)


def test_one_frame() -> None:
    np.testing.assert_array_equal(register_frames(stack()[:1], None), [[0, 0]])


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="phase"):
        register_frames(stack(), None, method="phase")
