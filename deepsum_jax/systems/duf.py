"""DUF: dynamic upsampling filters for video (Jo et al. 2018), on stacks in place of videos.

Jo, Oh, Kang & Kim, "Deep Video Super-Resolution Network Using Dynamic Upsampling Filters Without
Explicit Motion Compensation", CVPR 2018, in its form of 16 layers. A network sees the LR frames as
they lie and makes, for each LR pixel of the reference, r² filters that gather its r² HR pixels
from the 5×5 LR pixels around it, and a residual.

What differs from the paper:

* **The reference** is frame 0, not the centre of a video. The dense blocks that take two frames
  away crop the frame axis at both ends, so what lies in the middle stays: frames are put in the
  order […, 3, 1, 0, 2, 4, …]. Beyond that, frames have no order in time; those that are early in
  the stack, the clearest where stacks are ordered by clearance, come to lie next to the reference.
* **The number of frames** is N. (N − 1)/2 dense blocks take two away each; before them come as
  many that keep them as make six, for N = 7 the paper's 3 + 3, for N = 9 2 + 4, and from N = 13 on
  none. Where frames are kept, the frame axis is padded with zeros, as in the paper.
* **Instance norm** in place of batch norm, on every frame by itself, as in DeepSUM: frames of a
  stack are years apart and differ in brightness, which this takes away. A convolution with a norm
  behind it has no bias, for the norm would remove it.
* **Padding** of height and width is by reflection.
* **Clouds.** LR pixels that a mask hides come from the first frame that is reliable there, before
  all else; the frames are not registered.
* **Units.** What the filters gather is converted from the inputs' standardisation to the outputs';
  the residual is in the outputs'.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deepsum_jax import losses, units
from deepsum_jax.config import Backend, Compute, ModelConfig, TrainConfig
from deepsum_jax.data.prepare import PreparedScene
from deepsum_jax.model import ops
from deepsum_jax.model.deepsum import Output, check_stacks
from deepsum_jax.model.layers import Conv, apply, kernel_init
from deepsum_jax.systems import windows
from deepsum_jax.systems.system import Batch, Params, Stack, Stage, SuperResolved, System

Array = jax.Array

FILTER_SIZE = 5  # LR pixels, the side of a dynamic upsampling filter
_TAPS = FILTER_SIZE**2
_BLOCKS = 6  # dense blocks of the 16 layers


def frame_order(frames: int) -> list[int]:
    """The order in which frame 0 is in the middle: [N − 2, …, 3, 1, 0, 2, 4, …, N − 1]; N odd."""
    return [*range(frames - 2, 0, -2), *range(0, frames, 2)]


def blocks_keep(config: ModelConfig) -> list[bool]:
    """Of each dense block, whether it keeps the number of frames."""
    reducing = (config.num_frames - 1) // 2
    return [True] * max(0, _BLOCKS - reducing) + [False] * reducing


def growth(config: ModelConfig) -> int:
    """G, the features that a dense block adds."""
    return max(1, config.features // 2)


def lr_size(config: ModelConfig, height: int, width: int) -> tuple[int, int]:
    """The LR grid [h, w] of an upsampled one.

    Raises:
      ValueError: an even scale, a grid that the scale does not divide, or one too small for the
        filters' reflection.
    """
    r, least = config.scale, FILTER_SIZE // 2 + 1
    if r % 2 == 0:
        raise ValueError(
            f"ModelConfig.scale: found {r}, expected an odd scale: "
            "at an even one no pixel of the upsampled grid is an LR pixel"
        )
    if height % r or width % r:
        raise ValueError(f"images: found {height}×{width} pixels, expected multiples of {r}")
    if min(height, width) < r * least:
        raise ValueError(
            f"images: found {height}×{width} pixels, expected at least {r * least}×{r * least}"
        )
    return height // r, width // r


def depth_to_space(x: Array) -> Array:
    """The HR pixels of each LR pixel to where they lie: [B, h, w, r, r, C] → [B, H, W, C]."""
    batch, height, width, r, _, channels = x.shape
    x = jnp.moveaxis(x, 3, 2)  # [B, h, r, w, r, C]
    return x.reshape(batch, height * r, width * r, channels)


def upsample_dynamically(image: Array, filters: Array, backend: Backend = "auto") -> Array:
    """Every HR pixel by its own filter on the 5×5 LR pixels around its LR pixel.

    Args:
      image: [B, h, w, C], h, w ≥ 3; padded by reflection.
      filters: [B, h, w, 25, r, r], taps row by row, then the HR pixel's row and column in its LR
        pixel; all channels share them.

    Returns:
      [B, H, W, C].
    """
    height, width = image.shape[1:3]
    padded = ops.reflect_pad(image, FILTER_SIZE // 2, backend)
    around = jnp.stack(
        [
            padded[:, i : i + height, j : j + width]
            for i in range(FILTER_SIZE)
            for j in range(FILTER_SIZE)
        ],
        axis=3,
    )  # [B, h, w, 25, C]
    products = filters[..., None] * around[:, :, :, :, None, None]  # [B, h, w, 25, r, r, C]
    return depth_to_space(products.sum(axis=3))


class _BareConv(nn.Module):
    """Reflection-padded convolution without bias, k×k of frames or 3×3×3 and "valid" on them."""

    features: int
    window: tuple[int, ...]
    compute: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        cfg = self.compute
        shape = (*self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", kernel_init, shape, cfg.param_dtype)
        convolve = ops.conv3d if len(self.window) == 3 else ops.conv2d
        return convolve(x.astype(cfg.dtype), kernel.astype(cfg.dtype), cfg.precision, cfg.backend)


class _NormReLU(nn.Module):
    """Instance norm of every frame by itself, then ReLU: [..., H, W, F] → the same."""

    compute: Compute

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape, dtype = x.shape[-1:], self.compute.param_dtype
        gamma = self.param("scale", nn.initializers.ones, shape, dtype)
        beta = self.param("bias", nn.initializers.zeros, shape, dtype)
        return nn.relu(ops.instance_norm(x, gamma, beta))


class _DenseBlock(nn.Module):
    """Adds G features to [B, M, h, w, F]; without `keep`, the first and the last frame go."""

    config: ModelConfig
    compute: Compute
    keep: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        cfg = self.compute
        y = _NormReLU(cfg, name="norm0")(x)
        y = _BareConv(x.shape[-1], (1, 1), cfg, name="conv0")(y)
        y = _NormReLU(cfg, name="norm1")(y)
        if self.keep:
            y = jnp.pad(y, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        else:
            x = x[:, 1:-1]
        y = _BareConv(growth(self.config), (3, 3, 3), cfg, name="conv1")(y)
        return jnp.concatenate([x, y], axis=-1)


class DUFNet(nn.Module):
    """The whole network. The configuration's fields for registration are not used.

    `DUFNet(config).apply({"params": params}, images, masks)` gives the SR image [B, H, W, C],
    standardised by hr_mean and hr_std, in float32 at least.
    """

    config: ModelConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, images: Array, masks: Array) -> Array:
        """Super-resolves a batch of stacks.

        Args:
          images: [B, N, H, W, C], standardised and bicubic-upsampled; frame 0 is the reference.
            Only the LR frames are used, which lie in the middle phase of the upsampled grid:
            Keys' kernel interpolates.
          masks: [B, N, H, W, 1] bool, True = reliable.

        Raises:
          ValueError: an even scale, or shapes other than the configuration's.
        """
        self._check(images, masks)
        cfg, middle = self.config, slice(self.config.scale // 2, None, self.config.scale)
        lr, clear = images[:, :, middle, middle], masks[:, :, middle, middle].astype(bool)
        if cfg.inpainting != "none":
            lr = ops.mutual_inpainting(lr, clear, self.compute.backend)  # [B, N, h, w, C]
        filters, residual = self._generate(lr)
        gathered = upsample_dynamically(lr[:, 0], filters, self.compute.backend)  # [B, H, W, C]
        base = units.input_to_output(gathered, cfg.normalization)
        return base + depth_to_space(residual)

    def _check(self, images: Array, masks: Array) -> None:
        check_stacks(images, masks, self.config)
        lr_size(self.config, *jnp.shape(images)[2:4])

    def _generate(self, lr: Array) -> tuple[Array, Array]:
        """Filters [B, h, w, 25, r, r] and residual [B, h, w, r, r, C] from [B, N, h, w, C]."""
        cfg, compute = self.config, self.compute
        r, width = cfg.scale, cfg.features
        block = nn.remat(_DenseBlock) if compute.rematerialize else _DenseBlock
        x = lr[:, np.array(frame_order(cfg.num_frames))]
        x = _BareConv(width, (3, 3), compute, name="conv_in")(x)  # [B, N, h, w, F]
        for i, keep in enumerate(blocks_keep(cfg)):
            x = block(cfg, compute, keep, name=f"block{i}")(x)
        x = _NormReLU(compute, name="norm_out")(x[:, 0])  # [B, h, w, F + 6·G]
        x = nn.relu(Conv(4 * width, 3, compute, name="conv_out")(x))

        logits = nn.relu(Conv(8 * width, 1, compute, name="filters0")(x))
        logits = Conv(_TAPS * r * r, 1, compute, name="filters1")(logits)
        init = nn.initializers.zeros if cfg.residual_init == "zeros" else kernel_init
        residual = nn.relu(Conv(4 * width, 1, compute, name="residual0")(x))
        residual = Conv(r * r * cfg.channels, 1, compute, init, name="residual1")(residual)

        wide = jnp.promote_types(compute.dtype, jnp.float32)
        filters = nn.softmax(logits.astype(wide).reshape(*x.shape[:3], _TAPS, r, r), axis=3)
        return filters, residual.astype(wide).reshape(*x.shape[:3], r, r, cfg.channels)


# --- the system ----------------------------------------------------------------------------------


def run(
    params: Params,
    images: Array,
    masks: Array,
    config: ModelConfig,
    compute: Compute,
    shifts: Array | None = None,
    frame_by_frame: bool = False,
) -> Output:
    """The network on a batch of inputs, as `data.inputs` makes them. It registers nothing, and is
    small enough for whole stacks."""
    sr = apply(DUFNet(config, compute), params["duf"], images, masks)
    filters = jnp.zeros((*images.shape[:1], 0, config.filter_size, config.filter_size))
    return Output(sr, filters, masks, jnp.zeros_like(sr))


def loss(
    params: Params, batch: Batch, config: TrainConfig, axis_name: str | None = None
) -> tuple[Array, dict[str, Array]]:
    """Registered MSE, in output units."""
    sr = run(params, batch["images"], batch["masks"], config.model, config.compute).sr
    return losses.registered_mse(sr, batch["hr"], batch["hr_mask"], config.border), {}


def scene_image(
    params: Params, scene: PreparedScene, config: TrainConfig
) -> tuple[np.ndarray, np.ndarray]:
    """SR [H, W, C] raw of a scene's N clearest frames, and filters."""
    forward = windows.Forward(run, config.model, config.compute)
    return windows.scene_image(forward, params, scene)


STAGE = Stage("deepsum", loss, trains=("duf",), view="stacks", image=scene_image)


def param_shapes(config: ModelConfig) -> Any:
    """Shapes of the parameters."""

    def init(images: Array, masks: Array, shifts: Array) -> Any:
        return DUFNet(config).init(jax.random.key(0), images, masks)

    return {"duf": windows.stack_shapes(init, config)}


def super_resolve(
    params: Params, stack: Stack, config: ModelConfig, compute: Compute
) -> SuperResolved:
    """A stack through the sliding window."""
    return windows.super_resolve(windows.Forward(run, config, compute), params, stack)


def duf_work(model: ModelConfig, height: int, width: int) -> float:
    """Multiplications and additions of one forward pass over a stack of [N, height, width],
    upsampled; of convolutions and dynamic filters, padding counted as if it were pixels."""
    rows, cols = lr_size(model, height, width)
    f, g, c, r2 = model.features, growth(model), model.channels, model.scale**2
    frames, features = model.num_frames, f
    products = frames * 9 * c * f  # conv_in
    for keep in blocks_keep(model):
        products += frames * features * features
        frames -= 0 if keep else 2
        products += frames * 27 * features * g
        features += g
    products += 9 * features * 4 * f  # conv_out
    products += 4 * f * 8 * f + 8 * f * _TAPS * r2  # filters0, filters1
    products += 4 * f * 4 * f + 4 * f * r2 * c  # residual0, residual1
    products += _TAPS * r2 * c  # what the filters gather
    return 2.0 * rows * cols * products


def work(model: ModelConfig, height: int, width: int, frames: int) -> float:
    """Of all windows that so many frames make."""
    return windows.count_windows(frames, model) * duf_work(model, height, width)


DUF = System(
    name="duf",
    label="DUF",
    stages=lambda config: (STAGE,),
    param_shapes=param_shapes,
    zeroed=(("duf", "residual1"),),
    super_resolve=super_resolve,
    work=work,
)
