"""Many looks at one trained thing: the mean over flips and quarter turns (Timofte et al. 2016).

A network is not quite indifferent to how a scene lies. Its eight results, turned back, differ by
errors that partly cancel, at eight times the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from deepsum_jax.data.turns import CODES, turned, turned_back
from deepsum_jax.systems.system import Stack, SuperResolved


def _turned(stack: Stack, code: int) -> Stack:
    survey = None if stack.survey is None else stack.survey.turned(code)
    return Stack(turned(stack.lr, code, (1, 2)), turned(stack.masks, code, (1, 2)), survey)


def self_ensemble(run: Callable[[Stack], SuperResolved], stack: Stack) -> SuperResolved:
    """The mean of what `run` makes of a stack, its flips and its quarter turns.

    Standard errors and frames that spoke are means too: what errors cancel is not counted on.
    The filters are those of the stack as it lies.
    """
    results = [run(_turned(stack, code)) for code in CODES]

    def mean(images: Sequence[np.ndarray | None]) -> np.ndarray | None:
        back = [turned_back(x, n, (0, 1)) for n, x in zip(CODES, images) if x is not None]
        return np.asarray(np.mean(back, axis=0), np.float32) if len(back) == len(results) else None

    image = mean([r.image for r in results])
    assert image is not None
    return results[0]._replace(
        image=image,
        weights=np.asarray(np.mean([r.weights for r in results], axis=0), np.float32),
        standard_error=mean([r.standard_error for r in results]),
        frames_per_pixel=mean([r.frames_per_pixel for r in results]),
    )
