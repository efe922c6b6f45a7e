"""The honest alternatives that stand beside every score: what anyone can have without a network."""

from __future__ import annotations

import numpy as np

from deepsum_jax.systems.bicubic_mean import bicubic_mean
from deepsum_jax.systems.ibp import ibp
from deepsum_jax.systems.system import Stack

COMPANY = {
    "bicubic": "bicubic",
    "ibp_one": "IBP of one",
    "bicubic_mean": "Bicubic+Mean",
    "ibp": "IBP",
}
"""What tables call them. The first two see the reference frame alone, the others all frames that
the system sees."""


def company(stack: Stack, scale: int, psf_sigma: float) -> dict[str, np.ndarray | None]:
    """Their images [H, W, C] of a stack, raw, by name; None for one that cannot see anything.

    Args:
      stack: the frames in use, frame 0 the reference.
      psf_sigma: of the sensor that IBP inverts, LR pixels.
    """
    one = Stack(stack.lr[:1], stack.masks[:1])
    blind = not one.masks.any()
    return {
        "bicubic": None if blind else bicubic_mean(one.lr, one.masks, scale),
        "ibp_one": None if blind else ibp(one.lr, one.masks, scale, psf_sigma=psf_sigma),
        "bicubic_mean": bicubic_mean(stack.lr, stack.masks, scale),
        "ibp": ibp(stack.lr, stack.masks, scale, psf_sigma=psf_sigma),
    }
