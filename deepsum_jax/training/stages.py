"""The stages of a training in their order, and what one hands to the next."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepsum_jax.config import Compute, ModelConfig, nearest
from deepsum_jax.systems.system import Params, Stage
from deepsum_jax.systems.table import draw_params, init_params, stages_of, system_of

Array = jax.Array

NAMES = ("sisrnet", "regnet", "deepsum")
"""All stages that systems learn in, each a section of `TrainConfig`, in their order."""


def stage(name: str, model: ModelConfig = ModelConfig()) -> Stage:
    """A system's stage of that name. Raises ValueError naming the nearest one."""
    stages = {one.name: one for one in stages_of(model)}
    if name not in stages:
        raise ValueError(f"unknown stage {name!r}; {nearest(name, stages)}")
    return stages[name]


def number(one: Stage) -> int:
    """A stage's place among all: what its random numbers and its turn go by."""
    return NAMES.index(one.name)


def fresh_params(
    one: Stage, model: ModelConfig, key: Array, compute: Compute = Compute()
) -> Params:
    """Newly initialised parameters of every sub-tree that a stage trains or uses."""
    further = system_of(model).stage_shapes(model)
    params = {
        name: draw_params(shapes, jax.random.fold_in(key, 1 + n), compute)
        for n, (name, shapes) in enumerate(further.items())
    }
    params |= init_params(model, key, compute)
    return {name: params[name] for name in (*one.trains, *one.uses)}


def _paths(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(k.key) for k in path): jnp.shape(leaf) for path, leaf in leaves}


def hand_over(fresh: Params, given: Params, origin: str) -> Params:
    """Puts handed-over sub-trees in the place of fresh ones.

    Args:
      fresh: the receiving stage's parameters.
      given: sub-trees by name; each must be one of `fresh` and fit it exactly.
      origin: where they come from, for the message.

    Raises:
      ValueError: names every missing, unexpected or misshapen parameter.
    """
    unknown = sorted(set(given) - set(fresh))
    wrong = [f"unexpected {name}" for name in unknown]
    for name in sorted(set(given) & set(fresh)):
        want, have = _paths(fresh[name]), _paths(given[name])
        wrong += [f"missing {name}/{path}" for path in want if path not in have]
        wrong += [f"unexpected {name}/{path}" for path in have if path not in want]
        wrong += [
            f"{name}/{path} has shape {have[path]}, expected {want[path]}"
            for path in want
            if path in have and have[path] != want[path]
        ]
    if wrong:
        raise ValueError(f"parameters from {origin} do not fit: {'; '.join(wrong)}")
    # They may be kept in half precision; training goes on in its own.
    cast = {
        name: jax.tree.map(lambda new, old: np.asarray(old, new.dtype), fresh[name], tree)
        for name, tree in given.items()
    }
    return {**fresh, **cast}
