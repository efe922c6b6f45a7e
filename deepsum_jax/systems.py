"""The systems that one configuration field chooses between: their parameters, and how they run.

DeepSUM and DUF are networks over stacks; "sisr" and "sisr_mean" are SISRNet with its head on single
frames; "ibp" and "bicubic_mean" have no parameters. `predict` and `evaluate` serve all of them.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from deepsum_jax.baselines.duf import DUF
from deepsum_jax.config import ModelConfig
from deepsum_jax.deepsum import DeepSUM, Output, Params
from deepsum_jax.layers import apply
from deepsum_jax.sisrnet import SISRHead, SISRNet

Array = jax.Array

LABELS = {
    "deepsum": "DeepSUM",
    "duf": "DUF",
    "sisr": "SISR",
    "sisr_mean": "SISR+Mean",
    "ibp": "IBP",
    "bicubic_mean": "Bicubic+Mean",
}
"""What tables call each system."""

PARAMETERLESS = ("ibp", "bicubic_mean")
"""Systems that nothing is trained for."""


def run(
    params: Params,
    images: Array,
    masks: Array,
    config: ModelConfig,
    masks_registered: bool = False,
    shifts: Array | None = None,
    frame_by_frame: bool = False,
    training: bool = False,
) -> Output:
    """A stack network on a batch; arguments as of `DeepSUM`. DUF registers nothing."""
    if config.system != "duf":
        network = DeepSUM(config, frame_by_frame, training)
        return apply(network, params, images, masks, masks_registered, shifts)
    sr = apply(DUF(config), params["duf"], images, masks)
    filters = jnp.zeros((*images.shape[:1], 0, config.filter_size, config.filter_size))
    return Output(sr, filters, masks, jnp.zeros_like(sr))


def sisr(params: Params, images: Array, model: ModelConfig, training: bool = False) -> Array:
    """SISRNet with its head: standardised images [..., H, W, C] → sharper ones, same units."""
    features = apply(SISRNet(model, training), params["sisrnet"], images)
    residual = apply(SISRHead(model), params["sisr_head"], features)
    return images + residual.astype(images.dtype)


def _shapes(module: nn.Module, *inputs: Any) -> Any:
    """Shapes of a module's parameters, for inputs given by shape and dtype."""
    init = functools.partial(module.init, jax.random.key(0))
    return jax.eval_shape(init, *inputs)["params"]


def head_shapes(config: ModelConfig) -> Any:
    """Shapes of SISRNet's pretraining head."""
    return _shapes(SISRHead(config), jax.ShapeDtypeStruct((1, 8, 8, config.features), config.dtype))


@functools.lru_cache(maxsize=16)
def param_shapes(config: ModelConfig) -> Any:
    """Shapes and dtypes of a system's parameters by sub-tree, as `jax.ShapeDtypeStruct`s."""
    if config.system in PARAMETERLESS:
        return {}
    side = config.scale * max(8, config.filter_size)
    stack = (1, config.num_frames, side, side)
    images = jax.ShapeDtypeStruct((*stack, config.channels), config.dtype)
    masks = jax.ShapeDtypeStruct((*stack, 1), jnp.bool_)
    if config.system == "duf":
        return {"duf": _shapes(DUF(config), images, masks)}
    if config.system in ("sisr", "sisr_mean"):
        return {"sisrnet": _shapes(SISRNet(config), images), "sisr_head": head_shapes(config)}
    shifts = jax.ShapeDtypeStruct((*stack[:2], 2), jnp.float32)
    network = DeepSUM(config)

    def init(images: Array, masks: Array, shifts: Array) -> Params:
        given = shifts if config.takes_shifts else None
        return network.init(jax.random.key(0), images, masks, True, given)

    shapes = jax.eval_shape(init, images, masks, shifts)["params"]
    order = ("sisrnet", "regnet", "fusionnet")  # as data flows; JAX sorts by name
    return {name: shapes[name] for name in order if name in shapes}


def draw_params(shapes: Any, key: Array) -> Params:
    """Fresh parameters of given shapes: Glorot normal kernels truncated at two deviations, zero
    biases, unit scales; running statistics of mean 0 and variance 1.

    Drawn on the host: it takes milliseconds, where compiling as many small random programs takes
    seconds, and gives the same values on every device.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key), np.uint32).tolist())
    low = scipy.special.ndtr(-2.0)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name != "kernel":
            return np.full(leaf.shape, float(name in ("scale", "variance")), leaf.dtype)
        fans = np.prod(leaf.shape[:-2]) * (leaf.shape[-2] + leaf.shape[-1]) / 2
        truncated = scipy.special.ndtri(rng.uniform(low, 1 - low, leaf.shape))
        # The truncation takes variance away: 0.8796… is the deviation that it leaves.
        return (truncated / (np.sqrt(fans) * 0.87962566103423978)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def init_params(config: ModelConfig, key: Array) -> Params:
    """Fresh parameters of a system, numpy arrays by sub-tree; for DeepSUM
    {"sisrnet", "regnet", "fusionnet"}.

    As the modules' own `init` would, but in milliseconds.
    """
    params = dict(draw_params(param_shapes(config), key))
    if config.residual_init == "zeros":
        for name, layer in (("fusionnet", "conv_out"), ("duf", "residual1")):
            if name in params:
                last = params[name][layer]
                last["kernel"] = np.zeros_like(last["kernel"])
    return params
