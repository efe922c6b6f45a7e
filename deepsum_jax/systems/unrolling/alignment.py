"""From raw frames to an `Aligned` stack: cool, registered, in one brightness, in one unit.

The first half of robust back-projection, with its robust statistics: nothing here depends on the
unit that the values come in, or on a few pixels that show something else.
"""

from __future__ import annotations

import numpy as np

from deepsum_jax.data.aligned import Aligned
from deepsum_jax.data.survey import Survey
from deepsum_jax.systems.robust import agreement
from deepsum_jax.systems.robust.comparison import compare, cool_frames, register, stack_noise
from deepsum_jax.systems.robust.reference_image import mended, reference_image

STEPS = 20  # back-projections of the reference alone
_ROUGHLY = 2  # Gauss-Newton steps of registration, which the network refines on a sharper image
NOISY = 3.0  # of the noise: the least contrast that is taken as the unit


def align(
    lr: np.ndarray,
    masks: np.ndarray,
    scale: int,
    psf_sigma: float,
    survey: Survey | None = None,
) -> Aligned:
    """Registers frames of one band on frame 0 and brings them into its brightness.

    What the reference hides, and its hot pixels, are filled with what the others show there, and
    stay masked.

    Args:
      lr: [N, h, w, 1] raw; non-finite only where masked.
      masks: [N, h, w] bool, True = reliable; some of frame 0's are.
      scale: r.
      psf_sigma: deviation of the sensor's Gaussian, LR pixels.
      survey: of the large stack that the frames are a part of: where registration begins, and the
        one brightness, noise and contrast of all parts.
    """
    stack, units = cool_frames(lr, masks, scale, psf_sigma)
    level, unit = units
    reference = reference_image(stack, stack.masks[0], STEPS)
    shifts = register(stack, reference, _ROUGHLY, None if survey is None else survey.shifts)
    sensors = stack.sensors(shifts)
    match = None if survey is None else units.match(survey)
    found = [
        compare(stack, n, sensors[n], reference.image, reference.clear, match)
        for n in range(1, len(lr))
    ]
    noise = stack_noise(stack, found) if survey is None else survey.noise / unit
    matched = [stack.frames[0], *(f.matched for f in found)]
    own = stack.masks[0]
    if found:
        whole = mended(stack, reference, matched, shifts, noise, STEPS)
        own = whole.mask
        view = stack.sensors(np.zeros((1, 2)))[0].observe(whole.image)
        matched[0] = np.where(own[..., None], matched[0], view)
    if survey is None:
        spread = agreement.contrast(stack.frames[0], stack.masks[0])[0]
    else:
        spread = survey.contrast[0] / unit
    contrast = max(float(spread), NOISY * float(noise[0])) or 1.0  # of a flat frame, any
    return Aligned(
        np.stack(matched)[..., 0] / np.float32(contrast),
        np.stack([own, *stack.masks[1:]]),
        shifts.astype(np.float32),
        np.asarray(noise[0] / contrast, np.float32),
        np.asarray(level[0]),
        np.asarray(unit * contrast),
    )
