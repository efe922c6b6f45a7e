"""Weighted back-projection as the network unrolls it: plain, or with momentum."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deepsum_jax.systems.robust.reference_image import SEEN, STEP, crowd
from deepsum_jax.systems.unrolling.optics import Optics

Array = jax.Array

_FEW = 0.3  # length of a step with momentum where no frame speaks besides the reference


def back_projected(
    difference: Array, weights: Array, optics: Optics, steps: int, momentum: bool
) -> Array:
    """What weighted back-projection of differences [N, h, w] adds to an image, [H, W].

    Args:
      weights: [N, h, w], 0..1.
      momentum: whether the steps are the ν-method's, and the longer the more frames speak.
    """
    share = share_of(optics.back_project(weights))
    if momentum:
        others = optics.back_project(weights.at[0].set(0.0))
        once = optics.reference.back_project(jnp.ones_like(weights[:1]))
        share = share / STEP * (_FEW + (1 - _FEW) * crowd(others / once))

    def closer(
        images: tuple[Array, Array], factors: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        (now, before), (onwards, length) = images, factors
        left = difference - optics.observe(now)
        back = share * optics.back_project(weights * left)
        return (now + onwards * (now - before) + length * back, now), None

    start = jnp.zeros(share.shape, difference.dtype)
    factors = accelerated(steps) if momentum else (jnp.zeros(steps), jnp.ones(steps))
    return lax.scan(closer, (start, start), factors)[0][0]


def share_of(seen: Array) -> Array:
    """What a back-projection is multiplied by, [H, W]; nothing where nothing was seen."""
    return jnp.where(seen > SEEN / 9, STEP / jnp.maximum(seen, SEEN / 9), 0.0)


def accelerated(steps: int) -> tuple[Array, Array]:
    """Momentum and length of each step of the ν-method, ν = 1, [steps] each.

    So many of its steps go about as far as their square of plain ones of length 1 (Hanke,
    "Accelerated Landweber iterations for the solution of ill-posed equations", Numerische
    Mathematik 60, 1991).
    """
    k, nu = np.arange(1, steps + 1), 1.0
    momentum = (k - 1) * (2 * k - 3) * (2 * k + 2 * nu - 1) / (
        (k + 2 * nu - 1) * (2 * k + 4 * nu - 1) * (2 * k + 2 * nu - 3)
    )  # fmt: skip
    length = 4 * (2 * k + 2 * nu - 1) * (k + nu - 1) / ((k + 2 * nu - 1) * (2 * k + 4 * nu - 1))
    return jnp.asarray(momentum, jnp.float32), jnp.asarray(length, jnp.float32)
