"""The choice between formulations of one operator that give the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax import lax

from deepsum_jax.config import Backend as Backend


def choose(backend: Backend, cpu: Callable[..., Any], plain: Callable[..., Any], *args: Any) -> Any:
    """Calls one formulation with `args`.

    "auto" leaves the choice to the platform that the program is compiled *for*, which need not be
    the one it is compiled on; the other two force a formulation, on any platform.
    """
    if backend == "auto":
        return lax.platform_dependent(*args, cpu=cpu, default=plain)
    return (cpu if backend == "cpu" else plain)(*args)
