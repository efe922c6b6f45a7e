"""DeepSUM: the whole network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from deepsum_jax import units
from deepsum_jax.config import Compute, ModelConfig
from deepsum_jax.model import ops
from deepsum_jax.model.fusionnet import FusionNet
from deepsum_jax.model.regnet import RegNet, filters_from_logits
from deepsum_jax.model.sisrnet import SISRNet

Array = jax.Array
Params = Any  # a nested dict of arrays


class Output(NamedTuple):
    """What DeepSUM makes of a batch of stacks."""

    sr: Array  # [B, H, W, C], standardised by hr_mean and hr_std
    filters: Array  # [B, N − 1, K, K], the dynamic filters of frames 1 … N − 1
    masks: Array  # [B, N, H, W, 1] bool, on frame 0's grid
    base: Array  # [B, H, W, C], the global residual branch, in the units of `sr`


def check_stacks(images: Array, masks: Array, config: ModelConfig) -> None:
    """Raises ValueError where a batch of stacks is not the configuration's."""
    frames, channels = config.num_frames, config.channels
    shape = jnp.shape(images)
    if len(shape) != 5 or shape[1] != frames or shape[-1] != channels:
        raise ValueError(f"images: found shape {shape}, expected [B, {frames}, H, W, {channels}]")
    if jnp.shape(masks) != (*shape[:4], 1):
        raise ValueError(f"masks: found shape {jnp.shape(masks)}, expected {(*shape[:4], 1)}")


class DeepSUM(nn.Module):
    """SISRNet, RegNet with its global dynamic convolution, mutual inpainting, FusionNet.

    `DeepSUM(config).apply({"params": params}, images, masks)` gives an `Output`.

    Attributes:
      config: the network.
      compute: what it computes with.
      frame_by_frame: SISRNet, RegNet and the dynamic convolution take one frame of the stack after
        another. The values stay; beside the features themselves, memory is that of one frame. Not
        for training: derivatives would keep every step.
      training, axis_name: batch norm takes the batch's statistics; see `layers.Norm`.
    """

    config: ModelConfig
    compute: Compute = Compute()
    frame_by_frame: bool = False
    training: bool = False
    axis_name: str | None = None

    def setup(self) -> None:
        batch = (self.training, self.axis_name)
        self.sisrnet = SISRNet(self.config, self.compute, *batch)
        if self.config.learns_registration:
            regnet = nn.remat(RegNet) if self.compute.rematerialize else RegNet
            self.regnet = regnet(self.config, self.compute)
        self.fusionnet = FusionNet(self.config, self.compute, *batch)

    def __call__(
        self,
        images: Array,
        masks: Array,
        masks_registered: bool = False,
        shifts: Array | None = None,
    ) -> Output:
        """Super-resolves a batch of stacks.

        Args:
          images: [B, N, H, W, C], upsampled and standardised; frame 0 is the reference.
          masks: [B, N, H, W, 1] bool, True = reliable.
          masks_registered: static. False aligns the masks with frame 0 by the dynamic filters;
            True says that they lie on frame 0's grid.
          shifts: [B, N, 2], HR pixels, that register the frames on frame 0; for a configuration
            to which they are given (by cross-correlation or agreement), and no other.

        Raises:
          ValueError: shapes other than the configuration's, or too small for the filters.
        """
        self._check(images, masks, shifts)
        masks = masks.astype(bool)
        features = self.encode(images)  # [B, N, H, W, F]
        if self.config.inpainting == "before_registration":
            if not masks_registered:
                masks = self.align_masks(masks, self.propose_filters(features, shifts))
            features, images = self.inpaint(features, masks), self.inpaint(images, masks)
        filters = self.propose_filters(features, shifts)  # [B, N − 1, K, K]
        features, images = self.register(features, filters), self.register(images, filters)
        if self.config.inpainting == "after_registration":
            if not masks_registered:
                masks = self.align_masks(masks, filters)
            features, images = self.inpaint(features, masks), self.inpaint(images, masks)
        base = self.residual_base(images)  # [B, H, W, C]
        sr = self.fuse(features) + base  # [B, H, W, C]
        return Output(sr, filters, masks, base)

    def _check(self, images: Array, masks: Array, shifts: Array | None) -> None:
        check_stacks(images, masks, self.config)
        shape = jnp.shape(images)
        given = None if shifts is None else jnp.shape(shifts)
        wanted = (*shape[:2], 2) if self.config.takes_shifts else None
        if given != wanted:
            raise ValueError(f"shifts: found shape {given}, expected {wanted}")
        least = max(2, self.config.filter_size // 2 + 1)  # reflection needs that many pixels
        if min(shape[2:4]) < least:
            raise ValueError(
                f"images: found {shape[2]}×{shape[3]} pixels, expected at least {least}×{least}"
            )

    def encode(self, images: Array) -> Array:
        """SISRNet: [B, N, H, W, C] → features [B, N, H, W, F]."""
        if self.frame_by_frame:
            return _over_frames(lambda net, frame: net(frame), self.sisrnet, images)
        return self.sisrnet(images)

    def propose_filters(self, features: Array, shifts: Array | None = None) -> Array:
        """Features [B, N, H, W, F] → filters [B, N − 1, K, K], which RegNet proposes; or shifts
        [B, N, 2] → filters, where there is none."""
        size = self.config.filter_size
        if not self.config.learns_registration:
            at_rest = jnp.zeros((*features.shape[:2], 2), jnp.float32)
            moves = at_rest if shifts is None else jnp.asarray(shifts, jnp.float32)
            return ops.translation_filters(moves[:, 1:], size)
        proposals = self._proposals(features)
        if self.config.registration == "shifts":
            return ops.translation_filters(proposals, size)
        return filters_from_logits(proposals)

    def _proposals(self, features: Array) -> Array:
        """RegNet's output, [B, N − 1, K²] logits or [B, N − 1, 2] shifts."""
        if not self.frame_by_frame:
            return self.regnet(features)
        reference = self.regnet.reference(features[:, :1])

        def one_pair(net: RegNet, frame: Array) -> Array:
            return net.pairs(frame[:, None], reference)[:, 0]

        return _over_frames(one_pair, self.regnet, features, first=1)

    def register(self, x: Array, filters: Array) -> Array:
        """Global dynamic convolution of frames 1 … N − 1; frame 0 passes untouched."""
        if self.config.registration == "none":
            return x

        def convolve(x: Array, filters: Array) -> Array:
            return ops.global_dynamic_convolution(
                x, filters, self.compute.precision, self.compute.backend
            )

        if not self.frame_by_frame:
            return jnp.concatenate([x[:, :1], convolve(x[:, 1:], filters)], axis=1)

        def register_in_place(n: Array, x: Array) -> Array:
            frame, taps = lax.dynamic_slice_in_dim(x, n, 1, 1), filters[:, n - 1][:, None]
            return lax.dynamic_update_slice_in_dim(x, convolve(frame, taps), n, 1)

        return lax.fori_loop(1, x.shape[1], register_in_place, x)

    def align_masks(self, masks: Array, filters: Array) -> Array:
        """Masks on frame 0's grid: reliable where at least `mask_threshold` of what the filter
        gathers is. No gradient flows."""
        filters = lax.stop_gradient(filters)
        fraction = ops.global_dynamic_convolution(
            masks[:, 1:].astype(filters.dtype),
            filters,
            self.compute.precision,
            self.compute.backend,
        )
        # A filter sums to one but for rounding: a fully clear neighbourhood always passes.
        aligned = fraction >= self.config.mask_threshold - 1e-5
        return jnp.concatenate([masks[:, :1], aligned], axis=1)

    def inpaint(self, x: Array, masks: Array) -> Array:
        """Mutual inpainting of [B, N, H, W, ·] under masks on frame 0's grid."""
        return ops.mutual_inpainting(x, masks, self.compute.backend)

    def residual_base(self, images: Array) -> Array:
        """The global residual: mean of the registered, filled inputs, in output units; without
        one, the zero of those units."""
        if not self.config.global_residual:
            return jnp.zeros((images.shape[0], *images.shape[2:]), images.dtype)
        return units.input_to_output(images.mean(axis=1), self.config.normalization)

    def fuse(self, features: Array) -> Array:
        """FusionNet: [B, N, H, W, F] → residual [B, H, W, C]."""
        residual = self.fusionnet(features)
        return residual.astype(jnp.promote_types(residual.dtype, jnp.float32))


def _over_frames(
    step: Callable[[Any, Array], Array], net: nn.Module, frames: Array, first: int = 0
) -> Array:
    """A network on one frame after another from `first` on: [B, N, …] → [B, N − first, …]."""

    def turn(net: nn.Module, carry: tuple[()], n: Array) -> tuple[tuple[()], Array]:
        # Indexed here rather than scanned over: XLA would copy the frames first.
        return carry, step(net, lax.dynamic_index_in_dim(frames, n, axis=1, keepdims=False))

    scan = nn.scan(turn, variable_broadcast="params", split_rngs={"params": False}, out_axes=1)
    return scan(net, (), jnp.arange(first, frames.shape[1]))[1]
