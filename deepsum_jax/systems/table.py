"""The table of systems: everything that differs between them is looked up here."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import scipy.special

from deepsum_jax.config import Compute, ModelConfig, Section, Settings, nearest
from deepsum_jax.systems import bicubic_mean, deepsum, duf, ibp, robust_ibp, sisr, unrolled
from deepsum_jax.systems.system import Params, Stage, System

SYSTEMS: Mapping[str, System] = types.MappingProxyType(
    {
        system.name: system
        for system in (
            deepsum.DEEPSUM,
            duf.DUF,
            sisr.SISR,
            sisr.SISR_MEAN,
            ibp.IBP,
            bicubic_mean.BICUBIC_MEAN,
            robust_ibp.ROBUST_IBP,
            unrolled.UNROLLED,
        )
    }
)

MOST_PARAMETERS = 2**28  # numbers in a network, 1 GiB; the published one has a hundredth of it


def parameterless() -> tuple[str, ...]:
    """Names of the systems that nothing is trained for."""
    return tuple(s.name for s in SYSTEMS.values() if not s.stages(ModelConfig(system=s.name)))


def system_of(config: ModelConfig) -> System:
    """A configuration's system.

    Raises:
      ValueError: no system of that name, options that it does not have, or fields that do not go
        with them.
    """
    if config.system not in SYSTEMS:
        raise ValueError(
            f"model.system: found {config.system!r}; {nearest(config.system, SYSTEMS)}"
        )
    system = SYSTEMS[config.system]
    options_of(system, config)
    system.check(config)
    return system


def options_of(system: System, config: ModelConfig) -> Section:
    """A configuration's options, those left out at their defaults.

    Raises:
      ValueError: an option that the system does not have, or a wrong value.
    """
    try:
        return system.options.from_dict(config.options)
    except ValueError as error:
        raise ValueError(f"model.options of {system.label}: {error}") from None


def all_options(config: ModelConfig) -> Settings:
    """A configuration's options with the defaults of those left out, for what is stored."""
    return Settings(options_of(system_of(config), config).to_dict())


def stages_of(config: ModelConfig) -> tuple[Stage, ...]:
    """The stages that a system learns in.

    Raises:
      ValueError: a system without parameters.
    """
    system = system_of(config)
    stages = system.stages(config)
    if not stages:
        raise ValueError(f"model.system: {system.label} has nothing to train")
    return stages


@functools.lru_cache(maxsize=16)
def param_shapes(config: ModelConfig) -> Any:
    """Shapes of a system's parameters by sub-tree, as `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: as `system_of`; more than `MOST_PARAMETERS` numbers.
    """
    shapes = system_of(config).param_shapes(config)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    if count > MOST_PARAMETERS:
        raise ValueError(
            f"model: found {count} parameters, expected at most {MOST_PARAMETERS}: fewer features, "
            "layers or frames"
        )
    return shapes


def draw_params(shapes: Any, key: jax.Array, compute: Compute = Compute()) -> Params:
    """Fresh parameters of given shapes: Glorot normal kernels truncated at two deviations, zero
    biases, unit scales; running statistics of mean 0 and variance 1.

    Drawn on the host: it takes milliseconds, where compiling as many small random programs takes
    seconds, and gives the same values on every device.

    Args:
      compute: gives their dtype.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key), np.uint32).tolist())
    low, dtype = scipy.special.ndtr(-2.0), compute.param_dtype

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name != "kernel":
            return np.full(leaf.shape, float(name in ("scale", "variance")), dtype)
        fans = np.prod(leaf.shape[:-2]) * (leaf.shape[-2] + leaf.shape[-1]) / 2
        truncated = scipy.special.ndtri(rng.uniform(low, 1 - low, leaf.shape))
        # The truncation takes variance away: 0.8796… is the deviation that it leaves.
        return (truncated / (np.sqrt(fans) * 0.87962566103423978)).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def init_params(config: ModelConfig, key: jax.Array, compute: Compute = Compute()) -> Params:
    """Fresh parameters of a system, numpy arrays by sub-tree; for DeepSUM
    {"sisrnet", "regnet", "fusionnet"}.

    As the modules' own `init` would, but in milliseconds.
    """
    params = dict(draw_params(param_shapes(config), key, compute))
    if config.residual_init == "zeros":
        for name, layer in system_of(config).zeroed:
            last = params[name][layer]
            last["kernel"] = np.zeros_like(last["kernel"])
    return params
