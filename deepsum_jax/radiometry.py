"""A stack's units beside those of training, for systems whose parameters go with these.

Such a system standardises by its training's mean and deviation, and takes reflectance from 0 to 1
for a black image of counts. It is warned of, or the stack is brought into training's units.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from deepsum_jax.bundle import Bundle
from deepsum_jax.systems.system import Stack, SuperResolved
from deepsum_jax.systems.table import system_of

Normalize = Literal["stack"]
_FAR, _RATIO = 3, 10  # deviations that means may differ by, and ratio of deviations


class Radiometry(NamedTuple):
    """training = gain · stack + offset, band by band."""

    gain: np.ndarray  # float64 [C], above 0
    offset: np.ndarray  # float64 [C]

    def band(self, channel: int) -> Radiometry:
        """That of one band."""
        return Radiometry(self.gain[[channel]], self.offset[[channel]])

    def there(self, stack: Stack) -> Stack:
        """A stack in training's units, float32. Its survey is for systems that take any unit, but
        for its shifts, and stays."""
        with np.errstate(invalid="ignore", over="ignore"):  # under masks there may be anything
            lr = stack.lr * self.gain + self.offset
            return stack._replace(lr=lr.astype(np.float32))

    def back(self, result: SuperResolved) -> SuperResolved:
        """A result in the stack's own units."""
        error = result.standard_error
        return result._replace(
            image=((result.image - self.offset) / self.gain).astype(np.float32),
            standard_error=None if error is None else (error / self.gain).astype(np.float32),
        )


class _Statistics(NamedTuple):
    mean: np.ndarray  # [C]
    deviation: np.ndarray  # [C]

    def __str__(self) -> str:
        bands = [
            f"mean {mean:.6g}, deviation {deviation:.3g}"
            for mean, deviation in zip(self.mean, self.deviation)
        ]
        if len(bands) == 1:
            return bands[0]
        return "; ".join(f"band {n}: {band}" for n, band in enumerate(bands, start=1))


def radiometry(
    bundle: Bundle, values: Callable[[], np.ndarray], normalize: Normalize | None = None
) -> Radiometry | None:
    """What brings a stack into training's units, where that is asked for.

    Args:
      bundle: the system.
      values: gives the stack's reliable pixels, or those that stand for them: [P, C] raw.
      normalize: "stack" maps each band's mean and deviation onto training's; None leaves it.

    Raises:
      ValueError: another word, or a system that takes any unit.

    Warns where a system's training saw other values, and nothing is asked for.
    """
    if normalize not in (None, "stack"):
        raise ValueError(f"normalize: found {normalize!r}, expected 'stack' or nothing")
    system = system_of(bundle.config)
    if not bundle.params or system.any_units:
        if normalize is not None:
            raise ValueError(
                f"normalize: found {normalize!r} for {system.label}, which takes any unit; leave "
                "it out"
            )
        return None
    pixels = values().astype(np.float64)
    found = _Statistics(pixels.mean(axis=0), pixels.std(axis=0))
    norm, bands = bundle.config.normalization, np.ones(pixels.shape[1])
    training = _Statistics(*(np.asarray(x) * bands for x in (norm.lr_mean, norm.lr_std)))
    if normalize is not None:
        # A band of one value has no contrast to map.
        lively = found.deviation > 1e-9 * np.abs(found.mean)
        gain = np.where(lively, training.deviation / np.where(lively, found.deviation, 1), 1.0)
        return Radiometry(gain, training.mean - gain * found.mean)
    ratio = found.deviation / training.deviation
    far = np.abs(found.mean - training.mean) > _FAR * training.deviation
    if np.any(far | ~((ratio >= 1 / _RATIO) & (ratio <= _RATIO))):
        told = training if bundle.config.channels > 1 else _Statistics(*(x[:1] for x in training))
        warnings.warn(
            f"the stack's values ({found}) are far from those of training ({told}): map them onto "
            'these with normalize="stack" (--normalize stack), or train on such data',
            UserWarning,
            stacklevel=5,  # whoever called `predict`
        )
    return None
