"""Networks over stacks of N frames, on stacks of any number: a window of N moves by one frame.

Slides, "Testing with more images".
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepsum_jax import units
from deepsum_jax.config import Compute, ModelConfig
from deepsum_jax.data import resample
from deepsum_jax.data.fill import fill
from deepsum_jax.data.inputs import Inputs, make_inputs, needs_shifts
from deepsum_jax.data.prepare import PreparedScene
from deepsum_jax.data.registration import MaskedCorrelation, register_upsampled
from deepsum_jax.systems.robust.agreeing import agreeing
from deepsum_jax.systems.system import Params, Stack, SuperResolved

Array = jax.Array

_LARGE = 2**14  # pixels from which on one frame fills a device by itself
_MAX_WINDOW_SHIFT = 4  # HR pixels; a window's image further off is left out of the average


def stack_shapes(init: Callable[..., Any], config: ModelConfig) -> Any:
    """Shapes of what `init(images, masks, shifts)` makes, for one stack of a configuration."""
    side = config.scale * max(8, config.filter_size)
    stack = (1, config.num_frames, side, side)
    images = jax.ShapeDtypeStruct((*stack, config.channels), jnp.float32)
    masks = jax.ShapeDtypeStruct((*stack, 1), jnp.bool_)
    shifts = jax.ShapeDtypeStruct((*stack[:2], 2), jnp.float32)
    return jax.eval_shape(init, images, masks, shifts)["params"]


@dataclasses.dataclass(frozen=True)
class Forward:
    """A network over stacks from standardised inputs to raw counts; hashable, for jit.

    Attributes:
      run: (params, images, masks, config, compute, masks_registered, shifts, frame_by_frame) →
        an output with `sr` and `filters`.
    """

    run: Callable[..., Any]
    config: ModelConfig
    compute: Compute = Compute()

    def __call__(
        self, params: Params, images: Array, masks: Array, shifts: Array | None = None
    ) -> tuple[Array, Array]:
        """images [B, N, H, W, C], masks [B, N, H, W, 1], shifts [B, N, 2] where the system takes
        them → SR [B, H, W, C] in raw counts, and filters [B, N − 1, K, K]."""
        large = images.shape[2] * images.shape[3] >= _LARGE
        output = self.run(
            params, images, masks, self.config, self.compute, shifts=shifts, frame_by_frame=large
        )
        return units.from_output(output.sr, self.config.normalization), output.filters

    def on_stack(self, params: Params, given: Inputs) -> tuple[np.ndarray, np.ndarray]:
        """One stack: SR [H, W, C] raw, and filters [N − 1, K, K]."""
        shifts = None if given.shifts is None else given.shifts[None]
        sr, filters = _compiled(self)(params, given.images[None], given.masks[None], shifts)
        return np.asarray(sr[0], np.float32), np.asarray(filters[0], np.float32)


@functools.lru_cache(maxsize=8)
def _compiled(forward: Forward) -> Callable[..., Any]:
    """The jitted network; it compiles once per image size."""
    return jax.jit(forward)


def scene_image(
    forward: Forward, params: Params, scene: PreparedScene
) -> tuple[np.ndarray, np.ndarray]:
    """The network on a prepared scene's N clearest frames: SR [H, W, C] raw, and filters."""
    few = slice(forward.config.num_frames)
    given = make_inputs(scene.lr[few], scene.masks[few], scene.shifts[few], forward.config)
    return forward.on_stack(params, given)


class Windows(NamedTuple):
    """A scene's stack cut into windows of N frames, ready for the network."""

    members: tuple[tuple[int, ...], ...]  # per window, indices into the kept frames
    frames: np.ndarray  # [M, h, w, C] raw, finite: the kept frames
    masks: np.ndarray  # [M, h, w]
    shifts: np.ndarray | None  # [M, 2], on the first kept frame; only where they are needed


def make_windows(stack: Stack, config: ModelConfig) -> Windows:
    """Windows of N frames, each moved by one; too few frames repeat the first."""
    count, size = len(stack.lr), config.num_frames
    if count < size:
        members: tuple[tuple[int, ...], ...] = ((*range(count), *[0] * (size - count)),)
    else:
        members = tuple(tuple(range(n, n + size)) for n in range(count - size + 1))
    masks, shifts = stack.masks, None
    if config.takes_agreement:
        shifts, masks = agreeing(stack.lr, masks, config, stack.survey)
    frames = fill(stack.lr, masks, config.hidden)
    if shifts is None and needs_shifts(config):
        if stack.survey is not None:
            shifts = np.rint(stack.survey.shifts).astype(np.int32)
        else:
            shifts = register_upsampled(frames, masks, config.scale)
    return Windows(members, frames, masks, shifts)


def window_inputs(windows: Windows, number: int, config: ModelConfig) -> Inputs:
    """One window as the network takes it."""
    members = list(windows.members[number])
    shifts = windows.shifts
    if shifts is not None:  # the window's own first frame is its reference
        shifts = shifts[members] - shifts[members[0]]
    return make_inputs(windows.frames[members], windows.masks[members], shifts, config)


def average_windows(images: list[np.ndarray]) -> tuple[np.ndarray, list[bool]]:
    """Mean of the windows' images [H, W, C], each registered on the first by whole pixels.

    Returns:
      The mean, and which windows took part: those shifted by more than 4 pixels do not.
    """
    first = images[0]
    total, count = first.astype(np.float64), np.ones((*first.shape[:2], 1))
    part = [True]
    everywhere = np.ones(first.shape[:2], bool)
    correlation = MaskedCorrelation(
        first.mean(axis=-1), everywhere, search=min(2 * _MAX_WINDOW_SHIFT, min(first.shape[:2]) - 1)
    )
    for image in images[1:]:
        shift = correlation.shift(image.mean(axis=-1), everywhere)
        part.append(max(abs(s) for s in shift) <= _MAX_WINDOW_SHIFT)
        if part[-1]:
            inside = resample.translate(everywhere, shift, fill=False)[..., None]
            moved = np.moveaxis(resample.translate(np.moveaxis(image, -1, 0), shift), 0, -1)
            total += np.where(inside, moved, 0)
            count += inside
    return (total / count).astype(np.float32), part


def _frame_weights(windows: Windows, part: list[bool]) -> np.ndarray:
    """Each kept frame's share in the average, repeats included."""
    weights = np.zeros(len(windows.frames))
    for members, used in zip(windows.members, part):
        if used:
            np.add.at(weights, list(members), 1.0)
    return (weights / weights.sum()).astype(np.float32)


def super_resolve(
    forward: Forward, params: Params, stack: Stack, filters_by: str = ""
) -> SuperResolved:
    """A stack of any number of frames through all windows of a network.

    Args:
      filters_by: what proposes the network's filters; "" for a network without any.
    """
    windows = make_windows(stack, forward.config)
    images, filters = [], []
    for n in range(len(windows.members)):
        sr, taps = forward.on_stack(params, window_inputs(windows, n, forward.config))
        images.append(sr)
        filters.append(taps)
    image, part = average_windows(images)
    weights = _frame_weights(windows, part)
    return SuperResolved(image, weights, filters[0] if filters_by else None, filters_by)


def count_windows(frames: int, config: ModelConfig) -> int:
    """How many windows so many frames make."""
    return max(1, frames - config.num_frames + 1)
