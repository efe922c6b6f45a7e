"""Robust IBP as a system: back-projection that believes a frame as far as it agrees (`robust`)."""

from __future__ import annotations

import dataclasses

import numpy as np

from deepsum_jax.config import Compute, ModelConfig, Section
from deepsum_jax.data.frames import clearest_first
from deepsum_jax.systems.robust.back_projection import ITERATIONS, ROUNDS, robust_ibp
from deepsum_jax.systems.robust.consensus import choose_reference, unusable
from deepsum_jax.systems.system import Params, Stack, SuperResolved, System

_CLEARLY = 0.02  # of a frame's pixels; masks that say less may overlook as much


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """Chosen on real dates and simulated scenes apart from those that are reported."""

    iterations: int = ITERATIONS  # back-projections in each round, 0–1000
    rounds: int = ROUNDS  # of weighing, 1–100

    def check(self) -> None:
        self._require(0 <= self.iterations <= 1000, "iterations", "0 to 1000")
        self._require(1 <= self.rounds <= 100, "rounds", "1 to 100")


def super_resolve(
    params: Params, stack: Stack, config: ModelConfig, compute: Compute
) -> SuperResolved:
    options = Options.from_dict(config.options)
    result = robust_ibp(
        stack.lr,
        stack.masks,
        config.scale,
        psf_sigma=config.psf_sigma,
        iterations=options.iterations,
        rounds=options.rounds,
        survey=stack.survey,
        return_details=True,
    )
    weights = result.weights.astype(np.float32)
    return SuperResolved(result.image, weights, frames_per_pixel=result.frames_per_pixel)


def preferred_reference(lr: np.ndarray, masks: np.ndarray, config: ModelConfig) -> int:
    """The clearest frame; where masks do not tell one, that which agrees with the others.

    By a few pixels masks tell one too, unless the others contradict it.
    """
    order = [int(n) for n in clearest_first(masks)]
    first, clear = order[0], masks.mean(axis=(1, 2))
    lead = clear[first] - clear[order[1]] if len(order) > 1 else 1.0
    if lead > _CLEARLY or all(unusable(frame, mask) for frame, mask in zip(lr, masks)):
        return first
    choice = choose_reference(lr, masks, config.scale, config.psf_sigma)
    return first if lead > 0 and not choice.contradicts(first) else choice.best


ROBUST_IBP = System(
    name="robust_ibp",
    label="robust IBP",
    options=Options,
    super_resolve=super_resolve,
    choose_reference=preferred_reference,
    gives=("frames_per_pixel",),
)
