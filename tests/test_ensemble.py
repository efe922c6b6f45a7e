"""Self-ensemble: turns that undo each other, and the mean over them."""

from __future__ import annotations

import numpy as np
import pytest

from deepsum_jax import Bundle, ModelConfig, predict
from deepsum_jax.config import Compute
from deepsum_jax.data.turns import CODES, turned, turned_back
from deepsum_jax.systems.ensemble import self_ensemble
from deepsum_jax.systems.system import Stack, SuperResolved

LR = np.random.default_rng(0).uniform(100, 900, (3, 12, 9, 1)).astype(np.float32)
MASKS = np.ones(LR.shape[:3], bool)


def test_the_eight_turns_differ_and_undo_each_other() -> None:
    x = LR[0]
    seen = {turned(x, code, (0, 1)).tobytes() for code in CODES}
    assert len(seen) == 8
    for code in CODES:
        np.testing.assert_array_equal(turned_back(turned(x, code, (0, 1)), code, (0, 1)), x)


def test_the_mean_is_taken_where_the_scene_lies() -> None:
    """A system that copies the reference gives it back, and one that ramps loses its ramp."""

    def copy(stack: Stack) -> SuperResolved:
        return SuperResolved(stack.lr[0], np.eye(3, dtype=np.float32)[0])

    np.testing.assert_allclose(self_ensemble(copy, Stack(LR, MASKS)).image, LR[0], rtol=1e-6)

    def ramp(stack: Stack) -> SuperResolved:
        image = np.zeros_like(stack.lr[0])
        image[0] = 8.0  # the first row, however the scene lies
        spoke = np.full(image.shape[:2], 2.0, np.float32)
        return SuperResolved(image, np.full(3, 1 / 3, np.float32), None, "", image + 1, spoke)

    found = self_ensemble(ramp, Stack(LR, MASKS))
    border = np.zeros(LR.shape[1:3])
    border[[0, -1]] += 2  # two of eight turns put it there
    border[:, [0, -1]] += 2
    np.testing.assert_allclose(found.image[..., 0], border)
    assert found.standard_error is not None and found.frames_per_pixel is not None
    np.testing.assert_allclose(found.standard_error[..., 0], border + 1)
    np.testing.assert_allclose(found.frames_per_pixel, 2.0)
    np.testing.assert_allclose(found.weights, 1 / 3)


@pytest.mark.parametrize("system", ["ibp", "robust_ibp"])
def test_predict_takes_it(system: str) -> None:
    """Systems that are indifferent to turns give the same image but for rounding."""
    bundle = Bundle({}, ModelConfig(system=system, scale=2))
    plain = predict(bundle, LR[..., 0], MASKS, reference=0)
    looks = predict(bundle, LR[..., 0], MASKS, reference=0, compute=Compute(self_ensemble=True))
    assert not np.array_equal(plain, looks) or system == "ibp"
    np.testing.assert_allclose(looks, plain, atol=0.1 * plain.std())
