"""A bundle's system on a stack: which frames it sees, and what it makes of them.

What prediction, scoring and tiles have in common. Stacks are plain arrays here, checked by whoever
called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from deepsum_jax.bundle import Bundle
from deepsum_jax.config import Compute
from deepsum_jax.data.serving import Chosen, choose_frames
from deepsum_jax.radiometry import Radiometry
from deepsum_jax.systems.ensemble import self_ensemble
from deepsum_jax.systems.system import Stack, SuperResolved
from deepsum_jax.systems.table import system_of


def check_predictor(bundle: Bundle) -> None:
    """Raises where something is not a bundle, or not a whole system."""
    if not isinstance(bundle, Bundle):
        raise TypeError(
            f"params: found {type(bundle).__name__}, expected a Bundle as load_params returns it"
        )
    system_of(bundle.config)
    missing = bundle.missing_parts()
    if missing:
        raise ValueError(
            f"params: the bundle has no {', '.join(missing)}; it can start a training (--init) "
            "but not predict"
        )


def frames_in_use(
    bundle: Bundle,
    lr: np.ndarray,
    masks: np.ndarray,
    reference: int | None,
    max_frames: int | None = None,
    explicit: bool = False,
) -> Chosen:
    """The frames that a bundle's system sees of a stack [T, h, w, C]; see `data.serving`.

    Args:
      reference: that which a rule or the user (`explicit`) gives; None leaves it to the system, or
        takes the clearest.
    """
    config, system = bundle.config, system_of(bundle.config)
    if reference is None and system.choose_reference is not None and masks.any():
        reference = system.choose_reference(lr, masks, config)
    reach = system.reach(config, min(lr.shape[1:3]))
    return choose_frames(lr, masks, config.num_frames, reference, max_frames, reach, explicit)


def super_resolve(bundle: Bundle, stack: Stack, compute: Compute = Compute()) -> SuperResolved:
    """What the bundle's system makes of the frames that are used; C is the bundle's."""
    system = system_of(bundle.config)
    plain = dataclasses.replace(compute, self_ensemble=False)

    def run(stack: Stack) -> SuperResolved:
        return system.super_resolve(bundle.params, stack, bundle.config, plain)

    return self_ensemble(run, stack) if compute.self_ensemble else run(stack)


def super_resolve_bands(
    bundle: Bundle, stack: Stack, compute: Compute = Compute(), units: Radiometry | None = None
) -> SuperResolved:
    """The same of a stack of any bands: together where the bundle's are as many, else one by one,
    each with the bundle's only one.

    Args:
      units: what brings the stack into training's units, if it is to be.
    """
    return super_resolve_parts(bundle, [stack], compute, units)[0]


def super_resolve_parts(
    bundle: Bundle,
    parts: Sequence[Stack],
    compute: Compute = Compute(),
    units: Radiometry | None = None,
) -> list[SuperResolved]:
    """The same of parts of one size of a large stack, over all devices where the system can."""
    if units is not None:
        there = [units.there(part) for part in parts]
        return [units.back(result) for result in super_resolve_parts(bundle, there, compute)]
    count = parts[0].lr.shape[-1]
    if bundle.config.channels == count:
        return _each(bundle, parts, compute)
    bands = _each(bundle, [part.band(c) for part in parts for c in range(count)], compute)
    return [_joined(bands[n : n + count]) for n in range(0, len(bands), count)]


def _each(bundle: Bundle, stacks: Sequence[Stack], compute: Compute) -> list[SuperResolved]:
    many = system_of(bundle.config).super_resolve_many
    devices = jax.local_device_count()
    at_once = all(stack.survey is not None for stack in stacks)  # else their sizes may differ
    if many is None or compute.self_ensemble or devices == 1 or not at_once:
        return [super_resolve(bundle, stack, compute) for stack in stacks]
    results: list[SuperResolved] = []
    for n in range(0, len(stacks), devices):
        group = list(stacks[n : n + devices])
        idle = [group[-1]] * (devices - len(group))  # one compiled program for all groups
        results += many(bundle.params, [*group, *idle], bundle.config, compute)[: len(group)]
    return results


def _joined(bands: Sequence[SuperResolved]) -> SuperResolved:
    """Bands that were super-resolved one by one."""

    def join(images: Sequence[np.ndarray | None]) -> np.ndarray | None:
        known = [image for image in images if image is not None]
        return np.concatenate(known, axis=-1) if len(known) == len(bands) else None

    spoke = [b.frames_per_pixel for b in bands if b.frames_per_pixel is not None]
    return SuperResolved(
        np.concatenate([band.image for band in bands], axis=-1),
        np.stack([band.weights for band in bands]).mean(axis=0),
        standard_error=join([band.standard_error for band in bands]),
        frames_per_pixel=np.mean(spoke, axis=0) if spoke else None,
    )
