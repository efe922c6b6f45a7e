"""Unrolled back-projection with fresh parameters: what holds whatever was learned."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FAST, UNROLLED, fields

from deepsum_jax import Bundle, ModelConfig, Prediction, load_params, predict, save_params
from deepsum_jax.config import Compute, Settings, preset
from deepsum_jax.data.aligned import Aligned
from deepsum_jax.data.prepare import PreparedScene
from deepsum_jax.data.sensor import observe
from deepsum_jax.inference import super_resolve
from deepsum_jax.model.layers import apply
from deepsum_jax.systems import unrolled
from deepsum_jax.systems.system import Stack, SuperResolved
from deepsum_jax.systems.table import SYSTEMS, init_params, param_shapes, system_of
from deepsum_jax.systems.unrolling.back_projection import accelerated
from deepsum_jax.systems.unrolling.network import moves
from deepsum_jax.systems.unrolling.optics import inside, make_optics

SHIFTS = np.array([(0, 0), (1, -2), (0.4, 1.3), (-1.6, 0.7), (2, 1)])
SIDE, NOISE = 16, 10.0
Init = Literal["zeros", "glorot"]
BOTH = pytest.mark.parametrize("init", ["zeros", "glorot"])


def ground(scale: int = 3, seed: int = 0) -> np.ndarray:
    return fields(scale * SIDE, seed)


def looks(scale: int = 3, count: int = len(SHIFTS), seed: int = 0) -> np.ndarray:
    """uint16 [N, h, w], noisy frames of one ground."""
    hr, rng = ground(scale, seed), np.random.default_rng(seed)
    frames = np.stack([observe(hr, SHIFTS[n % len(SHIFTS)], scale) for n in range(count)])
    return np.rint(frames + rng.normal(0, NOISE, frames.shape)).astype(np.uint16)


def clear(frames: np.ndarray) -> np.ndarray:
    return np.ones(frames.shape[:3], bool)


@functools.cache
def bundle(init: Init = "zeros", scale: int = 3) -> Bundle:
    config = dataclasses.replace(UNROLLED, scale=scale)  # one, so that it is compiled once
    drawn = dataclasses.replace(config, residual_init=init)
    return Bundle(init_params(drawn, jax.random.key(1)), config)


def detailed(given: Bundle, stack: Any, masks: Any = None, compute: Compute = FAST) -> Prediction:
    return predict(given, stack, masks, reference=0, return_details=True, compute=compute)


def resolved(given: Bundle, lr: np.ndarray, masks: np.ndarray) -> SuperResolved:
    """Of just these frames, in this order."""
    return super_resolve(given, Stack(lr[..., None], masks), FAST)


def error_of(result: SuperResolved | Prediction) -> np.ndarray:
    assert result.standard_error is not None
    return result.standard_error


def spoken(result: SuperResolved | Prediction) -> np.ndarray:
    """How many frames spoke, apart from the border."""
    assert result.frames_per_pixel is not None
    return result.frames_per_pixel[6:-6, 6:-6]


# --- units, order, number of frames


@BOTH
@pytest.mark.parametrize(
    ("gain", "offset", "dtype"),
    [
        (2, 100, np.uint16),  # counts
        (1e-4, 0, np.float32),  # reflectance
        (1e-4, -0.7, np.float64),  # an anomaly
        (1, 1e6, np.float64),
        (1e-9, 2e-6, np.float64),  # radiance
    ],
    ids=str,
)
def test_gain_and_offset_of_the_stack(init: Init, gain: float, offset: float, dtype: Any) -> None:
    lr = looks()
    plain = detailed(bundle(init), lr)
    other = detailed(bundle(init), (gain * lr.astype(np.float64) + offset).astype(dtype))
    expected = gain * plain.image.astype(np.float64) + offset
    deviation = gain * plain.image.std()
    np.testing.assert_allclose(other.image, expected, rtol=0, atol=1e-4 * deviation)
    np.testing.assert_allclose(error_of(other), gain * error_of(plain), rtol=1e-3)
    np.testing.assert_allclose(other.weights, plain.weights, atol=1e-4)


@BOTH
def test_order_of_the_others(init: Init) -> None:
    lr, order = looks(), [0, 3, 1, 4, 2]
    once = resolved(bundle(init), lr, clear(lr))
    again = resolved(bundle(init), lr[order], clear(lr))
    np.testing.assert_allclose(again.image, once.image, atol=1e-4 * once.image.std())
    np.testing.assert_allclose(again.weights, once.weights[order], atol=1e-4)
    np.testing.assert_allclose(error_of(again), error_of(once), rtol=1e-3)


def test_any_number_of_frames() -> None:
    """From one set of parameters. The more frames agree, the more speak at a pixel."""
    counts = []
    for number in (1, 2, 5, 9):
        result = detailed(bundle(), looks(count=number))
        assert result.image.shape == error_of(result).shape == (48, 48)
        assert np.isfinite(result.image).all() and (error_of(result) > 0).all()
        assert result.weights.shape == (number,) and result.weights.min() > 0.05
        assert result.weights.sum() == pytest.approx(1, abs=1e-5)
        counts.append(spoken(result))
    np.testing.assert_allclose(counts[0], 1, atol=1e-5)
    means = [float(count.mean()) for count in counts]
    assert means[1] > 1.6 and means[2] > means[1] + 1.5 and 6 < means[3] <= 9.1


@pytest.mark.parametrize("number", [1, 2])
def test_formulations_agree(number: int) -> None:
    """Those of processors, which take frames in groups, as well."""
    lr = looks(count=number)
    plain = detailed(bundle("glorot"), lr)
    other = detailed(bundle("glorot"), lr, compute=Compute())
    np.testing.assert_allclose(other.image, plain.image, atol=1e-4 * plain.image.std())


def test_looks_are_worth_more_than_one() -> None:
    """Even before anything is learned."""
    lr, hr = looks(), ground()[6:-6, 6:-6]
    errors = []
    for number in (1, 5):
        image = detailed(bundle(), lr[:number]).image[6:-6, 6:-6]
        errors.append(float(np.sqrt(np.mean((image - hr) ** 2))))
    assert errors[1] < 0.97 * errors[0] < 0.5 * hr.std()


def left_by(factors: tuple[Any, Any], value: float) -> float:
    """What back-projections leave of what the sensors weaken to a part `value`."""
    now = before = 1.0
    for momentum, length in zip(*(np.asarray(f, np.float64) for f in factors)):
        now, before = now + momentum * (now - before) - length * value * now, now
    return now


def test_momentum_goes_as_far_as_the_square_of_plain_steps() -> None:
    for steps in (3, 8, 12):
        factors = accelerated(steps)
        whole = [abs(left_by(factors, value)) for value in np.linspace(0.001, 1, 500)]
        assert max(whole) <= 1
        plain = (1 - 3 / steps**2) ** steps
        assert abs(left_by(factors, 3 / steps**2)) < 0.3 and (steps == 3 or plain > 0.6)
        assert left_by(factors, 0) == 1


def test_many_looks_bear_longer_steps_than_few() -> None:
    """Momentum sharpens where many frames speak, and goes as far as plain steps where few do."""
    hr, inner = ground(), slice(6, -6)
    plain = dataclasses.replace(
        bundle().config, options=Settings({**UNROLLED.options, "iterations": 8, "momentum": False})
    )
    further = dataclasses.replace(plain, options=Settings({**plain.options, "momentum": True}))
    ratios = []
    for count in (2, 10):
        lr = looks(count=count)
        errors = [
            np.sqrt(np.mean(np.square(detailed(given, lr).image - hr)[inner, inner]))
            for given in (Bundle(bundle().params, further), Bundle(bundle().params, plain))
        ]
        ratios.append(errors[0] / errors[1])
    assert ratios[1] < 0.97 < ratios[0] < 1.03


@BOTH
def test_masked_frames_are_as_if_they_were_not_there(init: Init) -> None:
    """To a last digit, which programs for one and for five frames round differently; in a network
    that corrects what it likes."""
    lr = looks()
    alone = resolved(bundle(init), lr[:1], clear(lr[:1]))
    masks = clear(lr)
    masks[1:] = False
    hidden = resolved(bundle(init), lr, masks)
    np.testing.assert_allclose(hidden.image, alone.image, rtol=2e-6)
    np.testing.assert_allclose(error_of(hidden), error_of(alone), rtol=2e-6)
    assert hidden.weights.tolist() == [1, 0, 0, 0, 0]
    more = looks(count=12)
    assert np.abs(resolved(bundle(init), more, clear(more)).image - alone.image).max() > 50


@BOTH
def test_what_a_mask_hides_has_no_say(init: Init) -> None:
    lr = looks().astype(np.float64)
    masks = np.random.default_rng(3).random(lr.shape) < 0.9
    masks[0, 5:9, 5:9] = masks[2, :, :8] = False
    once = resolved(bundle(init), lr, masks)
    assert np.isfinite(once.image).all()
    for value in (np.nan, 6e4, -np.inf):
        other = np.where(masks, lr, value)
        again = resolved(bundle(init), other, masks)
        np.testing.assert_array_equal(again.image, once.image)
        np.testing.assert_array_equal(error_of(again), error_of(once))
        np.testing.assert_array_equal(again.weights, once.weights)
    told = detailed(bundle(init), np.where(masks, lr, np.nan), masks)
    order = list(told.frames_used)
    expected = resolved(bundle(init), lr[order], masks[order]).image[..., 0]
    np.testing.assert_array_equal(told.image, expected)


def test_what_the_reference_hides_comes_from_the_others() -> None:
    lr, masks = looks(), clear(looks())
    masks[0, 5:9, 5:9] = False
    hole = (slice(15, 27), slice(15, 27))
    error = np.abs(resolved(bundle(), lr, masks).image[..., 0] - ground())
    alone = np.abs(resolved(bundle(), lr[:1], masks[:1]).image[..., 0] - ground())
    assert error[hole].mean() < 0.5 * alone[hole].mean()


@pytest.mark.parametrize("scale", [2, 4])
def test_scales(scale: int) -> None:
    lr, hr = looks(scale), ground(scale)
    result = detailed(bundle(scale=scale), lr)
    assert result.image.shape == hr.shape
    inner = slice(2 * scale, -2 * scale)
    error = (result.image - hr)[inner, inner]
    assert error.std() < 0.5 * hr.std() and abs(error.mean()) < 0.1 * hr.std()


def test_bands_run_one_by_one() -> None:
    one = looks().astype(np.float32)
    stack = np.stack([one, one[:, ::-1] / 8, one + 500], axis=-1)
    whole = detailed(bundle(), stack)
    assert whole.image.shape == error_of(whole).shape == (48, 48, 3)
    assert whole.weights.sum() == pytest.approx(1, abs=1e-5) and spoken(whole).mean() > 3
    for band in range(3):
        alone = detailed(bundle(), stack[..., band])
        assert alone.frames_used == whole.frames_used
        np.testing.assert_array_equal(whole.image[..., band], alone.image)
        np.testing.assert_array_equal(error_of(whole)[..., band], error_of(alone))


# --- who is believed, and where frames lie


@BOTH
def test_another_place_is_hardly_believed(init: Init) -> None:
    lr = looks()
    lr[4] = looks(seed=9)[4]
    result = resolved(bundle(init), lr, clear(lr))
    assert result.weights[4] < 0.1 * result.weights[1:4].min()
    # Nor does it take the others' credit.
    assert (
        result.weights[1:4].min() > 0.7 * resolved(bundle(init), lr[:4], clear(lr[:4])).weights[3]
    )


def test_moves_find_fractions_of_a_pixel() -> None:
    """From whole LR pixels on, however bright the frames are; frame 0 stays whatever it shows."""
    hr = ((ground() - 6000) / 600).astype(np.float32)
    frames = np.stack([observe(hr, shift, 3) for shift in [(0.7, -0.6), *SHIFTS[1:]]])
    frames[2] += 0.3
    masks = clear(frames)
    masks[3, :, :5], frames[3, :, :5] = False, 40  # and whatever is masked
    found, image = jnp.zeros((5, 2)), jnp.asarray(hr)
    for _ in range(8):
        optics = make_optics((SIDE, SIDE), found, 3, 0.37)
        weights = jnp.asarray(masks & np.asarray(inside((SIDE, SIDE), found, 3)), jnp.float32)
        difference = jnp.asarray(frames) - optics.observe(image)
        step = moves(image, difference, weights, optics)
        assert np.abs(step).max() <= 0.5
        found = found + step
    assert np.asarray(found[0]).tolist() == [0, 0]
    np.testing.assert_allclose(found, SHIFTS, atol=0.05)


def test_nothing_is_learned_through_the_moves() -> None:
    optics = make_optics((8, 8), jnp.zeros((2, 2)), 3, 0.37)
    image = jnp.asarray(fields(24) / 600, jnp.float32)
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 8, 8))
    difference = jnp.asarray(noise, jnp.float32)

    def total(difference: jax.Array) -> jax.Array:
        return (moves(image, difference, jnp.ones((2, 8, 8)), optics) @ jnp.arange(1.0, 3)).sum()

    assert float(total(difference)) != 0
    assert not np.any(jax.grad(total)(difference))


def test_shifts_that_are_a_little_off_are_mended() -> None:
    """In the image of a validation scene, which comes in raw units."""
    hr = ((ground() - 6000) / 600).astype(np.float32)
    frames = np.stack([observe(hr, shift, 3) for shift in SHIFTS]).astype(np.float32)
    config = dataclasses.replace(preset("tiny"), model=bundle().config, compute=FAST)
    off = np.array([(0, 0), (0.8, 0.6), (-0.8, 0.8), (0.6, -0.9), (-0.6, -0.8)])
    none = np.zeros((0, 2), np.int32)

    def image(shifts: np.ndarray, count: int = 5) -> np.ndarray:
        aligned = Aligned(
            frames[:count], clear(frames[:count]), shifts[:count].astype(np.float32),
            np.asarray(0.01, np.float32), np.asarray(6000.0), np.asarray(600.0),
        )  # fmt: skip
        scene = PreparedScene(
            "a", "NIR", frames[..., None], clear(frames), np.rint(shifts).astype(np.int32),
            hr[..., None], np.ones(hr.shape, bool), none, none, aligned,
        )  # fmt: skip
        made, filters = unrolled.scene_image(bundle().params, scene, config)
        assert made.shape == (48, 48, 1) and filters is None
        return made[6:-6, 6:-6, 0]

    right, mended = image(SHIFTS), image(SHIFTS + off)
    # All frames count, also more than the network trains on.
    assert np.abs(image(SHIFTS, 3) - right).mean() > 0.005 * ground().std()
    assert (right - ground()[6:-6, 6:-6]).std() < 0.5 * ground().std()
    assert np.abs(mended - right).mean() < 0.01 * ground().std()


# --- settings, bundles


def options(**changes: Any) -> ModelConfig:
    return ModelConfig.from_dict({"system": "unrolled", "options": changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": 1}, "features: found 1, expected 2"),
        ({"agreement_features": 0}, "agreement_features: found 0, expected 2"),
        ({"blocks": -1}, "blocks: found -1, expected 0 to 64"),
        ({"iterations": -1}, "iterations: found -1, expected 0 to 64"),
        ({"truth": "somewhere"}, "truth: found 'somewhere'"),
        ({"feature": 8}, "features"),
    ],
)
def test_options_are_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"model.options of unrolled: .*{words}"):
        system_of(options(**changes))


def test_several_channels_are_refused() -> None:
    config = dataclasses.replace(options(), channels=3)
    with pytest.raises(ValueError, match=r"model\.channels: found 3, expected 1: bands are super-"):
        param_shapes(config)


def test_without_blocks_and_iterations() -> None:
    """The least network: the parts that are left out cost no parameters, and it still runs."""
    least = options(features=2, own_blocks=0, blocks=0, agreement_features=2, iterations=0)
    shapes = param_shapes(least)
    assert list(shapes) == ["own", "agreement", "fusion", "error"]
    assert list(shapes["own"]) == list(shapes["fusion"]) == ["enter", "leave"]
    lr = looks(count=2)
    result = detailed(Bundle(init_params(least, jax.random.key(0)), least), lr)
    assert np.isfinite(result.image).all()
    work = SYSTEMS["unrolled"].work
    assert 0 < work(least, 48, 48, 2) < work(least, 48, 48, 9) < work(options(), 48, 48, 9)


def test_zeros_begin_with_plain_back_projection() -> None:
    params = bundle("zeros").params
    for part in ("own", "agreement", "fusion", "error"):
        assert not params[part]["leave"]["kernel"].any()
        assert bundle("glorot").params[part]["leave"]["kernel"].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_bundles(dtype: Any, tmp_path: Path) -> None:
    """Whole and in half precision, with their options."""
    given = bundle("glorot")
    params = jax.tree.map(lambda x: x.astype(dtype), given.params)
    save_params(tmp_path / "b", Bundle(params, given.config))
    read = load_params(tmp_path / "b")
    assert {leaf.dtype for leaf in jax.tree.leaves(read.params)} == {np.dtype(dtype)}
    jax.tree.map(np.testing.assert_array_equal, read.params, params)
    assert read.config == given.config and read.config.options["truth"] == "grid"
    before, after = (detailed(one, looks()) for one in (given, read))
    tolerance = 0 if dtype is np.float32 else 0.02 * before.image.std()
    np.testing.assert_allclose(after.image, before.image, rtol=0, atol=tolerance)


def test_half_the_precision_of_the_convolutions() -> None:
    lr = looks()
    result = detailed(bundle("glorot"), lr, compute=Compute(dtype="bfloat16", backend="plain"))
    assert result.image.dtype == error_of(result).dtype == np.float32
    wanted = detailed(bundle("glorot"), lr)
    np.testing.assert_allclose(result.image, wanted.image, atol=0.1 * wanted.image.std())


def test_every_product_has_the_precision_that_is_asked_for() -> None:
    """The sensors' too, which are the network's own einsums."""
    given = (looks()[:3], clear(looks()[:3]), np.zeros((3, 2), np.float32), np.float32(0.1))
    module = unrolled.network(UNROLLED, FAST)
    program = str(jax.make_jaxpr(functools.partial(apply, module, bundle().params))(*given))
    products = program.count("dot_general[") + program.count("conv_general_dilated[")
    assert products > 20 and program.count("Precision.HIGHEST, Precision.HIGHEST") == products
