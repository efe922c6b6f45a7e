"""What a mask hides has no say, and one bad pixel stays one bad pixel."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import scipy.ndimage

from deepsum_jax import Bundle, Compute, ModelConfig, predict
from deepsum_jax.config import PRESETS
from deepsum_jax.data.fill import fill, fill_hidden, without_outliers
from deepsum_jax.systems.table import init_params

FAST = Compute(backend="plain")
CODES = (np.nan, 0.0, -9999.0, -32768.0, 65535.0, 20000.0)
OURS = ModelConfig(num_frames=3, features=4, filter_size=5, sisrnet_layers=2, hidden="filled")


def bundle(system: str) -> Bundle:
    config = dataclasses.replace(OURS, system=system)
    return Bundle(init_params(config, jax.random.key(0)), config)


def clouded() -> tuple[np.ndarray, np.ndarray]:
    """A stack [3, 18, 18] as Sentinel-2's, and masks with a cloud in each frame."""
    rng = np.random.default_rng(0)
    ground = scipy.ndimage.gaussian_filter(rng.normal(size=(18, 18)), 2)
    stack = 2000 + 800 * ground / ground.std() + rng.normal(0, 5, (3, 18, 18))
    masks = np.ones(stack.shape, bool)
    masks[0, 4:8, 4:8] = masks[1, :, 15:] = masks[2, 10:, :3] = False
    return stack, masks


SYSTEMS = ("bicubic_mean", "ibp", "sisr", "sisr_mean", "duf", "deepsum")


@pytest.mark.filterwarnings("ignore:the stack's values")
@pytest.mark.parametrize("system", SYSTEMS)
def test_no_system_of_ours_sees_what_a_mask_hides(system: str) -> None:
    stack, masks = clouded()
    expected = predict(bundle(system), stack, masks, compute=FAST)
    for code in CODES:
        seen = predict(bundle(system), np.where(masks, stack, code), masks, compute=FAST)
        np.testing.assert_array_equal(seen, expected, err_msg=f"under the mask: {code}")


def test_the_rule_travels_with_the_parameters() -> None:
    assert ModelConfig().hidden == "published"
    assert ModelConfig.from_dict({"features": 8}).hidden == "published"
    assert {n: p.model.hidden for n, p in PRESETS.items()} == {
        "reference": "published",
        "demo": "filled",
        "unrolled": "filled",
        "tiny": "filled",
    }
    stack, masks = clouded()
    lr = np.where(masks, stack, 4000.0)[..., None]
    np.testing.assert_array_equal(fill(lr, masks, "published"), lr.astype(np.float32))
    np.testing.assert_array_equal(fill(lr, masks, "filled"), fill_hidden(lr, masks))


def test_hidden_pixels_take_the_nearest_reliable_value() -> None:
    lr = np.arange(12.0).reshape(1, 3, 4, 1)
    masks = np.ones((1, 3, 4), bool)
    masks[0, 1, 1:] = masks[0, :, 3] = False
    filled = fill_hidden(lr, masks)[0, ..., 0]
    # [1, 1] lies next to [0, 1], [2, 1] and [1, 0]; [1, 2] to [0, 2] and [2, 2].
    assert filled[1, 1] in (1, 9, 4)
    assert filled[1, 2] in (2, 10)
    assert (filled[0, 3], filled[2, 3]) == (2, 10)
    np.testing.assert_array_equal(filled[masks[0]], lr[0, ..., 0][masks[0]])


def test_a_frame_without_a_reliable_pixel_is_another() -> None:
    lr = np.stack([np.full((2, 2, 1), np.nan), np.full((2, 2, 1), 7.0)])
    masks = np.zeros((2, 2, 2), bool)
    masks[1, 0] = True
    np.testing.assert_array_equal(fill_hidden(lr, masks), 7)
    np.testing.assert_array_equal(fill_hidden(lr, np.zeros_like(masks)), 0)


@pytest.mark.parametrize("hot", [0, 2])
@pytest.mark.parametrize("system", ["bicubic_mean", "ibp"])
def test_one_hot_pixel_stays_one(system: str, hot: int) -> None:
    rng = np.random.default_rng(3)
    ground = scipy.ndimage.gaussian_filter(rng.normal(size=(40, 40)), 2)
    stack = 2000 + 400 * ground / ground.std() + rng.normal(0, 4, (4, 40, 40))
    one = Bundle({}, ModelConfig(system=system))
    expected = predict(one, stack, reference=0)
    stack[hot, 20, 20] = 60000
    moved = np.abs(predict(one, stack, reference=0) - expected)
    away = np.hypot(*(np.indices(moved.shape) - 61)) > 40  # HR pixels
    assert moved[away].max() < 4  # of a deviation of 400
    assert (moved > 4).mean() < 0.1


def test_outliers_lie_further_than_the_range_of_the_rest() -> None:
    lr = np.random.default_rng(0).uniform(0, 10, (2, 20, 20, 1))
    masks = np.ones((2, 20, 20), bool)
    masks[0, 5, 5] = False
    lr[0, 5, 5], lr[0, 1, 1], lr[1, 2, 2] = np.nan, 25, -15
    expected = masks.copy()
    expected[0, 1, 1] = expected[1, 2, 2] = False
    np.testing.assert_array_equal(without_outliers(lr, masks), expected)
    flat = np.full((1, 4, 4, 1), 3.0)
    assert without_outliers(flat, np.ones((1, 4, 4), bool)).all()
