"""Robust IBP: what it gains from looks at one ground, and what it must not believe."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers import landscape

from deepsum_jax import Bundle, ModelConfig, metrics
from deepsum_jax.config import DataConfig
from deepsum_jax.data.fill import fill
from deepsum_jax.data.frames import reference_first
from deepsum_jax.data.prepare import prepare_scene
from deepsum_jax.data.scene import Scene, with_channels
from deepsum_jax.data.sensor import PSF_SIGMA, observe
from deepsum_jax.inference import frames_in_use
from deepsum_jax.simulation.dates import read_dates
from deepsum_jax.simulation.wald import WaldConfig, cut_scenes
from deepsum_jax.systems.ibp import ibp
from deepsum_jax.systems.robust import agreement
from deepsum_jax.systems.robust.agreeing import agreeing
from deepsum_jax.systems.robust.back_projection import RobustBackProjection, robust_ibp
from deepsum_jax.systems.robust.consensus import ReferenceChoice, choose_reference
from deepsum_jax.systems.robust_ibp import preferred_reference
from deepsum_jax.systems.system import Stack
from deepsum_jax.systems.windows import make_windows, window_inputs

REAL = Path(__file__).parents[1].parent / "shared" / "real" / "naip-dakota"
SHIFTS = np.array([(0, 0), (1, -2), (0.4, 1.3), (-1.6, 0.7), (2, 1), (-0.8, -0.5), (1.5, 0.3)])
NOISE = 10.0


def ground(side: int = 96, seed: int = 0) -> np.ndarray:
    """Fields with sharp edges on smooth relief, counts."""
    rng = np.random.default_rng(seed)
    fields = np.kron(rng.normal(0, 600, (side // 20 + 2, side // 20 + 2)), np.ones((20, 20)))
    return 6000 + 10 * landscape(side, side, seed) + np.roll(fields, 3, (0, 1))[:side, :side]


def looks(hr: np.ndarray, seed: int = 0) -> np.ndarray:
    """[N, h, w, 1] noisy frames of one ground."""
    rng = np.random.default_rng(seed)
    frames = np.stack([observe(hr, shift, 3) for shift in SHIFTS])[..., None]
    return frames + rng.normal(0, NOISE, frames.shape)


def clear(frames: np.ndarray) -> np.ndarray:
    return np.ones(frames.shape[:3], bool)


def details(lr: np.ndarray, masks: np.ndarray | None = None) -> RobustBackProjection:
    return robust_ibp(lr, clear(lr) if masks is None else masks, 3, return_details=True)


def score(image: np.ndarray, hr: np.ndarray) -> float:
    mask = np.ones((1, *hr.shape, 1), bool)
    return float(metrics.cpsnr(image[None], hr[None, ..., None].astype(np.float32), mask)[0])


def alone(lr: np.ndarray) -> np.ndarray:
    return ibp(lr[:1], clear(lr[:1]), 3)


def test_looks_sharpen_each_other() -> None:
    hr = ground()
    lr = looks(hr)
    result = details(lr)
    best = score(ibp(lr, clear(lr), 3), hr)
    # The mean of many looks bears more steps than one frame.
    assert score(alone(lr), hr) + 1.5 < best < score(result.image, hr) - 0.3
    np.testing.assert_allclose(result.shifts, SHIFTS, atol=0.15)
    np.testing.assert_allclose(result.weights, 1 / len(lr), atol=0.03)
    inner = result.frames_per_pixel[12:-12, 12:-12]
    np.testing.assert_allclose(inner, len(lr), rtol=0.3)
    assert abs(inner.mean() - len(lr)) < 0.2
    np.testing.assert_allclose(result.noise, NOISE, rtol=0.5)
    assert result.left_out == ()


def test_one_frame_is_ibp() -> None:
    lr = looks(ground())[:1]
    out = details(lr)
    assert abs(score(out.image, ground()) - score(alone(lr), ground())) < 0.05
    assert out.weights == pytest.approx([1]) and out.shifts.tolist() == [[0, 0]]
    np.testing.assert_allclose(out.frames_per_pixel, 1, atol=1e-5)


def strangers(lr: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    shape = lr.shape[1:]
    if kind == "another place":
        return looks(ground(seed=9))[:1][0]
    if kind == "cloud":
        return 12000 + 20 * landscape(shape[0], shape[1], 5)[..., None]
    if kind == "noise":
        return rng.normal(6000, 800, shape)
    return np.roll(lr[1], (14, 13), (0, 1))  # beyond a search of 8 LR pixels


@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("kind", ["another place", "cloud", "noise", "far off"])
def test_strangers_do_no_harm(kind: str, count: int) -> None:
    hr = ground()
    lr, rng = looks(hr), np.random.default_rng(1)
    for n in range(1, 1 + count):
        lr[n] = strangers(looks(hr), kind, rng)
    result = details(lr)
    assert score(result.image, hr) > score(alone(lr), hr) - 0.1 + 0.2 * (count == 1)
    assert result.weights[1 : 1 + count].max() < 0.03
    if kind in ("noise", "far off"):
        assert dict(result.left_out).keys() == set(range(1, 1 + count))
    if kind == "far off":
        assert all("further" in why for _, why in result.left_out)


def test_changed_fields_are_not_believed() -> None:
    """Half of every other frame shows other ground: there the reference stands alone."""
    hr, other = ground(), ground(seed=4)
    mixed = hr.copy()
    mixed[:, 48:] = other[:, 48:]
    lr = looks(hr)
    lr[1:] = looks(mixed)[1:]
    result = details(lr)
    assert score(result.image, hr) > score(alone(lr), hr) - 0.6
    assert score(ibp(lr, clear(lr), 3), hr) < score(alone(lr), hr) - 1
    spoken = result.frames_per_pixel
    assert spoken[12:-12, 12:36].mean() > 5.5 and spoken[12:-12, 60:-12].mean() < 1.7


def half_changed() -> np.ndarray:
    """Looks at one ground [7, 32, 32, 1], the right half of all but the first at another."""
    hr, other = ground(), ground(seed=4)
    other[:, :48] = hr[:, :48]
    return np.concatenate([looks(hr)[:1], looks(other)[1:]])


def test_what_agrees_is_registered_and_not_masked() -> None:
    lr = half_changed()
    masks = clear(lr)
    masks[0, :3], masks[1, :3] = False, False
    found = agreeing(lr, masks, ModelConfig())
    np.testing.assert_allclose(found.shifts, SHIFTS, atol=0.15)
    np.testing.assert_array_equal(found.masks[0], masks[0])
    assert not (found.masks & ~masks).any()
    assert found.masks[1:, 5:-2, 2:12].mean() > 0.9
    assert found.masks[1:, 5:-2, 20:-2].mean() < 0.2
    lr[3] = 7000
    without = agreeing(lr, masks, ModelConfig())
    assert not without.masks[3].any() and not without.shifts[3].any()
    np.testing.assert_allclose(without.shifts[4:], SHIFTS[4:], atol=0.15)


def test_a_network_takes_what_agrees() -> None:
    """DeepSUM whose dynamic filters are given: filters and masks are those of what agrees, in
    prediction as in training, where patches lie as they do without."""
    lr, base = half_changed(), ModelConfig(num_frames=7, features=2, hidden="filled")
    model = dataclasses.replace(base, registration="agreement")
    found = agreeing(lr, clear(lr), model)
    windows = make_windows(Stack(lr, clear(lr)), model)
    assert windows.shifts is not None
    np.testing.assert_array_equal(windows.shifts, found.shifts)
    np.testing.assert_array_equal(windows.masks, found.masks)
    np.testing.assert_array_equal(windows.frames, fill(lr, found.masks, "filled"))
    given = window_inputs(windows, 0, model)
    np.testing.assert_array_equal(given.shifts, found.shifts)
    np.testing.assert_array_equal(given.masks[:, ::3, ::3, 0], found.masks)

    hr = ground()
    scene = Scene("one", lr, clear(lr), hr=hr[..., None], hr_mask=np.ones(hr.shape, bool))
    data = DataConfig(patch_size=24, min_hr_clearance=0.5)
    plain = prepare_scene(scene, base, data)
    prepared = prepare_scene(scene, model, data, agree=lambda lr, masks: agreeing(lr, masks, model))
    np.testing.assert_array_equal(prepared.masks, found.masks)
    np.testing.assert_array_equal(prepared.lr, windows.frames)
    np.testing.assert_allclose(prepared.shifts, found.shifts, atol=1e-5)
    np.testing.assert_array_equal(prepared.corners, plain.corners)
    assert plain.masks.all() and plain.shifts.dtype == np.int32


def test_gain_and_offset_do_not_matter() -> None:
    hr = ground()
    lr = looks(hr)
    plain = details(lr)
    lr[1:4] = 0.5 * lr[1:4] + 300
    dimmed = details(lr)
    np.testing.assert_allclose(dimmed.image, plain.image, atol=30)
    assert dimmed.weights.min() > 0.1


def test_brightness_that_changes_slowly() -> None:
    hr = ground()
    lr = looks(hr)
    before = score(robust_ibp(lr, clear(lr), 3), hr)
    haze = 1200 * np.linspace(0, 1, lr.shape[2])[:, None]
    lr[1::2] += haze
    assert score(robust_ibp(lr, clear(lr), 3), hr) > before - 0.5
    assert score(ibp(lr, clear(lr), 3), hr) < before - 1


@pytest.mark.parametrize("frame", [0, 3])
def test_a_hot_pixel_moves_a_handful(frame: int) -> None:
    lr = looks(ground())
    before = robust_ibp(lr, clear(lr), 3)
    lr[frame, 12, 17] = 65535
    moved = np.abs(robust_ibp(lr, clear(lr), 3) - before)[..., 0] > 60
    assert moved.sum() <= 60
    rows, columns = np.nonzero(moved)
    assert np.abs(rows - 37).max(initial=0) <= 9 and np.abs(columns - 52).max(initial=0) <= 9


def test_what_the_reference_hides_comes_from_the_others() -> None:
    hr = ground()
    lr = looks(hr)
    masks = clear(lr)
    masks[0, 8:16, 8:16] = False
    lr[0, 8:16, 8:16] = np.nan
    lr[1] = looks(ground(seed=4))[1]  # and not from a stranger
    result = details(lr, masks)
    hole = (slice(27, 45), slice(27, 45))
    error = np.abs(result.image[..., 0] - hr)
    assert error[hole].mean() < 1.3 * error[54:-12, 54:-12].mean()
    assert np.isfinite(result.image).all() and result.frames_per_pixel[hole].min() > 3


def test_masked_values_have_no_influence() -> None:
    lr = looks(ground())
    masks = np.random.default_rng(3).random(lr.shape[:3]) < 0.9
    once = robust_ibp(lr, masks, 3)
    lr[~masks] = np.nan
    np.testing.assert_array_equal(robust_ibp(lr, masks, 3), once)


def test_bands() -> None:
    """Bands of unlike brightness share their weights, and each comes out as it would alone."""
    hr = ground()
    one = looks(hr)
    two = robust_ibp(np.concatenate([one, 0.1 * one], -1), clear(one), 3)
    assert two.shape == (96, 96, 2) and two.dtype == np.float32
    np.testing.assert_allclose(two[..., :1], robust_ibp(one, clear(one), 3), atol=20)
    np.testing.assert_allclose(10 * two[..., 1], two[..., 0], atol=20)


def test_any_unit() -> None:
    """Reflectance or counts, far from zero or near: the same image."""
    lr = looks(ground())
    wanted = robust_ibp(lr, clear(lr), 3)
    small = robust_ibp(lr / 1e4, clear(lr), 3)
    np.testing.assert_allclose(1e4 * small, wanted, atol=2)
    raised = robust_ibp(lr.astype(np.float64) + 1e6, clear(lr), 3)
    np.testing.assert_allclose(raised - 1e6, wanted, atol=2)


@pytest.mark.parametrize("unit", [1e-9, 1e6])
def test_a_hot_pixel_is_one_in_any_unit(unit: float) -> None:
    """Radiances in W/(cm² sr nm) are as small as the one, counts of summed frames as large."""
    lr = looks(ground())
    lr[1, 12, 17] = 65535
    image = robust_ibp(lr, clear(lr), 3)
    small = robust_ibp(unit * lr.astype(np.float64), clear(lr), 3)
    np.testing.assert_allclose(small / unit, image, atol=1e-3 * image.std())


def test_blank_and_constant_frames_are_named() -> None:
    lr = looks(ground())
    masks = clear(lr)
    masks[2], lr[4] = False, 5
    result = details(lr, masks)
    assert dict(result.left_out) == {2: "blank: no reliable pixel", 4: "constant"}
    assert result.weights[[2, 4]].tolist() == [0, 0] and np.isnan(result.shifts[2]).all()
    assert result.weights.sum() == pytest.approx(1)


def test_shifts_as_given() -> None:
    lr = looks(ground())
    given = robust_ibp(lr, clear(lr), 3, shifts=SHIFTS, return_details=True)
    np.testing.assert_array_equal(given.shifts, SHIFTS)
    wrong = robust_ibp(lr, clear(lr), 3, shifts=SHIFTS[::-1], return_details=True)
    assert wrong.weights[0] > 1.3 * given.weights[0]  # frames that lie wrongly do not agree


def test_what_is_refused() -> None:
    lr = looks(ground(48))
    with pytest.raises(ValueError, match=r"expected \[N, h, w, C\]"):
        robust_ibp(lr[..., 0], clear(lr), 3)
    with pytest.raises(ValueError, match="no reliable pixel in frame 0"):
        robust_ibp(lr, clear(lr) & (np.arange(7) > 0)[:, None, None], 3)
    with pytest.raises(ValueError, match="shifts: found shape"):
        robust_ibp(lr, clear(lr), 3, shifts=SHIFTS[:2])
    with pytest.raises(ValueError, match="iterations and rounds"):
        robust_ibp(lr, clear(lr), 3, rounds=0)
    with pytest.raises(ValueError, match="psf_sigma"):
        robust_ibp(lr, clear(lr), 3, psf_sigma=0)
    with pytest.raises(ValueError, match="all blank or constant"):
        choose_reference(0 * lr, clear(lr), 3)


# --- the parts


def test_noise_of_noise() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 7, (2, 128, 128, 1))
    ok = np.ones((128, 128), bool)
    np.testing.assert_allclose(agreement.noise_of_frame(a, ok), 7, rtol=0.1)
    np.testing.assert_allclose(agreement.noise_of_pair(a - b, ok), 7, rtol=0.1)


def test_match_survives_outliers() -> None:
    wanted = landscape(40, 40)
    frame = (wanted - 30) / 1.7
    frame[:6] = 9000
    gain, offset = agreement.match(frame, wanted, np.ones(frame.shape, bool))
    assert gain == pytest.approx(1.7, rel=0.01) and offset == pytest.approx(30, abs=1)


def test_a_point_of_ground_is_no_hot_pixel() -> None:
    """The brightest point that the optics can show, wherever it falls in its pixel."""
    ok = np.ones((12, 12), bool)
    for y in range(3):
        hr = np.full((36, 36), 500.0)
        hr[18 + y, 19] = 1e5
        frame = observe(hr, (0, 0), 3)[..., None]
        frame += np.random.default_rng(y).normal(0, 1, frame.shape)
        assert not agreement.hot_pixels(frame, ok, agreement.point_leak(PSF_SIGMA)).any()
    frame[6, 3] = 5e3
    assert np.argwhere(
        agreement.hot_pixels(frame, ok, agreement.point_leak(PSF_SIGMA))
    ).tolist() == [[6, 3]]


# --- which frame is the reference


@pytest.mark.parametrize("kind", ["another place", "cloud", "noise"])
def test_a_strange_reference_steps_back(kind: str) -> None:
    hr = ground()
    lr = looks(hr)
    masks = clear(lr)
    masks[1:, 0, 0] = False  # by the masks, the stranger would be the clearest
    lr[0] = strangers(lr, kind, np.random.default_rng(2))
    choice = choose_reference(lr, masks, 3)
    assert choice.order[-1] == 0 and choice.agreement.argmin() == 0
    order = list(choice.order)
    good = [n for n in order if n]
    image = robust_ibp(lr[order], masks[order], 3)
    assert score(image, hr) > score(ibp(lr[good], masks[good], 3), hr) - 0.2


def test_the_frame_nearest_to_the_others_leads() -> None:
    """Of equally clear frames: not the most contrasted one, though its edges agree best."""
    lr = looks(ground())
    lr += 150 * np.random.default_rng(4).normal(0, 1, lr.shape)
    level = lr.mean(axis=(1, 2, 3), keepdims=True)
    lr[2] = level[2] + 3 * (looks(ground())[2] - level[2])
    choice = choose_reference(lr, clear(lr), 3)
    assert choice.agreement.argmax() == 2
    assert choice.best != 2 and choice.order[-1] == choice.distance.argmax() == 2
    assert choice.best == choice.distance.argmin()


@pytest.mark.parametrize("kind", ["another place", "cloud"])
def test_a_few_pixels_do_not_outweigh_all_others(kind: str) -> None:
    lr, config = looks(ground()), ModelConfig(system="robust_ibp")
    few, many = clear(lr), clear(lr)
    few[np.arange(7) != 3, 0, :3] = False
    many[np.arange(7) != 3, 0] = False
    assert preferred_reference(lr, few, config) == 3  # though other frames may lie nearer
    lr[3] = strangers(lr, kind, np.random.default_rng(2))
    assert preferred_reference(lr, few, config) != 3
    assert preferred_reference(lr, many, config) == 3
    bundle = Bundle({}, config)
    assert frames_in_use(bundle, lr, few, None).kept[0] != 3
    assert frames_in_use(bundle, lr, few, 3, explicit=True).kept[0] == 3


def test_a_few_pixels_outweigh_ground_that_changed() -> None:
    """A reference of another day is no outlier to be given up, though it steps back in a tie."""
    lr, masks = looks(ground()), clear(looks(ground()))
    lr[3, :, 20:] = looks(ground(seed=4))[3, :, 20:]
    assert choose_reference(lr, masks, 3).order[-1] == 3
    masks[np.arange(7) != 3, 0, :3] = False
    assert choose_reference(lr, masks, 3).order[-1] == 3
    assert preferred_reference(lr, masks, ModelConfig(system="robust_ibp")) == 3


@pytest.mark.parametrize(
    ("agreement", "told"),
    [([0.02, 0.1, 0.12, 0.1], False), ([0.1, 0.6, 0.7, 0.6], True), ([0.4, 0.6, 0.7, 0.6], False)],
)
def test_frames_that_share_nothing_contradict_none(agreement: list[float], told: bool) -> None:
    found = np.array(agreement)
    choice = ReferenceChoice((1, 2, 3, 0), found, np.ones(4), np.ones(4), ())
    assert choice.contradicts(0) is told


def test_frames_that_are_there_twice() -> None:
    lr = np.repeat(looks(ground())[:1], 3, axis=0)
    choice = choose_reference(np.rint(lr), clear(lr), 3)
    assert np.isfinite(choice.distance).all() and choice.best == 0


def test_clearance_first_where_masks_say_anything() -> None:
    lr = looks(ground())
    masks = clear(lr)
    for n in range(len(lr)):
        masks[n, : 3 * abs(n - 4)] = False
    assert choose_reference(lr, masks, 3).best == 4
    lr[2] = 7
    choice = choose_reference(lr, masks, 3)
    assert choice.left_out == ((2, "constant"),) and 2 not in choice.order


@pytest.mark.skipif(not REAL.is_dir(), reason="the real dates lie beside the checkout only")
def test_real_years() -> None:
    """Ten summers never cost more than a little, five looks among them give nearly all."""
    pytest.importorskip("rasterio", reason="needs the extra geo")
    dates = read_dates(sorted(REAL.glob("*.tif")), band=4, columns=(0, 280))
    gains: dict[str, list[float]] = {"all": [], "half": []}
    for years, found in gains.items():
        for scene, _ in cut_scenes(dates.values, dates.masks, WaldConfig(years=years))[::3]:
            order = reference_first(scene.masks, None)
            lr, masks = with_channels(scene.lr, 3)[order], scene.masks[order]
            assert scene.hr is not None
            hr = scene.hr.astype(np.float32)
            found.append(score(robust_ibp(lr, masks, 3), hr) - score(alone(lr), hr))
    assert min(gains["all"]) > -0.2 and np.mean(gains["all"]) > -0.02
    assert np.mean(gains["half"]) > 1
