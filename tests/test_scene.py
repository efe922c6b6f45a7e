"""Scenes: what is accepted, what is refused, and that a refusal names scene and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepsum_jax.data.scene import Scene, check_stack

LR = np.arange(2 * 4 * 5, dtype=np.uint16).reshape(2, 4, 5)
MASKS = np.ones((2, 4, 5), bool)
HR, HR_MASK = np.zeros((12, 15), np.uint16), np.ones((12, 15), bool)


def make(**changes: Any) -> Scene:
    return Scene(**{"name": "field 7", "lr": LR, "masks": MASKS, **changes})


def test_defaults_and_properties() -> None:
    masks = MASKS.copy()
    masks[1, :, 0] = False
    scene = make(masks=masks, hr=HR)
    assert (scene.scale, scene.num_frames, scene.frames) == (3, 2, (0, 1))
    np.testing.assert_allclose(scene.clearance, [1, 0.8])
    assert scene.hr_mask is not None and scene.hr_mask.all()
    assert scene.lr.dtype == np.uint16
    assert make().scale is None


def test_bands_share_masks() -> None:
    scene = make(lr=np.zeros((2, 4, 5, 3), np.float32), hr=np.zeros((8, 10, 3)))
    assert scene.scale == 2


def test_zero_one_masks_become_bool() -> None:
    scene = make(masks=MASKS.astype(np.uint8), hr=HR, hr_mask=HR_MASK.astype(float))
    assert scene.masks.dtype == bool
    assert scene.hr_mask is not None and scene.hr_mask.dtype == bool


def test_non_finite_only_under_a_mask() -> None:
    lr = LR.astype(np.float32)
    lr[1, 2, 3] = np.nan
    masks = MASKS.copy()
    masks[1, 2, 3] = False
    make(lr=lr, masks=masks)
    check_stack(lr, masks, "stack")
    with pytest.raises(ValueError, match="stack: frames: found 1 non-finite"):
        check_stack(lr)


def test_non_finite_in_one_band_counts() -> None:
    lr = np.zeros((2, 4, 5, 3))
    lr[0, 0, 0, 2] = np.inf
    with pytest.raises(ValueError, match="found 1 non-finite"):
        check_stack(lr, MASKS)


def test_check_stack_without_masks() -> None:
    lr, masks = check_stack(LR.tolist())
    np.testing.assert_array_equal(lr, LR)
    assert masks.shape == LR.shape and masks.all()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"lr": LR[0]}, ValueError, r"\(4, 5\)"),
        ({"lr": LR[:0], "masks": MASKS[:0]}, ValueError, "at least one frame"),
        ({"masks": MASKS[:1]}, ValueError, r"\(1, 4, 5\).*\(2, 4, 5\)"),
        ({"masks": MASKS * 7}, ValueError, "the value 7"),
        ({"lr": LR * 1j}, TypeError, "complex128"),
        ({"lr": LR > 3}, TypeError, "bool"),
        ({"lr": [[[1, 2], [3]]]}, TypeError, "unequal"),
        ({"frames": (4,)}, ValueError, r"\(4,\).*2 different"),
        ({"frames": (4, 4)}, ValueError, "2 different"),
        ({"frames": (-1, 4)}, ValueError, "negative"),
        ({"frames": (0.5, 4)}, TypeError, "integers"),
        ({"hr": HR[:, :14]}, ValueError, r"\(12, 14\).*4 x 5"),
        ({"hr": HR[:8]}, ValueError, r"\(8, 15\).*4 x 5"),
        ({"hr": HR[:3, :3]}, ValueError, r"\(3, 3\)"),
        ({"hr": HR[..., None]}, ValueError, "same bands"),
        ({"hr": HR, "hr_mask": HR_MASK[:8, :10]}, ValueError, r"\(8, 10\).*\(12, 15\)"),
        ({"hr": HR + np.nan, "hr_mask": HR_MASK}, ValueError, "HR: found 180 non-finite"),
        ({"hr_mask": HR_MASK[:, :14]}, ValueError, "HR mask"),
        ({"hr_mask": HR_MASK[..., None]}, ValueError, r"\(12, 15, 1\)"),
        ({"norm": "best"}, TypeError, "norm 'best'"),
        ({"band": 4}, TypeError, "band 4"),
    ],
)
def test_refusals_are_one_line(changes: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        make(**changes)
    message = str(caught.value)
    assert "field 7" in message and "found" in message and "expected" in message
    assert "\n" not in message
