"""What a system is: one entry of the table, declared in the system's own file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from deepsum_jax.config import Compute, ModelConfig, Section, TrainConfig
from deepsum_jax.data.aligned import Agreeing, Aligned
from deepsum_jax.data.inputs import View
from deepsum_jax.data.prepare import PreparedScene
from deepsum_jax.data.survey import Survey

Array = jax.Array
Params = Any  # a nested dict of arrays, by sub-tree
Batch = Mapping[str, Array]
Loss = Callable[[Params, Batch, TrainConfig, str | None], tuple[Array, dict[str, Array]]]
Image = Callable[[Params, PreparedScene, TrainConfig], tuple[np.ndarray, np.ndarray | None]]
# (frames [N, h, w] raw float32, the reference first; masks [N, h, w] bool, True = reliable; shifts
# [N, 2] HR pixels, as in `data.sensor`; blur [] LR pixels, the deviation of the sensor's
# Gaussian, 0 being the configuration's) → image [H, W] and standard error [H, W], raw. JAX can
# trace it.
Standalone = Callable[[Array, Array, Array, Array], tuple[Array, Array]]
Merit = Callable[[Params, Sequence[PreparedScene], TrainConfig], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a system's training.

    Attributes:
      name: also the name of its section in `TrainConfig` and of its folder.
      loss: (params, batch, config, axis name of the mapped devices or None) → [B] and named
        diagnostics, each [B].
      trains: the sub-trees that the optimiser updates.
      uses: further sub-trees that the loss reads.
      takes: sub-trees that earlier stages hand over; the others start fresh.
      view: what a record of its batches is; see `data.patches`.
      image: (params, validation scene, config) → SR [H, W, C] raw, and filters where there are
        any. The stage is judged by the mean cPSNR of these images.
      merit: (params, validation scenes, config) → named figures, for a stage that is judged by
        something else; the first counts, higher is better.
      log_loss: whether the loss is the logarithm of an error, and may be below zero.
    """

    name: str
    loss: Loss
    trains: tuple[str, ...]
    view: View
    uses: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    image: Image | None = None
    merit: Merit | None = None
    log_loss: bool = False


class Stack(NamedTuple):
    """The frames of a stack that are used, frame 0 the reference."""

    lr: np.ndarray  # [M, h, w, C] raw; non-finite only where masked
    masks: np.ndarray  # [M, h, w] bool, True = reliable
    survey: Survey | None = None  # of the large stack that these are a part of

    def band(self, channel: int) -> Stack:
        """One band of it."""
        survey = None if self.survey is None else self.survey.band(channel)
        return Stack(self.lr[..., [channel]], self.masks, survey)


class SuperResolved(NamedTuple):
    """What a system makes of a stack."""

    image: np.ndarray  # [H, W, C] float32, raw
    weights: np.ndarray  # [M] each frame's share; sums to one
    filters: np.ndarray | None = None  # [N − 1, K, K], the first window's dynamic filters
    filters_by: str = ""  # who proposed them
    standard_error: np.ndarray | None = None  # [H, W, C] raw, to be expected
    frames_per_pixel: np.ndarray | None = None  # [H, W] how many frames spoke


@dataclasses.dataclass(frozen=True)
class NoOptions(Section):
    """For systems without options."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """One way to super-resolve a stack.

    Attributes:
      name: what configurations call it.
      label: what tables call it.
      super_resolve: (params, stack, config, compute) → the image and how it came about.
      super_resolve_many: the same for stacks of one size, at most one for each of the devices,
        which work at once; for systems that can.
      options: the section that declares what `ModelConfig.options` may hold.
      check: raises ValueError where a configuration's fields do not go with its options.
      stages: the stages that it learns in; none for a system without parameters.
      param_shapes: shapes of its parameters by sub-tree, as `jax.ShapeDtypeStruct`s.
      stage_shapes: those of sub-trees that only its stages have.
      zeroed: (sub-tree, layer) whose kernels start at zero with `residual_init="zeros"`.
      reach: (config, frames' smaller side) → how far it registers frames, LR pixels.
      choose_reference: (lr [T, h, w, C], masks [T, h, w], config) → the reference frame of a stack
        for which no other rule is set, where the system knows better than clearance.
      align: (lr [N, h, w, C], masks [N, h, w], config) → the stack as the system takes it, for one
        that looks through the sensor; training prepares scenes by it.
      agree: (lr [N, h, w, C], masks [N, h, w], config) → shifts, and masks of what shows the
        reference's ground, for one that takes them where the configuration says so.
      standalone: (params, config, compute) → the system as one function of arrays, all but
        its registration; see `Standalone`. For one that can be exported.
      gives: what of `SuperResolved` it tells besides the image and the weights.
      any_units: whether the result is the same in any unit, whatever training's were.
      work: nominal operations on a scene of so many frames, of [H, W] upsampled pixels.
    """

    name: str
    label: str
    super_resolve: Callable[[Params, Stack, ModelConfig, Compute], SuperResolved]
    super_resolve_many: (
        Callable[[Params, Sequence[Stack], ModelConfig, Compute], list[SuperResolved]] | None
    ) = None
    options: type[Section] = NoOptions
    check: Callable[[ModelConfig], None] = lambda model: None
    stages: Callable[[ModelConfig], tuple[Stage, ...]] = lambda model: ()
    param_shapes: Callable[[ModelConfig], Any] = lambda model: {}
    stage_shapes: Callable[[ModelConfig], Any] = lambda model: {}
    zeroed: tuple[tuple[str, str], ...] = ()
    reach: Callable[[ModelConfig, int], float] = lambda model, side: side // 4
    choose_reference: Callable[[np.ndarray, np.ndarray, ModelConfig], int] | None = None
    align: Callable[[np.ndarray, np.ndarray, ModelConfig], Aligned] | None = None
    agree: Callable[[np.ndarray, np.ndarray, ModelConfig], Agreeing] | None = None
    standalone: Callable[[Params, ModelConfig, Compute], Standalone] | None = None
    gives: tuple[Literal["standard_error", "frames_per_pixel"], ...] = ()
    any_units: bool = False
    work: Callable[[ModelConfig, int, int, int], float] = lambda model, height, width, frames: 0.0


def equal_weights(frames: int) -> np.ndarray:
    """The share of each of so many frames in a plain mean."""
    return np.full(frames, 1 / frames, np.float32)
