"""What robust back-projection finds out about a stack, for networks that register by it."""

from __future__ import annotations

import numpy as np

from deepsum_jax.config import ModelConfig
from deepsum_jax.data.aligned import Agreeing
from deepsum_jax.data.survey import Survey
from deepsum_jax.systems.robust.back_projection import robust_ibp

_SAME = 0.25  # the belief in a pixel that differs by what is expected of the same ground


def agreeing(
    lr: np.ndarray, masks: np.ndarray, config: ModelConfig, survey: Survey | None = None
) -> Agreeing:
    """Registers frames on frame 0 and masks what of them disagrees with it.

    Args:
      lr: [N, h, w, C] raw; non-finite only where masked.
      masks: [N, h, w] bool, True = reliable; some of frame 0's are. They stay as they are there.
      config: gives the scale and the sensor's blur.
      survey: of the large stack that the frames are a part of.
    """
    found = robust_ibp(
        lr, masks, config.scale, psf_sigma=config.psf_sigma, survey=survey, return_details=True
    )
    same = masks & (found.beliefs >= _SAME)
    same[0] = masks[0]
    # What is left out lies nowhere, and shows nothing.
    return Agreeing(np.nan_to_num(found.shifts).astype(np.float32), same)
