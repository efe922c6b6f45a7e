"""Devices: mapping a step over them, sharing out batches. No other room knows how many there are.

A step is mapped with `jax.pmap` over the axis "devices". State goes in and out replicated and
without a device axis, so it looks the same on one device and on many.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from deepsum_jax.config import TrainConfig
from deepsum_jax.systems.system import Stage
from deepsum_jax.training.step import TrainState, make_train_step

AXIS = "devices"
Devices = Sequence[jax.Device] | None


def use_cores(batch_sizes: Sequence[int]) -> None:
    """On a CPU, makes as many devices of it as there are cores to share every batch evenly.

    A device a core trains half as fast again as one device over all cores. Only before JAX has
    looked for devices, and not where XLA_FLAGS or JAX_NUM_CPU_DEVICES say how many there are.
    """
    asked = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if asked or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    shared = math.gcd(*batch_sizes)
    with contextlib.suppress(RuntimeError):  # the devices are known already
        count = max(n for n in range(1, cores + 1) if shared % n == 0)
        jax.config.update("jax_num_cpu_devices", count)


def describe() -> str:
    """The devices that training will use, in words."""
    devices = jax.devices()
    return f"{len(devices)} × {devices[0].device_kind} ({devices[0].platform})"


def check_batch(batch_size: int, what: str) -> None:
    """Raises ValueError where the devices cannot share a batch evenly."""
    devices = jax.device_count()
    if batch_size % devices:
        raise ValueError(
            f"{what}: found batch_size {batch_size}, expected a multiple of the {devices} devices"
        )


def process_share() -> tuple[int, int]:
    """(index, count) of this process, for sharding the data."""
    return jax.process_index(), jax.process_count()


def are_many() -> bool:
    """Whether other processes train with this one."""
    return jax.process_count() > 1


def agreed(wish: bool) -> bool:
    """Whether any process wishes it; all have to ask."""
    if not are_many():
        return wish
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(wish))))


def is_first_process() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0


def shard(batch: Mapping[str, np.ndarray], devices: Devices = None) -> dict[str, np.ndarray]:
    """[B, …] of this process → [devices, B / devices, …]."""
    count = len(devices) if devices is not None else jax.local_device_count()
    return {k: v.reshape(count, -1, *v.shape[1:]) for k, v in batch.items()}


def map_train_step(
    stage: Stage, config: TrainConfig, devices: Devices = None
) -> Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, dict[str, jax.Array]]]:
    """The stage's train step over devices: (state, sharded batch) → (state, metrics).

    The state's buffers are donated: use only the returned one.

    Args:
      devices: which; default all.
    """
    step = make_train_step(stage, config, AXIS)
    return jax.pmap(
        step, AXIS, in_axes=(None, 0), out_axes=(None, None), donate_argnums=(0,), devices=devices
    )


def replicate(tree: Any, devices: Devices = None) -> Any:
    """Puts a pytree on every device, in new buffers, laid out as the mapped step returns state."""
    count = len(devices) if devices is not None else jax.local_device_count()
    return _copier(None if devices is None else tuple(devices))(tree, np.arange(count))


@functools.cache  # one, so that it compiles once for a stage's states
def _copier(devices: tuple[jax.Device, ...] | None) -> Any:
    return jax.pmap(lambda tree, _: tree, AXIS, in_axes=(None, 0), out_axes=None, devices=devices)


def to_host(tree: Any) -> Any:
    """A replicated pytree as numpy arrays."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)
